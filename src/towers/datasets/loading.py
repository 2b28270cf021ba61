"""Batches of pictures: read, checked and decoded one after the other."""

import math

import numpy as np

from ..errors import BadData
from .cropping import RandomResizedCrop
from .decoding import BadPicture, Quarantine, decode, fit, read_header

MAX_NEIGHBOURS = 100


class Pictures:
    """Reads and decodes the pictures of one source."""

    def __init__(self, source, load_size: int, quarantine: Quarantine, crop: RandomResizedCrop | None = None):
        self.source = source
        self.size = load_size if crop is None else crop.size
        self.crop = crop
        self.quarantine = quarantine
        self._memory = _KeptMemory()

    def load(self, records: np.ndarray, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Records and positions [b] -> pixels uint8 [b, L, L, 3], labels int64 [b].

        Broken pictures are replaced; record -1 is black.
        """
        pixels = self._memory.empty((len(records), self.size, self.size, 3))
        labels = np.zeros(len(records), np.int64)
        try:
            wanted = self.quarantine.stand_ins(records.tolist())
            encoded = self._read(wanted)
            draws = self._draws(positions)
            for slot, (record, data) in enumerate(zip(wanted, encoded, strict=True)):
                labels[slot] = self._load(record, data, draws[slot], pixels[slot])
        except Exception as error:
            self.quarantine.fail(error)
            pixels[:], labels[:] = 0, 0
        return pixels, labels

    def _read(self, records: list[int]) -> list[bytes | None]:
        """Encoded bytes; None where there is no record, or where reading is left to `_load`, which keeps the reason."""
        wanted = [record for record in records if record >= 0]
        try:
            encoded = self.source.read(wanted)
        except (OSError, BadPicture):
            return [None] * len(records)
        if len(wanted) == len(records):
            return encoded
        rest = iter(encoded)
        return [next(rest) if record >= 0 else None for record in records]

    def _load(self, record: int, encoded: bytes | None, draws: np.ndarray | None, pixels: np.ndarray) -> int:
        """Fill pixels [L, L, 3] with a record, or with the next readable one, and return that one's label.

        Raises BadData where none is near.
        """
        if record < 0:
            pixels[:] = 0
            return 0
        for distance in range(min(MAX_NEIGHBOURS, len(self.source))):
            candidate = (record + distance) % len(self.source)
            try:
                data = encoded if distance == 0 and encoded is not None else self.source.read([candidate])[0]
                self._decode(data, draws, pixels)
            except BadPicture as error:
                self.quarantine.add(candidate, str(error))
            except OSError as error:
                self.quarantine.add(candidate, f"cannot be read: {error.strerror or error}")
            else:
                if distance:
                    self.quarantine.replace(record, candidate)
                return self.source.labels[candidate]
        raise BadData(
            f"{self.source.where(record)}: neither it nor any of the pictures after it can be read: "
            f"{self.quarantine.first_paths(10)}; repair or remove them"
        )

    def _decode(self, encoded: bytes, draws: np.ndarray | None, pixels: np.ndarray) -> None:
        if draws is not None:
            pixels[:] = self.crop.load(encoded, draws)
            return
        picture = decode(encoded, read_header(encoded), pixels)
        if picture is not pixels:
            pixels[:] = fit(picture, self.size)

    def _draws(self, positions: np.ndarray) -> list[np.ndarray | None]:
        return [None] * len(positions) if self.crop is None else list(self.crop.draws(positions))


class _KeptMemory:
    """Batches in memory that was used before: having the system clear fresh pages costs a fifth of decoding a batch."""

    ALIGNMENT = 64  # TensorFlow copies what is aligned less.

    def __init__(self):
        self._free: dict[int, list[np.ndarray]] = {}

    def empty(self, shape: tuple[int, ...]) -> np.ndarray:
        """uint8 of this shape, contents undefined. The memory comes back when no array and no tensor looks at it."""
        size = math.prod(shape)
        free = self._free.setdefault(size, [])
        try:
            block = free.pop()
        except IndexError:
            block = np.empty(size + self.ALIGNMENT, np.uint8)
            start = -block.ctypes.data % self.ALIGNMENT
            block = block[start : start + size]
        return np.asarray(_Loan(block, free)).reshape(shape)


class _Loan:
    """Keeps a block out of the free ones: NumPy holds this object as long as any array looks at the block."""

    def __init__(self, block: np.ndarray, free: list[np.ndarray]):
        self.__array_interface__ = block.__array_interface__
        self._block = block
        self._free = free

    def __del__(self):
        self._free.append(self._block)
