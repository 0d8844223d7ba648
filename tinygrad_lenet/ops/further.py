"""Ops that the LeNets do not need and other programs do."""

from ..curvature import Elementwise, Movement
from ..op import REAL, op
from ..shapes import normalize_axis, one_axis
from .elementwise import chain


class Sin(Elementwise):
    """y = sin x, x in radians; dy/dx = cos x."""

    signature = "sin(x[...]) -> y[...]"
    domains = {"x": REAL}

    def forward(self, xp, x):
        return xp.sin(x)

    def backward(self, gy, y, x):
        return chain(gy, op("cos")(x))


class Cos(Elementwise):
    """y = cos x, x in radians; dy/dx = -sin x."""

    signature = "cos(x[...]) -> y[...]"
    domains = {"x": REAL}

    def forward(self, xp, x):
        return xp.cos(x)

    def backward(self, gy, y, x):
        return chain(gy, -op("sin")(x))


class CumSum(Movement):
    """y_i = x_0 + ... + x_i along an axis; gx_i = gy_i + gy_(i+1) + ... Integers and booleans add up to int64.

    float32 and float16 are added in float64.
    """

    axis: int

    signature = "cumsum(x[...]) -> y[...]"
    domains = {"x": REAL}
    rules = {"axis": (one_axis,)}
    parameters = {"axis": (0, 1, -1)}
    integers = "int64"

    def output_shape(self, x):
        normalize_axis("cumsum", self.axis, len(x))
        return x

    def forward(self, xp, x):
        if x.dtype.kind != "f" or x.dtype.itemsize == 8:
            return xp.cumsum(x, axis=self.axis)
        return xp.cumsum(x, axis=self.axis, dtype="float64").astype(x.dtype)

    def backward(self, gy, y, x):
        backwards = (slice(None),) * normalize_axis("cumsum", self.axis, x.ndim) + (slice(None, None, -1),)
        return self(gy[backwards])[backwards]
