"""Sheets of pictures: queries with what was found for them."""

from pathlib import Path

import cv2
import numpy as np

from ..datasets.decoding import BadPicture, decode, fit, read_header
from ..datasets.folder import PathSource, TurnedSource
from ..errors import StorageError
from ..evaluation.retrieval import nearest, normalised
from ..evaluation.retrieval_sets import RetrievalSet

# In BGR.
GREEN, RED, GREY = (0, 160, 0), (0, 0, 200), (128, 128, 128)


def source_of(pictures: RetrievalSet) -> PathSource:
    """The pictures of a set, each turned as the set says."""
    if pictures.turns is None:
        return PathSource(pictures.paths)
    return TurnedSource(pictures.paths, pictures.turns)


def read_picture(source, record: int) -> np.ndarray:
    """A picture of a source as uint8 RGB [H, W, 3]. Raises BadPicture."""
    try:
        encoded = source.reader([record])()[0]
    except OSError as error:
        raise BadPicture(f"cannot be read: {error.strerror or error}") from error
    return decode(encoded, read_header(encoded))


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
        lines.append([(query, GREY, "")])
        for place, similarity in zip(task.gallery[found], similarities, strict=True):
            right = pictures.labels[place] == label
            lines[-1].append((place, GREEN if right else RED, f"{similarity:.3f}"))
    write_tiles(path, source_of(pictures), lines)


def write_tiles(path: Path, source, lines: list[list[tuple[int, tuple, str]]], *, side: int = 120) -> None:
    """A JPEG of rows of (record of the source, colour of its frame in BGR, words below it).

    Raises:
      StorageError: it cannot be written.
    """
    frame, below = 4, 14
    height, width = side + 2 * frame + below, side + 2 * frame
    sheet = np.full((len(lines) * height, max(map(len, lines)) * width, 3), 255, np.uint8)
    for row, line in enumerate(lines):
        for column, (record, colour, words) in enumerate(line):
            tile = sheet[row * height : (row + 1) * height, column * width : (column + 1) * width]
            tile[: side + 2 * frame] = colour
            tile[frame : frame + side, frame : frame + side] = fit(read_picture(source, record), side)[..., ::-1]
            cv2.putText(tile, words, (frame, height - 4), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (0, 0, 0), 1, cv2.LINE_AA)
    encoded = cv2.imencode(".jpg", sheet, [cv2.IMWRITE_JPEG_QUALITY, 88])[1].tobytes()
    try:
        path.write_bytes(encoded)
    except OSError as error:
        raise StorageError(f"{path}: cannot be written ({error.strerror}); give another file or make room") from error
