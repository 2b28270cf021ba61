"""How fast 112-pixel pictures of a .rec reach the towers, against OpenCV on the same bytes; how fast one is opened.

    python benchmarks/rec_reading.py

Reading: rounds of both are taken in turn and medians reported. The reference is one thread that reads each picture from
its known place and decodes it with cv2.imdecode, times the cores; `all cores` is what that many such threads reach
together. Opening: an .idx of many records is read and every record's
place, layout and label checked; the .rec holds small records, so that headers lie close together and in memory.
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
from towers.datasets.order import Order
from towers.datasets.pipeline import train_dataset
from towers.datasets.record_writing import pack, write_records
from towers.datasets.recordio import frame
from towers.datasets.records import RecordSource, read_records

SIDE = 112
CORES = len(os.sched_getaffinity(0))


def make_pictures(folder: Path, count: int) -> RecordSource:
    """Face-like noise: smooth patches with a little grain, quality 95, 20 pictures a class, in random order."""
    random = np.random.default_rng(0)

    def picture(record: int) -> bytes:
        coarse = random.integers(0, 256, (14, 14, 3), np.uint8)
        smooth = cv2.resize(coarse, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
        noisy = np.clip(smooth + random.normal(0, 4, smooth.shape), 0, 255).astype(np.uint8)
        return cv2.imencode(".jpg", noisy, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()

    write_records(folder, picture, np.arange(count) // 20, num_classes=-(-count // 20), size=(SIDE, SIDE))
    return read_records(folder)


def rate(function, count: int) -> float:
    """Pictures a second."""
    start = time.perf_counter()
    function()
    return count / (time.perf_counter() - start)


def read_with_cv2(path: str, places: list[tuple[int, int]]) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    for place, size in places:
        cv2.imdecode(np.frombuffer(os.pread(descriptor, size, place), np.uint8), cv2.IMREAD_COLOR_RGB)
    os.close(descriptor)


@tf.function
def take(iterator, count: tf.Tensor) -> None:
    """Pull batches within a graph, as steps do."""
    for _ in tf.range(count):
        next(iterator)


def measure_reading(source: RecordSource, batch: int, rounds: int) -> dict[str, float]:
    """Medians over the rounds, images/s."""
    order = Order(len(source), 0)
    records = order.records(np.arange(len(source)))
    places = list(zip((source.heads + source.bodies)[records].tolist(), source.sizes[records].tolist(), strict=True))
    shares = [places[core::CORES] for core in range(CORES)]
    quarantine = Quarantine(source)
    dataset = train_dataset(
        source,
        order,
        first_step=0,
        global_batch=batch,
        towers=[0],
        num_towers=1,
        load_size=SIDE,
        quarantine=quarantine,
    )
    num_batches = len(source) // batch
    rows = []
    with ThreadPoolExecutor(CORES) as threads:
        for _ in range(rounds):
            one = rate(lambda: read_with_cv2(source.root, places), len(places))
            iterator = iter(dataset)
            take(iterator, tf.constant(4 * CORES))
            # What was made ahead before the clock started is as much as is made ahead when it stops.
            ours = rate(lambda stream=iterator: take(stream, tf.constant(num_batches)), num_batches * batch)
            del iterator
            every = rate(lambda: list(threads.map(read_with_cv2, [source.root] * CORES, shares)), len(places))
            ratios = {"ratio": ours / (CORES * one), "real": ours / every}
            rows.append({"one": one, "ours": ours, "every": every, **ratios})
    quarantine.check(0.0)
    return {name: statistics.median(row[name] for row in rows) for name in rows[0]}


def measure_opening(folder: Path, count: int) -> dict[str, float]:
    """Seconds to open `count` records with an index and without one."""
    one = frame(pack(1, 0, b"\xff\xd8\xff"))
    with (folder / "train.rec").open("wb") as rec, (folder / "train.idx").open("w") as idx:
        for first in range(0, count, 10_000):
            keys = range(first, min(first + 10_000, count))
            rec.write(one * len(keys))
            idx.write("".join(f"{key}\t{key * len(one)}\n" for key in keys))
    seconds = {}
    for kind in ("indexed", "scanned"):
        start = time.perf_counter()
        assert len(read_records(folder)) == count
        seconds[kind] = time.perf_counter() - start
        (folder / "train.idx").unlink(missing_ok=True)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=4000, help="pictures to read and decode")
    parser.add_argument("--batch", type=int, default=128, help="pictures a batch")
    parser.add_argument("--rounds", type=int, default=7, help="rounds, of which the median is reported")
    parser.add_argument("--records", type=int, default=10_000_000, help="records to open")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        result = measure_reading(make_pictures(Path(folder), arguments.pictures), arguments.batch, arguments.rounds)
    with tempfile.TemporaryDirectory() as folder:
        seconds = measure_opening(Path(folder), arguments.records)
    print("    pictures  cv2, 1 thread  cv2, all cores  pipeline  /(cores x 1)  /all cores")
    print(
        f"{SIDE:>4} px .rec  {result['one']:>14.0f} {result['every']:>15.0f} {result['ours']:>9.0f} "
        f"{result['ratio']:>13.2f} {result['real']:>11.2f}"
    )
    print(f"opening {arguments.records} records: {seconds['indexed']:.1f} s, without .idx {seconds['scanned']:.1f} s")
    lines = [
        {
            "name": f"rec_reading_{SIDE}px_{CORES}_cores",
            "value": round(result["ours"]),
            "unit": "images/s",
            "reference": round(CORES * result["one"]),
            "ratio": round(result["ratio"], 3),
            "target": ">= 0.8 x (cores x one cv2 thread)",
        },
        {
            "name": f"rec_opening_{arguments.records}_records",
            "value": round(seconds["indexed"], 2),
            "unit": "s",
            "reference": round(seconds["scanned"], 2),
            "ratio": round(seconds["indexed"] / seconds["scanned"], 3),
            "target": "seconds, not minutes",
        },
    ]
    print("\n".join(map(json.dumps, lines)))


if __name__ == "__main__":
    main()
