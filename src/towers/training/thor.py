"""THOR: gradients preconditioned by the Kronecker factors of a layer's Fisher matrix, refreshed now and then.

Chen et al., "THOR, Trace-based Hardware-driven Layer-Oriented Natural Gradient Descent Computation", AAAI 2021. It
stands in front of any of ``optimizers``::

    thor = Thor(towers, network, [head], damping=0.03, damping_decay=0.5, epoch_size=834, interval=20)
    train_step = make_train_step(..., thor=thor)
"""

from collections.abc import Sequence
from typing import NamedTuple

import keras
import tensorflow as tf

from ..distribution import Towers, tower_index
from ..errors import UserError
from ..heads.replicated import ReplicatedHead
from . import kronecker
from .taps import Recording, Tap, head_tap, layer_tap, tapped_layers, tapped_network

# Smaller dampings have given inverses that are not finite in float32.
LEAST_DAMPING = 1e-4
RAISED_BY, RELAXED_BY, MOST_RAISED = 10.0, 2.0, 1e6
SAMPLED_SIDE = 14


class Inverses(NamedTuple):
    """What a step preconditions with, and what a refresh leaves behind.

    Attributes:
      of_taps: (A^-1, G^-1) of each tap, in blocks.
      state: new values of the variables of ``Thor`` by name, [L] each; empty where nothing was refreshed.
      refreshed: number of layers that got new inverses; failed: of those whose factors or inverses were not finite.
    """

    of_taps: list[tuple[tf.Tensor, tf.Tensor]]
    state: dict[str, tf.Tensor]
    refreshed: tf.Tensor
    failed: tf.Tensor


class Thor:
    """The factors' inverses of every tapped layer, alike on every tower, and when they are made anew.

    Weights of dense layers, of convolutions and of linear heads are preconditioned; biases, batch normalisation,
    depthwise convolutions and layers with an activation of their own keep their gradients. Statistics are those of one
    batch, over all towers, summed before anything is inverted.

    Args:
      heads: classifiers whose ``logits`` the objective makes once a step.
      damping, damping_decay: lambda of epoch e is ``damping * damping_decay ** (e / 10)``, at least 1e-4.
      epoch_size: steps of an epoch; e = (step + 1) / epoch_size.
      interval: steps from refresh to refresh; the first is at step 0.
      trace_rule: (w1, w2): at a refresh a layer gets new inverses only where the trace of its damped factors has
        changed by more than w1 (a share), and is left alone for ever once it changes by less than w2; None: always.
      largest_side: statistics of a map are taken from at most about so many positions a side, evenly spread; None: all.
      kl_clip: the preconditioned gradients d are scaled so that rate^2 sum <d, g>, by which a step changes what the
        network says (a KL divergence, to second order), is at most this; 0: never. Not of the paper, but usual with
        Kronecker factors (Ba, Grosse, Martens, 2017).

    Raises:
      UserError: a value out of range.
    """

    def __init__(
        self,
        towers: Towers,
        network: keras.Model,
        heads: Sequence[ReplicatedHead] = (),
        *,
        damping: float,
        damping_decay: float,
        epoch_size: int,
        interval: int,
        trace_rule: tuple[float, float] | None = None,
        largest_side: int | None = SAMPLED_SIDE,
        kl_clip: float = 0.0,
    ):
        check_options(damping, damping_decay, interval, trace_rule, kl_clip)
        self.kl_clip = kl_clip
        self.damping, self.damping_decay, self.epoch_size = damping, damping_decay, epoch_size
        self.interval, self.trace_rule = interval, trace_rule
        self.heads = list(heads)
        layers = tapped_layers(network)
        self.taps = [*(layer_tap(layer, largest_side) for layer in layers), *map(head_tap, self.heads)]
        self._network, self._num_layers = tapped_network(network, layers), len(layers)
        self._recordings = {}
        for head in self.heads:
            head.observe = self._note
        self._started = False
        with towers.scope():
            self._inverses = [tuple(map(_identities, tap.shape, [tap.kernel.dtype] * 2)) for tap in self.taps]
            count = len(self.taps)
            self._state = {
                "trace": tf.Variable(tf.zeros([count], tf.float64), trainable=False),
                "stopped": tf.Variable(tf.zeros([count], tf.bool), trainable=False),
                "raised": tf.Variable(tf.ones([count], tf.float64), trainable=False),
                "refreshes": tf.Variable(tf.zeros([count], tf.int64), trainable=False),
                "failures": tf.Variable(tf.zeros([count], tf.int64), trainable=False),
            }

    @property
    def num_bytes(self) -> int:
        """Bytes of all inverses; a refresh takes as much again, twice."""
        return sum(variable.shape.num_elements() * variable.dtype.size for pair in self._inverses for variable in pair)

    def variables(self) -> dict[str, tf.Variable]:
        """Name -> variable, for checkpoints: inverses of each layer; [L] traces, stops, raised dampings and counts."""
        inverses = {
            f"{tap.name}/{side}": variable
            for tap, pair in zip(self.taps, self._inverses, strict=True)
            for side, variable in zip(("inputs", "outputs"), pair, strict=True)
        }
        return {**self._state, **inverses}

    def is_due(self, step: int) -> bool:
        """Whether ``step`` refreshes: each ``interval`` steps until all layers stopped, and till a first success."""
        if not self._started:
            # A run must not go on with identities, at rates that are meant for natural gradients.
            self._started = bool((self._state["refreshes"].numpy() > 0).any())
            if not self._started:
                return True
        if step % self.interval:
            return False
        return self.trace_rule is None or not self._state["stopped"].numpy().all()

    def damping_at(self, step: tf.Tensor) -> tf.Tensor:
        """lambda of a step, float64."""
        epoch = (tf.cast(step, tf.float64) + 1) / self.epoch_size
        return self.damping * tf.constant(self.damping_decay, tf.float64) ** (epoch / 10)

    def recording(self) -> Recording:
        """Inside ``Towers.run``: what stands in for the network in the next objective of this tower."""
        self._recordings[tower_index()] = Recording(self._network, self._num_layers)
        return self._recordings[tower_index()]

    def recorded(self) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
        """Inside ``Towers.run``: inputs and outputs of the taps since ``recording``, for ``factor_sums``."""
        return self._recordings.pop(tower_index()).taken(self.heads)

    def factor_sums(self, inputs: Sequence[tf.Tensor], gradients: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """The blocks of sum a a^T, then of sum ds ds^T, for each tap, over a tower's pictures and positions.

        Args:
          inputs: of the taps; gradients: of the taps' outputs, from the sum of the losses.
        """
        sums = []
        for tap, taken, gradient in zip(self.taps, inputs, gradients, strict=True):
            dtype = tap.kernel.dtype
            sums += [
                kronecker.block_products(tf.cast(tap.rows(taken), dtype)),
                kronecker.block_products(tf.cast(tap.gradient_rows(gradient), dtype)),
            ]
        return sums

    def stored(self) -> Inverses:
        """Inside ``Towers.run``: the inverses of the last refresh."""
        none = tf.zeros([], tf.int64)
        return Inverses([tuple(map(tf.convert_to_tensor, pair)) for pair in self._inverses], {}, none, none)

    def refreshed(
        self, sums: Sequence[tf.Tensor], num_pictures: tf.Tensor, divisor: tf.Tensor, step: tf.Tensor
    ) -> Inverses:
        """Inside ``Towers.run``: new inverses where a layer wants them and they are finite, else the stored ones.

        With T positions, A = mean a a^T and G = mean ds ds^T over pictures and positions, where ds is of a picture's
        own share of the loss: (A + sqrt(lambda / T) I)^-1 and (G + sqrt(lambda / T) I)^-1.

        Args:
          sums: ``factor_sums`` added up over the towers.
          num_pictures: of all towers, int64.
          divisor: what the sum of the losses is divided by to give the loss.
        """
        damping = self.damping_at(step)
        old = {name: tf.convert_to_tensor(variable) for name, variable in self._state.items()}
        pairs, columns = [], {name: [] for name in self._state}
        refreshed = []
        for index, (tap, stored) in enumerate(zip(self.taps, self._inverses, strict=True)):
            own = {name: values[index] for name, values in old.items()}
            dtype = tap.kernel.dtype
            count = tf.cast(num_pictures * tap.sampled, dtype)
            # The step's gradients are of the sum of the losses; a picture's share of the loss counts num_pictures fold.
            share = tf.math.divide_no_nan(tf.cast(num_pictures, dtype), tf.cast(divisor, dtype))
            factors = sums[2 * index] / count, sums[2 * index + 1] * share**2 / count
            root = tf.sqrt(tf.maximum(damping * own["raised"], LEAST_DAMPING) / tap.positions)
            trace = damped_trace(factors, tap, root)
            finite = tf.math.is_finite(trace) & _all_finite(factors)
            # A layer that no loss reaches in this batch tells nothing.
            reached = tf.reduce_all([tf.linalg.trace(tf.reduce_sum(factor, axis=0)) > 0 for factor in factors])
            new = [
                kronecker.damped_inverse(tf.where(finite, factor, tf.zeros_like(factor)), tf.cast(root, dtype))
                for factor in factors
            ]
            good = finite & _all_finite(new)
            failed = ~good & ~own["stopped"]
            wanted, stops = self._by_trace(trace, own["trace"])
            taken = good & reached & wanted & ~own["stopped"]
            measured = good & reached
            raised = tf.where(good, own["raised"] / RELAXED_BY, own["raised"] * RAISED_BY)
            columns["trace"].append(tf.where(measured, trace, own["trace"]))
            columns["stopped"].append(own["stopped"] | (measured & stops))
            columns["raised"].append(tf.clip_by_value(raised, 1.0, MOST_RAISED))
            columns["refreshes"].append(own["refreshes"] + tf.cast(taken, tf.int64))
            columns["failures"].append(own["failures"] + tf.cast(failed, tf.int64))
            refreshed.append(taken)
            pairs.append(tuple(tf.where(taken, value, before) for value, before in zip(new, stored, strict=True)))
        state = {name: tf.stack(values) for name, values in columns.items()}
        return Inverses(
            pairs,
            state,
            refreshed=tf.math.count_nonzero(tf.stack(refreshed)),
            failed=tf.reduce_sum(state["failures"] - old["failures"]),
        )

    def preconditioned(
        self, gradients: Sequence[tf.Tensor], variables: Sequence, inverses: Inverses, learning_rate: tf.Tensor
    ) -> list[tf.Tensor]:
        """(1 / T) A^-1 g G^-1 for the kernels of the taps, scaled by ``kl_clip``; the other gradients as they are."""
        places = {id(variable): index for index, variable in enumerate(variables)}
        result = list(gradients)
        for tap, pair in zip(self.taps, inverses.of_taps, strict=True):
            place = places.get(id(tap.kernel))
            if place is not None:
                product = kronecker.preconditioned(tap.matrix(gradients[place]), *pair)
                result[place] = tap.unmatrix(product) / tap.positions
        if not self.kl_clip:
            return result
        kernels = [places[id(tap.kernel)] for tap in self.taps if id(tap.kernel) in places]
        products = [tf.cast(tf.reduce_sum(result[place] * gradients[place]), tf.float64) for place in kernels]
        change = tf.cast(learning_rate, tf.float64) ** 2 * tf.add_n(products)
        factor = tf.sqrt(self.kl_clip / tf.maximum(change, self.kl_clip))
        for place in kernels:
            result[place] *= tf.cast(factor, result[place].dtype)
        return result

    def store(self, inverses: Inverses, keep: tf.Tensor) -> None:
        """Inside ``Towers.run``: keep the result of ``refreshed``, or change nothing where ``keep`` is false."""
        for pair, new in zip(self._inverses, inverses.of_taps, strict=True):
            for variable, value in zip(pair, new, strict=True):
                variable.assign(tf.where(keep, value, tf.convert_to_tensor(variable)))
        for name, value in inverses.state.items():
            variable = self._state[name]
            variable.assign(tf.where(keep, value, tf.convert_to_tensor(variable)))

    def _by_trace(self, trace, before):
        """Whether a layer takes its new inverses, as it does before its first trace, and whether it stops for ever."""
        if self.trace_rule is None:
            return tf.constant(True), tf.constant(False)
        first = tf.equal(before, 0)
        change = tf.math.divide_no_nan(tf.abs(tf.abs(trace) - tf.abs(before)), tf.abs(before))
        update, stop = self.trace_rule
        return first | (change > update), ~first & (change < stop)

    def _note(self, head, embeddings, logits):
        recording = self._recordings.get(tower_index())
        if recording is not None:
            recording.note(head, embeddings, logits)


def warn_of_failures(metrics: dict) -> str | None:
    """A line for the user where a logged step says that inverses failed since the one before, else None."""
    failed = metrics.get("thor_failed")
    if not failed:
        return None
    return (
        f"step {metrics['step']}: THOR: {failed} inverse(s) of a layer could not be made (a factor is not finite, or "
        f"Cholesky fails); the old ones are kept, their damping is raised {RAISED_BY:.0f} times. If this goes on, give "
        "a higher --thor_damping or a lower --learning_rate"
    )


def check_options(
    damping: float, damping_decay: float, interval: int, trace_rule: tuple[float, float] | None, kl_clip: float = 0.0
) -> None:
    """Raise UserError where there is no such THOR."""
    if not damping >= LEAST_DAMPING:
        raise UserError(f"--thor_damping {damping}: must be {LEAST_DAMPING} or more; published are 0.02 to 0.03")
    if not 0 < damping_decay <= 1:
        raise UserError(f"--thor_damping_decay {damping_decay}: must be above 0 and at most 1 (no decay)")
    if not kl_clip >= 0:
        raise UserError(f"--thor_kl_clip {kl_clip}: must be 0 (never) or more; 0.001 is usual")
    if interval < 1:
        raise UserError(f"--thor_interval {interval}: must be 1 step or more")
    if trace_rule is not None and not trace_rule[0] >= trace_rule[1] >= 0:
        raise UserError(
            f"--thor_trace_rule {trace_rule[0]},{trace_rule[1]}: the share that stops a layer cannot be above the one "
            "that refreshes it, nor negative; published are 0.01,0 and 0.01,0.001"
        )


def damped_trace(factors: tuple[tf.Tensor, tf.Tensor], tap: Tap, root: tf.Tensor) -> tf.Tensor:
    """tr(T (A + root I) (x) (G + root I)) = T tr(A + root I) tr(G + root I), float64; the blocks' padding left out."""
    traces = [
        tf.cast(tf.linalg.trace(tf.reduce_sum(factor, axis=0)), tf.float64) + size * root
        for factor, size in zip(factors, tap.shape, strict=True)
    ]
    return tap.positions * traces[0] * traces[1]


def _identities(size: int, dtype: str) -> tf.Variable:
    blocks, side = kronecker.block_shape(size)
    return tf.Variable(tf.eye(side, batch_shape=[blocks], dtype=dtype), trainable=False)


def _all_finite(tensors) -> tf.Tensor:
    return tf.reduce_all([tf.reduce_all(tf.math.is_finite(tensor)) for tensor in tensors])
