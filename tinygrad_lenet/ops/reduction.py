"""Ops that join the elements along axes into one. ``axis`` is an integer, a tuple of integers, or None for all axes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..backend import Array
from ..shapes import Shape, ShapeError, normalize_axes
from ..tensor import REAL, Domain, Gradient, Op, Tensor
from .elementwise import where

Axis = int | Sequence[int] | None


@dataclass(frozen=True)
class Sum(Op):
    """y = sum of x along axes; dy/dx = 1."""

    axis: Axis
    keepdims: bool

    signature = "sum(x[...]) -> y[...]"
    domains = {"x": REAL}
    cases = (
        (((2, 3, 4),), {"axis": None, "keepdims": False}),
        (((2, 3, 4),), {"axis": -1, "keepdims": False}),
        (((2, 3, 4),), {"axis": (0, 2), "keepdims": True}),
        (((3, 1),), {"axis": 1, "keepdims": False}),
        (((),), {"axis": None, "keepdims": False}),
        (((0, 3),), {"axis": 0, "keepdims": False}),
        (((2, 3),), {"axis": (), "keepdims": False}),
    )

    def check(self, shapes: tuple[Shape, ...]) -> dict[str, int]:
        normalize_axes("sum", self.axis, len(shapes[0]))
        return {}

    def forward(self, xp: Any, x: Array) -> Array:
        return xp.sum(x, axis=_as_tuple(self.axis), keepdims=self.keepdims)

    def backward(self, gy: Tensor, y: Tensor, x: Tensor) -> Gradient:
        return _keep_axes(gy, self.axis, x.shape).broadcast_to(x.shape)

    def curvature(self, hy: Tensor, gy: Tensor, y: Tensor, x: Tensor) -> Gradient:
        return self.backward(hy, y, x)


_EXTREME_CASES = (
    (((2, 3, 4),), {"axis": None, "keepdims": False}),
    (((2, 3, 4),), {"axis": 1, "keepdims": True}),
    (((2, 3, 4),), {"axis": (0, -1), "keepdims": False}),
    (((3, 1),), {"axis": 1, "keepdims": False}),
    (((0, 3),), {"axis": 1, "keepdims": False}),
)


@dataclass(frozen=True)
class Max(Op):
    """y = largest x along axes; the gradient goes to the largest element, in equal shares to those that tie."""

    axis: Axis
    keepdims: bool

    signature = "max(x[...]) -> y[...]"
    domains = {"x": Domain(distinct=True)}
    cases = _EXTREME_CASES

    def check(self, shapes: tuple[Shape, ...]) -> dict[str, int]:
        return _check_not_empty(self, shapes[0])

    def forward(self, xp: Any, x: Array) -> Array:
        return xp.max(x, axis=_as_tuple(self.axis), keepdims=self.keepdims)

    def backward(self, gy: Tensor, y: Tensor, x: Tensor) -> Gradient:
        return _shared(gy, y, x, self.axis)


@dataclass(frozen=True)
class Min(Op):
    """y = smallest x along axes; the gradient goes to the smallest element, in equal shares to those that tie."""

    axis: Axis
    keepdims: bool

    signature = "min(x[...]) -> y[...]"
    domains = {"x": Domain(distinct=True)}
    cases = _EXTREME_CASES

    def check(self, shapes: tuple[Shape, ...]) -> dict[str, int]:
        return _check_not_empty(self, shapes[0])

    def forward(self, xp: Any, x: Array) -> Array:
        return xp.min(x, axis=_as_tuple(self.axis), keepdims=self.keepdims)

    def backward(self, gy: Tensor, y: Tensor, x: Tensor) -> Gradient:
        return _shared(gy, y, x, self.axis)


def _check_not_empty(op: Max | Min, shape: Shape) -> dict[str, int]:
    for axis in normalize_axes(op.name, op.axis, len(shape)):
        if not shape[axis]:
            raise ShapeError(f"{op.name}: axis {axis} of x is empty; expected at least one element to choose from")
    return {}


def _shared(gy: Tensor, y: Tensor, x: Tensor, axis: Axis) -> Tensor:
    """gy in equal shares for the elements of x that equal y, its extreme along axis."""
    chosen = x == _keep_axes(y, axis, x.shape)
    ties = chosen.astype(x.dtype).sum(axis, keepdims=True)
    return where(chosen, _keep_axes(gy, axis, x.shape) / ties, 0.0)


def _as_tuple(axis: Axis) -> int | tuple[int, ...] | None:
    return tuple(axis) if isinstance(axis, (tuple, list)) else axis  # type: ignore[return-value]


def _keep_axes(y: Tensor, axis: Axis, shape: Shape) -> Tensor:
    """A reduced tensor with the axes that were reduced put back at size 1, so that it broadcasts to ``shape``."""
    reduced = normalize_axes("reduction", axis, len(shape))
    return y.reshape(tuple(1 if a in reduced else size for a, size in enumerate(shape)))
