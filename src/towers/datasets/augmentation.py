"""Random crop, flip and rotation of a batch on its device, as a pure function of (seed, position)."""

import math

import tensorflow as tf

from ..hashing import keyed_hash

MAX_ROTATION_DEGREES = 10.0
_ROW, _COLUMN, _FLIP, _ROTATION, _BRIGHTNESS, _CONTRAST, _SATURATION = range(7)
# Of red, green and blue in brightness: ITU-R BT.601.
_LUMA = (0.299, 0.587, 0.114)


def augment(
    images: tf.Tensor,
    positions: tf.Tensor,
    *,
    seed: int,
    image_size: int,
    random_crop: bool,
    random_flip: bool,
    random_rotate: bool,
    random_color: float = 0.0,
) -> tf.Tensor:
    """Crop, mirror and rotate each picture by draws keyed by its position in the stream.

    images: uint8 [b, L, L, 3], L >= image_size; positions: int64 [b]. Returns uint8 [b, image_size, image_size, 3].
    Without random_crop the centre is cut. Rotation is uniform within 10 degrees about the middle of the crop, bilinear,
    taking from around the crop what it needs and mirroring at the picture's border. Options as facenet's;
    random_color is the strength of `jitter_color`.
    """
    top, left = _corner(images, image_size)
    if random_crop:
        choices = images.shape[1] - image_size + 1
        top = _choice(seed, positions, _ROW, choices)
        left = _choice(seed, positions, _COLUMN, choices)
    flip = uniform(seed, positions, _FLIP) < 0.5 if random_flip else tf.zeros_like(positions, tf.bool)
    if random_rotate:
        angle = (2.0 * uniform(seed, positions, _ROTATION) - 1.0) * math.radians(MAX_ROTATION_DEGREES)
        images = _rotate(images, top, left, flip, angle, image_size)
    else:
        images = _take(images, top, left, flip, image_size)
    return jitter_color(images, positions, seed=seed, strength=random_color) if random_color else images


def jitter_color(images: tf.Tensor, positions: tf.Tensor, *, seed: int, strength: float) -> tf.Tensor:
    """Brightness, then contrast, then saturation, each by a factor uniform in [1 - strength, 1 + strength).

    images: uint8 RGB [b, H, W, 3]; positions: int64 [b]; 0 <= strength <= 1. Returns uint8. Brightness multiplies;
    contrast moves away from or to the picture's mean grey, saturation from or to each pixel's grey (BT.601).
    """
    brightness, contrast, saturation = (
        (1.0 + strength * (2.0 * uniform(seed, positions, n) - 1.0))[:, None, None, None]
        for n in (_BRIGHTNESS, _CONTRAST, _SATURATION)
    )
    pixels = tf.cast(images, tf.float32) * brightness
    mean = tf.reduce_mean(_grey(pixels), axis=(1, 2, 3), keepdims=True)
    pixels = mean + (pixels - mean) * contrast
    grey = _grey(pixels)
    pixels = grey + (pixels - grey) * saturation
    return tf.cast(tf.round(tf.clip_by_value(pixels, 0.0, 255.0)), images.dtype)


def _grey(pixels: tf.Tensor) -> tf.Tensor:
    return tf.reduce_sum(pixels * _LUMA, axis=-1, keepdims=True)


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
