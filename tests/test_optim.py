"""Optimisers and schedules: the published formulas to the last digits, resumable, in place, clear about misuse."""

import copy
import json
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pytest

from tests.refusals import refused
from tests.strict import no_host_reads
from tinygrad_lenet import Tensor, backend, curvature, nn
from tinygrad_lenet import functional as F
from tinygrad_lenet.optim import SGD, Adam, AdamW, OneCycle, Optimizer, PassRates, StepLR, StochasticDiagonalLM

SHAPES = [(3, 2), (), (4,), (2, 1, 3, 3), (5,)]
OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {"SGD": SGD, "Adam": Adam, "AdamW": AdamW}
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

Gradients = list[np.ndarray | None]


def leaf(*values: float) -> Tensor:
    return Tensor(np.array(values), requires_grad=True)


def tensors(seed: int, dtype: Any = np.float64) -> list[Tensor]:
    rng = np.random.default_rng(seed)
    return [Tensor(np.asarray(rng.normal(size=shape), dtype), requires_grad=True) for shape in SHAPES]


def twins(params: Iterable[Tensor]) -> list[Tensor]:
    return [Tensor(p.numpy().copy(), requires_grad=True) for p in params]


def draw_gradients(rng: np.random.Generator, missing: float = 0.0) -> Gradients:
    """A gradient for each shape; some are None."""
    return [None if rng.random() < missing else np.asarray(rng.normal(size=shape)) for shape in SHAPES]


def step(optimizer: Optimizer, params: list[Tensor], gradients: Gradients) -> None:
    for p, g in zip(params, gradients, strict=True):
        p.grad = None if g is None else Tensor(g.astype(p.dtype), device=p.device)
    optimizer.step()


def assert_close(params: Iterable[Any], expected: Iterable[Any], rtol: float = 1e-12, atol: float = 1e-14) -> None:
    for p, e in zip(params, expected, strict=True):
        p, e = (each.numpy() if isinstance(each, Tensor) else each for each in (p, e))
        np.testing.assert_allclose(p, e, rtol=rtol, atol=atol)


def assert_equal(params: Iterable[Any], expected: Iterable[Any]) -> None:
    assert_close(params, expected, rtol=0, atol=0)


# Steps


def by_formula(
    name: str,
    p: np.ndarray,
    gradients: Gradients,
    lr: float = 1e-3,
    momentum: float = 0,
    nesterov: bool = False,
    weight_decay: float | None = None,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
) -> Iterator[np.ndarray]:
    """One parameter after each of its gradients; one that is None changes nothing, and counts as no step."""
    decay = {"AdamW": 0.01}.get(name, 0.0) if weight_decay is None else weight_decay
    (b1, b2), m, v, t = betas, np.zeros(p.shape), np.zeros(p.shape), 0
    for g in gradients:
        if g is not None:
            t += 1
            if name == "AdamW":
                p = p - lr * decay * p
            else:
                g = g + decay * p
            if name == "SGD":
                m = momentum * m + g
                p = p - lr * (g + momentum * m if nesterov else m)
            else:
                m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
                p = p - lr * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps)
        yield p


def by_pytorch(name: str, p: np.ndarray, gradients: Gradients, **settings: Any) -> Iterator[np.ndarray]:
    torch = pytest.importorskip("torch")
    peer = torch.tensor(p, requires_grad=True)
    optimizer = getattr(torch.optim, name)([peer], **settings)
    for g in gradients:
        peer.grad = None if g is None else torch.tensor(g)
        optimizer.step()
        yield peer.numpy(force=True)


@pytest.mark.parametrize("oracle", [by_formula, by_pytorch])
@pytest.mark.parametrize("missing", [0.0, 0.4])
@pytest.mark.parametrize(("name", "settings"), SETTINGS)
def test_steps_are_those_of_the_formula(
    name: str, settings: dict[str, Any], missing: float, oracle: Callable[..., Iterator[np.ndarray]]
) -> None:
    params, rng = tensors(0), np.random.default_rng(0)
    optimizer, turns = OPTIMIZERS[name](params, **settings), [draw_gradients(rng, missing) for _ in range(20)]
    own = zip(params, zip(*turns, strict=True), strict=True)  # each parameter with its gradients
    expected = [oracle(name, p.numpy().copy(), list(gradients), **settings) for p, gradients in own]
    for gradients in turns:
        step(optimizer, params, gradients)
        assert_close(params, [next(each) for each in expected])


@pytest.mark.parametrize(("name", "settings"), SETTINGS)
def test_steps_in_blocks_are_those_of_single_blocks(name: str, settings: dict[str, Any]) -> None:
    size = backend.NUMPY.block
    whole = Tensor(np.random.default_rng(4).normal(size=2 * size + 3), requires_grad=True)
    parts = [Tensor(x, requires_grad=True) for x in np.split(whole.numpy().copy(), [size, 2 * size])]
    together, apart = OPTIMIZERS[name]([whole], **settings), [OPTIMIZERS[name]([p], **settings) for p in parts]
    for i in range(2):
        whole.grad = Tensor(np.random.default_rng(i).normal(size=whole.size))
        together.step()
        for optimizer, p, g in zip(apart, parts, np.split(whole.grad.numpy(), [size, 2 * size]), strict=True):
            step(optimizer, [p], [g])
    assert np.array_equal(whole.numpy(), np.concatenate([p.numpy() for p in parts]))


def test_dtypes_are_kept_and_may_be_mixed() -> None:
    mixed = [p for pair in zip(tensors(2, np.float32), tensors(3), strict=True) for p in pair]
    apart, rng = twins(mixed), np.random.default_rng(2)
    together, separate = Adam(mixed, lr=0.1), [Adam([p], lr=0.1) for p in apart]
    for _ in range(3):
        gradients: Gradients = [np.asarray(rng.normal(size=p.shape)) for p in mixed]
        step(together, mixed, gradients)
        for optimizer, p, g in zip(separate, apart, gradients, strict=True):
            step(optimizer, [p], [g])
    assert [p.dtype for p in mixed] == [p.dtype for p in apart] == [np.float32, np.float64] * len(SHAPES)
    assert_equal(mixed, apart)


def test_a_step_writes_in_place_and_leaves_gradients_alone() -> None:
    memory = np.random.default_rng(3).normal(size=(4, 6))
    p = Tensor(memory.T[::2], requires_grad=True)  # neither contiguous nor alone in its memory
    array, before = p.data, memory.copy()
    p.grad = Tensor(np.ones((3, 4)))
    SGD([p], lr=0.5).step()
    assert p.data is array
    assert_equal([memory.T[::2], memory.T[1::2], p.grad], [before.T[::2] - 0.5, before.T[1::2], np.ones((3, 4))])


def test_two_optimisers_may_share_parameters() -> None:
    p = leaf(0.0, 0.0, 0.0)
    for optimizer in (SGD([p], lr=1.0), SGD([p], lr=0.25)):
        step(optimizer, [p], [np.ones(3)])
    assert_equal([p], [np.full(3, -1.25)])


# Stochastic diagonal Levenberg-Marquardt, on a loss whose second derivatives are plain: of sum (c p)^2 they are 2 c^2


def scales(seed: int = 0) -> list[np.ndarray]:
    return [np.asarray(np.random.default_rng(seed).uniform(0.5, 2, shape)) for shape in SHAPES]


def bowl(params: list[Tensor], c: list[np.ndarray]) -> Tensor:
    """The sum of (c p)^2 over all elements of all parameters, in the dtype of each."""
    total = Tensor(np.zeros((), params[0].dtype))
    for p, each in zip(params, c, strict=True):
        total = total + F.mse_loss(p * Tensor(each.astype(p.dtype)), Tensor(np.zeros(p.shape, p.dtype)), "sum")
    return total


def estimated(params: list[Tensor], **settings: float) -> StochasticDiagonalLM:
    optimizer = StochasticDiagonalLM(params, **settings)
    optimizer.estimate(bowl(params, scales()))
    return optimizer


@pytest.mark.parametrize(("mu", "lr"), [(0.02, 0.0005), (1.0, 0.3), (1e-9, 1.0)])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_diagonal_lm_steps_by_its_formula(dtype: Any, mu: float, lr: float) -> None:
    """p - lr / (mu + h) g, h being kept from one estimate to the next."""
    params, c, rng = tensors(10, dtype), scales(), np.random.default_rng(0)
    optimizer = StochasticDiagonalLM(params, lr=lr, mu=mu)
    tolerance = 1e-12 if dtype is np.float64 else 1e-5
    for turn in range(3):
        if turn != 1:
            c = scales(turn)
            optimizer.estimate(bowl(params, c))
            assert turn or all(p.grad is None for p in params)
        gradients, before = draw_gradients(rng), twins(params)
        rates = [lr / (mu + 2 * each**2) for each in c]
        assert_close(optimizer.rates(), rates, tolerance)
        step(optimizer, params, gradients)
        expected = [p.numpy() - rate * g for p, rate, g in zip(before, rates, gradients, strict=True)]
        assert_close(params, expected, tolerance, tolerance * lr)
        assert {p.dtype for p in params} == {np.dtype(dtype)}


def test_an_estimate_is_the_curvature_of_the_loss() -> None:
    """1 / (mu + h), to the bit, with the h that `curvature` gives; rates lie between 0 and lr / mu."""
    net = nn.Sequential(nn.Linear(4, 3, rng=0), nn.Tanh(), nn.Linear(3, 2, rng=1))
    optimizer = StochasticDiagonalLM(net.parameters(), lr=0.3, mu=0.05)
    x = np.random.default_rng(23).normal(size=(6, 4)).astype(np.float32)
    loss = F.cross_entropy(net(x), [0, 1, 1, 0, 1, 0])
    optimizer.estimate(loss)
    state = optimizer.state_dict()["tensors"]
    h = curvature(loss, list(net.parameters()))
    assert_equal([state[f"{k}.inverse"] for k in range(4)], [1 / (0.05 + each.numpy()) for each in h])
    assert all(((rate > 0) & (rate <= np.float32(0.3 / 0.05))).all() for rate in optimizer.rates())


def test_a_step_before_the_first_estimate_is_refused() -> None:
    params = tensors(12)
    optimizer, before, gradients = StochasticDiagonalLM(params), twins(params), draw_gradients(np.random.default_rng(0))
    with refused(ValueError, "StochasticDiagonalLM estimate"):
        step(optimizer, params, gradients)
    assert_equal(params, before)
    assert optimizer.state_dict()["steps"] == [0] * len(params)
    assert not any(rate.any() for rate in optimizer.rates())
    optimizer.estimate(bowl(params, scales()))
    optimizer.step()
    assert optimizer.state_dict()["steps"] == [1] * len(params)


@pytest.mark.parametrize(
    ("spoil", "names"),
    [
        (lambda params: params[0].softmax(0).sum(), "softmax"),
        (lambda params: params[0].log(), "output shape (3, 2)"),
        (lambda params: F.mse_loss(params[2] * 1e200, params[2].detach() * 1e200), "parameter 2 finite"),  # infinite
        (lambda params: F.mse_loss(params[2] * math.nan, np.zeros(4)), "parameter 2 finite"),
    ],
)
def test_an_estimate_that_fails_keeps_the_old_one(spoil: Callable[[list[Tensor]], Tensor], names: str) -> None:
    params = tensors(16)
    optimizer = StochasticDiagonalLM(params)
    for known in (False, True):
        with np.errstate(all="ignore"), refused(ValueError, names):
            optimizer.estimate(bowl(params, scales()) + spoil(params))
        assert_close(optimizer.rates(), [known * 0.0005 / (0.02 + 2 * c**2) for c in scales()])
        if not known:
            with refused(ValueError, "estimate"):
                optimizer.step()
            optimizer.estimate(bowl(params, scales()))


@pytest.mark.parametrize(("name", "settings"), SETTINGS)
def test_a_shallow_copy_shares_parameters_and_no_state(name: str, settings: dict[str, Any]) -> None:
    rng, params = np.random.default_rng(5), tensors(5)
    optimizer = OPTIMIZERS[name](params, **settings)
    step(optimizer, params, draw_gradients(rng))
    before = optimizer.state_dict()
    other = copy.copy(optimizer)
    step(other, params, draw_gradients(rng))
    assert all(p is q for p, q in zip(other.params, params, strict=True))
    after = optimizer.state_dict()
    assert (after["steps"], other.state_dict()["steps"]) == (before["steps"], [2] * len(params))
    for state, array in before["tensors"].items():
        np.testing.assert_array_equal(after["tensors"][state], array)


def test_diagonal_lm_moves_with_a_module() -> None:
    """To another device and back, with what is remembered; a step reads nothing back (an estimate may)."""
    moved, stays = (nn.Linear(3, 2, rng=0, dtype=np.float64) for _ in range(2))
    optimizers = {layer: StochasticDiagonalLM(layer.parameters(), lr=0.5) for layer in (moved, stays)}
    x, target = np.random.default_rng(22).normal(size=(4, 3)), np.zeros((4, 2))

    def loss(layer: nn.Linear) -> Tensor:
        device = layer.weight.device
        return F.mse_loss(layer(Tensor(x, device=device)), Tensor(target, device=device))

    for device, estimates in (("cpu", True), ("strict:1", False), ("strict:1", True), ("cpu", True)):
        moved.to(device)
        for layer, optimizer in optimizers.items():
            if estimates:
                optimizer.estimate(loss(layer))
            for _ in range(2):
                with no_host_reads():
                    loss(layer).backward()
                    optimizer.step()
                    optimizer.zero_grad()
        assert {p.device for p in moved.parameters()} == {device}
        assert_close(moved.parameters(), stays.parameters())


@pytest.mark.parametrize(("name", "settings"), SETTINGS)
def test_a_step_on_a_second_device_is_that_of_the_cpu(name: str, settings: dict[str, Any]) -> None:
    """And there the state stays, copied or loaded; a step reads nothing back."""
    rng, here = np.random.default_rng(23), tensors(23)
    there = [Tensor(p.numpy(), requires_grad=True, device="strict:1") for p in here]
    optimizers = [OPTIMIZERS[name](params, **settings) for params in (here, there)]
    for _ in range(3):
        gradients = draw_gradients(rng, missing=0.2)
        for optimizer in optimizers:
            with no_host_reads():
                step(optimizer, optimizer.params, gradients)
            optimizer.load_state_dict(optimizer.state_dict())
        on_cpu, on_device = optimizers = [copy.deepcopy(optimizer) for optimizer in optimizers]
        assert {p.device for p in on_device.params} == {"strict:1"}
        assert_close(on_device.params, on_cpu.params)


# What is remembered


@pytest.mark.parametrize("make", [lambda params: AdamW(params, lr=0.1, weight_decay=0.5), estimated])
def test_a_parameter_without_gradient_keeps_value_and_state(make: Callable[..., Optimizer]) -> None:
    params, rng = tensors(1), np.random.default_rng(1)
    optimizer = make(params)
    step(optimizer, params, draw_gradients(rng))
    before, state = twins(params), optimizer.state_dict()
    gradients = draw_gradients(rng)
    gradients[1] = gradients[3] = None
    step(optimizer, params, gradients)
    after = optimizer.state_dict()
    changed = [bool((p.numpy() != old.numpy()).any()) for p, old in zip(params, before, strict=True)]
    assert changed == [True, False, True, False, True]
    assert after["steps"] == [2, 1, 2, 1, 2]
    kept = [name for name in state["tensors"] if name[0] in "13"]
    assert_equal([after["tensors"][name] for name in kept], [state["tensors"][name] for name in kept])
    optimizer.zero_grad()
    assert all(p.grad is None for p in params)
    optimizer.step()
    assert optimizer.state_dict()["steps"] == [2, 1, 2, 1, 2]


@pytest.mark.parametrize("make", [lambda params: Adam(params, lr=0.1), lambda params: estimated(params, lr=0.1)])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("again", [False, True], ids=["", "estimated again"])
def test_state_follows_a_parameter_whose_array_is_replaced(
    again: bool, dtype: Any, make: Callable[..., Optimizer]
) -> None:
    params, others, rng = tensors(4), tensors(4), np.random.default_rng(4)
    ours, plain = make(params), make(others)
    for turn in range(4):
        if turn == 2:
            for k in (1, 3):
                params[k].data = params[k].data.astype(dtype)  # a new array, as after module.to(device)
            if again and isinstance(ours, StochasticDiagonalLM):
                ours.estimate(bowl(params, scales()))
        gradients = draw_gradients(rng)
        step(ours, params, gradients)
        step(plain, others, gradients)
    assert_close(params, others, rtol=1e-12 if dtype is np.float64 else 1e-5)
    assert [p.dtype for p in params] == [np.float64, dtype, np.float64, dtype, np.float64]
    params[1].data = np.zeros((7,))
    with refused(ValueError, "parameter 1 (7,) ()"):
        ours.step()


RESUMED = [
    *((lambda params, name=name, how=how: OPTIMIZERS[name](params, **how)) for name, how in SETTINGS),
    lambda params: StochasticDiagonalLM(params, lr=0.3, mu=0.1),
]


@pytest.mark.parametrize("make", RESUMED, ids=[*(f"{name} {how}" for name, how in SETTINGS), "LM"])
def test_resuming_from_a_state_continues_bit_for_bit(make: Callable[..., Optimizer]) -> None:
    """Through JSON, but for the arrays, which are copies."""
    params, rng = tensors(5), np.random.default_rng(5)
    optimizer = make(params)
    if isinstance(optimizer, StochasticDiagonalLM):
        optimizer.estimate(bowl(params, scales()))
    for _ in range(3):
        step(optimizer, params, draw_gradients(rng, missing=0.3))
    optimizer.lr = 0.07
    copies, state = twins(params), optimizer.state_dict()
    assert all(type(array) is np.ndarray and array.base is None for array in state["tensors"].values())
    state |= json.loads(json.dumps({name: value for name, value in state.items() if name != "tensors"}))
    resumed = make(copies)
    resumed.load_state_dict(state)
    assert resumed.lr == 0.07
    for _ in range(3):
        gradients = draw_gradients(rng, missing=0.3)
        step(optimizer, params, gradients)
        step(resumed, copies, gradients)
    assert_equal(params, copies)
    assert optimizer.state_dict()["steps"] == resumed.state_dict()["steps"]


@pytest.mark.parametrize("make", [lambda params: Adam(params, lr=0.1), lambda params: estimated(params, lr=0.1)])
def test_a_state_that_does_not_fit_changes_nothing(make: Callable[..., Optimizer]) -> None:
    params = tensors(6)
    optimizer = make(params)
    step(optimizer, params, draw_gradients(np.random.default_rng(6)))
    good = optimizer.state_dict()
    first, *_, last = good["tensors"]
    misfits = {name: np.ones_like(array) for name, array in good["tensors"].items() if name != first}
    misfits |= {"9.m": np.ones(1), last: np.ones(3)}
    for wrong, error, names in (
        ({"tensors": misfits, "lr": 0.5}, ValueError, f"{first} missing 9.m unexpected {last} (3,) (5,)"),
        ({"algorithm": "SGD"}, ValueError, f"SGD {type(optimizer).__name__}"),
        ({"steps": [1]}, ValueError, "1 5"),
        ({"lr": -1.0}, ValueError, "lr -1.0"),
        ({"more": 1}, ValueError, "more"),
        (None, TypeError, "NoneType"),
    ):
        with refused(error, names):
            optimizer.load_state_dict(wrong if wrong is None else good | wrong)  # type: ignore[arg-type]
        state = optimizer.state_dict()
        assert_equal(state.pop("tensors").values(), good["tensors"].values())
        assert state == {name: value for name, value in good.items() if name != "tensors"}


def test_a_state_without_estimate_is_one_without_estimate() -> None:
    """Also where an estimate was there before it was loaded, and where one parameter lacks it."""
    params = tensors(19)
    fresh, optimizer = StochasticDiagonalLM(params).state_dict(), estimated(params)
    partial = optimizer.state_dict()
    partial["tensors"]["0.inverse"][...] = 0
    for state in (partial, fresh):
        optimizer.load_state_dict(state)
        with refused(ValueError, "estimate"):
            step(optimizer, params, draw_gradients(np.random.default_rng(20)))
    assert not any(rate.any() for rate in optimizer.rates())


# Refusals


def test_a_parameter_that_cannot_be_written_to_is_refused_before_any_is_updated() -> None:
    """Also where it belongs to another dtype, whose parameters are updated apart."""
    params = [leaf(1.0, 2.0), Tensor(np.ones((2, 3), np.float32), requires_grad=True), leaf(3.0)]
    optimizer, before = Adam(params, lr=0.1), twins(params)
    for wrong, p in enumerate(params):
        for q in params:
            q.grad = Tensor(np.ones(q.shape, q.dtype))
        p.data.flags.writeable = False
        state = optimizer.state_dict()
        with refused(ValueError, f"Adam parameter {wrong} read-only"):
            optimizer.step()
        p.data.flags.writeable = True
        assert_equal(params, before)
        assert_equal(optimizer.state_dict().pop("tensors").values(), state.pop("tensors").values())
        assert optimizer.state_dict()["steps"] == state["steps"] == [0, 0, 0]
    assert repr(optimizer) == "Adam(3 parameters of 9 elements, lr=0.1)"


def test_a_float16_parameter_has_its_state_in_float32() -> None:
    p = Tensor(np.ones(1, np.float16), requires_grad=True)
    p.grad = Tensor(np.full(1, 1e-4, np.float16))  # whose square is 0 in float16
    Adam([p], lr=0.25).step()
    assert (p.dtype, p.item()) == (np.float16, 0.75)


def test_a_gradient_that_no_longer_fits_is_refused_before_any_parameter_is_updated() -> None:
    p, q = leaf(1.0), leaf(2.0, 3.0)
    p.grad, q.grad = Tensor(np.ones(1)), Tensor(np.ones(2))
    optimizer = SGD([p, q], lr=1.0)
    q.data = np.zeros((3, 2))  # to which the gradient would broadcast
    with refused(ValueError, "SGD parameter 1 (2,) (3, 2)"):
        optimizer.step()
    assert p.item() == 1.0


P = Tensor(1.0, requires_grad=True)


@pytest.mark.parametrize(
    ("params", "error", "names"),
    [
        ([], ValueError, "params"),
        (P, TypeError, "params Tensor"),
        (nn.Tanh(), TypeError, "params Tanh"),
        ([("w", P)], TypeError, "parameter 0 tuple"),
        ([P, P], ValueError, "parameter 1 0"),
        ([Tensor(np.arange(3))], ValueError, "parameter 0 int64"),
        ([P * 2], ValueError, "parameter 0 multiply"),
    ],
)
def test_bad_parameters_are_refused(params: Any, error: type[Exception], names: str) -> None:
    for optimizer in (lambda: SGD(params, 0.1), lambda: StochasticDiagonalLM(params)):
        with refused(error, names):
            optimizer()


NOT_ABOVE_0 = (0, -1, math.nan, math.inf)
O = SGD([P], lr=0.125)  # noqa: E741 - the optimiser of all schedules below
NUMBERS: list[tuple[str, Callable[[Any], Any], tuple[float, ...]]] = [
    ("SGD lr", lambda v: SGD([P], v), NOT_ABOVE_0),
    ("Adam lr", lambda v: Adam([P], v), NOT_ABOVE_0),
    ("SGD lr", lambda v: setattr(O, "lr", v), NOT_ABOVE_0),
    ("SGD momentum", lambda v: SGD([P], 0.1, momentum=v), (1, -0.1)),
    ("SGD weight_decay", lambda v: SGD([P], 0.1, weight_decay=v), (-1,)),
    ("Adam betas", lambda v: Adam([P], betas=(0.9, v)), (1.0, -0.1)),
    ("AdamW eps", lambda v: AdamW([P], eps=v), (-1e-8,)),
    ("StochasticDiagonalLM mu", lambda v: StochasticDiagonalLM([P], mu=v), NOT_ABOVE_0),
    ("StochasticDiagonalLM lr", lambda v: StochasticDiagonalLM([P], lr=v), NOT_ABOVE_0),
    ("OneCycle max_lr", lambda v: OneCycle(O, v, 10), NOT_ABOVE_0),
    ("OneCycle total_steps", lambda v: OneCycle(O, 1.0, v), (0, -1)),
    ("OneCycle pct_start", lambda v: OneCycle(O, 1.0, 10, pct_start=v), (1.5, -0.1)),
    ("OneCycle div_factor", lambda v: OneCycle(O, 1.0, 10, div_factor=v), NOT_ABOVE_0),
    ("OneCycle final_div_factor", lambda v: OneCycle(O, 1.0, 10, final_div_factor=v), NOT_ABOVE_0),
    ("StepLR step_size", lambda v: StepLR(O, v), (0, -1)),
    ("StepLR gamma", lambda v: StepLR(O, 1, gamma=v), NOT_ABOVE_0),
    ("PassRates passes", lambda v: PassRates(O, [(1, 0.1), (v, 0.1)]), (0, -1)),
    ("PassRates rate", lambda v: PassRates(O, [(1, 0.1), (1, v)]), NOT_ABOVE_0),
]


@pytest.mark.parametrize(("names", "make", "values"), NUMBERS, ids=[name for name, *_ in NUMBERS])
def test_bad_numbers_are_refused(names: str, make: Callable[[Any], Any], values: tuple[float, ...]) -> None:
    """By a sentence with the setting's name and the value; the optimiser keeps its rate."""
    for value, error in (*((value, ValueError) for value in values), ("fast", TypeError), (True, TypeError)):
        with refused(error, f"{names} {value}"):
            make(value)
    assert O.lr == 0.125


@pytest.mark.parametrize(
    ("make", "error", "names"),
    [
        (lambda: SGD([P], 0.1, nesterov=True), ValueError, "SGD nesterov momentum"),
        (lambda: Adam([P], betas=(0.9,)), ValueError, "Adam betas"),  # type: ignore[arg-type]
        (lambda: StepLR(None, 1), TypeError, "StepLR optimizer NoneType"),  # type: ignore[arg-type]
        (lambda: PassRates(None), TypeError, "PassRates optimizer NoneType"),  # type: ignore[arg-type]
        (lambda: PassRates(O, []), ValueError, "PassRates rates"),
        (lambda: PassRates(O, 5), (TypeError, ValueError), "PassRates"),  # type: ignore[arg-type]
        (lambda: PassRates(O, [5]), (TypeError, ValueError), "PassRates"),  # type: ignore[list-item]
        (lambda: PassRates(O, [(1,)]), (TypeError, ValueError), "PassRates"),  # type: ignore[list-item]
        (lambda: PassRates(O, [(1, 2, 3)]), (TypeError, ValueError), "PassRates"),  # type: ignore[list-item]
        (lambda: PassRates(O, [(1.5, 0.1)]), TypeError, "PassRates passes 1.5"),  # type: ignore[list-item]
    ],
)
def test_bad_settings_are_refused(make: Callable[[], Any], error: Any, names: str) -> None:
    with refused(error, names):
        make()
    assert O.lr == 0.125


# Schedules


def rates_of(make: Callable[[Optimizer], Any], steps: int, lr: float = 1.0) -> list[float]:
    """The rate before the first step and after each."""
    optimizer = SGD([P], lr=lr)
    schedule = make(optimizer)
    seen = [optimizer.lr]
    for _ in range(steps):
        schedule.step()
        seen.append(optimizer.lr)
    return seen


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda o: StepLR(o, 3, gamma=0.5), [1, 1, 1, 0.5, 0.5, 0.5, 0.25]),
        (lambda o: OneCycle(o, 2.0, 5, pct_start=0.6), [0.08, 1.04, 2, 1.000004, 8e-6]),
        (lambda o: OneCycle(o, 2.0, 5, 0.6, div_factor=4, final_div_factor=10), [0.5, 1.25, 2, 1.025, 0.05]),
        (lambda o: PassRates(o), [5e-4] * 2 + [2e-4] * 3 + [1e-4] * 3 + [5e-5] * 4 + [1e-5] * 8 + [1e-5] * 3),  # 1998
        (lambda o: PassRates(o, [(1, 0.5), (3, 2), (1, 0.25)]), [0.5, 2, 2, 2, 0.25, 0.25, 0.25]),  # also upwards
    ],
)
def test_rates(make: Callable[[Optimizer], Any], expected: list[float]) -> None:
    """Straight from the formulas; the last rate of `PassRates` holds."""
    assert rates_of(make, len(expected) - 1) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("make", "peer", "settings", "steps"),
    [
        (lambda o: StepLR(o, 3, gamma=0.3), "StepLR", {"step_size": 3, "gamma": 0.3}, 12),
        (lambda o: OneCycle(o, 0.3, 100), "OneCycleLR", {"total_steps": 100}, 100),
        (
            lambda o: OneCycle(o, 0.3, 37, pct_start=0.1, div_factor=4, final_div_factor=50.0), "OneCycleLR",
            {"total_steps": 37, "pct_start": 0.1, "div_factor": 4, "final_div_factor": 50.0}, 37,
        ),
        (lambda o: OneCycle(o, 0.3, 10, pct_start=0.0), "OneCycleLR", {"total_steps": 10, "pct_start": 0.0}, 10),
        (lambda o: OneCycle(o, 0.3, 2), "OneCycleLR", {"total_steps": 2}, 2),
    ],
)  # fmt: skip
def test_rates_are_those_of_pytorch(
    make: Callable[[Optimizer], Any], peer: str, settings: dict[str, Any], steps: int
) -> None:
    """The last one, past the end, too."""
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=5.0)
    if peer == "OneCycleLR":
        settings = settings | {"max_lr": 0.3, "cycle_momentum": False}
    schedule = getattr(torch.optim.lr_scheduler, peer)(optimizer, **settings)
    expected = [optimizer.param_groups[0]["lr"]]
    for _ in range(steps):
        optimizer.step()
        schedule.step()
        expected.append(optimizer.param_groups[0]["lr"])
    assert rates_of(make, steps, lr=5.0) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("warmup", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("total", [1, 2, 3])
def test_one_cycle_has_a_rate_for_every_length(total: int, warmup: float) -> None:
    assert all(0 < rate <= 1 for rate in rates_of(lambda o: OneCycle(o, 1.0, total, warmup), total - 1))


SCHEDULES: list[Callable[[Optimizer], Any]] = [
    lambda o: OneCycle(o, 0.4, 19),
    lambda o: StepLR(o, 4, 0.5),
    lambda o: PassRates(o, [(4, 1 / 3), (9, 2)]),
]


@pytest.mark.parametrize("make", SCHEDULES)
def test_a_schedule_can_be_resumed(make: Callable[[Optimizer], Any]) -> None:
    """Its state goes through JSON, in which tuples become lists."""
    first, second = SGD([P], lr=1.0), SGD([P], lr=1.0)
    schedule = make(first)
    for _ in range(9):
        schedule.step()
    second.load_state_dict(first.state_dict())
    resumed = make(second)
    resumed.load_state_dict(json.loads(json.dumps(schedule.state_dict())))
    for _ in range(10):
        assert (second.lr, resumed.count) == (first.lr, schedule.count)
        schedule.step()
        resumed.step()


@pytest.mark.parametrize(
    ("make", "wrong", "names"),
    [
        (SCHEDULES[0], {"total_steps": 11}, "OneCycle total_steps 11 19"),
        (SCHEDULES[0], {"count": 21}, "OneCycle 21 19"),
        (SCHEDULES[0], {"count": -1}, "OneCycle count -1"),
        (SCHEDULES[1], {"other": 1}, "StepLR other"),
        (SCHEDULES[1], {"gamma": 0.25}, "StepLR gamma 0.25 0.5"),
        (SCHEDULES[1], {"base_lr": 0}, "StepLR base_lr 0"),
        (SCHEDULES[2], {"rates": [[4, 1 / 3]]}, "PassRates rates"),
    ],
)
def test_a_schedule_refuses_a_state_that_does_not_fit(
    make: Callable[[Optimizer], Any], wrong: dict[str, Any], names: str
) -> None:
    optimizer = SGD([P], lr=1.0)
    schedule = make(optimizer)
    schedule.step()
    state, rate = schedule.state_dict(), optimizer.lr
    with refused(ValueError, names):
        schedule.load_state_dict(state | wrong)
    assert (schedule.state_dict(), optimizer.lr) == (state, rate)


def test_one_cycle_refuses_a_step_after_the_last() -> None:
    optimizer = SGD([P], lr=1.0)
    schedule = OneCycle(optimizer, 1.0, 3)
    for _ in range(3):
        schedule.step()
    state, rate = schedule.state_dict(), optimizer.lr
    with refused(ValueError, "OneCycle 4 total_steps 3"):
        schedule.step()
    assert (schedule.state_dict(), optimizer.lr) == (state, rate)
