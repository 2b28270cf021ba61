#!/usr/bin/env bash
# What scripts/train_hf.sh is compared with: the same run with a softmax over all classes.
#
#   bash scripts/train_hf_baseline.sh
#   DATA=/data/ms1m bash scripts/train_hf_baseline.sh --network r50
#
# Data and hardware as scripts/train_hf.sh; the class weights must fit the towers.
# DATA, LFW_DIR, LFW_PAIRS, TOWERS and OUT are told in scripts/launch.sh.
set -euo pipefail

recipe=(
  --network small --embedding_size 128 --image_size 64
  --head sharded --loss cosface --scale 32
  --batch_size 64 --learning_rate 0.05 --learning_rate_schedule cosine --max_epochs 30 --validate_every_n_epochs 10
)

exec bash "$(dirname "${BASH_SOURCE[0]}")/launch.sh" train_multi_gpu.py "${recipe[@]}" "$@"
