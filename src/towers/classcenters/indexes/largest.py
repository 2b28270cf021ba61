"""The points with the largest inner products, of many queries at once."""

import numba
import numpy as np

from ..compiled import compiled, read_only

_BLOCK, _GROUP = 2048, 32
_inner = numba.njit(error_model="numpy")


def largest(queries: np.ndarray, points: np.ndarray, count: int) -> np.ndarray:
    """Numbers [B, count] of the points with the largest inner products with each query, in any order."""
    best = np.empty((len(queries), count), np.float32)
    numbers = np.empty((len(queries), count), np.int64)
    # As many points at a time as have their products in a core's cache.
    for start in range(0, len(points), _BLOCK):
        _keep_largest(points[start : start + _BLOCK] @ queries.T, start, best, numbers)
    return numbers


@_inner
def _rise(heap, numbers, number, score):
    """Add number ``number``, the first of which fill the heap."""
    at = number
    while at > 0 and heap[(at - 1) // 2] > score:
        heap[at], numbers[at] = heap[(at - 1) // 2], numbers[(at - 1) // 2]
        at = (at - 1) // 2
    heap[at], numbers[at] = score, number


@_inner
def _sink(heap, numbers, number, score):
    """Replace the smallest."""
    at, count = 0, len(heap)
    while 2 * at + 1 < count:
        child = 2 * at + 1
        if child + 1 < count and heap[child + 1] < heap[child]:
            child += 1
        if heap[child] >= score:
            break
        heap[at], numbers[at] = heap[child], numbers[child]
        at = child
    heap[at], numbers[at] = score, number


@compiled(read_only(numba.float32, 2), numba.int64, numba.float32[:, ::1], numba.int64[:, ::1])
def _keep_largest(scores, first, best, numbers):
    """Add products [n, B] of points from ``first`` on to each query's largest, heaps with the smallest on top."""
    num_points, num_queries = scores.shape
    count = best.shape[1]
    maxima = np.empty(num_queries, np.float32)
    for start in range(0, num_points, _GROUP):
        stop = min(start + _GROUP, num_points)
        # Most groups have nothing for a query, which a maximum tells: of many queries at once, as they lie in memory.
        maxima[:] = scores[start]
        for point in range(start + 1, stop):
            for i in range(num_queries):
                maxima[i] = max(maxima[i], scores[point, i])
        for i in range(num_queries):
            if first + start >= count and maxima[i] <= best[i, 0]:
                continue
            for point in range(start, stop):
                if first + point < count:
                    _rise(best[i], numbers[i], first + point, scores[point, i])
                elif scores[point, i] > best[i, 0]:
                    _sink(best[i], numbers[i], first + point, scores[point, i])
