import math

import numpy as np
import pytest
import tensorflow as tf

from towers.datasets.augmentation import augment, centre_crop, jitter_color, uniform

PLAIN = {"random_crop": False, "random_flip": False, "random_rotate": False}


def reference_hash(seed, position, n):
    """The same hash on Python's unbounded integers."""
    state = 0
    for word in (seed % 2**32, seed >> 32 & 0xFFFFFFFF, n, position >> 32, position % 2**32):
        state = ((state ^ word) + 0x9E3779B9) % 2**32
        state ^= state >> 16
        state = state * 0x85EBCA6B % 2**32
        state ^= state >> 13
        state = state * 0xC2B2AE35 % 2**32
        state ^= state >> 16
    return (state >> 8) / 2**24


def coordinates(count, size):
    """Pictures whose red is the row and green the column."""
    row, column = np.meshgrid(np.arange(size), np.arange(size), indexing="ij")
    picture = np.stack([row, column, np.zeros_like(row)], axis=-1).astype(np.uint8)
    return tf.constant(np.repeat(picture[None], count, axis=0))


def draws(seed, count, n=0):
    return uniform(seed, tf.range(count, dtype=tf.int64), n).numpy()


@pytest.mark.parametrize("seed", [0, 1, 2**31 + 5, 2**40 + 3])
def test_uniform_equals_python_integers(seed):
    positions = [0, 1, 2, 65535, 2**31 - 1, 2**32 - 1, 2**32, 2**33 + 7, 2**62 + 12345]
    for n in range(4):
        expected = np.array([reference_hash(seed, position, n) for position in positions], np.float32)
        assert np.array_equal(uniform(seed, tf.constant(positions, tf.int64), n).numpy(), expected)


def test_uniform_fills_its_range_evenly():
    values = draws(7, 200_000)
    assert values.dtype == np.float32
    assert values.min() >= 0
    assert values.max() < 1
    counts = np.bincount((values * 100).astype(int), minlength=100)
    chi_square = ((counts - 2000) ** 2 / 2000).sum()
    assert abs(chi_square - 99) < 5 * math.sqrt(2 * 99)


def test_draws_of_neighbours_numbers_and_seeds_are_independent():
    first = draws(7, 100_000)
    for other in (
        draws(7, 100_000, n=1),
        draws(8, 100_000),
        np.roll(first, 1),
        np.roll(first, 2),
        draws(7 + 2**32, 100_000),
    ):
        assert abs(np.corrcoef(first, other)[0, 1]) < 5 / math.sqrt(100_000)
        joint = np.histogram2d(first, other, bins=10, range=[[0, 1], [0, 1]])[0]
        assert abs(((joint - 1000) ** 2 / 1000).sum() - 99) < 5 * math.sqrt(2 * 99)


def test_centre_crop_and_plain_augment_agree():
    images = coordinates(3, 9)
    cropped = centre_crop(images, 5)
    assert cropped.shape == (3, 5, 5, 3)
    assert cropped[0, 0, 0, :2].numpy().tolist() == [2, 2]
    assert np.array_equal(augment(images, tf.range(3, dtype=tf.int64), seed=0, image_size=5, **PLAIN), cropped)


def test_crop_and_flip_are_the_slices_that_the_draws_name():
    images, seed = coordinates(64, 12), 3
    positions = tf.range(100, 164, dtype=tf.int64)
    result = augment(
        images, positions, seed=seed, image_size=9, random_crop=True, random_flip=True, random_rotate=False
    )
    assert result.dtype == tf.uint8
    for index, position in enumerate(positions.numpy().tolist()):
        top, left = (int(reference_hash(seed, position, n) * 4) for n in (0, 1))
        expected = images[index].numpy()[top : top + 9, left : left + 9]
        if reference_hash(seed, position, 2) < 0.5:
            expected = expected[:, ::-1]
        assert np.array_equal(result[index], expected)


def test_every_corner_and_both_sides_occur():
    images = coordinates(400, 6)
    result = augment(
        images,
        tf.range(400, dtype=tf.int64),
        seed=0,
        image_size=4,
        random_crop=True,
        random_flip=True,
        random_rotate=False,
    ).numpy()
    assert {(top, column) for top, column in result[:, 0, 0, :2].tolist()} == {
        (top, column) for top in range(3) for column in (0, 1, 2, 3, 4, 5)
    }


def test_copies_at_other_positions_differ_and_the_same_position_repeats():
    images = tf.repeat(tf.constant(np.random.default_rng(0).integers(0, 256, (1, 40, 40, 3), np.uint8)), 32, axis=0)
    arguments = {"seed": 5, "image_size": 32, "random_crop": True, "random_flip": True, "random_rotate": True}
    positions = tf.range(32, dtype=tf.int64)
    result = augment(images, positions, **arguments).numpy()
    assert len({picture.tobytes() for picture in result}) == 32
    backwards = augment(images, positions[::-1], **arguments).numpy()
    assert np.array_equal(result, backwards[::-1])
    assert not np.array_equal(result, augment(images, positions, **{**arguments, "seed": 6}))


def test_rotation_turns_about_the_middle_by_the_drawn_angle():
    size, seed = 33, 2
    images = coordinates(40, size)
    positions = tf.range(40, dtype=tf.int64)
    result = augment(
        images, positions, seed=seed, image_size=21, random_crop=False, random_flip=False, random_rotate=True
    )
    for index in range(40):
        angle = math.radians(10) * (2 * reference_hash(seed, index, 3) - 1)
        for row, column in ((10, 10), (0, 0), (20, 3)):
            y, x = row - 10, column - 10
            expected = (16 + math.sin(angle) * x + math.cos(angle) * y, 16 + math.cos(angle) * x - math.sin(angle) * y)
            assert np.allclose(result[index, row, column, :2], expected, atol=0.51)


def test_rotation_keeps_crop_and_flip():
    """With rotation the same crop and side are taken: the middle pixel stays, up to rounding."""
    images, positions = coordinates(50, 30), tf.range(50, dtype=tf.int64)
    arguments = {"seed": 9, "image_size": 21, "random_crop": True, "random_flip": True}
    straight = augment(images, positions, **arguments, random_rotate=False).numpy().astype(int)
    turned = augment(images, positions, **arguments, random_rotate=True).numpy().astype(int)
    assert np.abs(straight[:, 10, 10] - turned[:, 10, 10]).max() <= 1
    assert np.abs(straight - turned).max() <= math.ceil(10 * math.sqrt(2) * math.radians(10)) + 1
    assert np.abs(straight - turned).max() >= 1


def test_rotation_leaves_no_black_border():
    images = tf.fill([20, 16, 16, 3], tf.constant(200, tf.uint8))
    result = augment(
        images,
        tf.range(20, dtype=tf.int64),
        seed=0,
        image_size=16,
        random_crop=False,
        random_flip=False,
        random_rotate=True,
    )
    assert tf.reduce_min(result).numpy() == 200


def test_shapes_are_static_in_a_graph():
    traced = tf.function(
        lambda images, positions: augment(
            images, positions, seed=0, image_size=8, random_crop=True, random_flip=True, random_rotate=True
        )
    ).get_concrete_function(tf.TensorSpec([4, 10, 10, 3], tf.uint8), tf.TensorSpec([4], tf.int64))
    assert traced.output_shapes[1:] == [8, 8, 3]


def test_a_crop_larger_than_the_picture():
    with pytest.raises(ValueError, match="image_size 11 is larger than the pictures loaded, 10 x 10"):
        centre_crop(coordinates(1, 10), 11)


def reference_jitter(picture, position, seed, strength):
    factors = [1 + strength * (2 * reference_hash(seed, position, n) - 1) for n in (4, 5, 6)]
    pixels = picture.astype(np.float64) * factors[0]
    mean = np.mean([0.299 * r + 0.587 * g + 0.114 * b for r, g, b in pixels.reshape(-1, 3)])
    pixels = mean + factors[1] * (pixels - mean)
    for row in pixels:
        for pixel in row:
            grey = 0.299 * pixel[0] + 0.587 * pixel[1] + 0.114 * pixel[2]
            pixel[:] = grey + factors[2] * (pixel - grey)
    return np.clip(pixels, 0, 255)


@pytest.mark.parametrize("strength", [0.4, 1.0])
def test_color_equals_a_slow_loop(strength):
    images = np.random.default_rng(0).integers(0, 256, (12, 7, 9, 3), np.uint8)
    positions = np.array([*range(11), 2**40 + 1])
    result = jitter_color(tf.constant(images), tf.constant(positions, tf.int64), seed=8, strength=strength)
    assert result.dtype == tf.uint8
    for picture, position, changed in zip(images, positions.tolist(), result.numpy(), strict=True):
        assert np.abs(changed - reference_jitter(picture, position, 8, strength)).max() <= 0.51
    assert len({(a.astype(int) - b).tobytes() for a, b in zip(images, result.numpy(), strict=True)}) == 12


def test_color_follows_crop_and_flip():
    images, positions = coordinates(6, 9), tf.range(6, dtype=tf.int64)
    arguments = {"seed": 1, "image_size": 5, "random_crop": True, "random_flip": True, "random_rotate": False}
    plain = augment(images, positions, **arguments)
    changed = augment(images, positions, **arguments, random_color=0.5)
    assert np.array_equal(changed, jitter_color(plain, positions, seed=1, strength=0.5))
    assert not np.array_equal(changed, plain)
