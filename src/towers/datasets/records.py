"""Pictures in `.rec` files, as InsightFace's data sets have them, as a source: no MXNet, read straight from the file.

source = read_records("faces_emore/train.rec")      # train.idx and property beside it

Two layouts. InsightFace's: record 0 has no picture and the labels [N + 1, N + 1 + I]; records 1 to N are pictures; the
I records after them, one a person, have no picture and as labels the number of that person's first picture and the one
after the last. Flat: pictures only. Which one it is, the records themselves say; labels come from the pictures' own
headers, since the numbers of the other records are float32, which loses whole ones from 2**24 on.
"""

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from ..errors import BadData
from .class_numbers import ClassNumbers
from .decoding import MAX_ENCODED_BYTES
from .record_headers import FAULTS, FLOAT32_LIMIT, IR_HEADER_BYTES, Faults, Headers, read_headers
from .recordio import RecordFile, find_heads, read_index, read_payload

REC_NAME, PROPERTY_NAME = "train.rec", "property"


@dataclass(frozen=True, eq=False)
class RecordSource:
    """Pictures of a `.rec`. Record r of the source has the key `keys[r]` in the file and begins at byte `heads[r]`.

    `labels` int64 [N]; `bodies` int32 [N]: bytes from the head to the picture, 0 where the payload is in pieces;
    `sizes` int64 [N]: bytes of the picture. 36 bytes a record, no Python object.
    """

    file: RecordFile
    keys: np.ndarray
    heads: np.ndarray
    bodies: np.ndarray
    sizes: np.ndarray
    labels: np.ndarray
    class_names: ClassNumbers

    def __len__(self) -> int:
        return len(self.heads)

    @property
    def root(self) -> str:
        """The file, for messages."""
        return self.file.path

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def reader(self, records: Sequence[int] | np.ndarray) -> Callable[[], list[bytes]]:
        """As `folder.Source.reader`; of each record at most MAX_ENCODED_BYTES + 1: more is refused anyhow.

        Raises StorageError where the file was changed since it was opened.
        """
        self.file.check_unchanged()
        records = np.asarray(records, np.int64)
        places = (values[records].tolist() for values in (self.heads, self.bodies, self.sizes))
        return partial(_read_pictures, self.file.lent(), list(zip(*places, strict=True)))

    def where(self, record: int) -> str:
        """File, key and place of a record, for messages."""
        return f"{self.file.path}, record {self.keys[record]} at byte {self.heads[record]}"

    def subset(self, records: Sequence[int] | np.ndarray) -> "RecordSource":
        """Only these records, in this order; classes without a record are dropped and the rest renumbered in order."""
        records = np.asarray(records, np.int64)
        kept_classes, labels = np.unique(self.labels[records], return_inverse=True)
        return RecordSource(
            self.file,
            self.keys[records],
            self.heads[records],
            self.bodies[records],
            self.sizes[records],
            labels.astype(np.int64),
            self.class_names.take(kept_classes),
        )

    def fingerprint(self) -> str:
        """SHA-256 over the file's size and every record's place, size and label: tells whether a run's data changed."""
        digest = hashlib.sha256(str(self.file.size).encode())
        for values in (self.heads, self.sizes, self.labels):
            digest.update(np.ascontiguousarray(values, "<i8"))
        return digest.hexdigest()


def read_records(path: str | os.PathLike, *, faults: Faults | None = None) -> RecordSource:
    """Open a `.rec`, or the `train.rec` of InsightFace's folder; `.idx` and `property` lie beside it.

    Everything that can be told without decoding is checked for every record: that the index has all records and each at
    its place, that records have a picture, that labels are classes. Without an `.idx` the records are looked up in the
    file, which reads all of it. The classes are 0 to C - 1, C from `property`, else the greatest label + 1.

    Args:
      faults: where given, broken records are left out and added to it instead of raising.

    Raises:
      BadData: no such file, no pictures in it, or the first broken record with its place.
    """
    path = record_path(path)
    file = RecordFile(path)
    found = Faults(file.path) if faults is None else faults
    words = file.words()
    index = path.with_suffix(".idx")
    keys, heads = _index(index, found) if index.exists() else (None, find_heads(file, words))
    if not len(heads):
        raise BadData(f"{path}: holds no record ({file.size} bytes); give a .rec of pictures")
    in_file = np.argsort(heads, kind="stable")
    keys, heads = None if keys is None else keys[in_file], heads[in_file]
    headers = read_headers(file, words, heads)
    if keys is None:
        keys = find_keys(headers)
    sound = _check_places(file, keys, heads, headers, found)
    pictures = _pictures(keys, heads, headers, sound, found)
    pictures = pictures[np.argsort(keys[pictures], kind="stable")]
    num_classes = read_property(path.with_name(PROPERTY_NAME))
    labels, good = _labels(keys[pictures], heads[pictures], headers.label[pictures], num_classes, found)
    if faults is None:
        found.check()
    pictures, labels = pictures[good], labels[good]
    if not len(pictures):
        raise BadData(f"{path}: holds no pictures ({file.size} bytes); give a .rec of pictures")
    headers = headers.take(pictures)
    return RecordSource(
        file,
        keys[pictures],
        heads[pictures],
        np.where(headers.whole, headers.body, 0).astype(np.int32),
        headers.size,
        labels,
        ClassNumbers(np.arange(labels.max() + 1 if num_classes is None else num_classes)),
    )


def scan_records(path: str | os.PathLike) -> tuple[np.ndarray, np.ndarray]:
    """Keys and places of all records of a `.rec`, found without an index: int64 [n] both, in the order of the file.

    Raises BadData: no such file, no records in it, or the first place where it is damaged.
    """
    path = record_path(path)
    file, found = RecordFile(path), Faults(os.fspath(path))
    words = file.words()
    heads = find_heads(file, words)
    if not len(heads):
        raise BadData(f"{path}: holds no record ({file.size} bytes); give a .rec of pictures")
    headers = read_headers(file, words, heads)
    keys = find_keys(headers)
    _check_places(file, keys, heads, headers, found)
    found.check()
    return keys, heads


def record_path(path: str | os.PathLike) -> Path:
    """The `.rec` itself, also where its folder was given."""
    return Path(path) / REC_NAME if os.path.isdir(path) else Path(path)


def read_property(path: str | os.PathLike) -> int | None:
    """The number of classes in the first line of InsightFace's `property`, `classes,112,112`; None without a file.

    Raises BadData where the line is something else.
    """
    if not os.path.exists(path):
        return None
    try:
        with open(path, "rb") as file:
            line = file.readline(1000).strip()
        classes, height, width = map(int, line.split(b","))
    except OSError as error:
        raise BadData(f"{path}: cannot be read ({error.strerror}); check its rights") from error
    except ValueError:
        raise BadData(f"{path}, line 1: {line[:60]!r} is not `classes,height,width`; correct or delete it") from None
    if not (0 < classes <= FLOAT32_LIMIT and height > 0 and width > 0):
        raise BadData(f"{path}, line 1: {line[:60]!r}: from 1 to {FLOAT32_LIMIT} classes; correct or delete it")
    return classes


def find_keys(headers: Headers) -> np.ndarray:
    """Keys for records in the order of the file where no index tells them: int64 [n].

    Flat where every record has a picture: 0 to N - 1. Else InsightFace's: pictures get 1 to N, the record 0 is the
    one whose first label is N + 1, those without a picture that are left get the numbers after N.
    """
    empty = (headers.size == 0) & (headers.fault == 0)
    if not empty.any():
        return np.arange(len(empty))
    num_pictures = int(np.count_nonzero(~empty))
    keys = np.empty(len(empty), np.int64)
    keys[~empty] = np.arange(1, num_pictures + 1)
    others = np.flatnonzero(empty)
    first = others[headers.label[others] == np.float32(num_pictures + 1)]
    # It is written before the others or after them; rounded labels may make one of those look like it.
    meta = next((record for record in (others[0], others[-1]) if record in first), None)
    keys[others] = num_pictures + 1 + np.arange(len(others)) - (meta == others[0])
    if meta is not None:
        keys[meta] = 0
    return keys


def _index(path: Path, found: Faults) -> tuple[np.ndarray, np.ndarray]:
    """Keys and places; line order may differ from the file's order for record 0 only."""
    keys, heads = read_index(path)
    if not len(keys):
        raise BadData(f"{path}: empty; make it anew with scripts/index_rec.py {path.with_suffix('.rec')}")
    others = keys != 0
    ordered_keys, ordered = keys[others], heads[others]
    back = np.flatnonzero(np.diff(ordered) <= 0) + 1
    anew = f"make {path} anew with scripts/index_rec.py"
    found.add(
        ordered_keys[back],
        ordered[back],
        lambda index: f"the index has byte {ordered[back[index] - 1]} before it, not the order of the file; {anew}",
    )
    keep = np.unique(keys, return_index=True)[1]
    again = np.ones(len(keys), bool)
    again[keep] = False
    twice = np.flatnonzero(again)
    found.add(keys[twice], heads[twice], f"the index has its key twice; {anew}")
    return keys[keep], heads[keep]


def _check_places(file: RecordFile, keys, heads, headers: Headers, found: Faults) -> np.ndarray:
    """bool [n]: records that are whole. Faults also for what lies between records: nothing may be left out silently."""
    broken = np.flatnonzero(headers.fault)
    found.add(keys[broken], heads[broken], lambda index: FAULTS[headers.fault[broken[index]]])
    if heads[0] > 0:
        found.add(keys[:1], heads[:1], f"{heads[0]} bytes before it that the index has no record for")
    sound = headers.fault == 0
    ends, following = headers.end[sound], np.append(heads[1:], file.size)[sound]
    gaps = np.flatnonzero(ends != following)
    keys, heads = keys[sound][gaps], heads[sound][gaps]

    def reason(index: int) -> str:
        end, then = ends[gaps[index]], following[gaps[index]]
        what = "bytes that the index has no record for" if end < then else "a record begins before it ends"
        return f"ends at byte {end}, the next record or the end of the file is at {then}: {what}"

    found.add(keys, heads, reason)
    return sound


def _pictures(keys, heads, headers: Headers, sound: np.ndarray, found: Faults) -> np.ndarray:
    """Indices of the records with a picture; faults where one of these should have none, or the other way round."""
    empty, picture = sound & (headers.size == 0), sound & (headers.size > 0)
    meta = np.flatnonzero(empty & (keys == 0) & (headers.flag > 0))

    def blame(wrong: np.ndarray, reason: str) -> None:
        found.add(keys[wrong], heads[wrong], reason)

    if not len(meta):
        blame(empty, "has no picture: an identity record in a file without the record 0 of InsightFace's layout")
        return np.flatnonzero(picture)
    end = headers.label[meta[0]]
    if not end >= 1:
        blame(meta, f"says that the pictures end before record {end}")
        return np.flatnonzero(picture)
    num_pictures = int(end) - 1 if end < FLOAT32_LIMIT else int(np.count_nonzero(picture))
    inside = (keys >= 1) & (keys <= num_pictures)
    blame(empty & inside, f"has no picture: an identity record among the pictures 1 to {num_pictures}")
    blame(picture & ~inside, f"is a picture outside the records 1 to {num_pictures} that record 0 says are pictures")
    if np.count_nonzero(inside) != num_pictures:
        blame(meta, f"says there are {num_pictures} pictures, the index has {np.count_nonzero(inside)} of them")
    return np.flatnonzero(picture & inside)


def _labels(keys, heads, label: np.ndarray, num_classes: int | None, found: Faults) -> tuple[np.ndarray, np.ndarray]:
    """Labels int64 [n], and bool [n] which of them are classes."""
    good = np.ones(len(label), bool)

    def blame(wrong: np.ndarray, reason: str) -> None:
        rows = np.flatnonzero(good & wrong)
        found.add(keys[rows], heads[rows], lambda index: f"its label {label[rows[index]]:.10g} {reason}")
        good[rows] = False

    blame(~np.isfinite(label), "is not a number")
    blame(label < 0, "is negative")
    blame(label >= FLOAT32_LIMIT, f"may have been rounded: float32 tells classes apart up to {FLOAT32_LIMIT} only")
    labels = np.where(good, label, 0).astype(np.int64)
    blame(labels != label, "is not whole")
    if num_classes is not None:
        blame(labels >= num_classes, f"is not below the {num_classes} classes that {PROPERTY_NAME} says there are")
    return labels, good


def _read_pictures(opened: Callable[[], RecordFile], places: list[tuple[int, int, int]]) -> list[bytes]:
    """The pictures of (head, body, size)."""
    file, pictures = opened(), []
    for head, body, size in places:
        limit = min(size, MAX_ENCODED_BYTES + 1)
        if body:
            pictures.append(file.read_at(head + body, limit))
        else:
            start = IR_HEADER_BYTES + 4 * int.from_bytes(read_payload(file, head, 4), "little")
            pictures.append(read_payload(file, head, start + limit)[start:])
    return pictures
