"""What train_multigrain.py composes beside the parts that all scripts share: its pictures and their augmentation."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import keras
import tensorflow as tf

from ..datasets.autoaugment import autoaugment as apply_policy
from ..datasets.folder import Source
from ..datasets.lighting import check_lighting, light
from ..distribution import Towers
from ..errors import UserError
from . import pictures, retrieval, validation

AUGMENTATION_OPTIONS = f"{pictures.AUGMENTATION_OPTIONS} autoaugment lighting"
VALIDATION_OPTIONS = "val_dir holidays_dir holidays_rotations copydays_dir distractors"


def standin_data_set(project: Path) -> dict[str, Path]:
    """Make the stand-in data set under ``project`` where it is missing, as options of the script."""
    folder = project / "data" / "multigrain_standin"
    generated = folder / "generated"
    subprocess.run([sys.executable, folder / "prepare.py", "--out_dir", generated], check=True)
    return {
        "data_dir": generated / "train",
        "val_dir": generated / "val",
        "holidays_dir": generated / "holidays",
        "copydays_dir": generated / "copydays",
    }


def num_logits(source: Source, class_num: int | None) -> int:
    """Classes of the classifier: those of the pictures, or ``class_num``, which may leave some unused.

    Raises:
      UserError: fewer than there are.
    """
    if class_num is None:
        return source.num_classes
    if class_num < source.num_classes:
        raise UserError(f"--class_num {class_num}: {source.root} has {source.num_classes} classes; give that or more")
    return class_num


def preparation(
    network: keras.Model, *, autoaugment: bool, lighting: float, seed: int, **augmentation
) -> Callable[[dict], tf.Tensor]:
    """The function from a training batch to the network's input, on the device.

    After crop and flip comes AutoAugment's policy, which works on whole levels, then the colour noise.

    Args:
      lighting: standard deviation of the noise, 0: none.
      augmentation: other arguments of ``pictures.preparation``.

    Raises:
      UserError: a negative deviation.
    """
    check_lighting(lighting)
    basic = pictures.preparation(network, seed=seed, **augmentation)

    def prepare(batch):
        images = basic(batch)
        if autoaugment:
            images = apply_policy(tf.cast(tf.round(images), tf.uint8), batch["position"], seed=seed)
        if lighting:
            images = light(images, batch["position"], seed=seed, deviation=lighting)
        return tf.cast(images, network.compute_dtype)

    return prepare


def validators(
    towers: Towers,
    network: keras.Model,
    head,
    class_names: list[str],
    *,
    val_dir: Path | None,
    holidays_dir: Path | None,
    holidays_rotations: Path | None,
    copydays_dir: Path | None,
    distractors: Path | None,
    image_size: int,
    load_size: int,
) -> list[Callable]:
    """Validations of the grains that there are pictures for: classes, instances, copies.

    Raises:
      UserError: distractors and no copies, or rotations and no instances. BadData: pictures of classes that are not
        trained.
    """
    sizes = {"image_size": image_size, "load_size": load_size}
    if distractors is not None and copydays_dir is None:
        raise UserError("--distractors are put beside the originals of --copydays_dir; give it too")
    if holidays_rotations is not None and holidays_dir is None:
        raise UserError("--holidays_rotations turns the pictures of --holidays_dir; give it too")
    found = []
    if val_dir is not None:
        source, labels = pictures.labelled_pictures(val_dir, class_names)
        found.append(validation.classes_validator(towers, network, source, labels, head.export, **sizes))
    if holidays_dir is not None:
        found.append(
            retrieval.retrieval_validator(
                towers, network, "holidays", holidays_dir, holidays_rotations=holidays_rotations, **sizes
            )
        )
    if copydays_dir is not None:
        found.append(
            retrieval.retrieval_validator(towers, network, "copydays", copydays_dir, distractors=distractors, **sizes)
        )
    return found
