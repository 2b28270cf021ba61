"""Facenet's optimizers, by the rules and constants of TensorFlow 1, and how a tower applies them or one of Keras.

Each rule is one of TensorFlow's fused training kernels, which reads and writes a weight and its slots once. The rules
of Keras' own classes differ from those facenet was trained with: their momentum holds old learning rates, RMSprop
starts its mean square at 0 instead of 1, and Adagrad adds an epsilon.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import keras
import numpy as np
import tensorflow as tf

from ..distribution import tower_index
from ..errors import UserError

FROM_KERAS = "keras."


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


def build(name: str, momentum: float = 0.9) -> keras.optimizers.Optimizer:
    """Make an optimizer with facenet's constants; ``name`` is one of its ``--optimizer`` values, or SGD.

    ``keras.Lion`` and so on: that class of ``keras.optimizers`` with Keras' constants, its own weight decay included.

    ADAGRAD: sum of squares from 0.1. ADADELTA: rho 0.9, epsilon 1e-6. ADAM: 0.9, 0.999, epsilon 0.1.
    RMSPROP: decay 0.9, momentum 0.9, epsilon 1. MOM: Nesterov. SGD: no slots.

    Args:
      momentum: of MOM.

    Raises:
      UserError: there is no optimizer of that name.
    """
    if name.startswith(FROM_KERAS):
        return _class_of_keras(name)()
    if name not in OPTIMIZERS:
        raise UserError(f"--optimizer {name}: there is no such optimizer; choose one of {', '.join(OPTIMIZERS)}")
    return FusedOptimizer(_rules(momentum)[name], name.lower())


def full_name(text: str) -> str:
    """The name for ``build`` of what a user wrote: ``mom`` is MOM, ``Keras.lion`` is keras.Lion.

    Raises:
      UserError: there is no optimizer of that name.
    """
    if text.upper() in OPTIMIZERS:
        return text.upper()
    if text.lower().startswith(FROM_KERAS):
        return FROM_KERAS + _class_of_keras(text).__name__
    raise UserError(
        f"{text}: there is no such optimizer; choose one of {', '.join(OPTIMIZERS)}, or a class of Keras such as "
        f"{FROM_KERAS}Lion"
    )


def apply_updates(
    optimizer: keras.optimizers.Optimizer,
    gradients: Sequence[tf.Tensor],
    variables: Sequence[keras.Variable],
    learning_rate,
    keep: tf.Tensor,
) -> None:
    """Inside ``Towers.run``: update this tower's copies of ``variables``, or nothing at all.

    Every tower must pass the same values. With a ``FusedOptimizer`` there is no collective and no merge over the towers
    in it. Any other optimizer of Keras must have been built with all ``variables``; its learning rate is float32.

    Args:
      gradients: already reduced over the towers, one for each variable, of its shape.
      learning_rate: a number, or a scalar of any float type.
      keep: scalar bool; where it is false the weights, the slots and the count of updates stay as they are.
    """

    if not isinstance(optimizer, FusedOptimizer):
        return _apply_by_keras(optimizer, gradients, variables, learning_rate, keep)

    def update():
        numbers = {
            dtype: optimizer.numbers(learning_rate, dtype) for dtype in {variable.dtype for variable in variables}
        }
        for gradient, variable in zip(gradients, variables, strict=True):
            optimizer.update_variable(gradient, variable, numbers[variable.dtype])
        optimizer.num_updates.value.assign_add(1)
        return tf.constant(True)

    tf.cond(keep, update, lambda: tf.constant(False))


def _apply_by_keras(optimizer, gradients, variables, learning_rate, keep):
    """Keras merges over the towers, which cannot be inside a condition: what is not kept is put back afterwards."""
    held = [*variables, *optimizer.variables]
    before = [tf.identity(variable.value) for variable in held]
    optimizer.learning_rate.assign(tf.cast(learning_rate, optimizer.learning_rate.dtype))
    # It sums the gradients over the towers, and each has the sum already.
    own = [gradient if tower_index() == 0 else tf.zeros_like(gradient) for gradient in gradients]
    optimizer.apply(own, list(variables))
    for variable, value in zip(held, before, strict=True):
        kept = tf.where(keep, tf.convert_to_tensor(variable.value), value)
        tf.raw_ops.AssignVariableOp(resource=variable.handle, value=kept)


def rule_name(optimizer: str, thor_optimizer: str) -> str:
    """The rule that updates the weights: with THOR, which only changes the gradients, ``thor_optimizer``."""
    return thor_optimizer if optimizer == THOR else optimizer


def num_slots(name: str) -> int:
    """How many values the optimizer of that name keeps for each weight."""
    if name.startswith(FROM_KERAS):
        optimizer, weight = build(name), keras.Variable(np.zeros([1, 1]))
        optimizer.build([weight])
        # Without the count and the rate.
        return len(optimizer.variables) - 2
    return len(_rules(momentum=0.9)[name].slots)


def state(optimizer: keras.optimizers.Optimizer) -> dict[str, keras.Variable]:
    """Everything a built optimizer needs to go on: ``iterations``, and ``<path of the variable>/<slot>``.

    Of one of Keras: all its variables by their numbers, since their names need not differ.
    """
    if not isinstance(optimizer, FusedOptimizer):
        return {f"{type(optimizer).__name__}/{index}": variable for index, variable in enumerate(optimizer.variables)}
    slots = {
        f"{path}/{name}": slot
        for path, variable_slots in zip(optimizer.paths, optimizer.slots, strict=True)
        for name, slot in variable_slots.items()
    }
    return {"iterations": optimizer.num_updates, **slots}


def _class_of_keras(name: str) -> type[keras.optimizers.Optimizer]:
    known = {
        name.lower(): value
        for name, value in vars(keras.optimizers).items()
        if isinstance(value, type) and issubclass(value, keras.optimizers.Optimizer) and name not in _NOT_BY_NAME
    }
    wanted = name[len(FROM_KERAS) :].lower()
    if wanted not in known:
        names = ", ".join(sorted(value.__name__ for value in known.values()))
        raise UserError(f"{name}: Keras has no such optimizer; after {FROM_KERAS} comes one of {names}")
    return known[wanted]


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


# They have no rule, wrap others, or train other weights than are to be validated.
_NOT_BY_NAME = ("Optimizer", "LossScaleOptimizer", "MultiOptimizer", "ScheduleFreeAdamW")
OPTIMIZERS = tuple(_rules(momentum=0.9))
# The value of --optimizer that stands for ``thor.Thor`` before one of them.
THOR = "THOR"
