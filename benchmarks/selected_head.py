"""What a step of the selected head costs as classes grow: 10,000 selected of 100,000 to 4 million, 128 values each.

  python benchmarks/selected_head.py                       100 k, 1 M, 4 M in memory, and the 4 M in a mapped file
  python benchmarks/selected_head.py --classes 20000 100000 --selected 2000
  python benchmarks/selected_head.py --classes 10000 100000 1000000 --selected 1000 --beside
                                                           and the heads that hold all classes beside the network

A step of 128 examples searches their classes in an inverted file that was built before, pulls their rows, makes forward
and backward pass of the head, and pushes the gradients, one after the other: nothing hides behind a network, as it does
in training. The stores have made some hundred steps before. The sizes take turns of a few steps, and medians are
compared; the first step of a turn, which meets cold caches and no write of the step before, does not count.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

# Before NumPy, as in the trainers: the threads of its products then sleep between two of them.
from towers.runs import run

# isort: split
import keras
import numpy as np
import tensorflow as tf

from towers.classcenters.following import snapshot
from towers.classcenters.indexes import ivf
from towers.classcenters.selection import Settings
from towers.classcenters.spec import MatrixSpec
from towers.classcenters.store import mapped_store, memory_store
from towers.heads.selected import SelectedHead
from towers.heads.sharded import ShardedHead
from towers.losses.margin import LogitForm, Margin
from towers.training import optimizers
from towers.training.step import TowerLosses, make_train_step

BATCH, D, TARGET, NAME = 128, 128, 1.5, "centres"
SAMPLE_RATE = 0.1


def step_of(towers, head):
    """The step of a head and of a network of one small layer, which is a hundredth of the head's work."""
    with towers.scope():
        network = keras.Sequential([keras.Input((D,)), keras.layers.Dense(D, use_bias=False)])
        optimizer = optimizers.build("SGD")
        optimizer.build(network.trainable_variables)

    def objective(network, batch):
        losses, hits = head.classify(network(batch["image"]), batch["label"], batch["rows"], Margin())
        return TowerLosses(losses, tf.ones_like(losses), {"accuracy": tf.reduce_mean(hits)})

    variables = network.trainable_variables
    return make_train_step(
        towers, network, objective, optimizer, variables=variables, decayed=[], statistics=[], head=head
    )


def arguments_of_step(number: int, num_classes: int) -> tuple:
    random = np.random.default_rng(number)
    labels = tf.constant(random.integers(0, num_classes, BATCH))
    batch = {"image": tf.constant(random.standard_normal((BATCH, D), np.float32)), "label": labels}
    return batch, tf.constant(number, tf.int64), tf.constant(0.1, tf.float64)


class Held:
    """A head that holds all classes beside the network, of which a step sees all or a share, and its steps' times."""

    def __init__(self, towers, num_classes: int, sample_rate: float | None):
        head = ShardedHead(
            towers,
            num_classes,
            D,
            form=LogitForm(),
            seed=1,
            weight_decay=5e-4,
            sample_rate=sample_rate,
            largest_batch=BATCH,
        )
        self.train_step, self.num_classes = step_of(towers, head), num_classes
        self.seconds = {"step": []}

    def turn(self, first: int, steps: int) -> None:
        for number in range(first, first + steps + 1):
            started = time.perf_counter()
            self.train_step(*arguments_of_step(number, self.num_classes))[1]["loss"].numpy()
            if number > first:
                self.seconds["step"].append(time.perf_counter() - started)


class Measured:
    """A head of its own size, and the times of its steps.

    Args:
      index: over the first values of the centres; None: it is built here.
    """

    def __init__(self, towers, store, num_classes: int, num_selected: int, index=None):
        store.create(NAME, MatrixSpec(rows=num_classes, columns=D, weight_decay=5e-4))
        self.build_seconds = 0.0
        if index is None:
            started = time.perf_counter()
            index = ivf.build(snapshot(store, NAME, normalised=True), iterations=1)
            self.build_seconds = time.perf_counter() - started
        self.head = SelectedHead(towers, store, NAME, form=LogitForm(), settings=Settings(num_selected, 8, 1))
        self.head.selector.index = index
        self.seconds = {"step": [], "search": [], "pull": [], "push": []}
        self.step = self.timed("step", self.step)
        self.head.selector.select = self.timed("search", self.head.selector.select)
        store.pull, store.push = self.timed("pull", store.pull), self.timed("push", store.push)
        self.train_step = self.head.around(step_of(towers, self.head))
        self.num_classes = num_classes

    def timed(self, part: str, function):
        def timed_function(*arguments, **named):
            started = time.perf_counter()
            found = function(*arguments, **named)
            # Before the search the centres of the labels alone are pulled, which are few.
            if part != "pull" or len(found) > BATCH:
                self.seconds[part].append(time.perf_counter() - started)
            return found

        return timed_function

    def step(self, number: int) -> None:
        self.train_step(*arguments_of_step(number, self.num_classes))
        self.head.settle()

    def age(self, steps: int, rows: int) -> None:
        """Steps of the store alone, of rows drawn at random, so that it is as it is in the middle of a training.

        Rows have then missed different numbers of steps, and most pages of a file have been changed and saved.
        """
        random = np.random.default_rng(1)
        nothing = np.zeros((rows, D), np.float32)
        for _ in range(steps):
            chosen = np.sort(random.choice(self.num_classes, rows, replace=False, shuffle=False))
            # Of the matrix, since the store's own push is timed.
            self.head.store.matrix(NAME).push(chosen, nothing, 0.1)

    def turn(self, first: int, steps: int) -> None:
        """Measured steps, after one that is not. What they leave to be written is not the next one's to wait for."""
        for number in range(first, first + steps + 1):
            self.step(number)
        for seconds in self.seconds.values():
            del seconds[-steps - 1]
        self.head.store.matrix(NAME).settle()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, nargs="+", default=[100_000, 1_000_000, 4_000_000], help="growing")
    parser.add_argument("--selected", type=int, default=10_000, help="classes of a step")
    parser.add_argument("--turns", type=int, default=6, help="of each size")
    parser.add_argument("--steps", type=int, default=6, help="measured ones of a turn")
    parser.add_argument("--before", type=int, default=600, help="steps of the store alone before those")
    parser.add_argument("--folder", type=Path, help="of the mapped file (default: a temporary one)")
    parser.add_argument("--beside", action="store_true", help="time heads that hold all classes, too; no mapped file")
    parser.add_argument("--waiting_gb", type=float, help="memory for rows that wait to be written to it, GB")
    arguments = parser.parse_args()
    if arguments.selected <= BATCH:
        parser.error(f"--selected {arguments.selected}: give more than the {BATCH} examples of a step")
    towers = run.set_up(towers=1, precision="float32", seed=1)
    if arguments.beside:
        return compare(towers, arguments)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        measured = {}
        for count in arguments.classes:
            measured[f"{count:,}"] = Measured(towers, memory_store(), count, arguments.selected)
        index = measured[f"{count:,}"].head.selector.index
        mapped = f"{count:,}, mapped file"
        waiting = {} if arguments.waiting_gb is None else {"waiting_bytes": int(1e9 * arguments.waiting_gb)}
        measured[mapped] = Measured(towers, mapped_store(Path(folder), **waiting), count, arguments.selected, index)
        # What this leaves unsaved is not a step's, nor is the first touch of what has lain idle while the indexes were
        # built: a virtual machine's host may have to map it again, page by page, at 3 us each. In training the snapshot
        # of each rebuild touches all.
        for one in measured.values():
            one.age(arguments.before, arguments.selected)
            one.head.selector.index.points.values.max()
        os.sync()
        # The first turn traces the graph.
        for number in range(arguments.turns + 1):
            for one in measured.values():
                one.turn(number * (arguments.steps + 1), arguments.steps)
    print(f"{arguments.selected:,} selected, {BATCH} examples x {D}, {os.cpu_count()} cores")
    parts = ("step", "search", "pull", "push")
    print(f"{'classes':>22}", *(f"{part + ', ms':>10}" for part in parts), f"{'x first':>8} {'index built, s':>15}")
    medians = {}
    for name, one in measured.items():
        times = {part: statistics.median(one.seconds[part][arguments.steps :]) for part in parts}
        medians[name] = times["step"]
        growth = medians[name] / next(iter(medians.values()))
        print(f"{name:>22}", *(f"{1000 * times[part]:10.1f}" for part in parts), end=" ")
        print(f"{growth:8.2f} {one.build_seconds:15.1f}")
    first, last = f"{arguments.classes[0]:,}", f"{arguments.classes[-1]:,}"
    result = {"name": f"head step of {last} classes against {first}", "value": medians[last], "unit": "s/step"}
    more = {"reference": medians[first], "ratio": medians[last] / medians[first], "target": TARGET}
    print(json.dumps({**result, **more, "mapped": medians[mapped] / medians[first]}))


def compare(towers, arguments) -> None:
    """Print times of the selected head and of those that hold all classes, and a line of JSON."""
    selected, full, sampled = f"{arguments.selected:,} selected", "all", f"a {SAMPLE_RATE:.0%} sample"
    print(f"{BATCH} examples x {D}, {os.cpu_count()} cores, ms a step")
    print(f"{'classes':>12}{selected:>20}{full:>20}{sampled:>20}")
    found = {}
    for count in arguments.classes:
        heads = {
            selected: Measured(towers, memory_store(), count, arguments.selected),
            full: Held(towers, count, None),
            sampled: Held(towers, count, SAMPLE_RATE),
        }
        heads[selected].age(arguments.before, arguments.selected)
        for number in range(arguments.turns + 1):
            for one in heads.values():
                one.turn(number * (arguments.steps + 1), arguments.steps)
        found[count] = {name: statistics.median(one.seconds["step"][arguments.steps :]) for name, one in heads.items()}
        print(f"{count:12,}" + "".join(f"{1000 * seconds:20.1f}" for seconds in found[count].values()), flush=True)
    last = found[arguments.classes[-1]]
    name = f"head step, {selected} of {arguments.classes[-1]:,} against all"
    result = {"name": name, "value": last[selected], "unit": "s/step", "reference": last[full]}
    print(json.dumps({**result, "ratio": last[selected] / last[full], "seconds": found}))


if __name__ == "__main__":
    main()
