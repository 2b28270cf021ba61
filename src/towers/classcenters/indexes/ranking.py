"""The best k of lists of candidates, many queries at once."""

import numpy as np


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


def unit(points: np.ndarray) -> np.ndarray:
    """float32 copy of [n, D] with rows of length 1; a row of zeros stays."""
    points = np.array(points, np.float32)
    points /= np.maximum(np.sqrt(np.einsum("nd,nd->n", points, points)), 1e-12)[:, None]
    return points
