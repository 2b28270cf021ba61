#!/usr/bin/env bash
# Runs the tests: in the active virtual environment where it has pytest, else in .venv, which it makes or completes.
#
#   bash test.sh                          # all but the slow ones
#   bash test.sh --all                    # all
#   bash test.sh -n 0 tests/losses        # anything else is passed on to pytest; -n 0: one process
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

has_pytest() { "$1" -c 'import importlib.util as u, sys; sys.exit(not (u.find_spec("pytest") and u.find_spec("towers")))' 2>/dev/null; }

venv=.venv
kind=
if [ -f .venv/towers-setup ]; then read -r kind _ < .venv/towers-setup; fi
if [ -n "${VIRTUAL_ENV:-}" ] && has_pytest "$VIRTUAL_ENV/bin/python"; then
  venv=$VIRTUAL_ENV
elif [ "$kind" = gpu ] && ! has_pytest .venv/bin/python; then
  # The tests' lock holds TensorFlow for the CPU: it must not replace the one that trains on the GPUs.
  venv=.venv-dev
  VENV=$venv bash scripts/setup.sh dev
elif [ "$kind" != gpu ]; then
  bash scripts/setup.sh dev
fi

selection=(-m "not slow")
if [ "${1:-}" = --all ]; then
  selection=()
  shift
fi
export TF_CPP_MIN_LOG_LEVEL=${TF_CPP_MIN_LOG_LEVEL:-2}
# Two processes: most of a test is one Python starting TensorFlow and tracing. A file stays whole, for what it shares.
exec "$venv/bin/python" -m pytest -q -n 2 --dist loadfile "${selection[@]}" "$@"
