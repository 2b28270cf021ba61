"""How long does the 10-fold evaluation of 6,000 pairs of 512-d embeddings take, beside a loop over thresholds?

    PYTHONPATH=src python benchmarks/verification.py

`slow_evaluation` follows the protocol word for word, one threshold at a time; the tests compare with it too. In the
JSON line "reference" is its time and "ratio" is value / reference.
"""

import argparse
import json
import time

import numpy as np
from scipy import optimize

from towers.evaluation.verification import evaluate_pairs


def synthetic_pairs(num_pairs: int, embedding_size: int, folds: int, noise: float, seed: int):
    """Embeddings [2P, D] float32 around random people, pairs [P, 2], same [P]; each fold first same, then different."""
    random = np.random.default_rng(seed)
    same = np.concatenate(
        [np.arange(len(rows)) < len(rows) // 2 for rows in np.array_split(np.arange(num_pairs), folds)]
    )
    people = random.normal(size=(num_pairs, 2, embedding_size))
    people[same, 1] = people[same, 0]
    embeddings = people + noise * random.normal(size=people.shape)
    pairs = np.arange(2 * num_pairs).reshape(num_pairs, 2)
    return embeddings.reshape(2 * num_pairs, embedding_size).astype(np.float32), pairs, same


def slow_evaluation(
    embeddings, pairs, same, *, folds=10, fold_ids=None, distance_metric=0, subtract_mean=False, far_target=1e-3
) -> dict:
    """The protocol of `evaluate_pairs`, written as loops; the same names in a dict."""
    embeddings = embeddings.astype(np.float64)
    embeddings /= np.sqrt(np.maximum((embeddings**2).sum(axis=1, keepdims=True), 1e-10))
    left, right = embeddings[pairs[:, 0]], embeddings[pairs[:, 1]]
    if fold_ids is None:
        blocks = np.array_split(np.arange(len(pairs)), folds)
    else:
        blocks = [np.flatnonzero(fold_ids == fold) for fold in np.unique(fold_ids)]
    accuracies, best_thresholds, validation_rates, false_accept_rates, fars, tars = [], [], [], [], [], []
    for test in blocks:
        train = np.setdiff1d(np.arange(len(pairs)), test)
        mean = np.concatenate([left[train], right[train]]).mean(axis=0) if subtract_mean else 0.0
        distances = slow_distances(left - mean, right - mean, distance_metric)
        grid = np.arange(0, 4, 0.01)
        best = np.argmax([slow_rates(distances[train], same[train], threshold)[2] for threshold in grid])
        rates = [slow_rates(distances[test], same[test], threshold) for threshold in grid]
        accuracies.append(rates[best][2])
        best_thresholds.append(grid[best])
        fars.append([rate[0] for rate in rates])
        tars.append([rate[1] for rate in rates])
        grid = np.arange(0, 4, 0.001)
        train_fars = [slow_far(distances[train], same[train], threshold) for threshold in grid]
        threshold = slow_threshold(grid, train_fars, far_target)
        false_accept_rate, validation_rate, _ = slow_rates(distances[test], same[test], threshold)
        validation_rates.append(validation_rate)
        false_accept_rates.append(false_accept_rate)
    far, tar = np.append(np.mean(fars, axis=0), 1), np.append(np.mean(tars, axis=0), 1)
    return {
        "accuracy": np.mean(accuracies),
        "accuracy_std": np.std(accuracies),
        "fold_accuracies": np.array(accuracies),
        "threshold": np.mean(best_thresholds),
        "validation_rate": np.mean(validation_rates),
        "validation_rate_std": np.std(validation_rates),
        "false_accept_rate": np.mean(false_accept_rates),
        "area_under_curve": sum((far[i + 1] - far[i]) * (tar[i + 1] + tar[i]) / 2 for i in range(len(far) - 1)),
        "equal_error_rate": optimize.brentq(lambda x: 1 - x - np.interp(x, far, tar), 0, 1, xtol=1e-15),
        "roc": (far, tar),
    }


def slow_distances(left, right, distance_metric):
    if distance_metric == 0:
        return np.sum(np.square(left - right), axis=1)
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    return np.arccos(np.clip(np.sum(left * right, axis=1) / norms, -1, 1)) / np.pi


def slow_rates(distances, same, threshold):
    """False accept rate, true accept rate, accuracy."""
    accepted = distances < threshold
    far = slow_far(distances, same, threshold)
    tar = np.sum(accepted & same) / np.sum(same)
    return far, tar, np.sum(accepted == same) / len(same)


def slow_far(distances, same, threshold):
    return np.sum((distances < threshold) & ~same) / np.sum(~same)


def slow_threshold(grid, fars, far_target):
    if max(fars) < far_target:
        return 0.0
    last = max(i for i, far in enumerate(fars) if far <= far_target)
    if last == len(grid) - 1:
        return grid[last]
    return grid[last] + (far_target - fars[last]) / (fars[last + 1] - fars[last]) * (grid[last + 1] - grid[last])


def milliseconds(function, repeats: int) -> tuple[float, float]:
    """Median and best of the calls."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(1000 * (time.perf_counter() - start))
    return float(np.median(times)), min(times)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=6000, help="number of pairs")
    parser.add_argument("--embedding_size", type=int, default=512, help="numbers in an embedding")
    parser.add_argument("--repeats", type=int, default=20, help="timed calls; the median counts")
    arguments = parser.parse_args()
    embeddings, pairs, same = synthetic_pairs(arguments.pairs, arguments.embedding_size, folds=10, noise=3.0, seed=0)

    start = time.perf_counter()
    reference = slow_evaluation(embeddings, pairs, same)
    slow = 1000 * (time.perf_counter() - start)
    result = evaluate_pairs(embeddings, pairs, same)
    if not np.array_equal(result.fold_accuracies, reference["fold_accuracies"]):
        raise SystemExit("the accuracies of the folds differ from the loop's")
    rows = [("loop over thresholds", slow, slow)]
    for name, options in (
        ("squared Euclidean", {}),
        ("angle", {"distance_metric": 1}),
        ("angle, mean subtracted", {"distance_metric": 1, "subtract_mean": True}),
    ):
        rows.append(
            (name, *milliseconds(lambda o=options: evaluate_pairs(embeddings, pairs, same, **o), arguments.repeats))
        )
    print(f"{arguments.pairs} pairs x {arguments.embedding_size}, 10 folds, accuracy {result.accuracy:.4f}")
    print(f"{'':24}{'median ms':>12}{'best ms':>12}")
    for name, median, best in rows:
        print(f"{name:24}{median:12.1f}{best:12.1f}")
    value = rows[1][1]
    line = {
        "name": "verification_10_folds",
        "value": round(value, 2),
        "unit": "ms",
        "reference": round(slow, 2),
        "ratio": round(value / slow, 5),
        "target": 50,
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
