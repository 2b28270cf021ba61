"""Retrieval with a trained network: pictures of a published set or a folder in, figures out."""

from collections.abc import Callable
from pathlib import Path

import cv2
import keras
import numpy as np
import tensorflow as tf

from .. import export
from ..datasets.decoding import BadPicture, Quarantine
from ..datasets.folder import read_folder
from ..distribution import Towers
from ..errors import BadData, UserError
from ..evaluation import retrieval_sets
from ..evaluation.retrieval import (
    average_precisions,
    hits_at,
    map_at_r,
    normalised,
    positive_ranks,
    r_precision,
    recall_at,
    trapezoid_average_precisions,
)
from ..evaluation.retrieval_sets import RetrievalSet
from ..summaries import RunLog
from .retrieval_sheets import read_picture, source_of, write_sheet
from .validation import embed_source

PROTOCOLS = ("holidays", "ukbench", "copydays", "folder")
RECALLS = (1, 5, 10)


def read_set(
    protocol: str, data_dir: Path, distractors: Path | None = None, holidays_rotations: Path | None = None
) -> RetrievalSet:
    """The pictures of a protocol.

    Args:
      holidays_rotations: see ``read_holidays``.

    Raises:
      UserError: an unknown protocol, no such folder or list, distractors or rotations where the protocol has none.
      BadData: pictures that the protocol needs are missing, or a list that does not fit them.
    """
    if protocol not in PROTOCOLS:
        raise UserError(f"--protocol {protocol}: unknown; choose one of {', '.join(PROTOCOLS)}")
    if holidays_rotations is not None and protocol != "holidays":
        raise UserError(f"--holidays_rotations with --protocol {protocol}: only holidays has any; leave them out")
    if protocol == "copydays":
        return retrieval_sets.read_copydays(data_dir, distractors)
    if distractors is not None:
        raise UserError(f"--distractors with --protocol {protocol}: only copydays has any; leave them out")
    if protocol == "folder":
        source = read_folder(data_dir)
        return retrieval_sets.all_against_all([source.where(record) for record in range(len(source))], source.labels)
    if protocol == "ukbench":
        return retrieval_sets.read_ukbench(data_dir)
    return retrieval_sets.read_holidays(data_dir, holidays_rotations)


def resolution(
    *,
    model: Path,
    image_size: int | None,
    load_size: int | None,
    gem_p: float | None,
    longest_side: int | None = None,
) -> tuple[dict[str, int], dict]:
    """Sizes of the pictures, and the changes for ``export.read_model``, where they differ from those of training.

    Args:
      model: run or model folder.
      load_size: None: as much larger than ``image_size`` as in training.
      longest_side: whole pictures of any shape instead.

    Raises:
      UserError: sizes that contradict each other.
    """
    _, facts = export.read_facts(model)
    changes = {} if gem_p is None else {"gem_p": gem_p}
    trained = facts["network"]["image_size"]
    if longest_side is not None:
        if image_size is not None or load_size is not None:
            raise UserError("--longest_side takes whole pictures; leave --image_size and --load_size out")
        return {"image_size": trained, "load_size": facts["load_size"]}, changes | {"image_size": None}
    if image_size is not None and image_size != trained:
        changes["image_size"] = image_size
    image_size = image_size or trained
    load_size = load_size or round(image_size * facts["load_size"] / trained)
    if load_size < image_size:
        raise UserError(f"--load_size {load_size} is smaller than --image_size {image_size}, which is cropped from it")
    return {"image_size": image_size, "load_size": load_size}, changes


def measure(protocol: str, pictures: RetrievalSet, embeddings: np.ndarray) -> tuple[dict[str, float], list[str]]:
    """The figures of a protocol from the embeddings [N, D] of its pictures.

    Returns:
      (name -> figure: ``holidays_map``; ``ukbench_score``; ``copydays_strong_map`` and so on, as their own programs
      compute them; of a folder ``recall_at_1`` ..., ``map_at_r``, ``r_precision`` and ``map``; a line for each thing
      that the reader of the figures should know).
    """
    embeddings = normalised(embeddings)
    figures, remarks = {}, []
    for task in pictures.tasks:
        ranked = positive_ranks(
            embeddings[task.queries],
            pictures.labels[task.queries],
            embeddings[task.gallery],
            pictures.labels[task.gallery],
            own=task.own,
        )
        if len(ranked.without_positive):
            remarks.append(
                f"{len(ranked.without_positive)} of {len(task.queries)} queries have no other picture of their class "
                f"and are left out, such as {pictures.paths[task.queries[ranked.without_positive[0]]]}"
            )
        if protocol == "holidays":
            figures["holidays_map"] = float(trapezoid_average_precisions(ranked).mean())
        elif protocol == "ukbench":
            figures["ukbench_score"] = hits_at(ranked, 4)
        elif protocol == "copydays":
            figures[f"copydays_{task.name.replace('/', '_')}_map"] = float(trapezoid_average_precisions(ranked).mean())
        else:
            figures |= {f"recall_at_{k}": recall_at(ranked, k) for k in RECALLS}
            figures |= {"map_at_r": map_at_r(ranked), "r_precision": r_precision(ranked)}
            figures["map"] = float(average_precisions(ranked).mean())
    if pictures.turns is not None:
        remarks.append(f"{np.count_nonzero(pictures.turns)} of {len(pictures.turns)} pictures are turned upright")
    published = retrieval_sets.PUBLISHED.get(protocol)
    if published:
        remarks.append(f"{len(pictures.tasks[0].gallery)} pictures in the gallery; the published set has {published}")
    return figures, remarks


def embed_whole(
    network: keras.Model, source, *, longest_side: int, max_bad_fraction: float = 1.0
) -> tuple[np.ndarray, dict[int, str]]:
    """Embeddings of whole pictures, their longest side brought to ``longest_side`` pixels and nothing cropped.

    MultiGrain's rectangular evaluation: one picture at a time, for no two need be of one shape.

    Args:
      network: one that takes any size (``networks.build`` with image_size None).

    Returns:
      ([N, D]; record -> reason of each picture that cannot be read, whose row is zero).

    Raises:
      UserError: a side below 1. BadData: more than ``max_bad_fraction`` of the pictures are unreadable.
    """
    if longest_side < 1:
        raise UserError(f"--longest_side {longest_side}: must be 1 or more pixels")

    @tf.function(input_signature=[tf.TensorSpec([1, None, None, 3], tf.uint8)], autograph=False)
    def embed(images):
        return network(tf.cast(images, network.compute_dtype), training=False)

    rows = np.zeros((len(source), network.output_shape[-1]), np.float32)
    quarantine = Quarantine(source)
    for record in range(len(source)):
        try:
            picture = read_picture(source, record)
        except BadPicture as error:
            quarantine.add(record, str(error))
            continue
        height, width = picture.shape[:2]
        scale = longest_side / max(height, width)
        size = max(1, round(width * scale)), max(1, round(height * scale))
        picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
        rows[record] = embed(picture[None])[0]
    quarantine.check(max_bad_fraction)
    return rows, quarantine.bad


def embed_at(
    towers: Towers, network: keras.Model, source, *, longest_side: int | None, max_bad_fraction: float, **square
) -> tuple[np.ndarray, dict[int, str]]:
    """``embed_whole`` where there is a ``longest_side``, else ``validation.embed_source`` with the sizes ``square``."""
    if longest_side is None:
        return embed_source(towers, network, source, max_bad_fraction=max_bad_fraction, **square)
    return embed_whole(network, source, longest_side=longest_side, max_bad_fraction=max_bad_fraction)


def evaluate(
    towers: Towers,
    network: keras.Model,
    protocol: str,
    pictures: RetrievalSet,
    *,
    image_size: int,
    load_size: int,
    batch_size: int = 100,
    longest_side: int | None = None,
    whitening: Callable[[np.ndarray], np.ndarray] | None = None,
) -> tuple[dict[str, float], list[str], np.ndarray]:
    """Embed and measure a retrieval set.

    Args:
      image_size, load_size: the centre square of image_size out of a shorter side of load_size.
      batch_size: images of a tower in a step.
      longest_side: whole pictures of this longest side instead.
      whitening: what the embeddings go through before they are compared.

    Returns:
      (figures, remarks, embeddings [N, D]).

    Raises:
      BadData: pictures that cannot be read: a figure without them would not be the protocol's.
    """
    embeddings, bad = embed_at(
        towers,
        network,
        source_of(pictures),
        image_size=image_size,
        load_size=load_size,
        batch_size=batch_size,
        longest_side=longest_side,
        max_bad_fraction=1.0,
    )
    if bad:
        first = min(bad)
        raise BadData(
            f"{len(bad)} of {len(pictures.paths)} pictures cannot be read, the first {pictures.paths[first]} "
            f"({bad[first]}); copy them again: figures without them would not be the protocol's"
        )
    if whitening is not None:
        embeddings = whitening(embeddings)
    figures, remarks = measure(protocol, pictures, embeddings)
    return figures, remarks, embeddings


def retrieval_validator(
    towers: Towers,
    network: keras.Model,
    protocol: str,
    data_dir: Path,
    *,
    image_size: int,
    load_size: int,
    distractors: Path | None = None,
    holidays_rotations: Path | None = None,
) -> Callable[[RunLog, int], dict]:
    """Validation by retrieval: the figures of a protocol, and a sheet of queries with what was found."""
    pictures = read_set(protocol, data_dir, distractors, holidays_rotations)

    def validate(log: RunLog, step: int) -> dict:
        figures, _, embeddings = evaluate(
            towers, network, protocol, pictures, image_size=image_size, load_size=load_size
        )
        write_sheet(log.run_dir / f"{protocol}_nearest.jpg", pictures, embeddings)
        log.text("  ".join(f"{name} {value:.4f}" for name, value in figures.items()))
        return figures

    return validate
