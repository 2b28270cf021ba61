"""Generalised-mean (GeM) pooling of a map to one value a channel."""

import keras
import tensorflow as tf

from ..errors import UserError

LEAST_ACTIVATION = 1e-6
LEAST_LEARNT_P = 0.1


def check_p(p: float) -> None:
    """Raise UserError unless ``p`` is a power that GeM can take."""
    if not 0 < p < float("inf"):
        raise UserError(
            f"--gem_p {p}: the power of GeM pooling must be above 0 and finite; 1 is the average, 3 MultiGrain's"
        )


def gem(maps: tf.Tensor, p) -> tf.Tensor:
    """The generalised mean of each channel over the map: (mean of max(x, 1e-6)^p)^(1/p).

    1 is the average, and p to infinity the maximum. MultiGrain (Berman et al., 2019, https://arxiv.org/abs/1902.05509),
    equation 1; Radenovic et al., 2018, https://arxiv.org/abs/1711.02512.

    Args:
      maps: float32 or float64 [b, H, W, C], of any H and W.
      p: a number, or a scalar tensor of the maps' dtype that gradients flow to.

    Returns:
      [b, C].
    """
    p = tf.convert_to_tensor(p, maps.dtype)
    maps = tf.maximum(maps, tf.constant(LEAST_ACTIVATION, maps.dtype))
    # The mean of s x is s times the mean of x: with s = 1 / largest, no power of any p leaves the range of float32.
    largest = tf.stop_gradient(tf.reduce_max(maps, axis=[1, 2], keepdims=True))
    means = tf.reduce_mean((maps / largest) ** p, axis=[1, 2])
    return largest[:, 0, 0] * means ** (1 / p)


@keras.saving.register_keras_serializable(package="towers")
class GeM(keras.layers.Layer):
    """``gem`` as a layer, [b, H, W, C] -> [b, C].

    Args:
      p: the power, or the first one where it is learnt.
      learnt: whether p is a weight; below 0.1 it acts as 0.1.
    """

    def __init__(self, p: float = 3.0, learnt: bool = False, **kwargs):
        check_p(p)
        super().__init__(**kwargs)
        self.p = p
        self.learnt = learnt
        self.power = None

    def build(self, input_shape):
        if self.learnt:
            self.power = self.add_weight(name="p", shape=(), initializer=keras.initializers.Constant(self.p))

    def call(self, inputs):
        return gem(inputs, tf.maximum(self.power.value, LEAST_LEARNT_P) if self.learnt else self.p)

    def get_config(self):
        return {**super().get_config(), "p": self.p, "learnt": self.learnt}
