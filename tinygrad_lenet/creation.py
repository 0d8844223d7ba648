"""New tensors, by NumPy's and PyTorch's names: constants, sequences of numbers, random numbers.

Shapes are given as ``zeros(2, 3)`` or ``zeros((2, 3))``. Floats are float32 unless ``dtype`` says otherwise. ``device``
is where the tensor lies, by default where `tinygrad_lenet.backend.use` says. Errors are those of `Tensor`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .graph import op
from .ops.random import Random
from .shapes import Shape, integer, integers, number
from .tensor import Tensor, TensorLike, as_tensor

__all__ = [
    "arange",
    "eye",
    "full",
    "full_like",
    "linspace",
    "ones",
    "ones_like",
    "rand",
    "rand_like",
    "randint",
    "randn",
    "randn_like",
    "zeros",
    "zeros_like",
]

Sizes = int | Sequence[int]
Rng = np.random.Generator | int | None


def zeros(*shape: Sizes, dtype: Any = np.float32, device: str | None = None, requires_grad: bool = False) -> Tensor:
    """0 everywhere.

    >>> zeros(2)
    Tensor([0., 0.])
    """
    return Tensor(np.zeros(_shape("zeros", shape), dtype), requires_grad, device=device)


def ones(*shape: Sizes, dtype: Any = np.float32, device: str | None = None, requires_grad: bool = False) -> Tensor:
    """1 everywhere.

    >>> ones((1, 2))
    Tensor([[1., 1.]])
    """
    return Tensor(np.ones(_shape("ones", shape), dtype), requires_grad, device=device)


def full(
    shape: Sizes, value: float, dtype: Any = np.float32, device: str | None = None, requires_grad: bool = False
) -> Tensor:
    """``value`` everywhere.

    >>> full(2, 7)
    Tensor([7., 7.])
    """
    return Tensor(np.full(_shape("full", (shape,)), value, dtype), requires_grad, device=device)


def zeros_like(x: TensorLike) -> Tensor:
    """0, with the shape, dtype and device of x[...].

    >>> zeros_like([1.0, 2.0])
    Tensor([0., 0.])
    """
    return full_like(x, 0)


def ones_like(x: TensorLike) -> Tensor:
    """1, with the shape, dtype and device of x[...].

    >>> ones_like([1.0, 2.0])
    Tensor([1., 1.])
    """
    return full_like(x, 1)


def full_like(x: TensorLike, value: float) -> Tensor:
    """``value``, with the shape, dtype and device of x[...].

    >>> full_like([1.0, 2.0], 7)
    Tensor([7., 7.])
    """
    x = as_tensor(x)
    value = number("full_like", "value", value, "[-inf, inf]")
    if x.dtype.kind == "f":
        return op("full_like", value)(x)
    return op("full_like", value)(x.astype("float64")).astype(x.dtype)


def arange(
    start: float,
    stop: float | None = None,
    step: float = 1,
    dtype: Any = None,
    device: str | None = None,
    requires_grad: bool = False,
) -> Tensor:
    """start, start + step, ... below stop; with one argument, 0, 1, ... below it. int64 if all arguments are integers.

    ValueError if step is 0.

    >>> arange(3), arange(0, 1, 0.5)
    (Tensor([0, 1, 2], dtype=int64), Tensor([0. , 0.5]))
    """
    first, last = (0, start) if stop is None else (start, stop)
    if step == 0:
        raise ValueError("arange: step is 0; expected another number")
    whole = all(isinstance(each, (int, np.integer)) for each in (first, last, step))
    dtype = (np.int64 if whole else np.float32) if dtype is None else dtype
    return Tensor(np.arange(first, last, step).astype(dtype), requires_grad, device=device)


def linspace(
    start: float,
    stop: float,
    num: int = 50,
    dtype: Any = np.float32,
    device: str | None = None,
    requires_grad: bool = False,
) -> Tensor:
    """``num`` numbers from start to stop, both included, at equal distances.

    >>> linspace(0, 1, 3)
    Tensor([0. , 0.5, 1. ])
    """
    count = integer("linspace", "num", num, minimum=0)
    return Tensor(np.linspace(start, stop, count).astype(dtype), requires_grad, device=device)


def eye(n: int, dtype: Any = np.float32, device: str | None = None) -> Tensor:
    """The identity matrix, n x n.

    >>> eye(2)
    Tensor([[1., 0.],
            [0., 1.]])
    """
    return Tensor(np.eye(integer("eye", "n", n, minimum=0), dtype=dtype), device=device)


def rand(
    *shape: Sizes,
    rng: Rng = None,
    dtype: Any = np.float32,
    device: str | None = None,
    requires_grad: bool = False,
) -> Tensor:
    """Numbers drawn uniformly from [0, 1); ``rng`` is a generator or a seed, by default `manual_seed`'s generator.

    >>> rand(2, rng=0)
    Tensor([0.63696164, 0.26978666])
    """
    return _drawn("random", _like(_shape("rand", shape), dtype, device), rng, requires_grad)


def randn(
    *shape: Sizes,
    rng: Rng = None,
    dtype: Any = np.float32,
    device: str | None = None,
    requires_grad: bool = False,
) -> Tensor:
    """Numbers drawn from the normal distribution with mean 0 and variance 1; ``rng`` as in `rand`.

    >>> randn(2, rng=0)
    Tensor([ 0.12573022, -0.13210486])
    """
    return _drawn("standard_normal", _like(_shape("randn", shape), dtype, device), rng, requires_grad)


def rand_like(x: TensorLike, rng: Rng = None) -> Tensor:
    """`rand` with the shape, dtype and device of x[...], which holds floats.

    >>> rand_like([1.0, 2.0], rng=0)
    Tensor([0.63696164, 0.26978666])
    """
    return _drawn("random", as_tensor(x), rng)


def randn_like(x: TensorLike, rng: Rng = None) -> Tensor:
    """`randn` with the shape, dtype and device of x[...], which holds floats.

    >>> randn_like([1.0, 2.0], rng=0)
    Tensor([ 0.12573022, -0.13210486])
    """
    return _drawn("standard_normal", as_tensor(x), rng)


def randint(low: int, high: int, shape: Sizes, rng: Rng = None, device: str | None = None) -> Tensor:
    """Integers drawn uniformly from [low, high), int64; ``rng`` as in `rand`. ValueError unless low < high.

    >>> randint(0, 10, (3,), rng=0)
    Tensor([6, 2, 0], dtype=int64)
    """
    low = integer("randint", "low", low, minimum=-(2**52))
    high = integer("randint", "high", high, minimum=low + 1, limit=2**52)
    # A product with a number below 1 that has 53 bits is rounded to less than high - low.
    drawn = _drawn("random", _like(_shape("randint", (shape,)), np.float64, device), rng)
    return (drawn * float(high - low)).astype("int64") + low


def _drawn(distribution: str, like: Tensor, rng: Rng, requires_grad: bool = False) -> Tensor:
    y = Random(distribution, rng)(like)
    y.requires_grad = requires_grad
    return y


def _like(shape: Shape, dtype: Any, device: str | None) -> Tensor:
    """A tensor that takes no memory."""
    return Tensor(np.zeros((), dtype), device=device).broadcast_to(shape)


def _shape(caller: str, sizes: tuple[Any, ...]) -> Shape:
    given = sizes[0] if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)) else sizes
    return integers(caller, "shape", tuple(given), 0)
