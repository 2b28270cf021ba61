"""Retrieval with a trained model: Holidays, UKBench, Copydays, or any folder of class folders.

python scripts/evaluate_retrieval.py --model RUN --protocol holidays --data_dir HOLIDAYS --holidays_rotations LIST
python scripts/evaluate_retrieval.py --model RUN --protocol copydays --data_dir COPYDAYS --distractors YFCC
python scripts/evaluate_retrieval.py --model RUN --protocol folder --data_dir PICTURES --sheet nearest.jpg
python scripts/evaluate_retrieval.py --model RUN --protocol ukbench --data_dir UKBENCH --longest_side 500 --gem_p 4
python scripts/evaluate_retrieval.py --model RUN --protocol holidays --data_dir HOLIDAYS --whiten_with YFCC
"""

import json
from functools import partial
from pathlib import Path

from towers import export, options
from towers.runs import retrieval, retrieval_sheets, run, serving


def make_parser() -> options.Parser:
    parser = options.Parser(__doc__)
    parser.add_argument("--model", type=Path, required=True, help="run folder or model folder")
    parser.add_argument(
        "--protocol", choices=retrieval.PROTOCOLS, required=True, help="what is looked for, and measured"
    )
    parser.add_argument("--data_dir", type=Path, required=True, help="the pictures, as they are downloaded")
    parser.add_argument("--distractors", type=Path, help="folder of other pictures in the gallery (copydays)")
    parser.add_argument(
        "--holidays_rotations",
        type=Path,
        help='list of pictures to turn upright: lines as "100600.jpg": 90, (clockwise)',
    )
    parser.add_argument("--image_size", type=int, help="side of the centre square, pixels (default: the model's)")
    parser.add_argument(
        "--load_size", type=int, help="side pictures are brought to before the crop, pixels (default: as in training)"
    )
    parser.add_argument(
        "--longest_side", type=int, help="whole pictures of this longest side, pixels, one at a time; no crop"
    )
    parser.add_argument("--gem_p", type=float, help="power of GeM pooling (default: the model's)")
    parser.add_argument("--batch_size", type=int, default=100, help="images a tower and step")
    parser.add_argument("--whiten_with", type=Path, help="folder of pictures, to whiten the embeddings with (PCA)")
    parser.add_argument("--json", type=Path, help="file for the same numbers")
    parser.add_argument("--sheet", type=Path, help="JPEG of queries with their nearest pictures")
    options.add_towers(parser, training=False)
    return parser


def main(arguments) -> None:
    pick = partial(options.pick, arguments)
    pictures = retrieval.read_set(**pick("protocol data_dir distractors holidays_rotations"))
    sizes, changes = retrieval.resolution(**pick("model image_size load_size longest_side gem_p"))
    towers = run.set_up(**pick("towers precision"))
    with towers.scope():
        model = export.read_model(arguments.model, **changes)
    whitening = None
    if arguments.whiten_with:
        square = sizes if arguments.longest_side is None else dict.fromkeys(sizes, arguments.longest_side)
        whitening = serving.whitening_of(towers, model.network, arguments.whiten_with, **square, **pick("batch_size"))
    figures, remarks, embeddings = retrieval.evaluate(
        towers,
        model.network,
        arguments.protocol,
        pictures,
        whitening=whitening,
        **sizes,
        **pick("batch_size longest_side"),
    )
    for name, value in figures.items():
        print(f"{name}: {value:.4f}")
    for remark in remarks:
        print(remark)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")
    if arguments.sheet:
        retrieval_sheets.write_sheet(arguments.sheet, pictures, embeddings)


if __name__ == "__main__":
    options.call(main, make_parser())
