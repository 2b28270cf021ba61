"""Training with --optimizer thor as a user does, in processes of their own."""

import numpy as np
import pytest
from conftest import make_faces, metrics_of, run_python, state_of

SMALL = (
    "--network small --embedding_size 16 --image_size 28 --load_size 30 --random_crop --log_every 1 "
    "--learning_rate 0.01 --validate_every_n_epochs 0 --optimizer thor --thor_interval 3"
).split()


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    return make_faces(tmp_path_factory.mktemp("thor_faces"))


def train(faces, run_dir, *options, script="train_softmax.py", batch=("--batch_size", "8"), check=True):
    return run_python(
        *(script, "--data_dir", faces / "train", "--run_dir", run_dir, *SMALL, *batch, *options), check=check
    )


@pytest.mark.slow
def test_resumed_bit_for_bit(faces, tmp_path):
    options = ["--deterministic", "--towers", "2", "--max_epochs", "2", "--thor_trace_rule", "0.05,0.001"]
    options += ["--learning_rate_schedule", "linear", "--loss_scale", "128"]
    result = train(faces, tmp_path / "whole", *options, "--max_steps", "8")
    assert "8 steps done" in result.stdout
    train(faces, tmp_path / "parts", *options, "--max_steps", "4")
    assert "going on at step 4" in train(faces, tmp_path / "parts", *options, "--max_steps", "8").stdout
    whole, parts = state_of(tmp_path / "whole", 8), state_of(tmp_path / "parts", 8)
    assert {"thor/trace", "thor/stopped", "thor/raised", "thor/head/weights/outputs"} <= whole.keys()
    assert np.abs(whole["thor/block2_conv/kernel/inputs"] - np.eye(128)).max() > 0.1
    for name, value in whole.items():
        np.testing.assert_array_equal(value, parts[name], err_msg=name)
    lines = metrics_of(tmp_path / "whole")
    # 5 layers and the head, at step 0 at least; the inverses of steps 1 and 2 are those of step 0.
    assert lines[0]["thor_refreshed"] == 6
    assert [line["thor_refreshed"] for line in lines[1:3]] == [0, 0]
    assert all(line["thor_failed"] == 0 for line in lines)
    # To 0 at the end of the two epochs of 8 steps.
    assert lines[0]["learning_rate"] == 0.01
    assert lines[7]["learning_rate"] == pytest.approx(0.01 * 9 / 16)


@pytest.mark.slow
def test_in_front_of_a_class_of_keras_resumed_bit_for_bit(faces, tmp_path):
    options = ["--deterministic", "--towers", "2", "--max_epochs", "2", "--thor_optimizer", "keras.lion"]
    options += ["--learning_rate", "0.001"]
    train(faces, tmp_path / "whole", *options, "--max_steps", "4")
    for steps in ("2", "4"):
        train(faces, tmp_path / "parts", *options, "--max_steps", steps)
    whole, parts = state_of(tmp_path / "whole", 4), state_of(tmp_path / "parts", 4)
    # A momentum for each weight, the count and the rate.
    of_lion = {name: value for name, value in whole.items() if name.startswith("optimizer/Lion/")}
    assert len(of_lion) == 2 + sum(value.ndim > 0 for value in of_lion.values()) > 10
    for name, value in whole.items():
        np.testing.assert_array_equal(value, parts[name], err_msg=name)
    alone = train(faces, tmp_path / "none", *options, "--optimizer", "keras.lyon", check=False)
    assert alone.returncode == 2
    assert "keras.lyon: Keras has no such optimizer; after keras. comes one of" in alone.stderr


@pytest.mark.slow
def test_a_run_and_its_loss_scale_which_changes_no_more_than_rounding(faces, tmp_path):
    options = ["--max_steps", "2", "--deterministic"]
    for name, further in (("plain", []), ("scaled", ["--loss_scale", "1024"])):
        train(faces, tmp_path / name, *options, *further)
    plain, scaled = (state_of(tmp_path / name, 2) for name in ("plain", "scaled"))
    # Fixed, so there is nothing of it to resume.
    assert plain.keys() == scaled.keys()
    assert "thor/head/weights/outputs" in plain
    for name, value in plain.items():
        if name.startswith(("network/", "head/", "thor/")):
            difference = np.linalg.norm(np.float64(scaled[name]) - np.float64(value))
            assert difference <= 1e-3 * max(np.linalg.norm(np.float64(value)), 1e-3), name
    # Five layers and the head, at step 0.
    lines = metrics_of(tmp_path / "plain")
    assert [(line["thor_refreshed"], line["thor_failed"]) for line in lines] == [(6, 0), (0, 0)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "script,batch",
    [
        # With a soft margin every triplet counts from the first step on.
        ("train_tripletloss.py", "--people_per_batch 2 --images_per_person 4 --soft_margin"),
        ("train_multi_gpu.py", "--batch_size 8 --head replicated --loss cosface"),
        (
            "train_multigrain.py",
            "--batch_size 8 --copies 2 --network resnet10 --embedding_size 24 --image_size 32 --load_size 34",
        ),
    ],
)
def test_every_script_trains_with_it(faces, tmp_path, script, batch):
    train(faces, tmp_path / "run", "--max_steps", "4", script=script, batch=batch.split())
    lines = metrics_of(tmp_path / "run")
    assert [line["thor_refreshed"] > 0 for line in lines] == [True, False, False, True]
    assert all(np.isfinite(line["loss"]) for line in lines)
    assert "thor/embedding/kernel/inputs" in state_of(tmp_path / "run", 4)


@pytest.mark.parametrize(
    "options,message",
    [
        (["--thor_damping", "0"], "--thor_damping 0.0"),
        (["--thor_interval", "0"], "--thor_interval 0"),
        (["--thor_map_side", "-1"], "--thor_map_side -1"),
        (["--loss_scale", "0"], "--loss_scale 0.0"),
        (["--thor_trace_rule", "0.1"], "--thor_trace_rule"),
    ],
)
@pytest.mark.slow
def test_mistakes_get_one_line(faces, tmp_path, options, message):
    result = train(faces, tmp_path / "run", *options, check=False)
    assert result.returncode == 2, result.stderr
    assert message in result.stderr.strip().splitlines()[-1]
    assert "Traceback" not in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("head", ["sharded", "selected"])
def test_a_head_that_has_its_own_update_is_refused(faces, tmp_path, head):
    options = {"script": "train_multi_gpu.py", "batch": ["--batch_size", "8", "--head", head], "check": False}
    result = train(faces, tmp_path / "run", **options)
    assert result.returncode == 2, result.stderr
    assert "--optimizer THOR: " in result.stderr
    assert "--head replicated" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


@pytest.mark.slow
def test_dry_run_counts_the_inverses(faces, tmp_path):
    result = train(faces, tmp_path / "run", "--dry_run")
    assert "THOR: inverses of 6 layers" in result.stdout
    assert "1 optimizer slot(s)" in result.stdout
