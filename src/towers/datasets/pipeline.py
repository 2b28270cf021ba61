"""From a source of pictures to batches for the towers of this process.

dataset = train_dataset(source, Order(len(source), seed), first_step=0, global_batch=64, towers=[0, 1],
                        num_towers=2, load_size=112, quarantine=Quarantine(source))
"""

import math
import os
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from ..errors import BadData
from .cropping import RandomResizedCrop
from .decoding import BadPicture, Quarantine, decode, fit, read_header

MAX_NEIGHBOURS = 100


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
    pictures = _Pictures(source, load_size, quarantine, crop)
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
    pictures = _Pictures(source, load_size, quarantine)
    return _batches(elements, positions_of, records_of, pictures, batch, num_parallel_calls).prefetch(2 * len(towers))


def _batches(elements, positions_of, records_of, pictures, batch, num_parallel_calls):
    """Map element numbers to batches, several at a time, in order."""
    # One a core: with more, threads wait for Python's lock in turn, which costs more than it hides.
    calls = num_parallel_calls or max(2, len(os.sched_getaffinity(0)))

    def load(element: tf.Tensor) -> dict[str, tf.Tensor]:
        positions = tf.ensure_shape(positions_of(element), [batch])
        records = tf.ensure_shape(records_of(positions), [batch])
        # One call a batch: OpenCV decodes without Python's lock, and calls cost more than the lines between them.
        image, label = tf.numpy_function(pictures.load, [records, positions], [tf.uint8, tf.int64], stateful=False)
        return {
            "image": tf.ensure_shape(image, [batch, pictures.size, pictures.size, 3]),
            "label": tf.ensure_shape(label, [batch]),
            "record": records,
            "position": positions,
        }

    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    options.deterministic = True
    # Threads of its own: TensorFlow's, one a core, also compute the step.
    options.threading.private_threadpool_size = calls
    return elements.map(load, num_parallel_calls=calls, deterministic=True).with_options(options)


class _Pictures:
    """Reads and decodes the pictures of one source. A picture's pixels never depend on its batch."""

    def __init__(self, source, load_size: int, quarantine: Quarantine, crop: RandomResizedCrop | None = None):
        self.source = source
        self.size = load_size if crop is None else crop.size
        self.crop = crop
        self.quarantine = quarantine
        self._memory = _KeptMemory()

    def load(self, records: np.ndarray, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Records and positions [b] -> pixels uint8 [b, L, L, 3], labels int64 [b].

        Broken pictures are replaced; record -1 is black.
        """
        pixels = self._memory.empty((len(records), self.size, self.size, 3))
        labels = np.zeros(len(records), np.int64)
        try:
            draws = [None] * len(records) if self.crop is None else self.crop.draws(positions)
            wanted = [self.quarantine.stand_in(record) for record in records.tolist()]
            for slot, (record, encoded) in enumerate(zip(wanted, self._read(wanted), strict=True)):
                if record < 0:
                    pixels[slot] = 0
                else:
                    pixels[slot], labels[slot] = self._load(record, encoded, draws[slot])
        except Exception as error:
            self.quarantine.fail(error)
            pixels[:], labels[:] = 0, 0
        return pixels, labels

    def _read(self, records: list[int]) -> list[bytes | None]:
        """Encoded bytes; None where there is no record, or where reading is left to `_load`, which keeps the reason."""
        wanted = [record for record in records if record >= 0]
        try:
            encoded = iter(self.source.read(wanted))
        except OSError:
            return [None] * len(records)
        return [next(encoded) if record >= 0 else None for record in records]

    def _load(self, record: int, encoded: bytes | None, draws: np.ndarray | None) -> tuple[np.ndarray, int]:
        """Pixels [L, L, 3] and label of a record, or of the next readable one. BadData where none is near."""
        for distance in range(min(MAX_NEIGHBOURS, len(self.source))):
            candidate = (record + distance) % len(self.source)
            try:
                data = encoded if distance == 0 and encoded is not None else self.source.read([candidate])[0]
                picture = self._decode(data) if self.crop is None else self.crop.load(data, draws)
            except BadPicture as error:
                self.quarantine.add(candidate, str(error))
            except OSError as error:
                self.quarantine.add(candidate, f"cannot be read: {error.strerror or error}")
            else:
                if distance:
                    self.quarantine.replace(record, candidate)
                return picture, self.source.labels[candidate]
        raise BadData(
            f"{self.source.where(record)}: neither it nor any of the pictures after it can be read: "
            f"{self.quarantine.first_paths(10)}; repair or remove them"
        )

    def _decode(self, encoded: bytes) -> np.ndarray:
        read_header(encoded)
        return fit(decode(encoded), self.size)


class _KeptMemory:
    """Batches in memory that was used before: having the system clear fresh pages costs a fifth of decoding a batch."""

    ALIGNMENT = 64  # TensorFlow copies what is aligned less.

    def __init__(self):
        self._free: dict[int, list[np.ndarray]] = {}

    def empty(self, shape: tuple[int, ...]) -> np.ndarray:
        """uint8 of this shape, contents undefined. The memory comes back when no array and no tensor looks at it."""
        size = math.prod(shape)
        free = self._free.setdefault(size, [])
        try:
            block = free.pop()
        except IndexError:
            block = np.empty(size + self.ALIGNMENT, np.uint8)
            start = -block.ctypes.data % self.ALIGNMENT
            block = block[start : start + size]
        return np.asarray(_Loan(block, free)).reshape(shape)


class _Loan:
    """Keeps a block out of the free ones: NumPy holds this object as long as any array looks at the block."""

    def __init__(self, block: np.ndarray, free: list[np.ndarray]):
        self.__array_interface__ = block.__array_interface__
        self._block = block
        self._free = free

    def __del__(self):
        self._free.append(self._block)
