"""The training step: the only training tape of the project.

A script differs from another by its objective, a function of (network, batch) that returns this tower's own losses.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple, Protocol

import keras
import numpy as np
import tensorflow as tf

from ..distribution import Towers, sum_over_towers
from .averaging import WeightAverage
from .loss_scale import LossScale
from .optimizers import apply_updates
from .thor import Thor


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


class Head(Protocol):
    """Class weights that are not alike on every tower: each tower differentiates and updates its own rows.

    Its rows are a tuple with the field ``weights``, the tensor [S, D] that the step's tape watches; an objective finds
    the tuple in its batch as ``rows``.
    """

    def prepare(self, labels: tf.Tensor, step: tf.Tensor) -> NamedTuple:
        """The rows that this tower needs for its labels [b] of this step."""

    def apply(self, rows: NamedTuple, gradient: tf.Tensor, learning_rate: tf.Tensor, keep: tf.Tensor) -> None:
        """Update the rows by the gradient [S, D] of the whole loss, or nothing where ``keep`` is false."""


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
    head: Head | None = None,
    accumulate: int = 1,
    thor: Thor | None = None,
) -> Callable:
    """Make the function of (batch, step, learning rate) that trains every tower by one step.

    The gradients are those of (sum of all losses) / (sum of all weights), whatever the number of towers. Where a loss
    or a gradient of any tower is not finite, no tower changes anything.

    Args:
      variables: the trainable variables, replicated on every tower.
      decayed: those of them that get ``weight_decay * variable`` added to their gradient, after clipping.
      statistics: moving statistics of BatchNormalization, averaged over the towers with the gradients.
      clip_norm: largest global norm of the gradient; 0: no clipping.
      head: class weights of its own kind; their gradient is not summed over the towers, but counts in the norm.
      accumulate: parts of a tower's batch that pass the network one after the other, so that memory is that of a part.
        The losses, and so the gradients, are those of the whole batch; BatchNormalization sees a part at a time.
      thor: preconditions the summed and clipped gradients, before weight decay; its statistics travel with them.
      time_towers: add ``compute_seconds`` (from the batch to the gradients) and ``reduce_seconds`` (from then until the
        sums over the towers are there, waiting for slower towers included) to the values of each tower.

    Returns:
      A function whose results are ({name: [R]}, {name: scalar}): values of each tower, and those shared by all; with
      ``thor`` these count the layers that were refreshed, and those where that failed.
    """
    decayed_ids = {id(variable) for variable in decayed}

    def differentiated(batch, rows, refresh):
        """TowerLosses of a tower's batch, their sum, its gradients by variables and rows' weights, and THOR's sums."""
        own, gradients, factors = [], None, []
        for part in _parts(batch, accumulate):
            # One after the other: the memory of a part is free before the next one takes it.
            with tf.control_dependencies(gradients or []):
                part = {name: tf.identity(value) for name, value in part.items()} if gradients else part
            with tf.GradientTape() as tape:
                sources = [variable.value for variable in variables]
                if rows is not None:
                    tape.watch(rows.weights)
                    part["rows"] = rows
                    sources.append(rows.weights)
                own.append(objective(thor.recording() if refresh else network, part))
                inputs, outputs = thor.recorded() if refresh else ([], [])
                own_loss = tf.reduce_sum(own[-1].losses)
                target = own_loss if loss_scale is None else own_loss * tf.cast(loss_scale.value(), own_loss.dtype)
            new = tape.gradient(target, [*sources, *outputs], unconnected_gradients=tf.UnconnectedGradients.ZERO)
            new, of_outputs = new[: len(sources)], new[len(sources) :]
            if refresh:
                more = thor.factor_sums(inputs, of_outputs)
                factors = [total + part for total, part in zip(factors, more, strict=True)] if factors else more
            gradients = new if gradients is None else [total + more for total, more in zip(gradients, new, strict=True)]
        own = _joined(own)
        return own, tf.reduce_sum(own.losses), gradients, factors

    def tower_step(batch, step, learning_rate, refresh):
        if time_towers:
            started = _time_after([batch["label"]])
            with tf.control_dependencies([started]):
                batch = {name: tf.identity(value) for name, value in batch.items()}
        statistics_before = [tf.identity(variable.value) for variable in statistics]
        rows = None if head is None else head.prepare(batch["label"], step)
        own, own_loss, gradients, factors = differentiated(batch, rows, refresh)
        if time_towers:
            computed = _time_after(gradients)
        gradients, row_gradients = gradients[: len(variables)], gradients[len(variables) :]
        own_weight = tf.cast(tf.reduce_sum(own.weights), own_loss.dtype)
        sums = towers.sum_gradients(
            [*gradients, *(tf.identity(variable.value) for variable in statistics), *factors, own_loss, own_weight]
        )
        factors, (loss, weight) = sums[len(variables) + len(statistics) : -2], sums[-2:]
        divisor = weight if loss_scale is None else weight * tf.cast(loss_scale.value(), weight.dtype)
        gradients = [
            tf.math.divide_no_nan(gradient, tf.cast(divisor, gradient.dtype)) for gradient in sums[: len(variables)]
        ]
        # Rows may be gigabytes: one multiplication of each value.
        share = tf.math.divide_no_nan(tf.ones([], divisor.dtype), divisor)
        row_gradients = [gradient * tf.cast(share, gradient.dtype) for gradient in row_gradients]
        norm = tf.linalg.global_norm(gradients)
        if head is not None:
            # One scalar tells every tower the size of all rows' gradients, and whether they are finite.
            squared = sum_over_towers(tf.square(tf.linalg.global_norm(row_gradients)))
            norm = tf.sqrt(tf.square(norm) + tf.cast(squared, norm.dtype))
        keep = tf.math.is_finite(norm) & tf.math.is_finite(loss)
        if clip_norm:
            gradients, row_gradients = (
                [gradient * tf.cast(clip_norm / tf.maximum(norm, clip_norm), gradient.dtype) for gradient in part]
                for part in (gradients, row_gradients)
            )
        if thor is not None:
            num_pictures = tf.size(batch["label"], tf.int64) * towers.num_towers
            inverses = thor.refreshed(factors, num_pictures, divisor, step) if refresh else thor.stored()
            gradients = thor.preconditioned(gradients, variables, inverses, learning_rate)
            keep &= tf.math.is_finite(tf.linalg.global_norm(gradients))
            if refresh:
                thor.store(inverses, keep)
        if weight_decay:
            gradients = [
                gradient + weight_decay * variable.value if id(variable) in decayed_ids else gradient
                for gradient, variable in zip(gradients, variables, strict=True)
            ]
        apply_updates(optimizer, gradients, variables, learning_rate, keep)
        if head is not None:
            head.apply(rows, row_gradients[0], learning_rate, keep)
        means = (total / towers.num_towers for total in sums[len(variables) : len(variables) + len(statistics)])
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
        if towers.processes.num > 1:
            per_tower = towers.of_all(per_tower)
        shared = {"loss": tf.math.divide_no_nan(loss, weight), "gradient_norm": norm, "finite": keep}
        if thor is not None:
            shared |= {"thor_refreshed": inverses.refreshed, "thor_failed": inverses.failed}
        return per_tower, shared

    # With several processes every tower has the values of all of them already.
    over_towers = towers.stack if towers.processes.num == 1 else lambda value: towers.local_values(value)[0]

    def traced(refresh):
        @tf.function(autograph=False)
        def train_step(batch, step, learning_rate):
            per_tower, shared = towers.run(partial(tower_step, refresh=refresh), batch, step, learning_rate)
            return (
                {name: over_towers(value) for name, value in per_tower.items()},
                {name: towers.local_values(value)[0] for name, value in shared.items()},
            )

        return train_step

    plain = traced(refresh=False)
    if thor is None:
        return plain
    refreshing = traced(refresh=True)
    return lambda batch, step, rate: (refreshing if thor.is_due(int(step)) else plain)(batch, step, rate)


def _parts(batch: dict[str, tf.Tensor], count: int) -> list[dict[str, tf.Tensor]]:
    """The batch in ``count`` equal parts."""
    if count == 1:
        return [dict(batch)]
    split = {name: tf.split(value, count) for name, value in batch.items()}
    return [{name: parts[index] for name, parts in split.items()} for index in range(count)]


def _joined(parts: list[TowerLosses]) -> TowerLosses:
    """The losses of all parts of a batch, their mean metrics, and their commits in turn."""
    if len(parts) == 1:
        return parts[0]
    return TowerLosses(
        losses=tf.concat([part.losses for part in parts], axis=0),
        weights=tf.concat([part.weights for part in parts], axis=0),
        metrics={name: tf.add_n([part.metrics[name] for part in parts]) / len(parts) for name in parts[0].metrics},
        commits=tuple(commit for part in parts for commit in part.commits),
    )


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
