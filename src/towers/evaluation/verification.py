"""Verification: do two pictures show the same person? Cross-validated over folds of pairs, on NumPy arrays.

    verification = evaluate_pairs(embeddings, pairs, same)
    print(report(verification))

The protocol is that of facenet's validate_on_lfw.py, without its loops over thresholds.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import BadData, UserError

ACCURACY_THRESHOLDS = np.arange(0, 4, 0.01)
VALIDATION_THRESHOLDS = np.arange(0, 4, 0.001)
NORM_EPSILON = 1e-10
# The float64 copies of 128 rows of 512 numbers stay in the processor's cache.
ROWS_AT_ONCE = 128

Curve = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True, eq=False)
class Verification:
    """What `evaluate_pairs` found: rates in 0..1, F folds, T = 400 thresholds of the accuracy.

    `roc` is the curve (far [T + 1], tar [T + 1]) behind `area_under_curve` and `equal_error_rate`: at the accuracy's
    thresholds, the mean over the folds. `exact_roc` (far, tar) pools all pairs and has one point for each false accept
    rate that can be reached, with the highest true accept rate there; `tar_at_far` is read from it.
    """

    accuracy: float
    accuracy_std: float
    fold_accuracies: np.ndarray
    threshold: float
    validation_rate: float
    validation_rate_std: float
    false_accept_rate: float
    area_under_curve: float
    equal_error_rate: float
    tar_at_far: dict[float, float]
    roc: Curve
    exact_roc: Curve
    pairs_used: int


def evaluate_pairs(
    embeddings: np.ndarray,
    pairs: np.ndarray,
    same: np.ndarray,
    *,
    folds: int = 10,
    fold_ids: np.ndarray | None = None,
    distance_metric: int = 0,
    subtract_mean: bool = False,
    far_target: float = 1e-3,
    tar_at_fars: Sequence[float] = (1e-1, 1e-2, 1e-3, 1e-4),
) -> Verification:
    """Scores P pairs of N embeddings by facenet's protocol; a pair is accepted where its distance < threshold.

    Args:
        embeddings: [N, D], any float type, divided here by their L2 norm, `sqrt(max(sum of squares, 1e-10))`. For
            flipped pictures pass `join_flipped(...)`, [N, 2D].
        pairs: [P, 2] integer rows of `embeddings`.
        same: [P] bool, true where both rows show one person.
        folds: number of folds where `fold_ids` is None: consecutive blocks of rows, the first P % folds one row longer.
        fold_ids: [P] any integers; pairs of one id are one fold, folds may be unequal. Then `folds` is not looked at.
        distance_metric: 0 squared Euclidean, in 0..4; 1 arccos(cosine) / pi, in 0..1 (a zero vector has cosine 0).
        subtract_mean: subtract the mean embedding of the other folds' pairs, once for each time a row is used. It moves
            all points alike, so it changes metric 1 only.
        far_target: false accept rate at which the validation rate is taken.
        tar_at_fars: false accept rates of `tar_at_far`.

    Each fold is scored with what the others choose. Accuracy: the lowest of the thresholds 0, 0.01, ... 3.99 that are
    best on the others (metric 1 has the same ones, so it uses the first hundred). Validation rate: on 0, 0.001, ...
    3.999 the threshold is interpolated, linearly in the others' false accept rate, between the last one whose rate is
    <= far_target and the next; where no rate reaches far_target it is 0. facenet's spline through repeated rates gives
    the same wherever it is defined. Area: trapezoids under the ROC, closed at (1, 1). Equal error rate: where the
    straight pieces of the ROC cross far = 1 - tar. Deviations are np.std over the folds.
    `tar_at_far` takes its thresholds from the scored pairs themselves: the highest true accept rate whose false accept
    rate is at most the given one.

    Raises:
        BadData: embeddings that are not finite, a fold without same or without different pairs.
        UserError: a distance metric, number of folds or rate that does not exist.
        ValueError: shapes that do not fit, or rows outside 0..N-1.
    """
    embeddings, pairs, same = np.asarray(embeddings), np.asarray(pairs), np.asarray(same, dtype=bool)
    _check_arguments(embeddings, pairs, same, distance_metric, (far_target, *tar_at_fars))
    fold_ids = _check_folds(same, folds, fold_ids)
    scales = _inverse_norms(embeddings)
    if subtract_mean and distance_metric == 1:
        means = _training_means(embeddings, scales, pairs, fold_ids)
    else:
        means = np.zeros((1, embeddings.shape[1]))
    fold_distances = _distances(embeddings, scales, pairs, distance_metric, means)
    test_distances = np.empty(len(pairs))
    scores = []
    for fold in range(fold_ids.max() + 1):
        test = fold_ids == fold
        distances = fold_distances[fold % len(fold_distances)]
        test_distances[test] = distances[test]
        scores.append(_score_fold(distances, same, test, far_target))
    accuracies, thresholds, validation_rates, false_accept_rates, fars, tars = map(np.array, zip(*scores, strict=True))
    roc = np.append(fars.mean(axis=0), 1.0), np.append(tars.mean(axis=0), 1.0)
    exact_roc = _exact_roc(test_distances[same], test_distances[~same])
    return Verification(
        accuracy=float(np.mean(accuracies)),
        accuracy_std=float(np.std(accuracies)),
        fold_accuracies=accuracies,
        threshold=float(np.mean(thresholds)),
        validation_rate=float(np.mean(validation_rates)),
        validation_rate_std=float(np.std(validation_rates)),
        false_accept_rate=float(np.mean(false_accept_rates)),
        area_under_curve=float(np.trapezoid(roc[1], roc[0])),
        equal_error_rate=_equal_error_rate(roc),
        tar_at_far={far: true_accept_rate(exact_roc, far) for far in tar_at_fars},
        roc=roc,
        exact_roc=exact_roc,
        pairs_used=len(pairs),
    )


def report(verification: Verification) -> str:
    """The lines that validation prints, facenet's four first, in facenet's format; no newline at the end."""
    lines = [
        f"Accuracy: {verification.accuracy:.5f}+-{verification.accuracy_std:.5f}",
        f"Validation rate: {verification.validation_rate:.5f}+-{verification.validation_rate_std:.5f}"
        f" @ FAR={verification.false_accept_rate:.5f}",
        f"Area Under Curve (AUC): {verification.area_under_curve:.3f}",
        f"Equal Error Rate (EER): {verification.equal_error_rate:.3f}",
        f"Threshold: {verification.threshold:.4f}",
        *(f"TAR@FAR={far:g}: {tar:.5f}" for far, tar in verification.tar_at_far.items()),
        f"Pairs used: {verification.pairs_used}",
    ]
    return "\n".join(lines)


def join_flipped(embeddings: np.ndarray, flipped: np.ndarray) -> np.ndarray:
    """Joins the embeddings [N, D] of pictures and of their mirror images to [N, 2D] float64.

    Each half is first divided by its L2 norm, so both count alike, as in facenet. `evaluate_pairs` normalises the whole
    again: squared distances are half of facenet's and stay within its thresholds 0..4, which are then twice as fine.
    """
    halves = (np.asarray(embeddings), np.asarray(flipped))
    return np.concatenate([half * _inverse_norms(half)[:, None] for half in halves], axis=1)


def verify_flipped(
    embeddings: np.ndarray,
    flipped: np.ndarray,
    pairs: np.ndarray,
    same: np.ndarray,
    *,
    fold_ids: np.ndarray | None = None,
) -> tuple[Verification, float]:
    """InsightFace's protocol: pictures are compared by the sum of their own and their mirror image's embedding.

    Args:
        embeddings, flipped: [N, D] of the pictures and of their mirror images, un-normalised: the longer one of the two
            counts for more. Their sum is L2-normalised.
        pairs, same, fold_ids: as `evaluate_pairs` has them; without fold_ids 10 blocks of consecutive pairs.

    Returns:
        (verification, whose accuracy is "Accuracy-Flip"; "XNorm", the mean L2 norm over both sets).
    """
    embeddings, flipped = np.asarray(embeddings), np.asarray(flipped)
    if embeddings.shape != flipped.shape:
        raise ValueError(f"expected two times the same [N, D]; got {embeddings.shape} and {flipped.shape}")
    norm = float(np.mean([np.sqrt(_squared_norms(half)).mean() for half in (embeddings, flipped)]))
    return evaluate_pairs(embeddings.astype(np.float64) + flipped, pairs, same, fold_ids=fold_ids), norm


def flip_report(name: str, step: int, verification: Verification, norm: float, highest: float | None = None) -> str:
    """The lines that InsightFace prints for the set `name`; `highest`: accuracy of the best step so far, if known."""
    place = f"[{name}][{step}]"
    lines = [
        f"{place}XNorm: {norm:f}",
        f"{place}Accuracy-Flip: {verification.accuracy:.5f}+-{verification.accuracy_std:.5f}",
    ]
    return "\n".join(lines if highest is None else [*lines, f"{place}Accuracy-Highest: {highest:.5f}"])


def non_finite_rows(embeddings: np.ndarray) -> np.ndarray:
    """Rows [K] int64, rising, of embeddings [N, D] that have no finite L2 norm: the ones `evaluate_pairs` refuses."""
    return np.flatnonzero(~np.isfinite(_squared_norms(np.asarray(embeddings))))


def true_accept_rate(exact_roc: Curve, far: float) -> float:
    """The highest true accept rate of `Verification.exact_roc` whose false accept rate is at most `far`."""
    fars, tars = exact_roc
    return float(tars[np.searchsorted(fars, far, side="right") - 1])


def _check_arguments(embeddings, pairs, same, distance_metric, rates) -> None:
    if embeddings.ndim != 2 or pairs.ndim != 2 or pairs.shape[1] != 2 or same.shape != pairs.shape[:1]:
        raise ValueError(
            f"expected embeddings [N, D], pairs [P, 2], same [P]; got {embeddings.shape}, {pairs.shape}, {same.shape}"
        )
    if pairs.size and not (pairs.min() >= 0 and pairs.max() < len(embeddings)):
        raise ValueError(f"pairs name rows {pairs.min()}..{pairs.max()}, embeddings have rows 0..{len(embeddings) - 1}")
    if distance_metric not in (0, 1):
        raise UserError(f"distance metric {distance_metric}: choose 0 (squared Euclidean) or 1 (angle)")
    for rate in rates:
        if not 0 < rate <= 1:
            raise UserError(f"false accept rate {rate}: choose one above 0, at most 1")


def _check_folds(same: np.ndarray, folds: int, fold_ids: np.ndarray | None) -> np.ndarray:
    """Folds numbered 0..F-1, [P]; each holds pairs of both kinds."""
    if fold_ids is None:
        if not 2 <= folds <= max(len(same), 2):
            raise UserError(f"{folds} folds for {len(same)} pairs: choose from 2 to the number of pairs")
        sizes = len(same) // folds + (np.arange(folds) < len(same) % folds)
        names, fold_ids = np.arange(folds), np.repeat(np.arange(folds), sizes)
    else:
        names, fold_ids = np.unique(fold_ids, return_inverse=True)
        if fold_ids.shape != same.shape:
            raise ValueError(f"expected fold_ids {same.shape}; got {fold_ids.shape}")
        if len(names) < 2:
            raise UserError(f"{len(names)} fold for {len(same)} pairs: cross-validation needs 2 or more")
    for kind, rows in (("same", same), ("different", ~same)):
        counts = np.bincount(fold_ids[rows], minlength=len(names))
        if not counts.all():
            raise BadData(
                f"fold {names[counts.argmin()]} has no pair of {kind} people ({len(names)} folds, {len(same)} pairs):"
                " order the pairs so that every fold has both kinds, or use fewer folds"
            )
    return fold_ids


def _squared_norms(embeddings: np.ndarray) -> np.ndarray:
    squared = np.empty(len(embeddings))
    with np.errstate(over="ignore", invalid="ignore"):
        for start in range(0, len(embeddings), ROWS_AT_ONCE):
            rows = embeddings[start : start + ROWS_AT_ONCE].astype(np.float64)
            squared[start : start + ROWS_AT_ONCE] = np.vecdot(rows, rows)
    return squared


def _inverse_norms(embeddings: np.ndarray) -> np.ndarray:
    squared = _squared_norms(embeddings)
    if not np.isfinite(squared).all():
        rows = np.flatnonzero(~np.isfinite(squared))
        first = ", ".join(map(str, rows[:10])) + ", ..." * (len(rows) > 10)
        raise BadData(
            f"{len(rows)} of {len(embeddings)} embeddings are not finite (rows {first}):"
            " the model has diverged or its weights are damaged; validate an earlier checkpoint"
        )
    return 1 / np.sqrt(np.maximum(squared, NORM_EPSILON))


def _training_means(embeddings: np.ndarray, scales: np.ndarray, pairs: np.ndarray, fold_ids: np.ndarray) -> np.ndarray:
    """The mean normalised embedding of the pairs outside each fold, [F, D]."""
    outside = [pairs[fold_ids != fold] for fold in range(fold_ids.max() + 1)]
    uses = np.stack([np.bincount(rows.ravel(), minlength=len(embeddings)) / rows.size for rows in outside])
    return (uses * scales) @ embeddings.astype(np.float64)


def _distances(embeddings, scales, pairs, distance_metric, means) -> np.ndarray:
    """Distances [M, P] of the pairs after each of the means [M, D] is subtracted."""
    distances = np.empty((len(means), len(pairs)))
    for start in range(0, len(pairs), ROWS_AT_ONCE):
        chunk = slice(start, start + ROWS_AT_ONCE)
        left, right = (_normalised(embeddings, scales, rows) for rows in pairs[chunk].T)
        for mean, row in zip(means, distances, strict=True):
            row[chunk] = _squared_euclidean(left, right) if distance_metric == 0 else _angle(left - mean, right - mean)
    return distances


def _normalised(embeddings: np.ndarray, scales: np.ndarray, rows: np.ndarray) -> np.ndarray:
    vectors = embeddings[rows].astype(np.float64)
    vectors *= scales[rows, None]
    return vectors


def _squared_euclidean(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    difference = left - right
    return np.vecdot(difference, difference)


def _angle(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    norms = np.sqrt(np.vecdot(left, left) * np.vecdot(right, right))
    cosines = np.vecdot(left, right) / np.maximum(norms, np.finfo(np.float64).tiny)
    return np.arccos(np.clip(cosines, -1, 1)) / np.pi


def _accepted(distances: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """How many of the sorted distances lie below each threshold; side "left" is the comparison `<`."""
    return np.searchsorted(distances, thresholds, side="left")


def _score_fold(distances: np.ndarray, same: np.ndarray, test: np.ndarray, far_target: float) -> tuple:
    """(accuracy, its threshold, validation rate, false accept rate, far [T], tar [T]) of the test pairs."""
    train_same, train_different = np.sort(distances[~test & same]), np.sort(distances[~test & ~same])
    test_same, test_different = np.sort(distances[test & same]), np.sort(distances[test & ~same])
    # Rejected different pairs differ by a constant from minus the accepted ones.
    right = _accepted(train_same, ACCURACY_THRESHOLDS) - _accepted(train_different, ACCURACY_THRESHOLDS)
    best = right.argmax()
    true_accepts = _accepted(test_same, ACCURACY_THRESHOLDS)
    false_accepts = _accepted(test_different, ACCURACY_THRESHOLDS)
    accuracy = (true_accepts[best] + len(test_different) - false_accepts[best]) / np.count_nonzero(test)

    train_fars = _accepted(train_different, VALIDATION_THRESHOLDS) / len(train_different)
    threshold = _threshold_at(train_fars, far_target)
    return (
        accuracy,
        ACCURACY_THRESHOLDS[best],
        _accepted(test_same, threshold) / len(test_same),
        _accepted(test_different, threshold) / len(test_different),
        false_accepts / len(test_different),
        true_accepts / len(test_same),
    )


def _threshold_at(fars: np.ndarray, far_target: float) -> float:
    """The threshold of the validation rate, from the rising false accept rates at VALIDATION_THRESHOLDS."""
    if fars[-1] < far_target:
        return 0.0
    last = np.searchsorted(fars, far_target, side="right") - 1
    return float(np.interp(far_target, fars[last : last + 2], VALIDATION_THRESHOLDS[last : last + 2]))


def _equal_error_rate(roc: Curve) -> float:
    fars, tars = roc
    sums = fars + tars
    after = np.argmax(sums >= 1)
    before = after - 1
    share = (1 - sums[before]) / (sums[after] - sums[before])
    return float(fars[before] + share * (fars[after] - fars[before]))


def _exact_roc(same_distances: np.ndarray, different_distances: np.ndarray) -> Curve:
    same_distances, different_distances = np.sort(same_distances), np.sort(different_distances)
    thresholds = np.append(np.unique(different_distances), np.inf)
    fars = _accepted(different_distances, thresholds) / len(different_distances)
    return fars, _accepted(same_distances, thresholds) / len(same_distances)
