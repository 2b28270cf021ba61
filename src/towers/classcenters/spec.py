"""What a matrix of class centres is, and the checks that every request passes before anything changes."""

import dataclasses
import json
import math
import re

import numpy as np

RULES = ("sgd", "momentum", "adagrad")
MAX_COLUMNS = 1 << 16
MAX_ROWS = 1 << 40
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")


class StepMismatch(Exception):
    """A push or pull for a step that the matrix is not at.

    Attributes:
      version: the number of steps that the matrix has made.
    """

    def __init__(self, message: str, version: int):
        super().__init__(message)
        self.version = version


@dataclasses.dataclass(frozen=True)
class MatrixSpec:
    """Shape, first values and update rule of a matrix; two stores with the same spec hold the same first values.

    Attributes:
      rows: number of rows held here: C, or a shard's share of it.
      columns: D.
      seed, scale: the first rows are uniform in [-scale, scale), a function of (seed, row).
      rule: ``sgd``, ``momentum`` (h = momentum h + g; w -= learning rate h) or ``adagrad`` (a += g^2 from 0.1;
        w -= learning rate g / sqrt(a)), as TensorFlow's kernels have them.
      momentum: in [0, 1), for the rule of that name.
      weight_decay: >= 0. Added to the gradient as weight_decay * w in ``sgd`` and ``momentum``. With ``adagrad`` each
        step multiplies w by (1 - learning rate * weight_decay) first: only so has a row that was skipped for many steps
        a value in closed form.
      first, stride: row i here is row first + i * stride of the whole matrix.
    """

    rows: int
    columns: int
    seed: int = 0
    scale: float = 0.1
    rule: str = "momentum"
    momentum: float = 0.9
    weight_decay: float = 0.0
    first: int = 0
    stride: int = 1

    def __post_init__(self):
        for name, low, high in (("rows", 1, MAX_ROWS), ("columns", 1, MAX_COLUMNS), ("stride", 1, 1 << 16)):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} is {getattr(self, name)}, not in [{low}, {high}]")
        if not 0 <= self.first < self.stride:
            raise ValueError(f"first is {self.first}, not in [0, stride {self.stride})")
        if not 0 <= self.seed < 1 << 63:
            raise ValueError(f"seed is {self.seed}, not in [0, 2^63)")
        if self.rule not in RULES:
            raise ValueError(f"rule is {self.rule!r}; choose one of {', '.join(RULES)}")
        for name, high in (("scale", 1e6), ("weight_decay", 1e6)):
            if not 0 <= getattr(self, name) <= high:
                raise ValueError(f"{name} is {getattr(self, name)}, not in [0, {high:g}]")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum is {self.momentum}, not in [0, 1)")

    @property
    def has_slot(self) -> bool:
        """Whether the rule keeps a value beside each weight."""
        return self.rule == "adagrad" or (self.rule == "momentum" and self.momentum > 0)

    @property
    def skipping_changes(self) -> bool:
        """Whether a step changes a row that gets no gradient."""
        return self.weight_decay > 0 or (self.rule == "momentum" and self.momentum > 0)

    @property
    def num_bytes(self) -> int:
        """Memory of weights, slot and the count of steps of each row."""
        return self.rows * (self.columns * 4 * (2 if self.has_slot else 1) + 8)

    def shard(self, index: int, count: int) -> "MatrixSpec":
        """Spec of the rows index, index + count, index + 2 count, ... of this whole matrix."""
        if (self.first, self.stride) != (0, 1):
            raise ValueError("a shard cannot be sharded again")
        rows = len(range(index, self.rows, count))
        return dataclasses.replace(self, rows=rows, first=index, stride=count)

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "MatrixSpec":
        return cls(**json.loads(text))


def checked_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError(f"matrix name {name[:80]!r}: letters, digits, '_', '.' and '-' only, at most 64")
    return name


def checked_rows(rows: np.ndarray, num_rows: int, *, increasing: bool = False) -> np.ndarray:
    """``rows`` as contiguous int64 [S], every one in [0, num_rows), strictly increasing if asked; else ValueError."""
    rows = np.asarray(rows)
    if rows.ndim != 1 or rows.dtype.kind not in "iu":
        raise ValueError(f"rows are {rows.dtype} of shape {rows.shape}, not integers of one dimension")
    rows = np.ascontiguousarray(rows, np.int64)
    if rows.size and (rows.min() < 0 or rows.max() >= num_rows):
        wrong = rows[(rows < 0) | (rows >= num_rows)][0]
        raise ValueError(f"row {wrong} is not in [0, {num_rows})")
    if increasing and rows.size > 1 and not (rows[1:] > rows[:-1]).all():
        raise ValueError("rows are not strictly increasing: sort them and sum the gradients of equal ones")
    return rows


def checked_values(values: np.ndarray, shape: tuple[int, ...], *, finite: bool = True) -> np.ndarray:
    """``values`` as contiguous float32 of ``shape``, all finite unless that is checked elsewhere; else ValueError."""
    values = np.asarray(values)
    if values.shape != shape or values.dtype.kind != "f":
        raise ValueError(f"values are {values.dtype} of shape {values.shape}, not floats of shape {shape}")
    with np.errstate(over="ignore"):
        values = np.require(values, np.float32, ("C", "A"))
    # A sum is finite only if every term is, and takes a third of the time of looking at each.
    with np.errstate(over="ignore", invalid="ignore"):
        if finite and not np.isfinite(values.sum()) and not np.isfinite(values).all():
            raise ValueError("a value is not finite")
    return values


def checked_learning_rate(learning_rate: float) -> float:
    if not (math.isfinite(learning_rate) and 0 <= learning_rate <= 1e6):
        raise ValueError(f"learning rate {learning_rate} is not in [0, 1e6]")
    return float(learning_rate)


def merged(rows: np.ndarray, gradients: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows in increasing order, each once, with the sums of their gradients in the order given."""
    if rows.size < 2 or (rows[1:] > rows[:-1]).all():
        return rows, gradients
    order = np.argsort(rows, kind="stable")
    rows, gradients = rows[order], gradients[order]
    starts = np.flatnonzero(np.concatenate([[True], rows[1:] != rows[:-1]]))
    return rows[starts], np.add.reduceat(gradients, starts, axis=0) if len(starts) < len(rows) else gradients
