"""What a recording of a function consists of, and what every replay of it does to tensors.

`jit` makes recordings; `plan.py` replays them on NumPy arrays and `capture.py` on those of a device.
"""

import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from .backend import Array
from .op import Op
from .tensor import Tensor, wrap

MOVES = 2  # how often gradients may be kept by others before they are handed out as copies


class JitError(ValueError):
    """A function does something that a replay could not repeat; the message names it and the line."""


class Slot(NamedTuple):
    """The place of a value."""

    at: int


class Argument(NamedTuple):
    """The tensor that is one of the arguments."""

    at: int


class Applied(NamedTuple):
    """An op, applied to slots and numbers."""

    op: Op
    inputs: tuple[Any, ...]
    output: int
    line: Any


class Stored(NamedTuple):
    """A leaf got a gradient: the value in a slot, or None."""

    leaf: Any
    slot: int | None


class Fetched(NamedTuple):
    """A leaf's gradient was read that was not computed in the recording."""

    leaf: Any
    slot: int | None
    array: Array


class Called(NamedTuple):
    """A function was called that changes or checks something by other means than ops."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    options: dict[str, Any]


class Frame:
    """The call that is being replayed."""

    def __init__(self) -> None:
        self.arguments: Sequence[Any] = ()
        self.given: dict[int, Tensor] = {}  # gradients in memory that is handed out, by id of the array

    def tensor(self, leaf: Any) -> Any:
        return self.arguments[leaf.at] if type(leaf) is Argument else leaf

    def store(self, leaves: Sequence[Any], arrays: Sequence[Array | None]) -> None:
        """Give each leaf its gradient: what is handed out, or a copy."""
        for leaf, array in zip(leaves, arrays, strict=True):
            given = self.given.get(id(array))
            if given is None and array is not None:
                given = wrap(array.copy(order="K"))
            self.tensor(leaf)._grad = given

    def own(self, leaf: Any) -> None:
        """Give a leaf a copy of its gradient in place of what has been handed out."""
        known = self.tensor(leaf)._grad
        if known is not None and id(known.data) in self.given:
            self.tensor(leaf)._grad = wrap(known.data.copy(order="K"))


class Handed:
    """Gradients in memory that each replay writes to, handed out as they are until somebody keeps one.

    ``gradients`` are pairs of a leaf and an array; ``owner_of`` tells which array owns the memory of another.
    """

    def __init__(self, gradients: Sequence[tuple[Any, Array]], owner_of: Callable[[Array], Array]) -> None:
        self._pairs = [(leaf, wrap(array)) for leaf, array in gradients]
        self.given = {id(tensor.data): tensor for _, tensor in self._pairs}
        watched = [x for _, tensor in self._pairs for x in (tensor, tensor.data, owner_of(tensor.data))]
        self._watched = list({id(x): x for x in watched}.values())  # most lie in memory of one owner
        self._references = -1

    def note(self) -> None:
        """A replay has ended, and only leaves refer to the gradients."""
        if self._pairs:
            self._references = self._count()

    def kept(self) -> bool:
        """Whether somebody has kept one, so that the next replay must not write there."""
        return bool(self._pairs) and self._references not in (-1, self._count())

    def _count(self) -> int:
        """How many references there are to gradients that were handed out, apart from those of their leaves."""
        attached = sum([leaf._grad is tensor for leaf, tensor in self._pairs])
        return sum(map(sys.getrefcount, self._watched)) - attached
