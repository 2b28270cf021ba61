"""A head whose classes are split over the towers, whole or sampled: for as many identities as all towers can hold.

Features are gathered, never weights: what travels a step is [B, D] and a few [B], whatever the number of classes.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from ..distribution import Towers, all_gather, sum_over_towers, tower_index
from ..errors import UserError
from ..losses.margin import LogitForm, Margin, features_of, softmax_parts
from .sampling import sampled_classes

RULES = ("MOM", "SGD")
INITIAL_DEVIATION = 0.01
# Rows that are made, written or read at a time; the first weights depend on it.
_PIECE = 16_384


class Rows(NamedTuple):
    """The class weights that a step uses on one tower.

    Attributes:
      weights: [S * K, D], watched by the step's tape.
      places: [S] int64, ascending: where these classes are in the tower's shard; None: the whole shard.
    """

    weights: tf.Tensor
    places: tf.Tensor | None = None


class ShardedHead:
    """Class weights [C * K, D] without bias, C / R classes a tower, and their momentum beside them.

    With ``sample_rate`` a step sees, reads and writes ``sample_rate * C`` classes only: all those of the batch and
    others drawn by (seed, step). Rows that are not sampled stay as they are: neither their momentum nor weight decay
    moves them in that step, so a class decays in proportion to how often it is sampled.

    Args:
      num_classes: C; ``embedding_size``: D.
      form: how logits come from features and weights.
      seed: of the first weights, normal with deviation 0.01, a function of (seed, class), and of the draws.
      rule: MOM (momentum, Nesterov) or SGD, as ``training.optimizers`` has them.
      sample_rate: above 0 and at most 1; None: all classes at every step.
      largest_batch: B, which the sampled classes must be able to hold.

    Raises:
      UserError: another rule, a rate out of its range, or fewer sampled classes than a batch may hold.
    """

    # Of all classes, or of a sample of them.
    accuracy_name = "accuracy"

    def __init__(
        self,
        towers: Towers,
        num_classes: int,
        embedding_size: int,
        *,
        form: LogitForm,
        seed: int,
        rule: str = "MOM",
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        sample_rate: float | None = None,
        largest_batch: int = 1,
        dtype: str = "float32",
    ):
        if rule not in RULES:
            raise UserError(
                f"--optimizer {rule}: a head split over the towers is trained by {' or '.join(RULES)}; "
                "choose one of them, or --head replicated"
            )
        if num_classes < towers.num_towers:
            raise UserError(
                f"{num_classes} classes cannot be split over {towers.num_towers} towers; give fewer --towers, "
                "or --head replicated"
            )
        self.num_sampled = None if sample_rate is None else sampled_count(sample_rate, num_classes, largest_batch)
        self.num_classes, self.embedding_size = num_classes, embedding_size
        self.form, self.seed = form, seed
        self.momentum, self.weight_decay = momentum, weight_decay
        self.starts = shard_starts(num_classes, towers.num_towers)
        self.shards, self.slots = {}, {}
        for device, tower in zip(towers.device_names, towers.local_towers, strict=True):
            own_classes = self.starts[tower + 1] - self.starts[tower]
            shape = (own_classes * form.sub_centres, embedding_size)
            with tf.device(device):
                self.shards[tower] = tf.Variable(tf.zeros(shape, dtype), name="head_weights")
                if rule == "MOM":
                    self.slots[tower] = tf.Variable(tf.zeros(shape, dtype), trainable=False, name="head_momentum")
        row_starts = [start * form.sub_centres for start in self.starts]
        self.weights = MergedRows(self.shards, row_starts, towers)
        self.momenta = MergedRows(self.slots, row_starts, towers) if self.slots else None
        for start, piece in first_weights(seed, num_classes * form.sub_centres, embedding_size):
            self.weights.write(start, piece)

    def variables(self) -> dict[str, "MergedRows"]:
        """Name -> the rows of all towers as one array, for checkpoints that any number of towers can take up."""
        return {"head/weights": self.weights} | ({"head/momentum": self.momenta} if self.momenta else {})

    def prepare(self, labels: tf.Tensor, step: tf.Tensor) -> Rows:
        """Inside ``Towers.run``: the rows that this tower needs for its labels [b] of a step."""
        tower = tower_index()
        if self.num_sampled is None:
            return Rows(self.shards[tower].read_value())
        start, stop = self.starts[tower], self.starts[tower + 1]
        classes = sampled_classes(all_gather(labels), self.seed, step, self.num_sampled, self.num_classes)
        own = tf.searchsorted(classes, tf.constant([start, stop], tf.int64))
        places = classes[own[0] : own[1]] - start
        return Rows(tf.gather(self.shards[tower], self._rows_of(places)), places)

    def classify(
        self, embeddings: tf.Tensor, labels: tf.Tensor, rows: Rows, margin: Margin
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Inside ``Towers.run``: softmax over the classes of all towers' rows.

        Args:
          embeddings: [b, D], un-normalised, any float type; labels: [b] int64; margin: of these examples.

        Returns:
          (cross entropy [b]; [b], 1 where no logit is larger than that of the label, else 0).
        """
        features = all_gather(features_of(tf.cast(embeddings, rows.weights.dtype), self.form))
        labels = all_gather(labels)
        rows = self._rows_for(rows, features, labels)
        margin = margin._replace(angles=_gathered(margin.angles), offsets=_gathered(margin.offsets))
        most = None if self.num_sampled is None else min(self.num_sampled, self._own_classes())
        parts = softmax_parts(features, rows.weights, self._columns(labels, rows), self.form, margin, most)
        over_towers = all_gather(tf.stop_gradient(tf.stack([parts.log_sums, parts.largest]))[None])
        top, largest = tf.unstack(tf.reduce_max(over_towers, axis=0), num=2)
        sums, targets = tf.unstack(sum_over_towers(tf.stack([tf.exp(parts.log_sums - top), parts.targets])), num=2)
        share = tf.shape(embeddings)[0]
        own = slice(tower_index() * share, (tower_index() + 1) * share)
        losses = top + tf.math.log(sums) - targets
        return losses[own], tf.cast(targets >= largest, losses.dtype)[own]

    def apply(self, rows: Rows, gradient: tf.Tensor, learning_rate: tf.Tensor, keep: tf.Tensor) -> None:
        """Inside ``Towers.run``: update this tower's rows and their momentum, or nothing where ``keep`` is false.

        Args:
          gradient: [S * K, D], of the loss over all towers by ``rows.weights``, clipped.
        """
        tower = tower_index()
        rate = tf.cast(learning_rate, gradient.dtype)
        update = self._update_all if rows.places is None else self._update_rows

        def updated():
            update(tower, rows, gradient, rate)
            return tf.constant(True)

        tf.cond(keep, updated, lambda: tf.constant(False))

    def export(self) -> np.ndarray:
        """The class weights [C * K, D] in one array."""
        weights = np.empty(self.weights.shape, self.weights.dtype)
        for first, piece in self.weights.chunks():
            weights[first : first + len(piece)] = piece
        return weights

    def restore(self, weights) -> None:
        """Take over class weights [C * K, D], outside of ``Towers.run``; see ``MergedRows.assign``."""
        self.weights.assign(weights)

    def _rows_for(self, rows: Rows, features: tf.Tensor, labels: tf.Tensor) -> Rows:
        """The rows that all towers' features [B, D] and labels [B] meet: those that were prepared."""
        return rows

    def _own_classes(self) -> int:
        return self.starts[tower_index() + 1] - self.starts[tower_index()]

    def _rows_of(self, places: tf.Tensor) -> tf.Tensor:
        """Rows of the classes at ``places``: each class has its sub-centres after each other."""
        if self.form.sub_centres == 1:
            return places
        count = self.form.sub_centres
        return tf.reshape(places[:, None] * count + tf.range(count, dtype=places.dtype), [-1])

    def _columns(self, labels: tf.Tensor, rows: Rows) -> tf.Tensor:
        """[B], where the classes of all towers' examples are among the rows, -1 where another tower has them."""
        start, stop = self.starts[tower_index()], self.starts[tower_index() + 1]
        columns = labels - start
        if rows.places is not None:
            columns = tf.searchsorted(rows.places, columns, out_type=tf.int64)
        return tf.where((labels >= start) & (labels < stop), columns, tf.constant(-1, tf.int64))

    def _update_all(self, tower, rows, gradient, rate) -> None:
        shard = self.shards[tower]
        if self.weight_decay:
            gradient += self.weight_decay * shard.read_value()
        if not self.slots:
            tf.raw_ops.ResourceApplyGradientDescent(var=shard.handle, alpha=rate, delta=gradient)
            return
        tf.raw_ops.ResourceApplyMomentum(
            var=shard.handle,
            accum=self.slots[tower].handle,
            lr=rate,
            grad=gradient,
            momentum=tf.constant(self.momentum, gradient.dtype),
            use_nesterov=True,
        )

    def _update_rows(self, tower, rows, gradient, rate) -> None:
        indices = self._rows_of(rows.places)
        if self.weight_decay:
            gradient += self.weight_decay * rows.weights
        change = gradient
        if self.slots:
            slot = self.slots[tower]
            momentum = self.momentum * tf.gather(slot, indices) + gradient
            slot.scatter_update(tf.IndexedSlices(momentum, indices))
            change = gradient + self.momentum * momentum
        # Written, not subtracted: no row occurs twice, and TensorFlow's CPU kernel copies faster than it subtracts.
        self.shards[tower].scatter_update(tf.IndexedSlices(rows.weights - rate * change, indices))


class MergedRows:
    """Variables of several towers as one array [N, D], read and written in pieces; a checkpoint's variable.

    Args:
      parts: tower -> its rows, of the towers of this process.
      starts: first row of each tower, and N at the end.
      towers: None: all parts are in this process.
    """

    def __init__(self, parts: dict[int, tf.Variable], starts: list[int], towers: Towers | None = None):
        self.parts, self.starts = parts, starts
        one = next(iter(parts.values()))
        self.shape = (self.starts[-1], one.shape[1])
        self.dtype = np.dtype(one.dtype.as_numpy_dtype)
        self.nbytes = self.shape[0] * self.shape[1] * self.dtype.itemsize
        self._exchange = None if towers is None or towers.processes.num == 1 else towers.exchange()

    def chunks(self) -> Iterator[tuple[int, np.ndarray]]:
        """(first row, rows) of each piece in turn; where there are several processes, all must go through them."""
        for place in range(0, max(stop - start for start, stop in pairwise(self.starts)), _PIECE):
            pieces = {tower: self._piece(tower, place) for tower in self.parts}
            if self._exchange is not None:
                pieces = dict(enumerate(self._exchange(pieces)))
            for tower, piece in pieces.items():
                start, stop = (
                    self.starts[tower] + place,
                    min(self.starts[tower] + place + _PIECE, self.starts[tower + 1]),
                )
                if start < stop:
                    yield start, piece[: stop - start].numpy()

    def _piece(self, tower: int, place: int) -> tf.Tensor:
        """Rows of a tower from ``place`` on; between processes filled up, so that all pieces are of one shape."""
        part = self.parts[tower]
        # A gather copies these rows only, whatever has been written to the variable before.
        piece = tf.gather(part, tf.range(min(place, part.shape[0]), min(place + _PIECE, part.shape[0])))
        if self._exchange is None:
            return piece
        rows = min(_PIECE, max(stop - start for start, stop in pairwise(self.starts)))
        return tf.pad(piece, [[0, rows - piece.shape[0]], [0, 0]])

    def assign(self, array) -> None:
        """Take over ``array`` [N, D], anything that gives rows by ``array[first:last]``.

        Raises:
          UserError: another shape; nothing has changed then.
        """
        if tuple(array.shape) != self.shape:
            raise UserError(
                f"head: the stored class weights have shape {tuple(array.shape)}, this run's {self.shape}; "
                "train with the same classes and embedding size, or start from the network alone"
            )
        for first in range(0, self.shape[0], _PIECE):
            self.write(first, array[first : first + _PIECE])

    def write(self, first: int, piece: np.ndarray) -> None:
        """Put rows in from ``first`` on."""
        for tower, part in self.parts.items():
            start = self.starts[tower]
            begin, end = max(first, start), min(first + len(piece), start + part.shape[0])
            if begin < end:
                with tf.device(part.device):
                    # `part[...].assign` would read the variable first, which copies all of it.
                    tf.raw_ops.ResourceStridedSliceAssign(
                        ref=part.handle,
                        begin=[begin - start],
                        end=[end - start],
                        strides=[1],
                        value=tf.constant(piece[begin - first : end - first], part.dtype),
                    )


def sampled_count(sample_rate: float, num_classes: int, largest_batch: int) -> int:
    """Classes of a step at ``sample_rate``.

    Raises:
      UserError: a rate out of its range, or fewer classes than the batch may hold.
    """
    if not 0 < sample_rate <= 1:
        raise UserError(f"--sample_rate {sample_rate}: a share of the classes, above 0 and at most 1")
    count = round(sample_rate * num_classes)
    if count < min(largest_batch, num_classes):
        raise UserError(
            f"--sample_rate {sample_rate} of {num_classes} classes is {count}, fewer than a batch of {largest_batch} "
            f"images may hold; give --sample_rate {min(largest_batch / num_classes, 1):.2g} or more"
        )
    return count


def shard_starts(num_classes: int, num_towers: int) -> list[int]:
    """First class of each tower, and C at the end; the first C % R towers have one class more."""
    share, more = divmod(num_classes, num_towers)
    return [tower * share + min(tower, more) for tower in range(num_towers + 1)]


def first_weights(seed: int, num_rows: int, embedding_size: int) -> Iterator[tuple[int, np.ndarray]]:
    """(first row, float32 rows) in pieces, normal with deviation 0.01: each a function of (seed, its place)."""
    for first in range(0, num_rows, _PIECE):
        random = np.random.default_rng([seed, first // _PIECE])
        size = (min(_PIECE, num_rows - first), embedding_size)
        yield first, INITIAL_DEVIATION * random.standard_normal(size, dtype=np.float32)


def _gathered(value):
    return all_gather(value) if tf.is_tensor(value) and value.shape.rank else value
