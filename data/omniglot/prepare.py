"""Omniglot's characters as people: one alphabet is kept out for validation by pairs, the others are for training.

  python data/omniglot/prepare.py --archive small1.zip --out_dir data/omniglot/korean --held_out Korean
  python data/omniglot/prepare.py --archive small1.zip --out_dir data/omniglot/classes --train_drawers 14

Makes OUT/train/Alphabet_character/*.png, OUT/test/Alphabet_character/*.png and OUT/pairs.txt in LFW's layout. With
--train_drawers characters are classes: the first so many drawers of each are for training, the others for test.
"""

import argparse
import shutil
import sys
import zipfile
from collections import defaultdict
from pathlib import Path, PurePosixPath

import numpy as np


def read_characters(archive: Path) -> dict[str, list[tuple[str, bytes]]]:
    """``Alphabet_character`` -> (member, PNG bytes) of its drawers, in order."""
    characters = defaultdict(list)
    with zipfile.ZipFile(archive) as file:
        for member in sorted(file.namelist()):
            parts = PurePosixPath(member).parts
            if member.endswith(".png") and len(parts) >= 3:
                alphabet, character = parts[-3:-1]
                characters[f"{alphabet}_{character}"].append((member, file.read(member)))
    return dict(characters)


def draw_pairs(counts: list[int], folds: int, pairs_per_fold: int, seed: int) -> list[tuple]:
    """Distinct pairs ((person, picture), (person, picture)), each fold's same ones before its different ones.

    Args:
      counts: pictures of each person.
    """
    random = np.random.default_rng(seed)
    number = folds * pairs_per_fold
    same, different = set(), set()
    while len(same) < number:
        person = int(random.integers(len(counts)))
        first, second = sorted(int(index) for index in random.choice(counts[person], 2, replace=False))
        same.add(((person, first), (person, second)))
    while len(different) < number:
        first, second = sorted(int(index) for index in random.choice(len(counts), 2, replace=False))
        different.add(((first, int(random.integers(counts[first]))), (second, int(random.integers(counts[second])))))
    same, different = (list(random.permutation(np.array(sorted(pairs)))) for pairs in (same, different))
    rows = []
    for fold in range(folds):
        own = slice(fold * pairs_per_fold, (fold + 1) * pairs_per_fold)
        rows += [*same[own], *different[own]]
    return rows


def write_classes(characters: dict[str, list[tuple[str, bytes]]], out_dir: Path, train_drawers: int) -> None:
    """Every character as a class, its first drawers' pictures in ``train``, the others' in ``test``."""
    drawers = min(len(pictures) for pictures in characters.values())
    if not 1 <= train_drawers < drawers:
        sys.exit(f"--train_drawers {train_drawers}: give 1 to {drawers - 1}, for a character has {drawers} drawers")
    shutil.rmtree(out_dir, ignore_errors=True)
    counts = {"train": 0, "test": 0}
    for name, pictures in characters.items():
        for index, (member, content) in enumerate(pictures):
            kind = "train" if index < train_drawers else "test"
            folder = out_dir / kind / name
            folder.mkdir(parents=True, exist_ok=True)
            (folder / PurePosixPath(member).name).write_bytes(content)
            counts[kind] += 1
    for kind, count in counts.items():
        print(f"{out_dir / kind}: {len(characters)} characters, {count} pictures")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archive", type=Path, required=True, help="Omniglot's zip of pictures")
    parser.add_argument("--out_dir", type=Path, required=True, help="where the pictures go; replaced if it is there")
    parser.add_argument("--held_out", default="Korean", help="alphabet for validation")
    parser.add_argument(
        "--train_drawers", type=int, help="no alphabet is kept out, but of each character the drawers after so many"
    )
    parser.add_argument("--folds", type=int, default=10)
    parser.add_argument("--pairs_per_fold", type=int, default=300, help="same pairs a fold, and as many different ones")
    parser.add_argument("--seed", type=int, default=0, help="of the pairs")
    arguments = parser.parse_args()

    characters = read_characters(arguments.archive)
    if arguments.train_drawers is not None:
        return write_classes(characters, arguments.out_dir, arguments.train_drawers)
    alphabets = sorted({name.rsplit("_", 1)[0] for name in characters})
    if arguments.held_out not in alphabets:
        sys.exit(f"--held_out {arguments.held_out}: {arguments.archive} holds {', '.join(alphabets)}")
    shutil.rmtree(arguments.out_dir, ignore_errors=True)
    people = {"train": [], "test": []}
    for name, pictures in characters.items():
        kind = "test" if name.startswith(arguments.held_out) else "train"
        people[kind].append((name, len(pictures)))
        folder = arguments.out_dir / kind / name
        folder.mkdir(parents=True)
        for index, (_, content) in enumerate(pictures, start=1):
            (folder / f"{name}_{index:04}.png").write_bytes(content)
    names = [name for name, _ in people["test"]]
    rows = draw_pairs([count for _, count in people["test"]], arguments.folds, arguments.pairs_per_fold, arguments.seed)
    lines = [f"{arguments.folds}\t{arguments.pairs_per_fold}"]
    for (left, i), (right, j) in rows:
        lines.append(
            f"{names[left]}\t{i + 1}\t{j + 1}" if left == right else f"{names[left]}\t{i + 1}\t{names[right]}\t{j + 1}"
        )
    (arguments.out_dir / "pairs.txt").write_text("\n".join(lines) + "\n")
    for kind, members in people.items():
        print(f"{arguments.out_dir / kind}: {len(members)} characters, {sum(count for _, count in members)} pictures")


if __name__ == "__main__":
    main()
