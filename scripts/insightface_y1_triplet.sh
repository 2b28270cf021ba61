#!/usr/bin/env bash
# InsightFace's example 4: the softmax model of insightface_y1_softmax.sh fine-tuned by triplets.
#
#   DATA=datasets/faces_emore bash scripts/insightface_y1_triplet.sh --pretrained runs/y1-softmax-emore,1
#
# Theirs: python -u train.py --network mnas05 --loss triplet --lr 0.005 --pretrained ./models/y1-softmax-emore,1
#         (it names another network than the model it goes on from; here it is that model's)
# Data: MS1MV2 (faces_emore), 85,742 identities, 5.8 M pictures of 112 px; without DATA the embedded data set.
# Hardware: 4 GPUs.
# Time: not yet run.
# Result: not yet run. InsightFace's README gives no figure for this example.
set -euo pipefail

recipe=(
  --network mobilefacenet_y1 --embedding_size 128 --image_size 112 --random_flip
  --people_per_batch 48 --images_per_person 5 --alpha 0.3 --mining semihard --mining_scope global
  --optimizer MOM --learning_rate 0.005 --weight_decay 5e-4 --max_epochs 5
)

exec bash "$(dirname "${BASH_SOURCE[0]}")/launch.sh" train_tripletloss.py "${recipe[@]}" "$@"
