"""Softmax with a margin as loops over its equations, in NumPy: losses [B]; gradients by finite differences."""

import math

import numpy as np


def losses(
    embeddings,
    weights,
    labels,
    *,
    m1=1.0,
    angles=0.0,
    offsets=0.0,
    clipped=False,
    normalised=True,
    scale=64.0,
    sub_centres=1,
    filter_above=0.0,
    classes=None,
):
    """Cross entropy of each example; ``classes``: those that take part, all by default."""
    num_classes = len(weights) // sub_centres
    classes = range(num_classes) if classes is None else classes
    angles, offsets = np.broadcast_to(angles, len(labels)), np.broadcast_to(offsets, len(labels))
    result = []
    for x, label, angle, offset in zip(embeddings, labels, angles, offsets, strict=True):
        logits = {}
        for c in classes:
            values = []
            for k in range(sub_centres):
                w = weights[c * sub_centres + k]
                values.append(x @ w / (np.linalg.norm(x) * np.linalg.norm(w)) if normalised else x @ w)
            value = max(values)
            if c != label:
                value = 0.0 if filter_above and value > filter_above else value
            elif normalised:
                theta = m1 * math.acos(min(max(value, -1.0), 1.0)) + angle
                if clipped:
                    theta = min(max(theta, 1e-3), math.pi - 1e-3)
                value = math.cos(theta) - offset
            logits[c] = scale * value
        largest = max(logits.values())
        result.append(largest + math.log(sum(math.exp(v - largest) for v in logits.values())) - logits[label])
    return np.array(result)


def slope(function, array, places, step=1e-6):
    """Finite differences of a scalar function of ``array`` at the given places, central."""
    result = []
    for place in places:
        changed = [array.copy(), array.copy()]
        changed[0][place] += step
        changed[1][place] -= step
        result.append((function(changed[0]) - function(changed[1])) / (2 * step))
    return np.array(result)


def gradient(function, array, step=1e-6):
    """Finite differences at every place."""
    return slope(function, array, list(np.ndindex(array.shape)), step).reshape(array.shape)
