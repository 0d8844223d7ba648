"""Squared distances: of outputs from their targets, and of a point from the centres of radial basis functions."""

from typing import Any

from ..backend import Array
from ..tensor import REAL, Gradient, Op, Tensor


class MSELoss(Op):
    """y = (x - target)^2, element by element; dy/dx = 2 (x - target), dy/dtarget = -dy/dx, d2y/dx2 = 2."""

    signature = "mse_loss(x[...], target[...]) -> y[...]"
    domains = {"x": REAL, "target": REAL}
    curved = True

    def forward(self, xp: Any, x: Array, target: Array) -> Array:
        difference = x - target
        return difference * difference

    def backward(self, gy: Tensor, y: Tensor, x: Tensor, target: Tensor) -> tuple[Gradient, ...]:
        return lambda: 2.0 * gy * (x - target), lambda: 2.0 * gy * (target - x)

    def curvature(self, hy: Tensor, gy: Tensor, y: Tensor, x: Tensor, target: Tensor) -> tuple[Gradient, ...]:
        h = 4.0 * y * hy + 2.0 * gy.relu()
        return h, h


class RBF(Op):
    """y[n k] = sum_j (x[n j] - centers[k j])^2, the squared distance of each x from each centre.

    gx[n j] = 2 sum_k gy[n k] (x[n j] - centers[k j]); for the centres the same with the sign turned and the sum over n.
    Both second derivatives are 2. (LeCun et al., 1998, Eq. 7.)
    """

    signature = "rbf(x[N J], centers[K J]) -> y[N K]"
    domains = {"x": REAL, "centers": REAL}
    curved = True

    def forward(self, xp: Any, x: Array, centers: Array) -> Array:
        difference = x[:, None] - centers  # (N, K, J); |x|^2 - 2 x c + |c|^2 would lose digits near a centre
        return xp.sum(difference * difference, axis=2)

    def backward(self, gy: Tensor, y: Tensor, x: Tensor, centers: Tensor) -> tuple[Gradient, ...]:
        def gx() -> Tensor:
            return 2.0 * (x * gy.sum(1, keepdims=True) - gy @ centers)

        def gc() -> Tensor:
            return 2.0 * (centers * gy.sum(0).expand_dims(1) - gy.T @ x)

        return gx, gc

    def curvature(self, hy: Tensor, gy: Tensor, y: Tensor, x: Tensor, centers: Tensor) -> tuple[Gradient, ...]:
        def terms() -> Tensor:
            difference = x.expand_dims(1) - centers  # (N, K, J)
            return 4.0 * hy.expand_dims(2) * difference * difference

        def hx() -> Tensor:
            return terms().sum(1) + 2.0 * gy.sum(1, keepdims=True).relu()

        def hc() -> Tensor:
            return terms().sum(0) + 2.0 * gy.relu().sum(0).expand_dims(1)

        return hx, hc
