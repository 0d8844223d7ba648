"""Layers: the functions they call, initial values, modes, statistics, and clear refusals."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import tests.strict  # noqa: F401 - makes the device "strict" known
from models.lenet5_1998 import TABLE_I
from tests.refusals import refused
from tinygrad_lenet import ShapeError, Tensor, grad, nn
from tinygrad_lenet import functional as F

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(3, 4, 6, 7))
IMAGES32 = IMAGES.astype(np.float32)
ROWS, SEQUENCES = RNG.normal(size=(5, 4)), RNG.normal(size=(5, 4, 3))


def assert_close(found: Any, expected: Any) -> None:
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "arguments", "x"),
    [
        ("Conv2d", {"in_channels": 4, "out_channels": 6, "kernel_size": (3, 2), "stride": 2, "padding": 1}, IMAGES),
        ("Conv2d", {"in_channels": 4, "out_channels": 2, "kernel_size": 2, "dilation": 2, "groups": 2}, IMAGES),
        ("Conv2d", {"in_channels": 4, "out_channels": 1, "kernel_size": 2, "bias": False}, IMAGES),
        (
            "ConvTranspose2d",
            {"in_channels": 4, "out_channels": 2, "kernel_size": 3, "stride": 2, "output_padding": 1}, IMAGES,
        ),
        ("ConvTranspose2d", {"in_channels": 4, "out_channels": 6, "kernel_size": (1, 3), "groups": 2}, IMAGES),
        ("ConvTranspose2d", {"in_channels": 4, "out_channels": 2, "kernel_size": 3, "dilation": 2}, IMAGES),
        ("Linear", {"in_features": 7, "out_features": 5}, IMAGES),
        ("Linear", {"in_features": 7, "out_features": 5, "bias": False}, IMAGES),
        ("AvgPool2d", {"kernel_size": (2, 3), "stride": 1, "padding": 1}, IMAGES),
        ("MaxPool2d", {"kernel_size": 2}, IMAGES),
        ("Tanh", {}, IMAGES),
        ("Sigmoid", {}, IMAGES),
        ("ReLU", {}, IMAGES),
        ("Flatten", {}, IMAGES),
        ("BatchNorm2d", {"num_features": 4, "momentum": 0.3, "eps": 1e-3}, IMAGES),
        ("BatchNorm2d", {"num_features": 4, "affine": False}, IMAGES),
        ("BatchNorm1d", {"num_features": 4}, ROWS),
        ("BatchNorm1d", {"num_features": 4}, SEQUENCES),
    ],
)  # fmt: skip
def test_layers_are_those_of_pytorch(name: str, arguments: dict[str, Any], x: np.ndarray) -> None:
    """In both modes, on PyTorch's state; statistics stay PyTorch's."""
    torch = pytest.importorskip("torch")
    peer, layer = getattr(torch.nn, name)(**arguments).double(), getattr(nn, name)(**arguments)
    if layer.state_dict():
        layer = getattr(nn, name)(**arguments, dtype=np.float64)
    layer.load_state_dict(peer.state_dict())
    for mode in (True, False):
        assert_close(layer.train(mode)(Tensor(x)), peer.train(mode)(torch.tensor(x)).detach().numpy())
    for key, tensor in peer.state_dict().items():
        assert_close(layer.state_dict()[key], tensor.numpy())


# Initial values

MAPS = [[0]] * 16 + [[0, 1, 2, 3]] * 16
MAP_FANS = 25 * np.array([len(maps) for maps in MAPS])


@pytest.mark.parametrize(
    ("make", "weight_fans", "bias_fans"),
    [
        (lambda **how: nn.Conv2d(6, 40, 5, groups=2, **how), 75, 75),
        (lambda **how: nn.ConvTranspose2d(20, 40, (2, 5), groups=2, **how), 200, 200),
        (lambda **how: nn.Linear(50, 40, **how), 50, 50),
        (lambda **how: nn.Conv2d(4, 32, 5, connections=MAPS, **how), np.repeat(MAP_FANS, MAP_FANS // 25), MAP_FANS),
    ],
)
def test_initial_values(make: Callable[..., Any], weight_fans: Any, bias_fans: Any) -> None:
    """Uniform within +-1/sqrt(fan-in), each map within its own; the same for the same seed or generator."""
    layer, double = make(rng=3), make(rng=3, dtype=np.float64)
    for p, fans in ((layer.weight, weight_fans), (layer.bias, bias_fans)):
        fans = np.broadcast_to(np.reshape(fans, (-1,) + (1,) * (p.ndim - 1)), p.shape)
        ratios = p.numpy() * np.sqrt(fans)
        assert p.dtype == np.float32
        assert abs(ratios.mean()) < 4 / math.sqrt(3 * p.size)  # four standard errors
        for fan in np.unique(fans):
            assert 0.7 < np.abs(ratios[fans == fan]).max() <= 1 + 1e-6
    assert (
        np.unique(np.append(double.weight.numpy(), double.bias.numpy())).size == double.weight.size + double.bias.size
    )
    np.testing.assert_array_equal(double.weight.numpy().astype(np.float32), layer.weight.numpy())
    for again in (make(rng=3), make(rng=np.random.default_rng(3))):
        np.testing.assert_array_equal(again.weight.numpy(), layer.weight.numpy())
        np.testing.assert_array_equal(again.bias.numpy(), layer.bias.numpy())
    rng = np.random.default_rng(0)
    for first, second in ((make(rng=4), layer), (make(), make()), (make(rng=rng), make(rng=rng))):
        assert (first.weight.numpy() != second.weight.numpy()).any()
    assert make(bias=False).bias is None


# Layers with modes


def test_dropout_acts_in_training_only_and_repeats_by_seed() -> None:
    x = Tensor(np.ones((50, 40), np.float32))
    layer = nn.Dropout(0.25, rng=1)
    first, second = layer(x).numpy(), layer(x).numpy()
    assert set(np.unique(first)) == {np.float32(0), np.float32(1 / 0.75)}
    assert abs((first == 0).mean() - 0.25) < 0.04  # four standard errors
    assert (first != second).any()
    np.testing.assert_array_equal(nn.Dropout(0.25, rng=np.random.default_rng(1))(x).numpy(), first)
    np.testing.assert_array_equal(layer.eval()(x).numpy(), x.numpy())
    np.testing.assert_array_equal(nn.Dropout(0)(x).numpy(), x.numpy())


@pytest.mark.parametrize(("make", "x"), [(nn.BatchNorm2d, IMAGES), (nn.BatchNorm1d, ROWS), (nn.BatchNorm1d, SEQUENCES)])
def test_batch_norm_statistics_follow_in_training_only(make: Callable[..., Any], x: np.ndarray) -> None:
    """In place; the variance in its unbiased form, over as many values as each channel has."""
    layer = make(4, dtype=np.float64)
    mean, var = layer.running_mean.data, layer.running_var.data
    layer.eval()(Tensor(x))
    assert not mean.any()
    assert layer.num_batches_tracked.item() == 0
    layer.train()(Tensor(x))
    assert (layer.running_mean.data is mean, layer.running_var.data is var) == (True, True)
    others = (0, *range(2, x.ndim))
    np.testing.assert_allclose(mean, 0.1 * x.mean(others))
    np.testing.assert_allclose(var, 0.9 + 0.1 * x.var(others, ddof=1))
    assert layer.num_batches_tracked.item() == 1


def test_gradients_reach_every_parameter() -> None:
    net = nn.Sequential(
        nn.Conv2d(4, 2, 3), nn.BatchNorm2d(2), nn.ScaledTanh(), nn.ConvTranspose2d(2, 1, 2), nn.Flatten(),
        nn.Linear(30, 2),
    )  # fmt: skip
    F.cross_entropy(net(Tensor(IMAGES32)), np.array([0, 1, 0])).backward()
    for name, p in net.named_parameters():
        assert p.grad is not None and p.grad.shape == p.shape and p.grad.dtype == np.float32, name


def test_scaled_tanh() -> None:
    assert_close(nn.ScaledTanh()(IMAGES), 1.7159 * np.tanh(2 / 3 * IMAGES))
    assert_close(nn.ScaledTanh(2.0, 0.5)(IMAGES), 2 * np.tanh(IMAGES / 2))


@pytest.mark.parametrize(("start", "shape"), [(0, (504,)), (1, (3, 168)), (2, (3, 4, 42)), (3, (3, 4, 6, 7))])
def test_flatten(start: int, shape: tuple[int, ...]) -> None:
    np.testing.assert_array_equal(nn.Flatten(start)(IMAGES).numpy(), IMAGES.reshape(shape))
    assert nn.Flatten()(np.zeros((0, 3, 2))).shape == (0, 6)


@pytest.mark.parametrize(
    ("layer", "text"),
    [
        (nn.ScaledTanh(), "ScaledTanh(amplitude=1.7159, slope=0.666667)"),
        (nn.Subsample2d(6), "Subsample2d(6, kernel_size=(2, 2))"),
        (nn.Subsample2d(4, (2, 3)), "Subsample2d(4, kernel_size=(2, 3))"),
        (nn.RBF([[1, -1, 1], [1, 1, -1]], trainable=True), "RBF(3, 2, trainable=True)"),
        (
            nn.Conv2d(6, 16, 5, connections=TABLE_I),
            "Conv2d(6, 16, kernel_size=(5, 5), stride=(1, 1), connections=60 of 96)",
        ),
    ],
)
def test_repr(layer: nn.Module, text: str) -> None:
    assert repr(layer) == text


# Convolutions that see some maps only

TABLE = ((2, 0), (3,), (0, 1, 2, 3), (1, 2), (0, 3))  # not sorted: the order of a row is that of its kernels
PLACES = tuple(np.array([(f, c) for f, maps in enumerate(TABLE) for c in maps]).T)


@pytest.mark.parametrize("how", [{}, {"bias": False}, {"stride": (2, 1), "padding": 1}, {"dilation": (1, 2)}], ids=str)
def test_connections_are_a_masked_dense_convolution(how: dict[str, Any]) -> None:
    """Forward and in every gradient: the kernels' are those of the dense weight, at their places."""
    layer = nn.Conv2d(4, 5, (3, 2), connections=TABLE, dtype=np.float64, rng=1, **how)
    array = np.zeros((5, 4, 3, 2))
    array[PLACES] = layer.weight.numpy()
    dense, x = Tensor(array, requires_grad=True), Tensor(IMAGES, requires_grad=True)
    settings = {name: value for name, value in how.items() if name != "bias"}
    y, expected = layer(x), F.conv2d(x, dense, layer.bias, **settings)
    assert_close(y, expected.numpy())
    gy, bias = np.random.default_rng(0).normal(size=y.shape), [] if layer.bias is None else [layer.bias]
    (gw, *others), (g_dense, *g_others) = grad(y, [layer.weight, x, *bias], gy), grad(expected, [dense, x, *bias], gy)
    assert_close(gw, g_dense.numpy()[PLACES])
    for a, b in zip(others, g_others, strict=True):
        assert_close(a, b.numpy())


def test_all_connections_are_a_dense_convolution() -> None:
    """Numbers move from one to the other by a reshape; a table may be an array, and is kept as plain integers."""
    dense = nn.Conv2d(4, 3, 2, rng=0, dtype=np.float64)
    layer = nn.Conv2d(4, 3, 2, connections=np.tile(np.arange(4), (3, 1)), dtype=np.float64)
    state = dense.state_dict()
    layer.load_state_dict({"weight": state["weight"].reshape(12, 2, 2), "bias": state["bias"]})
    assert_close(layer(IMAGES), dense(IMAGES).numpy())
    assert layer.connections == ((0, 1, 2, 3),) * 3
    assert all(type(c) is int for maps in layer.connections for c in maps)


def test_connections_in_a_state() -> None:
    """A state goes to a layer with as many kernels; one with more or fewer refuses it and stays as it was."""
    layer, same = (nn.Conv2d(4, 5, 2, connections=TABLE, rng=seed) for seed in (0, 1))
    assert {name: tensor.shape for name, tensor in layer.state_dict().items()} == {"weight": (11, 2, 2), "bias": (5,)}
    same.load_state_dict({name: tensor.numpy().copy() for name, tensor in layer.state_dict().items()})
    np.testing.assert_array_equal(same(IMAGES32).numpy(), layer(IMAGES32).numpy())
    other = nn.Conv2d(4, 5, 2, connections=[[0]] * 5, rng=0)
    before = other.weight.numpy().copy()
    with refused(ValueError, "weight (11, 2, 2) (5, 2, 2)"):
        other.load_state_dict(layer.state_dict())
    np.testing.assert_array_equal(other.weight.numpy(), before)


# Subsampling and radial basis functions


def test_subsampling_starts_as_the_mean_of_each_window() -> None:
    layer = nn.Subsample2d(4, (2, 3), dtype=np.float64)
    means = IMAGES[..., :6].reshape(3, 4, 3, 2, 2, 3).mean((3, 5))
    assert_close(layer(IMAGES), means)
    np.testing.assert_array_equal(layer.weight.numpy(), np.full(4, 1 / 6))
    layer.load_state_dict({"weight": np.arange(4.0), "bias": np.arange(4.0) - 1})
    channel = np.arange(4.0)[:, None, None]
    assert_close(layer(IMAGES), 6 * channel * means + channel - 1)
    assert {name: p.dtype for name, p in nn.Subsample2d(2).named_parameters()} == {
        "weight": np.float32, "bias": np.float32,
    }  # fmt: skip


CENTERS = np.array([[1.0, -1.0, 1.0], [1.0, 1.0, -1.0]])


@pytest.mark.parametrize("trainable", [False, True])
def test_rbf(trainable: bool) -> None:
    """Fixed centers are saved but not learned; trainable ones are both, under the same name."""
    given = CENTERS.copy()
    layer = nn.RBF(given, trainable, dtype=np.float64)
    given[:] = 9  # the layer has its own
    x = Tensor(np.random.default_rng(0).normal(size=(5, 3)), requires_grad=True)
    y, differences = layer(x), x.numpy()[:, None] - CENTERS
    assert_close(y, (differences**2).sum(2))
    assert [name for name, _ in layer.named_parameters()] == (["centers"] if trainable else [])
    y.sum().backward()
    assert x.grad is not None
    assert layer.centers.requires_grad is (layer.centers.grad is not None) is trainable
    if layer.centers.grad is not None:
        assert_close(layer.centers.grad, -2 * differences.sum(0))

    assert list(layer.state_dict()) == ["centers"]
    other = nn.RBF(np.zeros((2, 3)), not trainable)
    memory = other.centers.data
    other.load_state_dict(layer.state_dict())
    assert other.centers.data is memory
    np.testing.assert_array_equal(memory, CENTERS)


def test_rbf_is_float32_and_moves_with_its_module() -> None:
    layer = nn.RBF([[1, -1], [1, 1]])
    assert layer.centers.dtype == layer(np.ones((1, 2), np.float32)).dtype == np.float32
    assert layer.to("strict").centers.device == "strict"
    assert layer(Tensor([[1.0, -1.0]], device="strict")).numpy().tolist() == [[0, 4]]


# Refusals


def table(connections: Any, **how: Any) -> nn.Conv2d:
    return nn.Conv2d(2, 2, 1, connections=connections, **how)


REFUSED: list[tuple[Callable[..., Any], type[Exception], str]] = [
    (lambda: nn.Conv2d(0, 1, 1), ValueError, "Conv2d in_channels 0"),
    (lambda: nn.Conv2d(1, 2.0, 1), TypeError, "Conv2d out_channels 2.0"),  # type: ignore[arg-type]
    (lambda: nn.Conv2d(1, 1, (1, 2, 3)), ValueError, "kernel_size (1, 2, 3)"),  # type: ignore[arg-type]
    (lambda: nn.Conv2d(1, 1, 1, stride=0), ValueError, "stride 0"),
    (lambda: nn.Conv2d(1, 1, 1, padding=-1), ValueError, "padding -1"),
    (lambda: nn.Conv2d(3, 4, 1, groups=2), ValueError, "in_channels 3 groups 2"),
    (lambda: nn.Conv2d(4, 3, 1, groups=2), ValueError, "out_channels 3 groups 2"),
    (lambda: nn.ConvTranspose2d(1, 1, 1, output_padding=1), ValueError, "output_padding 1"),
    (lambda: nn.Linear(1, True), TypeError, "Linear out_features True"),
    (lambda: nn.AvgPool2d(0), ValueError, "kernel_size 0"),
    (lambda: nn.MaxPool2d(2, padding=2), ValueError, "padding 2 kernel_size"),
    (lambda: nn.Flatten(-1), ValueError, "Flatten start_dim -1"),
    (lambda: nn.Flatten(2)(np.zeros((3, 4))), ShapeError, "Flatten (3, 4) axis 2"),
    (lambda: nn.Dropout(1), ValueError, "p 1"),
    (lambda: nn.Dropout(-0.1), ValueError, "p -0.1"),
    (lambda: nn.Dropout("half"), TypeError, "p half"),  # type: ignore[arg-type]
    (lambda: nn.BatchNorm2d(0), ValueError, "BatchNorm2d num_features 0"),
    (lambda: nn.BatchNorm2d(1, eps=-1), ValueError, "eps -1"),
    (lambda: nn.BatchNorm2d(1, momentum=None), TypeError, "momentum None"),  # type: ignore[arg-type]
    (lambda: nn.BatchNorm2d(1, momentum=1.5), ValueError, "momentum 1.5"),
    (lambda: nn.BatchNorm2d(4)(IMAGES32[0]), ShapeError, "BatchNorm2d (4, 6, 7) [N C H W]"),
    (lambda: nn.BatchNorm1d(4)(IMAGES32), ShapeError, "BatchNorm1d [N C] [N C L]"),
    (lambda: nn.BatchNorm2d(3)(IMAGES32), ShapeError, "axis C 4"),
    (lambda: nn.ScaledTanh(math.nan), ValueError, "amplitude nan"),
    (lambda: table([[0], [2]]), ValueError, "row 1 connections map 2"),
    (lambda: table([[0], [-1]]), ValueError, "row 1 connections -1"),
    (lambda: table([[0], []]), ValueError, "row 1 connections empty"),
    (lambda: table([]), ValueError, "connections empty"),
    (lambda: table([[0], [1, 0, 1]]), ValueError, "row 1 connections (1, 0, 1) twice"),
    (lambda: table([[0]]), ValueError, "connections 1 2"),
    (lambda: table([[0], [1], [0]]), ValueError, "connections 3 2"),
    (lambda: table([[0], [1]], groups=2), ValueError, "groups 2 connections"),
    (lambda: table([0, 1]), TypeError, "connections [0, 1]"),
    (lambda: table(5), TypeError, "connections 5"),
    (lambda: table([[0], [1]])(IMAGES32), ShapeError, "axis C 4 2"),
    *((lambda bad=bad: table([[0], [bad]]), TypeError, f"connections integer {bad}") for bad in (0.5, 0.0, "1", None)),
    *((lambda bad=bad: table([[0], [bad, 1]]), TypeError, f"connections integer {bad}") for bad in (False, 0.0)),
    (lambda: nn.Subsample2d(0), ValueError, "Subsample2d channels 0"),
    (lambda: nn.Subsample2d(2.0), TypeError, "Subsample2d channels 2.0"),  # type: ignore[arg-type]
    (lambda: nn.Subsample2d(1, 0), ValueError, "kernel_size 0"),
    (lambda: nn.Subsample2d(1, (1, 2, 3)), ValueError, "kernel_size"),  # type: ignore[arg-type]
    (lambda: nn.Subsample2d(3)(IMAGES32), ShapeError, "axis C 4 3"),
    (lambda: nn.Subsample2d(4, 7)(IMAGES32), ShapeError, "7 axis H 6"),
    (lambda: nn.RBF([1.0, 2.0]), ValueError, "RBF centers (2,)"),
    (lambda: nn.RBF([]), ValueError, "RBF centers (0,)"),
    (lambda: nn.RBF(np.ones((2, 0))), ValueError, "RBF centers (2, 0)"),
    (lambda: nn.RBF([[1.0], [1.0, 2.0]]), ValueError, "rectangular"),
    (lambda: nn.RBF([["a"]]), TypeError, "<U1"),
    (lambda: nn.RBF(CENTERS)(np.ones((2, 4), np.float32)), ShapeError, "axis J 4 3"),
    *(
        (lambda make=make, how=how: make(**how), error, names)
        for make in (lambda **how: nn.Conv2d(1, 1, 1, **how), lambda **how: table([[0], [1]], **how))
        for how, error, names in (
            ({"rng": "x"}, TypeError, "Conv2d rng x"), ({"rng": -1}, ValueError, "Conv2d rng -1"),
        )
    ),
    *(
        (lambda make=make: make(dtype=int), TypeError, "dtype int64")
        for make in (
            lambda dtype: nn.Conv2d(1, 1, 1, dtype=dtype), lambda dtype: table([[0], [1]], dtype=dtype),
            lambda dtype: nn.Subsample2d(1, dtype=dtype), lambda dtype: nn.RBF(CENTERS, dtype=dtype),
        )
    ),
]  # fmt: skip


@pytest.mark.parametrize(("make", "error", "names"), REFUSED, ids=[names for *_, names in REFUSED])
def test_bad_arguments_are_refused(make: Callable[[], Any], error: type[Exception], names: str) -> None:
    """Also right after a table of which they are an equal: what equals an integer is none."""
    table([[0], [0, 1]])
    with refused(error, names):
        make()
