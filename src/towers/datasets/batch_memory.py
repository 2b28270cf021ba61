"""Memory for batches that this process and those that read pictures for it both see."""

import functools
import math
import mmap
import os
import threading

import numpy as np


class BatchMemory:
    """Batches in memory that was used before: having the system clear fresh pages costs a fifth of decoding a batch.

    It has no file in /dev/shm, which containers keep small. A process that inherits `descriptor` finds a batch in it by
    its offset, a multiple of the page size: `look`.
    """

    def __init__(self):
        self.descriptor = os.memfd_create("towers-batches")
        self._size = 0
        self._free: dict[int, list[tuple[int, np.ndarray]]] = {}
        self._growing = threading.Lock()

    def empty(self, shape: tuple[int, ...]) -> tuple[int, np.ndarray]:
        """Offset, and uint8 of this shape, contents undefined: it comes back when no array or tensor looks at it."""
        size = math.prod(shape)
        free = self._free.setdefault(size, [])
        try:
            offset, block = free.pop()
        except IndexError:
            offset, block = self._grow(size)
        return offset, np.asarray(_Loan(offset, block, free)).reshape(shape)

    def _grow(self, size: int) -> tuple[int, np.ndarray]:
        with self._growing:
            offset = self._size
            self._size += -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
            os.ftruncate(self.descriptor, self._size)
        return offset, look(self.descriptor, offset, size)


class _Loan:
    """Keeps a block out of the free ones: NumPy holds this object as long as any array looks at the block."""

    def __init__(self, offset: int, block: np.ndarray, free: list[tuple[int, np.ndarray]]):
        self.__array_interface__ = block.__array_interface__
        self._offset, self._block = offset, block
        self._free = free

    def __del__(self):
        self._free.append((self._offset, self._block))


@functools.cache
def batch_memory() -> BatchMemory:
    """This process's one, so that all data sets use the same blocks in turn."""
    return BatchMemory()


@functools.cache
def look(descriptor: int, offset: int, size: int) -> np.ndarray:
    """The block uint8 [size] at an offset of a memory; mapped once and kept."""
    return np.frombuffer(mmap.mmap(descriptor, size, offset=offset), np.uint8)
