"""Finding where a NaN or an infinity came from: while `detect_anomaly` is on, every result of every op is looked at."""

import linecache
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .backend import Array, backend_of

_PACKAGE = str(Path(__file__).parent) + os.sep

watching: ContextVar[bool] = ContextVar("watching", default=False)  # per thread and per async task


class AnomalyError(ValueError):
    """A NaN or an infinity; the message names the op, the operand and the line of code where it came up."""


@contextmanager
def detect_anomaly() -> Iterator[None]:
    """Within this block, AnomalyError as soon as an op's output or gradient is not finite; each op is checked, slowly.

    The message names the op, the operand and the line outside this package that called the op, also when it is the
    gradient that fails. An error that a backward rule raises gets that line as a note.

    >>> from tinygrad_lenet import Tensor
    >>> with detect_anomaly(), np.errstate(divide="ignore"):
    ...     Tensor([1.0, 0.0]).log()  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    tinygrad_lenet.anomaly.AnomalyError: log: the output is -inf at index (1,), where x is 0.0; ...
    """
    with watch(True):
        yield


@contextmanager
def watch(on: bool) -> Iterator[None]:
    """Switch the checks on or off within a block."""
    token = watching.set(on)
    try:
        yield
    finally:
        watching.reset(token)


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
    """The innermost line that is being run outside this package (its tests and models are outside)."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame = frame.f_back
    return Origin(frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name)


def check_forward(op: str, names: Sequence[str], inputs: Sequence[Any], y: Array) -> None:
    """AnomalyError if y is not finite: an input that was not is named, else the values that it came from."""
    where = _first_bad(y)
    if where is None:
        return
    index, value = where
    for name, x in zip(names, inputs, strict=True):
        found = _first_bad(x)
        if found is not None:
            raise AnomalyError(f"{op}: {name} is already {found[1]} at index {found[0]}; called at {caller()}")
    values = ", ".join(
        f"{name} is {_item(x, index)}" for name, x in zip(names, inputs, strict=True) if _item(x, index) is not None
    )
    raise AnomalyError(
        f"{op}: the output is {value} at index {index}{', where ' + values if values else ''}; called at {caller()}"
    )


def check_backward(op: str, name: str, gx: Array, origin: Origin | None) -> None:
    """AnomalyError if the gradient for an operand is not finite."""
    found = _first_bad(gx)
    if found is not None:
        raise AnomalyError(
            f"{op}: the gradient for {name} is {found[1]} at index {found[0]}; forward was called at {describe(origin)}"
        )


def describe(origin: Origin | None) -> str:
    """A line of code in words, also if it was not recorded."""
    return str(origin) if origin else "a line that was not recorded (it ran outside detect_anomaly)"


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
    """The element of an input that broadcasting brings to ``index`` of the output; None if shapes tell nothing."""
    shape = getattr(x, "shape", None)
    if shape is None:
        return float(x)
    if len(shape) > len(index):
        return None
    at = tuple(0 if size == 1 else i for size, i in zip(shape, index[len(index) - len(shape) :], strict=True))
    if any(i >= size for i, size in zip(at, shape, strict=True)):
        return None
    return float(x[at])
