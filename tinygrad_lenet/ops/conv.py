"""Convolution and its two gradients: three ops, each of which is a derivative of the others.

All three are linear in each input. With y = conv(x, w), the gradient for x is the transposed convolution of gy with w,
and the gradient for w correlates x with gy; the derivatives of these are the same three ops. Each is a matrix product
with the columns of x: cols[c kh kw, oh ow n] holds, for each window position and image, the pixels under the window.
"""

from ..curvature import Multilinear
from ..op import REAL, Op, op
from ..shapes import Pair, PairLike, ShapeError, integer, pair, window_positions
from .layout import Pad
from .windows import filled_images, pad_images, window_pixels

_WINDOW = {"stride": (pair, 1), "padding": (pair, 0), "dilation": (pair, 1), "groups": (integer, 1)}
_SIZES = {
    "N": range(4),
    "C/groups": range(1, 3),
    "F": (2, 4),
    "H": range(5, 9),
    "W": range(5, 9),
    "KH": range(1, 4),
    "KW": range(1, 4),
}


class Conv2d(Multilinear):
    """y[n f oh ow] = b[f] + sum over c, kh, kw of x[n, c, S oh + D kh - P, S ow + D kw - P] w[f c kh kw].

    S is the stride, P the padding, D the dilation. (Cross-correlation: the kernel is not flipped.) gx = transposed
    convolution of gy with w, gw = correlation of x with gy, gb = sum of gy over n, oh, ow. Channels are split into
    ``groups`` that do not mix.
    """

    stride: PairLike = (1, 1)
    padding: PairLike = (0, 0)
    dilation: PairLike = (1, 1)
    groups: int = 1

    signature = "conv2d(x[N C H W], weight[F C/groups KH KW], bias[F]?) -> y[N F OH OW]"
    domains = {"x": REAL, "weight": REAL, "bias": REAL}
    rules = _WINDOW
    parameters = {
        "stride": (1, 2, (2, 1), (1, 3)),
        "padding": (0, 1, (0, 2)),
        "dilation": (1, 2, (2, 1)),
        "groups": (1, 2),
    }
    sizes = _SIZES
    one_float_dtype = True

    def output_shape(self, *shapes):
        _, sizes = self.bind(shapes)
        _check_groups(self, sizes["F"])
        return sizes["N"], sizes["F"], *_positions(self, sizes, (sizes["KH"], sizes["KW"]))

    def forward(self, xp, x, weight, bias=None):
        f, _, kh, kw = weight.shape
        n, g = x.shape[0], self.groups
        cols, (oh, ow) = _columns(xp, x, (kh, kw), self)  # (G, C/G*KH*KW, OH*OW*N)
        y = _product(xp, weight.reshape(g, f // g, cols.shape[1]), cols)  # (G, F/G, OH*OW*N)
        y = y.reshape(f, oh, ow, n).transpose(3, 0, 1, 2)  # (N, F, OH, OW)
        return y if bias is None else y + bias.reshape(f, 1, 1)

    def backward(self, gy, y, x, weight, *bias):
        def gx():
            rest = tuple(
                (size + 2 * p - d * (k - 1) - 1) % s  # the rows and columns that no window reached
                for size, k, s, p, d in zip(
                    x.shape[2:], weight.shape[2:], self.stride, self.padding, self.dilation, strict=True
                )
            )
            return op("conv_transpose2d", self.stride, self.padding, rest, self.dilation, self.groups)(gy, weight)

        def gw():
            return _weight_grad(self, weight)(x, gy)

        return gx, gw, *(lambda: gy.sum((0, 2, 3)) for _ in bias)


class ConvTranspose2d(Op):
    """The transpose of `Conv2d` as a linear map of its input: each x[n f h w] adds w[f] times itself to a window of y.

    y has (H - 1) S - 2 P + D (K - 1) + 1 + output_padding rows. gx = conv(gy, w), gw = correlation of gy with x.
    """

    stride: PairLike = (1, 1)
    padding: PairLike = (0, 0)
    output_padding: PairLike = (0, 0)
    dilation: PairLike = (1, 1)
    groups: int = 1

    signature = "conv_transpose2d(x[N F H W], weight[F C/groups KH KW], bias[C]?) -> y[N C OH OW]"
    domains = {"x": REAL, "weight": REAL, "bias": REAL}
    rules = _WINDOW | {"output_padding": (pair, 0)}
    parameters = {
        "stride": (2, 1, (3, 2)),
        "padding": (0, (1, 0)),
        "output_padding": (0, (0, 1)),
        "dilation": (1, 2),
        "groups": (1, 2),
    }
    sizes = _SIZES | {"H": range(2, 5), "W": range(2, 5)}
    one_float_dtype = True

    def __post_init__(self):
        super().__post_init__()
        for axis, s, d, extra in zip("HW", self.stride, self.dilation, self.output_padding, strict=True):
            if extra >= max(s, d):
                raise ShapeError(
                    f"conv_transpose2d: output_padding is {extra} along axis {axis}; expected less than the stride {s} "
                    f"or the dilation {d}"
                )

    def output_shape(self, *shapes):
        _, sizes = self.bind(shapes)
        _check_groups(self, sizes["F"])
        if min(sizes["KH"], sizes["KW"]) < 1:
            raise ShapeError("conv_transpose2d: the window has no extent along axis KH or KW; expected at least 1")
        out = self.output_size((sizes["H"], sizes["W"]), (sizes["KH"], sizes["KW"]))
        if min(out) < 1:
            raise ShapeError(f"conv_transpose2d: the output would be {out[0]} x {out[1]}; use less padding")
        return sizes["N"], sizes["C"], *out

    def output_size(self, size: Pair, kernel: Pair) -> Pair:
        """OH and OW for an input of ``size`` H, W."""
        oh, ow = (
            (size[a] - 1) * self.stride[a]
            - 2 * self.padding[a]
            + self.dilation[a] * (kernel[a] - 1)
            + 1
            + self.output_padding[a]
            for a in (0, 1)
        )
        return oh, ow

    def forward(self, xp, x, weight, bias=None):
        f, c, kh, kw = weight.shape
        n, _, h, w = x.shape
        g, (ph, pw) = self.groups, self.padding
        oh, ow = self.output_size((h, w), (kh, kw))
        flat = x.transpose(1, 2, 3, 0).reshape(g, f // g, h * w * n)  # (G, F/G, H*W*N)
        cols = _product(xp, weight.reshape(g, f // g, c * kh * kw).transpose(0, 2, 1), flat)  # (G, C/G*KH*KW, H*W*N)
        cols = cols.reshape(g * c, kh, kw, h, w, n).transpose(5, 0, 1, 2, 3, 4)  # (N, C, KH, KW, H, W)
        if (oh + 2 * ph, ow + 2 * pw) == (kh, kw):  # a single window covers the whole map
            y = cols[..., 0, 0]
        else:
            y = filled_images(xp, n, g * c, oh + 2 * ph, ow + 2 * pw, cols.dtype)
            for i, j, window in window_pixels((kh, kw), self.stride, self.dilation, (h, w)):
                part = y[window]
                part += cols[:, :, i, j]  # y[window] += would write the sum back once more
        y = y[:, :, ph : ph + oh, pw : pw + ow]
        return y if bias is None else y + bias.reshape(g * c, 1, 1)

    def backward(self, gy, y, x, weight, *bias):
        # If output_padding is at least a stride, a convolution over gy has more positions than x.
        more_h, more_w = (extra // s for extra, s in zip(self.output_padding, self.stride, strict=True))

        def gx():
            whole = op("conv2d", self.stride, self.padding, self.dilation, self.groups)(gy, weight)
            return whole[:, :, : x.shape[2], : x.shape[3]] if more_h or more_w else whole

        def gw():
            whole = Pad(((0, 0), (0, 0), (0, more_h), (0, more_w)))(x, 0.0) if more_h or more_w else x
            return _weight_grad(self, weight)(gy, whole)

        return gx, gw, *(lambda: gy.sum((0, 2, 3)) for _ in bias)


class Conv2dWeightGrad(Op):
    """gw[f c kh kw] = sum over n, oh, ow of gy[n f oh ow] x[n, c, S oh + D kh - P, S ow + D kw - P].

    With g the gradient of gw: the gradient for x is the transposed convolution of gy with g, for gy it is conv(x, g).
    """

    kernel_size: PairLike
    stride: PairLike = (1, 1)
    padding: PairLike = (0, 0)
    dilation: PairLike = (1, 1)
    groups: int = 1

    signature = "conv2d_weight_grad(x[N C H W], gy[N F OH OW]) -> gw[F C/groups KH KW]"
    domains = {"x": REAL, "gy": REAL}
    rules = _WINDOW | {"kernel_size": (pair, 1)}
    parameters = Conv2d.parameters | {"kernel_size": (2, 3, (3, 1), (1, 2))}
    sizes = {
        "N": range(3),
        "C": (1, 2, 4),
        "F": (1, 2, 4),
        "H": range(3, 8),
        "W": range(3, 8),
        "OH": range(1, 6),
        "OW": range(1, 6),
    }
    one_float_dtype = True

    def output_shape(self, *shapes):
        _, sizes = self.bind(shapes)
        _check_groups(self, sizes["C"])
        _check_groups(self, sizes["F"])
        for axis, positions in zip("HW", _positions(self, sizes, self.kernel_size), strict=True):
            if positions != sizes["O" + axis]:
                raise ShapeError(
                    f"conv2d_weight_grad: axis O{axis} of gy is {sizes['O' + axis]}; the windows on x make {positions}"
                )
        return sizes["F"], sizes["C"] // self.groups, *self.kernel_size

    def forward(self, xp, x, gy):
        n, f, oh, ow = gy.shape
        g, (kh, kw) = self.groups, self.kernel_size
        cols, _ = _columns(xp, x, (kh, kw), self)  # (G, C/G*KH*KW, OH*OW*N)
        flat = gy.transpose(1, 2, 3, 0).reshape(g, f // g, oh * ow * n)
        return _product(xp, flat, cols.transpose(0, 2, 1)).reshape(f, x.shape[1] // g, kh, kw)

    def backward(self, g, gw, x, gy):
        conv = op("conv2d", self.stride, self.padding, self.dilation, self.groups)
        to_x, _ = conv.backward(gy, gy, x, g)
        return to_x, lambda: conv(x, g)


def _weight_grad(conv, weight):
    """The op that computes a convolution's gradient for its weight."""
    kernel = (weight.shape[2], weight.shape[3])
    return op("conv2d_weight_grad", kernel, conv.stride, conv.padding, conv.dilation, conv.groups)


def _columns(xp, x, kernel, conv):
    """cols (G, C/G*KH*KW, OH*OW*N): the pixels of x[N C H W] under each pixel of the window, and (OH, OW)."""
    (kh, kw), (sh, sw), (dh, dw) = kernel, conv.stride, conv.dilation
    x = pad_images(xp, x, conv.padding)
    n, c, h, w = x.shape
    oh, ow = (h - dh * (kh - 1) - 1) // sh + 1, (w - dw * (kw - 1) - 1) // sw + 1
    step_n, step_c, step_h, step_w = x.strides
    cols = xp.lib.stride_tricks.as_strided(
        x,
        (c, kh, kw, oh, ow, n),
        (step_c, dh * step_h, dw * step_w, sh * step_h, sw * step_w, step_n),
    )
    return xp.ascontiguousarray(cols).reshape(conv.groups, c // conv.groups * kh * kw, oh * ow * n), (oh, ow)


def _product(xp, a, b):
    """a[G M K] b[G K N], as one product of matrices if there is one group: CuPy would copy what is transposed."""
    return xp.matmul(a[0], b[0])[None] if len(a) == 1 else xp.matmul(a, b)


def _positions(conv, sizes, kernel):
    """OH, OW, the numbers of window positions; ShapeError if there are none."""
    return tuple(
        window_positions(conv.name, axis, sizes[axis], k, s, p, d)
        for axis, k, s, p, d in zip("HW", kernel, conv.stride, conv.padding, conv.dilation, strict=True)
    )


def _check_groups(conv, channels):
    if channels % conv.groups:
        raise ShapeError(f"{conv.name}: {channels} channels do not split into {conv.groups} groups of equal size")
