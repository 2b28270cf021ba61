"""What a parameter server does, without the network: rounds of clients, fences, each push once, snapshots, journal."""

import json
import secrets
import threading
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..errors import StorageError
from . import journal, snapshots
from .matrix import Matrix, Reading
from .spec import MatrixSpec, StepMismatch, checked_learning_rate, checked_name, checked_rows, checked_values, merged
from .store import Store


class GenerationMismatch(StepMismatch):
    """The server has started anew, or loaded a snapshot, since the caller last asked."""


class FenceTimeout(Exception):
    """A version was not reached in time; the text says which clients have not pushed."""


class Stopping(Exception):
    """The server is about to stop; the call may be repeated when it is there again."""


class Pushed(NamedTuple):
    """What a client pushed for a step that not all have pushed for."""

    request: int
    learning_rate: float
    rows: np.ndarray
    gradients: np.ndarray


class Shard:
    """One server's share of every matrix.

    Args:
      store: where matrices are kept.
      index, count: this shard and how many there are.
      clients: how many push in each step.
      staleness: how many steps a client may be ahead of the slowest.
      step_timeout: seconds that a fence waits.
      folder: of snapshots and the journal; None: a server that is stopped has lost what it knew.
      journal_bytes: a journal that has grown to this size is replaced by a snapshot; 0: no journal.
      max_bytes: of all matrices together.
    """

    def __init__(
        self,
        store: Store,
        *,
        index: int = 0,
        count: int = 1,
        clients: int = 1,
        staleness: int = 0,
        step_timeout: float = 60.0,
        folder: Path | None = None,
        journal_bytes: int = 1 << 32,
        max_bytes: int = 1 << 36,
    ):
        self.store, self.index, self.count, self.clients = store, index, count, clients
        self.staleness, self.step_timeout, self.folder = staleness, step_timeout, folder
        self.journal_bytes, self.max_bytes = journal_bytes, max_bytes
        self.generation = secrets.randbits(63) + 1
        self.counters = dict.fromkeys(("pulls", "pulled_rows", "pushes", "pushed_rows", "duplicates", "rounds"), 0)
        self.specs: dict[str, MatrixSpec] = {}
        # Name -> client -> the last push that was applied: [version, request].
        self._applied: dict[str, dict[str, list[int]]] = {}
        # Name -> version -> client -> Pushed.
        self._waiting: dict[str, dict[int, dict[int, Pushed]]] = {}
        self._changed = threading.Condition()
        self._journal = None
        self._stopping = False
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            self._recover()

    def create(self, name: str, spec: MatrixSpec) -> None:
        """Make this shard's share of a matrix of ``spec``. Raises ValueError, as ``Store.create``, or for its size."""
        checked_name(name)
        with self._changed:
            present = self.specs.get(name)
            if present is not None and present != spec:
                raise ValueError(f"matrix {name} is there already, as {present}")
            if present is not None:
                return
            share = self._share(spec)
            needed = share.num_bytes + sum(matrix.spec.num_bytes for matrix in self.store.matrices.values())
            if needed > self.max_bytes:
                raise ValueError(f"matrix {name} needs {share.num_bytes} bytes; all together may have {self.max_bytes}")
            self._write_journal({"kind": "create", "name": name, "spec": spec.to_json()})
            self._add(name, spec)

    def pull(self, name: str, rows: np.ndarray, version: int | None, generation: int) -> Reading:
        """Rows [S, D] to be read in pieces; waits for a version. ValueError for a row that is not there."""
        matrix = self.matrix(name)
        rows = checked_rows(rows, matrix.spec.rows)
        if version is not None:
            self._wait(name, version, generation)
        else:
            self.check_generation(generation, matrix.version)
        reading = matrix.reading(rows)
        self.counters["pulls"] += 1
        self.counters["pulled_rows"] += len(rows)
        return reading

    def push(
        self,
        name: str,
        rows: np.ndarray,
        gradients: np.ndarray,
        learning_rate: float,
        *,
        version: int,
        client: int,
        request: int,
        generation: int = 0,
    ) -> tuple[int, bool]:
        """Accept gradients of a client for a step; apply the step if it is the last of the round.

        Args:
          gradients: float32 [S, D] of ``rows`` [S], all finite: that is checked before, as they arrive.

        Returns:
          The version then, and whether this push was known already.

        Raises:
          ValueError: wrong rows or learning rate, or no such client, or another learning rate than the others'.
          StepMismatch: the push is for a step that is over or too far ahead. In each case nothing has changed.
        """
        matrix = self.matrix(name)
        rows = checked_rows(rows, matrix.spec.rows, increasing=True)
        learning_rate = checked_learning_rate(learning_rate)
        if not 0 <= client < self.clients:
            raise ValueError(f"client {client} is not in [0, {self.clients})")
        with self._changed:
            self.check_generation(generation, matrix.version)
            if self._applied[name].get(str(client)) == [version, request]:
                self.counters["duplicates"] += 1
                return matrix.version, True
            if not matrix.version <= version <= matrix.version + self.staleness:
                raise StepMismatch(
                    f"client {client} pushes for step {version} of {name}, which is at {matrix.version}", matrix.version
                )
            waiting = self._waiting[name].setdefault(version, {})
            if client in waiting:
                if waiting[client].request != request:
                    raise StepMismatch(
                        f"client {client} has pushed for step {version} of {name} already", matrix.version
                    )
                self.counters["duplicates"] += 1
                return matrix.version, True
            for other in waiting.values():
                if other.learning_rate != learning_rate:
                    raise ValueError(
                        f"learning rate {learning_rate} for step {version}, another client's {other.learning_rate}"
                    )
            waiting[client] = Pushed(request, learning_rate, rows, gradients)
            self.counters["pushes"] += 1
            self.counters["pushed_rows"] += len(rows)
            try:
                while len(self._waiting[name].get(matrix.version, {})) == self.clients:
                    self._apply_round(name, matrix)
            except (OSError, ValueError):
                # The round was not written down, so it has not happened; the client may send this again. Or the sum of
                # finite gradients is not finite.
                waiting.pop(client, None)
                raise
            finally:
                self._changed.notify_all()
            return matrix.version, False

    def write(self, name: str, start: int, weights: np.ndarray, slot: np.ndarray | None) -> None:
        self.matrix(name).assign(start, weights, slot)

    def commit(self, name: str, version: int) -> None:
        """After ``write``: count steps from ``version`` on; what waited for the old rows is dropped."""
        if not 0 <= version < 1 << 62:
            raise ValueError(f"version {version} is not in [0, 2^62)")
        with self._changed:
            self.matrix(name).set_version(version)
            self._waiting[name], self._applied[name] = {}, {}
            self._new_generation()
            if self._journal is not None:
                self._rebase("committed")

    def save(self, name: str) -> None:
        """Write the snapshot ``name``; recovery begins from it."""
        if checked_name(name).endswith(".new"):
            raise ValueError(f"snapshot name {name}: names that end with .new are the server's own")
        with self._changed:
            self._rebase(name)

    def load(self, name: str) -> None:
        """Go back to a snapshot: pushes after it are forgotten."""
        path = self._snapshot_path(checked_name(name))
        with self._changed:
            if not path.is_file():
                raise ValueError(f"there is no snapshot {name}")
            self._read_snapshot(path)
            self._new_generation()
            if self.journal_bytes:
                self._open_journal(name)
            self._changed.notify_all()

    def matrix(self, name: str) -> Matrix:
        return self.store.matrix(name)

    def check_generation(self, generation: int, version: int = -1) -> None:
        """Raise GenerationMismatch unless ``generation`` is 0 or the present one."""
        if generation not in (0, self.generation):
            raise GenerationMismatch("the server has started anew or loaded a snapshot; ask Describe", version)

    def stop_waiting(self) -> None:
        """Answer those who wait for other clients at once, before the server stops."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()

    def close(self) -> None:
        """Write what a restart needs, at once rather than by its journal."""
        with self._changed:
            if self.folder is not None and self.store.matrices:
                self._rebase("stopped")
            if self._journal is not None:
                self._journal.close()

    def _share(self, spec):
        if spec.rows < self.count:
            raise ValueError(f"{spec.rows} rows cannot be spread over {self.count} shards")
        return spec.shard(self.index, self.count)

    def _add(self, name, spec):
        self.store.create(name, self._share(spec))
        self.specs[name] = spec
        self._applied[name], self._waiting[name] = {}, {}

    def _wait(self, name, version, generation):
        matrix = self.matrix(name)
        deadline = time.monotonic() + self.step_timeout
        with self._changed:
            while True:
                self.check_generation(generation, matrix.version)
                if matrix.version > version:
                    raise StepMismatch(
                        f"rows of step {version} of {name} are gone: it is at {matrix.version}", matrix.version
                    )
                if matrix.version >= version - self.staleness:
                    return
                if self._stopping:
                    raise Stopping("the server is stopping")
                left = deadline - time.monotonic()
                if left <= 0:
                    here = self._waiting[name].get(matrix.version, {})
                    missing = [client for client in range(self.clients) if client not in here]
                    raise FenceTimeout(
                        f"step {matrix.version} of {name}: client {', '.join(map(str, missing))} of {self.clients} "
                        f"has not pushed within {self.step_timeout:g} s"
                    )
                self._changed.wait(left)

    def _apply_round(self, name, matrix):
        version = matrix.version
        pushed = self._waiting[name][version]
        everyone = [pushed[client] for client in sorted(pushed)]
        rows, gradients = everyone[0].rows, everyone[0].gradients
        if len(everyone) > 1:
            with np.errstate(over="ignore", invalid="ignore"):
                rows, gradients = merged(
                    np.concatenate([one.rows for one in everyone]), np.concatenate([one.gradients for one in everyone])
                )
            gradients = checked_values(gradients / np.float32(len(everyone)), gradients.shape)
        requests = {str(client): [version, one.request] for client, one in pushed.items()}
        rate = everyone[0].learning_rate
        facts = {"kind": "round", "name": name, "version": version, "rate": rate, "requests": requests}
        self._write_journal(facts, rows, gradients)
        matrix.step(rows, gradients, rate, version)
        self._applied[name].update(requests)
        del self._waiting[name][version]
        self.counters["rounds"] += 1
        if self._journal is not None and self._journal.num_bytes > self.journal_bytes:
            self._rebase("journal")

    def _write_journal(self, facts, *arrays):
        if self._journal is not None:
            self._journal.append(facts, *arrays)

    def _new_generation(self):
        self.generation = secrets.randbits(63) + 1

    def _snapshot_path(self, name):
        if self.folder is None:
            raise ValueError("this server keeps no snapshots: start it with --directory")
        return self.folder / f"{name}.shard{self.index}of{self.count}.h5"

    def _rebase(self, name):
        """Write a snapshot and begin a journal after it."""
        facts = {
            "specs": json.dumps({key: spec.to_json() for key, spec in self.specs.items()}),
            "applied": json.dumps(self._applied),
        }
        path = self._snapshot_path(name)
        # The present journal may build on an older file of that name.
        aside = self._snapshot_path(f"{name}.new")
        snapshots.save(aside, self.store.matrices, facts)
        if self.journal_bytes:
            self._open_journal(f"{name}.new")
        aside.replace(path)
        if self.journal_bytes:
            self._open_journal(name)

    def _open_journal(self, base):
        if self._journal is not None:
            self._journal.close()
        self._journal = journal.Journal(self._journal_path, {"kind": "base", "base": base})

    @property
    def _journal_path(self):
        return self.folder / f"journal.shard{self.index}of{self.count}"

    def _read_snapshot(self, path):
        matrices, facts = snapshots.load(path, self.store.new_matrix)
        specs = {name: MatrixSpec.from_json(text) for name, text in json.loads(facts["specs"]).items()}
        if {name: self._share(spec) for name, spec in specs.items()} != {name: m.spec for name, m in matrices.items()}:
            raise StorageError(f"{path}: it is of another shard; name the folder and the shards it was written with")
        self.store.matrices, self.specs = matrices, specs
        self._applied = json.loads(facts["applied"])
        self._waiting = {name: {} for name in specs}

    def _recover(self):
        """Go on from what the folder holds: the snapshot that its journal builds on, and the rounds after it."""
        if not self.journal_bytes:
            return
        if not self._journal_path.exists():
            self._open_journal("")
            return
        records = journal.read(self._journal_path)
        first = next(records, None)
        if first is None:
            raise StorageError(
                f"{self._journal_path}: no readable journal; move it away to start anew, or load a snapshot"
            )
        base = first[0]["base"]
        if base:
            path = self._snapshot_path(base)
            # Killed between the renaming of a snapshot and the journal that says so.
            if not path.exists() and base.endswith(".new"):
                path = self._snapshot_path(base.removesuffix(".new"))
            self._read_snapshot(path)
        for facts, arrays in records:
            if facts["kind"] == "create":
                self._add(facts["name"], MatrixSpec.from_json(facts["spec"]))
            else:
                self.matrix(facts["name"]).push(*arrays, facts["rate"], facts["version"])
                self._applied[facts["name"]].update(facts["requests"])
        if self.store.matrices:
            self._rebase("recovered")
        else:
            self._open_journal("")
