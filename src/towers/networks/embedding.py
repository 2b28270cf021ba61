"""How every network begins and ends: standardised pictures in, an embedding of full precision out."""

from collections.abc import Callable

import keras

from ..distribution import Dropout
from .layers import Standardization, kaiming_fan_out, layer_seed, wide_dtype


def standardized_input(image_size: int, standardization: str):
    """The input [b, H, W, 3] of values 0..255, and the standardised pictures."""
    images = keras.Input((image_size, image_size, 3), dtype=wide_dtype(), name="image")
    return images, Standardization(standardization, dtype=wide_dtype(), name="standardization")(images)


def global_depthwise(x, norm: Callable, seed: int, center: bool = True):
    """Weigh and sum each channel over the whole map: [b, H, W, C] -> [b, C].

    The "GDC" of MobileFaceNet (Chen et al., 2018, https://arxiv.org/abs/1804.07573): pixels of a face map do not matter
    alike, as they would in an average.
    """
    _, height, width, channels = x.shape
    x = keras.layers.DepthwiseConv2D(
        (height, width),
        use_bias=False,
        depthwise_initializer=kaiming_fan_out(seed, "global_conv", channels, height * width),
        dtype=wide_dtype(),
        name="global_conv",
    )(x)
    x = norm(center=center, dtype=wide_dtype(), name="global_bn")(x)
    return keras.layers.Flatten(dtype=wide_dtype(), name="global_flatten")(x)


def embedding_layer(x, embedding_size: int, keep_probability: float, norm: Callable, seed: int, initializer):
    """[b, C] -> [b, D]: dropout, linear without bias, and ``norm``.

    Dropout is there only where it acts, keep_probability < 1.
    """
    if keep_probability < 1:
        rate = 1 - keep_probability
        x = Dropout(rate, seed=layer_seed(seed, "dropout") % 2**31, dtype=wide_dtype(), name="dropout")(x)
    x = keras.layers.Dense(
        embedding_size, use_bias=False, kernel_initializer=initializer, dtype=wide_dtype(), name="embedding"
    )(x)
    return norm(dtype=wide_dtype(), name="embedding_bn")(x)
