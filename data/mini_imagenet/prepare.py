"""Make a data set of classes for train_softmax.py: OUT/train and OUT/test, links into folders of pictures.

    python data/mini_imagenet/prepare.py --synthetic --out_dir data/mini_imagenet/generated
    python data/mini_imagenet/prepare.py --csv_dir CSV --imagenet ILSVRC/train --out_dir data/mini_imagenet/real
    python data/mini_imagenet/prepare.py --folder PICTURES --out_dir data/mine

The classes of all CSV files are merged, and each is split into training and test pictures, --split 7:3, by
scikit-learn; split.csv names every picture and its side.
A call with the options of the set that is already there does nothing.
"""

import argparse
import csv
import hashlib
import json
import os
import shutil
import sys
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
from sklearn.model_selection import train_test_split

# For programs that load this file by its path; a run as a script has the folder on the path already.
if str(Path(__file__).parent) not in sys.path:
    sys.path.insert(0, str(Path(__file__).parent))

import imagenet_files
import textured_shapes

from towers.datasets.folder import read_folder
from towers.errors import BadData, UserError

MARK = "dataset.json"


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out_dir", type=Path, required=True, help="folder to make")
    parser.add_argument("--csv_dir", type=Path, help="folder of train.csv, val.csv and test.csv of mini-ImageNet")
    parser.add_argument(
        "--imagenet", type=Path, help="with --csv_dir: ILSVRC2012's train folder or ILSVRC2012_img_train.tar"
    )
    parser.add_argument("--folder", type=Path, help="any folder of class folders, in the place of the two")
    parser.add_argument("--synthetic", action="store_true", help="draw textured shapes, in the place of the three")
    parser.add_argument(
        "--classes", type=int, default=100, help="with --synthetic: classes, at most 100 (default: 100)"
    )
    parser.add_argument(
        "--images_per_class", type=int, default=100, help="with --synthetic: pictures of each (default: 100)"
    )
    parser.add_argument("--split", default="7:3", help="training : test pictures of each class (default: 7:3)")
    parser.add_argument(
        "--min_images_per_class", type=int, default=0, help="leave out classes with fewer pictures (default: none)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the split, and of what is drawn (default: 0)")
    return parser.parse_args(arguments)


def test_share(split: str) -> float:
    """The share of the second of ``7:3``: 0.3.

    Raises:
      UserError: not two positive numbers.
    """
    try:
        train, test = (float(part) for part in split.split(":"))
    except ValueError:
        train = test = 0.0
    if not (0 < train < float("inf") and 0 < test < float("inf")):
        raise UserError(f"--split {split}: give two positive numbers, training : test, such as 7:3")
    return test / (train + test)


def split_within_classes(labels: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Records of training and of test, each class split by ``share``: scikit-learn's stratified split, sorted.

    Raises:
      BadData: the share leaves a class without pictures on one side.
    """
    records = np.arange(len(labels))
    if round(len(labels) * min(share, 1 - share)) < len(np.unique(labels)):
        raise BadData(
            f"--split leaves {round(len(labels) * min(share, 1 - share))} pictures on one side, fewer than the "
            f"{len(np.unique(labels))} classes; give a more even --split"
        )
    train, test = train_test_split(records, test_size=share, stratify=labels, random_state=seed)
    sides = [np.bincount(labels[side], minlength=labels.max() + 1) for side in (train, test)]
    empty = np.flatnonzero((sides[0] == 0) | (sides[1] == 0))
    if empty.size:
        raise BadData(
            f"--split leaves {empty.size} classes without pictures on one side; give a more even --split, or "
            "--min_images_per_class"
        )
    return np.sort(train), np.sort(test)


def without_copies(paths: list[Path]) -> tuple[list[int], list[tuple[Path, Path]]]:
    """Indices of files of which no earlier one has the same bytes, and (copy, first) of the others.

    The same picture in train and test would be counted as recognised.
    """
    by_size = defaultdict(list)
    for index, path in enumerate(paths):
        by_size[path.stat().st_size].append(index)
    first_of, copies = {}, {}
    for indices in by_size.values():
        if len(indices) > 1:
            for index in indices:
                digest = hashlib.blake2b(paths[index].read_bytes()).digest()
                first = first_of.setdefault(digest, index)
                if first != index:
                    copies[index] = first
    kept = [index for index in range(len(paths)) if index not in copies]
    return kept, [(paths[copy], paths[first]) for copy, first in sorted(copies.items())]


def find_pictures(arguments, images: Path, notes: list[str]) -> list[tuple[str, Path]]:
    """(class, file) of every picture; pictures that are drawn or unpacked go below ``images``.

    Args:
      notes: gets a line for each thing that the user should know.
    """
    if arguments.folder is not None:
        source = read_folder(arguments.folder)
        return [
            (source.class_names[label], Path(source.where(record)))
            for record, label in enumerate(source.labels.tolist())
        ]
    missing = imagenet_files.Missing()
    if arguments.synthetic:
        csv_dir, place = images.parent / "csv", images
        textured_shapes.write_all(
            images, csv_dir, seed=arguments.seed, images=arguments.images_per_class, classes=arguments.classes
        )
    else:
        csv_dir, place = arguments.csv_dir, arguments.imagenet
    rows = imagenet_files.read_rows(csv_dir, missing)
    if place.is_dir():
        files = imagenet_files.list_folder(place, {class_name for _, _, class_name in rows})
        found = imagenet_files.resolve(rows, files, missing)
        pictures = [(name, imagenet_files.folder_path(place, name, file)) for name, file in found]
    elif place.is_file():
        found, files = imagenet_files.extract(place, images, rows, missing)
        pictures = [(name, images / name / file) for name, file in found]
    else:
        raise BadData(f"--imagenet {place}: no such folder or file; give ILSVRC2012's train folder or its tar")
    notes += missing.lines()
    incomplete = [] if arguments.synthetic else imagenet_files.incomplete_classes(rows, files)
    if incomplete:
        notes.append(
            f"warning: {len(incomplete)} classes have fewer than {imagenet_files.SMALLEST_CLASS} files, such as "
            f"{incomplete[0]} with {len(files[incomplete[0]])}: no class of ILSVRC2012 is so small, and where files "
            "are missing, ranks name other pictures than they should"
        )
    if not pictures:
        raise BadData(f"{csv_dir}: none of its pictures is in {place}. {' '.join(notes)}")
    unique = dict.fromkeys(pictures)
    if len(unique) < len(pictures):
        notes.append(f"{len(pictures) - len(unique)} row(s) left out: another row names the same file")
    return list(unique)


def prepare(arguments) -> list[str]:
    """Make the data set and return what there is to say, a line each.

    Raises:
      UserError: contradictory options, or a folder that this program did not make.
      BadData: too few pictures.
    """
    share = test_share(arguments.split)
    check_choice(arguments)
    out = arguments.out_dir
    recorded = {name: str(value) for name, value in sorted(vars(arguments).items()) if name != "out_dir"}
    if (out / MARK).is_file():
        known = json.loads((out / MARK).read_text())
        if known["options"] == recorded:
            return [f"{out}: already there, nothing to do: {known['summary']}"]
    elif out.exists() and any(out.iterdir()):
        raise UserError(f"--out_dir {out}: is not empty and was not made by this program; give another folder")

    making = out.with_name(f".{out.name}-{os.getpid()}")
    notes = []
    try:
        making.mkdir(parents=True)
        pictures = sorted(find_pictures(arguments, making / "images", notes))
        pictures = leave_out(pictures, arguments.min_images_per_class, notes)
        names = sorted({name for name, _ in pictures})
        numbers = {name: number for number, name in enumerate(names)}
        train, test = split_within_classes(np.array([numbers[name] for name, _ in pictures]), share, arguments.seed)
        write_split(making, pictures, {"train": train, "test": test})
        summary = f"{len(train)} train and {len(test)} test pictures of {len(names)} classes"
        (making / MARK).write_text(json.dumps({"summary": summary, "options": recorded, "notes": notes}, indent=1))
        if out.exists():
            shutil.rmtree(out)
        making.rename(out)
    finally:
        shutil.rmtree(making, ignore_errors=True)
    return [*notes, f"{out}: made: {summary}; train_softmax.py --data_dir {out / 'train'} --val_dir {out / 'test'}"]


def check_choice(arguments) -> None:
    """Raise UserError unless the options name one source of pictures."""
    chosen = [arguments.synthetic, arguments.folder is not None, bool(arguments.csv_dir or arguments.imagenet)]
    if sum(chosen) != 1:
        raise UserError("give one of --synthetic, --folder DIR, or --csv_dir DIR with --imagenet DIR_OR_TAR")
    if chosen[2] and (arguments.csv_dir is None or arguments.imagenet is None):
        raise UserError("--csv_dir and --imagenet go together: the names of the pictures, and where they are")
    if not 2 <= arguments.classes <= len(textured_shapes.CLASSES):
        raise UserError(f"--classes {arguments.classes}: give 2 to {len(textured_shapes.CLASSES)}")
    if arguments.images_per_class < 2:
        raise UserError(f"--images_per_class {arguments.images_per_class}: give 2 or more")


def leave_out(pictures: list[tuple[str, Path]], least: int, notes: list[str]) -> list[tuple[str, Path]]:
    """The pictures without copies and small classes.

    Raises:
      BadData: a class with one picture is left, which no split can serve.
    """
    kept, copies = without_copies([path for _, path in pictures])
    if copies:
        shown = "; ".join(f"{copy} is {first}" for copy, first in copies[:3])
        notes.append(f"{len(copies)} picture(s) left out, the same bytes as another: {shown}")
    pictures = [pictures[index] for index in kept]
    counts = Counter(name for name, _ in pictures)
    small = sorted(name for name, count in counts.items() if count < least)
    if small:
        notes.append(f"{len(small)} class(es) left out with fewer than {least} pictures: {', '.join(small[:5])}")
    single = sorted(name for name, count in counts.items() if count < 2 and name not in small)
    if single:
        raise BadData(
            f"{len(single)} class(es) with one picture cannot be split: {', '.join(single[:5])}; add pictures, or "
            "leave such classes out with --min_images_per_class 2"
        )
    left = [(name, path) for name, path in pictures if counts[name] >= least]
    if len({name for name, _ in left}) < 2:
        raise BadData("fewer than two classes are left; training needs two or more")
    return left


def write_split(out: Path, pictures: list[tuple[str, Path]], sides: dict[str, np.ndarray]) -> None:
    """Links OUT/side/class/file to every picture, and OUT/split.csv. Links within OUT are relative: it can be moved."""
    rows = []
    for side, records in sides.items():
        for record in records:
            name, path = pictures[record]
            folder = out / side / name
            folder.mkdir(parents=True, exist_ok=True)
            inside = path.is_relative_to(out)
            (folder / path.name).symlink_to(os.path.relpath(path, folder) if inside else path.resolve())
            rows.append((side, name, path.relative_to(out) if inside else path.resolve()))
    with (out / "split.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([("split", "class", "file"), *rows])


def main() -> int:
    """Make the data set of the command line and say what was done."""
    try:
        print("\n".join(prepare(parse_args())))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"error: {error}; make room, or check the rights there", file=sys.stderr)
        return 74
    return 0


if __name__ == "__main__":
    sys.exit(main())
