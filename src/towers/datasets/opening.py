"""Which kind of data set a path is, in one place: a folder of class folders, InsightFace's `.rec`, or a list."""

import os

from ..errors import BadData
from .folder import read_folder
from .lists import MXNET_SUFFIX, read_list
from .record_headers import Faults
from .recordio import MAGIC_BYTES
from .records import REC_NAME, read_records

KINDS = (
    f"a folder ROOT/Class/picture.jpg, a folder with {REC_NAME}, a .rec file, a list of 'path label' lines, or a "
    f"{MXNET_SUFFIX} list of MXNet"
)


def open_source(path: str | os.PathLike, *, faults: Faults | None = None):
    """Open a data set of any kind as a source of records.

    A folder that holds `train.rec` is InsightFace's, any other one holds class folders. A file that begins as a `.rec`
    does, or is named so, is one; any other file is a list.

    Args:
      faults: see `read_records`.

    Raises BadData: nothing there, or what its kind's reader raises.
    """
    if os.path.isdir(path):
        return read_records(path, faults=faults) if is_records(path) else read_folder(path)
    if not os.path.exists(path):
        raise BadData(f"{path}: no such folder or file; give {KINDS}")
    return read_records(path, faults=faults) if is_records(path) else read_list(path)


def is_records(path: str | os.PathLike) -> bool:
    """Whether `path` is a `.rec`, or a folder with `train.rec`."""
    if os.path.isdir(path):
        return os.path.isfile(os.path.join(path, REC_NAME))
    if os.fspath(path).endswith(".rec"):
        return True
    try:
        with open(path, "rb") as file:
            return file.read(len(MAGIC_BYTES)) == MAGIC_BYTES
    except OSError as error:
        raise BadData(f"{path}: cannot be read ({error.strerror}); check its rights") from error
