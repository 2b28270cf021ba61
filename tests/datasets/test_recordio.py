import hypothesis.strategies as st
import numpy as np
import pytest
from datasets.record_reference import MAGIC, read_all
from hypothesis import given, settings

from towers.datasets import recordio
from towers.datasets.recordio import BrokenRecord, RecordFile, find_heads, frame, read_index, read_payload
from towers.errors import BadData, StorageError

# Payloads full of the magic, at multiples of 4 and elsewhere.
PAYLOADS = st.lists(
    st.lists(st.sampled_from([MAGIC, MAGIC[:2], MAGIC[2:], b"\0", b"abcd", MAGIC * 2]), max_size=8).map(b"".join),
    min_size=1,
    max_size=6,
)


def write(path, data):
    path.write_bytes(data)
    return RecordFile(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("recordio")


@given(PAYLOADS)
@settings(max_examples=100, deadline=None)
def test_frames_are_read_back_by_the_format_s_description_and_by_us(folder, payloads):
    data = b"".join(map(frame, payloads))
    assert [payload for _, payload in read_all(data)] == payloads
    file = write(folder / "a.rec", data)
    heads = find_heads(file, file.words())
    assert heads.tolist() == [place for place, _ in read_all(data)]
    assert [read_payload(file, int(head), 10**6) for head in heads] == payloads
    assert [read_payload(file, int(head), 5) for head in heads] == [payload[:5] for payload in payloads]


def test_a_frame_byte_by_byte(folder):
    assert frame(b"abcde") == b"\x0a\x23\xd7\xce\x05\0\0\0abcde\0\0\0"
    assert frame(b"abcd" + MAGIC + b"e") == MAGIC + b"\x04\0\0\x20abcd" + MAGIC + b"\x01\0\0\x60e\0\0\0"
    assert frame(MAGIC + MAGIC) == MAGIC + b"\0\0\0\x20" + MAGIC + b"\0\0\0\x40" + MAGIC + b"\0\0\0\x60"
    assert frame(b"a" + MAGIC) == MAGIC + b"\x05\0\0\0a" + MAGIC + bytes(3)


def test_magic_in_the_data_of_a_writer_that_does_not_cut(folder):
    inner = b"abcd" + MAGIC + b"\x08\0\0\0" + b"efgh"
    data = MAGIC + bytes([len(inner), 0, 0, 0]) + inner + frame(b"next")
    file = write(folder / "uncut.rec", data)
    assert find_heads(file, file.words()).tolist() == [0, 8 + len(inner)]


@given(st.binary(max_size=60), st.data())
@settings(max_examples=100, deadline=None)
def test_damaged_frames_never_do_more_than_raise(folder, payload, data):
    framed = bytearray(frame(payload + MAGIC * 3) + frame(b"x"))
    for _ in range(data.draw(st.integers(1, 4))):
        framed[data.draw(st.integers(0, len(framed) - 1))] = data.draw(st.integers(0, 255))
    file = write(folder / "b.rec", bytes(framed[: data.draw(st.integers(0, len(framed)))]))
    for head in find_heads(file, file.words()):
        try:
            assert len(read_payload(file, int(head), 1000)) <= 1000
        except BrokenRecord:
            continue


def test_pieces_without_end_are_refused(folder, monkeypatch):
    monkeypatch.setattr(recordio, "MAX_PIECES", 4)
    file = write(folder / "c.rec", frame(MAGIC * 4))
    with pytest.raises(BrokenRecord, match="more than 4 pieces"):
        read_payload(file, 0, 100)


def test_a_file_that_changes_while_it_is_read(tmp_path):
    file = write(tmp_path / "a.rec", frame(b"abcdefgh"))
    file.check_unchanged()
    with (tmp_path / "a.rec").open("ab") as other:
        other.write(b"more")
    with pytest.raises(StorageError, match=r"a\.rec: was changed while it was read"):
        file.check_unchanged()
    (tmp_path / "a.rec").write_bytes(b"")
    with pytest.raises(StorageError, match="ends at byte 0"):
        file.read_at(0, 8)


@given(
    st.lists(st.tuples(st.integers(0, 10**18 - 1), st.integers(0, 10**18 - 1)), min_size=1, max_size=20),
    st.sampled_from(["\n", "\r\n"]),
    st.booleans(),
)
def test_the_index_is_read_like_int_does(folder, lines, newline, ended):
    text = newline.join(f"{key}\t{place}" for key, place in lines) + newline * ended
    (folder / "a.idx").write_text(text, newline="")
    keys, heads = read_index(folder / "a.idx")
    assert list(zip(keys.tolist(), heads.tolist(), strict=True)) == lines


@pytest.mark.parametrize("line", ["5", "x\t5", "5\ty", "5\t-1", "5\t", "\t5", "5 \t6x", "1\t" + "9" * 19, "5\t1.0"])
def test_a_bad_line_of_the_index_is_named(tmp_path, line):
    (tmp_path / "a.idx").write_text(f"0\t0\n\n{line}\n4\t4\n")
    with pytest.raises(BadData, match=r"a\.idx, line 3: .*index_rec\.py .*a\.rec"):
        read_index(tmp_path / "a.idx")


def test_index_text_is_what_is_read(tmp_path):
    keys, heads = np.array([1, 2, 0]), np.array([0, 36, 2**40])
    (tmp_path / "a.idx").write_bytes(recordio.index_text(keys, heads))
    assert (tmp_path / "a.idx").read_text() == f"1\t0\n2\t36\n0\t{2**40}\n"
    assert [values.tolist() for values in read_index(tmp_path / "a.idx")] == [keys.tolist(), heads.tolist()]
