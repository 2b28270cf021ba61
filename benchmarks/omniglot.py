"""Real pictures: Omniglot's characters as people, each alphabet kept out in turn, and how its pairs are verified.

  python benchmarks/omniglot.py --archive images_background_small1.zip
  python benchmarks/omniglot.py --archive images_background_small1.zip --held_out Korean -- --max_epochs 10

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
ALPHABETS = ("Korean", "Greek", "Latin", "Early_Aramaic", "Balinese")
TARGETS = {"Korean": 0.88}
RECIPE = [
    *("--network", "small", "--image_size", "64", "--random_crop", "--random_rotate"),
    *("--learning_rate", "0.1", "--warmup_steps", "60"),
    *("--max_epochs", "40", "--validate_every_n_epochs", "0", "--towers", "2"),
]


def verify(archive: str, held_out: str, extra: list[str]) -> tuple[float, float]:
    """Accuracy on the pairs of an alphabet that was kept out, and the seconds of training and validation."""
    with tempfile.TemporaryDirectory() as folder:
        data, run = Path(folder) / "data", Path(folder) / "run"
        prepare = ["data/omniglot/prepare.py", "--archive", archive, "--out_dir", data, "--held_out", held_out]
        subprocess.run([sys.executable, *map(str, prepare)], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        train = ["train_softmax.py", "--data_dir", data / "train", "--lfw_dir", data / "test", "--run_dir", run]
        started = time.perf_counter()
        subprocess.run(
            [sys.executable, *map(str, train), *RECIPE, *extra], cwd=ROOT, check=True, stdout=subprocess.DEVNULL
        )
        seconds = time.perf_counter() - started
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        return next(line["lfw_accuracy"] for line in reversed(lines) if "lfw_accuracy" in line), seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archive", required=True, help="Omniglot's zip")
    parser.add_argument("--held_out", nargs="*", default=ALPHABETS, help="alphabets, one run each")
    parser.add_argument("extra", nargs="*", help="after --: more options of train_softmax.py")
    arguments = parser.parse_args()
    archive = str(Path(arguments.archive).resolve())
    results = {}
    print(f"{'kept out':<15} {'accuracy':>8} {'seconds':>8}", flush=True)
    for alphabet in arguments.held_out:
        results[alphabet] = verify(archive, alphabet, arguments.extra)
        print(f"{alphabet:<15} {results[alphabet][0]:8.4f} {results[alphabet][1]:8.0f}", flush=True)
    for alphabet, (accuracy, _) in results.items():
        target = TARGETS.get(alphabet)
        print(
            json.dumps(
                {
                    "name": f"Omniglot, {alphabet} kept out, softmax",
                    "value": accuracy,
                    "unit": "verification accuracy",
                    "reference": target,
                    "ratio": accuracy / target if target else None,
                    "target": target,
                }
            )
        )


if __name__ == "__main__":
    main()
