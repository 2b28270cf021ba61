"""THOR against references written from the equations, one example and one position at a time."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from towers import networks
from towers.errors import UserError
from towers.training import schedules
from towers.training.thor import (
    Factors,
    Tapped,
    Thor,
    block_products,
    exponential_damping,
    inverted,
    patches,
    precondition,
    preconditioned_layers,
    warn_of_broken_factors,
)

DAMPING = 0.03


@pytest.fixture(autouse=True)
def float64():
    keras.mixed_precision.set_dtype_policy("float64")
    yield
    keras.mixed_precision.set_dtype_policy("float32")


@pytest.fixture
def network():
    """A strided convolution of 27 inputs and 5 outputs at 9 positions, an activated one, and a dense layer."""
    images = keras.Input((6, 6, 3), dtype="float64")
    x = keras.layers.Conv2D(5, 3, 2, padding="same", use_bias=False, name="first")(images)
    x = keras.layers.ReLU()(x)
    x = keras.layers.Conv2D(4, 1, activation="relu", name="activated")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(images, keras.layers.Dense(3, name="last")(x))


def make(network, **arguments):
    given = {"damping": lambda step: tf.constant(DAMPING, tf.float64), "interval": 2}
    return Thor(network, **given | arguments)


def losses_of(outputs, targets):
    return tf.reduce_sum((outputs - targets) ** 2, axis=1)


def one_refresh(thor, images, targets, step=0):
    """Summed factors, gradients of the mean loss by the two kernels, and what ``renewed`` gives."""
    tapped = Tapped(thor)
    kernels = [each.layer.kernel for each in thor.layers]
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(losses_of(tapped(images, training=True), targets))
    gradients = tape.gradient(total, [*(kernel.value for kernel in kernels), *tapped.outputs])
    sums = thor.factors(tapped, gradients[len(kernels) :])
    gradients = [gradient / len(images) for gradient in gradients[: len(kernels)]]
    return sums, gradients, *thor.renewed(sums, tf.constant(len(images)), tf.constant(step, tf.int64))


def batch(count=7):
    random = np.random.default_rng(0)
    return tf.constant(random.normal(size=(count, 6, 6, 3))), tf.constant(random.normal(size=(count, 3)))


def slow_factors(network, images, targets, name):
    """A and G of a layer: means over examples and positions; an example's loss is differentiated alone."""
    layer = network.get_layer(name)
    inner = keras.Model(network.inputs, [layer.input, layer.output, *network.outputs])
    a, g, count = 0, 0, 0
    for image, target in zip(images, targets, strict=True):
        with tf.GradientTape() as tape:
            given, made, outputs = inner(image[None])
            loss = losses_of(outputs, target[None])
        made_gradient = tape.gradient(loss, made).numpy()[0]
        given = given.numpy()[0]
        if given.ndim == 1:
            rows = [(given, made_gradient)]
        else:
            # 3 x 3, stride 2, "same" on 6 pixels: one pixel of padding, below and right.
            padded = np.pad(given, [(0, 1), (0, 1), (0, 0)])
            rows = [
                (padded[2 * y : 2 * y + 3, 2 * x : 2 * x + 3].ravel(), made_gradient[y, x])
                for y in range(made_gradient.shape[0])
                for x in range(made_gradient.shape[1])
            ]
        for row, ds in rows:
            a, g, count = a + np.outer(row, row), g + np.outer(ds, ds), count + 1
    return a / count, g / count


def only_blocks(matrix, block):
    place = np.arange(len(matrix)) // block
    return np.where(place[:, None] == place[None], matrix, 0)


@pytest.mark.parametrize("block", [4, 128])
def test_update_is_that_of_the_equations(network, block):
    thor = make(network, block=block)
    images, targets = batch()
    assert [(each.layer.name, each.positions) for each in thor.layers] == [("first", 9), ("last", 1)]
    _, gradients, inverses, _ = one_refresh(thor, images, targets)
    kernels = [each.layer.kernel for each in thor.layers]
    updates = thor.preconditioned(gradients, kernels, inverses)
    for each, gradient, update in zip(thor.layers, gradients, updates, strict=True):
        a, g = (only_blocks(m, block) for m in slow_factors(network, images, targets, each.layer.name))
        d = np.sqrt(DAMPING / each.positions)
        flat = gradient.numpy().reshape(len(a), len(g))
        wanted = np.linalg.inv(g + d * np.eye(len(g))) @ flat.T @ np.linalg.inv(a + d * np.eye(len(a))) / each.positions
        np.testing.assert_allclose(update.numpy().reshape(flat.shape), wanted.T, rtol=1e-7, atol=1e-12)


def test_whole_blocks_are_the_inverse_of_a_kronecker_product(network):
    """The same with the Fisher block as one matrix: F = T (A + d) (x) (G + d)."""
    thor = make(network)
    images, targets = batch()
    _, gradients, inverses, _ = one_refresh(thor, images, targets)
    (update, _) = thor.preconditioned(gradients, [each.layer.kernel for each in thor.layers], inverses)
    a, g = slow_factors(network, images, targets, "first")
    d = np.sqrt(DAMPING / 9)
    fisher = 9 * np.kron(a + d * np.eye(27), g + d * np.eye(5))
    wanted = np.linalg.solve(fisher, gradients[0].numpy().reshape(-1))
    np.testing.assert_allclose(update.numpy().ravel(), wanted, rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize(
    "arguments",
    [
        {"kernel_size": 3, "padding": "same"},
        {"kernel_size": 3, "strides": 2, "padding": "same"},
        {"kernel_size": (1, 5), "strides": (2, 1), "padding": "valid"},
        {"kernel_size": 3, "dilation_rate": 2, "padding": "same"},
        {"kernel_size": 1, "strides": 2, "padding": "same"},
        {"kernel_size": 1, "strides": 2, "padding": "valid"},
    ],
)
def test_patches_times_output_gradients_are_the_kernels_gradient(arguments):
    layer = keras.layers.Conv2D(5, use_bias=False, **arguments)
    images = tf.constant(np.random.default_rng(0).normal(size=(2, 9, 8, 3)))
    with tf.GradientTape() as tape:
        outputs = layer(images)
        loss = tf.reduce_sum(tf.sin(outputs))
    by_kernel, by_outputs = tape.gradient(loss, [layer.kernel.value, outputs])
    product = tf.matmul(patches(layer, images), tf.reshape(by_outputs, [-1, 5]), transpose_a=True)
    np.testing.assert_allclose(tf.reshape(product, by_kernel.shape), by_kernel, rtol=1e-10, atol=1e-12)


def test_blocks_of_products():
    rows = np.random.default_rng(0).normal(size=(11, 10))
    blocks = block_products(tf.constant(rows), 4).numpy()
    whole = rows.T @ rows
    assert blocks.shape == (3, 4, 4)
    np.testing.assert_allclose(blocks[1], whole[4:8, 4:8])
    np.testing.assert_allclose(blocks[2, :2, :2], whole[8:, 8:])
    assert not blocks[2, 2:].any()
    assert not blocks[2, :, 2:].any()


def test_precondition_keeps_the_dtype_of_the_gradient():
    gradient = tf.constant(np.random.default_rng(0).normal(size=(3, 3, 2, 6)), tf.float32)
    inverses = Factors(2 * tf.eye(8, batch_shape=[3]), 3 * tf.eye(4, batch_shape=[2]))
    update = precondition(gradient, inverses, positions=2)
    assert update.dtype == tf.float32
    np.testing.assert_allclose(update, 3 * gradient, rtol=1e-6)


@pytest.mark.parametrize("rank", [1, 2, 30, 127])
def test_a_block_that_cannot_be_inverted_gets_more_damping(rank):
    """Blocks of less than full rank and hardly any damping: float32 fails at them, and does not with the raised one."""
    random = np.random.default_rng(rank)
    rows = random.normal(size=(20, rank, 128)).astype(np.float32) * 1e3
    factor = tf.constant(np.concatenate([np.einsum("bri,brj->bij", rows, rows), np.eye(128, dtype=np.float32)[None]]))
    inverse, raised = inverted(factor, tf.constant(1e-3), tf.constant(True))
    assert raised.numpy() == 20
    assert np.isfinite(inverse).all()
    np.testing.assert_allclose(inverse[-1], np.eye(128) / (1 + 1e-3), rtol=1e-5)
    # Along a direction that no row has, the inverse is that of the damping.
    along = random.normal(size=128)
    along -= np.linalg.pinv(rows[0].astype(np.float64)) @ (rows[0] @ along)
    least = 1e-6 * np.trace(factor[0])
    np.testing.assert_allclose(along @ inverse[0].numpy() @ along / (along @ along), 1 / least, rtol=0.2)


def test_factors_that_are_not_finite_leave_the_old_inverses(network):
    thor = make(network)
    images, targets = batch()
    sums, _, _, store = one_refresh(thor, images, targets)
    store(tf.constant(True))
    before = [Factors(*(side.numpy() for side in each)) for each in thor.stored()]
    broken = [Factors(sums[0].inputs * np.nan, sums[0].outputs), Factors(2 * sums[1].inputs, sums[1].outputs)]
    inverses, store = thor.renewed(broken, tf.constant(7), tf.constant(2, tf.int64))
    np.testing.assert_array_equal(inverses[0].inputs, before[0].inputs)
    np.testing.assert_array_equal(inverses[0].outputs, before[0].outputs)
    assert np.abs(inverses[1].inputs - before[1].inputs).max() > 1e-3
    store(tf.constant(True))
    assert thor.metrics()["thor_kept"].numpy() == 1
    np.testing.assert_array_equal(thor.stored()[0].inputs, before[0].inputs)


def test_a_step_that_is_not_kept_stores_nothing(network):
    thor = make(network)
    before = {name: variable.numpy() for name, variable in thor.variables().items()}
    *_, store = one_refresh(thor, *batch())
    store(tf.constant(False))
    for name, variable in thor.variables().items():
        np.testing.assert_array_equal(variable, before[name])


def test_trace_rule_renews_keeps_and_stops(network):
    """The trace of the first layer changes by 5 %, 0.5 % and 0.05 %: with (0.01, 0.001) renewed, kept, stopped."""
    thor = make(network, trace_rule=(0.01, 0.001))
    sums, _, _, store = one_refresh(thor, *batch())
    store(tf.constant(True))
    count, step = tf.constant(7), tf.constant(2, tf.int64)
    a, g = (float(np.trace(np.sum(side, axis=0))) for side in sums[0])
    damped = 9 * (a / 63) * (g / 63) + 27 * 5 * DAMPING

    def factor(change):
        """What the outputs' factor must be multiplied by for the damped trace to change by so much of itself."""
        return (damped * (1 + change) - 27 * 5 * DAMPING) / (damped - 27 * 5 * DAMPING)

    scale = 1.0
    stored = thor.stored()[0].outputs.numpy()
    for change, renewed, stopped in ((0.05, True, 0), (-0.005, False, 0), (0.0005, False, 1), (0.5, False, 1)):
        before = thor.stored()[0].outputs.numpy()
        np.testing.assert_array_equal(before, stored)
        scale *= factor(change)
        damped *= 1 + change
        changed = [sums[0]._replace(outputs=sums[0].outputs * scale), Factors(sums[1].inputs * scale, sums[1].outputs)]
        inverses, store = thor.renewed(changed, count, step)
        store(tf.constant(True))
        stored = inverses[0].outputs.numpy()
        assert (np.abs(stored - before).max() > 0) == renewed, change
        assert bool(thor.variables()["stopped"].numpy()[0]) == bool(stopped), change


def test_only_plain_linear_layers_are_preconditioned():
    keras.mixed_precision.set_dtype_policy("float32")
    names = [
        each.layer.name for each in preconditioned_layers(networks.build("small", image_size=28, embedding_size=8))
    ]
    assert names
    shared = keras.layers.Dense(4)
    a, b = keras.Input((4,)), keras.Input((4,))
    twice = keras.Model([a, b], keras.layers.Add()([shared(a), shared(b)]))
    assert preconditioned_layers(twice) == []
    with pytest.raises(UserError, match="no layer"):
        make(twice)
    with pytest.raises(UserError, match="pictures of one size"):
        preconditioned_layers(networks.build("resnet10", image_size=None, embedding_size=512))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"interval": 0}, "--thor_interval 0"),
        ({"block": 0}, "--thor_block 0"),
        ({"trace_rule": (0.1, 0.2)}, "W1 >= W2"),
    ],
)
def test_numbers_out_of_their_range(network, arguments, message):
    with pytest.raises(UserError, match=message):
        make(network, **arguments)


def test_published_laws():
    """The damping and the rate of the published MultiGrain runs at epochs 0, 5, 10, 20 and 30."""
    damping = exponential_damping(0.03, 0.87, epoch_size=100)
    rate = schedules.polynomial(0.045, total_steps=7000, power=6)
    epochs = (0, 5, 10, 20, 30)
    found = [float(damping(tf.constant(100 * epoch, tf.int64))) for epoch in epochs]
    np.testing.assert_allclose(found, [0.030, 0.028, 0.026, 0.0227, 0.0198], atol=1e-4)
    np.testing.assert_allclose([rate(100 * e) for e in epochs], [0.045, 0.0289, 0.0179, 0.0060, 0.0016], atol=6e-5)
    with pytest.raises(UserError, match="--thor_damping 0"):
        exponential_damping(0.0, 0.9, 100)


def test_warning_of_broken_factors():
    watch = warn_of_broken_factors()
    assert watch({"step": 10, "thor_kept": 0.0, "thor_raised": 0.0}) is None
    assert "damping of 3 blocks" in watch({"step": 20, "thor_kept": 0.0, "thor_raised": 3.0})
    assert watch({"step": 30, "thor_kept": 0.0, "thor_raised": 3.0}) is None
    assert "1 layers kept" in watch({"step": 40, "thor_kept": 1.0, "thor_raised": 3.0})
    assert watch({"step": 10}) is None
