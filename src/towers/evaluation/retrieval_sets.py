"""Published retrieval sets in the folders they are downloaded as: which pictures are queries, and what is to be found.

INRIA Holidays and Copydays (Jegou et al., 2008, and Douze et al., 2009), UKBench (Nister and Stewenius, 2006).
"""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import BadData, UserError

SUFFIXES = (".jpg", ".jpeg", ".png")
PUBLISHED = {"holidays": "1491 pictures, 500 queries", "ukbench": "10200 pictures", "copydays": "157 originals"}
UKBENCH_GROUP = 4
ORIGINALS, STRONG = "original", "strong"


@dataclass(frozen=True)
class Task:
    """Queries and a gallery. Places are indices into the paths of the `RetrievalSet`.

    Attributes:
      name: such as ``strong``.
      queries, gallery: int64 places.
      own: int64 [Q], where a query lies in the gallery and is to be left out, -1 where nothing is left out.
    """

    name: str
    queries: np.ndarray
    gallery: np.ndarray
    own: np.ndarray


@dataclass(frozen=True)
class RetrievalSet:
    """Pictures with labels, -1 for distractors, and the tasks among them.

    ``turns``: int64 [N], degrees clockwise by which the pixels as stored are to be turned upright; None: as EXIF says.
    """

    paths: list[str]
    labels: np.ndarray
    tasks: list[Task]
    turns: np.ndarray | None = None


def read_holidays(folder: str | Path, rotations: str | Path | None = None) -> RetrievalSet:
    """``FOLDER/100000.jpg`` or ``FOLDER/jpg/100000.jpg``: number // 100 is the scene, number % 100 == 0 the query.

    A query is not looked for itself.

    Args:
      rotations: file that says which pictures are to be turned upright, as MultiGrain's holidays-rotate.yaml: a line
        such as ``"100600.jpg": 90,`` for each of them, degrees clockwise.

    Raises:
      BadData: no such pictures, a scene without its query, or a list with a bad line or other pictures.
      UserError: no such list.
    """
    numbered = _numbered(folder, r"(\d{4,})", "jpg", "100000.jpg, 100001.jpg ...")
    numbers = np.array([number for number, _ in numbered])
    queries = np.flatnonzero(numbers % 100 == 0)
    lost = np.setdiff1d(numbers // 100, numbers[queries] // 100)
    if len(lost):
        raise BadData(
            f"{folder}: {lost[0] * 100}.jpg, the query of {len(lost)} scene(s), is missing; copy all pictures"
        )
    everything = np.arange(len(numbered))
    paths = [path for _, path in numbered]
    turns = None if rotations is None else _read_turns(rotations, paths)
    return RetrievalSet(paths, numbers // 100, [Task("holidays", queries, everything, own=queries)], turns)


def read_ukbench(folder: str | Path) -> RetrievalSet:
    """``FOLDER/ukbench00000.jpg`` or ``FOLDER/full/...``: each four in a row show one object; every picture is a query.

    The query itself stays in the gallery. Raises BadData: no such pictures, or a group that is not whole.
    """
    numbered = _numbered(folder, r"ukbench(\d{5})", "full", "ukbench00000.jpg, ukbench00001.jpg ...")
    labels = np.array([number for number, _ in numbered]) // UKBENCH_GROUP
    groups, counts = np.unique(labels, return_counts=True)
    if np.any(counts != UKBENCH_GROUP):
        first = groups[counts != UKBENCH_GROUP][0] * UKBENCH_GROUP
        raise BadData(f"{folder}: not all of ukbench{first:05} to ukbench{first + 3:05} are there; copy all pictures")
    everything = np.arange(len(numbered))
    task = Task("ukbench", everything, everything, own=np.full(len(numbered), -1))
    return RetrievalSet([path for _, path in numbered], labels, [task])


def read_copydays(folder: str | Path, distractors: str | Path | None = None) -> RetrievalSet:
    """``original/200000.jpg``, and copies in ``strong``, ``jpegqual/3`` ..., ``crops/10`` ..., as far as there are any.

    A copy is a query for the original whose name has the same first four digits, among all originals and the
    distractors, any pictures below that folder; one task a block.

    Raises:
      BadData: no originals, no copies, or a copy without its original.
    """
    root = Path(folder)
    originals = _numbered(root / ORIGINALS, r"(\d{4})\d+", None, "200000.jpg, 200100.jpg ...")
    blocks = [root / STRONG] if (root / STRONG).is_dir() else []
    blocks += [*_by_number(root / "jpegqual"), *_by_number(root / "crops")]
    if not blocks:
        raise BadData(f"{root}: no copies beside {ORIGINALS}/; expected strong/, jpegqual/NN/ or crops/NN/")
    paths = [path for _, path in originals]
    labels = [number for number, _ in originals]
    if distractors is not None:
        others = pictures_below(distractors)
        paths += others
        labels += [-1] * len(others)
    gallery = np.arange(len(paths))
    tasks = []
    for block in blocks:
        copies = _numbered(block, r"(\d{4})\d+", None, "200001.jpg, 200002.jpg ...")
        lost = {number for number, _ in copies} - {number for number, _ in originals}
        if lost:
            raise BadData(f"{block}: no original begins with {min(lost)}; copy the whole of {root / ORIGINALS}")
        queries = len(paths) + np.arange(len(copies))
        paths += [path for _, path in copies]
        labels += [number for number, _ in copies]
        name = str(block.relative_to(root))
        tasks.append(Task(name, queries, gallery, own=np.full(len(queries), -1)))
    return RetrievalSet(paths, np.array(labels, np.int64), tasks)


def all_against_all(paths: list[str], labels: np.ndarray) -> RetrievalSet:
    """Every picture as a query among all others.

    labels: int64 [N]. Raises BadData where every class has one picture only.
    """
    if len(np.unique(labels)) == len(labels):
        raise BadData(
            f"each of the {len(labels)} classes has one picture, so a query has nothing to find; "
            "give a gallery with 2 pictures or more of some classes"
        )
    everything = np.arange(len(paths))
    return RetrievalSet(paths, labels, [Task("folder", everything, everything, own=everything)])


def _numbered(folder: str | Path, pattern: str, inner: str | None, expected: str) -> list[tuple[int, str]]:
    """(number in the name, path) of the pictures directly in a folder or its ``inner`` folder, by number and name."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; expected one with {expected}")
    if inner is not None and (folder / inner).is_dir():
        folder = folder / inner
    found = []
    for path in sorted(folder.iterdir()):
        match = re.fullmatch(pattern, path.stem)
        if match and path.suffix.lower() in SUFFIXES:
            found.append((int(match[1]), str(path)))
    if not found:
        raise BadData(f"{folder}: holds no pictures named {expected}")
    return sorted(found)


def _read_turns(file: str | Path, paths: list[str]) -> np.ndarray:
    """Degrees clockwise of each picture, int64 [N], 0 for those that the list does not name."""
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--holidays_rotations {file}: cannot be read ({error}); give a text file") from error
    places = {Path(path).name.lower(): place for place, path in enumerate(paths)}
    turns, lines_of = np.zeros(len(paths), np.int64), {}
    for number, line in enumerate(lines, start=1):
        entry = line.split("#", 1)[0].strip()
        if entry in ("", "{", "}"):
            continue
        match = re.fullmatch(r"""(["']?)([^"':\s]+)\1\s*:\s*(0|90|180|270)\s*,?""", entry)
        if match is None:
            raise BadData(
                f'{file}:{number}: "{entry[:60]}" is not "picture: degrees"; write for example "100600.jpg: 90", the '
                "degrees clockwise (0, 90, 180 or 270), one picture a line"
            )
        name, degrees = match[2].lower(), int(match[3])
        if name not in places:
            raise BadData(
                f"{file}:{number}: {match[2]} is not among the {len(paths)} pictures of {Path(paths[0]).parent}; copy "
                "all pictures there, or take the line out"
            )
        if name in lines_of:
            raise BadData(
                f"{file}:{number}: {match[2]} is in line {lines_of[name]} already; take one of the two lines out"
            )
        lines_of[name] = number
        turns[places[name]] = degrees
    if not lines_of:
        raise BadData(f'{file}: names no picture; write lines such as "100600.jpg: 90"')
    return turns


def _by_number(folder: Path) -> list[Path]:
    """Its folders that are named by a number, by that number."""
    if not folder.is_dir():
        return []
    return sorted(
        (path for path in folder.iterdir() if path.is_dir() and path.name.isdigit()), key=lambda path: int(path.name)
    )


def pictures_below(folder: str | Path) -> list[str]:
    """All pictures below a folder, sorted. Raises BadData where there are none."""
    paths = sorted(str(path) for path in Path(folder).rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not paths:
        raise BadData(f"{folder}: holds no pictures (.jpg, .jpeg or .png); give another folder")
    return paths
