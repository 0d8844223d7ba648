"""Both LeNet-5s have the layers, sizes and names that they should have, and in PyTorch they give the same numbers."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from models import LeNet5, LeNet5_1998
from models.lenet5_1998 import CODES, TABLE_I, count_connections
from tests.strict import no_host_reads
from tinygrad_lenet import Tensor, curvature, data, grad, nn, optim, testing
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


# LeNet-5 as it was published

PARAMETERS_1998 = {"c1": 156, "s2": 12, "c3": 1_516, "s4": 32, "c5": 48_120, "f6": 10_164}
CONNECTIONS_1998 = {
    "c1": 122_304, "s2": 5_880, "c3": 151_600, "s4": 2_000, "c5": 48_120, "f6": 10_164, "output": 840,
}  # fmt: skip
SEES = (  # Table I: the maps of S2 that feed each map of C3
    "012", "123", "234", "345", "045", "015",
    "0123", "1234", "2345", "0345", "0145", "0125", "0134", "1245", "0235",
    "012345",
)  # fmt: skip
INITS: dict[str, Callable[[float], float]] = {
    "fan-in": lambda f: 2.4 / f,
    "sqrt-fan-in": lambda f: math.sqrt(3 / f),
    "paper-rates": lambda f: 1 / math.sqrt(f),
}

SUMMARY_1998 = """\
layer   type                      input     output    parameters
----------------------------------------------------------------
c1      Conv2d + ScaledTanh       1x32x32   6x28x28          156
s2      Subsample2d + ScaledTanh  6x28x28   6x14x14           12
c3      Conv2d + ScaledTanh       6x14x14   16x10x10       1,516
s4      Subsample2d + ScaledTanh  16x10x10  16x5x5            32
c5      Conv2d + ScaledTanh       16x5x5    120x1x1       48,120
f6      Linear + ScaledTanh       120       84            10,164
output  RBF                       84        10                 0
----------------------------------------------------------------
total                                                     60,000"""


def test_parameters_of_1998() -> None:
    """Those of the paper, layer by layer, under PyTorch's names; the codes are saved but not learned."""
    model = LeNet5_1998()
    counts = dict.fromkeys(PARAMETERS_1998, 0)
    for name, parameter in model.named_parameters():
        counts[name.partition(".")[0]] += parameter.size
    assert counts == PARAMETERS_1998
    assert sum(counts.values()) == 60_000
    assert {name: tensor.shape for name, tensor in model.state_dict().items()} == {
        "c1.weight": (6, 1, 5, 5), "c1.bias": (6,), "s2.weight": (6,), "s2.bias": (6,),
        "c3.weight": (60, 5, 5), "c3.bias": (16,), "s4.weight": (16,), "s4.bias": (16,),
        "c5.weight": (120, 16, 5, 5), "c5.bias": (120,), "f6.weight": (84, 120), "f6.bias": (84,),
        "output.centers": (10, 84),
    }  # fmt: skip
    learned = LeNet5_1998(trainable_codes=True)
    assert sum(p.size for p in learned.parameters()) == 60_840
    assert list(learned.state_dict()) == list(model.state_dict())
    learned.load_state_dict(model.state_dict())


def test_summary_of_1998() -> None:
    model = LeNet5_1998(rng=0)
    before = {name: tensor.numpy().copy() for name, tensor in model.state_dict().items()}
    assert model.summary((1, 32, 32)) == SUMMARY_1998
    assert model.training
    assert all(np.array_equal(tensor.numpy(), before[name]) for name, tensor in model.state_dict().items())


def test_connections_of_1998() -> None:
    """Those of the paper's text, layer by layer: 340,908 with the 840 of the output."""
    model = LeNet5_1998()
    assert count_connections(model) == CONNECTIONS_1998
    assert list(count_connections(model)) == list(CONNECTIONS_1998)
    assert sum(CONNECTIONS_1998.values()) == 340_908
    assert count_connections(LeNet5_1998(trainable_codes=True)) == CONNECTIONS_1998


def test_connections_of_other_networks() -> None:
    """Today's LeNet-5 has no parameters in its pools, which do not count; without a bias there is none to count."""
    today = {"c1": 122_304, "c3": 16 * 100 * 151, "c5": 48_120, "f6": 10_164, "output": 850}
    assert count_connections(LeNet5()) == count_connections(LeNet5("relu", "max", dropout=0.5)) == today
    net = nn.Sequential(nn.Conv2d(2, 3, 3, stride=2, bias=False), nn.Tanh(), nn.Flatten(), nn.Linear(12, 5, bias=False))
    assert count_connections(net, (2, 5, 5)) == {"0": 3 * 4 * 18, "3": 60}
    assert count_connections(nn.Subsample2d(3, (2, 1)), (3, 5, 4)) == {"": 3 * 8 * 3}


def test_counting_leaves_no_trace() -> None:
    """No hook, gradient or mode is left behind, also after a layer that is not known."""
    for model, fails in ((LeNet5_1998(), False), (LeNet5(batch_norm=True).eval(), True)):
        modes = [module.training for _, module in model.named_modules()]
        if fails:
            with pytest.raises(TypeError, match=r"^count_connections: layer bn1 is BatchNorm2d, which is not known$"):
                count_connections(model)
        else:
            count_connections(model)
        assert all(not module._forward_hooks for _, module in model.named_modules())
        assert all(p.grad is None for p in model.parameters())
        assert [module.training for _, module in model.named_modules()] == modes


@pytest.mark.parametrize("f", range(16))
def test_c3_sees_the_maps_of_table_i(f: int) -> None:
    """A change of a map of S2 reaches a map of C3 if Table I says so, and only then."""
    assert TABLE_I[f] == tuple(map(int, SEES[f]))
    c3 = in_float64(LeNet5_1998(rng=0)).c3
    maps = np.random.default_rng(f).normal(size=(1, 6, 14, 14))
    before = c3(maps).numpy()[0, f]
    for c in range(6):
        changed = maps.copy()
        changed[0, c] += np.random.default_rng(c).normal(size=(14, 14))
        assert bool((c3(changed).numpy()[0, f] != before).any()) is (str(c) in SEES[f])


@pytest.mark.parametrize("init", INITS)
def test_initial_values_of_1998(init: str) -> None:
    """Uniform within the bound of each unit's fan-in; S2 and S4 take the mean of their windows, or 0.6 of the sum."""
    model, bound = LeNet5_1998(init, rng=3), INITS[init]
    kernels = np.split(model.c3.weight.numpy(), np.cumsum([len(maps) for maps in SEES])[:-1])
    assert model.c1.bias is not None and model.c3.bias is not None
    groups = [
        (model.c1.weight.numpy(), 25), (model.c5.weight.numpy(), 400), (model.f6.weight.numpy(), 120),
        *((kernel, 25 * len(maps)) for kernel, maps in zip(kernels, SEES, strict=True)),
    ]  # fmt: skip
    for values, fan_in in groups:
        assert 0.9 * bound(fan_in) < np.abs(values).max() <= bound(fan_in) * (1 + 1e-6)
        assert abs(values.mean()) < 4 * bound(fan_in) / math.sqrt(3 * values.size)  # four standard errors
    for layer, fan_ins in (
        (model.c1, 25), (model.c3, np.array([25 * len(maps) for maps in SEES])), (model.c5, 400), (model.f6, 120),
    ):  # fmt: skip
        ratios = np.abs(layer.bias.numpy()) / np.vectorize(bound)(fan_ins)  # type: ignore[union-attr]
        assert 0.5 < ratios.max() <= 1 + 1e-6
    for subsampling in (model.s2, model.s4):
        assert (subsampling.weight.numpy() == np.float32(0.6 if init == "paper-rates" else 0.25)).all()
        assert not subsampling.bias.numpy().any()
    assert {p.dtype for p in model.parameters()} == {np.dtype(np.float32)}
    for again in (LeNet5_1998(init, rng=3), LeNet5_1998(init, rng=np.random.default_rng(3))):
        for p, q in zip(model.parameters(), again.parameters(), strict=True):
            np.testing.assert_array_equal(p.numpy(), q.numpy())
    assert not np.array_equal(LeNet5_1998(init, rng=4).c1.weight.numpy(), model.c1.weight.numpy())
    assert not np.array_equal(LeNet5_1998(init).c1.weight.numpy(), LeNet5_1998(init).c1.weight.numpy())


def test_unknown_init_is_refused() -> None:
    with pytest.raises(ValueError) as caught:
        LeNet5_1998("xavier")
    assert str(caught.value) == "LeNet5_1998: init is 'xavier'; expected 'fan-in' or 'sqrt-fan-in' or 'paper-rates'"


def test_codes() -> None:
    """Ten pictures of 7 x 12 pixels of +1 and -1, all different: 6 and 8 are the most alike."""
    assert CODES.shape == (10, 12, 7)
    assert (np.abs(CODES) == 1).all()
    codes = CODES.reshape(10, 84).astype(int)
    distances = {(a, b): int(((codes[a] - codes[b]) ** 2).sum()) for a, b in itertools.combinations(range(10), 2)}
    assert min(distances.values()) == distances[6, 8] == 48
    assert [pair for pair, distance in distances.items() if distance == 48] == [(6, 8)]
    assert max(distances.values()) == 200
    assert (CODES[7, 0] == 1).all()  # the bar of the 7
    assert (CODES[1, 0] == [-1, -1, -1, 1, 1, -1, -1]).all()  # the tip of the 1
    assert (CODES[:, 11] == 1).any(axis=1).tolist() == [False] * 4 + [True] + [False] * 5  # the 4 reaches lowest
    np.testing.assert_array_equal(LeNet5_1998().output.centers.numpy(), codes)


@pytest.mark.parametrize("options", [{}, {"init": "sqrt-fan-in", "trainable_codes": True}], ids=str)
@pytest.mark.parametrize("j", [None, 84.0])
@pytest.mark.parametrize("n", [1, 3])
def test_the_network_of_1998_computes_and_learns(n: int, j: float | None, options: dict[str, Any]) -> None:
    """float32 in, float32 penalties out; every parameter gets a gradient and a curvature that are not all 0."""
    images, labels = digits(n)
    model = LeNet5_1998(**options, rng=0)
    penalties = model(Tensor(images.astype(np.float32)))
    assert (penalties.shape, penalties.dtype) == ((n, 10), np.float32)
    assert (penalties.numpy() >= 0).all()
    loss = F.penalty_loss(penalties, labels, j)
    parameters = dict(model.named_parameters())
    for name, h in zip(parameters, curvature(loss, list(parameters.values())), strict=True):
        assert (h.shape, h.dtype) == (parameters[name].shape, np.float32), name
        assert np.isfinite(h.numpy()).all() and (h.numpy() >= 0).all() and h.numpy().max() > 0, name
    loss.backward()
    for name, p in parameters.items():
        assert p.grad is not None, name
        assert (p.grad.shape, p.grad.dtype) == (p.shape, np.float32), name
        assert np.isfinite(p.grad.numpy()).all(), name
        assert np.abs(p.grad.numpy()).max() > 0, name
    assert (model.output.centers.grad is not None) is options.get("trainable_codes", False)


@pytest.mark.parametrize("name", ["c1.weight", "s2.weight", "c3.weight", "s4.bias", "f6.weight", "output.centers"])
@pytest.mark.parametrize("j", [None, 84.0])
def test_gradient_of_the_network_of_1998(j: float | None, name: str) -> None:
    images, labels = digits(2)
    model = in_float64(LeNet5_1998("sqrt-fan-in", trainable_codes=True, rng=0))
    layer, attribute = name.split(".")

    def loss(parameter: Tensor) -> Tensor:
        setattr(getattr(model, layer), attribute, parameter)
        return F.penalty_loss(model(Tensor(images)), labels, j)

    testing.check_gradients(loss, getattr(getattr(model, layer), attribute), order=1)


def test_gradient_of_1998_for_the_images() -> None:
    images, labels = digits(1)
    model = in_float64(LeNet5_1998("sqrt-fan-in", rng=0))
    testing.check_gradients(lambda x: F.penalty_loss(model(x), labels, j=84.0), images, order=1)


@pytest.mark.parametrize("j", [None, 84.0])
def test_pytorch_agrees_on_1998(j: float | None) -> None:
    """Written with PyTorch's own functions, C3 as a masked dense convolution: penalties and all gradients to 1e-8."""
    torch = pytest.importorskip("torch")
    TF = torch.nn.functional
    images, labels = digits(3)
    model = in_float64(LeNet5_1998("sqrt-fan-in", trainable_codes=True, rng=5))
    x = Tensor(images, requires_grad=True)
    penalties = model(x)
    parameters = dict(model.named_parameters())
    gradients = grad(F.penalty_loss(penalties, labels, j), [x, *parameters.values()])

    t = {name: torch.tensor(p.numpy().copy(), requires_grad=True) for name, p in parameters.items()}
    t_x = torch.tensor(images, requires_grad=True)
    mask = torch.zeros(16, 6, 60, dtype=torch.float64)
    for k, (f, c) in enumerate((f, int(c)) for f, maps in enumerate(SEES) for c in maps):
        mask[f, c, k] = 1

    def act(a: Any) -> Any:
        return 1.7159 * torch.tanh(2 / 3 * a)

    def subsample(maps: Any, layer: str) -> Any:
        sums = 4 * TF.avg_pool2d(maps, 2)
        return act(sums * t[f"{layer}.weight"][:, None, None] + t[f"{layer}.bias"][:, None, None])

    y = subsample(act(TF.conv2d(t_x, t["c1.weight"], t["c1.bias"])), "s2")
    kernels = torch.einsum("fck,kij->fcij", mask, t["c3.weight"])
    y = subsample(act(TF.conv2d(y, kernels, t["c3.bias"])), "s4")
    y = act(TF.conv2d(y, t["c5.weight"], t["c5.bias"])).flatten(1)
    y = act(TF.linear(y, t["f6.weight"], t["f6.bias"]))
    y = torch.cdist(y, t["output.centers"], compute_mode="donot_use_mm_for_euclid_dist") ** 2
    loss = y[torch.arange(3), torch.tensor(labels)]
    if j is not None:
        loss = loss + torch.log(math.exp(-j) + torch.exp(-y).sum(1))
    loss.mean().backward()

    np.testing.assert_allclose(penalties.numpy(), y.detach().numpy(), rtol=1e-10)
    for name, g, e in zip(["x", *t], gradients, [t_x, *t.values()], strict=True):
        np.testing.assert_allclose(g.numpy(), e.grad.numpy(), rtol=0, atol=1e-8, err_msg=name)


def test_the_network_of_1998_on_a_device() -> None:
    """Under CuPy's rules, nothing read back: a step, its curvatures and its predictions are those of the CPU."""
    images, labels = digits(4)
    host = in_float64(LeNet5_1998("sqrt-fan-in", rng=0))
    device = in_float64(LeNet5_1998("sqrt-fan-in", rng=0)).to("strict")
    assert all(tensor.device == "strict" for tensor in device.state_dict().values())
    x = Tensor(images)
    with no_host_reads():
        x_device = x.to("strict")
        loss = F.penalty_loss(device(x_device), labels, j=84.0)
        h_device = curvature(loss, list(device.parameters()))
        loss.backward()
        predicted, rejected = device.predict(x_device), device.reject(x_device, 1.0)
    loss = F.penalty_loss(host(x), labels, j=84.0)
    h_host = curvature(loss, list(host.parameters()))
    loss.backward()
    for p, q, h, d in zip(host.parameters(), device.parameters(), h_host, h_device, strict=True):
        assert p.grad is not None and q.grad is not None
        assert q.grad.device == d.device == "strict"
        np.testing.assert_allclose(d.numpy(), h.numpy(), rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(q.grad.numpy(), p.grad.numpy(), rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(predicted.numpy(), host.predict(x).numpy())
    np.testing.assert_array_equal(rejected.numpy(), host.reject(x, 1.0).numpy())


class Foregone(LeNet5_1998):
    """A network whose penalties are its input."""

    def forward(self, x: Tensor) -> Tensor:
        return x


def penalties_of(*rows: list[float]) -> Tensor:
    """Rows of ten penalties, those not given far away."""
    return Tensor(np.array([row + [99.0] * (10 - len(row)) for row in rows]), requires_grad=True)


def test_predict_takes_the_smallest_penalty() -> None:
    """The first one of several, as integers that are not recorded."""
    x = penalties_of([3, 1, 2], [5, 5, 4, 4], [7] * 10, [math.inf] * 9 + [0])
    classes = Foregone().predict(x)
    assert classes.numpy().tolist() == [1, 2, 0, 9]
    assert classes.dtype.kind == "i"
    assert not classes.requires_grad
    model, images = LeNet5_1998(rng=0), Tensor(digits(5)[0].astype(np.float32))
    np.testing.assert_array_equal(model.predict(images).numpy(), model(images).numpy().argmin(axis=1))


@pytest.mark.parametrize(
    ("threshold", "rejected"),
    [
        (0, [False, False, False, False]),  # nothing differs by less than nothing
        (1e-9, [False, True, False, False]),
        (1.0, [False, True, False, False]),  # a difference of exactly the threshold is enough
        (1.0 + 1e-9, [False, True, True, False]),
        (2.5, [True, True, True, False]),
        (math.inf, [True, True, True, False]),
    ],
)
def test_reject_compares_the_two_smallest_penalties(threshold: float, rejected: list[bool]) -> None:
    """Differences of 2, 0 (a tie), 1 and infinity; the order of the classes does not matter."""
    x = penalties_of([3, 1, 8], [9, 4, 4, 4], [6, 8, 7], [math.inf] * 4 + [5] + [math.inf] * 5)
    with np.errstate(all="raise"):
        answer = Foregone().reject(x, threshold)
    assert answer.numpy().tolist() == rejected
    assert answer.dtype == np.bool_
    turned = Tensor(np.ascontiguousarray(x.numpy()[:, ::-1]))
    assert Foregone().reject(turned, threshold).numpy().tolist() == rejected


def test_rejection_of_images() -> None:
    model, images = LeNet5_1998(rng=0), Tensor(digits(6)[0].astype(np.float32))
    penalties = np.sort(model(images).numpy(), axis=1)
    differences = penalties[:, 1] - penalties[:, 0]
    threshold = float(np.median(differences))
    np.testing.assert_array_equal(model.reject(images, threshold).numpy(), differences < threshold)
    assert 0 < model.reject(images, threshold).numpy().sum() < 6


@pytest.mark.parametrize("threshold", [-1e-9, -1, math.nan, -math.inf, "a", None])
def test_bad_threshold_is_refused(threshold: Any) -> None:
    with pytest.raises(ValueError, match=rf"^reject: threshold is {threshold!r}; expected a difference"):
        Foregone().reject(penalties_of([1, 2]), threshold)


def test_an_empty_batch_in_1998() -> None:
    model, nothing = LeNet5_1998(rng=0), Tensor(np.zeros((0, 1, 32, 32), np.float32))
    assert model(nothing).shape == (0, 10)
    assert model.predict(nothing).shape == model.reject(nothing, 1.0).shape == (0,)


@pytest.mark.parametrize("shape", [(1, 1, 28, 28), (1, 3, 32, 32), (32, 32)])
def test_images_of_another_size_are_refused_in_1998(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"conv2d: |reshape: "):
        LeNet5_1998()(Tensor(np.zeros(shape, np.float32)))


@pytest.mark.parametrize("j", [None, 1.0])
def test_the_recipe_of_1998_learns(j: float | None) -> None:
    """Curvatures from 20 digits, then two passes over them, one digit a step: the loss halves, few errors remain."""
    images, labels = data.digits("train")
    x, labels = data.to_input(images[:20]), labels[:20]
    model = LeNet5_1998("sqrt-fan-in", rng=0)
    optimizer = optim.StochasticDiagonalLM(model.parameters(), lr=0.0005, mu=0.02)
    before = F.penalty_loss(model(Tensor(x)), labels, j).item()
    for _ in range(2):
        optimizer.estimate(F.penalty_loss(model(Tensor(x)), labels, j))
        for n in range(20):
            F.penalty_loss(model(Tensor(x[n : n + 1])), labels[n : n + 1], j).backward()
            optimizer.step()
            optimizer.zero_grad()
    assert F.penalty_loss(model(Tensor(x)), labels, j).item() < before / 2
    assert (model.predict(Tensor(x)).numpy() != labels).sum() <= 4
