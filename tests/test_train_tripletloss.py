"""Triplet training as a user runs it, in processes of its own."""

import json

import cv2
import numpy as np
import pytest
from conftest import make_faces, metrics_of, run_python, state_of

SMALL = [
    *("--network", "small", "--image_size", "28", "--embedding_size", "16", "--log_every", "2", "--random_crop"),
    *(
        "--people_per_batch",
        "4",
        "--images_per_person",
        "3",
        "--learning_rate",
        "0.02",
        "--validate_every_n_epochs",
        "0",
    ),
]


@pytest.fixture(scope="session")
def faces(tmp_path_factory):
    return make_faces(tmp_path_factory.mktemp("faces"))


def train(faces, run_dir, *options, check=True):
    return run_python(
        *("train_tripletloss.py", "--data_dir", faces / "train", "--run_dir", run_dir, *SMALL, *options), check=check
    )


@pytest.fixture(scope="session")
def trained(faces, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("triplets") / "run"
    options = ["--towers", "2", "--mining", "semihard", "--mining_scope", "global", "--max_steps", "30", "--audit_data"]
    result = train(faces, run_dir, *options, "--lfw_dir", faces / "lfw", "--lfw_pairs", faces / "pairs.txt")
    return run_dir, result.stdout


def test_a_run_ends_with_a_validated_model(trained):
    run_dir, output = trained
    assert "Accuracy: " in output
    assert "Recall@1: " in output
    assert 0 <= metrics_of(run_dir, "validation")[-1]["lfw_recall_at_1"] <= 1
    assert (run_dir / "model" / "model.json").exists()
    lines = metrics_of(run_dir)
    assert lines[-1]["step"] == 30
    for line in lines:
        assert len(line["tower_losses"]) == 2
        assert {"active", "pairs", "positive_distance", "negative_distance", "pair_distance"} <= line.keys()


def test_whole_people_went_to_one_tower_and_everybody_once_a_pass(trained):
    run_dir, _ = trained
    lines = [line.split("\t") for line in (run_dir / "audit.tsv").read_text().splitlines()]
    people = [{int(record) // 10 for record in line[3].split(",")} for line in lines]
    assert all(len(own) == 2 for own in people)
    drawn = [person for own in people for person in sorted(own)]
    counts = np.bincount(drawn, minlength=6)
    assert counts.max() - counts.min() <= 1


def test_resumed_bit_for_bit(faces, tmp_path):
    options = ["--deterministic", "--mining", "facenet", "--max_epochs", "4"]
    train(faces, tmp_path / "whole", *options, "--max_steps", "16")
    train(faces, tmp_path / "parts", *options, "--max_steps", "8")
    train(faces, tmp_path / "parts", *options, "--max_steps", "16")
    whole, parts = state_of(tmp_path / "whole", 16), state_of(tmp_path / "parts", 16)
    for name, value in whole.items():
        np.testing.assert_array_equal(value, parts[name], err_msg=name)


def test_a_batch_for_each_tower_has_more_people(faces, tmp_path):
    options = ["--batch_mode", "per_tower", "--towers", "2", "--people_per_batch", "3", "--dry_run"]
    result = train(faces, tmp_path / "run", *options)
    assert "18 = 2 tower(s) x 9" in result.stdout


def test_softmax_weights_start_a_triplet_run(faces, tmp_path):
    run_python(
        *("train_softmax.py", "--data_dir", faces / "train", "--run_dir", tmp_path / "softmax", "--image_size", "28"),
        *("--embedding_size", "16", "--batch_size", "12", "--max_steps", "2", "--moving_average_decay", "0"),
    )
    options = ["--pretrained_model", tmp_path / "softmax", "--max_steps", "1", "--learning_rate", "1e-30"]
    train(faces, tmp_path / "triplets", *options)
    before, after = state_of(tmp_path / "softmax", 2), state_of(tmp_path / "triplets", 1)
    kernels = [name for name in after if name.startswith("network/") and "kernel" in name]
    assert len(kernels) > 4
    for name in kernels:
        np.testing.assert_array_equal(before[name], after[name])


def test_a_run_that_collapses_says_so_on_the_console(faces, tmp_path):
    # Every picture black: all embeddings are the same point.
    for picture in (faces / "train").rglob("*.jpg"):
        copy = tmp_path / "data" / picture.parent.name / picture.name
        copy.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(copy), np.zeros((28, 28, 3), np.uint8))
    result = run_python(
        *("train_tripletloss.py", "--data_dir", tmp_path / "data", "--run_dir", tmp_path / "run", *SMALL),
        *("--max_steps", "4"),
    )
    assert result.stdout.count("collapse to one point") == 1
    assert "collapse to one point" in (tmp_path / "run" / "train.log").read_text()


@pytest.mark.parametrize(
    ("options", "exit_code", "message"),
    [
        (["--people_per_batch", "7"], 2, "7"),
        (["--people_per_batch", "5", "--towers", "2"], 2, "4 or 6"),
        (["--alpha", "0"], 2, "alpha"),
        (["--images_per_person", "1"], 2, "--images_per_person 1"),
        (["--mining", "batch_all", "--soft_margin"], 2, "soft_margin"),
    ],
)
def test_mistakes_get_one_line(faces, tmp_path, options, exit_code, message):
    result = train(faces, tmp_path / "run", *options, check=False)
    assert result.returncode == exit_code, result.stderr
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_one_picture_a_person_everywhere_is_bad_data(faces, tmp_path):
    for person in range(4):
        folder = tmp_path / "data" / f"P{person}"
        folder.mkdir(parents=True)
        source = faces / "train" / f"Train_{person}" / f"Train_{person}_0001.jpg"
        (folder / "1.jpg").write_bytes(source.read_bytes())
    result = run_python(
        *("train_tripletloss.py", "--data_dir", tmp_path / "data", "--run_dir", tmp_path / "run", *SMALL),
        *("--people_per_batch", "2", "--images_per_person", "2"),
        check=False,
    )
    assert result.returncode == 65, result.stderr
    assert "picture" in result.stderr


def test_options_are_recorded(trained):
    assert json.loads((trained[0] / "options.json").read_text())["mining"] == "semihard"
