"""Random numbers as a pure function of (seed, positions), without TensorFlow: `towers.hashing` draws the same ones."""

import numpy as np

_MASK = 0xFFFFFFFF


def keyed_hash_numpy(seed: int, n: int | np.ndarray, positions: np.ndarray) -> np.ndarray:
    """`keyed_hash` of NumPy arrays: n and positions int64, of shapes that broadcast; int64 in [0, 2**32)."""
    positions = np.asarray(positions, np.uint64)
    mask = np.uint64(_MASK)
    state = np.uint64(0)
    for word in (seed & _MASK, seed >> 32 & _MASK, n, positions >> np.uint64(32), positions & mask):
        state = ((state ^ np.asarray(word, np.uint64)) + np.uint64(0x9E3779B9)) & mask
        # Products of 32 bits fit into 64.
        for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
            state = ((state ^ state >> np.uint64(shift)) * np.uint64(factor)) & mask
        state = state ^ state >> np.uint64(16)
    return state.astype(np.int64)
