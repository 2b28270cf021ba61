#!/usr/bin/env bash
# Checks a set-up for distributed training: devices, sums over the towers and their bandwidth, parameter servers.
#
#   bash scripts/test_distributed.sh --towers 2
#   bash scripts/test_distributed.sh --reduction nccl --param_servers 127.0.0.1:5570
#
# Data: none. Hardware: what is to be checked. Exit code 0: all is well.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh

exec .venv/bin/python scripts/check_distributed.py "$@"
