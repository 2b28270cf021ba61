"""Choose the power of GeM pooling for pictures of another size than those a model was trained on.

python scripts/choose_gem_p.py --model RUN --data_dir IMAGENET/train --image_size 500
python scripts/choose_gem_p.py --model RUN --data_dir PICTURES --image_size 320 --powers 1 2 3 4 5 6 --json powers.json

For each power: how well augmented versions of a picture find each other (MultiGrain's proxy: 2 pictures a class, five
versions each), and, where the model knows the classes, the share of the pictures that it names right. One device.
"""

import json
from functools import partial
from pathlib import Path

import numpy as np

from towers import export, options
from towers.datasets.folder import read_folder
from towers.runs import gem_choice, run

POWERS = (1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 8.0)


def make_parser() -> options.Parser:
    parser = options.Parser(__doc__)
    parser.add_argument("--model", type=Path, required=True, help="run folder or model folder")
    parser.add_argument("--data_dir", type=Path, required=True, help="pictures as DIR/Class/picture.jpg")
    parser.add_argument("--image_size", type=int, required=True, help="side of the pictures to be used later, pixels")
    parser.add_argument("--powers", type=float, nargs="+", default=POWERS, help="which are tried")
    parser.add_argument("--per_class", type=int, default=2, help="pictures taken of each class")
    parser.add_argument("--num_pictures", type=int, default=2000, help="pictures taken at most")
    parser.add_argument("--seed", type=int, default=666, help="of the augmentation")
    parser.add_argument("--json", type=Path, help="file for the same numbers")
    options.add_towers(parser, training=False)
    return parser


def main(arguments) -> None:
    pick = partial(options.pick, arguments)
    source = read_folder(arguments.data_dir)
    records = gem_choice.choose_pictures(source, arguments.per_class, arguments.num_pictures)
    path, facts = export.read_facts(arguments.model)
    run.set_up(**pick("towers precision"))
    network = export.read_model(arguments.model, image_size=arguments.image_size).network
    found = gem_choice.compare_powers(
        network,
        source,
        records,
        **pick("powers image_size seed"),
        **classes(path, facts, source, records),
    )
    measures = list(found[0])
    print("    p  " + "  ".join(f"{measure:>10}" for measure in measures))
    for power, figures in zip(arguments.powers, found, strict=True):
        print(f"{power:5g}  " + "  ".join(f"{figures[measure]:10.4f}" for measure in measures))
    for measure in measures:
        best = arguments.powers[int(np.argmax([figures[measure] for figures in found]))]
        print(f"best {measure}: --gem_p {best:g} --image_size {arguments.image_size}")
    if arguments.json:
        rows = [{"p": power, **figures} for power, figures in zip(arguments.powers, found, strict=True)]
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


def classes(path: Path, facts: dict, source, records: np.ndarray) -> dict:
    """The arguments ``classify`` and ``labels``, where the model has a classifier that knows the folder's classes."""
    if "classifier_sha256" not in facts:
        return {}
    classifier = export.read_classifier(path, facts)
    number = {name: label for label, name in enumerate(classifier.class_names)}
    if any(name not in number for name in source.class_names):
        return {}
    bias = 0 if classifier.bias is None else classifier.bias
    labels = np.array([number[name] for name in source.class_names])[source.labels[records]]
    return {"classify": lambda rows: (rows @ classifier.weights.T + bias).argmax(axis=1), "labels": labels}


if __name__ == "__main__":
    options.call(main, make_parser())
