"""Rows of a mapped file that wait in memory until it is their turn to be written.

Whatever is written into a page of a file that was saved, Linux must take note of the change, and save the page again:
2 us and 4 KB for a row of any size. Rows that a step has changed therefore wait. An arm passes over the file, as over a
disk, and writes those that wait where it comes, in a thread: several changes of a row, and of rows in one page, cost a
page once, and pages are written in their order.
"""

import ctypes
import mmap
import os
import sys
from concurrent import futures

import numba
import numpy as np

from . import row_kernels
from .compiled import compiled, read_only

_libc = ctypes.CDLL(None)
# Since Linux 5.14; Python 3.11 has no name for it.
_MADV_POPULATE_WRITE = 23
# Pages of a span for each that changes.
_DENSE = 1.5
# As many rows as are looked for at a time.
_SPAN = 1 << 16
# Not those that serve steps, which would wait.
_writers = futures.ThreadPoolExecutor(min(4, os.cpu_count() or 1), thread_name_prefix="waiting rows")


class WaitingRows:
    """Memory for some rows of ``values`` [C, k, D]: where a row has a place in it, its values there are the latest.

    Args:
      values: the mapped file.
      capacity: rows that there is memory for; the system gives it when it is first used.

    Attributes:
      values: float32 [capacity, k, D]. Places of rows may be written after `take` or `settle`, until `make_room`.
    """

    def __init__(self, values: np.ndarray, capacity: int):
        self._file = values
        self.values = np.empty((capacity, *values.shape[1:]), np.float32)
        self._place = np.full(len(values), -1, np.int32)
        # Free places are the first ``_num_free`` of these.
        self._free, self._num_free = np.arange(capacity, dtype=np.int32)[::-1].copy(), capacity
        self._arm = 0
        self._writing: futures.Future[np.ndarray] | None = None

    @property
    def capacity(self) -> int:
        return len(self.values)

    def places(self, rows: np.ndarray) -> np.ndarray:
        """int64 [n], the place of each of int64 ``rows`` [n], or -1."""
        return self._place[rows].astype(np.int64)

    def within(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Which of the rows from ``start`` up to ``stop`` wait, counted from ``start``, and their places."""
        places = self._place[start:stop]
        there = np.flatnonzero(places >= 0)
        return there, places[there].astype(np.int64)

    def copy_to(self, values: np.ndarray, start: int) -> None:
        """Put those of the rows from ``start`` on that wait into ``values`` [n, k, D], which are of the file."""
        there, places = self.within(start, start + len(values))
        row_kernels.put(values, there, self.values, places)

    def take(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """A place for each of the distinct ``rows`` [n <= capacity], int64 [n], and what to copy there from the file.

        That is the row itself, which the caller must copy, or -1 where it waited already.
        """
        self.settle()
        while self._num_free < len(rows):
            self._write(len(rows) - self._num_free)
            self.settle()
        places, sources = np.empty(len(rows), np.int64), np.empty(len(rows), np.int64)
        _take(rows, self._place, self._free[: self._num_free], places, sources)
        self._num_free -= np.count_nonzero(sources >= 0)
        return places, sources

    def make_room(self, count: int) -> None:
        """Have so many rows written, by a thread, that ``count`` new ones find a place then, if there are as many."""
        self.settle()
        if self._num_free < count:
            self._write(count - self._num_free)

    def settle(self) -> None:
        """Wait for what is being written. Raises what that failed with; the rows then wait on."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            written = writing.result()
            _give_back(written, self._place, self._free[self._num_free :])
            self._num_free += len(written)

    def flush(self) -> None:
        """Write all rows that wait."""
        self.settle()
        if self._num_free < self.capacity:
            self._write(self.capacity)
            self.settle()

    def _write(self, count):
        """Have the next ``count`` rows written that the arm comes to."""
        self._writing = _writers.submit(self._write_next, count)

    def _write_next(self, count):
        """Write them, and return which they were. Nobody takes a place meanwhile."""
        rows = np.sort(self._next_rows(count))
        _tell_of_changes(self._file, rows)
        row_kernels.put(self._file, rows, self.values, self.places(rows))
        return rows

    def _next_rows(self, count):
        """At most ``count`` waiting rows, from where the arm is, which it passes."""
        found, passed = [np.zeros(0, np.int64)], 0
        while count > 0 and passed < len(self._place):
            stop = min(self._arm + _SPAN, len(self._place), self._arm + len(self._place) - passed)
            rows = self._arm + np.flatnonzero(self._place[self._arm : stop] >= 0)
            if len(rows) > count:
                rows = rows[:count]
                stop = rows[-1] + 1
            found.append(rows)
            count -= len(rows)
            passed += stop - self._arm
            self._arm = stop % len(self._place)
        return np.concatenate(found)


def _tell_of_changes(file, rows):
    """Have Linux note at once that all pages of ``rows`` change, where nearly all between the first and last do.

    That takes half as long as its finding out of each. Where it does not know how, it will find out.
    """
    if sys.platform == "linux" and len(rows):
        row_bytes = file[0].nbytes
        start, stop = int(rows[0]) * row_bytes, (int(rows[-1]) + 1) * row_bytes
        pages = np.count_nonzero(np.diff(rows * row_bytes // mmap.PAGESIZE))
        if stop - start <= _DENSE * max(pages * mmap.PAGESIZE, len(rows) * row_bytes):
            start += file.ctypes.data
            stop += file.ctypes.data
            start -= start % mmap.PAGESIZE
            # Of ctypes, since mmap's own method keeps Python's lock.
            _libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(stop - start), _MADV_POPULATE_WRITE)


_ROWS, _PLACES = read_only(numba.int64, 1), numba.int32[::1]


@compiled(_ROWS, _PLACES, _PLACES, numba.int64[::1], numba.int64[::1])
def _take(rows, place, free, places, sources):
    """Places of rows, of which those that have none take the last of the free ones."""
    left = len(free)
    for i in range(len(rows)):
        row = rows[i]
        sources[i] = -1
        if place[row] < 0:
            left -= 1
            place[row] = free[left]
            sources[i] = row
        places[i] = place[row]


@compiled(_ROWS, _PLACES, _PLACES)
def _give_back(rows, place, free):
    """Rows that have a place no longer, and free places."""
    for i in range(len(rows)):
        free[i], place[rows[i]] = place[rows[i]], -1
