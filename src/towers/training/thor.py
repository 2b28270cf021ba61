"""THOR: gradients preconditioned by Kronecker factors of the Fisher matrix, in diagonal blocks, refreshed now and then.

Chen et al., "THOR, Trace-based Hardware-driven Layer-Oriented Natural Gradient Descent Computation" (AAAI 2021); the
factors of convolutions are those of Grosse and Martens, "A Kronecker-factored approximate Fisher matrix for convolution
layers" (2016). Differently from the published code, the factors are averaged over the towers before they are inverted,
so that the update is that of the whole batch on any number of towers.
"""

from collections.abc import Callable
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from ..errors import UserError

# A Cholesky decomposition in float32 can fail where the damping is a smaller share of a block's trace.
LEAST_DAMPING = {tf.float32: 1e-6, tf.float64: 1e-12}


class Factors(NamedTuple):
    """Sums over examples and positions, of one layer: of the inputs' and of the outputs' gradients' outer products.

    Attributes:
      inputs: [n_a, k_a, k_a], diagonal blocks of the sum of a a^T, a [d_in] a patch or a row.
      outputs: [n_g, k_g, k_g], of the sum of s s^T, s [d_out] the gradient of an example's own loss.
    """

    inputs: tf.Tensor
    outputs: tf.Tensor


class Preconditioned(NamedTuple):
    """A layer whose kernel is preconditioned.

    Attributes:
      layer: Conv2D or Dense, without activation.
      positions: T, outputs of a kernel in an example: 1 for a dense layer.
    """

    layer: keras.layers.Layer
    positions: int


class Tapped:
    """A network that keeps what its preconditioned layers were given and gave; made anew for each pass."""

    def __init__(self, thor: "Thor"):
        self._thor = thor
        self.inputs: list[tf.Tensor] = []
        self.outputs: list[tf.Tensor] = []

    def __call__(self, images, training):
        results = self._thor.tapped(images, training=training)
        count = len(self._thor.layers)
        taps = results[len(results) - 2 * count :]
        self.inputs, self.outputs = taps[:count], taps[count:]
        own = results[: len(results) - 2 * count]
        return own[0] if len(own) == 1 else own


class Thor:
    """The preconditioner of a network's convolutions and dense layers; all else keeps its plain gradient.

    An update is dW = (1/T) (G + d I)^-1 g (A + d I)^-1 with d = sqrt(damping / T), A and G the means of a a^T and s s^T
    over examples and positions, and g the gradient as [d_out, d_in]. Of A and G the diagonal blocks of ``block`` rows
    are kept. Make it inside the towers' scope.

    Args:
      network: a functional model; its layers with an activation of their own, groups, or several uses stay plain.
      damping: function of the step (scalar int64 tensor) to the damping, float64.
      interval: steps between refreshes of the inverses; the first step is one.
      trace_rule: (w1, w2), the paper's rule: at a refresh the inverses of a layer stay as they are where the trace of
        its damped Fisher block has changed by w1 of itself or less, and stay so for ever where by less than w2.
        None: they are renewed each time.
      block: rows of a diagonal block.

    Raises:
      UserError: no such layer in the network, or a number out of its range.
    """

    def __init__(
        self,
        network: keras.Model,
        *,
        damping: Callable[[tf.Tensor], tf.Tensor],
        interval: int,
        trace_rule: tuple[float, float] | None = None,
        block: int = 128,
    ):
        if interval < 1 or block < 1:
            raise UserError(f"--thor_interval {interval}, --thor_block {block}: both must be 1 or more")
        if trace_rule is not None and not 0 <= trace_rule[1] <= trace_rule[0]:
            raise UserError(f"--thor_trace_rule {trace_rule[0]:g} {trace_rule[1]:g}: give W1 >= W2 >= 0")
        self.damping, self.interval, self.trace_rule, self.block = damping, interval, trace_rule, block
        self.layers = preconditioned_layers(network)
        if not self.layers:
            raise UserError(f"--optimizer THOR: network {network.name} has no layer that it preconditions; choose MOM")
        taps = [[getattr(each.layer, side) for each in self.layers] for side in ("input", "output")]
        self.tapped = keras.Model(network.inputs, [*network.outputs, *taps[0], *taps[1]])
        # Of factors and inverses, also where the network computes in less.
        self._dtype = tf.float64 if self.layers[0].layer.variable_dtype == "float64" else tf.float32
        self._inverses = []
        for index, each in enumerate(self.layers):
            sides = [_identities(size, block, self._dtype, f"thor_{index}_{side}") for side, size in _sizes(each.layer)]
            self._inverses.append(Factors(*sides))
        count = len(self.layers)
        self._traces = tf.Variable(tf.zeros(count, self._dtype), trainable=False, name="thor_traces")
        self._stopped = tf.Variable(tf.zeros(count, tf.int64), trainable=False, name="thor_stopped")
        # Refreshes, layers whose factors were not finite, blocks whose damping had to be raised.
        self._counts = tf.Variable(tf.zeros(3, tf.int64), trainable=False, name="thor_counts")
        self._refreshed: bool | None = None

    def variables(self) -> dict[str, tf.Variable]:
        """Name -> everything that a checkpoint needs to go on exactly."""
        found = {"traces": self._traces, "stopped": self._stopped, "counts": self._counts}
        for each, inverses in zip(self.layers, self._inverses, strict=True):
            found |= {f"{each.layer.name}/{side}": getattr(inverses, side) for side in Factors._fields}
        return found

    def around(self, plain_step: Callable, refresh_step: Callable) -> Callable:
        """The step that is one of the two; a first refresh that was skipped as not finite is tried again at once."""

        def step_of_its_kind(batch, step, learning_rate):
            if self._refreshed is None:
                self._refreshed = bool(self._counts.numpy()[0])
            if self._refreshed and int(step) % self.interval:
                return plain_step(batch, step, learning_rate)
            per_tower, shared = refresh_step(batch, step, learning_rate)
            self._refreshed = self._refreshed or bool(shared["finite"].numpy())
            return per_tower, shared

        return step_of_its_kind

    def factors(self, tapped: Tapped, output_gradients: list[tf.Tensor]) -> list[Factors]:
        """Inside ``Towers.run``: this tower's sums; summed over the towers they are what ``renewed`` takes.

        Args:
          output_gradients: of ``tapped.outputs``, by the sum of the losses.
        """
        return [
            Factors(
                block_products(patches(each.layer, tf.cast(inputs, self._dtype)), self.block),
                block_products(_rows(tf.cast(gradients, self._dtype)), self.block),
            )
            for each, inputs, gradients in zip(self.layers, tapped.inputs, output_gradients, strict=True)
        ]

    def renewed(
        self, sums: list[Factors], examples: tf.Tensor, step: tf.Tensor, scale: tf.Tensor | None = None
    ) -> tuple[list[Factors], Callable[[tf.Tensor], None]]:
        """Inside ``Towers.run``: the inverses to use in this step, and a function of ``keep`` that stores them.

        A layer whose factors are not finite keeps its old inverses; a block whose damping is too small a share of its
        trace to be inverted gets more. Both are counted.

        Args:
          sums: over all towers; ``examples``: scalar, how many they are of.
          scale: what the losses were multiplied by; None: 1.
        """
        damping = self.damping(step)
        found, traces, stopped, bad, raised = [], [], [], [], []
        for index, (each, own, old) in enumerate(zip(self.layers, sums, self._inverses, strict=True)):
            means = _means(own, tf.cast(examples, own.inputs.dtype) * each.positions, scale)
            finite = tf.math.is_finite(tf.add_n([tf.reduce_sum(tf.abs(mean)) for mean in means]))
            trace = _fisher_trace(each, means, damping)
            wanted, stop = self._rule(trace, self._traces[index], self._stopped[index] > 0)
            own_damping = tf.cast(tf.sqrt(damping / each.positions), own.inputs.dtype)
            sides = [inverted(mean, own_damping, finite) for mean in means]
            good = finite & tf.reduce_all([tf.reduce_all(tf.math.is_finite(inverse)) for inverse, _ in sides])
            found.append(
                Factors(
                    *(tf.where(good & wanted, inverse, before) for (inverse, _), before in zip(sides, old, strict=True))
                )
            )
            traces.append(tf.where(good, trace, self._traces[index]))
            stopped.append(good & stop | (self._stopped[index] > 0))
            bad.append(~good)
            raised += [count for _, count in sides]
        counts = tf.stack([tf.ones([], tf.int64), tf.math.count_nonzero(bad), tf.add_n(raised)])

        def store(keep):
            for variables, inverses in zip(self._inverses, found, strict=True):
                for variable, inverse in zip(variables, inverses, strict=True):
                    variable.assign(tf.where(keep, inverse, variable))
            self._traces.assign(tf.where(keep, tf.stack(traces), self._traces))
            self._stopped.assign(tf.where(keep, tf.cast(tf.stack(stopped), tf.int64), self._stopped))
            self._counts.assign_add(tf.where(keep, counts, tf.zeros_like(counts)))

        return found, store

    def stored(self) -> list[Factors]:
        """Inside ``Towers.run``: the inverses of the last refresh."""
        return [Factors(*(variable.read_value() for variable in inverses)) for inverses in self._inverses]

    def metrics(self) -> dict[str, tf.Tensor]:
        """Inside ``Towers.run``: what the refreshes so far met with."""
        counts = tf.cast(self._counts, tf.float32)
        stopped = tf.cast(tf.math.count_nonzero(self._stopped), tf.float32)
        return {"thor_kept": counts[1], "thor_raised": counts[2], "thor_stopped": stopped}

    def preconditioned(
        self, gradients: list[tf.Tensor], variables: list[keras.Variable], inverses: list[Factors]
    ) -> list[tf.Tensor]:
        """The gradients, those of the kernels that have inverses preconditioned."""
        place = {id(variable): index for index, variable in enumerate(variables)}
        gradients = list(gradients)
        for each, own in zip(self.layers, inverses, strict=True):
            index = place.get(id(each.layer.kernel))
            if index is not None:
                gradients[index] = precondition(gradients[index], own, each.positions)
        return gradients

    def _rule(self, trace, before, stopped):
        """Whether to renew a layer's inverses, and whether never to do so again; both scalars."""
        if self.trace_rule is None:
            return tf.constant(True), tf.constant(False)
        changed = tf.abs(trace - before) / tf.maximum(before, np.finfo(before.dtype.as_numpy_dtype).tiny)
        # The trace of a damped block is above 0.
        first = before <= 0
        return first | (changed > self.trace_rule[0]) & ~stopped, ~first & (changed < self.trace_rule[1])


def preconditioned_layers(network: keras.Model) -> list[Preconditioned]:
    """The layers that ``Thor`` preconditions: convolutions without groups and dense layers, linear and used once."""
    found = []
    for layer in network.layers:
        convolution = type(layer) is keras.layers.Conv2D and layer.groups == 1
        dense = type(layer) is keras.layers.Dense and len(layer.input.shape) == 2
        if not (convolution or dense) or layer.activation is not keras.activations.linear:
            continue
        if len(layer._inbound_nodes) > 1 or not layer.trainable:
            continue
        positions = layer.output.shape[1:-1]
        if None in positions:
            raise UserError("--optimizer THOR: the network must have pictures of one size (--image_size)")
        found.append(Preconditioned(layer, int(np.prod(positions))))
    return found


def exponential_damping(initial: float, decay: float, epoch_size: int) -> Callable[[tf.Tensor], tf.Tensor]:
    """``initial * decay ** (e / 10)``, e = (step + 1) / epoch_size: the law of the published ResNet-50 runs.

    Raises:
      UserError: a damping or a decay that is not positive.
    """
    if initial <= 0 or decay <= 0:
        raise UserError(f"--thor_damping {initial:g}, --thor_damping_decay {decay:g}: both must be above 0")

    def damping(step):
        epoch = (tf.cast(step, tf.float64) + 1) / epoch_size
        return tf.constant(initial, tf.float64) * tf.pow(tf.constant(decay, tf.float64), epoch / 10)

    return damping


def warn_of_broken_factors() -> Callable[[dict], str | None]:
    """A function of the metrics of a logged step: a line for the user when refreshes have met with broken factors."""
    seen = [0.0, 0.0]

    def watch(metrics: dict) -> str | None:
        counts = [metrics.get("thor_kept", 0.0), metrics.get("thor_raised", 0.0)]
        new = [now - before for now, before in zip(counts, seen, strict=True)]
        # The means of several steps are logged, so that a count may come in parts.
        if max(new) <= 0:
            return None
        seen[:] = counts
        return (
            f"step {metrics['step']}: THOR: {counts[0]:.0f} layers kept their inverses, since their factors were not "
            f"finite, and the damping of {counts[1]:.0f} blocks was raised to invert them (so far); "
            "try a larger --thor_damping or a lower --learning_rate"
        )

    return watch


def patches(layer: keras.layers.Layer, inputs: tf.Tensor) -> tf.Tensor:
    """What a kernel is multiplied with, a row a position: [b * T, k * k * C] in the kernel's order, or [b, d]."""
    if isinstance(layer, keras.layers.Dense):
        return inputs
    (height, width), (down, right) = layer.kernel_size, layer.strides
    if height == width == 1:
        return _rows(inputs[:, ::down, ::right, :])
    return _rows(
        tf.image.extract_patches(
            inputs,
            sizes=[1, height, width, 1],
            strides=[1, down, right, 1],
            rates=[1, *layer.dilation_rate, 1],
            padding=layer.padding.upper(),
        )
    )


def block_products(rows: tf.Tensor, block: int) -> tf.Tensor:
    """Diagonal blocks of rows^T rows: [M, d] -> [ceil(d / k), k, k], k = min(block, d), zeros after the last row."""
    size = rows.shape[-1]
    block = min(block, size)
    count = -(-size // block)
    parts = tf.reshape(tf.pad(rows, [[0, 0], [0, count * block - size]]), [-1, count, block])
    return tf.einsum("mbi,mbj->bij", parts, parts)


def inverted(factor: tf.Tensor, damping: tf.Tensor, finite: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """(factor + damping I)^-1 of each block [n, k, k], and int64, how many blocks needed a larger damping.

    Args:
      finite: scalar bool; where false the identity is inverted instead, for TensorFlow ends the program at a Cholesky
        decomposition that fails.
    """
    identity = tf.eye(factor.shape[-1], batch_shape=factor.shape[:1], dtype=factor.dtype)
    factor = tf.where(finite, factor, identity)
    least = LEAST_DAMPING[factor.dtype] * tf.linalg.trace(factor)
    damped = factor + tf.maximum(damping, least)[:, None, None] * identity
    return tf.linalg.cholesky_solve(tf.linalg.cholesky(damped), identity), tf.math.count_nonzero(least > damping)


def precondition(gradient: tf.Tensor, inverses: Factors, positions: int) -> tf.Tensor:
    """(1 / T) A^-1 g G^-1 for a kernel's gradient [..., d_in, d_out], by blocks; of its shape and dtype."""
    (n_a, k_a, _), (n_g, k_g, _) = inverses.inputs.shape, inverses.outputs.shape
    flat = tf.cast(tf.reshape(gradient, [-1, gradient.shape[-1]]), inverses.inputs.dtype)
    d_in, d_out = flat.shape
    parts = tf.reshape(tf.pad(flat, [[0, n_a * k_a - d_in], [0, n_g * k_g - d_out]]), [n_a, k_a, n_g * k_g])
    parts = tf.reshape(tf.matmul(inverses.inputs, parts), [n_a * k_a, n_g, k_g])
    parts = tf.einsum("agi,gij->agj", parts, inverses.outputs)
    result = tf.reshape(parts, [n_a * k_a, n_g * k_g])[:d_in, :d_out] / positions
    return tf.cast(tf.reshape(result, gradient.shape), gradient.dtype)


def _rows(values):
    return tf.reshape(values, [-1, values.shape[-1]])


def _sizes(layer):
    outputs = layer.kernel.shape[-1]
    return ("inputs", int(np.prod(layer.kernel.shape)) // outputs), ("outputs", outputs)


def _identities(size, block, dtype, name):
    block = min(block, size)
    value = tf.eye(block, batch_shape=[-(-size // block)], dtype=dtype)
    return tf.Variable(value, trainable=False, name=name)


def _means(sums, count, scale):
    outputs = sums.outputs / count
    if scale is not None:
        outputs /= tf.cast(scale, outputs.dtype) ** 2
    return Factors(sums.inputs / count, outputs)


def _fisher_trace(each, means, damping):
    """tr(F + damping I) of a layer, F ~ T A (x) G."""
    traces = [tf.reduce_sum(tf.linalg.trace(mean)) for mean in means]
    size = int(np.prod(each.layer.kernel.shape))
    return each.positions * traces[0] * traces[1] + size * tf.cast(damping, traces[0].dtype)
