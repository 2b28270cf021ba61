import numpy as np
import tensorflow as tf
from losses import triplet_reference as slow

from towers.hashing import keyed_hash


def test_equals_integers_of_any_size():
    first = [0, 1, 2**31, 2**32 - 1, 2**32, 2**62]
    second = [3, 2**40]
    for seed, n in ((0, 0), (666, 4), (2**63, 2**32 - 1)):
        got = keyed_hash(seed, n, tf.constant(first, tf.int64)[:, None], tf.constant(second, tf.int64)).numpy()
        assert got.tolist() == [[slow.keyed_hash(seed, n, a, b) for b in second] for a in first]


def test_order_of_positions_matters():
    a, b = tf.constant([5], tf.int64), tf.constant([9], tf.int64)
    assert keyed_hash(1, 0, a, b).numpy() != keyed_hash(1, 0, b, a).numpy()


def test_pairs_of_neighbours_spread_evenly():
    places = tf.range(300, dtype=tf.int64)
    bins = np.bincount(keyed_hash(7, 0, places[:, None], places[None, :]).numpy().ravel() >> 24, minlength=256)
    assert len(bins) == 256
    assert ((bins - 90000 / 256) ** 2 / (90000 / 256)).sum() < 340
