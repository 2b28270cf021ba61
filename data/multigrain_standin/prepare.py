"""Make the stand-in data set of MultiGrain: classes, instances and distorted copies, drawn.

    python data/multigrain_standin/prepare.py --out_dir data/multigrain_standin/generated

A call with the options of the set that is already there does nothing. The same options give the same bytes with the
same versions of OpenCV and NumPy.
"""

import argparse
import sys
from pathlib import Path

# For programs that load this file by its path; a run as a script has the folder on the path already.
if str(Path(__file__).parent) not in sys.path:
    sys.path.insert(0, str(Path(__file__).parent))

from grains import generate, write_sheet
from scene_drawing import MAX_CLASSES

from towers.errors import UserError


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--out_dir", default=str(Path(__file__).parent / "generated"), help="folder to make")
    parser.add_argument("--num_classes", type=int, default=10, help=f"classes, at most {MAX_CLASSES}")
    parser.add_argument("--train_images", type=int, default=200, help="pictures a class to train on")
    parser.add_argument(
        "--val_images", type=int, default=100, help="pictures a class, of other instances, to validate on"
    )
    parser.add_argument("--instances", type=int, default=100, help="instances in holidays/")
    parser.add_argument("--views", type=int, default=4, help="pictures of each of them, the first being the query")
    parser.add_argument("--originals", type=int, default=100, help="pictures in copydays/ that are copied")
    parser.add_argument("--strong_copies", type=int, default=4, help="strongly distorted copies of each of them")
    parser.add_argument("--strong_changes", type=int, default=2, help="heavy changes that make a strong copy")
    parser.add_argument("--image_size", type=int, default=96, help="width and height in pixels")
    parser.add_argument("--seed", type=int, default=0, help="of every picture")
    parser.add_argument("--sheet", type=Path, metavar="FILE", help="also write a JPEG that shows all three grains")
    return parser.parse_args(arguments)


def main() -> int:
    """Make the data set of the command line and say what was done."""
    options = vars(parse_args())
    out, sheet = Path(options.pop("out_dir")), options.pop("sheet")
    try:
        made = generate(out, **options)
        count = sum(1 for _ in out.rglob("*.jpg"))
        print(f"{out}: {count} pictures, {'made' if made else 'already there, nothing to do'}")
        if sheet:
            write_sheet(out, sheet)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
