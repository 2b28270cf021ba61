"""Networks by name: ``build("small", image_size=112, embedding_size=128)``."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import keras

from ..errors import UserError
from .embedding import EMBEDDING_HEADS
from .inception_resnet_v1 import inception_resnet_v1
from .iresnet import UNITS, iresnet
from .layers import STANDARDIZATIONS
from .mnasnet import mnasnet
from .mobilefacenet import mobilefacenet, mobilefacenet_y1
from .roles import decayed_variables, moving_statistics
from .small import small

__all__ = ["ALIASES", "EMBEDDING_HEADS", "NETWORKS", "build", "decayed_variables", "moving_statistics"]


class Network(NamedTuple):
    """A function that makes a network, the least side of a picture it takes, in pixels, and its embedding head.

    The head is one of ``EMBEDDING_HEADS``, which others can take the place of; None: it has a head of its own only.
    """

    make: Callable[..., keras.Model]
    least_image_size: int
    embedding_head: str | None = None


NETWORKS = {
    "inception_resnet_v1": Network(inception_resnet_v1, 75),
    "mnas05": Network(partial(mnasnet, width=0.5), 28, "GDC"),
    "mobilefacenet": Network(mobilefacenet, 48, "GDC"),
    "mobilefacenet_y1": Network(mobilefacenet_y1, 48, "GDC"),
    **{name: Network(partial(iresnet, units=units), 28, "E") for name, units in UNITS.items()},
    "small": Network(small, 28),
}
# InsightFace's names of networks that have another one here.
ALIASES = {"mbf": "mobilefacenet", "y1": "mobilefacenet_y1"}


def build(
    name: str,
    *,
    image_size: int,
    embedding_size: int,
    keep_probability: float = 1.0,
    sync_bn: bool = False,
    standardization: str = "fixed",
    seed: int = 0,
    embedding_head: str | None = None,
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
      embedding_head: one of ``EMBEDDING_HEADS`` in place of the network's own; None: its own.

    Raises:
      UserError: an unknown name, head or standardisation, a value out of range, or a head for a network that has one
        only.
    """
    name = ALIASES.get(name, name)
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
    arguments = [image_size, embedding_size, keep_probability, sync_bn, standardization, seed]
    own_head = NETWORKS[name].embedding_head
    if own_head is not None:
        head = embedding_head or own_head
        if head not in EMBEDDING_HEADS:
            raise UserError(f"--embedding_head {head}: unknown; choose one of {', '.join(EMBEDDING_HEADS)}")
        return NETWORKS[name].make(*arguments, head)
    if embedding_head is not None:
        choices = ", ".join(other for other, network in NETWORKS.items() if network.embedding_head)
        raise UserError(f"--embedding_head {embedding_head}: network {name} has its own only; heads are for {choices}")
    return NETWORKS[name].make(*arguments)
