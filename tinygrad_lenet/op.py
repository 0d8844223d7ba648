"""The op convention: what an op declares, and what happens when it is applied.

An `Op` says what it computes (`forward`, on arrays) and how gradients flow back (`backward`, on tensors, so gradients
can themselves be differentiated). Every array that a tensor holds was computed by an op or given by the user; nothing
computes outside ops.
"""

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from inspect import get_annotations
from typing import Any, ClassVar, Literal, dataclass_transform

import numpy as np

from .backend import NUMPY, Array, Backend, backend_of, find_kernel
from .graph import REGISTRY, Rule, mode, note_write, op, tick
from .shapes import Shape, Signature
from .tensor import Number, Tensor, TensorLike, wrap

Gradient = Tensor | Callable[[], Tensor] | None


@dataclass(frozen=True)
class Domain:
    """The values on which tests evaluate an input of an op.

    ``kinks`` are points where the derivative jumps; drawn values keep away from them. With ``distinct``, all values
    differ clearly, within an input and between inputs, so a maximum has no ties. ``kind`` is "real" or, for inputs
    without a gradient, "constant" for numbers, "boolean", or "index" for integers in [low, high).
    """

    low: float = -2.0
    high: float = 2.0
    kinks: tuple[float, ...] = ()
    distinct: bool = False
    kind: Literal["real", "constant", "boolean", "index"] = "real"


REAL = Domain()
POSITIVE = Domain(low=0.3)
CONSTANT = Domain(kind="constant")


@dataclass_transform(eq_default=True)
class Op:
    """A function of arrays: the formula, its derivative, its shapes and the values to test it on, in one place.

    A subclass has a docstring that states the forward formula, the derivative and what happens at ties and kinks; a
    ``signature`` (see `tinygrad_lenet.shapes`); ``domains``, the values to test each input on; ``forward``, and
    ``backward`` if an input can have a gradient. Annotated names are parameters and become fields, as in a dataclass:
    ``rules`` restricts their values, ``parameters`` lists values to test them with, and ``sizes`` lists sizes to test
    an axis with ("..." for whole leading shapes). Defining the class registers it; TypeError if something is missing.

    Before ``forward`` is called, these rules convert the inputs' dtypes, for all ops:

    - Different float dtypes are promoted as in NumPy, or refused if ``one_float_dtype``.
    - Integers and booleans that meet floats take their dtype. Numbers, including NumPy scalars, take the arrays' dtype.
    - If all are integers or booleans, ``integers`` decides: "int64", so nothing wraps around; "float", which makes them
      float32; "kept", which leaves a single dtype as it is; "refused"; or "native", which leaves it to NumPy.
    """

    signature: ClassVar[str]
    domains: ClassVar[Mapping[str, Domain]]
    rules: ClassVar[Mapping[str, tuple[Any, ...]]] = {}  # field -> (function of shapes.py, its further arguments)
    parameters: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    sizes: ClassVar[Mapping[str, Sequence[Any]]] = {}
    integers: ClassVar[Literal["int64", "float", "kept", "refused", "native"]] = "float"
    one_float_dtype: ClassVar[bool] = False
    reads_values: ClassVar[bool] = True  # whether backward depends on values of inputs or output, other than indices
    repeatable: ClassVar[bool] = True  # whether forward always computes the same from the same inputs
    writes: ClassVar[bool] = False  # whether forward writes into the first input and returns it
    curved: ClassVar[bool] = False  # whether `curvature` keeps the op's own second derivative, as losses do

    name: ClassVar[str]
    parsed: ClassVar[Signature]
    differentiable: ClassVar[bool]  # whether there is a backward
    read: ClassVar[frozenset[str]]  # the inputs and output on whose values backward depends
    _divisors: ClassVar[tuple[str, ...]]
    _typed: ClassVar[float]  # position of the first input that must be booleans or integers; inf if none

    def __init_subclass__(cls, kind: bool = False) -> None:
        if kind:  # a kind of op, such as the elementwise ones, not an op itself
            return
        missing = [
            word
            for word in ("__doc__", "signature", "domains", "forward")
            if not (word == "__doc__" and sys.flags.optimize > 1)  # python -OO drops docstrings
            if not cls.__dict__.get(word) and getattr(cls, word, None) in (None, getattr(Op, word, None))
        ]
        cls.differentiable = cls.backward is not Op.backward
        if not cls.differentiable and any(domain.kind == "real" for domain in getattr(cls, "domains", {}).values()):
            missing.append("backward")
        if missing:
            raise TypeError(f"op {cls.__name__} lacks {', '.join(missing).replace('__doc__', 'a docstring')}")
        cls.parsed = parsed = Signature.parse(cls.signature)
        cls.name = parsed.op
        cls._divisors = tuple({axis.partition("/")[2] for x in parsed.inputs for axis in x.axes if "/" in axis})
        fields = {name for base in cls.__mro__ if base is not Op for name in get_annotations(base)}
        if fields != set(cls.parameters):
            raise TypeError(
                f"op {cls.__name__}: the annotated names are {sorted(fields)}, but `parameters` lists test values for "
                f"{sorted(cls.parameters)}; expected the same names"
            )
        if set(cls.domains) != {x.name for x in parsed.inputs}:
            raise TypeError(
                f"op {cls.__name__}: `domains` is for {sorted(cls.domains)}; expected the inputs of {cls.signature}"
            )
        typed = (i for i, x in enumerate(parsed.inputs) if cls.domains[x.name].kind in ("boolean", "index"))
        cls._typed = next(typed, math.inf)
        read = {x.name for x in parsed.inputs if cls.reads_values or cls.domains[x.name].kind == "index"}
        cls.read = frozenset(read | {parsed.output.name} if cls.reads_values else read)
        if cls.name in REGISTRY and REGISTRY[cls.name].__module__ != cls.__module__:
            raise TypeError(f"op {cls.__name__}: the name {cls.name!r} is taken by {REGISTRY[cls.name]}")
        if fields:
            dataclass(unsafe_hash=True)(cls)
        REGISTRY[cls.name] = cls

    def __post_init__(self) -> None:
        for name, (rule, *limits) in self.rules.items():
            self.__dict__[name] = rule(self.name, name, getattr(self, name), *limits)

    def __repr__(self) -> str:  # of an op with parameters, dataclass writes it
        return f"{type(self).__name__}()"

    # In these four, Any and **named allow ops to name their inputs without complaints from type checkers.

    def output_shape(self, *shapes: Any, **named: Any) -> Shape | None:
        """The output's shape, None if it depends on values; ShapeError for shapes that do not fit."""
        leading, sizes = self.bind(shapes)
        return (*leading, *[sizes[axis] for axis in self.parsed.output.fixed_axes])

    def bind(self, shapes: tuple[Shape, ...]) -> tuple[Shape, dict[str, int]]:
        """The axes that ``...`` stands for and the size of each named axis; ShapeError if the shapes do not fit."""
        return _bind(self.parsed, shapes, tuple([(name, getattr(self, name)) for name in self._divisors]))

    def forward(self, xp: Any, *arrays: Any, **named: Any) -> Array:
        """Compute the output from arrays of namespace ``xp``."""
        raise TypeError(f"op {type(self).__name__} lacks forward")

    def backward(self, gy: Tensor, y: Tensor, /, *inputs: Any, **named: Any) -> Gradient | tuple[Gradient, ...]:
        """The gradient for each input, given d(loss)/dy: a tensor, None, or a function that is called if needed."""
        raise TypeError(f"op {type(self).__name__} lacks backward")

    def curvature(
        self, hy: Tensor, gy: Tensor, y: Tensor, /, *inputs: Any, **named: Any
    ) -> Gradient | tuple[Gradient, ...]:
        """For each input x_j, sum_i hy_i (dy_i/dx_j)^2; a ``curved`` op adds gy_i d2y_i/dx_j2 where that is positive.

        This rule is optional; see the function `tinygrad_lenet.curvature`.
        """
        raise ValueError(f"curvature: op {self.name} has no curvature rule")

    def index_ranges(self, *shapes: Any, **named: Any) -> Sequence[range]:
        """The values that each input with indices or labels may hold; on a GPU only `detect_anomaly` looks at them."""
        return ()

    def compute(self, backend: Backend, arrays: Sequence[Any]) -> Array:
        """The output, from a faster kernel if there is one that covers these inputs."""
        kernel = find_kernel(backend.name, self.name)
        y = NotImplemented if kernel is None else kernel(self, backend.xp, *arrays)
        return self.forward(backend.xp, *arrays) if y is NotImplemented else y

    def __call__(self, *inputs: TensorLike | None) -> Tensor:
        """Check, compute and, if an input requires a gradient, record. A last input of None counts as left out."""
        if inputs and inputs[-1] is None:
            inputs = inputs[:-1]
        operands: list[Any] = []
        arrays: list[Any] = []
        shapes: list[Shape] = []
        dtype: Any = None  # of the tensors; False if there are several
        for x in inputs:
            if not isinstance(x, Tensor):
                x = _operand(x)
                if not isinstance(x, Tensor):
                    if type(x) is int and x.bit_length() > 63:
                        dtype = False  # CuPy takes none so large
                    operands.append(x)
                    arrays.append(x)
                    shapes.append(())
                    continue
            array = x.data
            operands.append(x)
            arrays.append(array)
            shapes.append(array.shape)
            if array.dtype is not dtype:
                dtype = array.dtype if dtype is None else False
        backend = backend_of(*arrays)
        self._shape(tuple(shapes))
        if not dtype or dtype.kind != "f" or len(operands) > self._typed:  # several dtypes, integers, numbers alone
            operands = _converted(self, operands)
            arrays = [x.data if isinstance(x, Tensor) else x for x in operands]
        if backend is NUMPY:
            y = self.compute(backend, arrays)
        else:
            with backend.current(*arrays):
                y = self.compute(backend, arrays)
        if self.writes:
            note_write(arrays[0])
            out = operands[0]
        else:
            out = wrap(y, self.name)
        now = mode.get()
        if now.recording and self.differentiable and out.data.dtype.kind == "f":
            for x in operands:
                if isinstance(x, Tensor) and x._requires_grad:
                    out._requires_grad = True
                    out.op = self
                    out.inputs = tuple(operands)
                    out.made = tick()
                    break
        if now.observer is not None:
            now.observer.computed(self, operands, out)
        return out

    def _shape(self, shapes: tuple[Shape, ...]) -> Shape | None:
        """`output_shape`, cached for ops that are applied again and again."""
        known: dict[Any, Any] = self.__dict__.setdefault("_known_shapes", {})
        shape = known.get(shapes, False)
        if shape is not False:
            return shape
        if len(known) > 64:
            known.clear()
        shape = known[shapes] = self.output_shape(*shapes)
        return shape


@lru_cache(maxsize=4096)
def _bind(
    signature: Signature, shapes: tuple[Shape, ...], divisors: tuple[tuple[str, int], ...]
) -> tuple[Shape, dict[str, int]]:
    return signature.bind(shapes, dict(divisors))


def _operand(x: Any) -> Tensor | Number:
    """An op's input: a tensor, or a Python number, which goes with any device and takes the others' dtype."""
    if type(x) is int and x.bit_length() > 1023:
        raise ValueError(f"an integer of {x.bit_length()} bits is larger than any number that an array can hold")
    if type(x) in (int, float, bool):
        return x
    if isinstance(x, np.generic) and x.dtype.kind in "fiub":
        x = x.item()
        return float(x) if isinstance(x, np.floating) else x  # the item of a long double is one, too
    return Tensor(x)


_INT64 = np.dtype(np.int64)
_FLOAT32 = np.dtype(np.float32)


def _converted(op_: Op, operands: list[Any]) -> list[Any]:
    """The inputs, converted to the dtype in which the op computes; called unless all have the same float dtype."""
    found = tuple([x.dtype if isinstance(x, Tensor) else type(x) for x in operands])
    target, changed = _conversion(type(op_), found)  # type: ignore[arg-type]
    if any(x.dtype.kind == "f" for x in operands if isinstance(x, Tensor)):
        operands = [float(x) if type(x) is int and x.bit_length() > 63 else x for x in operands]
    if target is None:
        return operands
    if target.kind in "iub":
        _check_fits(op_, target, [x for x in operands if type(x) is int])
    device = next((x.device for x in operands if isinstance(x, Tensor)), None)
    result = list(operands)
    for i in changed:
        x = operands[i]
        result[i] = (
            op("astype", target.name)(x) if isinstance(x, Tensor) else Tensor(np.asarray(x, target), device=device)
        )
    return result


@lru_cache(maxsize=4096)
def _conversion(op_class: Any, found: tuple[Any, ...]) -> "tuple[np.dtype[Any] | None, tuple[int, ...]]":
    """For inputs of these dtypes or Python types: the dtype to compute in, and which inputs to convert."""
    name, specs = op_class.name, op_class.parsed.specs(len(found))
    chosen = []
    for i, (spec, dtype) in enumerate(zip(specs, found, strict=True)):
        kind, letter = op_class.domains[spec.name].kind, np.dtype(dtype).kind
        if kind == "boolean" and letter != "b":
            raise TypeError(f"{name}: {spec.name} has dtype {dtype}; expected booleans, for instance x > 0")
        if kind == "index" and letter not in "iu":
            raise TypeError(f"{name}: {spec.name} has dtype {dtype}; expected integers")
        if kind in ("real", "constant"):
            chosen.append(i)
    if op_class.integers == "native":
        return None, ()
    target = _common_dtype(op_class, [found[i] for i in chosen])
    arrays = [i for i in chosen if isinstance(found[i], np.dtype)]
    changed = [i for i in arrays if found[i] != target and (found[i].kind != "f" or target.kind != "f")]
    return target, tuple(changed if arrays else chosen[:1])  # if there are only numbers, one becomes an array


def _common_dtype(op_class: type[Op], found: list[Any]) -> np.dtype[Any]:
    """The dtype in which an op computes on these inputs; TypeError if there is none."""
    name, dtypes = op_class.name, [each for each in found if isinstance(each, np.dtype)]
    floats = [d for d in dtypes if d.kind == "f"]
    whole = sorted({d for d in dtypes if d.kind != "f"}, key=str)
    if op_class.one_float_dtype and len(set(floats)) > 1:
        names = " and ".join(sorted({d.name for d in floats}))
        raise TypeError(
            f"{name}: the inputs are {names}; expected one dtype, for instance x.astype({floats[-1].name!r})"
        )
    if floats:
        return np.result_type(*floats)
    if whole and op_class.integers == "refused":
        raise TypeError(f"{name}: the input has dtype {whole[0]}; expected floats, for instance x.astype('float32')")
    if not whole or float in found or op_class.integers == "float":
        return _FLOAT32
    if op_class.integers == "kept" and len(whole) == 1:
        return whole[0]
    if np.dtype(np.uint64) in whole:
        raise TypeError(f"{name}: uint64 does not fit into int64, in which integers are computed; use astype first")
    return _INT64


def _check_fits(op_: Op, dtype: np.dtype[Any], numbers: list[Any]) -> None:
    for value in numbers:
        low, high = (0, 1) if dtype.kind == "b" else (int(np.iinfo(dtype).min), int(np.iinfo(dtype).max))
        if not low <= value <= high:
            raise ValueError(
                f"{op_.name}: {value} does not fit into {dtype}; expected {low} to {high}, or use astype first"
            )


__all__ = ["CONSTANT", "POSITIVE", "REAL", "REGISTRY", "Domain", "Gradient", "Op", "Rule", "op"]
