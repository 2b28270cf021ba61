"""Loss functions: tensors of one tower in, one value for each example out; the training step reduces them."""

import tensorflow as tf


def at_least_float32(tensor: tf.Tensor) -> tf.Tensor:
    """The tensor in the type its loss is computed in: float64 stays, every smaller float becomes float32."""
    return tensor if tensor.dtype == tf.float64 else tf.cast(tensor, tf.float32)
