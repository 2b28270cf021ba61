"""Products of few matrices: the best cells of a query, the best of their parts, then the points of these parts.

An inverted file of two levels. Cells are few enough that a query is compared with all. The points of a cell grow with
C, the points of a part do not, so that a search of many classes reads as much memory as one of few. Parts and points
are kept as whole numbers of one byte.

A query wants the best points of a cell, not its mean. Their products come above that of the mean, the further the wider
the cell is: by a few standard deviations, which grow with the query's length. What is added for that, the cell's reach
times this length, keeps cells of few points, which are narrow, from coming before those that have the best points.
"""

import math

import numba
import numpy as np

from ..compiled import compiled, read_only
from .largest import largest
from .quantised import Quantised, quantise
from .ranking import best_of_lists, best_rows

_PIECE = 8192
_POINTS_PER_PART = 40
_SAMPLES_PER_CELL = 32
_ITERATIONS_OF_PARTS = 3
# Standard deviations; 3 to 6 find as much, with 0 the search misses more than twice as many.
_REACH = 4.0
_QUERIES, _VALUES, _SCALES = read_only(numba.float32, 2), read_only(numba.int8, 2), read_only(numba.float32, 1)
_NUMBERS, _BOUNDS = read_only(numba.int64, 2), read_only(numba.int64, 1)


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
    if previous is not None and previous.cells.shape == (num_cells, points.shape[1] + 1):
        cells, iterations = np.ascontiguousarray(previous.cells[:, :-1]), 1
    else:
        cells = sample[random.choice(len(sample), num_cells, replace=False)]
    for _ in range(iterations):
        cells = _means(sample, _nearest(sample, cells), num_cells, random)
    parts, part_of = _parts(points, cells, _nearest(points, cells), random)
    order = np.argsort(part_of, kind="stable")
    bounds = np.searchsorted(part_of[order], np.arange(len(parts) + 1))
    ordered = quantise(points).taken(order)
    per_cell = len(parts) // num_cells
    cells = np.column_stack([cells, _reach(ordered, cells, bounds[::per_cell].copy())])
    return InvertedFile(cells, quantise(parts), _reach(ordered, parts, bounds), ordered, order, bounds, probes)


class InvertedFile:
    """Points [C, D] ordered by part: ``rows`` [C] are their numbers, part i has those in [bounds[i], bounds[i + 1]).

    ``cells`` [G, D + 1] and ``parts`` [G M, D] are means of points, and ``reach`` [G M], for cells the last column, is
    how much further than its mean the points of a part come, for a query of length 1. Part i is of cell i // M.
    """

    def __init__(
        self,
        cells: np.ndarray,
        parts: Quantised,
        reach: np.ndarray,
        points: Quantised,
        rows: np.ndarray,
        bounds: np.ndarray,
        probes: int,
    ):
        self.cells, self.parts, self.reach = cells, parts, reach
        self.points, self.rows, self.bounds, self.probes = points, rows, bounds, probes

    @property
    def num_bytes(self) -> int:
        arrays = sum(array.nbytes for array in (self.cells, self.reach, self.rows, self.bounds))
        return arrays + self.parts.num_bytes + self.points.num_bytes

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k best rows of each query among the parts it looks into, and their scores, both [B, k]."""
        queries = np.ascontiguousarray(queries, np.float32)
        probed = self._nearest_parts(queries, self._probes_for(k))
        lists = np.concatenate([[0], np.cumsum(self._sizes(probed).sum(axis=1))])
        rows, scores = np.empty(lists[-1], np.int64), np.empty(lists[-1], np.float32)
        _score_points(*self.points, self.rows, self.bounds, probed, queries, rows, scores)
        return best_of_lists(rows, scores, lists, k)

    def best(self, queries: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The ``count`` rows with the largest score over the queries that look into their part, best first, and these.

        Queries that lie close to each other look into the same parts, and then into more of them.
        """
        queries = np.ascontiguousarray(queries, np.float32)
        count, num_parts = min(count, len(self.rows)), len(self.bounds) - 1
        probes = self._probes_for(2 * math.ceil(count / len(queries)))
        while True:
            probed = self._nearest_parts(queries, probes)
            pairs = np.sort((probed * len(queries) + np.arange(len(queries))[:, None]).ravel())
            part, query = np.divmod(pairs, len(queries))
            first = np.flatnonzero(np.diff(part, prepend=-1))
            parts = part[first]
            num_points = self._sizes(parts).sum()
            if num_points >= count or probes == num_parts:
                break
            probes = min(num_parts, 4 * probes)
        rows, scores = np.empty(num_points, np.int64), np.empty(num_points, np.float32)
        query_bounds = np.append(first, len(query))
        _score_points_once(*self.points, self.rows, self.bounds, parts, query_bounds, query, queries, rows, scores)
        return best_rows(rows, scores, count)

    def _probes_for(self, k):
        """Parts to look into for k points: as many as hold twice as many, at least."""
        num_parts = len(self.bounds) - 1
        return min(num_parts, max(self.probes, math.ceil(2 * k * num_parts / len(self.rows))))

    def _sizes(self, parts):
        return self.bounds[parts + 1] - self.bounds[parts]

    def _nearest_parts(self, queries, probes):
        """Numbers [B, probes] of the parts that each query looks into."""
        num_cells = len(self.cells)
        per_cell = len(self.parts.values) // num_cells
        lengths = np.sqrt(np.einsum("bd,bd->b", queries, queries))
        # The reach is a column of the cells, so that one product adds it times the length.
        long_queries = np.column_stack([queries, lengths])
        if per_cell == 1:
            return largest(long_queries, self.cells, probes)
        # The best parts are not all in as few cells as could hold them.
        compared = min(num_cells, max(self.probes, math.ceil(2 * probes / per_cell)))
        cells = largest(long_queries, self.cells, compared)
        near = np.empty((len(queries), compared * per_cell), np.float32)
        _score_parts(*self.parts, self.reach, cells, queries, lengths, near)
        places = np.argpartition(near, near.shape[1] - probes, axis=1)[:, near.shape[1] - probes :]
        return np.take_along_axis(cells, places // per_cell, axis=1) * per_cell + places % per_cell


# Here and not beside the rounding: Numba, which keeps what it has compiled, sees changes of a caller's file only.
# Terms in any order, so that a processor adds several at once.
@numba.njit(error_model="numpy", fastmath={"reassoc", "contract"})
def _product(values, query):
    """Inner product of one vector's values, before its scale, and a query."""
    total = np.float32(0)
    for j in range(len(values)):
        total += np.float32(values[j]) * query[j]
    return total


@compiled(_VALUES, _SCALES, _SCALES, _NUMBERS, _QUERIES, _SCALES, numba.float32[:, ::1])
def _score_parts(values, scales, reach, cells, queries, lengths, scores):
    """How far the points of the parts of its cells come for query i, in scores[i]."""
    per_cell = scores.shape[1] // cells.shape[1]
    for i in range(len(queries)):
        query, at = queries[i], 0
        for cell in cells[i]:
            for part in range(cell * per_cell, (cell + 1) * per_cell):
                scores[i, at] = _product(values[part], query) * scales[part] + reach[part] * lengths[i]
                at += 1


@compiled(_VALUES, _SCALES, _BOUNDS, _BOUNDS, _NUMBERS, _QUERIES, numba.int64[::1], numba.float32[::1])
def _score_points(values, scales, rows, bounds, probed, queries, found, scores):
    """Rows and inner products of the points of the parts that each query looks into, one part after the other."""
    at = 0
    for i in range(len(queries)):
        query = queries[i]
        for part in probed[i]:
            for point in range(bounds[part], bounds[part + 1]):
                found[at], scores[at] = rows[point], _product(values[point], query) * scales[point]
                at += 1


@compiled(_VALUES, _SCALES, _BOUNDS, _BOUNDS, _BOUNDS, _BOUNDS, _BOUNDS, _QUERIES, numba.int64[::1], numba.float32[::1])
def _score_points_once(values, scales, rows, bounds, parts, query_bounds, query, queries, found, scores):
    """Rows of the points of ``parts`` and the largest inner products with the queries that look into theirs.

    Those of part i are ``query`` from query_bounds[i] up to query_bounds[i + 1].
    """
    at = 0
    for i in range(len(parts)):
        for point in range(bounds[parts[i]], bounds[parts[i] + 1]):
            largest = np.float32(-np.inf)
            for pair in range(query_bounds[i], query_bounds[i + 1]):
                largest = max(largest, _product(values[point], queries[query[pair]]))
            found[at], scores[at] = rows[point], largest * scales[point]
            at += 1


def _reach(points, means, bounds):
    """float32 [n]: ``_REACH`` standard deviations, in one direction, of the points of each part around their mean."""
    reach = np.zeros(len(means), np.float32)
    _spread(*points, means, bounds, reach)
    return np.float32(_REACH) * reach


@compiled(_VALUES, _SCALES, _QUERIES, _BOUNDS, numba.float32[::1])
def _spread(values, scales, means, bounds, spread):
    """Root of the mean square of all coordinates' distances from the mean, of each part; 0 where it has no point."""
    for part in range(len(means)):
        mean, total = means[part], 0.0
        for point in range(bounds[part], bounds[part + 1]):
            value, scale, square = values[point], scales[point], np.float32(0)
            for j in range(len(mean)):
                distance = value[j] * scale - mean[j]
                square += distance * distance
            total += square
        count = (bounds[part + 1] - bounds[part]) * means.shape[1]
        spread[part] = math.sqrt(total / count) if count else 0.0


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
    """Means [G M, D] of the parts of each cell, and the number of its part for each point."""
    per_cell = max(1, round(len(points) / len(cells) / _POINTS_PER_PART))
    if per_cell == 1:
        return cells, cell_of
    order = np.argsort(cell_of, kind="stable")
    bounds = np.searchsorted(cell_of[order], np.arange(len(cells) + 1))
    parts = np.repeat(cells, per_cell, axis=0)
    part_of = np.empty(len(points), np.int64)
    for cell in np.flatnonzero(np.diff(bounds)):
        rows = order[bounds[cell] : bounds[cell + 1]]
        inside = points[rows]
        own = inside[random.choice(len(inside), per_cell, replace=len(inside) < per_cell)]
        for _ in range(_ITERATIONS_OF_PARTS):
            own = _means(inside, _nearest(inside, own), per_cell, random)
        parts[cell * per_cell : (cell + 1) * per_cell] = own
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
