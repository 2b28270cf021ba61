"""Rows as messages and back, with every field checked; a wrong one is a ValueError.

Rows are most of a message, and generated code would copy them twice on each side. So here their fields are written and
found in the bytes; all else is left to generated code. What other clients send or expect is the same.
"""

from collections.abc import Iterator

import numpy as np
from google.protobuf.message import Message

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
_FLOAT32, _INT64 = np.dtype("<f4"), np.dtype("<i8")
# More fields than any message here has; what has more is left to generated code, which passes over them faster.
_MOST_FIELDS = 16
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


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


def encoded_blocks(rows: np.ndarray, values: Iterator[np.ndarray], version: int = 0) -> Iterator[bytes]:
    """`Block` messages of int64 rows [S]; ``values`` gives float32 [n, D] for `block_rows` of them at a time."""
    start = 0
    for part in values:
        yield b"".join(_block(rows[start : start + len(part)], part, version))
        start += len(part)


def encoded_parts(rows: np.ndarray, values: np.ndarray) -> Iterator[bytes]:
    """`PushPart` messages, a block each, of int64 rows [S] and float32 values [S, D]; one empty where S is 0."""
    for piece in block_slices(len(rows), values.shape[1]):
        block = _block(rows[piece], values[piece], 0)
        yield b"".join([_head(messages.PushPart.BLOCK_FIELD_NUMBER, sum(map(len, block))), *block])


def encoded_pull(request: messages.PullRequest, rows: np.ndarray) -> bytes:
    """A `PullRequest` with int64 rows [S]."""
    return b"".join([request.SerializeToString(), *_field(messages.PullRequest.ROWS_FIELD_NUMBER, rows, _INT64)])


def decoded_pull(data: bytes) -> tuple[messages.PullRequest, np.ndarray]:
    """A request without its rows, and those, int64 [S]."""
    rest, found = _taken_out(messages.PullRequest, data, (messages.PullRequest.ROWS_FIELD_NUMBER,))
    return messages.PullRequest.FromString(rest), _int64(found[0])


def decoded_part(data: bytes) -> tuple[messages.PushHeader | None, memoryview | None]:
    """The header of a `PushPart`, or the bytes of its block; neither where it has none."""
    fields = _fields(data, (messages.PushPart.BLOCK_FIELD_NUMBER,))
    if fields is not None and fields[1][0] is not None and not fields[0]:
        return None, fields[1][0]
    part = messages.PushPart.FromString(data)
    if part.WhichOneof("part") == "block":
        return None, memoryview(part.block.SerializeToString())
    return part.header if part.WhichOneof("part") == "header" else None, None


def decoded_block(data: bytes | memoryview, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """int64 rows [n] and a float32 view [n, D] of the bytes of a `Block`; the view may not be aligned."""
    numbers = messages.Block.ROWS_FIELD_NUMBER, messages.Block.VALUES_FIELD_NUMBER
    rest, (rows, values) = _taken_out(messages.Block, data, numbers)
    block = messages.Block.FromString(rest)
    rows, values = _int64(rows), values_of(values, block.dtype, block.columns, columns)
    if len(rows) != len(values):
        raise ValueError(f"a block has {len(rows)} row numbers and {len(values)} rows")
    return rows, values


def serialized(message: Message | bytes) -> bytes:
    """What gRPC sends: messages that are bytes already stay as they are."""
    return message if isinstance(message, bytes) else message.SerializeToString()


def block_slices(count: int, columns: int) -> Iterator[slice]:
    """The rows of each block; one without rows where ``count`` is 0."""
    step = block_rows(columns)
    return (slice(start, min(start + step, count)) for start in range(0, max(1, count), step))


def values_of(data: bytes | memoryview, dtype: int, columns: int, expected_columns: int) -> np.ndarray:
    """A view [n, D] of the bytes of a block."""
    if dtype != messages.FLOAT32:
        raise ValueError(f"dtype is {dtype}; only FLOAT32 (1) is known")
    if columns != expected_columns:
        raise ValueError(f"rows have {columns} columns, the matrix has {expected_columns}")
    if len(data) % (4 * columns):
        raise ValueError(f"{len(data)} bytes are no whole rows of {columns} float32")
    return np.frombuffer(data, _FLOAT32).reshape(-1, columns)


def _block(rows: np.ndarray, values: np.ndarray, version: int) -> list[bytes | memoryview]:
    """The bytes of a `Block`, in pieces, as generated code writes them."""
    return [
        *_field(messages.Block.ROWS_FIELD_NUMBER, rows, _INT64),
        messages.Block(columns=values.shape[1], dtype=messages.FLOAT32).SerializeToString(),
        *_field(messages.Block.VALUES_FIELD_NUMBER, values, _FLOAT32),
        messages.Block(version=version).SerializeToString(),
    ]


def _field(number: int, array: np.ndarray, dtype: np.dtype) -> list[bytes | memoryview]:
    if not array.size:
        return []
    array = np.ascontiguousarray(array, dtype)
    return [_head(number, array.nbytes), array.data.cast("B")]


def _head(number: int, length: int) -> bytes:
    """What comes before ``length`` bytes of a field."""
    head = bytearray([number << 3 | _BYTES])
    while length > 0x7F:
        head.append(length & 0x7F | 0x80)
        length >>= 7
    head.append(length)
    return bytes(head)


def _int64(data: memoryview | bytes) -> np.ndarray:
    if len(data) % 8:
        raise ValueError(f"{len(data)} bytes are no whole row numbers")
    return np.frombuffer(data, _INT64).astype(np.int64)


def _taken_out(kind: type[Message], data: bytes | memoryview, numbers: tuple[int, ...]):
    """A message without the fields ``numbers``, and the bytes of these."""
    fields = _fields(data, numbers)
    if fields is None:
        # Valid, but not as one would write it, such as rows that are not packed; or not valid.
        message = kind.FromString(bytes(data))
        message.DiscardUnknownFields()
        fields = _fields(message.SerializeToString(), numbers)
    rest, found = fields
    return rest, [b"" if one is None else one for one in found]


def _fields(data: bytes | memoryview, numbers: tuple[int, ...]) -> tuple[bytes, list[memoryview | None]] | None:
    """As `_taken_out`, None for what is not there; None altogether where only generated code can tell."""
    view, at, rest = memoryview(data), 0, []
    found: list[memoryview | None] = [None] * len(numbers)
    for _ in range(_MOST_FIELDS):
        if at == len(view):
            return b"".join(rest), found
        start = at
        key, at = _varint(view, at)
        kind, number = key & 7, key >> 3
        length = {_VARINT: 0, _FIXED64: 8, _FIXED32: 4}.get(kind)
        if kind in (_VARINT, _BYTES):
            value, at = _varint(view, at)
            length = value if kind == _BYTES else 0
        if length is None or at + length > len(view):
            return None
        at += length
        if number not in numbers:
            rest.append(view[start:at])
        elif kind == _BYTES and found[numbers.index(number)] is None:
            found[numbers.index(number)] = view[at - length : at]
        else:
            return None
    return None


def _varint(view: memoryview, at: int) -> tuple[int, int]:
    """A number and the place after it; beyond the end of ``view`` where it is cut or too long."""
    value = 0
    for place, byte in enumerate(view[at : at + 10]):
        value |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return value, at + place + 1
    return 0, len(view) + 1
