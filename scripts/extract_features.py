"""Embed pictures and write the features, a row a picture, with the paths beside them.

python scripts/extract_features.py --model runs/20260102-030405 --data_dir FACES --out faces.npy
python scripts/extract_features.py --model runs/20260102-030405 --data_dir faces_emore/train.rec --out emore.h5
python scripts/extract_features.py --model runs/20260102-030405 --list pictures.txt --flip add --out faces.h5

The network runs on all towers. Features are not normalised: their norm tells how good a picture is.
"""

from functools import partial
from pathlib import Path

import numpy as np

from towers import export, options
from towers.datasets.folder import PathSource
from towers.datasets.opening import open_source
from towers.datasets.packs import read_pack
from towers.errors import BadData, UserError
from towers.evaluation.features import check_suffix
from towers.runs import run, validation


def make_parser() -> options.Parser:
    parser = options.Parser(__doc__)
    parser.add_argument("--model", type=Path, required=True, help="run folder or model folder")
    pictures = parser.add_mutually_exclusive_group(required=True)
    pictures.add_argument(
        "--data_dir",
        type=Path,
        help="pictures: DIR/Class/picture.jpg, InsightFace's .rec or its folder, 'path label' lines, a .lst, a .bin",
    )
    pictures.add_argument(
        "--list", type=Path, help="file with the path of a picture in each line, below its own folder; no labels"
    )
    parser.add_argument("--out", type=Path, required=True, help=".npy (paths and labels in .tsv), .h5 or .hdf5")
    parser.add_argument(
        "--flip",
        choices=("none", "add", "join"),
        default="none",
        help="the mirrored picture's embedding: left out, added, or behind the other in twice the columns",
    )
    parser.add_argument("--batch_size", type=int, default=100, help="images a tower and step")
    parser.add_argument("--max_bad_fraction", type=float, default=0.0, help="share of unreadable pictures allowed")
    parser.add_argument(
        "--load_size", type=int, help="side pictures are brought to before the crop (default: the model's)"
    )
    options.add_towers(parser, training=False)
    return parser


def read_list(path: Path) -> PathSource:
    """The pictures named in the lines of a file."""
    try:
        lines = path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError as error:
        raise UserError(f"--list {path}: cannot be read ({error.strerror})") from error
    paths = [path.parent / line for line in lines if line.strip()]
    if not paths:
        raise BadData(f"--list {path}: names no picture; give one path a line")
    return PathSource(paths)


def open_pictures(path: Path):
    """A source of any kind; packs are told by their name."""
    return read_pack(path) if path.suffix == ".bin" else open_source(path)


def main(arguments) -> None:
    pick = partial(options.pick, arguments)
    check_suffix(arguments.out)
    folder, _ = export.read_facts(arguments.model)
    source = read_list(arguments.list) if arguments.list else open_pictures(arguments.data_dir)
    towers = run.set_up(**pick("towers precision"))
    with towers.scope():
        model = export.read_model(folder)
    features, bad = validation.embed_source(
        towers,
        model.network,
        source,
        image_size=model.image_size,
        load_size=arguments.load_size or model.load_size,
        flipped=arguments.flip != "none",
        **pick("batch_size max_bad_fraction"),
    )
    if arguments.flip == "add":
        features = np.add(*np.split(features, 2, axis=1))
    validation.write_embeddings(arguments.out, source, features, bad)
    print(f"{arguments.out}: {len(source) - len(bad)} x {features.shape[1]}, {len(bad)} unreadable pictures left out")


if __name__ == "__main__":
    options.call(main, make_parser())
