"""The processes that read and decode batches for this one.

Python's threads would wait for one another: each picture takes Python's lock several times. A process starts in a tenth
of a second, as it loads no TensorFlow, and all data sets of this process share them.
"""

import atexit
import functools
import os
import pickle
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable
from multiprocessing.connection import Connection

from .batch_memory import batch_memory

MOST_WORKERS = 32
# More, and what ends them is no chance.
MOST_LOST = 10


class WorkerLost(Exception):
    """A worker ended before it did its job."""


class Workers:
    """Processes that do jobs; each starts with the first job that falls to it.

    Args:
      count: how many, by default one a core of this process, at most MOST_WORKERS.
    """

    def __init__(self, count: int | None = None):
        self._workers: list[Worker | None] = [None] * (count or min(len(os.sched_getaffinity(0)), MOST_WORKERS))
        self._next, self._lost = 0, 0
        self._choosing = threading.Lock()

    def __len__(self) -> int:
        return len(self._workers)

    def begin(self, job, keep) -> Callable[[], object]:
        """Give a job to the next worker; what this returns waits for the answer.

        `keep`, where the job writes to, is kept for as long as the worker may write. The answer raises WorkerLost, or
        what the job raised.
        """
        message = pickle.dumps(job)
        with self._choosing:
            index = self._next
            self._next = (index + 1) % len(self._workers)
            worker = self._workers[index]
            if worker is None or worker.has_ended():
                if worker is not None:
                    self._report(worker)
                worker = self._workers[index] = Worker()
            return worker.begin(message, keep)

    def running(self) -> list["Worker"]:
        """Those that were started."""
        return [worker for worker in self._workers if worker is not None]

    def close(self) -> None:
        """End them all; another job starts new ones."""
        for worker in self.running():
            worker.close()
        self._workers = [None] * len(self._workers)

    def _report(self, worker: "Worker") -> None:
        self._lost += 1
        how = worker.how_it_ended()
        if self._lost > MOST_LOST:
            raise RuntimeError(f"{self._lost} processes that read pictures ended, the last one {how}")
        print(f"A process that reads pictures ended {how}; another takes its place", file=sys.stderr, flush=True)


class Worker:
    """One process, which does one job after the other."""

    def __init__(self):
        ours, theirs = socket.socketpair()
        memory = batch_memory().descriptor
        with theirs:
            self._process = subprocess.Popen(
                # -P: what lies in the working directory is not imported.
                [sys.executable, "-P", "-m", "towers.datasets.worker", str(theirs.fileno()), str(memory)],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), memory),
                # Ctrl-C is for this process, which ends its workers.
                process_group=0,
            )
        self._connection = Connection(ours.detach())
        self._waiting: deque[_Answer] = deque()
        self._receiving = threading.Lock()

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    def begin(self, message: bytes, keep) -> Callable[[], object]:
        """Send a pickled job; what this returns waits for the answer."""
        answer = _Answer(keep)
        self._waiting.append(answer)
        try:
            self._connection.send_bytes(message)
        except ConnectionError:
            answer.value = WorkerLost()
        return lambda: self._wait(answer)

    def has_ended(self) -> bool:
        """Whether the process is gone."""
        return self._process.poll() is not None

    def how_it_ended(self) -> str:
        """For messages."""
        status = self._process.returncode
        return f"by signal {-status}" + " (no memory left?)" * (status == -9) if status < 0 else f"with status {status}"

    def close(self) -> None:
        """End it after the job that it is at, or before where that takes long."""
        self._connection.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _wait(self, answer: "_Answer") -> object:
        with self._receiving:
            # Answers come in the order of the jobs; those that nobody waits for any more are passed over.
            while answer.value is None:
                try:
                    value = self._connection.recv()
                except (EOFError, OSError):
                    answer.value = WorkerLost()
                    break
                except Exception as error:
                    # Of an exception whose class cannot be made anew here.
                    value = error
                self._waiting.popleft().value = value
        if isinstance(answer.value, Exception):
            raise answer.value
        return answer.value


class _Answer:
    """What came back for a job; until then it keeps what the worker writes to."""

    def __init__(self, keep):
        self.keep = keep
        self.value = None


@functools.cache
def workers_of_this_process() -> Workers:
    """The ones that all data sets share; they end with this process."""
    workers = Workers()
    atexit.register(workers.close)
    return workers
