"""Validate a trained model by pairs of pictures: same person or not? LFW's protocol, 10 folds.

python validate_on_lfw.py --model runs/20260102-030405
python validate_on_lfw.py --model runs/20260102-030405 --lfw_dir LFW --lfw_pairs pairs.txt --use_flipped_images
python validate_on_lfw.py --model runs/20260102-030405 --bin faces_emore/lfw.bin --protocol insightface
"""

import json
from functools import partial
from pathlib import Path

from towers import export, networks, options, plots
from towers.errors import UserError
from towers.evaluation.features import check_suffix
from towers.evaluation.verification import flip_report, report
from towers.runs import run, validation

FACENETS_OWN = ("lfw_distance_metric", "lfw_use_flipped_images", "lfw_subtract_mean")


def make_parser() -> options.Parser:
    parser = options.Parser(__doc__)
    parser.add_argument("--model", type=Path, required=True, help="run folder or model folder")
    parser.add_argument("--arch", help="name of the network that the model must hold (default: any)")
    parser.add_argument(
        "--load_size", type=int, help="side pictures are brought to before the crop (default: the model's)"
    )
    parser.add_argument("--bin", type=Path, help="verification pack (.bin) in place of --lfw_dir and --lfw_pairs")
    parser.add_argument(
        "--protocol",
        choices=("facenet", "insightface"),
        default="facenet",
        help="insightface: add the mirrored picture's embedding, then normalise; shows XNorm and Accuracy-Flip",
    )
    parser.add_argument(
        "--features", type=Path, help="file for the embeddings of the pictures, a row each: .npy (paths in .tsv) or .h5"
    )
    parser.add_argument("--json", type=Path, help="file for the same numbers")
    parser.add_argument("--roc", type=Path, help="file for a picture of the ROC, such as roc.png")
    options.add_towers(parser, training=False)
    options.add_lfw(parser)
    return parser


def main(arguments) -> None:
    pick = partial(options.pick, arguments)
    refused = [name for name in FACENETS_OWN if getattr(arguments, name)] if arguments.protocol == "insightface" else []
    if refused:
        raise UserError(f"--{refused[0]} is facenet's; leave it out, or --protocol insightface")
    if arguments.features:
        check_suffix(arguments.features)
    folder, facts = export.read_facts(arguments.model)
    held = facts["network"]["name"]
    if arguments.arch and networks.ALIASES.get(arguments.arch, arguments.arch) != held:
        raise UserError(
            f"--arch {arguments.arch}: {folder} holds {held}; give --model of another run, or --arch {held}"
        )
    if arguments.bin is not None:
        if arguments.lfw_dir or arguments.lfw_pairs:
            raise UserError("--bin has its own pictures and pairs: give it, or --lfw_dir and --lfw_pairs")
        pairs = validation.read_bin(arguments.bin, arguments.lfw_nrof_folds)
    else:
        if arguments.lfw_dir is None:
            if not facts.get("lfw_dir"):
                raise UserError(f"{folder} records no validation pictures; give --lfw_dir and --lfw_pairs, or --bin")
            arguments.lfw_dir = Path(facts["lfw_dir"])
            arguments.lfw_pairs = arguments.lfw_pairs or (Path(facts["lfw_pairs"]) if facts.get("lfw_pairs") else None)
        pairs = validation.read_lfw(**pick(validation.PAIRS_OPTIONS))
    towers = run.set_up(**pick("towers precision"))
    with towers.scope():
        model = export.read_model(folder)
    sizes = {"image_size": model.image_size, "load_size": arguments.load_size or model.load_size}
    more = {}
    if arguments.protocol == "insightface":
        verification, xnorm, embeddings, bad = validation.verify_insightface(
            towers, model.network, pairs, **sizes, batch_size=arguments.lfw_batch_size
        )
        name = arguments.bin.stem if arguments.bin else arguments.lfw_dir.name
        print(flip_report(name, facts["step"], verification, xnorm))
        more["lfw_xnorm"] = xnorm
    else:
        verification, embeddings, bad = validation.verify(
            towers, model.network, pairs, **sizes, **pick(validation.PROTOCOL_OPTIONS)
        )
    print(report(verification))
    skipped = [*pairs.skipped, *validation.left_out(pairs, bad)]
    print(f"Pairs skipped: {len(skipped)}{'; the first: ' + skipped[0] if skipped else ''}")
    if arguments.features:
        validation.write_embeddings(arguments.features, pairs.source, embeddings, bad)
    if arguments.json:
        figures = validation.figures(verification) | more | {"pairs_used": verification.pairs_used}
        arguments.json.write_text(json.dumps(figures | {"pairs_skipped": len(skipped)}, indent=1) + "\n")
    if arguments.roc:
        plots.roc(verification, arguments.roc)


if __name__ == "__main__":
    options.call(main, make_parser())
