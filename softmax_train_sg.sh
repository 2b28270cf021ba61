#!/usr/bin/env bash
# softmax_train.sh on one tower: one GPU, or one CPU device. The same data, recipe, environment and options.
#
#   bash softmax_train_sg.sh
#
# Hardware: two CPU cores, or one GPU.
# Time: 3 min 32 s on two CPU cores, installing and making the data in it.
# Result: accuracy 0.9762 on 6,000 pairs of unseen people.
set -euo pipefail

TOWERS=1 exec bash "$(dirname "${BASH_SOURCE[0]}")/softmax_train.sh" "$@"
