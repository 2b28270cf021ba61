"""Writing `.rec`, `.idx` and `property` as InsightFace's own tools do, for Towers and for MXNet's readers."""

import os
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ..errors import UserError
from .record_headers import FLOAT32_LIMIT
from .recordio import frame, index_text

_HEADER = struct.Struct("<IfQQ")


def pack(label: float | Sequence[float], key: int, picture: bytes = b"") -> bytes:
    """The payload of a record: a single label stands in the header, several behind it."""
    if isinstance(label, int | float):
        return _HEADER.pack(0, label, key, 0) + picture
    return _HEADER.pack(len(label), 0.0, key, 0) + np.asarray(label, "<f4").tobytes() + picture


def write_records(
    folder: Path,
    pictures: Callable[[int], bytes],
    labels: np.ndarray,
    *,
    num_classes: int,
    size: tuple[int, int],
    flat: bool = False,
    name: str = "train",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Write `name.rec`, `name.idx` and `property` into a folder.

    Args:
      pictures: from a record's number 0..N-1 to its encoded bytes, which are written as they are.
      labels: int64 [N]; the pictures are ordered by it, stably.
      size: height and width for `property`.
      flat: pictures only, keys 0 to N - 1, in the order given (DALI, ImageRecordIter); else InsightFace's layout.

    Raises UserError: classes, or record numbers of InsightFace's layout, that float32 cannot hold.
    """
    labels = np.asarray(labels, np.int64)
    if num_classes > FLOAT32_LIMIT:
        raise UserError(f"{num_classes} classes: a .rec keeps labels in float32, exact to {FLOAT32_LIMIT} only")
    order = np.arange(len(labels)) if flat else np.argsort(labels, kind="stable")
    people, counts = np.unique(labels, return_counts=True)
    num_records = len(labels) + 1 + len(people)
    if not flat and num_records > FLOAT32_LIMIT:
        raise UserError(
            f"{num_records} records: InsightFace's layout numbers them in float32, exact to {FLOAT32_LIMIT} only; "
            "write the flat layout (--flat)"
        )
    heads = []
    with open(folder / f"{name}.rec", "wb") as file:

        def add(payload: bytes) -> None:
            heads.append(file.tell())
            file.write(frame(payload))

        keys = np.arange(len(labels)) + (not flat)
        for place, record in enumerate(order.tolist()):
            add(pack(int(labels[record]), int(keys[place]), pictures(record)))
            progress(place + 1, len(labels))
        if not flat:
            first_identity = len(labels) + 1
            add(pack([first_identity, first_identity + len(people)], 0))
            ends = np.cumsum(counts) + 1
            for number, (start, end) in enumerate(zip(ends - counts, ends, strict=True)):
                add(pack([start, end], first_identity + number))
            keys = np.concatenate([keys, [0], first_identity + np.arange(len(people))])
        file.flush()
        os.fsync(file.fileno())
    (folder / f"{name}.idx").write_bytes(index_text(keys, np.array(heads, np.int64)))
    (folder / "property").write_text(f"{num_classes},{size[0]},{size[1]}\n")
