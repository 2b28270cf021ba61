"""scripts/compare_towers.py as a user runs it: on scripts that only write a run folder, and on planted faults."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import cv2
import numpy as np
import pytest
from conftest import ROOT, run_python

# Writes what a training script writes, faster for more towers; the options after its own choose how it ends.
SHORT_SCRIPT = """
    import argparse, json, pathlib, signal, sys, time

    parser = argparse.ArgumentParser()
    parser.add_argument("--towers", type=int)
    parser.add_argument("--run_dir", type=pathlib.Path)
    parser.add_argument("--audit_data", action="store_true", required=True)
    parser.add_argument("--time_towers", action="store_true", required=True)
    parser.add_argument("--log_every", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lines", type=int, default=4)
    parser.add_argument("--fail", type=int)
    parser.add_argument("--wait", action="store_true")
    parser.add_argument("--stubborn", action="store_true")
    given = parser.parse_args()
    folder, towers = given.run_dir, given.towers
    if given.stubborn:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    print("step one\\nstep two", flush=True)
    if given.wait:
        try:
            time.sleep(60)
        except KeyboardInterrupt:
            sys.exit(130)
    if given.fail and towers == 2:
        print("train: the disk is full", file=sys.stderr)
        sys.exit(given.fail)
    steps = given.lines * given.log_every
    cpu = ["/physical_device:CPU:0", "NVIDIA A100-SXM4-40GB"]
    (folder / "environment.json").write_text(json.dumps({"cpu_cores": 2, "devices": cpu}))
    (folder / "train.log").write_text(f"{folder}: from step 0, 60 images\\n")
    (folder / "audit.tsv").write_text("".join(
        f"{step}\\t{tower}\\t{step * towers + tower}\\t{step * towers + tower}\\n"
        for step in range(steps) for tower in range(towers)
    ))
    lines = [
        {"kind": "train", "step": (number + 1) * given.log_every, "images_per_second": 10 * towers, "data_wait": 0.01,
         "tower_compute_seconds": [0.09] * towers, "tower_reduce_seconds": [0.001] * towers}
        for number in range(given.lines)
    ]
    lines.append({"kind": "validation", "step": steps, "lfw_accuracy": 0.9 + given.seed / 100})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\\n" for line in lines))
    with open("calls.txt", "a") as file:
        print(*sys.argv[1:], file=file)
"""

# Each plants a fault in the real script. `train_softmax` and what it composes are those of the project.
FAULTS = {
    "same_data": """
        run.train_dataset = lambda source, order, *, towers, **others: pipeline.train_dataset(
            source, order, towers=[0] * len(towers), **others
        )
    """,
    "slow_tower": """
        def sleep(images):
            time.sleep(0.3)
            return images

        def preparation(network, **augmentation):
            prepare = original_preparation(network, **augmentation)

            def slow(batch):
                images = prepare(batch)
                if distribution.tower_index() == 1:
                    slept = tf.numpy_function(sleep, [images], images.dtype, stateful=False)
                    images = tf.ensure_shape(slept, images.shape)
                return images

            return slow

        original_preparation = pictures.preparation
        pictures.preparation = preparation
    """,
    "data_wait": """
        reads = iter(range(60))

        def reader(source, records):
            # Not in the last steps: a process that ends while the pipeline reads ahead may hang.
            if next(reads, None) is not None:
                time.sleep(0.3)
            return original_reader(source, records)

        original_reader = folder.Source.reader
        folder.Source.reader = reader
    """,
}
WRAPPER = """
    import sys, time
    sys.path.insert(0, {root!r})

    import tensorflow as tf
    import train_softmax
    from towers import distribution, options
    from towers.datasets import folder, pipeline
    from towers.runs import pictures, run
    {fault}
    options.call(train_softmax.main, train_softmax.make_parser())
"""


@pytest.fixture
def short_script(tmp_path):
    path = tmp_path / "short.py"
    path.write_text(textwrap.dedent(SHORT_SCRIPT))
    return path


def compare(folder, *arguments, check=True):
    return run_python(ROOT / "scripts" / "compare_towers.py", *arguments, cwd=folder, check=check)


def calls(folder):
    path = folder / "calls.txt"
    return path.read_text().splitlines() if path.exists() else []


def test_each_number_of_towers_is_a_run_and_the_end_a_table(short_script, tmp_path):
    result = compare(tmp_path, "--towers", 1, 2, 4, "--out-dir", "out", "--", short_script, "--lines", 5)
    assert calls(tmp_path) == [
        f"--lines 5 --towers {towers} --run_dir out/towers_{towers} --audit_data --time_towers --log_every 5"
        for towers in (1, 2, 4)
    ]
    rows = json.loads((tmp_path / "out" / "comparison.json").read_text())["rows"]
    assert [row["images_per_second"] for row in rows] == pytest.approx([10, 20, 40])
    assert [row["efficiency"] for row in rows] == pytest.approx([1, 1, 1])
    assert "4 towers make 4.00 times the images a second of 1, 100 % of the ideal" in result.stdout
    assert (tmp_path / "out" / "towers_2" / "console.txt").read_text() == "step one\nstep two\n"
    assert {"comparison.csv", "comparison.png"} <= {path.name for path in (tmp_path / "out").iterdir()}


def test_a_finished_run_is_not_run_again_but_for_other_options(short_script, tmp_path):
    command = ["--towers", 1, 2, "--out_dir", "out", "--", short_script, "--log_every", 3]
    first = compare(tmp_path, *command)
    assert len(calls(tmp_path)) == 2
    (tmp_path / "out" / "towers_2" / "compared.json").unlink()
    again = compare(tmp_path, *command)
    assert len(calls(tmp_path)) == 3
    assert "towers_1: done before" in again.stdout
    assert first.stdout.splitlines()[-5:] == again.stdout.splitlines()[-5:]
    compare(tmp_path, *command, "--lines", 6)
    assert len(calls(tmp_path)) == 5
    assert calls(tmp_path)[0].count("--log_every") == 1


def test_seeds_are_runs_of_their_own_and_accuracy_is_their_mean(short_script, tmp_path):
    compare(tmp_path, "--towers", 1, 2, "--seeds", 1, 2, 6, "--out_dir", "out", "--", short_script)
    assert len(calls(tmp_path)) == 6
    assert (tmp_path / "out" / "towers_2_seed_6" / "metrics.jsonl").exists()
    rows = json.loads((tmp_path / "out" / "comparison.json").read_text())["rows"]
    assert [row["accuracy"] for row in rows] == pytest.approx([0.93, 0.93])


@pytest.mark.parametrize("exit_code", [65, 74])
def test_a_run_that_fails_is_shown_and_its_exit_code_passed_on(short_script, tmp_path, exit_code):
    command = ["--towers", 1, 2, 4, "--out_dir", "out", "--", short_script]
    result = compare(tmp_path, *command, "--fail", exit_code, check=False)
    assert result.returncode == exit_code
    assert "train: the disk is full" in result.stderr
    assert f"out/towers_2: the run ended with exit code {exit_code}" in result.stderr.splitlines()[-1]
    assert "console.txt" in result.stderr
    assert len(calls(tmp_path)) == 1
    assert not (tmp_path / "out" / "towers_2" / "compared.json").exists()


@pytest.mark.parametrize(("options", "times", "exit_code"), [(["--wait"], 1, 130), (["--wait", "--stubborn"], 2, 137)])
def test_ctrl_c_reaches_the_run_and_a_second_one_kills_it(short_script, tmp_path, options, times, exit_code):
    command = [ROOT / "scripts" / "compare_towers.py", "--towers", "1", "--out_dir", "out", "--", short_script]
    process = subprocess.Popen(
        [sys.executable, *map(str, command), *options],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    console = tmp_path / "out" / "towers_1" / "console.txt"
    deadline = time.monotonic() + 60
    while not (console.exists() and console.read_text().endswith("two\n")) and time.monotonic() < deadline:
        time.sleep(0.05)
    for _ in range(times):
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == exit_code, errors
    assert f"exit code {exit_code}" in errors


@pytest.mark.parametrize(
    ("ours", "theirs", "message"),
    [
        ([1, 2], None, "no training script"),
        ([1, 2], ["nowhere.py"], "nowhere.py: no such script"),
        ([1, 1], [], "each once"),
        ([0], [], "1 or more"),
        ([1, "--seeds", 3, 3], [], "--seeds 3 3: each once"),
        ([1], ["--run-dir=x"], "--run_dir after the --"),
        ([1], ["--run_dir", "x"], "--run_dir after the --"),
        ([1], ["--towers", 2], "--towers after the --"),
        ([1, "--seeds", 1, 2], ["--seed", 3], "--seed after the --"),
        ([1], ["--lines", 1], "too few steps to time"),
    ],
)
def test_mistakes_get_one_line(short_script, tmp_path, ours, theirs, message):
    if theirs is not None and theirs[:1] != ["nowhere.py"]:
        theirs = [short_script, *theirs]
    command = ["--towers", *ours, *([] if theirs is None else ["--", *theirs])]
    result = compare(tmp_path, *command, check=False)
    assert result.returncode == 2
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    """Six people of 10 tiny pictures each."""
    folder = tmp_path_factory.mktemp("compared_faces")
    random = np.random.default_rng(0)
    for person in range(6):
        (folder / f"P{person}").mkdir()
        face = random.integers(0, 256, (8, 8, 3)).astype(np.float32)
        for number in range(10):
            picture = cv2.resize(face + random.normal(0, 20, face.shape).astype(np.float32), (32, 32))
            cv2.imwrite(str(folder / f"P{person}" / f"{number}.jpg"), np.clip(picture, 0, 255).astype(np.uint8))
    return folder


def train_towers(faces, folder, script, numbers, steps=16):
    options = ["--network", "small", "--image_size", "28", "--embedding_size", "16", "--batch_size", "8"]
    options += ["--data_dir", faces, "--max_steps", steps, "--log_every", "4", "--validate_every_n_epochs", "0"]
    return compare(folder, "--towers", *numbers, "--out_dir", folder / "out", "--", script, *options, check=False)


def planted(folder, fault):
    path = folder / f"{fault}.py"
    text = textwrap.dedent(WRAPPER).format(root=str(ROOT), fault=textwrap.dedent(FAULTS[fault]))
    path.write_text(text)
    return path


def finding_of(folder):
    return json.loads((folder / "out" / "comparison.json").read_text())["finding"]


def test_the_same_batch_for_all_towers_is_found(faces, tmp_path):
    result = train_towers(faces, tmp_path, planted(tmp_path, "same_data"), [2])
    assert result.returncode == 65, result.stderr
    assert "Every tower saw the same data" in result.stdout
    assert "the towers train on the same pictures" in result.stderr
    assert finding_of(tmp_path)["rule"] == "same_data"


@pytest.mark.slow
def test_a_slow_tower_is_found(faces, tmp_path):
    result = train_towers(faces, tmp_path, planted(tmp_path, "slow_tower"), [2])
    assert result.returncode == 0, result.stderr
    assert finding_of(tmp_path)["rule"] == "slow_tower", result.stdout
    assert "tower 1 computes" in result.stdout


@pytest.mark.slow
def test_a_starved_input_is_found(faces, tmp_path):
    result = train_towers(faces, tmp_path, planted(tmp_path, "data_wait"), [2], steps=40)
    assert result.returncode == 0, result.stderr
    assert finding_of(tmp_path)["rule"] == "data_wait", result.stdout


@pytest.mark.slow
def test_a_healthy_run_on_cpu_towers_says_that_they_share_the_cores(faces, tmp_path):
    result = train_towers(faces, tmp_path, ROOT / "train_softmax.py", [1, 2], steps=40)
    assert result.returncode == 0, result.stderr
    assert finding_of(tmp_path)["rule"] == "shared_cores", result.stdout
    assert "no speed-up is to be expected" in result.stdout
    rows = json.loads((tmp_path / "out" / "comparison.json").read_text())["rows"]
    assert all(row["own_data"] and row["all_worked"] for row in rows)
