"""Optimisers and schedules: PyTorch's numbers to the last digits, resumable, in place, and clear about bad settings."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tinygrad_lenet import Tensor, nn
from tinygrad_lenet.optim import SGD, Adam, AdamW, OneCycle, Optimizer, StepLR

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


@pytest.mark.parametrize("make", [lambda o: OneCycle(o, 0.4, 20), lambda o: StepLR(o, 4, 0.5)])
def test_a_schedule_can_be_resumed(make: Callable[[Optimizer], OneCycle | StepLR]) -> None:
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
