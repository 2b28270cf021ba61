#!/usr/bin/env bash
# Writes requirements/*.lock anew from pyproject.toml: exact versions and hashes, for CPython 3.11 to 3.13 on Linux x86_64.
#
#   pip install uv
#   bash scripts/update_locks.sh                              # the least change that pyproject.toml asks for
#   bash scripts/update_locks.sh --upgrade                    # newest versions of everything
#   bash scripts/update_locks.sh --upgrade-package keras      # of one package
#
# Any option is passed on to `uv pip compile`. After it: bash .ci/run
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

command -v uv >/dev/null || { echo "update_locks.sh: uv is not installed; run: pip install uv" >&2; exit 2; }
mkdir -p requirements

lock() {
  local name=$1
  shift
  uv pip compile pyproject.toml "$@" --group pyproject.toml:build --universal --python-version 3.11 --generate-hashes \
    --no-annotate --no-emit-index-url --no-emit-find-links --quiet \
    --custom-compile-command "bash scripts/update_locks.sh" --output-file "requirements/$name.lock"
  echo "requirements/$name.lock: $(grep -c '==' "requirements/$name.lock") packages"
}

options=("$@")
lock cpu --extra cpu "${options[@]}"
lock gpu --extra gpu "${options[@]}"
# dev starts from cpu's answer, so that tests run on the versions that users get; with ONNX, whose test needs it.
lock dev --extra cpu --extra dev --extra onnx --constraint requirements/cpu.lock "${options[@]}"
