import numpy as np
import pytest
import tensorflow as tf

from towers.errors import UserError
from towers.heads.replicated import ReplicatedHead
from towers.training import optimizers

LABELS = np.array([2, 0, 2], np.int64)


def embeddings_of(dtype):
    return tf.constant(np.random.default_rng(4).normal(size=(3, 4)), dtype)


def test_weights_are_glorot_uniform_by_seed_and_alike_in_every_dtype():
    weights, bias = ReplicatedHead(200, 100, seed=5, dtype="float64").export()
    limit = np.sqrt(6 / 300)
    assert np.abs(weights).max() <= limit
    np.testing.assert_allclose(weights.std(), limit / np.sqrt(3), rtol=0.02)
    assert not bias.any()
    single, _ = ReplicatedHead(200, 100, seed=5).export()
    assert single.dtype == np.float32
    np.testing.assert_array_equal(single, weights.astype(np.float32))
    assert not np.array_equal(weights, ReplicatedHead(200, 100, seed=6, dtype="float64").export()[0])


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_loss_and_gradients_equal_the_closed_form(use_bias, smoothing):
    head = ReplicatedHead(5, 4, use_bias=use_bias, seed=1, dtype="float64")
    bias = np.linspace(-1, 1, 5) if use_bias else np.zeros(5)
    head.restore(head.export()[0], bias if use_bias else None)
    embeddings = embeddings_of("float64")
    with tf.GradientTape() as tape:
        tape.watch(embeddings)
        rows = head.prepare(LABELS)
        losses = head.loss(embeddings, LABELS, rows, smoothing)
        total = tf.reduce_sum(losses)
    by_embeddings, by_rows = tape.gradient(total, [embeddings, rows])

    weights = head.export()[0]
    logits = np.array(embeddings) @ weights.T + bias
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    target = (1 - smoothing) * np.eye(5)[LABELS] + smoothing / 5
    np.testing.assert_allclose(losses, -(target * np.log(shares)).sum(axis=1), rtol=1e-12)
    np.testing.assert_allclose(by_embeddings, (shares - target) @ weights, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(by_rows[0], (shares - target).T @ np.array(embeddings), rtol=1e-10, atol=1e-12)
    assert len(by_rows) == 1 + use_bias
    if use_bias:
        np.testing.assert_allclose(by_rows[1], (shares - target).sum(axis=0), rtol=1e-10, atol=1e-12)


def test_bfloat16_embeddings_give_float32_logits_and_loss():
    head = ReplicatedHead(5, 4, seed=1)
    embeddings = embeddings_of("bfloat16")
    rows = head.prepare(LABELS)
    assert head.logits(embeddings, rows).dtype == tf.float32
    np.testing.assert_array_equal(
        head.loss(embeddings, LABELS, rows), head.loss(tf.cast(embeddings, "float32"), LABELS, rows)
    )


def test_accuracy_is_one_where_the_label_has_the_largest_logit():
    logits = tf.constant([[0.0, 1.0, 2.0], [5.0, 1.0, 2.0], [0.0, 1.0, 0.5]])
    np.testing.assert_array_equal(ReplicatedHead.accuracy(logits, LABELS), [1.0, 1.0, 0.0])


def test_variables_have_stable_names_and_only_weights_decay():
    head = ReplicatedHead(5, 4, seed=1)
    assert head.variables() == {"head/weights": head.weights, "head/bias": head.bias}
    assert [variable.path for variable in head.trainable_variables] == ["head/weights", "head/bias"]
    assert head.decayed_variables == [head.weights]
    assert list(ReplicatedHead(5, 4, use_bias=False, seed=1).variables()) == ["head/weights"]


@pytest.mark.parametrize("use_bias", [True, False])
def test_export_and_restore_are_inverse(use_bias):
    source = ReplicatedHead(5, 4, use_bias=use_bias, seed=1)
    if use_bias:
        source.bias.assign(np.arange(5.0))
    other = ReplicatedHead(5, 4, use_bias=use_bias, seed=2)
    other.restore(*source.export())
    np.testing.assert_array_equal(other.weights.numpy(), source.weights.numpy())
    if use_bias:
        np.testing.assert_array_equal(other.bias.numpy(), np.arange(5.0))


@pytest.mark.parametrize(
    ("weights", "bias"), [(np.ones((6, 4)), np.ones(6)), (np.ones((5, 4)), None), (np.ones((5, 4)), np.ones(4))]
)
def test_restore_refuses_other_shapes_and_changes_nothing(weights, bias):
    head = ReplicatedHead(5, 4, seed=1)
    before = head.weights.numpy()
    with pytest.raises(UserError, match=r"\(5, 4\)"):
        head.restore(weights, bias)
    np.testing.assert_array_equal(head.weights.numpy(), before)


def test_a_head_learns_under_an_optimizer():
    head = ReplicatedHead(5, 4, seed=1)
    optimizer = optimizers.build("MOM")
    optimizer.build(head.trainable_variables)
    embeddings = embeddings_of("float32")
    losses = []
    for _ in range(30):
        with tf.GradientTape() as tape:
            rows = head.prepare(LABELS)
            loss = tf.reduce_mean(head.loss(embeddings, LABELS, rows))
        gradients = tape.gradient(loss, list(rows))
        optimizers.apply_updates(optimizer, gradients, head.trainable_variables, 0.1, tf.constant(True))
        losses.append(float(loss))
    assert losses[-1] < 0.2 * losses[0]
