"""Models and weights to and from PyTorch: equal names, layouts and results; safetensors in between."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models import LeNet5, LeNet5_1998
from tests.refusals import refused
from tinygrad_lenet import Tensor, checkpoint, data, nn, no_grad, optim

torch = pytest.importorskip("torch")
safetensors = pytest.importorskip("safetensors.torch")
tn = torch.nn


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class TorchLeNet5(tn.Module):  # type: ignore[misc, name-defined]
    def __init__(self, activation: str, pool: str, dropout: float, batch_norm: bool) -> None:
        super().__init__()
        self.c1, self.c3, self.c5 = tn.Conv2d(1, 6, 5), tn.Conv2d(6, 16, 5), tn.Conv2d(16, 120, 5)
        self.f6, self.output = tn.Linear(120, 84), tn.Linear(84, 10)
        if batch_norm:
            self.bn1, self.bn3 = tn.BatchNorm2d(6), tn.BatchNorm2d(16)
        self.normed = batch_norm
        self.act = {"tanh": torch.tanh, "sigmoid": torch.sigmoid, "relu": torch.relu}[activation]
        self.pool = tn.AvgPool2d(2) if pool == "avg" else tn.MaxPool2d(2)

    def forward(self, x: Any) -> Any:
        x = self.c1(x)
        x = self.pool(self.act(self.bn1(x) if self.normed else x))
        x = self.c3(x)
        x = self.pool(self.act(self.bn3(x) if self.normed else x))
        x = self.act(self.c5(x)).flatten(1)
        return self.output(self.act(self.f6(x)))


def to_torch(model: nn.Module, other: Any, path: Path) -> None:
    checkpoint.save(path, model.state_dict(), {})
    other.load_state_dict(safetensors.load_file(path))


def from_torch(other: Any, model: nn.Module, path: Path) -> None:
    safetensors.save_file(other.state_dict(), path)
    model.load_state_dict(checkpoint.load(path)[0])


OPTIONS = [
    (a, p, d, b) for a in ("tanh", "sigmoid", "relu") for p in ("avg", "max") for d, b in ((0, False), (0.5, True))
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_option_of_lenet5_both_ways(options: tuple[Any, ...], tmp_path: Path) -> None:
    activation, pool, dropout, batch_norm = options
    images, _ = data.digits("test")
    x = np.ascontiguousarray(data.to_input(images[:50]))
    torch.manual_seed(0)
    other = TorchLeNet5(*options)
    model = LeNet5(activation, pool, dropout, batch_norm, rng=0)
    with no_grad():
        model(Tensor(x))  # which moves the statistics
    assert set(model.state_dict()) == set(other.state_dict())
    for exchange in (to_torch, from_torch):
        exchange(*((model, other) if exchange is to_torch else (other, model)), tmp_path / "w.safetensors")
        with no_grad():
            ours, theirs = model.eval()(Tensor(x)), other.eval()(torch.tensor(x))
        np.testing.assert_allclose(ours.numpy(), theirs.numpy(force=True), rtol=0, atol=1e-5)
        with torch.no_grad():  # so that the way back brings something else
            for p in other.parameters():
                p.mul_(0.9)


def test_pretrained_lenet5_in_pytorch(tmp_path: Path) -> None:
    images, _ = data.digits("test")
    x = np.ascontiguousarray(data.to_input(images))
    model, other = LeNet5.pretrained(), TorchLeNet5("tanh", "avg", 0, False)
    to_torch(model, other, tmp_path / "w.safetensors")
    with no_grad():
        ours, theirs = model(Tensor(x)).numpy(), other(torch.tensor(x)).numpy(force=True)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())


def test_the_lenet5_of_1998_computed_with_pytorchs_functions(tmp_path: Path) -> None:
    images, _ = data.digits("test")
    x = np.ascontiguousarray(data.to_input(images[:50], background=-0.1, foreground=1.175))
    model = LeNet5_1998.pretrained()
    checkpoint.save(tmp_path / "w.safetensors", model.state_dict(), {})
    w, tf = safetensors.load_file(tmp_path / "w.safetensors"), tn.functional

    def act(t: Any) -> Any:
        return 1.7159 * torch.tanh(2 / 3 * t)

    def subsample(t: Any, name: str) -> Any:
        return w[f"{name}.weight"][:, None, None] * tf.avg_pool2d(t, 2) + w[f"{name}.bias"][:, None, None]

    dense, k = torch.zeros(16, 6, 5, 5), 0
    assert model.c3.connections is not None
    for f, maps in enumerate(model.c3.connections):
        for c in maps:
            dense[f, c], k = w["c3.weight"][k], k + 1
    t = act(tf.conv2d(torch.tensor(x), w["c1.weight"], w["c1.bias"]))
    t = act(tf.conv2d(act(subsample(t, "s2")), dense, w["c3.bias"]))
    t = act(tf.conv2d(act(subsample(t, "s4")), w["c5.weight"], w["c5.bias"])).flatten(1)
    t = act(tf.linear(t, w["f6.weight"], w["f6.bias"]))
    theirs = ((t[:, None] - w["output.centers"]) ** 2).sum(2).numpy()
    with no_grad():
        ours = model(Tensor(x)).numpy()
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(ours).max())


# name -> ours, PyTorch's, the shape of an input (None: indices below 5)
LAYERS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any], tuple[int, ...] | None]] = {
    "Conv2d": (
        lambda: nn.Conv2d(4, 6, 3, 2, 1, 2, 2, False), lambda: tn.Conv2d(4, 6, 3, 2, 1, 2, 2, False), (2, 4, 9, 9)),
    "ConvTranspose2d": (
        lambda: nn.ConvTranspose2d(4, 6, 3, 2, 1, 1), lambda: tn.ConvTranspose2d(4, 6, 3, 2, 1, 1), (2, 4, 5, 5)),
    "Linear": (lambda: nn.Linear(3, 4), lambda: tn.Linear(3, 4), (2, 5, 3)),
    "LayerNorm": (lambda: nn.LayerNorm((3, 4)), lambda: tn.LayerNorm((3, 4)), (2, 3, 4)),
    "Embedding": (lambda: nn.Embedding(5, 3), lambda: tn.Embedding(5, 3), None),
    "BatchNorm1d": (lambda: nn.BatchNorm1d(3), lambda: tn.BatchNorm1d(3), (4, 3)),
    "LeakyReLU": (lambda: nn.LeakyReLU(0.2, True), lambda: tn.LeakyReLU(0.2), (3, 4)),
    "Softmax": (lambda: nn.Softmax(1), lambda: tn.Softmax(1), (3, 4)),
    "ReLU": (lambda: nn.ReLU(True), lambda: tn.ReLU(True), (3, 4)),
    "list": (
        lambda: nn.Sequential(nn.ModuleList([nn.Linear(3, 3)])[0], nn.Tanh()),
        lambda: tn.Sequential(tn.Linear(3, 3), tn.Tanh()), (2, 3)),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYERS)
def test_layers(name: str, tmp_path: Path) -> None:
    ours, theirs, shape = LAYERS[name]
    model, other = ours(), theirs()
    assert {n: t.shape for n, t in model.state_dict().items()} == {n: t.shape for n, t in other.state_dict().items()}
    if model.state_dict():
        to_torch(model, other, tmp_path / "w.safetensors")
    rng = np.random.default_rng(0)
    x: Any = rng.integers(0, 5, (2, 3)) if shape is None else rng.normal(size=shape).astype(np.float32)
    np.testing.assert_allclose(model(Tensor(x)).numpy(), other(torch.tensor(x)).numpy(force=True), rtol=0, atol=1e-5)


LOSSES: dict[str, tuple[nn.Module, Any]] = {
    "CrossEntropyLoss": (nn.CrossEntropyLoss(label_smoothing=0.1), tn.CrossEntropyLoss(label_smoothing=0.1)),
    "ignoring": (nn.CrossEntropyLoss(ignore_index=2), tn.CrossEntropyLoss(ignore_index=2)),
    "NLLLoss": (nn.NLLLoss(), tn.NLLLoss()),
    "MSELoss": (nn.MSELoss(), tn.MSELoss()),
    "L1Loss": (nn.L1Loss(reduction="sum"), tn.L1Loss(reduction="sum")),
    "SmoothL1Loss": (nn.SmoothL1Loss(beta=0.5), tn.SmoothL1Loss(beta=0.5)),
    "BCEWithLogitsLoss": (nn.BCEWithLogitsLoss(), tn.BCEWithLogitsLoss()),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses(name: str) -> None:
    ours, theirs = LOSSES[name]
    rng = np.random.default_rng(0)
    x = rng.normal(size=(6, 3)).astype(np.float32)
    labelled = name in ("CrossEntropyLoss", "ignoring", "NLLLoss")
    y = rng.integers(0, 3, 6) if labelled else rng.random((6, 3)).astype(np.float32)
    assert ours(x, y).item() == pytest.approx(theirs(torch.tensor(x), torch.tensor(y)).item(), rel=1e-5)


def test_tied_weights(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            self.embed, self.head = nn.Embedding(5, 3, rng=0), nn.Linear(3, 5, bias=False, rng=1)
            self.head.weight = self.embed.weight

        def forward(self, x: Any) -> Tensor:
            return self.head(self.embed(x))

    model = Tied()
    other = tn.ModuleDict({"embed": tn.Embedding(5, 3), "head": tn.Linear(3, 5, bias=False)})
    other["head"].weight = other["embed"].weight
    to_torch(model, other, tmp_path / "w.safetensors")
    theirs = other["head"](other["embed"](torch.tensor([0, 4])))
    np.testing.assert_allclose(model([0, 4]).numpy(), theirs.numpy(force=True), atol=1e-6)
    with torch.no_grad():
        other["embed"].weight.mul_(2)
    safetensors.save_model(other, str(tmp_path / "shared.safetensors"))  # which writes what is shared once
    with refused(ValueError, "missing"):
        model.load_state_dict(checkpoint.load(tmp_path / "shared.safetensors")[0])
    model.load_state_dict(checkpoint.load(tmp_path / "shared.safetensors")[0], strict=False)
    assert model.head.weight is model.embed.weight
    np.testing.assert_array_equal(model.head.weight.numpy(), other["head"].weight.numpy(force=True))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_dtypes(dtype: str, tmp_path: Path) -> None:
    other = tn.Linear(3, 2).to(getattr(torch, dtype))
    model = nn.Linear(3, 2)
    if dtype == "bfloat16":  # NumPy has no such dtype
        safetensors.save_file(other.state_dict(), tmp_path / "w.safetensors")
        with pytest.raises(ValueError, match="BF16"):
            checkpoint.load(tmp_path / "w.safetensors")
        other = other.float()
    from_torch(other, model, tmp_path / "w.safetensors")
    assert model.weight.dtype == np.float32
    np.testing.assert_array_equal(model.weight.numpy(), other.weight.float().numpy(force=True))


def test_extra_missing_and_prefixed_keys() -> None:
    model, other = nn.Linear(3, 2), tn.Sequential(tn.Linear(3, 2), tn.Linear(2, 2))
    with refused(ValueError, "weight bias 0.weight 1.bias"):
        model.load_state_dict(other.state_dict())
    parallel = tn.DataParallel(tn.Linear(3, 2))
    with refused(ValueError, "module."):
        model.load_state_dict(parallel.state_dict())


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW"])
def test_groups_and_clipping_step_as_pytorch_does(name: str) -> None:
    rng = np.random.default_rng(0)
    start = [rng.normal(size=shape).astype(np.float32) for shape in ((3, 4), (4,), (2,))]
    ours = [Tensor(a.copy(), requires_grad=True) for a in start]
    theirs = [torch.tensor(a.copy(), requires_grad=True) for a in start]

    def groups(params: list[Any]) -> Any:
        return [{"params": params[:1], "lr": 0.05, "weight_decay": 0.1}, {"params": params[1:]}]

    mine, his = getattr(optim, name)(groups(ours), lr=0.01), getattr(torch.optim, name)(groups(theirs), lr=0.01)
    for _ in range(10):
        for params, optimizer in ((ours, mine), (theirs, his)):
            optimizer.zero_grad()
            sum((p * p * p + p).sum() for p in params).backward()
        norm = optim.clip_grad_norm(ours, 2.0)
        assert norm.item() == pytest.approx(tn.utils.clip_grad_norm_(theirs, 2.0).item(), rel=1e-5)
        mine.step()
        his.step()
    for p, q in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(p.numpy(), q.numpy(force=True), rtol=1e-4, atol=1e-6)
