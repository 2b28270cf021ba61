"""Train the same on several numbers of towers, and tell what more towers bring and what limits them.

    python scripts/compare_towers.py --towers 1 2 4 -- train_softmax.py --synthetic --max_epochs 2
    python scripts/compare_towers.py --towers 1 2 --seeds 1 2 3 --out_dir OUT -- train_tripletloss.py --data_dir FACES

Each number of towers is a run of its own, in OUT/towers_N, with OUT/towers_N/console.txt; the same command once more
goes on where it ended. Prints a table and a sentence, and writes comparison.csv, comparison.json and comparison.png to
OUT. The time of tracing is left out (the first --log_every steps), the speed-up is against the first number of towers.
Ends with the exit code of a run that failed, and with 65 where the towers were not fed as they should be.
"""

import argparse
import contextlib
import itertools
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from towers.errors import BadData, UserError
from towers.runs import comparison, comparison_report
from towers.runs.comparison_findings import judge

# A line a step would wait for the device after each, and the input would catch up while the line is written; many
# steps a line leave few lines to take the median of.
LOG_EVERY = 5
OURS = ("--towers", "--run_dir")
LAST_LINES = 12


class RunFailed(UserError):
    """A run that ended with an exit code of its own."""

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code


def parse_args(arguments: list[str]) -> argparse.Namespace:
    """Parse the command line; what follows ``--`` is the training script and its options."""
    dashes = arguments.index("--") if "--" in arguments else len(arguments)
    summary, _, rest = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(
        usage="%(prog)s --towers N [N ...] [options] -- SCRIPT [its options]",
        description=summary,
        epilog=rest,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--towers", type=int, nargs="+", required=True, help="numbers of towers, the reference first")
    parser.add_argument("--seeds", type=int, nargs="+", help="a run of each seed; accuracies are their mean")
    parser.add_argument(
        "--out_dir", "--out-dir", type=Path, help="folder of the runs (default: runs/compare-DATE-TIME)"
    )
    options = parser.parse_args(arguments[:dashes])
    options.command = arguments[dashes + 1 :]
    return options


def main(arguments: list[str]) -> int:
    """Train, read, print, write; the exit code."""
    options = parse_args(arguments)
    try:
        _check(options)
        out_dir = options.out_dir or Path("runs") / time.strftime("compare-%Y%m%d-%H%M%S")
        return _compare(options.command, options.towers, options.seeds or [None], out_dir)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


def _check(options: argparse.Namespace) -> None:
    if not options.command:
        raise UserError("no training script; give it after the options as: -- train_softmax.py --data_dir FACES")
    if not Path(options.command[0]).is_file():
        raise UserError(f"{options.command[0]}: no such script; what follows -- starts with a Python file")
    if min(options.towers) < 1 or len(set(options.towers)) < len(options.towers):
        raise UserError(f"--towers {' '.join(map(str, options.towers))}: numbers of 1 or more, each once")
    if options.seeds and len(set(options.seeds)) < len(options.seeds):
        raise UserError(f"--seeds {' '.join(map(str, options.seeds))}: each once")
    for name in (*OURS, *(["--seed"] if options.seeds else [])):
        if _given(options.command, name):
            raise UserError(f"{name} after the -- is set for each run; leave it out there")


def _given(command: list[str], name: str) -> bool:
    return any(argument.partition("=")[0].replace("-", "_") == name.replace("-", "_") for argument in command)


def _compare(command: list[str], numbers: list[int], seeds: list[int | None], out_dir: Path) -> int:
    runs = {}
    for towers, seed in itertools.product(numbers, seeds):
        folder = out_dir / (f"towers_{towers}" if seed is None else f"towers_{towers}_seed_{seed}")
        failure = _train(_command_of(command, towers, seed, folder), folder)
        runs.setdefault(towers, []).append(_read(folder, towers, failure))
        if failure is not None:
            break
    rows = comparison.compare(runs)
    finding = judge(rows)
    if failure is not None and not finding.exit_code:
        raise failure
    print(comparison_report.table(rows))
    print(finding.sentence)
    comparison_report.write(out_dir, rows, finding, command)
    print(f"{out_dir}: comparison.csv, comparison.json, comparison.png")
    return finding.exit_code


def _read(folder: Path, towers: int, failure: RunFailed | None) -> comparison.Run:
    """What the folder tells; of a run that failed, only one that refused its data, since the audit may say why."""
    if failure is not None and failure.exit_code != BadData.exit_code:
        raise failure
    try:
        run = comparison.read_run(folder, towers)
    except BadData as error:
        raise failure or error from error
    if failure is None and not len(run.steps):
        raise UserError(f"{folder}: too few steps to time; give --max_steps of 4 x --log_every or more")
    return run


def _command_of(command: list[str], towers: int, seed: int | None, folder: Path) -> list[str]:
    ours = ["--towers", str(towers), "--run_dir", str(folder), "--audit_data", "--time_towers"]
    if seed is not None:
        ours += ["--seed", str(seed)]
    if not _given(command, "--log_every"):
        ours += ["--log_every", str(LOG_EVERY)]
    return [*command, *ours]


def _train(command: list[str], folder: Path) -> RunFailed | None:
    """Run the command unless it is done; what became of it, None where it ended well."""
    done = folder / "compared.json"
    if done.exists() and json.loads(done.read_text()) == command:
        print(f"{folder}: done before")
        return None
    folder.mkdir(parents=True, exist_ok=True)
    console = folder / "console.txt"
    print(f"{folder}: training, see {console}", flush=True)
    start = time.monotonic()
    with console.open("ab") as output:
        beginning = output.tell()
        code = _wait(
            # A group of its own: Ctrl-C then reaches the run once, passed on by us, and it ends with a checkpoint.
            subprocess.Popen([sys.executable, *command], stdout=output, stderr=subprocess.STDOUT, process_group=0),
            folder / "train.log",
        )
    if code:
        with console.open("rb") as output:
            output.seek(beginning)
            lines = output.read().decode(errors="replace").strip().splitlines()
        print("\n".join(lines[-LAST_LINES:]), file=sys.stderr)
        code = 128 - code if code < 0 else code
        return RunFailed(f"{folder}: the run ended with exit code {code}; all it said is in {console}", code)
    done.write_text(json.dumps(command) + "\n")
    print(f"{folder}: done in {time.monotonic() - start:.0f} s", flush=True)
    return None


def _wait(process: subprocess.Popen, log: Path) -> int:
    """Wait for a run and show how far it is; its return code. Pass a signal on to it; a second one kills it."""
    terminal = sys.stdout.isatty()
    every = 1.0 if terminal else 30.0
    passed_on = []

    def pass_on(number, frame):
        process.send_signal(signal.SIGKILL if passed_on else number)
        passed_on.append(number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.wait(every)
            line = _last_line(log)
            if terminal:
                width = shutil.get_terminal_size().columns - 1
                print(f"\r{line[:width]:{width}}", end="", flush=True)
            else:
                print(line, flush=True)
    finally:
        if process.poll() is None:
            process.terminate()
        if terminal:
            print()
        for number, handler in before.items():
            signal.signal(number, handler)


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    return next((line for line in reversed(lines) if line.startswith("Epoch: ")), "starting")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
