"""Layers: the functions they call, initial values, modes, statistics, and clear refusals."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tinygrad_lenet import ShapeError, Tensor, nn
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


# Refusals


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
    ],
)
def test_bad_arguments_are_refused(make: Callable[[], Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        make()
