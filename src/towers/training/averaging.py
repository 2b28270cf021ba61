"""Exponential moving average of the trained weights: kept while training, used for validation and export."""

from contextlib import contextmanager

import tensorflow as tf


class WeightAverage:
    """Averages of ``variables``, one set on every tower; make it inside the towers' scope.

    The decay of step s is min(decay, (1 + s) / (10 + s)), so that the first steps do not weigh on short runs: the rule
    of TensorFlow 1's ExponentialMovingAverage, which facenet used.

    Args:
      variables: variables with a unique ``path``.
      decay: share of the old average that a step keeps, 0 < decay < 1.
    """

    def __init__(self, variables: list, decay: float):
        self.decay = decay
        self.sources = list(variables)
        self.averages = [
            tf.Variable(source.value, trainable=False, name=f"average_{index}")
            for index, source in enumerate(self.sources)
        ]

    def update(self, step: tf.Tensor, keep: tf.Tensor) -> None:
        """Inside ``Towers.run``: take in the weights after ``step`` (from 0) where ``keep`` is true."""
        count = tf.cast(step, tf.float64)
        decay = tf.minimum(tf.constant(self.decay, tf.float64), (1 + count) / (10 + count))
        share = tf.where(keep, 1 - decay, tf.zeros([], tf.float64))
        for average, source in zip(self.averages, self.sources, strict=True):
            average.assign_add(tf.cast(share, average.dtype) * (source.value - average))

    def variables(self) -> dict:
        """Path of each averaged variable -> its average."""
        return {source.path: average for source, average in zip(self.sources, self.averages, strict=True)}

    @contextmanager
    def in_use(self):
        """The averages stand in for the weights inside the block; afterwards the weights are back, bit for bit."""
        weights = [source.numpy().copy() for source in self.sources]
        for source, average in zip(self.sources, self.averages, strict=True):
            source.assign(average.numpy())
        try:
            yield
        finally:
            for source, weight in zip(self.sources, weights, strict=True):
                source.assign(weight)
