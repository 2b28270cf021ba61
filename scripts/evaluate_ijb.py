"""IJB-B or IJB-C from features: 1:1 (TAR@FAR) and 1:N (ranks, TPIR@FPIR).

python scripts/evaluate_ijb.py --model RUN --pictures IJBC/loose_crop --meta_dir IJBC/meta --target ijbc
python scripts/evaluate_ijb.py --features ijbc.npy --meta_dir IJBC/meta --target ijbc

With --model, faces are cut out of the loose crops by their landmarks and embedded with their mirror images on all
towers; --write_features keeps the embeddings. Otherwise they are those of scripts/extract_features.py, on pictures that
were aligned before, found by their file names. 1:N is run where the lists of galleries are there.
"""

import json
from functools import partial
from pathlib import Path

import numpy as np

from towers import export, options
from towers.datasets.alignment import aligned_source
from towers.errors import BadData, UserError
from towers.evaluation import ijb
from towers.evaluation.features import Features, check_suffix, read_features
from towers.evaluation.identification import identify
from towers.runs import run, validation

GALLERIES = {"ijbb": ("S1", "S2"), "ijbc": ("G1", "G2")}


def make_parser() -> options.Parser:
    parser = options.Parser(__doc__)
    given = parser.add_mutually_exclusive_group(required=True)
    given.add_argument("--features", type=Path, help="file of scripts/extract_features.py")
    given.add_argument("--model", type=Path, help="run folder or model folder, to embed --pictures with")
    parser.add_argument("--pictures", type=Path, help="folder of the loose crops, with --model")
    parser.add_argument("--batch_size", type=int, default=100, help="images a tower and step, with --model")
    parser.add_argument(
        "--max_bad_fraction", type=float, default=0.0, help="share of unreadable pictures allowed, with --model"
    )
    parser.add_argument("--write_features", type=Path, help="file for the embeddings of --model: .npy, .h5 or .hdf5")
    parser.add_argument("--meta_dir", type=Path, required=True, help="folder of ijb?_face_tid_mid.txt and the others")
    parser.add_argument("--target", choices=tuple(GALLERIES), default="ijbc", help="which benchmark")
    parser.add_argument(
        "--ignore_detection_scores", action="store_true", help="do not weigh pictures by the detector's scores"
    )
    parser.add_argument("--json", type=Path, help="file for the same numbers")
    options.add_towers(parser, training=False)
    return parser


def main(arguments) -> None:
    def meta(name):
        return arguments.meta_dir / f"{arguments.target}_{name}"

    if bool(arguments.model) != bool(arguments.pictures) or (arguments.write_features and not arguments.model):
        raise UserError("--model embeds --pictures, and --write_features keeps what it found: give them together")
    media = ijb.read_media(meta("face_tid_mid.txt"))
    stored = embedded(arguments, meta("name_5pts_score.txt")) if arguments.model else read_features(arguments.features)
    rows = rows_of_pictures(stored.paths, media.names, arguments.pictures or arguments.features)
    weights = None
    if not arguments.ignore_detection_scores:
        names, _, scores = ijb.read_detection_scores(meta("name_5pts_score.txt"))
        weights = scores[rows_of_pictures(names, media.names, meta("name_5pts_score.txt"))]
    templates, features = ijb.template_features(stored.features[rows], media.templates, media.media, weights=weights)

    left, right, same = ijb.read_template_pairs(meta("template_pair_label.txt"))
    places = [ijb.rows_of(templates, side, str(meta("template_pair_label.txt"))) for side in (left, right)]
    rates = ijb.rate_pairs(ijb.score_pairs(features, *places), same)
    figures = {"genuine": rates.genuine, "impostors": rates.impostors}
    print(f"1:1, {rates.genuine} pairs of same and {rates.impostors} of different people")
    for far, tar in rates.tar_at_far.items():
        print(
            f"TAR@FAR={far:g}: {tar:.5f} (at the nearest corner, as InsightFace: {rates.tar_at_nearest_far[far]:.5f})"
        )
        figures[f"tar@far={far:g}"] = tar
        figures[f"tar@nearest_far={far:g}"] = rates.tar_at_nearest_far[far]

    lists = [meta(f"1N_gallery_{name}.csv") for name in GALLERIES[arguments.target]]
    probe_list = meta("1N_probe_mixed.csv")
    if not all(path.is_file() for path in [*lists, probe_list]):
        print(f"1:N: left out, {probe_list} or a gallery beside it is not there")
    else:
        probes, subjects = ijb.read_subjects(probe_list)
        probe_features = features[ijb.rows_of(templates, probes, str(probe_list))]
        figures |= search(templates, features, probe_features, subjects, lists)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


def embedded(arguments, scores_path: Path) -> Features:
    """Sums of the embeddings of the aligned faces and of their mirror images, un-normalised."""
    pick = partial(options.pick, arguments)
    if arguments.write_features:
        check_suffix(arguments.write_features)
    names, landmarks, _ = ijb.read_detection_scores(scores_path)
    folder, _ = export.read_facts(arguments.model)
    towers = run.set_up(**pick("towers precision"))
    with towers.scope():
        model = export.read_model(folder)
    size = model.image_size
    source = aligned_source(arguments.pictures, names, landmarks, image_size=size)
    found, bad = validation.embed_source(
        towers,
        model.network,
        source,
        image_size=size,
        load_size=size,
        flipped=True,
        **pick("batch_size max_bad_fraction"),
    )
    features = np.add(*np.split(found, 2, axis=1))
    if arguments.write_features:
        validation.write_embeddings(arguments.write_features, source, features, bad)
    return Features(features, [source.where(record) for record in range(len(source))], source.labels)


def search(templates, features, probes, subjects, lists) -> dict[str, float]:
    """1:N: the probes against each gallery; ranks over all mated probes, TPIR as the mean of the galleries."""
    results = []
    for path in lists:
        gallery, gallery_subjects = ijb.read_subjects(path)
        entries = features[ijb.rows_of(templates, gallery, str(path))]
        results.append(identify(entries, gallery_subjects, probes, subjects))
    mated = sum(result.mated for result in results)
    print(f"1:N, {mated} mated searches in {len(lists)} galleries")
    figures = {}
    for rank in results[0].rank_rates:
        figures[f"rank-{rank}"] = sum(result.rank_rates[rank] * result.mated for result in results) / mated
    for fpir in results[0].rates_at_false:
        figures[f"tpir@fpir={fpir:g}"] = float(np.mean([result.rates_at_false[fpir] for result in results]))
    for name, value in figures.items():
        print(f"{name}: {value:.5f}")
    return figures


def rows_of_pictures(paths: list[str], names: list[str], where) -> np.ndarray:
    """For each name the row of the path that ends with it."""
    rows = {Path(path).name: row for row, path in enumerate(paths)}
    missing = [name for name in names if name not in rows]
    if missing:
        raise BadData(f"{where}: has no {missing[0]}, and {len(missing) - 1} more of the list of media are missing")
    return np.array([rows[name] for name in names])


if __name__ == "__main__":
    options.call(main, make_parser())
