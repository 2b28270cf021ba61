"""Vectors as whole numbers of one byte: a quarter of the memory, and of the bytes that a search has to read.

A value is rounded to the nearest of 255 between minus and plus the largest of its vector, so that an inner product with
a query q is wrong by at most max |x| / 254 times the sum of |q|, and as a rule by 0.7 / sqrt(D) of that.
"""

from typing import NamedTuple

import numba
import numpy as np

from ..compiled import compiled, read_only


class Quantised(NamedTuple):
    """Vectors x = scales * values.

    Attributes:
      values: int8 [n, D], in [-127, 127].
      scales: float32 [n].
    """

    values: np.ndarray
    scales: np.ndarray

    @property
    def num_bytes(self) -> int:
        return self.values.nbytes + self.scales.nbytes

    def taken(self, order: np.ndarray) -> "Quantised":
        """Those of numbers ``order``, in that order."""
        return Quantised(self.values[order], self.scales[order])

    def dequantised(self) -> np.ndarray:
        """float32 [n, D]."""
        return self.values * self.scales[:, None]


def quantise(vectors: np.ndarray) -> Quantised:
    """One scale for each of float32 [n, D], such that its largest value is 127."""
    found = Quantised(np.empty(vectors.shape, np.int8), np.empty(len(vectors), np.float32))
    _quantise(np.ascontiguousarray(vectors, np.float32), *found)
    return found


@compiled(read_only(numba.float32, 2), numba.int8[:, ::1], numba.float32[::1])
def _quantise(vectors, values, scales):
    for i in range(len(vectors)):
        vector, largest = vectors[i], np.float32(0)
        for value in vector:
            largest = max(largest, abs(value))
        scales[i] = largest / np.float32(127)
        # A vector of zeros has no scale, and needs none.
        factor = np.float32(127) / largest if largest > 0 else np.float32(0)
        for j in range(len(vector)):
            values[i, j] = np.int8(np.rint(vector[j] * factor))
