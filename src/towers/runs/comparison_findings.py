"""What limits a comparison of numbers of towers: rules, each with its measure, in a fixed order."""

from dataclasses import dataclass

from ..errors import BadData
from .comparison import LARGEST_RECORDS_SHARED, Row

# One measure for all: a limit is worth naming where removing it would win a fifth of the time.
LARGEST_DATA_WAIT = 0.2
LARGEST_REDUCTION = 0.2
LARGEST_REST = 0.2
LARGEST_IMBALANCE = 1.25
# Towers that take turns on the same cores end one after the other, the last at twice the median of the others.
NATURAL_IMBALANCE_ON_SHARED_CORES = 2


@dataclass(frozen=True)
class Finding:
    """What limits the comparison: the rule's name, a sentence for people, and the exit code (65: a fault)."""

    rule: str
    sentence: str
    exit_code: int = 0


def judge(rows: list[Row]) -> Finding:
    """What limits the comparison: the first rule that holds, for the number of towers where it weighs most.

    The rules, in order: towers fed the same data, a tower that did not work, data left out or repeated (these three are
    faults, exit code 65); waiting for data; one slow tower; the reduction; towers that share the CPU's cores; the rest
    of a step; and else the towers' own compute.
    """
    last = rows[-1]
    for rule in (_same_data, _idle_tower, _incomplete_data, _data_wait, _slow_tower, _reduction, _shared_cores, _rest):
        finding = rule(rows)
        if finding is not None:
            return finding
    if len(rows) == 1:
        sentence = f"Computing limits it: {_share(last.compute)} of the time; give two numbers of towers to compare."
    else:
        sentence = f"Computing limits it: {_speed_up(rows)}, {_share(last.efficiency)} of the ideal."
    return Finding("compute", sentence)


def _same_data(rows: list[Row]) -> Finding | None:
    row = max(rows, key=lambda row: row.shared)
    if not row.shared:
        return None
    whose = "Every tower" if row.shared > LARGEST_RECORDS_SHARED else "More than one tower"
    return Finding(
        "same_data",
        f"{whose} saw the same data: of {row.towers} towers, {_names(row.shared_towers)} were fed the same pictures, "
        f"first at step {row.shared_step}, so more towers teach nothing more; mend the input pipeline.",
        BadData.exit_code,
    )


def _idle_tower(rows: list[Row]) -> Finding | None:
    row = next((row for row in rows if row.idle_towers), None)
    if row is None:
        return None
    return Finding(
        "idle_tower",
        f"Not every tower worked: of {row.towers} towers, {_names(row.idle_towers)} got no data or computed nothing.",
        BadData.exit_code,
    )


def _incomplete_data(rows: list[Row]) -> Finding | None:
    row = next((row for row in rows if not row.own_data), None)
    if row is None:
        return None
    return Finding(
        "incomplete_data",
        f"The passes over the data are not whole: with {row.towers} tower(s), {row.missing} places of the stream were "
        f"fed to no tower and {row.fed_twice} twice; mend the input pipeline.",
        BadData.exit_code,
    )


def _data_wait(rows: list[Row]) -> Finding | None:
    row = _most(rows, "data_wait")
    if row is None or row.data_wait <= LARGEST_DATA_WAIT:
        return None
    return Finding(
        "data_wait",
        f"Waiting for data limits it: {_share(row.data_wait)} of the time with {row.towers} tower(s); "
        "give the input more CPU cores, a faster disk or smaller pictures.",
    )


def _slow_tower(rows: list[Row]) -> Finding | None:
    row = _most(rows, "imbalance")
    if row is None or row.imbalance <= LARGEST_IMBALANCE * (NATURAL_IMBALANCE_ON_SHARED_CORES if row.cores else 1):
        return None
    return Finding(
        "slow_tower",
        f"One slow tower limits it: of {row.towers} towers, tower {row.slowest_tower} computes {row.imbalance:.1f} "
        "times as long as the median of the others, and they wait for it; look at what else its device does.",
    )


def _reduction(rows: list[Row]) -> Finding | None:
    row = _most(rows, "reduction")
    if row is None or row.reduction <= LARGEST_REDUCTION:
        return None
    return Finding(
        "reduction",
        f"Summing the gradients limits it: {_share(row.reduction)} of the time with {row.towers} towers; "
        "try another --reduction, or a larger batch.",
    )


def _shared_cores(rows: list[Row]) -> Finding | None:
    row = max(rows, key=lambda row: row.towers)
    if not row.cores or row.towers == 1:
        return None
    measured = "" if len(rows) == 1 else f" ({_speed_up(rows)})"
    return Finding(
        "shared_cores",
        f"{row.towers} towers share {row.cores} CPU core{'s' * (row.cores > 1)}: no speed-up is to be expected"
        f"{measured}; towers on GPUs of their own bring one.",
    )


def _rest(rows: list[Row]) -> Finding | None:
    row = _most(rows, "rest")
    if row is None or row.rest <= LARGEST_REST:
        return None
    return Finding(
        "rest",
        f"The host limits it: {_share(row.rest)} of the time with {row.towers} tower(s) is neither computing nor "
        "reducing nor waiting for data, but update, launching and saving; try a larger batch.",
    )


def _most(rows: list[Row], name: str) -> Row | None:
    measured = [row for row in rows if getattr(row, name) is not None]
    return max(measured, key=lambda row: getattr(row, name), default=None)


def _speed_up(rows: list[Row]) -> str:
    return f"{rows[-1].towers} towers make {rows[-1].speed_up:.2f} times the images a second of {rows[0].towers}"


def _share(share: float) -> str:
    return f"{100 * share:.0f} %"


def _names(towers: list[int]) -> str:
    names = ", ".join(map(str, towers[:-1])) + " and " if len(towers) > 1 else "tower "
    return f"{'towers ' if len(towers) > 1 else ''}{names}{towers[-1]}"
