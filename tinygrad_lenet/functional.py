"""The public functions. Argument names follow PyTorch where PyTorch has the function, NumPy where NumPy has it.

Inputs may be tensors, arrays or nested lists. Shapes are given by axis letters: N images, C channels, H rows, W
columns, F output channels, K classes; ``...`` is any number of axes. Before anything is computed, every function raises
ShapeError (a ValueError) for shapes that do not fit, TypeError for parameters of the wrong type or mixed float dtypes
where they are not promoted, and ValueError for values out of range.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from . import arrays
from .arrays import *  # noqa: F403 - NumPy's functions
from .einsum import contract
from .graph import no_grad, op, repeated
from .ops.conv import Conv2d, ConvTranspose2d
from .ops.indexing import OneHot
from .ops.layout import Concatenate, Pad
from .ops.lenet_1998 import ScaledTanh, ScatterKernels, Subsample2d, connection_table
from .ops.pool import AvgPool2d, MaxPool2d
from .ops.random import RandomKey
from .shapes import ShapeError, Signature, integer, integers, normalize_axis, number
from .tensor import Tensor, TensorLike, as_tensor, check_writable, numpy_functions, real_dtype

__all__ = [
    "avg_pool2d",
    "batch_norm",
    "binary_cross_entropy_with_logits",
    "concatenate",
    "conv2d",
    "conv_transpose2d",
    "cross_entropy",
    "dropout",
    "dropout2d",
    "einsum",
    "embedding",
    "l1_loss",
    "layer_norm",
    "leaky_relu",
    "linear",
    "log_softmax",
    "logsumexp",
    "max_pool2d",
    "maximum",
    "minimum",
    "mse_loss",
    "nll_loss",
    "one_hot",
    "pad",
    "penalty_loss",
    "rbf",
    "relu",
    "scaled_tanh",
    "scatter_kernels",
    "sigmoid",
    "smooth_l1_loss",
    "softmax",
    "stack",
    "standardize",
    "subsample2d",
    "tanh",
    "where",
]
__all__ += arrays.__all__


def __dir__() -> list[str]:  # for completion: no helpers, no imports
    return sorted(__all__)


def conv2d(
    x: TensorLike,
    weight: TensorLike,
    bias: TensorLike | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
) -> Tensor:
    """Slide ``weight`` over ``x``: x[N C H W], weight[F C/groups KH KW], bias[F] -> y[N F OH OW].

    OH = floor((H + 2 padding - dilation (KH - 1) - 1) / stride) + 1, OW likewise. An integer applies to both axes; a
    pair means (vertical, horizontal). The kernel is not flipped. Formula: `tinygrad_lenet.ops.conv.Conv2d`.

    >>> conv2d(np.ones((1, 1, 3, 3)), np.ones((1, 1, 2, 2))).numpy()[0, 0]
    array([[4., 4.],
           [4., 4.]])
    """
    return Conv2d(stride, padding, dilation, groups)(x, weight, bias)


def conv_transpose2d(
    x: TensorLike,
    weight: TensorLike,
    bias: TensorLike | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    output_padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
) -> Tensor:
    """The transpose of `conv2d`: x[N F H W], weight[F C/groups KH KW], bias[C] -> y[N C OH OW].

    OH = (H - 1) stride - 2 padding + dilation (KH - 1) + 1 + output_padding, OW likewise; output_padding must be
    smaller than stride or dilation. Formula: `tinygrad_lenet.ops.conv.ConvTranspose2d`.

    >>> conv_transpose2d(np.ones((1, 1, 1, 2)), np.ones((1, 1, 1, 2))).numpy()[0, 0]
    array([[1., 2., 1.]])
    """
    return ConvTranspose2d(stride, padding, output_padding, dilation, groups)(x, weight, bias)


def avg_pool2d(
    x: TensorLike,
    kernel_size: int | tuple[int, int],
    stride: int | tuple[int, int] | None = None,
    padding: int | tuple[int, int] = 0,
) -> Tensor:
    """The mean of each window: x[N C H W] -> y[N C OH OW], OH = floor((H + 2 padding - KH) / stride) + 1.

    ``stride`` defaults to ``kernel_size``. Padding counts as pixels of value 0. Formula:
    `tinygrad_lenet.ops.pool.AvgPool2d`.

    >>> avg_pool2d([[[[1, 2], [3, 6]]]], 2).item()
    3.0
    """
    return AvgPool2d(kernel_size, stride, padding)(x)


def max_pool2d(
    x: TensorLike,
    kernel_size: int | tuple[int, int],
    stride: int | tuple[int, int] | None = None,
    padding: int | tuple[int, int] = 0,
) -> Tensor:
    """The largest pixel of each window: x[N C H W] -> y[N C OH OW], OH = floor((H + 2 padding - KH) / stride) + 1.

    ``stride`` defaults to ``kernel_size``; ``padding``, at most half of it, counts as -inf. The gradient goes to the
    first of several largest pixels. Formula: `tinygrad_lenet.ops.pool.MaxPool2d`.

    >>> max_pool2d([[[[1, 2], [3, 6]]]], 2).item()
    6.0
    """
    return MaxPool2d(kernel_size, stride, padding)(x)


def subsample2d(x: TensorLike, weight: TensorLike, bias: TensorLike, kernel_size: int | tuple[int, int]) -> Tensor:
    """weight[C] times the sum of each window, plus bias[C]: x[N C H W] -> y[N C OH OW], OH = floor(H / KH).

    The subsampling of LeCun et al. (1998), Section II.B. Windows are adjacent; pixels that fill no window
    are left out. Formula: `tinygrad_lenet.ops.lenet_1998.Subsample2d`.

    >>> subsample2d([[[[1, 2], [3, 6]]]], [0.25], [1.0], 2).item()
    4.0
    """
    return Subsample2d(kernel_size)(x, weight, bias)


def scatter_kernels(weight: TensorLike, connections: Sequence[Sequence[int]], in_channels: int) -> Tensor:
    """A convolution's kernels with 0 for all unconnected pairs of maps: weight[K KH KW] -> y[F C KH KW].

    ``connections`` lists, for each of F output maps, which of the C ``in_channels`` it sees; the k-th pair, row by row,
    gets weight[k]. ValueError if a row is empty, lists a map twice or lists one that does not exist.

    >>> scatter_kernels(np.full((3, 1, 1), 7), [[0], [0, 1]], in_channels=2).numpy()[:, :, 0, 0]
    array([[7, 0],
           [7, 7]])
    """
    channels = integer("scatter_kernels", "in_channels", in_channels, minimum=1)
    return ScatterKernels.of(connection_table("scatter_kernels", connections, channels), channels)(weight)


def linear(x: TensorLike, weight: TensorLike, bias: TensorLike | None = None) -> Tensor:
    """y = x weight^T + bias: x[... I], weight[O I], bias[O] -> y[... O].

    >>> linear([1.0, 2.0], [[1.0, 1.0]], [0.5])
    Tensor([3.5])
    """
    return op("linear")(x, weight, bias)


def tanh(x: TensorLike) -> Tensor:
    """The hyperbolic tangent of each element.

    >>> tanh([0.0, 100.0])
    Tensor([0., 1.])
    """
    return op("tanh")(x)


def sigmoid(x: TensorLike) -> Tensor:
    """1 / (1 + e**-x) of each element.

    >>> sigmoid([0.0, -1000.0])
    Tensor([0.5, 0. ])
    """
    return op("sigmoid")(x)


def relu(x: TensorLike) -> Tensor:
    """max(x, 0) of each element; the gradient at 0 is 0.

    >>> relu([-1.0, 2.0])
    Tensor([0., 2.])
    """
    return op("relu")(x)


def scaled_tanh(x: TensorLike, amplitude: float = 1.7159, slope: float = 2 / 3) -> Tensor:
    """amplitude * tanh(slope * x), by default the squashing function of LeCun et al. (1998): f(1) = 1, f(-1) = -1.

    >>> round(scaled_tanh(1.0).item(), 4)
    1.0
    """
    return ScaledTanh(amplitude, slope)(x)


def softmax(x: TensorLike, axis: int = -1) -> Tensor:
    """e**x / sum of e**x along ``axis``; x[...] -> y[...], without overflow for large x.

    >>> softmax([0.0, 0.0])
    Tensor([0.5, 0.5])
    """
    return as_tensor(x).softmax(axis)


def log_softmax(x: TensorLike, axis: int = -1) -> Tensor:
    """log(softmax(x)) along ``axis``; x[...] -> y[...], without overflow or loss of digits.

    >>> log_softmax([0.0, 10000.0])
    Tensor([-10000.,      0.])
    """
    return as_tensor(x).log_softmax(axis)


def logsumexp(x: TensorLike, axis: int | Sequence[int] | None = None, keepdims: bool = False) -> Tensor:
    """log(sum of e**x) along ``axis`` (default: all axes), without overflow; -inf where all of x is -inf.

    >>> logsumexp([10000.0, -float("inf")]).item()
    10000.0
    """
    return as_tensor(x).logsumexp(axis, keepdims)


def one_hot(labels: TensorLike, classes: int, dtype: Any = np.float32) -> Tensor:
    """labels[N], integers in [0, classes) -> y[N K]: 1 at the label, 0 elsewhere.

    Labels on the host are range-checked (ValueError). On a GPU they are not, since the check would have to wait for the
    GPU; there, a label out of range gives a row of zeros, unless `detect_anomaly` is on.

    >>> one_hot(np.array([1]), 3)
    Tensor([[0., 1., 0.]])
    """
    to_one_hot = OneHot(classes, real_dtype("one_hot", dtype).name)
    return to_one_hot(_labels("one_hot", labels, to_one_hot.classes))


def _labels(name: str, labels: TensorLike, classes: int, like: Tensor | None = None) -> Tensor:
    """Class labels[N] as a tensor on the device of ``like``, range-checked if they are on the host.

    If ``like``[N K] is given, there must be one label per row.
    """
    given = _with_integers(name, "labels", labels, like)
    if given.dtype.kind not in "iu":
        raise TypeError(f"{name}: labels have dtype {given.dtype}; expected integers")
    if given.ndim != 1:
        raise ShapeError(f"{name}: labels have shape {given.shape}; expected [N]")
    if like is not None and given.shape != like.shape[:1]:
        raise ShapeError(f"{name}: axis N is {like.shape[0]} in the input and {given.shape[0]} in target")
    _check_labels(name, given, classes)
    return given


def _check_labels(name: str, labels: Tensor, classes: int) -> None:
    """ValueError for labels out of range, unless they are on a GPU, which that would wait for."""
    if isinstance(labels.data, np.ndarray):
        _check_range(name, labels, classes)


@repeated
def _check_range(name: str, labels: Tensor, classes: int) -> None:
    if labels.size:
        values = labels.data
        low, high = values.item(values.argmin()), values.item(values.argmax())  # 1 us on few labels; min and max: 5
        if low < 0 or high >= classes:
            raise ValueError(f"{name}: label {low if low < 0 else high} is out of range; expected 0 to {classes - 1}")


def _with_integers(name: str, what: str, values: Any, like: Tensor | None) -> Tensor:
    """``values`` as a tensor on the device of ``like``; unlike in `Tensor`, integers in a list stay integers."""
    if isinstance(values, Tensor):
        return values
    try:
        array = values if hasattr(values, "dtype") else np.asarray(values)
    except ValueError:
        raise ValueError(f"{name}: {what} is not a rectangular array of numbers") from None
    if array.dtype.kind not in "fiub":
        raise TypeError(f"{name}: {what} has dtype {array.dtype}; expected numbers")
    if not hasattr(values, "dtype") and (array.dtype.kind == "f" or not array.size):
        array = array.astype(np.float32 if array.size else np.int64)
    return Tensor(array, device=None if like is None else like.device)


def _rows(name: str, what: str, x: TensorLike) -> Tensor:
    """x[N K] as a tensor of floats."""
    x = as_tensor(x)
    if x.ndim != 2:
        raise ShapeError(f"{name}: {what} have shape {x.shape}; expected [N K]")
    return x if x.dtype.kind == "f" else x.astype("float32")


_TARGETS = Signature.parse("cross_entropy(logits[N K], target[N K]) -> y[N]")


def cross_entropy(
    logits: TensorLike,
    target: TensorLike,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    weight: TensorLike | None = None,
    ignore_index: int | None = None,
) -> Tensor:
    """-sum_k target_k log softmax(logits)_k, in nats: logits[N K ...], target[N ...] of labels or [N K ...].

    Labels are integers, other targets probabilities. ``label_smoothing`` s replaces target by (1 - s) target + s / K
    (Szegedy et al. 2016). ``reduction`` is "mean" or "sum" over N and ..., or "none" -> y[N ...]. With ``weight``[K],
    class k counts weight_k times, also in the divisor of a mean over labels. Where the label is ``ignore_index``,
    nothing counts. ValueError for other labels out of range and for s outside [0, 1].

    >>> round(cross_entropy([[0.0, 0.0]], [1]).item(), 4)
    0.6931
    """
    reduce = _reduction("cross_entropy", reduction)
    smoothing = number("cross_entropy", "label_smoothing", label_smoothing, "[0, 1]")
    logits = as_tensor(logits)
    probabilities = _with_integers("cross_entropy", "target", target, logits)
    if logits.ndim > 2 or weight is not None or ignore_index is not None:
        return _weighted_cross_entropy(logits, probabilities, smoothing, reduction, weight, ignore_index)
    logits = _rows("cross_entropy", "logits", logits)
    if probabilities.ndim == 1:
        labels = _labels("cross_entropy", probabilities, logits.shape[1], logits)
        if not smoothing:
            return reduce(op("cross_entropy")(logits, labels))
        probabilities = op("one_hot", logits.shape[1], logits.dtype.name)(labels)
    _TARGETS.bind((logits.shape, probabilities.shape), {})  # before the smoothing is computed
    if smoothing:
        probabilities = (1 - smoothing) * probabilities + smoothing / logits.shape[1]
    return reduce(op("soft_cross_entropy")(logits, probabilities))


def _weighted_cross_entropy(
    logits: Tensor,
    target: Tensor,
    smoothing: float,
    reduction: str,
    weight: TensorLike | None,
    ignore_index: int | None,
) -> Tensor:
    """`cross_entropy` on logits[N K ...], whose axes after K become rows."""
    if logits.ndim < 2:
        raise ShapeError(f"cross_entropy: logits have shape {logits.shape}; expected [N K ...]")
    N, K, *rest = logits.shape
    labelled = target.ndim == logits.ndim - 1
    if target.shape != ((N, *rest) if labelled else logits.shape):
        raise ShapeError(f"cross_entropy: logits have shape {logits.shape} and target {target.shape}")
    if ignore_index is not None and not labelled:
        raise ValueError("cross_entropy: ignore_index is for labels; the target holds probabilities")
    count = math.prod((N, *rest))
    rows = _rows("cross_entropy", "logits", arrays.moveaxis(logits, 1, -1).reshape((count, K)))  # (N, K, ...) -> rows
    of_class = None if weight is None else as_tensor(weight).astype(rows.dtype)
    if of_class is not None and of_class.shape != (K,):
        raise ShapeError(f"cross_entropy: axis K is {K} in logits and weight has shape {of_class.shape}")
    ignored = None
    if labelled:
        labels = target.reshape(count)
        if ignore_index is not None:
            ignored = labels == integer("cross_entropy", "ignore_index", ignore_index, minimum=-(2**63), limit=2**63)
            labels = op("where")(ignored, 0, labels)
        labels = _labels("cross_entropy", labels, K, rows)
        probabilities = op("one_hot", K, rows.dtype.name)(labels)
    else:
        probabilities = arrays.moveaxis(target, 1, -1).reshape((count, K)).astype(rows.dtype)
    counts = probabilities  # summed, how often each row counts in the divisor
    if smoothing:
        probabilities = (1 - smoothing) * probabilities + smoothing / K
    if of_class is not None:
        probabilities, counts = probabilities * of_class, counts * of_class
    y = op("soft_cross_entropy")(rows, probabilities)
    y = y if ignored is None else op("where")(ignored, 0.0, y)
    if reduction == "none":
        return y.reshape((N, *rest))
    if reduction == "sum" or not labelled:
        return _reduction("cross_entropy", reduction)(y)
    counts = counts.sum(1)
    return y.sum() / (counts if ignored is None else op("where")(ignored, 0.0, counts)).sum()


def binary_cross_entropy_with_logits(
    x: TensorLike,
    target: TensorLike,
    weight: TensorLike | None = None,
    reduction: str = "mean",
    pos_weight: TensorLike | None = None,
) -> Tensor:
    """-(target log s(x) + (1 - target) log(1 - s(x))), s the sigmoid: x[...] and target[...] of the same shape.

    It is computed from x, without overflow. ``weight`` multiplies each element's loss, ``pos_weight``
    its first term. ``reduction`` is "mean", "sum" or "none".

    >>> round(binary_cross_entropy_with_logits([0.0], [1.0]).item(), 4)
    0.6931
    """
    name = "binary_cross_entropy_with_logits"
    reduce = _reduction(name, reduction)
    x, target = _alike(name, x, target)
    columns = Concatenate(-1)(x.expand_dims(-1), op("full_like", 0.0)(x).expand_dims(-1))  # softmax's, of x and 0
    logs = columns.log_softmax(-1)  # log s(x), log(1 - s(x))
    first = target * logs[..., 0]
    if pos_weight is not None:
        first = first * as_tensor(pos_weight).astype(x.dtype)
    y = -(first + (1.0 - target) * logs[..., 1])
    return reduce(y if weight is None else y * as_tensor(weight).astype(x.dtype))


def l1_loss(x: TensorLike, target: TensorLike, reduction: str = "mean") -> Tensor:
    """The magnitude of x - target, x[...] and target[...] of the same shape; ``reduction`` is "mean", "sum" or "none".

    >>> l1_loss([1.0, 2.0], [1.0, 4.0]).item()
    1.0
    """
    reduce = _reduction("l1_loss", reduction)
    x, target = _alike("l1_loss", x, target)
    return reduce(arrays.abs(x - target))


def smooth_l1_loss(x: TensorLike, target: TensorLike, reduction: str = "mean", beta: float = 1.0) -> Tensor:
    """d^2 / (2 beta) where d = abs(x - target) < beta, else d - beta / 2 (Girshick, 2015); shapes as in `l1_loss`.

    >>> smooth_l1_loss([0.0, 0.0], [1.0, 3.0], reduction="none")
    Tensor([0.5, 2.5])
    """
    reduce = _reduction("smooth_l1_loss", reduction)
    beta = number("smooth_l1_loss", "beta", beta, "[0, inf)")
    x, target = _alike("smooth_l1_loss", x, target)
    d = arrays.abs(x - target)
    return reduce(op("where")(d < beta, d * d * (0.5 / beta), d - 0.5 * beta) if beta else d)


def _alike(name: str, x: TensorLike, target: TensorLike) -> tuple[Tensor, Tensor]:
    """Two tensors of floats and of the same shape."""
    x, target = as_tensor(x), as_tensor(target)
    if x.shape != target.shape:
        raise ShapeError(f"{name}: x has shape {x.shape} and target {target.shape}; expected the same")
    x = x if x.dtype.kind == "f" else x.astype("float32")
    if target.dtype.kind == "f" and target.dtype != x.dtype:
        raise TypeError(f"{name}: x is {x.dtype} and target {target.dtype}; expected one dtype")
    return x, target.astype(x.dtype)


def nll_loss(log_probabilities: TensorLike, target: TensorLike, reduction: str = "mean") -> Tensor:
    """-log_probabilities at the label: log_probabilities[N K], target[N] of integers in [0, K).

    ``reduction`` is "mean" or "sum" over N, or "none" -> y[N]. ValueError for labels out of range.

    >>> nll_loss([[-0.5, -1.0]], [1]).item()
    1.0
    """
    reduce = _reduction("nll_loss", reduction)
    logp = _rows("nll_loss", "log_probabilities", log_probabilities)
    return reduce(-_at_label("nll_loss", logp, target))


def _at_label(name: str, x: Tensor, target: TensorLike) -> Tensor:
    """x[n, target[n]] -> y[N]."""
    at = op("one_hot", x.shape[1], "bool")(_labels(name, target, x.shape[1], x))
    return op("where")(at, x, 0.0).sum(1)


def mse_loss(x: TensorLike, target: TensorLike, reduction: str = "mean") -> Tensor:
    """(x - target)^2, x[...] and target[...] of the same shape; ``reduction`` is "mean", "sum" or "none".

    >>> mse_loss([1.0, 2.0], [1.0, 4.0]).item()
    2.0
    """
    reduce = _reduction("mse_loss", reduction)
    x, target = as_tensor(x), as_tensor(target)
    if x.shape != target.shape:
        raise ShapeError(f"mse_loss: x has shape {x.shape} and target {target.shape}; expected the same")
    return reduce(op("mse_loss")(x, target))


def rbf(x: TensorLike, centers: TensorLike) -> Tensor:
    """The squared Euclidean distance of each x from each center: x[N J], centers[K J] -> y[N K], at least 0.

    The output layer of LeCun et al. (1998), Eq. 7: a penalty for each class. Formula:
    `tinygrad_lenet.ops.lenet_1998.RBF`.

    >>> rbf([[1.0, -1.0]], [[1.0, 1.0], [1.0, -1.0]])
    Tensor([[4., 0.]])
    """
    return op("rbf")(x, centers)


def penalty_loss(penalties: TensorLike, target: TensorLike, j: float | None = None, reduction: str = "mean") -> Tensor:
    """The loss of the LeNet-5 of 1998, on penalties[N K] and target[N], integers in [0, K).

    Without ``j`` it is y_D, the penalty of the right class (LeCun et al., 1998, Eq. 8). With ``j``, wrong classes
    compete: y_D + log(e**-j + sum_k e**-y_k) (Eq. 9), where e**-j stands for a class of junk and keeps penalties that
    are already large from being pushed further. This is the `cross_entropy` of the logits -y_1 ... -y_K, -j, so it
    neither overflows nor loses digits. ``reduction`` is "mean" or "sum" over N, or "none" -> y[N]. ValueError for
    labels out of range and for j <= 0.

    >>> penalty_loss([[1.0, 8.0]], [1]).item()
    8.0
    >>> round(penalty_loss([[1.0, 8.0]], [1], j=4.0).item(), 3)
    7.049
    """
    reduce = _reduction("penalty_loss", reduction)
    penalties = _rows("penalty_loss", "penalties", penalties)
    if j is None:
        return reduce(_at_label("penalty_loss", penalties, target))
    junk = number("penalty_loss", "j", j, "(0, inf)")
    labels = _labels("penalty_loss", target, penalties.shape[1], penalties)
    column = op("full_like", -junk)(penalties[:, :1])
    logits = Concatenate(1)(-penalties, column)  # (N, K) -> (N, K + 1)
    return reduce(op("cross_entropy")(logits, labels))


_REDUCTIONS: dict[str, Callable[[Tensor], Tensor]] = {"mean": Tensor.mean, "sum": Tensor.sum, "none": lambda y: y}


def _reduction(name: str, reduction: str) -> Callable[[Tensor], Tensor]:
    if reduction not in _REDUCTIONS:
        raise ValueError(f"{name}: reduction is {reduction!r}; expected 'mean', 'sum' or 'none'")
    return _REDUCTIONS[reduction]


def dropout(x: TensorLike, p: float = 0.5, training: bool = True, rng: np.random.Generator | None = None) -> Tensor:
    """x[...] with each element set to 0 with probability ``p`` and the others divided by 1 - p; x if not training.

    Srivastava et al. (2014), in the form that needs no correction at test time. Each call takes one number from ``rng``
    (default: that of `tinygrad_lenet.manual_seed`), which decides alike on every device. TypeError unless x holds
    floats.

    >>> dropout([1.0, 1.0, 1.0], p=0.5, rng=np.random.default_rng(1))
    Tensor([2., 0., 0.])
    """
    p = number("dropout", "p", p, "[0, 1)")
    if rng is not None and not isinstance(rng, np.random.Generator):
        raise TypeError(f"dropout: rng is {rng!r}; expected a NumPy generator, np.random.default_rng(seed)")
    x = as_tensor(x)
    if x.dtype.kind != "f":
        raise TypeError(f"dropout: x has dtype {x.dtype}; expected floats, for instance x.astype('float32')")
    if not training or not p:
        return x
    keep = op("bernoulli", p)(x, RandomKey(rng)(x))
    return op("where")(keep, x * (1 / (1 - p)), 0.0)


def dropout2d(x: TensorLike, p: float = 0.5, training: bool = True, rng: np.random.Generator | None = None) -> Tensor:
    """`dropout` of whole maps: x[N C ...] with each map x[n c] set to 0 with probability ``p``, or divided by 1 - p.

    >>> dropout2d(np.ones((1, 2, 1, 2), np.float32), rng=np.random.default_rng(1)).numpy()[0].tolist()
    [[[2.0, 2.0]], [[0.0, 0.0]]]
    """
    x = as_tensor(x)
    if x.ndim < 3:
        raise ShapeError(f"dropout2d: x has shape {x.shape}; expected [N C ...]")
    maps = dropout(op("full_like", 1.0)(x[(..., *(slice(1),) * (x.ndim - 2))]), p, training, rng)  # (N, C, 1, ...)
    return op("where")(maps == 0, 0.0, x * maps) if training and p else x


def leaky_relu(x: TensorLike, negative_slope: float = 0.01) -> Tensor:
    """x where x > 0, else negative_slope x; the gradient at 0 is the slope.

    >>> leaky_relu([-1.0, 2.0], 0.5)
    Tensor([-0.5,  2. ])
    """
    x = as_tensor(x)
    slope = number("leaky_relu", "negative_slope", negative_slope)
    return op("where")(x > 0, x, slope * x)


def layer_norm(
    x: TensorLike,
    normalized_shape: int | Sequence[int],
    weight: TensorLike | None = None,
    bias: TensorLike | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """weight (x - mean) / sqrt(var + eps) + bias over the last axes: x[... S], weight[S], bias[S] (Ba et al. 2016).

    S are the sizes ``normalized_shape``; ShapeError if those of x differ.

    >>> layer_norm([1.0, 3.0], 2, eps=0.0)
    Tensor([-1.,  1.])
    """
    x, shape = as_tensor(x), integers("layer_norm", "normalized_shape", normalized_shape, 1)
    eps = number("layer_norm", "eps", eps, "[0, inf)")
    if not shape or x.shape[-len(shape) :] != shape:
        raise ShapeError(f"layer_norm: x has shape {x.shape}; expected it to end with {shape}")
    for name, given in (("weight", weight), ("bias", bias)):
        if given is not None and as_tensor(given).shape != shape:
            raise ShapeError(f"layer_norm: {name} has shape {as_tensor(given).shape}; expected {shape}")
    axes = tuple(range(x.ndim - len(shape), x.ndim))
    y = standardize(x, axes, eps)
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


def embedding(indices: TensorLike, weight: TensorLike) -> Tensor:
    """weight[indices]: indices[...] of integers in [0, K), weight[K D] -> y[... D]; gradients add up.

    Indices on the host are range-checked (ValueError).

    >>> embedding([1, 0], [[1.0, 2.0], [3.0, 4.0]])
    Tensor([[3., 4.],
            [1., 2.]])
    """
    weight = as_tensor(weight)
    if weight.ndim != 2:
        raise ShapeError(f"embedding: weight has shape {weight.shape}; expected [K D]")
    given = _with_integers("embedding", "indices", indices, weight)
    if given.dtype.kind not in "iu":
        raise TypeError(f"embedding: indices have dtype {given.dtype}; expected integers")
    _check_labels("embedding", given, weight.shape[0])
    return weight[given]


def batch_norm(
    x: TensorLike,
    running_mean: TensorLike | None,
    running_var: TensorLike | None,
    weight: TensorLike | None = None,
    bias: TensorLike | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """weight (x - mean) / sqrt(var + eps) + bias for each channel: x[N C ...], all others [C] (Ioffe & Szegedy 2015).

    While training, mean and variance are those of the batch, and running ones that are tensors move towards them in
    place by the fraction ``momentum`` (towards the unbiased variance). Otherwise the running ones are used.

    >>> batch_norm([[1.0], [3.0]], None, None, training=True, eps=0.0)
    Tensor([[-1.],
            [ 1.]])
    """
    x = as_tensor(x)
    if x.ndim < 2:
        raise ShapeError(f"batch_norm: x has shape {x.shape}; expected [N C ...]")
    x = x if x.dtype.kind == "f" else x.astype("float32")
    eps = number("batch_norm", "eps", eps, "[0, inf)")
    momentum = number("batch_norm", "momentum", momentum, "[0, 1]")
    channels = x.shape[1]
    given = {"running_mean": running_mean, "running_var": running_var, "weight": weight, "bias": bias}
    of_channel = {name: as_tensor(value) for name, value in given.items() if value is not None}
    for name, value in of_channel.items():
        if value.shape != (channels,):
            raise ShapeError(f"batch_norm: axis C is {channels} in x and {value.shape} in {name}")
        if value.dtype.kind != "f":
            raise TypeError(f"batch_norm: {name} has dtype {value.dtype}; expected floats")
    if not training and (running_mean is None or running_var is None):
        raise ValueError("batch_norm: running_mean and running_var are needed when training is False")
    shape = (1, channels) + (1,) * (x.ndim - 2)
    if training:
        axes = (0, *range(2, x.ndim))
        count = x.size // channels if channels else 0
        if count < 2:
            raise ValueError(f"batch_norm: x has shape {x.shape}; training needs more than one value a channel")
        updates = []
        with no_grad():
            for running, statistic, factor in (
                (running_mean, Tensor.mean, 1.0),
                (running_var, Tensor.var, count / (count - 1)),
            ):
                if isinstance(running, Tensor):
                    check_writable("batch_norm", "a running statistic", running)
                    updates.append((running, (1 - momentum) * running + (momentum * factor) * statistic(x, axes)))
            for running, new in updates:
                running[...] = new
        y = standardize(x, axes, eps)
        y = y if weight is None else y * of_channel["weight"].reshape(shape)
    else:
        scale = (of_channel["running_var"].reshape(shape) + eps) ** -0.5
        scale = scale if weight is None else scale * of_channel["weight"].reshape(shape)
        y = (x - of_channel["running_mean"].reshape(shape)) * scale
    return y if bias is None else y + of_channel["bias"].reshape(shape)


def standardize(x: TensorLike, axis: int | Sequence[int] | None = -1, eps: float = 1e-5) -> Tensor:
    """(x - mean) / sqrt(var + eps) of x[...], with mean and variance along ``axis`` (None: all axes).

    Times a weight and plus a bias, this is layer normalization (Ba et al. 2016). ShapeError for an empty axis,
    ValueError for a negative ``eps``.

    >>> standardize([[1.0, 3.0]], eps=0.0)
    Tensor([[-1.,  1.]])
    """
    return op("standardize", axis, eps)(x)


def pad(x: TensorLike, pad_width: int | Sequence[Any], value: float = 0.0) -> Tensor:
    """x[...] with ``value`` around it; ``pad_width`` is an integer, for all sides, or one (before, after) per axis.

    ShapeError for widths that are not those of x's axes, and for one pair where there are several axes: NumPy pads
    them all then, PyTorch the last one. ``[(before, after)]`` is for all axes.

    >>> pad([1.0], (2, 1))
    Tensor([0., 0., 1., 0.])
    """
    x = as_tensor(x)
    wrong = ShapeError(
        f"pad: pad_width {pad_width!r} does not give (before, after) for {x.ndim} axes; write one pair for each, from "
        "the first on, or [(before, after)] for all"
    )
    try:
        given = np.asarray(pad_width)
        widths = np.broadcast_to(given, (x.ndim, 2)).tolist()
    except ValueError:
        raise wrong from None
    if given.ndim == 1 and x.ndim > 1:
        raise wrong
    value = number("pad", "value", value, "[-inf, inf]")
    return Pad(tuple(map(tuple, widths)))(x, int(value) if value.is_integer() else value)


def where(condition: TensorLike, x: TensorLike, y: TensorLike) -> Tensor:
    """x where ``condition`` holds, else y, broadcast together; where an element is not selected, its gradient is 0.

    >>> where(np.array([True, False]), 1.0, np.zeros(2))
    Tensor([1., 0.], dtype=float64)
    """
    return op("where")(condition if isinstance(condition, Tensor) else Tensor(np.asarray(condition)), x, y)


def maximum(x: TensorLike, y: TensorLike) -> Tensor:
    """The larger of x[...] and y[...], broadcast together; at a tie, each gets half of the gradient.

    >>> maximum([1.0, 5.0], 2.0)
    Tensor([2., 5.])
    """
    return op("maximum")(x, y)


def minimum(x: TensorLike, y: TensorLike) -> Tensor:
    """The smaller of x[...] and y[...], broadcast together; at a tie, each gets half of the gradient.

    >>> minimum([1.0, 5.0], 2.0)
    Tensor([1., 2.])
    """
    return op("minimum")(x, y)


def concatenate(xs: Sequence[TensorLike], axis: int = 0) -> Tensor:
    """The tensors one after the other along ``axis``; the other axes must agree.

    >>> concatenate([[1.0], [2.0, 3.0]])
    Tensor([1., 2., 3.])
    """
    return Concatenate(axis)(*_tensors("concatenate", xs))


def stack(xs: Sequence[TensorLike], axis: int = 0) -> Tensor:
    """The tensors, all of the same shape, joined along a new axis, whose position in the result is ``axis``.

    >>> stack([[1.0], [2.0]], axis=1)
    Tensor([[1., 2.]])
    """
    tensors = _tensors("stack", xs)
    for i, x in enumerate(tensors):
        if x.shape != tensors[0].shape:
            raise ShapeError(f"stack: input {i} has shape {x.shape}, input 0 {tensors[0].shape}; expected the same")
    shape = tensors[0].shape
    place = normalize_axis("stack", axis, len(shape) + 1)
    if place == len(shape):
        return Concatenate(place)(*(x.expand_dims(place) for x in tensors))
    return Concatenate(place)(*tensors).reshape((*shape[:place], len(tensors), *shape[place:]))


def _tensors(op: str, xs: Sequence[TensorLike]) -> list[Tensor]:
    """A sequence of at least one tensor."""
    if not isinstance(xs, (list, tuple)):
        raise TypeError(f"{op}: xs is {type(xs).__name__}; expected a list or tuple of tensors")
    if not xs:
        raise ShapeError(f"{op}: there is nothing to join; expected at least one tensor")
    return list(map(as_tensor, xs))


def einsum(subscripts: str, *operands: TensorLike) -> Tensor:
    """Einstein summation with NumPy's subscripts: letters, commas, ``...`` and an optional ``->``.

    The axes of ``...`` must have equal sizes; axes of size 1 are not repeated. Operands are multiplied in pairs, as
    matrix products.

    >>> einsum("ij,ij->i", [[1.0, 2.0]], [[3.0, 4.0]])
    Tensor([11.])
    """
    return contract(subscripts, list(map(as_tensor, operands)))


def _numpy_pad(x: Tensor, pad_width: Any, mode: str = "constant", constant_values: float = 0.0) -> Tensor:
    if mode != "constant":
        raise TypeError(f"np.pad of a tensor: mode is {mode!r}; expected 'constant'")
    return pad(x, [pad_width] if np.ndim(pad_width) == 1 else pad_width, constant_values)


numpy_functions |= {"concatenate": concatenate, "stack": stack, "where": where, "einsum": einsum, "pad": _numpy_pad}
