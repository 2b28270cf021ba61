"""Checks the set-up of distributed training: devices, sums over the towers, their bandwidth, the way to the servers.

python scripts/check_distributed.py --towers 2
python scripts/check_distributed.py --reduction nccl --param_servers 10.0.0.5:5570,10.0.0.6:5570
"""

import statistics
import time

# Before TensorFlow, which then starts without a word.
from towers import options

# isort: split
import numpy as np
import tensorflow as tf

from towers.classcenters.remote import RemoteStore, access
from towers.classcenters.spec import MatrixSpec
from towers.distribution import REDUCTIONS, Towers, tower_index
from towers.errors import UserError


def make_parser() -> options.Parser:
    parser = options.Parser(__doc__)
    parser.add_argument("--towers", type=int, help="number of towers (default: all GPUs, else 1)")
    parser.add_argument("--reduction", choices=REDUCTIONS, default="cpu", help="where gradients are summed")
    parser.add_argument("--megabytes", type=int, default=64, help="size of the summed tensor, MB")
    options.add_servers(parser, "host:port,... of parameter servers, in order of shards")
    parser.add_argument("--matrix", default="check_distributed", help="name of a small matrix that is made on them")
    return parser


def median_seconds(function, rounds: int = 5) -> float:
    function()
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        function()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def check_towers(towers: Towers, megabytes: int) -> str:
    size = megabytes * 250_000

    @tf.function
    def summed():
        def on_tower():
            own = tf.fill([size], tf.cast(tower_index() + 1, tf.float32))
            return towers.sum_gradients([own])[0][:: max(1, size // 100)]

        return towers.stack(towers.run(on_tower))

    expected = towers.num_towers * (towers.num_towers + 1) / 2
    if not np.all(summed().numpy() == expected):
        raise UserError(f"the sum over {towers.num_towers} towers is wrong; try another --reduction")
    if towers.num_towers == 1:
        return "one tower: nothing is summed; --towers 2 tries it"
    seconds = median_seconds(summed)
    return f"sum over {towers.num_towers} tower(s): right, {megabytes / seconds / 1000:.2f} GB/s of {megabytes} MB"


def check_servers(addresses: list[str], matrix: str, entry: dict) -> str:
    store = RemoteStore(addresses, timeout=10, **entry)
    spec = MatrixSpec(rows=max(1000, len(addresses)), columns=128, rule="sgd")
    store.create(matrix, spec)
    rows = np.arange(spec.rows)
    one = median_seconds(lambda: store.pull(matrix, rows[:1]))
    many = median_seconds(lambda: store.pull(matrix, rows))
    version, before = store.version(matrix), store.pull(matrix, rows[:1])
    # A step is made when all clients have pushed; their mean is what one of them pushes.
    for client in range(store.clients):
        one_of_them = store if client == 0 else RemoteStore(addresses, client=client, timeout=10, **entry)
        one_of_them.create(matrix, spec)
        one_of_them.push(matrix, rows[:1], np.ones((1, 128), np.float32), 1.0, version)
    if not np.allclose(store.pull(matrix, rows[:1], version + 1), before - 1, atol=1e-5):
        raise UserError(f"{','.join(addresses)}: a pushed gradient is not in the rows pulled after it")
    return f"{len(addresses)} server(s): round trip {1e3 * one:.1f} ms, {many * 1e3:.1f} ms for 1,000 rows x 128"


def main(arguments) -> None:
    towers = Towers.create(arguments.towers, arguments.reduction)
    print(f"TensorFlow {tf.__version__}; devices: {', '.join(towers.device_names)}")
    print(check_towers(towers, arguments.megabytes))
    if arguments.param_servers:
        entry = access(
            arguments.param_token_file, arguments.param_tls_ca, arguments.param_tls_cert, arguments.param_tls_key
        )
        print(check_servers(arguments.param_servers.split(","), arguments.matrix, entry))


if __name__ == "__main__":
    options.call(main, make_parser())
