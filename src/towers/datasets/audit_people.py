"""Which tower saw which person: the audit of batches of P people x K pictures."""

import os

import numpy as np

from ..errors import BadData
from .audit import Audit
from .people import MIN_IMAGES


class PeopleAudit(Audit):
    """`Audit` for the stream of a `PeopleOrder`: the same file and the same use, other laws.

    Checked from the labels alone: a tower gets whole people, K positions and pictures of one person; no two towers are
    fed the same positions, and together they are fed the whole batch; nobody comes twice in a batch, nor a picture
    beyond what a person of fewer than K needs; everybody with two pictures or more is drawn once in each pass of
    people. The last follows when nobody is drawn twice in a pass and no place or step is left out.

    labels: int64 [N]. people_per_batch P is that of all towers together. Steps follow each other without a gap.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        labels: np.ndarray,
        *,
        people_per_batch: int,
        images_per_person: int,
        first_step: int = 0,
    ):
        self._labels = np.asarray(labels, np.int64)
        self._num_images = np.bincount(self._labels)
        self._num_people = int(np.count_nonzero(self._num_images >= MIN_IMAGES))
        self._people_per_batch = people_per_batch
        self._images_per_person = images_per_person
        self._towers = np.full(people_per_batch, -1, np.int32)
        self._batch_people: dict[int, int] = {}
        self._drawn: dict[int, np.ndarray] = {}
        super().__init__(path, len(self._labels), first_step=first_step)

    def _check(self, step: int, tower: int, records: np.ndarray, positions: np.ndarray) -> None:
        if step != self._step:
            self._begin(step, tower)
        where = f"{self.path}: step {step}: tower {tower} was fed"
        if np.any((records < 0) | (records >= self.num_records)):
            raise BadData(f"{where} records that are not of these {self.num_records}; the data changed, start anew")
        slots = self._check_places(where, step, positions)
        pictures = records[np.argsort(positions)].reshape(-1, self._images_per_person)
        people = self._check_pictures(where, pictures)
        self._check_people(where, tower, slots, people)
        self._towers[slots - step * self._people_per_batch] = tower

    def _begin(self, step: int, tower: int) -> None:
        if step < self._step:
            raise BadData(
                f"{self.path}: step {step} of tower {tower} came after step {self._step}; the batches are out of order"
            )
        if 0 <= self._step < step - 1:
            raise BadData(f"{self.path}: step {step} came after step {self._step}; the steps between are missing")
        self._finish_passes()
        self._step = step
        self._towers[:] = -1
        self._batch_people = {}
        first = step * self._people_per_batch // self._num_people
        self._drawn = {number: drawn for number, drawn in self._drawn.items() if number >= first}

    def _check_places(self, where: str, step: int, positions: np.ndarray) -> np.ndarray:
        """The places of people that these positions fill: int64 [m], sorted."""
        size, first = self._images_per_person, step * self._people_per_batch
        slots, counts = np.unique(positions // size, return_counts=True)
        strange = slots[(slots < first) | (slots >= first + self._people_per_batch)]
        if strange.size:
            raise BadData(
                f"{where} position {strange[0] * size}, which belongs to the batch of step "
                f"{strange[0] // self._people_per_batch}; the towers train on the wrong pictures"
            )
        again = slots[self._towers[slots - first] >= 0]
        if again.size:
            other = self._towers[again[0] - first]
            raise BadData(
                f"{where} positions {_range(again[0], size)} that tower {other} had been fed; "
                "the towers train on the same pictures"
            )
        filled = np.bincount(np.searchsorted(slots, np.unique(positions) // size))
        partial = slots[(counts != size) | (filled != size)]
        if partial.size:
            raise BadData(
                f"{where} a part of the positions {_range(partial[0], size)} of one person, or one of them twice; "
                "the people of a batch must be a multiple of the towers"
            )
        return slots

    def _check_pictures(self, where: str, pictures: np.ndarray) -> np.ndarray:
        """The person of each row of pictures [m, K]: int64 [m]."""
        labels = self._labels[pictures]
        for row, owners in zip(pictures, labels, strict=True):
            person, num_images = owners[0], self._num_images[owners[0]]
            if np.any(owners != person):
                raise BadData(f"{where} records {row.tolist()} as one person; they are of {np.unique(owners).tolist()}")
            if num_images < MIN_IMAGES:
                raise BadData(f"{where} record {row[0]} of person {person}, who has no other picture to pair it with")
            distinct, times = np.unique(row, return_counts=True)
            if len(distinct) < min(num_images, len(row)) or times.max() > -(-len(row) // num_images):
                raise BadData(
                    f"{where} record {distinct[times.argmax()]} {times.max()} times in a batch, though person {person} "
                    f"has {num_images} pictures for {len(row)} places"
                )
        return labels[:, 0]

    def _check_people(self, where: str, tower: int, slots: np.ndarray, people: np.ndarray) -> None:
        for slot, person in zip(slots.tolist(), people.tolist(), strict=True):
            if person in self._batch_people:
                raise BadData(
                    f"{where} person {person}, who is in this batch already, on tower {self._batch_people[person]}"
                )
            self._batch_people[person] = tower
            number = slot // self._num_people
            if number not in self._drawn:
                self._drawn[number] = np.full(len(self._num_images), -1, np.int64)
            before = self._drawn[number][person]
            if before >= 0:
                raise BadData(
                    f"{where} person {person} a second time in pass {number} of the people, first at step "
                    f"{before // self._people_per_batch}; people are not drawn equally often"
                )
            self._drawn[number][person] = slot

    def _finish_passes(self) -> None:
        """The towers of the step that ends must have been fed all of its batch."""
        missing = np.flatnonzero(self._towers < 0)
        if self._step >= 0 and missing.size:
            slot = self._step * self._people_per_batch + int(missing[0])
            raise BadData(
                f"{self.path}: step {self._step} ended without {missing.size} of {self._people_per_batch} people: "
                f"no tower was fed positions {_range(slot, self._images_per_person)}"
            )


def _range(slot: int, size: int) -> str:
    return f"{slot * size}-{slot * size + size - 1}"
