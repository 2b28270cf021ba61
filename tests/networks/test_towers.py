import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def two_towers():
    """What two_towers.py found; a process of its own, because the number of devices is fixed once TensorFlow runs."""
    source = Path(__file__).parents[2] / "src"
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("two_towers.py")],
        env={**os.environ, "PYTHONPATH": str(source), "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "2"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("network", ["small", "iresnet", "every_layer"])
def test_synchronized_towers_equal_one_with_the_whole_batch(two_towers, network):
    found = two_towers[network]
    assert found["loss"] < 1e-10
    assert found["gradients"] < 1e-10
    assert found["statistics"] < 1e-10


def test_without_synchronization_each_tower_keeps_its_own_statistics(two_towers):
    assert two_towers["local"] == [0, 10]
