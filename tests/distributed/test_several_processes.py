"""Training scripts in several processes of one machine: as one process with as many towers, and they end together."""

import contextlib
import json
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from classcenters.serving import serving
from conftest import ROOT, free_ports, make_faces, metrics_of, processes_environment, run_python, state_of

COMMON = [
    *("--network", "small", "--image_size", "28", "--embedding_size", "16", "--log_every", "1", "--random_crop"),
    *("--random_flip", "--learning_rate", "0.02", "--validate_every_n_epochs", "0", "--precision", "float64"),
    # A rate that does not depend on the length of the run.
    *("--learning_rate_schedule", "step", "--lr_steps", "1000000"),
]
SCRIPTS = {
    "softmax": ["train_softmax.py", "--batch_size", "8", "--sync_bn", "--keep_probability", "1", "--audit_data"],
    "local_bn": ["train_softmax.py", "--batch_size", "8", "--center_loss_factor", "0.1", "--clip_norm", "1"],
    "replicated": ["train_multi_gpu.py", "--batch_size", "8", "--sync_bn", "--head", "replicated"],
    "sharded": ["train_multi_gpu.py", "--batch_size", "8", "--sync_bn", "--head", "sharded"],
    "sampled": ["train_multi_gpu.py", "--batch_size", "4", "--sync_bn", "--head", "sampled", "--sample_rate", "0.67"],
    "triplets": [
        *("train_tripletloss.py", "--people_per_batch", "4", "--images_per_person", "2", "--sync_bn", "--audit_data"),
        *("--mining_scope", "global", "--mining", "semihard"),
    ],
}
SELECTED = [
    *("train_multi_gpu.py", "--sync_bn", "--head", "selected", "--scale", "16", "--weight_decay", "0.01"),
    *("--ntrees", "2", "--interval", "2"),
]


@pytest.fixture(scope="session")
def faces(tmp_path_factory):
    return make_faces(tmp_path_factory.mktemp("faces_of_processes"))


class Started:
    """Processes that train together."""

    def __init__(self, arguments, num=2, options_of=(), **environment):
        addresses = [f"localhost:{port}" for port in free_ports(num)]
        self.processes = [
            subprocess.Popen(
                [sys.executable, *map(str, arguments), *(options_of[index] if options_of else ())],
                cwd=ROOT,
                env=processes_environment(TF_CONFIG=tf_config(addresses, index), **environment),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for index in range(num)
        ]

    def end(self, timeout=300):
        """(exit code, standard output, error stream) of each."""
        try:
            outputs = [process.communicate(timeout=timeout) for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()
        return [(process.returncode, *output) for process, output in zip(self.processes, outputs, strict=True)]


def tf_config(addresses, index):
    return json.dumps({"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}})


def command(kind, faces, run_dir, *more):
    pairs = ("--lfw_dir", faces / "lfw", "--lfw_pairs", faces / "pairs.txt")
    script = SELECTED if kind == "selected" else SCRIPTS[kind]
    return [*script, *COMMON, "--data_dir", faces / "train", *pairs, "--run_dir", run_dir, *more]


def assert_all_done(results):
    for code, _, errors in results:
        assert code == 0, errors


def assert_same_run(one, other, step, atol=1e-9):
    losses, others = ([line["loss"] for line in metrics_of(run_dir)] for run_dir in (one, other))
    assert len(losses) >= 5
    np.testing.assert_allclose(others, losses, rtol=atol)
    towers = [[line["tower_losses"] for line in metrics_of(run_dir)] for run_dir in (one, other)]
    np.testing.assert_allclose(towers[1], towers[0], rtol=atol)
    before, after = state_of(one, step), state_of(other, step)
    assert before.keys() == after.keys()
    for name, values in before.items():
        np.testing.assert_allclose(after[name], values, rtol=atol, atol=atol, err_msg=name)
    (validated,), (other_validated,) = metrics_of(one, "validation"), metrics_of(other, "validation")
    assert validated.keys() == other_validated.keys()
    figures = [name for name in validated if name.startswith("lfw_")]
    assert figures
    for name in figures:
        assert other_validated[name] == pytest.approx(validated[name], rel=1e-6), name


@pytest.mark.slow
@pytest.mark.parametrize("kind", SCRIPTS)
def test_two_processes_are_one_with_two_towers(faces, tmp_path, kind):
    one, two = tmp_path / "one", tmp_path / "two"
    length = ("--max_steps", "6")
    results = Started(command(kind, faces, two, *length)).end()
    assert_all_done(results)
    run_python(*command(kind, faces, one, *length, "--towers", "2"))
    assert_same_run(one, two, 6)
    if "--audit_data" in SCRIPTS[kind]:
        assert (two / "audit.tsv").read_text() == (one / "audit.tsv").read_text()
    assert "6 steps done" in results[0][1]
    assert results[1][1] == ""
    assert not (two / "workers/1/tensorboard").exists()
    assert len(metrics_of(two / "workers/1")) == 6


@pytest.mark.slow
def test_a_killed_process_ends_the_other_and_the_same_command_goes_on(faces, tmp_path):
    """With the sharded head, whose rows no process has all of; the resumed run ends as an unbroken one."""
    run_dir, unbroken = tmp_path / "run", tmp_path / "unbroken"
    arguments = command("sharded", faces, run_dir, "--checkpoint_every_n_steps", "2")
    long = Started([*arguments, "--max_steps", "100000"])
    wait_for(lambda: list((run_dir / "checkpoints").glob("step_*4")), long)
    long.processes[1].kill()
    killed = time.monotonic()
    (code, _, errors), (own_code, _, _) = long.end()
    assert time.monotonic() - killed < 60
    assert (code, own_code) == (75, -signal.SIGKILL)
    assert "worker 1 (localhost:" in errors
    assert "Traceback" not in errors
    step = max(int(path.name[5:]) for path in (run_dir / "checkpoints").glob("step_*")) + 2
    assert_all_done(Started([*arguments, "--max_steps", str(step)]).end())
    assert f"going on at step {step - 2}" in (run_dir / "train.log").read_text()
    run_python(*command("sharded", faces, unbroken, "--towers", "2", "--max_steps", str(step)))
    for name, values in state_of(unbroken, step).items():
        np.testing.assert_allclose(state_of(run_dir, step)[name], values, rtol=1e-7, atol=1e-9, err_msg=name)


# The pushes of the second process come late, so that the chief must wait for them before it saves.
LATE = """
import runpy, sys, time
from towers.classcenters.remote import RemoteStore
push = RemoteStore.push

def late(self, *given):
    time.sleep(self.client)
    return push(self, *given)

RemoteStore.push = late
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
FEW = [
    *("--batch_size", "4", "--num_selected", "4", "--interval", "3", "--selector", "ivf", "--adaptive"),
    "--deterministic",
]


def train_selected_in_several(addresses, faces, run_dir, *options, num=2):
    more = ("--param_servers", ",".join(addresses), *options)
    return Started(["-c", LATE, *command("selected", faces, run_dir, *more)], num)


@pytest.mark.slow
def test_two_clients_of_the_servers_are_one_process_with_its_own_centres(faces, tmp_path):
    options = ("--batch_size", "8", "--num_selected", "6", "--max_steps", "6")
    with serving(clients=2, step_timeout=300) as (addresses, (shard,)):
        assert_all_done(train_selected_in_several(addresses, faces, tmp_path / "two", *options).end())
    # Each process has pulled and pushed the rows of its own tower.
    assert shard.counters["pushed_rows"] == 6 * 6
    assert shard.counters["rounds"] == 6
    run_python(*command("selected", faces, tmp_path / "one", *options, "--towers", "2"))
    assert_same_run(tmp_path / "one", tmp_path / "two", 6)
    for folder in ("one", "two", "two/workers/1"):
        for line in metrics_of(tmp_path / folder):
            assert len(line["tower_selection_wait_seconds"]) == len(line["tower_server_wait_seconds"]) == 2


@pytest.mark.slow
@pytest.mark.parametrize(("query", "num"), [("center", 2), ("features", 2), ("center", 4), ("features", 4)])
def test_few_classes_of_two_shards_in_several_processes(faces, tmp_path, query, num):
    """Chosen by an index, of which the settings are steered: all processes train on the same choice.

    Exact to 1e-9 since 2 and 4 are powers of two: the mean over three clients is rounded to the store's float32.
    """
    options = (*FEW, "--query", query, "--max_steps", "8")
    with serving(clients=1, shards=2, step_timeout=300) as (addresses, _):
        servers = ("--param_servers", ",".join(addresses), "--towers", str(num))
        run_python(*command("selected", faces, tmp_path / "one", *options, *servers))
    with serving(clients=num, shards=2, step_timeout=300) as (addresses, shards):
        assert_all_done(train_selected_in_several(addresses, faces, tmp_path / "several", *options, num=num).end())
    assert [shard.counters["rounds"] for shard in shards] == [8, 8]
    assert_same_run(tmp_path / "one", tmp_path / "several", 8)
    assert state_of(tmp_path / "several", 8)["head/settings"][0] != 4


@pytest.mark.slow
def test_few_classes_in_two_processes_resumed(faces, tmp_path):
    """The chief puts the rows of the checkpoint on the servers, whatever these have done since."""
    with serving(clients=2, shards=2, step_timeout=300) as (addresses, _):
        for steps in ("4", "8"):
            run = train_selected_in_several(addresses, faces, tmp_path / "two", *FEW, "--max_steps", steps)
            assert_all_done(run.end())
    with serving(clients=2, shards=2, step_timeout=300) as (addresses, _):
        servers = ("--param_servers", ",".join(addresses), "--max_steps", "8")
        run = train_selected_in_several(addresses, faces, tmp_path / "unbroken", *FEW, *servers)
        assert_all_done(run.end())
    assert "going on at step 4" in (tmp_path / "two" / "train.log").read_text()
    unbroken, resumed = (state_of(tmp_path / name, 8) for name in ("unbroken", "two"))
    for name, values in unbroken.items():
        # Skipped steps of a row are rounded to float32 where a run ends.
        np.testing.assert_allclose(resumed[name], values, rtol=1e-4, atol=1e-4, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("who", [0, 1])
def test_a_killed_client_ends_the_other_and_the_run_goes_on(faces, tmp_path, who):
    """By the same command, or in one process that keeps the centres itself."""
    options = ("--batch_size", "8", "--num_selected", "6", "--checkpoint_every_n_steps", "2")
    run_dir, unbroken = tmp_path / "run", tmp_path / "unbroken"
    with serving(clients=2, step_timeout=300) as (addresses, (shard,)):
        long = train_selected_in_several(addresses, faces, run_dir, *options, "--max_steps", "100000")
        wait_for(lambda: list((run_dir / "checkpoints").glob("step_*4")), long)
        long.processes[who].kill()
        killed = time.monotonic()
        results = long.end()
        assert time.monotonic() - killed < 60
        assert [code for code, _, _ in results] == [(-signal.SIGKILL if index == who else 75) for index in range(2)]
        assert f"worker {who} (localhost:" in results[1 - who][2]
        assert "Traceback" not in results[1 - who][2]
        step = max(int(path.name[5:]) for path in (run_dir / "checkpoints").glob("step_*")) + 2
        if who == 1:
            again = train_selected_in_several(addresses, faces, run_dir, *options, "--max_steps", str(step))
            assert_all_done(again.end())
            assert shard.counters["rounds"] >= step
        else:
            run_python(*command("selected", faces, run_dir, *options, "--towers", "2", "--max_steps", str(step)))
    assert f"going on at step {step - 2}" in (run_dir / "train.log").read_text()
    run_python(*command("selected", faces, unbroken, *options, "--towers", "2", "--max_steps", str(step)))
    for name, values in state_of(unbroken, step).items():
        np.testing.assert_allclose(state_of(run_dir, step)[name], values, rtol=1e-7, atol=1e-9, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("clients", [1, 3])
def test_servers_that_wait_for_other_processes_are_refused(faces, tmp_path, clients):
    with serving(clients=clients) as (addresses, _):
        options = ("--batch_size", "8", "--num_selected", "6", "--max_steps", "2")
        results = train_selected_in_several(addresses, faces, tmp_path / "run", *options).end()
    assert {code for code, _, _ in results} <= {2, 75}
    assert all("--clients" in errors for _, _, errors in results)


@pytest.mark.slow
def test_a_killed_chief_ends_the_other(faces, tmp_path):
    long = Started(command("softmax", faces, tmp_path / "run", "--max_steps", "100000"))
    wait_for(lambda: len(metrics_of(tmp_path / "run")) > 2, long)
    long.processes[0].kill()
    killed = time.monotonic()
    _, (code, _, errors) = long.end()
    assert time.monotonic() - killed < 60
    assert code == 75
    assert "worker 0 (localhost:" in errors


@pytest.mark.slow
@pytest.mark.parametrize("who", [0, 1])
def test_a_signal_to_one_stops_both_after_the_same_step(faces, tmp_path, who):
    run_dir = tmp_path / "run"
    long = Started(command("sharded", faces, run_dir, "--max_steps", "100000"))
    wait_for(lambda: len(metrics_of(run_dir)) > 2, long)
    long.processes[who].send_signal(signal.SIGTERM)
    results = long.end()
    assert [code for code, _, _ in results] == [143, 143]
    assert "a checkpoint is saved" in results[0][2]
    (checkpoint,) = (run_dir / "checkpoints").glob("step_*")
    steps = int(checkpoint.name[5:])
    assert [metrics_of(folder)[-1]["step"] for folder in (run_dir, run_dir / "workers/1")] == [steps, steps]


@pytest.mark.slow
def test_a_run_of_two_processes_goes_on_in_one(faces, tmp_path):
    run_dir, unbroken = tmp_path / "run", tmp_path / "unbroken"
    assert_all_done(Started(command("sharded", faces, run_dir, "--max_steps", "3")).end())
    run_python(*command("sharded", faces, run_dir, "--max_steps", "6"))
    run_python(*command("sharded", faces, unbroken, "--max_steps", "6"))
    np.testing.assert_allclose(
        [line["loss"] for line in metrics_of(run_dir)],
        [line["loss"] for line in metrics_of(unbroken)],
        rtol=1e-9,
    )


@pytest.mark.slow
def test_the_launcher_starts_them(faces, tmp_path):
    run_dir = tmp_path / "run"
    result = run_python(
        "scripts/launch.py", "--workers", "2", "--", *command("softmax", faces, run_dir, "--max_steps", "2")
    )
    assert "2 tower(s) x 4 images" in result.stdout
    assert result.stdout.count("2 steps done") == 1
    assert json.loads((run_dir / "options.json").read_text())["workers"] == 2


@pytest.mark.slow
def test_processes_that_see_different_folders_are_told(faces, tmp_path):
    folders = [("--run_dir", tmp_path / "a"), ("--run_dir", tmp_path / "b")]
    (code, _, errors), (own_code, _, own_errors) = Started(
        command("softmax", faces, tmp_path / "a", "--max_steps", "2"), options_of=[list(map(str, f)) for f in folders]
    ).end()
    assert (code, own_code) == (75, 74)
    for text in (errors, own_errors):
        assert "give one on a disk that all machines share" in text


@pytest.mark.slow
def test_what_one_process_cannot_read_counts_in_all(tmp_path):
    """26 pictures to validate on, of which the second process reads the half with the broken ones."""
    faces = make_faces(tmp_path / "faces")
    for number in (5, 6):
        (faces / f"lfw/Lfw_3/Lfw_3_{number:04}.jpg").write_bytes(b"no picture")
    results = Started(
        [*command("softmax", faces, tmp_path / "run", "--max_steps", "1"), "--lfw_batch_size", "13"]
    ).end()
    assert [code for code, _, _ in results] == [65, 65]
    for _, _, errors in results:
        assert "2 of 26 pictures" in errors
        assert "Lfw_3_0005.jpg" in errors


FAILS_IN_A_SUM = """
import os, signal, sys, time
from towers import options
import tensorflow as tf

def main(arguments, processes):
    if processes.index == 1:
        time.sleep(1)
        os.kill(os.getpid(), signal.SIGKILL)
    raise tf.errors.UnavailableError(None, None, "Connection reset by peer")

parser = options.Parser("Fails as TensorFlow does.")
options.add_towers(parser, several_processes=True)
options.call(main, parser, several_processes=True)
"""


def test_what_tensorflow_says_of_a_lost_process_becomes_one_line(tmp_path):
    path = tmp_path / "fails.py"
    path.write_text(FAILS_IN_A_SUM)
    (code, _, errors), _ = Started([path]).end()
    assert code == 75
    assert re.fullmatch(r"fails\.py: worker 1 \(localhost:\d+\) is gone: .*goes on from the last checkpoint\n", errors)


def test_the_same_error_of_a_process_alone_is_shown_at_once(tmp_path):
    path = tmp_path / "fails.py"
    path.write_text(FAILS_IN_A_SUM)
    result = run_python(path, check=False, timeout=40)
    assert result.returncode == 1
    assert "Connection reset by peer" in result.stderr


def test_other_options_in_a_process_end_both_before_anything_starts(faces, tmp_path):
    results = Started(
        command("softmax", faces, tmp_path / "run", "--max_steps", "2"),
        options_of=[["--seed", "1"], ["--seed", "2"]],
    ).end()
    assert [code for code, _, _ in results] == [2, 2]
    for _, _, errors in results:
        assert re.fullmatch(r"train_softmax\.py: worker 1 \(localhost:\d+\) .*--seed 2 instead of 1.*\n", errors)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["validate_on_lfw.py", "--model", "m", "--lfw_dir", "d"], "works in one process"),
        (["train_multigrain.py", "--data_dir", "d"], "works in one process"),
    ],
)
def test_scripts_for_one_process_say_so_at_once(arguments, message):
    result = run_python(*arguments, check=False, TF_CONFIG=tf_config(["localhost:1", "localhost:2"], 0))
    assert result.returncode == 2
    assert message in result.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["train_multi_gpu.py", "--head", "selected"], "python -m towers.classcenters.server --clients 2"),
        (["train_multi_gpu.py", "--head", "selected", "--center_folder", "c"], "--param_servers 127.0.0.1:5570"),
        (["train_softmax.py", "--towers", "2"], "each of several processes has one tower"),
        (["train_softmax.py", "--reduction", "hierarchical"], "give cpu or nccl"),
    ],
)
def test_what_several_processes_cannot_do_is_refused(faces, options, message):
    script, *more = options
    results = Started([script, *COMMON, "--data_dir", faces / "train", *more]).end()
    codes = {code for code, _, _ in results}
    assert 2 in codes
    assert codes <= {2, 75}
    assert all(message in errors for _, _, errors in results)


def wait_for(condition, started, seconds=240):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        # The file that it reads may not be there yet.
        with contextlib.suppress(FileNotFoundError):
            if condition():
                return
        assert all(process.poll() is None for process in started.processes), started.end()
        time.sleep(0.2)
    raise AssertionError(f"nothing within {seconds} s: {started.end(timeout=1)}")
