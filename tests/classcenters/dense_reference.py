"""The update rules on whole matrices in float64: every row, every step."""

import numpy as np


class DenseReference:
    def __init__(self, weights, spec):
        self.weights = weights.astype(np.float64)
        self.slot = np.full_like(self.weights, 0.1 if spec.rule == "adagrad" else 0.0)
        self.spec = spec

    def step(self, rows, gradients, rate):
        gradient = np.zeros_like(self.weights)
        np.add.at(gradient, rows, gradients.astype(np.float64))
        decay = self.spec.weight_decay
        if self.spec.rule == "adagrad":
            self.weights *= 1 - rate * decay
            self.slot += gradient**2
            self.weights -= rate * gradient / np.sqrt(self.slot)
            return
        gradient += decay * self.weights
        momentum = self.spec.momentum if self.spec.rule == "momentum" else 0.0
        self.slot = momentum * self.slot + gradient
        self.weights -= rate * self.slot


def random_step(random, num_rows, columns, most=12):
    """Rows, some of them twice, and their gradients; now and then none at all."""
    rows = random.integers(0, num_rows, random.integers(0, most))
    return rows, random.normal(0, 1, (len(rows), columns)).astype(np.float32)
