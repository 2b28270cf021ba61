"""Lists of pictures as a source: a text file with a line for each, paths below the folder of the list.

HF-Softmax's train and val lists, lines `path label`, a tab or blanks between the two; and MXNet's `.lst` of im2rec,
lines `index TAB label [TAB more labels] TAB path`. Labels from 0.
"""

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from ..errors import BadData
from .class_numbers import ClassNumbers
from .folder import read_files
from .text_columns import BLANK, DOT, TAB, first_places, integers, last_separators, line_spans

MAX_CLASSES = 2**31
MXNET_SUFFIX = ".lst"
MXNET_LINE = "index TAB label TAB path"


@dataclass(frozen=True, eq=False)
class ListSource:
    """Pictures of a list. Record r is `root/PATH`, PATH the bytes [starts[r], ends[r]) of `text`.

    No Python object for each. `lines` int64 [N]: the number of each record's line, from 1; `labels` int64 [N].
    """

    root: str
    path: str
    text: bytes
    starts: np.ndarray
    ends: np.ndarray
    lines: np.ndarray
    labels: np.ndarray
    class_names: ClassNumbers

    def __len__(self) -> int:
        return len(self.labels)

    def __getstate__(self) -> dict:
        # Another process gets the paths of its own records, not the whole list.
        paths = [self.text[start:end] for start, end in zip(self.starts.tolist(), self.ends.tolist(), strict=True)]
        ends = np.cumsum([len(path) for path in paths], dtype=np.int64)
        starts = np.concatenate([np.zeros(1, np.int64), ends[:-1]])[: len(paths)]
        return self.__dict__ | {"text": b"".join(paths), "starts": starts, "ends": ends}

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def reader(self, records: Sequence[int] | np.ndarray) -> Callable[[], list[bytes]]:
        """As `folder.Source.reader`; it raises OSError also where a link leads out of `root`."""
        return partial(_read_below, self.root, [self.where(record) for record in records])

    def where(self, record: int) -> str:
        """The path of a record."""
        return os.path.join(self.root, os.fsdecode(self.text[self.starts[record] : self.ends[record]]))

    def subset(self, records: Sequence[int] | np.ndarray) -> "ListSource":
        """Only these records, in this order; classes without a record are dropped and the rest renumbered in order."""
        records = np.asarray(records, np.int64)
        kept_classes, labels = np.unique(self.labels[records], return_inverse=True)
        return replace(
            self,
            starts=self.starts[records],
            ends=self.ends[records],
            lines=self.lines[records],
            labels=labels.astype(np.int64),
            class_names=self.class_names.take(kept_classes),
        )

    def fingerprint(self) -> str:
        """SHA-256 over every record's path, label and size in bytes: tells whether a run's data changed."""
        digest = hashlib.sha256()
        for record in range(len(self)):
            path = self.where(record)
            try:
                size = os.stat(path).st_size
            except OSError:
                # The input names it, and replaces it or stops; it comes to the same for the fingerprint.
                size = -1
            path_bytes = self.text[self.starts[record] : self.ends[record]]
            digest.update(path_bytes + b"\0%d\0%d\n" % (self.labels[record], size))
        return digest.hexdigest()


def read_list(path: str | os.PathLike) -> ListSource:
    """Read a list; one named `.lst` is MXNet's. The classes are 0 to the greatest label; empty lines are left out.

    Of several labels in a line of MXNet the first is the class, as in a `.rec`; the index is not used.
    Paths are below the folder of the list: absolute ones, those with `..`, addresses, and folders that are links to
    somewhere else are refused. Whether a picture is there shows when it is read.

    Raises BadData, with the line: no list there, no pictures in it, or a line that is none of such a list.
    """
    path = Path(path)
    is_mxnets = path.suffix == MXNET_SUFFIX
    form = MXNET_LINE if is_mxnets else "path label"
    try:
        text = path.read_bytes()
    except OSError as error:
        raise BadData(f"{path}: cannot be read ({error.strerror}); give a list of '{form}' lines") from error
    data = np.frombuffer(text, np.uint8)
    starts, ends = line_spans(data)
    ends = _without_blanks(data, starts, ends)
    lines = np.flatnonzero(ends > starts)
    starts, ends = starts[lines], ends[lines]
    if not len(lines):
        raise BadData(f"{path}: lists no pictures; give lines '{form}'")
    path_starts, path_ends, labels, good = (_mxnets_columns if is_mxnets else _columns)(data, starts, ends)

    def refuse(wrong: np.ndarray, reason: str) -> None:
        if wrong.any():
            row = int(np.argmax(wrong))
            shown = text[starts[row] : ends[row]][:80]
            raise BadData(f"{path}, line {lines[row] + 1}: {shown!r}: {reason}")

    refuse(~good | (path_ends <= path_starts), f"not '{form}' with a label of 0 or more; correct the line")
    refuse(labels >= MAX_CLASSES, f"a label of {MAX_CLASSES} or more; number the classes from 0")
    _check_folders(path, text, path_starts, path_ends, refuse)
    return ListSource(
        root=os.fspath(path.parent),
        path=os.fspath(path),
        text=text,
        starts=path_starts,
        ends=path_ends,
        lines=lines + 1,
        labels=labels,
        class_names=ClassNumbers(np.arange(labels.max() + 1)),
    )


def _columns(data, starts, ends) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Where the paths of `path label` lines begin and end, the labels, and whether these are numbers: [L] each."""
    separators = last_separators(data, starts, ends)
    labels, good = integers(data, separators + 1, ends)
    return starts, _without_blanks(data, starts, np.maximum(separators, starts)), labels, good & (separators >= 0)


def _mxnets_columns(data, starts, ends) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The same of MXNet's lines, whose labels im2rec writes as `7.000000`."""
    first = first_places(data, TAB, starts, ends)
    second = first_places(data, TAB, np.minimum(first + 1, ends), ends)
    dots = first_places(data, DOT, np.minimum(first + 1, second), second)
    _, indexed = integers(data, starts, first)
    labels, whole = integers(data, first + 1, dots)
    fraction, digits = integers(data, dots + 1, second)
    good = indexed & whole & (second < ends) & ((dots + 1 >= second) | (digits & (fraction == 0)))
    return last_separators(data, starts, ends, only=TAB) + 1, ends, labels, good


def list_line(path: str, label: int) -> bytes:
    """A line of a list."""
    return os.fsencode(path) + b" %d\n" % label


def _without_blanks(data: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Ends of spans before their trailing blanks and tabs: int64 [L]."""
    ends = ends.copy()
    while True:
        last = data[np.maximum(ends - 1, 0)] if len(data) else np.zeros(0, np.uint8)
        blank = (ends > starts) & ((last == TAB) | (last == BLANK))
        if not blank.any():
            return ends
        ends -= blank


def _check_folders(path: Path, text: bytes, starts: np.ndarray, ends: np.ndarray, refuse) -> None:
    """Refuse lines whose folder is not below the list's; each folder is looked at once."""
    root = os.path.realpath(path.parent)
    seen, previous = set(), None
    for row, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
        folder, _, name = text[start:end].rpartition(b"/")
        if name == b"..":
            folder += b"/.."
        if folder == previous and not text.startswith(b"/", start):
            continue
        previous = folder
        if folder in seen and not text.startswith(b"/", start):
            continue
        seen.add(folder)
        reason = None
        if text.startswith(b"/", start) or b".." in folder.split(b"/") or b"://" in text[start:end]:
            reason = f"leads out of {path.parent}: paths are relative to the folder of the list"
        elif b"\0" in folder:
            reason = "holds a zero byte; give a text file"
        elif not _is_below(os.path.realpath(os.path.join(root, os.fsdecode(folder))), root):
            reason = f"a link leads out of {path.parent}; move the list beside the pictures"
        if reason:
            refuse(np.arange(len(starts)) == row, reason)


def _read_below(root: str, paths: list[str]) -> list[bytes]:
    for path in paths:
        if os.path.islink(path) and not _is_below(os.path.realpath(path), os.path.realpath(root)):
            raise OSError(f"a link that leads out of {root}")
    return read_files(paths)


def _is_below(path: str, root: str) -> bool:
    return path == root or path.startswith(root.rstrip("/") + "/")
