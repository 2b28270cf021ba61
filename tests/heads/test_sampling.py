import numpy as np
import pytest
import tensorflow as tf

from towers.heads.sampling import draw_distinct, sampled_classes


def step(number):
    return tf.constant(number, tf.int64)


@pytest.mark.parametrize("num_classes", [1, 2, 5, 100, 10_007])
def test_a_whole_draw_is_a_permutation(num_classes):
    drawn = draw_distinct(3, step(5), num_classes, num_classes)
    np.testing.assert_array_equal(np.sort(drawn), np.arange(num_classes))


def test_draws_depend_on_seed_and_step_and_cover_all_classes_alike():
    first = draw_distinct(3, step(5), 50, 1000).numpy()
    np.testing.assert_array_equal(first, draw_distinct(3, step(5), 50, 1000))
    np.testing.assert_array_equal(first[:20], draw_distinct(3, step(5), 20, 1000))
    assert len(np.intersect1d(first, draw_distinct(4, step(5), 50, 1000))) < 15
    assert len(np.intersect1d(first, draw_distinct(3, step(6), 50, 1000))) < 15
    draw = tf.function(lambda number: draw_distinct(3, number, 50, 1000))
    counts = sum(np.bincount(draw(step(number)), minlength=1000) for number in range(400))
    # Binomial with mean 20: a class in a thousand is farther than 4.5 deviations once in 150 such tests.
    assert np.abs(counts - 20).max() < 4.5 * np.sqrt(19) + 1
    # Neighbours are not drawn together more often than any two classes.
    pairs = sum(np.isin(np.unique(draw(step(number))) + 1, draw(step(number))).sum() for number in range(200))
    assert pairs == pytest.approx(200 * 50 * 49 / 999, rel=0.25)


def test_positives_are_always_in_and_no_class_twice():
    labels = tf.constant([7, 3, 7, 19, 0], tf.int64)
    for number in range(20):
        positives, negatives = sampled_classes(labels, 1, step(number), 10, 20)
        np.testing.assert_array_equal(positives, [0, 3, 7, 19])
        assert len(np.unique(np.concatenate([positives, negatives]))) == 10
        assert (negatives.numpy() < 20).all()


def test_more_positives_than_rows_leave_no_negatives():
    positives, negatives = sampled_classes(tf.constant([4, 2, 1], tf.int64), 1, step(0), 2, 9)
    np.testing.assert_array_equal(positives, [1, 2, 4])
    assert len(negatives) == 0
