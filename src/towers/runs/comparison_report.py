"""A comparison of numbers of towers as a table, comparison.csv, comparison.json and comparison.png."""

import csv
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..errors import StorageError
from ..plots import BLUE, GREEN, GREY, ORANGE
from .comparison import Row
from .comparison_findings import Finding

COLUMNS = (
    ("towers", "towers", "{}"),
    ("epochs_seconds", "epochs, s", "{:.1f}"),
    ("batch_seconds", "batch, s", "{:.4f}"),
    ("images_per_second", "images/s", "{:.1f}"),
    ("speed_up", "speed-up", "{:.2f}"),
    ("efficiency", "efficiency", "{:.0%}"),
    ("accuracy", "accuracy", "{:.4f}"),
    ("data_wait", "data wait", "{:.1%}"),
    ("reduction", "reduction", "{:.1%}"),
    ("imbalance", "imbalance", "{:.2f}"),
    ("all_worked", "all worked", "{}"),
    ("own_data", "own data", "{}"),
)
SHARES = (
    ("compute", "a tower computes", BLUE),
    ("slowest_wait", "waiting for the slowest tower", ORANGE),
    ("reduction", "reduction", GREEN),
    ("data_wait", "waiting for data", "#c8a200"),
    ("rest", "rest: update, launching, saving", GREY),
)


def table(rows: list[Row]) -> str:
    """The rows as lines of text, columns aligned."""
    cells = [[title for _, title, _ in COLUMNS]]
    cells += [[_cell(getattr(row, name), form) for name, _, form in COLUMNS] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True)) for line in cells)


def _cell(value, form: str) -> str:
    if value is None:
        return "-"
    return ("yes" if value else "NO") if isinstance(value, bool) else form.format(value)


def write(folder: Path, rows: list[Row], finding: Finding, command: list[str]) -> None:
    """Write comparison.csv, comparison.json and comparison.png.

    Raises:
      StorageError: ``folder`` cannot be written.
    """
    report = {"command": command, "rows": [asdict(row) for row in rows], "finding": asdict(finding)}
    names = [name for name, _, _ in COLUMNS] + ["compute", "slowest_wait", "rest", "slowest_tower", "runs"]
    try:
        (folder / "comparison.json").write_text(json.dumps(report, indent=1) + "\n")
        with (folder / "comparison.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(names)
            writer.writerows([getattr(row, name) for name in names] for row in rows)
        draw(rows, folder / "comparison.png")
    except OSError as error:
        raise StorageError(
            f"{folder}: cannot write the comparison ({error.strerror}); free space or give another --out_dir"
        ) from error


def draw(rows: list[Row], path: Path) -> None:
    """Draw images a second beside the ideal, and where the time goes, a bar for each number of towers, to a PNG."""
    measured = [row for row in rows if row.images_per_second is not None]
    places = np.arange(len(measured))
    figure = Figure(figsize=(9.6, 4.2), layout="constrained")
    speed, shares = figure.subplots(1, 2)
    speed.bar(places, [row.images_per_second for row in measured], width=0.6, color=BLUE)
    if len(measured) > 1:
        each = measured[0].images_per_second / measured[0].towers
        ideal = [each * row.towers for row in measured[1:]]
        speed.hlines(ideal, places[1:] - 0.3, places[1:] + 0.3, color=ORANGE, linestyle="--", label="ideal speed-up")
        speed.legend(loc="upper left", fontsize="small", frameon=False)
        speed.margins(y=0.12)
    speed.set(title="Speed", ylabel="images a second")
    speed.set_xticks(places, [f"{row.towers}\n{row.images_per_second:.0f}/s\n{row.speed_up:.2f} x" for row in measured])
    shares.set_xticks(places, [str(row.towers) for row in measured])
    below = np.zeros(len(measured))
    for name, label, color in SHARES:
        heights = np.array([100 * getattr(row, name) for row in measured])
        shares.bar(places, heights, width=0.6, bottom=below, color=color, label=label)
        below += heights
    shares.set(title="Where the time goes", ylabel="share of the time of training, %", ylim=(0, max([100, *below])))
    handles, labels = shares.get_legend_handles_labels()
    shares.legend(
        handles[::-1], labels[::-1], loc="center left", bbox_to_anchor=(1, 0.5), fontsize="small", frameon=False
    )
    for axes in (speed, shares):
        axes.set(xlabel="towers", xlim=(-0.6, max(len(measured), 1) - 0.4))
        axes.spines[["top", "right"]].set_visible(False)
    if not measured:
        figure.suptitle("no step was measured")
    FigureCanvasAgg(figure).print_png(path)
