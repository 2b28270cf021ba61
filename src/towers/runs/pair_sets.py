"""Validation on several sets of pairs by InsightFace's protocol, with the lines that its users grep."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np

from ..distribution import Towers
from ..errors import UserError
from ..evaluation.verification import evaluate_pairs
from ..summaries import RunLog, highest_before
from .validation import embed_source, read_lfw

OPTIONS = "lfw_dir lfw_pairs lfw_nrof_folds val_sets"
# Mean accuracy over all sets: the best model is the one where it is highest.
BEST_BY = "pairs_accuracy"


@dataclass(frozen=True)
class PairSet:
    """Pairs of pictures to verify.

    Attributes:
      name: as the lines call it.
      source: the pictures; ``pairs``: [P, 2] records of it; ``same``: [P] bool.
      fold_ids: [P], None: ten consecutive folds.
    """

    name: str
    source: object
    pairs: np.ndarray
    same: np.ndarray
    fold_ids: np.ndarray | None = None


def read_pair_sets(
    *, lfw_dir: Path | None, lfw_pairs: Path | None, lfw_nrof_folds: int | None, val_sets: list[Path]
) -> list[PairSet]:
    """The set ``lfw``, and a set of each other folder, by its name.

    Raises:
      UserError: two sets of one name, or pairs that are not there.
    """
    given = [("lfw", lfw_dir, lfw_pairs)] if lfw_dir else []
    given += [(folder.name, folder, None) for folder in val_sets]
    names = [name for name, _, _ in given]
    if len(set(names)) < len(names):
        raise UserError(f"--val_sets: the names {', '.join(names)} are not all different; rename a folder")
    sets = []
    for name, folder, pairs in given:
        found = read_lfw(folder, pairs, lfw_nrof_folds)
        sets.append(PairSet(name, found.source, found.pairs, found.same, found.fold_ids))
    return sets


def validator(
    towers: Towers, network: keras.Model, sets: list[PairSet], *, image_size: int, load_size: int, batch_size: int
) -> Callable[[RunLog, int], dict]:
    """Validation on all ``sets``: the embedding of a picture is added to that of its mirror image, then normalised.

    The metrics are ``<set>_accuracy``, ``<set>_accuracy_std``, ``<set>_xnorm`` (mean norm of the single embeddings) and
    ``pairs_accuracy``, their mean accuracy. Pictures are embedded by all towers.
    """

    def validate(log: RunLog, step: int) -> dict:
        metrics = {}
        for pair_set in sets:
            embeddings, bad = embed_source(
                towers,
                network,
                pair_set.source,
                image_size=image_size,
                load_size=load_size,
                batch_size=batch_size,
                flipped=True,
            )
            used = ~np.isin(pair_set.pairs, list(bad)).any(axis=1)
            if not used.all():
                log.text(f"{pair_set.name}: {int((~used).sum())} pairs left out: pictures that cannot be read")
            plain, mirrored = np.split(embeddings, 2, axis=1)
            xnorm = float(np.linalg.norm(np.concatenate([plain, mirrored]), axis=1).mean())
            verification = evaluate_pairs(
                plain + mirrored,
                pair_set.pairs[used],
                pair_set.same[used],
                fold_ids=None if pair_set.fold_ids is None else pair_set.fold_ids[used],
            )
            name, accuracy = f"{pair_set.name}_accuracy", verification.accuracy
            highest = max(accuracy, highest_before(log.run_dir, name))
            log.text(
                f"[{pair_set.name}][{step}]XNorm: {xnorm:.6f}\n"
                f"[{pair_set.name}][{step}]Accuracy-Flip: {accuracy:.5f}+-{verification.accuracy_std:.5f}\n"
                f"[{pair_set.name}][{step}]Accuracy-Highest: {highest:.5f}"
            )
            metrics |= {name: accuracy, f"{name}_std": verification.accuracy_std, f"{pair_set.name}_xnorm": xnorm}
        return metrics | {BEST_BY: float(np.mean([metrics[f"{pair_set.name}_accuracy"] for pair_set in sets]))}

    return validate
