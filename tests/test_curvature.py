"""Curvatures: each op's second rule, the network of 1998 by the paper's equations, and what `curvature` promises.

A rule is held against the recursion itself: for each element x_j, sum over outputs i of hy_i (dy_i/dx_j)^2, the slopes
being central differences of the op's oracle. LeNet-5 of 1998 is held against Eqs. 22-27 of the paper, summed over its
340,908 connections one by one.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models import LeNet5_1998
from tests.oracles import ORACLES
from tests.test_ops import OPS, running
from tinygrad_lenet import Op, Tensor, curvature, data, detect_anomaly, grad, nn, no_grad, testing
from tinygrad_lenet import functional as F
from tinygrad_lenet.tensor import REAL, REGISTRY

RULES = [name for name in OPS if REGISTRY[name].curvature is not Op.curvature]
NO_RULE = [name for name in OPS if REGISTRY[name].curvature is Op.curvature]
RULE_INPUTS = [
    (name, i) for name in RULES for i, x in enumerate(REGISTRY[name]._parsed.inputs)
    if REGISTRY[name].domains[x.name].kind == "real"
]  # fmt: skip
ELEMENTS = 12  # of each input, drawn, that are compared

fewer = settings(max_examples=max(8, settings().max_examples // 3))


class Seeded(Op):
    """y = 0, a loss that hands on what it was made with: gy as its gradient, hy as its curvature."""

    signature = "seeded(x[...]) -> y[]"
    domains = {"x": REAL}
    curved = True

    def __init__(self, hy: Tensor, gy: Tensor) -> None:
        self.hy, self.gy = hy, gy

    def forward(self, xp: Any, x: Any) -> Any:
        return 0.0 * xp.sum(x)

    def backward(self, gy: Tensor, y: Tensor, x: Tensor) -> Tensor:
        return gy * self.gy

    def curvature(self, hy: Tensor, gy: Tensor, y: Tensor, x: Tensor) -> Tensor:
        return self.hy


del REGISTRY["seeded"]  # other tests walk it


def real_inputs(op: Op, arrays: Sequence[np.ndarray]) -> list[int]:
    operands = op._parsed.operands(len(arrays))
    return [i for i, x in enumerate(operands) if op.domains[x.name].kind == "real"]


def found(op: Op, arrays: Sequence[np.ndarray], hy: np.ndarray, gy: np.ndarray, device: str) -> dict[int, np.ndarray]:
    """What the op's rule makes of hy and gy for each real input, by way of the public function."""
    real = real_inputs(op, arrays)
    inputs = [Tensor(a.copy(), requires_grad=i in real, device=device) for i, a in enumerate(arrays)]
    y = op(*inputs)
    loss = Seeded(*(Tensor(a.astype(y.dtype), device=y.device) for a in (hy, gy)))(y)
    h = curvature(loss, [inputs[i] for i in real])
    assert all(np.array_equal(x.numpy(), a) for x, a in zip(inputs, arrays, strict=True)), "an input was changed"
    for i, each in zip(real, h, strict=True):
        assert (each.dtype, each.device) == (inputs[i].dtype, inputs[i].device)
    return {i: each.numpy() for i, each in zip(real, h, strict=True)}


def local_derivatives(
    op: Op, arrays: Sequence[np.ndarray], i: int, j: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """dy/dx_j and d2y/dx_j2 for every element of y, x being input i: central differences of the oracle."""

    def y(step: float) -> np.ndarray:
        inputs = [a.copy() for a in arrays]
        inputs[i][j] += step
        return np.asarray(ORACLES[op.name](*inputs, **testing._parameters(op)))

    bends = (y(1e-3) - 2 * y(0) + y(-1e-3)) / 1e-6 if op.curved else np.zeros(())
    slopes = (y(1e-4) - y(-1e-4)) / 2e-4
    return slopes, np.broadcast_to(bends, slopes.shape)


def recursion(op: Op, hy: np.ndarray, gy: np.ndarray, slopes: np.ndarray, bends: np.ndarray, power: int = 2) -> float:
    """h of one element of an input, in plain loops.

    The second derivatives of a loss are added up, each times its gradient, within a sample (the first axis of y), where
    the sum counts if it is positive; ops that take any axes have a sample an element.
    """
    any_rank = op._parsed.inputs[0].any_rank
    total, samples = 0.0, {}
    for index in np.ndindex(slopes.shape):
        total += hy[index] * slopes[index] ** power
        sample = index if any_rank else index[:1]
        samples[sample] = samples.get(sample, 0.0) + gy[index] * bends[index]
    return total + sum(max(0.0, bend) for bend in samples.values()) if op.curved else total


def draw_seeds(shape: tuple[int, ...], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """hy, which is never negative, and gy, of both signs, each with some zeros."""
    hy = np.where(rng.random(shape) < 0.2, 0.0, rng.uniform(0, 2, shape))
    gy = np.where(rng.random(shape) < 0.2, 0.0, rng.normal(size=shape))
    return hy, gy


def draw_elements(a: np.ndarray, rng: np.random.Generator) -> list[tuple[int, ...]]:
    chosen = rng.permutation(a.size)[:ELEMENTS]
    return [tuple(int(k) for k in np.unravel_index(each, a.shape)) for each in chosen]


def assert_agrees(h: np.ndarray, elements: list[tuple[int, ...]], expected: list[float], what: str) -> None:
    for j, right in zip(elements, expected, strict=True):
        if not abs(h[j] - right) <= 1e-4 * right + 1e-6 * max(expected) + 1e-8:
            raise AssertionError(f"{what}: the rule gives {h[j]!r} at index {j}; the recursion gives {right!r}")


# The rules


@pytest.mark.parametrize("places", [("cpu", "plain", "strict"), ("cuda",)], ids=["host", "cuda"])
@pytest.mark.parametrize("name", RULES)
@fewer
@given(data=st.data())
def test_rule_is_the_recursion(name: str, places: tuple[str, ...], data: st.DataObject) -> None:
    """On drawn shapes, values and seeds, on every backend; float32 stays float32."""
    op, arrays = data.draw(testing.cases(REGISTRY[name]))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    with np.errstate(all="raise"):
        hy, gy = draw_seeds(op(*map(Tensor, arrays)).shape, rng)
    expected = {}
    for i in real_inputs(op, arrays):
        elements = draw_elements(arrays[i], rng)
        derivatives = [local_derivatives(op, arrays, i, j) for j in elements]
        expected[i] = elements, [recursion(op, hy, gy, *each) for each in derivatives]
    halves = [a.astype(np.float32) if a.dtype.kind == "f" else a for a in arrays]
    for place in places:
        with running(place) as device:
            h, h32 = found(op, arrays, hy, gy, device), found(op, halves, hy, gy, device)
        assert h.keys() == h32.keys() == expected.keys()
        for i, (elements, right) in expected.items():
            assert h[i].shape == arrays[i].shape
            assert (h[i] >= 0).all()
            assert_agrees(h[i], elements, right, f"{op} on {[a.shape for a in arrays]}, input {i}, {place}")
            np.testing.assert_allclose(h32[i], h[i], rtol=1e-3, atol=1e-4 * h[i].max(initial=1))


def scaled(rule: Callable[..., Any], op: Op, hy: Tensor, gy: Tensor, y: Tensor, inputs: Any) -> list[Any]:
    """The rule's answers, 1% too large."""
    return [1.01 * h for h in called(rule(op, hy, gy, y, *inputs))]


def unsquared(rule: Callable[..., Any], op: Op, hy: Tensor, gy: Tensor, y: Tensor, inputs: Any) -> list[Any]:
    """The answers of a rule that forgot to square: those of backward, and of the rule what comes from gy."""
    answers = called(op.backward(hy, y, *inputs))
    if not op.curved:
        return answers
    own = called(rule(op, 0.0 * hy, gy, y, *inputs))
    return [a + b for a, b in zip(answers, own, strict=True)]


def called(answers: Any) -> list[Any]:
    answers = answers if isinstance(answers, tuple) else (answers,)
    return [each() if callable(each) else each for each in answers]


@pytest.mark.parametrize("mistake", [scaled, unsquared])
@pytest.mark.parametrize(("name", "i"), RULE_INPUTS)
def test_wrong_rule_is_refused(name: str, i: int, mistake: Callable[..., list[Any]]) -> None:
    """One that is off by 1%, or that forgot to square, unless every slope is 0 or 1 and that is no mistake."""
    op_class = REGISTRY[name]
    rule = op_class.curvature
    tried, refused, slopes_seen = 0, 0, set()

    def wrong(self: Op, hy: Tensor, gy: Tensor, y: Tensor, *inputs: Any) -> Any:
        right = called(rule(self, hy, gy, y, *inputs))
        return (*right[:i], mistake(rule, self, hy, gy, y, inputs)[i], *right[i + 1 :])

    @settings(max_examples=25)  # far more than are looked at: shapes may be empty, or lack an input that is optional
    @given(testing.cases(op_class), st.integers(0, 2**32 - 1))
    def refuses(case: testing.Case, seed: int) -> None:
        nonlocal tried, refused
        op, arrays = case
        rng = np.random.default_rng(seed)
        if i >= len(arrays) or not arrays[i].size or max(refused, tried) >= 5:
            return
        hy, gy = draw_seeds(op(*map(Tensor, arrays)).shape, rng)
        elements = draw_elements(arrays[i], rng)[:3]
        derivatives = [local_derivatives(op, arrays, i, j) for j in elements]
        right = [recursion(op, hy, gy, *each) for each in derivatives]
        forgot = [recursion(op, hy, gy, *each, power=1) for each in derivatives]
        slopes_seen.update(round(float(slope), 6) for slopes, _ in derivatives for slope in slopes.ravel())
        difference = max(right) / 100 if mistake is scaled else np.abs(np.subtract(forgot, right)).max()
        tried += max(right) > 1e-3
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(op_class, "curvature", wrong)
            h = found(op, arrays, hy, gy, "cpu")[i]
        if difference > 1e-3 * max(right) + 1e-6:
            with pytest.raises(AssertionError, match="the rule gives"):
                assert_agrees(h, elements, right, name)
            refused += 1
        elif difference < 1e-9:  # these numbers cannot tell
            assert_agrees(h, elements, right, name)

    refuses()
    assert tried
    if not refused:
        assert mistake is unsquared
        assert slopes_seen <= {0.0, 1.0}


@pytest.mark.parametrize("name", NO_RULE)
def test_op_without_rule_is_named(name: str) -> None:
    """Before anything is computed, and whichever of its inputs it is that is asked for."""
    sentence = f"^curvature: op {name} has no curvature rule; define `curvature` beside its `backward`$"

    @settings(max_examples=5)
    @given(testing.cases(REGISTRY[name]))
    def refuses(case: testing.Case) -> None:
        op, arrays = case
        for i in real_inputs(op, arrays):
            x = Tensor(arrays[i], requires_grad=True)
            y = op(*arrays[:i], x, *arrays[i + 1 :])
            loss = F.mse_loss(y, np.zeros(y.shape), reduction="sum")
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(Op, "_compute", lambda self, *_: pytest.fail(f"{self.name} was computed"))
                with pytest.raises(ValueError, match=sentence):
                    curvature(loss, x)

    refuses()


def test_some_ops_have_rules_and_some_have_none() -> None:
    assert len(RULES) > 30
    assert len(NO_RULE) > 10


def test_the_rule_itself_says_that_there_is_none() -> None:
    x = Tensor([1.0])
    with pytest.raises(ValueError, match="curvature: op softmax has no curvature rule"):
        REGISTRY["softmax"](0).curvature(x, x, x, x)


# Networks


def test_three_units_a_layer_by_plain_loops() -> None:
    """tanh(W2 tanh(W1 x + b1) + b2) and half a squared error, two patterns: Eqs. 22-27, a sum for each index."""
    rng = np.random.default_rng(0)
    patterns, targets = rng.uniform(-1, 1, (2, 3)), rng.uniform(-1, 1, (2, 3))
    w1, w2 = (rng.normal(size=(3, 3)) for _ in range(2))
    b1, b2 = (rng.normal(size=3) for _ in range(2))
    parameters = [Tensor(each.copy(), requires_grad=True) for each in (w1, b1, w2, b2)]
    layer1 = F.linear(patterns, *parameters[:2]).tanh()
    layer2 = F.linear(layer1, *parameters[2:]).tanh()
    loss = F.mse_loss(layer2, targets, reduction="sum") / 4  # half the squared error, the mean over two patterns

    h_w1, h_b1, h_w2, h_b2 = np.zeros((3, 3)), np.zeros(3), np.zeros((3, 3)), np.zeros(3)
    h_x = np.zeros((2, 3))
    for n in range(2):
        a1, x1, a2, x2 = [0.0] * 3, [0.0] * 3, [0.0] * 3, [0.0] * 3
        for i in range(3):
            a1[i] = b1[i]
            for j in range(3):
                a1[i] += w1[i, j] * patterns[n, j]
            x1[i] = math.tanh(a1[i])
        for i in range(3):
            a2[i] = b2[i]
            for j in range(3):
                a2[i] += w2[i, j] * x1[j]
            x2[i] = math.tanh(a2[i])
        h_x1 = [0.0] * 3
        for i in range(3):
            h_a2 = (1 - x2[i] ** 2) ** 2 * 1.0  # d2/dx2 of (x - t)^2 / 2 is 1; f'' is left out
            h_b2[i] += h_a2 / 2
            for j in range(3):
                h_w2[i, j] += h_a2 * x1[j] ** 2 / 2
                h_x1[j] += w2[i, j] ** 2 * h_a2
            # The seed also holds 4 (x - t)^2 times the curvature above the loss, which is 0: the mean is linear.
        for i in range(3):
            h_a1 = (1 - x1[i] ** 2) ** 2 * h_x1[i]
            h_b1[i] += h_a1 / 2
            for j in range(3):
                h_w1[i, j] += h_a1 * patterns[n, j] ** 2 / 2
                h_x[n, j] += w1[i, j] ** 2 * h_a1 / 2
    for h, expected in zip(curvature(loss, parameters), (h_w1, h_b1, h_w2, h_b2), strict=True):
        np.testing.assert_allclose(h.numpy(), expected, rtol=1e-12)
    x = Tensor(patterns, requires_grad=True)
    again = F.linear(F.linear(x, *parameters[:2]).tanh(), *parameters[2:]).tanh()
    (h,) = curvature(F.mse_loss(again, targets, reduction="sum") / 4, x)
    np.testing.assert_allclose(h.numpy(), h_x, rtol=1e-12)


A, S = 1.7159, 2 / 3
SEES = (  # Table I
    "012", "123", "234", "345", "045", "015",
    "0123", "1234", "2345", "0345", "0145", "0125", "0134", "1245", "0235",
    "012345",
)  # fmt: skip
BIAS = -1  # as an input: a unit that is always 1

Connections = tuple[np.ndarray, np.ndarray, np.ndarray]


@cache
def connections() -> dict[str, Connections]:
    """For each layer below the output, unit i, its input j and the parameter k of each connection, in three arrays.

    Units and inputs are counted map by map, row by row; parameters weight first, then bias. Each unit of a subsampling
    layer has four connections to its window, which share one coefficient, and one to its bias.
    """

    def convolution(inputs: int, size: int, sees: Sequence[Sequence[int]]) -> Iterator[tuple[int, int, int]]:
        out, kernels = size - 4, sum(map(len, sees))
        kernel = 0
        for f, maps in enumerate(sees):
            for c in maps:
                assert c < inputs
                for oh, ow, kh, kw in np.ndindex(out, out, 5, 5):
                    pixel = (c * size + oh + kh) * size + ow + kw
                    yield (f * out + oh) * out + ow, pixel, kernel * 25 + kh * 5 + kw
                kernel += 1
            for position in range(out * out):
                yield f * out * out + position, BIAS, kernels * 25 + f

    def subsampling(maps: int, size: int) -> Iterator[tuple[int, int, int]]:
        half = size // 2
        for c, oh, ow in np.ndindex(maps, half, half):
            unit = (c * half + oh) * half + ow
            for row, column in np.ndindex(2, 2):
                yield unit, (c * size + 2 * oh + row) * size + 2 * ow + column, c
            yield unit, BIAS, maps + c

    def full(inputs: int, outputs: int) -> Iterator[tuple[int, int, int]]:
        for i, j in np.ndindex(outputs, inputs):
            yield i, j, i * inputs + j
        for i in range(outputs):
            yield i, BIAS, outputs * inputs + i

    lists = {
        "c1": convolution(1, 32, [(0,)] * 6),
        "s2": subsampling(6, 28),
        "c3": convolution(6, 14, [[int(c) for c in maps] for maps in SEES]),
        "s4": subsampling(16, 10),
        "c5": convolution(16, 5, [range(16)] * 120),
        "f6": full(120, 84),
    }
    return {name: tuple(np.array(list(each)).T) for name, each in lists.items()}  # type: ignore[misc]


def by_the_paper(
    model: LeNet5_1998, image: np.ndarray, label: int, j: float | None
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """h_kk of every parameter for one image, and the gradient, by sums over connections: Eqs. 19 and 22-27."""
    u = {
        name: np.concatenate([getattr(model, name).weight.numpy().ravel(), getattr(model, name).bias.numpy()])
        for name in connections()
    }
    x, states = np.append(image.ravel(), 1.0), {}  # the last one for BIAS
    for name, (unit, below, k) in connections().items():
        a = np.bincount(unit, u[name][k] * x[below])
        states[name] = x, a
        x = np.append(A * np.tanh(S * a), 1.0)

    f6, codes = x[:-1], model.output.centers.numpy()
    penalties = [sum((f6[i] - code[i]) ** 2 for i in range(84)) for code in codes]
    if j is None:  # Eq. 8: dE/dy is 1 for the right class, and E is linear in the penalties
        g_y, h_y = np.eye(10)[label], np.zeros(10)
    else:  # Eq. 9: dE/dy_i = [i = D] - p_i, d2E/dy_i2 = p_i (1 - p_i)
        terms = [math.exp(-y) for y in penalties]
        p = np.array(terms) / (math.exp(-j) + sum(terms))
        g_y, h_y = np.eye(10)[label] - p, p * (1 - p)
    g_x, h_x = np.zeros(84), np.zeros(84)
    for i in range(84):
        for y in range(10):
            g_x[i] += g_y[y] * 2 * (f6[i] - codes[y, i])
            h_x[i] += h_y[y] * (2 * (f6[i] - codes[y, i])) ** 2
        h_x[i] += max(0.0, 2 * sum(g_y))  # d2/dx2 of each penalty is 2

    g, h = {}, {}
    for name in reversed(connections()):
        unit, below, k = connections()[name]
        x, a = states[name]
        slope = A * S * (1 - np.tanh(S * a) ** 2)
        g_a, h_a = slope * g_x, slope**2 * h_x  # Eq. 27, without the sum
        g[name] = np.bincount(k, g_a[unit] * x[below])  # Eq. 19
        h[name] = np.bincount(k, h_a[unit] * x[below] ** 2)  # Eqs. 22-25
        if name in ("s2", "s4"):  # here the coefficient's slope is the sum of its window, and that is squared
            window = np.bincount(unit[below != BIAS], x[below[below != BIAS]])
            coefficients = u[name].size // 2
            maps = k[below != BIAS].reshape(-1, 4)[:, 0]
            h[name][:coefficients] = np.bincount(maps, h_a * window**2)
        inputs = below != BIAS
        g_x = np.bincount(below[inputs], (g_a[unit] * u[name][k])[inputs], minlength=x.size - 1)
        h_x = np.bincount(below[inputs], (h_a[unit] * u[name][k] ** 2)[inputs], minlength=x.size - 1)  # Eq. 27
    return g, h


def in_float64(model: LeNet5_1998) -> LeNet5_1998:
    for tensor in (*model.parameters(), model.output.centers):
        tensor.data = tensor.data.astype(np.float64)
    return model


@pytest.mark.parametrize("j", [None, 84.0], ids=["Eq. 8", "Eq. 9"])
def test_lenet5_of_1998_by_the_equations_of_the_paper(j: float | None) -> None:
    """All 60,000 curvatures, the mean over two digits, and the gradients by the same connections."""
    images, labels = data.digits("test")
    x, labels = data.to_input(images[[3, 8]]).astype(np.float64), labels[[3, 8]]
    model = in_float64(LeNet5_1998("sqrt-fan-in", rng=0))
    loss = F.penalty_loss(model(Tensor(x)), labels, j)
    parameters = dict(model.named_parameters())
    h = dict(zip(parameters, curvature(loss, list(parameters.values())), strict=True))
    loss.backward()
    g = {name: p.grad for name, p in parameters.items()}
    single = [by_the_paper(model, x[n, 0], int(labels[n]), j) for n in range(2)]
    for which, ours in enumerate((g, h)):
        for name in connections():
            expected = (single[0][which][name] + single[1][which][name]) / 2
            both = np.concatenate([ours[f"{name}.weight"].numpy().ravel(), ours[f"{name}.bias"].numpy()])  # type: ignore[union-attr]
            np.testing.assert_allclose(both, expected, rtol=1e-9, atol=1e-12 * np.abs(expected).max(), err_msg=name)
            assert np.abs(expected).max() > 0
    assert sum(each.size for each in h.values()) == 60_000


def test_the_connections_are_those_of_the_paper() -> None:
    """The test above would prove little if its own tables were not the paper's."""
    counts = {name: len(unit) for name, (unit, _, _) in connections().items()}
    assert counts == {"c1": 122_304, "s2": 5_880, "c3": 151_600, "s4": 2_000, "c5": 48_120, "f6": 10_164}
    parameters = {name: k.max() + 1 for name, (_, _, k) in connections().items()}
    assert parameters == {"c1": 156, "s2": 12, "c3": 1_516, "s4": 32, "c5": 48_120, "f6": 10_164}
    for unit, _, k in connections().values():
        assert set(np.unique(unit)) == set(range(unit.max() + 1))
        assert set(np.unique(k)) == set(range(k.max() + 1))


# Properties, on a network that has all that the one of 1998 has, at a size for pencils


class Small(nn.Module):
    """x[N 2 6 6] -> penalties[N 3], or to logits[N 3]."""

    def __init__(self, seed: int, penalties: bool) -> None:
        rng = np.random.default_rng(seed)
        self.c1 = nn.Conv2d(2, 3, 3, connections=[[0], [1], [0, 1]], rng=rng, dtype=np.float64)
        self.s2 = nn.Subsample2d(3, 2, dtype=np.float64)
        self.f6 = nn.Linear(12, 4, rng=rng, dtype=np.float64)
        self.act = nn.ScaledTanh()
        if penalties:
            self.output: nn.Module = nn.RBF(rng.normal(size=(3, 4)), trainable=True, dtype=np.float64)
        else:
            self.output = nn.Linear(4, 3, rng=rng, dtype=np.float64)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.s2(self.act(self.c1(x))))
        return self.output(self.act(self.f6(x.reshape(x.shape[0], 12))))


Loss = Callable[..., Tensor]
LOSSES: dict[str, tuple[bool, Loss]] = {
    "Eq. 8": (True, lambda y, labels, **how: F.penalty_loss(y, labels, **how)),
    "Eq. 9": (True, lambda y, labels, **how: F.penalty_loss(y, labels, j=2.0, **how)),
    "cross_entropy": (False, lambda y, labels, **how: F.cross_entropy(y, labels, label_smoothing=0.1, **how)),
    "mse_loss": (False, lambda y, labels, **how: F.mse_loss(y, F.one_hot(labels, 3, np.float64), **how)),
}


def small_case(name: str, seed: int, n: int) -> tuple[list[Tensor], Callable[..., Tensor]]:
    """The parameters of a drawn network, and its loss on some of n drawn patterns."""
    penalties, loss = LOSSES[name]
    model, rng = Small(seed, penalties), np.random.default_rng(seed + 1)
    images, labels = rng.uniform(-1, 1, (n, 2, 6, 6)), rng.integers(0, 3, n)
    parameters: list[Tensor] = list(model.parameters())
    return parameters, lambda part=slice(None), **how: loss(model(Tensor(images[part])), labels[part], **how)


@pytest.mark.parametrize("name", LOSSES)
@fewer
@given(seed=st.integers(0, 2**32 - 2), n=st.integers(1, 4))
def test_never_negative_and_the_mean_of_the_samples(name: str, seed: int, n: int) -> None:
    """A mean over samples has the mean of their curvatures, each taken alone."""
    parameters, loss = small_case(name, seed, n)
    whole = curvature(loss(), parameters)
    alone = [curvature(loss(slice(i, i + 1)), parameters) for i in range(n)]
    for k, h in enumerate(whole):
        assert (h.numpy() >= 0).all()
        assert h.numpy().max() > 0
        np.testing.assert_allclose(h.numpy(), np.mean([each[k].numpy() for each in alone], axis=0), rtol=1e-10)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("factor", [0.25, 3.0, 1e-6])
def test_a_loss_times_a_factor_has_curvatures_times_it(name: str, factor: float) -> None:
    parameters, loss = small_case(name, 5, 3)
    for h, once in zip(curvature(factor * loss(), parameters), curvature(loss(), parameters), strict=True):
        np.testing.assert_allclose(h.numpy(), factor * once.numpy(), rtol=1e-12)


def test_negative_second_derivatives_are_left_out() -> None:
    """Of -(x - t)^2, nothing is left; of a difference of two losses, what bends upwards."""
    x, y = (Tensor(np.array([0.5, 2.0]), requires_grad=True) for _ in range(2))
    losses = F.mse_loss(x, np.zeros(2), "sum") - 3.0 * F.mse_loss(y, np.zeros(2), "sum")
    h_x, h_y = curvature(losses, [x, y])
    assert h_x.numpy().tolist() == [2, 2]
    assert h_y.numpy().tolist() == [0, 0]


def diagonal_of_hessian(loss: Tensor, x: Tensor) -> np.ndarray:
    (g,) = grad(loss, x, create_graph=True)
    flat = g.reshape(-1)
    return np.array([grad(flat[i], x, create_graph=True)[0].numpy().ravel()[i] for i in range(x.size)]).reshape(x.shape)


@pytest.mark.parametrize("name", ["cross_entropy", "mse_loss", "Eq. 8"])
def test_exact_for_linear_models(name: str) -> None:
    """Where only the loss bends, nothing is left out: the true second derivatives, found by differentiating twice."""
    rng = np.random.default_rng(3)
    images, labels = rng.normal(size=(4, 1, 5, 5)), np.array([0, 2, 1, 1])
    conv, output = nn.Conv2d(1, 2, 4, dtype=np.float64, rng=rng), nn.Linear(8, 3, dtype=np.float64, rng=rng)
    centers = rng.normal(size=(3, 3))

    def loss() -> Tensor:
        y = output(conv(Tensor(images)).reshape(4, 8))
        return LOSSES[name][1](F.rbf(y, centers) if LOSSES[name][0] else y, labels)

    for x in (output.weight, output.bias):
        assert x is not None
        (h,) = curvature(loss(), x)
        np.testing.assert_allclose(h.numpy(), diagonal_of_hessian(loss(), x), rtol=1e-10)
        assert h.numpy().min() > 0
    # One layer further down, a weight reaches several outputs, and the terms off the diagonal are left out.
    (h,) = curvature(loss(), conv.weight)
    assert not np.allclose(h.numpy(), diagonal_of_hessian(loss(), conv.weight), rtol=1e-2)


def leaf(*values: float, dtype: Any = np.float64) -> Tensor:
    return Tensor(np.array(values, dtype), requires_grad=True)


def test_fan_out_adds_over_uses() -> None:
    """Each use counts with its slope squared; the product of two uses is off the diagonal."""
    x = leaf(1.0, -2.0)
    z = 2.0 * x - 3.0 * x
    assert curvature(F.mse_loss(z, np.ones(2), "sum"), x)[0].numpy().tolist() == [26, 26]  # 2 (4 + 9)
    losses = F.mse_loss(2.0 * x, np.ones(2), "sum") + F.mse_loss(x / 2.0, np.ones(2), "sum")
    assert curvature(losses, x)[0].numpy().tolist() == [8.5, 8.5]  # 2 * 4 + 2 / 4


def test_a_shared_node_is_visited_once_it_is_complete() -> None:
    """A diamond: h of the shared node is the sum of both ways before it goes further down."""
    x = leaf(0.3)
    shared = 2.0 * x
    loss = F.mse_loss(shared * 3.0, np.zeros(1), "sum") + F.mse_loss(5.0 - shared, np.zeros(1), "sum")
    h_x, h_shared = curvature(loss, [x, shared])
    assert h_shared.item() == pytest.approx(2 * 9 + 2)
    assert h_x.item() == pytest.approx(4 * 20)


def test_a_loss_within_a_loss_keeps_both_terms() -> None:
    """The error of a penalty: h of the outer loss times the slope squared, and the gradient times the inner bend."""
    x = leaf(3.0)
    inner = F.mse_loss(x, np.array([1.0]))  # 4, slope 4
    assert curvature(F.mse_loss(inner, 1.0), x)[0].item() == pytest.approx(2 * 16 + 6 * 2)
    assert curvature(F.mse_loss(inner, 9.0), x)[0].item() == pytest.approx(2 * 16)  # the gradient is negative: no bend


def test_inputs_may_be_given_as_one_or_several_in_any_order() -> None:
    x, y = leaf(1.0), leaf(2.0)
    loss = F.mse_loss(3.0 * x, 0.0 * y)
    (alone,) = curvature(loss, x)
    assert alone.item() == 18
    assert [h.item() for h in curvature(loss, [y, x, y])] == [0, 18, 0]


def test_an_input_in_the_middle_of_a_graph() -> None:
    """What leads to the input is no part of its curvature: neither an op without a rule there, nor a loss."""
    x = leaf(0.2, 0.3)
    z = x.softmax()
    assert curvature(F.mse_loss(z, np.zeros(2), "sum"), z)[0].numpy().tolist() == [2, 2]
    penalties = F.rbf(x.reshape(1, 2), np.ones((1, 2)))
    with pytest.raises(ValueError, match="nothing on the way from the inputs is a loss"):
        curvature(penalties.sum(), penalties)


def test_an_op_without_rule_beside_the_way_does_not_matter() -> None:
    """Only what lies between the inputs and the loss needs a rule."""
    x, y = leaf(0.2, 0.3), leaf(0.5, 0.5)
    loss = F.mse_loss(x * y.softmax(), np.ones(2), "sum")
    np.testing.assert_allclose(curvature(loss, x)[0].numpy(), [0.5, 0.5])
    with pytest.raises(ValueError, match="op softmax has no curvature rule"):
        curvature(loss, [x, y])


def test_the_graph_is_kept_and_no_gradient_is_touched() -> None:
    parameters, loss = small_case("Eq. 9", 1, 2)
    value = loss()
    first = curvature(value, parameters)
    assert all(p.grad is None for p in parameters)
    second = curvature(value, parameters)
    value.backward()
    gradients = grad(loss(), parameters)
    for a, b, p, g in zip(first, second, parameters, gradients, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())
        assert p.grad is not None
        np.testing.assert_array_equal(p.grad.numpy(), g.numpy())
    with pytest.raises(ValueError, match="has been freed"):
        curvature(value, parameters)


def test_results_are_not_recorded() -> None:
    parameters, loss = small_case("cross_entropy", 1, 2)
    for h in curvature(loss(), parameters):
        assert not h.requires_grad
        assert (h.op, h.inputs, h.grad) == (None, (), None)


def test_within_no_grad() -> None:
    """A graph that was made before can be walked; one that was not made cannot."""
    parameters, loss = small_case("mse_loss", 1, 2)
    value = loss()
    expected = curvature(value, parameters)
    with no_grad():
        for a, b in zip(curvature(value, parameters), expected, strict=True):
            np.testing.assert_array_equal(a.numpy(), b.numpy())
        with pytest.raises(ValueError, match="curvature: the output does not require a gradient"):
            curvature(loss(), parameters)
    assert loss().requires_grad  # recording goes on


def test_within_detect_anomaly() -> None:
    parameters, loss = small_case("Eq. 9", 1, 2)
    expected = curvature(loss(), parameters)
    with detect_anomaly():
        for a, b in zip(curvature(loss(), parameters), expected, strict=True):
            np.testing.assert_array_equal(a.numpy(), b.numpy())


def test_hooks_are_not_called() -> None:
    """They see and change gradients, and no gradient of the loss is asked for here."""
    x = leaf(3.0)
    z = 2.0 * x
    expected = curvature(F.mse_loss(z, np.zeros(1)), x)[0].item()
    seen: list[Tensor] = []
    for tensor in (x, z):
        tensor.register_hook(lambda g: seen.append(g) or 100.0 * g)  # type: ignore[func-returns-value]
    assert curvature(F.mse_loss(z, np.zeros(1)), x)[0].item() == expected == 8
    assert not seen


@pytest.mark.parametrize("name", LOSSES)
def test_float32_stays_float32(name: str) -> None:
    parameters, loss = small_case(name, 2, 2)
    expected = curvature(loss(), parameters)
    for p in parameters:
        p.data = p.data.astype(np.float32)
    for h, right in zip(curvature(loss(), parameters), expected, strict=True):
        assert h.dtype == np.float32
        np.testing.assert_allclose(h.numpy(), right.numpy(), rtol=1e-3, atol=1e-4 * right.numpy().max())


def test_each_input_keeps_its_dtype() -> None:
    x, y = leaf(1.0, dtype=np.float32), leaf(2.0)
    h_x, h_y = curvature(F.mse_loss(x * y, np.zeros(1)), [x, y])
    assert (h_x.dtype, h_y.dtype) == (np.float32, np.float64)
    assert (h_x.item(), h_y.item()) == (8, 2)


def test_deep_graphs() -> None:
    x = leaf(1.0)
    y = x
    for _ in range(3000):
        y = y + 1.0
    assert curvature(F.mse_loss(y, np.zeros(1)), x)[0].item() == 2


# Refusals


@pytest.mark.parametrize(
    ("make", "error", "sentence"),
    [
        (lambda x: (1.0, x), TypeError, "curvature: output is float, not a Tensor"),
        (lambda x: (F.mse_loss(x, np.zeros(2)), [1.0]), TypeError, "curvature: input 0 is float, not a Tensor"),
        (
            lambda x: (F.mse_loss(x, np.zeros(2), "none"), x), ValueError,
            r"curvature: the output has shape \(2,\); only one element .*\.sum\(\)",
        ),
        (lambda x: (Tensor(1.0), x), ValueError, "curvature: the output does not require a gradient"),
        (
            lambda x: (F.mse_loss(x, np.zeros(2)), [x, leaf(1.0)]), ValueError,
            r"curvature: input 1, of shape \(1,\), was not used to compute the output",
        ),
        (
            lambda x: (F.mse_loss(x, y := Tensor(np.zeros(2))), [y]), ValueError,
            r"curvature: input 0, of shape \(2,\), does not require a gradient",
        ),
        (lambda x: ((2.0 * x).sum(), x), ValueError, "curvature: nothing on the way from the inputs is a loss"),
        (lambda x: (y := x.sum(), y), ValueError, "curvature: nothing on the way from the inputs is a loss"),
        (
            lambda x: ((F.mse_loss(x, np.zeros(2)) - (z := 2.0 * leaf(1.0))).sum(), z), ValueError,
            "curvature: nothing on the way from the inputs is a loss",
        ),
        (lambda x: (F.mse_loss(x**2, np.zeros(2)), x), ValueError, "curvature: op power has no curvature rule"),
        (lambda x: (-x.log_softmax()[0], x), ValueError, "curvature: op log_softmax has no curvature rule"),
        (lambda x: (F.mse_loss(x * x, np.ones(2)), x), ValueError, "multiply: curvature takes the factors .* x \\* x"),
        (lambda x: (F.mse_loss(x.var(), 1.0), x), ValueError, "multiply: curvature takes the factors"),
    ],
)  # fmt: skip
def test_refused_in_one_sentence(
    make: Callable[[Tensor], tuple[Any, Any]], error: type[Exception], sentence: str
) -> None:
    output, inputs = make(leaf(0.5, 2.0))
    with pytest.raises(error, match=f"^{sentence}") as caught:
        curvature(output, inputs)
    assert "\n" not in str(caught.value)


def test_a_product_of_two_tensors_is_no_square() -> None:
    """Also where both hold the same numbers, or are views of one another."""
    x = leaf(3.0)
    assert curvature(F.mse_loss(x * x.detach(), np.zeros(1)), x)[0].item() == 18
    assert curvature(F.mse_loss(x * (1.0 * x), np.zeros(1)), x)[0].item() == 36


def test_a_wrong_rule_names_its_op() -> None:
    class Wrong(Seeded):
        """y = 0, its curvature of a wrong shape."""

        signature = "wrong(x[N]) -> y[]"

    del REGISTRY["wrong"]
    x = leaf(1.0, 2.0)
    for h, sentence in (
        (Tensor(np.ones(3)), r"wrong: curvature returned float64 of shape \(3,\) for x; expected .* of shape \(2,\)"),
        (Tensor(np.ones(2, np.float32)), "wrong: curvature returned float32 of shape .* expected float64"),
        (np.ones(2), "wrong: curvature returned ndarray for x; expected a Tensor"),
        (None, "wrong: no gradient is defined for x"),
        ((Tensor(np.ones(2)),) * 2, "wrong: curvature returned 2 gradients; expected 1"),
    ):
        with pytest.raises((ValueError, TypeError), match=sentence):
            curvature(Wrong(h, Tensor(np.zeros(2)))(x), x)  # type: ignore[arg-type]
