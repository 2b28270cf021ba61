"""Rows of a mapped file that wait in memory to be written: who sees them, when they are written, and in which order."""

import ctypes
import mmap
import subprocess
import sys
import threading
import types
from concurrent import futures

import h5py
import numpy as np
import pytest
from classcenters.test_store import RULES, rate_of

from towers.classcenters import matrix as matrix_module
from towers.classcenters import waiting_rows as waiting_rows_module
from towers.classcenters.matrix import Matrix
from towers.classcenters.spec import MatrixSpec
from towers.classcenters.store import mapped_store, memory_store


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
