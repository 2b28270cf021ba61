"""A process of the triplet tests: one step on some number of towers; losses and gradients to a .npz file.

  python triplet_towers.py 2 out.npz

The network is one matrix and its input one picture a row of the unit matrix, so the gradient of the matrix holds the
gradient of every picture's embedding.
"""

import sys

import keras
import numpy as np
import tensorflow as tf

from towers.distribution import Towers
from towers.losses.triplet import MINING_RULES
from towers.training import optimizers
from towers.training.step import make_train_step
from towers.training.triplets import make_objective

NUM_PEOPLE, NUM_IMAGES, SIZE = 8, 6, 5
ALPHA, SEED = 0.3, 11
SETTINGS = [
    *(("float64", mining, False, "global") for mining in MINING_RULES),
    # One rule of each kind where all take the same way: tracing on several towers takes seconds.
    ("float32", "facenet", False, "global"),
    ("float32", "batch_all", False, "global"),
    ("float64", "facenet", False, "tower"),
    ("float64", "batch_hard", True, "tower"),
]


def batch() -> dict[str, np.ndarray]:
    """Un-normalised embeddings [B, D], labels and positions [B]; whole people follow each other."""
    random = np.random.default_rng(0)
    labels = np.repeat(random.permutation(NUM_PEOPLE), NUM_IMAGES)
    embeddings = 2 * random.normal(size=(NUM_PEOPLE, SIZE))[labels] + 2 * random.normal(size=(len(labels), SIZE))
    return {"embeddings": embeddings, "label": labels, "position": 2**33 + np.arange(len(labels))}


def one_step(towers, dtype, mining, soft_margin, scope) -> dict[str, np.ndarray]:
    """Loss, gradient [B, D] of the un-normalised embeddings, and metrics [R]."""
    whole = batch()
    num = len(whole["label"])
    keras.config.set_floatx(dtype)
    keras.mixed_precision.set_dtype_policy(dtype)
    with towers.scope():
        network = keras.Sequential([keras.Input((num,)), keras.layers.Dense(SIZE, use_bias=False)])
        network.set_weights([whole["embeddings"]])
        optimizer = optimizers.build("SGD")
        optimizer.build(network.trainable_variables)
    objective = make_objective(
        lambda part: part["image"],
        mining=mining,
        mining_scope=scope,
        alpha=ALPHA,
        soft_margin=soft_margin,
        seed=SEED,
    )
    step = make_train_step(
        towers, network, objective, optimizer, variables=network.trainable_variables, decayed=[], statistics=[]
    )
    share = num // towers.num_towers

    def part(context):
        own = slice(context.replica_id_in_sync_group * share, (context.replica_id_in_sync_group + 1) * share)
        return {
            "image": tf.constant(np.eye(num)[own], dtype),
            "label": tf.constant(whole["label"][own]),
            "position": tf.constant(whole["position"][own]),
        }

    spread = towers.strategy.experimental_distribute_values_from_function(part)
    before = network.get_weights()[0]
    per_tower, shared = step(spread, tf.constant(0, tf.int64), tf.constant(1.0, tf.float64))
    values = {**per_tower, "loss": shared["loss"], "gradient": before - network.get_weights()[0]}
    return {name: np.asarray(value) for name, value in values.items()}


def main(num_towers: int) -> dict[str, np.ndarray]:
    towers = Towers.create(num_towers)
    return {
        "/".join(map(str, (*setting, name))): value
        for setting in SETTINGS
        if setting[-1] == "global" or num_towers == 2
        for name, value in one_step(towers, *setting).items()
    }


if __name__ == "__main__":
    np.savez(sys.argv[2], **main(int(sys.argv[1])))
