#!/usr/bin/env bash
# What the launchers share: makes .venv and the data where they are missing, then becomes `.venv/bin/python SCRIPT ...`.
#
#   bash scripts/launch.sh train_softmax.py [options of the recipe] [options of the user, which win]
#
# From the environment (paths as seen from where the command is given; paths among the options: from the project's folder):
#   DATA                 a folder with train/, test/ and pairs.txt, or with one folder a person; default: the embedded data set
#   LFW_DIR, LFW_PAIRS   pictures and pairs to validate on; default: DATA/test and DATA/pairs.txt, where DATA has a train/
#   PICTURES             what the recipe takes: people (default), or classes: then LFW_DIR and LFW_PAIRS are not used, DATA/test
#                        or DATA/val is what --val_dir gets, and the default data are the drawn stand-in of mini-ImageNet
#   TOWERS               number of towers of a process; default: all its GPUs, or 2 CPU towers where there is none (one in each of
#                        several processes)
#   WORKERS, HOSTS       processes on each machine (default: 1), and the machines, separated by spaces (default: this one), for
#                        scripts/launch.py, which starts more than one process
#   OUT                  the run's folder, resumed if it holds a run; default: a new one under runs/
set -euo pipefail

fail() { echo "$1" >&2; exit 2; }
absolute() { if [ -n "$1" ]; then realpath -ms -- "$1"; fi; }

pictures=${PICTURES:-people}
data=$(absolute "${DATA:-}")
out=$(absolute "${OUT:-}")
lfw_dir=$(absolute "${LFW_DIR:-}")
lfw_pairs=$(absolute "${LFW_PAIRS:-}")
cd "$(dirname "${BASH_SOURCE[0]}")/.."
script=$1
shift

bash scripts/setup.sh
python=.venv/bin/python

if [ -z "$data" ]; then
  if [ "$pictures" = classes ]; then
    data=data/mini_imagenet/generated
    "$python" data/mini_imagenet/prepare.py --synthetic --out_dir "$data"
  else
    data=data/synthetic_faces/generated
    "$python" data/synthetic_faces/prepare.py --out_dir "$data"
  fi
elif [ ! -d "$data" ]; then
  fail "DATA=$data is no folder; give one with train/, test/ and pairs.txt, or with one folder a person"
fi

train=$data
val_dir=
if [ "$pictures" = classes ]; then
  lfw_dir='' lfw_pairs=''
  if [ -d "$data/train" ]; then
    train=$data/train
    for part in val test; do if [ -d "$data/$part" ]; then val_dir=$data/$part; fi; done
  fi
elif [ -d "$data/train" ]; then
  train=$data/train
  if [ -z "$lfw_dir" ] && [ -d "$data/test" ]; then lfw_dir=$data/test; fi
  if [ -z "$lfw_pairs" ] && [ -f "$data/pairs.txt" ]; then lfw_pairs=$data/pairs.txt; fi
fi

options=(--data_dir "$train")
if [ -n "$lfw_dir" ]; then options+=(--lfw_dir "$lfw_dir"); fi
if [ -n "$lfw_pairs" ]; then options+=(--lfw_pairs "$lfw_pairs"); fi
if [ -n "$val_dir" ]; then options+=(--val_dir "$val_dir"); fi
if [ -n "$out" ]; then options+=(--run_dir "$out"); fi

read -r -a hosts <<< "${HOSTS:-}"
workers=${WORKERS:-1}
several=$(( ${#hosts[@]} > 0 || workers > 1 ))
read -r kind _ < .venv/towers-setup
if [ -n "${TOWERS:-}" ]; then
  options+=(--towers "$TOWERS")
elif [ "$kind" != gpu ] || ! timeout 30 nvidia-smi -L >/dev/null 2>&1; then
  options+=(--towers "$(( several ? 1 : 2 ))")
fi

program=("$script")
if [ "$several" = 1 ]; then
  program=(scripts/launch.py --workers "$workers")
  if [ "${#hosts[@]}" -gt 0 ]; then program+=(--hosts "${hosts[@]}"); fi
  program+=(-- "$script")
fi

# exec, so that SIGTERM and Ctrl-C reach Python, which writes a checkpoint and leaves.
exec "$python" "${program[@]}" "${options[@]}" "$@"
