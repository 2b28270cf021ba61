import numpy as np
import pytest

from towers.evaluation.classification import class_rows, classify


def logits_of(rng, count, classes):
    return rng.normal(size=(count, classes)) * 3


def as_embeddings(logits):
    """Embeddings and class weights whose products are the logits."""
    return logits, np.eye(logits.shape[1]), None


@pytest.mark.parametrize("count", [7, 5000])
def test_figures_equal_a_slow_loop(count):
    rng = np.random.default_rng(1)
    logits, labels = logits_of(rng, count, 9), rng.integers(9, size=count)
    result = classify(*as_embeddings(logits), labels)
    right = {1: 0, 5: 0}
    losses, confusion = [], np.zeros((9, 9), int)
    for row, label in zip(logits, labels, strict=True):
        best = sorted(range(9), key=lambda index, row=row: -row[index])
        confusion[label, best[0]] += 1
        for k in right:
            right[k] += label in best[:k]
        losses.append(np.log(sum(np.exp(value) for value in row)) - row[label])
    assert result.top(1) == pytest.approx(right[1] / count)
    assert result.top(5) == pytest.approx(right[5] / count)
    assert result.loss == pytest.approx(np.mean(losses), rel=1e-12)
    np.testing.assert_array_equal(result.confusion(), confusion)
    assert result.confusion().sum() == len(result) == count


def test_bias_and_weights_make_the_logits():
    rng = np.random.default_rng(2)
    embeddings, weights, bias = rng.normal(size=(50, 4)), rng.normal(size=(6, 4)), rng.normal(size=6) * 5
    labels = np.argmax(embeddings @ weights.T + bias, axis=1)
    assert classify(embeddings, weights, bias, labels).top(1) == 1
    assert classify(embeddings, weights, None, labels).top(1) < 1


def test_equal_logits_are_not_right():
    result = classify(*as_embeddings(np.zeros((3, 6))), np.array([0, 3, 5]))
    assert result.top(1) == 0
    assert result.top(5) == 0
    assert (result.predictions != result.labels).all()


def test_worst_mistakes_are_the_surest():
    logits = np.array([[9.0, 0, 0], [0, 3, 0], [2, 0, 0], [0, 0, 7]])
    result = classify(*as_embeddings(logits), np.array([1, 1, 2, 0]))
    assert result.worst_mistakes(5).tolist() == [0, 3, 2]
    assert result.worst_mistakes(1).tolist() == [0]
    probabilities = np.exp(logits[2]) / np.exp(logits[2]).sum()
    assert result.excess[2] == pytest.approx(probabilities[0] - probabilities[2])


def test_rows_of_classes_with_pictures():
    logits = np.eye(7)[[0, 0, 2, 2, 2]]
    rows = class_rows(classify(*as_embeddings(logits), np.array([0, 1, 1, 1, 2])), list("abcdefg"))
    assert [(row.name, row.pictures, row.top1, row.mistaken_for, row.mistakes) for row in rows] == [
        ("a", 1, 1.0, "", 0),
        ("b", 3, 0.0, "c", 2),
        ("c", 1, 1.0, "", 0),
    ]
