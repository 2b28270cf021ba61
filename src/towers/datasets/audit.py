"""Which tower saw which record: a file to read, and a check that no record of a pass is fed twice or left out."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import BadData, StorageError

SHOWN = 10


@dataclass
class _Pass:
    """An unfinished pass: the tower that was fed each place, and the position of each record; -1 where none."""

    towers: np.ndarray
    positions: np.ndarray


class Audit:
    """Appends a line `step TAB tower TAB positions TAB records` for each batch of a tower and checks every pass.

    Positions are `first-last` where they follow each other, as they do in `Order`'s stream, else separated by commas.
    For streams that hold each of num_records records once a pass. Steps come in order, the towers of a step in any;
    the towers of other processes must be added too (gather them), or `close` will miss their records.
    With `first_step` a run goes on: lines of that step and later ones are dropped, the rest is checked again.
    Raises BadData naming records and towers, StorageError where the file cannot be written.
    """

    def __init__(self, path: str | os.PathLike, num_records: int, *, first_step: int = 0):
        self.path = Path(path)
        self.num_records = num_records
        self._passes: dict[int, _Pass] = {}
        self._first: int | None = None
        self._end = 0
        self._step = -1
        try:
            kept = self._keep_before(first_step)
            self._file = self.path.open("a", encoding="ascii")
        except OSError as error:
            raise StorageError(
                f"{self.path}: cannot keep the audit here ({error.strerror}); free space or another path"
            ) from error
        for number, line in kept:
            self._check(*self._parse(number, line))

    def add(self, step: int, tower: int, records: np.ndarray, positions: np.ndarray) -> None:
        """One tower's batch: records and positions int64 [b]."""
        records, positions = np.asarray(records, np.int64), np.asarray(positions, np.int64)
        line = f"{step}\t{tower}\t{_format_positions(positions)}\t{','.join(map(str, records.tolist()))}\n"
        try:
            self._file.write(line)
            self._file.flush()
        except OSError as error:
            raise StorageError(
                f"{self.path}: cannot write the audit ({error.strerror}); free space and resume"
            ) from error
        self._check(step, tower, records, positions)

    def close(self) -> None:
        """Check the passes that the last step ended, and close the file. A pass still under way may be incomplete."""
        self._finish_passes()
        self._file.close()

    def _check(self, step: int, tower: int, records: np.ndarray, positions: np.ndarray) -> None:
        if step < self._step:
            raise BadData(
                f"{self.path}: step {step} of tower {tower} came after step {self._step}; the batches are out of order"
            )
        if step > self._step:
            self._finish_passes()
            self._step = step
        if np.any((records < 0) | (records >= self.num_records)) or np.any(positions < 0):
            raise BadData(
                f"{self.path}: step {step}, tower {tower}: records {_some(records)} at positions {_some(positions)} "
                f"are not all of the {self.num_records} records; the data changed, start a new audit"
            )
        self._first = int(positions.min()) if self._first is None else min(self._first, int(positions.min()))
        self._end = max(self._end, int(positions.max()) + 1)
        for number in np.unique(positions // self.num_records).tolist():
            inside = positions // self.num_records == number
            self._mark(number, step, tower, records[inside], positions[inside])

    def _mark(self, number: int, step: int, tower: int, records: np.ndarray, positions: np.ndarray) -> None:
        if number not in self._passes:
            nobody = np.full(self.num_records, -1, np.int32)
            self._passes[number] = _Pass(nobody, np.full(self.num_records, -1, np.int64))
        seen = self._passes[number]
        start = number * self.num_records
        places = positions - start
        again = _repeated(places) | (seen.towers[places] >= 0)
        if again.any():
            others = {int(other) for other in seen.towers[places[again]]} - {-1}
            raise BadData(
                f"{self.path}: step {step}: tower {tower} was fed positions {_some(positions[again])} "
                f"(records {_some(records[again])}) that tower {_some(sorted(others) or [tower])} had been fed; "
                "the towers train on the same pictures"
            )
        twice = _repeated(records) | (seen.positions[records] >= 0)
        if twice.any():
            before = seen.positions[records[twice]]
            others = {int(other) for other in seen.towers[before[before >= 0] - start]}
            raise BadData(
                f"{self.path}: step {step}: tower {tower} was fed records {_some(records[twice])} a second time in "
                f"pass {number}, first by tower {_some(sorted(others) or [tower])}; the order is not a permutation"
            )
        seen.towers[places] = tower
        seen.positions[records] = positions

    def _finish_passes(self) -> None:
        """Every pass that lies before the end of the last whole step must be complete from the first position on."""
        for number in [number for number in self._passes if (number + 1) * self.num_records <= self._end]:
            start = number * self.num_records
            seen = self._passes.pop(number)
            missing = np.flatnonzero(seen.towers < 0) + start
            missing = missing[missing >= self._first]
            if missing.size:
                never = "" if self._first > start else f" (records {_some(np.flatnonzero(seen.positions < 0))})"
                raise BadData(
                    f"{self.path}: pass {number} ended at step {self._step} without {missing.size} of "
                    f"{self.num_records} records: no tower was fed positions {_some(missing)}{never}"
                )

    def _keep_before(self, first_step: int) -> list[tuple[int, str]]:
        """Drop the lines from `first_step` on and a last one cut by a kill; the rest as (line number, line)."""
        if not self.path.exists():
            return []
        lines = self.path.read_text(encoding="ascii").splitlines(keepends=True)
        whole = [(number, line) for number, line in enumerate(lines, 1) if line.endswith("\n")]
        kept = [(number, line) for number, line in whole if self._parse(number, line)[0] < first_step]
        if len(kept) < len(lines):
            shortened = self.path.with_name(self.path.name + ".tmp")
            with shortened.open("w", encoding="ascii") as file:
                file.writelines(line for _, line in kept)
                file.flush()
                os.fsync(file.fileno())
            shortened.replace(self.path)
        return kept

    def _parse(self, number: int, line: str) -> tuple[int, int, np.ndarray, np.ndarray]:
        try:
            step, tower, positions, records = line.rstrip("\n").split("\t")
            parsed = int(step), int(tower), _parse_numbers(records), _parse_positions(positions)
            if len(parsed[2]) != len(parsed[3]):
                raise ValueError(f"{len(parsed[2])} records at {len(parsed[3])} positions")
        except ValueError as error:
            raise BadData(
                f"{self.path}, line {number}: not a line of an audit ({error}); move the file away"
            ) from error
        return parsed


def _repeated(numbers: np.ndarray) -> np.ndarray:
    """True where a number stood earlier in the same array: bool [n]."""
    repeated = np.ones(len(numbers), bool)
    repeated[np.unique(numbers, return_index=True)[1]] = False
    return repeated


def _format_positions(positions: np.ndarray) -> str:
    if len(positions) > 1 and np.all(np.diff(positions) == 1):
        return f"{positions[0]}-{positions[-1]}"
    return ",".join(map(str, positions.tolist()))


def _parse_positions(text: str) -> np.ndarray:
    if "-" not in text:
        return _parse_numbers(text)
    first, last = map(int, text.split("-"))
    return np.arange(first, last + 1)


def _parse_numbers(text: str) -> np.ndarray:
    return np.array([int(number) for number in text.split(",")], np.int64)


def _some(numbers) -> str:
    shown = ", ".join(str(int(number)) for number in numbers[:SHOWN])
    return shown if len(numbers) <= SHOWN else f"{shown}, …"
