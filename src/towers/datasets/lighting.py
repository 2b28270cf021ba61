"""Colour noise along the principal axes of ImageNet's colours, as a pure function of (seed, position).

Krizhevsky et al., 2012, section 4.1: "PCA lighting".
"""

import math

import tensorflow as tf

from ..errors import UserError
from .augmentation import uniform

# Of RGB values in 0..1 over ImageNet's training pictures; a column is an axis.
EIGENVALUES = (0.2175, 0.0188, 0.0045)
EIGENVECTORS = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))
_FIRST_DRAW = 1100


def check_lighting(deviation: float) -> None:
    """Raise UserError unless ``deviation`` is one."""
    if not 0 <= deviation < float("inf"):
        raise UserError(f"--lighting {deviation}: a deviation of 0 or more; MultiGrain's is 0.1, 0 is none")


def light(images: tf.Tensor, positions: tf.Tensor, *, seed: int, deviation: float) -> tf.Tensor:
    """Add one colour to each picture: the sum of axis x eigenvalue x N(0, deviation), cut to 0..255.

    images: [b, H, W, 3] of 0..255, any dtype; positions: int64 [b]. Returns float32 [b, H, W, 3].
    """
    normal = tf.stack([_normal(seed, positions, _FIRST_DRAW + 2 * axis) for axis in range(3)], axis=1)
    amounts = deviation * normal * tf.constant(EIGENVALUES)
    colours = 255.0 * tf.matmul(amounts, tf.constant(EIGENVECTORS), transpose_b=True)
    return tf.clip_by_value(tf.cast(images, tf.float32) + colours[:, None, None], 0.0, 255.0)


def _normal(seed: int, positions: tf.Tensor, n: int) -> tf.Tensor:
    """A standard normal draw of each position, float32 [b], from draws n and n + 1 (Box and Muller, 1958)."""
    radius = tf.sqrt(-2.0 * tf.math.log(1.0 - uniform(seed, positions, n)))
    return radius * tf.cos(2.0 * math.pi * uniform(seed, positions, n + 1))
