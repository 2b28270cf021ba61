"""Options that several scripts share, with facenet's names where facenet has one; dashes and underscores alike."""

import argparse
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import tensorflow as tf

from . import command_line
from .cluster import read_cluster
from .datasets.opening import KINDS
from .distribution import REDUCTIONS
from .errors import UserError
from .losses.triplet import MINING_RULES
from .networks import ALIASES, EMBEDDING_HEADS, NETWORKS, NORMS
from .processes import ALONE, BEAT, SILENCE, Processes
from .training.loop import Interrupted
from .training.margins import DEFAULT_SCALE, LOSSES
from .training.multigrain import RETRIEVAL_LOSSES
from .training.optimizers import FROM_KERAS, OPTIMIZERS, THOR, full_name
from .training.schedules import DECAYS
from .training.thor import SAMPLED_SIDE
from .training.triplets import MINING_SCOPES
from .without_effect import options_without_effect

# Folders of the training sets that InsightFace calls so.
INSIGHTFACE_DATASETS = {"emore": "faces_emore", "retina": "ms1m-retinaface-t1"}
PRECISIONS = ("float32", "bfloat16", "float16", "float64")
# What TensorFlow raises when a process that it sums with is gone.
_ERRORS_OF_LOST_PROCESSES = (
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
    tf.errors.FailedPreconditionError,
    tf.errors.InternalError,
    tf.errors.UnavailableError,
    tf.errors.UnknownError,
)


class Parser(command_line.Parser):
    """The parser of all commands, with the defaults that depend on ``--network``."""

    def parse_args(self, args=None, namespace=None):
        arguments = super().parse_args(args, namespace)
        for name, value in self._network_defaults(getattr(arguments, "network", None)).items():
            if getattr(arguments, name, value) is None:
                setattr(arguments, name, value)
        return arguments

    def _network_defaults(self, network: str | None) -> dict:
        """Values of the options that the network decides; ``networks.build`` complains of one that is not known."""
        if network is None:
            return {}
        known = NETWORKS.get(network)
        embedding_size = None if known is None else known.embedding_size
        return {
            "embedding_size": embedding_size or self.default_embedding_size,
            "keep_probability": 1.0 if known is None else known.keep_probability,
            "gem_p": None if known is None else known.own.get("gem_p"),
        }


def call(main: Callable[..., int | None], parser: Parser, *, several_processes: bool = False) -> None:
    """Parse, run ``main``, and end the process: errors of users as one line, with the exit code of their class.

    Args:
      main: a function of (arguments); with ``several_processes`` of (arguments, processes): the processes that the
        environment names, which have met and are alike. Only the chief's standard output is shown.
      several_processes: False: a cluster in the environment is refused.
    """
    arguments = parser.parse_args()
    processes = ALONE
    try:
        processes = _processes(parser.prog, several_processes)
        if processes.num > 1:
            processes.meet(alike_in_all_processes(arguments), arguments.wait_for_workers)
            if not processes.is_chief:
                sys.stdout = Path(os.devnull).open("w")
        if processes.is_chief:
            for line in options_without_effect(arguments, parser):
                print(f"{parser.prog}: {line}", file=sys.stderr)
        exit_code = main(arguments, *([processes] if several_processes else [])) or 0
        processes.leave()
    except UserError as error:
        exit_code = _end_by(error, arguments, parser, processes)
    except Interrupted as stop:
        processes.leave()
        if processes.is_chief:
            print(f"{parser.prog}: stopped by {stop}; a checkpoint is saved, the same command goes on", file=sys.stderr)
        exit_code = stop.exit_code
    except Exception as error:
        # A sum over the processes fails in TensorFlow before, or after, the lost process is noticed here.
        lost = processes.lost(SILENCE + BEAT if isinstance(error, _ERRORS_OF_LOST_PROCESSES) else 0)
        if lost is None:
            traceback.print_exc()
            processes.fail(f"{type(error).__name__}: {error}".splitlines()[0])
            exit_code = 1
        else:
            exit_code = _end_by(lost, arguments, parser, processes)
    sys.stdout.flush()
    sys.stderr.flush()
    # Everything is written and closed. Python's own way out would wait for pictures that are still being read, whose
    # threads wait for Python: with a slow disk a finished run could hang for ever.
    os._exit(exit_code)


def _processes(name: str, several: bool) -> Processes:
    cluster = read_cluster(os.environ)
    if cluster is None:
        return ALONE
    if not several:
        raise UserError(
            f"{name} works in one process, and the environment (TF_CONFIG or SLURM) names {len(cluster.addresses)}; "
            "start it once, with `env -u TF_CONFIG` or without srun"
        )
    return Processes(*cluster, name=name)


def _end_by(error: UserError, arguments: argparse.Namespace, parser: Parser, processes: Processes) -> int:
    processes.fail(str(error))
    if arguments.debug:
        traceback.print_exc()
    print(f"{parser.prog}: {error}", file=sys.stderr)
    return error.exit_code


def alike_in_all_processes(arguments: argparse.Namespace) -> dict:
    """The options that all processes must have alike, by ``--name``; paths may differ from machine to machine."""
    return {
        f"--{name}": value
        for name, value in vars(arguments).items()
        if name not in ("debug", "wait_for_workers") and not isinstance(value, (Path, list))
    }


def _steps(text: str) -> tuple[int, ...]:
    steps = tuple(int(step) for step in text.split(",") if step.strip())
    if not steps or min(steps) < 1:
        raise ValueError(text)
    return steps


def _epochs(text: str) -> tuple[float, ...]:
    return tuple(float(epoch) for epoch in text.split(",") if epoch.strip())


def _shares(text: str) -> tuple[float, float]:
    first, second = (float(share) for share in text.split(","))
    return first, second


def _optimizer(text: str) -> str:
    try:
        return full_name(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _optimizer_or_thor(text: str) -> str:
    return THOR if text.upper() == THOR else _optimizer(text)


def _insightface_dataset(name: str) -> Path:
    if name not in INSIGHTFACE_DATASETS:
        raise argparse.ArgumentTypeError(f"{name}: one of {', '.join(INSIGHTFACE_DATASETS)}; or give --data_dir FOLDER")
    return Path("datasets") / INSIGHTFACE_DATASETS[name]


def _insightface_pretrained(text: str) -> Path:
    prefix, comma, epoch = text.rpartition(",")
    if not comma:
        return Path(text)
    if not epoch.isdigit():
        raise argparse.ArgumentTypeError(f"{text}: give PREFIX,EPOCH, such as models/y1-softmax-emore,1")
    numbered = Path(f"{prefix}-{int(epoch):04}")
    return numbered if numbered.exists() else Path(prefix)


def pick(arguments: argparse.Namespace, names: str) -> dict:
    """The options named in ``names`` (separated by blanks), to be passed on by name."""
    return {name: getattr(arguments, name) for name in names.split()}


def recorded(arguments: argparse.Namespace, names: str | None = None) -> dict:
    """The options, or those of ``names``, as JSON values for a run folder; paths are made absolute."""
    chosen = vars(arguments) if names is None else pick(arguments, names)
    return {name: _json_value(value) for name, value in sorted(chosen.items())}


def _json_value(value):
    if isinstance(value, list):
        return [_json_value(item) for item in value]
    return str(value.resolve()) if isinstance(value, Path) else value


def add_towers(parser: Parser, *, training: bool = True, several_processes: bool = False) -> None:
    group = parser.add_argument_group("towers")
    each = "; of each process, where several train together (scripts/launch.py)" if several_processes else ""
    group.add_argument(
        "--towers",
        type=int,
        help=f"number of towers: the first N GPUs, or N CPU devices (default: all GPUs, else 1){each}",
    )
    group.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="float32",
        help="compute type; weights, the head's softmax and statistics stay float32; float64 is for proofs",
    )
    if not training:
        return
    between = "; between processes: cpu by gRPC, or nccl" if several_processes else ""
    group.add_argument(
        "--reduction",
        choices=REDUCTIONS,
        default="cpu",
        help=f"where gradients are summed: host memory, or the GPUs{between}",
    )
    group.add_argument(
        "--time_towers", action="store_true", help="log the seconds each tower computes, and those of the reduction"
    )
    if several_processes:
        group.add_argument(
            "--wait_for_workers", type=float, default=120.0, help="seconds in which all processes must have come"
        )
    group.add_argument("--sync_bn", action="store_true", help="BatchNormalization over the whole batch, not a tower's")


def add_batches(parser: Parser, *, batch_size: int | None) -> None:
    """``batch_size`` None: the batch is people x pictures."""
    group = parser.add_argument_group("batches and length of the run")
    if batch_size is None:
        group.add_argument("--people_per_batch", type=int, default=32, help="people in a batch")
        group.add_argument("--images_per_person", type=int, default=4, help="pictures of each of them")
    else:
        group.add_argument("--batch_size", type=int, default=batch_size, help="images a step")
    group.add_argument(
        "--batch_mode",
        choices=("split", "per_tower"),
        default="split",
        help="split: one batch over all towers; per_tower: a batch for each tower",
    )
    group.add_argument("--epoch_size", type=int, help="steps an epoch (default: images / batch, rounded up)")
    group.add_argument(
        "--max_epochs",
        "--max_nrof_epochs",
        type=int,
        help="epochs after which the run ends (default: as in --max_steps)",
    )
    group.add_argument("--max_steps", type=int, help="steps after which the run ends, whichever comes first")
    group.add_argument("--seed", type=int, default=666, help="of weights, order, augmentation and dropout")
    group.add_argument("--deterministic", action="store_true", help="the same run twice gives the same bits")


def add_data(parser: Parser) -> None:
    group = parser.add_argument_group("pictures")
    group.add_argument("--data_dir", type=Path, help=f"training pictures: {KINDS}")
    group.add_argument(
        "--dataset",
        dest="data_dir",
        type=_insightface_dataset,
        help=f"InsightFace's name of training pictures under datasets/: {', '.join(INSIGHTFACE_DATASETS)}",
    )
    group.add_argument("--synthetic", action="store_true", help="train on the embedded data set")
    group.add_argument("--image_size", type=int, default=112, help="side of the network's input, pixels")
    group.add_argument(
        "--load_size",
        type=int,
        help="side that pictures are brought to before the crop, pixels "
        "(default: --image_size, or 182/160 of it with --random_crop)",
    )
    group.add_argument("--random_crop", action="store_true", help="crop at random; the centre is cropped otherwise")
    group.add_argument(
        "--random_resized_crop",
        action="store_true",
        help="train on a random rectangle of each picture (aspect 3:4 to 4:3), resized to --image_size; validation "
        "crops the centre of --load_size (default then: 256/224 of --image_size)",
    )
    group.add_argument("--min_crop_area", type=float, default=0.08, help="its least share of the picture, up to 1")
    group.add_argument(
        "--random_color", type=float, default=0.0, help="brightness, contrast, saturation by factors 1 +- this, 0 to 1"
    )
    group.add_argument("--random_flip", action="store_true", help="mirror half of the pictures")
    group.add_argument("--random_rotate", action="store_true", help="rotate by up to 10 degrees either way")
    group.add_argument(
        "--max_bad_fraction", type=float, default=0.001, help="share of unreadable pictures that ends the run"
    )
    group.add_argument(
        "--audit_data", action="store_true", help="write which tower saw which record, and fail on a fault"
    )


def add_filtering(parser: Parser, *, held_out: bool = True) -> None:
    group = parser.add_argument_group("which pictures")
    group.add_argument("--filter_filename", type=Path, help="HDF5 file of scripts/calculate_filtering_metrics.py")
    group.add_argument(
        "--filter_percentile", type=float, default=100.0, help="keep the pictures below this percentile of distances"
    )
    group.add_argument(
        "--filter_min_nrof_images_per_class", type=int, default=0, help="drop classes with fewer pictures"
    )
    if not held_out:
        return
    group.add_argument(
        "--validation_set_split_ratio", type=float, default=0.0, help="share of each class held out for validation"
    )
    group.add_argument(
        "--min_nrof_val_images_per_class", type=int, default=0, help="hold out only from classes that give so many"
    )
    group.add_argument(
        "--val_dir", type=Path, help="other pictures of the same classes to validate on: DIR/Class/picture.jpg"
    )


def add_softmax(parser: Parser) -> None:
    group = parser.add_argument_group("losses")
    group.add_argument("--label_smoothing", type=float, default=0.0, help="share of the target spread over all classes")
    group.add_argument(
        "--auxiliary_loss_factor",
        type=float,
        default=0.3,
        help="weight of each auxiliary classifier's loss, where the network has some (googlenet); 0: none are made",
    )
    group.add_argument("--center_loss_factor", type=float, default=0.0, help="weight of the center loss")
    group.add_argument("--center_loss_alfa", type=float, default=0.95, help="share of a center that a step keeps")
    group.add_argument("--prelogits_norm_loss_factor", type=float, default=0.0, help="weight of the embedding's norm")
    group.add_argument("--prelogits_norm_p", type=float, default=1.0, help="which norm")


def add_margins(parser: Parser) -> None:
    group = parser.add_argument_group("loss and class weights")
    group.add_argument("--loss", choices=LOSSES, default="arcface", help="softmax, or one with a margin on the cosine")
    for number, what in (
        (1, "factor of the angle"),
        (2, "added to the angle, radians"),
        (3, "taken from the cosine"),
    ):
        group.add_argument(f"--margin_m{number}", type=float, help=f"{what} (default: as the loss has it)")
    group.add_argument("--scale", type=float, help=f"factor of the cosines (default: {DEFAULT_SCALE:.0f})")
    group.add_argument("--sub_centres", type=int, default=1, help="centres a class, of which the nearest counts")
    group.add_argument(
        "--interclass_filtering_threshold",
        type=float,
        default=0.0,
        help="cosine above which another class counts as 0, since it may be the same person; 0: none",
    )
    group.add_argument(
        "--head",
        choices=("replicated", "sharded", "sampled", "selected"),
        default="sharded",
        help="class weights whole on every tower, split over them, split and sampled, or kept on the host and selected",
    )
    group.add_argument(
        "--sample_rate", type=float, help="share of the classes in a step of --head sampled (default: 0.1)"
    )
    group.add_argument(
        "--logits_chunk",
        type=int,
        default=0,
        help="classes a tower holds logits of at a time, computed twice; 0: all at once",
    )
    group.add_argument(
        "--accumulate", type=int, default=1, help="parts of a tower's batch that pass the network one after the other"
    )
    group.add_argument("--identities", type=int, help="with --dry_run: reckon with so many classes")
    group.add_argument(
        "--card_memory", type=float, help="with --dry_run: memory of a tower, GB (default: as found here)"
    )


def add_selection(parser: Parser) -> None:
    """The class centres of --head selected."""
    group = parser.add_argument_group(
        "--head selected",
        "class centres on the host; MOM is heavy-ball momentum there",
    )
    group.add_argument(
        "--selector",
        choices=("random", "exact", "forest", "ivf", "annoy", "faiss", "usearch"),
        default="forest",
        help="how the classes of a step are found; the last three need the extra 'ann'",
    )
    group.add_argument(
        "--query",
        choices=("center", "features"),
        default="features",
        help="find classes near the batch's features, or near the centres of its labels, while the step before runs, "
        "which is faster and less accurate",
    )
    group.add_argument("--num_selected", "--sample_num", type=int, default=1000, help="classes of a step")
    group.add_argument("--num_trees", "--ntrees", type=int, default=50, help="trees of forest and annoy")
    group.add_argument(
        "--probes",
        type=int,
        default=8,
        help="cells of faiss, or parts of about 40 classes of ivf, that a query looks into",
    )
    group.add_argument("--interval", type=int, default=100, help="steps between rebuilds of the index")
    group.add_argument(
        "--adaptive",
        action="store_true",
        help="steer --num_selected, --num_trees or --probes, and --interval by measured recall and probability mass",
    )
    group.add_argument("--center_folder", type=Path, help="keep the centres in mapped files here, not in memory")
    group.add_argument(
        "--center_waiting_gb",
        type=float,
        help="memory for changed ones that wait to be written there, GB (default: a tenth of the machine's; none with "
        "--deterministic, whose steps change all)",
    )
    add_servers(
        group, "host:port,... of parameter servers that keep them, in order of shards; several processes need them"
    )


def add_servers(group: argparse._ArgumentGroup | Parser, purpose: str) -> None:
    """Where parameter servers are and how they are reached, as `classcenters.remote.access` takes it."""
    group.add_argument("--param_servers", help=purpose)
    group.add_argument("--param_token_file", type=Path, help="token that these servers ask for")
    group.add_argument("--param_tls_ca", type=Path, help="speak TLS: certificate, PEM, that theirs are signed by")
    group.add_argument("--param_tls_cert", type=Path, help="certificate chain, PEM, that they ask for")
    group.add_argument("--param_tls_key", type=Path, help="private key of --param_tls_cert, PEM")


def add_pair_sets(parser: Parser) -> None:
    """After ``add_lfw``: further sets of pairs, and how often all of them are asked."""
    group = parser.add_argument_group("validation by several sets of pairs")
    group.add_argument(
        "--val_sets",
        type=Path,
        nargs="+",
        default=[],
        help="folders as --lfw_dir, each with its pairs.txt, and verification packs such as cfp_fp.bin",
    )
    group.add_argument("--verbose", type=int, default=2000, help="steps between validations, 0: only by epochs")


def add_triplets(parser: Parser) -> None:
    group = parser.add_argument_group("triplets")
    group.add_argument(
        "--alpha", type=float, default=0.2, help="margin between positive and negative squared distances"
    )
    group.add_argument("--mining", choices=MINING_RULES, default="batch_hard", help="which triplets of a batch count")
    group.add_argument(
        "--mining_scope",
        choices=MINING_SCOPES,
        default="tower",
        help="where negatives come from: this tower's people, or those of all towers",
    )
    group.add_argument("--soft_margin", action="store_true", help="log(1 + exp(distance)) in place of the margin")


def add_multigrain(parser: Parser) -> None:
    group = parser.add_argument_group("classes and instances")
    group.add_argument(
        "--classification_weight",
        "--lambda",
        type=float,
        default=0.5,
        help="lambda, 0 to 1: share of the cross-entropy; the rest is the retrieval loss",
    )
    group.add_argument("--label_smoothing", type=float, default=0.0, help="share of the target spread over all classes")
    group.add_argument("--class_num", type=int, help="classes of the classifier (default: those of --data_dir)")
    group.add_argument(
        "--copies", type=int, default=3, help="times that a picture is in a batch, each augmented in another way"
    )
    group.add_argument(
        "--retrieval_loss", choices=RETRIEVAL_LOSSES, default="margin", help="on pairs of copies, or on triplets"
    )
    group.add_argument("--alpha", type=float, default=0.2, help="margin, of distances or (triplet) of squared ones")
    group.add_argument("--beta", type=float, default=1.2, help="first border between pairs of the margin loss; learnt")
    group.add_argument("--mining", choices=MINING_RULES, default="batch_hard", help="which triplets count")
    group.add_argument(
        "--mining_scope",
        choices=MINING_SCOPES,
        default="tower",
        help="where negatives come from: this tower's pictures, or those of all towers",
    )
    group.add_argument(
        "--gem_p", type=float, help="power of GeM pooling (default: 3, in the networks that have it); 1 is the average"
    )
    group.add_argument("--learn_gem_p", action="store_true", help="train that power too")
    group.add_argument("--autoaugment", action="store_true", help="AutoAugment's ImageNet policy, after crop and flip")
    group.add_argument(
        "--lighting",
        type=float,
        default=0.0,
        help="deviation of colour noise along ImageNet's axes; MultiGrain's is 0.1",
    )
    group = parser.add_argument_group("validation of the three grains")
    group.add_argument("--val_dir", type=Path, help="other pictures of the classes: DIR/Class/picture.jpg")
    group.add_argument("--holidays_dir", type=Path, help="instances as INRIA Holidays: DIR/100000.jpg, 100001.jpg ...")
    group.add_argument(
        "--holidays_rotations", type=Path, help='list of those to turn upright: lines as "100600.jpg": 90, (clockwise)'
    )
    group.add_argument("--copydays_dir", type=Path, help="copies as Copydays: DIR/original, DIR/strong ...")
    group.add_argument("--distractors", type=Path, help="pictures put beside the originals of --copydays_dir")


def add_network(parser: Parser, *, network: str, embedding_size: int) -> None:
    group = parser.add_argument_group("network")
    group.add_argument(
        "--network",
        "--model_def",
        type=lambda name: name.removeprefix("models."),
        default=network,
        help=f"one of {', '.join([*NETWORKS, *ALIASES])}",
    )
    parser.default_embedding_size = embedding_size
    group.add_argument(
        "--embedding_size",
        type=int,
        help=f"values of an embedding (default: {embedding_size}; googlenet: {NETWORKS['googlenet'].embedding_size})",
    )
    group.add_argument(
        "--embedding_head",
        choices=tuple(EMBEDDING_HEADS),
        help="InsightFace's name of what comes after the last map (default: E for r18 to r200, GDC for mobilefacenet, "
        "mobilefacenet_y1 and mnas05; the other networks have their own)",
    )
    group.add_argument(
        "--keep_probability",
        type=float,
        help="share of values that dropout keeps "
        f"(default: 1, no dropout; googlenet: {NETWORKS['googlenet'].keep_probability})",
    )
    group.add_argument(
        "--norm", choices=NORMS, help="of googlenet: bn (default), or lrn as in its paper; the others have bn"
    )
    group.add_argument(
        "--use_fixed_image_standardization",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="(pixel - 127.5) / 128; otherwise each picture by its own mean and deviation",
    )
    group.add_argument("--pretrained_model", type=Path, help="run or model folder whose weights to start from")
    group.add_argument(
        "--pretrained",
        dest="pretrained_model",
        type=_insightface_pretrained,
        metavar="PREFIX,EPOCH",
        help="the same as InsightFace writes it: the folder PREFIX-EPOCH (four digits) where there is one, else PREFIX",
    )


def add_optimizer(parser: Parser, *, optimizer: str, learning_rate: float) -> None:
    group = parser.add_argument_group("optimizer and learning rate")
    group.add_argument(
        "--optimizer",
        type=_optimizer_or_thor,
        default=optimizer,
        help=f"one of {', '.join(OPTIMIZERS)}, a class of Keras such as {FROM_KERAS}Lion, or THOR; MOM: momentum 0.9, "
        "Nesterov; THOR: gradients preconditioned by Kronecker factors, see below",
    )
    group.add_argument(
        "--learning_rate",
        "--lr",
        type=float,
        help=f"first rate; facenet's -1 means --learning_rate_schedule_file (default: {learning_rate}, or the file)",
    )
    parser.set_defaults(default_learning_rate=learning_rate)
    group.add_argument(
        "--learning_rate_schedule",
        choices=DECAYS,
        default="cosine",
        help="cosine, polynomial, linear: to 0 at the end of the run; step: a tenth at each of --lr_steps; "
        "thor: rate * (1 - epoch / --learning_rate_end_epoch) ^ --learning_rate_power",
    )
    group.add_argument("--lr_steps", type=_steps, default=(), help="steps of --learning_rate_schedule step, as 100,200")
    group.add_argument("--learning_rate_power", type=float, default=1.0, help="power of polynomial and thor")
    group.add_argument("--learning_rate_end_epoch", type=float, help="epoch at which the rate of thor would be 0")
    group.add_argument(
        "--learning_rate_halving_epochs", type=_epochs, default=(), help="epochs that halve the rate of thor, as 39,40"
    )
    group.add_argument("--learning_rate_decay_epochs", type=int, default=100, help="epochs between decays")
    group.add_argument("--learning_rate_decay_factor", type=float, default=1.0, help="factor of a decay")
    group.add_argument(
        "--learning_rate_schedule_file", type=Path, help="file of lines 'epoch: rate', rate -1 to stop; see data/"
    )
    group.add_argument("--warmup_steps", type=int, default=0, help="steps of linear growth from 0 to the first rate")
    group.add_argument("--warmup_epochs", type=float, default=0.0, help="the same in epochs of the data that are there")
    group.add_argument("--weight_decay", type=float, default=5e-4, help="L2 factor; not on BN, biases, PReLU")
    group.add_argument("--clip_norm", type=float, default=0.0, help="largest norm of the gradient, 0: any")
    group.add_argument(
        "--loss_scale",
        type=float,
        help="fixed factor of a tower's mean loss (default: 1; with --precision float16 one that is steered)",
    )
    group.add_argument(
        "--moving_average_decay",
        type=float,
        default=0.9999,
        help="of the averaged weights that are validated and exported, 0: none",
    )

    group = parser.add_argument_group("--optimizer thor")
    group.add_argument(
        "--thor_optimizer",
        type=_optimizer,
        default="MOM",
        help="what takes the preconditioned gradients: any --optimizer but THOR",
    )
    group.add_argument("--thor_interval", type=int, default=20, help="steps between refreshes of the inverses")
    group.add_argument(
        "--thor_trace_rule",
        type=_shares,
        metavar="W1,W2",
        help="refresh a layer only where its trace changed by more than the share W1, and never again once by less "
        "than W2, as 0.01,0.001 (default: all layers, always)",
    )
    group.add_argument("--thor_damping", type=float, default=0.03, help="first damping lambda")
    group.add_argument("--thor_damping_decay", type=float, default=0.5, help="factor of it in ten epochs")
    group.add_argument(
        "--thor_kl_clip",
        type=float,
        default=0.001,
        help="bound of rate^2 * <preconditioned gradient, gradient>; longer steps are shortened; 0 (published): none",
    )
    group.add_argument(
        "--thor_map_side",
        type=int,
        default=SAMPLED_SIDE,
        help="positions a side of a map that statistics are taken from, about; 0: all",
    )


def add_run(parser: Parser) -> None:
    group = parser.add_argument_group("run folder and logs")
    group.add_argument(
        "--run_dir", type=Path, help="where everything goes; one that holds a run resumes it (default: runs/DATE-TIME)"
    )
    group.add_argument("--checkpoint_every_n_steps", type=int, default=500, help="steps between checkpoints")
    group.add_argument("--keep_checkpoints", type=int, default=2, help="newest checkpoints kept, at least 2")
    group.add_argument("--validate_every_n_epochs", type=int, default=5, help="epochs; 0: only at the end")
    group.add_argument("--log_every", type=int, default=10, help="steps between lines of metrics.jsonl")
    group.add_argument("--log_histograms", action="store_true", help="histograms of all weights at each validation")
    group.add_argument("--dry_run", action="store_true", help="print options, counts, steps and memory, then exit")


def add_lfw(parser: Parser, *, protocol: bool = True) -> None:
    """``protocol`` False: pairs are compared as InsightFace does, and facenet's ways to compare are no options."""
    group = parser.add_argument_group("validation by pairs (LFW protocol)")
    group.add_argument("--lfw_dir", type=Path, help="pictures as DIR/Name/Name_0001.jpg")
    group.add_argument("--lfw_pairs", type=Path, help="the pairs, as LFW's pairs.txt")
    group.add_argument("--lfw_batch_size", type=int, default=100, help="images a tower and step of validation")
    group.add_argument("--lfw_nrof_folds", type=int, help="folds of the cross-validation (default: as the pairs say)")
    if not protocol:
        return
    group.add_argument(
        "--lfw_distance_metric",
        "--distance_metric",
        type=int,
        choices=(0, 1),
        default=0,
        help="0: squared Euclid, 1: angle",
    )
    group.add_argument(
        "--lfw_use_flipped_images",
        "--use_flipped_images",
        action="store_true",
        help="join the mirrored picture's embedding",
    )
    group.add_argument(
        "--lfw_subtract_mean",
        "--subtract_mean",
        action="store_true",
        help="subtract the training folds' mean embedding",
    )
