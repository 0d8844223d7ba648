"""A backend that enforces CuPy's rules without a GPU: `StrictArray`, and the namespace `strict_xp` of its functions.

What works here works in CuPy (14); what CuPy refuses is refused here, and some things more:

- A StrictArray never becomes a NumPy array by itself, and never meets one: operators, functions, indices and ``out=``
  take StrictArrays and scalars (of Python or NumPy). CuPy does turn NumPy arrays and lists in an index into its own;
  that copies from the host, so it is refused here: write ``xp.asarray(index)``.
- Functions on arrays return arrays: reductions and full indexing give 0-d arrays.
- There are two devices, "strict" and "strict:1". New arrays lie on the current one (`on_device`), and only what lies
  there can be computed with or written to; views can be taken anywhere.
- What is computed lies in memory in C order, whatever the order of the operands.
- An index that is out of range, in an array, wraps round, since nobody looks at it. On a GPU, too, that gives a wrong
  result without a word, so it has to be caught before.
- Python integers beyond 64 bits and foreign byte orders are refused; flags tell of contiguity only.
- The namespace holds only functions that CuPy has, with the keywords that CuPy takes (`_KEYWORDS`), no object arrays.
- Within `with_graphs` its work can be noted as a graph and repeated; while that is done, nothing is computed, and what
  needs the host is refused: copies from and to it, values, and results whose shape depends on values. (CuPy refuses
  products by cuBLAS, too. Here they stand for the kernels that it has instead.)
- Within `no_host_reads`, nothing depends on the values of an array: ``bool(x)``, ``float(x)``, ``x.item()`` raise, as
  they would break the capture of a CUDA graph. (A boolean mask as an index is let through: it makes CuPy wait, too,
  but NumPy users expect it.)

Listed after https://docs.cupy.dev/en/stable/reference/comparison.html and user_guide/difference.html.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import SimpleNamespace
from typing import Any

import numpy as np

from tinygrad_lenet.backend import Backend, register

_reads_refused: ContextVar[bool] = ContextVar("reads_refused", default=False)


@contextmanager
def no_host_reads() -> Iterator[None]:
    """Within this block the values of StrictArrays cannot be asked for."""
    token = _reads_refused.set(True)
    try:
        yield
    finally:
        _reads_refused.reset(token)


_noting: ContextVar["list[Any] | None"] = ContextVar("noting", default=None)  # calls of the graph that is being made
_graphs_offered: ContextVar[bool] = ContextVar("graphs_offered", default=False)
_current: ContextVar[int] = ContextVar("current_device", default=0)


@contextmanager
def on_device(index: int) -> Iterator[None]:
    """Within this block the device of that number is the current one."""
    token = _current.set(index)
    try:
        yield
    finally:
        _current.reset(token)


class Device(int):
    """The number of a device; as in CuPy it can be compared, but not looked up."""

    __hash__ = None  # type: ignore[assignment]


class StrictArray:
    """An array that behaves as CuPy's do."""

    __slots__ = ("__weakref__", "_base", "_device", "_host")
    __array_ufunc__ = None  # NumPy arrays and functions turn away
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, host: Any, base: "StrictArray | None" = None) -> None:
        self._host = np.asarray(host)
        self._base = base  # the array whose memory this is a view on
        self._device = _current.get() if base is None else base._device
        if self._host.dtype.kind not in "fiubc" or not self._host.dtype.isnative:
            raise TypeError(f"Unsupported dtype {self._host.dtype}")

    shape = property(lambda self: self._host.shape)
    ndim = property(lambda self: self._host.ndim)
    size = property(lambda self: self._host.size)
    dtype = property(lambda self: self._host.dtype)
    strides = property(lambda self: self._host.strides)
    itemsize = property(lambda self: self._host.itemsize)
    nbytes = property(lambda self: self._host.nbytes)
    device = property(lambda self: Device(self._device))
    T = property(lambda self: self._view(self._host.T))
    base = property(lambda self: self._base)
    data = property(lambda self: SimpleNamespace(ptr=self._host.ctypes.data))

    @property
    def flags(self) -> SimpleNamespace:
        flags = self._host.flags
        return SimpleNamespace(**{name: getattr(flags, name) for name in ("c_contiguous", "f_contiguous", "owndata")})

    def _here(self) -> np.ndarray:
        """What is computed with or written to, which has to lie on the current device."""
        if self._device != _current.get():
            raise ValueError(
                f"The device where the array resides ({self._device}) is different from the current device "
                f"({_current.get()}). Peer access is unavailable between these devices."
            )
        return self._host

    def _view(self, host: Any) -> "StrictArray":
        if not host.size or np.may_share_memory(host, self._host):
            return StrictArray(host, self if self._base is None else self._base)
        self._here()  # what is no view was computed
        return StrictArray(host)

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()` to convert.")

    def __len__(self) -> int:
        return len(self._host)

    def __iter__(self) -> Iterator["StrictArray"]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        return f"StrictArray({self._host!r})"

    def _read(self) -> np.ndarray:
        if _reads_refused.get():
            raise TypeError("the values of an array on a GPU were read on the host, which breaks CUDA graph capture")
        return self._host

    def __bool__(self) -> bool:
        return bool(self._read())

    def __float__(self) -> float:
        return float(self._read())

    def __int__(self) -> int:
        return int(self._read())

    def item(self) -> Any:
        return self._read().item()

    def tolist(self) -> Any:
        return self._read().tolist()

    def __getitem__(self, index: Any) -> "StrictArray":
        host = _index(index, self.shape)
        parts = host if isinstance(host, tuple) else (host,)
        if not any(part is Ellipsis or isinstance(part, np.ndarray) for part in parts):
            host = (*parts, ...)  # a view also of a single element
        return self._view(self._host[host])

    def __setitem__(self, index: Any, value: Any) -> None:
        self._here()[_index(index, self.shape)] = _operand("__setitem__", value)

    def astype(self, dtype: Any, order: str = "K", copy: bool = True) -> "StrictArray":
        y = self._host.astype(dtype, order=order, copy=copy)
        return self if y is self._host else self._view(y)

    def reshape(self, *shape: Any, order: str = "C") -> "StrictArray":
        return self._view(self._host.reshape(*shape, order=order))

    def transpose(self, *axes: Any) -> "StrictArray":
        return self._view(self._host.transpose(*axes))

    def squeeze(self, axis: Any = None) -> "StrictArray":
        return self._view(self._host.squeeze(axis))

    def swapaxes(self, axis1: int, axis2: int) -> "StrictArray":
        return self._view(self._host.swapaxes(axis1, axis2))

    def ravel(self, order: str = "C") -> "StrictArray":
        return self._view(self._host.ravel(order))

    def copy(self, order: str = "C") -> "StrictArray":
        return StrictArray(self._host.copy(order))

    def fill(self, value: Any) -> None:
        self._here().fill(_operand("fill", value))


def _operand(function: str, x: Any) -> Any:
    """What lies behind an operand: a StrictArray or a scalar; TypeError for all else."""
    if isinstance(x, StrictArray):
        return x._here()
    if isinstance(x, int) and not -(2**63) <= x < 2**64:
        raise OverflowError("Python int too large to convert to C long")
    if isinstance(x, (bool, int, float, complex, np.generic)):
        return x
    raise TypeError(f"{function}: Unsupported type {type(x)}")


def _array(function: str, x: Any) -> np.ndarray:
    if not isinstance(x, StrictArray):
        raise TypeError(f"{function}: Argument has incorrect type (expected an array of this backend, got {type(x)})")
    return x._here()


def _index(index: Any, shape: tuple[int, ...]) -> Any:
    """The index into an array of that shape as NumPy takes it, with integers in arrays brought into range."""
    parts = _parts(index)
    named = [
        part.ndim if isinstance(part, StrictArray) and part.dtype.kind == "b"
        else not (part is None or part is Ellipsis or isinstance(part, bool))
        for part in parts
    ]  # fmt: skip
    found = []
    axis = 0
    for part, axes in zip(parts, named, strict=True):
        if isinstance(part, StrictArray):
            host = part._here()
            if host.dtype.kind not in "iub":
                raise IndexError(f"arrays used as indices must be of integer or boolean type, not {host.dtype}")
            in_range = host if host.dtype.kind == "b" or not host.size else host % max(1, shape[axis])
            found.append(np.asarray(in_range))  # of an array without axes, NumPy makes a number, which gives a view
        elif part is None or part is Ellipsis or isinstance(part, (slice, int, np.integer)):
            found.append(part)
        else:
            raise TypeError(f"an index of type {type(part)} would be copied from the host; use xp.asarray")
        axis += len(shape) - sum(named) if part is Ellipsis else axes
    return tuple(found) if isinstance(index, tuple) else found[0]


def _wrap(result: Any) -> Any:
    if isinstance(result, (np.ndarray, np.generic)):
        return StrictArray(np.asarray(result, order="C"))
    return type(result)(map(_wrap, result)) if isinstance(result, (tuple, list)) else result


def _keywords(function: str, given: dict[str, Any], allowed: set[str]) -> dict[str, Any]:
    for name, value in given.items():
        if name not in allowed:
            raise TypeError(f"{function}: CuPy takes no keyword {name!r}")
        if isinstance(value, (np.ndarray, StrictArray)) and name != "out":
            raise TypeError(f"{function}: Unsupported type {type(value)} for {name}")
    if given.get("out") is not None:
        given["out"] = _array(function, given["out"])
    return given


class _Ufunc:
    """An elementwise function: arrays and scalars in, an array out."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, *inputs: Any, **keywords: Any) -> Any:
        out = keywords.get("out")
        keywords = _keywords(self.name, keywords, {"out", "dtype", "casting"})
        y = getattr(np, self.name)(*(_operand(self.name, x) for x in inputs), **keywords)
        return _wrap(y) if out is None else out


class _UfuncAt(_Ufunc):
    """One of the few elementwise functions for which CuPy has ``at``."""

    def at(self, a: Any, indices: Any, b: Any) -> None:
        host = _array(self.name + ".at", a)
        if host.dtype.name not in {"float16", "float32", "float64", "int32", "uint32", "uint64"}:
            raise TypeError(f"{self.name}.at: Unsupported dtype {host.dtype}")
        getattr(np, self.name).at(host, _index(indices, host.shape), _operand(self.name + ".at", b))


_UFUNCS = """
    add subtract multiply divide true_divide floor_divide power float_power remainder mod fmod negative positive
    absolute abs fabs sign rint exp exp2 expm1 log log2 log10 log1p sqrt square cbrt reciprocal sin cos tan arcsin
    arccos arctan arctan2 sinh cosh tanh arcsinh arccosh arctanh hypot logaddexp logaddexp2 bitwise_and bitwise_or
    bitwise_xor invert bitwise_not left_shift right_shift logical_and logical_or logical_xor logical_not greater
    greater_equal less less_equal equal not_equal maximum minimum fmax fmin isfinite isinf isnan signbit copysign
    nextafter floor ceil trunc
"""
_UFUNCS_WITH_AT = ("add", "subtract", "maximum", "minimum", "bitwise_and", "bitwise_or", "bitwise_xor")

_REDUCTION = {"axis", "dtype", "out", "keepdims"}
_PLAIN = {"axis", "out", "keepdims"}
_CUMULATIVE = {"axis", "dtype", "out"}
# Functions whose first argument is an array, with the keywords that CuPy takes (NumPy has more: where, initial ...).
_KEYWORDS: dict[str, set[str]] = {
    **dict.fromkeys(("sum", "prod", "mean", "nansum", "nanprod"), _REDUCTION),
    **dict.fromkeys(("max", "min", "amax", "amin", "any", "all", "nanmax", "nanmin"), _PLAIN),
    **dict.fromkeys(("var", "std"), _REDUCTION | {"ddof"}),
    **dict.fromkeys(("argmax", "argmin"), _REDUCTION),
    **dict.fromkeys(("cumsum", "cumprod"), _CUMULATIVE),
    "count_nonzero": {"axis"},
    "reshape": {"order"},
    "ravel": {"order"},
    "transpose": {"axes"},
    "swapaxes": set(),
    "moveaxis": set(),
    "broadcast_to": set(),
    "squeeze": {"axis"},
    "expand_dims": {"axis"},
    "flip": {"axis"},
    "roll": {"axis"},
    "repeat": {"axis"},
    "tile": set(),
    "pad": {"mode", "constant_values"},
    "clip": {"out"},
    "tril": {"k"},
    "triu": {"k"},
    "diagonal": {"offset", "axis1", "axis2"},
    "trace": {"offset", "axis1", "axis2", "dtype", "out"},
    "zeros_like": {"dtype", "order", "shape"},
    "ones_like": {"dtype", "order", "shape"},
    "empty_like": {"dtype", "order", "shape"},
    "full_like": {"dtype", "order", "shape"},
    "ascontiguousarray": {"dtype"},
    "asfortranarray": {"dtype"},
    "copy": {"order"},
    "argsort": {"axis"},
    "sort": {"axis"},
    "nonzero": set(),
    "argwhere": set(),
    "nan_to_num": {"copy", "nan", "posinf", "neginf"},
    "split": {"axis"},
    "array_split": {"axis"},
}
_KEEPING_ORDER = {"zeros_like", "ones_like", "empty_like", "full_like", "copy", "asfortranarray"}
# Functions of two arrays.
_PAIRS: dict[str, set[str]] = {
    "matmul": {"out", "dtype"},
    "dot": {"out"},
    "tensordot": {"axes"},
    "outer": {"out"},
    "inner": set(),
    "vdot": set(),
    "kron": set(),
    "take": {"axis", "out"},
    "take_along_axis": {"axis"},
}
_CREATION: dict[str, set[str]] = {
    "zeros": {"dtype", "order"},
    "ones": {"dtype", "order"},
    "empty": {"dtype", "order"},
    "full": {"fill_value", "dtype", "order"},
    "arange": {"dtype", "start", "stop", "step"},
    "linspace": {"endpoint", "dtype"},
    "eye": {"dtype", "order"},
    "identity": {"dtype"},
}
_CONSTANTS = """
    float16 float32 float64 int8 int16 int32 int64 uint8 uint16 uint32 uint64 bool_ inf nan pi e newaxis dtype finfo
    iinfo floating integer issubdtype isscalar
"""


def _first(name: str, allowed: set[str]) -> Callable[..., Any]:
    def function(x: Any, *rest: Any, **keywords: Any) -> Any:
        for each in rest:
            if isinstance(each, np.ndarray):
                raise TypeError(f"{name}: Unsupported type {type(each)}")
        rest = tuple(each._host if isinstance(each, StrictArray) else each for each in rest)
        host = _array(name, x)
        y = getattr(np, name)(host, *rest, **_keywords(name, keywords, allowed))
        if isinstance(y, np.ndarray) and (y.base is not None or name in _KEEPING_ORDER):
            return x._view(y)
        return _wrap(y)

    return function


def _both(name: str, allowed: set[str]) -> Callable[..., Any]:
    def function(a: Any, b: Any, *rest: Any, **keywords: Any) -> Any:
        y = getattr(np, name)(_array(name, a), _array(name, b), *rest, **_keywords(name, keywords, allowed))
        return _wrap(y)

    return function


def _creation(name: str, allowed: set[str]) -> Callable[..., Any]:
    def function(*arguments: Any, **keywords: Any) -> Any:
        for each in arguments:
            if isinstance(each, (np.ndarray, StrictArray)):
                raise TypeError(f"{name}: Unsupported type {type(each)}")
        for each in (*arguments, *keywords.values()):
            if isinstance(each, int):
                _operand(name, each)
        return StrictArray(getattr(np, name)(*arguments, **_keywords(name, keywords, allowed)))

    return function


def _joining(name: str, allowed: set[str]) -> Callable[..., Any]:
    def function(arrays: Any, *axis: Any, **keywords: Any) -> Any:
        hosts = [_array(name, x) for x in arrays]
        return _wrap(getattr(np, name)(hosts, *axis, **_keywords(name, keywords, allowed)))

    return function


def _where(condition: Any, *branches: Any) -> Any:
    mask = _array("where", condition)
    if not branches:
        return _wrap(np.nonzero(mask))
    a, b = branches
    return _wrap(np.where(mask, _operand("where", a), _operand("where", b)))


def _einsum(subscripts: str, *arrays: Any, **keywords: Any) -> Any:
    if not isinstance(subscripts, str):
        raise TypeError("einsum: the strict backend takes subscripts as a string")
    hosts = [_array("einsum", x) for x in arrays]
    return _wrap(np.einsum(subscripts, *hosts, **_keywords("einsum", keywords, {"dtype", "optimize"})).copy())


def _asarray(a: Any, dtype: Any = None, order: str = "K") -> StrictArray:
    """From a StrictArray, a NumPy array or nested lists: this transfer is explicit, so it is allowed."""
    if isinstance(a, StrictArray):
        return a if dtype is None or np.dtype(dtype) == a.dtype else a.astype(dtype)
    if _noting.get() is not None:
        raise RuntimeError("an array was copied from the host, which breaks CUDA graph capture")
    return StrictArray(np.array(a, dtype=dtype, order=order))  # type: ignore[call-overload]


def _make_array(a: Any, dtype: Any = None, copy: bool = True, order: str = "K") -> StrictArray:
    return StrictArray(np.array(a._host if isinstance(a, StrictArray) else a, dtype=dtype, order=order))  # type: ignore[call-overload]


def _as_strided(x: Any, shape: Any = None, strides: Any = None) -> StrictArray:
    return x._view(np.lib.stride_tricks.as_strided(_array("as_strided", x), shape, strides))


def _copyto(dst: Any, src: Any) -> None:
    np.copyto(_array("copyto", dst), _operand("copyto", src))


class Namespace:
    """Named functions and nothing else; AttributeError says where to look."""

    def __init__(self, name: str, members: dict[str, Any]) -> None:
        self.__name__ = name
        vars(self).update(members)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"{self.__name__} has no {name!r}: CuPy lacks it, or tests/strict.py does not list it yet")


strict_xp = Namespace(
    "strict_xp",
    {
        **{name: _Ufunc(name) for name in _UFUNCS.split()},
        **{name: _UfuncAt(name) for name in _UFUNCS_WITH_AT},
        **{name: _first(name, allowed) for name, allowed in _KEYWORDS.items()},
        **{name: _both(name, allowed) for name, allowed in _PAIRS.items()},
        **{name: _creation(name, allowed) for name, allowed in _CREATION.items()},
        **{name: getattr(np, name) for name in _CONSTANTS.split()},
        "ndarray": StrictArray,
        "concatenate": _joining("concatenate", {"axis", "out", "dtype"}),
        "stack": _joining("stack", {"axis", "out", "dtype"}),
        "where": _where,
        "einsum": _einsum,
        "asarray": _asarray,
        "array": _make_array,
        "copyto": _copyto,
        "lib": Namespace("strict_xp.lib", {"stride_tricks": Namespace("stride_tricks", {"as_strided": _as_strided})}),
    },
)


def _reflected(name: str) -> tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]]:
    ufunc = _both("matmul", {"out", "dtype"}) if name == "matmul" else _Ufunc(name)

    def forward(self: StrictArray, other: Any) -> Any:
        return ufunc(self, other)

    def reverse(self: StrictArray, other: Any) -> Any:
        return ufunc(other, self)

    def in_place(self: StrictArray, other: Any) -> Any:
        ufunc(self, other, out=self)
        return self

    return forward, reverse, in_place


for _symbol, _name in {
    "add": "add", "sub": "subtract", "mul": "multiply", "truediv": "divide", "floordiv": "floor_divide",
    "mod": "remainder", "pow": "power", "matmul": "matmul", "and": "bitwise_and", "or": "bitwise_or",
    "xor": "bitwise_xor", "lshift": "left_shift", "rshift": "right_shift",
}.items():  # fmt: skip
    for _prefix, _method in zip(("", "r", "i"), _reflected(_name), strict=True):
        setattr(StrictArray, f"__{_prefix}{_symbol}__", _method)
for _symbol, _name in {
    "lt": "less", "le": "less_equal", "gt": "greater", "ge": "greater_equal", "eq": "equal", "ne": "not_equal",
}.items():  # fmt: skip
    setattr(StrictArray, f"__{_symbol}__", _reflected(_name)[0])
for _symbol, _name in {"neg": "negative", "pos": "positive", "abs": "absolute", "invert": "invert"}.items():
    setattr(StrictArray, f"__{_symbol}__", lambda self, _name=_name: _Ufunc(_name)(self))
for _name in ("sum", "prod", "mean", "max", "min", "any", "all", "var", "std", "argmax", "argmin", "cumsum", "clip",
              "repeat", "take", "dot", "diagonal", "argsort"):  # fmt: skip
    setattr(StrictArray, _name, getattr(strict_xp, _name))


# Graphs


@contextmanager
def with_graphs() -> Iterator[None]:
    """Within this block the backend can make graphs of its work."""
    token = _graphs_offered.set(True)
    try:
        yield
    finally:
        _graphs_offered.reset(token)


class StrictGraph:
    """Calls that are made again, each with its result in the same memory.

    What it and graphs that are made after it compute may lie in the memory of its temporary arrays.
    """

    def __init__(self, calls: list[Any], others: "list[StrictGraph]") -> None:
        self.calls = calls
        self.others = others
        others.append(self)

    def launch(self) -> None:
        for graph in self.others[self.others.index(self) :]:
            for *_, made in graph.calls:
                _spoil(made)
        for function, arguments, keywords, made in self.calls:
            again = _arrays_in(function(*arguments, **keywords))
            for x, y in zip(made, again, strict=True):
                if x is not None:
                    np.copyto(x._host, y._host)


class StrictGraphs:
    """Makes graphs as a CUDA device does: while one is made nothing is computed, and nothing comes from the host."""

    def __init__(self) -> None:
        self.graphs: list[StrictGraph] = []
        self.is_aside = False

    @contextmanager
    def aside(self) -> Iterator[None]:
        self.is_aside = True
        try:
            yield
        finally:
            self.is_aside = False

    def begin(self) -> None:
        assert self.is_aside, "a graph is made on the default stream, or with memory that others use"
        assert _noting.get() is None
        _noting.set([])
        _reads_refused.set(True)

    def end(self) -> StrictGraph:
        calls = _noting.get()
        assert calls is not None
        self.abandon()
        return StrictGraph(calls, self.graphs)

    def abandon(self) -> None:
        _noting.set(None)
        _reads_refused.set(False)


def _arrays_in(x: Any) -> list[StrictArray]:
    if isinstance(x, (tuple, list)):
        return [array for each in x for array in _arrays_in(each)]
    return [x] if isinstance(x, StrictArray) else []


def _spoil(made: list[StrictArray | None]) -> None:
    for x in made:
        if x is not None:
            x._host.fill(np.nan if x.dtype.kind in "fc" else 1)


def _refuse_host(name: str, arguments: tuple[Any, ...]) -> None:
    """RuntimeError for a call that copies from the host, or waits to know how large its result is."""
    if name in ("asarray", "array") and not isinstance(arguments[0], StrictArray):
        raise RuntimeError(f"{name} copies from the host while a graph is made")
    index = arguments[1] if name == "__getitem__" else ()
    masked = any(isinstance(part, StrictArray) and part.dtype.kind == "b" for part in _parts(index))
    if masked or name in ("nonzero", "argwhere") or (name == "where" and len(arguments) == 1):
        raise RuntimeError(f"{name} waits for values, on which its shape depends, while a graph is made")


def _parts(index: Any) -> tuple[Any, ...]:
    return index if isinstance(index, tuple) else (index,)


def _noted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which while a graph is made leaves what it is given as it is, and rubbish in its results."""

    @functools.wraps(function)
    def call(*arguments: Any, **keywords: Any) -> Any:
        calls = _noting.get()
        if calls is None:
            return function(*arguments, **keywords)
        _refuse_host(name, arguments)
        given = _arrays_in([*arguments, *keywords.values()])
        before = [(x, x._host.copy()) for x in given if x._host.flags.writeable]
        token = _noting.set(None)  # what it calls is a part of it
        try:
            y = function(*arguments, **keywords)
        finally:
            _noting.reset(token)
        for x, values in before:
            np.copyto(x._host, values)
        made = [
            None if not x.size or any(np.may_share_memory(x._host, g._host) for g in given) else x
            for x in _arrays_in(y)
        ]
        _spoil(made)
        calls.append((function, arguments, keywords, made))
        return y

    return call


for _name, _member in vars(strict_xp).copy().items():
    if callable(_member) and not isinstance(_member, (type, _Ufunc)) and _name not in _CONSTANTS:
        setattr(strict_xp, _name, _noted(_name, _member))
_Ufunc.__call__ = _noted("ufunc", _Ufunc.__call__)  # type: ignore[method-assign]
_UfuncAt.at = _noted("ufunc", _UfuncAt.at)  # type: ignore[method-assign]
for _name in ("__getitem__", "__setitem__", "astype", "reshape", "ravel", "copy", "fill", "__matmul__", "sum", "mean",
              "prod", "max", "min", "any", "all", "var", "std", "argmax", "argmin", "cumsum", "clip", "repeat", "take",
              "dot", "diagonal", "argsort"):  # fmt: skip
    setattr(StrictArray, _name, _noted(_name, getattr(StrictArray, _name)))


def _to_numpy(array: StrictArray) -> np.ndarray:
    if _noting.get() is not None:
        raise RuntimeError("an array was copied to the host while a graph was made")
    return array._host.copy(order="K")


def _from_numpy(array: np.ndarray, index: int) -> StrictArray:
    if _noting.get() is not None:
        raise RuntimeError("an array was copied from the host while a graph was made")
    with on_device(index):
        return StrictArray(array.astype(array.dtype.newbyteorder("=")))


STRICT = Backend(
    "strict",
    strict_xp,
    StrictArray,
    _from_numpy,
    to_numpy=_to_numpy,
    index_of=lambda array: array.device,
    selected=on_device,
    count=2,
    graphs=lambda index: StrictGraphs() if _graphs_offered.get() else None,  # type: ignore[arg-type, return-value]
)
register(STRICT)
