"""Train one embedding for classes, instances and copies (MultiGrain), on any number of towers.

python train_multigrain.py --synthetic --network resnet10 --embedding_size 512 --image_size 64 --batch_size 60
python train_multigrain.py --data_dir IMAGENET/train --val_dir IMAGENET/val --batch_size 516 --towers 4
python train_multigrain.py --data_dir PICTURES --classification_weight 0.5 --retrieval_loss triplet --copies 2
"""

from functools import partial
from pathlib import Path

from towers import networks, options
from towers.datasets.repeated import RepeatedAudit, RepeatedOrder, check_copies
from towers.heads.replicated import ReplicatedHead
from towers.networks import decayed_variables, moving_statistics
from towers.runs import dry_run, gem_choice, multigrain, pictures, plan, run
from towers.training.multigrain import MarginBorder, check_options, make_objective


def make_parser() -> options.Parser:
    parser = options.Parser(__doc__)
    options.add_data(parser)
    options.add_filtering(parser, held_out=False)
    options.add_towers(parser)
    options.add_batches(parser, batch_size=258)
    options.add_network(parser, network="resnet50", embedding_size=2048)
    options.add_optimizer(parser, optimizer="MOM", learning_rate=0.1)
    options.add_multigrain(parser)
    options.add_run(parser)
    parser.set_defaults(image_size=224, weight_decay=1e-4, moving_average_decay=0.0)
    return parser


def main(arguments) -> None:
    pick = partial(options.pick, arguments)
    check_options(**pick("classification_weight label_smoothing retrieval_loss copies alpha beta mining"))
    if arguments.synthetic:
        vars(arguments).update(multigrain.standin_data_set(Path(__file__).parent))
    source, _, _ = pictures.training_pictures(**pick(pictures.SOURCE_OPTIONS))
    num_classes = multigrain.num_logits(source, arguments.class_num)
    towers = run.set_up(**pick("towers reduction precision deterministic seed"))
    steps = plan.plan_steps(len(source), towers.num_towers, where=str(arguments.data_dir), **pick(plan.STEP_OPTIONS))
    check_copies(arguments.copies, steps.batch_size, towers.num_towers)
    learning_rate = plan.learning_rates(steps, **pick(plan.RATE_OPTIONS))

    sizes = {
        "image_size": arguments.image_size,
        "load_size": pictures.load_size(**pick(pictures.LOAD_OPTIONS)),
    }
    network_arguments = run.network_arguments(**pick(f"{run.NETWORK_OPTIONS} gem_p learn_gem_p"))
    with towers.scope():
        network = networks.build(**network_arguments)
        dtype = "float64" if arguments.precision == "float64" else "float32"
        head = ReplicatedHead(num_classes, arguments.embedding_size, seed=arguments.seed, dtype=dtype)
        border = MarginBorder(arguments.beta, dtype)
    if arguments.pretrained_model:
        run.start_from(arguments.pretrained_model, network)
    with_border = arguments.retrieval_loss == "margin"
    trained = [*network.trainable_variables, *head.trainable_variables]
    trained += border.variables().values() if with_border else ()
    thor = run.make_thor(towers, network, [head], steps.epoch_size, **pick(run.THOR_OPTIONS))
    if arguments.dry_run:
        return print(dry_run.describe(vars(arguments), source, steps, network, trained, towers.num_towers, thor))

    objective = make_objective(
        head,
        border,
        multigrain.preparation(network, **pick(multigrain.AUGMENTATION_OPTIONS)),
        **pick("classification_weight label_smoothing retrieval_loss mining mining_scope alpha seed"),
    )
    validators = multigrain.validators(
        towers, network, head, source.class_names, **sizes, **pick(multigrain.VALIDATION_OPTIONS)
    )
    # With the classes alone beta stays where it began, and is no border.
    if with_border and arguments.classification_weight < 1:
        validators.append(lambda log, step: {"margin_beta": float(border.beta.numpy())})
    if arguments.learn_gem_p:
        validators.append(gem_choice.power_validator(gem_choice.learnt_power(network)))
    run.train(
        towers=towers,
        plan=steps,
        source=source,
        order=RepeatedOrder(len(source), copies=arguments.copies, seed=arguments.seed),
        make_audit=lambda path, first_step: RepeatedAudit(
            path, len(source), copies=arguments.copies, first_step=first_step
        ),
        network=network,
        network_arguments=network_arguments,
        objective=objective,
        trained=trained,
        decayed=[*decayed_variables(network), *head.decayed_variables],
        statistics=moving_statistics(network),
        other_state=head.variables() | (border.variables() if with_border else {}),
        learning_rate=learning_rate,
        load_size=sizes["load_size"],
        crop=pictures.resized_crop(**pick(pictures.CROP_OPTIONS)),
        float16=arguments.precision == "float16",
        validators=validators,
        options=options.recorded(arguments),
        model_facts={"class_names": source.class_names, **options.recorded(arguments, "data_dir val_dir")},
        classifier=lambda: tuple(values[: source.num_classes] for values in head.export()),
        thor=thor,
        **pick(run.OPTIONS),
    )


if __name__ == "__main__":
    options.call(main, make_parser())
