"""MultiGrain's training and retrieval evaluation as a user runs them, in processes of their own."""

import importlib.util
import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import tensorflow as tf
from conftest import ROOT, metrics_of, run_python, state_of
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

sys.path.insert(0, str(ROOT / "data" / "multigrain_standin"))
import grains as standin
from scene_drawing import class_name

from towers import export
from towers.errors import BadData, UserError
from towers.runs import multigrain

TINY = {
    **{"num_classes": 3, "train_images": 6, "val_images": 2, "instances": 3, "views": 2, "originals": 3},
    **{"strong_copies": 1, "image_size": 40},
}
SMALL = (
    "--network resnet10 --embedding_size 16 --image_size 40 --random_crop --random_flip --batch_size 12 --copies 3 "
    "--log_every 1 --validate_every_n_epochs 0 --learning_rate 0.01"
).split()


@pytest.fixture(scope="session")
def grains(tmp_path_factory):
    folder = tmp_path_factory.mktemp("standin") / "grains"
    assert standin.generate(folder, **TINY)
    return folder


def train(grains, run_dir, *options, check=True):
    return run_python(
        "train_multigrain.py", "--data_dir", grains / "train", "--run_dir", run_dir, *SMALL, *options, check=check
    )


@pytest.fixture(scope="session")
def trained(grains, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("multigrain") / "run"
    rotations = grains.parent / "rotations.yaml"
    rotations.write_text('{\n"100001.jpg": 90,\n"100100.jpg": 180,\n}')
    result = train(
        *(grains, run_dir, "--towers", "2", "--max_steps", "4", "--audit_data", "--autoaugment", "--lighting", "0.1"),
        *("--val_dir", grains / "val", "--holidays_dir", grains / "holidays", "--copydays_dir", grains / "copydays"),
        *(
            "--holidays_rotations",
            rotations,
            "--distractors",
            grains / "val",
            "--learn_gem_p",
            "--class_num",
            "5",
            "--label_smoothing",
            "0.1",
        ),
    )
    return run_dir, result.stdout


def test_a_run_logs_every_part_of_each_tower(trained):
    run_dir, _ = trained
    lines = metrics_of(run_dir)
    assert lines[-1]["step"] == 4
    assert {"main", "retrieval", "beta", "accuracy", "active", "pairs", "positive_distance"} <= lines[-1].keys()
    assert len(lines[-1]["tower_losses"]) == 2
    assert lines[0]["pairs"] == 12
    # Each tower's parts are curves of their own; metrics.jsonl has their means.
    curves = EventAccumulator(str(run_dir / "tensorboard"), size_guidance={"tensors": 0}).Reload()
    for name in ("loss", "main", "retrieval", "beta", "accuracy", "active", "pairs"):
        found = [
            [float(tf.make_ndarray(event.tensor_proto)) for event in curves.Tensors(f"tower_{tower}/{name}")]
            for tower in range(2)
        ]
        assert np.shape(found) == (2, 4), name
        want = [line[name] for line in lines]
        np.testing.assert_allclose(np.mean(found, axis=0), want, rtol=1e-5, err_msg=name)
        # Of two towers' pictures only the border is one.
        assert (found[0] == found[1]) == (name in ("beta", "pairs")), name


def test_a_run_ends_with_all_three_grains_measured(trained):
    run_dir, output = trained
    (measured,) = metrics_of(run_dir, "validation")
    for name in ("val_accuracy", "holidays_map", "copydays_strong_map", "copydays_jpegqual_20_map"):
        assert 0 <= measured[name] <= 1
    for protocol in ("holidays", "copydays"):
        assert cv2.imread(str(run_dir / f"{protocol}_nearest.jpg")) is not None
    assert "holidays_map" in output
    assert measured["gem_p"] != 3.0
    assert f"power of GeM pooling: {measured['gem_p']:.4f}" in output


def test_copies_came_together_and_every_record_once_a_pass(trained):
    run_dir, _ = trained
    lines = [line.split("\t") for line in (run_dir / "audit.tsv").read_text().splitlines()]
    assert len(lines) == 8
    groups = [int(record) for line in lines for record in line[3].split(",")]
    assert len(groups) == 16
    assert len(set(groups)) == 16


def test_what_is_learnt_is_in_the_checkpoint(trained):
    run_dir, _ = trained
    state = state_of(run_dir, 4)
    assert state["head/weights"].shape == (5, 16)
    # While all pairs are active, those of one label and of two pull beta alike.
    assert {"margin/beta", "optimizer/margin/beta/accum"} <= state.keys()
    assert state["network/gem/p"] != 3.0
    facts = json.loads((run_dir / "model" / "model.json").read_text())
    assert facts["network"]["learn_gem_p"] is True
    assert facts["class_names"] == sorted(class_name(number) for number in range(3))


@pytest.mark.slow
def test_resumed_bit_for_bit(grains, tmp_path):
    options = [
        "--deterministic",
        "--max_epochs",
        "2",
        "--retrieval_loss",
        "triplet",
        "--autoaugment",
        "--mining",
        "facenet",
    ]
    train(grains, tmp_path / "whole", *options, "--max_steps", "4")
    train(grains, tmp_path / "parts", *options, "--max_steps", "2")
    train(grains, tmp_path / "parts", *options, "--max_steps", "4")
    whole, parts = state_of(tmp_path / "whole", 4), state_of(tmp_path / "parts", 4)
    assert "margin/beta" not in whole
    for name, value in whole.items():
        np.testing.assert_array_equal(value, parts[name], err_msg=name)


def test_a_mistake_gets_one_line(grains, tmp_path):
    result = train(grains, tmp_path / "run", "--copies", "4", "--towers", "2", check=False)
    assert result.returncode == 2, result.stderr
    assert "8 or 16" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def load(script):
    spec = importlib.util.spec_from_file_location(Path(script).stem, ROOT / script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def refused(script, *options):
    """The exception that a script raises before it sets TensorFlow up."""
    module = load(script)
    with pytest.raises(UserError) as caught:
        module.main(module.make_parser().parse_args([str(option) for option in options]))
    return caught.value


def test_mistakes_of_training(grains):
    assert "--classification_weight 1.5" in str(
        refused("train_multigrain.py", "--data_dir", grains / "train", "--lambda", "1.5")
    )
    assert "--label_smoothing -0.1" in str(
        refused("train_multigrain.py", "--data_dir", grains / "train", "--label_smoothing", "-0.1")
    )
    few = refused("train_multigrain.py", "--data_dir", grains / "train", "--class_num", "2")
    assert "has 3 classes" in str(few)


@pytest.mark.slow
def test_a_power_that_is_none_gets_one_line(grains, tmp_path):
    result = train(grains, tmp_path / "run", "--gem_p", "0", check=False)
    assert result.returncode == 2, result.stderr
    assert "--gem_p 0.0: the power" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_distractors_need_copies(grains):
    nowhere = {"val_dir": None, "holidays_dir": None, "copydays_dir": None, "image_size": 32, "load_size": 32}
    nothing = {"distractors": None, "holidays_rotations": None}
    with pytest.raises(UserError, match="--copydays_dir"):
        multigrain.validators(None, None, None, [], **nowhere, **nothing | {"distractors": grains / "val"})
    with pytest.raises(UserError, match="--holidays_dir"):
        multigrain.validators(None, None, None, [], **nowhere, **nothing | {"holidays_rotations": grains / "list"})


def export_arrays(run_dir):
    """The weights and the classifier of a run's model."""
    path, facts = export.read_facts(run_dir)
    classifier = export.read_classifier(path, facts)
    return {
        **export.read_weights(path, facts),
        "classifier/weights": classifier.weights,
        "classifier/bias": classifier.bias,
    }


def evaluate(run_dir, *options, check=True):
    return run_python("scripts/evaluate_retrieval.py", "--model", run_dir, *options, check=check)


@pytest.mark.slow
def test_evaluation_repeats_the_validation(trained, grains, tmp_path):
    run_dir, _ = trained
    options = ["--protocol", "copydays", "--data_dir", grains / "copydays", "--distractors", grains / "val"]
    result = evaluate(run_dir, *options, "--json", tmp_path / "figures.json", "--sheet", tmp_path / "sheet.jpg")
    figures = json.loads((tmp_path / "figures.json").read_text())
    (measured,) = metrics_of(run_dir, "validation")
    for name, value in figures.items():
        assert value == pytest.approx(measured[name], abs=1e-6)
        assert f"{name}: {value:.4f}" in result.stdout
    assert "9 pictures in the gallery" in result.stdout
    # 3 queries of 9 pictures at 128 x 142.
    assert cv2.imread(str(tmp_path / "sheet.jpg")).shape == (3 * 142, 8 * 128, 3)


@pytest.mark.slow
def test_holidays_are_turned_as_in_the_validation(trained, grains, tmp_path):
    run_dir, _ = trained
    options = ["--protocol", "holidays", "--data_dir", grains / "holidays", "--json", tmp_path / "figures.json"]
    result = evaluate(run_dir, *options, "--holidays_rotations", grains.parent / "rotations.yaml")
    (measured,) = metrics_of(run_dir, "validation")
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures == {"holidays_map": pytest.approx(measured["holidays_map"], abs=1e-6)}
    assert "2 of 6 pictures are turned upright" in result.stdout


@pytest.mark.slow
def test_ukbench_by_the_script(trained, grains, tmp_path):
    for number, path in enumerate(sorted((grains / "train").rglob("*.jpg"))[:8]):
        (tmp_path / f"ukbench{number:05}.jpg").write_bytes(path.read_bytes())
    options = ["--protocol", "ukbench", "--data_dir", tmp_path, "--json", tmp_path / "figures.json"]
    result = evaluate(trained[0], *options, "--sheet", tmp_path / "sheet.jpg")
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert 1 <= figures["ukbench_score"] <= 4
    assert f"ukbench_score: {figures['ukbench_score']:.4f}" in result.stdout
    # 8 queries; each with the 7 others at most.
    assert cv2.imread(str(tmp_path / "sheet.jpg")).shape[0] == 8 * 142


@pytest.mark.slow
def test_evaluation_of_whole_pictures_with_another_power(trained, grains, tmp_path):
    run_dir, _ = trained
    result = run_python(
        *("validate_on_images.py", "--model", run_dir, "--data_dir", grains / "val", "--longest_side", "48"),
        *("--gem_p", "4", "--out_dir", tmp_path),
    )
    assert "3 classes" in result.stdout
    result = evaluate(
        *(run_dir, "--protocol", "folder", "--data_dir", grains / "val", "--longest_side", "48", "--gem_p", "4")
    )
    assert "recall_at_1: " in result.stdout
    assert "map_at_r: " in result.stdout


def test_a_trained_model_is_exported_and_searched(trained, grains, tmp_path):
    """With the files of the run alone: the pictures to compare on are those it was trained on."""
    run_dir, _ = trained
    result = run_python(
        *("scripts/export_model.py", "--model", run_dir, "--out_dir", tmp_path / "out", "--formats", "saved_model"),
        *("--gem_p", "4", "--num_pictures", "10"),
    )
    assert "on 10 pictures, same class 1.0000" in result.stdout
    facts = json.loads((tmp_path / "out" / "exported.json").read_text())
    assert facts["class_names"] == sorted(class_name(number) for number in range(3))
    assert facts["files"]["saved_model"]["least_cosine"] > 0.9999
    assert (facts["image_size"], facts["whitened"]) == (40, False)
    query = grains / "copydays" / "strong" / "200001.jpg"
    found = run_python(
        *("scripts/search_images.py", "--model", run_dir, "--index", grains / "copydays", "--query", query),
        *("--nearest", "5", "--sheet", tmp_path / "nearest.jpg"),
    )
    lines = found.stdout.splitlines()
    # The picture itself lies in the index.
    assert lines[1].split()[:2] == ["1", "1.0000"]
    assert lines[1].endswith("strong/200001.jpg")
    assert "same instance" in lines[1]
    assert len(lines) == 7
    assert cv2.imread(str(tmp_path / "nearest.jpg")).shape == (142, 6 * 128, 3)


@pytest.mark.slow
def test_whitened_by_every_script_that_can(trained, grains, tmp_path):
    run_dir, _ = trained
    whiten = ("--whiten_with", grains / "train")
    result = run_python(
        *("scripts/export_model.py", "--model", run_dir, "--out_dir", tmp_path / "out", *whiten),
        *("--formats", "saved_model", "litert"),
    )
    # 18 pictures are all there are; the classes are those of the network that is not whitened.
    assert "18 pictures to compare on, instead of --num_pictures 256" in result.stdout
    assert result.stdout.count("on 18 pictures, same class 1.0000") == 2
    assert json.loads((tmp_path / "out" / "exported.json").read_text())["whitened"] is True
    figures = {}
    for name, options in {"plain": (), "whitened": whiten}.items():
        file = tmp_path / f"{name}.json"
        evaluate(run_dir, "--protocol", "copydays", "--data_dir", grains / "copydays", "--json", file, *options)
        figures[name] = json.loads(file.read_text())
    assert figures["plain"].keys() == figures["whitened"].keys()
    assert figures["plain"] != figures["whitened"]
    query = grains / "copydays" / "strong" / "200001.jpg"
    found = run_python(
        *("scripts/search_images.py", "--model", run_dir, "--index", grains / "copydays", "--query", query, *whiten),
        *("--sheet", tmp_path / "nearest.jpg"),
    )
    lines = found.stdout.splitlines()
    assert lines[0].startswith("no verdict of same instance: the border that was learnt is one of distances without")
    assert lines[2].split()[:2] == ["1", "1.0000"]
    assert lines[2].endswith("strong/200001.jpg")
    assert not any("instance" in line for line in lines[1:])
    few = run_python(
        *("scripts/export_model.py", "--model", run_dir, "--out_dir", tmp_path / "none"),
        *("--whiten_with", grains / "val"),
        check=False,
    )
    assert few.returncode == 65, few.stderr
    assert "6 pictures cannot whiten 16 dimensions" in few.stderr
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [("--retrieval_loss", "triplet"), ("--classification_weight", "1")], ids=["triplet", "classes"]
)
def test_without_a_learnt_border_the_search_says_so(grains, tmp_path, options):
    train(grains, tmp_path / "run", "--max_steps", "1", "--val_dir", grains / "val", *options)
    (measured,) = metrics_of(tmp_path / "run", "validation")
    assert "margin_beta" not in measured
    found = run_python(
        *("scripts/search_images.py", "--model", tmp_path / "run", "--index", grains / "val"),
        *("--query", grains / "copydays" / "strong" / "200001.jpg", "--sheet", tmp_path / "nearest.jpg"),
    )
    assert found.stdout.startswith("no verdict of same instance: the model has no border of it")
    assert found.stdout.count("instance") == 1


def test_mistakes_of_exporting_and_searching(trained, grains, tmp_path):
    script, model = "scripts/export_model.py", ("--model", trained[0])
    assert "unknown" in str(refused(script, *model, "--out_dir", tmp_path, "--formats", "mindir"))
    assert "--num_pictures 0" in str(refused(script, *model, "--out_dir", tmp_path, "--num_pictures", "0"))
    script = "scripts/search_images.py"
    assert "no such file" in str(refused(script, *model, "--index", grains, "--query", tmp_path / "none.jpg"))


@pytest.mark.slow
def test_a_power_is_chosen_by_the_script(trained, grains, tmp_path):
    result = run_python(
        *("scripts/choose_gem_p.py", "--model", trained[0], "--data_dir", grains / "val", "--image_size", "40"),
        *("--powers", "1", "3", "--json", tmp_path / "powers.json"),
    )
    rows = json.loads((tmp_path / "powers.json").read_text())
    assert [row["p"] for row in rows] == [1, 3]
    assert all(0 <= row["copies_map"] <= 1 and 0 <= row["accuracy"] <= 1 for row in rows)
    assert "best copies_map: --gem_p" in result.stdout


def finetune(model, grains, run_dir, *options):
    return run_python(
        *("scripts/finetune_gem_p.py", "--model", model, "--data_dir", grains / "train", "--image_size", "48"),
        *("--run_dir", run_dir, "--log_every", "1", *options),
    )


@pytest.fixture(scope="session")
def finetuned(trained, grains, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("finetuned") / "run"
    # Two epochs of 3 classes x 5 pictures in batches of 6, and a rate that a power of so small a network feels.
    options = ("--images_per_class", "5", "--batch_size", "6", "--max_epochs", "2", "--learning_rate", "20")
    result = finetune(trained[0], grains, run_dir, *options, "--towers", "2", "--val_dir", grains / "val")
    return run_dir, result.stdout


def test_only_the_power_is_fine_tuned(trained, finetuned):
    before, after = ({**export_arrays(run_dir)} for run_dir in (trained[0], finetuned[0]))
    first, last = before.pop("network/gem/p"), after.pop("network/gem/p")
    assert abs(last - first) > 1e-3
    assert before.keys() == after.keys()
    assert any("moving_variance" in name for name in after)
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value, err_msg=name)


def test_the_fine_tuned_model_is_one_for_the_new_size(trained, finetuned):
    run_dir, output = finetuned
    facts = json.loads((run_dir / "model" / "model.json").read_text())
    assert (facts["network"]["image_size"], facts["network"]["learn_gem_p"], facts["load_size"]) == (48, True, 55)
    lines, (measured,) = metrics_of(run_dir), metrics_of(run_dir, "validation")
    assert [line["learning_rate"] for line in lines] == pytest.approx([20 * (1 - step / 6) ** 0.9 for step in range(6)])
    assert lines[0]["gem_p"] == pytest.approx(float(export_arrays(trained[0])["network/gem/p"]))
    assert measured["gem_p"] == pytest.approx(float(export_arrays(run_dir)["network/gem/p"]))
    assert f"power of GeM pooling: {measured['gem_p']:.4f}" in output
    result = run_python("validate_on_images.py", "--model", run_dir, "--json", run_dir / "figures.json")
    assert "3 classes" in result.stdout
    assert json.loads((run_dir / "figures.json").read_text())["cross_entropy"] == pytest.approx(
        measured["val_loss"], rel=1e-4
    )


@pytest.mark.slow
def test_any_number_of_towers_fine_tunes_the_power_alike(trained, grains, tmp_path):
    powers, losses = [], []
    for towers in ("1", "2", "4"):
        options = ("--batch_size", "8", "--max_epochs", "4", "--learning_rate", "5", "--precision", "float64")
        finetune(trained[0], grains, tmp_path / towers, *options, "--towers", towers)
        lines = metrics_of(tmp_path / towers)
        losses.append([line["loss"] for line in lines])
        powers.append(metrics_of(tmp_path / towers, "validation")[-1]["gem_p"])
    assert powers[1:] == pytest.approx(powers[:1] * 2, rel=1e-9)
    for other in losses[1:]:
        assert other == pytest.approx(losses[0], rel=1e-9)


def test_mistakes_of_evaluation(trained, grains):
    script, model = "scripts/evaluate_retrieval.py", ("--model", trained[0], "--data_dir", grains / "val")
    both = refused(script, *model, "--protocol", "folder", "--longest_side", "48", "--image_size", "40")
    assert "--longest_side takes whole pictures" in str(both)
    assert "100000.jpg" in str(refused(script, *model, "--protocol", "holidays"))
    stray = refused(script, *model, "--protocol", "folder", "--distractors", grains / "val")
    assert "only copydays" in str(stray)
    stray = refused(script, *model, "--protocol", "ukbench", "--holidays_rotations", grains / "list")
    assert "only holidays" in str(stray)


def test_mistakes_of_fine_tuning(trained, grains, tmp_path):
    script = "scripts/finetune_gem_p.py"
    own = ("--model", trained[0], "--data_dir", grains / "train", "--image_size", "48")
    assert "--optimizer THOR" in str(refused(script, *own, "--optimizer", "thor"))
    assert "--images_per_class 0" in str(refused(script, *own, "--images_per_class", "0"))
    foreign = refused(script, *own[:2], "--data_dir", grains / "copydays", "--image_size", "48")
    assert "not among the 3 trained ones" in str(foreign)
    assert "--load_size 30" in str(refused(script, *own, "--load_size", "30"))


def test_the_standin_is_the_same_for_the_same_seed(grains, tmp_path):
    assert standin.generate(tmp_path / "again", **TINY)
    files = sorted(path.relative_to(grains) for path in grains.rglob("*") if path.is_file())
    # train 18, val 6, holidays 6, copydays 3 x (1 + 2 + 2 + 1), dataset.json
    assert len(files) == 49
    for file in files:
        assert (tmp_path / "again" / file).read_bytes() == (grains / file).read_bytes()
    assert not standin.generate(tmp_path / "again", **TINY)
    with pytest.raises(BadData, match="other options"):
        standin.generate(tmp_path / "again", **TINY | {"seed": 1})


def test_options_of_the_standin_that_cannot_be_met(tmp_path):
    for change in ({"num_classes": 21}, {"views": 1}, {"image_size": 8}, {"strong_changes": 11}):
        with pytest.raises(UserError, match="must be"):
            standin.generate(tmp_path / "none", **TINY | change)
    assert not (tmp_path / "none").exists()
