import numpy as np
import pytest
import sklearn.metrics

from towers.errors import BadData
from towers.evaluation import retrieval
from towers.evaluation.retrieval import Ranked, nearest, normalised, positive_ranks


def ranked(*ranks):
    return Ranked([np.array(own) for own in ranks], np.arange(len(ranks)), np.zeros(0, np.int64))


def random_embeddings(count, size=8, seed=0, classes=12):
    random = np.random.default_rng(seed)
    labels = random.integers(classes, size=count)
    centres = np.random.default_rng(99).normal(size=(classes, size))
    return normalised(centres[labels] + 1.5 * random.normal(size=(count, size))), labels


def exact_embeddings(count, seed=0):
    """Products of these have no rounding, so that equal rows tie whatever the shape of the matrix product."""
    embeddings, labels = random_embeddings(count, seed=seed)
    return np.round(64 * embeddings) / 64, labels


@pytest.fixture(params=[1, 500, 1 << 25], ids=["a row a tile", "tiles", "one tile"])
def tile_values(request, monkeypatch):
    monkeypatch.setattr(retrieval, "TILE_VALUES", request.param)


@pytest.mark.usefixtures("tile_values")
def test_nearest_is_a_full_sort():
    queries, gallery = exact_embeddings(30, seed=1)[0], exact_embeddings(200, seed=2)[0]
    gallery[50] = gallery[20]
    gallery[150:160] = gallery[0]
    places, products = nearest(queries, gallery, 25)
    similarities = queries @ gallery.T
    want = np.argsort(-similarities, axis=1, kind="stable")[:, :25]
    np.testing.assert_array_equal(places, want)
    np.testing.assert_allclose(products, np.take_along_axis(similarities, want, axis=1))


def test_nearest_leaves_the_query_itself_out():
    gallery, _ = random_embeddings(40)
    places, _ = nearest(gallery, gallery, 39, own=np.arange(40))
    for row, own in enumerate(places):
        assert sorted(own) == [place for place in range(40) if place != row]
    with pytest.raises(ValueError, match="39 others"):
        nearest(gallery, gallery, 40, own=np.arange(40))


@pytest.mark.usefixtures("tile_values")
@pytest.mark.parametrize("most_counted", [0, 1000])
def test_ranks_are_those_of_a_full_sort(monkeypatch, most_counted):
    monkeypatch.setattr(retrieval, "MOST_COUNTED", most_counted)
    gallery, labels = exact_embeddings(150)
    gallery[30:40] = gallery[7]
    own = np.arange(150)
    own[::3] = -1
    found = positive_ranks(gallery, labels, gallery, labels, own=own)
    similarities = gallery @ gallery.T
    for row in range(150):
        others = [place for place in np.argsort(-similarities[row], kind="stable") if place != own[row]]
        want = [rank for rank, place in enumerate(others) if labels[place] == labels[row]]
        assert found.ranks[row].tolist() == want


def test_measures_equal_scikit_learn():
    gallery, labels = random_embeddings(120)
    queries, query_labels = random_embeddings(25, seed=5)
    found = positive_ranks(queries, query_labels, gallery, labels)
    scores = queries @ gallery.T
    for row, precision in enumerate(retrieval.average_precisions(found)):
        same = labels == query_labels[row]
        assert precision == pytest.approx(sklearn.metrics.average_precision_score(same, scores[row]))
    for k in (1, 3, 10):
        nearest_labels = labels[np.argsort(-scores, axis=1)[:, :k]]
        want = np.mean((nearest_labels == query_labels[:, None]).any(axis=1))
        assert retrieval.recall_at(found, k) == pytest.approx(want)
    of_rows = [
        sklearn.metrics.precision_score(
            labels == label, np.argsort(np.argsort(-row)) < np.count_nonzero(labels == label)
        )
        for label, row in zip(query_labels, scores, strict=True)
    ]
    assert retrieval.r_precision(found) == pytest.approx(np.mean(of_rows))


def test_measures_by_hand():
    # Found first, second and sixth of three; found third of one.
    found = ranked([0, 1, 5], [2])
    assert retrieval.average_precisions(found).tolist() == pytest.approx([(1 + 1 + 3 / 6) / 3, 1 / 3])
    # Trapezoids: (1 + 1)/2, (1 + 1)/2, (2/5 + 3/6)/2 over 3; (0 + 1/3)/2.
    assert retrieval.trapezoid_average_precisions(found).tolist() == pytest.approx([(1 + 1 + 0.45) / 3, 1 / 6])
    assert retrieval.recall_at(found, 1) == 0.5
    assert retrieval.recall_at(found, 3) == 1.0
    assert retrieval.hits_at(found, 4) == pytest.approx((2 + 1) / 2)
    assert retrieval.r_precision(found) == pytest.approx((2 / 3 + 0) / 2)
    assert retrieval.map_at_r(found) == pytest.approx(((1 + 1) / 3 + 0) / 2)


def test_map_at_r_by_hand():
    # Of R = 10 positives the first is at rank 0, and one at rank 9: Musgrave et al. give (1 + 2/10) / 10.
    assert retrieval.map_at_r(ranked([0, 9, *range(20, 28)])) == pytest.approx((1 + 2 / 10) / 10)


def test_a_perfect_ranking_is_1_everywhere():
    found = ranked([0, 1, 2], [0])
    for measure in (retrieval.r_precision, retrieval.map_at_r):
        assert measure(found) == 1
    assert retrieval.recall_at(found, 1) == 1
    assert retrieval.trapezoid_average_precisions(found).tolist() == [1, 1]


def test_queries_without_a_positive_are_named_and_not_counted():
    gallery = np.eye(4)
    labels = np.array([0, 0, 1, 2])
    found = positive_ranks(gallery, labels, gallery, labels, own=np.arange(4))
    assert found.queries.tolist() == [0, 1]
    assert found.without_positive.tolist() == [2, 3]
    assert len(retrieval.average_precisions(found)) == 2


def test_nothing_to_find_is_bad_data():
    gallery = np.eye(3)
    with pytest.raises(BadData, match="2 pictures or more"):
        positive_ranks(gallery, np.arange(3), gallery, np.arange(3), own=np.arange(3))


def test_zero_rows_are_no_directions():
    np.testing.assert_array_equal(normalised(np.array([[0.0, 0.0], [3.0, 4.0]])), [[0, 0], [0.6, 0.8]])
