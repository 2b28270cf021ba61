"""Networks by name: ``build("small", image_size=112, embedding_size=128)``."""

from collections.abc import Callable
from typing import NamedTuple

import keras

from ..errors import UserError
from .gem import check_p
from .inception_resnet_v1 import inception_resnet_v1
from .layers import STANDARDIZATIONS
from .mobilefacenet import mobilefacenet, mobilefacenet_y1
from .resnet import RESNETS
from .roles import decayed_variables, moving_statistics
from .small import small

__all__ = ["NETWORKS", "build", "decayed_variables", "inference", "moving_statistics"]


class Network(NamedTuple):
    """A function that makes a network, the least side of a picture it takes, in pixels, and whether it has GeM pooling.

    A network with GeM pooling takes pictures of any size and shape, also after training.
    """

    make: Callable[..., keras.Model]
    least_image_size: int
    gem: bool = False


NETWORKS = {
    "inception_resnet_v1": Network(inception_resnet_v1, 75),
    "mobilefacenet": Network(mobilefacenet, 48),
    "mobilefacenet_y1": Network(mobilefacenet_y1, 48),
    "small": Network(small, 28),
    **{name: Network(make, 32, gem=True) for name, make in RESNETS.items()},
}
DEFAULT_GEM_P = 3.0


def build(
    name: str,
    *,
    image_size: int | None,
    embedding_size: int,
    keep_probability: float = 1.0,
    sync_bn: bool = False,
    standardization: str = "fixed",
    seed: int = 0,
    gem_p: float | None = None,
    learn_gem_p: bool = False,
) -> keras.Model:
    """Make a network from pictures [b, H, W, 3] of values 0..255 to embeddings [b, D], not normalised.

    It computes in the global dtype policy; input, weights and embeddings are float64 under ``float64``, else float32.
    The model is flat, the paths of its variables are unique and stable, and its first weights depend on
    (seed, layer, shape) only.

    Args:
      image_size: H = W, in pixels; None, for networks with GeM pooling: any H and W.
      embedding_size: D.
      keep_probability: share of values that dropout keeps before the embedding layer; 1: no dropout.
      sync_bn: whether batch normalisation takes the statistics of all towers in training.
      standardization: ``fixed`` or ``per_image``; see ``layers.Standardization``.
      gem_p: power of GeM pooling, 3 where it is not given; learn_gem_p: whether it is a weight. See ``gem.gem``.

    Raises:
      UserError: an unknown name or standardisation, or a value out of range.
    """
    if name not in NETWORKS:
        raise UserError(f"--network {name}: unknown; choose one of {', '.join(NETWORKS)}")
    network = NETWORKS[name]
    if not network.gem and (gem_p is not None or learn_gem_p or image_size is None):
        pooled = ", ".join(other for other, kind in NETWORKS.items() if kind.gem)
        raise UserError(f"--network {name}: has no GeM pooling and takes one size of picture; choose one of {pooled}")
    least = network.least_image_size
    if image_size is not None and image_size < least:
        raise UserError(f"--image_size {image_size}: network {name} takes pictures of {least} pixels or more")
    if embedding_size < 1:
        raise UserError(f"--embedding_size {embedding_size}: must be 1 or more")
    if not 0 < keep_probability <= 1:
        raise UserError(f"--keep_probability {keep_probability}: must be above 0 and at most 1")
    if standardization not in STANDARDIZATIONS:
        raise UserError(f"standardization {standardization}: choose one of {', '.join(STANDARDIZATIONS)}")
    pooling = {}
    if network.gem:
        pooling = {"gem_p": DEFAULT_GEM_P if gem_p is None else gem_p, "learn_gem_p": learn_gem_p}
        check_p(pooling["gem_p"])
    return network.make(image_size, embedding_size, keep_probability, sync_bn, standardization, seed, **pooling)


def inference(network: keras.Model) -> keras.Model:
    """The network from pictures to embeddings alone, of the same layers: without auxiliary features."""
    if len(network.outputs) == 1:
        return network
    return keras.Model(network.inputs[0], network.outputs[0], name=network.name)
