import keras
import numpy as np
import pytest
import tensorflow as tf

from towers.errors import UserError
from towers.networks import build, decayed_variables, inference, moving_statistics
from towers.networks.googlenet import MODULES
from towers.networks.layers import BatchNormalization, LocalResponseNormalization

# Parameters of each module, biases included, as the table of the paper's network has them.
TABLE = {
    "3a": 163_696,
    "3b": 388_736,
    "4a": 376_176,
    "4b": 449_160,
    "4c": 510_104,
    "4d": 605_376,
    "4e": 868_352,
    "5a": 1_043_456,
    "5b": 1_444_080,
}


def count(variables):
    return sum(int(np.prod(variable.shape)) for variable in variables)


def make(image_size=84, **options):
    return build("googlenet", image_size=image_size, embedding_size=1024, **options)


@pytest.fixture(scope="module")
def networks():
    """Both forms at the paper's size, with auxiliary features and dropout."""
    return {norm: make(224, norm=norm, auxiliary=True, keep_probability=0.6) for norm in ("bn", "lrn")}


@pytest.mark.parametrize("norm", ["bn", "lrn"])
def test_parameters_are_those_of_the_table(networks, norm):
    network = networks[norm]
    of_module = {
        name: count(
            variable
            for layer in network.layers
            if layer.name.startswith(f"inception_{name}_")
            for variable in layer.trainable_variables
        )
        for name in MODULES
    }
    assert of_module == TABLE
    stem = [layer for layer in network.layers if layer.name.startswith(("conv1_", "conv2_"))]
    assert count(variable for layer in stem for variable in layer.trainable_variables) == 9_472 + 114_944
    main = count(inference(network).trainable_variables)
    assert main == 5_973_552
    assert main + 1000 * 1025 == 6_998_552
    assert main + 100 * 1025 == 6_076_052


def test_the_bn_form_has_moving_statistics_besides():
    """57 convolutions: a mean and a variance for each of their 7,280 filters; no gamma."""
    network = make()
    norms = [layer for layer in network.layers if isinstance(layer, BatchNormalization)]
    assert len(norms) == 57
    assert count(moving_statistics(network)) == 2 * count(layer.beta for layer in norms) == 2 * 7_280
    assert all(layer.gamma is None for layer in norms)
    assert not any(layer.use_bias for layer in network.layers if isinstance(layer, keras.layers.Conv2D))


@pytest.mark.parametrize(("classes", "first", "second"), [(1000, 3_188_840, 3_190_888), (100, 2_266_340, 2_268_388)])
@pytest.mark.parametrize("norm", ["bn", "lrn"])
def test_auxiliary_classifiers_have_the_papers_size(networks, norm, classes, first, second):
    for name, parameters in (("aux1", first), ("aux2", second)):
        layers = [layer for layer in networks[norm].layers if layer.name.startswith(f"{name}_")]
        features = count(variable for layer in layers for variable in layer.trainable_variables)
        assert features + 1025 * classes == parameters


def test_auxiliary_features_are_taken_after_4a_and_4d(networks):
    network = networks["bn"]
    for name, module, channels in (("aux1", "4a", 512), ("aux2", "4d", 528)):
        pool = network.get_layer(f"{name}_pool")
        assert pool.input is network.get_layer(f"inception_{module}_concat").output
        assert pool.input.shape == (None, 14, 14, channels)
        assert pool.output.shape == (None, 4, 4, channels)
        assert network.get_layer(f"{name}_dropout").rate == 0.7
    assert [output.shape for output in network.outputs] == [(None, 1024)] * 3
    assert network.get_layer("dropout").rate == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("image_size", "sides"),
    [(224, (56, 28, 14, 7)), (112, (28, 14, 7, 4)), (84, (21, 11, 6, 3)), (65, (17, 9, 5, 3))],
)
def test_sizes_of_the_maps(networks, image_size, sides):
    network = networks["bn"] if image_size == 224 else make(image_size, auxiliary=True)
    found = [network.get_layer(f"{name}").output.shape[1] for name in ("pool1", "pool2", "pool3", "pool4")]
    assert tuple(found) == sides
    if image_size < 128:
        assert network.get_layer("aux1_flatten").output.shape == (None, 128)


def test_inference_has_the_same_variables_without_auxiliary_parts(networks):
    network = networks["bn"]
    without = inference(network)
    assert not [layer.name for layer in without.layers if layer.name.startswith("aux")]
    own = {variable.path: variable for variable in network.variables}
    assert all(own[variable.path] is variable for variable in without.variables)
    plain = make(224, keep_probability=0.6)
    assert [variable.path for variable in plain.variables] == [variable.path for variable in without.variables]
    assert inference(plain) is plain
    images = np.random.default_rng(0).integers(0, 256, (1, 224, 224, 3))
    np.testing.assert_array_equal(without(images), network(images)[0])


def test_keeping_everything_switches_all_dropout_off():
    assert not [layer.name for layer in make(auxiliary=True).layers if "dropout" in layer.name]


def test_biases_are_not_decayed(networks):
    for network in networks.values():
        decayed = {variable.path for variable in decayed_variables(network)}
        assert decayed == {variable.path for variable in network.variables if len(variable.shape) > 1}


def test_lrn_equals_its_equation(float64):
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 9)) * 100
    expected = np.empty_like(x)
    for channel in range(9):
        near = x[..., max(channel - 2, 0) : channel + 3]
        expected[..., channel] = x[..., channel] / (1 + 1e-4 / 5 * (near**2).sum(-1)) ** 0.75
    result = LocalResponseNormalization()(x)
    assert result.dtype == tf.float64
    np.testing.assert_allclose(result, expected, rtol=1e-12)


def test_lrn_is_wide_under_float16(policy):
    policy("mixed_float16")
    x = np.full((1, 1, 1, 8), 3e3, np.float16)
    result = LocalResponseNormalization()(x)
    assert result.dtype == tf.float16
    assert np.isfinite(result).all()
    assert 0 < result.numpy().min()


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"image_size": 64}, "65 pixels or more: its auxiliary classifiers pool 5 x 5"),
        ({"embedding_size": 128}, "give --embedding_size 1024"),
        ({"norm": "group"}, "bn, lrn"),
        ({"norm": "lrn", "sync_bn": True}, "no batch normalisation"),
    ],
)
def test_wrong_requests_are_refused(changes, part):
    with pytest.raises(UserError, match=part):
        build("googlenet", **{"image_size": 84, "embedding_size": 1024, **changes})


def test_lrn_is_for_googlenet():
    with pytest.raises(UserError, match="network small has no such choice; these have it: googlenet"):
        build("small", image_size=28, embedding_size=4, norm="lrn")
