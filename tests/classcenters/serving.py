"""Parameter servers for tests: in this process, or as programs that can be killed."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

from towers.classcenters import server
from towers.classcenters.shard import Shard
from towers.classcenters.store import memory_store

ROOT = Path(__file__).resolve().parents[2]


@contextlib.contextmanager
def serving(*options, shards=1, **settings):
    """Start shards here, at free ports; yields their addresses and shards."""
    arguments = server.parser().parse_args(["--clients", str(settings.get("clients", 1)), *map(str, options)])
    running, addresses, made = [], [], []
    for index in range(shards):
        folder = settings.get("folder")
        shard = Shard(memory_store(), **{**settings, "folder": folder}, index=index, count=shards)
        one, port = server.make_server(arguments, "127.0.0.1:0", shard, lambda: True)
        one.start()
        running.append(one)
        made.append(shard)
        addresses.append(f"localhost:{port}")
    try:
        yield addresses, made
    finally:
        for one in running:
            one.stop(grace=0).wait()


class Program:
    """A server program at one port, which may be killed and started again."""

    def __init__(self, *options):
        self.options = list(map(str, options))
        self.port = 0
        self.start()

    def start(self):
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "towers.classcenters.server", "--bind", f"127.0.0.1:{self.port}", *self.options],
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        line = self.process.stdout.readline()
        assert line.startswith("shard 0 of 1 at "), line
        self.port = int(line.rpartition(":")[2])

    @property
    def address(self):
        return f"127.0.0.1:{self.port}"

    def kill(self):
        self.process.kill()
        self.process.communicate()

    def stop(self):
        self.process.terminate()
        return self.process.communicate(timeout=30)[0], self.process.returncode
