"""What a step of a head costs: forward, backward and update, against its three matrix products alone.

  python benchmarks/head.py                      # the rows of RESULTS.md
  python benchmarks/head.py --chart head.png     # memory and time over the number of identities, for each head

Each measurement runs in a process of its own: batch 128, 512 values, float32, one tower. The products are W x^T, its
gradients by x and by W, in the faster of the two layouts; a sampled head's have the rows of a step.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

BATCH, SIZE = 128, 512
TARGETS = {"full": 2.0, "sampled": 2.5, "growth": 1.3}


def measure(head_name: str, identities: int, sample_rate: float, steps: int) -> dict:
    """Seconds of each step and of each round of products, and the process's peak memory in bytes."""
    import numpy as np
    import tensorflow as tf

    from towers.heads.sharded import ShardedHead
    from towers.losses.margin import LogitForm, Margin
    from towers.runs import run

    towers = run.set_up(towers=1, precision="float32", seed=1)
    random = np.random.default_rng(0)
    embeddings = tf.constant(random.normal(size=(BATCH, SIZE)), tf.float32)
    labels = tf.constant(random.integers(identities, size=BATCH))
    rate = sample_rate if head_name == "sampled" else None
    head = ShardedHead(
        towers,
        identities,
        SIZE,
        form=LogitForm(),
        seed=1,
        weight_decay=5e-4,
        sample_rate=rate,
        largest_batch=BATCH,
    )

    @tf.function(autograph=False)
    def step(embeddings, labels, number):
        return towers.run(tower_step, embeddings, labels, number)

    def tower_step(embeddings, labels, number):
        rows = head.prepare(labels, number)
        losses, _ = head.classify(embeddings, labels, rows, Margin(angles=0.5))
        by_rows, by_embeddings = tf.gradients(tf.reduce_mean(losses), [rows.weights, embeddings])
        keep = tf.math.is_finite(tf.linalg.global_norm([by_rows, by_embeddings]))
        head.apply(rows, by_rows, tf.constant(0.1), keep)
        return tf.reduce_mean(losses)

    seconds = timed(lambda number: step(embeddings, labels, tf.constant(number, tf.int64)).numpy(), steps)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    rows = identities if rate is None else head.num_sampled
    weights = tf.random.stateless_normal([rows, SIZE], [1, 2])
    shares = tf.random.stateless_normal([rows, BATCH], [1, 2])

    @tf.function
    def products():
        logits = tf.matmul(weights, embeddings, transpose_b=True)
        with tf.control_dependencies([logits]):
            by_embeddings = tf.matmul(shares, weights, transpose_a=True)
        with tf.control_dependencies([by_embeddings]):
            by_weights = tf.matmul(shares, embeddings)
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


def chart(path: Path, steps: int) -> None:
    """Seconds a step and peak memory over the number of identities."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (times, memory) = pyplot.subplots(1, 2, figsize=(10, 4))
    for head_name in ("full", "sampled"):
        counts = [10_000, 30_000, 100_000, 300_000] + ([1_000_000] if head_name == "sampled" else [])
        found = [in_process(head_name, count, 0.1, steps) for count in counts]
        speed = [BATCH / statistics.median(one["step"]) for one in found]
        times.loglog(counts, speed, marker="o", label=head_name)
        memory.loglog(counts, [one["peak"] / 1e9 for one in found], marker="o", label=head_name)
    times.set(xlabel="identities", ylabel="images/s through the head")
    memory.set(xlabel="identities", ylabel="peak memory of the process, GB")
    times.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    print(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5, help="measured steps of each row")
    parser.add_argument(
        "--rows", nargs="+", choices=("full", "sampled", "growth"), default=("full", "sampled", "growth")
    )
    parser.add_argument("--chart", type=Path, help="draw time and memory over the number of identities into this file")
    parser.add_argument("--measure", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        name, identities, rate, steps = arguments.measure
        print(json.dumps(measure(name, int(identities), float(rate), int(steps))))
        return
    if arguments.chart:
        chart(arguments.chart, arguments.steps)
        return
    if "full" in arguments.rows:
        report("full head, 100,000 identities", in_process("full", 100_000, 0, arguments.steps), TARGETS["full"])
    if "sampled" in arguments.rows:
        found = in_process("sampled", 1_000_000, 0.1, arguments.steps)
        report("sampled head, 1,000,000 identities, rate 0.1", found, TARGETS["sampled"])
        allowed = 1.25 * found["held"] + 1.5e9
        line = {"name": "peak memory of the same", "value": found["peak"], "unit": "B", "reference": found["held"]}
        print(json.dumps({**line, "ratio": found["peak"] / found["held"], "target": allowed / found["held"]}))
    if "growth" in arguments.rows:
        few = in_process("sampled", 100_000, 0.1, arguments.steps)
        many = in_process("sampled", 2_000_000, 0.005, arguments.steps)
        name = "10,000 sampled rows of 2,000,000 identities against 100,000"
        report(name, many, TARGETS["growth"], statistics.median(few["step"]))


if __name__ == "__main__":
    main()
