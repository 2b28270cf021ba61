"""Train an embedding by softmax over the training people, on any number of towers, and validate it on unseen ones.

python train_softmax.py --synthetic
python train_softmax.py --data_dir FACES --lfw_dir LFW --lfw_pairs pairs.txt --towers 2 --max_epochs 20
python train_softmax.py --data_dir FACES --lfw_dir LFW --run_dir runs/mine     # once more: goes on where it ended
"""

from functools import partial
from pathlib import Path

from towers import networks, options
from towers.datasets.audit import Audit
from towers.datasets.order import Order
from towers.heads.replicated import ReplicatedHead
from towers.losses.center import CenterTable
from towers.networks import decayed_variables, moving_statistics
from towers.runs import dry_run, pictures, plan, run, validation
from towers.training.classification import make_objective


def make_parser() -> options.Parser:
    parser = options.Parser(__doc__)
    options.add_data(parser)
    options.add_filtering(parser)
    options.add_towers(parser)
    options.add_batches(parser, batch_size=64)
    options.add_network(parser, network="small", embedding_size=128)
    options.add_optimizer(parser, optimizer="MOM", learning_rate=0.05)
    options.add_softmax(parser)
    options.add_lfw(parser)
    options.add_run(parser)
    return parser


def main(arguments) -> None:
    pick = partial(options.pick, arguments)
    if arguments.synthetic:
        vars(arguments).update(pictures.embedded_data_set(Path(__file__).parent))
    source, held_out, held_out_labels = pictures.training_pictures(**pick(pictures.OPTIONS))
    towers = run.set_up(**pick("towers reduction precision deterministic seed"))
    steps = plan.plan_steps(len(source), towers.num_towers, where=str(arguments.data_dir), **pick(plan.STEP_OPTIONS))
    learning_rate = plan.learning_rates(steps, **pick(plan.RATE_OPTIONS))

    sizes = {
        "image_size": arguments.image_size,
        "load_size": pictures.load_size(**pick("load_size image_size random_crop")),
    }
    network_arguments = run.network_arguments(**pick(run.NETWORK_OPTIONS))
    with towers.scope():
        network = networks.build(**network_arguments)
        dtype = "float64" if arguments.precision == "float64" else "float32"
        head = ReplicatedHead(source.num_classes, arguments.embedding_size, seed=arguments.seed, dtype=dtype)
        centers = CenterTable(source.num_classes, arguments.embedding_size, arguments.center_loss_alfa, dtype)
    if arguments.pretrained_model:
        run.start_from(arguments.pretrained_model, network)
    trained = [*network.trainable_variables, *head.trainable_variables]
    if arguments.dry_run:
        return print(dry_run.describe(vars(arguments), source, steps, network, trained, towers.num_towers))

    objective = make_objective(
        head,
        pictures.preparation(network, **pick(pictures.AUGMENTATION_OPTIONS)),
        centers=centers,
        **pick("label_smoothing center_loss_factor prelogits_norm_loss_factor prelogits_norm_p"),
    )
    validators = []
    if held_out is not None:
        validators.append(validation.classes_validator(towers, network, held_out, held_out_labels, head, **sizes))
    if arguments.lfw_dir:
        validators.append(validation.pairs_validator(towers, network, **sizes, **pick(validation.LFW_OPTIONS)))
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
        decayed=[*decayed_variables(network), *head.decayed_variables],
        statistics=moving_statistics(network),
        other_state=head.variables() | (centers.variables() if arguments.center_loss_factor else {}),
        learning_rate=learning_rate,
        load_size=sizes["load_size"],
        float16=arguments.precision == "float16",
        validators=validators,
        options=options.recorded(arguments),
        model_facts={"class_names": list(source.class_names), **options.recorded(arguments, "lfw_dir lfw_pairs")},
        **pick(run.OPTIONS),
    )


if __name__ == "__main__":
    options.call(main, make_parser())
