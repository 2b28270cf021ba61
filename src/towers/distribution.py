"""Towers over devices: the only file that calls ``tf.distribute``.

One tower and many towers, CPUs and GPUs, run the same lines::

    towers = Towers.create(num_towers=2, reduction="cpu")
    with towers.scope():
        network = build(...)
    for batch in towers.feed(make_dataset):
        values = towers.run(step, batch)
"""

import ctypes
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import keras
import tensorflow as tf

from .errors import UserError
from .processes import ALONE, Processes

REDUCTIONS = ("cpu", "nccl", "hierarchical")
# Parameters of mallopt, from glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -2, -3, -8


@dataclass(frozen=True)
class Towers:
    """The devices of this process, one tower each, and where their gradients are summed.

    With several processes the towers of process 0 come first, then those of process 1, and so on.
    """

    strategy: tf.distribute.Strategy
    reduction: str
    device_names: tuple[str, ...]
    processes: Processes = ALONE

    @classmethod
    def create(cls, num_towers: int | None = None, reduction: str = "cpu", processes: Processes = ALONE) -> "Towers":
        """Make the towers of this process; must come before any other use of TensorFlow's devices.

        Args:
          num_towers: of this process: the first so many GPUs, or logical CPU devices where there is no GPU; None: all
            GPUs, else 1.
          reduction: ``cpu`` (gradients are summed in host memory), ``nccl`` (between the GPUs; ring on CPUs) or
            ``hierarchical`` (by groups of GPUs); several processes: ``cpu`` (by gRPC) or ``nccl``.
          processes: those that train together, after they have met.

        Raises:
          UserError: fewer GPUs than towers, an unknown reduction, or what several processes cannot do.
        """
        if reduction not in REDUCTIONS:
            raise UserError(f"--reduction {reduction}: choose one of {', '.join(REDUCTIONS)}")
        if num_towers is not None and num_towers < 1:
            raise UserError(f"--towers {num_towers}: at least one tower is needed")
        if processes.num > 1 and reduction == "hierarchical":
            raise UserError("--reduction hierarchical is for the GPUs of one process; give cpu or nccl")
        gpus = tf.config.list_physical_devices("GPU")
        if processes.num > 1 and not gpus and (num_towers or 1) > 1:
            raise UserError(
                f"--towers {num_towers}: on CPUs each of several processes has one tower; start more processes"
            )
        if gpus:
            num_towers = num_towers or len(gpus)
            if num_towers > len(gpus):
                raise UserError(
                    f"--towers {num_towers}: this machine shows {len(gpus)} GPU(s) to TensorFlow; "
                    f"give --towers {len(gpus)} or fewer, or check CUDA_VISIBLE_DEVICES"
                )
            tf.config.set_visible_devices(gpus[:num_towers], "GPU")
            for gpu in gpus[:num_towers]:
                tf.config.experimental.set_memory_growth(gpu, True)
            names = tuple(f"/GPU:{index}" for index in range(num_towers))
        else:
            num_towers = num_towers or 1
            _keep_freed_memory()
            tf.config.set_logical_device_configuration(
                tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * num_towers
            )
            names = tuple(f"/CPU:{index}" for index in range(num_towers))
        if processes.num == 1:
            return cls(tf.distribute.MirroredStrategy(list(names)), reduction, names)
        processes.check_alike("--towers", num_towers)
        strategy = _strategy_of(processes, {"GPU": num_towers} if gpus else {})
        return cls(strategy, reduction, strategy.extended.worker_devices, processes)

    @classmethod
    def for_compiling(cls) -> "Towers":
        """One tower on the CPU without MirroredStrategy, around whose steps ``jit_compile`` does not work."""
        return cls(tf.distribute.get_strategy(), "cpu", ("/CPU:0",))

    @property
    def num_towers(self) -> int:
        return self.strategy.num_replicas_in_sync

    @property
    def local_towers(self) -> list[int]:
        """Indices of the towers that this process feeds."""
        own = len(self.device_names)
        return list(range(self.processes.index * own, (self.processes.index + 1) * own))

    def scope(self):
        """Variables made inside are kept once a tower."""
        return self.strategy.scope()

    def run(self, function: Callable, *args):
        """Call ``function`` once a tower, each with its own part of ``args``."""
        if self.processes.num == 1:
            return self.strategy.run(function, args=args)

        def on_device(*own):
            # Sums over processes find out where to go by the device of what they are given.
            with tf.device(self.device_names[tower_index() - self.local_towers[0]]):
                return function(*own)

        return self.strategy.run(on_device, args=args)

    def stack(self, value) -> tf.Tensor:
        """Stack a result of ``run`` over the towers of this process: [...] each -> [R, ...]."""
        return tf.stack([tf.convert_to_tensor(part) for part in self.strategy.experimental_local_results(value)])

    def to_all_processes(self, tensor: tf.Tensor) -> tf.Tensor:
        """Inside ``run``: this tower's tensor [b, ...], with several processes those of all towers [B, ...]."""
        return tensor if self.processes.num == 1 else all_gather(tensor)

    def exchange(self) -> Callable[[dict[int, tf.Tensor]], list[tf.Tensor]]:
        """A function that all processes call alike: tensors [n, ...] of the own towers -> those of all, in their order.

        All are of one shape, in every call.
        """

        @tf.function(autograph=False)
        def gathered(values):
            return self.run(lambda own: all_gather(own[None]), values)

        def exchange(own):
            values = self.strategy.experimental_distribute_values_from_function(
                lambda context: own[context.replica_id_in_sync_group]
            )
            return tf.unstack(self.local_values(gathered(values))[0])

        return exchange

    def of_all(self, values: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Inside ``run``, with several processes: each tower's scalars by name -> those of all towers, [R]."""
        packed = all_gather(tf.stack([tf.cast(value, tf.float64) for value in values.values()])[None])
        return dict(zip(values, tf.unstack(packed, num=len(values), axis=1), strict=True))

    def local_values(self, value) -> list:
        """The result of ``run`` on each tower of this process, in order of the towers."""
        return list(self.strategy.experimental_local_results(value))

    def feed(self, make_dataset: Callable[[list[int]], tf.data.Dataset]) -> Iterator:
        """Iterate over batches spread over the towers.

        Args:
          make_dataset: from the tower indices of this process to a data set that yields one element a tower in turn.
        """
        return iter(
            self.strategy.distribute_datasets_from_function(lambda input_context: make_dataset(self.local_towers))
        )

    def sum_gradients(self, tensors: list[tf.Tensor]) -> list[tf.Tensor]:
        """Inside ``run``: the sums of ``tensors`` over all towers, carried as one flat tensor a dtype."""
        if self.num_towers == 1:
            return list(tensors)
        by_dtype = {}
        for index, tensor in enumerate(tensors):
            by_dtype.setdefault(tensor.dtype, []).append(index)
        sums = [None] * len(tensors)
        for indices in by_dtype.values():
            flat = tf.concat([tf.reshape(tensors[index], [-1]) for index in indices], axis=0)
            parts = tf.split(self._sum_flat(flat), [tensors[index].shape.num_elements() for index in indices])
            for index, part in zip(indices, parts, strict=True):
                sums[index] = tf.reshape(part, tensors[index].shape)
        return sums

    def _sum_flat(self, flat: tf.Tensor) -> tf.Tensor:
        context = tf.distribute.get_replica_context()
        if self.processes.num > 1:
            way = tf.distribute.experimental.CommunicationImplementation
            implementation = way.NCCL if self.reduction == "nccl" and _on_gpus(self.device_names) else way.RING
            options = tf.distribute.experimental.CommunicationOptions(implementation=implementation)
            return context.all_reduce(tf.distribute.ReduceOp.SUM, tf.identity(flat), options)
        if self.reduction == "nccl":
            return context.all_reduce(tf.distribute.ReduceOp.SUM, flat)
        # Given to the strategy itself, these reductions would also carry the collectives of sync BN and of the heads,
        # which makes tracing several times as long.
        if self.reduction == "cpu":
            cross_device = tf.distribute.ReductionToOneDevice("/CPU:0")
        else:
            cross_device = tf.distribute.HierarchicalCopyAllReduce()
        return context.merge_call(
            lambda strategy, value: cross_device.reduce(tf.distribute.ReduceOp.SUM, value, destinations=value),
            args=(flat,),
        )


def _strategy_of(processes: Processes, accelerators: dict[str, int]) -> tf.distribute.Strategy:
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec({"worker": list(processes.addresses)}),
        task_type="worker",
        task_id=processes.index,
        num_accelerators=accelerators,
        rpc_layer="grpc",
    )
    return tf.distribute.MultiWorkerMirroredStrategy(resolver)


def _on_gpus(device_names: tuple[str, ...]) -> bool:
    return "GPU" in device_names[0]


def _keep_freed_memory() -> None:
    """Have glibc keep what a step frees for the next one.

    By default it gives the large tensors of every step back to the system, which then clears the same pages again: half
    of the time of a step on two CPU cores. Resident memory stays at its peak.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option, value in (
            (_M_ARENA_MAX, 1),
            (_M_TOP_PAD, 1 << 30),
            (_M_MMAP_THRESHOLD, 1 << 30),
            (_M_TRIM_THRESHOLD, (1 << 31) - 1),
        ):
            mallopt(option, value)


def tower_index() -> int:
    """Index of the tower that is being traced; 0 outside of ``Towers.run``."""
    context = tf.distribute.get_replica_context()
    return 0 if context is None else int(tf.get_static_value(context.replica_id_in_sync_group))


def all_gather(tensor: tf.Tensor) -> tf.Tensor:
    """Inside ``run``: the towers' tensors [b, ...] one after the other, [B, ...]; the gradient is exact.

    Exact where every tower differentiates its own losses: the backward pass sums over the towers.
    """
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return tensor
    return context.all_gather(tf.identity(tensor), axis=0)


def sum_over_towers(tensor: tf.Tensor) -> tf.Tensor:
    """Inside ``run``: the sum of the towers' tensors, by the strategy's own collectives."""
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return tensor
    return context.all_reduce(tf.distribute.ReduceOp.SUM, tf.identity(tensor))


@keras.saving.register_keras_serializable(package="towers")
class Dropout(keras.layers.Layer):
    """Dropout whose mask depends on (seed, step, tower).

    Keras' own layer draws the same mask on every replica, and its state is not a function of the step.

    Args:
      rate: share of values set to zero, 0 <= rate < 1; the others are scaled by 1 / (1 - rate).
      seed: two layers of one network need different seeds.
    """

    def __init__(self, rate: float, seed: int = 0, **kwargs):
        super().__init__(**kwargs)
        self.rate = rate
        self.seed = seed

    def build(self, input_shape):
        self.step = self.add_weight(name="step", shape=(), dtype="int64", initializer="zeros", trainable=False)

    def call(self, inputs, training=False):
        if not training or self.rate == 0:
            return inputs
        step = tf.convert_to_tensor(self.step)
        self.step.assign(step + 1)
        # A stateless seed has two numbers: the layer and the tower share the first.
        seed = tf.stack([tf.constant(self.seed * 65_536 + tower_index(), tf.int64), step])
        kept = tf.random.stateless_uniform(tf.shape(inputs), seed) >= self.rate
        return tf.where(kept, inputs / (1 - self.rate), tf.zeros([], inputs.dtype))

    def get_config(self):
        return {**super().get_config(), "rate": self.rate, "seed": self.seed}
