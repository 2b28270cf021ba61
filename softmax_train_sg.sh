#!/usr/bin/env bash
# softmax_train.sh on one tower: one GPU, or one CPU device. The same data, recipe, environment and options.
#
#   bash softmax_train_sg.sh
#
# Hardware: two CPU cores, or one GPU.
# Time: not yet run to the end.
# Result: not yet run to the end.
set -euo pipefail

TOWERS=1 exec bash "$(dirname "${BASH_SOURCE[0]}")/softmax_train.sh" "$@"
