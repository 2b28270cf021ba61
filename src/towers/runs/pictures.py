"""The training pictures of a run: a data set of any kind or the embedded one, filtered, with some held out."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from ..datasets import filtering, folder, splitting
from ..datasets.augmentation import augment
from ..datasets.cropping import RandomResizedCrop
from ..datasets.opening import KINDS, open_source
from ..errors import BadData, UserError

SOURCE_OPTIONS = "data_dir filter_filename filter_percentile filter_min_nrof_images_per_class"
OPTIONS = f"{SOURCE_OPTIONS} validation_set_split_ratio min_nrof_val_images_per_class val_dir seed"
AUGMENTATION_OPTIONS = "seed image_size random_crop random_flip random_rotate random_color"
CROP_OPTIONS = "seed image_size random_resized_crop min_crop_area"
LOAD_OPTIONS = "load_size image_size random_crop random_resized_crop random_color"
# Facenet's people are aligned to 182 pixels and cropped to 160.
CROP_RATIO = 182 / 160
# ImageNet: the shorter side to 256 pixels, of which the middle 224.
EVALUATION_RATIO = 256 / 224


def embedded_data_set(project: Path) -> dict[str, Path]:
    """Make the embedded data set under ``project`` where it is missing: data_dir, lfw_dir and lfw_pairs."""
    generated = project / "data" / "synthetic_faces" / "generated"
    subprocess.run(
        [sys.executable, project / "data" / "synthetic_faces" / "prepare.py", "--out_dir", generated], check=True
    )
    return {"data_dir": generated / "train", "lfw_dir": generated / "test", "lfw_pairs": generated / "pairs.txt"}


def training_pictures(
    *,
    data_dir: Path | None,
    filter_filename: Path | None,
    filter_percentile: float,
    filter_min_nrof_images_per_class: int,
    validation_set_split_ratio: float = 0.0,
    min_nrof_val_images_per_class: int = 0,
    val_dir: Path | None = None,
    seed: int = 0,
):
    """Read, filter and split, or take ``val_dir`` as the pictures held out.

    Returns:
      (training source, source of the pictures held out or None, their labels [M]).

    Raises:
      UserError: no ``data_dir``, a share out of its range, or two ways to hold out at once.
      BadData: nothing to train on there, or ``val_dir`` has other classes, or files of ``data_dir``.
    """
    if data_dir is None:
        raise UserError(f"give --data_dir with {KINDS}; or --synthetic")
    if not 0 <= validation_set_split_ratio < 1:
        raise UserError(f"--validation_set_split_ratio {validation_set_split_ratio}: a share of 0 or more, below 1")
    if val_dir is not None and validation_set_split_ratio:
        raise UserError(
            f"--val_dir {val_dir} and --validation_set_split_ratio {validation_set_split_ratio} both say what is held "
            "out; give one of them"
        )
    refuse_root_of_splits(data_dir)
    source = open_source(data_dir)
    if source.num_classes < 2:
        raise BadData(f"{data_dir}: {source.num_classes} class; training needs 2 or more")
    if filter_filename is not None:
        metrics = filtering.read_filtering_metrics(filter_filename)
        source = filtering.filter_dataset(source, metrics, filter_percentile, filter_min_nrof_images_per_class)
    elif filter_min_nrof_images_per_class > 1:
        source = filtering.filter_by_class_size(source, filter_min_nrof_images_per_class)
    if val_dir is not None:
        pictures, labels = labelled_pictures(val_dir, source.class_names)
        if isinstance(source, folder.Source):
            _refuse_shared_files(source, pictures)
        return source, pictures, labels
    if not validation_set_split_ratio:
        return source, None, np.zeros(0, np.int64)
    kept, held_out = splitting.split_classes(
        source, validation_set_split_ratio, min_held_out=min_nrof_val_images_per_class, seed=seed
    )
    pictures = source.subset(held_out) if len(held_out) else None
    return kept, pictures, source.labels[held_out]


def labelled_pictures(root: Path, class_names: list[str]) -> tuple[folder.PathSource, np.ndarray]:
    """The pictures of a folder of class folders and their labels [N] by ``class_names``; not all classes need be there.

    Raises:
      BadData: a class that is not among ``class_names``.
    """
    source = folder.read_folder(root)
    return folder.PathSource([source.where(record) for record in range(len(source))]), labels_among(source, class_names)


def labels_among(source: folder.Source, class_names: list[str]) -> np.ndarray:
    """The labels [N] of a source by ``class_names``, by the names of its own classes.

    Raises:
      BadData: a class that is not among ``class_names``.
    """
    known = {name: label for label, name in enumerate(class_names)}
    foreign = [name for name in source.class_names if name not in known]
    if foreign:
        shown = ", ".join(foreign[:5]) + (" ..." if len(foreign) > 5 else "")
        raise BadData(
            f"{source.root}: {len(foreign)} of {len(source.class_names)} classes are not among the {len(known)} "
            f"trained ones: {shown}; its folders must have the names of the training folders, such as {class_names[0]}"
        )
    return np.array([known[name] for name in source.class_names], np.int64)[source.labels]


def refuse_root_of_splits(data_dir: Path) -> None:
    """Raise UserError for the folder above train/ and val/ or test/, whose parts would pass for classes."""
    parts = {name for name in ("train", "val", "test") if _holds_folders(data_dir / name)}
    if "train" in parts and len(parts) > 1:
        raise UserError(
            f"--data_dir {data_dir}: holds {' and '.join(sorted(parts))}, which are no classes; give "
            f"--data_dir {data_dir / 'train'}, and the other one to validate on (--val_dir, or --lfw_dir for people)"
        )


def _holds_folders(path: Path) -> bool:
    if not path.is_dir():
        return False
    with os.scandir(path) as entries:
        return any(entry.is_dir() for entry in entries)


def _refuse_shared_files(source: folder.Source, pictures: folder.PathSource) -> None:
    """Raise BadData where one file, through links too, is trained on and validated on."""
    trained = {_file_identity(path): path for path in map(source.where, range(len(source)))}
    for path in pictures.paths:
        twin = trained.get(_file_identity(path))
        if twin is not None:
            raise BadData(f"{path}: is the same file as {twin}, which is trained on; take it out of one of them")


def _file_identity(path: str) -> tuple[int, int]:
    try:
        status = os.stat(path)
    except OSError as error:
        raise BadData(
            f"{path}: {error.strerror}; if it is a link, the pictures were moved: make the folder again"
        ) from error
    return status.st_dev, status.st_ino


def load_size(
    *,
    load_size: int | None,
    image_size: int,
    random_crop: bool,
    random_resized_crop: bool = False,
    random_color: float = 0.0,
) -> int:
    """Side in pixels that pictures are brought to before the crop to ``image_size``.

    Raises:
      UserError: a side smaller than the crop, or options of augmentation that contradict each other.
    """
    if random_crop and random_resized_crop:
        raise UserError("--random_crop and --random_resized_crop: both choose the crop; give one of them")
    if not 0 <= random_color <= 1:
        raise UserError(f"--random_color {random_color}: a strength from 0 to 1")
    if load_size is None and random_resized_crop:
        return round(image_size * EVALUATION_RATIO)
    if load_size is None:
        return round(image_size * CROP_RATIO) if random_crop else image_size
    if load_size < image_size:
        raise UserError(f"--load_size {load_size} is smaller than --image_size {image_size}, which is cropped from it")
    return load_size


def resized_crop(
    *, seed: int, image_size: int, random_resized_crop: bool, min_crop_area: float
) -> RandomResizedCrop | None:
    """The crop that decides what is decoded for training, where it is asked for.

    Raises:
      UserError: a share out of its range.
    """
    if not 0 < min_crop_area <= 1:
        raise UserError(f"--min_crop_area {min_crop_area}: a share of the picture above 0, up to 1")
    return RandomResizedCrop(seed, image_size, min_crop_area) if random_resized_crop else None


def preparation(network: keras.Model, **augmentation) -> Callable[[dict], tf.Tensor]:
    """The function from a training batch to the network's input, on the device.

    Args:
      augmentation: arguments of ``augment``.
    """

    def prepare(batch):
        return tf.cast(augment(batch["image"], batch["position"], **augmentation), network.compute_dtype)

    return prepare
