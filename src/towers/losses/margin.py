"""Softmax over cosines with a margin on an example's own class: ArcFace, CosFace, AdaFace, MagFace and their kin.

The margin touches one entry an example; nothing trigonometric is computed for the other classes. Logits are
class-major, [S, B]: on CPUs the product W x^T takes a third of the time of x W^T, and no gradient needs a transposed
copy of W.
"""

from dataclasses import dataclass
from typing import NamedTuple

import keras
import tensorflow as tf

# Smallest sine that a slope divides by. In float32 a cosine near 1 tells sines below 3.5e-4 apart no more.
_LEAST_SINE = 1e-3
_LEAST_SQUARED_NORM = 1e-24


class Margin(NamedTuple):
    """What becomes of the cosine of an example's own class: cos(multiple * theta + angles) - offsets.

    There is no rule for angles that pass pi, like InsightFace; AdaFace's is ``clipped``.

    Attributes:
      multiple: m1; ``angles``: m2, radians, a number or [b]; ``offsets``: m3, a number or [b].
      clipped: hold the angle within [1e-3, pi - 1e-3].
    """

    multiple: float = 1.0
    angles: tf.Tensor | float = 0.0
    offsets: tf.Tensor | float = 0.0
    clipped: bool = False


@dataclass(frozen=True)
class LogitForm:
    """How the logits of other classes come from embeddings and class weights.

    Attributes:
      normalised: logits are scale * cosine; otherwise scale * inner product, and margins have no meaning.
      sub_centres: K, rows of weights a class; the largest cosine counts (Deng et al. 2020, "Sub-center ArcFace").
      filter_above: a cosine of another class above it counts as 0, since it may be the same person under a second
        label (An et al. 2022, "Killing Two Birds with One Stone", section 3.3); 0: no filter.
      chunk: classes whose logits are held at a time, computed again for the backward pass; 0: all of them, kept.
    """

    normalised: bool = True
    scale: float = 64.0
    sub_centres: int = 1
    filter_above: float = 0.0
    chunk: int = 0


class SoftmaxParts(NamedTuple):
    """What some of the classes contribute to the softmax of B examples.

    Attributes:
      log_sums: [B], log of the sum of exp(logit) over these classes.
      targets: [B], the logit of the own class with its margin; 0 where that class is not among these.
      largest: [B], the largest logit, without gradient.
    """

    log_sums: tf.Tensor
    targets: tf.Tensor
    largest: tf.Tensor


def with_margin(cosines: tf.Tensor, margin: Margin) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Apply a margin to the cosines [n] of the own classes.

    Returns:
      (values [n]; their derivatives by the cosines, finite everywhere; their derivatives by ``margin.angles``).
    """
    cosines = tf.clip_by_value(cosines, -1.0, 1.0)
    offsets = _number(margin.offsets, cosines.dtype)
    plain_angle = not tf.is_tensor(margin.angles) and margin.angles == 0 and margin.multiple == 1 and not margin.clipped
    if plain_angle:
        return cosines - offsets, tf.ones_like(cosines), tf.zeros_like(cosines)
    angles = margin.multiple * tf.acos(cosines) + _number(margin.angles, cosines.dtype)
    free = tf.ones_like(cosines)
    if margin.clipped:
        least, most = _LEAST_SINE, 3.141592653589793 - _LEAST_SINE
        free = tf.cast((angles > least) & (angles < most), cosines.dtype)
        angles = tf.clip_by_value(angles, least, most)
    by_angle = -tf.sin(angles) * free
    sines = tf.sqrt(tf.maximum(1.0 - tf.square(cosines), _LEAST_SINE**2))
    return tf.cos(angles) - offsets, -margin.multiple * by_angle / sines, by_angle


def features_of(embeddings: tf.Tensor, form: LogitForm) -> tf.Tensor:
    """What multiplies the class weights: the embeddings [b, D] themselves, or their directions."""
    if not form.normalised:
        return embeddings
    return tf.math.l2_normalize(embeddings, axis=1, epsilon=_LEAST_SQUARED_NORM)


def softmax_parts(
    features: tf.Tensor,
    weights: tf.Tensor,
    columns: tf.Tensor,
    form: LogitForm,
    margin: Margin,
    most_classes: int | None = None,
) -> SoftmaxParts:
    """The softmax of features over the classes of ``weights``; where those are all, log_sums - targets is the loss.

    Differentiable in features, weights and ``margin.angles``.

    Args:
      features: [B, D] of ``features_of``, float32 or float64.
      weights: [S * K, D], the K sub-centres of a class after each other, of the type of the features.
      columns: [B] integers, the place of each example's class among the S, -1 where it is not there.
      most_classes: bound of S, needed for chunks where S is not known when the step is traced.
    """
    angles = tf.zeros_like(features[:, 0]) + _number(margin.angles, features.dtype)
    static_angles = not tf.is_tensor(margin.angles)

    @tf.custom_gradient
    def parts(features, weights, angles):
        settings = margin if static_angles else margin._replace(angles=angles)
        chunks = _chunks(weights, columns, form, most_classes)
        kept = None
        log_sums, targets, largest = [], tf.zeros_like(angles), []
        for chunk_weights, chunk_columns in chunks:
            # One after the other, or all chunks would be held at once.
            with tf.control_dependencies(log_sums[-1:]):
                scaled, inverse_norms = _scaled_products(features, chunk_weights, form)
            logits = _logits(scaled, chunk_columns, form, settings)
            top = tf.reduce_max(logits.values, axis=0)
            exponentials = tf.exp(logits.values - top)
            log_sums.append(top + tf.math.log(tf.reduce_sum(exponentials, axis=0)))
            largest.append(top)
            targets += tf.scatter_nd(logits.places[:, 1:], form.scale * logits.targets, tf.shape(targets, tf.int64))
            if len(chunks) == 1:
                kept = scaled, inverse_norms, logits, exponentials
        log_sum = log_sums[0] if len(chunks) == 1 else tf.reduce_logsumexp(tf.stack(log_sums), axis=0)

        def gradient(by_log_sum, by_target, _):
            by_features, by_angles, by_weights = tf.zeros_like(features), tf.zeros_like(angles), []
            for chunk_weights, chunk_columns in chunks:
                if kept:
                    scaled, inverse_norms, logits, exponentials = kept
                    # Of one chunk the sum is what the exponentials were made with: no second exp over all logits.
                    shares = exponentials * (tf.exp(largest[0] - log_sum) * by_log_sum)
                else:
                    with tf.control_dependencies([by_features]):
                        scaled, inverse_norms = _scaled_products(features, chunk_weights, form)
                    logits = _logits(scaled, chunk_columns, form, settings)
                    shares = tf.exp(logits.values - log_sum) * by_log_sum
                by_scaled, by_value = _softmax_gradient(logits, scaled, shares, by_target, form)
                by_angles += tf.scatter_nd(
                    logits.places[:, 1:], form.scale * by_value * logits.by_angle, tf.shape(angles, tf.int64)
                )
                # Of a cosine: (x - cos * w / |w|) / |w|; the second term takes out what points along the row itself.
                by_product = by_scaled * (form.scale * inverse_norms)[:, None]
                by_features += tf.matmul(by_product, chunk_weights, transpose_a=True)
                by_rows = tf.matmul(by_product, features)
                if form.normalised:
                    along = tf.reduce_sum(by_product * scaled, axis=1) * (inverse_norms / form.scale)
                    by_rows -= along[:, None] * chunk_weights
                by_weights.append(by_rows)
            return by_features, by_weights[0] if len(chunks) == 1 else tf.concat(by_weights, axis=0), by_angles

        return (log_sum, targets, tf.reduce_max(tf.stack(largest), axis=0)), gradient

    log_sums, targets, largest = parts(features, weights, angles)
    return SoftmaxParts(log_sums, targets, tf.stop_gradient(largest))


class _Logits(NamedTuple):
    """Logits [S, B] with the margins in; places [n, 2] of the own classes, and ``with_margin`` of those."""

    values: tf.Tensor
    best: tf.Tensor
    places: tf.Tensor
    targets: tf.Tensor
    by_cosine: tf.Tensor
    by_angle: tf.Tensor


def _chunks(weights, columns, form, most_classes) -> list[tuple[tf.Tensor, tf.Tensor]]:
    """The rows of so many classes at a time, and the places of the examples' classes among them."""
    static_rows = weights.shape[0]
    bound = most_classes if static_rows is None else static_rows // form.sub_centres
    if not form.chunk or bound <= form.chunk:
        return [(weights, columns)]
    num_classes = tf.shape(weights)[0] // form.sub_centres
    starts = range(0, bound, form.chunk)
    sizes = [tf.clip_by_value(num_classes - start, 0, form.chunk) for start in starts]
    parts = tf.split(weights, [size * form.sub_centres for size in sizes], num=len(sizes))
    places = [columns - start for start in starts]
    absent = tf.constant(-1, columns.dtype)
    return [
        (part, tf.where((place >= 0) & (place < form.chunk), place, absent))
        for part, place in zip(parts, places, strict=True)
    ]


def _scaled_products(features, weights, form) -> tuple[tf.Tensor, tf.Tensor]:
    """scale * cosine (or inner product) of every row with every example [S * K, B], and 1 / |row| (or 1)."""
    if form.normalised:
        norms = tf.math.reduce_euclidean_norm(weights, axis=1)
        inverse_norms = tf.math.divide_no_nan(tf.ones([], norms.dtype), norms)
    else:
        inverse_norms = tf.ones_like(weights[:, 0])
    products = tf.matmul(weights, features, transpose_b=True)
    return products * (form.scale * inverse_norms)[:, None], inverse_norms


def _logits(scaled, columns, form, margin: Margin) -> _Logits:
    best = scaled
    if form.sub_centres > 1:
        best = tf.reduce_max(_by_class(scaled, form), axis=1)
    values = best
    if form.filter_above:
        values = tf.where(best > form.filter_above * form.scale, tf.zeros([], best.dtype), best)
    owned = tf.where(columns >= 0)[:, 0]
    places = tf.stack([tf.cast(tf.gather(columns, owned), tf.int64), owned], axis=1)
    if tf.is_tensor(margin.angles):
        margin = margin._replace(angles=tf.gather(margin.angles, owned))
    if tf.is_tensor(margin.offsets) and margin.offsets.shape.rank:
        margin = margin._replace(offsets=tf.gather(margin.offsets, owned))
    own = tf.gather_nd(best, places)
    if form.normalised:
        targets, by_cosine, by_angle = with_margin(own / form.scale, margin)
    else:
        targets, by_cosine, by_angle = own / form.scale, tf.ones_like(own), tf.zeros_like(own)
    values = tf.tensor_scatter_nd_update(values, places, form.scale * targets)
    return _Logits(values, best, places, targets, by_cosine, by_angle)


def _softmax_gradient(logits: _Logits, scaled, shares, by_target, form) -> tuple[tf.Tensor, tf.Tensor]:
    """The gradients by scaled products [S * K, B], and by the logits of the own classes [n].

    ``shares``: [S, B], the softmax times the gradient by the log of its sum.
    """
    by_value = tf.gather_nd(shares, logits.places) + tf.gather(by_target, logits.places[:, 1])
    if form.filter_above:
        shares = tf.where(logits.best > form.filter_above * form.scale, tf.zeros([], shares.dtype), shares)
    shares = tf.tensor_scatter_nd_update(shares, logits.places, by_value * logits.by_cosine)
    if form.sub_centres > 1:
        chosen = _by_class(scaled, form) == logits.best[:, None]
        shares = tf.reshape(tf.where(chosen, shares[:, None], tf.zeros([], shares.dtype)), tf.shape(scaled))
    return shares, by_value


def _number(value, dtype) -> tf.Tensor:
    # A cast would take a Python number through float32.
    return tf.cast(value, dtype) if tf.is_tensor(value) else tf.constant(value, dtype)


def _by_class(scaled, form) -> tf.Tensor:
    return tf.reshape(scaled, [-1, form.sub_centres, tf.shape(scaled)[1]])


def magface(
    norms: tf.Tensor,
    *,
    least_norm: float = 10.0,
    most_norm: float = 110.0,
    least_margin: float = 0.45,
    most_margin: float = 0.8,
) -> tuple[Margin, tf.Tensor]:
    """Margins that grow with the norm of the embedding (Meng et al. 2021, "MagFace", section 3.2).

    Args:
      norms: [b], of the embeddings; held within the two norms.

    Returns:
      (the margin, with its gradient into the norms; the penalty norm / most_norm^2 + 1 / norm [b], equation 4's g,
      which the loss adds with factor 35).
    """
    norms = tf.clip_by_value(norms, least_norm, most_norm)
    slope = (most_margin - least_margin) / (most_norm - least_norm)
    return Margin(angles=slope * (norms - least_norm) + least_margin), norms / most_norm**2 + 1.0 / norms


def adaface(norms: tf.Tensor, mean: tf.Tensor, deviation: tf.Tensor, *, m: float = 0.4, h: float = 0.333) -> Margin:
    """Margins by the quality of a picture, told by its norm (Kim et al. 2022, "AdaFace", equations 11 to 13).

    Args:
      norms: [b], of the embeddings; no gradient flows into them.
      mean, deviation: running statistics of the norms, scalars.
    """
    norms = tf.stop_gradient(tf.clip_by_value(norms, 1e-3, 100.0))
    quality = tf.clip_by_value(h * (norms - mean) / (deviation + 1e-3), -1.0, 1.0)
    return Margin(angles=-m * quality, offsets=m + m * quality, clipped=True)


class NormStatistics:
    """AdaFace's running mean and deviation of embedding norms, alike on every tower. Make it in the towers' scope.

    Args:
      share: of a step's own statistics in the new ones (AdaFace's ``t_alpha``).
      dtype: float32 or float64.
    """

    def __init__(self, share: float = 0.01, dtype: str = "float32"):
        self.share = share
        with keras.name_scope("adaface"):
            self.mean = keras.Variable(20.0, dtype=dtype, trainable=False, name="norm_mean")
            self.deviation = keras.Variable(100.0, dtype=dtype, trainable=False, name="norm_deviation")

    def after(self, norms: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Mean and deviation once the norms [B] of all towers are taken in."""
        norms = tf.clip_by_value(norms, 1e-3, 100.0)
        mean = tf.reduce_mean(norms)
        count = tf.cast(tf.size(norms), norms.dtype)
        deviation = tf.sqrt(tf.reduce_sum(tf.square(norms - mean)) / tf.maximum(count - 1.0, 1.0))
        return (
            self.share * mean + (1.0 - self.share) * self.mean.value,
            self.share * deviation + (1.0 - self.share) * self.deviation.value,
        )

    def update(self, norms: tf.Tensor, keep: tf.Tensor) -> None:
        """Inside ``Towers.run``: take in the norms [B] of all towers where ``keep`` is true."""
        for variable, value in zip((self.mean, self.deviation), self.after(norms), strict=True):
            variable.assign(tf.where(keep, value, variable.value))

    def variables(self) -> dict[str, keras.Variable]:
        """Name -> variable, for checkpoints."""
        return {variable.path: variable for variable in (self.mean, self.deviation)}
