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
    draws = [draw(step(number)).numpy() for number in range(400)]
    counts = sum(np.bincount(drawn, minlength=1000) for drawn in draws)
    # Binomial with mean 20: a class in a thousand is farther than 4.5 deviations once in 150 such tests.
    assert np.abs(counts - 20).max() < 4.5 * np.sqrt(19) + 1
    # Neighbours are not drawn together more often than any two classes.
    pairs = sum(np.isin(drawn + 1, drawn).sum() for drawn in draws)
    assert pairs == pytest.approx(400 * 50 * 49 / 1000, rel=0.15)


def test_positives_are_always_in_and_no_class_twice():
    labels = tf.constant([7, 3, 7, 19, 0], tf.int64)
    sample = tf.function(lambda number: sampled_classes(labels, 1, number, 10, 20))
    for number in range(20):
        classes = sample(step(number)).numpy()
        assert len(classes) == 10
        assert {0, 3, 7, 19} <= set(classes)
        assert (np.diff(classes) > 0).all()
        assert classes[-1] < 20
        # The others are those that are drawn first.
        others = [drawn for drawn in draw_distinct(1, step(number), 10, 20).numpy() if drawn not in (0, 3, 7, 19)]
        assert set(classes) == {0, 3, 7, 19, *others[:6]}


def test_more_positives_than_rows_leave_no_negatives():
    np.testing.assert_array_equal(sampled_classes(tf.constant([4, 2, 1], tf.int64), 1, step(0), 2, 9), [1, 2, 4])
