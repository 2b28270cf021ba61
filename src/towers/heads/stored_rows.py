"""What the selected head keeps on the host, as variables of a checkpoint."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from ..classcenters.following import Following
from ..errors import UserError

_PIECE = 16_384


class StoredRows:
    """The weights (0) or the slot (1) of a matrix as one array [C, D].

    Of several processes, all of which must call alike, the chief alone reads and writes the store.

    Args:
      settle: called before rows are read or written; waits until no push is on its way.
      written: called after rows were written.
    """

    def __init__(
        self,
        store,
        name: str,
        which: int,
        *,
        settle: Callable[[], None],
        written: Callable[[], None],
        is_chief: bool,
    ):
        self.store, self.name, self.which = store, name, which
        self.settle, self.written, self.is_chief = settle, written, is_chief
        spec = store.spec(name)
        self.shape, self.dtype = (spec.rows, spec.columns), np.dtype(np.float32)
        self.nbytes = spec.rows * spec.columns * 4

    def chunks(self) -> Iterator[tuple[int, np.ndarray]]:
        """(first row, rows) of each piece in turn; none where this is not the chief."""
        self.settle()
        if not self.is_chief:
            return
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
        if self.is_chief:
            for first in range(0, self.shape[0], _PIECE):
                last = min(first + _PIECE, self.shape[0])
                both = list(self.store.state(self.name, first, last))
                both[self.which] = np.asarray(array[first:last], np.float32)
                self.store.assign(self.name, first, *both)
            self.store.set_version(self.name, self.store.version(self.name))
        self.written()


class IndexedRows:
    """The snapshot of class centres [C, D] that an index was built from; the chief alone has one."""

    def __init__(self, following: Following, num_classes: int, columns: int, *, is_chief: bool):
        self.following, self.is_chief = following, is_chief
        self.shape, self.dtype = (num_classes, columns), np.dtype(np.float32)
        self.nbytes = num_classes * columns * 4

    def chunks(self) -> Iterator[tuple[int, np.ndarray]]:
        """(first row, rows) of each piece in turn; none where this is not the chief."""
        for first in range(0, self.shape[0] if self.is_chief else 0, _PIECE):
            yield first, self.following.points[first : first + _PIECE]

    def assign(self, array) -> None:
        """Take over anything that gives rows [C, D] by ``array[first:last]``."""
        if not self.is_chief:
            return
        self.following.points = np.empty(self.shape, np.float32)
        for first in range(0, self.shape[0], _PIECE):
            self.following.points[first : first + _PIECE] = array[first : first + _PIECE]


class HostNumbers:
    """A few integers [n] of the host.

    Args:
      read: gives them; ``write``: takes them over.
    """

    def __init__(self, count: int, read: Callable[[], Sequence[int]], write: Callable[[list[int]], None]):
        self.shape, self._read, self._write = (count,), read, write

    def numpy(self) -> np.ndarray:
        return np.array(self._read(), np.int64)

    def assign(self, numbers) -> None:
        self._write([int(number) for number in numbers])
