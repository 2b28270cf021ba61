"""Identification among very many distractors, as MegaFace asks, from features.

python scripts/extract_features.py --model RUN --data_dir FACESCRUB --flip add --out probes.npy
python scripts/extract_features.py --model RUN --list distractors.txt --flip add --out distractors.npy
python scripts/evaluate_identification.py --probes probes.npy --distractors distractors.npy

Each picture of --probes is sought with every other picture of its class as the mate among the distractors.
"""

import json
from pathlib import Path

from towers import options
from towers.evaluation.features import read_features
from towers.evaluation.identification import identify_among_distractors


def make_parser() -> options.Parser:
    parser = options.Parser(__doc__)
    parser.add_argument("--probes", type=Path, required=True, help="file of scripts/extract_features.py, with classes")
    parser.add_argument("--distractors", type=Path, required=True, help="file of scripts/extract_features.py")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 10], help="ranks to print")
    parser.add_argument("--fars", type=float, nargs="+", default=[1e-6], help="false accept rates to print TAR at")
    parser.add_argument("--json", type=Path, help="file for the same numbers")
    return parser


def main(arguments) -> None:
    probes = read_features(arguments.probes)
    distractors = read_features(arguments.distractors).features
    result = identify_among_distractors(
        probes.features, probes.labels, distractors, ranks=arguments.ranks, fars=arguments.fars
    )
    figures = {f"rank-{rank}": rate for rank, rate in result.rank_rates.items()}
    figures |= {f"tar@far={far:g}": rate for far, rate in result.rates_at_false.items()}
    print(f"{len(probes.features)} probes, {result.mated} searches, {len(distractors)} distractors")
    for name, value in figures.items():
        print(f"{name}: {value:.5f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures | {"searches": result.mated}, indent=1) + "\n")


if __name__ == "__main__":
    options.call(main, make_parser())
