"""Products of few matrices: the nearest cells of a query, the nearest of their parts, then the points of these parts.

An inverted file of two levels. Cells are few enough that a query is compared with all. The points of a cell grow with
C, the points of a part do not, so that a search of many classes reads as much memory as one of few.
"""

import math

import numba
import numpy as np

from ..compiled import compiled, read_only
from .largest import largest
from .ranking import best_of_lists

_PIECE = 8192
_POINTS_PER_PART = 40
_SAMPLES_PER_CELL = 32
_ITERATIONS_OF_PARTS = 3
_MATRIX, _NUMBERS, _BOUNDS = read_only(numba.float32, 2), read_only(numba.int64, 2), read_only(numba.int64, 1)


def build(
    points: np.ndarray,
    *,
    seed: int = 0,
    previous: "InvertedFile | None" = None,
    num_cells: int | None = None,
    probes: int = 8,
    iterations: int = 3,
) -> "InvertedFile":
    """Cells by k-means on a sample, every point into its cell, and each cell into parts by k-means on its points.

    Args:
      previous: an index of the same centres some steps ago; its cells are the start, and one iteration follows the
        centres that have moved.
      num_cells: default 8 sqrt(C), at most C / 8.
      probes: parts that a query looks into; more where k asks for more points than they hold.
      iterations: of the k-means of cells, without ``previous``.
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
    parts, part_of = _parts(points, cells, _nearest(points, cells), random)
    order = np.argsort(part_of, kind="stable")
    bounds = np.searchsorted(part_of[order], np.arange(parts.shape[0] * parts.shape[1] + 1))
    return InvertedFile(cells, parts, points[order], order, bounds, probes)


class InvertedFile:
    """Points [C, D] ordered by part: ``rows`` [C] are their numbers, part i has those in [bounds[i], bounds[i + 1]).

    ``cells`` [G, D] and ``parts`` [G, M, D] are means of points; part i is number i % M of cell i // M.
    """

    def __init__(self, cells, parts, points, rows, bounds, probes):
        self.cells, self.parts, self.points, self.rows = cells, parts, points, rows
        self.bounds, self.probes = bounds, probes

    @property
    def num_bytes(self) -> int:
        return sum(array.nbytes for array in (self.cells, self.parts, self.points, self.rows, self.bounds))

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k best rows of each query among the parts it looks into, and their scores, both [B, k]."""
        queries = np.ascontiguousarray(queries, np.float32)
        probed = self._nearest_parts(queries, k)
        sizes = (self.bounds[1:] - self.bounds[:-1])[probed].sum(axis=1)
        lists = np.concatenate([[0], np.cumsum(sizes)])
        rows, scores = np.empty(lists[-1], np.int64), np.empty(lists[-1], np.float32)
        _score_points(self.points, self.rows, self.bounds, probed, queries, rows, scores)
        return best_of_lists(rows, scores, lists, k)

    def _nearest_parts(self, queries, k):
        """Numbers [B, n] of the parts that each query looks into."""
        num_cells, per_cell = self.parts.shape[:2]
        num_parts = num_cells * per_cell
        probes = min(num_parts, max(self.probes, math.ceil(2 * k * num_parts / len(self.points))))
        if per_cell == 1:
            return largest(queries, self.cells, probes)
        # The nearest parts are not all in as few cells: the parts of twice as many are compared.
        cells = largest(queries, self.cells, min(num_cells, max(2 * self.probes, math.ceil(2 * probes / per_cell))))
        near = np.empty((len(queries), cells.shape[1] * per_cell), np.float32)
        _part_scores(self.parts, cells, queries, near)
        places = np.argpartition(near, near.shape[1] - probes, axis=1)[:, near.shape[1] - probes :]
        return np.take_along_axis(cells, places // per_cell, axis=1) * per_cell + places % per_cell


# Terms in any order, so that a processor adds several at once.
@numba.njit(error_model="numpy", fastmath={"reassoc", "contract"})
def _product(one, other):
    total = np.float32(0)
    for j in range(len(one)):
        total += one[j] * other[j]
    return total


@compiled(read_only(numba.float32, 3), _NUMBERS, _MATRIX, numba.float32[:, ::1])
def _part_scores(parts, cells, queries, out):
    """Inner products of query i with the parts of its cells, in out[i]."""
    for i in range(len(queries)):
        query, at = queries[i], 0
        for cell in cells[i]:
            for part in parts[cell]:
                out[i, at] = _product(part, query)
                at += 1


@compiled(_MATRIX, _BOUNDS, _BOUNDS, _NUMBERS, _MATRIX, numba.int64[::1], numba.float32[::1])
def _score_points(points, rows, bounds, probed, queries, found, scores):
    """Rows and inner products of the points of the parts that each query looks into, one part after the other."""
    at = 0
    for i in range(len(queries)):
        query = queries[i]
        for part in probed[i]:
            for point in range(bounds[part], bounds[part + 1]):
                found[at], scores[at] = rows[point], _product(points[point], query)
                at += 1


def _nearest(points, cells):
    """Number of the cell with the largest inner product less half its square, the nearest one, for each point."""
    half_square = np.einsum("nd,nd->n", cells, cells) / 2
    nearest = np.empty(len(points), np.int32)
    for start in range(0, len(points), _PIECE):
        nearness = points[start : start + _PIECE] @ cells.T
        nearness -= half_square
        nearest[start : start + _PIECE] = nearness.argmax(axis=1)
    return nearest


def _parts(points, cells, cell_of, random):
    """Means [G, M, D] of the parts of each cell, and the number of its part for each point."""
    per_cell = max(1, round(len(points) / len(cells) / _POINTS_PER_PART))
    if per_cell == 1:
        return cells[:, None], cell_of
    order = np.argsort(cell_of, kind="stable")
    bounds = np.searchsorted(cell_of[order], np.arange(len(cells) + 1))
    parts = np.repeat(cells[:, None], per_cell, axis=1)
    part_of = np.empty(len(points), np.int64)
    for cell in np.flatnonzero(np.diff(bounds)):
        rows = order[bounds[cell] : bounds[cell + 1]]
        inside = points[rows]
        own = inside[random.choice(len(inside), per_cell, replace=len(inside) < per_cell)]
        for _ in range(_ITERATIONS_OF_PARTS):
            own = _means(inside, _nearest(inside, own), per_cell, random)
        parts[cell] = own
        part_of[rows] = cell * per_cell + _nearest(inside, own)
    return parts, part_of


def _means(points, cell_of, num_cells, random):
    order = np.argsort(cell_of, kind="stable")
    counts = np.bincount(cell_of, minlength=num_cells)
    filled = np.flatnonzero(counts)
    starts = np.searchsorted(cell_of[order], filled)
    # A cell that lost all its points starts anew at a random one.
    cells = points[random.integers(0, len(points), num_cells)]
    cells[filled] = np.add.reduceat(points[order], starts, axis=0) / counts[filled, None]
    return cells
