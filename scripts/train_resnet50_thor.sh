#!/usr/bin/env bash
# Trains a ResNet-50 classifier with THOR, after the released configuration for 8 devices.
#
#   DATA=/data/imagenet TOWERS=8 OUT=runs/thor bash scripts/train_resnet50_thor.sh     # the same command again resumes
#   bash scripts/train_resnet50_thor.sh                          # a small ResNet on drawn pictures, to see that it works
#
# Data: ImageNet-2012, a folder a class in DATA/train and DATA/val (1,281,167 and 50,000 pictures); without DATA the drawn
# stand-in of data/mini_imagenet, made on the first run.
# Hardware: 8 GPUs of 32 pictures each; the stand-in two CPU cores.
# Time: not yet run. Published: 66.7 minutes on 8 Ascend 910.
# Result: not yet run. Published: top-1 75.9 in 45 epochs.
# What differs from the released code: factors are averaged over the towers before they are inverted, momentum is Nesterov's,
# the last batch normalisation of a block begins at gamma 1, weight decay spares biases and batch normalisation.
# DATA, TOWERS and OUT are told in scripts/launch.sh.
set -euo pipefail

recipe=(
  # Classes alone: MultiGrain's script without its retrieval loss and copies, pooling by the average.
  --classification_weight 1 --copies 1 --gem_p 1
  --network resnet50 --embedding_size 2048 --image_size 224
  --random_resized_crop --random_flip --label_smoothing 0.1
  --batch_size 256 --precision float16 --loss_scale 128
  --optimizer thor --thor_optimizer MOM --weight_decay 5e-4
  --thor_interval 834 --thor_damping 0.03 --thor_damping_decay 0.50036 --thor_kl_clip 0 --thor_map_side 0
  --learning_rate 0.05803 --learning_rate_schedule thor --learning_rate_end_epoch 53 --learning_rate_power 4.0839
  --learning_rate_halving_epochs 39,40
  --max_epochs 45 --validate_every_n_epochs 5 --checkpoint_every_n_steps 5005
)
if [ -z "${DATA:-}" ]; then
  recipe+=(
    --network resnet10 --embedding_size 512 --image_size 64 --batch_size 64 --precision float32
    --thor_interval 20 --thor_kl_clip 0.001 --max_epochs 8 --learning_rate_end_epoch 10 --validate_every_n_epochs 4
  )
fi

PICTURES=classes exec bash "$(dirname "${BASH_SOURCE[0]}")/launch.sh" train_multigrain.py "${recipe[@]}" "$@"
