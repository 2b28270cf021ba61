import os

import numpy as np
import pytest
from datasets.pictures import decoded, face, jpeg, with_orientation

from towers.datasets.folder import PathSource, TurnedSource, read_folder
from towers.errors import BadData


def write(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())


def test_classes_and_files_are_sorted_and_other_files_left_out(tmp_path):
    write(
        tmp_path,
        "b/2.JPG",
        "b/1.png",
        "a/x.jpeg",
        "a/notes.txt",
        "pairs.txt",
        ".hidden/1.jpg",
        "a/.1.jpg",
        "empty/t.txt",
    )
    source = read_folder(tmp_path)
    assert source.class_names == ["a", "b"]
    assert source.num_classes == 2
    assert len(source) == 3
    assert source.labels.dtype == np.int64
    assert source.labels.tolist() == [0, 1, 1]
    assert [os.path.relpath(source.where(record), tmp_path) for record in range(3)] == [
        "a/x.jpeg",
        "b/1.png",
        "b/2.JPG",
    ]
    assert source.reader([2, 0])() == [b"b/2.JPG", b"a/x.jpeg"]


def test_nested_folders_are_classes_named_by_their_path(tmp_path):
    write(tmp_path, "Greek/alpha/1.png", "Greek/beta/1.png", "Latin/alpha/1.png", "Latin/alpha/old/1.png")
    source = read_folder(tmp_path)
    assert source.class_names == ["Greek/alpha", "Greek/beta", "Latin/alpha", "Latin/alpha/old"]


def test_small_classes_are_left_out(tmp_path):
    write(tmp_path, "a/1.png", "b/1.png", "b/2.png", "c/1.png", "c/2.png")
    source = read_folder(tmp_path, min_images_per_class=2)
    assert source.class_names == ["b", "c"]
    assert source.labels.tolist() == [0, 0, 1, 1]
    with pytest.raises(BadData, match="0 of 3 classes have at least 3 pictures"):
        read_folder(tmp_path, min_images_per_class=3)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "holds no pictures; expected ROOT/Class/picture"),
        (["a/1.jpg"], "1 of 1 classes"),
        (["1.jpg", "a/1.jpg", "b/1.jpg"], "directly in .* has no class; expected ROOT/Class/picture"),
    ],
)
def test_unusable_folders(tmp_path, names, message):
    write(tmp_path, *names)
    with pytest.raises(BadData, match=message) as error:
        read_folder(tmp_path)
    assert error.value.exit_code == 65
    assert "\n" not in str(error.value)


def test_missing_folder(tmp_path):
    with pytest.raises(BadData, match="nowhere: not a folder"):
        read_folder(tmp_path / "nowhere")


def test_links_are_followed_but_not_in_circles(tmp_path):
    write(tmp_path, "store/p/1.jpg", "store/q/1.jpg")
    root = tmp_path / "root"
    root.mkdir()
    (root / "p").symlink_to(tmp_path / "store/p")
    (root / "q").mkdir()
    (root / "q/linked.jpg").symlink_to(tmp_path / "store/q/1.jpg")
    assert read_folder(root).reader([0, 1])() == [b"store/p/1.jpg", b"store/q/1.jpg"]
    (root / "q/back").symlink_to(root)
    with pytest.raises(BadData, match="leads back"):
        read_folder(root)


def test_a_circle_through_a_linked_folder_is_found(tmp_path):
    write(tmp_path, "root/a/1.jpg", "root/b/1.jpg", "store/c/1.jpg")
    (tmp_path / "root/out").symlink_to(tmp_path / "store")
    (tmp_path / "store/c/again").symlink_to(tmp_path / "store")
    with pytest.raises(BadData, match="leads back"):
        read_folder(tmp_path / "root")


def test_subset_renumbers_classes(tmp_path):
    write(tmp_path, "a/1.png", "b/1.png", "c/1.png", "c/2.png")
    subset = read_folder(tmp_path).subset([3, 0])
    assert subset.class_names == ["a", "c"]
    assert subset.labels.tolist() == [1, 0]
    assert subset.reader([0, 1])() == [b"c/2.png", b"a/1.png"]


def test_fingerprint_sees_names_and_sizes(tmp_path):
    write(tmp_path / "one", "a/1.png", "b/1.png")
    write(tmp_path / "two", "a/1.png", "b/1.png")
    fingerprint = read_folder(tmp_path / "one").fingerprint()
    assert fingerprint == read_folder(tmp_path / "two").fingerprint()
    (tmp_path / "two/a/1.png").write_bytes(b"longer than before")
    assert fingerprint != read_folder(tmp_path / "two").fingerprint()
    (tmp_path / "one/a/1.png").rename(tmp_path / "one/a/2.png")
    assert fingerprint != read_folder(tmp_path / "one").fingerprint()


def test_a_named_pipe_does_not_stop_reading_and_a_huge_file_is_not_read_whole(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    with (tmp_path / "huge.jpg").open("wb") as file:
        file.truncate(1 << 34)
    empty, huge = PathSource([tmp_path / "pipe.jpg", tmp_path / "huge.jpg"]).reader([0, 1])()
    assert empty == b""
    assert len(huge) == 16 * 2**20 + 1


def test_a_turned_source_turns_each_record_by_its_own_degrees(tmp_path):
    stored = jpeg(face(1, 16, 24))
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(with_orientation(stored, 3))
    source = TurnedSource([tmp_path / "a.jpg", tmp_path / "b.jpg"], [0, 90])
    upright, sideways = (decoded(encoded) for encoded in source.reader([0, 1])())
    assert np.array_equal(upright, decoded(stored))
    assert np.array_equal(sideways, np.rot90(upright, -1))


def test_path_source(tmp_path):
    write(tmp_path, "a/1.jpg", "b.jpg")
    source = PathSource([tmp_path / "b.jpg", str(tmp_path / "a/1.jpg"), tmp_path / "b.jpg"])
    assert len(source) == 3
    assert source.labels.tolist() == [0, 0, 0]
    assert source.reader([1, 2])() == [b"a/1.jpg", b"b.jpg"]
    assert source.where(1) == str(tmp_path / "a/1.jpg")
