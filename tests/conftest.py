"""Shared by the tests: processes with their own number of towers."""

import contextlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]


def run_python(*arguments, cwd=ROOT, check=True, timeout=600, **environment) -> subprocess.CompletedProcess:
    """Run a Python program of the project in a process of its own."""
    result = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env=processes_environment(**environment),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    if check and result.returncode:
        raise AssertionError(f"{arguments} ended with {result.returncode}:\n{result.stdout}\n{result.stderr}")
    return result


def processes_environment(**more) -> dict[str, str]:
    """The environment of a process of the project, without GPUs."""
    own = {"PYTHONPATH": str(ROOT / "src"), "TF_CPP_MIN_LOG_LEVEL": "2", "CUDA_VISIBLE_DEVICES": ""}
    return {**os.environ, **own, **more}


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nobody uses just now."""
    with contextlib.ExitStack() as sockets:
        opened = [sockets.enter_context(socket.create_server(("", 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in opened]


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


def make_faces(folder: Path) -> Path:
    """Six people in ``train`` and four others in ``lfw``, 10 tiny pictures each, and pairs of the latter."""
    random = np.random.default_rng(0)
    for kind, people in (("train", 6), ("lfw", 4)):
        for person in range(people):
            name = f"{kind.title()}_{person}"
            (folder / kind / name).mkdir(parents=True)
            face = random.integers(0, 256, (8, 8, 3)).astype(np.float32)
            for number in range(1, 11):
                picture = cv2.resize(face + random.normal(0, 20, face.shape).astype(np.float32), (32, 32))
                path = folder / kind / name / f"{name}_{number:04}.jpg"
                cv2.imwrite(str(path), np.clip(picture, 0, 255).astype(np.uint8))
    lines = ["2\t6"]
    for fold in range(2):
        lines += [f"Lfw_{2 * fold + pair % 2}\t{pair + 1}\t{pair + 2}" for pair in range(6)]
        lines += [f"Lfw_{2 * fold}\t{pair + 1}\tLfw_{2 * fold + 1}\t{pair + 1}" for pair in range(6)]
    (folder / "pairs.txt").write_text("\n".join(lines) + "\n")
    return folder


def state_of(run_dir, step):
    arrays = {}
    with h5py.File(run_dir / "checkpoints" / f"step_{step:08d}" / "arrays.h5") as file:
        file.visititems(lambda name, item: arrays.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None)
    return arrays


def metrics_of(run_dir, kind="train"):
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


@pytest.fixture(scope="session")
def certificate(tmp_path_factory):
    """A folder with `crt` and `key` of localhost, signed by itself."""
    folder = tmp_path_factory.mktemp("tls")
    command = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=DNS:localhost"
    )
    made = subprocess.run(
        [*command.split(), "-keyout", folder / "key", "-out", folder / "crt"], capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip("openssl cannot make a certificate here")
    return folder
