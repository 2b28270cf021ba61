"""Layers that Keras lacks, or has in a slower or less exact form.

Every layer computes in its own dtype policy: float64 stays float64 throughout, and under a mixed policy statistics and
everything after the last map of a network are float32 (``wide_dtype``).
"""

import zlib

import keras
import tensorflow as tf

from ..distribution import sum_over_towers

STANDARDIZATIONS = ("fixed", "per_image")


def wide_dtype() -> str:
    """Type of the weights under the global policy: float32 under the mixed policies, else the type of everything."""
    return keras.config.dtype_policy().variable_dtype


def layer_seed(seed: int, name: str) -> int:
    """Seed of the layer ``name``: its first weights depend on nothing else than (seed, name, shape)."""
    return zlib.crc32(f"{seed}/{name}".encode())


def kaiming_fan_out(seed: int, name: str, filters: int, kernel_area: int = 1) -> keras.initializers.Initializer:
    """N(0, 2 / (filters x kernel area)), as PyTorch and MXNet count it: groups do not lessen the fan."""
    return keras.initializers.RandomNormal(stddev=(2 / (filters * kernel_area)) ** 0.5, seed=layer_seed(seed, name))


@keras.saving.register_keras_serializable(package="towers")
class Standardization(keras.layers.Layer):
    """Bring pictures [b, H, W, 3] of 0..255 to about -1..1 (``fixed``) or to mean 0 and deviation 1 (``per_image``).

    ``fixed`` is (x - 127.5) / 128; ``per_image`` is facenet's prewhitening, (x - mean) / max(std, 1 / sqrt(n)) over the
    n = 3HW values of a picture.
    """

    def __init__(self, kind: str, **kwargs):
        super().__init__(**kwargs)
        self.kind = kind

    def call(self, inputs):
        if self.kind == "fixed":
            return (inputs - 127.5) / 128
        mean, variance = tf.nn.moments(inputs, [1, 2, 3], keepdims=True)
        count = tf.cast(tf.reduce_prod(tf.shape(inputs)[1:]), inputs.dtype)
        return (inputs - mean) / tf.maximum(tf.sqrt(variance), count**-0.5)

    def get_config(self):
        return {**super().get_config(), "kind": self.kind}


@keras.saving.register_keras_serializable(package="towers")
class BatchNormalization(keras.layers.Layer):
    """Normalise the last axis over all others: (x - mean) / sqrt(variance + epsilon) * gamma + beta.

    In training the statistics are the batch's, of this tower or, ``synchronized``, of all towers, and the moving ones
    take them in: moving = momentum * moving + (1 - momentum) * batch, with the variance divided by n (as Keras does;
    PyTorch and cuDNN divide by n - 1 there). Statistics are never of a smaller type than float32.

    Unlike Keras' layer it uses the fused kernel where there is one, and synchronises by one collective a layer instead
    of three. All towers must hold the same moving mean, as the training step sees to.

    Ioffe and Szegedy, 2015, https://arxiv.org/abs/1502.03167.

    Args:
      momentum: share of the old moving statistics that a step keeps.
      scale: whether there is a gamma.
      center: whether there is a beta.
    """

    def __init__(self, momentum=0.9, epsilon=1e-3, scale=True, center=True, synchronized=False, **kwargs):
        super().__init__(**kwargs)
        self.momentum = momentum
        self.epsilon = epsilon
        self.scale = scale
        self.center = center
        self.synchronized = synchronized

    def build(self, input_shape):
        def weight(name, initializer, trainable):
            return self.add_weight(
                name=name, shape=input_shape[-1:], initializer=initializer, trainable=trainable, autocast=False
            )

        self.gamma = weight("gamma", "ones", True) if self.scale else None
        self.beta = weight("beta", "zeros", True) if self.center else None
        self.moving_mean = weight("moving_mean", "zeros", False)
        self.moving_variance = weight("moving_variance", "ones", False)

    def call(self, inputs, training=False):
        training = training and self.trainable
        fused = len(inputs.shape) == 4 and inputs.dtype != tf.float64 and not (training and self.synchronized)
        outputs, mean, variance = (self._fused if fused else self._composed)(inputs, training)
        if training:
            for moving, batch in ((self.moving_mean, mean), (self.moving_variance, variance)):
                moving.assign(self.momentum * moving.value + (1 - self.momentum) * batch)
        return outputs

    def _fused(self, inputs, training):
        like = self.moving_mean.value
        outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=inputs,
            scale=tf.ones_like(like) if self.gamma is None else self.gamma.value,
            offset=tf.zeros_like(like) if self.beta is None else self.beta.value,
            mean=tf.constant([], like.dtype) if training else like,
            variance=tf.constant([], like.dtype) if training else self.moving_variance.value,
            epsilon=self.epsilon,
            is_training=training,
        )
        if training:
            # The kernel gives sum of squares / (n - 1), or / 1 where n is 1.
            count = tf.cast(tf.reduce_prod(tf.shape(inputs)[:-1]), variance.dtype)
            variance *= tf.maximum(count - 1, 1) / count
        return outputs, mean, variance

    def _composed(self, inputs, training):
        values = tf.cast(inputs, self.moving_mean.value.dtype)
        if not training:
            mean, variance = self.moving_mean.value, self.moving_variance.value
        elif self.synchronized:
            mean, variance = self._moments_of_all_towers(values)
        else:
            mean, variance = tf.nn.moments(values, list(range(len(values.shape) - 1)))
        outputs = tf.nn.batch_normalization(
            values,
            mean,
            variance,
            None if self.beta is None else self.beta.value,
            None if self.gamma is None else self.gamma.value,
            self.epsilon,
        )
        return tf.cast(outputs, inputs.dtype), mean, variance

    def _moments_of_all_towers(self, values):
        axes = list(range(len(values.shape) - 1))
        # E[x^2] - E[x]^2 cancels where the mean is large against the deviation; taken about the moving mean, which all
        # towers share, it does not, and the sums still travel in one collective.
        shift = self.moving_mean.value
        shifted = values - shift
        count = tf.cast(tf.reduce_prod(tf.shape(values)[:-1]), values.dtype)
        sums = sum_over_towers(
            tf.concat([tf.reduce_sum(shifted, axes), tf.reduce_sum(shifted**2, axes), count[tf.newaxis]], axis=0)
        )
        channels = values.shape[-1]
        offset = sums[:channels] / sums[-1]
        variance = sums[channels:-1] / sums[-1] - offset**2
        return shift + offset, tf.maximum(variance, 0)

    def get_config(self):
        own = ("momentum", "epsilon", "scale", "center", "synchronized")
        return {**super().get_config(), **{name: getattr(self, name) for name in own}}


@keras.saving.register_keras_serializable(package="towers")
class PReLU(keras.layers.Layer):
    """x where x > 0, else slope * x, with one learned slope a channel, or one for all (0.25 at first).

    One product with chosen factors: Keras' relu(x) - slope * relu(-x) takes 1.6 times as long on a CPU.
    He et al., 2015, https://arxiv.org/abs/1502.01852.

    Args:
      shared: one slope for all channels.
    """

    def __init__(self, shared=False, **kwargs):
        super().__init__(**kwargs)
        self.shared = shared

    def build(self, input_shape):
        self.slope = self.add_weight(
            name="slope",
            shape=(1,) if self.shared else input_shape[-1:],
            initializer=keras.initializers.Constant(0.25),
        )

    def call(self, inputs):
        return inputs * tf.where(inputs > 0, tf.ones([], inputs.dtype), tf.convert_to_tensor(self.slope))

    def get_config(self):
        return {**super().get_config(), "shared": self.shared}


@keras.saving.register_keras_serializable(package="towers")
class PairConv2D(keras.layers.Layer):
    """Convolution of [b, H, W, C] in groups of two channels: each output sees its own channel and its partner's.

    The same function as a convolution with ``groups = C / 2`` and C filters, stride 1, "same" padding, no bias.
    TensorFlow runs grouped convolutions on a CPU only through XLA, hundreds of times slower than two depthwise ones.

    Weights: ``kernel`` [k, k, C, 2]: [..., c, 0] weighs channel c for output c, [..., c, 1] its partner (c + 1 where c
    is even, else c - 1).

    Args:
      kernel_size: k, in pixels.
    """

    def __init__(self, kernel_size: int, kernel_initializer="glorot_uniform", **kwargs):
        super().__init__(**kwargs)
        self.kernel_size = kernel_size
        self.kernel_initializer = keras.initializers.get(kernel_initializer)

    def build(self, input_shape):
        self.kernel = self.add_weight(
            name="kernel",
            shape=(self.kernel_size, self.kernel_size, input_shape[-1], 2),
            initializer=self.kernel_initializer,
        )

    def call(self, inputs):
        kernel = tf.convert_to_tensor(self.kernel)
        _, height, width, channels = inputs.shape
        pairs = tf.reshape(inputs, [-1, height, width, channels // 2, 2])
        partners = tf.reshape(tf.reverse(pairs, [-1]), [-1, height, width, channels])
        own = tf.nn.depthwise_conv2d(inputs, kernel[..., :1], [1, 1, 1, 1], "SAME")
        return own + tf.nn.depthwise_conv2d(partners, kernel[..., 1:], [1, 1, 1, 1], "SAME")

    def get_config(self):
        initializer = keras.initializers.serialize(self.kernel_initializer)
        return {**super().get_config(), "kernel_size": self.kernel_size, "kernel_initializer": initializer}


@keras.saving.register_keras_serializable(package="towers")
class NormAwareWeights(keras.layers.Layer):
    """Scale each pixel of a map [b, H, W, C] to the mean norm of its picture's pixels: all directions count alike.

    Of "GNAP" in InsightFace, which takes the mean over the batch too: a picture's embedding would then depend on its
    neighbours in the batch.
    """

    def call(self, inputs):
        squares = tf.reduce_sum(inputs**2, axis=-1, keepdims=True)
        # A pixel of zeros has no direction, and the square root no gradient there.
        norms = tf.sqrt(tf.maximum(squares, 1e-12))
        return inputs * (tf.reduce_mean(norms, axis=[1, 2], keepdims=True) / norms)


@keras.saving.register_keras_serializable(package="towers")
class ScaledAdd(keras.layers.Layer):
    """x + scale * residual, for inputs [x, residual] of one shape."""

    def __init__(self, scale: float, **kwargs):
        super().__init__(**kwargs)
        self.scale = scale

    def call(self, inputs):
        shortcut, residual = inputs
        return shortcut + self.scale * residual

    def get_config(self):
        return {**super().get_config(), "scale": self.scale}


@keras.saving.register_keras_serializable(package="towers")
class LocalResponseNormalization(keras.layers.Layer):
    """x / (1 + alpha / 5 * (sum of x^2 over the 5 nearest channels)) ^ 0.75, at each pixel of [b, H, W, C].

    Krizhevsky et al., 2012, section 3.3, with the values of the Caffe networks: k = 1, alpha = 1e-4 over n = 5,
    beta = 0.75. Sums are never of a smaller type than float32; TensorFlow's own op has no float64.
    """

    def call(self, inputs):
        values = tf.cast(inputs, wide_dtype())
        squares = tf.pad(values**2, [[0, 0], [0, 0], [0, 0], [2, 2]])
        channels = inputs.shape[-1]
        sums = tf.add_n([squares[..., shift : shift + channels] for shift in range(5)])
        # A power of -0.75 gives gradients that differ by 4e-9 from one number of towers to another, after what
        # TensorFlow's arithmetic optimizer makes of it.
        return tf.cast(values / (1 + 1e-4 / 5 * sums) ** 0.75, inputs.dtype)
