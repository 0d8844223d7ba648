"""Copying a saved state into arrays that are in use: all of it or, if anything does not fit, nothing."""

from collections.abc import Mapping
from typing import Any

from ..backend import Array, backend_of, is_writable
from ..ops.indexing import Assign
from ..tensor import Tensor, wrap


def fitting_values(
    caller: str, owner: str, targets: Mapping[str, Array], state: Mapping[str, Any]
) -> list[tuple[Array, Array]]:
    """Each array of ``targets`` with the tensor or array of that name in ``state``, as an array on the same device.

    A single ValueError names everything that is missing, unexpected, of another shape, of floats for a target of
    integers, or for a target in read-only memory. TypeError if the state is not a mapping. Nothing is written.
    """
    if not isinstance(state, Mapping):
        raise TypeError(f"{caller}: the state is {type(state).__name__}; expected a mapping from names to tensors")
    misfits = [f"{name} is missing" for name in targets if name not in state]
    misfits += [f"{name} is unexpected" for name in state if name not in targets]
    pairs = []
    for name, target in targets.items():
        if name not in state:
            continue
        given = state[name].detach() if isinstance(state[name], Tensor) else state[name]
        value = Tensor(given, device=backend_of(target).device_of(target)).data
        pairs.append((target, value))
        if value.shape != target.shape:
            misfits.append(f"{name} has shape {value.shape}, expected {target.shape}")
        elif value.dtype.kind == "f" and target.dtype.kind in "iu" and hasattr(state[name], "dtype"):
            misfits.append(f"{name} has dtype {value.dtype}, expected {target.dtype}")
        if not is_writable(target):
            misfits.append(f"{name} lies in read-only memory")
    if misfits:
        prefixed = [name for name in state if isinstance(name, str) and name.startswith("module.")]
        if prefixed and any(name.removeprefix("module.") in targets for name in prefixed):
            misfits.insert(
                0,
                'its names begin with "module.", as those of DataParallel do, so remove it: {name.'
                'removeprefix("module."): value for name, value in state.items()}',
            )
        raise ValueError(f"{caller}: the state does not fit {owner}: {'; '.join(misfits)}")
    return pairs


def copy_values(pairs: list[tuple[Array, Array]]) -> None:
    """Write each value into its target; values that share memory with a target are read before anything is written.

    >>> import numpy as np
    >>> weight = np.zeros(2)
    >>> copy_values(fitting_values("load", "the model", {"w": weight}, {"w": [1, 2]}))
    >>> weight
    array([1., 2.])
    """
    for target, value in [(target, wrap(value).copy()) for target, value in pairs]:
        write(target, value.data)


def write(target: Array, value: Array) -> None:
    """Write an array into another on the same device, whichever device is the current one."""
    Assign((...,))(wrap(target), wrap(value))
