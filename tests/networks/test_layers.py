import keras
import numpy as np
import pytest
import tensorflow as tf

from towers.networks.layers import (
    BatchNormalization,
    NormAwareWeights,
    PairConv2D,
    PReLU,
    ScaledAdd,
    Standardization,
    kaiming_fan_out,
    layer_seed,
)


def random(*shape, seed=0, dtype="float32"):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def batch_statistics(x):
    mean = x.reshape(-1, x.shape[-1]).mean(0)
    return mean, ((x.reshape(-1, x.shape[-1]) - mean) ** 2).mean(0)


def test_fixed_standardization_maps_the_ends_of_uint8():
    pictures = np.zeros((1, 1, 1, 3))
    pictures[0, 0, 0] = [0, 127.5, 255]
    got = Standardization("fixed")(pictures).numpy().ravel()
    np.testing.assert_array_equal(got, np.float32([-0.99609375, 0, 0.99609375]))


def test_per_image_standardization_is_prewhitening(float64):
    pictures = np.random.default_rng(0).uniform(0, 255, (3, 5, 5, 3))
    pictures[2] = 17
    got = Standardization("per_image")(pictures).numpy()
    for picture, result in zip(pictures, got, strict=True):
        deviation = max(np.std(picture), 1 / np.sqrt(picture.size))
        np.testing.assert_allclose(result, (picture - np.mean(picture)) / deviation, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(4, 3, 5, 6), (7, 6)])
@pytest.mark.parametrize("dtype, tolerance", [("float32", 2e-6), ("float64", 1e-13)])
def test_batch_normalization_follows_its_equation(shape, dtype, tolerance):
    x = random(*shape, dtype=dtype) * 3 + 5
    layer = BatchNormalization(momentum=0.75, epsilon=1e-2, dtype=dtype)
    layer.build(shape)
    gamma, beta = random(6, seed=1, dtype=dtype), random(6, seed=2, dtype=dtype)
    layer.gamma.assign(gamma)
    layer.beta.assign(beta)
    mean, variance = batch_statistics(x)

    got = layer(x, training=True).numpy()

    assert got.dtype == dtype
    np.testing.assert_allclose(got, (x - mean) / np.sqrt(variance + 1e-2) * gamma + beta, rtol=0, atol=10 * tolerance)
    np.testing.assert_allclose(layer.moving_mean, 0.25 * mean, rtol=tolerance)
    np.testing.assert_allclose(layer.moving_variance, 0.75 + 0.25 * variance, rtol=tolerance)
    got = layer(x, training=False).numpy()
    mean, variance = 0.25 * mean, 0.75 + 0.25 * variance
    np.testing.assert_allclose(got, (x - mean) / np.sqrt(variance + 1e-2) * gamma + beta, rtol=0, atol=40 * tolerance)


def test_batch_normalization_gradient_is_that_of_keras(float64):
    x = tf.constant(random(4, 3, 3, 2, dtype="float64"))
    upstream = random(4, 3, 3, 2, seed=1, dtype="float64")
    reference = keras.layers.BatchNormalization(epsilon=1e-3)

    def gradients(layer, dtype):
        values = tf.cast(x, dtype)
        with tf.GradientTape() as tape:
            tape.watch(values)
            loss = tf.reduce_sum(layer(values, training=True) * tf.cast(upstream, dtype))
        return tape.gradient(loss, [values, layer.gamma.value, layer.beta.value])

    want = gradients(reference, tf.float64)
    for dtype, tolerance in (("float64", 1e-12), ("float32", 1e-5)):
        for got, expected in zip(gradients(BatchNormalization(dtype=dtype), dtype), want, strict=True):
            np.testing.assert_allclose(got, expected, atol=tolerance)


def test_batch_normalization_without_gamma_and_beta_and_frozen():
    x = random(4, 3, 3, 2) + 1
    layer = BatchNormalization(scale=False, center=False)
    layer(x, training=True)
    assert [v.name for v in layer.variables] == ["moving_mean", "moving_variance"]
    before = layer.moving_mean.numpy()
    layer.trainable = False
    frozen = layer(x, training=True)
    np.testing.assert_array_equal(layer.moving_mean, before)
    np.testing.assert_array_equal(frozen, layer(x, training=False))


def test_synchronized_statistics_do_not_cancel():
    """Mean 1000, deviation 1: E[x^2] - E[x]^2 in float32 has lost three of its digits."""
    x = random(64, 4, 4, 2) + 1000
    layer = BatchNormalization(synchronized=True, momentum=0.0)
    layer.build(x.shape)
    layer.moving_mean.assign([999.0, 1001.5])
    layer(x, training=True)
    mean, variance = batch_statistics(x.astype("float64"))
    np.testing.assert_allclose(layer.moving_mean, mean, rtol=1e-6)
    np.testing.assert_allclose(layer.moving_variance, variance, rtol=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("synchronized", [False, True])
def test_small_types_keep_statistics_in_float32(dtype, synchronized):
    x = random(8, 6, 6, 4)
    layer = BatchNormalization(dtype=f"mixed_{dtype}", momentum=0.0, synchronized=synchronized)
    for training in (True, False):
        assert layer(tf.cast(x, dtype), training=training).dtype == dtype
    _, variance = batch_statistics(tf.cast(tf.cast(x, dtype), tf.float32).numpy())
    assert layer.moving_variance.value.dtype == tf.float32
    np.testing.assert_allclose(layer.moving_variance, variance, rtol=1e-4)


def test_prelu_values_and_gradients(float64):
    x = tf.constant([[-2.0, -3.0], [4.0, -5.0], [0.0, 6.0]], tf.float64)
    layer = PReLU()
    layer.build(x.shape)
    layer.slope.assign([0.5, 0.1])
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x)
    np.testing.assert_allclose(y, [[-1, -0.3], [4, -0.5], [0, 6]])
    by_x, by_slope = tape.gradient(y, [x, layer.slope.value])
    np.testing.assert_allclose(by_x, [[0.5, 0.1], [1, 0.1], [0.5, 1]])
    np.testing.assert_allclose(by_slope, [-2, -8])


def test_prelu_with_one_slope_for_all_channels(float64):
    x = tf.constant([[-2.0, -3.0], [4.0, -5.0]], tf.float64)
    layer = PReLU(shared=True)
    with tf.GradientTape() as tape:
        y = layer(x)
    np.testing.assert_allclose(y, [[-0.5, -0.75], [4, -1.25]])
    np.testing.assert_allclose(tape.gradient(y, layer.slope.value), [-10])


def test_norm_aware_weights_give_every_pixel_the_mean_norm(float64):
    x = random(3, 2, 4, 5, dtype="float64")
    got = NormAwareWeights()(x).numpy()
    for picture, result in zip(x, got, strict=True):
        norms = np.linalg.norm(picture, axis=-1, keepdims=True)
        np.testing.assert_allclose(result, picture / norms * norms.mean(), rtol=1e-12)
    zeros = tf.zeros([1, 2, 2, 3], tf.float64)
    with tf.GradientTape() as tape:
        tape.watch(zeros)
        y = NormAwareWeights()(zeros)
    assert np.isfinite(tape.gradient(y, zeros)).all()


def test_pair_convolution_is_a_grouped_convolution(float64):
    x = random(2, 4, 5, 6, dtype="float64")
    layer = PairConv2D(3, kaiming_fan_out(0, "pair", 6, 9))
    got = layer(x).numpy()
    kernel = layer.kernel.numpy()
    padded = np.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)])
    want = np.zeros_like(x)
    for output in range(6):
        for slot, channel in ((0, output), (1, output ^ 1)):
            for i in range(3):
                for j in range(3):
                    weight = kernel[i, j, output, slot]
                    want[..., output] += padded[:, i : i + 4, j : j + 5, channel] * weight
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-14)


def test_scaled_add():
    np.testing.assert_allclose(ScaledAdd(0.5)([np.ones((1, 2)), np.full((1, 2), 4.0)]), [[3, 3]])


def test_first_weights_depend_on_seed_and_name():
    assert len({layer_seed(0, "a"), layer_seed(0, "b"), layer_seed(1, "a"), layer_seed(1, "b")}) == 4
    values = np.array(kaiming_fan_out(3, "conv", 50, 9)((3, 3, 40, 50)))
    np.testing.assert_array_equal(values, kaiming_fan_out(3, "conv", 50, 9)((3, 3, 40, 50)))
    assert values.std() == pytest.approx((2 / 450) ** 0.5, rel=0.02)


@pytest.mark.parametrize(
    "layer",
    [
        Standardization("per_image"),
        BatchNormalization(momentum=0.5, epsilon=0.1, scale=False, center=False, synchronized=True),
        PairConv2D(5),
        PReLU(),
        PReLU(shared=True),
    ],
)
def test_layers_are_remade_from_their_configuration(layer):
    remade = keras.layers.deserialize(keras.layers.serialize(layer))
    assert type(remade) is type(layer)
    assert remade.get_config() == layer.get_config()
