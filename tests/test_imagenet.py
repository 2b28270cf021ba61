"""data/imagenet/sort_val.py on a small devkit and a heap of pictures."""

import tarfile

import numpy as np
import pytest
from conftest import run_python
from scipy.io import savemat

SCRIPT = "data/imagenet/sort_val.py"
TRUTH = "ILSVRC2012_validation_ground_truth.txt"


def name(number):
    return f"ILSVRC2012_val_{number:08}.JPEG"


@pytest.fixture
def imagenet(tmp_path):
    """Three classes and six pictures, whose bytes are their numbers; numbers and names of classes in other orders."""
    data = tmp_path / "devkit" / "data"
    data.mkdir(parents=True)
    synsets = np.array([(2, "n01440764"), (3, "n01443537"), (1, "n01484850")], [("ILSVRC2012_ID", "i4"), ("WNID", "O")])
    savemat(data / "meta.mat", {"synsets": synsets})
    (data / TRUTH).write_text("2\n1\n3\n3\n1\n2\n")
    heap = tmp_path / "heap"
    heap.mkdir()
    for number in range(1, 7):
        (heap / name(number)).write_bytes(b"%d" % number)
    (heap / "readme.txt").write_text("no picture")
    return tmp_path


WANTED = {"n01440764": [1, 6], "n01484850": [2, 5], "n01443537": [3, 4]}


@pytest.mark.parametrize("packed", [False, True])
def test_every_picture_lies_under_its_class(imagenet, packed):
    val = imagenet / "heap"
    if packed:
        val = imagenet / "val.tar"
        with tarfile.open(val, "w") as archive:
            archive.add(imagenet / "heap", arcname=".")
    out = imagenet / "val"
    said = run_python(SCRIPT, "--val", val, "--devkit", imagenet / "devkit", "--out_dir", out).stdout
    assert {
        folder.name: sorted(int(path.read_bytes()) for path in folder.iterdir()) for folder in out.iterdir()
    } == WANTED
    assert all(path.name == name(int(path.read_bytes())) for path in out.glob("*/*"))
    assert "6 pictures of 3 classes" in said
    assert "1 other file(s) left out, such as readme.txt" in said


def test_missing_pictures_are_counted(imagenet):
    (imagenet / "heap" / name(3)).unlink()
    out = imagenet / "val"
    said = run_python(SCRIPT, "--val", imagenet / "heap", "--devkit", imagenet / "devkit", "--out_dir", out).stdout
    assert "1 of the devkit's 6 pictures are not there" in said


@pytest.mark.parametrize(
    ("spoil", "code", "message"),
    [
        (lambda root: (root / "devkit/data/meta.mat").write_bytes(b"no matrix"), 65, "meta.mat"),
        (lambda root: (root / "devkit/data" / TRUTH).write_text("7"), 65, "is not the devkit's"),
        (lambda root: (root / "devkit/data" / TRUTH).unlink(), 65, TRUTH),
        (lambda root: (root / "heap" / name(7)).write_bytes(b"7"), 65, "classes of 6 pictures"),
        (
            lambda root: [path.unlink() for path in (root / "heap").glob("*.JPEG")],
            65,
            "no ILSVRC2012_val_00000001.JPEG",
        ),
        (lambda root: (root / "val").mkdir() or (root / "val/x").touch(), 2, "is not empty"),
        (lambda root: (root / "heap").rename(root / "elsewhere"), 2, "no such folder"),
    ],
)
def test_mistakes_are_named(imagenet, spoil, code, message):
    spoil(imagenet)
    arguments = ["--val", imagenet / "heap", "--devkit", imagenet / "devkit", "--out_dir", imagenet / "val"]
    result = run_python(SCRIPT, *arguments, check=False)
    assert result.returncode == code
    assert message in result.stderr.splitlines()[-1]


def test_a_damaged_tar(imagenet):
    (imagenet / "heap" / name(1)).write_bytes(b"1" * 5000)
    with tarfile.open(imagenet / "val.tar", "w") as archive:
        archive.add(imagenet / "heap" / name(1), arcname=name(1))
    whole = (imagenet / "val.tar").read_bytes()
    (imagenet / "val.tar").write_bytes(whole[:1700])
    arguments = ["--val", imagenet / "val.tar", "--devkit", imagenet / "devkit", "--out_dir", imagenet / "val"]
    result = run_python(SCRIPT, *arguments, check=False)
    assert (result.returncode, "not a whole tar" in result.stderr) == (65, True)
