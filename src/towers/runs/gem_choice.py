"""The power of GeM pooling that suits pictures of another size than those of training.

MultiGrain (Berman et al., 2019), section 4.2: the larger the map, the larger the best power. It is chosen on a task
that needs no labels: augmented versions of a picture must find each other.
"""

from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf

from ..datasets.augmentation import augment, centre_crop
from ..datasets.decoding import BadPicture, fit
from ..datasets.folder import Source
from ..datasets.lighting import light
from ..errors import BadData, UserError
from ..evaluation.retrieval import average_precisions, normalised, positive_ranks
from ..networks.gem import GeM, check_p, gem
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
    pools = [layer for layer in network.layers if isinstance(layer, GeM)]
    if not pools:
        raise UserError(f"network {network.name} has no GeM pooling, so there is no power to choose")
    maps = keras.Model(network.input, pools[0].input)
    tail = None if network.output is pools[0].output else keras.Model(pools[0].output, network.output)

    @tf.function(autograph=False)
    def embeddings(images, powers):
        values = tf.cast(maps(tf.cast(images, network.compute_dtype), training=False), pools[0].compute_dtype)
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
