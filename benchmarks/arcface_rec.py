"""From pictures to a .rec, ArcFace with the class weights split over two towers, and a .bin of people never seen.

  python benchmarks/arcface_rec.py
  python benchmarks/arcface_rec.py --folder runs/arcface_rec -- --max_epochs 1 --validate_every_n_epochs 1

The embedded data set is made, packed by scripts/make_rec.py and scripts/make_bin.py, and trained on by
train_multi_gpu.py with the recipe below, near to that of softmax_train.sh; what follows ``--`` goes after it.
The figure is the accuracy of the last validation, InsightFace's Accuracy-Flip on 6,000 pairs.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TARGET = 0.97
PACK = "unseen"
RECIPE = [
    *("--loss", "arcface", "--head", "sharded", "--towers", "2"),
    *("--network", "small", "--embedding_size", "128", "--image_size", "64", "--random_crop", "--random_flip"),
    # Two hundred classes: at the scale of a million the loss of a fresh network would be above 40.
    *("--scale", "32", "--keep_probability", "0.4"),
    *("--batch_size", "64", "--optimizer", "MOM", "--learning_rate", "0.05", "--warmup_steps", "60"),
    *("--learning_rate_schedule", "cosine", "--max_epochs", "30", "--validate_every_n_epochs", "10"),
]


def python(*command) -> None:
    subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, check=True)


def pack(faces: Path, folder: Path) -> tuple[Path, Path]:
    """The training people as a folder with a .rec, and the pairs of the others as a .bin; made where missing."""
    records, unseen = folder / "rec", folder / f"{PACK}.bin"
    python("data/synthetic_faces/prepare.py", "--out_dir", faces)
    if not records.exists():
        python("scripts/make_rec.py", "--data_dir", faces / "train", "--out_dir", records)
    if not unseen.exists():
        pairs = ("--lfw_dir", faces / "test", "--lfw_pairs", faces / "pairs.txt")
        python("scripts/make_bin.py", *pairs, "--out", unseen)
    return records, unseen


def train(records: Path, unseen: Path, run: Path, extra: list[str]) -> float:
    """The accuracy of the last validation."""
    places = ("--data_dir", records, "--val_sets", unseen, "--run_dir", run)
    python("train_multi_gpu.py", *RECIPE, *places, *extra)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return next(line for line in reversed(lines) if f"{PACK}_accuracy" in line)[f"{PACK}_accuracy"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--faces",
        type=Path,
        default=ROOT / "data/synthetic_faces/generated",
        help="the embedded data set, made where it is missing (default: where the launchers have it)",
    )
    parser.add_argument("--folder", type=Path, help="keep the .rec, the .bin and the run here (default: for a while)")
    parser.add_argument("extra", nargs="*", help="after --: more options of train_multi_gpu.py")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (arguments.folder or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        records, unseen = pack(arguments.faces.resolve(), folder)
        started = time.perf_counter()
        accuracy = train(records, unseen, folder / "run", arguments.extra)
        seconds = time.perf_counter() - started
    print(f"accuracy {accuracy:.4f} on people never seen, {seconds:.0f} s of training and validation")
    line = {"name": "ArcFace on a .rec, head sharded on 2 towers, checked on a .bin", "value": accuracy}
    line |= {"unit": "verification accuracy", "reference": TARGET, "ratio": accuracy / TARGET, "target": TARGET}
    print(json.dumps(line))


if __name__ == "__main__":
    main()
