"""Ops that act on each element by itself. Inputs broadcast; the engine sums gradients back to each input's shape."""

from typing import Any

from ..backend import Array
from ..tensor import POSITIVE, REAL, Domain, Gradient, Number, Op, Tensor

Operand = Tensor | Number


class Add(Op):
    """y = a + b; dy/da = dy/db = 1."""

    signature = "add(a[...], b[...]) -> y[...]"
    domains = {"a": REAL, "b": REAL}

    def forward(self, xp: Any, a: Array, b: Array) -> Array:
        return xp.add(a, b)

    def backward(self, gy: Tensor, y: Tensor, a: Operand, b: Operand) -> tuple[Gradient, ...]:
        return gy, gy


class Subtract(Op):
    """y = a - b; dy/da = 1, dy/db = -1."""

    signature = "subtract(a[...], b[...]) -> y[...]"
    domains = {"a": REAL, "b": REAL}

    def forward(self, xp: Any, a: Array, b: Array) -> Array:
        return xp.subtract(a, b)

    def backward(self, gy: Tensor, y: Tensor, a: Operand, b: Operand) -> tuple[Gradient, ...]:
        return gy, lambda: -gy


class Multiply(Op):
    """y = a b; dy/da = b, dy/db = a."""

    signature = "multiply(a[...], b[...]) -> y[...]"
    domains = {"a": REAL, "b": REAL}

    def forward(self, xp: Any, a: Array, b: Array) -> Array:
        return xp.multiply(a, b)

    def backward(self, gy: Tensor, y: Tensor, a: Operand, b: Operand) -> tuple[Gradient, ...]:
        return lambda: gy * b, lambda: gy * a


class Divide(Op):
    """y = a / b; dy/da = 1/b, dy/db = -y/b; where b is 0 and gy is 0, the gradients are 0."""

    signature = "divide(a[...], b[...]) -> y[...]"
    domains = {"a": REAL, "b": POSITIVE}

    def forward(self, xp: Any, a: Array, b: Array) -> Array:
        return xp.divide(a, b)

    def backward(self, gy: Tensor, y: Tensor, a: Operand, b: Operand) -> tuple[Gradient, ...]:
        if not isinstance(b, Tensor):
            return gy / b, None
        finite = where((gy == 0) & ((y != y) | (abs(y) == float("inf"))), 0.0, y)
        return lambda: _quotient(gy, b), lambda: -_quotient(gy, b) * finite


class Power(Op):
    """y = a**b; dy/da = b a**(b-1), dy/db = y log a.

    dy/db is 0 where a is 0; where a and gy are 0, the gradient for a is 0.
    """

    signature = "power(a[...], b[...]) -> y[...]"
    domains = {"a": POSITIVE, "b": REAL}

    def forward(self, xp: Any, a: Array, b: Array) -> Array:
        return a**b

    def backward(self, gy: Tensor, y: Tensor, a: Operand, b: Operand) -> tuple[Gradient, ...]:
        def ga() -> Tensor:
            assert isinstance(a, Tensor)
            steep = (a == 0) & (b < 1)  # where a**(b-1) is infinite
            base = where((gy == 0) & (steep | (a != a)), 1.0, a)
            if isinstance(b, Tensor):
                return gy * (b * base ** where(b == 0, 1.0, b - 1))  # b = 0: the slope is 0, also at a = 0
            return gy * (b * base ** (b - 1)) if b != 0 else gy * 0.0

        def gb() -> Tensor:
            base = a if isinstance(a, Tensor) else Tensor(a, dtype=y.dtype, device=y.device)
            return gy * y * where(base == 0, 1.0, base).log()

        return ga, gb


class Negative(Op):
    """y = -x; dy/dx = -1."""

    signature = "negative(x[...]) -> y[...]"
    domains = {"x": REAL}

    def forward(self, xp: Any, x: Array) -> Array:
        return xp.negative(x)

    def backward(self, gy: Tensor, y: Tensor, x: Tensor) -> Gradient:
        return -gy


class Absolute(Op):
    """y = |x|; dy/dx = sign x, which is 0 at 0."""

    signature = "absolute(x[...]) -> y[...]"
    domains = {"x": Domain(kinks=(0.0,))}

    def forward(self, xp: Any, x: Array) -> Array:
        return xp.absolute(x)

    def backward(self, gy: Tensor, y: Tensor, x: Tensor) -> Gradient:
        return where(x > 0, gy, where(x < 0, -gy, 0.0))


class Exp(Op):
    """y = e**x; dy/dx = y."""

    signature = "exp(x[...]) -> y[...]"
    domains = {"x": REAL}

    def forward(self, xp: Any, x: Array) -> Array:
        return xp.exp(x)

    def backward(self, gy: Tensor, y: Tensor, x: Tensor) -> Gradient:
        return gy * y


class Log(Op):
    """y = log x; dy/dx = 1/x; where x is not positive and gy is 0, the gradient is 0."""

    signature = "log(x[...]) -> y[...]"
    domains = {"x": POSITIVE}

    def forward(self, xp: Any, x: Array) -> Array:
        return xp.log(x)

    def backward(self, gy: Tensor, y: Tensor, x: Tensor) -> Gradient:
        return _quotient(gy, x)


class Sqrt(Op):
    """y = sqrt x; dy/dx = 1 / (2 y); where x is not positive and gy is 0, the gradient is 0."""

    signature = "sqrt(x[...]) -> y[...]"
    domains = {"x": POSITIVE}

    def forward(self, xp: Any, x: Array) -> Array:
        return xp.sqrt(x)

    def backward(self, gy: Tensor, y: Tensor, x: Tensor) -> Gradient:
        return _quotient(gy, 2.0 * y)


class Tanh(Op):
    """y = tanh x; dy/dx = 1 - y^2 (see `TanhGrad`)."""

    signature = "tanh(x[...]) -> y[...]"
    domains = {"x": REAL}

    def forward(self, xp: Any, x: Array) -> Array:
        return xp.tanh(x)

    def backward(self, gy: Tensor, y: Tensor, x: Tensor) -> Gradient:
        return TanhGrad()(gy, y)


class TanhGrad(Op):
    """gx = gy (1 - y^2), tanh's gradient, one op so that a kernel can fuse it; d/dgy = 1 - y^2, d/dy = -2 gy y."""

    signature = "tanh_grad(gy[...], y[...]) -> gx[...]"
    domains = {"gy": REAL, "y": REAL}

    def forward(self, xp: Any, gy: Array, y: Array) -> Array:
        return gy * (1 - y * y)

    def backward(self, ggx: Tensor, gx: Tensor, gy: Tensor, y: Tensor) -> tuple[Gradient, ...]:
        return lambda: TanhGrad()(ggx, y), lambda: -2.0 * ggx * gy * y


class Sigmoid(Op):
    """y = 1 / (1 + e**-x), computed without overflow; dy/dx = y (1 - y)."""

    signature = "sigmoid(x[...]) -> y[...]"
    domains = {"x": REAL}

    def forward(self, xp: Any, x: Array) -> Array:
        e = xp.exp(-xp.absolute(x))
        return xp.where(x >= 0, 1 / (1 + e), e / (1 + e))

    def backward(self, gy: Tensor, y: Tensor, x: Tensor) -> Gradient:
        return gy * (y * (1 - y))


class ReLU(Op):
    """y = max(x, 0); dy/dx = 1 where x > 0, else 0 (also at 0)."""

    signature = "relu(x[...]) -> y[...]"
    domains = {"x": Domain(kinks=(0.0,))}

    def forward(self, xp: Any, x: Array) -> Array:
        return xp.maximum(x, 0)

    def backward(self, gy: Tensor, y: Tensor, x: Tensor) -> Gradient:
        return where(y > 0, gy, 0.0)


class Maximum(Op):
    """y = max(a, b); the gradient goes to the larger input, and half to each where they tie."""

    signature = "maximum(a[...], b[...]) -> y[...]"
    domains = {"a": Domain(distinct=True), "b": Domain(distinct=True)}

    def forward(self, xp: Any, a: Array, b: Array) -> Array:
        return xp.maximum(a, b)

    def backward(self, gy: Tensor, y: Tensor, a: Operand, b: Operand) -> tuple[Gradient, ...]:
        return lambda: _share(gy, a, y, b), lambda: _share(gy, b, y, a)


class Minimum(Op):
    """y = min(a, b); the gradient goes to the smaller input, and half to each where they tie."""

    signature = "minimum(a[...], b[...]) -> y[...]"
    domains = {"a": Domain(distinct=True), "b": Domain(distinct=True)}

    def forward(self, xp: Any, a: Array, b: Array) -> Array:
        return xp.minimum(a, b)

    def backward(self, gy: Tensor, y: Tensor, a: Operand, b: Operand) -> tuple[Gradient, ...]:
        return lambda: _share(gy, a, y, b), lambda: _share(gy, b, y, a)


class Where(Op):
    """y = a where condition holds, else b; the gradient goes to the one that was taken and is 0 for the other."""

    signature = "where(condition[...], a[...], b[...]) -> y[...]"
    domains = {"condition": Domain(kind="boolean"), "a": REAL, "b": REAL}

    def forward(self, xp: Any, condition: Array, a: Array, b: Array) -> Array:
        return xp.where(condition, a, b)

    def backward(self, gy: Tensor, y: Tensor, condition: Tensor, a: Operand, b: Operand) -> tuple[Gradient, ...]:
        return None, lambda: where(condition, gy, 0.0), lambda: where(condition, 0.0, gy)


def where(condition: Tensor, a: Operand, b: Operand) -> Tensor:
    """`Where`, for the backward rules of this file."""
    return Where()(condition, a, b)


def _quotient(gy: Tensor, d: Tensor) -> Tensor:
    """gy / d, but 0 where gy is 0 and d is 0 or NaN, so that a branch not taken sends no NaN back."""
    return gy / where((gy == 0) & ((d == 0) | (d != d)), 1.0, d)


def _share(gy: Tensor, x: Operand, y: Tensor, other: Operand) -> Tensor:
    """The part of gy that goes to x, where y is x or the other: all, half at a tie, or none."""
    taken = y == x
    return where(taken, where(y == other, 0.5 * gy, gy), 0.0)
