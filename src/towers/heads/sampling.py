"""Which classes a sampled softmax sees: those of the batch, and others drawn anew at every step."""

import math

import tensorflow as tf

from ..hashing import keyed_hash

_ROUNDS = 4


def draw_distinct(seed: int, step: tf.Tensor, count: int, num_classes: int) -> tf.Tensor:
    """The first ``count`` entries of a permutation of the classes, a function of (seed, step) alone: int64 [count].

    The permutation is a Feistel network over pairs (left, right) with left * side + right >= num_classes; numbers past
    the last class are permuted again until they are classes, so the cost is that of ``count``, not of C.
    """
    side = math.isqrt(num_classes - 1) + 1 if num_classes > 1 else 1

    def permute(numbers):
        left, right = numbers // side, numbers % side
        for number in range(_ROUNDS):
            if number % 2:
                right = (right + keyed_hash(seed, number, step, left)) % side
            else:
                left = (left + keyed_hash(seed, number, step, right)) % side
        return left * side + right

    def permute_again(drawn):
        # Few are past the last class: a share of 2 / side at most.
        places = tf.where(drawn >= num_classes)
        return [tf.tensor_scatter_nd_update(drawn, places, permute(tf.gather_nd(drawn, places)))]

    return tf.while_loop(
        lambda drawn: tf.reduce_any(drawn >= num_classes),
        permute_again,
        [permute(tf.range(count, dtype=tf.int64))],
    )[0]


def sampled_classes(labels: tf.Tensor, seed: int, step: tf.Tensor, count: int, num_classes: int) -> tf.Tensor:
    """The classes of a step: all those of ``labels``, and so many others that there are ``count`` of both.

    Args:
      labels: [B] int64, of all towers.

    Returns:
      int64 [count], or more where the labels alone are more; ascending, since rows are read and written a third faster
      in their order in memory. The others are the first ones that (seed, step) draws.
    """
    positives = tf.sort(tf.unique(labels)[0])
    num_positives = tf.size(positives)
    drawn = draw_distinct(seed, step, count, num_classes)
    nearest = tf.minimum(tf.searchsorted(positives, drawn), num_positives - 1)
    negatives = tf.boolean_mask(drawn, tf.gather(positives, nearest) != drawn)
    return tf.sort(tf.concat([positives, negatives[: tf.maximum(count - num_positives, 0)]], axis=0))
