"""The recorded graph: nodes, the one walk over them, and the backward pass.

A `Node` keeps the op that made it and that op's inputs. Nodes refer only to their inputs, never to their users, so a
graph has no reference cycles and is freed as soon as its output is dropped. One clock counts recorded results and
writes into memory: sorting by it puts a graph in the order of computation, and comparing times reveals values that were
overwritten after an op kept them.

`tinygrad_lenet.Tensor` is the node that holds an array. Nothing here depends on values.
"""

import functools
import inspect
import itertools
import operator
import types
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextvars import ContextVar, Token
from typing import Any, NamedTuple, Self, TypeVar, overload

from .backend import Array, memory_of
from .shapes import Shape

Rule = Callable[..., Any]  # an op's backward or curvature
Function = TypeVar("Function", bound=Callable[..., Any])


class Node:
    """A value in the graph: the op that made it and its inputs, none for a leaf."""

    __slots__ = ("__weakref__", "_requires_grad", "hooks", "inputs", "made", "op", "origin")

    _requires_grad: bool
    op: Any  # what made this node; None for a leaf
    inputs: "tuple[Any, ...] | None"  # what op was applied to: nodes and numbers; None once the graph has been freed
    made: int  # when, by the clock; 0 for a leaf
    hooks: "dict[int, Callable[[Any], Any]] | None"  # called with the gradient
    origin: Any  # where op was called, if an observer noted it
    data: Array  # in `tinygrad_lenet.Tensor`


class Observer:
    """Something that watches ops run, and what else changes values or reads them; see `observed`."""

    def computed(self, op: Any, inputs: Sequence[Any], output: Any) -> None:
        """An op has been applied to ``inputs``, tensors and numbers."""

    def differentiated(self, node: Node, name: str, gradient: Any) -> None:
        """The gradient for the input called ``name`` of the op that made ``node``."""

    def within_backward(self) -> "Observer | None":
        """The observer of the ops that compute gradients."""
        return None

    def born(self, leaf: Any) -> None:
        """A leaf has been made."""

    def fetched(self, leaf: Any) -> None:
        """The gradient of a leaf is about to be read."""

    def stored(self, leaf: Any, gradient: Any) -> None:
        """A leaf is about to get another gradient, a tensor or None."""

    def read(self, what: str, tensor: Any) -> None:
        """Values of a tensor are about to be handed to Python or NumPy."""

    def used(self, thing: Any) -> None:
        """A module is about to run, or hooks are about to be called."""

    def called(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Call a function that changes or checks something by other means than ops; see `repeated`."""
        return function(*arguments, **options)


def repeated(function: Function) -> Function:
    """A decorator for what changes or checks something by other means than ops: an observer is told of the call."""

    @functools.wraps(function)
    def call(*arguments: Any, **options: Any) -> Any:
        observer = mode.get().observer
        if observer is None:
            return function(*arguments, **options)
        return observer.called(function, *arguments, **options)

    return call  # type: ignore[return-value]


class Mode(NamedTuple):
    """Whether ops are recorded, and who observes them."""

    recording: bool = True
    observer: Observer | None = None


mode: ContextVar[Mode] = ContextVar("mode", default=Mode())  # noqa: B039 - immutable; per thread and per async task


class _Switched:
    """Another mode within a block, also if Ctrl-C comes as it begins or ends: so no calls of functions in Python."""

    def __init__(self, to: Mode) -> None:
        self._to = to

    def __enter__(self) -> None:
        before = mode.get()
        try:
            self._token = mode.set(self._to)
        except BaseException:
            mode.set(before)
            raise

    def __exit__(self, *exception: object) -> None:
        try:  # noqa: SIM105 - contextlib.suppress is written in Python
            mode.reset(self._token)
        except ValueError:  # a generator closed in another thread or task has nothing to restore there
            pass


def observed(observer: Observer | None) -> _Switched:
    """A context in which ``observer`` sees every op that is applied."""
    return _Switched(mode.get()._replace(observer=observer))


class no_grad:  # noqa: N801 - a word of the language: with no_grad(): or @no_grad
    """Within this block nothing is recorded and results require no gradient; also a decorator, with or without ().

    A decorated generator or coroutine runs without recording; code that runs between its steps is not affected.

    >>> from tinygrad_lenet import Tensor
    >>> x = Tensor(2.0, requires_grad=True)
    >>> with no_grad():
    ...     (x * x).requires_grad
    False
    """

    _tokens: list[Token[Mode]]  # of all threads and tasks inside the block

    @overload
    def __new__(cls, function: None = None) -> Self: ...

    @overload
    def __new__(cls, function: Function) -> Function: ...  # type: ignore[misc]  # as a decorator, it returns a function

    def __new__(cls, function: Any = None) -> Any:
        self = super().__new__(cls)
        self._tokens = []
        return self if function is None else self(function)

    def __enter__(self) -> None:
        before = mode.get()
        to = before._replace(recording=False)
        try:
            self._tokens.append(mode.set(to))
        except BaseException:  # as in _Switched
            mode.set(before)
            raise

    def __exit__(self, *exception: object) -> None:
        for token in self._tokens[::-1]:  # the latest of this thread and task
            try:
                mode.reset(token)
            except ValueError:
                continue
            self._tokens.remove(token)
            return

    def __call__(self, function: Function) -> Function:
        return self._around(function)

    def _around(self, function: Any) -> Any:
        if not callable(function):
            raise TypeError(f"no_grad: {function!r} is not a function; write `with no_grad():` or decorate a function")
        if inspect.isgeneratorfunction(function):

            @functools.wraps(function)
            def generator(*arguments: Any, **options: Any) -> Any:
                return (yield from _steps(function(*arguments, **options)))

            return generator
        if inspect.isasyncgenfunction(function):

            @functools.wraps(function)
            async def stream(*arguments: Any, **options: Any) -> Any:
                inner = function(*arguments, **options)
                send, value = inner.asend, None
                while True:
                    try:
                        item = await _awaited(send(value))
                    except StopAsyncIteration:
                        return
                    try:
                        send, value = inner.asend, (yield item)
                    except BaseException as error:  # also what closes it, so that it cleans up without recording
                        send, value = inner.athrow, error

            return stream
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def coroutine(*arguments: Any, **options: Any) -> Any:
                return await _awaited(function(*arguments, **options))

            return coroutine

        @functools.wraps(function)
        def plain(*arguments: Any, **options: Any) -> Any:
            with no_grad():
                return function(*arguments, **options)

        return plain


def _steps(inner: Any) -> Any:
    """Run a generator without recording, leaving its caller's mode as it is."""
    send: Callable[[Any], Any] = inner.send
    value: Any = None
    while True:
        with no_grad():
            try:
                item = send(value)
            except StopIteration as end:
                return end.value
        try:
            send, value = inner.send, (yield item)
        except BaseException as error:  # also what closes it, so that it cleans up without recording
            send, value = inner.throw, error


_awaited: Callable[[Any], Any] = types.coroutine(_steps)  # coroutines run in steps, like generators


REGISTRY: dict[str, Any] = {}  # the class of each op by its name; `tinygrad_lenet.op.Op` fills it


_PLAIN = {int, float, bool, str, type(None)}
_WHOLE = {int}


@functools.lru_cache(maxsize=1024, typed=True)
def _made(op_class: Any, *parameters: Any) -> Any:
    return op_class(*parameters)


def op(name: str, *parameters: Any) -> Any:
    """The op called ``name`` with these parameters; it is made once, since ops do not change."""
    for each in parameters:
        if type(each) not in _PLAIN and not (type(each) is tuple and _WHOLE.issuperset(map(type, each))):
            return REGISTRY[name](*parameters)  # True would be looked up as 1, and a list cannot be looked up
    return _made(REGISTRY[name], *parameters)


@functools.lru_cache(maxsize=1024)
def _made_for_index(op_class: Any, parts: tuple[Any, ...], *shape: tuple[int, ...]) -> Any:
    return op_class(tuple([slice(*part) if type(part) is tuple else part for part in parts]), *shape)


_BOUND = {int, type(None)}


def indexing_op(name: str, pattern: tuple[Any, ...], *shape: tuple[int, ...]) -> Any:
    """As `op`, for ops with the pattern of an index, which may hold slices, and with the shape of an array or not."""
    parts: list[Any] = []
    for part in pattern:
        if type(part) is slice:
            part = part.start, part.stop, part.step
        if not (_BOUND.issuperset(map(type, part)) if type(part) is tuple else type(part) is int):
            return REGISTRY[name](pattern, *shape)
        parts.append(part)
    return _made_for_index(REGISTRY[name], tuple(parts), *shape)


# The clock, and writes into memory

_clock = itertools.count(1)
tick: Callable[[], int] = _clock.__next__

_last_write = 0
_writes: dict[int, list[Any]] = {}  # id of the array that owns the memory -> [weak reference to it, time]


def note_write(*arrays: Array) -> None:
    """Note that the memory of ``arrays`` has just been written to."""
    global _last_write
    _last_write = now = tick()
    for array in arrays:
        owner = array if array.base is None else memory_of(array)
        key = id(owner)
        known = _writes.get(key)
        if known is None:
            _writes[key] = [weakref.ref(owner, lambda _, key=key: _writes.pop(key, None)), now]  # type: ignore[misc]
        else:
            known[1] = now


def _refuse_overwritten(y: Node) -> None:
    """ValueError if y, or an input of the op that made it, has been written to since."""
    if _last_write <= y.made or not y.op.read:
        return
    inputs, signature = y.inputs or (), y.op.parsed
    for spec, x in zip([*signature.specs(len(inputs)), signature.output], [*inputs, y], strict=True):
        if spec.name not in y.op.read or not isinstance(x, Node):
            continue
        if _writes.get(id(memory_of(x.data)), (None, 0))[1] > y.made:
            raise ValueError(
                f"backward: {spec.name}, of shape {x.data.shape}, was written to after {y.op.name} had used it, so its "
                "gradient would be wrong; call backward before the write (an optimiser's step is one), or compute the "
                "output again"
            )


_changes = 0


def changes() -> int:
    """How often a module's attributes or the hooks of a tensor or module have changed."""
    return _changes


def note_change() -> None:
    """Note such a change."""
    global _changes
    _changes += 1


# The walk


def ancestors(output: Node) -> list[Node]:
    """``output`` and all nodes that it was computed from and that require a gradient, inputs before outputs.

    It uses an explicit stack, so only memory limits the depth of a graph. ValueError if part of it has been freed.
    """
    if not output._requires_grad:
        return [output]
    found = {id(output): output}
    stack = [output]
    while stack:
        y = stack.pop()
        if y.inputs is None:
            raise ValueError(
                f"backward: the graph through {y.op.name} has been freed by an earlier backward; pass "
                "retain_graph=True to that one, or compute the output again"
            )
        for x in y.inputs:
            if isinstance(x, Node) and x._requires_grad and id(x) not in found:
                found[id(x)] = x
                stack.append(x)
    return sorted(found.values(), key=operator.attrgetter("made"))


class Path:
    """The nodes that lead from ``targets`` (default: all leaves) to ``output``, for passes back from the output."""

    wanted: set[int]  # ids of the targets
    leading: set[int]  # ids of all nodes from the targets to the output

    def __init__(self, output: Node, targets: Sequence[Node] | None) -> None:
        self._nodes = ancestors(output)
        self._all = targets is None
        if targets is None:
            self.wanted = {id(y) for y in self._nodes if y.op is None}
            self.leading = {id(y) for y in self._nodes}
            return
        self.wanted = {id(x) for x in targets}
        self.leading = set()
        for y in self._nodes:
            if id(y) in self.wanted or any(id(x) in self.leading for x in y.inputs or ()):
                self.leading.add(id(y))
        self._nodes = [y for y in self._nodes if id(y) in self.leading]

    def nodes(self) -> list[Node]:
        """The nodes, inputs before outputs."""
        return self._nodes

    def backwards(self) -> Iterator[Node]:
        """The nodes from the output back; each one is dropped here when it is yielded."""
        while self._nodes:
            yield self._nodes.pop()

    def continues(self, y: Node) -> bool:
        """Whether the path continues from y to an input."""
        return y.op is not None and (self._all or any(id(x) in self.leading for x in y.inputs or ()))


class Onto:
    """A gradient of few elements: given the known gradient of an input, if there is one, it returns both together."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self._function = function

    def __call__(self, known: Any = None) -> Any:
        return self._function(known)


def backpropagate(path: Path, output: Node, gy: Any, retain_graph: bool, create_graph: bool) -> list[tuple[Any, Any]]:
    """Each wanted node of the path with its gradient, in the order in which the pass reaches them."""
    pending = {id(output): gy}  # gradients of nodes, some of whose users have not been visited yet
    found = []
    now = mode.get()
    inside = Mode(create_graph, None if now.observer is None else now.observer.within_backward())
    try:
        mode.set(inside)
        for y in path.backwards():
            gy = pending.pop(id(y))
            if y.hooks:
                if now.observer is not None:
                    now.observer.used(y.hooks)
                for hook in list(y.hooks.values()):
                    gy = _replaced(gy, hook(gy))
            if id(y) in path.wanted:
                found.append((y, gy))
            if path.continues(y):
                add_up(pending, input_gradients(y, path.leading, pending, now.observer, y.op.backward, gy))
                if not retain_graph:
                    y.inputs = None
    finally:
        mode.set(now)
    return found


def add_up(pending: dict[int, Any], gradients: Iterable[tuple[Node, Any]]) -> None:
    """Add each new gradient to the node's known one, out of place, since gradients may share memory."""
    for x, gx in gradients:
        known = pending.get(id(x))
        pending[id(x)] = gx if known is None else known + gx


def input_gradients(
    y: Node, wanted: set[int], pending: dict[int, Any], observer: Observer | None, rule: Rule, *gradients: Any
) -> Iterator[tuple[Node, Any]]:
    """Each wanted input of the op that made y, with its gradient by that op's ``rule``, for `add_up` to ``pending``.

    The gradient is checked and converted to the input's shape and dtype, which undoes broadcasting and promotion for
    all ops in one place.
    """
    op, inputs = y.op, y.inputs or ()
    try:
        _refuse_overwritten(y)
        found = rule(*gradients, y, *inputs)
        if not isinstance(found, tuple):
            found = (found,)
        if len(found) != len(inputs):
            raise ValueError(f"{op.name}: {rule.__name__} returned {len(found)} gradients; expected {len(inputs)}")
        for spec, x, gx in zip(op.parsed.specs(len(inputs)), inputs, found, strict=True):
            if isinstance(x, Node) and id(x) in wanted:
                if callable(gx):
                    gx = gx(pending.pop(id(x), None)) if type(gx) is Onto else gx()
                gx = _fitted(op, rule.__name__, spec, gx, x, y)
                if observer is not None:
                    observer.differentiated(y, spec.name, gx)
                yield x, gx
    except Exception as error:
        if y.origin and str(y.origin) not in str(error):
            error.add_note(f"The forward pass called {op.name} at {y.origin}")
        raise


def _fitted(op: Any, rule: str, spec: Any, gx: Any, x: Node, y: Node) -> Any:
    """The gradient for one input, checked and converted to the input's shape and dtype."""
    shape, dtype, computed = x.data.shape, x.data.dtype, y.data.dtype
    if gx is None:
        raise ValueError(f"{op.name}: no gradient is defined for {spec.name}; detach() it if it should have none")
    if not isinstance(gx, Node):
        raise TypeError(f"{op.name}: {rule} returned {type(gx).__name__} for {spec.name}; expected a Tensor")
    found: Array = gx.data
    if found.shape != shape and spec.any_rank and found.ndim >= len(shape):
        gx = _unbroadcast(gx, shape)
        found = gx.data
    if found.shape != shape or found.dtype != computed:
        raise ValueError(
            f"{op.name}: {rule} returned {found.dtype} of shape {found.shape} for {spec.name}; "
            f"expected {computed} of shape {shape}"
        )
    return gx if computed == dtype else gx.astype(dtype)


def _unbroadcast(gx: Any, shape: Shape) -> Any:
    """The transpose of broadcasting: sum over the axes along which an input of ``shape`` was repeated."""
    new = gx.ndim - len(shape)
    repeated = tuple(a for a in range(gx.ndim) if a < new or (shape[a - new] == 1 and gx.shape[a] != 1))
    if len(repeated) == new:
        return gx.sum(repeated) if new else gx
    summed = gx.sum(repeated, keepdims=True)
    return summed.reshape(summed.shape[new:]) if new else summed


def _replaced(gy: Any, answer: Any) -> Any:
    """The gradient, or the one that a hook returned instead."""
    if answer is None:
        return gy
    expected = f"{gy.dtype} of shape {gy.shape}"
    found = f"{answer.data.dtype} of shape {answer.data.shape}" if isinstance(answer, Node) else type(answer).__name__
    if found != expected:
        raise ValueError(f"register_hook: the hook returned {found}; expected a Tensor, {expected}")
    return answer
