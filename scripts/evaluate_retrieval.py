"""Retrieval with a trained model: Holidays, UKBench, Copydays, or any folder of class folders.

python scripts/evaluate_retrieval.py --model RUN --protocol holidays --data_dir HOLIDAYS
python scripts/evaluate_retrieval.py --model RUN --protocol copydays --data_dir COPYDAYS --distractors YFCC
python scripts/evaluate_retrieval.py --model RUN --protocol folder --data_dir PICTURES --sheet nearest.jpg
python scripts/evaluate_retrieval.py --model RUN --protocol ukbench --data_dir UKBENCH --longest_side 500 --gem_p 4
"""

import json
from functools import partial
from pathlib import Path

from towers import export, options
from towers.errors import UserError
from towers.runs import retrieval, run


def make_parser() -> options.Parser:
    parser = options.Parser(__doc__)
    parser.add_argument("--model", type=Path, required=True, help="run folder or model folder")
    parser.add_argument(
        "--protocol", choices=retrieval.PROTOCOLS, required=True, help="what is looked for, and measured"
    )
    parser.add_argument("--data_dir", type=Path, required=True, help="the pictures, as they are downloaded")
    parser.add_argument("--distractors", type=Path, help="folder of other pictures in the gallery (copydays)")
    parser.add_argument("--image_size", type=int, help="side of the centre square, pixels (default: the model's)")
    parser.add_argument(
        "--load_size", type=int, help="side pictures are brought to before the crop, pixels (default: as in training)"
    )
    parser.add_argument(
        "--longest_side", type=int, help="whole pictures of this longest side, pixels, one at a time; no crop"
    )
    parser.add_argument("--gem_p", type=float, help="power of GeM pooling (default: the model's)")
    parser.add_argument("--batch_size", type=int, default=100, help="images a tower and step")
    parser.add_argument("--json", type=Path, help="file for the same numbers")
    parser.add_argument("--sheet", type=Path, help="JPEG of queries with their nearest pictures")
    options.add_towers(parser, training=False)
    return parser


def main(arguments) -> None:
    pick = partial(options.pick, arguments)
    pictures = retrieval.read_set(**pick("protocol data_dir distractors"))
    sizes, changes = resolution(**pick("model image_size load_size longest_side gem_p"))
    towers = run.set_up(**pick("towers precision"))
    with towers.scope():
        model = export.read_model(arguments.model, **changes)
    figures, remarks, embeddings = retrieval.evaluate(
        towers,
        model.network,
        arguments.protocol,
        pictures,
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
        retrieval.write_sheet(arguments.sheet, pictures, embeddings)


def resolution(*, model, image_size, load_size, longest_side, gem_p) -> tuple[dict, dict]:
    """Sizes of the pictures, and what the network is built with instead of what it was trained with."""
    _, facts = export.read_facts(model)
    changes = {} if gem_p is None else {"gem_p": gem_p}
    trained = facts["network"]["image_size"]
    if longest_side is not None:
        if image_size is not None or load_size is not None:
            raise UserError("--longest_side takes whole pictures; leave --image_size and --load_size out")
        return {"image_size": trained, "load_size": facts["load_size"]}, changes | {"image_size": None}
    if image_size is not None and image_size != trained:
        changes["image_size"] = image_size
    image_size = image_size or trained
    load_size = load_size or round(image_size * facts["load_size"] / trained)
    if load_size < image_size:
        raise UserError(f"--load_size {load_size} is smaller than --image_size {image_size}, which is cropped from it")
    return {"image_size": image_size, "load_size": load_size}, changes


if __name__ == "__main__":
    options.call(main, make_parser())
