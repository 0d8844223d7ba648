"""Convolution and its two gradients, three ops that are each other's derivatives.

All three are linear in each input. With y = conv(x, w), the gradient for x is the transposed convolution of gy with w,
the gradient for w correlates x with gy; the derivatives of these are again the three. Each is one matrix product with
the columns of x: cols[c kh kw, oh ow n] holds, for each window position and image, the pixels under the window.
"""

from dataclasses import dataclass
from typing import Any

from ..backend import Array
from ..shapes import Shape, ShapeError, window_positions
from ..tensor import REAL, Gradient, Op, Tensor
from .layout import Pad
from .windows import Pair, filled_images, pad_images, window_pixels

_PAIRS = ((1, 1), (2, 2), (2, 1), (1, 3))
_SIZES = {
    "N": range(4),
    "C/groups": range(1, 3),
    "F": (2, 4),
    "H": range(5, 9),
    "W": range(5, 9),
    "KH": range(1, 4),
    "KW": range(1, 4),
}


@dataclass(frozen=True)
class Conv2d(Op):
    """y[n f oh ow] = b[f] + sum over c, kh, kw of x[n, c, S oh + D kh - P, S ow + D kw - P] w[f c kh kw].

    (Cross-correlation: the kernel is not flipped.) gx = transposed convolution of gy with w, gw = correlation of x
    with gy, gb = sum of gy over n, oh, ow. Channels are split into ``groups`` that do not mix.
    """

    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1

    signature = "conv2d(x[N C H W], weight[F C/groups KH KW], bias[F]?) -> y[N F OH OW]"
    domains = {"x": REAL, "weight": REAL, "bias": REAL}
    parameters = {"stride": _PAIRS, "padding": ((0, 0), (1, 1), (0, 2)), "dilation": _PAIRS[:3], "groups": (1, 2)}
    sizes = _SIZES

    def check(self, shapes: tuple[Shape, ...]) -> dict[str, int]:
        sizes = super().check(shapes)
        _check_groups("conv2d", sizes["F"], self.groups)
        oh = window_positions("conv2d", "H", sizes["H"], sizes["KH"], self.stride[0], self.padding[0], self.dilation[0])
        ow = window_positions("conv2d", "W", sizes["W"], sizes["KW"], self.stride[1], self.padding[1], self.dilation[1])
        return sizes | {"OH": oh, "OW": ow}

    def forward(self, xp: Any, x: Array, weight: Array, bias: Array | None = None) -> Array:
        f, _, kh, kw = weight.shape
        n, g = x.shape[0], self.groups
        cols, (oh, ow) = _columns(xp, x, (kh, kw), self)  # (G, C/G*KH*KW, OH*OW*N)
        y = xp.matmul(weight.reshape(g, f // g, cols.shape[1]), cols)  # (G, F/G, OH*OW*N)
        y = y.reshape(f, oh, ow, n).transpose(3, 0, 1, 2)  # (N, F, OH, OW)
        return y if bias is None else y + bias.reshape(f, 1, 1)

    def backward(self, gy: Tensor, y: Tensor, x: Tensor, weight: Tensor, *bias: Tensor) -> tuple[Gradient, ...]:
        def gx() -> Tensor:
            rest_h, rest_w = (
                (size + 2 * p - d * (k - 1) - 1) % s  # the rows and columns that no window reached
                for size, k, s, p, d in zip(
                    x.shape[2:], weight.shape[2:], self.stride, self.padding, self.dilation, strict=True
                )
            )
            return ConvTranspose2d(self.stride, self.padding, (rest_h, rest_w), self.dilation, self.groups)(gy, weight)

        def gw() -> Tensor:
            kernel = (weight.shape[2], weight.shape[3])
            return Conv2dWeightGrad(kernel, self.stride, self.padding, self.dilation, self.groups)(x, gy)

        return gx, gw, *(lambda: gy.sum((0, 2, 3)) for _ in bias)

    def curvature(
        self, hy: Tensor, gy: Tensor, y: Tensor, x: Tensor, weight: Tensor, *bias: Tensor
    ) -> tuple[Gradient, ...]:
        return self.backward(hy, y, x * x, weight * weight, *bias)


@dataclass(frozen=True)
class ConvTranspose2d(Op):
    """The transpose of `Conv2d` as a linear map of its input: each x[n f h w] adds w[f] times itself to a window of y.

    y has (H - 1) S - 2 P + D (K - 1) + 1 + output_padding rows. gx = conv(gy, w), gw = correlation of gy with x.
    """

    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    output_padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1

    signature = "conv_transpose2d(x[N F H W], weight[F C/groups KH KW], bias[C]?) -> y[N C OH OW]"
    domains = {"x": REAL, "weight": REAL, "bias": REAL}
    parameters = {
        "stride": ((2, 2), (1, 1), (3, 2)),
        "padding": ((0, 0), (1, 0)),
        "output_padding": ((0, 0), (0, 1)),
        "dilation": ((1, 1), (2, 2)),
        "groups": (1, 2),
    }
    sizes = _SIZES | {"H": range(2, 5), "W": range(2, 5)}

    def check(self, shapes: tuple[Shape, ...]) -> dict[str, int]:
        sizes = super().check(shapes)
        _check_groups("conv_transpose2d", sizes["F"], self.groups)
        for axis, s, d, extra in zip("HW", self.stride, self.dilation, self.output_padding, strict=True):
            if extra >= max(s, d):
                raise ShapeError(
                    f"conv_transpose2d: output_padding {extra} along axis {axis} must be smaller than "
                    f"the stride {s} or the dilation {d}"
                )
        out = self.output_size((sizes["H"], sizes["W"]), (sizes["KH"], sizes["KW"]))
        if min(out) < 1:
            raise ShapeError(f"conv_transpose2d: the output would be {out[0]} x {out[1]}; use less padding")
        return sizes | {"OH": out[0], "OW": out[1]}

    def output_size(self, size: Pair, kernel: Pair) -> Pair:
        oh, ow = (
            (size[a] - 1) * self.stride[a]
            - 2 * self.padding[a]
            + self.dilation[a] * (kernel[a] - 1)
            + 1
            + self.output_padding[a]
            for a in (0, 1)
        )
        return oh, ow

    def forward(self, xp: Any, x: Array, weight: Array, bias: Array | None = None) -> Array:
        f, c, kh, kw = weight.shape
        n, _, h, w = x.shape
        g, (ph, pw) = self.groups, self.padding
        oh, ow = self.output_size((h, w), (kh, kw))
        flat = x.transpose(1, 2, 3, 0).reshape(g, f // g, h * w * n)  # (G, F/G, H*W*N)
        cols = xp.matmul(weight.reshape(g, f // g, c * kh * kw).transpose(0, 2, 1), flat)  # (G, C/G*KH*KW, H*W*N)
        cols = cols.reshape(g * c, kh, kw, h, w, n).transpose(5, 0, 1, 2, 3, 4)  # (N, C, KH, KW, H, W)
        y = filled_images(xp, n, g * c, oh + 2 * ph, ow + 2 * pw, cols.dtype)
        for i, j, window in window_pixels((kh, kw), self.stride, self.dilation, (h, w)):
            y[window] += cols[:, :, i, j]
        y = y[:, :, ph : ph + oh, pw : pw + ow]
        return y if bias is None else y + bias.reshape(g * c, 1, 1)

    def backward(self, gy: Tensor, y: Tensor, x: Tensor, weight: Tensor, *bias: Tensor) -> tuple[Gradient, ...]:
        kernel = (weight.shape[2], weight.shape[3])
        shared = (self.stride, self.padding, self.dilation, self.groups)
        # Where output_padding holds whole strides, a convolution over gy finds more positions than x has.
        more_h, more_w = (extra // s for extra, s in zip(self.output_padding, self.stride, strict=True))

        def gx() -> Tensor:
            whole = Conv2d(*shared)(gy, weight)
            return whole[:, :, : x.shape[2], : x.shape[3]] if more_h or more_w else whole

        def gw() -> Tensor:
            whole = Pad(((0, 0), (0, 0), (0, more_h), (0, more_w)), 0.0)(x) if more_h or more_w else x
            return Conv2dWeightGrad(kernel, *shared)(gy, whole)

        return gx, gw, *(lambda: gy.sum((0, 2, 3)) for _ in bias)


@dataclass(frozen=True)
class Conv2dWeightGrad(Op):
    """gw[f c kh kw] = sum over n, oh, ow of gy[n f oh ow] x[n, c, S oh + D kh - P, S ow + D kw - P].

    With g the gradient of gw: the gradient for x is the transposed convolution of gy with g, for gy it is conv(x, g).
    """

    kernel_size: Pair
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1

    signature = "conv2d_weight_grad(x[N C H W], gy[N F OH OW]) -> gw[F C/groups KH KW]"
    domains = {"x": REAL, "gy": REAL}
    cases = tuple(
        ((x, gy), {"kernel_size": k, "stride": s, "padding": p, "dilation": d, "groups": g})
        for x, gy, k, s, p, d, g in (
            ((2, 1, 5, 6), (2, 3, 3, 4), (3, 3), (1, 1), (0, 0), (1, 1), 1),
            ((1, 2, 6, 5), (1, 2, 3, 2), (2, 2), (2, 2), (0, 0), (1, 1), 2),
            ((2, 2, 4, 4), (2, 1, 4, 2), (3, 2), (1, 2), (1, 0), (1, 1), 1),
            ((1, 4, 5, 7), (1, 2, 3, 7), (3, 1), (1, 1), (1, 0), (2, 1), 2),
            ((0, 1, 3, 3), (0, 1, 2, 2), (2, 2), (1, 1), (0, 0), (1, 1), 1),
        )
    )

    def check(self, shapes: tuple[Shape, ...]) -> dict[str, int]:
        sizes = super().check(shapes)
        _check_groups("conv2d_weight_grad", sizes["C"], self.groups)
        _check_groups("conv2d_weight_grad", sizes["F"], self.groups)
        for a, axis in enumerate("HW"):
            positions = window_positions(
                "conv2d_weight_grad", axis, sizes[axis], self.kernel_size[a], self.stride[a], self.padding[a],
                self.dilation[a],
            )  # fmt: skip
            if positions != sizes["O" + axis]:
                raise ShapeError(
                    f"conv2d_weight_grad: axis O{axis} of gy is {sizes['O' + axis]}; the windows on x make {positions}"
                )
        return sizes

    def forward(self, xp: Any, x: Array, gy: Array) -> Array:
        n, f, oh, ow = gy.shape
        g, (kh, kw) = self.groups, self.kernel_size
        cols, _ = _columns(xp, x, (kh, kw), self)  # (G, C/G*KH*KW, OH*OW*N)
        flat = gy.transpose(1, 2, 3, 0).reshape(g, f // g, oh * ow * n)
        return xp.matmul(flat, cols.transpose(0, 2, 1)).reshape(f, x.shape[1] // g, kh, kw)

    def backward(self, g: Tensor, gw: Tensor, x: Tensor, gy: Tensor) -> tuple[Gradient, ...]:
        conv = Conv2d(self.stride, self.padding, self.dilation, self.groups)
        to_x, _ = conv.backward(gy, gy, x, g)
        return to_x, lambda: conv(x, g)


@dataclass(frozen=True)
class ScatterKernels(Op):
    """y[f, c] = weight[k] where places[k] = f C + c, and 0 at all other f, c: kernels for some pairs of maps only.

    The gradient gathers (`GatherKernels`): gw[k] = gy[f, c].
    """

    places: tuple[int, ...]  # all different
    channels: Pair  # F, C

    signature = "scatter_kernels(weight[K KH KW]) -> y[F C KH KW]"
    domains = {"weight": REAL}
    cases = (
        (((3, 2, 2),), {"places": (0, 5, 3), "channels": (2, 3)}),
        (((2, 1, 3),), {"places": (0, 1), "channels": (1, 2)}),
    )

    @classmethod
    def of(cls, connections: tuple[tuple[int, ...], ...], channels: int) -> "ScatterKernels":
        """The op for a table that `shapes.connection_table` has checked, of so many input maps."""
        places = tuple(f * channels + c for f, row in enumerate(connections) for c in row)
        return cls(places, (len(connections), channels))

    def check(self, shapes: tuple[Shape, ...]) -> dict[str, int]:
        sizes = super().check(shapes)
        if sizes["K"] != len(self.places):
            raise ShapeError(f"scatter_kernels: axis K is {sizes['K']} in weight; there are {len(self.places)} places")
        return sizes | {"F": self.channels[0], "C": self.channels[1]}

    def forward(self, xp: Any, weight: Array) -> Array:
        f, c = self.channels
        y = xp.zeros((f * c, *weight.shape[1:]), weight.dtype)
        y[xp.asarray(self.places)] = weight
        return y.reshape(f, c, *weight.shape[1:])

    def backward(self, gy: Tensor, y: Tensor, weight: Tensor) -> Gradient:
        return GatherKernels(self.places)(gy)

    def curvature(self, hy: Tensor, gy: Tensor, y: Tensor, weight: Tensor) -> Gradient:
        return self.backward(hy, y, weight)


@dataclass(frozen=True)
class GatherKernels(Op):
    """The transpose of `ScatterKernels`: y[k] = x[f, c] where places[k] = f C + c; the gradient scatters."""

    places: tuple[int, ...]

    signature = "gather_kernels(x[F C KH KW]) -> y[K KH KW]"
    domains = {"x": REAL}
    cases = (
        (((2, 3, 2, 2),), {"places": (0, 5, 3)}),
        (((1, 2, 1, 3),), {"places": (1,)}),
    )

    def check(self, shapes: tuple[Shape, ...]) -> dict[str, int]:
        return super().check(shapes) | {"K": len(self.places)}

    def forward(self, xp: Any, x: Array) -> Array:
        return x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])[xp.asarray(self.places)]

    def backward(self, gy: Tensor, y: Tensor, x: Tensor) -> Gradient:
        return ScatterKernels(self.places, (x.shape[0], x.shape[1]))(gy)


def _columns(xp: Any, x: Array, kernel: Pair, op: Conv2d | Conv2dWeightGrad) -> tuple[Array, Pair]:
    """cols (G, C/G*KH*KW, OH*OW*N): the pixels of x[N C H W] under each pixel of the window, and (OH, OW)."""
    (kh, kw), (sh, sw), (dh, dw) = kernel, op.stride, op.dilation
    x = pad_images(xp, x, op.padding)
    n, c, h, w = x.shape
    oh, ow = (h - dh * (kh - 1) - 1) // sh + 1, (w - dw * (kw - 1) - 1) // sw + 1
    step_n, step_c, step_h, step_w = x.strides
    cols = xp.lib.stride_tricks.as_strided(
        x,
        (c, kh, kw, oh, ow, n),
        (step_c, dh * step_h, dw * step_w, sh * step_h, sw * step_w, step_n),
    )
    return xp.ascontiguousarray(cols).reshape(op.groups, c // op.groups * kh * kw, oh * ow * n), (oh, ow)


def _check_groups(op: str, channels: int, groups: int) -> None:
    if channels % groups:
        raise ShapeError(f"{op}: {channels} channels do not split into {groups} groups of equal size")
