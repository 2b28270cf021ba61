"""Pictures on disk as a source of records: a folder of class folders, or a plain list of paths."""

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from ..errors import BadData
from .decoding import MAX_ENCODED_BYTES, turned

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png")
# Most pictures come whole with the first read; a larger one would take fresh pages from the system each time.
_CHUNK = 1 << 16
EXPECTED_LAYOUT = "expected ROOT/Class/picture.jpg (.jpg, .jpeg or .png; class folders may be nested)"


@dataclass(frozen=True)
class Source:
    """Pictures of labelled classes. Record r is `root/files[r]`, of class `class_names[labels[r]]`.

    `labels` is int64 [N].
    """

    root: str
    files: list[str]
    labels: np.ndarray
    class_names: list[str]

    def __len__(self) -> int:
        return len(self.files)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def reader(self, records: Sequence[int] | np.ndarray) -> Callable[[], list[bytes]]:
        """A function that reads these records' encoded bytes, to be called here or sent to another process.

        It raises OSError where a file cannot be read.
        """
        return partial(read_files, [f"{self.root}/{self.files[record]}" for record in records])

    def where(self, record: int) -> str:
        """The path of a record, for messages and for reading."""
        return f"{self.root}/{self.files[record]}"

    def subset(self, records: Sequence[int] | np.ndarray) -> "Source":
        """Only these records, in this order; classes without a record are dropped and the rest renumbered in order."""
        records = np.asarray(records, np.int64)
        kept_classes, labels = np.unique(self.labels[records], return_inverse=True)
        return Source(
            root=self.root,
            files=[self.files[record] for record in records],
            labels=labels.astype(np.int64),
            class_names=[self.class_names[label] for label in kept_classes],
        )

    def fingerprint(self) -> str:
        """SHA-256 over every record's path below the root and size in bytes: tells whether a run's data changed."""
        digest = hashlib.sha256()
        for file in self.files:
            size = os.stat(os.path.join(self.root, file)).st_size
            digest.update(os.fsencode(file) + b"\0" + str(size).encode() + b"\n")
        return digest.hexdigest()


class PathSource:
    """Pictures without classes, such as those that verification pairs name: record r is `paths[r]`, labels are 0."""

    def __init__(self, paths: Sequence[str | os.PathLike]):
        self.paths = [os.fspath(path) for path in paths]
        self.labels = np.zeros(len(self.paths), np.int64)

    def __len__(self) -> int:
        return len(self.paths)

    def reader(self, records: Sequence[int] | np.ndarray) -> Callable[[], list[bytes]]:
        """As `Source.reader`."""
        return partial(read_files, [self.paths[record] for record in records])

    def where(self, record: int) -> str:
        """The path of a record."""
        return self.paths[record]


class TurnedSource(PathSource):
    """JPEGs that come turned: `degrees[r]` clockwise (0, 90, 180 or 270), from how the pixels are stored.

    What the files' own EXIF says of their orientation is left aside.
    """

    def __init__(self, paths: Sequence[str | os.PathLike], degrees: Sequence[int] | np.ndarray):
        super().__init__(paths)
        self.degrees = np.asarray(degrees, np.int64)

    def reader(self, records: Sequence[int] | np.ndarray) -> Callable[[], list[bytes]]:
        """As `Source.reader`; it raises BadPicture where a picture to be turned is a PNG."""
        return partial(_read_turned, super().reader(records), self.degrees[records].tolist())


def read_folder(root: str | os.PathLike, *, min_images_per_class: int = 1) -> Source:
    """List a folder of class folders. Classes and files are sorted, so that equal folders give equal records.

    A class is any directory below `root` that directly holds pictures, named by its path below `root` with "/".
    Hidden entries and other files are left out. Symbolic links to folders and to pictures are followed, also out of
    `root`: data folders are often built of links, and the pictures are only ever decoded. A link back to a folder
    that contains it is an error.

    Raises BadData: the folder is missing or holds no picture, pictures lie directly in `root`, or fewer than two
    classes have `min_images_per_class` pictures.
    """
    root = os.fspath(root)
    if not os.path.isdir(root):
        raise BadData(f"{root}: not a folder; {EXPECTED_LAYOUT}")
    try:
        pictures_by_class = dict(sorted(_scan(root)))
    except OSError as error:
        raise BadData(
            f"{error.filename or root}: cannot list this folder ({error.strerror}); check its rights"
        ) from error
    if "" in pictures_by_class:
        example = pictures_by_class[""][0]
        raise BadData(f"{os.path.join(root, example)}: a picture directly in {root} has no class; {EXPECTED_LAYOUT}")
    if not pictures_by_class:
        raise BadData(f"{root}: holds no pictures; {EXPECTED_LAYOUT}")
    kept = {name: names for name, names in pictures_by_class.items() if len(names) >= min_images_per_class}
    if len(kept) < 2:
        raise BadData(
            f"{root}: {len(kept)} of {len(pictures_by_class)} classes have at least {min_images_per_class} pictures, "
            f"training needs 2 or more classes; {EXPECTED_LAYOUT}"
        )
    return Source(
        root=root,
        files=[f"{name}/{picture}" for name, pictures in kept.items() for picture in pictures],
        labels=np.repeat(np.arange(len(kept), dtype=np.int64), [len(pictures) for pictures in kept.values()]),
        class_names=list(kept),
    )


def _scan(root: str) -> list[tuple[str, list[str]]]:
    """(path below root, sorted picture names) of every directory that directly holds pictures."""
    found = []
    pending = [("", frozenset([os.path.realpath(root)]))]
    while pending:
        below, ancestors = pending.pop()
        pictures = []
        with os.scandir(os.path.join(root, below)) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.name.lower().endswith(PICTURE_SUFFIXES) and not entry.is_dir():
                    pictures.append(entry.name)
                elif entry.is_dir():
                    child = f"{below}/{entry.name}" if below else entry.name
                    pending.append((child, _with_target(entry, ancestors)))
        if pictures:
            found.append((below, sorted(pictures)))
    return found


def _with_target(entry: os.DirEntry, ancestors: frozenset[str]) -> frozenset[str]:
    """The real folders on the way to and including `entry`; BadData where a link leads back to one of them."""
    if not entry.is_symlink() and len(ancestors) == 1:
        return ancestors
    target = os.path.realpath(entry.path)
    if any(Path(ancestor).is_relative_to(target) for ancestor in ancestors):
        raise BadData(f"{entry.path}: this link leads back to {target}, a folder that contains it; remove the link")
    return ancestors | {target}


def read_files(paths: list[str]) -> list[bytes]:
    """Every file as `read_file` gives it."""
    return [read_file(path) for path in paths]


def read_file(path: str) -> bytes:
    """The file, or its first MAX_ENCODED_BYTES + 1 bytes: more is refused anyhow and must not fill the memory."""
    # O_NONBLOCK: a named pipe among the pictures must not stop the input; regular files ignore it.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        encoded = chunk = os.read(descriptor, _CHUNK)
        # Of a regular file less than a chunk is the end.
        while len(chunk) == _CHUNK and len(encoded) <= MAX_ENCODED_BYTES:
            chunk = os.read(descriptor, _CHUNK)
            encoded += chunk
    finally:
        os.close(descriptor)
    return encoded[: MAX_ENCODED_BYTES + 1]


def _read_turned(read: Callable[[], list[bytes]], degrees: list[int]) -> list[bytes]:
    return [turned(encoded, each) for encoded, each in zip(read(), degrees, strict=True)]
