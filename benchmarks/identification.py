"""How long do an IJB-C-sized 1:1 scoring and a MegaFace-sized identification take, on generated features?

    PYTHONPATH=src python benchmarks/identification.py

IJB-C: 15,658,489 pairs between 3,531 gallery templates and 19,593 probes, scored and rated (templates are made before).
MegaFace: 3,530 probes of 80 people against a million distractors, which are generated in chunks while it runs, their
time included. Memory is the peak of the process.
"""

import argparse
import json
import resource
import time

import numpy as np

from towers.evaluation.identification import identify_among_distractors, unit_rows
from towers.evaluation.ijb import rate_pairs, score_pairs

IJBC_PAIRS, IJBC_GENUINE, GALLERY, PROBES = 15_658_489, 19_557, 3_531, 19_593


class GeneratedDistractors:
    """Rows of random float32, made when they are asked for."""

    def __init__(self, count: int, columns: int):
        self.count = count
        self.columns = columns

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, rows: slice) -> np.ndarray:
        random = np.random.default_rng(rows.start)
        return random.standard_normal((rows.stop - rows.start, self.columns), dtype=np.float32)


def ijbc(columns: int, share: float) -> float:
    """Seconds of the scoring and the rates."""
    random = np.random.default_rng(0)
    genuine, pairs = int(IJBC_GENUINE * share), int(IJBC_PAIRS * share)
    gallery = random.standard_normal((GALLERY, columns), dtype=np.float32)
    mates = random.integers(0, GALLERY, PROBES)
    probes = gallery[mates] + 3 * random.standard_normal((PROBES, columns), dtype=np.float32)
    features = unit_rows(np.concatenate([gallery, probes]), "templates")
    left, right = random.integers(0, GALLERY, pairs), random.integers(0, PROBES, pairs)
    right[:genuine] = random.integers(0, PROBES, genuine)
    left[:genuine] = mates[right[:genuine]]
    same = left == mates[right]
    right += GALLERY
    started = time.perf_counter()
    scores = score_pairs(features, left, right)
    scored = time.perf_counter()
    rates = rate_pairs(scores, same)
    seconds = time.perf_counter() - started
    some = np.arange(0, pairs, max(1, pairs // 1000))
    if not np.allclose(scores[some], np.vecdot(features[left[some]], features[right[some]]), atol=1e-5):
        raise SystemExit("the scores are not the cosines")
    print(f"IJB-C, {pairs:,} pairs: scores {scored - started:.2f} s, all {seconds:.2f} s; {rates.tar_at_far}")
    return seconds


def megaface(columns: int, distractors: int) -> float:
    """Seconds of 3,530 probes against the distractors."""
    random = np.random.default_rng(1)
    subjects = np.arange(3530) % 80
    people = random.standard_normal((80, columns), dtype=np.float32)
    probes = people[subjects] + 2 * random.standard_normal((3530, columns), dtype=np.float32)
    started = time.perf_counter()
    result = identify_among_distractors(probes, subjects, GeneratedDistractors(distractors, columns))
    seconds = time.perf_counter() - started
    print(f"MegaFace, 3,530 x {distractors:,} x {columns}: {seconds:.1f} s; rank-1 {result.rank_rates[1]:.4f}")
    return seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--embedding_size", type=int, default=512, help="numbers in a feature")
    parser.add_argument("--distractors", type=int, default=1_000_000, help="distractors of the MegaFace-sized part")
    parser.add_argument("--share", type=float, default=1.0, help="share of IJB-C's pairs")
    arguments = parser.parse_args()
    found = [
        ("identification_megaface", megaface(arguments.embedding_size, arguments.distractors), "s", 60),
        ("identification_memory", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, "GiB", 6 * 10**9 / 2**30),
        ("verification_ijbc", ijbc(arguments.embedding_size, arguments.share), "s", 5),
    ]
    for name, value, unit, target in found:
        print(json.dumps({"name": name, "value": round(value, 2), "unit": unit, "target": round(target, 2)}))


if __name__ == "__main__":
    main()
