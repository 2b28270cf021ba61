"""train_multi_gpu.py --head selected as a user runs it, on tiny pictures, in processes of its own."""

import json

import numpy as np
import pytest
from classcenters.serving import Program
from conftest import make_faces, metrics_of, run_python, state_of

from towers.classcenters.remote import RemoteStore

SMALL = [
    *("--network", "small", "--image_size", "28", "--embedding_size", "16", "--batch_size", "8", "--log_every", "1"),
    *("--learning_rate", "0.02", "--validate_every_n_epochs", "0", "--verbose", "0", "--scale", "16"),
    *("--head", "selected", "--num_selected", "8", "--ntrees", "2", "--interval", "2", "--moving_average_decay", "0"),
]


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    return make_faces(tmp_path_factory.mktemp("faces"))


def train(faces, run_dir, *options, check=True):
    command = ("train_multi_gpu.py", "--data_dir", faces / "train", "--run_dir", run_dir, *SMALL, *options)
    return run_python(*command, check=check)


def test_a_run_and_its_resumption(faces, tmp_path):
    first = train(faces, tmp_path / "run", "--towers", "2", "--max_steps", "3", "--adaptive")
    assert "index of step 0" in first.stderr
    assert "recall 1.000, probability mass 1.000" in first.stderr
    state = state_of(tmp_path / "run", 3)
    assert state["head/weights"].shape == state["head/slot"].shape == (6, 16)
    assert np.abs(state["head/slot"]).max() > 0
    for line in metrics_of(tmp_path / "run"):
        assert np.isfinite(line["loss"])
        assert len(line["tower_selection_wait_seconds"]) == len(line["tower_server_wait_seconds"]) == 2
        assert 0 <= line["rows_wait"] <= 1
    assert "for class weights" in (tmp_path / "run" / "train.log").read_text()
    train(faces, tmp_path / "run", "--towers", "1", "--max_steps", "4", "--adaptive")
    after = state_of(tmp_path / "run", 4)
    assert 0 < np.abs(after["head/weights"] - state["head/weights"]).max() < 0.1


def test_held_out_pictures_are_classified_among_all_classes(faces, tmp_path):
    """And what is right among the selected ones goes by another name."""
    options = ("--max_steps", "40", "--learning_rate", "0.1", "--validation_set_split_ratio", "0.3")
    found = train(faces, tmp_path / "run", *options, "--validate_every_n_epochs", "100")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    (validated,) = [line for line in lines if "val_accuracy" in line]
    assert validated["val_accuracy"] >= 0.5
    assert f"accuracy {validated['val_accuracy']:.5f}" in found.stdout
    steps = [line for line in lines if "selected_accuracy" in line]
    assert len(steps) == 40
    assert not any("accuracy" in line or "tower_accuracy" in line for line in lines)
    assert "right among the selected" in found.stdout
    found = train(faces, tmp_path / "other", *options, "--head", "sharded", "--sub_centres", "2", check=False)
    assert found.returncode == 2
    assert "--sub_centres 2: --val_dir and --validation_set_split_ratio need one centre a class" in found.stderr


def test_options_that_do_not_fit(faces, tmp_path):
    found = train(faces, tmp_path / "run", "--num_selected", "5", check=False)
    assert found.returncode == 2
    assert "--num_selected 8 or more" in found.stderr
    dry = train(faces, tmp_path / "run", "--dry_run", "--identities", "100000000")
    assert "8 of 100,000,000 classes a step" in dry.stdout
    assert "13.60 GB, in host memory" in dry.stdout
    dry = train(faces, tmp_path / "run", "--dry_run", "--param_servers", "127.0.0.1:5570")
    assert "in memory of servers" in dry.stdout
    mapped = ("--center_folder", tmp_path / "centres", "--center_waiting_gb")
    dry = train(faces, tmp_path / "run", "--dry_run", "--identities", "100000000", *mapped, "2.5")
    assert "13.60 GB, in mapped files, 2.50 GB of changed ones in memory" in dry.stdout
    for wrong in ("-1", "inf"):
        found = train(faces, tmp_path / "run", *mapped, wrong, "--dry_run", "--identities", "9", check=False)
        assert found.returncode == 2
        assert f"--center_waiting_gb {float(wrong)}: 0 or more" in found.stderr
    dry = train(faces, tmp_path / "run", "--dry_run", "--identities", "100000000", *mapped, "2.5", "--deterministic")
    assert "0.00 GB of changed ones in memory" in dry.stdout
    assert "--center_waiting_gb does nothing with --deterministic" in dry.stderr


@pytest.mark.slow
def test_classes_near_the_features(faces, tmp_path):
    options = ("--query", "features", "--num_selected", "8", "--towers", "2", "--max_steps", "3")
    train(faces, tmp_path / "run", *options, "--selector", "ivf")
    assert all(np.isfinite(line["loss"]) for line in metrics_of(tmp_path / "run"))
    assert np.abs(state_of(tmp_path / "run", 3)["head/slot"]).max() > 0
    found = train(faces, tmp_path / "parts", *options, "--accumulate", "2", check=False)
    assert found.returncode == 2
    assert "--accumulate 2: --query features needs the features of a whole batch" in found.stderr


@pytest.mark.slow
@pytest.mark.parametrize("query", ["center", "features"])
def test_bit_for_bit_resumption(faces, tmp_path, query):
    # The rates are those of six epochs, wherever a run ends.
    options = [
        *(
            "--query",
            query,
            "--deterministic",
            "--adaptive",
            "--num_selected",
            "4",
            "--interval",
            "3",
            "--selector",
            "ivf",
        ),
        *("--batch_size", "4", "--towers", "2", "--weight_decay", "0.01", "--max_epochs", "6"),
    ]
    for run_dir, steps in (("whole", 40), ("parts", 20), ("parts", 40)):
        train(faces, tmp_path / run_dir, *options, "--max_steps", str(steps))
    whole, parts = (state_of(tmp_path / run_dir, 40) for run_dir in ("whole", "parts"))
    assert {"head/weights", "head/slot", "head/settings", "head/indexed", "head/indexed_at"} < set(whole)
    assert set(parts) == set(whole)
    for name, values in whole.items():
        np.testing.assert_array_equal(parts[name], values, err_msg=name)
    losses = [[line["loss"] for line in metrics_of(tmp_path / run_dir)] for run_dir in ("whole", "parts")]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 40


def test_a_server_behind_tls(faces, tmp_path, certificate):
    crt, key = certificate / "crt", certificate / "key"
    program = Program("--tls_cert", crt, "--tls_key", key)
    try:
        train(
            *(faces, tmp_path / "run", "--max_steps", "2", "--param_servers", f"localhost:{program.port}"),
            *("--param_tls_ca", crt),
        )
        assert RemoteStore([f"localhost:{program.port}"], ca=crt.read_bytes()).version("class_centers") == 2
    finally:
        program.kill()


@pytest.mark.slow
def test_servers_train_as_memory_does(faces, tmp_path):
    options = ("--deterministic", "--max_steps", "3")
    train(faces, tmp_path / "memory", *options)
    train(faces, tmp_path / "mapped", *options, "--center_folder", tmp_path / "centres")
    program = Program()
    try:
        train(faces, tmp_path / "remote", *options, "--param_servers", program.address)
        expected = state_of(tmp_path / "memory", 3)["head/weights"]
        for name in ("mapped", "remote"):
            np.testing.assert_array_equal(state_of(tmp_path / name, 3)["head/weights"], expected)
        store = RemoteStore([program.address])
        assert store.version("class_centers") == 3
        np.testing.assert_array_equal(store.pull("class_centers", np.arange(6)), expected)
        other = train(faces, tmp_path / "other", *options, "--param_servers", program.address, check=False)
        assert other.returncode == 2
        assert "class centres of 3 steps, and this run begins with its first" in other.stderr
    finally:
        program.kill()
