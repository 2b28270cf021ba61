"""What mining costs: loss and gradient of P x K embeddings by every rule, beside the step that trains on the pictures.

  python benchmarks/mining.py            45 people x 40 pictures, 128-d, network small at 112 pixels
  python benchmarks/mining.py --quick    9 people x 20 pictures at 56 pixels

Each rule is timed with its distances, its choice and its gradient for the embeddings. The step's forward and backward
pass runs in micro-batches, whose times are added up; FaceNet's loop is the selection alone, in NumPy. Rules and step
take turns, and medians are compared, so that other work on the machine weighs on both.
"""

import argparse
import json
import os
import resource
import statistics
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf

from towers import networks
from towers.losses.triplet import MINING_RULES, Embedded, triplet_losses

ALPHA, SIZE = 0.2, 128


def facenet_loop(embeddings: np.ndarray, num_images: int, alpha: float, random) -> list[tuple[int, int, int]]:
    """facenet's select_triplets with the distance row of an anchor taken once and no copies that it does not need."""
    triplets = []
    for first in range(0, len(embeddings), num_images):
        for a in range(first, first + num_images - 1):
            row = np.sum((embeddings - embeddings[a]) ** 2, axis=1)
            positives = row[first : first + num_images].copy()
            row[first : first + num_images] = np.inf
            for p in range(a + 1, first + num_images):
                violators = np.flatnonzero(row < positives[p - first] + alpha)
                if len(violators):
                    triplets.append((a, p, violators[random.integers(len(violators))]))
    return triplets


def rule_of(mining: str, soft_margin: bool, labels: tf.Tensor):
    """Function of embeddings [B, D] to the loss and its gradient."""
    positions = tf.range(len(labels), dtype=tf.int64)

    @tf.function
    def loss_and_gradient(embeddings):
        with tf.GradientTape() as tape:
            tape.watch(embeddings)
            batch = Embedded(embeddings, labels, positions)
            found = triplet_losses(batch, batch, mining=mining, alpha=ALPHA, soft_margin=soft_margin)
            loss = tf.reduce_sum(found.losses) / tf.maximum(tf.reduce_sum(found.weights), 1.0)
        return tf.reduce_sum(tape.gradient(loss, embeddings)), found.metrics["active"]

    return loss_and_gradient


def step_of(image_size: int):
    """Function of pictures [b, H, W, 3] that runs the network forward and backward."""
    network = networks.build("small", image_size=image_size, embedding_size=SIZE)
    trained = [variable.value for variable in network.trainable_variables]

    @tf.function
    def step(images):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(network(images, training=True) ** 2)
        return [tf.reduce_sum(gradient) for gradient in tape.gradient(loss, trained)]

    return step


def timed(function, *arguments) -> float:
    started = time.perf_counter()
    tf.nest.map_structure(np.asarray, function(*arguments))
    return time.perf_counter() - started


def memory_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--people", type=int, default=45)
    parser.add_argument("--images_per_person", type=int, default=40)
    parser.add_argument("--image_size", type=int, default=112, help="pixels")
    parser.add_argument("--micro_batch", type=int, default=100, help="pictures of the step that run at once")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="9 x 20 pictures at 56 pixels, micro-batches of 60")
    arguments = parser.parse_args()
    people, images_per_person = arguments.people, arguments.images_per_person
    image_size, micro_batch = arguments.image_size, arguments.micro_batch
    if arguments.quick:
        people, images_per_person, image_size, micro_batch = 9, 20, 56, 60
    num_images = people * images_per_person
    if num_images % micro_batch:
        parser.error(f"--micro_batch {micro_batch}: {people} x {images_per_person} pictures are no multiple of it")

    # A function a rule is meant; TensorFlow takes it for one that is traced anew each time.
    tf.get_logger().setLevel("ERROR")
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(people), images_per_person)
    rows = 0.7 * random.normal(size=(people, SIZE))[labels] + random.normal(size=(num_images, SIZE))
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    embeddings, keys = tf.constant(rows), tf.constant(labels, tf.int64)
    settings = [*((rule, False) for rule in MINING_RULES), ("batch_hard", True)]
    names = [rule + (", soft margin" if soft_margin else "") for rule, soft_margin in settings]
    rules = dict(zip(names, (rule_of(*setting, keys) for setting in settings), strict=True))

    before = memory_mib()
    active = {name: float(rule(embeddings)[1]) for name, rule in rules.items()}
    memory = memory_mib() - before
    step = step_of(image_size)
    pictures = tf.constant(random.uniform(0, 255, (micro_batch, image_size, image_size, 3)), tf.float32)
    step(pictures)
    seconds = {name: [] for name in [*rules, "loop", "step"]}
    for _ in range(arguments.rounds):
        for name, rule in rules.items():
            seconds[name] += [timed(rule, embeddings) for _ in range(3)]
        seconds["loop"].append(timed(lambda: len(facenet_loop(rows, images_per_person, ALPHA, random))))
        seconds["step"].append(sum(timed(step, pictures) for _ in range(num_images // micro_batch)))

    medians = {name: statistics.median(values) for name, values in seconds.items()}
    pairs = people * images_per_person * (images_per_person - 1) // 2
    print(f"{people} x {images_per_person} = {num_images} embeddings, {SIZE}-d, {pairs} pairs; alpha {ALPHA}")
    print(f"memory while all rules were traced and run once: {memory:.0f} MiB more")
    print(f"{'what':<32} {'ms':>9} {'min':>9} {'max':>9} {'of a step':>9} {'active':>7}")
    lines = {name: name for name in rules}
    lines["loop"] = "FaceNet's loop, NumPy"
    lines["step"] = f"step of small, {image_size} px"
    for name, line in lines.items():
        times = [1000 * value for value in seconds[name]]
        share = medians[name] / medians["step"]
        shown = f"{active[name]:7.3f}" if name in active else ""
        print(f"{line:<32} {1000 * medians[name]:9.1f} {min(times):9.1f} {max(times):9.1f} {share:9.4f} {shown}")
    questions = [(f"mining {name}, share of a step", name, "step", 0.05) for name in rules]
    questions.append(("mining facenet against FaceNet's loop", "facenet", "loop", 1.0))
    for question, value, reference, target in questions:
        print(
            json.dumps(
                {
                    "name": f"{question}, {num_images} x {SIZE}",
                    "value": 1000 * medians[value],
                    "unit": "ms",
                    "reference": 1000 * medians[reference],
                    "ratio": medians[value] / medians[reference],
                    "target": target,
                }
            )
        )


if __name__ == "__main__":
    main()
