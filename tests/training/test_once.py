"""A training picture is read once and goes through the network once, whatever is mined from it."""

import threading
from collections import Counter

import numpy as np
import pytest
import tensorflow as tf
from datasets.pictures import face, jpeg

from towers.datasets.decoding import Quarantine
from towers.datasets.folder import read_folder
from towers.datasets.people import PeopleOrder
from towers.datasets.pipeline import train_dataset
from towers.losses.triplet import MINING_RULES
from towers.training.triplets import make_objective


class CountingSource:
    """A source that keeps which records were read, call by call."""

    def __init__(self, source):
        self._source = source
        self._lock = threading.Lock()
        self.reads = []

    def __len__(self):
        return len(self._source)

    def __getattr__(self, name):
        return getattr(self._source, name)

    def reader(self, records):
        with self._lock:
            self.reads.append(tuple(int(record) for record in records))
        return self._source.reader(records)


def test_each_picture_of_a_batch_is_read_once(tmp_path):
    for index in range(24):
        path = tmp_path / f"P{index // 6}" / f"{index}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(jpeg(face(index)))
    source = CountingSource(read_folder(tmp_path))
    order = PeopleOrder(source.labels, people_per_batch=4, images_per_person=2, seed=1)
    dataset = train_dataset(
        source,
        order,
        first_step=0,
        global_batch=8,
        towers=[0, 1],
        num_towers=2,
        load_size=16,
        quarantine=Quarantine(source),
    )
    used = [tuple(element["record"].tolist()) for element in dataset.take(12).as_numpy_iterator()]
    reads = Counter(source.reads)
    assert reads >= Counter(used)
    # Beside them, only batches that were read ahead and that nobody took, each once too.
    ahead = order.records(np.arange(4 * (sum(reads.values()) + 16))).reshape(-1, 4)
    assert reads <= Counter(map(tuple, ahead.tolist()))


@pytest.mark.parametrize("scope", ["tower", "global"])
@pytest.mark.parametrize("mining", MINING_RULES)
def test_the_network_sees_the_batch_once(mining, scope):
    calls = []

    def network(inputs, training):
        calls.append(inputs)
        return inputs

    embeddings = tf.random.stateless_normal([6, 4], [1, 2])
    objective = make_objective(lambda batch: embeddings, mining=mining, mining_scope=scope, alpha=0.2)
    objective(network, {"label": tf.constant([0, 0, 1, 1, 2, 2], tf.int64), "position": tf.range(6, dtype=tf.int64)})
    assert len(calls) == 1
    assert calls[0] is embeddings
