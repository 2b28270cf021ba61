"""Exact search and ranking in a large gallery against the bare matrix product of the same embeddings.

python benchmarks/retrieval.py            # 100,000 x 2048, 1,000 queries; 1.8 GB
python benchmarks/retrieval.py --quick
"""

import argparse
import json
import statistics
import time

import numpy as np

from towers.evaluation.retrieval import map_at_r, nearest, normalised, positive_ranks

TARGET = 2.0


def timed(function) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gallery", type=int, default=100_000, help="pictures")
    parser.add_argument("--queries", type=int, default=1000, help="pictures")
    parser.add_argument("--size", type=int, default=2048, help="values of an embedding")
    parser.add_argument("--per_class", type=int, default=4, help="pictures of a class")
    parser.add_argument("--nearest", type=int, default=100, help="results kept of each query")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="10,000 x 256, 200 queries")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.gallery, arguments.size, arguments.queries = 10_000, 256, 200

    random = np.random.default_rng(0)
    labels = np.arange(arguments.gallery) // arguments.per_class
    gallery = random.standard_normal((arguments.gallery, arguments.size), np.float32)
    for index in range(1, arguments.per_class):
        own = gallery[index :: arguments.per_class]
        own += gallery[:: arguments.per_class][: len(own)]
    gallery = normalised(gallery)
    places = random.choice(arguments.gallery, arguments.queries, replace=False)
    queries = gallery[places]

    tasks = {
        "matrix product": lambda: queries @ gallery.T,
        f"nearest {arguments.nearest}": lambda: nearest(queries, gallery, arguments.nearest, own=places),
        "ranks of positives": lambda: positive_ranks(queries, labels[places], gallery, labels, own=places),
    }
    seconds = {name: [] for name in tasks}
    for _ in range(arguments.rounds):
        for name, task in tasks.items():
            seconds[name].append(timed(task))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    found = map_at_r(positive_ranks(queries, labels[places], gallery, labels, own=places))
    size = f"{arguments.queries} queries in {arguments.gallery} x {arguments.size}"
    print(f"{size}, float32; MAP@R of this made-up gallery {found:.3f}")
    print(f"{'what':<24} {'s':>8} {'min':>8} {'max':>8} {'of the product':>14}")
    for name, values in seconds.items():
        ratio = medians[name] / medians["matrix product"]
        print(f"{name:<24} {medians[name]:8.3f} {min(values):8.3f} {max(values):8.3f} {ratio:14.2f}")
    for name in list(tasks)[1:]:
        print(
            json.dumps(
                {
                    "name": f"retrieval, {name}, {size}",
                    "value": medians[name],
                    "unit": "s",
                    "reference": medians["matrix product"],
                    "ratio": medians[name] / medians["matrix product"],
                    "target": TARGET,
                }
            )
        )


if __name__ == "__main__":
    main()
