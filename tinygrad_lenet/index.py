"""Splits NumPy's indices into a pattern and the arrays in it.

The pattern holds integers, slices, None, ..., True, False, and `AT` for each array. It becomes a parameter of an op,
whereas the arrays become inputs of the op, since they may change from run to run.
"""

import numbers
from collections.abc import Sequence
from typing import Any

import numpy as np

from .backend import NUMPY, Array, backend_of_type
from .graph import Node
from .shapes import Shape, ShapeError, broadcast_shape

AT = "array"
Pattern = tuple[Any, ...]


def parse(op: str, index: Any, shape: Shape) -> tuple[Pattern, list[Any]]:
    """The pattern of an index into an array of ``shape``, and its arrays: tensors, or copies that nobody can change.

    A mask, an array of booleans, is returned once but has one `AT` per axis. TypeError for anything that is not an
    index, ShapeError for more parts than there are axes, IndexError for an index on the host that is out of range.

    >>> parse("getitem", (slice(2), [0, 1]), (4, 5))
    ((slice(None, 2, None), 'array'), [array([0, 1])])
    """
    given = index if isinstance(index, tuple) else (index,)
    if len(given) <= len(shape) and all(type(part) is int or type(part) is slice for part in given):  # mostly
        for axis, part in enumerate(given):
            if type(part) is int:
                _check_range(op, part, part, axis, shape)
        return tuple(given), []
    parts = [_part(op, part) for part in given]
    if sum(part is Ellipsis for part in parts) > 1:
        raise IndexError(f"{op}: an index may contain ... only once")
    named = sum(map(_axes_named, parts))
    if named > len(shape):
        raise ShapeError(f"{op}: the index names {named} axes; x has shape {shape}")
    pattern: list[Any] = []
    arrays = []
    axis = 0
    for part in parts:
        named_here = _axes_named(part)
        if isinstance(part, int) and not isinstance(part, bool):
            _check_range(op, part, part, axis, shape)
        if _is_array(part):
            values: Any = _values(part)
            if values.dtype.kind == "b" and values.shape != shape[axis : axis + named_here]:
                raise IndexError(f"{op}: a mask of shape {values.shape} does not fit axes {axis} on of shape {shape}")
            if values.dtype.kind != "b" and isinstance(values, np.ndarray) and values.size:
                _check_range(op, int(values.min()), int(values.max()), axis, shape)
            arrays.append(part)
            pattern += [AT] * named_here
        else:
            pattern.append(part)
        axis += len(shape) - named if part is Ellipsis else named_here
    return tuple(pattern), arrays


def _part(op: str, part: Any) -> Any:
    """A part of an index, unchanged or as an integer, True, False, a tensor, or a host array."""
    if part is None or part is Ellipsis or isinstance(part, slice):
        return part
    if isinstance(part, (bool, np.bool_)):
        return bool(part)
    if isinstance(part, numbers.Integral):
        return int(part)
    if not isinstance(part, Node) and backend_of_type(type(part)) in (None, NUMPY):
        try:
            part = np.array(part)
        except ValueError:
            raise TypeError(f"{op}: {part!r} is not an index; expected a rectangular list of integers") from None
        if not part.size and part.dtype.kind == "f":
            part = part.astype(np.int64)  # an empty list
    values = _values(part)
    if values.dtype.kind not in "iub":
        raise TypeError(f"{op}: an index may hold integers, slices, booleans, None and ..., not {part!r}")
    return bool(values.item()) if values.dtype.kind == "b" and not values.shape else part


def _is_array(part: Any) -> bool:
    return isinstance(part, Node) or backend_of_type(type(part)) is not None


def _values(part: "Node | Array") -> Any:
    return part.data if isinstance(part, Node) else part


def _axes_named(part: Any) -> int:
    """The number of axes that a part of an index stands for."""
    if _is_array(part) and _values(part).dtype.kind == "b":
        return len(_values(part).shape)
    return 0 if part is None or part is Ellipsis or isinstance(part, bool) else 1


def _check_range(op: str, low: int, high: int, axis: int, shape: Shape) -> None:
    size = shape[axis]
    if low < -size or high >= size:
        raise IndexError(f"{op}: index {low if low < -size else high} is out of range for axis {axis} of shape {shape}")


def index_ranges(shape: Shape, pattern: Pattern) -> list[range]:
    """The integers that each array of the pattern may hold in an index into an array of ``shape``.

    >>> index_ranges((4, 5, 6), (AT, ..., AT))
    [range(-4, 4), range(-6, 6)]
    """
    at = next((i for i, part in enumerate(pattern) if part is Ellipsis), len(pattern))
    ranges = []
    axis = 0
    for i, part in enumerate(pattern):
        if i == at:
            axis = len(shape) - sum(map(_axes_named, pattern[at + 1 :]))
            continue
        if isinstance(part, str):
            ranges.append(range(-shape[axis], shape[axis]))
        axis += _axes_named(part)
    return ranges


def indexed_shape(op: str, shape: Shape, pattern: Pattern, arrays: Sequence[Shape]) -> Shape:
    """The shape of x[index], where x has ``shape``, the index ``pattern``, and its arrays the shapes ``arrays``.

    The axes that arrays and integers index are replaced by the shape that the arrays broadcast to: at their place if
    they are adjacent, else in front, as in NumPy. ShapeError if the pattern does not fit.

    >>> indexed_shape("getitem", (4, 5, 6), (AT, slice(2), AT), [(3,), (3,)])
    (3, 2)
    """
    if len(pattern) <= len(shape) and all(type(part) is int or type(part) is slice for part in pattern):  # mostly
        sliced = [(part, n) for part, n in zip(pattern, shape, strict=False) if type(part) is slice]
        return (*[len(range(*part.indices(n))) for part, n in sliced], *shape[len(pattern) :])
    named = sum(map(_axes_named, pattern))
    if named > len(shape) or pattern.count(AT) != len(arrays):
        raise ShapeError(f"{op}: pattern {pattern} with {len(arrays)} arrays does not fit shape {shape}")
    rest = [slice(None)] * (len(shape) - named)
    at = next((i for i, part in enumerate(pattern) if part is Ellipsis), len(pattern))
    parts = [*pattern[:at], *rest, *pattern[at + 1 :]]
    advanced = any(part == AT or isinstance(part, bool) for part in parts)
    given = iter(arrays)
    result: list[int] = []
    chosen: list[Shape] = []
    places: list[int] = []  # how many axes of the result come before each such part
    axis = 0
    for part in parts:
        if part is None:
            result.append(1)
        elif isinstance(part, slice):
            result.append(len(range(*part.indices(shape[axis]))))
        elif advanced:
            chosen.append(next(given) if part == AT else (int(part),) if isinstance(part, bool) else ())
            places.append(len(result))
        axis += _axes_named(part)
    if advanced:
        place = places[0] if len(set(places)) == 1 else 0
        result[place:place] = broadcast_shape(op, chosen)
    return tuple(result)
