"""The order of repeated augmentation: every record m times in a row, as a pure function of (seed, position).

order = RepeatedOrder(len(source), copies=3, seed=1)
dataset = train_dataset(source, order, global_batch=516, ...)
"""

import os

import numpy as np

from ..errors import BadData, UserError
from .audit import Audit
from .order import Order


class RepeatedOrder:
    """An endless stream of groups: positions [jm, (j+1)m) hold the record at position j of `Order`, m copies of it.

    Augmentation is keyed by position, so the copies differ. MultiGrain (Berman et al., 2019), section 3.3. Where m
    divides the batch of a tower, all copies of a group are on one tower in one step; see `check_copies`.

    A pass is m N positions; an epoch of ceil(N / B) steps therefore sees N / m of the records. Across the border of
    two passes a record can have 2 m copies in a batch, and they may be on two towers.
    """

    def __init__(self, num_records: int, *, copies: int, seed: int):
        """copies: m, at least 1. Raises UserError where it is less."""
        if copies < 1:
            raise UserError(f"--copies {copies}: a picture is in a batch once or more; MultiGrain takes 3")
        self.copies = copies
        self._order = Order(num_records, seed)

    def records(self, positions: np.ndarray) -> np.ndarray:
        """The record at each position. positions: int64 [n], any order, >= 0. Returns int64 [n]. Thread-safe."""
        return self._order.records(np.asarray(positions, np.int64) // self.copies)


def check_copies(copies: int, batch_size: int, num_towers: int) -> None:
    """Raise UserError, naming the nearest batches that work, unless the copies divide each tower's batch.

    batch_size: that of all towers together, a multiple of them.
    """
    own = batch_size // num_towers
    if copies < 1 or own % copies == 0:
        return
    step = copies * num_towers
    below, above = batch_size // step * step, -(-batch_size // step) * step
    nearest = " or ".join(str(size) for size in (below, above) if size)
    raise UserError(
        f"--copies {copies}: {batch_size} images over {num_towers} tower(s) are {own} each, no multiple of {copies}, "
        f"and the copies of a picture must be on one tower; give a batch of {nearest} in all, or other --copies"
    )


class RepeatedAudit(Audit):
    """`Audit` for the stream of a `RepeatedOrder`: the same file, with a line's positions and records of the groups.

    Checked besides the laws of `Audit`, which hold for groups: a tower gets whole groups, m positions that follow each
    other with one record.
    """

    def __init__(self, path: str | os.PathLike, num_records: int, *, copies: int, first_step: int = 0):
        self._copies = copies
        super().__init__(path, num_records, first_step=first_step)

    def add(self, step: int, tower: int, records: np.ndarray, positions: np.ndarray) -> None:
        """One tower's batch: records and positions int64 [b]."""
        records, positions = np.asarray(records, np.int64), np.asarray(positions, np.int64)
        where = f"{self.path}: step {step}: tower {tower} was fed"
        if len(positions) % self._copies:
            raise BadData(f"{where} {len(positions)} pictures, no multiple of {self._copies} copies")
        groups = np.sort(positions).reshape(-1, self._copies)
        copied = records[np.argsort(positions)].reshape(-1, self._copies)
        first = groups[:, :1]
        cut = np.any(groups != first + np.arange(self._copies), axis=1) | (first[:, 0] % self._copies != 0)
        if cut.any():
            raise BadData(f"{where} only a part of the copies at positions {groups[cut][0].tolist()}")
        mixed = np.any(copied != copied[:, :1], axis=1)
        if mixed.any():
            raise BadData(
                f"{where} records {copied[mixed][0].tolist()} at positions {groups[mixed][0].tolist()}, "
                "where copies of one record belong"
            )
        super().add(step, tower, copied[:, 0], groups[:, 0] // self._copies)
