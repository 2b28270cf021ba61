"""Stores of class centres: matrices by name, in memory or in mapped files; `remote.py` has the same interface."""

import errno
import mmap
import os
import shutil
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ..errors import StorageError
from ..host_memory import host_memory_bytes
from . import snapshots
from .matrix import Matrix
from .spec import MatrixSpec, StepMismatch, checked_name, merged


def memory_store(*, eager: bool = False) -> "Store":
    """A store in this process's memory."""
    return Store(np.zeros, eager=eager)


def mapped_store(folder: Path, *, eager: bool = False, waiting_bytes: int | None = None) -> "Store":
    """A store in mapped files of ``folder``, for more classes than fit into RAM, which has 12 bytes of each one.

    The files have no name, so a process that is killed leaves nothing behind; what shall last goes into snapshots.

    Args:
      waiting_bytes: memory of each matrix for changed rows that wait to be written, see `Matrix`. None: a tenth of the
        machine's, as much as Linux lets wait before it begins to save.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if waiting_bytes is None:
        waiting_bytes = default_waiting_bytes()

    def allocate(shape, dtype):
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        with tempfile.TemporaryFile(dir=folder) as file:
            try:
                # A mapped file that finds the disk full would end the process with a signal.
                os.posix_fallocate(file.fileno(), 0, size)
            except OSError as error:
                free = shutil.disk_usage(folder).free
                if error.errno not in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
                    raise
                raise StorageError(
                    f"{folder}: a matrix of {shape} needs {size / 1e9:.1f} GB and {free / 1e9:.1f} GB are free; "
                    "free some space or name another folder"
                ) from error
            mapped = mmap.mmap(file.fileno(), size)
        # Rows come from anywhere. Read ahead, pages are kept in runs, of which Linux saves the whole where one page
        # has changed.
        mapped.madvise(mmap.MADV_RANDOM)
        return np.frombuffer(mapped, dtype).reshape(shape)

    return Store(allocate, eager=eager, waiting_bytes=waiting_bytes)


def default_waiting_bytes() -> int:
    return host_memory_bytes() // 10


class Store:
    """Matrices by name. All methods may be called from several threads.

    Args:
      allocate: function of (shape, dtype) to a zero array.
      eager: see `Matrix`: what is read and assigned goes on with the same bits.
      waiting_bytes: see `Matrix`: memory for rows that a thread writes to their places later.
    """

    def __init__(self, allocate: Callable = np.zeros, *, eager: bool = False, waiting_bytes: int = 0):
        self.matrices: dict[str, Matrix] = {}
        self.allocate, self.eager, self.waiting_bytes = allocate, eager, waiting_bytes
        self._lock = threading.Lock()

    def create(self, name: str, spec: MatrixSpec) -> None:
        """Make a matrix; one that is there with the same spec stays as it is.

        Raises:
          ValueError: it is there with another spec.
        """
        checked_name(name)
        with self._lock:
            present = self.matrices.get(name)
            if present is None:
                self.matrices[name] = self.new_matrix(spec)
            elif present.spec != spec:
                raise ValueError(f"matrix {name} is there already, as {present.spec}, not {spec}")

    def matrix(self, name: str) -> Matrix:
        """Raises KeyError, with the names there are."""
        try:
            return self.matrices[name]
        except KeyError:
            raise KeyError(f"no matrix {name[:80]!r}; there are {sorted(self.matrices)}") from None

    def spec(self, name: str) -> MatrixSpec:
        return self.matrix(name).spec

    def version(self, name: str) -> int:
        """Number of steps made."""
        return self.matrix(name).version

    def pull(self, name: str, rows: np.ndarray, version: int | None = None) -> np.ndarray:
        """float32 [S, D], present values of int64 ``rows`` [S].

        Args:
          version: the step that the caller takes the rows for. None: whatever step the matrix is at. A remote store
            waits for it; here every push is applied at once, so another version is a mistake.
        """
        matrix = self.matrix(name)
        if version is not None and version != matrix.version:
            raise StepMismatch(f"matrix {name} is at step {matrix.version}, not {version}", matrix.version)
        return matrix.pull(rows)

    def push(
        self, name: str, rows: np.ndarray, gradients: np.ndarray, learning_rate: float, version: int | None = None
    ) -> int:
        """One step with gradients [S, D] of int64 ``rows`` [S] in any order, equal rows summed; the new version.

        Raises:
          ValueError, StepMismatch: as `Matrix.push`; nothing has changed then.
        """
        rows, gradients = merged(np.asarray(rows), np.asarray(gradients))
        return self.matrix(name).push(rows, gradients, learning_rate, version)

    def state(self, name: str, start: int, stop: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Present weights and slot of the rows in [start, stop)."""
        return self.matrix(name).state(start, stop)

    def assign(self, name: str, start: int, weights: np.ndarray, slot: np.ndarray | None = None) -> None:
        """Overwrite rows from ``start`` on; without a slot, theirs begins anew."""
        self.matrix(name).assign(start, weights, slot)

    def set_version(self, name: str, version: int) -> None:
        """Count steps from ``version`` on; every row keeps its present value."""
        self.matrix(name).set_version(version)

    def save(self, path: Path) -> None:
        """Write a snapshot, whole or not at all."""
        snapshots.save(Path(path), self.matrices)

    def load(self, path: Path) -> None:
        """Take over a snapshot: the matrices become those of the file; on an error they stay as they were."""
        self.matrices = snapshots.load(Path(path), self.new_matrix)[0]

    def new_matrix(self, spec: MatrixSpec) -> Matrix:
        """One that is not among the store's yet."""
        return Matrix(spec, self.allocate, eager=self.eager, waiting_bytes=self.waiting_bytes)
