"""benchmarks/accelerator.py: a step written down as StableHLO, and what is drawn for it elsewhere."""

import importlib.util
import json
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT

SCRIPT = ROOT / "benchmarks/accelerator.py"


@pytest.fixture(scope="module")
def accelerator():
    spec = importlib.util.spec_from_file_location("accelerator", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_step_is_written_with_its_arguments_and_gives_its_variables_back(accelerator, tmp_path):
    index = next(n for n, case in enumerate((*accelerator.NETWORKS, *accelerator.HEADS)) if case.num_classes == 10_000)
    command = [sys.executable, SCRIPT, "--export", tmp_path, "--one", str(index), "float32"]
    subprocess.run(command, check=True, capture_output=True)
    (module,) = tmp_path.glob("*.mlir")
    text, about = module.read_text(), json.loads(module.with_suffix(".json").read_text())
    assert "mhlo.copy" not in text
    given = [(tuple(one["shape"]), one["element"]) for one in about["arguments"]]
    assert given == accelerator.argument_types(text)
    # Pictures, labels, positions, step and rate; then the head's weights and momentum, the layer's, and the count.
    updated = sorted(argument for argument, _ in accelerator.variable_results(text))
    assert updated == [5, 6, 7, 8, 9]
    assert [given[place] for place in updated].count(((10_000, 512), "f32")) == 2


def test_what_is_drawn_is_like_what_was_there(accelerator):
    random = np.random.default_rng(0)
    weights = accelerator.drawn({"shape": [400, 500], "element": "f32", "mean": 2.0, "deviation": 0.5}, random)
    assert weights.dtype == np.float32
    assert (weights.mean(), weights.std()) == pytest.approx((2.0, 0.5), abs=0.01)
    labels = accelerator.drawn({"shape": [1000], "element": "i64", "least": 3, "most": 5}, random)
    assert labels.dtype == np.int64
    assert set(labels) == {3, 4, 5}
    rate = accelerator.drawn({"shape": [], "element": "f64", "mean": 0.1, "deviation": 0.0}, random)
    assert rate.shape == ()
    assert rate == pytest.approx(0.1)


def test_one_of_export_and_time_is_needed(accelerator):
    done = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True)
    assert done.returncode == 2
    assert "give --export DIR or --time DIR" in done.stderr
