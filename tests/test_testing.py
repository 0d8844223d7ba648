"""The checker itself: it accepts what is right, refuses what is wrong, and says where."""

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tests.strict  # noqa: F401 - makes the device "strict" known
from tinygrad_lenet import REAL, Domain, Op, Tensor, testing
from tinygrad_lenet import functional as F
from tinygrad_lenet.op import REGISTRY

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(3, 4)), RNG.normal(size=(4,))  # checked element by element
LARGE = np.linspace(-1, 1, 200)  # checked in random directions


def with_slope(factor: Any, y: Tensor) -> Tensor:
    """The values of y with ``factor`` times its gradient."""
    return factor * y + ((1 - factor) * y).detach()


def define(**changes: Any) -> type[Op]:
    """An op of one input that is right, y = x^2, but for ``changes``."""
    parts = {
        "__doc__": "y = x^2; dy/dx = 2 x.",
        "__module__": __name__,
        "signature": "test_square(x[... C]) -> y[... C]",
        "domains": {"x": REAL},
        "forward": lambda self, xp, x: x * x,
        "backward": lambda self, gy, y, x: 2.0 * gy * x,
    } | changes
    return type("Square", (Op,), parts)


# What is right


@pytest.mark.parametrize(
    ("case", "fn", "arrays"),
    [
        ("broadcasting", lambda x, y: (x * y).tanh(), (X, Y)),
        ("a product", lambda x, y: x.softmax(1) @ y, (X, Y)),
        ("along axis 0", lambda x: x.log_softmax(0), (X,)),
        ("a scalar output", lambda x: (x * x).sum(), (X,)),
        ("a view", lambda x: x.T.reshape(2, 6)[:, ::2], (X,)),
        ("a gradient of 0", lambda x: x * 0.0, (X,)),
        ("a gradient that cancels", lambda x: (x - x.mean()).sum(0), (X,)),
        ("one that is nothing but rounding", lambda x: x.softmax(1), (X[:, :1],)),
        ("one that is rounding of a number", lambda x: x.softmax(1).sum(), (X,)),
        ("statistics", lambda x: F.batch_norm(x + 1.0, None, None, training=True), (X,)),
        ("integers", lambda x, labels: F.cross_entropy(x, labels), (X, np.array([0, 3, 1]))),
        ("booleans", lambda x, mask: F.where(mask, x, -x), (X, X > 0)),
        ("an input that is not used", lambda x, y: x * 2.0, (X, Y)),
        ("an empty output", lambda x: x[:0], (X,)),
        ("an empty input", lambda x: x.exp(), (X[:0],)),
        ("a number", lambda x: x.exp(), (0.3,)),
        ("a list", lambda x: x.exp(), ([0.3, 0.4],)),
        ("a tensor", lambda x: x.tanh(), (Tensor(X),)),
        ("float32", lambda x: x.tanh(), (X.astype(np.float32),)),
        ("large inputs", lambda x: (x / 255.0).tanh(), (np.linspace(0, 255, 40),)),
        ("larger ones", lambda x: x.log_softmax(1), (1e4 * X,)),
        ("huge ones", lambda x: (x / 1e9).tanh(), (1e9 * X,)),
        ("within the tolerance", lambda x: with_slope(1.00005, x), (X,)),
    ],
)
def test_right_gradients_pass(case: str, fn: Callable[..., Tensor], arrays: tuple[Any, ...]) -> None:
    testing.check_gradients(fn, *arrays)


@pytest.mark.parametrize("device", ["cpu", "strict"])
def test_higher_orders_and_devices(device: str) -> None:
    """To third order, through rules that each use y or x in another way."""

    def function(x: Tensor, y: Tensor) -> Tensor:
        powers = (2.0 + x.tanh()).log() * (x + 3.0) ** y + (x * x + 1.0).sqrt() * 2.0**x
        return (x * y).exp() / (1.0 + x * x) + powers.sigmoid()

    testing.check_gradients(function, X[:2, :2], Y[:2], order=3, device=device)


@given(exponent=st.integers(-12, 12), seed=st.integers(0, 1000), size=st.sampled_from([1, 3, 200]))
def test_scale_does_not_matter(exponent: int, seed: int, size: int) -> None:
    """Right gradients pass and those wrong by 1% do not, however large or small they are."""
    x = np.random.default_rng(seed).uniform(-2, 2, size)
    scale = 10.0**exponent
    testing.check_gradients(lambda x: scale * x.sigmoid(), x, order=1, seed=seed)
    with pytest.raises(AssertionError, match="order 1"):
        testing.check_gradients(lambda x: with_slope(1.01, scale * x.sigmoid()), x, order=1, seed=seed)


# What is wrong


@pytest.mark.parametrize(
    ("case", "fn", "array"),
    [
        ("a factor is constant", lambda x: x * x.detach(), X),
        ("nothing is recorded", lambda x: Tensor(np.tanh(x.numpy())), X),
        ("a cotangent of ones would not see it", lambda x: with_slope(1.01, x.softmax(1)), X),
        ("too small", lambda x: with_slope(0.99, x), X),
        ("the sign", lambda x: with_slope(-1.0, x), X),
        ("NaN", lambda x: with_slope(float("nan"), x).detach() + with_slope(1.01, x), X),
        ("NaN where the slope is 0", lambda x: (x * 0.0).sqrt(), X),
        ("it cancels", lambda x: with_slope(1.01, x - x.mean()), X),
        ("by 1 in 2,000", lambda x: with_slope(1.0005, x), X),
        ("by 1 in 2,000, in directions", lambda x: with_slope(1.0005, x), LARGE),
        ("where x is large", lambda x: with_slope(1.01, x / 1e9), 1e9 * X),
        ("by little more than rounding explains", lambda x: with_slope(1.02, x) + 1e6, np.array(0.5)),
    ],
)
def test_wrong_gradients_are_refused(case: str, fn: Callable[..., Tensor], array: np.ndarray) -> None:
    with np.errstate(all="ignore"), pytest.raises(AssertionError, match="check_gradients: order 1"):
        testing.check_gradients(fn, array)


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
    factor = np.full(size, 2.0)
    factor[7] = -30.0
    with pytest.raises(AssertionError, match=r"worst at index \(\d+,\)") as error:
        testing.check_gradients(lambda x: with_slope(Tensor(factor), x), np.linspace(-1, 1, size))
    assert size > 1000 or "index (7,)" in str(error.value)


@pytest.mark.usefixtures("scratch_ops")
@pytest.mark.parametrize(
    ("mistake", "variable", "array", "backward"),
    [
        ("cut off from x", "input 0", X, lambda self, gy, y, x: 2.0 * gy * x.detach()),
        ("cut off from gy", "cotangent 1", X, lambda self, gy, y, x: 2.0 * gy.detach() * x),
        ("by 1%", "input 0", X, lambda self, gy, y, x: 2.0 * gy * with_slope(1.01, x)),
        ("where gy is 0", "cotangent 1", LARGE, lambda self, gy, y, x: F.where(gy == 0, 0.0, 2.0 * gy * x)),
    ],
)
def test_wrong_second_derivative_is_refused(mistake: str, variable: str, array: np.ndarray, backward: Any) -> None:
    testing.check_gradients(define()(), array)
    op = define(backward=backward)()
    testing.check_gradients(op, array, order=1)
    with pytest.raises(AssertionError, match=rf"order 2: d\(d\(output\)/d\(input 0\)\)/d\({variable}\)"):
        testing.check_gradients(op, array)


@pytest.mark.parametrize(
    ("error", "words", "fn"),
    [
        (AssertionError, "finite", lambda x: (x - x) / (x - x)),
        (AssertionError, "float32", lambda x: x.astype("float32")),
        (AssertionError, "random", F.dropout),
        (TypeError, "ndarray", lambda x: x.numpy()),
    ],
)
def test_output_that_cannot_be_checked(error: type[Exception], words: str, fn: Callable[..., Any]) -> None:
    with np.errstate(all="ignore"), pytest.raises(error, match=f"^check_gradients: .*{words}"):
        testing.check_gradients(fn, X)


def test_arguments_that_cannot_be_checked() -> None:
    with pytest.raises(ValueError, match=r"^check_gradients: .*floats"):
        testing.check_gradients(lambda x: x, np.array([1, 2]))
    with pytest.raises(ValueError, match=r"^check_gradients: order"):
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


@pytest.mark.usefixtures("scratch_ops")
def test_right_op_passes() -> None:
    for array in (X, np.ones((0, 2)), np.ones((2, 1, 3))):
        testing.check_op(define()(), [array], oracle=np.square)


@pytest.mark.parametrize(
    ("promise", "changes"),
    [
        ("order 1.*input 0 is x", {"backward": lambda self, gy, y, x: 2.02 * gy * x}),
        ("order 2", {"backward": lambda self, gy, y, x: 2.0 * gy * x.detach()}),
        ("oracle.* index", {"forward": lambda self, xp, x: x * x + 1}),
        ("shape .*output_shape", {"forward": lambda self, xp, x: (x * x)[None]}),
        ("output has shape", {"signature": "test_square(x[... C]) -> y[... C C]"}),
        ("input x was changed", {"forward": lambda self, xp, x: xp.multiply(x, x, out=x)}),
        ("output is float64 for float32", {"forward": lambda self, xp, x: xp.square(x.astype("float64"))}),
        ("transposed", {"forward": lambda self, xp, x: xp.square(x.ravel(order="K").reshape(x.shape))}),
        ("gapped", {"forward": lambda self, xp, x: xp.square(packed(xp, x))}),
        ("gradient of x for gapped", {"backward": lambda self, gy, y, x: (2.0 + (max(x.data.strides) > 32)) * gy * x}),
    ],
)
@pytest.mark.usefixtures("scratch_ops")
def test_broken_promise_is_named(promise: str, changes: dict[str, Any]) -> None:
    with pytest.raises(AssertionError, match=f"^test_square on .* device cpu: .*{promise}"):
        testing.check_op(define(**changes)(), [X.copy()], oracle=np.square)


@pytest.mark.usefixtures("scratch_ops")
def test_a_forgotten_return_is_named() -> None:
    op = define(forward=lambda self, xp, x: None)()
    with pytest.raises(TypeError, match=r"^test_square: forward returned NoneType"):
        op(X)


# cases: what is drawn


def drawn(op_class: type[Op]) -> list[testing.Case]:
    """200 cases, the same in every run: enough to see each choice there is."""
    cases: list[testing.Case] = []

    @settings(max_examples=200, derandomize=True, database=None)
    @given(testing.cases(op_class))
    def draw(case: testing.Case) -> None:
        cases.append(case)

    draw()
    return cases


def test_cases_vary_what_the_signature_leaves_open() -> None:
    linear = [arrays for _, arrays in drawn(REGISTRY["linear"])]
    assert {len(arrays) for arrays in linear} == {2, 3}, "with and without bias"
    assert {x.ndim for x, *_ in linear} == {1, 2, 3, 4}
    assert {x.shape[-1] for x, *_ in linear} == {len(weight) for _, weight, *_ in linear} == {0, 1, 2, 3}
    add = [arrays for _, arrays in drawn(REGISTRY["add"])]
    assert {np.sign(a.ndim - b.ndim) for a, b in add} == {-1, 0, 1}
    sizes = {(m, n) for a, b in add for m, n in zip(a.shape[::-1], b.shape[::-1], strict=False)}
    assert {tuple(sorted(pair)) for pair in sizes} == {(0, 0), (2, 2), (3, 3), (0, 1), (1, 1), (1, 2), (1, 3)}
    assert {m > n for m, n in sizes if m != n} == {True, False}, "either one is stretched"


def test_drawn_shapes_fit() -> None:
    for op, (x, weight, *bias) in drawn(REGISTRY["conv2d"]):
        assert x.shape[1] == weight.shape[1] * op.groups  # type: ignore[attr-defined]
        assert all(b.shape == weight.shape[:1] for b in bias)


@pytest.mark.usefixtures("scratch_ops")
def test_repeated_inputs_and_own_sizes() -> None:
    total = define(
        __doc__="y = sum of the inputs; the gradient goes to each.",
        signature="test_total(*x[N K]) -> y[N K]",
        domains={"x": Domain(distinct=True)},
        sizes={"K": (5,)},
        forward=lambda self, xp, *x: sum(x[1:], start=x[0]) + 0.0,
        backward=lambda self, gy, y, *x: tuple(gy for _ in x),
    )
    cases = drawn(total)
    assert {len(arrays) for _, arrays in cases} == {1, 2, 3}
    assert {a.shape[1] for _, arrays in cases for a in arrays} == {5}
    for op, arrays in cases[:20]:
        testing.check_op(op, arrays, oracle=lambda *x: np.sum(x, axis=0))


def test_hypothesis_is_asked_for_when_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "hypothesis", None)
    with pytest.raises(ImportError, match="pip install hypothesis"):
        testing.cases(REGISTRY["linear"])
