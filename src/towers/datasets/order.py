"""The order of training: one permutation of all records after another, as a pure function of (seed, position)."""

import threading
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

CACHED_PASSES = 4


class Order:
    """An endless stream in which positions [pN, (p+1)N), a pass, hold each of N records once.

    The cache and the thread that prepares the next pass change when an answer comes, never the answer.
    """

    def __init__(self, num_records: int, seed: int):
        if num_records < 1:
            raise ValueError(f"num_records must be at least 1, got {num_records}")
        if seed < 0:
            raise ValueError(f"seed must not be negative, got {seed}")
        self.num_records = num_records
        self.seed = seed
        self._passes: OrderedDict[int, Future] = OrderedDict()
        self._lock = threading.Lock()
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="next-pass")

    def records(self, positions: np.ndarray) -> np.ndarray:
        """The record at each position. positions: int64 [n], any order, >= 0. Returns int64 [n]. Thread-safe."""
        positions = np.asarray(positions, np.int64)
        if (
            positions.size
            and (number := int(positions.min()) // self.num_records) == positions.max() // self.num_records
        ):
            return self._permutation(number)[positions - number * self.num_records].astype(np.int64)
        passes, places = np.divmod(positions, self.num_records)
        records = np.empty_like(positions)
        for number in np.unique(passes):
            inside = passes == number
            records[inside] = self._permutation(int(number))[places[inside]]
        return records

    def _permutation(self, number: int) -> np.ndarray:
        with self._lock:
            current = self._request(number)
            self._request(number + 1)
            self._passes.move_to_end(number)
            while len(self._passes) > CACHED_PASSES:
                self._passes.popitem(last=False)
        return current.result()

    def _request(self, number: int) -> Future:
        if number not in self._passes:
            self._passes[number] = self._worker.submit(permutation, self.num_records, self.seed, number)
        return self._passes[number]


def permutation(num_records: int, seed: int, number: int) -> np.ndarray:
    """The permutation of pass `number`: [N], int32 where that suffices, else int64.

    Sorts raw 64-bit draws of PCG64, whose stream NumPy keeps for ever; the stream of `Generator.permutation` may
    change between its versions, and a resumed run must not notice an update. The sort is stable, so that equal draws
    fall alike on every processor.
    """
    draws = np.random.PCG64(np.random.SeedSequence([seed, number])).random_raw(num_records)
    dtype = np.int32 if num_records <= np.iinfo(np.int32).max else np.int64
    return np.argsort(draws, kind="stable").astype(dtype)
