"""Batches of pictures: read and checked in Python, plain JPEGs decoded in the graph, all else by OpenCV."""

import math

import cv2
import numpy as np
import tensorflow as tf

from ..errors import BadData
from .cropping import RandomResizedCrop
from .decoding import BadPicture, Header, Quarantine, decode, fit, read_header

MAX_NEIGHBOURS = 100


class Pictures:
    """Reads and decodes the pictures of one source.

    Which decoder a picture gets depends on the picture alone, so its pixels never depend on its batch: a plain JPEG of
    the size wanted is TensorFlow's, which decodes without Python's lock on any number of cores; all else is OpenCV's.
    """

    def __init__(self, source, load_size: int, quarantine: Quarantine, crop: RandomResizedCrop | None = None):
        self.source = source
        self.size = load_size if crop is None else crop.size
        self.crop = crop
        self.quarantine = quarantine
        self._memory = _KeptMemory()
        # In the place of what is not decoded in the graph.
        self._black_jpeg = cv2.imencode(".jpg", np.zeros((self.size, self.size, 3), np.uint8))[1].tobytes()

    def read_in_graph(self, records: tf.Tensor, positions: tf.Tensor) -> dict[str, tf.Tensor]:
        """Records and positions int64 [b] -> label int64 [b] and what `decode_in_graph` takes."""
        (batch,) = records.shape
        # One call a batch: calls cost more than the lines between them.
        jpegs, slots, pixels, label = tf.numpy_function(
            self.read, [records, positions], [tf.string, tf.int64, tf.uint8, tf.int64], stateful=False
        )
        return {
            "jpegs": tf.ensure_shape(jpegs, [batch]),
            "slots": tf.ensure_shape(slots, [None]),
            "pixels": tf.ensure_shape(pixels, [None, self.size, self.size, 3]),
            "label": tf.ensure_shape(label, [batch]),
        }

    def decode_in_graph(self, read: dict[str, tf.Tensor]) -> tf.Tensor:
        """Pixels uint8 [b, L, L, 3] of a batch that was read; the op fails where a plain JPEG is broken."""
        slots, pixels, jpegs = read["slots"], read["pixels"], tf.unstack(read["jpegs"])

        def plain() -> tf.Tensor:
            # Unrolled: tf.map_fn costs a tenth of decoding 112 pixels. Once: each batch makes these ops' kernels anew.
            return tf.stack([self._decode_plain(jpeg) for jpeg in jpegs])

        image = tf.cond(tf.size(slots) == len(jpegs), lambda: pixels, plain)
        # Scattering nothing would still copy the batch.
        done = (tf.size(slots) == 0) | (tf.size(slots) == len(jpegs))
        image = tf.cond(done, lambda: image, lambda: tf.tensor_scatter_nd_update(image, slots[:, None], pixels))
        return tf.ensure_shape(image, [len(jpegs), self.size, self.size, 3])

    def load_in_graph(self, records: tf.Tensor, positions: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Pixels uint8 [b, L, L, 3] and labels int64 [b], whatever the pictures are, decoded one by one."""
        (batch,) = records.shape
        image, label = tf.numpy_function(self.load, [records, positions], [tf.uint8, tf.int64], stateful=False)
        return tf.ensure_shape(image, [batch, self.size, self.size, 3]), tf.ensure_shape(label, [batch])

    def read(self, records: np.ndarray, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Encoded plain JPEGs [b]; the slots [m] of all other pictures and their pixels [m, L, L, 3]; labels [b].

        Broken pictures among the others are replaced; record -1 is black.
        """
        jpegs, labels = np.full(len(records), self._black_jpeg, object), np.zeros(len(records), np.int64)
        try:
            wanted = [self.quarantine.stand_in(record) for record in records.tolist()]
            slots = []
            encoded = self._read(wanted)
            for slot, (record, data) in enumerate(zip(wanted, encoded, strict=True)):
                if self._decodes_in_graph(data):
                    jpegs[slot], labels[slot] = data, self.source.labels[record]
                else:
                    slots.append(slot)
            draws = self._draws(positions)
            pixels = self._memory.empty((len(slots), self.size, self.size, 3))
            for place, slot in enumerate(slots):
                pixels[place], labels[slot] = self._load(wanted[slot], encoded[slot], draws[slot])
        except Exception as error:
            self.quarantine.fail(error)
            jpegs[:], labels[:], slots, pixels = (
                self._black_jpeg,
                0,
                [],
                self._memory.empty((0, self.size, self.size, 3)),
            )
        return jpegs, np.array(slots, np.int64), pixels, labels

    def load(self, records: np.ndarray, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Records and positions [b] -> pixels uint8 [b, L, L, 3], labels int64 [b].

        Broken pictures are replaced; record -1 is black.
        """
        pixels = self._memory.empty((len(records), self.size, self.size, 3))
        labels = np.zeros(len(records), np.int64)
        try:
            draws = self._draws(positions)
            for slot, record in enumerate(records.tolist()):
                pixels[slot], labels[slot] = self._load(self.quarantine.stand_in(record), None, draws[slot])
        except Exception as error:
            self.quarantine.fail(error)
            pixels[:], labels[:] = 0, 0
        return pixels, labels

    def _read(self, records: list[int]) -> list[bytes | None]:
        """Encoded bytes; None where there is no record, or where reading is left to `_load`, which keeps the reason."""
        wanted = [record for record in records if record >= 0]
        try:
            encoded = iter(self.source.read(wanted))
        except (OSError, BadPicture):
            return [None] * len(records)
        return [next(encoded) if record >= 0 else None for record in records]

    def _load(self, record: int, encoded: bytes | None, draws: np.ndarray | None) -> tuple[np.ndarray, int]:
        """Pixels [L, L, 3] and label of a record, or of the next readable one. BadData where none is near."""
        if record < 0:
            return np.zeros((self.size, self.size, 3), np.uint8), 0
        for distance in range(min(MAX_NEIGHBOURS, len(self.source))):
            candidate = (record + distance) % len(self.source)
            try:
                data = encoded if distance == 0 and encoded is not None else self.source.read([candidate])[0]
                picture = self._decode(data) if draws is None else self.crop.load(data, draws)
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

    def _draws(self, positions: np.ndarray) -> list[np.ndarray | None]:
        return [None] * len(positions) if self.crop is None else list(self.crop.draws(positions))

    def _decodes_in_graph(self, encoded: bytes | None) -> bool:
        if self.crop is not None or encoded is None:
            return False
        try:
            return self._is_plain(read_header(encoded))
        except BadPicture:
            return False  # `_load` keeps the reason.

    def _is_plain(self, header: Header) -> bool:
        return header.is_plain_jpeg and header.height == header.width == self.size

    def _decode(self, encoded: bytes) -> np.ndarray:
        if not self._is_plain(read_header(encoded)):
            return fit(decode(encoded), self.size)
        try:
            with tf.device("/CPU:0"):
                return tf.ensure_shape(self._decode_plain(encoded), [self.size, self.size, 3]).numpy()
        except tf.errors.InvalidArgumentError as error:
            raise BadPicture("does not decode: broken or cut") from error

    def _decode_plain(self, encoded: tf.Tensor | bytes) -> tf.Tensor:
        # INTEGER_ACCURATE is OpenCV's way; TensorFlow's default differs by up to 11 levels and is no faster.
        return tf.io.decode_jpeg(encoded, channels=3, dct_method="INTEGER_ACCURATE")


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
