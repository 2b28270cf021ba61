"""MultiGrain's launchers, with a Python that writes down how it was called."""

import importlib.util
import os

import pytest
from conftest import ROOT
from test_launchers import calls, option, project, start

__all__ = ["project"]
TOP_1 = "top-1 77.4 (lambda 0.5, p 3, 224 px)"


def image_folder(path):
    for name in ("train/cat", "val/cat"):
        (path / name).mkdir(parents=True)
    return path


def parsed(arguments):
    spec = importlib.util.spec_from_file_location("train_multigrain", ROOT / "train_multigrain.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.make_parser().parse_args(arguments)


def test_the_published_recipe(project, tmp_path):
    data = image_folder(tmp_path / "images")
    result = start(project, "scripts/train_multigrain.sh", "--seed", "3", DATA=str(data), OUT=str(tmp_path / "run"))
    assert result.returncode == 0, result.stderr
    (train,) = calls(project)
    assert train[0] == "train_multigrain.py"
    options = parsed(train[1:])
    assert (str(options.data_dir), str(options.val_dir)) == (str(data / "train"), str(data / "val"))
    assert (options.network, options.embedding_size, options.gem_p, options.image_size) == ("resnet50", 2048, 3, 224)
    assert (options.classification_weight, options.copies, options.batch_size) == (0.5, 3, 516)
    assert (options.learning_rate, options.weight_decay, options.max_epochs) == (0.2, 1e-4, 120)
    assert str(options.run_dir) == str(tmp_path / "run")
    assert options.seed == 3
    # 516 pictures of 3 copies split over 1, 2 and 4 towers; an epoch is two passes, as published.
    assert all(516 % (3 * towers) == 0 for towers in (1, 2, 4))
    assert options.epoch_size == -(-2 * 1_281_167 // 516)


def test_without_data_the_standin_on_two_towers(project):
    assert start(project, "scripts/train_multigrain.sh").returncode == 0
    (train,) = calls(project)
    options = parsed(train[1:])
    assert options.synthetic
    assert options.towers == 2
    assert options.batch_size % (options.copies * 2) == 0


def test_the_ported_scripts_positions(project, tmp_path):
    data = image_folder(tmp_path / "images")
    start(project, "scripts/train_multigrain_distributed.sh", str(data), "4", "--max_steps", "9")
    start(project, "scripts/train_multigrain_standalone.sh", str(data))
    four, one = calls(project)
    assert option(four, "--towers") == "4"
    assert option(four, "--max_steps") == "9"
    assert option(one, "--towers") == "1"
    assert option(one, "--data_dir") == str(data / "train")


def test_evaluation_of_classes_and_of_what_else_there_is(project, tmp_path):
    data = image_folder(tmp_path / "images")
    start(
        *(project, "scripts/eval_multigrain.sh", str(data), str(tmp_path / "run"), "--towers", "1"),
        **{
            "COPYDAYS": "copies",
            "DISTRACTORS": "others",
            "HOLIDAYS": "/h",
            "cwd": tmp_path,
            "HOLIDAYS_ROTATIONS": "list",
            "UKBENCH": "uk bench",
            "WHITEN_WITH": "yfcc",
            "RETRIEVAL_OPTIONS": "--longest_side 800  --gem_p 4",
        },
    )
    classes, holidays, ukbench, copydays = calls(project)
    assert classes[0] == "validate_on_images.py"
    assert option(classes, "--data_dir") == str(data / "val")
    assert option(classes, "--model") == str(tmp_path / "run")
    assert option(classes, "--towers") == "1"
    assert "--gem_p" not in classes
    for retrieval in (holidays, ukbench, copydays):
        assert retrieval[0] == "scripts/evaluate_retrieval.py"
        assert option(retrieval, "--model") == str(tmp_path / "run")
        assert option(retrieval, "--whiten_with") == str(tmp_path / "yfcc")
        assert (option(retrieval, "--longest_side"), option(retrieval, "--gem_p")) == ("800", "4")
    assert (option(ukbench, "--protocol"), option(ukbench, "--data_dir")) == ("ukbench", str(tmp_path / "uk bench"))
    assert (option(holidays, "--protocol"), option(holidays, "--data_dir")) == ("holidays", "/h")
    assert option(holidays, "--holidays_rotations") == str(tmp_path / "list")
    assert option(copydays, "--distractors") == str(tmp_path / "others")


@pytest.mark.parametrize("name", ["train_multigrain_distributed", "train_multigrain_standalone", "eval_multigrain"])
def test_too_few_words_show_the_usage(project, name):
    result = start(project, f"scripts/{name}.sh")
    assert result.returncode == 2
    assert f"usage: bash scripts/{name}.sh DATASET_PATH" in result.stderr


def test_data_without_train_is_named(project, tmp_path):
    (tmp_path / "images").mkdir()
    result = start(project, "scripts/train_multigrain.sh", DATA=str(tmp_path / "images"))
    assert result.returncode == 2
    assert "has no train/" in result.stderr
    assert calls(project) == []


def test_heads_say_what_was_published_and_that_it_was_not_run():
    figures = dict.fromkeys(("train_multigrain", "train_multigrain_distributed", "train_multigrain_standalone"), TOP_1)
    for name, figure in (*figures.items(), ("eval_multigrain", "top-1 77.4"), ("eval_multigrain", "92.5")):
        text = (ROOT / "scripts" / f"{name}.sh").read_text()
        assert figure in text
        assert "NOT YET RUN" in text
        assert os.access(ROOT / "scripts" / f"{name}.sh", os.X_OK)


def test_thor_as_it_was_released(project, tmp_path):
    data = image_folder(tmp_path / "images")
    environment = {"DATA": str(data), "TOWERS": "8", "OUT": str(tmp_path / "run")}
    result = start(project, "scripts/train_resnet50_thor.sh", "--seed", "3", **environment)
    assert result.returncode == 0, result.stderr
    (train,) = calls(project)
    assert train[0] == "train_multigrain.py"
    options = parsed(train[1:])
    assert (str(options.data_dir), str(options.val_dir)) == (str(data / "train"), str(data / "val"))
    assert str(options.run_dir) == str(tmp_path / "run")
    assert (options.towers, options.batch_size, options.precision, options.loss_scale) == (8, 256, "float16", 128)
    assert (options.classification_weight, options.copies, options.gem_p) == (1, 1, 1)
    assert (options.optimizer, options.thor_optimizer, options.weight_decay) == ("THOR", "MOM", 5e-4)
    assert (options.thor_interval, options.thor_damping, options.thor_damping_decay) == (834, 0.03, 0.50036)
    assert (options.learning_rate, options.learning_rate_power) == (0.05803, 4.0839)
    assert options.thor_kl_clip == 0
    assert options.learning_rate_schedule == "thor"
    assert (options.learning_rate_end_epoch, options.learning_rate_halving_epochs) == (53, (39, 40))
    assert (options.max_epochs, options.label_smoothing, options.seed) == (45, 0.1, 3)
    # Six refreshes an epoch.
    assert -(-1_281_167 // options.batch_size) // options.thor_interval == 6


def test_thor_without_data_on_the_drawn_standin(project):
    assert start(project, "scripts/train_resnet50_thor.sh").returncode == 0
    prepare, train = calls(project)
    assert prepare[0] == "data/mini_imagenet/prepare.py"
    options = parsed(train[1:])
    assert (options.network, options.embedding_size, options.image_size) == ("resnet10", 512, 64)
    assert (options.precision, options.optimizer, options.towers) == ("float32", "THOR", 2)
    assert options.max_epochs < options.learning_rate_end_epoch


def test_the_head_of_the_thor_launcher():
    text = (ROOT / "scripts" / "train_resnet50_thor.sh").read_text()
    assert "top-1 75.9 in 45 epochs" in text
    assert text.count("not yet run") == 2
