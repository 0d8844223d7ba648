"""Average and maximum pooling, and the ops that carry their gradients."""

from ..curvature import Movement
from ..op import REAL, Domain, Op, op
from ..shapes import Pair, PairLike, ShapeError, pair, window_positions
from .elementwise import FullLike
from .windows import filled_images, pad_images, window_pixels

_WINDOW = {"kernel_size": (pair, 1), "stride": (pair, 1), "padding": (pair, 0)}
_WINDOWS = {"kernel_size": (2, (3, 2)), "stride": (2, (1, 2), 3), "padding": (0, (1, 0), 1)}
_SIZES = {"N": range(3), "C": range(1, 3), "H": range(3, 7), "W": range(3, 7)}
_GRAD_SIZES = _SIZES | {"OH": range(1, 5), "OW": range(1, 5)}
_DISTINCT = Domain(distinct=True)


class _Pool(Op, kind=True):
    """A window that by default moves by its own size."""

    def __post_init__(self):
        if self.stride is None:
            self.__dict__["stride"] = self.kernel_size
        super().__post_init__()


class AvgPool2d(_Pool):
    """y[n c oh ow] = mean of x over the window at (S oh - P, S ow - P); each of its pixels gets gy / (KH KW).

    S is the stride, P the padding, whose pixels count as 0, also in the divisor.
    """

    kernel_size: PairLike
    stride: PairLike = None
    padding: PairLike = (0, 0)

    signature = "avg_pool2d(x[N C H W]) -> y[N C OH OW]"
    domains = {"x": REAL}
    rules = _WINDOW
    parameters = _WINDOWS
    sizes = _SIZES
    integers = "refused"
    reads_values = False

    def output_shape(self, x):
        return _pooled(self, x)

    def forward(self, xp, x):
        x = pad_images(xp, x, self.padding)
        first, *others = [x[window] for _, _, window in _pixels(self, x.shape)]
        y = first + others[0] if others else xp.array(first)
        for pixels in others[1:]:
            y += pixels
        y *= 1 / (self.kernel_size[0] * self.kernel_size[1])
        return y

    def backward(self, gy, y, x):
        return op("avg_pool2d_grad", self.kernel_size, self.stride, self.padding, x.shape[2:])(gy)

    def curvature(self, hy, gy, y, x):
        return self.backward(hy / (self.kernel_size[0] * self.kernel_size[1]), y, x)


class AvgPool2dGrad(Op):
    """The transpose of `AvgPool2d`: gx[n c h w] = sum of gy over the windows on (h, w), divided by KH KW."""

    kernel_size: PairLike
    stride: PairLike
    padding: PairLike
    size: Pair

    signature = "avg_pool2d_grad(gy[N C OH OW]) -> gx[N C H W]"
    domains = {"gy": REAL}
    rules = _WINDOW
    parameters = _WINDOWS | {"size": ((4, 6), (5, 5), (4, 3), (2, 2))}
    sizes = _GRAD_SIZES
    integers = "refused"
    reads_values = False

    def output_shape(self, gy):
        return _unpooled(self, gy, (*gy[:2], *self.size))

    def forward(self, xp, gy):
        (n, c, _, _), (h, w), (ph, pw) = gy.shape, self.size, self.padding
        gx = filled_images(xp, n, c, h + 2 * ph, w + 2 * pw, gy.dtype)
        part = gy * (1 / (self.kernel_size[0] * self.kernel_size[1]))
        for _, _, window in _pixels(self, gx.shape):
            under = gx[window]
            under += part  # gx[window] += would write the sum back once more
        return gx[:, :, ph : ph + h, pw : pw + w]

    def backward(self, g, gx, gy):
        return op("avg_pool2d", self.kernel_size, self.stride, self.padding)(g)


class MaxPool2d(_Pool, Movement):
    """y[n c oh ow] = largest x in the window; gy goes to the first pixel, row by row, that has this value.

    Padding counts as -inf, so it is never the largest; NaN counts as larger than everything.
    """

    kernel_size: PairLike
    stride: PairLike = None
    padding: PairLike = (0, 0)

    signature = "max_pool2d(x[N C H W]) -> y[N C OH OW]"
    domains = {"x": _DISTINCT}
    rules = _WINDOW
    parameters = _WINDOWS
    sizes = _SIZES
    integers = "float"
    reads_values = True

    def __post_init__(self):
        super().__post_init__()
        if any(2 * p > k for p, k in zip(self.padding, self.kernel_size, strict=True)):
            raise ShapeError(
                f"max_pool2d: padding is {self.padding}; expected at most half of kernel_size, {self.kernel_size}, "
                "so that every window holds a pixel"
            )

    def output_shape(self, x):
        return _pooled(self, x)

    def forward(self, xp, x):
        x = pad_images(xp, x, self.padding, -xp.inf)
        first, *others = [x[window] for _, _, window in _pixels(self, x.shape)]
        y = xp.maximum(first, others[0]) if others else xp.array(first)
        for pixels in others[1:]:
            y = xp.maximum(y, pixels)
        return y

    def backward(self, gy, y, x):
        return op("max_pool2d_grad", self.kernel_size, self.stride, self.padding)(x, gy)


class MaxPool2dGrad(Op):
    """gx = gy at the first largest pixel of each window, added up; linear in gy, and flat in x between ties."""

    kernel_size: PairLike
    stride: PairLike
    padding: PairLike

    signature = "max_pool2d_grad(x[N C H W], gy[N C OH OW]) -> gx[N C H W]"
    domains = {"x": _DISTINCT, "gy": REAL}
    rules = _WINDOW
    parameters = _WINDOWS
    sizes = _GRAD_SIZES

    def output_shape(self, x, gy):
        self.bind((x, gy))
        return _unpooled(self, gy, x)

    def forward(self, xp, x, gy):
        (n, c, h, w), (ph, pw) = x.shape, self.padding
        gx = filled_images(xp, n, c, h + 2 * ph, w + 2 * pw, gy.dtype)
        for window, first in _winners(self, xp, x):
            under = gx[window]
            under += xp.where(first, gy, 0)
        return gx[:, :, ph : ph + h, pw : pw + w]

    def backward(self, g, gx, x, gy):
        pick = op("max_pool2d_pick", self.kernel_size, self.stride, self.padding)
        return lambda: FullLike(0.0)(x), lambda: pick(x, g)


class MaxPool2dPick(Op):
    """y = g at the first pixel of each window on x that is largest; linear in g, and flat in x between ties."""

    kernel_size: PairLike
    stride: PairLike
    padding: PairLike

    signature = "max_pool2d_pick(x[N C H W], g[N C H W]) -> y[N C OH OW]"
    domains = {"x": _DISTINCT, "g": REAL}
    rules = _WINDOW
    parameters = _WINDOWS
    sizes = _SIZES

    def output_shape(self, x, g):
        self.bind((x, g))
        return _pooled(self, x)

    def forward(self, xp, x, g):
        g = pad_images(xp, g, self.padding)
        y = 0
        for window, first in _winners(self, xp, x):
            y = y + xp.where(first, g[window], 0)
        return y

    def backward(self, gy, y, x, g):
        grad = op("max_pool2d_grad", self.kernel_size, self.stride, self.padding)
        return lambda: FullLike(0.0)(x), lambda: grad(x, gy)


def _pooled(pool, x):
    """The output's shape for images of shape x; ShapeError for a window that does not fit."""
    if len(x) != 4:
        raise ShapeError(f"{pool.name}: x has shape {x}; expected x[N C H W]")
    return *x[:2], *(
        window_positions(pool.name, axis, size, k, s, p)
        for axis, size, k, s, p in zip("HW", x[2:], pool.kernel_size, pool.stride, pool.padding, strict=True)
    )


def _unpooled(pool, gy, x):
    """The shape x; ShapeError unless pooling images of this shape gives gy."""
    if len(gy) != 4 or _pooled(pool, x) != gy:
        raise ShapeError(f"{pool.name}: gy has shape {gy}; images of shape {x} give another one")
    return x


def _pixels(pool, padded):
    """`window_pixels` for a pooling op on padded images of the given shape."""
    positions = tuple((padded[2 + a] - pool.kernel_size[a]) // pool.stride[a] + 1 for a in (0, 1))
    return window_pixels(pool.kernel_size, pool.stride, (1, 1), positions)


def _winners(pool, xp, x):
    """For each pixel of the window: its index, and a mask of where it is the first with the largest value."""
    inside = pad_images(xp, xp.ones(x.shape, bool), pool.padding)
    x = pad_images(xp, x, pool.padding, -xp.inf)
    pixels = [window for _, _, window in _pixels(pool, x.shape)]
    largest, found = x[pixels[0]], inside[pixels[0]]
    winner = xp.zeros(largest.shape, xp.int32)
    for i, window in enumerate(pixels[1:], start=1):
        candidate = x[window]
        better = (candidate > largest) | (xp.isnan(candidate) & ~xp.isnan(largest))
        better |= inside[window] & ~found  # a pixel that is itself -inf comes before padding
        largest = xp.where(better, candidate, largest)
        winner = xp.where(better, i, winner)
        found = found | inside[window]
    return [(window, winner == i) for i, window in enumerate(pixels)]
