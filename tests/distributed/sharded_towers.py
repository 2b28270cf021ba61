"""A process of the sharded heads' tests: steps of a linear network on a number of towers; results to a .npz file.

python sharded_towers.py QUICK TOWERS OUT.npz

Each run is a dict of QUICK or of SLOW. With SGD at learning rate 1 and no momentum, the change of a weight is minus its
gradient.
"""

import sys

import keras
import numpy as np
import tensorflow as tf

from towers.distribution import Towers
from towers.heads.sharded import ShardedHead
from towers.losses.margin import NormStatistics
from towers.training import optimizers
from towers.training.margins import chosen_loss, make_objective
from towers.training.step import make_train_step

B, C, D, INPUTS, SEED = 8, 23, 6, 5, 7
LOSS = {
    "loss": "arcface",
    "margin_m1": None,
    "margin_m2": None,
    "margin_m3": None,
    "scale": 8.0,
    "sub_centres": 1,
    "interclass_filtering_threshold": 0.0,
    "logits_chunk": 0,
}
GRADIENT = {"steps": 1, "rule": "SGD", "learning_rate": 1.0}
TRAINED = {"steps": 4, "rule": "MOM", "learning_rate": 0.05, "weight_decay": 0.01}
QUICK = {
    "arcface": GRADIENT,
    "sampled": {**GRADIENT, "sample_rate": 0.5, "logits_chunk": 4, "sub_centres": 2},
    "trained": TRAINED,
    "trained sampled": {**TRAINED, "sample_rate": 0.5},
    "accumulated sampled": {**TRAINED, "sample_rate": 0.5, "accumulate": 2, "clip_norm": 1e9},
    "poisoned sampled": {**TRAINED, "poison": [3, 1], "sample_rate": 0.5},
}
SLOW = {
    "arcface32": {**GRADIENT, "dtype": "float32"},
    "softmax": {**GRADIENT, "loss": "softmax", "scale": None},
    "combined": {**GRADIENT, "loss": "combined", "margin_m1": 1.1},
    "adaface": {**GRADIENT, "loss": "adaface"},
    "magface": {**GRADIENT, "loss": "magface"},
    "chunks": {**GRADIENT, "logits_chunk": 3},
    "sub-centres": {**GRADIENT, "sub_centres": 2, "interclass_filtering_threshold": 0.3},
    "clipped": {**GRADIENT, "clip_norm": 0.1},
    "accumulated": {**TRAINED, "accumulate": 2},
    "poisoned": {**TRAINED, "poison": [3, 6]},
}


def batches(steps):
    random = np.random.default_rng(1)
    kernel = random.normal(size=(INPUTS, D)) * 4
    return kernel, [
        {"image": random.normal(size=(B, INPUTS)), "label": random.integers(C, size=B)} for _ in range(steps)
    ]


def run(
    towers,
    *,
    steps,
    rule,
    learning_rate,
    dtype="float64",
    weight_decay=0.0,
    sample_rate=None,
    clip_norm=0.0,
    accumulate=1,
    poison=None,
    **loss,
):
    """``poison``: [step, example] whose input is NaN."""
    keras.config.set_floatx(dtype)
    keras.mixed_precision.set_dtype_policy(dtype)
    chosen = chosen_loss(**{**LOSS, **loss})
    kernel, whole = batches(steps)
    with towers.scope():
        network = keras.Sequential([keras.Input((INPUTS,)), keras.layers.Dense(D, use_bias=False)])
        network.set_weights([kernel])
        optimizer = optimizers.build("SGD")
        optimizer.build(network.trainable_variables)
        statistics = NormStatistics(share=0.5, dtype=dtype)
    head = ShardedHead(
        towers,
        C,
        D,
        form=chosen.form,
        seed=SEED,
        rule=rule,
        weight_decay=weight_decay,
        sample_rate=sample_rate,
        largest_batch=B,
        dtype=dtype,
    )
    start = head.export()
    step_function = make_train_step(
        towers,
        network,
        make_objective(head, lambda batch: batch["image"], chosen, statistics=statistics),
        optimizer,
        variables=network.trainable_variables,
        decayed=[],
        statistics=[],
        clip_norm=clip_norm,
        head=head,
        accumulate=accumulate,
    )
    share = B // towers.num_towers
    logs = {"loss": [], "gradient_norm": [], "finite": [], "accuracy": []}
    for step, batch in enumerate(whole):
        image = batch["image"].copy()
        if poison is not None and step == poison[0]:
            image[poison[1]] = np.nan

        def part(context, image=image, label=batch["label"]):
            own = slice(context.replica_id_in_sync_group * share, (context.replica_id_in_sync_group + 1) * share)
            return {"image": tf.constant(image[own], dtype), "label": tf.constant(label[own])}

        spread = towers.strategy.experimental_distribute_values_from_function(part)
        rate = tf.constant(learning_rate, tf.float64)
        per_tower, shared = step_function(spread, tf.constant(step, tf.int64), rate)
        for name in ("loss", "gradient_norm", "finite"):
            logs[name].append(shared[name].numpy())
        logs["accuracy"].append(per_tower["accuracy"].numpy().mean())
    variables = {name: np.concatenate([piece for _, piece in rows.chunks()]) for name, rows in head.variables().items()}
    return {
        **{name: np.asarray(values) for name, values in logs.items()},
        **variables,
        "start": start,
        "kernel": network.get_weights()[0],
        "norm_mean": statistics.mean.numpy(),
    }


def main(runs: dict, num_towers: int) -> dict[str, np.ndarray]:
    towers = Towers.create(num_towers)
    return {f"{name}/{key}": value for name, options in runs.items() for key, value in run(towers, **options).items()}


if __name__ == "__main__":
    np.savez(sys.argv[3], **main({"QUICK": QUICK, "SLOW": SLOW}[sys.argv[1]], int(sys.argv[2])))
