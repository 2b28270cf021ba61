"""Find the pictures of a folder that are nearest to a picture, with their classes and whether they show the same thing.

python scripts/search_images.py --model RUN --index FOLDER --query PICTURE.jpg
python scripts/search_images.py --model RUN --index FOLDER --query ONE.jpg TWO.jpg --nearest 20 --sheet found.jpg

The score of a pair is the cosine of its embeddings. A model trained by the margin loss has learnt a border: pairs whose
distance lies below it are taken for the same instance.
"""

import math
from functools import partial
from pathlib import Path

from towers import export, options
from towers.datasets.folder import PathSource
from towers.errors import BadData, UserError
from towers.evaluation.retrieval import nearest, normalised
from towers.evaluation.retrieval_sets import pictures_below
from towers.runs import retrieval, retrieval_sheets, run, serving
from towers.runs.validation import embed_source

NO_BORDER = "the model has no border of it, as the margin loss of train_multigrain.py learns one; go by the cosines"
WHITENED = "the border that was learnt is one of distances without --whiten_with; go by the cosines"


def make_parser() -> options.Parser:
    parser = options.Parser(__doc__)
    parser.add_argument("--model", type=Path, required=True, help="run folder or model folder")
    parser.add_argument("--index", type=Path, required=True, help="folder whose pictures are searched, at any depth")
    parser.add_argument("--query", type=Path, nargs="+", required=True, help="pictures to look for")
    parser.add_argument("--nearest", type=int, default=8, help="pictures shown for each query")
    parser.add_argument("--whiten_with", type=Path, help="folder of pictures, to whiten the embeddings with (PCA)")
    parser.add_argument("--image_size", type=int, help="side of the pictures, pixels (default: the model's)")
    parser.add_argument("--load_size", type=int, help="side before the crop, pixels (default: as in training)")
    parser.add_argument("--gem_p", type=float, help="power of GeM pooling (default: the model's)")
    parser.add_argument("--batch_size", type=int, default=100, help="images a tower and step")
    parser.add_argument("--sheet", type=Path, default=Path("nearest.jpg"), help="JPEG of what was found")
    options.add_towers(parser, training=False)
    return parser


def main(arguments) -> None:
    pick = partial(options.pick, arguments)
    missing = [path for path in arguments.query if not path.is_file()]
    if missing:
        raise UserError(f"--query {missing[0]}: no such file")
    if arguments.nearest < 1:
        raise UserError(f"--nearest {arguments.nearest}: at least one picture of each query is shown")
    folder, facts = export.read_facts(arguments.model)
    sizes, changes = retrieval.resolution(**pick("model image_size load_size gem_p"))
    paths = pictures_below(arguments.index)
    queries = [str(path) for path in arguments.query]
    towers = run.set_up(**pick("towers precision"))
    with towers.scope():
        network = export.read_model(arguments.model, **changes).network
    source = PathSource([*queries, *paths])
    embeddings, bad = embed_source(towers, network, source, **sizes, **pick("batch_size"), max_bad_fraction=1.0)
    if any(place < len(queries) for place in bad):
        raise UserError(f"--query {queries[min(bad)]}: cannot be read ({bad[min(bad)]})")
    kept = [place for place in range(len(queries), len(embeddings)) if place not in bad]
    if not kept:
        raise BadData(f"--index {arguments.index}: none of its {len(paths)} pictures can be read; give another folder")
    if bad:
        print(f"{len(bad)} pictures of {arguments.index} cannot be read and are left out")
    classes = ["" for _ in embeddings]
    if "classifier_sha256" in facts:
        classifier = export.read_classifier(folder, facts)
        logits = embeddings @ classifier.weights.T + (0 if classifier.bias is None else classifier.bias)
        classes = [classifier.class_names[label] for label in logits.argmax(axis=1)]
    if arguments.whiten_with:
        embeddings = serving.whitening_of(towers, network, arguments.whiten_with, **sizes, **pick("batch_size"))(
            embeddings
        )
    unit = normalised(embeddings)
    places, cosines = nearest(unit[: len(queries)], unit[kept], min(arguments.nearest, len(kept)))
    border = None if arguments.whiten_with else facts.get("validation", {}).get("margin_beta")
    if border is None:
        print(f"no verdict of same instance: {WHITENED if arguments.whiten_with else NO_BORDER}")
    lines = []
    for query, (found, scores) in enumerate(zip(places, cosines, strict=True)):
        print(f"{queries[query]}  {classes[query]}")
        lines.append([(query, retrieval_sheets.GREY, classes[query][:20])])
        for rank, (place, cosine) in enumerate(zip(found, scores, strict=True), start=1):
            record = kept[place]
            same = border is not None and math.sqrt(max(0.0, 2 - 2 * cosine)) < border
            verdict = "" if border is None else ("same instance" if same else "another instance")
            print(f"{rank:4}  {cosine:.4f}  {verdict:<16}  {classes[record]:<20}  {source.where(record)}")
            colour = retrieval_sheets.GREEN if same else retrieval_sheets.GREY
            lines[-1].append((record, colour, f"{cosine:.3f} {classes[record][:12]}"))
    retrieval_sheets.write_tiles(arguments.sheet, source, lines)
    green = "" if border is None else "; green: the same instance"
    print(f"{arguments.sheet}: the queries and what was found{green}")


if __name__ == "__main__":
    options.call(main, make_parser())
