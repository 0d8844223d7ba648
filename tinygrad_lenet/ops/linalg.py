"""Products of matrices and, with einsum, of tensors."""

import math
from dataclasses import dataclass
from typing import Any

from ..backend import Array
from ..shapes import Shape, ShapeError
from ..tensor import REAL, Gradient, Op, Tensor


class MatMul(Op):
    """y = a b, matrix by matrix; with gy = d/dy: ga = gy b^T, gb = a^T gy."""

    signature = "matmul(a[... M K], b[... K N]) -> y[... M N]"
    domains = {"a": REAL, "b": REAL}

    def forward(self, xp: Any, a: Array, b: Array) -> Array:
        return xp.matmul(a, b)

    def backward(self, gy: Tensor, y: Tensor, a: Tensor, b: Tensor) -> tuple[Gradient, ...]:
        return lambda: gy @ _transposed(b), lambda: _transposed(a) @ gy

    def curvature(self, hy: Tensor, gy: Tensor, y: Tensor, a: Tensor, b: Tensor) -> tuple[Gradient, ...]:
        return self.backward(hy, y, a * a, b * b)


class Linear(Op):
    """y = x w^T + b; gx = gy w, gw = gy^T x and gb = sum of gy, the leading axes taken as one."""

    signature = "linear(x[... I], weight[O I], bias[O]?) -> y[... O]"
    domains = {"x": REAL, "weight": REAL, "bias": REAL}

    def forward(self, xp: Any, x: Array, weight: Array, bias: Array | None = None) -> Array:
        y = xp.matmul(x, weight.T)
        return y if bias is None else y + bias

    def backward(self, gy: Tensor, y: Tensor, x: Tensor, weight: Tensor, *bias: Tensor) -> tuple[Gradient, ...]:
        def gw() -> Tensor:
            return _rows(gy).T @ _rows(x)  # (O, rows) @ (rows, I)

        return lambda: gy @ weight, gw, *(lambda: _rows(gy).sum(0) for _ in bias)

    def curvature(
        self, hy: Tensor, gy: Tensor, y: Tensor, x: Tensor, weight: Tensor, *bias: Tensor
    ) -> tuple[Gradient, ...]:
        return self.backward(hy, y, x * x, weight * weight, *bias)


@dataclass(frozen=True)
class Einsum(Op):
    """y = sum over the letters that the output leaves out of the product of the inputs, as in NumPy's einsum.

    Every letter stands once in an operand, and every letter of an operand stands in another one or in the output
    (`tinygrad_lenet.functional.einsum` brings any subscripts into this form). The gradient for an operand is then the
    einsum of gy and the other operands with the output's letters and the operand's exchanged.
    """

    subscripts: str

    signature = "einsum(*x[...]) -> y[...]"
    domains = {"x": REAL}
    cases = (
        (((2, 3), (3, 4)), {"subscripts": "ij,jk->ik"}),
        (((2, 3), (2,), (4, 3)), {"subscripts": "ij,i,kj->ki"}),
        (((2, 3),), {"subscripts": "ij->ji"}),
        (((2, 0), (0,)), {"subscripts": "ij,j->i"}),
    )

    def check(self, shapes: tuple[Shape, ...]) -> dict[str, int]:
        operands = self.subscripts.partition("->")[0].split(",")
        if len(operands) != len(shapes):
            raise ShapeError(f"einsum: {self.subscripts!r} is for {len(operands)} operands; {len(shapes)} were given")
        sizes: dict[str, int] = {}
        for i, (letters, shape) in enumerate(zip(operands, shapes, strict=True)):
            if len(letters) != len(shape):
                raise ShapeError(f"einsum: operand {i} has shape {shape}; {letters!r} needs {len(letters)} axes")
            for letter, size in zip(letters, shape, strict=True):
                if sizes.setdefault(letter, size) != size:
                    raise ShapeError(f"einsum: axis {letter} is {sizes[letter]} and {size}, in operand {i}")
        return sizes

    def forward(self, xp: Any, *x: Array) -> Array:
        return xp.einsum(self.subscripts, *x)

    def backward(self, gy: Tensor, y: Tensor, *x: Tensor) -> tuple[Gradient, ...]:
        operands, _, output = self.subscripts.partition("->")
        letters = operands.split(",")

        def gradient(i: int) -> Tensor:
            others = [j for j in range(len(x)) if j != i]
            subscripts = ",".join([output, *(letters[j] for j in others)]) + "->" + letters[i]
            return Einsum(subscripts)(gy, *(x[j] for j in others))

        return tuple((lambda i=i: gradient(i)) for i in range(len(x)))


def _transposed(a: Tensor) -> Tensor:
    """The last two axes exchanged: a[... M K] -> [... K M]."""
    return a.transpose((*range(a.ndim - 2), a.ndim - 1, a.ndim - 2))


def _rows(x: Tensor) -> Tensor:
    """x[... I] -> [rows I]."""
    return x if x.ndim == 2 else x.reshape((math.prod(x.shape[:-1]), x.shape[-1]))
