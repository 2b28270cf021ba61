import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from towers.datasets.people import PeopleOrder, check_people_per_batch
from towers.errors import BadData, UserError


def labels_of(num_images, seed=0):
    """num_images[i] records of person i, mixed."""
    return np.random.default_rng(seed).permutation(np.repeat(np.arange(len(num_images)), num_images))


def order_of(num_images, people, images, seed=0):
    labels = labels_of(num_images)
    return labels, PeopleOrder(labels, people_per_batch=people, images_per_person=images, seed=seed)


def batches(order, count):
    """Records [count, P, K] of the first batches."""
    shape = count, order.people_per_batch, order.images_per_person
    return order.records(np.arange(np.prod(shape))).reshape(shape)


@st.composite
def compositions(draw):
    num_images = draw(st.lists(st.integers(0, 9), min_size=4, max_size=25))
    eligible = sum(number >= 2 for number in num_images)
    if eligible < 2:
        num_images += [2, 3]
        eligible += 2
    people = draw(st.integers(2, eligible))
    return num_images, people, draw(st.integers(2, 7)), draw(st.integers(0, 2**70))


@settings(max_examples=60, deadline=None)
@given(compositions())
def test_the_laws_of_batches(composition):
    num_images, num_people, size, seed = composition
    labels, order = order_of(num_images, num_people, size, seed)
    eligible = np.flatnonzero(np.array(num_images) >= 2)
    assert np.array_equal(order.people, eligible)
    assert order.left_out.tolist() == [person for person, number in enumerate(num_images) if number == 1]
    count = 4 * len(eligible)
    used = np.zeros(len(labels), int)
    drawn = np.zeros(len(num_images), int)
    stream = []
    for batch in batches(order, count):
        people = labels[batch]
        assert (people == people[:, :1]).all()
        assert len(set(people[:, 0])) == num_people
        stream += people[:, 0].tolist()
        for person, records in zip(people[:, 0], batch, strict=True):
            _, times = np.unique(records, return_counts=True)
            if num_images[person] >= size:
                assert len(times) == size
            else:
                assert len(times) == num_images[person]
                assert times.max() - times.min() <= 1
            np.add.at(used, records, 1)
            drawn[person] += 1
        assert np.ptp(drawn[eligible]) <= 1
    for person in eligible:
        assert np.ptp(used[labels == person]) <= 1
    for first in range(0, len(stream) - len(eligible) + 1, len(eligible)):
        assert sorted(stream[first : first + len(eligible)]) == eligible.tolist()


def test_records_do_not_depend_on_how_they_are_asked_for():
    num_images = np.random.default_rng(1).integers(2, 12, 17)
    _, order = order_of(num_images, 6, 4)
    whole = order.records(np.arange(2400))
    assert whole.dtype == np.int64
    positions = np.random.default_rng(0).permutation(2400)
    assert np.array_equal(order_of(num_images, 6, 4)[1].records(positions), whole[positions])
    halves = [order_of(num_images, 6, 4)[1].records(np.arange(i, i + 12)) for i in range(0, 2400, 12)]
    assert np.array_equal(np.concatenate(halves), whole)
    later = 24 * 17 * 10**6 + np.arange(24)
    assert np.array_equal(order.records(later), order_of(num_images, 6, 4)[1].records(later))


def test_whole_people_go_to_one_tower():
    labels, order = order_of([5] * 12, 6, 4)
    for towers in (1, 2, 3):
        share = 6 * 4 // towers
        for tower in range(3 * towers):
            people, counts = np.unique(labels[order.records(tower * share + np.arange(share))], return_counts=True)
            assert len(people) == 6 // towers
            assert (counts == 4).all()


def test_seeds_passes_and_people_are_drawn_apart():
    streams = [batches(order_of([20] * 100, 10, 4, seed)[1], 20) for seed in (0, 1, 2**64 + 1)]
    flat = [stream.reshape(-1) for stream in (streams[0][:10], streams[0][10:], streams[1][:10], streams[2][:10])]
    for i, one in enumerate(flat):
        for other in flat[:i]:
            assert np.mean(one == other) < 0.02
    own = np.argsort(np.argsort(streams[0][:5].reshape(-1, 4), axis=1), axis=1)
    assert len(np.unique(own, axis=0)) > 10


def test_every_pair_of_pictures_of_a_person_is_equally_likely():
    order = PeopleOrder(np.repeat([0, 1], 5), people_per_batch=2, images_per_person=2, seed=4)
    counts = np.zeros((5, 5))
    drawn = np.sort(batches(order, 1500) % 5, axis=2).reshape(-1, 2)
    np.add.at(counts, (drawn[:, 0], drawn[:, 1]), 1)
    pairs = counts[np.triu_indices(5, 1)]
    expected = 3000 / 10
    chi_square = ((pairs - expected) ** 2 / expected).sum()
    assert pairs.sum() == 3000
    assert chi_square < 9 + 5 * np.sqrt(2 * 9)


def test_people_meet_all_others():
    labels, order = order_of([2] * 15, 4, 2)
    people = labels[batches(order, 1500)[:, :, 0]]
    met = np.zeros((15, 15))
    for batch in people:
        met[np.ix_(batch, batch)] += 1
    others = met[~np.eye(15, dtype=bool)]
    expected = 1500 * 4 * 3 / (15 * 14)
    assert 0.75 * expected < others.min()
    assert others.max() < 1.3 * expected


def test_the_stream_is_the_same_for_ever():
    order = PeopleOrder(np.repeat([0, 1, 2, 3, 4], [3, 5, 2, 7, 1]), people_per_batch=2, images_per_person=2, seed=5)
    stream = [15, 12, 8, 9, 2, 0, 3, 7, 5, 4, 8, 9, 1, 0, 10, 14, 1, 2, 6, 3, 9, 8, 13, 16]
    assert order.records(np.arange(24)).tolist() == stream


def test_threads_get_the_same_records():
    _, order = order_of([7] * 9, 5, 3)
    expected, wrong = order_of([7] * 9, 5, 3)[1].records(np.arange(3000)), []

    def read(first):
        for start in range(first, 3000, 120):
            if not np.array_equal(order.records(np.arange(start, start + 15)), expected[start : start + 15]):
                wrong.append(start)

    threads = [threading.Thread(target=read, args=(15 * index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize(
    ("people", "images", "message"),
    [
        (4, 2, r"a batch of 4 different people .* only 3 people .*\(2 more have only one\).* 3 or fewer"),
        (2, 1, "--images_per_person 1: a positive pair"),
        (1, 2, "--people_per_batch 1: a negative"),
    ],
)
def test_impossible_batches(people, images, message):
    with pytest.raises(UserError, match=message) as error:
        order_of([3, 1, 2, 5, 1], people, images)
    assert error.value.exit_code == 2
    assert "\n" not in str(error.value)


def test_one_picture_a_person_everywhere():
    with pytest.raises(BadData, match="each of the 6 people has one picture, so there is no positive pair"):
        order_of([1] * 6, 2, 2)


def test_people_who_do_not_divide_over_the_towers():
    check_people_per_batch(45, 3)
    with pytest.raises(UserError, match=r"45 = 2 x 22 \+ 1, .* take 44 or 46 people"):
        check_people_per_batch(45, 2)
    with pytest.raises(UserError, match="take 44 people"):
        check_people_per_batch(45, 4)
    with pytest.raises(UserError, match="take 48 people"):
        check_people_per_batch(47, 4)
    with pytest.raises(UserError, match="take 8 people"):
        check_people_per_batch(3, 8)
