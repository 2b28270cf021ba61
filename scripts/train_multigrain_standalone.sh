#!/usr/bin/env bash
# Trains MultiGrain on one tower.
#
#   bash scripts/train_multigrain_standalone.sh DATASET_PATH [options of train_multigrain.py]
#
# DATASET_PATH: a folder with train/ and val/. Recipe and hardware: scripts/train_multigrain.sh.
# Result: NOT YET RUN on ImageNet. Published there: top-1 77.4 (lambda 0.5, p 3, 224 px).
# A GPU of 16 GB holds about half of the recipe's batch: add --batch_size 258 --epoch_size 9932 --learning_rate 0.1.
set -euo pipefail

if [ $# -lt 1 ]; then
  echo "usage: bash scripts/train_multigrain_standalone.sh DATASET_PATH [options]" >&2
  exit 2
fi
path=$1
shift
exec bash "$(dirname "${BASH_SOURCE[0]}")/train_multigrain_distributed.sh" "$path" 1 "$@"
