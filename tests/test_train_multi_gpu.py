"""train_multi_gpu.py as a user runs it, on tiny pictures, in processes of its own."""

import json
import re
import shutil

import numpy as np
import pytest
from conftest import make_faces, metrics_of, run_python, state_of

SMALL = [
    *("--network", "small", "--image_size", "28", "--embedding_size", "16", "--batch_size", "8", "--log_every", "1"),
    *("--lr", "0.02", "--validate_every_n_epochs", "0", "--scale", "16", "--moving_average_decay", "0"),
]


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    return make_faces(tmp_path_factory.mktemp("faces"))


# Classes: 6. A batch may hold all of them, so that the rate is 1 and negatives come from the order of the draw.
SAMPLED = ["--head", "sampled", "--sample_rate", "1", "--accumulate", "2", "--loss", "cosface", "--towers", "2"]
SAMPLED += ["--clip_norm", "5"]


def train(faces, run_dir, *options, check=True):
    command = ("train_multi_gpu.py", "--data_dir", faces / "train", "--run_dir", run_dir, *SMALL, *options)
    return run_python(*command, check=check)


@pytest.fixture(scope="module")
def trained(faces, tmp_path_factory):
    """Three steps on two towers with a sampled head, parts of batches and a validation at every second step."""
    run_dir = tmp_path_factory.mktemp("runs") / "sampled"
    pack = run_dir.with_name("pack.bin")
    pictures = ["--lfw_dir", faces / "lfw", "--lfw_pairs", faces / "pairs.txt"]
    run_python("scripts/make_bin.py", *pictures, "--out", pack)
    options = [*SAMPLED, *pictures, "--lfw_nrof_folds", "2", "--verbose", "2", "--max_steps", "3"]
    result = train(faces, run_dir, *options, "--val_sets", faces / "lfw", check=False)
    assert result.returncode == 2
    assert "lfw, lfw are not all different" in result.stderr
    return run_dir, train(faces, run_dir, *options, "--val_sets", pack).stdout


def test_a_run_prints_the_lines_that_users_grep(trained):
    run_dir, output = trained
    for step in (2, 3):
        for line in (r"XNorm: \d+\.\d+", r"Accuracy-Flip: [01]\.\d{5}\+-0\.\d{5}", r"Accuracy-Highest: [01]\.\d{5}"):
            assert re.search(rf"^\[lfw\]\[{step}\]{line}$", output, re.MULTILINE), line
    accuracies = [line["lfw_accuracy"] for line in metrics_of(run_dir, "validation")]
    assert f"[lfw][3]Accuracy-Highest: {max(accuracies):.5f}" in output


def test_a_pack_is_a_set_as_a_folder_is(trained):
    run_dir, output = trained
    assert "[pack][3]Accuracy-Highest: " in output
    for line in metrics_of(run_dir, "validation"):
        assert line["pack_accuracy"] == line["lfw_accuracy"]
        assert line["pack_xnorm"] == pytest.approx(line["lfw_xnorm"], rel=0.1)
        assert line["pairs_accuracy"] == line["lfw_accuracy"]


def test_the_best_model_is_kept(trained):
    run_dir, _ = trained
    validations = metrics_of(run_dir, "validation")
    best = max(validations, key=lambda line: line["pairs_accuracy"])
    kept = json.loads((run_dir / "best" / "model.json").read_text())
    assert kept["step"] == best["step"]
    assert kept["validation"]["lfw_accuracy"] == best["lfw_accuracy"]


def test_a_checkpoint_holds_the_head_in_one_piece(trained):
    run_dir, _ = trained
    state = state_of(run_dir, 3)
    assert state["head/weights"].shape == state["head/momentum"].shape == (6, 16)
    assert (np.abs(state["head/momentum"]).max(axis=1) > 0).all()
    assert {"main", "accuracy", "embedding_norm"} <= metrics_of(run_dir)[0].keys()


FLOAT64 = ["--precision", "float64", "--sync_bn", "--max_epochs", "2", "--logits_chunk", "2", "--loss", "arcface"]


@pytest.fixture(scope="module")
def unbroken(faces, tmp_path_factory):
    """Four steps of ArcFace on two towers in float64, with the class weights split over them."""
    run_dir = tmp_path_factory.mktemp("float64") / "whole"
    train(faces, run_dir, *FLOAT64, "--towers", "2", "--max_steps", "4")
    return run_dir


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(4, 2), (2, 1), (2, 4)])
def test_a_run_resumed_on_another_number_of_towers_goes_on_alike_in_float64(unbroken, faces, tmp_path, before, after):
    train(faces, tmp_path / "parts", *FLOAT64, "--towers", str(before), "--max_steps", "2")
    train(faces, tmp_path / "parts", *FLOAT64, "--towers", str(after), "--max_steps", "4")
    losses, expected = ([line["loss"] for line in metrics_of(run)] for run in (tmp_path / "parts", unbroken))
    assert len(losses) == 4
    np.testing.assert_allclose(losses, expected, rtol=1e-9)
    whole, parts = state_of(unbroken, 4), state_of(tmp_path / "parts", 4)
    for name, value in whole.items():
        np.testing.assert_allclose(parts[name], value, rtol=0, atol=1e-9 * max(np.abs(value).max(), 1e-3), err_msg=name)


def test_a_checkpoint_of_another_class_count_is_refused(trained, faces, tmp_path):
    run_dir, _ = trained
    shutil.copytree(run_dir, tmp_path / "run")
    shutil.copytree(faces / "train", tmp_path / "train")
    shutil.copytree(tmp_path / "train" / "Train_0", tmp_path / "train" / "Train_9")
    options = [*SAMPLED, "--data_dir", tmp_path / "train", "--max_steps", "5", "--verbose", "2"]
    result = train(faces, tmp_path / "run", *options, check=False)
    assert result.returncode == 65, result.stderr
    assert "was trained on other pictures" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--head", "sampled", "--sample_rate", "0"], "--sample_rate 0.0: a share"),
        (["--head", "sampled", "--sample_rate", "1.5"], "--sample_rate 1.5: a share"),
        (["--head", "sampled", "--sample_rate", "0.5"], "is 3, fewer than a batch of 8"),
        (["--sample_rate", "0.5"], "needs --head sampled"),
        (["--loss", "softmax"], "--loss softmax has no use for --scale"),
        (["--optimizer", "ADAM"], "--optimizer ADAM"),
        (["--towers", "8"], "6 classes cannot be split over 8 towers"),
        (["--accumulate", "3"], "--accumulate 3"),
        (["--identities", "1000"], "--identities and --card_memory"),
    ],
)
@pytest.mark.slow
def test_options_that_cannot_be_are_told_in_one_line(faces, tmp_path, options, words):
    result = train(faces, tmp_path / "run", *options, "--max_steps", "1", check=False)
    assert result.returncode == 2
    assert words in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_dry_run_tells_the_memory_of_a_million_identities(faces, tmp_path):
    options = ["--towers", "4", "--identities", "1000000", "--card_memory", "11", "--dry_run"]
    output = train(faces, tmp_path / "run", *options).stdout
    assert "class weights of 1,000,000 identities, sharded, a tower: weights 16 MB, momentum 16 MB" in output
    assert re.search(r"fits; these towers go up to [\d,]{9,} identities", output)
    assert not (tmp_path / "run").exists()
