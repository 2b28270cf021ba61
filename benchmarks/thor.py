"""THOR against momentum: how many steps it needs for the same training loss, and what a step costs.

  python benchmarks/thor.py
  python benchmarks/thor.py --archive images_background_small1.zip     # Omniglot's characters in place of drawn classes

A ResNet-10 is trained as a classifier, by momentum with each of a few learning rates for --steps steps, and by THOR with
each of a few rates for 0.6 of them; every schedule falls linearly to 0 at its own end. Losses are means over the last
twentieth of the steps, and of each optimizer the best counts. The cost of a step is the mean over a run, refreshes in it,
and of these the median over runs that took turns.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
SHARE, EXTRA = 0.6, 1.25
MOMENTUM_RATES, THOR_RATES = (0.03, 0.1, 0.3), (0.003, 0.01, 0.03)


def run(data: Path, folder: Path, optimizer: str, rate: float, steps: int, arguments) -> tuple[float, float]:
    """(training loss over the last twentieth, mean seconds of a step after the first tenth)."""
    run_dir = folder / f"{optimizer}-{rate:g}"
    command = [
        *(sys.executable, ROOT / "train_multigrain.py", "--data_dir", data, "--run_dir", run_dir, "--towers", 1),
        *("--network", "resnet10", "--embedding_size", 512, "--gem_p", 1, "--image_size", arguments.image_size),
        *("--classification_weight", 1, "--copies", 1, "--batch_size", arguments.batch_size, "--random_crop"),
        *("--optimizer", optimizer, "--learning_rate", rate, "--learning_rate_schedule", "linear"),
        *("--max_steps", steps, "--log_every", 1, "--validate_every_n_epochs", 0, "--checkpoint_every_n_steps", 10**9),
        *("--thor_interval", arguments.interval, "--thor_damping", arguments.damping, "--thor_damping_decay", 1),
        *("--seed", arguments.seed),
    ]
    subprocess.run(list(map(str, command)), cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if line["kind"] == "train"]
    losses = [line["loss"] for line in lines[-max(1, steps // 20) :]]
    seconds = np.diff([line["time"] for line in lines])[steps // 10 :]
    return float(np.mean(losses)), float(seconds.mean())


def make_data(folder: Path, archive: str | None) -> Path:
    if archive is None:
        script, options, train = "data/mini_imagenet/prepare.py", ["--synthetic"], "train"
    else:
        script, options, train = "data/omniglot/prepare.py", ["--archive", archive, "--train_drawers", "14"], "train"
    command = [sys.executable, ROOT / script, *options, "--out_dir", folder / "data"]
    subprocess.run(list(map(str, command)), cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return folder / "data" / train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archive", help="Omniglot's zip")
    parser.add_argument("--steps", type=int, default=200, help="of momentum")
    parser.add_argument("--image_size", type=int, default=48, help="pixels")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--interval", type=int, default=20, help="steps between THOR's refreshes")
    parser.add_argument("--damping", type=float, default=0.1, help="of THOR, constant")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    results = {"MOM": {}, "THOR": {}}
    print(f"{'optimizer':<10} {'rate':>7} {'steps':>6} {'loss':>8} {'s a step':>9}", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        archive = None if arguments.archive is None else str(Path(arguments.archive).resolve())
        data = make_data(folder, archive)
        for rates in zip(MOMENTUM_RATES, THOR_RATES, strict=True):
            for optimizer, rate in zip(results, rates, strict=True):
                steps = arguments.steps if optimizer == "MOM" else round(SHARE * arguments.steps)
                loss, seconds = run(data, folder, optimizer, rate, steps, arguments)
                results[optimizer][rate] = loss, seconds
                print(f"{optimizer:<10} {rate:>7g} {steps:>6} {loss:8.4f} {seconds:9.3f}", flush=True)
    (loss, momentum_seconds), (thor_loss, thor_seconds) = (
        (min(each.values())[0], statistics.median(seconds for _, seconds in each.values())) for each in results.values()
    )
    what = "drawn classes" if arguments.archive is None else "Omniglot's characters"
    for line in (
        {
            "name": f"training loss of THOR after {SHARE:g} of momentum's steps, {what}",
            "value": thor_loss,
            "unit": "cross-entropy",
            "reference": loss,
            "ratio": thor_loss / loss,
            "target": "<= 1",
        },
        {
            "name": f"seconds a step of THOR, interval {arguments.interval}, {what}",
            "value": thor_seconds,
            "unit": "s",
            "reference": momentum_seconds,
            "ratio": thor_seconds / momentum_seconds,
            "target": f"<= {EXTRA}",
        },
    ):
        print(json.dumps(line))


if __name__ == "__main__":
    main()
