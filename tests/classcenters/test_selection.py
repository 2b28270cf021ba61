import threading

import numpy as np
import pytest
from classcenters.test_indexes import clustered, near

from towers.classcenters import indexes
from towers.classcenters.following import Following, snapshot
from towers.classcenters.indexes.ranking import unit
from towers.classcenters.selection import Measured, Selector, Settings, measure, steer
from towers.classcenters.spec import MatrixSpec
from towers.classcenters.store import memory_store


@pytest.fixture(scope="module")
def points():
    return clustered(4000, 16, 80)


def batch(points, size=32, seed=2):
    labels = np.random.default_rng(seed).integers(0, len(points) // 8, size) * 8
    return near(points, size, seed), labels


@pytest.fixture(scope="module")
def index_of(points):
    return {None: None, **{name: indexes.INDEXES[name][0](points) for name in ("exact", "forest", "ivf")}}


@pytest.mark.parametrize("name", [None, "exact", "forest", "ivf"])
@pytest.mark.parametrize("num_selected", [40, 500, 3500, 4000, 9000])
def test_labels_are_in_and_every_class_once(points, index_of, name, num_selected):
    features, labels = batch(points)
    rows, local = Selector(4000, index=index_of[name]).select(features, labels, num_selected)
    assert rows.dtype == np.int64
    assert len(rows) == min(num_selected, 4000)
    assert len(np.unique(rows)) == len(rows)
    assert rows.min() >= 0
    assert rows.max() < 4000
    np.testing.assert_array_equal(rows[local], labels)
    own = np.unique(labels)
    np.testing.assert_array_equal(rows[: len(own)], own)


def test_exact_selection_is_the_best_of_the_others_in_order(points):
    features, labels = batch(points)
    rows, _ = Selector(4000, index=indexes.exact.build(points)).select(3 * features, labels, 300)
    own = np.unique(labels)
    largest = (features @ points.T).max(axis=0)
    largest[own] = -np.inf
    expected = np.argsort(-largest)[: 300 - len(own)]
    np.testing.assert_allclose(largest[rows[len(own) :]], largest[expected], rtol=1e-6)


@pytest.mark.parametrize(("name", "rounding"), [("forest", 1e-6), ("ivf", 0.005)])
def test_found_classes_come_best_first_and_nearly_all(points, index_of, name, rounding):
    features, labels = batch(points)
    rows, _ = Selector(4000, index=index_of[name]).select(features, labels, 300)
    own = np.unique(labels)
    largest = (features @ points.T).max(axis=0)
    assert (np.diff(largest[rows[len(own) :]]) <= rounding).all()
    assert measure(rows, points, features, labels).recall > 0.7
    random_rows, _ = Selector(4000).select(features, labels, 300)
    assert measure(random_rows, points, features, labels).recall < 0.2


class Listed:
    """An index that finds the same classes for every query, the first the best."""

    def __init__(self, found):
        self.found = found

    def search(self, queries, k):
        rows = np.full((len(queries), k), -1)
        found = self.found[:k]
        rows[:, : len(found)] = found
        return rows, np.where(rows < 0, -np.inf, -np.arange(k)[None, :])


def test_random_classes_fill_only_what_is_short():
    selector = Selector(1000, index=Listed([7, 3, 500, 11, 2]))
    features, labels = np.ones((2, 4)), np.array([3, 8])
    rows, local = selector.select(features, labels, 5)
    assert rows.tolist() == [3, 8, 7, 500, 11]
    assert local.tolist() == [0, 1]
    rows, _ = selector.select(features, labels, 60)
    assert rows[:6].tolist() == [3, 8, 7, 500, 11, 2]
    assert len(np.unique(rows)) == 60


def test_more_labels_than_selected(points):
    labels = np.arange(50)[::-1]
    rows, local = Selector(4000, index=indexes.exact.build(points)).select(points[:50], labels, 20)
    assert rows.tolist() == list(range(50))
    np.testing.assert_array_equal(local, labels)


def test_equal_features_find_as_many_as_asked_for(points):
    """All queries find the same classes: each must find all of them."""
    features = np.repeat(points[:1], 16, axis=0)
    rows, _ = Selector(4000, index=indexes.ivf.build(points, num_cells=8, probes=4000)).select(
        features, np.zeros(16, int), 64
    )
    assert measure(rows, points, features, np.zeros(16, int)).recall == 1


def test_draws_are_a_function_of_seed_and_step(points):
    features, labels = batch(points)
    first, again, next_step = (Selector(4000, seed=1).select(features, labels, 99, step=step)[0] for step in (5, 5, 6))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, next_step)
    draws = np.concatenate([Selector(4000).select(features, labels, 500, step=step)[0][32:] for step in range(60)])
    assert abs(draws.mean() - 2000) < 40


def test_labels_out_of_range():
    with pytest.raises(ValueError, match="labels"):
        Selector(10).select(np.ones((2, 3)), np.array([1, 10]), 5)


def test_inner_products_are_not_normalised():
    points = np.array([[1, 0], [0.9, 0.1], [9, 9]], np.float32)
    features, labels = np.array([[1.0, 0.0]]), np.array([0])
    assert Selector(3, index=indexes.exact.build(points), normalised=False).select(features, labels, 2)[0].tolist() == [
        0,
        2,
    ]
    assert Selector(3, index=indexes.exact.build(unit(points))).select(features, labels, 2)[0].tolist() == [0, 1]


def test_mass_is_the_softmax_of_the_selected(points):
    features, labels = batch(points, 6)
    rows = np.unique(np.concatenate([labels, np.arange(0, 4000, 9)]))
    logits = 20 * (features @ points.T).astype(np.float64)
    softmax = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert measure(rows, points, features, labels, scale=20).mass == pytest.approx(
        softmax[:, rows].sum(axis=1).mean(), rel=1e-5
    )
    assert measure(np.arange(4000), points, features, labels) == pytest.approx((1.0, 1.0))


def test_steering():
    start = Settings(1000, 20, 100)
    worse = steer(start, Measured(recall=0.5, mass=0.5), start)
    assert worse == (1500, 30, 50)
    better = steer(start, Measured(recall=0.99, mass=0.99), start)
    assert better.num_selected < 1000
    assert better.breadth < 20
    assert better.interval > 100
    assert steer(start, Measured(recall=0.92, mass=0.96), start) == start
    settings = start
    for _ in range(50):
        settings = steer(settings, Measured(0.0, 0.0), start)
    assert settings == (4000, 80, 25)
    for _ in range(100):
        settings = steer(settings, Measured(1.0, 1.0), start)
    assert settings == (250, 5, 400)


@pytest.fixture
def store():
    store = memory_store()
    store.create("w", MatrixSpec(rows=300, columns=8, rule="sgd"))
    return store


def test_a_rebuild_does_not_make_a_step_wait(store):
    go, built = threading.Event(), []

    def build(points, *, seed, previous):
        go.wait(30)
        built.append((seed, previous))
        return indexes.exact.build(points)

    selector = Selector(300)
    following = Following(store, "w", selector, build, interval=10, seed=100)
    following.at_step(0)
    for step in range(1, 25):
        following.at_step(step)
        assert len(selector.select(np.ones((1, 8)), np.array([3]), 20)[0]) == 20
    assert selector.index is None
    go.set()
    following.finish()
    first = selector.index
    np.testing.assert_array_equal(first.points, snapshot(store, "w", normalised=True))
    following.at_step(25)
    following.finish()
    assert built == [(100, None), (125, first)]
    following.at_step(34)
    following.finish()
    assert len(built) == 2


@pytest.mark.parametrize("name", ["forest", "ivf"])
def test_an_index_is_built_again_from_its_snapshot(store, name):
    queries = np.random.default_rng(0).normal(size=(20, 8)).astype(np.float32)
    first, second = Selector(300), Selector(300)
    following = Following(store, "w", first, indexes.INDEXES[name][0], interval=5, seed=3, wait=True)
    for step in (0, 5):
        following.at_step(step)
        store.push("w", np.arange(300), np.random.default_rng(step).normal(size=(300, 8)).astype(np.float32), 0.1)
    resumed = Following(store, "w", second, indexes.INDEXES[name][0], interval=5, seed=3, wait=True)
    resumed.last, resumed.points = following.last, following.points
    resumed.build_again()
    for one, other in zip(first.index.search(queries, 9), second.index.search(queries, 9), strict=True):
        np.testing.assert_array_equal(one, other)
    assert [resumed.due(step) for step in (5, 9, 10)] == [False, False, True]


@pytest.mark.parametrize("wait", [True, False])
def test_only_a_step_that_waits_for_its_rebuild_asks_for_the_rows_of_the_step(store, wait):
    """Others' pushes go on beside a rebuild in the background, so that a version would soon be gone."""
    asked, pull = [], store.pull
    store.pull = lambda name, rows, version=None: asked.append(version) or pull(name, rows, version)
    store.push("w", np.arange(2), np.ones((2, 8), np.float32), 0.1)
    following = Following(store, "w", Selector(300), indexes.exact.build, interval=5, wait=wait)
    following.at_step(1)
    following.finish()
    assert asked == [1 if wait else None]


def test_a_rebuild_tells_what_it_found(store):
    rebuilds = []
    selector = Selector(300)
    following = Following(store, "w", selector, indexes.exact.build, interval=5, wait=True, found=rebuilds.append)
    features, labels = np.random.default_rng(0).normal(size=(4, 8)), np.arange(4)
    following.at_step(0, features, labels, 50)
    store.push("w", np.arange(300), np.ones((300, 8), np.float32), 1.0)
    following.at_step(5, features, labels, 300)
    assert [rebuild.step for rebuild in rebuilds] == [0, 5]
    assert rebuilds[0].drift is None
    assert rebuilds[1].drift > 0.1
    assert rebuilds[0].measured.recall == 1
    assert 0 < rebuilds[0].measured.mass < 1
    assert rebuilds[1].measured.mass == pytest.approx(1)


def test_a_failed_rebuild_is_told(store):
    def build(points, *, seed, previous):
        raise MemoryError("no room")

    following = Following(store, "w", Selector(300), build, interval=5)
    following.at_step(0)
    following._thread.join()
    with pytest.raises(MemoryError, match="no room"):
        following.at_step(1)


def test_rows_outside_the_own_ones():
    selector = Selector(20)
    for own, outside in (([2, 5, 9], [1, 12, 0, 8]), ([], [9, 1, 12, 2, 5, 0, 8]), ([0, 1, 8], [9, 12, 2, 5])):
        assert selector._outside(np.array(own, np.int64), np.array([9, 1, 12, 2, 5, 0, 8])).tolist() == outside
    assert selector._outside(np.array([2]), np.zeros(0, np.int64)).tolist() == []
