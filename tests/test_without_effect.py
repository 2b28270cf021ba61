"""Options that would do nothing are told."""

import importlib.util

import pytest
from conftest import ROOT, run_python

from towers import options
from towers.without_effect import NEEDS, options_without_effect

SCRIPTS = ("train_softmax.py", "train_tripletloss.py", "train_multi_gpu.py", "train_multigrain.py")


def parser_of(script):
    spec = importlib.util.spec_from_file_location(script.removesuffix(".py"), ROOT / script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.make_parser()


def told(script, *arguments):
    parser = parser_of(script)
    return options_without_effect(parser.parse_args(list(arguments)), parser)


@pytest.mark.parametrize(
    ("script", "arguments", "lines"),
    [
        (
            "train_multigrain.py",
            ["--retrieval_loss", "triplet", "--beta", "1"],
            ["--beta does nothing with --retrieval_loss triplet"],
        ),
        (
            "train_multigrain.py",
            ["--mining", "semihard", "--min_crop_area", "0.5"],
            [
                "--mining does nothing with --retrieval_loss margin",
                "--min_crop_area does nothing without --random_resized_crop",
            ],
        ),
        ("train_multigrain.py", ["--retrieval_loss", "triplet", "--mining", "semihard"], []),
        ("train_tripletloss.py", ["--mining", "semihard"], []),
        ("train_tripletloss.py", ["--alpha", "0.3", "--soft_margin"], ["--alpha does nothing with --soft_margin"]),
        ("train_softmax.py", ["--thor_damping", "0.1"], ["--thor_damping does nothing with --optimizer MOM"]),
        ("train_softmax.py", ["--thor_damping", "0.1", "--optimizer", "thor"], []),
        (
            "train_softmax.py",
            ["--learning_rate_end_epoch", "50", "--lr_steps", "10"],
            [
                "--learning_rate_end_epoch does nothing with --learning_rate_schedule cosine",
                "--lr_steps does nothing with --learning_rate_schedule cosine",
            ],
        ),
        ("train_softmax.py", ["--learning_rate_schedule_file", "rates", "--learning_rate_decay_factor", "0.5"], []),
        (
            "train_softmax.py",
            ["--center_loss_alfa", "0.9", "--learning_rate_schedule", "step", "--lr_steps", "10"],
            ["--center_loss_alfa does nothing without --center_loss_factor"],
        ),
        ("train_multi_gpu.py", ["--num_trees", "9"], ["--num_trees does nothing with --head sharded"]),
        (
            "train_multi_gpu.py",
            ["--head", "selected", "--num_trees", "9", "--selector", "ivf"],
            ["--num_trees does nothing with --selector ivf"],
        ),
        ("train_multi_gpu.py", ["--head", "selected", "--probes", "9", "--selector", "ivf"], []),
    ],
)
def test_what_does_nothing_beside_the_others_is_told(script, arguments, lines):
    assert told(script, *arguments) == lines


def test_every_name_is_an_option_of_a_training_script():
    known = {name for script in SCRIPTS for name in vars(parser_of(script).parse_args([]))}
    assert NEEDS.keys() <= known
    assert {other for needs in NEEDS.values() for other in needs} <= known


@pytest.mark.parametrize("script", SCRIPTS)
def test_defaults_are_not_spoken_of(script):
    assert told(script) == []


def test_a_script_tells_and_goes_on():
    result = run_python(
        *("train_multigrain.py", "--data_dir", "/nowhere", "--retrieval_loss", "triplet", "--beta", "1"), check=False
    )
    first, last = result.stderr.strip().splitlines()
    assert first == "train_multigrain.py: --beta does nothing with --retrieval_loss triplet"
    assert "/nowhere" in last


@pytest.mark.parametrize(("network", "power"), [("resnet50", 3.0), ("small", None)])
def test_only_networks_with_gem_have_a_power(network, power):
    arguments = parser_of("train_multigrain.py").parse_args(["--network", network])
    assert options.pick(arguments, "gem_p") == {"gem_p": power}
