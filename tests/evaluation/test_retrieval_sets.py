import numpy as np
import pytest

from towers.errors import BadData, UserError
from towers.evaluation.retrieval_sets import all_against_all, read_copydays, read_holidays, read_ukbench


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return folder


@pytest.mark.parametrize("inner", ["", "jpg/"])
def test_holidays(tmp_path, inner):
    names = ["100001.jpg", "100000.jpg", "100100.jpg", "100102.JPG", "100101.jpg"]
    touch(tmp_path, *(inner + name for name in names), inner + "readme.txt", inner + "holidays.jpg")
    found = read_holidays(tmp_path)
    assert [path.rsplit("/", 1)[1] for path in found.paths] == sorted(names)
    assert found.labels.tolist() == [1000, 1000, 1001, 1001, 1001]
    (task,) = found.tasks
    assert task.queries.tolist() == task.own.tolist() == [0, 2]
    assert task.gallery.tolist() == [0, 1, 2, 3, 4]


def test_a_holidays_scene_needs_its_query(tmp_path):
    with pytest.raises(BadData, match="100100.jpg"):
        read_holidays(touch(tmp_path, "100000.jpg", "100001.jpg", "100101.jpg"))


def holidays_list(tmp_path, text):
    folder = touch(tmp_path / "holidays", "100000.jpg", "100001.jpg", "100100.JPG", "100101.jpg")
    (tmp_path / "list.yaml").write_text(text)
    return folder, tmp_path / "list.yaml"


@pytest.mark.parametrize(
    "text",
    [
        '{\n"100001.jpg": 90,\n"100100.jpg": 270,\n"100101.jpg": 180,\n}',
        "# by hand\n100001.jpg: 90\n\n100100.jpg: 270  # on its left side\n100000.jpg: 0\n100101.jpg: 180\n",
    ],
)
def test_holidays_are_turned_as_the_published_list_says(tmp_path, text):
    found = read_holidays(*holidays_list(tmp_path, text))
    assert found.turns.tolist() == [0, 90, 270, 180]
    assert found.turns.dtype == np.int64
    assert read_holidays(tmp_path / "holidays").turns is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{\n"100001.jpg": 45,\n}', r"list\.yaml:2: .*100001.*45.* is not .*degrees clockwise"),
        ("100001.jpg 90\n", r"list\.yaml:1: .*write for example"),
        ("100001.jpg: 90\n100102.jpg: 90\n", r"list\.yaml:2: 100102\.jpg is not among the 4 pictures of .*holidays"),
        ("100001.jpg: 90\n\n100001.jpg: 270\n", r"list\.yaml:3: 100001\.jpg is in line 1 already"),
        ("{\n}\n", "names no picture"),
    ],
)
def test_a_bad_list_of_turns_is_named_by_its_line(tmp_path, text, said):
    with pytest.raises(BadData, match=said):
        read_holidays(*holidays_list(tmp_path, text))


def test_a_list_of_turns_that_is_not_there(tmp_path):
    folder, _ = holidays_list(tmp_path, "")
    with pytest.raises(UserError, match="--holidays_rotations .*none.yaml: cannot be read"):
        read_holidays(folder, tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_bytes(b"\xff\xfe\x80")
    with pytest.raises(UserError, match="give a text file"):
        read_holidays(folder, tmp_path / "list.yaml")


@pytest.mark.parametrize("inner", ["", "full/"])
def test_ukbench_goes_by_numbers_not_by_the_order_of_the_disk(tmp_path, inner):
    names = [f"ukbench{number:05}.jpg" for number in (3, 7, 0, 2, 1, 6, 5, 4)]
    found = read_ukbench(touch(tmp_path, *(inner + name for name in names)))
    assert [path[-6] for path in found.paths] == list("00000000")
    assert [int(path[-9:-4]) for path in found.paths] == list(range(8))
    assert found.labels.tolist() == [0] * 4 + [1] * 4
    (task,) = found.tasks
    assert task.queries.tolist() == list(range(8))
    assert set(task.own) == {-1}


def test_ukbench_needs_whole_groups(tmp_path):
    with pytest.raises(BadData, match="ukbench00004 to ukbench00007"):
        read_ukbench(touch(tmp_path, *(f"ukbench{number:05}.jpg" for number in range(7))))


def copydays(folder):
    return touch(
        folder,
        *("original/200000.jpg", "original/200100.jpg"),
        *("strong/200001.jpg", "strong/200002.jpg", "strong/200101.jpg"),
        *("jpegqual/10/200000.jpg", "jpegqual/10/200100.jpg", "jpegqual/3/200000.jpg", "crops/50/200100.jpg"),
    )


def test_copydays_with_distractors(tmp_path):
    copydays(tmp_path / "copydays")
    touch(tmp_path / "others", "a/1.jpg", "b.png", "notes.txt")
    found = read_copydays(tmp_path / "copydays", tmp_path / "others")
    assert [task.name for task in found.tasks] == ["strong", "jpegqual/3", "jpegqual/10", "crops/50"]
    strong = found.tasks[0]
    assert strong.gallery.tolist() == [0, 1, 2, 3]
    assert found.labels[strong.gallery].tolist() == [2000, 2001, -1, -1]
    assert found.labels[strong.queries].tolist() == [2000, 2000, 2001]
    assert all(set(task.own) == {-1} for task in found.tasks)
    assert [found.paths[query][-10:] for query in strong.queries] == ["200001.jpg", "200002.jpg", "200101.jpg"]
    assert len(found.paths) == len(found.labels)


def test_copydays_without_distractors_and_with_mistakes(tmp_path):
    assert len(read_copydays(copydays(tmp_path / "one")).tasks[0].gallery) == 2
    with pytest.raises(BadData, match="no original begins with 2002"):
        read_copydays(touch(copydays(tmp_path / "two"), "strong/200201.jpg"))
    with pytest.raises(BadData, match="no copies"):
        read_copydays(touch(tmp_path / "three", "original/200000.jpg"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadData, match="empty: holds no pictures"):
        read_copydays(tmp_path / "one", tmp_path / "empty")


@pytest.mark.parametrize("read", [read_holidays, read_ukbench, read_copydays])
def test_folders_that_are_not_there(tmp_path, read):
    with pytest.raises(UserError, match="no such folder"):
        read(tmp_path / "nowhere")


@pytest.mark.parametrize(("read", "named"), [(read_holidays, "100000.jpg"), (read_ukbench, "ukbench00000.jpg")])
def test_folders_of_something_else(tmp_path, read, named):
    with pytest.raises(BadData, match=named):
        read(touch(tmp_path, "cat.jpg"))


def test_any_folder():
    found = all_against_all(["a", "b", "c"], np.array([0, 0, 1]))
    (task,) = found.tasks
    assert task.own.tolist() == [0, 1, 2]
    with pytest.raises(BadData, match="one picture"):
        all_against_all(["a", "b"], np.array([0, 1]))
