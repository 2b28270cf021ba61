"""The tools that convert data sets, and the scripts on what they make, in processes of their own."""

import json
import pickle
import re
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest
from conftest import ROOT, make_faces, metrics_of, run_python
from datasets.pictures import face, jpeg, png_bomb
from datasets.record_reference import pictures_of

from towers.datasets.folder import read_folder
from towers.datasets.packs import read_pack, write_pack
from towers.datasets.record_writing import write_records
from towers.datasets.records import read_records


def tool(name, *arguments, check=True):
    return run_python(ROOT / "scripts" / name, *arguments, check=check)


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    return make_faces(tmp_path_factory.mktemp("faces"))


@pytest.fixture(scope="module")
def rec(faces, tmp_path_factory):
    """The training people as InsightFace's folder."""
    out = tmp_path_factory.mktemp("rec") / "faces_mine"
    result = tool("make_rec.py", "--data-dir", faces / "train", "--out-dir", out)
    assert "60 pictures, 6 classes" in result.stdout
    assert "60 of 60 pictures written" in result.stderr
    return out


@pytest.fixture(scope="module")
def pack(faces, tmp_path_factory):
    out = tmp_path_factory.mktemp("bin") / "lfw.bin"
    result = tool("make_bin.py", "--lfw_dir", faces / "lfw", "--lfw_pairs", faces / "pairs.txt", "--out", out)
    assert "24 pairs of 26 pictures, 2 folds" in result.stdout
    return out


def test_a_rec_holds_the_pictures_of_the_folder_untouched(faces, rec):
    folder = read_folder(faces / "train")
    expected = list(zip(folder.labels.tolist(), folder.reader(range(60))(), strict=True))
    assert pictures_of((rec / "train.rec").read_bytes(), (rec / "train.idx").read_text()) == expected
    assert (rec / "property").read_text() == "6,32,32\n"
    assert (rec / "class_names.txt").read_text().splitlines()[5] == "5\tTrain_5"


def test_there_and_back(rec, tmp_path):
    result = tool("rec2img.py", "--in-folder", rec, "--out-folder", tmp_path / "images", "--val_share", "0.2")
    assert "60 pictures of 6 classes; train_list.txt, and val_list.txt with 12 of them" in result.stdout
    source = read_records(rec)
    for record in range(60):
        path = tmp_path / "images" / str(source.labels[record]) / f"{record + 1}.jpg"
        assert [path.read_bytes()] == source.reader([record])()
    lists = {name: (tmp_path / "images" / name).read_text().splitlines() for name in ("train_list.txt", "val_list.txt")}
    assert len(lists["train_list.txt"]) == 48
    assert sorted(int(line.split()[1]) for line in lists["val_list.txt"]) == [label for label in range(6) for _ in "12"]
    every = sorted(sum(lists.values(), []))
    assert every == sorted(f"{source.labels[record]}/{record + 1}.jpg {source.labels[record]}" for record in range(60))
    assert len(read_folder(tmp_path / "images")) == 60

    tool("make_rec.py", "--data_dir", tmp_path / "images/train_list.txt", "--out_dir", tmp_path / "flat", "--flat")
    flat = pictures_of((tmp_path / "flat/train.rec").read_bytes(), (tmp_path / "flat/train.idx").read_text())
    kept = [
        record for record in range(60) if f"{source.labels[record]}/{record + 1}.jpg" in str(lists["train_list.txt"])
    ]
    assert sorted(flat) == sorted((int(source.labels[record]), *source.reader([record])()) for record in kept)


def test_records_that_are_no_pictures(tmp_path):
    write_records(
        tmp_path,
        lambda record: b"text" if record == 3 else jpeg(face(record)),
        np.arange(8) % 2,
        num_classes=2,
        size=(16, 16),
    )
    arguments = ["--in_folder", tmp_path, "--out_folder", tmp_path / "images"]
    refused = tool("rec2img.py", *arguments, check=False)
    assert refused.returncode == 65
    assert re.search(r"1 of 8 records are no pictures, .*record \d at byte \d+: neither JPEG nor PNG", refused.stderr)
    assert not (tmp_path / "images").exists()
    assert not list(tmp_path.glob(".images*"))
    allowed = tool("rec2img.py", *arguments, "--max_bad_fraction", "0.2")
    assert "7 pictures of 2 classes" in allowed.stdout
    assert "1 records left out, the first: " in allowed.stdout


def test_pictures_of_several_sizes(tmp_path):
    for name, side in (("a/1", 16), ("a/2", 20), ("b/1", 16)):
        (tmp_path / "faces" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "faces" / f"{name}.jpg").write_bytes(jpeg(face(1, side, side)))
    arguments = ["--data_dir", tmp_path / "faces", "--out_dir", tmp_path / "rec"]
    refused = tool("make_rec.py", *arguments, check=False)
    assert refused.returncode == 65
    assert "faces/a/2.jpg: 20 x 20 pixels where the first picture has 16 x 16; give --image_size" in refused.stderr
    assert not list(tmp_path.glob("*rec*"))
    tool("make_rec.py", *arguments, "--image_size", 16)
    source = read_records(tmp_path / "rec")
    first, second, third = source.reader(range(3))()
    assert first == third == jpeg(face(1))
    assert cv2.imdecode(np.frombuffer(second, np.uint8), 1).shape == (16, 16, 3)
    assert (tmp_path / "rec/property").read_text() == "2,16,16\n"
    again = tool("make_rec.py", *arguments, check=False)
    assert again.returncode == 2
    assert "is there already" in again.stderr


def test_a_stopped_tool_leaves_nothing(tmp_path):
    picture = jpeg(face(0))
    write_records(tmp_path, lambda record: picture, np.zeros(50_000, int), num_classes=1, size=(16, 16))
    command = [
        sys.executable,
        ROOT / "scripts/rec2img.py",
        "--in_folder",
        tmp_path,
        "--out_folder",
        tmp_path / "images",
    ]
    process = subprocess.Popen(command, env={"PYTHONPATH": str(ROOT / "src")}, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob(".images*/0/*.jpg")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143
    assert sorted(path.name for path in tmp_path.iterdir()) == ["property", "train.idx", "train.rec"]


def test_a_missing_index_is_made_anew(rec, tmp_path):
    data = (rec / "train.rec").read_bytes()
    (tmp_path / "train.rec").write_bytes(data)
    assert "67 records" in tool("index_rec.py", tmp_path / "train.rec").stdout
    assert (tmp_path / "train.idx").read_text() == (rec / "train.idx").read_text()
    (tmp_path / "train.rec").write_bytes(data[:-6])
    (tmp_path / "train.idx").write_text("old")
    cut = tool("index_rec.py", tmp_path, check=False)
    assert cut.returncode == 65
    assert re.search(r"record \d+ at byte \d+: cut: the file ends within the record", cut.stderr)
    assert (tmp_path / "train.idx").read_text() == "old"


def test_a_pack_has_the_pairs_in_the_order_of_their_folds(faces, pack):
    pictures, same = pickle.loads(pack.read_bytes())
    lines = [line.split() for line in (faces / "pairs.txt").read_text().splitlines()[1:]]
    names = [((w[0], w[1]), (w[0], w[2])) if len(w) == 3 else ((w[0], w[1]), (w[2], w[3])) for w in lines]
    expected = [
        (faces / f"lfw/{name}/{name}_{int(number):04}.jpg").read_bytes() for pair in names for name, number in pair
    ]
    assert same == [len(words) == 3 for words in lines]
    assert pictures == expected


def test_verify_data_on_records_and_packs(rec, pack, tmp_path):
    clean = tool("verify_data.py", "--data_dir", rec, "--bin", pack, "--processes", 2)
    assert "train: 60 pictures of 6 people, 10 to 10 each" in clean.stdout
    assert "test: 48 pictures of 1 people" in clean.stdout
    alone = tool("verify_data.py", "--bin", pack, "--processes", 1)
    assert "pack: 48 pictures" in alone.stdout
    assert "people of train" not in alone.stdout

    data = bytearray((rec / "train.rec").read_bytes())
    places = dict(line.split() for line in (rec / "train.idx").read_text().splitlines())
    data[int(places["7"])] ^= 1
    data[int(places["9"]) + 12 : int(places["9"]) + 16] = np.float32(np.nan).tobytes()
    start = int(places["11"]) + 32
    data[start : start + 30] = bytes(30)
    (tmp_path / "train.rec").write_bytes(data)
    (tmp_path / "train.idx").write_text((rec / "train.idx").read_text())
    source = read_records(rec)
    write_pack(tmp_path / "leak.bin", [*source.reader([0, 1])(), png_bomb(), source.reader([3])()[0]], [True, False])
    faulty = tool(
        *("verify_data.py", "--data_dir", tmp_path, "--bin", tmp_path / "leak.bin", "--json", tmp_path / "report.json"),
        check=False,
    )
    assert faulty.returncode == 65
    assert "broken records: 2\n" in faulty.stdout
    assert f"  record 7 at byte {places['7']}: no record begins there" in faulty.stdout
    assert f"  record 9 at byte {places['9']}: its label nan is not a number" in faulty.stdout
    assert f"train.rec, record 11 at byte {places['11']}: neither JPEG nor PNG" in faulty.stdout
    assert "leak.bin, picture 2 (pair 1): 30000 x 30000 pixels, more than" in faulty.stdout
    assert "duplicates between train and test: 3" in faulty.stdout
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["broken_records"] == 2
    assert len(report["unreadable"]) == 2


def test_verify_data_needs_to_be_told_what(pack):
    assert "give --data_dir, or --bin alone" in tool("verify_data.py", check=False).stderr
    both = tool("verify_data.py", "--data_dir", "x", "--lfw_dir", "y", "--bin", pack, check=False)
    assert both.returncode == 2


SMALL = [
    *("--network", "small", "--image_size", "28", "--embedding_size", "16", "--batch_size", "8", "--max_steps", "6"),
    *("--log_every", "1", "--learning_rate", "0.02", "--deterministic", "--validate_every_n_epochs", "0"),
]


@pytest.fixture(scope="module")
def trained(rec, tmp_path_factory):
    """A run on the .rec with pictures held out and filtered."""
    run_dir = tmp_path_factory.mktemp("runs") / "rec"
    run_python(
        "train_softmax.py", "--data_dir", rec, "--run_dir", run_dir, *SMALL, "--validation_set_split_ratio", "0.2"
    )
    return run_dir


def test_a_rec_is_trained_on_with_pictures_held_out(trained):
    assert metrics_of(trained, "validation")[-1]["val_accuracy"] >= 0
    assert len(metrics_of(trained)) == 6


@pytest.mark.slow
def test_training_on_a_rec_a_folder_and_a_list_is_the_same(trained, faces, rec, tmp_path):
    losses = [line["loss"] for line in metrics_of(trained)]
    lines = [f"{path.relative_to(faces)} {path.parent.name[-1]}" for path in sorted(faces.glob("train/*/*.jpg"))]
    (faces / "list.txt").write_text("\n".join(lines))
    for kind, data in (("folder", faces / "train"), ("list", faces / "list.txt")):
        options = ["--data_dir", data, "--run_dir", tmp_path / kind, *SMALL, "--validation_set_split_ratio", "0.2"]
        run_python("train_softmax.py", *options)
        assert [line["loss"] for line in metrics_of(tmp_path / kind)] == losses


def test_validation_on_a_pack_gives_what_the_folder_gives(trained, faces, pack, tmp_path):
    of_folder = run_python(
        *("validate_on_lfw.py", "--model", trained, "--lfw_dir", faces / "lfw", "--lfw_pairs", faces / "pairs.txt")
    )
    options = ["validate_on_lfw.py", "--model", trained, "--bin", pack]
    of_pack = run_python(*options, "--lfw_nrof_folds", 2, "--json", tmp_path / "figures.json")
    assert of_pack.stdout == of_folder.stdout
    assert "Pairs used: 24" in of_pack.stdout
    assert json.loads((tmp_path / "figures.json").read_text())["pairs_used"] == 24
    both = run_python(*options, "--lfw_dir", faces / "lfw", check=False)
    assert both.returncode == 2
    assert "--bin has its own pictures and pairs" in both.stderr


def test_a_hostile_pack_and_a_broken_rec_end_with_65(trained, rec, tmp_path):
    marker = tmp_path / "marker"
    (tmp_path / "lfw.bin").write_bytes(b"cos\nsystem\n(S'touch " + str(marker).encode() + b"'\ntR.")
    hostile = run_python("validate_on_lfw.py", "--model", trained, "--bin", tmp_path / "lfw.bin", check=False)
    assert hostile.returncode == 65
    assert "wants to call os.system" in hostile.stderr
    assert not marker.exists()
    (tmp_path / "train.rec").write_bytes((rec / "train.rec").read_bytes()[:2000])
    (tmp_path / "train.idx").write_text((rec / "train.idx").read_text())
    broken = run_python("train_softmax.py", "--data_dir", tmp_path, "--run_dir", tmp_path / "run", *SMALL, check=False)
    assert broken.returncode == 65
    assert re.search(r"train\.rec: record \d+ at byte \d+: ", broken.stderr)
    assert len(broken.stderr.strip().splitlines()) == 1


def test_unreadable_pictures_of_a_pack_cost_their_pairs_only(trained, pack, tmp_path):
    whole = read_pack(pack)
    pictures = whole.pictures * 5
    pictures[1] = b"<html>"
    write_pack(tmp_path / "lfw.bin", pictures, whole.same.tolist() * 5)
    result = run_python(
        *("validate_on_lfw.py", "--model", trained, "--bin", tmp_path / "lfw.bin", "--lfw_nrof_folds", 5)
    )
    assert "Pairs used: 119" in result.stdout
    assert "Pairs skipped: 1; the first: " in result.stdout
    assert "lfw.bin, picture 1 (pair 0): neither JPEG nor PNG" in result.stdout
