"""Every CPU kernel computes what its op's `forward` computes, on more shapes than the ops declare, and in any order.

`tests/test_ops.py` runs kernels on the small shapes of the registry. Here are LeNet-5's own shapes and those that are
cut into blocks; and what only kernels can get wrong: buffers that are kept between calls, and declining silently.
"""

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models import LeNet5, LeNet5_1998
from tinygrad_lenet import Op, Tensor, backend
from tinygrad_lenet import functional as F
from tinygrad_lenet.kernels import cpu
from tinygrad_lenet.tensor import REGISTRY

KERNELS = sorted(op for place, op in backend._kernels if place == "cpu")
TOLERANCE = {"float64": 1e-12, "float32": 1e-5}
BATCHES = (1, 2, 3, 33, 64)
CONVOLUTIONS = ((1, 6, 32), (6, 16, 14), (16, 120, 5))  # LeNet-5's C1, C3 and C5: channels, maps, rows of the input
POOLS = ((6, 28), (16, 10))  # LeNet-5's S2 and S4: maps, rows of the input
BATCH_LAST = (1, 2, 3, 0)


class Draw:
    """Choices by Hypothesis, values by a seeded generator; arrays of the drawn dtype in a drawn memory order."""

    def __init__(self, data: st.DataObject) -> None:
        self.data = data
        self.dtype = self.pick("float32", "float64")
        self.rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1), label="seed"))

    def pick(self, *values: Any) -> Any:
        return self.data.draw(st.sampled_from(values))

    def int(self, low: int, high: int) -> int:
        return self.data.draw(st.integers(low, high))

    def pair(self, low: int, high: int) -> tuple[int, int]:
        return self.int(low, high), self.int(low, high)

    def array(self, *shape: int) -> np.ndarray:
        """Random numbers, batch-last as the ops make them, or else: C-ordered, transposed, a step apart, reversed."""
        layout = self.pick("batch-last", "C", "F", "stepped", "reversed")
        x = self.rng.uniform(-1, 1, shape).astype(self.dtype)
        if layout == "batch-last" and len(shape) == 4:
            return np.ascontiguousarray(x.transpose(BATCH_LAST)).transpose(3, 0, 1, 2)
        if layout == "stepped":
            return np.repeat(x, 2, axis=-1)[..., ::2]
        if layout == "reversed":
            return np.ascontiguousarray(x[::-1])[::-1]
        return np.asarray(x, order="F" if layout == "F" else "C")


def draw_convolution(draw: Draw) -> tuple[dict[str, Any], tuple[int, ...], tuple[int, ...]]:
    """Parameters and shapes of x and weight: LeNet-5's, one large window, wide, or any."""
    kind = draw.pick("LeNet-5", "any", "any", "whole map", "wide")
    n = draw.pick(*BATCHES)
    c, f, (h, w), (kh, kw) = draw.int(1, 5), draw.int(1, 5), draw.pair(1, 9), draw.pair(1, 5)
    stride, padding = draw.pair(1, 3), draw.pair(0, 2)
    if kind == "LeNet-5":
        c, f, h = draw.pick(*CONVOLUTIONS)
        w, kh, kw, stride, padding = h, 5, 5, (1, 1), (0, 0)
    elif kind == "whole map":
        kh, kw = h + 2 * padding[0], w + 2 * padding[1]
    elif kind == "wide":
        n, w = draw.pick((1, 3000), (500, 11), (7, 401))
        h = min(h, 4)
    kh, kw = min(kh, h + 2 * padding[0]), min(kw, w + 2 * padding[1])
    return {"stride": stride, "padding": padding}, (n, c, h, w), (f, c, kh, kw)


def draw_conv2d(draw: Draw) -> tuple[dict[str, Any], list[np.ndarray]]:
    parameters, x, weight = draw_convolution(draw)
    bias = [draw.array(weight[0])] if draw.pick(True, False) else []
    return parameters, [draw.array(*x), draw.array(*weight), *bias]


def positions(parameters: dict[str, Any], x: Sequence[int], kernel: Sequence[int]) -> tuple[int, int]:
    oh, ow = ((x[2 + a] + 2 * parameters["padding"][a] - kernel[a]) // parameters["stride"][a] + 1 for a in (0, 1))
    return oh, ow


def draw_conv2d_weight_grad(draw: Draw) -> tuple[dict[str, Any], list[np.ndarray]]:
    parameters, x, (f, _, *kernel) = draw_convolution(draw)
    arrays = [draw.array(*x), draw.array(x[0], f, *positions(parameters, x, kernel))]
    return parameters | {"kernel_size": tuple(kernel)}, arrays


def draw_conv_transpose2d(draw: Draw) -> tuple[dict[str, Any], list[np.ndarray]]:
    parameters, x, weight = draw_convolution(draw)
    parameters["padding"] = tuple(min(p, (k - 1) // 2) for p, k in zip(parameters["padding"], weight[2:], strict=True))
    if draw.pick(True, True, False):  # the kernel is for these only
        parameters["stride"] = (1, 1)
    kernel = [min(k, x[2 + a] + 2 * parameters["padding"][a]) for a, k in enumerate(weight[2:])]
    small = (x[0], weight[0], *positions(parameters, x, kernel))
    bias = [draw.array(weight[1])] if draw.pick(True, False) else []
    return parameters, [draw.array(*small), draw.array(*weight[:2], *kernel), *bias]


def draw_pool(draw: Draw) -> tuple[dict[str, Any], tuple[int, ...], tuple[int, ...]]:
    """Parameters and shapes of x and gy: LeNet-5's, any windows side by side, or any at all."""
    kind = draw.pick("LeNet-5", "tiles", "any")
    n, (c, h) = draw.pick(*BATCHES), draw.pick(*POOLS)
    kernel, stride, padding, size = (2, 2), (2, 2), (0, 0), (h, h)
    if kind != "LeNet-5":
        c, kernel, outputs = draw.int(1, 4), draw.pair(1, 4), draw.pair(1, 5)
        stride, size = kernel, (outputs[0] * kernel[0], outputs[1] * kernel[1])
    if kind == "any":
        stride, padding = draw.pair(1, 3), (draw.int(0, kernel[0] // 2), draw.int(0, kernel[1] // 2))
        size = (size[0] + draw.int(0, 2), size[1] + draw.int(0, 2))
    parameters = {"kernel_size": kernel, "stride": stride, "padding": padding}
    return parameters, (n, c, *size), (n, c, *positions(parameters, (n, c, *size), kernel))


def draw_avg_pool2d_grad(draw: Draw) -> tuple[dict[str, Any], list[np.ndarray]]:
    parameters, x, gy = draw_pool(draw)
    return parameters | {"size": x[2:]}, [draw.array(*gy)]


def draw_max_pool2d_grad(draw: Draw) -> tuple[dict[str, Any], list[np.ndarray]]:
    parameters, x, gy = draw_pool(draw)
    pixels = draw.array(*x)
    if draw.pick(True, False):  # ties, zeros of both signs, infinities
        pixels = np.round(2 * pixels).astype(draw.dtype)
        pixels[pixels == draw.pick(1, 3)] = np.inf
        pixels[pixels == -2] = -np.inf
    return parameters, [pixels, draw.array(*gy)]


def draw_subsampling(draw: Draw) -> tuple[dict[str, Any], tuple[int, ...], tuple[int, ...]]:
    """Parameters and shapes of x and gy: the S2 and S4 of 1998, or any windows, also with pixels left over."""
    n, (c, h) = draw.pick(*BATCHES), draw.pick(*POOLS)
    kernel, size = (2, 2), (h, h)
    if draw.pick(True, True, False):
        c, kernel, outputs = draw.int(1, 4), draw.pair(1, 4), draw.pair(1, 5)
        size = tuple(o * k + draw.int(0, k - 1) for o, k in zip(outputs, kernel, strict=True))
    return {"kernel_size": kernel}, (n, c, *size), (n, c, size[0] // kernel[0], size[1] // kernel[1])


def draw_subsample2d(draw: Draw) -> tuple[dict[str, Any], list[np.ndarray]]:
    parameters, x, _ = draw_subsampling(draw)
    return parameters, [draw.array(*x), *(draw.array(x[1]) for _ in range(draw.int(1, 2)))]


def draw_subsample2d_weight_grad(draw: Draw) -> tuple[dict[str, Any], list[np.ndarray]]:
    parameters, x, gy = draw_subsampling(draw)
    return parameters, [draw.array(*x), draw.array(*gy)]


def draw_subsample2d_transpose(draw: Draw) -> tuple[dict[str, Any], list[np.ndarray]]:
    parameters, x, gy = draw_subsampling(draw)
    return parameters | {"size": x[2:]}, [draw.array(*gy), draw.array(x[1])]


def draw_matmul(draw: Draw) -> tuple[dict[str, Any], list[np.ndarray]]:
    (m, n), k = draw.pair(1, 130), draw.pick(1, 1, 2, 33)
    return {}, [draw.array(m, k), draw.array(k, n)]


def draw_tanh_grad(draw: Draw) -> tuple[dict[str, Any], list[np.ndarray]]:
    shape = draw.pick((64, 6, 28, 28), (3, 16, 10, 10), (1, 84), (33, 120), (7,), ())
    amplitude, slope = draw.pick((1.0, 1.0), (1.7159, 2 / 3), (3.0, 3.0), (0.5, 2.0), (1.0, -0.5))
    arrays = [draw.array(*shape) if shape else np.asarray(draw.rng.uniform(), draw.dtype) for _ in range(2)]
    return {"amplitude": amplitude, "slope": slope}, arrays


def draw_sum(draw: Draw) -> tuple[dict[str, Any], list[np.ndarray]]:
    shape = draw.pick((64, 6, 28, 28), (33, 16, 10, 10), (1, 120, 1, 1), (3, 1, 5, 7), (2, 3, 4, 5), (2, 2, 3, 2, 2))
    axis = draw.pick((0, 2, 3), (0, 2, 3), None, (1,), (0, 1, 2), -1)
    return {"axis": axis, "keepdims": draw.pick(False, False, True)}, [draw.array(*shape)]


def draw_broadcast_to(draw: Draw) -> tuple[dict[str, Any], list[np.ndarray]]:
    x, shape = draw.pick(((1,), (33,)), ((1, 1), (2, 5, 3)), ((3, 1), (3, 4)), ((1,), (0, 2)), ((1,), (5000,)))
    return {"shape": shape}, [draw.array(*x)]


def draw_where(draw: Draw) -> tuple[dict[str, Any], list[Any]]:
    shape = draw.pick((64, 6, 28, 28), (3, 16, 10, 10), (1, 84), (7,), (2, 0))
    x = draw.array(*shape)
    if x.size and draw.pick(True, False):
        x.flat[0] = draw.pick(np.nan, np.inf, -0.0)
    condition = draw.array(*shape) > 0
    zero = draw.pick(0.0, 0.0, 1.0, x[:1] * 2)
    return {}, [condition, *draw.pick([x, zero], [zero, x])]


DRAWS: dict[str, Callable[[Draw], tuple[dict[str, Any], list[np.ndarray]]]] = {
    name.removeprefix("draw_"): function for name, function in globals().items() if name.startswith("draw_")
}


def run(op: Op, arrays: Sequence[np.ndarray]) -> Any:
    """What the op's kernel returns."""
    return backend._kernels["cpu", op.name](op, np, *arrays)


def agree(y: np.ndarray, op: Op, arrays: Sequence[np.ndarray]) -> None:
    """AssertionError if y is not what `forward` makes of the arrays, up to rounding relative to the terms' size."""
    expected = op.forward(np, *arrays)
    assert (y.shape, y.dtype) == (expected.shape, expected.dtype)
    if not y.size:
        return
    with np.errstate(all="ignore"):
        terms = np.abs(op.forward(np, *(np.abs(a) for a in arrays)))
    sizes = np.maximum(np.abs(expected), terms)
    scale = sizes[np.isfinite(sizes)].max(initial=0)
    tolerance = TOLERANCE.get(str(y.dtype), 0) * float(scale)  # else: exactly
    assert np.allclose(y, expected, rtol=0, atol=tolerance, equal_nan=y.dtype.kind == "f")


@pytest.fixture
def small_blocks() -> Iterator[None]:
    """Blocks so narrow that small shapes need many of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu, "_SMALL_PRODUCT", 2000)
        patch.setattr(cpu, "_CACHED", 300)
        patch.setattr(cpu, "_NARROWEST", 3)
        patch.setattr(cpu, "_FEW", 0)
        yield


@pytest.fixture(autouse=True)
def empty_scratch() -> None:
    """No buffers from other tests."""
    cpu._scratch.buffers.clear()


# The same numbers as forward


@pytest.mark.parametrize("name", KERNELS)
@given(data=st.data())
def test_kernel_equals_forward(name: str, data: st.DataObject) -> None:
    """On any shape, in any memory order, a kernel declines or gives forward's numbers; inputs stay as they are."""
    assert name in DRAWS, f"kernel {name} has no cases; write draw_{name} into tests/test_kernels.py"
    parameters, arrays = DRAWS[name](Draw(data))
    op = REGISTRY[name](**parameters)
    op.check(tuple(np.shape(a) for a in arrays))
    before = [np.copy(a) for a in arrays]
    y = run(op, arrays)
    if y is NotImplemented:
        return
    assert all(
        np.array_equal(a, b, equal_nan=np.asarray(b).dtype.kind == "f") for a, b in zip(arrays, before, strict=True)
    )
    agree(y, op, arrays)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("name", [name for name in KERNELS if name.startswith("conv")])
@given(data=st.data())
def test_convolution_cut_into_many_blocks(name: str, data: st.DataObject) -> None:
    """Where the cuts between column blocks, row blocks and parts fall makes no difference."""
    draw = Draw(data)
    parameters, arrays = DRAWS[name](draw)
    if max(a.size for a in arrays) < 20_000:
        y = run(REGISTRY[name](**parameters), arrays)
        if y is not NotImplemented:
            agree(y, REGISTRY[name](**parameters), arrays)


@given(data=st.data())
def test_weight_gradient_of_few_images(data: st.DataObject) -> None:
    """Up to `_FEW` multiplications, and not one more, a product for each kernel row, with the same numbers."""
    draw = Draw(data)
    parameters, x, (f, _, *kernel) = draw_convolution(draw)
    parameters |= {"stride": (1, 1), "kernel_size": tuple(kernel)}
    oh, ow = positions(parameters, x, kernel)
    arrays = [draw.array(*x), draw.array(x[0], f, oh, ow)]
    if max(a.size for a in arrays) > 20_000:
        return
    op = REGISTRY["conv2d_weight_grad"](**parameters)
    blocks, cut = cpu._column_blocks, Counter[str]()

    def counted(*arguments: Any) -> Any:
        cut["blocks"] += 1
        return blocks(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu, "_column_blocks", counted)
        for room, expected in ((0, 0), (1, 1)):
            patch.setattr(cpu, "_FEW", f * x[1] * kernel[1] * oh * ow * x[0] - room)
            agree(run(op, arrays), op, arrays)
            assert cut["blocks"] == (0 if oh == ow == 1 else expected)


def lenet5_calls(n: int, dtype: str = "float32") -> list[tuple[Op, list[np.ndarray]]]:
    """What kernels of convolution, pooling and tanh are given in a step of LeNet-5, today's and 1998's, on n images."""
    rng = np.random.default_rng(n)

    def images(*shape: int) -> np.ndarray:
        x = rng.uniform(-1, 1, (*shape[1:], shape[0])).astype(dtype)
        return x.transpose(3, 0, 1, 2)

    calls: list[tuple[Op, list[np.ndarray]]] = []
    for c, f, h in CONVOLUTIONS:
        x, weight, gy = images(n, c, h, h), images(f, c, 5, 5).copy(), images(n, f, h - 4, h - 4)
        calls += [
            (REGISTRY["conv2d"](), [x, weight, weight[:, 0, 0, 0]]),
            (REGISTRY["conv2d_weight_grad"](kernel_size=(5, 5)), [x, gy]),
            (REGISTRY["conv_transpose2d"](), [gy, weight]),
            (REGISTRY["tanh_grad"](), [gy, images(n, f, h - 4, h - 4)]),
            (REGISTRY["tanh_grad"](1.7159, 2 / 3), [gy, images(n, f, h - 4, h - 4)]),
            (REGISTRY["sum"](axis=(0, 2, 3), keepdims=False), [gy]),
        ]
    for c, h in POOLS:
        x, gy, pool = images(n, c, h, h), images(n, c, h // 2, h // 2), {"kernel_size": (2, 2), "stride": (2, 2)}
        calls += [
            (REGISTRY["avg_pool2d_grad"](**pool, padding=(0, 0), size=(h, h)), [gy]),
            (REGISTRY["max_pool2d_grad"](**pool, padding=(0, 0)), [x, gy]),
            (REGISTRY["subsample2d"]((2, 2)), [x, x[0, :, 0, 0].copy(), x[0, :, 1, 0].copy()]),
            (REGISTRY["subsample2d_weight_grad"]((2, 2)), [x, gy]),
            (REGISTRY["subsample2d_transpose"]((2, 2), (h, h)), [gy, x[0, :, 0, 0].copy()]),
        ]
    return calls


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("n", BATCHES)
def test_lenet5_shapes_are_accepted(n: int, dtype: str) -> None:
    """None of LeNet-5's convolutions and poolings falls back to the slow path, and all give forward's numbers."""
    for op, arrays in lenet5_calls(n, dtype):
        y = run(op, arrays)
        assert y is not NotImplemented, f"{op} declines {[a.shape for a in arrays]}"
        agree(y, op, arrays)


@pytest.mark.parametrize("network", ["avg", "max", "1998"])
@pytest.mark.parametrize("n", [1, 2, 33])
def test_lenet5_step_runs_on_kernels(n: int, network: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a real training step, with the memory orders that come up there, no kernel that should serve declines."""
    used: Counter[str] = Counter()
    declined: list[str] = []

    def spied(name: str, kernel: backend.Kernel) -> backend.Kernel:
        def spy(op: Op, xp: Any, *arrays: Any) -> Any:
            y = kernel(op, xp, *arrays)
            if y is not NotImplemented:
                used[name] += 1
            elif name not in ("matmul", "sum", "broadcast_to") or getattr(op, "axis", None) == (0, 2, 3):
                declined.append(f"{op} on {[a.shape for a in arrays]}")
            return y

        return spy

    kernels = {key: spied(key[1], kernel) for key, kernel in backend._kernels.items()}
    monkeypatch.setattr(backend, "_kernels", kernels)
    images = np.random.default_rng(0).uniform(-0.1, 1.175, (n, 1, 32, 32)).astype(np.float32)
    labels = np.arange(n) % 10
    # A step asks for the gradient of no image, of today's six biases or of those of 1998, and of no code.
    expected = {"conv2d": 3, "conv2d_weight_grad": 3, "conv_transpose2d": 2}
    if network == "1998":
        F.penalty_loss(LeNet5_1998(rng=0)(Tensor(images)), labels, j=1.0).backward()
        expected |= dict.fromkeys(("subsample2d", "subsample2d_transpose", "subsample2d_weight_grad"), 2)
        expected |= {"tanh_grad": 6, "sum": 5, "broadcast_to": 1}
    else:
        F.cross_entropy(LeNet5(pool=network, rng=0)(Tensor(images)), labels).backward()
        expected |= {f"{network}_pool2d_grad": 2, "tanh_grad": 4, "sum": 3, "broadcast_to": 1}
    assert declined == []
    assert {name: used[name] for name in expected} == expected
    full = 1 if network == "1998" else 2  # F6, and today's OUTPUT
    assert used["matmul"] == (full if n == 1 else 0)


# What a kernel does not cover

X, W = np.ones((2, 4, 6, 6)), np.ones((4, 4, 2, 2))
UNCOVERED: list[tuple[str, dict[str, Any], list[Any]]] = [
    *(("conv2d", parameters, [X, W]) for parameters in ({"dilation": (2, 1)}, {"dilation": (1, 2)})),
    ("conv2d", {"groups": 2}, [X, W[:, :2]]),
    ("conv2d", {}, [X[:0], W]),
    ("conv2d", {}, [X[:, :0], W[:, :0]]),
    ("conv2d", {}, [X, W[:0]]),
    ("conv2d", {}, [X.astype("float32"), W]),
    ("conv2d_weight_grad", {"kernel_size": (2, 2), "dilation": (2, 2)}, [X, X[:, :, :4, :4]]),
    ("conv2d_weight_grad", {"kernel_size": (2, 2), "groups": 2}, [X, X[:, :, :5, :5]]),
    ("conv2d_weight_grad", {"kernel_size": (2, 2)}, [X[:0], X[:0, :, :5, :5]]),
    ("conv2d_weight_grad", {"kernel_size": (2, 2)}, [X, X[:, :, :5, :5].astype("float32")]),
    ("conv_transpose2d", {"stride": (2, 1)}, [X, W]),
    ("conv_transpose2d", {"stride": (2, 2), "output_padding": (1, 0)}, [X, W]),
    ("conv_transpose2d", {"dilation": (1, 2)}, [X, W]),
    ("conv_transpose2d", {"groups": 2}, [X, W[:, :2]]),
    ("conv_transpose2d", {}, [X[:0], W]),
    ("avg_pool2d_grad", {"kernel_size": (2, 2), "stride": (1, 1), "padding": (0, 0), "size": (7, 7)}, [X]),
    ("avg_pool2d_grad", {"kernel_size": (2, 2), "stride": (2, 2), "padding": (0, 0), "size": (13, 12)}, [X]),
    ("avg_pool2d_grad", {"kernel_size": (2, 2), "stride": (2, 2), "padding": (1, 1), "size": (10, 10)}, [X]),
    ("max_pool2d_grad", {"kernel_size": (2, 2), "stride": (1, 1), "padding": (0, 0)}, [X, X[:, :, :5, :5]]),
    ("max_pool2d_grad", {"kernel_size": (2, 2), "stride": (2, 2), "padding": (1, 1)}, [X, X[:, :, :4, :4]]),
    ("max_pool2d_grad", {"kernel_size": (2, 2), "stride": (2, 2), "padding": (0, 0)}, [X[:0], X[:0, :, :3, :3]]),
    ("max_pool2d_grad", {"kernel_size": (2, 2), "stride": (2, 2), "padding": (0, 0)}, [X * np.nan, X[:, :, :3, :3]]),
    ("subsample2d", {"kernel_size": (2, 2)}, [X[:0], X[0, :, 0, 0]]),
    ("subsample2d", {"kernel_size": (2, 2)}, [X, X[0, :, 0, 0].astype("float32")]),
    ("subsample2d", {"kernel_size": (2, 2)}, [X, X[0, :, 0, 0], X[0, :, 0, 0].astype("float32")]),
    ("subsample2d_weight_grad", {"kernel_size": (2, 2)}, [X[:0], X[:0, :, :3, :3]]),
    ("subsample2d_weight_grad", {"kernel_size": (2, 2)}, [X, X[:, :, :3, :3].astype("float32")]),
    ("subsample2d_transpose", {"kernel_size": (2, 2), "size": (12, 13)}, [X, X[0, :, 0, 0]]),
    ("subsample2d_transpose", {"kernel_size": (2, 2), "size": (13, 12)}, [X, X[0, :, 0, 0]]),
    ("subsample2d_transpose", {"kernel_size": (2, 2), "size": (12, 12)}, [X[:0], X[0, :, 0, 0]]),
    ("subsample2d_transpose", {"kernel_size": (2, 2), "size": (12, 12)}, [X, X[0, :, 0, 0].astype("float32")]),
    ("matmul", {}, [X[0, 0], X[0, 0]]),
    ("matmul", {}, [X[..., :1], X[..., :1, :]]),
    ("tanh_grad", {}, [X, X[0]]),
    ("tanh_grad", {}, [X, X.astype("float32")]),
    ("sum", {"axis": (0, 2, 3), "keepdims": True}, [X]),
    ("sum", {"axis": (0, 1), "keepdims": False}, [X]),
    ("sum", {"axis": None, "keepdims": False}, [X]),
    ("sum", {"axis": (0, 2, 3), "keepdims": False}, [X]),  # not batch-last
]


@pytest.mark.parametrize(("name", "parameters", "arrays"), UNCOVERED, ids=[f"{c[0]}-{c[1]}" for c in UNCOVERED])
def test_uncovered_case_is_declined(name: str, parameters: dict[str, Any], arrays: list[Any]) -> None:
    op = REGISTRY[name](**parameters)
    op.check(tuple(a.shape for a in arrays))
    assert run(op, arrays) is NotImplemented
    assert op(*map(Tensor, arrays)).shape == op.forward(np, *arrays).shape


@pytest.mark.parametrize("dtype", ["float16", "int32", "int64"])
def test_other_dtypes_are_declined_or_right(dtype: str) -> None:
    """Integers and half precision give what forward gives; convolutions and poolings leave them to it."""
    for op, arrays in lenet5_calls(2):
        others = [np.round(4 * a).astype(dtype) for a in arrays]
        y = run(op, others)
        if op.name.startswith(("conv", "avg_pool2d", "max_pool2d", "subsample2d")):
            assert y is NotImplemented
        elif y is not NotImplemented:
            agree(y, op, others)


@pytest.mark.parametrize("name", ["conv2d", "conv_transpose2d", "subsample2d"])
@pytest.mark.parametrize("dtype", ["float64", "int64"])
def test_bias_of_a_wider_dtype_widens_the_output(name: str, dtype: str) -> None:
    """float32 images and weights with a float64 bias: the dtype does not depend on whether a kernel serves."""
    x, weight, bias = np.ones((2, 1, 4, 4), "float32"), np.ones((1, 1, 2, 2), "float32"), np.ones(1, dtype)
    op = REGISTRY[name]((2, 2)) if name == "subsample2d" else REGISTRY[name]()
    weight = weight[:, 0, 0, 0] if name == "subsample2d" else weight
    expected = op.forward(np, x, weight, bias)
    y = op(Tensor(x), Tensor(weight), Tensor(bias))
    assert y.dtype == expected.dtype == np.float64
    assert np.array_equal(y.numpy(), expected)


@pytest.mark.parametrize("shape", [(2, 3, 4, 5, 6), (1, 1, 1, 1, 1)])
def test_sum_over_the_first_axes_of_five(shape: tuple[int, ...]) -> None:
    """Axes (0, 2, 3) mean a bias gradient only where there are four."""
    x = np.arange(np.prod(shape), dtype=np.float64).reshape(shape)
    assert np.array_equal(Tensor(x).sum((0, 2, 3)).numpy(), x.sum((0, 2, 3)))


def test_nan_gradient_stays_in_its_window() -> None:
    """Max pooling's gradient is bits under a mask: a NaN or an infinity reaches the winner and nothing else."""
    op = REGISTRY["max_pool2d_grad"](kernel_size=(2, 2), stride=(2, 2), padding=(0, 0))
    x = np.arange(16.0).reshape(1, 1, 4, 4)
    gy = np.array([np.nan, np.inf, -np.inf, -0.0]).reshape(1, 1, 2, 2)
    gx = run(op, [x, gy])
    assert np.array_equal(gx, op.forward(np, x, gy), equal_nan=True)
    assert np.count_nonzero(gx[:, :, ::2]) == np.count_nonzero(gx[..., ::2]) == 0


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("n", [1, 2])
def test_subsampling_keeps_what_is_not_finite_in_its_window(n: int, value: float) -> None:
    """One infinite pixel or gradient spoils its own window, and no other one, also of a single image."""
    x, gy, weight = np.ones((n, 2, 5, 7)), np.ones((n, 2, 2, 3)), np.ones(2)
    x[0, 0, 2, 3] = gy[0, 0, 1, 1] = value
    rest = np.ones((n, 2, 4, 6))
    rest[0, 1, 3, 5] = value
    for op, arrays in (
        (REGISTRY["subsample2d"]((2, 2)), [x, weight]),
        (REGISTRY["subsample2d"]((2, 2)), [rest, weight]),
        (REGISTRY["subsample2d_transpose"]((2, 2), (4, 6)), [gy, weight]),
    ):
        y = op(*map(Tensor, arrays)).numpy()
        np.testing.assert_array_equal(y, op.forward(np, *arrays))


@pytest.mark.parametrize("n", [1, 2])
def test_pixels_in_no_window_do_not_matter(n: int) -> None:
    """Not even where they are not finite: nothing of them reaches the sums or the weight's gradient."""
    x = np.ones((n, 2, 5, 7))
    x[:, :, 4], x[..., 6] = np.inf, np.nan
    y = F.subsample2d(x, np.ones(2), np.zeros(2), 2)
    np.testing.assert_array_equal(y.numpy(), np.full((n, 2, 2, 3), 4.0))
    op = REGISTRY["subsample2d_weight_grad"]((2, 2))
    np.testing.assert_array_equal(op(Tensor(x), y).numpy(), np.full(2, 16.0 * n * 6))


# Buffers that are kept between calls


def alternating(dtype: str) -> list[tuple[Op, list[np.ndarray]]]:
    """Calls whose buffers could be mistaken for each other's: LeNet-5's, and transposed convolutions of equal sizes."""
    rng = np.random.default_rng(7)
    calls = lenet5_calls(3, dtype) + lenet5_calls(4, dtype)
    for shape, kernel in (  # x[N F H W] and C, KH, KW; each pair would share a buffer but for its layout
        ((2, 3, 6, 6), (2, 2, 3)),  # H + 2 (KH - 1) framed rows
        ((2, 3, 2, 6), (2, 4, 3)),
        ((2, 3, 4, 3), (2, 3, 3)),  # C KW rows of (W + KW) N numbers, and KW N more
        ((3, 3, 4, 2), (3, 3, 2)),
        ((4, 3, 4, 3), (2, 3, 3)),  # W N numbers in a row
        ((2, 3, 4, 6), (2, 3, 3)),
        ((1, 3, 4, 12), (2, 3, 1)),
    ):
        weight = rng.uniform(-1, 1, (3, *kernel)).astype(dtype)
        calls.append((REGISTRY["conv_transpose2d"](), [rng.uniform(-1, 1, shape).astype(dtype), weight]))
    return calls


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_results_outlive_later_calls(dtype: str) -> None:
    """A result is the caller's: no later call writes into it, and it shares no memory with a buffer or an input."""
    calls = alternating(dtype)
    kept = []
    for _ in range(2):
        for op, arrays in calls:
            y = run(op, arrays)
            kept.append((y, y.copy()))
            assert not any(np.shares_memory(y, buffer) for buffer in cpu._scratch.buffers.values())
            assert not any(np.may_share_memory(y, a) for a in arrays)
    for op, arrays in calls:
        run(op, [-a for a in arrays])
    assert all(np.array_equal(y, copy) for y, copy in kept)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("order", ["forwards", "backwards", "shuffled"])
def test_shapes_in_alternation(dtype: str, order: str) -> None:
    """What one call leaves in the buffers, NaN included, never reaches the next; nor does dropping the buffers."""
    calls = alternating(dtype)
    rng = np.random.default_rng(1)
    with np.errstate(all="ignore"):
        for op, arrays in calls:
            run(op, [np.full_like(a, np.nan) for a in arrays])
    for turn in range(3):
        indices = {"forwards": range(len(calls)), "backwards": reversed(range(len(calls)))}.get(
            order, rng.permutation(len(calls))
        )
        for i in indices:
            op, arrays = calls[i]
            agree(run(op, arrays), op, arrays)
            if turn == 1 and rng.random() < 0.3:
                cpu._scratch.buffers.clear()


def test_buffers_are_bounded() -> None:
    """Shapes that change all the time do not make the kept memory grow."""
    op = REGISTRY["conv_transpose2d"]()
    for n in range(1, 40):
        x, weight = np.full((n, 2, 3, 3), float(n)), np.ones((2, 1, 3, 3))
        agree(run(op, [x, weight]), op, [x, weight])
    assert len(cpu._scratch.buffers) <= 20


def test_threads_do_not_share_buffers() -> None:
    """Three threads that run the same kernels on different numbers at the same time get what each gets alone."""
    calls = [lenet5_calls(8), lenet5_calls(8), lenet5_calls(8)]
    for i, mine in enumerate(calls):
        for _, arrays in mine:
            for a in arrays:
                a *= i + 1
    alone = [[run(op, arrays) for op, arrays in mine] for mine in calls]
    start = threading.Barrier(3)
    failures: list[str] = []

    def work(i: int) -> None:
        start.wait()
        if cpu._scratch.buffers:
            failures.append("a thread began with buffers that were not its own")
        for _ in range(8):
            for (op, arrays), expected in zip(calls[i], alone[i], strict=True):
                if not np.allclose(run(op, arrays), expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max()):
                    failures.append(f"thread {i}: {op}")

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
