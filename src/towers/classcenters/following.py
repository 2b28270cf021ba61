"""An index that follows its class centres: rebuilt in the background from a snapshot, then swapped."""

import threading
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from .indexes.ranking import unit
from .selection import Measured, Selector, measure

_PULLED_ROWS = 1 << 16


class Rebuild(NamedTuple):
    """What a rebuild found.

    Attributes:
      step: step of the snapshot's beginning.
      seconds: of the snapshot and of the building, until the swap.
      drift: mean distance that a centre went since the index before, on a thousand of them; None the first time.
      measured: of the selection for the batch given with the step, against all classes; None without a batch.
    """

    step: int
    seconds: float
    drift: float | None
    measured: Measured | None


def snapshot(store, name: str, *, normalised: bool, version: int | None = None) -> np.ndarray:
    """Rows [C, D] of a matrix, present ones or those of a version, pulled in pieces so that pushes go on meanwhile."""
    spec = store.spec(name)
    points = np.empty((spec.rows, spec.columns), np.float32)
    for start in range(0, spec.rows, _PULLED_ROWS):
        stop = min(start + _PULLED_ROWS, spec.rows)
        rows = store.pull(name, np.arange(start, stop), version)
        points[start:stop] = unit(rows) if normalised else rows
    return points


class Following:
    """Rebuilds the index of a selector every so many steps, in a thread, without making a step wait.

    Args:
      store, name: the matrix of class centres.
      selector: whose index is exchanged.
      build: function of (points, seed=, previous=) to an index.
      interval: steps between rebuilds; may be changed at any time.
      wait: finish a rebuild within ``at_step``, so that a run is the same every time. An index then comes from its
        snapshot alone, not from the one before, and the snapshot is kept: a resumed run builds from it again.
      scale: what scores are multiplied by to give logits, for the captured mass.
      found: called with each `Rebuild`, in the thread.

    Attributes:
      last: step of the last rebuild; None: there was none.
      points: with ``wait``, its snapshot [C, D].
    """

    def __init__(
        self,
        store,
        name: str,
        selector: Selector,
        build: Callable,
        *,
        interval: int,
        seed: int = 0,
        wait: bool = False,
        scale: float = 1.0,
        found: Callable[[Rebuild], None] = lambda rebuild: None,
    ):
        self.store, self.name, self.selector, self.build = store, name, selector, build
        self.interval, self.seed, self.wait, self.scale, self.found = interval, seed, wait, scale, found
        self._thread = None
        self._error = None
        self.last: int | None = None
        self.points: np.ndarray | None = None
        self._sample = None

    def due(self, step: int) -> bool:
        """Whether ``at_step`` has something to do: a rebuild to begin, or to tell what the last one failed with."""
        if self._thread is not None and self._thread.is_alive():
            return False
        return self._error is not None or self.last is None or step >= self.last + self.interval

    def at_step(self, step: int, features=None, labels=None, num_selected: int = 0) -> None:
        """Begin a rebuild if it is time and none is going on.

        Args:
          features, labels: a batch [B, D], [B] to measure the new index with.
          num_selected: number of classes selected for it.

        Raises:
          Whatever the last rebuild failed with.
        """
        if not self.due(step):
            return
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        self.last = step
        batch = None if features is None else (np.array(features), np.array(labels), num_selected)
        self._thread = threading.Thread(target=self._rebuild, args=(step, batch), daemon=True, name="index rebuild")
        self._thread.start()
        if self.wait:
            self.finish()

    def build_again(self) -> None:
        """Build the index that ``last`` and ``points`` tell of, after both were restored."""
        self.selector.index = self.build(self.points, seed=self.seed + self.last, previous=None)
        self._drift(self.points)

    def finish(self) -> None:
        """Wait for a rebuild that is going on, and raise what it failed with."""
        if self._thread is not None:
            self._thread.join()
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _rebuild(self, step, batch):
        try:
            started = time.perf_counter()
            # A step that waits for its rebuild also waits for what other clients have pushed before it.
            version = self.store.version(self.name) if self.wait else None
            points = snapshot(self.store, self.name, normalised=self.selector.normalised, version=version)
            index = self.build(points, seed=self.seed + step, previous=None if self.wait else self.selector.index)
            self.points = points if self.wait else None
            self.selector.index = index
            seconds = time.perf_counter() - started
            self.found(Rebuild(step, seconds, self._drift(points), self._measured(points, batch, step)))
        except Exception as error:
            self._error = error

    def _drift(self, points):
        chosen = np.linspace(0, len(points) - 1, min(1000, len(points))).astype(np.int64)
        before, self._sample = self._sample, points[chosen]
        return None if before is None else float(np.linalg.norm(self._sample - before, axis=1).mean())

    def _measured(self, points, batch, step):
        if batch is None:
            return None
        features, labels, num_selected = batch
        rows, _ = self.selector.select(features, labels, num_selected, step=step)
        queries = unit(features) if self.selector.normalised else features.astype(np.float32)
        return measure(rows, points, queries, labels, self.scale)
