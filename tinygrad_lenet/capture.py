"""Replaying a recording on a device: as graphs of work that the device repeats, and call by call where that cannot be.

Launching LeNet-5's kernels one by one takes longer than they run. A device therefore records the kernels of a whole
step as a graph (a CUDA graph; the array library offers them) and repeats it in one launch. A graph knows addresses, not
arrays: all that it reads and writes stays where it is, in memory that only this recording uses. Arguments are copied
in, results are copied out, and what changes from step to step, such as the rate of an optimiser, is written to an array
before each launch.

What a graph cannot hold runs between two graphs: ops that draw on the host, products that are left to cuBLAS, functions
such as a schedule's step. On a device without graphs everything runs like that.
"""

from collections.abc import Callable, Sequence
from typing import Any

from .backend import Array, DeviceError, Graphs, backend_of, memory_of, transfer
from .graph import note_write
from .recorded import MOVES, Applied, Called, Fetched, Frame, Handed, JitError, Slot, Stored
from .tensor import Tensor, wrap

Values = dict[int, Any]  # arrays by slot
_Part = tuple[str, Callable[[Values], None]]  # of a replay, and what it is called


class _UnfitError(Exception):
    """An entry of the recording that a graph cannot hold."""

    def __init__(self, index: int) -> None:
        self.index = index


class DeviceReplay:
    """A recording that is replayed on a device; printing it shows what is in graphs and what runs between them.

    ``outside`` are the arrays by slot that the recording found and, if each call makes them anew, their values on the
    host; ``samples`` are arrays as they were in the slots of ops that draw numbers and of gradients that were there
    before; ``wanted`` are the slots of results.
    """

    def __init__(
        self,
        log: Sequence[Any],
        arguments: Sequence[Any],
        outside: dict[int, tuple[Array, Any]],
        samples: Values,
        wanted: Sequence[int],
    ) -> None:
        self.frame = Frame()
        self._log, self._samples, self._wanted = log, samples, wanted
        self._held = {slot: array for slot, (array, made) in outside.items() if made is None}
        self._made = {
            slot: transfer(made, backend_of(array).device_of(array))
            for slot, (array, made) in outside.items()
            if made is not None
        }
        self._written = {entry.output for entry in log if isinstance(entry, Applied) and entry.op.writes}
        self._between = {i for i in range(len(log)) if not self._fits(i)}  # what runs between graphs
        called = next((i for i, entry in enumerate(log) if isinstance(entry, Called)), len(log))
        self._first = {i for i in self._between if i < called and _ready(log[i])}  # what runs before all of them
        self._moves = 0
        self._refusal = ""  # why there are no graphs, if making them failed
        arrays = [*map(_array, arguments), *self._held.values(), *self._made.values()]
        try:
            self._backend = backend_of(*arrays)
        except DeviceError:  # on different devices
            self._graphs: Graphs | None = None
        else:  # a copy has to lie in memory as the argument does, or sums may be made in another order
            dense = all(_array(x).copy(order="K").strides == _array(x).strides for x in arguments)
            self._graphs = None if not dense else self._backend.graphs(next(map(self._backend.index_of, arrays), 0))
        self.frame.arguments = arguments
        self._make(arguments)
        self.frame.arguments = ()

    def _fits(self, i: int) -> bool:
        """Whether entry ``i`` may become a part of a graph."""
        entry = self._log[i]
        if isinstance(entry, Called):  # a step reads gradients and settings, which earlier functions may change
            return all(_step(each) is not None for each in self._log[: i + 1] if isinstance(each, Called))
        return isinstance(entry, Stored) or (isinstance(entry, Applied) and entry.op.repeatable)

    # Making graphs

    def _make(self, arguments: Sequence[Any]) -> None:
        """Make the parts of a replay, with graphs that hold as much as they can."""
        leaves = [self.frame.tensor(entry.leaf) for entry in self._log if isinstance(entry, Stored)]
        gradients = [leaf._grad for leaf in leaves]
        made = False
        try:
            while self._graphs is not None and not made:
                try:
                    with self._graphs.aside():
                        self._capture(self._graphs, self._rehearse(arguments))
                    made = True
                except _UnfitError as error:
                    self._between.add(error.index)
                except Exception as error:  # the device refuses something, and does not say what
                    self._graphs, self._refusal = None, f"no graphs: {error}\n"
        finally:
            for leaf, gradient in zip(leaves, gradients, strict=True):
                leaf._grad = gradient
            if not made:
                self._fixed: Values = {}  # what graphs read or write, and others too
                self._steps: list[Any] = []  # of optimisers, in graphs
                self._handed = Handed([], memory_of)
                self.frame.given = self._handed.given
                self._parts: list[_Part] = [self._alone(entry) for entry in self._log]

    def _rehearse(self, arguments: Sequence[Any]) -> dict[int, Any]:
        """Run everything once, so that all kernels are there and memory has been asked for, and undo it.

        What a graph reads that is written before its launch gets its memory here: what is made while a graph is made
        may lie where earlier parts of the graph keep something.
        """
        self._fixed = {slot: _array(x).copy(order="K") for slot, x in enumerate(arguments)}
        self._fixed |= {slot: x.copy(order="K") for slot, x in (self._made | self._samples).items()}
        values = self._held | self._fixed
        steps = {i: self._in_graph(i) for i in range(len(self._log)) if i not in self._between}
        changed = [self._held[slot] for slot in self._written if slot in self._held]
        changed += [x for step in steps.values() if step is not None for x in step.written()]
        before = [(x, x.copy(order="K")) for x in changed]
        try:
            for i, entry in enumerate(self._log):
                if i not in self._between:
                    self._enqueue(entry, values, steps[i])
                elif isinstance(entry, Applied):
                    if entry.op.repeatable:
                        self._samples[entry.output] = _computed(entry, values).copy()
                    values[entry.output] = self._fixed[entry.output] = self._samples[entry.output]
        finally:
            for x, saved in before:
                x[...] = saved
        return steps

    def _in_graph(self, i: int) -> Any:
        """Entry ``i`` as a part of a graph, if it is an optimiser's step."""
        step = _step(self._log[i])
        given = [self.frame.tensor(each.leaf) for each in self._log[:i] if isinstance(each, Stored)]
        return step and step(given)

    def _enqueue(self, entry: Any, values: Values, step: Any) -> None:
        """Do the work of an entry on the device, or note it in the graph that is being made."""
        if isinstance(entry, Applied):
            values[entry.output] = _computed(entry, values)
        elif isinstance(entry, Stored):
            self.frame.tensor(entry.leaf)._grad = None if entry.slot is None else wrap(values[entry.slot])
        else:
            step.enqueue()

    def _capture(self, graphs: Graphs, all_steps: dict[int, Any]) -> None:
        """Note the work in graphs, with values in memory that is used again once no entry needs them."""
        self._parts = [self._renewed(slot) for slot in self._written & self._made.keys()]
        self._parts += [self._alone(self._log[i]) for i in sorted(self._first)]
        self._steps = []
        values, unneeded = self._held | self._fixed, self._unneeded()
        is_open = False  # whether a graph is being made
        names: list[str] = []  # of what it holds
        pending: list[_Part] = []  # gradients that leaves get after it
        steps: list[Any] = []

        def close() -> None:
            nonlocal is_open
            if is_open:
                self._parts.append(self._launch(names, graphs.end(), steps))
                is_open = False
            self._parts.extend(pending)
            self._steps.extend(steps)
            for each in (names, pending, steps):
                each.clear()

        try:
            for i, entry in enumerate(self._log):
                if i in self._first:
                    continue
                if i in self._between:
                    close()
                    self._parts.append(self._alone(entry))
                    continue
                step = all_steps[i]
                if isinstance(entry, Stored):
                    pending.append(self._alone(entry))
                else:
                    if not is_open:
                        graphs.begin()
                        is_open = True
                    names.append(entry.op.name if step is None else type(step.optimizer).__name__)
                try:
                    self._enqueue(entry, values, step)
                except Exception as error:
                    raise _UnfitError(i) from error
                if step is not None:
                    steps.append(step)
                for slot in unneeded.get(i, ()):
                    del values[slot]
            close()
        finally:
            if is_open:
                graphs.abandon()
        self._fixed = {slot: x for slot, x in values.items() if slot not in self._held}
        self._handed = Handed(self._own_gradients() if self._moves < MOVES else [], memory_of)
        self.frame.given = self._handed.given

    def _unneeded(self) -> dict[int, list[int]]:
        """By entry: the slots that only graphs use, and none after it."""
        last: dict[int, int] = {}
        kept = {*self._held, *self._fixed, *self._wanted, *self._written}
        for i, entry in enumerate(self._log):
            if isinstance(entry, Applied):
                last |= dict.fromkeys((entry.output, *_slots_read(entry)), i)
            if i in self._between or isinstance(entry, Stored):
                kept.update(_slots_read(entry))
        found: dict[int, list[int]] = {}
        for slot, i in last.items():
            if slot not in kept:
                found.setdefault(i, []).append(slot)
        return found

    def _own_gradients(self) -> list[tuple[Any, Array]]:
        """The leaves whose last gradient is computed in a graph, for them alone, and that gradient."""
        stored = [entry for entry in self._log if isinstance(entry, Stored) and isinstance(entry.leaf, Tensor)]
        last = {id(entry.leaf): (entry.leaf, entry.slot) for entry in stored}
        slots = [slot for _, slot in last.values()]
        inside = [entry for i, entry in enumerate(self._log) if i not in self._between and isinstance(entry, Applied)]
        computed = {entry.output for entry in inside if not entry.op.writes}
        own = [(leaf, slot) for leaf, slot in last.values() if slots.count(slot) == 1]
        return [(leaf, self._fixed[slot]) for leaf, slot in own if slot is not None and slot in computed]

    # The parts of a replay

    def _launch(self, names: Sequence[str], graph: Any, steps: Sequence[Any]) -> _Part:
        counted = tuple(steps)

        def part(values: Values) -> None:
            for step in counted:
                step.prepare()
            graph.launch()

        return f"graph: {', '.join(names)}", part

    def _renewed(self, slot: int) -> _Part:
        def part(values: Values) -> None:
            values[slot][...] = self._made[slot]

        return "constant", part

    def _alone(self, entry: Any) -> _Part:
        """An entry that runs as it did when it was recorded."""
        if isinstance(entry, Applied):
            return entry.op.name, lambda values: self._apply(entry, values)
        if isinstance(entry, Stored):
            return "gradient", lambda values: self.frame.store(
                [entry.leaf], [None if entry.slot is None else values[entry.slot]]
            )
        if isinstance(entry, Fetched):
            return "read gradient", lambda values: self._fetch(entry, values)
        return entry.function.__qualname__, lambda values: entry.function(
            *[wrap(values[x.at]) if type(x) is Slot else x for x in entry.arguments], **entry.options
        )

    def _apply(self, entry: Applied, values: Values) -> None:
        y = _computed(entry, values)
        if entry.op.writes:
            note_write(values[entry.output])
        else:
            self._put(entry.output, y, values)

    def _fetch(self, entry: Fetched, values: Values) -> None:
        known = self.frame.tensor(entry.leaf)._grad
        if (known is None) is not (entry.slot is None):
            raise JitError("jit: a call in the recorded function left other gradients than when it was recorded")
        if entry.slot is not None:
            self._put(entry.slot, known.data, values)

    def _put(self, slot: int, x: Array, values: Values) -> None:
        """Put a value where a graph finds it, if one reads it."""
        if slot in self._fixed:
            with self._backend.current(x):
                self._fixed[slot][...] = x
        else:
            values[slot] = x

    # Replaying

    def run(self, arguments: Sequence[Any]) -> dict[int, Tensor]:
        """What a call of the recorded function does; the results by slot."""
        self.frame.arguments = arguments
        try:
            if not all(step.holds() for step in self._steps):
                self._make(arguments)
            elif self._handed.kept():
                self._moves += 1
                self._make(arguments)
            for i, entry in enumerate(self._log):
                if isinstance(entry, Fetched) and i not in self._first:  # graphs may write to its memory before
                    self.frame.own(entry.leaf)
            return self._run(arguments)
        finally:
            self.frame.arguments = ()
            self._handed.note()

    def _run(self, arguments: Sequence[Any]) -> dict[int, Tensor]:
        values = self._held | (self._fixed or {slot: x.copy(order="K") for slot, x in self._made.items()})
        for slot, x in enumerate(arguments):
            self._put(slot, _array(x), values)
        for _, part in self._parts:
            part(values)
        if self._fixed:
            note_write(*[values[slot] for slot in self._written if slot in self._held])
            for slot in self._written & set(range(len(arguments))):
                array = _array(arguments[slot])
                array[...] = values[slot]
                note_write(array)
        return {slot: self._result(values[slot]) for slot in self._wanted}

    def _result(self, y: Array) -> Tensor:
        """A result in memory of its own, unless it is a view of what was there before."""
        if not self._fixed or any(memory_of(y) is memory_of(x) for x in self._held.values()):
            return wrap(y)
        with self._backend.current(y):
            return wrap(y.copy(order="K"))

    def __str__(self) -> str:
        return self._refusal + "\n".join(f"{i:3}  {what}" for i, (what, _) in enumerate(self._parts))


def _ready(entry: Any) -> bool:
    """Whether an entry needs nothing that is computed in the call: a gradient that is there, or numbers to draw."""
    if not isinstance(entry, Applied):
        return isinstance(entry, Fetched)
    specs = entry.op.parsed.specs(len(entry.inputs))
    return not entry.op.repeatable and all(entry.op.domains[spec.name].kind == "constant" for spec in specs)


def _step(entry: Any) -> Any:
    """How an optimiser's step becomes a part of a graph, if the entry is one."""
    if isinstance(entry, Called) and entry.function.__name__ == "step":
        return getattr(entry.arguments[0], "in_graph", None)
    return None


def _slots_read(entry: Any) -> list[int]:
    """The slots whose values an entry uses."""
    if isinstance(entry, Stored):
        return [] if entry.slot is None else [entry.slot]
    inputs = entry.inputs if isinstance(entry, Applied) else entry.arguments if isinstance(entry, Called) else ()
    return [x.at for x in inputs if type(x) is Slot]


def _computed(entry: Applied, values: Values) -> Array:
    arrays = [values[x.at] if type(x) is Slot else x for x in entry.inputs]
    backend = backend_of(*arrays)
    with backend.current(*arrays):
        y = entry.op.compute(backend, arrays)
    return arrays[0] if entry.op.writes else y


def _array(x: Any) -> Array:
    return x.data if isinstance(x, Tensor) else x
