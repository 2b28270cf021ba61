"""Selecting classes: how many centres an index finds, how fast, and what it costs to build.

  python benchmarks/selection.py                        1 M centres x 128, 128 queries, every index that is installed
  python benchmarks/selection.py --indexes ivf forest   some of them
  python benchmarks/selection.py --quick                50,000 centres

Centres: 20,000 Gaussian clusters, noise 0.5 within, normalised; queries are random centres + 0.3 / sqrt(D) noise. Each
index takes turns with the exact search, whose top-k is in its time, and medians are compared. An index is searched with
wider and wider settings until its recall@10 is 0.9. Annoy, Faiss and USearch come with `pip install '.[ann]'`.
"""

import argparse
import json
import os
import statistics
import time

import numpy as np

from towers.classcenters import indexes
from towers.classcenters.indexes import exact
from towers.classcenters.indexes.ranking import unit

K, TARGET_RECALL, TARGET_SPEED = 10, 0.9, 5.0

# What an index is built with, and what it is searched with: attribute and values, narrow to wide.
SETTINGS = {
    "ivf": ({}, "probes", (2, 4, 8, 16, 32)),
    "forest": ({"num_trees": 20}, None, ()),
    "annoy": ({"num_trees": 20}, "search_k", (1_000, 4_000, 16_000, 64_000)),
    "faiss": ({}, "probes", (2, 4, 8, 16, 32)),
    "usearch": ({}, "expansion_search", (16, 32, 64, 128, 256)),
}


def clustered(num_points: int, columns: int, num_clusters: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    centres = random.standard_normal((num_clusters, columns), np.float32)
    points = np.empty((num_points, columns), np.float32)
    for start in range(0, num_points, 100_000):
        part = points[start : start + 100_000]
        part[:] = centres[random.integers(0, num_clusters, len(part))]
        part += np.float32(0.5) * random.standard_normal(part.shape, np.float32)
        part[:] = unit(part)
    return points


def near(points: np.ndarray, count: int, seed: int = 1) -> np.ndarray:
    random = np.random.default_rng(seed)
    chosen = points[random.integers(0, len(points), count)]
    return unit(chosen + 0.3 / np.sqrt(points.shape[1]) * random.standard_normal(chosen.shape))


def seconds_of(search, queries) -> float:
    started = time.perf_counter()
    search(queries, K)
    return time.perf_counter() - started


def recall(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.mean([len(np.intersect1d(a, b)) / K for a, b in zip(found, expected, strict=True)]))


def widen(index, name: str, value: int) -> None:
    """Set how far an index searches."""
    if name == "search_k" or (name == "probes" and not hasattr(index, "quantizer")):
        setattr(index, name, value)
    elif name == "probes":
        index.index.nprobe = value
    else:
        index.index.expansion_search = value


def measure(name: str, points: np.ndarray, queries: np.ndarray, baseline, rounds: int) -> dict:
    settings, breadth, values = SETTINGS[name]
    started = time.perf_counter()
    index = indexes.INDEXES[name][0](points, seed=1, **settings)
    build_seconds = time.perf_counter() - started
    expected, _ = baseline.search(queries, K)
    for value in values or (None,):
        if breadth:
            widen(index, breadth, value)
        reached = recall(index.search(queries, K)[0], expected)
        if reached >= TARGET_RECALL:
            break
    times = [(seconds_of(index.search, queries), seconds_of(baseline.search, queries)) for _ in range(rounds)]
    own, other = (statistics.median(column) for column in zip(*times, strict=True))
    text = ", ".join(f"{key} {number}" for key, number in {**settings, **({breadth: value} if breadth else {})}.items())
    return {
        "index": name,
        "settings": text,
        "recall": reached,
        "queries_per_second": len(queries) / own,
        "exact_queries_per_second": len(queries) / other,
        "speed": other / own,
        "build_seconds": build_seconds,
        "megabytes": index.num_bytes / 1e6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--indexes", nargs="+", choices=list(SETTINGS), help="default: all that are installed")
    parser.add_argument("--rows", type=int, default=1_000_000, help="centres")
    parser.add_argument("--rounds", type=int, default=5, help="searches of each index")
    parser.add_argument("--trees", type=int, default=20, help="trees of forest and annoy")
    parser.add_argument("--quick", action="store_true", help="50,000 centres in 1,000 clusters")
    arguments = parser.parse_args()
    for name in ("forest", "annoy"):
        SETTINGS[name][0]["num_trees"] = arguments.trees
    num_rows, num_clusters = (50_000, 1_000) if arguments.quick else (arguments.rows, 20_000)
    points = clustered(num_rows, 128, num_clusters)
    queries = near(points, 128)
    baseline = exact.build(points)
    names = arguments.indexes or [name for name in SETTINGS if name in indexes.available()]
    print(f"{num_rows:,} centres x 128, {len(queries)} queries, recall@{K}, {os.cpu_count()} cores")
    print(f"{'index':8} {'recall':>7} {'queries/s':>10} {'x exact':>8} {'build s':>8} {'MB':>7}  settings")
    results = []
    for name in names:
        results.append(measure(name, points, queries, baseline, arguments.rounds))
        row = results[-1]
        print(
            f"{name:8} {row['recall']:7.3f} {row['queries_per_second']:10.0f} {row['speed']:8.2f} "
            f"{row['build_seconds']:8.1f} {row['megabytes']:7.0f}  {row['settings']}",
            flush=True,
        )
    exact_speed = statistics.median(row["exact_queries_per_second"] for row in results)
    print(f"{'exact':8} {1:7.3f} {exact_speed:10.0f} {1:8.2f} {0:8.1f} {baseline.num_bytes / 1e6:7.0f}")
    good = [row for row in results if row["recall"] >= TARGET_RECALL]
    best = max(good, key=lambda row: row["speed"]) if good else {"index": "none", "speed": 0.0}
    print(
        json.dumps(
            {
                "name": f"selection: {best['index']} against exact at recall@{K} >= {TARGET_RECALL}",
                "value": best["speed"],
                "unit": "x",
                "reference": exact_speed,
                "ratio": best["speed"],
                "target": TARGET_SPEED,
                "indexes": results,
            }
        )
    )


if __name__ == "__main__":
    main()
