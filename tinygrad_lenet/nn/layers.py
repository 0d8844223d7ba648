"""The layers. Arguments, weight layouts and initial values are PyTorch's; `functional` documents the formulas.

A layer holds its op, which has checked the settings, and its parameters in ``dtype``, by default float32. It takes
inputs of that dtype or integers.

Weights and biases start uniform in +-1/sqrt(fan_in), where fan_in is the number of inputs that one output sums over
(for the transposed convolution, as in PyTorch, the number of outputs of one channel that an input reaches). They are
drawn with NumPy on the host, in float64, so every device and dtype starts from the same values. ``rng`` is a NumPy
generator, a seed, or None for the generator of `tinygrad_lenet.manual_seed`.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import functional as F
from ..graph import no_grad
from ..op import op
from ..ops.conv import Conv2d as Conv2dOp
from ..ops.conv import ConvTranspose2d as ConvTranspose2dOp
from ..ops.lenet_1998 import ScaledTanh as ScaledTanhOp
from ..ops.lenet_1998 import ScatterKernels, connection_table
from ..ops.lenet_1998 import Subsample2d as Subsample2dOp
from ..ops.pool import AvgPool2d as AvgPool2dOp
from ..ops.pool import MaxPool2d as MaxPool2dOp
from ..shapes import Pair, ShapeError, generator, integer, number, pair
from ..tensor import Tensor, TensorLike, as_tensor, check_writable
from .module import Activation, Module, Parameter

Random = np.random.Generator | int | None
OneOrTwo = int | tuple[int, int]  # the same for both axes, or (vertical, horizontal)


class _Windowed(Module):
    """A layer whose op moves a window over images."""

    op: Any

    @property
    def stride(self) -> Pair:
        """How far the window moves, (vertical, horizontal)."""
        return self.op.stride

    @property
    def padding(self) -> Pair:
        """How many pixels are added on each side, (vertical, horizontal)."""
        return self.op.padding


class _Convolution(_Windowed):
    """What convolution and its transpose share: their op, weight (rows, columns, KH, KW) and bias."""

    weight: Parameter
    bias: Parameter | None

    op: Conv2dOp | ConvTranspose2dOp

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: OneOrTwo, op: Conv2dOp | ConvTranspose2dOp
    ) -> None:
        layer = type(self).__name__
        self.in_channels: int = integer(layer, "in_channels", in_channels, minimum=1)
        self.out_channels: int = integer(layer, "out_channels", out_channels, minimum=1)
        self.kernel_size: Pair = pair(layer, "kernel_size", kernel_size, minimum=1)
        self.op = op
        for name, channels in (("in_channels", self.in_channels), ("out_channels", self.out_channels)):
            if channels % op.groups:
                raise ValueError(f"{layer}: {name} is {channels}; expected a multiple of groups, {op.groups}")

    @property
    def dilation(self) -> Pair:
        """The distance between neighbouring kernel elements, (vertical, horizontal)."""
        return self.op.dilation

    @property
    def groups(self) -> int:
        """The number of groups of channels that are convolved separately."""
        return self.op.groups

    def _draw(self, rows: int, columns: int, bias: bool, rng: Random, dtype: Any) -> None:
        shape = (rows, columns, *self.kernel_size)
        biases = self.out_channels if bias else None
        self.weight, self.bias = _initial(type(self).__name__, shape, math.prod(shape[1:]), biases, rng, dtype)

    def forward(self, x: TensorLike) -> Tensor:
        return self.op(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        for name, default in (("padding", (0, 0)), ("output_padding", (0, 0)), ("dilation", (1, 1)), ("groups", 1)):
            if getattr(self.op, name, default) != default:
                text += f", {name}={getattr(self.op, name)}"
        return text if self.bias is not None else text + ", bias=False"


class Conv2d(_Convolution):
    """`functional.conv2d` with weight[F C/groups KH KW] and bias[F]: x[N C H W] -> y[N F OH OW].

    F is ``out_channels``, C ``in_channels``. ``connections`` lists, for each output map, the input maps that it sees,
    like Table I of LeCun et al. (1998); then only these K pairs of maps have kernels, weight[K KH KW], row by row.
    TypeError or ValueError for sizes that are not integers in range, for channels that do not split into ``groups``,
    and for connections that name a map that does not exist, lack a row for an output map, or come with groups.

    >>> Conv2d(1, 6, 5)
    Conv2d(1, 6, kernel_size=(5, 5), stride=(1, 1))
    >>> Conv2d(3, 2, 5, connections=[[0, 1], [1, 2]]).weight.shape
    (4, 5, 5)
    """

    weight: Parameter
    bias: Parameter | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: OneOrTwo,
        stride: OneOrTwo = 1,
        padding: OneOrTwo = 0,
        dilation: OneOrTwo = 1,
        groups: int = 1,
        bias: bool = True,
        rng: Random = None,
        dtype: Any = np.float32,
        connections: Sequence[Sequence[int]] | None = None,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, Conv2dOp(stride, padding, dilation, groups))
        self.connections: tuple[tuple[int, ...], ...] | None = None
        if connections is None:
            self._draw(self.out_channels, self.in_channels // self.groups, bias, rng, dtype)
            return
        self.connections = connection_table("Conv2d", connections, self.in_channels)
        if len(self.connections) != self.out_channels:
            raise ValueError(
                f"Conv2d: connections has {len(self.connections)} rows; expected one for each of the "
                f"{self.out_channels} output maps"
            )
        if self.groups != 1:
            raise ValueError(f"Conv2d: groups is {self.groups}, and connections are given; expected only one of them")
        self._scatter = ScatterKernels.of(self.connections, self.in_channels)
        # Each output map has its own fan-in, so each is drawn like a layer with one map.
        rng = generator("Conv2d", "rng", rng)
        kernels = [(len(maps), *self.kernel_size) for maps in self.connections]
        drawn = [_initial("Conv2d", shape, math.prod(shape), 1 if bias else None, rng, dtype) for shape in kernels]
        biases = [b.detach() for _, b in drawn if b is not None]
        self.weight = Parameter(F.concatenate([weight.detach() for weight, _ in drawn]), dtype=dtype)
        self.bias = Parameter(F.concatenate(biases), dtype=dtype) if bias else None

    def forward(self, x: TensorLike) -> Tensor:
        if self.connections is None:
            return super().forward(x)
        return self.op(x, self._scatter(self.weight), self.bias)  # (K, KH, KW) -> (F, C, KH, KW), 0 for all other pairs

    def extra_repr(self) -> str:
        if self.connections is None:
            return super().extra_repr()
        pairs = sum(map(len, self.connections))
        return f"{super().extra_repr()}, connections={pairs} of {self.in_channels * self.out_channels}"


class ConvTranspose2d(_Convolution):
    """`functional.conv_transpose2d` with weight[F C/groups KH KW] and bias[C]: x[N F H W] -> y[N C OH OW].

    F is ``in_channels``, C ``out_channels``. Errors are those of `Conv2d`.

    >>> ConvTranspose2d(6, 1, 2, stride=2)
    ConvTranspose2d(6, 1, kernel_size=(2, 2), stride=(2, 2))
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: OneOrTwo,
        stride: OneOrTwo = 1,
        padding: OneOrTwo = 0,
        output_padding: OneOrTwo = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: OneOrTwo = 1,
        rng: Random = None,
        dtype: Any = np.float32,
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, ConvTranspose2dOp(stride, padding, output_padding, dilation, groups)
        )
        self._draw(self.in_channels, self.out_channels // self.groups, bias, rng, dtype)

    @property
    def output_padding(self) -> Pair:
        """The pixels added at the output's lower and right edge, (vertical, horizontal)."""
        return getattr(self.op, "output_padding")  # noqa: B009 - the op of a convolution has none


class Linear(Module):
    """y = x weight^T + bias with weight[O I] and bias[O]: x[... I] -> y[... O].

    I is ``in_features``, O ``out_features``; TypeError or ValueError if they are not integers of at least 1.

    >>> Linear(84, 10)
    Linear(in_features=84, out_features=10, bias=True)
    """

    weight: Parameter
    bias: Parameter | None

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, rng: Random = None, dtype: Any = np.float32
    ) -> None:
        self.in_features: int = integer("Linear", "in_features", in_features, minimum=1)
        self.out_features: int = integer("Linear", "out_features", out_features, minimum=1)
        shape = (self.out_features, self.in_features)
        biases = self.out_features if bias else None
        self.weight, self.bias = _initial("Linear", shape, self.in_features, biases, rng, dtype)

    def forward(self, x: TensorLike) -> Tensor:
        return op("linear")(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


class _Pool(_Windowed):
    """What both poolings share: an op with a window, its stride (by default the window's size) and padding."""

    op: AvgPool2dOp | MaxPool2dOp

    def __init__(self, op: AvgPool2dOp | MaxPool2dOp) -> None:
        self.op = op

    @property
    def kernel_size(self) -> Pair:
        """The size of the window, (vertical, horizontal)."""
        return self.op.kernel_size

    def forward(self, x: TensorLike) -> Tensor:
        return self.op(x)

    def extra_repr(self) -> str:
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"


class AvgPool2d(_Pool):
    """The mean of each window: x[N C H W] -> y[N C OH OW]; padding counts as pixels of value 0.

    TypeError or ValueError for a window, stride or padding out of range.

    >>> AvgPool2d(2)
    AvgPool2d(kernel_size=(2, 2), stride=(2, 2), padding=(0, 0))
    """

    def __init__(self, kernel_size: OneOrTwo, stride: OneOrTwo | None = None, padding: OneOrTwo = 0) -> None:
        super().__init__(AvgPool2dOp(kernel_size, stride, padding))


class MaxPool2d(_Pool):
    """The largest pixel of each window: x[N C H W] -> y[N C OH OW]; padding counts as -inf.

    TypeError or ValueError for a window, stride or padding out of range.

    >>> MaxPool2d(2)([[[[1, 2], [3, 6]]]]).item()
    6.0
    """

    def __init__(self, kernel_size: OneOrTwo, stride: OneOrTwo | None = None, padding: OneOrTwo = 0) -> None:
        super().__init__(MaxPool2dOp(kernel_size, stride, padding))


class Subsample2d(Module):
    """A trainable coefficient times the sum of each window, plus a trainable bias: x[N C H W] -> y[N C OH OW].

    C is ``channels``; weight[C] starts at 1 / (KH KW), which makes it a mean, and bias[C] at 0. The subsampling of
    LeCun et al. (1998), Section II.B, without its squashing function. TypeError or ValueError for sizes out of range.

    >>> Subsample2d(1, 2)([[[[1, 2], [3, 6]]]]).item()
    3.0
    """

    def __init__(self, channels: int, kernel_size: OneOrTwo = 2, dtype: Any = np.float32) -> None:
        self.channels: int = integer("Subsample2d", "channels", channels, minimum=1)
        self.op: Subsample2dOp = Subsample2dOp(kernel_size)
        dtype = _float_dtype("Subsample2d", dtype)
        self.weight: Parameter = Parameter(np.full(self.channels, 1 / math.prod(self.kernel_size)), dtype=dtype)
        self.bias: Parameter = Parameter(np.zeros(self.channels), dtype=dtype)

    @property
    def kernel_size(self) -> Pair:
        """The size of the window, (vertical, horizontal)."""
        return self.op.kernel_size

    def forward(self, x: TensorLike) -> Tensor:
        return self.op(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        return f"{self.channels}, kernel_size={self.kernel_size}"


class RBF(Module):
    """Euclidean radial basis functions: the squared distance of x[N J] from each of the centers[K J] -> y[N K].

    The output layer of LeCun et al. (1998): a penalty for each class, at least 0. The centers are fixed, a buffer, or a
    parameter if ``trainable``. ValueError if they are not floats or numbers in rows of equal length.

    >>> RBF([[1.0, 1.0], [1.0, -1.0]])([[1.0, -1.0]])
    Tensor([[4., 0.]])
    """

    centers: Tensor

    def __init__(self, centers: Any, trainable: bool = False, dtype: Any = np.float32) -> None:
        given = Tensor(centers, dtype=_float_dtype("RBF", dtype)).copy()
        if given.ndim != 2 or not given.size:
            raise ValueError(f"RBF: centers have shape {given.shape}; expected one row per class, [K J]")
        if trainable:
            self.centers = Parameter(given.data, dtype=given.dtype)
        else:
            self.register_buffer("centers", given)

    def forward(self, x: TensorLike) -> Tensor:
        return op("rbf")(x, self.centers)

    def extra_repr(self) -> str:
        classes, features = self.centers.shape
        return f"{features}, {classes}, trainable={isinstance(self.centers, Parameter)}"


class Tanh(Activation):
    """The hyperbolic tangent of each element.

    >>> Tanh()([0.0, 100.0])
    Tensor([0., 1.])
    """

    def forward(self, x: TensorLike) -> Tensor:
        return op("tanh")(x)


class Sigmoid(Activation):
    """1 / (1 + e**-x) of each element.

    >>> Sigmoid()(0.0).item()
    0.5
    """

    def forward(self, x: TensorLike) -> Tensor:
        return op("sigmoid")(x)


class ReLU(Activation):
    """max(x, 0) of each element; ``inplace``, which PyTorch has, changes nothing.

    >>> ReLU()([-1.0, 2.0])
    Tensor([0., 2.])
    """

    def __init__(self, inplace: bool = False) -> None:
        pass

    def forward(self, x: TensorLike) -> Tensor:
        return op("relu")(x)


class ScaledTanh(Activation):
    """amplitude * tanh(slope * x) of each element, by default the squashing function of LeCun et al. (1998).

    >>> round(ScaledTanh()(1.0).item(), 4)
    1.0
    """

    def __init__(self, amplitude: float = 1.7159, slope: float = 2 / 3) -> None:
        self.op: ScaledTanhOp = ScaledTanhOp(amplitude, slope)

    def forward(self, x: TensorLike) -> Tensor:
        return self.op(x)

    def extra_repr(self) -> str:
        return f"amplitude={self.op.amplitude:g}, slope={self.op.slope:g}"


class Flatten(Module):
    """The axes from ``start_dim`` on, merged into one: x[N ...] -> y[N K], where K is the product of their sizes.

    TypeError or ValueError if ``start_dim`` is not an integer of at least 0; ShapeError if x does not have that axis.

    >>> Flatten()(np.zeros((2, 3, 4))).shape
    (2, 12)
    """

    def __init__(self, start_dim: int = 1) -> None:
        self.start_dim: int = integer("Flatten", "start_dim", start_dim, minimum=0)

    def forward(self, x: TensorLike) -> Tensor:
        x = as_tensor(x)
        kept, joined = x.shape[: self.start_dim], x.shape[self.start_dim :]
        if not joined:
            raise ShapeError(f"Flatten: x has shape {x.shape}; expected an axis {self.start_dim}, counted from 0")
        return x.reshape((*kept, math.prod(joined)))  # (N, ...) -> (N, K); -1 would be unknown for an empty batch

    def extra_repr(self) -> str:
        return f"start_dim={self.start_dim}"


class Dropout(Module):
    """While training, each element of x[...] is 0 with probability ``p``, the others are divided by 1 - p.

    The choices come from the module's own generator: ``rng``, or one seeded with it. ValueError if p is not in [0, 1).

    >>> Dropout(0.5, rng=1)([1.0, 1.0, 1.0])
    Tensor([2., 0., 0.])
    """

    def __init__(self, p: float = 0.5, rng: Random = None) -> None:
        self.p: float = number("Dropout", "p", p, "[0, 1)")
        self.rng: np.random.Generator = generator("Dropout", "rng", rng)

    def forward(self, x: TensorLike) -> Tensor:
        return F.dropout(x, self.p, self.training, self.rng)

    def extra_repr(self) -> str:
        return f"p={self.p:g}"


class _BatchNorm(Module):
    """Batch normalisation with PyTorch's parameters and buffers; subclasses say which inputs they take."""

    _inputs: tuple[str, ...]

    weight: Parameter | None
    bias: Parameter | None
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = True,
        dtype: Any = np.float32,
    ) -> None:
        layer = type(self).__name__
        self.num_features: int = integer(layer, "num_features", num_features, minimum=1)
        channels = self.num_features
        self.eps: float = number(layer, "eps", eps, "[0, inf)")
        self.momentum: float = number(layer, "momentum", momentum, "[0, 1]")
        dtype = _float_dtype(layer, dtype)
        self.weight = Parameter(np.ones(channels), dtype=dtype) if affine else None
        self.bias = Parameter(np.zeros(channels), dtype=dtype) if affine else None
        self.register_buffer("running_mean", Tensor(np.zeros(channels, dtype)))
        self.register_buffer("running_var", Tensor(np.ones(channels, dtype)))
        # Nothing here reads this count; it is kept because PyTorch's states have it.
        self.register_buffer("num_batches_tracked", Tensor(np.zeros((), np.int64)))

    def forward(self, x: TensorLike) -> Tensor:
        x = as_tensor(x)
        if x.ndim not in map(len, map(str.split, self._inputs)):
            expected = " or ".join(f"[{axes}]" for axes in self._inputs)
            raise ShapeError(f"{type(self).__name__}: x has shape {x.shape}; expected {expected}")
        if self.training:
            check_writable(type(self).__name__, "num_batches_tracked", self.num_batches_tracked)
        y = F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, self.training, self.momentum, self.eps
        )
        if self.training:
            with no_grad():
                self.num_batches_tracked += 1
        return y

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps:g}, momentum={self.momentum:g}, affine={self.weight is not None}"


class BatchNorm2d(_BatchNorm):
    """`functional.batch_norm` over N, H and W, with learned weight[C] and bias[C]: x[N C H W] -> y[N C H W].

    C is ``num_features``. While training, the statistics are those of the batch, and the running ones follow them;
    otherwise the running ones are used. TypeError or ValueError for settings out of range, ShapeError unless x has 4
    axes.

    >>> BatchNorm2d(6)
    BatchNorm2d(6, eps=1e-05, momentum=0.1, affine=True)
    """

    _inputs = ("N C H W",)


class BatchNorm1d(_BatchNorm):
    """`BatchNorm2d` for x[N C] or x[N C L].

    >>> BatchNorm1d(1, eps=0.0)([[1.0], [3.0]]).numpy().tolist()
    [[-1.0], [1.0]]
    """

    _inputs = ("N C", "N C L")


def _initial(
    layer: str, shape: tuple[int, ...], fan_in: int, biases: int | None, rng: Random, dtype: Any
) -> tuple[Parameter, Parameter | None]:
    """A weight and, unless ``biases`` is None, that many biases, uniform in +-1/sqrt(fan_in) (PyTorch's default)."""
    rng, dtype = generator(layer, "rng", rng), _float_dtype(layer, dtype)
    bound = 1 / math.sqrt(fan_in)
    weight = Parameter(rng.uniform(-bound, bound, shape), dtype=dtype)
    return weight, None if biases is None else Parameter(rng.uniform(-bound, bound, biases), dtype=dtype)


def _float_dtype(layer: str, dtype: Any) -> np.dtype[Any]:
    found = np.dtype(dtype)
    if found.kind != "f":
        raise TypeError(f"{layer}: dtype is {found}; expected floats, such as 'float32'")
    return found
