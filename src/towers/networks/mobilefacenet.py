"""MobileFaceNet in InsightFace's two forms: ``y1`` of its MXNet code and ``mbf`` of its PyTorch code.

Chen et al., 2018, https://arxiv.org/abs/1804.07573. Strided convolutions are padded as TensorFlow does (right and
bottom where the size is even), not on all sides; any picture size will do, for the last kernel takes the size of the
last map.
"""

from functools import partial

import keras

from .embedding import add_embedding_head, standardized_input
from .layers import BatchNormalization, PairConv2D, PReLU, kaiming_fan_out
from .separable import bottleneck, depthwise, pointwise

# Repeats, expansion of the strided unit, expansion of the repeated ones, width of the trunk against that of the first.
STAGES = ((4, 128, 128, 1), (6, 256, 256, 2), (2, 512, 256, 2))
LAST_FILTERS = 512


def mobilefacenet_y1(
    image_size, embedding_size, keep_probability, sync_bn, standardization, seed, embedding_head
) -> keras.Model:
    """``y1``: trunk of 64 and 128 channels, 1.00 M parameters at 128-d; see ``networks.build``.

    The linear layer has no bias: the normalisation after it, whose gamma is fixed at 1, would take it out again.
    """
    norm = partial(BatchNormalization, momentum=0.9, epsilon=1e-3, synchronized=sync_bn)
    images, x = standardized_input(image_size, standardization)
    x = _stem(x, 64, norm, seed)
    x = depthwise(x, 3, 1, "conv2", norm, PReLU, seed)
    x = _trunk(x, 64, norm, seed)
    last_norm = partial(norm, scale=False)
    embeddings = _head(x, embedding_head, embedding_size, keep_probability, norm, last_norm, seed)
    return keras.Model(images, embeddings, name="mobilefacenet_y1")


def mobilefacenet(
    image_size, embedding_size, keep_probability, sync_bn, standardization, seed, embedding_head
) -> keras.Model:
    """``mbf``: trunk of 128 and 256 channels, same expansions, 2.06 M parameters at 512-d; see ``networks.build``."""
    norm = partial(BatchNormalization, momentum=0.9, epsilon=1e-5, synchronized=sync_bn)
    images, x = standardized_input(image_size, standardization)
    x = _stem(x, 128, norm, seed)
    # Its 64 groups stay those of the narrower form, so each holds two channels.
    x = PairConv2D(3, kaiming_fan_out(seed, "conv2_conv", 128, 9), name="conv2_conv")(x)
    x = PReLU(name="conv2_prelu")(norm(name="conv2_bn")(x))
    x = _trunk(x, 128, norm, seed)
    embeddings = _head(x, embedding_head, embedding_size, keep_probability, norm, norm, seed)
    return keras.Model(images, embeddings, name="mobilefacenet")


def _stem(x, filters, norm, seed):
    x = keras.layers.Conv2D(
        filters,
        3,
        2,
        padding="same",
        use_bias=False,
        kernel_initializer=kaiming_fan_out(seed, "conv1_conv", filters, 9),
        name="conv1_conv",
    )(x)
    return PReLU(name="conv1_prelu")(norm(name="conv1_bn")(x))


def _trunk(x, width, norm, seed):
    for stage, (repeats, strided_expansion, expansion, widening) in enumerate(STAGES, start=1):
        filters = width * widening
        x = bottleneck(x, filters, strided_expansion, 3, 2, f"stage{stage}_down", norm, PReLU, seed)
        for index in range(1, repeats + 1):
            name = f"stage{stage}_unit{index}"
            residual = bottleneck(x, filters, expansion, 3, 1, name, norm, PReLU, seed)
            x = keras.layers.Add(name=f"{name}_add")([x, residual])
    return pointwise(x, LAST_FILTERS, "last", norm, PReLU, seed)


def _head(x, head, embedding_size, keep_probability, norm, last_norm, seed):
    initializer = kaiming_fan_out(seed, "embedding", embedding_size)
    return add_embedding_head(
        x,
        head,
        embedding_size,
        keep_probability,
        norm=norm,
        last_norm=last_norm,
        act=PReLU,
        seed=seed,
        initializer=initializer,
    )
