"""Faster forwards on NumPy arrays, for the ops in which LeNet-5 spends its time.

Every kernel computes what the op's own `forward` computes, and the same tests run over both; a kernel returns
NotImplemented for parameters that it does not cover. Image kernels work on batch-last memory, m[C H W N], in which
contiguous runs are at least N floats long. The gain of each trick is given in microseconds, on one core with AVX-512 in
float32, for LeNet-5's second convolution (6 maps of 14 x 14 to 16 maps of 10 x 10) on 32 images, unless noted.

1. Columns along W only. A matrix product needs the pixels under each window as a column. Copying all 5 x 5 of them
   writes every pixel 25 times; copying only the 5 along W, into cols[H C KW OW*N], writes it 5 times. The rows that a
   window covers, oh to oh + KH, then follow one another in memory, so a view with overlapping rows serves as the matrix
   of one product per output row: 7 us instead of 24.
2. Small products. Up to about 10^6 multiplications, OpenBLAS has kernels that do not pack their operands and are twice
   as fast as the others, so wide outputs are split into blocks (forward on 64 images: 163 us instead of 230). Blocks
   also keep cols in the second-level cache.
3. Sums over kernel rows inside the product. The input gradient sums over kh and kw. Once the gradient's rows are framed
   by KH - 1 rows of zeros, the product itself sums over kh (112 us in all instead of 276). For many images, the rows at
   the edges have products of their own, which leave out the zeros (0.8 times the time for 64).
4. Sums over kernel columns by a product with ones. The KW shifted rows are laid out so that a view whose row stride is
   one pixel short shifts each row by one pixel more than the last: a vector-matrix product over that view adds the
   rows, in 12 us instead of 41 for additions of slices.
5. Scratch buffers that are kept between calls, and temporaries written in place: new memory costs a page fault every
   4 KB, up to half of a training step. (For the tensors themselves see `tinygrad_lenet.parallel.tune_process`.)
"""

import itertools
import math
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ..backend import Array, kernel
from ..ops.conv import Conv2d, Conv2dWeightGrad, ConvTranspose2d
from ..ops.elementwise import TanhGrad, Where
from ..ops.layout import BroadcastTo
from ..ops.lenet_1998 import Subsample2d, Subsample2dTranspose, Subsample2dWeightGrad
from ..ops.linalg import MatMul
from ..ops.pool import AvgPool2dGrad, MaxPool2dGrad
from ..ops.random import Bernoulli
from ..ops.windows import empty_images, pad_images, window_pixels

_AVX512 = bool({"X86_V4", "AVX512_SKX"} & set(np.show_config(mode="dicts")["SIMD Extensions"]["found"]))
_SMALL_PRODUCT = 1_000_000 if _AVX512 else 2**62  # multiplications up to which OpenBLAS does not pack its operands
_NARROWEST = 64 if _AVX512 else 128  # columns below which a block is not worth a call
_CACHED = 140_000  # float32 numbers of a column block that fit in a second-level cache of 1 MB
_FEW = 400_000  # multiplications up to which one product of all columns beats many of some
_MANY = 2_000_000  # multiplications from which rows at the edges are worth products of their own
_NO_GAIN = 4096  # elements up to which np.where is as fast as selecting bits of two arrays

_KEPT = 2**25  # bytes of scratch memory that a thread keeps


class _Scratch(threading.local):
    """Buffers that a call takes and gives back; a call inside it, such as from a signal handler, gets others."""

    def __init__(self) -> None:
        self.free: dict[Any, np.ndarray] = {}
        self.bytes = 0

    def take(self, use: str, shape: tuple[int, ...], dtype: Any, *layout: int, zeroed: bool = True) -> np.ndarray:
        """A buffer; elements that no use with this layout writes are still zero, unless it need not be ``zeroed``."""
        buffer = self.free.pop((use, shape, dtype, layout), None)
        if buffer is None:
            return np.zeros(shape, dtype)
        self.bytes -= buffer.nbytes
        return buffer

    def give(self, buffer: np.ndarray, use: str, *layout: int) -> None:
        """Keep a buffer for the next call. (After an error it is not given back, since it may be half-written.)"""
        key = (use, buffer.shape, buffer.dtype, layout)
        if key in self.free or buffer.nbytes > _KEPT:
            return
        if self.bytes + buffer.nbytes > _KEPT:  # shapes keep changing
            self.free.clear()
            self.bytes = 0
        self.free[key] = buffer
        self.bytes += buffer.nbytes


_own_scratch = _Scratch()


# ``xp`` is NumPy or, while calls are noted for a plan, its double, which has scratch memory of its own and looks at
# values in each run: a kernel must not look at them by itself.


def _scratch(xp: Any) -> Any:
    return _own_scratch if xp is np else xp.scratch


def _declined(xp: Any, predicate: Callable[..., bool], *arrays: Array) -> bool:
    """Whether to return NotImplemented, because ``predicate`` holds for the values of these arrays."""
    return predicate(*arrays) if xp is np else xp.declined(predicate, *arrays)


def _batch_last(xp: Any, x: Array) -> np.ndarray:
    """x[N C H W] as contiguous m[C H W N], without a copy if it already lies in memory like that."""
    return xp.ascontiguousarray(x.transpose(1, 2, 3, 0))


def _view(a: np.ndarray, shape: tuple[int, ...], strides: tuple[int, ...], offset: int = 0) -> np.ndarray:
    """A strided view of a contiguous array, with strides and offset in elements, checked against a's bounds."""
    item = a.itemsize
    return type(a)(shape, a.dtype, a, offset * item, tuple([step * item for step in strides]))


def _covered(op: Conv2d | Conv2dWeightGrad | ConvTranspose2d, *arrays: Array) -> bool:
    """Whether the kernels in this file cover the op's parameters and its inputs' dtypes."""
    dtype = arrays[0].dtype
    return (
        op.dilation == (1, 1)
        and op.groups == 1
        and dtype.char in "fd"
        and all(a.dtype == dtype and a.size for a in arrays)
    )


def _column_blocks(
    xp: Any, m: np.ndarray, kernel_w: int, positions: int, stride_w: int, width: int
) -> Iterator[tuple[int, int, np.ndarray]]:
    """Blocks of cols[H C KW q]: pixel (h, ow * stride_w + kw) of m[C H W N] for q of the OW * N pairs (ow, n).

    Yields the first pair and q with each block. All blocks share one buffer. ``width`` is the largest q that suits the
    product; with a stride above 1, blocks hold whole ow.
    """
    c, h, w, n = m.shape
    pairs = positions * n
    width = max(_NARROWEST, min(width, _CACHED // (h * c * kernel_w)))
    if stride_w == 1:
        equal = math.ceil(pairs / math.ceil(pairs / width))
        width = min(pairs, math.ceil(equal / 16) * 16)
    else:
        width = min(positions, max(1, width // n)) * n
    cols = _scratch(xp).take("cols", (h * c * kernel_w * width,), m.dtype, zeroed=False)
    for start in range(0, pairs, width):
        q = min(width, pairs - start)
        block = cols[: h * c * kernel_w * q].reshape(h, c, kernel_w, q)
        if stride_w == 1:
            xp.copyto(block, _view(m, (h, c, kernel_w, q), (w * n, h * w * n, n, 1), start))
        else:
            pixels = _view(
                m, (h, c, kernel_w, q // n, n), (w * n, h * w * n, n, stride_w * n, 1), start * stride_w
            )  # fmt: skip
            xp.copyto(block.reshape(h, c, kernel_w, q // n, n), pixels)
        yield start, q, block
    _scratch(xp).give(cols, "cols")


def _all_columns(xp: Any, m: np.ndarray, kernel: tuple[int, int]) -> np.ndarray:
    """cols[C*KH*KW OH*OW*N]: the pixel (oh + kh, ow + kw) of m[C H W N], for few images.

    With one product instead of many small ones, a weight gradient of one image takes 9 us instead of 25, and a plan
    makes the columns only once for both directions.
    """
    (c, h, w, n), (kh, kw) = m.shape, kernel
    oh, ow = h - kh + 1, w - kw + 1
    cols = _scratch(xp).take("all", (c * kh * kw, oh * ow * n), m.dtype, zeroed=False)
    pixels = _view(m, (c, kh, kw, oh, ow * n), (h * w * n, w * n, n, w * n, 1))
    xp.copyto(cols.reshape(c, kh, kw, oh, ow * n), pixels)
    return cols


@kernel("cpu", "conv2d")
def conv2d(op: Conv2d, xp: Any, x: Array, weight: Array, bias: Array | None = None) -> Array:
    """Tricks 1 and 2: for each output row, w[F KH*C*KW] times KH rows of cols."""
    if not _covered(op, x, weight, *([] if bias is None else [bias])):
        return NotImplemented
    m = _batch_last(xp, pad_images(xp, x, op.padding))
    (c, h, w, n), (f, _, kh, kw), (sh, sw) = m.shape, weight.shape, op.stride
    oh, ow = (h - kh) // sh + 1, (w - kw) // sw + 1
    y = xp.empty((f, oh, ow, n), m.dtype)
    if (kh, kw) == (h, w):  # one window that covers the whole map: a full layer
        xp.matmul(weight.reshape(f, c * h * w), m.reshape(c * h * w, n), out=y.reshape(f, n))
    elif sh == sw == 1 and f * c * kh * kw * oh * ow * n <= _FEW:
        cols = _all_columns(xp, m, (kh, kw))
        xp.matmul(weight.reshape(f, c * kh * kw), cols, out=y.reshape(f, oh * ow * n))
        _scratch(xp).give(cols, "all")
    else:
        row, k = c * kw, kh * c * kw
        w2 = weight.transpose(0, 2, 1, 3).reshape(f, k)
        for start, q, cols in _column_blocks(xp, m, kw, ow, sw, _SMALL_PRODUCT // (f * k)):
            windows = _view(cols, (oh, k, q), (sh * row * q, q, 1))
            xp.matmul(w2, windows, out=_view(y, (oh, f, q), (ow * n, oh * ow * n, 1), start))
    if bias is not None:
        y += bias[:, None, None, None]
    return y.transpose(3, 0, 1, 2)


@kernel("cpu", "conv2d_weight_grad")
def conv2d_weight_grad(op: Conv2dWeightGrad, xp: Any, x: Array, gy: Array) -> Array:
    """Tricks 1 and 2: for each output row, gy[F q] times the transpose of a row of cols, for each kernel row.

    Without AVX-512, all kernel rows share a product, and for few maps several output rows do: of products[t F, (KH + t
    - 1) C KW], t sums of F maps that each begin a kernel row lower, the rest is not used. Packing the columns for
    LeNet-5's 6 first maps takes longer than multiplying, so this takes 0.75 times the time in spite of the waste.
    """
    if not _covered(op, x, gy):
        return NotImplemented
    m, g = _batch_last(xp, pad_images(xp, x, op.padding)), _batch_last(xp, gy)
    (c, h, w, n), (f, oh, ow, _), (kh, kw), (sh, sw) = m.shape, g.shape, op.kernel_size, op.stride
    if (kh, kw) == (h, w):  # one window that covers the whole map
        a, b = g.reshape(f, n), m.reshape(c * h * w, n).T
        gw = xp.empty((f, c, kh, kw), m.dtype)
        product = xp.multiply if n == 1 else xp.matmul  # OpenBLAS is slow for products of two vectors
        product(a, b, out=gw.reshape(f, c * h * w))
        return gw
    if sh == sw == 1 and f * c * kh * kw * oh * ow * n <= _FEW:
        cols, gw = _all_columns(xp, m, (kh, kw)), xp.empty((f, c, kh, kw), m.dtype)
        xp.matmul(g.reshape(f, oh * ow * n), cols.T, out=gw.reshape(f, c * kh * kw))
        _scratch(xp).give(cols, "all")
        return gw
    row = c * kw
    at_once = 1 if _AVX512 or sh > 1 else next((t for t in (4, 2) if oh % t == 0 and t * f <= 24), 1)
    taps, products = (1, kh) if _AVX512 and kh * row > 32 else (kh + at_once - 1, 1)
    total: np.ndarray | None = None
    for start, q, cols in _column_blocks(xp, m, kw, ow, sw, _SMALL_PRODUCT // (f * taps * row)):
        windows = _view(
            cols, (oh // at_once, products, q, taps * row), (at_once * sh * row * q, row * q, 1, q)
        )  # fmt: skip
        rows = _view(g, (oh // at_once, at_once, f, q), (at_once * ow * n, ow * n, oh * ow * n, 1), start)
        part = xp.matmul(rows.reshape(oh // at_once, 1, at_once * f, q), windows)
        part = xp.add.reduce(part, axis=0)  # over the output rows: (products, t*F, taps*C*KW)
        total = part if total is None else xp.add(total, part, out=total)
    assert total is not None  # there is at least one block
    if products > 1:
        return xp.array(total.reshape(kh, f, c, kw).transpose(1, 2, 0, 3), order="C")
    total = total.reshape(at_once, f, taps, c, kw)
    gw = total[0, :, :kh]
    for i in range(1, at_once):
        gw = gw + total[i, :, i : i + kh]
    return xp.array(gw.transpose(0, 2, 1, 3), order="C")


@kernel("cpu", "conv_transpose2d")
def conv_transpose2d(op: ConvTranspose2d, xp: Any, x: Array, weight: Array, bias: Array | None = None) -> Array:
    """Tricks 3 and 4: for each output row, w[C*KW KH*F] times KH framed rows of x; then add the KW shifted rows."""
    if not _covered(op, x, weight, *([] if bias is None else [bias])):
        return NotImplemented
    if op.stride != (1, 1):
        return _interleaved(op, xp, x, weight, bias)
    if op.output_padding != (0, 0):
        return NotImplemented
    m = _batch_last(xp, x)
    (f, h, w, n), (_, c, kh, kw), (ph, pw), dtype = m.shape, weight.shape, op.padding, m.dtype
    oh, ow = h + kh - 1, w + kw - 1  # before the padding is cut off
    y = xp.empty((c, oh, ow, n), dtype)
    if h == w == 1:
        xp.matmul(weight.reshape(f, c * kh * kw).T, m.reshape(f, n), out=y.reshape(c * kh * kw, n))
    elif not (many := f * c * kh * kw * h * w * n > _MANY) and _declined(xp, _not_finite, weight):
        return NotImplemented  # the frame's zeros times these would be NaN where there is no pixel at all
    else:
        pairs = w * n
        # Row (c, kw) of a product goes to (c * KW + kw) * pitch + (KW - 1) * n. Read at a row stride of pitch - n, row
        # kw is shifted by kw pixels; the zeros between the rows stand for the pixels that it does not reach.
        rows, pitch, first = c * kw, (ow + 1) * n, (kw - 1) * n
        at_once = max(1, min(oh, _CACHED // (rows * pitch)))
        w2 = weight[:, :, ::-1].transpose(1, 3, 2, 0).reshape(c * kw, kh * f)
        ones = xp.ones(kw, dtype)
        parts = _parts(rows * kh * f, pairs)
        q = pairs // parts
        framed = _scratch(xp).take("framed", (oh + kh - 1, f, pairs), dtype, kh)
        spread = _scratch(xp).take("spread", (at_once * rows * pitch + kw * n,), dtype, pitch, pairs, kw)
        framed[kh - 1 : kh - 1 + h] = m.reshape(f, h, pairs).transpose(1, 0, 2)
        for top in range(0, oh, at_once):
            count = min(at_once, oh - top)
            for t, alike, low, high in _bands(h, kh, top, top + count) if many else [(top, count, 0, kh)]:
                windows = _view(
                    framed, (alike, parts, (high - low) * f, q), (f * pairs, q, pairs, 1), (t + low) * f * pairs
                )  # fmt: skip
                out = _view(
                    spread, (alike, parts, rows, q), (rows * pitch, q, pitch, 1), first + (t - top) * rows * pitch
                )  # fmt: skip
                xp.matmul(w2[:, low * f : high * f], windows, out=out)
            shifted = _view(
                spread, (count, c, kw, ow * n), (rows * pitch, kw * pitch, pitch - n, 1), first
            )  # fmt: skip
            xp.matmul(ones, shifted, out=_view(y, (count, c, ow * n), (ow * n, oh * ow * n, 1), top * ow * n))
        _scratch(xp).give(framed, "framed", kh)
        _scratch(xp).give(spread, "spread", pitch, pairs, kw)
    y = y[:, ph : oh - ph, pw : ow - pw]
    if bias is not None:
        y += bias[:, None, None, None]
    return y.transpose(3, 0, 1, 2)


def _bands(h: int, kh: int, top: int, bottom: int) -> Iterator[tuple[int, int, int, int]]:
    """Output rows top..bottom-1 in runs: the first, how many, and the range of framed rows under them that are x's."""
    for (low, high), run in itertools.groupby(
        range(top, bottom), lambda t: (max(0, kh - 1 - t), min(kh, kh - 1 + h - t))
    ):
        rows = list(run)
        yield rows[0], len(rows), low, high


def _interleaved(op: ConvTranspose2d, xp: Any, x: Array, weight: Array, bias: Array | None) -> Array:
    """A stride of SH, SW makes SH * SW images that interlock in y: each is added up in long runs, then put in place.

    DCGAN's generator, 16 images of 128 x 16 x 16 to 64 x 32 x 32: 16 ms instead of 21.
    """
    (n, f, h, w), (_, c, kh, kw), (sh, sw) = x.shape, weight.shape, op.stride
    oh, ow = op.output_size((h, w), (kh, kw))
    ph, pw = op.padding
    cols = xp.matmul(weight.reshape(f, c * kh * kw).T, _batch_last(xp, x).reshape(f, h * w * n))
    cols = cols.reshape(c, kh, kw, h, w, n)
    images = xp.zeros((sh, sw, c, -(-(oh + 2 * ph) // sh), -(-(ow + 2 * pw) // sw), n), x.dtype)
    for i in range(kh):
        for j in range(kw):
            part = images[i % sh, j % sw, :, i // sh : i // sh + h, j // sw : j // sw + w]
            part += cols[:, i, j]
    y = xp.empty((c, oh, ow, n), x.dtype)
    for i in range(sh):
        for j in range(sw):
            # Row t of this image is row i + t SH - PH of y, if y has such a row; columns likewise.
            top, left = -((i - ph) // sh) if i < ph else 0, -((j - pw) // sw) if j < pw else 0
            target = y[:, i + top * sh - ph :: sh, j + left * sw - pw :: sw]
            target[...] = images[i, j, :, top : top + target.shape[1], left : left + target.shape[2]]
    if bias is not None:
        y += bias[:, None, None, None]
    return y.transpose(3, 0, 1, 2)


def _parts(multiplications: int, columns: int) -> int:
    """The fewest equal parts of ``columns`` that make each product small; 1 if the parts would be slivers."""
    for parts in range(1, max(2, columns // _NARROWEST + 1)):
        if columns % parts == 0 and multiplications * (columns // parts) <= _SMALL_PRODUCT:
            return parts
    return 1


@kernel("cpu", "avg_pool2d_grad")
def avg_pool2d_grad(op: AvgPool2dGrad, xp: Any, gy: Array) -> Array:
    """Without overlaps: repeat the columns once, then write each row KH times, in long runs."""
    (kh, kw), (h, w), (oh, ow) = op.kernel_size, op.size, gy.shape[2:]
    if op.stride != op.kernel_size or op.padding != (0, 0) or (oh * kh, ow * kw) != (h, w) or gy.dtype.char not in "fd":
        return NotImplemented
    return _upsampled(xp, _batch_last(xp, gy) * gy.dtype.type(1 / (kh * kw)), kh, kw)


def _upsampled(xp: Any, share: np.ndarray, kh: int, kw: int) -> Array:
    """gx[N C OH*KH OW*KW] from share[C OH OW N], each element KH KW times."""
    c, oh, ow, n = share.shape
    columns = xp.empty((c, oh, ow, kw, n), share.dtype)
    for j in range(kw):
        columns[:, :, :, j] = share
    gx = xp.empty((c, oh, kh, ow * kw * n), share.dtype)
    gx[...] = columns.reshape(c, oh, 1, ow * kw * n)
    return gx.reshape(c, oh * kh, ow * kw, n).transpose(3, 0, 1, 2)


@kernel("cpu", "subsample2d")
def subsample2d(op: Subsample2d, xp: Any, x: Array, weight: Array, bias: Array | None = None) -> Array:
    """Add the rows of each window, in long runs, then its columns (see `_window_sums`)."""
    if not _alike(x, weight, *([] if bias is None else [bias])):
        return NotImplemented
    y = _window_sums(xp, x, op.kernel_size) * weight[:, None, None, None]  # a plan keeps the sums for the gradient
    if bias is not None:
        y += bias[:, None, None, None]
    return y.transpose(3, 0, 1, 2)


@kernel("cpu", "subsample2d_weight_grad")
def subsample2d_weight_grad(op: Subsample2dWeightGrad, xp: Any, x: Array, gy: Array) -> Array:
    """As above, then one product with ones per channel."""
    if not _alike(x, gy):
        return NotImplemented
    s = _window_sums(xp, x, op.kernel_size) * _batch_last(xp, gy)
    return xp.matmul(s.reshape(len(s), s.size // len(s)), xp.ones(s.size // len(s), s.dtype))


@kernel("cpu", "subsample2d_transpose")
def subsample2d_transpose(op: Subsample2dTranspose, xp: Any, gy: Array, weight: Array) -> Array:
    """Repeat the columns once, then write each row KH times, in long runs."""
    (kh, kw), (h, w), (oh, ow) = op.kernel_size, op.size, gy.shape[2:]
    if (oh * kh, ow * kw) != (h, w) or not _alike(gy, weight):
        return NotImplemented
    return _upsampled(xp, _batch_last(xp, gy) * weight[:, None, None, None], kh, kw)


def _alike(*arrays: Array) -> bool:
    """Whether all are of one dtype, float32 or float64, and none is empty."""
    return arrays[0].dtype.char in "fd" and all(a.dtype == arrays[0].dtype and a.size for a in arrays)


def _window_sums(xp: Any, x: Array, kernel_size: tuple[int, int]) -> np.ndarray:
    """s[C OH OW N]: the sums of x[N C H W] over adjacent windows; pixels that fill no window are left out."""
    m, (kh, kw) = _batch_last(xp, x), kernel_size
    oh, ow = m.shape[1] // kh, m.shape[2] // kw
    rows = m[:, : oh * kh : kh] + m[:, 1 : oh * kh : kh] if kh > 1 else m
    for i in range(2, kh):
        rows += m[:, i : oh * kh : kh]
    s = rows[:, :, : ow * kw : kw] + rows[:, :, 1 : ow * kw : kw] if kw > 1 else rows
    for j in range(2, kw):
        s += rows[:, :, j : ow * kw : kw]
    return s


@kernel("cpu", "max_pool2d_grad")
def max_pool2d_grad(op: MaxPool2dGrad, xp: Any, x: Array, gy: Array) -> Array:
    """Without overlaps: each pixel takes the bits of gy if it is the first in its window to equal the maximum."""
    (kh, kw), (n, c, h, w), (_, _, oh, ow) = op.kernel_size, x.shape, gy.shape
    if op.stride != op.kernel_size or op.padding != (0, 0) or (oh * kh, ow * kw) != (h, w) or not gy.size:
        return NotImplemented
    if gy.dtype.char not in "fd" or x.dtype != gy.dtype:
        return NotImplemented
    pixels = [window for _, _, window in window_pixels(op.kernel_size, op.stride, (1, 1), (oh, ow))]
    y = x[pixels[0]]
    for window in pixels[1:]:
        y = xp.maximum(y, x[window])
    if _declined(xp, _has_nan, y):  # a NaN equals nothing
        return NotImplemented
    gx = empty_images(xp, n, c, h, w, gy.dtype)
    free = xp.ones_like(y, bool)  # windows whose maximum has not been found yet
    for window in pixels:
        first = xp.equal(x[window], y)
        first &= free
        free ^= first
        _masked(xp, gy, first, out=gx[window])
    return gx


@kernel("cpu", "where")
def where(op: Where, xp: Any, condition: Array, a: Any, b: Any) -> Array:
    """Bits by a mask, if both branches are arrays or one is 0, as in ReLU's gradient.

    For C1's maps of 64 images: 84 us instead of 1,200 with a 0, 330 with two arrays.
    """
    arrays = [x for x in (a, b) if isinstance(x, np.ndarray)]
    if not arrays or not condition.ndim or any(x.shape != condition.shape for x in arrays):
        return NotImplemented
    x = arrays[0]
    if x.dtype.char not in "fd":
        return NotImplemented
    if len(arrays) == 1:
        other = a if x is b else b
        if type(other) is not float or other:
            return NotImplemented
        return _masked(xp, x, condition if x is a else ~condition)
    if x.size <= _NO_GAIN or a.dtype != b.dtype or a.strides != b.strides:
        return NotImplemented
    bits = np.dtype(f"i{x.itemsize}")
    differing = xp.bitwise_xor(a.view(bits), b.view(bits))
    xp.bitwise_and(differing, xp.negative(condition.view(np.int8)), out=differing)
    return xp.bitwise_xor(differing, b.view(bits), out=differing).view(x.dtype)


def _masked(xp: Any, x: np.ndarray, condition: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """x where the condition holds, else 0: x's bits AND a mask of all ones or all zeros.

    np.where branches on every element, and multiplying x by the condition would turn inf times 0 into NaN.
    """
    bits = np.dtype(f"i{x.itemsize}")
    mask = xp.negative(condition.view(np.int8))  # all ones or all zeros, which NumPy widens on the way
    out = xp.empty_like(x) if out is None else out
    xp.bitwise_and(x.view(bits), mask, out=out.view(bits))
    return out


# On a few thousand elements argmax takes 0.5 us, max 1.5; it gives the place of the first NaN, if there is one.


def _has_nan(y: np.ndarray) -> bool:
    flat = y.ravel("K")  # in memory order, which is no copy
    return bool(flat.size) and math.isnan(flat.item(flat.argmax()))


def _not_finite(y: np.ndarray) -> bool:
    return not (math.isfinite(y.item(y.argmin())) and math.isfinite(y.item(y.argmax())))


@kernel("cpu", "matmul")
def matmul(op: MatMul, xp: Any, a: Array, b: Array) -> Array:
    """A column times a row, a full layer's weight gradient at batch 1: NumPy's multiply, 3 us instead of 11."""
    return xp.multiply(a, b) if a.ndim == b.ndim == 2 and a.shape[1] == 1 else NotImplemented


@kernel("cpu", "tanh_grad")
def tanh_grad(op: TanhGrad, xp: Any, gy: Array, y: Array) -> Array:
    """One new array and four passes over it (five if scaled), instead of three arrays."""
    if gy.shape != y.shape or gy.dtype != y.dtype or not y.ndim or y.dtype.kind != "f":
        return NotImplemented
    gx = xp.multiply(y, y)
    if op.slope != op.amplitude:
        gx *= op.slope / op.amplitude
    xp.subtract(op.slope * op.amplitude, gx, out=gx)
    xp.multiply(gy, gx, out=gx)
    return NotImplemented if _declined(xp, _has_nan, gx) else gx


@kernel("cpu", "broadcast_to")
def broadcast_to(op: BroadcastTo, xp: Any, x: Array) -> Array:
    """A single number, as in the gradient of a mean: filling few elements takes 1 us, and so does a view made here.

    NumPy's own function takes 8.
    """
    if x.size != 1:
        return NotImplemented
    if math.prod(op.shape) > 4096:
        return _repeated(x, op.shape)
    y = xp.empty(op.shape, x.dtype)
    y[...] = x.reshape(())
    return y


def _repeated(x: Array, shape: tuple[int, ...]) -> Array:
    """The one number in x, as a view of this shape that cannot be written to."""
    y = _view(x, shape, (0,) * len(shape))
    y.flags.writeable = False
    return y


class _Philox(threading.local):
    """A generator whose key and counter are set for each call, since making one takes 20 us."""

    def __init__(self) -> None:
        self.bits = np.random.Philox()
        self.start = self.bits.state
        self.start["state"]["counter"][:] = 0
        self.start["state"]["key"][1] = 0


_philox = _Philox()


@kernel("cpu", "bernoulli")
def bernoulli(op: Bernoulli, xp: Any, x: Array, key: Array) -> Array:
    """NumPy's own Philox."""
    _philox.start["state"]["key"][0] = int(key)
    _philox.bits.state = _philox.start
    words = _philox.bits.random_raw(-(-x.size // 2)).astype("<u8", copy=False)
    return words.view("<u4")[: x.size].reshape(x.shape) >= np.uint32(op.limit)
