"""Files of features: HDF5, or .npy with the paths in a .tsv beside it.

`NAME.npy` holds features [N, D], `NAME.tsv` a line `path<TAB>label` for each row, after a header. `NAME.h5` holds the
three data sets `features`, `paths` and `labels`.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from ..errors import BadData, StorageError, UserError


@dataclass(frozen=True, eq=False)
class Features:
    """Features [N, D], the path of each picture, and its class int64 [N]. `.npy` features are mapped, not read."""

    features: np.ndarray
    paths: list[str]
    labels: np.ndarray


def write_features(path: str | Path, features: np.ndarray, paths: list[str], labels: np.ndarray) -> None:
    """Write a file of features, whole or not at all; `.npy` or `.h5`, `.hdf5`.

    Raises:
      UserError: another suffix, or a path that a line of text cannot hold.
      StorageError: the file cannot be written.
    """
    path = Path(path)
    partial = path.with_name(f"{path.name}.partial")
    encoded = [name.encode("utf-8", "surrogateescape") for name in paths]
    check_suffix(path)
    try:
        if path.suffix == ".npy":
            broken = next((name for name in paths if "\n" in name or "\t" in name or "\r" in name), None)
            if broken is not None:
                raise UserError(f"{broken!r}: a line of text cannot hold this path; write an .h5 file")
            lines = [b"path\tlabel\n"]
            lines += [name + b"\t%d\n" % label for name, label in zip(encoded, labels.tolist(), strict=True)]
            with partial.open("wb") as file:
                np.save(file, features)
            path.with_suffix(".tsv").write_bytes(b"".join(lines))
        else:
            with h5py.File(partial, "w") as file:
                file.create_dataset("features", data=features)
                file.create_dataset("paths", data=encoded, dtype=h5py.string_dtype())
                file.create_dataset("labels", data=np.asarray(labels, np.int64))
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise StorageError(f"{path}: the features cannot be written ({error}); choose another place") from error


def check_suffix(path: str | Path) -> None:
    """Raises UserError where the name tells no format."""
    if Path(path).suffix not in (".npy", ".h5", ".hdf5"):
        raise UserError(f"{path}: give a name that ends with .npy, .h5 or .hdf5")


def read_features(path: str | Path) -> Features:
    """Read what ``write_features`` wrote.

    Raises:
      UserError: no such file. BadData: it is something else, or its parts do not fit.
    """
    path = Path(path)
    check_suffix(path)
    try:
        if path.suffix == ".npy":
            features = np.load(path, mmap_mode="r", allow_pickle=False)
            rows = path.with_suffix(".tsv").read_bytes().splitlines()[1:]
            columns = [row.rsplit(b"\t", 1) for row in rows]
            paths = [column[0].decode("utf-8", "surrogateescape") for column in columns]
            labels = np.array([int(column[1]) for column in columns], np.int64)
        else:
            with h5py.File(path) as file:
                features = file["features"][:]
                paths = [name.decode("utf-8", "surrogateescape") for name in file["paths"][:]]
                labels = file["labels"][:]
    except FileNotFoundError as error:
        raise UserError(f"{error.filename or path}: no such file; scripts/extract_features.py makes it") from error
    except (OSError, ValueError, KeyError, IndexError, AttributeError, TypeError) as error:
        raise BadData(f"{path}: is no file of features ({error}); extract them again") from error
    if features.ndim != 2 or features.dtype.kind != "f" or not len(features) == len(paths) == len(labels):
        raise BadData(
            f"{path}: features {features.shape} {features.dtype}, {len(paths)} paths and {len(labels)} labels do not "
            "fit; extract them again"
        )
    return Features(features, paths, labels)
