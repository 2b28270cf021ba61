"""Which triplets of a batch to train on: pure functions of distances, labels and positions, on the device.

An anchor's negatives are sorted by distance once; those that violate the margin for a positive are then a prefix, found
by binary search. Nothing larger than [b, B] is made, and nothing here is differentiated.
"""

from typing import NamedTuple

import tensorflow as tf

from ..hashing import keyed_hash


class Positives(NamedTuple):
    """Candidates of the anchor's own person: index int32 [b, M] among all, ascending; valid bool [b, M].

    M is the number of pictures of the person that has most of them, found on the device.
    """

    index: tf.Tensor
    valid: tf.Tensor


class Triplets(NamedTuple):
    """Up to T triplets an anchor: positive and negative int32 [b, T] among all candidates; used bool [b, T]."""

    positive: tf.Tensor
    negative: tf.Tensor
    used: tf.Tensor


class ViolationCounts(NamedTuple):
    """All violating triplets, by counts: positive int32 [b, M] among all candidates; triplets with it [b, M], and
    triplets with each candidate as the negative [b, B], both of the type of the distances."""

    positive: tf.Tensor
    with_positive: tf.Tensor
    with_negative: tf.Tensor


def find_positives(labels, positions, all_labels, all_positions, *, each_pair_once: bool) -> Positives:
    """Candidates with the anchor's label at another position; at a later one only, where each pair is to come once.

    labels, positions: int64 [b] of the anchors; all_labels, all_positions: int64 [B] of the candidates. Positions are
    unique, so a picture is no positive of itself, wherever its tower lies in the global batch.
    """
    order = tf.argsort(all_labels, stable=True)
    sorted_labels = tf.gather(all_labels, order)
    first = tf.searchsorted(sorted_labels, labels, side="left")[:, None]
    end = tf.searchsorted(sorted_labels, labels, side="right")[:, None]
    place = first + tf.range(tf.reduce_max(end - first))
    index = tf.gather(order, tf.minimum(place, tf.size(order) - 1))
    others = tf.gather(all_positions, index)
    wanted = positions[:, None] < others if each_pair_once else positions[:, None] != others
    return Positives(index, (place < end) & wanted)


def random_violators(
    distances, different, positives: Positives, positions, all_positions, *, alpha, semihard: bool, seed: int
) -> Triplets:
    """For each pair of anchor and positive one negative, uniform among those with d_an < d_ap + alpha.

    With semihard the negative lies also farther than the positive, d_ap < d_an: FaceNet (Schroff et al. 2015, section
    3.2); without, it may lie nearer: what facenet's code does. Pairs without such a negative are not used.

    Args:
      distances: [b, B], squared.
      different: bool [b, B], whether the candidate is of another person.
      positions, all_positions: int64 [b] and [B]; with ``seed`` they key the draw of a pair.
    """
    # A NaN must not reach the sort: its comparisons would contradict each other.
    negated, order = tf.math.top_k(
        tf.where(different & tf.math.is_finite(distances), -distances, -float("inf")), k=tf.shape(distances)[1]
    )
    ascending = -negated
    positive_distances = tf.gather(distances, positives.index, batch_dims=1)
    end = tf.searchsorted(ascending, positive_distances + alpha, side="left")
    start = tf.searchsorted(ascending, positive_distances, side="right") if semihard else tf.zeros_like(end)
    num = tf.maximum(end - start, 0)
    draws = keyed_hash(seed, 0, positions[:, None], tf.gather(all_positions, positives.index))
    # In integers, floor(u * num) is below num and the same on every device.
    pick = tf.cast(tf.bitwise.right_shift(draws * tf.cast(num, tf.int64), tf.constant(32, tf.int64)), tf.int32)
    chosen = tf.minimum(start + pick, tf.shape(distances)[1] - 1)
    return Triplets(positives.index, tf.gather(order, chosen, batch_dims=1), positives.valid & (num > 0))


def hardest(distances, different, positives: Positives) -> Triplets:
    """One triplet an anchor: its farthest positive and its nearest negative; of equal ones the first candidate.

    Batch hard of Hermans et al. 2017, "In Defense of the Triplet Loss", equation 5. Used is every anchor that has a
    positive and a negative. distances [b, B], different bool [b, B].
    """
    lowest = -float("inf")
    # top_k, because it is the one that promises the first of equal values.
    positive_distances = tf.where(positives.valid, tf.gather(distances, positives.index, batch_dims=1), lowest)
    place = tf.math.top_k(positive_distances, k=1).indices
    negative = tf.math.top_k(tf.where(different, -distances, lowest), k=1).indices
    used = tf.reduce_any(positives.valid, axis=1, keepdims=True) & tf.reduce_any(different, axis=1, keepdims=True)
    return Triplets(tf.gather(positives.index, place, batch_dims=1), negative, used)


def count_violations(distances, different, positives: Positives, *, alpha) -> ViolationCounts:
    """How many triplets with d_an < d_ap + alpha each positive and each negative of an anchor takes part in.

    Here the few thresholds d_ap + alpha are sorted instead of the many negatives: each negative is placed among them.
    distances [b, B], squared; different bool [b, B].
    """
    thresholds = tf.gather(distances, positives.index, batch_dims=1) + alpha
    usable = positives.valid & tf.math.is_finite(thresholds)
    num_positives = tf.shape(thresholds)[1]
    negated, order = tf.math.top_k(tf.where(usable, -thresholds, float("inf")), k=num_positives)
    reached = tf.searchsorted(-negated, tf.where(different, distances, float("inf")), side="right")
    row = tf.range(tf.shape(distances)[0])[:, None] * (num_positives + 1)
    histogram = tf.math.unsorted_segment_sum(
        tf.ones_like(reached), reached + row, tf.shape(distances)[0] * (num_positives + 1)
    )
    nearer = tf.cumsum(tf.reshape(histogram, [-1, num_positives + 1]), axis=1)[:, :-1]
    return ViolationCounts(
        tf.gather(positives.index, order, batch_dims=1),
        tf.cast(nearer, distances.dtype),
        tf.cast(num_positives - reached, distances.dtype),
    )
