"""Check the pictures of a data set before training on it, and that none of the test set is among them.

    python scripts/verify_data.py --data_dir TRAIN
    python scripts/verify_data.py --data_dir TRAIN --lfw_dir TEST --images_per_person 4 --json report.json
    python scripts/verify_data.py --data_dir faces_emore --bin faces_emore/lfw.bin
    python scripts/verify_data.py --bin lfw.bin

Training data are of any kind that the training scripts take: class folders, a .rec, a list. Tells broken records with
their place in the .rec, unreadable pictures, the same picture twice (same bytes or same pixels) across people, within a
person, and between training and test, pictures that are nearly the same (at another size or quality), people in both
sets, and people with too few pictures. Ends with 0, or with 65 where a record or picture cannot be read, or is the same
in two people or in both sets. What is only nearly the same does not count: look at it.
"""

import json
import os
from pathlib import Path

from towers.command_line import Parser, Progress, call_tool, positive
from towers.datasets.inspection import inspect
from towers.datasets.opening import KINDS, open_source
from towers.datasets.packs import read_pack
from towers.datasets.record_headers import Faults
from towers.errors import BadData, StorageError, UserError


def make_parser() -> Parser:
    parser = Parser(__doc__)
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--data_dir", help=f"training pictures: {KINDS}")
    parser.add_argument("--lfw_dir", help="test pictures, of the same kinds")
    parser.add_argument("--bin", help="verification pack (.bin), as test pictures or alone")
    parser.add_argument("--images_per_person", type=positive, default=2, help="pictures that a person should have")
    parser.add_argument("--json", type=Path, metavar="FILE", help="file for the whole report")
    parser.add_argument("--show", type=int, default=10, help="findings of each kind to print")
    parser.add_argument("--processes", type=positive, default=cores, help="processes that read; default: one a core")
    return parser


def main(arguments) -> int:
    """Inspect, print, write the JSON; the exit code."""
    if arguments.data_dir is None and (arguments.bin is None or arguments.lfw_dir):
        raise UserError("give --data_dir, or --bin alone")
    if arguments.lfw_dir and arguments.bin:
        raise UserError("give --lfw_dir or --bin as test pictures, not both")
    pack = read_pack(arguments.bin) if arguments.bin else None
    how = {"images_per_person": arguments.images_per_person, "processes": arguments.processes, "progress": Progress()}
    if arguments.data_dir is None:
        report = inspect(pack, name="pack", **how)
    else:
        faults = Faults(arguments.data_dir)
        train = open_source(arguments.data_dir, faults=faults)
        test = open_source(arguments.lfw_dir) if arguments.lfw_dir else pack
        report = inspect(train, test, faults=faults, **how)
    for line in report.lines(arguments.show):
        print(line)
    if arguments.json:
        _write(arguments.json, report.to_json())
    return BadData.exit_code if report.faulty else 0


def _write(path: Path, report: dict) -> None:
    try:
        path.write_text(json.dumps(report, indent=1) + "\n")
    except OSError as error:
        raise StorageError(f"{path}: cannot write the report ({error.strerror}); free space or another path") from error


if __name__ == "__main__":
    call_tool(main, make_parser())
