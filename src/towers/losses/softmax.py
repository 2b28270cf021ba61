"""Softmax cross entropy with sparse labels."""

import tensorflow as tf

from ..errors import UserError
from . import at_least_float32


def check_label_smoothing(label_smoothing: float) -> None:
    """Raise UserError unless 0 <= label_smoothing < 1."""
    if not 0.0 <= label_smoothing < 1.0:
        raise UserError(
            f"--label_smoothing {label_smoothing}: a share of the target, at least 0 and below 1; 0.1 is usual"
        )


def softmax_cross_entropy(logits: tf.Tensor, labels: tf.Tensor, label_smoothing: float = 0.0) -> tf.Tensor:
    """Cross entropy of the softmax of ``logits`` with the true class, whose share of the target is 1 - smoothing.

    The target of class c is (1 - label_smoothing) * [c == label] + label_smoothing / C (Szegedy et al. 2015,
    "Rethinking the Inception Architecture", section 7).

    Args:
      logits: [b, C], any float type; computed in float32 at least.
      labels: [b] integers in [0, C).
      label_smoothing: 0 <= label_smoothing < 1.

    Returns:
      [b].

    Raises:
      UserError: label_smoothing is out of its range.
    """
    check_label_smoothing(label_smoothing)
    logits = at_least_float32(logits)
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits)
    if label_smoothing == 0.0:
        return losses
    uniform_losses = -tf.reduce_mean(tf.nn.log_softmax(logits), axis=1)
    return (1.0 - label_smoothing) * losses + label_smoothing * uniform_losses
