"""A process of the MultiGrain tests: 20 steps on some number of towers; losses and variables to a .npz file.

python multigrain_towers.py 2 margin/global/20,margin+thor/global/20,margin/tower/1 out.npz
"""

import sys

import numpy as np
import tensorflow as tf

from towers import networks
from towers.heads.replicated import ReplicatedHead
from towers.networks import decayed_variables, moving_statistics
from towers.runs import run
from towers.training import optimizers
from towers.training.multigrain import MarginBorder, make_objective
from towers.training.step import make_train_step
from towers.training.thor import Thor

BATCH, COPIES, CLASSES = 16, 2, 3


THOR = {"damping": 0.03, "damping_decay": 0.5, "epoch_size": 10, "interval": 6, "kl_clip": 0.001}


def train(towers, loss, scope, steps) -> dict[str, np.ndarray]:
    retrieval_loss, _, thor = loss.partition("+")
    with towers.scope():
        network = networks.build("small", image_size=28, embedding_size=16, sync_bn=True, seed=1)
        head = ReplicatedHead(CLASSES, 16, seed=1, dtype="float64")
        border = MarginBorder(1.2, "float64")
        trained = [*network.trainable_variables, *head.trainable_variables, *border.variables().values()]
        rule = optimizers.build("MOM")
        rule.build(trained)
    objective = make_objective(
        head,
        border,
        lambda batch: tf.cast(batch["image"], network.compute_dtype),
        classification_weight=0.5,
        label_smoothing=0.1,
        retrieval_loss=retrieval_loss,
        mining_scope=scope,
        seed=3,
    )
    step = make_train_step(
        towers,
        network,
        objective,
        rule,
        variables=trained,
        decayed=[*decayed_variables(network), *head.decayed_variables],
        statistics=moving_statistics(network),
        weight_decay=1e-4,
        thor=Thor(towers, network, [head], **THOR) if thor else None,
    )
    random = np.random.default_rng(0)
    share = BATCH // towers.num_towers
    logs = []
    for number in range(steps):
        records = np.repeat(random.permutation(30)[: BATCH // COPIES], COPIES)
        whole = {
            "image": np.random.default_rng(7).uniform(0, 255, (30, 28, 28, 3))[records]
            + random.normal(0, 30, (BATCH, 28, 28, 3)),
            "label": records % CLASSES,
            "record": records,
            "position": number * BATCH + np.arange(BATCH),
        }

        def part(context, whole=whole):
            own = slice(context.replica_id_in_sync_group * share, (context.replica_id_in_sync_group + 1) * share)
            return {name: tf.constant(value[own]) for name, value in whole.items()}

        spread = towers.strategy.experimental_distribute_values_from_function(part)
        per_tower, shared = step(spread, tf.constant(number, tf.int64), tf.constant(0.05, tf.float64))
        logs.append(shared["loss"].numpy())
    assert all(len(value) == towers.num_towers for value in per_tower.values())
    weights = np.concatenate([variable.numpy().reshape(-1) for variable in trained])
    return {"losses": np.array(logs), "weights": weights, **{name: value.numpy() for name, value in per_tower.items()}}


def main(num_towers: int, settings: str) -> dict[str, np.ndarray]:
    towers = run.set_up(towers=num_towers, precision="float64", seed=1)
    results = {}
    for setting in settings.split(","):
        loss, scope, steps = setting.split("/")
        found = train(towers, loss, scope, int(steps))
        results |= {f"{loss}/{scope}/{name}": value for name, value in found.items()}
    return results


if __name__ == "__main__":
    np.savez(sys.argv[3], **main(int(sys.argv[1]), sys.argv[2]))
