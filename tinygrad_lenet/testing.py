"""Checking the gradients of any function, and everything that an op promises.

`check_gradients` compares derivatives with central differences; `cases` draws inputs for an op from its declarations;
`check_op` checks one such case. A test of your own op then takes three lines::

    @given(testing.cases(MyOp))
    def test_my_op(case):
        testing.check_op(*case, oracle=my_plain_loops)
"""

import copy
import dataclasses
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .backend import Array, parse_device
from .graph import ancestors
from .op import Domain, Op
from .shapes import Shape, integer, number
from .tensor import Tensor, grad

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

__all__ = ["cases", "check_gradients", "check_op"]


def __dir__() -> list[str]:  # for completion: no helpers, no imports
    return __all__


Function = Callable[..., Tensor]
Case = tuple[Op, list[np.ndarray]]

_ELEMENTWISE = 12  # inputs of up to this many elements are checked element by element, larger ones in directions
_DIRECTIONS = 3
_SEARCHED = 1000  # elements searched for the worst one once a check has failed
_ROUNDING = 30 * float(np.finfo(np.float64).eps)  # relative error that rounding may cause in a function


def check_gradients(
    fn: Function,
    *arrays: Any,
    order: int = 2,
    eps: float = 1e-6,
    rtol: float = 1e-4,
    atol: float = 0.0,
    seed: int = 0,
    device: str = "cpu",
) -> None:
    """Check the derivatives of ``fn``, up to the given order, against central differences in float64.

    ``fn`` takes as many tensors as there are ``arrays`` and returns a tensor of any shape. Floats are cast to float64;
    integers and booleans are passed on as constants. At each order the vector-Jacobian product with a random cotangent
    c, g = c^T dy/dx, is compared with (c^T y(x + h d) - c^T y(x - h d)) / (2 h) along each element d of a small input,
    and along random directions d of a large one; h is ``eps`` times the largest abs(x), or ``eps`` if that is below 1.
    The next order does the same with g as a function of x and c.

    AssertionError, which shows the worst element, if they differ by more than ``atol`` plus ``rtol`` times the largest
    difference quotient plus what rounding can explain. Since the tolerance is relative, a gradient that is wrong by 1%
    is refused however small it is, unless it is below about 1e-6 of the output, where difference quotients cannot tell
    it from 0. (Give ``atol`` for an output that is nothing but rounding error.) AssertionError also if the output is
    not finite, not float64 or not reproducible.

    >>> check_gradients(lambda x: x.tanh(), np.array([0.5, -1.0]))
    >>> check_gradients(lambda x: x * x.detach(), np.array([2.0, 3.0]))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    AssertionError: check_gradients: order 1: d(output)/d(input 0), input 0 of shape (2,): worst at index (1,), ...
    """
    integer("check_gradients", "order", order, minimum=1)
    eps = number("check_gradients", "eps", eps, "(0, 1)")
    rtol = number("check_gradients", "rtol", rtol, "[0, 1)")
    atol = number("check_gradients", "atol", atol, "[0, inf)")
    values = [np.array(a.numpy() if isinstance(a, Tensor) else a) for a in arrays]
    values = [a.astype(np.float64) if a.dtype.kind == "f" else a for a in values]
    if not any(a.dtype.kind == "f" for a in values):
        raise ValueError("check_gradients: no input holds floats, so there is no gradient to check")
    checker = _Checker(eps, rtol, atol, np.random.default_rng(seed), device)
    checker.check(fn, values, [f"input {i}" for i in range(len(values))], "output", 1, order, 0.0)


@dataclass
class _Checker:
    """The settings of one call of `check_gradients`, and the steps that it takes."""

    eps: float
    rtol: float
    atol: float
    rng: np.random.Generator
    device: str

    def check(
        self, fn: Function, values: list[np.ndarray], names: list[str], what: str, order: int, last: int, scale: float
    ) -> None:
        """Check d(fn)/d(each value), then the functions that compute it, up to order ``last``.

        ``scale`` is the size of the values that fn was derived from: if a gradient cancels to 0, its rounding error is
        relative to them.
        """
        real = [i for i, value in enumerate(values) if value.dtype.kind == "f"]
        tensors = [Tensor(value.copy(), i in real, device=self.device) for i, value in enumerate(values)]
        y = fn(*tensors)
        output = self.refuse_bad_output(fn, values, y, f"order {order}: {what}")
        c = self.rng.choice([-1.0, 1.0], y.shape) * self.rng.uniform(0.5, 1.5, y.shape)
        scale = max(scale, float(np.linalg.norm((c * output).ravel())))
        used = _used(y, [tensors[i] for i in real])
        gradients = grad(y, used, Tensor(c, device=y.device)) if used else ()
        found = {id(x): gx.numpy() for x, gx in zip(used, gradients, strict=True)}
        for i in real:
            label = f"check_gradients: order {order}: d({what})/d({names[i]})"
            g = found.get(id(tensors[i]), np.zeros(values[i].shape))
            if g.shape != values[i].shape or g.dtype != np.float64:
                raise AssertionError(f"{label} is {g.dtype} of shape {g.shape}; expected float64, {values[i].shape}")
            self.compare(fn, values, i, c, g, scale, f"{label}, {names[i]} of shape {values[i].shape}")
        if order < last:
            # Some zeros expose rules that treat a gradient of 0 as "not used".
            c = np.where(self.rng.random(c.shape) < 0.25, 0.0, c)
            for i in real:
                if id(tensors[i]) in found:
                    self.check(
                        _gradient_function(fn, i),
                        [*values, c],
                        [*names, f"cotangent {order}"],
                        f"d({what})/d({names[i]})",
                        order + 1,
                        last,
                        scale,
                    )

    def refuse_bad_output(self, fn: Function, values: list[np.ndarray], y: Any, label: str) -> np.ndarray:
        """The output's values; an error if difference quotients cannot be computed from them."""
        if not isinstance(y, Tensor):
            raise TypeError(f"check_gradients: fn returned {type(y).__name__}; expected a Tensor")
        output = y.numpy()
        if output.dtype != np.float64:
            raise AssertionError(f"check_gradients: {label} is {output.dtype} for float64 inputs; expected float64")
        if not np.isfinite(output).all():
            raise AssertionError(f"check_gradients: {label} is not finite, so it has no difference quotients")
        if not np.array_equal(self.evaluate(fn, values), output):
            raise AssertionError(f"check_gradients: {label} differs from call to call; fix its random generator")
        return output

    def evaluate(self, fn: Function, values: list[np.ndarray]) -> np.ndarray:
        return fn(*(Tensor(value.copy(), device=self.device) for value in values)).numpy()

    def compare(
        self, fn: Function, values: list[np.ndarray], i: int, c: np.ndarray, g: np.ndarray, scale: float, label: str
    ) -> None:
        """AssertionError if g differs from the central differences of c^T fn along value i."""
        x = values[i]
        if not x.size:
            return
        h = self.eps * max(1.0, float(np.abs(x).max()))

        def difference(d: np.ndarray) -> float:
            plus, minus = (self.evaluate(fn, [*values[:i], x + s * h * d, *values[i + 1 :]]) for s in (1, -1))
            return float(np.sum(c * (plus - minus)) / (2 * h))

        if x.size <= _ELEMENTWISE:
            directions = list(_elements(x.shape, range(x.size)))
        else:
            directions = [self.rng.standard_normal(x.shape) for _ in range(_DIRECTIONS)]
        numeric = np.array([difference(d) for d in directions])
        analytic = np.array([np.sum(g * d) for d in directions])
        limit = self.atol + self.rtol * np.abs(numeric).max() + _ROUNDING * scale / h
        if (np.abs(analytic - numeric) <= limit).all():  # False for a NaN
            return
        searched = range(x.size)
        if x.size > _SEARCHED:
            searched = self.rng.choice(x.size, _SEARCHED, replace=False)  # type: ignore[assignment]
        slopes = np.array([difference(d) for d in _elements(x.shape, searched)])
        errors = np.abs(g.ravel()[searched] - slopes)
        worst = int(np.argmax(np.where(np.isnan(errors), np.inf, errors)))
        index = tuple(int(k) for k in np.unravel_index(searched[worst], x.shape))
        raise AssertionError(
            f"{label}: worst at index {index}, where backward gives {g[index]:.8g} and "
            f"central differences give {slopes[worst]:.8g} (x there is {float(x[index])!r}, tolerance {limit:.1e})"
        )


def _elements(shape: Shape, positions: Any) -> Iterator[np.ndarray]:
    """For each position, the direction that changes only that element."""
    for position in positions:
        d = np.zeros(shape)
        d.flat[position] = 1.0
        yield d


def _used(y: Tensor, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Those inputs that y was computed from, as far as recorded; the others have a gradient of 0."""
    found = {id(x) for x in ancestors(y)}
    return [x for x in inputs if y.requires_grad and id(x) in found]


def _gradient_function(fn: Function, i: int) -> Function:
    """The function that computes fn's gradient for input i from fn's inputs and a cotangent."""

    def gradient(*inputs: Tensor) -> Tensor:
        *xs, c = inputs
        recorded = any(x.requires_grad for x in inputs)
        if not xs[i].requires_grad:  # only this function itself differentiates by it
            xs[i] = Tensor(xs[i], requires_grad=True)
        y = fn(*xs)
        return grad(y, xs[i], c if c.device == y.device else c.to(y.device), create_graph=recorded)[0]

    return gradient


def cases(op_class: type[Op]) -> "SearchStrategy[Case]":
    """A Hypothesis strategy of (op, arrays): parameters, shapes and float64 inputs that ``op_class`` declares.

    Parameters are drawn from the op's ``parameters`` and axis sizes from its ``sizes`` (by default 0 to 3). ``...``
    stands for up to three axes, which an input may lack or have at size 1, or for one of the shapes that ``sizes``
    gives for it. Optional inputs are given or left out; repeated inputs number up to 3. Anything that the op refuses is
    drawn again. Values keep away from the kinks of their `Domain`, and those of ``distinct`` domains from each other,
    also between inputs. ImportError if Hypothesis is not installed.

    >>> from tinygrad_lenet.ops.linalg import MatMul
    >>> op, (a, b) = cases(MatMul).example()  # doctest: +SKIP
    """
    try:
        from hypothesis import strategies
    except ImportError:
        raise ImportError("testing.cases needs Hypothesis; run python -m pip install hypothesis") from None
    return strategies.integers(0, 2**32 - 1).map(lambda seed: _case(op_class, seed))


def _case(op_class: type[Op], seed: int) -> Case:
    """The case drawn from a seed."""
    choose = random.Random(seed).choice
    for _ in range(10_000):
        try:
            op = op_class(**{name: choose(values) for name, values in op_class.parameters.items()})
            shapes = _draw_shapes(op, choose)
            op.output_shape(*shapes)
        except ValueError:  # the op refuses these parameters, or these shapes
            continue
        domains = [op.domains[spec.name] for spec in op.parsed.specs(len(shapes))]
        return op, _draw_values(domains, shapes, np.random.default_rng(seed))
    raise ValueError(f"op {op_class.name} refused 10,000 draws from its parameters and sizes; expected some that fit")


def _draw_shapes(op: Op, choose: Callable[[Sequence[Any]], Any]) -> tuple[Shape, ...]:
    """A shape for each input, by the op's signature and sizes."""
    declared = op.parsed.inputs
    needed = sum(not (spec.optional or spec.repeated) for spec in declared) or 1
    specs = op.parsed.specs(choose(range(needed, len(declared) + 1 + 2 * declared[-1].repeated)))
    axes: dict[str, int] = {}
    for text in sorted((axis for spec in specs for axis in spec.fixed_axes), key=lambda text: "/" not in text):
        name, _, divisor = text.partition("/")  # C/groups before C, which is groups times as large
        if name not in axes:
            axes[name] = choose(op.sizes.get(text, range(4))) * (getattr(op, divisor) if divisor else 1)
    leading = tuple(choose(range(4)) for _ in range(choose((1, 2, 3, 1, 2, 3, 0))))
    shapes = []
    for spec in specs:
        shape: Shape = ()
        if spec.any_rank and "..." in op.sizes:
            shape = choose(op.sizes["..."])
        elif spec.any_rank:
            missing = choose((0, 0, *range(len(leading) + 1)))
            shape = tuple(choose((size, size, 1)) for size in leading[missing:])
        for text in spec.fixed_axes:
            name, _, divisor = text.partition("/")
            shape += (axes[name] // (getattr(op, divisor) if divisor else 1),)
        shapes.append(shape)
    return tuple(shapes)


def _draw_values(domains: Sequence[Domain], shapes: Sequence[Shape], rng: np.random.Generator) -> list[np.ndarray]:
    """An array for each input, by its domain."""
    total = sum(math.prod(shape) for domain, shape in zip(domains, shapes, strict=True) if domain.distinct)
    steps = rng.permutation(total)  # a grid on [0, 1] in which each distinct element gets its own step
    arrays = []
    for domain, shape in zip(domains, shapes, strict=True):
        u = rng.random(shape)
        if domain.distinct:
            taken, steps = steps[: u.size], steps[u.size :]
            u = (taken.reshape(shape) + 0.3 + 0.4 * u) / total if total else u
        if domain.kind == "boolean":
            arrays.append(np.asarray(u < 0.5))
            continue
        if domain.kind == "index":
            arrays.append(np.asarray(rng.integers(int(domain.low), int(domain.high), shape)))
            continue
        gap = (domain.high - domain.low) / 40
        x = domain.low + u * (domain.high - domain.low - 2 * gap * len(domain.kinks))
        for kink in sorted(domain.kinks):  # leave out (kink - gap, kink + gap)
            x = np.where(x > kink - gap, x + 2 * gap, x)
        arrays.append(np.asarray(x))
    return arrays


def check_op(
    op: Op, arrays: Sequence[np.ndarray], oracle: Callable[..., Any] | None = None, device: str = "cpu", order: int = 2
) -> None:
    """Check one case of everything that an op promises; AssertionError names the op and the broken promise.

    - The output equals ``oracle(*arrays, **parameters)``, if given: a NumPy function or plain loops.
    - The output's axes have the sizes that the signature and ``output_shape`` give.
    - The derivatives agree with central differences, up to the given order (`check_gradients`).
    - float32 stays float32, in the output (unless a parameter ``dtype`` says otherwise) and in the gradients.
    - Inputs are not changed, except for the first one of an op that ``writes``.
    - Views that are strided, reversed, transposed or batch-last in memory give the same results.

    >>> from tinygrad_lenet.ops.elementwise import Add
    >>> check_op(Add(), [np.array([1.0, 2.0]), np.array(0.5)], oracle=np.add)
    """
    shapes = tuple(array.shape for array in arrays)
    specs = op.parsed.specs(len(arrays))
    real = [i for i, x in enumerate(specs) if op.domains[x.name].kind == "real" and arrays[i].dtype.kind == "f"]
    rng = np.random.default_rng(0)
    settings = _parameters(op)
    named = f"{op.name}{f' with {settings}' if settings else ''} on {shapes}, device {device}"

    y, c, gradients = _run(op, [_on_device(a, device, "contiguous") for a in arrays], real, rng, named)
    _check_axes(op, shapes, y.shape, named)
    if oracle is not None:
        expected = np.asarray(oracle(*(a.copy() for a in arrays), **settings))
        _assert_close(y, expected, 1e-10, f"{named}: the output and the oracle differ")

    if real:

        def fn(*xs: Tensor) -> Tensor:
            inputs: list[Any] = [Tensor(a, device=device) for a in arrays]
            for i, x in zip(real, xs, strict=True):
                inputs[i] = x
            return copy.deepcopy(op)(*inputs)

        try:
            check_gradients(fn, *(arrays[i] for i in real), order=order, device=device)
        except AssertionError as error:
            names = ", ".join(f"input {k} is {specs[i].name}" for k, i in enumerate(real))
            raise AssertionError(f"{named}: {error}; {names}") from None

    for layout in _LAYOUTS:
        views = [_on_device(a, device, layout) for a in arrays]
        y_view, _, g_view = _run(op, views, real, c, named, layout)
        _assert_close(y_view, y, 1e-10, f"{named}: the output for {layout} inputs differs")
        for i, a, b in zip(real, g_view, gradients, strict=True):
            _assert_close(a, b, 1e-10, f"{named}: the gradient of {specs[i].name} for {layout} inputs differs")

    halves = [a.astype(np.float32) if a.dtype.kind == "f" else a for a in arrays]
    y32, _, g32 = _run(op, [_on_device(a, device, "contiguous") for a in halves], real, c.astype(np.float32), named)
    expected_dtype = np.dtype(getattr(op, "dtype", np.float32 if y.dtype.kind == "f" else y.dtype))
    if y32.dtype != expected_dtype:
        raise AssertionError(f"{named}: the output is {y32.dtype} for float32 inputs; expected {expected_dtype}")
    _assert_close(y32, y, 1e-4, f"{named}: the output in float32 differs from that in float64")
    for i, a, b in zip(real, g32, gradients, strict=True):
        _assert_close(a, b, 1e-4, f"{named}: the gradient of {specs[i].name} in float32 differs from that in float64")


def _parameters(op: Op) -> dict[str, Any]:
    fields: tuple[dataclasses.Field[Any], ...] = dataclasses.fields(op) if dataclasses.is_dataclass(op) else ()
    return {field.name: copy.deepcopy(getattr(op, field.name)) for field in fields}


def _run(
    op: Op, arrays: list[Array], real: list[int], c: Any, named: str, layout: str = "contiguous"
) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """The output, the cotangent (drawn if ``c`` is a generator) and the gradient of each real input, as host arrays."""
    before = [Tensor(a).numpy().copy() for a in arrays]
    inputs = [Tensor(a, requires_grad=i in real) for i, a in enumerate(arrays)]
    y = copy.deepcopy(op)(*inputs)  # a random op then draws the same numbers each time
    if isinstance(c, np.random.Generator):
        c = c.choice([-1.0, 1.0], y.shape) * c.uniform(0.5, 1.5, y.shape)
    gradients: list[np.ndarray] = []
    if real:
        cotangent = Tensor(_on_device(c.astype(y.dtype), y.device, layout))
        gradients = [g.numpy() for g in grad(y, [inputs[i] for i in real], cotangent)]
    for i, (spec, x, old) in enumerate(zip(op.parsed.specs(len(inputs)), inputs, before, strict=True)):
        if not np.array_equal(x.numpy(), old) and not (op.writes and i == 0):
            raise AssertionError(f"{named}: the input {spec.name} was changed")
    return y.numpy(), c, gradients


def _check_axes(op: Op, shapes: tuple[Shape, ...], shape: Shape, named: str) -> None:
    declared, output = op.output_shape(*shapes), op.parsed.output
    if declared is not None and shape != declared:
        raise AssertionError(f"{named}: the output has shape {shape}; output_shape says {declared}")
    if len(shape) < len(output.fixed_axes) or (len(shape) > len(output.fixed_axes) and not output.any_rank):
        raise AssertionError(f"{named}: the output has shape {shape}; expected {output}")


_LAYOUTS = ("gapped", "reversed", "transposed", "batch-last")


def _on_device(array: np.ndarray, device: str, layout: str) -> Array:
    """A copy of the array on a device, laid out in memory as ``layout`` says."""
    backend, index = parse_device(device)
    n = array.ndim
    if layout == "contiguous" or not n:
        return backend.from_numpy(array.copy(), index)
    if layout == "gapped":
        return backend.from_numpy(np.repeat(array, 2, axis=-1), index)[..., ::2]
    if layout == "reversed":
        turn = (slice(None, None, -1),) * n
        return backend.from_numpy(array[turn].copy(), index)[turn]
    if layout == "transposed":
        return backend.from_numpy(array.T.copy(), index).transpose(tuple(range(n))[::-1])
    base = np.ascontiguousarray(np.moveaxis(array, 0, -1))
    return backend.from_numpy(base, index).transpose((n - 1, *range(n - 1)))


def _assert_close(found: np.ndarray, expected: np.ndarray, rtol: float, message: str) -> None:
    """AssertionError if shapes differ, or values by more than rtol times the largest one (or 1)."""
    if found.shape != expected.shape:
        raise AssertionError(f"{message}: the shape is {found.shape}; expected {expected.shape}")
    if not found.size:
        return
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    same = (found == expected) | (np.isnan(found) & np.isnan(expected))
    finite = expected[np.isfinite(expected)]
    limit = rtol * max(1.0, float(np.abs(finite).max(initial=0.0)))
    with np.errstate(invalid="ignore"):
        wrong = ~(same | (np.abs(found - expected) <= limit))
    if wrong.any():
        index = tuple(int(k) for k in np.argwhere(wrong)[0])
        raise AssertionError(f"{message}: at index {index} it is {found[index]:.12g}; expected {expected[index]:.12g}")
