"""How far colours alone tell the classes: a linear classifier on colour histograms, on the split that networks get.

python benchmarks/histogram_baseline.py data/mini_imagenet/generated
"""

import argparse
import json
from pathlib import Path

import cv2
import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from towers.datasets.decoding import decode, read_header
from towers.datasets.folder import read_folder

BINS = 8


def histogram(encoded: bytes) -> np.ndarray:
    """Square roots of the shares of the pixels in 8 x 8 x 8 colours: float32 [512]."""
    counts = cv2.calcHist([decode(encoded, read_header(encoded))], [0, 1, 2], None, [BINS] * 3, [0, 256] * 3).ravel()
    return np.sqrt(counts / counts.sum())


def features(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Histograms [N, 512] and class names [N]."""
    source = read_folder(folder)
    rows = [histogram(source.reader([record])()[0]) for record in range(len(source))]
    return np.stack(rows), np.array(source.class_names)[source.labels]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with train/ and test/, or train/ and val/")
    arguments = parser.parse_args()
    test_dir = next(path for path in (arguments.data / "test", arguments.data / "val") if path.is_dir())
    train, train_labels = features(arguments.data / "train")
    test, test_labels = features(test_dir)
    scaler = StandardScaler().fit(train)
    # The strength of the penalty is chosen on a fifth of the training pictures.
    held_out = np.random.default_rng(0).permutation(len(train)) < len(train) // 5
    scores = {}
    for c in (1e-4, 1e-3, 1e-2):
        model = LogisticRegression(C=c, max_iter=200).fit(scaler.transform(train[~held_out]), train_labels[~held_out])
        scores[c] = model.score(scaler.transform(train[held_out]), train_labels[held_out])
    best = max(scores, key=scores.get)
    model = LogisticRegression(C=best, max_iter=200).fit(scaler.transform(train), train_labels)
    accuracy = float(model.score(scaler.transform(test), test_labels))
    chance = 1 / len(model.classes_)
    print(f"{len(train)} train, {len(test)} test pictures of {len(model.classes_)} classes, C {best:g}")
    print(f"top-1 of colour histograms: {accuracy:.4f} (chance: {chance:.4f})")
    print(
        json.dumps(
            {
                "name": "linear classifier on colour histograms",
                "value": accuracy,
                "unit": "top-1",
                "reference": chance,
                "ratio": accuracy / chance,
                "target": None,
            }
        )
    )


if __name__ == "__main__":
    main()
