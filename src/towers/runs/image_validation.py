"""A trained classifier on a folder of classes: figures, a table of the classes, and the mistakes as pictures."""

from dataclasses import dataclass
from pathlib import Path

import cv2
import keras
import numpy as np

from .. import export, plots
from ..datasets.decoding import decode, read_header
from ..datasets.folder import PathSource
from ..distribution import Towers
from ..errors import BadData, StorageError
from ..evaluation.classification import TOP, Classification, class_rows, classify
from .pictures import labelled_pictures
from .retrieval import embed_at

SHEET_PICTURES = 40
SHEET_SIDE = 160
HEAD_ROWS = 10


@dataclass(frozen=True)
class ImageValidation:
    """The readable pictures as classified, their records in ``source``, and record -> reason of the unreadable ones."""

    result: Classification
    records: np.ndarray
    source: PathSource
    unreadable: dict[int, str]
    class_names: list[str]


def validate(
    towers: Towers,
    network: keras.Model,
    classifier: export.Classifier,
    data_dir: Path,
    *,
    image_size: int,
    load_size: int,
    batch_size: int,
    max_bad_fraction: float,
    longest_side: int | None = None,
) -> ImageValidation:
    """Classify every picture of ``data_dir`` once.

    Args:
      image_size, load_size: the centre square of image_size out of a shorter side of load_size.
      batch_size: images of a tower in a step.
      longest_side: whole pictures of this longest side instead, one at a time.

    Raises:
      BadData: a class that was not trained, or more than ``max_bad_fraction`` of the pictures are unreadable.
    """
    source, labels = labelled_pictures(data_dir, classifier.class_names)
    embeddings, unreadable = embed_at(
        towers,
        network,
        source,
        image_size=image_size,
        load_size=load_size,
        batch_size=batch_size,
        longest_side=longest_side,
        max_bad_fraction=max_bad_fraction,
    )
    readable = np.setdiff1d(np.arange(len(source)), list(unreadable))
    if not len(readable):
        raise BadData(f"{data_dir}: none of its {len(source)} pictures can be read; take another copy")
    result = classify(embeddings[readable], classifier.weights, classifier.bias, labels[readable])
    return ImageValidation(result, readable, source, unreadable, classifier.class_names)


def figures(validation: ImageValidation) -> dict:
    """The numbers for --json."""
    result = validation.result
    rows = class_rows(result, validation.class_names)
    return {
        "pictures": len(validation.source),
        "classified": len(result),
        "unreadable": [
            {"path": validation.source.where(record), "reason": reason}
            for record, reason in sorted(validation.unreadable.items())
        ],
        "classes": result.num_classes,
        "classes_with_pictures": len(rows),
        "top1": result.top(1),
        "top5": result.top(TOP),
        "mean_class_top1": float(np.mean([row.top1 for row in rows])),
        "cross_entropy": result.loss,
        "per_class": {row.name: {"pictures": row.pictures, "top1": row.top1, "top5": row.top5} for row in rows},
    }


def report(validation: ImageValidation) -> str:
    """The figures and the classes that fare worst, for people."""
    result = validation.result
    rows = sorted(class_rows(result, validation.class_names), key=lambda row: (row.top1, row.name))
    lines = [
        f"Pictures: {len(validation.source)} of {len(rows)} classes, {len(result)} classified, "
        f"{len(validation.unreadable)} unreadable"
    ]
    unreadable = sorted(validation.unreadable.items())
    lines += [
        f"  unreadable: {validation.source.where(record)} ({reason})" for record, reason in unreadable[:HEAD_ROWS]
    ]
    if len(unreadable) > HEAD_ROWS:
        lines.append(f"  and {len(unreadable) - HEAD_ROWS} more; --json FILE lists them all")
    lines += [
        f"Top-1: {result.top(1):.5f}  ({round(result.top(1) * len(result))} of {len(result)})",
        f"Top-5: {result.top(TOP):.5f}  ({round(result.top(TOP) * len(result))} of {len(result)})",
        f"Cross-entropy: {result.loss:.4f}",
        f"The {min(HEAD_ROWS, len(rows))} classes that fare worst:",
        f"  {'class':<28} {'pictures':>8} {'top-1':>7} {'top-5':>7}  most often taken for",
    ]
    for row in rows[:HEAD_ROWS]:
        mistake = f"{row.mistaken_for} ({row.mistakes})" if row.mistakes else "-"
        lines.append(f"  {row.name:<28} {row.pictures:>8} {row.top1:>7.4f} {row.top5:>7.4f}  {mistake}")
    return "\n".join(lines)


def write_files(validation: ImageValidation, folder: Path) -> None:
    """Write ``per_class.tsv``, ``confusion.png`` and ``mistakes.png``.

    Raises:
      StorageError: the folder cannot be written.
    """
    result, names = validation.result, validation.class_names
    lines = ["class\tpictures\ttop1\ttop5\tmistaken_for\tmistakes"]
    for row in class_rows(result, names):
        lines.append(f"{row.name}\t{row.pictures}\t{row.top1:.5f}\t{row.top5:.5f}\t{row.mistaken_for}\t{row.mistakes}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "per_class.tsv").write_text("\n".join(lines) + "\n")
    except OSError as error:
        raise StorageError(f"{folder}: cannot be written ({error.strerror}); choose another --out_dir") from error
    plots.confusion(result.confusion(), names, folder / "confusion.png")
    worst = result.worst_mistakes(SHEET_PICTURES)
    captions = [
        f"{names[result.labels[index]]}\ntaken for {names[result.predictions[index]]}\nby {result.excess[index]:.2f}"
        for index in worst
    ]
    pictures = [_small(validation.source, int(validation.records[index])) for index in worst]
    wrong = int((result.ranks > 0).sum())
    title = f"the {len(worst)} surest of {wrong} mistakes (by: probability above the true class's)"
    plots.picture_sheet(pictures, captions, title if wrong else "no mistakes", folder / "mistakes.png")


def _small(source: PathSource, record: int) -> np.ndarray:
    (encoded,) = source.reader([record])()
    picture = decode(encoded, read_header(encoded))
    scale = SHEET_SIDE / max(picture.shape[:2])
    if scale >= 1:
        return picture
    size = [max(1, round(side * scale)) for side in picture.shape[1::-1]]
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
