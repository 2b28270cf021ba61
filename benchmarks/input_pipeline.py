"""How fast the input pipeline makes batches from a folder of 112-pixel JPEGs, against OpenCV reading the same files.

    python benchmarks/input_pipeline.py

Rounds of both are taken in turn and medians reported: other work on the machine slows both alike. The reference is one
cv2.imread thread times the cores. `all cores` is what that many cv2 threads reach together, which is less where cores
are halves of one or others use them.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import tensorflow as tf

from towers.datasets.decoding import Quarantine
from towers.datasets.folder import Source, read_folder
from towers.datasets.order import Order
from towers.datasets.pipeline import train_dataset

LOAD_SIZE = 112
CORES = len(os.sched_getaffinity(0))


def make_pictures(root: Path, count: int, size: int) -> Source:
    """Face-like noise: smooth patches with a little grain, quality 90 to 95, 20 pictures a class."""
    random = np.random.default_rng(0)
    for index in range(count):
        folder = root / f"class{index // 20:04d}"
        folder.mkdir(exist_ok=True)
        coarse = random.integers(0, 256, (14, 14, 3), np.uint8)
        picture = cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC) + random.normal(0, 4, (size, size, 3))
        quality = int(random.integers(90, 96))
        cv2.imwrite(str(folder / f"{index}.jpg"), np.clip(picture, 0, 255).astype(np.uint8), [1, quality])
    return read_folder(root)


def rate(function, count: int) -> float:
    """Pictures a second."""
    start = time.perf_counter()
    function()
    return count / (time.perf_counter() - start)


def read_with_cv2(paths: list[str]) -> None:
    for path in paths:
        picture = cv2.imread(path)
        if picture.shape[0] != LOAD_SIZE:
            cv2.resize(picture, (LOAD_SIZE, LOAD_SIZE), interpolation=cv2.INTER_AREA)


@tf.function
def take(iterator, count: tf.Tensor) -> None:
    """Pull batches within a graph, as steps do."""
    for _ in tf.range(count):
        next(iterator)


def measure(source: Source, batch: int, rounds: int) -> dict[str, float]:
    """Medians over the rounds, images/s."""
    paths = [source.where(record) for record in range(len(source))]
    quarantine = Quarantine(source)
    dataset = train_dataset(
        source,
        Order(len(source), 0),
        first_step=0,
        global_batch=batch,
        towers=[0],
        num_towers=1,
        load_size=LOAD_SIZE,
        quarantine=quarantine,
    )
    num_batches = len(source) // batch
    shares = [paths[core::CORES] for core in range(CORES)]
    rows = []
    with ThreadPoolExecutor(CORES) as threads:
        for _ in range(rounds):
            one = rate(lambda: read_with_cv2(paths), len(paths))
            iterator = iter(dataset)
            take(iterator, tf.constant(4 * CORES))
            # What was made ahead before the clock started is as much as is made ahead when it stops.
            ours = rate(lambda stream=iterator: take(stream, tf.constant(num_batches)), num_batches * batch)
            del iterator
            every = rate(lambda: list(threads.map(read_with_cv2, shares)), len(paths))
            ratios = {"ratio": ours / (CORES * one), "real": ours / every}
            rows.append({"one": one, "ours": ours, "every": every, **ratios})
    quarantine.check(0.0)
    return {name: statistics.median(row[name] for row in rows) for name in rows[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=4000, help="pictures in the folder")
    parser.add_argument("--batch", type=int, default=64, help="pictures a batch")
    parser.add_argument("--rounds", type=int, default=7, help="rounds, of which the median is reported")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    lines = []
    print("    pictures  cv2, 1 thread  cv2, all cores  pipeline  /(cores x 1)  /all cores")
    for size, count in ((112, arguments.pictures), (250, arguments.pictures // 4)):
        with tempfile.TemporaryDirectory() as folder:
            result = measure(make_pictures(Path(folder), count, size), arguments.batch, arguments.rounds)
        print(
            f"{size:>4} px JPEG {result['one']:>14.0f} {result['every']:>15.0f} {result['ours']:>9.0f} "
            f"{result['ratio']:>13.2f} {result['real']:>11.2f}",
            flush=True,
        )
        line = {
            "name": f"input_pipeline_{size}px_jpeg_to_{LOAD_SIZE}px_{CORES}_cores",
            "value": round(result["ours"]),
            "unit": "images/s",
            "reference": round(CORES * result["one"]),
            "ratio": round(result["ratio"], 3),
            "target": ">= 0.8 x (cores x one cv2 thread)",
        }
        lines.append(json.dumps(line))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
