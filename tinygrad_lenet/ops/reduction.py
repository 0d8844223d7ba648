"""Ops that reduce the elements along axes to one. ``axis`` is an integer, a tuple of integers, or None for all axes.

All ops add with `total`, whose error does not grow with the number of elements.
"""

import math

from ..curvature import Movement
from ..op import CONSTANT, REAL, Domain, Op
from ..shapes import ShapeError, axes, flag, normalize_axes, one_axis, reduced_shape
from .elementwise import chain, where

_REDUCTION = {"axis": (axes,), "keepdims": (flag,)}
_AXES = {"axis": (None, 0, -1, (0, 2), (0, -1), ()), "keepdims": (False, True)}
_SHORT = 128  # elements, which may be added one after the other without harm


def total(xp, x, axis, keepdims=False):
    """The sum along axes in x's dtype; float16, and float32 in long sums, accumulate in a wider dtype."""
    letter, count = x.dtype.char, math.prod([x.shape[a] for a in (range(x.ndim) if axis is None else axis)])
    if letter == "e" or (letter == "f" and count > _SHORT):
        wide = "float32" if letter == "e" and count < 2**16 else "float64"
        return xp.sum(x, axis=axis, dtype=wide, keepdims=keepdims).astype(x.dtype)
    return xp.sum(x, axis=axis, keepdims=keepdims)


def widened(x):
    """x, converted to float32 if it is float16, in which sums soon overflow or lose their digits."""
    return x.astype("float32") if x.dtype.char == "e" else x


class Sum(Movement):
    """y = sum of x along axes; dy/dx = 1. Integers and booleans add up to an int64."""

    axis: int | tuple[int, ...] | None
    keepdims: bool

    signature = "sum(x[...]) -> y[...]"
    domains = {"x": REAL}
    rules = _REDUCTION
    parameters = _AXES
    integers = "int64"

    def output_shape(self, x):
        return reduced_shape("sum", x, self.axis, self.keepdims)

    def forward(self, xp, x):
        return total(xp, x, self.axis, self.keepdims)

    def backward(self, gy, y, x):
        return _keep_axes(gy, self.axis, x.shape).broadcast_to(x.shape)


class Mean(Op):
    """y = sum of x along axes / count; dy/dx = 1 / count. The mean of no elements is NaN."""

    axis: int | tuple[int, ...] | None
    keepdims: bool

    signature = "mean(x[...]) -> y[...]"
    domains = {"x": REAL}
    rules = _REDUCTION
    parameters = _AXES
    sizes = {"...": ((2, 3, 4), (3, 1), (), (1, 2, 3))}
    reads_values = False

    def output_shape(self, x):
        return reduced_shape("mean", x, self.axis, self.keepdims)

    def forward(self, xp, x):
        y = total(xp, widened(x), self.axis, self.keepdims)
        y = y / count(x, y)
        return y.astype(x.dtype, copy=False)

    def backward(self, gy, y, x):
        return _keep_axes(gy / count(x, gy), self.axis, x.shape).broadcast_to(x.shape)

    def curvature(self, hy, gy, y, x):
        return self.backward(hy / count(x, hy), y, x)


class Var(Op):
    """y = mean of (x - mean of x)^2 along axes; dy/dx = 2 (x - mean of x) / count. That of no elements is NaN."""

    axis: int | tuple[int, ...] | None
    keepdims: bool

    signature = "var(x[...]) -> y[...]"
    domains = {"x": REAL}
    rules = _REDUCTION
    parameters = _AXES
    sizes = {"...": ((2, 3, 4), (3, 1), (), (1, 2, 3))}

    def output_shape(self, x):
        return reduced_shape("var", x, self.axis, self.keepdims)

    def forward(self, xp, x):
        wide = widened(x)
        mean = total(xp, wide, self.axis, keepdims=True)
        centred = wide - mean / count(x, mean)
        y = total(xp, centred * centred, self.axis, self.keepdims)
        return (y / count(x, y)).astype(x.dtype, copy=False)

    def backward(self, gy, y, x):
        slope = x - x.mean(self.axis, keepdims=True)
        return chain(_keep_axes(gy * (2 / count(x, gy)), self.axis, x.shape), slope)


class _Extreme(Movement, kind=True):
    """Selects one of the elements along axes by its value; those that tie get equal parts of the gradient."""

    domains = {"x": Domain(distinct=True)}
    rules = _REDUCTION
    parameters = _AXES
    integers = "kept"
    reads_values = True

    def output_shape(self, x):
        return _chosen_shape(self.name, x, self.axis, self.keepdims)

    def forward(self, xp, x):
        return getattr(xp, self.name)(x, axis=self.axis, keepdims=self.keepdims)

    def backward(self, gy, y, x):
        chosen = (x == _keep_axes(y, self.axis, x.shape)) | (x != x)
        ties = chosen.astype(x.dtype).sum(self.axis, keepdims=True)
        return where(chosen, _keep_axes(gy, self.axis, x.shape) / ties, 0.0)


class Max(_Extreme):
    """y = largest x along axes, where NaN counts as largest; gy goes to it, in equal parts to those that tie."""

    axis: int | tuple[int, ...] | None
    keepdims: bool

    signature = "max(x[...]) -> y[...]"


class Min(_Extreme):
    """y = smallest x along axes, where NaN counts as smallest; gy goes to it, in equal parts to those that tie."""

    axis: int | tuple[int, ...] | None
    keepdims: bool

    signature = "min(x[...]) -> y[...]"


class _ArgExtreme(Op, kind=True):
    """The index of an element along an axis or, if that is None, among all elements in row-major order."""

    domains = {"x": CONSTANT}
    rules = {"axis": (lambda op, name, value: None if value is None else one_axis(op, name, value),)}
    parameters = {"axis": (None, 0, -1)}
    integers = "native"

    def output_shape(self, x):
        return _chosen_shape(self.name, x, self.axis, keepdims=False)

    def forward(self, xp, x):
        return getattr(xp, self.name)(x, axis=self.axis)


class ArgMax(_ArgExtreme):
    """y = the index of the first largest x, where NaN counts as largest."""

    axis: int | None

    signature = "argmax(x[...]) -> y[...]"


class ArgMin(_ArgExtreme):
    """y = the index of the first smallest x, where NaN counts as smallest."""

    axis: int | None

    signature = "argmin(x[...]) -> y[...]"


def _chosen_shape(op, shape, axis, keepdims):
    for a in normalize_axes(op, axis, len(shape)):
        if not shape[a]:
            raise ShapeError(f"{op}: axis {a} of x is empty; expected at least one element to choose from")
    return reduced_shape(op, shape, axis, keepdims)


def count(x, y):
    """How many elements of x each element of y joins."""
    return x.size // y.size if y.size else 1


def _keep_axes(y, axis, shape):
    """A reduced tensor with the reduced axes restored at size 1 where it needs them to broadcast to ``shape``."""
    kept = reduced_shape("reduction", shape, axis, keepdims=True)
    return y if kept[len(kept) - y.ndim :] == y.shape else y.reshape(kept)
