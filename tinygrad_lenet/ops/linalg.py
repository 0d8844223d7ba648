"""Matrix products, of which einsum is composed, too (`tinygrad_lenet.einsum`)."""

import math

from ..curvature import Multilinear
from ..op import REAL


class MatMul(Multilinear):
    """y = a b, matrix by matrix; with gy = dL/dy: ga = gy b^T, gb = a^T gy."""

    signature = "matmul(a[... M K], b[... K N]) -> y[... M N]"
    domains = {"a": REAL, "b": REAL}
    integers = "int64"
    one_float_dtype = True

    def forward(self, xp, a, b):
        return xp.matmul(a, b)

    def backward(self, gy, y, a, b):
        return lambda: gy @ _transposed(b), lambda: _transposed(a) @ gy


class Linear(Multilinear):
    """y = x w^T + b; gx = gy w, gw = gy^T x and gb = sum of gy, with the leading axes merged into one."""

    signature = "linear(x[... I], weight[O I], bias[O]?) -> y[... O]"
    domains = {"x": REAL, "weight": REAL, "bias": REAL}
    one_float_dtype = True

    def forward(self, xp, x, weight, bias=None):
        y = xp.matmul(x, weight.T)
        return y if bias is None else y + bias

    def backward(self, gy, y, x, weight, *bias):
        def gw():
            return _rows(gy).T @ _rows(x)  # (O, rows) @ (rows, I)

        return lambda: gy @ weight, gw, *(lambda: _rows(gy).sum(0) for _ in bias)


def _transposed(a):
    """The last two axes exchanged: a[... M K] -> [... K M]."""
    return a.transpose((*range(a.ndim - 2), a.ndim - 1, a.ndim - 2))


def _rows(x):
    """x[... I] -> [rows I]."""
    return x if x.ndim == 2 else x.reshape((math.prod(x.shape[:-1]), x.shape[-1]))
