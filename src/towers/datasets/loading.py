"""Batches of pictures: read, checked and decoded one after the other, by a worker as far as all goes well."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ..errors import BadData
from .batch_memory import batch_memory
from .cropping import RandomResizedCrop
from .decoding import BadPicture, Quarantine, decode, fit, read_header
from .workers import WorkerLost, Workers

MAX_NEIGHBOURS = 100


class Job(NamedTuple):
    """What a worker gets told of a batch: where it lies, how to read it, and what to take of each picture."""

    offset: int
    shape: tuple[int, int, int, int]
    read: Callable[[], list[bytes]]
    crop: RandomResizedCrop | None
    draws: np.ndarray | None

    def fill(self, pixels: np.ndarray) -> list[int]:
        """Fill the first of pixels uint8 [b, L, L, 3] and return the slots to look at again, maybe ones beyond them."""
        try:
            encoded = self.read()
        except (OSError, BadPicture):
            # Which one it was, and why, shows when they are read one by one.
            return list(range(len(pixels)))
        bad = []
        for slot, data in enumerate(encoded):
            try:
                _decode(data, self.crop, None if self.draws is None else self.draws[slot], pixels[slot])
            except BadPicture:
                bad.append(slot)
        return bad


class Pictures:
    """Reads and decodes the pictures of one source."""

    def __init__(
        self, source, load_size: int, quarantine: Quarantine, crop: RandomResizedCrop | None, workers: Workers
    ):
        self.source = source
        self.size = load_size if crop is None else crop.size
        self.crop = crop
        self.quarantine = quarantine
        self._workers = workers

    def begin(self, records: np.ndarray, positions: np.ndarray) -> Callable[[], tuple[np.ndarray, np.ndarray]]:
        """Have a batch loaded: records and positions [b]; -1, at the end only, is black.

        What it returns waits for it: pixels uint8 [b, L, L, 3], labels int64 [b]. Broken pictures are replaced. Errors
        go to the quarantine and leave the batch black.
        """
        shape = (len(records), self.size, self.size, 3)
        offset, pixels = batch_memory().empty(shape)
        wanted = self.quarantine.stand_ins(records[records >= 0].tolist())
        draws = None if self.crop is None else self.crop.draws(positions)
        try:
            job = Job(offset, shape, self.source.reader(wanted), self.crop, draws)
            bad_slots = self._workers.begin(job, pixels)
        except Exception as error:
            bad_slots = error
        return lambda: self._finish(bad_slots, pixels, wanted, draws)

    def _finish(self, bad_slots, pixels: np.ndarray, wanted: list[int], draws) -> tuple[np.ndarray, np.ndarray]:
        labels = np.zeros(len(pixels), np.int64)
        try:
            if isinstance(bad_slots, Exception):
                raise bad_slots
            pixels[len(wanted) :] = 0
            labels[: len(wanted)] = self.source.labels[wanted]
            try:
                left = bad_slots()
            except WorkerLost:
                left = range(len(wanted))
            for slot in left[: len(wanted)]:
                labels[slot] = self._load(wanted[slot], None if draws is None else draws[slot], pixels[slot])
        except Exception as error:
            self.quarantine.fail(error)
            pixels[:], labels[:] = 0, 0
        return pixels, labels

    def _load(self, record: int, draws: np.ndarray | None, pixels: np.ndarray) -> int:
        """Fill pixels [L, L, 3] with a record, or with the next readable one, and return that one's label.

        Raises BadData where none is near.
        """
        for distance in range(min(MAX_NEIGHBOURS, len(self.source))):
            candidate = (record + distance) % len(self.source)
            try:
                (encoded,) = self.source.reader([candidate])()
                _decode(encoded, self.crop, draws, pixels)
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


def _decode(encoded: bytes, crop: RandomResizedCrop | None, draws: np.ndarray | None, pixels: np.ndarray) -> None:
    if crop is not None:
        pixels[:] = crop.load(encoded, draws)
        return
    picture = decode(encoded, read_header(encoded), pixels)
    if picture is not pixels:
        pixels[:] = fit(picture, len(pixels))
