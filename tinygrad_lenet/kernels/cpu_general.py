"""Faster forwards on NumPy arrays, for the ops in which programs other than LeNet-5 spend their time.

As in `cpu.py`, a kernel computes what its op's `forward` computes, or declines. What makes the difference, in
microseconds for 524,288 float32 numbers on one core with AVX2 (a multiplication takes 100, an exponential 800):

1. Sums are products with ones, for which OpenBLAS keeps several partial sums: of rows of 64 in 60 instead of 270, of
   rows of 1000 in 60 instead of the 200 that NumPy takes to add float32 in float64. Products sum stretches of at most
   2,048 numbers, whose sums are added pairwise, so the error does not grow with the length.
2. No choice between numbers: `np.where` and `np.power` branch on each element, which takes 2,300 and 6,000 if the
   branches cannot be predicted. Bits are selected by masks instead, and small powers are products.
3. `np.maximum` is fast for arrays only (100), not for an array and a number (250).
4. `np.add.at` is fast on a single axis only (1,000 instead of 7,000), so an index of rows becomes one of elements.
"""

import math
from functools import lru_cache
from typing import Any

import numpy as np

from ..backend import Array, kernel
from ..index import AT
from ..ops.elementwise import ExtremeGrad, Power, ReLU, Sigmoid
from ..ops.indexing import AddAt, OneHot
from ..ops.reduction import Mean, Sum
from ..ops.softmax import CrossEntropy, CrossEntropyGrad, LogSoftmax, Softmax
from ..shapes import normalize_axes
from ..tensor import Number
from .cpu import _has_nan, _masked

_STRETCH = 2048  # numbers that a product adds with a small error
_FEW = 64  # elements up to which the plain op is as fast


def _floats(*arrays: Any) -> bool:
    """Whether all are arrays of one dtype, float32 or float64, with at least one axis and one element."""
    first = arrays[0]
    return isinstance(first, np.ndarray) and first.dtype.char in "fd" and all(
        isinstance(a, np.ndarray) and a.dtype == first.dtype and a.ndim and a.size for a in arrays
    )  # fmt: skip


# Sums


@kernel("cpu", "sum")
def sum_(op: Sum, xp: Any, x: Array) -> Array:
    """Trick 1, for any axes of an array that is contiguous in some order of its axes."""
    return _sum(xp, x, op.axis, op.keepdims)


@kernel("cpu", "mean")
def mean(op: Mean, xp: Any, x: Array) -> Array:
    """As above."""
    y = _sum(xp, x, op.axis, op.keepdims)
    return y if y is NotImplemented else xp.divide(y, x.size // y.size)


def _sum(xp: Any, x: Array, axis: int | tuple[int, ...] | None, keepdims: bool) -> Array:
    if x.dtype.char not in "fd" or x.size <= _FEW:
        return NotImplemented
    order, blocks, kept, back, shape = _sum_plan(x.shape, x.strides, axis, keepdims)
    y = x.transpose(order)
    if not y.flags.c_contiguous or not blocks:
        return NotImplemented
    for block in blocks:
        y = _middle_sum(xp, y.reshape(block))
    return y.reshape(kept).transpose(back).reshape(shape)


@lru_cache(maxsize=1024)
def _sum_plan(shape: tuple[int, ...], strides: tuple[int, ...], axis: Any, keepdims: bool) -> tuple[Any, ...]:
    """How to sum an array that lies in memory like this.

    The order of its axes in memory; the blocks (before, count, after) whose middle axis is summed, innermost first; the
    shape of the sum in that order; the order that leads back; and the shape of the result.
    """
    axes = normalize_axes("sum", axis, len(shape))
    order = sorted(range(len(shape)), key=lambda a: -abs(strides[a]))
    blocks = []
    before, count, after = math.prod(shape), 1, 1
    for a in reversed(order):
        before //= shape[a]
        if a in axes:
            count *= shape[a]
        else:
            if count > 1:
                blocks.append((before * shape[a], count, after))
                count = 1
            after *= shape[a]
    if count > 1:
        blocks.append((1, count, after))
    rest = [a for a in order if a not in axes]
    back = [rest.index(a) for a in sorted(rest)]
    result = tuple(1 if a in axes else shape[a] for a in range(len(shape)) if keepdims or a not in axes)
    return order, blocks, [shape[a] for a in rest], back, result


def _middle_sum(xp: Any, x: Array) -> Array:
    """The sum of x[A R B] over R: y[A B]."""
    a, r, b = x.shape
    whole = r - r % _STRETCH
    if r <= _STRETCH:
        return _ones_times(xp, x)
    parts = _ones_times(xp, x[:, :whole].reshape(a * (whole // _STRETCH), _STRETCH, b))  # (A R/S, B)
    parts = parts.reshape(a, whole // _STRETCH, b).transpose(0, 2, 1)
    y = xp.add.reduce(xp.ascontiguousarray(parts), axis=2)  # pairwise
    return xp.add(y, _ones_times(xp, x[:, whole:])) if whole < r else y


def _ones_times(xp: Any, x: Array) -> Array:
    a, r, b = x.shape
    if b == 1:
        return xp.matmul(x[:, :, 0], xp.ones(r, x.dtype)).reshape(a, 1)
    return xp.matmul(xp.ones((1, r), x.dtype), x).reshape(a, b)


# Elementwise


@kernel("cpu", "power")
def power(op: Power, xp: Any, a: Array | Number, b: Array | Number) -> Array:
    """Trick 2: powers of 2 and 3 as products, which are the same numbers up to rounding."""
    if type(b) not in (int, float) or b not in (2, 3) or not _floats(a):
        return NotImplemented
    y = xp.multiply(a, a)
    return y if b == 2 else xp.multiply(y, a, out=y)


@kernel("cpu", "sigmoid")
def sigmoid(op: Sigmoid, xp: Any, x: Array) -> Array:
    """In one array. Where e**-x overflows, 1 / inf is 0, which is right."""
    if not _floats(x):
        return NotImplemented
    y = xp.negative(x)
    with np.errstate(over="ignore"):
        xp.exp(y, out=y)
    xp.add(y, 1, out=y)
    return xp.divide(1, y, out=y)


@kernel("cpu", "relu")
def relu(op: ReLU, xp: Any, x: Array) -> Array:
    """Trick 3, with an array of zeros for a part of x that is repeated."""
    if not _floats(x) or x.size <= _FEW:
        return NotImplemented
    order = sorted(range(x.ndim), key=lambda a: -abs(x.strides[a]))
    m = x.transpose(order)
    if not m.flags.c_contiguous:
        return NotImplemented
    rows = m.reshape(m.shape[0], m.size // m.shape[0])
    zeros = xp.zeros(rows.shape[1:] if rows.shape[1] > _FEW else rows.shape, x.dtype)
    return xp.maximum(rows, zeros).reshape(m.shape).transpose([order.index(a) for a in range(x.ndim)])


@kernel("cpu", "extreme_grad")
def extreme_grad(op: ExtremeGrad, xp: Any, gy: Array, x: Array | Number, y: Array, other: Array | Number) -> Array:
    """Trick 2: bits of gy selected where x is y, divided by 2 where the other is, too."""
    if not _floats(gy, y) or gy.shape != y.shape:
        return NotImplemented
    chosen = xp.equal(x, y)
    gx = _masked(gy, chosen)
    tie = xp.logical_and(chosen, xp.equal(other, y), out=chosen)
    xp.divide(gx, xp.add(tie.view(np.int8), 1, dtype=gx.dtype), out=gx)
    return NotImplemented if _has_nan(y) else gx  # a NaN equals nothing


# Softmax and losses


@kernel("cpu", "softmax")
def softmax(op: Softmax, xp: Any, x: Array) -> Array:
    """Trick 1, in one array."""
    if not _floats(x) or op.axis not in (-1, x.ndim - 1) or not x.flags.c_contiguous:
        return NotImplemented
    e, added = _exponentials(xp, _shifted(xp, x.reshape(x.size // x.shape[-1], x.shape[-1])))
    return xp.multiply(e, xp.divide(1, added), out=e).reshape(x.shape)


@kernel("cpu", "log_softmax")
def log_softmax(op: LogSoftmax, xp: Any, x: Array) -> Array:
    """As above, in two arrays."""
    if not _floats(x) or op.axis not in (-1, x.ndim - 1) or not x.flags.c_contiguous:
        return NotImplemented
    shifted = _shifted(xp, x.reshape(x.size // x.shape[-1], x.shape[-1]))
    _, added = _exponentials(xp, shifted, xp.empty(shifted.shape, x.dtype))
    return xp.subtract(shifted, xp.log(added), out=shifted).reshape(x.shape)


@kernel("cpu", "cross_entropy")
def cross_entropy(op: CrossEntropy, xp: Any, logits: Array, target: Array) -> Array:
    """The target's terms in one product per row; 0 times a logit of -inf gives NaN, and then the kernel declines."""
    if not _floats(logits, target):
        return NotImplemented
    shifted = _shifted(xp, logits)
    _, added = _exponentials(xp, shifted, xp.empty(shifted.shape, shifted.dtype))
    with np.errstate(invalid="ignore"):
        y = xp.vecdot(shifted, target)
    log = xp.multiply(xp.log(added, out=added), _row_sums(xp, target), out=added)
    y = xp.subtract(log[:, 0], y, out=y)
    return NotImplemented if _has_nan(y) else y


@kernel("cpu", "cross_entropy_grad")
def cross_entropy_grad(op: CrossEntropyGrad, xp: Any, gy: Array, logits: Array, target: Array) -> Array:
    """In one array."""
    if not _floats(gy, logits, target):
        return NotImplemented
    e, added = _exponentials(xp, _shifted(xp, logits))
    xp.multiply(e, xp.divide(_row_sums(xp, target), added), out=e)
    xp.subtract(e, target, out=e)
    return xp.multiply(e, gy[:, None], out=e)


def _shifted(xp: Any, x: Array) -> Array:
    """x[R K] minus the largest number of each row, so that no exponential overflows."""
    return xp.subtract(x, xp.max(x, axis=1, keepdims=True))


def _exponentials(xp: Any, x: Array, out: Array | None = None) -> tuple[Array, Array]:
    """e**x, by default in x's memory, and its sums[R 1] over the rows of x[R K]."""
    e = xp.exp(x, out=x if out is None else out)
    return e, _row_sums(xp, e)


def _row_sums(xp: Any, x: Array) -> Array:
    r, k = x.shape
    return _middle_sum(xp, x.reshape(r, k, 1))


# Indexing


@kernel("cpu", "add_at")
def add_at(op: AddAt, xp: Any, x: Array, *index: Array) -> Array:
    """Trick 4, for arrays of integers that index the first axes."""
    count = len(index)
    if not count or op.pattern != (AT,) * count or not _floats(x):
        return NotImplemented
    rest = math.prod(op.shape[count:])
    place: Any = 0
    for axis, each in enumerate(index):
        size = op.shape[axis]
        if each.dtype.char not in "lq":
            return NotImplemented
        place = place * size + xp.where(each < 0, each + size, each)
    if rest > 1:
        place = (place * rest)[..., None] + xp.arange(rest)
    y = xp.zeros(math.prod(op.shape), x.dtype)
    xp.add.at(y, place.reshape(-1), x.reshape(-1))
    return y.reshape(op.shape)


@kernel("cpu", "one_hot")
def one_hot(op: OneHot, xp: Any, labels: Array) -> Array:
    """Write the ones into an array of zeros: 65 instead of 450 for 512 labels of 1,000 classes."""
    inside = (labels >= 0) & (labels < op.classes)
    y = xp.zeros((len(labels), op.classes), op.dtype)
    y[xp.arange(len(labels)), xp.where(inside, labels, 0)] = inside
    return y
