import numpy as np
import pytest
import tensorflow as tf

from towers.losses.center import CenterTable, center_loss

YES, NO = tf.constant(True), tf.constant(False)


def slow_update(centers, embeddings, labels, alfa):
    updated = centers.copy()
    for embedding, label in zip(embeddings, labels, strict=True):
        updated[label] -= (1 - alfa) * (centers[label] - embedding)
    return updated


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float64", 1e-12)])
def test_loss_equals_the_loop_of_the_definition(dtype, tolerance):
    rng = np.random.default_rng(2)
    embeddings, centers = rng.normal(size=(2, 5, 4))
    expected = [
        sum((e - c) ** 2 for e, c in zip(*rows, strict=True)) / 4 for rows in zip(embeddings, centers, strict=True)
    ]
    losses = center_loss(tf.constant(embeddings, dtype), tf.constant(centers, dtype))
    assert losses.dtype == dtype
    np.testing.assert_allclose(losses, expected, rtol=tolerance)


def test_loss_of_bfloat16_is_computed_in_float32():
    losses = center_loss(tf.constant([[1.0, 2.0]], tf.bfloat16), tf.constant([[0.001, 0.0]]))
    assert losses.dtype == tf.float32
    np.testing.assert_allclose(losses, [(0.999**2 + 4) / 2], rtol=1e-6)


def test_only_the_embeddings_get_a_gradient():
    table = CenterTable(2, 2, 0.5)
    embeddings = tf.Variable([[1.0, 3.0]])
    with tf.GradientTape() as tape:
        loss = center_loss(embeddings, table.of(tf.constant([1])))
    np.testing.assert_allclose(tape.gradient(loss, embeddings), [[1.0, 3.0]])
    assert not table.centers.trainable


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float64", 1e-12)])
def test_updates_equal_the_slow_rule_with_repeated_labels(dtype, tolerance):
    rng = np.random.default_rng(3)
    table = CenterTable(5, 3, 0.7, dtype)
    update = tf.function(table.update)
    expected = np.zeros((5, 3))
    for _ in range(4):
        embeddings, labels = rng.normal(size=(6, 3)), rng.integers(0, 4, 6)
        update(tf.constant(embeddings, dtype), tf.constant(labels), YES)
        expected = slow_update(expected, embeddings, labels, 0.7)
    np.testing.assert_allclose(table.centers.numpy(), expected, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(table.of(tf.constant([3, 0])), expected[[3, 0]], rtol=tolerance, atol=tolerance)
    assert not np.any(table.centers.numpy()[4])


def test_a_class_seen_twice_moves_twice():
    table = CenterTable(1, 1, 0.75)
    table.update(tf.constant([[1.0], [1.0]]), tf.constant([0, 0]), YES)
    np.testing.assert_allclose(table.centers.numpy(), [[0.5]])


def test_keep_false_changes_no_bit_even_for_embeddings_that_are_not_finite():
    table = CenterTable(3, 2, 0.5)
    table.centers.assign(np.array([[-0.0, 1.5], [2.0, -3.0], [0.1, 0.2]]))
    before = table.centers.numpy().tobytes()
    table.update(tf.constant([[np.nan, np.inf], [1.0, 1.0]]), tf.constant([0, 1]), NO)
    assert table.centers.numpy().tobytes() == before


def test_the_table_is_a_variable_with_a_stable_name():
    table = CenterTable(3, 2, 0.5)
    assert table.variables() == {"center_loss/centers": table.centers}
    assert table.centers.shape == (3, 2)


@pytest.mark.parametrize("alfa", [-0.1, 1.1])
def test_alfa_out_of_range_is_refused(alfa):
    with pytest.raises(ValueError, match="alfa"):
        CenterTable(3, 2, alfa)
