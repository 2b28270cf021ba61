"""scripts/launch.py: who gets which cores, GPUs and addresses; signals and exit codes."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import textwrap
import time

import pytest
from conftest import ROOT, processes_environment, run_python

sys.path.insert(0, str(ROOT / "scripts"))
import launch

FAKE_SSH = """
#!{python}
import os, pty, sys
# As ssh -tt does: a terminal for the command, and what comes on the standard input is typed into it.
sys.exit(os.waitstatus_to_exitcode(pty.spawn(["bash", "-c", sys.argv[-1]])))
"""


@pytest.fixture
def script(tmp_path):
    def write(body):
        path = tmp_path / "train.py"
        path.write_text("import json, os, signal, sys, time\n" + textwrap.dedent(body))
        return path

    return write


def test_cores_and_gpus_are_split():
    assert launch.shares([0, 1, 2, 3, 4], 2) == [[0, 1], [2, 3]]
    assert launch.shares([0], 2) == [[0], [0]]


def test_addresses():
    assert launch.choose_addresses(["u@a", "b"], 2, None) == ["a:24000", "a:24001", "b:24000", "b:24001"]
    assert launch.choose_addresses(["localhost"], 2, 7000) == ["localhost:7000", "localhost:7001"]
    free = launch.choose_addresses(["localhost"], 3, None)
    assert len(set(free)) == 3


def test_gpus_are_those_that_are_visible(tmp_path, monkeypatch):
    assert launch.visible_gpus({"CUDA_VISIBLE_DEVICES": "3,GPU-a"}) == ["3", "GPU-a"]
    assert launch.visible_gpus({"CUDA_VISIBLE_DEVICES": ""}) == []
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 'GPU 0: x'\necho 'GPU 1: x'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert launch.visible_gpus({}) == ["0", "1"]
    own = launch.environments(["a:1", "a:2"], launch.shares(["0", "1"], 2))
    assert [each["CUDA_VISIBLE_DEVICES"] for each in own] == ["0", "1"]


def test_each_process_has_its_place_and_its_cores(script):
    path = script("""
        config = json.loads(os.environ["TF_CONFIG"])
        own = {"index": config["task"]["index"], "cores": sorted(os.sched_getaffinity(0)), "arguments": sys.argv[1:]}
        os.write(1, (json.dumps(own | {"workers": config["cluster"]["worker"]}) + "\\n").encode())
    """)
    result = run_python("scripts/launch.py", "--workers", "2", "--", path, "--data_dir", "a b")
    lines = sorted((json.loads(line) for line in result.stdout.splitlines()), key=lambda line: line["index"])
    assert [line["index"] for line in lines] == [0, 1]
    assert lines[0]["workers"] == lines[1]["workers"]
    assert len(set(lines[0]["workers"])) == 2
    assert lines[0]["arguments"] == ["--data_dir", "a b"]
    if len(os.sched_getaffinity(0)) > 1:
        assert not set(lines[0]["cores"]) & set(lines[1]["cores"])


@pytest.mark.parametrize(
    ("codes", "expected"), [((0, 0), 0), ((0, 75), 75), ((75, 65), 65), ((0, -9), 75), ((75, -9), 75)]
)
def test_the_exit_code_is_that_of_the_failure(script, codes, expected):
    path = script(f"""
        code = {codes}[json.loads(os.environ["TF_CONFIG"])["task"]["index"]]
        os.kill(os.getpid(), -code) if code < 0 else sys.exit(code)
    """)
    assert run_python("scripts/launch.py", "--workers", "2", "--", path, check=False).returncode == expected


def test_a_process_that_outlives_the_others_is_ended(script, monkeypatch):
    monkeypatch.setattr(launch, "PATIENCE", 1)
    path = script("""
        if json.loads(os.environ["TF_CONFIG"])["task"]["index"]:
            sys.exit(70)
        time.sleep(100)
    """)
    own = launch.environments(["localhost:1", "localhost:2"], [])
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    started = time.monotonic()
    try:
        processes = [launch.start_here([str(path)], each, sorted(os.sched_getaffinity(0))) for each in own]
        assert launch.wait(processes) == 70
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert time.monotonic() - started < 60


WAITS = """
    def note(number, frame):
        os.write(1, f"signal {number}\\n".encode())
        sys.exit(128 + number)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, note)
    os.write(1, b"ready\\n")
    # A signal just before a sleep begins is noticed once it ends.
    for _ in range(1000):
        time.sleep(0.1)
"""


def started_and_signalled(arguments, number, **environment):
    process = subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env=processes_environment(**environment),
        stdout=subprocess.PIPE,
        text=True,
    )
    for _ in range(2):
        assert process.stdout.readline().strip() == "ready"
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    return process.returncode, re.findall(r"signal \d+", output)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_goes_to_every_process_once(script, number):
    code, noted = started_and_signalled(["scripts/launch.py", "--workers", "2", "--", script(WAITS)], number)
    assert code == 128 + number
    assert noted == [f"signal {int(number)}"] * 2


def test_other_machines_are_started_and_stopped_by_ssh(script, tmp_path):
    ssh = tmp_path / "bin/ssh"
    ssh.parent.mkdir()
    ssh.write_text(FAKE_SSH.format(python=sys.executable).lstrip())
    ssh.chmod(0o755)
    code, noted = started_and_signalled(
        ["scripts/launch.py", "--hosts", "one", "two", "--", script(WAITS)],
        signal.SIGTERM,
        PATH=f"{ssh.parent}{os.pathsep}{os.environ['PATH']}",
    )
    assert code == 128 + signal.SIGINT
    assert noted == ["signal 2"] * 2


def test_the_commands_are_printed(script):
    path = script("")
    printed = run_python("scripts/launch.py", "--hosts", "one", "two", "--print", "--", path).stdout.splitlines()
    assert [shlex.split(line)[4] for line in printed] == ["one", "two"]
    assert '"one:24000", "two:24000"' in printed[1]
    local = run_python("scripts/launch.py", "--workers", "2", "--print", "--", path).stdout.splitlines()
    assert len(local) == 2
    assert all(line.startswith("env 'TF_CONFIG=") for line in local)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workers", "2"], "give the command after --"),
        (["--workers", "2", "--", "nothing.py"], "nothing.py: no such script"),
        (["--", "train_softmax.py"], "one process needs no launcher"),
    ],
)
def test_mistakes_are_one_line(arguments, message):
    result = run_python("scripts/launch.py", *arguments, check=False)
    assert result.returncode == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
