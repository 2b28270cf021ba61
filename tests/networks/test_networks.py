import keras
import numpy as np
import pytest
import tensorflow as tf

from towers.errors import UserError
from towers.networks import ALIASES, EMBEDDING_HEADS, NETWORKS, build, decayed_variables, moving_statistics
from towers.networks.iresnet import UNITS
from towers.networks.layers import BatchNormalization
from towers.networks.mnasnet import mnasnet
from towers.networks.small import first_stride


def pictures(count, size, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3)).astype("uint8")


def count(variables):
    return sum(int(np.prod(variable.shape)) for variable in variables)


# Deep variants of a network that the quick tests see in a shallower form; r34 to r200 are r18 with more units.
DEEP = ("resnet50", "resnet101", "se_resnet50")
NAMES = [name for name in NETWORKS if name not in UNITS or name == "r18"]
NAMES = [pytest.param(name, marks=pytest.mark.slow) if name in DEEP else name for name in NAMES]


class Networks(dict):
    """Networks in float64, at their least size and with dropout: made once, when they are first asked for."""

    def __missing__(self, name):
        keras.mixed_precision.set_dtype_policy("float64")
        network = NETWORKS[name]
        self[name] = build(
            name,
            image_size=network.least_image_size,
            embedding_size=network.embedding_size or 512,
            keep_probability=0.8,
        )
        keras.mixed_precision.set_dtype_policy("float32")
        return self[name]


@pytest.fixture(scope="module")
def networks():
    return Networks()


def mobilefacenet_parameters(width, second_conv, map_size, embedding_size, embedding_bn):
    """The block table of InsightFace's mobilefacenet, each convolution with a BN of 2 per channel, PReLU 1 more."""

    def bottleneck(inputs, expansion, outputs):
        return (inputs + 3) * expansion + (9 + 3) * expansion + (expansion + 2) * outputs

    total = (27 + 3) * width + second_conv + 3 * width
    total += bottleneck(width, 128, width) * 5
    total += bottleneck(width, 256, 2 * width) + 6 * bottleneck(2 * width, 256, 2 * width)
    total += bottleneck(2 * width, 512, 2 * width) + 2 * bottleneck(2 * width, 256, 2 * width)
    total += (2 * width + 3) * 512
    return total + (map_size**2 + 2) * 512 + 512 * embedding_size + embedding_bn * embedding_size


def inception_parameters(embedding_size):
    """facenet's block table: every convolution has a beta for each filter, the last one of a block a bias."""

    def chain(inputs, *layers):
        total = 0
        for area, filters in layers:
            total += (inputs * area + 1) * filters
            inputs = filters
        return total

    total = chain(3, (9, 32), (9, 32), (9, 64), (1, 80), (9, 192), (9, 256))
    block35 = chain(256, (1, 32)) + chain(256, (1, 32), (9, 32)) + chain(256, (1, 32), (9, 32), (9, 32))
    total += 5 * (block35 + chain(96, (1, 256)))
    total += chain(256, (9, 384)) + chain(256, (1, 192), (9, 192), (9, 256))
    block17 = chain(896, (1, 128)) + chain(896, (1, 128), (7, 128), (7, 128))
    total += 10 * (block17 + chain(256, (1, 896)))
    total += chain(896, (1, 256), (9, 384)) + chain(896, (1, 256), (9, 256)) + chain(896, (1, 256), (9, 256), (9, 256))
    block8 = chain(1792, (1, 192)) + chain(1792, (1, 192), (3, 192), (3, 192))
    total += 6 * (block8 + chain(384, (1, 1792)))
    return total + 1792 * embedding_size + embedding_size


def test_mobilefacenet_y1_has_the_published_size():
    network = build("mobilefacenet_y1", image_size=112, embedding_size=128)
    parameters = count(network.trainable_variables)
    assert parameters == mobilefacenet_parameters(64, 9 * 64, 7, 128, embedding_bn=1)
    assert round(parameters / 1e6, 2) == 1.00


def test_mobilefacenet_has_the_published_size():
    network = build("mobilefacenet", image_size=112, embedding_size=512)
    parameters = count(network.trainable_variables)
    assert parameters == mobilefacenet_parameters(128, 9 * 2 * 128, 7, 512, embedding_bn=2)
    assert round(parameters / 1e6, 2) == 2.06


def test_inception_resnet_v1_has_the_published_size(networks):
    parameters = count(networks["inception_resnet_v1"].trainable_variables)
    assert parameters == inception_parameters(512)
    assert round(parameters / 1e6, 2) == 23.47


def multiplications(network):
    """Of one picture, in the convolutions and linear layers."""
    total = 0
    for layer in network.layers:
        if hasattr(layer, "kernel"):
            total += np.prod(layer.output.shape[1:-1], dtype=int) * int(np.prod(layer.kernel.shape))
    return total


@pytest.mark.parametrize(
    "name, parameters, giga",
    [
        ("r18", 24_025_600, 2.61),
        pytest.param("r34", 34_139_328, 4.46, marks=pytest.mark.slow),
        pytest.param("r50", 43_590_848, 6.31, marks=pytest.mark.slow),
        pytest.param("r100", 65_156_160, 12.09, marks=pytest.mark.slow),
        pytest.param("r200", 118_833_920, 23.42, marks=pytest.mark.slow),
    ],
)
def test_iresnets_have_the_published_size(name, parameters, giga):
    """The published count includes a gamma fixed at 1 and a bias that the last normalisation takes out again."""
    network = build(name, image_size=112, embedding_size=512)
    assert count(network.trainable_variables) + 2 * 512 == parameters
    assert network.get_layer("head_bn").output.shape == (None, 7, 7, 512)
    assert network.output_shape == (None, 512)
    assert round(multiplications(network) / 1e9, 2) == giga


def mnasnet_parameters(width, embedding_size):
    """The block table of InsightFace's fmnasnet: a BN of 2 a channel after each convolution, PReLUs of one slope."""
    channels, outputs = int(32 * width), int(16 * width)
    total = (27 + 2) * channels + 1 + (9 + 2) * channels + 1 + (channels + 2) * outputs + 1
    table = ((3, 24, 3, 3), (3, 40, 3, 5), (6, 80, 3, 5), (6, 96, 2, 3), (6, 192, 4, 5), (6, 320, 1, 3))
    for expansion, filters, units, kernel_size in table:
        filters = int(filters * width)
        for area in [kernel_size**2] + [9] * (units - 1):
            expanded = expansion * outputs
            total += (outputs + 2) * expanded + 1 + (area + 2) * expanded + 1 + (expanded + 2) * filters
            outputs = filters
    last = int(1024 * width)
    return total + (outputs + 2) * last + 1 + (49 + 2 + embedding_size) * last + embedding_size


@pytest.mark.parametrize("width, millions, giga", [(0.5, 0.93, 0.083), (1, 3.26, 0.30)])
def test_mnasnet_has_the_published_size(width, millions, giga):
    network = mnasnet(112, 256, 1.0, False, "fixed", 0, "GDC", width)
    assert count(network.trainable_variables) == mnasnet_parameters(width, 256)
    assert round((count(network.trainable_variables) + 2 * 256) / 1e6, 2) == millions
    assert network.get_layer("last_prelu").output.shape == (None, 7, 7, 1024 * width)
    assert multiplications(network) / 1e9 == pytest.approx(giga, abs=0.005)


def test_mobilefacenets_have_the_published_cost():
    assert round(multiplications(build("y1", image_size=112, embedding_size=128)) / 1e9, 3) == 0.221
    assert round(multiplications(build("mbf", image_size=112, embedding_size=512)) / 1e9, 4) == 0.4375


def test_a_unit_of_an_iresnet_equals_its_equations(networks):
    network = networks["r18"]
    rng = np.random.default_rng(1)
    names = ("bn1", "conv1", "bn2", "prelu", "conv2", "bn3", "shortcut_conv", "shortcut_bn")
    parts = {name: network.get_layer(f"stage2_unit1_{name}") for name in names}
    for part in parts.values():
        for variable in part.variables:
            variable.assign(rng.uniform(0.1, 1, variable.shape) * (1 if "variance" in variable.path else 0.3))

    def norm(x, layer):
        scaled = (x - layer.moving_mean.numpy()) / np.sqrt(layer.moving_variance.numpy() + 1e-5)
        return scaled * layer.gamma.numpy() + layer.beta.numpy()

    whole = keras.Model(parts["bn1"].input, network.get_layer("stage2_unit1_add").output)
    x = rng.normal(size=(2, 14, 14, 64))
    y = norm(numpy_conv(norm(x, parts["bn1"]), parts["conv1"].kernel.numpy(), 1), parts["bn2"])
    y = np.where(y > 0, y, parts["prelu"].slope.numpy() * y)
    y = norm(numpy_conv(y, parts["conv2"].kernel.numpy(), 2), parts["bn3"])
    shortcut = norm(x[:, ::2, ::2] @ parts["shortcut_conv"].kernel.numpy()[0, 0], parts["shortcut_bn"])
    np.testing.assert_allclose(whole(x), y + shortcut, rtol=1e-10, atol=1e-10)


HEAD_LAYERS = {
    "E": "head_bn head_flatten dropout embedding embedding_bn",
    "F": "head_bn head_flatten dropout embedding",
    "H": "head_flatten dropout embedding",
    "J": "head_flatten dropout embedding embedding_bn",
    "GAP": "head_bn head_prelu head_pool dropout embedding embedding_bn",
    "GDC": "global_conv global_bn global_flatten dropout embedding embedding_bn",
    "GNAP": "head_bn head_weights head_pool head_pool_bn dropout embedding embedding_bn",
    "SFC": "head_bn head_depthwise head_depthwise_bn head_depthwise_prelu head_project head_project_bn "
    "head_project_prelu head_flatten dropout embedding embedding_bn",
}
HEAD_LAYERS |= {"FC": HEAD_LAYERS["E"], "I": HEAD_LAYERS["E"], "G": HEAD_LAYERS["F"]}


@pytest.mark.parametrize("head", EMBEDDING_HEADS)
def test_embedding_heads(head, policy):
    policy("mixed_float16")
    network = build("y1", image_size=48, embedding_size=16, keep_probability=0.5, embedding_head=head)
    names = [layer.name for layer in network.layers]
    assert names[names.index("last_prelu") + 1 :] == HEAD_LAYERS[head].split()
    assert network.get_layer("embedding").use_bias == (head in "FGH")
    embeddings = network(pictures(2, 48).astype("float32"))
    assert embeddings.shape == (2, 16)
    assert embeddings.dtype == tf.float32
    assert np.isfinite(embeddings).all()


@pytest.mark.parametrize(
    "embedding_size, widened, linear", [(256, False, True), (512, False, False), (600, True, False)]
)
def test_gnap_fits_the_map_to_the_embedding(embedding_size, widened, linear):
    network = build("y1", image_size=48, embedding_size=embedding_size, embedding_head="GNAP")
    names = [layer.name for layer in network.layers]
    assert ("head_widen" in names, "embedding" in names, "head_pool_bn" in names) == (widened, linear, linear)
    assert network.output_shape == (None, embedding_size)


@pytest.mark.parametrize("alias", ALIASES)
def test_insightface_names_mean_the_same_network(alias):
    paths = [
        [variable.path for variable in build(name, image_size=48, embedding_size=8).variables]
        for name in (alias, ALIASES[alias])
    ]
    assert paths[0] == paths[1]


@pytest.mark.parametrize(
    "size, stride, last", [(28, 2, 2), (32, 2, 2), (56, 2, 4), (57, 2, 4), (105, 2, 7), (113, 4, 4), (224, 4, 7)]
)
def test_small_fits_its_first_stride_to_the_picture(size, stride, last):
    assert first_stride(size) == stride
    if size > 112:
        return
    network = build("small", image_size=size, embedding_size=128)
    assert network.get_layer("block4_prelu").output.shape[1:] == (last, last, 256)
    assert multiplications(network) <= 60e6
    assert 0.4e6 < count(network.trainable_variables) < 0.6e6


@pytest.mark.parametrize("name", NAMES)
def test_paths_are_unique(networks, name):
    paths = [variable.path for variable in networks[name].variables]
    assert len(set(paths)) == len(paths)
    assert all(path.count("/") == 1 for path in paths)


@pytest.mark.parametrize("name", NAMES)
def test_float64_is_float64_throughout(networks, name):
    network = networks[name]
    size = network.input_shape[1]
    assert {layer.compute_dtype for layer in network.layers} == {"float64"}
    assert {variable.dtype for variable in network.variables} == {"float64", "int64"}

    @tf.function
    def gradients(images):
        weights = [variable.value for variable in network.trainable_variables]
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(network(images, training=True) ** 2)
        return tape.gradient(loss, weights)

    traced = gradients.get_concrete_function(tf.TensorSpec([2, size, size, 3], tf.uint8))
    small_types = (tf.float32, tf.float16, tf.bfloat16)
    names = [op.name for op in traced.graph.get_operations() for out in op.outputs if out.dtype in small_types]
    # Dropout may draw its mask in any type.
    assert not [name for name in names if "/dropout" not in name]
    assert None not in traced.structured_outputs


@pytest.mark.parametrize("name", NAMES)
def test_embeddings_and_dropout_in_training_only(networks, name):
    network = networks[name]
    # A pooled map of the right width is the embedding itself.
    pooled = network.get_layer("dropout").input.shape[-1] == 512 and "gem_p" in NETWORKS[name].own
    last = ["dropout"] if pooled or NETWORKS[name].embedding_size else ["dropout", "embedding", "embedding_bn"]
    assert [layer.name for layer in network.layers][-len(last) :] == last
    assert network.get_layer("dropout").rate == pytest.approx(0.2)
    images = pictures(2, network.input_shape[1])
    embeddings = network(images).numpy()
    assert embeddings.shape == (2, NETWORKS[name].embedding_size or 512)
    assert np.isfinite(embeddings).all()
    np.testing.assert_array_equal(network(images), embeddings)
    for layer in network.layers:
        if isinstance(layer, BatchNormalization):
            layer.trainable = False
    dropped = network(images, training=True).numpy()
    # Relative: at first the embeddings of some networks are tiny.
    assert not np.allclose(dropped, embeddings, atol=0)
    assert not np.allclose(dropped, network(images, training=True), atol=0)
    network.trainable = True


def test_keeping_everything_needs_no_dropout():
    assert "dropout" not in [layer.name for layer in build("small", image_size=28, embedding_size=4).layers]


def numpy_conv(x, kernel, stride):
    """A "same" convolution from its definition: x [b, H, W, C], kernel [k, k, C, F]."""
    k, out = kernel.shape[0], -(-x.shape[1] // stride)
    padding = max((out - 1) * stride + k - x.shape[1], 0)
    before = padding // 2
    x = np.pad(x, [(0, 0), (before, padding - before), (before, padding - before), (0, 0)])
    result = np.zeros((len(x), out, out, kernel.shape[-1]))
    for i in range(out):
        for j in range(out):
            window = x[:, i * stride : i * stride + k, j * stride : j * stride + k]
            result[:, i, j] = np.einsum("bijc,ijcf->bf", window, kernel)
    return result


@pytest.mark.parametrize("size", [30, 113])
def test_small_equals_its_equations(size, float64):
    network = build("small", image_size=size, embedding_size=8, seed=5)
    rng = np.random.default_rng(1)
    for variable in network.variables:
        if len(variable.shape) == 1:
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))
    weights = {variable.path: variable.numpy() for variable in network.variables}

    def norm(x, name, center=True):
        deviation = np.sqrt(weights[f"{name}/moving_variance"] + 1e-3)
        x = (x - weights[f"{name}/moving_mean"]) / deviation * weights[f"{name}/gamma"]
        return x + weights[f"{name}/beta"] if center else x

    images = pictures(2, size)
    x = (images - 127.5) / 128
    for block in range(1, 5):
        x = norm(
            numpy_conv(x, weights[f"block{block}_conv/kernel"], first_stride(size) if block == 1 else 2),
            f"block{block}_bn",
        )
        x = np.where(x > 0, x, weights[f"block{block}_prelu/slope"] * x)
    x = norm((x * weights["global_conv/kernel"][..., 0]).sum((1, 2)), "global_bn", center=False)
    x = norm(x @ weights["embedding/kernel"], "embedding_bn")
    np.testing.assert_allclose(network(images), x, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
def test_mixed_policies_give_float32_embeddings(kind, policy):
    networks = []
    for dtype_policy in ("float32", f"mixed_{kind}"):
        policy(dtype_policy)
        networks.append(
            build("small", image_size=28, embedding_size=8, keep_probability=0.5, standardization="per_image")
        )
    reference, network = networks
    assert network.get_layer("block2_conv").compute_dtype == kind
    assert {variable.dtype for variable in network.trainable_variables} == {"float32"}
    images = pictures(16, 28).astype("float32")
    for training in (True, False):
        assert network(images, training=training).dtype == tf.float32
    standardized = network.get_layer("standardization")(images)
    assert standardized.dtype == tf.float32
    network.set_weights(reference.get_weights())
    got, want = network(images).numpy(), reference(images).numpy()
    assert 0 < np.abs(got - want).max() < 0.05 * np.abs(want).max()


def test_weights_are_saved_and_loaded_by_path(tmp_path):
    network, other = (build("small", image_size=28, embedding_size=8, seed=seed) for seed in (1, 2))
    images = pictures(4, 28)
    network(images, training=True)
    assert not np.array_equal(network(images), other(images))
    np.savez(tmp_path / "weights.npz", **{variable.path: variable.numpy() for variable in network.variables})
    with np.load(tmp_path / "weights.npz") as stored:
        for variable in other.variables:
            variable.assign(stored[variable.path])
    np.testing.assert_array_equal(network(images), other(images))


def test_seed_decides_the_first_weights():
    first, same, other = (build("small", image_size=28, embedding_size=8, seed=seed) for seed in (1, 1, 2))
    for a, b, c in zip(first.get_weights(), same.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
        if a.ndim > 1:
            assert not np.array_equal(a, c)


@pytest.mark.parametrize("name", NAMES)
def test_roles_of_variables(networks, name):
    """Kernels are all that has more than one axis; Inception-ResNet has biases too."""
    network = networks[name]
    decayed = {variable.path for variable in decayed_variables(network)}
    assert decayed == {variable.path for variable in network.variables if len(variable.shape) > 1}
    statistics = [variable.path.split("/") for variable in moving_statistics(network)]
    norms = [layer.name for layer in network.layers if isinstance(layer, BatchNormalization)]
    assert statistics == [[norm, part] for norm in norms for part in ("moving_mean", "moving_variance")]


def test_roles_go_by_the_type_of_the_layer():
    layers = [
        keras.layers.Dense(3, name="gamma"),
        keras.layers.BatchNormalization(name="kernel"),
        keras.layers.PReLU(name="dense"),
    ]
    network = keras.Sequential([keras.Input((2,)), *layers])
    assert decayed_variables(network) == [layers[0].kernel]
    assert moving_statistics(network) == [layers[1].moving_mean, layers[1].moving_variance]


@pytest.mark.parametrize(
    "name, changes, part",
    [
        ("resnet", {}, "googlenet, inception_resnet_v1, mnas05, mobilefacenet, mobilefacenet_y1, r18, .*, r200, small"),
        ("r18", {"image_size": 27}, "28 pixels"),
        ("mnas05", {"image_size": 27}, "28 pixels"),
        ("r18", {"embedding_head": "Z"}, "E, F, FC"),
        ("small", {"embedding_head": "E"}, "no such choice; these have it: mnas05"),
        ("small", {"image_size": 27}, "28 pixels"),
        ("mobilefacenet", {"image_size": 47}, "48 pixels"),
        ("mobilefacenet_y1", {"image_size": 47}, "48 pixels"),
        ("inception_resnet_v1", {"image_size": 74}, "75 pixels"),
        ("small", {"embedding_size": 0}, "1 or more"),
        ("small", {"keep_probability": 0.0}, "above 0"),
        ("small", {"keep_probability": 1.5}, "at most 1"),
        ("small", {"standardization": "none"}, "fixed, per_image"),
    ],
)
def test_wrong_requests_are_refused(name, changes, part):
    with pytest.raises(UserError, match=part):
        build(name, **{"image_size": 112, "embedding_size": 8, **changes})
