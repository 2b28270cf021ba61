"""Check the pictures of a data set before training on it, and that none of the test set is among them.

    python scripts/verify_data.py --data_dir TRAIN
    python scripts/verify_data.py --data_dir TRAIN --lfw_dir TEST --images_per_person 4 --json report.json

Both are folders of class folders, one a person. Tells unreadable pictures, the same picture twice (same bytes or same
pixels) across people, within a person, and between training and test, pictures that are nearly the same (at another
size or quality), people in both sets, and people with too few pictures. Ends with 0, or with 65 where a picture cannot
be read, or is the same in two people or in both sets. What is only nearly the same does not count: look at it.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

from towers.datasets.folder import read_folder
from towers.datasets.inspection import inspect
from towers.errors import BadData, StorageError, UserError


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line; dashes and underscores in option names mean the same."""
    summary, _, rest = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--data_dir", "--data-dir", required=True, help="folder of the training pictures")
    parser.add_argument("--lfw_dir", "--lfw-dir", help="folder of the test pictures")
    parser.add_argument(
        "--images_per_person",
        "--images-per-person",
        type=_positive,
        default=2,
        help="pictures that a person should have (default: 2)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="file for the whole report")
    parser.add_argument("--show", type=int, default=10, help="findings of each kind to print (default: 10)")
    parser.add_argument(
        "--processes", type=_positive, default=cores, help=f"processes that read (default: one a core, {cores})"
    )
    return parser.parse_args(arguments)


def main() -> int:
    """Inspect, print, write the JSON; the exit code."""
    options = parse_args()
    # A path that is not UTF-8 must not end the report.
    sys.stdout.reconfigure(errors="backslashreplace")
    sys.stderr.reconfigure(errors="backslashreplace")
    try:
        train = read_folder(options.data_dir)
        test = read_folder(options.lfw_dir) if options.lfw_dir else None
        report = inspect(
            train,
            test,
            images_per_person=options.images_per_person,
            processes=options.processes,
            progress=_Progress(),
        )
        for line in report.lines(options.show):
            print(line)
        if options.json:
            _write(options.json, report.to_json())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return BadData.exit_code if report.faulty else 0


class _Progress:
    """A line on the error stream: rewritten on a terminal, else a new one every ten seconds."""

    def __init__(self):
        self.start = self.last = time.monotonic()
        self.terminal = sys.stderr.isatty()

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self.last < (0.2 if self.terminal else 10) and done < total:
            return
        self.last = now
        text = f"{done} of {total} pictures read, {done / max(now - self.start, 1e-9):.0f} a second"
        end = "\r" if self.terminal and done < total else "\n"
        print(text, end=end, file=sys.stderr, flush=True)


def _write(path: Path, report: dict) -> None:
    try:
        path.write_text(json.dumps(report, indent=1) + "\n")
    except OSError as error:
        raise StorageError(f"{path}: cannot write the report ({error.strerror}); free space or another path") from error


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return number


if __name__ == "__main__":
    sys.exit(main())
