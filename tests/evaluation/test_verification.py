import importlib.util
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from towers.errors import BadData, UserError
from towers.evaluation.verification import (
    evaluate_pairs,
    flip_report,
    join_flipped,
    non_finite_rows,
    report,
    true_accept_rate,
    verify_flipped,
)

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "verification.py"
SPEC = importlib.util.spec_from_file_location("verification_benchmark", BENCHMARK)
benchmark = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(benchmark)

SMALL = {"num_pairs": 400, "embedding_size": 16, "folds": 10}


def unit_circle(degrees):
    radians = np.deg2rad(degrees)
    return np.stack([np.cos(radians), np.sin(radians)], axis=1)


def assert_equals_loop(embeddings, pairs, same, **options):
    result = evaluate_pairs(embeddings, pairs, same, **options)
    expected = benchmark.slow_evaluation(embeddings, pairs, same, **options)
    np.testing.assert_array_equal(result.fold_accuracies, expected.pop("fold_accuracies"))
    np.testing.assert_allclose(result.roc, expected.pop("roc"), rtol=0, atol=1e-12)
    for name, value in expected.items():
        np.testing.assert_allclose(getattr(result, name), value, rtol=0, atol=1e-12, err_msg=name)
    return result


@pytest.mark.parametrize("distance_metric", [0, 1])
@pytest.mark.parametrize("subtract_mean", [False, True])
@pytest.mark.parametrize("noise, far_target", [(0.4, 1e-3), (2.0, 0.05)])
def test_equals_the_loop_over_thresholds(distance_metric, subtract_mean, noise, far_target):
    embeddings, pairs, same = benchmark.synthetic_pairs(**SMALL, noise=noise, seed=1)
    embeddings += np.linspace(0, 2, 16, dtype=np.float32)
    options = {"folds": 3, "distance_metric": distance_metric, "subtract_mean": subtract_mean, "far_target": far_target}
    assert_equals_loop(embeddings, pairs, same, **options)


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), far_target=st.sampled_from([0.02, 0.1, 0.25, 0.5]))
def test_equals_the_loop_with_tied_distances_and_rates_hit_exactly(seed, far_target):
    random = np.random.default_rng(seed)
    corners = random.choice([-1.0, 1.0], size=(30, 4))
    same = np.tile(np.repeat([True, False], 20), 3)
    assert_equals_loop(corners, random.integers(0, 30, (120, 2)), same, folds=3, far_target=far_target)


def test_equals_the_loop_with_unequal_folds():
    embeddings, pairs, same = benchmark.synthetic_pairs(**SMALL, noise=1.0, seed=2)
    fold_ids = np.random.default_rng(0).choice([3, 7, 20], size=400, p=[0.2, 0.3, 0.5])
    assert_equals_loop(embeddings, pairs, same, fold_ids=fold_ids, far_target=0.02)


def test_default_folds_are_blocks_whose_first_are_longer():
    embeddings, pairs, same = benchmark.synthetic_pairs(50, 8, 3, noise=1.0, seed=3)
    by_block = evaluate_pairs(embeddings, pairs, same, folds=3)
    by_id = evaluate_pairs(embeddings, pairs, same, fold_ids=np.repeat([0, 1, 2], [17, 17, 16]))
    np.testing.assert_array_equal(by_block.fold_accuracies, by_id.fold_accuracies)
    assert len(by_block.fold_accuracies) == 3


def test_subtracting_the_mean_changes_angles_and_nothing_else():
    embeddings, pairs, same = benchmark.synthetic_pairs(**SMALL, noise=1.0, seed=4)
    embeddings += 3
    plain = [evaluate_pairs(embeddings, pairs, same, distance_metric=metric) for metric in (0, 1)]
    centred = [evaluate_pairs(embeddings, pairs, same, distance_metric=metric, subtract_mean=True) for metric in (0, 1)]
    assert plain[0].accuracy == centred[0].accuracy
    assert plain[1].threshold < 0.3 < centred[1].threshold


def test_perfect_separation_by_hand():
    """Same pairs 10 degrees apart, different ones 90: squared distance 2 - 2 cos, angle / 180."""
    embeddings = 5 * unit_circle([0, 10, 0, 90])
    pairs, same = np.array([[0, 1], [2, 3]] * 6), np.array([True, False] * 6)
    result = evaluate_pairs(embeddings, pairs, same, folds=3)
    assert (result.accuracy, result.accuracy_std, result.area_under_curve, result.equal_error_rate) == (1, 0, 1, 0)
    assert result.threshold == 0.04  # 2 - 2 cos 10 degrees = 0.0304
    assert (result.validation_rate, result.false_accept_rate) == (1, 0)
    assert result.tar_at_far == {1e-1: 1, 1e-2: 1, 1e-3: 1, 1e-4: 1}
    assert result.pairs_used == 12
    by_angle = evaluate_pairs(embeddings, pairs, same, folds=3, distance_metric=1)
    assert by_angle.threshold == 0.06  # 10 / 180 = 0.0556


def test_a_distance_equal_to_the_threshold_is_rejected():
    """All distances are 2, a threshold of the grid: accepting starts above it."""
    embeddings, pairs = np.eye(2), np.array([[0, 1]] * 8)
    result = evaluate_pairs(embeddings, pairs, np.array([True, True, True, False] * 2), folds=2)
    assert result.threshold == pytest.approx(2.01)
    assert result.accuracy == 0.75
    assert result.roc[0][200:202].tolist() == [0, 1]


def test_the_validation_threshold_is_zero_where_no_rate_reaches_the_target():
    """Opposite different pairs lie at distance 4, above every threshold."""
    embeddings = np.array([[1.0, 0], [0.9, 0.1], [-1, 0]])
    pairs, same = np.array([[0, 1], [0, 2]] * 4), np.array([True, False] * 4)
    result = evaluate_pairs(embeddings, pairs, same, folds=2)
    assert (result.accuracy, result.validation_rate, result.false_accept_rate) == (1, 0, 0)
    assert result.area_under_curve == 1


def test_exact_roc_and_its_rates_equal_scikit_learn():
    embeddings, pairs, same = benchmark.synthetic_pairs(**SMALL, noise=1.5, seed=5)
    result = evaluate_pairs(embeddings, pairs, same, tar_at_fars=(0.5, 0.1, 0.015, 1e-4))
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    cosines = (unit[pairs[:, 0]] * unit[pairs[:, 1]]).sum(axis=1)
    fars, tars, _ = metrics.roc_curve(same, cosines, drop_intermediate=False)
    assert result.tar_at_far == {far: tars[fars <= far].max() for far in (0.5, 0.1, 0.015, 1e-4)}
    steps = np.diff(result.exact_roc[0]) * result.exact_roc[1][:-1]
    assert steps.sum() == pytest.approx(metrics.auc(fars, tars), abs=1e-12)
    assert true_accept_rate(result.exact_roc, 1.0) == 1


def test_sizes_of_vectors_do_not_matter_and_zero_vectors_are_far_from_all():
    embeddings, pairs, same = benchmark.synthetic_pairs(**SMALL, noise=1.0, seed=6)
    sizes = np.random.default_rng(0).uniform(0.01, 100, (len(embeddings), 1))
    for metric in (0, 1):
        scaled = evaluate_pairs(sizes * embeddings, pairs, same, distance_metric=metric)
        assert scaled.accuracy == evaluate_pairs(embeddings, pairs, same, distance_metric=metric).accuracy
        dead = evaluate_pairs(np.zeros_like(embeddings), pairs, same, distance_metric=metric)
        assert dead.accuracy == 0.5


def test_flipped_halves_count_alike():
    """Angles of 20 and 40 degrees give the mean of the two squared distances, whatever the lengths."""
    plain, flipped = 3 * unit_circle([0, 20]), 7 * unit_circle([0, 40])
    joined = join_flipped(plain, flipped)
    assert joined.shape == (2, 4)
    same = np.array([True, False] * 2)
    distance = 2 - np.cos(np.deg2rad(20)) - np.cos(np.deg2rad(40))
    result = evaluate_pairs(joined, np.array([[0, 1]] * 4), same, folds=2)
    first_accepted = np.flatnonzero(result.roc[1])[0]
    assert first_accepted == np.ceil(distance / 0.01)


def test_report_prints_facenets_lines():
    embeddings = unit_circle([0, 10, 0, 90])
    pairs, same = np.array([[0, 1], [2, 3]] * 6), np.array([True, False] * 6)
    assert report(evaluate_pairs(embeddings, pairs, same, folds=3)).splitlines() == [
        "Accuracy: 1.00000+-0.00000",
        "Validation rate: 1.00000+-0.00000 @ FAR=0.00000",
        "Area Under Curve (AUC): 1.000",
        "Equal Error Rate (EER): 0.000",
        "Threshold: 0.0400",
        "TAR@FAR=0.1: 1.00000",
        "TAR@FAR=0.01: 1.00000",
        "TAR@FAR=0.001: 1.00000",
        "TAR@FAR=0.0001: 1.00000",
        "Pairs used: 12",
    ]


def test_non_finite_embeddings_are_counted_and_named():
    embeddings, pairs, same = benchmark.synthetic_pairs(**SMALL, noise=1.0, seed=7)
    embeddings[[5, 90], [0, 3]] = np.nan, np.inf
    assert non_finite_rows(embeddings).tolist() == [5, 90]
    with pytest.raises(BadData, match=r"2 of 800 embeddings are not finite \(rows 5, 90\)"):
        evaluate_pairs(embeddings, pairs, same)


def test_a_fold_without_one_kind_of_pair_is_named():
    embeddings, pairs, _ = benchmark.synthetic_pairs(**SMALL, noise=1.0, seed=8)
    with pytest.raises(BadData, match="fold 2 has no pair of same people"):
        evaluate_pairs(embeddings, pairs, np.arange(400) < 200, folds=4)
    with pytest.raises(BadData, match="fold 9 has no pair of different people"):
        evaluate_pairs(embeddings, pairs, np.arange(400) > 100, fold_ids=np.where(np.arange(400) < 200, 5, 9))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"distance_metric": 2}, "distance metric 2"),
        ({"folds": 1}, "1 folds for 400 pairs"),
        ({"folds": 401}, "401 folds for 400 pairs"),
        ({"fold_ids": np.zeros(400, int)}, "needs 2 or more"),
        ({"far_target": 0}, "false accept rate 0"),
        ({"tar_at_fars": (2,)}, "false accept rate 2"),
    ],
)
def test_impossible_options_are_refused(options, message):
    embeddings, pairs, same = benchmark.synthetic_pairs(**SMALL, noise=1.0, seed=9)
    with pytest.raises(UserError, match=message):
        evaluate_pairs(embeddings, pairs, same, **options)


@pytest.mark.parametrize("pairs", [np.array([[0, 800]] * 400), np.array([[-1, 0]] * 400), np.zeros((400, 3), int)])
def test_pairs_outside_the_embeddings_are_refused(pairs):
    embeddings, _, same = benchmark.synthetic_pairs(**SMALL, noise=1.0, seed=10)
    with pytest.raises(ValueError, match="rows 0..799|expected embeddings"):
        evaluate_pairs(embeddings, pairs, same)


def test_the_benchmark_ends_with_its_json_line(monkeypatch, capsys):
    arguments = ["verification.py", "--pairs", "200", "--embedding_size", "8", "--repeats", "1"]
    monkeypatch.setattr("sys.argv", arguments)
    benchmark.main()
    line = benchmark.json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(line) == {"name", "value", "unit", "reference", "ratio", "target"}
    assert line["name"] == "verification_10_folds"


def test_flip_accuracy_is_that_of_the_normalised_sum():
    embeddings, pairs, same = benchmark.synthetic_pairs(**SMALL, noise=2.0, seed=6)
    flipped = embeddings + np.random.default_rng(0).normal(size=embeddings.shape).astype(np.float32)
    flipped *= np.linspace(0.5, 2, len(flipped), dtype=np.float32)[:, None]
    verification, norm = verify_flipped(embeddings, flipped, pairs, same)
    # The loop normalises nothing but what it is given.
    sums = [
        (row + other) / np.linalg.norm(row + other)
        for row, other in zip(embeddings.astype(np.float64), flipped.astype(np.float64), strict=True)
    ]
    expected = benchmark.slow_evaluation(np.array(sums), pairs, same)
    plain = benchmark.slow_evaluation(embeddings, pairs, same)
    assert (expected["fold_accuracies"] != plain["fold_accuracies"]).any()
    np.testing.assert_array_equal(verification.fold_accuracies, expected["fold_accuracies"])
    assert norm == pytest.approx(np.mean([np.linalg.norm(row) for half in (embeddings, flipped) for row in half]))
    lines = flip_report("lfw", 2000, verification, 22.39, 0.99817).splitlines()
    assert lines[0] == "[lfw][2000]XNorm: 22.390000"
    assert lines[1] == f"[lfw][2000]Accuracy-Flip: {expected['accuracy']:1.5f}+-{expected['accuracy_std']:1.5f}"
    assert lines[2] == "[lfw][2000]Accuracy-Highest: 0.99817"
    assert len(flip_report("lfw", 2000, verification, 22.39).splitlines()) == 2
    with pytest.raises(ValueError, match="two times"):
        verify_flipped(embeddings[:-2], flipped, pairs, same)


def test_flip_accuracy_keeps_given_folds():
    embeddings, pairs, same = benchmark.synthetic_pairs(**SMALL, noise=2.0, seed=6)
    folds = np.arange(len(pairs)) % 3
    verification, _ = verify_flipped(embeddings, embeddings, pairs, same, fold_ids=folds)
    expected = evaluate_pairs(embeddings, pairs, same, fold_ids=folds)
    np.testing.assert_array_equal(verification.fold_accuracies, expected.fold_accuracies)
