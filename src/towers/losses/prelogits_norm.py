"""Norm of the embedding before it is normalised, as a penalty."""

import tensorflow as tf

from . import at_least_float32

_OFFSET = 1e-4


def prelogits_norm(embeddings: tf.Tensor, p: float) -> tf.Tensor:
    """The p-norm of ``abs(embeddings) + 1e-4`` (facenet's ``--prelogits_norm_loss_factor``; its default p is 1).

    Args:
      embeddings: [b, D], un-normalised, any float type; computed in float32 at least.
      p: order of the norm, p > 0; ``math.inf`` gives the largest component.

    Returns:
      [b].

    Raises:
      ValueError: p is not positive.
    """
    if not p > 0:
        raise ValueError(f"p is {p}; the order of the norm must be positive")
    return tf.norm(tf.abs(at_least_float32(embeddings)) + _OFFSET, ord=p, axis=1)
