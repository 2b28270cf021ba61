"""A head whose classes are held by a store, and of which a step sees the few that matter (HF-Softmax).

Zhang, Yang, Yan and Lin, "Accelerated Training for Massive Classification via Dynamic Class Selection" (AAAI 2018).
The rows of a step are chosen and pulled before it and pushed after it, on the host; no Python runs inside the graph.
The selected rows are split over the towers like those of `sharded.ShardedHead`, whose softmax this head shares.
"""

from collections.abc import Callable, Iterator
from concurrent import futures
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from ..classcenters.following import Following, Rebuild
from ..classcenters.selection import Selector, Settings, steer
from ..distribution import Towers, tower_index
from ..errors import UserError
from ..losses.margin import LogitForm
from .sharded import Rows, ShardedHead

_PIECE = 16_384


class Choice(NamedTuple):
    """Classes chosen for a batch: its labels [B], and ``classes`` [S], increasing."""

    labels: np.ndarray
    classes: np.ndarray


class SelectedHead(ShardedHead):
    """Class weights [C, D] in the matrix ``name`` of a store, which also holds their update rule.

    Use ``around(train_step)`` for the step, and ``follow(batches)`` to search the next batch's classes meanwhile.
    Queries are the centres of the batch's labels, as they are when the batch is looked at.

    Args:
      store: `classcenters.store.Store`, or `classcenters.remote.RemoteStore`.
      name: of the matrix, [C, D]; ``form``: how logits come from features and weights.
      settings: number of selected classes, breadth of the search, and steps between rebuilds of the index.
      build: function of (points, seed=, previous=, breadth=) to an index; None: classes are drawn at random.
      adaptive: steer the settings by what each rebuild measures.
      wait: finish each rebuild within its step, so that a run repeats exactly.
      found: called with each `Rebuild`.

    Raises:
      UserError: sub-centres, which the selection does not know.
    """

    def __init__(
        self,
        towers: Towers,
        store,
        name: str,
        *,
        form: LogitForm,
        settings: Settings,
        build: Callable | None = None,
        adaptive: bool = False,
        wait: bool = False,
        seed: int = 0,
        found: Callable[[Rebuild], None] = lambda rebuild: None,
    ):
        if form.sub_centres != 1:
            raise UserError("--sub_centres: the selected head has one centre a class; choose --head sharded for more")
        spec = store.spec(name)
        self.towers, self.store, self.name, self.form = towers, store, name, form
        self.num_classes, self.embedding_size = spec.rows, spec.columns
        self.settings, self._first_settings, self.adaptive = settings, settings, adaptive
        # The largest that steering can reach bounds the chunks of the softmax.
        self.num_sampled = min(spec.rows, 4 * settings.num_selected if adaptive else settings.num_selected)
        self.selector = Selector(spec.rows, seed=seed, normalised=form.normalised)
        self._following, self._rebuilt = None, found
        if build is not None:
            self._following = Following(
                store,
                name,
                self.selector,
                lambda points, **arguments: build(points, breadth=self.settings.breadth, **arguments),
                interval=settings.interval,
                seed=seed,
                wait=wait,
                scale=form.scale,
                found=self._take_measure,
            )
        self._worker = futures.ThreadPoolExecutor(1, thread_name_prefix="class selection")
        self._ahead: futures.Future | None = None
        self._parts: list[np.ndarray] = []
        self._weights, self._classes, self._gradients, self._kept = [], [], [], []
        for device in towers.device_names:
            with tf.device(device):
                empty = tf.zeros((0, spec.columns))
                self._weights.append(tf.Variable(empty, shape=(None, spec.columns), name="head_rows"))
                self._gradients.append(tf.Variable(empty, shape=(None, spec.columns), trainable=False))
                self._classes.append(tf.Variable(tf.zeros(0, tf.int64), shape=(None,), trainable=False))
                self._kept.append(tf.Variable(False, trainable=False))

    def variables(self) -> dict[str, "StoredRows"]:
        """Name -> the matrix as one array in pieces, for checkpoints."""
        rows = {"head/weights": StoredRows(self.store, self.name, 0)}
        return rows | (
            {"head/slot": StoredRows(self.store, self.name, 1)} if self.store.spec(self.name).has_slot else {}
        )

    def prepare(self, labels: tf.Tensor, step: tf.Tensor) -> Rows:
        """Inside ``Towers.run``: this tower's part of the rows that were put there before the step."""
        tower = tower_index()
        classes = self._classes[tower].read_value()
        return Rows(self._weights[tower].read_value(), classes)

    def apply(self, rows: Rows, gradient: tf.Tensor, learning_rate: tf.Tensor, keep: tf.Tensor) -> None:
        """Inside ``Towers.run``: leave the gradient where the host fetches it after the step."""
        tower = tower_index()
        self._gradients[tower].assign(gradient)
        self._kept[tower].assign(keep)

    def around(self, train_step: Callable) -> Callable:
        """The step with the pull of its rows before it and the push of their gradients after it."""

        def selected_step(batch, step, learning_rate):
            self._begin(self._labels_of(batch), int(step))
            results = train_step(batch, step, learning_rate)
            self._end(float(learning_rate))
            return results

        return selected_step

    def follow(self, batches: Iterator, first_step: int = 0) -> Iterator:
        """The batches, each given out once the search for the classes of the one after it has begun."""
        batches = iter(batches)
        batch, step = next(batches, None), first_step
        while batch is not None:
            after = next(batches, None)
            ahead = None
            if after is not None:
                labels = self._labels_of(after)
                # The centres are read here and not in the thread, where they would depend on its pace.
                ahead = self._worker.submit(self._choose, labels, self._centres(labels), step + 1)
            yield batch
            self._ahead = ahead
            batch, step = after, step + 1

    def export(self) -> np.ndarray:
        """The class weights [C, D] in one array."""
        return np.concatenate([piece for _, piece in StoredRows(self.store, self.name, 0).chunks()])

    def restore(self, weights) -> None:
        """Take over class weights [C, D]; their slots stay. Raises UserError for another shape."""
        StoredRows(self.store, self.name, 0).assign(weights)

    def _columns(self, labels, rows):
        places = tf.searchsorted(rows.places, labels, out_type=tf.int64)
        last = tf.maximum(tf.size(rows.places, tf.int64) - 1, 0)
        here = tf.gather(rows.places, tf.minimum(places, last)) == labels
        return tf.where(here, places, tf.constant(-1, tf.int64))

    def _own_classes(self):
        return -(-self.num_sampled // self.towers.num_towers)

    def _labels_of(self, batch):
        return np.concatenate([part.numpy() for part in self.towers.local_values(batch["label"])])

    def _centres(self, labels):
        return self.store.pull(self.name, np.unique(labels))

    def _choose(self, labels, centres, step):
        num_selected = max(self.settings.num_selected, self.towers.num_towers)
        classes, _ = self.selector.select(centres, labels, num_selected, step=step)
        return Choice(labels, np.sort(classes))

    def _begin(self, labels, step):
        choice, self._ahead = (None if self._ahead is None else self._ahead.result()), None
        if self._following is not None:
            self._following.interval = self.settings.interval
            if self._following.due(step):
                self._following.at_step(step, self._centres(labels), labels, self.settings.num_selected)
        if choice is None or not np.array_equal(choice.labels, labels):
            choice = self._choose(labels, self._centres(labels), step)
        self._parts = np.array_split(choice.classes, self.towers.num_towers)
        values = self.store.pull(self.name, choice.classes, self.store.version(self.name))
        start = 0
        for weights, classes, part in zip(self._weights, self._classes, self._parts, strict=True):
            classes.assign(part)
            weights.assign(values[start : start + len(part)])
            start += len(part)

    def _end(self, learning_rate):
        if self._kept[0].numpy():
            gradient = np.concatenate([part.numpy() for part in self._gradients])
            self.store.push(self.name, np.concatenate(self._parts), gradient, learning_rate)

    def _take_measure(self, rebuild):
        if self.adaptive and rebuild.measured is not None:
            self.settings = steer(self.settings, rebuild.measured, self._first_settings)
        self._rebuilt(rebuild)


class StoredRows:
    """The weights (0) or the slot (1) of a matrix as one array [C, D]; stands for a variable in a checkpoint."""

    def __init__(self, store, name: str, which: int):
        self.store, self.name, self.which = store, name, which
        spec = store.spec(name)
        self.shape, self.dtype = (spec.rows, spec.columns), np.dtype(np.float32)
        self.nbytes = spec.rows * spec.columns * 4

    def chunks(self) -> Iterator[tuple[int, np.ndarray]]:
        """(first row, rows) of each piece in turn."""
        for first in range(0, self.shape[0], _PIECE):
            yield first, self.store.state(self.name, first, min(first + _PIECE, self.shape[0]))[self.which]

    def assign(self, array) -> None:
        """Take over anything that gives rows [C, D] by ``array[first:last]``; UserError for another shape."""
        if tuple(array.shape) != self.shape:
            raise UserError(
                f"head: the stored class weights have shape {tuple(array.shape)}, this run's {self.shape}; "
                "train with the same classes and embedding size, or start from the network alone"
            )
        for first in range(0, self.shape[0], _PIECE):
            last = min(first + _PIECE, self.shape[0])
            both = list(self.store.state(self.name, first, last))
            both[self.which] = np.asarray(array[first:last], np.float32)
            self.store.assign(self.name, first, *both)
        self.store.set_version(self.name, self.store.version(self.name))
