"""Make the .idx of a .rec anew, from the records themselves: where it is missing, cut, or of another file.

    python scripts/index_rec.py faces_emore/train.rec
    python scripts/index_rec.py train.rec --out elsewhere.idx

Reads the whole .rec. Pictures are numbered in the order of the file, from 1 where there are identity records
(InsightFace's layout), else from 0. An .idx that is there is replaced when the new one is whole.
"""

from pathlib import Path

from towers.command_line import Parser, call_tool
from towers.datasets.recordio import index_text
from towers.datasets.records import record_path, scan_records
from towers.datasets.writing import whole_file


def make_parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument("rec", type=Path, help="the .rec, or a folder with train.rec")
    parser.add_argument("--out", type=Path, help="the .idx to write (default: beside the .rec)")
    return parser


def main(arguments) -> None:
    path = record_path(arguments.rec)
    keys, heads = scan_records(path)
    out = arguments.out or path.with_suffix(".idx")
    with whole_file(out) as file:
        file.write(index_text(keys, heads))
    print(f"{out}: {len(keys)} records")


if __name__ == "__main__":
    call_tool(main, make_parser())
