"""Every variable that exact resumption needs, by name: to arrays and back."""

from collections.abc import Iterable

import numpy as np

from ..errors import UserError


def named(prefix: str, variables: Iterable) -> dict:
    """``prefix/path`` -> variable, for variables that have a unique ``path``."""
    result = {f"{prefix}/{variable.path}": variable for variable in variables}
    return result


def read(variables: dict) -> dict:
    """Name -> value, of the first tower, since all hold the same; what is read in pieces is left as it is."""
    return {
        name: variable if hasattr(variable, "chunks") else np.asarray(variable.numpy())
        for name, variable in variables.items()
    }


def write(variables: dict, arrays: dict[str, np.ndarray], where: str) -> None:
    """Assign every array to the variable of its name, on every tower.

    Raises:
      UserError: a name or shape is missing, foreign or different; nothing was assigned.
    """
    problems = [f"{name} is missing" for name in variables if name not in arrays]
    problems += [f"{name} is not known here" for name in arrays if name not in variables]
    problems += [
        f"{name} is {tuple(arrays[name].shape)} instead of {tuple(variable.shape)}"
        for name, variable in variables.items()
        if name in arrays and tuple(arrays[name].shape) != tuple(variable.shape)
    ]
    if problems:
        shown = "; ".join(problems[:5])
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise UserError(f"{where} does not fit this network: {shown}{more}; use the options it was trained with")
    for name, variable in variables.items():
        variable.assign(arrays[name])
