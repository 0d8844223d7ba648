"""Average and maximum pooling, trainable subsampling, and the ops that carry their gradients."""

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
_SUBSAMPLE_CASES = (  # x, gy, kernel_size
    ((2, 2, 4, 4), (2, 2, 2, 2), (2, 2)),
    ((1, 2, 3, 5), (1, 2, 1, 2), (2, 2)),
    ((1, 1, 6, 4), (1, 1, 2, 2), (3, 2)),
    ((0, 2, 2, 2), (0, 2, 1, 2), (2, 1)),
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

    def curvature(self, hy: Tensor, gy: Tensor, y: Tensor, x: Tensor) -> Gradient:
        return self.backward(hy / (self.kernel_size[0] * self.kernel_size[1]), y, x)


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

    def curvature(self, hy: Tensor, gy: Tensor, y: Tensor, x: Tensor) -> Gradient:
        return self.backward(hy, y, x)


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


@dataclass(frozen=True)
class Subsample2d(Op):
    """y[n c oh ow] = weight[c] s[n c oh ow] + bias[c], s = sum of x over the window; windows touch and do not overlap.

    gx = weight gy at each pixel of the window (`Subsample2dTranspose`), gw = sum of gy s over n, oh, ow
    (`Subsample2dWeightGrad`), gb = sum of gy. The three ops are each other's derivatives, as those of convolution are.
    (LeCun et al., 1998, Section II.B: a unit adds its inputs. It takes their mean where weight is 1 / (KH KW).)
    """

    kernel_size: Pair

    signature = "subsample2d(x[N C H W], weight[C], bias[C]?) -> y[N C OH OW]"
    domains = {"x": REAL, "weight": REAL, "bias": REAL}
    parameters = {"kernel_size": _PARAMETERS["kernel_size"]}
    sizes = _SIZES

    def check(self, shapes: tuple[Shape, ...]) -> dict[str, int]:
        sizes = super().check(shapes)
        oh, ow = _positions(self, shapes[0])
        return sizes | {"OH": oh, "OW": ow}

    def forward(self, xp: Any, x: Array, weight: Array, bias: Array | None = None) -> Array:
        y = _window_sums(self, xp, x) * weight.reshape(-1, 1, 1)
        return y if bias is None else y + bias.reshape(-1, 1, 1)

    def backward(self, gy: Tensor, y: Tensor, x: Tensor, weight: Tensor, *bias: Tensor) -> tuple[Gradient, ...]:
        return (
            lambda: Subsample2dTranspose(self.kernel_size, (x.shape[2], x.shape[3]))(gy, weight),
            lambda: Subsample2dWeightGrad(self.kernel_size)(x, gy),
            *(lambda: gy.sum((0, 2, 3)) for _ in bias),
        )

    def curvature(
        self, hy: Tensor, gy: Tensor, y: Tensor, x: Tensor, weight: Tensor, *bias: Tensor
    ) -> tuple[Gradient, ...]:
        hx, _, *hb = self.backward(hy, y, x, weight * weight, *bias)

        def hw() -> Tensor:
            # The slope is s. Eq. 22, read with a connection for each pixel, would have the sum of x^2 for s^2.
            s = self.kernel_size[0] * self.kernel_size[1] * AvgPool2d(self.kernel_size, self.kernel_size, (0, 0))(x)
            return (hy * (s * s)).sum((0, 2, 3))

        return hx, hw, *hb


@dataclass(frozen=True)
class Subsample2dTranspose(Op):
    """The transpose of `Subsample2d` in x: gx = weight[c] gy[n c oh ow] at each pixel of window (oh, ow), else 0.

    With g the gradient of gx: the gradient for gy is subsample2d(g, weight), for the weight the sum of gy times the
    window sums of g.
    """

    kernel_size: Pair
    size: Pair  # H, W

    signature = "subsample2d_transpose(gy[N C OH OW], weight[C]) -> gx[N C H W]"
    domains = {"gy": REAL, "weight": REAL}
    cases = tuple(((gy, gy[1:2]), {"kernel_size": k, "size": x[2:]}) for x, gy, k in _SUBSAMPLE_CASES)

    def check(self, shapes: tuple[Shape, ...]) -> dict[str, int]:
        sizes = super().check(shapes)
        for axis, size, k in zip("HW", self.size, self.kernel_size, strict=True):
            if sizes["O" + axis] != size // k:
                raise ShapeError(
                    f"subsample2d_transpose: axis O{axis} of gy is {sizes['O' + axis]}; {size} pixels make {size // k}"
                )
        return sizes | {"H": self.size[0], "W": self.size[1]}

    def forward(self, xp: Any, gy: Array, weight: Array) -> Array:
        (n, c, oh, ow), (kh, kw) = gy.shape, self.kernel_size
        share = gy * weight.reshape(-1, 1, 1)
        gx = filled_images(xp, n, c, *self.size, share.dtype)
        for _, _, window in window_pixels((kh, kw), (kh, kw), _NO_DILATION, (oh, ow)):
            gx[window] = share
        return gx

    def backward(self, g: Tensor, gx: Tensor, gy: Tensor, weight: Tensor) -> tuple[Gradient, ...]:
        return lambda: Subsample2d(self.kernel_size)(g, weight), lambda: Subsample2dWeightGrad(self.kernel_size)(g, gy)


@dataclass(frozen=True)
class Subsample2dWeightGrad(Op):
    """gw[c] = sum over n, oh, ow of gy[n c oh ow] times the sum of x over window (oh, ow).

    With g the gradient of gw: the gradient for x is g[c] gy at each pixel of the window, for gy subsample2d(x, g).
    """

    kernel_size: Pair

    signature = "subsample2d_weight_grad(x[N C H W], gy[N C OH OW]) -> gw[C]"
    domains = {"x": REAL, "gy": REAL}
    cases = tuple(((x, gy), {"kernel_size": k}) for x, gy, k in _SUBSAMPLE_CASES)

    def check(self, shapes: tuple[Shape, ...]) -> dict[str, int]:
        sizes = super().check(shapes)
        if _positions(self, shapes[0]) != shapes[1][2:]:
            raise ShapeError(
                f"subsample2d_weight_grad: gy has {shapes[1][2:]} positions; the windows on x make "
                f"{_positions(self, shapes[0])}"
            )
        return sizes

    def forward(self, xp: Any, x: Array, gy: Array) -> Array:
        return xp.sum(gy * _window_sums(self, xp, x), axis=(0, 2, 3))

    def backward(self, g: Tensor, gw: Tensor, x: Tensor, gy: Tensor) -> tuple[Gradient, ...]:
        return (
            lambda: Subsample2dTranspose(self.kernel_size, (x.shape[2], x.shape[3]))(gy, g),
            lambda: Subsample2d(self.kernel_size)(x, g),
        )


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


def _positions(op: Subsample2d | Subsample2dWeightGrad, x: Shape) -> Pair:
    """OH, OW: how many windows fit below and beside each other; ShapeError if none does."""
    oh, ow = (
        window_positions(op.name, axis, x[2 + a], op.kernel_size[a], op.kernel_size[a], 0)
        for a, axis in enumerate("HW")
    )
    return oh, ow


def _window_sums(op: Subsample2d | Subsample2dWeightGrad, xp: Any, x: Array) -> Array:
    """s[n c oh ow]: the sum of x over each window."""
    windows = window_pixels(op.kernel_size, op.kernel_size, _NO_DILATION, _positions(op, x.shape))
    s: Array = 0
    for _, _, window in windows:
        s = s + x[window]
    return s


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
