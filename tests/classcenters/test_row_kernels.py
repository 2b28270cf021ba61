"""Compiled passes over rows, against NumPy's arithmetic bit for bit."""

import numpy as np
import pytest

from towers.classcenters import row_kernels

ROWS = np.array([7, 2, 11, 0, 5])
WHICH = np.array([1, 0, 2, 1, 2])


def random_values(*shape):
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def applied(maps, values):
    """maps [n, r, k] times values [n, k, D], each product and sum rounded to float32, from the left to the right."""
    result = maps[:, :, 0, None] * values[:, None, 0]
    for k in range(1, values.shape[1]):
        result = result + maps[:, :, k, None] * values[:, None, k]
    assert result.dtype == np.float32
    return result


@pytest.fixture(params=[1, 2], ids=["weights", "slot and weights"])
def kept(request):
    return request.param


@pytest.fixture(params=[1, 7, 133], ids=lambda columns: f"{columns} columns")
def columns(request):
    return request.param


def test_read(kept, columns):
    values, newer, maps = random_values(12, kept, columns), random_values(4, kept, columns), random_values(3, kept)
    places = np.array([-1, 3, -1, 0, -1])
    before = np.where((places < 0)[:, None, None], values[ROWS], newer[places])
    out = np.full((5, columns), np.nan, np.float32)
    row_kernels.read(values, ROWS, newer, places, maps, WHICH, out)
    np.testing.assert_array_equal(out, applied(maps[WHICH][:, None], before)[:, 0])


def test_put(kept, columns):
    values, given = random_values(12, kept, columns), random_values(7, kept, columns)
    places, expected = np.array([6, -1, 0, 3, -1]), values.copy()
    expected[ROWS[[0, 2, 3]]] = given[[6, 0, 3]]
    row_kernels.put(values, ROWS, given, places)
    np.testing.assert_array_equal(values, expected)


def test_follow(kept, columns):
    values, maps = random_values(5, kept, columns), random_values(3, kept, kept)
    expected = applied(maps[WHICH], values)
    row_kernels.follow(values, maps, WHICH)
    np.testing.assert_array_equal(values, expected)


def test_linear_step(kept, columns):
    values, gradients = random_values(12, kept, columns), random_values(5, columns)
    maps = random_values(3, kept, kept + 1)
    expected = values.copy()
    expected[ROWS] = applied(maps[WHICH], np.concatenate([values[ROWS], gradients[:, None]], axis=1))
    row_kernels.step_linear(values, ROWS, maps, WHICH, gradients)
    np.testing.assert_array_equal(values, expected)


def test_adagrad_step(columns):
    values, gradients = np.abs(random_values(12, 2, columns)), random_values(5, columns)
    maps, rate, decay = random_values(3, 2, 2), np.float32(0.3), np.float32(0.99)
    expected = values.copy()
    squares = values[ROWS, 0] + gradients * gradients
    expected[ROWS, 0] = squares
    kept_weights = values[ROWS, 1] * maps[WHICH, 1, 1, None] * decay
    expected[ROWS, 1] = kept_weights - rate * gradients / np.sqrt(np.float32(0.1) + squares)
    row_kernels.step_adagrad(values, ROWS, maps, WHICH, gradients, rate, decay)
    np.testing.assert_array_equal(values, expected)


def test_what_is_only_read_may_be_read_only():
    """As arrays are that a journal's bytes are taken for."""
    rows, which, places = ROWS.copy(), WHICH.copy(), np.array([-1, 3, -1, 0, -1])
    gradients, new, newer = random_values(5, 7), random_values(5, 2, 7), random_values(4, 2, 7)
    factors, square, maps = random_values(3, 2), random_values(3, 2, 2), random_values(3, 2, 3)
    rate = np.float32(0.3)

    def run():
        values, out = np.abs(random_values(12, 2, 7)), np.empty((5, 7), np.float32)
        row_kernels.put(values, rows, new, which)
        row_kernels.step_linear(values, rows, maps, which, gradients)
        row_kernels.step_adagrad(values, rows, square, which, gradients, rate, rate)
        row_kernels.follow(values[:5], square, which)
        values.setflags(write=False)
        row_kernels.read(values, rows, newer, places, factors, which, out)
        return out

    expected = run()
    for array in (rows, which, places, gradients, new, newer, factors, square, maps):
        array.setflags(write=False)
    np.testing.assert_array_equal(run(), expected)
