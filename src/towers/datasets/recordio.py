"""The framing of `.rec` files (dmlc RecordIO, as MXNet and InsightFace write them) and of their `.idx`.

A record is `magic u32 | kind << 29 | length u32 | payload | zeros to a multiple of 4 bytes`, little endian. A payload
is cut at each place, a multiple of 4 from its start, where it holds the magic itself: these four bytes are left out,
and the pieces are kinds 1 (first), 2 (middle), 3 (last); kind 0 is a whole one. So at multiples of 4 bytes the magic
stands at heads of pieces only. The `.idx` has a line `key TAB place of the head` for each record.
"""

import mmap
import os
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from ..errors import BadData, StorageError
from .text_columns import integers, last_separators, line_spans

MAGIC = 0xCED7230A
MAGIC_BYTES = struct.pack("<I", MAGIC)
WHOLE, FIRST, MIDDLE, LAST = range(4)
HEAD_BYTES = 8
MAX_LENGTH = 2**29 - 1
MAX_PIECES = 1 << 16
WORDS_AT_ONCE = 1 << 24
_HEAD = struct.Struct("<II")


class BrokenRecord(ValueError):
    """A record whose pieces do not fit together; the message is the reason."""


class RecordFile:
    """An open `.rec`. Reading is by place, so threads need no lock; it may be sent to another process.

    `through` is opened in the place of the path, which is for messages then.

    Raises BadData: no such file, or not a file.
    """

    def __init__(self, path: str | os.PathLike, through: str | None = None):
        self.path = os.fspath(path)
        try:
            self._descriptor = os.open(through or self.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise BadData(f"{self.path}: cannot be opened ({error.strerror}); check the path") from error
        self._state = self._now()
        self.size = self._state[0]

    def __reduce__(self):
        return RecordFile, (self.path,)

    def __del__(self):
        # Not set where opening failed.
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)

    def lent(self) -> Callable[[], "RecordFile"]:
        """A function that opens it in another process: this very file, also where a new one has taken its name."""
        return partial(RecordFile, self.path, f"/proc/{os.getpid()}/fd/{self._descriptor}")

    def check_unchanged(self) -> None:
        """Raise StorageError where somebody wrote to the file since it was opened: its index holds no longer."""
        if self._now() != self._state:
            raise StorageError(
                f"{self.path}: was changed while it was read (its size or time differ); start again, and replace such "
                "files by renaming new ones"
            )

    def read_at(self, place: int, size: int) -> bytes:
        """Bytes [place, place + size). StorageError where the file ends before; OSError where it cannot be read."""
        data = os.pread(self._descriptor, size, place)
        while len(data) < size:
            more = os.pread(self._descriptor, size - len(data), place + len(data))
            if not more:
                raise StorageError(f"{self.path}: ends at byte {place + len(data)}, within {size} bytes at {place}")
            data += more
        return data

    def words(self) -> np.ndarray:
        """The file as uint32 [size // 4], mapped: only the pages that are looked at are read."""
        if self.size < 4:
            return np.zeros(0, np.uint32)
        mapped = mmap.mmap(self._descriptor, self.size, prot=mmap.PROT_READ)
        return np.frombuffer(mapped, "<u4", self.size // 4)

    def _now(self) -> tuple[int, int]:
        status = os.fstat(self._descriptor)
        return status.st_size, status.st_mtime_ns


def padded(length):
    """`length` rounded up to a multiple of 4; an int or an array."""
    return (length + 3) & ~3


def frame(payload: bytes) -> bytes:
    """The record of a payload, ready to be appended to a `.rec`. ValueError where a piece is 2**29 bytes or more."""
    pieces, start, place = [], 0, payload.find(MAGIC_BYTES)
    while place >= 0:
        if place % 4 == 0:
            pieces.append(payload[start:place])
            start = place + 4
        place = payload.find(MAGIC_BYTES, start if place % 4 == 0 else place + 1)
    pieces.append(payload[start:])
    kinds = [WHOLE] if len(pieces) == 1 else [FIRST, *[MIDDLE] * (len(pieces) - 2), LAST]
    if max(map(len, pieces)) > MAX_LENGTH:
        raise ValueError(f"a piece of {max(map(len, pieces))} bytes; a record's are of {MAX_LENGTH} at most")
    framed = [_HEAD.pack(MAGIC, kind << 29 | len(piece)) + piece for kind, piece in zip(kinds, pieces, strict=True)]
    return b"".join(framed) + bytes(-len(pieces[-1]) % 4)


def pieces_at(file: RecordFile, head: int) -> tuple[list[tuple[int, int]], int]:
    """Place and length of each piece of the record at `head`, and where the record ends.

    Raises BrokenRecord: another magic, kinds in a wrong order, more than MAX_PIECES pieces, or the file ends before.
    """
    pieces, place = [], head
    while True:
        if place + HEAD_BYTES > file.size:
            raise BrokenRecord(f"the file ends at byte {file.size}, within the record")
        magic, kind_and_length = _HEAD.unpack(file.read_at(place, HEAD_BYTES))
        kind, length = kind_and_length >> 29, kind_and_length & MAX_LENGTH
        end = place + HEAD_BYTES + padded(length)
        if magic != MAGIC or kind not in ((MIDDLE, LAST) if pieces else (WHOLE, FIRST)):
            raise BrokenRecord(f"no {'further piece' if pieces else 'record'} at byte {place}")
        if end > file.size:
            raise BrokenRecord(f"cut: it goes to byte {end}, the file ends at {file.size}")
        pieces.append((place + HEAD_BYTES, length))
        if kind in (WHOLE, LAST):
            return pieces, end
        if len(pieces) == MAX_PIECES:
            raise BrokenRecord(f"more than {MAX_PIECES} pieces")
        place = end


def read_payload(file: RecordFile, head: int, limit: int) -> bytes:
    """The payload of the record at `head`, or its first `limit` bytes. BrokenRecord as in `pieces_at`."""
    payload = b""
    for number, (place, length) in enumerate(pieces_at(file, head)[0]):
        payload += MAGIC_BYTES if number else b""
        payload += file.read_at(place, min(length, max(limit - len(payload), 0)))
    return payload[:limit]


def find_heads(file: RecordFile, words: np.ndarray) -> np.ndarray:
    """The heads of all whole records and first pieces, in order, found by their magic: int64 [n].

    A magic that lies inside a record which ends where another begins is taken for data: not every writer cuts there.
    """
    found = [
        np.flatnonzero(words[first : first + WORDS_AT_ONCE] == MAGIC) + first
        for first in range(0, len(words), WORDS_AT_ONCE)
    ]
    places = np.concatenate([np.zeros(0, np.int64), *found])
    second = words[np.minimum(places + 1, len(words) - 1)] if len(places) else np.zeros(0, np.uint32)
    heads, kinds = places * 4, second >> 29
    ends = heads + HEAD_BYTES + padded((second & MAX_LENGTH).astype(np.int64))
    following = np.append(heads[1:], file.size)[: len(heads)]
    keep, reached = np.ones(len(heads), bool), 0
    for index in np.flatnonzero(ends != following):
        if index < reached:
            continue
        target = np.searchsorted(heads, ends[index])
        if ends[index] == file.size or (target < len(heads) and heads[target] == ends[index]):
            keep[index + 1 : target] = False
            reached = target
    return heads[keep & (kinds <= FIRST)]


def read_index(path: str | os.PathLike) -> tuple[np.ndarray, np.ndarray]:
    """Keys and places of an `.idx`, in the order of its lines: int64 [n] both.

    Raises BadData, with the line, where it is not `key TAB place`; places of whatever kind are let pass.
    """
    try:
        data = np.fromfile(path, np.uint8)
    except OSError as error:
        raise BadData(f"{path}: cannot be read ({error.strerror}); check its rights") from error
    starts, ends = line_spans(data)
    lines = np.flatnonzero(ends > starts)
    starts, ends = starts[lines], ends[lines]
    separators = last_separators(data, starts, ends)
    keys, good_keys = integers(data, starts, np.maximum(separators, starts))
    heads, good_heads = integers(data, separators + 1, ends)
    bad = np.flatnonzero((separators < 0) | ~good_keys | ~good_heads)
    if bad.size:
        text = data[starts[bad[0]] : ends[bad[0]]].tobytes()[:60]
        raise BadData(
            f"{path}, line {lines[bad[0]] + 1}: {text!r} is not `key TAB place`; "
            f"make it anew with scripts/index_rec.py {Path(path).with_suffix('.rec')}"
        )
    return keys, heads


def index_text(keys: np.ndarray, heads: np.ndarray) -> bytes:
    """The `.idx` of these records, int64 [n] both."""
    return b"".join(b"%d\t%d\n" % line for line in zip(keys.tolist(), heads.tolist(), strict=True))
