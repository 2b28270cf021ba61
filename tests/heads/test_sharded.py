import resource
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

from towers import checkpoints
from towers.errors import UserError
from towers.heads import sharded
from towers.heads.sharded import MergedRows, ShardedHead, sampled_count, shard_starts
from towers.losses.margin import LogitForm
from towers.processes import ALONE
from towers.training import state


def head_on(num_towers, num_classes=10, **settings):
    """A head over so many towers of one device, which is enough to make, save and load it."""
    towers = SimpleNamespace(num_towers=num_towers, device_names=["/CPU:0"] * num_towers)
    towers.local_towers, towers.processes = list(range(num_towers)), ALONE
    settings = {"form": LogitForm(), "seed": 3, **settings}
    return ShardedHead(towers, num_classes, 4, **settings)


def test_shards_differ_by_one_class_at_most():
    assert shard_starts(10, 4) == [0, 3, 6, 8, 10]
    assert shard_starts(4, 4) == [0, 1, 2, 3, 4]


def test_first_weights_depend_on_seed_and_class_only(monkeypatch):
    monkeypatch.setattr(sharded, "_PIECE", 4)
    one = head_on(1).export()
    assert one.shape == (10, 4)
    assert np.abs(one).max() < 0.05
    assert len(np.unique(one)) == one.size
    for num_towers in (2, 3):
        np.testing.assert_array_equal(head_on(num_towers).export(), one)
    np.testing.assert_array_equal(head_on(2, 7).export(), one[:7])
    np.testing.assert_array_equal(head_on(2, dtype="float64").export().astype(np.float32), one)
    assert np.abs(head_on(1, seed=4).export() - one).max() > 0
    assert head_on(2, form=LogitForm(sub_centres=3)).export().shape == (30, 4)


def test_a_checkpoint_of_four_towers_is_taken_up_by_two(tmp_path, monkeypatch):
    monkeypatch.setattr(sharded, "_PIECE", 3)
    four, two = head_on(4), head_on(2, seed=9)
    for number, slot in four.slots.items():
        slot.assign(tf.fill(slot.shape, float(number)))
    checkpoints.save(tmp_path, 1, state.read(four.variables()), {})
    checkpoint, _ = checkpoints.newest(tmp_path)
    arrays = checkpoint.read(in_pieces=["head/weights", "head/momentum"])
    assert not isinstance(arrays["head/weights"], np.ndarray)
    state.write(two.variables(), arrays, "here")
    np.testing.assert_array_equal(two.export(), four.export())
    momentum = np.concatenate([slot.numpy() for slot in two.slots.values()])
    np.testing.assert_array_equal(momentum[:, 0], [0, 0, 0, 1, 1, 1, 2, 2, 3, 3])
    np.testing.assert_array_equal(checkpoint.read()["head/weights"], four.export())


def test_another_class_count_is_refused_and_changes_nothing():
    head = head_on(2)
    before = head.export()
    with pytest.raises(UserError, match=r"\(12, 4\).*\(10, 4\)"):
        head.restore(np.ones((12, 4)))
    with pytest.raises(UserError, match=r"head/weights is \(12, 4\) instead of \(10, 4\)"):
        state.write(head.variables(), state.read(head_on(2, 12).variables()), "there")
    np.testing.assert_array_equal(head.export(), before)


def test_rows_are_written_over_the_border_of_shards():
    rows = MergedRows({0: tf.Variable(tf.zeros([3, 2])), 1: tf.Variable(tf.zeros([2, 2]))}, [0, 3, 5])
    rows.write(2, np.array([[1.0, 2.0], [3.0, 4.0]]))
    (_, first), (start, second) = rows.chunks()
    np.testing.assert_array_equal(first, [[0, 0], [0, 0], [1, 2]])
    assert start == 3
    np.testing.assert_array_equal(second, [[3, 4], [0, 0]])


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.5, float("nan")])
def test_a_rate_out_of_its_range_is_refused(rate):
    with pytest.raises(UserError, match="--sample_rate"):
        sampled_count(rate, 100, 8)


def test_fewer_rows_than_positives_are_refused():
    assert sampled_count(0.08, 100, 8) == 8
    assert sampled_count(1.0, 5, 8) == 5
    with pytest.raises(UserError, match=r"is 7, fewer than a batch of 8 images may hold; give --sample_rate 0.08"):
        sampled_count(0.07, 100, 8)


def test_more_towers_than_classes_and_other_optimizers_are_refused():
    with pytest.raises(UserError, match="2 classes cannot be split over 3 towers"):
        head_on(3, 2)
    with pytest.raises(UserError, match="--optimizer ADAM"):
        head_on(1, rule="ADAM")


def test_writing_some_rows_does_not_copy_the_others():
    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    variable = tf.Variable(tf.zeros([1 << 18, 128]))
    rows = MergedRows({0: variable}, [0, 1 << 18])
    # From its first gather on, TensorFlow copies a variable that is read whole.
    tf.gather(variable, [0])
    before = resident()
    for first in range(0, 1 << 18, 1 << 16):
        rows.write(first, np.ones((8, 128), np.float32))
    assert resident() - before < variable.shape.num_elements() * 4 / 2
    assert tf.reduce_sum(variable) == 4 * 8 * 128
