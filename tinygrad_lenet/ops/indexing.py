"""Reading elements by index, and its transpose, adding elements at an index. Every slope is 1 or 0, also squared."""

from dataclasses import dataclass
from typing import Any

from ..backend import Array
from ..shapes import Shape, ShapeError
from ..tensor import REAL, Gradient, Op, Tensor


@dataclass(frozen=True)
class GetItem(Op):
    """y = x[index], by NumPy's basic, integer and boolean indexing; the gradient is added where x was read."""

    index: Any

    signature = "getitem(x[...]) -> y[...]"
    domains = {"x": REAL}
    cases = (
        (((4, 5),), {"index": 2}),
        (((4, 5),), {"index": (slice(None, None, -2), None, 1)}),
        (((4, 5),), {"index": (..., slice(1, 4))}),
        (((4, 5),), {"index": ([0, 2, 2, -1], [1, 1, 1, 0])}),
        (((4, 5),), {"index": [[0, 3], [3, 3]]}),
        (((3,),), {"index": [True, False, True]}),
        (((3, 2),), {"index": slice(1, 1)}),
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "index", _copied(self.index))  # backward needs it as it is now

    def check(self, shapes: tuple[Shape, ...]) -> dict[str, int]:
        parts = self.index if isinstance(self.index, tuple) else (self.index,)
        used = 0
        for part in parts:
            if part is None or part is Ellipsis:
                continue
            kind = _kind(part)
            if kind not in "sib":
                raise TypeError(f"getitem: an index may hold integers, slices, booleans, None and ..., not {part!r}")
            used += getattr(part, "ndim", 1) if kind == "b" else 1
        if used > len(shapes[0]):
            raise ShapeError(f"getitem: the index names {used} axes, x has shape {shapes[0]}")
        return {}

    def forward(self, xp: Any, x: Array) -> Array:
        try:
            return x[_on_backend(xp, self.index)]
        except IndexError as error:
            raise IndexError(f"getitem: {error}; x has shape {x.shape}") from None

    def backward(self, gy: Tensor, y: Tensor, x: Tensor) -> Gradient:
        return AddAt(self.index, x.shape)(gy)

    def curvature(self, hy: Tensor, gy: Tensor, y: Tensor, x: Tensor) -> Gradient:
        return self.backward(hy, y, x)


@dataclass(frozen=True)
class AddAt(Op):
    """y = zeros of ``shape`` with x added at ``index``, as often as an element is named; the gradient is read there."""

    index: Any
    shape: Shape

    signature = "add_at(x[...]) -> y[...]"
    domains = {"x": REAL}
    cases = (
        (((5,),), {"index": 2, "shape": (4, 5)}),
        (((4,),), {"index": ([0, 2, 2, -1], [1, 1, 1, 0]), "shape": (4, 5)}),
        (((2, 2),), {"index": [True, False, True], "shape": (3, 2)}),
    )

    def forward(self, xp: Any, x: Array) -> Array:
        y = xp.zeros(self.shape, x.dtype)
        if all(_kind(part) == "s" for part in (self.index if isinstance(self.index, tuple) else (self.index,))):
            y[self.index] = x  # slices name each element at most once
        else:
            xp.add.at(y, _on_backend(xp, self.index), x)
        return y

    def backward(self, gy: Tensor, y: Tensor, x: Tensor) -> Gradient:
        return gy[self.index]

    def curvature(self, hy: Tensor, gy: Tensor, y: Tensor, x: Tensor) -> Gradient:
        return self.backward(hy, y, x)


def _kind(part: Any) -> str:
    """What an index part is: "s" for a slice (also None, ... and a single integer), else its dtype's letter."""
    if part is None or part is Ellipsis or isinstance(part, slice) or type(part) is int:
        return "s"
    if isinstance(part, (list, tuple)):
        kinds = {_kind(each) for each in part}
        return "b" if kinds == {"b"} else "i" if kinds <= {"s", "i"} else "?"
    if isinstance(part, bool):
        return "b"
    dtype = getattr(part, "dtype", None)
    return "?" if dtype is None else dtype.kind.replace("u", "i")


def _copied(index: Any) -> Any:
    """The index with arrays and lists that nobody else can change."""
    if isinstance(index, tuple):
        return tuple(_copied(part) for part in index)
    return index.copy() if isinstance(index, list) or hasattr(index, "dtype") else index


def _on_backend(xp: Any, index: Any) -> Any:
    """The index with tensors, lists and host arrays as arrays of ``xp``."""
    if isinstance(index, tuple):
        return tuple(_on_backend(xp, part) for part in index)
    if isinstance(index, Tensor):
        return xp.asarray(index.data)
    if isinstance(index, list):
        return xp.asarray(index) if index else xp.zeros(0, int)  # an empty list would become floats
    return xp.asarray(index) if hasattr(index, "dtype") else index
