r"""THOR against SGD with momentum: steps to the same training loss, and what a step costs, on a small ResNet.

  python benchmarks/thor.py --out_dir thor                       # under 15 minutes on two idle cores
  python benchmarks/thor.py --out_dir thor_omniglot --archive images_background_small1.zip --batch_size 952 \
      --epochs 40 --momentum_rates 0.1 0.2 0.3 0.4 --thor_rates 0.1 0.2 0.4 --thor_dampings 0.1 0.3 \
      --thor_kl_clip 0.3 --interval 8
  python benchmarks/thor.py --out_dir thor --epochs 20 --thor_rates 0.01 0.02 --thor_dampings 0.03

Trains on 2,000 pictures of 20 classes that data/multigrain_standin draws; with --archive, on Omniglot's 136
characters, drawn by 14 people. Of SGD with momentum (Nesterov) the rate of the grid with the lowest final loss counts,
the mean of its last 5 % of steps; its rate falls by half a cosine. THOR gets 0.6 times as many steps, over which its
rate falls alike; its first step counts at which the mean of as many steps is not above that loss. Runs that are
finished are not trained again. Then steps of both are timed in processes of
their own, in turn, and a refresh is counted once every interval. Prints tables, and ends with a JSON line a question.
"""

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
SHARE, LAST = 0.6, 0.05
RECIPE = (
    "--network resnet10 --embedding_size 512 --random_crop --weight_decay 5e-4 --moving_average_decay 0 "
    "--validate_every_n_epochs 0 --checkpoint_every_n_steps 1000000 --log_every 1 --learning_rate_schedule cosine"
).split()


def trained_losses(run_dir: Path, data: Path, options: list) -> np.ndarray:
    """The loss of each step of a run of train_softmax.py."""
    command = [sys.executable, ROOT / "train_softmax.py", "--run_dir", run_dir, "--data_dir", data, *RECIPE, *options]
    subprocess.run(list(map(str, command)), check=True, stdout=subprocess.DEVNULL)
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return np.array([line["loss"] for line in lines if line["kind"] == "train"])


def training_pictures(out_dir: Path, archive: Path | None) -> tuple[Path, list]:
    """A folder of class folders, and options that fit it: a mirrored character is another one."""
    if archive is None:
        made = out_dir / "drawn"
        prepare = ["multigrain_standin/prepare.py", "--out_dir", made, "--num_classes", 20, "--train_images", 100]
        options = ["--random_flip"]
    else:
        made = out_dir / "omniglot"
        prepare = ["omniglot/prepare.py", "--out_dir", made, "--archive", archive, "--train_drawers", 14]
        options = []
    subprocess.run([sys.executable, ROOT / "data" / prepare[0], *map(str, prepare[1:])], check=True)
    return made / "train", options


def first_reached(losses: np.ndarray, target: float, window: int) -> int | None:
    """Steps after which the mean of the last ``window`` losses is not above ``target``, None: never."""
    means = np.convolve(losses, np.full(window, 1 / window), mode="valid")
    reached = np.flatnonzero(means <= target)
    return int(reached[0]) + window if len(reached) else None


def measure(optimizer: str, image_size: int, batch_size: int, interval: int, steps: int) -> dict[str, list[float]]:
    """Seconds of each step on one tower, ``plain`` and, with THOR, ``refresh``; those that trace are left out."""
    from towers import networks
    from towers.heads.replicated import ReplicatedHead
    from towers.networks import decayed_variables, moving_statistics
    from towers.runs import run
    from towers.training import optimizers
    from towers.training.classification import make_objective
    from towers.training.step import make_train_step
    from towers.training.thor import Thor

    # Towers decides how TensorFlow starts, so it comes first.
    # isort: split
    import tensorflow as tf

    towers = run.set_up(towers=1, precision="float32", seed=1)
    random = np.random.default_rng(0)
    batch = {
        "image": tf.constant(random.integers(0, 256, (batch_size, image_size, image_size, 3)), tf.float32),
        "label": tf.constant(random.integers(20, size=batch_size)),
    }
    with towers.scope():
        network = networks.build("resnet10", image_size=image_size, embedding_size=512)
        head = ReplicatedHead(20, 512, seed=1)
        trained = [*network.trainable_variables, *head.trainable_variables]
        rule = optimizers.build("MOM")
        rule.build(trained)
    thor = None
    if optimizer == "THOR":
        laws = {"damping": 0.03, "damping_decay": 0.5, "epoch_size": 100, "interval": interval, "kl_clip": 0.001}
        thor = Thor(towers, network, [head], **laws)
    train_step = make_train_step(
        towers,
        network,
        make_objective(head, lambda batch: batch["image"]),
        rule,
        variables=trained,
        decayed=[*decayed_variables(network), *head.decayed_variables],
        statistics=moving_statistics(network),
        weight_decay=5e-4,
        thor=thor,
    )
    rate = tf.constant(0.001, tf.float64)
    seconds = {"plain": [], "refresh": []}
    # Steps 0 and 1 trace; of THOR's, every third one refreshes here, so that few steps time both kinds.
    numbers = [0, 1, *(interval * index if index % 3 == 0 else interval * index + 1 for index in range(1, steps + 1))]
    for index, number in enumerate(numbers):
        started = time.perf_counter()
        train_step(batch, tf.constant(number, tf.int64), rate)[1]["loss"].numpy()
        if index > 1:
            refreshed = thor is not None and number % interval == 0
            seconds["refresh" if refreshed else "plain"].append(time.perf_counter() - started)
    return seconds


def timed(arguments) -> tuple[float, float, float]:
    """Medians: a step of momentum, a plain one of THOR, one that refreshes."""
    seconds = {"MOM": {"plain": [], "refresh": []}, "THOR": {"plain": [], "refresh": []}}
    for _ in range(arguments.rounds):
        for optimizer, kinds in seconds.items():
            command = [sys.executable, __file__, *sys.argv[1:], "--measure", optimizer]
            output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            for kind, values in json.loads(output.splitlines()[-1]).items():
                kinds[kind] += values
    return (
        statistics.median(seconds["MOM"]["plain"]),
        statistics.median(seconds["THOR"]["plain"]),
        statistics.median(seconds["THOR"]["refresh"]),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out_dir", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--archive", type=Path, help="Omniglot's zip, in the place of the drawn stand-in")
    parser.add_argument("--image_size", type=int, default=32)
    parser.add_argument(
        "--timed_image_size",
        type=int,
        default=64,
        help="of the steps that are timed; 32 pixels are little work a weight",
    )
    parser.add_argument("--batch_size", type=int, default=60)
    parser.add_argument("--epochs", type=int, default=10, help="of momentum, of 34 steps of 60 pictures")
    parser.add_argument("--momentum_rates", type=float, nargs="+", default=[0.003, 0.01, 0.03])
    parser.add_argument("--thor_rates", type=float, nargs="+", default=[0.01, 0.03])
    parser.add_argument("--thor_dampings", type=float, nargs="+", default=[0.03, 0.1])
    parser.add_argument("--thor_kl_clip", type=float, default=0.001)
    parser.add_argument("--interval", type=int, default=20, help="steps between refreshes")
    parser.add_argument("--seed", type=int, default=666, help="of all runs; each needs an --out_dir of its own")
    parser.add_argument("--steps", type=int, default=18, help="timed steps a round")
    parser.add_argument("--rounds", type=int, default=3, help="of timing")
    parser.add_argument("--measure", choices=("MOM", "THOR"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        sizes = arguments.timed_image_size, arguments.batch_size, arguments.interval, arguments.steps
        print(json.dumps(measure(arguments.measure, *sizes)))
        return

    data, shared = training_pictures(arguments.out_dir, arguments.archive)
    shared += ["--image_size", arguments.image_size, "--batch_size", arguments.batch_size, "--seed", arguments.seed]
    steps = arguments.epochs * -(-len(list(data.glob("*/*.*"))) // arguments.batch_size)
    window = max(1, round(LAST * steps))
    print(f"{'optimizer':<10} {'rate':>8} {'damping':>8} {'steps':>6} {'final loss':>11} {'reached at':>11}")
    momentum = {}
    for rate in arguments.momentum_rates:
        options = ["--optimizer", "MOM", "--learning_rate", rate, "--max_steps", steps]
        momentum[rate] = trained_losses(arguments.out_dir / f"momentum_{rate}", data, [*shared, *options])
        print(f"{'momentum':<10} {rate:8} {'':>8} {steps:6} {momentum[rate][-window:].mean():11.4f}", flush=True)
    target = min(losses[-window:].mean() for losses in momentum.values())
    reached = []
    for rate, damping in itertools.product(arguments.thor_rates, arguments.thor_dampings):
        options = ["--optimizer", "thor", "--learning_rate", rate, "--max_steps", round(SHARE * steps)]
        options += ["--thor_interval", arguments.interval, "--thor_damping", damping]
        options += ["--thor_kl_clip", arguments.thor_kl_clip]
        losses = trained_losses(arguments.out_dir / f"thor_{rate}_{damping}", data, [*shared, *options])
        reached.append(first_reached(losses, target, window))
        print(
            f"{'THOR':<10} {rate:8} {damping:8} {len(losses):6} {losses[-window:].mean():11.4f} "
            f"{reached[-1] or 'never':>11}",
            flush=True,
        )
    least = min((number for number in reached if number is not None), default=None)
    momentum_seconds, plain, refresh = timed(arguments)
    mean = (plain * (arguments.interval - 1) + refresh) / arguments.interval
    print(f"\n{'step':<14} {'seconds':>8}")
    for name, seconds in (("momentum", momentum_seconds), ("THOR", plain), ("THOR, refresh", refresh), ("mean", mean)):
        print(f"{name:<14} {seconds:8.4f}")
    for name, value, unit, reference, goal in (
        ("steps of THOR to the final loss of the best momentum", least, "steps", steps, SHARE),
        (f"a step of THOR, refreshed every {arguments.interval}", mean, "s/step", momentum_seconds, 1.25),
    ):
        ratio = None if value is None else value / reference
        line = {"name": name, "value": value, "unit": unit, "reference": reference, "ratio": ratio, "target": goal}
        print(json.dumps(line))


if __name__ == "__main__":
    main()
