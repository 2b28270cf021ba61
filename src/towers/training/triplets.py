"""The objective of metric learning: triplets mined in the batch of a tower, or of all towers."""

from collections.abc import Callable

import tensorflow as tf

from ..distribution import all_gather
from ..errors import UserError
from ..losses import at_least_float32
from ..losses.triplet import Embedded, check_options, triplet_losses
from .step import Objective, TowerLosses

MINING_SCOPES = ("tower", "global")
COLLAPSED_DISTANCE = 0.05
_EPSILON = 1e-10


def make_objective(
    prepare: Callable[[dict], tf.Tensor],
    *,
    mining: str,
    mining_scope: str,
    alpha: float,
    soft_margin: bool = False,
    seed: int = 0,
) -> Objective:
    """Triplet loss on L2-normalised embeddings; see ``losses.triplet.triplet_losses`` for the rules.

    Beside the metrics of the loss: ``embedding_norm``, the mean norm before the normalisation, and ``pair_distance``,
    the mean squared distance of any two pictures of the mining scope: about 2 for directions at random, near 0 where
    the network has collapsed to one point (the loss is then near alpha, with soft_margin near log 2).

    Args:
      prepare: batch -> the network's input.
      mining_scope: ``tower``: positives and negatives from the anchor's own tower; ``global``: from all towers, by
        gathering embeddings with their gradient, so that loss and update are those of one tower with the whole batch.

    Raises:
      UserError: an unknown rule or scope, alpha not positive, or soft_margin with batch_all.
    """
    check_options(mining, alpha, soft_margin)
    if mining_scope not in MINING_SCOPES:
        raise UserError(f"--mining_scope {mining_scope}: unknown; choose one of {', '.join(MINING_SCOPES)}")

    def objective(network, batch) -> TowerLosses:
        raw = at_least_float32(network(prepare(batch), training=True))
        own = Embedded(tf.math.l2_normalize(raw, axis=1, epsilon=_EPSILON), batch["label"], batch["position"])
        candidates = own
        if mining_scope == "global":
            keys = all_gather(tf.stack([own.labels, own.positions], axis=1))
            candidates = Embedded(all_gather(own.embeddings), keys[:, 0], keys[:, 1])
        found = triplet_losses(own, candidates, mining=mining, alpha=alpha, soft_margin=soft_margin, seed=seed)
        metrics = found.metrics | {
            "embedding_norm": tf.reduce_mean(tf.norm(tf.stop_gradient(raw), axis=1)),
            "pair_distance": mean_pair_distance(tf.stop_gradient(candidates.embeddings)),
        }
        return TowerLosses(found.losses, found.weights, metrics)

    return objective


def mean_pair_distance(embeddings: tf.Tensor) -> tf.Tensor:
    """Mean squared Euclidean distance of two different rows of [B, D], from their variance; 0 where B is 1."""
    num = tf.cast(tf.shape(embeddings)[0], embeddings.dtype)
    spread = tf.reduce_sum(tf.math.squared_difference(embeddings, tf.reduce_mean(embeddings, axis=0)))
    return tf.math.divide_no_nan(2.0 * spread, num - 1.0)


def warn_of_collapse(alpha: float, soft_margin: bool = False) -> Callable[[dict], str | None]:
    """A function of the metrics of a logged step: a line for the user when the network begins to collapse, else None.

    Collapsed is a network whose pictures lie within a mean squared distance of ``COLLAPSED_DISTANCE`` of each other
    (directions at random: 2). The loss, which is then near the margin, does not tell by itself: a healthy network's
    batch-hard triplets come close to it too. One line for each time it begins.
    """
    still = "log 2 = 0.693" if soft_margin else f"alpha {alpha:g}"
    collapsed = False

    def watch(metrics: dict) -> str | None:
        nonlocal collapsed
        before, collapsed = collapsed, metrics.get("pair_distance", 2.0) < COLLAPSED_DISTANCE
        if before or not collapsed:
            return None
        loss = "not finite" if metrics["loss"] is None else f"{metrics['loss']:.3f}"
        return (
            f"step {metrics['step']}: the embeddings collapse to one point: two pictures are "
            f"{metrics['pair_distance']:.4f} apart (squared, 2 at random), the loss is {loss} and stays near {still}. "
            "Try a lower --learning_rate, a longer --warmup_steps, --mining semihard in place of batch_hard, "
            "or --pretrained_model with a softmax run"
        )

    return watch
