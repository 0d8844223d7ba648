"""Faster forwards on CuPy arrays: one launch, or two, where a composition of CuPy's functions takes several.

LeNet-5's layers have so little to do that launching decides: what counts is how many kernels there are. They are
written in CUDA C, in `cuda/*.cu`, and compiled by CuPy when they are first used, for one dtype each. All give the same
bits from run to run: none adds floats by atomics. None reads a value back or needs cuBLAS, so a CUDA graph can capture
them. Inputs may lie in memory in any order; outputs are in C order, as those of CuPy's functions are.

They cover float32 and float64 and return NotImplemented for the rest, for groups, empty arrays, arrays of 2^31 elements
or more, and for large convolutions and products, which are left to cuBLAS.
"""

import math
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ..backend import Array, backend_of, kernel
from ..ops.conv import Conv2d, Conv2dWeightGrad, ConvTranspose2d
from ..ops.elementwise import TanhGrad
from ..ops.indexing import OneHot
from ..ops.lenet_1998 import ScaledTanh, Subsample2d, Subsample2dTranspose, Subsample2dWeightGrad
from ..ops.linalg import Linear, MatMul
from ..ops.pool import AvgPool2d, AvgPool2dGrad, MaxPool2d, MaxPool2dGrad
from ..ops.random import Bernoulli
from ..ops.reduction import Mean, Sum
from ..ops.softmax import CrossEntropy, CrossEntropyGrad, SoftCrossEntropy, SoftCrossEntropyGrad
from ..shapes import normalize_axes, reduced_shape

_C_NAMES = {
    "float32": "float", "float64": "double", "bool": "bool", "int64": "long long", "int32": "int", "int16": "short",
    "int8": "signed char", "uint64": "unsigned long long", "uint32": "unsigned", "uint16": "unsigned short",
    "uint8": "unsigned char",
}  # fmt: skip
_THREADS = 128  # of a block in which threads do not work together
_TOGETHER = 256  # of a block in which they do, as product.cu and sum.cu have it
_BUSY = 128  # blocks that keep a GPU busy
_CHANNELS = 8  # as in conv.cu
_ARRAYS = 64  # as in optim.cu
_LARGEST_WEIGHT = 2**16  # elements up to which a convolution is computed directly
_MANY = 2**31 - 2**16  # elements, of which the kernels count fewer in an int
_LARGE = 256  # a product is left to cuBLAS if all its three extents are above this


@cache
def _function(xp: Any, file: str, name: str, words: tuple[tuple[str, Any], ...]) -> Any:
    """The kernel of that name in a file, in which words stand for types and numbers."""
    source = (Path(__file__).parent / "cuda" / file).read_text(encoding="utf-8")
    options = ("-std=c++17", *[f"-D{word}={meaning}" for word, meaning in words])
    return xp.RawModule(code=source, options=options).get_function(name)


@lru_cache(maxsize=4096)
def _struct(*values: int) -> np.ndarray:
    """A struct of ints, which is passed to a kernel by value."""
    return np.array(values, np.int32).view(f"V{4 * len(values)}")


def _launch(
    xp: Any, where: str, grid: tuple[int, ...], arguments: Sequence[Any], threads: int = _THREADS, **words: Any
) -> None:
    """Run a kernel, named "file.name"."""
    file, _, name = where.partition(".")
    _function(xp, f"{file}.cu", name, tuple(words.items()))(grid, (threads,), tuple(arguments))


def _blocks(elements: int) -> tuple[int, ...]:
    """A grid with a thread for each element."""
    return (-(-elements // _THREADS),)


def _steps(x: Array | None) -> list[int]:
    """The steps of x in memory, in elements; a single 0 if there is no x."""
    return [0] if x is None else [step // x.itemsize for step in x.strides]


def _real(x: Array) -> str:
    return _C_NAMES[x.dtype.name]


def _covered(*arrays: Array | None) -> bool:
    """Whether all are of one dtype, float32 or float64, not empty, and small enough for an int to count."""
    given = [a for a in arrays if a is not None]
    return given[0].dtype.char in "fd" and all(a.dtype == given[0].dtype and 0 < _extent(a) < _MANY for a in given)


def _extent(x: Array) -> int:
    """How far x reaches in memory, in elements; 0 if it is empty."""
    if x.flags.c_contiguous or not x.size:
        return x.size
    return 1 + sum([(size - 1) * abs(step) for size, step in zip(x.shape, x.strides, strict=True)]) // x.itemsize


# Convolution and products


@kernel("cuda", "conv2d")
def conv2d(op: Conv2d, xp: Any, x: Array, weight: Array, bias: Array | None = None) -> Array:
    """A thread makes a pixel of several maps; with a single window that covers the map it is a matrix product."""
    (n, c, h, w), (f, _, kh, kw) = x.shape, weight.shape
    if op.groups != 1 or not _covered(x, weight, bias):
        return NotImplemented
    if op.padding == (0, 0) and (kh, kw) == (h, w):
        return _product(xp, x.reshape(n, c * h * w), weight.reshape(f, c * h * w).T, bias, (n, f, 1, 1))
    oh, ow = (
        (size + 2 * p - d * (k - 1) - 1) // s + 1
        for size, k, s, p, d in zip((h, w), (kh, kw), op.stride, op.padding, op.dilation, strict=True)
    )
    return _direct(xp, op, x, weight, bias, (n, f, oh, ow), _steps(weight))


@kernel("cuda", "conv_transpose2d")
def conv_transpose2d(op: ConvTranspose2d, xp: Any, x: Array, weight: Array, bias: Array | None = None) -> Array:
    """A thread makes a pixel of several maps; with a single window that makes the map it is a matrix product."""
    (n, f, h, w), (_, c, kh, kw) = x.shape, weight.shape
    if op.groups != 1 or not _covered(x, weight, bias):
        return NotImplemented
    oh, ow = op.output_size((h, w), (kh, kw))
    if bias is None and op.padding == (0, 0) and (oh, ow) == (kh, kw):
        return _product(xp, x.reshape(n, f), weight.reshape(f, c * kh * kw), None, (n, c, kh, kw))
    step_f, step_c, *steps = _steps(weight)
    return _direct(xp, op, x, weight, bias, (n, c, oh, ow), [step_c, step_f, *steps])


def _direct(
    xp: Any,
    op: Conv2d | ConvTranspose2d,
    x: Array,
    weight: Array,
    bias: Array | None,
    shape: tuple[int, int, int, int],
    steps: list[int],
) -> Array:
    """y of ``shape`` [N F OH OW]; ``steps`` are the weight's for an output channel, an input channel, KH and KW."""
    (n, f, oh, ow), (kh, kw) = shape, weight.shape[2:]
    if weight.size > _LARGEST_WEIGHT or math.prod(shape) >= _MANY:
        return NotImplemented
    y = xp.empty(shape, x.dtype)
    window = kh, kw, *op.stride, *op.padding, *op.dilation
    sizes = _struct(*x.shape, f, oh, ow, *window, *_steps(x), *steps, *_steps(bias))
    grid = *_blocks(n * oh * ow), -(-f // _CHANNELS)
    _launch(xp, f"conv.{op.name}", grid, (x, weight, bias, y, sizes), Real=_real(x))
    return y


@kernel("cuda", "conv2d_weight_grad")
def conv2d_weight_grad(op: Conv2dWeightGrad, xp: Any, x: Array, gy: Array) -> Array:
    """A matrix product, of which one factor is the pixels under the windows, read where they are."""
    (n, c, h, w), (_, f, oh, ow), (kh, kw) = x.shape, gy.shape, op.kernel_size
    if op.groups != 1 or not _covered(x, gy):
        return NotImplemented
    if op.padding == (0, 0) and (kh, kw) == (h, w):
        return _product(xp, gy.reshape(n, f).T, x.reshape(n, c * h * w), None, (f, c, kh, kw))
    extents, window, steps = (
        (f, c * kh * kw, n * oh * ow),
        (*op.stride, *op.padding, *op.dilation),
        _steps(x) + _steps(gy),
    )

    def sizes(part: int) -> tuple[int, ...]:
        return f, c, kh, kw, n, h, w, oh, ow, part, *window, *steps

    return _tiled(xp, op.name, extents, x.dtype, [x, gy], sizes, (f, c, kh, kw))


@kernel("cuda", "matmul")
def matmul(op: MatMul, xp: Any, a: Array, b: Array) -> Array:
    """Of two matrices."""
    if a.ndim == b.ndim == 2 and _covered(a, b):
        return _product(xp, a, b)
    return _unreversed(op, xp, a, b)


@kernel("cuda", "linear")
def linear(op: Linear, xp: Any, x: Array, weight: Array, bias: Array | None = None) -> Array:
    """Of two matrices, with the bias."""
    if x.ndim == 2 and _covered(x, weight, bias):
        return _product(xp, x, weight.T, bias)
    return _unreversed(op, xp, x, weight, *([] if bias is None else [bias]))


def _unreversed(op: MatMul | Linear, xp: Any, *arrays: Array) -> Array:
    """Products of several matrices are left to CuPy, which fails if one of their strides is negative."""
    if all(step >= 0 for x in arrays for step in x.strides):
        return NotImplemented
    return op.forward(xp, *[x.copy() for x in arrays])  # also axes of size 1, which count as contiguous anyhow


def _product(xp: Any, a: Array, b: Array, bias: Array | None = None, shape: tuple[int, ...] | None = None) -> Array:
    """y[M N] = a[M K] b[K N] + bias[N], in another ``shape`` if one is given."""
    (m, k), n = a.shape, b.shape[1]
    steps = *_steps(a), *_steps(b), *_steps(bias)
    inputs = [a, b, bias]
    return _tiled(xp, "matmul", (m, n, k), a.dtype, inputs, lambda part: (m, n, k, part, *steps), shape or (m, n))


def _tiled(
    xp: Any,
    name: str,
    extents: tuple[int, int, int],
    dtype: Any,
    inputs: list[Array | None],
    sizes: Callable[[int], tuple[int, ...]],
    shape: tuple[int, ...],
) -> Array:
    """y[M N] in this ``shape``, by a kernel of product.cu; ``sizes`` are its struct, given the length of a part of K.

    Tiles are as large as leaves enough blocks to keep a GPU busy. If there are too few of the smallest, sums are cut.
    """
    m, n, k = extents
    if min(extents) > _LARGE or m * n >= _MANY or m > 8 * 65535:  # a grid has no more rows of blocks
        return NotImplemented

    def blocks(rows: int, columns: int) -> tuple[int, int]:
        return -(-n // (32 * columns)), -(-m // (8 * rows))

    fitting = [(r, c) for r, c in ((4, 4), (2, 4), (1, 4), (4, 1), (2, 1)) if m > 4 * r and (c == 1 or n > 64)]
    rows, columns = next((each for each in fitting if math.prod(blocks(*each)) >= _BUSY), (1, 1))
    grid = blocks(rows, columns)
    cut = max(1, min(_BUSY // math.prod(grid), k // 256)) if len(inputs) < 3 or inputs[2] is None else 1
    part = -(-k // (32 * cut)) * 32  # whole tiles
    parts = -(-k // part)
    y = xp.empty(shape if parts == 1 else (parts, m, n), dtype)
    words = {"Real": _C_NAMES[np.dtype(dtype).name], "ROWS": rows, "COLUMNS": columns}
    _launch(xp, f"product.{name}", (*grid, parts), (*inputs, y, _struct(*sizes(part))), _TOGETHER, **words)
    return y if parts == 1 else _added(xp, y, 1.0, dtype, shape)


# Sums


@kernel("cuda", "sum")
def sum_(op: Sum, xp: Any, x: Array) -> Array:
    """A block adds each sum, or a part of it."""
    return _summed(op, xp, x, 1)


@kernel("cuda", "mean")
def mean(op: Mean, xp: Any, x: Array) -> Array:
    """A sum, divided."""
    axes = normalize_axes(op.name, op.axis, x.ndim)
    return _summed(op, xp, x, math.prod([x.shape[a] for a in axes]))


def _summed(op: Sum | Mean, xp: Any, x: Array, divisor: int) -> Array:
    if not _covered(x) or x.ndim > 4:
        return NotImplemented
    gone = normalize_axes(op.name, op.axis, x.ndim)
    kept = [a for a in range(x.ndim) if a not in gone]
    count, outputs = math.prod([x.shape[a] for a in gone]), math.prod([x.shape[a] for a in kept])
    if outputs > (2**16 if count >= 8 else 2**10):  # a block would have little to do, many times
        return NotImplemented
    parts = max(1, min(_BUSY // outputs, count // 2048))
    steps = _steps(x)
    described = []
    for axes in (kept, gone):
        filler = [0] * (4 - len(axes))
        described += [*[1 for _ in filler], *[x.shape[a] for a in axes], *filler, *[steps[a] for a in axes]]
    shape = reduced_shape(op.name, x.shape, op.axis, op.keepdims)
    sizes = _struct(*described, outputs, count, -(-count // parts))
    if parts == 1:
        y = xp.empty(shape, x.dtype)
        words = {"Real": _real(x), "OUT": _real(x)}
        _launch(xp, "sum.sum", (outputs, 1), (x, y, float(divisor), sizes), _TOGETHER, **words)
        return y
    added = xp.empty((parts, outputs), np.float64)
    words = {"Real": _real(x), "OUT": "double"}
    _launch(xp, "sum.sum", (outputs, parts), (x, added, 1.0, sizes), _TOGETHER, **words)
    return _added(xp, added, divisor, x.dtype, shape)


def _added(xp: Any, x: Array, divisor: float, dtype: Any, shape: tuple[int, ...]) -> Array:
    """y, in this ``shape``: the sum of x[parts ...] over the parts, divided."""
    y = xp.empty(shape, dtype)
    arguments = x, y, float(divisor), np.int32(len(x)), np.int32(y.size)
    _launch(xp, "sum.add_parts", _blocks(y.size), arguments, Real=_real(x), OUT=_real(y))
    return y


# Pooling


@kernel("cuda", "avg_pool2d")
def avg_pool2d(op: AvgPool2d, xp: Any, x: Array) -> Array:
    """A thread makes a pixel."""
    return _pooled(op, xp, [x], x.shape, op.output_shape(x.shape)[2:], [*_steps(x), 0, 0, 0, 0])


@kernel("cuda", "max_pool2d")
def max_pool2d(op: MaxPool2d, xp: Any, x: Array) -> Array:
    """A thread makes a pixel."""
    return _pooled(op, xp, [x], x.shape, op.output_shape(x.shape)[2:], [*_steps(x), 0, 0, 0, 0])


@kernel("cuda", "avg_pool2d_grad")
def avg_pool2d_grad(op: AvgPool2dGrad, xp: Any, gy: Array) -> Array:
    """A thread makes a pixel, from the windows that it lies under."""
    return _pooled(op, xp, [gy], (*gy.shape[:2], *op.size), gy.shape[2:], [0, 0, 0, 0, *_steps(gy)], adjoint=True)


@kernel("cuda", "max_pool2d_grad")
def max_pool2d_grad(op: MaxPool2dGrad, xp: Any, x: Array, gy: Array) -> Array:
    """A thread makes a pixel, from the windows that it lies under and in which it is the first largest."""
    return _pooled(op, xp, [x, gy], x.shape, gy.shape[2:], [*_steps(x), *_steps(gy)], adjoint=True)


def _pooled(
    op: AvgPool2d | MaxPool2d | AvgPool2dGrad | MaxPool2dGrad,
    xp: Any,
    inputs: list[Array],
    images: tuple[int, ...],
    positions: tuple[int, ...],
    steps: list[int],
    adjoint: bool = False,
) -> Array:
    """The output of a kernel of pool.cu, which has the shape of the images if it is an adjoint."""
    if not _covered(*inputs) or math.prod(images) >= _MANY:
        return NotImplemented
    y = xp.empty(images if adjoint else (*images[:2], *positions), inputs[0].dtype)
    sizes = _struct(*images, *positions, *op.kernel_size, *op.stride, *op.padding, *steps)
    _launch(xp, f"pool.{op.name}", _blocks(y.size), (*inputs, y, sizes), Real=_real(y))
    return y


@kernel("cuda", "subsample2d")
def subsample2d(op: Subsample2d, xp: Any, x: Array, weight: Array, bias: Array | None = None) -> Array:
    """A thread makes a pixel."""
    if not _covered(x, weight, bias):
        return NotImplemented
    y = xp.empty(op.output_shape(x.shape, weight.shape), x.dtype)
    sizes = _struct(*x.shape, *y.shape[2:], *op.kernel_size, *_steps(x), 0, 0, 0, 0, *_steps(weight), *_steps(bias))
    _launch(xp, "subsample.subsample2d", _blocks(y.size), (x, weight, bias, y, sizes), Real=_real(y))
    return y


@kernel("cuda", "subsample2d_weight_grad")
def subsample2d_weight_grad(op: Subsample2dWeightGrad, xp: Any, x: Array, gy: Array) -> Array:
    """A thread makes a term; then the terms are summed."""
    if not _covered(x, gy):
        return NotImplemented
    terms = xp.empty(gy.shape, gy.dtype)
    sizes = _struct(*x.shape, *gy.shape[2:], *op.kernel_size, *_steps(x), *_steps(gy), 0, 0)
    _launch(xp, "subsample.weight_terms", _blocks(terms.size), (x, gy, terms, sizes), Real=_real(gy))
    return Sum((0, 2, 3), False).compute(backend_of(gy), [terms])


@kernel("cuda", "subsample2d_transpose")
def subsample2d_transpose(op: Subsample2dTranspose, xp: Any, gy: Array, weight: Array) -> Array:
    """A thread makes a pixel."""
    shape = *gy.shape[:2], *op.size
    if not _covered(gy, weight) or math.prod(shape) >= _MANY:
        return NotImplemented
    gx = xp.empty(shape, gy.dtype)
    sizes = _struct(*shape, *gy.shape[2:], *op.kernel_size, 0, 0, 0, 0, *_steps(gy), *_steps(weight), 0)
    _launch(xp, "subsample.subsample2d_transpose", _blocks(gx.size), (gy, weight, gx, sizes), Real=_real(gx))
    return gx


# Losses and activations


@kernel("cuda", "one_hot")
def one_hot(op: OneHot, xp: Any, labels: Array) -> Array:
    """A thread makes an element."""
    if op.dtype not in _C_NAMES or not 0 < labels.size * op.classes < _MANY:
        return NotImplemented
    y = xp.empty((*labels.shape, op.classes), op.dtype)
    arguments = labels, y, np.int32(len(labels)), np.int32(op.classes), np.int32(_steps(labels)[0])
    _launch(xp, "labels.one_hot", _blocks(y.size), arguments, LABEL=_real(labels), OUT=_real(y))
    return y


@kernel("cuda", "cross_entropy")
def cross_entropy(op: CrossEntropy, xp: Any, logits: Array, labels: Array) -> Array:
    """A thread makes a row's loss."""
    return _loss(xp, logits, labels, LABEL=_real(labels)) if labels.dtype.kind in "iu" else NotImplemented


@kernel("cuda", "cross_entropy_grad")
def cross_entropy_grad(op: CrossEntropyGrad, xp: Any, gy: Array, logits: Array, labels: Array) -> Array:
    """A thread makes a row."""
    return _loss_grad(xp, gy, logits, labels, LABEL=_real(labels)) if labels.dtype.kind in "iu" else NotImplemented


@kernel("cuda", "soft_cross_entropy")
def soft_cross_entropy(op: SoftCrossEntropy, xp: Any, logits: Array, target: Array) -> Array:
    """As above."""
    return _loss(xp, logits, target) if _covered(logits, target) else NotImplemented


@kernel("cuda", "soft_cross_entropy_grad")
def soft_cross_entropy_grad(op: SoftCrossEntropyGrad, xp: Any, gy: Array, logits: Array, target: Array) -> Array:
    """As above."""
    return _loss_grad(xp, gy, logits, target) if _covered(logits, target) else NotImplemented


def _loss(xp: Any, logits: Array, target: Array, **words: Any) -> Array:
    if not _covered(logits):
        return NotImplemented
    y = xp.empty(len(logits), logits.dtype)
    sizes = _struct(*logits.shape, *_steps(logits), *(*_steps(target), 0)[:2], 0)
    _launch(xp, "loss.cross_entropy", _blocks(len(y)), (logits, target, y, sizes), Real=_real(y), **words)
    return y


def _loss_grad(xp: Any, gy: Array, logits: Array, target: Array, **words: Any) -> Array:
    if not _covered(logits, gy):
        return NotImplemented
    gx = xp.empty(logits.shape, logits.dtype)
    sizes = _struct(*logits.shape, *_steps(logits), *(*_steps(target), 0)[:2], *_steps(gy))
    arguments = gy, logits, target, gx, sizes
    _launch(xp, "loss.cross_entropy_grad", _blocks(len(gx)), arguments, Real=_real(gx), **words)
    return gx


@kernel("cuda", "tanh_grad")
def tanh_grad(op: TanhGrad, xp: Any, gy: Array, y: Array) -> Array:
    """One pass over memory."""
    if gy.shape != y.shape or not _covered(gy, y):
        return NotImplemented
    gx = xp.empty(y.shape, y.dtype)
    arguments = (
        xp.ascontiguousarray(gy),
        xp.ascontiguousarray(y),
        gx,
        np.int32(y.size),
        float(op.amplitude),
        float(op.slope),
    )
    _launch(xp, "elementwise.tanh_grad", _blocks(y.size), arguments, Real=_real(y))
    return gx


@kernel("cuda", "scaled_tanh")
def scaled_tanh(op: ScaledTanh, xp: Any, x: Array) -> Array:
    """One pass over memory."""
    if not _covered(x):
        return NotImplemented
    y = xp.empty(x.shape, x.dtype)
    arguments = xp.ascontiguousarray(x), y, np.int32(x.size), float(op.amplitude), float(op.slope)
    _launch(xp, "elementwise.scaled_tanh", _blocks(y.size), arguments, Real=_real(y))
    return y


# Random choices


@kernel("cuda", "bernoulli")
def bernoulli(op: Bernoulli, xp: Any, x: Array, key: Array) -> Array:
    """A thread makes a block of random numbers, which decide about eight elements."""
    if key.dtype != "int64" or not 0 < x.size < _MANY:
        return NotImplemented
    y = xp.empty(x.shape, "bool")
    _launch(xp, "random.bernoulli", _blocks(-(-x.size // 8)), (key, y, np.int32(x.size), np.uint32(op.limit)))
    return y


# An optimiser's step


@kernel("cuda", "gather")
def gather(xp: Any, arrays: list[Array], vector: Array) -> Any:
    """Copy the arrays into the vector, one after the other."""
    return _at_once(xp, "gather", arrays, vector)


@kernel("cuda", "subtract_from")
def subtract_from(xp: Any, arrays: list[Array], vector: Array) -> Any:
    """Subtract the parts of the vector from the arrays."""
    return _at_once(xp, "subtract", arrays, vector)


def _at_once(xp: Any, name: str, arrays: list[Array], vector: Array) -> Any:
    if not _covered(vector, *arrays) or not all(a.flags.c_contiguous for a in arrays):
        return NotImplemented
    start = 0
    for first in range(0, len(arrays), _ARRAYS):
        some = arrays[first : first + _ARRAYS]
        sizes = tuple([a.size for a in some])
        part = vector[start : start + sum(sizes)]
        table = _table(tuple([a.data.ptr for a in some]), sizes)
        _launch(xp, f"optim.{name}", _blocks(part.size), (table, part, np.int32(part.size)), Real=_real(vector))
        start += part.size
    return None


@lru_cache(maxsize=256)
def _table(addresses: tuple[int, ...], sizes: tuple[int, ...]) -> np.ndarray:
    """The struct of that name in optim.cu, for arrays at these addresses."""
    table = np.zeros(1, [("address", np.int64, _ARRAYS), ("start", np.int32, _ARRAYS + 1), ("padding", np.int32)])
    table["address"][0, : len(addresses)] = addresses
    table["start"] = sum(sizes)
    table["start"][0, : len(sizes)] = np.cumsum([0, *sizes[:-1]])
    return table


@kernel("cuda", "adam")
def adam(
    xp: Any, gradient: Array, change: Array, m: Array, v: Array, betas: tuple[float, float], eps: Any, rate: Any
) -> Any:
    """Compute the amounts to subtract, and update m and v, in one pass; ``eps`` and ``rate`` may be on the device."""
    if not _covered(gradient, change, m, v):
        return NotImplemented
    known = isinstance(rate, float)
    numbers = (eps, rate) if known else (0.0, 0.0)
    addresses = [np.uintp(0 if known else x.data.ptr) for x in (eps, rate)]
    arguments = gradient, change, m, v, np.int32(gradient.size), *map(float, (*betas, *numbers)), *addresses
    _launch(xp, "optim.adam", _blocks(gradient.size), arguments, Real=_real(gradient))
    return None


@kernel("cuda", "set_numbers")
def set_numbers(xp: Any, vector: Array, numbers: Sequence[float]) -> Any:
    """Write a few numbers into a vector, without waiting for the device."""
    if not _covered(vector) or len(numbers) > 4:
        return NotImplemented
    arguments = vector, np.int32(len(numbers)), *map(float, (*numbers, 0, 0, 0, 0)[:4])
    _launch(xp, "optim.set_numbers", (1,), arguments, threads=4, Real=_real(vector))
    return None
