import numpy as np
import pytest
import scipy.stats
import tensorflow as tf

from towers.datasets.lighting import EIGENVALUES, EIGENVECTORS, check_lighting, light
from towers.errors import UserError

POSITIONS = 2**33 + tf.range(20_000, dtype=tf.int64)


@pytest.fixture(scope="module")
def colours():
    images = tf.fill([len(POSITIONS), 1, 1, 3], tf.constant(128, tf.uint8))
    return light(images, POSITIONS, seed=5, deviation=0.1).numpy()[:, 0, 0] - 128


def test_noise_is_normal_along_the_axes(colours):
    axes = np.array(EIGENVECTORS)
    # The published axes are orthonormal to their four digits.
    np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=2e-4)
    amounts = colours / 255 @ axes
    for axis, eigenvalue in enumerate(EIGENVALUES):
        assert scipy.stats.kstest(amounts[:, axis], "norm", args=(0, 0.1 * eigenvalue)).pvalue > 1e-3
    assert np.abs(np.corrcoef(amounts.T) - np.eye(3)).max() < 0.03


def test_one_colour_a_picture_keyed_by_position():
    images = np.random.default_rng(0).integers(60, 190, (3, 4, 5, 3)).astype(np.uint8)
    lit = light(tf.constant(images), POSITIONS[:3], seed=5, deviation=0.1).numpy()
    added = lit - images
    np.testing.assert_allclose(added, np.broadcast_to(added[:, :1, :1], added.shape), atol=1e-4)
    np.testing.assert_array_equal(light(images[1:2], POSITIONS[1:2], seed=5, deviation=0.1)[0], lit[1])
    assert np.abs(added[0] - added[1]).max() > 0.5
    assert np.abs(light(images, POSITIONS[:3], seed=6, deviation=0.1) - lit).max() > 0.5


def test_levels_stay_in_range_and_no_deviation_changes_nothing():
    images = np.random.default_rng(0).integers(0, 256, (50, 3, 3, 3)).astype(np.uint8)
    lit = light(images, POSITIONS[:50], seed=5, deviation=1.0).numpy()
    assert lit.min() == 0.0
    assert lit.max() == 255.0
    np.testing.assert_array_equal(light(images, POSITIONS[:50], seed=5, deviation=0.0), images)


@pytest.mark.parametrize("deviation", [-0.1, float("nan")])
def test_what_is_no_deviation_is_refused(deviation):
    with pytest.raises(UserError, match="--lighting"):
        check_lighting(deviation)
