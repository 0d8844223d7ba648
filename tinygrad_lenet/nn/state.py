"""Copying a saved state into arrays that are in use: all of it or, if anything does not fit, none."""

from collections.abc import Mapping
from typing import Any

from ..backend import Array, backend_of
from ..tensor import Tensor


def copy_into(caller: str, owner: str, targets: Mapping[str, Array], state: Mapping[str, Any]) -> None:
    """Copy each tensor or array of ``state`` into the array of that name in ``targets``, in place.

    The targets keep their dtype and device. One ValueError names all that is missing, unexpected, of another shape, or
    of floats for a target of integers; nothing has been changed then. TypeError for what is not a mapping.

    >>> import numpy as np
    >>> weight = np.zeros(2)
    >>> copy_into("load", "the model", {"w": weight}, {"w": [1, 2]})
    >>> weight
    array([1., 2.])
    """
    if not isinstance(state, Mapping):
        raise TypeError(f"{caller}: the state is {type(state).__name__}; expected a mapping from names to tensors")
    misfits = [f"{name} is missing" for name in targets if name not in state]
    misfits += [f"{name} is unexpected" for name in state if name not in targets]
    values = {}
    for name, target in targets.items():
        if name in state:
            device = backend_of(target).device_of(target)
            value = values[name] = Tensor(state[name], device=device).data
            if value.shape != target.shape:
                misfits.append(f"{name} has shape {value.shape}, expected {target.shape}")
            elif value.dtype.kind == "f" and target.dtype.kind in "iu" and hasattr(state[name], "dtype"):
                misfits.append(f"{name} has dtype {value.dtype}, expected {target.dtype}")
    if misfits:
        raise ValueError(f"{caller}: the state does not fit {owner}: {'; '.join(misfits)}")
    for name, value in values.items():
        targets[name][...] = value
