"""THOR against loops written from its equations; its laws, its trace rule and what it does with bad factors."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from training import thor_reference as reference

from towers import networks
from towers.distribution import Towers
from towers.errors import UserError
from towers.heads.replicated import ReplicatedHead
from towers.training import classification, kronecker, optimizers, taps
from towers.training.step import make_train_step
from towers.training.thor import LEAST_DAMPING, Thor, check_options, warn_of_failures

SETTINGS = {"damping": 0.03, "damping_decay": 0.5, "epoch_size": 10, "interval": 3}


@pytest.fixture(scope="module")
def towers():
    return Towers(tf.distribute.MirroredStrategy(["/CPU:0"]), "cpu", ("/CPU:0",))


def tiny_network(towers, dtype, channels=16, filters=6, features=5, classes=4):
    """The network of ``reference.small_network``; 144 inputs of its convolution make two blocks."""
    random = np.random.default_rng(3)
    with towers.scope():
        images = keras.Input((5, 6, channels), dtype=dtype, name="image")
        conv = keras.layers.Conv2D(filters, 3, 2, padding="same", use_bias=False, dtype=dtype, name="conv")
        x = keras.layers.ReLU(dtype=dtype)(conv(images))
        x = keras.layers.GlobalAveragePooling2D(dtype=dtype)(x)
        dense = keras.layers.Dense(features, use_bias=False, dtype=dtype, name="dense")
        network = keras.Model(images, dense(x))
        head = ReplicatedHead(classes, features, seed=1, dtype=dtype)
        for variable in (conv.kernel, dense.kernel, head.weights, head.bias):
            variable.assign(random.normal(0, 0.5, variable.shape))
    return network, head


def batch_of(dtype, count=6, channels=16, classes=4, seed=5):
    random = np.random.default_rng(seed)
    images = random.normal(size=(count, 5, 6, channels))
    labels = random.integers(classes, size=count)
    return {"image": tf.constant(images, dtype), "label": tf.constant(labels, tf.int64)}


def step_function(towers, network, head, thor, rule="SGD", **options):
    return step_and_optimizer(towers, network, head, thor, rule, **options)[0]


def step_and_optimizer(towers, network, head, thor, rule, **options):
    trained = [*network.trainable_variables, *head.trainable_variables]
    with towers.scope():
        optimizer = optimizers.build(rule)
        optimizer.build(trained)
    objective = classification.make_objective(head, lambda batch: batch["image"])
    step = make_train_step(
        *(towers, network, objective, optimizer),
        variables=trained,
        decayed=[],
        statistics=[],
        thor=thor,
        **options,
    )
    return step, optimizer


def run(step, batch, number=0, rate=1.0):
    return step(batch, tf.constant(number, tf.int64), tf.constant(rate, tf.float64))[1]


# With damping 0.03 the classifier's update is 150 times as sensitive as its gradient: rounding that to float32 alone
# moves the update by 0.7e-5 of its largest value.
@pytest.mark.parametrize(
    "dtype,first_damping,tolerance",
    [("float64", 0.03, 1e-11), ("float32", 0.3, 1e-5), ("float32", 0.03, 2e-5)],
)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_factors_inverses_and_update_follow_the_equations(towers, dtype, first_damping, tolerance, accumulate):
    network, head = tiny_network(towers, dtype)
    thor = Thor(towers, network, [head], **SETTINGS | {"damping": first_damping})
    batch = batch_of(dtype)
    before = [variable.numpy().astype(np.float64) for variable in (*network.trainable_variables, head.weights)]
    bias = head.bias.numpy().astype(np.float64)
    # The first momentum is the preconditioned gradient itself; a difference of weights would be rounded to theirs.
    step, optimizer = step_and_optimizer(towers, network, head, thor, "MOM", accumulate=accumulate)
    shared = run(step, batch)
    momentum = optimizers.state(optimizer)
    loss, layers = reference.small_network(batch["image"].numpy(), batch["label"].numpy(), *before, bias)
    assert shared["loss"].numpy() == pytest.approx(loss, rel=max(tolerance, 1e-6))
    assert (int(shared["thor_refreshed"]), int(shared["thor_failed"])) == (3, 0)
    damping = first_damping * 0.5 ** (0.1 / 10)
    after = [*network.trainable_variables, head.weights]
    for (name, (inputs, of_outputs, positions)), old, new in zip(layers.items(), before, after, strict=True):
        found = momentum[f"{new.path}/accum"].numpy()
        gradient = inputs.T @ of_outputs / 6
        expected = reference.update(gradient, inputs, of_outputs, positions, damping)
        expected = expected.T if name == "head" else expected.reshape(old.shape)
        assert np.abs(expected).max() > 1e-3
        # It is another direction than the gradient's.
        plain = gradient.T if name == "head" else gradient.reshape(old.shape)
        cosine = (expected * plain).sum() / np.linalg.norm(expected) / np.linalg.norm(plain)
        assert cosine < 0.999, name
        for side, rows in (("inputs", inputs), ("outputs", of_outputs)):
            inverse = reference.inverse(reference.factor(rows), np.sqrt(damping / positions))
            blocks = thor.variables()[f"{new.path}/{side}"].numpy()
            size, width = len(inverse), blocks.shape[1]
            for start, block in zip(range(0, size, width), blocks, strict=True):
                part = inverse[start : start + width, start : start + width]
                block = block[: len(part), : len(part)]
                atol = min(tolerance, 1e-5) * np.abs(inverse).max()
                np.testing.assert_allclose(block, part, rtol=0, atol=atol, err_msg=f"{name} {side}")
        scale = np.abs(expected).max()
        np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * scale, err_msg=name)
        # Nesterov: momentum 0.9 of it, and it.
        np.testing.assert_allclose(old - new.numpy(), 1.9 * expected, rtol=0, atol=20 * tolerance * scale, err_msg=name)
    # A bias keeps its gradient.
    of_logits = layers["head"][1].mean(axis=0)
    found = momentum[f"{head.bias.path}/accum"].numpy()
    np.testing.assert_allclose(found, of_logits, rtol=0, atol=tolerance * np.abs(of_logits).max())


@pytest.mark.parametrize("kl_clip", [1e-3, 1e3])
def test_a_step_is_as_long_as_its_divergence_allows(towers, kl_clip):
    """rate^2 sum <d, g> over the preconditioned kernels, from the step without the clip; a bias is left as it is."""
    rate, moved = 0.5, {}
    for clip in (0.0, kl_clip):
        network, head = tiny_network(towers, "float64")
        variables = [*network.trainable_variables, head.weights, head.bias]
        before = [variable.numpy() for variable in variables]
        thor = Thor(towers, network, [head], **SETTINGS, kl_clip=clip)
        run(step_function(towers, network, head, thor), batch_of("float64"), rate=rate)
        moved[clip] = [old - variable.numpy() for old, variable in zip(before, variables, strict=True)]
    batch = batch_of("float64")
    _, layers = reference.small_network(batch["image"].numpy(), batch["label"].numpy(), *before)
    products = 0.0
    for (name, (inputs, of_outputs, _)), change in zip(layers.items(), moved[0.0], strict=False):
        gradient = inputs.T @ of_outputs / 6
        products += ((gradient.T if name == "head" else gradient.reshape(change.shape)) * change / rate).sum()
    factor = min(1.0, np.sqrt(kl_clip / (rate**2 * products)))
    assert (factor < 0.5) == (kl_clip < 1)
    for change, free in zip(moved[kl_clip][:-1], moved[0.0], strict=False):
        np.testing.assert_allclose(change, factor * free, rtol=1e-9)
    np.testing.assert_allclose(moved[kl_clip][-1], moved[0.0][-1], rtol=1e-12)


def test_between_refreshes_the_inverses_stay(towers):
    network, head = tiny_network(towers, "float64")
    thor = Thor(towers, network, [head], **SETTINGS)
    step = step_function(towers, network, head, thor)
    counts = [int(run(step, batch_of("float64", seed=number), number, 0.01)["thor_refreshed"]) for number in range(4)]
    assert counts == [3, 0, 0, 3]
    first = thor.variables()["conv/kernel/inputs"].numpy()
    run(step, batch_of("float64", seed=9), 4)
    np.testing.assert_array_equal(thor.variables()["conv/kernel/inputs"].numpy(), first)


@pytest.mark.parametrize("rule", ["MOM", "ADAM", "keras.Lion", "keras.AdamW"])
def test_it_stands_in_front_of_any_optimizer(towers, rule):
    """The optimizer's update with the preconditioned gradient, clipped before, decayed after."""
    network, head = tiny_network(towers, "float64")
    thor = Thor(towers, network, [head], **SETTINGS)
    batch = batch_of("float64")
    kernel = network.get_layer("dense").kernel
    before = [variable.numpy() for variable in (*network.trainable_variables, head.weights)]
    layers = reference.small_network(batch["image"].numpy(), batch["label"].numpy(), *before, head.bias.numpy())[1]
    inputs, of_outputs, _ = layers["dense"]
    norm = np.sqrt(
        sum(((rows.T @ gradients / 6) ** 2).sum() for rows, gradients, _ in layers.values())
        + (layers["head"][1].mean(axis=0) ** 2).sum()
    )
    gradient = inputs.T @ of_outputs / 6 * 0.1 / norm
    gradient = reference.update(gradient, inputs, of_outputs, 1, 0.03 * 0.5 ** (0.1 / 10))
    with keras.name_scope("alone"):
        alone = keras.Variable(before[1], dtype="float64", name="kernel")
    optimizer = optimizers.build(rule)
    optimizer.build([alone])
    gradient = gradient + 0.2 * before[1]
    optimizers.apply_updates(optimizer, [tf.constant(gradient)], [alone], 0.5, tf.constant(True))
    trained = [*network.trainable_variables, *head.trainable_variables]
    with towers.scope():
        own = optimizers.build(rule)
        own.build(trained)
    objective = classification.make_objective(head, lambda batch: batch["image"])
    step = make_train_step(
        *(towers, network, objective, own),
        variables=trained,
        decayed=[kernel],
        statistics=[],
        weight_decay=0.2,
        clip_norm=0.1,
        thor=thor,
    )
    run(step, batch, rate=0.5)
    np.testing.assert_allclose(kernel.numpy(), alone.numpy(), rtol=1e-10)


@pytest.mark.parametrize(
    "area,stride,dilation,padding",
    [
        ((3, 3), 1, 1, "same"),
        ((3, 3), 2, 1, "same"),
        ((7, 7), 2, 1, "same"),
        ((1, 1), 2, 1, "same"),
        ((1, 1), 1, 1, "valid"),
        ((3, 2), 2, 1, "valid"),
        ((3, 3), 1, 2, "same"),
    ],
)
def test_patches_by_output_gradients_are_the_kernels_gradient(area, stride, dilation, padding):
    random = np.random.default_rng(0)
    images = random.normal(size=(2, 8, 7, 3))
    layer = keras.layers.Conv2D(4, area, stride, padding, dilation_rate=dilation, use_bias=False, dtype="float64")
    expected = reference.patches(images, area, stride, dilation, padding)
    tap = taps.layer_tap(_built(layer, images.shape), None)
    rows = tap.rows(tf.constant(images)).numpy()
    np.testing.assert_array_equal(rows, expected.reshape(rows.shape))
    of_outputs = random.normal(size=(*expected.shape[:3], 4))
    with tf.GradientTape() as tape:
        outputs = layer(tf.constant(images))
        target = tf.reduce_sum(outputs * of_outputs)
    of_kernel = tape.gradient(target, layer.kernel.value)
    gradients = tap.gradient_rows(tf.constant(of_outputs)).numpy()
    np.testing.assert_allclose(rows.T @ gradients, tap.matrix(of_kernel), rtol=1e-10, atol=1e-10)
    assert tap.positions == tap.sampled == expected.shape[1] * expected.shape[2]


def _built(layer, shape):
    keras.Model(inputs := keras.Input(shape[1:], dtype="float64"), layer(inputs))
    return layer


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("area", [(1, 1), (3, 3)])
def test_statistics_of_some_positions(stride, area):
    """Every third position from the second on: a grid that does not prefer the border."""
    images = np.random.default_rng(0).normal(size=(2, 19, 17, 2))
    layer = _built(keras.layers.Conv2D(4, area, stride, "same", use_bias=False, dtype="float64"), images.shape)
    height = layer.output.shape[1]
    tap = taps.layer_tap(layer, height // 3)
    every = reference.patches(images, area, stride)
    expected = every[:, 1::3, 1::3]
    assert (tap.positions, tap.sampled) == (every.shape[1] * every.shape[2], expected.shape[1] * expected.shape[2])
    np.testing.assert_array_equal(tap.rows(tf.constant(images)), expected.reshape(-1, every.shape[-1]))
    gradients = tf.constant(np.random.default_rng(1).normal(size=(*every.shape[:3], 4)))
    np.testing.assert_array_equal(tap.gradient_rows(gradients), gradients[:, 1::3, 1::3].numpy().reshape(-1, 4))


@pytest.mark.parametrize("size", [5, 128, 129, 300])
def test_blocks_are_those_of_the_factor(size):
    rows = np.random.default_rng(0).normal(size=(20, size))
    blocks = kronecker.block_products(tf.constant(rows)).numpy()
    assert blocks.shape == ((1, size, size) if size <= 128 else (-(-size // 128), 128, 128))
    whole = 20 * reference.factor(rows)
    for index, block in enumerate(blocks):
        part = whole[128 * index : 128 * (index + 1), 128 * index : 128 * (index + 1)]
        np.testing.assert_allclose(block[: len(part), : len(part)], part, atol=1e-12)
        assert np.abs(block[len(part) :]).max(initial=0) == np.abs(block[:, len(part) :]).max(initial=0) == 0


def test_one_block_is_the_inverse_of_the_damped_kronecker_product():
    """(T (A + r I) (x) (G + r I))^-1 vec(g), formed whole."""
    random = np.random.default_rng(0)
    inputs, outputs, gradient = random.normal(size=(9, 4)), random.normal(size=(9, 3)), random.normal(size=(4, 3))
    root, positions = np.sqrt(0.03 / 7), 7
    factors = [reference.factor(rows) + root * np.eye(rows.shape[1]) for rows in (inputs, outputs)]
    expected = np.linalg.solve(positions * np.kron(*factors), gradient.reshape(-1)).reshape(4, 3)
    pair = [
        kronecker.damped_inverse(kronecker.block_products(tf.constant(rows)) / 9, tf.constant(root))
        for rows in (inputs, outputs)
    ]
    found = kronecker.preconditioned(tf.constant(gradient), *pair) / positions
    np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_published_dampings_by_epoch(towers):
    network, _ = tiny_network(towers, "float32")
    thor = Thor(towers, network, damping=0.03, damping_decay=0.50036, epoch_size=100, interval=1)
    found = [float(thor.damping_at(tf.constant(100 * epoch - 1, tf.int64))) for epoch in (0, 5, 10, 20, 30)]
    np.testing.assert_allclose(found, [0.0300, 0.0212, 0.0150, 0.0075, 0.0038], atol=6e-5)


def sums_of(thor, size=1.0, bad=None, value=np.nan):
    """Factor sums of one picture, ``size`` times the identity; those of the tap ``bad`` are ``value``."""
    sums = []
    for index, tap in enumerate(thor.taps):
        for blocks, side in map(kronecker.block_shape, tap.shape):
            block = tf.eye(side, batch_shape=[blocks], dtype=tap.kernel.dtype) * size
            sums.append(tf.fill(block.shape, tf.constant(value, block.dtype)) if index == bad else block)
    return sums


def refresh(towers, thor, sums, keep=True, step=0):
    """One refresh from ``sums`` as if they were of one picture and one position."""
    tensors = [tensor * thor.taps[index // 2].sampled for index, tensor in enumerate(sums)]

    def tower():
        one = tf.constant(1, tf.int64)
        inverses = thor.refreshed(tensors, one, tf.constant(1.0), tf.constant(step, tf.int64))
        thor.store(inverses, tf.constant(keep))
        return inverses.refreshed, inverses.failed

    return tuple(int(value) for value in towers.run(tf.function(tower, autograph=False)))


def state(thor):
    return {name: variable.numpy() for name, variable in thor.variables().items()}


@pytest.mark.parametrize("value", [np.nan, np.inf, -7.0], ids=["nan", "inf", "not positive definite"])
def test_a_bad_factor_keeps_the_old_inverse_and_raises_the_damping(towers, value):
    network, head = tiny_network(towers, "float32")
    thor = Thor(towers, network, [head], **SETTINGS)
    assert refresh(towers, thor, sums_of(thor)) == (3, 0)
    before = state(thor)
    assert refresh(towers, thor, sums_of(thor, 4.0, bad=1, value=value)) == (2, 1)
    after = state(thor)
    for side in ("inputs", "outputs"):
        np.testing.assert_array_equal(after[f"dense/kernel/{side}"], before[f"dense/kernel/{side}"])
        assert np.abs(after[f"conv/kernel/{side}"] - before[f"conv/kernel/{side}"]).max() > 0.1
    assert after["raised"].tolist() == [1.0, 10.0, 1.0]
    assert after["failures"].tolist() == [0, 1, 0]
    assert after["refreshes"].tolist() == [2, 1, 2]
    assert all(np.isfinite(array).all() for array in after.values())
    # The next good factor is damped ten times as much; then it relaxes.
    assert refresh(towers, thor, sums_of(thor, 4.0)) == (3, 0)
    root = np.sqrt(0.3 * 0.5 ** (0.1 / 10))
    np.testing.assert_allclose(state(thor)["dense/kernel/inputs"][0], np.eye(6) / (4 + root), rtol=1e-5)
    assert state(thor)["raised"].tolist() == [1.0, 5.0, 1.0]


def test_damping_has_a_floor(towers):
    network, _ = tiny_network(towers, "float64")
    thor = Thor(towers, network, damping=0.03, damping_decay=0.001, epoch_size=1, interval=1)
    refresh(towers, thor, sums_of(thor, 0.5), step=99)
    np.testing.assert_allclose(
        state(thor)["dense/kernel/inputs"][0], np.eye(6) / (0.5 + np.sqrt(LEAST_DAMPING)), rtol=1e-10
    )


def test_keep_false_changes_no_bit(towers):
    network, head = tiny_network(towers, "float32")
    thor = Thor(towers, network, [head], **SETTINGS)
    refresh(towers, thor, sums_of(thor))
    before = state(thor)
    refresh(towers, thor, sums_of(thor, 9.0, bad=0), keep=False)
    for name, value in state(thor).items():
        assert value.tobytes() == before[name].tobytes(), name


def test_a_layer_that_no_loss_reaches_is_left_and_is_no_failure(towers):
    network, head = tiny_network(towers, "float32")
    thor = Thor(towers, network, [head], **SETTINGS)
    assert refresh(towers, thor, sums_of(thor, bad=2, value=0.0)) == (2, 0)
    np.testing.assert_array_equal(state(thor)["head/weights/outputs"][0], np.eye(4))


def test_the_trace_rule(towers):
    """A change above w1 refreshes, one below w2 stops a layer for ever, one between leaves the old inverses."""
    network, _ = tiny_network(towers, "float64")
    thor = Thor(towers, network, **SETTINGS, trace_rule=(0.1, 0.01))

    def inverse():
        return 1 / state(thor)["dense/kernel/inputs"][0, 0, 0]

    root = np.sqrt(0.03 * 0.5 ** (0.1 / 10))
    # The trace goes with (size + root)^2: 1 -> 1.02 changes it by 3.4 %, 1.02 -> 1.5 by 100 %, 1.5 -> 1.502 by 0.2 %.
    for size, taken, stopped, used in (
        (1.0, 2, False, 1.0),
        (1.02, 0, False, 1.0),
        (1.5, 2, False, 1.5),
        (1.502, 0, True, 1.5),
        (5.0, 0, True, 1.5),
    ):
        assert refresh(towers, thor, sums_of(thor, size)) == (taken, 0)
        assert state(thor)["stopped"].tolist() == [stopped] * 2
        assert inverse() == pytest.approx(used + root)
    trace = state(thor)["trace"][1]
    assert trace == pytest.approx(6 * 5 * (5.0 + root) ** 2)
    assert not thor.is_due(3)


def test_published_rules_without_stopping(towers):
    network, _ = tiny_network(towers, "float64")
    thor = Thor(towers, network, **SETTINGS, trace_rule=(0.01, 0.0))
    for taken in (2, 0, 0):
        assert refresh(towers, thor, sums_of(thor)) == (taken, 0)
    assert not state(thor)["stopped"].any()
    assert thor.is_due(3)


def test_the_first_refresh_comes_as_soon_as_it_can(towers):
    network, head = tiny_network(towers, "float32")
    thor = Thor(towers, network, [head], **SETTINGS)
    assert [thor.is_due(step) for step in (0, 1, 2)] == [True, True, True]
    refresh(towers, thor, sums_of(thor), keep=False)
    assert thor.is_due(1)
    refresh(towers, thor, sums_of(thor))
    assert [thor.is_due(step) for step in (1, 2, 3, 4, 6)] == [False, False, True, False, True]


def test_a_step_that_is_not_finite_changes_nothing(towers):
    network, head = tiny_network(towers, "float32")
    thor = Thor(towers, network, [head], **SETTINGS)
    step = step_function(towers, network, head, thor, rule="MOM")
    run(step, batch_of("float32"))
    variables = [*network.variables, head.weights, head.bias, *thor.variables().values()]
    before = [variable.numpy().tobytes() for variable in variables]
    batch = batch_of("float32")
    poisoned = np.array(batch["image"])
    poisoned[2] = np.nan
    shared = run(step, {**batch, "image": tf.constant(poisoned)}, number=3)
    assert not shared["finite"]
    assert [variable.numpy().tobytes() for variable in variables] == before


def test_which_layers_are_preconditioned(towers):
    """Not depthwise and grouped convolutions, nor layers with an activation of their own."""

    def kernels(name, **options):
        with towers.scope():
            network = networks.build(name, embedding_size=16, **options)
        return {layer.name for layer in taps.tapped_layers(network)}, network

    found, _ = kernels("small", image_size=28)
    assert found == {"block1_conv", "block2_conv", "block3_conv", "block4_conv", "embedding"}
    found, network = kernels("se_resnet50", image_size=32)
    assert "embedding" in found
    assert not any("_se_" in name for name in found)
    assert len(found) == len([layer for layer in network.layers if isinstance(layer, keras.layers.Conv2D)]) + 1
    with towers.scope():
        inputs = keras.Input((4, 4, 4))
        x = keras.layers.Conv2D(4, 3, groups=2, name="grouped")(inputs)
        x = keras.layers.DepthwiseConv2D(2, name="depthwise")(x)
        x = keras.layers.Conv2D(4, 1, name="plain")(x)
        frozen = keras.layers.Conv2D(4, 1, name="frozen", trainable=False)
        assert [layer.name for layer in taps.tapped_layers(keras.Model(inputs, frozen(x)))] == ["plain"]


@pytest.mark.parametrize(
    "change,message",
    [
        ({"damping": 0.0}, "--thor_damping 0.0"),
        ({"damping": float("nan")}, "--thor_damping nan"),
        ({"damping_decay": 1.5}, "--thor_damping_decay 1.5"),
        ({"interval": 0}, "--thor_interval 0"),
        ({"kl_clip": -1.0}, "--thor_kl_clip -1.0"),
        ({"trace_rule": (0.01, 0.1)}, "--thor_trace_rule 0.01,0.1"),
        ({"trace_rule": (0.01, -0.1)}, "--thor_trace_rule"),
    ],
)
def test_values_out_of_range(change, message):
    with pytest.raises(UserError, match=message):
        check_options(**{"damping": 0.03, "damping_decay": 0.5, "interval": 20, "trace_rule": None} | change)


def test_failures_are_said():
    assert warn_of_failures({"step": 20}) is None
    assert warn_of_failures({"step": 20, "thor_failed": 0}) is None
    line = warn_of_failures({"step": 20, "thor_failed": 3})
    assert "step 20: THOR: 3 inverse(s)" in line
    assert "--thor_damping" in line
