import resource
from functools import partial

import cv2
import numpy as np
import pytest
import tensorflow as tf
from conftest import run_python
from datasets.pictures import BROKEN, CMYK_JPEG, decoded, face, jpeg, png_bomb, with_orientation
from hypothesis import given, settings
from hypothesis import strategies as st

from towers.datasets import loading
from towers.datasets.decoding import Quarantine, fit
from towers.datasets.folder import PathSource, Source, read_folder
from towers.datasets.order import Order
from towers.datasets.pipeline import evaluation_dataset, train_dataset
from towers.datasets.workers import Workers
from towers.errors import BadData

SIZE = 16


def write_source(root, pictures, per_class=4) -> Source:
    """One file a picture, `per_class` of them a class, so that record r is picture r."""
    for index, encoded in enumerate(pictures):
        path = root / f"class{index // per_class:03d}" / f"{index:03d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded)
    return read_folder(root)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_source(tmp_path_factory.mktemp("pictures"), [jpeg(face(seed)) for seed in range(22)])


def train(
    source, count, *, towers=(0,), num_towers=1, global_batch=8, first_step=0, seed=3, quarantine=None, **options
):
    dataset = train_dataset(
        source,
        Order(len(source), 3),
        first_step=first_step,
        global_batch=global_batch,
        towers=list(towers),
        num_towers=num_towers,
        load_size=SIZE,
        quarantine=quarantine or Quarantine(source),
        **options,
    )
    return list(dataset.take(count).as_numpy_iterator())


def joined(elements):
    return {name: np.concatenate([element[name] for element in elements]) for name in elements[0]}


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert np.array_equal(one[name], other[name]), name


def pixels(source, records, batch=8, quarantine=None):
    """The pictures of records, as evaluation gives them."""
    quarantine = quarantine or Quarantine(source)
    dataset = evaluation_dataset(source, batch=batch, load_size=SIZE, num_towers=1, quarantine=quarantine)
    return joined(list(dataset.as_numpy_iterator()))["image"][records]


def test_shapes_and_types_are_static(source):
    options = {"load_size": SIZE, "num_towers": 2, "quarantine": Quarantine(source)}
    training = train_dataset(source, Order(22, 0), first_step=0, global_batch=8, towers=[0, 1], **options)
    evaluation = evaluation_dataset(source, batch=4, **options)
    for dataset in (training, evaluation):
        assert dataset.element_spec == {
            "image": tf.TensorSpec([4, SIZE, SIZE, 3], tf.uint8),
            "label": tf.TensorSpec([4], tf.int64),
            "record": tf.TensorSpec([4], tf.int64),
            "position": tf.TensorSpec([4], tf.int64),
        }
        assert dataset.options().experimental_distribute.auto_shard_policy == tf.data.experimental.AutoShardPolicy.OFF
    assert training.cardinality() in (tf.data.INFINITE_CARDINALITY, tf.data.UNKNOWN_CARDINALITY)


def test_positions_records_labels_and_pixels_belong_together(source):
    whole = joined(train(source, 9))
    assert np.array_equal(whole["position"], np.arange(72))
    assert np.array_equal(whole["record"], Order(22, 3).records(np.arange(72)))
    assert np.array_equal(whole["label"], whole["record"] // 4)
    expected = np.stack([decoded(data) for data in source.reader(whole["record"])()])
    assert np.array_equal(whole["image"], expected)


@pytest.mark.parametrize("num_towers", [2, 4])
def test_towers_share_the_stream_of_one_tower(source, num_towers):
    one = joined(train(source, 9))
    together = train(source, 9 * num_towers, towers=range(num_towers), num_towers=num_towers)
    assert_equal(joined(together), one)
    batch = 8 // num_towers
    alone = train(source, 9, towers=[1], num_towers=num_towers)
    for step, element in enumerate(alone):
        assert element["position"].tolist() == list(range(8 * step + batch, 8 * step + 2 * batch))
        assert_equal(element, together[step * num_towers + 1])


def test_a_resumed_stream_goes_on_across_passes(source):
    unbroken = train(source, 20, towers=[0, 1], num_towers=2)
    for first_step in (1, 3, 7):
        resumed = train(source, 6, towers=[0, 1], num_towers=2, first_step=first_step)
        for element, expected in zip(resumed, unbroken[2 * first_step :], strict=False):
            assert_equal(element, expected)


def test_elements_do_not_depend_on_parallelism(source):
    assert_equal(joined(train(source, 30, workers=Workers(1))), joined(train(source, 30, workers=Workers(7))))


def test_a_late_first_step_far_beyond_32_bits(source):
    (element,) = train(source, 1, first_step=2**40)
    assert np.array_equal(element["position"], 2**43 + np.arange(8))


def test_a_batch_that_does_not_divide(source):
    with pytest.raises(ValueError, match="global_batch 8 is not a multiple of num_towers 3"):
        train(source, 1, towers=[0], num_towers=3)


@pytest.mark.parametrize(("batch", "num_towers", "elements"), [(4, 2, 6), (11, 2, 2), (30, 1, 1), (5, 4, 8)])
def test_evaluation_gives_every_record_once_and_fills_up(source, batch, num_towers, elements):
    dataset = evaluation_dataset(
        source, batch=batch, load_size=SIZE, num_towers=num_towers, quarantine=Quarantine(source)
    )
    result = list(dataset.as_numpy_iterator())
    assert len(result) == elements == dataset_length(22, batch, num_towers)
    whole = joined(result)
    assert np.array_equal(whole["position"], np.arange(elements * batch))
    assert np.array_equal(whole["record"], np.where(np.arange(elements * batch) < 22, np.arange(elements * batch), -1))
    assert np.array_equal(whole["label"][:22], source.labels)
    assert not whole["label"][22:].any()
    assert not whole["image"][22:].any()
    assert np.array_equal(whole["image"][:22], pixels(source, np.arange(22)))


def dataset_length(num_records, batch, num_towers):
    steps = 0
    while steps * batch * num_towers < num_records:
        steps += 1
    return steps * num_towers


def test_evaluation_of_some_towers(source):
    options = {"batch": 4, "load_size": SIZE, "num_towers": 3, "quarantine": Quarantine(source)}
    every = list(evaluation_dataset(source, **options).as_numpy_iterator())
    some = list(evaluation_dataset(source, **options, towers=[1, 2]).as_numpy_iterator())
    expected = [element for index, element in enumerate(every) if index % 3]
    assert len(some) == len(expected) == 4
    for element, other in zip(some, expected, strict=True):
        assert_equal(element, other)


@pytest.fixture(scope="module")
def odd_source(tmp_path_factory):
    """Every kind of picture, of the right size and of others, in one folder."""
    colour, grey = face(1), face(2)[..., 0]
    pictures = [
        jpeg(colour),
        jpeg(grey),
        jpeg(colour, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444),
        jpeg(colour, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_422),
        jpeg(colour, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_440),
        jpeg(colour, cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
        jpeg(colour, cv2.IMWRITE_JPEG_RST_INTERVAL, 1),
        CMYK_JPEG,
        *(with_orientation(jpeg(face(9, 16, 16)), orientation) for orientation in range(1, 9)),
        with_orientation(jpeg(face(9, 16, 40)), 6),
        jpeg(face(3, 40, 31)),
        jpeg(face(4, 9, 5)),
        jpeg(colour) + b"trailing",
        cv2.imencode(".png", colour)[1].tobytes(),
        cv2.imencode(".png", grey.astype(np.uint16) * 257)[1].tobytes(),
        cv2.imencode(".png", np.dstack([colour, grey]))[1].tobytes(),
    ]
    return write_source(tmp_path_factory.mktemp("odd"), pictures)


def test_odd_pictures_have_the_same_pixels_in_any_batch(odd_source):
    quarantine = Quarantine(odd_source)
    alone = pixels(odd_source, np.arange(len(odd_source)), batch=1, quarantine=quarantine)
    expected = np.stack([fit(decoded(data), SIZE) for data in odd_source.reader(range(len(odd_source)))()])
    assert np.array_equal(alone, expected)
    for global_batch in (5, 23):
        whole = joined(train(odd_source, 8, global_batch=global_batch, quarantine=quarantine))
        assert np.array_equal(whole["image"], expected[whole["record"]])
    assert quarantine.bad == {}


def test_plain_pictures_are_decoded_where_they_lie_in_the_batch(source, monkeypatch):
    monkeypatch.setattr(loading, "fit", lambda *_: pytest.fail("decoded elsewhere and copied"))
    job = loading.Job(0, (4, SIZE, SIZE, 3), source.reader(range(4)), None, None)
    filled = np.zeros(job.shape, np.uint8)
    assert job.fill(filled) == []
    assert np.array_equal(filled, pixels(source, np.arange(4)))


@settings(max_examples=60, deadline=None)
@given(place=st.integers(0, 10_000), change=st.integers(1, 255), seed=st.integers(0, 3))
def test_a_damaged_picture_changes_no_other_and_is_the_same_in_any_batch(tmp_path_factory, place, change, seed):
    encoded = bytearray(jpeg(face(seed)))
    encoded[place % len(encoded)] ^= change
    source = write_source(tmp_path_factory.mktemp("damaged"), [jpeg(face(5)), bytes(encoded), jpeg(face(6))], 2)
    together, alone = Quarantine(source), Quarantine(source)
    result = pixels(source, np.arange(3), batch=3, quarantine=together)
    assert np.array_equal(result, pixels(source, np.arange(3), batch=1, quarantine=alone))
    assert together.bad.keys() == alone.bad.keys() <= {1}
    assert np.array_equal(result[[0, 2]], [decoded(jpeg(face(5))), decoded(jpeg(face(6)))])


def test_batches_that_are_kept_stay_as_they_are(source):
    dataset = train_dataset(
        source, Order(22, 3), first_step=0, global_batch=8, towers=[0], num_towers=1, load_size=SIZE,
        quarantine=Quarantine(source),
    )  # fmt: skip
    kept = list(dataset.take(30))
    every = pixels(source, np.arange(22))
    for element in kept:
        assert np.array_equal(element["image"], every[element["record"]])


def test_bad_pictures_are_replaced_by_the_next_and_change_nothing_else(tmp_path):
    good = [jpeg(face(seed)) for seed in range(3 * len(BROKEN))]
    good[4] = cv2.imencode(".png", face(4))[1].tobytes()
    clean = write_source(tmp_path / "clean", good)
    mixed = list(good)
    mixed[::3] = BROKEN.values()
    bad = write_source(tmp_path / "bad", mixed)
    quarantine = Quarantine(bad)
    expected, result = joined(train(clean, 16)), joined(train(bad, 16, quarantine=quarantine))
    used = expected["record"] + (expected["record"] % 3 == 0)
    assert np.bincount(expected["record"]).min() >= 2
    expected["image"] = pixels(clean, used)
    expected["label"] = clean.labels[used]
    assert_equal(result, expected)
    assert sorted(quarantine.bad) == list(range(0, len(good), 3))
    quarantine.check(0.34)
    with pytest.raises(BadData, match=f"{len(BROKEN)} of {len(good)} pictures .*000.jpg"):
        quarantine.check()
    everything = np.arange(len(good))
    assert np.array_equal(pixels(bad, everything), pixels(clean, everything + (everything % 3 == 0)))


def test_neighbours_may_be_bad_too_and_the_last_wraps_around(tmp_path):
    good = [jpeg(face(seed)) for seed in range(8)]
    bad = write_source(tmp_path, [good[0], *[BROKEN["empty"]] * 2, *good[3:7], BROKEN["half a JPEG"]])
    quarantine = Quarantine(bad)
    result = joined(train(bad, 3, quarantine=quarantine))
    replaced = {1: 3, 2: 3, 7: 0}
    used = [replaced.get(record, record) for record in result["record"].tolist()]
    assert np.array_equal(result["image"], pixels(bad, used))
    assert np.array_equal(result["label"], bad.labels[used])
    assert sorted(quarantine.bad) == [1, 2, 7]


def test_a_file_that_disappears_or_may_not_be_read(tmp_path):
    source = write_source(tmp_path, [jpeg(face(seed)) for seed in range(8)])
    quarantine = Quarantine(source)
    (tmp_path / "class000/002.jpg").unlink()
    (tmp_path / "class001/005.jpg").unlink()
    (tmp_path / "class001/005.jpg").mkdir()
    result = joined(train(source, 2, quarantine=quarantine))
    assert set(result["record"].tolist()) == set(range(8))
    assert quarantine.bad == {
        2: "cannot be read: No such file or directory",
        5: "cannot be read: Is a directory",
    }


def test_a_file_that_disappears_from_the_last_batch_which_is_not_full(tmp_path):
    source = write_source(tmp_path, [jpeg(face(seed)) for seed in range(10)])
    expected = pixels(source, np.arange(9), batch=4)
    (tmp_path / "class002/009.jpg").unlink()
    quarantine = Quarantine(source)
    found = pixels(source, np.arange(12), batch=4, quarantine=quarantine)
    assert np.array_equal(found[:9], expected)
    assert np.array_equal(found[9], expected[0])
    assert not found[10:].any()
    assert quarantine.bad == {9: "cannot be read: No such file or directory"}
    quarantine.check(0.1)


def test_a_wholly_bad_source_is_reported_and_does_not_hang(tmp_path):
    source = write_source(tmp_path, [BROKEN["HTML page"]] * 8)
    quarantine = Quarantine(source)
    assert len(train(source, 2, quarantine=quarantine)) == 2
    with pytest.raises(BadData, match="neither it nor any of the pictures after it .*neither JPEG nor PNG"):
        quarantine.check(1.0)


class Broken:
    """A source whose reading fails by something that is not the pictures' fault, here or in the worker."""

    labels = np.zeros(22, np.int64)

    def __init__(self, in_the_worker):
        self.in_the_worker = in_the_worker

    def __len__(self):
        return 22

    def reader(self, records):
        return partial(int, "a bug") if self.in_the_worker else int("a bug")


@pytest.mark.parametrize("in_the_worker", [False, True])
def test_an_error_in_reading_surfaces_in_the_quarantine(in_the_worker):
    source = Broken(in_the_worker)
    quarantine = Quarantine(source)
    assert len(train(source, 3, quarantine=quarantine)) == 3
    with pytest.raises(ValueError, match="a bug"):
        quarantine.check(1.0)


def test_bombs_do_not_take_memory(tmp_path):
    paths = []
    for index in range(64):
        path = tmp_path / f"{index}.png"
        path.write_bytes(png_bomb() if index % 2 else jpeg(face(index)))
        paths.append(path)
    source = PathSource(paths)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    quarantine = Quarantine(source)
    assert len(train(source, 8, global_batch=16, quarantine=quarantine)) == 8
    assert len(quarantine.bad) == 32
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024


DETERMINISTIC = """
import sys, numpy as np, tensorflow as tf
from towers.datasets.decoding import Quarantine
from towers.datasets.folder import read_folder
from towers.datasets.order import Order
from towers.datasets.pipeline import train_dataset
tf.config.experimental.enable_op_determinism()
source = read_folder(sys.argv[1])
dataset = train_dataset(source, Order(len(source), 3), first_step=0, global_batch=8, towers=[0], num_towers=1,
                        load_size=16, quarantine=Quarantine(source))
elements = list(dataset.take(9).as_numpy_iterator())
np.savez(sys.argv[2], **{name: np.concatenate([e[name] for e in elements]) for name in elements[0]})
"""


def test_op_determinism_gives_the_same_elements(tmp_path):
    pictures = [jpeg(face(seed)) for seed in range(22)]
    pictures[5] = BROKEN["JPEG of broken tables"]
    source = write_source(tmp_path / "pictures", pictures)
    (tmp_path / "program.py").write_text(DETERMINISTIC)
    run_python(tmp_path / "program.py", tmp_path / "pictures", tmp_path / "result.npz")
    assert_equal(dict(np.load(tmp_path / "result.npz")), joined(train(source, 9)))
