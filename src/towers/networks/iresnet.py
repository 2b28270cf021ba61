"""InsightFace's residual networks r18 to r200: "LResNet-E-IR" of ArcFace (Deng et al., 2019).

https://arxiv.org/abs/1801.07698, section 3.2; the depths, the first weights and the normalisation are those of
InsightFace's PyTorch code, whose figures are published. "L" is the stem that keeps the picture's size, "E" the
embedding head, "IR" the unit. Strided convolutions are padded as TensorFlow does (right and bottom where the size is
even), not on all sides.
"""

from functools import partial

import keras

from .embedding import add_embedding_head, standardized_input
from .layers import BatchNormalization, PReLU, layer_seed

# Units of the four stages.
UNITS = {
    "r18": (2, 2, 2, 2),
    "r34": (3, 4, 6, 3),
    "r50": (3, 4, 14, 3),
    "r100": (3, 13, 30, 3),
    "r200": (6, 26, 60, 6),
}
WIDTHS = (64, 128, 256, 512)


def iresnet(
    image_size, embedding_size, keep_probability, sync_bn, standardization, seed, embedding_head, units
) -> keras.Model:
    """A stem and four stages, each of which halves the map: 112 pixels come down to 7; see ``networks.build``.

    With 512-d embeddings r18 to r200 have 24.03, 34.14, 43.59, 65.16 and 118.83 M parameters. ``units``: of each stage.
    """
    norm = partial(BatchNormalization, momentum=0.9, epsilon=1e-5, synchronized=sync_bn)
    conv = partial(_conv, seed=seed)
    images, x = standardized_input(image_size, standardization)
    x = conv(x, WIDTHS[0], 3, 1, "stem_conv")
    x = PReLU(name="stem_prelu")(norm(name="stem_bn")(x))
    for stage, (width, count) in enumerate(zip(WIDTHS, units, strict=True), start=1):
        for index in range(1, count + 1):
            x = _unit(x, width, 2 if index == 1 else 1, f"stage{stage}_unit{index}", norm, conv)
    # PyTorch's own choice for a linear layer: uniform within 1 / sqrt(inputs).
    initializer = keras.initializers.VarianceScaling(
        1 / 3, mode="fan_in", distribution="uniform", seed=layer_seed(seed, "embedding")
    )
    embeddings = add_embedding_head(
        x,
        embedding_head,
        embedding_size,
        keep_probability,
        norm=norm,
        last_norm=partial(norm, scale=False),
        act=PReLU,
        seed=seed,
        initializer=initializer,
    )
    return keras.Model(images, embeddings, name="iresnet")


def _unit(x, width, strides, name, norm, conv):
    """BN, 3 x 3, BN, PReLU, 3 x 3 with the stride, BN; nothing follows the addition."""
    y = norm(name=f"{name}_bn1")(x)
    y = conv(y, width, 3, 1, f"{name}_conv1")
    y = PReLU(name=f"{name}_prelu")(norm(name=f"{name}_bn2")(y))
    y = norm(name=f"{name}_bn3")(conv(y, width, 3, strides, f"{name}_conv2"))
    if strides > 1:
        x = norm(name=f"{name}_shortcut_bn")(conv(x, width, 1, strides, f"{name}_shortcut_conv"))
    return keras.layers.Add(name=f"{name}_add")([x, y])


def _conv(x, filters, kernel_size, strides, name, seed):
    return keras.layers.Conv2D(
        filters,
        kernel_size,
        strides,
        padding="same",
        use_bias=False,
        kernel_initializer=keras.initializers.RandomNormal(stddev=0.1, seed=layer_seed(seed, name)),
        name=name,
    )(x)
