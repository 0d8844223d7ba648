"""What the tests of `jit` share: programs that run with and without it, and what they leave behind, as bytes."""

from collections.abc import Callable
from typing import Any

import numpy as np

from tinygrad_lenet import Tensor, nn

CALLS = 6  # of each function: two are recorded, the others replayed


def shown(x: Any) -> Any:
    """What can be compared of a value: types, dtypes, shapes and bytes."""
    if isinstance(x, Tensor):
        return "tensor", x.requires_grad, x.device, shown(x.numpy())
    if isinstance(x, np.ndarray):
        return x.dtype.str, x.shape, x.tobytes()
    if isinstance(x, dict):
        return {key: shown(value) for key, value in x.items()}
    if isinstance(x, (tuple, list)):
        return type(x).__name__, [shown(each) for each in x]
    return type(x).__name__, repr(x)


def batch(i: int, *shape: int) -> Tensor:
    return Tensor(np.random.default_rng(i).normal(size=shape or (3, 2)).astype(np.float32))


def calls(function: Any, before: Callable[[int], Any] = lambda i: None) -> list[Any]:
    """What calls with new values return; ``before(i)`` is done before each."""
    found = []
    for i in range(CALLS):
        before(i)
        found.append(shown(function(batch(i))))
    return found


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 4, rng=0), nn.Tanh(), nn.Linear(4, 3, rng=1))


def weight() -> Tensor:
    return Tensor(np.array([1.5, -2.0], np.float32), requires_grad=True)


def state(*things: Any) -> list[Any]:
    """Parameters, gradients, buffers and the state of optimisers, as they are now."""
    found: list[Any] = []
    for x in things:
        if isinstance(x, nn.Module):
            found += [[name, shown(t), shown(t.grad)] for name, t in x._state()]
        else:
            found.append(shown([x, x.grad] if isinstance(x, Tensor) else x.state_dict()))
    return found


def training(compiled: Any, model: nn.Module, optimizer: Any, *more: Any) -> Any:
    @compiled
    def step(x: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = (model(x) ** 2).mean()
        loss.backward()
        optimizer.step()
        for each in more:
            each.step()
        return loss

    return step
