"""From a source of pictures to batches for the towers of this process.

dataset = train_dataset(source, Order(len(source), seed), first_step=0, global_batch=64, towers=[0, 1],
                        num_towers=2, load_size=112, quarantine=Quarantine(source))
"""

import os
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from .cropping import RandomResizedCrop
from .decoding import Quarantine
from .loading import Pictures


def train_dataset(
    source,
    order,
    *,
    first_step: int,
    global_batch: int,
    towers: Sequence[int],
    num_towers: int,
    load_size: int,
    quarantine: Quarantine,
    crop: RandomResizedCrop | None = None,
    num_parallel_calls: int | None = None,
) -> tf.data.Dataset:
    """Endless batches from `first_step` on, one element for each local tower in turn.

    Tower r gets positions [sB + rb, sB + (r+1)b) at step s, with b = B / num_towers; `order.records` says which record
    lies at a position. An element is a dict of image uint8 [b, L, L, 3] with L = load_size, label int64 [b],
    record int64 [b], position int64 [b]. With `crop`, L = crop.size, and position decides what of a picture is taken.
    Elements and their order depend on the arguments only, not on threads.

    A picture that cannot be read is replaced by the next readable record, with that one's label; `record` stays
    what was asked for. `quarantine.check` tells how many there were.
    """
    if global_batch % num_towers:
        raise ValueError(f"global_batch {global_batch} is not a multiple of num_towers {num_towers}")
    batch = global_batch // num_towers

    def positions_of(element: int) -> np.ndarray:
        step, tower = first_step + element // len(towers), towers[element % len(towers)]
        return step * global_batch + tower * batch + np.arange(batch)

    elements = tf.data.Dataset.counter(dtype=tf.int64)
    pictures = Pictures(source, load_size, quarantine, crop)
    return _batches(elements, positions_of, order.records, pictures, batch, len(towers), num_parallel_calls)


def evaluation_dataset(
    source,
    *,
    batch: int,
    load_size: int,
    num_towers: int,
    quarantine: Quarantine,
    towers: Sequence[int] | None = None,
    num_parallel_calls: int | None = None,
) -> tf.data.Dataset:
    """Every record once, in order, in batches of `batch` for each local tower in turn (`towers`, default all).

    Position is the record's number. Global batches of batch * num_towers are filled up with rows of record -1, label 0
    and a black picture, their positions counting on. Elements, pixels and replacements as in `train_dataset`.
    """
    towers = range(num_towers) if towers is None else towers
    num_records, global_batch = len(source), batch * num_towers

    def positions_of(element: int) -> np.ndarray:
        first = element // len(towers) * global_batch + towers[element % len(towers)] * batch
        return first + np.arange(batch)

    def records_of(positions: np.ndarray) -> np.ndarray:
        return np.where(positions < num_records, positions, -1)

    elements = tf.data.Dataset.range(-(-num_records // global_batch) * len(towers))
    pictures = Pictures(source, load_size, quarantine)
    return _batches(elements, positions_of, records_of, pictures, batch, len(towers), num_parallel_calls)


def _batches(
    elements: tf.data.Dataset,
    positions_of: Callable[[int], np.ndarray],
    records_of: Callable[[np.ndarray], np.ndarray],
    pictures: Pictures,
    batch: int,
    num_local_towers: int,
    num_parallel_calls: int | None,
) -> tf.data.Dataset:
    """Map element numbers to batches, several at a time, in order."""
    # One a core and one more: while two decode, a third waits for Python's lock or the disk.
    threads = num_parallel_calls or len(os.sched_getaffinity(0)) + 1

    def load(element: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        positions = positions_of(int(element))
        records = records_of(positions)
        return *pictures.load(records, positions), records, positions

    def batch_of(element: tf.Tensor) -> dict[str, tf.Tensor]:
        # One call for all: on a small machine a call costs as much as three pictures.
        image, *numbers = tf.numpy_function(load, [element], [tf.uint8, tf.int64, tf.int64, tf.int64], stateful=False)
        label, record, position = (tf.ensure_shape(each, [batch]) for each in numbers)
        image = tf.ensure_shape(image, [batch, pictures.size, pictures.size, 3])
        return {"image": image, "label": label, "record": record, "position": position}

    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    options.deterministic = True
    # Threads of its own: TensorFlow's, one a core, also compute the step.
    options.threading.private_threadpool_size = threads
    # Two batches a tower lie ready. `prefetch` would keep them too, by one more thread to wake for each.
    ahead = threads + 2 * num_local_towers
    return elements.map(batch_of, num_parallel_calls=ahead, deterministic=True).with_options(options)
