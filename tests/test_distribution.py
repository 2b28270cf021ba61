"""Which devices become towers, and what cannot."""

import pytest
import tensorflow as tf
from conftest import run_python

from towers import distribution
from towers.errors import UserError


class Gpu:
    device_type = "GPU"
    name = "/physical_device:GPU:0"


def test_more_towers_than_gpus(monkeypatch):
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind=None: [Gpu(), Gpu()] if kind == "GPU" else [])
    with pytest.raises(UserError, match=r"--towers 3: this machine shows 2 GPU\(s\).*--towers 2 or fewer"):
        distribution.Towers.create(3)


def test_no_tower_and_unknown_reductions_are_refused():
    with pytest.raises(UserError, match="at least one tower"):
        distribution.Towers.create(0)
    with pytest.raises(UserError, match="--reduction horovod"):
        distribution.Towers.create(1, "horovod")


def test_outside_of_run_there_is_one_tower():
    values = tf.constant([[1.0, 2.0]])
    assert distribution.tower_index() == 0
    assert distribution.all_gather(values) is values
    assert distribution.sum_over_towers(values) is values


GATHER = """
import tensorflow as tf
from towers.distribution import Towers, all_gather, sum_over_towers, tower_index
towers = Towers.create(2)

@tf.function(autograph=False)
def step():
    def tower():
        index = tower_index()
        values = tf.constant([[1.0], [2.0]]) + 10.0 * index
        weights = tf.constant([1.0, 2.0, 3.0, 4.0]) * (index + 1)
        with tf.GradientTape() as tape:
            tape.watch(values)
            loss = tf.reduce_sum(weights * all_gather(values)[:, 0])
        gathered = all_gather(values)[:, 0]
        sums = towers.sum_gradients([values, tf.constant(2, tf.int64) + index])
        return gathered, tape.gradient(loss, values)[:, 0], sum_over_towers(values)[:, 0], sums[0][:, 0], sums[1]
    return towers.run(tower)

for value in step():
    print([part.numpy().tolist() for part in towers.local_values(value)])
"""


def test_gathering_with_gradient_and_sums():
    lines = run_python("-c", GATHER).stdout.splitlines()
    assert lines[-5] == "[[1.0, 2.0, 11.0, 12.0], [1.0, 2.0, 11.0, 12.0]]"
    # Tower r weighs the gathered rows by (1, 2, 3, 4) * (r + 1): a row's gradient is the sum over the towers.
    assert lines[-4] == "[[3.0, 6.0], [9.0, 12.0]]"
    assert lines[-3] == lines[-2] == "[[12.0, 14.0], [12.0, 14.0]]"
    assert lines[-1] == "[5, 5]"
