"""A network for small pictures and small machines: four convolutions, 0.44 M parameters at 128-d."""

from functools import partial

import keras

from .embedding import embedding_layer, global_depthwise, standardized_input
from .layers import BatchNormalization, PReLU, kaiming_fan_out

FILTERS = (32, 64, 128, 256)
LARGEST_LAST_MAP = 7


def first_stride(image_size: int) -> int:
    """Stride of the first block: 2, or the power of 2 that leaves a last map of 7 pixels a side at most."""
    stride = 2
    while -(-image_size // (8 * stride)) > LARGEST_LAST_MAP:
        stride *= 2
    return stride


def small(image_size, embedding_size, keep_probability, sync_bn, standardization, seed) -> keras.Model:
    """Four blocks of convolution, batch normalisation and PReLU, then a global depthwise one; see ``networks.build``.

    Blocks 2 to 4 halve the map; the first one takes the stride that the size of the picture asks for (1 up to 56
    pixels, 2 up to 112, then 4 ...), so that the cost stays below 60 M multiplications a picture up to 112 pixels.
    """
    norm = partial(BatchNormalization, momentum=0.9, epsilon=1e-3, synchronized=sync_bn)
    images, x = standardized_input(image_size, standardization)
    stride = first_stride(image_size)
    # A kernel narrower than 2 * stride - 1 would let fine lines fall between its samples.
    shapes = [(max(3, 2 * stride - 1), stride)] + [(3, 2)] * 3
    for index, (filters, (kernel_size, strides)) in enumerate(zip(FILTERS, shapes, strict=True), start=1):
        name = f"block{index}"
        x = keras.layers.Conv2D(
            filters,
            kernel_size,
            strides,
            padding="same",
            use_bias=False,
            kernel_initializer=kaiming_fan_out(seed, f"{name}_conv", filters, kernel_size**2),
            name=f"{name}_conv",
        )(x)
        x = norm(name=f"{name}_bn")(x)
        x = PReLU(name=f"{name}_prelu")(x)
    # No beta: the normalisation after the linear layer would take it out again; its gradient would be rounding noise.
    x = global_depthwise(x, norm, seed, center=False)
    initializer = kaiming_fan_out(seed, "embedding", embedding_size)
    embeddings = embedding_layer(x, embedding_size, keep_probability, norm, seed, initializer)
    return keras.Model(images, embeddings, name="small")
