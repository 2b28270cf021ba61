"""What selecting classes costs in accuracy: 200 of 5,000 look-alike classes a step, against a softmax over all of them.

  python benchmarks/selected_accuracy.py               three seeds of each way to choose
  python benchmarks/selected_accuracy.py --seeds 1     one seed

The classes come in families of 20 that differ little: a class is a point of a 24-d latent space near the point of its
family. An example is the class's point with noise, seen through a fixed random two-layer network; a dense network of
256 units learns embeddings of 64 values by CosFace. Ways differ in nothing but the classes of a step. Accuracy is that
of unseen examples, over all 5,000 classes.
"""

import argparse
import json
import os
import statistics
import time

# Before TensorFlow, as in the trainers, so that it starts without a word.
from towers.runs import run

# isort: split
import keras
import numpy as np
import tensorflow as tf

from towers.classcenters.indexes import forest, ivf
from towers.classcenters.indexes.ranking import unit
from towers.classcenters.selection import Settings
from towers.classcenters.spec import MatrixSpec
from towers.classcenters.store import memory_store
from towers.heads.selected import SelectedHead
from towers.training import margins, optimizers
from towers.training.step import make_train_step

CLASSES, FAMILY, LATENT, INPUT, D = 5_000, 20, 24, 64, 64
BATCH, SELECTED, INTERVAL, BREADTH, TARGET = 50, 200, 20, 12, 0.01
SPREAD, NOISE, RATE, DECAY = 0.4, 0.22, 0.3, 2e-4

# Number of selected classes, function that builds the index, and query.
WAYS = {
    "full softmax": (CLASSES, None, "center"),
    "forest, features": (
        SELECTED,
        lambda points, breadth, **more: forest.build(points, num_trees=breadth, **more),
        "features",
    ),
    "ivf, features": (
        SELECTED,
        lambda points, breadth, **more: ivf.build(points, probes=breadth, **more),
        "features",
    ),
    "ivf, center": (
        SELECTED,
        lambda points, breadth, **more: ivf.build(points, probes=breadth, **more),
        "center",
    ),
    "random": (SELECTED, None, "center"),
}


class Examples:
    """Examples of the classes, without end."""

    def __init__(self, seed: int):
        random = np.random.default_rng(seed)
        families = unit(random.standard_normal((CLASSES // FAMILY, LATENT)))
        offsets = unit(random.standard_normal((CLASSES, LATENT)))
        self.points = np.repeat(families, FAMILY, axis=0) + SPREAD * offsets
        self.first = random.standard_normal((LATENT, 2 * INPUT)).astype(np.float32)
        self.second = random.standard_normal((2 * INPUT, INPUT)).astype(np.float32) / np.sqrt(INPUT)

    def draw(self, labels: np.ndarray, random) -> np.ndarray:
        """float32 [n, 64]."""
        noise = random.standard_normal((len(labels), LATENT), np.float32)
        return np.tanh((self.points[labels] + NOISE / np.sqrt(LATENT) * noise) @ self.first) @ self.second


def batches(examples: Examples, seed: int, steps: int):
    random = np.random.default_rng([seed, 1])
    order = np.concatenate([random.permutation(CLASSES) for _ in range(-(-steps * BATCH // CLASSES))])
    for step in range(steps):
        labels = order[step * BATCH : (step + 1) * BATCH]
        yield {"image": tf.constant(examples.draw(labels, random)), "label": tf.constant(labels)}


def train(towers, way: str, seed: int, steps: int) -> tuple[float, float]:
    """Accuracy on unseen examples, and seconds a step."""
    num_selected, build, query = WAYS[way]
    loss = margins.chosen_loss(
        loss="cosface",
        margin_m1=None,
        margin_m2=None,
        margin_m3=0.1,
        scale=32.0,
        sub_centres=1,
        interclass_filtering_threshold=0.0,
        logits_chunk=0,
    )
    store = memory_store()
    store.create("centres", MatrixSpec(rows=CLASSES, columns=D, seed=seed, weight_decay=DECAY))
    head = SelectedHead(
        towers,
        store,
        "centres",
        form=loss.form,
        settings=Settings(num_selected, BREADTH, INTERVAL),
        query=query,
        build=build,
        wait=True,
        seed=seed,
    )
    keras.utils.set_random_seed(seed)
    with towers.scope():
        network = keras.Sequential(
            [keras.Input((INPUT,)), keras.layers.Dense(256, activation="relu"), keras.layers.Dense(D)]
        )
        optimizer = optimizers.build("MOM")
        optimizer.build(network.trainable_variables)
    train_step = head.around(
        make_train_step(
            towers,
            network,
            margins.make_objective(head, lambda batch: batch["image"], loss),
            optimizer,
            variables=network.trainable_variables,
            decayed=network.trainable_variables,
            statistics=[],
            weight_decay=DECAY,
            head=head,
        )
    )
    examples = Examples(seed)
    started = time.perf_counter()
    for step, batch in enumerate(head.follow(batches(examples, seed, steps))):
        rate = RATE * 0.5 * (1 + np.cos(np.pi * step / steps))
        train_step(batch, tf.constant(step, tf.int64), tf.constant(rate, tf.float64))
    seconds = (time.perf_counter() - started) / steps
    return accuracy(network, head, examples, seed), seconds


def accuracy(network, head, examples: Examples, seed: int) -> float:
    """Share of four unseen examples of each class that come nearest to their own centre."""
    labels = np.repeat(np.arange(CLASSES), 4)
    centres, right = unit(head.export()), 0
    unseen = examples.draw(labels, np.random.default_rng([seed, 2]))
    for start in range(0, len(labels), 2_000):
        own = slice(start, start + 2_000)
        nearest = (network(unseen[own]).numpy() @ centres.T).argmax(axis=1)
        right += np.count_nonzero(nearest == labels[own])
    return right / len(labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=4_000, help="of each training")
    arguments = parser.parse_args()
    towers = run.set_up(towers=1, precision="float32", seed=1)
    print(f"{SELECTED} of {CLASSES:,} classes, {arguments.steps} steps of {BATCH}, {os.cpu_count()} cores")
    print(f"{'':6}" + "".join(f"{way:>20}" for way in WAYS) + "   ms a step")
    found = {way: [] for way in WAYS}
    for seed in arguments.seeds:
        print(f"seed {seed}", end="", flush=True)
        milliseconds = []
        for way in WAYS:
            share, seconds = train(towers, way, seed, arguments.steps)
            found[way].append(share)
            milliseconds.append(f"{1000 * seconds:.0f}")
            print(f"{share:20.4f}", end="", flush=True)
        print("  ", ", ".join(milliseconds), flush=True)
    means = {way: statistics.mean(shares) for way, shares in found.items()}
    print("mean  " + "".join(f"{mean:20.4f}" for mean in means.values()))
    selected = [way for way in means if way not in ("full softmax", "random")]
    worst = min(selected, key=means.get)
    result = {"name": f"accuracy, full softmax less {worst}", "value": means["full softmax"] - means[worst], "unit": ""}
    more = {"reference": means["full softmax"], "ratio": means[worst] / means["full softmax"], "target": TARGET}
    print(json.dumps({**result, **more, "random": means["random"], "accuracies": found}))


if __name__ == "__main__":
    main()
