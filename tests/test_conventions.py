"""What happens where a derivative jumps, where inputs tie, at infinity, and in branches that are not taken.

Everywhere else gradients are checked numerically, away from these points (tests/test_ops.py). NumPy's warnings are
errors here, so unless a test says otherwise nothing overflows or is invalid on the way to a result, either.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tinygrad_lenet import Tensor, grad
from tinygrad_lenet import functional as F

INF, NAN = float("inf"), float("nan")
Function = Callable[[Tensor], Tensor]


def leaf(values: object) -> Tensor:
    return Tensor(np.array(values, dtype=np.float64), requires_grad=True)


def gradients(function: Callable[..., Tensor], *inputs: object, gy: object = 1.0) -> list[Any]:
    """The gradient of each input, given d/dy = gy (everywhere, if it is a number)."""
    leaves = [leaf(x) for x in inputs]
    y = function(*leaves)
    return [g.numpy().tolist() for g in grad(y, leaves, np.broadcast_to(np.asarray(gy, dtype=np.float64), y.shape))]


def orders(function: Function, x: object) -> tuple[list[float], list[float]]:
    """dy/dx and d2y/dx2, elementwise."""
    t = leaf(x)
    y = function(t)
    (first,) = grad(y, t, np.ones(y.shape), create_graph=True)
    if not first.requires_grad:
        return first.numpy().tolist(), np.zeros(t.shape).tolist()
    (second,) = grad(first, t, np.ones(t.shape))
    return first.numpy().tolist(), second.numpy().tolist()


# Kinks and ties


def test_kinks_at_zero() -> None:
    assert gradients(F.relu, [-1.0, 0.0, -0.0, 1.0]) == [[0, 0, 0, 1]]
    assert gradients(abs, [-1.0, 0.0, -0.0, 1.0]) == [[-1, 0, 0, 1]]


@pytest.mark.parametrize(("function", "first"), [(F.maximum, [0, 0.5, 1]), (F.minimum, [1, 0.5, 0])])
def test_maximum_and_minimum_share_ties(function: Callable[..., Tensor], first: list[float]) -> None:
    ga, gb = gradients(function, [1.0, 2.0, 3.0], [2.0, 2.0, 2.0], gy=4.0)
    assert ga == [4 * share for share in first]
    assert gb == [4 * (1 - share) for share in first]
    assert gradients(lambda x: function(x, 2.0), [2.0]) == gradients(lambda x: function(2.0, x), [2.0]) == [[0.5]]


@pytest.mark.parametrize(("method", "sign"), [("max", 1), ("min", -1)])
def test_reductions_share_ties_equally(method: str, sign: int) -> None:
    x = sign * np.array([[3.0, 1.0, 3.0], [0.0, 2.0, 1.0]])
    assert gradients(lambda t: getattr(t, method)(1), x, gy=[6.0, 1.0]) == [[[3, 0, 3], [0, 1, 0]]]
    assert gradients(lambda t: getattr(t, method)(), x) == [[[0.5, 0, 0.5], [0, 0, 0]]]
    assert gradients(lambda t: getattr(t, method)(), [sign * INF] * 3) == [[1 / 3] * 3]


@pytest.mark.parametrize(
    ("case", "how", "x", "y", "gx"),
    [
        ("the first of the largest", (2,), [[1, 5], [5, 5]], [[5]], [[0, 1], [0, 0]]),
        ("nothing but -inf", (2,), [[-INF, -INF], [-INF, -INF]], [[-INF]], [[1, 0], [0, 0]]),
        ("windows that overlap", ((1, 2), 1), [[7, 7, 7]], [[7, 7]], [[1, 1, 0]]),
        ("padding is no 0", (2, 2, 1), [[-1, -2], [-3, -4]], [[-1, -2], [-3, -4]], [[1, 1], [1, 1]]),
        ("padding wins no tie", (2, 2, 1), [[-INF, -INF], [-INF, -INF]], [[-INF] * 2] * 2, [[1, 1], [1, 1]]),
        ("a NaN is the largest", (2,), [[1, NAN], [NAN, 9]], [[NAN]], [[0, 1], [0, 0]]),
    ],
)
def test_max_pool_takes_the_first_maximum(case: str, how: tuple[Any, ...], x: Any, y: Any, gx: Any) -> None:
    np.testing.assert_array_equal(F.max_pool2d(leaf([[x]]), *how).numpy()[0, 0], y)
    assert gradients(lambda t: F.max_pool2d(t, *how), [[x]]) == [[[gx]]]


# Branches that are not taken: what happens there is no business of the gradient.


@pytest.mark.parametrize(
    ("branch", "function"),
    [
        ("log", lambda x: F.where(x > 0, x.log(), 2.0 * x)),
        ("sqrt", lambda x: F.where(x > 0, x.sqrt(), 2.0 * x)),
        ("1/x", lambda x: F.where(x > 0, 1.0 / x, 2.0 * x)),
        ("x/x", lambda x: F.where(x > 0, x / x, 2.0 * x)),
        ("log of sqrt", lambda x: F.where(x > 0, x.sqrt().log(), 2.0 * x)),
        ("1/sqrt", lambda x: F.where(x > 0, 1.0 / x.sqrt(), 2.0 * x)),
        ("the other way round", lambda x: F.where(x <= 0, 2.0 * x, x.log())),
    ],
)
def test_branch_not_taken_leaks_no_nan(branch: str, function: Function) -> None:
    with np.errstate(all="ignore"):  # the branch itself is computed, and warns
        first, second = orders(function, [0.0, -1.0, 4.0])
        alone_first, alone_second = orders(function, [4.0])
    assert np.isfinite(alone_first + alone_second).all()
    assert (first, second) == ([2, 2, *alone_first], [0, 0, *alone_second])


def test_maximum_leaks_nothing_from_the_smaller_side() -> None:
    with np.errstate(all="ignore"):
        assert orders(lambda x: F.maximum(x.log(), -3.0), [0.0, 1.0]) == ([0, 1], [0, -1])
        assert orders(lambda x: F.minimum(1.0 / x, 5.0), [0.0, 1.0]) == ([0, -1], [0, 2])


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("sqrt", Tensor.sqrt),
        ("log", Tensor.log),
        ("power", lambda x: x**0.5),
        ("power of a tensor", lambda x: x ** Tensor(np.full(2, 0.5))),
    ],
)
def test_an_infinite_slope_meets_a_gradient_of_0(name: str, function: Function) -> None:
    """inf where a gradient arrives, and 0, not NaN, where none does."""
    with np.errstate(all="ignore"):
        assert gradients(function, [0.0, 0.0], gy=[1.0, 0.0]) == [[INF, 0]]


# Powers, and gradients of exactly 0: what is differentiated again at one must be right


@pytest.mark.parametrize(("exponent", "first", "second"), [(0, 0, 0), (1, 1, 0), (2, 0, 2), (3, 0, 0), (2.5, 0, 0)])
def test_power_at_zero(exponent: float, first: float, second: float) -> None:
    assert orders(lambda x: x**exponent, [0.0]) == ([first], [second])
    assert orders(lambda x: x ** Tensor(np.array([float(exponent)])), [0.0]) == ([first], [second])


def test_power_of_zero_and_of_negative_numbers() -> None:
    assert gradients(lambda b: 0.0**b, [2.0, 1.0]) == [[0, 0]]
    assert gradients(lambda a, b: a**b, [0.0, 0.0], [2.0, 3.0]) == [[0, 0], [0, 0]]
    assert gradients(lambda x: x**2, [-3.0]) == [[-6]]
    assert gradients(lambda x: x**3.0, [-2.0]) == [[12]]
    assert gradients(lambda x: x**-1, [-2.0]) == [[-0.25]]


@pytest.mark.parametrize(("exponent", "slope"), [(1, 1), (2, 0), (3, 0)])
def test_slope_through_a_zero_gradient(exponent: float, slope: float) -> None:
    """d/dc d/dx of c x**n, at c = 0 and x = 0."""
    c, x = leaf(0.0), leaf(0.0)
    (first,) = grad(c * x**exponent, x, create_graph=True)
    assert grad(first, c)[0].item() == slope


def test_third_derivative_of_a_fourth_power_at_zero() -> None:
    x = leaf(0.0)
    y = (x**2) ** 2
    for _ in range(3):
        (y,) = grad(y, x, create_graph=True)
    assert y.item() == 0.0


# Softmax and losses far out

LOGITS = {
    "large": [[1e4, -1e4, 0.0], [1e4, 1e4, -1e4]],
    "masked": [[-INF, 0.0, 1.0], [2.0, -INF, -INF]],
    "large and masked": [[-INF, 1e4, -1e4], [-1e4, -1e4, -INF]],
}


def finite_to_second_order(y: Tensor, x: Tensor) -> np.ndarray:
    """The gradient, which is finite and whose own gradient is, for cotangents that are all different."""
    (first,) = grad(y, x, np.linspace(1.0, 1.5, y.size).reshape(y.shape), create_graph=True)
    (second,) = grad(first, x, np.linspace(0.5, 1.5, x.size).reshape(x.shape))
    assert np.isfinite(first.numpy()).all()
    assert np.isfinite(second.numpy()).all()
    return first.numpy()


@pytest.mark.parametrize("logits", LOGITS.values(), ids=LOGITS)
@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp"])
def test_softmax_far_out(name: str, logits: list[list[float]]) -> None:
    x = leaf(logits)
    y = getattr(x, name)(1)
    largest = np.max(logits, axis=1, keepdims=True)
    total = largest + np.log(np.exp(logits - largest).sum(1, keepdims=True))
    expected = {"softmax": np.exp(logits - total), "log_softmax": logits - total, "logsumexp": total[:, 0]}[name]
    np.testing.assert_allclose(y.numpy(), expected, rtol=1e-12)
    finite_to_second_order(y, x)


def test_logsumexp_of_nothing_but_masks() -> None:
    x = [[-INF, -INF], [0.0, -INF]]
    assert F.logsumexp(np.array(x), 1).numpy().tolist() == [-INF, 0.0]
    assert gradients(lambda t: F.logsumexp(t, 1), x) == [[[0, 0], [1, 0]]]


@pytest.mark.parametrize("logits", LOGITS.values(), ids=LOGITS)
def test_cross_entropy_far_out(logits: list[list[float]]) -> None:
    x = leaf(logits)
    labels = np.argmax(np.isfinite(logits), axis=1)
    loss = F.cross_entropy(x, labels, reduction="sum")
    expected = -F.log_softmax(x).numpy()[[0, 1], labels].sum()
    assert np.isfinite(expected)
    np.testing.assert_allclose(loss.item(), expected, rtol=1e-12)
    slopes = F.softmax(x).numpy() - np.eye(3)[labels]
    np.testing.assert_allclose(finite_to_second_order(loss, x), slopes, atol=1e-12)


def test_label_smoothing_mixes_the_target_with_equal_parts() -> None:
    x = np.array([[0.5, -1.0, 2.0]])
    mixed = F.cross_entropy(x, np.array([[0.1, 0.8, 0.1]]))  # 0.7 of the label, 0.3 in three parts
    assert F.cross_entropy(x, [1], label_smoothing=0.3).item() == pytest.approx(mixed.item())


def test_cross_entropy_of_an_impossible_label_is_infinite() -> None:
    x = leaf([[-INF, 0.0]])
    loss = F.cross_entropy(x, [0])
    assert loss.item() == INF
    assert grad(loss, x)[0].numpy().tolist() == [[-1.0, 1.0]]


# Penalties, small and large


def penalties_by_hand(penalties: np.ndarray, labels: np.ndarray, j: float | None) -> tuple[list[float], np.ndarray]:
    """LeCun et al. (1998), in Python's arithmetic: y_D (Eq. 8), with j + log(e^-j + sum e^-y_i) (Eq. 9); the slopes.

    The largest exponent is taken out, so that it holds for any size.
    """
    losses, slopes = [], np.eye(penalties.shape[1])[labels]
    for n, (y, label) in enumerate(zip(penalties.tolist(), labels, strict=True)):
        losses.append(y[label])
        if j is not None:
            low = min(j, *y)
            total = sum(math.exp(low - each) for each in [j, *y])
            losses[n] += math.log(total) - low
            slopes[n] -= [math.exp(low - each) / total for each in y]
    return losses, slopes


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64"])
@pytest.mark.parametrize("j", [None, 1e-3, 0.1, 1.0, 50.0])
def test_penalty_loss_is_its_formula(j: float | None, dtype: str) -> None:
    """Penalties of 10,000, and codes that are hit exactly: finite, and right to the dtype's digits; slopes in [-1, 1].

    With j, a wrong class whose penalty is far above it is pushed no further: its slope is 0. Integers give what the
    same numbers in floats give.
    """
    labels, digits = np.array([3, 2, 4, 0, 9, 5]), 1e-13 if dtype == "float64" else 2e-6
    for size in (1e-4, 1.0, 100.0, 1e4):
        penalties = np.random.default_rng(1).uniform(0, size, (6, 10)).astype(dtype)
        penalties[0], penalties[1, 2], penalties[2, 4] = 0, 0, 1e4
        each, expected = penalties_by_hand(penalties, labels, j)
        for reduction, value in (("none", each), ("sum", np.sum(each)), ("mean", np.mean(each))):
            y = F.penalty_loss(penalties, labels, j, reduction)
            np.testing.assert_allclose(y.numpy(), value, rtol=digits, atol=digits * max(1, size))
        if dtype == "int64":
            continue
        x = Tensor(penalties, requires_grad=True)
        y = F.penalty_loss(x, labels, j, "none")
        slopes = grad(y, x, np.ones(6, dtype))[0].numpy()
        assert y.dtype == slopes.dtype == dtype
        np.testing.assert_allclose(slopes, expected, atol=0 if j is None else 5 * digits * (1 + size / 10))
        right = labels[:, None] == range(10)
        assert ((slopes >= 0) & (slopes <= 1))[right].all(), "never is the right class pushed away"
        assert ((slopes >= -1) & (slopes <= 0))[~right].all(), "nor a wrong one pulled near"


@pytest.mark.parametrize("j", [None, 2.0])
def test_an_infinite_penalty_of_a_wrong_class_does_not_matter(j: float | None) -> None:
    y = F.penalty_loss(np.array([[1.0, INF, 3.0]]), [0], j)
    assert y.item() == pytest.approx(F.penalty_loss(np.array([[1.0, 3.0]]), [0], j).item())


@pytest.mark.parametrize(
    ("name", "loss"),
    [
        ("cross_entropy", F.cross_entropy),
        ("nll_loss", F.nll_loss),
        ("penalty_loss", F.penalty_loss),
        ("penalty_loss with j", lambda x, labels, **how: F.penalty_loss(x, labels, 1.0, **how)),
    ],
)
def test_losses_of_an_empty_batch(name: str, loss: Callable[..., Tensor]) -> None:
    """No terms, a sum of 0 and a gradient without elements; there is no mean."""
    x, labels = leaf(np.zeros((0, 3))), np.zeros(0, int)
    assert loss(x, labels, reduction="none").shape == (0,)
    total = loss(x, labels, reduction="sum")
    assert total.item() == 0
    assert grad(total, x)[0].shape == (0, 3)
    with np.errstate(invalid="ignore"):
        assert math.isnan(loss(x, labels, reduction="mean").item())


# Between 1.7159 tanh(2/3 x) and a distance of 0


def test_scaled_tanh_far_out() -> None:
    """Flat, at its amplitude, without warnings; a negative slope mirrors it."""
    x = leaf([-1e4, 1e4, 0.0, 1.0, -1.0])
    np.testing.assert_allclose(F.scaled_tanh(x).numpy(), [-1.7159, 1.7159, 0, 1, -1], atol=1e-5)
    np.testing.assert_allclose(orders(F.scaled_tanh, [-1e4, 1e4, 0.0])[0], [0, 0, 1.7159 * 2 / 3], atol=1e-15)
    np.testing.assert_array_equal(F.scaled_tanh(x, 2.0, -0.5).numpy(), -F.scaled_tanh(x, 2.0, 0.5).numpy())


def test_distance_from_a_centre_far_away_keeps_its_digits() -> None:
    """|x|^2 - 2 x c + |c|^2 would lose them all: both points are a million away from 0, and a thousandth apart."""
    x = np.full((1, 4), 1e6)
    y = F.rbf(x + 1e-3, x)
    np.testing.assert_allclose(y.numpy(), 4 * ((x[0, 0] + 1e-3) - x[0, 0]) ** 2, rtol=1e-12)
    assert F.rbf(x, x).item() == 0


def test_sigmoid_far_out() -> None:
    assert orders(F.sigmoid, [-1e4, 1e4]) == ([0, 0], [0, 0])
    assert F.sigmoid(np.array([-1e4, 1e4])).numpy().tolist() == [0, 1]
