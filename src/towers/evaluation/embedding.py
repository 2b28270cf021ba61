"""Embeddings of a whole data set, spread over the towers."""

from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf


def embed(
    towers,
    network: keras.Model,
    make_dataset: Callable[[list[int]], tf.data.Dataset],
    num_records: int,
    *,
    prepare: Callable[[tf.Tensor], tf.Tensor],
    flipped: bool = False,
) -> np.ndarray:
    """Embed every record once.

    Args:
      towers: the towers (``distribution.Towers``).
      make_dataset: from tower indices to a data set of padded batches with ``image`` and ``position``; padding has
        ``record`` -1.
      num_records: N.
      prepare: images uint8 [b, L, L, 3] -> the network's input.
      flipped: append the embedding of the mirrored picture.

    Returns:
      [N, D], or [N, 2D] with ``flipped``; un-normalised.
    """

    def tower_embed(batch):
        images = tf.cast(prepare(batch["image"]), network.compute_dtype)
        embeddings = network(images, training=False)
        if flipped:
            embeddings = tf.concat([embeddings, network(tf.reverse(images, axis=[2]), training=False)], axis=1)
        return towers.to_all_processes(batch["record"]), towers.to_all_processes(embeddings)

    @tf.function(autograph=False)
    def step(batch):
        return towers.run(tower_embed, batch)

    result = None
    for batch in towers.feed(make_dataset):
        records, embeddings = step(batch)
        for tower_records, values in zip(towers.local_values(records), towers.local_values(embeddings), strict=True):
            tower_records, values = tower_records.numpy(), values.numpy()
            if result is None:
                result = np.full((num_records, values.shape[1]), np.nan, values.dtype)
            real = tower_records >= 0
            result[tower_records[real]] = values[real]
    return result
