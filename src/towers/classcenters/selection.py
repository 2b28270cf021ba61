"""Which classes a batch is trained against: all its own, then those that come nearest to its features."""

import math
import threading
from typing import NamedTuple

import numpy as np

from .indexes.ranking import best_distinct, unit


class Settings(NamedTuple):
    """What may change while a run goes on.

    Attributes:
      num_selected: S, classes of a step.
      breadth: trees of a forest, or cells that a query looks into.
      interval: steps between rebuilds of the index.
    """

    num_selected: int
    breadth: int
    interval: int


class Measured(NamedTuple):
    """How good a selection was.

    Attributes:
      recall: share of the exact selection that was in it, the labels not counted.
      mass: mean over the batch of the softmax probability, over all classes, of the selected ones.
    """

    recall: float
    mass: float


class Selector:
    """Chooses the classes of a step by an index that may be exchanged at any time.

    Args:
      num_classes: C.
      seed: of the classes that are drawn where the index finds too few.
      normalised: compare directions (cosine), as heads with margins do; else inner products.

    Attributes:
      index: built from the class centres, unit ones where ``normalised``; None: classes are drawn at random.
    """

    def __init__(self, num_classes: int, *, seed: int = 0, normalised: bool = True, index=None):
        self.num_classes = num_classes
        self.seed = seed
        self.normalised = normalised
        self.index = index
        # Which classes are the batch's own, while one thread has the lock: faster than to search a list of them.
        self._is_own, self._lock = np.zeros(num_classes, bool), threading.Lock()

    def select(
        self, features: np.ndarray, labels: np.ndarray, num_selected: int, *, step: int = 0
    ) -> tuple[np.ndarray, np.ndarray]:
        """Choose S = min(C, max(num_selected, number of distinct labels)) classes for a batch.

        Args:
          features: [B, D], or the centres of the labels.
          labels: int64 [B].
          step: with the seed, what the random classes are a function of.

        Returns:
          rows: int64 [S], each class once: the distinct labels in increasing order, then the classes with the largest
            score over all features, best first, then random ones where there were too few.
          local labels: int64 [B], the place of each label in rows.
        """
        labels = np.asarray(labels)
        if labels.size and not (0 <= labels.min() and labels.max() < self.num_classes):
            raise ValueError(f"labels lie in [{labels.min()}, {labels.max()}], classes in [0, {self.num_classes})")
        own, local = np.unique(labels, return_inverse=True)
        own = own.astype(np.int64)
        room = min(num_selected, self.num_classes) - len(own)
        if room <= 0:
            return own, local
        near = np.zeros(0, np.int64) if self.index is None else self._near(features, own, room)
        fill = _random_others(
            np.concatenate([own, near]), room - len(near), self.num_classes, np.random.default_rng([self.seed, step])
        )
        return np.concatenate([own, near, fill]), local

    def _near(self, features, own, room):
        """At most ``room`` classes outside ``own`` (increasing) by their largest score, best first."""
        index = self.index
        queries = unit(features) if self.normalised else np.asarray(features, np.float32)
        if hasattr(index, "best"):
            return self._outside(own, index.best(queries, room + len(own))[0])[:room]
        most = min(self.num_classes, room + len(own))
        k, before = min(most, 2 * math.ceil(most / len(queries))), -1
        while True:
            rows, scores = index.search(queries, k)
            found = rows >= 0
            near = self._outside(own, best_distinct(rows[found], scores[found])[0])
            # Features that lie close to each other find the same classes, so that each must find more.
            if len(near) >= room or k == most or len(near) == before:
                return near[:room]
            k, before = min(most, 4 * k), len(near)

    def _outside(self, own, rows):
        """The ``rows`` that are not among ``own``."""
        with self._lock:
            self._is_own[own] = True
            outside = rows[~self._is_own[rows]]
            self._is_own[own] = False
        return outside


def _random_others(taken, count, num_classes, random):
    """``count`` classes outside ``taken``, in random order, each once."""
    if count == 0:
        return np.zeros(0, np.int64)
    if 2 * (len(taken) + count) > num_classes:
        free = np.ones(num_classes, bool)
        free[taken] = False
        return random.permutation(np.flatnonzero(free))[:count]
    # Fewer than half are taken: drawing again what was taken costs less than a list of all classes.
    found = np.zeros(0, np.int64)
    while len(found) < count:
        drawn = np.concatenate([found, random.integers(0, num_classes, 2 * count)])
        _, first = np.unique(drawn, return_index=True)
        drawn = drawn[np.sort(first)]
        found = drawn[~np.isin(drawn, taken)]
    return found[:count]


def measure(
    rows: np.ndarray, points: np.ndarray, queries: np.ndarray, labels: np.ndarray, scale: float = 1.0
) -> Measured:
    """Recall and captured probability mass of a selection, against all classes.

    Args:
      rows: [S], the selection for ``queries`` and ``labels``.
      points: [C, D], queries: [B, D], as the index compares them.
      scale: what scores are multiplied by to give logits.
    """
    largest = np.full(len(points), -np.inf, np.float32)
    total = np.full(len(queries), -np.inf)
    for start in range(0, len(points), 8192):
        scores = queries @ points[start : start + 8192].T
        largest[start : start + 8192] = scores.max(axis=0)
        total = np.logaddexp(total, _log_sum_exp(scale * scores.astype(np.float64)))
    selected = _log_sum_exp(scale * (queries @ points[rows].T).astype(np.float64))
    own = np.unique(labels)
    others = np.setdiff1d(rows, own)
    largest[own] = -np.inf
    if len(others):
        ideal = np.argpartition(largest, len(largest) - len(others))[len(largest) - len(others) :]
        recall = len(np.intersect1d(ideal, others)) / len(others)
    else:
        recall = 1.0
    return Measured(recall, float(np.exp(selected - total).mean()))


def _log_sum_exp(values):
    highest = values.max(axis=1)
    return highest + np.log(np.exp(values - highest[:, None]).sum(axis=1))


def steer(
    settings: Settings, measured: Measured, start: Settings, *, recall: float = 0.9, mass: float = 0.95
) -> Settings:
    """Settings for the time until the next measurement.

    A recall below its target widens the search by a half and halves the interval, one above the middle between the
    target and 1 narrows it by a tenth and lengthens the interval likewise. A mass below its target raises the number of
    selected classes by a half, one above that middle lowers it by a tenth. Each stays within a quarter and four times
    of what it was at the ``start``, so that no run becomes another one.
    """

    def scaled(value, first, factor):
        # Rounded away from where it is, so that small numbers move too.
        value = math.ceil(value * factor) if factor > 1 else math.floor(value * factor)
        return min(max(value, 1, first // 4), 4 * first)

    num_selected, breadth, interval = settings
    if measured.recall < recall:
        breadth, interval = scaled(breadth, start.breadth, 1.5), scaled(interval, start.interval, 0.5)
    elif measured.recall > (1 + recall) / 2:
        breadth, interval = scaled(breadth, start.breadth, 0.9), scaled(interval, start.interval, 1.1)
    if measured.mass < mass:
        num_selected = scaled(num_selected, start.num_selected, 1.5)
    elif measured.mass > (1 + mass) / 2:
        num_selected = scaled(num_selected, start.num_selected, 0.9)
    return Settings(num_selected, breadth, interval)
