"""GoogLeNet (Szegedy et al., 2014, https://arxiv.org/abs/1409.4842), with its auxiliary classifiers' features.

Convolutions and poolings are padded "same", so that pictures of any size from 65 pixels will do; the last pooling is
over the whole map.
"""

from functools import partial

import keras

from ..distribution import Dropout
from .embedding import standardized_input
from .layers import BatchNormalization, LocalResponseNormalization, layer_seed, wide_dtype

# The auxiliary classifiers pool 5 x 5 of a map of a sixteenth of the picture, rounded up.
LEAST_IMAGE_SIZE = 65
EMBEDDING_SIZE = 1024
AUXILIARY_DROPOUT = 0.7
NORMS = ("bn", "lrn")

# Table 1 of the paper: 1x1; reduction before 3x3, 3x3; reduction before 5x5, 5x5; projection after the pooling.
MODULES = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}
POOLED_AFTER = ("3b", "4e")
AUXILIARY_AFTER = {"4a": "aux1", "4d": "aux2"}


def googlenet(
    image_size, embedding_size, keep_probability, sync_bn, standardization, seed, *, norm: str, auxiliary: bool
) -> keras.Model:
    """GoogLeNet up to its pooled features: 5,973,552 trained parameters in either form; see ``networks.build``.

    With a head of 1000 classes these are the 6,998,552 of the paper's table. Each auxiliary classifier adds its
    features' parameters: 2.16 M at 224 pixels, 0.20 M at 84.

    Args:
      embedding_size: 1024, the channels of the last module; no layer is added.
      keep_probability: the paper's is 0.6. Below 1, the auxiliary features have the paper's dropout of 0.7 too; at 1
        there is no dropout anywhere.
      norm: ``bn``: every convolution has batch normalisation without gamma (the ReLU after it makes one superfluous),
        and no bias; ``lrn``: as in the paper, biases, and local response normalisation after the first and the third.
      auxiliary: whether the model also gives the features [b, 1024] of the classifiers at 4a and 4d, for their heads:
        its outputs are then [embeddings, aux1, aux2].
    """
    conv = partial(_conv, norm=norm, sync_bn=sync_bn, seed=seed)
    images, x = standardized_input(image_size, standardization)
    x = conv(x, 64, 7, 2, name="conv1")
    x = _pool(x, 2, "pool1")
    x = _lrn(x, norm, "lrn1")
    x = conv(x, 64, 1, name="conv2_reduce")
    x = conv(x, 192, 3, name="conv2")
    x = _lrn(x, norm, "lrn2")
    x = _pool(x, 2, "pool2")
    features = []
    for name, filters in MODULES.items():
        x = _module(x, filters, conv, f"inception_{name}")
        if auxiliary and name in AUXILIARY_AFTER:
            features.append(_auxiliary(x, keep_probability < 1, conv, seed, AUXILIARY_AFTER[name]))
        if name in POOLED_AFTER:
            x = _pool(x, 2, f"pool{name[0]}")
    x = keras.layers.GlobalAveragePooling2D(dtype=wide_dtype(), name="global_pool")(x)
    embeddings = _dropout(x, 1 - keep_probability, seed, "dropout")
    return keras.Model(images, [embeddings, *features] if features else embeddings, name="googlenet")


def _conv(x, filters, kernel_size, strides=1, *, name, norm, sync_bn, seed):
    x = keras.layers.Conv2D(
        filters,
        kernel_size,
        strides,
        padding="same",
        use_bias=norm == "lrn",
        kernel_initializer=keras.initializers.HeNormal(layer_seed(seed, f"{name}_conv")),
        name=f"{name}_conv",
    )(x)
    if norm == "bn":
        x = BatchNormalization(momentum=0.9, epsilon=1e-3, scale=False, synchronized=sync_bn, name=f"{name}_bn")(x)
    return keras.layers.ReLU(name=f"{name}_relu")(x)


def _pool(x, strides, name):
    return keras.layers.MaxPooling2D(3, strides, padding="same", name=name)(x)


def _lrn(x, norm, name):
    return LocalResponseNormalization(name=name)(x) if norm == "lrn" else x


def _module(x, filters, conv, name):
    ones, reduce3, threes, reduce5, fives, projection = filters
    branches = [
        conv(x, ones, 1, name=f"{name}_1x1"),
        conv(conv(x, reduce3, 1, name=f"{name}_3x3_reduce"), threes, 3, name=f"{name}_3x3"),
        conv(conv(x, reduce5, 1, name=f"{name}_5x5_reduce"), fives, 5, name=f"{name}_5x5"),
        conv(_pool(x, 1, f"{name}_pool"), projection, 1, name=f"{name}_projection"),
    ]
    return keras.layers.Concatenate(name=f"{name}_concat")(branches)


def _auxiliary(x, drops, conv, seed, name):
    """[b, H, W, C] -> [b, 1024]: average of 5 x 5 in strides of 3, 128 channels, a layer of 1024 with ReLU, dropout."""
    x = keras.layers.AveragePooling2D(5, 3, name=f"{name}_pool")(x)
    x = conv(x, 128, 1, name=name)
    x = keras.layers.Flatten(dtype=wide_dtype(), name=f"{name}_flatten")(x)
    x = keras.layers.Dense(
        1024,
        activation="relu",
        kernel_initializer=keras.initializers.HeNormal(layer_seed(seed, f"{name}_dense")),
        dtype=wide_dtype(),
        name=f"{name}_dense",
    )(x)
    return _dropout(x, AUXILIARY_DROPOUT if drops else 0.0, seed, f"{name}_dropout")


def _dropout(x, rate, seed, name):
    if rate == 0:
        return x
    return Dropout(rate, seed=layer_seed(seed, name) % 2**31, dtype=wide_dtype(), name=name)(x)
