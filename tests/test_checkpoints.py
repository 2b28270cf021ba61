"""A checkpoint is whole or not there."""

import json
import os
import signal
import subprocess
import sys
import time

import h5py
import numpy as np
import pytest

from towers import checkpoints
from towers.errors import StorageError

ARRAYS = {"network/conv/kernel": np.arange(6.0).reshape(2, 3), "step": np.int64(7), "half": np.float32([0.1, -0.0])}


def test_arrays_and_facts_come_back_bit_for_bit(tmp_path):
    checkpoints.save(tmp_path, 20, ARRAYS, {"options": {"seed": 1}})
    checkpoint, complaints = checkpoints.newest(tmp_path)
    assert complaints == []
    assert checkpoint.step == 20
    assert checkpoint.facts["options"] == {"seed": 1}
    arrays = checkpoint.read()
    assert arrays.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert np.asarray(array).dtype == arrays[name].dtype
        np.testing.assert_array_equal(arrays[name], array)


def test_nothing_there_is_no_checkpoint(tmp_path):
    assert checkpoints.newest(tmp_path / "none") == (None, [])


def test_two_are_kept_at_least(tmp_path):
    for step in (1, 2, 3, 4):
        checkpoints.save(tmp_path, step, ARRAYS, {}, keep=1)
    assert [path.name for path in sorted(tmp_path.glob("step_*"))] == ["step_00000003", "step_00000004"]
    for step in (5, 6):
        checkpoints.save(tmp_path, step, ARRAYS, {}, keep=3)
    assert len(list(tmp_path.glob("step_*"))) == 3


@pytest.mark.parametrize("fault", ["cut", "flipped", "no manifest", "empty manifest"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path, fault):
    checkpoints.save(tmp_path, 1, ARRAYS, {})
    damaged = checkpoints.save(tmp_path, 2, ARRAYS, {})
    content = (damaged / "arrays.h5").read_bytes()
    if fault == "cut":
        (damaged / "arrays.h5").write_bytes(content[:-1])
    elif fault == "flipped":
        (damaged / "arrays.h5").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif fault == "no manifest":
        (damaged / "manifest.json").unlink()
    else:
        (damaged / "manifest.json").write_text("{}")
    checkpoint, complaints = checkpoints.newest(tmp_path)
    assert checkpoint.step == 1
    assert len(complaints) == 1
    assert str(damaged) in complaints[0]


def test_what_a_killed_process_left_is_ignored_and_removed(tmp_path):
    checkpoints.save(tmp_path, 1, ARRAYS, {})
    left = tmp_path / ".writing-step_00000002-123"
    left.mkdir()
    (left / "arrays.h5").write_bytes(b"half")
    assert checkpoints.newest(tmp_path)[0].step == 1
    checkpoints.save(tmp_path, 3, ARRAYS, {})
    assert not left.exists()


def test_saving_a_step_again_replaces_it(tmp_path):
    checkpoints.save(tmp_path, 1, ARRAYS, {"best": 1})
    checkpoints.save(tmp_path, 1, ARRAYS, {"best": 2})
    assert checkpoints.newest(tmp_path)[0].facts["best"] == 2
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000001"]


def test_a_process_killed_while_it_saves_leaves_a_whole_checkpoint(tmp_path):
    program = (
        "import sys, itertools, numpy as np; from towers import checkpoints; from pathlib import Path\n"
        "arrays = {f'v{i}': np.full((300, 300), i) for i in range(40)}\n"
        "for step in itertools.count(1): checkpoints.save(Path(sys.argv[1]), step, arrays, {})"
    )
    for seconds in (0.05, 0.21, 0.33):
        process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)])
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob("step_*")) and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        process.wait()
        checkpoint, _ = checkpoints.newest(tmp_path)
        assert checkpoint is not None
        assert len(checkpoint.read()) == 40


def test_a_full_disk_keeps_the_older_checkpoint(tmp_path):
    program = (
        "import sys, resource, signal, numpy as np; from towers import checkpoints; from pathlib import Path\n"
        "folder = Path(sys.argv[1]); checkpoints.save(folder, 1, {'a': np.ones(10)}, {})\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))\n"
        "try: checkpoints.save(folder, 2, {'a': np.ones(10_000_000)}, {})\n"
        "except checkpoints.StorageError as error: print(error); sys.exit(error.exit_code)"
    )
    result = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=False)
    assert result.returncode == 74, result.stderr
    assert "older checkpoints are intact" in result.stdout
    assert "80 MB" in result.stdout or "85 MB" in result.stdout
    assert checkpoints.newest(tmp_path)[0].step == 1
    assert os.listdir(tmp_path) == ["step_00000001"]


def test_too_little_space_is_said_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints.shutil, "disk_usage", lambda path: Usage)
    with pytest.raises(StorageError, match="needs 1 MB and 0 MB are free"):
        checkpoints.save(tmp_path, 1, ARRAYS, {})
    assert list(tmp_path.iterdir()) == []


class Usage:
    free = 100


@pytest.mark.parametrize("kind", ["external link", "soft link", "external data"])
def test_weights_that_lie_in_other_files_are_refused(tmp_path, kind):
    path = tmp_path / "weights.h5"
    with h5py.File(path, "w") as file:
        if kind == "external link":
            file["secret"] = h5py.ExternalLink("/etc/other.h5", "/")
        elif kind == "soft link":
            file["real"] = np.ones(2)
            file["secret"] = h5py.SoftLink("/real")
        else:
            file.create_dataset("secret", (4,), "u1", external=[("/etc/hostname", 0, 4)])
    with pytest.raises(StorageError, match="secret"):
        checkpoints.read_arrays(path)


def test_a_file_that_is_no_hdf5_is_refused(tmp_path):
    (tmp_path / "weights.h5").write_text("<html>")
    with pytest.raises(StorageError, match="not a readable HDF5 file"):
        checkpoints.read_arrays(tmp_path / "weights.h5")


def test_the_manifest_names_sizes_and_hashes(tmp_path):
    path = checkpoints.save(tmp_path, 1, ARRAYS, {})
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["arrays.h5"] == {
        "bytes": (path / "arrays.h5").stat().st_size,
        "sha256": checkpoints.sha256(path / "arrays.h5"),
    }
