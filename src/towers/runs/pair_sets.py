"""Validation on several sets of pairs by InsightFace's protocol, with the lines that its users grep."""

from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np

from ..distribution import Towers
from ..errors import UserError
from ..evaluation.verification import flip_report
from ..summaries import RunLog, highest_before
from .validation import Pairs, read_bin, read_lfw, verify_insightface

OPTIONS = "lfw_dir lfw_pairs lfw_nrof_folds val_sets"
# Mean accuracy over all sets: the best model is the one where it is highest.
BEST_BY = "pairs_accuracy"
PACK_SUFFIX = ".bin"


def read_pair_sets(
    *, lfw_dir: Path | None, lfw_pairs: Path | None, lfw_nrof_folds: int | None, val_sets: list[Path]
) -> dict[str, Pairs]:
    """The set ``lfw`` of ``lfw_dir``, and a set of each folder and verification pack (.bin) among ``val_sets``.

    A folder's set has its name, a pack's that of its file without the ending.

    Raises:
      UserError: two sets of one name, or pairs that are not there. BadData: a pack that is none.
    """
    given = [("lfw", lfw_dir, lfw_pairs)] if lfw_dir else []
    given += [(path.stem if path.suffix == PACK_SUFFIX else path.name, path, None) for path in val_sets]
    names = [name for name, _, _ in given]
    if len(set(names)) < len(names):
        raise UserError(f"--val_sets: the names {', '.join(names)} are not all different; rename a folder or pack")
    return {
        name: read_bin(path, lfw_nrof_folds) if path.suffix == PACK_SUFFIX else read_lfw(path, pairs, lfw_nrof_folds)
        for name, path, pairs in given
    }


def validator(
    towers: Towers, network: keras.Model, sets: dict[str, Pairs], *, image_size: int, load_size: int, batch_size: int
) -> Callable[[RunLog, int], dict]:
    """Validation on all ``sets``: the embedding of a picture is added to that of its mirror image, then normalised.

    The metrics are ``<set>_accuracy``, ``<set>_accuracy_std``, ``<set>_xnorm`` (mean norm of the single embeddings) and
    ``pairs_accuracy``, their mean accuracy. Pictures are embedded by all towers.
    """

    def validate(log: RunLog, step: int) -> dict:
        metrics = {}
        for name, pair_set in sets.items():
            verification, xnorm, _, _ = verify_insightface(
                towers, network, pair_set, image_size=image_size, load_size=load_size, batch_size=batch_size
            )
            skipped = len(pair_set.pairs) - verification.pairs_used
            if skipped:
                log.text(f"{name}: {skipped} pairs left out: pictures that cannot be read")
            accuracy = verification.accuracy
            highest = max(accuracy, highest_before(log.run_dir, f"{name}_accuracy"))
            log.text(flip_report(name, step, verification, xnorm, highest))
            metrics |= {
                f"{name}_accuracy": accuracy,
                f"{name}_accuracy_std": verification.accuracy_std,
                f"{name}_xnorm": xnorm,
            }
        return metrics | {BEST_BY: float(np.mean([metrics[f"{name}_accuracy"] for name in sets]))}

    return validate
