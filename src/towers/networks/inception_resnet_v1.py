"""Inception-ResNet-v1 as facenet has it (Szegedy et al., 2016, https://arxiv.org/abs/1602.07261)."""

from functools import partial

import keras

from .embedding import embedding_layer, standardized_input
from .layers import BatchNormalization, ScaledAdd, layer_seed, wide_dtype

# A branch is a list of (filters, kernel size[, stride]); a stride of 2 goes with "valid" padding.
BLOCK35 = (((32, 1),), ((32, 1), (32, 3)), ((32, 1), (32, 3), (32, 3)))
BLOCK17 = (((128, 1),), ((128, 1), (128, (1, 7)), (128, (7, 1))))
BLOCK8 = (((192, 1),), ((192, 1), (192, (1, 3)), (192, (3, 1))))
REDUCTION_A = (((384, 3, 2),), ((192, 1), (192, 3), (256, 3, 2)))
REDUCTION_B = (((256, 1), (384, 3, 2)), ((256, 1), (256, 3, 2)), ((256, 1), (256, 3), (256, 3, 2)))


def inception_resnet_v1(image_size, embedding_size, keep_probability, sync_bn, standardization, seed) -> keras.Model:
    """facenet's network: 23.47 M parameters at 512-d without the moving statistics; see ``networks.build``.

    Batch normalisation has no gamma, a momentum of 0.995 and an epsilon of 0.001; dropout acts between the global
    average and the embedding layer, which has no bias but a normalisation.
    """
    norm = partial(BatchNormalization, momentum=0.995, epsilon=1e-3, scale=False, synchronized=sync_bn)
    conv = partial(_conv, norm=norm, seed=seed)
    images, x = standardized_input(image_size, standardization)
    x = conv(x, 32, 3, 2, "valid", name="conv1a")
    x = conv(x, 32, 3, 1, "valid", name="conv2a")
    x = conv(x, 64, 3, name="conv2b")
    x = keras.layers.MaxPooling2D(3, 2, name="pool3a")(x)
    x = conv(x, 80, 1, name="conv3b")
    x = conv(x, 192, 3, 1, "valid", name="conv4a")
    x = conv(x, 256, 3, 2, "valid", name="conv4b")
    for index in range(1, 6):
        x = _residual(x, BLOCK35, 0.17, conv, seed, f"block35_{index}")
    x = _reduction(x, REDUCTION_A, conv, "reduction_a")
    for index in range(1, 11):
        x = _residual(x, BLOCK17, 0.10, conv, seed, f"block17_{index}")
    x = _reduction(x, REDUCTION_B, conv, "reduction_b")
    for index in range(1, 6):
        x = _residual(x, BLOCK8, 0.20, conv, seed, f"block8_{index}")
    x = _residual(x, BLOCK8, 1.0, conv, seed, "block8_6", activation=False)
    x = keras.layers.GlobalAveragePooling2D(dtype=wide_dtype(), name="global_pool")(x)
    initializer = keras.initializers.GlorotUniform(layer_seed(seed, "embedding"))
    embeddings = embedding_layer(x, embedding_size, keep_probability, norm, seed, initializer)
    return keras.Model(images, embeddings, name="inception_resnet_v1")


def _conv(x, filters, kernel_size, strides=1, padding="same", *, name, norm, seed):
    x = keras.layers.Conv2D(
        filters,
        kernel_size,
        strides,
        padding,
        use_bias=False,
        kernel_initializer=keras.initializers.GlorotUniform(layer_seed(seed, f"{name}_conv")),
        name=f"{name}_conv",
    )(x)
    return keras.layers.ReLU(name=f"{name}_relu")(norm(name=f"{name}_bn")(x))


def _branches(x, branches, conv, name):
    outputs = []
    for number, branch in enumerate(branches, start=1):
        y = x
        for index, (filters, kernel_size, *strides) in enumerate(branch, start=1):
            place = (2, "valid") if strides else (1, "same")
            y = conv(y, filters, kernel_size, *place, name=f"{name}_branch{number}_{index}")
        outputs.append(y)
    return outputs


def _residual(x, branches, scale, conv, seed, name, activation=True):
    mixed = keras.layers.Concatenate(name=f"{name}_concat")(_branches(x, branches, conv, name))
    residual = keras.layers.Conv2D(
        x.shape[-1],
        1,
        kernel_initializer=keras.initializers.GlorotUniform(layer_seed(seed, f"{name}_up")),
        name=f"{name}_up",
    )(mixed)
    x = ScaledAdd(scale, name=f"{name}_add")([x, residual])
    return keras.layers.ReLU(name=f"{name}_relu")(x) if activation else x


def _reduction(x, branches, conv, name):
    pooled = keras.layers.MaxPooling2D(3, 2, name=f"{name}_pool")(x)
    return keras.layers.Concatenate(name=f"{name}_concat")([*_branches(x, branches, conv, name), pooled])
