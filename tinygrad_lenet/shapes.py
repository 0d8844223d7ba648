"""Axis signatures: which shapes an op takes, said once and checked before anything is computed.

A signature reads like a declaration::

    conv2d(x[N C H W], weight[F C/groups KH KW], bias[F]?) -> y[N F OH OW]

An axis is a name; the same name has the same size everywhere. ``C/groups`` is an axis of size C divided by the op's
parameter ``groups``. ``...`` stands for any leading axes, which broadcast as NumPy's do. ``?`` marks an input that may
be left out, ``*`` one that may be repeated.
"""

import math
import operator
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from numbers import Real
from typing import Any

Shape = tuple[int, ...]


class ShapeError(ValueError):
    """A shape that an op cannot take; the message names the op, the axis and the operands."""


@dataclass(frozen=True)
class Operand:
    """One input or the output of a signature: its name, its axes and whether it may be left out or repeated."""

    name: str
    axes: tuple[str, ...]
    optional: bool = False
    repeated: bool = False

    def __str__(self) -> str:
        return f"{self.name}[{' '.join(self.axes)}]"

    @property
    def any_rank(self) -> bool:
        return "..." in self.axes

    @property
    def fixed_axes(self) -> tuple[str, ...]:
        """The axes that have a name; they come after the ``...``, if there is one."""
        return tuple(axis for axis in self.axes if axis != "...")


@dataclass(frozen=True, eq=False)  # parsed once a text, so identity will do, and hashes fast
class Signature:
    """A parsed signature: ``op(inputs) -> output``."""

    op: str
    inputs: tuple[Operand, ...]
    output: Operand

    @staticmethod
    @cache
    def parse(text: str) -> "Signature":
        """Parse a signature's text; ValueError if it does not follow the grammar of this module.

        >>> print(Signature.parse("linear(x[... I], weight[O I]) -> y[... O]").inputs[1])
        weight[O I]
        """
        whole = re.fullmatch(r"(\w+)\((.*)\) -> (\w+)\[([^\]]*)\]", text.strip())
        operand = re.compile(r"(\*?)(\w+)\[([^\]]*)\](\??)")
        if whole is None:
            raise ValueError(f"signature {text!r} does not read like 'op(x[N C], w[F C]) -> y[N F]'")
        inputs = tuple(
            Operand(name, tuple(axes.split()), optional=bool(optional), repeated=bool(star))
            for star, name, axes, optional in operand.findall(whole[2])
        )
        if not inputs or operand.sub("", whole[2]).strip(", "):
            raise ValueError(f"signature {text!r} has an input that does not read like 'x[N C H W]'")
        return Signature(whole[1], inputs, Operand(whole[3], tuple(whole[4].split())))

    def operands(self, count: int) -> tuple[Operand, ...]:
        """The operand that each of ``count`` inputs belongs to; ShapeError if there are too few or too many."""
        if self.inputs[0].repeated:
            return self.inputs * count
        if count == len(self.inputs):
            return self.inputs
        required = sum(not operand.optional for operand in self.inputs)
        if not required <= count <= len(self.inputs):
            names = ", ".join(map(str, self.inputs))
            raise ShapeError(f"{self.op}: {count} inputs were given; expected {names}")
        return self.inputs[:count]

    def bind(self, shapes: Sequence[Shape], divisors: Mapping[str, int] | None = None) -> dict[str, int]:
        """Match shapes to axes and return each axis's size; ShapeError names the axis and the inputs that disagree.

        >>> Signature.parse("linear(x[... I], weight[O I]) -> y[... O]").bind([(2, 3), (4, 3)])
        {'I': 3, 'O': 4}
        """
        sizes: dict[str, int] = {}
        source: dict[str, str] = {}  # for each axis: the size and operand that set it, in words
        leading: list[Shape] = []
        for operand, shape in zip(self.operands(len(shapes)), shapes, strict=True):
            axes = operand.fixed_axes
            if len(shape) < len(axes) or (len(shape) > len(axes) and not operand.any_rank):
                raise ShapeError(f"{self.op}: {operand.name} has shape {shape}; expected {operand}")
            split = len(shape) - len(axes)
            if operand.any_rank:
                leading.append(shape[:split])
            for axis, size in zip(axes, shape[split:], strict=True):
                name, _, divisor = axis.partition("/")
                factor = (divisors or {}).get(divisor, 1)
                words = f"{size}" if factor == 1 else f"{size} * {divisor} = {size * factor}"
                if sizes.setdefault(name, size * factor) != size * factor:
                    raise ShapeError(f"{self.op}: axis {name} is {source[name]} and {words} in {operand.name}")
                source.setdefault(name, f"{words} in {operand.name}")
        if len(leading) > 1:
            broadcast_shape(self.op, leading)
        return sizes


def broadcast_shape(op: str, shapes: Iterable[Shape]) -> Shape:
    """The shape that ``shapes`` broadcast to by NumPy's rule; ShapeError if they do not.

    >>> broadcast_shape("add", [(3, 1), (4,)])
    (3, 4)
    """
    shapes = list(shapes)
    rank = max(map(len, shapes), default=0)
    padded = [(1,) * (rank - len(shape)) + shape for shape in shapes]
    result = []
    for axis in zip(*padded, strict=True):
        wide = {size for size in axis if size != 1}
        if len(wide) > 1:
            raise ShapeError(f"{op}: shapes {' and '.join(map(str, shapes))} do not broadcast")
        result.append(wide.pop() if wide else 1)
    return tuple(result)


def window_positions(op: str, axis: str, size: int, kernel: int, stride: int, padding: int, dilation: int = 1) -> int:
    """How many positions a window takes along an axis: floor((W + 2P - D(K - 1) - 1) / S) + 1; ShapeError if none.

    >>> window_positions("conv2d", "H", 32, kernel=5, stride=1, padding=0)
    28
    """
    reach = dilation * (kernel - 1) + 1
    if reach > size + 2 * padding:
        raise ShapeError(
            f"{op}: the window reaches over {reach} along axis {axis}, which has {size}"
            + (f" and {2 * padding} of padding" if padding else "")
            + "; use a smaller window or more padding"
        )
    return (size + 2 * padding - reach) // stride + 1


def integer(op: str, name: str, value: Any, minimum: int) -> int:
    """``value`` as an int of at least ``minimum``; TypeError or ValueError names the op and the parameter."""
    try:
        if isinstance(value, bool):
            raise TypeError
        found = operator.index(value)
    except TypeError:
        raise TypeError(f"{op}: {name} must be an integer, not {value!r}") from None
    if found < minimum:
        raise ValueError(f"{op}: {name} is {found}; expected at least {minimum}")
    return found


def number(
    op: str, name: str, value: Any, low: float = -math.inf, high: float = math.inf, low_allowed: bool = True
) -> float:
    """``value`` as a finite float in [low, high), or in (low, high) unless ``low_allowed``; TypeError or ValueError.

    >>> number("Dropout", "p", 0.5, low=0, high=1)
    0.5
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{op}: {name} is {value!r}; expected a number")
    found = float(value)
    if not math.isfinite(found) or not low <= found < high or (found == low and not low_allowed):
        limits = f"of at least {low:g}" if low_allowed else f"above {low:g}"
        raise ValueError(
            f"{op}: {name} is {value!r}; expected a finite number {limits}"
            + (f" and below {high:g}" if high < math.inf else "")
        )
    return found


def pair(op: str, name: str, value: Any, minimum: int) -> tuple[int, int]:
    """``value`` as (vertical, horizontal): one integer for both, or two integers.

    >>> pair("conv2d", "stride", 2, minimum=1)
    (2, 2)
    """
    if isinstance(value, (tuple, list)):
        if len(value) != 2:
            raise ValueError(f"{op}: {name} is {value!r}; expected one integer or (vertical, horizontal)")
        return integer(op, name, value[0], minimum), integer(op, name, value[1], minimum)
    both = integer(op, name, value, minimum)
    return both, both


def connection_table(op: str, connections: Any, channels: int) -> tuple[tuple[int, ...], ...]:
    """``connections`` as a tuple, for each output map, of the input maps that it sees, all from 0 to channels - 1.

    TypeError for what is not rows of integers; ValueError for no row, a row without a map, a map that does not exist,
    or one that a row names twice.

    >>> connection_table("Conv2d", [[0], [0, 1]], channels=2)
    ((0,), (0, 1))
    """
    checked = []
    try:
        for f, row in enumerate(connections):
            checked.append(tuple([integer(op, f"each map in row {f} of connections", c, minimum=0) for c in row]))
    except TypeError as error:
        raise TypeError(
            f"{op}: connections are {connections!r}; expected for each output map a list of input maps, such as "
            f"[[0], [0, 1]] ({error})"
        ) from None
    if not checked:
        raise ValueError(f"{op}: connections is empty; expected a row for each output map")
    for f, maps in enumerate(checked):
        if not maps:
            raise ValueError(f"{op}: row {f} of connections is empty; expected at least one input map")
        if max(maps) >= channels:
            raise ValueError(
                f"{op}: row {f} of connections names input map {max(maps)}, which is missing; "
                f"there are {channels}, counted from 0"
            )
        if len(set(maps)) != len(maps):
            raise ValueError(f"{op}: row {f} of connections, {maps}, names an input map twice")
    return tuple(checked)


def normalize_axes(op: str, axis: int | Sequence[int] | None, ndim: int) -> tuple[int, ...]:
    """``axis`` as a tuple of different non-negative integers, all axes if it is None; ShapeError if out of range.

    >>> normalize_axes("sum", -1, 3)
    (2,)
    """
    if axis is None:
        return tuple(range(ndim))
    axes = tuple(axis) if isinstance(axis, (tuple, list)) else (axis,)
    result = []
    for each in axes:
        index = integer(op, "axis", each, minimum=-(2**31))
        if not -ndim <= index < ndim:
            raise ShapeError(f"{op}: axis {index} is out of range for an input with {ndim} axes")
        result.append(index % ndim)
    if len(set(result)) != len(result):
        raise ShapeError(f"{op}: axis {axis} names an axis twice")
    return tuple(result)


def normalize_axis(op: str, axis: Any, ndim: int) -> int:
    """One axis as a non-negative integer; TypeError if it is not one integer, ShapeError if it is out of range.

    >>> normalize_axis("softmax", -1, 3)
    2
    """
    return normalize_axes(op, integer(op, "axis", axis, minimum=-(2**31)), ndim)[0]
