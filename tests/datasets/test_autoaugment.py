import math

import numpy as np
import pytest
import scipy.stats
import tensorflow as tf
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from towers.datasets import autoaugment as aa

SEED = 2**35 + 1


def pictures(count=6, height=33, width=40):
    """Smooth and noisy pictures, some of few levels."""
    random = np.random.default_rng(0)
    rows, columns = np.mgrid[:height, :width]
    made = []
    for index in range(count):
        waves = [np.sin(rows * random.uniform(0.1, 0.4) + columns * random.uniform(0.1, 0.4)) for _ in range(3)]
        picture = 120 + 60 * np.stack(waves, axis=2) + random.normal(0, 3 * index, (height, width, 3))
        made.append(np.clip(picture, 20 * index, 255 - 15 * index))
    made[-1][:] = (7, 9, 200)
    return np.array(made).astype(np.uint8)


def done(images, operation, value):
    count = len(images)
    return aa.apply_operations(
        tf.constant(images), tf.fill([count], operation), tf.fill([count], tf.constant(value, tf.float32))
    ).numpy()


def by_pillow(images, function):
    return np.array([np.asarray(function(Image.fromarray(image))) for image in images])


@pytest.mark.parametrize(
    ("operation", "value", "function"),
    [
        (aa.IDENTITY, 0.0, lambda picture: picture),
        *((aa.POSTERIZE, bits, lambda picture, b=bits: ImageOps.posterize(picture, b)) for bits in (4, 6, 8)),
        *((aa.SOLARIZE, level, lambda picture, v=level: ImageOps.solarize(picture, v)) for level in (0, 113.8, 256)),
        (aa.AUTOCONTRAST, 0.0, ImageOps.autocontrast),
        (aa.EQUALIZE, 0.0, ImageOps.equalize),
        (aa.INVERT, 0.0, ImageOps.invert),
        *((aa.COLOR, f, lambda picture, f=f: ImageEnhance.Color(picture).enhance(f)) for f in (0.1, 0.6, 1.0, 1.8)),
        *((aa.CONTRAST, f, lambda picture, f=f: ImageEnhance.Contrast(picture).enhance(f)) for f in (0.2, 1.0, 1.8)),
        *((aa.SHARPNESS, f, lambda picture, f=f: ImageEnhance.Sharpness(picture).enhance(f)) for f in (0.3, 1.7)),
    ],
)
def test_operations_are_pillows(operation, value, function):
    images = pictures()
    got, want = done(images, operation, value), by_pillow(images, function)
    assert got.dtype == np.uint8
    different = got.astype(int) - want
    # A blend on the edge between two levels may fall either way in float32.
    assert np.abs(different).max() <= 1
    assert np.mean(different != 0) < 0.002
    if operation not in (aa.COLOR, aa.CONTRAST, aa.SHARPNESS):
        assert not different.any()


def test_smoothing_is_pillows():
    images = pictures()
    np.testing.assert_array_equal(
        aa._smooth(tf.constant(images)), by_pillow(images, lambda p: p.filter(ImageFilter.SMOOTH))
    )


@pytest.mark.parametrize(
    ("operation", "value", "function"),
    [
        *(
            (
                aa.SHEAR_X,
                amount,
                lambda picture, m=amount: picture.transform(
                    picture.size, Image.Transform.AFFINE, (1, m, 0, 0, 1, 0), fillcolor=(aa.GREY,) * 3
                ),
            )
            for amount in (0.17, -0.3)
        ),
        *(
            (
                aa.ROTATE,
                math.radians(angle),
                lambda picture, a=angle: picture.rotate(a, fillcolor=(aa.GREY,) * 3),
            )
            for angle in (-10.0, 26.7)
        ),
    ],
)
def test_geometry_is_pillows(operation, value, function):
    images = pictures()
    got = done(images, operation, value)
    # Ties between two pixels fall otherwise; a wrong direction or centre would differ nearly everywhere.
    assert np.mean((got != by_pillow(images, function)).any(axis=(0, 3))) < 0.02
    assert np.mean((got[:3] != images[:3]).any(axis=3)) > 0.5
    corners = [(got[:, row, column] == aa.GREY).all() for row in (0, -1) for column in (0, -1)]
    assert any(corners)


def test_pictures_of_a_batch_take_their_own_operations():
    images = pictures()
    kinds = [aa.INVERT, aa.ROTATE, aa.EQUALIZE, aa.COLOR, aa.IDENTITY, aa.SHARPNESS]
    values = [0.0, 0.3, 0.0, 0.1, 0.0, 1.9]
    together = aa.apply_operations(tf.constant(images), tf.constant(kinds), tf.constant(values)).numpy()
    for index, (kind, value) in enumerate(zip(kinds, values, strict=True)):
        np.testing.assert_array_equal(together[index], done(images[index : index + 1], kind, value)[0])


def expected_pairs():
    """Probability of each (first, second) operation done, IDENTITY where none is, from the published policy."""
    law = {}
    for (a, p, _), (b, q, _) in aa.IMAGENET_POLICY:
        for first, share in ((a, p), (aa.IDENTITY, 1 - p)):
            for second, other in ((b, q), (aa.IDENTITY, 1 - q)):
                law[first, second] = law.get((first, second), 0) + share * other / 25
    return law


def test_operations_are_drawn_by_the_law_of_the_policy():
    number = 40_000
    (first, values), (second, _) = aa.draw_operations(2**33 + tf.range(number, dtype=tf.int64), SEED)
    law = {pair: share for pair, share in expected_pairs().items() if share > 0}
    found = dict.fromkeys(law, 0)
    for pair in zip(first.numpy().tolist(), second.numpy().tolist(), strict=True):
        found[pair] += 1
    assert sum(law.values()) == pytest.approx(1)
    test = scipy.stats.chisquare([found[pair] for pair in law], [law[pair] * number for pair in law])
    assert test.pvalue > 1e-3
    rotated = values.numpy()[first.numpy() == aa.ROTATE]
    assert 0.45 < np.mean(rotated > 0) < 0.55
    assert np.allclose(
        sorted({round(math.degrees(abs(v)), 2) for v in rotated.tolist()}), [10.0, 26.67, 30.0], atol=0.01
    )


@pytest.mark.parametrize(
    ("operation", "magnitude", "value"),
    [
        (aa.POSTERIZE, 5, 6),
        (aa.POSTERIZE, 8, 4),
        (aa.SOLARIZE, 5, 256 * 4 / 9),
        (aa.ROTATE, 9, math.radians(30)),
        (aa.SHEAR_X, 5, 0.3 * 5 / 9),
        (aa.COLOR, 8, 0.8),
    ],
)
def test_magnitudes(operation, magnitude, value):
    assert aa._value(operation, magnitude) == pytest.approx(value)


def test_a_picture_depends_on_seed_and_position_only():
    images = tf.constant(np.repeat(pictures()[:1], 12, axis=0))
    positions = 2**34 + tf.range(12, dtype=tf.int64)
    whole = tf.function(lambda x, p: aa.autoaugment(x, p, seed=SEED))(images, positions).numpy()
    np.testing.assert_array_equal(aa.autoaugment(images[5:7], positions[5:7], seed=SEED), whole[5:7])
    assert len({picture.tobytes() for picture in whole}) > 6
    assert not np.array_equal(aa.autoaugment(images, positions, seed=SEED + 1), whole)
