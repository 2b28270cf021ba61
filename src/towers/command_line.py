"""What every command has: options with dashes and underscores alike, errors in one line, progress of long work.

Does not import TensorFlow, so that the tools for data answer at once.
"""

import argparse
import signal
import sys
import time
import traceback
from collections.abc import Callable

from . import __version__
from .errors import UserError


class Parser(argparse.ArgumentParser):
    """argparse with ``--two-words`` and ``--two_words`` meaning the same, and defaults in the help texts."""

    def __init__(self, description: str):
        summary, _, rest = description.partition("\n\n")
        super().__init__(
            description=summary,
            epilog=rest,
            formatter_class=_Formatter,
            allow_abbrev=False,
        )
        self.add_argument("--version", action="version", version=f"towers {__version__}")
        self.add_argument("--debug", action="store_true", help="show the traceback of an error")

    def parse_args(self, args=None, namespace=None):
        args = sys.argv[1:] if args is None else args
        return super().parse_args([_underscores(argument) for argument in args], namespace)


class _Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Defaults beside each option; the commands in the epilog as they stand."""


class Progress:
    """A line on the error stream: rewritten on a terminal, else a new one every ten seconds."""

    def __init__(self, what: str = "pictures read"):
        self.what = what
        self.start = self.last = time.monotonic()
        self.terminal = sys.stderr.isatty()

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self.last < (0.2 if self.terminal else 10) and done < total:
            return
        self.last = now
        text = f"{done} of {total} {self.what}, {done / max(now - self.start, 1e-9):.0f} a second"
        end = "\r" if self.terminal and done < total else "\n"
        print(text, end=end, file=sys.stderr, flush=True)


def call_tool(main: Callable[[argparse.Namespace], int | None], parser: Parser) -> None:
    """Parse, run ``main`` and end the process; for tools that do not use TensorFlow.

    SIGTERM ends it as Ctrl-C does, so that what was written aside is removed.
    """
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    # A path that is not UTF-8 must not end a report.
    sys.stdout.reconfigure(errors="backslashreplace")
    sys.stderr.reconfigure(errors="backslashreplace")
    try:
        sys.exit(main(arguments) or 0)
    except UserError as error:
        if arguments.debug:
            traceback.print_exc()
        print(f"{parser.prog}: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print(f"{parser.prog}: stopped; nothing was left behind", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)


def positive(text: str) -> int:
    """The type of options that are 1 or more."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return number


def _underscores(argument: str) -> str:
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value
