"""What a second process brings: two processes on a core each against one process on one core, the same global batch.

  python benchmarks/two_processes.py                              # r18, 112 px, global batch 64
  python benchmarks/two_processes.py --network small --image_size 48 --steps 10

Each variant runs in turn, several rounds, on cores of its own; the medians of all its steps are compared. The batches
are made beforehand, so that the step with its sums over the processes is measured, and not the reading of pictures.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time

VARIANTS = {"1 process": 1, "2 processes": 2}
TARGET = 1.7


def measure(index: int, addresses: list[str], arguments: argparse.Namespace) -> list[float]:
    """Seconds of each step in process ``index``, after two steps of warm-up."""
    # Before TensorFlow counts the cores.
    os.sched_setaffinity(0, [sorted(os.sched_getaffinity(0))[index]])
    import numpy as np
    import tensorflow as tf

    from towers import networks
    from towers.heads.replicated import ReplicatedHead
    from towers.networks import decayed_variables, moving_statistics
    from towers.processes import Processes
    from towers.runs import run
    from towers.training import optimizers
    from towers.training.classification import make_objective
    from towers.training.step import make_train_step

    processes = Processes(addresses if len(addresses) > 1 else [], index)
    processes.meet({}, seconds=120)
    random = np.random.default_rng(index)
    share, num_classes = arguments.batch_size // len(addresses), 200
    images = random.integers(0, 256, (share, arguments.image_size, arguments.image_size, 3)).astype(np.float32)
    labels = random.integers(num_classes, size=share)
    towers = run.set_up(towers=1, precision="float32", seed=1, processes=processes)
    with towers.scope():
        model = networks.build(arguments.network, image_size=arguments.image_size, embedding_size=512)
        head = ReplicatedHead(num_classes, 512, seed=1)
        trained = [*model.trainable_variables, *head.trainable_variables]
        optimizer = optimizers.build("MOM")
        optimizer.build(trained)
    train_step = make_train_step(
        towers,
        model,
        make_objective(head, lambda batch: batch["image"]),
        optimizer,
        variables=trained,
        decayed=[*decayed_variables(model), *head.decayed_variables],
        statistics=moving_statistics(model),
        weight_decay=5e-4,
    )
    batch = towers.strategy.experimental_distribute_values_from_function(
        lambda context: {"image": tf.constant(images), "label": tf.constant(labels)}
    )
    rate = tf.constant(0.05, tf.float64)
    seconds = []
    for step in range(arguments.steps + 2):
        started = time.perf_counter()
        train_step(batch, tf.constant(step, tf.int64), rate)[1]["loss"].numpy()
        seconds.append(time.perf_counter() - started)
    processes.leave()
    return seconds[2:]


def run_variant(num: int) -> list[float]:
    """The seconds of the chief's steps, with ``num`` processes."""
    sockets = [socket.create_server(("localhost", 0)) for _ in range(num)]
    addresses = ",".join(f"localhost:{each.getsockname()[1]}" for each in sockets)
    for each in sockets:
        each.close()
    started = [
        subprocess.Popen(
            [sys.executable, __file__, *sys.argv[1:], "--addresses", addresses, "--index", str(index)],
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for index in range(num)
    ]
    outputs = [process.communicate()[0] for process in started]
    if any(process.returncode for process in started):
        sys.exit(f"a process of {num} ended by an error")
    return json.loads(outputs[0].splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="r18")
    parser.add_argument("--image_size", type=int, default=112)
    parser.add_argument("--batch_size", type=int, default=64, help="of all processes")
    parser.add_argument("--steps", type=int, default=5, help="measured steps a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--addresses", help=argparse.SUPPRESS)
    parser.add_argument("--index", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.addresses:
        print(json.dumps(measure(arguments.index, arguments.addresses.split(","), arguments)), flush=True)
        # Without the wait of TensorFlow's own server for the other process.
        os._exit(0)
    if len(os.sched_getaffinity(0)) < 2:
        sys.exit("two_processes.py: two cores are needed")
    seconds = {variant: [] for variant in VARIANTS}
    for _ in range(arguments.rounds):
        for variant, num in VARIANTS.items():
            seconds[variant] += run_variant(num)
    print(f"{arguments.network}, {arguments.image_size} px, global batch {arguments.batch_size}, a core a process")
    print(f"{'variant':<12} {'s/step':>8} {'min':>8} {'max':>8} {'images/s':>9}")
    rates = {}
    for variant, values in seconds.items():
        median = statistics.median(values)
        rates[variant] = arguments.batch_size / median
        print(f"{variant:<12} {median:8.3f} {min(values):8.3f} {max(values):8.3f} {rates[variant]:9.1f}")
    one, two = rates["1 process"], rates["2 processes"]
    name = f"two processes on a core each against one, {arguments.network}"
    print(
        json.dumps(
            {"name": name, "value": two, "unit": "images/s", "reference": one, "ratio": two / one, "target": TARGET}
        )
    )


if __name__ == "__main__":
    main()
