"""What other programs than the LeNets use: lists of modules, more layers, losses as modules, initial values."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.refusals import refused
from tinygrad_lenet import Tensor, jit, manual_seed, nn, optim, zeros
from tinygrad_lenet import functional as F


class Net(nn.Module):
    def __init__(self) -> None:
        self.layers = nn.ModuleList([nn.Linear(3, 4, rng=0), nn.Linear(4, 3, rng=1)])
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


def test_modules_in_a_list_are_found() -> None:
    net = Net()
    assert [name for name, _ in net.named_parameters()] == [
        "layers.0.weight", "layers.0.bias", "layers.1.weight", "layers.1.bias", "norm.weight", "norm.bias",
    ]  # fmt: skip
    assert [name for name, _ in net.named_buffers()] == [
        "norm.running_mean", "norm.running_var", "norm.num_batches_tracked",
    ]  # fmt: skip
    assert len(list(net.buffers())) == 3
    assert [type(module).__name__ for module in net.modules()] == [
        "Net", "ModuleList", "Linear", "Linear", "BatchNorm1d",
    ]  # fmt: skip
    net.layers.append(nn.Tanh())
    assert (len(net.layers), type(net.layers[-1]).__name__, type(net.layers[:2]).__name__) == (3, "Tanh", "ModuleList")
    with refused(TypeError, "ModuleList 3"):
        net.layers.append(3)  # type: ignore[arg-type]
    with refused(TypeError, "ModuleList"):
        net.layers(Tensor([1.0]))


def test_apply_and_requires_grad() -> None:
    net, seen = Net(), []
    assert net.apply(lambda module: seen.append(module)) is net
    assert seen[-1] is net
    assert len(seen) == 5
    assert net.requires_grad_(False) is net
    assert not any(p.requires_grad for p in net.parameters())
    assert not net.eval()(np.ones((2, 3), np.float32)).requires_grad
    net.layers[1].requires_grad_()
    assert sum(p.requires_grad for p in net.parameters()) == 2


def test_a_state_that_fits_in_part() -> None:
    net, other = nn.Linear(2, 2, rng=0), nn.Linear(2, 2, rng=1)
    bias = net.bias.numpy().copy()
    state = {"weight": other.weight, "head.weight": np.zeros(3)}
    with refused(ValueError, "bias head.weight"):
        net.load_state_dict(state)
    net.load_state_dict(state, strict=False)
    np.testing.assert_array_equal(net.weight.numpy(), other.weight.numpy())
    np.testing.assert_array_equal(net.bias.numpy(), bias)
    with refused(ValueError, "weight shape"):
        net.load_state_dict({"weight": np.zeros((3, 3))}, strict=False)
    with refused(TypeError, "list mapping"):
        net.load_state_dict([1], strict=False)  # type: ignore[arg-type]


def test_the_prefix_of_data_parallel_is_named() -> None:
    net = nn.Linear(2, 2, rng=0)
    state = {f"module.{name}": np.zeros(tensor.shape) for name, tensor in net.state_dict().items()}
    with refused(ValueError, "module. DataParallel removeprefix"):
        net.load_state_dict(state)
    net.load_state_dict({name.removeprefix("module."): value for name, value in state.items()})
    assert not net.weight.numpy().any()


@pytest.mark.parametrize("name", nn.init.__all__)
def test_initial_values(name: str) -> None:
    draw = getattr(nn.init, name)
    options: dict[str, Any] = {"val": 3.0} if name == "constant_" else {}
    p = nn.Parameter(np.full((200, 50, 3), 9.0))
    memory = p.data
    assert draw(p, **options) is p
    assert p.data is memory
    assert p.requires_grad
    x, fan_in, fan_out = p.numpy(), 150, 600
    spread = {
        "constant_": 0, "zeros_": 0, "ones_": 0, "uniform_": 1 / np.sqrt(12), "normal_": 1,
        "xavier_uniform_": np.sqrt(2 / (fan_in + fan_out)), "xavier_normal_": np.sqrt(2 / (fan_in + fan_out)),
        "kaiming_uniform_": np.sqrt(2 / fan_in), "kaiming_normal_": np.sqrt(2 / fan_in),
    }[name]  # fmt: skip
    mean = {"constant_": 3, "ones_": 1, "uniform_": 0.5}.get(name, 0)
    assert x.std() == pytest.approx(spread, rel=0.02)
    assert x.mean() == pytest.approx(mean, abs=0.02)
    if spread:
        manual_seed(4)
        first = draw(zeros(3, 4)).numpy().copy()
        manual_seed(4)
        np.testing.assert_array_equal(draw(zeros(3, 4)).numpy(), first)


@pytest.mark.parametrize(
    ("act", "error"),
    [
        (lambda: nn.init.xavier_uniform_(zeros(3)), ValueError),
        (lambda: nn.init.kaiming_normal_(zeros(3, 3), mode="fan"), ValueError),
        (lambda: nn.init.kaiming_normal_(zeros(3, 3), nonlinearity="selu"), ValueError),
        (lambda: nn.init.normal_(zeros(3), std=-1), ValueError),
        (lambda: nn.init.uniform_(zeros(3), "a"), TypeError),
        (lambda: nn.Embedding(0, 3), ValueError),
        (lambda: nn.Embedding(4, 3)([4]), ValueError),
        (lambda: nn.Embedding(4, 3)([-1]), ValueError),
        (lambda: nn.Embedding(4, 3)([0.5]), TypeError),
        (lambda: nn.LayerNorm(4)(zeros(2, 3)), ValueError),
        (lambda: nn.LayerNorm(()), ValueError),
        (lambda: nn.Dropout2d()(zeros(2, 3)), ValueError),
        (lambda: nn.CrossEntropyLoss(reduction="all"), ValueError),
        (lambda: F.cross_entropy(zeros(2, 3), [0, 3], ignore_index=-100), ValueError),
        (lambda: F.cross_entropy(zeros(2, 3), [0, -100]), ValueError),
        (lambda: F.cross_entropy(zeros(2, 3, 4), np.zeros((2, 3), int)), ValueError),
        (lambda: F.cross_entropy(zeros(2, 3), [0, 1], weight=[1.0, 2.0]), ValueError),
        (lambda: F.cross_entropy(zeros(2, 3), zeros(2, 3), ignore_index=1), ValueError),
        (lambda: F.binary_cross_entropy_with_logits(zeros(2), zeros(3)), ValueError),
        (lambda: F.l1_loss(zeros(2), zeros(2, dtype="float64")), TypeError),
        (lambda: F.smooth_l1_loss(zeros(2), zeros(2), beta=-1), ValueError),
    ],
)
def test_what_is_refused(act: Callable[[], Any], error: type[Exception]) -> None:
    with refused(error):
        act()


def test_one_seed_for_all() -> None:
    def run() -> list[float]:
        manual_seed(11)
        net = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 8), nn.ReLU(True), nn.Dropout(0.5), nn.Linear(8, 2))
        optimizer = optim.SGD(net.parameters(), lr=0.1)
        losses = []
        for _ in range(3):
            loss = F.cross_entropy(net([0, 3, 4]), [0, 1, 0])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    assert run() == run()


# Groups of parameters


def _leaves() -> list[Tensor]:
    return [Tensor([1.0, 2.0], requires_grad=True), Tensor([3.0], requires_grad=True)]


@pytest.mark.parametrize("make", [optim.SGD, optim.Adam, optim.AdamW])
def test_groups_step_as_optimisers_of_their_own(make: Any) -> None:
    together, apart = _leaves(), _leaves()
    one = make([{"params": [together[0]], "lr": 0.3}, {"params": together[1], "weight_decay": 0.5}], lr=0.1)
    several = [make([apart[0]], lr=0.3), make([apart[1]], lr=0.1, weight_decay=0.5)]
    schedules = [optim.StepLR(each, 2, 0.5) for each in (one, *several)]
    for _ in range(5):
        for leaves in (together, apart):
            for p in leaves:
                p.grad = None
                (p * p * p).sum().backward()
        for each in (one, *several, *schedules):
            each.step()
    for p, q in zip(together, apart, strict=True):
        np.testing.assert_allclose(p.numpy(), q.numpy(), rtol=1e-6)


@pytest.mark.parametrize(
    ("groups", "error"),
    [
        ([{"lr": 1.0}], TypeError), ([{"params": []}], ValueError), ([{"params": 3}], TypeError),
        ([{"params": [Tensor([1.0])], "lr": 0}], ValueError), ({"params": [Tensor([1.0])]}, TypeError),
        ([{"params": [Tensor([1.0])], "momentum": 1}], ValueError), ([{"params": [Tensor([1.0])]}, 3], TypeError),
        ([{"params": [Tensor([1.0])], "weight_decay": -1}], ValueError),
    ],
)  # fmt: skip
def test_malformed_groups(groups: Any, error: type[Exception]) -> None:
    with refused(error):
        optim.SGD(groups, lr=0.1)


def test_a_tensor_in_two_groups_is_refused() -> None:
    p = Tensor([1.0], requires_grad=True)
    with refused(ValueError, "again"):
        optim.SGD([{"params": [p]}, {"params": [p], "lr": 1.0}], lr=0.1)


def test_a_recorded_step_with_groups_and_clipping() -> None:
    """To the bit what it is without `jit`."""
    x, y = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32), np.arange(8) % 3

    def run(wrap: Callable[[Any], Any]) -> list[np.ndarray]:
        net = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 16, rng=0), nn.LeakyReLU(), nn.Linear(16, 3, rng=1))
        groups = [{"params": net[1].parameters(), "lr": 0.01}, {"params": net[3].parameters(), "weight_decay": 0.1}]
        optimizer = optim.AdamW(groups, lr=0.05)

        def step(x: Tensor, y: Tensor) -> Tensor:
            loss = F.cross_entropy(net(x), y)
            optimizer.zero_grad()
            loss.backward()
            optim.clip_grad_norm(net.parameters(), 0.5)
            optimizer.step()
            return loss

        recorded = wrap(step)
        for _ in range(6):
            recorded(Tensor(x), Tensor(y))
        return [p.numpy() for p in net.parameters()]

    for eager, replayed in zip(run(lambda step: step), run(jit), strict=True):
        np.testing.assert_array_equal(eager, replayed)


def test_clipping_keeps_short_gradients_and_leaves_out_missing_ones() -> None:
    a, b, c = _leaves() + _leaves()[:1]
    ((3 * a).sum() + (4 * b).sum()).backward()
    before = a.grad
    assert before is not None
    assert optim.clip_grad_norm([a, b, c], 100.0).item() == pytest.approx(np.sqrt(9 + 9 + 16))
    assert a.grad is not None
    np.testing.assert_allclose(a.grad.numpy(), [3, 3], rtol=1e-6)
    optim.clip_grad_norm(iter([a, b, c]), 1.0)
    assert b.grad is not None
    assert np.sqrt((a.grad.numpy() ** 2).sum() + b.grad.numpy()[0] ** 2) == pytest.approx(1, rel=1e-5)
    assert c.grad is None
    assert optim.clip_grad_norm([c], 1.0).item() == 0
    for bad in (0, -1, "a"):
        with refused((TypeError, ValueError), "max_norm"):
            optim.clip_grad_norm([a], bad)  # type: ignore[arg-type]
