"""Finding where wrong numbers come from: while `detect_anomaly` is on, every result of every op is checked.

So are indices and labels on a GPU, which are not looked at otherwise, since that would wait for the GPU.
"""

import linecache
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .backend import backend_of
from .graph import Node, Observer, observed

_PACKAGE = str(Path(__file__).parent) + os.sep


class AnomalyError(ValueError):
    """A NaN, an infinity, or an index out of range; the message names the op, the operand and the line of code."""


@contextmanager
def detect_anomaly() -> Iterator[None]:
    """Within this block, raise AnomalyError as soon as an op's output or gradient is not finite; this is slow.

    An index or a label out of range raises it, too; without this block, a GPU takes one as if it wrapped round.

    The message names the op, the operand and the line outside this package that called the op, even if it is the
    gradient that is not finite. An error raised in a backward rule gets that line as a note.

    >>> from tinygrad_lenet import Tensor
    >>> with detect_anomaly(), np.errstate(divide="ignore"):
    ...     Tensor([1.0, 0.0]).log()  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    tinygrad_lenet.anomaly.AnomalyError: log: the output is -inf at index (1,), where x is 0.0; ...
    """
    with observed(_Watch()):
        yield


@dataclass(frozen=True)
class Origin:
    """A line of the user's code."""

    file: str
    line: int
    function: str

    def __str__(self) -> str:
        code = linecache.getline(self.file, self.line).strip()
        return f"{self.file}:{self.line}, in {self.function}" + (f": {code}" if code else "")


def caller() -> Origin:
    """The innermost line being executed outside this package (its tests and models count as outside)."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame = frame.f_back
    return Origin(frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name)


class _Watch(Observer):
    """Checks every result and every gradient, but not the intermediate steps of a gradient's computation."""

    def computed(self, op: Any, inputs: Sequence[Any], output: Any) -> None:
        """AnomalyError if the output is not finite; it names a non-finite input, or else the inputs' values there."""
        output.origin = caller()
        _refuse_out_of_range(op, inputs, output.origin)
        where = _first_bad(output.data)
        if where is None:
            return
        index, value = where
        arrays = [x.data if isinstance(x, Node) else x for x in inputs]
        names = [spec.name for spec in op.parsed.specs(len(inputs))]
        for name, x in zip(names, arrays, strict=True):
            found = _first_bad(x)
            if found is not None:
                raise AnomalyError(
                    f"{op.name}: {name} is already {found[1]} at index {found[0]}; called at {output.origin}"
                )
        values = ", ".join(
            f"{name} is {_item(x, index)}" for name, x in zip(names, arrays, strict=True) if _item(x, index) is not None
        )
        raise AnomalyError(
            f"{op.name}: the output is {value} at index {index}{', where ' + values if values else ''}; "
            f"called at {output.origin}"
        )

    def differentiated(self, node: Node, name: str, gradient: Any) -> None:
        """AnomalyError if the gradient for an input is not finite."""
        found = _first_bad(gradient.data)
        if found is not None:
            raise AnomalyError(
                f"{node.op.name}: the gradient for {name} is {found[1]} at index {found[0]}; "
                f"forward was called at {node.origin or 'a line that was not recorded (it ran outside detect_anomaly)'}"
            )


def _refuse_out_of_range(op: Any, inputs: Sequence[Any], origin: Origin) -> None:
    """AnomalyError if an input with indices or labels holds one that is out of range."""
    specs = op.parsed.specs(len(inputs))
    indices = [(spec.name, x) for spec, x in zip(specs, inputs, strict=True) if op.domains[spec.name].kind == "index"]
    if not indices:
        return
    ranges = op.index_ranges(*[getattr(x, "shape", ()) for x in inputs])
    for (name, x), expected in zip(indices, ranges, strict=True):
        values = backend_of(x.data).to_numpy(x.data)
        outside = (values < expected.start) | (values >= expected.stop)
        if outside.any():
            at = tuple(int(i) for i in np.unravel_index(outside.argmax(), values.shape))
            raise AnomalyError(
                f"{op.name}: {name} is {values[at]} at index {at}; expected {expected.start} to {expected.stop - 1}; "
                f"called at {origin}"
            )


def _first_bad(x: Any) -> tuple[tuple[int, ...], float] | None:
    """The index and value of the first element that is NaN or infinite."""
    if getattr(x, "dtype", None) is None or x.dtype.kind != "f":
        return None
    values = backend_of(x).to_numpy(x)
    bad = ~np.isfinite(values)
    if not bad.any():
        return None
    index = tuple(int(i) for i in np.unravel_index(bad.argmax(), values.shape))
    return index, float(values[index])


def _item(x: Any, index: tuple[int, ...]) -> float | None:
    """The element of an input that broadcasts to ``index`` of the output; None if the shapes do not tell."""
    shape = getattr(x, "shape", None)
    if shape is None:
        return float(x)
    if len(shape) > len(index):
        return None
    at = tuple(0 if size == 1 else i for size, i in zip(shape, index[len(index) - len(shape) :], strict=True))
    if any(i >= size for i, size in zip(at, shape, strict=True)):
        return None
    return float(x[at])
