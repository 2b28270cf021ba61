"""What a row that got no gradient has missed: the product of the linear maps of its skipped steps.

A step without a gradient maps (slot h, weight w) of every element by one 2 x 2 matrix, for ``momentum``
h' = mu h + wd w, w' = w - lr h'. A row skipped from step a to step t needs M_(t-1) ... M_a, whatever the learning rates
were. Products of 2, 4, 8, ... steps are kept, so that any row is brought up to date by at most 32 of them.
"""

import numpy as np

from .spec import MatrixSpec

SPAN_BITS = 16
SPAN = 1 << SPAN_BITS


def step_map(spec: MatrixSpec, learning_rate: float) -> np.ndarray:
    """float64 [2, 2], applied to (slot, weight) by a step without a gradient."""
    lr, decay = learning_rate, spec.weight_decay
    if spec.rule == "momentum":
        return np.array([[spec.momentum, decay], [-lr * spec.momentum, 1 - lr * decay]])
    return np.array([[1.0, 0.0], [0.0, 1 - lr * decay]])


class SkippedSteps:
    """The maps of the last 2^16 steps of a matrix, and their products; older ones are forgotten."""

    def __init__(self):
        self.version = 0
        self._levels = [np.zeros((SPAN >> k, 2, 2)) for k in range(SPAN_BITS + 1)]

    def append(self, step: np.ndarray) -> None:
        """Count a step whose map is ``step`` [2, 2]."""
        levels = self._levels
        levels[0][self.version % SPAN] = step
        self.version += 1
        for k in range(1, SPAN_BITS + 1):
            if self.version % (1 << k):
                break
            later = (self.version >> (k - 1)) - 1
            below = levels[k - 1]
            levels[k][((self.version >> k) - 1) % (SPAN >> k)] = (
                below[later % len(below)] @ below[(later - 1) % len(below)]
            )

    def since(self, versions: np.ndarray) -> np.ndarray:
        """float64 [n, 2, 2], what rows last updated at ``versions`` int64 [n] have missed, at most 2^16 steps."""
        at = np.array(versions, np.int64)
        products = np.tile(np.eye(2), (len(at), 1, 1))

        def take(k, chosen):
            chosen = np.flatnonzero(chosen & (at & ((1 << k) - 1) == 0) & (at + (1 << k) <= self.version))
            if len(chosen):
                level = self._levels[k]
                products[chosen] = level[(at[chosen] >> k) % len(level)] @ products[chosen]
                at[chosen] += 1 << k

        # No block may be longer than the longest time.
        levels = min(SPAN_BITS, int(self.version - at.min(initial=self.version)).bit_length())
        # Up to the borders of ever larger blocks of steps, then down again to the present.
        for k in range(levels + 1):
            take(k, at >> k & 1 == 1)
        for k in range(levels, -1, -1):
            take(k, True)
        return products

    def export(self) -> np.ndarray:
        """float64 [min(version, 2^16), 2, 2], the maps of the last steps, oldest first."""
        kept = min(self.version, SPAN)
        return self._levels[0][np.arange(self.version - kept, self.version) % SPAN]

    def restore(self, version: int, maps: np.ndarray) -> None:
        """Take over what ``export`` returned at ``version``."""
        if maps.shape != (min(version, SPAN), 2, 2):
            raise ValueError(f"{maps.shape} maps of steps do not belong to version {version}")
        self.version = version - len(maps)
        for step in maps:
            self.append(step)
