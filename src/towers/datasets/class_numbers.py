"""Names of classes that have numbers only, without an object each."""

from collections.abc import Sequence

import numpy as np


class ClassNumbers(Sequence):
    """A read-only list of names: name k is `str(numbers[k])`. numbers: int64 [C]."""

    def __init__(self, numbers: np.ndarray):
        self.numbers = np.asarray(numbers, np.int64)

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return ClassNumbers(self.numbers[index])
        return str(self.numbers[index])

    def __eq__(self, other) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None

    def take(self, kept: np.ndarray) -> "ClassNumbers":
        """Those of some classes, in this order."""
        return ClassNumbers(self.numbers[kept])
