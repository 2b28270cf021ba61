"""The data set on disk: people over train and test folders, LFW's pairs, and a description of what was made."""

import itertools
import json
import multiprocessing
import os
import shutil
from pathlib import Path

import cv2
import numpy as np
from face_law import MAX_PEOPLE, draw_names, draw_people
from face_pictures import write_person

from towers.errors import BadData, StorageError, UserError

GENERATOR_VERSION = 1
MIN_IMAGE_SIZE = 28


def draw_pairs(
    num_people: int, num_images: int, num_pairs: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draw `num_pairs` same and as many different pairs without repetition among people of `num_images` pictures each.

    Returns int64 [num_pairs, 3] rows (person, i, j) and [num_pairs, 4] rows (person, i, other, j), all counted from 0.
    Raises ValueError where there are too few pairs.
    """
    couples = np.array(list(itertools.combinations(range(num_images), 2))).reshape(-1, 2)
    strangers = np.array(list(itertools.combinations(range(num_people), 2))).reshape(-1, 2)
    num_same, num_different = num_people * len(couples), len(strangers) * num_images**2
    if num_pairs > min(num_same, num_different):
        raise ValueError(
            f"{num_people} people x {num_images} images make {num_same} same and {num_different} different pairs"
        )
    chosen = rng.choice(num_same, num_pairs, replace=False)
    same = np.column_stack([chosen // len(couples), couples[chosen % len(couples)]])
    chosen = rng.choice(num_different, num_pairs, replace=False)
    who, (i, j) = strangers[chosen // num_images**2], np.divmod(chosen % num_images**2, num_images)
    return same, np.column_stack([who[:, 0], i, who[:, 1], j])


def write_pairs(path: Path, names: list[str], num_images: int, folds: int, pairs_per_fold: int, seed: int) -> None:
    """Write pairs in LFW's format; no person is in two folds.

    Raises UserError where a fold has too few people or images for its pairs.
    """
    rng = np.random.default_rng([seed, 3])
    lines = [f"{folds}\t{pairs_per_fold}"]
    for fold in np.array_split(np.array(names, dtype=object), folds):
        try:
            same, different = draw_pairs(len(fold), num_images, pairs_per_fold, rng)
        except ValueError as error:
            raise UserError(
                f"--pairs_per_fold {pairs_per_fold}: a fold of {error}; give fewer pairs or folds, or "
                "more --test_people or --test_images_per_person"
            ) from error
        lines += [f"{fold[who]}\t{i + 1}\t{j + 1}" for who, i, j in same]
        lines += [f"{fold[who]}\t{i + 1}\t{fold[other]}\t{j + 1}" for who, i, other, j in different]
    path.write_text("\n".join(lines) + "\n")


def describe(**options: int) -> dict:
    """Return what `dataset.json` holds for the options of `generate`."""
    counts = {
        "train_images": options["train_people"] * options["images_per_person"],
        "test_images": options["test_people"] * options["test_images_per_person"],
        "pairs": 2 * options["folds"] * options["pairs_per_fold"],
    }
    return {"generator": "synthetic_faces", "version": GENERATOR_VERSION, "options": options, "counts": counts}


def is_made(out: Path, description: dict) -> bool:
    """Say whether the folder holds the data set described; False where there is nothing.

    Raises BadData where the folder holds something else.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    try:
        found = json.loads((out / "dataset.json").read_text())
    except (OSError, ValueError) as error:
        raise BadData(
            f"{out}: is not a generated data set (no readable dataset.json); choose another --out_dir"
        ) from error
    if found != description:
        raise BadData(
            f"{out}: holds a data set of other options (see its dataset.json); remove it or choose another --out_dir"
        )
    return True


def write_people(jobs: list[tuple], processes: int) -> None:
    """Run `write_person` on each job, in this process or spread over several."""
    if processes == 1:
        for job in jobs:
            write_person(*job)
        return
    # A fresh interpreter each: forking a process that holds TensorFlow's threads can hang.
    with multiprocessing.get_context("spawn").Pool(processes, initializer=cv2.setNumThreads, initargs=(1,)) as pool:
        pool.starmap(write_person, jobs, chunksize=4)


def generate(
    out_dir: str | Path,
    *,
    train_people: int = 200,
    images_per_person: int = 20,
    test_people: int = 120,
    test_images_per_person: int = 10,
    image_size: int = 112,
    seed: int = 0,
    folds: int = 10,
    pairs_per_fold: int = 300,
    processes: int | None = None,
) -> bool:
    """Make `out_dir` with train/, test/, pairs.txt and dataset.json; return False where it is there already.

    `image_size` in pixels; `processes` None: one a core. The folder appears whole or not at all.
    Raises UserError for options that cannot be met, BadData where `out_dir` holds something else, StorageError on I/O.
    """
    options = {name: value for name, value in locals().items() if name not in ("out_dir", "processes")}
    for name, least in {"image_size": MIN_IMAGE_SIZE, "seed": 0}.items():
        if options[name] < least:
            raise UserError(f"--{name} {options[name]}: must be at least {least}")
    for name, value in options.items():
        if name not in ("seed", "image_size") and value < 1:
            raise UserError(f"--{name} {value}: must be at least 1")
    if train_people + test_people > MAX_PEOPLE:
        raise UserError(
            f"--train_people {train_people} --test_people {test_people}: there are names for {MAX_PEOPLE} people"
        )
    out, description = Path(out_dir), describe(**options)
    if is_made(out, description):
        return False
    people = draw_people(train_people + test_people, seed)
    names = draw_names(train_people + test_people, seed)
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    jobs = [
        (str(partial / ("train" if number < train_people else "test") / name), person, number, count, image_size, seed)
        for number, (name, person) in enumerate(zip(names, people, strict=True))
        for count in [images_per_person if number < train_people else test_images_per_person]
    ]
    try:
        partial.mkdir(parents=True)
        write_pairs(partial / "pairs.txt", names[train_people:], test_images_per_person, folds, pairs_per_fold, seed)
        write_people(jobs, processes or len(os.sched_getaffinity(0)))
        (partial / "dataset.json").write_text(json.dumps(description, indent=2) + "\n")
        partial.rename(out)
    except OSError as error:
        raise StorageError(f"{out}: cannot be written ({error}); free space or choose another --out_dir") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return True


def write_sheet(out: Path, path: Path, num_people: int = 8, num_images: int = 6) -> None:
    """Write a JPEG of the first pictures of the first test people, a person a row."""
    rows = []
    for person in sorted((out / "test").iterdir())[:num_people]:
        rows.append(np.hstack([cv2.imread(str(picture)) for picture in sorted(person.iterdir())[:num_images]]))
    if not cv2.imwrite(str(path), np.vstack(rows), [cv2.IMWRITE_JPEG_QUALITY, 82]):
        raise StorageError(f"{path}: OpenCV cannot write the sheet; the folder must exist and the name end in .jpg")
