import numpy as np
import pytest

from towers.evaluation import neighbours
from towers.evaluation.neighbours import recall_at_1


def slow_recall(embeddings, labels):
    hits = queries = 0
    for i, row in enumerate(embeddings):
        others = [j for j in range(len(labels)) if j != i]
        if not any(labels[j] == labels[i] for j in others):
            continue
        queries += 1
        cosines = [row @ embeddings[j] / np.linalg.norm(row) / np.linalg.norm(embeddings[j]) for j in others]
        hits += labels[others[int(np.argmax(cosines))]] == labels[i]
    return hits / queries, queries


@pytest.mark.parametrize("tile", [3, 1024])
def test_recall_at_1_is_the_slow_loops(monkeypatch, tile):
    monkeypatch.setattr(neighbours, "_TILE", tile)
    random = np.random.default_rng(5)
    labels = np.array([*np.repeat(np.arange(8), 4), 90, 91])
    embeddings = random.normal(size=(len(labels), 5)) + 1.5 * random.normal(size=(92, 5))[labels]
    share, queries = recall_at_1(embeddings, labels)
    assert (share, queries) == pytest.approx(slow_recall(embeddings, labels))
    assert queries == 32
    assert 0.2 < share < 1


def test_names_are_labels_and_the_picture_itself_is_not_found():
    embeddings = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.1], [0.1, 1.0]])
    assert recall_at_1(embeddings, ["a", "a", "b", "b"]) == (0.0, 4)
    assert recall_at_1(embeddings, ["a", "b", "a", "b"]) == (1.0, 4)


def test_nobody_with_two_pictures_is_no_recall():
    share, queries = recall_at_1(np.eye(3), [0, 1, 2])
    assert np.isnan(share)
    assert queries == 0
