"""The chart of benchmarks/head.py: what is measured, what the model says, and the picture."""

import importlib.util

import pytest
from conftest import ROOT

from towers.runs.head_memory import head_memory

SIZES = {"batch": 128, "embedding_size": 512}


@pytest.fixture(scope="module")
def chart():
    spec = importlib.util.spec_from_file_location("head_chart", ROOT / "benchmarks/head_chart.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_model_is_the_line_through_the_measurements_and_never_below_zero(chart):
    line = chart.cost_model([100, 1000, 10_000], [0.012, 0.03, 0.21])
    assert line(1_000_000) == pytest.approx(0.01 + 2e-5 * 1_000_000)
    # A line through these would begin below zero.
    steep = chart.cost_model([100, 1000], [0.001, 0.02])
    assert steep(0) == 0
    assert 0.01 < steep(1000) < 0.02
    # And through these it would sink.
    flat = chart.cost_model([100, 1000], [0.03, 0.02])
    assert flat(1_000_000) == pytest.approx(flat(1)) == pytest.approx(0.024)


def test_what_fits_is_told_by_the_memory_of_the_dry_run(chart):
    settings = {"num_towers": 2, "slots": 1, **SIZES}
    needed = 2 * head_memory(1_000_000, head="sharded", **settings).total + chart.RUNTIME
    assert chart.counts_that_fit("sharded", needed / 0.9 + 1, **SIZES)[-1] == 1_000_000
    assert chart.counts_that_fit("sharded", needed / 0.9 - 1e7, **SIZES)[-1] == 300_000
    assert max(chart.counts_that_fit("replicated", needed / 0.9, **SIZES)) < 1_000_000
    assert len(chart.counts_that_fit("sampled", 0, **SIZES)) == 2


def test_points_say_whether_they_were_measured(chart, tmp_path):
    measured = {head: {3_000: 0.064, 10_000: 0.128} for head in chart.HEADS}
    points = chart.draw(tmp_path / "head.png", measured, **SIZES)
    assert (tmp_path / "head.png").read_bytes().startswith(b"\x89PNG")
    first, second, third = points["sampled"][:3]
    assert [point["measured"] for point in (first, second, third)] == [True, True, False]
    assert (first["images_per_second"], second["images_per_second"]) == (2000, 1000)
    assert third["identities"] == 30_000
    assert third["images_per_second"] == pytest.approx(128 / (0.064 + 0.064 * 27 / 7))
    expected = head_memory(30_000, head="sampled", num_towers=2, slots=1, sample_rate=0.1, **SIZES).total
    assert third["bytes_a_tower"] == expected
