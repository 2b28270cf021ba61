"""The main job as a user runs it: train_softmax.py and validate_on_lfw.py in processes of their own."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import h5py
import numpy as np
import pytest
from conftest import ROOT, make_faces, metrics_of, run_python, state_of

SMALL = [
    *("--network", "small", "--image_size", "28", "--embedding_size", "16", "--batch_size", "8", "--log_every", "2"),
    *("--random_crop", "--random_flip", "--learning_rate", "0.02", "--validate_every_n_epochs", "0"),
]


@pytest.fixture(scope="session")
def faces(tmp_path_factory):
    return make_faces(tmp_path_factory.mktemp("faces"))


def train(faces, run_dir, *options, check=True, **environment):
    return run_python(
        *("train_softmax.py", "--data_dir", faces / "train", "--run_dir", run_dir, *SMALL, *options),
        check=check,
        **environment,
    )


def with_pairs(faces):
    return ["--lfw_dir", faces / "lfw", "--lfw_pairs", faces / "pairs.txt"]


@pytest.fixture(scope="session")
def trained(faces, tmp_path_factory):
    """A finished run on two towers with every feature of the softmax script on, and what it printed."""
    run_dir = tmp_path_factory.mktemp("runs") / "trained"
    result = train(
        faces,
        run_dir,
        *with_pairs(faces),
        *("--towers", "2", "--max_epochs", "3", "--validate_every_n_epochs", "1", "--audit_data", "--log_histograms"),
        "--time_towers",
        *("--center_loss_factor", "0.01", "--prelogits_norm_loss_factor", "1e-4", "--keep_probability", "0.9"),
        *("--validation_set_split_ratio", "0.2", "--random_rotate", "--label_smoothing", "0.1"),
    )
    return run_dir, result.stdout


def test_a_run_folder_holds_what_users_look_for(trained):
    run_dir, output = trained
    for name in (
        *("options.json", "environment.json", "metrics.jsonl", "train.log", "lfw_result.txt", "roc.png", "curves.png"),
        *("model/model.json", "model/weights.h5", "tensorboard", "checkpoints"),
    ):
        assert (run_dir / name).exists(), name
    assert re.search(r"^Accuracy: [01]\.\d{5}\+-0\.\d{5}$", output, re.MULTILINE)
    assert "tensorboard --logdir" in output
    assert "waiting for data" in output
    environment = json.loads((run_dir / "environment.json").read_text())
    assert environment["tensorflow"].startswith("2.21")
    assert json.loads((run_dir / "options.json").read_text())["towers"] == 2


def test_metrics_have_a_loss_for_each_tower(trained):
    run_dir, _ = trained
    lines = metrics_of(run_dir)
    assert lines[-1]["step"] == 18
    assert lines[-1]["loss"] < lines[0]["loss"]
    for line in lines:
        assert len(line["tower_losses"]) == 2
        assert np.mean(line["tower_losses"]) == pytest.approx(line["loss"], rel=1e-5)
        assert {"main", "center", "prelogits_norm", "accuracy", "images_per_second", "data_wait"} <= line.keys()
    validations = metrics_of(run_dir, "validation")
    assert [line["step"] for line in validations] == [6, 12, 18]
    assert all(0 <= line["val_accuracy"] <= 1 and 0 <= line["lfw_accuracy"] <= 1 for line in validations)


def test_each_tower_is_timed(trained):
    for line in metrics_of(trained[0]):
        assert len(line["tower_compute_seconds"]) == len(line["tower_reduce_seconds"]) == 2
        assert all(seconds >= 0 for seconds in line["tower_compute_seconds"] + line["tower_reduce_seconds"])
        step_seconds = 8 / line["images_per_second"]
        assert max(line["tower_compute_seconds"]) < step_seconds


def test_tensorboard_has_a_curve_for_each_tower_and_part(trained):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run_dir, _ = trained
    events = EventAccumulator(str(run_dir / "tensorboard"), size_guidance={"tensors": 0})
    events.Reload()
    tags = events.Tags()
    scalars = set(tags["tensors"])
    for tower in (0, 1):
        assert {f"tower_{tower}/{part}" for part in ("loss", "main", "center", "accuracy")} <= scalars
    assert {"train/learning_rate", "validation/lfw_accuracy", "validation/val_loss", "training pictures"} <= scalars
    assert any("head/weights" in tag for tag in scalars)
    assert tags["graph"]
    assert [event.step for event in events.Tensors("tower_1/loss")] == list(range(2, 19, 2))
    assert (run_dir / "tensorboard" / "projector_config.pbtxt").exists()
    assert len((run_dir / "tensorboard" / "labels.tsv").read_text().splitlines()) == len(
        (run_dir / "tensorboard" / "embeddings.tsv").read_text().splitlines()
    )


def test_validate_on_lfw_finds_the_recorded_pairs_and_gives_the_run_s_figure(trained, tmp_path):
    run_dir, _ = trained
    recorded = metrics_of(run_dir, "validation")[-1]["lfw_accuracy"]
    for towers in (1, 2):
        result = run_python(
            *("validate_on_lfw.py", "--model", run_dir, "--towers", towers),
            *("--lfw_batch_size", "7", "--json", tmp_path / "figures.json", "--roc", tmp_path / "roc.png"),
        )
        assert f"Accuracy: {recorded:.5f}" in result.stdout
        assert "Area Under Curve (AUC):" in result.stdout
        assert "Equal Error Rate (EER):" in result.stdout
        assert "Pairs used: 24" in result.stdout
        assert "Pairs skipped: 0" in result.stdout
        assert json.loads((tmp_path / "figures.json").read_text())["lfw_accuracy"] == pytest.approx(recorded)
        assert (tmp_path / "roc.png").stat().st_size > 1000


def test_validate_on_lfw_has_facenets_options(trained, faces):
    run_dir, _ = trained
    result = run_python(
        *("validate_on_lfw.py", "--model", run_dir / "model", "--lfw-dir", faces / "lfw"),
        *("--distance_metric", "1", "--use_flipped_images", "--subtract_mean"),
    )
    assert "Accuracy: " in result.stdout


def test_an_unreadable_picture_costs_its_pairs_only(trained, faces, tmp_path):
    run_dir, _ = trained
    shutil.copytree(faces / "lfw", tmp_path / "lfw")
    (tmp_path / "lfw/Lfw_0/Lfw_0_0001.jpg").write_bytes(b"<html>")
    options = ["--model", run_dir, "--lfw_dir", tmp_path / "lfw", "--lfw_pairs", faces / "pairs.txt"]
    result = run_python("validate_on_lfw.py", *options, check=False)
    assert result.returncode == 65
    assert "Lfw_0_0001.jpg" in result.stderr
    many = [f"Lfw_{person}\t{1 + index % 9}\t{2 + index % 9}" for person in (1, 2, 3) for index in range(9)]
    many += [
        f"Lfw_{person}\t{1 + index}\tLfw_{1 + person % 3}\t{1 + index}" for person in (1, 2, 3) for index in range(9)
    ]
    for number in range(2, 111):
        path = tmp_path / "lfw" / f"Extra_{number}" / f"Extra_{number}_0001.jpg"
        path.parent.mkdir()
        shutil.copy(faces / "lfw/Lfw_1/Lfw_1_0001.jpg", path)
        many.append(f"Extra_{number}\t1\tLfw_2\t2")
        if number > 2:
            many.append(f"Extra_{number}\t1\tExtra_{number - 1}\t1")
    many += ["Lfw_0\t1\tLfw_1\t1"]
    (tmp_path / "pairs.txt").write_text("\n".join(many) + "\n")
    options = ["--model", run_dir, "--lfw_dir", tmp_path / "lfw", "--lfw_pairs", tmp_path / "pairs.txt"]
    result = run_python("validate_on_lfw.py", *options, "--lfw_nrof_folds", 3)
    assert "Pairs skipped: 1; the first:" in result.stdout


def test_filtering_by_the_distance_to_the_class_centre(trained, faces, tmp_path):
    run_dir, _ = trained
    command = ["scripts/calculate_filtering_metrics.py", "--model", run_dir, "--data_dir", faces / "train"]
    assert "60 distances of 6 classes" in run_python(*command, "--out", tmp_path / "metrics.h5").stdout
    options = ["--filter_filename", tmp_path / "metrics.h5", "--filter_percentile", "80", "--dry_run"]
    counted = train(faces, tmp_path / "run", *options).stdout
    kept = int(re.search(r"pictures: (\d+) of", counted)[1])
    assert 40 <= kept <= 50


def test_the_audit_saw_every_record_once_a_pass(trained):
    run_dir, _ = trained
    lines = [line.split("\t") for line in (run_dir / "audit.tsv").read_text().splitlines()]
    assert len(lines) == 18 * 2
    first_pass = [record for line in lines[:12] for record in line[3].split(",")]
    assert sorted(map(int, first_pass)) == list(range(48))


def test_a_finished_run_says_so(trained, faces):
    run_dir, _ = trained
    before = (run_dir / "metrics.jsonl").read_bytes()
    recorded = json.loads((run_dir / "options.json").read_text())
    options = ["--towers", "2", "--max_epochs", "3", "--center_loss_factor", "0.01", "--keep_probability", "0.9"]
    options += ["--prelogits_norm_loss_factor", "1e-4", "--validation_set_split_ratio", "0.2", "--random_rotate"]
    result = train(faces, run_dir, *options, "--label_smoothing", "0.1", *with_pairs(faces))
    assert "finished after 18 steps" in result.stdout
    assert (run_dir / "metrics.jsonl").read_bytes() == before
    assert json.loads((run_dir / "options.json").read_text()) == recorded


def test_another_option_in_the_same_folder_is_refused_and_shown(trained, faces):
    run_dir, _ = trained
    result = train(faces, run_dir, "--embedding_size", "32", check=False)
    assert result.returncode == 2
    assert "--embedding_size 16 -> 32" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_resumed_bit_for_bit(faces, tmp_path):
    options = ["--deterministic", "--towers", "2", "--keep_probability", "0.8", "--max_epochs", "6"]
    options += ["--center_loss_factor", "0.01"]
    train(faces, tmp_path / "whole", *options, "--max_steps", "40")
    train(faces, tmp_path / "parts", *options, "--max_steps", "20", "--checkpoint_every_n_steps", "7")
    result = train(faces, tmp_path / "parts", *options, "--max_steps", "40")
    assert "going on at step 20" in result.stdout
    whole, parts = state_of(tmp_path / "whole", 40), state_of(tmp_path / "parts", 40)
    assert whole.keys() == parts.keys()
    assert {name.split("/")[0] for name in whole} == {"network", "optimizer", "head", "center_loss", "average"}
    for name, value in whole.items():
        np.testing.assert_array_equal(value, parts[name], err_msg=name)
    losses = {line["step"]: line["tower_losses"] for line in metrics_of(tmp_path / "whole")}
    resumed = {line["step"]: line["tower_losses"] for line in metrics_of(tmp_path / "parts")}
    assert [losses[step] for step in range(22, 41, 2)] == [resumed[step] for step in range(22, 41, 2)]


def test_two_towers_resumed_on_four_in_float64(faces, tmp_path):
    options = ["--precision", "float64", "--sync_bn", "--max_epochs", "4"]
    train(faces, tmp_path / "whole", *options, "--towers", "2", "--max_steps", "20")
    train(faces, tmp_path / "parts", *options, "--towers", "2", "--max_steps", "10")
    train(faces, tmp_path / "parts", *options, "--towers", "4", "--max_steps", "20")
    whole, parts = state_of(tmp_path / "whole", 20), state_of(tmp_path / "parts", 20)
    for name, value in whole.items():
        np.testing.assert_allclose(parts[name], value, rtol=0, atol=1e-9 * max(np.abs(value).max(), 1e-3), err_msg=name)


@pytest.mark.parametrize(
    ("number", "exit_code"), [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)]
)
def test_a_signal_saves_and_the_same_command_goes_on(faces, tmp_path, number, exit_code):
    options = ["--max_steps", "100000", "--checkpoint_every_n_steps", "1000000", "--log_every", "1"]
    command = [
        sys.executable,
        "train_softmax.py",
        "--data_dir",
        faces / "train",
        "--run_dir",
        tmp_path,
        *SMALL,
        *options,
    ]
    process = subprocess.Popen(
        list(map(str, command)),
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    log = tmp_path / "train.log"
    deadline = time.monotonic() + 120
    while not (log.exists() and "Epoch: " in log.read_text()) and time.monotonic() < deadline:
        time.sleep(0.2)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == exit_code
    assert "the same command goes on" in errors
    (checkpoint,) = (tmp_path / "checkpoints").glob("step_*")
    step = int(checkpoint.name.split("_")[1])
    again = train(faces, tmp_path, "--max_steps", step + 4)
    assert f"going on at step {step}" in again.stdout


def test_a_run_that_diverges_names_the_batch_and_keeps_the_good_checkpoint(faces, tmp_path):
    result = train(
        faces,
        tmp_path,
        *("--max_steps", "30", "--checkpoint_every_n_steps", "1", "--learning_rate", "1e30", "--optimizer", "SGD"),
        check=False,
    )
    assert result.returncode == 70, result.stderr
    assert "not finite" in result.stderr
    assert "Train_" in result.stderr
    assert ".jpg" in result.stderr
    checkpoints = sorted((tmp_path / "checkpoints").glob("step_*"))
    assert checkpoints
    assert all(np.isfinite(value).all() for value in state_of(tmp_path, int(checkpoints[-1].name[5:])).values())


def test_a_full_disk_ends_with_74_and_keeps_what_is_there(faces, tmp_path):
    limit = (
        "import resource, runpy, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); del sys.argv[0]; "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000)); "
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    train(faces, tmp_path, "--max_steps", "4")
    arguments = ["train_softmax.py", "--data_dir", faces / "train", "--run_dir", tmp_path, *SMALL, "--max_steps", "8"]
    result = run_python("-c", limit, *arguments, check=False)
    assert result.returncode == 74, result.stderr
    assert "older checkpoints are intact" in result.stderr
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_00000004"]
    assert "going on at step 4" in train(faces, tmp_path, "--max_steps", "8").stdout


def test_pretrained_weights_with_another_class_count(trained, faces, tmp_path):
    run_dir, _ = trained
    two_people = tmp_path / "two"
    two_people.mkdir()
    for person in ("Lfw_0", "Lfw_1"):
        (two_people / person).symlink_to(faces / "lfw" / person)
    options = [*SMALL, "--keep_probability", "0.9", "--pretrained_model", run_dir, "--max_steps", "1"]
    run_python(
        *(
            "train_softmax.py",
            "--data_dir",
            two_people,
            "--run_dir",
            tmp_path / "run",
            *options,
            "--learning_rate",
            "1e-30",
        )
    )
    state = state_of(tmp_path / "run", 1)
    assert state["head/weights"].shape == (2, 16)
    with h5py.File(run_dir / "model" / "weights.h5") as file:
        kernels = [name for name in state if name.startswith("network/") and "kernel" in name]
        assert len(kernels) > 4
        for name in kernels:
            np.testing.assert_array_equal(file[name][()], state[name])


def test_dry_run_counts_without_training(faces, tmp_path):
    result = train(faces, tmp_path / "run", "--dry_run", "--towers", "2")
    assert "60 of 6 classes, 10 to 10 a class" in result.stdout
    assert "8 = 2 tower(s) x 4" in result.stdout
    assert "8 an epoch" in result.stdout
    assert "memory a tower" in result.stdout
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "exit_code", "message"),
    [
        (["--towers", "3"], 2, "--batch_size 8 over --towers 3 is 2.67 images each; give --batch_size 6 or 9"),
        (["--batch_size", "64"], 65, "60 images are fewer than a batch of 64"),
        (["--network", "resnet9000"], 2, "resnet9000"),
        (["--lfw_dir", "/nowhere", "--lfw_pairs", "/nowhere/pairs.txt"], 2, "/nowhere/pairs.txt"),
        (["--load_size", "20"], 2, "--load_size 20 is smaller than --image_size 28"),
        (["--pretrained_model", "/nowhere"], 2, "no model.json"),
        (["--label_smoothing", "1.5"], 2, "--label_smoothing 1.5"),
    ],
)
def test_mistakes_get_one_line(faces, tmp_path, options, exit_code, message):
    result = train(faces, tmp_path / "run", *options, check=False)
    assert result.returncode == exit_code, result.stderr
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert "Traceback" not in result.stderr


def test_bad_learning_rate_file_names_its_line(faces, tmp_path):
    (tmp_path / "rates.txt").write_text("0: 0.1\nten: 0.01\n")
    result = run_python(
        *("train_softmax.py", "--data_dir", faces / "train", "--run_dir", tmp_path / "run"),
        *("--learning_rate_schedule_file", tmp_path / "rates.txt", "--batch_size", "8"),
        check=False,
    )
    assert result.returncode == 2
    assert "rates.txt" in result.stderr
    assert "2" in result.stderr


def test_bad_pictures_end_the_run_with_their_paths(faces, tmp_path):
    for person in range(3):
        (tmp_path / "data" / f"P{person}").mkdir(parents=True)
        for number in range(5):
            source = faces / "train" / f"Train_{person}" / f"Train_{person}_{number + 1:04}.jpg"
            (tmp_path / "data" / f"P{person}" / f"{number}.jpg").write_bytes(source.read_bytes())
    (tmp_path / "data/P1/2.jpg").write_bytes(b"")
    data = tmp_path / "data"
    options = [*SMALL, "--max_steps", "6"]
    result = run_python("train_softmax.py", "--data_dir", data, "--run_dir", tmp_path / "a", *options, check=False)
    assert result.returncode == 65, result.stderr
    assert "P1/2.jpg" in result.stderr
    options += ["--max_bad_fraction", "0.1", "--audit_data"]
    result = run_python("train_softmax.py", "--data_dir", data, "--run_dir", tmp_path / "b", *options)
    assert "1 unreadable picture(s) replaced" in result.stdout


def test_two_processes_do_not_share_a_run_folder(faces, tmp_path):
    import fcntl

    tmp_path.joinpath(".lock").touch()
    with (tmp_path / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        result = train(faces, tmp_path, "--max_steps", "1", check=False)
    assert result.returncode == 2
    assert "another process" in result.stderr


def test_help_shows_every_option_with_a_text():
    for script in ("train_softmax.py", "validate_on_lfw.py"):
        text = run_python(script, "--help").stdout
        assert "--towers" in text
        assert not re.findall(r"^  --[a-z_]+(?: [A-Z_{},0-9a-z]+)?\n  --", text, re.MULTILINE)
