"""From one format of a data set to another, the encoded pictures staying as they are."""

import os
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from ..errors import BadData
from .decoding import JPEG_MAGIC, PNG_MAGIC, BadPicture, decode, fit, read_header
from .lists import list_line
from .record_writing import write_records
from .records import RecordSource

JPEG_QUALITY = 95
READ_AT_ONCE = 64
TRAIN_LIST, VAL_LIST, CLASS_NAMES = "train_list.txt", "val_list.txt", "class_names.txt"


def unpack_records(
    source: RecordSource,
    folder: Path,
    held_out: np.ndarray,
    *,
    max_bad_fraction: float,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[str]:
    """Write each picture to `folder/LABEL/KEY.jpg` (or .png), and HF-Softmax's lists of `LABEL/KEY.jpg LABEL` lines.

    Args:
      held_out: records that go to the list of validation instead of training's.
      max_bad_fraction: share of records that may be something else than a JPEG or PNG; they are left out.

    Returns:
      A text for each record left out.

    Raises BadData where more are left out.
    """
    lists = {TRAIN_LIST: [], VAL_LIST: []}
    is_held_out = np.zeros(len(source), bool)
    is_held_out[held_out] = True
    made, left_out = set(), []
    for first in range(0, len(source), READ_AT_ONCE):
        records = range(first, min(first + READ_AT_ONCE, len(source)))
        for record, encoded in zip(records, _read(source, records), strict=True):
            suffix = picture_suffix(encoded)
            if suffix is None:
                left_out.append(f"{source.where(record)}: neither JPEG nor PNG, begins with {encoded[:8]!r}")
                continue
            label = source.class_names[source.labels[record]]
            if label not in made:
                (folder / label).mkdir()
                made.add(label)
            path = f"{label}/{source.keys[record]}{suffix}"
            (folder / path).write_bytes(encoded)
            lists[VAL_LIST if is_held_out[record] else TRAIN_LIST].append(list_line(path, int(label)))
        progress(records.stop, len(source))
    if len(left_out) > max_bad_fraction * len(source):
        raise BadData(
            f"{len(left_out)} of {len(source)} records are no pictures, {max_bad_fraction:.3%} may be: {left_out[0]}; "
            "scripts/verify_data.py lists them"
        )
    for name, lines in lists.items():
        (folder / name).write_bytes(b"".join(lines))
    return left_out


def pack_records(
    source,
    folder: Path,
    *,
    image_size: int | None,
    flat: bool,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Write a source as `train.rec`, `train.idx`, `property`, and `class_names.txt` (a line `label TAB name` a class).

    Args:
      image_size: pictures of another size are brought to this square (shorter side, then the centre) and written as
        JPEG; None: pictures stay as they are, and must all have one size.
      flat: see `write_records`.

    Raises BadData: a picture that cannot be read, or of another size than the first; UserError: see `write_records`.
    """
    size = (image_size, image_size) if image_size else _size(source, 0, *_read(source, [0]))

    def picture(record: int) -> bytes:
        (encoded,) = _read(source, [record])
        height, width = _size(source, record, encoded)
        if (height, width) == size:
            return encoded
        if image_size:
            return _resized(source, record, encoded, image_size)
        raise BadData(
            f"{source.where(record)}: {height} x {width} pixels where the first picture has "
            f"{size[0]} x {size[1]}; give --image_size to bring all to one"
        )

    write_records(
        folder, picture, source.labels, num_classes=source.num_classes, size=size, flat=flat, progress=progress
    )
    names = b"".join(b"%d\t%s\n" % (label, os.fsencode(name)) for label, name in enumerate(source.class_names))
    (folder / CLASS_NAMES).write_bytes(names)


def read_pictures(
    source, *, image_size: int | None, progress: Callable[[int, int], None] = lambda done, total: None
) -> list[bytes]:
    """All pictures of a source, encoded; with `image_size`, those of another size are brought to it as JPEG.

    Raises BadData: a picture that cannot be read.
    """
    pictures = []
    for record in range(len(source)):
        (encoded,) = _read(source, [record])
        height, width = _size(source, record, encoded)
        if image_size and (height, width) != (image_size, image_size):
            encoded = _resized(source, record, encoded, image_size)
        pictures.append(encoded)
        progress(record + 1, len(source))
    return pictures


def picture_suffix(encoded: bytes) -> str | None:
    """`.jpg` or `.png` by the first bytes; None for anything else."""
    return ".jpg" if encoded.startswith(JPEG_MAGIC) else ".png" if encoded.startswith(PNG_MAGIC) else None


def _read(source, records) -> list[bytes]:
    """As the source reads, with BadData where a picture cannot be read."""
    try:
        return source.reader(records)()
    except OSError as error:
        where = error.filename or source.where(records[0])
        raise BadData(f"{where}: cannot be read ({error.strerror or error}); repair or remove it") from error


def _size(source, record: int, encoded: bytes) -> tuple[int, int]:
    """Height and width of a picture."""
    try:
        header = read_header(encoded)
    except BadPicture as error:
        raise BadData(f"{source.where(record)}: {error}; repair or remove it") from error
    return header.height, header.width


def _resized(source, record: int, encoded: bytes, image_size: int) -> bytes:
    try:
        picture = fit(decode(encoded, read_header(encoded)), image_size)
    except BadPicture as error:
        raise BadData(f"{source.where(record)}: {error}; repair or remove it") from error
    return cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1].tobytes()
