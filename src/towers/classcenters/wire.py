"""Rows as messages and back, with every field checked; a wrong one is a ValueError."""

from collections.abc import Iterator

import numpy as np

from .protocol import class_centers_pb2 as messages
from .spec import MatrixSpec

SERVICE = "towers.classcenters.v1.ClassCenters"
BLOCK_BYTES = 1 << 20
# A block with its row numbers, or a request for PULL_ROWS rows.
MAX_MESSAGE_BYTES = 4 << 20
PULL_ROWS = 1 << 18
CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
)
_FLOAT32 = np.dtype("<f4")


def spec_of(message: messages.Specification) -> MatrixSpec:
    """A checked specification of a whole matrix."""
    names = ("rows", "columns", "seed", "scale", "rule", "momentum", "weight_decay")
    return MatrixSpec(**{name: getattr(message, name) for name in names})


def specification_of(spec: MatrixSpec) -> messages.Specification:
    names = ("rows", "columns", "seed", "scale", "rule", "momentum", "weight_decay")
    return messages.Specification(**{name: getattr(spec, name) for name in names})


def block_rows(columns: int) -> int:
    """Rows in a block."""
    return max(1, BLOCK_BYTES // (4 * columns))


def blocks(rows: np.ndarray, values: np.ndarray, version: int = 0) -> Iterator[messages.Block]:
    """Rows [S] and values [S, D] in blocks; one empty block where S is 0."""
    step = block_rows(values.shape[1])
    for start in range(0, max(1, len(rows)), step):
        part = values[start : start + step].astype(_FLOAT32, copy=False)
        yield messages.Block(
            rows=rows[start : start + step].tolist(),
            columns=values.shape[1],
            dtype=messages.FLOAT32,
            values=part.tobytes(),
            version=version,
        )


def values_of(data: bytes, dtype: int, columns: int, expected_columns: int) -> np.ndarray:
    """A view [n, D] of the bytes of a block."""
    if dtype != messages.FLOAT32:
        raise ValueError(f"dtype is {dtype}; only FLOAT32 (1) is known")
    if columns != expected_columns:
        raise ValueError(f"rows have {columns} columns, the matrix has {expected_columns}")
    if len(data) % (4 * columns):
        raise ValueError(f"{len(data)} bytes are no whole rows of {columns} float32")
    return np.frombuffer(data, _FLOAT32).reshape(-1, columns)


def read_block(block: messages.Block, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """int64 [n] and a float32 view [n, D]."""
    values = values_of(block.values, block.dtype, block.columns, columns)
    if len(block.rows) != len(values):
        raise ValueError(f"a block has {len(block.rows)} row numbers and {len(values)} rows")
    return np.array(block.rows, np.int64), values
