"""Run by test_optimizers.py in a process of its own: writes what two towers hold after updates, as one .npz file."""

import sys

import keras
import numpy as np
import tensorflow as tf

from towers.heads.replicated import ReplicatedHead
from towers.losses.center import CenterTable
from towers.training import optimizers

NAMES = ["SGD", "MOM", "ADAGRAD", "ADADELTA", "ADAM", "RMSPROP", "keras.AdamW", "keras.Nadam"]


def copies(variable):
    return np.stack([component.numpy() for component in variable.value.values])


def main(inputs_path, outputs_path):
    inputs = np.load(inputs_path)
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with strategy.scope():
        # MEAN is what a layer may ask for; its assignment would merge over the towers.
        weights = {
            name: keras.Variable(inputs["weights"], dtype="float64", name=name.lower(), aggregation="mean")
            for name in NAMES
        }
        built = {name: optimizers.build(name) for name in NAMES}
        for name in NAMES:
            built[name].build([weights[name]])
        head = ReplicatedHead(4, 3, seed=0, dtype="float64")
        head_optimizer = optimizers.build("ADAM")
        head_optimizer.build(head.trainable_variables)
        table = CenterTable(4, 3, 0.6, "float64")

    def tower_step(gradient, rate, keep):
        for name in NAMES:
            optimizers.apply_updates(built[name], [gradient], [weights[name]], rate, keep)
        context = tf.distribute.get_replica_context()
        tower = int(tf.get_static_value(context.replica_id_in_sync_group))
        embeddings, labels = tf.constant(inputs["embeddings"][tower]), tf.constant(inputs["labels"][tower])
        with tf.GradientTape() as tape:
            rows = head.prepare(labels)
            loss = tf.reduce_sum(head.loss(embeddings, labels, rows))
        row_gradients = context.all_reduce("sum", tape.gradient(loss, list(rows)))
        optimizers.apply_updates(head_optimizer, row_gradients, head.trainable_variables, rate, keep)
        table.update(context.all_gather(embeddings, 0), context.all_gather(labels, 0), keep)

    step = tf.function(lambda gradient, rate, keep: strategy.run(tower_step, (gradient, rate, keep)))

    def held():
        variables = {f"weights/{name}": variable for name, variable in weights.items()} | head.variables()
        for name, optimizer in (*built.items(), ("head", head_optimizer)):
            variables |= {f"{name}/{key}": variable for key, variable in optimizers.state(optimizer).items()}
        return {key: copies(variable) for key, variable in (variables | table.variables()).items()}

    for gradient, rate in zip(inputs["gradients"], inputs["rates"], strict=True):
        step(tf.constant(gradient), tf.constant(rate, tf.float64), tf.constant(True))
    after = held()
    step(tf.constant(np.full_like(inputs["weights"], np.nan)), tf.constant(0.1, tf.float64), tf.constant(False))
    skipped = held()
    np.savez(outputs_path, **after, **{f"skipped/{key}": value for key, value in skipped.items()})


if __name__ == "__main__":
    main(*sys.argv[1:])
