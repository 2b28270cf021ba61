"""Exact search among embeddings, and the measures of a ranking. NumPy in, numbers out.

ranked = positive_ranks(queries, query_labels, gallery, gallery_labels, own=own)
mean_average_precision(ranked)
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..errors import BadData

# Similarities held at a time; 128 MiB in float32.
TILE_VALUES = 1 << 25
# Up to so many positives of a query are ranked by counting what lies above each; more, by sorting the row.
MOST_COUNTED = 32


@dataclass(frozen=True)
class Ranked:
    """Where the positives of each query came.

    Attributes:
      ranks: of each query with a positive, the ranks of its positives, ascending, int64; 0 is the nearest.
      queries: int64 [q], which queries these are.
      without_positive: int64, the queries that have no positive in the gallery; they are not counted anywhere.
    """

    ranks: list[np.ndarray]
    queries: np.ndarray
    without_positive: np.ndarray


def normalised(embeddings: np.ndarray) -> np.ndarray:
    """Rows [N, D] at length 1, so that their products are cosines; a row of zeros stays."""
    norms = np.linalg.norm(embeddings, axis=1, keepdims=True)
    return embeddings / np.maximum(norms, np.finfo(embeddings.dtype).tiny)


def nearest(
    queries: np.ndarray, gallery: np.ndarray, k: int, *, own: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The k largest products of each query with the gallery, exactly.

    Args:
      queries: float [Q, D]; gallery: float [N, D]; both L2-normalised where cosines are meant.
      k: at most N; less one where ``own`` takes a picture out.
      own: int64 [Q], the place of each query itself in the gallery, which is left out; -1: it is not there.

    Returns:
      (places in the gallery int64 [Q, k], products [Q, k]); descending, equal ones in the order of the gallery.
    """
    most = len(gallery) if own is None or np.all(own < 0) else len(gallery) - 1
    if not 1 <= k <= most:
        raise ValueError(f"k is {k}; it must be between 1 and the {most} others in the gallery")
    places = np.empty((len(queries), k), np.int64)
    products = np.empty((len(queries), k), np.result_type(queries, gallery))
    for rows, tile in _tiles(queries, gallery, own):
        for row, similarities in zip(range(rows.start, rows.stop), tile, strict=True):
            border = np.partition(similarities, -k)[-k]
            above = np.flatnonzero(similarities > border)
            level = np.flatnonzero(similarities == border)[: k - len(above)]
            chosen = np.concatenate([above, level])
            chosen = chosen[np.lexsort((chosen, -similarities[chosen]))]
            places[row], products[row] = chosen, similarities[chosen]
    return places, products


def positive_ranks(
    queries: np.ndarray,
    query_labels: np.ndarray,
    gallery: np.ndarray,
    gallery_labels: np.ndarray,
    *,
    own: np.ndarray | None = None,
) -> Ranked:
    """Rank the whole gallery by its products with each query, and find those of the query's label.

    Args and ties as in ``nearest``; labels: int64 [Q] and [N].

    Raises:
      BadData: no query has a positive.
    """
    ranks, without = [], []
    for rows, tile in _tiles(queries, gallery, own):
        for row, similarities in zip(range(rows.start, rows.stop), tile, strict=True):
            same = gallery_labels == query_labels[row]
            if own is not None and own[row] >= 0:
                same[own[row]] = False
            positives = np.flatnonzero(same)
            if len(positives):
                ranks.append(_ranks(similarities, positives))
            else:
                without.append(row)
    if not ranks:
        raise BadData(
            f"none of the {len(queries)} queries has another picture of its own class in the gallery, so nothing can "
            "be found; a class needs 2 pictures or more"
        )
    without = np.array(without, np.int64)
    return Ranked(ranks, np.setdiff1d(np.arange(len(queries)), without), without)


def average_precisions(ranked: Ranked) -> np.ndarray:
    """Of each query, the mean of the precisions at its positives: [q]; scikit-learn's ``average_precision_score``."""
    return np.array([np.mean(np.arange(1, len(ranks) + 1) / (ranks + 1)) for ranks in ranked.ranks])


def trapezoid_average_precisions(ranked: Ranked) -> np.ndarray:
    """Of each query, the area under its precision-recall curve by trapezoids: [q].

    As the programs of Holidays and Copydays compute it: a positive at rank r, the n-th found, adds the mean of
    n / (r + 1) and (n - 1) / r, over the number of positives; at rank 0 the second is 1.
    """
    precisions = []
    for ranks in ranked.ranks:
        found = np.arange(len(ranks))
        after = (found + 1) / (ranks + 1)
        before = np.where(ranks == 0, 1.0, found / np.maximum(ranks, 1))
        precisions.append(np.mean((before + after) / 2))
    return np.array(precisions)


def recall_at(ranked: Ranked, k: int) -> float:
    """Share of the queries with a positive among their k nearest."""
    return float(np.mean([ranks[0] < k for ranks in ranked.ranks]))


def hits_at(ranked: Ranked, k: int) -> float:
    """Mean number of positives among the k nearest; UKBench's score with k = 4, the query itself being one of them."""
    return float(np.mean([np.count_nonzero(ranks < k) for ranks in ranked.ranks]))


def r_precision(ranked: Ranked) -> float:
    """Mean share of positives among the R nearest, where R is the number of the query's positives."""
    return float(np.mean([np.mean(ranks < len(ranks)) for ranks in ranked.ranks]))


def map_at_r(ranked: Ranked) -> float:
    """Mean over queries of the average precision cut after the R nearest (Musgrave et al., 2020, equation 9)."""
    values = []
    for ranks in ranked.ranks:
        inside = ranks[ranks < len(ranks)]
        values.append(np.sum(np.arange(1, len(inside) + 1) / (inside + 1)) / len(ranks))
    return float(np.mean(values))


def _tiles(queries: np.ndarray, gallery: np.ndarray, own: np.ndarray | None) -> Iterator[tuple[slice, np.ndarray]]:
    """(rows, their products with the whole gallery [rows, N]); the query itself at minus infinity."""
    size = max(1, TILE_VALUES // max(len(gallery), 1))
    across = gallery.T
    for start in range(0, len(queries), size):
        rows = slice(start, min(start + size, len(queries)))
        tile = queries[rows] @ across
        if own is not None:
            inside = np.flatnonzero(own[rows] >= 0)
            tile[inside, own[rows][inside]] = -np.inf
        yield rows, tile


def _ranks(similarities: np.ndarray, positives: np.ndarray) -> np.ndarray:
    """Ranks of the positives in the order of falling similarity, equal ones by place: ascending int64."""
    if len(positives) > MOST_COUNTED:
        order = np.argsort(-similarities, kind="stable")
        rank = np.empty(len(order), np.int64)
        rank[order] = np.arange(len(order))
        return np.sort(rank[positives])
    ranks = [
        np.count_nonzero(similarities > similarities[place])
        + np.count_nonzero(similarities[:place] == similarities[place])
        for place in positives
    ]
    return np.sort(np.array(ranks, np.int64))
