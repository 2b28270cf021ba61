"""The IARPA Janus benchmarks B and C: templates of several pictures, compared 1:1 and searched 1:N.

    media = read_media("ijbc_face_tid_mid.txt")
    templates, features = template_features(pictures, media.templates, media.media, weights=quality)
    scores = score_pairs(features, rows_of(templates, left), rows_of(templates, right))
    rates = rate_pairs(scores, same)

Templates are those of InsightFace's evaluation: the mean of the frames of a video, the sum over media, L2-normalised.
Maze et al., 2018, "IARPA Janus Benchmark - C".
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import BadData, UserError
from .identification import unit_rows

FARS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
ROWS_AT_ONCE = 1 << 14
SCORES_AT_ONCE = 1 << 24


@dataclass(frozen=True, eq=False)
class Media:
    """Pictures [N] by file name, and for each its template and its medium (still or video), int64 [N]."""

    names: list[str]
    templates: np.ndarray
    media: np.ndarray


@dataclass(frozen=True, eq=False)
class PairRates:
    """True accept rates of the pairs, 0..1, and how many pairs of each kind.

    `tar_at_far`: the highest one whose false accept rate is at most the given one. `tar_at_nearest_far`: as InsightFace
    prints it, at the corner of the ROC whose false accept rate is nearest, be it above or below.
    """

    tar_at_far: dict[float, float]
    tar_at_nearest_far: dict[float, float]
    genuine: int
    impostors: int


def read_media(path: str | Path) -> Media:
    """Reads `ijbc_face_tid_mid.txt`: a line `name template medium` for each picture.

    Raises UserError where the file cannot be read, BadData, with the line, where it is something else.
    """
    names, numbers = [], []
    for line_number, words in _lines(path):
        if len(words) != 3 or not all(word.removeprefix("-").isdecimal() for word in words[1:]):
            raise BadData(f"{path}, line {line_number}: expected `name template medium`; give ijb?_face_tid_mid.txt")
        names.append(words[0])
        numbers.append([int(word) for word in words[1:]])
    if not names:
        raise BadData(f"{path}: is empty; give ijb?_face_tid_mid.txt")
    templates, media = np.array(numbers, np.int64).T
    return Media(names, templates, media)


def read_detection_scores(path: str | Path) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Reads `ijbc_name_5pts_score.txt`: names [N], landmarks float32 [N, 5, 2] in pixels, scores float32 [N]."""
    names, numbers = [], []
    for line_number, words in _lines(path):
        try:
            values = [float(word) for word in words[1:]]
        except ValueError:
            values = []
        if len(values) != 11 or not np.isfinite(values).all():
            raise BadData(
                f"{path}, line {line_number}: expected `name x1 y1 ... x5 y5 score`; give ijb?_name_5pts_score.txt"
            )
        names.append(words[0])
        numbers.append(values)
    if not names:
        raise BadData(f"{path}: is empty; give ijb?_name_5pts_score.txt")
    table = np.array(numbers, np.float32)
    return names, table[:, :10].reshape(-1, 5, 2), table[:, 10]


def read_template_pairs(path: str | Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Reads `ijbc_template_pair_label.txt`: left and right templates int64 [P], and same bool [P]."""
    table = _numbers(path, "template template 0|1", columns=3)
    strange = np.flatnonzero((table[:, 2] != 0) & (table[:, 2] != 1))
    if strange.size:
        raise BadData(f"{path}: pair {strange[0] + 1} has the label {table[strange[0], 2]}, expected 0 or 1")
    return table[:, 0], table[:, 1], table[:, 2] == 1


def read_subjects(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Reads a gallery or probe list of 1:N, a table with a header: templates int64 [T], each once, and their subjects.

    The lists have a line for each picture; template and subject are the first two columns.
    """
    table = _numbers(path, "TEMPLATE_ID,SUBJECT_ID,...", columns=None, skiprows=1, delimiter=",", usecols=(0, 1))
    pairs = np.unique(table, axis=0)
    templates, counts = np.unique(pairs[:, 0], return_counts=True)
    if (counts > 1).any():
        raise BadData(f"{path}: template {templates[counts.argmax()]} has several subjects; get the file again")
    return pairs[:, 0], pairs[:, 1]


def rows_of(templates: np.ndarray, wanted: np.ndarray, where: str = "pairs") -> np.ndarray:
    """Rows of `wanted` templates [P] in the sorted `templates` [T]; BadData where one is not there."""
    rows = np.minimum(np.searchsorted(templates, wanted), len(templates) - 1)
    unknown = np.flatnonzero(templates[rows] != wanted)
    if unknown.size:
        raise BadData(
            f"{where}: template {wanted[unknown[0]]} and {unknown.size - 1} more have no picture in the list of media;"
            " check that the files belong to one benchmark"
        )
    return rows


def template_features(
    features: np.ndarray, templates: np.ndarray, media: np.ndarray, *, weights: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """One feature a template from N pictures: mean over the pictures of a medium, sum over media, L2-normalised.

    Args:
        features: [N, D], not normalised: their norm says how good a picture is.
        templates, media: [N] integers. weights: [N], such as the detector's scores; None: 1.

    Returns:
        (sorted templates [T], features float32 [T, D]).

    Raises:
        BadData: features or weights that are not finite. ValueError: shapes that do not fit.
    """
    features, templates, media = np.asarray(features), np.asarray(templates), np.asarray(media)
    weights = np.ones(len(features)) if weights is None else np.asarray(weights)
    if features.ndim != 2 or not templates.shape == media.shape == weights.shape == features.shape[:1]:
        raise ValueError(f"expected features [N, D] and N of all else; got {features.shape} and {templates.shape}")
    if not np.isfinite(weights).all():
        raise BadData(f"the weight of picture {np.flatnonzero(~np.isfinite(weights))[0]} is not finite")
    order = np.lexsort((media, templates))
    names, starts = np.unique(templates[order], return_index=True)
    ends = np.append(starts[1:], len(order))
    result = np.empty((len(names), features.shape[1]), np.float32)
    first = 0
    while first < len(names):
        last = max(first + 1, np.searchsorted(ends, starts[first] + ROWS_AT_ONCE, side="right"))
        rows = order[starts[first] : ends[last - 1]]
        values = features[rows].astype(np.float64) * weights[rows, None]
        new_template = np.diff(templates[rows], prepend=templates[rows[0]] - 1) != 0
        medium_starts = np.flatnonzero(new_template | (np.diff(media[rows], prepend=media[rows[0]]) != 0))
        sizes = np.diff(medium_starts, append=len(rows))
        means = np.add.reduceat(values, medium_starts) / sizes[:, None]
        sums = np.add.reduceat(means, np.flatnonzero(new_template[medium_starts]))
        # In float64: quality weights may make a template's norm very small.
        norms = np.sqrt(np.vecdot(sums, sums))[:, None]
        with np.errstate(invalid="ignore"):
            result[first:last] = sums / np.where(norms > 0, norms, 1)
        first = last
    return names, unit_rows(result, "templates")


def score_pairs(features: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Cosines float32 [P] of template features [T, D] in rows `left` and `right`, by a matrix product of the two sides.

    For benchmarks, where few templates stand on the left of very many pairs: all different left ones are multiplied
    with all right ones, in blocks of left ones.
    """
    left_rows, left = _used_rows(left, len(features))
    right_rows, right = _used_rows(right, len(features))
    right_features = features[right_rows].T
    block = max(1, SCORES_AT_ONCE // max(1, len(right_rows)))
    block_of = left // block
    order = np.argsort(block_of.astype(np.uint16 if len(left_rows) < 1 << 16 else np.int64), kind="stable")
    ends = np.searchsorted(block_of, np.arange(1, -(-len(left_rows) // block) + 1), sorter=order)
    scores = np.empty(len(left), np.float32)
    begin = 0
    for number, end in enumerate(ends):
        pairs = order[begin:end]
        table = features[left_rows[number * block : (number + 1) * block]] @ right_features
        scores[pairs] = table[left[pairs] - number * block, right[pairs]]
        begin = end
    return scores


def _used_rows(rows: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The different values of `rows` [P], below `count`, and the place of each row among them; without sorting them."""
    used = np.zeros(count, bool)
    used[rows] = True
    return np.flatnonzero(used), (np.cumsum(used, dtype=np.int32) - 1)[rows]


def rate_pairs(scores: np.ndarray, same: np.ndarray, fars: Sequence[float] = FARS) -> PairRates:
    """True accept rates of P pairs, accepted where the score is at least the threshold.

    Raises BadData where a kind of pair is missing or a score is not finite.
    """
    scores, same = np.asarray(scores), np.asarray(same, dtype=bool)
    genuine, impostors = np.sort(scores[same]), np.sort(scores[~same])
    if not (len(genuine) and len(impostors)):
        raise BadData(f"{len(genuine)} pairs of same and {len(impostors)} of different people: both kinds are needed")
    if not (np.isfinite(genuine[[0, -1]]).all() and np.isfinite(impostors[[0, -1]]).all()):
        raise BadData("scores of pairs are not finite: extract the features again")
    for far in fars:
        if not 0 < far <= 1:
            raise UserError(f"false accept rate {far}: choose one above 0, at most 1")
    false_accepts, true_accepts = _accepts(genuine, impostors)
    # The corners of the curve are what scikit-learn's roc_curve keeps, and InsightFace takes the nearest of.
    bends = (np.diff(false_accepts, 2) != 0) | (np.diff(true_accepts, 2) != 0)
    corners = np.concatenate([[True], bends, [True]])[: len(false_accepts)]
    corner_fars = np.append(0, false_accepts[corners]) / len(impostors)
    corner_tars = np.append(0, true_accepts[corners]) / len(genuine)
    exact_fars = np.append(0, false_accepts) / len(impostors)
    exact_tars = np.append(0, true_accepts) / len(genuine)
    return PairRates(
        tar_at_far={far: float(exact_tars[np.searchsorted(exact_fars, far, side="right") - 1]) for far in fars},
        # Reversed: of corners at one false accept rate the first is then the one with the highest true accept rate.
        tar_at_nearest_far={far: float(corner_tars[::-1][np.abs(corner_fars[::-1] - far).argmin()]) for far in fars},
        genuine=len(genuine),
        impostors=len(impostors),
    )


def _accepts(genuine: np.ndarray, impostors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Accepted impostors and genuine pairs, int64, at each different score as threshold, falling; inputs are sorted."""
    merged = np.sort(np.concatenate([genuine, impostors]))
    starts = np.flatnonzero(np.append(True, merged[1:] != merged[:-1]))
    both = len(merged) - starts
    values, counts = np.unique(genuine, return_counts=True)
    at = np.zeros(len(starts), np.int64)
    at[np.searchsorted(merged[starts], values)] = counts
    true_accepts = at[::-1].cumsum()
    return both[::-1] - true_accepts, true_accepts


def _lines(path: str | Path):
    """(number from 1, words) of each line that is not blank."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise BadData(f"{path}: byte {error.start} is not UTF-8 text: give the benchmark's meta file") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}): check the folder of meta files") from error
    return ((number, line.split()) for number, line in enumerate(text.splitlines(), 1) if line.strip())


def _numbers(path: str | Path, expected: str, columns: int | None, **options) -> np.ndarray:
    try:
        if not Path(path).stat().st_size:
            raise BadData(f"{path}: is empty, expected lines of `{expected}`")
        table = np.loadtxt(path, dtype=np.int64, ndmin=2, comments=None, **options)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}): check the folder of meta files") from error
    except ValueError as error:
        raise BadData(f"{path}: {error}; expected lines of `{expected}`") from error
    if not len(table) or (columns is not None and table.shape[1] != columns):
        raise BadData(f"{path}: {table.shape[0]} lines of {table.shape[1]} numbers, expected lines of `{expected}`")
    return table
