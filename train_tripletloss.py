"""Train an embedding by triplets: batches of people x pictures, mined in the graph, on any number of towers.

python train_tripletloss.py --synthetic
python train_tripletloss.py --data_dir FACES --lfw_dir LFW --people_per_batch 45 --images_per_person 40 --towers 3
python train_tripletloss.py --data_dir FACES --lfw_dir LFW --pretrained_model runs/softmax --learning_rate 0.005
"""

from functools import partial
from pathlib import Path

from towers import networks, options
from towers.datasets.audit_people import PeopleAudit
from towers.datasets.people import PeopleOrder
from towers.networks import decayed_variables, moving_statistics
from towers.processes import ALONE
from towers.runs import dry_run, pictures, plan, run, validation
from towers.training.triplets import make_objective, warn_of_collapse


def make_parser() -> options.Parser:
    parser = options.Parser(__doc__)
    options.add_data(parser)
    options.add_filtering(parser, held_out=False)
    options.add_towers(parser, several_processes=True)
    options.add_batches(parser, batch_size=None)
    options.add_network(parser, network="small", embedding_size=128)
    options.add_optimizer(parser, optimizer="MOM", learning_rate=0.05)
    options.add_triplets(parser)
    options.add_lfw(parser)
    options.add_run(parser)
    return parser


def main(arguments, processes=ALONE) -> None:
    pick = partial(options.pick, arguments)
    if arguments.synthetic:
        vars(arguments).update(pictures.embedded_data_set(Path(__file__).parent))
    source, _, _ = pictures.training_pictures(**pick(pictures.SOURCE_OPTIONS))
    towers = run.set_up(**pick("towers reduction precision deterministic seed"), processes=processes)
    people_per_batch, steps = plan.plan_people(
        len(source), towers.num_towers, where=str(arguments.data_dir), **pick(plan.PEOPLE_OPTIONS)
    )
    learning_rate = plan.learning_rates(steps, **pick(plan.RATE_OPTIONS))
    batch = {"people_per_batch": people_per_batch, "images_per_person": arguments.images_per_person}
    order = PeopleOrder(source.labels, seed=arguments.seed, **batch)
    if len(order.left_out):
        print(f"{len(order.left_out)} people with one picture are left out: they have no positive pair")

    sizes = {
        "image_size": arguments.image_size,
        "load_size": pictures.load_size(**pick(pictures.LOAD_OPTIONS)),
    }
    network_arguments = run.network_arguments(**pick(run.NETWORK_OPTIONS))
    with towers.scope():
        network = networks.build(**network_arguments)
    if arguments.pretrained_model:
        run.start_from(arguments.pretrained_model, network)
    objective = make_objective(
        pictures.preparation(network, **pick(pictures.AUGMENTATION_OPTIONS)),
        **pick("mining mining_scope alpha soft_margin seed"),
    )
    trained = network.trainable_variables
    thor = run.make_thor(towers, network, [], steps.epoch_size, **pick(run.THOR_OPTIONS))
    if arguments.dry_run:
        return print(dry_run.describe(vars(arguments), source, steps, network, trained, towers.num_towers, thor))

    validators = []
    if arguments.lfw_dir:
        validators.append(validation.pairs_validator(towers, network, **sizes, **pick(validation.LFW_OPTIONS)))
    run.train(
        towers=towers,
        plan=steps,
        source=source,
        order=order,
        make_audit=lambda path, first_step: PeopleAudit(path, source.labels, first_step=first_step, **batch),
        network=network,
        network_arguments=network_arguments,
        objective=objective,
        trained=trained,
        decayed=decayed_variables(network),
        statistics=moving_statistics(network),
        other_state={},
        learning_rate=learning_rate,
        load_size=sizes["load_size"],
        crop=pictures.resized_crop(**pick(pictures.CROP_OPTIONS)),
        float16=arguments.precision == "float16",
        validators=validators,
        options=options.recorded(arguments),
        model_facts=options.recorded(arguments, "lfw_dir lfw_pairs"),
        warn=warn_of_collapse(**pick("alpha soft_margin")),
        thor=thor,
        **pick(run.OPTIONS),
    )


if __name__ == "__main__":
    options.call(main, make_parser(), several_processes=True)
