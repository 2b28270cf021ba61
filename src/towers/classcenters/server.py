r"""A parameter server for class centres.

  python -m towers.classcenters.server                       one shard at 127.0.0.1:5570
  python -m towers.classcenters.server --shards 4 --clients 2 --directory /data/centres
  python -m towers.classcenters.server --bind 10.0.0.5:5570 --token_file token --tls_cert s.crt --tls_key s.key

Several shards are processes at consecutive ports. On several machines: `--shards 8 --first_shard 4 --here 4`
starts the second half of eight. A stopped server (SIGTERM, Ctrl-C) writes a snapshot into --directory and goes
on from it; a killed one goes on from its journal. With --journal_mb 0 both begin empty, until a client loads.
Exit codes: 0 stopped, 2 usage, 74 storage.
"""

import argparse
import ipaddress
import math
import signal
import subprocess
import sys
import threading
import time
from concurrent import futures
from pathlib import Path

import grpc

from ..errors import UserError
from .service import Service, TokenCheck, channel_options, handler, health_handler
from .shard import Shard
from .store import default_waiting_bytes, mapped_store, memory_store


def parser() -> argparse.ArgumentParser:
    summary, _, rest = __doc__.partition("\n\n")
    found = argparse.ArgumentParser(
        prog="python -m towers.classcenters.server",
        description=summary,
        epilog=rest,
        formatter_class=type("F", (argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter), {}),
        allow_abbrev=False,
    )
    found.add_argument("--bind", default="127.0.0.1:5570", help="host:port of the first shard, or unix:PATH")
    found.add_argument("--shards", type=int, default=1, help="shards of the whole store")
    found.add_argument("--first_shard", type=int, default=0, help="number of the first shard here")
    found.add_argument("--here", type=int, help="shards on this machine (default: all from the first on)")
    found.add_argument("--clients", type=int, default=1, help="training processes that push in each step")
    found.add_argument(
        "--staleness", type=int, default=0, help="steps a client may be ahead of the slowest; 0: synchronous"
    )
    found.add_argument("--step_timeout", type=float, default=60.0, help="seconds to wait for the other clients")
    found.add_argument("--storage", choices=("memory", "mapped"), default="memory", help="where matrices are kept")
    found.add_argument("--directory", type=Path, help="folder of snapshots, journal and mapped files")
    found.add_argument(
        "--waiting_gb",
        type=float,
        help="memory of a shard for changed rows of each matrix that wait to be written to mapped files, GB (default: "
        "a tenth of the machine's, shared by the shards here)",
    )
    found.add_argument(
        "--journal_mb", type=int, default=4096, help="a larger journal becomes a snapshot; 0: no journal, MB"
    )
    found.add_argument("--max_gb", type=float, default=64.0, help="most memory (or mapped files) of all matrices, GB")
    found.add_argument("--max_request_mb", type=int, default=256, help="most values of one pull or push, MB")
    found.add_argument("--tls_cert", type=Path, help="certificate chain, PEM")
    found.add_argument("--tls_key", type=Path, help="private key of the certificate, PEM")
    found.add_argument(
        "--tls_client_ca", type=Path, help="accept only clients with a certificate of this authority, PEM"
    )
    found.add_argument("--token_file", type=Path, help="file with a token that clients must send")
    found.add_argument(
        "--insecure_allow_remote",
        action="store_true",
        help="let anybody who reaches the port read and change everything",
    )
    return found


def is_local(address: str) -> bool:
    """Whether only this machine reaches an address."""
    if address.startswith("unix:"):
        return True
    host = address.rpartition(":")[0].strip("[]")
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check(arguments: argparse.Namespace) -> None:
    """Raise UserError for what cannot work or is not safe."""
    if (arguments.tls_cert is None) != (arguments.tls_key is None):
        raise UserError("--tls_cert and --tls_key belong together: give both, or none")
    if arguments.tls_client_ca and not arguments.tls_cert:
        raise UserError("--tls_client_ca needs --tls_cert and --tls_key")
    safe = arguments.tls_cert or arguments.token_file or arguments.insecure_allow_remote
    if not is_local(arguments.bind) and not safe:
        raise UserError(
            f"--bind {arguments.bind}: other machines could read and change the class centres; give --tls_cert and "
            "--tls_key, or --token_file, or --insecure_allow_remote if the network is closed to others"
        )
    for name, low in (("shards", 1), ("clients", 1), ("staleness", 0), ("journal_mb", 0), ("max_request_mb", 1)):
        if getattr(arguments, name) < low:
            raise UserError(f"--{name} {getattr(arguments, name)}: at least {low}")
    if not arguments.step_timeout > 0 or not arguments.max_gb > 0:
        raise UserError("--step_timeout and --max_gb must be above 0")
    if arguments.waiting_gb is not None and not 0 <= arguments.waiting_gb < math.inf:
        raise UserError(f"--waiting_gb {arguments.waiting_gb}: 0 or more; 0 writes every change at once")
    if arguments.waiting_gb is not None and arguments.storage != "mapped":
        raise UserError("--waiting_gb is of --storage mapped, and does nothing without")
    if not 0 <= arguments.first_shard < arguments.shards:
        raise UserError(f"--first_shard {arguments.first_shard}: not in [0, --shards {arguments.shards})")
    left = arguments.shards - arguments.first_shard
    if arguments.here is None:
        arguments.here = left
    if not 1 <= arguments.here <= left:
        raise UserError(f"--here {arguments.here}: not in [1, {left}]")
    if arguments.storage == "mapped" and arguments.directory is None:
        raise UserError("--storage mapped needs --directory")
    if arguments.here > 1 and (arguments.bind.startswith("unix:") or arguments.bind.endswith(":0")):
        raise UserError(f"--bind {arguments.bind}: several shards need host:port, with a port of their own each")


def address_of(bind: str, number: int) -> str:
    """Address of the shard ``number`` places after the first one here."""
    if number == 0:
        return bind
    host, _, port = bind.rpartition(":")
    if not port.isdigit() or not 0 < int(port) + number < 1 << 16:
        raise UserError(f"--bind {bind}: no port for {number} more shards; give host:port")
    return f"{host}:{int(port) + number}"


def make_server(arguments: argparse.Namespace, address: str, shard: Shard, is_serving) -> tuple[grpc.Server, int]:
    """A server that is not started yet, and its port."""
    threads = 4 * arguments.clients + 8
    interceptors = [TokenCheck(_read_token(arguments.token_file))] if arguments.token_file else []
    server = grpc.server(
        futures.ThreadPoolExecutor(threads, thread_name_prefix="call"),
        interceptors=interceptors,
        options=channel_options(),
        maximum_concurrent_rpcs=2 * threads,
    )
    service = Service(shard, max_request_bytes=arguments.max_request_mb << 20)
    server.add_generic_rpc_handlers((handler(service), health_handler(is_serving)))
    try:
        if arguments.tls_cert:
            client_ca = arguments.tls_client_ca.read_bytes() if arguments.tls_client_ca else None
            pair = (arguments.tls_key.read_bytes(), arguments.tls_cert.read_bytes())
            credentials = grpc.ssl_server_credentials([pair], client_ca, require_client_auth=client_ca is not None)
            port = server.add_secure_port(address, credentials)
        else:
            port = server.add_insecure_port(address)
    except (OSError, RuntimeError) as error:
        raise UserError(f"--bind {address}: cannot listen there ({error}); is the port in use?") from error
    return server, port


def serve(arguments: argparse.Namespace, number: int) -> int:
    """Serve one shard until a signal asks to stop."""
    folder = arguments.directory
    if arguments.storage == "mapped":
        waiting_bytes = None if arguments.waiting_gb is None else int(1e9 * arguments.waiting_gb)
        store = mapped_store(folder / "mapped", waiting_bytes=waiting_bytes)
    else:
        store = memory_store()
    shard = Shard(
        store,
        index=arguments.first_shard + number,
        count=arguments.shards,
        clients=arguments.clients,
        staleness=arguments.staleness,
        step_timeout=arguments.step_timeout,
        folder=folder,
        journal_bytes=arguments.journal_mb << 20,
        max_bytes=int(arguments.max_gb * 1e9),
    )
    stop = threading.Event()
    for number_of_signal in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number_of_signal, lambda *_: stop.set())
    address = address_of(arguments.bind, number)
    server, port = make_server(arguments, address, shard, lambda: not stop.is_set())
    server.start()
    shown = address if address.startswith("unix:") else f"{address.rpartition(':')[0]}:{port}"
    print(f"shard {shard.index} of {shard.count} at {shown}", flush=True)
    if arguments.token_file and not arguments.tls_cert and not is_local(address):
        print(
            "warning: the token and all rows pass the network unencrypted; --tls_cert and --tls_key hide them",
            flush=True,
        )
    stop.wait()
    # What is being answered is finished; who waits for other clients is told at once, and may try again.
    shard.stop_waiting()
    server.stop(grace=5).wait()
    shard.close()
    print(f"shard {shard.index} of {shard.count} stopped", flush=True)
    return 0


def serve_all(arguments: argparse.Namespace, options: list[str]) -> int:
    """Start a process for each shard here; if one ends, so do the others."""
    processes = []
    stop = threading.Event()
    for number_of_signal in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number_of_signal, lambda *_: stop.set())
    if arguments.storage == "mapped" and arguments.waiting_gb is None:
        options = [*options, "--waiting_gb", str(default_waiting_bytes() / arguments.here / 1e9)]
    for number in range(arguments.here):
        own = [
            *options,
            *("--bind", address_of(arguments.bind, number)),
            *("--first_shard", str(arguments.first_shard + number), "--here", "1"),
        ]
        # New programs, not forks: gRPC's threads do not survive a fork.
        processes.append(subprocess.Popen([sys.executable, "-m", "towers.classcenters.server", *own]))
    while not stop.is_set() and all(process.poll() is None for process in processes):
        time.sleep(0.2)
    for process in processes:
        if process.poll() is None:
            process.terminate()
    codes = [process.wait() for process in processes]
    return next((code for code in codes if code), 0) if not stop.is_set() else max(codes)


def main(options: list[str]) -> int:
    arguments = parser().parse_args(options)
    try:
        check(arguments)
        return serve(arguments, 0) if arguments.here == 1 else serve_all(arguments, options)
    except UserError as error:
        print(f"towers.classcenters.server: {error}", file=sys.stderr)
        return error.exit_code


def _read_token(path):
    try:
        token = path.read_text().strip()
    except OSError as error:
        raise UserError(f"--token_file {path}: {error.strerror}") from error
    if len(token) < 16 or not token.isascii():
        raise UserError(f"--token_file {path}: at least 16 ASCII characters; make one with: openssl rand -hex 32")
    return token


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
