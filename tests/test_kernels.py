"""Every CPU kernel computes what its op's `forward` computes, on more shapes than the ops declare, and in any order.

`tests/test_ops.py` runs kernels on the small shapes of the registry. Here are LeNet-5's own shapes and those that are
cut into blocks; and what only kernels can get wrong: memory that is kept between calls, and declining silently.
"""

import math
import threading
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models import LeNet5, LeNet5_1998
from tests.drawing import Draw
from tinygrad_lenet import Op, Tensor, backend
from tinygrad_lenet import functional as F
from tinygrad_lenet.index import AT
from tinygrad_lenet.kernels import cpu, cpu_general
from tinygrad_lenet.op import REGISTRY

KERNELS = [name for name in sorted(REGISTRY) if backend.find_kernel("cpu", name)]
TOLERANCE = {"float64": 1e-12, "float32": 1e-5}
BATCHES = (1, 2, 3, 33, 64)
CONVOLUTIONS = ((1, 6, 32), (6, 16, 14), (16, 120, 5))  # LeNet-5's C1, C3 and C5: channels, maps, rows of the input
POOLS = ((6, 28), (16, 10))  # LeNet-5's S2 and S4: maps, rows of the input

more = settings(max_examples=2 * settings().max_examples)
Call = tuple[Op, list[Any]]


def run(op: Op, arrays: Sequence[Any]) -> Any:
    """What the op's kernel returns."""
    kernel = backend.find_kernel("cpu", op.name)
    assert kernel is not None
    return kernel(op, np, *arrays)


def agree(y: np.ndarray, op: Op, arrays: Sequence[Any]) -> None:
    """AssertionError if y is not what `forward` makes of the arrays, up to rounding relative to the terms' size."""
    with np.errstate(all="ignore"):
        expected = op.forward(np, *arrays)
        terms = op.forward(np, *(np.abs(a) if np.asarray(a).dtype.kind == "f" else a for a in arrays))
    assert (y.shape, y.dtype) == (expected.shape, expected.dtype)
    sizes = np.abs(np.stack([expected, terms]))
    scale = float(sizes[np.isfinite(sizes)].max(initial=0))
    tolerance = TOLERANCE.get(str(y.dtype), 0) * scale  # other dtypes: exactly
    np.testing.assert_allclose(y, expected, rtol=0, atol=tolerance, err_msg=f"{op} on {[np.shape(a) for a in arrays]}")


def serves(op: Op, arrays: Sequence[Any]) -> bool:
    """Whether the kernel does not decline; AssertionError if its numbers are not forward's, or an input is changed."""
    before = [np.copy(a) for a in arrays]
    y = run(op, arrays)
    for a, b in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(a, b)
    if y is not NotImplemented:
        agree(y, op, arrays)
    return y is not NotImplemented


# Cases: parameters and arrays, for each kernel


def positions(how: dict[str, Any], x: Sequence[int], kernel: Sequence[int]) -> tuple[int, int]:
    """OH and OW of windows on x[N C H W]."""
    oh, ow = ((x[2 + a] + 2 * how["padding"][a] - kernel[a]) // how["stride"][a] + 1 for a in (0, 1))
    return oh, ow


def convolution(draw: Draw) -> tuple[dict[str, Any], tuple[int, ...], tuple[int, ...]]:
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


def biases(draw: Draw, channels: int) -> list[np.ndarray]:
    return [draw.values(channels)] if draw.pick(True, False) else []


def draw_conv2d(draw: Draw) -> tuple[dict[str, Any], list[Any]]:
    how, x, weight = convolution(draw)
    return how, [draw.values(*x), draw.values(*weight), *biases(draw, weight[0])]


def draw_conv2d_weight_grad(draw: Draw) -> tuple[dict[str, Any], list[Any]]:
    how, x, (f, _, *kernel) = convolution(draw)
    arrays = [draw.values(*x), draw.values(x[0], f, *positions(how, x, kernel))]
    return how | {"kernel_size": tuple(kernel)}, arrays


def draw_conv_transpose2d(draw: Draw) -> tuple[dict[str, Any], list[Any]]:
    how, x, weight = convolution(draw)
    how["padding"] = tuple(min(p, (k - 1) // 2) for p, k in zip(how["padding"], weight[2:], strict=True))
    if draw.pick(True, True, False):  # the kernel is for these only
        how["stride"] = (1, 1)
    kernel = [min(k, x[2 + a] + 2 * how["padding"][a]) for a, k in enumerate(weight[2:])]
    small, w = (x[0], weight[0], *positions(how, x, kernel)), draw.values(*weight[:2], *kernel)
    if draw.pick(True, False):
        w.flat[draw.pick(0, -1)] = draw.pick(np.inf, np.nan)  # reaches the pixels under it, and no others
    return how, [draw.values(*small), w, *biases(draw, weight[1])]


def pooling(draw: Draw, *kinds: str) -> tuple[dict[str, Any], tuple[int, ...], tuple[int, ...]]:
    """Parameters and shapes of x and gy: LeNet-5's, windows side by side, some pixels left over, or any at all."""
    kind = draw.pick("LeNet-5", *kinds)
    n, (c, h) = draw.pick(*BATCHES), draw.pick(*POOLS)
    kernel, stride, padding, size = (2, 2), (2, 2), (0, 0), (h, h)
    if kind != "LeNet-5":
        c, kernel, outputs = draw.int(1, 4), draw.pair(1, 4), draw.pair(1, 5)
        stride, size = kernel, (outputs[0] * kernel[0], outputs[1] * kernel[1])
    if kind == "left over":
        size = (size[0] + draw.int(0, kernel[0] - 1), size[1] + draw.int(0, kernel[1] - 1))
    if kind == "any":
        stride, padding = draw.pair(1, 3), (draw.int(0, kernel[0] // 2), draw.int(0, kernel[1] // 2))
        size = (size[0] + draw.int(0, 2), size[1] + draw.int(0, 2))
    how = {"kernel_size": kernel, "stride": stride, "padding": padding}
    return how, (n, c, *size), (n, c, *positions(how, (n, c, *size), kernel))


def draw_avg_pool2d_grad(draw: Draw) -> tuple[dict[str, Any], list[Any]]:
    how, x, gy = pooling(draw, "tiles", "any")
    return how | {"size": x[2:]}, [draw.values(*gy)]


def draw_max_pool2d_grad(draw: Draw) -> tuple[dict[str, Any], list[Any]]:
    how, x, gy = pooling(draw, "tiles", "any")
    pixels = draw.values(*x)
    if draw.pick(True, False):  # ties, zeros of both signs, infinities, perhaps a NaN
        pixels = np.round(pixels).astype(draw.dtype)
        pixels[pixels == draw.pick(1, 3)] = np.inf
        pixels[pixels == -2] = -np.inf
        if draw.pick(False, True):
            pixels.flat[draw.rng.integers(pixels.size)] = np.nan
    return how, [pixels, draw.values(*gy)]


def draw_subsample2d(draw: Draw) -> tuple[dict[str, Any], list[Any]]:
    how, x, _ = pooling(draw, "tiles", "left over")
    return {"kernel_size": how["kernel_size"]}, [draw.values(*x), draw.values(x[1]), *biases(draw, x[1])]


def draw_subsample2d_weight_grad(draw: Draw) -> tuple[dict[str, Any], list[Any]]:
    how, x, gy = pooling(draw, "tiles", "left over")
    return {"kernel_size": how["kernel_size"]}, [draw.values(*x), draw.values(*gy)]


def draw_subsample2d_transpose(draw: Draw) -> tuple[dict[str, Any], list[Any]]:
    how, x, gy = pooling(draw, "tiles", "left over")
    return {"kernel_size": how["kernel_size"], "size": x[2:]}, [draw.values(*gy), draw.values(x[1])]


def draw_matmul(draw: Draw) -> tuple[dict[str, Any], list[Any]]:
    (m, n), k = draw.pair(1, 130), draw.pick(1, 1, 2, 33)
    return {}, [draw.values(m, k), draw.values(k, n)]


def draw_tanh_grad(draw: Draw) -> tuple[dict[str, Any], list[Any]]:
    shape = draw.pick((64, 6, 28, 28), (3, 16, 10, 10), (1, 84), (33, 120), (7,), ())
    amplitude, slope = draw.pick((1.0, 1.0), (1.7159, 2 / 3), (3.0, 3.0), (0.5, 2.0), (1.0, -0.5))
    return {"amplitude": amplitude, "slope": slope}, [draw.values(*shape), draw.values(*shape)]


def draw_chain(draw: Draw) -> tuple[dict[str, Any], list[Any]]:
    shape = draw.pick((64, 6, 28, 28), (3, 16, 10, 10), (1, 84), (7,), (), (2, 0))
    g, s = draw.values(*shape), draw.values(*draw.pick(shape, shape, shape[-1:]))
    if g.size and draw.pick(True, False):
        g.flat[0], s.flat[0] = 0, draw.pick(math.inf, math.nan, -math.inf)
        s.flat[-1] = draw.pick(math.inf, math.nan)
    return {}, [g, s]


def draw_sum(draw: Draw) -> tuple[dict[str, Any], list[Any]]:
    shape = draw.pick(
        (64, 6, 28, 28),
        (33, 16, 10, 10),
        (1, 120, 1, 1),
        (3, 1, 5, 7),
        (2, 3, 4, 5),
        (2, 2, 3, 2, 2),
        (5000, 3),
        (0, 3, 2, 2),
    )
    axis = draw.pick((0, 2, 3), (0, 2, 3), 0, None, (1,), (0, 1, 2), -1)
    axis = None if isinstance(axis, tuple) and max(axis) >= len(shape) else axis
    return {"axis": axis, "keepdims": draw.pick(False, False, True)}, [draw.values(*shape)]


def draw_mean(draw: Draw) -> tuple[dict[str, Any], list[Any]]:
    return draw_sum(draw)


def draw_add(draw: Draw) -> tuple[dict[str, Any], list[Any]]:
    shape = draw.pick((33, 120), (2, 6, 7), (2, 3, 4, 5), (8, 1), (0, 3))
    small = draw.pick(shape[-1:], (1, *shape[1:]), (*shape[:-1], 1), (1,) * len(shape), shape, ())
    return {}, [draw.values(*shape), draw.values(*small)][:: draw.pick(1, -1)]


def draw_subtract(draw: Draw) -> tuple[dict[str, Any], list[Any]]:
    return draw_add(draw)


def draw_multiply(draw: Draw) -> tuple[dict[str, Any], list[Any]]:
    if draw.pick(False, False, True):
        return {}, [2.0, np.broadcast_to(draw.values(), draw.pick((3, 4), (1,), ()))]
    return draw_add(draw)


def draw_var(draw: Draw) -> tuple[dict[str, Any], list[Any]]:
    return draw_sum(draw)


def draw_power(draw: Draw) -> tuple[dict[str, Any], list[Any]]:
    x = draw.values(*draw.pick((3, 16, 10, 10), (33, 120), (7,), (), (2, 0)))
    if x.size and draw.pick(True, False):
        x.flat[0] = draw.pick(math.inf, -math.inf, math.nan, -0.0)
    return {}, [x, draw.pick(2, 3, 2.0, 3.0, 4, 1.5)]


def draw_sigmoid(draw: Draw) -> tuple[dict[str, Any], list[Any]]:
    x = draw.pick(1, 1000) * draw.values(*draw.pick((3, 16, 10, 10), (33, 120), (7,), (), (2, 0)))
    if x.size and x.ndim and draw.pick(True, False):
        x.flat[0] = draw.pick(math.inf, -math.inf, math.nan)
    return {}, [x]


def draw_sigmoid_grad(draw: Draw) -> tuple[dict[str, Any], list[Any]]:
    return draw_chain(draw)


def draw_relu(draw: Draw) -> tuple[dict[str, Any], list[Any]]:
    x = draw.values(*draw.pick((33, 6, 10, 10), (1, 84), (500, 3), (7,), (), (2, 0)))
    if x.size and draw.pick(True, False):
        x.flat[0] = draw.pick(math.inf, -math.inf, math.nan)
    return {}, [x]


def draw_extreme_grad(draw: Draw) -> tuple[dict[str, Any], list[Any]]:
    shape = draw.pick((33, 6, 10, 10), (1, 84), (500, 3), (7,), (), (2, 0))
    gy, x, other = draw.values(*shape), draw.values_or_tied(*shape), draw.values_or_tied(*shape)
    for a in (gy, x, other):
        if a.size and draw.pick(True, False, False):
            a.flat[0] = draw.pick(math.inf, -math.inf, math.nan)
    return {"extreme": draw.pick("maximum", "minimum")}, [gy, x, draw.pick(other, other, 1.0)]


def draw_standardize(draw: Draw) -> tuple[dict[str, Any], list[Any]]:
    shape = draw.pick((3, 7, 10), (33, 6, 4, 4), (2, 3000), (5000, 2), (7,), (4, 1))
    return {"axis": draw.pick(-1, 0, None, (0, 2, 3)[: len(shape)] if len(shape) == 4 else 0), "eps": 1e-2}, [
        draw.values(*shape)
    ]


def draw_standardize_grad(draw: Draw) -> tuple[dict[str, Any], list[Any]]:
    how, (x,) = draw_standardize(draw)
    gy = np.empty_like(x)  # mostly as x lies in memory
    gy[...] = draw.values(*x.shape)
    return how, [draw.pick(gy, gy, draw.values(*x.shape)), x]


def draw_mse_loss(draw: Draw) -> tuple[dict[str, Any], list[Any]]:
    return draw_add(draw)


def draw_softmax(draw: Draw) -> tuple[dict[str, Any], list[Any]]:
    x = draw.pick(1, 1000) * draw.values(*draw.pick((2, 3, 5), (33, 1000), (3, 3000), (5,), (4, 1)))
    if draw.pick(True, False):
        x.flat[0] = -math.inf if x.shape[-1] > 1 else 0
    return {"axis": draw.pick(-1, -1, x.ndim - 1, 0)}, [x]


def draw_softmax_grad(draw: Draw) -> tuple[dict[str, Any], list[Any]]:
    how, (x,) = draw_softmax(draw)
    return how, [draw.values(*x.shape), np.abs(draw.values(*x.shape))]


def draw_log_softmax(draw: Draw) -> tuple[dict[str, Any], list[Any]]:
    return draw_softmax(draw)


def draw_soft_cross_entropy(draw: Draw) -> tuple[dict[str, Any], list[Any]]:
    n, k = draw.pick((1, 10), (64, 10), (33, 1000), (3, 3000), (4, 1), (0, 3))
    logits, target = draw.values(n, k), np.eye(k, dtype=draw.dtype)[draw.rng.integers(0, k, n)]
    if draw.pick(True, False):
        target = np.abs(draw.values(n, k))
    elif n and k > 1 and draw.pick(True, False):
        logits[0, 0], target[0, 0] = -math.inf, 0
    return {}, [draw.pick(1, 100) * logits, target]


def draw_soft_cross_entropy_grad(draw: Draw) -> tuple[dict[str, Any], list[Any]]:
    _, (logits, target) = draw_soft_cross_entropy(draw)
    return {}, [draw.values(len(logits)), logits, target]


def draw_cross_entropy(draw: Draw) -> tuple[dict[str, Any], list[Any]]:
    _, (logits, _) = draw_soft_cross_entropy(draw)
    return {}, [logits, draw.rng.integers(0, logits.shape[1], len(logits)).astype(draw.pick("int64", "int8"))]


def draw_cross_entropy_grad(draw: Draw) -> tuple[dict[str, Any], list[Any]]:
    _, (logits, labels) = draw_cross_entropy(draw)
    return {}, [draw.values(len(logits)), logits, labels]


def draw_add_at(draw: Draw) -> tuple[dict[str, Any], list[Any]]:
    v, d, n, dtype = draw.int(1, 9), draw.int(1, 5), draw.int(0, 40), draw.pick("int64", "int64", "int32")
    rows, columns = (draw.rng.integers(-size, size, n).astype(dtype) for size in (v, d))
    pattern, index, shape = draw.pick(
        ((AT,), [rows], (n, d)), ((AT, AT), [rows, columns], (n,)), ((AT, AT), [rows[:, None], columns], (n, n)),
        ((slice(None), AT), [columns], (v, n)), ((AT, slice(1, 3)), [rows], (n, len(range(d)[1:3]))),
    )  # fmt: skip
    return {"pattern": pattern, "shape": (v, d)}, [draw.values(*shape), *index]


def draw_add_to(draw: Draw) -> tuple[dict[str, Any], list[Any]]:
    how, (x, *index) = draw_add_at(draw)
    return {"pattern": how["pattern"]}, [draw.values(*how["shape"]), x, *index]


def draw_getitem(draw: Draw) -> tuple[dict[str, Any], list[Any]]:
    x = draw.values(draw.int(1, 9), *draw.pick((), (3,), (0,), (2, 4)))
    index = draw.rng.integers(-len(x), len(x), draw.pick((), (5,), (3, 2), (0,))).astype(draw.pick("int64", "int8"))
    return {"pattern": draw.pick((AT,), (AT, ...))}, [x, index]


def draw_one_hot(draw: Draw) -> tuple[dict[str, Any], list[Any]]:
    labels = draw.rng.integers(-2, 7, draw.int(0, 9)).astype(draw.pick("int64", "int8", "int32"))
    return {"classes": draw.int(1, 5), "dtype": draw.pick("float32", "float64", "bool")}, [labels]


def draw_bernoulli(draw: Draw) -> tuple[dict[str, Any], list[Any]]:
    shape = draw.pick((64, 84), (7,), (2, 5, 3), (), (2, 0))
    return {"p": draw.pick(0.0, 0.3, 0.999)}, [draw.values(*shape), np.array(draw.rng.integers(2**53))]


def draw_broadcast_to(draw: Draw) -> tuple[dict[str, Any], list[Any]]:
    x, shape = draw.pick(((1,), (33,)), ((1, 1), (2, 5, 3)), ((3, 1), (3, 4)), ((1,), (0, 2)), ((1,), (5000,)))
    return {"shape": shape}, [draw.values(*x)]


def draw_where(draw: Draw) -> tuple[dict[str, Any], list[Any]]:
    shape = draw.pick((64, 6, 28, 28), (3, 16, 10, 10), (1, 84), (7,), (2, 0))
    x = draw.values(*shape)
    if x.size and draw.pick(True, False):
        x.flat[0] = draw.pick(np.nan, np.inf, -0.0)
    other = draw.pick(0.0, 0.0, 1.0, x[:1] * 2, 2 * x, draw.values(*shape))
    return {}, [draw.values(*shape) > 0, *draw.pick([x, other], [other, x])]


DRAWS: dict[str, Callable[[Draw], tuple[dict[str, Any], list[Any]]]] = {
    name.removeprefix("draw_"): function for name, function in globals().items() if name.startswith("draw_")
}


@contextmanager
def limits_divided_by(divisor: int, avx512: bool) -> Iterator[None]:
    """The sizes from which on a kernel cuts its work or takes another way, made small enough for small arrays."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu, "_AVX512", avx512)
        patch.setattr(cpu, "_SMALL_PRODUCT", 1_000_000 if avx512 else 2**62)
        for module in (cpu, cpu_general):
            for name, value in list(vars(module).items()):
                if type(value) is int:
                    patch.setattr(module, name, max(1, value // divisor))
        yield


# The same numbers as forward


@pytest.mark.parametrize("name", KERNELS)
@more
@given(data=st.data())
def test_kernel_equals_forward(name: str, data: st.DataObject) -> None:
    """Any shape, memory order and cut into blocks: a kernel declines or gives forward's numbers; inputs stay."""
    assert name in DRAWS, f"kernel {name} has no cases; write draw_{name} into tests/test_kernels.py"
    draw = Draw(data, *TOLERANCE)
    parameters, arrays = DRAWS[name](draw)
    small = max(np.size(a) for a in arrays) < 20_000
    with limits_divided_by(draw.pick(1, 500, 50_000) if small else 1, draw.pick(True, False)):
        serves(REGISTRY[name](**parameters), arrays)


def lenet5_calls(n: int, dtype: str = "float32") -> list[Call]:
    """What kernels of convolution, pooling and tanh are given in a step of LeNet-5, today's and 1998's, on n images."""
    rng = np.random.default_rng(n)

    def images(*shape: int) -> np.ndarray:
        return rng.uniform(-1, 1, (*shape[1:], shape[0])).astype(dtype).transpose(3, 0, 1, 2)  # batch-last

    calls: list[Call] = []
    for c, f, h in CONVOLUTIONS:
        x, weight, gy = images(n, c, h, h), images(f, c, 5, 5).copy(), images(n, f, h - 4, h - 4)
        calls += [
            (REGISTRY["conv2d"](), [x, weight, weight[:, 0, 0, 0]]),
            (REGISTRY["conv2d_weight_grad"](kernel_size=(5, 5)), [x, gy]),
            (REGISTRY["conv_transpose2d"](), [gy, weight]),
            (REGISTRY["tanh_grad"](), [gy, images(n, f, h - 4, h - 4)]),
            (REGISTRY["tanh_grad"](amplitude=1.7159, slope=2 / 3), [gy, images(n, f, h - 4, h - 4)]),
            (REGISTRY["sum"](axis=(0, 2, 3), keepdims=False), [gy]),
        ]
    pool = {"kernel_size": (2, 2), "stride": (2, 2), "padding": (0, 0)}
    for c, h in POOLS:
        x, gy = images(n, c, h, h), images(n, c, h // 2, h // 2)
        weight, bias = x[0, :, 0, 0].copy(), x[0, :, 1, 0].copy()
        calls += [
            (REGISTRY["avg_pool2d_grad"](**pool, size=(h, h)), [gy]),
            (REGISTRY["max_pool2d_grad"](**pool), [x, gy]),
            (REGISTRY["subsample2d"](kernel_size=(2, 2)), [x, weight, bias]),
            (REGISTRY["subsample2d_weight_grad"](kernel_size=(2, 2)), [x, gy]),
            (REGISTRY["subsample2d_transpose"](kernel_size=(2, 2), size=(h, h)), [gy, weight]),
        ]
    return calls


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("n", BATCHES)
def test_lenet5_shapes_are_served(n: int, dtype: str) -> None:
    """None of LeNet-5's convolutions and poolings falls back to the slow path, and all give forward's numbers."""
    for op, arrays in lenet5_calls(n, dtype):
        assert serves(op, arrays), f"{op} declines {[a.shape for a in arrays]}"


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        ("avg", {"avg_pool2d_grad", "tanh_grad"}),
        ("max", {"max_pool2d_grad", "tanh_grad"}),
        ("1998", {"subsample2d", "subsample2d_transpose", "subsample2d_weight_grad", "tanh_grad"}),
    ],
)
@pytest.mark.parametrize("n", [1, 2, 33])
def test_lenet5_step_runs_on_kernels(n: int, network: str, expected: set[str]) -> None:
    """In a real training step, with the memory orders that come up there, no kernel that should serve declines."""
    expected = expected | {"conv2d", "conv2d_weight_grad", "conv_transpose2d"}
    served, declined = Counter[str](), Counter[str]()

    def spy_on(name: str, kernel: backend.Kernel) -> None:
        @backend.kernel("cpu", name)
        def spy(op: Op, xp: Any, *arrays: Any) -> Any:
            y = kernel(op, xp, *arrays)
            (declined if y is NotImplemented else served)[name] += 1
            return y

    kernels = {name: backend.find_kernel("cpu", name) for name in expected}
    images, labels = np.random.default_rng(0).uniform(-0.1, 1.175, (n, 1, 32, 32)).astype(np.float32), np.arange(n) % 10
    try:
        for name, kernel in kernels.items():
            assert kernel is not None
            spy_on(name, kernel)
        if network == "1998":
            F.penalty_loss(LeNet5_1998(rng=0)(Tensor(images)), labels, j=1.0).backward()
        else:
            F.cross_entropy(LeNet5(pool=network, rng=0)(Tensor(images)), labels).backward()
    finally:
        for name, kernel in kernels.items():
            assert kernel is not None
            backend.kernel("cpu", name)(kernel)
    assert not declined
    assert served.keys() == expected


# What a kernel does not cover: it declines, or computes it as forward does

X, W = np.random.default_rng(0).normal(size=(2, 4, 6, 6)), np.random.default_rng(1).normal(size=(4, 4, 2, 2))
X32, V, POOL = X.astype("float32"), X[0, :, 0, 0], {"kernel_size": (2, 2), "stride": (2, 2), "padding": (0, 0)}
UNUSUAL: list[tuple[str, dict[str, Any], list[Any]]] = [
    ("conv2d", {"dilation": (2, 1)}, [X, W]),
    ("conv2d", {"dilation": (1, 2)}, [X, W]),
    ("conv2d", {"groups": 2}, [X, W[:, :2]]),
    ("conv2d", {}, [X[:0], W]),
    ("conv2d", {}, [X[:, :0], W[:, :0]]),
    ("conv2d", {}, [X, W[:0]]),
    ("conv2d", {}, [X32, W]),
    ("conv2d_weight_grad", {"kernel_size": (2, 2), "dilation": (2, 2)}, [X, X[:, :, :4, :4]]),
    ("conv2d_weight_grad", {"kernel_size": (2, 2), "groups": 2}, [X, X[:, :, :5, :5]]),
    ("conv2d_weight_grad", {"kernel_size": (2, 2)}, [X[:0], X[:0, :, :5, :5]]),
    ("conv2d_weight_grad", {"kernel_size": (2, 2)}, [X, X32[:, :, :5, :5]]),
    ("conv_transpose2d", {"stride": (2, 1)}, [X, W]),
    ("conv_transpose2d", {"stride": (2, 2), "output_padding": (1, 0)}, [X, W]),
    ("conv_transpose2d", {"dilation": (1, 2)}, [X, W]),
    ("conv_transpose2d", {"groups": 2}, [X, W[:, :2]]),
    ("conv_transpose2d", {}, [X[:0], W]),
    ("avg_pool2d_grad", POOL | {"stride": (1, 1), "size": (7, 7)}, [X]),
    ("avg_pool2d_grad", POOL | {"size": (13, 12)}, [X]),
    ("avg_pool2d_grad", POOL | {"padding": (1, 1), "size": (10, 10)}, [X]),
    ("max_pool2d_grad", POOL | {"stride": (1, 1)}, [X, X[:, :, :5, :5]]),
    ("max_pool2d_grad", POOL | {"padding": (1, 1)}, [X, X[:, :, :4, :4]]),
    ("max_pool2d_grad", POOL, [X[:0], X[:0, :, :3, :3]]),
    ("max_pool2d_grad", POOL, [X * np.nan, X[:, :, :3, :3]]),
    ("subsample2d", {"kernel_size": (2, 2)}, [X[:0], V]),
    ("subsample2d", {"kernel_size": (2, 2)}, [X, V.astype("float32")]),
    ("subsample2d", {"kernel_size": (2, 2)}, [X32, V.astype("float32"), V]),
    ("subsample2d_weight_grad", {"kernel_size": (2, 2)}, [X[:0], X[:0, :, :3, :3]]),
    ("subsample2d_weight_grad", {"kernel_size": (2, 2)}, [X, X32[:, :, :3, :3]]),
    ("subsample2d_transpose", {"kernel_size": (2, 2), "size": (12, 13)}, [X, V]),
    ("subsample2d_transpose", {"kernel_size": (2, 2), "size": (13, 12)}, [X, V]),
    ("subsample2d_transpose", {"kernel_size": (2, 2), "size": (12, 12)}, [X[:0], V]),
    ("subsample2d_transpose", {"kernel_size": (2, 2), "size": (12, 12)}, [X, V.astype("float32")]),
    ("matmul", {}, [X[0, 0], X[0, 0]]),
    ("matmul", {}, [X[..., :1], X[..., :1, :]]),
    ("tanh_grad", {}, [X, X[0]]),
    ("tanh_grad", {}, [X, X32]),
    ("sum", {"axis": (0, 2, 3), "keepdims": True}, [X]),
    ("sum", {"axis": (0, 2, 3), "keepdims": False}, [X]),  # not batch-last
    ("sum", {"axis": (0, 2, 3), "keepdims": False}, [np.ones((1, 1, 1, 1, 1))]),  # five axes, of a size that fits four
]


@pytest.mark.parametrize(("name", "parameters", "arrays"), UNUSUAL, ids=[f"{c[0]}-{c[1]}" for c in UNUSUAL])
def test_unusual_cases_are_declined_or_right(name: str, parameters: dict[str, Any], arrays: list[Any]) -> None:
    serves(REGISTRY[name](**parameters), arrays)


@pytest.mark.parametrize("dtype", ["float16", "int32", "int64"])
def test_other_dtypes_are_declined_or_right(dtype: str) -> None:
    for op, arrays in lenet5_calls(2):
        others = [np.round(4 * a).astype(dtype) for a in arrays]
        if op.name.startswith(("conv", "avg_pool2d", "max_pool2d", "subsample2d")):
            assert run(op, others) is NotImplemented
        else:
            serves(op, others)


# What is not finite stays where it belongs


def test_nan_gradient_stays_in_its_window() -> None:
    """Of max pooling's gradient, a NaN or an infinity reaches the winner and nothing else."""
    x, gy = np.arange(16.0).reshape(1, 1, 4, 4), np.array([np.nan, np.inf, -np.inf, -0.0]).reshape(1, 1, 2, 2)
    gx = REGISTRY["max_pool2d_grad"](**POOL)(Tensor(x), Tensor(gy)).numpy()
    np.testing.assert_array_equal(gx[:, :, 1::2, 1::2], gy)
    assert np.count_nonzero(gx[:, :, ::2]) == np.count_nonzero(gx[..., ::2]) == 0


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("n", [1, 2])
def test_subsampling_keeps_what_is_not_finite_in_its_window(n: int, value: float) -> None:
    """One pixel or gradient spoils its own window and no other; one in no window spoils nothing, gradients included."""
    x, gy, weight = np.ones((n, 2, 5, 7)), np.ones((n, 2, 2, 3)), np.ones(2)
    x[:, :, 4] = x[..., 6] = value  # left over
    y = F.subsample2d(x, weight, np.zeros(2), 2)
    np.testing.assert_array_equal(y.numpy(), np.full((n, 2, 2, 3), 4.0))
    gw = REGISTRY["subsample2d_weight_grad"](kernel_size=(2, 2))(Tensor(x), y)
    np.testing.assert_array_equal(gw.numpy(), np.full(2, 16.0 * n * 6))

    x[0, 0, 2, 3] = gy[0, 0, 1, 1] = value
    y = F.subsample2d(x, weight, np.zeros(2), 2)
    gx = REGISTRY["subsample2d_transpose"](kernel_size=(2, 2), size=(4, 6))(Tensor(gy), Tensor(weight))
    spoilt_y, spoilt_gx = np.full((n, 2, 2, 3), 4.0), np.ones((n, 2, 4, 6))
    spoilt_y[0, 0, 1, 1], spoilt_gx[0, 0, 2:, 2:4] = value, value
    np.testing.assert_array_equal(y.numpy(), spoilt_y)
    np.testing.assert_array_equal(gx.numpy(), spoilt_gx)


# Memory that is kept between calls


def alternating(dtype: str) -> list[Call]:
    """Calls whose buffers could be mistaken for each other's: LeNet-5's, and transposed convolutions of equal sizes."""
    rng = np.random.default_rng(7)
    calls = lenet5_calls(3, dtype) + lenet5_calls(4, dtype)
    for shape, kernel in (  # x[N F H W] and C, KH, KW; each pair has as many numbers in another layout
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
@pytest.mark.parametrize("order", ["forwards", "backwards", "shuffled"])
def test_calls_do_not_disturb_each_other(dtype: str, order: str) -> None:
    """What a call leaves behind, NaN included, never reaches the next; its result is the caller's, and stays."""
    calls, rng = alternating(dtype), np.random.default_rng(1)
    with np.errstate(all="ignore"):
        for op, arrays in calls:
            run(op, [np.full_like(a, np.nan) for a in arrays])
    kept = []
    for _ in range(3):
        indices = {"forwards": np.arange(len(calls)), "backwards": np.arange(len(calls))[::-1]}
        for i in indices.get(order, rng.permutation(len(calls))):
            op, arrays = calls[i]
            y = run(op, arrays)
            agree(y, op, arrays)
            assert not any(np.may_share_memory(y, a) for a in arrays)
            kept.append((y, y.copy()))
    assert all(np.array_equal(y, copy) for y, copy in kept)


def test_kept_memory_is_bounded() -> None:
    """Shapes that change all the time do not make it grow: 200 of them would hold hundreds of megabytes."""
    op, weight = REGISTRY["conv_transpose2d"](), np.ones((8, 1, 3, 3))
    tracemalloc.start()
    try:
        for n in range(1, 401, 2):
            run(op, [np.ones((n, 8, 8, 8)), weight])
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 64e6


def test_threads_do_not_share_memory() -> None:
    """Three threads that run the same kernels on different numbers at the same time get what each gets alone."""
    calls = [lenet5_calls(8), lenet5_calls(8), lenet5_calls(8)]
    for i, mine in enumerate(calls):
        for _, arrays in mine:
            for a in arrays:
                a *= i + 1
    alone = [[run(op, arrays) for op, arrays in mine] for mine in calls]
    start, failures = threading.Barrier(3), []

    def work(i: int) -> None:
        start.wait()
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


def test_scratch_memory_is_bounded() -> None:
    scratch = cpu._Scratch()
    scratch.give(np.zeros(cpu._KEPT + 1, np.uint8), "too large")
    inner, outer = (scratch.take("nested", (8,), np.float32) for _ in range(2))
    for buffer in (inner, outer):
        scratch.give(buffer, "nested")
    assert scratch.bytes == inner.nbytes
    for i in range(20):
        scratch.give(np.zeros(cpu._KEPT // 8 + i, np.uint8), "shapes that change")
        assert scratch.bytes == sum(buffer.nbytes for buffer in scratch.free.values()) <= cpu._KEPT
