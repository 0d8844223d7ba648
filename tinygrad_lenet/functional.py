"""The public functions. Argument names follow PyTorch where PyTorch has the function, NumPy where NumPy has it.

Tensors, arrays and nested lists are accepted as inputs. Shapes are given by axis letters: N images, C channels, H rows,
W columns, F output channels, K classes; ``...`` is any number of axes. Every function raises ShapeError (a ValueError)
for shapes that do not fit, TypeError for parameters of the wrong kind and ValueError for values out of range, before
anything is computed.
"""

from collections.abc import Callable, Sequence
from numbers import Real
from string import ascii_letters
from typing import Any

import numpy as np

from .backend import Array, backend_of
from .ops.conv import Conv2d, ConvTranspose2d, ScatterKernels
from .ops.distance import RBF, MSELoss
from .ops.elementwise import Maximum, Minimum, ScaledTanh, Where
from .ops.layout import Concatenate, Pad
from .ops.linalg import Einsum, Linear
from .ops.pool import AvgPool2d, MaxPool2d, Subsample2d
from .ops.softmax import CrossEntropy
from .shapes import ShapeError, broadcast_shape, connection_table, integer, normalize_axis, number, pair
from .tensor import Tensor, TensorLike, _as_tensor

__all__ = [
    "avg_pool2d",
    "batch_norm",
    "concatenate",
    "conv2d",
    "conv_transpose2d",
    "cross_entropy",
    "dropout",
    "einsum",
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
    "softmax",
    "stack",
    "subsample2d",
    "tanh",
    "where",
]

Size = int | tuple[int, int]


def conv2d(
    x: TensorLike,
    weight: TensorLike,
    bias: TensorLike | None = None,
    stride: Size = 1,
    padding: Size = 0,
    dilation: Size = 1,
    groups: int = 1,
) -> Tensor:
    """Slide ``weight`` over ``x``: x[N C H W], weight[F C/groups KH KW], bias[F] -> y[N F OH OW].

    OH = floor((H + 2 padding - dilation (KH - 1) - 1) / stride) + 1, OW likewise; an integer stands for both axes, a
    pair for (vertical, horizontal). The kernel is not flipped. Formula: `tinygrad_lenet.ops.conv.Conv2d`.

    >>> conv2d(np.ones((1, 1, 3, 3)), np.ones((1, 1, 2, 2))).numpy()[0, 0]
    array([[4., 4.],
           [4., 4.]])
    """
    op = Conv2d(
        pair("conv2d", "stride", stride, minimum=1),
        pair("conv2d", "padding", padding, minimum=0),
        pair("conv2d", "dilation", dilation, minimum=1),
        integer("conv2d", "groups", groups, minimum=1),
    )
    return op(x, weight) if bias is None else op(x, weight, bias)


def conv_transpose2d(
    x: TensorLike,
    weight: TensorLike,
    bias: TensorLike | None = None,
    stride: Size = 1,
    padding: Size = 0,
    output_padding: Size = 0,
    dilation: Size = 1,
    groups: int = 1,
) -> Tensor:
    """The transpose of `conv2d`: x[N F H W], weight[F C/groups KH KW], bias[C] -> y[N C OH OW].

    OH = (H - 1) stride - 2 padding + dilation (KH - 1) + 1 + output_padding, OW likewise; output_padding must be
    smaller than stride or dilation. Formula: `tinygrad_lenet.ops.conv.ConvTranspose2d`.

    >>> conv_transpose2d(np.ones((1, 1, 1, 2)), np.ones((1, 1, 1, 2))).numpy()[0, 0]
    array([[1., 2., 1.]])
    """
    op = ConvTranspose2d(
        pair("conv_transpose2d", "stride", stride, minimum=1),
        pair("conv_transpose2d", "padding", padding, minimum=0),
        pair("conv_transpose2d", "output_padding", output_padding, minimum=0),
        pair("conv_transpose2d", "dilation", dilation, minimum=1),
        integer("conv_transpose2d", "groups", groups, minimum=1),
    )
    return op(x, weight) if bias is None else op(x, weight, bias)


def avg_pool2d(x: TensorLike, kernel_size: Size, stride: Size | None = None, padding: Size = 0) -> Tensor:
    """The mean of each window: x[N C H W] -> y[N C OH OW], OH = floor((H + 2 padding - KH) / stride) + 1.

    ``stride`` defaults to ``kernel_size``. Padding counts as pixels of value 0. Formula: `ops.pool.AvgPool2d`.

    >>> avg_pool2d([[[[1, 2], [3, 6]]]], 2).item()
    3.0
    """
    x = _as_tensor(x)
    if x.dtype.kind != "f":
        raise TypeError(f"avg_pool2d: x has dtype {x.dtype}; a mean needs floats, for instance x.astype('float32')")
    return AvgPool2d(*_pool_parameters("avg_pool2d", kernel_size, stride, padding))(x)


def max_pool2d(x: TensorLike, kernel_size: Size, stride: Size | None = None, padding: Size = 0) -> Tensor:
    """The largest pixel of each window: x[N C H W] -> y[N C OH OW], OH = floor((H + 2 padding - KH) / stride) + 1.

    ``stride`` defaults to ``kernel_size``; ``padding``, at most half of it, counts as -inf. The gradient goes to the
    first of several largest pixels. Formula: `ops.pool.MaxPool2d`.

    >>> max_pool2d([[[[1, 2], [3, 6]]]], 2).item()
    6.0
    """
    x = _as_tensor(x)
    parameters = _pool_parameters("max_pool2d", kernel_size, stride, padding)
    if x.dtype.kind != "f" and parameters[2] != (0, 0):
        raise TypeError(f"max_pool2d: x has dtype {x.dtype}; padding with -inf needs floats")
    return MaxPool2d(*parameters)(x)


def subsample2d(x: TensorLike, weight: TensorLike, bias: TensorLike, kernel_size: Size) -> Tensor:
    """weight[C] times the sum of each window, plus bias[C]: x[N C H W] -> y[N C OH OW], OH = floor(H / KH).

    The subsampling of LeCun et al. (1998), Section II.B. Windows touch and do not overlap; pixels that do not fill one
    are left out. Formula: `tinygrad_lenet.ops.pool.Subsample2d`.

    >>> subsample2d([[[[1, 2], [3, 6]]]], [0.25], [1.0], 2).item()
    4.0
    """
    return Subsample2d(pair("subsample2d", "kernel_size", kernel_size, minimum=1))(x, weight, bias)


def scatter_kernels(weight: TensorLike, connections: Sequence[Sequence[int]], in_channels: int) -> Tensor:
    """Kernels for the connected pairs of maps, 0 for all others: weight[K KH KW] -> y[F C KH KW], to convolve with.

    ``connections`` lists, for each of F output maps, which of the C ``in_channels`` it sees; the k-th pair, read row by
    row, gets weight[k]. ValueError for a map that does not exist, for one listed twice, and for a row without any.

    >>> scatter_kernels(np.full((3, 1, 1), 7), [[0], [0, 1]], in_channels=2).numpy()[:, :, 0, 0]
    array([[7, 0],
           [7, 7]])
    """
    channels = integer("scatter_kernels", "in_channels", in_channels, minimum=1)
    return ScatterKernels.of(connection_table("scatter_kernels", connections, channels), channels)(weight)


def _pool_parameters(op: str, kernel_size: Any, stride: Any, padding: Any) -> tuple[tuple[int, int], ...]:
    return (
        pair(op, "kernel_size", kernel_size, minimum=1),
        pair(op, "stride", kernel_size if stride is None else stride, minimum=1),
        pair(op, "padding", padding, minimum=0),
    )


def linear(x: TensorLike, weight: TensorLike, bias: TensorLike | None = None) -> Tensor:
    """y = x weight^T + bias: x[... I], weight[O I], bias[O] -> y[... O].

    >>> linear([1.0, 2.0], [[1.0, 1.0]], [0.5])
    Tensor([3.5])
    """
    return Linear()(x, weight) if bias is None else Linear()(x, weight, bias)


def tanh(x: TensorLike) -> Tensor:
    """The hyperbolic tangent of each element.

    >>> tanh([0.0, 100.0])
    Tensor([0., 1.])
    """
    return _as_tensor(x).tanh()


def sigmoid(x: TensorLike) -> Tensor:
    """1 / (1 + e**-x) of each element.

    >>> sigmoid([0.0, -1000.0])
    Tensor([0.5, 0. ])
    """
    return _as_tensor(x).sigmoid()


def relu(x: TensorLike) -> Tensor:
    """max(x, 0) of each element; the gradient at 0 is 0.

    >>> relu([-1.0, 2.0])
    Tensor([0., 2.])
    """
    return _as_tensor(x).relu()


def scaled_tanh(x: TensorLike, amplitude: float = 1.7159, slope: float = 2 / 3) -> Tensor:
    """amplitude * tanh(slope * x), by default the squashing function of LeCun et al. (1998): f(1) = 1, f(-1) = -1.

    >>> round(scaled_tanh(1.0).item(), 4)
    1.0
    """
    amplitude, slope = number("scaled_tanh", "amplitude", amplitude), number("scaled_tanh", "slope", slope)
    if not amplitude:
        raise ValueError("scaled_tanh: amplitude is 0; expected another number")
    return ScaledTanh(amplitude, slope)(x)


def softmax(x: TensorLike, axis: int = -1) -> Tensor:
    """e**x / sum of e**x along ``axis``; x[...] -> y[...], without overflow for large x.

    >>> softmax([0.0, 0.0])
    Tensor([0.5, 0.5])
    """
    return _as_tensor(x).softmax(axis)


def log_softmax(x: TensorLike, axis: int = -1) -> Tensor:
    """log(softmax(x)) along ``axis``; x[...] -> y[...], without overflow or loss of digits.

    >>> log_softmax([0.0, 10000.0])
    Tensor([-10000.,      0.])
    """
    return _as_tensor(x).log_softmax(axis)


def logsumexp(x: TensorLike, axis: int | Sequence[int] | None = None, keepdims: bool = False) -> Tensor:
    """log(sum of e**x) along ``axis`` (default: all axes), without overflow; -inf where all of x is -inf.

    >>> logsumexp([10000.0, -float("inf")]).item()
    10000.0
    """
    return _as_tensor(x).logsumexp(axis, keepdims)


def one_hot(labels: TensorLike, classes: int, dtype: Any = np.float32) -> Tensor:
    """labels[N], integers in [0, classes) -> y[N K]: 1 at the label, 0 elsewhere.

    Labels on the host are range-checked (ValueError); on a GPU they are not, since that would wait for it.

    >>> one_hot(np.array([1]), 3)
    Tensor([[0., 1., 0.]])
    """
    return _one_hot(_labels("one_hot", labels, integer("one_hot", "classes", classes, minimum=1)), classes, dtype)


def _one_hot(labels: Tensor, classes: int, dtype: Any) -> Tensor:
    backend = backend_of(labels.data)
    with backend.current(labels.data):
        return Tensor((labels.data[:, None] == backend.xp.arange(classes)).astype(dtype), device=labels.device)


def _labels(op: str, labels: TensorLike, classes: int, device: str | None = None) -> Tensor:
    """Class labels[N] as a tensor of integers on ``device``, range-checked first if they lie on the host."""
    values = labels.data if isinstance(labels, Tensor) else _as_array(op, "labels", labels)
    if values.dtype.kind not in "iu":
        raise TypeError(f"{op}: labels have dtype {values.dtype}; expected integers")
    if values.ndim != 1:
        raise ShapeError(f"{op}: labels have shape {values.shape}; expected [N]")
    if isinstance(values, np.ndarray) and values.size:
        low, high = int(values.min()), int(values.max())
        if low < 0 or high >= classes:
            raise ValueError(f"{op}: label {low if low < 0 else high} is out of range; expected 0 to {classes - 1}")
    return labels if isinstance(labels, Tensor) else Tensor(values, device=device)


def cross_entropy(
    logits: TensorLike, target: TensorLike, label_smoothing: float = 0.0, reduction: str = "mean"
) -> Tensor:
    """-sum_k target_k log softmax(logits)_k, in nats: logits[N K], target[N] of integers or [N K] of probabilities.

    ``label_smoothing`` s replaces target by (1 - s) target + s / K (Szegedy et al. 2016). ``reduction`` is "mean" or
    "sum" over N, or "none" -> y[N]. ValueError for labels out of range and for s outside [0, 1].

    >>> round(cross_entropy([[0.0, 0.0]], [1]).item(), 4)
    0.6931
    """
    _check_reduction("cross_entropy", reduction)
    logits = _as_tensor(logits)
    if logits.ndim != 2:
        raise ShapeError(f"cross_entropy: logits have shape {logits.shape}; expected [N K]")
    if not isinstance(label_smoothing, Real) or not 0 <= label_smoothing <= 1:
        raise ValueError(f"cross_entropy: label_smoothing is {label_smoothing!r}; expected a number from 0 to 1")
    smoothing = float(label_smoothing)
    classes = logits.shape[1]
    given = target if isinstance(target, Tensor) else _as_array("cross_entropy", "target", target)
    if given.ndim == 1:
        if given.shape != logits.shape[:1]:
            raise ShapeError(f"cross_entropy: axis N is {logits.shape[0]} in logits and {given.shape[0]} in target")
        probabilities = _one_hot(_labels("cross_entropy", given, classes, logits.device), classes, logits.dtype)
    elif isinstance(target, Tensor):
        probabilities = target
    else:
        probabilities = Tensor(given if hasattr(target, "dtype") else given.astype(np.float32), device=logits.device)
    if smoothing:
        probabilities = (1 - smoothing) * probabilities + smoothing / classes
    return _REDUCTIONS[reduction](CrossEntropy()(logits, probabilities))


def _as_array(op: str, name: str, values: Any) -> Array:
    """Numbers as an array in which integers stay integers, which in a tensor's constructor they would not."""
    try:
        array = values if hasattr(values, "dtype") else np.asarray(values)
    except ValueError:
        raise ValueError(f"{op}: {name} is not a rectangular array of numbers") from None
    if array.dtype.kind not in "fiub":
        raise TypeError(f"{op}: {name} has dtype {array.dtype}; expected numbers")
    return array


def nll_loss(log_probabilities: TensorLike, target: TensorLike, reduction: str = "mean") -> Tensor:
    """-log_probabilities at the label: log_probabilities[N K], target[N] of integers in [0, K).

    ``reduction`` is "mean" or "sum" over N, or "none" -> y[N]. ValueError for labels out of range.

    >>> nll_loss([[-0.5, -1.0]], [1]).item()
    1.0
    """
    _check_reduction("nll_loss", reduction)
    logp = _as_tensor(log_probabilities)
    if logp.ndim != 2:
        raise ShapeError(f"nll_loss: log_probabilities have shape {logp.shape}; expected [N K]")
    labels = _labels("nll_loss", target, logp.shape[1], logp.device)
    if labels.shape != logp.shape[:1]:
        raise ShapeError(f"nll_loss: axis N is {logp.shape[0]} in log_probabilities and {labels.shape[0]} in target")
    rows = np.arange(logp.shape[0])
    return _REDUCTIONS[reduction](-logp[rows, labels.data])


def mse_loss(x: TensorLike, target: TensorLike, reduction: str = "mean") -> Tensor:
    """(x - target)^2, x[...] and target[...] of one shape; ``reduction`` is "mean" or "sum" over all, or "none".

    >>> mse_loss([1.0, 2.0], [1.0, 4.0]).item()
    2.0
    """
    _check_reduction("mse_loss", reduction)
    x, target = _as_tensor(x), _as_tensor(target)
    if x.shape != target.shape:
        raise ShapeError(f"mse_loss: x has shape {x.shape} and target {target.shape}; expected the same")
    return _REDUCTIONS[reduction](MSELoss()(x, target))


def rbf(x: TensorLike, centers: TensorLike) -> Tensor:
    """The squared Euclidean distance of each x from each center: x[N J], centers[K J] -> y[N K], at least 0.

    The output layer of LeCun et al. (1998), Eq. 7: a penalty for each class. Formula: `ops.distance.RBF`.

    >>> rbf([[1.0, -1.0]], [[1.0, 1.0], [1.0, -1.0]])
    Tensor([[4., 0.]])
    """
    return RBF()(x, centers)


def penalty_loss(penalties: TensorLike, target: TensorLike, j: float | None = None, reduction: str = "mean") -> Tensor:
    """The penalty y_D of the right class, and with ``j`` the competition of the wrong ones: penalties[N K], target[N].

    Without j, y_D (LeCun et al., 1998, Eq. 8). With it, y_D + log(e**-j + sum_k e**-y_k) (Eq. 9), where e**-j stands
    for a class of rubbish, so that penalties that are large already are not pushed on. It is the `cross_entropy` of the
    logits -y_1 ... -y_K, -j, and so it neither overflows nor loses digits. ``target`` holds integers in [0, K);
    ``reduction`` is "mean" or "sum" over N, or "none" -> y[N]. ValueError for labels out of range, and for j that is
    not positive.

    >>> penalty_loss([[1.0, 8.0]], [1]).item()
    8.0
    >>> round(penalty_loss([[1.0, 8.0]], [1], j=4.0).item(), 3)
    7.049
    """
    _check_reduction("penalty_loss", reduction)
    penalties = _as_tensor(penalties)
    if penalties.dtype.kind != "f":
        penalties = penalties.astype("float64")
    if penalties.ndim != 2:
        raise ShapeError(f"penalty_loss: penalties have shape {penalties.shape}; expected [N K]")
    labels = _labels("penalty_loss", target, penalties.shape[1], penalties.device)
    if labels.shape != penalties.shape[:1]:
        raise ShapeError(f"penalty_loss: axis N is {penalties.shape[0]} in penalties and {labels.shape[0]} in target")
    if j is None:
        return _REDUCTIONS[reduction](penalties[np.arange(penalties.shape[0]), labels.data])
    rubbish = number("penalty_loss", "j", j, low=0, low_allowed=False)
    constant = Tensor(np.full((penalties.shape[0], 1), -rubbish, penalties.dtype), device=penalties.device)
    logits = Concatenate(1)(-penalties, constant)  # (N, K) -> (N, K + 1)
    return _REDUCTIONS[reduction](CrossEntropy()(logits, _one_hot(labels, logits.shape[1], logits.dtype)))


_REDUCTIONS: dict[str, Callable[[Tensor], Tensor]] = {"mean": Tensor.mean, "sum": Tensor.sum, "none": lambda y: y}


def _check_reduction(op: str, reduction: str) -> None:
    if reduction not in _REDUCTIONS:
        raise ValueError(f"{op}: reduction is {reduction!r}; expected 'mean', 'sum' or 'none'")


def dropout(x: TensorLike, p: float = 0.5, training: bool = True, rng: np.random.Generator | None = None) -> Tensor:
    """Each element of x[...] set to 0 with probability ``p``, the others divided by 1 - p; x itself if not training.

    Srivastava et al. (2014), in the form that needs nothing at test time. The choice comes from ``rng`` (default: a
    fresh NumPy generator), on the host, so that every device draws the same.

    >>> dropout([1.0, 1.0, 1.0], p=0.5, rng=np.random.default_rng(2))
    Tensor([2., 0., 0.])
    """
    if not isinstance(p, Real) or not 0 <= p < 1:
        raise ValueError(f"dropout: p is {p!r}; expected a probability from 0 up to, but not including, 1")
    if rng is not None and not isinstance(rng, np.random.Generator):
        raise TypeError(f"dropout: rng is {rng!r}; expected a NumPy generator, np.random.default_rng(seed)")
    x = _as_tensor(x)
    if not training or p == 0:
        return x
    keep = (rng or np.random.default_rng()).random(x.shape, dtype=np.float32) >= p
    return x * Tensor((keep / (1 - p)).astype(x.dtype), device=x.device)


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

    While training, mean and variance are those of the batch, and the running ones, if given as tensors, move towards
    them in place by ``momentum`` (the variance in its unbiased form); else the running ones are used.

    >>> batch_norm([[1.0], [3.0]], None, None, training=True, eps=0.0)
    Tensor([[-1.],
            [ 1.]])
    """
    x = _as_tensor(x)
    if x.ndim < 2:
        raise ShapeError(f"batch_norm: x has shape {x.shape}; expected [N C ...]")
    channels = x.shape[1]
    for name, value in (
        ("running_mean", running_mean),
        ("running_var", running_var),
        ("weight", weight),
        ("bias", bias),
    ):
        if value is not None and np.shape(value) != (channels,):
            raise ShapeError(f"batch_norm: axis C is {channels} in x and {np.shape(value)} in {name}")
    if not isinstance(eps, Real) or not eps >= 0:
        raise ValueError(f"batch_norm: eps is {eps!r}; expected a number of at least 0")
    if not isinstance(momentum, Real) or not 0 <= momentum <= 1:
        raise ValueError(f"batch_norm: momentum is {momentum!r}; expected a number from 0 to 1")
    if not training and (running_mean is None or running_var is None):
        raise ValueError("batch_norm: running_mean and running_var are needed when training is False")
    per_channel = (1, channels) + (1,) * (x.ndim - 2)
    if training:
        axes = (0, *range(2, x.ndim))
        count = x.size // channels if channels else 0
        if count < 2:
            raise ValueError(f"batch_norm: x has shape {x.shape}; training needs more than one value a channel")
        mean = x.mean(axes, keepdims=True)
        centred = x - mean
        var = (centred * centred).mean(axes, keepdims=True)
        for running, batch in ((running_mean, mean.data), (running_var, var.data * (count / (count - 1)))):
            if isinstance(running, Tensor):
                running.data *= 1 - momentum
                running.data += momentum * batch.reshape(channels)
    else:
        centred = x - _as_tensor(running_mean).reshape(per_channel)
        var = _as_tensor(running_var).reshape(per_channel)
    scale = (var + eps) ** -0.5
    if weight is not None:
        scale = scale * _as_tensor(weight).reshape(per_channel)
    y = centred * scale
    return y if bias is None else y + _as_tensor(bias).reshape(per_channel)


def pad(x: TensorLike, pad_width: int | Sequence[Any], value: float = 0.0) -> Tensor:
    """x[...] with ``value`` around it; ``pad_width`` as NumPy's: an integer, (before, after), or one such pair an axis.

    >>> pad([1.0], (2, 1))
    Tensor([0., 0., 1., 0.])
    """
    x = _as_tensor(x)
    try:
        widths = np.broadcast_to(np.asarray(pad_width), (x.ndim, 2)).tolist()
    except ValueError:
        raise ShapeError(f"pad: pad_width {pad_width!r} does not give (before, after) for {x.ndim} axes") from None
    checked = tuple(
        (integer("pad", "pad_width", before, minimum=0), integer("pad", "pad_width", after, minimum=0))
        for before, after in widths
    )
    if not isinstance(value, Real):
        raise TypeError(f"pad: value is {value!r}; expected a number")
    return Pad(checked, float(value))(x)


def where(condition: TensorLike, x: TensorLike, y: TensorLike) -> Tensor:
    """x where ``condition`` holds, else y, broadcast together; the branch not taken gets a gradient of 0.

    >>> where(np.array([True, False]), 1.0, np.zeros(2))
    Tensor([1., 0.], dtype=float64)
    """
    mask = condition if isinstance(condition, Tensor) else Tensor(np.asarray(condition))
    if not any(hasattr(branch, "dtype") for branch in (x, y)):
        x = Tensor(x, device=mask.device)  # two Python numbers: float32, as everywhere
    if mask.dtype != np.bool_:
        raise TypeError(f"where: condition has dtype {mask.dtype}; expected booleans, for instance x > 0")
    return Where()(mask, x, y)


def maximum(x: TensorLike, y: TensorLike) -> Tensor:
    """The larger of x[...] and y[...], broadcast together; ties share the gradient half and half.

    >>> maximum([1.0, 5.0], 2.0)
    Tensor([2., 5.])
    """
    return Maximum()(x if hasattr(x, "dtype") or hasattr(y, "dtype") else Tensor(x), y)


def minimum(x: TensorLike, y: TensorLike) -> Tensor:
    """The smaller of x[...] and y[...], broadcast together; ties share the gradient half and half.

    >>> minimum([1.0, 5.0], 2.0)
    Tensor([1., 2.])
    """
    return Minimum()(x if hasattr(x, "dtype") or hasattr(y, "dtype") else Tensor(x), y)


def concatenate(xs: Sequence[TensorLike], axis: int = 0) -> Tensor:
    """The tensors one after the other along ``axis``; the other axes must agree.

    >>> concatenate([[1.0], [2.0, 3.0]])
    Tensor([1., 2., 3.])
    """
    return Concatenate(axis)(*_tensors("concatenate", xs))


def stack(xs: Sequence[TensorLike], axis: int = 0) -> Tensor:
    """The tensors, all of one shape, side by side along a new axis at place ``axis`` of the result.

    >>> stack([[1.0], [2.0]], axis=1)
    Tensor([[1., 2.]])
    """
    tensors = _tensors("stack", xs)
    for i, x in enumerate(tensors):
        if x.shape != tensors[0].shape:
            raise ShapeError(f"stack: input {i} has shape {x.shape}, input 0 {tensors[0].shape}; expected the same")
    place = normalize_axis("stack", axis, tensors[0].ndim + 1)
    return Concatenate(place)(*(x.expand_dims(place) for x in tensors))


def _tensors(op: str, xs: Sequence[TensorLike]) -> list[Tensor]:
    """A sequence of at least one tensor."""
    if not isinstance(xs, (list, tuple)):
        raise TypeError(f"{op}: xs is {type(xs).__name__}; expected a list or tuple of tensors")
    if not xs:
        raise ShapeError(f"{op}: there is nothing to join; expected at least one tensor")
    return list(map(_as_tensor, xs))


def einsum(subscripts: str, *operands: TensorLike) -> Tensor:
    """Einstein's sum over named axes, with NumPy's subscripts: letters, commas, ``...`` and an optional ``->``.

    The axes under ``...`` must have equal sizes; axes of size 1 are not repeated.

    >>> einsum("ij,ij->i", [[1.0, 2.0]], [[3.0, 4.0]])
    Tensor([11.])
    """
    tensors = list(map(_as_tensor, operands))
    inputs, output = _explicit_subscripts(subscripts, tensors)
    free = iter(letter for letter in ascii_letters if letter not in "".join([*inputs, output]))

    def constant(values: np.ndarray) -> Tensor:
        return Tensor(values.astype(tensors[0].dtype), device=tensors[0].device)

    # Einsum itself takes each letter once an operand, and sums no letter that only one operand has. A letter twice
    # ("ii") becomes two letters tied by an identity matrix; a letter summed alone meets a vector of ones.
    for i in range(len(tensors)):
        letters = ""
        for axis, letter in enumerate(inputs[i]):
            if letter in letters:
                first, size = tensors[i].shape[letters.index(letter)], tensors[i].shape[axis]
                if first != size:
                    raise ShapeError(f"einsum: axis {letter} is {first} and {size}, in operand {i}")
                other = next(free)
                tensors.append(constant(np.eye(tensors[i].shape[axis])))
                inputs.append(letter + other)
                letter = other
            letters += letter
        inputs[i] = letters
    for i in range(len(tensors)):
        for axis, letter in enumerate(inputs[i]):
            if letter not in output and not any(letter in each for j, each in enumerate(inputs) if j != i):
                tensors.append(constant(np.ones(tensors[i].shape[axis])))
                inputs.append(letter)
    return Einsum(",".join(inputs) + "->" + output)(*tensors)


def _explicit_subscripts(subscripts: str, tensors: list[Tensor]) -> tuple[list[str], str]:
    """Subscripts with ``...`` spelled out and the output given: the letters of each operand, and of the output."""
    if not isinstance(subscripts, str):
        raise TypeError(f"einsum: subscripts are {type(subscripts).__name__}; expected a string such as 'ij,jk->ik'")
    text = subscripts.replace(" ", "")
    left, arrow, output = text.partition("->")
    inputs = left.split(",")
    if len(inputs) != len(tensors):
        raise ShapeError(f"einsum: {subscripts!r} is for {len(inputs)} operands; {len(tensors)} were given")
    unused = [letter for letter in reversed(ascii_letters) if letter not in text]
    ranks = []
    for i, (letters, x) in enumerate(zip(inputs, tensors, strict=True)):
        named = len(letters.replace("...", "", 1))
        fits = x.ndim >= named if "..." in letters else x.ndim == named
        if not fits or not set(letters.replace("...", "", 1)) <= set(ascii_letters):
            raise ShapeError(f"einsum: operand {i} has shape {x.shape}, which {letters!r} does not describe")
        ranks.append(x.ndim - named if "..." in letters else 0)
    shapes = [
        x.shape[(p := letters.find("...")) : p + rank]
        for letters, x, rank in zip(inputs, tensors, ranks, strict=True)
        if rank
    ]
    if len({shape[::-1][: min(map(len, shapes))] for shape in shapes}) > 1:
        broadcast_shape("einsum", shapes)
        raise ShapeError(f"einsum: the axes under ... have shapes {shapes}; they must have the same sizes")
    dots = "".join(unused[: max(ranks, default=0)])
    inputs = [letters.replace("...", dots[len(dots) - rank :]) for letters, rank in zip(inputs, ranks, strict=True)]
    if not arrow:
        once = sorted(letter for letter in set("".join(inputs)) if "".join(inputs).count(letter) == 1)
        output = dots + "".join(letter for letter in once if letter not in dots)
    output = output.replace("...", dots)
    for letter in output:
        if output.count(letter) > 1 or letter not in "".join(inputs):
            raise ShapeError(f"einsum: axis {letter} of the output must stand once there and in an operand")
    return inputs, output
