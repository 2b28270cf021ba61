"""The same global batch gives the same update for any number of towers."""

import numpy as np
import pytest

OTHER_NETWORKS = {
    "mobilefacenet_y1": {"image_size": 48},
    "mobilefacenet": {"image_size": 48},
    "inception_resnet_v1": {"image_size": 96},
}


def relative_difference(one, other):
    """Largest difference of two arrays, relative to the largest magnitude of the first."""
    one, other = np.float64(one), np.float64(other)
    return np.abs(one - other).max(initial=0) / max(np.abs(one).max(initial=0), 1e-12)


def assert_equal_runs(one, other, tolerance):
    assert len(other["shards_differ"]) == 0
    np.testing.assert_allclose(other["loss"], one["loss"], rtol=tolerance)
    states = [name for name in one if name.startswith("state/")]
    assert len(states) > 20
    # A gradient that is zero in exact arithmetic (a bias before BN) is rounding noise, different in every run.
    differences = {name: relative_difference(one[name], other[name]) for name in states}
    meaningful = {name: value for name, value in differences.items() if np.abs(one[name]).max(initial=0) > 1e-9}
    worst = max(meaningful, key=meaningful.get)
    assert meaningful[worst] < tolerance, (worst, meaningful[worst])


@pytest.mark.parametrize("towers", [2, 4])
def test_small_over_20_steps(train_synthetic, towers):
    one = train_synthetic(steps=20, towers=1)
    assert np.ptp(one["loss"]) > 0.1
    other = train_synthetic(steps=20, towers=towers)
    assert other["tower_losses"].shape == (20, towers)
    np.testing.assert_allclose(other["tower_losses"].mean(axis=1), other["loss"], rtol=1e-12)
    assert_equal_runs(one, other, 1e-9)


@pytest.mark.parametrize("reduction", ["nccl", pytest.param("hierarchical", marks=pytest.mark.slow)])
def test_every_reduction_gives_the_same(train_synthetic, reduction):
    one = train_synthetic(steps=3, towers=1)
    assert_equal_runs(one, train_synthetic(steps=3, towers=2, reduction=reduction), 1e-9)


@pytest.mark.parametrize(
    "optimizer", ["ADAM", *(pytest.param(name, marks=pytest.mark.slow) for name in ("ADAGRAD", "ADADELTA", "RMSPROP"))]
)
def test_every_optimizer_with_clipping(train_synthetic, optimizer):
    options = {"steps": 3, "optimizer": optimizer, "clip_norm": 0.5}
    assert_equal_runs(train_synthetic(towers=1, **options), train_synthetic(towers=2, **options), 1e-9)


def test_clipping_concerns_the_reduced_gradient(train_synthetic):
    free = train_synthetic(steps=1, towers=2, optimizer="SGD", learning_rate=1.0, weight_decay=0.0)
    clipped = train_synthetic(steps=1, towers=2, optimizer="SGD", learning_rate=1.0, weight_decay=0.0, clip_norm=0.1)
    start = train_synthetic(steps=1, towers=2, optimizer="SGD", learning_rate=0.0, weight_decay=0.0)
    trained = [name.replace("state/average/", "") for name in start if name.startswith("state/average/")]
    named = {name: next(key for key in start if key.endswith("/" + name) and "average" not in key) for name in trained}

    def norm(run):
        return np.sqrt(sum(((run[key] - start[key]) ** 2).sum() for key in named.values()))

    assert norm(free) == pytest.approx(free["gradient_norm"][0], rel=1e-9)
    assert free["gradient_norm"][0] > 0.2
    assert norm(clipped) == pytest.approx(0.1, rel=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("network", OTHER_NETWORKS)
@pytest.mark.parametrize("towers", [2, 4])
def test_other_networks_over_3_steps(train_synthetic, network, towers):
    options = {"network": network, "steps": 3, "batch_size": 8, **OTHER_NETWORKS[network]}
    assert_equal_runs(train_synthetic(towers=1, **options), train_synthetic(towers=towers, **options), 1e-9)


@pytest.mark.parametrize("towers", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_auxiliary_classifiers(train_synthetic, towers):
    """Their losses are summed into the loss, by tower, and the update is that of one tower."""
    options = {"steps": 5, "auxiliary": True, "center_loss_factor": 0.0, "prelogits_norm_loss_factor": 0.0}
    one, other = train_synthetic(towers=1, **options), train_synthetic(towers=towers, **options)
    assert_equal_runs(one, other, 1e-9)
    assert other["tower_aux1"].shape == (5, towers)
    parts = other["tower_main"] + 0.3 * (other["tower_aux1"] + other["tower_aux2"])
    np.testing.assert_allclose(parts, other["tower_losses"], rtol=1e-12)
    assert np.abs(other["state/aux1/bias"]).max() > 1e-4
    assert np.abs(other["tower_aux1"] - other["tower_aux2"]).max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["bn", "lrn"])
@pytest.mark.parametrize("towers", [2, 4])
def test_googlenet_over_3_steps(train_synthetic, norm, towers):
    options = {"network": "googlenet", "steps": 3, "image_size": 65, "embedding_size": 1024, "auxiliary": True}
    options |= {"norm": norm, "sync_bn": norm == "bn", "center_loss_factor": 0.0, "learning_rate": 0.01}
    one, other = train_synthetic(towers=1, **options), train_synthetic(towers=towers, **options)
    assert_equal_runs(one, other, 1e-9)
    assert other["tower_aux2"].shape == (3, towers)


@pytest.mark.parametrize("towers", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_float32_gradients_of_the_first_step(train_synthetic, towers):
    options = {"steps": 1, "precision": "float32", "optimizer": "SGD", "learning_rate": 1.0, "weight_decay": 0.0}
    one, other = train_synthetic(towers=1, **options), train_synthetic(towers=towers, **options)
    start = train_synthetic(towers=1, **{**options, "learning_rate": 0.0})
    total = np.sqrt(sum(((one[name] - start[name]) ** 2).sum() for name in start if "kernel" in name))
    compared = 0
    for name in start:
        if not name.startswith(("state/network/", "state/head/")) or "moving" in name:
            continue
        gradient, difference = one[name] - start[name], other[name] - one[name]
        norm = np.linalg.norm(gradient)
        if norm > 1e-6 * total:
            assert np.linalg.norm(difference) < 1e-4 * norm + 1e-6 * np.linalg.norm(start[name]), name
            compared += 1
    assert compared > 10


@pytest.mark.parametrize("towers", [2, pytest.param(1, marks=pytest.mark.slow)])
def test_a_nan_on_any_tower_changes_nothing_anywhere(train_synthetic, towers):
    poisoned = train_synthetic(steps=2, towers=towers, poison=[1, 7])
    clean = train_synthetic(steps=1, towers=towers)
    assert poisoned["finite"].tolist() == [1.0, 0.0]
    assert len(poisoned["shards_differ"]) == 0
    for name, value in clean.items():
        if name.startswith("state/"):
            np.testing.assert_array_equal(poisoned[name], value, err_msg=name)


@pytest.mark.slow
def test_float16_halves_its_loss_scale_where_a_step_overflows(train_synthetic):
    poisoned = train_synthetic(steps=2, towers=2, precision="float16", poison=[1, 0])
    assert poisoned["finite"].tolist() == [1.0, 0.0]
    assert poisoned["state/loss_scale/scale"] == 2.0**9
    exact = train_synthetic(steps=1, towers=2, precision="float32")
    np.testing.assert_allclose(poisoned["loss"][0], exact["loss"][0], rtol=1e-2)


def test_bfloat16_keeps_float32_weights(train_synthetic):
    half = train_synthetic(steps=3, towers=2, precision="bfloat16")
    full = train_synthetic(steps=3, towers=2, precision="float32")
    np.testing.assert_allclose(half["loss"], full["loss"], rtol=5e-2)
    assert all(half[name].dtype == full[name].dtype for name in full)


def test_bn_statistics_are_the_mean_over_towers_without_sync_bn(train_synthetic):
    run = train_synthetic(steps=2, towers=2, sync_bn=False)
    assert len(run["shards_differ"]) == 0
    whole = train_synthetic(steps=2, towers=1, sync_bn=False)
    means = [name for name in run if name.endswith("moving_mean") and name.startswith("state/network")]
    # The first layer sees the same pictures whatever the towers; the mean of two halves' means is the whole's.
    np.testing.assert_allclose(run[means[0]], whole[means[0]], rtol=0.2, atol=0.05)
    assert np.abs(run[means[0]]).max() > 0


def test_dropout_draws_a_mask_of_its_own_on_each_tower(train_synthetic):
    whole = train_synthetic(steps=1, towers=1, keep_probability=0.5)
    split = train_synthetic(steps=1, towers=2, keep_probability=0.5)
    assert abs(whole["loss"][0] - split["loss"][0]) > 1e-6
    assert len(split["shards_differ"]) == 0
