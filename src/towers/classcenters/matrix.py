"""One matrix of class centres in this process: rows are read, updated by gradients, saved and restored."""

import os
import threading
import weakref
from collections.abc import Callable
from concurrent import futures
from typing import NamedTuple

import numpy as np

from . import row_kernels
from .first_rows import first_rows
from .skipped_steps import SPAN, SkippedSteps, step_map
from .spec import MatrixSpec, StepMismatch, checked_learning_rate, checked_rows, checked_values

# So much stays in a core's cache between two things that are done to it, and is worth a thread of its own.
PIECE_BYTES = 1 << 19
# Few threads take all that memory gives.
_WORKERS = min(4, os.cpu_count() or 1)
_pool = futures.ThreadPoolExecutor(_WORKERS, thread_name_prefix="rows")
# Threads of their own: no update shall wait for what is written behind another matrix's.
_writers = futures.ThreadPoolExecutor(_WORKERS, thread_name_prefix="rows behind")
_UNCHANGED = np.eye(2)[None]


class Missed(NamedTuple):
    """Maps float64 [m, 2, 2] of some spans of steps, and which of them each of n rows has missed."""

    maps: np.ndarray
    which: np.ndarray


def pieces(count: int, columns: int):
    """Slices that cover range(count), each of at most 512 KiB of float32 rows."""
    size = max(1, PIECE_BYTES // (4 * columns))
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def _in_threads(count, columns, work):
    """``work(slice)`` of slices that cover range(count), at once where there is enough for several threads."""
    workers = max(1, min(_WORKERS, count * columns * 4 // PIECE_BYTES))
    borders = [count * k // workers for k in range(workers + 1)]
    parts = [slice(start, stop) for start, stop in zip(borders, borders[1:], strict=False)]
    if workers == 1:
        work(parts[0])
    else:
        list(_pool.map(work, parts))


class Unwritten(NamedTuple):
    """Values [S, k, D] of increasing ``rows`` [S] that a thread is writing to a mapped file."""

    rows: np.ndarray
    values: np.ndarray
    writing: futures.Future

    def places(self, rows: np.ndarray) -> np.ndarray:
        """Where each of ``rows`` is among those being written, or -1."""
        places = np.minimum(np.searchsorted(self.rows, rows), len(self.rows) - 1)
        return np.where(self.rows[places] == rows, places, -1)


class Reading:
    """Rows [S, D] as they are at one step, read in pieces while others are sent; made by `Matrix.reading`.

    The matrix is free between two pieces. Before it changes, it has the rest read.

    Attributes:
      version: the step.
    """

    def __init__(self, matrix: "Matrix", rows: np.ndarray, read: Callable):
        self.version = matrix.version
        self._matrix, self._read, self._count = matrix, read, len(rows)
        self._next, self._rest = 0, None

    def take(self, out: np.ndarray) -> np.ndarray:
        """The next rows, as many as ``out`` [n, D] has, in it."""
        with self._matrix.lock:
            piece = slice(self._next, self._next + len(out))
            if self._rest is None:
                self._read(piece, out)
            else:
                out[...] = self._rest[: len(out)]
                self._rest = self._rest[len(out) :]
            self._next = piece.stop
        return out

    def finish(self) -> None:
        """Read what has not been taken, since it is about to change."""
        if self._rest is None:
            self._rest = np.empty((self._count - self._next, self._matrix.spec.columns), np.float32)
            self._read(slice(self._next, self._count), self._rest)


class Matrix:
    """Weights [C, D] that learn by rows; rows that get no gradient follow lazily and exactly.

    A push is one step of every row. A row without a gradient is brought up to date when it is next read or updated.
    Reading changes nothing, so what a matrix holds depends on its pushes alone. A few rows are brought up to date in
    each step, in turn, so that none is older than the steps that are remembered.

    Args:
      allocate: function of (shape, dtype) to a zero array: in memory, or a mapped file.
      eager: bring every row up to date in every step, at the cost of all rows. What ``state`` gives then tells all that
        there is, and a matrix that it is assigned to goes on with the same bits. Otherwise the steps that a row has
        skipped are rounded once, wherever they end.
      write_behind: a step is over when its values are known, and a thread writes them to their places, which in a
        mapped file takes longer: every page must be found to be changed. Readers and the next step see them at once.
    """

    def __init__(
        self, spec: MatrixSpec, allocate: Callable = np.zeros, *, eager: bool = False, write_behind: bool = False
    ):
        self.spec, self.eager, self.write_behind = spec, eager, write_behind
        self.lock = threading.RLock()
        self.skipped = SkippedSteps()
        # The slot of a row lies beside its weights: a mapped file has both in one page, and pages are what steps cost.
        self._values = allocate((spec.rows, 2 if spec.has_slot else 1, spec.columns), np.float32)
        self._unwritten: Unwritten | None = None
        # In memory always: every step changes nearly every page of it.
        self.updated = np.zeros(spec.rows, np.int64)
        self._readings: weakref.WeakSet[Reading] = weakref.WeakSet()
        for piece in pieces(spec.rows, spec.columns):
            local = np.arange(piece.start, piece.stop, dtype=np.int64)
            self.weights[piece] = first_rows(spec.first + local * spec.stride, spec.columns, spec.seed, spec.scale)

    def settle(self) -> None:
        """Wait until all values are in their places. Raises what writing them failed with."""
        with self.lock:
            if self._unwritten is not None:
                self._unwritten.writing.result()
                self._unwritten = None

    @property
    def values(self) -> np.ndarray:
        """float32 [C, k, D], the slot, where there is one, and the weights of each row, once all is written."""
        self.settle()
        return self._values

    @property
    def weights(self) -> np.ndarray:
        """float32 [C, D], each row as it was when it was last brought up to date."""
        return self.values[:, -1]

    @property
    def slot(self) -> np.ndarray | None:
        """float32 [C, D] likewise, or None; that of adagrad is held without its first 0.1."""
        return self.values[:, 0] if self.spec.has_slot else None

    @property
    def version(self) -> int:
        """Number of steps made."""
        return self.skipped.version

    def pull(self, rows: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """float32 [S, D], the present values of int64 rows [S], in their order, repeated ones allowed.

        Raises:
          ValueError: a row is not in [0, C).
        """
        rows = checked_rows(rows, self.spec.rows)
        values = np.empty((len(rows), self.spec.columns), np.float32) if out is None else out
        with self.lock:
            read = self._reader(rows)
            _in_threads(len(rows), self.spec.columns, lambda part: read(part, values[part]))
        return values

    def reading(self, rows: np.ndarray) -> "Reading":
        """The present values of int64 rows [S], to be read in pieces. ValueError as in ``pull``."""
        rows = checked_rows(rows, self.spec.rows)
        with self.lock:
            reading = Reading(self, rows, self._reader(rows))
            self._readings.add(reading)
        return reading

    def push(self, rows: np.ndarray, gradients: np.ndarray, learning_rate: float, version: int | None = None) -> int:
        """Make one step with the gradients [S, D] of strictly increasing ``rows`` [S]; the others get a zero gradient.

        Args:
          version: the step that the gradients are for; None: the present one.

        Returns:
          The new version.

        Raises:
          ValueError: rows out of range or not increasing, a wrong shape, a value that is not finite.
          StepMismatch: the matrix is at another step. In either case nothing has changed.
        """
        rows = checked_rows(rows, self.spec.rows, increasing=True)
        gradients = checked_values(gradients, (len(rows), self.spec.columns))
        return self.step(rows, gradients, checked_learning_rate(learning_rate), version)

    def step(self, rows: np.ndarray, gradients: np.ndarray, learning_rate: float, version: int | None = None) -> int:
        """``push`` of what has passed its checks."""
        with self.lock:
            if version is not None and version != self.version:
                raise StepMismatch(
                    f"the gradients are for step {version}, the matrix is at {self.version}", self.version
                )
            self._finish_readings()
            # Before the update, which may go on being written afterwards.
            self._refresh_some()
            self._update(rows, gradients, learning_rate)
            self.skipped.append(step_map(self.spec, learning_rate))
            self.updated[rows] = self.version
            if self.eager:
                self._refresh_all()
            return self.version

    def state(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Present weights and slot, float32 [stop - start, D] each, of a range of rows; the slot None without one."""
        rows = checked_rows(np.arange(start, stop), self.spec.rows)
        with self.lock:
            values = self.values[start:stop].copy()
            self._follow(values, self.updated[rows])
        return values[:, -1], values[:, 0] if self.spec.has_slot else None

    def assign(self, start: int, weights: np.ndarray, slot: np.ndarray | None = None) -> None:
        """Overwrite rows from ``start`` on; without a slot theirs begins anew. ValueError comes before any change."""
        shape = (len(weights), self.spec.columns)
        weights = checked_values(weights, shape)
        checked_rows(np.array([start, start + len(weights) - 1]), self.spec.rows)
        if slot is not None:
            if self.slot is None:
                raise ValueError(f"rule {self.spec.rule} keeps no slot, but one is given")
            slot = checked_values(slot, shape)
        with self.lock:
            self._finish_readings()
            self.weights[start : start + len(weights)] = weights
            if self.slot is not None:
                self.slot[start : start + len(weights)] = 0 if slot is None else slot
            self.updated[start : start + len(weights)] = self.version

    def set_version(self, version: int) -> None:
        """Count steps from ``version`` on; every row keeps its present value."""
        with self.lock:
            self._finish_readings()
            self._refresh_all()
            self.skipped = SkippedSteps()
            self.skipped.version = version
            self.updated[:] = version

    def _finish_readings(self):
        for reading in list(self._readings):
            reading.finish()

    def _missed(self, updated):
        """What rows updated at steps ``updated`` [n] have missed."""
        oldest = updated.min(initial=self.version)
        if oldest == self.version or not self.spec.skipping_changes:
            return Missed(_UNCHANGED, np.zeros(len(updated), np.intp))
        # Few steps are distinct, and all are within the last SPAN: a table is faster than sorting.
        place = np.zeros(self.version - oldest + 1, np.intp)
        place[updated - oldest] = 1
        distinct = np.flatnonzero(place)
        place[distinct] = np.arange(len(distinct))
        return Missed(self.skipped.since(distinct + oldest), place[updated - oldest])

    def _follow(self, values, updated):
        """Bring values [n, k, D] of rows updated at steps ``updated`` [n] up to date, in place."""
        missed = self._missed(updated)
        if missed.maps is not _UNCHANGED:
            kept = values.shape[1]
            maps = np.ascontiguousarray(missed.maps[:, 2 - kept :, 2 - kept :], np.float32)
            row_kernels.follow(values, maps, missed.which)

    def _reader(self, rows):
        """Function of (slice, out [n, D]) that reads the present weights of that many of ``rows``."""
        missed = self._missed(self.updated[rows])
        unwritten = self._unwritten
        if unwritten is None or unwritten.writing.done():
            values = newer = self.values
            places = np.full(len(rows), -1)
        else:
            # What was read of these in their own places may be half of the old and half of the new.
            values, newer, places = self._values, unwritten.values, unwritten.places(rows)
        maps = np.ascontiguousarray(missed.maps[:, 1, 2 - values.shape[1] :], np.float32)

        def read(piece, out):
            row_kernels.read(values, rows[piece], newer, places[piece], maps, missed.which[piece], out)

        return read

    def _update(self, rows, gradients, learning_rate):
        """One step of ``rows``, by several threads."""
        step = (self._adagrad_step if self.spec.rule == "adagrad" else self._linear_step)(rows, learning_rate)
        values = self.values
        if not self.write_behind:
            _in_threads(len(rows), self.spec.columns, lambda part: step(values, rows[part], gradients, part))
            return
        written = np.empty((len(rows), *values.shape[1:]), np.float32)
        places = np.arange(len(rows))

        def work(part):
            for piece in pieces(part.stop - part.start, self.spec.columns):
                some = slice(part.start + piece.start, part.start + piece.stop)
                # In range already, and numpy copies unchecked rows without a buffer.
                np.take(values, rows[some], axis=0, out=written[some], mode="clip")
                step(written, places[some], gradients, some)

        _in_threads(len(rows), self.spec.columns, work)
        if len(rows):
            self._unwritten = Unwritten(rows, written, _writers.submit(row_kernels.put, values, rows, written))

    def _linear_step(self, rows, learning_rate):
        """Function of (values [n, k, D], places [m], gradients [S, D], slice) that updates those places by that slice.

        What the steps missed and the present one make of slot, weight and gradient is one matrix for each row.
        """
        missed = self._missed(self.updated[rows])
        steps = step_map(self.spec, learning_rate) @ missed.maps
        maps = np.concatenate([steps, np.broadcast_to([[1.0], [-learning_rate]], (len(steps), 2, 1))], axis=2)
        kept = self._values.shape[1]
        maps = np.ascontiguousarray(maps[:, 2 - kept :, 2 - kept :], np.float32)

        def step(values, places, gradients, part):
            row_kernels.step_linear(values, places, maps, missed.which[part], gradients[part])

        return step

    def _adagrad_step(self, rows, learning_rate):
        """As ``_linear_step``, which tells what it returns."""
        missed = self._missed(self.updated[rows])
        maps = missed.maps.astype(np.float32)
        rate, decay = np.float32(learning_rate), np.float32(1 - learning_rate * self.spec.weight_decay)

        def step(values, places, gradients, part):
            row_kernels.step_adagrad(values, places, maps, missed.which[part], gradients[part], rate, decay)

        return step

    def _refresh_some(self):
        """Bring the next few rows up to date; half the remembered steps bring all."""
        if self.eager or not self.spec.skipping_changes:
            return
        count = -(-self.spec.rows // (SPAN // 2))
        turn = self.version % (SPAN // 2)
        start, stop = turn * count, min((turn + 1) * count, self.spec.rows)
        if start < stop:
            self._refresh(start, stop)

    def _refresh_all(self):
        for piece in pieces(self.spec.rows, self.spec.columns):
            self._refresh(piece.start, piece.stop)

    def _refresh(self, start, stop):
        self._follow(self.values[start:stop], self.updated[start:stop])
        self.updated[start:stop] = self.version
