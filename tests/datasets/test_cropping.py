import cv2
import numpy as np
import pytest
import tensorflow as tf
from datasets.pictures import BROKEN, decoded, face, jpeg, png, with_orientation

from towers.datasets import cropping
from towers.datasets.cropping import RandomResizedCrop
from towers.datasets.decoding import BadPicture, Quarantine
from towers.datasets.folder import PathSource
from towers.datasets.host_hashing import keyed_hash_numpy
from towers.datasets.order import Order
from towers.datasets.pipeline import train_dataset
from towers.datasets.workers import Workers
from towers.hashing import keyed_hash

CROP = RandomResizedCrop(seed=5, size=24)


def test_the_hash_of_the_host_is_that_of_the_device():
    positions = np.array([0, 1, 2**31, 2**32 + 7, 2**62 + 12345], np.int64)
    for seed in (0, 666, 2**40 + 3):
        for n in (0, 1024, 1063):
            assert np.array_equal(keyed_hash_numpy(seed, n, positions), keyed_hash(seed, n, tf.constant(positions)))


def reference_box(height, width, draws, min_area):
    """Inception's law, tried one rectangle after the other."""
    for area_draw, aspect_draw, row_draw, column_draw in draws:
        area = height * width * (min_area + (1 - min_area) * area_draw)
        aspect = np.exp(np.log(3 / 4) + (np.log(4 / 3) - np.log(3 / 4)) * aspect_draw)
        columns, rows = max(1, round(np.sqrt(area * aspect))), max(1, round(np.sqrt(area / aspect)))
        if columns <= width and rows <= height:
            return int(row_draw * (height - rows + 1)), int(column_draw * (width - columns + 1)), rows, columns
    return None


@pytest.mark.parametrize(("height", "width", "min_area"), [(375, 500, 0.08), (64, 48, 0.5), (9, 7, 0.08), (1, 1, 0.08)])
def test_the_law_of_the_crop(height, width, min_area):
    crop = RandomResizedCrop(3, 84, min_area)
    for draws in crop.draws(np.arange(200)):
        top, left, rows, columns = crop.box(height, width, draws)
        assert (top, left, rows, columns) == reference_box(height, width, draws, min_area)
        assert 0 <= top <= height - rows
        assert 0 <= left <= width - columns


def test_areas_aspects_and_places_are_spread_evenly():
    boxes = np.array([CROP.box(4000, 4000, draws) for draws in CROP.draws(np.arange(4000))], float)
    top, left, rows, columns = boxes.T
    # Of a square, the largest areas fit only at aspects near 1 and are drawn anew: look below 0.75, where all fit.
    areas = rows * columns / 4000**2
    below = areas[areas < 0.74]
    assert abs(below.mean() - (0.08 + 0.74) / 2) < 5 * 0.66 / np.sqrt(12 * len(below))
    aspects = np.log(columns / rows)[areas < 0.74] / np.log(4 / 3)
    assert abs(aspects.mean()) < 5 / np.sqrt(3 * len(aspects))
    assert abs(aspects.var() - 1 / 3) < 0.03
    for first, length in ((top, rows), (left, columns)):
        places = (first / (4001 - length))[areas < 0.74]
        assert abs(places.mean() - 0.5) < 5 / np.sqrt(12 * len(places))


@pytest.mark.parametrize(("height", "width", "expected"), [(10, 1000, (0, 493, 10, 13)), (1000, 9, (494, 0, 12, 9))])
def test_strips_give_the_middle_of_the_nearest_aspect(height, width, expected):
    draws = np.full((cropping.TRIES, 4), 0.99)
    assert CROP.box(height, width, draws) == expected


@pytest.mark.parametrize("factor", [1, 2, 4, 8])
def test_reduced_decoding_shows_the_same_crop(factor, monkeypatch):
    size = 24 * factor + 8
    picture = cv2.resize(face(3), (size, size), interpolation=cv2.INTER_CUBIC)
    crop = RandomResizedCrop(5, 24, 0.98)
    draws = next(d for d in crop.draws(np.arange(500)) if min(crop.box(size, size, d)[2:]) >= 24 * factor)
    flags = []
    original = cv2.imdecode
    monkeypatch.setattr(cv2, "imdecode", lambda data, flag: flags.append(flag) or original(data, flag))
    encoded = jpeg(picture)
    result = crop.load(encoded, draws)
    assert flags == ([cropping._REDUCED[factor]] if factor > 1 else [])
    top, left, rows, columns = crop.box(size, size, draws)
    whole = decoded(encoded)[top : top + rows, left : left + columns]
    expected = cv2.resize(whole, (24, 24), interpolation=cv2.INTER_AREA)
    # Rounding the corner to the reduced grid moves it by half a pixel of that at most.
    assert np.abs(result.astype(int) - expected).mean() < 4


def test_exif_turns_before_the_crop():
    encoded = with_orientation(jpeg(face(1, 60, 200)), 6)
    for draws in CROP.draws(np.arange(10)):
        top, left, rows, columns = CROP.box(200, 60, draws)
        crop = decoded(encoded)[top : top + rows, left : left + columns]
        mode = cv2.INTER_AREA if min(rows, columns) >= 24 else cv2.INTER_LINEAR
        assert np.array_equal(CROP.load(encoded, draws), cv2.resize(crop, (24, 24), interpolation=mode))


@pytest.mark.parametrize("encoded", [jpeg(face(0, 1, 1)), jpeg(face(0, 5, 9)), png(1, 1, 8, 2, [b"abc"])])
def test_pictures_smaller_than_the_crop(encoded):
    assert CROP.load(encoded, CROP.draws(np.arange(1))[0]).shape == (24, 24, 3)


@pytest.mark.parametrize("name", BROKEN)
def test_broken_pictures_are_refused(name):
    with pytest.raises(BadPicture):
        CROP.load(BROKEN[name], CROP.draws(np.arange(1))[0])


def stream(source, num_towers, quarantine=None, **options):
    dataset = train_dataset(
        source,
        Order(len(source), 3),
        first_step=0,
        global_batch=8,
        towers=range(num_towers),
        num_towers=num_towers,
        load_size=99,
        quarantine=quarantine or Quarantine(source),
        crop=CROP,
        **options,
    )
    elements = list(dataset.take(6 * num_towers).as_numpy_iterator())
    return {name: np.concatenate([element[name] for element in elements]) for name in elements[0]}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for index in range(6):
        (folder / f"{index}.jpg").write_bytes(jpeg(face(index, 60 + index, 110)) if index != 4 else BROKEN["empty"])
    return PathSource([folder / f"{index}.jpg" for index in range(6)])


def test_the_crop_depends_on_seed_and_position_only(source):
    quarantine = Quarantine(source)
    one = stream(source, 1, quarantine)
    assert one["image"].shape == (48, 24, 24, 3)
    for other in (stream(source, 2), stream(source, 4, workers=Workers(5))):
        assert np.array_equal(one["image"], other["image"])
    draws = CROP.draws(one["position"])
    for index, record in enumerate(one["record"]):
        (encoded,) = source.reader([5 if record == 4 else record])()
        assert np.array_equal(one["image"][index], CROP.load(encoded, draws[index]))
    assert list(quarantine.bad) == [4]


def test_copies_of_a_picture_at_other_positions_differ(source):
    one = stream(source, 1)
    copies = one["image"][one["record"] == 0]
    assert len(copies) == 8
    assert len({copy.tobytes() for copy in copies}) == 8
