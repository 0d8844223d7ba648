"""Axis signatures and the rules for parameters, each stated once and checked before anything is computed.

A signature reads like a declaration::

    conv2d(x[N C H W], weight[F C/groups KH KW], bias[F]?) -> y[N F OH OW]

An axis is a name, and the same name has the same size everywhere. ``C/groups`` is an axis of size C divided by the op's
parameter ``groups``. ``...`` stands for any leading axes, which broadcast as in NumPy. ``?`` marks an input that may be
left out. ``*`` marks the last input as repeatable; unless it is the only input, it may also be absent.
"""

import math
import operator
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from numbers import Real
from typing import Any

import numpy as np

from .seeds import default_generator

Shape = tuple[int, ...]
Pair = tuple[int, int]
PairLike = Any  # one integer for both axes, or a Pair, which it becomes in the op


class ShapeError(ValueError):
    """A shape that an op cannot take; the message names the op, the axis and the inputs."""


@dataclass(frozen=True)
class ArraySpec:
    """One input, or the output, of a signature: its name, its axes, and whether it may be left out or repeated."""

    name: str
    axes: tuple[str, ...]
    optional: bool = False
    repeated: bool = False

    def __str__(self) -> str:
        return f"{self.name}[{' '.join(self.axes)}]"

    @property
    def any_rank(self) -> bool:
        """Whether the axes begin with ``...``, which stands for any number of them."""
        return "..." in self.axes

    @property
    def fixed_axes(self) -> tuple[str, ...]:
        """The named axes, which come after ``...`` if that is present."""
        return tuple(axis for axis in self.axes if axis != "...")


@dataclass(frozen=True, eq=False)  # parsed once per text, so comparing by identity suffices and hashes fast
class Signature:
    """A parsed signature: ``op(inputs) -> output``."""

    op: str
    inputs: tuple[ArraySpec, ...]
    output: ArraySpec

    @staticmethod
    @cache
    def parse(text: str) -> "Signature":
        """Parse a signature's text; ValueError if it does not follow the grammar of this module.

        >>> print(Signature.parse("linear(x[... I], weight[O I]) -> y[... O]").inputs[1])
        weight[O I]
        """
        whole = re.fullmatch(r"(\w+)\((.*)\) -> (\w+)\[([^\]]*)\]", text.strip())
        array = re.compile(r"(\*?)(\w+)\[([^\]]*)\](\??)")
        if whole is None:
            raise ValueError(f"signature {text!r} does not read like 'op(x[N C], w[F C]) -> y[N F]'")
        inputs = tuple(
            ArraySpec(name, tuple(axes.split()), optional=bool(optional), repeated=bool(star))
            for star, name, axes, optional in array.findall(whole[2])
        )
        if not inputs or array.sub("", whole[2]).strip(", ") or any(x.repeated for x in inputs[:-1]):
            raise ValueError(f"signature {text!r} has an input that does not read like 'x[N C H W]'")
        return Signature(whole[1], inputs, ArraySpec(whole[3], tuple(whole[4].split())))

    def specs(self, count: int) -> tuple[ArraySpec, ...]:
        """The declaration of each of ``count`` inputs; ShapeError if there are too few or too many."""
        if count == len(self.inputs):
            return self.inputs
        last = self.inputs[-1]
        required = sum(not x.optional and not x.repeated for x in self.inputs) or 1
        if count < required or (count > len(self.inputs) and not last.repeated):
            raise ShapeError(f"{self.op}: {count} inputs were given; expected {', '.join(map(str, self.inputs))}")
        return self.inputs[:count] + (last,) * (count - len(self.inputs))

    def bind(self, shapes: Sequence[Shape], divisors: Mapping[str, int]) -> tuple[Shape, dict[str, int]]:
        """Match shapes to axes: return what ``...`` stands for, and the size of each named axis.

        ``divisors`` are the parameters by which axes such as ``C/groups`` are divided. ShapeError names the axis and
        the inputs that disagree.

        >>> Signature.parse("linear(x[... I], weight[O I]) -> y[... O]").bind([(2, 3), (4, 3)], {})
        ((2,), {'I': 3, 'O': 4})
        """
        sizes: dict[str, int] = {}
        source: dict[str, str] = {}  # for each axis: the size and the input that set it, in words
        leading: list[Shape] = []
        for spec, shape in zip(self.specs(len(shapes)), shapes, strict=True):
            axes = spec.fixed_axes
            if len(shape) < len(axes) or (len(shape) > len(axes) and not spec.any_rank):
                raise ShapeError(f"{self.op}: {spec.name} has shape {shape}; expected {spec}")
            split = len(shape) - len(axes)
            if spec.any_rank:
                leading.append(shape[:split])
            for axis, size in zip(axes, shape[split:], strict=True):
                name, _, divisor = axis.partition("/")
                factor = divisors.get(divisor, 1)
                words = f"{size}" if factor == 1 else f"{size} * {divisor} = {size * factor}"
                if sizes.setdefault(name, size * factor) != size * factor:
                    raise ShapeError(f"{self.op}: axis {name} is {source[name]} and {words} in {spec.name}")
                source.setdefault(name, f"{words} in {spec.name}")
        return broadcast_shape(self.op, leading) if leading else (), sizes


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
    """The number of window positions along an axis: floor((W + 2P - D(K - 1) - 1) / S) + 1; ShapeError if none.

    >>> window_positions("conv2d", "H", 32, kernel=5, stride=1, padding=0)
    28
    """
    reach = dilation * (kernel - 1) + 1
    if kernel < 1:
        raise ShapeError(f"{op}: the window has no extent along axis {axis}; expected at least 1")
    if reach > size + 2 * padding:
        raise ShapeError(
            f"{op}: the window covers {reach} along axis {axis}, which has {size}"
            + (f" and {2 * padding} of padding" if padding else "")
            + "; use a smaller window or more padding"
        )
    return (size + 2 * padding - reach) // stride + 1


# Rules for parameters. Each takes the name of the op (or layer), the parameter's name and its value, and returns the
# value in the form that the op works with; TypeError or ValueError says what was expected.


def integer(op: str, name: str, value: Any, minimum: int, limit: float = 2**64) -> int:
    """``value`` as an int of at least ``minimum`` and less than ``limit``.

    >>> integer("conv2d", "groups", 2, minimum=1)
    2
    """
    if type(value) is int and minimum <= value < limit:
        return value
    try:
        if isinstance(value, bool):
            raise TypeError
        found = operator.index(value)
    except TypeError:
        raise TypeError(f"{op}: {name} must be an integer, not {value!r}") from None
    if not minimum <= found < limit:
        raise ValueError(f"{op}: {name} is {_short(found)}; expected at least {minimum} and less than 2**64")
    return found


def number(op: str, name: str, value: Any, interval: str = "(-inf, inf)") -> float:
    """``value`` as a float in ``interval``, written as in mathematics: "[0, 1)" holds 0 but not 1.

    >>> number("Dropout", "p", 0.5, "[0, 1)")
    0.5
    """
    if type(value) is not float and (isinstance(value, bool) or not isinstance(value, Real)):
        raise TypeError(f"{op}: {name} is {value!r}; expected a number")
    try:
        found = float(value)
    except OverflowError:
        found = math.nan
    left, low, high, right = _interval(interval)
    inside = (low <= found if left == "[" else low < found) and (found <= high if right == "]" else found < high)
    if not inside:
        expected = "a finite number" if math.inf in (-low, high) else "a number"
        raise ValueError(f"{op}: {name} is {_short(value)}; expected {expected} in {interval}")
    return found


@cache
def _interval(text: str) -> tuple[str, float, float, str]:
    low, high = text[1:-1].split(",")
    return text[0], float(low), float(high), text[-1]


def _short(value: Any) -> str:
    """A number, described briefly if it is too long for a line."""
    return repr(value) if not isinstance(value, int) or abs(value) < 2**64 else f"a number of {value.bit_length()} bits"


def pair(op: str, name: str, value: Any, minimum: int) -> Pair:
    """``value`` as (vertical, horizontal): one integer for both, or two, of at least ``minimum``.

    >>> pair("conv2d", "stride", 2, minimum=1)
    (2, 2)
    """
    if isinstance(value, (tuple, list)):
        if len(value) != 2:
            raise ValueError(f"{op}: {name} is {value!r}; expected one integer or (vertical, horizontal)")
        return integer(op, name, value[0], minimum), integer(op, name, value[1], minimum)
    both = integer(op, name, value, minimum)
    return both, both


def integers(op: str, name: str, value: Any, minimum: int) -> tuple[int, ...]:
    """``value``, a sequence of integers of at least ``minimum`` or a single one, as a tuple.

    >>> integers("reshape", "shape", [2, -1], minimum=-1)
    (2, -1)
    """
    given = value if isinstance(value, (tuple, list)) else (value,)
    return tuple(
        [each if type(each) is int and minimum <= each < 2**63 else integer(op, name, each, minimum) for each in given]
    )


def axes(op: str, name: str, value: Any) -> tuple[int, ...] | None:
    """``value`` as a tuple of axes, which may be counted from the end; None, for all axes, stays None.

    >>> axes("sum", "axis", -1)
    (-1,)
    """
    return None if value is None else integers(op, "axis", value, -(2**31))


def one_axis(op: str, name: str, value: Any) -> int:
    """``value`` as one axis, which may be counted from the end.

    >>> one_axis("softmax", "axis", -1)
    -1
    """
    return integer(op, name, value, -(2**31))


def flag(op: str, name: str, value: Any) -> bool:
    """``value``, which must be True or False.

    >>> flag("sum", "keepdims", True)
    True
    """
    if value is not True and value is not False:
        raise TypeError(f"{op}: {name} is {value!r}; expected True or False")
    return bool(value)


def generator(op: str, name: str, value: Any) -> np.random.Generator:
    """``value`` as a NumPy generator: a generator, an integer seed, or None for that of `seeds.manual_seed`.

    >>> generator("dropout", "rng", 3).integers(10)
    np.int64(8)
    """
    if value is None or isinstance(value, np.random.Generator):
        return value or default_generator()
    try:
        return np.random.default_rng(integer(op, name, value, minimum=0, limit=math.inf))
    except TypeError:
        raise TypeError(f"{op}: {name} is {value!r}; expected a NumPy generator, an integer seed or None") from None


def normalize_axes(op: str, axis: int | Sequence[int] | None, ndim: int) -> tuple[int, ...]:
    """``axis`` as a tuple of distinct axes from 0 to ndim - 1, all of them for None; ShapeError if out of range.

    >>> normalize_axes("sum", -1, 3)
    (2,)
    """
    given = axes(op, "axis", axis)
    if given is None:
        return tuple(range(ndim))
    for each in given:
        if not -ndim <= each < ndim:
            raise ShapeError(f"{op}: axis {each} is out of range for an input with {ndim} axes")
    result = tuple([each % ndim for each in given])
    if len(set(result)) != len(result):
        raise ShapeError(f"{op}: axis {axis} names an axis twice")
    return result


def normalize_axis(op: str, axis: Any, ndim: int) -> int:
    """One axis as an integer from 0 to ndim - 1; TypeError if it is not an integer, ShapeError if out of range.

    >>> normalize_axis("softmax", -1, 3)
    2
    """
    return normalize_axes(op, one_axis(op, "axis", axis), ndim)[0]


def reduced_shape(op: str, shape: Shape, axis: int | Sequence[int] | None, keepdims: bool) -> Shape:
    """``shape`` without the axes that are reduced or, with ``keepdims``, with these at size 1.

    >>> reduced_shape("sum", (2, 3, 4), axis=1, keepdims=False)
    (2, 4)
    """
    joined = normalize_axes(op, axis, len(shape))
    if keepdims:
        return tuple([1 if a in joined else size for a, size in enumerate(shape)])
    return tuple([size for a, size in enumerate(shape) if a not in joined])
