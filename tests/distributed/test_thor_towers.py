"""THOR gives the same update for any number of towers, and changes nothing where one of them is not finite."""

import numpy as np
import pytest
from distributed.test_towers_equality import assert_equal_runs

# The classifiers are preconditioned too; statistics are of all towers, so BatchNormalization's must be as well.
SETTINGS = {
    "image_size": 28,
    "center_loss_factor": 0.0,
    "prelogits_norm_loss_factor": 0.0,
    "learning_rate": 0.01,
    "thor": {"interval": 5},
}


def test_two_towers_over_20_steps(train_synthetic):
    one, other = (train_synthetic(steps=20, towers=towers, **SETTINGS) for towers in (1, 2))
    assert one["thor_refreshed"].tolist() == [6.0, 0.0, 0.0, 0.0, 0.0] * 4
    assert np.ptp(one["loss"]) > 0.1
    assert_equal_runs(one, other, 1e-8)


@pytest.mark.slow
def test_four_towers_over_20_steps(train_synthetic):
    one, other = (train_synthetic(steps=20, towers=towers, **SETTINGS) for towers in (1, 4))
    assert_equal_runs(one, other, 1e-8)


@pytest.mark.slow
def test_with_auxiliary_heads_and_the_trace_rule(train_synthetic):
    options = {**SETTINGS, "steps": 6, "auxiliary": True, "thor": {"interval": 1, "trace_rule": [0.05, 0.001]}}
    one, other = (train_synthetic(towers=towers, **options) for towers in (1, 2))
    assert len(one["state/thor/trace"]) == 8
    assert 0 < one["thor_refreshed"][1:].sum() < 5 * 8
    assert_equal_runs(one, other, 1e-8)


@pytest.mark.slow
def test_a_nan_on_one_tower_changes_nothing_anywhere(train_synthetic):
    options = {**SETTINGS, "towers": 2, "thor": {"interval": 1}}
    poisoned = train_synthetic(steps=2, poison=[1, 7], **options)
    clean = train_synthetic(steps=1, **options)
    assert poisoned["finite"].tolist() == [1.0, 0.0]
    assert len(poisoned["shards_differ"]) == 0
    for name, value in clean.items():
        if name.startswith("state/"):
            np.testing.assert_array_equal(poisoned[name], value, err_msg=name)


@pytest.mark.slow
def test_float16_takes_the_loss_scale_out_of_the_factors(train_synthetic):
    options = {**SETTINGS, "towers": 2, "steps": 1}
    half, full = (train_synthetic(precision=precision, **options) for precision in ("float16", "float32"))
    for name, value in full.items():
        if name.startswith("state/thor/") and name.endswith(("inputs", "outputs")):
            # float16 keeps three digits; a scale of 2^10 left in would change the outputs' inverses a million fold.
            assert np.linalg.norm(half[name] - value) < 0.2 * np.linalg.norm(value), name
