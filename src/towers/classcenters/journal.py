"""A journal of what a shard has applied since its last snapshot, so that a killed server goes on where it was.

A record is a length, a CRC-32 and a body: a line of JSON, then arrays. A record is written before its change is seen by
anybody. A cut record at the end is what a kill leaves: it was not yet seen, and is dropped. Against the loss of power
the file is forced to the disk only with each snapshot.
"""

import json
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

_HEAD = struct.Struct("<QII")


class Journal:
    """An open journal, at its end.

    Args:
      path: of the file; one that is there is replaced by a journal that begins with ``facts``.
    """

    def __init__(self, path: Path, facts: dict):
        temporary = path.with_name(f".writing-{path.name}")
        with temporary.open("wb") as file:
            _write(file, facts, ())
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
        self._file = path.open("ab", buffering=0)

    def append(self, facts: dict, *arrays: np.ndarray) -> None:
        """Add a record; OSError where that fails, and the file then ends where it ended before."""
        end = self._file.tell()
        try:
            _write(self._file, facts, arrays)
        except OSError:
            os.ftruncate(self._file.fileno(), end)
            raise

    @property
    def num_bytes(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        self._file.close()


def read(path: Path) -> Iterator[tuple[dict, list[np.ndarray]]]:
    """The whole records of a journal, as (facts, arrays), until its end or the first damaged one."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        while True:
            head = file.read(_HEAD.size)
            if len(head) < _HEAD.size:
                return
            length, text_length, checksum = _HEAD.unpack(head)
            if length > size - file.tell() or text_length > length:
                return
            body = file.read(length)
            if zlib.crc32(body) != checksum:
                return
            facts = json.loads(body[:text_length])
            arrays, start = [], text_length
            for dtype, shape in facts.pop("arrays"):
                count = int(np.prod(shape))
                array = np.frombuffer(body, dtype, count, start).reshape(shape)
                arrays.append(array)
                start += array.nbytes
            yield facts, arrays


def _write(file, facts, arrays):
    arrays = [np.ascontiguousarray(array) for array in arrays]
    text = json.dumps({**facts, "arrays": [[array.dtype.str, list(array.shape)] for array in arrays]}).encode()
    checksum = zlib.crc32(text)
    for array in arrays:
        checksum = zlib.crc32(array.data.cast("B") if array.size else b"", checksum)
    length = len(text) + sum(array.nbytes for array in arrays)
    parts = [_HEAD.pack(length, len(text), checksum), text]
    parts += [array.data.cast("B") for array in arrays if array.size]
    for part in parts:
        view = memoryview(part)
        while len(view):
            view = view[file.write(view) :]
