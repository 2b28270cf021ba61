import contextlib
import os
import pickle
import resource
import struct
import subprocess
import sys

import hypothesis.strategies as st
import numpy as np
import pytest
from conftest import ROOT
from hypothesis import given, settings

from towers.datasets import closed_pickle, packs
from towers.datasets.packs import read_pack, write_pack
from towers.errors import BadData, UserError

PICTURES = [b"\xff\xd8\xff" + bytes(range(200, 256)) + bytes([number]) for number in range(8)]
SAME = [True, False, False, True]


def write(path, data):
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("shape", [None, (-1,), (-1, 1)])
@pytest.mark.parametrize(
    "answers", [SAME, tuple(SAME), list(np.array(SAME)), np.array(SAME), [int(answer) for answer in SAME]]
)
def test_every_protocol_bytes_and_arrays(tmp_path, protocol, shape, answers):
    items = PICTURES if shape is None else [np.frombuffer(item, np.uint8).reshape(shape).copy() for item in PICTURES]
    pack = read_pack(write(tmp_path / "lfw.bin", pickle.dumps((items, answers), protocol)))
    assert pack.pictures == PICTURES
    assert pack.same.tolist() == SAME
    assert pack.same.dtype == bool
    assert pack.pairs.tolist() == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert pack.reader([7, 0])() == [PICTURES[7], PICTURES[0]]
    assert pack.where(5) == f"{tmp_path}/lfw.bin, picture 5 (pair 2)"


def text_string(data):
    """Python 2's protocol 0: repr of a str."""
    return b"S'" + b"".join(b"\\x%02x" % byte for byte in data[:-1]) + b"\\n\\\\\\'" + data[-1:] + b"'\n"


@pytest.mark.parametrize(
    ("data", "pictures"),
    [
        # protocol 2 of cPickle: strings as SHORT_BINSTRING and BINSTRING, memo of one and four bytes
        (
            b"\x80\x02]q\x01(U\x03\xff\xd8\xe9q\x02T\x04\x01\0\0"
            + b"\x89" * 260
            + b"r\0\x01\0\0e]q\x03\x88a\x86q\x04.",
            [b"\xff\xd8\xe9", b"\x89" * 260],
        ),
        # the same string twice is named from the memo
        (b"\x80\x02]q\x01(U\x03\xff\xd8\xe9q\x02h\x02e]q\x03\x88a\x86.", [b"\xff\xd8\xe9"] * 2),
        # protocol 1: booleans are INT lines, a tuple from a mark
        (b"(]q\x01(U\x02\xff\xd8q\x02U\x01\xe9q\x03e]q\x04I01\nat.", [b"\xff\xd8", b"\xe9"]),
        # protocol 0 of pickle.py
        (
            b"((lp1\n" + text_string(b"\xff\xd8A") + b"p2\na" + text_string(b"\xe9B") + b"p3\na(lp4\nI01\natp5\n.",
            [b"\xff\xd8\n\\'A", b"\xe9\n\\'B"],
        ),
        # NumPy arrays of Python 2, protocol 2: raw data is a string
        (
            b"\x80\x02]q\x01("
            + b"".join(
                b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85U\x01b\x87R(K\x01K\x02K\x01\x86"
                b"cnumpy\ndtype\nU\x02u1K\0K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb\x89U\x02"
                + raw
                + b"tb"
                for raw in (b"\xff\xd8", b"\xe9\x01")
            )
            + b"e]\x88a\x86.",
            [b"\xff\xd8", b"\xe9\x01"],
        ),
    ],
    ids=["protocol 2", "memo", "protocol 1", "protocol 0", "arrays"],
)
def test_python_2_byte_by_byte(tmp_path, data, pictures):
    pack = read_pack(write(tmp_path / "lfw.bin", data))
    assert pack.pictures == pictures
    assert pack.same.tolist() == [True]
    # Python's own unpickler agrees on what these bytes say.
    theirs, _ = pickle.loads(data, encoding="bytes")
    assert [bytes(item) for item in theirs] == pictures


class Calls:
    """Pickles to the call of a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    "call",
    [
        lambda marker: Calls(os.system, f"touch {marker}"),
        lambda marker: Calls(eval, f"open({str(marker)!r}, 'w')"),
        lambda marker: Calls(exec, f"open({str(marker)!r}, 'w')"),
        lambda marker: Calls(getattr, os, "system"),
        lambda marker: Calls(open, str(marker), "w"),
        lambda marker: Calls(subprocess.check_call, ["touch", str(marker)]),
        lambda marker: Calls(np.save, str(marker), np.zeros(3)),
    ],
    ids=["system", "eval", "exec", "getattr", "open", "subprocess", "numpy"],
)
def test_a_pickle_that_calls_never_runs(tmp_path, protocol, call):
    marker = tmp_path / "marker"
    try:
        data = pickle.dumps(([call(marker), b"b"], [True]), protocol)
    except TypeError:
        pytest.skip("cannot be pickled so")
    with pytest.raises(BadData, match=r"byte \d+: not a pickle of plain data \(wants to call ") as error:
        read_pack(write(tmp_path / "lfw.bin", data))
    assert error.value.exit_code == 65
    assert not marker.exists()


@pytest.mark.parametrize(
    "data",
    [
        b"cos\nsystem\n(S'touch marker'\ntR.",
        b"(S'touch marker'\nios\nsystem\n.",
        b"(cos\nsystem\nS'touch marker'\no.",
        b"\x80\x02cos\nsystem\n)\x81.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93.",
        b"\x80\x02\x82\x01.",
        b"Pfile\n.",
        b"cnumpy\nndarray\n(K\x10tR.",
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(M\xff\xfftS'b'\ntR.",
        b"cnumpy\ndtype\n(S'O8'\ntR.",
        b"}.",
        b"]cos\nsystem\nb.",
        b"c__builtin__\nbytes\n(K\x05tR.",
        b"c_codecs\nencode\n(V\x41\nVutf-7\ntR.",
    ],
)
def test_other_ways_to_make_objects_are_refused(tmp_path, data, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadData):
        read_pack(write(tmp_path / "lfw.bin", data))
    assert not (tmp_path / "marker").exists()


HUGE = struct.pack("<Q", 64 * 2**30)
BOMBS = {
    "64 GiB of bytes": (b"\x80\x04\x8e" + HUGE + b".", "claims 68719476736 bytes where 1 are left"),
    "64 GiB of bytearray": (b"\x80\x05\x96" + HUGE + b".", "claims 68719476736 bytes"),
    "64 GiB of text": (b"\x80\x04\x8d" + HUGE + b".", "claims 68719476736 bytes"),
    "4 GiB of string": (b"\x80\x02T\xff\xff\xff\xff.", "claims 4294967295 bytes"),
    "64 GiB array": (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\0tS'b'\ntR(I1\n(L68719476736L\nt"
        b"cnumpy\ndtype\n(S'u1'\ntR\x89S''\ntb.",
        "claims an array of 68719476736 bytes where 0 are given",
    ),
    "sides of many digits": (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\0tS'b'\ntR(I1\n("
        + b"\x8a\x09\xff\xff\xff\xff\xff\xff\xff\xff\x7f" * 100_000
        + b"tcnumpy\ndtype\n(S'u1'\ntR\x89S''\ntb.",
        "an array without a shape",
    ),
    "a number of a million digits": (b"I" + b"9" * 1_000_000 + b"\n.", "more than 20 digits"),
    "lists in lists": (b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".", "not a verification pack"),
    "tuples in tuples": (b"\x80\x02)" + b"\x85" * 100_000 + b".", "not a verification pack"),
    "marks in marks": (b"(" * 100_000 + b"t" * 100_000 + b".", "not a verification pack"),
    "a list that holds itself": (b"\x80\x02]q\0h\0a.", "not a verification pack"),
    "the same text encoded again and again": (
        b"\x80\x02X" + struct.pack("<I", 50_000) + b"a" * 50_000 + b"q\0"
        b"](" + b"c_codecs\nencode\nh\0\x85R" * 1000 + b"e.",
        "unpacks to far more than the file holds",
    ),
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_in_little_memory(tmp_path, name):
    data, message = BOMBS[name]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(BadData, match=message):
        read_pack(write(tmp_path / "lfw.bin", data))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000


def test_limits_of_size_and_operations(tmp_path, monkeypatch):
    path = write(tmp_path / "lfw.bin", pickle.dumps((PICTURES, SAME)))
    monkeypatch.setattr(closed_pickle, "MAX_OPERATIONS", 10)
    with pytest.raises(BadData, match="more than 10 operations"):
        read_pack(path)
    monkeypatch.setattr(packs, "MAX_PACK_BYTES", 100)
    with pytest.raises(BadData, match="a pack has 100 at most"):
        read_pack(path)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ((PICTURES[:7], SAME), "7 pictures and 4 answers"),
        ((PICTURES[:6], SAME), "6 pictures and 4 answers"),
        (([], []), "0 pictures and 0 answers"),
        ((PICTURES, [*SAME[:3], 2]), "not a list of true and false"),
        ((PICTURES, None), "not a list of true and false"),
        (([*PICTURES[:7], "text"], SAME), "picture 7 is neither bytes"),
        (([*PICTURES[:7], np.zeros(3, bool)], SAME), "picture 7 is neither bytes"),
        ((PICTURES, SAME, 3), "not a verification pack"),
        (PICTURES, "not a verification pack"),
        (7, "not a verification pack"),
    ],
)
def test_what_is_no_pack(tmp_path, value, message):
    with pytest.raises(BadData, match=f"lfw.bin: .*{message}"):
        read_pack(write(tmp_path / "lfw.bin", pickle.dumps(value)))


def test_a_missing_and_a_foreign_file(tmp_path):
    with pytest.raises(BadData, match="cannot be read"):
        read_pack(tmp_path / "nowhere.bin")
    for data in (b"", b"<html>", b"\x89PNG\r\n", b"PK\x03\x04"):
        with pytest.raises(BadData, match="not a pickle of plain data"):
            read_pack(write(tmp_path / "lfw.bin", data))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("packs")


@pytest.mark.parametrize("protocol", [0, 2, 4])
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_fuzzed_packs_are_read_or_refused(folder, protocol, data):
    arrays = [np.frombuffer(item, np.uint8) for item in PICTURES[:2]]
    damaged = bytearray(pickle.dumps(([*PICTURES[:2], *arrays], SAME[:2]), protocol))
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    path = write(folder / "fuzz.bin", bytes(damaged[: data.draw(st.integers(0, len(damaged)))]))
    # Whatever else it raises fails the test.
    with contextlib.suppress(BadData):
        pack = read_pack(path)
        assert len(pack.pictures) == 2 * len(pack.same)


def test_written_packs_are_read_by_python_and_by_us(tmp_path):
    write_pack(tmp_path / "lfw.bin", iter(PICTURES), SAME)
    assert pickle.loads((tmp_path / "lfw.bin").read_bytes()) == (PICTURES, SAME)
    assert read_pack(tmp_path / "lfw.bin").pictures == PICTURES
    assert [path.name for path in tmp_path.iterdir()] == ["lfw.bin"]
    with pytest.raises(ValueError, match="7 pictures for 4 answers"):
        write_pack(tmp_path / "lfw.bin", PICTURES[:7], SAME)


def test_folds_are_blocks_of_pairs_in_order():
    pack = packs.Pack("lfw.bin", [b""] * 46, np.zeros(23, bool))
    expected = [fold for fold, size in enumerate([3, 3, 3, 2, 2, 2, 2, 2, 2, 2]) for _ in range(size)]
    assert pack.fold_ids().tolist() == expected
    assert pack.fold_ids(2).tolist() == [0] * 12 + [1] * 11
    for folds in (1, 24):
        with pytest.raises(UserError, match="23 pairs in"):
            pack.fold_ids(folds)


def test_reading_a_pack_does_not_import_what_it_names(tmp_path):
    data = b"\x80\x04\x8c\x04this\x8c\x01s\x93."
    write(tmp_path / "lfw.bin", data)
    code = (
        "import sys; from towers.datasets.packs import read_pack; from towers.errors import BadData\n"
        f"try: read_pack({str(tmp_path / 'lfw.bin')!r})\nexcept BadData: print('this' in sys.modules)"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert result.stdout == "False\n"
