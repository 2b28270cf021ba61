"""Options that several scripts share, with facenet's names where facenet has one; dashes and underscores alike."""

import argparse
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from . import __version__
from .distribution import REDUCTIONS
from .errors import UserError
from .losses.triplet import MINING_RULES
from .networks import NETWORKS
from .training.loop import Interrupted
from .training.multigrain import RETRIEVAL_LOSSES
from .training.optimizers import OPTIMIZERS
from .training.triplets import MINING_SCOPES

PRECISIONS = ("float32", "bfloat16", "float16", "float64")


class Parser(argparse.ArgumentParser):
    """argparse with ``--two-words`` and ``--two_words`` meaning the same, and defaults in the help texts."""

    def __init__(self, description: str):
        summary, _, rest = description.partition("\n\n")
        super().__init__(
            description=summary,
            epilog=rest,
            formatter_class=_Formatter,
            allow_abbrev=False,
        )
        self.add_argument("--version", action="version", version=f"towers {__version__}")
        self.add_argument("--debug", action="store_true", help="show the traceback of an error")

    def parse_args(self, args=None, namespace=None):
        args = sys.argv[1:] if args is None else args
        return super().parse_args([_underscores(argument) for argument in args], namespace)


class _Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Defaults beside each option; the commands in the epilog as they stand."""


def _underscores(argument: str) -> str:
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value


def call(main: Callable[[argparse.Namespace], int | None], parser: Parser) -> None:
    """Parse, run ``main``, and end the process: errors of users as one line, with the exit code of their class."""
    arguments = parser.parse_args()
    try:
        exit_code = main(arguments) or 0
    except UserError as error:
        if arguments.debug:
            traceback.print_exc()
        print(f"{parser.prog}: {error}", file=sys.stderr)
        exit_code = error.exit_code
    except Interrupted as stop:
        print(f"{parser.prog}: stopped by {stop}; a checkpoint is saved, the same command goes on", file=sys.stderr)
        exit_code = stop.exit_code
    except Exception:
        traceback.print_exc()
        exit_code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    # Everything is written and closed. Python's own way out would wait for pictures that are still being read, whose
    # threads wait for Python: with a slow disk a finished run could hang for ever.
    os._exit(exit_code)


def pick(arguments: argparse.Namespace, names: str) -> dict:
    """The options named in ``names`` (separated by blanks), to be passed on by name."""
    return {name: getattr(arguments, name) for name in names.split()}


def recorded(arguments: argparse.Namespace, names: str | None = None) -> dict:
    """The options, or those of ``names``, as JSON values for a run folder; paths are made absolute."""
    chosen = vars(arguments) if names is None else pick(arguments, names)
    return {name: str(value.resolve()) if isinstance(value, Path) else value for name, value in sorted(chosen.items())}


def add_towers(parser: Parser, *, training: bool = True) -> None:
    group = parser.add_argument_group("towers")
    group.add_argument(
        "--towers", type=int, help="number of towers: the first N GPUs, or N CPU devices (default: all GPUs, else 1)"
    )
    group.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="float32",
        help="compute type; weights, the head's softmax and statistics stay float32; float64 is for proofs",
    )
    if not training:
        return
    group.add_argument(
        "--reduction", choices=REDUCTIONS, default="cpu", help="where gradients are summed: host memory, or the GPUs"
    )
    group.add_argument(
        "--time_towers", action="store_true", help="log the seconds each tower computes, and those of the reduction"
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
    group.add_argument("--data_dir", type=Path, help="training pictures: DIR/Class/picture.jpg")
    group.add_argument("--synthetic", action="store_true", help="train on the embedded data set")
    group.add_argument("--image_size", type=int, default=112, help="side of the network's input, pixels")
    group.add_argument(
        "--load_size",
        type=int,
        help="side that pictures are brought to before the crop, pixels "
        "(default: --image_size, or 182/160 of it with --random_crop)",
    )
    group.add_argument("--random_crop", action="store_true", help="crop at random; the centre is cropped otherwise")
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


def add_softmax(parser: Parser) -> None:
    group = parser.add_argument_group("losses")
    group.add_argument("--label_smoothing", type=float, default=0.0, help="share of the target spread over all classes")
    group.add_argument("--center_loss_factor", type=float, default=0.0, help="weight of the center loss")
    group.add_argument("--center_loss_alfa", type=float, default=0.95, help="share of a center that a step keeps")
    group.add_argument("--prelogits_norm_loss_factor", type=float, default=0.0, help="weight of the embedding's norm")
    group.add_argument("--prelogits_norm_p", type=float, default=1.0, help="which norm")


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
    group.add_argument("--gem_p", type=float, default=3.0, help="power of GeM pooling; 1 is the average")
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
    group.add_argument("--copydays_dir", type=Path, help="copies as Copydays: DIR/original, DIR/strong ...")
    group.add_argument("--distractors", type=Path, help="pictures put beside the originals of --copydays_dir")


def add_network(parser: Parser, *, network: str, embedding_size: int) -> None:
    group = parser.add_argument_group("network")
    group.add_argument(
        "--network",
        "--model_def",
        type=lambda name: name.removeprefix("models."),
        default=network,
        help=f"one of {', '.join(NETWORKS)}",
    )
    group.add_argument("--embedding_size", type=int, default=embedding_size, help="values of an embedding")
    group.add_argument("--keep_probability", type=float, default=1.0, help="share of values that dropout keeps")
    group.add_argument(
        "--use_fixed_image_standardization",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="(pixel - 127.5) / 128; otherwise each picture by its own mean and deviation",
    )
    group.add_argument("--pretrained_model", type=Path, help="run or model folder whose weights to start from")


def add_optimizer(parser: Parser, *, optimizer: str, learning_rate: float) -> None:
    group = parser.add_argument_group("optimizer and learning rate")
    group.add_argument("--optimizer", choices=OPTIMIZERS, default=optimizer, help="MOM: momentum 0.9, Nesterov")
    group.add_argument(
        "--learning_rate",
        type=float,
        help=f"first rate; facenet's -1 means --learning_rate_schedule_file (default: {learning_rate}, or the file)",
    )
    parser.set_defaults(default_learning_rate=learning_rate)
    group.add_argument(
        "--learning_rate_schedule",
        choices=("exponential", "cosine"),
        default="cosine",
        help="cosine: to 0 at the end of the run",
    )
    group.add_argument("--learning_rate_decay_epochs", type=int, default=100, help="epochs between decays")
    group.add_argument("--learning_rate_decay_factor", type=float, default=1.0, help="factor of a decay")
    group.add_argument(
        "--learning_rate_schedule_file", type=Path, help="file of lines 'epoch: rate', rate -1 to stop; see data/"
    )
    group.add_argument("--warmup_steps", type=int, default=0, help="steps of linear growth from 0 to the first rate")
    group.add_argument("--weight_decay", type=float, default=5e-4, help="L2 factor; not on BN, biases, PReLU")
    group.add_argument("--clip_norm", type=float, default=0.0, help="largest norm of the gradient, 0: any")
    group.add_argument(
        "--moving_average_decay",
        type=float,
        default=0.9999,
        help="of the averaged weights that are validated and exported, 0: none",
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


def add_lfw(parser: Parser) -> None:
    group = parser.add_argument_group("validation by pairs (LFW protocol)")
    group.add_argument("--lfw_dir", type=Path, help="pictures as DIR/Name/Name_0001.jpg")
    group.add_argument("--lfw_pairs", type=Path, help="the pairs, as LFW's pairs.txt")
    group.add_argument("--lfw_batch_size", type=int, default=100, help="images a tower and step of validation")
    group.add_argument("--lfw_nrof_folds", type=int, help="folds of the cross-validation (default: as the pairs say)")
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
