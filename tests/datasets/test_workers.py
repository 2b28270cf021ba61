import os
import signal
import subprocess
import sys
import time
from functools import partial

import numpy as np
import pytest
from conftest import processes_environment
from datasets.pictures import decoded, face, jpeg

from towers.datasets.batch_memory import batch_memory
from towers.datasets.decoding import Quarantine
from towers.datasets.folder import read_folder
from towers.datasets.loading import Job, Pictures
from towers.datasets.record_writing import write_records
from towers.datasets.records import read_records
from towers.datasets.workers import MOST_LOST, WorkerLost, Workers

SIZE = 16


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    root = tmp_path_factory.mktemp("pictures")
    for index in range(24):
        path = root / f"class{index // 4}" / f"{index:02d}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(jpeg(face(index)))
    return read_folder(root)


@pytest.fixture
def workers():
    workers = Workers(2)
    yield workers
    workers.close()


def expected(source, records):
    return np.stack([decoded(encoded) for encoded in source.reader(records)()])


def begin(pictures, *records):
    return pictures.begin(np.array(records), np.array(records))


def pids(workers):
    return [worker.pid for worker in workers.running()]


def kill(pid):
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


def sleeping(seconds):
    """A job for a worker, to keep it busy."""
    offset, pixels = batch_memory().empty((1, 1, 1, 3))
    return Job(offset, pixels.shape, partial(time.sleep, seconds), None, None), pixels


def test_a_killed_worker_is_replaced_and_its_batches_are_loaded(source, workers, capfd):
    pictures = Pictures(source, SIZE, Quarantine(source), None, workers)
    begin(pictures, 0)()
    begin(pictures, 1)()
    before = pids(workers)
    workers.begin(*sleeping(60))
    waiting = [begin(pictures, 4 * batch, 4 * batch + 1) for batch in range(3)]
    kill(before[0])
    for batch, finish in enumerate(waiting):
        found, labels = finish()
        assert np.array_equal(found, expected(source, [4 * batch, 4 * batch + 1]))
        assert labels.tolist() == [batch, batch]
    found, _ = begin(pictures, 5)()
    assert np.array_equal(found, expected(source, [5]))
    begin(pictures, 6)()
    after = pids(workers)
    assert len(set(after) - set(before)) == 1
    assert capfd.readouterr().err == (
        "A process that reads pictures ended by signal 9 (no memory left?); another takes its place\n"
    )
    pictures.quarantine.check(0.0)


def test_workers_that_end_again_and_again_end_the_run(source):
    workers = Workers(1)
    quarantine = Quarantine(source)
    pictures = Pictures(source, SIZE, quarantine, None, workers)
    for _ in range(MOST_LOST + 1):
        begin(pictures, 0)()
        quarantine.check(0.0)
        (pid,) = pids(workers)
        kill(pid)
    begin(pictures, 0)()
    with pytest.raises(RuntimeError, match=f"{MOST_LOST + 1} processes that read pictures ended, the last one by sig"):
        quarantine.check(1.0)
    workers.close()


def test_memory_that_a_worker_may_still_write_to_is_not_used_again(source):
    workers = Workers(1)
    pictures = Pictures(source, SIZE, Quarantine(source), None, workers)
    begin(pictures, 0, 1, 2)()
    workers.begin(*sleeping(0.5))
    abandoned = [begin(pictures, record, record, record) for record in range(3, 9)]
    del abandoned
    # In this process, at once: what the worker fills later must not lie in the same place.
    offset, pixels = batch_memory().empty((3, SIZE, SIZE, 3))
    pixels[:] = 7
    found, _ = begin(pictures, 9, 10, 11)()
    assert np.array_equal(found, expected(source, [9, 10, 11]))
    assert (pixels == 7).all()
    workers.close()


def test_answers_nobody_waits_for_are_passed_over(source, workers):
    pictures = Pictures(source, SIZE, Quarantine(source), None, workers)
    started = [begin(pictures, record) for record in range(12)]
    for record in (11, 2, 7):
        assert np.array_equal(started[record]()[0], expected(source, [record]))


def test_an_exception_comes_back(workers):
    _, pixels = batch_memory().empty((1, 1, 1, 3))
    answer = workers.begin(Job(0, pixels.shape, partial(int, "no number"), None, None), pixels)
    with pytest.raises(ValueError, match="no number"):
        answer()


def test_a_job_after_closing_starts_new_ones(source, workers):
    pictures = Pictures(source, SIZE, Quarantine(source), None, workers)
    begin(pictures, 0)()
    workers.close()
    assert np.array_equal(begin(pictures, 3)()[0], expected(source, [3]))


def test_a_lost_worker_says_so(workers):
    answer = workers.begin(*sleeping(60))
    kill(*pids(workers))
    for _ in range(2):
        with pytest.raises(WorkerLost):
            answer()


def test_records_are_read_from_the_file_that_was_opened(tmp_path, workers):
    def write(folder, first):
        folder.mkdir()
        write_records(
            folder, lambda record: jpeg(face(first + record)), np.arange(8) // 2, num_classes=4, size=(16, 16)
        )

    write(tmp_path / "data", 0)
    write(tmp_path / "other", 100)
    source = read_records(tmp_path / "data")
    (tmp_path / "other/train.rec").replace(tmp_path / "data/train.rec")
    quarantine = Quarantine(source)
    found, labels = begin(Pictures(source, SIZE, quarantine, None, workers), 0, 3, 6)()
    quarantine.check(0.0)
    assert np.array_equal(found, [decoded(jpeg(face(record))) for record in (0, 3, 6)])
    assert labels.tolist() == [0, 1, 3]


PROGRAM = """
import os, sys, time
import numpy as np
from towers.datasets.decoding import Quarantine
from towers.datasets.folder import read_folder
from towers.datasets.loading import Pictures
from towers.datasets.workers import workers_of_this_process
source = read_folder(sys.argv[1])
workers = workers_of_this_process()
pictures = Pictures(source, 16, Quarantine(source), None, workers)
for record in range(2 * len(workers)):
    pictures.begin(np.array([record]), np.array([record]))()
for worker in workers.running():
    print(worker.pid, "tensorflow" in open(f"/proc/{worker.pid}/maps").read(), flush=True)
print("tensorflow" in sys.modules, flush=True)
if sys.argv[2] == "wait":
    print(flush=True)
    time.sleep(60)
"""


def running(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(") ")[2][0] not in "ZX"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("how", ["by itself", signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_their_process_and_load_no_tensorflow(source, tmp_path, how):
    (tmp_path / "program.py").write_text(PROGRAM)
    # A file of this name where the user happens to be is not what a worker imports.
    (tmp_path / "cv2.py").write_text("raise RuntimeError('imported from the working directory')")
    process = subprocess.Popen(
        [sys.executable, "-P", tmp_path / "program.py", source.root, "end" if how == "by itself" else "wait"],
        cwd=tmp_path,
        env=processes_environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    # An empty line, or the end.
    *found, loaded = [line.split() for line in iter(lambda: process.stdout.readline().strip(), "")]
    if how != "by itself":
        process.send_signal(how)
    process.wait(timeout=30)
    assert loaded == ["False"]
    assert found
    assert all(tensorflow == "False" for _, tensorflow in found)
    deadline = time.monotonic() + 10
    while any(running(pid) for pid, _ in found) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(running(pid) for pid, _ in found)


class Odd(Exception):
    def __init__(self, one, two):
        super().__init__(f"{one} {two}")


def raise_odd():
    raise Odd(1, 2)


def test_what_cannot_be_sent_is_an_error_and_disturbs_no_other(source, workers):
    pictures = Pictures(source, SIZE, Quarantine(source), None, workers)
    _, pixels = batch_memory().empty((1, 1, 1, 3))
    with pytest.raises(AttributeError, match="lambda"):
        workers.begin(Job(0, pixels.shape, lambda: [], None, None), pixels)
    answer = workers.begin(Job(0, pixels.shape, raise_odd, None, None), pixels)
    batches = [begin(pictures, record) for record in range(4)]
    with pytest.raises((TypeError, ModuleNotFoundError)):
        answer()
    for record, finish in enumerate(batches):
        assert np.array_equal(finish()[0], expected(source, [record]))
