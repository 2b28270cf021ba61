import math
from pathlib import Path

import pytest

from towers.errors import UserError
from towers.training import schedules

DATA = Path(__file__).parents[2] / "data"


def written(folder, text):
    path = folder / "rates.txt"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("name", "rates"),
    [
        ("casia", {1: 0.05, 59: 0.05, 60: 0.005, 79: 0.005, 80: 0.0005, 90: 0.0005, 91: None, 500: None}),
        ("vggface2", {1: 0.05, 99: 0.05, 100: 0.005, 199: 0.005, 200: 0.0005, 275: 0.0005, 276: None}),
        ("msceleb", {1: 0.1, 149: 0.1, 150: 0.01, 179: 0.01, 180: 0.001, 250: 0.001, 251: 0.0001, 9999: 0.0001}),
        ("retrain_tripletloss", {1: 0.1, 299: 0.1, 300: 0.01, 399: 0.01, 400: 0.001, 999: 0.001, 1000: 0.0001}),
    ],
)
def test_shipped_files(name, rates):
    schedule = schedules.from_file(DATA / f"learning_rate_{name}.txt", epoch_size=10)
    for epoch, rate in rates.items():
        assert schedule((epoch - 1) * 10) == rate
        assert schedule(epoch * 10 - 1) == rate


def test_epochs_may_be_counted_from_0_as_for_triplets():
    schedule = schedules.from_file(DATA / "learning_rate_retrain_tripletloss.txt", epoch_size=10, first_epoch=0)
    assert (schedule(2999), schedule(3000)) == (0.1, 0.01)


def test_comments_blank_lines_spaces_and_stops(tmp_path):
    path = written(tmp_path, "# rates\n\n 1 : 1e-1 # first\n2:0.2\n3: - # stop\n")
    schedule = schedules.from_file(path, epoch_size=2)
    assert [schedule(step) for step in range(6)] == [0.1, 0.1, 0.2, 0.2, None, None]


@pytest.mark.parametrize("stop", ["-", "-1", "0", "-0.5"])
def test_rates_that_are_not_positive_stop(tmp_path, stop):
    assert schedules.from_file(written(tmp_path, f"0: 0.1\n5: {stop}\n"), epoch_size=1)(4) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0: 0.1\nsixty: 0.01\n", r"rates\.txt:2: .*sixty"),
        ("0: 0.1\n60 0.01\n", r"rates\.txt:2: "),
        ("0:\n", r"rates\.txt:1: "),
        ("0: 0.1: 0.2\n", r"rates\.txt:1: "),
        ("0: nan\n", r"rates\.txt:1: "),
        ("0: inf\n", r"rates\.txt:1: "),
        ("-1: 0.1\n", r"rates\.txt:1: "),
        ("0.5: 0.1\n", r"rates\.txt:1: "),
        ("0: 0.1\n\n9: 0.01\n5: 0.001\n", r"rates\.txt:4: epoch 5 comes after epoch 9"),
        ("0: 0.1\n0: 0.2\n", r"rates\.txt:2: "),
        ("# nothing\n", "no learning rate"),
        ("2: 0.1\n", "before epoch 2"),
    ],
)
def test_bad_files_are_refused_with_their_line(tmp_path, text, message):
    with pytest.raises(UserError, match=message) as error:
        schedules.from_file(written(tmp_path, text), epoch_size=1)
    assert "\n" not in str(error.value)


def test_files_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(UserError, match="missing.txt: no such"):
        schedules.from_file(tmp_path / "missing.txt", epoch_size=1)
    with pytest.raises(UserError, match="cannot be read"):
        schedules.from_file(tmp_path, epoch_size=1)
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe0")
    with pytest.raises(UserError, match="binary.txt: cannot be read"):
        schedules.from_file(tmp_path / "binary.txt", epoch_size=1)


def test_exponential_decays_in_stairs():
    schedule = schedules.exponential(0.8, decay_steps=3, decay_factor=0.5)
    assert [schedule(step) for step in range(7)] == [0.8, 0.8, 0.8, 0.4, 0.4, 0.4, 0.2]


def test_cosine_goes_from_the_rate_to_the_final_and_stays():
    schedule = schedules.cosine(1.0, total_steps=4, final=0.2)
    expected = [1.0, 0.2 + 0.4 * (1 + math.sqrt(0.5)), 0.6, 0.2 + 0.4 * (1 - math.sqrt(0.5)), 0.2, 0.2]
    assert [schedule(step) for step in (0, 1, 2, 3, 4, 9)] == pytest.approx(expected, rel=1e-12)


def test_warmup_rises_to_the_schedule_and_passes_its_stop_on():
    schedule = schedules.with_warmup(lambda step: None if step == 5 else 1.0, warmup_steps=4)
    assert [schedule(step) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, None]


class TestBuild:
    def test_positive_rate_decays_every_decay_epochs(self):
        schedule = schedules.build(learning_rate=0.8, epoch_size=5, decay_epochs=2, decay_factor=0.5)
        assert [schedule(step) for step in (0, 9, 10, 20)] == [0.8, 0.8, 0.4, 0.2]

    def test_rate_stays_by_default(self):
        assert schedules.build(learning_rate=0.1, epoch_size=5)(10**6) == 0.1

    @pytest.mark.parametrize("learning_rate", [-1.0, 0.0, None])
    def test_no_positive_rate_reads_the_file(self, learning_rate):
        schedule = schedules.build(
            learning_rate=learning_rate, epoch_size=1, schedule_file=DATA / "learning_rate_casia.txt"
        )
        assert (schedule(0), schedule(89), schedule(90)) == (0.05, 0.0005, None)

    def test_first_epoch_reaches_the_file(self):
        schedule = schedules.build(
            learning_rate=None, epoch_size=1, schedule_file=DATA / "learning_rate_casia.txt", first_epoch=0
        )
        assert (schedule(90), schedule(91)) == (0.0005, None)

    def test_decay_factor_applies_to_a_file_too(self, tmp_path):
        path = written(tmp_path, "0: 0.8\n3: -1\n")
        schedule = schedules.build(learning_rate=-1, epoch_size=1, schedule_file=path, decay_epochs=1, decay_factor=0.5)
        assert [schedule(step) for step in range(3)] == [0.8, 0.4, None]

    def test_cosine_with_warmup(self):
        schedule = schedules.build(
            learning_rate=1.0, epoch_size=5, decay="cosine", total_steps=8, final_learning_rate=0.5, warmup_steps=2
        )
        assert [schedule(step) for step in (0, 4, 8)] == pytest.approx([0.5, 0.75, 0.5])

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"learning_rate": 0.1, "schedule_file": "rates.txt"}, "both"),
            ({"learning_rate": -1.0}, "--learning_rate_schedule_file"),
            ({"learning_rate": 0.1, "decay": "cosine"}, "--max_steps"),
            ({"learning_rate": -1.0, "schedule_file": "x", "decay": "cosine", "total_steps": 9}, "--learning_rate"),
            ({"learning_rate": 0.1, "decay": "sawtooth"}, "sawtooth.*linear"),
            ({"learning_rate": 0.1, "decay": "linear"}, "--max_steps"),
            ({"learning_rate": 0.1, "decay": "linear", "total_steps": 9, "power": 2.0}, "--learning_rate_power 2.0"),
            ({"learning_rate": 0.1, "decay": "thor"}, "--learning_rate_end_epoch None"),
            ({"learning_rate": 0.1, "decay": "thor", "end_epoch": -1.0}, "--learning_rate_end_epoch -1.0"),
        ],
    )
    def test_contradictions_are_refused(self, options, message):
        with pytest.raises(UserError, match=message):
            schedules.build(epoch_size=5, **options)


def test_a_tenth_at_each_boundary():
    rate = schedules.build(learning_rate=0.1, epoch_size=10, decay="step", boundaries=[200, 100])
    assert [rate(step) for step in (0, 99)] == [0.1, 0.1]
    assert [rate(step) for step in (100, 199, 200, 10_000)] == pytest.approx([0.01, 0.01, 0.001, 0.001])
    with pytest.raises(UserError, match="--lr_steps"):
        schedules.build(learning_rate=0.1, epoch_size=10, decay="step")


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_polynomial_decay_begins_after_the_warmup(power):
    rate = schedules.build(
        learning_rate=0.1, epoch_size=10, decay="polynomial", total_steps=100, warmup_steps=20, power=power
    )
    assert [rate(step) for step in (0, 9, 19, 20)] == pytest.approx([0.005, 0.05, 0.1, 0.1])
    assert [rate(step) for step in (60, 100, 120)] == pytest.approx([0.1 * 0.5**power, 0.0, 0.0])
    with pytest.raises(UserError, match="--max_steps or --max_epochs"):
        schedules.build(learning_rate=0.1, epoch_size=10, decay="polynomial")


def test_linear_decay_begins_after_the_warmup():
    rate = schedules.build(learning_rate=0.8, epoch_size=10, decay="linear", total_steps=100, warmup_steps=20)
    assert [rate(step) for step in (9, 20, 60, 80, 100)] == pytest.approx([0.4, 0.8, 0.4, 0.2, 0.0])


@pytest.mark.parametrize(
    ("first", "end", "power", "rates"),
    [
        (0.05803, 53, 4.0839, [0.0580, 0.0387, 0.0247, 0.0084, 0.0019]),
        (0.05672, 50, 4.9687, [0.0567, 0.0336, 0.0187, 0.0045, 0.0006]),
        (0.045, 70, 6.0, [0.0450, 0.0289, 0.0179, 0.0060, 0.0016]),
    ],
)
def test_thors_published_rates_at_epochs_0_5_10_20_30(first, end, power, rates):
    rate = schedules.build(
        learning_rate=first, epoch_size=100, decay="thor", end_epoch=end, power=power, halving_epochs=(39, 40)
    )
    assert [rate(100 * epoch - 1) for epoch in (0, 5, 10, 20, 30)] == pytest.approx(rates, abs=6e-5)
    smooth = schedules.thor(first, 100, end, power)
    assert rate(3898) == smooth(3898)
    assert rate(3899) == 0.5 * smooth(3899)
    assert rate(3999) == 0.25 * smooth(3999)
    assert smooth(100 * end) == 0.0
