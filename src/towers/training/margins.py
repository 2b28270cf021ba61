"""The objective of very many identities: softmax with a margin, by any head that holds the class weights."""

from collections.abc import Callable
from dataclasses import dataclass

import tensorflow as tf

from ..distribution import all_gather
from ..errors import UserError
from ..losses import at_least_float32
from ..losses.margin import LogitForm, Margin, NormStatistics, adaface, magface
from .step import Objective, TowerLosses

# m1, m2 in radians, m3 of cos(m1 * theta + m2) - m3, by InsightFace's names.
FIXED_MARGINS = {
    "nsoftmax": (1.0, 0.0, 0.0),
    "arcface": (1.0, 0.5, 0.0),
    "cosface": (1.0, 0.0, 0.35),
    "combined": (1.0, 0.3, 0.2),
}
LOSSES = ("softmax", *FIXED_MARGINS, "adaface", "magface")
DEFAULT_SCALE = 64.0
DEFAULT_SAMPLE_RATE = 0.1
MAGFACE_PENALTY = 35.0


@dataclass(frozen=True)
class MarginLoss:
    """A loss by name, and what the options say about it.

    Attributes:
      margins: m1, m2, m3 of a fixed margin, None for the other losses.
    """

    name: str
    form: LogitForm
    margins: tuple[float, float, float] | None


def chosen_loss(
    *,
    loss: str,
    margin_m1: float | None,
    margin_m2: float | None,
    margin_m3: float | None,
    scale: float | None,
    sub_centres: int,
    interclass_filtering_threshold: float,
    logits_chunk: int,
) -> MarginLoss:
    """The loss that the options ask for.

    Raises:
      UserError: an option that the loss has no use for, or a value out of its range.
    """
    given = {"--margin_m1": margin_m1, "--margin_m2": margin_m2, "--margin_m3": margin_m3}
    margins = FIXED_MARGINS.get(loss)
    unused = [] if margins else [name for name, value in given.items() if value is not None]
    if loss == "softmax":
        unused += ["--scale"] * (scale is not None) + ["--sub_centres"] * (sub_centres != 1)
        unused += ["--interclass_filtering_threshold"] * bool(interclass_filtering_threshold)
    if unused:
        raise UserError(f"--loss {loss} has no use for {', '.join(unused)}; leave it out, or choose another loss")
    scale = DEFAULT_SCALE if scale is None else scale
    for name, value, fits, allowed in (
        ("--scale", scale, scale > 0, "above 0"),
        ("--sub_centres", sub_centres, sub_centres >= 1, "1 or more"),
        ("--logits_chunk", logits_chunk, logits_chunk >= 0, "0 or more"),
        (
            "--interclass_filtering_threshold",
            interclass_filtering_threshold,
            0 <= interclass_filtering_threshold < 1,
            "a cosine of 0 (no filter) or more, below 1",
        ),
    ):
        if not fits:
            raise UserError(f"{name} {value}: must be {allowed}")
    if loss == "softmax":
        return MarginLoss(loss, LogitForm(normalised=False, scale=1.0, chunk=logits_chunk), None)
    if margins:
        margins = tuple(
            default if value is None else value for value, default in zip(given.values(), margins, strict=True)
        )
    form = LogitForm(
        scale=scale, sub_centres=sub_centres, filter_above=interclass_filtering_threshold, chunk=logits_chunk
    )
    return MarginLoss(loss, form, margins)


def chosen_sample_rate(head: str, sample_rate: float | None) -> float | None:
    """The share of the classes that ``--head sampled`` draws for a step; None for the other heads.

    Raises:
      UserError: a share for a head that draws none.
    """
    if head == "sampled":
        return DEFAULT_SAMPLE_RATE if sample_rate is None else sample_rate
    if sample_rate is not None:
        raise UserError(f"--sample_rate {sample_rate} needs --head sampled, not {head}")
    return None


def make_objective(
    head, prepare: Callable[[dict], tf.Tensor], loss: MarginLoss, *, statistics: NormStatistics | None = None
) -> Objective:
    """Cross entropy over the classes of ``head``, and MagFace's penalty.

    Args:
      head: with ``classify``, and ``accuracy_name`` for what its hits say; its rows come in the batch as ``rows``, or
        else from its ``prepare``.
      prepare: batch -> the network's input.
      statistics: of the norms, needed by AdaFace.
    """

    def objective(network, batch) -> TowerLosses:
        labels = batch["label"]
        embeddings = at_least_float32(network(prepare(batch), training=True))
        norms = tf.norm(embeddings, axis=1)
        penalty, commits = 0.0, ()
        if loss.name == "magface":
            margin, penalty = magface(norms)
        elif loss.name == "adaface":
            all_norms = all_gather(tf.stop_gradient(norms))
            margin = adaface(norms, *statistics.after(all_norms))
            commits = (lambda keep: statistics.update(all_norms, keep),)
        else:
            margin = Margin(*(loss.margins or ()))
        rows = batch["rows"] if "rows" in batch else head.prepare(labels)
        main, correct = head.classify(embeddings, labels, rows, margin)
        losses = main + MAGFACE_PENALTY * penalty
        metrics = {
            "main": tf.reduce_mean(main),
            head.accuracy_name: tf.reduce_mean(correct),
            "embedding_norm": tf.reduce_mean(norms),
        }
        return TowerLosses(losses, tf.ones_like(losses), metrics, commits)

    return objective
