"""Heads split over 1, 2 and 4 towers, whole and sampled, against the dense loops in float64."""

import functools

import numpy as np
import pytest
from conftest import ROOT, run_python
from distributed import sharded_towers as run
from losses import margin_reference as slow

GRADIENTS = {
    "arcface": {"angles": 0.5, "scale": 8.0},
    "arcface32": {"angles": 0.5, "scale": 8.0},
    "softmax": {"normalised": False, "scale": 1.0},
    "combined": {"m1": 1.1, "angles": 0.3, "offsets": 0.2, "scale": 8.0},
    "chunks": {"angles": 0.5, "scale": 8.0},
    "sub-centres": {"angles": 0.5, "scale": 8.0, "sub_centres": 2, "filter_above": 0.3},
    "sampled": {"angles": 0.5, "scale": 8.0, "sub_centres": 2},
}
LARGEST_ERROR = {"arcface32": 1e-5}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What sharded_towers.py finds on a number of towers; a process each: collectives keep the size of their group."""
    folder = tmp_path_factory.mktemp("sharded")

    @functools.cache
    def run_on(kind, num_towers):
        path = folder / f"{kind}_{num_towers}.npz"
        run_python(ROOT / "tests/distributed/sharded_towers.py", kind, num_towers, path)
        return dict(np.load(path, allow_pickle=False))

    def values(num_towers, name):
        return {
            key.removeprefix(f"{name}/"): value
            for key, value in run_on("QUICK" if name in run.QUICK else "SLOW", num_towers).items()
            if key.startswith(f"{name}/")
        }

    return values


def cases(names, towers=(1, 2, 4)):
    """Runs on numbers of towers; those on 4 and those of SLOW are marked slow."""
    return [
        pytest.param(name, num, marks=[pytest.mark.slow] if num == 4 or name in run.SLOW else [])
        for name in names
        for num in towers
    ]


def changed_classes(found, sub_centres=1):
    """Classes whose rows a step has written, told by the change of their weights."""
    changed = (found["head/weights"] != found["start"]).any(axis=1)
    return np.flatnonzero(changed.reshape(-1, sub_centres).any(axis=1))


def assert_close(found, expected, error):
    np.testing.assert_allclose(found, expected, rtol=0, atol=error * np.abs(expected).max())


@pytest.mark.parametrize(("name", "num_towers"), cases(GRADIENTS))
def test_loss_and_gradients_are_those_of_the_dense_head(results, name, num_towers):
    found, settings = results(num_towers, name), GRADIENTS[name]
    kernel, (batch,) = run.batches(1)
    images, labels = batch["image"], batch["label"]
    start = found["start"].astype(np.float64)
    classes = changed_classes(found, settings.get("sub_centres", 1)) if "sampled" in name else None
    if classes is not None:
        assert set(labels) <= set(classes)
        assert len(classes) == round(0.5 * run.C)

    def loss(kernel, weights):
        return slow.losses(images @ kernel, weights, labels, classes=classes, **settings).mean()

    error = LARGEST_ERROR.get(name, 1e-6)
    assert found["loss"][0] == pytest.approx(loss(kernel, start), rel=error)
    by_kernel = slow.gradient(lambda value: loss(value, start), kernel)
    # The rows are 0.01 long: a step of 1e-8 is as small for them as one of 1e-6 for the kernel.
    by_weights = slow.gradient(lambda value: loss(kernel, value), start, step=1e-8)
    assert_close(kernel - found["kernel"], by_kernel, error)
    assert_close(start - found["head/weights"], by_weights, error)
    assert found["gradient_norm"][0] == pytest.approx(np.sqrt((by_kernel**2).sum() + (by_weights**2).sum()), rel=error)


@pytest.mark.parametrize(("name", "num_towers"), cases([*run.QUICK, *run.SLOW], towers=(2, 4)))
def test_the_towers_change_nothing(results, name, num_towers):
    one, other = results(1, name), results(num_towers, name)
    error = 1e-5 if name == "arcface32" else 1e-9
    for key, value in one.items():
        if np.isfinite(value).all():
            assert_close(other[key], value, error)
    np.testing.assert_array_equal(other["start"], one["start"])


@pytest.mark.parametrize("name", ["trained", "trained sampled"])
def test_training_follows_the_rule_of_the_dense_optimizer(results, name):
    """Nesterov's momentum with weight decay on the rows of a step, all others untouched."""
    found, settings = results(2, name), run.TRAINED
    kernel, batches = run.batches(settings["steps"])
    weights, momentum = found["start"].copy(), np.zeros_like(found["start"])
    from towers.heads.sampling import sampled_classes

    for step, batch in enumerate(batches):
        classes = None
        if "sampled" in name:
            classes = sampled_classes(batch["label"], run.SEED, np.int64(step), round(0.5 * run.C), run.C).numpy()

        def loss(kernel, weights, batch=batch, classes=classes):
            losses = slow.losses(
                batch["image"] @ kernel, weights, batch["label"], angles=0.5, scale=8.0, classes=classes
            )
            return losses.mean()

        assert found["loss"][step] == pytest.approx(loss(kernel, weights), rel=1e-6)
        rows = slice(None) if classes is None else classes
        by_kernel = slow.gradient(lambda value, loss=loss, weights=weights: loss(value, weights), kernel)
        by_weights = slow.gradient(lambda value, loss=loss, kernel=kernel: loss(kernel, value), weights, step=1e-8)
        gradient = (by_weights + settings["weight_decay"] * weights)[rows]
        momentum[rows] = 0.9 * momentum[rows] + gradient
        weights[rows] -= settings["learning_rate"] * (gradient + 0.9 * momentum[rows])
        kernel = kernel - settings["learning_rate"] * by_kernel
    assert_close(found["head/weights"], weights, 1e-6)
    assert_close(found["head/momentum"], momentum, 1e-6)
    assert_close(found["kernel"], kernel, 1e-6)
    if "sampled" in name:
        untouched = ~momentum.any(axis=1)
        np.testing.assert_array_equal(found["head/weights"][untouched], found["start"][untouched])


@pytest.mark.parametrize("name", ["trained sampled", pytest.param("trained", marks=pytest.mark.slow)])
def test_accumulated_parts_are_the_whole_batch(results, name):
    whole, parts = results(2, name), results(2, name.replace("trained", "accumulated"))
    for key in ("loss", "head/weights", "head/momentum", "kernel", "accuracy", "gradient_norm"):
        assert_close(parts[key], whole[key], 1e-9)


@pytest.mark.slow
def test_clipping_sees_the_rows(results):
    free, clipped = results(2, "arcface"), results(2, "clipped")
    kernel, _ = run.batches(1)
    assert free["gradient_norm"][0] > 0.2
    moved = [(clipped["head/weights"] - clipped["start"]), clipped["kernel"] - kernel]
    assert np.sqrt(sum((change**2).sum() for change in moved)) == pytest.approx(0.1, rel=1e-9)
    share = 0.1 / free["gradient_norm"][0]
    assert_close(clipped["head/weights"] - clipped["start"], share * (free["head/weights"] - free["start"]), 1e-9)


@pytest.mark.parametrize(("name", "num_towers"), cases(["poisoned sampled", "poisoned"]))
def test_a_nan_on_one_tower_changes_nothing_anywhere(results, name, num_towers):
    poisoned = results(num_towers, name)
    assert poisoned["finite"].tolist() == [True, True, True, False]
    whole = results(num_towers, name.replace("poisoned", "trained"))
    np.testing.assert_array_equal(poisoned["loss"][:3], whole["loss"][:3])
    # The last step changed nothing: undone, the unbroken run's last step leads here.
    for key in ("head/weights", "head/momentum", "kernel"):
        assert np.isfinite(poisoned[key]).all()
    before, after = poisoned["head/momentum"], whole["head/momentum"]
    gradient = after - 0.9 * before
    moved = (before != after).any(axis=1)
    rate = run.TRAINED["learning_rate"]
    assert_close(
        poisoned["head/weights"][moved] - rate * (gradient + 0.9 * after)[moved], whole["head/weights"][moved], 1e-9
    )


@pytest.mark.slow
def test_adaface_takes_the_norms_of_all_towers(results):
    kernel, (batch,) = run.batches(1)
    norms = np.minimum(np.linalg.norm(batch["image"] @ kernel, axis=1), 100)
    assert results(2, "adaface")["norm_mean"] == pytest.approx(0.5 * norms.mean() + 0.5 * 20)
