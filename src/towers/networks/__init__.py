"""Networks by name: ``build("small", image_size=112, embedding_size=128)``."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import keras

from ..errors import UserError
from .embedding import EMBEDDING_HEADS
from .gem import check_p
from .googlenet import EMBEDDING_SIZE, LEAST_IMAGE_SIZE, NORMS, googlenet
from .inception_resnet_v1 import inception_resnet_v1
from .iresnet import UNITS, iresnet
from .layers import STANDARDIZATIONS
from .mnasnet import mnasnet
from .mobilefacenet import mobilefacenet, mobilefacenet_y1
from .resnet import RESNETS
from .roles import decayed_variables, moving_statistics
from .small import small

__all__ = [
    "ALIASES",
    "EMBEDDING_HEADS",
    "NETWORKS",
    "NORMS",
    "build",
    "decayed_variables",
    "inference",
    "moving_statistics",
]


class Network(NamedTuple):
    """How a network is made, and what it asks for. One with GeM pooling takes pictures of any size and shape.

    Attributes:
      make: makes the network from the arguments of ``build`` that all networks have.
      least_image_size: least side of a picture, in pixels, and ``why``.
      embedding_size: the only one it has, None: any.
      keep_probability: what it is trained with unless told otherwise.
      own: arguments of ``build`` that concern this network and not all, and their values where none are given.
    """

    make: Callable[..., keras.Model]
    least_image_size: int
    why: str = ""
    embedding_size: int | None = None
    keep_probability: float = 1.0
    own: dict = {}


_GDC = {"embedding_head": "GDC"}
NETWORKS = {
    "googlenet": Network(
        googlenet,
        LEAST_IMAGE_SIZE,
        why=": its auxiliary classifiers pool 5 x 5 of a map 16 times smaller",
        embedding_size=EMBEDDING_SIZE,
        keep_probability=0.6,
        own={"norm": "bn", "auxiliary": False},
    ),
    "inception_resnet_v1": Network(inception_resnet_v1, 75),
    "mnas05": Network(partial(mnasnet, width=0.5), 28, own=_GDC),
    "mobilefacenet": Network(mobilefacenet, 48, own=_GDC),
    "mobilefacenet_y1": Network(mobilefacenet_y1, 48, own=_GDC),
    **{name: Network(partial(iresnet, units=units), 28, own={"embedding_head": "E"}) for name, units in UNITS.items()},
    "small": Network(small, 28),
    **{name: Network(make, 32, own={"gem_p": 3.0, "learn_gem_p": False}) for name, make in RESNETS.items()},
}
# InsightFace's names of networks that have another one here.
ALIASES = {"mbf": "mobilefacenet", "y1": "mobilefacenet_y1"}
_CHOICES = {"norm": NORMS, "embedding_head": tuple(EMBEDDING_HEADS)}


def build(
    name: str,
    *,
    image_size: int | None,
    embedding_size: int,
    keep_probability: float = 1.0,
    sync_bn: bool = False,
    standardization: str = "fixed",
    seed: int = 0,
    auxiliary: bool = False,
    norm: str | None = None,
    embedding_head: str | None = None,
    gem_p: float | None = None,
    learn_gem_p: bool | None = None,
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
      auxiliary: whether a network that has auxiliary classifiers gives their features beside the embeddings, for
        training; ``inference`` is the network without them.
      norm: googlenet: one of ``NORMS``; None: bn.
      embedding_head: networks of InsightFace: one of ``EMBEDDING_HEADS`` in place of the network's own; None: its own.
      gem_p: networks with GeM pooling: its power, 3 where it is not given; learn_gem_p: whether it is a weight.

    Raises:
      UserError: an unknown name, head or standardisation, a value out of range, or one that this network has not.
    """
    name = ALIASES.get(name, name)
    if name not in NETWORKS:
        raise UserError(f"--network {name}: unknown; choose one of {', '.join(NETWORKS)}")
    network = NETWORKS[name]
    least = network.least_image_size
    if image_size is None and "gem_p" not in network.own:
        pooled = ", ".join(other for other, entry in NETWORKS.items() if "gem_p" in entry.own)
        raise UserError(f"--network {name}: takes pictures of one size only; those of any size: {pooled}")
    if image_size is not None and image_size < least:
        raise UserError(
            f"--image_size {image_size}: network {name} takes pictures of {least} pixels or more{network.why}"
        )
    if embedding_size < 1:
        raise UserError(f"--embedding_size {embedding_size}: must be 1 or more")
    if network.embedding_size not in (None, embedding_size):
        raise UserError(
            f"--embedding_size {embedding_size}: the embeddings of network {name} have {network.embedding_size} "
            f"values; give --embedding_size {network.embedding_size}"
        )
    if not 0 < keep_probability <= 1:
        raise UserError(f"--keep_probability {keep_probability}: must be above 0 and at most 1")
    if standardization not in STANDARDIZATIONS:
        raise UserError(f"standardization {standardization}: choose one of {', '.join(STANDARDIZATIONS)}")
    given = {"norm": norm, "embedding_head": embedding_head, "gem_p": gem_p, "learn_gem_p": learn_gem_p or None}
    own = _own_arguments(name, network, {argument: value for argument, value in given.items() if value is not None})
    if "auxiliary" in own:
        own["auxiliary"] = auxiliary
    if "gem_p" in own:
        check_p(own["gem_p"])
    if sync_bn and own.get("norm", "bn") != "bn":
        raise UserError(f"--sync_bn with --norm {norm}: there is no batch normalisation to synchronise; leave one out")
    return network.make(image_size, embedding_size, keep_probability, sync_bn, standardization, seed, **own)


def _own_arguments(name: str, network: Network, given: dict) -> dict:
    """The arguments of this network alone: those given, the others as they are by default."""
    for argument, value in given.items():
        if argument not in network.own:
            having = ", ".join(other for other, entry in NETWORKS.items() if argument in entry.own)
            raise UserError(f"--{argument} {value}: network {name} has no such choice; these have it: {having}")
        if argument in _CHOICES and value not in _CHOICES[argument]:
            raise UserError(f"--{argument} {value}: unknown; choose one of {', '.join(_CHOICES[argument])}")
    return {**network.own, **given}


def inference(network: keras.Model) -> keras.Model:
    """The network from pictures to embeddings alone, of the same layers: without auxiliary features."""
    if len(network.outputs) == 1:
        return network
    return keras.Model(network.inputs[0], network.outputs[0], name=network.name)
