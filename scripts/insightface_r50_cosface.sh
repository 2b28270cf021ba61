#!/usr/bin/env bash
# InsightFace's example 2: CosFace with LResNet50E-IR, class weights split over the towers.
#
#   DATA=datasets/faces_emore bash scripts/insightface_r50_cosface.sh --val_sets datasets/faces_emore/{lfw,cfp_fp,agedb_30}.bin
#
# Theirs: python -u train.py --network r50 --loss cosface --dataset emore
# Data: MS1MV2 (faces_emore), 85,742 identities, 5.8 M pictures of 112 px; without DATA the embedded data set.
# Hardware: 4 GPUs, 128 pictures each.
# Time: not yet run.
# Result: not yet run. InsightFace's README gives no figure for this example.
set -euo pipefail

recipe=(
  --network r50 --embedding_size 512 --image_size 112 --random_flip --keep_probability 0.6
  --loss cosface --head sharded --batch_size 128 --batch_mode per_tower
  --optimizer MOM --learning_rate 0.1 --weight_decay 5e-4 --moving_average_decay 0
  --learning_rate_schedule step --lr_steps 100000,160000,220000 --max_steps 240000 --verbose 2000
)

exec bash "$(dirname "${BASH_SOURCE[0]}")/launch.sh" train_multi_gpu.py "${recipe[@]}" "$@"
