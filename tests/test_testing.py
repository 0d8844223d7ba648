"""The checker itself: it accepts what is right, refuses what is wrong, and says where."""

import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tests.strict  # noqa: F401 - makes the device "strict" known
from tinygrad_lenet import Op, Tensor, testing
from tinygrad_lenet import functional as F
from tinygrad_lenet.ops.conv import Conv2d
from tinygrad_lenet.ops.linalg import Linear
from tinygrad_lenet.tensor import REAL, REGISTRY, Domain

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(3, 4)), RNG.normal(size=(4,))


def with_slope(factor: Any, y: Tensor) -> Tensor:
    """The values of y with ``factor`` times its gradient."""
    return factor * y + ((1 - factor) * y).detach()


# What is right


@pytest.mark.parametrize(
    ("fn", "arrays"),
    [
        (lambda x, y: (x * y).tanh(), (X, Y)),
        (lambda x, y: x.softmax(1) @ y, (X, Y)),
        (lambda x: x.log_softmax(0), (X,)),
        (lambda x: (x * x).sum(), (X,)),
        (lambda x: x.T.reshape(2, 6)[:, ::2], (X,)),
        (lambda x: x * 0.0, (X,)),  # a gradient of 0
        (lambda x: (x - x.mean()).sum(0), (X,)),
        (lambda x: x.softmax(1), (X[:, :1],)),
        (lambda x: F.batch_norm(x + 1.0, None, None, training=True), (X,)),
        (lambda x, labels: F.cross_entropy(x, labels), (X, np.array([0, 3, 1]))),
        (lambda x, mask: F.where(mask, x, -x), (X, X > 0)),
        (lambda x, y: x * 2.0, (X, Y)),  # an input that is not used
        (lambda x: x[:0], (X,)),  # an empty output
        (lambda x: x.exp(), (X[:0],)),  # an empty input
        (lambda x: x.exp(), (0.3,)),
        (lambda x: x.exp(), ([0.3, 0.4],)),
        (lambda x: x.tanh(), (Tensor(X),)),
        (lambda x: x.tanh(), (X.astype(np.float32),)),
        (lambda x: (x / 255.0).tanh(), (np.linspace(0, 255, 40),)),
        (lambda x: x.log_softmax(1), (1e4 * X,)),
    ],
)
def test_right_gradients_pass(fn: Callable[..., Tensor], arrays: tuple[Any, ...]) -> None:
    testing.check_gradients(fn, *arrays)


@pytest.mark.parametrize("device", ["cpu", "strict"])
def test_higher_orders_and_devices(device: str) -> None:
    testing.check_gradients(lambda x, y: (x * y).exp() / (1.0 + x * x), X, Y, order=3, device=device)


@given(exponent=st.integers(-12, 12), seed=st.integers(0, 1000), size=st.sampled_from([1, 3, 200]))
def test_scale_does_not_matter(exponent: int, seed: int, size: int) -> None:
    """Right gradients pass and those wrong by 1% do not, however large or small they are."""
    x = np.random.default_rng(seed).uniform(-2, 2, size)
    scale = 10.0**exponent
    testing.check_gradients(lambda x: scale * x.sigmoid(), x, order=1, seed=seed)
    with pytest.raises(AssertionError, match="order 1"):
        testing.check_gradients(lambda x: with_slope(1.01, scale * x.sigmoid()), x, order=1, seed=seed)


# What is wrong


def test_the_worst_element_is_shown() -> None:
    factor = np.ones((3, 4))
    factor[1, 2], factor[2, 0] = 1.5, 1.1
    with pytest.raises(AssertionError) as error:
        testing.check_gradients(lambda y, x: with_slope(Tensor(factor), 2.0 * x) + y, Y, X)
    message = str(error.value)
    assert message.startswith("check_gradients: order 1: d(output)/d(input 1), input 1 of shape (3, 4): worst at index")
    assert "index (1, 2)" in message
    analytic, numeric = (float(each.split()[0]) for each in (message.split("gives ")[1], message.split("give ")[1]))
    assert np.isclose(analytic / numeric, 1.5)
    assert repr(float(X[1, 2])) in message


@pytest.mark.parametrize("size", [50, 3000])
def test_the_worst_element_of_a_large_input_is_shown(size: int) -> None:
    factor = np.ones(size)
    factor[7] = -30.0
    factor[9:] = 2.0
    with pytest.raises(AssertionError, match=r"worst at index \(\d+,\)") as error:
        testing.check_gradients(lambda x: with_slope(Tensor(factor), x), np.linspace(-1, 1, size))
    assert size > 1000 or "index (7,)" in str(error.value)


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: x * x.detach(),
        lambda x: Tensor(np.tanh(x.numpy())),  # not recorded at all
        lambda x: with_slope(1.01, x.softmax(1)),  # a cotangent of ones would not see it
        lambda x: with_slope(0.99, x),
        lambda x: with_slope(-1.0, x),
        lambda x: with_slope(float("nan"), x).detach() + with_slope(1.01, x),
        lambda x: with_slope(1.01, x - x.mean()),
    ],
)
def test_wrong_gradients_are_refused(fn: Callable[..., Tensor]) -> None:
    with np.errstate(all="ignore"), pytest.raises(AssertionError, match="check_gradients: order 1"):
        testing.check_gradients(fn, X)


def test_wrong_gradient_of_the_second_input_is_named() -> None:
    with pytest.raises(AssertionError, match=r"d\(output\)/d\(input 1\), input 1 of shape \(4,\)"):
        testing.check_gradients(lambda x, y: x * with_slope(1.01, y), X, Y)


@pytest.fixture
def registry() -> Iterator[None]:
    before = dict(REGISTRY)
    yield
    REGISTRY.clear()
    REGISTRY.update(before)


def make_op(**changes: Any) -> Op:
    """An op of one input that is right, y = x^2, but for ``changes``."""
    parts = {
        "__doc__": "y = x^2; dy/dx = 2 x.",
        "__module__": __name__,
        "signature": "test_square(x[... C]) -> y[... C]",
        "domains": {"x": REAL},
        "forward": lambda self, xp, x: x * x,
        "backward": lambda self, gy, y, x: 2.0 * gy * x,
    } | changes
    return type("Square", (Op,), parts)()


@pytest.mark.usefixtures("registry")
def test_wrong_second_derivative_is_refused() -> None:
    testing.check_gradients(make_op(), X)
    cut_from_x = make_op(backward=lambda self, gy, y, x: 2.0 * gy * x.detach())
    cut_from_gy = make_op(backward=lambda self, gy, y, x: 2.0 * gy.detach() * x)
    slightly_wrong = make_op(backward=lambda self, gy, y, x: 2.0 * gy * with_slope(1.01, x))
    for op, variable in ((cut_from_x, "input 0"), (cut_from_gy, "cotangent 1"), (slightly_wrong, "input 0")):
        testing.check_gradients(op, X, order=1)
        with pytest.raises(AssertionError, match=rf"order 2: d\(d\(output\)/d\(input 0\)\)/d\({variable}\)"):
            testing.check_gradients(op, X)


@pytest.mark.parametrize(
    ("fn", "error", "message"),
    [
        (lambda x: (x - x) / (x - x), AssertionError, "is not finite"),
        (lambda x: x.astype("float32"), AssertionError, "is float32 for float64 inputs"),
        (lambda x: F.dropout(x), AssertionError, "fix its random generator"),
        (lambda x: x.numpy(), TypeError, "fn returned ndarray; expected a Tensor"),
    ],
)
def test_output_that_cannot_be_checked(fn: Callable[..., Any], error: type[Exception], message: str) -> None:
    with np.errstate(all="ignore"), pytest.raises(error, match=message):
        testing.check_gradients(fn, X)


def test_arguments_that_cannot_be_checked() -> None:
    with pytest.raises(ValueError, match="no input holds floats"):
        testing.check_gradients(lambda x: x, np.array([1, 2]))
    with pytest.raises(ValueError, match="order is 0"):
        testing.check_gradients(lambda x: x, X, order=0)


def test_nothing_is_left_behind() -> None:
    weight = Tensor(Y, requires_grad=True)
    x = X.copy()
    testing.check_gradients(lambda x: (x * weight).tanh(), x)
    assert weight.grad is None
    assert np.array_equal(x, X)


# check_op: each promise broken in turn


def packed(xp: Any, x: Any) -> Any:
    """x, if its rows lie in memory one after the other; else something else."""
    return xp.lib.stride_tricks.as_strided(x, x.shape, (x.shape[-1] * x.itemsize, x.itemsize))


def test_right_op_passes(registry: None) -> None:
    for array in (X, np.ones((0, 2)), np.ones((2, 1, 3))):
        testing.check_op(make_op(), [array], oracle=np.square)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backward": lambda self, gy, y, x: 2.02 * gy * x}, "order 1.*input 0 is x"),
        ({"backward": lambda self, gy, y, x: 2.0 * gy * x.detach()}, "order 2"),
        ({"forward": lambda self, xp, x: x * x + 1}, "the output and the oracle differ: at index"),
        ({"forward": lambda self, xp, x: (x * x)[None]}, "the oracle differ: the shape is"),
        ({"signature": "test_square(x[... C]) -> y[... C C]"}, "the output has shape"),
        ({"forward": lambda self, xp, x: xp.multiply(x, x, out=x)}, "the input x was changed"),
        ({"forward": lambda self, xp, x: xp.square(x.astype("float64"))}, "the output is float64 for float32 inputs"),
        ({"forward": lambda self, xp, x: xp.square(x.ravel(order="K").reshape(x.shape))}, "for transposed inputs"),
        ({"forward": lambda self, xp, x: xp.square(packed(xp, x))}, "for gapped inputs"),
    ],
)
@pytest.mark.usefixtures("registry")
def test_broken_promise_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(AssertionError, match=f"test_square with .* device cpu: .*{message}"):
        testing.check_op(make_op(**changes), [X.copy()], oracle=np.square)


# cases: what is drawn


def test_cases_vary_what_the_signature_leaves_open() -> None:
    linear, add = set(), set()

    @settings(max_examples=200, derandomize=True, database=None)
    @given(testing.cases(Linear), testing.cases(REGISTRY["add"]))
    def collect(linear_case: testing.Case, add_case: testing.Case) -> None:
        x, weight, *bias = (a.shape for a in linear_case[1])
        linear.update({("bias", bool(bias)), ("axes", len(x)), ("inner", x[-1]), ("outer", weight[0])})
        a, b = (each.shape for each in add_case[1])
        add.add(("a is", (len(a) > len(b)) - (len(a) < len(b))))
        add.update(("sizes", m, n) for m, n in zip(a[::-1], b[::-1], strict=False))

    collect()
    assert linear == {("bias", False), ("bias", True)} | {("axes", n) for n in (1, 2, 3, 4)} | {
        (axis, n) for axis in ("inner", "outer") for n in range(4)
    }
    same, stretched = {(n, n) for n in range(4)}, {(n, 1) for n in range(4)} | {(1, n) for n in range(4)}
    assert add == {("a is", n) for n in (-1, 0, 1)} | {("sizes", *pair) for pair in same | stretched}


@given(testing.cases(Conv2d))
def test_drawn_shapes_fit(case: testing.Case) -> None:
    op, (x, weight, *bias) = case
    assert isinstance(op, Conv2d)
    assert x.shape[1] == weight.shape[1] * op.groups
    assert all(b.shape == weight.shape[:1] for b in bias)


@pytest.mark.usefixtures("registry")
def test_repeated_inputs_and_own_sizes() -> None:
    op_class = type(
        "Total",
        (Op,),
        {
            "__doc__": "y = sum of the inputs; the gradient goes to each.",
            "__module__": __name__,
            "signature": "test_total(*x[N K]) -> y[N K]",
            "domains": {"x": Domain(distinct=True)},
            "sizes": {"K": (5,)},
            "forward": lambda self, xp, *x: sum(x[1:], start=x[0]) + 0.0,
            "backward": lambda self, gy, y, *x: tuple(gy for _ in x),
        },
    )
    counts = set()

    @given(testing.cases(op_class))
    def passes(case: testing.Case) -> None:
        op, arrays = case
        counts.add(len(arrays))
        assert all(a.shape[1] == 5 for a in arrays)
        testing.check_op(op, arrays, oracle=lambda *x: np.sum(x, axis=0))

    passes()
    assert counts == {1, 2, 3}


def test_hypothesis_is_asked_for_when_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "hypothesis", None)
    with pytest.raises(ImportError, match="pip install hypothesis"):
        testing.cases(Linear)
