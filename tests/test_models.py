"""Both LeNet-5s have the layers, sizes and names that they should have, and in PyTorch they give the same numbers."""

import itertools
import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from models import LeNet5, LeNet5_1998
from models.lenet5_1998 import CODES, TABLE_I, count_connections
from tests.refusals import refused
from tests.strict import no_host_reads
from tinygrad_lenet import Tensor, backend, curvature, data, grad, nn, optim, testing
from tinygrad_lenet import functional as F

OPTIONS: dict[str, dict[str, Any]] = {
    "today's": {},
    "sigmoid": {"activation": "sigmoid"},
    "relu, max": {"activation": "relu", "pool": "max"},
    "relu, avg": {"activation": "relu"},
    "tanh, max": {"pool": "max"},
    "regularized": {"activation": "relu", "pool": "max", "dropout": 0.2, "batch_norm": True},
    "normalised": {"batch_norm": True},
}
SEES = (  # Table I: the maps of S2 that feed each map of C3
    "012", "123", "234", "345", "045", "015",
    "0123", "1234", "2345", "0345", "0145", "0125", "0134", "1245", "0235",
    "012345",
)  # fmt: skip

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


def digits(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Random images in float64 and labels."""
    rng = np.random.default_rng(seed)
    return rng.uniform(-0.1, 1.175, (n, 1, 32, 32)), rng.integers(0, 10, n)


def images(n: int, seed: int = 0) -> Tensor:
    return Tensor(digits(n, seed)[0].astype(np.float32))


def in_float64(model: Any) -> Any:
    """The same model in double precision."""
    for _, module in model.named_modules():
        for tensor in vars(module).values():
            if isinstance(tensor, Tensor) and tensor.dtype == np.float32:
                tensor.data = tensor.data.astype(np.float64)
    return model


def logits_loss(model: LeNet5, x: Tensor, labels: np.ndarray) -> Tensor:
    return F.cross_entropy(model(x), labels)


def eq8(model: LeNet5_1998, x: Tensor, labels: np.ndarray) -> Tensor:
    return F.penalty_loss(model(x), labels)


def eq9(model: LeNet5_1998, x: Tensor, labels: np.ndarray) -> Tensor:
    return F.penalty_loss(model(x), labels, j=84.0)


def trainable_1998() -> LeNet5_1998:
    return LeNet5_1998(trainable_codes=True, rng=0)


# Layers


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (LeNet5, {
            "c1.weight": (6, 1, 5, 5), "c1.bias": (6,), "c3.weight": (16, 6, 5, 5), "c3.bias": (16,),
            "c5.weight": (120, 16, 5, 5), "c5.bias": (120,), "f6.weight": (84, 120), "f6.bias": (84,),
            "output.weight": (10, 84), "output.bias": (10,),
        }),
        (LeNet5_1998, {
            "c1.weight": (6, 1, 5, 5), "c1.bias": (6,), "s2.weight": (6,), "s2.bias": (6,),
            "c3.weight": (60, 5, 5), "c3.bias": (16,), "s4.weight": (16,), "s4.bias": (16,),
            "c5.weight": (120, 16, 5, 5), "c5.bias": (120,), "f6.weight": (84, 120), "f6.bias": (84,),
            "output.centers": (10, 84),
        }),
    ],
)  # fmt: skip
def test_names_and_shapes(make: Callable[[], nn.Module], expected: dict[str, tuple[int, ...]]) -> None:
    """PyTorch's keys and weight layouts, layer by layer."""
    assert [(name, tensor.shape) for name, tensor in make().state_dict().items()] == list(expected.items())


def test_names_with_options() -> None:
    extra = LeNet5(batch_norm=True, dropout=0.5).state_dict().keys() - LeNet5().state_dict().keys()
    own = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    assert extra == {f"{layer}.{name}" for layer in ("bn1", "bn3") for name in own}
    learned = LeNet5_1998(trainable_codes=True)
    assert sum(p.size for p in learned.parameters()) == 60_840
    assert list(learned.state_dict()) == list(LeNet5_1998().state_dict())
    learned.load_state_dict(LeNet5_1998().state_dict())


@pytest.mark.parametrize(("make", "expected"), [(LeNet5, SUMMARY), (LeNet5_1998, SUMMARY_1998)])
def test_summary(make: Callable[[], nn.Module], expected: str) -> None:
    """The paper's table, for one image or a batch."""
    assert make().summary((1, 32, 32)) == make().summary((5, 1, 32, 32)) == expected


def test_summary_with_all_options() -> None:
    lines = LeNet5("relu", "max", dropout=0.2, batch_norm=True).summary((1, 32, 32)).splitlines()
    assert [tuple(re.split("  +", line)[:2]) for line in lines[2:-2]] == [
        ("c1", "Conv2d"), ("bn1", "BatchNorm2d + ReLU"), ("s2", "MaxPool2d"),
        ("c3", "Conv2d"), ("bn3", "BatchNorm2d + ReLU"), ("s4", "MaxPool2d"),
        ("c5", "Conv2d + ReLU"), ("drop", "Dropout"), ("f6", "Linear + ReLU"), ("drop", "Dropout"),
        ("output", "Linear"),
    ]  # fmt: skip
    assert lines[-1].split() == ["total", "61,750"]


@pytest.mark.parametrize("shape", [(1, 1, 28, 28), (1, 3, 32, 32), (32, 32)])
@pytest.mark.parametrize("make", [LeNet5, LeNet5_1998])
def test_images_of_another_size_are_refused(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    """28 x 28 images need their border first (`data.to_input`)."""
    with refused(ValueError):
        make()(Tensor(np.zeros(shape, np.float32)))


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda: LeNet5("Tanh"), "LeNet5 activation 'Tanh' 'tanh' 'sigmoid' 'relu'"),
        (lambda: LeNet5(pool="mean"), "LeNet5 pool 'mean' 'avg' 'max'"),
        (lambda: LeNet5_1998("xavier"), "LeNet5_1998 init 'xavier' 'fan-in' 'sqrt-fan-in'"),
        *((lambda p=p: LeNet5(dropout=p), f"p {p}") for p in (-0.1, 1.5, math.nan)),
    ],
)
def test_unknown_options_are_refused(make: Callable[[], nn.Module], names: str) -> None:
    with refused(ValueError, names):
        make()


def test_options_differ() -> None:
    """From the same weights, each activation and pooling gives logits of its own."""
    options = itertools.product(("tanh", "sigmoid", "relu"), ("avg", "max"))
    outputs = [LeNet5(activation, pool, rng=0)(images(2)).numpy() for activation, pool in options]
    assert all(np.abs(a - b).max() > 1e-5 for a, b in itertools.combinations(outputs, 2))


def test_seed_decides_weights_and_dropped_units() -> None:
    """The same seed or generator gives the same model; evaluation drops nothing."""

    def logits(seed: Any) -> tuple[np.ndarray, np.ndarray]:
        model = LeNet5(dropout=0.5, rng=seed)
        return model(images(4)).numpy(), model.eval()(images(4)).numpy()

    (a, a_eval), (b, b_eval), (c, c_eval) = logits(3), logits(np.random.default_rng(3)), logits(4)
    assert np.array_equal(a, b)
    assert np.array_equal(a_eval, b_eval)
    assert not any(np.allclose(x, y) for x, y in ((a, a_eval), (a_eval, c_eval), (a, c)))
    assert np.array_equal(a_eval, LeNet5(rng=3)(images(4)).numpy())
    assert not np.array_equal(LeNet5()(images(4)).numpy(), LeNet5()(images(4)).numpy())


# Learning


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize(
    ("make", "loss"),
    [
        *((lambda options=options: LeNet5(**options, rng=0), logits_loss) for options in OPTIONS.values()),
        *itertools.product((lambda: LeNet5_1998(rng=0), trainable_1998), (eq8, eq9)),
    ],
)
def test_every_network_computes_and_learns(make: Callable[[], nn.Module], loss: Callable[..., Tensor], n: int) -> None:
    """float32 in, float32 out; every parameter gets a gradient, in 1998 a curvature too, that are not all 0."""
    model = make()
    y, labels, named = model(images(n)), digits(n)[1], dict(model.named_parameters())
    assert (y.shape, y.dtype) == ((n, 10), np.float32)
    value = loss(model, images(n), labels)
    flows = [("gradient", grad(value, list(named.values()), create_graph=True))]
    if isinstance(model, LeNet5_1998):
        assert (y.numpy() >= 0).all()
        flows.append(("curvature", curvature(value, list(named.values()))))
    for kind, found in flows:
        for (name, p), g in zip(named.items(), found, strict=True):
            assert (g.shape, g.dtype) == (p.shape, np.float32), name
            assert np.isfinite(g.numpy()).all(), name
            assert kind == "gradient" or (g.numpy() >= 0).all(), name
            if not (isinstance(model, LeNet5) and model.bn1 and name in ("c1.bias", "c3.bias")):
                assert np.abs(g.numpy()).max() > 0, name  # but normalising takes a bias out again


def normalised() -> LeNet5:
    """With running statistics that do not move, so that its loss is a function of the weights alone."""
    model = in_float64(LeNet5(activation="sigmoid", batch_norm=True, rng=0))
    model(Tensor(digits(2)[0]))
    return model.eval()


@pytest.mark.parametrize(
    ("make", "loss", "names"),
    [
        *((make, logits_loss, "c1.weight c1.bias c3.weight c5.bias f6.weight output.bias") for make in (
            lambda: LeNet5(rng=0), normalised,
        )),
        *((trainable_1998, loss, "c1.weight s2.weight c3.weight s4.bias f6.weight output.centers") for loss in (
            eq8, eq9,
        )),
    ],
)  # fmt: skip
def test_gradients_of_the_whole_model(make: Callable[[], Any], loss: Callable[..., Tensor], names: str) -> None:
    """From the loss back to the images and to parameters, against central differences in float64."""
    x, labels = digits(2)
    model = in_float64(make())
    testing.check_gradients(lambda x: loss(model, x, labels), x, order=1)
    for name in names.split():
        layer, attribute = name.split(".")
        module = getattr(model, layer)
        original = getattr(module, attribute)

        def through(parameter: Tensor, module: Any = module, attribute: str = attribute) -> Tensor:
            setattr(module, attribute, parameter)
            return loss(model, Tensor(x), labels)

        testing.check_gradients(through, original, order=1)
        setattr(module, attribute, original)


@pytest.mark.parametrize("j", [None, 5.0])
def test_the_recipe_of_1998_learns(j: float | None) -> None:
    """Curvatures from 20 digits, then two passes over them, one digit a step: the loss halves, few errors remain."""

    def loss(x: np.ndarray, labels: np.ndarray, j: float | None) -> Tensor:
        return F.penalty_loss(0.5 * model(Tensor(x)), labels, j)

    pixels, labels = data.digits("train")
    x, labels = data.to_input(pixels[:20]), labels[:20]
    model = LeNet5_1998(rng=0)
    optimizer = optim.StochasticDiagonalLM(model.parameters(), lr=0.0005, mu=0.02)
    before = loss(x, labels, j).item()
    for _ in range(2):
        optimizer.estimate(loss(x, labels, None))
        for n in range(20):
            loss(x[n : n + 1], labels[n : n + 1], j).backward()
            optimizer.step()
            optimizer.zero_grad()
    assert loss(x, labels, j).item() < before / 2
    assert (model.predict(Tensor(x)).numpy() != labels).sum() <= 4


# PyTorch's LeNet-5s, written from the paper's tables with PyTorch's own functions; t holds our state


def torch_today(torch: Any, t: dict[str, Any], x: Any, options: dict[str, Any], training: bool) -> Any:
    TF, act = torch.nn.functional, getattr(torch, options.get("activation", "tanh"))
    pool = TF.max_pool2d if options.get("pool") == "max" else TF.avg_pool2d

    def normalise(maps: Any, bn: str) -> Any:
        if not options.get("batch_norm"):
            return maps
        t[f"{bn}.num_batches_tracked"] += training
        own = (t[f"{bn}.{name}"] for name in ("running_mean", "running_var", "weight", "bias"))
        return TF.batch_norm(maps, *own, training=training)

    x = pool(act(normalise(TF.conv2d(x, t["c1.weight"], t["c1.bias"]), "bn1")), 2)
    x = pool(act(normalise(TF.conv2d(x, t["c3.weight"], t["c3.bias"]), "bn3")), 2)
    x = act(TF.conv2d(x, t["c5.weight"], t["c5.bias"])).flatten(1)
    return TF.linear(act(TF.linear(x, t["f6.weight"], t["f6.bias"])), t["output.weight"], t["output.bias"])


def torch_1998(torch: Any, t: dict[str, Any], x: Any) -> Any:
    """C3 is a masked dense convolution."""
    TF = torch.nn.functional
    mask = torch.zeros(16, 6, 60, dtype=torch.float64)
    for k, (f, c) in enumerate((f, int(c)) for f, maps in enumerate(SEES) for c in maps):
        mask[f, c, k] = 1

    def act(a: Any) -> Any:
        return 1.7159 * torch.tanh(2 / 3 * a)

    def subsample(maps: Any, layer: str) -> Any:
        return act(TF.avg_pool2d(maps, 2) * t[f"{layer}.weight"][:, None, None] + t[f"{layer}.bias"][:, None, None])

    x = subsample(act(TF.conv2d(x, t["c1.weight"], t["c1.bias"])), "s2")
    x = subsample(act(TF.conv2d(x, torch.einsum("fck,kij->fcij", mask, t["c3.weight"]), t["c3.bias"])), "s4")
    x = act(TF.conv2d(x, t["c5.weight"], t["c5.bias"])).flatten(1)
    x = act(TF.linear(x, t["f6.weight"], t["f6.bias"]))
    return torch.cdist(x, t["output.centers"], compute_mode="donot_use_mm_for_euclid_dist") ** 2


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", [*OPTIONS, "Eq. 8", "Eq. 9"])
def test_pytorch_agrees(name: str, training: bool) -> None:
    """Outputs, all gradients and running statistics, from the same state, to 1e-8."""
    torch = pytest.importorskip("torch")
    x, labels = digits(3)
    options = OPTIONS.get(name, {}) | {"dropout": 0.0}  # its draws differ
    model = in_float64(LeNet5(**options, rng=5) if name in OPTIONS else trainable_1998()).train(training)
    named = dict(model.named_parameters())
    t = {each: torch.tensor(tensor.numpy().copy()) for each, tensor in model.state_dict().items()}
    for tensor in (t_x := torch.tensor(x), *(t[each] for each in named)):
        tensor.requires_grad_()

    ours = model(x_ours := Tensor(x, requires_grad=True))
    if name in OPTIONS:
        theirs = torch_today(torch, t, t_x, options, training)
        loss, t_loss = F.cross_entropy(ours, labels), torch.nn.functional.cross_entropy(theirs, torch.tensor(labels))
    else:
        theirs, j = torch_1998(torch, t, t_x), None if name == "Eq. 8" else 84.0
        rubbish = 0 if j is None else torch.log(math.exp(-j) + torch.exp(-theirs).sum(1))
        loss, t_loss = F.penalty_loss(ours, labels, j), (theirs[torch.arange(3), torch.tensor(labels)] + rubbish).mean()
    t_loss.backward()
    np.testing.assert_allclose(ours.numpy(), theirs.detach().numpy(), rtol=1e-10, atol=1e-8)
    gradients = grad(loss, [x_ours, *named.values()])
    for each, g, tensor in zip(["x", *named], gradients, [t_x, *(t[each] for each in named)], strict=True):
        np.testing.assert_allclose(g.numpy(), tensor.grad.numpy(), rtol=0, atol=1e-8, err_msg=each)
    for each, tensor in model.state_dict().items():
        np.testing.assert_allclose(tensor.numpy(), t[each].detach().numpy(), rtol=0, atol=1e-8, err_msg=each)


# 1998: connections, initial values, codes


def test_connections_of_1998() -> None:
    """Those of the paper's text, layer by layer: 340,908 with the 840 of the output."""
    expected = {"c1": 122_304, "s2": 5_880, "c3": 151_600, "s4": 2_000, "c5": 48_120, "f6": 10_164, "output": 840}
    for trainable in (False, True):
        counts = count_connections(LeNet5_1998(trainable_codes=trainable))
        assert list(counts.items()) == list(expected.items())
    assert sum(counts.values()) == 340_908


def test_connections_of_other_networks() -> None:
    """Today's LeNet-5 has no parameters in its pools, which do not count; without a bias there is none to count."""
    today = {"c1": 122_304, "c3": 16 * 100 * 151, "c5": 48_120, "f6": 10_164, "output": 850}
    assert count_connections(LeNet5()) == count_connections(LeNet5("relu", "max", dropout=0.5)) == today
    net = nn.Sequential(nn.Conv2d(2, 3, 3, stride=2, bias=False), nn.Tanh(), nn.Flatten(), nn.Linear(12, 5, bias=False))
    assert count_connections(net, (2, 5, 5)) == {"0": 3 * 4 * 18, "3": 60}
    assert count_connections(nn.Subsample2d(3, (2, 1)), (3, 5, 4)) == {"": 3 * 8 * 3}


def test_counting_leaves_no_trace() -> None:
    """No hook, gradient or mode is left behind, also after a layer that is not known."""
    for model in (LeNet5_1998(), LeNet5(batch_norm=True).eval()):
        modes = [module.training for _, module in model.named_modules()]
        if isinstance(model, LeNet5):
            with refused(TypeError, "count_connections bn1 BatchNorm2d"):
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
    c3, rng = in_float64(LeNet5_1998(rng=0)).c3, np.random.default_rng(f)
    maps = rng.normal(size=(1, 6, 14, 14))
    before = c3(maps).numpy()[0, f]
    for c in range(6):
        changed = maps.copy()
        changed[0, c] += rng.normal(size=(14, 14))
        assert bool((c3(changed).numpy()[0, f] != before).any()) is (str(c) in SEES[f])


@pytest.mark.parametrize(
    ("init", "bound"), [("sqrt-fan-in", lambda fans: np.sqrt(3 / fans)), ("fan-in", lambda fans: 2.4 / fans)]
)
def test_initial_values_of_1998(init: str, bound: Callable[[Any], Any]) -> None:
    """Uniform within the bound of each unit's fan-in; S2 and S4 start with the mean of their windows."""
    models = [LeNet5_1998(init, rng=seed) for seed in range(12)]
    c3 = 25 * np.array([len(maps) for maps in SEES])
    for name, fans in (
        ("c1.weight", [25]), ("c1.bias", [25]), ("c3.weight", np.repeat(c3, c3 // 25)), ("c3.bias", c3),
        ("c5.weight", [400]), ("c5.bias", [400]), ("f6.weight", [120]), ("f6.bias", [120]),
    ):  # fmt: skip
        drawn = np.stack([model.state_dict()[name].numpy() for model in models])
        ratios = drawn / bound(np.reshape(fans, (-1,) + (1,) * (drawn.ndim - 2)))
        assert abs(ratios.mean()) < 4 / math.sqrt(3 * ratios.size), name  # four standard errors
        largest = np.abs(ratios).max(axis=(0, *range(2, ratios.ndim)))  # of each map or unit
        assert (largest > 0.5).all() and (largest <= 1 + 1e-6).all(), name
    for subsampling in (models[0].s2, models[0].s4):
        assert (subsampling.weight.numpy() == 1).all()
        assert not subsampling.bias.numpy().any()
    assert {p.dtype for p in models[0].parameters()} == {np.dtype(np.float32)}
    for again in (LeNet5_1998(init, rng=3), LeNet5_1998(init, rng=np.random.default_rng(3))):
        for p, q in zip(models[3].parameters(), again.parameters(), strict=True):
            np.testing.assert_array_equal(p.numpy(), q.numpy())
    for other in (models[4], LeNet5_1998(init)):
        assert not np.array_equal(other.c1.weight.numpy(), models[3].c1.weight.numpy())


def test_codes() -> None:
    """Ten pictures of 7 x 12 pixels of +1 and -1, all different: 6 and 8 are the most alike."""
    assert CODES.shape == (10, 12, 7)
    assert (np.abs(CODES) == 1).all()
    codes = CODES.reshape(10, 84).astype(int)
    distances = {(a, b): int(((codes[a] - codes[b]) ** 2).sum()) for a, b in itertools.combinations(range(10), 2)}
    assert [pair for pair, distance in distances.items() if distance <= 48] == [(6, 8)]
    assert (min(distances.values()), max(distances.values()), sum(distances.values())) == (48, 200, 5596)
    assert (CODES == 1).sum((1, 2)).tolist() == [35, 27, 33, 32, 41, 35, 39, 25, 43, 39]
    assert (CODES[7, 0] == 1).all()  # the bar of the 7
    assert (CODES[1, 0] == [-1, -1, -1, 1, 1, -1, -1]).all()  # the tip of the 1
    assert (CODES[:, 11] == 1).any(axis=1).tolist() == [False] * 4 + [True] + [False] * 5  # the 4 reaches lowest
    np.testing.assert_array_equal(LeNet5_1998().output.centers.numpy(), codes)


@pytest.mark.parametrize(
    "make",
    [lambda: LeNet5_1998(rng=0), *(lambda o=o: LeNet5(**o, rng=0) for o in OPTIONS.values())],
    ids=["1998", *OPTIONS],
)
def test_a_network_made_and_trained_on_a_device(make: Callable[[], Any]) -> None:
    """Made where a second device is the default, the weights are those of the CPU, also after steps of training."""
    pixels, labels = digits(8)

    def trained() -> Any:
        model = make()
        initial = {name: tensor.numpy().copy() for name, tensor in model.state_dict().items()}
        optimizer = optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        loss_of = F.penalty_loss if isinstance(model, LeNet5_1998) else F.cross_entropy
        x, target = Tensor(pixels.astype(np.float32)), Tensor(labels)
        with no_host_reads():
            for _ in range(2):
                optimizer.zero_grad()
                loss_of(model(x), target).backward()
                optimizer.step()
        return initial, model.state_dict()

    initial, after = trained()
    with backend.use("strict:1"):
        initial_there, after_there = trained()
    for name, tensor in after_there.items():
        assert tensor.device == "strict:1"
        np.testing.assert_array_equal(initial_there[name], initial[name])
        np.testing.assert_allclose(tensor.numpy(), after[name].numpy(), rtol=1e-4, atol=1e-5)


# 1998: decisions


def test_the_network_of_1998_on_a_device() -> None:
    """Under CuPy's rules, nothing read back: a step, its curvatures and its predictions are those of the CPU."""
    pixels, labels = digits(4)

    def run(model: LeNet5_1998, x: Tensor) -> list[Tensor]:
        parameters, loss = list(model.parameters()), eq9(model, x, labels)
        h = curvature(loss, parameters)
        return [*h, *grad(loss, parameters), model.predict(x), model.reject(x, 1.0)]

    host, device = (in_float64(LeNet5_1998(rng=0)) for _ in range(2))
    x = Tensor(pixels).to("strict:1")
    assert all(tensor.device == "strict:1" for tensor in device.to("strict:1").state_dict().values())
    with no_host_reads():
        found = run(device, x)
    for ours, expected in zip(found, run(host, Tensor(pixels)), strict=True):
        assert ours.device == "strict:1"
        np.testing.assert_allclose(ours.numpy(), expected.numpy(), rtol=1e-9, atol=1e-12)


class Foregone(LeNet5_1998):
    """A network whose penalties are its input."""

    def forward(self, x: Tensor) -> Tensor:
        return x


def penalties_of(*rows: list[float]) -> Tensor:
    """Rows of ten penalties, those not given far away."""
    return Tensor(np.array([row + [99.0] * (10 - len(row)) for row in rows]), requires_grad=True)


def test_predict_takes_the_smallest_penalty() -> None:
    """The first one of several, as integers that are not recorded."""
    classes = Foregone().predict(penalties_of([3, 1, 2], [5, 5, 4, 4], [7] * 10, [math.inf] * 9 + [0]))
    assert classes.numpy().tolist() == [1, 2, 0, 9]
    assert classes.dtype.kind == "i"
    assert not classes.requires_grad
    model = LeNet5_1998(rng=0)
    np.testing.assert_array_equal(model.predict(images(5)).numpy(), model(images(5)).numpy().argmin(axis=1))


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
    assert (answer.numpy().tolist(), answer.dtype) == (rejected, np.bool_)
    turned = Tensor(np.ascontiguousarray(x.numpy()[:, ::-1]))
    assert Foregone().reject(turned, threshold).numpy().tolist() == rejected


@pytest.mark.parametrize("threshold", [-1e-9, -1, math.nan, -math.inf, "a", None])
def test_bad_threshold_is_refused(threshold: Any) -> None:
    with refused(ValueError, f"reject threshold {threshold!r}"):
        Foregone().reject(penalties_of([1, 2]), threshold)


def test_an_empty_batch() -> None:
    model, nothing = LeNet5_1998(rng=0), Tensor(np.zeros((0, 1, 32, 32), np.float32))
    assert model(nothing).shape == LeNet5()(nothing).shape == (0, 10)
    assert model.predict(nothing).shape == model.reject(nothing, 1.0).shape == (0,)
