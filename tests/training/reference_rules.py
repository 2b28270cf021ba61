"""Facenet's update rules, written for one NumPy array from the documentation of TensorFlow 1's optimizers."""

import numpy as np


def trajectory(name, weights, gradients, rates):
    """Weights after a step with each gradient and learning rate."""
    slots = {key: np.full_like(weights, first) for key, first in FIRST_SLOTS[name].items()}
    for step, (gradient, rate) in enumerate(zip(gradients, rates, strict=True), start=1):
        weights = weights - RULES[name](slots, gradient, rate, step)
    return weights, slots


def _sgd(slots, gradient, rate, step):
    return rate * gradient


def _mom(slots, gradient, rate, step):
    slots["accum"] = 0.9 * slots["accum"] + gradient
    return rate * (gradient + 0.9 * slots["accum"])


def _adagrad(slots, gradient, rate, step):
    slots["accum"] = slots["accum"] + gradient**2
    return rate * gradient / np.sqrt(slots["accum"])


def _adadelta(slots, gradient, rate, step):
    slots["accum"] = 0.9 * slots["accum"] + 0.1 * gradient**2
    change = np.sqrt(slots["accum_update"] + 1e-6) / np.sqrt(slots["accum"] + 1e-6) * gradient
    slots["accum_update"] = 0.9 * slots["accum_update"] + 0.1 * change**2
    return rate * change


def _adam(slots, gradient, rate, step):
    slots["m"] = 0.9 * slots["m"] + 0.1 * gradient
    slots["v"] = 0.999 * slots["v"] + 0.001 * gradient**2
    corrected = rate * np.sqrt(1 - 0.999**step) / (1 - 0.9**step)
    return corrected * slots["m"] / (np.sqrt(slots["v"]) + 0.1)


def _rmsprop(slots, gradient, rate, step):
    slots["ms"] = 0.9 * slots["ms"] + 0.1 * gradient**2
    slots["mom"] = 0.9 * slots["mom"] + rate * gradient / np.sqrt(slots["ms"] + 1.0)
    return slots["mom"]


RULES = {"SGD": _sgd, "MOM": _mom, "ADAGRAD": _adagrad, "ADADELTA": _adadelta, "ADAM": _adam, "RMSPROP": _rmsprop}
FIRST_SLOTS = {
    "SGD": {},
    "MOM": {"accum": 0.0},
    "ADAGRAD": {"accum": 0.1},
    "ADADELTA": {"accum": 0.0, "accum_update": 0.0},
    "ADAM": {"m": 0.0, "v": 0.0},
    "RMSPROP": {"ms": 1.0, "mom": 0.0},
}
