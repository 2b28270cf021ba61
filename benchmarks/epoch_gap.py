"""The pause between the last step of an epoch and the first of the next, against the median step.

python benchmarks/epoch_gap.py
python benchmarks/epoch_gap.py --pictures 60000 --epochs 2
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np

ROOT = Path(__file__).resolve().parents[1]


def make_pictures(folder: Path, count: int, classes: int, size: int) -> None:
    random = np.random.default_rng(0)
    encoded = [
        cv2.imencode(".jpg", cv2.resize(random.integers(0, 256, (9, 9, 3), np.uint8), (size, size)))[1].tobytes()
        for _ in range(64)
    ]
    for label in range(classes):
        (folder / f"class_{label:04}").mkdir()
    for index in range(count):
        (folder / f"class_{index % classes:04}" / f"{index:06}.jpg").write_bytes(encoded[index % len(encoded)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=4000)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--image_size", type=int, default=32)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--towers", type=int, default=2)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        pictures, run = Path(folder) / "pictures", Path(folder) / "run"
        pictures.mkdir()
        make_pictures(pictures, arguments.pictures, arguments.classes, arguments.image_size)
        command = [
            *(sys.executable, ROOT / "train_softmax.py", "--data_dir", pictures, "--run_dir", run),
            *("--image_size", arguments.image_size, "--batch_size", arguments.batch_size),
            *("--max_epochs", arguments.epochs, "--towers", arguments.towers),
            *("--log_every", 1, "--validate_every_n_epochs", 0, "--checkpoint_every_n_steps", 10**9),
        ]
        subprocess.run(list(map(str, command)), check=True, stdout=subprocess.DEVNULL)
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    times = np.array([line["time"] for line in lines if line["kind"] == "train"])
    steps = np.diff(times)
    epoch_size = -(-arguments.pictures // arguments.batch_size)
    gaps = steps[epoch_size - 1 :: epoch_size]
    # The first steps trace the graph and fill the pipeline.
    median = float(np.median(steps[5:]))
    print(f"{len(times)} steps of {arguments.batch_size}, {arguments.pictures} pictures, {arguments.towers} tower(s)")
    print(f"median step {1e3 * median:.1f} ms, 99th percentile {1e3 * np.percentile(steps[5:], 99):.1f} ms")
    print(f"over the border of epochs: {', '.join(f'{1e3 * gap:.1f}' for gap in gaps)} ms")
    print(
        json.dumps(
            {
                "name": f"longest gap between epochs, {arguments.pictures} pictures",
                "value": float(gaps.max()),
                "unit": "s",
                "reference": median,
                "ratio": float(gaps.max()) / median,
                "target": 2.0,
            }
        )
    )


if __name__ == "__main__":
    main()
