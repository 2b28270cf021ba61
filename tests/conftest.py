"""Shared by the tests: processes with their own number of towers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]


def run_python(*arguments, cwd=ROOT, check=True, timeout=600, **environment) -> subprocess.CompletedProcess:
    """Run a Python program of the project in a process of its own."""
    result = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT / "src"),
            "TF_CPP_MIN_LOG_LEVEL": "2",
            "CUDA_VISIBLE_DEVICES": "",
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    if check and result.returncode:
        raise AssertionError(f"{arguments} ended with {result.returncode}:\n{result.stdout}\n{result.stderr}")
    return result


@pytest.fixture(scope="session")
def train_synthetic(tmp_path_factory):
    """Train on random pictures with some number of towers, in a process of its own; the same options run once."""
    folder = tmp_path_factory.mktemp("train_synthetic")
    results = {}

    def run(**options) -> dict[str, np.ndarray]:
        key = json.dumps(options, sort_keys=True)
        if key not in results:
            path = folder / f"{len(results)}.npz"
            run_python(ROOT / "tests/distributed/train_synthetic.py", key, path)
            results[key] = dict(np.load(path, allow_pickle=False))
        return results[key]

    return run
