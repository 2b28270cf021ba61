"""Loss scaling: decided from the gradients of all towers together, alike on every tower, or fixed."""

import tensorflow as tf


class LossScale:
    """A factor on the loss that halves on overflow and doubles after many good steps.

    Keras' own optimizer looks at the gradients of the first replica only. Make it inside the towers' scope.

    Args:
      initial: first factor, a power of two; it multiplies a sum over a tower's batch, not a mean.
      growth_interval: good steps in a row before the factor doubles; None: it stays as it is.
    """

    def __init__(self, initial: float = 2.0**10, growth_interval: int | None = 2000):
        self.growth_interval = growth_interval
        self.scale = tf.Variable(initial, dtype=tf.float32, trainable=False, name="loss_scale")
        self.good_steps = tf.Variable(0, dtype=tf.int64, trainable=False, name="good_steps")

    def value(self) -> tf.Tensor:
        """The factor of this step, float32."""
        return tf.convert_to_tensor(self.scale)

    def update(self, keep: tf.Tensor) -> None:
        """Inside ``Towers.run``: take in whether all gradients were finite."""
        if self.growth_interval is None:
            return
        good_steps = tf.where(keep, self.good_steps + 1, tf.zeros([], tf.int64))
        grown = good_steps >= self.growth_interval
        factor = tf.where(keep, tf.where(grown, 2.0, 1.0), 0.5)
        self.scale.assign(tf.clip_by_value(self.scale * factor, 1.0, 2.0**24))
        self.good_steps.assign(tf.where(grown, tf.zeros([], tf.int64), good_steps))

    def variables(self) -> dict:
        return {"scale": self.scale, "good_steps": self.good_steps}
