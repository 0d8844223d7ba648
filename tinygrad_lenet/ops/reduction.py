"""Ops that join the elements along axes into one. ``axis`` is an integer, a tuple of integers, or None for all axes.

Sums are added up so that their error does not grow with the number of elements (`total`), here and in all other ops.
"""

import math

from ..curvature import Elementwise, Movement
from ..op import CONSTANT, REAL, Domain, Op
from ..shapes import ShapeError, axes, flag, integer, normalize_axes, one_axis, reduced_shape
from .elementwise import where

_REDUCTION = {"axis": (axes,), "keepdims": (flag,)}
_AXES = {"axis": (None, 0, -1, (0, 2), (0, -1), ()), "keepdims": (False, True)}
_SHORT = 128  # elements: so many are added one after the other in any good sum


def total(xp, x, axis, keepdims=False):
    """The sum along axes in x's dtype: float16 and long sums of float32 are added up in the next wider dtype."""
    letter, count = x.dtype.char, math.prod([x.shape[a] for a in (range(x.ndim) if axis is None else axis)])
    if letter == "e" or (letter == "f" and count > _SHORT):
        wide = "float32" if letter == "e" and count < 2**16 else "float64"
        return xp.sum(x, axis=axis, dtype=wide, keepdims=keepdims).astype(x.dtype)
    return xp.sum(x, axis=axis, keepdims=keepdims)


def widened(x):
    """x, or as float32 if it is float16, in which a sum soon is too large or too coarse."""
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
        y = total(xp, widened(x), self.axis, self.keepdims) / _count(x.shape, self.axis)
        return y.astype(x.dtype, copy=False)

    def backward(self, gy, y, x):
        return _keep_axes(gy / _count(x.shape, self.axis), self.axis, x.shape).broadcast_to(x.shape)

    def curvature(self, hy, gy, y, x):
        return self.backward(hy / _count(x.shape, self.axis), y, x)


class Max(Movement):
    """y = largest x along axes, NaN being the largest; the gradient goes to it, in equal parts to those that tie."""

    axis: int | tuple[int, ...] | None
    keepdims: bool

    signature = "max(x[...]) -> y[...]"
    domains = {"x": Domain(distinct=True)}
    rules = _REDUCTION
    parameters = _AXES
    integers = "kept"
    reads_values = True

    def output_shape(self, x):
        return _chosen_shape("max", x, self.axis, self.keepdims)

    def forward(self, xp, x):
        return xp.max(x, axis=self.axis, keepdims=self.keepdims)

    def backward(self, gy, y, x):
        return _parts(gy, y, x, self.axis)


class Min(Movement):
    """y = smallest x along axes, NaN being the smallest; the gradient goes to it, in equal parts to those that tie."""

    axis: int | tuple[int, ...] | None
    keepdims: bool

    signature = "min(x[...]) -> y[...]"
    domains = {"x": Domain(distinct=True)}
    rules = _REDUCTION
    parameters = _AXES
    integers = "kept"
    reads_values = True

    def output_shape(self, x):
        return _chosen_shape("min", x, self.axis, self.keepdims)

    def forward(self, xp, x):
        return xp.min(x, axis=self.axis, keepdims=self.keepdims)

    def backward(self, gy, y, x):
        return _parts(gy, y, x, self.axis)


def _index_rule(op, name, value):
    return None if value is None else one_axis(op, name, value)


class ArgMax(Op):
    """y = the index of the first largest x along an axis, or of all elements in row-major order; NaN is the largest."""

    axis: int | None

    signature = "argmax(x[...]) -> y[...]"
    domains = {"x": CONSTANT}
    rules = {"axis": (_index_rule,)}
    parameters = {"axis": (None, 0, -1)}
    integers = "native"

    def output_shape(self, x):
        return _chosen_shape("argmax", x, self.axis, False)

    def forward(self, xp, x):
        return xp.argmax(x, axis=self.axis)


class ArgMin(Op):
    """y = the index of the first smallest x along an axis, or of all elements in row-major order; NaN is the smallest."""

    axis: int | None

    signature = "argmin(x[...]) -> y[...]"
    domains = {"x": CONSTANT}
    rules = {"axis": (_index_rule,)}
    parameters = {"axis": (None, 0, -1)}
    integers = "native"

    def output_shape(self, x):
        return _chosen_shape("argmin", x, self.axis, False)

    def forward(self, xp, x):
        return xp.argmin(x, axis=self.axis)


def _chosen_shape(op, shape, axis, keepdims):
    for a in normalize_axes(op, axis, len(shape)):
        if not shape[a]:
            raise ShapeError(f"{op}: axis {a} of x is empty; expected at least one element to choose from")
    return reduced_shape(op, shape, axis, keepdims)


def _parts(gy, y, x, axis):
    """gy in equal parts for the elements of x that are y, its extreme along axis."""
    chosen = (x == _keep_axes(y, axis, x.shape)) | (x != x)
    ties = chosen.astype(x.dtype).sum(axis, keepdims=True)
    return where(chosen, _keep_axes(gy, axis, x.shape) / ties, 0.0)


def _count(shape, axis):
    return math.prod([shape[a] for a in normalize_axes("mean", axis, len(shape))])


def _keep_axes(y, axis, shape):
    """A reduced tensor with the axes that were joined put back at size 1, so that it broadcasts to ``shape``."""
    return y.reshape(reduced_shape("reduction", shape, axis, keepdims=True))
