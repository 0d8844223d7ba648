"""CuPy's RawModule on the CPU: kernels in CUDA C are compiled by g++ and run on StrictArrays, thread by thread.

`cuda_on_host.hpp` is the rest of it. What runs here is right; how fast a GPU is, what its compiler refuses (see
tests/test_cuda.py) and what happens when threads run at the same time does not show.
"""

import ctypes
import hashlib
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.strict import StrictArray, strict_xp
from tinygrad_lenet import backend

_HEADER = Path(__file__).with_suffix(".hpp")
_WARNINGS = ("-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-Wno-unused-function", "-Wno-unused-variable")
_COMPILER = ("g++", "-fPIC", "-O1", "-Winvalid-pch", *_WARNINGS)
_backwards: ContextVar[bool] = ContextVar("backwards", default=False)


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="cuda-on-host-")


@cache
def _header(standard: str) -> Path:
    """A copy of the header, compiled once for all kernels."""
    copy = Path(_folder().name) / f"{standard[1:]}-{_HEADER.name}"
    shutil.copy(_HEADER, copy)
    subprocess.run([*_COMPILER, standard, copy], check=True)
    return copy


@cache
def _library(code: str, options: tuple[str, ...]) -> ctypes.CDLL:
    """The kernels of a file, compiled once."""
    names = re.findall(r"\bextern \"C\" __global__ void(?: __launch_bounds__\(\w+\))?\s+(\w+)\(", code)
    assert names, "there is no kernel"
    barriers = "true" if "__syncthreads" in code else "false"
    launchers = "".join(f"\nLAUNCHER({name}, {barriers})" for name in names)
    stem = Path(_folder().name) / hashlib.sha256(repr((code, options)).encode()).hexdigest()[:16]
    standard, *words = options
    # In the text: a word that the command line defined would keep the compiled header from being used.
    defined = "".join(f"#define {word.removeprefix('-D').replace('=', ' ', 1)}\n" for word in words)
    text = f'#include "{_header(standard)}"\n{defined}{code}{launchers}\n'
    stem.with_suffix(".cpp").write_text(text, encoding="utf-8")
    command = [*_COMPILER, standard, "-shared"]
    subprocess.run([*command, "-o", stem.with_suffix(".so"), stem.with_suffix(".cpp")], check=True)
    return ctypes.CDLL(str(stem.with_suffix(".so")))


class RawModule:
    """As in CuPy, for a standard of C++ and the meaning of words as options."""

    def __init__(self, *, code: str, options: tuple[str, ...] = ()) -> None:
        self._library = _library(code, options)

    def get_function(self, name: str) -> "Callable[..., None]":
        run = self._library[f"run_{name}"]

        def launch(grid: tuple[int, ...], block: tuple[int, ...], arguments: Sequence[Any]) -> None:
            assert all(0 < n < limit for n, limit in zip(grid, (2**31, 2**16, 2**16), strict=False)), grid
            assert len(block) == 1 and 0 < block[0] <= 1024
            values = [_value(x) for x in arguments]
            pointers = (ctypes.c_void_p * len(values))(*[value.ctypes.data for value in values])
            run((ctypes.c_uint * 3)(*grid, *(1,) * (3 - len(grid))), block[0], pointers, _backwards.get())

        return launch


def _value(x: Any) -> np.ndarray:
    """What is handed to a kernel, in memory: an array's address, a number, or a struct."""
    if x is None:
        return np.zeros(1, np.int64)
    if isinstance(x, StrictArray):
        return np.array([x._here().ctypes.data], np.int64)
    if isinstance(x, (int, float, np.generic)):
        return np.array([x])
    if isinstance(x, np.ndarray) and x.size == 1:
        return x
    raise TypeError(f"{type(x)} cannot be handed to a kernel")


def _never_written(shape: Any, dtype: Any = "float64") -> StrictArray:
    """An array in which it shows what a kernel leaves out: NaN, or the largest integer."""
    x = np.empty(shape, dtype)
    x.fill(np.nan if x.dtype.kind == "f" else True if x.dtype.kind == "b" else np.iinfo(x.dtype).max)
    return StrictArray(x)


needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


@contextmanager
def kernels_on_host(backwards: bool = False) -> Iterator[None]:
    """Within this block the kernels for CUDA serve StrictArrays; backwards, the last thread of a block comes first."""
    found = {name: kernel for (device, name), kernel in backend._kernels.items() if device == "cuda"}
    token = _backwards.set(backwards)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(strict_xp, "RawModule", RawModule, raising=False)
        patch.setattr(strict_xp, "empty", _never_written)
        patch.setattr(
            backend, "_kernels", backend._kernels | {("strict", name): kernel for name, kernel in found.items()}
        )
        try:
            yield
        finally:
            _backwards.reset(token)
