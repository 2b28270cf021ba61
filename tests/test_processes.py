"""Processes that meet, tell each other, stop after the same step and end together; without TensorFlow."""

import json
import signal
import socket
import subprocess
import sys
import time

import pytest
from conftest import free_ports, processes_environment

HEAD = """
import json, os, signal, sys, threading, time
from towers.errors import UserError
from towers.processes import Processes
addresses, index = json.loads(sys.argv[1]), int(sys.argv[2])
processes = Processes(addresses, index, name="run")
def meet(seconds=60, **facts):
    try:
        processes.meet(facts, seconds)
    except UserError as error:
        print(type(error).__name__, error)
        sys.exit(error.exit_code)
"""


@pytest.fixture
def together(tmp_path):
    """Start processes that run the lines of ``body``; returns [(exit code, standard output, error stream)]."""
    started = []

    def run(body, num=2, only=None, between=None, timeout=120):
        addresses = json.dumps([f"localhost:{port}" for port in free_ports(num)])
        path = tmp_path / "body.py"
        path.write_text(HEAD + body)
        for index in range(num) if only is None else only:
            started.append(
                subprocess.Popen(
                    [sys.executable, str(path), addresses, str(index)],
                    env=processes_environment(),
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
        if between is not None:
            between(started)
        results = []
        for process in started:
            output, errors = process.communicate(timeout=timeout)
            results.append((process.returncode, output, errors))
        return results

    yield run
    for process in started:
        process.kill()


def test_values_are_gathered_in_order(together):
    results = together("meet()\nprint(processes.gather(index * 10), processes.gather('x'))\nprocesses.leave()", num=3)
    assert results == [(0, "[0, 10, 20] ['x', 'x', 'x']\n", "")] * 3


def test_threads_gather_their_own_topics(together):
    body = """
meet()
found = {}
def gather(topic):
    time.sleep(0.3 * (index == (topic == "a")))
    found[topic] = [processes.gather(f"{topic}{index}{turn}", topic) for turn in range(2)]
threads = [threading.Thread(target=gather, args=(topic,)) for topic in ("a", "b")]
for thread in threads: thread.start()
plain = processes.gather(index)
for thread in threads: thread.join()
print(plain, found["a"], found["b"])
processes.leave()
"""
    expected = "[0, 1] [['a00', 'a10'], ['a01', 'a11']] [['b00', 'b10'], ['b01', 'b11']]\n"
    assert together(body) == [(0, expected, "")] * 2


def test_the_port_is_free_for_tensorflow_after_the_meeting(together):
    body = """
meet()
import socket
socket.create_server(("", int(addresses[index].rpartition(":")[2]))).close()
processes.leave()
"""
    assert [code for code, _, _ in together(body)] == [0, 0]


def test_a_worker_that_does_not_come_is_named_by_all(together):
    results = together("meet(seconds=3)", num=3, only=[0, 2])
    assert [code for code, _, _ in results] == [75, 75]
    for _, output, _ in results:
        assert "worker 1 (localhost:" in output
        assert "did not come within 3 s" in output


def test_a_chief_that_does_not_come_is_named(together):
    ((code, output, _),) = together("meet(seconds=1)", only=[1])
    assert code == 75
    assert "worker 0 (localhost:" in output


def test_other_options_and_versions_are_named_by_all(together):
    body = """
from towers import processes as module
if index == 1:
    module.versions = lambda: {**{"Towers": "9"}, "Python": "2.7"}
meet(**{"--batch_size": 8 + index, "--seed": 1})
"""
    results = together(body)
    assert [code for code, _, _ in results] == [2, 2]
    for _, output, _ in results:
        assert "worker 1 (localhost:" in output
        assert "--batch_size 9 instead of 8" in output
        assert "Python 2.7 instead of 3." in output
        assert "TensorFlow None instead of" in output
        assert "--seed" not in output


def test_a_stranger_at_the_port_of_the_chief_is_sent_away(together):
    body = """
if index == 1:
    import socket
    deadline = time.monotonic() + 30
    while True:
        try:
            stranger = socket.create_connection(("localhost", int(addresses[0].rpartition(":")[2])))
            break
        except OSError:
            assert time.monotonic() < deadline
    stranger.sendall(b"GET / HTTP/1.1\\r\\n")
meet()
print(processes.gather(index))
processes.leave()
"""
    assert [output for _, output, _ in together(body)] == ["[0, 1]\n"] * 2


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_a_killed_process_ends_the_others(together, lost):
    body = f"""
meet()
processes.gather(0)
if index == {lost}:
    os.kill(os.getpid(), signal.SIGKILL)
time.sleep(100)
"""
    started = time.monotonic()
    results = together(body, num=3)
    assert time.monotonic() - started < 60
    for index, (code, _, errors) in enumerate(results):
        assert code == (-signal.SIGKILL if index == lost else 75)
        if index != lost:
            assert f"run: worker {lost} (localhost:" in errors


def test_a_process_that_hangs_ends_the_others(together):
    body = """
from towers import processes as module
module.BEAT, module.SILENCE = 0.2, 2.0
meet()
processes.gather(0)
if index == 1:
    os.kill(os.getpid(), signal.SIGSTOP)
time.sleep(100)
"""

    def wake(started):
        started[0].wait(timeout=60)
        started[1].kill()

    (code, _, errors), _ = together(body, between=wake)
    assert code == 75
    assert "has said nothing for 2 s" in errors


def test_the_error_of_a_process_is_told_to_the_others(together):
    body = """
meet()
if index == 1:
    processes.fail("FACES: no pictures")
    sys.exit(65)
time.sleep(100)
"""
    (code, _, errors), (own_code, _, _) = together(body)
    assert (code, own_code) == (75, 65)
    assert "ended: FACES: no pictures" in errors


def test_a_process_that_ends_by_itself_in_the_grace_keeps_its_own_code(together):
    body = """
meet()
processes.gather(0)
time.sleep(index)
processes.fail("diverged")
os._exit(70)
"""
    assert [code for code, _, _ in together(body)] == [70, 70]


def test_the_chief_waits_for_the_last_and_nobody_is_lost_at_the_end(together):
    body = """
meet()
time.sleep(2 * (index == 1))
processes.leave()
time.sleep(4 * (index == 2))
"""
    assert [(code, errors) for code, _, errors in together(body, num=3)] == [(0, "")] * 3


STEPS = """
meet()
asked = None
for step in range(1, 200):
    processes.gather(step)  # as a sum over the processes: nobody is more than a step ahead
    if index == {who} and step == 7:
        asked = {signal}
    time.sleep(0.01 * index)
    stop = processes.stop_after(step, asked)
    if stop:
        break
print(step, stop)
processes.leave()
"""


@pytest.mark.parametrize("who", [0, 2])
def test_all_stop_after_the_same_step(together, who):
    results = together(STEPS.format(who=who, signal=int(signal.SIGTERM)), num=3)
    outputs = {output for _, output, _ in results}
    assert len(outputs) == 1
    step, number = map(int, outputs.pop().split())
    assert 7 <= step <= 20
    assert number == signal.SIGTERM


def test_all_asked_at_once_stop_after_the_same_step(together):
    body = STEPS.replace("index == {who} and step == 7", "step == 7").format(signal="15 if index else 2")
    results = together(body, num=3)
    outputs = {output for _, output, _ in results}
    assert len(outputs) == 1
    assert 7 <= int(outputs.pop().split()[0]) <= 20


def test_values_that_differ_are_an_error_everywhere(together):
    body = """
meet()
processes.check_alike("pictures", "same")
try:
    processes.check_alike("pictures", index // 2, advice="; copy them")
except UserError as error:
    print(error)
processes.leave()
"""
    results = together(body, num=3)
    assert len({output for _, output, _ in results}) == 1
    assert "pictures: 1 in worker 2 (localhost:" in results[0][1]
    assert results[0][1].endswith("; copy them\n")


def test_a_port_in_use_is_named(together):
    with socket.create_server(("", 0)) as taken:
        body = f"processes.addresses = ('localhost:{taken.getsockname()[1]}', 'b:1')\nmeet(seconds=2)"
        ((code, output, _),) = together(body, only=[0])
    assert code == 2
    assert "cannot be opened" in output
