"""Layers: the functions they call, initial values, modes, statistics, and clear refusals."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import tests.strict  # noqa: F401 - makes the device "strict" known
from tinygrad_lenet import ShapeError, Tensor, grad, nn, testing
from tinygrad_lenet import functional as F

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(3, 4, 6, 7))


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("Conv2d", {"in_channels": 4, "out_channels": 6, "kernel_size": (3, 2), "stride": 2, "padding": 1}),
        ("Conv2d", {"in_channels": 4, "out_channels": 2, "kernel_size": 2, "dilation": 2, "groups": 2, "bias": False}),
        ("ConvTranspose2d", {"in_channels": 4, "out_channels": 2, "kernel_size": 3, "stride": 2, "output_padding": 1}),
        ("ConvTranspose2d", {"in_channels": 4, "out_channels": 6, "kernel_size": (1, 3), "groups": 2, "padding": 0}),
        ("Linear", {"in_features": 7, "out_features": 5}),
        ("Linear", {"in_features": 7, "out_features": 5, "bias": False}),
        ("AvgPool2d", {"kernel_size": (2, 3), "stride": 1, "padding": 1}),
        ("MaxPool2d", {"kernel_size": 2}),
        ("Tanh", {}),
        ("Sigmoid", {}),
        ("ReLU", {}),
        ("Flatten", {}),
        ("BatchNorm2d", {"num_features": 4, "momentum": 0.3, "eps": 1e-3}),
        ("BatchNorm2d", {"num_features": 4, "affine": False}),
    ],
)
def test_layers_are_those_of_pytorch(name: str, arguments: dict[str, Any]) -> None:
    torch = pytest.importorskip("torch")
    peer = getattr(torch.nn, name)(**arguments).double()
    layer = getattr(nn, name)(**arguments)
    kinds = {"dtype": np.float64} if layer.state_dict() else {}
    layer = getattr(nn, name)(**arguments, **kinds)
    layer.load_state_dict(peer.state_dict())
    for mode in (True, False):
        expected = peer.train(mode)(torch.tensor(IMAGES)).detach().numpy()
        np.testing.assert_allclose(layer.train(mode)(Tensor(IMAGES)).numpy(), expected, rtol=1e-10, atol=1e-12)
    for key, tensor in peer.state_dict().items():
        np.testing.assert_allclose(layer.state_dict()[key].numpy(), tensor.numpy(), rtol=1e-12, err_msg=key)


# Initial values


@pytest.mark.parametrize(
    ("make", "fan_in"),
    [
        (lambda **o: nn.Conv2d(6, 40, 5, groups=2, **o), 75),
        (lambda **o: nn.ConvTranspose2d(20, 40, (2, 5), groups=2, **o), 200),
        (lambda **o: nn.Linear(50, 40, **o), 50),
    ],
)
def test_initial_values(make: Callable[..., Any], fan_in: int) -> None:
    layer, bound = make(rng=3), 1 / math.sqrt(fan_in)
    for p in (layer.weight, layer.bias):
        assert p.dtype == np.float32
        assert np.abs(p.numpy()).max() <= bound * (1 + 1e-6)
        assert np.abs(p.numpy()).max() > 0.8 * bound
        assert abs(p.numpy().mean()) < 4 * bound / math.sqrt(3 * p.size)  # four standard errors
    for again in (make(rng=3), make(rng=np.random.default_rng(3))):
        np.testing.assert_array_equal(again.weight.numpy(), layer.weight.numpy())
        np.testing.assert_array_equal(again.bias.numpy(), layer.bias.numpy())
    assert (make(rng=4).weight.numpy() != layer.weight.numpy()).any()
    assert (make().weight.numpy() != make().weight.numpy()).any()
    double = make(rng=3, dtype=np.float64)
    np.testing.assert_array_equal(double.weight.numpy().astype(np.float32), layer.weight.numpy())
    assert make(bias=False).bias is None


def test_one_generator_serves_several_layers() -> None:
    rng = np.random.default_rng(0)
    first, second = nn.Linear(3, 2, rng=rng), nn.Linear(3, 2, rng=rng)
    assert (first.weight.numpy() != second.weight.numpy()).any()


# Layers with modes


def test_dropout_acts_in_training_only_and_repeats_by_seed() -> None:
    x = Tensor(np.ones((50, 40), np.float32))
    layer = nn.Dropout(0.25, rng=1)
    first, second = layer(x).numpy(), layer(x).numpy()
    assert set(np.unique(first)) == {np.float32(0), np.float32(1 / 0.75)}
    assert abs((first == 0).mean() - 0.25) < 0.04  # four standard errors
    assert (first != second).any()
    again = nn.Dropout(0.25, rng=np.random.default_rng(1))
    np.testing.assert_array_equal(again(x).numpy(), first)
    np.testing.assert_array_equal(layer.eval()(x).numpy(), x.numpy())
    np.testing.assert_array_equal(nn.Dropout(0)(x).numpy(), x.numpy())


def test_batch_norm_statistics_follow_in_training_only() -> None:
    layer = nn.BatchNorm2d(4, dtype=np.float64)
    mean, var = layer.running_mean.data, layer.running_var.data
    layer.eval()(Tensor(IMAGES))
    assert not mean.any()
    assert layer.num_batches_tracked.item() == 0
    layer.train()(Tensor(IMAGES))
    assert layer.running_mean.data is mean
    assert layer.running_var.data is var
    np.testing.assert_allclose(mean, 0.1 * IMAGES.mean((0, 2, 3)))
    np.testing.assert_allclose(var, 0.9 + 0.1 * IMAGES.var((0, 2, 3), ddof=1))
    assert layer.num_batches_tracked.item() == 1


@pytest.mark.parametrize("shape", [(5, 4), (5, 4, 3)])
def test_batch_norm_1d_is_that_of_pytorch(shape: tuple[int, ...]) -> None:
    torch = pytest.importorskip("torch")
    x = RNG.normal(size=shape)
    layer, peer = nn.BatchNorm1d(4, dtype=np.float64), torch.nn.BatchNorm1d(4).double()
    np.testing.assert_allclose(layer(Tensor(x)).numpy(), peer(torch.tensor(x)).detach().numpy(), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(layer.running_var.numpy(), peer.running_var.numpy())


def test_gradients_reach_every_parameter() -> None:
    net = nn.Sequential(
        nn.Conv2d(4, 2, 3),
        nn.BatchNorm2d(2),
        nn.ScaledTanh(),
        nn.ConvTranspose2d(2, 1, 2),
        nn.Flatten(),
        nn.Linear(30, 2),
    )
    F.cross_entropy(net(Tensor(IMAGES.astype(np.float32))), np.array([0, 1, 0])).backward()
    for name, p in net.named_parameters():
        assert p.grad is not None and p.grad.shape == p.shape and p.grad.dtype == np.float32, name


def test_scaled_tanh() -> None:
    np.testing.assert_allclose(nn.ScaledTanh()(IMAGES).numpy(), 1.7159 * np.tanh(2 / 3 * IMAGES), rtol=1e-12)
    np.testing.assert_allclose(nn.ScaledTanh(2.0, 0.5)(IMAGES).numpy(), 2 * np.tanh(IMAGES / 2), rtol=1e-12)
    assert repr(nn.ScaledTanh()) == "ScaledTanh(amplitude=1.7159, slope=0.666667)"


@pytest.mark.parametrize(("start", "shape"), [(0, (504,)), (1, (3, 168)), (2, (3, 4, 42)), (3, (3, 4, 6, 7))])
def test_flatten(start: int, shape: tuple[int, ...]) -> None:
    np.testing.assert_array_equal(nn.Flatten(start)(IMAGES).numpy(), IMAGES.reshape(shape))


def test_flatten_of_an_empty_batch() -> None:
    assert nn.Flatten()(np.zeros((0, 3, 2))).shape == (0, 6)


# Convolutions that see some maps only

TABLE = ((2, 0), (3,), (0, 1, 2, 3), (1, 2), (0, 3))  # not sorted: the order of a row is that of its kernels


def masked(layer: nn.Conv2d) -> Tensor:
    """The layer's kernels in a dense weight, zeros elsewhere."""
    assert layer.connections is not None
    dense, k = np.zeros((layer.out_channels, layer.in_channels, *layer.kernel_size)), 0
    for f, maps in enumerate(layer.connections):
        for c in maps:
            dense[f, c] = layer.weight.numpy()[k]
            k += 1
    assert k == len(layer.weight)
    return Tensor(dense, requires_grad=True)


@pytest.mark.parametrize(
    "how", [{}, {"bias": False}, {"stride": (2, 1), "padding": 1}, {"dilation": (1, 2)}], ids=str
)  # fmt: skip
def test_connections_are_a_masked_dense_convolution(how: dict[str, Any]) -> None:
    """Forward and in every gradient: the kernels' are those of the dense weight, at their places."""
    layer = nn.Conv2d(4, 5, (3, 2), connections=TABLE, dtype=np.float64, rng=1, **how)
    dense, x = masked(layer), Tensor(IMAGES, requires_grad=True)
    settings = {name: value for name, value in how.items() if name != "bias"}
    y, expected = layer(x), F.conv2d(x, dense, layer.bias, **settings)
    np.testing.assert_allclose(y.numpy(), expected.numpy(), rtol=1e-12, atol=1e-14)
    gy = np.random.default_rng(0).normal(size=y.shape)
    bias = [] if layer.bias is None else [layer.bias]
    (gw, *others), (g_dense, *g_others) = grad(y, [layer.weight, x, *bias], gy), grad(expected, [dense, x, *bias], gy)
    places = [(f, c) for f, maps in enumerate(TABLE) for c in maps]
    assert gw.shape == (len(places), 3, 2)
    for k, (f, c) in enumerate(places):
        np.testing.assert_allclose(gw.numpy()[k], g_dense.numpy()[f, c], rtol=1e-12, atol=1e-12)
    for a, b in zip(others, g_others, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-12, atol=1e-12)


def test_gradients_with_connections_are_those_of_differences() -> None:
    layer = nn.Conv2d(4, 5, 2, connections=TABLE, dtype=np.float64, rng=1)

    def run(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        layer.weight, layer.bias = weight, bias  # type: ignore[assignment]
        return layer(x).tanh()

    assert layer.bias is not None
    testing.check_gradients(run, IMAGES[:1], layer.weight, layer.bias)


def test_table_i_of_1998() -> None:
    """60 kernels and 16 biases, 1,516 numbers, and no zero is kept for a pair without connection."""
    table = ["012", "123", "234", "345", "045", "015", "0123", "1234", "2345", "0345", "0145", "0125", "0134", "1245",
             "0235", "012345"]  # fmt: skip
    layer = nn.Conv2d(6, 16, 5, connections=[list(map(int, maps)) for maps in table], rng=0)
    assert layer.weight.shape == (60, 5, 5)
    assert sum(p.size for p in layer.parameters()) == sum(t.size for t in layer.state_dict().values()) == 1_516
    assert layer.weight.numpy().all()
    assert repr(layer) == "Conv2d(6, 16, kernel_size=(5, 5), stride=(1, 1), connections=60 of 96)"
    assert layer(np.zeros((2, 6, 14, 14), np.float32)).shape == (2, 16, 10, 10)


def test_all_connections_are_a_dense_convolution() -> None:
    """Numbers move from one to the other by a reshape."""
    dense = nn.Conv2d(4, 3, 2, rng=0, dtype=np.float64)
    layer = nn.Conv2d(4, 3, 2, connections=np.tile(np.arange(4), (3, 1)), dtype=np.float64)
    state = dense.state_dict()
    layer.load_state_dict({"weight": state["weight"].reshape(12, 2, 2), "bias": state["bias"]})
    np.testing.assert_allclose(layer(IMAGES).numpy(), dense(IMAGES).numpy(), rtol=1e-13, atol=1e-14)
    assert layer.connections == ((0, 1, 2, 3),) * 3
    assert all(type(c) is int for maps in layer.connections for c in maps)


def test_connections_in_a_state() -> None:
    """A state goes to a layer with as many kernels; one with more or fewer refuses it and stays as it was."""
    layer, same = (nn.Conv2d(4, 5, 2, connections=TABLE, rng=seed) for seed in (0, 1))
    assert list(layer.state_dict()) == ["weight", "bias"]
    same.load_state_dict({name: tensor.numpy().copy() for name, tensor in layer.state_dict().items()})
    x = IMAGES.astype(np.float32)
    np.testing.assert_array_equal(same(x).numpy(), layer(x).numpy())
    other = nn.Conv2d(4, 5, 2, connections=[[0]] * 5, rng=0)
    before = other.weight.numpy().copy()
    with pytest.raises(ValueError, match=r"weight has shape \(11, 2, 2\), expected \(5, 2, 2\)"):
        other.load_state_dict(layer.state_dict())
    np.testing.assert_array_equal(other.weight.numpy(), before)


def test_initial_values_with_connections() -> None:
    """Each map starts within +-1/sqrt of its own fan-in; the same seed gives the same."""
    table = [[0]] * 4 + [[0, 1, 2, 3]] * 4
    layer = nn.Conv2d(4, 8, 5, connections=table, rng=3)
    assert layer.bias is not None
    kernels = np.split(layer.weight.numpy(), [1, 2, 3, 4, 8, 12, 16])
    for maps, kernel, bias in zip(table, kernels, layer.bias.numpy(), strict=True):
        bound = 1 / math.sqrt(25 * len(maps))
        assert kernel.shape[0] == len(maps)
        assert 0.8 * bound < np.abs(kernel).max() <= bound * (1 + 1e-6)
        assert abs(bias) <= bound * (1 + 1e-6)
    assert np.unique(np.append(layer.weight.numpy(), layer.bias.numpy())).size == 20 * 25 + 8
    for again in (nn.Conv2d(4, 8, 5, connections=table, rng=g) for g in (3, np.random.default_rng(3))):
        np.testing.assert_array_equal(again.weight.numpy(), layer.weight.numpy())
        np.testing.assert_array_equal(again.bias.numpy(), layer.bias.numpy())
    assert (nn.Conv2d(4, 8, 5, connections=table, rng=4).weight.numpy() != layer.weight.numpy()).any()
    assert nn.Conv2d(4, 8, 5, connections=table, bias=False).bias is None
    assert layer.weight.dtype == layer.bias.dtype == np.float32
    assert nn.Conv2d(4, 8, 5, connections=table, dtype=np.float64).weight.dtype == np.float64


@pytest.mark.parametrize("wrong", [[[0.0], [0, 1]], [[0], [False, True]], [[0], [0, 1.0]]])
def test_what_equals_an_integer_is_none(wrong: Any) -> None:
    """Refused also right after the same table in integers was taken."""
    nn.Conv2d(2, 2, 1, connections=[[0], [0, 1]])
    with pytest.raises(TypeError, match=r"Conv2d: .* must be an integer"):
        nn.Conv2d(2, 2, 1, connections=wrong)


# Subsampling and radial basis functions


def test_subsampling_starts_as_the_mean_of_each_window() -> None:
    layer = nn.Subsample2d(4, (2, 3), dtype=np.float64)
    expected = IMAGES[..., :6].reshape(3, 4, 3, 2, 2, 3).mean((3, 5))
    np.testing.assert_allclose(layer(IMAGES).numpy(), expected, rtol=1e-12)
    np.testing.assert_array_equal(layer.weight.numpy(), np.full(4, 1 / 6))
    assert {name: p.shape for name, p in layer.named_parameters()} == {"weight": (4,), "bias": (4,)}
    layer.load_state_dict({"weight": np.arange(4.0), "bias": np.arange(4.0) - 1})
    channel = np.arange(4.0)[:, None, None]
    np.testing.assert_allclose(layer(IMAGES).numpy(), 6 * channel * expected + channel - 1, rtol=1e-12)
    assert repr(layer) == "Subsample2d(4, kernel_size=(2, 3))"
    assert repr(nn.Subsample2d(6)) == "Subsample2d(6, kernel_size=(2, 2))"
    assert {p.dtype for p in nn.Subsample2d(2).parameters()} == {np.dtype(np.float32)}


CENTERS = np.array([[1.0, -1.0, 1.0], [1.0, 1.0, -1.0]])


@pytest.mark.parametrize("trainable", [False, True])
def test_rbf(trainable: bool) -> None:
    """Fixed centers are saved but not learned; trainable ones are both, under the same name."""
    given = CENTERS.copy()
    layer = nn.RBF(given, trainable, dtype=np.float64)
    given[:] = 9  # the layer has its own
    x = np.random.default_rng(0).normal(size=(5, 3))
    expected = ((x[:, None] - CENTERS) ** 2).sum(2)
    np.testing.assert_allclose(layer(x).numpy(), expected, rtol=1e-13)
    assert [name for name, _ in layer.named_parameters()] == (["centers"] if trainable else [])
    assert list(layer.state_dict()) == ["centers"]
    assert repr(layer) == f"RBF(3, 2, trainable={trainable})"

    points = Tensor(x, requires_grad=True)
    layer(points).sum().backward()
    assert points.grad is not None
    assert layer.centers.requires_grad is trainable
    assert (layer.centers.grad is not None) is trainable
    if trainable:
        np.testing.assert_allclose(layer.centers.grad.numpy(), -2 * (x[:, None] - CENTERS).sum(0), rtol=1e-12)

    other = nn.RBF(np.zeros((2, 3)), not trainable)
    memory = other.centers.data
    other.load_state_dict(layer.state_dict())
    assert other.centers.data is memory
    np.testing.assert_array_equal(memory, CENTERS)
    with pytest.raises(ValueError, match=r"centers has shape \(2, 3\), expected \(1, 3\)"):
        nn.RBF(np.zeros((1, 3))).load_state_dict(layer.state_dict())


def test_rbf_is_float32_and_moves_with_its_module() -> None:
    layer = nn.RBF([[1, -1], [1, 1]])
    assert layer.centers.dtype == layer(np.ones((1, 2), np.float32)).dtype == np.float32
    assert layer.to("strict").centers.device == "strict"
    assert layer(Tensor([[1.0, -1.0]], device="strict")).numpy().tolist() == [[0, 4]]


# Refusals


def table(connections: Any, **how: Any) -> nn.Conv2d:
    return nn.Conv2d(2, 2, 1, connections=connections, **how)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: nn.Conv2d(0, 1, 1), ValueError, "Conv2d: in_channels is 0; expected at least 1"),
        (lambda: nn.Conv2d(1, 2.0, 1), TypeError, "Conv2d: out_channels must be an integer"),  # type: ignore[arg-type]
        (lambda: nn.Conv2d(1, 1, (1, 2, 3)), ValueError, "kernel_size is"),  # type: ignore[arg-type]
        (lambda: nn.Conv2d(1, 1, 1, stride=0), ValueError, "Conv2d: stride is 0"),
        (lambda: nn.Conv2d(1, 1, 1, padding=-1), ValueError, "Conv2d: padding is -1"),
        (lambda: nn.Conv2d(3, 4, 1, groups=2), ValueError, "in_channels is 3; expected a multiple of groups, 2"),
        (lambda: nn.Conv2d(4, 3, 1, groups=2), ValueError, "out_channels is 3; expected a multiple of groups, 2"),
        (lambda: nn.Conv2d(1, 1, 1, rng="x"), TypeError, "Conv2d: rng is 'x'"),  # type: ignore[arg-type]
        (lambda: nn.Conv2d(1, 1, 1, rng=-1), ValueError, "Conv2d: rng is -1"),
        (lambda: nn.Conv2d(1, 1, 1, dtype=int), TypeError, "Conv2d: dtype is int64; expected floats"),
        (lambda: nn.ConvTranspose2d(1, 1, 1, output_padding=1), ValueError, "output_padding is 1; expected less than"),
        (lambda: nn.Linear(1, True), TypeError, "Linear: out_features must be an integer"),
        (lambda: nn.AvgPool2d(0), ValueError, "AvgPool2d: kernel_size is 0"),
        (lambda: nn.MaxPool2d(2, padding=2), ValueError, "MaxPool2d: padding is .* at most half of kernel_size"),
        (lambda: nn.Flatten(-1), ValueError, "Flatten: start_axis is -1"),
        (lambda: nn.Dropout(1), ValueError, "Dropout: p is 1"),
        (lambda: nn.Dropout(-0.1), ValueError, "Dropout: p is -0.1"),
        (lambda: nn.Dropout("half"), TypeError, "Dropout: p is 'half'"),  # type: ignore[arg-type]
        (lambda: nn.BatchNorm2d(0), ValueError, "BatchNorm2d: num_features is 0"),
        (lambda: nn.BatchNorm2d(1, eps=-1), ValueError, "BatchNorm2d: eps is -1"),
        (lambda: nn.BatchNorm2d(1, momentum=None), TypeError, "momentum is None"),  # type: ignore[arg-type]
        (lambda: nn.BatchNorm2d(1, momentum=1.5), ValueError, "momentum is 1.5"),
        (lambda: nn.BatchNorm2d(4)(IMAGES[0]), ShapeError, r"BatchNorm2d: x has shape .*; expected \[N C H W\]"),
        (lambda: nn.BatchNorm1d(4)(IMAGES), ShapeError, r"expected \[N C\] or \[N C L\]"),
        (lambda: nn.BatchNorm2d(3)(IMAGES), ShapeError, "axis C is 4 in x"),
        (lambda: nn.Flatten(2)(np.zeros((3, 4))), ShapeError, r"Flatten: x has shape \(3, 4\); expected an axis 2"),
        (lambda: nn.ScaledTanh(math.nan), ValueError, "ScaledTanh: amplitude is nan"),
        (lambda: table([[0], [2]]), ValueError, "row 1 of connections names input map 2, which is missing; .* are 2"),
        (lambda: table([[0], [-1]]), ValueError, "each map in row 1 of connections is -1; expected at least 0"),
        (lambda: table([[0], []]), ValueError, "row 1 of connections is empty; expected at least one input map"),
        (lambda: table([]), ValueError, "connections is empty; expected a row for each output map"),
        (lambda: table([[0], [1, 0, 1]]), ValueError, r"row 1 of connections, \(1, 0, 1\), names an input map twice"),
        (lambda: table([[0]]), ValueError, "connections has 1 rows; expected one for each of the 2 output maps"),
        (lambda: table([[0], [1], [0]]), ValueError, "connections has 3 rows; expected one for each of the 2 output"),
        (lambda: table([[0], [1]], groups=2), ValueError, "groups is 2, and connections are given; expected only one"),
        (lambda: table([[0], [0.5]]), TypeError, "each map in row 1 of connections must be an integer, not 0.5"),
        (lambda: table([[0], ["1"]]), TypeError, "each map in row 1 of connections must be an integer, not '1'"),
        (lambda: table([[0], [None]]), TypeError, "each map in row 1 of connections must be an integer, not None"),
        (lambda: table([0, 1]), TypeError, r"connections are \[0, 1\]; expected for each output map a list of input"),
        (lambda: table(5), TypeError, "connections are 5; expected for each output map a list of input maps"),
        (lambda: table([[0], [1]], rng="x"), TypeError, "rng is 'x'"),
        (lambda: table([[0], [1]], rng=-1), ValueError, "rng is -1"),
        (lambda: table([[0], [1]], dtype=int), TypeError, "dtype is int64; expected floats"),
        (lambda: table([[0], [1]])(IMAGES), ShapeError, "axis C is 4 in x and 2 in weight"),
        (lambda: nn.Subsample2d(0), ValueError, "Subsample2d: channels is 0; expected at least 1"),
        (lambda: nn.Subsample2d(2.0), TypeError, "Subsample2d: channels must be an integer"),  # type: ignore[arg-type]
        (lambda: nn.Subsample2d(1, 0), ValueError, "Subsample2d: kernel_size is 0"),
        (lambda: nn.Subsample2d(1, (1, 2, 3)), ValueError, "Subsample2d: kernel_size is"),  # type: ignore[arg-type]
        (lambda: nn.Subsample2d(1, dtype=int), TypeError, "Subsample2d: dtype is int64; expected floats"),
        (lambda: nn.Subsample2d(3)(IMAGES), ShapeError, "axis C is 4 in x and 3 in weight"),
        (lambda: nn.Subsample2d(4, 7)(IMAGES), ShapeError, "the window reaches over 7 along axis H, which has 6"),
        (lambda: nn.RBF([1.0, 2.0]), ValueError, r"RBF: centers have shape \(2,\); expected a row for each class"),
        (lambda: nn.RBF([]), ValueError, r"RBF: centers have shape \(0,\)"),
        (lambda: nn.RBF(np.ones((2, 0))), ValueError, r"RBF: centers have shape \(2, 0\)"),
        (lambda: nn.RBF([[1.0], [1.0, 2.0]]), ValueError, "the data is not a rectangular array"),
        (lambda: nn.RBF([["a"]]), TypeError, "dtype <U1 is not a real number"),
        (lambda: nn.RBF(CENTERS, dtype=int), TypeError, "RBF: dtype is int64; expected floats"),
        (lambda: nn.RBF(CENTERS)(np.ones((2, 4))), ShapeError, "axis J is 4 in x and 3 in centers"),
    ],
)
def test_bad_arguments_are_refused(make: Callable[[], Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        make()
