"""Unpack a .rec of InsightFace into class folders, and write HF-Softmax's lists of training and validation pictures.

    python scripts/rec2img.py --in_folder faces_emore --out_folder emore_images
    python scripts/rec2img.py --in_folder train.rec --out_folder images --val_share 0

Pictures are written as they are in the .rec, to OUT/LABEL/KEY.jpg; train_list.txt and val_list.txt in OUT have lines
'LABEL/KEY.jpg LABEL'. OUT appears when all is done; a stopped run leaves nothing.
"""

from pathlib import Path

from towers.command_line import Parser, Progress, call_tool
from towers.datasets.conversion import TRAIN_LIST, VAL_LIST, unpack_records
from towers.datasets.records import read_records
from towers.datasets.splitting import split_classes
from towers.datasets.writing import whole_folder
from towers.errors import UserError


def make_parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument("--in_folder", type=Path, required=True, help="folder with train.rec, or a .rec file")
    parser.add_argument("--out_folder", type=Path, required=True, help="new folder for class folders and lists")
    parser.add_argument("--val_share", type=float, default=0.05, help="share of each class for the list of validation")
    parser.add_argument("--seed", type=int, default=42, help="of the choice of validation pictures")
    parser.add_argument("--max_bad_fraction", type=float, default=0.001, help="share of records that may be no picture")
    return parser


def main(arguments) -> None:
    if not 0 <= arguments.val_share < 1:
        raise UserError(f"--val_share {arguments.val_share}: a share of 0 or more, below 1")
    source = read_records(arguments.in_folder)
    _, held_out = split_classes(source, arguments.val_share, seed=arguments.seed)
    with whole_folder(arguments.out_folder) as folder:
        left_out = unpack_records(
            source,
            folder,
            held_out,
            max_bad_fraction=arguments.max_bad_fraction,
            progress=Progress("pictures written"),
        )
    print(
        f"{arguments.out_folder}: {len(source) - len(left_out)} pictures of {source.num_classes} classes; "
        f"{TRAIN_LIST}, and {VAL_LIST} with {len(held_out)} of them"
    )
    if left_out:
        print(f"{len(left_out)} records left out, the first: {left_out[0]}")


if __name__ == "__main__":
    call_tool(main, make_parser())
