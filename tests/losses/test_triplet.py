import numpy as np
import pytest
import scipy.stats
import tensorflow as tf
from losses import triplet_reference as slow

from towers.errors import UserError
from towers.losses.mining import Positives, random_violators
from towers.losses.triplet import MINING_RULES, Embedded, squared_distances, triplet_losses

SETTINGS = [(rule, False) for rule in MINING_RULES] + [(rule, True) for rule in ("facenet", "semihard", "batch_hard")]
POSITIONS = 2**33 + 7


def random_batch(seed=0, num_people=5, num_images=6, size=4):
    """Unit vectors drawn to their person's direction, people in mixed order."""
    random = np.random.default_rng(seed)
    labels = random.permutation(np.repeat(np.arange(num_people), num_images)) * 3 + 1
    embeddings = random.normal(size=(num_people * 3 + 1, size))[labels] + random.normal(size=(len(labels), size))
    return embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True), labels


def tied_batch():
    """Points of a coarse grid: many equal distances, many copies, and every sum of squares exact in float32."""
    random = np.random.default_rng(5)
    return random.integers(-1, 2, (36, 3)) / 4, random.integers(6, size=36)


BATCHES = {
    "random": random_batch(),
    "ties": tied_batch(),
    "unequal people": (random_batch(3)[0], np.sort(np.random.default_rng(4).integers(8, size=30))),
}


def embedded(embeddings, labels, dtype="float64", first=POSITIONS):
    return Embedded(
        tf.constant(embeddings, dtype), tf.constant(labels, tf.int64), first + tf.range(len(labels), dtype=tf.int64)
    )


def computed(batch, **options):
    """Losses, weights, gradient of the sum of the losses, and metrics."""
    with tf.GradientTape() as tape:
        tape.watch(batch.embeddings)
        found = triplet_losses(batch, batch, **options)
        total = tf.reduce_sum(found.losses)
    metrics = {name: value.numpy() for name, value in found.metrics.items()}
    return found.losses.numpy(), found.weights.numpy(), tape.gradient(total, batch.embeddings).numpy(), metrics


@pytest.mark.parametrize("alpha", [0.125, 0.25, 100.0])
@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize(("mining", "soft_margin"), SETTINGS)
def test_the_triplets_losses_and_gradients_of_the_slow_loop(mining, soft_margin, name, alpha):
    embeddings, labels = BATCHES[name]
    distances = slow.squared_distances(embeddings)
    positions = POSITIONS + np.arange(len(labels))
    triplets, num_pairs = slow.mine(distances, labels, positions, mining=mining, alpha=alpha, seed=2**40 + 9)
    losses, weights, gradient = slow.losses_and_gradient(embeddings, triplets, alpha=alpha, soft_margin=soft_margin)
    assert triplets
    for dtype, tolerance in (("float64", 1e-10), ("float32", 1e-5)):
        got = computed(
            embedded(embeddings, labels, dtype), mining=mining, alpha=alpha, soft_margin=soft_margin, seed=2**40 + 9
        )
        assert got[0].dtype == got[1].dtype == dtype
        np.testing.assert_array_equal(got[1], weights)
        np.testing.assert_allclose(got[0], losses, rtol=tolerance, atol=tolerance * losses.max())
        np.testing.assert_allclose(got[2], gradient, rtol=tolerance, atol=tolerance * np.abs(gradient).max())
        metrics = got[3]
        a, p, n = np.array(triplets).T
        np.testing.assert_allclose(metrics["pairs"], num_pairs)
        np.testing.assert_allclose(metrics["positive_distance"], distances[a, p].mean(), rtol=1e-5)
        np.testing.assert_allclose(metrics["negative_distance"], distances[a, n].mean(), rtol=1e-5)
        active = np.count_nonzero(distances[a, n] < distances[a, p] + alpha)
        possible = num_pairs
        if mining == "batch_all":
            possible = sum(np.sum(labels == label) - 1 for label in labels for other in labels if other != label)
        np.testing.assert_allclose(metrics["active"], active / possible, rtol=1e-6)


@pytest.mark.parametrize("semihard", [False, True])
def test_negatives_are_drawn_uniformly_from_the_violators(semihard):
    row = np.array([0.0, 0.5, 0.7, 0.2, 0.5, 0.6, 0.6, 0.9, 0.9, 1.0, 1.2])
    rows, positives, negatives, alpha = 6000, [1, 2], range(3, 11), 0.35
    triplets = random_violators(
        tf.constant(np.tile(row, (rows, 1))),
        tf.constant(np.tile(np.arange(11) >= 3, (rows, 1))),
        Positives(tf.constant(np.tile(positives, (rows, 1)), tf.int32), tf.ones((rows, 2), tf.bool)),
        2**34 + tf.range(rows, dtype=tf.int64),
        tf.range(11, dtype=tf.int64),
        alpha=alpha,
        semihard=semihard,
        seed=1,
    )
    drawn = triplets.negative.numpy()
    assert triplets.used.numpy().all()
    violators = [slow.violators_of(row, p, negatives, alpha, semihard) for p in positives]
    assert [len(indices) for indices in violators] == ([2, 3] if semihard else [4, 7])
    for column, indices in enumerate(violators):
        counts = [np.count_nonzero(drawn[:, column] == index) for index in indices]
        assert sum(counts) == rows
        assert scipy.stats.chisquare(counts).pvalue > 1e-3
    together = np.unique(drawn, axis=0, return_counts=True)[1]
    assert len(together) == len(violators[0]) * len(violators[1])
    assert scipy.stats.chisquare(together).pvalue > 1e-3


def test_draws_of_one_anchor_are_independent_and_change_with_the_seed():
    random = np.random.default_rng(1)
    embeddings = np.concatenate([np.zeros((40, 2)), random.normal(size=(40, 2)) * 0.1])
    labels = np.concatenate([np.zeros(40, int), np.arange(1, 41)])
    batch = embedded(embeddings, labels)
    hit = [
        np.count_nonzero(np.abs(computed(batch, mining="facenet", alpha=10.0, seed=seed)[2][40:]).sum(axis=1))
        for seed in (0, 1)
    ]
    # 780 pairs draw from 40 negatives: all are hit unless pairs share their draws.
    assert hit == [40, 40]
    losses = [computed(batch, mining="facenet", alpha=10.0, seed=seed)[0] for seed in (0, 1, 2**32, 0)]
    assert not np.array_equal(losses[0], losses[1])
    assert not np.array_equal(losses[0], losses[2])
    np.testing.assert_array_equal(losses[0], losses[3])


@pytest.mark.parametrize(
    ("mining", "soft_margin", "losses", "weights"),
    [
        # d_ap = 1 both ways; from the anchor at 0: d_an = 4, from the one at 1: d_an = 1 and d_ap - d_an + 3.5 = 3.5.
        ("batch_all", False, [0.5, 3.5, 0.0], [1, 1, 0]),
        ("batch_hard", False, [0.5, 3.5, 0.0], [1, 1, 0]),
        ("batch_hard", True, [np.log1p(np.exp(-3.0)), np.log(2.0), 0.0], [1, 1, 0]),
        # The pair once, its earlier picture as the anchor.
        ("facenet", False, [0.5, 0.0, 0.0], [1, 0, 0]),
        ("semihard", False, [0.5, 0.0, 0.0], [1, 0, 0]),
    ],
)
def test_values_by_hand(mining, soft_margin, losses, weights):
    batch = embedded([[0.0], [1.0], [2.0]], [7, 7, 8])
    got = computed(batch, mining=mining, alpha=3.5, soft_margin=soft_margin)
    np.testing.assert_allclose(got[0], losses, rtol=1e-12)
    np.testing.assert_array_equal(got[1], weights)


@pytest.mark.parametrize("mining", ["facenet", "semihard", "batch_all"])
def test_a_negative_exactly_at_the_margin_is_no_violator(mining):
    inside, at = (
        computed(embedded([[0.0], [1.0], [1.5]], [7, 7, 8]), mining=mining, alpha=alpha) for alpha in (1.375, 1.25)
    )
    assert inside[1][0] == 1
    assert at[1][0] == 0


def test_semihard_leaves_out_the_negative_at_the_distance_of_the_positive():
    points, labels = [[0.0], [1.0], [-1.0]], [7, 7, 8]
    assert computed(embedded(points, labels), mining="facenet", alpha=0.2)[1][0] == 1
    assert computed(embedded(points, labels), mining="semihard", alpha=0.2)[1][0] == 0


def test_batch_hard_takes_the_first_of_equal_candidates():
    # From 0: positives at -1 and 1, negatives at -2, 2, 2.
    batch = embedded([[0.0], [-1.0], [1.0], [2.0], [-2.0], [2.0]], [1, 1, 1, 2, 3, 4])
    with tf.GradientTape() as tape:
        tape.watch(batch.embeddings)
        loss = triplet_losses(batch, batch, mining="batch_hard", alpha=10.0).losses[0]
    gradient = tape.gradient(loss, batch.embeddings)[:, 0].numpy()
    np.testing.assert_array_equal(np.flatnonzero(gradient), [0, 1, 3])


@pytest.mark.parametrize("labels", [[1, 2, 3, 4], [5, 5, 5, 5]], ids=["no positives", "no negatives"])
@pytest.mark.parametrize(("mining", "soft_margin"), SETTINGS)
def test_without_triplets_all_is_zero_and_finite(mining, soft_margin, labels):
    losses, weights, gradient, metrics = computed(
        embedded(np.random.default_rng(0).normal(size=(4, 3)), labels),
        mining=mining,
        alpha=0.2,
        soft_margin=soft_margin,
    )
    for value in (losses, weights, gradient, *(metrics[name] for name in metrics if name != "pairs")):
        np.testing.assert_array_equal(value, 0)


@pytest.mark.parametrize("mining", MINING_RULES)
def test_a_margin_that_nobody_violates(mining):
    embeddings = np.repeat(np.eye(3), 2, axis=0)
    losses, weights, gradient, metrics = computed(embedded(embeddings, [0, 0, 1, 1, 2, 2]), mining=mining, alpha=1e-6)
    np.testing.assert_array_equal(losses, 0)
    np.testing.assert_array_equal(gradient, 0)
    assert metrics["active"] == 0
    assert weights.sum() == (6 if mining == "batch_hard" else 0)


@pytest.mark.parametrize("mining", ["facenet", "batch_hard", "batch_all"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_collapsed_batch_has_the_loss_alpha_and_a_finite_gradient(mining, dtype):
    embeddings = np.tile(np.random.default_rng(0).normal(size=(1, 8)), (12, 1))
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    losses, weights, gradient, _ = computed(embedded(embeddings, np.arange(12) // 3, dtype), mining=mining, alpha=0.2)
    np.testing.assert_allclose(losses.sum() / weights.sum(), 0.2, atol=1e-6)
    np.testing.assert_allclose(gradient, 0, atol=1e-4)


@pytest.mark.parametrize("mining", MINING_RULES)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_embedding_that_is_not_finite_makes_its_loss_nan(mining, value):
    embeddings, labels = random_batch()
    embeddings = embeddings.copy()
    embeddings[3, 1] = value
    losses = computed(embedded(embeddings, labels), mining=mining, alpha=0.2)[0]
    assert np.isnan(losses[3])


def test_small_floats_are_mined_in_float32():
    embeddings, labels = random_batch()
    rounded = tf.cast(embeddings, tf.bfloat16)
    got = computed(embedded(embeddings, labels)._replace(embeddings=rounded), mining="batch_all", alpha=0.2)
    exact = computed(embedded(tf.cast(rounded, tf.float64), labels), mining="batch_all", alpha=0.2)
    assert got[0].dtype == np.float32
    np.testing.assert_allclose(got[0], exact[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mining", MINING_RULES)
def test_anchors_of_a_part_give_their_rows_of_the_whole(mining):
    embeddings, labels = random_batch()
    whole = embedded(embeddings, labels)
    want = triplet_losses(whole, whole, mining=mining, alpha=0.2, seed=3)
    parts = [
        triplet_losses(Embedded(*(value[rows] for value in whole)), whole, mining=mining, alpha=0.2, seed=3)
        for rows in (slice(0, 11), slice(11, 30))
    ]
    np.testing.assert_allclose(np.concatenate([part.losses for part in parts]), want.losses, rtol=1e-10)
    np.testing.assert_array_equal(np.concatenate([part.weights for part in parts]), want.weights)
    assert sum(part.metrics["pairs"].numpy() for part in parts) == want.metrics["pairs"].numpy()


def test_squared_distances_are_never_negative():
    rows = tf.constant(np.repeat(np.random.default_rng(0).normal(size=(40, 64)), 2, axis=0), tf.float32)
    distances = squared_distances(rows, rows).numpy()
    assert distances.min() >= 0
    np.testing.assert_allclose(distances, slow.squared_distances(rows.numpy()), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"mining": "hard", "alpha": 0.2}, "--mining hard"),
        ({"mining": "facenet", "alpha": 0.0}, "--alpha 0.0"),
        ({"mining": "facenet", "alpha": float("nan")}, "--alpha nan"),
        ({"mining": "batch_all", "alpha": 0.2, "soft_margin": True}, "--soft_margin"),
    ],
)
def test_what_cannot_be_mined_is_refused(options, named):
    batch = embedded([[0.0], [1.0]], [1, 2])
    with pytest.raises(UserError, match=named) as error:
        triplet_losses(batch, batch, **options)
    assert "\n" not in str(error.value)
