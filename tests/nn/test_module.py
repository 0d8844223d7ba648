"""Modules: what they hold, how they are saved, loaded, moved and shown."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.refusals import refused
from tinygrad_lenet import ShapeError, Tensor, nn, optim


class Net(nn.Module):
    """Nested, with a list-like part, a buffer, a parameter of its own, and a layer that is used under two names."""

    offset: Tensor

    def __init__(self, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.features = nn.Sequential(nn.Conv2d(1, 2, 3, rng=rng), nn.BatchNorm2d(2), nn.Tanh())
        self.scale = nn.Parameter([1.0, 2.0])
        self.flat = nn.Flatten()
        self.output = nn.Linear(32, 3, rng=rng)
        self.tied = self.output
        self.register_buffer("offset", Tensor([0.5]))
        self.constant = Tensor([3.0])  # neither learned nor saved
        self.note = "not a tensor"

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x) * self.scale.reshape(1, 2, 1, 1)
        return self.output(self.flat(x)) + self.offset  # type: ignore[no-any-return]


LEARNED = ["scale", "features.0.weight", "features.0.bias", "features.1.weight", "features.1.bias", "output.weight",
           "output.bias"]  # fmt: skip
SAVED = [
    "scale", "offset", *LEARNED[1:5], "features.1.running_mean", "features.1.running_var",
    "features.1.num_batches_tracked", "output.weight", "output.bias", "tied.weight", "tied.bias",
]  # fmt: skip


def images(n: int) -> Tensor:
    return Tensor(np.random.default_rng(0).normal(size=(n, 1, 6, 6)).astype(np.float32))


def values(net: nn.Module) -> dict[str, np.ndarray]:
    return {name: tensor.numpy().copy() for name, tensor in net.state_dict().items()}


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert list(found) == list(expected)
    for name in found:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


def test_a_parameter_copies_its_data() -> None:
    array = np.arange(3, dtype=np.float32)
    for given in (array, Tensor(array)):
        p = nn.Parameter(given)
        p.data += 1
        assert p.requires_grad
        np.testing.assert_array_equal(array, [0, 1, 2])
    assert nn.Parameter([1.0], dtype=np.float64).dtype == np.float64
    for given in (np.zeros(3), np.arange(3), [1, 2]):  # NumPy's float64, too
        assert nn.Parameter(given).dtype == np.float32


def test_what_a_module_holds() -> None:
    net = Net()
    assert list(net.state_dict()) == SAVED
    assert [name for name, _ in net.named_parameters()] == LEARNED  # the tied layer counts once
    assert len(list(net.parameters())) == len(LEARNED)
    names = ["", "features", "features.0", "features.1", "features.2", "flat", "output"]
    assert [name for name, _ in net.named_modules()] == names
    assert list(net.children()) == [net.features, net.flat, net.output]
    assert not any(tensor.requires_grad for tensor in net.state_dict().values())
    assert net.state_dict()["scale"].data is net.scale.data


def test_attributes_may_change_at_any_time() -> None:
    net = Net()
    net.output = net.tied = nn.Linear(32, 5, bias=False)
    assert net(images(2)).shape == (2, 5)
    assert "output.bias" not in net.state_dict()
    del net.scale
    assert "scale" not in net.state_dict()


def test_states_go_from_and_to_pytorch() -> None:
    """Its names, in its order."""
    torch = pytest.importorskip("torch")
    peer, ours = (
        lib.Sequential(lib.Conv2d(1, 2, 3), lib.BatchNorm2d(2), lib.Linear(4, 3)) for lib in (torch.nn, nn)
    )  # fmt: skip
    ours.load_state_dict(peer.state_dict())
    assert_same(values(ours), {name: tensor.numpy() for name, tensor in peer.state_dict().items()})
    peer.load_state_dict({name: torch.tensor(array) for name, array in values(ours).items()})


@pytest.mark.parametrize("convert", [lambda t: t, lambda t: t.numpy(), lambda t: t.numpy().tolist()])
def test_a_state_goes_round(convert: Callable[[Tensor], Any]) -> None:
    """Into the memory that an optimiser knows."""
    first, second = Net(0), Net(1)
    first(images(4))  # moves the statistics
    arrays = {name: tensor.data for name, tensor in second.state_dict().items()}
    optimizer = optim.SGD(second.parameters(), lr=1.0)
    second.load_state_dict({name: convert(tensor) for name, tensor in first.state_dict().items()})
    assert_same(values(second), values(first))
    assert all(second.state_dict()[name].data is array for name, array in arrays.items())
    second.scale.grad = Tensor([1.0, 1.0])
    optimizer.step()
    np.testing.assert_array_equal(second.scale.numpy(), [0.0, 1.0])


def test_loading_keeps_the_dtype() -> None:
    layer = nn.Linear(2, 1)
    layer.load_state_dict({"weight": np.array([[1.0, 2.0]]), "bias": np.array([3], np.int64)})
    assert layer.weight.dtype == np.float32
    np.testing.assert_array_equal(layer([1.0, 1.0]).numpy(), [6.0])


def test_a_state_that_does_not_fit_is_refused_whole() -> None:
    """One error names all misfits."""
    net = Net()
    before = values(net)
    state: dict[str, Any] = {name: np.ones_like(array) for name, array in before.items()}
    del state["features.0.bias"], state["scale"]
    state |= {"extra": np.ones(2), "output.weight": np.ones((3, 31)), "features.1.num_batches_tracked": np.array(1.5)}
    for wrong, error, names in (
        (state, ValueError, "Net scale features.0.bias missing extra unexpected output.weight (3, 31) (3, 32)"),
        (state, ValueError, "features.1.num_batches_tracked float64 int64"),
        ([], TypeError, "list"),
        ({**before, "scale": np.array(["a", "b"])}, TypeError, "<U1"),
    ):
        with refused(error, names):
            net.load_state_dict(wrong)  # type: ignore[arg-type]
        assert_same(values(net), before)


def test_modes_reach_every_module() -> None:
    net = Net()
    assert net.training
    assert net.eval() is net
    assert not any(module.training for _, module in net.named_modules())
    assert net.train() is net
    assert all(module.training for _, module in net.named_modules())
    net.features.train(False)
    assert [module.training for module in net.children()] == [False, True, True]
    assert Net().training  # of this one only


def test_gradients_are_forgotten() -> None:
    net = Net()
    net(images(2)).sum().backward()
    assert all(p.grad is not None for p in net.parameters())
    net.zero_grad()
    assert all(p.grad is None for p in net.parameters())


def test_moving_keeps_the_objects() -> None:
    net = Net()
    net.scale.grad = Tensor([1.0, 1.0])
    before, parameters = values(net), list(net.parameters())
    assert net.to("cpu") is net
    assert all(p is q for p, q in zip(net.parameters(), parameters, strict=True))
    assert_same(values(net), before)
    np.testing.assert_array_equal(net.scale.grad.numpy(), [1.0, 1.0])
    with refused(ValueError, "device tpu"):
        net.to("tpu")


def test_a_deep_copy_stands_alone() -> None:
    net = Net()
    other = copy.deepcopy(net)
    other.scale.data += 1
    assert isinstance(other.scale, nn.Parameter)
    assert other.tied is other.output
    np.testing.assert_array_equal(net.scale.numpy(), [1.0, 2.0])


def test_buffers_are_checked() -> None:
    net = Net()
    net.register_buffer("nothing", None)
    assert "nothing" not in net.state_dict()
    net.register_buffer("offset", Tensor([0.25]))  # again, with another value
    assert net.state_dict()["offset"].item() == 0.25
    for name in ("forward", "scale", "a.b", ""):
        with refused(ValueError, f"register_buffer {name!r}"):
            net.register_buffer(name, Tensor([1.0]))
    for value in (nn.Parameter([1.0]), 3.0):
        with refused(TypeError, f"register_buffer more {type(value).__name__}"):
            net.register_buffer("more", value)  # type: ignore[arg-type]


def test_sequential() -> None:
    first, second = nn.Linear(3, 2, rng=0), nn.Tanh()
    net = nn.Sequential(first, second, second)
    assert (len(net), list(net), net[-1]) == (3, [first, second, second], second)
    x = Tensor(np.ones((1, 3), np.float32))
    np.testing.assert_array_equal(net(x).numpy(), first(x).tanh().tanh().numpy())
    assert list(nn.Sequential({"c1": first, "act": second}).state_dict()) == ["c1.weight", "c1.bias"]
    with refused(TypeError, "Sequential 1 function"):
        nn.Sequential(first, lambda x: x)  # type: ignore[arg-type]
    for name in ("training", "a.b", ""):
        with refused(ValueError, f"Sequential {name!r}"):
            nn.Sequential({name: first})


def test_repr_is_nested() -> None:
    assert repr(nn.Sequential(nn.Linear(2, 1), nn.Sequential(nn.ReLU(), nn.Dropout(0.25)))) == (
        "Sequential(\n"
        "  (0): Linear(in_features=2, out_features=1, bias=True)\n"
        "  (1): Sequential(\n"
        "    (0): ReLU()\n"
        "    (1): Dropout(p=0.25)\n"
        "  )\n"
        ")"
    )


def test_a_module_without_forward_says_so() -> None:
    class Empty(nn.Module):
        pass

    with refused(TypeError, "Empty forward"):
        Empty()(1)


# summary (that of LeNet-5, whole, is in tests/test_models.py)


def test_summary_leaves_the_model_as_it_was() -> None:
    """Also when a shape does not fit; what no layer holds has a row of its own."""
    net = Net()
    net.features.eval()
    modes, before = [module.training for _, module in net.named_modules()], values(net)
    rows = [line.split() for line in net.summary((1, 6, 6)).splitlines()]
    assert ["features.0", "Conv2d", "1x6x6", "2x4x4", "20"] in rows
    assert ["features.1", "BatchNorm2d", "+", "Tanh", "2x4x4", "2x4x4", "4"] in rows
    assert ["(held", "outside", "these", "layers)", "2"] in rows  # scale
    assert ["total", "125"] in rows
    for shape, error, names in (((1, 7, 7), ValueError, ""), ((1, 2, 2), ShapeError, "conv2d 3 axis H 2"),
                                ((1, 6.0, 6), TypeError, "input_shape 6.0")):  # fmt: skip
        with refused(error, names):
            net.summary(shape)  # type: ignore[arg-type]
    assert [module.training for _, module in net.named_modules()] == modes
    assert_same(values(net), before)
    assert all(p.grad is None for p in net.parameters())
    assert not any(module._forward_hooks for _, module in net.named_modules())


def test_summary_counts_shared_parameters_once_and_keeps_the_dtype() -> None:
    layer = nn.Linear(3, 3, dtype=np.float64)
    lines = nn.Sequential(layer, layer).summary((3,)).splitlines()
    assert [line.split()[-1] for line in lines if "-" not in line] == ["parameters", "12", "0", "12"]


def test_a_module_may_refer_to_its_parent() -> None:
    net = nn.Sequential(nn.Linear(1, 1))
    net[0].parent = net  # type: ignore[attr-defined]
    assert list(net.state_dict()) == ["0.weight", "0.bias"]
    assert list(net[0].state_dict()) == ["weight", "bias"]


def test_a_move_that_fails_half_way_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = nn.Linear(1, 1)
    before, room = [p.data for p in layer.parameters()], iter([True])
    monkeypatch.setattr("tinygrad_lenet.nn.module.transfer", lambda array, device: next(room) and array.copy())
    with pytest.raises(StopIteration):
        layer.to("cpu")
    assert all(p.data is array for p, array in zip(layer.parameters(), before, strict=True))
