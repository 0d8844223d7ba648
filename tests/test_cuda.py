"""The kernels for CUDA without a GPU: g++ compiles them for the CPU, and NVIDIA's compiler for every GPU.

Where there is a GPU, `tests/test_ops.py` runs them on it.
"""

import ctypes
import functools
import importlib.util
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models import LeNet5, LeNet5_1998
from tests import gpu_report
from tests.cuda_on_host import kernels_on_host, needs_compiler
from tests.strict import StrictArray, no_host_reads, on_device, strict_xp
from tinygrad_lenet import Op, Tensor, backend, optim, testing
from tinygrad_lenet import functional as F
from tinygrad_lenet.kernels import cuda
from tinygrad_lenet.op import REGISTRY

NAMES = sorted(name for device, name in backend._kernels if device == "cuda")
OPS = [name for name in NAMES if name in REGISTRY]
SOURCES = sorted((Path(cuda.__file__).parent / "cuda").glob("*.cu"))
TOLERANCE = {"float64": 1e-12, "float32": 1e-5}
LAYOUTS = ("contiguous", "gapped", "reversed", "transposed", "batch-last")


def run(op: Op, arrays: list[np.ndarray], layouts: list[str] | None = None, backwards: bool = False) -> Any:
    """What the kernel makes of the arrays, on the host; NotImplemented if it declines."""
    kernel = backend.find_kernel("cuda", op.name)
    assert kernel is not None
    layouts = layouts or ["contiguous"] * len(arrays)
    there = [testing._on_device(a, "strict:1", layout) for a, layout in zip(arrays, layouts, strict=True)]
    before = [x._host.copy() for x in there]
    with kernels_on_host(backwards), on_device(1), no_host_reads():
        y = kernel(op, strict_xp, *there)
    for x, old in zip(there, before, strict=True):
        np.testing.assert_array_equal(x._host, old)
    return y._host if isinstance(y, StrictArray) else y


def serves(op: Op, arrays: list[np.ndarray], layouts: list[str] | None = None) -> bool:
    """Whether the kernel does not decline; AssertionError if its numbers are not forward's, up to rounding."""
    y = run(op, arrays, layouts)
    if y is NotImplemented:
        return False
    with np.errstate(all="ignore"):
        expected = op.forward(np, *arrays)
        terms = op.forward(np, *(np.abs(a) for a in arrays))
    assert (y.shape, y.dtype) == (expected.shape, expected.dtype)
    sizes = np.abs(np.stack([expected, terms]))
    scale = float(sizes[np.isfinite(sizes)].max(initial=0))
    tolerance = TOLERANCE.get(str(y.dtype), 0) * scale
    described = f"{op} on {[a.shape for a in arrays]}, {layouts}"
    np.testing.assert_allclose(y, expected, rtol=0, atol=tolerance, err_msg=described)
    np.testing.assert_array_equal(run(op, arrays, layouts, backwards=True), y, err_msg=described)  # no races
    return True


@needs_compiler
@pytest.mark.parametrize("name", OPS)
@given(data=st.data())
def test_kernel_equals_forward(name: str, data: st.DataObject) -> None:
    """On the cases that the op declares, in any memory order, a kernel declines or gives forward's numbers."""
    op, arrays = data.draw(testing.cases(REGISTRY[name]))
    dtype = data.draw(st.sampled_from(sorted(TOLERANCE)))
    layouts = [data.draw(st.sampled_from(LAYOUTS)) for _ in arrays]
    serves(op, [a.astype(dtype) if a.dtype.kind == "f" else a for a in arrays], layouts)


# LeNet-5


def calls(n: int, dtype: str = "float32") -> list[tuple[Op, list[np.ndarray]]]:
    """What the kernels are given in a step of LeNet-5 on n images."""
    rng = np.random.default_rng(n)

    def values(*shape: int) -> np.ndarray:
        return rng.uniform(-1, 1, shape).astype(dtype)

    found: list[tuple[Op, list[np.ndarray]]] = []
    for c, f, h in ((1, 6, 32), (6, 16, 14), (16, 120, 5)):
        x, weight, gy = values(n, c, h, h), values(f, c, 5, 5), values(n, f, h - 4, h - 4)
        found += [
            (REGISTRY["conv2d"](), [x, weight, values(f)]),
            (REGISTRY["conv2d_weight_grad"](kernel_size=(5, 5)), [x, gy]),
            (REGISTRY["conv_transpose2d"](), [gy, weight]),
            (REGISTRY["tanh_grad"](), [gy, gy]),
            (REGISTRY["sum"](axis=(0, 2, 3), keepdims=False), [gy]),
        ]
    pool = {"kernel_size": (2, 2), "stride": (2, 2), "padding": (0, 0)}
    for c, h in ((6, 28), (16, 10)):
        x, gy = values(n, c, h, h), values(n, c, h // 2, h // 2)
        found += [
            (REGISTRY["avg_pool2d"](2), [x]),
            (REGISTRY["avg_pool2d_grad"](**pool, size=(h, h)), [gy]),
            (REGISTRY["max_pool2d"](2), [x]),
            (REGISTRY["max_pool2d_grad"](**pool), [x, gy]),
        ]
    for c, h in ((6, 28), (16, 10)):
        x, gy, weight = values(n, c, h, h), values(n, c, h // 2, h // 2), values(c)
        found += [
            (REGISTRY["subsample2d"](2), [x, weight, weight]),
            (REGISTRY["subsample2d_weight_grad"](2), [x, gy]),
            (REGISTRY["subsample2d_transpose"](2, (h, h)), [gy, weight]),
            (REGISTRY["scaled_tanh"](1.7159, 2 / 3), [x]),
        ]
    for i, o in ((120, 84), (84, 10)):
        x, weight, gy = values(n, i), values(o, i), values(n, o)
        found += [
            (REGISTRY["linear"](), [x, weight, values(o)]),
            (REGISTRY["matmul"](), [gy, weight]),
            (REGISTRY["matmul"](), [gy.T.copy(), x]),
            (REGISTRY["sum"](axis=0, keepdims=False), [gy]),
        ]
    labels = np.arange(n) % 10
    target = np.eye(10, dtype=dtype)[labels]
    return [
        *found,
        (REGISTRY["one_hot"](10, dtype), [labels]),
        (REGISTRY["mean"](axis=None, keepdims=False), [values(n)]),
        (REGISTRY["cross_entropy"](), [10 * values(n, 10), labels]),
        (REGISTRY["cross_entropy_grad"](), [values(n), 10 * values(n, 10), labels.astype("int8")]),
        (REGISTRY["soft_cross_entropy"](), [10 * values(n, 10), target]),
        (REGISTRY["soft_cross_entropy_grad"](), [values(n), 10 * values(n, 10), target]),
    ]


@needs_compiler
@pytest.mark.parametrize("n", [1, 9])
def test_lenet5_shapes_are_served(n: int) -> None:
    """None of them is left to slower ways."""
    for op, arrays in calls(n):
        assert serves(op, arrays), f"{op} declines {[a.shape for a in arrays]}"


@needs_compiler
@pytest.mark.parametrize(("busy", "k"), [(1, 70), (10_000, 600)])
def test_tiles_of_every_size(busy: int, k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large ones where a GPU is soon busy; small ones and sums in parts where it is not."""
    monkeypatch.setattr(cuda, "_BUSY", busy)
    rng = np.random.default_rng(0)
    for m, n in ((1, 1), (9, 33), (40, 150)):
        assert serves(REGISTRY["matmul"](), [rng.uniform(-1, 1, (m, k)), rng.uniform(-1, 1, (k, n))])
        assert serves(REGISTRY["linear"](), [rng.uniform(-1, 1, (m, k)), rng.uniform(-1, 1, (n, k)), np.arange(n) / n])
    x, gy = rng.uniform(-1, 1, (3, 2, 30, 30)), rng.uniform(-1, 1, (3, 5, 30, 30))
    assert serves(REGISTRY["conv2d_weight_grad"]((3, 3), padding=(1, 1)), [x, gy])
    assert serves(REGISTRY["sum"]((0, 2, 3), False), [rng.uniform(-1, 1, (3, 4, 40, 41))])
    assert serves(REGISTRY["mean"](None, False), [rng.uniform(-1, 1, 9000)])


@needs_compiler
def test_a_step_of_lenet5(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients are the CPU's, no value is read, and nothing is left to cuBLAS, which no CUDA graph can capture."""
    served = Counter[str]()
    launch = cuda._launch

    def counted(xp: Any, where: str, *arguments: Any, **words: Any) -> None:
        served[where] += 1
        launch(xp, where, *arguments, **words)

    def refused(*_: Any, **__: Any) -> None:
        raise AssertionError("a product is left to cuBLAS")

    monkeypatch.setattr(cuda, "_launch", counted)
    images = np.random.default_rng(0).uniform(-1, 1, (9, 1, 32, 32)).astype(np.float32)
    losses: dict[str, Any] = {
        "avg": F.cross_entropy, "max": F.cross_entropy, "1998": functools.partial(F.penalty_loss, j=1.0)
    }  # fmt: skip
    for pool, loss in losses.items():
        there, here = (
            LeNet5_1998(rng=0) if pool == "1998" else LeNet5(pool=pool, dropout=0.5, rng=0) for _ in range(2)
        )
        there.to("strict")
        with kernels_on_host(), no_host_reads(), pytest.MonkeyPatch.context() as patch:
            patch.setattr(strict_xp, "matmul", refused)
            loss(there(Tensor(images, device="strict")), np.arange(9)).backward()
        loss(here(Tensor(images)), np.arange(9)).backward()
        for (name, p), q in zip(there.named_parameters(), here.parameters(), strict=True):
            assert p.grad is not None and q.grad is not None
            scale = np.abs(q.grad.numpy()).max()
            np.testing.assert_allclose(p.grad.numpy(), q.grad.numpy(), rtol=0, atol=1e-5 * scale, err_msg=name)
    files = {where.partition(".")[0] for where in served}
    assert files == {path.stem for path in SOURCES} - {"labels", "optim"}


@needs_compiler
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize("make", [
    lambda params: optim.Adam(params, lr=0.1),
    lambda params: optim.AdamW(params, lr=0.1, weight_decay=0.1),
    lambda params: optim.SGD(params, lr=0.1, momentum=0.9, weight_decay=0.1),
])  # fmt: skip
def test_a_step_over_all_parameters_at_once(make: Any, dtype: str) -> None:
    """As on the CPU: also for more arrays than one launch takes, gaps between those with a gradient, and empty ones."""
    rng = np.random.default_rng(0)
    shapes = [(3,), (2, 5), (0,), (1, 1), (), (7,), *[(2,)] * 70]
    values = [rng.uniform(-1, 1, shape).astype(dtype) for shape in shapes]
    gradients = [[None if i == 5 and k < 2 else rng.uniform(-1, 1, x.shape).astype(dtype) for i, x in enumerate(values)]
                 for k in range(4)]  # fmt: skip
    results = []
    for device in ("cpu", "strict:1"):
        params = [Tensor(x.copy(), requires_grad=True, device=device) for x in values]
        optimizer = make(params)
        with kernels_on_host():
            for given in gradients:
                for p, g in zip(params, given, strict=True):
                    p.grad = None if g is None else Tensor(g, device=device)
                optimizer.step()
        results.append([p.numpy() for p in params])
    for x, y in zip(*results, strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol={"float64": 1e-14, "float32": 1e-6, "float16": 2e-3}[dtype])


@needs_compiler
def test_an_optimiser_takes_three_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    launched = []
    launch = cuda._launch
    monkeypatch.setattr(cuda, "_launch", lambda *a, **words: launched.append(a[1]) or launch(*a, **words))
    params = [Tensor(np.ones(n, np.float32), requires_grad=True, device="strict") for n in (2, 3, 5)]
    with kernels_on_host(), no_host_reads():
        for p in params:
            p.grad = Tensor(np.ones(p.shape, np.float32), device="strict")
        optim.Adam(params).step()
    assert launched == ["optim.gather", "optim.adam", "optim.subtract"]


# What is not finite, and what is declined


@needs_compiler
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_where_it_belongs(value: float) -> None:
    """As in forward: no product with 0 stands for what is not there."""
    x = np.random.default_rng(0).uniform(0.5, 1, (2, 3, 6, 6))
    x[0, 1, 2, 3] = value
    weight, gy = x[:, :, :3, :3].copy(), x[:, :2, :3, :3].copy()
    weight[0, 0, 0, 0] = gy[0, 0, 1, 1] = value
    pool = {"kernel_size": (2, 2), "stride": (2, 2), "padding": (1, 1)}
    cases: list[tuple[Op, list[np.ndarray]]] = [
        (REGISTRY["conv2d"](padding=(1, 1)), [x, weight]),
        (REGISTRY["conv_transpose2d"](stride=(2, 2)), [x[:, :2], weight]),
        (REGISTRY["conv2d_weight_grad"]((4, 4)), [x, gy]),
        (REGISTRY["max_pool2d"](**pool), [x]),
        (REGISTRY["max_pool2d_grad"](**pool), [x, x[:, :, :4, :4].copy()]),
        (REGISTRY["avg_pool2d_grad"](**pool, size=(6, 6)), [x[:, :, :4, :4].copy()]),
        (REGISTRY["tanh_grad"](), [np.array([0.0, 0.0, 1.0, value]), np.array([value, 0.5, value, 0.5])]),
        (REGISTRY["cross_entropy"](), [np.array([[1.0, value], [value, 1.0]]), np.array([0, 0])]),
        (
            REGISTRY["soft_cross_entropy"](),
            [np.array([[1.0, value], [value, 1.0]]), np.array([[1.0, 0.0], [0.5, 0.5]])],
        ),
    ]
    for op, arrays in cases:
        y = run(op, arrays)
        with np.errstate(all="ignore"):
            expected = op.forward(np, *arrays)
        np.testing.assert_allclose(y, expected, rtol=1e-12, err_msg=str(op))


@pytest.mark.parametrize(
    ("op", "shapes"),
    [
        (REGISTRY["conv2d"](groups=2), [(1, 2, 4, 4), (2, 1, 2, 2)]),
        (REGISTRY["conv2d"](), [(0, 2, 4, 4), (2, 2, 2, 2)]),
        (REGISTRY["conv2d"](), [(1, 256, 3, 3), (257, 256, 1, 1)]),
        (REGISTRY["conv_transpose2d"](groups=2), [(1, 2, 4, 4), (2, 1, 2, 2)]),
        (REGISTRY["conv2d_weight_grad"]((2, 2), groups=2), [(1, 2, 4, 4), (1, 2, 3, 3)]),
        (REGISTRY["matmul"](), [(2, 3, 4), (2, 4, 5)]),
        (REGISTRY["matmul"](), [(257, 257), (257, 257)]),
        (REGISTRY["matmul"](), [(2**19, 1), (1, 1)]),
        (REGISTRY["sum"](None, False), [(2, 2, 2, 2, 2)]),
        (REGISTRY["sum"](1, False), [(70_000, 9)]),
        (REGISTRY["sum"](1, False), [(2000, 7)]),
        (REGISTRY["tanh_grad"](), [(2, 3), (3,)]),
    ],
)
def test_what_a_kernel_declines(op: Op, shapes: list[tuple[int, ...]]) -> None:
    for dtype in ("float32", "float64"):
        assert run(op, [np.ones(shape, dtype) for shape in shapes]) is NotImplemented


def test_no_reversed_array_is_handed_to_cublas(monkeypatch: pytest.MonkeyPatch) -> None:
    """CuPy (14.2) cannot multiply several matrices if one has a negative stride."""
    multiply = strict_xp.matmul

    def strict(a: StrictArray, b: StrictArray) -> StrictArray:
        assert min(*a.strides, *b.strides) >= 0
        return multiply(a, b)

    monkeypatch.setattr(strict_xp, "matmul", strict)
    rng = np.random.default_rng(0)
    a, b, bias = rng.uniform(-1, 1, (2, 3, 4)), rng.uniform(-1, 1, (4, 5)), rng.uniform(-1, 1, 5)
    reversed_too = ["reversed", "reversed", "contiguous"]
    assert serves(REGISTRY["matmul"](), [a, b], reversed_too[:2])
    assert serves(REGISTRY["matmul"](), [a[:, :1, :1], b[:1, :1]], reversed_too[:2])
    assert serves(REGISTRY["linear"](), [a, b.T.copy(), bias], reversed_too)
    assert serves(REGISTRY["linear"](), [a, b.T.copy()], reversed_too[:2])


def test_other_dtypes_are_declined() -> None:
    for op, arrays in calls(2):
        if op.name != "one_hot":
            assert run(op, [a.astype("float16") for a in arrays]) is NotImplemented
            assert run(op, [a.astype("int64") for a in arrays]) is NotImplemented
            if len(arrays) > 1 and op.name != "cross_entropy":  # whose labels have another dtype anyway
                assert run(op, [arrays[0].astype("float64"), *arrays[1:]]) is NotImplemented


# For every GPU


def nvrtc() -> ctypes.CDLL:
    """NVIDIA's compiler from PyPI's package, which needs no driver."""
    spec = importlib.util.find_spec("nvidia.cuda_nvrtc") if importlib.util.find_spec("nvidia") else None
    folders = [] if spec is None else list(spec.submodule_search_locations or [])
    libraries = [path for folder in folders for path in sorted(Path(folder).glob("**/*nvrtc*.so*"))]
    compiler = [path for path in libraries if re.fullmatch(r"libnvrtc\.so\.\d+", path.name)]
    if not compiler:
        pytest.skip("needs NVRTC: pip install nvidia-cuda-nvrtc-cu12")
    for path in libraries:
        if "builtins" in path.name and "alt" not in path.name:
            ctypes.CDLL(str(path))  # it is looked for by name, and then found loaded
    return ctypes.CDLL(str(compiler[0]))


@pytest.mark.parametrize("arch", [70, 75, 80, 86, 89, 90, 100, 120])
@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_every_kernel_compiles_for_every_gpu(path: Path, arch: int) -> None:
    """Also with the tiles and dtypes that need most: what does not fit into shared memory is refused."""
    library = nvrtc()
    types = ["-DReal=double", "-DOUT=double", "-DLABEL=long long", "-DROWS=4", "-DCOLUMNS=4"]
    options = [f"-arch=sm_{arch}", "-std=c++17", *types]
    program = ctypes.c_void_p()
    source = path.read_bytes()
    assert library.nvrtcCreateProgram(ctypes.byref(program), source, path.name.encode(), 0, None, None) == 0
    flags = (ctypes.c_char_p * len(options))(*[option.encode() for option in options])
    status = library.nvrtcCompileProgram(program, len(options), flags)
    size = ctypes.c_size_t()
    library.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    library.nvrtcGetProgramLog(program, log)
    library.nvrtcDestroyProgram(ctypes.byref(program))
    said = [line for line in log.value.decode().splitlines() if "deprecated" not in line]  # the oldest GPUs are
    assert (status, said) == (0, [])


def test_the_report_needs_a_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def missing() -> None:
        raise backend.DeviceError("there is none")

    monkeypatch.setattr(backend, "_load_cupy", missing)
    monkeypatch.setattr(backend, "_by_name", {"cpu": backend.NUMPY})
    monkeypatch.setattr("sys.argv", ["gpu_report"])
    with pytest.raises(SystemExit) as ended:
        gpu_report.main()
    assert ended.value.code == 1
    assert capsys.readouterr().err == "gpu_report: there is none\n"
