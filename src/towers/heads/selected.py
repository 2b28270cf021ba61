"""A head whose classes are held by a store, and of which a step sees the few that matter (HF-Softmax).

Zhang, Yang, Yan and Lin, "Accelerated Training for Massive Classification via Dynamic Class Selection" (AAAI 2018).
Queried by the centres of the labels, the rows of a step are chosen and pulled before it, and no Python runs inside the
graph. Queried by the features, as in the paper, each tower asks the host once they are there: the first to ask has the
classes chosen from the features of all towers, and none waits for another to ask. Gradients are pushed after the step.
The selected rows are split over the towers like those of `sharded.ShardedHead`, whose softmax this head shares.
"""

import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from functools import partial
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from ..classcenters.following import Following, Rebuild
from ..classcenters.selection import Selector, Settings, steer
from ..distribution import Towers, tower_index
from ..errors import UserError
from ..losses.margin import LogitForm
from .sharded import Rows, ShardedHead
from .stored_rows import StoredRows

QUERIES = ("center", "features")


class Choice(NamedTuple):
    """Classes chosen for a batch: its labels [B], and ``classes`` [S], increasing."""

    labels: np.ndarray
    classes: np.ndarray


class SelectedHead(ShardedHead):
    """Class weights [C, D] in the matrix ``name`` of a store, which also holds their update rule.

    Use ``around(train_step)`` for the step, and ``follow(batches)`` to search the next batch's classes meanwhile.

    Args:
      store: `classcenters.store.Store`, or `classcenters.remote.RemoteStore`.
      name: of the matrix, [C, D]; ``form``: how logits come from features and weights.
      query: ``center``: classes near the centres of the batch's labels, as they are when the batch is looked at;
        ``features``: near the embeddings of the batch, which must come to ``classify`` whole.
      settings: number of selected classes, breadth of the search, and steps between rebuilds of the index.
      build: function of (points, seed=, previous=, breadth=) to an index; None: classes are drawn at random.
      adaptive: steer the settings by what each rebuild measures.
      wait: finish each rebuild within its step, so that a run repeats exactly.
      dtype: that the towers compute in, float32 or float64; the store holds float32.
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
        query: str = "center",
        build: Callable | None = None,
        adaptive: bool = False,
        wait: bool = False,
        seed: int = 0,
        dtype: str = "float32",
        found: Callable[[Rebuild], None] = lambda rebuild: None,
    ):
        if form.sub_centres != 1:
            raise UserError("--sub_centres: the selected head has one centre a class; choose --head sharded for more")
        if query not in QUERIES:
            raise ValueError(f"query is {query!r}; choose one of {', '.join(QUERIES)}")
        spec = store.spec(name)
        self.query, self.dtype = query, np.dtype(dtype)
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
        self._step, self._parts, self._num_zeros = 0, [], 0
        # What the first tower of a step to ask found, for the others too: rows of each tower, or an error.
        self._asked = threading.Lock()
        self._answer: list[tuple[np.ndarray, np.ndarray]] | None = None
        self._failure: Exception | None = None
        self._weights, self._classes, self._gradients, self._kept = [], [], [], []
        for device in towers.device_names:
            with tf.device(device):
                empty = tf.zeros((0, spec.columns), dtype)
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
        """Inside ``Towers.run``: this tower's part of the rows that were put there before the step.

        With ``query="features"`` zeros stand for them, which `classify` adds to the rows that it finds: so the step has
        the rows' gradient, though it does not know them before the features.
        """
        tower = tower_index()
        classes = self._classes[tower].read_value()
        return Rows(self._weights[tower].read_value(), classes, classes)

    def apply(self, rows: Rows, gradient: tf.Tensor, learning_rate: tf.Tensor, keep: tf.Tensor) -> None:
        """Inside ``Towers.run``: leave the gradient where the host fetches it after the step."""
        tower = tower_index()
        self._gradients[tower].assign(gradient)
        self._kept[tower].assign(keep)

    def around(self, train_step: Callable) -> Callable:
        """The step with the pull of its rows before it and the push of their gradients after it."""

        def selected_step(batch, step, learning_rate):
            self._begin(self._labels_of(batch), int(step))
            try:
                results = train_step(batch, step, learning_rate)
            except tf.errors.OpError as error:
                # TensorFlow keeps only the text of what a Python function raises.
                if self._failure is None:
                    raise
                raise self._failure from error
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
            if after is not None and self.query == "center":
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
        places = tf.searchsorted(rows.positives, labels, out_type=tf.int64)
        last = tf.maximum(tf.size(rows.positives, tf.int64) - 1, 0)
        here = tf.gather(rows.positives, tf.minimum(places, last)) == labels
        return tf.where(here, places, tf.constant(-1, tf.int64))

    def _rows_for(self, rows, features, labels):
        if self.query == "center":
            return rows
        with tf.device("/CPU:0"):
            weights, classes = tf.numpy_function(
                partial(self._ask, tower_index()), [features, labels], [self.dtype, tf.int64]
            )
        weights = tf.ensure_shape(weights, [None, self.embedding_size]) + rows.weights
        classes = tf.ensure_shape(classes, [None])
        return Rows(weights, classes, classes)

    def _own_classes(self):
        return -(-self.num_sampled // self.towers.num_towers)

    def _labels_of(self, batch):
        return np.concatenate([part.numpy() for part in self.towers.local_values(batch["label"])])

    def _centres(self, labels):
        return self.store.pull(self.name, np.unique(labels))

    def _num_selected(self):
        return max(self.settings.num_selected, self.towers.num_towers)

    def _choose(self, labels, queries, step):
        classes, _ = self.selector.select(queries, labels, self._num_selected(), step=step)
        return Choice(labels, np.sort(classes))

    def _begin(self, labels, step):
        self._step = step
        if self.query == "features":
            self._answer = self._failure = None
            count = min(self.num_classes, max(self._num_selected(), len(np.unique(labels))))
            if count != self._num_zeros:
                self._num_zeros = count
                for weights, part in zip(self._weights, self._split(np.zeros(count)), strict=True):
                    weights.assign(np.zeros((len(part), self.embedding_size), self.dtype))
            return
        choice, self._ahead = (None if self._ahead is None else self._ahead.result()), None
        if self._following is not None and self._following.due(step):
            self._rebuild(step, self._centres(labels), labels)
        if choice is None or not np.array_equal(choice.labels, labels):
            choice = self._choose(labels, self._centres(labels), step)
        for weights, classes, part in zip(self._weights, self._classes, self._pulled(choice.classes), strict=True):
            weights.assign(part[0])
            classes.assign(part[1])

    def _ask(self, tower, features, labels):
        """The rows of a tower and their classes, for the features [B, D] of all towers; called inside the graph."""
        with self._asked:
            if self._failure is not None:
                raise self._failure
            if self._answer is None:
                try:
                    if self._following is not None and self._following.due(self._step):
                        self._rebuild(self._step, features, labels)
                    self._answer = self._pulled(self._choose(labels, features, self._step).classes)
                except Exception as error:
                    self._failure = error
                    raise
        return self._answer[tower]

    def _rebuild(self, step, queries, labels):
        self._following.interval = self.settings.interval
        self._following.at_step(step, queries, labels, self.settings.num_selected)

    def _pulled(self, classes):
        """Of each tower: its part of the rows of the classes, and these."""
        self._parts = self._split(classes)
        values = self.store.pull(self.name, classes, self.store.version(self.name)).astype(self.dtype, copy=False)
        return list(zip(self._split(values), self._parts, strict=True))

    def _split(self, array):
        return np.array_split(array, self.towers.num_towers)

    def _end(self, learning_rate):
        if self._kept[0].numpy():
            gradient = np.concatenate([part.numpy() for part in self._gradients])
            self.store.push(self.name, np.concatenate(self._parts), gradient, learning_rate)

    def _take_measure(self, rebuild):
        if self.adaptive and rebuild.measured is not None:
            self.settings = steer(self.settings, rebuild.measured, self._first_settings)
        self._rebuilt(rebuild)
