"""Average and maximum pooling, and the ops that carry their gradients."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..backend import Array
from ..shapes import Shape, ShapeError, window_positions
from ..tensor import REAL, Domain, Gradient, Op, Tensor
from .windows import Pair, filled_images, pad_images, window_pixels

_NO_DILATION = (1, 1)
_PARAMETERS = {
    "kernel_size": ((2, 2), (3, 2)),
    "stride": ((2, 2), (1, 2), (3, 3)),
    "padding": ((0, 0), (1, 0), (1, 1)),
}
_SIZES: dict[str, Sequence[int]] = {"N": range(3), "C": range(1, 3), "H": range(3, 7), "W": range(3, 7)}
_GRADIENT_CASES = tuple(
    ((x, gy), {"kernel_size": k, "stride": s, "padding": p})
    for x, gy, k, s, p in (
        ((2, 2, 4, 6), (2, 2, 2, 3), (2, 2), (2, 2), (0, 0)),
        ((1, 1, 5, 5), (1, 1, 2, 3), (3, 2), (2, 2), (0, 1)),
        ((2, 1, 4, 3), (2, 1, 3, 2), (2, 2), (1, 1), (0, 0)),
        ((0, 1, 2, 2), (0, 1, 1, 1), (2, 2), (2, 2), (0, 0)),
    )
)


@dataclass(frozen=True)
class AvgPool2d(Op):
    """y[n c oh ow] = mean of x over the window at (S oh - P, S ow - P); each pixel of it gets gy / (KH KW).

    Padding counts as pixels of value 0, also in the divisor.
    """

    kernel_size: Pair
    stride: Pair
    padding: Pair

    signature = "avg_pool2d(x[N C H W]) -> y[N C OH OW]"
    domains = {"x": REAL}
    parameters = _PARAMETERS
    sizes = _SIZES

    def check(self, shapes: tuple[Shape, ...]) -> dict[str, int]:
        return _check(self, shapes)

    def forward(self, xp: Any, x: Array) -> Array:
        x = pad_images(xp, x, self.padding)
        first, *others = [x[window] for _, _, window in _pixels(self, x.shape)]
        y = first + others[0] if others else xp.array(first)
        for pixels in others[1:]:
            y += pixels
        y *= 1 / (self.kernel_size[0] * self.kernel_size[1])
        return y

    def backward(self, gy: Tensor, y: Tensor, x: Tensor) -> Gradient:
        return AvgPool2dGrad(self.kernel_size, self.stride, self.padding, (x.shape[2], x.shape[3]))(gy)


@dataclass(frozen=True)
class AvgPool2dGrad(Op):
    """The transpose of `AvgPool2d`: gx[n c h w] = sum of gy over the windows on (h, w), over KH KW; linear in gy."""

    kernel_size: Pair
    stride: Pair
    padding: Pair
    size: Pair

    signature = "avg_pool2d_grad(gy[N C OH OW]) -> gx[N C H W]"
    domains = {"gy": REAL}
    cases = tuple(((gy,), parameters | {"size": x[2:]}) for (x, gy), parameters in _GRADIENT_CASES)

    def check(self, shapes: tuple[Shape, ...]) -> dict[str, int]:
        return super().check(shapes) | {"H": self.size[0], "W": self.size[1]}

    def forward(self, xp: Any, gy: Array) -> Array:
        (n, c, _, _), (h, w), (ph, pw) = gy.shape, self.size, self.padding
        gx = filled_images(xp, n, c, h + 2 * ph, w + 2 * pw, gy.dtype)
        share = gy * (1 / (self.kernel_size[0] * self.kernel_size[1]))
        for _, _, window in _pixels(self, gx.shape):
            gx[window] += share
        return gx[:, :, ph : ph + h, pw : pw + w]

    def backward(self, g: Tensor, gx: Tensor, gy: Tensor) -> Gradient:
        return AvgPool2d(self.kernel_size, self.stride, self.padding)(g)


@dataclass(frozen=True)
class MaxPool2d(Op):
    """y[n c oh ow] = largest x in the window; gy goes to the first pixel, row by row, that has this value.

    Padding counts as -inf, so it is never the largest; a NaN is the largest of all.
    """

    kernel_size: Pair
    stride: Pair
    padding: Pair

    signature = "max_pool2d(x[N C H W]) -> y[N C OH OW]"
    domains = {"x": Domain(distinct=True)}
    parameters = _PARAMETERS
    sizes = _SIZES

    def check(self, shapes: tuple[Shape, ...]) -> dict[str, int]:
        if any(2 * p > k for p, k in zip(self.padding, self.kernel_size, strict=True)):
            raise ShapeError(
                f"max_pool2d: padding {self.padding} is more than half of the window {self.kernel_size}, "
                "so that a window could hold nothing but padding"
            )
        return _check(self, shapes)

    def forward(self, xp: Any, x: Array) -> Array:
        x = pad_images(xp, x, self.padding, -xp.inf)
        y: Array = None
        for _, _, window in _pixels(self, x.shape):
            y = x[window] if y is None else xp.maximum(y, x[window])
        return y

    def backward(self, gy: Tensor, y: Tensor, x: Tensor) -> Gradient:
        return MaxPool2dGrad(self.kernel_size, self.stride, self.padding)(x, gy)


@dataclass(frozen=True)
class MaxPool2dGrad(Op):
    """gx = gy at the first largest pixel of each window, added up; linear in gy, and flat in x between ties."""

    kernel_size: Pair
    stride: Pair
    padding: Pair

    signature = "max_pool2d_grad(x[N C H W], gy[N C OH OW]) -> gx[N C H W]"
    domains = {"x": Domain(distinct=True), "gy": REAL}
    cases = _GRADIENT_CASES

    def forward(self, xp: Any, x: Array, gy: Array) -> Array:
        (n, c, h, w), (ph, pw) = x.shape, self.padding
        gx = filled_images(xp, n, c, h + 2 * ph, w + 2 * pw, gy.dtype)
        for window, first in _winners(self, xp, x):
            gx[window] += xp.where(first, gy, 0)
        return gx[:, :, ph : ph + h, pw : pw + w]

    def backward(self, g: Tensor, gx: Tensor, x: Tensor, gy: Tensor) -> tuple[Gradient, ...]:
        return lambda: 0.0 * x, lambda: MaxPool2dPick(self.kernel_size, self.stride, self.padding)(x, g)


@dataclass(frozen=True)
class MaxPool2dPick(Op):
    """y = g at the first pixel of each window on x that is largest; linear in g, and flat in x between ties."""

    kernel_size: Pair
    stride: Pair
    padding: Pair

    signature = "max_pool2d_pick(x[N C H W], g[N C H W]) -> y[N C OH OW]"
    domains = {"x": Domain(distinct=True), "g": REAL}
    parameters = _PARAMETERS
    sizes = _SIZES

    def check(self, shapes: tuple[Shape, ...]) -> dict[str, int]:
        return super().check(shapes) | _check(self, shapes[:1])

    def forward(self, xp: Any, x: Array, g: Array) -> Array:
        g = pad_images(xp, g, self.padding)
        y: Array = 0
        for window, first in _winners(self, xp, x):
            y = y + xp.where(first, g[window], 0)
        return y

    def backward(self, gy: Tensor, y: Tensor, x: Tensor, g: Tensor) -> tuple[Gradient, ...]:
        return lambda: 0.0 * x, lambda: MaxPool2dGrad(self.kernel_size, self.stride, self.padding)(x, gy)


_Pool = AvgPool2d | AvgPool2dGrad | MaxPool2d | MaxPool2dGrad | MaxPool2dPick


def _check(op: AvgPool2d | MaxPool2d | MaxPool2dPick, shapes: tuple[Shape, ...]) -> dict[str, int]:
    """Refuse a window that does not fit; the sizes of all axes."""
    sizes = Op.check(op, shapes) if len(shapes) == len(op._parsed.inputs) else {}
    for a, axis in enumerate("HW"):
        sizes = sizes | {
            "O" + axis: window_positions(
                op.name, axis, shapes[0][2 + a], op.kernel_size[a], op.stride[a], op.padding[a]
            )
        }
    return sizes


def _pixels(op: _Pool, padded: Shape) -> Any:
    """`window_pixels` for a pooling op on padded images of that shape."""
    positions = tuple((padded[2 + a] - op.kernel_size[a]) // op.stride[a] + 1 for a in (0, 1))
    return window_pixels(op.kernel_size, op.stride, _NO_DILATION, positions)  # type: ignore[arg-type]


def _winners(op: MaxPool2dGrad | MaxPool2dPick, xp: Any, x: Array) -> Any:
    """For each pixel of the window: its index, and where it is the first of its window to have the largest value."""
    inside = pad_images(xp, xp.ones(x.shape, bool), op.padding)
    x = pad_images(xp, x, op.padding, -xp.inf)
    pixels = [window for _, _, window in _pixels(op, x.shape)]
    largest, found = x[pixels[0]], inside[pixels[0]]
    winner = xp.zeros(largest.shape, xp.int32)
    for i, window in enumerate(pixels[1:], start=1):
        candidate = x[window]
        better = (candidate > largest) | (xp.isnan(candidate) & ~xp.isnan(largest))
        better |= inside[window] & ~found  # a pixel that is itself -inf comes before padding
        largest = xp.where(better, candidate, largest)
        winner = xp.where(better, i, winner)
        found = found | inside[window]
    return [(window, winner == i) for i, window in enumerate(pixels)]
