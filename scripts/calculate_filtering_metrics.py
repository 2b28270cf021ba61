"""How far each training picture lies from the centre of its class, for train_softmax.py --filter_filename.

python scripts/calculate_filtering_metrics.py --model runs/20260102-030405 --data_dir FACES --out metrics.h5
python train_softmax.py --data_dir FACES --filter_filename metrics.h5 --filter_percentile 95
"""

from functools import partial
from pathlib import Path

import numpy as np

from towers import export, options
from towers.datasets import filtering
from towers.datasets.opening import KINDS, open_source
from towers.runs import run, validation


def make_parser() -> options.Parser:
    parser = options.Parser(__doc__)
    parser.add_argument("--model", type=Path, required=True, help="run folder or model folder")
    parser.add_argument("--data_dir", type=Path, required=True, help=f"pictures: {KINDS}")
    parser.add_argument("--out", type=Path, required=True, help="HDF5 file to write")
    parser.add_argument("--batch_size", type=int, default=100, help="images a tower and step")
    parser.add_argument("--max_bad_fraction", type=float, default=0.001, help="share of unreadable pictures allowed")
    options.add_towers(parser, training=False)
    return parser


def main(arguments) -> None:
    pick = partial(options.pick, arguments)
    folder, _ = export.read_facts(arguments.model)
    source = open_source(arguments.data_dir)
    towers = run.set_up(**pick("towers precision"))
    with towers.scope():
        model = export.read_model(folder)
    embeddings, _ = validation.embed_source(
        towers,
        model.network,
        source,
        image_size=model.image_size,
        load_size=model.load_size,
        **pick("batch_size max_bad_fraction"),
    )
    distances = filtering.distance_to_class_center(embeddings, source.labels)
    pictures = [source.where(record) for record in range(len(source))]
    filtering.write_filtering_metrics(arguments.out, source.class_names, pictures, source.labels, distances)
    print(
        f"{arguments.out}: {len(source)} distances of {source.num_classes} classes, "
        f"median {np.median(distances):.3f}, 95th percentile {np.percentile(distances, 95):.3f}"
    )


if __name__ == "__main__":
    options.call(main, make_parser())
