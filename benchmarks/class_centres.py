"""The parameter server: pull and push of 10,000 rows x 512 float32 on loopback, against bare gRPC with these messages.

  python benchmarks/class_centres.py             one shard and one client
  python benchmarks/class_centres.py --journal   the server also writes its journal
  python benchmarks/class_centres.py --rule momentum

The bare server is a program of its own too: it answers a pull with the same blocks, prepared before, and reads and
drops the blocks of a push, which its client has prepared too. So the ratio is what making messages, checking, storing
and updating cost. Both take turns, and medians are compared.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent import futures

import grpc
import numpy as np

from towers.classcenters.protocol import class_centers_pb2 as messages
from towers.classcenters.remote import RemoteStore
from towers.classcenters.service import channel_options
from towers.classcenters.spec import MatrixSpec
from towers.classcenters.wire import CHANNEL_OPTIONS, block_slices, encoded_blocks, encoded_parts

ROWS, COLUMNS, TARGET = 10_000, 512, 0.6


def serve_bare() -> None:
    values = np.random.default_rng(0).standard_normal((ROWS, COLUMNS), np.float32)
    pieces = (values[piece] for piece in block_slices(ROWS, COLUMNS))
    replies = list(encoded_blocks(np.arange(ROWS), pieces))

    def pull(request, context):
        yield from replies

    def push(requests, context):
        for _ in requests:
            pass
        return b""

    methods = {
        "Pull": grpc.unary_stream_rpc_method_handler(pull),
        "Push": grpc.stream_unary_rpc_method_handler(push),
    }
    server = grpc.server(futures.ThreadPoolExecutor(8), options=channel_options())
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("Bare", methods),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(f"bare at 127.0.0.1:{port}", flush=True)
    server.wait_for_termination()


def start(*command: str) -> tuple[subprocess.Popen, str]:
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, text=True)
    return process, process.stdout.readline().split()[-1]


def bare_turn(channel, request: bytes, parts: list[bytes]) -> float:
    started = time.perf_counter()
    for _ in channel.unary_stream("/Bare/Pull")(request):
        pass
    channel.stream_unary("/Bare/Push")(iter(parts))
    return time.perf_counter() - started


def store_turn(store: RemoteStore, rows: np.ndarray, gradients: np.ndarray) -> float:
    started = time.perf_counter()
    store.pull("w", rows, store.version("w"))
    store.push("w", rows, gradients, 0.1)
    return time.perf_counter() - started


def measured(classes: int, rule: str, rounds: int, journal_kept: bool) -> tuple[float, float]:
    """MB/s of the parameter server and of the bare one, both started anew: medians of turns about."""
    random = np.random.default_rng(1)
    gradients = random.standard_normal((ROWS, COLUMNS), np.float32)
    row_sets = [np.sort(random.choice(classes, ROWS, replace=False)) for _ in range(rounds + 2)]
    with tempfile.TemporaryDirectory() as folder:
        journal = ["--directory", folder] if journal_kept else []
        bare, bare_address = start(os.path.abspath(__file__), "--bare")
        server, address = start("-m", "towers.classcenters.server", "--bind", "127.0.0.1:0", *journal)
        try:
            store = RemoteStore([address])
            store.create("w", MatrixSpec(rows=classes, columns=COLUMNS, rule=rule, weight_decay=5e-4))
            own, other = [], []
            with grpc.insecure_channel(bare_address, CHANNEL_OPTIONS) as channel:
                for rows in row_sets:
                    request = messages.PullRequest(matrix="w", rows=rows.tolist(), version=0).SerializeToString()
                    parts = list(encoded_parts(rows, gradients))
                    other.append(bare_turn(channel, request, parts))
                    own.append(store_turn(store, rows, gradients))
            store.close()
        finally:
            for process in (server, bare):
                process.terminate()
                process.wait()
    moved = 2 * ROWS * COLUMNS * 4
    # The first two meet cold memory.
    return tuple(moved / statistics.median(times[2:]) / 1e6 for times in (own, other))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30, help="pulls and pushes of each")
    parser.add_argument(
        "--starts", type=int, default=5, help="of both servers, whose speeds differ from start to start"
    )
    parser.add_argument("--classes", type=int, default=100_000, help="rows of the matrix")
    parser.add_argument("--rule", choices=("sgd", "momentum", "adagrad"), default="momentum", help="update rule")
    parser.add_argument("--journal", action="store_true", help="with a journal in a temporary folder")
    parser.add_argument("--bare", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.bare:
        serve_bare()
        return
    speeds = []
    for _ in range(arguments.starts):
        speeds.append(measured(arguments.classes, arguments.rule, arguments.rounds, arguments.journal))
        print(f"bare gRPC {speeds[-1][1]:5.0f} MB/s, parameter server {speeds[-1][0]:5.0f} MB/s", flush=True)
    speed, reference = sorted(speeds, key=lambda pair: pair[0] / pair[1])[len(speeds) // 2]
    name = f"class centres: pull + push of {ROWS} x {COLUMNS}, {arguments.rule}" + (
        ", journal" if arguments.journal else ""
    )
    print(f"{name}, {os.cpu_count()} cores, the median ratio of {arguments.starts} starts")
    result = {"name": name, "value": speed, "unit": "MB/s", "reference": reference, "ratio": speed / reference}
    print(json.dumps({**result, "target": TARGET}))


if __name__ == "__main__":
    main()
