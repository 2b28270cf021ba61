"""Functions of arrays that are compiled: loops that NumPy has no call for, free of Python's lock."""

from collections.abc import Callable

import numba


def compiled(*types: numba.types.Type) -> Callable[[Callable], Callable]:
    """Compile a function of ``types`` now, or load what an earlier process has compiled."""

    def decorated(function):
        options = {"nogil": True, "error_model": "numpy"}
        try:
            return numba.njit(numba.void(*types), cache=True, **options)(function)
        except (RuntimeError, OSError):
            # Neither beside the source nor in the user's cache is room: each process compiles, within some seconds.
            return numba.njit(numba.void(*types), **options)(function)

    return decorated


def read_only(dtype: numba.types.Type, dimensions: int) -> numba.types.Array:
    """A C-contiguous array that is only read, so that one that may not be written can be given too."""
    return numba.types.Array(dtype, dimensions, "C", readonly=True)
