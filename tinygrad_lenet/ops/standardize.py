"""Standardization, which batch and layer normalization have in common, and its gradient."""

import math

from ..op import REAL, Op, op
from ..shapes import ShapeError, axes, normalize_axes, number
from .reduction import count, total, widened

_RULES = {"axis": (axes,), "eps": (number, "[0, inf)")}
_PARAMETERS = {"axis": (-1, 0, (0, 2), None), "eps": (0.1, 1.0)}
_SIZES = {"...": ((2, 3, 4), (3, 2, 2), (4, 3, 2))}


class Standardize(Op):
    """y = r (x - mean) with r = 1 / sqrt(variance + eps), along axes; gx = r (gy - mean(gy) - y mean(gy y))."""

    axis: int | tuple[int, ...] | None
    eps: float

    signature = "standardize(x[...]) -> y[...]"
    domains = {"x": REAL}
    rules = _RULES
    parameters = _PARAMETERS
    sizes = _SIZES

    def output_shape(self, x):
        return _with_elements(self, x)

    def forward(self, xp, x):
        y, _ = _standardized(xp, widened(x), self)
        return y.astype(x.dtype, copy=False)

    def backward(self, gy, y, x):
        return op("standardize_grad", self.axis, self.eps)(gy, x)


class StandardizeGrad(Op):
    """gx = r (gy - mean(gy) - y mean(gy y)), the gradient of `Standardize` for x, whose y and r it computes again.

    With g the gradient of gx: for gy it is the same map of g, which is symmetric. For x, with the means of products
    a = mean(g y), b = mean(gy y) and c = mean(g gy) - mean(g) mean(gy) - a b, it is -r^2 c y through r, and through y
    the same map of -r (a gy + b g).
    """

    axis: int | tuple[int, ...] | None
    eps: float

    signature = "standardize_grad(gy[...], x[...]) -> gx[...]"
    domains = {"gy": REAL, "x": REAL}
    rules = _RULES
    parameters = _PARAMETERS
    sizes = _SIZES
    one_float_dtype = True

    def output_shape(self, gy, x):
        if gy != x:
            raise ShapeError(f"standardize_grad: gy has shape {gy} and x {x}; expected the same")
        return _with_elements(self, x)

    def forward(self, xp, gy, x):
        y, r = _standardized(xp, widened(x), self)
        gy = widened(gy)
        gx = r * (gy - _mean(xp, gy, self.axis) - y * _mean(xp, gy * y, self.axis))
        return gx.astype(x.dtype, copy=False)

    def backward(self, g, gx, gy, x):
        def mean(t):
            return t.mean(self.axis, keepdims=True)

        def to_x():
            y, r = op("standardize", self.axis, self.eps)(x), (x.var(self.axis, keepdims=True) + self.eps) ** -0.5
            a, b = mean(g * y), mean(gy * y)
            c = mean(g * gy) - mean(g) * mean(gy) - a * b
            return -(r * r * c * y) - self(r * (a * gy + b * g), x)

        return lambda: self(g, x), to_x


def _standardized(xp, x, of):
    centred = x - _mean(xp, x, of.axis)
    r = 1 / xp.sqrt(_mean(xp, centred * centred, of.axis) + of.eps)
    return centred * r, r


def _mean(xp, x, axis):
    y = total(xp, x, axis, keepdims=True)
    return y / count(x, y)


def _with_elements(of, shape):
    """``shape``; ShapeError unless there are elements along the axes."""
    if not math.prod([shape[a] for a in normalize_axes(of.name, of.axis, len(shape))]):
        raise ShapeError(f"{of.name}: x has shape {shape}; expected at least one element along axis {of.axis}")
    return shape
