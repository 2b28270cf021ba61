"""The training pictures of a run: a data set of any kind or the embedded one, filtered, with some held out."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from ..datasets import filtering, splitting
from ..datasets.augmentation import augment
from ..datasets.opening import KINDS, open_source
from ..errors import BadData, UserError

SOURCE_OPTIONS = "data_dir filter_filename filter_percentile filter_min_nrof_images_per_class"
OPTIONS = f"{SOURCE_OPTIONS} validation_set_split_ratio min_nrof_val_images_per_class seed"
AUGMENTATION_OPTIONS = "seed image_size random_crop random_flip random_rotate"
# Facenet's people are aligned to 182 pixels and cropped to 160.
CROP_RATIO = 182 / 160


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
    seed: int = 0,
):
    """Read, filter and split.

    Returns:
      (training source, source of the pictures held out or None, their labels [M]).

    Raises:
      UserError: no ``data_dir``, or a share out of its range.
      BadData: nothing to train on there.
    """
    if data_dir is None:
        raise UserError(f"give --data_dir with {KINDS}; or --synthetic")
    if not 0 <= validation_set_split_ratio < 1:
        raise UserError(f"--validation_set_split_ratio {validation_set_split_ratio}: a share of 0 or more, below 1")
    source = open_source(data_dir)
    if source.num_classes < 2:
        raise BadData(f"{data_dir}: {source.num_classes} class; training needs 2 or more")
    if filter_filename is not None:
        metrics = filtering.read_filtering_metrics(filter_filename)
        source = filtering.filter_dataset(source, metrics, filter_percentile, filter_min_nrof_images_per_class)
    elif filter_min_nrof_images_per_class > 1:
        source = filtering.filter_by_class_size(source, filter_min_nrof_images_per_class)
    if not validation_set_split_ratio:
        return source, None, np.zeros(0, np.int64)
    kept, held_out = splitting.split_classes(
        source, validation_set_split_ratio, min_held_out=min_nrof_val_images_per_class, seed=seed
    )
    pictures = source.subset(held_out) if len(held_out) else None
    return kept, pictures, source.labels[held_out]


def load_size(*, load_size: int | None, image_size: int, random_crop: bool) -> int:
    """Side in pixels that pictures are brought to before the crop to ``image_size``.

    Raises:
      UserError: a side smaller than the crop.
    """
    if load_size is None:
        return round(image_size * CROP_RATIO) if random_crop else image_size
    if load_size < image_size:
        raise UserError(f"--load_size {load_size} is smaller than --image_size {image_size}, which is cropped from it")
    return load_size


def preparation(network: keras.Model, **augmentation) -> Callable[[dict], tf.Tensor]:
    """The function from a training batch to the network's input, on the device.

    Args:
      augmentation: arguments of ``augment``.
    """

    def prepare(batch):
        return tf.cast(augment(batch["image"], batch["position"], **augmentation), network.compute_dtype)

    return prepare
