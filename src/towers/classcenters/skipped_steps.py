"""What a row that got no gradient has missed: the product of the linear maps of its skipped steps.

A step without a gradient maps (slot h, weight w) of every element by one 2 x 2 matrix, for ``momentum``
h' = mu h + wd w, w' = w - lr h'. A row skipped from step a to step t needs M_(t-1) ... M_a, whatever the learning rates
were. Products of 2, 4, 8, ... steps are kept, so that any row is brought up to date by at most 32 of them.
"""

import numba
import numpy as np

from .compiled import compiled
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
        # Level k, the products of 2^k steps, one level after the other; and where each begins.
        self._starts = np.cumsum([0] + [SPAN >> k for k in range(SPAN_BITS + 1)])
        self._products = np.zeros((self._starts[-1], 2, 2))
        self._levels = [self._products[start : start + (SPAN >> k)] for k, start in enumerate(self._starts[:-1])]

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
        products = np.empty((len(versions), 2, 2))
        _multiply(self._products, self._starts, self.version, np.array(versions, np.int64), products)
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


@compiled(numba.float64[:, :, ::1], numba.int64[::1], numba.int64, numba.int64[::1], numba.float64[:, :, ::1])
def _multiply(levels, starts, now, versions, out):
    """out[i] = the steps from versions[i] to ``now``: up to the borders of ever larger blocks, then down again."""
    for i in range(len(versions)):
        at, k, rising = versions[i], 0, True
        a, b, c, d = 1.0, 0.0, 0.0, 1.0
        while at < now:
            # No block may be longer than the longest time, nor end after the present.
            if rising and at >> k & 1 == 0 and k < len(starts) - 2 and at + (2 << k) <= now:
                k += 1
                continue
            if at + (1 << k) > now:
                k, rising = k - 1, False
                continue
            m = levels[starts[k] + (at >> k) % (starts[k + 1] - starts[k])]
            a, b, c, d = (
                m[0, 0] * a + m[0, 1] * c,
                m[0, 0] * b + m[0, 1] * d,
                m[1, 0] * a + m[1, 1] * c,
                m[1, 0] * b + m[1, 1] * d,
            )
            at += 1 << k
        out[i, 0, 0], out[i, 0, 1], out[i, 1, 0], out[i, 1, 1] = a, b, c, d
