"""Trains a linear network with the selected head, a few times: python selected_towers.py TOWERS CASES.json OUT.npz"""

import json
import sys
import threading
import time

import keras
import numpy as np
import tensorflow as tf

from towers.classcenters.indexes import exact
from towers.classcenters.selection import Settings
from towers.classcenters.spec import MatrixSpec
from towers.classcenters.store import memory_store
from towers.distribution import Towers
from towers.errors import PeerLost
from towers.heads.selected import SelectedHead
from towers.losses.margin import LogitForm, Margin
from towers.training import optimizers
from towers.training.step import TowerLosses, make_train_step

C, D, B, INPUT = 40, 6, 8, 5


def train(
    towers,
    num_selected=C,
    steps=6,
    index=False,
    interval=2,
    follow=False,
    bad_step=-1,
    query="center",
    dtype="float32",
    margin=0.0,
    lost_step=-1,
    late=False,
    wait=True,
):
    store = memory_store()
    store.create("head", MatrixSpec(rows=C, columns=D, seed=2, scale=0.5, rule="momentum", weight_decay=0.01))
    first = store.pull("head", np.arange(C))
    rebuilds, calls = [], []
    head = SelectedHead(
        towers,
        store,
        "head",
        form=LogitForm(normalised=True, scale=4.0) if margin else LogitForm(normalised=False, scale=1.0),
        settings=Settings(num_selected, 1, interval),
        query=query,
        dtype=dtype,
        build=(lambda points, breadth, **arguments: exact.build(points, **arguments)) if index else None,
        wait=wait,
        found=rebuilds.append,
    )
    select = head.selector.select
    head.selector.select = lambda *given, **named: calls.append(named["step"]) or select(*given, **named)
    keras.mixed_precision.set_dtype_policy(dtype)
    with towers.scope():
        network = keras.Sequential([keras.Input((INPUT,), dtype=dtype), keras.layers.Dense(D, use_bias=False)])
        network.set_weights([np.random.default_rng(1).normal(size=(INPUT, D))])
        optimizer = optimizers.build("SGD")
        optimizer.build(network.trainable_variables)

    arrived = threading.Event()

    def noted(features):
        arrived.set()
        return features

    def objective(network, batch):
        features = network(batch["image"])
        if late:
            noted_features = tf.numpy_function(noted, [features], features.dtype)
            with tf.control_dependencies([noted_features]):
                features = tf.identity(features)
        losses, hits = head.classify(features, batch["label"], batch["rows"], Margin(offsets=margin))
        return TowerLosses(losses, tf.ones_like(losses), {"accuracy": tf.reduce_mean(hits)})

    step_of = make_train_step(
        towers,
        network,
        objective,
        optimizer,
        variables=network.trainable_variables,
        decayed=[],
        statistics=[],
        head=head,
    )
    random = np.random.default_rng(3)
    images = random.normal(size=(steps, B, INPUT)).astype(dtype)
    labels = random.integers(0, C, (steps, B))
    if bad_step >= 0:
        images[bad_step] = np.nan
    share = B // towers.num_towers

    def batches(local):
        parts = [
            {"image": images[s, t * share : (t + 1) * share], "label": labels[s, t * share : (t + 1) * share]}
            for s in range(steps)
            for t in local
        ]
        return tf.data.Dataset.from_tensor_slices(
            {name: np.stack([part[name] for part in parts]) for name in ("image", "label")}
        )

    pull = store.pull

    def pull_or_lose(name, rows, version=None):
        if version == lost_step:
            raise PeerLost("the server is gone")
        if late and len(rows) == num_selected:
            # Rows that do not come before the features of their step: without a pull beside it none would come.
            if not arrived.wait(30):
                raise PeerLost("a step does not begin before its rows are there")
            arrived.clear()
            time.sleep(0.05)
        return pull(name, rows, version)

    store.pull = pull_or_lose
    feed = towers.feed(batches)
    step_of, selected = head.around(step_of), []
    waits, losses, centres, kernels, gradients = [], [], [], [network.get_weights()[0]], []
    for step, batch in enumerate(head.follow(feed) if follow else feed):
        head.settle()
        centres.append(pull("head", np.arange(C)))
        try:
            per_tower, shared = step_of(batch, tf.constant(step, tf.int64), tf.constant(0.1, tf.float64))
        except PeerLost as error:
            return {"error": np.array(f"step {step}: {error}")}
        losses.append(float(shared["loss"]))
        waits.append(per_tower["server_wait_seconds"] + per_tower["selection_wait_seconds"])
        selected.append(np.concatenate(head._parts))
        kernels.append(network.get_weights()[0])
        gradients.append(np.concatenate([part.numpy() for part in head._gradients]))
    weights = head.export()
    assert not late or not arrived.is_set()
    head.restore(weights[::-1].copy())
    np.testing.assert_array_equal(head.export(), weights[::-1])
    return {
        "first": first,
        "images": images,
        "labels": labels,
        "losses": np.array(losses),
        "weights": weights,
        "kernel": network.get_weights()[0],
        "centres": np.stack(centres),
        "kernels": np.stack(kernels),
        "gradients": np.stack(gradients),
        "calls": np.array(calls),
        "waits": np.stack(waits),
        "selected": np.stack(selected),
        "version": np.array(store.version("head")),
        "rebuilds": np.array([rebuild.step for rebuild in rebuilds]),
        "recalls": np.array([rebuild.measured.recall for rebuild in rebuilds]),
    }


if __name__ == "__main__":
    made = Towers.create(int(sys.argv[1]))
    cases = {name: train(made, **options) for name, options in json.loads(sys.argv[2]).items()}
    np.savez(sys.argv[3], **{f"{name}/{key}": value for name, case in cases.items() for key, value in case.items()})
