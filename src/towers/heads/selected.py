"""A head whose classes are held by a store, and of which a step sees the few that matter (HF-Softmax).

Zhang, Yang, Yan and Lin, "Accelerated Training for Massive Classification via Dynamic Class Selection" (AAAI 2018).
A thread beside the steps pulls the rows of a step once the gradients of the step before have been pushed, so that every
row is what it would be without the thread. Queried by the centres of the labels, the network meanwhile runs, and no
Python is inside the graph. Queried by the features, as in the paper, each tower asks the host once they are there: the
first to ask has the classes chosen from the features of all towers, and none waits for another to ask.
The selected rows are split over the towers like those of `sharded.ShardedHead`, whose softmax this head shares.
Of several processes the chief chooses for all, so that their choices cannot differ; each is a client of the servers,
which pulls and pushes the rows of its own towers.
"""

import threading
import time
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
from .row_queues import RowQueues
from .sharded import Rows, ShardedHead
from .stored_rows import HostNumbers, IndexedRows, StoredRows

QUERIES = ("center", "features")
# What the processes tell each other beside the steps, in whichever thread chooses the classes.
_TOPIC = "class selection"


class Choice(NamedTuple):
    """Classes chosen for a batch, the same in all processes.

    Attributes:
      own_labels: of the towers of this process; ``labels``: [B], of all.
      classes: [S], increasing; ``began``, ``ended``: when they were chosen, seconds since 1970.
    """

    own_labels: np.ndarray
    labels: np.ndarray
    classes: np.ndarray
    began: float
    ended: float


class SelectedHead(ShardedHead):
    """Class weights [C, D] in the matrix ``name`` of a store, which also holds their update rule.

    Use ``around(train_step)`` for the step, and ``follow(batches)`` to search the next batch's classes meanwhile.

    Args:
      store: `classcenters.store.Store`, or `classcenters.remote.RemoteStore`, which several processes need.
      name: of the matrix, [C, D]; ``form``: how logits come from features and weights.
      query: ``center``: classes near the centres of the batch's labels, as they are when the batch is looked at;
        ``features``: near the embeddings of the batch, which must come to ``classify`` whole.
      settings: number of selected classes, breadth of the search, and steps between rebuilds of the index.
      build: function of (points, seed=, previous=, breadth=) to an index; None: classes are drawn at random.
      adaptive: steer the settings by what each rebuild measures.
      wait: finish each rebuild within its step, and choose classes by the centres of that step, so that a run, also one
        that is resumed, repeats exactly; the store must be an eager one for that.
      dtype: that the towers compute in, float32 or float64; the store holds float32.
      found: called with each `Rebuild`.

    Raises:
      UserError: sub-centres, which the selection does not know.
    """

    # Of the classes of a step, among which it is easier to be right than among all.
    accuracy_name = "selected_accuracy"

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
        self.towers, self.store, self.name, self.form = towers, store, name, form
        self.processes = towers.processes
        self.query, self.dtype = query, np.dtype(dtype)
        self.num_classes, self.embedding_size = spec.rows, spec.columns
        self.settings, self._first_settings, self.adaptive, self.wait = settings, settings, adaptive, wait
        # Of the present index: steering changes the settings for the next one.
        self._breadth = settings.breadth
        # The largest that steering can reach bounds the chunks of the softmax.
        self.num_sampled = min(spec.rows, 4 * settings.num_selected if adaptive else settings.num_selected)
        self.selector = Selector(spec.rows, seed=seed, normalised=form.normalised)
        self._following, self._rebuilt = None, found
        if build is not None:
            self._following = Following(
                store,
                name,
                self.selector,
                lambda points, **arguments: build(points, breadth=self._breadth, **arguments),
                interval=settings.interval,
                seed=seed,
                wait=wait,
                scale=form.scale,
                found=self._take_measure,
            )
        # One thread: pulls, searches and pushes come in the order of the steps, whatever their pace.
        self._thread = futures.ThreadPoolExecutor(1, thread_name_prefix="class selection")
        self._last: futures.Future | None = None
        self._failure: Exception | None = None
        self._queues = RowQueues(towers, spec.columns, dtype, clock=not wait)
        self._next_labels: np.ndarray | None = None
        self._ahead: Choice | None = None
        self._step, self._parts, self._num_zeros = 0, [], 0
        self._num_rows = 0
        # What the first tower of a step to ask found, for the others too.
        self._asking = threading.Lock()
        self._answer: list[tuple[np.ndarray, np.ndarray]] | None = None
        # Of the last step: its choice, and when each tower needed its rows and had them.
        self._choice: Choice | None = None
        self._needed, self._given = [0.0] * len(towers.device_names), [0.0] * len(towers.device_names)
        self._zeros, self._gradients, self._kept = [], [], []
        for device in towers.device_names:
            with tf.device(device):
                empty = tf.zeros((0, spec.columns), dtype)
                self._zeros.append(tf.Variable(empty, shape=(None, spec.columns), trainable=False))
                self._gradients.append(tf.Variable(empty, shape=(None, spec.columns), trainable=False))
                self._kept.append(tf.Variable(False, trainable=False))

    def variables(self) -> dict[str, StoredRows | IndexedRows | HostNumbers]:
        """Name -> what a checkpoint holds: the matrix in pieces, and for exact resumption settings and index."""
        found = {"head/weights": self._stored_rows(0)}
        if self.store.spec(self.name).has_slot:
            found["head/slot"] = self._stored_rows(1)
        if self.adaptive:
            found["head/settings"] = HostNumbers(3, lambda: self.settings, self._take_settings)
        following = self._following
        if self.wait and following is not None:
            shape = self.num_classes, self.embedding_size
            found["head/indexed"] = IndexedRows(following, *shape, is_chief=self.processes.is_chief)
            found["head/indexed_at"] = HostNumbers(2, lambda: (following.last or 0, self._breadth), self._take_index)
        return found

    def prepare(self, labels: tf.Tensor, step: tf.Tensor) -> Rows:
        """Inside ``Towers.run``: this tower's part of the rows that the host puts there for the step.

        With ``query="features"`` zeros stand for them, which `classify` adds to the rows that it finds: so the step has
        the rows' gradient, though it does not know them before the features.
        """
        tower = self._own_tower()
        if self.query == "features":
            return Rows(self._zeros[tower].read_value())
        weights, classes = self._queues.take(tower)
        return Rows(weights, classes)

    def apply(self, rows: Rows, gradient: tf.Tensor, learning_rate: tf.Tensor, keep: tf.Tensor) -> None:
        """Inside ``Towers.run``: leave the gradient where the host fetches it after the step."""
        tower = self._own_tower()
        self._gradients[tower].assign(gradient)
        self._kept[tower].assign(keep)

    def around(self, train_step: Callable) -> Callable:
        """The step with the pull of its rows and the push of their gradients beside it; all processes call it alike.

        Its results also have ``selection_wait_seconds`` and ``server_wait_seconds`` [R], how long each tower had its
        features and waited for the choice of classes, and for the store. With ``wait`` and ``query="center"`` the time
        of the features is not known, and all since the step began counts.
        """

        def selected_step(batch, step, learning_rate):
            labels, step_number, began = self._labels_of(batch), int(step), time.time()
            if self.query == "features":
                self._expect(labels, step_number)
            else:
                self._beside(self._send, labels, step_number)
                if self._next_labels is not None:
                    self._beside(self._look_ahead, self._next_labels, step_number + 1)
            try:
                per_tower, shared = train_step(batch, step, learning_rate)
            except tf.errors.OpError:
                # The graph only knows that nothing came, or the text of what a Python function raised.
                self._raise_failure()
                raise
            waits = self.processes.gather([one.tolist() for one in self._waits(began)])
            selection, store = np.concatenate(waits, axis=1)
            self._beside(self._push, self._parts, float(learning_rate))
            return per_tower | {"selection_wait_seconds": selection, "server_wait_seconds": store}, shared

        return selected_step

    def follow(self, batches: Iterator, first_step: int = 0) -> Iterator:
        """The batches, each given out with the next one's labels known, so that its classes are searched meanwhile.

        Raises:
          UserError: the store has made steps, and ``first_step`` is the first one.
        """
        version = self.store.version(self.name)
        if version and not first_step:
            raise UserError(
                f"--param_servers hold class centres of {version} steps, and this run begins with its first; start the "
                "servers anew, with another --directory, or resume the run that they belong to"
            )
        batches = iter(batches)
        batch = next(batches, None)
        while batch is not None:
            after = next(batches, None)
            looks_ahead = after is not None and self.query == "center" and not self.wait
            self._next_labels = self._labels_of(after) if looks_ahead else None
            yield batch
            batch = after

    def settle(self) -> None:
        """Wait until all gradients of this process are pushed. Raises whatever the thread has failed with."""
        if self._last is not None:
            self._last.result()
        self._raise_failure()

    def export(self) -> np.ndarray:
        """The class weights [C, D] in one array."""
        return np.concatenate([piece for _, piece in self._stored_rows(0).chunks()])

    def restore(self, weights) -> None:
        """Take over class weights [C, D]; their slots stay. Raises UserError for another shape."""
        self._stored_rows(0).assign(weights)

    def _stored_rows(self, which):
        return StoredRows(
            self.store,
            self.name,
            which,
            settle=self._settle_everywhere,
            written=self._take_over,
            is_chief=self.processes.is_chief,
        )

    def _settle_everywhere(self):
        self.settle()
        self.processes.gather(None)

    def _take_over(self):
        """After the chief has written rows: the other clients count their steps as the servers do now."""
        self.processes.gather(None)
        if not self.processes.is_chief:
            self.store.rejoin()

    def _raise_failure(self):
        if self._failure is not None:
            raise self._failure

    def _own_tower(self):
        """Number of the tower that is being traced, among those of this process."""
        return tower_index() - self.towers.local_towers[0]

    def _columns(self, labels, rows):
        places = tf.searchsorted(rows.places, labels, out_type=tf.int64)
        last = tf.maximum(tf.size(rows.places, tf.int64) - 1, 0)
        here = tf.gather(rows.places, tf.minimum(places, last)) == labels
        return tf.where(here, places, tf.constant(-1, tf.int64))

    def _rows_for(self, rows, features, labels):
        tower = self._own_tower()
        if self.query == "center":
            self._queues.note_need(tower, features)
            return rows
        with tf.device("/CPU:0"):
            weights, classes = tf.numpy_function(partial(self._ask, tower), [features, labels], [self.dtype, tf.int64])
        weights = tf.ensure_shape(weights, [None, self.embedding_size]) + rows.weights
        classes = tf.ensure_shape(classes, [None])
        return Rows(weights, classes)

    def _own_classes(self):
        return -(-self.num_sampled // self.towers.num_towers)

    def _labels_of(self, batch):
        return np.concatenate([part.numpy() for part in self.towers.local_values(batch["label"])])

    def _of_all(self, own_labels):
        return np.concatenate(self.processes.gather(own_labels.tolist(), _TOPIC)).astype(np.int64)

    def _centres(self, labels):
        return self.store.pull(self.name, np.unique(labels), self.store.version(self.name))

    def _num_selected(self):
        return max(self.settings.num_selected, self.towers.num_towers)

    def _own_parts(self, array):
        """Of an array over all towers: the part of each tower of this process."""
        parts = np.array_split(array, self.towers.num_towers)
        return [parts[tower] for tower in self.towers.local_towers]

    def _beside(self, function, *arguments):
        """Have the thread call ``function`` after all that it was given before."""
        self._last = self._thread.submit(self._call, function, *arguments)

    def _call(self, function, *arguments):
        if self._failure is None:
            try:
                function(*arguments)
            except Exception as error:
                self._failure = error
                self._queues.close()

    def _send(self, own_labels, step):
        choice, self._ahead, began = self._ahead, None, time.time()
        if choice is not None and not np.array_equal(choice.own_labels, own_labels):
            choice = None
        labels = self._of_all(own_labels) if choice is None else choice.labels
        self._follow_centres(step, lambda: self._centres(labels), labels)
        if choice is None:
            choice = self._choose(own_labels, labels, lambda: self._centres(labels), step, self._num_selected())
            choice = choice._replace(began=began)
        self._queues.put(self._pulled(choice))

    def _look_ahead(self, own_labels, step):
        labels = self._of_all(own_labels)
        self._ahead = self._choose(own_labels, labels, lambda: self._centres(labels), step, self._num_selected())

    def _push(self, parts, learning_rate):
        if self._kept[0].numpy():
            # The servers take the mean over the processes, whose rows are different ones: their sum is the gradient.
            gradient = np.concatenate([part.numpy() for part in self._gradients]) * self.processes.num
            self.store.push(self.name, np.concatenate(parts), gradient, learning_rate)

    def _expect(self, own_labels, step):
        """Before a step that is queried by its features: as many zeros as it will have rows."""
        # Kept for the whole step: a rebuild that ends within it may change the settings. Only the chief's are steered.
        num_selected = self.processes.gather(self._num_selected(), _TOPIC)[0]
        self._num_rows = min(self.num_classes, max(num_selected, len(np.unique(self._of_all(own_labels)))))
        self._step, self._answer = step, None
        if self._num_rows != self._num_zeros:
            self._num_zeros = self._num_rows
            for zeros, part in zip(self._zeros, self._own_parts(np.zeros(self._num_zeros)), strict=True):
                zeros.assign(np.zeros((len(part), self.embedding_size), self.dtype))

    def _ask(self, tower, features, labels):
        """The rows of a tower and their classes, for the features [B, D] of all towers; called inside the graph."""
        asked = time.time()
        with self._asking:
            self.settle()
            if self._answer is None:
                try:
                    self._follow_centres(self._step, lambda: features, labels)
                    choice = self._choose(labels, labels, lambda: features, self._step, self._num_rows)
                    self._answer = self._pulled(choice)
                except Exception as error:
                    self._failure = error
                    raise
        self._needed[tower], self._given[tower] = asked, time.time()
        return self._answer[tower]

    def _follow_centres(self, step, queries, labels):
        """Begin a rebuild of the chief's index if it is time; ``queries`` are made then only."""
        if self._following is not None and self.processes.is_chief:
            if self._following.points is not None and self.selector.index is None:
                self._following.build_again()
            self._following.interval = self.settings.interval
            if self._following.due(step):
                self._breadth = self.settings.breadth
                self._following.at_step(step, queries(), labels, self.settings.num_selected)

    def _choose(self, own_labels, labels, queries, step, num_selected):
        """The chief's choice, in all processes; ``queries`` are made by the chief only."""
        began, classes = time.time(), None
        if self.processes.is_chief:
            classes = np.sort(self.selector.select(queries(), labels, num_selected, step=step)[0]).tolist()
        classes = np.array(self.processes.gather(classes, _TOPIC)[0], np.int64)
        return Choice(own_labels, labels, classes, began, time.time())

    def _pulled(self, choice):
        """Of each tower of this process: its part of the rows of the classes, and these."""
        parts = self._own_parts(choice.classes)
        values = self.store.pull(self.name, np.concatenate(parts), self.store.version(self.name))
        values = np.split(values.astype(self.dtype, copy=False), np.cumsum([len(part) for part in parts])[:-1])
        # Before the rows are out, or the step could be over first.
        self._parts, self._choice, self._given = parts, choice, [time.time()] * len(parts)
        return list(zip(values, parts, strict=True))

    def _waits(self, began):
        """Seconds [R] that each tower waited in the step that began then for the choice, and for the store."""
        needed = np.array(self._needed if self.query == "features" else self._queues.needed())
        needed = np.maximum(needed, began)
        given, choice = np.array(self._given), self._choice
        selection = np.minimum(given, choice.ended) - np.maximum(needed, choice.began)
        selection = np.maximum(selection, 0.0)
        return selection, np.maximum(given - needed, 0.0) - selection

    def _take_settings(self, numbers):
        self.settings = Settings(*numbers)

    def _take_index(self, numbers):
        self._following.last, self._breadth = numbers

    def _take_measure(self, rebuild):
        if self.adaptive and rebuild.measured is not None:
            self.settings = steer(self.settings, rebuild.measured, self._first_settings)
        self._rebuilt(rebuild)
