"""Every centre compared with every query, by one matrix product in pieces."""

import numpy as np

from .ranking import best_of_lists

_PIECE = 8192


def build(points: np.ndarray, *, seed: int = 0, previous=None) -> "Exact":
    """Takes the points as they are, without a copy; ``seed`` and ``previous`` do not matter."""
    return Exact(np.ascontiguousarray(points, np.float32))


class Exact:
    """Points [C, D]."""

    def __init__(self, points: np.ndarray):
        self.points = points

    @property
    def num_bytes(self) -> int:
        return self.points.nbytes

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k best rows of each query and their scores, both [B, k]."""
        queries = np.ascontiguousarray(queries, np.float32)
        k_here = min(k, len(self.points))
        scores = queries @ self.points[: max(_PIECE, k_here)].T
        rows = np.argpartition(scores, scores.shape[1] - k_here, axis=1)[:, scores.shape[1] - k_here :]
        candidates = [
            (np.repeat(np.arange(len(queries)), k_here), rows.ravel(), np.take_along_axis(scores, rows, 1).ravel())
        ]
        # Few of the later scores pass the k-th best of what came before, so sorting those costs next to nothing.
        thresholds = np.take_along_axis(scores, rows, 1).min(axis=1)
        for start in range(scores.shape[1], len(self.points), _PIECE):
            later = queries @ self.points[start : start + _PIECE].T
            query, column = np.divmod(np.flatnonzero(later > thresholds[:, None]), later.shape[1])
            candidates.append((query, start + column, later[query, column]))
            if sum(len(part[0]) for part in candidates) > 2 * k_here * len(queries) + _PIECE:
                rows, best = _best(candidates, len(queries), k_here)
                candidates = [(np.repeat(np.arange(len(queries)), k_here), rows.ravel(), best.ravel())]
                thresholds = best[:, -1]
        return _best(candidates, len(queries), k)

    def best(self, queries: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The ``count`` rows with the largest score over all queries, best first, and these scores."""
        queries = np.ascontiguousarray(queries, np.float32)
        largest = np.empty(len(self.points), np.float32)
        for start in range(0, len(self.points), _PIECE):
            piece = slice(start, start + _PIECE)
            np.max(queries @ self.points[piece].T, axis=0, out=largest[piece])
        count = min(count, len(largest))
        rows = np.argpartition(largest, len(largest) - count)[len(largest) - count :]
        rows = rows[np.lexsort((rows, -largest[rows]))]
        return rows, largest[rows]


def _best(candidates, num_queries, k):
    query, rows, scores = map(np.concatenate, zip(*candidates, strict=True))
    order = np.argsort(query, kind="stable")
    bounds = np.searchsorted(query[order], np.arange(num_queries + 1))
    return best_of_lists(rows[order], scores[order], bounds, k)
