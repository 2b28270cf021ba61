#!/usr/bin/env bash
# Evaluates a MultiGrain model: top-1 and top-5 on the classes, and retrieval where there are pictures for it.
#
#   bash scripts/eval_multigrain.sh DATASET_PATH MODEL [options of validate_on_images.py]
#   HOLIDAYS=/data/holidays COPYDAYS=/data/copydays DISTRACTORS=/data/yfcc bash scripts/eval_multigrain.sh DATASET_PATH MODEL
#   HOLIDAYS=/data/holidays WHITEN_WITH=/data/yfcc RETRIEVAL_OPTIONS="--longest_side 800 --gem_p 4" \
#     bash scripts/eval_multigrain.sh DATASET_PATH MODEL --longest_side 500 --gem_p 4
#
# DATASET_PATH: a folder with val/, a folder a class, or that folder itself. MODEL: a run or model folder.
# HOLIDAYS, UKBENCH, COPYDAYS: these sets as they are downloaded; DISTRACTORS: pictures put beside Copydays' originals.
# WHITEN_WITH: pictures to whiten the embeddings with for retrieval. RETRIEVAL_OPTIONS: other options of
# scripts/evaluate_retrieval.py, separated by blanks; options after MODEL are for the classes alone.
# HOLIDAYS_ROTATIONS: list of Holidays' pictures to turn upright (MultiGrain's holidays-rotate.yaml), as was published.
# Result: NOT YET RUN on ImageNet. Published there: top-1 77.4, at 500 px and p 4 78.6 (top-5 94.4); Holidays mAP 92.5,
# UKBench 3.91, Copydays strong + 10k mAP 82.5 for the best of the published models.
set -euo pipefail

if [ $# -lt 2 ]; then
  echo "usage: bash scripts/eval_multigrain.sh DATASET_PATH MODEL [options]" >&2
  exit 2
fi
absolute() { if [ -n "$1" ]; then realpath -ms -- "$1"; fi; }
data=$(absolute "$1")
model=$(absolute "$2")
holidays=$(absolute "${HOLIDAYS:-}")
rotations=$(absolute "${HOLIDAYS_ROTATIONS:-}")
ukbench=$(absolute "${UKBENCH:-}")
copydays=$(absolute "${COPYDAYS:-}")
distractors=$(absolute "${DISTRACTORS:-}")
whiten_with=$(absolute "${WHITEN_WITH:-}")
shift 2
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ -d "$data/val" ]; then data=$data/val; fi

bash scripts/setup.sh
python=.venv/bin/python
"$python" validate_on_images.py --model "$model" --data_dir "$data" "$@"
retrieval=(scripts/evaluate_retrieval.py --model "$model" ${whiten_with:+--whiten_with "$whiten_with"})
if [ -n "${RETRIEVAL_OPTIONS:-}" ]; then
  read -r -a further <<<"$RETRIEVAL_OPTIONS"
  retrieval+=("${further[@]}")
fi
if [ -n "$holidays" ]; then
  "$python" "${retrieval[@]}" --protocol holidays --data_dir "$holidays" ${rotations:+--holidays_rotations "$rotations"}
fi
if [ -n "$ukbench" ]; then "$python" "${retrieval[@]}" --protocol ukbench --data_dir "$ukbench"; fi
if [ -n "$copydays" ]; then
  "$python" "${retrieval[@]}" --protocol copydays --data_dir "$copydays" ${distractors:+--distractors "$distractors"}
fi
