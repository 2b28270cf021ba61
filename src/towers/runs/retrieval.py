"""Retrieval with a trained network: pictures of a published set or a folder in, figures and sheets of pictures out."""

from collections.abc import Callable
from pathlib import Path

import cv2
import keras
import numpy as np
import tensorflow as tf

from ..datasets.decoding import BadPicture, decode, fit, read_header
from ..datasets.folder import PathSource, read_folder
from ..distribution import Towers
from ..errors import BadData, StorageError, UserError
from ..evaluation import retrieval_sets
from ..evaluation.retrieval import (
    average_precisions,
    hits_at,
    map_at_r,
    nearest,
    normalised,
    positive_ranks,
    r_precision,
    recall_at,
    trapezoid_average_precisions,
)
from ..evaluation.retrieval_sets import RetrievalSet
from ..summaries import RunLog
from .validation import embed_source

PROTOCOLS = ("holidays", "ukbench", "copydays", "folder")
RECALLS = (1, 5, 10)
_GREEN, _RED, _GREY = (0, 160, 0), (0, 0, 200), (128, 128, 128)


def read_set(protocol: str, data_dir: Path, distractors: Path | None = None) -> RetrievalSet:
    """The pictures of a protocol.

    Raises:
      UserError: an unknown protocol, no such folder, or distractors where the protocol has none.
      BadData: pictures that the protocol needs are missing.
    """
    if protocol not in PROTOCOLS:
        raise UserError(f"--protocol {protocol}: unknown; choose one of {', '.join(PROTOCOLS)}")
    if protocol == "copydays":
        return retrieval_sets.read_copydays(data_dir, distractors)
    if distractors is not None:
        raise UserError(f"--distractors with --protocol {protocol}: only copydays has any; leave them out")
    if protocol == "folder":
        source = read_folder(data_dir)
        return retrieval_sets.all_against_all([source.where(record) for record in range(len(source))], source.labels)
    return {"holidays": retrieval_sets.read_holidays, "ukbench": retrieval_sets.read_ukbench}[protocol](data_dir)


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
    published = retrieval_sets.PUBLISHED.get(protocol)
    if published:
        remarks.append(f"{len(pictures.tasks[0].gallery)} pictures in the gallery; the published set has {published}")
    return figures, remarks


def embed_whole(network: keras.Model, paths: list[str], *, longest_side: int) -> tuple[np.ndarray, dict[int, str]]:
    """Embeddings of whole pictures, their longest side brought to ``longest_side`` pixels and nothing cropped.

    MultiGrain's rectangular evaluation: one picture at a time, for no two need be of one shape.

    Args:
      network: one that takes any size (``networks.build`` with image_size None).

    Returns:
      ([N, D]; place -> reason of each picture that cannot be read, whose row is zero).
    """

    @tf.function(input_signature=[tf.TensorSpec([1, None, None, 3], tf.uint8)], autograph=False)
    def embed(images):
        return network(tf.cast(images, network.compute_dtype), training=False)

    rows, bad = np.zeros((len(paths), network.output_shape[-1]), np.float32), {}
    for place, path in enumerate(paths):
        try:
            picture = read_picture(path)
        except BadPicture as error:
            bad[place] = str(error)
            continue
        height, width = picture.shape[:2]
        scale = longest_side / max(height, width)
        size = max(1, round(width * scale)), max(1, round(height * scale))
        picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
        rows[place] = embed(picture[None])[0]
    return rows, bad


def read_picture(path: str) -> np.ndarray:
    """A picture as uint8 RGB [H, W, 3]. Raises BadPicture."""
    try:
        encoded = PathSource([path]).read([0])[0]
    except OSError as error:
        raise BadPicture(f"cannot be read: {error.strerror or error}") from error
    read_header(encoded)
    return decode(encoded)


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
) -> tuple[dict[str, float], list[str], np.ndarray]:
    """Embed and measure a retrieval set.

    Args:
      image_size, load_size: the centre square of image_size out of a shorter side of load_size.
      batch_size: images of a tower in a step.
      longest_side: whole pictures of this longest side instead.

    Returns:
      (figures, remarks, embeddings [N, D]).

    Raises:
      BadData: pictures that cannot be read: a figure without them would not be the protocol's.
    """
    if longest_side is None:
        embeddings, bad = embed_source(
            towers,
            network,
            PathSource(pictures.paths),
            image_size=image_size,
            load_size=load_size,
            batch_size=batch_size,
            max_bad_fraction=1.0,
        )
    else:
        embeddings, bad = embed_whole(network, pictures.paths, longest_side=longest_side)
    if bad:
        first = min(bad)
        raise BadData(
            f"{len(bad)} of {len(pictures.paths)} pictures cannot be read, the first {pictures.paths[first]} "
            f"({bad[first]}); copy them again: figures without them would not be the protocol's"
        )
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
) -> Callable[[RunLog, int], dict]:
    """Validation by retrieval: the figures of a protocol, and a sheet of queries with what was found."""
    pictures = read_set(protocol, data_dir, distractors)

    def validate(log: RunLog, step: int) -> dict:
        figures, _, embeddings = evaluate(
            towers, network, protocol, pictures, image_size=image_size, load_size=load_size
        )
        write_sheet(log.run_dir / f"{protocol}_nearest.jpg", pictures, embeddings)
        log.text("  ".join(f"{name} {value:.4f}" for name, value in figures.items()))
        return figures

    return validate


def write_sheet(path: Path, pictures: RetrievalSet, embeddings: np.ndarray, *, rows: int = 8, columns: int = 8) -> None:
    """A JPEG of queries, spread over the first task, each with its nearest pictures: right ones green, wrong ones red.

    Raises:
      StorageError: it cannot be written.
    """
    task = pictures.tasks[0]
    embeddings = normalised(embeddings)
    chosen = np.unique(np.linspace(0, len(task.queries) - 1, rows).round().astype(int))
    own = task.own[chosen]
    k = min(columns - 1, len(task.gallery) - int(np.any(own >= 0)))
    places, products = nearest(embeddings[task.queries[chosen]], embeddings[task.gallery], k, own=own)
    lines = []
    for query, found, similarities in zip(task.queries[chosen], places, products, strict=True):
        label = pictures.labels[query]
        lines.append([(pictures.paths[query], _GREY, "")])
        for place, similarity in zip(task.gallery[found], similarities, strict=True):
            right = pictures.labels[place] == label
            lines[-1].append((pictures.paths[place], _GREEN if right else _RED, f"{similarity:.3f}"))
    write_tiles(path, lines)


def write_tiles(path: Path, lines: list[list[tuple[str, tuple, str]]], *, side: int = 120) -> None:
    """A JPEG of rows of (path of a picture, colour of its frame in BGR, words below it).

    Raises:
      StorageError: it cannot be written.
    """
    frame, below = 4, 14
    height, width = side + 2 * frame + below, side + 2 * frame
    sheet = np.full((len(lines) * height, max(map(len, lines)) * width, 3), 255, np.uint8)
    for row, line in enumerate(lines):
        for column, (file, colour, words) in enumerate(line):
            tile = sheet[row * height : (row + 1) * height, column * width : (column + 1) * width]
            tile[: side + 2 * frame] = colour
            tile[frame : frame + side, frame : frame + side] = fit(read_picture(file), side)[..., ::-1]
            cv2.putText(tile, words, (frame, height - 4), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (0, 0, 0), 1, cv2.LINE_AA)
    encoded = cv2.imencode(".jpg", sheet, [cv2.IMWRITE_JPEG_QUALITY, 88])[1].tobytes()
    try:
        path.write_bytes(encoded)
    except OSError as error:
        raise StorageError(f"{path}: cannot be written ({error.strerror}); give another file or make room") from error
