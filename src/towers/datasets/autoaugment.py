"""AutoAugment's ImageNet policy (Cubuk et al., 2019, https://arxiv.org/abs/1805.09501) on a batch on its device.

Every picture of a batch takes an operation of its own, so a stage is a chain of one affine map, one table of 256 levels
a channel, one mixture with grey and one with a smoothed picture, of which all but one leave it as it is. The operations
are Pillow's, to the bit where they have no geometry.
"""

import math

import tensorflow as tf

from .augmentation import uniform

(IDENTITY, SHEAR_X, ROTATE, COLOR, SHARPNESS, POSTERIZE, SOLARIZE, CONTRAST, AUTOCONTRAST, EQUALIZE, INVERT) = range(11)
GREY = 128

# Sub-policies of two operations: (operation, probability, magnitude 0..9).
IMAGENET_POLICY = (
    ((POSTERIZE, 0.4, 8), (ROTATE, 0.6, 9)),
    ((SOLARIZE, 0.6, 5), (AUTOCONTRAST, 0.6, 5)),
    ((EQUALIZE, 0.8, 8), (EQUALIZE, 0.6, 3)),
    ((POSTERIZE, 0.6, 7), (POSTERIZE, 0.6, 6)),
    ((EQUALIZE, 0.4, 7), (SOLARIZE, 0.2, 4)),
    ((EQUALIZE, 0.4, 4), (ROTATE, 0.8, 8)),
    ((SOLARIZE, 0.6, 3), (EQUALIZE, 0.6, 7)),
    ((POSTERIZE, 0.8, 5), (EQUALIZE, 1.0, 2)),
    ((ROTATE, 0.2, 3), (SOLARIZE, 0.6, 8)),
    ((EQUALIZE, 0.6, 8), (POSTERIZE, 0.4, 6)),
    ((ROTATE, 0.8, 8), (COLOR, 0.4, 0)),
    ((ROTATE, 0.4, 9), (EQUALIZE, 0.6, 2)),
    ((EQUALIZE, 0.0, 7), (EQUALIZE, 0.8, 8)),
    ((INVERT, 0.6, 4), (EQUALIZE, 1.0, 8)),
    ((COLOR, 0.6, 4), (CONTRAST, 1.0, 8)),
    ((ROTATE, 0.8, 8), (COLOR, 1.0, 2)),
    ((COLOR, 0.8, 8), (SOLARIZE, 0.8, 7)),
    ((SHARPNESS, 0.4, 7), (INVERT, 0.6, 8)),
    ((SHEAR_X, 0.6, 5), (EQUALIZE, 1.0, 9)),
    ((COLOR, 0.4, 0), (EQUALIZE, 0.6, 3)),
    ((EQUALIZE, 0.4, 7), (SOLARIZE, 0.2, 4)),
    ((SOLARIZE, 0.6, 5), (AUTOCONTRAST, 0.6, 5)),
    ((INVERT, 0.6, 4), (EQUALIZE, 1.0, 8)),
    ((COLOR, 0.6, 4), (CONTRAST, 1.0, 8)),
    ((EQUALIZE, 0.8, 8), (EQUALIZE, 0.6, 3)),
)
# Numbers of the draws of a position, beyond those of ``augmentation``.
_SUB_POLICY, _FIRST_STAGE = 1000, 1001


def autoaugment(images: tf.Tensor, positions: tf.Tensor, *, seed: int) -> tf.Tensor:
    """Change each picture by a sub-policy that its position draws.

    A sub-policy is drawn uniformly; each of its operations is then done with its own probability, and where it has two
    directions in one of them at random. Corners that a rotation or shear uncovers become grey.

    images: uint8 [b, H, W, 3]; positions: int64 [b]. Returns uint8 [b, H, W, 3].
    """
    for operation, value in draw_operations(positions, seed):
        images = apply_operations(images, operation, value)
    return images


def draw_operations(positions: tf.Tensor, seed: int) -> list[tuple[tf.Tensor, tf.Tensor]]:
    """(operation int32 [b], value float32 [b]) of both stages, a pure function of (seed, position)."""
    choice = tf.cast(uniform(seed, positions, _SUB_POLICY) * len(IMAGENET_POLICY), tf.int32)
    stages = []
    for stage in range(2):
        first = _FIRST_STAGE + 2 * stage
        operations, probabilities, values = zip(
            *((operation, probability, _value(operation, m)) for operation, probability, m in _stage(stage)),
            strict=True,
        )
        done = uniform(seed, positions, first) < tf.gather(tf.constant(probabilities, tf.float32), choice)
        operation = tf.where(done, tf.gather(tf.constant(operations), choice), IDENTITY)
        sign = tf.where(uniform(seed, positions, first + 1) < 0.5, -1.0, 1.0)
        stages.append((operation, _signed(operation, tf.gather(tf.constant(values, tf.float32), choice), sign)))
    return stages


def apply_operations(images: tf.Tensor, operation: tf.Tensor, value: tf.Tensor) -> tf.Tensor:
    """Do one operation on each picture of uint8 [b, H, W, 3].

    operation: int32 [b]; value: float32 [b]: x a row of SHEAR_X, radians of ROTATE, factor of COLOR, CONTRAST and
    SHARPNESS (1 changes nothing), bits kept by POSTERIZE, first level inverted by SOLARIZE; the others have none.
    """
    images = _affine(images, operation, value)
    tables = _tables(images, operation, value)
    images = tf.gather(tf.reshape(tables, [-1]), _table_index(images))
    grey = tf.repeat(_grey(images)[..., None], 3, axis=3)
    images = _mix(images, grey, tf.where(operation == COLOR, value, 1.0))
    return _mix(images, _smooth(images), tf.where(operation == SHARPNESS, value, 1.0))


def _stage(stage: int) -> list[tuple[int, float, int]]:
    return [sub_policy[stage] for sub_policy in IMAGENET_POLICY]


def _value(operation: int, magnitude: int) -> float:
    """What a magnitude of 0..9 means, without its sign."""
    share = magnitude / 9
    return {
        SHEAR_X: 0.3 * share,
        ROTATE: math.radians(30) * share,
        COLOR: 0.9 * share,
        CONTRAST: 0.9 * share,
        SHARPNESS: 0.9 * share,
        POSTERIZE: round(8 - 4 * share),
        SOLARIZE: 256 * (1 - share),
    }.get(operation, 0.0)


def _signed(operation: tf.Tensor, value: tf.Tensor, sign: tf.Tensor) -> tf.Tensor:
    geometric = (operation == SHEAR_X) | (operation == ROTATE)
    enhancing = (operation == COLOR) | (operation == CONTRAST) | (operation == SHARPNESS)
    return tf.where(geometric, sign * value, tf.where(enhancing, 1.0 + sign * value, value))


def _affine(images: tf.Tensor, operation: tf.Tensor, value: tf.Tensor) -> tf.Tensor:
    """Rotate about the middle, shear from the upper border; nearest pixels."""
    _, height, width, _ = images.shape
    angle = tf.where(operation == ROTATE, value, 0.0)
    shear = tf.where(operation == SHEAR_X, value, 0.0)
    cosine, sine = tf.cos(angle), tf.sin(angle)
    x, y = (width - 1) / 2, (height - 1) / 2
    zero = tf.zeros_like(angle)
    moved = tf.raw_ops.ImageProjectiveTransformV3(
        images=images,
        transforms=tf.stack(
            [
                cosine,
                shear - sine,
                x - cosine * x + sine * y + shear / 2,
                sine,
                cosine,
                y - sine * x - cosine * y,
                zero,
                zero,
            ],
            axis=1,
        ),
        output_shape=[height, width],
        fill_value=float(GREY),
        interpolation="NEAREST",
        fill_mode="CONSTANT",
    )
    return tf.ensure_shape(moved, images.shape)


def _table_index(images: tf.Tensor) -> tf.Tensor:
    """Where the level of each value lies in tables [b, 3, 256] laid out flat: int32 [b, H, W, 3]."""
    picture = tf.range(tf.shape(images)[0])[:, None, None, None]
    return (picture * 3 + tf.range(3)) * 256 + tf.cast(images, tf.int32)


def _tables(images: tf.Tensor, operation: tf.Tensor, value: tf.Tensor) -> tf.Tensor:
    """The new level of each level: uint8 [b, 3, 256]."""
    num = tf.shape(images)[0]
    index = tf.reshape(_table_index(images), [-1])
    counts = tf.reshape(tf.math.unsorted_segment_sum(tf.ones_like(index), index, num * 768), [num, 3, 256])
    level = tf.range(256)
    levels = tf.broadcast_to(level, tf.shape(counts))
    value = value[:, None, None]
    step = tf.bitwise.left_shift(1, 8 - tf.cast(tf.clip_by_value(value, 1.0, 8.0), tf.int32))
    kinds = {
        POSTERIZE: levels // step * step,
        SOLARIZE: tf.where(tf.cast(levels, tf.float32) < value, levels, 255 - levels),
        CONTRAST: _contrast(images, levels, value),
        AUTOCONTRAST: _autocontrast(counts, levels),
        EQUALIZE: _equalize(counts, levels),
        INVERT: 255 - levels,
    }
    table = levels
    for kind, changed in kinds.items():
        table = tf.where((operation == kind)[:, None, None], changed, table)
    return tf.cast(table, tf.uint8)


def _contrast(images: tf.Tensor, levels: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    mean = tf.reduce_mean(tf.cast(_grey(images), tf.float64), axis=[1, 2])
    mean = tf.floor(tf.cast(mean, tf.float32) + 0.5)[:, None, None]
    return _blend(mean, tf.cast(levels, tf.float32), factor)


def _autocontrast(counts: tf.Tensor, levels: tf.Tensor) -> tf.Tensor:
    """The lowest level that is there to 0, the highest to 255."""
    there = counts > 0
    low = tf.reduce_min(tf.where(there, levels, 255), axis=2, keepdims=True)
    high = tf.reduce_max(tf.where(there, levels, 0), axis=2, keepdims=True)
    scale = 255.0 / tf.cast(tf.maximum(high - low, 1), tf.float64)
    stretched = tf.cast(levels, tf.float64) * scale - tf.cast(low, tf.float64) * scale
    return tf.where(high > low, tf.cast(tf.clip_by_value(stretched, 0.0, 255.0), tf.int32), levels)


def _equalize(counts: tf.Tensor, levels: tf.Tensor) -> tf.Tensor:
    """Levels by their ranks, as Pillow rounds them."""
    last = tf.reduce_max(tf.where(counts > 0, levels, 0), axis=2, keepdims=True)
    total = tf.reduce_sum(counts, axis=2, keepdims=True)
    step = (total - tf.gather(counts, last, batch_dims=2)) // 255
    ranks = tf.cumsum(counts, axis=2, exclusive=True)
    return tf.where(step > 0, tf.minimum((ranks + step // 2) // tf.maximum(step, 1), 255), levels)


def _grey(images: tf.Tensor) -> tf.Tensor:
    """Luminance as Pillow computes it: int32 [b, H, W]."""
    weighted = tf.cast(images, tf.int32) * tf.constant([19595, 38470, 7471])
    return tf.bitwise.right_shift(tf.reduce_sum(weighted, axis=3) + 32768, 16)


def _smooth(images: tf.Tensor) -> tf.Tensor:
    """Each pixel with its eight neighbours, five times itself; the border stays: int32 [b, H, W, 3]."""
    values = tf.cast(images, tf.int32)
    rows = values[:, :-2] + values[:, 1:-1] + values[:, 2:]
    sums = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:] + 4 * values[:, 1:-1, 1:-1]
    inner = (2 * sums + 13) // 26
    columns = tf.concat([values[:, 1:-1, :1], inner, values[:, 1:-1, -1:]], axis=2)
    return tf.concat([values[:, :1], columns, values[:, -1:]], axis=1)


def _mix(images: tf.Tensor, other: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """other + factor (images - other), uint8; a factor of 1 leaves a picture exactly as it is."""
    mixed = _blend(tf.cast(other, tf.float32), tf.cast(images, tf.float32), factor[:, None, None, None])
    return tf.cast(mixed, tf.uint8)


def _blend(other: tf.Tensor, values: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Pillow's: cut to 0..255 and towards 0, int32."""
    return tf.cast(tf.clip_by_value(other + factor * (values - other), 0.0, 255.0), tf.int32)
