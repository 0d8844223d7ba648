"""A plan: the NumPy calls that a list of ops makes, prepared once and then made again and again.

`Plan.apply` runs an op on arrays of a subclass, `Traced`, which notes each call that computes something. Views cost
nothing when the calls are repeated, since all memory is known: a parameter stays where it is, and everything else gets
a place in one block, which values share if one of them is no longer needed when the other appears. What no result needs
is left out, and constants are filled in once. An op that does not run on `Traced` arrays, because it reads a value or
draws random numbers, is one call of the whole op.

So a plan computes what the ops compute, with the same calls on arrays of the same layout, to the bit: this is checked
when it is made.
"""

import collections
import copy
import functools
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.array_utils import byte_bounds

from .backend import NUMPY, Backend
from .op import Op

_LARGE = 2**17  # bytes that are not worth being kept in the cache to be used again, unless a copy transposes them
_SMALL = 2**12  # bytes in which two copies are faster than a choice and a copy
_LINE = 64  # bytes of a cache line, to which each block is aligned


class UntraceableError(Exception):
    """An op did something on traced arrays that cannot be repeated as a call."""


class Memory:
    """A block of memory that calls read and write.

    ``kind`` is "held" (of an array that exists outside the plan), "argument" (filled before each run), "value" (needed
    from its first use to its last), "given" (handed out) or "kept" (zero at first, and kept between runs).
    """

    __slots__ = ("address", "block", "bytes", "first", "kind", "last", "outside", "place", "start")

    def __init__(self, block: np.ndarray, kind: str, outside: Any = None) -> None:
        low, high = byte_bounds(block)
        self.kind = kind
        self.block: np.ndarray | None = block  # where it was when the calls were noted
        self.address, self.bytes = low, max(high - low, 1)
        self.outside = outside  # the owner of the memory in whose place this stands, if it is held
        self.start = np.array(_bytes(block)) if kind in ("held", "argument") else None  # its values before all calls
        self.first = self.last = -1  # the calls that use it
        self.place = -1  # in the block that values share


class Place(NamedTuple):
    """Where an array lies in a block, once the memory is gone in which its call was noted."""

    memory: Memory
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: np.dtype[Any]


class Call:
    """A call of a function on arrays and other arguments."""

    __slots__ = ("arguments", "effect", "fill", "function", "options", "reads", "seen", "step", "writes")

    def __init__(
        self,
        function: Callable[..., Any],
        arguments: tuple[Any, ...],
        options: dict[str, Any],
        reads: set[Memory],
        writes: set[Memory],
        step: int,
        fill: bool = False,
        effect: bool = False,
    ) -> None:
        self.function, self.arguments, self.options = function, arguments, options
        self.reads, self.writes = reads, writes
        self.step = step  # which of the recorded steps made it
        self.fill = fill  # whether it sets all of a new block to one number
        self.effect = effect  # whether it acts on what is outside the plan, so that it must be made
        self.seen: list[np.ndarray] = []  # the arrays of an effect, or what was drawn, when it was noted


class _Tracing(threading.local):
    plan: "Plan | None" = None


_tracing = _Tracing()


def _tracer() -> "Plan":
    if _tracing.plan is None:
        raise UntraceableError("a traced array was used after its op had returned")
    return _tracing.plan


def in_line(x: Any) -> Any:
    """The elements of an array in memory order, if that is no copy."""
    order = sorted(range(x.ndim), key=lambda axis: -x.strides[axis])
    line = x.transpose(order)
    return line.reshape(-1) if line.flags.c_contiguous else x


def _plain(x: Any) -> Any:
    """``x`` with plain arrays instead of traced ones, also in tuples and lists."""
    if isinstance(x, Traced):
        return x.view(np.ndarray)
    if type(x) in (tuple, list):
        return type(x)(map(_plain, x))
    return x


def _arrays(x: Any) -> Iterable[np.ndarray]:
    """All arrays in ``x``, an argument."""
    if isinstance(x, np.ndarray):
        yield x
    elif type(x) in (tuple, list):
        for each in x:
            yield from _arrays(each)


def owner_of(array: Any) -> Any:
    """The array that owns the memory of ``array``."""
    owner = array
    while array is not None:
        if isinstance(array, np.ndarray):
            owner = array
        array = getattr(array, "base", None)
    return owner


class Traced(np.ndarray):
    """An array that notes each computation in the plan that is being made; its views are such arrays, too."""

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, out: Any = None, **options: Any) -> Any:
        plan, plain = _tracer(), _plain(inputs)
        target = None if out is None else out[0]
        if method == "__call__" and ufunc.nout == 1:
            if target is None:
                target = plan.adopt(np.asarray(ufunc(*plain, **options)))
            else:
                ufunc(*plain, out=_plain(target), **options)
            plain = plain if options else plan.with_arrays(ufunc, plain)
            if ufunc in _BY_NAME:
                plan.note(ufunc, plain, {**options, "out": _plain(target)}, plain, [target])
            else:
                plan.note(ufunc, (*plain, _plain(target)), options, plain, [target])
        elif method == "reduce" and options.pop("where", True) is True:
            if target is None:
                target = plan.adopt(np.asarray(ufunc.reduce(*plain, **options)))
            else:
                ufunc.reduce(*plain, out=_plain(target), **options)
            axis, dtype, keepdims = (options.pop(name, default) for name, default in _REDUCE)
            call = (plain[0], axis, dtype, _plain(target), keepdims)
            plan.note(ufunc.reduce, call, options, plain[:1], [target])
        elif method == "at":
            ufunc.at(*plain)
            plan.note(ufunc.at, plain, {}, plain, inputs[:1])
        else:
            raise UntraceableError(f"{ufunc.__name__}.{method}")
        return target

    def __array_function__(self, function: Any, types: Any, arguments: Any, options: Any) -> Any:
        if function in _THROUGH:  # NumPy's own implementation, in terms of what is traced
            return super().__array_function__(function, types, arguments, options)
        plan, plain, named = _tracer(), _plain(arguments), {name: _plain(x) for name, x in options.items()}
        if function is np.copyto:
            np.copyto(*plain, **named)
            plan.note(np.copyto, plain, named, (*plain[1:], *named.values()), arguments[:1])
            return None
        if function is np.broadcast_to:
            return _broadcast(*arguments, **options)
        if function is np.where and len(plain) == 3 and not options:
            y = plan.adopt(np.asarray(np.where(*plain)))
            if y.nbytes <= _SMALL:
                out = _plain(y)
                plan.note(np.copyto, (out, plain[2], "unsafe"), {}, plain[2:], [y])
                plan.note(np.copyto, (out, plain[1], "unsafe", plain[0]), {}, plain[:2], [y])
                return y
            plan.note(_into, (_plain(y), function, plain, {}), {}, plain, [y])
            return y
        if function is np.concatenate:
            y = plan.adopt(np.concatenate(*plain, **named))
            plan.note(np.concatenate, plain, {**named, "out": _plain(y)}, plain, [y])
            return y
        y = plan.adopt(np.array(function(*plain, **named)))
        plan.note(_into, (_plain(y), function, plain, named), {}, (plain, tuple(named.values())), [y])
        return y

    def __getitem__(self, index: Any) -> Any:
        parts = index if isinstance(index, tuple) else (index,)
        if all(part is None or part is ... or isinstance(part, (int, slice)) for part in parts):
            if any(isinstance(part, bool) for part in parts):
                raise UntraceableError("an index of True or False")
            y = super().__getitem__(index)
            return y if isinstance(y, np.ndarray) else super().__getitem__((*parts, ...))  # not a number: a view
        plain = _plain(index)
        y = _tracer().adopt(np.array(self.view(np.ndarray)[plain]))
        _tracer().note(_gather, (_plain(y), _plain(self), plain), {}, (_plain(self), plain), [y])
        return y

    def __setitem__(self, index: Any, value: Any) -> None:
        parts = index if isinstance(index, tuple) else (index,)
        plan, plain, source = _tracer(), _plain(index), _plain(value)
        if all(part is None or part is ... or isinstance(part, (int, slice)) for part in parts):
            target = self[index]
            if isinstance(source, np.ndarray) and source.ndim > target.ndim:
                source = source.reshape(source.shape[source.ndim - target.ndim :])
            np.copyto(_plain(target), source, "unsafe")
            plan.note(np.copyto, (_plain(target), source, "unsafe"), {}, (source,), [target])
        else:
            self.view(np.ndarray)[plain] = source
            moving = any(plan.memory(x) is not None for x in _arrays(plain))  # then a run may reach other elements
            read = (_plain(self), plain, source) if moving else (plain, source)
            plan.note(_scatter, (_plain(self), plain, source), {}, read, [self])

    def astype(self, dtype: Any, order: Any = "K", copy: bool = True) -> Any:  # type: ignore[override]
        if not copy and self.dtype == dtype:
            return self
        return _copied(self, self.view(np.ndarray).astype(dtype, order))

    def copy(self, order: Any = "C") -> Any:
        return _copied(self, self.view(np.ndarray).copy(order))

    def reshape(self, *shape: Any, order: Any = "C") -> Any:  # type: ignore[override]
        y = super().reshape(*shape, order=order)
        if owner_of(y) is owner_of(self):
            return y
        if order != "C":
            raise UntraceableError("reshape in another order")
        fresh = _tracer().adopt(np.array(y.view(np.ndarray)))
        target = fresh.view(np.ndarray).reshape(self.shape)
        _tracer().note(np.copyto, (target, _plain(self)), {}, (_plain(self),), [target])
        return fresh

    def ravel(self, order: Any = "C") -> Any:
        return self.reshape(-1, order=order)

    def flatten(self, order: Any = "C") -> Any:
        return self.reshape(-1, order=order).copy()

    def fill(self, value: Any) -> None:
        self[...] = value


def _refused(name: str) -> Any:
    def method(self: Traced, *arguments: Any, **options: Any) -> Any:
        raise UntraceableError(f"{name} reads values")

    return method


for _name in (
    "__bool__", "__complex__", "__float__", "__index__", "__int__", "__iter__", "argmax", "argmin", "argpartition",
    "argsort", "choose", "compress", "cumprod", "cumsum", "diagonal", "dot", "item", "nonzero", "partition", "put",
    "repeat", "resize", "round", "searchsorted", "sort", "take", "tobytes", "tolist", "trace",
):  # fmt: skip
    setattr(Traced, _name, _refused(_name))  # NumPy computes these without asking the subclass

_BY_NAME = {np.maximum, np.minimum}  # which take their output by name only
_REDUCE = (("axis", 0), ("dtype", None), ("keepdims", False))
_THROUGH = {
    np.amax, np.amin, np.expand_dims, np.max, np.min, np.moveaxis, np.prod, np.ravel, np.reshape, np.squeeze, np.sum,
    np.swapaxes, np.transpose,
}  # fmt: skip


def _copied(x: Traced, y: np.ndarray) -> Traced:
    target = _tracer().adopt(y)
    _tracer().note(np.copyto, (y, _plain(x), "unsafe"), {}, (_plain(x),), [target])
    return target


def _strided(x: np.ndarray, shape: Sequence[int], strides: Sequence[int]) -> Traced:
    return np.lib.stride_tricks.as_strided(x, tuple(shape), tuple(strides), subok=True)  # type: ignore[return-value]


def _broadcast(x: Any, shape: Any, subok: bool = False) -> Traced:
    wide = np.broadcast_to(_plain(x), shape)
    return _strided(x, wide.shape, wide.strides)


# What a call does that NumPy has no function with an output for


def _into(out: np.ndarray, function: Callable[..., Any], arguments: Any, options: Any) -> None:
    out[...] = function(*arguments, **options)


def _gather(out: np.ndarray, x: np.ndarray, index: Any) -> None:
    out[...] = x[index]


def _scatter(x: np.ndarray, index: Any, value: Any) -> None:
    x[index] = value


def _fill(out: np.ndarray, value: Any) -> None:
    out.fill(value)


def _with_errors(errors: Any, function: Callable[..., Any], *arguments: Any, **options: Any) -> None:
    with np.errstate(**errors):
        function(*arguments, **options)


def _computed(out: np.ndarray, op: Op, arrays: tuple[Any, ...]) -> None:
    np.copyto(out, op.compute(NUMPY, arrays))


def _written(op: Op, arrays: tuple[Any, ...]) -> None:
    op.compute(NUMPY, arrays)


def _look(arguments: tuple[Any, ...], seen: Sequence[np.ndarray], looks: list[bool]) -> None:
    """Compare the arrays that an effect would get with those that it got when it was noted."""
    looks.append(all(x.tobytes() == y.tobytes() for x, y in zip(_arrays(arguments), seen, strict=True)))


def _unless(predicate: Callable[..., Any], examined: Any, out: np.ndarray, op: Op, arrays: tuple[Any, ...]) -> None:
    """Compute the op by its own forward if its kernel declines these values."""
    if predicate(*examined):
        np.copyto(out, op.forward(np, *arrays))


class _Namespace:
    """NumPy, as ops that are traced see it: what makes an array makes a traced one."""

    inf, nan, newaxis, pi = np.inf, np.nan, None, np.pi

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)

    @property
    def lib(self) -> Any:
        return self

    @property
    def stride_tricks(self) -> Any:
        return self

    def as_strided(self, x: Any, shape: Any, strides: Any) -> Any:
        if not isinstance(x, Traced):
            return np.lib.stride_tricks.as_strided(x, shape, strides)
        return _strided(x, shape, strides)

    def empty(self, shape: Any, dtype: Any = float) -> Traced:
        return _tracer().adopt(np.empty(shape, dtype))

    def zeros(self, shape: Any, dtype: Any = float) -> Traced:
        return self.full(shape, 0, dtype)

    def ones(self, shape: Any, dtype: Any = float) -> Traced:
        return self.full(shape, 1, dtype)

    def full(self, shape: Any, value: Any, dtype: Any = None) -> Traced:
        y = _tracer().adopt(np.full(shape, _plain(value), dtype))
        _tracer().note(_fill, (_plain(y), y.dtype.type(_plain(value))), {}, (), [y], fill=True)
        return y

    def empty_like(self, x: Any, dtype: Any = None) -> Traced:
        return _tracer().adopt(np.empty_like(_plain(x), dtype))

    def zeros_like(self, x: Any, dtype: Any = None) -> Traced:
        return self._like(x, dtype, 0)

    def ones_like(self, x: Any, dtype: Any = None) -> Traced:
        return self._like(x, dtype, 1)

    def full_like(self, x: Any, value: Any, dtype: Any = None) -> Traced:
        return self._like(x, dtype, value)

    def _like(self, x: Any, dtype: Any, value: Any) -> Traced:
        y = self.empty_like(x, dtype)
        y.view(np.ndarray).fill(value)
        _tracer().note(_fill, (_plain(y), value), {}, (), [y], fill=True)
        return y

    def asarray(self, x: Any, dtype: Any = None, order: Any = None) -> Any:
        if not isinstance(x, Traced) or order is not None:
            return np.asarray(x, dtype, order) if not isinstance(x, Traced) else self.array(x, dtype, order=order)
        return x if dtype is None else x.astype(dtype, copy=False)

    def array(self, x: Any, dtype: Any = None, order: str = "K") -> Any:
        if not isinstance(x, Traced):
            return np.array(x, dtype, order=order)  # type: ignore[call-overload]
        return x.astype(x.dtype if dtype is None else dtype, order=order)

    def ascontiguousarray(self, x: Any) -> Any:
        if not isinstance(x, Traced):
            return np.ascontiguousarray(x)
        return x if x.flags.c_contiguous and x.ndim else x.copy("C")

    # What kernels need: memory that is kept between calls, and a way to decline inputs for their values

    @property
    def scratch(self) -> "Plan":
        return _tracer()

    def declined(self, predicate: Callable[..., Any], *arrays: Any) -> bool:
        _tracer().guards.append((predicate, tuple(map(in_line, arrays))))
        return False


TRACING = Backend("cpu", _Namespace(), Traced, NUMPY.from_numpy, NUMPY.to_numpy)


class Plan:
    """Calls in order, and where the memory that they use will lie."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.steps: list[tuple[str, str]] = []  # what each recorded step does: its name and its shapes
        self.memories: dict[int, Memory] = {}  # by id of the owner
        self.guards: list[tuple[Callable[..., Any], tuple[Any, ...]]] = []  # of the op that is being traced
        self._errors = np.geterr()
        self._scratch: dict[Any, Traced] = {}
        self._numbers: dict[Any, np.ndarray] = {}

    # Memory

    def adopt(self, array: np.ndarray) -> Traced:
        """A traced view of an array whose memory is new here."""
        self.memories[id(array)] = Memory(array, "value")
        return array.view(Traced)

    def memory(self, array: np.ndarray) -> Memory | None:
        """The block that an array lies in; None for constants, which an op made without ``xp``."""
        return self.memories.get(id(owner_of(array)))

    def stand_in(self, array: np.ndarray, kind: str) -> Traced:
        """A traced array in memory that stands for the array's own: "held", or an "argument"."""
        owner = owner_of(array) if kind == "held" else array
        low, high = byte_bounds(owner)
        memory = next((m for m in self.memories.values() if owner is m.outside), None)
        if memory is None:
            block = _aligned(high - low, low)
            np.copyto(_at(block, _address(owner) - low, owner), owner)
            memory = self.memories[id(owner_of(block))] = Memory(block, kind, owner if kind == "held" else None)
        assert memory.block is not None
        return _at(memory.block, _address(array) - low, array).view(Traced)

    def constant(self, values: np.ndarray) -> Traced:
        """A traced array that has these values whenever the calls are made."""
        y = self.adopt(np.array(values))
        self.note(np.copyto, (_plain(y), values), {}, (), [y], fill=True)
        return y

    def take(self, use: str, shape: tuple[int, ...], dtype: Any, *layout: int, zeroed: bool = True) -> Traced:
        """Scratch memory for kernels, as `tinygrad_lenet.kernels.cpu` takes it otherwise."""
        if not zeroed:
            return self.adopt(np.empty(shape, dtype))
        key = (use, shape, dtype, layout)
        if key not in self._scratch:
            self._scratch[key] = self.adopt(np.zeros(shape, dtype))
            self.memories[id(owner_of(self._scratch[key]))].kind = "kept"
        return self._scratch[key]

    def give(self, buffer: Any, use: str, *layout: int) -> None:
        """Give scratch memory back; a plan keeps its own."""

    # Noting calls

    def with_arrays(self, ufunc: np.ufunc, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        """``inputs`` with arrays in place of floats, from which NumPy would make arrays in each call, in 0.4 us."""
        if not all(type(x) is float or isinstance(x, np.ndarray) for x in inputs):
            return inputs
        *dtypes, _ = ufunc.resolve_dtypes((*[getattr(x, "dtype", float) for x in inputs], None))
        try:
            with np.errstate(all="raise"):
                return tuple([
                    self._numbers.setdefault((repr(x), dtype), np.array(x, dtype)) if type(x) is float else x
                    for x, dtype in zip(inputs, dtypes, strict=True)
                ])  # fmt: skip
        except FloatingPointError:  # a number that does not fit, of which each call is to warn
            return inputs

    def note(
        self,
        function: Callable[..., Any],
        arguments: tuple[Any, ...],
        options: dict[str, Any],
        read: Any,
        written: Iterable[Any],
        fill: bool = False,
        effect: bool = False,
    ) -> None:
        """Note a call, the arrays that it reads and those that it writes."""
        reads = {memory for array in _arrays(tuple(read)) if (memory := self.memory(array)) is not None}
        writes = set()
        for array in written:
            memory = self.memory(array)
            if memory is None:
                raise UntraceableError("memory was written that was not made by xp")
            writes.add(memory)
        if np.geterr() != self._errors:
            function = functools.partial(_with_errors, np.geterr(), function)
        self.calls.append(Call(function, arguments, options, reads, writes, len(self.steps) - 1, fill, effect))

    def effect(self, name: str, function: Callable[..., Any], *arguments: Any, writes: bool = False) -> None:
        """Note a call of something outside the plan; with ``writes`` it fills the arrays among its arguments."""
        self.steps.append((name, ""))
        plain = _plain(arguments)
        self.note(function, plain, {}, () if writes else plain, list(_arrays(plain)) if writes else (), effect=True)
        self.calls[-1].seen = [np.array(x) for x in _arrays(plain)]

    def apply(self, op: Op, inputs: Sequence[Any]) -> Traced:
        """Run an op on traced arrays and numbers, and note its calls."""
        self.steps.append((op.name, " ".join(_shape(x) for x in inputs)))
        first, plain = len(self.calls), tuple(map(_plain, inputs))
        self.guards.clear()
        if op.repeatable:
            expected = None if op.writes else op.compute(NUMPY, plain)
            try:
                _tracing.plan = self
                y = op.compute(TRACING, inputs)
                if not isinstance(y, Traced) or (expected is not None and not _same(y, np.asarray(expected))):
                    raise UntraceableError("the result was not computed by calls that were noted")
                for predicate, examined in self.guards:
                    tested = _plain(examined)
                    self.note(_unless, (predicate, tested, _plain(y), op, plain), {}, (tested, plain), [y])
                return y
            except Exception:  # whatever it was that this op cannot do on traced arrays
                del self.calls[first:]
            finally:
                _tracing.plan = None
        if op.writes:
            op.compute(NUMPY, plain)
            self.note(_written, (op, plain), {}, plain, inputs[:1])
            return inputs[0]
        found = np.asarray((op if op.repeatable else copy.deepcopy(op)).compute(NUMPY, plain))  # no number is used up
        y = self.adopt(np.array(found))
        self.note(_computed, (_plain(y), op, plain), {}, plain, [y])
        if not op.repeatable:
            self.calls[-1].seen = [np.array(found)]
        return y

    # Making a runnable list of the calls

    def lay_out(self, results: Sequence[np.ndarray], given: Sequence[np.ndarray] = (), share: bool = True) -> None:
        """Drop calls that no result needs, fill in constants once, and give each value a place.

        Those ``given`` to others lie one after the other in a block of their own. Unless ``share``, no two values share
        a place.
        """
        self.given = []
        for y in given:
            memory = self.memory(y)
            if memory is not None and memory.kind == "value" and y.nbytes == memory.bytes:
                memory.kind = "given"
                self.given.append(memory)
        needed = {memory for y in results if (memory := self.memory(y)) is not None}
        kept: list[Call] = []
        for call in reversed(self.calls):
            draws = call.function is _computed and not call.arguments[1].repeatable  # and so changes a generator
            if call.effect or draws or any(m in needed or m.kind in ("held", "argument") for m in call.writes):
                needed |= call.reads
                kept.append(call)
        self.calls = kept[::-1]
        if share:
            self._merge({memory for y in results if (memory := self.memory(y)) is not None})
        self.once = [call for call in self.calls if call.fill and self._constant(call)] if share else []
        for call in self.once:
            for memory in call.writes:
                memory.kind = "kept"
        self.calls = [call for call in self.calls if call not in self.once]
        for i, call in enumerate(self.calls):
            for memory in call.reads | call.writes:
                memory.first = i if memory.first < 0 else memory.first
                memory.last = i
        for y in results:
            if (memory := self.memory(y)) is not None:
                memory.last = len(self.calls)
        self._place(share)

    def _merge(self, fixed: set[Memory]) -> None:
        """Leave out calls that compute once more what an earlier one has computed, unless that is large and quick."""
        writers = collections.Counter(memory for call in self.calls for memory in call.writes)
        fixed = fixed.union(*(call.reads for call in self.calls if call.effect))
        versions: collections.Counter[Memory] = collections.Counter()  # of what calls write
        effects = 0  # each of which may write what is held
        known: dict[Any, Memory] = {}
        instead: dict[Memory, Memory] = {}

        def moved(x: Any) -> Any:
            if type(x) in (tuple, list):
                return type(x)(map(moved, x))
            memory = self.memory(x) if isinstance(x, np.ndarray) else None
            if memory is None or memory not in instead:
                return x
            block = instead[memory].block
            assert block is not None
            return _at(_bytes(block), _address(x) - memory.address, x)

        def described(x: Any, out: Memory) -> Any:
            if type(x) in (tuple, list):
                return tuple([described(each, out) for each in x])
            if not isinstance(x, np.ndarray):
                return (type(x), repr(x)) if isinstance(x, (int, float, str, type(None), np.generic)) else id(x)
            memory = self.memory(x)
            if memory is None:
                return id(x)
            if memory is out:
                return "out", _address(x) - out.address, x.shape, x.strides, x.dtype
            age = versions[memory], effects if memory.kind == "held" else 0
            return memory, age, _address(x), x.shape, x.strides, x.dtype

        calls = []
        for call in self.calls:
            if instead:
                call.arguments = moved(call.arguments)
                call.options = {name: moved(x) for name, x in call.options.items()}
                call.reads = {instead.get(memory, memory) for memory in call.reads}
            effects += call.effect
            for memory in call.writes:
                versions[memory] += 1
            if len(call.writes) == 1 and not call.effect and not call.fill and call.function is not _computed:
                (out,) = call.writes
                worth = out.bytes <= _LARGE or _transposes(call)
                if out.kind == "value" and writers[out] == 1 and worth and out not in call.reads:
                    key = call.function, described((call.arguments, *call.options.items()), out), out.bytes
                    if key in known and out not in fixed:
                        instead[out] = known[key]
                        continue
                    known.setdefault(key, out)
            calls.append(call)
        self.calls = calls

    def _constant(self, fill: Call) -> bool:
        """Whether a filled block is as good as new in each run: the rest of it is written anew before it is read."""
        (memory,) = fill.writes
        others = [i for i, call in enumerate(self.calls) if memory in call.writes and call is not fill]
        reads = [i for i, call in enumerate(self.calls) if memory in call.reads]
        if any(self.calls[i].fill or memory in self.calls[i].reads for i in others):
            return False
        return not others or not reads or max(others) < min(reads)

    def _place(self, share: bool) -> None:
        """Give each value a place, which it may take over from one that is no longer needed."""
        free = _Free()
        for i, call in enumerate(self.calls):
            over: set[Memory] = set()  # whose places have been taken over
            for memory in call.writes:
                if memory.kind == "value" and memory.first == i:
                    source = self._in_place(call, memory, i) if share else None
                    if source is not None:
                        memory.place = source.place
                        over.add(source)
                    else:
                        memory.place = free.take(memory.bytes)
            for memory in (call.reads | call.writes) - over:
                if share and memory.kind == "value" and memory.last == i:
                    free.give(memory.place, memory.bytes)
        self.bytes = free.end

    def _in_place(self, call: Call, memory: Memory, i: int) -> Memory | None:
        """An input that an elementwise call may overwrite, since it is not needed any more and has the same layout."""
        if not isinstance(call.function, np.ufunc) or call.function.signature or call.options:
            return None
        *inputs, out = call.arguments
        if out.size == 1:  # NumPy would take x += y for a sum, which picks another NaN
            return None
        for x in inputs:
            source = self.memory(x) if isinstance(x, np.ndarray) else None
            if (
                source is not None
                and source.kind == "value"
                and source.last == i
                and source.first < i
                and source not in call.writes
                and (x.shape, x.strides, x.dtype.itemsize) == (out.shape, out.strides, out.dtype.itemsize)
                and source.bytes == memory.bytes == x.nbytes
                and sum(other is not x and self._shares(other, source) for other in inputs) == 0
            ):
                return source
        return None

    def _shares(self, x: Any, memory: Memory) -> bool:
        return isinstance(x, np.ndarray) and self.memory(x) is memory

    def settle(self) -> Callable[[Any], Any]:
        """Let go of the memory in which the calls were noted; return what turns an array there into its place."""
        for call in (*self.calls, *self.once):
            call.arguments = self._settled(call.arguments)
            call.options = {name: self._settled(x) for name, x in call.options.items()}
        self.used = [memory for memory in self.memories.values() if memory.first >= 0 or memory.kind != "value"]
        return self._settled

    def _settled(self, x: Any) -> Any:
        if type(x) in (tuple, list):
            return type(x)(map(self._settled, x))
        memory = self.memory(x) if isinstance(x, np.ndarray) else None
        if memory is None:
            return x
        return Place(memory, _address(x) - memory.address, x.shape, x.strides, x.dtype)

    def forget(self) -> None:
        """Drop the blocks in which the calls were noted, after filling them with what a call would notice."""
        for memory in self.memories.values():
            if memory.block is not None:
                _bytes(memory.block)[:] = 255
                memory.block = None
        self.memories.clear()
        self._scratch.clear()

    def bind(self, trial: bool = False) -> "Bound":
        """The calls on the memory in which they will run; for a ``trial``, held memory is a copy of what it was."""
        places: dict[Memory, np.ndarray] = {}
        shared, handed = _aligned(self.bytes), _aligned(sum(memory.bytes for memory in self.given))
        at = 0
        for memory in self.given:
            places[memory] = handed[at : at + memory.bytes]
            at += memory.bytes
        for memory in self.used:
            if memory.kind == "argument" or (memory.kind == "held" and trial):
                start = _bytes(memory.outside) if memory.kind == "held" else 0
                places[memory] = _aligned(memory.bytes, memory.address)
                places[memory][:] = start if memory.start is None else memory.start
            elif memory.kind == "held":
                places[memory] = _bytes(memory.outside)
            elif memory.kind == "kept":
                places[memory] = _aligned(memory.bytes)
                places[memory][:] = 0
            elif memory.place >= 0:
                places[memory] = shared[memory.place : memory.place + memory.bytes]

        bound = _Bound(places)
        for call in self.once:
            call.function(*bound(call.arguments))
        looks: list[bool] = []
        calls: list[tuple[Callable[..., Any], tuple[Any, ...]]] = []
        for call in self.calls:
            function, arguments = call.function, call.arguments
            if trial and call.effect:
                if call.seen:
                    calls.append((_look, (bound(arguments), call.seen, looks)))
                continue
            if trial and function is _computed and not arguments[1].repeatable:  # drawn when it was noted
                function, arguments = np.copyto, (arguments[0], call.seen[0])
            arguments = bound(arguments)
            if call.options:
                function = functools.partial(function, **{name: bound(x) for name, x in call.options.items()})
            calls.append((function, arguments))
        return Bound(calls, bound, places, looks)

    def agrees(self, results: Sequence[tuple[Any, np.ndarray]], held: dict[Memory, bytes]) -> bool:
        """Whether the calls, made on copies of all memory, give these values and those seen when they were noted."""
        trial = self.bind(trial=True)
        trial.run()
        for memory in self.used:
            memory.start = None
        for call in self.calls:
            call.seen = [] if call.effect else call.seen
        return (
            all(trial.looks)
            and all(_same(trial.array(y), expected) for y, expected in results)
            and all(trial.places[memory].tobytes() == values for memory, values in held.items())
        )

    def held(self) -> dict[Memory, bytes]:
        """The values in held memory after the calls, when they were noted."""
        return {m: m.block.tobytes() for m in self.memories.values() if m.kind == "held" and m.block is not None}

    def microseconds(self, rounds: int = 20) -> list[float]:
        """The time of each step, the median of several runs on copies of all memory; 0 for effects."""
        trial = self.bind(trial=True)
        spent = np.zeros((rounds, len(self.steps)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for row in spent:
                calls = (call for call in self.calls if not call.effect)
                for call, (function, arguments) in zip(calls, trial.calls, strict=True):
                    start = time.perf_counter()
                    function(*arguments)
                    row[call.step] += time.perf_counter() - start
        return (1e6 * np.median(spent, axis=0)).tolist()

    def __str__(self) -> str:
        times, calls = self.microseconds(), [0] * len(self.steps)
        places: dict[int, str] = {}
        for call in self.calls:
            calls[call.step] += 1
            for memory in call.writes:
                places[call.step] = f"{memory.place:,}" if memory.kind == "value" else memory.kind
        lines = [("op", "shapes", "calls", "written at", "us")]
        for i, (name, shapes) in enumerate(self.steps):
            if calls[i]:
                lines.append((name, shapes, str(calls[i]), places.get(i, ""), f"{times[i]:.1f}"))
        own = sum(m.bytes for m in self.used if m.kind in ("kept", "argument", "given"))
        total = f"{len(self.calls)} calls, {sum(times):,.0f} us, {self.bytes + own:,} bytes in all"
        widths = [max(len(line[column]) for line in lines) for column in range(5)]
        text = [
            "  ".join([*map(str.ljust, line[:2], widths), *map(str.rjust, line[2:], widths[2:])]) for line in lines
        ]  # fmt: skip
        return "\n".join([*text, total])


class _Bound:
    """What turns the place of an array into the array, always the same one."""

    def __init__(self, places: dict[Memory, np.ndarray]) -> None:
        self.places = places
        self.known: dict[Place, np.ndarray] = {}

    def __call__(self, x: Any) -> Any:
        if type(x) in (tuple, list):
            return type(x)(map(self, x))
        if type(x) is not Place:
            return x
        if x not in self.known:
            self.known[x] = _at(self.places[x.memory], x.offset, x)
        return self.known[x]


class Bound:
    """Calls on arrays, ready to be made."""

    def __init__(
        self,
        calls: list[Any],
        bound: Callable[[Any], Any],
        places: dict[Memory, np.ndarray],
        looks: list[bool],
    ) -> None:
        self.calls, self.array, self.places, self.looks = calls, bound, places, looks

    def run(self) -> None:
        """Make all calls."""
        for function, arguments in self.calls:
            function(*arguments)


class _Free:
    """The free stretches of a block that grows as needed."""

    def __init__(self) -> None:
        self.stretches: list[tuple[int, int]] = []  # (start, stop), in order
        self.end = 0

    def take(self, size: int) -> int:
        size = -(-size // _LINE) * _LINE
        fitting = [(stop - start, start, stop) for start, stop in self.stretches if stop - start >= size]
        if fitting:
            _, start, stop = min(fitting)
            self.stretches.remove((start, stop))
            if start + size < stop:
                self.stretches.append((start + size, stop))
        else:
            last = max(self.stretches, default=(0, 0), key=lambda stretch: stretch[1])
            if last[1] == self.end and last[1]:
                self.stretches.remove(last)
                start = last[0]
            else:
                start = self.end
            self.end = start + size
        return start

    def give(self, start: int, size: int) -> None:
        stop = start + -(-size // _LINE) * _LINE
        merged = []
        for low, high in self.stretches:
            if high == start:
                start = low
            elif low == stop:
                stop = high
            else:
                merged.append((low, high))
        self.stretches = [*merged, (start, stop)]


def _aligned(size: int, address: int = 0) -> np.ndarray:
    """``size`` bytes that begin as far from a multiple of a cache line as ``address`` does."""
    block = np.empty(max(size, 1) + _LINE, np.uint8)
    shift = (address - block.ctypes.data) % _LINE
    return block[shift : shift + max(size, 1)]


def _address(x: np.ndarray) -> int:
    return int(x.__array_interface__["data"][0])


def _at(block: np.ndarray, offset: int, like: "np.ndarray | Place") -> np.ndarray:
    """An array of the same layout as ``like`` whose first element is at ``offset`` of a block of bytes."""
    if 0 in like.shape:  # and its strides may go beyond the block
        return np.ndarray(like.shape, like.dtype, block)
    return np.ndarray(like.shape, like.dtype, block, offset, like.strides)


def in_own_memory(x: np.ndarray) -> np.ndarray:
    """A copy of an array with its layout, so that what is computed from either is the same to the bit."""
    y = np.array(x)
    if y.strides == x.strides or not x.size:
        return y
    low, high = byte_bounds(x)
    y = _at(_aligned(high - low, low), _address(x) - low, x)
    np.copyto(y, x)
    y.flags.writeable = all(y.strides)  # elements that are repeated, as NumPy repeats them
    return y


class _Interface:
    """Memory of an array, for NumPy to make an array of."""

    def __init__(self, owner: np.ndarray) -> None:
        low, high = byte_bounds(owner)
        self.base = owner
        self.__array_interface__ = {
            "version": 3, "typestr": "|u1", "shape": (max(high - low, 1),), "data": (low, not owner.flags.writeable),
        }  # fmt: skip


def _bytes(owner: np.ndarray) -> np.ndarray:
    """The bytes of an array's memory."""
    return np.asarray(_Interface(owner))


def _same(x: np.ndarray, y: np.ndarray) -> bool:
    """Whether two arrays have the same dtype, shape, layout and bits."""
    x = x.view(np.ndarray)
    layout = [(a, b) for a, b, size in zip(x.strides, y.strides, x.shape, strict=False) if size > 1]
    return (
        (x.dtype, x.shape) == (y.dtype, y.shape)
        and (not x.size or all(a == b for a, b in layout))
        and x.tobytes() == y.tobytes()
    )


def _transposes(call: Call) -> bool:
    """Whether a call copies an array into another order of axes, which takes ten times as long as a plain copy."""
    if call.function is not np.copyto:
        return False
    target, source = call.arguments[:2]
    return isinstance(source, np.ndarray) and target.shape == source.shape and _order(target) != _order(source)


def _order(x: np.ndarray) -> list[int]:
    """The axes that have a length, from the one with the longest steps to the one with the shortest."""
    return sorted((axis for axis in range(x.ndim) if x.shape[axis] > 1), key=lambda axis: -abs(x.strides[axis]))


def _shape(x: Any) -> str:
    return "x".join(map(str, x.shape)) or "1" if isinstance(x, np.ndarray) else repr(x)
