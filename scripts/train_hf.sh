#!/usr/bin/env bash
# HF-Softmax on one machine: class centres in host memory, a step sees the classes that a hashing forest finds.
#
#   bash scripts/train_hf.sh                                        # embedded data set
#   DATA=/data/ms1m bash scripts/train_hf.sh --network r50 --sample_num 1000 --ntrees 50 --interval 100
#
# Data: data/synthetic_faces (200 people, so 128 of them a step), made on the first run. Hardware: two cores are enough.
# DATA, LFW_DIR, LFW_PAIRS, TOWERS and OUT are told in scripts/launch.sh.
set -euo pipefail

recipe=(
  --network small --embedding_size 128 --image_size 64
  --head selected --selector forest --num_selected 128 --loss cosface --scale 32
  --batch_size 64 --learning_rate 0.05 --learning_rate_schedule cosine --max_epochs 30 --validate_every_n_epochs 10
)

exec bash "$(dirname "${BASH_SOURCE[0]}")/launch.sh" train_multi_gpu.py "${recipe[@]}" "$@"
