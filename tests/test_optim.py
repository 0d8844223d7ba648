"""Optimisers and schedules: PyTorch's numbers to the last digits, resumable, in place, and clear about bad settings."""

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.strict import no_host_reads
from tinygrad_lenet import Tensor, curvature, nn
from tinygrad_lenet import functional as F
from tinygrad_lenet.optim import SGD, Adam, AdamW, OneCycle, Optimizer, PassRates, StepLR, StochasticDiagonalLM

SHAPES = [(3, 2), (), (4,), (2, 1, 3, 3), (5,)]

SETTINGS: list[tuple[str, dict[str, Any]]] = [
    ("SGD", {"lr": 0.1}),
    ("SGD", {"lr": 0.1, "weight_decay": 0.03}),
    ("SGD", {"lr": 0.1, "momentum": 0.9}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.03}),
    ("SGD", {"lr": 0.1, "momentum": 0.8, "nesterov": True}),
    ("SGD", {"lr": 0.1, "momentum": 0.8, "nesterov": True, "weight_decay": 0.03}),
    ("Adam", {}),
    ("Adam", {"lr": 0.05, "betas": (0.5, 0.7), "eps": 1e-3, "weight_decay": 0.1}),
    ("Adam", {"lr": 0.05, "betas": (0.0, 0.9)}),
    ("AdamW", {}),
    ("AdamW", {"lr": 0.05, "betas": (0.8, 0.95), "weight_decay": 0.2}),
]
OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {"SGD": SGD, "Adam": Adam, "AdamW": AdamW}


def tensors(rng: np.random.Generator, dtype: Any = np.float64) -> list[Tensor]:
    return [Tensor(np.asarray(rng.normal(size=shape), dtype), requires_grad=True) for shape in SHAPES]


def give_gradients(params: list[Tensor], rng: np.random.Generator, missing: float = 0.0) -> None:
    for p in params:
        gradient = Tensor(np.asarray(rng.normal(size=p.shape), p.dtype))
        p.grad = None if rng.random() < missing else gradient


@pytest.mark.parametrize("missing", [0.0, 0.4])
@pytest.mark.parametrize(("name", "settings"), SETTINGS)
def test_steps_are_those_of_pytorch(name: str, settings: dict[str, Any], missing: float) -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    params = tensors(rng)
    peers = [torch.tensor(p.numpy().copy(), requires_grad=True) for p in params]
    ours = OPTIMIZERS[name](params, **settings)
    theirs = getattr(torch.optim, name)(peers, **settings)
    for _ in range(20):
        give_gradients(params, rng, missing)
        for p, peer in zip(params, peers, strict=True):
            peer.grad = None if p.grad is None else torch.tensor(p.grad.numpy().copy())
        ours.step()
        theirs.step()
        for p, peer in zip(params, peers, strict=True):
            np.testing.assert_allclose(p.numpy(), peer.detach().numpy(), rtol=1e-12, atol=1e-14)


def test_a_parameter_without_gradient_keeps_value_and_state() -> None:
    rng = np.random.default_rng(1)
    params = tensors(rng)
    optimizer = AdamW(params, lr=0.1, weight_decay=0.5)
    give_gradients(params, rng)
    optimizer.step()
    params[2].grad = None
    value, state = params[2].numpy().copy(), optimizer.state_dict()
    optimizer.step()
    after = optimizer.state_dict()
    np.testing.assert_array_equal(params[2].numpy(), value)
    np.testing.assert_array_equal(after["tensors"]["2.m"], state["tensors"]["2.m"])
    assert after["steps"] == [2, 2, 1, 2, 2]
    optimizer.zero_grad()
    assert all(p.grad is None for p in params)
    optimizer.step()
    assert optimizer.state_dict()["steps"] == [2, 2, 1, 2, 2]


def test_dtypes_are_kept_and_may_be_mixed() -> None:
    rng = np.random.default_rng(2)
    mixed = [p for pair in zip(tensors(rng, np.float32), tensors(rng), strict=True) for p in pair]
    apart = [Tensor(p.numpy().copy(), requires_grad=True) for p in mixed]
    together = Adam(mixed, lr=0.1)
    separate = [Adam([p], lr=0.1) for p in apart]
    for _ in range(3):
        give_gradients(mixed, rng)
        for p, q in zip(mixed, apart, strict=True):
            q.grad = p.grad
        together.step()
        for optimizer in separate:
            optimizer.step()
    for p, q in zip(mixed, apart, strict=True):
        assert p.dtype == q.dtype
        np.testing.assert_array_equal(p.numpy(), q.numpy())


def test_a_step_writes_in_place_and_leaves_gradients_alone() -> None:
    rng = np.random.default_rng(3)
    memory = rng.normal(size=(4, 6))
    p = Tensor(memory.T[::2], requires_grad=True)  # neither contiguous nor alone in its memory
    array, before = p.data, memory.copy()
    p.grad = Tensor(np.ones((3, 4)))
    SGD([p], lr=0.5).step()
    assert p.data is array
    np.testing.assert_array_equal(memory.T[::2], before.T[::2] - 0.5)
    np.testing.assert_array_equal(memory.T[1::2], before.T[1::2])
    np.testing.assert_array_equal(p.grad.numpy(), np.ones((3, 4)))


def test_two_optimisers_may_share_parameters() -> None:
    p = Tensor(np.zeros(3), requires_grad=True)
    first, second = SGD([p], lr=1.0), SGD([p], lr=0.25)
    p.grad = Tensor(np.ones(3))
    first.step()
    second.step()
    np.testing.assert_array_equal(p.numpy(), np.full(3, -1.25))


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_state_follows_a_parameter_whose_array_is_replaced(dtype: Any) -> None:
    rng = np.random.default_rng(4)
    params, rng_copy = tensors(rng), np.random.default_rng(4)
    others = tensors(rng_copy)
    ours, plain = Adam(params, lr=0.1), Adam(others, lr=0.1)
    for i in range(4):
        if i == 2:
            params[1].data = params[1].data.astype(dtype)  # a new array, as after module.to(device)
        give_gradients(others, rng)
        for p, q in zip(params, others, strict=True):
            assert q.grad is not None
            p.grad = Tensor(q.grad.numpy().astype(p.dtype))
        ours.step()
        plain.step()
    for p, q in zip(params, others, strict=True):
        np.testing.assert_allclose(p.numpy(), q.numpy(), rtol=1e-12 if p.dtype == np.float64 else 1e-5)
    params[1].data = np.zeros((7,))
    with pytest.raises(ValueError, match=r"parameter 1 now has shape \(7,\); it had \(\) when"):
        ours.step()


@pytest.mark.parametrize(("name", "settings"), SETTINGS)
def test_resuming_from_a_state_continues_bit_for_bit(name: str, settings: dict[str, Any]) -> None:
    rng = np.random.default_rng(5)
    params = tensors(rng)
    optimizer = OPTIMIZERS[name](params, **settings)
    for _ in range(3):
        give_gradients(params, rng, missing=0.3)
        optimizer.step()
    optimizer.lr = 0.07
    copies = [Tensor(p.numpy().copy(), requires_grad=True) for p in params]
    resumed = OPTIMIZERS[name](copies, **settings)
    state = optimizer.state_dict()
    resumed.load_state_dict(state)
    assert resumed.lr == 0.07
    for _ in range(3):
        give_gradients(params, rng, missing=0.3)
        for p, q in zip(params, copies, strict=True):
            q.grad = p.grad
        optimizer.step()
        resumed.step()
    for p, q in zip(params, copies, strict=True):
        np.testing.assert_array_equal(p.numpy(), q.numpy())
    assert all(type(array) is np.ndarray and array.base is None for array in state["tensors"].values())


def test_a_state_that_does_not_fit_changes_nothing() -> None:
    params = tensors(np.random.default_rng(6))
    optimizer = Adam(params, lr=0.1)
    good = optimizer.state_dict()
    bad = {name: np.ones_like(array) for name, array in good["tensors"].items()}
    del bad["0.m"]
    bad |= {"9.m": np.ones(1), "2.v": np.ones(3)}
    message = r"0\.m is missing; 9\.m is unexpected; 2\.v has shape \(3,\), expected \(4,\)"
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(good | {"tensors": bad, "lr": 0.5})
    assert optimizer.lr == 0.1
    assert all(not array.any() for array in optimizer.state_dict()["tensors"].values())
    for wrong, words in (
        ({"algorithm": "SGD"}, "the state is that of 'SGD'; expected 'Adam'"),
        ({"steps": [1]}, "the state is for 1 parameters; expected 5"),
        ({"lr": -1.0}, "lr is -1.0; expected a finite number above 0"),
        ({"more": 1}, r"the state has .*'more'.*; expected"),
    ):
        with pytest.raises(ValueError, match=words):
            optimizer.load_state_dict(good | wrong)
    with pytest.raises(TypeError, match="the state is list"):
        optimizer.load_state_dict([])  # type: ignore[arg-type]


P = Tensor(1.0, requires_grad=True)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: SGD([], 0.1), ValueError, "SGD: params is empty"),
        (lambda: SGD(P, 0.1), TypeError, "SGD: params is Tensor; expected tensors, such as model.parameters"),
        (lambda: SGD(nn.Tanh(), 0.1), TypeError, "SGD: params is Tanh; expected tensors"),  # type: ignore[arg-type]
        (lambda: SGD([("w", P)], 0.1), TypeError, "parameter 0 is tuple"),  # type: ignore[list-item]
        (lambda: SGD([P, P], 0.1), ValueError, "parameter 1 is parameter 0 again"),
        (lambda: SGD([Tensor(np.arange(3))], 0.1), ValueError, "parameter 0 has dtype int64"),
        (lambda: SGD([P * 2], 0.1), ValueError, "parameter 0 was computed by multiply"),
        (lambda: SGD([P], 0), ValueError, "SGD: lr is 0; expected a finite number above 0"),
        (lambda: SGD([P], -1), ValueError, "lr is -1"),
        (lambda: Adam([P], math.nan), ValueError, "Adam: lr is nan"),
        (lambda: Adam([P], math.inf), ValueError, "Adam: lr is inf"),
        (lambda: Adam([P], "fast"), TypeError, "lr is 'fast'; expected a number"),  # type: ignore[arg-type]
        (lambda: Adam([P], True), TypeError, "lr is True"),
        (lambda: SGD([P], 0.1, momentum=1), ValueError, "momentum is 1; expected .* at least 0 and below 1"),
        (lambda: SGD([P], 0.1, momentum=-0.1), ValueError, "momentum is -0.1"),
        (lambda: SGD([P], 0.1, nesterov=True), ValueError, "nesterov is True and momentum 0"),
        (lambda: SGD([P], 0.1, weight_decay=-1), ValueError, "weight_decay is -1"),
        (lambda: Adam([P], betas=(0.9, 1.0)), ValueError, "each of betas is 1.0"),
        (lambda: Adam([P], betas=(0.9,)), ValueError, "expected two numbers"),  # type: ignore[arg-type]
        (lambda: AdamW([P], eps=-1e-8), ValueError, "AdamW: eps is -1e-08"),
        (lambda: StochasticDiagonalLM([P], mu=0), ValueError, "StochasticDiagonalLM: mu is 0; expected .* above 0"),
        (lambda: StochasticDiagonalLM([P], mu=-0.02), ValueError, "StochasticDiagonalLM: mu is -0.02"),
        (lambda: StochasticDiagonalLM([P], mu=math.nan), ValueError, "StochasticDiagonalLM: mu is nan"),
        (lambda: StochasticDiagonalLM([P], mu=math.inf), ValueError, "StochasticDiagonalLM: mu is inf"),
        (lambda: StochasticDiagonalLM([P], mu="a"), TypeError, "mu is 'a'; expected a number"),  # type: ignore[arg-type]
        (lambda: StochasticDiagonalLM([P], mu=True), TypeError, "StochasticDiagonalLM: mu is True"),
        (lambda: StochasticDiagonalLM([P], lr=0), ValueError, "StochasticDiagonalLM: lr is 0; expected .* above 0"),
        (lambda: StochasticDiagonalLM([P], lr=-1), ValueError, "StochasticDiagonalLM: lr is -1"),
        (lambda: StochasticDiagonalLM([P], lr=math.nan), ValueError, "StochasticDiagonalLM: lr is nan"),
        (lambda: StochasticDiagonalLM([]), ValueError, "StochasticDiagonalLM: params is empty"),
    ],
)
def test_bad_settings_are_refused(make: Callable[[], Optimizer], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        make()


def test_bad_changes_are_refused() -> None:
    p = Tensor(np.zeros((2, 3)), requires_grad=True)
    q = Tensor(np.zeros(2), requires_grad=True)
    optimizer = SGD([q, p], lr=0.1)
    with pytest.raises(ValueError, match="lr is 0"):
        optimizer.lr = 0
    assert optimizer.lr == 0.1
    q.grad, p.grad = Tensor(np.ones(2)), Tensor(np.ones(3))
    with pytest.raises(ValueError, match=r"gradient of parameter 1 has shape \(3,\); expected .* \(2, 3\)"):
        optimizer.step()
    assert not q.numpy().any()  # nothing was updated
    assert repr(optimizer) == "SGD(2 parameters of 8 elements, lr=0.1)"


# Stochastic diagonal Levenberg-Marquardt, on a loss whose second derivatives are plain: of sum (c p)^2 they are 2 c^2


def scales(seed: int = 0) -> list[np.ndarray]:
    return [np.asarray(np.random.default_rng(seed).uniform(0.5, 2, shape)) for shape in SHAPES]


def bowl(params: list[Tensor], c: list[np.ndarray]) -> Tensor:
    """The sum of (c p)^2 over all elements of all parameters, in the dtype of each."""
    total = Tensor(np.zeros((), params[0].dtype))
    for p, each in zip(params, c, strict=True):
        scaled = p * Tensor(each.astype(p.dtype), device=p.device)
        total = total + F.mse_loss(scaled, Tensor(np.zeros(p.shape, p.dtype), device=p.device), "sum")
    return total


@pytest.mark.parametrize(("mu", "lr"), [(0.02, 0.0005), (1.0, 0.3), (1e-9, 1.0)])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_diagonal_lm_steps_by_its_formula(dtype: Any, mu: float, lr: float) -> None:
    """p - lr / (mu + h) g, h being kept from one estimate to the next."""
    params, c = tensors(np.random.default_rng(10), dtype), scales()
    optimizer = StochasticDiagonalLM(params, lr=lr, mu=mu)
    tolerance = 1e-12 if dtype is np.float64 else 1e-5
    for turn in range(3):
        if turn != 1:
            c = scales(turn)
            assert optimizer.estimate(bowl(params, c)) is None
            assert all(p.grad is None for p in params)
        g = [np.asarray(np.random.default_rng(turn).normal(size=p.shape), dtype) for p in params]
        before = [p.numpy().copy() for p in params]
        rates = optimizer.rates()
        for p, each in zip(params, g, strict=True):
            p.grad = Tensor(each)
        optimizer.step()
        for k, p in enumerate(params):
            rate = lr / (mu + 2 * c[k] ** 2)
            np.testing.assert_allclose(rates[k], rate, rtol=tolerance)
            assert rates[k].shape == p.shape
            np.testing.assert_allclose(p.numpy(), before[k] - rate * g[k], rtol=tolerance, atol=tolerance * lr)
            assert p.dtype == dtype
            assert p.grad is not None
            np.testing.assert_array_equal(p.grad.numpy(), g[k])
        optimizer.zero_grad()


def test_diagonal_lm_reaches_the_minimum_in_one_step() -> None:
    """With the exact second derivatives and mu next to nothing, it is Newton's method."""
    params, c = tensors(np.random.default_rng(11)), scales()
    optimizer = StochasticDiagonalLM(params, lr=1.0, mu=1e-12)
    optimizer.estimate(bowl(params, c))
    bowl(params, c).backward()
    optimizer.step()
    assert max(np.abs(p.numpy()).max() for p in params) < 1e-10


def test_a_step_before_the_first_estimate_is_refused() -> None:
    params = tensors(np.random.default_rng(12))
    optimizer = StochasticDiagonalLM(params)
    give_gradients(params, np.random.default_rng(13))
    before = [p.numpy().copy() for p in params]
    with pytest.raises(ValueError, match=r"StochasticDiagonalLM: no curvature is known yet; call estimate\(loss\)"):
        optimizer.step()
    for p, old in zip(params, before, strict=True):
        np.testing.assert_array_equal(p.numpy(), old)
    assert optimizer.state_dict()["steps"] == [0] * len(params)
    assert all(not rate.any() for rate in optimizer.rates())
    optimizer.estimate(bowl(params, scales()))
    optimizer.step()
    assert optimizer.state_dict()["steps"] == [1] * len(params)


def test_diagonal_lm_leaves_parameters_without_gradient_alone() -> None:
    params = tensors(np.random.default_rng(14))
    optimizer = StochasticDiagonalLM(params, lr=0.1)
    optimizer.estimate(bowl(params, scales()))
    give_gradients(params, np.random.default_rng(15))
    params[1].grad = params[3].grad = None
    before, rates = [p.numpy().copy() for p in params], optimizer.rates()
    optimizer.step()
    changed = [bool((p.numpy() != old).any()) for p, old in zip(params, before, strict=True)]
    assert changed == [True, False, True, False, True]
    assert optimizer.state_dict()["steps"] == [1, 0, 1, 0, 1]
    for rate, again in zip(rates, optimizer.rates(), strict=True):
        np.testing.assert_array_equal(rate, again)


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda loss, params: loss + params[0].exp().sum() ** 2, "curvature: op power has no curvature rule"),
        (lambda loss, params: F.mse_loss(params[0], params[1]), "input 2, of shape .* was not used"),
        (lambda loss, params: sum((p.sum() for p in params), start=Tensor(0.0)), "nothing on the way .* is a loss"),
        (lambda loss, params: loss.detach(), "the output does not require a gradient"),
        (lambda loss, params: loss * Tensor(np.ones(2)), r"the output has shape \(2,\)"),
    ],
)
def test_an_estimate_that_fails_keeps_the_old_one(spoil: Callable[..., Tensor], sentence: str) -> None:
    params = tensors(np.random.default_rng(16))
    params[1] = Tensor(np.ones((3, 2)), requires_grad=True)
    optimizer, c = StochasticDiagonalLM(params), [np.full(p.shape, 2.0) for p in params]
    with pytest.raises(ValueError, match=sentence):
        optimizer.estimate(spoil(bowl(params, c), params))
    assert all(not rate.any() for rate in optimizer.rates())
    give_gradients(params, np.random.default_rng(17))
    with pytest.raises(ValueError, match="no curvature is known yet"):
        optimizer.step()
    optimizer.estimate(bowl(params, c))
    with pytest.raises(ValueError, match=sentence):
        optimizer.estimate(spoil(bowl(params, c), params))
    for rate in optimizer.rates():
        np.testing.assert_allclose(rate, 0.0005 / (0.02 + 8))
    optimizer.step()


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_an_estimate_that_is_not_finite_is_refused(value: float) -> None:
    """It names the parameter; the old estimate stays, for all of them."""
    params = tensors(np.random.default_rng(24))
    optimizer, c = StochasticDiagonalLM(params), scales()
    optimizer.estimate(bowl(params, c))
    rates = optimizer.rates()
    c[2][1] = value
    with (
        np.errstate(all="ignore"),
        pytest.raises(ValueError, match="StochasticDiagonalLM: the curvature of parameter 2 is not finite"),
    ):
        optimizer.estimate(bowl(params, c))
    for rate, again in zip(rates, optimizer.rates(), strict=True):
        np.testing.assert_array_equal(rate, again)


def test_diagonal_lm_resumes_bit_for_bit() -> None:
    rng = np.random.default_rng(18)
    params, c = tensors(rng), scales()
    optimizer = StochasticDiagonalLM(params, lr=0.3, mu=0.1)
    optimizer.estimate(bowl(params, c))
    give_gradients(params, rng, missing=0.3)
    optimizer.step()
    optimizer.lr = 0.07
    state = optimizer.state_dict()
    assert sorted(state["tensors"]) == [f"{k}.inverse" for k in range(len(params))]
    state |= json.loads(json.dumps({name: value for name, value in state.items() if name != "tensors"}))
    copies = [Tensor(p.numpy().copy(), requires_grad=True) for p in params]
    resumed = StochasticDiagonalLM(copies, mu=0.1)
    resumed.load_state_dict(state)
    assert resumed.lr == 0.07
    for _ in range(3):
        give_gradients(params, rng, missing=0.3)
        for p, q in zip(params, copies, strict=True):
            q.grad = p.grad
        optimizer.step()
        resumed.step()
    for p, q, a, b in zip(params, copies, optimizer.rates(), resumed.rates(), strict=True):
        np.testing.assert_array_equal(p.numpy(), q.numpy())
        np.testing.assert_array_equal(a, b)
    assert optimizer.state_dict()["steps"] == resumed.state_dict()["steps"]


def test_a_state_without_estimate_is_one_without_estimate() -> None:
    """Also where an estimate was there before it was loaded; a state that does not fit changes nothing."""
    params = tensors(np.random.default_rng(19))
    optimizer = StochasticDiagonalLM(params)
    fresh = optimizer.state_dict()
    optimizer.estimate(bowl(params, scales()))
    give_gradients(params, np.random.default_rng(20))
    rates = optimizer.rates()
    with pytest.raises(ValueError, match="the state is that of 'SGD'"):
        optimizer.load_state_dict(fresh | {"algorithm": "SGD"})
    with pytest.raises(ValueError, match=r"1\.inverse is missing"):
        optimizer.load_state_dict(
            fresh | {"tensors": {name: a for name, a in fresh["tensors"].items() if name != "1.inverse"}}
        )
    for rate, again in zip(rates, optimizer.rates(), strict=True):
        np.testing.assert_array_equal(rate, again)
    optimizer.step()
    optimizer.load_state_dict(fresh)
    with pytest.raises(ValueError, match="no curvature is known yet"):
        optimizer.step()
    assert all(not rate.any() for rate in optimizer.rates())


@pytest.mark.parametrize("before", [True, False], ids=["before the estimate", "after the estimate"])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_an_estimate_follows_a_parameter_whose_array_is_replaced(dtype: Any, before: bool) -> None:
    params, others, c = tensors(np.random.default_rng(21)), tensors(np.random.default_rng(21)), scales()
    ours, plain = StochasticDiagonalLM(params, lr=0.1), StochasticDiagonalLM(others, lr=0.1)
    for where in (True, False):
        if where:
            ours.estimate(bowl(params, c))
            plain.estimate(bowl(others, c))
        if where is before:
            for k in (1, 3):
                params[k].data = params[k].data.astype(dtype)  # a new array, as after module.to(device)
            if before:
                ours.estimate(bowl(params, c))
    bowl(params, c).backward()
    bowl(others, c).backward()
    ours.step()
    plain.step()
    for p, q, a, b in zip(params, others, ours.rates(), plain.rates(), strict=True):
        np.testing.assert_allclose(p.numpy(), q.numpy(), rtol=1e-12 if dtype is np.float64 else 1e-5)
        np.testing.assert_allclose(a, b, rtol=1e-12 if dtype is np.float64 else 1e-5)
    assert [p.dtype for p in params] == [np.float64, dtype, np.float64, dtype, np.float64]


def test_diagonal_lm_moves_with_a_module() -> None:
    """To another device and back, with what is remembered; a step reads nothing back (an estimate may)."""
    layers = [nn.Linear(3, 2, rng=0, dtype=np.float64) for _ in range(2)]
    optimizers = [StochasticDiagonalLM(layer.parameters(), lr=0.5) for layer in layers]
    x, target = np.random.default_rng(22).normal(size=(4, 3)), np.zeros((4, 2))

    def loss(layer: nn.Linear) -> Tensor:
        device = layer.weight.device
        return F.mse_loss(layer(Tensor(x, device=device)), Tensor(target, device=device))

    for layer, optimizer in zip(layers, optimizers, strict=True):
        optimizer.estimate(loss(layer))
    for device in ("strict", "cpu"):
        layers[0].to(device)
        for layer, optimizer in zip(layers, optimizers, strict=True):
            if device == "cpu":
                optimizer.estimate(loss(layer))
            for _ in range(2):
                with no_host_reads():
                    loss(layer).backward()
                    optimizer.step()
                    optimizer.zero_grad()
        for p, q in zip(layers[0].parameters(), layers[1].parameters(), strict=True):
            assert p.device == device
            np.testing.assert_allclose(p.numpy(), q.numpy(), rtol=1e-12)


def test_an_estimate_is_the_curvature_of_the_loss() -> None:
    """1 / (mu + h), to the bit, with the h that `curvature` gives; rates lie between 0 and lr / mu."""
    net = nn.Sequential(nn.Linear(4, 3, rng=0), nn.Tanh(), nn.Linear(3, 2, rng=1))
    optimizer = StochasticDiagonalLM(net.parameters(), lr=0.3, mu=0.05)
    x = np.random.default_rng(23).normal(size=(6, 4)).astype(np.float32)
    loss = F.cross_entropy(net(x), [0, 1, 1, 0, 1, 0])
    optimizer.estimate(loss)
    tensors = optimizer.state_dict()["tensors"]
    for k, h in enumerate(curvature(loss, list(net.parameters()))):
        np.testing.assert_array_equal(tensors[f"{k}.inverse"], 1 / (0.05 + h.numpy()))
    assert all(((rate > 0) & (rate <= np.float32(0.3 / 0.05))).all() for rate in optimizer.rates())
    assert repr(optimizer) == "StochasticDiagonalLM(4 parameters of 23 elements, lr=0.3)"


# Schedules


@pytest.mark.parametrize(
    ("total", "settings"),
    [(100, {}), (37, {"warmup": 0.1, "start_factor": 4, "end_factor": 50.0}), (10, {"warmup": 0.0}), (2, {})],
)
def test_one_cycle_is_that_of_pytorch(total: int, settings: dict[str, float]) -> None:
    torch = pytest.importorskip("torch")
    names = {"warmup": "pct_start", "start_factor": "div_factor", "end_factor": "final_div_factor"}
    ours = SGD([Tensor(1.0, requires_grad=True)], lr=5.0)
    theirs = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=5.0)
    schedule = OneCycle(ours, 0.3, total, **settings)
    peer = torch.optim.lr_scheduler.OneCycleLR(
        theirs, 0.3, total, cycle_momentum=False, **{names[name]: value for name, value in settings.items()}
    )
    for _ in range(total):
        assert ours.lr == pytest.approx(theirs.param_groups[0]["lr"], rel=1e-12)
        theirs.step()
        schedule.step()
        peer.step()
    assert ours.lr == pytest.approx(theirs.param_groups[0]["lr"], rel=1e-12)
    before = ours.lr
    with pytest.raises(ValueError, match=f"OneCycle: step {total + 1} was asked for; total_steps is {total}"):
        schedule.step()
    assert ours.lr == before
    assert schedule.count == total


def test_step_lr_is_that_of_pytorch() -> None:
    torch = pytest.importorskip("torch")
    ours = SGD([Tensor(1.0, requires_grad=True)], lr=0.5)
    theirs = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.5)
    schedule, peer = StepLR(ours, 3, gamma=0.3), torch.optim.lr_scheduler.StepLR(theirs, 3, gamma=0.3)
    for _ in range(12):
        assert ours.lr == pytest.approx(theirs.param_groups[0]["lr"], rel=1e-12)
        theirs.step()
        schedule.step()
        peer.step()


@pytest.mark.parametrize("warmup", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("total", [1, 2, 3])
def test_one_cycle_has_a_rate_for_every_length(total: int, warmup: float) -> None:
    optimizer = SGD([Tensor(1.0, requires_grad=True)], lr=1.0)
    schedule = OneCycle(optimizer, 1.0, total, warmup)
    for _ in range(total):
        assert 0 < optimizer.lr <= 1
        schedule.step()


def test_the_rates_of_1998() -> None:
    """LeCun et al. (1998): 0.0005 for 2 passes, 0.0002 for 3, 0.0001 for 3, 0.00005 for 4, 0.00001 for 8."""
    optimizer = SGD([Tensor(1.0, requires_grad=True)], lr=1.0)
    schedule = PassRates(optimizer)
    seen = []
    for _ in range(23):
        seen.append(optimizer.lr)
        schedule.step()
    assert seen[:20] == [5e-4, 5e-4, *[2e-4] * 3, *[1e-4] * 3, *[5e-5] * 4, *[1e-5] * 8]
    assert seen[20:] == [1e-5] * 3  # the last one holds
    assert optimizer.lr == 1e-5
    assert schedule.count == 23


def test_pass_rates_of_ones_own() -> None:
    optimizer = StochasticDiagonalLM([Tensor(1.0, requires_grad=True)])
    schedule = PassRates(optimizer, [(1, 0.5), (3, 2), (1, 0.25)])  # also upwards
    seen = []
    for _ in range(7):
        seen.append(optimizer.lr)
        schedule.step()
    assert seen == [0.5, 2, 2, 2, 0.25, 0.25, 0.25]


@pytest.mark.parametrize(
    ("rates", "error", "words"),
    [
        ([], ValueError, "rates is empty; expected at least one"),
        ([(0, 0.1)], ValueError, "each count of passes is 0; expected at least 1"),
        ([(1, 0.1), (-1, 0.1)], ValueError, "each count of passes is -1"),
        ([(1.5, 0.1)], TypeError, "each count of passes must be an integer, not 1.5"),
        ([(True, 0.1)], TypeError, "each count of passes must be an integer, not True"),
        ([("a", 0.1)], TypeError, "each count of passes must be an integer, not 'a'"),
        ([(1, 0)], ValueError, "each rate is 0; expected a finite number above 0"),
        ([(1, -0.1)], ValueError, "each rate is -0.1"),
        ([(1, 0.1), (1, math.nan)], ValueError, "each rate is nan"),
        ([(1, math.inf)], ValueError, "each rate is inf"),
        ([(1, "fast")], TypeError, "each rate is 'fast'"),
        ([5], (TypeError, ValueError), ""),
        ([(1,)], (TypeError, ValueError), ""),
        ([(1, 2, 3)], (TypeError, ValueError), ""),
        (5, (TypeError, ValueError), ""),
    ],
)
def test_bad_pass_rates_are_refused(rates: Any, error: Any, words: str) -> None:
    """By a sentence of their own, and the optimiser keeps its rate."""
    optimizer = SGD([Tensor(1.0, requires_grad=True)], lr=0.125)
    with pytest.raises(error, match=f"^PassRates: {words}"):
        PassRates(optimizer, rates)
    assert optimizer.lr == 0.125


def test_pass_rates_survive_json() -> None:
    """A state goes through JSON, in which tuples become lists, and back; other rates are refused."""
    first, second = (SGD([Tensor(1.0, requires_grad=True)], lr=1.0) for _ in range(2))
    rates = [(2, 5e-4), (1, 1 / 3), (2, 0.1)]
    schedule, resumed = PassRates(first, rates), PassRates(second, rates)
    for _ in range(2):
        schedule.step()
    state = json.loads(json.dumps(schedule.state_dict()))
    resumed.load_state_dict(state)
    assert (second.lr, resumed.count) == (first.lr, 2) == (1 / 3, 2)
    resumed.load_state_dict(schedule.state_dict())
    for _ in range(3):
        schedule.step()
        resumed.step()
        assert second.lr == first.lr
    other = SGD([Tensor(1.0, requires_grad=True)], lr=1.0)
    different = PassRates(other, [(2, 5e-4), (1, 1 / 3)])
    before = json.dumps(different.state_dict())
    with pytest.raises(ValueError, match=r"PassRates: rates is .* in the state; expected .*, as given here"):
        different.load_state_dict(state)
    with pytest.raises(ValueError, match="PassRates: count is -1"):
        resumed.load_state_dict(state | {"count": -1})
    assert (json.dumps(different.state_dict()), other.lr) == (before, 5e-4)


@pytest.mark.parametrize(
    "make", [lambda o: OneCycle(o, 0.4, 20), lambda o: StepLR(o, 4, 0.5), lambda o: PassRates(o, [(4, 0.5), (9, 2)])]
)
def test_a_schedule_can_be_resumed(make: Callable[[Optimizer], OneCycle | StepLR | PassRates]) -> None:
    first, second = (SGD([Tensor(1.0, requires_grad=True)], lr=1.0) for _ in range(2))
    schedule = make(first)
    for _ in range(9):
        schedule.step()
    second.load_state_dict(first.state_dict())
    resumed = make(second)
    resumed.load_state_dict(schedule.state_dict())
    for _ in range(10):
        assert second.lr == first.lr
        schedule.step()
        resumed.step()


def test_a_schedule_refuses_what_does_not_fit() -> None:
    optimizer = SGD([Tensor(1.0, requires_grad=True)], lr=1.0)
    for make, error, words in (
        (lambda: OneCycle(optimizer, 0.0, 10), ValueError, "OneCycle: max_lr is 0.0"),
        (lambda: OneCycle(optimizer, 1.0, 0), ValueError, "OneCycle: total_steps is 0; expected at least 1"),
        (lambda: OneCycle(optimizer, 1.0, 10, warmup=1.5), ValueError, "OneCycle: warmup is 1.5"),
        (lambda: OneCycle(optimizer, 1.0, 10, start_factor=0), ValueError, "start_factor is 0"),
        (lambda: StepLR(optimizer, 0), ValueError, "StepLR: step_size is 0"),
        (lambda: StepLR(optimizer, 1, gamma=-1), ValueError, "StepLR: gamma is -1"),
        (lambda: StepLR(None, 1), TypeError, "StepLR: optimizer is NoneType"),  # type: ignore[arg-type]
        (lambda: PassRates(None), TypeError, "PassRates: optimizer is NoneType"),  # type: ignore[arg-type]
    ):
        with pytest.raises(error, match=words):
            make()
    assert optimizer.lr == 1.0
    schedule = OneCycle(optimizer, 1.0, 10)
    state, rate = schedule.state_dict(), optimizer.lr
    for wrong, words in (
        ({"total_steps": 11}, "OneCycle: total_steps is 11 in the state; expected 10"),
        ({"count": 12}, "OneCycle: step 12 was asked for"),
        ({"other": 1}, "expected"),
    ):
        with pytest.raises(ValueError, match=words):
            schedule.load_state_dict(state | wrong)
        assert (schedule.state_dict(), optimizer.lr) == (state, rate)
