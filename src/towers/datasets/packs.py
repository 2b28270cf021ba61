"""Verification packs, InsightFace's `.bin`: pairs of encoded pictures and whether each shows one person, in one file.

pack = read_pack("lfw.bin")           # a source of 2P pictures: pair k is the pictures 2k and 2k + 1
evaluate_pairs(embeddings, pack.pairs, pack.same, fold_ids=pack.fold_ids())
"""

import os
import pickle
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from ..errors import BadData, UserError
from . import closed_pickle
from .writing import whole_file

MAX_PACK_BYTES = 4 * 2**30
DEFAULT_FOLDS = 10


@dataclass(frozen=True, eq=False)
class Pack:
    """A source without classes (labels are 0): 2P pictures; `same` bool [P]."""

    path: str
    pictures: list[bytes]
    same: np.ndarray

    def __len__(self) -> int:
        return len(self.pictures)

    @property
    def root(self) -> str:
        """The file, for messages."""
        return self.path

    @cached_property
    def labels(self) -> np.ndarray:
        return np.zeros(len(self.pictures), np.int64)

    @property
    def class_names(self) -> list[str]:
        return [os.path.basename(self.path)]

    @property
    def num_classes(self) -> int:
        return 1

    @property
    def pairs(self) -> np.ndarray:
        """int64 [P, 2], pictures of each pair."""
        return np.arange(len(self.pictures)).reshape(-1, 2)

    def reader(self, records: Sequence[int] | np.ndarray) -> Callable[[], list[bytes]]:
        """As `folder.Source.reader`; it carries the bytes."""
        return partial(list, [self.pictures[record] for record in records])

    def where(self, record: int) -> str:
        """File and place in it, for messages; both numbers from 0."""
        return f"{self.path}, picture {record} (pair {record // 2})"

    def subset(self, records: Sequence[int] | np.ndarray) -> "Pack":
        """Only these pictures, without their pairs."""
        return Pack(self.path, [self.pictures[record] for record in records], np.zeros(0, bool))

    def fold_ids(self, folds: int | None = None) -> np.ndarray:
        """The fold of each pair, int64 [P]: blocks of pairs in order, the first P % folds one longer (default: 10).

        Raises UserError: fewer than 2 folds, or more than pairs.
        """
        folds = DEFAULT_FOLDS if folds is None else folds
        if not 2 <= folds <= len(self.same):
            raise UserError(f"{self.path}: {len(self.same)} pairs in {folds} folds; give 2 folds to one a pair")
        sizes = len(self.same) // folds + (np.arange(folds) < len(self.same) % folds)
        return np.repeat(np.arange(folds), sizes)


def read_pack(path: str | os.PathLike) -> Pack:
    """Read a `.bin`, pickled by Python 2 or 3, its pictures bytes or NumPy arrays of bytes. No pickle is ever run.

    Raises BadData: no such file, more than MAX_PACK_BYTES, not such a pickle (with the place), an odd number of
    pictures, or another number of pairs than of answers.
    """
    try:
        size = os.path.getsize(path)
        if size > MAX_PACK_BYTES:
            raise BadData(f"{path}: {size} bytes, a pack has {MAX_PACK_BYTES} at most; split it")
        data = Path(path).read_bytes()
    except OSError as error:
        raise BadData(f"{path}: cannot be read ({error.strerror}); give a verification pack such as lfw.bin") from error
    value = closed_pickle.load(data, os.fspath(path))
    if not (isinstance(value, tuple | list) and len(value) == 2 and isinstance(value[0], tuple | list)):
        raise BadData(f"{path}: not a verification pack: a pickle of (pictures, answers) is expected")
    pictures = [_picture(item, number, path) for number, item in enumerate(value[0])]
    same = _answers(value[1], path)
    if len(pictures) % 2 or len(pictures) != 2 * len(same) or not pictures:
        raise BadData(
            f"{path}: {len(pictures)} pictures and {len(same)} answers; a pack has one answer for every two pictures"
        )
    return Pack(os.fspath(path), pictures, same)


def write_pack(path: str | os.PathLike, pictures: Iterable[bytes], same: Iterable[bool]) -> None:
    """Write a `.bin` as InsightFace's loaders on Python 3 read it: picture 2k and 2k + 1 belong to answer k.

    Raises ValueError: not two pictures an answer; StorageError: it cannot be written. The file is there whole or not.
    """
    pictures, same = list(pictures), [bool(answer) for answer in same]
    if len(pictures) != 2 * len(same):
        raise ValueError(f"{len(pictures)} pictures for {len(same)} answers")
    with whole_file(path) as file:
        pickle.dump((pictures, same), file, protocol=4)


def _picture(item: object, number: int, path) -> bytes:
    if isinstance(item, bytes):
        return item
    if isinstance(item, closed_pickle.ByteArray) and item.kind == "u1":
        return item.data
    raise BadData(f"{path}: picture {number} is neither bytes nor an array of bytes; make the pack anew")


def _answers(value: object, path) -> np.ndarray:
    if isinstance(value, closed_pickle.ByteArray):
        value = list(value.data)
    known = isinstance(value, tuple | list) and all(type(item) in (bool, int) and item in (0, 1) for item in value)
    if not known:
        raise BadData(f"{path}: its answers are not a list of true and false; make the pack anew")
    return np.array(value, bool)
