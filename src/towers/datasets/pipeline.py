"""From a source of pictures to batches for the towers of this process.

dataset = train_dataset(source, Order(len(source), seed), first_step=0, global_batch=64, towers=[0, 1],
                        num_towers=2, load_size=112, quarantine=Quarantine(source))
"""

import sys
import threading
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from .cropping import RandomResizedCrop
from .decoding import Quarantine
from .loading import Pictures
from .workers import Workers, workers_of_this_process


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
    workers: Workers | None = None,
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
    workers = workers or workers_of_this_process()
    pictures = Pictures(source, load_size, quarantine, crop, workers)
    return _batches(elements, positions_of, order.records, pictures, batch, workers, len(towers))


def evaluation_dataset(
    source,
    *,
    batch: int,
    load_size: int,
    num_towers: int,
    quarantine: Quarantine,
    towers: Sequence[int] | None = None,
    workers: Workers | None = None,
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
    workers = workers or workers_of_this_process()
    pictures = Pictures(source, load_size, quarantine, None, workers)
    return _batches(elements, positions_of, records_of, pictures, batch, workers, len(towers))


def _batches(
    elements: tf.data.Dataset,
    positions_of: Callable[[int], np.ndarray],
    records_of: Callable[[np.ndarray], np.ndarray],
    pictures: Pictures,
    batch: int,
    workers: Workers,
    num_ready: int,
) -> tf.data.Dataset:
    """Map element numbers to batches: every worker has one and the next one, `num_ready` more lie ready as tensors."""

    def begin(element: int) -> Callable[[], tuple[np.ndarray, ...]]:
        positions = positions_of(element)
        records = records_of(positions)
        loaded = pictures.begin(records, positions)
        return lambda: (*loaded(), records, positions)

    ahead = _Ahead(begin, 2 * len(workers), int(elements.cardinality()))

    def batch_of(element: tf.Tensor) -> dict[str, tf.Tensor]:
        # One call for all: on a small machine a call costs as much as three pictures.
        image, *numbers = tf.numpy_function(ahead.get, [element], [tf.uint8] + [tf.int64] * 3, stateful=False)
        image.set_shape([batch, pictures.size, pictures.size, 3])
        for each in numbers:
            each.set_shape([batch])
        return {"image": image, **dict(zip(("label", "record", "position"), numbers, strict=True))}

    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    options.deterministic = True
    # Threads of its own: TensorFlow's, one a core, compute the step. With a single one the workers idled now and then.
    options.threading.private_threadpool_size = 2
    options.experimental_optimization.map_parallelization = False
    return elements.map(batch_of).prefetch(num_ready).with_options(options)


class _Ahead:
    """Elements asked for in order, of which the next ones are already begun. Any order is right, this one is fast."""

    def __init__(self, begin: Callable[[int], Callable], num_ahead: int, num_elements: int):
        self._begin, self._num_ahead = begin, num_ahead
        self._num_elements = sys.maxsize if num_elements < 0 else num_elements
        self._begun: dict[int, Callable] = {}
        self._lock = threading.Lock()

    def get(self, element: np.ndarray) -> tuple[np.ndarray, ...]:
        """Wait for an element."""
        first = int(element)
        with self._lock:
            wanted = range(first, min(first + 1 + self._num_ahead, self._num_elements))
            self._begun = {
                number: self._begun[number] if number in self._begun else self._begin(number) for number in wanted
            }
            finish = self._begun.pop(first)
        return finish()
