"""The power of GeM pooling that suits pictures of another size than those of training.

MultiGrain (Berman et al., 2019), section 4.2: the larger the map, the larger the best power. It is chosen on a task
that needs no labels: augmented versions of a picture must find each other. Or it is fine-tuned alone on the classes.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from ..datasets.augmentation import augment, centre_crop
from ..datasets.decoding import BadPicture, fit
from ..datasets.folder import Source, read_folder
from ..datasets.lighting import light
from ..errors import BadData, UserError
from ..evaluation.retrieval import average_precisions, normalised, positive_ranks
from ..networks.gem import GeM, check_p, gem
from ..summaries import RunLog
from ..training import optimizers
from .pictures import labels_among
from .retrieval_sheets import read_picture

VERSIONS = 5
LIGHTING = 0.1
# Versions are crops out of pictures so much larger: two of them share a third of their area or more.
LOAD_RATIO = 1.4


def pooled_by(network: keras.Model) -> Callable[[tf.Tensor, Sequence[float]], list[tf.Tensor]]:
    """A function of (pictures of 0..255, powers) that gives the embeddings [b, D] of each power, from one pass.

    Raises:
      UserError: the network has no GeM pooling.
    """
    pool = _pooling_of(network)
    maps = keras.Model(network.input, pool.input)
    tail = None if network.output is pool.output else keras.Model(pool.output, network.output)

    @tf.function(autograph=False)
    def embeddings(images, powers):
        values = tf.cast(maps(tf.cast(images, network.compute_dtype), training=False), pool.compute_dtype)
        pooled = [gem(values, power) for power in powers]
        return pooled if tail is None else [tail(each, training=False) for each in pooled]

    return lambda images, powers: embeddings(images, tuple(powers))


def choose_pictures(source: Source, per_class: int, count: int) -> np.ndarray:
    """The first ``per_class`` records of each class, and of them up to ``count`` spread over the classes: int64 [n]."""
    order = np.argsort(source.labels, kind="stable")
    labels = source.labels[order]
    place = np.arange(len(labels)) - np.searchsorted(labels, labels)
    chosen = order[place < per_class]
    if len(chosen) > count:
        chosen = chosen[np.linspace(0, len(chosen) - 1, count).round().astype(int)]
    return chosen


def compare_powers(
    network: keras.Model,
    source: Source,
    records: np.ndarray,
    powers: Sequence[float],
    *,
    image_size: int,
    seed: int,
    classify: Callable[[np.ndarray], np.ndarray] | None = None,
    labels: np.ndarray | None = None,
) -> list[dict[str, float]]:
    """For each power, ``copies_map`` and, with ``classify``, ``accuracy``.

    copies_map: mean average precision of finding the other four of five augmented versions (random crop and flip,
    colour noise) of a picture among the versions of all. accuracy: of the centre crops of the same pictures.

    Args:
      records: which pictures of the source.
      image_size: side of the pictures, pixels.
      seed: of the augmentation, keyed by picture and version.
      classify: embeddings [n, D] -> label [n]; labels: int64 [n], the true ones.

    Raises:
      UserError: a power that is none, or a network without GeM. BadData: a picture that cannot be read.
    """
    for power in powers:
        check_p(power)
    embed = pooled_by(network)
    load_size = round(LOAD_RATIO * image_size)
    versions, centres = [[] for _ in powers], [[] for _ in powers]
    for number, record in enumerate(records):
        try:
            picture = fit(read_picture(source, int(record)), load_size)
        except BadPicture as error:
            raise BadData(f"{source.where(int(record))}: {error}; replace or remove this picture") from error
        positions = tf.range(number * VERSIONS, (number + 1) * VERSIONS, dtype=tf.int64)
        copies = augment(
            tf.constant(np.repeat(picture[None], VERSIONS, axis=0)),
            positions,
            seed=seed,
            image_size=image_size,
            random_crop=True,
            random_flip=True,
            random_rotate=False,
        )
        copies = light(copies, positions, seed=seed, deviation=LIGHTING)
        centre = tf.cast(centre_crop(picture[None], image_size), tf.float32)
        for own, middle, rows in zip(
            versions, centres, embed(tf.concat([copies, centre], axis=0), powers), strict=True
        ):
            own.append(rows[:VERSIONS].numpy())
            middle.append(rows[VERSIONS:].numpy())
    same = np.repeat(np.arange(len(records)), VERSIONS)
    found = []
    for own, middle in zip(versions, centres, strict=True):
        unit = normalised(np.concatenate(own))
        ranked = positive_ranks(unit, same, unit, same, own=np.arange(len(unit)))
        figures = {"copies_map": float(average_precisions(ranked).mean())}
        if classify is not None:
            figures["accuracy"] = float(np.mean(classify(np.concatenate(middle)) == labels))
        found.append(figures)
    return found


def learnt_power(network: keras.Model) -> keras.Variable:
    """The variable of a network built with ``learn_gem_p``."""
    return _pooling_of(network).power


def pictures_to_fine_tune_on(data_dir: Path, images_per_class: int, class_names: list[str]) -> Source:
    """The first pictures of each class, labelled by ``class_names``.

    Raises:
      UserError: no pictures of a class are asked for. BadData: none there, or a class that is not among them.
    """
    if images_per_class < 1:
        raise UserError(f"--images_per_class {images_per_class}: give 1 or more; MultiGrain took 50")
    source = read_folder(data_dir)
    source = source.subset(choose_pictures(source, images_per_class, len(source)))
    return replace(source, labels=labels_among(source, class_names), class_names=class_names)


def check_options(*, optimizer: str, sync_bn: bool) -> None:
    """Raise UserError for options that mean nothing where p is all that is trained."""
    if optimizer == optimizers.THOR:
        raise UserError(f"--optimizer {optimizer}: preconditions weights of layers, of which none is trained; give SGD")
    if sync_bn:
        raise UserError("--sync_bn: batch normalisation stays as it is while p is fine-tuned; leave it out")


def power_validator(power: keras.Variable) -> Callable[[RunLog, int], dict]:
    """Tells the learnt power, as ``gem_p``."""

    def validate(log: RunLog, step: int) -> dict:
        value = float(power.numpy())
        log.text(f"power of GeM pooling: {value:.4f}")
        return {"gem_p": value}

    return validate


def _pooling_of(network: keras.Model) -> GeM:
    for layer in network.layers:
        if isinstance(layer, GeM):
            return layer
    raise UserError(f"network {network.name} has no GeM pooling, so there is no power to choose")
