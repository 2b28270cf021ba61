"""Two-level matrix products: the nearest cells of a query, then the points of these cells (inverted file)."""

import math

import numpy as np

from .ranking import best_of_lists

_PIECE = 8192
_GROUP = 32
_SAMPLES_PER_CELL = 32


def build(
    points: np.ndarray,
    *,
    seed: int = 0,
    previous: "InvertedFile | None" = None,
    num_cells: int | None = None,
    probes: int = 8,
    iterations: int = 3,
) -> "InvertedFile":
    """Cells by k-means on a sample, then every point into its cell.

    Args:
      previous: an index of the same centres some steps ago; its cells are the start, and one iteration follows the
        centres that have moved.
      num_cells: default 8 sqrt(C), at most C / 8.
      probes: cells that a query looks into; more where k asks for more points than they hold.
      iterations: of k-means, without ``previous``.
    """
    points = np.ascontiguousarray(points, np.float32)
    random = np.random.default_rng(seed)
    num_cells = max(1, min(num_cells or round(8 * math.sqrt(len(points))), max(1, len(points) // 8)))
    sample = points
    if len(points) > _SAMPLES_PER_CELL * num_cells:
        sample = points[np.sort(random.choice(len(points), _SAMPLES_PER_CELL * num_cells, replace=False))]
    if previous is not None and previous.cells.shape == (num_cells, points.shape[1]):
        cells, iterations = previous.cells, 1
    else:
        cells = sample[random.choice(len(sample), num_cells, replace=False)]
    for _ in range(iterations):
        cells = _means(sample, _nearest(sample, cells), num_cells, random)
    cell_of = _nearest(points, cells)
    order = np.argsort(cell_of, kind="stable")
    bounds = np.searchsorted(cell_of[order], np.arange(num_cells + 1))
    return InvertedFile(cells, points[order], order, bounds, probes)


class InvertedFile:
    """Points [C, D] ordered by cell: ``rows`` [C] are their numbers, cell i has those in [bounds[i], bounds[i + 1])."""

    def __init__(self, cells, points, rows, bounds, probes):
        self.cells, self.points, self.rows, self.bounds, self.probes = cells, points, rows, bounds, probes

    @property
    def num_bytes(self) -> int:
        return sum(array.nbytes for array in (self.cells, self.points, self.rows, self.bounds))

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k best rows of each query among the cells it looks into, and their scores, both [B, k]."""
        queries = np.ascontiguousarray(queries, np.float32)
        num_cells = len(self.cells)
        probes = min(num_cells, max(self.probes, math.ceil(2 * k * num_cells / len(self.points))))
        probed = largest(queries @ self.cells.T, probes)
        sizes = (self.bounds[1:] - self.bounds[:-1])[probed]
        ends = np.cumsum(sizes.ravel())
        starts = ends - sizes.ravel()
        scores = np.empty(ends[-1], np.float32)
        starts_of_pairs = starts.tolist()
        by_cell = np.argsort(probed.ravel(), kind="stable")
        cell_in_order = probed.ravel()[by_cell]
        borders = np.flatnonzero(np.diff(cell_in_order, prepend=-1, append=-1)).tolist()
        query_in_order, by_cell = (by_cell // probes), by_cell.tolist()
        bounds = self.bounds.tolist()
        for first, last in zip(borders[:-1], borders[1:], strict=True):
            cell = int(cell_in_order[first])
            inside = slice(bounds[cell], bounds[cell + 1])
            found = queries[query_in_order[first:last]] @ self.points[inside].T
            for pair, own in zip(by_cell[first:last], found, strict=True):
                start = starts_of_pairs[pair]
                scores[start : start + len(own)] = own
        lists = np.concatenate([[0], ends[probes - 1 :: probes]])
        places, best = best_of_lists(np.arange(len(scores)), scores, lists, k)
        # Numbers of the few that are taken only.
        pairs = np.minimum(np.searchsorted(ends, places, side="right"), len(ends) - 1)
        rows = self.rows[np.where(places < 0, 0, self.bounds[probed.ravel()[pairs]] + places - starts[pairs])]
        return np.where(places < 0, -1, rows), best


def largest(values: np.ndarray, count: int) -> np.ndarray:
    """Places of the ``count`` largest of each row of [B, n], in any order: [B, count].

    The largest are in the groups with the largest maxima, of which there are few, and a maximum takes little time.
    """
    length = values.shape[1] // _GROUP
    if length <= count:
        return np.argpartition(values, values.shape[1] - count, axis=1)[:, values.shape[1] - count :]
    grouped = values[:, : _GROUP * length].reshape(len(values), _GROUP, length)
    groups = np.argpartition(grouped.max(axis=1), length - count, axis=1)[:, length - count :]
    places = (groups[:, None] + length * np.arange(_GROUP)[:, None]).reshape(len(values), -1)
    rest = np.broadcast_to(np.arange(_GROUP * length, values.shape[1]), (len(values), values.shape[1] % _GROUP))
    places = np.concatenate([places, rest], axis=1)
    found = np.take_along_axis(values, places, axis=1)
    chosen = np.argpartition(found, found.shape[1] - count, axis=1)[:, found.shape[1] - count :]
    return np.take_along_axis(places, chosen, axis=1)


def _nearest(points, cells):
    """Number of the cell with the largest inner product less half its square, the nearest one, for each point."""
    half_square = np.einsum("nd,nd->n", cells, cells) / 2
    nearest = np.empty(len(points), np.int32)
    for start in range(0, len(points), _PIECE):
        nearness = points[start : start + _PIECE] @ cells.T
        nearness -= half_square
        nearest[start : start + _PIECE] = nearness.argmax(axis=1)
    return nearest


def _means(points, cell_of, num_cells, random):
    order = np.argsort(cell_of, kind="stable")
    counts = np.bincount(cell_of, minlength=num_cells)
    filled = np.flatnonzero(counts)
    starts = np.searchsorted(cell_of[order], filled)
    # A cell that lost all its points starts anew at a random one.
    cells = points[random.integers(0, len(points), num_cells)]
    cells[filled] = np.add.reduceat(points[order], starts, axis=0) / counts[filled, None]
    return cells
