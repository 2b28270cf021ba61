"""Random crop, flip and rotation of a batch on its device, as a pure function of (seed, position)."""

import math

import tensorflow as tf

from ..hashing import keyed_hash

MAX_ROTATION_DEGREES = 10.0
_ROW, _COLUMN, _FLIP, _ROTATION = range(4)


def augment(
    images: tf.Tensor,
    positions: tf.Tensor,
    *,
    seed: int,
    image_size: int,
    random_crop: bool,
    random_flip: bool,
    random_rotate: bool,
) -> tf.Tensor:
    """Crop, mirror and rotate each picture by draws keyed by its position in the stream.

    images: uint8 [b, L, L, 3], L >= image_size; positions: int64 [b]. Returns uint8 [b, image_size, image_size, 3].
    Without random_crop the centre is cut. Rotation is uniform within 10 degrees about the middle of the crop, bilinear,
    taking from around the crop what it needs and mirroring at the picture's border. Options as facenet's.
    """
    top, left = _corner(images, image_size)
    if random_crop:
        choices = images.shape[1] - image_size + 1
        top = _choice(seed, positions, _ROW, choices)
        left = _choice(seed, positions, _COLUMN, choices)
    flip = uniform(seed, positions, _FLIP) < 0.5 if random_flip else tf.zeros_like(positions, tf.bool)
    if not random_rotate:
        return _take(images, top, left, flip, image_size)
    angle = (2.0 * uniform(seed, positions, _ROTATION) - 1.0) * math.radians(MAX_ROTATION_DEGREES)
    return _rotate(images, top, left, flip, angle, image_size)


def centre_crop(images: tf.Tensor, image_size: int) -> tf.Tensor:
    """The middle of each picture: [b, L, L, 3] -> [b, image_size, image_size, 3] of the same dtype."""
    top, left = _corner(images, image_size)
    return images[:, top : top + image_size, left : left + image_size]


def uniform(seed: int, positions: tf.Tensor, n: int) -> tf.Tensor:
    """Draw n of each position: float32 [b] in [0, 1), a hash of (seed, position, n).

    positions: int64 [b], >= 0.
    """
    bits = tf.bitwise.right_shift(keyed_hash(seed, n, positions), tf.constant(8, tf.int64))
    return tf.cast(bits, tf.float32) * 2.0**-24


def _choice(seed: int, positions: tf.Tensor, n: int, choices: int) -> tf.Tensor:
    """One of 0 … choices - 1 for each position: int32 [b]."""
    return tf.cast(uniform(seed, positions, n) * choices, tf.int32)


def _corner(images: tf.Tensor, image_size: int) -> tuple[int, int]:
    _, height, width, _ = images.shape
    if image_size > min(height, width):
        raise ValueError(f"image_size {image_size} is larger than the pictures loaded, {height} x {width}")
    return (height - image_size) // 2, (width - image_size) // 2


def _take(images: tf.Tensor, top, left, flip: tf.Tensor, image_size: int) -> tf.Tensor:
    """Gather rows, then columns (backwards where flipped), on uint8."""
    along = tf.range(image_size)[None, :]
    zeros = tf.zeros_like(flip, tf.int32)
    rows = (zeros + top)[:, None] + along
    columns = (zeros + left)[:, None] + tf.where(flip[:, None], image_size - 1 - along, along)
    return tf.gather(tf.gather(images, rows, axis=1, batch_dims=1), columns, axis=2, batch_dims=1)


def _rotate(images: tf.Tensor, top, left, flip: tf.Tensor, angle: tf.Tensor, image_size: int) -> tf.Tensor:
    """Crop, flip and rotation as one affine map from output to input pixels."""
    middle = (image_size - 1) / 2
    across = tf.where(flip, -1.0, 1.0)
    cosine, sine = tf.cos(angle), tf.sin(angle)
    xx, xy, yx, yy = cosine * across, -sine, sine * across, cosine
    x = tf.cast(left, tf.float32) + middle * (1.0 - xx - xy)
    y = tf.cast(top, tf.float32) + middle * (1.0 - yx - yy)
    zero = tf.zeros_like(angle)
    turned = tf.raw_ops.ImageProjectiveTransformV3(
        images=tf.cast(images, tf.float32),
        transforms=tf.stack([xx, xy, x, yx, yy, y, zero, zero], axis=1),
        output_shape=[image_size, image_size],
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode="REFLECT",
    )
    return tf.ensure_shape(tf.cast(tf.round(turned), images.dtype), [None, image_size, image_size, 3])
