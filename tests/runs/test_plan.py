"""Steps, batches and learning rates from options."""

import pytest

from towers.errors import BadData, UserError
from towers.runs.plan import DEFAULT_EPOCHS, Plan, check_parts, learning_rates, plan_steps

OPTIONS = {
    "batch_size": 8,
    "batch_mode": "split",
    "epoch_size": None,
    "max_epochs": None,
    "max_steps": None,
    "learning_rate_schedule_file": None,
    "where": "FACES",
}
RATES = {
    "learning_rate": None,
    "default_learning_rate": 0.1,
    "learning_rate_schedule": "cosine",
    "learning_rate_schedule_file": None,
    "learning_rate_decay_epochs": 1,
    "learning_rate_decay_factor": 0.5,
    "warmup_steps": 0,
}


def test_an_epoch_holds_every_picture_at_least_once():
    assert plan_steps(60, 2, **OPTIONS).epoch_size == 8


def test_without_an_end_there_are_a_few_epochs():
    assert plan_steps(60, 1, **OPTIONS).last_step == 8 * DEFAULT_EPOCHS


def test_whichever_end_comes_first_and_the_rates_are_laid_out_over_the_epochs():
    plan = plan_steps(60, 1, **{**OPTIONS, "max_epochs": 3, "max_steps": 5})
    assert (plan.last_step, plan.horizon) == (5, 24)
    plan = plan_steps(60, 1, **{**OPTIONS, "max_epochs": 3, "max_steps": 50})
    assert plan.last_step == 24


def test_a_batch_for_each_tower():
    assert plan_steps(60, 4, **{**OPTIONS, "batch_mode": "per_tower"}).batch_size == 32


@pytest.mark.parametrize(("towers", "advice"), [(3, "--batch_size 6 or 9"), (16, "--batch_size 16, or --batch_mode")])
def test_a_batch_that_does_not_split_shows_the_arithmetic(towers, advice):
    with pytest.raises(UserError, match=advice):
        plan_steps(60, towers, **OPTIONS)


def test_too_few_pictures():
    with pytest.raises(BadData, match="FACES: 7 images are fewer than a batch of 8"):
        plan_steps(7, 1, **OPTIONS)


def test_a_file_s_end_ends_the_run(tmp_path):
    path = tmp_path / "rates.txt"
    path.write_text("1: 0.1\n2: 0.01\n3: -1\n")
    plan = plan_steps(60, 1, **{**OPTIONS, "learning_rate_schedule_file": path})
    assert plan.last_step is None
    rate = learning_rates(plan, **{**RATES, "learning_rate_schedule_file": path, "learning_rate_decay_factor": 1.0})
    assert [rate(step) for step in (0, 7, 8, 15, 16)] == [0.1, 0.1, 0.01, 0.01, None]


def test_default_rate_and_cosine_to_zero():
    plan = plan_steps(60, 1, **{**OPTIONS, "max_epochs": 2})
    rate = learning_rates(plan, **RATES)
    assert rate(0) == pytest.approx(0.1)
    assert rate(8) == pytest.approx(0.05)


def test_exponential_by_epochs():
    plan = plan_steps(60, 1, **{**OPTIONS, "max_epochs": 2})
    rate = learning_rates(plan, **{**RATES, "learning_rate_schedule": "exponential", "learning_rate": 0.2})
    assert [rate(0), rate(7), rate(8)] == pytest.approx([0.2, 0.2, 0.1])


def test_warmup_in_epochs_is_that_of_the_data():
    settings = {
        "learning_rate": 0.1,
        "default_learning_rate": 0.1,
        "learning_rate_schedule": "polynomial",
        "learning_rate_schedule_file": None,
        "learning_rate_decay_epochs": 1,
        "learning_rate_decay_factor": 1.0,
    }
    steps = Plan(batch_size=8, epoch_size=40, last_step=400, horizon=400)
    rate = learning_rates(steps, warmup_steps=0, warmup_epochs=0.5, **settings)
    assert [rate(step) for step in (0, 19, 210)] == pytest.approx([0.005, 0.1, 0.05])
    with pytest.raises(UserError, match="give one of them"):
        learning_rates(steps, warmup_steps=5, warmup_epochs=0.5, **settings)


def test_parts_of_a_batch_are_equal():
    check_parts(8, 4)
    for parts in (0, 3, 16):
        with pytest.raises(UserError, match=f"--accumulate {parts}"):
            check_parts(8, parts)
