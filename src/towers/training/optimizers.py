"""Facenet's optimizers, by the rules and constants of TensorFlow 1, and how a tower applies them.

Each rule is one of TensorFlow's fused training kernels, which reads and writes a weight and its slots once. The rules
of Keras' own classes differ from those facenet was trained with: their momentum holds old learning rates, RMSprop
starts its mean square at 0 instead of 1, and Adagrad adds an epsilon.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import keras
import tensorflow as tf

from ..errors import UserError


@dataclass(frozen=True)
class Rule:
    """An update rule.

    Attributes:
      kernel: called with ``var``, ``grad``, ``lr``, and the slots and scalars by name.
      slots: name -> first value of each variable of the weight's shape that the rule keeps.
      scalars: function of the number of this update (1 is the first; float64) -> name -> number.
    """

    kernel: Callable
    slots: dict[str, float]
    scalars: Callable[[tf.Tensor], dict]


class FusedOptimizer(keras.optimizers.Optimizer):
    """A Keras optimizer that updates the copies of the tower it is called on, by one kernel call for a variable.

    Make it, and call ``build(variables)``, inside the towers' scope; then use ``apply_updates``. It never reduces
    gradients over the towers and holds no learning rate.
    """

    def __init__(self, rule: Rule, name: str):
        super().__init__(learning_rate=_no_stored_learning_rate, name=name)
        self.rule = rule
        self.paths = []
        self.slots = []
        # Keras' own counter is written by a merge over the towers, which must not happen inside a condition.
        self.num_updates = self.add_variable((), "zeros", dtype="int64", name="num_updates")

    @property
    def iterations(self) -> keras.Variable:
        """Number of updates made, int64."""
        return self.num_updates

    def build(self, variables: Sequence[keras.Variable]) -> None:
        """Make the slots of ``variables``.

        Raises:
          ValueError: two variables have the same path, by which ``state`` names their slots.
        """
        if self.built:
            return
        self.paths = [variable.path for variable in variables]
        repeated = sorted(path for path, count in Counter(self.paths).items() if count > 1)
        if repeated:
            raise ValueError(f"variables share a path, so that their slots cannot be told apart: {repeated}")
        super().build(list(variables))
        self.slots = [
            {
                name: self.add_variable_from_reference(variable, name, partial(_filled, first_value))
                for name, first_value in self.rule.slots.items()
            }
            for variable in variables
        ]

    def update_step(self, gradient: tf.Tensor, variable: keras.Variable, learning_rate) -> None:
        """Update one variable and its slots; the caller counts the update. Keras' interface to a rule."""
        self.update_variable(gradient, variable, self.numbers(learning_rate, variable.dtype))

    def numbers(self, learning_rate, dtype) -> dict[str, tf.Tensor]:
        """The learning rate and the rule's scalars for the next update, by the kernel's names, in ``dtype``."""
        # A Python float would otherwise pass through float32 on its way to float64.
        rate = learning_rate if tf.is_tensor(learning_rate) else tf.constant(learning_rate, tf.float64)
        update_number = tf.cast(self.num_updates.value, tf.float64) + 1
        numbers = {"lr": rate, **self.rule.scalars(update_number)}
        return {
            name: tf.cast(number if tf.is_tensor(number) else tf.constant(number, tf.float64), dtype)
            for name, number in numbers.items()
        }

    def update_variable(self, gradient: tf.Tensor, variable: keras.Variable, numbers: dict[str, tf.Tensor]) -> None:
        """Update one variable and its slots with what ``numbers`` returned."""
        slots = self.slots[self._get_variable_index(variable)]
        self.rule.kernel(
            var=variable.handle,
            grad=tf.cast(tf.convert_to_tensor(gradient), variable.dtype),
            **{name: slot.handle for name, slot in slots.items()},
            **numbers,
        )


def build(name: str, momentum: float = 0.9) -> FusedOptimizer:
    """Make an optimizer with facenet's constants; ``name`` is one of its ``--optimizer`` values, or SGD.

    ADAGRAD: sum of squares from 0.1. ADADELTA: rho 0.9, epsilon 1e-6. ADAM: 0.9, 0.999, epsilon 0.1.
    RMSPROP: decay 0.9, momentum 0.9, epsilon 1. MOM: Nesterov. SGD: no slots.

    Args:
      momentum: of MOM.

    Raises:
      UserError: there is no optimizer of that name.
    """
    if name not in OPTIMIZERS:
        raise UserError(f"--optimizer {name}: there is no such optimizer; choose one of {', '.join(OPTIMIZERS)}")
    return FusedOptimizer(_rules(momentum)[name], name.lower())


def apply_updates(
    optimizer: FusedOptimizer,
    gradients: Sequence[tf.Tensor],
    variables: Sequence[keras.Variable],
    learning_rate,
    keep: tf.Tensor,
) -> None:
    """Inside ``Towers.run``: update this tower's copies of ``variables``, or nothing at all.

    Every tower must pass the same values. There is no collective and no merge over the towers in it.

    Args:
      gradients: already reduced over the towers, one for each variable, of its shape.
      learning_rate: a number, or a scalar of any float type.
      keep: scalar bool; where it is false the weights, the slots and the count of updates stay as they are.
    """

    def update():
        numbers = {
            dtype: optimizer.numbers(learning_rate, dtype) for dtype in {variable.dtype for variable in variables}
        }
        for gradient, variable in zip(gradients, variables, strict=True):
            optimizer.update_variable(gradient, variable, numbers[variable.dtype])
        optimizer.num_updates.value.assign_add(1)
        return tf.constant(True)

    tf.cond(keep, update, lambda: tf.constant(False))


def rule_name(optimizer: str, thor_optimizer: str) -> str:
    """The rule that updates the weights: with THOR, which only changes the gradients, ``thor_optimizer``."""
    return thor_optimizer if optimizer == THOR else optimizer


def num_slots(name: str) -> int:
    """How many values the optimizer of that name keeps for each weight."""
    return len(_rules(momentum=0.9)[name].slots)


def state(optimizer: FusedOptimizer) -> dict[str, keras.Variable]:
    """Everything a built optimizer needs to go on: ``iterations``, and ``<path of the variable>/<slot>``."""
    slots = {
        f"{path}/{name}": slot
        for path, variable_slots in zip(optimizer.paths, optimizer.slots, strict=True)
        for name, slot in variable_slots.items()
    }
    return {"iterations": optimizer.num_updates, **slots}


def _rules(momentum: float) -> dict[str, Rule]:
    return {
        "ADAGRAD": Rule(tf.raw_ops.ResourceApplyAdagrad, {"accum": 0.1}, lambda update_number: {}),
        "ADADELTA": Rule(
            tf.raw_ops.ResourceApplyAdadelta,
            {"accum": 0.0, "accum_update": 0.0},
            lambda update_number: {"rho": 0.9, "epsilon": 1e-6},
        ),
        "ADAM": Rule(
            tf.raw_ops.ResourceApplyAdam,
            {"m": 0.0, "v": 0.0},
            lambda update_number: {
                "beta1": 0.9,
                "beta2": 0.999,
                "beta1_power": 0.9**update_number,
                "beta2_power": 0.999**update_number,
                "epsilon": 0.1,
            },
        ),
        "RMSPROP": Rule(
            tf.raw_ops.ResourceApplyRMSProp,
            {"ms": 1.0, "mom": 0.0},
            lambda update_number: {"rho": 0.9, "momentum": 0.9, "epsilon": 1.0},
        ),
        "MOM": Rule(
            partial(tf.raw_ops.ResourceApplyMomentum, use_nesterov=True),
            {"accum": 0.0},
            lambda update_number: {"momentum": momentum},
        ),
        "SGD": Rule(_gradient_descent, {}, lambda update_number: {}),
    }


def _filled(value, shape, dtype):
    # Keras' Constant rounds to float32 before it makes a float64 variable.
    return tf.constant(value, dtype, shape)


def _gradient_descent(*, var, grad, lr):
    tf.raw_ops.ResourceApplyGradientDescent(var=var, alpha=lr, delta=grad)


def _no_stored_learning_rate():
    raise RuntimeError("this optimizer is given its learning rate step by step: use apply_updates")


OPTIMIZERS = tuple(_rules(momentum=0.9))
# The value of --optimizer that stands for ``thor.Thor`` before one of them.
THOR = "THOR"
