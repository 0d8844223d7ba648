"""Faster forwards on NumPy arrays, for the ops in which programs other than LeNet-5 spend their time.

As in `cpu.py`, a kernel computes what its op's `forward` computes, or declines. What makes the difference, in
microseconds for 524,288 float32 numbers on one core with AVX2 (a multiplication takes 100, an exponential 800):

1. Sums are products with ones, for which OpenBLAS keeps several partial sums: of rows of 64 in 60 instead of 270, of
   rows of 1000 in 60 instead of the 200 that NumPy takes to add float32 in float64. Products sum stretches of at most
   2,048 numbers, whose sums are added pairwise, so the error does not grow with the length.
2. No choice between numbers: `np.where` and `np.power` branch on each element, which takes 2,300 and 6,000 if the
   branches cannot be predicted. Bits are selected by masks instead, and small powers are products.
3. `np.maximum` is fast for arrays only (100), not for an array and a number (250).
4. `np.add.at` is fast on a single axis only (1,000 instead of 7,000), so an index of rows becomes one of elements, or
   of pairs of elements, taken for complex numbers (600).
5. The softmax of numbers of moderate size needs no subtraction of the largest, which takes 460 to find in rows of 64.
   If a sum of exponentials overflows, or is so small that digits are lost (below 1e-31), the kernel declines.
6. An operand that is repeated for each row of less than 8,192 elements, NumPy copies into a buffer of that size, over
   and over. If it has been repeated that often before, a row of 128 is added in 80 instead of 130.
"""

import math
from functools import lru_cache
from typing import Any

import numpy as np

from ..backend import Array, kernel
from ..index import AT
from ..ops.elementwise import Add, Chain, ExtremeGrad, Multiply, Power, ReLU, Sigmoid, SigmoidGrad, Subtract
from ..ops.indexing import AddAt, AddTo, GetItem, OneHot
from ..ops.reduction import Mean, Sum, Var
from ..ops.softmax import (
    CrossEntropy,
    CrossEntropyGrad,
    LogSoftmax,
    MSELoss,
    SoftCrossEntropy,
    SoftCrossEntropyGrad,
    Softmax,
    SoftmaxGrad,
)
from ..ops.standardize import Standardize, StandardizeGrad
from ..shapes import normalize_axes
from ..tensor import Number
from .cpu import _declined, _has_nan, _masked, _not_finite, _repeated, _scratch

_STRETCH = 256  # numbers that a product adds one after the other: of equal ones, the sum is off by 10 eps at most
_FEW = 64  # elements up to which the plain op is as fast
_FEW_TO_ADD = 1024  # the same for sums
_SMALL = 4096  # the same for ops of many calls
_BUFFER = 8192  # elements of NumPy's buffers
_LEAST = {letter: 2.0**26 / float(np.finfo(letter).max) for letter in "fd"}  # below which a sum loses digits


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
    if x.size <= _FEW_TO_ADD:
        return NotImplemented
    y = _sum(xp, x, op.axis, op.keepdims)
    return y if y is NotImplemented else xp.divide(y, x.size // y.size, out=y)


def _sum(xp: Any, x: Array, axis: int | tuple[int, ...] | None, keepdims: bool) -> Array:
    if x.dtype.char not in "fd" or not x.size or (x.size <= _FEW_TO_ADD and x.ndim < 4):  # images are batch-last
        return NotImplemented
    order, blocks, kept, back, shape = _sum_plan(x.shape, x.strides, axis, keepdims)
    m = x.transpose(order)
    if not m.flags.c_contiguous:
        return NotImplemented
    if not blocks:  # nothing to add
        return xp.array(x.reshape(shape))
    for block in blocks[:-1]:
        m = _middle_sum(xp, m.reshape(block))
    before, _, after = blocks[-1]
    y = xp.empty(shape if back is None else kept, x.dtype)
    _middle_sum(xp, m.reshape(blocks[-1]), out=y.reshape(before, after))
    return y if back is None else y.transpose(back).reshape(shape)


@lru_cache(maxsize=1024)
def _sum_plan(shape: tuple[int, ...], strides: tuple[int, ...], axis: Any, keepdims: bool) -> tuple[Any, ...]:
    """How to sum an array that lies in memory like this.

    The order of its axes in memory; the blocks (before, count, after) whose middle axis is summed, innermost first; the
    shape of the sum in that order; the order that leads back, None if it is the same; and the shape of the result.
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
    back = None if rest == sorted(rest) else [rest.index(a) for a in sorted(rest)]
    result = tuple(1 if a in axes else shape[a] for a in range(len(shape)) if keepdims or a not in axes)
    return order, blocks, [shape[a] for a in rest], back, result


def _middle_sum(xp: Any, x: Array, factor: Array | None = None, out: Array | None = None) -> Array:
    """The sum of x[A R B], or of x times a factor of its shape, over R: y[A B]."""
    a, r, b = x.shape
    if b == 1:
        out = xp.empty((a, b), x.dtype) if out is None else out
        _row_sum(xp, x.reshape(a, r), None if factor is None else factor.reshape(a, r), out.reshape(a))
        return out
    if factor is not None:
        product = xp.multiply(x, factor, out=_scratch(xp).take("product", x.shape, x.dtype, zeroed=False))
        out = _middle_sum(xp, product, out=out)
        _scratch(xp).give(product, "product")
        return out
    if r <= _STRETCH:
        return xp.matmul(xp.ones(r, x.dtype), x, out=out)
    whole = r - r % _STRETCH
    parts = xp.matmul(xp.ones(_STRETCH, x.dtype), x[:, :whole].reshape(a, -1, _STRETCH, b))  # (A, R/S, B)
    y = xp.add.reduce(xp.ascontiguousarray(parts.transpose(0, 2, 1)), axis=2, out=out)  # pairwise
    return xp.add(y, _middle_sum(xp, x[:, whole:]), out=y) if whole < r else y


def _row_sum(xp: Any, x: Array, factor: Array | None = None, out: Array | None = None) -> Array:
    """The sum of x[A R], or of x times a factor of its shape, over R: y[A]."""
    a, r = x.shape
    if r <= _STRETCH:
        return xp.matmul(x, xp.ones(r, x.dtype), out=out) if factor is None else xp.vecdot(x, factor, out=out)
    whole = r - r % _STRETCH
    stretches, ones = x[:, :whole].reshape(a, -1, _STRETCH), xp.ones(_STRETCH, x.dtype)
    if factor is None:
        parts = xp.matmul(stretches, ones)  # (A, R/S)
    else:
        parts = xp.vecdot(stretches, factor[:, :whole].reshape(stretches.shape))
    y = xp.add.reduce(parts, axis=1, out=out)  # pairwise
    rest = None if factor is None else factor[:, whole:]
    return xp.add(y, _row_sum(xp, x[:, whole:], rest), out=y) if whole < r else y


# Elementwise


@kernel("cpu", "add")
def add(op: Add, xp: Any, a: Any, b: Any) -> Array:
    """Trick 6."""
    return _on_rows(xp, xp.add, a, b)


@kernel("cpu", "subtract")
def subtract(op: Subtract, xp: Any, a: Any, b: Any) -> Array:
    """Trick 6."""
    return _on_rows(xp, xp.subtract, a, b)


@kernel("cpu", "multiply")
def multiply(op: Multiply, xp: Any, a: Any, b: Any) -> Array:
    """Trick 6; a number times a number that is repeated, as the gradient of a mean is, is one multiplication."""
    if type(a) in (int, float) and b.size > 1 and not any(b.strides):
        return _repeated(xp.multiply(a, b[(slice(1),) * b.ndim]), b.shape)
    return _on_rows(xp, xp.multiply, a, b)


@kernel("cpu", "chain")
def chain(op: Chain, xp: Any, g: Array, s: Array) -> Array:
    """The product, searched for NaN, which 0 times a non-finite slope would give; a few slopes are searched instead."""
    if g.dtype != s.dtype or not g.ndim or g.dtype.kind != "f":
        return NotImplemented
    y = _product(xp, g, s)
    declined = _declined(xp, _not_finite, s) if 8 * s.size < y.size else _declined(xp, _has_nan, y)
    return NotImplemented if declined else y


@np.errstate(invalid="ignore")
def _product(xp: Any, a: Array, b: Array) -> Array:
    y = _on_rows(xp, xp.multiply, a, b)
    return xp.multiply(a, b) if y is NotImplemented else y


def _on_rows(xp: Any, function: Any, a: Any, b: Any, out: Array | None = None) -> Array:
    """Trick 6, for an array and one that is repeated for each of its rows: function(a, b), in that order."""
    if not isinstance(a, np.ndarray) or not isinstance(b, np.ndarray) or a.shape == b.shape:
        return NotImplemented
    large, small = (a, b) if a.size > b.size else (b, a)
    if (
        large.size < 4 * _BUFFER
        or small.dtype != large.dtype
        or not (large.flags.c_contiguous and small.flags.c_contiguous)
    ):
        return NotImplemented
    count = _rows_together(large.shape, small.shape)
    if not count:
        return NotImplemented
    out = xp.empty(large.shape, large.dtype) if out is None else out
    repeated = xp.empty((count, small.size), small.dtype)
    repeated[...] = small.reshape(small.size)
    repeated, large = repeated.reshape(repeated.size), large.reshape(-1, repeated.size)
    function(*((large, repeated) if a.size > b.size else (repeated, large)), out=out.reshape(large.shape))
    return out


@lru_cache(maxsize=1024)
def _rows_together(large: tuple[int, ...], small: tuple[int, ...]) -> int:
    """How many rows of ``large``, each as large as ``small``, make a run of a buffer or more; 0 if that cannot be."""
    row = small[next((a for a, n in enumerate(small) if n > 1), len(small)) :]
    size, elements = math.prod(row), math.prod(large)
    if len(small) > len(large) or not row or large[len(large) - len(row) :] != row or size >= _BUFFER:
        return 0
    least = -(-_BUFFER // size)
    return next((n for n in range(least, 2 * least) if elements // size % n == 0), 0)


@kernel("cpu", "power")
def power(op: Power, xp: Any, a: Array | Number, b: Array | Number) -> Array:
    """Trick 2: powers of 2 and 3 as products, which are the same numbers up to rounding; the power of 1 is a copy."""
    if type(b) not in (int, float) or b not in (1, 2, 3) or not _floats(a):
        return NotImplemented
    if b == 1:
        return xp.array(a)
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


@kernel("cpu", "sigmoid_grad")
def sigmoid_grad(op: SigmoidGrad, xp: Any, gy: Array, y: Array) -> Array:
    """In one array."""
    if not _floats(gy, y) or gy.shape != y.shape:
        return NotImplemented
    gx = xp.subtract(1, y)
    with np.errstate(invalid="ignore"):
        xp.multiply(gx, y, out=gx)
        xp.multiply(gy, gx, out=gx)
    return NotImplemented if _declined(xp, _has_nan, gx) else gx


@kernel("cpu", "relu")
def relu(op: ReLU, xp: Any, x: Array) -> Array:
    """Trick 3, with zeros for a part of x, which repeats."""
    if not _floats(x) or x.size <= _FEW:
        return NotImplemented
    order, back = _memory_order(x.strides)
    m = x.transpose(order)
    if not m.flags.c_contiguous:
        return NotImplemented
    rows = m.reshape(m.shape[0], m.size // m.shape[0])
    zeros = xp.zeros(rows.shape[1:] if rows.shape[1] > _FEW else rows.shape, x.dtype)
    return xp.maximum(rows, zeros).reshape(m.shape).transpose(back)


@lru_cache(maxsize=1024)
def _memory_order(strides: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The order of axes as they lie in memory, and the order that leads back."""
    order = sorted(range(len(strides)), key=lambda a: -abs(strides[a]))
    return tuple(order), tuple([order.index(a) for a in range(len(order))])


@kernel("cpu", "extreme_grad")
def extreme_grad(op: ExtremeGrad, xp: Any, gy: Array, x: Any, other: Any) -> Array:
    """Trick 2: bits of gy selected by a comparison, divided by 2 at ties."""
    if not _floats(gy, x) or gy.shape != x.shape or getattr(other, "shape", ()) not in ((), gy.shape):
        return NotImplemented
    compare = xp.greater_equal if op.extreme == "maximum" else xp.less_equal
    gx = _masked(xp, gy, compare(x, other))
    xp.divide(gx, xp.add(xp.equal(x, other).view(np.int8), 1, dtype=gx.dtype), out=gx)
    return NotImplemented if _declined(xp, _has_nan, x) else gx  # which no comparison finds


# Standardization


@kernel("cpu", "var")
def var(op: Var, xp: Any, x: Array) -> Array:
    """Trick 1."""
    parts = _as_middle(op.axis, x) if x.size > _FEW_TO_ADD else None
    if parts is None:
        return NotImplemented
    centred = _scratch(xp).take("centred", parts[0].shape, x.dtype, zeroed=False)
    y = _variance(xp, parts[0], centred)
    _scratch(xp).give(centred, "centred")
    _, _, kept, back, shape = _sum_plan(x.shape, x.strides, op.axis, op.keepdims)
    y = y.reshape(kept)
    return (y if back is None else y.transpose(back)).reshape(shape)


@kernel("cpu", "standardize")
def standardize(op: Standardize, xp: Any, x: Array) -> Array:
    """Trick 1, in one array."""
    y = xp.empty_like(x)
    parts = _as_middle(op.axis, x, y)
    if parts is None:
        return NotImplemented
    m, out = parts
    _each(xp, xp.multiply, out, _centred(xp, m, op.eps, out), out)
    return y


@kernel("cpu", "standardize_grad")
def standardize_grad(op: StandardizeGrad, xp: Any, gy: Array, x: Array) -> Array:
    """Trick 1, in one array. With c = x - mean and r = y / c: gx = r (gy - mean(gy) - c r^2 mean(gy c))."""
    gx = xp.empty_like(x)
    parts = _as_middle(op.axis, x, gy, gx)
    if parts is None:
        return NotImplemented
    m, g, out = parts
    r = _centred(xp, m, op.eps, out)
    along = _middle_mean(xp, g, out)
    xp.multiply(along, xp.multiply(r, r), out=along)
    _each(xp, xp.multiply, out, along, out)
    xp.subtract(g, out, out=out)
    _each(xp, xp.subtract, out, _middle_mean(xp, g), out)
    _each(xp, xp.multiply, out, r, out)
    return gx


def _as_middle(axis: Any, *arrays: Array) -> list[Array] | None:
    """The arrays as views x[A R B], R being all of ``axis``; None if they do not lie alike in memory, or not so."""
    first = arrays[0]
    if not _floats(*arrays) or any(x.strides != first.strides or x.shape != first.shape for x in arrays):
        return None
    order, blocks, *_ = _sum_plan(first.shape, first.strides, axis, True)
    m = [x.transpose(order) for x in arrays]
    return [x.reshape(blocks[0]) for x in m] if len(blocks) == 1 and m[0].flags.c_contiguous else None


def _centred(xp: Any, x: Array, eps: float, out: Array) -> Array:
    """Write x[A R B] minus its mean over R to ``out``; 1 / sqrt(variance + eps)[A 1 B]."""
    r = xp.add(_variance(xp, x, out), eps)
    return xp.divide(1, xp.sqrt(r, out=r), out=r)


def _variance(xp: Any, x: Array, out: Array) -> Array:
    """Write x[A R B] minus its mean over R to ``out``; the mean of its square[A 1 B]."""
    _each(xp, xp.subtract, x, _middle_mean(xp, x), out)
    return _middle_mean(xp, out, out)


def _each(xp: Any, function: Any, x: Array, s: Array, out: Array) -> None:
    """Write function(x[A R B], s[A 1 B]) to ``out``, with trick 6."""
    if _on_rows(xp, function, x, s, out) is NotImplemented:
        function(x, s, out=out)


def _middle_mean(xp: Any, x: Array, factor: Array | None = None) -> Array:
    return xp.divide(_middle_sum(xp, x, factor), x.shape[1])[:, None]


# Softmax and losses


@kernel("cpu", "mse_loss")
def mse_loss(op: MSELoss, xp: Any, x: Array, target: Array) -> Array:
    """In one array."""
    if not _floats(x, target):
        return NotImplemented
    y = xp.subtract(x, target)
    return xp.multiply(y, y, out=y)


@kernel("cpu", "softmax")
def softmax(op: Softmax, xp: Any, x: Array) -> Array:
    """Tricks 1 and 5, in one array."""
    if not _floats(x) or op.axis not in (-1, x.ndim - 1) or not x.flags.c_contiguous:
        return NotImplemented
    y = xp.empty_like(x)
    rows = y.reshape(-1, x.shape[-1])
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        added = _exponentials(xp, x.reshape(rows.shape), rows)
        xp.divide(rows, added, out=rows)
    return NotImplemented if _declined(xp, _spoilt, added) else y


@kernel("cpu", "softmax_grad")
def softmax_grad(op: SoftmaxGrad, xp: Any, gy: Array, y: Array) -> Array:
    """Trick 1, in one array."""
    if not _floats(gy, y) or op.axis not in (-1, y.ndim - 1) or not (y.flags.c_contiguous and gy.flags.c_contiguous):
        return NotImplemented
    gx = xp.empty_like(y)
    g, p, out = (a.reshape(-1, y.shape[-1]) for a in (gy, y, gx))
    xp.subtract(g, _row_sum(xp, g, p)[:, None], out=out)
    xp.multiply(out, p, out=out)
    return gx


def _spoilt(*sums: np.ndarray) -> bool:
    """Trick 5: whether a sum of exponentials is not finite, or so small that digits are lost."""
    return not all(y.min() > _LEAST[y.dtype.char] and y.max() < np.inf for y in sums)


@kernel("cpu", "log_softmax")
def log_softmax(op: LogSoftmax, xp: Any, x: Array) -> Array:
    """As above, in two arrays."""
    if not _floats(x) or op.axis not in (-1, x.ndim - 1) or not x.flags.c_contiguous:
        return NotImplemented
    y = xp.empty_like(x)
    rows = y.reshape(-1, x.shape[-1])
    _shifted(xp, x.reshape(rows.shape), rows)
    added = _exponentials(xp, rows, xp.empty(rows.shape, x.dtype))
    xp.subtract(rows, xp.log(added), out=rows)
    return y


@kernel("cpu", "cross_entropy")
def cross_entropy(op: CrossEntropy, xp: Any, logits: Array, labels: Array) -> Array:
    """Trick 5: y = log(sum_k e**logit_k / e**logit_l), where l is the label, which loses no digits to a difference."""
    if logits.size <= _SMALL or not _floats(logits):
        return NotImplemented
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        e = xp.exp(logits)
        added, chosen = _row_sum(xp, e), e[xp.arange(len(labels)), labels]
        ratio = xp.divide(added, chosen)
        y = xp.log(ratio)
    return NotImplemented if _declined(xp, _spoilt, added, chosen, ratio) else y


@kernel("cpu", "cross_entropy_grad")
def cross_entropy_grad(op: CrossEntropyGrad, xp: Any, gy: Array, logits: Array, labels: Array) -> Array:
    """Tricks 1 and 5, in one array."""
    if logits.size <= _SMALL or not _floats(gy, logits) or logits.shape[1] == 1:  # one class: exactly 0
        return NotImplemented
    gx = xp.empty(logits.shape, logits.dtype)
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        added = _exponentials(xp, logits, gx)
        xp.multiply(gx, xp.divide(gy[:, None], added), out=gx)
        gx[xp.arange(len(labels)), labels] -= gy
    return NotImplemented if _declined(xp, _spoilt, added) else gx


@kernel("cpu", "soft_cross_entropy")
def soft_cross_entropy(op: SoftCrossEntropy, xp: Any, logits: Array, target: Array) -> Array:
    """y = W log sum_k e**s_k - sum_k target_k s_k with s = logits - c, W = sum_k target_k, for any c.

    c is the mean of the logits, weighted by the targets. Where something overflows, where a logit is -inf, and where W
    is 0, the kernel declines.
    """
    if logits.size <= _SMALL or not _floats(logits, target) or logits.shape[1] == 1:  # one class: exactly 0
        return NotImplemented
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        weight = _row_sums(xp, target)
        e = xp.subtract(logits, xp.divide(_row_sum(xp, logits, target)[:, None], weight))
        rest = _row_sum(xp, e, target)
        added = _exponentials(xp, e, e)
        y = xp.subtract(xp.multiply(xp.log(added), weight)[:, 0], rest)
    return NotImplemented if _declined(xp, _spoilt, added) else y


@kernel("cpu", "soft_cross_entropy_grad")
def soft_cross_entropy_grad(op: SoftCrossEntropyGrad, xp: Any, gy: Array, logits: Array, target: Array) -> Array:
    """Tricks 1 and 5, in one array."""
    if logits.size <= _SMALL or not _floats(gy, logits, target) or logits.shape[1] == 1:
        return NotImplemented
    gx = xp.empty(logits.shape, logits.dtype)
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        added = _exponentials(xp, logits, gx)
        xp.multiply(gx, xp.divide(_row_sums(xp, target), added), out=gx)
        xp.subtract(gx, target, out=gx)
        xp.multiply(gx, gy[:, None], out=gx)
    return NotImplemented if _declined(xp, _spoilt, added) else gx


def _shifted(xp: Any, x: Array, out: Array) -> Array:
    """x[R K] minus the largest number of each row, so that no exponential overflows."""
    return xp.subtract(x, xp.max(x, axis=1, keepdims=True), out=out)


def _exponentials(xp: Any, x: Array, out: Array) -> Array:
    """Write e**x[R K] to ``out``; its sums[R 1] over the rows."""
    return _row_sums(xp, xp.exp(x, out=out))


def _row_sums(xp: Any, x: Array) -> Array:
    return _row_sum(xp, x)[:, None]


# Indexing


@kernel("cpu", "add_at")
def add_at(op: AddAt, xp: Any, x: Array, *index: Array) -> Array:
    """Trick 4, for arrays of integers that index the first axes."""
    if not _indexes_rows(op.pattern, x, index):
        return NotImplemented
    return _added_rows(xp, xp.zeros(op.shape, x.dtype), x, index)


@kernel("cpu", "add_to")
def add_to(op: AddTo, xp: Any, base: Array, x: Array, *index: Array) -> Array:
    """As above."""
    if not _indexes_rows(op.pattern, x, index) or not _floats(base, x):
        return NotImplemented
    return _added_rows(xp, xp.array(base, order="C"), x, index)


def _indexes_rows(pattern: tuple[Any, ...], x: Array, index: tuple[Array, ...]) -> bool:
    count = len(index)
    return count > 0 and pattern == (AT,) * count and _floats(x) and all(each.dtype.char in "lq" for each in index)


def _added_rows(xp: Any, y: Array, x: Array, index: tuple[Array, ...]) -> Array:
    """Add x to the rows of y that the index names."""
    place: Any = 0
    for size, each in zip(y.shape, index, strict=False):
        place = place * size + xp.where(each < 0, each + size, each)
    rest = math.prod(y.shape[len(index) :])
    dtype = np.dtype(x.dtype.char.upper()) if rest % 2 == 0 else x.dtype
    rest = rest // 2 if rest % 2 == 0 else rest
    if rest > 1:
        place = (place * rest)[..., None] + xp.arange(rest)
    xp.add.at(y.reshape(-1).view(dtype), place.reshape(-1), xp.ascontiguousarray(x).reshape(-1).view(dtype))
    return y


@kernel("cpu", "getitem")
def getitem(op: GetItem, xp: Any, x: Array, *index: Array) -> Array:
    """Rows by `np.take`: 50 instead of 90."""
    if op.pattern != (AT,) or index[0].dtype.char not in "lq":
        return NotImplemented
    return xp.take(x, index[0], axis=0)


@kernel("cpu", "one_hot")
def one_hot(op: OneHot, xp: Any, labels: Array) -> Array:
    """Write the ones into an array of zeros: 65 instead of 450 for 512 labels of 1,000 classes."""
    if labels.size * op.classes <= _SMALL:
        return NotImplemented
    inside = (labels >= 0) & (labels < op.classes)
    y = xp.zeros((len(labels), op.classes), op.dtype)
    y[xp.arange(len(labels)), xp.where(inside, labels, 0)] = inside
    return y
