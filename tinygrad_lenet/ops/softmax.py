"""Softmax, its logarithm and the losses, stable for logits of any size and for -inf masks."""

from ..curvature import Elementwise
from ..op import REAL, Domain, Op, op
from ..shapes import ShapeError, axes, flag, normalize_axes, normalize_axis, one_axis, reduced_shape
from .elementwise import chain, where
from .reduction import total, widened

_AXIS = {"axis": (one_axis,)}
_PROBABILITY = Domain(low=0.05, high=1.0)
_LABEL = Domain(low=0, high=3, kind="index")


class Softmax(Op):
    """y_i = e**x_i / sum_j e**x_j; gx_i = y_i (gy_i - sum_j gy_j y_j) (see `SoftmaxGrad`)."""

    axis: int

    signature = "softmax(x[...]) -> y[...]"
    domains = {"x": REAL}
    rules = _AXIS
    parameters = {"axis": (-1, 0, 1)}

    def output_shape(self, x):
        return _with_classes(self, x, self.axis)

    def forward(self, xp, x):
        return _softmax(xp, x, self.axis)

    def backward(self, gy, y, x):
        return op("softmax_grad", self.axis)(gy, y)


class SoftmaxGrad(Op):
    """gx_i = y_i (gy_i - sum_j gy_j y_j), the gradient of softmax from its output y; one op, which a kernel can fuse.

    With g the gradient of gx: for gy it is the same map of g, which is symmetric; for y it is
    g_i (gy_i - sum_j gy_j y_j) - gy_i sum_j g_j y_j.
    """

    axis: int

    signature = "softmax_grad(gy[...], y[...]) -> gx[...]"
    domains = {"gy": REAL, "y": _PROBABILITY}
    rules = _AXIS
    parameters = {"axis": (-1, 0, 1)}
    one_float_dtype = True

    def output_shape(self, gy, y):
        if gy != y:
            raise ShapeError(f"softmax_grad: gy has shape {gy} and y {y}; expected the same")
        return _with_classes(self, y, self.axis)

    def forward(self, xp, gy, y):
        return y * (gy - total(xp, gy * y, (self.axis,), keepdims=True))

    def backward(self, g, gx, gy, y):
        def along(t):
            return (t * y).sum(self.axis, keepdims=True)

        return lambda: self(g, y), lambda: g * (gy - along(gy)) - gy * along(g)


class LogSoftmax(Op):
    """y_i = x_i - log sum_j e**x_j; gx = gy - e**y sum_j gy_j."""

    axis: int

    signature = "log_softmax(x[...]) -> y[...]"
    domains = {"x": REAL}
    rules = _AXIS
    parameters = {"axis": (-1, 0, 1)}

    def output_shape(self, x):
        return _with_classes(self, x, self.axis)

    def forward(self, xp, x):
        return _log_softmax(xp, x, self.axis)

    def backward(self, gy, y, x):
        return gy - y.exp() * gy.sum(self.axis, keepdims=True)


class LogSumExp(Op):
    """y = log sum_j e**x_j along axes; gx = gy e**(x - y), which is 0 where y is -inf (all of x masked)."""

    axis: int | tuple[int, ...] | None
    keepdims: bool

    signature = "logsumexp(x[...]) -> y[...]"
    domains = {"x": REAL}
    rules = {"axis": (axes,), "keepdims": (flag,)}
    parameters = {"axis": (None, 0, -1, (0, 2)), "keepdims": (False, True)}

    def output_shape(self, x):
        for axis in normalize_axes("logsumexp", self.axis, len(x)):
            _with_classes(self, x, axis)
        return reduced_shape("logsumexp", x, self.axis, self.keepdims)

    def forward(self, xp, x):
        axis, wide = normalize_axes("logsumexp", self.axis, x.ndim), widened(x)
        largest = xp.max(wide, axis=axis, keepdims=True)
        largest = xp.where(xp.isfinite(largest), largest, 0)  # -inf - -inf would be NaN
        added = total(xp, xp.exp(wide - largest), axis, keepdims=True)
        y = xp.where(added == 0, -xp.inf, xp.log(xp.where(added == 0, 1, added)) + largest).astype(x.dtype, copy=False)
        return y if self.keepdims else xp.squeeze(y, axis=axis)

    def backward(self, gy, y, x):
        kept = reduced_shape("logsumexp", x.shape, self.axis, keepdims=True)
        y = y.reshape(kept)
        return gy.reshape(kept) * (x - where(y == -float("inf"), 0.0, y)).exp()


class CrossEntropy(Op):
    """y_n = log sum_k e**logit_nk - logit_nl with l = labels_n; gx_nk = gy_n (softmax(logits)_nk - [k = l])."""

    signature = "cross_entropy(logits[N K], labels[N]) -> y[N]"
    domains = {"logits": REAL, "labels": _LABEL}
    sizes = {"K": range(3, 6)}
    curved = True

    def output_shape(self, logits, labels):
        self.bind((logits, labels))
        return _with_classes(self, logits, 1)[:1]

    def index_ranges(self, logits, labels):
        return [range(logits[1])]

    def forward(self, xp, logits, labels):
        wide = widened(logits)
        shifted = wide - xp.max(wide, axis=1, keepdims=True)
        y = xp.log(total(xp, xp.exp(shifted), (1,))) - shifted[xp.arange(len(labels)), labels]
        return y.astype(logits.dtype, copy=False)

    def backward(self, gy, y, logits, labels):
        return op("cross_entropy_grad")(gy, logits, labels), None

    def curvature(self, hy, gy, y, logits, labels):
        return lambda: _entropy_curvature(hy, gy, logits, _one_hot(labels, logits)), None


class CrossEntropyGrad(Op):
    """gx_nk = gy_n (p_nk - [k = labels_n]), p = softmax(logits): the gradient of `CrossEntropy` for the logits.

    It is one op instead of six, which makes steps on one image faster. With g the gradient of gx: for gy it is
    sum_k g_nk (p_nk - [k = labels_n]), for the logits gy_n p_nk (g_nk - sum_k g_nk p_nk).
    """

    signature = "cross_entropy_grad(gy[N], logits[N K], labels[N]) -> gx[N K]"
    domains = {"gy": REAL, "logits": REAL, "labels": _LABEL}
    sizes = {"K": range(3, 6)}
    one_float_dtype = True

    def output_shape(self, gy, logits, labels):
        self.bind((gy, logits, labels))
        return _with_classes(self, logits, 1)

    def index_ranges(self, gy, logits, labels):
        return [range(logits[1])]

    def forward(self, xp, gy, logits, labels):
        gx = _softmax(xp, logits, 1)
        gx[xp.arange(len(labels)), labels] -= 1
        return gy[:, None] * gx

    def backward(self, g, gx, gy, logits, labels):
        p = logits.softmax(1)
        return (
            lambda: (g * (p - _one_hot(labels, logits))).sum(1),
            lambda: gy.expand_dims(1) * p * (g - (g * p).sum(1, keepdims=True)),
            None,
        )


class SoftCrossEntropy(Op):
    """y_n = - sum_k target_nk log_softmax(logits_n)_k; d/dlogits = softmax(logits) sum_k target_nk - target.

    A class with target 0 adds nothing, even where its logit is -inf. d/dtarget = -log_softmax(logits).
    """

    signature = "soft_cross_entropy(logits[N K], target[N K]) -> y[N]"
    domains = {"logits": REAL, "target": _PROBABILITY}
    sizes = {"K": range(1, 5)}
    one_float_dtype = True
    curved = True

    def output_shape(self, logits, target):
        self.bind((logits, target))
        return _with_classes(self, logits, 1)[:1]

    def forward(self, xp, logits, target):
        return -total(xp, target * xp.where(target == 0, 0, _log_softmax(xp, logits, 1)), (1,))

    def backward(self, gy, y, logits, target):
        grad = op("soft_cross_entropy_grad")
        return lambda: grad(gy, logits, target), lambda: -gy.expand_dims(1) * logits.log_softmax(1)

    def curvature(self, hy, gy, y, logits, target):
        def h_target():
            log_p = logits.log_softmax(1)
            return hy.expand_dims(1) * log_p * log_p

        return lambda: _entropy_curvature(hy, gy, logits, target), h_target


class SoftCrossEntropyGrad(Op):
    """gx_nk = gy_n (p_nk sum_j target_nj - target_nk), p = softmax(logits): as above, of `SoftCrossEntropy`.

    With g the gradient of gx: for gy it is sum_k g_nk (p_nk sum_j target_nj - target_nk), for the logits
    gy_n sum_j target_nj p_nk (g_nk - m_n), for the target gy_n (m_n - g_nk), with m_n = sum_k g_nk p_nk.
    """

    signature = "soft_cross_entropy_grad(gy[N], logits[N K], target[N K]) -> gx[N K]"
    domains = {"gy": REAL, "logits": REAL, "target": _PROBABILITY}
    sizes = {"K": range(1, 5)}
    one_float_dtype = True

    def output_shape(self, gy, logits, target):
        self.bind((gy, logits, target))
        return _with_classes(self, logits, 1)

    def forward(self, xp, gy, logits, target):
        p = _softmax(xp, logits, 1)
        return gy[:, None] * (p * total(xp, target, (1,), keepdims=True) - target)

    def backward(self, g, gx, gy, logits, target):
        p, weight = logits.softmax(1), target.sum(1, keepdims=True)
        mean = (g * p).sum(1, keepdims=True)
        gy = gy.expand_dims(1)  # (N,) -> (N, 1)
        return (
            lambda: (g * (p * weight - target)).sum(1),
            lambda: gy * weight * p * (g - mean),
            lambda: gy * (mean - g),
        )


def _entropy_curvature(hy, gy, logits, target):
    """For the logits: d2/dlogit_k2 = p_k (1 - p_k) sum_k target_nk, with p = softmax(logits)."""
    hy, gy = hy.expand_dims(1), gy.expand_dims(1).relu()  # (N,) -> (N, 1)
    p, weight = logits.softmax(1), target.sum(1, keepdims=True)
    slope = p * weight - target
    return hy * slope * slope + gy * weight * p * (1 - p)


def _one_hot(labels, logits):
    return op("one_hot", logits.shape[1], logits.dtype.name)(labels)


class MSELoss(Elementwise):
    """y = (x - target)^2, element by element; dy/dx = 2 (x - target), dy/dtarget = -dy/dx, d2y/dx2 = 2."""

    signature = "mse_loss(x[...], target[...]) -> y[...]"
    domains = {"x": REAL, "target": REAL}
    one_float_dtype = True
    curved = True

    def forward(self, xp, x, target):
        difference = x - target
        return difference * difference

    def backward(self, gy, y, x, target):
        return lambda: chain(2.0 * gy, x - target), lambda: chain(2.0 * gy, target - x)

    def curvature(self, hy, gy, y, x, target):
        h = 4.0 * y * hy + 2.0 * gy.relu()
        return h, h


def _softmax(xp, x, axis):
    wide = widened(x)
    e = xp.exp(wide - xp.max(wide, axis=axis, keepdims=True))  # the largest exponent is 0: no overflow
    return (e / total(xp, e, (axis,), keepdims=True)).astype(x.dtype, copy=False)


def _log_softmax(xp, x, axis):
    wide = widened(x)
    shifted = wide - xp.max(wide, axis=axis, keepdims=True)
    return (shifted - xp.log(total(xp, xp.exp(shifted), (axis,), keepdims=True))).astype(x.dtype, copy=False)


def _with_classes(op, shape, axis):
    """``shape``; ShapeError unless the axis exists and is not empty."""
    a = normalize_axis(op.name, axis, len(shape))
    if not shape[a]:
        raise ShapeError(f"{op.name}: axis {axis} of the input is empty; expected at least one class")
    return shape
