"""From a source of pictures to batches for the towers of this process.

dataset = train_dataset(source, Order(len(source), seed), first_step=0, global_batch=64, towers=[0, 1],
                        num_towers=2, load_size=112, quarantine=Quarantine(source))
"""

import os
from collections.abc import Sequence

import cv2
import numpy as np
import tensorflow as tf

from ..errors import BadData
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
    num_parallel_calls: int | None = None,
) -> tf.data.Dataset:
    """Endless batches from `first_step` on, one element for each local tower in turn.

    Tower r gets positions [sB + rb, sB + (r+1)b) at step s, with b = B / num_towers; `order.records` says which record
    lies at a position. An element is a dict of image uint8 [b, L, L, 3] with L = load_size, label int64 [b],
    record int64 [b], position int64 [b]. Elements and their order depend on the arguments only, not on threads.

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
    return _batches(
        elements, positions_of, records_of, source, batch, load_size, quarantine, num_parallel_calls
    ).prefetch(2 * len(towers))


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
    return _batches(
        elements, positions_of, records_of, source, batch, load_size, quarantine, num_parallel_calls
    ).prefetch(2 * len(towers))


def _batches(elements, positions_of, records_of, source, batch, load_size, quarantine, num_parallel_calls):
    """Map element numbers to batches, several at a time, in order."""
    pictures = _Pictures(source, load_size, quarantine)
    # Two a core: while one batch is read under Python's lock, another is decoded.
    calls = num_parallel_calls or 2 * len(os.sched_getaffinity(0))

    def locate(element: tf.Tensor) -> dict[str, tf.Tensor]:
        positions = tf.ensure_shape(positions_of(element), [batch])
        return {"record": tf.ensure_shape(records_of(positions), [batch]), "position": positions}

    def fast(located: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        image, label = pictures.decode_in_graph(located["record"])
        return {"image": image, "label": label, **located}

    def careful(located: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        image, label = pictures.decode_one_by_one(located["record"])
        return {"image": image, "label": label, **located}

    def batch_of(located: dict[str, tf.Tensor]) -> tf.data.Dataset:
        # One picture that TensorFlow's decoder refuses fails the whole batch: it is then made once more, with care.
        one = tf.data.Dataset.from_tensors(located)
        return one.map(fast).ignore_errors().concatenate(one.map(careful)).take(1)

    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    options.deterministic = True
    return (
        elements.map(locate)
        .interleave(batch_of, cycle_length=calls, block_length=1, num_parallel_calls=calls, deterministic=True)
        .with_options(options)
    )


class _Pictures:
    """Reads and decodes the pictures of one source.

    Which decoder a picture gets depends on the picture alone, so its pixels never depend on its batch: a plain JPEG of
    the right size is TensorFlow's, decoded in the graph without Python's lock; everything else is OpenCV's.
    """

    def __init__(self, source, load_size: int, quarantine: Quarantine):
        self.source = source
        self.load_size = load_size
        self.quarantine = quarantine
        black = np.zeros((load_size, load_size, 3), np.uint8)
        self.placeholder = cv2.imencode(".jpg", black)[1].tobytes()

    def decode_in_graph(self, records: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Records int64 [b] -> image uint8 [b, L, L, 3], label int64 [b]; fails where a plain JPEG is broken."""
        (batch,) = records.shape
        encoded, slots, pixels, labels = tf.numpy_function(
            self.prepare, [records], [tf.string, tf.int64, tf.uint8, tf.int64], stateful=False
        )
        pixels = tf.ensure_shape(pixels, [None, self.load_size, self.load_size, 3])
        slots = tf.ensure_shape(slots, [None])
        encoded = tf.unstack(tf.ensure_shape(encoded, [batch]))

        def plain() -> tf.Tensor:
            # Unrolled: tf.map_fn costs 20 microseconds a picture, a fifth of decoding one.
            return tf.stack([self._decode_jpeg(jpeg) for jpeg in encoded])

        def mixed() -> tf.Tensor:
            return tf.cond(
                tf.size(slots) == batch,
                lambda: pixels,
                lambda: tf.tensor_scatter_nd_update(plain(), slots[:, None], pixels),
            )

        # Where all are plain, the usual case, the batch is not copied once more.
        image = tf.cond(tf.size(slots) == 0, plain, mixed)
        return tf.ensure_shape(image, [batch, *pixels.shape[1:]]), tf.ensure_shape(labels, [batch])

    def decode_one_by_one(self, records: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The same for any pictures: records int64 [b] -> image uint8 [b, L, L, 3], label int64 [b]."""
        (batch,) = records.shape
        image, labels = tf.numpy_function(self.load_all, [records], [tf.uint8, tf.int64], stateful=False)
        return tf.ensure_shape(image, [batch, self.load_size, self.load_size, 3]), tf.ensure_shape(labels, [batch])

    def prepare(self, records: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Encoded plain JPEGs [b]; for the other pictures slots [m] and pixels [m, L, L, 3]; labels [b]."""
        encoded = np.full(len(records), self.placeholder, object)
        labels = np.zeros(len(records), np.int64)
        slots, pixels = [], []
        try:
            used = [self.quarantine.stand_in(record) for record in records.tolist()]
            for slot, (record, data) in enumerate(zip(used, self._read(used), strict=True)):
                if data is not None and self._is_plain(data):
                    encoded[slot], labels[slot] = data, self.source.labels[record]
                else:
                    picture, labels[slot] = self._load(record, data)
                    slots.append(slot)
                    pixels.append(picture)
        except Exception as error:
            self.quarantine.fail(error)
            return encoded, np.arange(len(records)), self._black(len(records)), np.zeros(len(records), np.int64)
        return encoded, np.array(slots, np.int64), np.stack(pixels) if pixels else self._black(0), labels

    def load_all(self, records: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Records [b] -> pixels uint8 [b, L, L, 3], labels int64 [b], with each broken picture replaced."""
        pixels, labels = self._black(len(records)), np.zeros(len(records), np.int64)
        try:
            for slot, record in enumerate(records.tolist()):
                pixels[slot], labels[slot] = self._load(self.quarantine.stand_in(record), None)
        except Exception as error:
            self.quarantine.fail(error)
        return pixels, labels

    def _read(self, records: list[int]) -> list[bytes | None]:
        """Encoded bytes; None where there is no record, or where reading is left to `_load`, which keeps the reason."""
        wanted = [record for record in records if record >= 0]
        try:
            encoded = iter(self.source.read(wanted))
        except OSError:
            return [None] * len(records)
        return [next(encoded) if record >= 0 else None for record in records]

    def _load(self, record: int, encoded: bytes | None) -> tuple[np.ndarray, int]:
        """Pixels [L, L, 3] and label of a record, or of the next readable one. BadData where none is near."""
        if record < 0:
            return self._black(1)[0], 0
        for distance in range(min(MAX_NEIGHBOURS, len(self.source))):
            candidate = (record + distance) % len(self.source)
            try:
                data = encoded if distance == 0 and encoded is not None else self.source.read([candidate])[0]
                picture = self._decode(data)
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

    def _is_plain(self, encoded: bytes) -> bool:
        try:
            header = read_header(encoded)
        except BadPicture:
            return False
        return header.plain and header.height == header.width == self.load_size

    def _decode(self, encoded: bytes) -> np.ndarray:
        read_header(encoded)
        if not self._is_plain(encoded):
            return fit(decode(encoded), self.load_size)
        try:
            with tf.device("/CPU:0"):
                return self._decode_jpeg(encoded).numpy()
        except tf.errors.InvalidArgumentError as error:
            raise BadPicture("does not decode: broken or cut") from error

    def _decode_jpeg(self, encoded: tf.Tensor | bytes) -> tf.Tensor:
        # INTEGER_ACCURATE is what OpenCV uses; TensorFlow's default differs by up to 11 levels and is not faster.
        picture = tf.io.decode_jpeg(encoded, channels=3, dct_method="INTEGER_ACCURATE")
        return tf.ensure_shape(picture, [self.load_size, self.load_size, 3])

    def _black(self, count: int) -> np.ndarray:
        return np.zeros((count, self.load_size, self.load_size, 3), np.uint8)
