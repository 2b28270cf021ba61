import numba
import numpy as np
import pytest
from numba.core import caching

from towers.classcenters.compiled import compiled


def test_compiled_where_no_cache_can_be_written(monkeypatch):
    calls = []

    def add_one(values):
        for i in range(len(values)):
            values[i] += 1

    def full(*arguments):
        calls.append(arguments)
        raise OSError(28, "No space left on device")

    def check():
        values = np.zeros(3, np.int64)
        compiled(numba.int64[::1])(add_one)(values)
        np.testing.assert_array_equal(values, 1)

    monkeypatch.setattr(caching.IndexDataCacheFile, "save", full)
    check()
    assert len(calls) == 1
    # One that is for notebooks alone: as where no folder can be written.
    monkeypatch.setattr(numba.config, "CACHE_LOCATOR_CLASSES", "IPythonCacheLocator")
    with pytest.raises(RuntimeError, match="cannot cache"):
        numba.njit(cache=True)(add_one)
    check()
    assert len(calls) == 1
