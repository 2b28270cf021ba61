"""MnasNet as InsightFace's MXNet code has it for faces (Tan et al., 2019, https://arxiv.org/abs/1807.11626).

Its particulars are kept: the kernel of a sequence is that of its first unit and the others take 3 x 3, the first unit
has no shortcut, each PReLU has one slope for all channels, and the first convolution keeps the size of the picture.
"""

from functools import partial

import keras

from .embedding import add_embedding_head, standardized_input
from .layers import BatchNormalization, PReLU, kaiming_fan_out
from .separable import bottleneck, depthwise, pointwise

# Expansion, filters, units, stride and kernel of the first unit; filters are multiplied by the network's width.
SEQUENCES = (
    (3, 24, 3, 2, 3),
    (3, 40, 3, 2, 5),
    (6, 80, 3, 2, 5),
    (6, 96, 2, 1, 3),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)
STEM_FILTERS, SEPARABLE_FILTERS, LAST_FILTERS = 32, 16, 1024


def mnasnet(
    image_size, embedding_size, keep_probability, sync_bn, standardization, seed, embedding_head, width
) -> keras.Model:
    """``mnas05`` at ``width`` 0.5: 0.93 M parameters with 256-d embeddings; see ``networks.build``."""
    norm = partial(BatchNormalization, momentum=0.9, epsilon=1e-5, synchronized=sync_bn)
    act = partial(PReLU, shared=True)
    images, x = standardized_input(image_size, standardization)
    filters = int(STEM_FILTERS * width)
    x = keras.layers.Conv2D(
        filters,
        3,
        padding="same",
        use_bias=False,
        kernel_initializer=kaiming_fan_out(seed, "stem_conv", filters, 9),
        name="stem_conv",
    )(x)
    x = act(name="stem_prelu")(norm(name="stem_bn")(x))
    x = depthwise(x, 3, 1, "separable_depthwise", norm, act, seed)
    x = pointwise(x, int(SEPARABLE_FILTERS * width), "separable_project", norm, act, seed)
    for number, (expansion, filters, units, strides, kernel_size) in enumerate(SEQUENCES, start=1):
        filters = int(filters * width)
        name = f"sequence{number}_unit1"
        x = bottleneck(x, filters, expansion * x.shape[-1], kernel_size, strides, name, norm, act, seed)
        for index in range(2, units + 1):
            name = f"sequence{number}_unit{index}"
            residual = bottleneck(x, filters, expansion * filters, 3, 1, name, norm, act, seed)
            x = keras.layers.Add(name=f"{name}_add")([x, residual])
    x = pointwise(x, int(LAST_FILTERS * width), "last", norm, act, seed)
    embeddings = add_embedding_head(
        x,
        embedding_head,
        embedding_size,
        keep_probability,
        norm=norm,
        last_norm=partial(norm, scale=False),
        act=act,
        seed=seed,
        initializer=kaiming_fan_out(seed, "embedding", embedding_size),
    )
    return keras.Model(images, embeddings, name="mnasnet")
