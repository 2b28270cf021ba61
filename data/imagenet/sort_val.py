"""ImageNet-2012's validation pictures, which are downloaded in one heap, under a folder for each class.

  python data/imagenet/sort_val.py --val ILSVRC2012_img_val.tar --devkit ILSVRC2012_devkit_t12 --out_dir ILSVRC/val
  python data/imagenet/sort_val.py --val ILSVRC/flat_val --devkit ILSVRC2012_devkit_t12 --out_dir ILSVRC/val

Pictures of a folder are linked, those of a tar written. OUT/n01440764/ILSVRC2012_val_00000293.JPEG and so on are what
`train_softmax.py --data_dir ILSVRC/train --val_dir ILSVRC/val` takes.
"""

import re
import tarfile
from collections.abc import Callable
from pathlib import Path

from scipy.io import loadmat
from scipy.io.matlab import MatReadError

from towers.command_line import Parser, Progress, call_tool
from towers.errors import BadData, UserError

NAME = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG", re.IGNORECASE)
TRUTH = "ILSVRC2012_validation_ground_truth.txt"


def read_devkit(devkit: Path) -> list[str]:
    """The class (n01440764) of each validation picture, in order of their numbers, from 1.

    Raises:
      BadData: files that are not there, or not the devkit's.
    """
    folder = devkit / "data" if (devkit / "data").is_dir() else devkit
    try:
        synsets = loadmat(folder / "meta.mat", squeeze_me=True)["synsets"]
        names = {int(number): str(name) for number, name in zip(synsets["ILSVRC2012_ID"], synsets["WNID"], strict=True)}
        return [names[int(line)] for line in (folder / TRUTH).read_text().split()]
    except OSError as error:
        raise BadData(f"--devkit {devkit}: {error.filename}: {error.strerror}; unpack ILSVRC2012_devkit_t12") from error
    except (KeyError, ValueError, MatReadError) as error:
        reason = str(error).splitlines()[0]
        raise BadData(
            f"--devkit {devkit}: meta.mat or {TRUTH} is not the devkit's ({reason}); unpack it again"
        ) from error


def sort_pictures(
    val: Path, classes: list[str], out_dir: Path, progress: Callable[[int, int], None]
) -> tuple[int, list[str]]:
    """Link or write every picture under its class.

    Args:
      val: a folder of pictures, or a tar of them.
      classes: of each picture in order of their numbers.

    Returns:
      (pictures sorted, names that are no such picture).

    Raises:
      BadData: no such picture, a number without a class, or a damaged tar.
    """
    names, strays = set(), []

    def place(name: str) -> Path | None:
        match = NAME.fullmatch(name)
        if match is None:
            strays.append(name)
            return None
        if not 1 <= int(match[1]) <= len(classes):
            raise BadData(f"{val}: {name}: the devkit has classes of {len(classes)} pictures; take the one of its year")
        names.add(name)
        progress(len(names), len(classes))
        folder = out_dir / classes[int(match[1]) - 1]
        folder.mkdir(parents=True, exist_ok=True)
        return folder / name

    if val.is_dir():
        for path in sorted(val.iterdir()):
            link = place(path.name) if path.is_file() else None
            if link is not None:
                link.symlink_to(path.resolve())
    else:
        try:
            with tarfile.open(val) as archive:
                for member in archive:
                    path = place(Path(member.name).name) if member.isfile() else None
                    if path is not None:
                        path.write_bytes(archive.extractfile(member).read())
        except (tarfile.TarError, EOFError) as error:
            raise BadData(f"--val {val}: not a whole tar ({error}); take another copy") from error
    if not names:
        raise BadData(f"--val {val}: no ILSVRC2012_val_00000001.JPEG or the like in it; give ImageNet's val pictures")
    return len(names), strays


def make_parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument(
        "--val", type=Path, required=True, help="ILSVRC2012_img_val.tar, or the folder it was unpacked to"
    )
    parser.add_argument("--devkit", type=Path, required=True, help="folder of ILSVRC2012_devkit_t12")
    parser.add_argument("--out_dir", type=Path, required=True, help="new folder for the class folders")
    return parser


def main(arguments) -> None:
    if not arguments.val.exists():
        raise UserError(f"--val {arguments.val}: no such folder or file")
    if arguments.out_dir.exists() and any(arguments.out_dir.iterdir()):
        raise UserError(f"--out_dir {arguments.out_dir}: is not empty; give a new folder")
    classes = read_devkit(arguments.devkit)
    count, strays = sort_pictures(arguments.val, classes, arguments.out_dir, Progress("pictures sorted"))
    print(f"{arguments.out_dir}: {count} pictures of {len(set(classes))} classes")
    if count < len(classes):
        print(f"{len(classes) - count} of the devkit's {len(classes)} pictures are not there")
    if strays:
        print(f"{len(strays)} other file(s) left out, such as {strays[0]}")


if __name__ == "__main__":
    call_tool(main, make_parser())
