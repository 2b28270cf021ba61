"""data/mini_imagenet/prepare.py: names, what is missing, splits, and the drawn stand-in."""

import csv
import importlib.util
import io
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import ROOT, run_python

from towers.datasets.folder import read_folder
from towers.errors import BadData, UserError


def load_prepare():
    """The program as a module of a name of its own: other data sets have a prepare.py too."""
    path = ROOT / "data" / "mini_imagenet" / "prepare.py"
    spec = importlib.util.spec_from_file_location("prepare_mini_imagenet", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


prepare = load_prepare()
textured_shapes = prepare.textured_shapes

WNIDS = ("n01532829", "n02110341")
NUMBERS = (20, 3, 1000, 111, 7, 18, 5, 9, 40, 41)


def make_imagenet(folder, classes=WNIDS):
    """Ten files a class, whose bytes tell them apart."""
    for wnid in classes:
        (folder / wnid).mkdir(parents=True)
        for number in NUMBERS:
            (folder / wnid / f"{wnid}_{number}.JPEG").write_bytes(f"{wnid} {number}".encode())
    return folder


def make_tar(folder, path):
    with tarfile.open(path, "w") as outer:
        for wnid in sorted(entry.name for entry in folder.iterdir()):
            inside = io.BytesIO()
            with tarfile.open(fileobj=inside, mode="w") as inner:
                for file in sorted((folder / wnid).iterdir()):
                    inner.add(file, file.name)
            member = tarfile.TarInfo(f"{wnid}.tar")
            member.size = inside.tell()
            inside.seek(0)
            outer.addfile(member, inside)
    return path


def make_csv(folder, rows, header="filename,label"):
    folder.mkdir(exist_ok=True)
    (folder / "train.csv").write_text("\n".join([header, *rows]) + "\n")
    return folder


def run(out, *options):
    return prepare.prepare(prepare.parse_args(["--out_dir", str(out), *map(str, options)]))


def split_of(out):
    with (out / "split.csv").open() as file:
        return list(csv.DictReader(file))


RANKED = [f"{wnid}{rank:08}.jpg,{wnid}" for wnid in WNIDS for rank in range(1, 9)]


@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_ranks_are_those_of_the_numbers_in_order(tmp_path, kind):
    imagenet = make_imagenet(tmp_path / "imagenet")
    if kind == "tar":
        imagenet = make_tar(imagenet, tmp_path / "train.tar")
    notes = run(tmp_path / "out", "--csv_dir", make_csv(tmp_path / "csv", RANKED), "--imagenet", imagenet)
    names = {Path(row["file"]).name for row in split_of(tmp_path / "out")}
    assert names == {f"{wnid}_{number}.JPEG" for wnid in WNIDS for number in sorted(NUMBERS)[:8]}
    assert any("732 files" in note and "ranks" in note for note in notes)
    for row in split_of(tmp_path / "out"):
        link = tmp_path / "out" / row["split"] / row["class"] / Path(row["file"]).name
        assert link.read_bytes().decode().split()[0] == row["class"]
        assert link.is_symlink()


def test_real_names_and_stray_rows(tmp_path):
    rows = [f"{wnid}_{number}.JPEG,{wnid}" for wnid in WNIDS for number in NUMBERS[:8]]
    rows += ["n01532829_999.JPEG,n01532829", "n09999999_1.JPEG,n09999999", "stray.txt,n01532829", "lonely"]
    rows += ["n01532829_20.JPEG,n01532829", "n01532829_9.JPEG,n02110341", "n0153282900000099.jpg,n01532829"]
    csv_dir = make_csv(tmp_path / "csv", rows, header="filename,class")
    notes = "\n".join(run(tmp_path / "out", "--csv_dir", csv_dir, "--imagenet", make_imagenet(tmp_path / "i")))
    for part in (
        "1 row(s) left out: there is no such file: train.csv:18: n01532829_999.JPEG",
        "1 row(s) left out: the class is not among the ImageNet files: train.csv:19",
        "the name is not understood; names are n01532829_10028.JPEG",
        "1 row(s) left out: no two columns: train.csv:21: lonely",
        "1 row(s) left out: named before",
        "the class is not that of the name",
        "n0153282900000099.jpg is number 99 of 10",
        "rank, from 1,",
    ):
        assert part in notes
    assert len(split_of(tmp_path / "out")) == 16


def test_a_tar_without_a_class_says_so(tmp_path):
    archive = make_tar(make_imagenet(tmp_path / "i"), tmp_path / "train.tar")
    csv_dir = make_csv(tmp_path / "csv", [*RANKED, "n0999999900000001.jpg,n09999999"])
    notes = run(tmp_path / "out", "--csv_dir", csv_dir, "--imagenet", archive)
    assert any("the class is not among the ImageNet files" in note for note in notes)
    archive.write_bytes(archive.read_bytes()[:3000])
    with pytest.raises(BadData, match="tar"):
        run(tmp_path / "cut", "--csv_dir", csv_dir, "--imagenet", archive)


def make_folder(folder, counts):
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            (folder / name / f"{number}.jpg").write_bytes(f"{name} {number}".encode())
    return folder


def test_any_folder_is_split_within_classes_and_again_alike(tmp_path):
    folder = make_folder(tmp_path / "pictures", {"a": 10, "b": 20, "c/d": 30})
    run(tmp_path / "one", "--folder", folder)
    run(tmp_path / "two", "--folder", folder)
    assert (tmp_path / "one/split.csv").read_bytes() == (tmp_path / "two/split.csv").read_bytes()
    run(tmp_path / "three", "--folder", folder, "--seed", 1)
    assert (tmp_path / "one/split.csv").read_bytes() != (tmp_path / "three/split.csv").read_bytes()
    train, test = read_folder(tmp_path / "one/train"), read_folder(tmp_path / "one/test")
    assert train.class_names == test.class_names == ["a", "b", "c/d"]
    assert np.bincount(train.labels).tolist() == [7, 14, 21]
    assert np.bincount(test.labels).tolist() == [3, 6, 9]
    assert not set(train.files) & set(test.files)
    assert "already there" in run(tmp_path / "one", "--folder", folder)[0]
    run(tmp_path / "one", "--folder", folder, "--split", "1:1")
    assert len(read_folder(tmp_path / "one/train")) == 30


def test_the_same_picture_is_never_on_both_sides(tmp_path):
    folder = make_folder(tmp_path / "pictures", {"a": 6, "b": 6})
    (folder / "a/copy.jpg").write_bytes(b"a 0")
    (folder / "b/copy.jpg").write_bytes(b"a 1")
    notes = run(tmp_path / "out", "--folder", folder)
    assert notes[0].startswith("2 picture(s) left out, the same bytes as another")
    assert len(split_of(tmp_path / "out")) == 12


def test_classes_of_one_picture(tmp_path):
    folder = make_folder(tmp_path / "pictures", {"a": 10, "b": 10, "single": 1})
    with pytest.raises(BadData, match="1 class.* with one picture cannot be split: single"):
        run(tmp_path / "out", "--folder", folder)
    assert not (tmp_path / "out").exists()
    assert list(tmp_path.iterdir()) == [folder]
    notes = run(tmp_path / "out", "--folder", folder, "--min_images_per_class", 2)
    assert "1 class(es) left out with fewer than 2 pictures: single" in notes


@pytest.mark.parametrize("split", ["7", "7:0", "a:b", "-1:2", "7:3:1", "inf:1", "nan:1"])
def test_wrong_splits_are_refused(tmp_path, split):
    with pytest.raises(UserError, match="--split"):
        run(tmp_path / "out", "--folder", make_folder(tmp_path / "p", {"a": 4, "b": 4}), f"--split={split}")


def test_a_split_that_starves_a_class_is_refused(tmp_path):
    folder = make_folder(tmp_path / "p", {"a": 40, "b": 4})
    with pytest.raises(BadData, match="more even --split"):
        run(tmp_path / "out", "--folder", folder, "--split", "30:1")


def test_a_foreign_folder_is_left_alone(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("years")
    with pytest.raises(UserError, match="not made by this program"):
        run(tmp_path / "mine", "--folder", make_folder(tmp_path / "p", {"a": 4, "b": 4}))
    assert (tmp_path / "mine/thesis.txt").read_text() == "years"


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ([], "give one of --synthetic"),
        (["--synthetic", "--folder", "x"], "give one of"),
        (["--csv_dir", "x"], "go together"),
        (["--csv_dir", "/nowhere", "--imagenet", "/nowhere"], "no train.csv"),
        (["--synthetic", "--classes", "101"], "2 to 100"),
    ],
)
def test_wrong_choices_are_refused(tmp_path, options, part):
    with pytest.raises(UserError, match=part):
        run(tmp_path / "out", *options)


def test_the_stand_in_goes_the_way_of_the_real_files(tmp_path):
    options = ["data/mini_imagenet/prepare.py", "--synthetic", "--classes", "12", "--images_per_class", "5"]
    for name in ("one", "two"):
        result = run_python(*options, "--out_dir", tmp_path / name)
        assert "made: 42 train and 18 test pictures of 12 classes" in result.stdout
    assert "nothing to do" in run_python(*options, "--out_dir", tmp_path / "one").stdout
    files = sorted((tmp_path / "one").rglob("*.*"))
    assert len([file for file in files if file.suffix == ".JPEG"]) == 2 * 60
    for file in files:
        if file.is_file() and file.name != "dataset.json":
            assert file.read_bytes() == (tmp_path / "two" / file.relative_to(tmp_path / "one")).read_bytes()
    sizes = {cv2.imread(str(file)).shape for file in (tmp_path / "one/train").rglob("*.JPEG")}
    assert len(sizes) > 20
    assert all(100 <= side <= 200 for size in sizes for side in size[:2])
    with (tmp_path / "one/csv/train.csv").open() as file:
        first = next(csv.DictReader(file))
    assert first == {"filename": "n9900000100000001.jpg", "label": "n99000001"}
    moved = (tmp_path / "one").rename(tmp_path / "moved")
    assert len(read_folder(moved / "train")) == 42
    assert all((moved / "train" / file).exists() for file in read_folder(moved / "train").files)


def test_drawn_classes_differ_by_shape_and_texture_only():
    assert len(set(textured_shapes.CLASSES)) == 100
    assert not np.array_equal(textured_shapes.draw(0, 3, 0), textured_shapes.draw(0, 3, 1))
    means = np.array([[textured_shapes.draw(0, label, i).mean((0, 1)) for i in range(12)] for label in (0, 55)])
    spread = means.std(axis=1).mean()
    assert np.abs(means[0].mean(0) - means[1].mean(0)).max() < 2 * spread
