"""Margin loss on pairs, with negatives drawn by their distance (Wu et al., 2017, https://arxiv.org/abs/1706.07567)."""

from typing import NamedTuple

import tensorflow as tf

from ..errors import UserError
from ..hashing import keyed_hash
from . import at_least_float32
from .mining import find_positives
from .triplet import Embedded, squared_distances

# The authors': no negative weighs more than one at distance 0.5, and none at 1.4 or farther is drawn.
NEAREST, FARTHEST = 0.5, 1.4


class MarginLosses(NamedTuple):
    """losses [b]: sum over the anchor's pairs; active [b]: pairs with a loss above 0; metrics: name -> scalar."""

    losses: tf.Tensor
    active: tf.Tensor
    metrics: dict[str, tf.Tensor]


def check_options(alpha: float, beta: float) -> None:
    """Raise UserError where there is no margin loss of these."""
    if not 0 < alpha < float("inf"):
        raise UserError(f"--alpha {alpha}: the margin must be above 0; MultiGrain's is 0.2")
    if not 0 < beta < 2:
        raise UserError(
            f"--beta {beta}: a distance of unit vectors lies between 0 and 2; MultiGrain's first beta is 1.2"
        )


def negative_weights(distances: tf.Tensor, different: tf.Tensor, embedding_size: int) -> tf.Tensor:
    """Weights [b, B] of candidates as negatives: min(tau, 1 / q(D)), each row as a multiple of its largest.

    q(z) = z^(d-2) (1 - z^2/4)^((d-3)/2) is the density of distances of points at random on the sphere of d dimensions;
    tau = 1 / q(0.5); candidates at 1.4 or farther have weight 0. A row without any other weight gets 1 for every
    candidate of another label. MultiGrain (Berman et al., 2019), section 3.2.

    Args:
      distances: [b, B], Euclidean, of unit vectors.
      different: bool [b, B], whether the candidate has another label.
    """
    z = tf.clip_by_value(distances, NEAREST, FARTHEST)
    dimensions = float(embedding_size)
    logs = (2.0 - dimensions) * tf.math.log(z) - (dimensions - 3.0) / 2.0 * tf.math.log(1.0 - z**2 / 4.0)
    drawable = different & (distances < FARTHEST)
    largest = tf.reduce_max(tf.where(drawable, logs, -float("inf")), axis=1, keepdims=True)
    weights = tf.where(drawable, tf.exp(tf.minimum(logs - largest, 0.0)), 0.0)
    return tf.where(tf.reduce_any(drawable, axis=1, keepdims=True), weights, tf.cast(different, distances.dtype))


def draw_negatives(weights: tf.Tensor, positions, other_positions, seed: int) -> tf.Tensor:
    """One candidate for each pair of anchor and positive, with probability in proportion to its weight.

    Args:
      weights: [b, B]; rows of zeros give the last candidate.
      positions: int64 [b], of the anchors in the stream; other_positions: int64 [b, M], of their positives. With
        ``seed`` they key the draw, so it does not depend on the split over towers.

    Returns:
      int32 [b, M] among the candidates.
    """
    # In float64 a draw of 32 bits times the sum stays below the sum.
    sums = tf.cumsum(tf.cast(weights, tf.float64), axis=1)
    draws = tf.cast(keyed_hash(seed, 0, positions[:, None], other_positions), tf.float64) * 2.0**-32
    chosen = tf.searchsorted(sums, draws * sums[:, -1:], side="right")
    return tf.minimum(chosen, tf.shape(weights)[1] - 1)


def margin_losses(
    anchors: Embedded, candidates: Embedded, beta: tf.Tensor, *, alpha: float, seed: int = 0
) -> MarginLosses:
    """max(0, alpha + D - beta) for each ordered pair of one label, max(0, alpha - D + beta) for its drawn negative.

    D is the Euclidean distance of the unit embeddings and beta the learnt border between pairs of one label and of
    two. Each pair (i, j) of one label draws a negative of i by ``negative_weights``, on its own: the law of the paper.
    (The authors' code draws the m - 1 negatives of an anchor without putting them back.)

    Args:
      anchors: unit embeddings [b, D], any float type; computed in float32 at least. The anchors are among
      candidates: unit embeddings [B, D], found by position.
      beta: scalar; gradients flow to it, and through all three pictures.
      alpha: half the width of the gap around beta.

    Returns:
      Losses and numbers of active pairs [b]; the loss of an embedding that is not finite is NaN. Metrics: ``pairs`` of
      one label; ``active``, the share of all pairs with a loss; ``positive_distance`` and ``negative_distance``, mean D
      of pairs of one label and of two; 0 where there are none.
    """
    own = at_least_float32(anchors.embeddings)
    others = at_least_float32(candidates.embeddings)
    beta = tf.cast(beta, own.dtype)
    positives = find_positives(
        anchors.labels, anchors.positions, candidates.labels, candidates.positions, each_pair_once=False
    )
    different = anchors.labels[:, None] != candidates.labels[None, :]
    used = positives.valid & tf.reduce_any(different, axis=1, keepdims=True)
    fixed = tf.sqrt(squared_distances(tf.stop_gradient(own), tf.stop_gradient(others)))
    # A NaN must not reach the sums that are searched.
    weights = negative_weights(tf.where(tf.math.is_finite(fixed), fixed, 2.0), different, own.shape[1])
    negatives = draw_negatives(weights, anchors.positions, tf.gather(candidates.positions, positives.index), seed)
    positive = _distances(own, others, positives.index)
    negative = _distances(own, others, negatives)
    zero = tf.zeros([], own.dtype)
    losses = [
        tf.where(used, tf.nn.relu(alpha + side * (distances - beta)), zero)
        for side, distances in ((1.0, positive), (-1.0, negative))
    ]
    active = sum(tf.reduce_sum(tf.cast(loss > 0, own.dtype), axis=1) for loss in losses)
    num_pairs = tf.reduce_sum(tf.cast(used, own.dtype))
    metrics = {
        "pairs": num_pairs,
        "active": tf.math.divide_no_nan(tf.reduce_sum(active), 2.0 * num_pairs),
        "positive_distance": tf.math.divide_no_nan(tf.reduce_sum(tf.where(used, positive, zero)), num_pairs),
        "negative_distance": tf.math.divide_no_nan(tf.reduce_sum(tf.where(used, negative, zero)), num_pairs),
    }
    # No comparison with a NaN holds, so an embedding that is not finite could otherwise go unnoticed.
    poison = 0.0 * tf.reduce_sum(tf.stop_gradient(own), axis=1)
    return MarginLosses(
        tf.reduce_sum(losses[0] + losses[1], axis=1) + poison,
        tf.stop_gradient(active),
        {name: tf.stop_gradient(value) for name, value in metrics.items()},
    )


def _distances(own: tf.Tensor, others: tf.Tensor, index: tf.Tensor) -> tf.Tensor:
    """Euclidean distances of own [b, D] to the rows index [b, M] of others [B, D]: [b, M].

    From differences, so they are exact also where they are near 0.
    """
    # The gradient of tf.gather would be sparse, which all_gather cannot carry back.
    rows = tf.gather_nd(others, index[..., None])
    squares = tf.reduce_sum(tf.math.squared_difference(own[:, None], rows), axis=2)
    # Two equal pictures have distance 0, where the root has no gradient.
    return tf.sqrt(tf.maximum(squares, 1e-14))
