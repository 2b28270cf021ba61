"""What one tower's training step costs on an accelerator, compiled by XLA, in float32 and bfloat16.

  python benchmarks/accelerator.py --export steps              # TensorFlow, on any machine: writes the steps down
  python benchmarks/accelerator.py --time steps                # JAX and a GPU; no TensorFlow, no Towers needed

A step is the whole of it: augmentation on the device, network, loss, gradients, the finite check, momentum and the
moving statistics, as StableHLO text made from Towers' own training step; batches of random pictures lie on the device.
``--time`` gives every argument the mean and the deviation that it had here, feeds the new weights to the next call, and
refuses a step whose loss is not finite: it would leave the update out. Prints a table, and a JSON line for each step.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

NUM_CLASSES, EMBEDDING_SIZE = 1000, 512


class Case(NamedTuple):
    """A step to time: of a network with a small head, or of a head behind one small layer."""

    name: str
    image_size: int = 0
    batch_size: int = 128
    num_classes: int = NUM_CLASSES
    selected: int = 0


NETWORKS = (
    Case("mobilefacenet", 112),
    Case("r50", 112),
    Case("r100", 112),
    Case("inception_resnet_v1", 160, 90),
    Case("resnet50", 224),
    Case("googlenet", 224),
)
HEADS = (
    Case("full head", num_classes=10_000),
    Case("full head", num_classes=100_000),
    Case("full head", num_classes=1_000_000),
    Case("sampled head", num_classes=1_000_000, selected=100_000),
)


def one_tower_step(case: Case, precision: str):
    """A function for XLA of a batch's values, a step and a rate, and these; nothing may have used TensorFlow before."""
    import keras
    import numpy as np
    import tensorflow as tf

    from towers import networks
    from towers.distribution import Towers
    from towers.heads.replicated import ReplicatedHead
    from towers.heads.sharded import Rows, ShardedHead
    from towers.losses.margin import LogitForm
    from towers.networks import decayed_variables, moving_statistics
    from towers.runs import pictures
    from towers.runs.run import POLICIES
    from towers.training import margins, optimizers
    from towers.training.step import make_train_step

    class ChosenRows(ShardedHead):
        """Evenly spread classes, the same at each step: XLA wants their number, so the drawing itself is left out."""

        def prepare(self, labels, step):
            apart = self.num_classes // case.selected
            # A step is never negative; without it the places would be written into the module over and over.
            places = tf.range(0, case.selected * apart, apart, tf.int64) + tf.minimum(step, 0)
            return Rows(tf.gather(self.shards[0], places), places)

    # XLA has no kernel for TensorFlow's one pass over the rows; it makes one pass of these three ops by itself.
    tf.math.reduce_euclidean_norm = lambda rows, axis: tf.sqrt(tf.reduce_sum(tf.square(rows), axis))
    keras.mixed_precision.set_dtype_policy(POLICIES[precision])
    keras.utils.set_random_seed(1)
    towers = Towers.for_compiling()
    loss = margins.MarginLoss("arcface", LogitForm(), margins.FIXED_MARGINS["arcface"])
    size = EMBEDDING_SIZE
    if case.image_size:
        size = networks.NETWORKS[case.name].embedding_size or size
        network = networks.build(case.name, image_size=case.image_size, embedding_size=size)
        head = ReplicatedHead(case.num_classes, size, use_bias=False, form=loss.form, seed=1)
        prepare = pictures.preparation(network, **augmentation(case.image_size))
        own, decayed = head.trainable_variables, [*decayed_variables(network), *head.decayed_variables]
    else:
        network = keras.Sequential([keras.Input((size,)), keras.layers.Dense(size, use_bias=False)])
        kind = ChosenRows if case.selected else ShardedHead
        head = kind(towers, case.num_classes, size, form=loss.form, seed=1, weight_decay=5e-4)
        own, decayed = [], []

        def prepare(batch):
            return batch["image"]

    trained = [*network.trainable_variables, *own]
    optimizer = optimizers.build("MOM")
    optimizer.build(trained)
    train_step = make_train_step(
        towers,
        network,
        margins.make_objective(head, prepare, loss),
        optimizer,
        variables=trained,
        decayed=decayed,
        statistics=moving_statistics(network),
        weight_decay=5e-4,
        head=None if own else head,
    )
    random = np.random.default_rng(0)
    side = case.image_size
    shape = (case.batch_size, side, side, 3) if side else (case.batch_size, size)
    images = random.integers(0, 256, shape).astype(np.uint8) if side else random.normal(size=shape).astype(np.float32)
    given = {
        "image": images,
        "label": random.integers(case.num_classes, size=case.batch_size),
        "position": np.arange(case.batch_size),
    }
    names = list(given)

    @tf.function(jit_compile=True, autograph=False)
    def compiled(*arguments):
        batch, (step, rate) = dict(zip(names, arguments, strict=False)), arguments[len(names) :]
        per_tower, shared = train_step(batch, step, rate)
        return shared["finite"], shared["loss"], shared["gradient_norm"], per_tower["accuracy"]

    return compiled, [*map(tf.constant, given.values()), tf.constant(0, tf.int64), tf.constant(0.1, tf.float64)]


def export(case: Case, precision: str, out_dir: Path) -> None:
    """Write ``case`` as StableHLO, and beside it what its arguments held."""
    step, arguments = one_tower_step(case, precision)
    text = plain_stablehlo(step.experimental_get_compiler_ir(*arguments)(stage="stablehlo"))
    types = argument_types(text)
    # Variables come after what the function is called with, in the order in which it captured them.
    taken = [*arguments, *step.get_concrete_function(*arguments).captured_inputs]
    if len(types) != len(taken):
        raise SystemExit(f"{case.name}: the module has {len(types)} arguments, the step {len(taken)}")
    described = [description(value, *expected) for value, expected in zip(taken, types, strict=True)]
    stem = "_".join((case.name.replace(" ", "_"), str(case.image_size or case.num_classes), precision))
    (out_dir / f"{stem}.mlir").write_text(text)
    about = case._asdict() | {"precision": precision, "arguments": described}
    (out_dir / f"{stem}.json").write_text(json.dumps(about))
    print(f"{stem}: {len(text) / 1e6:.1f} MB, {len(types)} arguments", flush=True)


def augmentation(image_size: int) -> dict:
    """Random crop and mirror, and nothing else."""
    return {
        "seed": 1,
        "image_size": image_size,
        "random_crop": True,
        "random_flip": True,
        "random_rotate": False,
        "random_color": 0.0,
    }


def plain_stablehlo(text: str) -> str:
    """The module without the one op of another dialect, which newer compilers refuse: a copy becomes a reshape."""
    return re.sub(r"= mhlo\.copy (%\S+) : (tensor<[^>]*>)", r"= stablehlo.reshape \1 : (\2) -> \2", text)


def argument_types(text: str) -> list[tuple[tuple[int, ...], str]]:
    """(shape, element type by StableHLO's name) of each argument of the module's main function."""
    arguments = re.search(r"func\.func (?:public )?@main\((.*?)\) -> ", text, re.DOTALL).group(1)
    found = []
    for kind in re.findall(r"%arg\d+: tensor<([^>]*)>", arguments):
        *shape, element = kind.split("x")
        found.append((tuple(map(int, shape)), element))
    return found


def variable_results(text: str) -> list[tuple[int, int]]:
    """(argument, result) of each variable: the module takes its buffer and gives the new value back."""
    pattern = r"parameter_number = (\d+) : i64[^}]*}, output_index = array<i64(?:: (\d+))?>"
    return [(int(argument), int(result or 0)) for argument, result in re.findall(pattern, text)]


def description(value, shape: tuple[int, ...], element: str) -> dict:
    """What ``--time`` needs to draw a value like this argument's: a tensor, or the handle of a variable."""
    import tensorflow as tf

    if value.dtype == tf.resource:
        dtypes = {"f32": tf.float32, "f64": tf.float64, "i64": tf.int64, "i32": tf.int32, "i1": tf.bool}
        value = tf.raw_ops.ReadVariableOp(resource=value, dtype=dtypes[element])
    if tuple(value.shape) != shape:
        raise SystemExit(f"an argument of the module has shape {shape}, that of the step {tuple(value.shape)}")
    array = value.numpy()
    about = {"shape": shape, "element": element}
    if element.startswith("f"):
        return about | {"mean": float(array.mean()), "deviation": float(array.std())}
    return about | {"least": int(array.min()), "most": int(array.max())}


def drawn(about: dict, random):
    """An array like the described one."""
    import numpy as np

    dtypes = {"f32": np.float32, "f64": np.float64, "i64": np.int64, "i32": np.int32, "ui8": np.uint8, "i1": np.bool_}
    dtype = dtypes[about["element"]]
    if about["element"].startswith("f"):
        values = random.standard_normal(about["shape"], np.float32)
        values *= about["deviation"]
        values += about["mean"]
    else:
        values = random.integers(about["least"], about["most"] + 1, about["shape"])
    return np.asarray(values).astype(dtype, copy=False)


def timed(module: Path, repeat: int) -> dict:
    """Median and spread of a call in ms, examples per second and the device's memory; JAX compiles and runs it."""
    import jax
    import numpy as np
    from jax._src.lib import xla_client

    jax.config.update("jax_enable_x64", True)
    text, about = module.read_text(), json.loads(module.with_suffix(".json").read_text())
    device = jax.devices()[0]
    began = time.perf_counter()
    devices = xla_client.DeviceList((device,))
    executable = device.client.compile_and_load(text, devices, xla_client.CompileOptions())
    compiled = time.perf_counter() - began
    random = np.random.default_rng(0)
    arguments = [jax.device_put(drawn(one, random), device) for one in about.pop("arguments")]
    variables = variable_results(text)

    def call():
        results = [one[0] for one in executable.execute_sharded(arguments).disassemble_into_single_device_arrays()]
        jax.block_until_ready(results)
        for argument, result in variables:
            arguments[argument] = results[result]
        return results

    for _ in range(3):
        finite, loss = map(np.asarray, call()[:2])
    if not finite:
        raise SystemExit(f"{module.stem}: the loss is {loss}, and its gradients are not finite: no update was made")
    seconds = []
    for _ in range(repeat):
        began = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began)
    median = statistics.median(seconds)
    memory = device.memory_stats() or {}
    return about | {
        "device": device.device_kind,
        "ms": 1000 * median,
        "least_ms": 1000 * min(seconds),
        "most_ms": 1000 * max(seconds),
        "per_second": about["batch_size"] / median,
        "peak_gib": memory.get("peak_bytes_in_use", 0) / 2**30,
        "loss": float(loss),
        "compile_seconds": compiled,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--export", type=Path, metavar="DIR", help="write the steps into this folder")
    parser.add_argument("--time", type=Path, metavar="DIR", help="time the steps of this folder")
    parser.add_argument("--only", default="", help="steps whose name begins with this, say resnet50 or 'full head'")
    parser.add_argument("--repeat", type=int, default=30, help="timed calls of each step")
    parser.add_argument("--one", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if (arguments.export is None) == (arguments.time is None):
        parser.error("give --export DIR or --time DIR")
    if arguments.one:
        if arguments.time:
            print(json.dumps(timed(arguments.time / arguments.one[0], arguments.repeat)))
            return
        export((*NETWORKS, *HEADS)[int(arguments.one[0])], arguments.one[1], arguments.export)
        return
    if arguments.export:
        arguments.export.mkdir(parents=True, exist_ok=True)
        for index, case in enumerate((*NETWORKS, *HEADS)):
            if case.name.startswith(arguments.only):
                for precision in ("float32", "bfloat16") if case in NETWORKS else ("float32",):
                    print(in_process("--export", arguments.export, "--one", index, precision), end="", flush=True)
        return
    print(f"{'step':<22} {'px/classes':>10} {'batch':>5} {'precision':<9} {'ms':>8} {'per second':>10} {'GiB':>6}")
    lines = []
    for module in sorted(arguments.time.glob("*.mlir")):
        if module.stem.startswith(arguments.only.replace(" ", "_")):
            output = in_process("--time", arguments.time, "--repeat", arguments.repeat, "--one", module.name)
            found = json.loads(output.splitlines()[-1])
            lines.append(found)
            print(
                f"{found['name']:<22} {found['image_size'] or found['num_classes']:>10} {found['batch_size']:>5} "
                f"{found['precision']:<9} {found['ms']:8.2f} {found['per_second']:10.0f} {found['peak_gib']:6.2f}",
                flush=True,
            )
    for line in lines:
        print(json.dumps(line))


def in_process(*arguments) -> str:
    """What a process of its own prints: memory and settings of one step must not be the next one's."""
    command = [sys.executable, __file__, *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}; its own output is above")
    return done.stdout


if __name__ == "__main__":
    main()
