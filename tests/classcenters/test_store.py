import itertools
import os

import h5py
import numpy as np
import pytest
from classcenters.dense_reference import DenseReference, random_step

from towers.classcenters import matrix as matrix_module
from towers.classcenters import skipped_steps, snapshots
from towers.classcenters.first_rows import first_rows
from towers.classcenters.matrix import Matrix
from towers.classcenters.skipped_steps import SkippedSteps
from towers.classcenters.spec import MatrixSpec, StepMismatch, merged
from towers.classcenters.store import mapped_store, memory_store
from towers.errors import StorageError

RULES = [
    {"rule": "sgd", "weight_decay": 0.0},
    {"rule": "sgd", "weight_decay": 0.01},
    {"rule": "momentum", "momentum": 0.9, "weight_decay": 0.0},
    {"rule": "momentum", "momentum": 0.9, "weight_decay": 0.01},
    {"rule": "momentum", "momentum": 0.0, "weight_decay": 0.01},
    {"rule": "adagrad", "weight_decay": 0.0},
    {"rule": "adagrad", "weight_decay": 0.01},
]


@pytest.fixture(params=["memory", "mapped"])
def store(request, tmp_path):
    return memory_store() if request.param == "memory" else mapped_store(tmp_path / "mapped")


def rate_of(step):
    return 0.1 * 0.99**step


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: "-".join(map(str, rule.values())))
def test_equal_to_the_dense_rule_after_200_steps(store, rule):
    spec = MatrixSpec(rows=60, columns=7, seed=3, **rule)
    store.create("w", spec)
    everything = np.arange(60)
    reference = DenseReference(store.pull("w", everything), spec)
    random = np.random.default_rng(0)
    for step in range(200):
        rows, gradients = random_step(random, 60, 7)
        assert store.push("w", rows, gradients, rate_of(step), version=step) == step + 1
        reference.step(rows, gradients, rate_of(step))
        some = random.integers(0, 60, 9)
        np.testing.assert_allclose(store.pull("w", some), reference.weights[some], atol=1e-5)
    np.testing.assert_allclose(store.pull("w", everything), reference.weights, atol=1e-5)
    weights, slot = store.state("w", 10, 20)
    np.testing.assert_allclose(weights, reference.weights[10:20], atol=1e-5)
    if slot is not None:
        offset = 0.1 if rule["rule"] == "adagrad" else 0
        np.testing.assert_allclose(slot + offset, reference.slot[10:20], atol=1e-4)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: "-".join(map(str, rule.values())))
def test_an_eager_matrix_goes_on_bit_for_bit_from_its_state(rule, tmp_path):
    """A matrix that is read in the middle and one that takes over what was read, against one that is left alone."""
    spec = MatrixSpec(rows=60, columns=7, seed=3, **rule)
    stores = [memory_store(eager=True) for _ in range(3)]
    for store in stores:
        store.create("w", spec)
    alone, read, taken_over = stores
    random = np.random.default_rng(0)
    steps = [random_step(random, 60, 7) for _ in range(40)]
    for step, (rows, gradients) in enumerate(steps):
        alone.push("w", rows, gradients, rate_of(step))
        if step < 25:
            read.push("w", rows, gradients, rate_of(step))
    taken_over.assign("w", 0, *read.state("w", 0, 60))
    taken_over.set_version("w", 0)
    for step, (rows, gradients) in enumerate(steps[25:], 25):
        taken_over.push("w", rows, gradients, rate_of(step))
    for one, other in zip(alone.state("w", 0, 60), taken_over.state("w", 0, 60), strict=True):
        np.testing.assert_array_equal(one, other)
    lazy = memory_store()
    lazy.create("w", spec)
    for step, (rows, gradients) in enumerate(steps):
        lazy.push("w", rows, gradients, rate_of(step))
    np.testing.assert_allclose(alone.pull("w", np.arange(60)), lazy.pull("w", np.arange(60)), atol=1e-5)
    alone.save(tmp_path / "snapshot.h5")
    alone.load(tmp_path / "snapshot.h5")
    assert alone.matrix("w").eager


def test_a_refreshed_matrix_learns_as_one_that_is_not(monkeypatch):
    """The rows that each step brings up to date in turn, seen with a short memory of steps."""
    spec = MatrixSpec(rows=50, columns=3, rule="momentum", weight_decay=0.1)
    monkeypatch.setattr(matrix_module, "SPAN", 16)
    matrix = Matrix(spec)
    reference = DenseReference(matrix.weights, spec)
    for step in range(40):
        rows = np.array([step % 5])
        gradients = np.ones((1, 3), np.float32)
        matrix.push(rows, gradients, 0.1)
        reference.step(rows, gradients, 0.1)
        assert matrix.version - matrix.updated.min() <= 16
    np.testing.assert_allclose(matrix.pull(np.arange(50)), reference.weights, atol=1e-5)


def test_skipped_steps_are_the_product_of_their_maps(monkeypatch):
    monkeypatch.setattr(skipped_steps, "SPAN_BITS", 4)
    monkeypatch.setattr(skipped_steps, "SPAN", 16)
    random = np.random.default_rng(0)
    maps = random.normal(0, 0.7, (75, 2, 2))
    skipped = SkippedSteps()
    for count, step in enumerate(maps, 1):
        skipped.append(step)
        starts = np.arange(max(0, count - 16), count + 1)
        for start, product in zip(starts, skipped.since(starts), strict=True):
            expected = np.eye(2)
            for one in maps[start:count]:
                expected = one @ expected
            np.testing.assert_allclose(product, expected, rtol=1e-9, atol=1e-12)
    copy = SkippedSteps()
    copy.restore(75, skipped.export())
    np.testing.assert_array_equal(copy.since(np.arange(59, 76)), skipped.since(np.arange(59, 76)))


def test_first_rows_depend_on_seed_and_row_alone():
    whole = Matrix(MatrixSpec(rows=23, columns=5, seed=9, scale=0.5))
    shards = [Matrix(whole.spec.shard(index, 4)) for index in range(4)]
    for row in range(23):
        np.testing.assert_array_equal(shards[row % 4].weights[row // 4], whole.weights[row])
    np.testing.assert_array_equal(first_rows(np.array([22, 3]), 5, 9, 0.5), whole.weights[[22, 3]])
    assert not np.array_equal(first_rows(np.array([3]), 5, 8, 0.5)[0], whole.weights[3])
    many = first_rows(np.arange(20_000), 16, 1, 1.0)
    assert abs(many.mean()) < 0.01
    assert abs(many.std() - 1 / np.sqrt(3)) < 0.01
    assert -1 <= many.min() < -0.999
    assert 0.999 < many.max() <= 1
    assert abs(np.corrcoef(many[:, 0], many[:, 1])[0, 1]) < 0.03


def test_first_rows_do_not_depend_on_the_pieces(monkeypatch):
    spec = MatrixSpec(rows=41, columns=3)
    whole = Matrix(spec).weights
    monkeypatch.setattr(matrix_module, "PIECE_BYTES", 64)
    np.testing.assert_array_equal(Matrix(spec).weights, whole)


def test_equal_rows_are_summed():
    rows, gradients = merged(np.array([5, 2, 5]), np.array([[1.0], [2.0], [4.0]], np.float32))
    assert rows.tolist() == [2, 5]
    assert gradients.tolist() == [[2.0], [5.0]]


@pytest.mark.parametrize(
    ("rows", "gradients", "rate", "reason"),
    [
        ([0, 10], np.ones((2, 3)), 0.1, "row 10"),
        ([-1], np.ones((1, 3)), 0.1, "row -1"),
        ([0.5], np.ones((1, 3)), 0.1, "integers"),
        ([1], np.ones((1, 4)), 0.1, "shape"),
        ([1], np.ones((1, 3), np.int64), 0.1, "floats"),
        ([1], np.full((1, 3), np.nan), 0.1, "finite"),
        ([1, 2], np.array([[np.inf, 0, 0], [-np.inf, 0, 0]]), 0.1, "finite"),
        ([1], np.full((1, 3), 1e300), 0.1, "finite"),
        ([1], np.ones((1, 3)), np.nan, "learning rate"),
        ([1], np.ones((1, 3)), -1.0, "learning rate"),
    ],
)
def test_a_refused_push_changes_nothing(store, rows, gradients, rate, reason):
    store.create("w", MatrixSpec(rows=10, columns=3))
    before = store.pull("w", np.arange(10))
    with pytest.raises(ValueError, match=reason):
        store.push("w", np.array(rows), gradients, rate)
    assert store.version("w") == 0
    np.testing.assert_array_equal(store.pull("w", np.arange(10)), before)


def test_large_finite_values_are_not_taken_for_infinite(store):
    store.create("w", MatrixSpec(rows=10, columns=3, rule="sgd"))
    store.push("w", np.array([1]), np.full((1, 3), 3e38, np.float32), 0.0)
    assert store.version("w") == 1


def test_a_push_for_another_step_is_refused(store):
    store.create("w", MatrixSpec(rows=10, columns=3))
    with pytest.raises(StepMismatch):
        store.push("w", np.array([1]), np.ones((1, 3), np.float32), 0.1, version=1)
    with pytest.raises(StepMismatch):
        store.pull("w", np.array([1]), version=1)
    assert store.version("w") == 0


def test_names_and_specs_are_checked(store):
    store.create("w", MatrixSpec(rows=10, columns=3))
    store.create("w", MatrixSpec(rows=10, columns=3))
    with pytest.raises(ValueError, match="there already"):
        store.create("w", MatrixSpec(rows=11, columns=3))
    with pytest.raises(ValueError, match="name"):
        store.create("../w", MatrixSpec(rows=10, columns=3))
    with pytest.raises(KeyError, match="no matrix"):
        store.pull("v", np.array([0]))
    for wrong in (
        {"rows": 0},
        {"columns": 1 << 17},
        {"rule": "adam"},
        {"momentum": 1.0},
        {"scale": np.nan},
        {"seed": -1},
    ):
        with pytest.raises(ValueError):
            MatrixSpec(**{"rows": 10, "columns": 3, **wrong})


@pytest.mark.parametrize("rule", ["sgd", "momentum", "adagrad"])
def test_a_snapshot_continues_bit_for_bit(store, rule, tmp_path):
    spec = MatrixSpec(rows=40, columns=5, rule=rule, weight_decay=0.01)
    store.create("w", spec)
    random = np.random.default_rng(1)
    steps = [random_step(random, 40, 5) for _ in range(30)]
    for step, (rows, gradients) in enumerate(steps[:15]):
        store.push("w", rows, gradients, rate_of(step))
    store.save(tmp_path / "snapshot.h5")
    restored = memory_store()
    restored.load(tmp_path / "snapshot.h5")
    for (step, (rows, gradients)), one in itertools.product(enumerate(steps[15:], 15), (store, restored)):
        one.push("w", rows, gradients, rate_of(step), version=step)
    np.testing.assert_array_equal(restored.pull("w", np.arange(40)), store.pull("w", np.arange(40)))
    assert os.listdir(tmp_path / "mapped") == [] if (tmp_path / "mapped").exists() else True


def test_state_goes_from_one_store_to_another(store):
    spec = MatrixSpec(rows=30, columns=4, rule="momentum", weight_decay=0.01)
    store.create("w", spec)
    random = np.random.default_rng(1)
    for _ in range(10):
        store.push("w", *random_step(random, 30, 4), 0.1)
    other = memory_store()
    other.create("w", MatrixSpec(rows=30, columns=4, rule="momentum", weight_decay=0.01, seed=5))
    for start in range(0, 30, 7):
        other.assign("w", start, *store.state("w", start, min(start + 7, 30)))
    other.set_version("w", 10)
    for step in range(10, 20):
        rows, gradients = random_step(random, 30, 4)
        for one in (store, other):
            one.push("w", rows, gradients, 0.1, version=step)
    np.testing.assert_allclose(other.pull("w", np.arange(30)), store.pull("w", np.arange(30)), atol=1e-6)


def test_a_failed_snapshot_leaves_the_old_one(tmp_path, monkeypatch):
    store = memory_store()
    store.create("w", MatrixSpec(rows=40, columns=5))
    path = tmp_path / "snapshot.h5"
    store.save(path)
    before = path.read_bytes()

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(snapshots, "_write", full)
    with pytest.raises(StorageError, match="No space"):
        store.save(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["snapshot.h5"]


def damage_link(file):
    del file["w/weights"]
    file["w/weights"] = h5py.ExternalLink("elsewhere.h5", "/x")


def damage_shape(file):
    del file["w/updated"]
    file["w"].create_dataset("updated", data=np.zeros(3, np.int64))


def damage_spec(file):
    file["w"].attrs["spec"] = "{}"


@pytest.mark.parametrize("damage", [damage_link, damage_shape, damage_spec, lambda file: file.attrs.pop("format")])
def test_a_damaged_snapshot_is_refused_and_changes_nothing(tmp_path, damage):
    store = memory_store()
    store.create("w", MatrixSpec(rows=40, columns=5))
    path = tmp_path / "snapshot.h5"
    store.save(path)
    with h5py.File(path, "r+") as file:
        damage(file)
    before = store.matrices
    with pytest.raises(StorageError, match="not a snapshot"):
        store.load(path)
    assert store.matrices is before


def test_a_cut_snapshot_is_refused(tmp_path):
    store = memory_store()
    store.create("w", MatrixSpec(rows=4000, columns=5))
    path = tmp_path / "snapshot.h5"
    store.save(path)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(StorageError):
        store.load(path)


def test_a_matrix_larger_than_the_disk_is_refused(tmp_path):
    with pytest.raises(StorageError, match="needs"):
        mapped_store(tmp_path).create("w", MatrixSpec(rows=1 << 38, columns=1 << 8))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: "-".join(map(str, rule.values())))
def test_a_large_update_is_that_of_its_rows_one_by_one(rule, monkeypatch):
    """By several threads in pieces, rows of many ages, against pieces of a row in one thread."""
    spec = MatrixSpec(rows=300, columns=7, **rule)
    random = np.random.default_rng(0)
    steps = [np.sort(random.choice(300, random.integers(1, 200), replace=False)) for _ in range(30)]
    found = []
    for workers, piece_bytes in ((1, 1), (4, 256)):
        monkeypatch.setattr(matrix_module, "_WORKERS", workers)
        monkeypatch.setattr(matrix_module, "PIECE_BYTES", piece_bytes)
        matrix = Matrix(spec)
        for step, rows in enumerate(steps):
            matrix.push(rows, np.sin(np.arange(len(rows) * 7, dtype=np.float32)).reshape(-1, 7), rate_of(step))
        found.append((*matrix.state(0, 300), matrix.pull(np.arange(300))))
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: "-".join(map(str, rule.values())))
def test_a_reading_is_of_one_step(rule):
    """Whatever changes the matrix between two pieces."""
    matrix = Matrix(MatrixSpec(rows=30, columns=7, **rule))
    for step in range(5):
        matrix.push(np.arange(step, 20), np.ones((20 - step, 7), np.float32), 0.1)
    rows = np.random.default_rng(0).integers(0, 30, 25)
    changes = [
        lambda: matrix.push(np.arange(30), np.ones((30, 7), np.float32), 0.1),
        lambda: matrix.assign(0, np.zeros((30, 7), np.float32)),
        lambda: matrix.set_version(9),
    ]
    for change in changes:
        expected, reading = matrix.pull(rows), matrix.reading(rows)
        pieces = [reading.take(np.empty((4, 7), np.float32))]
        change()
        pieces += [reading.take(np.empty((6, 7), np.float32))]
        change()
        pieces += [reading.take(np.empty((15, 7), np.float32))]
        np.testing.assert_array_equal(np.concatenate(pieces), expected)
    assert reading.version == 5 + 2
    del reading
    assert not matrix._readings
    with pytest.raises(ValueError, match="row 30"):
        matrix.reading(np.array([30]))
