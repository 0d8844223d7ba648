"""NumPy's functions on tensors: each is an op, a method, or a line over them. `functional` hands them on.

``axis`` is an integer, a tuple of integers, or None for all axes.
"""

from collections.abc import Sequence

import numpy as np

from .graph import op
from .ops.further import CumSum
from .ops.indexing import GetItem
from .ops.layout import Concatenate
from .shapes import ShapeError, integer, integers, normalize_axes, normalize_axis, number
from .tensor import Axis, Tensor, TensorLike, as_tensor, numpy_functions

__all__ = [
    "abs",
    "all",
    "any",
    "argmax",
    "argmin",
    "clip",
    "cos",
    "cumsum",
    "exp",
    "flatten",
    "log",
    "max",
    "mean",
    "min",
    "moveaxis",
    "norm",
    "prod",
    "reshape",
    "sin",
    "split",
    "sqrt",
    "std",
    "sum",
    "swapaxes",
    "take_along_axis",
    "transpose",
    "unstack",
    "var",
]


def exp(x: TensorLike) -> Tensor:
    """e to the power of each element.

    >>> exp(0.0).item()
    1.0
    """
    return op("exp")(x)


def log(x: TensorLike) -> Tensor:
    """The natural logarithm of each element.

    >>> log(1.0).item()
    0.0
    """
    return op("log")(x)


def sqrt(x: TensorLike) -> Tensor:
    """The square root of each element.

    >>> sqrt(9.0).item()
    3.0
    """
    return op("sqrt")(x)


def abs(x: TensorLike) -> Tensor:
    """The magnitude of each element; the gradient at 0 is 0.

    >>> abs([-1.0, 2.0])
    Tensor([1., 2.])
    """
    return op("absolute")(x)


def sin(x: TensorLike) -> Tensor:
    """The sine of each element, in radians.

    >>> sin(0.0).item()
    0.0
    """
    return op("sin")(x)


def cos(x: TensorLike) -> Tensor:
    """The cosine of each element, in radians.

    >>> cos(0.0).item()
    1.0
    """
    return op("cos")(x)


def clip(x: TensorLike, low: float | None = None, high: float | None = None) -> Tensor:
    """x where low <= x <= high, else the nearer of the two; the gradient is 1 there, limits included, and else 0.

    NaN stays NaN. TypeError for limits that are not numbers, ValueError if low > high.

    >>> clip([-2.0, 0.5, 2.0], 0, 1)
    Tensor([0. , 0.5, 1. ])
    """
    y = as_tensor(x)
    limits = [None if each is None else number("clip", "a limit", each, "[-inf, inf]") for each in (low, high)]
    if limits[0] is not None and limits[1] is not None and limits[0] > limits[1]:
        raise ValueError(f"clip: low is {low} and high {high}; expected low <= high")
    if low is not None:
        y = op("where")(y < low, low, y)
    return y if high is None else op("where")(y > high, high, y)


def sum(x: TensorLike, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """The sum along ``axis``; for integers and booleans it is an int64.

    >>> sum([1.0, 2.0]).item()
    3.0
    """
    return as_tensor(x).sum(axis, keepdims)


def mean(x: TensorLike, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """The mean along ``axis``.

    >>> mean([1.0, 2.0]).item()
    1.5
    """
    return as_tensor(x).mean(axis, keepdims)


def var(x: TensorLike, axis: Axis = None, keepdims: bool = False, ddof: int = 0) -> Tensor:
    """The sum of squared distances from the mean along ``axis``, divided by their number - ``ddof``.

    >>> var([1.0, 3.0]).item(), var([1.0, 3.0], ddof=1).item()
    (1.0, 2.0)
    """
    x, ddof = as_tensor(x), integer("var", "ddof", ddof, minimum=0)
    count = int(np.prod([x.shape[a] for a in normalize_axes("var", axis, x.ndim)]))
    if ddof and count <= ddof:
        raise ShapeError(f"var: ddof is {ddof} and x has shape {x.shape}; expected more than {ddof} elements")
    y = x.var(axis, keepdims)
    return y * (count / (count - ddof)) if ddof else y


def std(x: TensorLike, axis: Axis = None, keepdims: bool = False, ddof: int = 0) -> Tensor:
    """The square root of `var`; where that is 0, the gradient is 0, as in PyTorch.

    >>> std([1.0, 3.0]).item()
    1.0
    """
    return _root(var(x, axis, keepdims, ddof))


def norm(x: TensorLike, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """The square root of the sum of squares along ``axis``; where that is 0, the gradient is 0, as in PyTorch.

    >>> norm([3.0, 4.0]).item()
    5.0
    """
    x = as_tensor(x)
    return _root((x * x).sum(axis, keepdims))


def _root(x: Tensor) -> Tensor:
    """The square root, with a gradient of 0 where it is 0."""
    zero = x == 0
    return op("where")(zero, 0.0, op("where")(zero, 1.0, x).sqrt())


def prod(x: TensorLike, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """The product along ``axis``, of no elements 1; for integers and booleans it is an int64.

    Factors are multiplied in pairs, so the gradient is right where some of them are 0.

    >>> prod([2.0, 3.0, 4.0]).item()
    24.0
    """
    x = as_tensor(x)
    x = x if x.dtype.kind == "f" else x.astype("int64")
    gone = normalize_axes("prod", axis, x.ndim)
    for a in gone:
        if not x.shape[a]:
            shape = tuple(1 if i == a else size for i, size in enumerate(x.shape))
            x = x.sum(a, keepdims=True).reshape(shape) + 1
        before = (slice(None),) * a
        while (size := x.shape[a]) > 1:
            half = size // 2
            pairs = x[(*before, slice(half))] * x[(*before, slice(half, 2 * half))]
            x = Concatenate(a)(pairs, x[(*before, slice(2 * half, None))]) if size % 2 else pairs
    return x if keepdims else x.squeeze(gone)


def cumsum(x: TensorLike, axis: int) -> Tensor:
    """y_i = x_0 + ... + x_i along ``axis``; for integers and booleans it is an int64.

    >>> cumsum([1.0, 2.0, 3.0], 0)
    Tensor([1., 3., 6.])
    """
    return CumSum(axis)(x)


def max(x: TensorLike, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """The largest element along ``axis``; tied elements receive equal parts of the gradient.

    >>> max([1.0, 3.0]).item()
    3.0
    """
    return as_tensor(x).max(axis, keepdims)


def min(x: TensorLike, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """The smallest element along ``axis``; tied elements receive equal parts of the gradient.

    >>> min([1.0, 3.0]).item()
    1.0
    """
    return as_tensor(x).min(axis, keepdims)


def argmax(x: TensorLike, axis: int | None = None, keepdims: bool = False) -> Tensor:
    """The index of the first largest element along ``axis`` or, for None, among all; integers, without gradient.

    >>> argmax([1.0, 3.0]).item()
    1
    """
    return as_tensor(x).argmax(axis, keepdims)


def argmin(x: TensorLike, axis: int | None = None, keepdims: bool = False) -> Tensor:
    """The index of the first smallest element along ``axis`` or, for None, among all; integers, without gradient.

    >>> argmin([1.0, 3.0]).item()
    0
    """
    return as_tensor(x).argmin(axis, keepdims)


def any(x: TensorLike, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """Whether an element along ``axis`` is True, or not 0; booleans.

    >>> any([0.0, 1.0]).item(), any([0.0, 0.0]).item()
    (True, False)
    """
    return (as_tensor(x) != 0).sum(axis, keepdims) > 0


def all(x: TensorLike, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """Whether every element along ``axis`` is True, or not 0; booleans.

    >>> all([0.0, 1.0]).item(), all([1.0, 1.0]).item()
    (False, True)
    """
    return (as_tensor(x) == 0).sum(axis, keepdims) == 0


def reshape(x: TensorLike, shape: int | Sequence[int]) -> Tensor:
    """The same elements in another shape; one axis may be -1, which fills in its size.

    >>> reshape([1.0, 2.0], (2, 1)).shape
    (2, 1)
    """
    return as_tensor(x).reshape(shape)


def flatten(x: TensorLike) -> Tensor:
    """All elements in row-major order, as one axis.

    >>> flatten([[1.0], [2.0]])
    Tensor([1., 2.])
    """
    return as_tensor(x).reshape(-1)


def transpose(x: TensorLike, axes: Sequence[int] | None = None) -> Tensor:
    """The axes in another order, by default reversed; `swapaxes` exchanges two of them, as PyTorch's transpose does.

    >>> transpose([[1.0, 2.0]]).shape
    (2, 1)
    """
    return as_tensor(x).transpose(*(() if axes is None else (axes,)))


def swapaxes(x: TensorLike, axis1: int, axis2: int) -> Tensor:
    """x with two axes exchanged.

    >>> swapaxes(np.zeros((2, 3, 4)), 0, -1).shape
    (4, 3, 2)
    """
    x = as_tensor(x)
    a, b = normalize_axis("swapaxes", axis1, x.ndim), normalize_axis("swapaxes", axis2, x.ndim)
    order = list(range(x.ndim))
    order[a], order[b] = order[b], order[a]
    return x.transpose(order)


def moveaxis(x: TensorLike, source: int | Sequence[int], destination: int | Sequence[int]) -> Tensor:
    """x with the axes ``source`` moved to the places ``destination``; the others keep their order.

    >>> moveaxis(np.zeros((2, 3, 4)), 0, -1).shape
    (3, 4, 2)
    """
    x = as_tensor(x)
    moved = normalize_axes("moveaxis", integers("moveaxis", "source", source, -(2**31)), x.ndim)
    places = normalize_axes("moveaxis", integers("moveaxis", "destination", destination, -(2**31)), x.ndim)
    if len(moved) != len(places):
        raise ShapeError(f"moveaxis: source is {source} and destination {destination}; expected as many axes in both")
    order = [a for a in range(x.ndim) if a not in moved]
    for place, a in sorted(zip(places, moved, strict=True)):
        order.insert(place, a)
    return x.transpose(order)


def split(x: TensorLike, indices_or_sections: int | Sequence[int], axis: int = 0) -> list[Tensor]:
    """The parts of x along ``axis``: so many of equal size, or those between the positions that are given.

    This is NumPy's split; an integer is a number of parts, in PyTorch their size. ShapeError if they cannot be equal.

    >>> split([1.0, 2.0, 3.0, 4.0], 2), split([1.0, 2.0, 3.0], [1])
    ([Tensor([1., 2.]), Tensor([3., 4.])], [Tensor([1.]), Tensor([2., 3.])])
    """
    x = as_tensor(x)
    place = normalize_axis("split", axis, x.ndim)
    size = x.shape[place]
    if isinstance(indices_or_sections, (tuple, list)):
        ends = [*integers("split", "indices_or_sections", indices_or_sections, -(2**31)), size]
    else:
        parts = integer("split", "indices_or_sections", indices_or_sections, minimum=1)
        if size % parts:
            raise ShapeError(f"split: axis {axis} has size {size}; expected a multiple of {parts} for equal parts")
        ends = [size // parts * (i + 1) for i in range(parts)]
    before = (slice(None),) * place
    return [GetItem((*before, slice(start, end)))(x) for start, end in zip([0, *ends[:-1]], ends, strict=True)]


def unstack(x: TensorLike, axis: int = 0) -> tuple[Tensor, ...]:
    """The parts of x along ``axis``, without that axis; PyTorch calls it unbind.

    >>> unstack([[1.0, 2.0]], axis=1)
    (Tensor([1.]), Tensor([2.]))
    """
    x = as_tensor(x)
    return tuple(moveaxis(x, normalize_axis("unstack", axis, x.ndim), 0))


def take_along_axis(x: TensorLike, indices: TensorLike, axis: int) -> Tensor:
    """y[..., i, ...] = x[..., indices[..., i, ...], ...], PyTorch's gather; only ``axis`` may differ in size.

    >>> take_along_axis([[1.0, 2.0], [3.0, 4.0]], np.array([[1], [0]]), 1)
    Tensor([[2.],
            [3.]])
    """
    x = as_tensor(x)
    indices = indices if isinstance(indices, Tensor) else Tensor(np.asarray(indices), device=x.device)
    place = normalize_axis("take_along_axis", axis, x.ndim)
    if indices.ndim != x.ndim or (
        [size for a, size in enumerate(indices.shape) if a != place] != [*x.shape[:place], *x.shape[place + 1 :]]
    ):
        raise ShapeError(
            f"take_along_axis: x has shape {x.shape} and indices {indices.shape}; only axis {place} may differ"
        )
    grids = [
        Tensor(np.arange(size).reshape([-1 if i == a else 1 for i in range(x.ndim)]), device=x.device)
        for a, size in enumerate(x.shape)
    ]
    return x[tuple(indices if a == place else grid for a, grid in enumerate(grids))]


numpy_functions |= {
    "all": all, "any": any, "clip": clip, "cumsum": cumsum, "moveaxis": moveaxis, "prod": prod,
    "split": split, "std": std, "swapaxes": swapaxes, "take_along_axis": take_along_axis, "unstack": unstack,
    "var": var,
}  # fmt: skip
