"""MultiGrain's objective gives the same update for any number of towers where pairs come from all of them."""

import functools

import numpy as np
import pytest
from conftest import ROOT, run_python


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("multigrain")

    @functools.cache
    def run_on(num_towers, settings="margin/global/20,margin/tower/1"):
        path = folder / f"{num_towers}.npz"
        run_python(ROOT / "tests/distributed/multigrain_towers.py", num_towers, settings, path)
        return dict(np.load(path, allow_pickle=False))

    return run_on


def assert_equal_runs(one, other, loss):
    losses = one[f"{loss}/global/losses"]
    assert len(losses) == 20
    assert losses[-1] < 0.9 * losses[0]
    np.testing.assert_allclose(other[f"{loss}/global/losses"], losses, rtol=1e-8)
    np.testing.assert_allclose(other[f"{loss}/global/weights"], one[f"{loss}/global/weights"], rtol=1e-6, atol=1e-9)


def test_the_same_update_for_two_towers(results):
    assert_equal_runs(results(1), results(2), "margin")


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["margin", "triplet"])
def test_the_same_update_for_four_towers(results, loss):
    setting = f"{loss}/global/20"
    assert_equal_runs(results(1, setting), results(4, setting), loss)


@pytest.mark.slow
def test_thor_takes_another_way_and_the_same_for_any_number_of_towers(results):
    setting = "margin+thor/global/20"
    one = results(1, setting)
    for num_towers in (2, 4):
        assert_equal_runs(one, results(num_towers, setting), "margin+thor")
    plain, preconditioned = results(1)["margin/global/losses"], one["margin+thor/global/losses"]
    assert preconditioned[0] == pytest.approx(plain[0], rel=1e-12)
    assert np.abs(preconditioned[1:] / plain[1:] - 1).max() > 0.01


def test_every_part_is_logged_of_each_tower(results):
    found = {name.removeprefix("margin/tower/") for name in results(2) if name.startswith("margin/tower/")}
    assert {"main", "retrieval", "accuracy", "active", "beta", "positive_distance", "negative_distance"} <= found
    assert results(2)["margin/tower/main"].shape == (2,)
    assert np.ptp(results(2)["margin/tower/main"]) > 0
    assert np.ptp(results(2)["margin/tower/beta"]) == 0


def test_pairs_of_the_own_tower_are_others(results):
    """The copies are the same, so only the negatives differ."""
    assert abs(results(2)["margin/tower/losses"][0] / results(2)["margin/global/losses"][0] - 1) > 1e-6
    pairs = results(2)["margin/tower/pairs"]
    np.testing.assert_array_equal(pairs, [8, 8])
