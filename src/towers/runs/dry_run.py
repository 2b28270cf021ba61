"""What a run would do and need, printed without doing it."""

import json

import keras
import numpy as np

from ..training import optimizers
from ..training.thor import Thor
from .plan import Plan


def describe(
    options: dict, source, plan: Plan, network: keras.Model, trained: list, num_towers: int, thor: Thor | None = None
) -> str:
    """Options, counts, steps and an estimate of memory, as text.

    Args:
      options: name -> value, with ``optimizer``, ``thor_optimizer`` and ``moving_average_decay``.
      trained: trainable variables.
    """
    slots = num_slots(options)
    averaged = options["moving_average_decay"] > 0
    counts = np.bincount(source.labels, minlength=source.num_classes)
    weights = sum(int(np.prod(variable.shape)) for variable in trained)
    value_bytes = 8 if network.dtype == "float64" else 4
    kept = weights * value_bytes * (2 + slots + averaged)
    images = plan.batch_size // num_towers
    activations = images * activation_bytes(network)
    lines = [
        json.dumps(options, indent=1, default=str),
        f"pictures: {len(source)} of {source.num_classes} classes, {counts.min()} to {counts.max()} a class",
        f"batch: {plan.batch_size} = {num_towers} tower(s) x {images}",
        f"steps: {plan.epoch_size} an epoch, {plan.last_step if plan.last_step else 'as the schedule says'} in all",
        f"trainable values: {weights:,}",
        f"memory a tower: weights, gradients, {slots} optimizer slot(s){', average' if averaged else ''} "
        f"{kept / 1e6:.0f} MB; activations kept for the backward pass about {activations / 1e6:.0f} MB",
    ]
    if thor is not None:
        lines.append(
            f"THOR: inverses of {len(thor.taps)} layers {thor.num_bytes / 1e6:.0f} MB, twice as much again at a refresh"
        )
    return "\n".join(lines)


def num_slots(options: dict) -> int:
    """Values that the optimizer of these options keeps for each weight."""
    return optimizers.num_slots(optimizers.rule_name(options["optimizer"], options["thor_optimizer"]))


def network_bytes(options: dict, plan: Plan, network: keras.Model, num_towers: int, accumulate: int = 1) -> int:
    """Bytes a tower needs for the network alone: weights, gradients and their sums, slots, average, activations.

    Args:
      options, num_towers: as for ``describe``; accumulate: parts of a tower's batch.
    """
    values = sum(int(np.prod(variable.shape)) for variable in network.trainable_variables)
    value_bytes = 8 if network.dtype == "float64" else 4
    copies = 3 + num_slots(options) + (options["moving_average_decay"] > 0)
    return values * value_bytes * copies + plan.batch_size // num_towers // accumulate * activation_bytes(network)


def activation_bytes(network: keras.Model) -> int:
    """Bytes of all layers' outputs for one image: what the backward pass needs at least."""
    total = 0
    for layer in network.layers:
        for output in keras.tree.flatten(layer.output):
            size = 2 if str(output.dtype) in ("bfloat16", "float16") else 8 if str(output.dtype) == "float64" else 4
            total += int(np.prod([side or 1 for side in output.shape])) * size
    return total
