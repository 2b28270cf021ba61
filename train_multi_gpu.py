"""Train a face embedding on very many identities: margin losses, the class weights split over the towers.

python train_multi_gpu.py --synthetic --network small --image_size 64 --embedding_size 128 --towers 2
python train_multi_gpu.py --dataset emore --network r100 --loss arcface --val_sets faces_emore/{lfw,cfp_fp,agedb_30}.bin
python train_multi_gpu.py --data_dir FACES --loss cosface --head sampled --sample_rate 0.1 --towers 8 --batch_size 512
python train_multi_gpu.py --data_dir FACES --head selected --num_selected 1000 --selector forest
python scripts/launch.py --hosts gpu1 gpu2 -- train_multi_gpu.py --data_dir FACES --run_dir /shared/runs/mine
python train_multi_gpu.py --data_dir FACES --towers 8 --identities 1000000 --card_memory 11 --dry_run
"""

from functools import partial
from pathlib import Path

from towers import networks, options
from towers.datasets.audit import Audit
from towers.datasets.order import Order
from towers.heads.replicated import ReplicatedHead
from towers.heads.sharded import ShardedHead
from towers.losses.margin import NormStatistics
from towers.networks import decayed_variables, moving_statistics
from towers.processes import ALONE
from towers.runs import dry_run, head_memory, pair_sets, pictures, plan, run, selected_classes, validation
from towers.training import margins

LOSS_OPTIONS = "loss margin_m1 margin_m2 margin_m3 scale sub_centres interclass_filtering_threshold logits_chunk"


def make_parser() -> options.Parser:
    parser = options.Parser(__doc__)
    options.add_data(parser)
    options.add_filtering(parser)
    options.add_towers(parser, several_processes=True)
    options.add_batches(parser, batch_size=128)
    options.add_network(parser, network="mobilefacenet", embedding_size=512)
    options.add_optimizer(parser, optimizer="MOM", learning_rate=0.1)
    options.add_margins(parser)
    options.add_selection(parser)
    options.add_lfw(parser, protocol=False)
    options.add_pair_sets(parser)
    options.add_run(parser)
    return parser


def main(arguments, processes=ALONE) -> None:
    pick = partial(options.pick, arguments)
    if arguments.synthetic:
        vars(arguments).update(pictures.embedded_data_set(Path(__file__).parent))
    loss = margins.chosen_loss(**pick(LOSS_OPTIONS))
    sample_rate = margins.chosen_sample_rate(**pick("head sample_rate"))
    head_memory.check_options(**pick("identities card_memory dry_run"))
    selected_classes.check_processes(**pick("head param_servers"), processes=processes)
    source, held_out, labels = pictures.training_pictures(**pick(pictures.OPTIONS))
    towers = run.set_up(**pick("towers reduction precision deterministic seed"), processes=processes)
    steps = plan.plan_steps(len(source), towers.num_towers, where=str(arguments.data_dir), **pick(plan.STEP_OPTIONS))
    plan.check_parts(steps.batch_size // towers.num_towers, arguments.accumulate)
    learning_rate = plan.learning_rates(steps, **pick(plan.RATE_OPTIONS))

    sizes = {
        "image_size": arguments.image_size,
        "load_size": pictures.load_size(**pick(pictures.LOAD_OPTIONS)),
    }
    network_arguments = run.network_arguments(**pick(run.NETWORK_OPTIONS))
    dtype = "float64" if arguments.precision == "float64" else "float32"
    with towers.scope():
        network = networks.build(**network_arguments)
        statistics = NormStatistics(dtype=dtype) if arguments.loss == "adaface" else None
    if arguments.pretrained_model:
        run.start_from(arguments.pretrained_model, network)
    trained, decayed = network.trainable_variables, decayed_variables(network)
    # The margin makes a head's logits no linear function of its weights, so its gradients stay as they are.
    thor = run.make_thor(towers, network, [], steps.epoch_size, **pick(run.THOR_OPTIONS))
    if arguments.dry_run:
        print(dry_run.describe(vars(arguments), source, steps, network, trained, towers.num_towers, thor))
        return print(*head_lines(arguments, source, steps, network, towers.num_towers, sample_rate), sep="\n")

    shared = {"form": loss.form, "seed": arguments.seed, "dtype": dtype}
    if arguments.head == "replicated":
        with towers.scope():
            head = ReplicatedHead(source.num_classes, arguments.embedding_size, use_bias=False, **shared)
        trained, decayed = [*trained, *head.trainable_variables], [*decayed, *head.decayed_variables]
    elif arguments.head == "selected":
        numbers = source.num_classes, steps.batch_size
        head = selected_classes.make_head(towers, *numbers, loss.form, dtype=dtype, **pick(selected_classes.OPTIONS))
    else:
        head = ShardedHead(
            towers,
            source.num_classes,
            arguments.embedding_size,
            rule=arguments.optimizer,
            weight_decay=arguments.weight_decay,
            sample_rate=sample_rate,
            largest_batch=steps.batch_size,
            **shared,
        )
    prepare = pictures.preparation(network, **pick(pictures.AUGMENTATION_OPTIONS))
    sets = pair_sets.read_pair_sets(**pick(pair_sets.OPTIONS))
    validators = (
        [pair_sets.validator(towers, network, sets, **sizes, batch_size=arguments.lfw_batch_size)] if sets else []
    )
    validators += validation.of_classes(towers, network, held_out, labels, head, loss.form, **sizes)
    run.train(
        towers=towers,
        plan=steps,
        source=source,
        order=Order(len(source), arguments.seed),
        make_audit=lambda path, first_step: Audit(path, len(source), first_step=first_step),
        network=network,
        network_arguments=network_arguments,
        objective=margins.make_objective(head, prepare, loss, statistics=statistics),
        trained=trained,
        decayed=decayed,
        statistics=moving_statistics(network),
        other_state=head.variables() | (statistics.variables() if statistics else {}),
        learning_rate=learning_rate,
        load_size=sizes["load_size"],
        crop=pictures.resized_crop(**pick(pictures.CROP_OPTIONS)),
        float16=arguments.precision == "float16",
        validators=validators,
        options=options.recorded(arguments),
        model_facts=options.recorded(arguments, "lfw_dir lfw_pairs"),
        head=None if arguments.head == "replicated" else head,
        accumulate=arguments.accumulate,
        validate_every_n_steps=arguments.verbose,
        best_by=pair_sets.BEST_BY,
        thor=thor,
        **pick(run.OPTIONS),
    )


def head_lines(arguments, source, steps, network, num_towers, sample_rate) -> list[str]:
    identities = arguments.identities or source.num_classes
    if arguments.head == "selected":
        return selected_classes.describe(identities, **options.pick(arguments, selected_classes.OPTIONS))
    return head_memory.describe(
        identities,
        dry_run.network_bytes(vars(arguments), steps, network, num_towers, arguments.accumulate),
        arguments.card_memory or head_memory.memory_at_hand(num_towers),
        arguments.accumulate,
        num_towers=num_towers,
        batch=steps.batch_size,
        slots=dry_run.num_slots(vars(arguments)),
        sample_rate=sample_rate or 1.0,
        chunk=arguments.logits_chunk,
        **options.pick(arguments, "head embedding_size sub_centres"),
    )


if __name__ == "__main__":
    options.call(main, make_parser(), several_processes=True)
