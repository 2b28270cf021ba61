"""How well raw pixels verify the test people: what a network must beat by far.

python data/synthetic_faces/raw_pixels.py data/synthetic_faces/generated
"""

import sys
from pathlib import Path

import cv2
import numpy as np


def read_pairs(root: Path) -> tuple[list[tuple[Path, Path]], np.ndarray, np.ndarray]:
    """Return the pairs of a generated set: paths, whether it is one person bool [N], fold int [N]."""
    header, *rows = (root / "pairs.txt").read_text().splitlines()
    _, pairs_per_fold = map(int, header.split("\t"))

    def picture(name: str, index: str) -> Path:
        return root / "test" / name / f"{name}_{int(index):04d}.jpg"

    fields = [row.split("\t") for row in rows]
    paths = [(picture(f[0], f[1]), picture(f[0] if len(f) == 3 else f[2], f[-1])) for f in fields]
    return paths, np.array([len(f) == 3 for f in fields]), np.arange(len(fields)) // (2 * pairs_per_fold)


def fold_accuracy(distances: np.ndarray, same: np.ndarray, fold: np.ndarray) -> float:
    """Return LFW's mean accuracy: each fold [N] is judged by the threshold that is best on all the others."""
    accuracies = []
    for held_out in np.unique(fold):
        known = fold != held_out
        order = np.argsort(distances[known])
        is_same = same[known][order]
        right = np.concatenate([[0], np.cumsum(is_same)]) + np.concatenate([np.cumsum(~is_same[::-1])[::-1], [0]])
        thresholds = np.concatenate([[-np.inf], distances[known][order]])
        accuracies.append(np.mean((distances[~known] <= thresholds[right.argmax()]) == same[~known]))
    return float(np.mean(accuracies))


def raw_pixel_accuracies(root: Path) -> dict[str, float]:
    """Return the accuracy of L2 distances of raw pixels, and of grey pixels less their mean over their deviation."""
    paths, same, fold = read_pairs(root)
    pictures = {path: cv2.imread(str(path)).astype(np.float32) for path in {path for pair in paths for path in pair}}
    grey = {path: cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY) for path, picture in pictures.items()}
    normalised = {path: (picture - picture.mean()) / (picture.std() + 1e-6) for path, picture in grey.items()}
    return {
        name: fold_accuracy(np.array([np.linalg.norm(values[a] - values[b]) for a, b in paths]), same, fold)
        for name, values in (("raw", pictures), ("grey_normalised", normalised))
    }


if __name__ == "__main__":
    for name, accuracy in raw_pixel_accuracies(Path(sys.argv[1])).items():
        print(f"{name}: {accuracy:.4f}")
