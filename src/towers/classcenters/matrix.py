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
from .waiting_rows import WaitingRows

# So much stays in a core's cache between two things that are done to it, and is worth a thread of its own.
PIECE_BYTES = 1 << 19
# Few threads take all that memory gives.
_WORKERS = min(4, os.cpu_count() or 1)
_pool = futures.ThreadPoolExecutor(_WORKERS, thread_name_prefix="rows")
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
      waiting_bytes: memory for rows that are not written to their places at once, which in a mapped file takes long:
        every page must be found to be changed. Readers and later steps see them meanwhile. Not with ``eager``, whose
        steps change all rows.
    """

    def __init__(self, spec: MatrixSpec, allocate: Callable = np.zeros, *, eager: bool = False, waiting_bytes: int = 0):
        self.spec, self.eager = spec, eager
        self.lock = threading.RLock()
        self.skipped = SkippedSteps()
        # The slot of a row lies beside its weights: a mapped file has both in one page, and pages are what steps cost.
        self._values = allocate((spec.rows, 2 if spec.has_slot else 1, spec.columns), np.float32)
        capacity = 0 if eager else min(spec.rows, waiting_bytes // self._values[0].nbytes)
        self._waiting = WaitingRows(self._values, capacity) if capacity else None
        # In memory always: every step changes nearly every page of it.
        self.updated = np.zeros(spec.rows, np.int64)
        self._readings: weakref.WeakSet[Reading] = weakref.WeakSet()
        for piece in pieces(spec.rows, spec.columns):
            local = np.arange(piece.start, piece.stop, dtype=np.int64)
            self.weights[piece] = first_rows(spec.first + local * spec.stride, spec.columns, spec.seed, spec.scale)

    def settle(self) -> None:
        """Wait for the thread that writes rows to their places. Raises what that failed with."""
        with self.lock:
            if self._waiting is not None:
                self._waiting.settle()

    @property
    def values(self) -> np.ndarray:
        """float32 [C, k, D], the slot, where there is one, and the weights of each row, once all is in its place."""
        with self.lock:
            if self._waiting is not None:
                self._waiting.flush()
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
            if self._waiting is not None:
                # The next step may have as many new ones.
                self._waiting.make_room(len(rows))
            return self.version

    def state(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Present weights and slot, float32 [stop - start, D] each, of a range of rows; the slot None without one."""
        checked_rows(np.arange(start, stop), self.spec.rows)
        with self.lock:
            values = self.kept(start, stop)
            self._follow(values, self.updated[start:stop])
        return values[:, -1], values[:, 0] if self.spec.has_slot else None

    def kept(self, start: int, stop: int) -> np.ndarray:
        """float32 [stop - start, k, D], a copy of values as they were when each row was last brought up to date."""
        with self.lock:
            values = self._values[start:stop].copy()
            if self._waiting is not None:
                self._waiting.copy_to(values, start)
        return values

    def assign(self, start: int, weights: np.ndarray, slot: np.ndarray | None = None) -> None:
        """Overwrite rows from ``start`` on; without a slot theirs begins anew. ValueError comes before any change."""
        shape = (len(weights), self.spec.columns)
        weights = checked_values(weights, shape)
        checked_rows(np.array([start, start + len(weights) - 1]), self.spec.rows)
        if slot is not None:
            if not self.spec.has_slot:
                raise ValueError(f"rule {self.spec.rule} keeps no slot, but one is given")
            slot = checked_values(slot, shape)
        with self.lock:
            self._finish_readings()
            values = self.values[start : start + len(weights)]
            values[:, -1] = weights
            if self.spec.has_slot:
                values[:, 0] = 0 if slot is None else slot
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
        values = newer = self._values
        places = np.full(len(rows), -1)
        if self._waiting is not None:
            newer, places = self._waiting.values, self._waiting.places(rows)
        maps = np.ascontiguousarray(missed.maps[:, 1, 2 - values.shape[1] :], np.float32)

        def read(piece, out):
            row_kernels.read(values, rows[piece], newer, places[piece], maps, missed.which[piece], out)

        return read

    def _update(self, rows, gradients, learning_rate):
        """One step of ``rows``, by several threads."""
        step, maps, which, numbers = self._rule(self._missed(self.updated[rows]), learning_rate)
        waiting = self._waiting
        if waiting is None or len(rows) > waiting.capacity:
            values = self.values
            _in_threads(
                len(rows),
                self.spec.columns,
                lambda part: step(values, rows[part], maps, which[part], gradients[part], *numbers),
            )
            return
        places, sources = waiting.take(rows)

        def work(part):
            # What is fetched from the file is still in a core's cache when the step is made.
            for piece in pieces(part.stop - part.start, self.spec.columns):
                some = slice(part.start + piece.start, part.start + piece.stop)
                row_kernels.put(waiting.values, places[some], self._values, sources[some])
                step(waiting.values, places[some], maps, which[some], gradients[some], *numbers)

        _in_threads(len(rows), self.spec.columns, work)

    def _rule(self, missed, learning_rate):
        """The step of rows that missed that: a function of `row_kernels`, maps, which one each row has, and numbers."""
        if self.spec.rule == "adagrad":
            rate, decay = np.float32(learning_rate), np.float32(1 - learning_rate * self.spec.weight_decay)
            return row_kernels.step_adagrad, missed.maps.astype(np.float32), missed.which, (rate, decay)
        # What the steps missed and the present one make of slot, weight and gradient is one matrix for each row.
        steps = step_map(self.spec, learning_rate) @ missed.maps
        maps = np.concatenate([steps, np.broadcast_to([[1.0], [-learning_rate]], (len(steps), 2, 1))], axis=2)
        kept = self._values.shape[1]
        maps = np.ascontiguousarray(maps[:, 2 - kept :, 2 - kept :], np.float32)
        return row_kernels.step_linear, maps, missed.which, ()

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
        updated = self.updated[start:stop]
        if self._waiting is not None:
            self._waiting.settle()
            there, places = self._waiting.within(start, stop)
            values = self._waiting.values[places]
            self._follow(values, updated[there])
            self._waiting.values[places] = values
        # Of those that wait what lies here is old, and will be overwritten.
        self._follow(self._values[start:stop], updated)
        updated[:] = self.version
