"""Export a trained model: SavedModel, LiteRT (float32, int8) and ONNX, each compared with the network.

python scripts/export_model.py --model RUN --out_dir EXPORT
python scripts/export_model.py --model RUN --out_dir EXPORT --formats saved_model litert litert_int8 onnx
python scripts/export_model.py --model RUN --out_dir EXPORT --whiten_with PICTURES --image_size 500 --gem_p 4

A model takes RGB pictures of 0..255 and gives `embedding`, L2-normalised, and, where it has classes, `logits`. With
--whiten_with the embedding is whitened (PCA over those pictures), and the logits stay what they were.
"""

from functools import partial
from pathlib import Path

from towers import export, options
from towers.errors import UserError
from towers.runs import retrieval, run, serving
from towers.serving import formats


def make_parser() -> options.Parser:
    parser = options.Parser(__doc__)
    parser.add_argument("--model", type=Path, required=True, help="run folder or model folder")
    parser.add_argument("--out_dir", type=Path, required=True, help="folder to write, new or empty")
    parser.add_argument(
        "--formats", nargs="+", default=["saved_model", "litert"], help=f"which of {', '.join(formats.FORMATS)}"
    )
    parser.add_argument(
        "--data_dir",
        type=Path,
        help="pictures to compare on, and to take int8's ranges from (default: those it was trained on)",
    )
    parser.add_argument("--num_pictures", type=int, default=256, help="of them, spread over the folder")
    parser.add_argument("--whiten_with", type=Path, help="folder of pictures, to whiten the embeddings with (PCA)")
    parser.add_argument("--image_size", type=int, help="side of the pictures, pixels (default: the model's)")
    parser.add_argument("--load_size", type=int, help="side before the crop, pixels (default: as in training)")
    parser.add_argument("--gem_p", type=float, help="power of GeM pooling (default: the model's)")
    parser.add_argument("--batch_size", type=int, default=100, help="images a tower and step of the whitening")
    options.add_towers(parser, training=False)
    return parser


def main(arguments) -> None:
    pick = partial(options.pick, arguments)
    formats.check_formats(arguments.formats)
    if arguments.num_pictures < 1:
        raise UserError(f"--num_pictures {arguments.num_pictures}: at least one, or nothing is compared")
    path, facts = export.read_facts(arguments.model)
    sizes, changes = retrieval.resolution(**pick("model image_size load_size gem_p"))
    data_dir = arguments.data_dir or (Path(facts["data_dir"]) if facts.get("data_dir") else None)
    if data_dir is None:
        raise UserError(f"{path} does not say what it was trained on; give --data_dir with pictures to compare on")
    pictures = serving.sample_pictures(data_dir, arguments.num_pictures, **sizes)
    if len(pictures) < arguments.num_pictures:
        print(f"{data_dir}: {len(pictures)} pictures to compare on, instead of --num_pictures {arguments.num_pictures}")
    towers = run.set_up(**pick("towers precision"))
    with towers.scope():
        model = export.read_model(arguments.model, **changes)
    classifier = export.read_classifier(path, facts) if "classifier_sha256" in facts else None
    whitening = None
    if arguments.whiten_with:
        whitening = serving.whitening_of(towers, model.network, arguments.whiten_with, **sizes, **pick("batch_size"))
    found = serving.export_model(
        model,
        classifier,
        whitening,
        pictures,
        arguments.formats,
        arguments.out_dir,
        load_size=sizes["load_size"],
    )
    for name, result in found.items():
        classes = "" if result.top1_agreement is None else f", same class {result.top1_agreement:.4f}"
        print(
            f"{arguments.out_dir / formats.FILES[name]}: cosine with the network {result.least_cosine:.6f} at least, "
            f"{result.mean_cosine:.6f} on average, on {result.pictures} pictures{classes}"
        )


if __name__ == "__main__":
    options.call(main, make_parser())
