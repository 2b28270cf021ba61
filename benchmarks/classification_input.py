"""Random resized crops to 84 pixels from JPEGs of about 500 x 375, and the gap between epochs of 60,000 files.

    python benchmarks/classification_input.py
    python benchmarks/classification_input.py --gap_pictures 0     # only the crops

The crops' reference is the fastest way measured here to read, decode and crop a picture in one thread, times the cores:
OpenCV at reduced scale (what the pipeline does), or TensorFlow's decode_and_crop_jpeg at the same scale.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import tensorflow as tf

from towers.datasets.cropping import RandomResizedCrop
from towers.datasets.decoding import Quarantine, read_header
from towers.datasets.folder import Source, read_folder
from towers.datasets.order import Order
from towers.datasets.pipeline import train_dataset

CORES = len(os.sched_getaffinity(0))
CROP = RandomResizedCrop(seed=0, size=84)


def make_pictures(root: Path, count: int) -> Source:
    """Smooth patches with a little grain, sides within 10 % of 500 x 375, quality 90 to 95."""
    random = np.random.default_rng(0)
    for index in range(count):
        folder = root / f"class{index // 20:04d}"
        folder.mkdir(exist_ok=True)
        width, height = round(500 * random.uniform(0.9, 1.1)), round(375 * random.uniform(0.9, 1.1))
        coarse = random.integers(0, 256, (30, 40, 3), np.uint8)
        picture = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
        picture = np.clip(picture + random.normal(0, 4, picture.shape), 0, 255).astype(np.uint8)
        cv2.imwrite(str(folder / f"{index}.jpg"), picture, [1, int(random.integers(90, 96))])
    return read_folder(root)


def with_opencv(source: Source, draws: np.ndarray) -> None:
    for record in range(len(source)):
        CROP.load(source.reader([record])()[0], draws[record])


def with_tensorflow(source: Source, draws: np.ndarray) -> None:
    for record in range(len(source)):
        (encoded,) = source.reader([record])()
        header = read_header(encoded)
        box = CROP.box(header.height, header.width, draws[record])
        reduction = max(scale for scale in (1, 2, 4, 8) if scale == 1 or min(box[2:]) >= scale * CROP.size)
        # The window is counted in pixels of the reduced picture.
        window = [side // reduction for side in box]
        picture = tf.io.decode_and_crop_jpeg(encoded, window, channels=3, ratio=reduction).numpy()
        cv2.resize(picture, (CROP.size, CROP.size), interpolation=cv2.INTER_AREA)


def rate(function, count: int) -> float:
    start = time.perf_counter()
    function()
    return count / (time.perf_counter() - start)


@tf.function
def take(iterator, count: tf.Tensor) -> None:
    """Pull batches within a graph, as steps do."""
    for _ in tf.range(count):
        next(iterator)


def measure(source: Source, batch: int, rounds: int) -> dict[str, float]:
    """Medians over the rounds, images/s."""
    quarantine = Quarantine(source)
    dataset = train_dataset(
        source,
        Order(len(source), 0),
        first_step=0,
        global_batch=batch,
        towers=[0],
        num_towers=1,
        load_size=CROP.size,
        quarantine=quarantine,
        crop=CROP,
    )
    draws, num_batches = CROP.draws(np.arange(len(source))), len(source) // batch
    rows = []
    for _ in range(rounds):
        opencv = rate(lambda: with_opencv(source, draws), len(source))
        tensorflow = rate(lambda: with_tensorflow(source, draws), len(source))
        iterator = iter(dataset)
        take(iterator, tf.constant(4 * CORES))
        ours = rate(lambda stream=iterator: take(stream, tf.constant(num_batches)), num_batches * batch)
        del iterator
        ratio = ours / (CORES * max(opencv, tensorflow))
        rows.append({"opencv": opencv, "tensorflow": tensorflow, "ours": ours, "ratio": ratio})
    quarantine.check(0.0)
    return {name: statistics.median(row[name] for row in rows) for name in rows[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=1024, help="pictures in the folder of the crops")
    parser.add_argument("--batch", type=int, default=64, help="pictures a batch")
    parser.add_argument("--rounds", type=int, default=5, help="rounds, of which the median is reported")
    parser.add_argument("--gap_pictures", type=int, default=60_000, help="files of the epochs' gap; 0: leave it out")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        source = make_pictures(Path(folder), arguments.pictures)
        result = measure(source, arguments.batch, arguments.rounds)
    print("OpenCV, 1 thread  TensorFlow, 1 thread  pipeline  /(cores x 1)")
    print(f"{result['opencv']:>16.0f} {result['tensorflow']:>21.0f} {result['ours']:>9.0f} {result['ratio']:>13.2f}")
    line = {
        "name": f"random_resized_crop_500x375_to_{CROP.size}px_{CORES}_cores",
        "value": round(result["ours"]),
        "unit": "images/s",
        "reference": round(CORES * max(result["opencv"], result["tensorflow"])),
        "ratio": round(result["ratio"], 3),
        "target": ">= 0.8 x (cores x one thread of decode-and-crop)",
    }
    print(json.dumps(line), flush=True)
    if arguments.gap_pictures:
        gap = [sys.executable, Path(__file__).with_name("epoch_gap.py"), "--pictures", arguments.gap_pictures]
        subprocess.run([*map(str, gap), "--image_size", "28", "--epochs", "2"], check=True)


if __name__ == "__main__":
    main()
