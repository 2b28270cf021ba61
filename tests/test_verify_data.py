"""Data sets with planted faults, and what the audit of data says of them."""

import json

import cv2
import numpy as np
import pytest
from conftest import ROOT, run_python
from datasets.pictures import BROKEN, face, jpeg

from towers.datasets import inspection
from towers.datasets.folder import read_folder
from towers.errors import BadData, UserError

SIDE = 48


def write(path, encoded):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded)


def encoded_face(seed):
    return jpeg(face(seed, SIDE, SIDE))


@pytest.fixture
def folders(tmp_path):
    """Two clean folders: 4 people x 3 pictures to train on, 2 others x 2 to test on."""
    for part, people, count, first in (("train", "ABCD", 3, 0), ("test", "YZ", 2, 100)):
        for number, person in enumerate(people):
            for index in range(count):
                write(tmp_path / part / person / f"{index}.jpg", encoded_face(first + 10 * number + index))
    return tmp_path


def inspect(folders, **options):
    return inspection.inspect(read_folder(folders / "train"), read_folder(folders / "test"), **options)


def below(folders, findings):
    """(scope, paths below the folder) of each finding."""
    start = len(str(folders)) + 1
    return [(finding["scope"], [path[start:] for path in finding["paths"]]) for finding in findings]


def test_clean_data(folders):
    report = inspect(folders)
    assert not report.faulty
    assert report.parts["train"] == {"pictures": 12, "people": 4, "fewest": 3, "most": 3}
    assert report.parts["test"] == {"pictures": 4, "people": 2, "fewest": 2, "most": 2}
    findings = report.to_json()
    assert not any(findings[name] for name in ("unreadable", "duplicates", "near_duplicates", "people_in_both"))
    assert findings["too_few"] == []
    assert [line for line in report.lines(10) if line.startswith("  ")] == []


def test_every_kind_of_unreadable_picture_is_named(folders):
    for number, encoded in enumerate(BROKEN.values()):
        write(folders / "train" / "A" / f"broken {number}.jpg", encoded)
    (folders / "train" / "B" / "loose.jpg").symlink_to("nowhere.jpg")
    report = inspect(folders)
    assert report.faulty
    assert len(report.unreadable) == len(BROKEN) + 1
    assert report.unreadable[-1]["path"].endswith("B/loose.jpg")
    assert "No such file" in report.unreadable[-1]["reason"]
    assert report.duplicates == []


@pytest.mark.parametrize(
    ("copy", "scope", "faulty"),
    [
        ("train/C/copy.jpg", "across people", True),
        ("train/A/copy.jpg", "within a person", False),
        ("test/Y/copy.jpg", "between train and test", True),
        ("test/A/copy.jpg", "between train and test", True),
    ],
)
def test_copies(folders, copy, scope, faulty):
    original = encoded_face(1)
    write(folders / copy, original)
    same_bytes = inspect(folders)
    assert below(folders, same_bytes.duplicates) == [(scope, ["train/A/1.jpg", copy])]
    assert same_bytes.duplicates[0]["same_bytes"]
    assert same_bytes.faulty is faulty

    pixels = cv2.imdecode(np.frombuffer(original, np.uint8), cv2.IMREAD_COLOR)
    write(folders / copy, cv2.imencode(".png", pixels)[1].tobytes())
    same_pixels = inspect(folders)
    assert below(folders, same_pixels.duplicates) == [(scope, ["train/A/1.jpg", copy])]
    assert not same_pixels.duplicates[0]["same_bytes"]
    assert same_pixels.faulty is faulty
    assert same_pixels.near_duplicates == []

    write(folders / copy, jpeg(cv2.resize(face(1, SIDE, SIDE), (40, 40))))
    near = inspect(folders)
    assert near.duplicates == []
    assert below(folders, near.near_duplicates) == [(scope, ["train/A/1.jpg", copy])]
    assert not near.faulty


def test_blank_pictures_are_duplicates_but_not_near_ones(folders):
    for person, grey in (("A", 100), ("B", 100), ("C", 101)):
        write(folders / "train" / person / "blank.jpg", jpeg(np.full((SIDE, SIDE, 3), grey, np.uint8)))
    report = inspect(folders)
    assert below(folders, report.duplicates) == [("across people", ["train/A/blank.jpg", "train/B/blank.jpg"])]
    assert report.near_duplicates == []


def test_people_with_too_few_readable_pictures(folders):
    write(folders / "train" / "C" / "0.jpg", b"")
    write(folders / "train" / "E" / "0.jpg", encoded_face(70))
    too_few = inspect(folders, images_per_person=3).too_few
    assert too_few == [{"name": "C", "pictures": 2}, {"name": "E", "pictures": 1}]


def test_people_in_both_by_name(folders):
    write(folders / "test" / "B" / "0.jpg", encoded_face(71))
    report = inspect(folders)
    assert report.people_in_both == ["B"]
    assert not report.faulty


def test_a_folder_inside_the_other(folders):
    train = read_folder(folders / "train")
    with pytest.raises(UserError, match="hold the same pictures"):
        inspection.inspect(train, train)
    with pytest.raises(UserError, match="hold the same pictures"):
        inspection.inspect(read_folder(folders), train)


def test_progress_and_chunks(folders, monkeypatch):
    monkeypatch.setattr(inspection, "CHUNK", 5)
    write(folders / "train" / "D" / "broken.jpg", b"")
    seen = []
    report = inspect(folders, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(5, 17), (10, 17), (13, 17), (17, 17)]
    assert [item["path"].rsplit("/", 1)[1] for item in report.unreadable] == ["broken.jpg"]


def test_a_killed_process_is_an_error_not_a_hang(folders, monkeypatch):
    class Pool:
        def __init__(self, *arguments):
            pass

        def __enter__(self):
            raise inspection.BrokenProcessPool("gone")

        def __exit__(self, *reason):
            pass

    monkeypatch.setattr(inspection, "ProcessPoolExecutor", Pool)
    with pytest.raises(BadData, match="try --processes 1"):
        inspect(folders, processes=2)


def test_the_script(folders):
    script, out = ROOT / "scripts" / "verify_data.py", folders / "report.json"
    both = ["--data_dir", folders / "train", "--lfw-dir", folders / "test", "--json", out]
    clean = run_python(script, *both, "--processes", 2)
    assert "train: 12 pictures of 4 people, 3 to 3 each" in clean.stdout
    assert "16 of 16 pictures read" in clean.stderr
    assert json.loads(out.read_text())["faulty"] is False

    for person in "BCD":
        write(folders / "train" / person / "copy.jpg", encoded_face(person == "D"))
    write(folders / "train" / "A" / "empty.jpg", b"")
    faulty = run_python(script, *both, "--show", 1, check=False)
    assert faulty.returncode == 65
    assert "unreadable pictures: 1\n" in faulty.stdout
    assert f"  {folders / 'train/A/empty.jpg'}: empty\n" in faulty.stdout
    assert "duplicates across people: 2\n  same bytes: " in faulty.stdout
    assert "  and 1 more\n" in faulty.stdout
    report = json.loads(out.read_text())
    assert report["faulty"] is True
    assert len(report["duplicates"]) == 2

    missing = run_python(script, "--data_dir", folders / "nowhere", check=False)
    assert missing.returncode == 65
    assert missing.stderr.startswith("verify_data.py: ")
    assert "Traceback" not in missing.stderr
    unwritable = run_python(script, "--data_dir", folders / "test", "--json", folders / "no/such/report", check=False)
    assert unwritable.returncode == 74
