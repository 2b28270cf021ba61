"""How often the nearest other picture shows the same person."""

import numpy as np

_TILE = 1024


def recall_at_1(embeddings: np.ndarray, labels: np.ndarray) -> tuple[float, int]:
    """Share of pictures whose nearest other picture, by cosine similarity, has their label; of equal ones the first.

    Pictures whose label nobody else has are no queries, but may be found. Computed in tiles of rows: memory is
    O(1024 N).

    Args:
      embeddings: [N, D], need not be normalised.
      labels: [N].

    Returns:
      (the share, number of queries); (nan, 0) where there is no query.
    """
    labels = np.asarray(labels)
    _, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    queries = np.flatnonzero(counts[inverse] > 1)
    if not len(queries):
        return float("nan"), 0
    rows = embeddings / np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)
    found = 0
    for start in range(0, len(queries), _TILE):
        tile = queries[start : start + _TILE]
        similarities = rows[tile] @ rows.T
        similarities[np.arange(len(tile)), tile] = -np.inf
        found += int((inverse[similarities.argmax(axis=1)] == inverse[tile]).sum())
    return found / len(queries), len(queries)
