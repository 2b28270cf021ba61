#!/usr/bin/env bash
# Makes .venv and installs Towers into it, every package from a lock file with hashes. Does nothing when that is done.
#
#   bash scripts/setup.sh           # what is there already, else gpu where nvidia-smi answers, else cpu
#   bash scripts/setup.sh cpu       # TensorFlow for the CPU
#   bash scripts/setup.sh gpu       # TensorFlow with CUDA (about 3 GB to download)
#   bash scripts/setup.sh dev       # cpu and the tools of the tests
#
# From the environment: PYTHON (which interpreter; default: the newest of 3.13 to 3.11), VENV (default .venv),
# SETUP_DRY_RUN=1 (print the commands only). pip's own settings (PIP_INDEX_URL, PIP_CERT, ...) hold as they are.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

venv=${VENV:-.venv}
stamp=$venv/towers-setup

fail() { echo "setup.sh: $1" >&2; exit 2; }

run() {
  if [ -n "${SETUP_DRY_RUN:-}" ]; then printf '%q ' "$@"; echo; else "$@"; fi
}

nvidia_answers() { timeout 30 nvidia-smi -L >/dev/null 2>&1; }

# TensorFlow 2.21 has wheels for these Pythons only.
supported() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; }

candidates=(python3.13 python3.12 python3.11 python3)
if [ -n "${PYTHON:-}" ]; then candidates=("$PYTHON"); fi

find_python() {
  local candidate without_venv=
  # A name on PATH may be a stub that starts nothing, and Debian ships Python without ensurepip: ask each one.
  for candidate in "${candidates[@]}"; do
    supported "$candidate" || continue
    if "$candidate" -c 'import ensurepip, venv' 2>/dev/null; then echo "$candidate"; return; fi
    without_venv=${without_venv:-$("$candidate" -c 'import sys; print("python%d.%d" % sys.version_info[:2])')}
  done
  if [ -n "$without_venv" ]; then
    fail "$without_venv cannot make virtual environments: ensurepip is missing; on Debian or Ubuntu: apt-get install $without_venv-venv"
  fi
  fail "no Python 3.11, 3.12 or 3.13 (looked for: ${candidates[*]}); on Debian or Ubuntu:\
 apt-get install python3 python3-venv, or name one: PYTHON=/path/to/python3.12 bash scripts/setup.sh"
}

installed=
[ -f "$stamp" ] && read -r installed _ < "$stamp"

kind=${1:-$installed}
if [ -z "$kind" ]; then
  if nvidia_answers; then kind=gpu; else kind=cpu; fi
fi
case $kind in cpu | gpu | dev) ;; *) fail "unknown kind '$kind': cpu, gpu or dev" ;; esac
# dev holds all of cpu, in the same versions.
[ "$kind:$installed" = cpu:dev ] && kind=dev
if [ -z "${1:-}" ] && [ "$kind" != gpu ] && [ -n "$installed" ] && nvidia_answers; then
  echo "setup.sh: nvidia-smi answers, but $venv holds TensorFlow for the CPU; to change it: bash scripts/setup.sh gpu" >&2
fi

lock=requirements/$kind.lock
# The folder is part of it, since the project is installed in place and may have been moved.
wanted="$kind $(sha256sum < "$lock" | cut -d ' ' -f 1) $PWD"
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ] && supported "$venv/bin/python"; then exit 0; fi

[ "$(uname -s) $(uname -m)" = "Linux x86_64" ] ||
  fail "the locks are for Linux on x86_64, this is $(uname -s) on $(uname -m); by hand: python3 -m venv .venv && .venv/bin/pip install -e '.[cpu]'"

clear=()
if [ -x "$venv/bin/python" ] || [ -L "$venv/bin/python" ]; then
  if [ -n "$installed" ]; then
    # Two TensorFlow builds in one environment overwrite each other's files.
    if ! supported "$venv/bin/python" || { [ "$kind" != "$installed" ] && [ "$installed:$kind" != cpu:dev ]; }; then clear=(--clear); fi
  elif ! supported "$venv/bin/python"; then
    fail "$venv was not made by this script and has no Python 3.11 to 3.13; move it away, or name another: VENV=folder bash scripts/setup.sh"
  fi
fi

python=$(find_python)
export PIP_DISABLE_PIP_VERSION_CHECK=1
echo "setup.sh: installing $lock into $venv (minutes the first time)"
if [ ${#clear[@]} -gt 0 ] || ! supported "$venv/bin/python"; then run "$python" -m venv "${clear[@]}" "$venv"; fi
# Marked as ours, but not as finished, so that an interrupted installation is taken up again.
[ -n "${SETUP_DRY_RUN:-}" ] || echo "$kind unfinished" > "$stamp"
run "$venv/bin/python" -m pip install --quiet --require-hashes -r "$lock"
run "$venv/bin/python" -m pip install --quiet --no-deps --no-build-isolation -e .
# Finds a lock that pyproject.toml has outgrown.
run "$venv/bin/python" -m pip check
[ -n "${SETUP_DRY_RUN:-}" ] || echo "$wanted" > "$stamp"
