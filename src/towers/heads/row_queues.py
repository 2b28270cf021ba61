"""Rows of class weights on their way from the host to the towers, while the towers are already at work."""

import numpy as np
import tensorflow as tf

from ..distribution import Towers


class RowQueues:
    """One place for each tower, which the host fills once a step and the step's graph empties.

    A graph that comes first waits there, without Python and without another tower; what does not need the rows, such as
    the network, runs meanwhile.

    Args:
      columns: D.
      dtype: of the weights.
      clock: the graph may read it, which op determinism forbids.
    """

    def __init__(self, towers: Towers, columns: int, dtype: str, *, clock: bool):
        self.columns, self.clock = columns, clock
        with tf.device("/CPU:0"):
            self._queues = [tf.queue.FIFOQueue(1, [dtype, tf.int64]) for _ in towers.device_names]
            self._needed = [tf.Variable(0.0, trainable=False, dtype=tf.float64) for _ in towers.device_names]

    def put(self, parts: list[tuple[np.ndarray, np.ndarray]]) -> None:
        """Give each tower its weights [S, D] and their classes int64 [S]."""
        for queue, part in zip(self._queues, parts, strict=True):
            queue.enqueue(part)

    def take(self, tower: int) -> tuple[tf.Tensor, tf.Tensor]:
        """In the graph: what was put there for the tower, once it is there."""
        with tf.device("/CPU:0"):
            weights, classes = self._queues[tower].dequeue()
        # One copy to the tower's device, whatever uses them there.
        return tf.ensure_shape(tf.identity(weights), [None, self.columns]), tf.ensure_shape(classes, [None])

    def note_need(self, tower: int, features: tf.Tensor) -> None:
        """In the graph: write down when a tower has its features, and so needs the rows; nothing without a clock."""
        if not self.clock:
            return
        with tf.device("/CPU:0"), tf.control_dependencies([tf.identity(features[:1, 0])]):
            self._needed[tower].assign(tf.timestamp())

    def needed(self) -> list[float]:
        """When each tower last needed its rows, seconds since 1970; 0 where it was not written down."""
        return [float(one.numpy()) for one in self._needed]

    def close(self) -> None:
        """Let the graphs that wait fail, since nothing will come: with ``tf.errors.OutOfRangeError``."""
        for queue in self._queues:
            queue.close()
