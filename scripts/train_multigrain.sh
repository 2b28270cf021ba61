#!/usr/bin/env bash
# Trains MultiGrain: one embedding for classes, instances and copies, on N towers.
#
#   bash scripts/train_multigrain.sh                                       # drawn stand-in data, all GPUs or 2 CPU towers
#   DATA=/data/imagenet OUT=runs/mine bash scripts/train_multigrain.sh     # ImageNet-2012; the same command again resumes
#   DATA=/data/imagenet bash scripts/train_multigrain.sh --lambda 1 --copies 1 --gem_p 1    # options win over the recipe
#
# Data: DATA with train/ and val/, a folder a class in each (ImageNet-2012: 1,281,167 and 50,000 pictures); without DATA
# data/multigrain_standin, 4,300 drawn pictures, made on the first run.
# Hardware: ImageNet wants GPUs (4 towers x 129 pictures of 224 px); the stand-in two CPU cores.
# Recipe of ImageNet: MultiGrain's (lambda 0.5, GeM p 3, 3 copies, 224 px, rate 0.2 by 10 after 30, 60 and 90 of 120 epochs
# of 4,966 steps), with batches of 516, which 3 copies on 1, 2 or 4 towers divide.
# Result on the stand-in, in about 13 minutes: top-1 0.974, other views mAP 0.416, strong copies mAP 0.499 (means of seeds 1,
# 2 and 3; benchmarks/multigrain.py).
# Result: NOT YET RUN on ImageNet. Published there: top-1 77.4 (lambda 0.5, p 3, 224 px); 77.0 (p 1); 76.9 (lambda 1, p 3).
# TOWERS, OUT: number of towers, and the run's folder, as in scripts/launch.sh.
set -euo pipefail

fail() { echo "$1" >&2; exit 2; }
absolute() { if [ -n "$1" ]; then realpath -ms -- "$1"; fi; }

data=$(absolute "${DATA:-}")
out=$(absolute "${OUT:-}")
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [ -n "$data" ]; then
  if [ ! -d "$data/train" ]; then fail "DATA=$data has no train/; give a folder with train/ and val/, a folder a class in each"; fi
  options=(
    --data_dir "$data/train"
    --network resnet50 --embedding_size 2048 --gem_p 3 --image_size 224
    --classification_weight 0.5 --copies 3 --batch_size 516 --epoch_size 4966 --max_epochs 120
    --random_resized_crop --random_flip --random_color 0.3 --lighting 0.1
    --optimizer MOM --learning_rate 0.2 --weight_decay 1e-4
    --learning_rate_schedule exponential --learning_rate_decay_epochs 30 --learning_rate_decay_factor 0.1
    --validate_every_n_epochs 5 --checkpoint_every_n_steps 4966
  )
  if [ -d "$data/val" ]; then options+=(--val_dir "$data/val"); fi
else
  options=(
    --synthetic
    --network resnet10 --embedding_size 512 --gem_p 3 --image_size 64 --load_size 72
    --classification_weight 0.5 --copies 3 --batch_size 60 --max_epochs 80 --sync_bn
    --random_resized_crop --min_crop_area 0.4 --random_flip --random_rotate --random_color 0.3 --lighting 0.1
    # With 0.05 and no warm-up the loss stood still for a third of the run.
    --optimizer MOM --learning_rate 0.04 --learning_rate_schedule cosine --warmup_steps 200 --weight_decay 5e-4
    --validate_every_n_epochs 20
  )
fi
if [ -n "$out" ]; then options+=(--run_dir "$out"); fi

bash scripts/setup.sh
read -r kind _ < .venv/towers-setup
if [ -n "${TOWERS:-}" ]; then
  options+=(--towers "$TOWERS")
elif [ "$kind" != gpu ] || ! timeout 30 nvidia-smi -L >/dev/null 2>&1; then
  options+=(--towers 2)
fi

# exec, so that SIGTERM and Ctrl-C reach Python, which writes a checkpoint and leaves.
exec .venv/bin/python train_multigrain.py "${options[@]}" "$@"
