"""Annoy, Faiss and USearch as indexes, where they are installed (the extra `ann`)."""

import math

import numpy as np


def build_annoy(
    points: np.ndarray, *, seed: int = 0, previous=None, num_trees: int = 50, search_k: int = 0
) -> "_Annoy":
    """Annoy's forest, as the original implementation of HF-Softmax used.

    Args:
      search_k: nodes looked at for a query; 0: number of trees times k.
    """
    import annoy

    index = annoy.AnnoyIndex(points.shape[1], "dot")
    index.set_seed(seed % (1 << 31))
    for row, point in enumerate(points):
        index.add_item(row, point)
    # Its trees are the same for the same seed in one thread only.
    index.build(num_trees, n_jobs=1)
    return _Annoy(index, points, search_k)


class _Annoy:
    def __init__(self, index, points, search_k):
        self.index, self.points, self.search_k = index, points, search_k
        # 8 bytes and D floats for each point, and as much for each split.
        self.num_bytes = points.nbytes + index.get_n_items() * 4 * (points.shape[1] + 3)

    def search(self, queries, k):
        rows = np.full((len(queries), k), -1, np.int64)
        scores = np.full((len(queries), k), -np.inf, np.float32)
        for number, query in enumerate(queries):
            found = self.index.get_nns_by_vector(query, k, self.search_k or -1)
            rows[number, : len(found)] = found
            scores[number, : len(found)] = self.points[found] @ query
        return _ordered(rows, scores)


def build_faiss(
    points: np.ndarray, *, seed: int = 0, previous=None, num_cells: int | None = None, probes: int = 8
) -> "_Faiss":
    """Faiss' inverted file of whole vectors (IndexIVFFlat) with inner products."""
    import faiss

    points = np.ascontiguousarray(points, np.float32)
    num_cells = max(1, min(num_cells or round(4 * math.sqrt(len(points))), max(1, len(points) // 39)))
    quantizer = faiss.IndexFlatIP(points.shape[1])
    index = faiss.IndexIVFFlat(quantizer, points.shape[1], num_cells, faiss.METRIC_INNER_PRODUCT)
    index.cp.seed = seed % (1 << 31)
    index.cp.niter = 6
    index.cp.max_points_per_centroid = 39
    index.train(points)
    index.add(points)
    index.nprobe = min(num_cells, probes)
    # Faiss' index needs its quantizer, and does not keep it alive.
    return _Faiss(index, quantizer)


class _Faiss:
    def __init__(self, index, quantizer):
        self.index, self.quantizer = index, quantizer
        self.num_bytes = index.ntotal * (4 * index.d + 8) + 4 * index.d * index.nlist

    def search(self, queries, k):
        scores, rows = self.index.search(np.ascontiguousarray(queries, np.float32), k)
        return rows.astype(np.int64), np.where(rows < 0, -np.inf, scores).astype(np.float32)


def build_usearch(
    points: np.ndarray, *, seed: int = 0, previous=None, connectivity: int = 16, expansion: int = 64
) -> "_USearch":
    """USearch's graph (HNSW) with inner products. Its links depend on the order in which threads add points."""
    import usearch.index

    index = usearch.index.Index(
        ndim=points.shape[1],
        metric="ip",
        dtype="f32",
        connectivity=connectivity,
        expansion_add=128,
        expansion_search=expansion,
    )
    index.add(np.arange(len(points)), np.ascontiguousarray(points, np.float32))
    return _USearch(index)


class _USearch:
    def __init__(self, index):
        self.index, self.num_bytes = index, index.memory_usage

    def search(self, queries, k):
        found = self.index.search(np.ascontiguousarray(queries, np.float32), k)
        rows, scores = np.atleast_2d(found.keys).astype(np.int64), 1 - np.atleast_2d(found.distances)
        short = np.arange(k)[None, :] >= np.atleast_1d(found.counts)[:, None]
        padding = k - rows.shape[1]
        rows = np.pad(rows, ((0, 0), (0, padding)), constant_values=-1)
        scores = np.pad(scores, ((0, 0), (0, padding)))
        return np.where(short, -1, rows), np.where(short, -np.inf, scores).astype(np.float32)


def _ordered(rows, scores):
    order = np.argsort(-scores, axis=1, kind="stable")
    return np.take_along_axis(rows, order, axis=1), np.take_along_axis(scores, order, axis=1)
