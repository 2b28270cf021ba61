"""How every network begins and ends: standardised pictures in, an embedding of full precision out."""

from collections.abc import Callable
from typing import NamedTuple

import keras

from ..distribution import Dropout
from .layers import NormAwareWeights, Standardization, kaiming_fan_out, layer_seed, wide_dtype


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


def embedding_layer(x, embedding_size: int, keep_probability: float, norm: Callable | None, seed: int, initializer):
    """[b, C] -> [b, D]: dropout, linear without bias, and ``norm``; without ``norm`` the linear layer has a bias.

    Dropout is there only where it acts, keep_probability < 1. A bias before a normalisation would be taken out again.
    """
    x = _dropout(x, keep_probability, seed)
    x = keras.layers.Dense(
        embedding_size, use_bias=norm is None, kernel_initializer=initializer, dtype=wide_dtype(), name="embedding"
    )(x)
    return x if norm is None else norm(dtype=wide_dtype(), name="embedding_bn")(x)


def add_embedding_head(
    x,
    name: str,
    embedding_size: int,
    keep_probability: float,
    *,
    norm: Callable,
    last_norm: Callable,
    act: Callable,
    seed: int,
    initializer,
):
    """From the last map [b, H, W, C] to embeddings [b, D], by a head of ``EMBEDDING_HEADS``.

    Args:
      norm, act: the network's normalisation and activation, makers of layers; ``last_norm``: that of the embedding.
      initializer: of the linear layer.
    """
    head = EMBEDDING_HEADS[name]
    x = head.reduce(x, norm, act, seed, embedding_size)
    last_norm = last_norm if head.normalized else None
    if name == "GNAP" and x.shape[-1] == embedding_size:
        x = _dropout(x, keep_probability, seed)
        return last_norm(dtype=wide_dtype(), name="embedding_bn")(x)
    return embedding_layer(x, embedding_size, keep_probability, last_norm, seed, initializer)


def _dropout(x, keep_probability, seed):
    if keep_probability == 1:
        return x
    rate = 1 - keep_probability
    return Dropout(rate, seed=layer_seed(seed, "dropout") % 2**31, dtype=wide_dtype(), name="dropout")(x)


def _whole_map(x, norm, act, seed, embedding_size):
    return keras.layers.Flatten(dtype=wide_dtype(), name="head_flatten")(x)


def _normalized_map(x, norm, act, seed, embedding_size):
    return _whole_map(norm(dtype=wide_dtype(), name="head_bn")(x), norm, act, seed, embedding_size)


def _depthwise_map(x, norm, act, seed, embedding_size):
    return global_depthwise(x, norm, seed)


def _average(x, norm, act, seed, embedding_size):
    x = act(dtype=wide_dtype(), name="head_prelu")(norm(dtype=wide_dtype(), name="head_bn")(x))
    return keras.layers.GlobalAveragePooling2D(dtype=wide_dtype(), name="head_pool")(x)


def _separable_map(x, norm, act, seed, embedding_size):
    channels = x.shape[-1]
    x = norm(dtype=wide_dtype(), name="head_bn")(x)
    x = keras.layers.DepthwiseConv2D(
        3,
        2,
        padding="same",
        use_bias=False,
        depthwise_initializer=kaiming_fan_out(seed, "head_depthwise", channels, 9),
        dtype=wide_dtype(),
        name="head_depthwise",
    )(x)
    x = act(dtype=wide_dtype(), name="head_depthwise_prelu")(norm(dtype=wide_dtype(), name="head_depthwise_bn")(x))
    x = _pointwise(x, channels, "head_project", norm, act, seed)
    return _whole_map(x, norm, act, seed, embedding_size)


def _norm_aware_average(x, norm, act, seed, embedding_size):
    if embedding_size > x.shape[-1]:
        x = _pointwise(x, embedding_size, "head_widen", norm, act, seed)
    x = norm(scale=False, dtype=wide_dtype(), name="head_bn")(x)
    x = NormAwareWeights(dtype=wide_dtype(), name="head_weights")(x)
    x = keras.layers.GlobalAveragePooling2D(dtype=wide_dtype(), name="head_pool")(x)
    return norm(scale=False, dtype=wide_dtype(), name="head_pool_bn")(x) if embedding_size < x.shape[-1] else x


def _pointwise(x, filters, name, norm, act, seed):
    x = keras.layers.Conv2D(
        filters,
        1,
        use_bias=False,
        kernel_initializer=kaiming_fan_out(seed, name, filters),
        dtype=wide_dtype(),
        name=name,
    )(x)
    return act(dtype=wide_dtype(), name=f"{name}_prelu")(norm(dtype=wide_dtype(), name=f"{name}_bn")(x))


class EmbeddingHead(NamedTuple):
    """From a map to a vector a picture, and whether the embedding is normalised by a batch normalisation."""

    reduce: Callable
    normalized: bool


# InsightFace's names (`net_output`). Dropout stands before the linear layer of each, as --keep_probability says: E is
# FC and I, F is G. InsightFace's Z, the flattened map itself, has no embedding size and is left out.
EMBEDDING_HEADS = {
    "E": EmbeddingHead(_normalized_map, True),
    "F": EmbeddingHead(_normalized_map, False),
    "FC": EmbeddingHead(_normalized_map, True),
    "G": EmbeddingHead(_normalized_map, False),
    "GAP": EmbeddingHead(_average, True),
    "GDC": EmbeddingHead(_depthwise_map, True),
    "GNAP": EmbeddingHead(_norm_aware_average, True),
    "H": EmbeddingHead(_whole_map, False),
    "I": EmbeddingHead(_normalized_map, True),
    "J": EmbeddingHead(_whole_map, True),
    "SFC": EmbeddingHead(_separable_map, True),
}
