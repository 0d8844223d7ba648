"""Models exported as ONNX: onnx's checker accepts them, and onnxruntime computes the same, for any length of batch."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models import LeNet5, LeNet5_1998
from tests.refusals import refused
from tinygrad_lenet import ShapeError, Tensor, data, interop, nn, no_grad
from tinygrad_lenet import functional as F

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")


class Function(nn.Module):
    """A module that applies a function."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


def same(model: nn.Module, folder: Path, shape: tuple[int, ...], *inputs: np.ndarray) -> None:
    """Equal to 1e-5 of the largest output, on each of the inputs."""
    path = folder / "model.onnx"
    interop.onnx.export(model, path, shape)
    onnx.checker.check_model(onnx.load(path), full_check=True)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    loaded = interop.onnx.load(path)
    session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    for x in inputs:
        (found,) = session.run(None, {"input": np.ascontiguousarray(x)})
        with no_grad():
            expected = model(Tensor(x)).numpy()
            back = loaded(Tensor(x)).numpy()
        largest = max(1.0, float(np.abs(expected.astype(float)).max(initial=0)))
        for y in (found, back):
            assert (y.shape, y.dtype) == (expected.shape, expected.dtype)
            np.testing.assert_allclose(y.astype(float), expected.astype(float), rtol=0, atol=1e-5 * largest)


def digits(**options: float) -> list[np.ndarray]:
    images, _ = data.digits("test")
    x = data.to_input(images[:100], **options)
    return [x, x[:1], x[:7]]


OPTIONS = [
    {"activation": activation, "pool": pool, "dropout": dropout, "batch_norm": batch_norm}
    for activation in ("tanh", "sigmoid", "relu")
    for pool in ("avg", "max")
    for dropout, batch_norm in ((0.0, False), (0.3, True))
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(map(str, options.values())))
def test_every_option_of_lenet5_on_digits(options: dict[str, Any], tmp_path: Path) -> None:
    model = LeNet5(**options, rng=0)
    with no_grad():
        model(Tensor(digits()[0]))  # which moves the statistics
    same(model.eval(), tmp_path, (1, 32, 32), *digits())


def test_pretrained_lenets_on_digits(tmp_path: Path) -> None:
    same(LeNet5.pretrained(), tmp_path, (1, 32, 32), *digits())
    same(LeNet5_1998.pretrained(), tmp_path, (4, 1, 32, 32), *digits(background=-0.1, foreground=1.175))


def test_parameters_keep_their_names(tmp_path: Path) -> None:
    model = LeNet5(rng=0)
    interop.onnx.export(model, tmp_path / "m.onnx", (1, 32, 32))
    graph = onnx.load(tmp_path / "m.onnx").graph
    stored = {each.name: onnx.numpy_helper.to_array(each) for each in graph.initializer}
    for name, tensor in model.state_dict().items():
        np.testing.assert_array_equal(stored[name], tensor.numpy())
    assert [each.dim_param or each.dim_value for each in graph.input[0].type.tensor_type.shape.dim] == ["N", 1, 32, 32]


@st.composite
def models(draw: st.DrawFn) -> tuple[nn.Module, tuple[int, ...]]:
    """Convolutions, pools, norms and activations on images, then full layers."""
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    channels, size = draw(st.integers(1, 4)), draw(st.integers(8, 12))
    shape = (channels, size, size)
    layers: list[nn.Module] = []
    activations = st.sampled_from([nn.Tanh, nn.Sigmoid, nn.ReLU, nn.ScaledTanh])
    for _ in range(draw(st.integers(1, 3))):
        kind = draw(st.sampled_from(["conv", "transpose", "avg", "max", "subsample", "norm"]))
        kernel, stride, padding = draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(st.integers(0, 1))
        if kind in ("conv", "transpose"):
            out, groups = 2 * channels, draw(st.sampled_from([1, channels]))
            layer = nn.Conv2d if kind == "conv" else nn.ConvTranspose2d
            settings = {"bias": draw(st.booleans()), "groups": groups, "dilation": draw(st.integers(1, 2)), "rng": rng}
            layers.append(layer(channels, out, kernel, stride, padding, **settings))
            channels = out
        elif kind in ("avg", "max"):
            pool = nn.AvgPool2d if kind == "avg" else nn.MaxPool2d
            layers.append(pool(kernel, stride, min(padding, kernel // 2)))
        elif kind == "subsample":
            layers.append(nn.Subsample2d(channels, min(kernel, 2)))
        else:
            layers.append(nn.BatchNorm2d(channels))
        layers.append(draw(activations)())
    body = nn.Sequential(*layers, nn.Flatten()).eval()
    with no_grad():
        features = body(Tensor(np.zeros((1, *shape), np.float32))).shape[1]
    return nn.Sequential(body, nn.Linear(features, 5, rng=rng), draw(activations)(), nn.Dropout(0.5)).eval(), shape


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_models_drawn_at_random(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    try:
        model, shape = data.draw(models())
    except ShapeError:  # the images became smaller than a window
        return
    rng = np.random.default_rng(0)
    inputs = [rng.normal(size=(n, *shape)).astype(np.float32) for n in (1, 5)]
    same(model, tmp_path_factory.mktemp("model"), shape, *inputs)


A = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)
FUNCTIONS: dict[str, Callable[[Tensor], Any]] = {
    "arithmetic": lambda x: (2.0 - x) * 3.0 / (x * x + 1.0) - (-x) ** 2 + abs(x),
    "functions": lambda x: x.exp() + (x * x + 1).log() - (x * x).sqrt(),
    "both sides": lambda x: F.maximum(x, 0.1) + F.minimum(0.2, x) + F.maximum(x, Tensor(A)),
    "comparisons": lambda x: F.where(((x > 0) & (x <= 0.5)) | ~(x != 0) | (x == 1) | (x < -0.5) | (x >= 0.9), x, -1.0),
    "reductions": lambda x: x.sum(1) + x.mean((1, 2)).expand_dims(1) - x.max(-1).min(1, keepdims=True) + x.var(1),
    "over the batch": lambda x: x - x.mean(0),
    "positions": lambda x: x.argmax(2) + x.argmin(-1),
    "softmax": lambda x: x.softmax(1) + x.log_softmax(-1) - x.logsumexp((1, 2), keepdims=True),
    "products": lambda x: x @ Tensor(A.T) @ Tensor(A[:, :3].T),
    "rows": lambda x: F.linear(x, A, A[:, 0]),
    "layout": lambda x: F.concatenate([x.transpose(0, 2, 1), x.transpose(0, 2, 1)], axis=2).reshape(-1, 4, 3, 2),
    "padding": lambda x: F.pad(x, ((0, 0), (1, 0), (2, 1)), 0.5).expand_dims(1).broadcast_to((x.shape[0], 2, 4, 7)),
    "slices": lambda x: x[:, 1:, ::-2].expand_dims(0)[0, :, None, -1] + x[..., 0, 1][:, None, None],
    "a gather": lambda x: x[:, [2, 0, 0]][..., 1:],
    "several gathers": lambda x: x[:, :, np.array([[0, 3], [1, 1]])],
    "of no axis": lambda x: x.sum(()),
    "dtypes": lambda x: (x > 0).astype("int64").sum(1) * 3 - (x * 5).astype("int32").astype("int64")[:, 0],
    "a loss": lambda x: F.mse_loss(x, F.pad(x[:, :, :3], ((0, 0), (0, 0), (0, 1))), reduction="none"),
    "norms": lambda x: F.layer_norm(x, (3, 4), A, A) + F.layer_norm(x, 4),
    "sums": lambda x: F.cumsum(x, 1) + F.cumsum(x, -1) + F.sin(x) * F.cos(x) + F.leaky_relu(x, 0.2),
    "an embedding": lambda x: F.embedding(F.clip(x * 2, 0, 3).astype("int64"), A.T),
    "penalties": lambda x: F.rbf(x.reshape(x.shape[0], 12), A.reshape(1, 12)),
    "the input": lambda x: x,
    "a constant": lambda x: x + (Tensor(A) * 2).exp(),
    "einsum": lambda x: F.einsum("nij,kj->nki", x, A),
}  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
def test_ops(name: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    inputs = [rng.normal(size=(n, 3, 4)).astype(np.float32) for n in (1, 4)]
    same(Function(FUNCTIONS[name]), tmp_path, (3, 4), *inputs)


REFUSED: dict[str, tuple[Callable[[], nn.Module], Any, str]] = {
    "an op": (lambda: Function(lambda x: F.cross_entropy(x, x, reduction="none")), ValueError, "cross_entropy"),
    "a mask": (lambda: Function(lambda x: x[x > 0]), ValueError, "argwhere"),
    "dropout": (lambda: nn.Dropout(), ValueError, "eval"),
    "several": (lambda: Function(lambda x: x[:, [0, 1]][[0, 1], [1, 0]]), ValueError, "getitem"),
    "values": (lambda: Function(lambda x: x * x.sum().item()), ValueError, "item"),
    "a number": (lambda: Function(lambda x: x.sum(0) / x.shape[0]), ValueError, "divide"),
    "an array": (lambda: Function(lambda x: x + np.ones(x.shape, np.float32)), ValueError, "add"),
    "a slice": (lambda: Function(lambda x: x[1 : x.shape[0]]), ValueError, "getitem"),
    "repetition": (lambda: Function(lambda x: x[:1].broadcast_to(x.shape)), ValueError, "broadcast_to"),
    "a loop": (lambda: Function(lambda x: sum(x[i] for i in range(x.shape[0]))), ValueError, "N"),
    "no input": (lambda: Function(lambda x: Tensor([1.0])), ValueError, "output"),
    "a tuple": (lambda: Function(lambda x: (x, x)), TypeError, "tuple"),
    "a shape": (lambda: nn.Linear(3, 2), ShapeError, "linear"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_writes_nothing(case: str, tmp_path: Path) -> None:
    make, error, word = REFUSED[case]
    path = tmp_path / "model.onnx"
    path.write_bytes(b"old")
    with refused(error, word):
        interop.onnx.export(make(), path, (4,))
    assert path.read_bytes() == b"old"


def test_a_model_in_training_mode_is_refused_and_unchanged(tmp_path: Path) -> None:
    model = LeNet5(batch_norm=True, rng=0)
    before = {name: tensor.numpy().copy() for name, tensor in model.state_dict().items()}
    with refused(ValueError, "training eval"):
        interop.onnx.export(model, tmp_path / "model.onnx", (1, 32, 32))
    assert model.training
    for name, tensor in model.state_dict().items():
        np.testing.assert_array_equal(tensor.numpy(), before[name])


@pytest.mark.parametrize("shape", [7, "ab", None, (1, -32, 32), (1, 32.5, 32), ()])
def test_what_is_no_shape(shape: Any, tmp_path: Path) -> None:
    with refused((TypeError, ValueError)):
        interop.onnx.export(LeNet5(rng=0), tmp_path / "model.onnx", shape)
    with refused(TypeError, "Module"):
        interop.onnx.export(lambda x: x, tmp_path / "model.onnx", (1, 32, 32))  # type: ignore[arg-type]


def test_what_is_no_file_to_load(tmp_path: Path) -> None:
    """Damage is named, and so are an op and a setting that nothing here computes."""
    path = tmp_path / "model.onnx"
    path.write_bytes(b"no model")
    with refused(ValueError, "model.onnx damaged"):
        interop.onnx.load(path)
    with pytest.raises(OSError):
        interop.onnx.load(tmp_path / "gone.onnx")
    interop.onnx.export(nn.AvgPool2d(2, padding=1), path, (1, 4, 4))
    model = onnx.load(path)
    node = model.graph.node[0]
    node.attribute.append(onnx.helper.make_attribute("ceil_mode", 1))
    path.write_bytes(model.SerializeToString())
    with refused(ValueError, "AveragePool ceil_mode=1"):
        interop.onnx.load(path)
    del node.attribute[:]
    node.op_type = "Softsign"
    path.write_bytes(model.SerializeToString())
    with refused(ValueError, "Softsign"):
        interop.onnx.load(path)


def stored(path: Path, kind: str, inputs: str, opset: int = 13, **numbers: Any) -> Path:
    """A file of another program, with one node."""
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(kind, inputs.split(), ["y"])],
        "model",
        [value("x", onnx.TensorProto.FLOAT, ("N", 2, 3))],
        [value("y", onnx.TensorProto.FLOAT, ("N", None, None))],
        [onnx.numpy_helper.from_array(np.asarray(array), name) for name, array in numbers.items()],
    )
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=8), path)
    return path


@pytest.mark.parametrize(
    ("kind", "inputs", "settings", "words"),
    [
        ("Softmax", "x", {"opset": 11}, "version 11 expected 13"),
        ("Div", "n two", {"n": np.int64(7), "two": np.int64(2)}, "Div int64"),
        ("Pad", "x pads zero axes", {"opset": 18, "pads": [1, 1], "zero": np.float32(0), "axes": [2]}, "Pad 4"),
        ("Squeeze", "x", {}, "Squeeze 1"),
        ("Add", "x forward", {"forward": np.float32(1)}, "forward"),
        ("Add", "x _nodes.a", {"_nodes.a": np.float32(1)}, "_nodes.a"),
    ],
)
def test_what_means_something_else_in_onnx_is_refused(
    kind: str, inputs: str, settings: dict[str, Any], words: str, tmp_path: Path
) -> None:
    path = stored(tmp_path / "model.onnx", kind, inputs, **settings)
    with refused(ValueError, words):
        interop.onnx.load(path)(np.ones((1, 2, 3), np.float32))


def test_a_sum_over_no_axes_is_over_all(tmp_path: Path) -> None:
    path = stored(tmp_path / "model.onnx", "ReduceSum", "x axes", axes=np.array([], np.int64))
    assert interop.onnx.load(path)(np.ones((1, 2, 3), np.float32)).numpy().tolist() == [[[6.0]]]


def test_another_model_takes_the_numbers(tmp_path: Path) -> None:
    interop.onnx.export(LeNet5(rng=0), tmp_path / "m.onnx", (1, 32, 32))
    other = LeNet5(rng=1)
    other.load_state_dict(interop.onnx.load(tmp_path / "m.onnx").state_dict())
    np.testing.assert_array_equal(other.c3.weight.numpy(), LeNet5(rng=0).c3.weight.numpy())
