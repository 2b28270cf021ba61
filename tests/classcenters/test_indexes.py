import numpy as np
import pytest

from towers.classcenters import indexes
from towers.classcenters.indexes import exact, forest, ivf, largest, libraries
from towers.classcenters.indexes.ranking import best_of_lists, unit

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
    np.testing.assert_array_equal(index.points, points[index.rows])
    assert index.parts.shape == (50, 10, 16)
    part = np.repeat(np.arange(500), np.diff(index.bounds))[::50]
    cell, some = part // 10, index.points[::50]
    assert nearest_share(some, index.cells[None], cell) > 0.999
    assert nearest_share(some, index.parts[cell], part % 10) > 0.999


def test_few_points_in_a_cell_are_one_part(points):
    index = ivf.build(points[:3000])
    np.testing.assert_array_equal(index.parts[:, 0], index.cells)
    assert len(index.bounds) == len(index.cells) + 1


def test_a_cell_with_fewer_points_than_parts_or_none():
    crowd = unit(np.random.default_rng(2).normal(size=(400, 8)) + 20 * np.eye(8)[0])
    points = np.concatenate([crowd, -crowd[:2]])
    cells = np.array([crowd[0], -crowd[0], 9 * np.eye(8)[7]], np.float32)
    parts, part_of = ivf._parts(points, cells, np.repeat([0, 1], [400, 2]), np.random.default_rng(0))
    assert parts.shape == (3, 3, 8)
    assert np.isfinite(parts).all()
    assert set(part_of[:400]) == {0, 1, 2}
    assert set(part_of[400:]) <= {3, 4, 5}
    np.testing.assert_array_equal(parts[2], np.repeat(cells[2:], 3, axis=0))
    order = np.argsort(part_of, kind="stable")
    bounds = np.searchsorted(part_of[order], np.arange(10))
    rows, _ = ivf.InvertedFile(cells, parts, points[order], order, bounds, 9).search(points[-2:], 2)
    assert sorted(rows[0]) == [400, 401]


@pytest.mark.parametrize("num_cells", [40, 500])
def test_all_parts_are_an_exact_search(points, num_cells):
    queries = near(points, 9)
    rows, scores = ivf.build(points, num_cells=num_cells, probes=len(points)).search(queries, 30)
    expected_rows, expected_scores = best_by_sorting(points, queries, 30)
    np.testing.assert_allclose(scores, expected_scores, rtol=1e-5, atol=1e-6)
    assert recall(rows, expected_rows) > 0.9999


@pytest.mark.parametrize("num_cells", [30, 500])
def test_a_search_is_that_of_a_loop_over_the_queries(points, num_cells):
    """More queries than are compared with parts at once."""
    index = ivf.build(points, num_cells=num_cells, probes=5)
    queries = near(points, 150)
    rows, scores = index.search(queries, 12)
    num_parts = index.parts.shape[0] * index.parts.shape[1]
    for query, found, own_scores in zip(queries, rows, scores, strict=True):
        cells = np.argsort(-(index.cells @ query))[: 10 if num_cells == 30 else 5]
        numbers = (cells[:, None] * index.parts.shape[1] + np.arange(index.parts.shape[1])).ravel()
        nearness = index.parts.reshape(num_parts, -1)[numbers] @ query
        parts = numbers[np.argsort(-nearness)[:5]]
        places = np.concatenate([np.arange(index.bounds[part], index.bounds[part + 1]) for part in parts])
        expected = np.sort(index.points[places] @ query)[::-1][:12]
        np.testing.assert_allclose(own_scores[: len(expected)], expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(points[found[found >= 0]] @ query, own_scores[found >= 0], rtol=1e-5, atol=1e-6)


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
