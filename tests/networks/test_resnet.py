import keras
import numpy as np
import pytest
import tensorflow as tf

from towers.errors import UserError
from towers.networks import build, decayed_variables
from towers.networks.gem import GeM, gem

# With the published classifier of 1,000 classes and its bias.
PUBLISHED = {"resnet18": 11_689_512, "resnet50": 25_557_032, "resnet101": 44_549_160, "se_resnet50": 28_088_024}


def count(variables):
    return sum(int(np.prod(variable.shape)) for variable in variables)


def slow_gem(maps, p):
    pooled = np.empty((len(maps), maps.shape[-1]))
    for b, picture in enumerate(maps):
        for c in range(maps.shape[-1]):
            values = [max(float(x), 1e-6) ** p for x in picture[..., c].reshape(-1)]
            pooled[b, c] = (sum(values) / len(values)) ** (1 / p)
    return pooled


@pytest.fixture(scope="module")
def maps():
    random = np.random.default_rng(0)
    maps = np.maximum(random.normal(size=(3, 5, 4, 6)), 0) * 3
    maps[1, ..., 2] = 0
    return maps


@pytest.mark.parametrize("p", [0.5, 1.0, 1.7, 3.0, 8.0])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-10), ("float32", 1e-5)])
def test_gem_equals_its_equation(maps, p, dtype, tolerance):
    np.testing.assert_allclose(gem(tf.constant(maps, dtype), p), slow_gem(maps, p), rtol=tolerance)


def test_gem_is_the_average_at_1_and_the_maximum_at_infinity(maps):
    np.testing.assert_allclose(gem(tf.constant(maps), 1.0), np.maximum(maps, 1e-6).mean((1, 2)), rtol=1e-12)
    # In float32, powers of 200 are out of range but for the division by the largest.
    np.testing.assert_allclose(gem(tf.constant(maps, "float32"), 200.0), maps.max((1, 2)), rtol=0.02, atol=1e-6)


def test_gradients_of_gem_are_those_of_the_equation(maps):
    x, p = tf.constant(np.abs(maps) + 0.1), tf.constant(2.6, tf.float64)
    with tf.GradientTape() as tape:
        tape.watch([x, p])
        pooled = gem(x, p)
    by_x, by_p = tape.gradient(pooled, [x, p])
    step = 1e-6
    difference = (gem(x, p + step) - gem(x, p - step)) / (2 * step)
    np.testing.assert_allclose(by_p, tf.reduce_sum(difference), rtol=1e-6)
    values = x.numpy()
    want = values**1.6 / 20 * (values**2.6).mean((1, 2), keepdims=True) ** (1 / 2.6 - 1)
    np.testing.assert_allclose(by_x, want, rtol=1e-9)


@pytest.mark.parametrize("p", [0.0, -1.0, float("nan"), float("inf")])
def test_powers_that_are_none_are_refused(p):
    with pytest.raises(UserError, match=f"--gem_p {p}"):
        build("resnet18", image_size=32, embedding_size=512, gem_p=p)


@pytest.mark.parametrize(
    "name", ["resnet18", *(pytest.param(n, marks=pytest.mark.slow) for n in ("resnet101", "se_resnet50"))]
)
def test_published_parameter_counts(name):
    width = 512 if name == "resnet18" else 2048
    network = build(name, image_size=64, embedding_size=width)
    assert network.output_shape == (None, width)
    assert count(network.trainable_variables) + 1000 * width + 1000 == PUBLISHED[name]


def test_resnet50_is_of_the_form_1_5_and_of_the_published_size():
    network = build("resnet50", image_size=224, embedding_size=2048)
    assert count(network.trainable_variables) + 1000 * 2048 + 1000 == PUBLISHED["resnet50"]
    assert network.get_layer("stage2_unit1_1_conv").strides == (1, 1)
    assert network.get_layer("stage2_unit1_2_conv").strides == (2, 2)
    assert network.get_layer("gem").input.shape[1:] == (7, 7, 2048)


def test_squeeze_and_excitation_is_in_every_block():
    """Its counts: down and up with biases, of 256, 512, 1024 and 2048 channels, 3, 4, 6 and 3 times."""
    pairs = zip((256, 512, 1024, 2048), (3, 4, 6, 3), strict=True)
    want = sum(times * (2 * c * c // 16 + c + c // 16) for c, times in pairs)
    assert PUBLISHED["se_resnet50"] - PUBLISHED["resnet50"] == want


def test_the_pooled_map_is_the_embedding_where_the_size_fits():
    same, other = (build("resnet10", image_size=32, embedding_size=size) for size in (512, 96))
    assert same.layers[-1].name == "gem"
    assert [layer.name for layer in other.layers][-3:] == ["gem", "embedding", "embedding_bn"]


def test_any_size_and_shape_of_picture_with_the_same_weights():
    square = build("resnet10", image_size=64, embedding_size=512, seed=3)
    free = build("resnet10", image_size=None, embedding_size=512, seed=4, standardization="per_image")
    fixed = build("resnet10", image_size=64, embedding_size=512, seed=4, standardization="per_image")
    free.set_weights(square.get_weights())
    fixed.set_weights(square.get_weights())
    pictures = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3)).astype("float32")
    np.testing.assert_allclose(free(pictures), fixed(pictures), rtol=1e-5)
    assert free(np.zeros((1, 70, 96, 3), "float32")).shape == (1, 512)


def test_another_p_needs_no_other_weights():
    one, other = (build("resnet10", image_size=96, embedding_size=512, gem_p=p, seed=1) for p in (1.0, 4.0))
    pictures = np.random.default_rng(0).integers(0, 256, (2, 96, 96, 3)).astype("float32")
    assert [v.path for v in one.variables] == [v.path for v in other.variables]
    low, high = one(pictures).numpy(), other(pictures).numpy()
    # A channel that is nowhere positive stays at the clamp.
    assert np.all(high >= low * (1 - 1e-6))
    assert np.mean(high > 1.01 * low) > 0.4


def test_learnt_p_is_trained_and_not_decayed():
    network = build("resnet10", image_size=64, embedding_size=512, gem_p=2.0, learn_gem_p=True)
    (power,) = [variable for variable in network.trainable_variables if variable.path == "gem/p"]
    assert power.numpy() == 2.0
    assert power.path not in [variable.path for variable in decayed_variables(network)]
    power.assign(-1.0)
    pooled = network(np.full((1, 64, 64, 3), 90, "float32")).numpy()
    assert np.isfinite(pooled).all()
    fixed = build("resnet10", image_size=64, embedding_size=512, gem_p=0.1)
    np.testing.assert_allclose(pooled, fixed(np.full((1, 64, 64, 3), 90, "float32")), rtol=1e-4)


def test_networks_without_gem_refuse_its_options():
    for options in ({"gem_p": 3.0}, {"learn_gem_p": True}, {"image_size": None}):
        with pytest.raises(UserError, match="network small.*resnet50"):
            build("small", **{"image_size": 28, "embedding_size": 8, **options})


def test_gem_computes_in_float32_under_a_small_type():
    keras.mixed_precision.set_dtype_policy("mixed_bfloat16")
    try:
        network = build("resnet10", image_size=32, embedding_size=512, learn_gem_p=True)
    finally:
        keras.mixed_precision.set_dtype_policy("float32")
    assert network.get_layer("stage4_unit1_2_conv").compute_dtype == "bfloat16"
    assert network.get_layer("gem").compute_dtype == "float32"
    assert network(np.zeros((1, 32, 32, 3), "float32")).dtype == tf.float32


def test_the_layer_is_rebuilt_from_its_description():
    layer = GeM(2.5, True, name="pool")
    again = GeM.from_config(layer.get_config())
    assert (again.p, again.learnt, again.name) == (2.5, True, "pool")
