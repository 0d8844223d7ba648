"""Softmax, its logarithm and the losses built on it, stable for logits of any size and for -inf masks."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..backend import Array
from ..shapes import Shape, normalize_axes, normalize_axis
from ..tensor import REAL, Domain, Gradient, Op, Tensor
from .elementwise import where

_CASES = (
    (((2, 3),), {"axis": -1}),
    (((2, 3, 4),), {"axis": 1}),
    (((3, 1),), {"axis": 1}),
    (((0, 3),), {"axis": 1}),
)


@dataclass(frozen=True)
class Softmax(Op):
    """y_i = e**x_i / sum_j e**x_j; gx = y (gy - sum_j gy_j y_j)."""

    axis: int

    signature = "softmax(x[...]) -> y[...]"
    domains = {"x": REAL}
    cases = _CASES

    def check(self, shapes: tuple[Shape, ...]) -> dict[str, int]:
        return _check_axis("softmax", self.axis, shapes[0])

    def forward(self, xp: Any, x: Array) -> Array:
        return _softmax(xp, x, self.axis)

    def backward(self, gy: Tensor, y: Tensor, x: Tensor) -> Gradient:
        return y * (gy - (gy * y).sum(self.axis, keepdims=True))


@dataclass(frozen=True)
class LogSoftmax(Op):
    """y_i = x_i - log sum_j e**x_j; gx = gy - e**y sum_j gy_j."""

    axis: int

    signature = "log_softmax(x[...]) -> y[...]"
    domains = {"x": REAL}
    cases = _CASES

    def check(self, shapes: tuple[Shape, ...]) -> dict[str, int]:
        return _check_axis("log_softmax", self.axis, shapes[0])

    def forward(self, xp: Any, x: Array) -> Array:
        return _log_softmax(xp, x, self.axis)

    def backward(self, gy: Tensor, y: Tensor, x: Tensor) -> Gradient:
        return gy - y.exp() * gy.sum(self.axis, keepdims=True)


@dataclass(frozen=True)
class LogSumExp(Op):
    """y = log sum_j e**x_j along axes; gx = gy e**(x - y), which is 0 where y is -inf (all of x masked)."""

    axis: int | Sequence[int] | None
    keepdims: bool

    signature = "logsumexp(x[...]) -> y[...]"
    domains = {"x": REAL}
    cases = (
        (((2, 3),), {"axis": None, "keepdims": False}),
        (((2, 3, 4),), {"axis": (0, 2), "keepdims": True}),
        (((3, 1),), {"axis": -1, "keepdims": False}),
        (((0, 3),), {"axis": 1, "keepdims": False}),
    )

    def check(self, shapes: tuple[Shape, ...]) -> dict[str, int]:
        for axis in normalize_axes("logsumexp", self.axis, len(shapes[0])):
            _check_axis("logsumexp", axis, shapes[0])
        return {}

    def forward(self, xp: Any, x: Array) -> Array:
        axis = normalize_axes("logsumexp", self.axis, x.ndim)
        largest = xp.max(x, axis=axis, keepdims=True)
        largest = xp.where(xp.isfinite(largest), largest, 0)  # -inf - -inf would be NaN
        total = xp.sum(xp.exp(x - largest), axis=axis, keepdims=True)
        y = xp.where(total == 0, -xp.inf, xp.log(xp.where(total == 0, 1, total)) + largest)
        return y if self.keepdims else xp.squeeze(y, axis=axis)

    def backward(self, gy: Tensor, y: Tensor, x: Tensor) -> Gradient:
        reduced = normalize_axes("logsumexp", self.axis, x.ndim)
        kept = tuple(1 if a in reduced else size for a, size in enumerate(x.shape))
        y = y.reshape(kept)
        return gy.reshape(kept) * (x - where(y == -float("inf"), 0.0, y)).exp()


class CrossEntropy(Op):
    """y_n = - sum_k target_nk log_softmax(logits_n)_k; d/dlogits = softmax(logits) sum_k target_nk - target.

    A class with target 0 adds nothing, even where its logit is -inf. d/dtarget = -log_softmax(logits).
    """

    signature = "cross_entropy(logits[N K], target[N K]) -> y[N]"
    domains = {"logits": REAL, "target": Domain(low=0.05, high=1.0)}
    sizes = {"K": range(1, 5)}
    curved = True

    def check(self, shapes: tuple[Shape, ...]) -> dict[str, int]:
        sizes = super().check(shapes)
        return sizes | _check_axis("cross_entropy", 1, shapes[0])

    def forward(self, xp: Any, logits: Array, target: Array) -> Array:
        return -xp.sum(target * xp.where(target == 0, 0, _log_softmax(xp, logits, 1)), axis=1)

    def backward(self, gy: Tensor, y: Tensor, logits: Tensor, target: Tensor) -> tuple[Gradient, ...]:
        return lambda: CrossEntropyGrad()(gy, logits, target), lambda: -gy.expand_dims(1) * logits.log_softmax(1)

    def curvature(self, hy: Tensor, gy: Tensor, y: Tensor, logits: Tensor, target: Tensor) -> tuple[Gradient, ...]:
        """d2/dlogit_k2 = p_k (1 - p_k) sum_k target_nk, with p = softmax(logits)."""
        hy, gy = hy.expand_dims(1), gy.expand_dims(1).relu()  # (N,) -> (N, 1)

        def h_logits() -> Tensor:
            p, total = logits.softmax(1), target.sum(1, keepdims=True)
            slope = p * total - target
            return hy * slope * slope + gy * total * p * (1 - p)

        def h_target() -> Tensor:
            log_p = logits.log_softmax(1)
            return hy * log_p * log_p

        return h_logits, h_target


class CrossEntropyGrad(Op):
    """gx_nk = gy_n (p_nk sum_j target_nj - target_nk), p = softmax(logits): cross-entropy's gradient for the logits.

    One op instead of six, which counts where a step has one image. With g the gradient of gx: for gy it is
    sum_k g_nk (p_nk sum_j target_nj - target_nk), for the logits gy_n sum_j target_nj p_nk (g_nk - m_n), for the target
    gy_n (m_n - g_nk), with m_n = sum_k g_nk p_nk.
    """

    signature = "cross_entropy_grad(gy[N], logits[N K], target[N K]) -> gx[N K]"
    domains = {"gy": REAL, "logits": REAL, "target": Domain(low=0.05, high=1.0)}
    sizes = {"K": range(1, 5)}

    def check(self, shapes: tuple[Shape, ...]) -> dict[str, int]:
        sizes = super().check(shapes)
        return sizes | _check_axis("cross_entropy_grad", 1, shapes[1])

    def forward(self, xp: Any, gy: Array, logits: Array, target: Array) -> Array:
        p = _softmax(xp, logits, 1)
        return gy[:, None] * (p * xp.sum(target, axis=1, keepdims=True) - target)

    def backward(self, g: Tensor, gx: Tensor, gy: Tensor, logits: Tensor, target: Tensor) -> tuple[Gradient, ...]:
        p, total = logits.softmax(1), target.sum(1, keepdims=True)
        mean = (g * p).sum(1, keepdims=True)
        gy = gy.expand_dims(1)  # (N,) -> (N, 1)
        return (
            lambda: (g * (p * total - target)).sum(1),
            lambda: gy * total * p * (g - mean),
            lambda: gy * (mean - g),
        )


def _softmax(xp: Any, x: Array, axis: int) -> Array:
    e = xp.exp(x - xp.max(x, axis=axis, keepdims=True))  # the largest exponent is 0: no overflow
    return e / xp.sum(e, axis=axis, keepdims=True)


def _log_softmax(xp: Any, x: Array, axis: int) -> Array:
    shifted = x - xp.max(x, axis=axis, keepdims=True)
    return shifted - xp.log(xp.sum(xp.exp(shifted), axis=axis, keepdims=True))


def _check_axis(op: str, axis: int, shape: Shape) -> dict[str, int]:
    """Refuse an axis that does not exist or is empty; ShapeError or ValueError."""
    if not shape[normalize_axis(op, axis, len(shape))]:
        raise ValueError(f"{op}: axis {axis} of the input is empty; expected at least one class")
    return {}
