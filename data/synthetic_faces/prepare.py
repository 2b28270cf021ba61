"""Make the embedded data set: drawn faces in LFW's folder layout, with LFW's 10-fold verification pairs.

    python data/synthetic_faces/prepare.py --out_dir data/synthetic_faces/generated

A call with the options of the set that is already there does nothing. The same options give the same bytes, whatever
the number of processes.
"""

import argparse
import json
import sys
from pathlib import Path

# For programs that load this file by its path; a run as a script has the folder on the path already.
if str(Path(__file__).parent) not in sys.path:
    sys.path.insert(0, str(Path(__file__).parent))

from synthetic_faces import generate, write_sheet

from towers.errors import UserError


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--out_dir", default=str(Path(__file__).parent / "generated"), help="folder to make")
    parser.add_argument("--train_people", type=int, default=200, help="people to train on")
    parser.add_argument("--images_per_person", type=int, default=20, help="pictures of each of them")
    parser.add_argument("--test_people", type=int, default=120, help="other people, to verify on")
    parser.add_argument("--test_images_per_person", type=int, default=10, help="pictures of each of them")
    parser.add_argument("--image_size", type=int, default=112, help="width and height in pixels")
    parser.add_argument("--seed", type=int, default=0, help="who the people are, and every picture")
    parser.add_argument("--folds", type=int, default=10, help="parts of the test people; no person is in two")
    parser.add_argument(
        "--pairs_per_fold", type=int, default=300, help="same pairs of a fold, and as many different ones"
    )
    parser.add_argument("--processes", type=int, default=None, help="processes that draw (default: one a core)")
    parser.add_argument(
        "--sheet", type=Path, default=None, metavar="FILE", help="also write a JPEG of 8 test people x 6 pictures"
    )
    return parser.parse_args(arguments)


def main() -> int:
    """Make the data set of the command line and say what was done."""
    options = vars(parse_args())
    out, sheet = Path(options.pop("out_dir")), options.pop("sheet")
    try:
        made = generate(out, **options)
        counts = json.loads((out / "dataset.json").read_text())["counts"]
        state = "made" if made else "already there, nothing to do"
        print(f"{out}: {state}: " + ", ".join(f"{value} {name.replace('_', ' ')}" for name, value in counts.items()))
        if sheet:
            write_sheet(out, sheet)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
