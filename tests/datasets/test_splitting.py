"""Pictures held out of every class."""

import numpy as np
import pytest

from towers.datasets.folder import Source
from towers.datasets.splitting import split_classes


@pytest.fixture
def source():
    labels = np.repeat([0, 1, 2], [10, 4, 1])
    return Source("root", [f"{label}/{index}.jpg" for index, label in enumerate(labels)], labels, ["a", "b", "c"])


def test_a_share_of_each_class_is_held_out_and_every_picture_is_on_one_side(source):
    kept, held_out = split_classes(source, 0.3, seed=1)
    assert np.bincount(source.labels[held_out], minlength=3).tolist() == [3, 1, 0]
    assert sorted([*kept.files, *(source.files[record] for record in held_out)]) == sorted(source.files)
    assert kept.class_names == source.class_names


def test_a_class_keeps_at_least_one_picture(source):
    kept, _ = split_classes(source, 0.99, seed=1)
    assert np.bincount(kept.labels).tolist() == [1, 1, 1]


def test_classes_that_give_too_few_are_left_whole(source):
    _, held_out = split_classes(source, 0.3, min_held_out=2, seed=1)
    assert set(source.labels[held_out]) == {0}


def test_the_choice_is_by_seed(source):
    first, again, other = (split_classes(source, 0.3, seed=seed)[1].tolist() for seed in (1, 1, 2))
    assert first == again
    assert first != other
