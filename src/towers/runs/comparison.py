"""The same training on different numbers of towers, read from the run folders: a row a number.

rows = compare({1: [read_run("out/towers_1", 1)], 2: [read_run("out/towers_2", 2)]})
print(comparison_report.table(rows), comparison_findings.judge(rows).sentence, sep="\n")
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import BadData

# A batch over the border of two passes may hold a record twice; half of it only by a fault.
LARGEST_RECORDS_SHARED = 0.5


@dataclass(frozen=True)
class Feed:
    """Which tower was fed what, from audit.tsv.

    Attributes:
      batch_size: positions of all towers in a step.
      steps_fed: [R], steps in which a tower was fed.
      shared: share of what the towers were fed that another one had been fed in the same step.
      shared_step, shared_towers: where that was first, and whose it was.
      fed_twice, missing: positions of the stream fed more than once, and left out.
    """

    batch_size: float
    steps_fed: list[int]
    shared: float
    shared_step: int | None
    shared_towers: list[int]
    fed_twice: int
    missing: int


@dataclass(frozen=True)
class Run:
    """What a run folder tells of W measured windows of steps on R towers; those that traced the graph are left out.

    Attributes:
      steps, seconds, data_wait: [W], steps of a window, its seconds, and the share of them spent waiting for data.
      compute_seconds, reduce_seconds: [W, R], a step's means.
      total_steps: of the whole run.
      accuracy: the last ``lfw_accuracy``, None where the run was not validated.
      cores: CPU cores that the towers share, 0 where they are GPUs.
    """

    feed: Feed
    steps: np.ndarray
    seconds: np.ndarray
    data_wait: np.ndarray
    compute_seconds: np.ndarray
    reduce_seconds: np.ndarray
    total_steps: int
    accuracy: float | None
    cores: int


@dataclass(frozen=True)
class Row:
    """One number of towers; figures are None where no window was measured.

    Shares are of the time of training (validation left out). ``compute`` is that of the median of the towers but the
    slowest one, ``slowest_wait`` what that one takes longer; ``reduction`` is the least of the towers' waits for the
    sums, an upper bound where the towers take turns at being slow; ``rest`` is what remains.
    """

    towers: int
    runs: int
    epochs_seconds: float | None
    batch_seconds: float | None
    images_per_second: float | None
    speed_up: float | None
    efficiency: float | None
    accuracy: float | None
    data_wait: float | None
    reduction: float | None
    compute: float | None
    slowest_wait: float | None
    rest: float | None
    imbalance: float | None
    slowest_tower: int | None
    idle_towers: list[int]
    all_worked: bool | None
    shared: float
    shared_step: int | None
    shared_towers: list[int]
    fed_twice: int
    missing: int
    own_data: bool
    cores: int


def read_feed(path: Path, num_towers: int) -> Feed:
    """Read ``audit.tsv``: lines of step, tower, positions and records, separated by tabs.

    Raises:
      BadData: no such file, no lines, or one that is none.
    """
    lines = _read_text(path).split("\n")[:-1]
    parts = [_audit_line(path, number, line, num_towers) for number, line in enumerate(lines, 1)]
    if not parts:
        raise BadData(f"{path}: the audit is empty, so nobody knows who was fed what; train for a step at least")
    fed = sorted({(step, tower) for step, tower, _, _ in parts})
    sizes = [len(positions) for _, _, positions, _ in parts]
    steps = np.repeat([step for step, *_ in parts], sizes)
    towers = np.repeat([tower for _, tower, *_ in parts], sizes)
    positions = np.concatenate([positions for _, _, positions, _ in parts])
    records = np.concatenate([records for *_, records in parts])
    shared = _shared(steps, towers, positions, len(fed))
    shared_records = _shared(steps, towers, records, len(fed))
    if shared_records[0] > max(shared[0], LARGEST_RECORDS_SHARED):
        shared = shared_records
    distinct, counts = np.unique(positions, return_counts=True)
    return Feed(
        batch_size=len(positions) / len({step for step, _ in fed}),
        steps_fed=[sum(other == tower for _, other in fed) for tower in range(num_towers)],
        shared=shared[0],
        shared_step=shared[1],
        shared_towers=shared[2],
        fed_twice=int((counts > 1).sum()),
        missing=int(distinct[-1]) + 1 - len(distinct),
    )


def _audit_line(path: Path, number: int, line: str, num_towers: int) -> tuple[int, int, np.ndarray, np.ndarray]:
    try:
        step, tower, positions, records = line.split("\t")
        step, tower = int(step), int(tower)
        if "-" in positions:
            first, last = map(int, positions.split("-"))
            positions = np.arange(first, last + 1)
        else:
            positions = np.array(positions.split(","), np.int64)
        records = np.array(records.split(","), np.int64)
        if len(positions) != len(records) or not 0 <= tower < num_towers:
            raise ValueError(f"{len(positions)} positions, {len(records)} records, tower {tower} of {num_towers}")
    except ValueError as error:
        raise BadData(f"{path}, line {number}: not a line of an audit ({error}); train into another folder") from error
    return step, tower, positions, records


def _shared(steps, towers, values, num_lines: int) -> tuple[float, int | None, list[int]]:
    """Share of `values` (all [n]) that an earlier tower had in the same step, of what can be; first step, its towers.

    Where all towers have the same ones, the share is 1: the first tower's own do not count.
    """
    order = np.lexsort((towers, values, steps))
    steps, towers, values = steps[order], towers[order], values[order]
    again = (np.diff(steps) == 0) & (np.diff(values) == 0) & (np.diff(towers) != 0)
    if not again.any():
        return 0.0, None, []
    first = int(steps[1:][again][0])
    there = again & (steps[1:] == first)
    concerned = sorted({int(tower) for tower in (*towers[:-1][there], *towers[1:][there])})
    can_be = len(values) * (1 - len(np.unique(steps)) / num_lines)
    return min(1.0, again.sum() / can_be), first, concerned


def read_run(folder: Path, num_towers: int) -> Run:
    """Read a run folder that was trained with --audit_data and --time_towers.

    The first window after each start traces the graph and is not measured. A run that ended before its first line of
    metrics gives no windows.

    Raises:
      BadData: a file is missing or not what it should be.
    """
    folder = Path(folder)
    feed = read_feed(folder / "audit.tsv", num_towers)
    environment = _json(folder / "environment.json", _read_text(folder / "environment.json"))
    log = folder / "train.log"
    starts = {int(step) for step in re.findall(r": (?:from|going on at) step (\d+),", _read_text(log))}
    lines = _read_text(folder / "metrics.jsonl").split("\n")[:-1]
    records = [_json(f"{folder / 'metrics.jsonl'}, line {number}", line) for number, line in enumerate(lines, 1)]
    train = [record for record in records if record["kind"] == "train"]
    ends = [record["step"] for record in train]
    windows = [
        (end - start, record)
        for start, end, record in zip([0, *ends], ends, train, strict=False)
        if start not in starts | {0}
    ]
    steps = np.array([steps for steps, _ in windows], np.float64)
    rates = np.array([record["images_per_second"] for _, record in windows], np.float64)
    accuracies = [record["lfw_accuracy"] for record in records if "lfw_accuracy" in record]
    on_cpu = all(name.startswith("/physical_device:CPU") for name in environment["devices"])
    return Run(
        feed=feed,
        steps=steps,
        seconds=steps * feed.batch_size / rates,
        data_wait=np.array([record["data_wait"] for _, record in windows], np.float64),
        compute_seconds=_of_towers(folder, windows, "tower_compute_seconds", num_towers),
        reduce_seconds=_of_towers(folder, windows, "tower_reduce_seconds", num_towers),
        total_steps=ends[-1] if ends else 0,
        accuracy=accuracies[-1] if accuracies else None,
        cores=environment["cpu_cores"] if on_cpu else 0,
    )


def _of_towers(folder: Path, windows: list, name: str, num_towers: int) -> np.ndarray:
    """[W, R], 0 for a tower that has no value."""
    if any(name not in record for _, record in windows):
        raise BadData(f"{folder / 'metrics.jsonl'}: no {name}; train with --time_towers")
    values = np.zeros((len(windows), num_towers))
    for row, (_, record) in zip(values, windows, strict=True):
        row[: len(record[name])] = record[name][:num_towers]
    return values


def compare(runs: dict[int, list[Run]]) -> list[Row]:
    """A row for each number of towers, from its runs (one a seed); speed-ups are against the first number."""
    rows = []
    for towers, same in runs.items():
        rows.append(_row(towers, same, rows[0] if rows else None))
    return rows


def _row(towers: int, runs: list[Run], first: Row | None) -> Row:
    steps, seconds, waits = (
        np.concatenate([getattr(run, name) for run in runs]) for name in ("steps", "seconds", "data_wait")
    )
    compute, reduce = (
        np.concatenate([getattr(run, name) for run in runs]) for name in ("compute_seconds", "reduce_seconds")
    )
    times = _times(towers, runs, first, steps, seconds, waits, compute, reduce) if len(steps) else _NO_TIMES
    feeds = [run.feed for run in runs]
    most_shared = max(feeds, key=lambda feed: feed.shared)
    never = np.max([np.array(feed.steps_fed) == 0 for feed in feeds], axis=0)
    # A run that died in its first window tells nothing about the towers it had not come to.
    idle = len(steps) > 0 and never | np.any(~(compute > 0), axis=0)
    accuracies = [run.accuracy for run in runs if run.accuracy is not None]
    fed_twice, missing = (sum(getattr(feed, name) for feed in feeds) for name in ("fed_twice", "missing"))
    return Row(
        towers=towers,
        runs=len(runs),
        accuracy=float(np.mean(accuracies)) if accuracies else None,
        idle_towers=np.flatnonzero(idle).tolist(),
        all_worked=not np.any(idle) if len(steps) else None,
        shared=float(most_shared.shared),
        shared_step=most_shared.shared_step,
        shared_towers=most_shared.shared_towers,
        fed_twice=fed_twice,
        missing=missing,
        own_data=not fed_twice and not missing and most_shared.shared <= LARGEST_RECORDS_SHARED,
        cores=runs[0].cores,
        **times,
    )


def _times(towers, runs, first, steps, seconds, waits, compute, reduce) -> dict:
    total = seconds.sum()
    images = sum(run.feed.batch_size * run.steps.sum() for run in runs)
    speed = float(images / total)
    speed_up = 1.0 if first is None else _ratio(speed, first.images_per_second)
    share_of = steps @ compute / total
    slowest = int(share_of.argmax())
    others = float(np.median(np.delete(share_of, slowest))) if towers > 1 else float(share_of[0])
    shares = {
        "data_wait": float(waits @ seconds / total),
        "compute": others,
        "slowest_wait": float(share_of[slowest] - others),
        # One tower sums nothing: its times are those of the loss, which is there before the gradients.
        "reduction": float(steps @ reduce.min(axis=1) / total) if towers > 1 else 0.0,
    }
    return {
        "epochs_seconds": float(np.mean([run.total_steps for run in runs]) * total / steps.sum()),
        "batch_seconds": float(np.median(seconds / steps)),
        "images_per_second": speed,
        "speed_up": speed_up,
        "efficiency": None if speed_up is None else speed_up * (first.towers if first else towers) / towers,
        "imbalance": _ratio(float(share_of[slowest]), others),
        "slowest_tower": slowest,
        "rest": max(0.0, 1 - sum(shares.values())),
        **shares,
    }


_NO_TIMES = dict.fromkeys(
    "epochs_seconds batch_seconds images_per_second speed_up efficiency imbalance slowest_tower rest data_wait compute "
    "slowest_wait reduction".split()
)


def _ratio(value: float, reference: float | None) -> float | None:
    return value / reference if reference else None


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadData(
            f"{path}: cannot be read ({getattr(error, 'strerror', None) or error}); is this a run folder that was "
            "trained with --audit_data?"
        ) from error


def _json(where, text: str) -> dict:
    try:
        return json.loads(text)
    except ValueError as error:
        raise BadData(f"{where}: not JSON ({error}); train into another folder") from error
