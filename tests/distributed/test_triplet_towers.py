"""Triplets mined over all towers are those of one tower with the whole batch; over a tower, those of its part."""

import functools

import numpy as np
import pytest
from conftest import ROOT, run_python
from distributed import triplet_towers as run
from losses import triplet_reference as slow

TOLERANCE = {"float64": 1e-9, "float32": 1e-5}


def of_scope(scope):
    return [setting for setting in run.SETTINGS if setting[-1] == scope]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What triplet_towers.py finds on a number of towers; a process each: collectives keep the size of their group."""
    folder = tmp_path_factory.mktemp("triplets")

    @functools.cache
    def run_on(num_towers):
        path = folder / f"{num_towers}.npz"
        run_python(ROOT / "tests/distributed/triplet_towers.py", num_towers, path)
        return dict(np.load(path, allow_pickle=False))

    return run_on


def expected(mining, soft_margin, num_parts):
    """Loss and gradient of the un-normalised embeddings, from the loops; each anchor sees its own part only."""
    batch = run.batch()
    raw, labels = batch["embeddings"], batch["label"]
    norms = np.linalg.norm(raw, axis=1, keepdims=True)
    unit = raw / norms
    share = len(labels) // num_parts
    triplets, _ = slow.mine(
        slow.squared_distances(unit),
        labels,
        batch["position"],
        mining=mining,
        alpha=run.ALPHA,
        seed=run.SEED,
        scope=lambda a: range(a // share * share, a // share * share + share),
    )
    losses, weights, gradient = slow.losses_and_gradient(unit, triplets, alpha=run.ALPHA, soft_margin=soft_margin)
    gradient = (gradient - unit * (unit * gradient).sum(axis=1, keepdims=True)) / norms
    return losses.sum() / weights.sum(), gradient / weights.sum()


@pytest.mark.parametrize("num_towers", [2, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("dtype", "mining", "soft_margin", "scope"), of_scope("global"))
def test_global_scope_does_not_depend_on_the_towers(results, dtype, mining, soft_margin, scope, num_towers):
    name = f"{dtype}/{mining}/{soft_margin}/{scope}"
    found, one = (
        {key: results(num)[f"{name}/{key}"] for key in ("loss", "gradient", "pairs")} for num in (num_towers, 1)
    )
    loss, gradient = expected(mining, soft_margin, 1)
    for want in ({"loss": loss, "gradient": gradient}, one):
        np.testing.assert_allclose(found["loss"], want["loss"], rtol=TOLERANCE[dtype])
        largest = np.abs(gradient).max()
        np.testing.assert_allclose(found["gradient"], want["gradient"], atol=TOLERANCE[dtype] * largest)
    assert found["pairs"].shape == (num_towers,)
    assert found["pairs"].sum() == one["pairs"].sum()


@pytest.mark.parametrize(("dtype", "mining", "soft_margin", "scope"), of_scope("tower"))
def test_tower_scope_is_the_mean_over_what_each_tower_mines(results, dtype, mining, soft_margin, scope):
    name = f"{dtype}/{mining}/{soft_margin}/{scope}"
    loss, gradient = expected(mining, soft_margin, 2)
    np.testing.assert_allclose(results(2)[f"{name}/loss"], loss, rtol=1e-9)
    np.testing.assert_allclose(results(2)[f"{name}/gradient"], gradient, atol=1e-9 * np.abs(gradient).max())
    assert abs(loss / expected(mining, soft_margin, 1)[0] - 1) > 1e-4


def test_metrics_of_the_embeddings(results):
    raw = run.batch()["embeddings"]
    norms = np.linalg.norm(raw, axis=1)
    distances = slow.squared_distances(raw / norms[:, None])
    mean = distances.sum() / (len(raw) * (len(raw) - 1))
    found, own = (
        {key: results(2)[f"float64/facenet/False/{scope}/{key}"] for key in ("pair_distance", "embedding_norm")}
        for scope in ("global", "tower")
    )
    np.testing.assert_allclose(found["pair_distance"], [mean, mean], rtol=1e-9)
    np.testing.assert_allclose(found["embedding_norm"], norms.reshape(2, -1).mean(axis=1), rtol=1e-9)
    assert np.abs(own["pair_distance"] / mean - 1).max() > 1e-3
