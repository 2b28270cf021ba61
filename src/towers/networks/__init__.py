"""Networks by name: ``build("small", image_size=112, embedding_size=128)``."""

from collections.abc import Callable
from typing import NamedTuple

import keras

from ..errors import UserError
from .inception_resnet_v1 import inception_resnet_v1
from .layers import STANDARDIZATIONS
from .mobilefacenet import mobilefacenet, mobilefacenet_y1
from .roles import decayed_variables, moving_statistics
from .small import small

__all__ = ["NETWORKS", "build", "decayed_variables", "moving_statistics"]


class Network(NamedTuple):
    """A function that makes a network, and the least side of a picture it takes, in pixels."""

    make: Callable[..., keras.Model]
    least_image_size: int


NETWORKS = {
    "inception_resnet_v1": Network(inception_resnet_v1, 75),
    "mobilefacenet": Network(mobilefacenet, 48),
    "mobilefacenet_y1": Network(mobilefacenet_y1, 48),
    "small": Network(small, 28),
}


def build(
    name: str,
    *,
    image_size: int,
    embedding_size: int,
    keep_probability: float = 1.0,
    sync_bn: bool = False,
    standardization: str = "fixed",
    seed: int = 0,
) -> keras.Model:
    """Make a network from pictures [b, H, W, 3] of values 0..255 to embeddings [b, D], not normalised.

    It computes in the global dtype policy; input, weights and embeddings are float64 under ``float64``, else float32.
    The model is flat, the paths of its variables are unique and stable, and its first weights depend on
    (seed, layer, shape) only.

    Args:
      image_size: H = W, in pixels.
      embedding_size: D.
      keep_probability: share of values that dropout keeps before the embedding layer; 1: no dropout.
      sync_bn: whether batch normalisation takes the statistics of all towers in training.
      standardization: ``fixed`` or ``per_image``; see ``layers.Standardization``.

    Raises:
      UserError: an unknown name or standardisation, or a value out of range.
    """
    if name not in NETWORKS:
        raise UserError(f"--network {name}: unknown; choose one of {', '.join(NETWORKS)}")
    least = NETWORKS[name].least_image_size
    if image_size < least:
        raise UserError(f"--image_size {image_size}: network {name} takes pictures of {least} pixels or more")
    if embedding_size < 1:
        raise UserError(f"--embedding_size {embedding_size}: must be 1 or more")
    if not 0 < keep_probability <= 1:
        raise UserError(f"--keep_probability {keep_probability}: must be above 0 and at most 1")
    if standardization not in STANDARDIZATIONS:
        raise UserError(f"standardization {standardization}: choose one of {', '.join(STANDARDIZATIONS)}")
    return NETWORKS[name].make(image_size, embedding_size, keep_probability, sync_bn, standardization, seed)
