#!/usr/bin/env bash
# Starts the parameter server of class centres, in the project's environment (made if it is missing).
#
#   bash scripts/param_server.sh                                     # one shard at 127.0.0.1:5570
#   bash scripts/param_server.sh --shards 4 --clients 2              # four processes, two trainers
#   DIRECTORY=/data/centres bash scripts/param_server.sh --storage mapped
#
# DIRECTORY is where snapshots, the journal and mapped files go (default: runs/class_centres); a server that was stopped
# or killed goes on from there. Other addresses than 127.0.0.1 need TLS or a token: see --help.
# Data: none. Hardware: memory for 2 x 4 x D bytes a class with momentum, or a fast disk with --storage mapped.
set -euo pipefail

directory=$(realpath -ms -- "${DIRECTORY:-$(dirname "${BASH_SOURCE[0]}")/../runs/class_centres}")
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh

# exec, so that SIGTERM and Ctrl-C reach the server, which writes a snapshot and stops.
exec .venv/bin/python -m towers.classcenters.server --directory "$directory" "$@"
