"""Rows and findings of a comparison, from run folders written by hand."""

import csv
import json

import numpy as np
import pytest

from towers.errors import BadData, StorageError
from towers.runs.comparison import compare, read_feed, read_run
from towers.runs.comparison_findings import judge
from towers.runs.comparison_report import table, write

CPU, GPU = "/physical_device:CPU:0", "NVIDIA A100-SXM4-40GB"


def audit_lines(towers, steps=20, batch=8, position=None, record=None):
    """A batch split over the towers; ``position`` and ``record`` change what a tower is fed at a step."""
    lines = []
    for step in range(steps):
        for tower in range(towers):
            each = batch // towers
            places = np.arange(step * batch + tower * each, step * batch + (tower + 1) * each)
            fed = places if position is None else position(step, tower, places)
            records = fed % 1000 if record is None else record(step, tower, fed)
            shown = f"{fed[0]}-{fed[-1]}" if len(fed) > 1 else str(fed[0])
            lines.append(f"{step}\t{tower}\t{shown}\t{','.join(map(str, records))}")
    return lines


def write_run(
    folder,
    towers,
    *,
    audit=None,
    seconds=0.1,
    data_wait=0.01,
    compute=None,
    reduce=0.005,
    accuracy=0.9,
    device=GPU,
    starts=(0,),
    first_seconds=9.0,
    windows=4,
):
    """A run folder of ``windows`` lines of 5 steps, 8 images each; the first window of each start is slow."""
    folder.mkdir(parents=True)
    steps = 5 * windows
    compute = [0.8 * seconds] * towers if compute is None else compute
    audit = audit_lines(towers, steps) if audit is None else audit
    folder.joinpath("audit.tsv").write_text("".join(f"{line}\n" for line in audit))
    devices = [CPU] if device == CPU else [CPU, device]
    folder.joinpath("environment.json").write_text(json.dumps({"cpu_cores": 2, "devices": devices}))
    log = [f"{folder}: {'going on at' if start else 'from'} step {start}, 60 images of 6 classes" for start in starts]
    folder.joinpath("train.log").write_text("\n".join(log) + "\n")
    with folder.joinpath("metrics.jsonl").open("w") as file:
        for window in range(windows):
            step_seconds = first_seconds if 5 * window in starts else seconds
            line = {
                "kind": "train",
                "step": 5 * window + 5,
                "images_per_second": 8 / step_seconds,
                "data_wait": data_wait,
                "tower_compute_seconds": compute,
                "tower_reduce_seconds": [reduce] * towers if np.isscalar(reduce) else reduce,
            }
            file.write(json.dumps(line) + "\n")
        if accuracy is not None:
            file.write(json.dumps({"kind": "validation", "step": steps, "lfw_accuracy": accuracy - 0.1}) + "\n")
            file.write(json.dumps({"kind": "validation", "step": steps, "lfw_accuracy": accuracy}) + "\n")
    return read_run(folder, towers)


def test_a_row_has_the_figures_without_the_tracing_window(tmp_path):
    one = write_run(tmp_path / "1", 1, seconds=0.1)
    two = write_run(
        tmp_path / "2", 2, seconds=0.0625, data_wait=0.04, compute=[0.04, 0.045], reduce=[0.0075, 0.0025], accuracy=0.8
    )
    first, second = compare({1: [one], 2: [two]})
    assert first.epochs_seconds == pytest.approx(20 * 0.1)
    assert first.images_per_second == pytest.approx(80)
    assert (first.speed_up, first.efficiency, first.imbalance, first.reduction) == (1, 1, 1, 0)
    assert second.batch_seconds == pytest.approx(0.0625)
    assert second.images_per_second == pytest.approx(128)
    assert second.speed_up == pytest.approx(1.6)
    assert second.efficiency == pytest.approx(0.8)
    assert second.accuracy == 0.8
    assert second.data_wait == pytest.approx(0.04)
    assert second.reduction == pytest.approx(0.0025 / 0.0625)
    assert second.imbalance == pytest.approx(0.045 / 0.04)
    assert second.slowest_tower == 1
    assert second.compute == pytest.approx(0.04 / 0.0625)
    assert second.slowest_wait == pytest.approx(0.005 / 0.0625)
    assert second.rest == pytest.approx(1 - 0.04 - 0.04 - 0.64 - 0.08)
    assert second.all_worked is True
    assert second.own_data is True


def test_the_window_after_a_resume_is_not_measured(tmp_path):
    run = write_run(tmp_path / "run", 1, starts=(0, 10), windows=5)
    assert run.steps.tolist() == [5, 5, 5]
    np.testing.assert_allclose(run.seconds, 0.5)
    assert run.total_steps == 25


def test_seeds_are_one_row_of_mean_accuracy(tmp_path):
    runs = [write_run(tmp_path / str(seed), 1, seconds=0.1 * seed, accuracy=0.9 + 0.01 * seed) for seed in (1, 2, 3)]
    (row,) = compare({1: runs})
    assert row.accuracy == pytest.approx(0.92)
    assert row.runs == 3
    assert row.batch_seconds == pytest.approx(0.2)
    assert row.epochs_seconds == pytest.approx(20 * 0.2)


def test_a_run_without_validation_has_no_accuracy(tmp_path):
    (row,) = compare({1: [write_run(tmp_path / "1", 1, accuracy=None)]})
    assert row.accuracy is None
    assert table([row]).splitlines()[1].split().count("-") == 1


def findings(tmp_path, **two):
    runs = {towers: [write_run(tmp_path / str(towers), towers)] for towers in (1,)}
    runs[2] = [write_run(tmp_path / "2", 2, **{"seconds": 0.05, **two})]
    rows = compare(runs)
    return judge(rows), rows[-1]


def test_a_good_scaling_is_limited_by_computing(tmp_path):
    finding, _ = findings(tmp_path, seconds=0.0625, compute=[0.055, 0.055])
    assert finding.rule == "compute"
    assert finding.exit_code == 0
    assert "2 towers make 1.60 times the images a second of 1, 80 % of the ideal" in finding.sentence


def test_the_same_positions_on_all_towers_are_a_fault_before_all_else(tmp_path):
    audit = audit_lines(2, position=lambda step, tower, places: np.arange(8 * step, 8 * step + 4))
    finding, row = findings(tmp_path, audit=audit, data_wait=0.9, compute=[0.01, 0.05])
    assert (finding.rule, finding.exit_code) == ("same_data", 65)
    assert finding.sentence.startswith("Every tower saw the same data")
    assert "towers 0 and 1" in finding.sentence
    assert "step 0" in finding.sentence
    assert row.shared == 1
    assert row.own_data is False


def test_one_shared_position_is_told_as_such(tmp_path):
    def position(step, tower, places):
        return places - 1 if (step, tower) == (7, 1) else places

    finding, row = findings(tmp_path, audit=audit_lines(2, position=position))
    assert finding.sentence.startswith("More than one tower saw the same data")
    assert "step 7" in finding.sentence
    assert 0 < row.shared < 0.1


def test_the_same_records_at_other_positions_are_a_fault(tmp_path):
    finding, _ = findings(
        tmp_path, audit=audit_lines(2, record=lambda step, tower, places: np.arange(4 * step, 4 * step + 4))
    )
    assert (finding.rule, finding.exit_code) == ("same_data", 65)


def test_a_batch_over_the_border_of_passes_may_hold_a_record_twice(tmp_path):
    finding, row = findings(tmp_path, audit=audit_lines(2, record=lambda step, tower, places: places % 11))
    assert finding.exit_code == 0
    assert row.own_data is True


def test_a_run_that_its_own_audit_ended_at_once_is_told(tmp_path):
    audit = ["0\t0\t0-3\t5,6,7,8", "0\t1\t0-3\t5,6,7,8"]
    run = write_run(tmp_path / "4", 4, audit=audit, windows=0, accuracy=None)
    (row,) = compare({4: [run]})
    finding = judge([row])
    assert (finding.rule, finding.exit_code) == ("same_data", 65)
    assert "of 4 towers, towers 0 and 1" in finding.sentence
    assert row.all_worked is None
    assert row.images_per_second is None
    write(tmp_path, [row], finding, ["train.py"])
    assert (tmp_path / "comparison.png").stat().st_size > 5000


def test_a_tower_that_was_never_fed_did_not_work(tmp_path):
    audit = [line for line in audit_lines(2) if line.split("\t")[1] == "0"]
    finding, row = findings(tmp_path, audit=audit)
    assert (finding.rule, finding.exit_code) == ("idle_tower", 65)
    assert "tower 1" in finding.sentence
    assert row.all_worked is False


@pytest.mark.parametrize("compute", [[0.04], [0.04, 0.0], [0.04, float("nan")]])
def test_a_tower_that_computed_nothing_did_not_work(tmp_path, compute):
    finding, _ = findings(tmp_path, compute=compute)
    assert finding.rule == "idle_tower"


@pytest.mark.parametrize("change", ["left out", "repeated"])
def test_a_pass_that_is_not_whole_is_a_fault(tmp_path, change):
    lines = audit_lines(2)
    if change == "left out":
        del lines[9]
    else:
        lines[8] = "4\t0\t0-3\t0,1,2,3"
    finding, row = findings(tmp_path, audit=lines)
    assert (finding.rule, finding.exit_code) == ("incomplete_data", 65)
    assert row.own_data is False
    assert ("4 places" if change == "left out" else "4 twice") in finding.sentence


def test_waiting_for_data_comes_before_the_slow_tower(tmp_path):
    finding, _ = findings(tmp_path, data_wait=0.6, compute=[0.01, 0.02])
    assert finding.rule == "data_wait"
    assert "60 % of the time with 2 tower(s)" in finding.sentence


@pytest.mark.parametrize(
    ("device", "ratio", "rule"),
    [(GPU, 1.2, "compute"), (GPU, 1.3, "slow_tower"), (CPU, 2.0, "shared_cores"), (CPU, 2.6, "slow_tower")],
)
def test_a_slow_tower_is_named_where_taking_turns_does_not_explain_it(tmp_path, device, ratio, rule):
    finding, _ = findings(tmp_path, compute=[0.045, 0.045 / ratio], device=device)
    assert finding.rule == rule
    if rule == "slow_tower":
        assert f"tower 0 computes {ratio} times" in finding.sentence


def test_a_slow_tower_is_compared_with_the_median_of_the_others(tmp_path):
    run = write_run(tmp_path / "4", 4, compute=[0.03, 0.05, 0.09, 0.04])
    (row,) = compare({4: [run]})
    assert row.slowest_tower == 2
    assert row.imbalance == pytest.approx(0.09 / 0.04)


def test_the_reduction_is_the_least_wait_of_a_tower(tmp_path):
    finding, _ = findings(tmp_path, compute=[0.03, 0.03], reduce=[0.015, 0.02])
    assert finding.rule == "reduction"
    assert "30 % of the time with 2 towers" in finding.sentence


def test_cpu_towers_share_the_cores(tmp_path):
    finding, _ = findings(tmp_path, seconds=0.11, device=CPU)
    assert finding.rule == "shared_cores"
    assert finding.exit_code == 0
    assert "2 towers share 2 CPU cores: no speed-up is to be expected" in finding.sentence
    assert "0.91 times" in finding.sentence


def test_one_cpu_tower_shares_nothing(tmp_path):
    rows = compare({1: [write_run(tmp_path / "1", 1, device=CPU)]})
    assert judge(rows).rule == "compute"


def test_time_that_nobody_computes_in_is_the_hosts(tmp_path):
    finding, _ = findings(tmp_path, compute=[0.02, 0.02])
    assert finding.rule == "rest"


def test_the_audit_may_list_positions_and_end_in_a_cut_line(tmp_path):
    path = tmp_path / "audit.tsv"
    path.write_text("0\t0\t2,0\t7,5\n0\t1\t1\t9\n1\t0\t3,4")
    feed = read_feed(path, 2)
    assert feed.batch_size == 3
    assert feed.steps_fed == [1, 1]
    assert (feed.shared, feed.fed_twice, feed.missing) == (0, 0, 0)


@pytest.mark.parametrize("line", ["0\t0\t0-3\t1,2", "0\t2\t0\t1", "0\t0\t0", "a\t0\t0\t1"])
def test_a_bad_line_of_the_audit_is_named(tmp_path, line):
    path = tmp_path / "audit.tsv"
    path.write_text(f"0\t0\t0\t1\n{line}\n")
    with pytest.raises(BadData, match="audit.tsv, line 2"):
        read_feed(path, 2)


@pytest.mark.parametrize("name", ["audit.tsv", "metrics.jsonl", "environment.json", "train.log"])
def test_a_missing_file_is_named(tmp_path, name):
    write_run(tmp_path / "run", 2)
    (tmp_path / "run" / name).unlink()
    with pytest.raises(BadData, match=name):
        read_run(tmp_path / "run", 2)


def test_a_bad_line_of_the_metrics_is_named(tmp_path):
    write_run(tmp_path / "run", 1)
    path = tmp_path / "run" / "metrics.jsonl"
    path.write_text(path.read_text() + "{nonsense\n")
    with pytest.raises(BadData, match="metrics.jsonl, line 7"):
        read_run(tmp_path / "run", 1)


def test_an_untimed_run_says_what_to_do(tmp_path):
    write_run(tmp_path / "run", 1)
    path = tmp_path / "run" / "metrics.jsonl"
    path.write_text(path.read_text().replace("tower_compute_seconds", "other"))
    with pytest.raises(BadData, match="--time_towers"):
        read_run(tmp_path / "run", 1)


def test_the_comparison_is_written_as_table_csv_json_and_picture(tmp_path):
    finding, _ = findings(tmp_path)
    rows = compare({towers: [read_run(tmp_path / str(towers), towers)] for towers in (1, 2)})
    write(tmp_path, rows, finding, ["train.py", "--max_steps", "20"])
    report = json.loads((tmp_path / "comparison.json").read_text())
    assert report["command"] == ["train.py", "--max_steps", "20"]
    assert report["finding"]["sentence"] == finding.sentence
    assert [row["towers"] for row in report["rows"]] == [1, 2]
    with (tmp_path / "comparison.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert float(lines[1]["speed_up"]) == pytest.approx(2)
    assert lines[1]["own_data"] == "True"
    assert (tmp_path / "comparison.png").read_bytes()[:4] == b"\x89PNG"
    text = table(rows).splitlines()
    assert len(text) == 3
    assert len({len(line) for line in text}) == 1
    assert text[2].split()[:6] == ["2", "1.0", "0.0500", "160.0", "2.00", "100%"]


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    finding, row = findings(tmp_path)
    with pytest.raises(StorageError, match="nowhere"):
        write(tmp_path / "nowhere", [row], finding, [])
