import json
from pathlib import Path

import numpy as np
import pytest
from conftest import run_python

PROGRAM = Path(__file__).with_name("selected_towers.py")


CASES = {
    1: {"all": {}, "drawn": {"num_selected": 15}, "bad": {"bad_step": 3}},
    2: {"drawn": {"num_selected": 15}, "followed": {"num_selected": 15, "index": True, "follow": True}},
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(towers, case) -> what the run left."""
    results = {}
    for towers, cases in CASES.items():
        path = tmp_path_factory.mktemp("selected") / "out.npz"
        run_python(PROGRAM, towers, json.dumps(cases), path)
        for name, value in np.load(path, allow_pickle=False).items():
            case, _, key = name.partition("/")
            results.setdefault((towers, case), {})[key] = value
    return results


def dense(found, selected):
    """Softmax over the selected classes, momentum with decay on all rows, in float64: losses, class weights, kernel."""
    weights, slot = found["first"].astype(np.float64), np.zeros(found["first"].shape)
    kernel = np.random.default_rng(1).normal(size=(5, 6))
    losses = []
    for images, labels, classes in zip(found["images"].astype(np.float64), found["labels"], selected, strict=True):
        logits = images @ kernel @ weights[classes].T
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        places = np.searchsorted(classes, labels)
        losses.append(-np.log(shares[np.arange(8), places]).mean())
        shares[np.arange(8), places] -= 1
        gradient = np.zeros_like(weights)
        gradient[classes] = shares.T @ (images @ kernel) / 8
        kernel_gradient = images.T @ (shares @ weights[classes]) / 8
        slot = 0.9 * slot + gradient + 0.01 * weights
        weights = weights - 0.1 * slot
        kernel = kernel - 0.1 * kernel_gradient
    return np.array(losses), weights, kernel


@pytest.mark.parametrize("run", [(1, "all"), (1, "drawn"), (2, "drawn"), (2, "followed")], ids=str)
def test_equal_to_softmax_over_the_selected_classes(trained, run):
    found = trained[run]
    losses, weights, kernel = dense(found, found["selected"])
    np.testing.assert_allclose(found["losses"], losses, rtol=1e-5)
    np.testing.assert_allclose(found["weights"], weights, atol=1e-5)
    np.testing.assert_allclose(found["kernel"], kernel, atol=1e-5)
    assert found["version"] == 6
    for labels, classes in zip(found["labels"], found["selected"], strict=True):
        assert set(labels) <= set(classes.tolist())
        assert len(classes) == CASES[run[0]][run[1]].get("num_selected", 40)


def test_the_index_is_rebuilt_and_measured(trained):
    found = trained[2, "followed"]
    np.testing.assert_array_equal(found["rebuilds"], [0, 2, 4])
    np.testing.assert_array_equal(found["recalls"], 1)


def test_towers_select_and_train_alike(trained):
    one, two = trained[1, "drawn"], trained[2, "drawn"]
    np.testing.assert_array_equal(one["selected"], two["selected"])
    np.testing.assert_allclose(one["weights"], two["weights"], atol=1e-6)


def test_a_step_that_is_not_finite_pushes_nothing(trained):
    found = trained[1, "bad"]
    assert found["version"] == 5
    assert np.isfinite(found["weights"]).all()
