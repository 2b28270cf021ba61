"""Start the processes of one training run, on this machine or on several, and end with them.

python scripts/launch.py --workers 2 -- train_multi_gpu.py --data_dir FACES --head sharded --run_dir runs/mine
python scripts/launch.py --hosts gpu1 gpu2 -- train_softmax.py --data_dir FACES --run_dir /shared/runs/mine
python scripts/launch.py --hosts gpu1 gpu2 --workers 2 --print -- train_softmax.py --data_dir FACES

After -- stands the command as for one process. The processes of a machine share its cores and GPUs in equal parts. With
--hosts each machine needs this folder at the same path, with its .venv, and ssh without a password; --print shows the
commands for those that start them by hand. Ctrl-C and SIGTERM stop all processes, which save and end together. The
exit code is that of the process that failed by its own error; 75 where one was lost: the same command goes on.
"""

import contextlib
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from towers.command_line import Parser, call_tool, positive
from towers.errors import PeerLost, UserError

ROOT = Path(__file__).resolve().parents[1]
# Seconds from the end of the first process to the end of those that do not end with it.
PATIENCE = 90


def make_parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument("--workers", type=positive, default=1, help="processes on each machine")
    parser.add_argument("--hosts", nargs="+", help="machines to start them on by ssh (default: this one, without ssh)")
    parser.add_argument(
        "--port", type=positive, help="first port (default: free ones; with --hosts 24000); one for each process"
    )
    parser.add_argument("--print", action="store_true", help="print the command of each process and start nothing")
    parser.add_argument("command", nargs="*", help="after --: a training script and its options")
    return parser


def choose_addresses(hosts: list[str], workers: int, port: int | None) -> list[str]:
    """``host:port`` of every process, those of a machine after each other."""
    if hosts == ["localhost"] and port is None:
        sockets = [socket.create_server(("localhost", 0)) for _ in range(workers)]
        ports = [each.getsockname()[1] for each in sockets]
        for each in sockets:
            each.close()
    else:
        ports = [(port or 24000) + place for place in range(workers)]
    return [f"{host.rpartition('@')[2]}:{port}" for host in hosts for port in ports]


def shares(things: list, workers: int) -> list[list]:
    """``things`` in equal parts, one a process; fewer things than processes: every process has all."""
    each = len(things) // workers
    return [things[place * each : (place + 1) * each] if each else things for place in range(workers)]


def visible_gpus(environment: dict[str, str]) -> list[str]:
    """The GPUs of this machine as CUDA_VISIBLE_DEVICES names them."""
    if "CUDA_VISIBLE_DEVICES" in environment:
        return [name for name in environment["CUDA_VISIBLE_DEVICES"].split(",") if name]
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [str(number) for number in range(sum(line.startswith("GPU ") for line in listed.stdout.splitlines()))]


def environments(addresses: list[str], gpus: list[list[str]]) -> list[dict[str, str]]:
    """What each process finds in its environment; ``gpus`` of the processes of a machine, empty: as they are."""
    result = []
    for index in range(len(addresses)):
        config = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        result.append({"TF_CONFIG": json.dumps(config)})
        if gpus:
            result[-1]["CUDA_VISIBLE_DEVICES"] = ",".join(gpus[index % len(gpus)])
    return result


def assigned(environment: dict[str, str]) -> list[str]:
    """The beginning of a command that runs in ``environment``."""
    return ["env", *(f"{name}={value}" for name, value in environment.items())]


def remote_command(host: str, command: list[str], environment: dict[str, str]) -> list[str]:
    """The ssh command of a process. It has a terminal there, which hands Ctrl-C on and ends it with the connection."""
    line = shlex.join([*assigned(environment), sys.executable, *command])
    return ["ssh", "-tt", "-o", "BatchMode=yes", host, f"cd {shlex.quote(str(ROOT))} && exec {line}"]


def start_here(command: list[str], environment: dict[str, str], cores: list[int]) -> subprocess.Popen:
    def share_cores():
        os.sched_setaffinity(0, cores)

    # A session of its own: Ctrl-C of the terminal comes once, from here, and not twice.
    return subprocess.Popen(
        [sys.executable, *command], env={**os.environ, **environment}, preexec_fn=share_cores, start_new_session=True
    )


def start_there(command: list[str]) -> subprocess.Popen:
    return subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)


def stop(process: subprocess.Popen, number: int) -> None:
    """Hand a signal on; ssh does not carry signals, but the key of Ctrl-C."""
    if process.poll() is not None:
        return
    if process.stdin is None:
        process.send_signal(number)
    else:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(b"\x03")
            process.stdin.flush()


def wait(processes: list[subprocess.Popen]) -> int:
    """Wait for all, hand signals on, and end those that outlive the first failure by ``PATIENCE``; the exit code."""

    def hand_on(number, frame):
        for process in processes:
            stop(process, number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, hand_on)
    failed_at = None
    while None in (codes := [process.poll() for process in processes]):
        if failed_at is None and any(codes):
            failed_at = time.monotonic()
        if failed_at is not None and time.monotonic() - failed_at > PATIENCE:
            for process in processes:
                process.kill()
        time.sleep(0.1)
    # A process that was killed is a lost one.
    codes = [code if code >= 0 else PeerLost.exit_code for code in codes]
    own_errors = [code for code in codes if code not in (0, PeerLost.exit_code)]
    return next(iter(own_errors), max(codes))


def main(arguments) -> int:
    command = arguments.command
    if not command:
        raise UserError("give the command after --, such as `launch.py --workers 2 -- train_softmax.py --synthetic`")
    if not (ROOT / command[0]).is_file() and not Path(command[0]).is_file():
        raise UserError(f"{command[0]}: no such script here; the first word after -- is one of the train_*.py")
    hosts = arguments.hosts or ["localhost"]
    if len(hosts) * arguments.workers == 1:
        raise UserError("one process needs no launcher: give --workers 2 or more, or several --hosts")
    addresses = choose_addresses(hosts, arguments.workers, arguments.port)
    gpus = visible_gpus(dict(os.environ)) if arguments.workers > 1 and not arguments.hosts else []
    own = environments(addresses, shares(gpus, arguments.workers) if gpus else [])
    if arguments.hosts:
        commands = [remote_command(hosts[index // arguments.workers], command, each) for index, each in enumerate(own)]
    else:
        commands = [[*assigned(each), sys.executable, *command] for each in own]
    if arguments.print:
        print(*map(shlex.join, commands), sep="\n")
        return 0
    if arguments.hosts:
        return wait([start_there(each) for each in commands])
    cores = shares(sorted(os.sched_getaffinity(0)), arguments.workers)
    return wait([start_here(command, each, part) for each, part in zip(own, cores, strict=True)])


if __name__ == "__main__":
    call_tool(main, make_parser())
