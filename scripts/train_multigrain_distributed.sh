#!/usr/bin/env bash
# Trains MultiGrain on DEVICE_NUM towers.
#
#   bash scripts/train_multigrain_distributed.sh DATASET_PATH DEVICE_NUM [options of train_multigrain.py]
#
# DATASET_PATH: a folder with train/ and val/. Recipe and hardware: scripts/train_multigrain.sh.
# Result: NOT YET RUN on ImageNet. Published there: top-1 77.4 (lambda 0.5, p 3, 224 px).
set -euo pipefail

if [ $# -lt 2 ]; then
  echo "usage: bash scripts/train_multigrain_distributed.sh DATASET_PATH DEVICE_NUM [options]" >&2
  exit 2
fi
export DATA=$1 TOWERS=$2
shift 2
exec bash "$(dirname "${BASH_SOURCE[0]}")/train_multigrain.sh" "$@"
