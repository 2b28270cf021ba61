import math

import numpy as np
import pytest
import tensorflow as tf
from losses import margin_reference as slow

from towers.losses.margin import (
    LogitForm,
    Margin,
    NormStatistics,
    adaface,
    features_of,
    magface,
    softmax_parts,
    with_margin,
)

B, C, D = 5, 7, 4
RANDOM = np.random.default_rng(3)
EMBEDDINGS = RANDOM.normal(size=(B, D)) * 3
LABELS = np.array([2, 0, 6, 2, 5])
ANGLES = RANDOM.uniform(-0.4, 0.4, B)
OFFSETS = RANDOM.uniform(0.0, 0.5, B)
CASES = {
    "softmax": ({}, {"normalised": False, "scale": 1.0}),
    "nsoftmax": ({}, {"scale": 8.0}),
    "arcface": ({"angles": 0.5}, {"scale": 8.0}),
    "cosface": ({"offsets": 0.35}, {"scale": 8.0}),
    "combined": ({"m1": 1.1, "angles": 0.3, "offsets": 0.2}, {"scale": 8.0}),
    "sub-centres": ({"angles": 0.5}, {"scale": 8.0, "sub_centres": 3}),
    "filtered": ({"angles": 0.5}, {"scale": 8.0, "filter_above": 0.3}),
    "filtered sub-centres": ({"offsets": 0.35}, {"scale": 8.0, "filter_above": 0.3, "sub_centres": 2}),
    "of each example": ({"angles": ANGLES, "offsets": OFFSETS, "clipped": True}, {"scale": 8.0}),
}


def weights_of(settings):
    return np.random.default_rng(4).normal(size=(C * settings.get("sub_centres", 1), D))


def found(embeddings, weights, margin, form, by_angles=False):
    """Losses and the gradients of their weighted sum."""
    embeddings, weights = tf.constant(embeddings), tf.constant(weights)
    margin = {name: tf.constant(value) if isinstance(value, np.ndarray) else value for name, value in margin.items()}
    margin["multiple"] = margin.pop("m1", 1.0)
    sources = [embeddings, weights, *([margin["angles"]] if by_angles else [])]
    with tf.GradientTape() as tape:
        tape.watch(sources)
        parts = softmax_parts(features_of(embeddings, form), weights, tf.constant(LABELS), form, Margin(**margin))
        losses = parts.log_sums - parts.targets
        total = tf.reduce_sum(losses * tf.constant(SHARES))
    return losses.numpy(), [value.numpy() for value in tape.gradient(total, sources)]


SHARES = np.array([1.0, 0.5, 2.0, 1.5, 0.25])


@pytest.mark.parametrize("chunk", [0, 3])
@pytest.mark.parametrize("case", CASES)
def test_losses_and_gradients_equal_the_loops(case, chunk):
    margin, settings = CASES[case]
    weights = weights_of(settings)
    losses, (by_embeddings, by_weights) = found(EMBEDDINGS, weights, margin, LogitForm(**{**settings, "chunk": chunk}))

    def total(embeddings, weights):
        return slow.losses(embeddings, weights, LABELS, **margin, **settings) @ SHARES

    np.testing.assert_allclose(losses, slow.losses(EMBEDDINGS, weights, LABELS, **margin, **settings), rtol=1e-10)
    np.testing.assert_allclose(
        by_embeddings, slow.gradient(lambda value: total(value, weights), EMBEDDINGS), rtol=1e-6, atol=1e-7
    )
    np.testing.assert_allclose(
        by_weights, slow.gradient(lambda value: total(EMBEDDINGS, value), weights), rtol=1e-6, atol=1e-7
    )
    if case.startswith("filtered"):
        unfiltered = {**settings, "filter_above": 0.0}
        assert np.abs(slow.losses(EMBEDDINGS, weights, LABELS, **margin, **unfiltered) - losses).max() > 0.01


def test_the_gradient_reaches_the_angles():
    margin, settings = CASES["of each example"]
    weights = weights_of(settings)
    _, gradients = found(EMBEDDINGS, weights, margin, LogitForm(**settings), by_angles=True)

    def total(angles):
        return slow.losses(EMBEDDINGS, weights, LABELS, **{**margin, "angles": angles}, **settings) @ SHARES

    np.testing.assert_allclose(gradients[2], slow.gradient(total, ANGLES), rtol=1e-6)


@pytest.mark.parametrize("chunk", [0, 2])
def test_parts_of_the_classes_add_up(chunk):
    """Two halves of the classes, each with the other's examples absent, give the softmax of all."""
    form = LogitForm(scale=8.0, chunk=chunk)
    weights, features = weights_of({}), features_of(tf.constant(EMBEDDINGS), form)
    whole = softmax_parts(features, tf.constant(weights), tf.constant(LABELS), form, Margin(angles=0.5))
    halves = []
    for start, stop in ((0, 3), (3, C)):
        columns = np.where((start <= LABELS) & (stop > LABELS), LABELS - start, -1)
        halves.append(
            softmax_parts(features, tf.constant(weights[start:stop]), tf.constant(columns), form, Margin(angles=0.5))
        )
    np.testing.assert_allclose(np.logaddexp(*(half.log_sums for half in halves)), whole.log_sums, rtol=1e-12)
    np.testing.assert_allclose(sum(half.targets for half in halves), whole.targets, rtol=1e-12)
    np.testing.assert_allclose(np.maximum(*(half.largest for half in halves)), whole.largest, rtol=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("margin", [Margin(angles=0.5), Margin(1.3, 0.3, 0.2), Margin(offsets=0.35)])
def test_slopes_are_finite_where_the_angle_is_0_or_pi(dtype, margin):
    cosines = tf.constant([1.0, -1.0, 1.0 + 1e-6, -1.0 - 1e-6, 0.3], dtype)
    values, slopes, by_angle = with_margin(cosines, margin)
    assert np.isfinite(values).all()
    assert np.isfinite(slopes).all()
    assert np.isfinite(by_angle).all()
    theta = margin.multiple * math.acos(0.3) + margin.angles
    assert float(values[4]) == pytest.approx(math.cos(theta) - margin.offsets, rel=1e-6)
    assert float(slopes[4]) == pytest.approx(margin.multiple * math.sin(theta) / math.sin(math.acos(0.3)), rel=1e-6)


def test_an_embedding_on_its_class_and_a_zero_one_give_finite_gradients():
    weights = weights_of({}).astype(np.float32)
    embeddings = np.stack([weights[label] for label in LABELS]) * 2
    embeddings[1], embeddings[2] = 0.0, -embeddings[2]
    for margin in ({"angles": 0.5}, {"m1": 1.2, "offsets": 0.1}):
        form = LogitForm()
        with tf.GradientTape() as tape:
            sources = [tf.constant(embeddings), tf.constant(weights)]
            tape.watch(sources)
            settings = Margin(margin.get("m1", 1.0), margin.get("angles", 0.0), margin.get("offsets", 0.0))
            parts = softmax_parts(features_of(sources[0], form), sources[1], tf.constant(LABELS), form, settings)
            total = tf.reduce_sum(parts.log_sums - parts.targets)
        for gradient in tape.gradient(total, sources):
            assert np.isfinite(gradient).all()


def test_magface_margins_and_penalty():
    norms = np.array([5.0, 10.0, 60.0, 110.0, 200.0])
    margin, penalty = magface(tf.constant(norms))
    held = np.array([10.0, 10.0, 60.0, 110.0, 110.0])
    np.testing.assert_allclose(margin.angles, 0.45 + 0.35 * (held - 10) / 100)
    np.testing.assert_allclose(penalty, held / 110**2 + 1 / held)


def test_adaface_margins_follow_the_quality():
    norms = np.array([10.0, 20.0, 30.0, 1e4])
    margin = adaface(tf.constant(norms), 20.0, 5.0)
    quality = np.clip(0.333 * (np.minimum(norms, 100) - 20) / 5.001, -1, 1)
    np.testing.assert_allclose(margin.angles, -0.4 * quality)
    np.testing.assert_allclose(margin.offsets, 0.4 + 0.4 * quality)
    assert margin.clipped


def test_norm_statistics_move_by_their_share_where_kept():
    statistics = NormStatistics(share=0.25, dtype="float64")
    norms = tf.constant([10.0, 14.0, 18.0], tf.float64)
    statistics.update(norms, tf.constant(False))
    assert statistics.mean.numpy() == 20.0
    statistics.update(norms, tf.constant(True))
    assert statistics.mean.numpy() == pytest.approx(0.25 * 14 + 0.75 * 20)
    assert statistics.deviation.numpy() == pytest.approx(0.25 * 4 + 0.75 * 100)
    assert list(statistics.variables()) == ["adaface/norm_mean", "adaface/norm_deviation"]
