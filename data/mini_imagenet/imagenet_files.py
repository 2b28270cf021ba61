"""Which ImageNet files the CSV files of mini-ImageNet name, in a train folder or in the tar of it.

Two forms of names are known. Those of Vinyals' files are ILSVRC's own: n01532829_10028.JPEG. Those of
mini-imagenet-tools (Ravi and Larochelle's split) are ranks: n0153282900000005.jpg is the fifth of n01532829's files in
order of their numbers.
"""

import csv
import re
import tarfile
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from towers.errors import BadData

RANKED = re.compile(r"(n\d{8})(\d{8})\.(?:jpe?g|png)", re.IGNORECASE)
NUMBERED = re.compile(r"(n\d{8})_(\d+)\.(?:jpe?g|png)", re.IGNORECASE)
NAMING_RULE = (
    "names are n01532829_10028.JPEG (ILSVRC2012's own), or n01532829 + 8 digits + .jpg, where the digits are the rank, "
    "from 1, of the picture among its class's files in order of their numbers"
)
# Of the 1,000 classes of ILSVRC2012's train set.
SMALLEST_CLASS = 732


@dataclass
class Missing:
    """Rows that name no picture: reason -> the rows as ``file:line: name``."""

    rows: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, reason: str, row: str) -> None:
        self.rows[reason].append(row)

    def lines(self) -> list[str]:
        """A line a reason with its count and first rows."""
        return [
            f"{len(rows)} row(s) left out: {reason}: {', '.join(rows[:3])}{' ...' if len(rows) > 3 else ''}"
            for reason, rows in self.rows.items()
        ]


def number_of(name: str) -> int:
    """The number at the end of an ILSVRC name, by which files are ranked: 10028 of n01532829_10028.JPEG."""
    digits = re.search(r"(\d+)\.\w+$", name)
    return int(digits[1]) if digits else -1


def read_rows(csv_dir: Path, missing: Missing) -> list[tuple[str, str, str]]:
    """(file:line, name, class) of every row of the CSV files; rows that are not understood go to ``missing``.

    Raises:
      BadData: no CSV file, or one without the two columns.
    """
    paths = sorted(csv_dir.glob("*.csv")) if csv_dir.is_dir() else []
    if not paths:
        raise BadData(
            f"--csv_dir {csv_dir}: no train.csv, val.csv or test.csv in it; get them from mini-imagenet-tools"
        )
    rows, seen = [], Counter()
    for path in paths:
        with path.open(newline="") as file:
            reader = csv.reader(file)
            header = [column.strip().lower() for column in next(reader, [])]
            if "filename" not in header or not {"label", "class"} & set(header):
                raise BadData(
                    f"{path}: its first line is {','.join(header)}; expected filename,label or filename,class"
                )
            columns = header.index("filename"), header.index("label" if "label" in header else "class")
            for row in reader:
                where = f"{path.name}:{reader.line_num}"
                if len(row) <= max(columns):
                    missing.add("no two columns", f"{where}: {','.join(row)}")
                    continue
                name, class_name = (row[column].strip() for column in columns)
                match = RANKED.fullmatch(name) or NUMBERED.fullmatch(name)
                if match is None:
                    missing.add(f"the name is not understood; {NAMING_RULE}", f"{where}: {name}")
                elif match[1] != class_name:
                    missing.add("the class is not that of the name", f"{where}: {name} of {class_name}")
                elif seen[name]:
                    missing.add("named before", f"{where}: {name}")
                else:
                    rows.append((where, name, class_name))
                seen[name] += 1
    return rows


def resolve(rows: list[tuple[str, str, str]], files: dict[str, list[str]], missing: Missing) -> list[tuple[str, str]]:
    """(class, file) of each row that names a file.

    Args:
      files: class -> names of its files.
    """
    ranked = {name: sorted(own, key=lambda file: (number_of(file), file)) for name, own in files.items()}
    exact = {name: set(own) for name, own in files.items()}
    found = []
    for where, name, class_name in rows:
        own = ranked.get(class_name)
        if own is None:
            missing.add("the class is not among the ImageNet files", f"{where}: {name}")
            continue
        match = RANKED.fullmatch(name)
        if name in exact[class_name]:
            file = name
        elif match is None:
            missing.add("there is no such file", f"{where}: {name}")
            continue
        elif not 1 <= int(match[2]) <= len(own):
            missing.add(
                f"the rank is past the files of the class; {NAMING_RULE}",
                f"{where}: {name} is number {int(match[2])} of {len(own)}",
            )
            continue
        else:
            file = own[int(match[2]) - 1]
        found.append((class_name, file))
    return found


def incomplete_classes(rows: list[tuple[str, str, str]], files: dict[str, list[str]]) -> list[str]:
    """Classes whose pictures are named by rank, and of which files must be missing: ranks would be wrong."""
    by_rank = {class_name for _, name, class_name in rows if RANKED.fullmatch(name)}
    return sorted(
        name
        for name in by_rank & files.keys()
        if len(files[name]) < SMALLEST_CLASS and any(NUMBERED.fullmatch(file) for file in files[name])
    )


def list_folder(root: Path, classes: Iterable[str]) -> dict[str, list[str]]:
    """Class -> file names, of the classes that have a folder; files lying in ``root`` itself go by their names."""
    files = {name: [path.name for path in (root / name).iterdir()] for name in classes if (root / name).is_dir()}
    for path in root.iterdir():
        match = RANKED.fullmatch(path.name) or NUMBERED.fullmatch(path.name)
        if match and match[1] in classes and path.is_file():
            files.setdefault(match[1], []).append(path.name)
    return files


def folder_path(root: Path, class_name: str, file: str) -> Path:
    """Where ``list_folder`` saw a file."""
    inside = root / class_name / file
    return inside if inside.exists() else root / file


def extract(archive: Path, out: Path, rows: list[tuple[str, str, str]], missing: Missing):
    """Write the named pictures of ILSVRC2012_img_train.tar, a tar of one tar a class, as out/class/file.

    Returns:
      ((class, file) of each, class -> names of its files in the tar).

    Raises:
      BadData: not such a tar, or a damaged one.
    """
    of_class = defaultdict(list)
    for row in rows:
        of_class[row[2]].append(row)
    found, files = [], {}
    try:
        with tarfile.open(archive) as outer:
            for member in outer:
                class_name = Path(member.name).name.removesuffix(".tar")
                if not member.isfile() or class_name not in of_class:
                    continue
                with tarfile.open(fileobj=outer.extractfile(member)) as inner:
                    members = {Path(item.name).name: item for item in inner.getmembers() if item.isfile()}
                    files[class_name] = list(members)
                    own = resolve(of_class[class_name], {class_name: list(members)}, missing)
                    (out / class_name).mkdir(parents=True, exist_ok=True)
                    for _, file in own:
                        (out / class_name / file).write_bytes(inner.extractfile(members[file]).read())
                    found += own
    except tarfile.TarError as error:
        raise BadData(f"--imagenet {archive}: not a whole tar of class tars ({error}); take another copy") from error
    for class_name in sorted(of_class.keys() - files.keys()):
        resolve(of_class[class_name], {}, missing)
    return found, files
