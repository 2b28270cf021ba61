"""What the towers cost: our step on one tower against a bare one, two CPU towers against one, and the gap at an epoch.

  python benchmarks/step_overhead.py                        # mobilefacenet, 112 px, global batch 64
  python benchmarks/step_overhead.py --network googlenet --image_size 84 --batch_size 32 --steps 8

Each variant runs in a process of its own, in turn, several rounds; the medians of all its steps are compared.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time

VARIANTS = ("bare", "1 tower", "2 towers")
AUXILIARY_LOSS_FACTOR = 0.3


def measure(variant: str, network: str, image_size: int, batch_size: int, steps: int) -> list[float]:
    """Seconds of each step of ``variant``, after two steps of warm-up."""
    import numpy as np
    import tensorflow as tf

    from towers import networks
    from towers.heads.replicated import ReplicatedHead
    from towers.networks import decayed_variables, moving_statistics
    from towers.runs import run
    from towers.training import optimizers
    from towers.training.classification import make_objective
    from towers.training.step import make_train_step

    num_towers = 2 if variant == "2 towers" else 1
    num_classes = 200
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (batch_size, image_size, image_size, 3)).astype(np.float32)
    labels = random.integers(num_classes, size=batch_size)
    towers = run.set_up(towers=num_towers, reduction="cpu", precision="float32", seed=1)
    auxiliary = network == "googlenet"

    def built():
        """The network, and a head for each of its outputs; the first is that of the embeddings."""
        size = networks.NETWORKS[network].embedding_size or 128
        model = networks.build(network, image_size=image_size, embedding_size=size, auxiliary=auxiliary)
        heads = [
            ReplicatedHead(num_classes, output.shape[-1], seed=index + 1, name=f"aux{index}" if index else "logits")
            for index, output in enumerate(model.outputs)
        ]
        return model, heads, [*model.trainable_variables, *(one for head in heads for one in head.trainable_variables)]

    if variant == "bare":
        model, heads, trained = built()
        trained = [variable.value for variable in trained]
        slots = [tf.Variable(tf.zeros_like(variable)) for variable in trained]

        @tf.function
        def bare_step(images, labels):
            with tf.GradientTape() as tape:
                loss = 0.0
                for index, features in enumerate(tf.nest.flatten(model(images, training=True))):
                    logits = heads[index].logits(features, heads[index].prepare(labels))
                    own = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
                    loss += own if index == 0 else AUXILIARY_LOSS_FACTOR * own
            for variable, slot, gradient in zip(trained, slots, tape.gradient(loss, trained), strict=True):
                tf.raw_ops.ResourceApplyMomentum(
                    var=variable.handle, accum=slot.handle, lr=0.05, grad=gradient, momentum=0.9, use_nesterov=True
                )
            return loss

        batch = tf.constant(images), tf.constant(labels)
        return timed(lambda step: bare_step(*batch).numpy(), steps)

    with towers.scope():
        model, heads, trained = built()
        optimizer = optimizers.build("MOM")
        optimizer.build(trained)
    train_step = make_train_step(
        towers,
        model,
        make_objective(
            heads[0],
            lambda batch: batch["image"],
            auxiliary_heads=heads[1:],
            auxiliary_loss_factor=AUXILIARY_LOSS_FACTOR,
        ),
        optimizer,
        variables=trained,
        decayed=[*decayed_variables(model), *(one for head in heads for one in head.decayed_variables)],
        statistics=moving_statistics(model),
        weight_decay=5e-4,
    )
    share = batch_size // num_towers

    def part(context):
        own = slice(context.replica_id_in_sync_group * share, (context.replica_id_in_sync_group + 1) * share)
        return {"image": tf.constant(images[own]), "label": tf.constant(labels[own])}

    batch = towers.strategy.experimental_distribute_values_from_function(part)
    rate = tf.constant(0.05, tf.float64)
    return timed(lambda step: train_step(batch, tf.constant(step, tf.int64), rate)[1]["loss"].numpy(), steps)


def timed(step, steps: int) -> list[float]:
    seconds = []
    for index in range(steps + 2):
        started = time.perf_counter()
        step(index)
        seconds.append(time.perf_counter() - started)
    return seconds[2:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="mobilefacenet")
    parser.add_argument("--image_size", type=int, default=112)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=5, help="measured steps a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--variant", choices=VARIANTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.variant:
        seconds = measure(
            arguments.variant, arguments.network, arguments.image_size, arguments.batch_size, arguments.steps
        )
        print(json.dumps(seconds))
        return

    seconds = {variant: [] for variant in VARIANTS}
    for _ in range(arguments.rounds):
        for variant in VARIANTS:
            output = subprocess.run(
                [sys.executable, __file__, *sys.argv[1:], "--variant", variant],
                capture_output=True,
                text=True,
                check=True,
            ).stdout
            seconds[variant] += json.loads(output.splitlines()[-1])
    medians = {variant: statistics.median(values) for variant, values in seconds.items()}
    print(f"{arguments.network}, {arguments.image_size} px, global batch {arguments.batch_size}")
    print(f"{'variant':<10} {'s/step':>8} {'min':>8} {'max':>8} {'images/s':>9}")
    for variant, values in seconds.items():
        median = medians[variant]
        print(f"{variant:<10} {median:8.3f} {min(values):8.3f} {max(values):8.3f} {arguments.batch_size / median:9.1f}")
    for name, value, reference, target in (
        ("one tower against a bare step", "1 tower", "bare", 1.05),
        ("two CPU towers against one", "2 towers", "1 tower", 1.10),
    ):
        print(
            json.dumps(
                {
                    "name": f"{name}, {arguments.network}",
                    "value": medians[value],
                    "unit": "s/step",
                    "reference": medians[reference],
                    "ratio": medians[value] / medians[reference],
                    "target": target,
                }
            )
        )


if __name__ == "__main__":
    main()
