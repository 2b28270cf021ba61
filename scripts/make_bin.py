"""Make a verification pack (.bin) of InsightFace from a folder of pictures and LFW's pairs.txt.

    python scripts/make_bin.py --lfw_dir LFW --lfw_pairs pairs.txt --out lfw.bin --image_size 112
    python validate_on_lfw.py --model runs/20260102-030405 --bin lfw.bin

Pictures go in as they are; with --image_size those of another size are brought to it. Pairs are ordered by their fold,
since a pack's folds are blocks of pairs in order. Read by InsightFace's loaders on Python 3.
"""

from pathlib import Path

import numpy as np

from towers.command_line import Parser, Progress, call_tool, positive
from towers.datasets.conversion import read_pictures
from towers.datasets.folder import PathSource
from towers.datasets.packs import write_pack
from towers.evaluation.lfw import read_pairs, resolve_pairs


def make_parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument("--lfw_dir", type=Path, required=True, help="pictures as DIR/Name/Name_0001.jpg")
    parser.add_argument("--lfw_pairs", type=Path, required=True, help="the pairs, as LFW's pairs.txt")
    parser.add_argument("--lfw_nrof_folds", type=int, help="folds of the cross-validation (default: as the pairs say)")
    parser.add_argument("--out", type=Path, required=True, help="the .bin to write")
    parser.add_argument(
        "--image_size", type=positive, help="side in pixels that other pictures are brought to (default: as they are)"
    )
    return parser


def main(arguments) -> None:
    found = resolve_pairs(read_pairs(arguments.lfw_pairs, folds=arguments.lfw_nrof_folds), arguments.lfw_dir)
    source = PathSource(found.paths)
    encoded = read_pictures(source, image_size=arguments.image_size, progress=Progress())
    order = np.argsort(found.fold_ids, kind="stable")
    write_pack(
        arguments.out, (encoded[record] for pair in found.pairs[order] for record in pair), found.same[order].tolist()
    )
    print(f"{arguments.out}: {len(order)} pairs of {len(source)} pictures, {found.folds} folds")
    if found.skipped:
        print(f"Pairs skipped: {len(found.skipped)}; the first: {found.skipped[0]}")


if __name__ == "__main__":
    call_tool(main, make_parser())
