import numpy as np
import pytest

from towers.classcenters import indexes
from towers.classcenters.indexes import exact, forest, ivf, largest, libraries
from towers.classcenters.indexes.quantised import quantise
from towers.classcenters.indexes.ranking import best_distinct, best_of_lists, best_rows, unit

FIELDS = ("points", "pairs", "children", "rows", "bounds")


def clustered(num_points, columns, num_clusters, seed=0):
    random = np.random.default_rng(seed)
    centres = random.normal(size=(num_clusters, columns))
    return unit(centres[random.integers(0, num_clusters, num_points)] + random.normal(0, 0.5, (num_points, columns)))


def near(points, count, seed=1):
    random = np.random.default_rng(seed)
    chosen = points[random.integers(0, len(points), count)]
    return unit(chosen + random.normal(0, 0.3 / np.sqrt(points.shape[1]), chosen.shape))


def best_by_sorting(points, queries, k):
    scores = queries @ points.T
    rows = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return rows, np.take_along_axis(scores, rows, axis=1)


def recall(found, expected):
    return np.mean([len(np.intersect1d(one, other)) / len(other) for one, other in zip(found, expected, strict=True)])


@pytest.fixture(scope="module")
def points():
    return clustered(20_000, 16, 400)


@pytest.mark.parametrize("k", [1, 7, 100, 9000])
def test_exact_is_a_sort(points, k):
    queries = near(points, 5)
    rows, scores = exact.build(points).search(queries, k)
    expected_rows, expected_scores = best_by_sorting(points, queries, k)
    np.testing.assert_allclose(scores, expected_scores, rtol=1e-6, atol=1e-6)
    assert recall(rows, expected_rows) > 0.9999


def test_exact_over_all_queries(points):
    queries = near(points, 6)
    rows, scores = exact.build(points).best(queries, 50)
    largest = (queries @ points.T).max(axis=0)
    np.testing.assert_allclose(scores, np.sort(largest)[::-1][:50], rtol=1e-6)
    np.testing.assert_allclose(scores, largest[rows], rtol=1e-6)


def test_fewer_points_than_asked_for():
    points = clustered(5, 3, 2)
    for name in ("exact", "forest", "ivf"):
        rows, scores = indexes.INDEXES[name][0](points).search(points[:2], 9)
        assert sorted(rows[0, :5]) == [0, 1, 2, 3, 4]
        assert (rows[:, 5:] == -1).all()
        assert (scores[:, 5:] == -np.inf).all()


def test_best_of_lists():
    rows, scores = best_of_lists(
        np.array([4, 5, 6, 7]), np.array([1, 3, 2, 9], np.float32), np.array([0, 3, 3, 4]), k=2
    )
    assert rows.tolist() == [[5, 6], [-1, -1], [7, -1]]
    assert scores.tolist() == [[3, 2], [-np.inf, -np.inf], [9, -np.inf]]


@pytest.mark.parametrize("count", [0, 1, 700, 5000])
def test_best_rows_are_a_sort(count):
    random = np.random.default_rng(count)
    rows = np.unique(random.integers(0, 2**32, 2000))
    scores = random.choice(np.array([-np.inf, -2.5, -1e-30, 0.0, 1e-38, 0.5, 3.0, np.inf], np.float32), len(rows))
    found, found_scores = best_rows(rows, scores, count)
    expected = np.lexsort((rows, -scores))[:count]
    np.testing.assert_array_equal(found, rows[expected])
    np.testing.assert_array_equal(found_scores, scores[expected])
    assert found_scores.dtype == np.float32


@pytest.mark.parametrize("num_rows", [30, 4_000_000_000])
def test_best_distinct_rows_are_those_of_a_dictionary(num_rows):
    """Rows found by several queries, scores of both signs, equal ones."""
    random = np.random.default_rng(num_rows)
    rows = np.concatenate([random.integers(0, num_rows, 360), np.arange(5), np.arange(5)])
    scores = random.choice(np.array([-np.inf, -2.5, -1e-30, 0.0, 1e-38, 0.5, 3.0], np.float32), len(rows))
    best = {}
    for row, score in zip(rows.tolist(), scores.tolist(), strict=True):
        best[row] = max(score, best.get(row, score))
    found, found_scores = best_distinct(rows, scores)
    assert found.tolist() == sorted(best, key=lambda row: (-best[row], row))
    assert found_scores.tolist() == [best[row] for row in found.tolist()]


def check_cell(index, points, number, inside):
    """The points below a node are on the side of the nearer point of its pair, which is one of them."""
    if number < 0:
        leaf = ~number
        assert sorted(index.rows[index.bounds[leaf] : index.bounds[leaf + 1]]) == sorted(inside)
        return [len(inside)]
    a, b = index.pairs[number]
    assert {a, b} <= set(inside.tolist())
    distance = [np.linalg.norm(points[inside].astype(np.float64) - points[one], axis=1) for one in (a, b)]
    clear = np.abs(distance[0] - distance[1]) > 1e-5
    first = distance[0] < distance[1]
    below = [points_below(index, child) for child in index.children[number]]
    assert not set(inside[clear & first]) - set(below[0])
    assert not set(inside[clear & ~first]) - set(below[1])
    return [
        size
        for child, members in zip(index.children[number], below, strict=True)
        for size in check_cell(index, points, child, np.array(members, np.int64))
    ]


def points_below(index, number):
    if number < 0:
        return index.rows[index.bounds[~number] : index.bounds[~number + 1]].tolist()
    return [row for child in index.children[number] for row in points_below(index, child)]


def test_trees_split_by_the_bisector_of_two_points_of_the_cell(points):
    points = points[:6000] * np.linspace(0.5, 2, 6000, dtype=np.float32)[:, None]
    index = forest.build(points, seed=3, num_trees=2, leaf_size=20)
    for root in index.roots:
        sizes = check_cell(index, points, root, np.arange(6000))
        assert sum(sizes) == 6000
        assert max(sizes) <= 20


def test_a_point_reaches_its_own_leaf_in_every_tree(points):
    index = forest.build(points, num_trees=3, leaf_size=30)
    chosen = np.arange(0, len(points), 97)
    for row, leaves in zip(chosen, index._leaves(points[chosen]), strict=True):
        for leaf in leaves:
            assert row in index.rows[index.bounds[leaf] : index.bounds[leaf + 1]]
    assert (index.search(points[chosen], 1)[0][:, 0] == chosen).all()


def test_trees_are_a_function_of_the_seed(points):
    one, same, other = (forest.build(points[:3000], seed=seed, num_trees=2) for seed in (1, 1, 2))
    assert all(np.array_equal(getattr(one, field), getattr(same, field)) for field in FIELDS)
    assert not np.array_equal(one.rows, other.rows)
    assert not np.array_equal(one.rows[:3000], one.rows[3000:])


def test_equal_points_end_in_a_leaf():
    points = np.repeat(clustered(3, 4, 3), 200, axis=0)
    index = forest.build(points, num_trees=3, leaf_size=10)
    rows, scores = index.search(points[:1], 200)
    np.testing.assert_allclose(scores, 1, rtol=1e-6)
    assert (rows < 200).all()
    np.testing.assert_array_equal(forest.build(np.ones((50, 3), np.float32)).search(np.ones((1, 3)), 50)[1] > 2, True)


def test_a_forest_of_more_trees_finds_more(points):
    queries = near(points, 64)
    expected = best_by_sorting(points, queries, 10)[0]
    found = [
        recall(forest.build(points, num_trees=trees, leaf_size=64).search(queries, 10)[0], expected)
        for trees in (1, 5, 25)
    ]
    assert found[0] < found[1] < found[2]
    assert found[2] > 0.95


def nearest_share(points, centres, number):
    """Of some points: the share whose number is that of the nearest of their centres."""
    distance = np.linalg.norm(points[:, None] - centres, axis=2)
    return (distance.argmin(axis=1) == number).mean()


def test_cells_and_their_parts_hold_their_nearest_points(points):
    index = ivf.build(points, num_cells=50)
    assert sorted(index.rows) == list(range(len(points)))
    some = points[index.rows[::50]]
    np.testing.assert_allclose(index.points.dequantised()[::50], some, atol=np.abs(some).max() / 253)
    parts = index.parts.dequantised().reshape(50, 10, 16)
    part = np.repeat(np.arange(500), np.diff(index.bounds))[::50]
    cell = part // 10
    assert nearest_share(some, index.cells[None, :, :-1], cell) > 0.999
    # Of some that lie between two parts, the rounded one is nearer.
    assert nearest_share(some, parts[cell], part % 10) > 0.98
    assert index.num_bytes < 2 * points.nbytes / 3


def test_reach_is_four_standard_deviations_of_the_points_of_a_part(points):
    index = ivf.build(points, num_cells=50)
    for part in (0, 77, 499):
        inside = points[index.rows[index.bounds[part] : index.bounds[part + 1]]]
        expected = 4 * np.sqrt(((inside - index.parts.dequantised()[part]) ** 2).mean())
        np.testing.assert_allclose(index.reach[part], expected, rtol=0.02)
    inside = points[index.rows[index.bounds[30] : index.bounds[40]]]
    np.testing.assert_allclose(index.cells[3, -1], 4 * np.sqrt(((inside - index.cells[3, :-1]) ** 2).mean()), rtol=0.02)


def test_wide_parts_are_looked_into_before_narrow_ones_of_a_larger_mean():
    """The best point of two crowds is one of the wide crowd, though the mean of the narrow one is nearer."""
    random = np.random.default_rng(0)
    crowds = random.normal([[[0.6, 0.0]], [[0.5, 0.3]]], [[[0.01]], [[0.2]]], (2, 40, 2)).astype(np.float32)
    points, means, bounds = crowds.reshape(80, 2), crowds.mean(axis=1), np.array([0, 40, 80])
    ordered = quantise(points)
    reach = ivf._reach(ordered, means, bounds)
    index = ivf.InvertedFile(
        np.column_stack([means, reach]), quantise(means), reach, ordered, np.arange(80), bounds, probes=1
    )
    query = np.array([[2.0, 0.0]], np.float32)
    assert (query @ means.T).argmax() == 0
    assert index.search(query, 1)[0].tolist() == [[points[:, 0].argmax()]]
    assert points[:, 0].argmax() >= 40


@pytest.mark.parametrize("columns", [1, 16, 130])
def test_a_value_is_at_most_half_a_step_from_what_it_was(columns):
    vectors = np.random.default_rng(0).normal(size=(50, columns)).astype(np.float32) * np.logspace(-9, 9, 50)[:, None]
    vectors = np.concatenate([vectors, np.zeros((1, columns))]).astype(np.float32)
    found = quantise(vectors)
    steps = np.abs(vectors).max(axis=1) / 127
    np.testing.assert_allclose(found.scales, steps, rtol=1e-6)
    assert (np.abs(found.dequantised() - vectors) <= 0.5001 * steps[:, None]).all()
    assert (np.abs(found.values).max(axis=1)[:-1] == 127).all()
    assert not found.values[-1].any()


def test_few_points_in_a_cell_are_one_part(points):
    index = ivf.build(points[:3000])
    np.testing.assert_allclose(index.parts.dequantised(), index.cells[:, :-1], atol=0.01)
    np.testing.assert_allclose(index.reach, index.cells[:, -1], rtol=1e-6)
    assert len(index.bounds) == len(index.cells) + 1


def test_a_cell_with_fewer_points_than_parts_or_none():
    crowd = unit(np.random.default_rng(2).normal(size=(400, 8)) + 20 * np.eye(8)[0])
    points = np.concatenate([crowd, -crowd[:2]])
    cells = np.array([crowd[0], -crowd[0], 9 * np.eye(8)[7]], np.float32)
    parts, part_of = ivf._parts(points, cells, np.repeat([0, 1], [400, 2]), np.random.default_rng(0))
    assert parts.shape == (9, 8)
    assert np.isfinite(parts).all()
    assert set(part_of[:400]) == {0, 1, 2}
    assert set(part_of[400:]) <= {3, 4, 5}
    np.testing.assert_array_equal(parts[6:], np.repeat(cells[2:], 3, axis=0))
    order = np.argsort(part_of, kind="stable")
    bounds = np.searchsorted(part_of[order], np.arange(10))
    ordered = quantise(points[order])
    reach = ivf._reach(ordered, parts, bounds)
    assert reach[np.diff(bounds) == 0].tolist() == [0] * np.count_nonzero(np.diff(bounds) == 0)
    index = ivf.InvertedFile(np.column_stack([cells, reach[:3]]), quantise(parts), reach, ordered, order, bounds, 9)
    assert sorted(index.search(points[-2:], 2)[0][0]) == [400, 401]
    assert sorted(index.best(points[-2:], 2)[0]) == [400, 401]


@pytest.mark.parametrize("num_cells", [40, 500])
def test_all_parts_are_an_exact_search_of_the_rounded_points(points, num_cells):
    queries, rounded = near(points, 9), quantise(points).dequantised()
    index = ivf.build(points, num_cells=num_cells, probes=len(points))
    rows, scores = index.search(queries, 30)
    expected_rows, expected_scores = best_by_sorting(rounded, queries, 30)
    np.testing.assert_allclose(scores, expected_scores, rtol=1e-5, atol=1e-6)
    assert recall(rows, expected_rows) > 0.9999
    assert recall(rows, best_by_sorting(points, queries, 30)[0]) > 0.97
    rows, scores = index.best(queries, 200)
    largest = (queries @ rounded.T).max(axis=0)
    np.testing.assert_allclose(scores, np.sort(largest)[::-1][:200], rtol=1e-5)
    np.testing.assert_allclose(scores, largest[rows], rtol=1e-5)
    assert len(set(rows.tolist())) == 200


def parts_of(index, query, num_cells, probes):
    """Numbers of the parts that a query looks into, nearest first, and the places of their points."""
    per_cell, length = len(index.parts.values) // len(index.cells), np.linalg.norm(query)
    cells = np.argsort(-(index.cells[:, :-1] @ query + index.cells[:, -1] * length))[:num_cells]
    numbers = (cells[:, None] * per_cell + np.arange(per_cell)).ravel()
    parts = numbers[np.argsort(-(index.parts.dequantised()[numbers] @ query + index.reach[numbers] * length))[:probes]]
    return parts, np.concatenate([np.arange(index.bounds[part], index.bounds[part + 1]) for part in parts])


@pytest.mark.parametrize(("num_cells", "compared"), [(30, 5), (150, 5), (500, 5)])
def test_a_search_is_that_of_a_loop_over_the_queries(points, num_cells, compared):
    index = ivf.build(points, num_cells=num_cells, probes=5)
    queries, rounded = near(points, 150), index.points.dequantised()
    # Of any length, as those of a head without normalisation.
    queries *= np.linspace(0.1, 9, 150, dtype=np.float32)[:, None]
    largest = {}
    for query, found, own_scores in zip(queries, *index.search(queries, 12), strict=True):
        _, places = parts_of(index, query, compared, probes=5)
        scores = rounded[places] @ query
        expected = np.sort(scores)[::-1][:12]
        np.testing.assert_allclose(own_scores[: len(expected)], expected, rtol=1e-5, atol=1e-6)
        some = found >= 0
        np.testing.assert_allclose(points[found[some]] @ query, own_scores[some], atol=0.01 * np.linalg.norm(query))
        for row, score in zip(index.rows[places].tolist(), scores.tolist(), strict=True):
            largest[row] = max(score, largest.get(row, score))
    rows, scores = index.best(queries, 600)
    assert (np.diff(scores) <= 0).all()
    np.testing.assert_allclose(scores, sorted(largest.values(), reverse=True)[:600], rtol=1e-5)
    np.testing.assert_allclose(scores, [largest[row] for row in rows.tolist()], rtol=1e-5)


@pytest.mark.parametrize("num_cells", [None, 40])
@pytest.mark.parametrize("count", [1, 500, 9000, 20_000, 30_000])
def test_queries_that_are_alike_look_into_more_parts(points, num_cells, count):
    """As the features of a network that has learnt nothing yet."""
    queries = unit(np.ones((64, 16)) + np.random.default_rng(0).normal(0, 1e-3, (64, 16)))
    rows, scores = ivf.build(points, num_cells=num_cells).best(queries, count)
    assert len(set(rows.tolist())) == len(rows) == min(count, 20_000)
    np.testing.assert_allclose(scores, (queries @ points[rows].T).max(axis=0), atol=0.01)


@pytest.mark.parametrize("num_cells", [None, 200])
def test_few_parts_find_nearly_all(points, num_cells):
    queries = near(points, 64)
    expected = best_by_sorting(points, queries, 10)[0]
    assert recall(ivf.build(points, num_cells=num_cells, probes=8).search(queries, 10)[0], expected) > 0.9


@pytest.mark.parametrize("num_cells", [None, 40])
def test_more_points_than_the_probed_parts_hold(points, num_cells):
    rows, _ = ivf.build(points, num_cells=num_cells, probes=1).search(near(points, 4), 3000)
    assert (rows >= 0).mean() > 0.95


def test_cells_follow_centres_that_moved(points):
    before = ivf.build(points)
    moved = unit(points + np.random.default_rng(5).normal(0, 0.1, points.shape))
    after = ivf.build(moved, previous=before, probes=16)
    assert after.cells.shape == before.cells.shape
    assert not np.array_equal(after.cells, before.cells)
    queries = near(moved, 64)
    expected = best_by_sorting(moved, queries, 10)[0]
    followed = recall(after.search(queries, 10)[0], expected)
    anew = recall(ivf.build(moved, probes=16).search(queries, 10)[0], expected)
    assert followed > max(0.9, anew - 0.03)


@pytest.mark.parametrize(
    ("name", "settings"), [("annoy", {"num_trees": 30}), ("faiss", {"probes": 16}), ("usearch", {})]
)
def test_installed_libraries_answer_alike(points, name, settings):
    if name not in indexes.available():
        pytest.skip(f"{name} is not installed: pip install '.[ann]'")
    queries = near(points, 64)
    index = indexes.INDEXES[name][0](points, seed=1, **settings)
    expected_rows, _ = best_by_sorting(points, queries, 10)
    rows, scores = index.search(queries, 10)
    assert rows.dtype == np.int64
    assert recall(rows, expected_rows) > 0.9
    assert (np.diff(scores, axis=1) <= 1e-6).all()
    np.testing.assert_allclose(scores, np.einsum("bd,bkd->bk", queries, points[rows]), atol=1e-5)
    assert index.num_bytes >= points.nbytes


def test_orders_of_a_library_are_put_right():
    rows, scores = libraries._ordered(np.array([[3, 4, -1]]), np.array([[0.1, 0.2, -np.inf]]))
    assert rows.tolist() == [[4, 3, -1]]
    assert scores[0, 0] == 0.2


@pytest.mark.parametrize("num_points", [1, 5, 31, 200, 4097])
@pytest.mark.parametrize("count", [1, 3, 8, 5000])
def test_the_largest_of_each_query(num_points, count):
    count = min(count, num_points)
    # Whole numbers, so that many are equal.
    random = np.random.default_rng(num_points)
    points, queries = (random.integers(-3, 4, (rows, 5)).astype(np.float32) for rows in (num_points, 6))
    numbers = largest.largest(queries, points, count)
    assert [len(set(row)) for row in numbers.tolist()] == [count] * 6
    products = queries @ points.T
    found = np.sort(np.take_along_axis(products, numbers, axis=1), axis=1)
    np.testing.assert_array_equal(found, np.sort(products, axis=1)[:, num_points - count :])


@pytest.mark.filterwarnings("ignore:invalid value")
def test_the_largest_are_numbers_of_points_also_where_products_are_none():
    """As those of a training that has diverged: nothing is read outside the points then."""
    queries = np.array([[np.nan, 1], [np.inf, -np.inf], [1, 1]], np.float32)
    points = np.random.default_rng(0).standard_normal((3000, 2)).astype(np.float32)
    numbers = largest.largest(queries, points, 7)
    assert numbers.min() >= 0
    assert numbers.max() < 3000
    assert [len(set(row)) for row in numbers.tolist()] == [7] * 3
