"""Ops that move elements without changing them: shape, order, dtype, device, joining and padding.

Every slope is 1 or 0, which squaring does not change, so curvatures move as gradients do.
"""

import math
from dataclasses import dataclass
from typing import Any

from ..backend import Array, transfer
from ..shapes import Shape, ShapeError, broadcast_shape, integer, normalize_axes, normalize_axis
from ..tensor import REAL, Gradient, Op, Tensor


@dataclass(frozen=True)
class Reshape(Op):
    """The elements of x, in row-major order, in another shape; the gradient takes x's shape."""

    shape: tuple[int, ...]

    signature = "reshape(x[...]) -> y[...]"
    domains = {"x": REAL}
    cases = (
        (((2, 3, 4),), {"shape": (6, 4)}),
        (((2, 3, 4),), {"shape": (-1,)}),
        (((2, 6),), {"shape": (2, 3, 1, 2)}),
        (((),), {"shape": (1, 1)}),
        (((0, 3),), {"shape": (3, 0)}),
    )

    def check(self, shapes: tuple[Shape, ...]) -> dict[str, int]:
        sizes = [
            size if type(size) is int and size >= 0 else integer("reshape", "an axis of shape", size, minimum=-1)
            for size in self.shape
        ]
        known = math.prod(size for size in sizes if size != -1)
        total = math.prod(shapes[0])
        fits = total == known if -1 not in sizes else known > 0 and total % known == 0
        if sizes.count(-1) > 1 or not fits:
            raise ShapeError(
                f"reshape: x has shape {shapes[0]}, {total} elements, which do not fill {tuple(self.shape)}"
            )
        return {}

    def forward(self, xp: Any, x: Array) -> Array:
        return xp.reshape(x, self.shape)

    def backward(self, gy: Tensor, y: Tensor, x: Tensor) -> Gradient:
        return gy.reshape(x.shape)

    def curvature(self, hy: Tensor, gy: Tensor, y: Tensor, x: Tensor) -> Gradient:
        return self.backward(hy, y, x)


@dataclass(frozen=True)
class Transpose(Op):
    """y[i_axes[0], i_axes[1], ...] = x[i_0, i_1, ...]; the gradient takes the axes back."""

    axes: tuple[int, ...]

    signature = "transpose(x[...]) -> y[...]"
    domains = {"x": REAL}
    cases = (
        (((2, 3, 4),), {"axes": (2, 0, 1)}),
        (((2, 3, 4),), {"axes": (0, -1, 1)}),
        (((2, 0),), {"axes": (1, 0)}),
        (((),), {"axes": ()}),
    )

    def check(self, shapes: tuple[Shape, ...]) -> dict[str, int]:
        if len(normalize_axes("transpose", self.axes, len(shapes[0]))) != len(shapes[0]):
            raise ShapeError(f"transpose: axes {self.axes} do not name each of the {len(shapes[0])} axes of x once")
        return {}

    def forward(self, xp: Any, x: Array) -> Array:
        return xp.transpose(x, self.axes)

    def backward(self, gy: Tensor, y: Tensor, x: Tensor) -> Gradient:
        axes = normalize_axes("transpose", self.axes, x.ndim)
        return gy.transpose(tuple(axes.index(a) for a in range(x.ndim)))

    def curvature(self, hy: Tensor, gy: Tensor, y: Tensor, x: Tensor) -> Gradient:
        return self.backward(hy, y, x)


@dataclass(frozen=True)
class BroadcastTo(Op):
    """x repeated along new axes and axes of size 1; the gradient is summed over the repetitions, by the engine."""

    shape: tuple[int, ...]

    signature = "broadcast_to(x[...]) -> y[...]"
    domains = {"x": REAL}
    cases = (
        (((3, 1),), {"shape": (2, 3, 4)}),
        (((1,),), {"shape": (1,)}),
        (((),), {"shape": (2, 2)}),
        (((1, 3),), {"shape": (0, 3)}),
    )

    def check(self, shapes: tuple[Shape, ...]) -> dict[str, int]:
        target = tuple(integer("broadcast_to", "an axis of shape", size, minimum=0) for size in self.shape)
        if broadcast_shape("broadcast_to", [shapes[0], target]) != target:
            raise ShapeError(f"broadcast_to: x has shape {shapes[0]}, which does not broadcast to {target}")
        return {}

    def forward(self, xp: Any, x: Array) -> Array:
        return xp.broadcast_to(x, self.shape)

    def backward(self, gy: Tensor, y: Tensor, x: Tensor) -> Gradient:
        return gy

    def curvature(self, hy: Tensor, gy: Tensor, y: Tensor, x: Tensor) -> Gradient:
        return hy


@dataclass(frozen=True)
class Concatenate(Op):
    """The inputs one after the other along an axis; each gets its stretch of the gradient."""

    axis: int

    signature = "concatenate(*x[...]) -> y[...]"
    domains = {"x": REAL}
    cases = (
        (((2, 3), (1, 3)), {"axis": 0}),
        (((2, 1, 2), (2, 3, 2), (2, 0, 2)), {"axis": 1}),
        (((2,),), {"axis": -1}),
    )

    def check(self, shapes: tuple[Shape, ...]) -> dict[str, int]:
        axis = normalize_axis("concatenate", self.axis, len(shapes[0]))
        for i, shape in enumerate(shapes):
            if len(shape) != len(shapes[0]) or any(
                size != first for a, (size, first) in enumerate(zip(shape, shapes[0], strict=True)) if a != axis
            ):
                raise ShapeError(
                    f"concatenate: input {i} has shape {shape}, input 0 {shapes[0]}; only axis {axis} may differ"
                )
        return {}

    def forward(self, xp: Any, *x: Array) -> Array:
        return xp.concatenate(x, axis=self.axis)

    def backward(self, gy: Tensor, y: Tensor, *x: Tensor) -> tuple[Gradient, ...]:
        axis = normalize_axis("concatenate", self.axis, y.ndim)
        gradients = []
        start = 0
        for each in x:
            stretch = (slice(None),) * axis + (slice(start, start + each.shape[axis]),)
            gradients.append(gy[stretch])
            start += each.shape[axis]
        return tuple(gradients)

    def curvature(self, hy: Tensor, gy: Tensor, y: Tensor, *x: Tensor) -> tuple[Gradient, ...]:
        return self.backward(hy, y, *x)


@dataclass(frozen=True)
class Pad(Op):
    """x with ``value`` before and after it along each axis; the gradient is cut out of the middle."""

    pad_width: tuple[tuple[int, int], ...]
    value: float

    signature = "pad(x[...]) -> y[...]"
    domains = {"x": REAL}
    cases = (
        (((2, 3),), {"pad_width": ((1, 2), (0, 3)), "value": 0.0}),
        (((2, 0, 1),), {"pad_width": ((0, 0), (1, 1), (2, 0)), "value": 1.5}),
        (((),), {"pad_width": (), "value": 1.0}),
    )

    def check(self, shapes: tuple[Shape, ...]) -> dict[str, int]:
        if len(self.pad_width) != len(shapes[0]):
            raise ShapeError(f"pad: pad_width is for {len(self.pad_width)} axes, x has shape {shapes[0]}")
        return {}

    def forward(self, xp: Any, x: Array) -> Array:
        return xp.pad(x, self.pad_width, constant_values=self.value) if x.ndim else xp.array(x)

    def backward(self, gy: Tensor, y: Tensor, x: Tensor) -> Gradient:
        return gy[
            tuple(slice(before, before + size) for (before, _), size in zip(self.pad_width, x.shape, strict=True))
        ]

    def curvature(self, hy: Tensor, gy: Tensor, y: Tensor, x: Tensor) -> Gradient:
        return self.backward(hy, y, x)


class Copy(Op):
    """y = x in memory of its own; dy/dx = 1."""

    signature = "copy(x[...]) -> y[...]"
    domains = {"x": REAL}

    def forward(self, xp: Any, x: Array) -> Array:
        return xp.array(x)  # in x's memory order, which .copy() would not keep

    def backward(self, gy: Tensor, y: Tensor, x: Tensor) -> Gradient:
        return gy

    def curvature(self, hy: Tensor, gy: Tensor, y: Tensor, x: Tensor) -> Gradient:
        return hy


@dataclass(frozen=True)
class AsType(Op):
    """x in another dtype; the gradient returns in x's dtype, which the engine sees to."""

    dtype: str

    signature = "astype(x[...]) -> y[...]"
    domains = {"x": REAL}
    cases = ((((2, 3),), {"dtype": "float64"}), (((0,),), {"dtype": "float64"}))

    def forward(self, xp: Any, x: Array) -> Array:
        return x.astype(self.dtype, copy=False)

    def backward(self, gy: Tensor, y: Tensor, x: Tensor) -> Gradient:
        return gy

    def curvature(self, hy: Tensor, gy: Tensor, y: Tensor, x: Tensor) -> Gradient:
        return hy


@dataclass(frozen=True)
class Transfer(Op):
    """x on another device; the gradient returns to x's."""

    device: str

    signature = "transfer(x[...]) -> y[...]"
    domains = {"x": REAL}
    cases = ((((2, 3),), {"device": "cpu"}),)

    def forward(self, xp: Any, x: Array) -> Array:
        return transfer(x, self.device)

    def backward(self, gy: Tensor, y: Tensor, x: Tensor) -> Gradient:
        return gy.to(x.device)

    def curvature(self, hy: Tensor, gy: Tensor, y: Tensor, x: Tensor) -> Gradient:
        return self.backward(hy, y, x)
