"""Triplet mining and losses as loops over triplets, from the rules' equations; slow."""

import numpy as np


def murmur_word(state, word):
    """Mix a 32-bit word into a 32-bit state with MurmurHash3's finalizer."""
    state = ((state ^ word) + 0x9E3779B9) % 2**32
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        state = (state ^ (state >> shift)) * factor % 2**32
    return state ^ (state >> 16)


def keyed_hash(seed, n, *positions):
    state = 0
    for word in (seed % 2**32, seed >> 32, n, *(half for p in positions for half in (p >> 32, p % 2**32))):
        state = murmur_word(state, word)
    return state


def squared_distances(embeddings):
    rows = np.asarray(embeddings, np.float64)
    return np.array([[sum((x - y) ** 2 for x, y in zip(one, two, strict=True)) for two in rows] for one in rows])


def mine(distances, labels, positions, *, mining, alpha, seed=0, scope=None):
    """Triplets (a, p, n) of each anchor, and the number of pairs (batch_hard: anchors) that were looked at.

    scope: of an anchor, the indices it may take its positives and negatives from; None: all.
    """
    triplets, num_pairs = [], 0
    for a in range(len(labels)):
        candidates = range(len(labels)) if scope is None else scope(a)
        negatives = [n for n in candidates if labels[n] != labels[a]]
        positives = [p for p in candidates if labels[p] == labels[a] and p != a]
        d = distances[a]
        if mining == "batch_hard":
            if positives and negatives:
                num_pairs += 1
                farthest = min(positives, key=lambda p: (-d[p], p))
                nearest = min(negatives, key=lambda n: (d[n], n))
                triplets.append((a, farthest, nearest))
            continue
        if mining == "batch_all":
            num_pairs += len(positives)
            triplets += [(a, p, n) for p in positives for n in negatives if d[n] < d[p] + alpha]
            continue
        for p in positives:
            if positions[p] < positions[a]:
                continue
            num_pairs += 1
            violators = violators_of(d, p, negatives, alpha, mining == "semihard")
            if violators:
                draw = keyed_hash(seed, 0, int(positions[a]), int(positions[p]))
                triplets.append((a, p, violators[draw * len(violators) // 2**32]))
    return triplets, num_pairs


def violators_of(d, p, negatives, alpha, semihard):
    """Negatives nearer than d[p] + alpha, in the order of distance, then index."""
    return sorted(
        (n for n in negatives if d[n] < d[p] + alpha and (not semihard or d[n] > d[p])), key=lambda n: (d[n], n)
    )


def losses_and_gradient(embeddings, triplets, *, alpha, soft_margin=False):
    """Loss sums [B] and numbers of triplets [B] of each anchor, and the gradient [B, D] of the sum of all losses."""
    rows = np.asarray(embeddings, np.float64)
    losses, weights, gradient = np.zeros(len(rows)), np.zeros(len(rows)), np.zeros_like(rows)
    for a, p, n in triplets:
        gap = ((rows[a] - rows[p]) ** 2).sum() - ((rows[a] - rows[n]) ** 2).sum()
        losses[a] += np.log1p(np.exp(gap)) if soft_margin else max(0.0, gap + alpha)
        slope = 1 / (1 + np.exp(-gap)) if soft_margin else float(gap + alpha > 0)
        weights[a] += 1
        gradient[a] += slope * 2 * (rows[n] - rows[p])
        gradient[p] += slope * 2 * (rows[p] - rows[a])
        gradient[n] += slope * 2 * (rows[a] - rows[n])
    return losses, weights, gradient
