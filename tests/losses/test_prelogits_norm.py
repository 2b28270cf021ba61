import math

import numpy as np
import pytest
import tensorflow as tf

from towers.losses.prelogits_norm import prelogits_norm


@pytest.mark.parametrize("p", [1.0, 1.5, 2.0, 3.0])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float64", 1e-12)])
def test_equals_the_loop_of_the_definition(p, dtype, tolerance):
    embeddings = np.random.default_rng(1).normal(size=(4, 6))
    expected = [sum((abs(value) + 1e-4) ** p for value in row) ** (1 / p) for row in embeddings]
    norms = prelogits_norm(tf.constant(embeddings, dtype), p)
    assert norms.dtype == dtype
    np.testing.assert_allclose(norms, expected, rtol=tolerance)


def test_values_by_hand():
    embeddings = tf.constant([[3.0, -4.0]], tf.float64)
    np.testing.assert_allclose(prelogits_norm(embeddings, 1.0), [7.0002], rtol=1e-12)
    np.testing.assert_allclose(prelogits_norm(embeddings, math.inf), [4.0001], rtol=1e-12)


@pytest.mark.parametrize("p", [1.0, 2.0])
def test_gradient_is_finite_at_zero(p):
    embeddings = tf.Variable(tf.zeros([2, 3]))
    with tf.GradientTape() as tape:
        norms = prelogits_norm(embeddings, p)
    assert np.isfinite(tape.gradient(norms, embeddings)).all()


def test_bfloat16_is_computed_in_float32():
    assert prelogits_norm(tf.ones([1, 2], tf.bfloat16), 1.0).dtype == tf.float32


@pytest.mark.parametrize("p", [0.0, -1.0, math.nan])
def test_order_must_be_positive(p):
    with pytest.raises(ValueError, match="must be positive"):
        prelogits_norm(tf.ones([1, 2]), p)
