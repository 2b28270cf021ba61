"""A matrix of a store of class centres as one array; stands for a variable in a checkpoint."""

from collections.abc import Callable, Iterator

import numpy as np

from ..errors import UserError

_PIECE = 16_384


class StoredRows:
    """The weights (0) or the slot (1) of a matrix as one array [C, D].

    Args:
      settle: called before rows are read or written; waits until no push is on its way.
    """

    def __init__(self, store, name: str, which: int, *, settle: Callable[[], None]):
        self.store, self.name, self.which, self.settle = store, name, which, settle
        spec = store.spec(name)
        self.shape, self.dtype = (spec.rows, spec.columns), np.dtype(np.float32)
        self.nbytes = spec.rows * spec.columns * 4

    def chunks(self) -> Iterator[tuple[int, np.ndarray]]:
        """(first row, rows) of each piece in turn."""
        self.settle()
        for first in range(0, self.shape[0], _PIECE):
            yield first, self.store.state(self.name, first, min(first + _PIECE, self.shape[0]))[self.which]

    def assign(self, array) -> None:
        """Take over anything that gives rows [C, D] by ``array[first:last]``; UserError for another shape."""
        if tuple(array.shape) != self.shape:
            raise UserError(
                f"head: the stored class weights have shape {tuple(array.shape)}, this run's {self.shape}; "
                "train with the same classes and embedding size, or start from the network alone"
            )
        self.settle()
        for first in range(0, self.shape[0], _PIECE):
            last = min(first + _PIECE, self.shape[0])
            both = list(self.store.state(self.name, first, last))
            both[self.which] = np.asarray(array[first:last], np.float32)
            self.store.assign(self.name, first, *both)
        self.store.set_version(self.name, self.store.version(self.name))
