"""What is wrong with a data set before anybody trains on it: unreadable pictures, duplicates, people with too few.

report = inspect(read_folder("train"), read_folder("test"), images_per_person=2, processes=2)
"""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from multiprocessing import get_context

import cv2
import numpy as np

from ..errors import BadData, UserError
from .decoding import BadPicture, decode, read_header
from .duplicates import bytes_digest, difference_hash, equal_groups, near_pairs, pixels_digest, thumbnail
from .folder import Source
from .record_headers import Faults

CHUNK = 64
BETWEEN_PARTS, ACROSS_PEOPLE, WITHIN_PERSON = "between train and test", "across people", "within a person"
SCOPES = (BETWEEN_PARTS, ACROSS_PEOPLE, WITHIN_PERSON)
FINGERPRINT = np.dtype(
    [("file", "u1", 16), ("pixels", "u1", 16), ("hash", "u8", 2), ("thumbnail", "u1", (16, 16)), ("readable", "?")]
)


@dataclass(frozen=True)
class Report:
    """What `inspect` found.

    Attributes:
      parts: of train, and test where given: pictures, people, fewest and most pictures of a person.
      broken_records: of train, a `.rec`: how many; the rest of the report is about the others.
      broken: a text for each of the first of them, with its place in the file.
      unreadable: path and reason of each.
      duplicates: groups of pictures with the same pixels: `scope` (one of SCOPES), `same_bytes`, `paths`.
      near_duplicates: pairs with almost the same pixels: `scope`, `paths`. They are for somebody to look at: a burst of
        shots and simple drawings are near each other too.
      people_in_both: names of classes that train and test share.
      too_few: name and readable pictures of each person of train with fewer than images_per_person.
    """

    parts: dict[str, dict[str, int]]
    broken_records: int
    broken: list[str]
    unreadable: list[dict]
    duplicates: list[dict]
    near_duplicates: list[dict]
    people_in_both: list[str]
    images_per_person: int
    too_few: list[dict]

    @property
    def faulty(self) -> bool:
        """Whether a record or picture cannot be read, or one stands for two people, or for training and test."""
        return bool(self.broken_records or self.unreadable) or any(
            group["scope"] != WITHIN_PERSON for group in self.duplicates
        )

    def to_json(self) -> dict:
        """Everything, for json.dump."""
        return asdict(self) | {"faulty": self.faulty}

    def lines(self, shown: int) -> Iterator[str]:
        """The report for people, with the first `shown` of each finding."""
        for part, counts in self.parts.items():
            each = f"{counts['fewest']} to {counts['most']} each"
            yield f"{part}: {counts['pictures']} pictures of {counts['people']} people, {each}"
        if self.broken_records:
            yield from _finding("broken records", self.broken, shown, self.broken_records)
        yield from _finding(
            "unreadable pictures", [f"{item['path']}: {item['reason']}" for item in self.unreadable], shown
        )
        for scope in SCOPES:
            if scope == BETWEEN_PARTS and len(self.parts) == 1:
                continue
            groups = [
                f"{'same bytes' if group['same_bytes'] else 'same pixels'}: {' = '.join(group['paths'])}"
                for group in self.duplicates
                if group["scope"] == scope
            ]
            yield from _finding(f"duplicates {scope}", groups, shown)
            near = [" ~ ".join(pair["paths"]) for pair in self.near_duplicates if pair["scope"] == scope]
            yield from _finding(f"near duplicates {scope}", near, shown)
        if len(self.parts) > 1:
            yield from _finding("people in train and test by name", self.people_in_both, shown)
        if "train" not in self.parts:
            return
        few = [f"{item['name']}: {item['pictures']}" for item in self.too_few]
        yield from _finding(f"people of train with fewer than {self.images_per_person} readable pictures", few, shown)


def inspect(
    train,
    test=None,
    *,
    name: str = "train",
    faults: Faults | None = None,
    images_per_person: int = 2,
    processes: int = 1,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Report:
    """Read every picture once and compare all of them.

    train and test are sources. `name` is what the report calls the first; `faults` are those of its records, where it
    was opened with them. Memory: 305 bytes a picture, and one decoded picture a process. `progress` is called with the
    pictures done and their number. Raises UserError where train and test are one folder or one holds the other.
    """
    sources = {name: train} if test is None else {name: train, "test": test}
    if isinstance(train, Source) and isinstance(test, Source):
        _check_apart(train.root, test.root)
    prints, reasons = _fingerprints(list(sources.values()), processes, progress)
    people = np.concatenate([source.labels for source in sources.values()])
    part = np.repeat(np.arange(len(sources)), [len(source) for source in sources.values()])

    def where(picture: int) -> str:
        return train.where(picture) if picture < len(train) else test.where(picture - len(train))

    def finding(members: np.ndarray) -> dict:
        scope = _scope(part[members], people[members])
        return {"scope": scope, "paths": [where(int(member)) for member in members]}

    readable = np.flatnonzero(prints["readable"])
    groups = [readable[group] for group in equal_groups(prints["pixels"][readable])]
    copies = [group[1:] for group in groups]
    single = np.setdiff1d(readable, np.concatenate(copies)) if copies else readable
    near = single[near_pairs(prints["hash"][single], prints["thumbnail"][single])]
    left = np.bincount(train.labels[prints["readable"][: len(train)]], minlength=train.num_classes)
    return Report(
        parts={name: _counts(source) for name, source in sources.items()},
        broken_records=faults.count if faults else 0,
        broken=faults.lines if faults else [],
        unreadable=[{"path": where(number), "reason": reason} for number, reason in sorted(reasons.items())],
        duplicates=[
            finding(group) | {"same_bytes": len(np.unique(prints["file"][group], axis=0)) == 1} for group in groups
        ],
        near_duplicates=[finding(pair) for pair in near],
        people_in_both=sorted(set(train.class_names) & set(test.class_names)) if test is not None else [],
        images_per_person=images_per_person,
        too_few=[
            {"name": train.class_names[person], "pictures": int(left[person])}
            for person in np.flatnonzero(left < images_per_person)
        ],
    )


def _fingerprints(sources: list, processes: int, progress) -> tuple[np.ndarray, dict[int, str]]:
    """FINGERPRINT [N] of all pictures, and why those without one have none."""
    total, done = sum(map(len, sources)), 0
    prints, reasons = np.zeros(total, FINGERPRINT), {}
    chunks = (
        source.subset(range(start, min(start + CHUNK, len(source))))
        for source in sources
        for start in range(0, len(source), CHUNK)
    )
    for chunk, bad in _read_chunks(chunks, processes):
        prints[done : done + len(chunk)] = chunk
        reasons.update({done + place: reason for place, reason in bad.items()})
        done += len(chunk)
        progress(done, total)
    return prints, reasons


def _read_chunks(chunks: Iterator, processes: int) -> Iterator[tuple[np.ndarray, dict[int, str]]]:
    if processes == 1:
        yield from map(_read_chunk, chunks)
        return
    try:
        with ProcessPoolExecutor(processes, get_context("spawn"), cv2.setNumThreads, (1,)) as pool:
            yield from pool.map(_read_chunk, chunks)
    except BrokenProcessPool as error:
        raise BadData(
            "a process that reads pictures was killed, by lack of memory or a broken decoder; try --processes 1"
        ) from error


def _read_chunk(source) -> tuple[np.ndarray, dict[int, str]]:
    """FINGERPRINT [m] of these pictures, and place -> reason of those that cannot be read."""
    prints, reasons = np.zeros(len(source), FINGERPRINT), {}
    for place in range(len(source)):
        try:
            (encoded,) = source.reader([place])()
            picture = decode(encoded, read_header(encoded))
        except BadPicture as error:
            reasons[place] = str(error)
        except OSError as error:
            reasons[place] = f"cannot be read: {error.strerror or error}"
        else:
            grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
            prints[place] = (
                np.frombuffer(bytes_digest(encoded), np.uint8),
                np.frombuffer(pixels_digest(picture), np.uint8),
                difference_hash(grey),
                thumbnail(grey),
                True,
            )
    return prints, reasons


def _check_apart(train: str, test: str) -> None:
    one, other = os.path.realpath(train), os.path.realpath(test)
    if os.path.commonpath([one, other]) in (one, other):
        raise UserError(f"{train} and {test} hold the same pictures; give folders of which none contains the other")


def _scope(parts: np.ndarray, people: np.ndarray) -> str:
    if np.any(parts != parts[0]):
        return BETWEEN_PARTS
    return ACROSS_PEOPLE if np.any(people != people[0]) else WITHIN_PERSON


def _counts(source) -> dict[str, int]:
    counts = np.bincount(source.labels, minlength=source.num_classes)
    return {
        "pictures": len(source),
        "people": source.num_classes,
        "fewest": int(counts.min()),
        "most": int(counts.max()),
    }


def _finding(title: str, items: list[str], shown: int, count: int | None = None) -> Iterator[str]:
    """`count` of something, of which `items` are all or the first."""
    count = len(items) if count is None else count
    yield f"{title}: {count}"
    yield from (f"  {item}" for item in items[:shown])
    if count > shown > 0:
        yield f"  and {count - min(shown, len(items))} more"
