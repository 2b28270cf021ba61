"""Networks by name: ``build("small", image_size=112, embedding_size=128)``."""

from collections.abc import Callable
from typing import NamedTuple

import keras

from ..errors import UserError
from .googlenet import EMBEDDING_SIZE, LEAST_IMAGE_SIZE, NORMS, googlenet
from .inception_resnet_v1 import inception_resnet_v1
from .layers import STANDARDIZATIONS
from .mobilefacenet import mobilefacenet, mobilefacenet_y1
from .roles import decayed_variables, moving_statistics
from .small import small

__all__ = ["NETWORKS", "NORMS", "build", "decayed_variables", "inference", "moving_statistics"]


class Network(NamedTuple):
    """How a network is made, and what it asks for.

    Attributes:
      make: makes the network from the arguments of ``build`` that all networks have.
      least_image_size: least side of a picture, in pixels, and ``why``.
      embedding_size: the only one it has, None: any.
      keep_probability: what it is trained with unless told otherwise.
      further: names of the arguments of ``build`` that concern this network and not all.
    """

    make: Callable[..., keras.Model]
    least_image_size: int
    why: str = ""
    embedding_size: int | None = None
    keep_probability: float = 1.0
    further: tuple[str, ...] = ()


NETWORKS = {
    "googlenet": Network(
        googlenet,
        LEAST_IMAGE_SIZE,
        why=": its auxiliary classifiers pool 5 x 5 of a map 16 times smaller",
        embedding_size=EMBEDDING_SIZE,
        keep_probability=0.6,
        further=("norm", "auxiliary"),
    ),
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
    norm: str = "bn",
    auxiliary: bool = False,
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
      norm: ``bn``, or for googlenet also ``lrn``.
      auxiliary: whether a network that has auxiliary classifiers gives their features beside the embeddings, for
        training; ``inference`` is the network without them.

    Raises:
      UserError: an unknown name or standardisation, a value out of range, or one that this network has not.
    """
    if name not in NETWORKS:
        raise UserError(f"--network {name}: unknown; choose one of {', '.join(NETWORKS)}")
    network = NETWORKS[name]
    least = network.least_image_size
    if image_size < least:
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
    if norm not in NORMS or (norm != "bn" and "norm" not in network.further):
        having = ", ".join(other for other, entry in NETWORKS.items() if "norm" in entry.further)
        raise UserError(f"--norm {norm}: network {name} has bn; {' or '.join(NORMS)} can be chosen for {having}")
    if sync_bn and norm != "bn":
        raise UserError(f"--sync_bn with --norm {norm}: there is no batch normalisation to synchronise; leave one out")
    own = {"norm": norm, "auxiliary": auxiliary}
    further = {argument: own[argument] for argument in network.further}
    return network.make(image_size, embedding_size, keep_probability, sync_bn, standardization, seed, **further)


def inference(network: keras.Model) -> keras.Model:
    """The network from pictures to embeddings alone, of the same layers: without auxiliary features."""
    if len(network.outputs) == 1:
        return network
    return keras.Model(network.inputs[0], network.outputs[0], name=network.name)
