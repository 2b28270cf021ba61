"""One matrix of class centres in this process: rows are read, updated by gradients, saved and restored."""

import threading
from collections.abc import Callable

import numpy as np

from .first_rows import first_rows
from .skipped_steps import SPAN, SkippedSteps, step_map
from .spec import MatrixSpec, StepMismatch, checked_learning_rate, checked_rows, checked_values

# Rows are worked on in pieces whose arrays stay in a core's cache.
PIECE_BYTES = 1 << 18
ADAGRAD_FIRST = np.float32(0.1)


def pieces(count: int, columns: int):
    """Slices that cover range(count), each of at most 256 KiB of float32 rows."""
    size = max(1, PIECE_BYTES // (4 * columns))
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def _rows_of(array, rows):
    return np.take(array, rows, axis=0, mode="clip")


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
    """

    def __init__(self, spec: MatrixSpec, allocate: Callable = np.zeros, *, eager: bool = False):
        self.spec, self.eager = spec, eager
        self.lock = threading.RLock()
        self.skipped = SkippedSteps()
        self.weights = allocate((spec.rows, spec.columns), np.float32)
        # The slot of adagrad is held without its first 0.1, so that a mapped file of zeros needs no writing.
        self.slot = allocate((spec.rows, spec.columns), np.float32) if spec.has_slot else None
        self.updated = allocate((spec.rows,), np.int64)
        for piece in pieces(spec.rows, spec.columns):
            local = np.arange(piece.start, piece.stop, dtype=np.int64)
            self.weights[piece] = first_rows(spec.first + local * spec.stride, spec.columns, spec.seed, spec.scale)

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
            maps = self._missed(self.updated[rows])
            for piece in pieces(len(rows), self.spec.columns):
                # In range already, and numpy copies unchecked rows without a buffer.
                np.take(self.weights, rows[piece], axis=0, out=values[piece], mode="clip")
                if maps is not None:
                    slot = _rows_of(self.slot, rows[piece]) if self._maps_slot else None
                    self._catch_up(maps[piece], values[piece], slot, with_slot=False)
        return values

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
        learning_rate = checked_learning_rate(learning_rate)
        with self.lock:
            if version is not None and version != self.version:
                raise StepMismatch(
                    f"the gradients are for step {version}, the matrix is at {self.version}", self.version
                )
            maps = self._missed(self.updated[rows])
            for piece in pieces(len(rows), self.spec.columns):
                self._update(rows[piece], gradients[piece], learning_rate, None if maps is None else maps[piece])
            self.skipped.append(step_map(self.spec, learning_rate))
            self.updated[rows] = self.version
            self._refresh_some()
            return self.version

    def state(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Present weights and slot, float32 [stop - start, D] each, of a range of rows; the slot None without one."""
        rows = checked_rows(np.arange(start, stop), self.spec.rows)
        with self.lock:
            weights = self.weights[start:stop].copy()
            slot = None if self.slot is None else self.slot[start:stop].copy()
            maps = self._missed(self.updated[rows])
            if maps is not None:
                self._catch_up(maps, weights, slot)
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
            self.weights[start : start + len(weights)] = weights
            if self.slot is not None:
                self.slot[start : start + len(weights)] = 0 if slot is None else slot
            self.updated[start : start + len(weights)] = self.version

    def set_version(self, version: int) -> None:
        """Count steps from ``version`` on; every row keeps its present value."""
        with self.lock:
            for piece in pieces(self.spec.rows, self.spec.columns):
                self._refresh(piece.start, piece.stop)
            self.skipped = SkippedSteps()
            self.skipped.version = version
            self.updated[:] = version

    @property
    def _maps_slot(self) -> bool:
        return self.spec.rule == "momentum" and self.slot is not None

    def _missed(self, updated):
        """float32 [n, 2, 2], the maps of the steps since ``updated`` [n]; None if nothing has been missed."""
        if not self.spec.skipping_changes:
            return None
        distinct, which = np.unique(updated, return_inverse=True)
        if not len(distinct) or distinct[0] == self.version:
            return None
        return self.skipped.since(distinct).astype(np.float32)[which]

    def _catch_up(self, maps, weights, slot, with_slot=True):
        """Apply maps [n, 2, 2] to weights [n, D], and to the slot where they change it, in place."""
        if not self._maps_slot:
            weights *= maps[:, 1, 1, None]
            return
        next_slot = maps[:, 0, 0, None] * slot if with_slot else None
        if with_slot and self.spec.weight_decay:
            next_slot += maps[:, 0, 1, None] * weights
        weights *= maps[:, 1, 1, None]
        weights += maps[:, 1, 0, None] * slot
        if with_slot:
            slot[...] = next_slot

    def _update(self, rows, gradients, learning_rate, maps):
        spec, rate, decay = self.spec, np.float32(learning_rate), np.float32(self.spec.weight_decay)
        weights = _rows_of(self.weights, rows)
        slot = None if self.slot is None else _rows_of(self.slot, rows)
        if maps is not None:
            self._catch_up(maps, weights, slot)
        if spec.rule == "adagrad":
            weights *= np.float32(1 - learning_rate * spec.weight_decay)
            slot += gradients * gradients
            weights -= rate * gradients / np.sqrt(ADAGRAD_FIRST + slot)
        elif slot is None:
            weights *= np.float32(1 - learning_rate * spec.weight_decay)
            weights -= rate * gradients
        else:
            slot *= np.float32(spec.momentum)
            slot += gradients
            if decay:
                slot += decay * weights
            weights -= rate * slot
        self.weights[rows] = weights
        if slot is not None:
            self.slot[rows] = slot

    def _refresh_some(self):
        """Bring the next few rows up to date; half the remembered steps bring all."""
        if not self.spec.skipping_changes:
            return
        if self.eager:
            for piece in pieces(self.spec.rows, self.spec.columns):
                self._refresh(piece.start, piece.stop)
            return
        count = -(-self.spec.rows // (SPAN // 2))
        turn = (self.version - 1) % (SPAN // 2)
        start, stop = turn * count, min((turn + 1) * count, self.spec.rows)
        if start < stop:
            self._refresh(start, stop)

    def _refresh(self, start, stop):
        weights, slot = self.state(start, stop)
        self.weights[start:stop] = weights
        if slot is not None:
            self.slot[start:stop] = slot
        self.updated[start:stop] = self.version
