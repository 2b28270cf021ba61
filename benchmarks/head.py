"""What a step of a head costs: forward, backward and update, against its three matrix products alone.

  python benchmarks/head.py                      # the rows of RESULTS.md
  python benchmarks/head.py --chart head.png     # memory and images/s over the number of identities, for each head

Each measurement runs in a process of its own: batch 128, 512 values, float32, one tower (the chart: two). The products
are W x^T and its gradients by x and by W, in the faster of the two layouts; a sampled head's have the step's rows.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

BATCH, SIZE = 128, 512
TARGETS = {"full": 2.0, "sampled": 2.5, "growth": 1.3}


def measure(head_name: str, identities: int, sample_rate: float, num_towers: int, steps: int) -> dict:
    """Seconds of each step and of each round of products, and the process's peak memory in bytes."""
    import keras
    import numpy as np
    import tensorflow as tf

    from towers.heads.replicated import ReplicatedHead
    from towers.heads.sharded import ShardedHead
    from towers.losses.margin import LogitForm
    from towers.runs import run
    from towers.training import margins, optimizers
    from towers.training.step import make_train_step

    towers = run.set_up(towers=num_towers, precision="float32", seed=1)
    random = np.random.default_rng(0)
    embeddings = random.normal(size=(BATCH, SIZE)).astype(np.float32)
    labels = random.integers(identities, size=BATCH)
    share = BATCH // num_towers

    def part(context):
        own = slice(context.replica_id_in_sync_group * share, (context.replica_id_in_sync_group + 1) * share)
        return {"image": tf.constant(embeddings[own]), "label": tf.constant(labels[own])}

    batch = towers.strategy.experimental_distribute_values_from_function(part)
    loss = margins.MarginLoss("arcface", LogitForm(), margins.FIXED_MARGINS["arcface"])
    with towers.scope():
        if head_name == "replicated":
            head = ReplicatedHead(identities, SIZE, use_bias=False, form=loss.form, seed=1)
    if head_name != "replicated":
        head = ShardedHead(
            towers,
            identities,
            SIZE,
            form=loss.form,
            seed=1,
            weight_decay=5e-4,
            sample_rate=sample_rate if head_name == "sampled" else None,
            largest_batch=BATCH,
        )
    # A network of one small layer: its products are 1 / 200 of those of 100,000 identities.
    with towers.scope():
        network = keras.Sequential([keras.Input((SIZE,)), keras.layers.Dense(SIZE, use_bias=False)])
        optimizer = optimizers.build("MOM")
        own = head.trainable_variables if head_name == "replicated" else []
        trained = [*network.trainable_variables, *own]
        optimizer.build(trained)
    train_step = make_train_step(
        towers,
        network,
        margins.make_objective(head, lambda batch: batch["image"], loss),
        optimizer,
        variables=trained,
        decayed=own,
        statistics=[],
        weight_decay=5e-4,
        head=None if own else head,
    )
    rate = tf.constant(0.1, tf.float64)
    seconds = timed(lambda number: train_step(batch, tf.constant(number, tf.int64), rate)[1]["loss"].numpy(), steps)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    rows = head.num_sampled if head_name == "sampled" else identities
    weights = tf.random.stateless_normal([rows, SIZE], [1, 2])
    features = tf.constant(embeddings)
    shares = tf.random.stateless_normal([rows, BATCH], [1, 2])

    @tf.function
    def products():
        logits = tf.matmul(weights, features, transpose_b=True)
        with tf.control_dependencies([logits]):
            by_embeddings = tf.matmul(shares, weights, transpose_a=True)
        with tf.control_dependencies([by_embeddings]):
            by_weights = tf.matmul(shares, features)
        return logits[0, 0] + by_embeddings[0, 0] + by_weights[0, 0]

    return {
        "step": seconds,
        "products": timed(lambda number: products().numpy(), steps),
        "peak": peak,
        "held": 2 * identities * SIZE * 4,
    }


def timed(function, steps: int) -> list[float]:
    seconds = []
    for number in range(steps + 2):
        started = time.perf_counter()
        function(number)
        seconds.append(time.perf_counter() - started)
    return seconds[2:]


def in_process(*arguments) -> dict:
    command = [sys.executable, __file__, "--measure", *map(str, arguments)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])


def report(name: str, found: dict, target: float | None, reference: float | None = None) -> None:
    value = statistics.median(found["step"])
    reference = statistics.median(found["products"]) if reference is None else reference
    print(f"{name}: {value:.3f} s a step, reference {reference:.3f} s, {value / reference:.2f} x", flush=True)
    line = {"name": name, "value": value, "unit": "s/step", "reference": reference, "ratio": value / reference}
    print(json.dumps({**line, "target": target}), flush=True)


def chart(path: Path, steps: int, most: int) -> None:
    """Memory as --dry_run reckons it, and images/s measured up to what fits here, beyond that from the cost model."""
    import head_chart

    sizes = {"batch": BATCH, "embedding_size": SIZE}
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    measured = {}
    for head_name in head_chart.HEADS:
        measured[head_name] = {}
        for count in head_chart.counts_that_fit(head_name, free, **sizes):
            if count <= most:
                found = in_process(head_name, count, head_chart.SAMPLE_RATE, head_chart.NUM_TOWERS, steps)
                measured[head_name][count] = statistics.median(found["step"])
                print(f"{head_name}, {count:,} identities: {measured[head_name][count]:.3f} s a step", flush=True)
    points = head_chart.draw(path, measured, **sizes)
    print(path)
    print(json.dumps({"name": "heads over the number of identities", **sizes, "points": points}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5, help="measured steps of each row")
    parser.add_argument(
        "--rows", nargs="+", choices=("full", "sampled", "growth"), default=("full", "sampled", "growth")
    )
    parser.add_argument(
        "--chart", type=Path, help="draw memory and images/s over the number of identities into this PNG"
    )
    parser.add_argument(
        "--most_identities", type=int, default=1_000_000, help="with --chart: measure no head of more than these"
    )
    parser.add_argument("--measure", nargs=5, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        name, identities, rate, num_towers, steps = arguments.measure
        print(json.dumps(measure(name, int(identities), float(rate), int(num_towers), int(steps))))
        return
    if arguments.chart:
        chart(arguments.chart, arguments.steps, arguments.most_identities)
        return
    if "full" in arguments.rows:
        report("full head, 100,000 identities", in_process("sharded", 100_000, 0, 1, arguments.steps), TARGETS["full"])
    if "sampled" in arguments.rows:
        found = in_process("sampled", 1_000_000, 0.1, 1, arguments.steps)
        report("sampled head, 1,000,000 identities, rate 0.1", found, TARGETS["sampled"])
        allowed = 1.25 * found["held"] + 1.5e9
        line = {"name": "peak memory of the same", "value": found["peak"], "unit": "B", "reference": found["held"]}
        print(json.dumps({**line, "ratio": found["peak"] / found["held"], "target": allowed / found["held"]}))
    if "growth" in arguments.rows:
        few = in_process("sampled", 100_000, 0.1, 1, arguments.steps)
        many = in_process("sampled", 2_000_000, 0.005, 1, arguments.steps)
        name = "10,000 sampled rows of 2,000,000 identities against 100,000"
        report(name, many, TARGETS["growth"], statistics.median(few["step"]))


if __name__ == "__main__":
    main()
