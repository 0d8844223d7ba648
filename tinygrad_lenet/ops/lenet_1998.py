"""Ops that only the LeNet-5 of 1998 needs: scaled tanh, subsampling, connection tables, radial basis functions.

LeCun, Bottou, Bengio, Haffner, Gradient-Based Learning Applied to Document Recognition, Proc. IEEE 86(11), 1998.
"""

from functools import lru_cache
from typing import Any

from ..backend import Array, backend_of
from ..curvature import Elementwise, Movement
from ..op import REAL, Op, op
from ..shapes import Pair, PairLike, ShapeError, integer, number, pair, window_positions
from .elementwise import TanhGrad
from .reduction import total
from .windows import filled_images, window_pixels

_KERNEL = {"kernel_size": (pair, 1)}
_KERNELS = {"kernel_size": (2, (3, 2), (2, 1))}
_SIZES = {"N": range(3), "C": range(1, 3), "H": range(3, 7), "W": range(3, 7), "OH": (1, 2, 3), "OW": (1, 2, 3)}


class ScaledTanh(Elementwise):
    """y = A tanh(S x) with amplitude A and slope S; dy/dx = S (A - y^2 / A) (see `TanhGrad`). (Appendix A.)"""

    amplitude: float
    slope: float

    signature = "scaled_tanh(x[...]) -> y[...]"
    domains = {"x": REAL}
    rules = {"amplitude": (number,), "slope": (number,)}
    parameters = TanhGrad.parameters

    def __post_init__(self):
        super().__post_init__()
        if not self.amplitude:
            raise ValueError("scaled_tanh: amplitude is 0; expected another number")

    def forward(self, xp, x):
        y = xp.tanh(self.slope * x)
        y *= self.amplitude
        return y

    def backward(self, gy, y, x):
        return op("tanh_grad", self.amplitude, self.slope)(gy, y)


class Subsample2d(Op):
    """y[n c oh ow] = weight[c] s[n c oh ow] + bias[c], s = sum of x over the window; windows are adjacent.

    gx = weight gy at each pixel of the window (`Subsample2dTranspose`), gw = sum of gy s over n, oh, ow
    (`Subsample2dWeightGrad`), gb = sum of gy. As with convolution, each of the three is a derivative of the others.
    (Section II.B: a unit adds its inputs. With weight 1 / (KH KW) it takes their mean.)
    """

    kernel_size: PairLike

    signature = "subsample2d(x[N C H W], weight[C], bias[C]?) -> y[N C OH OW]"
    domains = {"x": REAL, "weight": REAL, "bias": REAL}
    rules = _KERNEL
    parameters = _KERNELS
    sizes = _SIZES
    one_float_dtype = True

    def output_shape(self, *shapes):
        self.bind(shapes)
        return *shapes[0][:2], *_positions(self, shapes[0])

    def forward(self, xp, x, weight, bias=None):
        y = _window_sums(self, x) * weight.reshape(-1, 1, 1)
        return y if bias is None else y + bias.reshape(-1, 1, 1)

    def backward(self, gy, y, x, weight, *bias):
        return (
            lambda: op("subsample2d_transpose", self.kernel_size, x.shape[2:])(gy, weight),
            lambda: op("subsample2d_weight_grad", self.kernel_size)(x, gy),
            *(lambda: gy.sum((0, 2, 3)) for _ in bias),
        )

    def curvature(self, hy, gy, y, x, weight, *bias):
        hx, _, *hb = self.backward(hy, y, x, weight * weight, *bias)

        def hw():
            # The slope is s. Eq. 22, read with one connection per pixel, would have the sum of x^2 instead of s^2.
            s = self.kernel_size[0] * self.kernel_size[1] * op("avg_pool2d", self.kernel_size, self.kernel_size)(x)
            return (hy * (s * s)).sum((0, 2, 3))

        return hx, hw, *hb


class Subsample2dTranspose(Op):
    """The transpose of `Subsample2d` in x: gx = weight[c] gy[n c oh ow] at each pixel of window (oh, ow), else 0.

    With g the gradient of gx: the gradient for gy is subsample2d(g, weight), for the weight the sum of gy times the
    window sums of g.
    """

    kernel_size: PairLike
    size: Pair  # H, W

    signature = "subsample2d_transpose(gy[N C OH OW], weight[C]) -> gx[N C H W]"
    domains = {"gy": REAL, "weight": REAL}
    rules = _KERNEL
    parameters = _KERNELS | {"size": ((4, 4), (3, 5), (6, 4), (2, 2))}
    sizes = _SIZES
    one_float_dtype = True

    def output_shape(self, gy, weight):
        self.bind((gy, weight))
        if _positions(self, (*gy[:2], *self.size)) != gy[2:]:
            raise ShapeError(
                f"subsample2d_transpose: axes OH, OW of gy are {gy[2:]}; windows on {self.size} make others"
            )
        return *gy[:2], *self.size

    def forward(self, xp, gy, weight):
        (n, c, oh, ow), kernel = gy.shape, self.kernel_size
        part = gy * weight.reshape(-1, 1, 1)
        gx = filled_images(xp, n, c, *self.size, part.dtype)
        for _, _, window in window_pixels(kernel, kernel, (1, 1), (oh, ow)):
            gx[window] = part
        return gx

    def backward(self, g, gx, gy, weight):
        return (
            lambda: op("subsample2d", self.kernel_size)(g, weight),
            lambda: op("subsample2d_weight_grad", self.kernel_size)(g, gy),
        )


class Subsample2dWeightGrad(Op):
    """gw[c] = sum over n, oh, ow of gy[n c oh ow] times the sum of x over window (oh, ow).

    With g the gradient of gw: the gradient for x is g[c] gy at each pixel of the window, for gy subsample2d(x, g).
    """

    kernel_size: PairLike

    signature = "subsample2d_weight_grad(x[N C H W], gy[N C OH OW]) -> gw[C]"
    domains = {"x": REAL, "gy": REAL}
    rules = _KERNEL
    parameters = _KERNELS
    sizes = _SIZES
    one_float_dtype = True

    def output_shape(self, x, gy):
        self.bind((x, gy))
        if _positions(self, x) != gy[2:]:
            raise ShapeError(f"subsample2d_weight_grad: axes OH, OW of gy are {gy[2:]}; the windows on x make others")
        return x[1:2]

    def forward(self, xp, x, gy):
        return total(xp, gy * _window_sums(self, x), (0, 2, 3))

    def backward(self, g, gw, x, gy):
        return (
            lambda: op("subsample2d_transpose", self.kernel_size, x.shape[2:])(gy, g),
            lambda: op("subsample2d", self.kernel_size)(x, g),
        )


class ScatterKernels(Movement):
    """y[f, c] = weight[k] where places[k] = f C + c, and 0 elsewhere: kernels for some pairs of maps only.

    The gradient gathers (`GatherKernels`): gw[k] = gy[f, c]. (Table I.)
    """

    places: tuple[int, ...]  # all different
    channels: Pair  # F, C

    signature = "scatter_kernels(weight[K KH KW]) -> y[F C KH KW]"
    domains = {"weight": REAL}
    parameters = {"places": ((0, 5, 3), (0, 1)), "channels": ((2, 3), (1, 2))}
    sizes = {"K": (2, 3)}
    integers = "kept"

    @classmethod
    def of(cls, connections: tuple[tuple[int, ...], ...], channels: int) -> "ScatterKernels":
        """The op for a table that `connection_table` has checked, with this many input maps."""
        places = tuple(f * channels + c for f, row in enumerate(connections) for c in row)
        return cls(places, (len(connections), channels))

    def output_shape(self, weight):
        _, sizes = self.bind((weight,))
        if sizes["K"] != len(self.places) or max(self.places) >= self.channels[0] * self.channels[1]:
            raise ShapeError(f"scatter_kernels: axis K is {sizes['K']} in weight; there are {len(self.places)} places")
        return *self.channels, *weight[1:]

    def forward(self, xp, weight):
        f, c = self.channels
        y = xp.zeros((f * c, *weight.shape[1:]), weight.dtype)
        y[_on_device(self, xp, weight)] = weight
        return y.reshape(f, c, *weight.shape[1:])

    def backward(self, gy, y, weight):
        return op("gather_kernels", self.places)(gy)


class GatherKernels(Movement):
    """The transpose of `ScatterKernels`: y[k] = x[f, c] where places[k] = f C + c; the gradient scatters."""

    places: tuple[int, ...]

    signature = "gather_kernels(x[F C KH KW]) -> y[K KH KW]"
    domains = {"x": REAL}
    parameters = {"places": ((0, 5, 3), (1,))}
    sizes = {"F": (1, 2), "C": (2, 3)}
    integers = "kept"

    def output_shape(self, x):
        self.bind((x,))
        if max(self.places) >= x[0] * x[1]:
            raise ShapeError(f"gather_kernels: place {max(self.places)} does not exist in x of shape {x}")
        return len(self.places), *x[2:]

    def forward(self, xp, x):
        return xp.take(x.reshape(x.shape[0] * x.shape[1], *x.shape[2:]), _on_device(self, xp, x), axis=0)

    def backward(self, gy, y, x):
        return op("scatter_kernels", self.places, (x.shape[0], x.shape[1]))(gy)


class RBF(Op):
    """y[n k] = sum_j (x[n j] - centers[k j])^2, the squared distance of each x from each centre.

    gx[n j] = 2 sum_k gy[n k] (x[n j] - centers[k j]); for the centres the same, negated and summed over n.
    Both second derivatives are 2. (Eq. 7.)
    """

    signature = "rbf(x[N J], centers[K J]) -> y[N K]"
    domains = {"x": REAL, "centers": REAL}
    one_float_dtype = True
    curved = True

    def forward(self, xp, x, centers):
        difference = x[:, None] - centers  # (N, K, J); |x|^2 - 2 x c + |c|^2 would lose digits near a centre
        return total(xp, difference * difference, (2,))

    def backward(self, gy, y, x, centers):
        def gx():
            return 2.0 * (x * gy.sum(1, keepdims=True) - gy @ centers)

        def gc():
            return 2.0 * (centers * gy.sum(0).expand_dims(1) - gy.T @ x)

        return gx, gc

    def curvature(self, hy, gy, y, x, centers):
        def terms():
            difference = x.expand_dims(1) - centers  # (N, K, J)
            return 4.0 * hy.expand_dims(2) * difference * difference

        def hx():
            return terms().sum(1) + 2.0 * gy.sum(1, keepdims=True).relu()

        def hc():
            return terms().sum(0) + 2.0 * gy.relu().sum(0).expand_dims(1)

        return hx, hc


def _on_device(kernels: ScatterKernels | GatherKernels, xp: Any, x: Array) -> Array:
    """The op's places as an array on the device of x, which is made once: an upload would wait for the GPU."""
    return _uploaded(xp, kernels.places, backend_of(x).device_of(x))


@lru_cache(maxsize=64)
def _uploaded(xp: Any, places: tuple[int, ...], device: str) -> Array:
    return xp.asarray(places)


def connection_table(op: str, connections: Any, channels: int) -> tuple[tuple[int, ...], ...]:
    """``connections`` as tuples: for each output map, the input maps that it sees, each from 0 to channels - 1.

    TypeError unless these are rows of integers; ValueError if there is no row, if a row is empty or names a map twice,
    and for a map that does not exist.

    >>> connection_table("Conv2d", [[0], [0, 1]], channels=2)
    ((0,), (0, 1))
    """
    checked = []
    try:
        for f, row in enumerate(connections):
            checked.append(tuple([integer(op, f"each map in row {f} of connections", c, minimum=0) for c in row]))
    except TypeError as error:
        raise TypeError(
            f"{op}: connections are {connections!r}; expected a list of input maps for each output map, such as "
            f"[[0], [0, 1]] ({error})"
        ) from None
    if not checked:
        raise ValueError(f"{op}: connections is empty; expected a row for each output map")
    for f, maps in enumerate(checked):
        if not maps:
            raise ValueError(f"{op}: row {f} of connections is empty; expected at least one input map")
        if max(maps) >= channels:
            raise ValueError(
                f"{op}: row {f} of connections names input map {max(maps)}, which is missing; "
                f"there are {channels}, counted from 0"
            )
        if len(set(maps)) != len(maps):
            raise ValueError(f"{op}: row {f} of connections, {maps}, names an input map twice")
    return tuple(checked)


def _positions(subsample, x):
    """OH, OW: how many adjacent windows fit; ShapeError if none does."""
    return tuple(
        window_positions(subsample.name, axis, size, k, k, 0)
        for axis, size, k in zip("HW", x[2:], subsample.kernel_size, strict=True)
    )


def _window_sums(subsample, x):
    """s[n c oh ow]: the sum of x over each window."""
    kernel = subsample.kernel_size
    s = 0
    for _, _, window in window_pixels(kernel, kernel, (1, 1), _positions(subsample, x.shape)):
        s = s + x[window]
    return s
