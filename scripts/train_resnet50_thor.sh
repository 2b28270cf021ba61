#!/usr/bin/env bash
# Trains ResNet-50 on ImageNet-2012 by THOR: second-order steps, whose factors are renewed six times an epoch.
#
#   DATA=/data/imagenet TOWERS=8 bash scripts/train_resnet50_thor.sh
#   OUT=runs/thor bash scripts/train_resnet50_thor.sh --max_epochs 5     # the drawn stand-in of mini-ImageNet, 64 px
#
# Data: DATA with train/ and val/, a folder a class in each (data/imagenet sorts val/); without DATA data/mini_imagenet's
# stand-in, made on the first run, with a small ResNet.
# Hardware: 8 GPUs, 32 pictures each; without DATA two CPU cores.
# Time: not yet run.
# Result: not yet run. Published by THOR's authors: top-1 75.9 % in 45 epochs (batch 256, 8 cards).
# DATA, TOWERS and OUT are told in scripts/launch.sh.
set -euo pipefail

if [ -n "${DATA:-}" ]; then
  # Plain average pooling (p 1), one copy of a picture, no loss but the classes': MultiGrain's script as a classifier.
  recipe=(
    --network resnet50 --embedding_size 2048 --gem_p 1 --image_size 224
    --classification_weight 1 --copies 1 --label_smoothing 0.1
    --batch_size 256 --max_epochs 45 --random_resized_crop --random_flip
    --optimizer THOR --thor_interval 834 --thor_damping 0.03 --thor_damping_decay 0.50036
    --learning_rate 0.05803 --learning_rate_schedule polynomial --learning_rate_power 4.0839 --learning_rate_end_epoch 53
    --weight_decay 5e-4 --validate_every_n_epochs 1 --checkpoint_every_n_steps 5004
  )
else
  recipe=(
    --network resnet10 --embedding_size 512 --gem_p 1 --image_size 64
    --classification_weight 1 --copies 1 --label_smoothing 0.1
    --batch_size 64 --max_epochs 8 --random_crop --random_flip
    --optimizer THOR --thor_interval 20 --thor_damping 0.03 --thor_damping_decay 0.5
    --learning_rate 0.02 --learning_rate_schedule linear --weight_decay 5e-4
    --validate_every_n_epochs 2
  )
fi

PICTURES=classes exec bash "$(dirname "${BASH_SOURCE[0]}")/launch.sh" train_multigrain.py "${recipe[@]}" "$@"
