"""Validations that a training script asks for: each a function of (log, step) that returns metrics."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import keras
import numpy as np

from .. import networks, plots
from ..datasets.augmentation import centre_crop
from ..datasets.folder import PathSource
from ..datasets.packs import read_pack
from ..datasets.pipeline import Quarantine, evaluation_dataset
from ..distribution import Towers
from ..errors import BadData, UserError
from ..evaluation.classification import TOP, classify
from ..evaluation.embedding import embed
from ..evaluation.features import write_features
from ..evaluation.lfw import read_pairs, resolve_pairs
from ..evaluation.neighbours import recall_at_1
from ..evaluation.retrieval import normalised as unit
from ..evaluation.verification import Verification, evaluate_pairs, report, verify_flipped
from ..losses.margin import LogitForm
from ..summaries import RunLog

PAIRS_OPTIONS = "lfw_dir lfw_pairs lfw_nrof_folds"
PROTOCOL_OPTIONS = "lfw_batch_size lfw_distance_metric lfw_use_flipped_images lfw_subtract_mean"
LFW_OPTIONS = f"{PAIRS_OPTIONS} {PROTOCOL_OPTIONS}"


@dataclass(frozen=True, eq=False)
class Pairs:
    """Pairs to verify on, from a folder or from a pack.

    Attributes:
      source: N pictures.
      pairs: int64 [P, 2], records of the source.
      same: bool [P].
      fold_ids: int64 [P].
      names: N texts to show beside the pictures.
      skipped: a text for each pair that is left out since a picture is missing.
    """

    source: object
    pairs: np.ndarray
    same: np.ndarray
    fold_ids: np.ndarray
    names: list[str]
    skipped: list[str]


def embed_source(
    towers: Towers,
    network: keras.Model,
    source,
    *,
    image_size: int,
    load_size: int,
    batch_size: int = 100,
    flipped: bool = False,
    max_bad_fraction: float = 0.01,
) -> tuple[np.ndarray, dict[int, str]]:
    """Embeddings of all records of a source, in order.

    Args:
      batch_size: images of a tower in a step.

    Returns:
      ([N, D], or [N, 2D] with the mirrored pictures' beside them; record -> reason of each picture that could not be
      read, whose row is a neighbour's).

    Raises:
      BadData: more than ``max_bad_fraction`` of the pictures are unreadable, or an embedding is not finite.
    """
    quarantine = Quarantine(source)
    embeddings = embed(
        towers,
        network,
        lambda local_towers: evaluation_dataset(
            source,
            batch=batch_size,
            load_size=load_size,
            num_towers=towers.num_towers,
            quarantine=quarantine,
            towers=local_towers,
        ),
        len(source),
        prepare=partial(centre_crop, image_size=image_size),
        flipped=flipped,
    )
    for of_process in towers.processes.gather(sorted(quarantine.bad.items())):
        for record, reason in of_process:
            quarantine.add(record, reason)
    quarantine.check(max_bad_fraction)
    broken = np.flatnonzero(~np.isfinite(embeddings).all(axis=1))
    if broken.size:
        raise BadData(
            f"{broken.size} of {len(embeddings)} embeddings are not finite, the first of "
            f"{source.where(int(broken[0]))}; the weights or the picture are broken"
        )
    return embeddings, quarantine.bad


def write_embeddings(path: Path, source, embeddings: np.ndarray, bad: dict[int, str]) -> None:
    """Write the rows of the readable pictures, their paths and labels as ``evaluation.features`` does.

    A neighbour's embedding must not stand for a picture that could not be read.
    """
    good = np.setdiff1d(np.arange(len(source)), list(bad))
    paths = [source.where(int(record)) for record in good]
    write_features(path, embeddings[good], paths, np.asarray(source.labels)[good])


def verify(
    towers: Towers,
    network: keras.Model,
    pairs: Pairs,
    *,
    image_size: int,
    load_size: int,
    lfw_batch_size: int,
    lfw_distance_metric: int,
    lfw_use_flipped_images: bool,
    lfw_subtract_mean: bool,
) -> tuple[Verification, np.ndarray, dict[int, str]]:
    """The LFW protocol on ``pairs``; those with a picture that cannot be read are left out.

    Returns:
      (figures, embeddings [N, D] of ``pairs.source``, record -> reason of each unreadable picture, whose row is a
      neighbour's).
    """
    embeddings, bad = embed_source(
        towers,
        network,
        pairs.source,
        image_size=image_size,
        load_size=load_size,
        batch_size=lfw_batch_size,
        flipped=lfw_use_flipped_images,
    )
    used = ~np.isin(pairs.pairs, list(bad)).any(axis=1)
    verification = evaluate_pairs(
        embeddings,
        pairs.pairs[used],
        pairs.same[used],
        fold_ids=pairs.fold_ids[used],
        distance_metric=lfw_distance_metric,
        subtract_mean=lfw_subtract_mean,
    )
    return verification, embeddings, bad


def verify_insightface(
    towers: Towers, network: keras.Model, pairs: Pairs, *, image_size: int, load_size: int, batch_size: int
) -> tuple[Verification, float, np.ndarray, dict[int, str]]:
    """InsightFace's protocol on ``pairs``: the embedding of a picture is added to that of its mirror image.

    Returns:
      (figures, XNorm, sums [N, D] of the two embeddings, and unreadable pictures as ``verify`` has them).
    """
    embeddings, bad = embed_source(
        towers,
        network,
        pairs.source,
        image_size=image_size,
        load_size=load_size,
        batch_size=batch_size,
        flipped=True,
    )
    plain, mirrored = np.split(embeddings, 2, axis=1)
    used = ~np.isin(pairs.pairs, list(bad)).any(axis=1)
    verification, norm = verify_flipped(
        plain, mirrored, pairs.pairs[used], pairs.same[used], fold_ids=pairs.fold_ids[used]
    )
    return verification, norm, plain + mirrored, bad


def left_out(pairs: Pairs, bad: dict[int, str]) -> list[str]:
    """A line for each place of an unreadable picture in the pairs."""
    return [f"{pairs.source.where(record)}: {bad[record]}" for record in pairs.pairs.ravel().tolist() if record in bad]


def read_lfw(lfw_dir: Path, lfw_pairs: Path | None, lfw_nrof_folds: int | None) -> Pairs:
    """The pairs whose pictures are there.

    Args:
      lfw_pairs: None: ``pairs.txt`` in ``lfw_dir`` or beside it.
      lfw_nrof_folds: None: as the first line of the pairs says.
    """
    if lfw_pairs is None:
        places = [lfw_dir / "pairs.txt", lfw_dir.parent / "pairs.txt"]
        lfw_pairs = next((place for place in places if place.is_file()), None)
        if lfw_pairs is None:
            raise UserError(f"give --lfw_pairs FILE: there is no {places[0]} and no {places[1]}")
    found = resolve_pairs(read_pairs(lfw_pairs, folds=lfw_nrof_folds), lfw_dir)
    people = [Path(path).parent.name for path in found.paths]
    return Pairs(PathSource(found.paths), found.pairs, found.same, found.fold_ids, people, found.skipped)


def read_bin(path: Path, lfw_nrof_folds: int | None) -> Pairs:
    """The pairs of a verification pack, folds being blocks of pairs in order (None: 10 folds)."""
    pack = read_pack(path)
    names = [f"pair {record // 2}" for record in range(len(pack))]
    return Pairs(pack, pack.pairs, pack.same, pack.fold_ids(lfw_nrof_folds), names, [])


def figures(verification: Verification) -> dict[str, float]:
    """The numbers of a verification by the names they have in metrics.jsonl and --json."""
    return {
        "lfw_accuracy": verification.accuracy,
        "lfw_accuracy_std": verification.accuracy_std,
        "lfw_validation_rate": verification.validation_rate,
        "lfw_validation_rate_std": verification.validation_rate_std,
        "lfw_false_accept_rate": verification.false_accept_rate,
        "lfw_auc": verification.area_under_curve,
        "lfw_eer": verification.equal_error_rate,
        "lfw_threshold": verification.threshold,
    }


def pairs_validator(
    towers: Towers,
    network: keras.Model,
    *,
    lfw_dir: Path,
    lfw_pairs: Path | None,
    lfw_nrof_folds: int | None,
    **protocol,
) -> Callable[[RunLog, int], dict]:
    """Validation by pairs: metrics, a line of ``lfw_result.txt``, ``roc.png``, and TensorBoard's projector.

    Beside the figures of the protocol: ``lfw_recall_at_1``, how often the nearest of the other pictures that the pairs
    name shows the same person.

    Args:
      protocol: the other arguments of ``verify``.
    """
    pairs = read_lfw(lfw_dir, lfw_pairs, lfw_nrof_folds)

    def validate(log: RunLog, step: int) -> dict:
        verification, embeddings, bad = verify(towers, network, pairs, **protocol)
        skipped = left_out(pairs, bad)
        if skipped:
            log.text(f"{len(skipped)} pairs left out, the first for {skipped[0]}")
        with (log.run_dir / "lfw_result.txt").open("a") as file:
            file.write(f"{step}\t{verification.accuracy:.5f}\t{verification.validation_rate:.5f}\n")
        plots.roc(verification, log.run_dir / "roc.png")
        log.embeddings(embeddings, pairs.names)
        log.text("\n".join(report(verification).splitlines()[:2]))
        metrics = figures(verification)
        recall, queries = recall_at_1(embeddings, pairs.names)
        if queries:
            log.text(f"Recall@1: {recall:.5f} of {queries} pictures")
            metrics["lfw_recall_at_1"] = recall
        return metrics

    return validate


def classes_validator(
    towers: Towers,
    network: keras.Model,
    held_out,
    labels: np.ndarray,
    classifier: Callable[[], tuple[np.ndarray, np.ndarray | None]],
    *,
    image_size: int,
    load_size: int,
    normalised: bool = False,
) -> Callable[[RunLog, int], dict]:
    """Validation on other pictures of the trained classes: cross-entropy, top-1 and top-5 over all classes.

    Top-5 is left out where there are no more than 5 classes. Unreadable pictures are named and do not count.

    Args:
      held_out: source of the pictures; ``labels``: [N].
      classifier: gives the weights [C, D] and bias [C] or None.
      normalised: embeddings are brought to length 1 before.
    """

    def validate(log: RunLog, step: int) -> dict:
        embeddings, bad = embed_source(towers, network, held_out, image_size=image_size, load_size=load_size)
        if bad:
            log.text(f"{len(bad)} unreadable picture(s) left out, the first {held_out.where(min(bad))}")
        readable = np.setdiff1d(np.arange(len(labels)), list(bad))
        if normalised:
            embeddings = unit(embeddings)
        result = classify(embeddings[readable], *classifier(), labels[readable])
        metrics = {"val_accuracy": result.top(1), "val_loss": result.loss}
        if result.num_classes > TOP:
            metrics["val_top5"] = result.top(TOP)
        top5 = f", top-5 {metrics['val_top5']:.5f}" if "val_top5" in metrics else ""
        log.text(
            f"{len(result)} held-out pictures: accuracy {result.top(1):.5f}{top5}, cross-entropy {result.loss:.4f}"
        )
        return metrics

    return validate


def of_classes(towers: Towers, network: keras.Model, held_out, labels, head, form: LogitForm, **sizes) -> list:
    """``classes_validator`` of a margin head's classes, where pictures are held out; else none.

    Raises:
      UserError: the class weights are spread over processes, or a class has more than one.
    """
    if held_out is None:
        return []
    if towers.processes.num > 1:
        raise UserError(
            f"{towers.processes.num} processes: --val_dir and --validation_set_split_ratio need all class weights in "
            "one; train without them, or in one process"
        )
    if form.sub_centres > 1:
        raise UserError(
            f"--sub_centres {form.sub_centres}: --val_dir and --validation_set_split_ratio need one centre a class"
        )
    classifier, inference = margin_classifier(head, form), networks.inference(network)
    return [classes_validator(towers, inference, held_out, labels, classifier, **sizes, normalised=form.normalised)]


def margin_classifier(head, form: LogitForm) -> Callable[[], tuple[np.ndarray, None]]:
    """Function that gives the weights [C, D] of all classes whose products with embeddings are a margin head's logits.

    The embeddings must have length 1 where ``form.normalised``. Margins are of training alone.
    """

    def classifier():
        exported = head.export()
        weights = exported[0] if isinstance(exported, tuple) else exported
        return form.scale * (unit(weights) if form.normalised else weights), None

    return classifier
