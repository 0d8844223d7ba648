"""Modules: what they hold, how they are saved, loaded, moved and shown."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tinygrad_lenet import ShapeError, Tensor, nn, optim


class Net(nn.Module):
    """Nested, with a list-like part, a buffer, a parameter of its own, and a layer that is used under two names."""

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

    offset: Tensor


NAMES = [
    "scale",
    "offset",
    "features.0.weight",
    "features.0.bias",
    "features.1.weight",
    "features.1.bias",
    "features.1.running_mean",
    "features.1.running_var",
    "features.1.num_batches_tracked",
    "output.weight",
    "output.bias",
    "tied.weight",
    "tied.bias",
]


def values(net: nn.Module) -> dict[str, np.ndarray]:
    return {name: tensor.numpy().copy() for name, tensor in net.state_dict().items()}


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert list(found) == list(expected)
    for name in found:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


def test_a_parameter_copies_its_data() -> None:
    array = np.arange(3, dtype=np.float64)
    p = nn.Parameter(array)
    array[0] = 9
    assert p.requires_grad
    assert p.dtype == np.float64
    np.testing.assert_array_equal(p.numpy(), [0, 1, 2])
    (p * p).sum().backward()
    assert p.grad is not None
    np.testing.assert_array_equal(p.grad.numpy(), [0, 2, 4])
    source = Tensor([1.0])
    assert nn.Parameter(source).data is not source.data
    with pytest.raises(ValueError, match="requires_grad needs floating-point data"):
        nn.Parameter(np.arange(3))


def test_what_a_module_holds() -> None:
    net = Net()
    assert list(net.state_dict()) == NAMES
    parameters = [name for name in NAMES if "running" not in name and "num_" not in name and name != "offset"]
    assert [name for name, _ in net.named_parameters()] == parameters[:-2]  # the tied layer counts once
    assert len(list(net.parameters())) == len(parameters) - 2
    names = ["", "features", "features.0", "features.1", "features.2", "flat", "output"]
    assert [name for name, _ in net.named_modules()] == names
    assert list(net.children()) == [net.features, net.flat, net.output]
    assert not any(tensor.requires_grad for tensor in net.state_dict().values())
    assert net.state_dict()["scale"].data is net.scale.data


def test_attributes_may_change_at_any_time() -> None:
    net = Net()
    net.output = net.tied = nn.Linear(32, 5, bias=False)
    assert net(Tensor(np.zeros((2, 1, 6, 6), np.float32))).shape == (2, 5)
    assert "output.bias" not in net.state_dict()
    del net.scale
    assert "scale" not in net.state_dict()


def test_state_dict_order_and_names_are_those_of_pytorch() -> None:
    torch = pytest.importorskip("torch")
    peer = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2), torch.nn.Linear(4, 3))
    ours = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(4, 3))
    assert list(ours.state_dict()) == list(peer.state_dict())
    ours.load_state_dict(peer.state_dict())
    for name, tensor in peer.state_dict().items():
        np.testing.assert_array_equal(ours.state_dict()[name].numpy(), tensor.numpy())
    peer.load_state_dict({name: torch.tensor(array) for name, array in values(ours).items()})


@pytest.mark.parametrize("convert", [lambda t: t, lambda t: t.numpy(), lambda t: t.numpy().tolist()])
def test_a_state_goes_round(convert: Callable[[Tensor], Any]) -> None:
    first, second = Net(0), Net(1)
    first(Tensor(np.random.default_rng(0).normal(size=(4, 1, 6, 6)).astype(np.float32)))  # moves the statistics
    arrays = {name: tensor.data for name, tensor in second.state_dict().items()}
    optimizer = optim.SGD(second.parameters(), lr=1.0)
    second.load_state_dict({name: convert(tensor) for name, tensor in first.state_dict().items()})
    assert_same(values(second), values(first))
    assert all(second.state_dict()[name].data is array for name, array in arrays.items())  # in place
    second.scale.grad = Tensor([1.0, 1.0])
    optimizer.step()
    np.testing.assert_array_equal(second.scale.numpy(), [0.0, 1.0])


def test_loading_keeps_the_dtype() -> None:
    layer = nn.Linear(2, 1)
    layer.load_state_dict({"weight": np.array([[1.0, 2.0]]), "bias": np.array([3], np.int64)})
    assert layer.weight.dtype == np.float32
    np.testing.assert_array_equal(layer([1.0, 1.0]).numpy(), [6.0])


def test_a_state_that_does_not_fit_is_refused_whole() -> None:
    net = Net()
    before = values(net)
    state: dict[str, Any] = {name: np.ones_like(array) for name, array in before.items()}
    del state["features.0.bias"], state["scale"]
    state |= {"extra": np.ones(2), "output.weight": np.ones((3, 31)), "features.1.num_batches_tracked": np.array(1.5)}
    with pytest.raises(ValueError, match="does not fit Net") as caught:
        net.load_state_dict(state)
    for words in (
        "scale is missing",
        "features.0.bias is missing",
        "extra is unexpected",
        "output.weight has shape (3, 31), expected (3, 32)",
        "features.1.num_batches_tracked has dtype float64, expected int64",
    ):
        assert words in str(caught.value)
    assert_same(values(net), before)
    with pytest.raises(TypeError, match="the state is list; expected a mapping"):
        net.load_state_dict([])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="not a real number"):
        net.load_state_dict({**before, "scale": np.array(["a", "b"])})
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
    net(Tensor(np.ones((2, 1, 6, 6), np.float32))).sum().backward()
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
    with pytest.raises(ValueError, match="unknown device 'tpu'"):
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
        with pytest.raises(ValueError, match="is taken, empty or has a dot"):
            net.register_buffer(name, Tensor([1.0]))
    for value in (nn.Parameter([1.0]), 3.0):
        with pytest.raises(TypeError, match="expected a Tensor or None"):
            net.register_buffer("more", value)  # type: ignore[arg-type]


def test_sequential() -> None:
    first, second = nn.Linear(3, 2, rng=0), nn.Tanh()
    net = nn.Sequential(first, second, second)
    assert len(net) == 3
    assert list(net) == [first, second, second]
    assert net[-1] is second
    x = Tensor(np.ones((1, 3), np.float32))
    np.testing.assert_array_equal(net(x).numpy(), first(x).tanh().tanh().numpy())
    named = nn.Sequential({"c1": first, "act": second})
    assert list(named.state_dict()) == ["c1.weight", "c1.bias"]
    with pytest.raises(TypeError, match="Sequential: 1 is function; expected a Module"):
        nn.Sequential(first, lambda x: x)  # type: ignore[arg-type]
    for name in ("training", "a.b", ""):
        with pytest.raises(ValueError, match="is taken, empty or has a dot"):
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

    with pytest.raises(TypeError, match="Empty: this module does not define forward"):
        Empty()(1)


# summary


def lenet() -> nn.Sequential:
    return nn.Sequential(
        {
            "c1": nn.Conv2d(1, 6, 5),
            "tanh1": nn.Tanh(),
            "s2": nn.AvgPool2d(2),
            "c3": nn.Conv2d(6, 16, 5),
            "tanh3": nn.Tanh(),
            "s4": nn.AvgPool2d(2),
            "c5": nn.Conv2d(16, 120, 5),
            "tanh5": nn.Tanh(),
            "flatten": nn.Flatten(),
            "f6": nn.Linear(120, 84),
            "tanh6": nn.Tanh(),
            "output": nn.Linear(84, 10),
        }
    )


def test_summary_of_lenet5() -> None:
    expected = """\
layer    type           input     output    parameters
------------------------------------------------------
c1       Conv2d + Tanh  1x32x32   6x28x28          156
s2       AvgPool2d      6x28x28   6x14x14            0
c3       Conv2d + Tanh  6x14x14   16x10x10       2,416
s4       AvgPool2d      16x10x10  16x5x5             0
c5       Conv2d + Tanh  16x5x5    120x1x1       48,120
flatten  Flatten        120x1x1   120                0
f6       Linear + Tanh  120       84            10,164
output   Linear         84        10               850
------------------------------------------------------
total                                           61,706"""
    net = lenet()
    assert net.summary((1, 32, 32)) == expected
    assert net.summary((2, 1, 32, 32)) == expected


def test_summary_leaves_the_model_as_it_was() -> None:
    net = Net()
    net.features.eval()
    modes = [module.training for _, module in net.named_modules()]
    before = values(net)
    text = net.summary((1, 6, 6))
    assert [module.training for _, module in net.named_modules()] == modes
    assert_same(values(net), before)
    assert all(p.grad is None for p in net.parameters())
    assert all("_after_call" not in vars(module) for _, module in net.named_modules())
    rows = [line.split() for line in text.splitlines()]
    assert ["features.0", "Conv2d", "1x6x6", "2x4x4", "20"] in rows
    assert ["features.1", "BatchNorm2d", "+", "Tanh", "2x4x4", "2x4x4", "4"] in rows
    assert ["(held", "outside", "these", "layers)", "2"] in rows  # scale
    assert ["total", "125"] in rows


def test_summary_counts_shared_parameters_once_and_keeps_the_dtype() -> None:
    layer = nn.Linear(3, 3, dtype=np.float64)
    lines = nn.Sequential(layer, layer).summary((3,)).splitlines()
    assert [line.split()[-1] for line in lines if "-" not in line] == ["parameters", "12", "0", "12"]


def test_summary_reports_a_shape_that_does_not_fit_and_cleans_up() -> None:
    net = lenet()
    with pytest.raises(ShapeError, match="conv2d: the window reaches over 5 along axis H, which has 4"):
        net.summary((1, 28, 28))
    assert all(module.training and "_after_call" not in vars(module) for _, module in net.named_modules())
    with pytest.raises(TypeError, match="each size in input_shape must be an integer"):
        net.summary((1, 32.0, 32))  # type: ignore[arg-type]
