"""The order of metric learning: batches of P people x K pictures, as a pure function of (seed, position).

order = PeopleOrder(source.labels, people_per_batch=60, images_per_person=4, seed=1)
dataset = train_dataset(source, order, global_batch=60 * 4, ...)
"""

import numpy as np

from ..errors import BadData, UserError
from .order import Order

MIN_IMAGES = 2
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


class PeopleOrder:
    """An endless stream of batches: batch s is positions [sPK, (s+1)PK), person by person, K positions each.

    Laws:
    1. People come in passes, one permutation of all G eligible people after another: each is drawn once a pass, so
       after any number of batches the counts of two people differ by at most 1.
    2. Nobody comes twice in a batch. Where a batch runs over the border of two passes, people of the old pass's end
       who would come again are pushed back in the new pass, behind the batch.
    3. The K pictures of a person in a batch differ, and over a person's appearances its pictures are used equally
       often, to within 1: they come in passes, joined by the same rule.
    4. A person with n < K pictures has each of them floor(K/n) or ceil(K/n) times in a batch, in turn; augmentation is
       keyed by position, so that the copies differ.
    5. People with one picture have no positive pair and are never drawn: `left_out` holds their labels.
    6. Where a draw takes more than half of what there is (G < 2P - 1 people, n < 2K - 1 pictures), the permutation is
       kept, and gone through in a circle, until a pass ends with a draw; then a new one is made. Pushing back would
       have to look at all draws since then.

    P is the number of people in the batch of all towers together. As `train_dataset` gives tower r the r-th share of a
    batch, whole people go to one tower where P is a multiple of the towers; see `check_people_per_batch`.

    Cost: a permutation of the people once a pass, prepared by a thread; a call takes time in proportion to the
    positions asked for and the pictures that those people have.
    """

    def __init__(self, labels: np.ndarray, *, people_per_batch: int, images_per_person: int, seed: int):
        """labels: int64 [N], who is on each record.

        Raises UserError: fewer than 2 people or pictures of each in a batch, or fewer people than the batch holds.
        BadData: nobody has two pictures.
        """
        if images_per_person < MIN_IMAGES:
            raise UserError(
                f"--images_per_person {images_per_person}: a positive pair is two pictures of one; ask for 2 or more"
            )
        if people_per_batch < 2:
            raise UserError(f"--people_per_batch {people_per_batch}: a negative is somebody else; ask for 2 or more")
        counts = np.bincount(np.asarray(labels, np.int64))
        self.people_per_batch = people_per_batch
        self.images_per_person = images_per_person
        self.seed = seed
        self.people = np.flatnonzero(counts >= MIN_IMAGES)
        self.left_out = np.flatnonzero((counts > 0) & (counts < MIN_IMAGES))
        self.num_images = counts[self.people]
        self._check_people()
        dtype = np.int32 if len(labels) <= np.iinfo(np.int32).max else np.int64
        self._by_person = np.argsort(labels, kind="stable").astype(dtype)
        self._first = (np.cumsum(counts) - counts)[self.people]
        self._passes = Order(len(self.people), seed)
        self._image_bits = int(self.num_images.max() - 1).bit_length()
        self._place_bits = (people_per_batch - 1).bit_length()

    def records(self, positions: np.ndarray) -> np.ndarray:
        """The record at each position. positions: int64 [n], any order, >= 0. Returns int64 [n]. Thread-safe."""
        positions = np.asarray(positions, np.int64)
        slots, slot_of = np.unique(positions // self.images_per_person, return_inverse=True)
        batches, places = np.divmod(slots, self.people_per_batch)
        records = np.empty((len(slots), self.images_per_person), np.int64)
        for batch in np.unique(batches):
            inside = batches == batch
            people = self._people_of(int(batch))[places[inside]]
            records[inside] = self._records_of(people, slots[inside] // len(self.people))
        return records[slot_of.reshape(-1), positions % self.images_per_person]

    def _check_people(self) -> None:
        if not len(self.people):
            raise BadData(
                f"each of the {len(self.left_out)} people has one picture, so there is no positive pair to learn from; "
                "metric learning needs people with 2 pictures or more"
            )
        if len(self.people) < self.people_per_batch:
            alone = f" ({len(self.left_out)} more have only one)" if len(self.left_out) else ""
            raise UserError(
                f"a batch of {self.people_per_batch} different people (of all towers together), but only "
                f"{len(self.people)} people have 2 pictures or more{alone}; "
                f"lower --people_per_batch to make it {len(self.people)} or fewer"
            )

    def _people_of(self, batch: int) -> np.ndarray:
        """The people of a batch, as indices into `people`: int64 [P]."""
        num_people, size = len(self.people), self.people_per_batch
        number, first, overlap = _locate(num_people, size, batch)
        places = first + np.arange(size)
        drawn = self._passes.records(number * num_people + np.maximum(places, 0) % num_people)
        if first >= size or not overlap:
            return drawn
        before = self._passes.records(number * num_people - overlap + np.arange(overlap))
        front = self._passes.records(number * num_people + np.arange(size))
        front = _push_back(front[None], np.isin(front, before)[None], np.array([size - overlap]))[0]
        drawn = np.where(places < size, front[np.clip(places, 0, size - 1)], drawn)
        return np.where(places < 0, before[np.minimum(places, -1)], drawn)

    def _records_of(self, people: np.ndarray, appearances: np.ndarray) -> np.ndarray:
        """Records of people [m], each at its own appearance [m], counted from 0. Returns int64 [m, K]."""
        size, num_images = self.images_per_person, self.num_images[people]
        numbers, first, overlaps = _locate(num_images, size, appearances)
        start = (np.cumsum(num_images) - num_images)[:, None]
        places = first[:, None] + np.arange(size)
        within = start + places % num_images[:, None]
        current = self._shuffled(people, numbers)
        images = current[within]
        if overlaps.any():
            before = self._shuffled(people, numbers - 1)
            place = np.arange(len(before)) - np.repeat(start, num_images)
            in_tail = np.empty(len(before), bool)
            in_tail[before + np.repeat(start, num_images)] = place >= np.repeat(num_images - overlaps, num_images)
            front = current[start + np.arange(size) % num_images[:, None]]
            front = _push_back(front, in_tail[start + front], size - overlaps)
            in_front = np.take_along_axis(front, np.clip(places, 0, size - 1), axis=1)
            images = np.where(places < 0, before[within], np.where(places < size, in_front, images))
        return self._by_person[self._first[people][:, None] + images].astype(np.int64)

    def _shuffled(self, people: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        """Permutation number [m] of each person's own pictures, one behind the other: int64 [sum of num_images].

        Sorts words that hold the person's place, random bits, and the picture, which makes them unique: a plain sort is
        faster than any that returns indices, and its answer is the same on every processor.
        """
        num_images = self.num_images[people]
        offsets = np.cumsum(num_images) - num_images
        image = (np.arange(num_images.sum()) - np.repeat(offsets, num_images)).astype(np.uint64)
        state = _mix(np.full(len(people), self.seed & 0xFFFFFFFFFFFFFFFF, np.uint64) + _GOLDEN)
        state = _mix((state ^ people.astype(np.uint64)) + _GOLDEN)
        state = _mix((state ^ numbers.astype(np.uint64)) + _GOLDEN)
        bits, place_bits = np.uint64(self._image_bits), np.uint64(self._place_bits)
        draws = _mix(np.repeat(state, num_images) + image * _GOLDEN) >> (bits + place_bits) << bits
        words = draws | image
        words |= np.repeat(np.arange(len(people), dtype=np.uint64) << (np.uint64(64) - place_bits), num_images)
        words.sort()
        return (words & ((np.uint64(1) << bits) - np.uint64(1))).astype(np.int64)


def check_people_per_batch(people_per_batch: int, num_towers: int) -> None:
    """Raise UserError, naming the nearest numbers that work, unless whole people can be split over the towers."""
    share, rest = divmod(people_per_batch, num_towers)
    if rest == 0:
        return
    below, above = share * num_towers, (share + 1) * num_towers
    nearest = str(below if rest < above - people_per_batch and below > 0 else above)
    if rest == above - people_per_batch and below > 0:
        nearest = f"{below} or {above}"
    raise UserError(
        f"--people_per_batch {people_per_batch} over {num_towers} towers: {people_per_batch} = {num_towers} x {share} "
        f"+ {rest}, and a person cannot be on two towers; take {nearest} people or another number of towers"
    )


def _locate(total, size: int, draw):
    """Where draw number `draw` of `size` out of `total` lies, by laws 2, 3 and 6; integers or arrays.

    Returns (number of the permutation it ends in, its first place there, overlap). A first place below 0 lies in the
    permutation before; `overlap` places of that one share a draw with the beginning of this.
    """
    start = draw * size
    joined = total >= 2 * size - 1
    circle = total // np.gcd(total, size)
    number = np.where(joined, (start + size - 1) // total, draw // circle)
    begin = number * np.where(joined, total, circle * size)
    return number, start - begin, np.where(joined, begin % size, 0)


def _push_back(front: np.ndarray, blocked: np.ndarray, num_heads: np.ndarray) -> np.ndarray:
    """Bring the first num_heads [m] entries that are not blocked to the head of each row; the rest keeps its order.

    front: [m, k]; blocked: bool [m, k], at most k - num_heads in a row.
    """
    chosen = ~blocked & (np.cumsum(~blocked, axis=1) <= num_heads[:, None])
    return np.take_along_axis(front, np.argsort(~chosen, axis=1, kind="stable"), axis=1)


def _mix(words: np.ndarray) -> np.ndarray:
    """The finalizer of splitmix64 (Steele, Lea and Flood, 2014). uint64 [n]."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
