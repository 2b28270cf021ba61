import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from towers.datasets.order import CACHED_PASSES, Order, permutation


@settings(max_examples=40, deadline=None)
@given(num_records=st.integers(1, 500), seed=st.integers(0, 2**63), number=st.integers(0, 2**40))
def test_each_pass_holds_every_record_once(num_records, seed, number):
    order = Order(num_records, seed)
    records = order.records(number * num_records + np.arange(num_records))
    assert records.dtype == np.int64
    assert np.array_equal(np.sort(records), np.arange(num_records))


def test_records_do_not_depend_on_how_they_are_asked_for():
    whole = Order(7, 3).records(np.arange(100))
    order = Order(7, 3)
    positions = np.random.default_rng(0).permutation(100)
    assert np.array_equal(order.records(positions), whole[positions])
    assert np.array_equal(np.concatenate([Order(7, 3).records(np.arange(i, i + 4)) for i in range(0, 100, 4)]), whole)


def test_passes_and_seeds_differ():
    orders = [permutation(1000, seed, number) for seed in (0, 1) for number in (0, 1, 2)]
    for i, one in enumerate(orders):
        for other in orders[:i]:
            assert np.mean(one == other) < 0.02


def test_the_stream_is_the_same_for_ever():
    assert permutation(10, 5, 2).tolist() == [4, 7, 9, 6, 0, 8, 1, 5, 2, 3]


def test_every_place_is_equally_likely_for_a_record():
    counts = np.zeros((5, 5))
    for number in range(4000):
        counts[permutation(5, 11, number), np.arange(5)] += 1
    chi_square = ((counts - 800) ** 2 / 800).sum()
    assert chi_square < 16 + 5 * np.sqrt(2 * 16)


def test_the_next_pass_is_prepared_beforehand_and_old_ones_are_let_go():
    order = Order(10, 0)
    order.records(np.array([25]))
    assert list(order._passes) == [3, 2] or set(order._passes) == {2, 3}
    order._worker.shutdown(wait=True)
    assert order.records(np.array([2 * 10 + 9])) == permutation(10, 0, 2)[9]
    fresh = Order(10, 0)
    fresh.records(np.arange(1000))
    assert len(fresh._passes) <= CACHED_PASSES


def test_threads_get_the_same_records():
    order, expected, wrong = Order(50, 1), Order(50, 1).records(np.arange(5000)), []

    def read(first):
        for start in range(first, 5000, 80):
            if not np.array_equal(order.records(np.arange(start, start + 10)), expected[start : start + 10]):
                wrong.append(start)

    threads = [threading.Thread(target=read, args=(10 * index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize(("num_records", "seed"), [(0, 1), (5, -1)])
def test_impossible_arguments(num_records, seed):
    with pytest.raises(ValueError, match="must"):
        Order(num_records, seed)
