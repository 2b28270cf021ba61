import contextlib
import pickle
import struct
from concurrent.futures import ThreadPoolExecutor

import hypothesis.strategies as st
import numpy as np
import pytest
from datasets.record_reference import MAGIC, payload, pictures_of, read_all, read_index, unpack, whole
from hypothesis import given, settings

from towers.datasets.filtering import filter_by_class_size
from towers.datasets.opening import open_source
from towers.datasets.record_headers import Faults
from towers.datasets.record_writing import write_records
from towers.datasets.recordio import frame
from towers.datasets.records import RecordSource, read_property, read_records, scan_records
from towers.datasets.splitting import split_classes
from towers.errors import BadData, StorageError, UserError

PICTURE = b"\xff\xd8\xffpicture"


def write(folder, payloads, *, keys=None, prop=None, framed=frame):
    """train.rec and train.idx of payloads, keys being 0, 1, ... unless given; the places."""
    data, places = b"", []
    for one in payloads:
        places.append(len(data))
        data += framed(one)
    (folder / "train.rec").write_bytes(data)
    keys = range(len(places)) if keys is None else keys
    (folder / "train.idx").write_text("".join(f"{key}\t{place}\n" for key, place in zip(keys, places, strict=True)))
    if prop:
        (folder / "property").write_text(prop)
    return places


def face2rec2(pictures, *, meta_last, labels=None, limit=None):
    """Payloads and keys of InsightFace's layout: [(label, picture)] sorted by label."""
    people = sorted({label for label, _ in pictures})
    first = len(pictures) + 1
    images = [payload([label, 1.0] if labels is None else labels, picture, 0) for label, picture in pictures]
    ranges = []
    for person in people:
        mine = [number for number, (label, _) in enumerate(pictures, 1) if label == person]
        ranges.append(payload([mine[0], mine[-1] + 1]))
    meta = payload([first if limit is None else limit, first + len(people)])
    identities = list(range(first, first + len(people)))
    if meta_last:
        return [*images, *ranges, meta], [*range(1, first), *identities, 0]
    return [*images, meta, *ranges], [*range(1, first), 0, *identities]


PEOPLE = [(0, PICTURE + b"a"), (0, PICTURE + b"bc"), (1, PICTURE), (3, PICTURE + b"def"), (3, MAGIC + PICTURE)]


@pytest.mark.parametrize("meta_last", [True, False])
@pytest.mark.parametrize("indexed", [True, False])
def test_insightface_s_layout_with_and_without_an_index(tmp_path, meta_last, indexed):
    payloads, keys = face2rec2(PEOPLE, meta_last=meta_last)
    places = write(tmp_path, payloads, keys=keys, prop="4,112,112\n8\nshuffled\n")
    expected = pictures_of((tmp_path / "train.rec").read_bytes(), (tmp_path / "train.idx").read_text())
    if not indexed:
        (tmp_path / "train.idx").unlink()
    source = open_source(tmp_path)
    assert isinstance(source, RecordSource)
    assert list(zip(source.labels.tolist(), source.reader(range(5))(), strict=True)) == expected == PEOPLE
    assert source.labels.dtype == np.int64
    assert source.num_classes == 4
    assert list(source.class_names) == ["0", "1", "2", "3"]
    assert source.where(1) == f"{tmp_path}/train.rec, record 2 at byte {places[1]}"
    found_keys, found = scan_records(tmp_path)
    assert (found_keys.tolist(), found.tolist()) == (keys, places)


@pytest.mark.parametrize("label", [7, [7.0, 1.0], [7.0], [7.0, 0.0, 0.5]])
def test_the_flat_layout_and_labels_of_any_number_of_floats(tmp_path, label):
    write(tmp_path, [payload(label, PICTURE), payload(2.0, PICTURE + b"2")])
    source = read_records(tmp_path / "train.rec")
    assert source.labels.tolist() == [7, 2]
    assert source.reader([1, 0])() == [PICTURE + b"2", PICTURE]
    assert source.num_classes == 8


def test_keys_not_lines_say_the_order(tmp_path):
    payloads, keys = face2rec2(PEOPLE, meta_last=True)
    write(tmp_path, payloads, keys=keys)
    lines = (tmp_path / "train.idx").read_text().splitlines(keepends=True)
    # Record 0 first, though its place is the last one.
    (tmp_path / "train.idx").write_text("".join([lines[-1], *lines[:-1]]))
    assert read_records(tmp_path).keys.tolist() == [1, 2, 3, 4, 5]


MESSY = st.lists(
    st.tuples(
        st.integers(0, 3),
        st.booleans(),
        st.lists(st.sampled_from([MAGIC, b"abcd", b"\0", MAGIC[1:]]), min_size=1, max_size=5).map(b"".join),
    ),
    min_size=1,
    max_size=8,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("records")


@given(MESSY, st.booleans())
@settings(max_examples=60, deadline=None)
def test_pictures_that_hold_the_magic(folder, pictures, indexed):
    # id, the third field, holds the magic too: even the header is then in two pieces.
    key = int.from_bytes(MAGIC, "little")
    write(folder, [payload([label, 1] if two else label, picture, key) for label, two, picture in pictures])
    if not indexed:
        (folder / "train.idx").unlink()
    source = read_records(folder / "train.rec")
    assert source.labels.tolist() == [label for label, _, _ in pictures]
    assert source.reader(range(len(pictures)))() == [picture for _, _, picture in pictures]


@pytest.mark.parametrize("flat", [True, False])
@given(st.lists(st.tuples(st.integers(0, 5), st.binary(min_size=1, max_size=30)), min_size=1, max_size=12))
@settings(max_examples=30, deadline=None)
def test_what_is_written_is_read_by_us_and_by_the_reference(folder, flat, pictures):
    labels = np.array([label for label, _ in pictures])
    write_records(folder, lambda record: pictures[record][1], labels, num_classes=6, size=(112, 96), flat=flat)
    assert (folder / "property").read_text() == "6,112,96\n"
    order = range(len(pictures)) if flat else np.argsort(labels, kind="stable")
    expected = [pictures[record] for record in order]
    rec, idx = (folder / "train.rec").read_bytes(), (folder / "train.idx").read_text()
    assert pictures_of(rec, idx) == expected
    source = read_records(folder)
    assert list(zip(source.labels.tolist(), source.reader(range(len(source)))(), strict=True)) == expected
    assert source.num_classes == 6
    (folder / "property").unlink()


def test_written_identity_records_give_each_person_s_range(tmp_path):
    write_records(tmp_path, lambda record: PICTURE, np.array([2, 0, 2, 5]), num_classes=6, size=(1, 1))
    by_place = dict(read_all((tmp_path / "train.rec").read_bytes()))
    index = read_index((tmp_path / "train.idx").read_text())
    assert {key: unpack(by_place[index[key]]) for key in (0, 5, 6, 7)} == {
        0: ([5.0, 8.0], b""),
        5: ([1.0, 2.0], b""),
        6: ([2.0, 4.0], b""),
        7: ([4.0, 5.0], b""),
    }


def test_what_float32_cannot_hold_is_not_written(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="16777217 classes"):
        write_records(tmp_path, lambda record: PICTURE, np.array([0]), num_classes=2**24 + 1, size=(1, 1))
    monkeypatch.setattr("towers.datasets.record_writing.FLOAT32_LIMIT", 4)
    with pytest.raises(UserError, match=r"5 records: .*--flat"):
        write_records(tmp_path, lambda record: PICTURE, np.array([0, 1]), num_classes=2, size=(1, 1))
    write_records(tmp_path, lambda record: PICTURE, np.array([0, 1]), num_classes=2, size=(1, 1), flat=True)
    assert read_records(tmp_path).labels.tolist() == [0, 1]


def test_ranges_that_float32_rounded_are_not_looked_at(tmp_path):
    # As in Glint360K: the end of the pictures is past 2**24 and has been rounded to something else.
    payloads, keys = face2rec2(PEOPLE, meta_last=False, limit=2.0**24 + 2)
    write(tmp_path, payloads, keys=keys)
    assert read_records(tmp_path).labels.tolist() == [0, 0, 1, 3, 3]


BAD_LABELS = [
    (float("nan"), "its label nan is not a number"),
    (float("inf"), "its label inf is not a number"),
    (-1.0, "its label -1 is negative"),
    (0.5, "its label 0.5 is not whole"),
    (3.0, "its label 3 is not below the 3 classes that property says"),
    (2.0**24, "its label 16777216 may have been rounded"),
]


@pytest.mark.parametrize("several", [True, False])
@pytest.mark.parametrize(("label", "message"), BAD_LABELS)
def test_labels_that_are_no_classes(tmp_path, label, message, several):
    payloads = [payload(1, PICTURE), payload([label, 1] if several else label, PICTURE), payload(2, PICTURE)]
    places = write(tmp_path, payloads, prop="3,112,112\n")
    with pytest.raises(BadData, match=f"train.rec: record 1 at byte {places[1]}: {message}") as error:
        read_records(tmp_path)
    assert error.value.exit_code == 65
    faults = Faults("train.rec")
    source = read_records(tmp_path, faults=faults)
    assert source.labels.tolist() == [1, 2]
    assert faults.count == 1


def flat(folder):
    return write(folder, [payload(label, PICTURE * 3) for label in (0, 1, 2)])


def cut_in_the_middle(folder, places):
    data = (folder / "train.rec").read_bytes()
    (folder / "train.rec").write_bytes(data[: places[2] + 20])
    return places[2], "cut: the file ends within the record"


def bad_magic(folder, places):
    data = bytearray((folder / "train.rec").read_bytes())
    data[places[1]] ^= 1
    (folder / "train.rec").write_bytes(data)
    return places[1], "no record begins there"


def past_the_end(folder, places):
    (folder / "train.idx").write_text(f"0\t0\n1\t{places[1]}\n2\t4000\n")
    return 4000, "its place is past the end of the file"


def within_a_record(folder, places):
    (folder / "train.idx").write_text(f"0\t0\n1\t{places[1] + 2}\n2\t{places[2]}\n")
    return places[1] + 2, "its place is no multiple of 4"


def unsorted(folder, places):
    (folder / "train.idx").write_text(f"0\t0\n1\t{places[2]}\n2\t{places[1]}\n")
    return places[1], f"the index has byte {places[2]} before it, not the order of the file"


def short_index(folder, places):
    (folder / "train.idx").write_text(f"0\t0\n2\t{places[2]}\n")
    return 0, f"ends at byte {places[1]}, .* is at {places[2]}: bytes that the index has no record for"


def index_without_the_end(folder, places):
    (folder / "train.idx").write_text(f"0\t0\n1\t{places[1]}\n")
    return places[1], "bytes that the index has no record for"


def index_without_the_beginning(folder, places):
    (folder / "train.idx").write_text(f"1\t{places[1]}\n2\t{places[2]}\n")
    return places[1], f"{places[1]} bytes before it that the index has no record for"


def key_twice(folder, places):
    (folder / "train.idx").write_text(f"0\t0\n1\t{places[1]}\n1\t{places[2]}\n")
    return places[2], "the index has its key twice"


def identity_record(folder, places):
    places = write(folder, [payload(0, PICTURE), payload([1.0, 3.0]), payload(1, PICTURE)])
    return places[1], "has no picture: an identity record in a file without the record 0"


def identity_record_among_pictures(folder, places):
    payloads, keys = face2rec2(PEOPLE, meta_last=False)
    payloads[2] = payload([1.0, 3.0])
    places = write(folder, payloads, keys=keys)
    return places[2], "has no picture: an identity record among the pictures 1 to 5"


def picture_among_identities(folder, places):
    payloads, keys = face2rec2(PEOPLE, meta_last=False)
    payloads[6] = payload(1, PICTURE)
    places = write(folder, payloads, keys=keys)
    return places[6], "is a picture outside the records 1 to 5"


def record_0_of_more_pictures(folder, places):
    payloads, keys = face2rec2(PEOPLE, meta_last=True, limit=7.0)
    payloads, keys = [*payloads[:5], payloads[-1]], [1, 2, 3, 4, 5, 0]
    return write(folder, payloads, keys=keys)[5], "says there are 6 pictures, the index has 5"


def record_0_of_nan(folder, places):
    payloads, keys = face2rec2(PEOPLE, meta_last=True, limit=float("nan"))
    return write(folder, payloads, keys=keys)[-1], "says that the pictures end before record nan"


def labels_past_the_end(folder, places):
    places = write(folder, [payload(0, PICTURE), struct.pack("<IfQQ", 2**31, 0, 0, 0) + PICTURE])
    return places[1], "too short for the header"


def short_payload(folder, places):
    places = write(folder, [payload(0, PICTURE), b"short"])
    return places[1], "too short for the header"


def middle_piece(folder, places):
    framed = frame(payload(0, PICTURE * 4)) + frame(payload(1, b"abcd" + MAGIC + b"efgh" + MAGIC + b"x"))
    (folder / "train.rec").write_bytes(framed)
    first, second = [place for place in range(0, len(framed), 4) if framed[place : place + 4] == MAGIC][1:3]
    (folder / "train.idx").write_text(f"0\t0\n1\t{second}\n")
    assert first < second
    return second, "the middle of a record begins there"


def last_piece_missing(folder, places):
    framed = frame(payload(0, PICTURE * 4)) + frame(payload(1, b"abcd" + MAGIC + b"efgh"))
    (folder / "train.rec").write_bytes(framed[:-12] + whole(payload(2, PICTURE)))
    start = len(frame(payload(0, PICTURE * 4)))
    (folder / "train.idx").write_text(f"0\t0\n1\t{start}\n2\t{len(framed) - 12}\n")
    return start, "its pieces do not fit together"


@pytest.mark.parametrize(
    "damage",
    [
        *(cut_in_the_middle, bad_magic, past_the_end, within_a_record, unsorted, short_index, index_without_the_end),
        *(index_without_the_beginning, key_twice, identity_record, identity_record_among_pictures),
        *(picture_among_identities, record_0_of_more_pictures, record_0_of_nan, labels_past_the_end, short_payload),
        *(middle_piece, last_piece_missing),
    ],
    ids=lambda damage: damage.__name__,
)
def test_damage_is_refused_with_its_place(tmp_path, damage):
    place, message = damage(tmp_path, flat(tmp_path))
    faults = Faults("train.rec")
    read_records(tmp_path, faults=faults)
    assert any(f"at byte {place}: " in line for line in faults.lines), faults.lines
    with pytest.raises(BadData, match=rf"at byte \d+: .*{message}") as error:
        read_records(tmp_path)
    assert error.value.exit_code == 65
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("damage", [cut_in_the_middle, bad_magic])
def test_damage_is_seen_without_an_index_too(tmp_path, damage):
    damage(tmp_path, flat(tmp_path))
    (tmp_path / "train.idx").unlink()
    with pytest.raises(BadData, match="at byte "):
        read_records(tmp_path)
    with pytest.raises(BadData, match="at byte "):
        scan_records(tmp_path)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("train.rec", b"", "holds no record"),
        ("train.rec", b"\0" * 64, "holds no record"),
        ("train.idx", b"", "empty; make it anew"),
        ("property", b"three,112,112\n", "property, line 1"),
        ("property", b"3\n", "property, line 1"),
        ("property", b"0,112,112\n", "property, line 1"),
        ("property", b"", "property, line 1"),
    ],
)
def test_files_that_say_nothing(tmp_path, name, data, message):
    flat(tmp_path)
    if name == "train.rec":
        (tmp_path / "train.idx").unlink()
    (tmp_path / name).write_bytes(data)
    with pytest.raises(BadData, match=message):
        read_records(tmp_path)


def test_property(tmp_path):
    (tmp_path / "property").write_text("85742,112,112\n5822653\nshuffled\n")
    assert read_property(tmp_path / "property") == 85742
    assert read_property(tmp_path / "nowhere") is None


@given(st.binary(max_size=64), st.data())
@settings(max_examples=80, deadline=None)
def test_fuzzed_files_are_read_or_refused(folder, noise, data):
    payloads, keys = face2rec2(PEOPLE, meta_last=True)
    write(folder, payloads, keys=keys)
    for name in ("train.rec", "train.idx"):
        damaged = bytearray((folder / name).read_bytes())
        for _ in range(data.draw(st.integers(0, 3))):
            damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
        (folder / name).write_bytes(bytes(damaged) + data.draw(st.sampled_from([b"", noise])))
    # Whatever else it raises fails the test.
    with contextlib.suppress(BadData):
        faults = Faults("train.rec")
        source = read_records(folder, faults=faults)
        assert len(source.reader(range(len(source)))()) == len(source)
        if faults.count:
            with pytest.raises(BadData):
                read_records(folder)


def test_subset_split_and_filter(tmp_path):
    labels = [0, 0, 1, 3, 3, 3, 3]
    write(tmp_path, [payload(label, PICTURE + bytes([number])) for number, label in enumerate(labels)])
    source = read_records(tmp_path)
    part = source.subset([6, 2, 3])
    assert part.reader([0, 1, 2])() == [PICTURE + b"\6", PICTURE + b"\2", PICTURE + b"\3"]
    assert part.labels.tolist() == [1, 0, 1]
    assert part.class_names == ["1", "3"]
    assert "record 6 at byte" in part.where(0)
    assert filter_by_class_size(source, 2).class_names == ["0", "3"]
    kept, held_out = split_classes(source, 0.5, seed=1)
    assert sorted(source.labels[held_out].tolist()) == [0, 3, 3]
    assert len(kept) == 4


def test_the_fingerprint_tells_places_and_labels(tmp_path):
    flat(tmp_path)
    before = read_records(tmp_path).fingerprint()
    assert read_records(tmp_path).fingerprint() == before
    (tmp_path / "train.idx").unlink()
    assert read_records(tmp_path).fingerprint() == before
    write(tmp_path, [payload(label, PICTURE * 3) for label in (0, 1, 1)])
    assert read_records(tmp_path).fingerprint() != before


def test_threads_and_another_process_read_the_same(tmp_path):
    pictures = [PICTURE + bytes([number]) * number for number in range(200)]
    write(tmp_path, [payload(number % 5, picture) for number, picture in enumerate(pictures)])
    source = read_records(tmp_path)
    orders = [np.random.default_rng(seed).permutation(200) for seed in range(8)]
    with ThreadPoolExecutor(8) as threads:
        for order, read in zip(orders, threads.map(lambda order: source.reader(order)(), orders), strict=True):
            assert read == [pictures[record] for record in order]
    assert pickle.loads(pickle.dumps(source.subset([7, 9]))).reader([0, 1])() == [pictures[7], pictures[9]]


def test_a_file_that_changes_under_a_run_ends_it_with_74(tmp_path):
    flat(tmp_path)
    source = read_records(tmp_path)
    with (tmp_path / "train.rec").open("ab") as file:
        file.write(b"\0" * 4)
    with pytest.raises(StorageError, match="was changed while it was read") as error:
        source.reader([0])()
    assert error.value.exit_code == 74


def test_many_records_without_an_object_each(tmp_path):
    one = whole(payload(1, PICTURE * 2))
    (tmp_path / "train.rec").write_bytes(one * 200_000)
    places = np.arange(200_000) * len(one)
    (tmp_path / "train.idx").write_text("".join(f"{key}\t{place}\n" for key, place in enumerate(places.tolist())))
    source = read_records(tmp_path)
    assert np.array_equal(source.heads, places)
    held = [source.keys, source.heads, source.bodies, source.sizes, source.labels]
    assert sum(values.nbytes for values in held) == 36 * len(source)
    assert all(values.dtype != object for values in held)
    assert source.reader([0, 199_999])() == [PICTURE * 2] * 2
