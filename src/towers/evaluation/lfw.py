"""Pairs of pictures in the layout of Labeled Faces in the Wild (LFW): `ROOT/Name/Name_0001.jpg` and `pairs.txt`.

pictures = resolve_pairs(read_pairs("pairs.txt"), "lfw")
embeddings = ...  # [N, D], a row for each of pictures.paths
evaluate_pairs(embeddings, pictures.pairs, pictures.same, fold_ids=pictures.fold_ids)
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import BadData, UserError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG")
DEFAULT_FOLDS = 10


@dataclass(frozen=True)
class Pair:
    """Two pictures (name, number) from `line` of a pairs file, in fold 0..F-1."""

    left: tuple[str, int]
    right: tuple[str, int]
    same: bool
    fold: int
    line: int


@dataclass(frozen=True, eq=False)
class LfwPairs:
    """Pairs whose pictures exist: `pairs` [P, 2] int64 are indices into `paths`, which holds each picture once.

    `same` [P] bool, `fold_ids` [P] int64, `folds` as in the pairs file; `skipped` has a text for each pair left out.
    """

    paths: list[str]
    pairs: np.ndarray
    same: np.ndarray
    fold_ids: np.ndarray
    folds: int
    skipped: list[str]


def read_pairs(path: str | Path, *, folds: int | None = None) -> list[Pair]:
    """Reads LFW's pairs.txt: `Name i j` for the same person, `Name i Other j` for two, split by tabs or blanks.

    The first line may be a header, `folds<TAB>pairs` (of each kind in a fold) or `pairs` alone; it must then agree with
    the lines that follow. `folds` defaults to the header's number, else 10. Fold k is the k-th block of the same pairs
    and the k-th of the different ones, in the order of the file: facenet's consecutive rows for LFW's own file, and
    folds with both kinds for files that list all same pairs first.

    Raises UserError where the file cannot be opened and BadData, with the line, where it is not a list of pairs.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise BadData(f"{path}: byte {error.start} is not UTF-8 text: give a text file of pairs") from error
    except OSError as error:
        raise UserError(f"{path}: cannot read the pairs file ({error.strerror}): check --lfw_pairs") from error
    rows = [(number, line.split()) for number, line in enumerate(lines, 1) if line.strip()]
    header = _header(rows[0][1]) if rows else None
    if header is not None:
        rows = rows[1:]
    if not rows:
        raise BadData(f"{path}: holds no pairs: give a file in the format of LFW's pairs.txt")
    parsed = [(*_parse_pair(path, number, tokens), number) for number, tokens in rows]
    if header is not None:
        header_folds, each = header
        if len(parsed) != header_folds * 2 * each:
            raise BadData(
                f"{path}, line 1: the header stands for {header_folds} x 2 x {each} = {header_folds * 2 * each} pairs,"
                f" the file has {len(parsed)}: get the whole file, or correct or delete the header"
            )
    if folds is None:
        folds = header[0] if header is not None and header[0] > 1 else DEFAULT_FOLDS
    return _number_folds(path, parsed, folds)


def resolve_pairs(pairs: list[Pair], root: str | Path, *, max_missing_fraction: float = 0.01) -> LfwPairs:
    """Finds the pictures of `pairs` under `root`, as .jpg, .jpeg or .png, in small or in capital letters.

    A pair with a missing picture is left out and the others stay in their folds.

    Raises UserError where `root` is no folder, and BadData where more than `max_missing_fraction` of the pairs are left
    out, with the first three missing pictures.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"{root}: no such folder: check --lfw_dir")
    found: dict[tuple[str, int], str | None] = {}
    indices: dict[str, int] = {}
    kept, rows, skipped = [], [], []
    for pair in pairs:
        paths = [_find_picture(root, picture, found) for picture in (pair.left, pair.right)]
        if None in paths:
            missing = pair.left if paths[0] is None else pair.right
            skipped.append(f"line {pair.line}: {_stem(root, missing)}{{{','.join(EXTENSIONS[:3])}}} is missing")
            continue
        kept.append(pair)
        rows.append([indices.setdefault(path, len(indices)) for path in paths])
    if len(skipped) > max_missing_fraction * len(pairs):
        missing = [str(_stem(root, picture)) for picture, path in found.items() if path is None]
        raise BadData(
            f"{root}: {len(skipped)} of {len(pairs)} pairs name missing pictures, more than {max_missing_fraction:.2%}"
            f" ({', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}): check that --lfw_dir holds"
            " Name/Name_0001.jpg and fits --lfw_pairs"
        )
    return LfwPairs(
        paths=list(indices),
        pairs=np.array(rows, dtype=np.int64).reshape(-1, 2),
        same=np.array([pair.same for pair in kept], dtype=bool),
        fold_ids=np.array([pair.fold for pair in kept], dtype=np.int64),
        folds=len({pair.fold for pair in pairs}),
        skipped=skipped,
    )


def _header(tokens: list[str]) -> tuple[int, int] | None:
    """(folds, pairs of each kind in a fold), or None where the line is no header."""
    if len(tokens) > 2 or not all(_is_number(token) for token in tokens):
        return None
    return (1, int(tokens[0])) if len(tokens) == 1 else (int(tokens[0]), int(tokens[1]))


def _is_number(token: str) -> bool:
    return token.isascii() and token.isdigit()


def _parse_pair(path: str | Path, number: int, tokens: list[str]) -> tuple[tuple[str, int], tuple[str, int], bool]:
    where = f"{path}, line {number}"
    if len(tokens) not in (3, 4):
        raise BadData(f"{where}: {len(tokens)} words, expected `Name i j` or `Name i Other j` (names without blanks)")
    same = len(tokens) == 3
    names = [tokens[0], tokens[0] if same else tokens[2]]
    numbers = [tokens[1], tokens[-1]]
    for text in numbers:
        if not _is_number(text):
            raise BadData(f"{where}: {text!r} is not the number of a picture: write `Name i j` or `Name i Other j`")
    for name in names:
        if name in (".", "..") or any(character in name for character in "/\\:\0"):
            raise BadData(
                f"{where}: {name!r} would leave the folder of the pictures: names have no `/`, `\\`, `:` or `..`"
            )
    left, right = ((name, int(text)) for name, text in zip(names, numbers, strict=True))
    return left, right, same


def _number_folds(path: str | Path, parsed: list[tuple], folds: int) -> list[Pair]:
    same = np.array([row[2] for row in parsed])
    fold_ids = np.empty(len(parsed), dtype=np.int64)
    for kind, rows in (("same", np.flatnonzero(same)), ("different", np.flatnonzero(~same))):
        if not 2 <= folds <= len(rows):
            raise BadData(
                f"{path}: {len(rows)} pairs of {kind} people cannot fill {folds} folds:"
                " use from 2 folds to as many as there are pairs of each kind"
            )
        for fold, block in enumerate(np.array_split(rows, folds)):
            fold_ids[block] = fold
    return [
        Pair(left, right, same, fold, line)
        for (left, right, same, line), fold in zip(parsed, fold_ids.tolist(), strict=True)
    ]


def _stem(root: Path, picture: tuple[str, int]) -> Path:
    name, number = picture
    return root / name / f"{name}_{number:04d}"


def _find_picture(root: Path, picture: tuple[str, int], found: dict[tuple[str, int], str | None]) -> str | None:
    """The path of a picture or None, looked up on disk once and kept in `found`."""
    if picture not in found:
        stem = str(_stem(root, picture))
        found[picture] = next((stem + ext for ext in EXTENSIONS if Path(stem + ext).is_file()), None)
    return found[picture]
