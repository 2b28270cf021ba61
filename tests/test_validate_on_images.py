"""Classification as a user runs it: training with --val_dir, validate_on_images.py, and TensorBoard's curves of it."""

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest
from conftest import ROOT, make_faces, metrics_of, run_python

from towers import export, options
from towers.errors import BadData, StorageError, UserError
from towers.runs import pictures

CLASSES = 6
SMALL = ["--network", "small", "--image_size", "28", "--embedding_size", "16", "--learning_rate", "0.05"]
GOOGLENET = ["--network", "googlenet", "--image_size", "65", "--learning_rate", "0.01"]
PANEL_WIDTH = 360
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Six classes of ten pictures: eight in ``train``, two in ``test``."""
    folder = make_faces(tmp_path_factory.mktemp("images"))
    for person in range(CLASSES):
        test = folder / "test" / f"Train_{person}"
        test.mkdir(parents=True)
        for number in (9, 10):
            path = folder / "train" / f"Train_{person}" / f"Train_{person}_{number:04}.jpg"
            path.rename(test / path.name)
    return folder


def train(images, run_dir, *options, check=True):
    return run_python(
        *("train_softmax.py", "--data_dir", images / "train", "--run_dir", run_dir, "--batch_size", "8"),
        *("--log_every", "2", "--validate_every_n_epochs", "0", *options),
        check=check,
    )


@pytest.fixture(scope="module")
def trained(images, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("runs") / "trained"
    options = [*SMALL, "--val_dir", images / "test", "--towers", "2", "--max_epochs", "10", "--label_smoothing", "0.1"]
    result = train(images, run_dir, *options, "--moving_average_decay", "0.9")
    return run_dir, result.stdout


def validate(*options, check=True):
    return run_python("validate_on_images.py", *options, check=check)


def test_training_validates_top1_and_top5(trained):
    run_dir, output = trained
    (line,) = metrics_of(run_dir, "validation")
    assert line["val_accuracy"] > 1.5 / CLASSES
    assert line["val_accuracy"] <= line["val_top5"] <= 1
    assert f"12 held-out pictures: accuracy {line['val_accuracy']:.5f}, top-5 {line['val_top5']:.5f}" in output
    assert {"accuracy", "main"} <= metrics_of(run_dir)[-1].keys()


def test_validation_counts_every_picture_once_on_any_number_of_towers(trained, images, tmp_path):
    run_dir, _ = trained
    (line,) = metrics_of(run_dir, "validation")
    for towers, batch in ((1, 100), (2, 5)):
        out = tmp_path / str(towers)
        options = ["--towers", towers, "--batch_size", batch, "--json", tmp_path / "f.json", "--out_dir", out]
        text = validate("--model", run_dir, *options).stdout
        assert f"Top-1: {line['val_accuracy']:.5f}" in text
        assert f"Top-5: {line['val_top5']:.5f}" in text
        assert "Pictures: 12 of 6 classes, 12 classified, 0 unreadable" in text
        figures = json.loads((tmp_path / "f.json").read_text())
        assert figures["top1"] == pytest.approx(line["val_accuracy"])
        assert figures["cross_entropy"] == pytest.approx(line["val_loss"], rel=1e-4)
        rows = [row.split("\t") for row in (out / "per_class.tsv").read_text().splitlines()]
        assert rows[0][:4] == ["class", "pictures", "top1", "top5"]
        assert sum(int(row[1]) for row in rows[1:]) == 12
        right = sum(int(row[1]) * float(row[2]) for row in rows[1:])
        assert right / 12 == pytest.approx(line["val_accuracy"], abs=1e-4)
        for name in ("confusion.png", "mistakes.png"):
            assert min(cv2.imread(str(out / name)).shape[:2]) > 100


def test_the_model_folder_holds_the_classifier_and_faces_do_not_mind(trained, images):
    run_dir, _ = trained
    with h5py.File(run_dir / "model" / "classifier.h5") as file:
        assert file["weights"].shape == (CLASSES, 16)
        assert file["bias"].shape == (CLASSES,)
    pairs = ["--lfw_dir", images / "lfw", "--lfw_pairs", images / "pairs.txt"]
    assert "Accuracy: " in run_python("validate_on_lfw.py", "--model", run_dir, *pairs).stdout


def test_another_resolution(trained, images, tmp_path):
    """Against one picture at a time."""
    run_dir, _ = trained
    options = ["--image_size", "32", "--load_size", "40", "--json", tmp_path / "f.json", "--out_dir", tmp_path / "out"]
    validate("--model", run_dir, *options)
    folder, facts = export.read_facts(run_dir)
    classifier, model = export.read_classifier(folder, facts), export.read_model(folder, image_size=32)
    losses = []
    for label, name in enumerate(classifier.class_names):
        for path in sorted((images / "test" / name).iterdir()):
            picture = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
            interpolation = cv2.INTER_AREA if len(picture) > 40 else cv2.INTER_LINEAR
            crop = cv2.resize(picture, (40, 40), interpolation=interpolation)[4:36, 4:36].astype(np.float32)
            logits = classifier.weights @ model.network(crop[None])[0].numpy() + classifier.bias
            losses.append(np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[label])
    assert json.loads((tmp_path / "f.json").read_text())["cross_entropy"] == pytest.approx(np.mean(losses), rel=1e-4)


def test_sizes_that_contradict_each_other(trained):
    both = validate("--model", trained[0], "--longest_side", "44", "--image_size", "32", check=False)
    assert (both.returncode, "--longest_side takes whole pictures" in both.stderr) == (2, True)
    whole = validate("--model", trained[0], "--longest_side", "44", check=False)
    assert (whole.returncode, "takes pictures of one size only" in whole.stderr) == (2, True)


def test_unreadable_and_odd_pictures(trained, images, tmp_path):
    run_dir, _ = trained
    shutil.copytree(images / "test", tmp_path / "test")
    (tmp_path / "test/Train_0/broken.jpg").write_bytes(b"<html>")
    cv2.imwrite(str(tmp_path / "test/Train_1/one.png"), np.full((1, 1, 3), 200, np.uint8))
    shutil.rmtree(tmp_path / "test/Train_5")
    options = ["--model", run_dir, "--data_dir", tmp_path / "test", "--json", tmp_path / "f.json"]
    options += ["--out_dir", tmp_path / "out"]
    refused = validate(*options, check=False)
    assert refused.returncode == 65
    assert "broken.jpg" in refused.stderr
    text = validate(*options, "--max_bad_fraction", "0.5", "--towers", "2", "--batch_size", "4").stdout
    assert "Pictures: 12 of 5 classes, 11 classified, 1 unreadable" in text
    assert re.search(r"unreadable: .*Train_0/broken\.jpg \(neither JPEG nor PNG", text)
    figures = json.loads((tmp_path / "f.json").read_text())
    assert [entry["path"] for entry in figures["unreadable"]] == [str(tmp_path / "test/Train_0/broken.jpg")]
    assert figures["per_class"]["Train_0"]["pictures"] == 2
    assert figures["per_class"]["Train_1"]["pictures"] == 3


@pytest.fixture(scope="module")
def mistakes(images, tmp_path_factory):
    """Folders that are wrong in one way each."""
    folder = tmp_path_factory.mktemp("mistakes")
    shutil.copytree(images / "test", folder / "foreign")
    (folder / "foreign/Train_0").rename(folder / "foreign/Nobody")
    shutil.copytree(images / "test", folder / "shared")
    twin = images / "train/Train_2/Train_2_0001.jpg"
    (folder / "shared/Train_2/again.jpg").symlink_to(twin)
    shutil.copytree(images / "test", folder / "moved")
    (folder / "moved/Train_1/gone.jpg").symlink_to(folder / "nowhere.jpg")
    return folder


def read(data_dir, **others):
    nothing = {"filter_filename": None, "filter_percentile": 100.0, "filter_min_nrof_images_per_class": 0}
    return pictures.training_pictures(data_dir=data_dir, **nothing, **others)


def test_validation_pictures_get_the_labels_of_training(images, tmp_path):
    shutil.copytree(images / "test", tmp_path / "test")
    shutil.rmtree(tmp_path / "test/Train_0")
    source, held_out, labels = read(images / "train", val_dir=tmp_path / "test")
    assert len(held_out) == len(labels) == 10
    for record, label in enumerate(labels):
        assert source.class_names[label] == held_out.where(record).split("/")[-2]


@pytest.mark.parametrize(
    ("val_dir", "others", "error", "message"),
    [
        ("{mistakes}/foreign", {}, BadData, "1 of 6 classes are not among the 6 trained ones: Nobody"),
        ("{mistakes}/shared", {}, BadData, "Train_2_0001.jpg, which is trained on"),
        ("{mistakes}/moved", {}, BadData, "gone.jpg: No such file"),
        ("{images}/test", {"validation_set_split_ratio": 0.1}, UserError, "give one of them"),
    ],
)
def test_wrong_validation_pictures_are_refused(images, mistakes, val_dir, others, error, message):
    val_dir = Path(val_dir.format(images=images, mistakes=mistakes))
    with pytest.raises(error, match=message):
        read(images / "train", val_dir=val_dir, **others)


def test_the_folder_above_train_and_test_is_no_training_folder(images, tmp_path):
    result = train(images, tmp_path / "run", *SMALL, "--data_dir", images, check=False)
    assert result.returncode == 2
    assert f"--data_dir {images / 'train'}" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_classifiers_that_are_damaged_or_not_there(trained, tmp_path):
    shutil.copytree(trained[0] / "model", tmp_path / "model")
    folder, facts = export.read_facts(tmp_path / "model")
    assert export.read_classifier(folder, facts).class_names == [f"Train_{person}" for person in range(CLASSES)]
    with pytest.raises(StorageError, match="weights of 6 classes and names of 5"):
        export.read_classifier(folder, facts | {"class_names": facts["class_names"][1:]})
    (folder / "classifier.h5").write_bytes(b"0")
    with pytest.raises(StorageError, match="sha256"):
        export.read_classifier(folder, facts)
    with pytest.raises(UserError, match="has no classifier"):
        export.read_classifier(folder, {"format": 1})


@pytest.mark.parametrize(
    ("given", "embedding_size", "keep_probability"),
    [
        (["--network", "googlenet"], 1024, 0.6),
        (["--network", "small"], 128, 1.0),
        ([], 128, 1.0),
        (["--network", "googlenet", "--embedding-size", "64", "--keep-probability", "1"], 64, 1.0),
    ],
)
def test_defaults_of_the_network(given, embedding_size, keep_probability):
    parser = options.Parser("Test.")
    options.add_network(parser, network="small", embedding_size=128)
    arguments = parser.parse_args(given)
    assert (arguments.embedding_size, arguments.keep_probability) == (embedding_size, keep_probability)


@contextlib.contextmanager
def tensorboard(logs):
    """TensorBoard on a free port of this machine; its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "tensorboard.main",
        "--logdir",
        str(logs),
        "--port",
        str(port),
        "--host",
        "127.0.0.1",
    ]
    with (logs / "tensorboard.log").open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=os.environ)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


def fetch(address, wanted, seconds=120):
    """The JSON at an address once ``wanted`` of it is true; None where it never is."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError, ValueError):
            with urllib.request.urlopen(address, timeout=30) as answer:
                found = json.load(answer)
            if wanted(found):
                return found
        time.sleep(1)
    return None


def assert_curves(address, tags, steps):
    scalars = f"{address}/data/plugin/scalars"
    found = fetch(f"{scalars}/tags", lambda runs: any(set(tags) <= set(run) for run in runs.values()))
    assert found is not None, tags
    (run,) = (run for run, own in found.items() if set(tags) <= set(own))
    for tag in tags:
        query = urllib.parse.urlencode({"run": run, "tag": tag})
        points = fetch(f"{scalars}/scalars?{query}", lambda points: len(points) == len(steps))
        assert points is not None, tag
        assert [step for _, step, _ in points] == steps
        assert all(np.isfinite(value) for _, _, value in points)
    graph = fetch(f"{address}/data/plugin/graphs/info", bool)
    assert graph is not None
    assert any(info["run_graph"] for info in graph.values())


def test_tensorboard_serves_the_curves_of_each_tower(trained):
    run_dir, _ = trained
    tags = ["tower_0/main", "tower_1/main", "tower_1/accuracy", "train/accuracy"]
    with tensorboard(run_dir / "tensorboard") as address:
        assert_curves(address, tags, list(range(2, 61, 2)))


@pytest.mark.slow
def test_googlenet_in_tensorboard_and_without_auxiliary_parts_in_the_model(images, tmp_path):
    run_dir = tmp_path / "run"
    options = [*GOOGLENET, "--val_dir", images / "test", "--towers", "2", "--max_steps", "8", "--weight_decay", "1e-4"]
    train(images, run_dir, *options)
    line = metrics_of(run_dir)[-1]
    assert line["loss"] == pytest.approx(line["main"] + 0.3 * (line["aux1"] + line["aux2"]), rel=1e-5)
    with h5py.File(run_dir / "model" / "weights.h5") as file:
        names = []
        file.visit(names.append)
    assert any("inception_5b" in name for name in names)
    assert not [name for name in names if "aux" in name]
    assert "Pictures: 12 of 6 classes, 12 classified" in validate("--model", run_dir, "--towers", "2").stdout
    more = ["--pretrained_model", run_dir, "--max_steps", "1", "--towers", "1"]
    train(images, tmp_path / "more", *GOOGLENET, *more)
    tags = [f"tower_{tower}/{part}" for tower in (0, 1) for part in ("main", "aux1", "aux2", "loss")]
    with tensorboard(run_dir / "tensorboard") as address:
        assert_curves(address, tags, [2, 4, 6, 8])
        if CHROMIUM is not None:
            picture = tmp_path / "tensorboard.png"
            screenshot(f"{address}/#scalars&tagFilter=tower_.*(main%7Caux)", picture, tmp_path / "profile")
            shown = cv2.imread(str(picture)).astype(int)
            # Lines of the colour of TensorBoard's first run, right of the panel that has a mark of it too.
            curves = np.abs(shown - (67, 112, 255)).max(axis=-1) < 12
            assert curves[:, PANEL_WIDTH:].sum() > 500


def screenshot(address, picture, profile):
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    flags += "--disable-component-update --disable-sync --hide-scrollbars --virtual-time-budget=30000"
    command = [CHROMIUM, *flags.split(), f"--user-data-dir={profile}", "--window-size=1600,1800"]
    subprocess.run(
        [*command, f"--screenshot={picture}", address], check=True, capture_output=True, timeout=240, cwd=ROOT
    )
