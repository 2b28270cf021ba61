"""TensorFlow's start without its notes on oneDNN, which it writes past its own log level at every start."""

import importlib.abc
import importlib.util
import os
import sys
from collections.abc import Callable

# The second comes with the first and says only that it came early.
NOTES = ("oneDNN custom operations are on", "All log messages before absl::InitializeLog()")


class QuietStart(importlib.abc.MetaPathFinder):
    """Watches for the first import of TensorFlow, wherever it comes from, and holds back those notes and nothing else.

    With them an error of a user's would not be one line.
    """

    def find_spec(self, fullname, path, target=None):
        if fullname != "tensorflow":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None and sys.stderr is not None:
            spec.loader.exec_module = _holding_back(spec.loader.exec_module)
        return spec


def _holding_back(execute: Callable) -> Callable:
    def exec_module(module) -> None:
        # The notes come from C++: they pass Python's sys.stderr by.
        stderr = os.dup(2)
        with open(os.memfd_create("stderr"), "w+b") as said:
            sys.stderr.flush()
            os.dup2(said.fileno(), 2)
            try:
                execute(module)
            finally:
                sys.stderr.flush()
                os.dup2(stderr, 2)
                os.close(stderr)
                said.seek(0)
                for line in said.read().decode(errors="backslashreplace").splitlines():
                    if not any(note in line for note in NOTES):
                        print(line, file=sys.stderr)

    return exec_module
