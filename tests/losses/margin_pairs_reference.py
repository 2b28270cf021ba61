"""The margin loss on pairs as loops, from its equations; slow."""

import math

import numpy as np
from losses.triplet_reference import keyed_hash


def slow_weights(distances, candidates, d):
    """p(j | i) of section 3.2, for one anchor: candidates are the indices of other labels."""

    def density(z):
        return z ** (d - 2) * (1 - z**2 / 4) ** ((d - 3) / 2)

    weights = [min(1 / density(0.5), 1 / density(max(z, 1e-9))) if z < 1.4 else 0.0 for z in distances[candidates]]
    if sum(weights) == 0:
        weights = [1.0] * len(candidates)
    return np.array(weights) / sum(weights)


def slow_losses(rows, labels, positions, beta, alpha, seed, scope=None):
    """Losses and active pairs [B], gradient [B, D] of their sum, and its derivative by beta."""
    losses, active, gradient, by_beta = np.zeros(len(rows)), np.zeros(len(rows)), np.zeros_like(rows), 0.0
    distances = np.array([[math.dist(a, b) for b in rows] for a in rows])
    for a in range(len(rows)):
        near = range(len(rows)) if scope is None else scope(a)
        others = [j for j in near if labels[j] != labels[a]]
        if not others:
            continue
        law = slow_weights(distances[a], others, rows.shape[1])
        for p in (j for j in near if labels[j] == labels[a] and j != a):
            draw = keyed_hash(seed, 0, int(positions[a]), int(positions[p])) / 2**32
            n = others[min(np.searchsorted(np.cumsum(law), draw, side="right"), len(others) - 1)]
            for other, side in ((p, 1), (n, -1)):
                loss = alpha + side * (distances[a, other] - beta)
                if loss > 0:
                    losses[a] += loss
                    active[a] += 1
                    by_beta -= side
                    slope = side * (rows[a] - rows[other]) / distances[a, other]
                    gradient[a] += slope
                    gradient[other] -= slope
    return losses, active, gradient, by_beta
