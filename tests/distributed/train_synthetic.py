"""A process of the equality tests: a few steps on random pictures, with a number of towers; results to a .npz file.

  python train_synthetic.py '{"network": "small", "towers": 2, "precision": "float64", "steps": 20}' out.npz

Every process makes the same pictures and labels from the same seed; only the number of towers differs.
"""

import json
import sys

import keras
import numpy as np
import tensorflow as tf

from towers import networks
from towers.heads.replicated import ReplicatedHead
from towers.losses.center import CenterTable
from towers.networks import decayed_variables, moving_statistics
from towers.runs import run
from towers.training import optimizers, state
from towers.training.averaging import WeightAverage
from towers.training.classification import make_objective
from towers.training.loss_scale import LossScale
from towers.training.step import make_train_step
from towers.training.thor import Thor

NUM_CLASSES = 5


def main(
    *,
    network="small",
    towers=1,
    precision="float64",
    reduction="cpu",
    steps=3,
    image_size=32,
    batch_size=8,
    embedding_size=16,
    sync_bn=True,
    keep_probability=1.0,
    optimizer="MOM",
    learning_rate=0.05,
    clip_norm=0.0,
    weight_decay=5e-4,
    center_loss_factor=0.1,
    poison=None,
    norm=None,
    prelogits_norm_loss_factor=1e-3,
    auxiliary=False,
    auxiliary_loss_factor=0.3,
    thor=None,
    accumulate=1,
) -> dict[str, np.ndarray]:
    """Train a few steps.

    Args:
      poison: [step, index in the global batch] whose picture is made NaN.
      thor: arguments of ``Thor``, which then preconditions the network and all heads.
      auxiliary: with auxiliary classifiers; ``small`` gets two, after its first and its third block.
    """
    spread = run.set_up(towers=towers, reduction=reduction, precision=precision, seed=1)
    dtype = "float64" if precision == "float64" else "float32"
    with spread.scope():
        model = networks.build(
            network,
            image_size=image_size,
            embedding_size=embedding_size,
            sync_bn=sync_bn,
            keep_probability=keep_probability,
            norm=norm,
            auxiliary=auxiliary,
            seed=1,
        )
        if auxiliary and network == "small":
            taps = [model.get_layer(f"block{block}_prelu").output for block in (1, 3)]
            pooled = [keras.layers.GlobalAveragePooling2D(name=f"aux{n}_pool")(tap) for n, tap in enumerate(taps, 1)]
            model = keras.Model(model.inputs[0], [model.outputs[0], *pooled])
        auxiliary_heads = [
            ReplicatedHead(NUM_CLASSES, output.shape[-1], seed=1 + index, dtype=dtype, name=f"aux{index}")
            for index, output in enumerate(model.outputs[1:], start=1)
        ]
        head = ReplicatedHead(NUM_CLASSES, embedding_size, seed=1, dtype=dtype)
        centers = CenterTable(NUM_CLASSES, embedding_size, 0.5, dtype)
        heads = [head, *auxiliary_heads]
        trained = [*model.trainable_variables, *(variable for each in heads for variable in each.trainable_variables)]
        rule = optimizers.build(optimizer)
        rule.build(trained)
        average = WeightAverage(trained, 0.9)
        loss_scale = LossScale() if precision == "float16" else None
    if thor is not None:
        thor = Thor(spread, model, heads, **{"damping": 0.03, "damping_decay": 0.5, "epoch_size": 5, **thor})
    train_step = make_train_step(
        spread,
        model,
        make_objective(
            head,
            lambda batch: tf.cast(batch["image"], model.compute_dtype),
            auxiliary_heads=auxiliary_heads,
            auxiliary_loss_factor=auxiliary_loss_factor,
            centers=centers,
            center_loss_factor=center_loss_factor,
            prelogits_norm_loss_factor=prelogits_norm_loss_factor,
        ),
        rule,
        variables=trained,
        decayed=[*decayed_variables(model), *(variable for each in heads for variable in each.decayed_variables)],
        statistics=moving_statistics(model),
        weight_decay=weight_decay,
        clip_norm=clip_norm,
        average=average,
        loss_scale=loss_scale,
        thor=thor,
        accumulate=accumulate,
    )
    random = np.random.default_rng(0)
    share = batch_size // towers
    logs = {"loss": [], "gradient_norm": [], "finite": [], "tower_losses": []}
    for step in range(steps):
        images = random.uniform(0, 255, (batch_size, image_size, image_size, 3))
        labels = random.integers(NUM_CLASSES, size=batch_size)
        if poison is not None and poison[0] == step:
            images[poison[1]] = np.nan

        def own_part(context, images=images, labels=labels):
            part = slice(context.replica_id_in_sync_group * share, (context.replica_id_in_sync_group + 1) * share)
            return {"image": tf.constant(images[part]), "label": tf.constant(labels[part])}

        batch = spread.strategy.experimental_distribute_values_from_function(own_part)
        per_tower, shared = train_step(batch, tf.constant(step, tf.int64), tf.constant(learning_rate, tf.float64))
        for name in ("loss", "gradient_norm", "finite"):
            logs[name].append(shared[name].numpy())
        logs["tower_losses"].append(per_tower["loss"].numpy())
        if thor is not None:
            logs.setdefault("thor_refreshed", []).append(shared["thor_refreshed"].numpy())
        for name in ("main", *(each.name for each in auxiliary_heads)):
            logs.setdefault(f"tower_{name}", []).append(per_tower[name].numpy())
    variables = {
        **state.named("network", model.variables),
        **{f"optimizer/{name}": variable for name, variable in optimizers.state(rule).items()},
        **{variable.path: variable for each in heads for variable in each.trainable_variables},
        **centers.variables(),
        **{f"average/{name}": variable for name, variable in average.variables().items()},
    }
    if thor is not None:
        variables |= {f"thor/{name}": variable for name, variable in thor.variables().items()}
    if loss_scale is not None:
        variables |= {f"loss_scale/{name}": variable for name, variable in loss_scale.variables().items()}
    results = {name: np.asarray(values, np.float64) for name, values in logs.items()}
    results["shards_differ"] = np.array(
        [
            name
            for name, variable in variables.items()
            if any(
                not np.array_equal(copy.numpy(), variable.numpy(), equal_nan=True)
                for copy in spread.local_values(variable.value if isinstance(variable, keras.Variable) else variable)
            )
        ]
    )
    return results | {f"state/{name}": value for name, value in state.read(variables).items()}


if __name__ == "__main__":
    np.savez(sys.argv[2], **main(**json.loads(sys.argv[1])))
