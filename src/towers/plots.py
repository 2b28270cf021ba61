"""Pictures of a run: ROC, curves of `metrics.jsonl`, confusion, sheets of pictures. Drawn without a display."""

import json
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from .errors import StorageError, UserError
from .evaluation.verification import Verification, true_accept_rate

MARKED_FAR = 1e-3
MOST_NAMED_TOWERS = 8
MOST_NAMED_CLASSES = 150
SHEET_COLUMNS = 8
BLUE, ORANGE, GREEN, GREY = "#0060a8", "#d55e00", "#00825c", "#8a8a8a"
VALIDATION_CURVES = (
    ("lfw_accuracy", "LFW accuracy", ORANGE),
    ("val_accuracy", "validation accuracy", GREEN),
    ("val_top5", "validation top-5", BLUE),
)


def roc(verification: Verification, path: str | Path) -> None:
    """Draws the true accept rate over the false accept rate (log axis) to a PNG; marks FAR 1e-3 and the EER.

    Left of the lowest rate that the pairs can show, one false accept, the curve is what no false accept allows.
    Raises StorageError where `path` cannot be written.
    """
    fars, tars = verification.exact_roc
    # Half of the first rate, so that the level of no false accept has some width on the log axis.
    lowest = min(10 ** np.floor(np.log10(fars[fars > 0][0] / 2)), MARKED_FAR)
    marked = true_accept_rate(verification.exact_roc, MARKED_FAR)
    equal = verification.equal_error_rate
    figure = Figure(figsize=(6.4, 4.8), layout="constrained")
    axes = figure.add_subplot()
    axes.step(np.maximum(fars, lowest), tars, where="post", color=BLUE, linewidth=1.8)
    diagonal = np.geomspace(lowest, 1, 400)
    axes.plot(diagonal, 1 - diagonal, color=GREY, linewidth=0.8, linestyle="--", label="FAR = 1 - TAR")
    axes.plot(MARKED_FAR, marked, "o", color=ORANGE, label=f"TAR {marked:.4f} at FAR {MARKED_FAR:g}", clip_on=False)
    axes.plot(max(equal, lowest), 1 - equal, "s", color=GREEN, label=f"equal error rate {equal:.4f}", clip_on=False)
    bottom = tars[0] - 0.05 * (1 - tars[0]) - 1e-3
    axes.set(xscale="log", xlim=(lowest, 1), ylim=(bottom, 1.002))
    axes.set(xlabel="false accept rate (FAR)", ylabel="true accept rate (TAR)")
    axes.set_title(
        f"Accuracy {verification.accuracy:.4f} ± {verification.accuracy_std:.4f},"
        f" AUC {verification.area_under_curve:.4f}, {verification.pairs_used} pairs",
        fontsize="medium",
    )
    axes.grid(alpha=0.25)
    axes.legend(loc="lower right", fontsize="small")
    _save(figure, path)


def curves(metrics_path: str | Path, path: str | Path) -> None:
    """Draws loss (each tower thin, the mean thick), learning rate and validation accuracy over steps to a PNG.

    Lines of `metrics_path` are objects with `kind` "train" or "validation" and `step`. Missing values are left out; a
    step logged twice, as after a resume, counts as logged last; lines cut off in writing are counted in the title.
    A panel without values is left out, but for the loss. Raises UserError where `metrics_path` cannot be read and
    StorageError where `path` cannot be written.
    """
    train, validation, cut_lines = _read_metrics(metrics_path)
    learning_rates = _column(train, "learning_rate")
    accuracies = [(name, color, _column(validation, key)) for key, name, color in VALIDATION_CURVES]
    accuracies = [(name, color, points) for name, color, points in accuracies if len(points[0])]
    rate_panels, accuracy_panels = bool(len(learning_rates[0])), bool(accuracies)
    heights = [2.0] + [1.0] * rate_panels + [1.4] * accuracy_panels
    figure = Figure(figsize=(7.2, 1.2 + 1.6 * sum(heights)), layout="constrained")
    panels = list(figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0])
    _draw_losses(panels[0], train)
    if rate_panels:
        panels[1].step(*learning_rates, where="post", color=BLUE, linewidth=1.5)
        panels[1].set(ylabel="learning rate", yscale="log" if learning_rates[1].min() > 0 else "linear")
    if accuracy_panels:
        for name, color, points in accuracies:
            panels[-1].plot(
                *points, "o-", color=color, markersize=3.5, linewidth=1.5, label=f"{name}, last {points[1][-1]:.4f}"
            )
        panels[-1].set_ylabel("accuracy")
        panels[-1].legend(loc="lower right", fontsize="small")
    for panel in panels:
        panel.grid(alpha=0.25)
    panels[-1].set_xlabel("step")
    if cut_lines:
        figure.suptitle(f"{cut_lines} unreadable line{'s' * (cut_lines > 1)} left out", fontsize="small")
    _save(figure, path)


def confusion(counts: np.ndarray, names: list[str], path: str | Path) -> None:
    """Draws what is taken for what to a PNG: a row a true class, a column a predicted one.

    counts: [C, C]; a field is the share of its row, on a root scale so that single mistakes show. Classes are named
    where there are few enough. Raises StorageError where `path` cannot be written.
    """
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = float(np.clip(0.16 * len(counts), 5.0, 16.0))
    figure = Figure(figsize=(side + 1.5, side), layout="constrained", dpi=100)
    axes = figure.add_subplot()
    image = axes.imshow(shares, cmap="magma", norm=PowerNorm(0.5, 0, 1), interpolation="nearest")
    if len(names) <= MOST_NAMED_CLASSES:
        ticks = np.arange(len(names))
        axes.set_xticks(ticks, names, rotation=90, fontsize=6)
        axes.set_yticks(ticks, names, fontsize=6)
    axes.set(xlabel="taken for", ylabel="is")
    figure.colorbar(image, ax=axes, label="share of the pictures of a class", shrink=0.8)
    _save(figure, path)


def picture_sheet(pictures: list[np.ndarray], captions: list[str], title: str, path: str | Path) -> None:
    """Draws pictures, uint8 RGB [H, W, 3] of any sizes, with a caption above each, to a PNG.

    Raises StorageError where `path` cannot be written.
    """
    columns = min(SHEET_COLUMNS, max(len(pictures), 1))
    rows = max(-(-len(pictures) // columns), 1)
    figure = Figure(figsize=(1.7 * columns, 2.1 * rows + 0.4), layout="constrained", dpi=100)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel in panels:
        panel.set_axis_off()
    for panel, picture, caption in zip(panels, pictures, captions, strict=False):
        panel.imshow(picture)
        panel.set_title(caption, fontsize=6)
    figure.suptitle(title, fontsize="small")
    _save(figure, path)


def _draw_losses(axes, train: list[dict]) -> None:
    axes.set_ylabel("loss")
    with_towers = [(row["step"], losses) for row in train if (losses := _numbers(row.get("tower_losses")))]
    num_towers = max((len(losses) for _, losses in with_towers), default=0)
    # A run resumed with other towers has rows of other lengths.
    towers = np.full((len(with_towers), num_towers), np.nan)
    for row, (_, losses) in zip(towers, with_towers, strict=True):
        row[: len(losses)] = losses
    steps = [step for step, _ in with_towers]
    for tower in range(num_towers if num_towers > 1 else 0):
        label = f"tower {tower}" if num_towers <= MOST_NAMED_TOWERS else None
        axes.plot(
            steps,
            towers[:, tower],
            color=colormaps["turbo"]((tower + 1) / (num_towers + 1)),
            linewidth=0.6,
            label=label,
        )
    mean_steps, means = _column(train, "loss")
    if len(means):
        axes.plot(mean_steps, means, color="black", linewidth=1.6, label=f"mean, last {means[-1]:.4f}")
        axes.legend(loc="upper right", fontsize="small")
    elif not num_towers:
        axes.text(0.5, 0.5, "no training step logged yet", transform=axes.transAxes, ha="center", color=GREY)


def _read_metrics(path: str | Path) -> tuple[list[dict], list[dict], int]:
    """Train and validation records by rising step, and the number of lines that are no JSON object."""
    try:
        lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise UserError(f"{path}: cannot read the metrics ({error.strerror}): check the run folder") from error
    by_step: dict[str, dict[int, dict]] = {"train": {}, "validation": {}}
    unreadable = 0
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            unreadable += 1
            continue
        if isinstance(record, dict) and record.get("kind") in by_step and isinstance(record.get("step"), int):
            by_step[record["kind"]][record["step"]] = record
    train, validation = ([records[step] for step in sorted(records)] for records in by_step.values())
    return train, validation, unreadable


def _numbers(values) -> list[float]:
    """`values` as floats, NaN where one is no number; empty where it is no list."""
    if not isinstance(values, list):
        return []
    return [float(value) if isinstance(value, (int, float)) else np.nan for value in values]


def _column(records: list[dict], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and finite values of the records that have `key`."""
    points = [(record["step"], *_numbers([record.get(key)])) for record in records]
    array = np.array(points, dtype=np.float64).reshape(-1, 2)
    array = array[np.isfinite(array[:, 1])]
    return array[:, 0], array[:, 1]


def _save(figure: Figure, path: str | Path) -> None:
    try:
        FigureCanvasAgg(figure).print_png(path)
    except OSError as error:
        raise StorageError(
            f"{path}: cannot write the plot ({error.strerror}): free space or choose another place"
        ) from error
