"""What is done to rows where they lie: one pass over memory, compiled, and free of Python's lock.

Arrays here are C-contiguous: float32 values [C, k, D], k = 2 with the slot before the weights or 1 without, int64 rows
[S], float32 maps [m, ...] of which row i of S has number which[i]. Nothing is checked.

Arithmetic is float32 and every operation is rounded, as NumPy's is.
"""

import numba
import numpy as np

from .compiled import compiled, read_only

ADAGRAD_FIRST = np.float32(0.1)
_ROWS, _RATE = read_only(numba.int64, 1), numba.float32
_VALUES, _RESULT = numba.float32[:, :, ::1], numba.float32[:, ::1]
_FACTORS = _GRADIENTS = read_only(numba.float32, 2)
_GIVEN = _MAPS = read_only(numba.float32, 3)


@compiled(_GIVEN, _ROWS, _GIVEN, _ROWS, _FACTORS, _ROWS, _RESULT)
def read(values, rows, newer, places, maps, which, out):
    """out[i] [D] = maps[which[i]] [k] @ values[rows[i]], or @ newer[places[i]] where places[i] is not negative."""
    for i in range(len(rows)):
        row = values[rows[i]] if places[i] < 0 else newer[places[i]]
        factors, result = maps[which[i]], out[i]
        if len(row) == 1:
            weights, decay = row[0], factors[0]
            for j in range(len(weights)):
                result[j] = decay * weights[j]
        else:
            slot, weights, of_slot, of_weights = row[0], row[1], factors[0], factors[1]
            for j in range(len(weights)):
                result[j] = of_slot * slot[j] + of_weights * weights[j]


@compiled(_VALUES, _ROWS, _GIVEN, _ROWS)
def put(values, rows, given, places):
    """values[rows[i]] = given[places[i]] where places[i] is not negative."""
    for i in range(len(rows)):
        if places[i] >= 0:
            row, new = values[rows[i]], given[places[i]]
            for k in range(len(row)):
                for j in range(row.shape[1]):
                    row[k, j] = new[k, j]


@compiled(_VALUES, _MAPS, _ROWS)
def follow(values, maps, which):
    """values[i] = maps[which[i]] [k, k] @ values[i], in place."""
    for i in range(len(values)):
        factors = maps[which[i]]
        if values.shape[1] == 1:
            weights, decay = values[i, 0], factors[0, 0]
            for j in range(len(weights)):
                weights[j] = decay * weights[j]
        else:
            slot, weights = values[i, 0], values[i, 1]
            a, b, c, d = factors[0, 0], factors[0, 1], factors[1, 0], factors[1, 1]
            for j in range(len(weights)):
                h, w = slot[j], weights[j]
                slot[j] = a * h + b * w
                weights[j] = c * h + d * w


@compiled(_VALUES, _ROWS, _MAPS, _ROWS, _GRADIENTS)
def step_linear(values, rows, maps, which, gradients):
    """values[rows[i]] = maps[which[i]] [k, k + 1] @ (values[rows[i]] above gradients[i]), in place."""
    for i in range(len(rows)):
        row, factors, gradient = values[rows[i]], maps[which[i]], gradients[i]
        if len(row) == 1:
            weights, a, b = row[0], factors[0, 0], factors[0, 1]
            for j in range(len(weights)):
                weights[j] = a * weights[j] + b * gradient[j]
        else:
            slot, weights = row[0], row[1]
            a, b, c = factors[0, 0], factors[0, 1], factors[0, 2]
            d, e, f = factors[1, 0], factors[1, 1], factors[1, 2]
            for j in range(len(weights)):
                h, w, g = slot[j], weights[j], gradient[j]
                slot[j] = a * h + b * w + c * g
                weights[j] = d * h + e * w + f * g


@compiled(_VALUES, _ROWS, _MAPS, _ROWS, _GRADIENTS, _RATE, _RATE)
def step_adagrad(values, rows, maps, which, gradients, learning_rate, decay):
    """AdaGrad's step of values[rows[i]], in place, after maps[which[i]] [2, 2] and then ``decay`` of the weights."""
    for i in range(len(rows)):
        slot, weights, gradient = values[rows[i], 0], values[rows[i], 1], gradients[i]
        missed = maps[which[i], 1, 1]
        for j in range(len(weights)):
            g = gradient[j]
            squares = slot[j] + g * g
            slot[j] = squares
            weights[j] = weights[j] * missed * decay - learning_rate * g / np.sqrt(ADAGRAD_FIRST + squares)
