"""Run by test_towers.py in a process of its own: networks on two towers against one tower with the whole batch."""

import json
import sys

import keras
import numpy as np
import tensorflow as tf

from towers.distribution import Towers, tower_index
from towers.networks import build
from towers.networks.iresnet import iresnet
from towers.networks.layers import BatchNormalization, PairConv2D, PReLU, ScaledAdd, Standardization


def every_layer():
    """A network of all our layers; the small one lacks some."""
    images = keras.Input((28, 28, 3))
    x = Standardization("per_image")(images)
    x = keras.layers.Conv2D(4, 3, 4, use_bias=False, kernel_initializer=keras.initializers.HeNormal(seed=1))(x)
    x = PReLU()(BatchNormalization(synchronized=True)(x))
    x = ScaledAdd(0.5)([x, PairConv2D(3, keras.initializers.HeNormal(seed=2))(x)])
    x = BatchNormalization(synchronized=True, scale=False)(keras.layers.Flatten()(x))
    return keras.Model(images, x)


def gradients_of(network, images, factors):
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(network(images, training=True) ** 3 * factors)
    return [loss, *tape.gradient(loss, [variable.value for variable in network.trainable_variables])]


def compare(towers, make):
    rng = np.random.default_rng(0)
    with towers.scope():
        spread = make()
    whole = make()
    whole.set_weights(spread.get_weights())
    images = rng.uniform(0, 255, (8, 28, 28, 3))
    images[4:] *= 0.3
    factors = rng.normal(size=(8, spread.output_shape[-1]))

    def tower_step():
        own = slice(4 * tower_index(), 4 * tower_index() + 4)
        return towers.sum_gradients(gradients_of(spread, tf.constant(images[own]), tf.constant(factors[own])))

    got = [towers.local_values(value)[0] for value in tf.function(lambda: towers.run(tower_step))()]
    want = gradients_of(whole, tf.constant(images), tf.constant(factors))
    copies = [[copy.numpy() for copy in towers.local_values(v.value)] for v in spread.non_trainable_variables]
    scale = max(float(np.abs(value).max()) for value in want[1:])
    return {
        "loss": float(abs(got[0] / want[0] - 1)),
        "gradients": max(float(np.abs(a - b).max()) for a, b in zip(got[1:], want[1:], strict=True)) / scale,
        "statistics": max(
            float(np.abs(copy - variable.numpy()).max())
            for parts, variable in zip(copies, whole.non_trainable_variables, strict=True)
            for copy in parts
        ),
    }


def local_statistics(towers):
    """Moving means of the two towers of a network without synchronisation, fed with 0 and with 255."""
    with towers.scope():
        layer = BatchNormalization(momentum=0.0)
        layer.build((None, 2))
    towers.run(lambda: layer(tf.fill([4, 2], tf.constant(10.0 * tower_index(), tf.float64)), training=True))
    return [float(copy.numpy()[0]) for copy in towers.local_values(layer.moving_mean.value)]


if __name__ == "__main__":
    keras.mixed_precision.set_dtype_policy("float64")
    two = Towers.create(num_towers=2)
    small = compare(two, lambda: build("small", image_size=28, embedding_size=6, sync_bn=True))
    smallest = compare(two, lambda: iresnet(28, 6, 1.0, True, "fixed", 0, "E", units=(1, 1, 1, 1)))
    json.dump(
        {"small": small, "iresnet": smallest, "every_layer": compare(two, every_layer), "local": local_statistics(two)},
        sys.stdout,
    )
