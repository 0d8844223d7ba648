"""Curvatures: each op's second rule, the network of 1998 by the paper's equations, and what `curvature` promises.

A rule is held against the recursion itself: for each element x_j, sum over outputs i of hy_i (dy_i/dx_j)^2, the slopes
being central differences of the op's oracle. LeNet-5 of 1998 is held against Eqs. 22-27 of the paper, summed over its
340,908 connections one by one.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models import LeNet5_1998
from models.lenet5_1998 import TABLE_I
from tests.oracles import ORACLES
from tests.refusals import refused
from tests.test_ops import OPS, running
from tinygrad_lenet import Op, Tensor, curvature, data, detect_anomaly, grad, graph, nn, no_grad, testing
from tinygrad_lenet import functional as F
from tinygrad_lenet.op import REAL, REGISTRY


def parsed(op: Op | type[Op]) -> Any:
    """The op's signature, taken apart."""
    return op.parsed


RULES = [name for name in OPS if REGISTRY[name].curvature is not Op.curvature]
NO_RULE = [name for name in OPS if REGISTRY[name].curvature is Op.curvature]
RULE_INPUTS = [
    (name, i) for name in RULES for i, x in enumerate(parsed(REGISTRY[name]).inputs)
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
    operands = parsed(op).specs(len(arrays))
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
    fields = dataclasses.fields(op) if dataclasses.is_dataclass(op) else ()
    parameters = {field.name: getattr(op, field.name) for field in fields}

    def y(step: float) -> np.ndarray:
        inputs = [a.copy() for a in arrays]
        inputs[i][j] += step
        return np.asarray(ORACLES[op.name](*inputs, **parameters))

    bends = (y(1e-3) - 2 * y(0) + y(-1e-3)) / 1e-6 if op.curved else np.zeros(())
    slopes = (y(1e-4) - y(-1e-4)) / 2e-4
    return slopes, np.broadcast_to(bends, slopes.shape)


def recursion(op: Op, hy: np.ndarray, gy: np.ndarray, slopes: np.ndarray, bends: np.ndarray, power: int = 2) -> float:
    """h of one element of an input, in plain loops.

    The second derivatives of a loss are added up, each times its gradient, within a sample (the first axis of y), where
    the sum counts if it is positive; ops that take any axes have a sample an element.
    """
    any_rank = parsed(op).inputs[0].any_rank
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


@pytest.mark.parametrize(("name", "i"), RULE_INPUTS)
def test_a_wrong_rule_would_be_noticed(name: str, i: int) -> None:
    """One that is off by 1%, or that forgot to square, unless every slope is 0 or 1 and that is no mistake."""
    scaled, unsquared, slopes_seen = 0, 0, set()

    @settings(max_examples=25, derandomize=True)  # shapes may be empty, or lack an input that is optional
    @given(testing.cases(REGISTRY[name]), st.integers(0, 2**32 - 1))
    def compare(case: testing.Case, seed: int) -> None:
        nonlocal scaled, unsquared
        op, arrays = case
        rng = np.random.default_rng(seed)
        if i >= len(arrays) or not arrays[i].size:
            return
        hy, gy = draw_seeds(op(*map(Tensor, arrays)).shape, rng)
        elements = draw_elements(arrays[i], rng)[:3]
        derivatives = [local_derivatives(op, arrays, i, j) for j in elements]
        right = [recursion(op, hy, gy, *each) for each in derivatives]
        forgot = np.zeros(arrays[i].shape)
        for j, each in zip(elements, derivatives, strict=True):
            forgot[j] = recursion(op, hy, gy, *each, power=1)
            slopes_seen.update(round(float(slope), 6) for slope in each[0].ravel())
        scaled += noticed(1.01 * found(op, arrays, hy, gy, "cpu")[i], elements, right)
        unsquared += noticed(forgot, elements, right)

    compare()
    assert scaled
    assert unsquared or slopes_seen <= {0.0, 1.0}


def noticed(h: np.ndarray, elements: list[tuple[int, ...]], expected: list[float]) -> bool:
    try:
        assert_agrees(h, elements, expected, "")
    except AssertionError:
        return True
    return False


@pytest.mark.parametrize("name", NO_RULE)
def test_op_without_rule_is_named(name: str) -> None:
    """Before anything is computed, and whichever of its inputs it is that is asked for."""

    @settings(max_examples=5)
    @given(testing.cases(REGISTRY[name]))
    def refuses(case: testing.Case) -> None:
        op, arrays = case
        for i in real_inputs(op, arrays):
            x = Tensor(arrays[i], requires_grad=True)
            y = op(*arrays[:i], x, *arrays[i + 1 :])
            loss = F.mse_loss(y, np.zeros(y.shape), reduction="sum")
            with pytest.MonkeyPatch.context() as patch, refused(ValueError, f"curvature {name} rule"):
                for rule in ("backward", "curvature"):
                    patch.setattr(REGISTRY["mse_loss"], rule, lambda *_: pytest.fail("a rule was called"))
                curvature(loss, x)

    refuses()


def test_some_ops_have_rules_and_some_have_none() -> None:
    assert len(RULES) > 30
    assert len(NO_RULE) > 10


def test_the_rule_itself_says_that_there_is_none() -> None:
    x = Tensor([1.0])
    with refused(ValueError, "curvature softmax rule"):
        REGISTRY["softmax"](0).curvature(x, x, x, x)


# LeNet-5 of 1998

A, S = 1.7159, 2 / 3
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
        "c3": convolution(6, 14, TABLE_I),
        "s4": subsampling(16, 10),
        "c5": convolution(16, 5, [range(16)] * 120),
        "f6": full(120, 84),
    }
    return {name: tuple(np.array(list(each)).T) for name, each in lists.items()}  # type: ignore[misc]


def by_the_paper(
    model: LeNet5_1998, image: np.ndarray, label: int, j: float | None, share: float
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """h_kk of every parameter for one image, and the gradient, by sums over connections: Eqs. 19 and 22-27.

    The loss is taken of this share of the penalties.
    """
    u = {
        name: np.concatenate([getattr(model, name).weight.numpy().ravel(), getattr(model, name).bias.numpy()])
        for name in connections()
    }
    x, states = np.append(image.ravel(), 1.0), {}  # the last one for BIAS
    for name, (unit, below, k) in connections().items():
        if name in ("s2", "s4"):
            x[:BIAS] /= 4  # they take the mean of their windows
        a = np.bincount(unit, u[name][k] * x[below])
        states[name] = x, a
        x = np.append(A * np.tanh(S * a), 1.0)

    f6, codes = x[:-1], model.output.centers.numpy()
    penalties = [share * sum((f6[i] - code[i]) ** 2 for i in range(84)) for code in codes]
    if j is None:  # Eq. 8: dE/dy is 1 for the right class, and E is linear in the penalties
        g_y, h_y = np.eye(10)[label], np.zeros(10)
    else:  # Eq. 9: dE/dy_i = [i = D] - p_i, d2E/dy_i2 = p_i (1 - p_i)
        terms = [math.exp(-y) for y in penalties]
        p = np.array(terms) / (math.exp(-j) + sum(terms))
        g_y, h_y = np.eye(10)[label] - p, p * (1 - p)
    g_x, h_x = np.zeros(84), np.zeros(84)
    for i in range(84):
        for y in range(10):
            g_x[i] += g_y[y] * share * 2 * (f6[i] - codes[y, i])
            h_x[i] += h_y[y] * (share * 2 * (f6[i] - codes[y, i])) ** 2
        h_x[i] += max(0.0, share * 2 * sum(g_y))  # d2/dx2 of each penalty is 2
    if j is None and share == 0.5:
        assert (h_x == 1).all()  # what the recipe of 1998 sets its rates by

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
        slopes = u[name][k] / 4 if name in ("s2", "s4") else u[name][k]
        g_x = np.bincount(below[inputs], (g_a[unit] * slopes)[inputs], minlength=x.size - 1)
        h_x = np.bincount(below[inputs], (h_a[unit] * slopes**2)[inputs], minlength=x.size - 1)  # Eq. 27
    return g, h


@pytest.mark.parametrize(
    ("j", "share"), [(None, 1), (84.0, 1), (None, 0.5), (5.0, 0.5)], ids=["Eq. 8", "Eq. 9", "half 8", "half 9"]
)
def test_lenet5_of_1998_by_the_equations_of_the_paper(j: float | None, share: float) -> None:
    """All 60,000 curvatures, the mean over two digits, and the gradients by the same connections."""
    images, labels = data.digits("test")
    x, labels = data.to_input(images[[3, 8]]).astype(np.float64), labels[[3, 8]]
    model = LeNet5_1998(rng=0)
    for tensor in (*model.parameters(), model.output.centers):
        tensor.data = tensor.data.astype(np.float64)
    loss = F.penalty_loss(share * model(Tensor(x)), labels, j)
    parameters = dict(model.named_parameters())
    h = dict(zip(parameters, curvature(loss, list(parameters.values())), strict=True))
    loss.backward()
    g = {name: p.grad for name, p in parameters.items()}
    single = [by_the_paper(model, x[n, 0], int(labels[n]), j, share) for n in range(2)]
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


# A network that has all that the one of 1998 has, at a small size


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


PENALTIES = ("Eq. 8", "Eq. 9")
LOSSES: dict[str, Callable[[Tensor, np.ndarray], Tensor]] = {
    "Eq. 8": lambda y, labels: F.penalty_loss(y, labels),
    "Eq. 9": lambda y, labels: F.penalty_loss(y, labels, j=2.0),
    "cross_entropy": lambda y, labels: F.cross_entropy(y, labels, label_smoothing=0.1),
    "mse_loss": lambda y, labels: F.mse_loss(y, F.one_hot(labels, 3, y.dtype)),
}


def small_case(name: str, seed: int, n: int, dtype: Any = np.float64) -> tuple[list[Tensor], Callable[[slice], Tensor]]:
    """The parameters of a drawn network, and its loss on a slice of n drawn patterns."""
    model, rng = Small(seed, name in PENALTIES), np.random.default_rng(seed + 1)
    images, labels = rng.uniform(-1, 1, (n, 2, 6, 6)).astype(dtype), rng.integers(0, 3, n)
    parameters: list[Tensor] = list(model.parameters())
    for p in parameters:
        p.data = p.data.astype(dtype)
    return parameters, lambda part=slice(None): LOSSES[name](model(Tensor(images[part])), labels[part])


def assert_same(found: Sequence[Tensor], expected: Sequence[Tensor], factor: float = 1.0, rtol: float = 0.0) -> None:
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a.numpy(), factor * b.numpy(), rtol=rtol, atol=0.1 * rtol * b.numpy().max())


@pytest.mark.parametrize("name", LOSSES)
@fewer
@given(seed=st.integers(0, 2**32 - 2), n=st.integers(1, 4))
def test_never_negative_and_the_mean_of_the_samples(name: str, seed: int, n: int) -> None:
    """A mean over samples has the mean of their curvatures, each taken alone."""
    parameters, loss = small_case(name, seed, n)
    alone = [curvature(loss(slice(i, i + 1)), parameters) for i in range(n)]
    for k, h in enumerate(curvature(loss(), parameters)):
        assert (h.numpy() >= 0).all()
        assert h.numpy().max() > 0
        np.testing.assert_allclose(h.numpy(), np.mean([each[k].numpy() for each in alone], axis=0), rtol=1e-10)


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_times_a_factor_has_curvatures_times_it(name: str) -> None:
    parameters, loss = small_case(name, 5, 3)
    for factor in (0.25, 3.0, 1e-6):
        assert_same(curvature(factor * loss(), parameters), curvature(loss(), parameters), factor, rtol=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_float32_stays_float32(name: str) -> None:
    parameters, loss = small_case(name, 2, 2, np.float32)
    double, loss64 = small_case(name, 2, 2)
    h = curvature(loss(), parameters)
    assert {each.dtype for each in h} == {np.dtype(np.float32)}
    assert_same(h, curvature(loss64(), double), rtol=1e-3)


def diagonal_of_hessian(loss: Tensor, x: Tensor) -> np.ndarray:
    (g,) = grad(loss, x, create_graph=True)
    flat = g.reshape(-1)
    return np.array([grad(flat[i], x, create_graph=True)[0].numpy().ravel()[i] for i in range(x.size)]).reshape(x.shape)


@pytest.mark.parametrize("name", ["cross_entropy", "mse_loss", "Eq. 8"])
def test_exact_for_linear_models(name: str) -> None:
    """Where only the loss bends, nothing is left out: the true second derivatives, found by differentiating twice."""
    rng = np.random.default_rng(3)
    images, labels, centers = rng.normal(size=(4, 1, 5, 5)), np.array([0, 2, 1, 1]), rng.normal(size=(3, 3))
    conv, output = nn.Conv2d(1, 2, 4, dtype=np.float64, rng=rng), nn.Linear(8, 3, dtype=np.float64, rng=rng)

    def loss() -> Tensor:
        y = output(conv(Tensor(images)).reshape(4, 8))
        return LOSSES[name](F.rbf(y, centers) if name in PENALTIES else y, labels)

    for x in output.parameters():
        (h,) = curvature(loss(), x)
        np.testing.assert_allclose(h.numpy(), diagonal_of_hessian(loss(), x), rtol=1e-10)
        assert h.numpy().min() > 0
    # One layer further down, a weight reaches several outputs, and the terms off the diagonal are left out.
    (h,) = curvature(loss(), conv.weight)
    assert not np.allclose(h.numpy(), diagonal_of_hessian(loss(), conv.weight), rtol=1e-2)


# By pencil


def leaf(*values: float, dtype: Any = np.float64) -> Tensor:
    return Tensor(np.array(values, dtype), requires_grad=True)


def squares(z: Tensor, target: float = 0.0) -> Tensor:
    """The sum of (z - target)^2, whose second derivatives are 2."""
    return F.mse_loss(z, np.full(z.shape, target), "sum")


def weighed_twice(x: Tensor) -> Tensor:
    inner = squares(x, 1.0)  # 4 at x = 3, its slope 4
    return squares(2.0 * inner, 1.0) + squares(3.0 * inner, 1.0)


def a_diamond(x: Tensor) -> Tensor:
    shared = 2.0 * x
    return squares(shared * 3.0) + squares(5.0 - shared)


def deep(x: Tensor) -> Tensor:
    for _ in range(3000):
        x = x + 1.0
    return squares(x)


@pytest.mark.parametrize(
    ("loss", "x", "expected"),
    [
        # Each use counts with its slope squared; the product of two uses is off the diagonal.
        (lambda x: squares(2.0 * x - 3.0 * x, 1.0), [1.0, -2.0], [2 * (4 + 9)] * 2),
        (lambda x: squares(2.0 * x, 1.0) + squares(x / 2.0, 1.0), [1.0, -2.0], [2 * 4 + 2 / 4] * 2),
        (a_diamond, [0.3], [4 * (2 * 9 + 2)]),
        # Of -(x - t)^2, nothing is left.
        (lambda x: -3.0 * squares(x), [0.5, 2.0], [0, 0]),
        # h of the outer loss times the slope squared, and the gradient times the inner bend, unless that is negative.
        (lambda x: squares(squares(x, 1.0), 1.0), [3.0], [2 * 16 + 6 * 2]),
        (lambda x: squares(squares(x, 1.0), 9.0), [3.0], [2 * 16]),
        (weighed_twice, [3.0], [(2 * 4 + 2 * 9) * 16 + (2 * 7 * 2 + 2 * 11 * 3) * 2]),
        # A product of two tensors is no square, also where both hold the same numbers.
        (lambda x: squares(x * x.detach()), [3.0], [2 * 9]),
        (lambda x: squares(x * (1.0 * x)), [3.0], [2 * 9 + 2 * 9]),
        (deep, [1.0], [2]),
    ],
)
def test_by_pencil(loss: Callable[[Tensor], Tensor], x: list[float], expected: list[float]) -> None:
    (h,) = curvature(loss(y := leaf(*x)), y)
    np.testing.assert_allclose(h.numpy(), expected, rtol=1e-12)


def test_inputs_may_be_given_as_one_or_several_in_any_order() -> None:
    """Each keeps its dtype; those in the middle of the graph count too."""
    x, y = leaf(1.0, dtype=np.float32), leaf(2.0)
    z = x * y
    loss = squares(3.0 * z)
    assert curvature(loss, y)[0].item() == 18
    found = curvature(loss, [y, x, z, y])
    assert [h.item() for h in found] == [18, 72, 18, 18]
    assert [h.dtype for h in found] == [np.float64, np.float32, np.float64, np.float64]


def test_only_what_lies_between_the_inputs_and_the_loss_needs_a_rule() -> None:
    """What leads to an input, or to the loss beside it, is no part of its curvature, be it without a rule or a loss."""
    x, y = leaf(0.2, 0.3), leaf(0.5, 0.5)
    z = x.softmax()
    np.testing.assert_allclose(curvature(squares(z), z)[0].numpy(), [2, 2])
    loss = squares(x * y.softmax(), 1.0)
    np.testing.assert_allclose(curvature(loss, x)[0].numpy(), [0.5, 0.5])
    with refused(ValueError, "softmax rule"):
        curvature(loss, [x, y])
    penalties = F.rbf(x.reshape(1, 2), np.ones((1, 2)))
    with refused(ValueError, "loss"):
        curvature(penalties.sum(), penalties)


# Beside the graph


def test_the_graph_is_kept_and_no_gradient_is_touched() -> None:
    parameters, loss = small_case("Eq. 9", 1, 2)
    value = loss()
    first = curvature(value, parameters)
    assert all(p.grad is None for p in parameters)
    assert not any(h.requires_grad or h.op or h.grad for h in first)
    assert_same(curvature(value, parameters), first)
    value.backward()
    assert_same([p.grad for p in parameters if p.grad is not None], grad(loss(), parameters))
    with refused(ValueError, "freed"):
        curvature(value, parameters)


def test_within_no_grad_and_detect_anomaly() -> None:
    """A graph that was made before can be walked; one that was not made cannot."""
    parameters, loss = small_case("mse_loss", 1, 2)
    value = loss()
    expected = curvature(value, parameters)
    with no_grad():
        assert_same(curvature(value, parameters), expected)
        with refused(ValueError, "curvature output gradient"):
            curvature(loss(), parameters)
    assert loss().requires_grad  # recording goes on
    with detect_anomaly():
        assert_same(curvature(loss(), parameters), expected)
    with graph.observed(graph.Observer()):
        assert_same(curvature(value, parameters), expected)


def test_hooks_are_not_called() -> None:
    """They see and change gradients, and no gradient of the loss is asked for here."""
    x = leaf(3.0)
    z = 2.0 * x
    for tensor in (x, z):
        tensor.register_hook(lambda g: pytest.fail("a hook was called"))
    assert curvature(squares(z), x)[0].item() == 8


# Refusals


@pytest.mark.parametrize(
    ("make", "error", "names"),
    [
        (lambda x: (1.0, x), TypeError, "curvature output float Tensor"),
        (lambda x: (squares(x), [1.0]), TypeError, "curvature input 0 float Tensor"),
        (lambda x: (F.mse_loss(x, np.zeros(2), "none"), x), ValueError, "curvature output (2,) .sum()"),
        (lambda x: (Tensor(1.0), x), ValueError, "curvature output gradient"),
        (lambda x: (squares(x), [x, leaf(1.0)]), ValueError, "curvature input 1 (1,)"),
        (lambda x: (F.mse_loss(x, y := Tensor(np.zeros(2))), [y]), ValueError, "curvature input 0 (2,) gradient"),
        (lambda x: ((2.0 * x).sum(), x), ValueError, "curvature loss"),
        (lambda x: (y := x.sum(), y), ValueError, "curvature loss"),
        (lambda x: ((squares(x) - (z := 2.0 * leaf(1.0))).sum(), z), ValueError, "curvature loss"),
        (lambda x: (squares(x.softmax()), x), ValueError, "curvature softmax rule"),
        (lambda x: (-x.log_softmax()[0], x), ValueError, "curvature log_softmax rule"),
        (lambda x: (squares(x * x), x), ValueError, "multiply curvature"),
        (lambda x: (squares(x.var()), x), ValueError, "curvature"),
    ],
)
def test_refused_in_one_sentence(make: Callable[[Tensor], tuple[Any, Any]], error: type[Exception], names: str) -> None:
    output, inputs = make(leaf(0.5, 2.0))
    with refused(error, names):
        curvature(output, inputs)


def test_a_wrong_rule_names_its_op() -> None:
    class Wrong(Seeded):
        """y = 0, its curvature of a wrong shape."""

        signature = "wrong(x[N]) -> y[]"

    del REGISTRY["wrong"]
    x = leaf(1.0, 2.0)
    for h, error, names in (
        (Tensor(np.ones(3)), ValueError, "float64 (3,) (2,)"),
        (Tensor(np.ones(2, np.float32)), ValueError, "float32 float64"),
        (np.ones(2), TypeError, "ndarray Tensor"),
        (None, ValueError, "gradient"),
        ((Tensor(np.ones(2)),) * 2, ValueError, "2 1"),
    ):
        with refused(error, f"wrong {names}"):
            curvature(Wrong(h, Tensor(np.zeros(2)))(x), x)  # type: ignore[arg-type]
