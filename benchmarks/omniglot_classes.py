"""Real pictures: Omniglot's characters as classes, GoogLeNet on the drawings of 14 people, tested on those of 6 others.

  python benchmarks/omniglot_classes.py --archive images_background_small1.zip
  python benchmarks/omniglot_classes.py --archive images_background_small1.zip --seeds 1 2 3 -- --max_epochs 10

What follows ``--`` goes to train_softmax.py after the recipe below.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TRAIN_DRAWERS = 14
TARGET = 0.85
# No flip: a mirrored character is another one.
RECIPE = [
    *("--network", "googlenet", "--image_size", "84", "--random_crop", "--random_rotate"),
    *("--batch_size", "32", "--learning_rate", "0.05", "--warmup_steps", "60", "--weight_decay", "2e-4"),
    *("--moving_average_decay", "0.99", "--label_smoothing", "0.1"),
    *("--max_epochs", "14", "--validate_every_n_epochs", "0", "--towers", "2"),
]


def train(archive: str, seed: int, extra: list[str]) -> tuple[float, float, float]:
    """Top-1 and top-5 on the test drawers by validate_on_images.py, and the seconds of training."""
    with tempfile.TemporaryDirectory() as folder:
        data, run, figures = Path(folder) / "data", Path(folder) / "run", Path(folder) / "figures.json"
        prepare = ["--archive", archive, "--out_dir", data, "--train_drawers", TRAIN_DRAWERS]
        _call("data/omniglot/prepare.py", *prepare)
        started = time.perf_counter()
        split = ["--data_dir", data / "train", "--val_dir", data / "test"]
        _call("train_softmax.py", *split, "--run_dir", run, "--seed", seed, *RECIPE, *extra)
        seconds = time.perf_counter() - started
        _call("validate_on_images.py", "--model", run, "--json", figures)
        values = json.loads(figures.read_text())
        return values["top1"], values["top5"], seconds


def _call(script, *arguments) -> None:
    subprocess.run([sys.executable, script, *map(str, arguments)], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archive", required=True, help="Omniglot's zip")
    parser.add_argument("--seeds", nargs="*", type=int, default=[1], help="one run each")
    parser.add_argument("extra", nargs="*", help="after --: more options of train_softmax.py")
    arguments = parser.parse_args()
    archive = str(Path(arguments.archive).resolve())
    results = {}
    print(f"{'seed':<6} {'top-1':>8} {'top-5':>8} {'seconds':>8}", flush=True)
    for seed in arguments.seeds:
        results[seed] = train(archive, seed, arguments.extra)
        top1, top5, seconds = results[seed]
        print(f"{seed:<6} {top1:8.4f} {top5:8.4f} {seconds:8.0f}", flush=True)
    for seed, (top1, _, _) in results.items():
        print(
            json.dumps(
                {
                    "name": f"Omniglot as classes, googlenet, seed {seed}",
                    "value": top1,
                    "unit": "top-1",
                    "reference": TARGET,
                    "ratio": top1 / TARGET,
                    "target": TARGET,
                }
            )
        )


if __name__ == "__main__":
    main()
