import math

import numpy as np
import pytest
import tensorflow as tf

from towers.errors import UserError
from towers.losses.softmax import softmax_cross_entropy


def slow_cross_entropy(logits, labels, smoothing):
    losses = []
    for row, label in zip(logits, labels, strict=True):
        shares = [math.exp(value - max(row)) for value in row]
        loss = 0.0
        for index, share in enumerate(shares):
            target = (1 - smoothing) * (index == label) + smoothing / len(row)
            loss -= target * math.log(share / sum(shares))
        losses.append(loss)
    return losses


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float64", 1e-12)])
def test_equals_the_loop_of_the_definition(smoothing, dtype, tolerance):
    logits = np.random.default_rng(0).normal(0, 4, (7, 5))
    labels = np.array([0, 4, 2, 2, 1, 3, 0], np.int64)
    losses = softmax_cross_entropy(tf.constant(logits, dtype), tf.constant(labels), smoothing)
    assert losses.dtype == dtype
    np.testing.assert_allclose(losses, slow_cross_entropy(logits, labels, smoothing), rtol=tolerance)


def test_two_equal_logits_give_log_2():
    np.testing.assert_allclose(softmax_cross_entropy(tf.zeros([1, 2]), tf.constant([1])), [math.log(2)], rtol=1e-6)


def test_smoothing_moves_the_best_logits_to_the_smoothed_target():
    target = np.array([[0.9 + 0.1 / 4, 0.025, 0.025, 0.025]])
    logits = tf.Variable(np.log(target))
    with tf.GradientTape() as tape:
        loss = softmax_cross_entropy(logits, tf.constant([0]), 0.1)
    np.testing.assert_allclose(tape.gradient(loss, logits), np.zeros((1, 4)), atol=1e-15)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_small_types_are_computed_in_float32(dtype, smoothing):
    logits = tf.constant([[20.0, 0.0, -20.0], [0.5, 0.25, 8.0]], dtype)
    losses = softmax_cross_entropy(logits, tf.constant([0, 1]), smoothing)
    assert losses.dtype == tf.float32
    np.testing.assert_array_equal(losses, softmax_cross_entropy(tf.cast(logits, "float32"), [0, 1], smoothing))


def test_large_logits_stay_finite_in_loss_and_gradient():
    logits = tf.Variable([[1e4, -1e4, 0.0]])
    with tf.GradientTape() as tape:
        loss = softmax_cross_entropy(logits, tf.constant([1]), 0.1)
    assert np.isfinite(loss).all()
    assert np.isfinite(tape.gradient(loss, logits)).all()


@pytest.mark.parametrize("smoothing", [-0.1, 1.0, math.nan])
def test_smoothing_out_of_range_is_refused(smoothing):
    with pytest.raises(UserError, match="label_smoothing"):
        softmax_cross_entropy(tf.zeros([1, 2]), tf.constant([0]), smoothing)
