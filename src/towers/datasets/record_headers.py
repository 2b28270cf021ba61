"""What the heads of all records of a `.rec` say, read at once, and what is wrong with them.

A payload is `flag u32, label f32, id u64, id2 u64` (MXNet's IRHeader), then `flag` labels f32, then the picture. With
flag 0 the label is the one in the header.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields

import numpy as np

from ..errors import BadData
from .recordio import (
    HEAD_BYTES,
    MAGIC,
    MAX_LENGTH,
    WHOLE,
    BrokenRecord,
    RecordFile,
    padded,
    pieces_at,
    read_payload,
)

IR_HEADER_BYTES = 24
# float32 holds each whole number below this one; from here on two classes may be one.
FLOAT32_LIMIT = 2**24
RECORDS_AT_ONCE = 1 << 17
THREADS = 8


@dataclass
class Faults:
    """What is wrong with a file: how many records, and a line for each of the first."""

    path: str
    count: int = 0
    lines: list[str] = field(default_factory=list)
    kept: int = 1000

    def add(self, keys: np.ndarray, heads: np.ndarray, reasons) -> None:
        """One fault a record; ``reasons``: a text for all, or a function from index to text."""
        self.count += len(keys)
        for index in range(min(len(keys), self.kept - len(self.lines))):
            reason = reasons if isinstance(reasons, str) else reasons(index)
            self.lines.append(f"record {keys[index]} at byte {heads[index]}: {reason}")

    def check(self) -> None:
        """Raise BadData where there is a fault."""
        if self.count:
            more = f" ({self.count} broken records in all; scripts/verify_data.py lists them)" if self.count > 1 else ""
            raise BadData(f"{self.path}: {self.lines[0]}{more}; get the file again, or repair it")


@dataclass
class Headers:
    """Of n records. A record that `fault` names has no other facts.

    Attributes:
      fault: uint8, an index into `FAULTS`, 0 for none.
      whole: bool, false where the payload is in pieces.
      flag: int64, labels behind the header.
      label: float32, the first label.
      second: float32, the second label, where flag is 2 or more.
      body: int64, bytes from the head to the picture; of no use where the payload is in pieces.
      size: int64, bytes of the picture.
      end: int64, where the record ends.
    """

    fault: np.ndarray
    whole: np.ndarray
    flag: np.ndarray
    label: np.ndarray
    second: np.ndarray
    body: np.ndarray
    size: np.ndarray
    end: np.ndarray

    def take(self, records: np.ndarray) -> "Headers":
        """Those of some records."""
        return Headers(*(getattr(self, each.name)[records] for each in fields(self)))


FAULTS = (
    "",
    "its place is no multiple of 4 bytes, so the index is of another file",
    "its place is past the end of the file, so the index is of another file or the file is cut",
    "no record begins there (another magic number), so the index is of another file or the file is damaged",
    "the middle of a record begins there, so the index is of another file",
    "cut: the file ends within the record",
    "too short for the header of a picture",
    "its pieces do not fit together",
)
UNALIGNED, PAST_END, BAD_MAGIC, NO_FIRST, CUT, TOO_SHORT, BROKEN_PIECES = range(1, len(FAULTS))


def read_headers(file: RecordFile, words: np.ndarray, heads: np.ndarray) -> Headers:
    """The headers of the records at `heads` int64 [n], best in rising order; `words` is the mapped file.

    Several threads, so that a disk has more than one page to bring at a time.
    """
    chunks = [heads[first : first + RECORDS_AT_ONCE] for first in range(0, len(heads), RECORDS_AT_ONCE)] or [heads]
    with ThreadPoolExecutor(THREADS) as threads:
        read = list(threads.map(lambda chunk: _read(words, file.size, chunk), chunks))
    headers = Headers(*(np.concatenate([getattr(part, each.name) for part in read]) for each in fields(Headers)))
    for record in np.flatnonzero(~headers.whole & (headers.fault == 0)).tolist():
        _read_pieces(file, int(heads[record]), headers, record)
    return headers


def _read(words: np.ndarray, size: int, heads: np.ndarray) -> Headers:
    fault = np.zeros(len(heads), np.uint8)

    def blame(wrong: np.ndarray, reason: int) -> None:
        fault[wrong & (fault == 0)] = reason

    blame(heads % 4 != 0, UNALIGNED)
    blame((heads < 0) | (heads + HEAD_BYTES > size), PAST_END)
    if not len(words):
        words = np.zeros(1, np.uint32)
    at, last = np.where(fault == 0, heads // 4, 0), len(words) - 1

    def word(number: int) -> np.ndarray:
        return words[np.minimum(at + number, last)]

    blame(word(0) != MAGIC, BAD_MAGIC)
    kinds, length = word(1) >> 29, (word(1) & MAX_LENGTH).astype(np.int64)
    end = heads + HEAD_BYTES + padded(length)
    blame(kinds > 1, NO_FIRST)
    blame(end > size, CUT)
    whole = kinds == WHOLE
    blame(whole & (length < IR_HEADER_BYTES), TOO_SHORT)
    flag = word(2).astype(np.int64)
    body = IR_HEADER_BYTES + 4 * flag
    blame(whole & (length < body), TOO_SHORT)
    label = np.where(flag > 0, word(8), word(3)).view(np.float32)
    return Headers(fault, whole, flag, label, word(9).view(np.float32), body + HEAD_BYTES, length - body, end)


def _read_pieces(file: RecordFile, head: int, headers: Headers, record: int) -> None:
    """Fill in a record whose payload is in pieces."""
    try:
        pieces, end = pieces_at(file, head)
    except BrokenRecord:
        headers.fault[record] = BROKEN_PIECES
        return
    start = np.frombuffer(read_payload(file, head, IR_HEADER_BYTES + 8).ljust(IR_HEADER_BYTES + 8, b"\0"), "<u4")
    size = sum(length for _, length in pieces) + 4 * (len(pieces) - 1) - IR_HEADER_BYTES - 4 * int(start[0])
    if size < 0:
        headers.fault[record] = TOO_SHORT
        return
    floats = start.view(np.float32)
    headers.flag[record], headers.label[record] = start[0], floats[6 if start[0] else 1]
    headers.second[record], headers.size[record], headers.end[record] = floats[7], size, end
