"""Which layers THOR looks into, and what it takes from them: inputs as rows, and the gradients of outputs.

A layer is y = rows(x) W with the kernel W as a matrix [d_in, d_out], applied at T positions of each picture: 1 for a
dense layer, the pixels of the output map for a convolution.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import keras
import tensorflow as tf

from ..heads.replicated import ReplicatedHead


class Tap(NamedTuple):
    """A layer that THOR preconditions.

    Attributes:
      name: unique, the path of its kernel.
      kernel: its weight.
      shape: (d_in, d_out) of the kernel as a matrix.
      positions: T, of which statistics are taken from ``sampled`` ones.
      rows: the layer's inputs -> [b * sampled, d_in].
      gradient_rows: gradients of the layer's outputs -> [b * sampled, d_out].
      transposed: whether the kernel is stored as [d_out, d_in].
    """

    name: str
    kernel: keras.Variable
    shape: tuple[int, int]
    positions: int
    sampled: int
    rows: Callable[[tf.Tensor], tf.Tensor]
    gradient_rows: Callable[[tf.Tensor], tf.Tensor]
    transposed: bool = False

    def matrix(self, gradient: tf.Tensor) -> tf.Tensor:
        """The kernel's gradient as [d_in, d_out]."""
        return tf.transpose(gradient) if self.transposed else tf.reshape(gradient, self.shape)

    def unmatrix(self, matrix: tf.Tensor) -> tf.Tensor:
        """The inverse of ``matrix``."""
        return tf.transpose(matrix) if self.transposed else tf.reshape(matrix, self.kernel.shape)


def tapped_layers(network: keras.Model) -> list[keras.layers.Layer]:
    """The dense layers and ungrouped convolutions of a flat network whose outputs are linear in their kernels.

    Depthwise and grouped convolutions, and layers with an activation of their own, are left to plain gradients.
    """
    return [
        layer
        for layer in network.layers
        if isinstance(layer, (keras.layers.Conv2D, keras.layers.Dense))
        and layer.activation is keras.activations.linear
        and layer.trainable
        and getattr(layer, "groups", 1) == 1
        and (isinstance(layer, keras.layers.Conv2D) or len(layer.output.shape) == 2)
    ]


def layer_tap(layer: keras.layers.Layer, largest_side: int | None) -> Tap:
    """The tap of one of ``tapped_layers``; statistics of at most ``largest_side`` positions a side, None: of all."""
    kernel = layer.kernel
    if isinstance(layer, keras.layers.Dense):
        return Tap(kernel.path, kernel, tuple(kernel.shape), 1, 1, _unchanged, _unchanged)
    height, width = layer.output.shape[1:3]
    stride = 1 if largest_side is None else max(1, max(height, width) // largest_side)
    grid = [slice(stride // 2, None, stride)] * 2
    sampled = [len(range(size)[part]) for size, part in zip((height, width), grid, strict=True)]
    *area, _, filters = kernel.shape

    def rows(inputs):
        patches = conv_patches(inputs, area, layer.strides, layer.dilation_rate, layer.padding, stride)
        return tf.reshape(patches, [-1, patches.shape[-1]])

    def gradient_rows(gradients):
        return tf.reshape(gradients[:, grid[0], grid[1]], [-1, filters])

    shape = math.prod(kernel.shape[:-1]), filters
    return Tap(kernel.path, kernel, shape, height * width, math.prod(sampled), rows, gradient_rows)


def head_tap(head: ReplicatedHead) -> Tap:
    """The tap of a linear classifier, whose weights are [C, D]."""
    classes, features = head.weights.shape
    return Tap(head.weights.path, head.weights, (features, classes), 1, 1, _unchanged, _unchanged, transposed=True)


def conv_patches(inputs, area, strides, dilation, padding: str, every: int = 1) -> tf.Tensor:
    """What each position of a convolution's output sees: [b, H, W, C] -> [b, H', W', kh * kw * C].

    The last axis is laid out as the kernel is.

    Args:
      area: (kh, kw); strides, dilation: two numbers each; padding: "same" or "valid".
      every: takes the positions every // 2, every // 2 + every, ... of each side of the output only.
    """
    sizes = inputs.shape[1:3]
    extents = [(side - 1) * rate + 1 for side, rate in zip(area, dilation, strict=True)]
    if padding == "same":
        missing = [
            max((-(-size // step) - 1) * step + extent - size, 0)
            for size, step, extent in zip(sizes, strides, extents, strict=True)
        ]
        inputs = tf.pad(inputs, [[0, 0], *([total // 2, total - total // 2] for total in missing), [0, 0]])
    # The padding is the convolution's own, whatever positions are left out.
    first = [every // 2 * step for step in strides]
    inputs = inputs[:, first[0] :, first[1] :]
    steps = [every * step for step in strides]
    if tuple(area) == (1, 1):
        return inputs[:, :: steps[0], :: steps[1]]
    return tf.image.extract_patches(inputs, [1, *area, 1], [1, *steps, 1], [1, *dilation, 1], "VALID")


class Recording:
    """Stands in for the network while an objective is traced, and notes what the taps need.

    Args:
      network: a model that gives the inputs of the tapped layers, then their outputs, then the network's outputs.
      num_layers: how many layers those are.
    """

    def __init__(self, network: keras.Model, num_layers: int):
        self._network, self._num_layers = network, num_layers
        self._of_layers = [], []
        self._of_heads = {}

    def __call__(self, inputs: tf.Tensor, training: bool = False):
        values = self._network(inputs, training=training)
        layers = self._num_layers
        self._of_layers = values[:layers], values[layers : 2 * layers]
        outputs = values[2 * layers :]
        return outputs[0] if len(outputs) == 1 else outputs

    def note(self, head: ReplicatedHead, embeddings: tf.Tensor, logits: tf.Tensor) -> None:
        """A head made ``logits`` of ``embeddings``."""
        self._of_heads[head.name] = embeddings, logits

    def taken(self, heads: Sequence[ReplicatedHead]) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
        """Inputs and outputs of the tapped layers, then those of ``heads``."""
        noted = [self._of_heads[head.name] for head in heads]
        return (
            [*self._of_layers[0], *(embeddings for embeddings, _ in noted)],
            [*self._of_layers[1], *(logits for _, logits in noted)],
        )


def tapped_network(network: keras.Model, layers: Sequence[keras.layers.Layer]) -> keras.Model:
    """A model of the same layers that gives the inputs, then the outputs of ``layers``, then the network's outputs."""
    inner = [layer.input for layer in layers] + [layer.output for layer in layers]
    return keras.Model(network.inputs[0], [*inner, *network.outputs], name=f"{network.name}_tapped")


def _unchanged(values: tf.Tensor) -> tf.Tensor:
    return values
