"""Convolutions of the mobile networks: 1 x 1 and depthwise, each with batch normalisation and an activation."""

from collections.abc import Callable

import keras

from .layers import kaiming_fan_out


def pointwise(x, filters: int, name: str, norm: Callable, act: Callable | None, seed: int):
    """1 x 1 convolution without bias, ``norm``, and ``act`` where there is one: [b, H, W, C] -> [b, H, W, filters]."""
    initializer = kaiming_fan_out(seed, f"{name}_conv", filters)
    x = keras.layers.Conv2D(filters, 1, use_bias=False, kernel_initializer=initializer, name=f"{name}_conv")(x)
    x = norm(name=f"{name}_bn")(x)
    return x if act is None else act(name=f"{name}_prelu")(x)


def depthwise(x, kernel_size: int, strides: int, name: str, norm: Callable, act: Callable, seed: int):
    """Depthwise convolution without bias, "same" padding, ``norm`` and ``act``."""
    x = keras.layers.DepthwiseConv2D(
        kernel_size,
        strides,
        padding="same",
        use_bias=False,
        depthwise_initializer=kaiming_fan_out(seed, f"{name}_conv", x.shape[-1], kernel_size**2),
        name=f"{name}_conv",
    )(x)
    return act(name=f"{name}_prelu")(norm(name=f"{name}_bn")(x))


def bottleneck(x, filters, expansion, kernel_size, strides, name, norm, act, seed):
    """Expand to ``expansion`` channels, convolve each, project to ``filters`` without activation."""
    x = pointwise(x, expansion, f"{name}_expand", norm, act, seed)
    x = depthwise(x, kernel_size, strides, f"{name}_depthwise", norm, act, seed)
    return pointwise(x, filters, f"{name}_project", norm, None, seed)
