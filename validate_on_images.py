"""Validate a trained classifier on a folder of class folders: top-1, top-5, each class, and its mistakes as pictures.

python validate_on_images.py --model runs/20260102-030405
python validate_on_images.py --model runs/20260102-030405 --data_dir IMAGES/test --towers 2 --json figures.json
python validate_on_images.py --model runs/multigrain --data_dir IMAGES/test --image_size 500 --gem_p 4
"""

import json
from pathlib import Path

from towers import export, options
from towers.errors import StorageError, UserError
from towers.runs import image_validation, retrieval, run


def make_parser() -> options.Parser:
    parser = options.Parser(__doc__)
    parser.add_argument("--model", type=Path, required=True, help="run folder or model folder")
    parser.add_argument(
        "--data_dir", type=Path, help="pictures: DIR/Class/picture.jpg (default: the --val_dir of the training)"
    )
    parser.add_argument("--image_size", type=int, help="side of the centre crop, pixels (default: the model's)")
    parser.add_argument(
        "--load_size", type=int, help="shorter side before the crop, pixels (default: in the model's ratio to the crop)"
    )
    parser.add_argument(
        "--longest_side", type=int, help="whole pictures of this longest side, pixels, one at a time; no crop"
    )
    parser.add_argument("--gem_p", type=float, help="power of GeM pooling (default: the model's)")
    parser.add_argument("--batch_size", type=int, default=100, help="images a tower and step")
    parser.add_argument(
        "--max_bad_fraction", type=float, default=0.01, help="share of unreadable pictures that ends the validation"
    )
    parser.add_argument(
        "--out_dir",
        type=Path,
        help="where per_class.tsv, confusion.png and mistakes.png go (default: image_validation beside the model)",
    )
    parser.add_argument("--json", type=Path, help="file for the figures, those of each class and unreadable pictures")
    options.add_towers(parser, training=False)
    return parser


def main(arguments) -> None:
    folder, facts = export.read_facts(arguments.model)
    classifier = export.read_classifier(folder, facts)
    data_dir = arguments.data_dir or (Path(facts["val_dir"]) if facts.get("val_dir") else None)
    if data_dir is None:
        raise UserError(f"{folder} records no validation pictures; give --data_dir")
    if arguments.batch_size < 1:
        raise UserError(f"--batch_size {arguments.batch_size}: must be 1 or more")
    sizes, changes = retrieval.resolution(
        **options.pick(arguments, "model image_size load_size longest_side gem_p"),
    )
    towers = run.set_up(**options.pick(arguments, "towers precision"))
    with towers.scope():
        model = export.read_model(folder, **changes)
    validation = image_validation.validate(
        towers,
        model.network,
        classifier,
        data_dir,
        **sizes,
        **options.pick(arguments, "batch_size max_bad_fraction longest_side"),
    )
    print(image_validation.report(validation))
    out_dir = arguments.out_dir or folder.parent / "image_validation"
    image_validation.write_files(validation, out_dir)
    print(f"Every class, the confusion and the worst mistakes: {out_dir}")
    if arguments.json:
        try:
            arguments.json.write_text(json.dumps(image_validation.figures(validation), indent=1) + "\n")
        except OSError as error:
            raise StorageError(f"--json {arguments.json}: cannot be written ({error.strerror})") from error


if __name__ == "__main__":
    options.call(main, make_parser())
