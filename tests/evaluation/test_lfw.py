import numpy as np
import pytest

from towers.errors import BadData, UserError
from towers.evaluation.lfw import read_pairs, resolve_pairs

FOUR_PAIRS = "Ann\t1\t2\nAnn\t1\tBob\t2\nBob\t1\t2\nAnn\t2\tBob\t1\n"


@pytest.fixture
def write(tmp_path):
    def write_pairs(text):
        path = tmp_path / "pairs.txt"
        path.write_bytes(text.encode())
        return path

    return write_pairs


def make_pictures(root, people, extension=".jpg"):
    for name, numbers in people.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for number in numbers:
            (root / name / f"{name}_{number:04d}{extension}").write_bytes(b"picture")


@pytest.mark.parametrize(
    "text", [FOUR_PAIRS, "2\t1\n" + FOUR_PAIRS, FOUR_PAIRS.replace("\t", "  ").replace("\n", "\r\n")]
)
def test_tabs_blanks_and_headers_are_read_alike(write, text):
    pairs = read_pairs(write(text), folds=2)
    assert [(pair.left, pair.right, pair.same, pair.fold) for pair in pairs] == [
        (("Ann", 1), ("Ann", 2), True, 0),
        (("Ann", 1), ("Bob", 2), False, 0),
        (("Bob", 1), ("Bob", 2), True, 1),
        (("Ann", 2), ("Bob", 1), False, 1),
    ]


def test_folds_are_the_headers_blocks(write):
    rows = [row for _ in range(3) for row in ["A 1 2"] * 5 + ["A 1 B 1"] * 5]
    pairs = read_pairs(write("\n".join(["3\t5", *rows])))
    assert [pair.fold for pair in pairs] == [0] * 10 + [1] * 10 + [2] * 10
    assert pairs[0].line == 2


def test_ten_folds_of_both_kinds_without_a_header_of_folds(write):
    rows = ["A 1 2"] * 20 + ["A 1 B 1"] * 20
    for text in ("\n".join(rows), "\n".join(["20", *rows])):
        pairs = read_pairs(write(text))
        for same in (True, False):
            assert [pair.fold for pair in pairs if pair.same == same] == sorted(list(range(10)) * 2)


def test_names_may_be_numbers(write):
    pairs = read_pairs(write("1 1 2\n2 1 2\n1 1 2 1\n1 2 2 2\n"), folds=2)
    assert (pairs[2].left, pairs[2].right) == (("1", 1), ("2", 1))


@pytest.mark.parametrize(
    "text, message",
    [
        ("Ann 1 2\nAnn 1\n", "line 2: 2 words"),
        ("2 1\nAnn 1 2 Bob 3\n", "line 2: 5 words"),
        ("Ann 1 two\n", "line 1: 'two' is not the number"),
        ("Ann 1 Bob -2\n", "line 1: '-2' is not the number"),
        ("Ann 1 2\n\n../Ann 1 2\n", r"line 3: '\.\./Ann' would leave the folder"),
        (".. 1 2\n", r"line 1: '\.\.' would leave"),
        ("Ann 1 /etc/passwd 2\n", "line 1: '/etc/passwd' would leave"),
        ("Ann 1 C:\\Windows 2\n", "line 1: .* would leave"),
        ("2 300\n" + FOUR_PAIRS, "line 1: the header stands for 2 x 2 x 300 = 1200 pairs, the file has 4"),
        ("", "holds no pairs"),
        ("10 300\n", "holds no pairs"),
        ("Ann 1 2\n" * 10, "0 pairs of different people cannot fill 10 folds"),
        (FOUR_PAIRS, "2 pairs of same people cannot fill 10 folds"),
    ],
)
def test_bad_lines_are_named(write, text, message):
    with pytest.raises(BadData, match=message):
        read_pairs(write(text))


def test_files_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(UserError, match="none.txt: cannot read the pairs file"):
        read_pairs(tmp_path / "none.txt")
    (tmp_path / "picture.jpg").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(BadData, match="byte 0 is not UTF-8"):
        read_pairs(tmp_path / "picture.jpg")
    with pytest.raises(UserError, match="no such folder"):
        resolve_pairs([], tmp_path / "none")


def test_pictures_are_listed_once(write, tmp_path):
    make_pictures(tmp_path, {"Ann": [1, 2], "Bob": [1, 2]})
    resolved = resolve_pairs(read_pairs(write(FOUR_PAIRS), folds=2), tmp_path)
    names = [path.rsplit("/", 1)[1] for path in resolved.paths]
    assert names == ["Ann_0001.jpg", "Ann_0002.jpg", "Bob_0002.jpg", "Bob_0001.jpg"]
    assert resolved.pairs.dtype == np.int64
    assert resolved.pairs.tolist() == [[0, 1], [0, 2], [3, 2], [1, 3]]
    assert resolved.same.tolist() == [True, False, True, False]
    assert (resolved.fold_ids.tolist(), resolved.folds, resolved.skipped) == ([0, 0, 1, 1], 2, [])


@pytest.mark.parametrize("extension", [".jpeg", ".png", ".JPG", ".JPEG", ".PNG"])
def test_other_extensions_are_found_after_jpg(write, tmp_path, extension):
    make_pictures(tmp_path, {"Ann": [1], "Bob": [1, 2]}, extension)
    make_pictures(tmp_path, {"Ann": [1, 2]})
    resolved = resolve_pairs(read_pairs(write(FOUR_PAIRS), folds=2), tmp_path)
    assert [path[path.rindex(".") :] for path in resolved.paths] == [".jpg", ".jpg", extension, extension]


def test_skipping_a_pair_moves_no_other_to_another_fold(write, tmp_path):
    make_pictures(tmp_path, {"A": [1, 2], "B": [1]})
    rows = ["A 1 2", "A 1 2", "A 1 B 1", "A 1 B 1"] * 60
    rows[1], rows[6] = "A 1 3", "A 2 B 7"
    resolved = resolve_pairs(read_pairs(write("\n".join(rows)), folds=10), tmp_path)
    expected = [fold for fold in range(10) for _ in range(24)]
    assert resolved.fold_ids.tolist() == [fold for i, fold in enumerate(expected) if i not in (1, 6)]
    assert len(resolved.skipped) == 2
    assert resolved.skipped[0].startswith(f"line 2: {tmp_path}/A/A_0003")
    assert resolved.skipped[1].startswith(f"line 7: {tmp_path}/B/B_0007")


def test_too_many_missing_pictures_are_refused(write, tmp_path):
    make_pictures(tmp_path, {"Ann": [1, 2]})
    pairs = read_pairs(write(FOUR_PAIRS), folds=2)
    with pytest.raises(BadData) as caught:
        resolve_pairs(pairs, tmp_path)
    message = str(caught.value)
    assert "3 of 4 pairs name missing pictures, more than 1.00%" in message
    assert f"({tmp_path}/Bob/Bob_0002, {tmp_path}/Bob/Bob_0001)" in message
    assert "\n" not in message
    assert len(resolve_pairs(pairs, tmp_path, max_missing_fraction=0.75).pairs) == 1
