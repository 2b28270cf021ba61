"""ResNet (He et al., 2016, https://arxiv.org/abs/1512.03385) in its form v1.5, with GeM pooling.

v1.5 halves the map in the 3 x 3 convolution of a bottleneck instead of the first 1 x 1 one. Strided convolutions are
padded as TensorFlow does (right and bottom where the size is even). Nothing depends on the size of the picture, so a
trained network takes pictures of any size from 32 pixels on.
"""

from functools import partial

import keras

from ..distribution import Dropout
from .embedding import embedding_layer, standardized_input
from .gem import GeM
from .layers import BatchNormalization, kaiming_fan_out, layer_seed, wide_dtype

FILTERS = (64, 128, 256, 512)
BOTTLENECK_EXPANSION = 4
SQUEEZE = 16


def resnet(
    image_size,
    embedding_size,
    keep_probability,
    sync_bn,
    standardization,
    seed,
    *,
    gem_p: float,
    learn_gem_p: bool,
    name: str,
    repeats: tuple[int, int, int, int],
    bottleneck: bool,
    squeeze: bool = False,
) -> keras.Model:
    """A ResNet of four stages; see ``networks.build``.

    Where ``embedding_size`` is the number of channels of the last map (512 with basic blocks, 2048 with bottlenecks),
    the pooled map itself is the embedding, as MultiGrain has it; otherwise a linear layer with a normalisation follows.

    Args:
      image_size: None: pictures of any height and width.
      gem_p, learn_gem_p: the power of the pooling, and whether it is learnt.
      repeats: blocks of each stage.
      bottleneck: blocks of 1 x 1, 3 x 3 and 1 x 1 convolutions instead of two 3 x 3 ones.
      squeeze: a squeeze-and-excitation in each block (Hu et al., 2018, https://arxiv.org/abs/1709.01507), reduction 16.
    """
    norm = partial(BatchNormalization, momentum=0.9, epsilon=1e-5, synchronized=sync_bn)
    conv = partial(_conv, norm=norm, seed=seed)
    images, x = standardized_input(image_size, standardization)
    x = keras.layers.ReLU(name="conv1_relu")(conv(x, 64, 7, 2, name="conv1"))
    x = keras.layers.MaxPooling2D(3, 2, padding="same", name="pool1")(x)
    for stage, (filters, count) in enumerate(zip(FILTERS, repeats, strict=True), start=1):
        for index in range(1, count + 1):
            strides = 2 if stage > 1 and index == 1 else 1
            x = _block(x, filters, strides, bottleneck, squeeze, conv, seed, f"stage{stage}_unit{index}")
    x = GeM(gem_p, learn_gem_p, dtype=wide_dtype(), name="gem")(x)
    if embedding_size != x.shape[-1]:
        x = embedding_layer(
            x, embedding_size, keep_probability, norm, seed, kaiming_fan_out(seed, "embedding", embedding_size)
        )
    elif keep_probability < 1:
        dropout_seed = layer_seed(seed, "dropout") % 2**31
        x = Dropout(1 - keep_probability, seed=dropout_seed, dtype=wide_dtype(), name="dropout")(x)
    return keras.Model(images, x, name=name)


def _conv(x, filters, kernel_size, strides=1, *, name, norm, seed):
    x = keras.layers.Conv2D(
        filters,
        kernel_size,
        strides,
        padding="same",
        use_bias=False,
        kernel_initializer=kaiming_fan_out(seed, f"{name}_conv", filters, kernel_size**2),
        name=f"{name}_conv",
    )(x)
    return norm(name=f"{name}_bn")(x)


def _block(x, filters, strides, bottleneck, squeeze, conv, seed, name):
    shapes = [(filters, 1, 1), (filters, 3, strides), (BOTTLENECK_EXPANSION * filters, 1, 1)]
    if not bottleneck:
        shapes = [(filters, 3, strides), (filters, 3, 1)]
    outputs = shapes[-1][0]
    y = x
    for index, shape in enumerate(shapes, start=1):
        y = conv(y, *shape, name=f"{name}_{index}")
        if index < len(shapes):
            y = keras.layers.ReLU(name=f"{name}_{index}_relu")(y)
    if squeeze:
        y = _squeeze_and_excite(y, seed, f"{name}_se")
    if strides != 1 or x.shape[-1] != outputs:
        x = conv(x, outputs, 1, strides, name=f"{name}_shortcut")
    return keras.layers.ReLU(name=f"{name}_relu")(keras.layers.Add(name=f"{name}_add")([x, y]))


def _squeeze_and_excite(x, seed, name):
    """Weigh each channel by a function of the averages of all channels."""
    channels = x.shape[-1]
    weights = keras.layers.GlobalAveragePooling2D(name=f"{name}_pool")(x)
    for filters, activation, part in ((channels // SQUEEZE, "relu", "down"), (channels, "sigmoid", "up")):
        weights = keras.layers.Dense(
            filters,
            activation=activation,
            kernel_initializer=kaiming_fan_out(seed, f"{name}_{part}", filters),
            name=f"{name}_{part}",
        )(weights)
    weights = keras.layers.Reshape((1, 1, channels), name=f"{name}_reshape")(weights)
    return keras.layers.Multiply(name=f"{name}_scale")([x, weights])


RESNETS = {
    # For two CPU cores: half the work of resnet18.
    "resnet10": partial(resnet, name="resnet10", repeats=(1, 1, 1, 1), bottleneck=False),
    "resnet18": partial(resnet, name="resnet18", repeats=(2, 2, 2, 2), bottleneck=False),
    "resnet50": partial(resnet, name="resnet50", repeats=(3, 4, 6, 3), bottleneck=True),
    "resnet101": partial(resnet, name="resnet101", repeats=(3, 4, 23, 3), bottleneck=True),
    "se_resnet50": partial(resnet, name="se_resnet50", repeats=(3, 4, 6, 3), bottleneck=True, squeeze=True),
}
