"""What is written and found in the bytes by hand, against generated code."""

import numpy as np
import pytest
from google.protobuf.message import DecodeError

from towers.classcenters import wire
from towers.classcenters.protocol import class_centers_pb2 as messages

ROWS = np.array([0, 3, 1 << 40, 7])
VALUES = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)


def block(rows=ROWS, values=VALUES, **changes):
    fields = {"columns": values.shape[1], "dtype": messages.FLOAT32, "values": values.tobytes(), **changes}
    return messages.Block(rows=rows.tolist(), **fields)


def varint(number):
    return bytes([number & 0x7F | 0x80]) + varint(number >> 7) if number > 0x7F else bytes([number])


def unpacked(message):
    """The same block as a writer might put it that packs no numbers, has another order and knows a further field."""
    rest = messages.Block(columns=message.columns, dtype=message.dtype, values=message.values, version=message.version)
    rows = b"".join(b"\x09" + row.to_bytes(8, "little", signed=True) for row in message.rows)
    return varint(9 << 3) + b"\x05" + rest.SerializeToString() + rows


def in_two(message):
    """The rows in two packed fields, which generated code joins."""
    rows = np.array(message.rows, "<i8").tobytes()
    half = len(rows) // 16 * 8
    rest = messages.Block(columns=message.columns, dtype=message.dtype, values=message.values)
    packed = [b"\x0a" + varint(len(part)) + part for part in (rows[:half], rows[half:])]
    return packed[0] + rest.SerializeToString() + packed[1]


@pytest.mark.parametrize("count", [0, 1, 4])
@pytest.mark.parametrize("version", [0, 1, 1 << 50])
def test_blocks_are_those_of_generated_code(count, version):
    rows, values = ROWS[:count], VALUES[:count]
    written = list(wire.encoded_blocks(rows, iter([values]), version))
    assert written == [block(rows, values, version=version).SerializeToString()]


def test_parts_are_those_of_generated_code():
    """Blocks of the size that the protocol names, the last one smaller; rows and values need not be contiguous."""
    rows, values = np.arange(0, 1400, 2)[::-1], np.ones((1400, 512), np.float32)[::2]
    step = wire.block_rows(512)
    expected = [
        messages.PushPart(block=block(rows[start : start + step], values[start : start + step])).SerializeToString()
        for start in range(0, 700, step)
    ]
    assert list(wire.encoded_parts(rows, values)) == expected
    empty = messages.PushPart(block=block(ROWS[:0], VALUES[:0])).SerializeToString()
    assert list(wire.encoded_parts(ROWS[:0], VALUES[:0])) == [empty]


def test_pulls_are_read_by_generated_code_and_back():
    request = messages.PullRequest(matrix="w", version=0, generation=5)
    data = wire.encoded_pull(request, ROWS)
    whole = messages.PullRequest(matrix="w", rows=ROWS.tolist(), version=0, generation=5)
    assert messages.PullRequest.FromString(data) == whole
    for written in (data, whole.SerializeToString()):
        found, rows = wire.decoded_pull(written)
        assert found == request
        assert found.HasField("version")
        np.testing.assert_array_equal(rows, ROWS)
    assert not len(wire.decoded_pull(request.SerializeToString())[1])


@pytest.mark.parametrize("write", [messages.Block.SerializeToString, unpacked, in_two])
def test_a_block_is_read_however_it_is_written(write):
    rows, values = wire.decoded_block(write(block()), 5)
    np.testing.assert_array_equal(rows, ROWS)
    np.testing.assert_array_equal(values, VALUES)


def test_a_field_that_comes_twice_counts_as_in_generated_code():
    data = (
        block(values=np.zeros_like(VALUES)).SerializeToString()
        + messages.Block(values=VALUES.tobytes()).SerializeToString()
    )
    np.testing.assert_array_equal(wire.decoded_block(data, 5)[1], VALUES)


def test_many_unknown_fields_are_passed_over():
    data = varint(100 << 3) + b"\x01"
    rows, values = wire.decoded_block(data * 1000 + block().SerializeToString(), 5)
    np.testing.assert_array_equal(rows, ROWS)
    np.testing.assert_array_equal(values, VALUES)


def test_header_or_block_the_last_one_counts():
    header = messages.PushPart(header=messages.PushHeader(matrix="w", rows=3)).SerializeToString()
    part = messages.PushPart(block=block()).SerializeToString()
    assert wire.decoded_part(header)[0].matrix == "w"
    assert wire.decoded_part(b"") == (None, None)
    for data in (part, header + part):
        found, inner = wire.decoded_part(data)
        assert found is None
        np.testing.assert_array_equal(wire.decoded_block(inner, 5)[1], VALUES)
    assert wire.decoded_part(part + header)[0].rows == 3


@pytest.mark.parametrize(
    "data",
    [
        b"\x0a",
        b"\x0a\x05\x00",
        b"\xff" * 12,
        b"\x0b",
        b"\x0a\x03abc",
        b"\x22\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
        b"\x00\x01",
    ],
)
def test_what_generated_code_refuses_is_refused(data):
    with pytest.raises(DecodeError):
        messages.Block.FromString(data)
    with pytest.raises((DecodeError, ValueError)):
        wire.decoded_block(data, 5)


def test_random_bytes_are_read_as_by_generated_code():
    random = np.random.default_rng(0)
    valid = block().SerializeToString()
    read = 0
    for _ in range(3000):
        data = bytearray(valid)
        for place in random.integers(0, 60, random.integers(1, 4)):
            data[place] = random.integers(256)
        data = bytes(data[: random.integers(len(data) + 1)]) if random.random() < 0.3 else bytes(data)
        try:
            expected = messages.Block.FromString(data)
            assert len(expected.rows) * 20 == len(expected.values)
            assert (expected.columns, expected.dtype) == (5, 1)
        except (DecodeError, AssertionError):
            with pytest.raises((DecodeError, ValueError)):
                wire.decoded_block(data, 5)
            continue
        rows, values = wire.decoded_block(data, 5)
        assert rows.tolist() == list(expected.rows)
        assert values.tobytes() == expected.values
        read += 1
    assert read > 100
