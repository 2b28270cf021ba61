"""Triplet losses on the squared Euclidean distances of a batch, with the mining that chooses the triplets."""

from typing import NamedTuple

import tensorflow as tf

from ..errors import UserError
from . import at_least_float32
from .mining import Positives, Triplets, count_violations, find_positives, hardest, random_violators

MINING_RULES = ("facenet", "semihard", "batch_hard", "batch_all")


class Embedded(NamedTuple):
    """Pictures after the network: embeddings [b, D], labels int64 [b], positions int64 [b] in the stream, unique."""

    embeddings: tf.Tensor
    labels: tf.Tensor
    positions: tf.Tensor


class TripletLosses(NamedTuple):
    """losses [b]: sum over the anchor's triplets; weights [b]: their number; metrics: name -> scalar."""

    losses: tf.Tensor
    weights: tf.Tensor
    metrics: dict[str, tf.Tensor]


def check_options(mining: str, alpha: float, soft_margin: bool) -> None:
    """Raise UserError where triplets cannot be mined so."""
    if mining not in MINING_RULES:
        raise UserError(f"--mining {mining}: unknown; choose one of {', '.join(MINING_RULES)}")
    if not 0 < alpha < float("inf"):
        raise UserError(f"--alpha {alpha}: the margin between squared distances must be above 0; facenet's is 0.2")
    if soft_margin and mining == "batch_all":
        raise UserError(
            "--soft_margin with --mining batch_all: without a margin every triplet counts, hard or not; "
            "choose batch_hard, facenet or semihard"
        )


def squared_distances(one: tf.Tensor, other: tf.Tensor) -> tf.Tensor:
    """Squared Euclidean distances of [b, D] to [B, D], by one matrix product: [b, B], never negative."""
    products = tf.matmul(one, other, transpose_b=True)
    squares = tf.reduce_sum(one**2, axis=1)[:, None] + tf.reduce_sum(other**2, axis=1)[None, :]
    return tf.maximum(squares - 2.0 * products, 0.0)


def triplet_losses(
    anchors: Embedded, candidates: Embedded, *, mining: str, alpha: float, soft_margin: bool = False, seed: int = 0
) -> TripletLosses:
    """Mine triplets and give max(0, d_ap - d_an + alpha) on squared distances d, or softplus(d_ap - d_an).

    Positives and negatives come from the candidates; the anchors are among these, found by position. Gradients flow
    through all three pictures of a triplet; the choice itself has none. Rules:

    - ``facenet``: each unordered pair of a person once, the earlier position as anchor; a negative drawn uniformly from
      those with d_an < d_ap + alpha (facenet's ``select_triplets``). Pairs without one are dropped.
    - ``semihard``: the same with d_ap < d_an besides (Schroff et al. 2015, section 3.2).
    - ``batch_hard``: each anchor with its farthest positive and nearest negative; of equal ones the first candidate.
      Every anchor with a positive and a negative has weight 1, active or not (Hermans et al. 2017, equation 5).
    - ``batch_all``: every triplet with a positive loss (ibid., equation 6), as a mean over those.

    Args:
      anchors: embeddings [b, D], any float type; computed in float32 at least.
      candidates: embeddings [B, D].
      alpha: margin; with soft_margin it still decides what facenet and semihard draw from, and what counts as active.
      seed: with the positions of anchor and positive it keys the draw; so the split over towers does not matter.

    Returns:
      Losses and weights [b]; those of an anchor without triplets are 0, and the loss of an embedding that is not
      finite is NaN. Metrics: ``pairs``, the pairs of anchor and positive looked at (batch_hard: anchors); ``active``,
      the share of pairs (batch_hard: anchors, batch_all: triplets) with d_an < d_ap + alpha;
      ``positive_distance`` and ``negative_distance``, mean d_ap and d_an of the triplets, 0 where there are none.

    Raises:
      UserError: an unknown rule, alpha not positive, or soft_margin with batch_all.
    """
    check_options(mining, alpha, soft_margin)
    embeddings = at_least_float32(anchors.embeddings)
    distances = squared_distances(embeddings, at_least_float32(candidates.embeddings))
    different = anchors.labels[:, None] != candidates.labels[None, :]
    drawn = mining in ("facenet", "semihard")
    positives = find_positives(
        anchors.labels, anchors.positions, candidates.labels, candidates.positions, each_pair_once=drawn
    )
    fixed = tf.stop_gradient(distances)
    if mining == "batch_all":
        result = _all_violations(distances, fixed, different, positives, alpha)
    elif drawn:
        triplets = random_violators(
            fixed,
            different,
            positives,
            anchors.positions,
            candidates.positions,
            alpha=alpha,
            semihard=mining == "semihard",
            seed=seed,
        )
        result = _of_triplets(distances, triplets, _count(positives.valid, distances.dtype), alpha, soft_margin)
    else:
        triplets = hardest(fixed, different, positives)
        result = _of_triplets(distances, triplets, _count(triplets.used, distances.dtype), alpha, soft_margin)
    # No comparison with a NaN holds, so an anchor that is not finite would otherwise pass for one without triplets.
    poison = 0.0 * tf.reduce_sum(tf.stop_gradient(embeddings), axis=1)
    return result._replace(losses=result.losses + poison)


def _of_triplets(distances, triplets: Triplets, num_pairs, alpha: float, soft_margin: bool) -> TripletLosses:
    zero = tf.zeros([], distances.dtype)
    positive = tf.gather(distances, triplets.positive, batch_dims=1)
    negative = tf.gather(distances, triplets.negative, batch_dims=1)
    gaps = positive - negative
    losses = tf.nn.softplus(gaps) if soft_margin else tf.nn.relu(gaps + alpha)
    weights = tf.reduce_sum(tf.cast(triplets.used, distances.dtype), axis=1)
    num_triplets = tf.reduce_sum(weights)
    metrics = {
        "pairs": num_pairs,
        "active": tf.math.divide_no_nan(_count(triplets.used & (negative < positive + alpha), zero.dtype), num_pairs),
        "positive_distance": tf.math.divide_no_nan(
            tf.reduce_sum(tf.where(triplets.used, positive, zero)), num_triplets
        ),
        "negative_distance": tf.math.divide_no_nan(
            tf.reduce_sum(tf.where(triplets.used, negative, zero)), num_triplets
        ),
    }
    return TripletLosses(tf.reduce_sum(tf.where(triplets.used, losses, zero), axis=1), weights, _detached(metrics))


def _all_violations(distances, fixed, different, positives: Positives, alpha: float) -> TripletLosses:
    """The sum of d_ap - d_an + alpha over the violating triplets, each distance times the triplets it is in.

    The counts are constant but where a triplet starts or ceases to violate, so this has the exact gradient too.
    """
    counts = count_violations(fixed, different, positives, alpha=alpha)
    positive = tf.gather(distances, counts.positive, batch_dims=1)
    positive_sums = tf.reduce_sum(counts.with_positive * positive, axis=1)
    negative_sums = tf.reduce_sum(counts.with_negative * distances, axis=1)
    weights = tf.reduce_sum(counts.with_positive, axis=1)
    num_triplets = tf.reduce_sum(weights)
    valid = tf.cast(positives.valid, distances.dtype)
    num_possible = tf.reduce_sum(
        tf.reduce_sum(valid, axis=1) * tf.reduce_sum(tf.cast(different, distances.dtype), axis=1)
    )
    metrics = {
        "pairs": tf.reduce_sum(valid),
        "active": tf.math.divide_no_nan(num_triplets, num_possible),
        "positive_distance": tf.math.divide_no_nan(tf.reduce_sum(positive_sums), num_triplets),
        "negative_distance": tf.math.divide_no_nan(tf.reduce_sum(negative_sums), num_triplets),
    }
    return TripletLosses(positive_sums - negative_sums + alpha * weights, weights, _detached(metrics))


def _count(condition: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    return tf.reduce_sum(tf.cast(condition, dtype))


def _detached(metrics: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    return {name: tf.stop_gradient(value) for name, value in metrics.items()}
