"""The tensor, the op convention and reverse-mode differentiation.

A `Tensor` is an array that remembers how it was made: the op and its inputs. An `Op` says what it computes (`forward`,
on arrays) and how a gradient flows back (`backward`, on tensors, so that a gradient can be differentiated again).
Differentiation is one walk over the recorded graph from the output back to its inputs (`_backpropagate`).

Tensors refer only to what they were made from, never to what was made from them, so a graph has no reference cycles
and is freed the moment its output is dropped. (The exception is ``backward(create_graph=True)``, whose ``.grad`` leads
back to the leaf; `grad` has no such cycle.)
"""

import itertools
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from inspect import get_annotations
from typing import Any, ClassVar, Union

import numpy as np

from . import anomaly
from .backend import NUMPY, Array, Backend, backend_of, backend_of_type, default_device, find_kernel, transfer
from .shapes import Operand, Shape, ShapeError, Signature, broadcast_shape, integer, normalize_axes

Number = int | float
TensorLike = Union["Tensor", Array, Number]
Hook = Callable[["Tensor"], "Tensor | None"]
Gradient = Union["Tensor", Callable[[], "Tensor"], None]

_recording: ContextVar[bool] = ContextVar("recording", default=True)  # per thread and per async task
_accumulating = threading.Lock()  # adding to .grad is reading and writing


@contextmanager
def no_grad() -> Iterator[None]:
    """Within this block (or function, as a decorator) nothing is recorded and results require no gradient.

    >>> x = Tensor(2.0, requires_grad=True)
    >>> with no_grad():
    ...     (x * x).requires_grad
    False
    """
    with _recording_set(False):
        yield


@contextmanager
def _recording_set(on: bool) -> Iterator[None]:
    token = _recording.set(on)
    try:
        yield
    finally:
        _recording.reset(token)


class Tensor:
    """An array that can be differentiated with respect to.

    ``data`` is anything that NumPy turns into numbers. Python numbers, also in lists, become float32; arrays keep
    their dtype and are not copied. ``device`` is "cpu" or "cuda" (default: where the array lies, or
    `tinygrad_lenet.backend.use`). TypeError for what is not numbers; ValueError for a ragged list, or for
    ``requires_grad`` on anything but floats. Writing into ``.data`` between forward and backward makes gradients wrong.

    >>> x = Tensor([1.0, 2.0], requires_grad=True)
    >>> (x * x).sum().backward()
    >>> x.grad
    Tensor([2., 4.])
    """

    __slots__ = ("__weakref__", "data", "grad", "hooks", "inputs", "op", "origin", "requires_grad")
    __array_ufunc__ = None  # NumPy arrays on the left of an operator leave the work to Tensor's reflected operator

    data: Array
    requires_grad: bool
    grad: "Tensor | None"
    op: "Op | None"  # what made this tensor; None for a leaf
    inputs: "tuple[Tensor | Number, ...] | None"  # what op was applied to; None once the graph has been freed
    hooks: "dict[int, Hook] | None"  # called with the gradient, see register_hook
    origin: anomaly.Origin | None  # where op was called, recorded within detect_anomaly

    def __init__(self, data: Any, requires_grad: bool = False, dtype: Any = None, device: str | None = None) -> None:
        array = data.data if isinstance(data, Tensor) else data
        if backend_of_type(type(array)) is None:
            array = _host_array(array)
            device = default_device() if device is None else device
        elif device is None and type(array) is np.ndarray:
            device = default_device()
        _check_dtype("Tensor", array.dtype)
        if dtype is not None:
            _check_dtype("Tensor", np.dtype(dtype))
            array = array.astype(dtype, copy=False)
        if requires_grad and array.dtype.kind != "f":
            raise ValueError(f"Tensor: requires_grad needs floating-point data, not {array.dtype}; set dtype='float32'")
        self.data = array if device is None else transfer(array, device)
        self.requires_grad = requires_grad
        self.grad = None
        self.op = None
        self.inputs = ()
        self.hooks = None
        self.origin = None

    @property
    def shape(self) -> Shape:
        return self.data.shape

    @property
    def ndim(self) -> int:
        return self.data.ndim

    @property
    def size(self) -> int:
        return self.data.size

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.data.dtype

    @property
    def device(self) -> str:
        return backend_of(self.data).device_of(self.data)

    def numpy(self) -> np.ndarray:
        """The values as a NumPy array: the tensor's own memory on the CPU, a copy from a GPU."""
        return backend_of(self.data).to_numpy(self.data)

    def item(self) -> float | int | bool:
        """The value of a one-element tensor as a Python number; ValueError if it has more or fewer elements."""
        if self.size != 1:
            raise ValueError(f"item: the tensor has shape {self.shape}; only one element can become a Python number")
        return self.data.item()

    def detach(self) -> "Tensor":
        """A tensor on the same memory that is cut off from the graph."""
        return wrap(self.data)

    def to(self, device: str) -> "Tensor":
        """The tensor on ``device``; the gradient finds its way back."""
        return _op("transfer", device)(self)

    def copy(self) -> "Tensor":
        """The same values in memory of their own."""
        return _op("copy")(self)

    def zero_grad(self) -> None:
        """Forget the gradient."""
        self.grad = None

    def backward(
        self, gradient: TensorLike | None = None, retain_graph: bool = False, create_graph: bool = False
    ) -> None:
        """Add d(self)/d(leaf) to ``.grad`` of every leaf that requires it.

        ``gradient`` is d(loss)/d(self), of self's shape; it may be left out if self has one element. The graph is
        freed unless ``retain_graph``; with ``create_graph`` the gradients can themselves be differentiated.
        ValueError if self requires no gradient, if ``gradient`` is missing or misshapen, or if the graph was freed.
        """
        gy = _seed("backward", self, gradient)
        found = _backpropagate(self, gy, None, retain_graph or create_graph, create_graph)
        taken = {id(gy.data)}
        with _accumulating:
            for leaf, gx in found:
                if leaf.grad is not None:
                    gx = leaf.grad + gx
                elif gx.data.base is not None or id(gx.data) in taken:
                    gx = gx.copy()  # .grad may be written to, so no two of them share memory
                leaf.grad = gx
                taken.add(id(gx.data))

    def register_hook(self, hook: Hook) -> "HookHandle":
        """Call ``hook(gradient)`` in every backward pass, once this tensor's gradient is complete.

        What it returns, unless None, takes the gradient's place. ``handle.remove()`` ends it. ValueError if the tensor
        requires no gradient.

        >>> x = Tensor(3.0, requires_grad=True)
        >>> handle = x.register_hook(lambda gx: 10.0 * gx)
        >>> (x * x).backward()
        >>> x.grad
        Tensor(60.)
        """
        if not self.requires_grad:
            raise ValueError("register_hook: this tensor requires no gradient, so the hook would never be called")
        self.hooks = {} if self.hooks is None else self.hooks
        return HookHandle(self.hooks, hook)

    # Operators. Each names its op; the ops themselves stand in ops/, below this file, and are found in the registry.

    def __add__(self, other: TensorLike) -> "Tensor":
        return _op("add")(self, other)

    def __radd__(self, other: TensorLike) -> "Tensor":
        return _op("add")(other, self)

    def __sub__(self, other: TensorLike) -> "Tensor":
        return _op("subtract")(self, other)

    def __rsub__(self, other: TensorLike) -> "Tensor":
        return _op("subtract")(other, self)

    def __mul__(self, other: TensorLike) -> "Tensor":
        return _op("multiply")(self, other)

    def __rmul__(self, other: TensorLike) -> "Tensor":
        return _op("multiply")(other, self)

    def __truediv__(self, other: TensorLike) -> "Tensor":
        return _op("divide")(self, other)

    def __rtruediv__(self, other: TensorLike) -> "Tensor":
        return _op("divide")(other, self)

    def __pow__(self, other: TensorLike) -> "Tensor":
        return _op("power")(self, other)

    def __rpow__(self, other: TensorLike) -> "Tensor":
        return _op("power")(other, self)

    def __matmul__(self, other: TensorLike) -> "Tensor":
        return _matmul(self, _as_tensor(other))

    def __rmatmul__(self, other: TensorLike) -> "Tensor":
        return _matmul(_as_tensor(other), self)

    def __pos__(self) -> "Tensor":
        return self

    def __neg__(self) -> "Tensor":
        return _op("negative")(self)

    def __abs__(self) -> "Tensor":
        return _op("absolute")(self)

    def __getitem__(self, index: Any) -> "Tensor":
        return _op("getitem", index)(self)

    # Comparisons return boolean tensors, which have no gradient; & | ~ combine them.

    def __eq__(self, other: object) -> "Tensor":  # type: ignore[override]
        return _compare("equal", self, other) if _is_numbers(other) else NotImplemented

    def __ne__(self, other: object) -> "Tensor":  # type: ignore[override]
        return _compare("not_equal", self, other) if _is_numbers(other) else NotImplemented

    def __lt__(self, other: TensorLike) -> "Tensor":
        return _compare("less", self, other)

    def __le__(self, other: TensorLike) -> "Tensor":
        return _compare("less_equal", self, other)

    def __gt__(self, other: TensorLike) -> "Tensor":
        return _compare("greater", self, other)

    def __ge__(self, other: TensorLike) -> "Tensor":
        return _compare("greater_equal", self, other)

    def __and__(self, other: TensorLike) -> "Tensor":
        return _compare("bitwise_and", self, other)

    def __or__(self, other: TensorLike) -> "Tensor":
        return _compare("bitwise_or", self, other)

    __rand__ = __and__
    __ror__ = __or__

    def __invert__(self) -> "Tensor":
        if self.dtype.kind != "b":
            raise TypeError(f"invert: ~ negates booleans, not {self.dtype}; compare first, as in ~(x > 0)")
        return wrap(~self.data)

    __hash__ = object.__hash__  # by identity: == compares elements

    # Reductions, with NumPy's names and arguments. axis: an integer, a tuple of integers, or None for all.

    def sum(self, axis: int | Sequence[int] | None = None, keepdims: bool = False) -> "Tensor":
        return _op("sum", axis, keepdims)(self)

    def mean(self, axis: int | Sequence[int] | None = None, keepdims: bool = False) -> "Tensor":
        return self.sum(axis, keepdims) / _count("mean", self, axis)

    def var(self, axis: int | Sequence[int] | None = None, keepdims: bool = False) -> "Tensor":
        """The mean squared distance from the mean (NumPy's ddof=0)."""
        difference = self - self.mean(axis, keepdims=True)
        return (difference * difference).mean(axis, keepdims)

    def max(self, axis: int | Sequence[int] | None = None, keepdims: bool = False) -> "Tensor":
        """The largest element; tied elements share the gradient equally."""
        return _op("max", axis, keepdims)(self)

    def min(self, axis: int | Sequence[int] | None = None, keepdims: bool = False) -> "Tensor":
        """The smallest element; tied elements share the gradient equally."""
        return _op("min", axis, keepdims)(self)

    def argmax(self, axis: int | None = None) -> "Tensor":
        """The index of the first largest element; integers, without gradient."""
        return wrap(self.data.argmax(_index_axis("argmax", self, axis)))

    def argmin(self, axis: int | None = None) -> "Tensor":
        """The index of the first smallest element; integers, without gradient."""
        return wrap(self.data.argmin(_index_axis("argmin", self, axis)))

    # Shapes

    def reshape(self, *shape: int | Sequence[int]) -> "Tensor":
        """The same elements in another shape; one axis may be -1."""
        return _op("reshape", _flat(shape))(self)

    def transpose(self, *axes: int | Sequence[int]) -> "Tensor":
        """The axes in another order; reversed if none is given."""
        order = _flat(axes) if axes else tuple(range(self.ndim))[::-1]
        return _op("transpose", order)(self)

    @property
    def T(self) -> "Tensor":
        return self.transpose()

    def squeeze(self, axis: int | Sequence[int] | None = None) -> "Tensor":
        """Without the axes of size 1, or without those named; ValueError if a named one has another size."""
        drop = normalize_axes("squeeze", axis, self.ndim)
        if axis is None:
            drop = tuple(a for a in drop if self.shape[a] == 1)
        for a in drop:
            if self.shape[a] != 1:
                raise ValueError(f"squeeze: axis {a} has size {self.shape[a]}; only an axis of size 1 can be dropped")
        return self.reshape(tuple(size for a, size in enumerate(self.shape) if a not in drop))

    def expand_dims(self, axis: int | Sequence[int]) -> "Tensor":
        """With new axes of size 1 at the places ``axis`` of the result."""
        ndim = self.ndim + (len(axis) if isinstance(axis, (tuple, list)) else 1)
        new = normalize_axes("expand_dims", axis, ndim)
        sizes = iter(self.shape)
        return self.reshape(tuple(1 if a in new else next(sizes) for a in range(ndim)))

    def broadcast_to(self, shape: int | Sequence[int]) -> "Tensor":
        """Repeated along new axes and axes of size 1 until it has ``shape``."""
        return _op("broadcast_to", tuple(shape) if isinstance(shape, (tuple, list)) else (shape,))(self)

    def astype(self, dtype: Any) -> "Tensor":
        """The values in another dtype; the gradient comes back in this one."""
        _check_dtype("astype", np.dtype(dtype))
        return _op("astype", np.dtype(dtype).name)(self)

    # Elementwise functions

    def exp(self) -> "Tensor":
        return _op("exp")(self)

    def log(self) -> "Tensor":
        return _op("log")(self)

    def sqrt(self) -> "Tensor":
        return _op("sqrt")(self)

    def tanh(self) -> "Tensor":
        return _op("tanh")(self)

    def sigmoid(self) -> "Tensor":
        return _op("sigmoid")(self)

    def relu(self) -> "Tensor":
        return _op("relu")(self)

    def softmax(self, axis: int = -1) -> "Tensor":
        return _op("softmax", axis)(self)

    def log_softmax(self, axis: int = -1) -> "Tensor":
        return _op("log_softmax", axis)(self)

    def logsumexp(self, axis: int | Sequence[int] | None = None, keepdims: bool = False) -> "Tensor":
        return _op("logsumexp", axis, keepdims)(self)

    # Python's protocols

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if type(self.data) is not np.ndarray:
            raise TypeError(f"a tensor on {self.device!r} does not become a NumPy array by itself; use .numpy()")
        return np.array(self.data, dtype=dtype, copy=copy)

    def __len__(self) -> int:
        if not self.ndim:
            raise TypeError("a tensor without axes has no length")
        return self.shape[0]

    def __iter__(self) -> Iterator["Tensor"]:
        return (self[i] for i in range(len(self)))

    def __bool__(self) -> bool:
        return bool(self.item())

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if spec else repr(self)

    def __repr__(self) -> str:
        values = np.array2string(self.numpy(), separator=", ", prefix="Tensor(")
        device = "" if self.device == "cpu" else f", device={self.device!r}"
        dtype = "" if self.dtype in (np.float32, np.bool_) else f", dtype={self.dtype.name}"
        return f"Tensor({values}{dtype}{device}{', requires_grad=True' if self.requires_grad else ''})"


class HookHandle:
    """A hook that was registered; ``remove()`` takes it away."""

    _keys = itertools.count()  # never used again, so that a handle cannot remove a later hook

    def __init__(self, hooks: dict[int, Any], hook: Callable[..., Any]) -> None:
        self._hooks = hooks
        self._key = next(self._keys)
        hooks[self._key] = hook

    def remove(self) -> None:
        """Take the hook away; a second time does nothing."""
        self._hooks.pop(self._key, None)


def _check_dtype(op: str, dtype: np.dtype[Any]) -> None:
    """Refuse numbers that are not real, and what is no number."""
    if dtype.kind not in "fiub":
        raise TypeError(f"{op}: dtype {dtype} is not a real number; expected floats, integers or booleans")


def _host_array(data: Any) -> np.ndarray:
    """Python numbers, lists of them, NumPy scalars and anything with ``__array__`` as a NumPy array."""
    if isinstance(data, (list, tuple)) and any(isinstance(each, Tensor) for each in data):
        raise TypeError("Tensor: a list of tensors would lose their gradients; join them with functional.stack")
    try:
        array = np.asarray(data)
    except ValueError as error:
        raise ValueError(f"Tensor: the data is not a rectangular array of numbers ({error})") from None
    if type(array) is not np.ndarray:  # a subclass that asarray let through
        array = array.view(np.ndarray)
    if not hasattr(data, "dtype") and array.dtype.kind in "fiu":
        array = array.astype(np.float32)
    return array


def wrap(array: Array) -> Tensor:
    """A leaf tensor around an array of a known backend, without a copy or a check."""
    tensor = Tensor.__new__(Tensor)
    tensor.data = array if isinstance(array, np.ndarray) or backend_of_type(type(array)) else np.asarray(array)
    tensor.requires_grad = False
    tensor.grad = None
    tensor.op = None
    tensor.inputs = ()
    tensor.hooks = None
    tensor.origin = None
    return tensor


def _as_tensor(x: Any) -> Tensor:
    return x if isinstance(x, Tensor) else Tensor(x)


def _operand(x: Any) -> Tensor | Number:
    """An op's input: a tensor, or a number, which goes with any device; a Python number takes its dtype from others."""
    return x if isinstance(x, (Tensor, np.generic)) or type(x) in (int, float, bool) else Tensor(x)


def _is_numbers(x: object) -> bool:
    """Whether x can be compared with a tensor element by element: a tensor, a number or an array or list of them."""
    return isinstance(x, (Tensor, int, float, list, tuple)) or hasattr(x, "dtype")


def _flat(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """The tuple that was given either as one sequence or as separate arguments."""
    return tuple(values[0]) if len(values) == 1 and isinstance(values[0], (tuple, list)) else values


def _count(op: str, x: Tensor, axis: int | Sequence[int] | None) -> int:
    """How many elements a reduction over ``axis`` joins into one."""
    count = 1
    for a in normalize_axes(op, axis, x.ndim):
        count *= x.shape[a]
    return count


def _index_axis(op: str, x: Tensor, axis: int | None) -> int | None:
    """The axis that argmax or argmin looks along, once it is known to exist and not to be empty."""
    axes = normalize_axes(op, axis if axis is None else integer(op, "axis", axis, minimum=-x.ndim), x.ndim)
    if not all(x.shape[a] for a in axes):
        raise ShapeError(f"{op}: the tensor has shape {x.shape}; expected at least one element along the axis")
    return None if axis is None else axes[0]


def _matmul(a: Tensor, b: Tensor) -> Tensor:
    """a @ b by NumPy's rule: an operand with one axis is a row on the left and a column on the right."""
    y = _op("matmul")(a.expand_dims(0) if a.ndim == 1 else a, b.expand_dims(1) if b.ndim == 1 else b)
    drop = tuple(axis for axis, operand in ((-2, a), (-1, b)) if operand.ndim == 1)
    return y.squeeze(drop) if drop else y


def _compare(name: str, a: Tensor, b: Any) -> Tensor:
    operand = _operand(b)
    other = operand.data if isinstance(operand, Tensor) else operand
    broadcast_shape(name, [a.shape, getattr(other, "shape", ())])
    backend = backend_of(a.data, other)
    if name.startswith("bitwise") and not a.dtype.kind == getattr(other, "dtype", np.dtype(type(other))).kind == "b":
        raise TypeError(f"{name}: & and | combine booleans, not {a.dtype}; compare first, as in (x > 0) & (x < 1)")
    with backend.current(a.data):
        return wrap(getattr(backend.xp, name)(a.data, other))


@dataclass(frozen=True)
class Domain:
    """The values of an input on which an op's tests evaluate it.

    ``kinks`` are points where the derivative jumps; drawn values keep away from them. Inputs that are ``distinct``
    get values that all differ clearly, within an input and between inputs, so that a maximum has no ties.
    ``kind`` is "real", or what has no gradient: "boolean", or "constant" for numbers that only select.
    """

    low: float = -2.0
    high: float = 2.0
    kinks: tuple[float, ...] = ()
    distinct: bool = False
    kind: str = "real"


REAL = Domain()
POSITIVE = Domain(low=0.3)


class Op:
    """One differentiable function: the formula, its derivative, its shapes and where it can be tested, in one place.

    A subclass has a docstring that states the forward formula, the derivative and what happens at ties and kinks; a
    ``signature`` (see `tinygrad_lenet.shapes`); ``domains``, the values to test each input on; ``forward`` and
    ``backward``. Parameters are fields of a dataclass; ``parameters`` lists values to test each with, ``sizes`` the
    sizes to test an axis with, or, where parameters depend on shapes, ``cases`` lists (shapes, parameters) to test.
    Defining the class registers it; TypeError if something is missing.
    """

    signature: ClassVar[str]
    domains: ClassVar[dict[str, Domain]]
    parameters: ClassVar[dict[str, tuple[Any, ...]]] = {}
    sizes: ClassVar[dict[str, Sequence[int]]] = {}
    cases: ClassVar[tuple[tuple[tuple[Shape, ...], dict[str, Any]], ...]] = ()
    curved: ClassVar[bool] = False  # whether `curvature` keeps the op's own second derivative, as losses do

    name: ClassVar[str]
    _parsed: ClassVar[Signature]
    _divisors: ClassVar[tuple[str, ...]]

    def __init_subclass__(cls) -> None:
        missing = [
            word
            for word in ("__doc__", "signature", "domains", "forward", "backward")
            if not (word == "__doc__" and sys.flags.optimize > 1)  # python -OO drops docstrings
            if not cls.__dict__.get(word) and getattr(cls, word, None) in (None, getattr(Op, word, None))
        ]
        if missing:
            raise TypeError(f"op {cls.__name__} lacks {', '.join(missing).replace('__doc__', 'a docstring')}")
        cls._parsed = parsed = Signature.parse(cls.signature)
        cls.name = parsed.op
        cls._divisors = tuple({axis.partition("/")[2] for x in parsed.inputs for axis in x.axes if "/" in axis})
        fields = set(get_annotations(cls))
        tested = set(cls.parameters).union(*(case[1] for case in cls.cases))
        if fields != tested:
            raise TypeError(f"op {cls.__name__}: no test values are given for parameter {', '.join(fields ^ tested)}")
        if set(cls.domains) != {x.name for x in parsed.inputs}:
            raise TypeError(f"op {cls.__name__}: domains are for {sorted(cls.domains)}, inputs are {cls.signature}")
        if cls.name in REGISTRY and REGISTRY[cls.name].__module__ != cls.__module__:
            raise TypeError(f"op {cls.__name__}: the name {cls.name!r} is taken by {REGISTRY[cls.name]}")
        REGISTRY[cls.name] = cls

    def __repr__(self) -> str:  # of an op with parameters, dataclass writes it
        return f"{type(self).__name__}()"

    def check(self, shapes: tuple[Shape, ...]) -> dict[str, int]:
        """Refuse shapes that do not fit, before anything is computed; return the size of each axis."""
        divisors = tuple([(name, getattr(self, name)) for name in self._divisors])
        return _bind(self._parsed, shapes, divisors).copy()

    def forward(self, xp: Any, *arrays: Array) -> Array:
        """Compute the output from arrays of namespace ``xp``."""
        raise TypeError(f"op {type(self).__name__} lacks forward")

    def backward(self, gy: Tensor, y: Tensor, /, *inputs: Any) -> Gradient | tuple[Gradient, ...]:
        """The gradient for each input, given d(loss)/dy: a tensor, None, or a function that is called if needed."""
        raise TypeError(f"op {type(self).__name__} lacks backward")

    def curvature(self, hy: Tensor, gy: Tensor, y: Tensor, /, *inputs: Any) -> Gradient | tuple[Gradient, ...]:
        """For each input x_j, sum_i hy_i (dy_i/dx_j)^2; a ``curved`` op adds gy_i d2y_i/dx_j2, where that is positive.

        An op need not have this second rule; see the function `curvature`.
        """
        raise ValueError(f"curvature: op {self.name} has no curvature rule")

    def _compute(self, backend: Backend, arrays: list[Array]) -> Array:
        """The output, by a faster kernel if there is one and it covers these inputs."""
        kernel = find_kernel(backend.name, self.name)
        y = NotImplemented if kernel is None else kernel(self, backend.xp, *arrays)
        return self.forward(backend.xp, *arrays) if y is NotImplemented else y

    def __call__(self, *inputs: TensorLike) -> Tensor:
        """Check, compute and, if an input requires a gradient, record."""
        operands = tuple([_operand(x) for x in inputs])
        arrays = [x.data if isinstance(x, Tensor) else x for x in operands]
        backend = backend_of(*arrays)
        self.check(tuple([x.shape if isinstance(x, Tensor) else () for x in operands]))
        if backend is NUMPY:
            out = wrap(self._compute(backend, arrays))
        else:
            with backend.current(*arrays):
                out = wrap(self._compute(backend, arrays))
        if anomaly.watching.get():
            out.origin = anomaly.caller()
            names = [operand.name for operand in self._parsed.operands(len(operands))]
            anomaly.check_forward(self.name, names, arrays, out.data)
        if _recording.get() and out.data.dtype.kind == "f":
            for x in operands:
                if isinstance(x, Tensor) and x.requires_grad:
                    out.requires_grad = True
                    out.op = self
                    out.inputs = operands
                    break
        return out


REGISTRY: dict[str, type[Op]] = {}


def _op(name: str, *parameters: Any) -> Op:
    return REGISTRY[name](*parameters)


@lru_cache(maxsize=4096)
def _bind(signature: Signature, shapes: tuple[Shape, ...], divisors: tuple[tuple[str, int], ...]) -> dict[str, int]:
    return signature.bind(shapes, dict(divisors))


def grad(
    output: Tensor,
    inputs: Tensor | Sequence[Tensor],
    grad_output: TensorLike | None = None,
    create_graph: bool = False,
) -> tuple[Tensor, ...]:
    """d(output)/d(input) for each of ``inputs``, without touching any ``.grad``.

    ``grad_output`` is d(loss)/d(output), of output's shape; it may be left out if output has one element. The graph
    is freed unless ``create_graph``, which makes the gradients differentiable. ValueError if an input requires no
    gradient or was not used, or for the reasons that `Tensor.backward` has.

    >>> x = Tensor(3.0, requires_grad=True)
    >>> (gx,) = grad(x * x * x, [x], create_graph=True)
    >>> grad(gx, [x])
    (Tensor(18.),)
    """
    targets = _targets("grad", output, inputs)
    gy = _seed("grad", output, grad_output)
    found = {id(x): gx for x, gx in _backpropagate(output, gy, targets, create_graph, create_graph)}
    return tuple(found[id(x)] for x in targets)


def curvature(loss: Tensor, inputs: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The diagonal Gauss-Newton approximation of d2(loss)/d(input)2 for each of ``inputs``, never negative.

    This is the backward pass with every local derivative squared: hx = sum of hy (dy/dx)^2 over the uses y of x. It
    begins at the losses (`functional.cross_entropy`, `mse_loss`, `penalty_loss`, `rbf`), which add their own second
    derivative times their gradient; that of all other ops is left out, and so is what lies off the diagonal (LeCun et
    al., 1998, Eqs. 22-27). A mean over N samples gives the mean of their curvatures. Hooks are not called, the graph is
    kept, and the results cannot be differentiated.

    ValueError if ``loss`` has more than one element, or was computed by an op without a curvature rule, or by none with
    a second derivative; and for the reasons that `grad` has.

    >>> from tinygrad_lenet.functional import mse_loss
    >>> x = Tensor([3.0, -1.0], requires_grad=True)
    >>> curvature(mse_loss(5.0 * x, [0.0, 0.0], reduction="sum"), x)  # d2/dx2 of 25 x^2
    (Tensor([50., 50.]),)
    """
    targets = _targets("curvature", loss, inputs)
    seed = _seed("curvature", loss, None)
    order, leading = _sort("curvature", loss, targets)
    ops = [y.op for y in order if y.op is not None and any(id(x) in leading for x in y.inputs or ())]
    for op in ops:
        if type(op).curvature is Op.curvature:
            raise ValueError(f"curvature: op {op.name} has no curvature rule; define `curvature` beside its `backward`")
    if not any(op.curved for op in ops):
        raise ValueError(
            "curvature: nothing on the way from the inputs is a loss, so that all curvatures would be 0; end with "
            "functional.cross_entropy, mse_loss or penalty_loss"
        )
    inner = {id(y) for y in order if y.op is not None}  # only these hand a gradient on
    wanted = {id(x) for x in targets}
    gradients, curvatures = {id(loss): seed}, {id(loss): 0.0 * seed}
    found = {}
    with _recording_set(False), anomaly.watch(False):
        while order:
            y = order.pop()
            hy = curvatures.pop(id(y))
            if id(y) in wanted:
                found[id(y)] = hy
            if y.op is None or not any(id(x) in leading for x in y.inputs or ()):
                continue
            gy, inputs_ = gradients.pop(id(y)), y.inputs or ()
            _accumulate(gradients, _input_gradients(y, inputs_, inner, False, y.op.backward, gy))
            _accumulate(curvatures, _input_gradients(y, inputs_, leading, False, y.op.curvature, hy, gy))
    return tuple(found[id(x)] for x in targets)


def _targets(caller: str, output: Any, inputs: Tensor | Sequence[Tensor]) -> list[Tensor]:
    """``inputs`` as a list of tensors that require a gradient; TypeError or ValueError otherwise."""
    if not isinstance(output, Tensor):
        raise TypeError(f"{caller}: output is {type(output).__name__}, not a Tensor")
    targets = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    for i, x in enumerate(targets):
        if not isinstance(x, Tensor):
            raise TypeError(f"{caller}: input {i} is {type(x).__name__}, not a Tensor")
        if not x.requires_grad:
            raise ValueError(f"{caller}: input {i}, of shape {x.shape}, does not require a gradient")
    return targets


def _seed(caller: str, output: Tensor, gradient: TensorLike | None) -> Tensor:
    """The gradient that a backward pass starts from; ValueError if there is none to start from."""
    if not output.requires_grad:
        raise ValueError(f"{caller}: the output does not require a gradient; no input with requires_grad led to it")
    if gradient is None:
        if output.size != 1:
            raise ValueError(
                f"{caller}: the output has shape {output.shape}; only one element can go without a gradient "
                "to start from: reduce it, with .sum() say, or pass one of that shape"
            )
        with backend_of(output.data).current(output.data):
            return wrap(backend_of(output.data).xp.ones_like(output.data))
    gy = gradient if isinstance(gradient, Tensor) else Tensor(gradient, device=output.device)
    backend_of(output.data, gy.data)
    if gy.shape != output.shape:
        raise ValueError(f"{caller}: the gradient has shape {gy.shape}; the output has {output.shape}")
    return gy if gy.dtype == output.dtype else gy.astype(output.dtype)


def _backpropagate(
    output: Tensor, gy: Tensor, targets: list[Tensor] | None, retain_graph: bool, create_graph: bool
) -> list[tuple[Tensor, Tensor]]:
    """The gradient of each target (default: each leaf that requires one), in the order in which they are reached."""
    order, leads_to_target = _sort("grad", output, targets)
    wanted = {id(x) for x in targets} if targets is not None else None
    pending = {id(output): gy}  # gradients of tensors that all their users have not yet been visited for
    found = []
    watched = anomaly.watching.get()  # then the gradients are checked, not each step on the way to them
    with _recording_set(create_graph), anomaly.watch(False):
        while order:
            y = order.pop()
            gy = pending.pop(id(y))
            if y.hooks:
                for hook in list(y.hooks.values()):
                    gy = _replaced(gy, hook(gy))
            if id(y) in wanted if wanted is not None else y.op is None:
                found.append((y, gy))
            if y.op is None or (wanted is not None and not any(id(x) in leads_to_target for x in y.inputs or ())):
                continue
            _accumulate(pending, _input_gradients(y, y.inputs or (), leads_to_target, watched, y.op.backward, gy))
            if not retain_graph:
                y.inputs = None
    return found


def _accumulate(pending: dict[int, Tensor], found: Iterable[tuple[Tensor, Tensor]]) -> None:
    for x, gx in found:
        known = pending.get(id(x))
        pending[id(x)] = gx if known is None else known + gx  # a new tensor: gx may be shared


def _sort(caller: str, output: Tensor, targets: list[Tensor] | None) -> tuple[list[Tensor], set[int]]:
    """The tensors that lead from the targets to the output, inputs before outputs, as a list and as a set of ids.

    An explicit stack, so that the depth of a graph is bounded by memory only.
    """
    goals = None if targets is None else {id(x) for x in targets}
    order: list[Tensor] = []
    leading: set[int] = set()
    visited: set[int] = set()
    stack: list[tuple[Tensor, bool]] = [(output, False)]
    while stack:
        y, inputs_done = stack.pop()
        if inputs_done:
            if goals is None or id(y) in goals or any(id(x) in leading for x in y.inputs or ()):
                leading.add(id(y))
                order.append(y)
        elif id(y) not in visited:
            visited.add(id(y))
            stack.append((y, True))
            if y.inputs is None:
                raise ValueError(
                    f"backward: the graph through {y.op.name if y.op else 'this tensor'} has been freed by an earlier "
                    "backward; pass retain_graph=True to that one, or compute the output again"
                )
            stack.extend([(x, False) for x in y.inputs if isinstance(x, Tensor) and x.requires_grad])
    for i, target in enumerate(targets or ()):
        if id(target) not in leading:
            raise ValueError(f"{caller}: input {i}, of shape {target.shape}, was not used to compute the output")
    return order, leading


def _input_gradients(
    y: Tensor,
    inputs: tuple[Tensor | Number, ...],
    wanted: set[int],
    watched: bool,
    rule: Callable[..., Gradient | tuple[Gradient, ...]],
    *flows: Tensor,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Each wanted input of the op that made y with what ``rule`` of that op makes of the gradients ``flows`` for it.

    It is checked and brought to the input's shape and dtype.
    """
    op = y.op
    assert op is not None
    try:
        gradients = rule(*flows, y, *inputs)
        if not isinstance(gradients, tuple):
            gradients = (gradients,)
        if len(gradients) != len(inputs):
            raise ValueError(f"{op.name}: {rule.__name__} returned {len(gradients)} gradients; expected {len(inputs)}")
        for operand, x, gradient in zip(op._parsed.operands(len(inputs)), inputs, gradients, strict=True):
            if isinstance(x, Tensor) and id(x) in wanted:
                gx = _fitted(op, rule.__name__, operand, gradient() if callable(gradient) else gradient, x, y)
                if watched:
                    anomaly.check_backward(op.name, operand.name, gx.data, y.origin)
                yield x, gx
    except Exception as error:
        if y.origin and not isinstance(error, anomaly.AnomalyError):
            error.add_note(f"The forward pass called {op.name} at {y.origin}")
        raise


def _fitted(op: Op, rule: str, operand: Operand, gx: Tensor | None, x: Tensor, y: Tensor) -> Tensor:
    """The gradient for one operand, checked and brought to the operand's shape and dtype."""
    if gx is None:
        raise ValueError(f"{op.name}: no gradient is defined for {operand.name}; detach() it if that is meant")
    if not isinstance(gx, Tensor):
        raise TypeError(f"{op.name}: {rule} returned {type(gx).__name__} for {operand.name}; expected a Tensor")
    if gx.shape != x.shape and operand.any_rank and gx.ndim >= x.ndim:
        gx = _unbroadcast(gx, x.shape)
    if gx.shape != x.shape or gx.dtype != y.dtype:
        raise ValueError(
            f"{op.name}: {rule} returned {gx.dtype} of shape {gx.shape} for {operand.name}; "
            f"expected {y.dtype} of shape {x.shape}"
        )
    return gx if gx.dtype == x.dtype else gx.astype(x.dtype)


def _replaced(gy: Tensor, answer: Tensor | None) -> Tensor:
    """The gradient, or what a hook gave in its place."""
    if answer is None:
        return gy
    if not isinstance(answer, Tensor) or answer.shape != gy.shape or answer.dtype != gy.dtype:
        found = f"{answer.dtype} of shape {answer.shape}" if isinstance(answer, Tensor) else type(answer).__name__
        raise ValueError(f"register_hook: the hook returned {found}; expected a Tensor, {gy.dtype} of shape {gy.shape}")
    return answer


def _unbroadcast(gx: Tensor, shape: Shape) -> Tensor:
    """The transpose of broadcasting: sum over the axes that an operand of ``shape`` was repeated along."""
    new = gx.ndim - len(shape)
    repeated = tuple(a for a in range(gx.ndim) if a < new or (shape[a - new] == 1 and gx.shape[a] != 1))
    summed = gx.sum(repeated, keepdims=True) if repeated else gx
    return summed.reshape(summed.shape[new:])
