#!/usr/bin/env bash
# train.sh with one batch of people x pictures split over the towers, each mining among its own share: more towers make a
# step faster and leave each anchor fewer negatives. train.sh itself mines over all towers instead.
#
#   bash scripts/train_triplet_split.sh
#   TOWERS=4 bash scripts/train_triplet_split.sh --people_per_batch 64
#
# Data: data/synthetic_faces, 200 people x 20 pictures of 112 px, made on the first run; test people kept apart.
# Hardware: two CPU cores (2 towers share 32 people x 4 pictures), or all GPUs.
# Time: 4 min 2 s on two CPU cores that other work shared, the environment and the data being there.
# Result: accuracy 0.9772 on 6,000 pairs of unseen people, recall@1 0.970: on 2 towers the same batches, and the same
# network to the bit, as train_triplet_per_tower.sh.
set -euo pipefail

exec bash "$(dirname "${BASH_SOURCE[0]}")/../train.sh" --batch_mode split --mining_scope tower "$@"
