"""The data set on disk: pictures of classes, Holidays' and Copydays' folders, and a description of what was made."""

import json
import os
import shutil
from pathlib import Path

import cv2
import distortions
import numpy as np
from scene_drawing import MAX_CLASSES, class_name, draw_instance, draw_view

from towers.errors import BadData, StorageError, UserError

GENERATOR_VERSION = 1
QUALITY = 90
TRAIN, VAL, HOLIDAYS, COPIES = range(4)
JPEG_QUALITIES = (5, 20)
CROPS = (20, 50)


def generate(
    out_dir: str | Path,
    *,
    num_classes: int = 10,
    train_images: int = 200,
    val_images: int = 100,
    instances: int = 100,
    views: int = 4,
    originals: int = 100,
    strong_copies: int = 4,
    strong_changes: int = 2,
    image_size: int = 96,
    seed: int = 0,
) -> bool:
    """Make ``out_dir`` with train/, val/, holidays/ and copydays/; return False where it is there already.

    The folder appears whole or not at all. image_size in pixels. Raises UserError for options that cannot be met,
    BadData where ``out_dir`` holds something else, StorageError on I/O.
    """
    options = {name: value for name, value in locals().items() if name != "out_dir"}
    check(options)
    out = Path(out_dir)
    description = {"generator": "multigrain_standin", "version": GENERATOR_VERSION, "options": options}
    if is_made(out, description):
        return False
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")

    def scene(part: int, number: int, class_number: int):
        return draw_instance(class_number, np.random.default_rng([seed, part, number]))

    def view(instance, part: int, number: int, index: int) -> np.ndarray:
        return draw_view(instance, image_size, np.random.default_rng([seed, part, number, 1, index]), change=1.0)

    try:
        for part, folder, count in ((TRAIN, "train", train_images), (VAL, "val", val_images)):
            for number in range(num_classes * count):
                class_number, index = divmod(number, count)
                name = class_name(class_number)
                picture = view(scene(part, number, class_number), part, number, 0)
                write(partial / folder / name / f"{name}_{index:04}.jpg", picture)
        for number in range(instances):
            instance = scene(HOLIDAYS, number, number % num_classes)
            for index in range(views):
                picture = view(instance, HOLIDAYS, number, index)
                write(partial / "holidays" / f"{1000 + number}{index:02}.jpg", picture)
        for number in range(originals):
            write_copies(
                partial / "copydays",
                2000 + number,
                view(scene(COPIES, number, number % num_classes), COPIES, number, 0),
                strong_copies,
                strong_changes,
                np.random.default_rng([seed, COPIES, number, 2]),
            )
        (partial / "dataset.json").write_text(json.dumps(description, indent=2) + "\n")
        partial.rename(out)
    except OSError as error:
        raise StorageError(f"{out}: cannot be written ({error}); free space or choose another --out_dir") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return True


def check(options: dict[str, int]) -> None:
    """Raise UserError for a count that is out of range."""
    least = {"image_size": 32, "seed": 0, "num_classes": 2, "views": 2}
    most = {"num_classes": MAX_CLASSES, "views": 100, "strong_copies": 99, "instances": 9000, "originals": 8000}
    most["strong_changes"] = len(distortions.CHANGES)
    for name, value in options.items():
        low, high = least.get(name, 1), most.get(name)
        if value < low or (high is not None and value > high):
            raise UserError(f"--{name} {value}: must be {low} or more" + (f", and at most {high}" if high else ""))


def is_made(out: Path, description: dict) -> bool:
    """Whether ``out`` holds the data set described; False where there is nothing. Raises BadData for anything else."""
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


def write_copies(
    folder: Path, number: int, picture: np.ndarray, strong_copies: int, strong_changes: int, random
) -> None:
    """An original and its copies, named as Copydays names them: the first four digits are the original's."""
    write(folder / "original" / f"{number}00.jpg", picture)
    for quality in JPEG_QUALITIES:
        write(folder / "jpegqual" / str(quality) / f"{number}00.jpg", picture, quality)
    for removed in CROPS:
        write(folder / "crops" / str(removed) / f"{number}00.jpg", distortions.crop(picture, removed / 100))
    for index in range(1, strong_copies + 1):
        write(folder / "strong" / f"{number}{index:02}.jpg", distortions.strong(picture, strong_changes, random))


def write(path: Path, picture: np.ndarray, quality: int = QUALITY) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes())


def write_sheet(out: Path, path: Path, columns: int = 8) -> None:
    """Write a JPEG: pictures of four classes, views of four instances, and originals with their strong copies."""
    classes = sorted((out / "train").iterdir())
    chosen = sorted({round(place) for place in np.linspace(0, len(classes) - 1, 4)})
    rows = [sorted(classes[place].iterdir())[:columns] for place in chosen]
    holidays = sorted((out / "holidays").iterdir())
    rows += [holidays[start : start + columns] for start in (0, columns)]
    originals = sorted((out / "copydays" / "original").iterdir())[: 2 * (columns // 2)]
    copies = []
    for original in originals:
        copies += [original, *sorted((out / "copydays" / "strong").glob(f"{original.stem[:4]}*"))][:2]
    rows += [copies[:columns], copies[columns : 2 * columns]]
    size = cv2.imread(str(rows[0][0])).shape[0]
    sheet = np.full((len(rows) * size, columns * size, 3), 255, np.uint8)
    for row, pictures in enumerate(rows):
        for column, picture in enumerate(pictures):
            sheet[row * size : (row + 1) * size, column * size : (column + 1) * size] = cv2.imread(str(picture))
    if not cv2.imwrite(str(path), sheet, [cv2.IMWRITE_JPEG_QUALITY, 82]):
        raise StorageError(f"{path}: OpenCV cannot write the sheet; the folder must exist and the name end in .jpg")
