import os
import pickle

import numpy as np
import pytest

from towers.datasets.class_numbers import ClassNumbers
from towers.datasets.lists import ListSource, read_list
from towers.datasets.opening import open_source
from towers.datasets.record_writing import write_records
from towers.datasets.records import RecordSource
from towers.datasets.writing import whole_file, whole_folder
from towers.errors import BadData, StorageError, UserError


@pytest.fixture
def root(tmp_path):
    for name in ("0/a.jpg", "0/b c.jpg", "2/a.jpg", "d.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    return tmp_path


def write(root, text):
    (root / "list.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    return root / "list.txt"


@pytest.mark.parametrize(
    "text",
    [
        "0/a.jpg 0\n0/b c.jpg 0\n2/a.jpg 2\nd.jpg 12\n",
        "0/a.jpg\t0\r\n0/b c.jpg\t0\r\n2/a.jpg\t2\r\nd.jpg\t12",
        "\n0/a.jpg 0  \n0/b c.jpg \t 0\n\n2/a.jpg  02\t\n  \nd.jpg 12\n\n",
    ],
)
def test_lines_are_a_path_and_a_label(root, text):
    source = open_source(write(root, text))
    assert isinstance(source, ListSource)
    assert source.labels.tolist() == [0, 0, 2, 12]
    assert source.labels.dtype == np.int64
    assert source.num_classes == 13
    assert source.reader(range(4))() == [b"0/a.jpg", b"0/b c.jpg", b"2/a.jpg", b"d.jpg"]
    assert source.where(1) == str(root / "0/b c.jpg")


def test_lists_as_a_slow_loop_reads_them(root):
    random = np.random.default_rng(0)
    numbers = random.integers(0, [4, 10**9, 10**6], (70_000, 3)).tolist()
    lines = [f"{folder}/{picture}.jpg {label}" for folder, picture, label in numbers]
    source = read_list(write(root, "\n".join(lines)))
    expected = [line.rsplit(" ", 1) for line in lines]
    assert [source.where(record) for record in range(len(source))] == [str(root / path) for path, _ in expected]
    assert source.labels.tolist() == [int(label) for _, label in expected]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0/a.jpg", "not 'path label'"),
        ("7", "not 'path label'"),
        ("0/a.jpg -1", "not 'path label'"),
        ("0/a.jpg 1.5", "not 'path label'"),
        ("0/a.jpg nan", "not 'path label'"),
        ("0/a.jpg 99999999999999999999", "not 'path label'"),
        ("0/a.jpg 2147483648", "a label of 2147483648 or more"),
        ("../a.jpg 1", "leads out of"),
        ("0/../../a.jpg 1", "leads out of"),
        ("0/.. 1", "leads out of"),
        ("/etc/passwd 1", "leads out of"),
        ("/x.jpg 1", "leads out of"),
        ("gs://bucket/a.jpg 1", "leads out of"),
        ("http://host/a.jpg 1", "leads out of"),
        ("away/a.jpg 1", "a link leads out of"),
        ("a\0b/a.jpg 1", "zero byte"),
    ],
)
def test_bad_lines_are_named(root, line, message, tmp_path_factory):
    (root / "away").symlink_to(tmp_path_factory.mktemp("away"))
    with pytest.raises(BadData, match=rf"list\.txt, line 3: .*{message}") as error:
        read_list(write(root, f"0/a.jpg 0\n\n{line}\n0/a.jpg 0\n"))
    assert error.value.exit_code == 65


def test_a_picture_that_is_a_link(root, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside") / "secret"
    outside.write_bytes(b"secret")
    (root / "0/out.jpg").symlink_to(outside)
    (root / "0/in.jpg").symlink_to(root / "d.jpg")
    source = read_list(write(root, "0/in.jpg 0\n0/out.jpg 1\n"))
    assert source.reader([0])() == [b"d.jpg"]
    with pytest.raises(OSError, match="leads out of"):
        source.reader([1])()


def write_lst(root, text):
    (root / "train.lst").write_text(text)
    return root / "train.lst"


def test_lists_of_mxnet(root):
    """im2rec's lines: labels with a fraction of zeros, several labels, indices in any order."""
    lines = ["7\t0.000000\t0/a.jpg", "0\t0\t0/b c.jpg", "", "123\t2.0\t0.25\t-3\t2/a.jpg  ", "5\t12.\td.jpg"]
    source = open_source(write_lst(root, "\r\n".join(lines)))
    assert isinstance(source, ListSource)
    assert source.labels.tolist() == [0, 0, 2, 12]
    assert source.reader(range(4))() == [b"0/a.jpg", b"0/b c.jpg", b"2/a.jpg", b"d.jpg"]
    assert source.where(2) == str(root / "2/a.jpg")
    assert source.subset([3]).reader([0])() == [b"d.jpg"]
    assert pickle.loads(pickle.dumps(source)).reader([1])() == [b"0/b c.jpg"]


def test_lists_of_mxnet_as_a_slow_loop_reads_them(root):
    random = np.random.default_rng(1)
    rows = random.integers(0, [10**6, 10**9, 3, 10**6], (70_000, 4)).tolist()
    lines = [f"{index}\t{float(label):f}\t" + "0.5\t" * more + f"a/{name}.jpg" for index, label, more, name in rows]
    source = read_list(write_lst(root, "\n".join(lines)))
    expected = [line.split("\t") for line in lines]
    assert source.labels.tolist() == [int(float(fields[1])) for fields in expected]
    assert [source.where(record) for record in range(len(source))] == [str(root / fields[-1]) for fields in expected]


@pytest.mark.parametrize(
    "line",
    ["0/a.jpg 0", "0\t1", "0\t0/a.jpg", "0\t1\t", "0\t0/a.jpg\t1", "0\t1.5\ta.jpg", "0\tnan\ta.jpg", "0\t-1\ta.jpg",
     "x\t1\ta.jpg", "0\t\ta.jpg", "0\t.\ta.jpg", "0\t1.0.0\ta.jpg", "1\t0/a.jpg\t0\t1 2 3 4"],
)  # fmt: skip
def test_bad_lines_of_mxnets_lists_are_named(root, line):
    with pytest.raises(BadData, match=r"train\.lst, line 3: .*not 'index TAB label TAB path'"):
        read_list(write_lst(root, f"0\t1\t0/a.jpg\n\n{line}\n1\t1\td.jpg\n"))


def test_paths_of_mxnets_lists_stay_below_their_folder(root):
    with pytest.raises(BadData, match=r"train\.lst, line 2: .*leads out of"):
        read_list(write_lst(root, "0\t1\t0/a.jpg\n1\t1\t../d.jpg\n"))


@pytest.mark.parametrize("text", ["", "\n \n"])
def test_empty_lists(root, text):
    with pytest.raises(BadData, match="lists no pictures"):
        read_list(write(root, text))


def test_subset_pickle_and_fingerprint(root):
    source = read_list(write(root, "0/a.jpg 0\n0/b c.jpg 0\n2/a.jpg 2\nd.jpg 12\nmissing.jpg 1\n"))
    part = source.subset([3, 0])
    assert part.reader([0, 1])() == [b"d.jpg", b"0/a.jpg"]
    assert part.labels.tolist() == [1, 0]
    assert part.class_names == ["0", "12"]
    again = pickle.loads(pickle.dumps(part))
    assert again.text == b"d.jpg0/a.jpg"
    assert again.reader([0, 1])() == part.reader([0, 1])()
    before = source.fingerprint()
    assert read_list(root / "list.txt").fingerprint() == before
    (root / "d.jpg").write_bytes(b"longer than before")
    assert source.fingerprint() != before


def test_names_that_are_no_utf8(root):
    name = b"0/\xff.jpg"
    with open(os.path.join(os.fsencode(root), name), "wb") as file:
        file.write(b"picture")
    source = read_list(write(root, name + b" 0\n"))
    assert source.reader([0])() == [b"picture"]


def test_class_numbers():
    names = ClassNumbers(np.array([3, 5, 10**9]))
    assert list(names) == ["3", "5", "1000000000"]
    assert names[1:] == ["5", "1000000000"]
    assert names.take(np.array([2])) == ["1000000000"]
    assert names != ["3"]


def test_which_kind_a_path_is(root):
    (root / "d.jpg").unlink()
    assert open_source(root).class_names == ["0", "2"]
    write_records(root, lambda record: b"\xff\xd8\xff", np.array([0, 1]), num_classes=2, size=(1, 1))
    assert isinstance(open_source(root), RecordSource)
    assert isinstance(open_source(root / "train.rec"), RecordSource)
    (root / "train.rec").rename(root / "faces")
    (root / "train.idx").rename(root / "faces.idx")
    assert isinstance(open_source(root / "faces"), RecordSource)
    with pytest.raises(BadData, match="no such folder or file; give a folder ROOT/Class"):
        open_source(root / "nowhere")


def test_files_and_folders_appear_whole_or_not_at_all(tmp_path):
    (tmp_path / "file").write_bytes(b"old")

    def fail_in(block, name):
        with block as place:
            place.write(b"new") if name == "file" else (place / "half").write_bytes(b"")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_in(whole_file(tmp_path / "file"), "file")
    assert (tmp_path / "file").read_bytes() == b"old"
    with whole_file(tmp_path / "file") as file:
        file.write(b"new")
    assert (tmp_path / "file").read_bytes() == b"new"
    with pytest.raises(RuntimeError):
        fail_in(whole_folder(tmp_path / "folder"), "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    (tmp_path / "folder").mkdir()
    with whole_folder(tmp_path / "folder") as folder:
        (folder / "whole").write_bytes(b"")
    assert (tmp_path / "folder/whole").exists()
    with pytest.raises(UserError, match="is there already"), whole_folder(tmp_path / "folder"):
        pass
    with pytest.raises(StorageError, match="cannot be written"), whole_file(tmp_path / "file/in/file"):
        pass
