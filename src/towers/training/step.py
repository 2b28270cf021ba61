"""The training step: the only training tape of the project.

A script differs from another by its objective, a function of (network, batch) that returns this tower's own losses.
"""

import time
from collections.abc import Callable
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from ..distribution import Towers
from .averaging import WeightAverage
from .loss_scale import LossScale
from .optimizers import apply_updates


class TowerLosses(NamedTuple):
    """What an objective returns for the examples of one tower.

    Attributes:
      losses: [b], the values whose sum is differentiated.
      weights: [b], their shares of the divisor: ones, or the number of active triplets of an anchor.
      metrics: name -> scalar, this tower's mean; logged as ``tower_<index>/<name>``.
      commits: functions of ``keep`` (a scalar bool) that update state beside the weights, such as class centres; they
        run after the finite check and must leave everything as it is where ``keep`` is false.
    """

    losses: tf.Tensor
    weights: tf.Tensor
    metrics: dict[str, tf.Tensor]
    commits: tuple[Callable[[tf.Tensor], None], ...] = ()


Objective = Callable[[keras.Model, dict[str, tf.Tensor]], TowerLosses]


def make_train_step(
    towers: Towers,
    network: keras.Model,
    objective: Objective,
    optimizer: keras.optimizers.Optimizer,
    *,
    variables: list,
    decayed: list,
    statistics: list,
    weight_decay: float = 0.0,
    clip_norm: float = 0.0,
    average: WeightAverage | None = None,
    loss_scale: LossScale | None = None,
    time_towers: bool = False,
) -> Callable:
    """Make the function of (batch, step, learning rate) that trains every tower by one step.

    The gradients are those of (sum of all losses) / (sum of all weights), whatever the number of towers. Where a loss
    or a gradient of any tower is not finite, no tower changes anything.

    Args:
      variables: the trainable variables, replicated on every tower.
      decayed: those of them that get ``weight_decay * variable`` added to their gradient, after clipping.
      statistics: moving statistics of BatchNormalization, averaged over the towers with the gradients.
      clip_norm: largest global norm of the gradient; 0: no clipping.
      time_towers: add ``compute_seconds`` (from the batch to the gradients) and ``reduce_seconds`` (from then until the
        sums over the towers are there, waiting for slower towers included) to the values of each tower.

    Returns:
      A function whose results are ({name: [R]}, {name: scalar}): values of each tower, and those shared by all.
    """
    decayed_ids = {id(variable) for variable in decayed}

    def tower_step(batch, step, learning_rate):
        if time_towers:
            started = _time_after([batch["label"]])
            with tf.control_dependencies([started]):
                batch = {name: tf.identity(value) for name, value in batch.items()}
        statistics_before = [tf.identity(variable.value) for variable in statistics]
        with tf.GradientTape() as tape:
            own = objective(network, batch)
            own_loss = tf.reduce_sum(own.losses)
            target = own_loss if loss_scale is None else own_loss * tf.cast(loss_scale.value(), own_loss.dtype)
        gradients = tape.gradient(
            target, [variable.value for variable in variables], unconnected_gradients=tf.UnconnectedGradients.ZERO
        )
        if time_towers:
            computed = _time_after(gradients)
        own_weight = tf.cast(tf.reduce_sum(own.weights), own_loss.dtype)
        sums = towers.sum_gradients(
            [*gradients, *(tf.identity(variable.value) for variable in statistics), own_loss, own_weight]
        )
        loss, weight = sums[-2:]
        divisor = weight if loss_scale is None else weight * tf.cast(loss_scale.value(), weight.dtype)
        gradients = [
            tf.math.divide_no_nan(gradient, tf.cast(divisor, gradient.dtype)) for gradient in sums[: len(variables)]
        ]
        norm = tf.linalg.global_norm(gradients)
        keep = tf.math.is_finite(norm) & tf.math.is_finite(loss)
        if clip_norm:
            gradients = [gradient * (clip_norm / tf.maximum(norm, clip_norm)) for gradient in gradients]
        if weight_decay:
            gradients = [
                gradient + weight_decay * variable.value if id(variable) in decayed_ids else gradient
                for gradient, variable in zip(gradients, variables, strict=True)
            ]
        apply_updates(optimizer, gradients, variables, learning_rate, keep)
        means = (total / towers.num_towers for total in sums[len(variables) : -2])
        for variable, mean, before in zip(statistics, means, statistics_before, strict=True):
            variable.assign(tf.where(keep, mean, before))
        if average is not None:
            average.update(step, keep)
        if loss_scale is not None:
            loss_scale.update(keep)
        for commit in own.commits:
            commit(keep)
        per_tower = {"loss": tf.math.divide_no_nan(own_loss, own_weight), **own.metrics}
        if time_towers:
            reduced = _time_after([computed, *sums])
            per_tower |= {"compute_seconds": computed - started, "reduce_seconds": reduced - computed}
        shared = {"loss": tf.math.divide_no_nan(loss, weight), "gradient_norm": norm, "finite": keep}
        return per_tower, shared

    @tf.function(autograph=False)
    def train_step(batch, step, learning_rate):
        per_tower, shared = towers.run(tower_step, batch, step, learning_rate)
        return (
            {name: towers.stack(value) for name, value in per_tower.items()},
            {name: towers.local_values(value)[0] for name, value in shared.items()},
        )

    return train_step


def _time_after(tensors: list[tf.Tensor]) -> tf.Tensor:
    """Seconds on a clock once ``tensors`` are computed.

    ``tf.timestamp`` will not do: TensorFlow runs such ops of all towers one after the other.
    """
    with tf.device("/CPU:0"):
        first_values = tf.concat([tf.cast(tf.reshape(tensor, [-1])[:1], tf.float64) for tensor in tensors], axis=0)
        seconds = tf.numpy_function(
            lambda _: np.float64(time.perf_counter()), [first_values], tf.float64, stateful=False
        )
    return tf.ensure_shape(seconds, [])
