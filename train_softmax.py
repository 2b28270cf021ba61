"""Train by softmax over classes on any number of towers: embeddings of people, or a classifier of images.

python train_softmax.py --synthetic
python train_softmax.py --network googlenet --data_dir IMAGES/train --val_dir IMAGES/test --image_size 84 --random_flip
python train_softmax.py --data_dir FACES --lfw_dir LFW --lfw_pairs pairs.txt --towers 2 --max_epochs 20
python train_softmax.py --data_dir FACES --lfw_dir LFW --run_dir runs/mine     # once more: goes on where it ended
python scripts/launch.py --workers 2 -- train_softmax.py --synthetic           # two processes; machines: --hosts
"""

from functools import partial
from pathlib import Path

from towers import networks, options
from towers.datasets.audit import Audit
from towers.datasets.order import Order
from towers.heads.replicated import ReplicatedHead
from towers.losses.center import CenterTable
from towers.networks import decayed_variables, moving_statistics
from towers.processes import ALONE
from towers.runs import dry_run, pictures, plan, run, validation
from towers.training.classification import make_objective


def make_parser() -> options.Parser:
    parser = options.Parser(__doc__)
    options.add_data(parser)
    options.add_filtering(parser)
    options.add_towers(parser, several_processes=True)
    options.add_batches(parser, batch_size=64)
    options.add_network(parser, network="small", embedding_size=128)
    options.add_optimizer(parser, optimizer="MOM", learning_rate=0.05)
    options.add_softmax(parser)
    options.add_lfw(parser)
    options.add_run(parser)
    return parser


def main(arguments, processes=ALONE) -> None:
    pick = partial(options.pick, arguments)
    if arguments.synthetic:
        vars(arguments).update(pictures.embedded_data_set(Path(__file__).parent))
    source, held_out, held_out_labels = pictures.training_pictures(**pick(pictures.OPTIONS))
    towers = run.set_up(**pick("towers reduction precision deterministic seed"), processes=processes)
    steps = plan.plan_steps(len(source), towers.num_towers, where=str(arguments.data_dir), **pick(plan.STEP_OPTIONS))
    learning_rate = plan.learning_rates(steps, **pick(plan.RATE_OPTIONS))

    sizes = {
        "image_size": arguments.image_size,
        "load_size": pictures.load_size(**pick(pictures.LOAD_OPTIONS)),
    }
    network_arguments = run.network_arguments(**pick(run.NETWORK_OPTIONS))
    with towers.scope():
        network = networks.build(**network_arguments, auxiliary=arguments.auxiliary_loss_factor > 0)
        dtype = "float64" if arguments.precision == "float64" else "float32"
        head = ReplicatedHead(source.num_classes, arguments.embedding_size, seed=arguments.seed, dtype=dtype)
        auxiliary_heads = [
            ReplicatedHead(
                source.num_classes, features.shape[-1], seed=arguments.seed + index, dtype=dtype, name=f"aux{index}"
            )
            for index, features in enumerate(network.outputs[1:], start=1)
        ]
        centers = CenterTable(source.num_classes, arguments.embedding_size, arguments.center_loss_alfa, dtype)
    if arguments.pretrained_model:
        run.start_from(arguments.pretrained_model, network)
    heads = [head, *auxiliary_heads]
    head_weights = [variable for each in heads for variable in each.trainable_variables]
    trained = [*network.trainable_variables, *head_weights]
    thor = run.make_thor(towers, network, heads, steps.epoch_size, **pick(run.THOR_OPTIONS))
    if arguments.dry_run:
        return print(dry_run.describe(vars(arguments), source, steps, network, trained, towers.num_towers, thor))

    objective = make_objective(
        head,
        pictures.preparation(network, **pick(pictures.AUGMENTATION_OPTIONS)),
        auxiliary_heads=auxiliary_heads,
        centers=centers,
        **pick("label_smoothing auxiliary_loss_factor center_loss_factor prelogits_norm_loss_factor prelogits_norm_p"),
    )
    inference = networks.inference(network)
    validators = []
    if held_out is not None:
        validators.append(
            validation.classes_validator(towers, inference, held_out, held_out_labels, head.export, **sizes)
        )
    if arguments.lfw_dir:
        validators.append(validation.pairs_validator(towers, inference, **sizes, **pick(validation.LFW_OPTIONS)))
    run.train(
        towers=towers,
        plan=steps,
        source=source,
        order=Order(len(source), arguments.seed),
        make_audit=lambda path, first_step: Audit(path, len(source), first_step=first_step),
        network=network,
        network_arguments=network_arguments,
        objective=objective,
        trained=trained,
        decayed=[*decayed_variables(network), *(variable for each in heads for variable in each.decayed_variables)],
        statistics=moving_statistics(network),
        other_state={variable.path: variable for variable in head_weights}
        | (centers.variables() if arguments.center_loss_factor else {}),
        learning_rate=learning_rate,
        load_size=sizes["load_size"],
        crop=pictures.resized_crop(**pick(pictures.CROP_OPTIONS)),
        float16=arguments.precision == "float16",
        validators=validators,
        options=options.recorded(arguments),
        model_facts={
            "class_names": list(source.class_names),
            **options.recorded(arguments, "lfw_dir lfw_pairs val_dir"),
        },
        classifier=head.export,
        thor=thor,
        **pick(run.OPTIONS),
    )


if __name__ == "__main__":
    options.call(main, make_parser(), several_processes=True)
