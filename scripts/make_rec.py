"""Make InsightFace's train.rec, train.idx and property from a folder of class folders or a list of pictures.

    python scripts/make_rec.py --data_dir FACES --out_dir faces_mine --image_size 112
    python scripts/make_rec.py --data_dir train_list.txt --out_dir faces_mine --flat
    python scripts/make_rec.py --data_dir train.lst --out_dir faces_mine           # MXNet's, beside its pictures

Towers trains on it (--data_dir faces_mine), and so do InsightFace's own trainers. Pictures go in as they are; with
--image_size those of another size are brought to it. The default layout has InsightFace's identity records; --flat has
pictures only, as DALI and ImageRecordIter want it. OUT appears when all is done; a stopped run leaves nothing.
"""

from pathlib import Path

from towers.command_line import Parser, Progress, call_tool, positive
from towers.datasets.conversion import CLASS_NAMES, pack_records
from towers.datasets.opening import KINDS, open_source
from towers.datasets.writing import whole_folder


def make_parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument("--data_dir", type=Path, required=True, help=f"the pictures: {KINDS}")
    parser.add_argument("--out_dir", type=Path, required=True, help="new folder for train.rec, train.idx and property")
    parser.add_argument(
        "--image_size", type=positive, help="side in pixels that other pictures are brought to (default: all have one)"
    )
    parser.add_argument("--flat", action="store_true", help="pictures only, in the order given; no identity records")
    return parser


def main(arguments) -> None:
    source = open_source(arguments.data_dir)
    with whole_folder(arguments.out_dir) as folder:
        pack_records(
            source,
            folder,
            image_size=arguments.image_size,
            flat=arguments.flat,
            progress=Progress("pictures written"),
        )
    print(
        f"{arguments.out_dir}: train.rec, train.idx and property of {len(source)} pictures, {source.num_classes} "
        f"classes; names of the classes in {CLASS_NAMES}"
    )


if __name__ == "__main__":
    call_tool(main, make_parser())
