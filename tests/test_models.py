"""LeNet-5 has the layers, sizes and names that it should have, and PyTorch's same network gives the same numbers."""

import itertools
from typing import Any

import numpy as np
import pytest

from models import LeNet5
from tinygrad_lenet import Tensor, grad, testing
from tinygrad_lenet import functional as F

LAYERS = {"c1": 156, "c3": 2_416, "c5": 48_120, "f6": 10_164, "output": 850}
OPTIONS: dict[str, dict[str, Any]] = {
    "today's": {},
    "sigmoid": {"activation": "sigmoid"},
    "relu, max": {"activation": "relu", "pool": "max"},
    "relu, avg": {"activation": "relu"},
    "tanh, max": {"pool": "max"},
    "regularized": {"activation": "relu", "pool": "max", "dropout": 0.2, "batch_norm": True},
    "normalised": {"batch_norm": True},
}

SUMMARY = """\
layer   type           input     output    parameters
-----------------------------------------------------
c1      Conv2d + Tanh  1x32x32   6x28x28          156
s2      AvgPool2d      6x28x28   6x14x14            0
c3      Conv2d + Tanh  6x14x14   16x10x10       2,416
s4      AvgPool2d      16x10x10  16x5x5             0
c5      Conv2d + Tanh  16x5x5    120x1x1       48,120
f6      Linear + Tanh  120       84            10,164
output  Linear         84        10               850
-----------------------------------------------------
total                                          61,706"""


def digits(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Random images in float64 and labels."""
    rng = np.random.default_rng(seed)
    return rng.uniform(-0.1, 1.175, (n, 1, 32, 32)), rng.integers(0, 10, n)


def in_float64(model: LeNet5) -> LeNet5:
    """The same model in double precision."""
    for _, module in model.named_modules():
        for tensor in vars(module).values():
            if isinstance(tensor, Tensor) and tensor.dtype == np.float32:
                tensor.data = tensor.data.astype(np.float64)
    return model


# Layers


def test_parameter_counts() -> None:
    """Those of the paper's table, for today's form of the network: 61,706."""
    model = LeNet5()
    counts = dict.fromkeys(LAYERS, 0)
    for name, parameter in model.named_parameters():
        counts[name.partition(".")[0]] += parameter.size
    assert counts == LAYERS
    assert sum(p.size for p in model.parameters()) == 61_706


def test_names_and_shapes() -> None:
    """PyTorch's keys and weight layouts, layer by layer."""
    shapes = {name: tensor.shape for name, tensor in LeNet5().state_dict().items()}
    assert list(shapes.items()) == [
        ("c1.weight", (6, 1, 5, 5)),
        ("c1.bias", (6,)),
        ("c3.weight", (16, 6, 5, 5)),
        ("c3.bias", (16,)),
        ("c5.weight", (120, 16, 5, 5)),
        ("c5.bias", (120,)),
        ("f6.weight", (84, 120)),
        ("f6.bias", (84,)),
        ("output.weight", (10, 84)),
        ("output.bias", (10,)),
    ]
    extra = set(LeNet5(batch_norm=True, dropout=0.5).state_dict()) - set(shapes)
    own = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    assert extra == {f"{layer}.{name}" for layer in ("bn1", "bn3") for name in own}


def test_summary() -> None:
    """The table of the documentation, for one image or a batch, and the model is left as it was."""
    model = LeNet5(rng=0)
    before = {name: tensor.numpy().copy() for name, tensor in model.state_dict().items()}
    assert model.summary((1, 32, 32)) == model.summary((5, 1, 32, 32)) == SUMMARY
    assert model.training
    assert all(np.array_equal(tensor.numpy(), before[name]) for name, tensor in model.state_dict().items())


def test_summary_with_all_options() -> None:
    lines = LeNet5("relu", "max", dropout=0.2, batch_norm=True).summary((1, 32, 32)).splitlines()
    assert [line.split("  ")[0] for line in lines[2:-2]] == [
        *("c1", "bn1", "s2", "c3", "bn3", "s4", "c5", "drop", "f6", "drop", "output")
    ]
    assert lines[-1].split() == ["total", "61,750"]


# Options


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("n", [1, 3])
def test_every_option_computes_and_learns(options: dict[str, Any], n: int) -> None:
    """float32 in, float32 logits out; every parameter gets a gradient that is not all 0."""
    images, labels = digits(n)
    model = LeNet5(**options, rng=0)
    logits = model(Tensor(images.astype(np.float32)))
    assert (logits.shape, logits.dtype) == ((n, 10), np.float32)
    F.cross_entropy(logits, labels).backward()
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        assert (p.grad.shape, p.grad.dtype) == (p.shape, np.float32), name
        assert np.isfinite(p.grad.numpy()).all(), name
        if not (options.get("batch_norm") and name in ("c1.bias", "c3.bias")):  # normalising takes a bias out again
            assert np.abs(p.grad.numpy()).max() > 0, name


def test_options_differ() -> None:
    """From the same weights, each activation and pooling gives logits of its own."""
    images = Tensor(digits(2)[0])
    outputs = [
        LeNet5(activation, pool, rng=0)(images).numpy()
        for activation, pool in itertools.product(("tanh", "sigmoid", "relu"), ("avg", "max"))
    ]
    assert all(np.abs(a - b).max() > 1e-5 for a, b in itertools.combinations(outputs, 2))


def test_seed_decides_weights_and_dropped_units() -> None:
    """The same seed or generator gives the same model; evaluation drops nothing."""
    images = Tensor(digits(4)[0].astype(np.float32))

    def logits(seed: Any) -> tuple[np.ndarray, np.ndarray]:
        model = LeNet5(dropout=0.5, rng=seed)
        return model(images).numpy(), model.eval()(images).numpy()

    (a, a_eval), (b, b_eval), (c, c_eval) = logits(3), logits(np.random.default_rng(3)), logits(4)
    assert np.array_equal(a, b)
    assert np.array_equal(a_eval, b_eval)
    assert not np.allclose(a, a_eval)
    assert not np.allclose(a_eval, c_eval)
    assert not np.allclose(a, c)
    assert np.array_equal(a_eval, LeNet5(rng=3)(images).numpy())
    assert not np.array_equal(LeNet5()(images).numpy(), LeNet5()(images).numpy())


def test_dropout_drops_in_c5_and_f6() -> None:
    """All that a unit of C5 or F6 passes on is 0 or twice as much, and never the same from step to step."""
    model = LeNet5(dropout=0.5, rng=0)
    images = Tensor(digits(1)[0].astype(np.float32))
    first, second = (model(images).numpy() for _ in range(2))
    assert not np.allclose(first, second)
    assert model.drop is not None
    assert (model.drop(Tensor(np.ones(1000, np.float32))).numpy() == 0).mean() == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"activation": "Tanh"}, "LeNet5: activation is 'Tanh'; expected 'tanh' or 'sigmoid' or 'relu'"),
        ({"activation": "gelu"}, "LeNet5: activation is 'gelu'; expected 'tanh' or 'sigmoid' or 'relu'"),
        ({"pool": "mean"}, "LeNet5: pool is 'mean'; expected 'avg' or 'max'"),
    ],
)
def test_unknown_option_is_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError) as caught:
        LeNet5(**options)
    assert str(caught.value) == sentence


@pytest.mark.parametrize("dropout", [-0.1, 1.5, float("nan")])
def test_bad_dropout_is_refused(dropout: float) -> None:
    with pytest.raises(ValueError, match="p is"):
        LeNet5(dropout=dropout)


@pytest.mark.parametrize("shape", [(1, 1, 28, 28), (1, 3, 32, 32), (32, 32)])
def test_images_of_another_size_are_refused(shape: tuple[int, ...]) -> None:
    """28 x 28 images need their border first (`data.to_input`)."""
    with pytest.raises(ValueError, match=r"conv2d: |reshape: "):
        LeNet5()(Tensor(np.zeros(shape, np.float32)))


# Gradients

CHECKED = ["c1.weight", "c1.bias", "c3.weight", "c5.bias", "f6.weight", "output.bias"]


@pytest.mark.parametrize("name", CHECKED)
@pytest.mark.parametrize("options", [{}, {"activation": "sigmoid", "batch_norm": True}], ids=["today's", "normalised"])
def test_gradient_of_the_whole_model(options: dict[str, Any], name: str) -> None:
    """From the loss back to a parameter, against central differences in float64."""
    images, labels = digits(2)
    model = in_float64(LeNet5(**options, rng=0))
    if options:
        with np.errstate(all="raise"):
            model(Tensor(images))  # sets the running statistics
        model.eval()  # a function of the weights alone, not of the number of calls
    layer, attribute = name.split(".")

    def loss(parameter: Tensor) -> Tensor:
        setattr(getattr(model, layer), attribute, parameter)
        return F.cross_entropy(model(Tensor(images)), labels)

    testing.check_gradients(loss, getattr(getattr(model, layer), attribute), order=1)


def test_gradient_for_the_images() -> None:
    images, labels = digits(1)
    model = in_float64(LeNet5(rng=0))
    testing.check_gradients(lambda x: F.cross_entropy(model(x), labels), images, order=1)


# PyTorch's LeNet-5


def torch_lenet5(options: dict[str, Any]) -> Any:
    """The same network in PyTorch, written from the paper's table."""
    torch = pytest.importorskip("torch")

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.c1 = torch.nn.Conv2d(1, 6, 5)
            self.c3 = torch.nn.Conv2d(6, 16, 5)
            self.c5 = torch.nn.Conv2d(16, 120, 5)
            self.f6 = torch.nn.Linear(120, 84)
            self.output = torch.nn.Linear(84, 10)
            if options.get("batch_norm"):
                self.bn1 = torch.nn.BatchNorm2d(6)
                self.bn3 = torch.nn.BatchNorm2d(16)

        def forward(self, x: Any) -> Any:
            act = getattr(torch, options.get("activation", "tanh"))
            pools = torch.nn.functional
            pool = pools.max_pool2d if options.get("pool") == "max" else pools.avg_pool2d
            bn1, bn3 = (getattr(self, name, lambda maps: maps) for name in ("bn1", "bn3"))
            x = pool(act(bn1(self.c1(x))), 2)
            x = pool(act(bn3(self.c3(x))), 2)
            x = act(self.c5(x)).flatten(1)
            return self.output(act(self.f6(x)))

    return Net().double()


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_pytorch_agrees(options: dict[str, Any], training: bool) -> None:
    """Our state_dict loads into PyTorch's network; logits, all gradients and running statistics agree to 1e-8."""
    torch = pytest.importorskip("torch")
    options = {name: value for name, value in options.items() if name != "dropout"}  # its draws differ
    images, labels = digits(3)
    ours = in_float64(LeNet5(**options, rng=5)).train(training)
    theirs = torch_lenet5(options).train(training)
    state = {name: torch.tensor(tensor.numpy()) for name, tensor in ours.state_dict().items()}
    theirs.load_state_dict(state, strict=True)

    x, x_torch = Tensor(images, requires_grad=True), torch.tensor(images, requires_grad=True)
    logits, logits_torch = ours(x), theirs(x_torch)
    loss = F.cross_entropy(logits, labels)
    torch.nn.functional.cross_entropy(logits_torch, torch.tensor(labels)).backward()
    names = [name for name, _ in ours.named_parameters()]
    gradients = grad(loss, [x, *ours.parameters()])

    assert np.allclose(logits.numpy(), logits_torch.detach().numpy(), rtol=0, atol=1e-8)
    assert set(names) == {name for name, _ in theirs.named_parameters()}
    expected = [x_torch.grad, *(theirs.get_parameter(name).grad for name in names)]
    for name, g, e in zip(["x", *names], gradients, expected, strict=True):
        assert np.allclose(g.numpy(), e.numpy(), rtol=0, atol=1e-8), name
    for name, tensor in ours.state_dict().items():
        assert np.allclose(tensor.numpy(), theirs.state_dict()[name].numpy(), rtol=0, atol=1e-8), name
