"""Recording what a function does to tensors, and replaying it without Python in between.

A function that is called again and again with arrays of the same shapes, such as a training step, applies the same ops
each time. `jit` observes two calls, checks that they did the same, and makes a plan of the calls (`plan.py`); from then
on it runs the plan. What is not an op but changes something, such as an optimiser's step, is called at its place in
every run.

A recording is only replayed while everything that led to it is as it was: that is what `_Conditions` and the comparison
of the two recordings are for.
"""

import contextlib
import functools
import inspect
import itertools
import operator
import sys
import threading
import types
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, ParamSpec, TypeVar

import numpy as np

from .anomaly import caller
from .backend import Array, backend_of, backend_of_type, default_device, memory_of
from .capture import DeviceReplay
from .graph import Node, Observer, changes, mode, note_write, observed, tick
from .nn.module import Module, Parameter
from .plan import Bound, Place, Plan, in_line, in_own_memory, owner_of
from .recorded import MOVES, Applied, Argument, Called, Fetched, Frame, Handed, JitError, Slot, Stored
from .tensor import Tensor, wrap

P = ParamSpec("P")
R = TypeVar("R")

_KEPT = 32  # plans that a function keeps in each thread
_VARIANTS = 8  # recordings that are kept for arguments of one kind, each for other conditions
_PLAIN = (int, float, bool, str, bytes, complex, type(None))
_CONTAINERS = (list, dict, set, frozenset)


# What is recorded


@dataclass
class _Outside:
    """An array that the ops of a recording found: it was there before, or was made without an op."""

    tensor: Tensor
    array: Array
    values: Any  # a copy, from when it was found; None once it is forgotten
    line: Any
    made: bool = False  # whether each call makes it anew, always with the same values


class _Recorder(Observer):
    """Notes what a call does."""

    def __init__(self, name: str, arguments: Sequence[Any]) -> None:
        self.name = name
        self.arguments = arguments
        self.log: list[Any] = []
        self.slots: dict[int, int] = {}  # by id of the array
        self.alive: list[Any] = []  # so that no id is used twice
        self.outside: dict[int, _Outside] = {}  # by slot
        self.made: set[int] = set()  # ids of leaves that are made in the call
        self.starts: dict[int, tuple[Any, bool]] = {}  # by id of a leaf: the leaf, and whether it had no gradient
        self.gradients: dict[int, tuple[Any, Any]] = {}  # by id of a leaf: the leaf, and the gradient that it has now
        self.modules: dict[int, tuple[Any, dict[str, Any]]] = {}  # by id: a module, and its settings at its first use
        self.switched: set[int] = set()  # ids of modules whose mode the function sets
        self.values = [_host(x).copy("K") for x in arguments]
        self.returned: list[Tensor] = []
        self.known: dict[int, tuple[Array, int, Any]] = {}  # by slot: an array, its values' hash, and a line
        for x in arguments:
            self._new(_array(x))

    def forget(self, constants: bool) -> None:
        """Keep what is needed to compare this recording with others, and no values; with ``constants``, those, too."""
        self.arguments, self.alive, self.values, self.returned = (), [], [], []
        for memory in (self.slots, self.known, self.made, self.starts, self.gradients, self.modules):
            memory.clear()
        self.log = [entry._replace(array=None) if isinstance(entry, Fetched) else entry for entry in self.log]
        for each in self.outside.values():
            if not constants and not each.made:
                each.values = None

    def refuse(self, sentence: str) -> None:
        raise JitError(f"jit: {self.name} {sentence} (at {caller()})")

    def _new(self, array: Array) -> int:
        self.alive.append(array)
        slot = self.slots.setdefault(id(array), len(self.alive) - 1)
        self.known[slot] = array, _hash(array), caller()
        return slot

    def _written(self, owners: set[int]) -> None:
        """Take note of the values of what lies in these blocks of memory, which have been written to."""
        for slot, (array, _, line) in self.known.items():
            if id(memory_of(array)) in owners:
                self.known[slot] = array, _hash(array), line

    def refuse_hidden_writes(self) -> None:
        """JitError if an array has other values now, though no op and no call has changed it."""
        for array, values, line in self.known.values():
            if _hash(array) != values:
                raise JitError(
                    f"jit: {self.name} writes into an array of shape {array.shape} without an op, which a replay would "
                    f"not do; write t[...] = value under no_grad() (it is made or first used at {line})"
                )

    def slot(self, x: Tensor) -> int:
        found = self.slots.get(id(x.data))
        if found is None:
            if x.op is not None:
                self.refuse(
                    f"uses the result of {x.op.name}, which was computed before the call; pass it as an argument, or "
                    "compute it inside"
                )
            found = self._new(x.data)
            self.outside[found] = _Outside(x, x.data, _host(x).copy(), caller())
            self.alive.append(x)
        return found

    def leaf(self, leaf: Any) -> Any:
        return next((Argument(i) for i, x in enumerate(self.arguments) if x is leaf), leaf)

    def computed(self, op: Any, inputs: Sequence[Any], output: Any) -> None:
        refs = tuple([Slot(self.slot(x)) if isinstance(x, Tensor) else x for x in inputs])
        shapes = tuple([x.shape if isinstance(x, Tensor) else () for x in inputs])
        if op._shape(shapes) is None:
            self.refuse(
                f"uses {op.name}, the shape of whose result depends on values; for x[mask], use functional.where"
            )
        if op.writes:
            self.log.append(Applied(op, refs, refs[0].at, caller()))
            self._written({id(memory_of(output.data))})
            for leaf, gradient in self.gradients.values():  # a replay gives leaves copies of what it computes
                if gradient is not None and memory_of(gradient.data) is memory_of(output.data):
                    self.log.append(Stored(self.leaf(leaf), self.slot(gradient)))
        elif id(output.data) not in self.slots:
            self.log.append(Applied(op, refs, self._new(output.data), caller()))

    def within_backward(self) -> "Observer | None":
        return self

    def born(self, leaf: Any) -> None:
        self.alive.append(leaf)
        self.made.add(id(leaf))

    def own(self, leaf: Any) -> bool:
        """Whether a leaf is made in the call, perhaps around an argument's array: its gradient ends with the call."""
        if any(leaf is x for x in self.arguments):
            return False
        slot = self.slots.get(id(leaf.data))
        return id(leaf) in self.made or (slot is not None and slot not in self.outside)

    def fetched(self, leaf: Any) -> None:
        if self.own(leaf):
            return
        known = leaf._grad
        if id(leaf) not in self.gradients:
            self.starts.setdefault(id(leaf), (leaf, known is None))
            if known is None:
                return
            self.gradients[id(leaf)] = leaf, known
        elif known is self.gradients[id(leaf)][1]:
            return
        if known is None:
            self.log.append(Fetched(self.leaf(leaf), None, None))
        elif id(known.data) not in self.slots:
            self.alive.append(known)
            self.log.append(Fetched(self.leaf(leaf), self._new(known.data), known.data))

    def stored(self, leaf: Any, gradient: Any) -> None:
        self.alive.append(leaf)
        if self.own(leaf):
            return
        self.gradients[id(leaf)] = leaf, gradient
        self.log.append(Stored(self.leaf(leaf), None if gradient is None else self.slot(gradient)))

    def read(self, what: str, tensor: Any) -> None:
        self.refuse(
            f"reads values with {what}, which a replay would not do again; return the tensor and read it outside, or "
            "choose by functional.where"
        )

    def used(self, thing: Any) -> None:
        if isinstance(thing, dict) or thing._forward_hooks:
            self.refuse("calls hooks, which a replay would not do; remove them first")
        if id(thing) not in self.modules:
            self.modules[id(thing)] = (thing, _settings(thing, id(thing) in self.switched))

    def called(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        for owner in arguments:
            for p in getattr(owner, "params", ()):
                if any(p is x for x in self.arguments):
                    self.refuse("has a parameter of its optimiser as an argument; use it without passing it")
        if function.__name__ == "train":
            self.switched |= {id(module) for _, module in arguments[0].named_modules()}
        refs = tuple([Slot(self.slot(x)) if isinstance(x, Tensor) else x for x in arguments])
        self.log.append(Called(function, refs, options))
        self.refuse_hidden_writes()
        with observed(None):
            answer = function(*arguments, **options)
        self._written({id(memory_of(array)) for array, _, _ in self.known.values()})
        if type(answer) in (int, float) or (isinstance(answer, (list, tuple)) and answer):
            self.refuse(f"uses numbers that {function.__name__} returned, which a replay would not see")
        return answer


# What a recording depends on


class _Conditions:
    """What has to be as it was when a function was recorded."""

    def __init__(self, recorder: _Recorder, names: "_Names") -> None:
        found = {id(each.tensor): (each.tensor, each.array) for each in recorder.outside.values()}
        used = {id(memory_of(array)) for _, array in found.values()}
        for t in names.tensors:
            if id(memory_of(t.data)) in used:  # a view of it, or t.detach(), may be what was used
                found.setdefault(id(t), (t, t.data))
        self.tensors = [(t, array, t._requires_grad) for t, array in found.values()]
        self.starts = [(recorder.leaf(leaf), missing) for leaf, missing in recorder.starts.values()]
        self.modules = [(*each, id(each[0]) in recorder.switched) for each in recorder.modules.values()]
        self.names = names
        self.sources: list[tuple[Array, int]] = []  # arrays from which others may have been made, and their hashes
        self.changes = -1

    def hold(self, arguments: Sequence[Any]) -> bool:
        """Whether all is as it was."""
        for tensor, array, requires_grad in self.tensors:
            if tensor.data is not array or tensor._requires_grad is not requires_grad:
                return False
        for leaf, missing in self.starts:
            if ((arguments[leaf.at] if type(leaf) is Argument else leaf)._grad is None) is not missing:
                return False
        if self.names.changed() is not None or any(_hash(array) != values for array, values in self.sources):
            return False
        now = changes()
        if now != self.changes:
            if any(tensor.hooks for tensor, _, _ in self.tensors) or self.changed_module() is not None:
                return False
            self.changes = now
        return True

    def changed_module(self) -> str | None:
        """A module and its attribute that is not as it was."""
        for module, before, switched in self.modules:
            settings = _settings(module, switched)
            for name in before.keys() | settings.keys():
                if name not in before or name not in settings or before[name] != settings[name]:
                    return f"{type(module).__name__}.{name}"
        return None


def _settings(module: Any, switched: bool) -> dict[str, Any]:
    """What an attribute of a module can change: its mode, unless it is set anyway, numbers, names, hooks and parts."""
    found = {name: _summary(value) for name, value in vars(module).items() if name != "training"}
    mode = {} if switched else {"training": module.training}
    return {**found, **mode, "its class": type(module), "its hooks": len(module._forward_hooks)}


def _summary(value: Any, depth: int = 4) -> Any:
    """A value that equals another one only if nothing that matters has changed."""
    if isinstance(value, _PLAIN):
        return type(value), repr(value)
    if isinstance(value, (*_CONTAINERS, tuple)) and depth:
        each = value.items() if isinstance(value, dict) else value
        return type(value), tuple([_summary(part, depth - 1) for part in each])
    return _Same(value)


class _Same:
    """Equal only to itself around the same object."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.value is other.value

    __hash__ = None  # type: ignore[assignment]


# Special methods that no operator calls, or whose answers seldom matter to what is computed.
_NOT_BY_USE = {
    "__init__", "__new__", "__post_init__", "__init_subclass__", "__del__", "__repr__", "__str__", "__hash__", "__eq__",
    "__setattr__", "__delattr__", "__getstate__", "__setstate__", "__reduce__", "__reduce_ex__", "__deepcopy__",
}  # fmt: skip


class _Names:
    """What the names in a function's code stand for: variables around it, globals, their attributes, and so on.

    Functions and methods that it names are searched as well, and so is what they name; but nothing of this package, of
    NumPy or of the standard library.
    """

    def __init__(self, function: Callable[..., Any], objects: Sequence[Any]) -> None:
        self.found: list[tuple[str, Callable[[], Any], Any, Any]] = []
        self.tensors: list[Tensor] = []
        self.arrays: list[np.ndarray] = []
        self.iterator: str | None = None
        self._codes: dict[types.CodeType, set[str]] = {}
        self._seen: dict[Any, Any] = {}  # with what has to stay alive, so that no id is used twice
        self._thing("function", function, set())
        plain = inspect.unwrap(getattr(function, "__func__", function))
        names = self._codes.get(plain.__code__, set()) if isinstance(plain, types.FunctionType) else set()
        for each in objects:
            self._thing("an argument", each, names)

    def changed(self) -> str | None:
        """A name whose value has changed; None if there is none."""
        for name, look, before, contents in self.found:
            try:
                value = look()
            except (AttributeError, KeyError, ValueError):
                return name
            if contents is not None:
                if _summary(value) == contents:
                    continue
            elif value is before or (
                type(value) in _PLAIN and type(value) is type(before) and repr(value) == repr(before)
            ):
                continue
            return name
        return None

    def _note(self, name: str, names: set[str], function: Callable[..., Any], *arguments: Any) -> None:
        """Note the value that a function gives now, and look into it."""
        look = functools.partial(function, *arguments)
        try:
            value = look()
        except (AttributeError, KeyError, ValueError):
            return
        contents = _summary(value) if isinstance(value, (*_CONTAINERS, tuple)) else None
        self.found.append((name, look, value, contents))
        self._thing(name, value, names)

    def _thing(self, name: str, thing: Any, names: set[str]) -> None:
        """Look into what is called ``name``, for what the code in which it is found names."""
        key = id(thing), id(names)
        if isinstance(thing, _PLAIN) or key in self._seen:
            return
        self._seen[key] = thing, names
        if isinstance(thing, Tensor):
            self.tensors.append(thing)
        elif isinstance(thing, np.ndarray):
            self.arrays.append(thing)
        elif hasattr(type(thing), "__next__"):
            self.iterator = name
        elif isinstance(thing, (*_CONTAINERS, tuple)):
            for each in thing.values() if isinstance(thing, dict) else thing:
                self._thing(name, each, names)
        elif isinstance(thing, functools.partial):
            for each in (thing.func, *thing.args, *thing.keywords.values()):
                self._thing(name, each, names)
        elif isinstance(thing, types.MethodType) and isinstance(
            inner := inspect.unwrap(thing.__func__), types.FunctionType
        ):
            self._function(inner, thing.__self__)
        elif callable(thing) and isinstance(inner := inspect.unwrap(thing), types.FunctionType):
            self._function(inner, None)
        elif not _is_library(thing):
            self.tensors += getattr(thing, "params", ())  # of an optimiser
            for module in [each for _, each in thing.named_modules()] if isinstance(thing, Module) else ():
                self.tensors += [tensor for _, tensor in module._own_tensors()]
                self._method(module, "forward")
            for special in [each for each in dir(type(thing)) if each.startswith("__") and each not in _NOT_BY_USE]:
                self._method(thing, special)  # x[i], for instance, names none
            for attribute in sorted(names):
                self._attribute(f"{name}.{attribute}", thing, attribute, names)

    def _function(self, function: Any, owner: Any) -> None:
        code, key = function.__code__, (id(function), id(owner))
        if key in self._seen or _is_library(function.__module__):
            return
        self._seen[key] = function, owner
        names = self._codes.setdefault(code, _names_in(code))
        self._note(function.__name__, names, getattr, function, "__code__")
        for defaults in ("__defaults__", "__kwdefaults__"):
            if getattr(function, defaults):
                self._note(f"{function.__name__}.{defaults}", names, getattr, function, defaults)
        for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
            self._note(name, names, getattr, cell, "cell_contents")
        for name in sorted(names & function.__globals__.keys()):
            self._note(name, names, operator.getitem, function.__globals__, name)
        if owner is not None:
            self._thing("self", owner, names)

    def _method(self, owner: Any, name: str) -> None:
        function = inspect.getattr_static(type(owner), name, None)
        if isinstance(function, types.FunctionType) and not _is_library(function.__module__):
            self._note(f"{type(owner).__name__}.{name}", set(), getattr, type(owner), name)
            self._function(function, owner)

    def _attribute(self, name: str, owner: Any, attribute: str, names: set[str]) -> None:
        if attribute in getattr(owner, "__dict__", {}):
            if attribute != "training":  # which `_settings` looks at
                self._note(name, names, getattr, owner, attribute)
            return
        found = inspect.getattr_static(owner, attribute, None)
        if isinstance(found, types.FunctionType):
            self._method(owner, attribute)
        elif isinstance(found, property):
            try:
                plain = isinstance(getattr(owner, attribute), (*_PLAIN, *_CONTAINERS))
            except Exception:
                return
            if plain:
                self._note(name, names, getattr, owner, attribute)
        elif _makes_anew(found):
            with contextlib.suppress(Exception):
                self._thing(name, getattr(owner, attribute), names)
            self._note(name, names, inspect.getattr_static, owner, attribute)
        elif found is not None:
            self._note(name, names, getattr, owner, attribute)


_LIBRARIES = {"tinygrad_lenet", "numpy", "cupy", *sys.stdlib_module_names}


def _is_library(thing: Any) -> bool:
    """Whether a module, by itself or by name, or a class belongs to this package, NumPy or the standard library."""
    if isinstance(thing, (types.BuiltinFunctionType, np.ufunc, np.generic, np.random.Generator)):
        return True
    name = thing.__name__ if isinstance(thing, types.ModuleType) else getattr(thing, "__module__", None)
    name = thing if isinstance(thing, str) else name if isinstance(thing, (types.ModuleType, type)) else None
    return name is not None and name.partition(".")[0] in _LIBRARIES and not name.startswith("tinygrad_lenet.models")


def _makes_anew(found: Any) -> bool:
    """Whether each look at an attribute makes another object of what its class has, as with a class method.

    Not if that is written in C, as ``deque.append`` is: what it would change is not seen, so it has to be refused.
    """
    kind = type(found)
    return hasattr(kind, "__get__") and not hasattr(kind, "__set__") and kind is not types.MethodDescriptorType


def _names_in(code: types.CodeType) -> set[str]:
    """The names that a function's code mentions, those of functions inside it included."""
    found = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            found |= _names_in(constant)
    return found


# Comparing two recordings


def _differ(a: _Recorder, b: _Recorder) -> str | None:
    """What two recordings do differently, as a sentence for `JitError`; None if they do the same."""
    if [type(entry) for entry in a.log] != [type(entry) for entry in b.log] or a.outside.keys() != b.outside.keys():
        return "does not apply the same ops in two calls with arguments of the same shapes"
    for one, two in zip(a.log, b.log, strict=True):
        if isinstance(one, Applied):
            if type(one.op) is not type(two.op) or one.output != two.output or len(one.inputs) != len(two.inputs):
                return f"applies {one.op.name} in one call and {two.op.name} in the next (at {two.line})"
            for name in type(one.op).parameters:
                if not _alike(getattr(one.op, name), getattr(two.op, name)):
                    return f"applies {one.op.name} with another {name} in each call (at {two.line})"
            for x, y in zip(one.inputs, two.inputs, strict=True):
                if not _alike(x, y):
                    return (
                        f"uses the number {x!r} in {one.op.name} in one call and {y!r} in the next; pass it as an "
                        f"argument, as a tensor if it changes often (at {two.line})"
                    )
        elif not _alike(one._asdict() | {"array": None}, two._asdict() | {"array": None}):
            what = (
                f"calls {two.function.__qualname__} of other objects"
                if isinstance(two, Called)
                else "stores gradients in other tensors, or others in them,"
            )
            return f"{what} in two calls with arguments of the same shapes; make them before, or pass them as arguments"
    owners = [memory_of(_array(x)) for x in b.arguments]
    for slot, two in b.outside.items():
        one = a.outside[slot]
        if one.array is two.array or (
            memory_of(one.array) is memory_of(two.array) and _layout(one.array) == _layout(two.array)
        ):
            continue
        if any(memory_of(two.array) is owner for owner in owners):
            return f"takes part of an argument's array without an op; index the tensor instead (at {two.line})"
        values = None if one.values is None or two.values is None else (one.values.tobytes(), two.values.tobytes())
        if _layout(one.array)[1:] != _layout(two.array)[1:] or values is None or values[0] != values[1]:
            return (
                f"uses an array of shape {two.array.shape} that is made outside ops and differs between two calls; "
                f"pass it as an argument (at {two.line})"
            )
        two.made = True
    return None


def _layout(array: Array) -> tuple[Any, ...]:
    address = array.__array_interface__["data"][0] if type(array) is np.ndarray else id(array)
    return address, array.shape, array.strides, array.dtype


def _alike(x: Any, y: Any) -> bool:
    """Whether two values in a recording are the same, in type, too."""
    if type(x) is not type(y):
        return False
    if isinstance(x, (tuple, list)):
        return len(x) == len(y) and all(map(_alike, x, y))
    if isinstance(x, dict):
        return x.keys() == y.keys() and all(_alike(x[name], y[name]) for name in x)
    if isinstance(x, (float, complex)):
        return repr(x) == repr(y)
    if isinstance(x, (Node, np.ndarray)):
        return x is y
    return x is y or bool(x == y)


def _array(x: Any) -> Array:
    return x.data if isinstance(x, Tensor) else x


def _same_bits(x: np.ndarray, y: np.ndarray) -> bool:
    if x.strides == y.strides and not x.flags.c_contiguous:  # they lie alike in memory, where they are compared
        x, y = in_line(x), in_line(y)
    return x.tobytes() == y.tobytes()


def _hash(array: Array) -> int:
    return hash(_host(array).tobytes())


def _host(x: Any) -> np.ndarray:
    array = _array(x)
    return backend_of(array).to_numpy(array)


# Arguments and results


class _Identity:
    """A key that is equal to itself only."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Identity) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


def _flat(name: str, x: Any, arrays: list[Any], objects: list[Any]) -> Any:
    """A hashable description of an argument; its tensors and arrays are added to ``arrays``."""
    kind: Any = type(x)
    if isinstance(x, Tensor) and not isinstance(x, Parameter):
        data = x.data
        arrays.append(x)
        return Tensor, data.shape, data.dtype, data.strides, type(data), x._requires_grad, _place(data), _alone(x)
    if backend_of_type(kind) is not None:
        arrays.append(x)
        return kind, x.shape, x.dtype, x.strides, _place(x)
    if kind in _PLAIN:
        return kind, repr(x) if kind is float or kind is complex else x
    if kind in (tuple, list):
        return kind, *[_flat(name, each, arrays, objects) for each in x]
    if kind is dict:
        return kind, *[(key, _flat(name, each, arrays, objects)) for key, each in x.items()]
    try:
        hash(x)
    except TypeError:
        raise TypeError(
            f"jit: {name} was given {kind.__name__}; expected tensors, arrays, hashable values, or tuples, lists and "
            "dictionaries of these"
        ) from None
    if isinstance(x, np.ndarray):
        raise TypeError(f"jit: {name} was given {kind.__name__}; pass np.asarray(x)")
    if isinstance(x, np.generic):
        return kind, x.tobytes()
    objects.append(x)
    return kind, _Identity(x)  # what is equal may have other attributes


def _alone(x: Tensor) -> bool:
    """Whether a gradient ends at this tensor, and nothing else is called with it."""
    return x.op is None and not x.hooks


def _place(array: Array) -> Any:
    if type(array) is np.ndarray:
        return array.flags.aligned, array.dtype.isnative
    return backend_of(array).device_of(array)


@dataclass
class _Result:
    """What a call returned: how to make it again."""

    kind: str  # "slot", "argument", "outside", "gradient", "value", or a container: "tuple", "list", "dict"
    what: Any = None
    parts: Any = ()
    requires_grad: bool = False
    op: Any = None
    number: int = 0  # of the tensor, among those that the call returned


def _results(recorder: _Recorder, y: Any) -> _Result:
    """The description of a returned value; JitError for what cannot be returned by a replay."""
    if isinstance(y, Tensor):
        for i, x in enumerate(recorder.arguments):
            if y is x:
                return _Result("argument", i)
        for leaf in (entry.leaf for entry in recorder.log if isinstance(entry, (Stored, Fetched))):
            if (recorder.arguments[leaf.at] if isinstance(leaf, Argument) else leaf)._grad is y:
                return _Result("gradient", leaf)
        if y._requires_grad and y.op is not None and y.inputs is not None:
            recorder.refuse(
                "returns a tensor with its graph, which a replay does not make; take the gradient inside, call it "
                "under no_grad(), or return it detached"
            )
        if y._grad is not None and recorder.own(y):
            recorder.refuse("returns a leaf that it makes, with its gradient; return the gradient, too, or by itself")
        slot = recorder.slot(y)
        number = next((i for i, each in enumerate(recorder.returned) if each is y), len(recorder.returned))
        recorder.returned.append(y)
        if slot in recorder.outside:
            return _Result("outside", y, slot, y._requires_grad, y.op, number)
        return _Result("slot", slot, (), y._requires_grad, y.op, number)
    if type(y) in (tuple, list):
        return _Result(type(y).__name__, None, [_results(recorder, each) for each in y])
    if type(y) is dict:
        return _Result("dict", list(y), [_results(recorder, each) for each in y.values()])
    if type(y) in _PLAIN:
        return _Result("value", y)
    recorder.refuse(
        f"returns {type(y).__name__}; expected tensors, numbers, None, or tuples, lists or dictionaries of them"
    )
    raise AssertionError


def _slots_of(result: _Result) -> list[int]:
    if result.kind == "slot":
        return [result.what]
    if result.kind == "outside":
        return [result.parts]
    return [slot for part in (result.parts or ()) for slot in _slots_of(part)]


# Replaying


def _fetch(frame: Frame, leaf: Any, into: np.ndarray | None) -> None:
    known = frame.tensor(leaf)._grad
    if into is None or known is None:
        if into is not known:
            raise JitError("jit: a call in the recorded function left other gradients than when it was recorded")
    else:
        np.copyto(into, known.data)


def _call(function: Callable[..., Any], options: dict[str, Any], tensors: Sequence[bool], *arguments: Any) -> None:
    function(*[wrap(x) if tensor else x for x, tensor in zip(arguments, tensors, strict=True)], **options)


def _give_back(frame: Frame, index: int, array: np.ndarray) -> None:
    given = _array(frame.arguments[index])
    np.copyto(given, array)
    note_write(given)


class _Planned:
    """A recording on NumPy arrays, as a plan; JitError if it does not compute what the recording did."""

    def __init__(self, recorder: _Recorder, results: _Result) -> None:
        self.frame = Frame()
        slots = _slots_of(results)
        if not (self._agrees(recorder, slots, share=True) or self._agrees(recorder, slots, share=False)):
            raise JitError("jit: the plan of a recording gave other results than its ops")
        self._moves = 0
        self._bind()

    def _agrees(self, recorder: _Recorder, slots: list[int], share: bool) -> bool:
        """Make a plan; whether its calls, on memory of their own, give what the ops gave."""
        self.plan, values = self._make(recorder)
        ends = [values[slot].view(np.ndarray) for slot in slots]
        shown, held = [in_own_memory(y) for y in ends], self.plan.held()
        gradients = _gradients(recorder, values) if share else []
        self.plan.lay_out(ends, [array for _, array in gradients], share)
        place = self.plan.settle()
        self._inputs = [place(values[slot].view(np.ndarray)) for slot in range(len(recorder.arguments))]
        self._gradients = [(leaf, place(array)) for leaf, array in gradients]
        self._ends = [(slot, place(y)) for slot, y in zip(slots, ends, strict=True)]
        del values, ends, gradients
        self.plan.forget()
        return self.plan.agrees([(y, expected) for (_, y), expected in zip(self._ends, shown, strict=True)], held)

    def _bind(self) -> None:
        self.bound: Bound = self.plan.bind()
        self.inputs = [self.bound.array(x) for x in self._inputs]
        self.ends = {slot: (self.bound.array(y), _kind(y) == "held") for slot, y in self._ends}
        given = [each for each in self._gradients if _kind(each[1]) == "given" and self._moves < MOVES]
        self._handed = Handed([(leaf, self.bound.array(array)) for leaf, array in given], owner_of)
        self.frame.given = self._handed.given

    def _make(self, recorder: _Recorder) -> tuple[Plan, dict[int, Any]]:
        """A plan of what was recorded, and the array in each slot."""
        plan = Plan()
        values: dict[int, Any] = {}
        for slot, x in enumerate(recorder.arguments):
            values[slot] = plan.stand_in(_array(x), "argument")
        for slot, each in recorder.outside.items():
            values[slot] = plan.constant(_known(each)) if each.made else plan.stand_in(each.array, "held")
        written: set[int] = set()
        for are_stored, entries in itertools.groupby(recorder.log, lambda entry: isinstance(entry, Stored)):
            if are_stored:  # in one call
                stored = list(entries)
                arrays = [None if each.slot is None else values[each.slot] for each in stored]
                plan.effect("set .grad", Frame.store, self.frame, [each.leaf for each in stored], arrays)
                continue
            for entry in entries:
                if isinstance(entry, Applied):
                    inputs = [values[x.at] if type(x) is Slot else x for x in entry.inputs]
                    values[entry.output] = plan.apply(entry.op, inputs)
                    if entry.op.writes:
                        written.add(entry.output)
                elif isinstance(entry, Fetched):
                    if entry.slot is not None:
                        values[entry.slot] = plan.stand_in(entry.array, "argument")
                    target = None if entry.slot is None else values[entry.slot]
                    plan.effect("read gradient", _fetch, self.frame, entry.leaf, target, writes=True)
                else:
                    tensors = [type(x) is Slot for x in entry.arguments]
                    given = [values[x.at] if type(x) is Slot else x for x in entry.arguments]
                    plan.effect(entry.function.__qualname__, _call, entry.function, entry.options, tensors, *given)
        for i in sorted(written & set(range(len(recorder.arguments)))):
            plan.effect("argument", _give_back, self.frame, i, values[i])
        self.written = [memory_of(recorder.outside[slot].array) for slot in written if slot in recorder.outside]
        return plan, values

    def run(self, arguments: Sequence[Any]) -> dict[int, Tensor]:
        if self._handed.kept():
            self._moves += 1
            self._bind()
        self.frame.arguments = arguments
        try:
            for view, x in zip(self.inputs, arguments, strict=True):
                np.copyto(view, x.data if isinstance(x, Tensor) else x)
            self.bound.run()
            return {slot: wrap(y if held else in_own_memory(y)) for slot, (y, held) in self.ends.items()}
        finally:
            self.frame.arguments = ()
            if self.written:
                note_write(*self.written)
            self._handed.note()


def _kind(x: Any) -> str:
    """The kind of memory that an array lies in."""
    return x.memory.kind if isinstance(x, Place) else "value"


def _known(each: _Outside) -> np.ndarray:
    assert each.values is not None
    return each.values


def _gradients(recorder: _Recorder, values: dict[int, Any]) -> list[tuple[Any, np.ndarray]]:
    """The leaves that get a gradient, and their last one, in the order in which an optimiser most likely reads them.

    That is the order of the parameters of an optimiser that takes a step in the recording or, without one, the order in
    which leaves are first used.
    """
    order = {id(each.tensor): slot for slot, each in recorder.outside.items()}
    found: dict[int, tuple[Any, np.ndarray]] = {}
    for entry in recorder.log:
        if isinstance(entry, Stored) and not isinstance(entry.leaf, Argument):
            found.pop(id(entry.leaf), None)
            if entry.slot is not None:
                found[id(entry.leaf)] = entry.leaf, values[entry.slot].view(np.ndarray)
        elif isinstance(entry, Called) and entry.function.__name__ == "step":
            order |= {id(p): i for i, p in enumerate(getattr(entry.arguments[0], "params", ()))}
    return sorted(found.values(), key=lambda each: order.get(id(each[0]), len(order)))


def _on_device(recorder: _Recorder, results: _Result, drawn: dict[int, Array]) -> DeviceReplay:
    read = {x.slot: x.array for x in recorder.log if isinstance(x, Fetched) and x.slot is not None}
    outside = {slot: (each.array, _known(each) if each.made else None) for slot, each in recorder.outside.items()}
    return DeviceReplay(recorder.log, recorder.arguments, outside, drawn | read, _slots_of(results))


class _Recording:
    """A call that was recorded and, once a second one did the same, what replays it."""

    def __init__(self, recorder: _Recorder, conditions: _Conditions, results: _Result) -> None:
        self.recorder: _Recorder | None = recorder
        self.conditions = conditions
        self.results = results
        self.replay: _Planned | DeviceReplay | None = None
        self.values: list[np.ndarray | None] = list(recorder.values)  # of arguments that have not changed so far
        self.owners = {id(memory_of(each.array)) for each in recorder.outside.values() if not each.made}
        self.alive = [each.array for each in recorder.outside.values()]

    def confirm(self, recorder: _Recorder) -> None:
        """Compare with another recording; JitError if it did something else."""
        assert self.recorder is not None
        difference = _differ(self.recorder, recorder)
        if difference is not None:
            raise JitError(f"jit: {recorder.name} {difference}")
        for i, (old, new) in enumerate(zip(self.values, recorder.values, strict=True)):
            if old is not None and old.size and old.tobytes() != new.tobytes():
                self.values[i] = None

    def covers(self, arguments: Sequence[Any]) -> bool:
        """Whether the recordings tell enough: not if an argument that was the same in all of them differs now."""
        return all(
            before is None or _same_bits(before, _host(x)) for before, x in zip(self.values, arguments, strict=True)
        )

    def run(self, arguments: Sequence[Any]) -> Any:
        assert self.replay is not None
        return self._made(self.results, self.replay.run(arguments), arguments, {})

    def _made(
        self, result: _Result, found: dict[int, Tensor], arguments: Sequence[Any], made: dict[int, Tensor]
    ) -> Any:
        if result.kind == "slot":
            y = made.get(result.number)
            if y is None:
                y = made[result.number] = wrap(found[result.what].data)
            if result.requires_grad and y.op is None:
                y._requires_grad = True
                if result.op is not None:  # its graph has been freed
                    y.op, y.inputs, y.made = result.op, None, tick()
            return y
        if result.kind == "argument":
            return arguments[result.what]
        if result.kind == "gradient":
            leaf = result.what
            return (arguments[leaf.at] if isinstance(leaf, Argument) else leaf)._grad
        if result.kind in ("outside", "value"):
            return result.what
        parts = [self._made(part, found, arguments, made) for part in result.parts]
        if result.kind == "dict":
            return dict(zip(result.what, parts, strict=True))
        return tuple(parts) if result.kind == "tuple" else parts


class _State(threading.local):
    """What a thread has recorded."""

    def __init__(self) -> None:
        self.recordings: dict[Any, list[_Recording]] = {}
        self.busy = False
        self.latest: _Recording | None = None


class jit(Generic[P, R]):  # noqa: N801 - a decorator
    """Replay what ``function`` does to tensors, without running its Python code again.

    The first two calls with arguments of new shapes, dtypes, devices or plain values run as they are and are recorded;
    if they did the same, later ones replay that. What a call returns, and parameters, gradients, statistics and the
    state of optimisers after it, are those of ``function`` itself, to the bit. Arguments are tensors, arrays, hashable
    values, and tuples, lists and dictionaries of these; results likewise, of tensors and plain values.

    Everything that tensors do is replayed, random ops draw anew, and the steps of optimisers and schedules are taken
    with the settings of the moment. Other Python code is not run again: `JitError`, with the line, if the function
    reads a value (``item``, ``float``, ``if loss > 1``), has hooks, returns a tensor with its graph, or changes
    variables; and if an array or a number that it uses is made anew in each call and differs. What it prints, or reads
    from ``.data``, the clock or a file, is not noticed. Replaced parameters, ``train`` and ``eval``, `no_grad`, and
    other values of the variables and attributes that the function names lead to a new recording. Under
    `detect_anomaly`, within another recording, and for arguments that share memory or have a graph or hooks, it runs as
    it is. Each thread has its own recordings; results that would be views of an argument are copies. ``jit(f).plan`` is
    a table of the latest one.

    >>> from tinygrad_lenet import Tensor, jit
    >>> @jit
    ... def double(x):
    ...     return x + x
    >>> [double(Tensor([float(i)])).item() for i in range(4)]
    [0.0, 2.0, 4.0, 6.0]
    """

    def __init__(self, function: Callable[P, R]) -> None:
        if not callable(function):
            raise TypeError(f"jit: {function!r} is {type(function).__name__}; expected a function")
        for found in (inspect.isgeneratorfunction, inspect.iscoroutinefunction, inspect.isasyncgenfunction):
            if found(function):
                raise TypeError(f"jit: {function!r} is a generator or a coroutine; expected a function")
        self.function = function
        self._name = getattr(function, "__name__", type(function).__name__)
        self._state = _State()
        functools.update_wrapper(self, function, updated=())

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return self if instance is None else types.MethodType(self, instance)

    def __call__(self, *arguments: P.args, **options: P.kwargs) -> R:
        now, state = mode.get(), self._state
        if now.observer is not None or state.busy:
            return self.function(*arguments, **options)
        arrays: list[Any] = []
        objects: list[Any] = []
        key = (
            _flat(self._name, arguments, arrays, objects),
            _flat(self._name, options, arrays, objects) if options else (),
            now.recording,
            default_device(),
        )
        known = state.recordings.get(key)
        if known is None:
            while len(state.recordings) >= _KEPT:
                del state.recordings[next(iter(state.recordings))]
            known = state.recordings[key] = []
        state.busy = True
        try:
            owners = [id(memory_of(_array(x))) for x in arrays]
            for recording in known:
                if recording.conditions.hold(arrays):
                    if not recording.owners.isdisjoint(owners):
                        return self.function(*arguments, **options)
                    if recording.replay is not None and recording.covers(arrays):
                        state.latest = recording
                        return recording.run(arrays)
                    break
            else:
                recording = None
            if len(set(owners)) < len(owners) or not all(_plannable(x) for x in arrays):
                return self.function(*arguments, **options)
            return self._record(known, recording, arrays, objects, arguments, options)
        finally:
            state.busy = False

    def _record(
        self,
        known: list[_Recording],
        before: _Recording | None,
        arrays: list[Any],
        objects: list[Any],
        arguments: Any,
        options: Any,
    ) -> Any:
        """Call the function, note what it does and, if ``before`` did the same, make a plan of it."""
        names = _Names(self.function, objects)
        if names.iterator is not None:
            raise JitError(
                f"jit: {self._name} uses {names.iterator}, an iterator, which a replay would not advance; call next() "
                "outside and pass the value as an argument"
            )
        if any(t.data is _array(x) and t is not x for t in names.tensors for x in arrays):
            return self.function(*arguments, **options)  # as in step(w.detach()): an argument that is also a variable
        sources = [(array, _hash(array)) for array in map(_array, (*names.tensors, *names.arrays))]
        given = [_array(x) for x in arrays]
        recorder = _Recorder(self._name, arrays)
        with observed(recorder):
            y = self.function(*arguments, **options)
            results = _results(recorder, y)
        recorder.refuse_hidden_writes()
        conditions = _Conditions(recorder, names)
        changed = names.changed() or conditions.changed_module()
        if changed is not None:
            raise JitError(
                f"jit: {self._name} changes {changed}, which a replay would not do; return what it should become, or "
                "keep it in a tensor"
            )
        outside = [(tensor, array) for tensor, array, _ in conditions.tensors]
        for tensor, array in (*outside, *zip(arrays, given, strict=True)):
            if _array(tensor) is not array:
                raise JitError(
                    f"jit: {self._name} replaces the array of a tensor of shape {array.shape}; write into it instead"
                )
        if before is None:
            if len(known) >= _VARIANTS:
                del known[0]
            known.append(_Recording(recorder, conditions, results))
            recorder.forget(constants=True)
            return y
        if before.replay is not None:  # a plan, called with values that it was not made from
            before.confirm(recorder)
            return y
        try:
            before.confirm(recorder)
            if not _same_results(before.results, results):
                raise JitError(f"jit: {self._name} returns other values in two calls with arguments of the same shapes")
        except JitError:
            known.remove(before)
            raise
        made = _Recording(recorder, conditions, results)
        made.values = before.values
        known[known.index(before)] = made
        if made.owners.isdisjoint(id(memory_of(_array(x))) for x in arrays):
            planned = all(type(array) is np.ndarray for array, _, _ in recorder.known.values())
            drawn = {
                entry.output: recorder.known[entry.output][0]
                for entry in recorder.log
                if isinstance(entry, Applied) and not entry.op.repeatable
            }
            recorder.alive.clear()  # what the ops computed
            recorder.known.clear()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the function has given those of its own
                made.replay = _Planned(recorder, results) if planned else _on_device(recorder, results, drawn)
            self._state.latest = made
            if any(each.made for each in recorder.outside.values()):
                used = {id(memory_of(each.array)) for each in recorder.outside.values()}
                conditions.sources = [
                    (x, values) for x, values in sources if id(memory_of(x)) not in used and _hash(x) == values
                ]
        recorder.forget(constants=made.replay is None)
        return y

    @property
    def plan(self) -> "Plan | DeviceReplay | None":
        """The plan of this thread's latest recording; None if there is none.

        Printing it measures its steps or, on a GPU, tells what is in graphs.
        """
        replay = None if self._state.latest is None else self._state.latest.replay
        return replay.plan if isinstance(replay, _Planned) else replay

    def __reduce__(self) -> Any:
        return type(self), (self.function,)  # a copy records by itself

    def __repr__(self) -> str:
        return f"jit({self.function!r})"


def _plannable(x: Any) -> bool:
    array = _array(x)
    return (type(array) is not np.ndarray or bool(array.flags.aligned)) and (array is x or _alone(x))


def _same_results(a: _Result, b: _Result) -> bool:
    if a.kind == b.kind == "outside" and a.what is not b.what:
        b.kind, b.what, b.parts = "slot", b.parts, ()
        return True
    if a.kind != b.kind or len(a.parts if isinstance(a.parts, list) else ()) != len(
        b.parts if isinstance(b.parts, list) else ()
    ):
        return False
    if isinstance(a.parts, list):
        return a.what == b.what and all(map(_same_results, a.parts, b.parts))
    return _alike(a.what, b.what)
