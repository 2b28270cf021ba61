#!/usr/bin/env bash
# HF-Softmax with the class centres on parameter servers, started before with scripts/param_server.sh, by one or more processes.
#
#   bash scripts/param_server.sh --shards 2 --clients 2              # in another terminal, or on another machine
#   SERVERS=127.0.0.1:5570,127.0.0.1:5571 WORKERS=2 bash scripts/train_hf_distributed.sh
#   SERVERS=10.0.0.5:5570 HOSTS="gpu1 gpu2" OUT=/shared/runs/hf bash scripts/train_hf_distributed.sh --param_token_file token
#
# SERVERS lists the shards in their order; their --clients is the number of processes. Data and hardware as scripts/train_hf.sh.
# DATA, LFW_DIR, LFW_PAIRS, TOWERS, WORKERS, HOSTS and OUT are told in scripts/launch.sh.
set -euo pipefail

exec bash "$(dirname "${BASH_SOURCE[0]}")/train_hf.sh" --param_servers "${SERVERS:-127.0.0.1:5570}" "$@"
