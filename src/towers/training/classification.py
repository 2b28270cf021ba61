"""The objective of classification: softmax over all classes, auxiliary classifiers, facenet's two helpers."""

from collections.abc import Callable, Sequence

import keras
import tensorflow as tf

from ..distribution import all_gather
from ..heads.replicated import ReplicatedHead
from ..losses.center import CenterTable, center_loss
from ..losses.prelogits_norm import prelogits_norm
from ..losses.softmax import check_label_smoothing, softmax_cross_entropy
from .step import Objective, TowerLosses


def make_objective(
    head: ReplicatedHead,
    prepare: Callable[[dict], tf.Tensor],
    *,
    label_smoothing: float = 0.0,
    auxiliary_heads: Sequence[ReplicatedHead] = (),
    auxiliary_loss_factor: float = 0.0,
    centers: CenterTable | None = None,
    center_loss_factor: float = 0.0,
    prelogits_norm_loss_factor: float = 0.0,
    prelogits_norm_p: float = 1.0,
) -> Objective:
    """Softmax cross-entropy + auxiliary_loss_factor x that of each auxiliary classifier + center_loss_factor x center
    loss + prelogits_norm_loss_factor x p-norm of the embedding.

    Args:
      prepare: batch -> the network's input.
      auxiliary_heads: one for each auxiliary output of the network, in order; the loss of each is logged by its name.
      centers: the table of class centres, needed where ``center_loss_factor`` is not 0.

    Raises:
      UserError: a share of label smoothing that is none.
    """
    check_label_smoothing(label_smoothing)

    def objective(network, batch) -> TowerLosses:
        labels = batch["label"]
        embeddings, *auxiliary_features = keras.tree.flatten(network(prepare(batch), training=True))
        logits = head.logits(embeddings, head.prepare(labels))
        main = softmax_cross_entropy(logits, labels, label_smoothing)
        losses = main
        metrics = {"main": tf.reduce_mean(main), "accuracy": tf.reduce_mean(head.accuracy(logits, labels))}
        for auxiliary, values in zip(auxiliary_heads, auxiliary_features, strict=True):
            own = auxiliary.loss(values, labels, auxiliary.prepare(labels), label_smoothing)
            losses += auxiliary_loss_factor * own
            metrics[auxiliary.name] = tf.reduce_mean(own)
        commits = ()
        embeddings = tf.cast(embeddings, main.dtype)
        if center_loss_factor:
            distances = center_loss(embeddings, centers.of(labels))
            losses += center_loss_factor * distances
            metrics["center"] = tf.reduce_mean(distances)
            gathered = all_gather(tf.stop_gradient(embeddings)), all_gather(labels)
            commits = (lambda keep: centers.update(*gathered, keep),)
        if prelogits_norm_loss_factor:
            norms = prelogits_norm(embeddings, prelogits_norm_p)
            losses += prelogits_norm_loss_factor * norms
            metrics["prelogits_norm"] = tf.reduce_mean(norms)
        return TowerLosses(losses, tf.ones_like(losses), metrics, commits)

    return objective
