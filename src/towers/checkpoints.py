"""Checkpoints that are whole or not there: written aside, hashed, renamed, and verified before use.

A checkpoint is a folder ``step_00000020`` with ``arrays.h5`` (every variable by name), ``facts.json`` (step, options,
fingerprints, best metric) and ``manifest.json`` (size and sha256 of the other two).
"""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from .errors import StorageError

_TEMPORARY = ".writing-"


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint: its folder, the step it was taken after, and what else was noted."""

    path: Path
    step: int
    facts: dict

    def read(self, in_pieces: Collection[str] = ()) -> dict[str, "np.ndarray | StoredRows"]:
        """All arrays by name; those of ``in_pieces`` stay in the file until their rows are asked for."""
        return read_arrays(self.path / "arrays.h5", in_pieces)


@dataclass(frozen=True)
class StoredRows:
    """An array in an HDF5 file, of which ``stored[first:last]`` reads some rows."""

    path: Path
    name: str
    shape: tuple[int, ...]

    def __getitem__(self, rows: slice) -> np.ndarray:
        with h5py.File(self.path, "r") as file:
            return file[self.name][rows]


def save(folder: Path, step: int, arrays: dict[str, np.ndarray], facts: dict, *, keep: int = 2) -> Path:
    """Write the checkpoint of ``step`` into ``folder``, then remove all but the ``keep`` newest.

    Args:
      arrays: name -> array, or what has ``shape``, ``dtype``, ``nbytes`` and gives (first row, rows) in turn from
        ``chunks()``, so that it is never whole in memory; names may hold slashes.
      facts: JSON values.
      keep: number of checkpoints left, at least two, so that one bad sector never takes the only one.

    Raises:
      StorageError: not enough space, or a failed write; older checkpoints are as they were.
    """
    folder.mkdir(parents=True, exist_ok=True)
    remove_unfinished(folder)
    target = folder / f"step_{step:08d}"
    temporary = folder / f"{_TEMPORARY}{target.name}-{os.getpid()}"
    needed = int(sum(array.nbytes for array in arrays.values()) * 1.05) + 1_000_000
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise StorageError(
            f"{folder}: a checkpoint needs {needed / 1e6:.0f} MB and {free / 1e6:.0f} MB are free; "
            "older checkpoints are intact; free some space and run the same command again"
        )
    try:
        temporary.mkdir()
        write_arrays(temporary / "arrays.h5", arrays)
        _write_text(temporary / "facts.json", json.dumps({"step": step, **facts}, indent=1))
        _write_text(temporary / "manifest.json", json.dumps(_manifest(temporary), indent=1))
        _sync(temporary)
        if target.exists():
            target.rename(folder / f"{_TEMPORARY}replaced-{target.name}")
        temporary.rename(target)
        _sync(folder)
        remove_unfinished(folder)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        why = os.strerror(error.errno) if error.errno else str(error)
        raise StorageError(
            f"{target}: cannot write a checkpoint of {needed / 1e6:.0f} MB: {why}; older checkpoints are intact; "
            "make room and run the same command again"
        ) from error
    for old in sorted(folder.glob("step_*"))[: -max(keep, 2)]:
        shutil.rmtree(old)
    return target


def newest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that verifies, or None, and one line for each newer one that does not."""
    complaints = []
    for path in sorted(folder.glob("step_*"), reverse=True):
        problem = _problem(path)
        if problem is None:
            facts = json.loads((path / "facts.json").read_text())
            return Checkpoint(path, facts["step"], facts), complaints
        complaints.append(f"{path}: {problem}; trying the one before")
    return None, complaints


def remove_unfinished(folder: Path) -> None:
    """Remove what a process that was killed in the middle of a save has left."""
    for path in folder.glob(f"{_TEMPORARY}*"):
        shutil.rmtree(path)


def write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write arrays by name into an HDF5 file and force it to the disk; OSError where that fails."""
    try:
        with h5py.File(path, "w") as file:
            for name, array in arrays.items():
                if hasattr(array, "chunks"):
                    stored = file.create_dataset(name, array.shape, array.dtype)
                    for first, rows in array.chunks():
                        stored[first : first + len(rows)] = rows
                else:
                    file.create_dataset(name, data=array)
    except RuntimeError as error:
        # After a failed write HDF5 also fails to close the file, which h5py reports as a RuntimeError.
        first = error.__context__
        raise first if isinstance(first, OSError) else OSError(errno.EIO, str(error)) from error
    _sync(path)


def read_arrays(path: Path, in_pieces: Collection[str] = ()) -> dict[str, np.ndarray | StoredRows]:
    """Read the arrays of an HDF5 file; links to other files and data stored elsewhere are refused.

    Args:
      in_pieces: names of arrays that are only opened.

    Raises:
      StorageError: the file is not one that ``write_arrays`` made.
    """
    arrays = {}

    def visit(group: h5py.Group, prefix: str) -> None:
        for name in group:
            link = group.get(name, getlink=True)
            if not isinstance(link, h5py.HardLink):
                raise StorageError(f"{path}: {prefix}{name} is a link, which a weights file never holds; not read")
            item = group[name]
            if isinstance(item, h5py.Group):
                visit(item, f"{prefix}{name}/")
                continue
            if item.external is not None or item.is_virtual:
                raise StorageError(f"{path}: {prefix}{name} has its data in another file; not read")
            whole = prefix + name
            arrays[whole] = StoredRows(path, whole, item.shape) if whole in in_pieces else item[()]

    try:
        with h5py.File(path, "r") as file:
            visit(file, "")
    except OSError as error:
        raise StorageError(f"{path}: not a readable HDF5 file ({error}); take another copy") from error
    return arrays


def sha256(path: Path) -> str:
    """Hex digest of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _manifest(folder: Path) -> dict:
    return {
        path.name: {"bytes": path.stat().st_size, "sha256": sha256(path)}
        for path in sorted(folder.iterdir())
        if path.name != "manifest.json"
    }


def _problem(folder: Path) -> str | None:
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        if set(manifest) != {"arrays.h5", "facts.json"}:
            return "its manifest does not list its two files"
        for name, entry in manifest.items():
            if (folder / name).stat().st_size != entry["bytes"]:
                return f"{name} has {(folder / name).stat().st_size} bytes instead of {entry['bytes']}"
            if sha256(folder / name) != entry["sha256"]:
                return f"{name} does not have the recorded sha256"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"incomplete ({type(error).__name__}: {error})"
    return None


def _write_text(path: Path, text: str) -> None:
    path.write_text(text)
    _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
