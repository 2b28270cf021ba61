"""Pickles of plain data, read without Python's unpickler: nothing that a file says is ever imported or called.

Lists, tuples, None, booleans, whole numbers, byte strings, texts, and NumPy arrays of bytes or booleans, of protocols 0
to 5, from Python 2 and 3. The few functions that NumPy's own pickles name are stood for by ours; any other name is
refused. Memory is bounded by the size of the file and MAX_OPERATIONS; nothing here recurses, so depth costs nothing.
"""

import codecs
import math
import struct

from ..errors import BadData

MAX_OPERATIONS = 20_000_000
MAX_LINE = 1 << 26
_UNSIGNED = {1: struct.Struct("<B"), 2: struct.Struct("<H"), 4: struct.Struct("<I"), 8: struct.Struct("<Q")}
_MARK = object()
MAX_DIMENSIONS = 8
_MODULES = ("numpy.core.multiarray", "numpy._core.multiarray", "numpy.core.numeric", "numpy._core.numeric")


class ByteArray:
    """A NumPy array in a pickle: `kind` "u1" or "b1", `shape` a tuple, `data` bytes."""

    def __init__(self):
        self.kind, self.shape, self.data = "u1", (0,), b""

    def fill(self, kind: str, shape: object, data: object) -> None:
        """Take what a pickle says, where it fits together. ValueError otherwise."""
        if not isinstance(shape, tuple) or len(shape) > MAX_DIMENSIONS:
            raise ValueError("an array without a shape")
        if not all(type(side) is int and side >= 0 for side in shape) or not isinstance(data, bytes):
            raise ValueError("an array without a shape or without bytes")
        if math.prod(shape) != len(data):
            raise ValueError(f"claims an array of {math.prod(shape)} bytes where {len(data)} are given")
        self.kind, self.shape, self.data = kind, shape, data


class _Type:
    """A NumPy dtype in a pickle."""

    def __init__(self, kind: str):
        self.kind = kind


class _Name:
    """A global that a pickle names; calling it is `_Machine.call`."""

    def __init__(self, module: str, name: str):
        self.module, self.name = module, name


def load(data: bytes, path: str) -> object:
    """The object that a pickle describes: lists, tuples, None, bool, int, bytes, str, and `ByteArray`.

    A Python 2 string is bytes. Raises BadData, with the place in the file, where it is cut, claims more than it holds,
    or wants anything else.
    """
    machine = _Machine(data)
    try:
        return machine.run()
    except (ValueError, IndexError, TypeError, AttributeError, KeyError, OverflowError) as error:
        reason = str(error) if type(error) is ValueError else "damaged"
        raise BadData(
            f"{path}, byte {machine.operation}: not a pickle of plain data ({reason}); get the file again, or make it "
            "with scripts/make_bin.py"
        ) from error


class _Machine:
    """The stack machine of the pickle format (the comments of CPython's `pickletools.py` describe each operation)."""

    def __init__(self, data: bytes):
        self.data = data
        self.place = self.operation = 0
        self.stack: list = []
        self.memo: dict[int, object] = {}
        # What may be encoded again, once for each time it is named: protocol 2 keeps Python 3's bytes as text.
        self.budget = 2 * len(data) + 4096

    def run(self) -> object:
        for _ in range(MAX_OPERATIONS):
            self.operation = self.place
            code = self.take(1)
            if code == b".":
                if len(self.stack) != 1:
                    raise ValueError("it ends in the middle")
                return self.stack[0]
            method = _OPERATIONS.get(code)
            if method is None:
                raise ValueError(f"operation {code!r} is not allowed")
            method(self)
        raise ValueError(f"more than {MAX_OPERATIONS} operations")

    def take(self, size: int) -> bytes:
        if size > len(self.data) - self.place:
            raise ValueError(f"claims {size} bytes where {len(self.data) - self.place} are left")
        self.place += size
        return self.data[self.place - size : self.place]

    def number(self, size: int) -> int:
        return _UNSIGNED[size].unpack(self.take(size))[0]

    def line(self) -> bytes:
        end = self.data.find(b"\n", self.place, self.place + MAX_LINE)
        if end < 0:
            raise ValueError("cut in a line")
        line = self.data[self.place : end]
        self.place = end + 1
        return line

    def push_bytes(self, size: int) -> None:
        self.push(self.take(size))

    def push_text(self, size: int) -> None:
        self.push(self.take(size).decode("utf-8", "surrogatepass"))

    def push(self, value: object) -> None:
        self.stack.append(value)

    def pop(self) -> object:
        value = self.stack.pop()
        if value is _MARK:
            raise ValueError("damaged")
        return value

    def pop_to_mark(self) -> list:
        place = len(self.stack) - 1
        while self.stack[place] is not _MARK:
            place -= 1
            if place < 0:
                raise ValueError("damaged")
        values = self.stack[place + 1 :]
        del self.stack[place:]
        return values

    def append(self, values: list) -> None:
        if not isinstance(self.stack[-1], list):
            raise ValueError("appends to what is no list")
        self.stack[-1].extend(values)

    def tuple_of(self, count: int) -> None:
        self.push(tuple(reversed([self.pop() for _ in range(count)])))

    def remember(self, key: int) -> None:
        self.memo[key] = self.stack[-1]

    def int_line(self) -> None:
        line = self.line()
        self.push({b"00": False, b"01": True}[line] if line in (b"00", b"01") else _whole(line))

    def long_line(self) -> None:
        self.push(_whole(self.line().removesuffix(b"L")))

    def quoted(self) -> None:
        """Python 2's protocol 0: a string as its source text. Escapes are undone; nothing is evaluated."""
        line = self.line().strip()
        if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in (b"'", b'"'):
            raise ValueError("a string without quotes")
        self.push(codecs.escape_decode(line[1:-1])[0])

    def short_long(self) -> None:
        size = self.number(1)
        if size > 9:
            raise ValueError(f"a number of {size} bytes")
        self.push(int.from_bytes(self.take(size), "little", signed=True))

    def name(self, module: str, name: str) -> None:
        if (module, name) not in _CALLS:
            raise ValueError(f"wants to call {module[:60]}.{name[:60]}")
        self.push(_Name(module, name))

    def global_lines(self) -> None:
        module, name = self.line(), self.line()
        self.name(module.decode("ascii", "replace"), name.decode("ascii", "replace"))

    def global_stack(self) -> None:
        name, module = self.pop(), self.pop()
        if not (isinstance(name, str) and isinstance(module, str)):
            raise ValueError("a name that is no text")
        self.name(module, name)

    def reduce(self) -> None:
        arguments, function = self.pop(), self.pop()
        if not isinstance(function, _Name) or not isinstance(arguments, tuple):
            raise ValueError("calls what is no function")
        self.push(_CALLS[function.module, function.name](self, *arguments))

    def build(self) -> None:
        state, target = self.pop(), self.stack[-1]
        if (
            isinstance(target, ByteArray)
            and isinstance(state, tuple)
            and len(state) == 5
            and isinstance(state[2], _Type)
        ):
            target.fill(state[2].kind, state[1], self.plain(state[4]))
        elif not (isinstance(target, _Type) and isinstance(state, tuple)):
            raise ValueError("sets the state of what has none")

    def plain(self, data: object) -> bytes:
        """Bytes of an array; Python 2 and protocol 0 to 2 give them as text too."""
        if isinstance(data, str):
            self.budget -= len(data)
            if self.budget < 0:
                raise ValueError("unpacks to far more than the file holds")
            return data.encode("latin1")
        return data

    def encode(self, text: str, encoding: str = "latin1") -> bytes:
        if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
            raise ValueError("an encoding other than latin1")
        return self.plain(text)

    def dtype(self, name: object, *_) -> _Type:
        name = name.decode("ascii", "replace") if isinstance(name, bytes) else name
        if name not in ("u1", "b1", "|u1", "|b1", "?"):
            raise ValueError(f"an array of {str(name)[:20]}, not of bytes or booleans")
        return _Type("u1" if "u1" in name else "b1")

    def reconstruct(self, kind: object, shape: object, code: object) -> ByteArray:
        if not isinstance(kind, _Name) or kind.name != "ndarray" or shape != (0,):
            raise ValueError("an array that is not empty before it is filled")
        return ByteArray()

    def frombuffer(self, data: object, dtype: object, shape: object, order: object) -> ByteArray:
        array = ByteArray()
        array.fill(dtype.kind, shape, self.plain(data))
        return array

    def scalar(self, dtype: object, data: object) -> int | bool:
        (value,) = self.plain(data)
        return bool(value) if dtype.kind == "b1" else value

    def not_called(self, *_) -> None:
        raise ValueError("calls what is only named in arrays")

    def empty_bytes(self) -> bytes:
        return b""


def _whole(line: bytes) -> int:
    if len(line) > 20:
        raise ValueError("a number of more than 20 digits")
    return int(line)


_CALLS = {("_codecs", "encode"): _Machine.encode, ("numpy", "ndarray"): _Machine.not_called}
_CALLS |= {(module, "bytes"): _Machine.empty_bytes for module in ("__builtin__", "builtins")}
_CALLS |= {(module, "_reconstruct"): _Machine.reconstruct for module in _MODULES}
_CALLS |= {(module, "scalar"): _Machine.scalar for module in _MODULES}
_CALLS |= {(module, "_frombuffer"): _Machine.frombuffer for module in _MODULES}
_CALLS["numpy", "dtype"] = _Machine.dtype

_OPERATIONS = {
    b"\x80": lambda machine: machine.take(1),
    b"\x95": lambda machine: machine.take(8),
    b"(": lambda machine: machine.push(_MARK),
    b"0": lambda machine: machine.stack.pop(),
    b"1": lambda machine: machine.pop_to_mark(),
    b"2": lambda machine: machine.push(machine.stack[-1]),
    b"]": lambda machine: machine.push([]),
    b"l": lambda machine: machine.push(machine.pop_to_mark()),
    b"a": lambda machine: machine.append([machine.pop()]),
    b"e": lambda machine: machine.append(machine.pop_to_mark()),
    b")": lambda machine: machine.push(()),
    b"t": lambda machine: machine.push(tuple(machine.pop_to_mark())),
    b"\x85": lambda machine: machine.tuple_of(1),
    b"\x86": lambda machine: machine.tuple_of(2),
    b"\x87": lambda machine: machine.tuple_of(3),
    b"N": lambda machine: machine.push(None),
    b"\x88": lambda machine: machine.push(True),
    b"\x89": lambda machine: machine.push(False),
    b"I": _Machine.int_line,
    b"L": _Machine.long_line,
    b"J": lambda machine: machine.push(int.from_bytes(machine.take(4), "little", signed=True)),
    b"K": lambda machine: machine.push(machine.number(1)),
    b"M": lambda machine: machine.push(machine.number(2)),
    b"\x8a": _Machine.short_long,
    b"S": _Machine.quoted,
    b"T": lambda machine: machine.push_bytes(machine.number(4)),
    b"U": lambda machine: machine.push_bytes(machine.number(1)),
    b"B": lambda machine: machine.push_bytes(machine.number(4)),
    b"C": lambda machine: machine.push_bytes(machine.number(1)),
    b"\x8e": lambda machine: machine.push_bytes(machine.number(8)),
    b"\x96": lambda machine: machine.push_bytes(machine.number(8)),
    b"V": lambda machine: machine.push(machine.line().decode("raw-unicode-escape")),
    b"X": lambda machine: machine.push_text(machine.number(4)),
    b"\x8c": lambda machine: machine.push_text(machine.number(1)),
    b"\x8d": lambda machine: machine.push_text(machine.number(8)),
    b"g": lambda machine: machine.push(machine.memo[_whole(machine.line())]),
    b"h": lambda machine: machine.push(machine.memo[machine.number(1)]),
    b"j": lambda machine: machine.push(machine.memo[machine.number(4)]),
    b"p": lambda machine: machine.remember(_whole(machine.line())),
    b"q": lambda machine: machine.remember(machine.number(1)),
    b"r": lambda machine: machine.remember(machine.number(4)),
    b"\x94": lambda machine: machine.remember(len(machine.memo)),
    b"c": _Machine.global_lines,
    b"\x93": _Machine.global_stack,
    b"R": _Machine.reduce,
    b"b": _Machine.build,
}
