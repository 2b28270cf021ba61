#!/usr/bin/env bash
# Evaluates a face model on InsightFace's verification packs: the embeddings of each as .npy, and LFW's protocol on them.
#
#   bash scripts/eval_hf.sh ARCH MODEL DATA OUT [options of validate_on_lfw.py]
#   bash scripts/eval_hf.sh mobilefacenet runs/hf faces_emore runs/hf/evaluation
#
# ARCH: the network that MODEL, a run or model folder, must hold. DATA: a folder with lfw.bin, agedb_30.bin, cfp_ff.bin,
# cfp_fp.bin, or some of them. OUT gets NAME.npy (paths in NAME.tsv), NAME.json and NAME.png (the ROC) for each.
set -euo pipefail

if [ $# -lt 4 ]; then
  echo "usage: bash scripts/eval_hf.sh ARCH MODEL DATA OUT [options of validate_on_lfw.py]" >&2
  exit 2
fi
arch=$1
model=$(realpath -ms -- "$2")
data=$(realpath -ms -- "$3")
out=$(realpath -ms -- "$4")
shift 4
cd "$(dirname "${BASH_SOURCE[0]}")/.."

found=()
for name in lfw agedb_30 cfp_ff cfp_fp; do
  if [ -f "$data/$name.bin" ]; then found+=("$name"); fi
done
if [ ${#found[@]} -eq 0 ]; then
  echo "$data: holds none of lfw.bin, agedb_30.bin, cfp_ff.bin, cfp_fp.bin; scripts/make_bin.py makes one" >&2
  exit 65
fi

bash scripts/setup.sh
mkdir -p "$out"
for name in "${found[@]}"; do
  echo "[$name]"
  .venv/bin/python validate_on_lfw.py --model "$model" --arch "$arch" --bin "$data/$name.bin" \
    --features "$out/$name.npy" --json "$out/$name.json" --roc "$out/$name.png" "$@"
done
