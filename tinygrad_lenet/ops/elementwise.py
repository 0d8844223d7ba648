"""Ops that act on each element by itself. Inputs broadcast; the engine sums gradients back to each input's shape.

Backward multiplies by the slope of each element, so applying it twice multiplies by the slope squared: `curvature`.
"""

from dataclasses import dataclass
from typing import Any

from ..backend import Array
from ..tensor import POSITIVE, REAL, Domain, Gradient, Number, Op, Tensor

Operand = Tensor | Number

_SCALES = {"amplitude": (1.0, 1.7159), "slope": (1.0, 2 / 3)}


class Add(Op):
    """y = a + b; dy/da = dy/db = 1."""

    signature = "add(a[...], b[...]) -> y[...]"
    domains = {"a": REAL, "b": REAL}

    def forward(self, xp: Any, a: Array, b: Array) -> Array:
        return xp.add(a, b)

    def backward(self, gy: Tensor, y: Tensor, a: Operand, b: Operand) -> tuple[Gradient, ...]:
        return gy, gy

    def curvature(self, hy: Tensor, gy: Tensor, y: Tensor, a: Operand, b: Operand) -> tuple[Gradient, ...]:
        return hy, hy


class Subtract(Op):
    """y = a - b; dy/da = 1, dy/db = -1."""

    signature = "subtract(a[...], b[...]) -> y[...]"
    domains = {"a": REAL, "b": REAL}

    def forward(self, xp: Any, a: Array, b: Array) -> Array:
        return xp.subtract(a, b)

    def backward(self, gy: Tensor, y: Tensor, a: Operand, b: Operand) -> tuple[Gradient, ...]:
        return gy, lambda: -gy

    def curvature(self, hy: Tensor, gy: Tensor, y: Tensor, a: Operand, b: Operand) -> tuple[Gradient, ...]:
        return hy, hy


class Multiply(Op):
    """y = a b; dy/da = b, dy/db = a."""

    signature = "multiply(a[...], b[...]) -> y[...]"
    domains = {"a": REAL, "b": REAL}

    def forward(self, xp: Any, a: Array, b: Array) -> Array:
        return xp.multiply(a, b)

    def backward(self, gy: Tensor, y: Tensor, a: Operand, b: Operand) -> tuple[Gradient, ...]:
        return lambda: gy * b, lambda: gy * a

    def curvature(self, hy: Tensor, gy: Tensor, y: Tensor, a: Operand, b: Operand) -> tuple[Gradient, ...]:
        if a is b:
            raise ValueError(
                "multiply: curvature takes the factors for different tensors, and x * x is a square, whose second "
                "derivative would be lost; use functional.mse_loss for a loss"
            )
        return self.backward(hy, y, a * a, b * b)


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

    def curvature(self, hy: Tensor, gy: Tensor, y: Tensor, a: Operand, b: Operand) -> tuple[Gradient, ...]:
        return lambda: hy / b / b, lambda: hy * (y / b) * (y / b)


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

    def curvature(self, hy: Tensor, gy: Tensor, y: Tensor, x: Tensor) -> Gradient:
        return hy


class Absolute(Op):
    """y = |x|; dy/dx = sign x, which is 0 at 0."""

    signature = "absolute(x[...]) -> y[...]"
    domains = {"x": Domain(kinks=(0.0,))}

    def forward(self, xp: Any, x: Array) -> Array:
        return xp.absolute(x)

    def backward(self, gy: Tensor, y: Tensor, x: Tensor) -> Tensor:
        return where(x > 0, gy, where(x < 0, -gy, 0.0))

    def curvature(self, hy: Tensor, gy: Tensor, y: Tensor, x: Tensor) -> Tensor:
        return self.backward(self.backward(hy, y, x), y, x)


class Exp(Op):
    """y = e**x; dy/dx = y."""

    signature = "exp(x[...]) -> y[...]"
    domains = {"x": REAL}

    def forward(self, xp: Any, x: Array) -> Array:
        return xp.exp(x)

    def backward(self, gy: Tensor, y: Tensor, x: Tensor) -> Tensor:
        return gy * y

    def curvature(self, hy: Tensor, gy: Tensor, y: Tensor, x: Tensor) -> Tensor:
        return self.backward(self.backward(hy, y, x), y, x)


class Log(Op):
    """y = log x; dy/dx = 1/x; where x is not positive and gy is 0, the gradient is 0."""

    signature = "log(x[...]) -> y[...]"
    domains = {"x": POSITIVE}

    def forward(self, xp: Any, x: Array) -> Array:
        return xp.log(x)

    def backward(self, gy: Tensor, y: Tensor, x: Tensor) -> Tensor:
        return _quotient(gy, x)

    def curvature(self, hy: Tensor, gy: Tensor, y: Tensor, x: Tensor) -> Tensor:
        return self.backward(self.backward(hy, y, x), y, x)


class Sqrt(Op):
    """y = sqrt x; dy/dx = 1 / (2 y); where x is not positive and gy is 0, the gradient is 0."""

    signature = "sqrt(x[...]) -> y[...]"
    domains = {"x": POSITIVE}

    def forward(self, xp: Any, x: Array) -> Array:
        return xp.sqrt(x)

    def backward(self, gy: Tensor, y: Tensor, x: Tensor) -> Tensor:
        return _quotient(gy, 2.0 * y)

    def curvature(self, hy: Tensor, gy: Tensor, y: Tensor, x: Tensor) -> Tensor:
        return self.backward(self.backward(hy, y, x), y, x)


class Tanh(Op):
    """y = tanh x; dy/dx = 1 - y^2 (see `TanhGrad`)."""

    signature = "tanh(x[...]) -> y[...]"
    domains = {"x": REAL}

    def forward(self, xp: Any, x: Array) -> Array:
        return xp.tanh(x)

    def backward(self, gy: Tensor, y: Tensor, x: Tensor) -> Tensor:
        return TanhGrad()(gy, y)

    def curvature(self, hy: Tensor, gy: Tensor, y: Tensor, x: Tensor) -> Tensor:
        return self.backward(self.backward(hy, y, x), y, x)


@dataclass(frozen=True)
class ScaledTanh(Op):
    """y = A tanh(S x) with amplitude A and slope S; dy/dx = S (A - y^2 / A) (see `TanhGrad`)."""

    amplitude: float
    slope: float

    signature = "scaled_tanh(x[...]) -> y[...]"
    domains = {"x": REAL}
    parameters = _SCALES

    def forward(self, xp: Any, x: Array) -> Array:
        y = xp.tanh(self.slope * x)
        y *= self.amplitude
        return y

    def backward(self, gy: Tensor, y: Tensor, x: Tensor) -> Tensor:
        return TanhGrad(self.amplitude, self.slope)(gy, y)

    def curvature(self, hy: Tensor, gy: Tensor, y: Tensor, x: Tensor) -> Tensor:
        return self.backward(self.backward(hy, y, x), y, x)


@dataclass(frozen=True)
class TanhGrad(Op):
    """gx = gy S (A - y^2 / A), the gradient of A tanh(S x), one op so that a kernel can fuse it.

    d/dgy = S (A - y^2 / A), d/dy = -2 S / A gy y.
    """

    amplitude: float = 1.0
    slope: float = 1.0

    signature = "tanh_grad(gy[...], y[...]) -> gx[...]"
    domains = {"gy": REAL, "y": REAL}
    parameters = _SCALES

    def forward(self, xp: Any, gy: Array, y: Array) -> Array:
        return gy * (self.slope * self.amplitude - self.slope / self.amplitude * (y * y))

    def backward(self, ggx: Tensor, gx: Tensor, gy: Tensor, y: Tensor) -> tuple[Gradient, ...]:
        return lambda: self(ggx, y), lambda: -2 * self.slope / self.amplitude * ggx * gy * y


class Sigmoid(Op):
    """y = 1 / (1 + e**-x), computed without overflow; dy/dx = y (1 - y)."""

    signature = "sigmoid(x[...]) -> y[...]"
    domains = {"x": REAL}

    def forward(self, xp: Any, x: Array) -> Array:
        e = xp.exp(-xp.absolute(x))
        return xp.where(x >= 0, 1 / (1 + e), e / (1 + e))

    def backward(self, gy: Tensor, y: Tensor, x: Tensor) -> Tensor:
        return gy * (y * (1 - y))

    def curvature(self, hy: Tensor, gy: Tensor, y: Tensor, x: Tensor) -> Tensor:
        return self.backward(self.backward(hy, y, x), y, x)


class ReLU(Op):
    """y = max(x, 0); dy/dx = 1 where x > 0, else 0 (also at 0)."""

    signature = "relu(x[...]) -> y[...]"
    domains = {"x": Domain(kinks=(0.0,))}

    def forward(self, xp: Any, x: Array) -> Array:
        return xp.maximum(x, 0)

    def backward(self, gy: Tensor, y: Tensor, x: Tensor) -> Tensor:
        return where(y > 0, gy, 0.0)

    def curvature(self, hy: Tensor, gy: Tensor, y: Tensor, x: Tensor) -> Tensor:
        return self.backward(self.backward(hy, y, x), y, x)


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
