"""Ops that act on each element separately. Inputs broadcast; the engine sums gradients to each input's shape.

Backward multiplies the gradient by the slope of each element (`Chain`). One rule holds for all ops: where the gradient
is 0 and the slope is infinite or NaN, the product is 0, so a branch that `Where` did not select sends nothing back.
"""

import math

from ..curvature import Elementwise, Multilinear
from ..op import CONSTANT, POSITIVE, REAL, Domain, Op, op
from ..shapes import number
from ..tensor import Tensor

BOOLEAN = Domain(kind="boolean")


class Chain(Op):
    """y = g s, the chain rule for one element, but 0 where g is 0 and s is infinite or NaN; dy/dg = s, dy/ds = g."""

    signature = "chain(g[...], s[...]) -> y[...]"
    domains = {"g": REAL, "s": REAL}

    def forward(self, xp, g, s):
        return g * xp.where((g == 0) & ~xp.isfinite(s), 1, s)

    def backward(self, gy, y, g, s):
        def gg():
            unused = (g == 0) & ((s - s) != 0)  # if s is not finite, s - s is NaN, which equals nothing
            return chain(gy, where(unused, 0.0, s))

        return gg, lambda: chain(gy, g)


def chain(g, s):
    """`Chain`, for the backward rules of elementwise ops; a slope that is a number multiplies as it is."""
    return op("chain")(g, s) if isinstance(s, Tensor) else g * s


def where(condition, a, b):
    """`Where`, for backward rules."""
    return op("where")(condition, a, b)


class Add(Elementwise):
    """y = a + b; dy/da = dy/db = 1."""

    signature = "add(a[...], b[...]) -> y[...]"
    domains = {"a": REAL, "b": REAL}
    integers = "int64"
    reads_values = False

    def forward(self, xp, a, b):
        return xp.add(a, b)

    def backward(self, gy, y, a, b):
        return gy, gy


class Subtract(Elementwise):
    """y = a - b; dy/da = 1, dy/db = -1."""

    signature = "subtract(a[...], b[...]) -> y[...]"
    domains = {"a": REAL, "b": REAL}
    integers = "int64"
    reads_values = False

    def forward(self, xp, a, b):
        return xp.subtract(a, b)

    def backward(self, gy, y, a, b):
        return gy, lambda: -gy


class Multiply(Multilinear):
    """y = a b; dy/da = b, dy/db = a."""

    signature = "multiply(a[...], b[...]) -> y[...]"
    domains = {"a": REAL, "b": REAL}
    integers = "int64"

    def forward(self, xp, a, b):
        return xp.multiply(a, b)

    def backward(self, gy, y, a, b):
        return lambda: chain(gy, b), lambda: chain(gy, a)


class Divide(Elementwise):
    """y = a / b; dy/da = 1/b, dy/db = -y/b."""

    signature = "divide(a[...], b[...]) -> y[...]"
    domains = {"a": REAL, "b": POSITIVE}

    def forward(self, xp, a, b):
        return xp.divide(a, b)

    def backward(self, gy, y, a, b):
        if not isinstance(b, Tensor):
            return gy / b, None
        return lambda: chain(gy, 1.0 / b), lambda: chain(chain(gy, y), -1.0 / b)


class Power(Elementwise):
    """y = a**b; dy/da = b a**(b-1), dy/db = y log a, which is 0 where a is 0."""

    signature = "power(a[...], b[...]) -> y[...]"
    domains = {"a": POSITIVE, "b": REAL}

    def forward(self, xp, a, b):
        return xp.power(a, b)

    def backward(self, gy, y, a, b):
        def ga():
            if not isinstance(b, Tensor):
                return chain(gy, b * a ** (b - 1) if b else FullLike(0.0)(y))
            return chain(gy, b * a ** where(b == 0, 1.0, b - 1))  # for b = 0 the slope is 0, even at a = 0

        def gb():
            base = a if isinstance(a, Tensor) else FullLike(a)(y)
            return chain(gy, y * where(base == 0, 1.0, base).log())

        return ga, gb


class Negative(Elementwise):
    """y = -x; dy/dx = -1."""

    signature = "negative(x[...]) -> y[...]"
    domains = {"x": REAL}
    integers = "int64"
    reads_values = False

    def forward(self, xp, x):
        return xp.negative(x)

    def backward(self, gy, y, x):
        return -gy


class Absolute(Elementwise):
    """y = abs x; dy/dx = sign x, which is 0 at 0."""

    signature = "absolute(x[...]) -> y[...]"
    domains = {"x": Domain(kinks=(0.0,))}
    integers = "int64"

    def forward(self, xp, x):
        return xp.absolute(x)

    def backward(self, gy, y, x):
        return where(x == 0, 0.0, where(x < 0, -gy, gy))


class Exp(Elementwise):
    """y = e**x; dy/dx = y."""

    signature = "exp(x[...]) -> y[...]"
    domains = {"x": REAL}

    def forward(self, xp, x):
        return xp.exp(x)

    def backward(self, gy, y, x):
        return chain(gy, y)


class Log(Elementwise):
    """y = log x; dy/dx = 1/x."""

    signature = "log(x[...]) -> y[...]"
    domains = {"x": POSITIVE}

    def forward(self, xp, x):
        return xp.log(x)

    def backward(self, gy, y, x):
        return chain(gy, 1.0 / x)


class Sqrt(Elementwise):
    """y = sqrt x; dy/dx = 1 / (2 y)."""

    signature = "sqrt(x[...]) -> y[...]"
    domains = {"x": POSITIVE}

    def forward(self, xp, x):
        return xp.sqrt(x)

    def backward(self, gy, y, x):
        return chain(gy, 0.5 / y)


class Tanh(Elementwise):
    """y = tanh x; dy/dx = 1 - y^2 (see `TanhGrad`)."""

    signature = "tanh(x[...]) -> y[...]"
    domains = {"x": REAL}

    def forward(self, xp, x):
        return xp.tanh(x)

    def backward(self, gy, y, x):
        return op("tanh_grad")(gy, y)


class TanhGrad(Op):
    """gx = gy S (A - y^2 / A), the gradient of A tanh(S x); a single op, which a kernel can fuse.

    d/dgy = S (A - y^2 / A), d/dy = -2 S / A gy y. Like `Chain`, it is 0 where gy is 0 and y is NaN.
    """

    amplitude: float = 1.0
    slope: float = 1.0

    signature = "tanh_grad(gy[...], y[...]) -> gx[...]"
    domains = {"gy": REAL, "y": REAL}
    parameters = {"amplitude": (1.0, 1.7159), "slope": (1.0, 2 / 3)}

    def forward(self, xp, gy, y):
        y = xp.where((gy == 0) & (y != y), 0, y)
        return gy * (self.slope * self.amplitude - self.slope / self.amplitude * (y * y))

    def backward(self, ggx, gx, gy, y):
        return lambda: self(ggx, y), lambda: chain(-2 * self.slope / self.amplitude * ggx * gy, y)


class Sigmoid(Elementwise):
    """y = 1 / (1 + e**-x), computed without overflow; dy/dx = y (1 - y) (see `SigmoidGrad`)."""

    signature = "sigmoid(x[...]) -> y[...]"
    domains = {"x": REAL}

    def forward(self, xp, x):
        e = xp.exp(-xp.absolute(x))
        return xp.where(x < 0, e, 1) / (1 + e)

    def backward(self, gy, y, x):
        return op("sigmoid_grad")(gy, y)


class SigmoidGrad(Op):
    """gx = gy y (1 - y), the gradient of the sigmoid as a single op, which a kernel can fuse.

    d/dgy = y (1 - y), d/dy = gy (1 - 2 y). Like `Chain`, it is 0 where gy is 0 and y is NaN.
    """

    signature = "sigmoid_grad(gy[...], y[...]) -> gx[...]"
    domains = {"gy": REAL, "y": REAL}

    def forward(self, xp, gy, y):
        y = xp.where((gy == 0) & (y != y), 0, y)
        return gy * (y * (1 - y))

    def backward(self, ggx, gx, gy, y):
        return lambda: self(ggx, y), lambda: chain(ggx * gy, 1 - 2 * y)


class ReLU(Elementwise):
    """y = max(x, 0); dy/dx = 1 where x > 0, else 0 (also at 0); a NaN lets the gradient through."""

    signature = "relu(x[...]) -> y[...]"
    domains = {"x": Domain(kinks=(0.0,))}
    integers = "kept"

    def forward(self, xp, x):
        return xp.maximum(x, 0)

    def backward(self, gy, y, x):
        return where(y <= 0, 0.0, gy)


class _Extreme(Elementwise, kind=True):
    """The gradient goes to the selected input, which is always a NaN if there is one, and half to each at a tie."""

    domains = {"a": Domain(distinct=True), "b": Domain(distinct=True)}
    integers = "kept"

    def forward(self, xp, a, b):
        return getattr(xp, self.name)(a, b)

    def backward(self, gy, y, a, b):
        grad = op("extreme_grad", self.name)
        return lambda: grad(gy, a, b), lambda: grad(gy, b, a)


class Maximum(_Extreme):
    """y = max(a, b); the gradient goes to the larger input, with NaN as largest, and half to each at a tie."""

    signature = "maximum(a[...], b[...]) -> y[...]"


class Minimum(_Extreme):
    """y = min(a, b); the gradient goes to the smaller input, with NaN as smallest, and half to each at a tie."""

    signature = "minimum(a[...], b[...]) -> y[...]"


class ExtremeGrad(Op):
    """gx = gy where x is the ``extreme`` ("maximum" or "minimum") of x and another, half of it at ties, else 0.

    It is linear in gy, and flat in x and the other between ties. NaN is more extreme than all numbers.
    """

    extreme: str

    signature = "extreme_grad(gy[...], x[...], other[...]) -> gx[...]"
    domains = {"gy": REAL, "x": Domain(distinct=True), "other": Domain(distinct=True)}
    parameters = {"extreme": ("maximum", "minimum")}

    def forward(self, xp, gy, x, other):
        chosen = (x >= other if self.extreme == "maximum" else x <= other) | (x != x)
        tie = (x == other) | ((x != x) & (other != other))
        return xp.where(chosen, xp.where(tie, 0.5 * gy, gy), 0)

    def backward(self, ggx, gx, gy, x, other):
        return lambda: self(ggx, x, other), lambda: FullLike(0.0)(x), lambda: FullLike(0.0)(other)


class Where(Elementwise):
    """y = a where condition holds, else b; the gradient goes to the selected one and is 0 for the other."""

    signature = "where(condition[...], a[...], b[...]) -> y[...]"
    domains = {"condition": BOOLEAN, "a": REAL, "b": REAL}
    integers = "kept"

    def forward(self, xp, condition, a, b):
        return xp.where(condition, a, b)

    def backward(self, gy, y, condition, a, b):
        return None, lambda: where(condition, gy, 0.0), lambda: where(condition, 0.0, gy)


# Ops without a gradient: comparisons, logic and constants.


class _Compare(Op, kind=True):
    """Compares element by element; NumPy makes this exact for any two dtypes."""

    domains = {"a": CONSTANT, "b": CONSTANT}
    integers = "native"

    def forward(self, xp, a, b):
        return getattr(xp, self.name)(_comparable(xp, a, b), _comparable(xp, b, a))


def _comparable(xp, x, other):
    """x, but infinity for a number beyond all integers of the other input: it compares alike, and CuPy takes it."""
    if type(x) is not int or not hasattr(other, "dtype") or other.dtype.kind not in "iu":
        return x
    limits = xp.iinfo(other.dtype)
    return x if limits.min <= x <= limits.max else math.copysign(math.inf, x)


class Equal(_Compare):
    """y = (a == b); NaN equals nothing."""

    signature = "equal(a[...], b[...]) -> y[...]"


class NotEqual(_Compare):
    """y = (a != b); NaN differs from everything."""

    signature = "not_equal(a[...], b[...]) -> y[...]"


class Less(_Compare):
    """y = (a < b)."""

    signature = "less(a[...], b[...]) -> y[...]"


class LessEqual(_Compare):
    """y = (a <= b)."""

    signature = "less_equal(a[...], b[...]) -> y[...]"


class Greater(_Compare):
    """y = (a > b)."""

    signature = "greater(a[...], b[...]) -> y[...]"


class GreaterEqual(_Compare):
    """y = (a >= b)."""

    signature = "greater_equal(a[...], b[...]) -> y[...]"


class _Logic(Op, kind=True):
    """Acts on booleans, element by element."""

    domains = {"a": BOOLEAN, "b": BOOLEAN}

    def forward(self, xp, *booleans):
        return getattr(xp, self.name)(*booleans)


class LogicalAnd(_Logic):
    """y = a and b."""

    signature = "logical_and(a[...], b[...]) -> y[...]"


class LogicalOr(_Logic):
    """y = a or b."""

    signature = "logical_or(a[...], b[...]) -> y[...]"


class LogicalNot(_Logic):
    """y = not x."""

    signature = "logical_not(x[...]) -> y[...]"
    domains = {"x": BOOLEAN}


class FullLike(Op):
    """y = value, with the shape, dtype and device of x, whose values do not matter."""

    value: float

    signature = "full_like(x[...]) -> y[...]"
    domains = {"x": CONSTANT}
    rules = {"value": (number, "[-inf, inf]")}
    parameters = {"value": (1.0, -2.5)}
    integers = "refused"

    def forward(self, xp, x):
        return xp.full(x.shape, self.value, x.dtype)
