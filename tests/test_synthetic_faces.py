"""The embedded data set: the same bytes for the same seed, people who are kept apart, and pairs in LFW's form."""

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from towers.errors import BadData, StorageError, UserError

FOLDER = Path(__file__).parents[1] / "data" / "synthetic_faces"
sys.path.insert(0, str(FOLDER))

import face_law  # noqa: E402
import face_pictures  # noqa: E402
import raw_pixels  # noqa: E402
from face_drawing import Expression, draw_beard, draw_face, mouth_height  # noqa: E402
from face_geometry import Pose, smooth  # noqa: E402
from synthetic_faces import describe, draw_pairs, generate, write_sheet  # noqa: E402

TINY = {
    "train_people": 3,
    "images_per_person": 2,
    "test_people": 6,
    "test_images_per_person": 3,
    "image_size": 32,
    "seed": 5,
    "folds": 2,
    "pairs_per_fold": 4,
}


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    out = tmp_path_factory.mktemp("tiny") / "faces"
    assert generate(out, **TINY, processes=1)
    return out


@pytest.fixture(scope="module")
def verification(tmp_path_factory):
    out = tmp_path_factory.mktemp("verification") / "faces"
    sizes = {
        "train_people": 1,
        "images_per_person": 1,
        "test_people": 40,
        "test_images_per_person": 5,
        "image_size": 64,
    }
    generate(out, **sizes, folds=10, pairs_per_fold=30, processes=1)
    return out


def test_same_seed_gives_the_same_bytes_with_any_number_of_processes(tiny, tmp_path):
    generate(tmp_path / "again", **TINY, processes=1)
    generate(tmp_path / "two", **TINY, processes=2)
    assert contents(tmp_path / "again") == contents(tiny)
    assert contents(tmp_path / "two") == contents(tiny)


def test_another_seed_gives_other_pictures_people_and_pairs(tiny, tmp_path):
    generate(tmp_path / "other", **{**TINY, "seed": 6}, processes=1)
    assert not set(contents(tiny).values()) & set(contents(tmp_path / "other").values())


def test_layout_names_and_size(tiny):
    for part, people, images in (("train", 3, 2), ("test", 6, 3)):
        folders = sorted((tiny / part).iterdir())
        assert len(folders) == people
        for folder in folders:
            assert sorted(path.name for path in folder.iterdir()) == [
                f"{folder.name}_{i + 1:04d}.jpg" for i in range(images)
            ]
            for path in folder.iterdir():
                assert cv2.imread(str(path), cv2.IMREAD_UNCHANGED).shape == (32, 32, 3)
    assert sorted(path.name for path in tiny.iterdir()) == ["dataset.json", "pairs.txt", "test", "train"]


def test_dataset_json_holds_options_and_counts(tiny):
    assert json.loads((tiny / "dataset.json").read_text()) == describe(**TINY)
    assert describe(**TINY)["counts"] == {"train_images": 6, "test_images": 18, "pairs": 16}


def test_no_picture_and_no_person_is_in_train_and_test(tiny):
    train, test = ({folder.name for folder in (tiny / part).iterdir()} for part in ("train", "test"))
    assert not train & test
    pictures = [data for name, data in contents(tiny).items() if name.endswith(".jpg")]
    assert len(set(pictures)) == len(pictures)


def test_pairs_follow_lfw_and_are_distinct_within_folds_of_their_own_people(verification):
    header, *rows = (verification / "pairs.txt").read_text().splitlines()
    assert header == "10\t30"
    assert len(rows) == 2 * 10 * 30
    pairs, owner = set(), {}
    for number, row in enumerate(rows):
        fields = row.split("\t")
        fold, is_same = number // 60, number % 60 < 30
        assert len(fields) == (3 if is_same else 4)
        a, i, b, j = (fields[0], fields[1], fields[0], fields[2]) if is_same else fields
        assert (a == b) == is_same
        assert (a, i) != (b, j)
        pairs.add(frozenset([(a, i), (b, j)]))
        for name, index in ((a, i), (b, j)):
            assert (verification / "test" / name / f"{name}_{int(index):04d}.jpg").is_file()
            assert owner.setdefault(name, fold) == fold
    assert len(pairs) == len(rows)


def test_draw_pairs_can_take_every_pair_there_is():
    same, different = draw_pairs(3, 2, 3, np.random.default_rng(0))
    assert sorted(map(tuple, same)) == [(0, 0, 1), (1, 0, 1), (2, 0, 1)]
    assert (different[:, 0] < different[:, 2]).all()
    with pytest.raises(ValueError, match="3 same and 12 different"):
        draw_pairs(3, 2, 4, np.random.default_rng(0))


def test_raw_pixels_do_not_verify_people(verification):
    accuracies = raw_pixels.raw_pixel_accuracies(verification)
    assert max(accuracies.values()) < 0.75
    assert min(accuracies.values()) > 0.5


def test_fold_accuracy_equals_the_protocol_written_as_a_loop():
    rng = np.random.default_rng(0)
    same, fold = rng.random(120) < 0.5, np.repeat(np.arange(4), 30)
    distances = np.round(rng.normal(np.where(same, 1.0, 1.6), 0.5), 6)
    expected = []
    for held_out in range(4):
        train = [(d, s) for d, s, f in zip(distances, same, fold, strict=True) if f != held_out]
        right = {t: sum((d <= t) == s for d, s in train) for t in [-np.inf, *sorted(d for d, _ in train)]}
        threshold = max(right, key=right.get)
        test = [(d <= threshold) == s for d, s, f in zip(distances, same, fold, strict=True) if f == held_out]
        expected.append(np.mean(test))
    assert raw_pixels.fold_accuracy(distances, same, fold) == pytest.approx(np.mean(expected), abs=1e-12)


def test_people_obey_the_law_and_keep_their_distance():
    people = face_law.draw_people(60, seed=1)
    places = np.array([face_law.normalise(person) for person in people])
    assert places.min() >= 0
    assert places.max() <= 1
    for number, person in enumerate(people):
        others = np.delete(places, number, axis=0)
        assert face_law.distance(person, others).min() >= face_law.MIN_DISTANCE
    assert face_law.draw_people(20, seed=1) == people[:20]


def test_a_law_without_room_is_an_error(monkeypatch):
    monkeypatch.setattr(face_law, "MIN_DISTANCE", 0.9)
    monkeypatch.setattr(face_law, "MAX_DRAWS", 5)
    with pytest.raises(ValueError, match="no room for 40 people"):
        face_law.draw_people(40, seed=0)


def test_names_are_distinct_beyond_the_plain_ones():
    names = face_law.draw_names(4000, seed=0)
    assert len(set(names)) == 4000
    assert all(name.replace("_", "").isalpha() for name in names)
    with pytest.raises(ValueError, match="there are names for"):
        face_law.draw_names(face_law.MAX_PEOPLE + 1, seed=0)


def test_every_picture_of_a_person_is_drawn_from_the_same_factors(tmp_path, monkeypatch):
    drawn = []
    original = face_pictures.draw_face

    def record(image, person, pose, expression, clothes):
        drawn.append((person, pose))
        original(image, person, pose, expression, clothes)

    monkeypatch.setattr(face_pictures, "draw_face", record)
    generate(tmp_path / "faces", **TINY, processes=1)
    people = face_law.draw_people(9, seed=5)
    assert [person for person, _ in drawn] == [people[n] for n in range(9) for _ in range(2 if n < 3 else 3)]
    assert len({pose for _, pose in drawn}) == len(drawn)


@pytest.mark.parametrize("name", face_law.LAW)
def test_every_factor_is_seen(name):
    middle = face_law.Person(*(0.5 * (face_law.LOW + face_law.HIGH)).tolist())
    worn = middle._replace(
        beard=0.9, moustache=0.9, hair_length=0.8, mole_x=0.3, mole_size=0.045, glasses=0.9 if "glasses_" in name else 0
    )
    pictures = []
    for bound in face_law.LAW[name]:
        image = np.full((224, 224, 3), 90, np.uint8)
        pose = Pose(yaw=0.1, pitch=0, roll=0, scale=85, x=112, y=116)
        expression = Expression(smile=0, mouth_open=0, lids_open=1, brows=0, gaze_x=0, gaze_y=0)
        draw_face(image, worn._replace(**{name: bound}), pose, expression, clothes=np.array([40.0, 60, 90]))
        pictures.append(cv2.resize(image, (112, 112), interpolation=cv2.INTER_AREA).astype(int))
    assert (abs(pictures[0] - pictures[1]).max(-1) > 12).sum() >= 12


def test_every_corner_of_the_law_can_be_drawn():
    rng = np.random.default_rng(0)
    image = np.zeros((56, 56, 3), np.uint8)
    pose = Pose(yaw=0.4, pitch=-0.2, roll=0.1, scale=20, x=28, y=28)
    expression = Expression(smile=1, mouth_open=1, lids_open=1.1, brows=0, gaze_x=0, gaze_y=0)
    for _ in range(40):
        extremes = np.where(rng.random(len(face_law.LAW)) < 0.5, face_law.LOW, face_law.HIGH)
        draw_face(image, face_law.Person(*extremes.tolist()), pose, expression, clothes=np.array([40.0, 60, 90]))
    assert image.any()


def test_the_mouth_stays_above_a_short_chin():
    corner = face_law.Person(*face_law.HIGH.tolist())._replace(chin_height=0.86, beard=0.63)
    assert mouth_height(corner) < 0.8 * 0.86
    draw_beard(np.zeros((56, 56, 3), np.uint8), corner, Pose(yaw=0, pitch=0, roll=0, scale=20, x=28, y=28))


def test_smooth_passes_through_its_points():
    points = np.array([(0.0, 0), (1, 0.5), (2, 0), (1, -1)])
    assert np.allclose(smooth(points)[::6], points)
    curve = smooth(points, closed=False)
    assert np.allclose(curve[::6], points)
    assert len(curve) == 19


def test_second_call_does_nothing_and_other_options_are_refused(tiny):
    before = {path: path.stat().st_mtime_ns for path in tiny.rglob("*")}
    assert generate(tiny, **TINY, processes=1) is False
    with pytest.raises(BadData, match="other options"):
        generate(tiny, **{**TINY, "seed": 6}, processes=1)
    assert {path: path.stat().st_mtime_ns for path in tiny.rglob("*")} == before


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(BadData, match="not a generated data set"):
        generate(tmp_path, **TINY, processes=1)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_an_interrupted_run_leaves_nothing(tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("synthetic_faces.write_person", stop)
    with pytest.raises(KeyboardInterrupt):
        generate(tmp_path / "faces", **TINY, processes=1)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written"):
        generate(tmp_path / "file" / "faces", **TINY, processes=1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pairs_per_fold": 10}, "3 people x 3 images make 9 same and 27 different pairs"),
        ({"image_size": 8}, "--image_size 8: must be at least 28"),
        ({"folds": 0}, "--folds 0: must be at least 1"),
        ({"seed": -1}, "--seed -1: must be at least 0"),
        ({"train_people": 10**6}, "there are names for"),
    ],
)
def test_options_that_cannot_be_met_are_named(tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        generate(tmp_path / "faces", **{**TINY, **change}, processes=1)
    assert list(tmp_path.iterdir()) == []


def test_command_line(tmp_path):
    out, sheet = tmp_path / "faces", tmp_path / "sheet.jpg"
    command = [
        sys.executable,
        str(FOLDER / "prepare.py"),
        "--out_dir",
        str(out),
        "--sheet",
        str(sheet),
        "--processes",
        "1",
    ]
    command += [text for name, value in TINY.items() for text in (f"--{name}", str(value))]
    first = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "made: 6 train images, 18 test images, 16 pairs" in first.stdout
    assert cv2.imread(str(sheet)).shape == (6 * 32, 3 * 32, 3)
    second = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "already there, nothing to do" in second.stdout
    refused = subprocess.run([*command, "--seed", "9"], capture_output=True, text=True, check=False)
    assert refused.returncode == 65
    assert refused.stderr.count("\n") == 1


def test_a_sheet_that_cannot_be_written_is_a_storage_error(tiny, tmp_path):
    with pytest.raises(StorageError, match="cannot write the sheet"):
        write_sheet(tiny, tmp_path / "missing" / "sheet.jpg")
