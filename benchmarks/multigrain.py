"""Classes and instances together (lambda 0.5) against classes alone (lambda 1) on the drawn stand-in, over some seeds.

Both by scripts/train_multigrain.sh as it is.

  python benchmarks/multigrain.py --out_dir multigrain --seeds 1 2 3
  python benchmarks/multigrain.py --out_dir multigrain --seeds 1 2 3 -- --max_epochs 60     # options of both runs

Both are trained on the same batches, with three copies of each picture, and differ in nothing but lambda. Runs that are
finished are not trained again. Prints a table, draws OUT_DIR/multigrain.png, and ends with a JSON line a question.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = {"together": 0.5, "alone": 1.0}
MEASURES = {
    "val_accuracy": "top-1",
    "holidays_map": "instances, mAP",
    "copydays_strong_map": "strong copies, mAP",
}


def measured(run_dir: Path, options: list[str]) -> dict[str, float]:
    """The last validation of a run of the launcher's recipe."""
    # Anything but the drawn pictures would be another question.
    environment = {name: value for name, value in os.environ.items() if name not in ("DATA", "OUT")}
    launcher = ROOT / "scripts" / "train_multigrain.sh"
    options = ["--run_dir", run_dir, "--validate_every_n_epochs", "0", *options]
    subprocess.run(["bash", launcher, *map(str, options)], check=True, env=environment | {"TOWERS": "2"})
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == "validation"][-1]


def draw(figures: dict[str, np.ndarray], path: Path) -> None:
    """figures: setting -> [seeds, measures]."""
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.add_subplot()
    for index, (name, values) in enumerate(figures.items()):
        places = np.arange(len(MEASURES)) + 0.36 * (index - 0.5)
        axes.bar(places, values.mean(axis=0), width=0.34, color=("#0060a8", "#8a8a8a")[index], label=name)
        for row in values:
            axes.plot(places, row, "k.", markersize=4)
    axes.set_xticks(np.arange(len(MEASURES)), list(MEASURES.values()))
    axes.set_ylim(0, 1)
    axes.legend(frameon=False)
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=120)


def main() -> None:
    own, further = sys.argv[1:], []
    if "--" in own:
        own, further = own[: own.index("--")], own[own.index("--") + 1 :]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out_dir", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="of the runs")
    arguments = parser.parse_args(own)
    figures, out_dir = {name: [] for name in SETTINGS}, arguments.out_dir.resolve()
    for seed in arguments.seeds:
        for name, classification_weight in SETTINGS.items():
            options = ["--classification_weight", str(classification_weight), "--seed", str(seed), *further]
            found = measured(out_dir / f"{name}_{seed}", options)
            figures[name].append([found[measure] for measure in MEASURES])
    figures = {name: np.array(rows) for name, rows in figures.items()}
    print(f"{'':<10} " + " ".join(f"{title:>26}" for title in MEASURES.values()))
    for name, values in figures.items():
        cells = (f"{mean:.4f} ({low:.4f} to {high:.4f})" for mean, low, high in _columns(values))
        print(f"{name:<10} " + " ".join(f"{cell:>26}" for cell in cells))
    draw(figures, out_dir / "multigrain.png")
    for index, measure in enumerate(MEASURES):
        together, alone = (float(figures[name][:, index].mean()) for name in SETTINGS)
        # Of the classes nothing much may be lost; instances and copies must gain.
        target = -0.01 if measure == "val_accuracy" else 0.0
        print(
            json.dumps(
                {
                    "name": f"MultiGrain, {measure}, together less alone, {len(arguments.seeds)} seeds",
                    "value": together,
                    "unit": "share",
                    "reference": alone,
                    "ratio": together - alone,
                    "target": target,
                }
            )
        )


def _columns(values: np.ndarray):
    return zip(values.mean(axis=0), values.min(axis=0), values.max(axis=0), strict=True)


if __name__ == "__main__":
    main()
