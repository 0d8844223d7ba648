"""The tensor: an array with operators and methods, each of which applies the op of the same name.

The ops themselves are in ops/, which imports this file; they are found through the registry (`graph.op`).
"""

import itertools
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self

import numpy as np

from .backend import Array, backend_of, backend_of_type, default_device, is_writable, transfer
from .dlpack import exported, imported
from .graph import REGISTRY, Node, Path, backpropagate, indexing_op, mode, note_change, op
from .index import parse
from .shapes import Shape, ShapeError, integers, normalize_axes

Number = int | float
Axis = int | Sequence[int] | None

_BOOLEAN_UFUNCS = {"bitwise_and": "logical_and", "bitwise_or": "logical_or", "invert": "logical_not"}
numpy_functions: dict[str, Callable[..., Any]] = {}  # NumPy's functions on tensors by name; functional.py adds its own


class _Size(int):
    """A number of elements, which tells those who call it, as PyTorch's ``x.size(0)`` does, what to write."""

    __slots__ = ()

    def __call__(self, dim: int | None = None) -> int:
        wanted = "x.shape" if dim is None else f"x.shape[{dim}]"
        raise TypeError(f"size is the number of elements, as NumPy's; write {wanted} for a size along an axis")


class Tensor(Node):
    """An array for which gradients can be computed.

    ``data`` is anything that NumPy can convert to numbers. Without a ``dtype``, Python numbers, also in lists, become
    float32; arrays keep theirs. These are not copied unless they must move to ``device`` or change dtype or byte order.
    ``device`` is "cpu" or "cuda" (default: where the array is, or `tinygrad_lenet.backend.use`). TypeError for anything
    but numbers; ValueError for a ragged list, for a tensor that requires a gradient, since that would be lost, and for
    ``requires_grad`` on anything but floats. Operators such as ``t += 1`` and ``t[i] = 1`` never make a gradient wrong;
    writing into ``.data`` between forward and backward does, unnoticed.

    >>> x = Tensor([1.0, 2.0], requires_grad=True)
    >>> (x * x).sum().backward()
    >>> x.grad
    Tensor([2., 4.])
    """

    __slots__ = ("_grad", "data")

    data: Array
    _grad: "Tensor | None"
    hooks: "dict[int, Hook] | None"

    def __init__(self, data: Any, requires_grad: bool = False, dtype: Any = None, device: str | None = None) -> None:
        if isinstance(data, Tensor):
            if data.requires_grad:
                raise ValueError(
                    "Tensor: the data is a tensor that requires a gradient, which would be lost; detach() it first"
                )
            array = data.data
        else:
            array = data
        if backend_of_type(type(array)) is None:
            array = _host_array(array, usual=dtype is None)
            device = default_device() if device is None else device
        elif device is None and type(array) is np.ndarray:
            device = default_device()
        array = _well_formed(array)
        if dtype is not None:
            with backend_of(array).current(array):
                array = array.astype(real_dtype("Tensor", dtype), copy=False)
        _fill(self, array if device is None else transfer(array, device))
        self.requires_grad = requires_grad
        observer = mode.get().observer
        if observer is not None:
            observer.born(self)

    @property
    def shape(self) -> Shape:
        """The size of each axis."""
        return self.data.shape

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return self.data.ndim

    @property
    def size(self) -> int:
        """The number of elements."""
        return _Size(self.data.size)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of the elements."""
        return self.data.dtype

    @property
    def device(self) -> str:
        """Where the array is: "cpu", "cuda" or, for instance, "cuda:1"."""
        return backend_of(self.data).device_of(self.data)

    @property
    def requires_grad(self) -> bool:
        """Whether gradients are computed for this tensor; ValueError if it is set on anything but floats."""
        return self._requires_grad

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        if not isinstance(value, (bool, np.bool_)):
            raise TypeError(f"Tensor: requires_grad is {value!r}; expected True or False")
        if value and self.dtype.kind != "f":
            raise ValueError(
                f"Tensor: requires_grad needs floating-point data, not {self.dtype}; use astype('float32')"
            )
        if not value and self.op is not None:
            raise ValueError("Tensor: this tensor was computed from others that require a gradient; detach() it")
        self._requires_grad = bool(value)

    @property
    def grad(self) -> "Tensor | None":
        """The gradient that `backward` has accumulated, or None; it may be set to a tensor or None."""
        observer = mode.get().observer
        if observer is not None:
            observer.fetched(self)
        return self._grad

    @grad.setter
    def grad(self, value: "Tensor | None") -> None:
        if value is not None and not isinstance(value, Tensor):
            raise TypeError(f"grad: {value!r} is {type(value).__name__}; expected a Tensor or None")
        if value is not None and (value.shape != self.shape or value.dtype != self.dtype):
            raise ValueError(
                f"grad: the gradient is {value.dtype} of shape {value.shape}; expected {self.dtype} of {self.shape}"
            )
        _store(self, value)

    def numpy(self) -> np.ndarray:
        """The values as a NumPy array: the tensor's own memory on the CPU, a copy from a GPU."""
        _note_read("numpy", self)
        return backend_of(self.data).to_numpy(self.data)

    def item(self) -> float | int | bool:
        """The value of a one-element tensor as a Python number; ValueError if it has more or fewer elements."""
        if self.size != 1:
            raise ValueError(f"item: the tensor has shape {self.shape}; only one element can become a Python number")
        _note_read("item", self)
        return self.data.item()

    def detach(self) -> "Tensor":
        """A tensor that shares the memory but not the graph."""
        return wrap(self.data)

    def to(self, device: str) -> "Tensor":
        """The tensor on ``device``; its gradient comes back to this tensor's device."""
        return op("transfer", device)(self)

    def copy(self) -> "Tensor":
        """A tensor with the same values in its own memory."""
        return op("copy")(self)

    def zero_grad(self) -> None:
        """Drop the gradient."""
        _store(self, None)

    def backward(
        self, gradient: "TensorLike | None" = None, retain_graph: bool = False, create_graph: bool = False
    ) -> None:
        """Add d(self)/d(leaf) to the ``.grad`` of every leaf that requires a gradient.

        ``gradient`` is d(loss)/d(self), with self's shape; it may be left out if self has one element. The graph is
        freed unless ``retain_graph``; with ``create_graph`` the gradients can themselves be differentiated.
        ValueError if self requires no gradient, if ``gradient`` is missing or has another shape, if the graph was
        freed, or if a value in it was overwritten.
        """
        given = check_start("backward", self, gradient)
        path = Path(self, None)
        gy = start_of(self, given)
        taken = {id(gy.data)}
        for leaf, gx in backpropagate(path, self, gy, retain_graph or create_graph, create_graph):
            if gx.data.base is not None or id(gx.data) in taken:
                gx = gx.copy()  # .grad may be written to, so no two of them share memory
            taken.add(id(gx.data))
            _accumulate(leaf, gx)

    def register_hook(self, hook: "Hook") -> "HookHandle":
        """Call ``hook(gradient)`` in every backward pass, once this tensor's gradient is complete.

        If it returns anything but None, that replaces the gradient. ``handle.remove()`` removes the hook. ValueError if
        the tensor requires no gradient, TypeError if ``hook`` cannot be called.

        >>> x = Tensor(3.0, requires_grad=True)
        >>> handle = x.register_hook(lambda gx: 10.0 * gx)
        >>> (x * x).backward()
        >>> x.grad
        Tensor(60.)
        """
        if not self.requires_grad:
            raise ValueError("register_hook: this tensor requires no gradient, so the hook would never be called")
        self.hooks = {} if self.hooks is None else self.hooks
        return HookHandle("register_hook", self.hooks, hook)

    # Operators

    def __add__(self, other: "TensorLike") -> "Tensor":
        return _apply("add", self, other)

    def __radd__(self, other: "TensorLike") -> "Tensor":
        return _apply("add", other, self)

    def __sub__(self, other: "TensorLike") -> "Tensor":
        return _apply("subtract", self, other)

    def __rsub__(self, other: "TensorLike") -> "Tensor":
        return _apply("subtract", other, self)

    def __mul__(self, other: "TensorLike") -> "Tensor":
        return _apply("multiply", self, other)

    def __rmul__(self, other: "TensorLike") -> "Tensor":
        return _apply("multiply", other, self)

    def __truediv__(self, other: "TensorLike") -> "Tensor":
        return _apply("divide", self, other)

    def __rtruediv__(self, other: "TensorLike") -> "Tensor":
        return _apply("divide", other, self)

    def __pow__(self, other: "TensorLike") -> "Tensor":
        return _apply("power", self, other)

    def __rpow__(self, other: "TensorLike") -> "Tensor":
        return _apply("power", other, self)

    def __matmul__(self, other: "TensorLike") -> "Tensor":
        return _matmul(self, as_tensor(other)) if _is_operand(other) else NotImplemented

    def __rmatmul__(self, other: "TensorLike") -> "Tensor":
        return _matmul(as_tensor(other), self) if _is_operand(other) else NotImplemented

    def __pos__(self) -> "Tensor":
        return self

    def __neg__(self) -> "Tensor":
        return op("negative")(self)

    def __abs__(self) -> "Tensor":
        return op("absolute")(self)

    # In place: these write into this tensor's memory if no gradient is recorded. Otherwise ``t += v`` makes a new
    # tensor, as ``t = t + v`` does, since an op may have kept the old values.

    def __iadd__(self, other: "TensorLike") -> Self:
        return _in_place("add", self, other)

    def __isub__(self, other: "TensorLike") -> Self:
        return _in_place("subtract", self, other)

    def __imul__(self, other: "TensorLike") -> Self:
        return _in_place("multiply", self, other)

    def __itruediv__(self, other: "TensorLike") -> Self:
        return _in_place("divide", self, other)

    def __ipow__(self, other: "TensorLike") -> Self:
        return _in_place("power", self, other)

    def __getitem__(self, index: Any) -> "Tensor":
        """Elements by NumPy's basic, integer and boolean indexing; IndexError for an index that is out of range.

        Integers in an array on a GPU are not looked at, since that would wait for it: out of range, they wrap round,
        unless `detect_anomaly` is on. A boolean mask does wait for it, since the shape depends on its values.
        """
        pattern, arrays = _parsed_index("getitem", self, index)
        return indexing_op("getitem", pattern)(self, *arrays)

    def __setitem__(self, index: Any, value: "TensorLike") -> None:
        """Write ``value`` into the elements at ``index``; ValueError if that would make a gradient wrong."""
        if mode.get().recording and (self.requires_grad or getattr(value, "requires_grad", False)):
            raise ValueError(
                "t[index] = value: a gradient is recorded for t or the value, and writing would make it wrong; write "
                "under no_grad(), or make a new tensor with functional.where or functional.concatenate"
            )
        _write(self, index, value)

    # Comparisons return boolean tensors, which have no gradient; & | ~ combine them.

    def __eq__(self, other: object) -> "Tensor":  # type: ignore[override]
        return _apply("equal", self, other)

    def __ne__(self, other: object) -> "Tensor":  # type: ignore[override]
        return _apply("not_equal", self, other)

    def __lt__(self, other: "TensorLike") -> "Tensor":
        return _apply("less", self, other)

    def __le__(self, other: "TensorLike") -> "Tensor":
        return _apply("less_equal", self, other)

    def __gt__(self, other: "TensorLike") -> "Tensor":
        return _apply("greater", self, other)

    def __ge__(self, other: "TensorLike") -> "Tensor":
        return _apply("greater_equal", self, other)

    def __and__(self, other: "TensorLike") -> "Tensor":
        return _apply("logical_and", self, other)

    def __or__(self, other: "TensorLike") -> "Tensor":
        return _apply("logical_or", self, other)

    __rand__ = __and__
    __ror__ = __or__

    def __invert__(self) -> "Tensor":
        return op("logical_not")(self)

    def __hash__(self) -> int:  # by identity: == compares elements
        return object.__hash__(self)

    # Reductions, with NumPy's names and arguments. axis: an integer, a tuple of integers, or None for all.

    def sum(self, axis: Axis = None, keepdims: bool = False) -> "Tensor":
        """The sum along ``axis``; for integers and booleans it is an int64."""
        return op("sum", axis, keepdims)(self)

    def mean(self, axis: Axis = None, keepdims: bool = False) -> "Tensor":
        """The mean along ``axis``; for integers and booleans it is a float32."""
        return op("mean", axis, keepdims)(self)

    def var(self, axis: Axis = None, keepdims: bool = False) -> "Tensor":
        """The mean squared distance from the mean (NumPy's ddof=0)."""
        return op("var", axis, keepdims)(self)

    def max(self, axis: Axis = None, keepdims: bool = False) -> "Tensor":
        """The largest element; tied elements receive equal parts of the gradient."""
        return op("max", axis, keepdims)(self)

    def min(self, axis: Axis = None, keepdims: bool = False) -> "Tensor":
        """The smallest element; tied elements receive equal parts of the gradient."""
        return op("min", axis, keepdims)(self)

    def argmax(self, axis: int | None = None, keepdims: bool = False) -> "Tensor":
        """The index of the first largest element; integers, without gradient."""
        return _keep_axis(op("argmax", axis)(self), self.ndim, axis, keepdims)

    def argmin(self, axis: int | None = None, keepdims: bool = False) -> "Tensor":
        """The index of the first smallest element; integers, without gradient."""
        return _keep_axis(op("argmin", axis)(self), self.ndim, axis, keepdims)

    # Shapes

    def reshape(self, *shape: int | Sequence[int]) -> "Tensor":
        """The same elements in another shape; one axis may be -1, which fills in its size."""
        return op("reshape", _flat(shape))(self)

    view = reshape  # PyTorch's name

    def transpose(self, *axes: int | Sequence[int]) -> "Tensor":
        """The axes in another order, by default reversed (`functional.swapaxes` is PyTorch's transpose)."""
        order = _flat(axes) if axes else tuple(range(self.ndim))[::-1]
        return op("transpose", order)(self)

    @property
    def T(self) -> "Tensor":
        """The axes in reversed order."""
        return self.transpose()

    def squeeze(self, axis: Axis = None) -> "Tensor":
        """The tensor without all axes of size 1, or without those in ``axis``; ValueError if one has another size."""
        drop = normalize_axes("squeeze", axis, self.ndim)
        if axis is None:
            drop = tuple(a for a in drop if self.shape[a] == 1)
        for a in drop:
            if self.shape[a] != 1:
                raise ShapeError(f"squeeze: axis {a} has size {self.shape[a]}; only an axis of size 1 can be dropped")
        return self.reshape(tuple(size for a, size in enumerate(self.shape) if a not in drop))

    def expand_dims(self, axis: int | Sequence[int]) -> "Tensor":
        """The tensor with new axes of size 1, whose positions in the result are ``axis``."""
        ndim = self.ndim + len(integers("expand_dims", "axis", axis, -(2**31)))
        new = normalize_axes("expand_dims", axis, ndim)
        sizes = iter(self.shape)
        return self.reshape(tuple(1 if a in new else next(sizes) for a in range(ndim)))

    def broadcast_to(self, shape: int | Sequence[int]) -> "Tensor":
        """The tensor repeated along new axes and axes of size 1 to have ``shape``."""
        return op("broadcast_to", shape)(self)

    def astype(self, dtype: Any) -> "Tensor":
        """The values in another dtype; the gradient comes back in this tensor's dtype."""
        return op("astype", real_dtype("astype", dtype).name)(self)

    # Elementwise functions

    def exp(self) -> "Tensor":
        """e to the power of each element."""
        return op("exp")(self)

    def log(self) -> "Tensor":
        """The natural logarithm of each element."""
        return op("log")(self)

    def sqrt(self) -> "Tensor":
        """The square root of each element."""
        return op("sqrt")(self)

    def tanh(self) -> "Tensor":
        """The hyperbolic tangent of each element."""
        return op("tanh")(self)

    def sigmoid(self) -> "Tensor":
        """1 / (1 + e**-x) of each element."""
        return op("sigmoid")(self)

    def relu(self) -> "Tensor":
        """max(x, 0) of each element."""
        return op("relu")(self)

    def softmax(self, axis: int = -1) -> "Tensor":
        """e**x / sum of e**x along ``axis``."""
        return op("softmax", axis)(self)

    def log_softmax(self, axis: int = -1) -> "Tensor":
        """log(softmax(x)) along ``axis``."""
        return op("log_softmax", axis)(self)

    def logsumexp(self, axis: Axis = None, keepdims: bool = False) -> "Tensor":
        """log(sum of e**x) along ``axis``."""
        return op("logsumexp", axis, keepdims)(self)

    # Python's protocols and NumPy's

    # For type checkers this is an array of objects. Otherwise they would take `ndarray * tensor`, which is a tensor,
    # for an array of numbers. The values are numbers all the same.
    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, np.dtype[np.object_]]:
        if type(self.data) is not np.ndarray:
            raise TypeError(f"a tensor on {self.device!r} is not converted to a NumPy array implicitly; use .numpy()")
        _note_read("__array__", self)
        return np.array(self.data, dtype=dtype, copy=copy)

    @classmethod
    def from_dlpack(cls, x: Any) -> Self:
        """The array of another library that supports DLPack, without a copy; errors are those of `dlpack.imported`."""
        array = imported(x)
        return cls(array, device=backend_of(array).device_of(array))

    def __dlpack__(
        self, *, stream: Any = None, max_version: Any = None, dl_device: Any = None, copy: bool | None = None
    ) -> Any:
        """The memory, for ``from_dlpack`` of another library; BufferError if a gradient would be lost."""
        if self.requires_grad:
            raise BufferError("__dlpack__: this tensor requires a gradient, which would be lost; detach() it first")
        _note_read("__dlpack__", self)
        return exported(self.data, stream=stream, max_version=max_version, dl_device=dl_device, copy=copy)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.data.__dlpack_device__()

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        name = _BOOLEAN_UFUNCS.get(ufunc.__name__, ufunc.__name__)
        if method == "__call__" and not options and name in REGISTRY:
            return _matmul(*map(as_tensor, inputs)) if ufunc is np.matmul else op(name)(*inputs)
        if options.get("out") and not isinstance(options["out"][0], Tensor):
            raise TypeError(
                f"np.{ufunc.__name__} does not write a tensor into an array; write into the tensor instead of its "
                ".data, under no_grad(): p -= lr * p.grad"
            )
        raise TypeError(_no_function(ufunc.__name__ if method == "__call__" else f"{ufunc.__name__}.{method}"))

    def __array_function__(self, function: Callable[..., Any], types: Any, arguments: Any, options: Any) -> Any:
        known = numpy_functions.get(function.__name__)
        if known is None:
            raise TypeError(_no_function(function.__name__))
        return known(*arguments, **options)

    def __reduce__(self) -> Any:
        """For copy.deepcopy and pickle: a leaf with its gradient, never the graph."""
        if self.op is not None:
            raise ValueError(
                f"this tensor was computed by {self.op.name}, and its graph can be neither copied nor pickled; "
                "detach() it first"
            )
        attributes = getattr(self, "__dict__", None)  # of a subclass
        return _rebuilt, (type(self), self.numpy(), self.requires_grad, self._grad, self.device), attributes or None

    def __len__(self) -> int:
        if not self.ndim:
            raise TypeError("a tensor without axes has no length")
        return self.shape[0]

    def __iter__(self) -> Iterator["Tensor"]:
        """The parts along the first axis.

        They are taken from halves of halves: each level of halves then writes the gradient once, whereas rows taken
        from the whole tensor would each write all of it.
        """
        if len(self) <= 16 or not self.requires_grad:
            return (indexing_op("getitem", (i,))(self) for i in range(len(self)))
        middle = len(self) // 2
        return itertools.chain.from_iterable(iter(self[part]) for part in (slice(middle), slice(middle, None)))

    def __bool__(self) -> bool:
        return bool(self.item())

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __index__(self) -> int:
        if self.dtype.kind not in "iu":
            raise TypeError(f"a tensor of {self.dtype} is not an index; expected integers")
        return int(self.item())

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if spec else repr(self)

    def __repr__(self) -> str:
        values = np.array2string(self.numpy(), separator=", ", prefix="Tensor(")
        device = "" if self.device == "cpu" else f", device={self.device!r}"
        dtype = "" if self.dtype in (np.float32, np.bool_) else f", dtype={self.dtype.name}"
        return f"Tensor({values}{dtype}{device}{', requires_grad=True' if self.requires_grad else ''})"


TensorLike = Tensor | Array | Number
Hook = Callable[[Tensor], Tensor | None]


class HookHandle:
    """A registered hook; ``remove()`` removes it."""

    _keys = itertools.count()  # never reused, so a handle cannot remove a later hook

    def __init__(self, caller: str, hooks: dict[int, Any], hook: Callable[..., Any]) -> None:
        if not callable(hook):
            raise TypeError(f"{caller}: the hook is {type(hook).__name__}; expected a function")
        self._hooks = hooks
        self._key = next(self._keys)
        hooks[self._key] = hook
        note_change()

    def remove(self) -> None:
        """Remove the hook; a second call does nothing."""
        self._hooks.pop(self._key, None)
        note_change()


def wrap(array: Array, maker: str = "wrap") -> Tensor:
    """A leaf tensor around an array of a known backend, without a copy; ``maker`` is the op whose forward gave it."""
    if type(array) is not np.ndarray and backend_of_type(type(array)) is None:
        if isinstance(array, Tensor):
            raise TypeError(
                f"{maker}: the .data of an input is a Tensor, not an array; write under no_grad(): p -= lr * p.grad"
            )
        found = type(array).__name__
        array = np.asarray(array)  # a NumPy scalar, which NumPy returns instead of an array without axes
        if array.dtype.kind == "O":
            raise TypeError(f"{maker}: forward returned {found}; expected an array")
    tensor = Tensor.__new__(Tensor)
    _fill(tensor, array)
    return tensor


def _fill(tensor: Tensor, array: Array) -> None:
    tensor.data = array
    tensor._requires_grad = False
    tensor._grad = None
    tensor.op = None
    tensor.inputs = ()
    tensor.made = 0
    tensor.hooks = None
    tensor.origin = None


def _rebuilt(cls: type[Tensor], array: np.ndarray, requires_grad: bool, grad: Tensor | None, device: str) -> Tensor:
    tensor = cls.__new__(cls)
    _fill(tensor, transfer(array, device))
    tensor._requires_grad, tensor._grad = requires_grad, grad
    return tensor


def as_tensor(x: Any) -> Tensor:
    """``x`` itself if it is a tensor, else a tensor made from it."""
    return x if isinstance(x, Tensor) else Tensor(x)


def real_dtype(caller: str, dtype: Any) -> np.dtype[Any]:
    """``dtype`` in native byte order; TypeError unless it is for real numbers or booleans."""
    found = np.dtype(dtype)
    if found.kind not in "fiub":
        raise TypeError(f"{caller}: dtype {found} is not a real number; expected floats, integers or booleans")
    return np.dtype(found.char)  # the one object of this dtype: ops compare dtypes by identity first


def _host_array(data: Any, usual: bool) -> np.ndarray:
    """Python numbers (in the ``usual`` float32, or as they are), NumPy scalars and anything with ``__array__``."""
    _refuse_loss(data)
    try:
        array = np.asarray(data)
    except ValueError as error:
        raise ValueError(f"Tensor: the data is not a rectangular array of numbers ({error})") from None
    if type(array) is not np.ndarray:  # a subclass that asarray kept
        array = array.view(np.ndarray)
    if usual and not hasattr(data, "dtype") and array.dtype.kind in "fiu":
        array = array.astype(np.float32)
    return array


def _refuse_loss(data: Any) -> None:
    """TypeError for masked arrays, also in lists, and for lists of tensors."""
    if isinstance(data, np.ma.MaskedArray):
        raise TypeError("Tensor: the data is a masked array, whose mask would be lost; use its filled()")
    if isinstance(data, (list, tuple)):
        for each in data:
            if isinstance(each, Tensor):
                raise TypeError("Tensor: a list of tensors would lose their gradients; join them with functional.stack")
            _refuse_loss(each)


def _well_formed(array: Array) -> Array:
    """The array in native byte order and, if it is boolean, with bytes of 0 and 1, as all ops expect."""
    dtype = array.dtype
    if dtype.kind not in "fiub" or not dtype.isnative:
        return array.astype(real_dtype("Tensor", dtype))
    if type(array) is np.ndarray and dtype.kind == "b" and array.size and array.view(np.uint8).max() > 1:
        return array.view(np.uint8) != 0
    return array


def _same_place(value: Any, t: Tensor) -> Tensor:
    return Tensor(value, device=t.device)


def _is_operand(x: object) -> bool:
    """Whether x can be an op's input: a tensor, a number, an array or a list. Other types may have operators."""
    if isinstance(x, np.generic):
        return x.dtype.kind in "fiub"
    return isinstance(x, (Tensor, int, float, list, tuple)) or backend_of_type(type(x)) is not None


def _apply(name: str, a: Any, b: Any) -> Any:
    return op(name)(a, b) if _is_operand(a) and _is_operand(b) else NotImplemented


def _in_place(name: str, t: Tensor, other: Any) -> Any:
    """``t`` with the op's result written into its memory or, if a gradient is recorded, just the result."""
    if not _is_operand(other):
        return NotImplemented
    if mode.get().recording and t.requires_grad and t.op is None:
        raise ValueError(
            f"{name} in place: this leaf requires a gradient, which writing would make wrong; write under no_grad(), "
            "or give the result a new name"
        )
    y = op(name)(t, other)
    if y.requires_grad:
        return y
    _write(t, ..., y)  # which refuses another shape
    return t


def _write(t: Tensor, index: Any, value: Any) -> None:
    """t[index] = value; TypeError or ValueError if t's dtype or memory cannot take it."""
    pattern, arrays = _parsed_index("assign", t, index)
    if isinstance(value, (bool, int, float, np.generic)):
        value = np.asarray(value)
        if (
            value.dtype.kind in "iu"
            and t.dtype.kind in "iu"
            and not np.iinfo(t.dtype).min <= value <= np.iinfo(t.dtype).max
        ):
            raise ValueError(f"assign: {value} does not fit into {t.dtype}")
        if value.dtype.kind in ("fiub" if t.dtype.kind == "f" else "iub"):
            value = value.astype(t.dtype)
    value = value if isinstance(value, Tensor) else _same_place(value, t)
    if t.dtype.kind != "f" and not np.can_cast(value.dtype, t.dtype, "safe"):
        raise TypeError(f"assign: the value is {value.dtype}, which {t.dtype} cannot hold; use astype first")
    check_writable("assign", "the tensor", t)
    REGISTRY["assign"](pattern)(t, value, *arrays)


def check_writable(caller: str, name: str, t: Tensor) -> None:
    """ValueError if the memory of t is read-only."""
    if not is_writable(t.data):
        raise ValueError(f"{caller}: {name} lies in read-only memory; use a copy() of it")


def _parsed_index(name: str, x: Tensor, index: Any) -> tuple[Any, list[Tensor]]:
    """The pattern of an index into x, and its arrays as integer tensors; a mask as the positions of True."""
    pattern, found = parse(name, index, x.shape)
    arrays = []
    for each in found:
        array = each if isinstance(each, Tensor) else Tensor(each, device=x.device)
        if array.dtype.kind == "b":
            places = op("argwhere")(array)  # (True elements, axes)
            arrays += [places[:, axis] for axis in range(array.ndim)]
        else:
            arrays.append(array.astype("int64") if array.dtype.kind == "u" else array)
    return pattern, arrays


def _no_function(name: str) -> str:
    return (
        f"np.{name} has no counterpart for tensors, or not with these arguments; use a function of "
        "tinygrad_lenet.functional or a method of the tensor, or np.{0} of its .numpy()".format(name)
    )


def _flat(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """The values as a tuple, whether given as one sequence or as separate arguments."""
    return tuple(values[0]) if len(values) == 1 and isinstance(values[0], (tuple, list)) else values


def _keep_axis(y: Tensor, ndim: int, axis: int | None, keepdims: bool) -> Tensor:
    """An index along ``axis``, with that axis restored at size 1 if ``keepdims``."""
    return y.expand_dims(tuple(range(ndim)) if axis is None else axis) if keepdims else y


def _matmul(a: Tensor, b: Tensor) -> Tensor:
    """a @ b by NumPy's rule: an operand with one axis is a row on the left and a column on the right."""
    y = op("matmul")(a.expand_dims(0) if a.ndim == 1 else a, b.expand_dims(1) if b.ndim == 1 else b)
    drop = tuple(axis for axis, operand in ((-2, a), (-1, b)) if operand.ndim == 1)
    return y.squeeze(drop) if drop else y


def check_start(caller: str, output: Any, gradient: TensorLike | None) -> Tensor | None:
    """The given gradient as a tensor, or None; TypeError or ValueError if a pass cannot start at ``output``."""
    if not isinstance(output, Tensor):
        raise TypeError(f"{caller}: output is {type(output).__name__}; expected one Tensor, such as a sum of several")
    if not output.requires_grad:
        raise ValueError(f"{caller}: the output does not require a gradient; no input with requires_grad led to it")
    if gradient is None:
        if output.size != 1:
            raise ValueError(
                f"{caller}: the output has shape {output.shape}; only a single element needs no gradient "
                "to start from: reduce it, for instance with .sum(), or pass a gradient of that shape"
            )
        return None
    gy = gradient if isinstance(gradient, Tensor) else _same_place(gradient, output)
    backend_of(output.data, gy.data)
    if gy.shape != output.shape:
        raise ShapeError(f"{caller}: the gradient has shape {gy.shape}; the output has {output.shape}")
    return gy


def start_of(output: Tensor, gradient: Tensor | None) -> Tensor:
    """The gradient to start with: the given one in the output's dtype, or else 1."""
    if gradient is None:
        return op("full_like", 1.0)(output)
    return gradient if gradient.dtype == output.dtype else gradient.astype(output.dtype)


# Adding to a leaf's gradient reads and writes it. The sum is computed outside the lock and stored if nobody else was
# faster. The lock is reentrant for the sake of signal handlers that run backward, and a forked process gets a new one.
_storing = threading.RLock()


def _renew_lock() -> None:
    global _storing
    _storing = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


def _accumulate(leaf: Tensor, gx: Tensor) -> None:
    while True:
        known = leaf.grad
        total = gx if known is None else known + gx
        with _storing:
            if leaf._grad is known:
                _store(leaf, total)
                return


def _store(leaf: Tensor, gradient: Tensor | None) -> None:
    observer = mode.get().observer
    if observer is not None:
        observer.stored(leaf, gradient)
    leaf._grad = gradient


def _note_read(what: str, t: Tensor) -> None:
    observer = mode.get().observer
    if observer is not None:
        observer.read(what, t)


def targets_of(caller: str, inputs: Tensor | Sequence[Tensor] | None) -> list[Tensor]:
    """``inputs`` as a list of tensors that require a gradient; TypeError or ValueError otherwise."""
    if inputs is None:
        raise TypeError(f"{caller}: inputs is None; expected a Tensor, or several in a list")
    targets = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    for i, x in enumerate(targets):
        if not isinstance(x, Tensor):
            raise TypeError(f"{caller}: input {i} is {type(x).__name__}, not a Tensor")
        if not x.requires_grad:
            raise ValueError(f"{caller}: input {i}, of shape {x.shape}, does not require a gradient")
    return targets


def unused(path: Path, targets: Sequence[Tensor]) -> list[int]:
    """The positions of targets that were not used to compute the output."""
    return [i for i, x in enumerate(targets) if id(x) not in path.leading]


def grad(
    output: Tensor | None = None,
    inputs: Tensor | Sequence[Tensor] | None = None,
    grad_output: TensorLike | None = None,
    create_graph: bool = False,
    allow_unused: bool = False,
    *,
    outputs: Tensor | None = None,
    grad_outputs: TensorLike | None = None,
) -> tuple[Tensor | Any, ...]:  # Any: only callers that allow unused inputs must check for None
    """d(output)/d(input) for each of ``inputs``, without touching any ``.grad``.

    ``grad_output`` is d(loss)/d(output), with output's shape; it may be left out if output has one element.
    PyTorch's names of the two, ``outputs`` and ``grad_outputs``, mean the same; each is one tensor. The graph is freed
    unless ``create_graph``, which makes the gradients differentiable. ValueError if an input requires no gradient or
    was not used (with ``allow_unused`` its gradient is None), and for the same reasons as in `Tensor.backward`. No two
    results share memory.

    >>> x = Tensor(3.0, requires_grad=True)
    >>> (gx,) = grad(x * x * x, [x], create_graph=True)
    >>> grad(gx, [x])
    (Tensor(18.),)
    """
    if (output is not None and outputs is not None) or (grad_output is not None and grad_outputs is not None):
        raise TypeError("grad: outputs and grad_outputs are other names of output and grad_output; give each once")
    y: Any = outputs if output is None else output
    targets = targets_of("grad", inputs)
    given = check_start("grad", y, grad_outputs if grad_output is None else grad_output)
    path = Path(y, targets)
    missing = unused(path, targets)
    if missing and not allow_unused:
        shape = targets[missing[0]].shape
        raise ValueError(
            f"grad: input {missing[0]}, of shape {shape}, was not used to compute the output; with allow_unused=True "
            "its gradient is None"
        )
    gy = start_of(y, given)
    found = {id(x): gx for x, gx in backpropagate(path, y, gy, create_graph, create_graph)}
    results: list[Tensor | None] = []
    taken = {id(gy.data)}
    for x in targets:
        gx = found.get(id(x))
        if gx is not None and (id(gx.data) in taken or gx.data.base is not None):
            gx = gx.copy()
        taken |= set() if gx is None else {id(gx.data)}
        results.append(gx)
    return tuple(results)


numpy_functions |= {
    "shape": lambda x: x.shape,
    "ndim": lambda x: x.ndim,
    "size": lambda x: x.size,
    "copy": Tensor.copy,
    "sum": Tensor.sum,
    "mean": Tensor.mean,
    "var": Tensor.var,
    "max": Tensor.max,
    "min": Tensor.min,
    "amax": Tensor.max,
    "amin": Tensor.min,
    "argmax": Tensor.argmax,
    "argmin": Tensor.argmin,
    "reshape": Tensor.reshape,
    "transpose": lambda x, axes=None: x.transpose() if axes is None else x.transpose(axes),
    "squeeze": Tensor.squeeze,
    "expand_dims": Tensor.expand_dims,
    "broadcast_to": Tensor.broadcast_to,
    "astype": Tensor.astype,
}
