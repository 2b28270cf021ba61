"""First values of class centres, a pure function of (seed, row, column): any rows, in any order, on any server."""

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def first_rows(rows: np.ndarray, columns: int, seed: int, scale: float) -> np.ndarray:
    """float32 [S, D], uniform in [-scale, scale), for int64 rows [S].

    The value of (row, column) is the number 2^20 row + column of the SplitMix64 stream of ``seed`` (Steele, Lea and
    Flood, OOPSLA 2014), its upper 24 bits taken as a fraction.
    """
    with np.errstate(over="ignore"):
        start = _mixed(np.array([seed], np.uint64) + _GOLDEN)
        numbers = (rows.astype(np.uint64) << np.uint64(20))[:, None] + np.arange(columns, dtype=np.uint64)
        bits = _mixed(numbers * _GOLDEN + start) >> np.uint64(40)
    return (bits.astype(np.float32) * np.float32(2.0**-23) - np.float32(1)) * np.float32(scale)


def _mixed(state: np.ndarray) -> np.ndarray:
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))
