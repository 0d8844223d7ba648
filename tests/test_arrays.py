"""NumPy's functions on tensors: NumPy's values, and derivatives to second order that central differences confirm."""

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import tinygrad_lenet as tg
from tests.refusals import refused
from tinygrad_lenet import ShapeError, Tensor, grad, jit, testing
from tinygrad_lenet import functional as F

X = np.random.default_rng(0).uniform(0.3, 2.0, (2, 3, 4))
INDICES = np.array([[[0, 3], [1, 1], [2, 0]], [[3, 3], [0, 1], [2, 2]]])

# name -> ours, NumPy's
SAME: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    name: (getattr(F, name), getattr(np, name))
    for name in ("exp", "log", "sqrt", "abs", "sin", "cos", "sum", "mean", "max", "min", "std", "prod", "transpose")
} | {
    "clip": (lambda x: F.clip(x, 0.5, 1.5), lambda x: np.clip(x, 0.5, 1.5)),
    "clip low": (lambda x: F.clip(x, 1), lambda x: np.clip(x, 1, None)),
    "clip high": (lambda x: F.clip(x, high=1), lambda x: np.clip(x, None, 1)),
    "cumsum": (lambda x: F.cumsum(x, 1), lambda x: np.cumsum(x, 1)),
    "cumsum last": (lambda x: F.cumsum(x, -1), lambda x: np.cumsum(x, -1)),
    "prod axis": (lambda x: F.prod(x, 1), lambda x: np.prod(x, 1)),
    "prod axes": (lambda x: F.prod(x, (0, 2), keepdims=True), lambda x: np.prod(x, (0, 2), keepdims=True)),
    "std ddof": (lambda x: F.std(x, 2, ddof=1), lambda x: np.std(x, 2, ddof=1)),
    "var ddof": (lambda x: F.var(x, (0, 1), True, ddof=2), lambda x: np.var(x, (0, 1), ddof=2, keepdims=True)),
    "norm": (lambda x: F.norm(x), lambda x: np.linalg.norm(x.ravel())),
    "norm axis": (lambda x: F.norm(x, 1, keepdims=True), lambda x: np.linalg.norm(x, axis=1, keepdims=True)),
    "flatten": (F.flatten, np.ravel),
    "reshape": (lambda x: F.reshape(x, (4, -1)), lambda x: np.reshape(x, (4, -1))),
    "transpose axes": (lambda x: F.transpose(x, (2, 0, 1)), lambda x: np.transpose(x, (2, 0, 1))),
    "swapaxes": (lambda x: F.swapaxes(x, 0, -1), lambda x: np.swapaxes(x, 0, -1)),
    "moveaxis": (lambda x: F.moveaxis(x, 0, -1), lambda x: np.moveaxis(x, 0, -1)),
    "moveaxis two": (lambda x: F.moveaxis(x, (0, 2), (1, 0)), lambda x: np.moveaxis(x, (0, 2), (1, 0))),
    "split": (lambda x: F.split(x, 2, -1)[1], lambda x: np.split(x, 2, -1)[1]),
    "split at": (lambda x: F.split(x, [1, 3], 2)[1], lambda x: np.split(x, [1, 3], 2)[1]),
    "unstack": (lambda x: F.unstack(x, 1)[2], lambda x: np.unstack(x, axis=1)[2]),
    "take": (lambda x: F.take_along_axis(x, INDICES, 2), lambda x: np.take_along_axis(x, INDICES, 2)),
    "view": (lambda x: x.view(6, 4), lambda x: x.reshape(6, 4)),
    "np.prod": (lambda x: np.prod(x, axis=1), lambda x: np.prod(x, axis=1)),
    "np.clip": (lambda x: np.clip(x, 0.5, 1.5), lambda x: np.clip(x, 0.5, 1.5)),
    "np.take": (lambda x: np.take_along_axis(x, INDICES, 2), lambda x: np.take_along_axis(x, INDICES, 2)),
}  # fmt: skip


@pytest.mark.parametrize("name", SAME)
def test_values_and_gradients(name: str) -> None:
    ours, numpys = SAME[name]
    y = ours(Tensor(X))
    assert (y.dtype, ours(Tensor(X.astype(np.float32))).dtype) == (np.float64, np.float32)
    np.testing.assert_allclose(y.numpy(), numpys(X), rtol=1e-12)
    testing.check_gradients(lambda x: ours(x) * 1.0, X)


@pytest.mark.parametrize("name", ["argmax", "argmin", "any", "all"])
@pytest.mark.parametrize("axis", [None, 0, -1])
@pytest.mark.parametrize("keepdims", [False, True])
def test_without_a_gradient(name: str, axis: int | None, keepdims: bool) -> None:
    x = np.random.default_rng(1).integers(0, 2, (2, 3, 4))
    for array in (x, x.astype(np.float32), x > 0, np.zeros((2, 3, 4)), np.ones((2, 3, 4))):
        y = getattr(F, name)(Tensor(array), axis, keepdims=keepdims)
        np.testing.assert_array_equal(y.numpy(), getattr(np, name)(array, axis, keepdims=keepdims))


def test_edges() -> None:
    empty = np.zeros((2, 0))
    for name in ("any", "all", "prod", "sum"):
        np.testing.assert_array_equal(getattr(F, name)(empty, 1).numpy(), getattr(np, name)(empty, 1))
    assert F.prod(Tensor(np.array([2**40, 2**10]))).item() == 2**50
    (g,) = grad(F.prod(x := Tensor([0.0, 2.0, 0.0], requires_grad=True)), [x])
    assert g.numpy().tolist() == [0, 0, 0]
    (g,) = grad(F.prod(x := Tensor([0.0, 2.0, 3.0], requires_grad=True)), [x])
    assert g.numpy().tolist() == [6, 0, 0]
    (g,) = grad(F.norm(x := Tensor([[0.0, 0.0], [3.0, 4.0]], requires_grad=True), 1).sum(), [x])
    np.testing.assert_allclose(g.numpy(), [[0, 0], [0.6, 0.8]], rtol=1e-6)
    (g,) = grad(F.clip(x := Tensor([-1.0, 0.0, 0.5, 1.0, 2.0], requires_grad=True), 0, 1).sum(), [x])
    assert g.numpy().tolist() == [0, 1, 1, 1, 0]
    assert np.isnan(F.clip([np.nan], 0, 1).numpy()).all()
    ones = np.ones(2**20, np.float32)
    assert F.cumsum(ones * np.float32(0.1), 0)[-1].item() == pytest.approx(0.1 * 2**20, rel=1e-6)


@pytest.mark.parametrize(
    ("act", "error"),
    [
        (lambda x: F.split(x, 3, 2), ShapeError), (lambda x: F.split(x, 2.5), TypeError),
        (lambda x: F.moveaxis(x, (0, 1), 0), ShapeError), (lambda x: F.moveaxis(x, 3, 0), ShapeError),
        (lambda x: F.swapaxes(x, 0, 3), ShapeError), (lambda x: F.take_along_axis(x, INDICES, 1), ShapeError),
        (lambda x: F.take_along_axis(x, INDICES + 9, 2), IndexError), (lambda x: F.clip(x, 2, 1), ValueError),
        (lambda x: F.clip(x, "a"), TypeError), (lambda x: F.var(x, 0, ddof=2), ShapeError),
        (lambda x: F.cumsum(x, 3), ShapeError), (lambda x: F.unstack(x, 3), ShapeError),
        (lambda x: F.argmax(x, 5, keepdims=True), ShapeError), (lambda x: tg.arange(0, 1, 0), ValueError),
    ],
)  # fmt: skip
def test_what_is_refused(act: Callable[[Tensor], Any], error: type[Exception]) -> None:
    with refused(error):
        act(Tensor(X))


def test_an_array_is_not_written_from_a_tensor() -> None:
    p = Tensor([1.0, 2.0], requires_grad=True)
    (p * p).sum().backward()
    with refused(TypeError, "no_grad()"):
        p.data -= 0.1 * p.grad  # type: ignore[operator]
    assert p.numpy().tolist() == [1, 2]
    p.data = p.data - 0.1 * p.grad  # a tensor, as every result with one
    with refused(TypeError, "multiply data array no_grad()"):
        (p * p).sum()


# New tensors

CREATED: dict[str, tuple[Callable[[], Tensor], Any, str]] = {
    "zeros": (lambda: tg.zeros(2, 3), np.zeros((2, 3)), "float32"),
    "ones": (lambda: tg.ones((2,), dtype="int64"), np.ones(2), "int64"),
    "no axes": (lambda: tg.zeros(()), np.zeros(()), "float32"),
    "full": (lambda: tg.full((2, 1), 7), np.full((2, 1), 7), "float32"),
    "arange": (lambda: tg.arange(2, 9, 3), np.arange(2, 9, 3), "int64"),
    "arange floats": (lambda: tg.arange(1, 0, -0.25), np.arange(1, 0, -0.25), "float32"),
    "linspace": (lambda: tg.linspace(-1, 1, 5), np.linspace(-1, 1, 5), "float32"),
    "eye": (lambda: tg.eye(3), np.eye(3), "float32"),
    "zeros_like": (lambda: tg.zeros_like(np.ones((2, 2), np.int32)), np.zeros((2, 2)), "int32"),
    "ones_like": (lambda: tg.ones_like([1.0, 2.0]), np.ones(2), "float32"),
    "full_like": (lambda: tg.full_like(Tensor(np.ones(2)), 3), np.full(2, 3), "float64"),
}


@pytest.mark.parametrize("name", CREATED)
def test_created(name: str) -> None:
    make, expected, dtype = CREATED[name]
    y = make()
    assert (y.shape, y.dtype) == (np.shape(expected), np.dtype(dtype))
    np.testing.assert_array_equal(y.numpy(), expected)
    y[...] = 1  # its own memory


def test_random_numbers() -> None:
    tg.manual_seed(5)
    first = [tg.rand(3), tg.randn(2, 2), tg.randint(0, 7, (5,)), tg.rand_like(np.zeros(2)), tg.randn_like([0.0])]
    tg.manual_seed(5)
    again = [tg.rand(3), tg.randn(2, 2), tg.randint(0, 7, (5,)), tg.rand_like(np.zeros(2)), tg.randn_like([0.0])]
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())
    assert not np.array_equal(tg.rand(3).numpy(), first[0].numpy())
    assert [x.dtype.name for x in first] == ["float32", "float32", "int64", "float64", "float32"]
    u, n, i = tg.rand(40_000, rng=1).numpy(), tg.randn(40_000, rng=1).numpy(), tg.randint(-2, 3, 40_000, rng=1).numpy()
    assert (u.min() >= 0, u.max() < 1, set(i.tolist())) == (True, True, {-2, -1, 0, 1, 2})
    assert abs(u.mean() - 0.5) < 0.01
    assert abs(n.mean()) < 0.02
    assert abs(n.std() - 1) < 0.02
    np.testing.assert_allclose(np.bincount(i + 2) / 40_000, 0.2, atol=0.01)
    assert tg.rand(2**16, dtype="float16", rng=0).numpy().max() < 1


def test_random_numbers_are_drawn_anew_in_every_replay() -> None:
    def noise(x: Tensor) -> Tensor:
        return x + tg.randn_like(x) * tg.rand(2)

    x = Tensor([0.0, 0.0])
    runs = []
    for wrap in (lambda function: function, jit):
        tg.manual_seed(3)
        step = wrap(noise)
        runs.append([step(x).numpy().tolist() for _ in range(6)])
    assert runs[0] == runs[1]
    assert len(set(map(tuple, runs[0]))) == 6


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.parametrize("seed", ["", "tg.manual_seed(3)"])
def test_forked_processes_draw_other_numbers(seed: str) -> None:
    """Than their parent and each other; with a seed, the same in every run."""
    code = f"""
import os
import tinygrad_lenet as tg
{seed}
for _ in range(2):
    child = os.fork()
    if not child:
        print(tg.rand(1).item(), flush=True)
        os._exit(0)
    os.waitpid(child, 0)
print(tg.rand(1).item())
"""
    runs = []
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        runs.append(done.stdout.split())
    assert [len(set(run)) for run in runs] == [3, 3]
    assert (runs[0] == runs[1]) == bool(seed)


@pytest.mark.parametrize("seed", [-1, 1.5, "a", None, True])
def test_what_is_no_seed(seed: Any) -> None:
    with refused((TypeError, ValueError), "manual_seed"):
        tg.manual_seed(seed)


@pytest.mark.parametrize(
    "act", [lambda: tg.zeros(-1), lambda: tg.rand(2.5), lambda: tg.randint(3, 3, (1,)), lambda: tg.rand(2, dtype=int)]
)
def test_what_cannot_be_created(act: Callable[[], Tensor]) -> None:
    with refused((TypeError, ValueError)):
        act()
