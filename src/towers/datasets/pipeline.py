"""From a source of pictures to batches for the towers of this process.

dataset = train_dataset(source, Order(len(source), seed), first_step=0, global_batch=64, towers=[0, 1],
                        num_towers=2, load_size=112, quarantine=Quarantine(source))
"""

import os
from collections.abc import Sequence

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
    local = tf.constant(towers, tf.int64)

    def positions_of(element: tf.Tensor) -> tf.Tensor:
        step = first_step + element // len(towers)
        tower = local[element % len(towers)]
        return step * global_batch + tower * batch + tf.range(batch, dtype=tf.int64)

    def records_of(positions: tf.Tensor) -> tf.Tensor:
        return tf.numpy_function(order.records, [positions], tf.int64, stateful=False)

    elements = tf.data.Dataset.counter(dtype=tf.int64)
    pictures = Pictures(source, load_size, quarantine, crop)
    return _batches(elements, positions_of, records_of, pictures, batch, num_parallel_calls).prefetch(2 * len(towers))


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
    local = tf.constant(list(towers), tf.int64)

    def positions_of(element: tf.Tensor) -> tf.Tensor:
        first = element // len(towers) * global_batch + local[element % len(towers)] * batch
        return first + tf.range(batch, dtype=tf.int64)

    def records_of(positions: tf.Tensor) -> tf.Tensor:
        return tf.where(positions < num_records, positions, tf.constant(-1, tf.int64))

    elements = tf.data.Dataset.range(-(-num_records // global_batch) * len(towers))
    pictures = Pictures(source, load_size, quarantine)
    return _batches(elements, positions_of, records_of, pictures, batch, num_parallel_calls).prefetch(2 * len(towers))


def _batches(elements, positions_of, records_of, pictures, batch, num_parallel_calls):
    """Map element numbers to batches, several at a time, in order: read with Python's lock, then decoded without."""
    # One a core and one more: while two decode, a third waits for Python's lock or the disk.
    calls = num_parallel_calls or len(os.sched_getaffinity(0)) + 1

    def read(element: tf.Tensor) -> dict[str, tf.Tensor]:
        positions = tf.ensure_shape(positions_of(element), [batch])
        records = tf.ensure_shape(records_of(positions), [batch])
        return {"record": records, "position": positions, **pictures.read_in_graph(records, positions)}

    def decoded(batch_read: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        return finished(batch_read, pictures.decode_in_graph(batch_read), batch_read["label"])

    def decoded_with_care(batch_read: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        return finished(batch_read, *pictures.load_in_graph(batch_read["record"], batch_read["position"]))

    def finished(batch_read, image, label):
        return {"image": image, "label": label, "record": batch_read["record"], "position": batch_read["position"]}

    def batch_of(batch_read: dict[str, tf.Tensor]) -> tf.data.Dataset:
        # One picture that TensorFlow's decoder refuses fails the whole batch, which is then made once more.
        one = tf.data.Dataset.from_tensors(batch_read)
        return one.map(decoded).ignore_errors().concatenate(one.map(decoded_with_care)).take(1)

    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    options.deterministic = True
    # Threads of its own: TensorFlow's, one a core, also compute the step.
    options.threading.private_threadpool_size = calls
    return (
        elements.map(read, num_parallel_calls=calls, deterministic=True)
        .interleave(batch_of, cycle_length=calls, block_length=1, num_parallel_calls=calls, deterministic=True)
        .with_options(options)
    )
