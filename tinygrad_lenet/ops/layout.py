"""Ops that move elements without changing their values: shape, order, dtype, device, joining and padding."""

import math
from functools import lru_cache

from ..backend import transfer
from ..curvature import Movement
from ..op import CONSTANT, REAL
from ..shapes import ShapeError, axes, broadcast_shape, integer, integers, normalize_axes, normalize_axis, one_axis
from .indexing import GetItem


class Reshape(Movement):
    """The elements of x, in row-major order, in another shape; the gradient is reshaped to x's shape."""

    shape: tuple[int, ...]

    signature = "reshape(x[...]) -> y[...]"
    domains = {"x": REAL}
    rules = {"shape": (integers, -1)}
    parameters = {"shape": ((6, 4), (-1,), (2, 3, 1, 4), (1, 1), (3, 0))}
    sizes = {"...": ((2, 3, 4), (24,), (), (0, 3))}
    integers = "kept"

    def output_shape(self, x):
        shape, known, elements = self.shape, math.prod([n for n in self.shape if n != -1]), math.prod(x)
        fits = elements == known if -1 not in shape else known > 0 and elements % known == 0
        if shape.count(-1) > 1 or not fits:
            raise ShapeError(f"reshape: x has shape {x}, {elements} elements, which do not fill {shape}")
        return tuple([elements // known if n == -1 else n for n in shape])

    def forward(self, xp, x):
        return xp.reshape(x, self.shape)

    def backward(self, gy, y, x):
        return gy.reshape(x.shape)


class Transpose(Movement):
    """y[i_axes[0], i_axes[1], ...] = x[i_0, i_1, ...]; the gradient is transposed back."""

    axes: tuple[int, ...]

    signature = "transpose(x[...]) -> y[...]"
    domains = {"x": REAL}
    rules = {"axes": (axes,)}
    parameters = {"axes": ((2, 0, 1), (0, -1, 1), (1, 0), ())}
    sizes = {"...": ((2, 3, 4), (2, 0), ())}
    integers = "kept"

    def output_shape(self, x):
        order = normalize_axes("transpose", self.axes, len(x))
        if len(order) != len(x):
            raise ShapeError(
                f"transpose: axes {self.axes} do not name each of the {len(x)} axes of x once; functional.swapaxes "
                "exchanges two"
            )
        return tuple([x[a] for a in order])

    def forward(self, xp, x):
        return xp.transpose(x, self.axes)

    def backward(self, gy, y, x):
        order = normalize_axes("transpose", self.axes, x.ndim)
        return gy.transpose(tuple([order.index(a) for a in range(x.ndim)]))


class BroadcastTo(Movement):
    """x repeated along new axes and axes of size 1; the engine sums the gradient over the repetitions."""

    shape: tuple[int, ...]

    signature = "broadcast_to(x[...]) -> y[...]"
    domains = {"x": REAL}
    rules = {"shape": (integers, 0)}
    parameters = {"shape": ((2, 3, 4), (1,), (2, 2), (0, 3))}
    sizes = {"...": ((3, 1), (1,), (), (1, 3))}
    integers = "kept"

    def output_shape(self, x):
        if broadcast_shape("broadcast_to", [x, self.shape]) != self.shape:
            raise ShapeError(f"broadcast_to: x has shape {x}, which does not broadcast to {self.shape}")
        return self.shape

    def forward(self, xp, x):
        return xp.broadcast_to(x, self.shape)

    def backward(self, gy, y, x):
        return gy


class Concatenate(Movement):
    """The inputs one after the other along an axis; each gets its part of the gradient."""

    axis: int

    signature = "concatenate(*x[...]) -> y[...]"
    domains = {"x": REAL}
    rules = {"axis": (one_axis,)}
    parameters = {"axis": (0, 1, -1)}
    sizes = {"...": ((2, 3), (1, 3), (2, 1, 2), (2, 3, 2), (2, 0, 2), (2,))}
    integers = "kept"

    def output_shape(self, *x):
        axis, first = normalize_axis("concatenate", self.axis, len(x[0])), x[0]
        for i, shape in enumerate(x):
            if len(shape) != len(first) or any(
                size != other for a, (size, other) in enumerate(zip(shape, first, strict=True)) if a != axis
            ):
                raise ShapeError(
                    f"concatenate: input {i} has shape {shape}, input 0 {first}; only axis {axis} may differ"
                )
        return (*first[:axis], sum(shape[axis] for shape in x), *first[axis + 1 :])

    def forward(self, xp, *x):
        return xp.concatenate(x, axis=self.axis)

    def backward(self, gy, y, *x):
        axis = normalize_axis("concatenate", self.axis, y.ndim)
        gradients = []
        start = 0
        for each in x:
            stretch = _stretch(axis, start, start + each.shape[axis])
            gradients.append(lambda stretch=stretch: stretch(gy))
            start += each.shape[axis]
        return tuple(gradients)


@lru_cache(maxsize=1024)
def _stretch(axis, start, stop):
    """The op that takes start to stop along an axis; it is kept, as it knows the shapes that it has met."""
    return GetItem((slice(None),) * axis + (slice(start, stop),))


def _widths(op, name, value):
    return tuple([(integer(op, name, before, 0), integer(op, name, after, 0)) for before, after in value])


class Pad(Movement):
    """x with ``value``, a single number, before and after it along each axis; gx is the middle part of gy."""

    pad_width: tuple[tuple[int, int], ...]

    signature = "pad(x[...], value[]) -> y[...]"
    domains = {"x": REAL, "value": CONSTANT}
    rules = {"pad_width": (_widths,)}
    parameters = {"pad_width": (((1, 2), (0, 3)), ((0, 0), (1, 1), (2, 0)), ())}
    sizes = {"...": ((2, 3), (2, 0, 1), ())}
    integers = "kept"

    def output_shape(self, x, value):
        self.bind((x, value))
        if len(self.pad_width) != len(x):
            raise ShapeError(f"pad: pad_width is for {len(self.pad_width)} axes, x has shape {x}")
        return tuple([before + size + after for (before, after), size in zip(self.pad_width, x, strict=True)])

    def forward(self, xp, x, value):
        y = xp.empty(self.output_shape(x.shape, ()), x.dtype)
        y[...] = value
        y[self._inside(x.shape)] = x
        return y

    def backward(self, gy, y, x, value):
        return lambda: gy[self._inside(x.shape)], None

    def _inside(self, shape):
        return tuple([slice(before, before + size) for (before, _), size in zip(self.pad_width, shape, strict=True)])


class Copy(Movement):
    """y = x, in its own memory; dy/dx = 1."""

    signature = "copy(x[...]) -> y[...]"
    domains = {"x": REAL}
    integers = "kept"

    def forward(self, xp, x):
        return xp.array(x)  # in x's memory order, which .copy() would not keep

    def backward(self, gy, y, x):
        return gy


class AsType(Movement):
    """x in another dtype; the engine converts the gradient back to x's dtype."""

    dtype: str

    signature = "astype(x[...]) -> y[...]"
    domains = {"x": REAL}
    parameters = {"dtype": ("float64",)}
    integers = "native"

    def forward(self, xp, x):
        return x.astype(self.dtype, copy=False)

    def backward(self, gy, y, x):
        return gy


class Transfer(Movement):
    """x on another device; the gradient returns to x's device."""

    device: str

    signature = "transfer(x[...]) -> y[...]"
    domains = {"x": REAL}
    parameters = {"device": ("cpu",)}
    integers = "native"

    def forward(self, xp, x):
        return transfer(x, self.device)

    def backward(self, gy, y, x):
        return gy.to(x.device)
