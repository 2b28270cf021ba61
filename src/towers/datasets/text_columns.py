"""Lines and whole numbers of large text files by NumPy: ten million lines take seconds and no Python object each."""

import numpy as np

LINES_AT_ONCE = 1 << 16
MAX_DIGITS = 18
TAB, BLANK, NEWLINE, RETURN, ZERO, DOT = b"\t \n\r0."


def line_spans(data: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each line of a text uint8 [n] begins and ends: int64 [L], int64 [L]; `\\n` or `\\r\\n` left out."""
    newlines = np.flatnonzero(data == NEWLINE)
    if len(data) and (not len(newlines) or newlines[-1] != len(data) - 1):
        newlines = np.append(newlines, len(data))
    starts = np.concatenate([np.zeros(1, np.int64), newlines[:-1] + 1])[: len(newlines)]
    returns = (newlines > starts) & (data[np.maximum(newlines - 1, 0)] == RETURN) if len(newlines) else False
    return starts, newlines - returns


def first_places(data: np.ndarray, byte: int, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """The place of the first such byte in each span, int64 [L]; the span's end where there is none."""
    places = np.append(np.flatnonzero(data == byte), len(data))
    return np.minimum(places[np.searchsorted(places[:-1], starts)], ends)


def last_separators(data: np.ndarray, starts: np.ndarray, ends: np.ndarray, only: int | None = None) -> np.ndarray:
    """The place of the last tab or blank (or of the byte `only`) in each span, int64 [L]; -1 where there is none."""
    separators = np.flatnonzero((data == TAB) | (data == BLANK) if only is None else data == only)
    if not len(separators):
        return np.full(len(starts), -1, np.int64)
    place = np.searchsorted(separators, ends) - 1
    found = separators[np.maximum(place, 0)]
    return np.where((place >= 0) & (found >= starts), found, -1)


def integers(data: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The numbers that spans of a text hold: int64 [L], and bool [L] whether a span is 1 to 18 digits and no more."""
    values, valid = np.zeros(len(starts), np.int64), np.zeros(len(starts), bool)
    for first in range(0, len(starts), LINES_AT_ONCE):
        rows = slice(first, first + LINES_AT_ONCE)
        values[rows], valid[rows] = _integers(data, starts[rows], ends[rows])
    return values, valid


def _integers(data: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    widths = ends - starts
    valid = (widths > 0) & (widths <= MAX_DIGITS)
    values = np.zeros(len(starts), np.int64)
    for place in range(widths[valid].max(initial=0)):
        inside = valid & (place < widths)
        # Bytes below "0" wrap around to more than 9.
        digits = data[np.where(inside, starts + place, 0)] - np.uint8(ZERO)
        values = np.where(inside, values * 10 + digits, values)
        valid &= ~inside | (digits <= 9)
    return values, valid
