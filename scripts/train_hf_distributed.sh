#!/usr/bin/env bash
# HF-Softmax with the class centres on parameter servers, started before with scripts/param_server.sh.
#
#   bash scripts/param_server.sh --shards 2                          # in another terminal, or on another machine
#   SERVERS=127.0.0.1:5570,127.0.0.1:5571 bash scripts/train_hf_distributed.sh
#
# One process trains on all its towers; SERVERS lists the shards in their order. Data and hardware as scripts/train_hf.sh.
# DATA, LFW_DIR, LFW_PAIRS, TOWERS and OUT are told in scripts/launch.sh.
set -euo pipefail

exec bash "$(dirname "${BASH_SOURCE[0]}")/train_hf.sh" --param_servers "${SERVERS:-127.0.0.1:5570}" "$@"
