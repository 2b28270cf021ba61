import math

import numpy as np
import pytest
import scipy.stats
import tensorflow as tf
from losses.margin_pairs_reference import slow_losses, slow_weights

from towers.errors import UserError
from towers.losses.margin_pairs import check_options, draw_negatives, margin_losses, negative_weights
from towers.losses.triplet import Embedded

FIRST = 2**33 + 5
SEED = 2**40 + 3


def batch(seed=0, instances=5, copies=3, size=6):
    """Unit vectors, some positive as ReLU maps are, in mixed order of labels."""
    random = np.random.default_rng(seed)
    labels = random.permutation(np.repeat(np.arange(instances), copies)) + 7
    rows = np.abs(random.normal(size=(instances + 7, size))[labels] + random.normal(size=(len(labels), size)))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True), labels


def embedded(rows, labels, dtype="float64"):
    positions = FIRST + tf.range(len(labels), dtype=tf.int64)
    return Embedded(tf.constant(rows, dtype), tf.constant(labels, tf.int64), positions)


def computed(rows, labels, beta, dtype="float64", alpha=0.2):
    whole, beta = embedded(rows, labels, dtype), tf.constant(beta, dtype)
    with tf.GradientTape() as tape:
        tape.watch([whole.embeddings, beta])
        found = margin_losses(whole, whole, beta, alpha=alpha, seed=SEED)
        total = tf.reduce_sum(found.losses)
    gradient, by_beta = tape.gradient(total, [whole.embeddings, beta])
    return found, gradient.numpy(), by_beta.numpy()


@pytest.mark.parametrize("beta", [0.7, 1.2])
@pytest.mark.parametrize("size", [4, 6, 64])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-9), ("float32", 1e-5)])
def test_losses_and_gradients_of_the_slow_loop(size, beta, dtype, tolerance):
    rows, labels = batch(seed=size, size=size)
    losses, active, gradient, by_beta = slow_losses(rows, labels, FIRST + np.arange(len(rows)), beta, 0.2, SEED)
    assert active.sum() > 0
    found, got_gradient, got_by_beta = computed(rows, labels, beta, dtype)
    assert found.losses.dtype == dtype
    np.testing.assert_array_equal(found.active, active)
    np.testing.assert_allclose(found.losses, losses, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(got_gradient, gradient, rtol=tolerance, atol=tolerance * np.abs(gradient).max())
    assert got_by_beta == pytest.approx(by_beta, rel=1e-6)
    np.testing.assert_allclose(found.metrics["active"], active.sum() / (4 * len(rows)), rtol=1e-6)
    assert found.metrics["pairs"] == 2 * len(rows)


@pytest.mark.parametrize("size", [4, 16, 2048])
def test_weights_are_the_law_of_the_paper(size):
    """In log space here and by powers there; 2048 dimensions leave the range of powers, so ratios are compared."""
    distances = np.array([[0.1, 0.5, 0.52, 0.8, 1.1, 1.39, 1.4, 1.7, 0.6]])
    different = np.array([[True] * 8 + [False]])
    weights = negative_weights(tf.constant(distances), tf.constant(different), size).numpy()[0]
    assert weights[0] == weights[1] == 1.0
    assert not weights[6:].any()
    if size == 2048:
        log = (2 - size) * math.log(0.52 / 0.5) - (size - 3) / 2 * math.log((1 - 0.26**2) / (1 - 0.25**2))
        assert math.log(weights[2]) == pytest.approx(log, rel=1e-9)
        assert weights[4] == 0
        return
    law = slow_weights(distances[0], list(range(8)), size)
    np.testing.assert_allclose(weights[:8] / weights.sum(), law, rtol=1e-9)


def test_without_a_candidate_in_reach_all_others_weigh_alike():
    distances, different = tf.constant([[1.5, 1.9, 0.0]]), tf.constant([[True, True, False]])
    np.testing.assert_array_equal(negative_weights(distances, different, 16), [[1, 1, 0]])


@pytest.mark.parametrize("size", [4, 16])
def test_negatives_are_drawn_by_their_weights(size):
    rows, labels = batch(seed=9, instances=8, copies=2, size=size)
    distances = np.array([math.dist(rows[0], row) for row in rows])
    others = [j for j in range(len(rows)) if labels[j] != labels[0]]
    law = slow_weights(distances, others, size)
    weights = negative_weights(tf.constant(distances[None]), tf.constant(labels[None] != labels[0]), size)
    number = 20_000
    positions = tf.constant([FIRST], tf.int64)
    drawn = draw_negatives(weights, positions, FIRST + 1 + tf.range(number, dtype=tf.int64)[None], SEED).numpy()[0]
    counts = np.bincount(drawn, minlength=len(rows))
    assert counts.sum() == counts[others].sum()
    often = law * number >= 5
    assert often.sum() >= 3
    observed = [*counts[others][often], counts[others][~often].sum()]
    expected = [*law[often] * number, law[~often].sum() * number]
    if expected[-1] < 1:
        observed, expected = observed[:-1], np.array(expected[:-1]) * sum(observed[:-1]) / sum(expected[:-1])
    assert scipy.stats.chisquare(observed, expected).pvalue > 1e-3
    # Draws of two pairs of an anchor do not hang together, and another seed draws otherwise.
    together = np.histogram2d(drawn[::2], drawn[1::2], bins=len(rows))[0]
    kept = together[np.ix_(together.sum(1) > 500, together.sum(0) > 500)]
    assert scipy.stats.chi2_contingency(kept).pvalue > 1e-3
    other = draw_negatives(weights, positions, FIRST + 1 + tf.range(number, dtype=tf.int64)[None], SEED + 1)
    assert np.mean(other.numpy()[0] != drawn) > 0.1


def test_anchors_of_a_part_give_their_rows_of_the_whole():
    rows, labels = batch(seed=3)
    whole = embedded(rows, labels)
    part = Embedded(*(values[4:9] for values in whole))
    found, of_whole = (
        margin_losses(a, whole, tf.constant(1.1, tf.float64), alpha=0.2, seed=SEED) for a in (part, whole)
    )
    np.testing.assert_allclose(found.losses, of_whole.losses[4:9], rtol=1e-12)
    np.testing.assert_array_equal(found.active, of_whole.active[4:9])


@pytest.mark.parametrize("labels", [[1, 1, 1, 1], [1, 2, 3, 4]])
def test_without_pairs_all_is_zero_and_finite(labels):
    rows, _ = batch(instances=2, copies=2)
    found, gradient, by_beta = computed(rows, labels, 1.2)
    assert not found.losses.numpy().any()
    assert not found.active.numpy().any()
    assert not gradient.any()
    assert by_beta == 0
    assert all(float(value) == 0 for value in found.metrics.values())


def test_equal_pictures_have_a_finite_gradient():
    rows = np.repeat(np.eye(3), 2, axis=0)
    found, gradient, _ = computed(rows, [0, 0, 1, 1, 2, 2], 1.2, "float32")
    assert np.isfinite(gradient).all()
    # sqrt(2) is farther than 1.2 + 0.2, so only pairs of beta - alpha = 1 would be active: none is.
    assert not found.losses.numpy().any()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_embedding_that_is_not_finite_makes_its_loss_nan(value):
    rows, labels = batch()
    rows[4, 0] = value
    found, _, _ = computed(rows, labels, 1.2)
    assert np.isnan(found.losses[4])


def test_small_floats_are_computed_in_float32():
    rows, labels = batch()
    found = margin_losses(*[embedded(rows, labels, "bfloat16")] * 2, tf.constant(1.2), alpha=0.2)
    assert found.losses.dtype == found.active.dtype == tf.float32


@pytest.mark.parametrize("options", [(0.0, 1.2), (-1.0, 1.2), (0.2, 0.0), (0.2, 2.0), (float("nan"), 1.0)])
def test_what_makes_no_sense_is_refused(options):
    with pytest.raises(UserError, match="--alpha|--beta"):
        check_options(*options)
