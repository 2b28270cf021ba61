"""The best of candidates: of lists, many queries at once, or over all queries."""

import numpy as np

_HALF, _LOWER = np.uint64(32), np.uint64((1 << 32) - 1)
_POSITIVE = np.uint32((1 << 31) - 1)


def best_of_lists(rows: np.ndarray, scores: np.ndarray, bounds: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k best of each query's candidates, best first, both [B, k]; row -1 and score -inf where there are fewer.

    Args:
      rows, scores: [n] of all queries, one after the other; query i has those in [bounds[i], bounds[i + 1]).
    """
    num_queries = len(bounds) - 1
    best_rows = np.full((num_queries, k), -1, np.int64)
    best_scores = np.full((num_queries, k), -np.inf, np.float32)
    for query in range(num_queries):
        start, stop = bounds[query], bounds[query + 1]
        own = scores[start:stop]
        chosen = np.argpartition(own, len(own) - k)[len(own) - k :] if len(own) > k else np.arange(len(own))
        chosen = chosen[np.argsort(-own[chosen], kind="stable")]
        best_rows[query, : len(chosen)] = rows[start:stop][chosen]
        best_scores[query, : len(chosen)] = own[chosen]
    return best_rows, best_scores


def best_rows(rows: np.ndarray, scores: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """At most ``count`` of distinct rows with the best scores, best first, of equal ones the lower row.

    A score and a row are one whole number, since NumPy sorts numbers several times as fast as places of numbers.

    Args:
      rows: int64 [n], below 2^32.
      scores: float32 [n].
    """
    numbers = _falling(scores).astype(np.uint64) << _HALF | rows.astype(np.uint64)
    if count < len(numbers):
        numbers = np.partition(numbers, count)[:count]
    numbers.sort()
    bits = (numbers >> _HALF).astype(np.uint32)
    return (numbers & _LOWER).astype(np.int64), _turned(bits).view(np.float32)


def best_distinct(rows: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct ones of rows with the best score of each, best first, of equal ones the lower row; as best_rows."""
    numbers = np.sort(rows.astype(np.uint64) << _HALF | _falling(scores))
    # The first number of a row has its best score.
    bits = (numbers & _LOWER).astype(np.uint32)
    rows = (numbers >> _HALF).astype(np.int64)
    first = np.diff(rows, prepend=-1) > 0
    return best_rows(rows[first], _turned(bits[first]).view(np.float32), len(rows))


def _falling(scores):
    """uint32 that fall where float32 scores grow."""
    return _turned(scores.astype(np.float32).view(np.uint32))


def _turned(bits):
    # Of floats that are positive the bits grow with them, of those that are negative they fall; twice is as before.
    return np.where(bits > _POSITIVE, bits, bits ^ _POSITIVE)


def unit(points: np.ndarray) -> np.ndarray:
    """float32 copy of [n, D] with rows of length 1; a row of zeros stays."""
    points = np.array(points, np.float32)
    points /= np.maximum(np.sqrt(np.einsum("nd,nd->n", points, points)), 1e-12)[:, None]
    return points
