"""The objective of MultiGrain: classes by softmax and instances by pairs or triplets, on one embedding.

Berman et al., 2019, https://arxiv.org/abs/1902.05509, equation 7.
"""

from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from ..distribution import all_gather, sum_over_towers
from ..errors import UserError
from ..heads.replicated import ReplicatedHead
from ..losses import at_least_float32, margin_pairs, triplet
from ..losses.softmax import check_label_smoothing, softmax_cross_entropy
from .step import Objective, TowerLosses
from .triplets import MINING_SCOPES

RETRIEVAL_LOSSES = ("margin", "triplet")
_EPSILON = 1e-10


class MarginBorder:
    """The learnt beta of the margin loss, no weight decay. Make it inside the towers' scope."""

    def __init__(self, beta: float, dtype: str = "float32"):
        with keras.name_scope("margin"):
            self.beta = keras.Variable(np.asarray(beta), dtype=dtype, name="beta")

    def variables(self) -> dict[str, keras.Variable]:
        """Name -> variable, for checkpoints."""
        return {self.beta.path: self.beta}


def check_options(
    *,
    classification_weight: float,
    label_smoothing: float,
    retrieval_loss: str,
    copies: int,
    alpha: float,
    beta: float,
    mining: str,
) -> None:
    """Raise UserError where there is no such objective.

    Args:
      copies: m of repeated augmentation.
    """
    if not 0 <= classification_weight <= 1:
        raise UserError(
            f"--classification_weight {classification_weight}: lambda is a share between 0 and 1; MultiGrain's is 0.5"
        )
    check_label_smoothing(label_smoothing)
    if retrieval_loss not in RETRIEVAL_LOSSES:
        raise UserError(f"--retrieval_loss {retrieval_loss}: unknown; choose one of {', '.join(RETRIEVAL_LOSSES)}")
    if classification_weight < 1 and copies < 2:
        raise UserError(
            f"--copies {copies} with --classification_weight {classification_weight}: without a second copy of a "
            "picture there is no pair of one instance; give --copies 2 or more (MultiGrain's is 3), or weight 1"
        )
    if retrieval_loss == "margin":
        margin_pairs.check_options(alpha, beta)
    else:
        triplet.check_options(mining, alpha, soft_margin=False)


def make_objective(
    head: ReplicatedHead,
    border: MarginBorder,
    prepare: Callable[[dict], tf.Tensor],
    *,
    classification_weight: float,
    label_smoothing: float = 0.0,
    retrieval_loss: str = "margin",
    mining: str = "batch_hard",
    mining_scope: str = "tower",
    alpha: float = 0.2,
    seed: int = 0,
) -> Objective:
    """lambda x mean cross-entropy + (1 - lambda) x mean retrieval loss over the active pairs or triplets.

    The classifier takes the embedding as it is, the retrieval loss the L2-normalised one. An instance is a record of
    the data: its copies under repeated augmentation are the pairs of one label, everything else is another instance.
    Both means are over the pictures, pairs or triplets of all towers. With lambda 1 the retrieval loss is still
    computed and logged, but weighs nothing; with lambda 0 the same goes for the classes.

    Metrics of each tower: ``main`` (cross-entropy), ``accuracy``, ``retrieval`` (its own mean over its active ones),
    and those of the retrieval loss; with margin also ``beta``.

    Args:
      prepare: batch -> the network's input.
      classification_weight: lambda.
      retrieval_loss: ``margin``: `losses.margin_pairs`; ``triplet``: `losses.triplet` with the rule ``mining``.
      mining_scope: ``tower``: pairs and negatives of the own tower; ``global``: of all towers.
      alpha: margin, between distances (``margin``) or squared distances (``triplet``).

    Raises:
      UserError: an unknown scope; see also ``check_options``.
    """
    if mining_scope not in MINING_SCOPES:
        raise UserError(f"--mining_scope {mining_scope}: unknown; choose one of {', '.join(MINING_SCOPES)}")

    def retrieval(own, candidates):
        if retrieval_loss == "margin":
            return margin_pairs.margin_losses(own, candidates, border.beta.value, alpha=alpha, seed=seed)
        return triplet.triplet_losses(own, candidates, mining=mining, alpha=alpha, seed=seed)

    def objective(network, batch) -> TowerLosses:
        labels = batch["label"]
        embeddings = at_least_float32(network(prepare(batch), training=True))
        logits = head.logits(embeddings, head.prepare(labels))
        main = softmax_cross_entropy(logits, labels, label_smoothing)

        unit = tf.math.l2_normalize(embeddings, axis=1, epsilon=_EPSILON)
        own = candidates = triplet.Embedded(unit, batch["record"], batch["position"])
        if mining_scope == "global":
            keys = all_gather(tf.stack([own.labels, own.positions], axis=1))
            candidates = triplet.Embedded(all_gather(own.embeddings), keys[:, 0], keys[:, 1])
        # (losses [b], number of active pairs or triplets [b], metrics)
        found, active, metrics = retrieval(own, candidates)

        # The step divides by the pictures of all towers, so pairs are brought to that count first.
        num = tf.cast(tf.size(labels), found.dtype)
        counts = sum_over_towers(tf.stack([num, tf.reduce_sum(tf.cast(active, found.dtype))]))
        pairs = tf.math.divide_no_nan(found * counts[0], counts[1])
        losses = classification_weight * main + (1 - classification_weight) * tf.cast(pairs, main.dtype)
        metrics = {
            "main": tf.reduce_mean(main),
            "accuracy": tf.reduce_mean(head.accuracy(logits, labels)),
            "retrieval": tf.math.divide_no_nan(tf.reduce_sum(found), tf.reduce_sum(tf.cast(active, found.dtype))),
            "embedding_norm": tf.reduce_mean(tf.norm(tf.stop_gradient(embeddings), axis=1)),
            **metrics,
        }
        if retrieval_loss == "margin":
            metrics["beta"] = tf.identity(border.beta.value)
        return TowerLosses(losses, tf.ones_like(losses), metrics)

    return objective


def make_power_objective(
    head: ReplicatedHead, power: keras.Variable, prepare: Callable[[dict], tf.Tensor]
) -> Objective:
    """Mean cross-entropy of the network as it is validated, for fine-tuning the power of its GeM pooling alone.

    Batch normalisation applies its moving statistics and leaves them as they are. MultiGrain's supplement E.

    Metrics of each tower: ``main`` (cross-entropy), ``accuracy``, ``gem_p`` (the power before the step).

    Args:
      head: the classifier that the network was trained with; its weights stay as they are.
      power: of the pooling.
      prepare: batch -> the network's input.
    """

    def objective(network, batch) -> TowerLosses:
        labels = batch["label"]
        logits = head.logits(at_least_float32(network(prepare(batch), training=False)), head.prepare(labels))
        losses = softmax_cross_entropy(logits, labels)
        metrics = {
            "main": tf.reduce_mean(losses),
            "accuracy": tf.reduce_mean(head.accuracy(logits, labels)),
            "gem_p": tf.identity(power.value),
        }
        return TowerLosses(losses, tf.ones_like(losses), metrics)

    return objective
