import json
from pathlib import Path

import numpy as np
import pytest
from conftest import run_python

from towers.classcenters.spec import MatrixSpec
from towers.classcenters.store import memory_store
from towers.heads.stored_rows import StoredRows

PROGRAM = Path(__file__).with_name("selected_towers.py")


FEATURES = {"num_selected": 15, "index": True, "interval": 1, "query": "features", "dtype": "float64"}
CASES = {
    1: {
        "all": {},
        "drawn": {"num_selected": 15},
        "bad": {"bad_step": 3},
        "late": {"num_selected": 15, "steps": 3, "late": True, "follow": True, "wait": False},
        "features": {**FEATURES, "steps": 3},
        "features, margin": {**FEATURES, "steps": 3, "margin": 0.2},
    },
    2: {
        "drawn": {"num_selected": 15},
        "followed": {"num_selected": 15, "index": True, "follow": True},
        "ahead": {"num_selected": 15, "index": True, "follow": True, "wait": False},
        "lost": {"num_selected": 15, "steps": 3, "lost_step": 2},
        "features": {**FEATURES, "steps": 3},
        "features, margin": {**FEATURES, "steps": 3, "margin": 0.2},
        "features, lost": {**FEATURES, "steps": 3, "lost_step": 2},
        "features, followed": {**FEATURES, "interval": 2, "dtype": "float32", "follow": True},
    },
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


def softmax_by_loops(features, labels, centres, classes, margin):
    """Mean loss, and its gradients by features and by the centres of the classes, one example and class at a time."""
    scale = 4.0 if margin else 1.0
    loss, by_features, by_rows = 0.0, np.zeros_like(features), np.zeros((len(classes), features.shape[1]))
    for number, (feature, label) in enumerate(zip(features, labels, strict=True)):
        length = np.linalg.norm(feature) if margin else 1.0
        lengths = [np.linalg.norm(centres[one]) if margin else 1.0 for one in classes]
        cosines = [feature @ centres[one] / length / size for one, size in zip(classes, lengths, strict=True)]
        logits = np.array([scale * (c - margin * (one == label)) for one, c in zip(classes, cosines, strict=True)])
        shares = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        loss -= np.log(shares[list(classes).index(label)]) / len(labels)
        for place, one in enumerate(classes):
            by_cosine = scale * (shares[place] - (one == label)) / len(labels)
            towards_row, towards_feature = centres[one] / lengths[place], feature / length
            along = cosines[place] if margin else 0.0
            by_features[number] += by_cosine * (towards_row - along * towards_feature) / length
            by_rows[place] += by_cosine * (towards_feature - along * towards_row) / lengths[place]
    return loss, by_features, by_rows


def nearest_classes(features, labels, centres, count, unit):
    """The labels and the classes with the largest score over the features, ``count`` in all."""

    def score(one):
        sizes = np.linalg.norm(features, axis=1) * np.linalg.norm(centres[one]) if unit else 1.0
        return (features @ centres[one] / sizes).max()

    own = set(labels.tolist())
    others = sorted(set(range(len(centres))) - own, key=score, reverse=True)
    return sorted(own | set(others[: count - len(own)]))


@pytest.mark.parametrize("towers", [1, 2])
@pytest.mark.parametrize("case", ["features", "features, margin"])
def test_queried_by_features_equal_to_loops(trained, towers, case):
    found, margin = trained[towers, case], CASES[towers][case].get("margin", 0.0)
    for step, centres in enumerate(found["centres"].astype(np.float64)):
        features, labels = found["images"][step] @ found["kernels"][step], found["labels"][step]
        classes = nearest_classes(features, labels, centres, 15, unit=bool(margin))
        assert found["selected"][step].tolist() == classes
        loss, by_features, by_rows = softmax_by_loops(features, labels, centres, classes, margin)
        assert found["losses"][step] == pytest.approx(loss, abs=1e-9)
        np.testing.assert_allclose(found["gradients"][step], by_rows, rtol=0, atol=1e-9)
        by_kernel = (found["kernels"][step] - found["kernels"][step + 1]) / 0.1
        np.testing.assert_allclose(by_kernel, found["images"][step].T @ by_features, rtol=0, atol=1e-9)


def test_all_towers_take_the_classes_that_one_asked_for(trained):
    found = trained[2, "features, followed"]
    # One selection a step, and one for the measure of each rebuild.
    assert found["calls"].tolist() == [0, 0, 1, 2, 2, 3, 4, 4, 5]
    np.testing.assert_array_equal(found["rebuilds"], [0, 2, 4])
    assert found["version"] == 6


@pytest.mark.parametrize("case", ["lost", "features, lost"])
def test_an_error_of_the_store_ends_a_step_that_waits(trained, case):
    assert trained[2, case]["error"] == "step 2: the server is gone"


def test_rows_come_while_the_network_runs(trained):
    found = trained[1, "late"]
    assert (found["waits"] >= 0.05).all()
    assert trained[2, "followed"]["waits"].shape == (6, 2)
    assert (trained[2, "followed"]["waits"] >= 0).all()


@pytest.mark.parametrize(
    "run", [(1, "all"), (1, "drawn"), (2, "drawn"), (2, "followed"), (2, "ahead"), (1, "late")], ids=str
)
def test_equal_to_softmax_over_the_selected_classes(trained, run):
    found = trained[run]
    losses, weights, kernel = dense(found, found["selected"])
    np.testing.assert_allclose(found["losses"], losses, rtol=1e-5)
    np.testing.assert_allclose(found["weights"], weights, atol=1e-5)
    np.testing.assert_allclose(found["kernel"], kernel, atol=1e-5)
    assert found["version"] == len(losses)
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


@pytest.mark.parametrize("is_chief", [True, False])
def test_the_chief_alone_reads_and_writes_the_rows(is_chief):
    store, calls = memory_store(), []
    store.create("head", MatrixSpec(rows=5, columns=2))
    first = store.pull("head", np.arange(5))
    rows = StoredRows(
        store,
        "head",
        0,
        settle=lambda: calls.append("settle"),
        written=lambda: calls.append("written"),
        is_chief=is_chief,
    )
    assert len(list(rows.chunks())) == is_chief
    rows.assign(np.ones((5, 2)))
    np.testing.assert_array_equal(store.pull("head", np.arange(5)), np.ones((5, 2)) if is_chief else first)
    assert calls == ["settle", "settle", "written"]
