import ctypes
import itertools
import mmap
import os
import subprocess
import sys
import threading
import types
from concurrent import futures

import h5py
import numpy as np
import pytest
from classcenters.dense_reference import DenseReference, random_step

from towers.classcenters import matrix as matrix_module
from towers.classcenters import skipped_steps, snapshots
from towers.classcenters import waiting_rows as waiting_rows_module
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


def test_no_more_mapped_rows_are_held_in_memory_than_may_wait(tmp_path):
    """Private memory stays far below the 128 MB that the matrix has, though all rows change."""
    code = f"""
import numpy as np
from towers.classcenters.spec import MatrixSpec
from towers.classcenters.store import mapped_store
store = mapped_store({str(tmp_path)!r}, waiting_bytes=8 << 20)
private = lambda: int(next(l for l in open("/proc/self/status") if l.startswith("RssAnon")).split()[1])
before = private()
store.create("w", MatrixSpec(rows=250_000, columns=64, rule="momentum"))
for start in range(0, 250_000, 5_000):
    store.push("w", np.arange(start, start + 5_000), np.ones((5_000, 64), np.float32), 0.1)
assert "tensorflow" not in __import__("sys").modules
print((private() - before) // 1024)
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert 8 <= int(found.stdout) < 40


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


class Held(futures.Future):
    """Work that is done when somebody waits for it, and not before."""

    def __init__(self, function, *arguments):
        super().__init__()
        self.work = function, arguments

    def result(self, timeout=None):
        if not self.done():
            function, arguments = self.work
            self.set_result(function(*arguments))
        return super().result(timeout)


ROW_BYTES = 7 * 4 * 2


@pytest.mark.parametrize("waiting_rows", [15, 60, 200])
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: "-".join(map(str, rule.values())))
def test_rows_that_wait_to_be_written_are_seen(rule, waiting_rows, monkeypatch):
    """Every read comes before the thread has written anything; in pieces, repeated, in any order."""
    spec = MatrixSpec(rows=120, columns=7, **rule)
    memory, mapped = Matrix(spec), Matrix(spec, waiting_bytes=waiting_rows * ROW_BYTES)
    monkeypatch.setattr(waiting_rows_module._writers, "submit", Held)
    monkeypatch.setattr(matrix_module, "PIECE_BYTES", 256)
    monkeypatch.setattr(matrix_module, "SPAN", 32)
    random = np.random.default_rng(0)
    for step in range(60):
        # At times more than there is memory for.
        rows = np.sort(random.choice(120, random.integers(0, 40), replace=False))
        gradients = random.standard_normal((len(rows), 7)).astype(np.float32)
        for matrix in (memory, mapped):
            assert matrix.push(rows, gradients, rate_of(step)) == step + 1
        asked = random.integers(0, 120, 90)
        np.testing.assert_array_equal(mapped.pull(asked), memory.pull(asked))
        reading = mapped.reading(asked)
        pieces = [reading.take(np.empty((size, 7), np.float32)) for size in (11, 40, 39)]
        np.testing.assert_array_equal(np.concatenate(pieces), memory.pull(asked))
        for one, other in zip(mapped.state(3, 90), memory.state(3, 90), strict=True):
            np.testing.assert_array_equal(one, other)
        if step % 8 == 1:
            for matrix in (memory, mapped):
                matrix.assign(50, np.ones((4, 7), np.float32))
        elif step % 8 == 5:
            np.testing.assert_array_equal(mapped.values, memory.values)
            np.testing.assert_array_equal(mapped.pull(asked), memory.pull(asked))
    for matrix in (memory, mapped):
        matrix.set_version(7)
    np.testing.assert_array_equal(mapped.values, memory.values)


class Counted:
    """What is written, at once."""

    def __init__(self):
        self.rows = []

    def submit(self, write, count):
        done = futures.Future()
        done.set_result(write(count))
        self.rows.append(done.result().tolist())
        return done


def test_rows_are_written_in_their_order_when_memory_is_short(monkeypatch):
    """Nothing is written while there is room; then as much as is new, onwards from where the arm was."""
    writer = Counted()
    monkeypatch.setattr(waiting_rows_module, "_writers", writer)
    monkeypatch.setattr(waiting_rows_module, "_SPAN", 7)
    matrix = Matrix(MatrixSpec(rows=100, columns=7), waiting_bytes=40 * ROW_BYTES)
    random = np.random.default_rng(0)
    changed = set()
    for _ in range(50):
        rows = np.sort(random.choice(100, 10, replace=False))
        before = len(writer.rows)
        matrix.push(rows, np.ones((10, 7), np.float32), 0.1)
        changed |= set(rows.tolist())
        # As soon as there is no room for another ten, and not when these come.
        assert bool(writer.rows) == (len(changed) > 30)
        assert sum(map(len, writer.rows[before:])) <= 10
    one_after_the_other = np.concatenate(writer.rows)
    turns = (np.diff(one_after_the_other) < 0).sum()
    # 500 changes of 100 rows, which would have gone over the file 50 times. Where a turn ends two numbers may fall.
    assert 2 <= turns <= 10
    assert len(one_after_the_other) < 350


def test_a_snapshot_has_rows_that_wait_to_be_written(tmp_path, monkeypatch):
    spec = MatrixSpec(rows=40, columns=3, weight_decay=0.01)
    memory, mapped = memory_store(), mapped_store(tmp_path / "mapped")
    monkeypatch.setattr(waiting_rows_module._writers, "submit", Held)
    for store in (memory, mapped):
        store.create("w", spec)
        store.push("w", np.arange(5, 25), np.ones((20, 3), np.float32), 0.1)
        store.save(tmp_path / f"{store is memory}.h5")
    for store in (mapped, mapped_store(tmp_path / "again")):
        store.load(tmp_path / "False.h5")
        np.testing.assert_array_equal(store.pull("w", np.arange(40)), memory.pull("w", np.arange(40)))
    with h5py.File(tmp_path / "True.h5") as one, h5py.File(tmp_path / "False.h5") as other:
        np.testing.assert_array_equal(one["w/weights"], other["w/weights"])
        np.testing.assert_array_equal(one["w/slot"], other["w/slot"])


def test_rows_that_could_not_be_written_are_told_and_kept(monkeypatch):
    matrix = Matrix(MatrixSpec(rows=10, columns=3, weight_decay=0.0), waiting_bytes=2 * 24)

    def failed(*arguments):
        future = futures.Future()
        future.set_exception(OSError("no such page"))
        return future

    monkeypatch.setattr(waiting_rows_module._writers, "submit", failed)
    matrix.push(np.array([4, 7]), np.ones((2, 3), np.float32), 0.1)
    present = matrix.pull(np.array([4, 7]))
    for _ in range(2):
        with pytest.raises(OSError, match="no such page"):
            matrix.push(np.array([4]), np.ones((1, 3), np.float32), 0.1)
        np.testing.assert_array_equal(matrix.pull(np.array([4, 7])), present)
        assert matrix.version == 1


def test_a_mapped_store_has_memory_for_waiting_rows(tmp_path):
    store = mapped_store(tmp_path, waiting_bytes=24 * 4)
    store.create("w", MatrixSpec(rows=10, columns=3))
    assert store.matrix("w")._waiting.capacity == 4
    store.push("w", np.zeros(0, np.int64), np.zeros((0, 3), np.float32), 0.1)
    assert store.version("w") == 1
    exact = mapped_store(tmp_path, eager=True)
    exact.create("w", MatrixSpec(rows=10, columns=3))
    assert exact.matrix("w")._waiting is None


def test_readers_see_rows_of_one_step_while_a_thread_writes(tmp_path):
    """A mapped file of many pages, of which few rows may wait, against a store in memory."""
    memory, mapped = memory_store(), mapped_store(tmp_path, waiting_bytes=3000 * 24)
    for store in (memory, mapped):
        store.create("w", MatrixSpec(rows=20_000, columns=3))
    random, expected, stop = np.random.default_rng(0), [memory.pull("w", np.arange(20_000))], threading.Event()

    def read(seed):
        some, seen = np.random.default_rng(seed).integers(0, 20_000, 500), 0
        while not stop.is_set() or not seen:
            before = mapped.version("w")
            found = mapped.pull("w", some)
            assert any(np.array_equal(found, rows[some]) for rows in expected[before : mapped.version("w") + 2])
            seen += 1
        return seen

    with futures.ThreadPoolExecutor(2) as readers:
        reading = [readers.submit(read, seed) for seed in range(2)]
        try:
            for step in range(150):
                rows = np.sort(random.choice(20_000, 900, replace=False))
                gradients = random.standard_normal((900, 3)).astype(np.float32)
                memory.push("w", rows, gradients, rate_of(step))
                expected.append(memory.pull("w", np.arange(20_000)))
                mapped.push("w", rows, gradients, rate_of(step))
        finally:
            stop.set()
        assert all(one.result() > 1 for one in reading)
    np.testing.assert_array_equal(mapped.matrix("w").values, memory.matrix("w").values)


@pytest.mark.parametrize("columns", [32, 128, 1024])
@pytest.mark.parametrize("share", [1.0, 0.3, 0.01])
def test_linux_is_told_of_pages_that_lie_together(tmp_path, monkeypatch, columns, share):
    """Of all that change, and of none outside of the file; not where most of those between do not change."""
    store, told = mapped_store(tmp_path), []
    store.create("w", MatrixSpec(rows=8000, columns=columns))
    values = store.matrix("w").values

    def madvise(start, size, advice):
        told.append((start.value, size.value, libc.madvise(start, size, advice)))

    libc = ctypes.CDLL(None)
    monkeypatch.setattr(waiting_rows_module, "_libc", types.SimpleNamespace(madvise=madvise))
    rows = 100 + np.flatnonzero(np.random.default_rng(0).random(1800) < share)
    store.push("w", rows, np.ones((len(rows), columns), np.float32), 0.1)
    assert not told
    assert store.matrix("w").values is values
    pages_of_rows = {
        page
        for row in rows.tolist()
        for page in range(
            row * values[0].nbytes // mmap.PAGESIZE, ((row + 1) * values[0].nbytes - 1) // mmap.PAGESIZE + 1
        )
    }
    if len(pages_of_rows) < 0.5 * (max(pages_of_rows) - min(pages_of_rows)):
        assert not told
        return
    ((start, size, result),) = told
    assert result == 0
    first, stop = start - values.ctypes.data, start - values.ctypes.data + size
    assert first == min(pages_of_rows) * mmap.PAGESIZE
    assert (max(pages_of_rows)) * mmap.PAGESIZE < stop <= values.nbytes


def test_nothing_is_told_of_no_rows(monkeypatch):
    monkeypatch.setattr(waiting_rows_module, "_libc", None)
    waiting_rows_module._tell_of_changes(np.zeros((4, 1, 8), np.float32), np.zeros(0, np.int64))
