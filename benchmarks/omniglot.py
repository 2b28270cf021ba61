"""Real pictures: Omniglot's characters as people, each alphabet kept out in turn, and how its pairs are verified.

  python benchmarks/omniglot.py --archive images_background_small1.zip
  python benchmarks/omniglot.py --archive images_background_small1.zip --loss triplets --held_out Korean
  python benchmarks/omniglot.py --archive images_background_small1.zip --held_out Korean -- --max_epochs 10

What follows ``--`` goes to the training script after its recipe below.
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
# Accuracy of verification and recall@1; None: no target is set.
TARGETS = {("softmax", "Korean"): (0.88, None), ("triplets", "Korean"): (0.90, 0.85)}
COMMON = [
    *("--network", "small", "--image_size", "64", "--random_crop", "--random_rotate"),
    *("--validate_every_n_epochs", "0", "--towers", "2"),
]
RECIPES = {
    "softmax": ["train_softmax.py", "--learning_rate", "0.1", "--warmup_steps", "60", "--max_epochs", "40"],
    "triplets": [
        *("train_tripletloss.py", "--people_per_batch", "32", "--images_per_person", "4"),
        *("--mining", "semihard", "--mining_scope", "global", "--sync_bn"),
        # A wide margin and large shifts: more epochs or a narrow margin learn the 96 training characters by heart.
        *("--alpha", "0.4", "--load_size", "80"),
        *("--learning_rate", "0.05", "--warmup_steps", "60", "--max_epochs", "40"),
    ],
}


def verify(archive: str, held_out: str, loss: str, extra: list[str]) -> tuple[float, float, float]:
    """Accuracy on the pairs of an alphabet that was kept out, recall@1, and the seconds of training and validation."""
    with tempfile.TemporaryDirectory() as folder:
        data, run = Path(folder) / "data", Path(folder) / "run"
        prepare = ["data/omniglot/prepare.py", "--archive", archive, "--out_dir", data, "--held_out", held_out]
        subprocess.run([sys.executable, *map(str, prepare)], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        places = ["--data_dir", data / "train", "--lfw_dir", data / "test", "--run_dir", run]
        command = [sys.executable, *RECIPES[loss], *COMMON, *map(str, places), *extra]
        started = time.perf_counter()
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - started
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        last = next(line for line in reversed(lines) if "lfw_accuracy" in line)
        return last["lfw_accuracy"], last["lfw_recall_at_1"], seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archive", required=True, help="Omniglot's zip")
    parser.add_argument("--held_out", nargs="*", default=ALPHABETS, help="alphabets, one run each")
    parser.add_argument("--loss", choices=RECIPES, default="softmax")
    parser.add_argument("extra", nargs="*", help="after --: more options of the training script")
    arguments = parser.parse_args()
    archive = str(Path(arguments.archive).resolve())
    results = {}
    print(f"{'kept out':<15} {'accuracy':>8} {'recall@1':>8} {'seconds':>8}", flush=True)
    for alphabet in arguments.held_out:
        results[alphabet] = verify(archive, alphabet, arguments.loss, arguments.extra)
        accuracy, recall, seconds = results[alphabet]
        print(f"{alphabet:<15} {accuracy:8.4f} {recall:8.4f} {seconds:8.0f}", flush=True)
    for alphabet, values in results.items():
        targets = TARGETS.get((arguments.loss, alphabet), (None, None))
        for unit, value, target in zip(("verification accuracy", "recall@1"), values[:2], targets, strict=True):
            print(
                json.dumps(
                    {
                        "name": f"Omniglot, {alphabet} kept out, {arguments.loss}",
                        "value": value,
                        "unit": unit,
                        "reference": target,
                        "ratio": value / target if target else None,
                        "target": target,
                    }
                )
            )


if __name__ == "__main__":
    main()
