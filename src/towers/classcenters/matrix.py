"""One matrix of class centres in this process: rows are read, updated by gradients, saved and restored."""

import os
import threading
import weakref
from collections.abc import Callable
from concurrent import futures
from typing import NamedTuple

import numpy as np

from .first_rows import first_rows
from .skipped_steps import SPAN, SkippedSteps, step_map
from .spec import MatrixSpec, StepMismatch, checked_learning_rate, checked_rows, checked_values

# Rows are worked on in pieces whose arrays stay in a core's cache.
PIECE_BYTES = 1 << 19
ADAGRAD_FIRST = np.float32(0.1)
# More than a few wait for each other: NumPy holds Python's lock between two calls.
_WORKERS = min(4, os.cpu_count() or 1)
_pool = futures.ThreadPoolExecutor(_WORKERS, thread_name_prefix="rows")
# Threads of their own: no update shall wait for what is written behind another matrix's.
_writers = futures.ThreadPoolExecutor(_WORKERS, thread_name_prefix="rows behind")


class Missed(NamedTuple):
    """Maps [m, 2, 2] of some spans of steps, and which of them each of n rows has missed."""

    maps: np.ndarray
    which: np.ndarray

    def of_rows(self, maps: np.ndarray | None = None) -> np.ndarray:
        """float32 [n, ...]: for each row its map, or what ``maps`` [m, ...] has in its place."""
        return (self.maps if maps is None else maps).astype(np.float32)[self.which]


def piece_rows(columns: int) -> int:
    """Most rows of a piece."""
    return max(1, PIECE_BYTES // (4 * columns))


def pieces(count: int, columns: int):
    """Slices that cover range(count), each of at most 512 KiB of float32 rows."""
    size = piece_rows(columns)
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def _take(array, rows, out):
    # In range already, and numpy copies unchecked rows without a buffer.
    np.take(array, rows, axis=0, out=out, mode="clip")


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
            for piece in pieces(len(rows), self.spec.columns):
                read(piece, values[piece])
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
            weights = self.weights[start:stop].copy()
            slot = None if self.slot is None else self.slot[start:stop].copy()
            missed = self._missed(self.updated[rows])
            if missed is not None:
                self._catch_up(missed.of_rows(), weights, slot)
        return weights, slot

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

    @property
    def _maps_slot(self) -> bool:
        return self.spec.rule == "momentum" and self.spec.has_slot

    def _missed(self, updated):
        """What rows updated at steps ``updated`` [n] have missed; None if nothing."""
        if not self.spec.skipping_changes or not len(updated):
            return None
        oldest = updated.min()
        if oldest == self.version:
            return None
        # Few steps are distinct, and all are within the last SPAN: a table is faster than sorting.
        place = np.zeros(self.version - oldest + 1, np.intp)
        place[updated - oldest] = 1
        distinct = np.flatnonzero(place)
        place[distinct] = np.arange(len(distinct))
        return Missed(self.skipped.since(distinct + oldest), place[updated - oldest])

    def _catch_up(self, maps, weights, slot):
        """Apply maps [n, 2, 2] to weights [n, D], and to the slot where they change it, in place."""
        if not self._maps_slot:
            weights *= maps[:, 1, 1, None]
            return
        next_slot = maps[:, 0, 0, None] * slot
        if self.spec.weight_decay:
            next_slot += maps[:, 0, 1, None] * weights
        weights *= maps[:, 1, 1, None]
        weights += maps[:, 1, 0, None] * slot
        slot[...] = next_slot

    def _reader(self, rows):
        """Function of (slice, out [n, D]) that reads the present weights of that many of ``rows``."""
        missed = self._missed(self.updated[rows])
        take = self._taker(rows)
        if not self.spec.has_slot:
            factors = None if missed is None else missed.of_rows(missed.maps[:, 1, 1, None])

            def read(piece, out):
                take(piece, out[:, None])
                if factors is not None:
                    out *= factors[piece]

            return read
        # Without a map of its own the slot counts nothing.
        maps = np.array([[[0.0, 1.0]]]) if missed is None else missed.maps[:, 1:]
        factors = (missed or Missed(maps, np.zeros(len(rows), np.intp))).of_rows(maps)
        before = self._buffer(rows)

        def mapped(piece, out):
            # A block of a message is larger than a piece.
            for start in range(piece.start, piece.stop, len(before)):
                some = slice(start, min(start + len(before), piece.stop))
                given = before[: some.stop - start]
                take(some, given)
                new = out[start - piece.start : some.stop - piece.start, None]
                np.matmul(factors[some], given, out=new)

        return mapped

    def _taker(self, rows):
        """Function of (slice, out [n, k, D]) that copies the values of that many of ``rows``, written or not."""
        unwritten = self._unwritten
        if unwritten is None or unwritten.writing.done():
            values = self.values
            return lambda piece, out: _take(values, rows[piece], out)
        values, places = self._values, unwritten.places(rows)

        def take(piece, out):
            _take(values, rows[piece], out)
            # What was read of these may be half of the old and half of the new.
            changed = np.flatnonzero(places[piece] >= 0)
            out[changed] = unwritten.values[places[piece][changed]]

        return take

    def _update(self, rows, gradients, learning_rate):
        """One step of ``rows``, by several threads."""
        make = self._adagrad_updater if self.spec.rule == "adagrad" else self._linear_updater
        values = self.values
        written = np.empty((len(rows), *values.shape[1:]), np.float32) if self.write_behind else None

        def put(piece, new):
            if written is None:
                values[rows[piece]] = new
            else:
                written[piece] = new

        updater = make(rows, gradients, learning_rate, put)
        parts = list(pieces(len(rows), self.spec.columns))
        workers = _WORKERS if len(parts) >= 2 * _WORKERS else 1

        def work(number):
            update = updater()
            for piece in parts[number::workers]:
                update(piece)

        if workers == 1:
            work(0)
        else:
            list(_pool.map(work, range(workers)))
        if written is not None and len(rows):
            self._unwritten = Unwritten(rows, written, _writers.submit(values.__setitem__, rows, written))

    def _linear_updater(self, rows, gradients, learning_rate, put):
        """Function that makes, for each thread, a function of a slice that updates that many of ``rows`` by ``put``.

        What the steps missed and the present one make of slot, weight and gradient is one matrix for each row.
        """
        missed = self._missed(self.updated[rows])
        steps = step_map(self.spec, learning_rate)
        steps = steps[None] if missed is None else steps @ missed.maps
        factors = np.concatenate([steps, np.broadcast_to([[1.0], [-learning_rate]], (len(steps), 2, 1))], axis=2)
        values = self.values
        kept = values.shape[1]
        factors = factors[:, 2 - kept :, 2 - kept :]
        factors = (missed or Missed(steps, np.zeros(len(rows), np.intp))).of_rows(factors)

        def make():
            taken, after = self._buffer(rows), self._buffer(rows)
            before = np.empty((len(taken), kept + 1, self.spec.columns), np.float32)

            def update(piece):
                count = piece.stop - piece.start
                given, new = before[:count], after[:count]
                _take(values, rows[piece], taken[:count])
                given[:, :kept] = taken[:count]
                given[:, kept] = gradients[piece]
                np.matmul(factors[piece], given, out=new)
                put(piece, new)

            return update

        return make

    def _adagrad_updater(self, rows, gradients, learning_rate, put):
        """As ``_linear_updater``, which tells what it returns."""
        missed = self._missed(self.updated[rows])
        factors = None if missed is None else missed.of_rows(missed.maps[:, 1, 1, None])
        rate = np.float32(learning_rate)
        decay = np.float32(1 - learning_rate * self.spec.weight_decay)

        values = self.values

        def update(piece):
            given = gradients[piece]
            new = np.empty((len(given), *values.shape[1:]), np.float32)
            _take(values, rows[piece], new)
            slot, weights = new[:, 0], new[:, 1]
            if factors is not None:
                weights *= factors[piece]
            weights *= decay
            slot += given * given
            weights -= rate * given / np.sqrt(ADAGRAD_FIRST + slot)
            put(piece, new)

        return lambda: update

    def _buffer(self, rows):
        """Room for slots and weights of a piece of ``rows``."""
        return np.empty((min(len(rows), piece_rows(self.spec.columns)), *self._values.shape[1:]), np.float32)

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
        weights, slot = self.state(start, stop)
        self.weights[start:stop] = weights
        if slot is not None:
            self.slot[start:stop] = slot
        self.updated[start:stop] = self.version
