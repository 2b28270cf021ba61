#!/usr/bin/env bash
# train.sh with one batch of people x pictures split over the towers, each mining among its own share: more towers make a
# step faster and leave each anchor fewer negatives. train.sh itself mines over all towers instead.
#
#   bash scripts/train_triplet_split.sh
#   TOWERS=4 bash scripts/train_triplet_split.sh --people_per_batch 64
#
# Data: data/synthetic_faces, 200 people x 20 pictures of 112 px, made on the first run; test people kept apart.
# Hardware: two CPU cores (2 towers share 32 people x 4 pictures), or all GPUs.
# Time: not yet run to the end.
# Result: not yet run to the end.
set -euo pipefail

exec bash "$(dirname "${BASH_SOURCE[0]}")/../train.sh" --batch_mode split --mining_scope tower "$@"
