"""What happens where a derivative jumps, where inputs tie, at infinity, and in branches that are not taken.

Everywhere else gradients are checked numerically, away from these points (tests/test_ops.py).
"""

import math
from collections.abc import Callable

import numpy as np
import pytest

from tinygrad_lenet import Tensor, grad
from tinygrad_lenet import functional as F

INF, NAN = float("inf"), float("nan")


def leaf(values: object) -> Tensor:
    return Tensor(np.array(values, dtype=np.float64), requires_grad=True)


def gradients(function: Callable[..., Tensor], *inputs: object, gy: object = 1.0) -> list[list[float]]:
    """The gradient of each input, given d/dy = gy everywhere."""
    leaves = [leaf(x) for x in inputs]
    y = function(*leaves)
    return [g.numpy().tolist() for g in grad(y, leaves, np.broadcast_to(np.asarray(gy, dtype=np.float64), y.shape))]


def orders(function: Callable[[Tensor], Tensor], x: object) -> tuple[list[float], list[float]]:
    """dy/dx and d2y/dx2, elementwise."""
    t = leaf(x)
    y = function(t)
    (first,) = grad(y, t, np.ones(y.shape), create_graph=True)
    if not first.requires_grad:
        return first.numpy().tolist(), np.zeros(t.shape).tolist()
    (second,) = grad(first, t, np.ones(t.shape))
    return first.numpy().tolist(), second.numpy().tolist()


# Kinks


def test_relu_at_zero() -> None:
    assert gradients(F.relu, [-1.0, 0.0, -0.0, 1.0]) == [[0, 0, 0, 1]]


def test_absolute_at_zero() -> None:
    assert gradients(abs, [-1.0, 0.0, -0.0, 1.0]) == [[-1, 0, 0, 1]]


# Ties


@pytest.mark.parametrize(("function", "first"), [(F.maximum, [0, 0.5, 1]), (F.minimum, [1, 0.5, 0])])
def test_maximum_and_minimum_share_ties(function: Callable[..., Tensor], first: list[float]) -> None:
    ga, gb = gradients(function, [1.0, 2.0, 3.0], [2.0, 2.0, 2.0], gy=4.0)
    assert ga == [4 * share for share in first]
    assert gb == [4 * (1 - share) for share in first]
    t = leaf([2.0])
    assert grad(function(t, 2.0), t) == grad(function(2.0, t), t) == (Tensor([0.5]),)


@pytest.mark.parametrize("method", ["max", "min"])
def test_max_over_an_axis_shares_ties_equally(method: str) -> None:
    sign = 1 if method == "max" else -1
    x = sign * np.array([[3.0, 1.0, 3.0], [0.0, 2.0, 1.0]])
    assert gradients(lambda t: getattr(t, method)(1), x, gy=[6.0, 1.0]) == [[[3, 0, 3], [0, 1, 0]]]
    assert gradients(lambda t: getattr(t, method)(), x) == [[[0.5, 0, 0.5], [0, 0, 0]]]
    third = 1 / 3
    assert gradients(lambda t: getattr(t, method)(), [sign * INF] * 3) == [[third] * 3]


def test_max_pool_takes_the_first_maximum() -> None:
    assert gradients(lambda t: F.max_pool2d(t, 2), [[[[1.0, 5.0], [5.0, 5.0]]]]) == [[[[[0, 1], [0, 0]]]]]
    assert gradients(lambda t: F.max_pool2d(t, 2), np.full((1, 1, 2, 2), -INF)) == [[[[[1, 0], [0, 0]]]]]
    assert gradients(lambda t: F.max_pool2d(t, (1, 2), stride=1), [[[[7.0, 7.0, 7.0]]]]) == [[[[[1, 1, 0]]]]]


def test_max_pool_pads_with_minus_infinity() -> None:
    x = -np.arange(1.0, 5.0).reshape(1, 1, 2, 2)
    y = F.max_pool2d(x, 2, stride=2, padding=1)
    assert y.numpy().tolist() == x.tolist()  # each window holds one pixel and padding, never 0
    assert gradients(lambda t: F.max_pool2d(t, 2, stride=2, padding=1), x) == [np.ones((1, 1, 2, 2)).tolist()]


def test_max_pool_padding_wins_no_tie() -> None:
    """Also where all that the window has of the image is -inf, the gradient goes to the image."""
    x = np.full((1, 1, 2, 2), -INF)
    assert gradients(lambda t: F.max_pool2d(t, 2, 2, 1), x, gy=2.0) == [[[[[2, 2], [2, 2]]]]]


def test_max_pool_counts_nan_as_the_largest() -> None:
    x = np.array([[[[1.0, NAN], [NAN, 9.0]]]])
    assert np.isnan(F.max_pool2d(x, 2).item())
    assert gradients(lambda t: F.max_pool2d(t, 2), x) == [[[[[0, 1], [0, 0]]]]]


# Branches that are not taken: what happens there is no business of the gradient.

BRANCHES: list[tuple[str, Callable[[Tensor], Tensor]]] = [
    ("where log", lambda x: F.where(x > 0, x.log(), 2.0 * x)),
    ("where sqrt", lambda x: F.where(x > 0, x.sqrt(), 2.0 * x)),
    ("where 1/x", lambda x: F.where(x > 0, 1.0 / x, 2.0 * x)),
    ("where x/x", lambda x: F.where(x > 0, x / x, 2.0 * x)),
    ("where log of sqrt", lambda x: F.where(x > 0, x.sqrt().log(), 2.0 * x)),
    ("where 1/sqrt", lambda x: F.where(x > 0, 1.0 / x.sqrt(), 2.0 * x)),
    ("where, the other way round", lambda x: F.where(x <= 0, 2.0 * x, x.log())),
]


@pytest.mark.parametrize("function", [f for _, f in BRANCHES], ids=[name for name, _ in BRANCHES])
def test_branch_not_taken_leaks_no_nan(function: Callable[[Tensor], Tensor]) -> None:
    with np.errstate(all="ignore"):  # the branch itself is computed, and warns
        first, second = orders(function, [0.0, -1.0, 4.0])
        alone_first, alone_second = orders(function, [4.0])
    assert first[:2] == [2, 2]
    assert second[:2] == [0, 0]
    assert first[2:] == alone_first
    assert second[2:] == alone_second
    assert np.isfinite(alone_first + alone_second).all()


def test_maximum_leaks_nothing_from_the_smaller_side() -> None:
    with np.errstate(all="ignore"):
        assert orders(lambda x: F.maximum(x.log(), -3.0), [0.0, 1.0]) == ([0, 1], [0, -1])
        assert orders(lambda x: F.minimum(1.0 / x, 5.0), [0.0, 1.0]) == ([0, -1], [0, 2])


def test_gradient_where_the_slope_is_infinite() -> None:
    with np.errstate(all="ignore"):
        assert gradients(Tensor.sqrt, [0.0, 0.0], gy=[1.0, 0.0]) == [[INF, 0]]
        assert gradients(Tensor.log, [0.0, 0.0], gy=[1.0, 0.0]) == [[INF, 0]]


# Powers at 0


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


# Softmax and losses far out. NumPy's warnings are errors here, so nothing overflows or is invalid on the way, either.

LOGITS = {
    "large": [[1e4, -1e4, 0.0], [1e4, 1e4, -1e4]],
    "masked": [[-INF, 0.0, 1.0], [2.0, -INF, -INF]],
    "large and masked": [[-INF, 1e4, -1e4], [-1e4, -1e4, -INF]],
}


@pytest.mark.parametrize("logits", LOGITS.values(), ids=LOGITS)
@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp"])
def test_softmax_far_out(name: str, logits: list[list[float]]) -> None:
    x = leaf(logits)
    y = getattr(x, name)(1)
    largest = np.max(logits, axis=1, keepdims=True)
    total = largest + np.log(np.exp(logits - largest).sum(1, keepdims=True))
    expected = {"softmax": np.exp(logits - total), "log_softmax": logits - total, "logsumexp": total[:, 0]}[name]
    assert np.allclose(y.numpy(), expected, rtol=1e-12)
    gy = np.random.default_rng(0).uniform(0.5, 1.5, y.shape)
    (first,) = grad(y, x, gy, create_graph=True)
    assert np.isfinite(first.numpy()).all()
    (second,) = grad(first, x, np.random.default_rng(1).uniform(0.5, 1.5, x.shape))
    assert np.isfinite(second.numpy()).all()


def test_logsumexp_of_nothing_but_masks() -> None:
    x = [[-INF, -INF], [0.0, -INF]]
    assert F.logsumexp(np.array(x), 1).numpy().tolist() == [-INF, 0.0]
    assert gradients(lambda t: F.logsumexp(t, 1), x) == [[[0, 0], [1, 0]]]


@pytest.mark.parametrize("logits", LOGITS.values(), ids=LOGITS)
def test_cross_entropy_far_out(logits: list[list[float]]) -> None:
    x = leaf(logits)
    labels = np.argmax(np.isfinite(logits), axis=1)
    loss = F.cross_entropy(x, labels, reduction="sum")
    expected = sum(-F.log_softmax(x).numpy()[n, k] for n, k in enumerate(labels))
    assert np.isfinite(expected)
    assert np.isclose(loss.item(), expected, rtol=1e-12)
    (first,) = grad(loss, x, create_graph=True)
    assert np.allclose(first.numpy(), F.softmax(x).numpy() - np.eye(3)[labels], atol=1e-12)
    (second,) = grad(first, x, np.random.default_rng(1).uniform(0.5, 1.5, x.shape))
    assert np.isfinite(second.numpy()).all()


def test_cross_entropy_of_an_impossible_label_is_infinite() -> None:
    x = leaf([[-INF, 0.0]])
    loss = F.cross_entropy(x, np.array([0]))
    assert loss.item() == INF
    assert grad(loss, x)[0].numpy().tolist() == [[-1.0, 1.0]]


# Penalties, small and large. As above, nothing on the way overflows or is invalid.


def eq_8(penalties: np.ndarray, label: int) -> float:
    """LeCun et al. (1998): the penalty of the right class."""
    return float(penalties[label])


def eq_9(penalties: np.ndarray, label: int, j: float) -> float:
    """y_D + log(e^-j + sum e^-y_i), the largest exponent taken out, so that it holds for any size."""
    low = min(j, *map(float, penalties))
    total = math.exp(low - j) + sum(math.exp(low - float(y)) for y in penalties)
    return float(penalties[label]) - low + math.log(total)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("j", [None, 1e-3, 0.5, 4.0, 50.0])
def test_penalty_loss_is_its_formula(j: float | None, reduction: str) -> None:
    penalties = np.random.default_rng(0).uniform(0, 9, (5, 4))
    labels = np.array([0, 3, 1, 1, 2])
    y = F.penalty_loss(penalties, labels, j, reduction)
    each = [eq_8(p, d) if j is None else eq_9(p, d, j) for p, d in zip(penalties, labels, strict=True)]
    expected = {"mean": sum(each) / 5, "sum": sum(each), "none": each}[reduction]
    assert y.dtype == np.float64
    np.testing.assert_allclose(y.numpy(), expected, rtol=1e-13)


@pytest.mark.parametrize("size", [1e-4, 1.0, 100.0, 1e4])
@pytest.mark.parametrize("j", [None, 1e-3, 0.1, 1.0, 50.0])
def test_penalty_loss_is_stable_in_float32(j: float | None, size: float) -> None:
    """Penalties of 10,000, and codes that are hit exactly: finite, and right to float32's digits; slopes in [-1, 1]."""
    penalties = (np.random.default_rng(1).uniform(0, size, (6, 10))).astype(np.float32)
    penalties[0], penalties[1, 2], penalties[2, 4] = 0, 0, np.float32(1e4)
    labels = np.array([3, 2, 4, 0, 9, 5])
    x = Tensor(penalties, requires_grad=True)
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        y = F.penalty_loss(x, labels, j, "none")
        (g,) = grad(y, x, np.ones(6, np.float32))
    each = [eq_8(p, d) if j is None else eq_9(p, d, j) for p, d in zip(penalties, labels, strict=True)]
    assert y.dtype == g.dtype == np.float32
    np.testing.assert_allclose(y.numpy(), each, rtol=2e-6, atol=2e-6 * max(1, size))
    right = np.eye(10)[labels]
    if j is None:
        np.testing.assert_array_equal(g.numpy(), right)
        return
    terms = np.exp(-np.append(penalties.astype(float), np.full((6, 1), j), axis=1) + j)  # relative to the rubbish
    np.testing.assert_allclose(g.numpy(), right - terms[:, :10] / terms.sum(1, keepdims=True), atol=1e-5 + 1e-6 * size)
    assert np.abs(g.numpy()).max() <= 1
    assert (g.numpy() * right >= 0).all()  # never is the right class pushed away
    assert (g.numpy() * (1 - right) <= 0).all()  # nor a wrong one pulled near


def test_competition_ends_where_penalties_exceed_the_rubbish() -> None:
    """Eq. 9 against Eq. 8: a wrong class whose penalty is far above j is pushed no further."""
    (g,) = gradients(lambda y: F.penalty_loss(y, [0], j=5.0), [[1.0, 4.0, 50.0]])
    assert g[0][0] > 0
    assert g[0][1] < -0.01
    assert -1e-18 < g[0][2] <= 0
    assert gradients(lambda y: F.penalty_loss(y, [0]), [[1.0, 4.0, 50.0]]) == [[[1, 0, 0]]]


@pytest.mark.parametrize("j", [None, 2.0])
def test_an_infinite_penalty_of_a_wrong_class_does_not_matter(j: float | None) -> None:
    y = F.penalty_loss(np.array([[1.0, INF, 3.0]]), [0], j)
    assert y.item() == pytest.approx(F.penalty_loss(np.array([[1.0, 3.0]]), [0], j).item())


@pytest.mark.parametrize("j", [None, 0.5])
def test_penalties_in_integers(j: float | None) -> None:
    """Give what the same numbers in floats give."""
    whole = np.array([[1, 8], [3, 0]])
    expected = F.penalty_loss(whole.astype(np.float64), [1, 0], j).item()
    assert F.penalty_loss(whole, [1, 0], j).item() == pytest.approx(expected)


LOSSES_OF_LABELS: list[tuple[str, Callable[..., Tensor]]] = [
    ("cross_entropy", F.cross_entropy),
    ("nll_loss", F.nll_loss),
    ("penalty_loss", F.penalty_loss),
    ("penalty_loss with j", lambda x, d, **how: F.penalty_loss(x, d, 1.0, **how)),
]


@pytest.mark.parametrize("loss", [f for _, f in LOSSES_OF_LABELS], ids=[name for name, _ in LOSSES_OF_LABELS])
def test_losses_of_an_empty_batch(loss: Callable[..., Tensor]) -> None:
    """No terms, a sum of 0 and a gradient without elements; there is no mean."""
    x, labels = leaf(np.zeros((0, 3))), np.zeros(0, int)
    assert loss(x, labels, reduction="none").shape == (0,)
    total = loss(x, labels, reduction="sum")
    assert total.item() == 0
    assert grad(total, x)[0].shape == (0, 3)
    with np.errstate(invalid="ignore"):
        assert math.isnan(loss(x, labels, reduction="mean").item())


# What lies between 1.7159 tanh(2/3 x) and a distance of 0


def test_scaled_tanh_far_out() -> None:
    """Flat, at its amplitude, without warnings; a negative slope mirrors it."""
    x = leaf([-1e4, 1e4, 0.0, 1.0, -1.0])
    y = F.scaled_tanh(x)
    np.testing.assert_allclose(y.numpy(), [-1.7159, 1.7159, 0, 1, -1], atol=1e-5)
    first, _ = orders(F.scaled_tanh, [-1e4, 1e4, 0.0])
    np.testing.assert_allclose(first, [0, 0, 1.7159 * 2 / 3], atol=1e-15)
    np.testing.assert_array_equal(F.scaled_tanh(x, 2.0, -0.5).numpy(), -F.scaled_tanh(x, 2.0, 0.5).numpy())


def test_distance_from_a_centre_far_away_keeps_its_digits() -> None:
    """|x|^2 - 2 x c + |c|^2 would lose them all: both points are a million away from 0, and a thousandth apart."""
    x = np.full((1, 4), 1e6)
    y = F.rbf(x + 1e-3, x)
    np.testing.assert_allclose(y.numpy(), 4 * ((x[0, 0] + 1e-3) - x[0, 0]) ** 2, rtol=1e-12)
    assert F.rbf(x, x).item() == 0


# A gradient of exactly 0 is a value like any other: what is differentiated again at it must be right


def second(fn: Callable[[Tensor], Tensor], x: float) -> float:
    """d/dc d/dx of c * fn at c = 0."""
    c, x_ = Tensor(np.float64(0.0), requires_grad=True), Tensor(np.float64(x), requires_grad=True)
    (gx,) = grad(c * fn(x_), [x_], create_graph=True)
    return grad(gx, [c])[0].item()


@pytest.mark.parametrize(
    ("fn", "x", "slope"),
    [
        (lambda x: 3.0 / x, 2.0, -0.75),
        (lambda x: x**2, 0.0, 0.0),
        (lambda x: x**3, 0.0, 0.0),
        (lambda x: x**1, 0.0, 1.0),
        (lambda x: x.sqrt(), 4.0, 0.25),
        (lambda x: x.log(), 2.0, 0.5),
        (lambda x: x**0.5, 4.0, 0.25),
    ],
)
def test_slope_through_a_zero_gradient(fn: Callable[[Tensor], Tensor], x: float, slope: float) -> None:
    assert second(fn, x) == pytest.approx(slope)


def test_third_derivative_of_a_fourth_power_at_zero() -> None:
    x = Tensor(np.float64(0.0), requires_grad=True)
    y = (x**2) ** 2
    for _ in range(3):
        (y,) = grad(y, [x], create_graph=True)
    assert y.item() == 0.0
