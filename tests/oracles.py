"""For every op an independent oracle: the NumPy function of that name, or plain loops after the op's docstring.

An oracle takes the op's inputs as NumPy arrays and its parameters by keyword. An op without one fails a test.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

Array = np.ndarray


def _each(function: Callable[..., float]) -> Callable[..., Array]:
    """Apply a function of Python numbers, and of the op's parameters, to each element of broadcast arrays."""

    def oracle(*inputs: Array, **parameters: Any) -> Array:
        inputs = np.broadcast_arrays(*inputs)
        y = np.empty(inputs[0].shape)
        for index in np.ndindex(y.shape):
            y[index] = function(*(float(x[index]) for x in inputs), **parameters)
        return y

    return oracle


def _with(pattern: tuple[Any, ...], arrays: tuple[Array, ...]) -> tuple[Any, ...]:
    rest = iter(arrays)
    return tuple(next(rest) if isinstance(part, str) else part for part in pattern)


def add_at(x: Array, *index: Array, pattern: tuple[Any, ...], shape: tuple[int, ...]) -> Array:
    y = np.zeros(shape)
    places = np.arange(y.size).reshape(shape)[_with(pattern, index)]
    for place, value in zip(places.ravel(), np.broadcast_to(x, places.shape).ravel(), strict=True):
        y.flat[place] += value
    return y


def assign(x: Array, value: Array, *index: Array, pattern: tuple[Any, ...]) -> Array:
    y = x.copy()
    places = np.arange(y.size).reshape(y.shape)[_with(pattern, index)]
    for place, each in zip(places.ravel(), np.broadcast_to(value, places.shape).ravel(), strict=True):
        y.flat[place] = each
    return y


def one_hot(labels: Array, *, classes: int, dtype: str) -> Array:
    y = np.zeros((len(labels), classes), dtype)
    for n, label in enumerate(labels):
        y[n, label] = 1
    return y


def bernoulli(x: Array, key: Array, *, p: float) -> Array:
    """From NumPy's Philox, one number of 32 bits after the other."""
    draws = np.random.Generator(np.random.Philox(key=int(key))).integers(2**32, size=x.shape, dtype=np.uint32)
    return draws >= p * 2**32


def _first_extreme(better: Callable[[float, float], bool]) -> Callable[..., Array]:
    def oracle(x: Array, *, axis: int | None) -> Array:
        def first(values: Array) -> int:
            best = 0
            for i, value in enumerate(values):
                if better(value, values[best]):
                    best = i
            return best

        if axis is None:
            return np.asarray(first(x.ravel()))
        y = np.zeros(np.delete(x.shape, axis), int)
        for index in np.ndindex(y.shape):
            y[index] = first(np.moveaxis(x, axis, -1)[index])
        return y

    return oracle


def pad(x: Array, value: Array, *, pad_width: tuple[tuple[int, int], ...]) -> Array:
    y = np.full([size + before + after for size, (before, after) in zip(x.shape, pad_width, strict=True)], value)
    for index in np.ndindex(x.shape):
        y[tuple(i + before for i, (before, _) in zip(index, pad_width, strict=True))] = x[index]
    return y


def matmul(a: Array, b: Array) -> Array:
    (m, k), n = a.shape[-2:], b.shape[-1]
    leading = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    a, b = np.broadcast_to(a, (*leading, m, k)), np.broadcast_to(b, (*leading, k, n))
    y = np.zeros((*leading, m, n))
    for index in np.ndindex(y.shape):
        *where, i, j = index
        y[index] = sum(a[(*where, i, t)] * b[(*where, t, j)] for t in range(k))
    return y


def linear(x: Array, weight: Array, bias: Array | None = None) -> Array:
    y = np.zeros((*x.shape[:-1], weight.shape[0]))
    for index in np.ndindex(y.shape):
        *where, o = index
        y[index] = sum(x[(*where, i)] * weight[o, i] for i in range(x.shape[-1])) + (0 if bias is None else bias[o])
    return y


# Convolutions: one step for each product of a weight and a pixel, over all images at once. `_taps` yields the output
# channel f, the input channel c within its group and in the image, the weight, the window and the pixel under it.


def _taps(
    c: int, f: int, size: Any, kernel: Any, positions: Any, stride: Any, padding: Any, dilation: Any, groups: int
) -> Iterator[tuple[int, ...]]:
    per_group = (c // groups, f // groups)
    for g, fi, ci, kh, kw, oh, ow in np.ndindex(groups, per_group[1], per_group[0], *kernel, *positions):
        h = stride[0] * oh + dilation[0] * kh - padding[0]
        w = stride[1] * ow + dilation[1] * kw - padding[1]
        if 0 <= h < size[0] and 0 <= w < size[1]:
            yield g * per_group[1] + fi, ci, g * per_group[0] + ci, kh, kw, oh, ow, h, w


def conv2d(x: Array, weight: Array, bias: Array | None = None, *, stride, padding, dilation, groups) -> Array:
    (n, c, *size), (f, _, *kernel) = x.shape, weight.shape
    positions = [len(range(0, size[a] + 2 * padding[a] - dilation[a] * (kernel[a] - 1), stride[a])) for a in (0, 1)]
    y = np.zeros((n, f, *positions))
    for fi, ci, cx, kh, kw, oh, ow, h, w in _taps(c, f, size, kernel, positions, stride, padding, dilation, groups):
        y[:, fi, oh, ow] += x[:, cx, h, w] * weight[fi, ci, kh, kw]
    if bias is not None:
        for fi in range(f):
            y[:, fi] += bias[fi]
    return y


def conv_transpose2d(
    x: Array, weight: Array, bias: Array | None = None, *, stride, padding, output_padding, dilation, groups
) -> Array:
    (n, f, *positions), (_, c_group, *kernel) = x.shape, weight.shape
    c = c_group * groups
    size = [
        (positions[a] - 1) * stride[a] - 2 * padding[a] + dilation[a] * (kernel[a] - 1) + 1 + output_padding[a]
        for a in (0, 1)
    ]
    y = np.zeros((n, c, *size))
    for fi, ci, cy, kh, kw, oh, ow, h, w in _taps(c, f, size, kernel, positions, stride, padding, dilation, groups):
        y[:, cy, h, w] += x[:, fi, oh, ow] * weight[fi, ci, kh, kw]
    if bias is not None:
        for ci in range(c):
            y[:, ci] += bias[ci]
    return y


def conv2d_weight_grad(x: Array, gy: Array, *, kernel_size, stride, padding, dilation, groups) -> Array:
    (_, c, *size), (_, f, *positions) = x.shape, gy.shape
    gw = np.zeros((f, c // groups, *kernel_size))
    for fi, ci, cx, kh, kw, oh, ow, h, w in _taps(
        c, f, size, kernel_size, positions, stride, padding, dilation, groups
    ):
        gw[fi, ci, kh, kw] += (gy[:, fi, oh, ow] * x[:, cx, h, w]).sum()
    return gw


def scatter_kernels(weight: Array, *, places: tuple[int, ...], channels: tuple[int, int]) -> Array:
    y = np.zeros((*channels, *weight.shape[1:]))
    for k, place in enumerate(places):
        y[place // channels[1]][place % channels[1]] = weight[k]
    return y


def gather_kernels(x: Array, *, places: tuple[int, ...]) -> Array:
    y = np.zeros((len(places), *x.shape[2:]))
    for k, place in enumerate(places):
        y[k] = x[place // x.shape[1]][place % x.shape[1]]
    return y


# Pooling: for each window the list of the pixels (h, w) that it has on the image, row by row.


def _positions(size: Any, kernel_size: Any, stride: Any, padding: Any) -> tuple[int, ...]:
    return tuple(len(range(0, size[a] + 2 * padding[a] - kernel_size[a] + 1, stride[a])) for a in (0, 1))


def _windows(
    size: Any, kernel_size: Any, stride: Any, padding: Any
) -> Iterator[tuple[int, int, list[tuple[int, int]]]]:
    for oh, ow in np.ndindex(_positions(size, kernel_size, stride, padding)):
        rows = [stride[0] * oh + i - padding[0] for i in range(kernel_size[0])]
        columns = [stride[1] * ow + j - padding[1] for j in range(kernel_size[1])]
        yield oh, ow, [(h, w) for h in rows for w in columns if 0 <= h < size[0] and 0 <= w < size[1]]


def _winner(image: Array, pixels: list[tuple[int, int]]) -> tuple[int, int]:
    """The first of the largest pixels; a NaN is larger than all."""
    best = pixels[0]
    for pixel in pixels[1:]:
        if image[pixel] > image[best] or (math.isnan(image[pixel]) and not math.isnan(image[best])):
            best = pixel
    return best


def avg_pool2d(x: Array, *, kernel_size, stride, padding) -> Array:
    y = np.zeros((*x.shape[:2], *_positions(x.shape[2:], kernel_size, stride, padding)))
    for oh, ow, pixels in _windows(x.shape[2:], kernel_size, stride, padding):
        for h, w in pixels:
            y[:, :, oh, ow] += x[:, :, h, w] / (kernel_size[0] * kernel_size[1])
    return y


def avg_pool2d_grad(gy: Array, *, kernel_size, stride, padding, size) -> Array:
    gx = np.zeros((*gy.shape[:2], *size))
    for oh, ow, pixels in _windows(size, kernel_size, stride, padding):
        for h, w in pixels:
            gx[:, :, h, w] += gy[:, :, oh, ow] / (kernel_size[0] * kernel_size[1])
    return gx


def max_pool2d(x: Array, **window: Any) -> Array:
    return max_pool2d_pick(x, x, **window)


def max_pool2d_pick(x: Array, g: Array, *, kernel_size, stride, padding) -> Array:
    y = np.zeros((*x.shape[:2], *_positions(x.shape[2:], kernel_size, stride, padding)))
    for oh, ow, pixels in _windows(x.shape[2:], kernel_size, stride, padding):
        for n, c in np.ndindex(x.shape[:2]):
            y[n, c, oh, ow] = g[n, c][_winner(x[n, c], pixels)]
    return y


def max_pool2d_grad(x: Array, gy: Array, *, kernel_size, stride, padding) -> Array:
    gx = np.zeros(x.shape)
    for oh, ow, pixels in _windows(x.shape[2:], kernel_size, stride, padding):
        for n, c in np.ndindex(x.shape[:2]):
            gx[n, c][_winner(x[n, c], pixels)] += gy[n, c, oh, ow]
    return gx


def subsample2d(x: Array, weight: Array, bias: Array | None = None, *, kernel_size) -> Array:
    y = np.zeros((*x.shape[:2], *_positions(x.shape[2:], kernel_size, kernel_size, (0, 0))))
    for oh, ow, pixels in _windows(x.shape[2:], kernel_size, kernel_size, (0, 0)):
        for n, c in np.ndindex(x.shape[:2]):
            y[n, c, oh, ow] = weight[c] * sum(x[n, c][pixel] for pixel in pixels) + (0 if bias is None else bias[c])
    return y


def subsample2d_transpose(gy: Array, weight: Array, *, kernel_size, size) -> Array:
    gx = np.zeros((*gy.shape[:2], *size))
    for oh, ow, pixels in _windows(size, kernel_size, kernel_size, (0, 0)):
        for n, c in np.ndindex(gy.shape[:2]):
            for pixel in pixels:
                gx[n, c][pixel] += weight[c] * gy[n, c, oh, ow]
    return gx


def subsample2d_weight_grad(x: Array, gy: Array, *, kernel_size) -> Array:
    gw = np.zeros(x.shape[1])
    for oh, ow, pixels in _windows(x.shape[2:], kernel_size, kernel_size, (0, 0)):
        for n, c in np.ndindex(x.shape[:2]):
            for pixel in pixels:
                gw[c] += gy[n, c, oh, ow] * x[n, c][pixel]
    return gw


def rbf(x: Array, centers: Array) -> Array:
    y = np.zeros((len(x), len(centers)))
    for n, k in np.ndindex(y.shape):
        for a, b in zip(x[n], centers[k], strict=True):
            y[n, k] += (a - b) ** 2
    return y


# Softmax and losses, one list of logits at a time. Test values are small, so that nothing overflows.


def softmax(x: Array, *, axis: int) -> Array:
    def one(logits: Array) -> list[float]:
        total = sum(math.exp(v) for v in logits)
        return [math.exp(v) / total for v in logits]

    return np.apply_along_axis(one, axis, x) if x.size else x


def softmax_grad(gy: Array, y: Array, *, axis: int) -> Array:
    gx = np.zeros(y.shape)
    for index in np.ndindex(y.shape):
        row = (*index[: axis % y.ndim], slice(None), *index[axis % y.ndim + 1 :])
        gx[index] = y[index] * (gy[index] - sum(a * b for a, b in zip(gy[row], y[row], strict=True)))
    return gx


def log_softmax(x: Array, *, axis: int) -> Array:
    def one(logits: Array) -> list[float]:
        log_total = math.log(sum(math.exp(v) for v in logits))
        return [v - log_total for v in logits]

    return np.apply_along_axis(one, axis, x) if x.size else x


def logsumexp(x: Array, *, axis: Any, keepdims: bool) -> Array:
    axes = tuple(range(x.ndim)) if axis is None else axis if isinstance(axis, tuple) else (axis,)
    axes = tuple(a % x.ndim for a in axes)
    y = np.zeros([1 if a in axes else size for a, size in enumerate(x.shape)])
    for index in np.ndindex(x.shape):
        y[tuple(0 if a in axes else i for a, i in enumerate(index))] += math.exp(x[index])
    y = np.log(y)
    return y if keepdims else y.squeeze(axes)


def cross_entropy(logits: Array, labels: Array) -> Array:
    return soft_cross_entropy(logits, one_hot(labels, classes=logits.shape[1], dtype="float64"))


def cross_entropy_grad(gy: Array, logits: Array, labels: Array) -> Array:
    return soft_cross_entropy_grad(gy, logits, one_hot(labels, classes=logits.shape[1], dtype="float64"))


def soft_cross_entropy(logits: Array, target: Array) -> Array:
    y = np.zeros(len(logits))
    for n, row in enumerate(logits):
        log_total = math.log(sum(math.exp(v) for v in row))
        y[n] = -sum(t * (v - log_total) for t, v in zip(target[n], row, strict=True))
    return y


def soft_cross_entropy_grad(gy: Array, logits: Array, target: Array) -> Array:
    gx = np.zeros(logits.shape)
    for n, row in enumerate(logits):
        total = sum(math.exp(v) for v in row)
        for k, v in enumerate(row):
            gx[n, k] = gy[n] * (math.exp(v) / total * sum(target[n]) - target[n, k])
    return gx


def standardize(x: Array, *, axis: Any, eps: float) -> Array:
    return (x - np.mean(x, axis, keepdims=True)) / np.sqrt(np.var(x, axis, keepdims=True) + eps)


def standardize_grad(gy: Array, x: Array, *, axis: Any, eps: float) -> Array:
    """One element of x after the other takes small steps; the function is smooth, so these give ten digits."""

    def moved(index: tuple[int, ...], by: float) -> Array:
        near = x.copy()
        near[index] += by
        return standardize(near, axis=axis, eps=eps)

    gx, h = np.zeros(x.shape), 1e-3
    for index in np.ndindex(x.shape):
        slope = 8 * (moved(index, h) - moved(index, -h)) - (moved(index, 2 * h) - moved(index, -2 * h))
        gx[index] = (gy * slope).sum() / (12 * h)
    return gx


ORACLES: dict[str, Callable[..., Any]] = {
    "add": np.add,
    "copy": np.copy,
    "subtract": np.subtract,
    "multiply": np.multiply,
    "divide": np.divide,
    "power": _each(math.pow),
    "negative": np.negative,
    "absolute": np.absolute,
    "exp": _each(math.exp),
    "log": _each(math.log),
    "sqrt": _each(math.sqrt),
    "tanh": _each(math.tanh),
    "scaled_tanh": _each(lambda x, amplitude, slope: amplitude * math.tanh(slope * x)),
    "tanh_grad": _each(lambda gy, y, amplitude, slope: gy * amplitude * slope * (1 - (y / amplitude) ** 2)),
    "sigmoid_grad": _each(lambda gy, y: gy * y * (1 - y)),
    "extreme_grad": _each(
        lambda gy, x, other, extreme: gy * ((x > other if extreme == "maximum" else x < other) + 0.5 * (x == other))
    ),
    "standardize": standardize,
    "standardize_grad": standardize_grad,
    "sigmoid": _each(lambda x: 1 / (1 + math.exp(-x))),
    "relu": _each(lambda x: max(x, 0.0)),
    "maximum": _each(max),
    "minimum": _each(min),
    "where": _each(lambda condition, a, b: a if condition else b),
    "chain": _each(lambda g, s: g * s),
    "equal": _each(lambda a, b: a == b),
    "not_equal": _each(lambda a, b: a != b),
    "less": _each(lambda a, b: a < b),
    "less_equal": _each(lambda a, b: a <= b),
    "greater": _each(lambda a, b: a > b),
    "greater_equal": _each(lambda a, b: a >= b),
    "logical_and": _each(lambda a, b: bool(a and b)),
    "logical_or": _each(lambda a, b: bool(a or b)),
    "logical_not": _each(lambda x: not x),
    "full_like": lambda x, value: np.full(x.shape, value),
    "bernoulli": bernoulli,
    "random_key": lambda x, rng: rng.random() * 2**53,
    "random": lambda x, distribution, rng: getattr(rng, distribution)(x.shape),
    "sin": _each(math.sin),
    "cos": _each(math.cos),
    "cumsum": np.cumsum,
    "argwhere": lambda x: np.array([index for index in np.ndindex(x.shape) if x[index]], int).reshape(
        np.count_nonzero(x), x.ndim
    ),
    "argmax": _first_extreme(lambda value, best: value > best),
    "argmin": _first_extreme(lambda value, best: value < best),
    "one_hot": one_hot,
    "getitem": lambda x, *index, pattern: x[_with(pattern, index)],
    "add_at": add_at,
    "add_to": lambda base, x, *index, pattern: base + add_at(x, *index, pattern=pattern, shape=base.shape),
    "assign": assign,
    "reshape": np.reshape,
    "transpose": np.transpose,
    "broadcast_to": np.broadcast_to,
    "concatenate": lambda *x, axis: np.concatenate(x, axis),
    "pad": pad,
    "astype": lambda x, dtype: x.astype(dtype),
    "transfer": lambda x, device: x,
    "matmul": matmul,
    "linear": linear,
    "conv2d": conv2d,
    "conv_transpose2d": conv_transpose2d,
    "conv2d_weight_grad": conv2d_weight_grad,
    "scatter_kernels": scatter_kernels,
    "gather_kernels": gather_kernels,
    "avg_pool2d": avg_pool2d,
    "avg_pool2d_grad": avg_pool2d_grad,
    "max_pool2d": max_pool2d,
    "max_pool2d_grad": max_pool2d_grad,
    "max_pool2d_pick": max_pool2d_pick,
    "subsample2d": subsample2d,
    "subsample2d_transpose": subsample2d_transpose,
    "subsample2d_weight_grad": subsample2d_weight_grad,
    "sum": np.sum,
    "mean": np.mean,
    "var": np.var,
    "max": np.max,
    "min": np.min,
    "softmax": softmax,
    "softmax_grad": softmax_grad,
    "log_softmax": log_softmax,
    "logsumexp": logsumexp,
    "cross_entropy": cross_entropy,
    "cross_entropy_grad": cross_entropy_grad,
    "soft_cross_entropy": soft_cross_entropy,
    "soft_cross_entropy_grad": soft_cross_entropy_grad,
    "mse_loss": _each(lambda x, target: (x - target) ** 2),
    "rbf": rbf,
}
