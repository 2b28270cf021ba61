"""Snapshots of matrices in HDF5: written aside in pieces, forced to the disk, renamed; read back in pieces.

A file has a group for each matrix with ``weights`` [C, D], ``slot`` [C, D] where the rule has one, ``updated`` [C] (the
step each row was last brought up to date), ``skipped`` (maps of the last steps) and the attributes ``spec`` and
``version``: all that exact continuation needs.
"""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np

from ..errors import StorageError
from .matrix import Matrix
from .spec import MatrixSpec, checked_name

FORMAT = "towers class centres 1"
_BLOCK_BYTES = 1 << 24


def save(path: Path, matrices: dict[str, Matrix], facts: dict[str, str] | None = None) -> None:
    """Write ``matrices`` to ``path``, whole or not at all; a push waits until its matrix is written.

    Args:
      facts: texts kept beside them, such as what a server must remember.

    Raises:
      StorageError: the file could not be written; one of that name is as it was.
    """
    temporary = path.with_name(f".writing-{path.name}-{os.getpid()}")
    try:
        with contextlib.ExitStack() as locks:
            for matrix in matrices.values():
                locks.enter_context(matrix.lock)
            with h5py.File(temporary, "w") as file:
                file.attrs["format"] = FORMAT
                for key, text in (facts or {}).items():
                    file.attrs[key] = text
                for name, matrix in matrices.items():
                    _write(file.create_group(name), matrix)
        _sync(temporary)
        temporary.rename(path)
        _sync(path.parent)
    # After a failed write HDF5 also fails to close the file, which h5py reports as a RuntimeError.
    except (OSError, RuntimeError) as error:
        temporary.unlink(missing_ok=True)
        raise StorageError(
            f"{path}: the snapshot could not be written ({error}); free space there, or name another place"
        ) from error


def load(path: Path, make: Callable[[MatrixSpec], Matrix]) -> tuple[dict[str, Matrix], dict[str, str]]:
    """Read matrices and facts that ``save`` wrote.

    Args:
      make: function of a spec to the matrix to fill; called once the whole file has been checked.

    Raises:
      StorageError: the file is damaged, is no snapshot, or keeps data elsewhere.
    """
    try:
        with h5py.File(path, "r") as file:
            if file.attrs.get("format") != FORMAT:
                raise ValueError("it is no snapshot of class centres")
            specs = {name: _check(file, name) for name in file}
            matrices = {name: make(spec) for name, spec in specs.items()}
            for name, matrix in matrices.items():
                _read(file[name], matrix)
            facts = {key: str(value) for key, value in file.attrs.items() if key != "format"}
            return matrices, facts
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise StorageError(f"{path}: not a snapshot that can be read ({error}); take an older one") from error


def _write(group: h5py.Group, matrix: Matrix) -> None:
    group.attrs["spec"] = matrix.spec.to_json()
    group.attrs["version"] = matrix.version
    group.create_dataset("skipped", data=matrix.skipped.export())
    group.create_dataset("updated", data=matrix.updated)
    names = ["slot", "weights"] if matrix.spec.has_slot else ["weights"]
    for name in names:
        group.create_dataset(name, (matrix.spec.rows, matrix.spec.columns), np.float32)
    for block in _blocks(matrix.spec):
        values = matrix.kept(block.start, block.stop)
        for k, name in enumerate(names):
            group[name][block] = values[:, k]


def _read(group: h5py.Group, matrix: Matrix) -> None:
    with matrix.lock:
        matrix.skipped.restore(int(group.attrs["version"]), group["skipped"][()])
        matrix.updated[:] = group["updated"][()]
        names, values = ["slot", "weights"] if matrix.spec.has_slot else ["weights"], matrix.values
        for block in _blocks(matrix.spec):
            for k, name in enumerate(names):
                values[block, k] = group[name][block]


def _check(file: h5py.File, name: str) -> MatrixSpec:
    checked_name(name)
    if not isinstance(file.get(name, getlink=True), h5py.HardLink) or not isinstance(file[name], h5py.Group):
        raise ValueError(f"{name} is no matrix")
    group = file[name]
    spec = MatrixSpec.from_json(group.attrs["spec"])
    shape = (spec.rows, spec.columns)
    expected = {"weights": (shape, "f4"), "updated": (shape[:1], "i8"), "skipped": (None, "f8")}
    if spec.has_slot:
        expected["slot"] = (shape, "f4")
    if set(group) != set(expected):
        raise ValueError(f"{name} holds {sorted(group)}")
    for key, (wanted, dtype) in expected.items():
        data = group[key]
        if not isinstance(group.get(key, getlink=True), h5py.HardLink) or not isinstance(data, h5py.Dataset):
            raise ValueError(f"{name}/{key} is a link")
        if data.external is not None or data.is_virtual:
            raise ValueError(f"{name}/{key} has its data in another file")
        if data.dtype != np.dtype(dtype) or (wanted is not None and data.shape != wanted):
            raise ValueError(f"{name}/{key} is {data.dtype} {data.shape}")
    return spec


def _blocks(spec: MatrixSpec):
    rows = max(1, _BLOCK_BYTES // (4 * spec.columns))
    return (slice(start, min(start + rows, spec.rows)) for start in range(0, spec.rows, rows))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
