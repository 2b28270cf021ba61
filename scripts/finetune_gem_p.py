"""Fine-tune the power of GeM pooling alone, for pictures of another size than those a model was trained on.

python scripts/finetune_gem_p.py --model RUN --data_dir IMAGENET/train --image_size 500 --val_dir IMAGENET/val
python scripts/finetune_gem_p.py --model RUN --data_dir IMAGENET/train --image_size 500 --batch_size 32 --towers 4

MultiGrain's way (Berman et al., 2019, supplement E): 50 pictures a class, once, in batches of 4, by gradient descent of
the cross-entropy with a rate of 0.005 x (1 - i/n)^0.9. All weights, the classifier and the statistics of batch
normalisation stay as they are. The run folder holds the model for the new size.
"""

from functools import partial
from pathlib import Path

from towers import export, options
from towers.datasets.audit import Audit
from towers.datasets.order import Order
from towers.heads.replicated import ReplicatedHead
from towers.runs import dry_run, gem_choice, pictures, plan, retrieval, run, validation
from towers.training.multigrain import make_power_objective


def make_parser() -> options.Parser:
    parser = options.Parser(__doc__)
    parser.add_argument("--model", type=Path, required=True, help="run folder or model folder, with a classifier")
    parser.add_argument("--data_dir", type=Path, required=True, help="pictures as DIR/Class/picture.jpg")
    parser.add_argument("--image_size", type=int, required=True, help="side of the pictures to be used later, pixels")
    parser.add_argument(
        "--load_size", type=int, help="shorter side before the crop, pixels (default: in the model's ratio to the crop)"
    )
    parser.add_argument("--images_per_class", type=int, default=50, help="pictures taken of each class")
    parser.add_argument("--gem_p", type=float, help="first power (default: the model's)")
    parser.add_argument("--val_dir", type=Path, help="other pictures of the classes: DIR/Class/picture.jpg")
    parser.add_argument(
        "--max_bad_fraction", type=float, default=0.001, help="share of unreadable pictures that ends the run"
    )
    parser.add_argument("--audit_data", action="store_true", help="write which tower saw which record")
    options.add_towers(parser)
    options.add_batches(parser, batch_size=4)
    options.add_optimizer(parser, optimizer="SGD", learning_rate=0.005)
    options.add_run(parser)
    parser.set_defaults(max_epochs=1, learning_rate_schedule="polynomial", learning_rate_power=0.9)
    parser.set_defaults(weight_decay=0.0, moving_average_decay=0.0)
    return parser


def main(arguments) -> None:
    pick = partial(options.pick, arguments)
    gem_choice.check_options(**pick("optimizer sync_bn"))
    classifier = export.read_classifier(*export.read_facts(arguments.model))
    source = gem_choice.pictures_to_fine_tune_on(arguments.data_dir, arguments.images_per_class, classifier.class_names)
    sizes, changes = retrieval.resolution(**pick("model image_size load_size gem_p"))
    towers = run.set_up(**pick("towers reduction precision deterministic seed"))
    steps = plan.plan_steps(len(source), towers.num_towers, where=str(arguments.data_dir), **pick(plan.STEP_OPTIONS))
    learning_rate = plan.learning_rates(steps, **pick(plan.RATE_OPTIONS))

    with towers.scope():
        model = export.read_model(arguments.model, **changes, learn_gem_p=True)
        head = ReplicatedHead(
            *classifier.weights.shape,
            use_bias=classifier.bias is not None,
            seed=arguments.seed,
            dtype="float64" if arguments.precision == "float64" else "float32",
        )
    head.restore(classifier.weights, classifier.bias)
    network = model.network
    power = gem_choice.learnt_power(network)
    if arguments.dry_run:
        return print(dry_run.describe(vars(arguments), source, steps, network, [power], towers.num_towers))

    prepare = pictures.preparation(
        network,
        seed=arguments.seed,
        image_size=sizes["image_size"],
        random_crop=False,
        random_flip=False,
        random_rotate=False,
    )
    validators = [gem_choice.power_validator(power)]
    if arguments.val_dir is not None:
        held_out, labels = pictures.labelled_pictures(arguments.val_dir, classifier.class_names)
        validators.append(validation.classes_validator(towers, network, held_out, labels, head.export, **sizes))
    run.train(
        towers=towers,
        plan=steps,
        source=source,
        order=Order(len(source), arguments.seed),
        make_audit=lambda path, first_step: Audit(path, len(source), first_step=first_step),
        network=network,
        network_arguments=model.facts["network"],
        objective=make_power_objective(head, power, prepare),
        trained=[power],
        decayed=[],
        statistics=[],
        other_state=head.variables(),
        learning_rate=learning_rate,
        load_size=sizes["load_size"],
        float16=arguments.precision == "float16",
        validators=validators,
        options=options.recorded(arguments),
        model_facts={"class_names": classifier.class_names, **options.recorded(arguments, "data_dir val_dir")},
        classifier=head.export,
        **pick(run.OPTIONS),
    )


if __name__ == "__main__":
    options.call(main, make_parser())
