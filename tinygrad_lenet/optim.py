"""Optimisers, which update parameters from their gradients, and schedules, which change the learning rate.

Updates are PyTorch's. The gradients of all parameters of one dtype on one device are gathered into one flat vector, and
the arithmetic runs on such vectors: a few passes over one array instead of a few over each of many small ones. The
parameters' arrays are only ever written in place, so memory that others share with them stays shared.
"""

import copy
import itertools
import math
import operator
import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from .backend import Array, Backend, backend_of, find_kernel, is_writable, memory_of, transfer
from .curvature import curvature
from .graph import no_grad, note_write, op, repeated
from .nn.state import copy_values, fitting_values, write
from .shapes import integer, number
from .tensor import Tensor, wrap

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "OneCycle",
    "Optimizer",
    "PassRates",
    "StepLR",
    "StochasticDiagonalLM",
    "clip_grad_norm",
]

Params = Iterable[Tensor] | Iterable[Mapping[str, Any]]


def __dir__() -> list[str]:  # for completion: no helpers, no imports
    return __all__


@dataclass
class _Rates:
    """What a group of parameters has for itself."""

    factor: float  # its rate is the optimiser's times this
    weight_decay: float | None  # None: the optimiser's


@dataclass
class _Group:
    """Parameters of one dtype, device and set of rates, and flat vectors with one entry for each of their elements."""

    rates: _Rates
    backend: Backend
    members: list[int]  # which of the optimiser's parameters
    params: list[Tensor]
    arrays: list[Array]  # their data
    offsets: list[int]  # parameter k lies at offsets[k] : offsets[k + 1] of each vector
    gradient: Array  # the gathered gradients
    change: Array  # what is subtracted from the parameters
    state: dict[str, Array]

    def views(self, vector: Array) -> list[Array]:
        """Views of a vector, one per parameter and in its shape."""
        return [
            vector[start:stop].reshape(array.shape)
            for start, stop, array in zip(self.offsets, self.offsets[1:], self.arrays, strict=False)
        ]

    def __post_init__(self) -> None:
        self.gradients, self.changes = self.views(self.gradient), self.views(self.change)
        self.shapes = [array.shape for array in self.arrays]
        # Gradients that lie in memory as in a vector, and where it begins. A replay that finds its gradients kept by
        # others does not hand them out again, so nothing here keeps them.
        self.found: list[weakref.ref[Array]] = []
        self.first_byte = 0

    def together(self, arrays: list[Array | None]) -> Array:
        """The gradients as one vector: copied or, if they already lie like that in memory, as they are."""
        whole = all(array is not None for array in arrays)
        if not whole:
            self.found = []
        elif not self.found or not all(map(operator.is_, arrays, [known() for known in self.found])):
            first_byte = _in_line(arrays, self.gradient)
            self.found = [] if first_byte is None else list(map(weakref.ref, arrays))
            self.first_byte = first_byte or 0
        if self.found:
            return np.ndarray(self.gradient.shape, self.gradient.dtype, memory_of(arrays[0]), self.first_byte)
        if not whole or not _served(self.backend, "gather", arrays, self.gradient):
            for target, array in zip(self.gradients, arrays, strict=True):
                if array is not None:
                    target[...] = array
        return self.gradient


class _Run(NamedTuple):
    """Parameters of a group that have gradients and have been updated equally often: first..last-1."""

    group: _Group
    gradient: Array  # the group's gradients, as one vector
    first: int
    last: int


class Optimizer:
    """What all optimisers share; a subclass names its state vectors and defines `_update`, perhaps also `_numbers`.

    ``params`` are tensors, or dictionaries such as {"params": model.c1.parameters(), "lr": 0.01, "weight_decay": 0},
    each a group with a rate or a decay of its own. A group's rate stays in proportion to the optimiser's ``lr``, which
    schedules change. A step skips parameters whose ``.grad`` is None, and their state. The state of float16 parameters
    is kept in float32. Copying or pickling an optimiser includes its parameters and its state. TypeError for params
    that are not tensors; ValueError if there are none, if one is given twice or does not hold floats, and for settings
    out of range.
    """

    _state: tuple[str, ...] = ()
    _decoupled = False  # whether weight decay acts on the parameters directly or is part of the gradient

    def __init__(self, params: Params, lr: float, weight_decay: float = 0) -> None:
        name = type(self).__name__
        self.lr = lr
        self.weight_decay: float = number(name, "weight_decay", weight_decay, "[0, inf)")
        found, self._rates = _grouped(name, params, self.lr)
        self.params: list[Tensor] = _parameters(name, found)
        self._steps = [0] * len(self.params)  # how many times each parameter was updated
        self._groups: list[_Group] = []
        self._lay_out()

    @property
    def lr(self) -> float:
        """The learning rate for the next step; ValueError if it is set to anything but a positive number."""
        return self._lr

    @lr.setter
    def lr(self, value: float) -> None:
        self._lr = number(type(self).__name__, "lr", value, "(0, inf)")

    def zero_grad(self) -> None:
        """Drop the gradients of all parameters."""
        for p in self.params:
            p.grad = None

    @repeated
    def step(self) -> None:
        """Update each parameter that has a gradient, in place; ValueError if a gradient does not fit its parameter."""
        self._follow()
        for run in self._runs():  # all is checked before any update
            self._count(run)
            with run.group.backend.current(run.group.gradient):
                self._update_run(run, self._numbers_of(run))
            note_write(*run.group.arrays[run.first : run.last])

    def in_graph(self, given: Sequence[Tensor]) -> "StepInGraph":
        """A step for a graph of a device's work, in which the parameters ``given`` get their gradients."""
        return StepInGraph(self, given)

    def _follow(self) -> None:
        """Lay out the vectors again if a parameter's array has been replaced, for example by module.to(device)."""
        for group in self._groups:
            if not all(map(operator.is_, [p.data for p in group.params], group.arrays)):
                self._lay_out()
                break

    def _runs(self) -> "list[_Run]":
        """What a step updates; the gradients are gathered."""
        found = []
        for group in self._groups:
            with group.backend.current(group.gradient):
                gradient, runs = self._gather(group)
            found += [_Run(group, gradient, first, last) for first, last in runs]
        return found

    def _count(self, run: "_Run") -> None:
        for member in run.group.members[run.first : run.last]:
            self._steps[member] += 1

    def _numbers_of(self, run: "_Run") -> tuple[float, ...]:
        """What the rate and the number of steps determine: what decay leaves of a parameter, and `_numbers`."""
        lr = self.lr * run.group.rates.factor
        return 1 - lr * self._decay_of(run), *self._numbers(lr, self._steps[run.group.members[run.first]])

    def _decay_of(self, run: "_Run") -> float:
        own = run.group.rates.weight_decay
        return self.weight_decay if own is None else own

    def _update_run(self, run: "_Run", numbers: Sequence[Any]) -> None:
        """Update the parameters of a run; ``numbers`` are floats, or arrays without axes on the device."""
        group, backend = run.group, run.group.backend
        arrays, part = group.arrays[run.first : run.last], slice(group.offsets[run.first], group.offsets[run.last])
        changes = group.changes[run.first : run.last]
        gradient, change = run.gradient[part], group.change[part]
        kept, *own = numbers
        if decay := self._decay_of(run):
            if self._decoupled:
                for array in arrays:
                    array *= kept
            else:
                for array, product in zip(arrays, changes, strict=True):
                    backend.xp.multiply(array, decay, out=product)
                change += gradient
                gradient = backend.xp.array(change)
        vectors = [gradient, change, *[each[part] for each in group.state.values()]]
        for start in range(0, len(gradient), backend.block):
            self._update(backend.xp, own, *[each[start : start + backend.block] for each in vectors])
        if not _served(backend, "subtract_from", arrays, change):
            for array, difference in zip(arrays, changes, strict=True):
                array -= difference

    def _numbers(self, lr: float, step: int) -> tuple[float, ...]:
        """The numbers that `_update` needs for the ``step``-th step, counted from 1, at this rate."""
        return (lr,)

    def _update(self, xp: Any, numbers: Sequence[Any], gradient: Array, change: Array, *state: Array) -> None:
        """Write the amount to subtract from the parameters into ``change``, and update the state, each element alone.

        The vectors are those of a run or, if it is long, of a block of it.
        """
        raise TypeError(f"{type(self).__name__} does not define _update")

    def _gather(self, group: _Group) -> tuple[Array, list[tuple[int, int]]]:
        """The group's gradients as one vector, and the longest runs of parameters to update as one."""
        runs: list[tuple[int, int]] = []
        first, step = 0, -1  # of the current run; step is -1 while there is none
        arrays: list[Array | None] = []
        for k, (member, p, shape) in enumerate(zip(group.members, group.params, group.shapes, strict=True)):
            grad = p.grad
            if grad is None:
                if step >= 0:
                    runs.append((first, k))
                    step = -1
                arrays.append(None)
                continue
            array = grad.data
            arrays.append(array)
            if array.shape != shape:
                raise ValueError(
                    f"{type(self).__name__}: the gradient of parameter {member} has shape {array.shape}; "
                    f"expected the parameter's, {shape}"
                )
            if not is_writable(group.arrays[k]):
                raise ValueError(f"{type(self).__name__}: parameter {member} lies in read-only memory")
            if self._steps[member] != step:
                if step >= 0:
                    runs.append((first, k))
                first, step = k, self._steps[member]
        if step >= 0:
            runs.append((first, len(group.members)))
        return group.together(arrays), runs

    def _lay_out(self) -> None:
        """Make the flat vectors on the devices where the parameters are now, and move the state there."""
        remembered = self._tensors()
        for name, array in remembered.items():
            member = int(name.partition(".")[0])
            if self.params[member].shape != array.shape:
                raise ValueError(
                    f"{type(self).__name__}: parameter {member} now has shape {self.params[member].shape}; "
                    f"it had {array.shape} when the optimiser was made"
                )
        places: dict[tuple[np.dtype[Any], str, float, float | None], list[int]] = {}
        for member, (p, rates) in enumerate(zip(self.params, self._rates, strict=True)):
            places.setdefault((p.dtype, p.device, rates.factor, rates.weight_decay), []).append(member)
        self._groups = []
        for (dtype, *_), members in places.items():
            params = [self.params[member] for member in members]
            arrays = [p.data for p in params]
            offsets = [0]
            for array in arrays:
                offsets.append(offsets[-1] + array.size)
            backend = backend_of(arrays[0])
            with backend.current(arrays[0]):
                wide = np.dtype(np.float32) if dtype == np.float16 else dtype
                gradient, *state, change = _vectors(backend.xp, 2 + len(self._state), offsets[-1], wide)
            named = dict(zip(self._state, state, strict=True))
            rates = self._rates[members[0]]
            self._groups.append(_Group(rates, backend, members, params, arrays, offsets, gradient, change, named))
        for name, array in self._tensors().items():
            if name in remembered:
                write(array, transfer(remembered[name], backend_of(array).device_of(array)))

    def _tensors(self) -> dict[str, Array]:
        """The state of each parameter, with names such as "0.m", as views in the parameter's shape."""
        return {
            f"{member}.{name}": view
            for group in self._groups
            for name, vector in group.state.items()
            for member, view in zip(group.members, group.views(vector), strict=True)
        }

    def state_dict(self) -> dict[str, Any]:
        """The state between steps: algorithm, lr, steps (one count per parameter) and tensors (NumPy arrays).

        Everything but ``tensors`` consists of numbers, strings and lists of them; ``tensors`` holds copies, with names
        such as "0.m". Other settings are not part of it: they are those given when the optimiser was made.
        """
        tensors = {name: np.array(backend_of(view).to_numpy(view)) for name, view in self._tensors().items()}
        return {"algorithm": type(self).__name__, "lr": self.lr, "steps": list(self._steps), "tensors": tensors}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state_dict`; ValueError says what does not fit, and then nothing has changed."""
        name = type(self).__name__
        _check_keys(name, state, {"algorithm", "lr", "steps", "tensors"})
        if state["algorithm"] != name:
            raise ValueError(f"{name}: the state is that of {state['algorithm']!r}; expected {name!r}")
        lr = number(name, "lr", state["lr"], "(0, inf)")
        if not isinstance(state["steps"], (list, tuple)):
            raise TypeError(f"{name}: steps is {type(state['steps']).__name__}; expected a list of counts")
        steps = [integer(name, "each count in steps", step, minimum=0) for step in state["steps"]]
        if len(steps) != len(self.params):
            raise ValueError(f"{name}: the state is for {len(steps)} parameters; expected {len(self.params)}")
        copy_values(fitting_values(f"{name}.load_state_dict", "these parameters", self._tensors(), state["tensors"]))
        self._lr, self._steps = lr, steps

    def __getstate__(self) -> dict[str, Any]:
        """For copy.deepcopy and pickle; the flat vectors are rebuilt."""
        tensors = {name: backend_of(view).to_numpy(view) for name, view in self._tensors().items()}
        return vars(self) | {"_groups": [], "_copied": tensors}

    def __setstate__(self, state: dict[str, Any]) -> None:
        tensors = state.pop("_copied")
        vars(self).update(state)
        self._steps = list(self._steps)  # copy.copy shares the list
        self._lay_out()
        for name, view in self._tensors().items():
            write(view, transfer(tensors[name], backend_of(view).device_of(view)))

    def __repr__(self) -> str:
        elements = sum(p.size for p in self.params)
        return f"{type(self).__name__}({len(self.params)} parameters of {elements:,} elements, lr={self.lr:g})"


_SETTINGS = (int, float, complex, str, bytes, tuple, type(None), np.generic)


class StepInGraph:
    """An optimiser's step as a part of a graph of work that a device repeats.

    `enqueue` is called once, while the graph is made, and does the step's work on the device. `prepare` is called
    before each repetition: it counts the step and writes what changes from step to step, such as the rate, to where the
    graph reads it. `holds` tells whether the graph still does what a step would do.
    """

    def __init__(self, optimizer: Optimizer, given: Sequence[Tensor]) -> None:
        self.optimizer = optimizer
        inside = {id(p) for p in given}
        self._others = [p for p in optimizer.params if id(p) not in inside]
        self._runs: list[_Run] = []
        self._numbers: list[Array] = []  # a vector for each run
        self._settings: Any = None  # what the work depends on, as it was when it was enqueued

    def enqueue(self) -> None:
        """Do the work of a step, without counting it; the first time, before a graph is made, to try it."""
        if any(p.grad is not None for p in self._others):
            raise ValueError("a parameter has a gradient that is not computed in the graph")
        self.optimizer._follow()
        self._runs = self.optimizer._runs()
        if any(array.dtype != run.gradient.dtype for run in self._runs for array in run.group.arrays):
            raise ValueError("a number from the device would not adapt to parameters of float16, as one of Python does")
        self._settings = self._of_now()
        if not self._numbers:
            self._numbers = [self._vector(run) for run in self._runs]
        for run, vector in zip(self._runs, self._numbers, strict=True):
            with run.group.backend.current(vector):
                self.optimizer._update_run(run, list(vector))

    def _vector(self, run: _Run) -> Array:
        with run.group.backend.current(run.group.gradient):
            return run.group.backend.xp.zeros(len(self.optimizer._numbers_of(run)), run.group.gradient.dtype)

    def prepare(self) -> None:
        """Count a step, and hand its numbers to the device."""
        for run, vector in zip(self._runs, self._numbers, strict=True):
            self.optimizer._count(run)
            numbers = self.optimizer._numbers_of(run)
            with run.group.backend.current(vector):
                if not _served(run.group.backend, "set_numbers", vector, numbers):
                    vector[...] = transfer(np.array(numbers, vector.dtype), run.group.backend.device_of(vector))
            note_write(*run.group.arrays[run.first : run.last])

    def holds(self) -> bool:
        """Whether parameters lie where they did, have been updated equally often, and settings are the same."""
        return self._of_now() == self._settings

    def written(self) -> list[Array]:
        """The arrays that `enqueue` changes."""
        groups = self.optimizer._groups
        return [x for group in groups for x in (*group.arrays, group.gradient, group.change, *group.state.values())]

    def _of_now(self) -> Any:
        optimizer = self.optimizer
        settings = {k: v for k, v in vars(optimizer).items() if k != "_lr" and isinstance(v, _SETTINGS)}
        counts = [len({optimizer._steps[m] for m in run.group.members[run.first : run.last]}) for run in self._runs]
        arrays = [id(p.data) for group in optimizer._groups for p in group.params]  # kept alive by the runs
        return settings, counts, list(map(id, optimizer._groups)), arrays, [p.grad is None for p in self._others]


class SGD(Optimizer):
    """Stochastic gradient descent: p -= lr v, where v = momentum v + g; with ``nesterov``, p -= lr (g + momentum v).

    g is the gradient plus ``weight_decay`` p; v starts at 0 (PyTorch's form of Polyak, 1964, and Nesterov, 1983).
    Errors: see `Optimizer`; ValueError for ``nesterov`` without momentum.

    >>> p = Tensor(1.0, requires_grad=True)
    >>> (p * p).backward()
    >>> SGD([p], lr=0.25).step()
    >>> p.item()
    0.5
    """

    def __init__(
        self,
        params: Params,
        lr: float,
        momentum: float = 0,
        nesterov: bool = False,
        weight_decay: float = 0,
    ) -> None:
        self.momentum: float = number("SGD", "momentum", momentum, "[0, 1)")
        self.nesterov: bool = bool(nesterov)
        if self.nesterov and not self.momentum:
            raise ValueError("SGD: nesterov is True and momentum 0; expected a momentum above 0")
        if self.momentum:
            self._state = ("velocity",)
        super().__init__(params, lr, weight_decay)

    def _update(self, xp: Any, numbers: Sequence[Any], gradient: Array, change: Array, *state: Array) -> None:
        (lr,) = numbers
        if not state:
            xp.multiply(gradient, lr, out=change)
        for velocity in state:
            velocity *= self.momentum
            velocity += gradient
            if self.nesterov:
                xp.multiply(velocity, self.momentum, out=change)
                change += gradient
                change *= lr
            else:
                xp.multiply(velocity, lr, out=change)


class Adam(Optimizer):
    """p -= lr m / (sqrt(v) + eps), where m and v are means of g and g**2 that give more weight to recent steps.

    g is the gradient plus ``weight_decay`` p. After t steps, m = sum of b1**k g[t-k] / sum of b1**k over k = 0..t-1; v
    likewise with b2 (Kingma & Ba, 2015, Algorithm 1, including bias correction). Errors: see `Optimizer`.

    >>> p = Tensor(1.0, requires_grad=True)
    >>> (p * p).backward()
    >>> Adam([p], lr=0.25).step()
    >>> round(p.item(), 6)
    0.75
    """

    _state = ("m", "v")  # the numerators: sum of b1**k g, sum of b2**k g**2

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
    ) -> None:
        name = type(self).__name__
        if not isinstance(betas, (tuple, list)) or len(betas) != 2:
            raise ValueError(f"{name}: betas is {betas!r}; expected two numbers")
        b1, b2 = (number(name, "each of betas", beta, "[0, 1)") for beta in betas)
        self.betas: tuple[float, float] = (b1, b2)
        self.eps: float = number(name, "eps", eps, "[0, inf)")
        super().__init__(params, lr, weight_decay)

    def _numbers(self, lr: float, step: int) -> tuple[float, ...]:
        # Sums instead of the usual running means, and all constants combined into two, save 4 of 13 passes.
        b1, b2 = self.betas
        weight_m, weight_v = (1 - b1**step) / (1 - b1), (1 - b2**step) / (1 - b2)
        root = math.sqrt(weight_v)
        return self.eps * root, lr * root / weight_m

    def _update(self, xp: Any, numbers: Sequence[Any], gradient: Array, change: Array, *state: Array) -> None:
        m, v = state
        b1, b2 = self.betas
        eps, rate = numbers
        if _served(backend_of(gradient), "adam", gradient, change, m, v, self.betas, eps, rate):
            return
        m *= b1
        m += gradient
        xp.multiply(gradient, gradient, out=change)
        v *= b2
        v += change
        xp.sqrt(v, out=change)
        change += eps
        xp.divide(m, change, out=change)
        change *= rate


class AdamW(Adam):
    """`Adam` with decoupled weight decay: p -= lr weight_decay p before each step (Loshchilov & Hutter, 2019).

    >>> p = Tensor(1.0, requires_grad=True)
    >>> (p * 0.0).backward()
    >>> AdamW([p], lr=0.5, weight_decay=0.5).step()
    >>> p.item()
    0.75
    """

    _decoupled = True

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay)


class StochasticDiagonalLM(Optimizer):
    """Stochastic diagonal Levenberg-Marquardt: p -= lr / (mu + h) g, where h estimates d2(loss)/dp2.

    h comes from `estimate`; call it before the first step and from time to time afterwards (LeCun et al., 1998, Section
    III.C and Eqs. 18-21, who call lr eta and estimate h on 500 samples before each pass).
    Errors: see `Optimizer`; ValueError if ``mu`` is not positive, and for a step before the first estimate.

    >>> from tinygrad_lenet.functional import mse_loss
    >>> p = Tensor(1.0, requires_grad=True)
    >>> optimizer = StochasticDiagonalLM([p], lr=1.0, mu=1e-9)
    >>> optimizer.estimate(mse_loss(3.0 * p, 0.0))
    >>> mse_loss(3.0 * p, 0.0).backward()
    >>> optimizer.step()  # with the exact curvature and lr=1, one step to the minimum
    >>> round(p.item(), 6)
    0.0
    """

    _state = ("inverse",)  # 1 / (mu + h); 0 while h is unknown

    def __init__(self, params: Params, lr: float = 0.0005, mu: float = 0.02) -> None:
        self.mu: float = number("StochasticDiagonalLM", "mu", mu, "(0, inf)")
        super().__init__(params, lr)
        self._estimated = False

    def estimate(self, loss: Tensor) -> None:
        """Compute h from ``loss``, a mean over samples; errors are those of `tinygrad_lenet.curvature`.

        It reads a number for each parameter, to refuse what is not finite, so it waits for a GPU.
        """
        diagonals = curvature(loss, self.params)
        for member, h in enumerate(diagonals):
            if not np.isfinite(h.sum().item()):
                raise ValueError(
                    f"StochasticDiagonalLM: the curvature of parameter {member} is not finite; expected a loss that is"
                )
        self._follow()
        tensors = self._tensors()
        for member, h in enumerate(diagonals):
            write(tensors[f"{member}.inverse"], (1 / (self.mu + h)).data)
        self._estimated = True

    def step(self) -> None:
        """Update each parameter that has a gradient, in place; ValueError before the first estimate."""
        if not self._estimated:
            raise ValueError(
                "StochasticDiagonalLM: no curvature is known yet; call estimate(loss) before the first step"
            )
        super().step()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state_dict`, as `Optimizer.load_state_dict` does."""
        super().load_state_dict(state)
        self._estimated = all((backend_of(x).to_numpy(x) > 0).all() for x in self._tensors().values())

    def rates(self) -> list[Array]:
        """Each parameter's own learning rates, lr / (mu + h), in its shape; 0 before the first estimate."""
        tensors = self._tensors()
        rates = [self.lr * each.factor for each in self._rates]
        return [(lr * wrap(tensors[f"{member}.inverse"])).data for member, lr in enumerate(rates)]

    def _update(self, xp: Any, numbers: Sequence[Any], gradient: Array, change: Array, *state: Array) -> None:
        (lr,), (inverse,) = numbers, state
        xp.multiply(gradient, inverse, out=change)
        change *= lr


class _Schedule:
    """Sets an optimiser's learning rate as a function of the number of steps taken since construction."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer: Optimizer = _optimizer(type(self).__name__, optimizer)
        self.count: int = 0
        optimizer.lr = self._lr_at(0)

    def _lr_at(self, count: int) -> float:
        raise TypeError(f"{type(self).__name__} does not define _lr_at")

    @repeated
    def step(self) -> None:
        """Set the learning rate for the next step; call it once after each step of the optimiser."""
        self.optimizer.lr = self._lr_at(self.count + 1)
        self.count += 1

    def _settings(self) -> dict[str, float]:
        return {name: value for name, value in vars(self).items() if name != "optimizer"}

    def state_dict(self) -> dict[str, float]:
        """The number of steps taken and the settings, all numbers."""
        return self._settings()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state_dict` and set the learning rate; ValueError if it holds other settings."""
        name = type(self).__name__
        mine = self._settings()
        _check_keys(name, state, set(mine))
        for key, value in mine.items():
            if key not in ("count", "base_lr") and state[key] != value:
                raise ValueError(f"{name}: {key} is {state[key]!r} in the state; expected {value!r}, as given here")
        trial = copy.copy(self)
        trial.count = integer(name, "count", state["count"], minimum=0)
        if "base_lr" in mine:
            vars(trial).update(base_lr=number(name, "base_lr", state["base_lr"], "(0, inf)"))
        self.optimizer.lr = trial._lr_at(trial.count)
        vars(self).update(vars(trial))


class OneCycle(_Schedule):
    """Raise the rate from max_lr / div_factor to max_lr, then lower it to the first rate / final_div_factor.

    The rate follows half cosines and rises during the fraction ``pct_start`` of ``total_steps`` (Smith & Topin, 2018;
    this is PyTorch's OneCycleLR with cycle_momentum=False). The optimiser's own rate is not used. ValueError for
    settings out of range, and for a `step` after the last.

    >>> optimizer = SGD([Tensor(1.0, requires_grad=True)], lr=1.0)
    >>> schedule = OneCycle(optimizer, max_lr=1.0, total_steps=10)
    >>> schedule.step(); schedule.step(); optimizer.lr
    1.0
    """

    def __init__(
        self,
        optimizer: Optimizer,
        max_lr: float,
        total_steps: int,
        pct_start: float = 0.3,
        div_factor: float = 25,
        final_div_factor: float = 1e4,
    ) -> None:
        self.max_lr: float = number("OneCycle", "max_lr", max_lr, "(0, inf)")
        self.total_steps: int = integer("OneCycle", "total_steps", total_steps, minimum=1)
        self.pct_start: float = number("OneCycle", "pct_start", pct_start, "[0, 1]")
        self.div_factor: float = number("OneCycle", "div_factor", div_factor, "(0, inf)")
        self.final_div_factor: float = number("OneCycle", "final_div_factor", final_div_factor, "(0, inf)")
        super().__init__(optimizer)

    def _lr_at(self, count: int) -> float:
        if count > self.total_steps:
            raise ValueError(
                f"OneCycle: step {count} was asked for; total_steps is {self.total_steps}, "
                "so set total_steps to the number of all optimiser steps, batches times epochs"
            )
        start = self.max_lr / self.div_factor
        peak, end = self.pct_start * self.total_steps - 1, self.total_steps - 1
        if count <= peak and peak > 0:
            return _cosine(start, self.max_lr, count / peak)
        # The last call is one more than there are rates and goes slightly past the end, as in PyTorch.
        return _cosine(self.max_lr, start / self.final_div_factor, (count - peak) / (end - peak) if end > peak else 1.0)


class StepLR(_Schedule):
    """Multiply the rate by ``gamma`` after every ``step_size`` steps: lr = base_lr gamma**floor(count/step_size).

    ValueError if ``step_size`` is not an integer of at least 1 or ``gamma`` not a positive number.

    >>> optimizer = SGD([Tensor(1.0, requires_grad=True)], lr=1.0)
    >>> schedule = StepLR(optimizer, step_size=1, gamma=0.5)
    >>> schedule.step(); optimizer.lr
    0.5
    """

    def __init__(self, optimizer: Optimizer, step_size: int, gamma: float = 0.1) -> None:
        self.step_size: int = integer("StepLR", "step_size", step_size, minimum=1)
        self.gamma: float = number("StepLR", "gamma", gamma, "(0, inf)")
        self.base_lr: float = _optimizer("StepLR", optimizer).lr
        super().__init__(optimizer)

    def _lr_at(self, count: int) -> float:
        try:
            return self.base_lr * self.gamma ** (count // self.step_size)
        except OverflowError:
            return math.inf  # which the optimiser refuses


class PassRates(_Schedule):
    """Use each rate for a number of passes, and the last one from then on; call `step` after each pass.

    ``rates`` lists (passes, rate), by default those of LeCun et al. (1998, Section III.C) for 20 passes. TypeError or
    ValueError for passes that are not integers of at least 1, and for rates that are not positive.

    >>> optimizer = SGD([Tensor(1.0, requires_grad=True)], lr=1.0)
    >>> schedule = PassRates(optimizer, [(1, 0.5), (2, 0.1)])
    >>> schedule.step(); optimizer.lr
    0.1
    """

    def __init__(
        self,
        optimizer: Optimizer,
        rates: Sequence[tuple[int, float]] = ((2, 5e-4), (3, 2e-4), (3, 1e-4), (4, 5e-5), (8, 1e-5)),
    ) -> None:
        pairs = rates if isinstance(rates, (tuple, list)) else [rates]
        if not all(isinstance(pair, (tuple, list)) and len(pair) == 2 for pair in pairs):
            raise TypeError(f"PassRates: rates are {rates!r}; expected a list of pairs (passes, rate)")
        self.rates: list[list[float]] = [  # lists, as in a state that went through JSON
            [
                integer("PassRates", "each count of passes", passes, minimum=1),
                number("PassRates", "each rate", rate, "(0, inf)"),
            ]
            for passes, rate in pairs
        ]
        if not self.rates:
            raise ValueError("PassRates: rates is empty; expected at least one (passes, rate)")
        super().__init__(optimizer)

    def _lr_at(self, count: int) -> float:
        ends = itertools.accumulate(passes for passes, _ in self.rates)
        return next((rate for end, (_, rate) in zip(ends, self.rates, strict=True) if count < end), self.rates[-1][1])


def _served(backend: Backend, name: str, *arguments: Any) -> bool:
    """Whether there is a kernel that makes this pass of a step over all parameters at once, and it has made it."""
    kernel = find_kernel(backend.name, name)
    return kernel is not None and kernel(backend.xp, *arguments) is not NotImplemented


def _in_line(arrays: Sequence[Array | None], like: Array) -> int | None:
    """Where a vector begins in memory that the arrays make up, one after the other, as a replay's gradients do."""
    first = arrays[0]
    if type(first) is not np.ndarray or first.base is None or first.dtype != like.dtype:
        return None
    memory = memory_of(first)
    start = address = first.__array_interface__["data"][0]
    for array in arrays:
        if type(array) is not np.ndarray or array.dtype != first.dtype or not array.flags.c_contiguous:
            return None
        if array.__array_interface__["data"][0] != address or memory_of(array) is not memory:
            return None
        address += array.nbytes
    return start - memory.__array_interface__["data"][0] if memory.flags.c_contiguous else None


def _vectors(xp: Any, count: int, size: int, dtype: np.dtype[Any]) -> list[Array]:
    """``count`` vectors of zeros, each aligned to a cache line of 64 bytes, which makes passes over them faster.

    (Adam's arithmetic on LeNet-5's 61,706 elements: 39 instead of 45 us. Devices align their memory by themselves.)
    """
    line = 64 // dtype.itemsize
    row = -(-size // line) * line
    memory = xp.zeros(count * row + line, dtype)
    address = memory.ctypes.data if hasattr(memory, "ctypes") else 0
    first = -address % 64 // dtype.itemsize
    return [memory[first + i * row : first + i * row + size] for i in range(count)]


def _optimizer(schedule: str, optimizer: Any) -> Optimizer:
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"{schedule}: optimizer is {type(optimizer).__name__}; expected an Optimizer")
    return optimizer


def _cosine(start: float, end: float, fraction: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * fraction))


def _grouped(optimizer: str, params: Any, lr: float) -> tuple[Any, list[_Rates]]:
    """The tensors among ``params``, and the rates of each; TypeError or ValueError for a malformed group."""
    if isinstance(params, (Tensor, Mapping)) or not isinstance(params, Iterable):
        raise TypeError(f"{optimizer}: params is {type(params).__name__}; expected tensors, such as model.parameters()")
    given = list(params)
    if not any(isinstance(each, Mapping) for each in given):
        return given, [_Rates(1.0, None)] * len(given)
    found: list[Tensor] = []
    rates: list[_Rates] = []
    for i, group in enumerate(given):
        if not isinstance(group, Mapping) or "params" not in group:
            raise TypeError(f'{optimizer}: group {i} is {type(group).__name__}; expected a dictionary with "params"')
        if odd := sorted(map(str, set(group) - {"params", "lr", "weight_decay"})):
            raise ValueError(f"{optimizer}: group {i} has {', '.join(odd)}; expected params, lr and weight_decay")
        own = number(optimizer, f"lr of group {i}", group.get("lr", lr), "(0, inf)")
        decay = group.get("weight_decay")
        if decay is not None:
            decay = number(optimizer, f"weight_decay of group {i}", decay, "[0, inf)")
        members = [group["params"]] if isinstance(group["params"], Tensor) else list(group["params"])
        found += members
        rates += [_Rates(own / lr, decay)] * len(members)
    return found, rates


def clip_grad_norm(params: Tensor | Iterable[Tensor], max_norm: float) -> Tensor:
    """Scale the gradients of ``params`` down so that their common norm is at most ``max_norm``; return the norm before.

    The norm is the root of the sum of all squares; parameters without a gradient are left out (Pascanu et al., 2013,
    with PyTorch's divisor, norm + 1e-6). The gradients are replaced, not written into. ValueError if max_norm is not
    positive, DeviceError if they lie on different devices.

    >>> p = Tensor([3.0, 4.0], requires_grad=True)
    >>> (0.5 * (p * p)).sum().backward()
    >>> clip_grad_norm([p], 1.0).item(), round(p.grad[0].item(), 4)
    (5.0, 0.6)
    """
    limit = number("clip_grad_norm", "max_norm", max_norm, "(0, inf)")
    given = [params] if isinstance(params, Tensor) else list(params)
    with no_grad():
        pairs = [(p, g) for p in _parameters("clip_grad_norm", given) if (g := p.grad) is not None]
        if not pairs:
            return Tensor(0.0)
        squares = [(g * g).sum() for _, g in pairs]
        total = squares[0]
        for each in squares[1:]:
            total = total + each
        norm = total.sqrt()
        scale = op("minimum")(limit / (norm + 1e-6), 1.0)
        for p, g in pairs:
            p.grad = (g * scale).astype(g.dtype)
    return norm


def _parameters(optimizer: str, params: Any) -> list[Tensor]:
    """``params`` as a list of different floating-point leaves; TypeError or ValueError otherwise."""
    found = list(params)
    if not found:
        raise ValueError(f"{optimizer}: params is empty; expected at least one tensor")
    place: dict[int, int] = {}
    for i, p in enumerate(found):
        if not isinstance(p, Tensor):
            raise TypeError(f"{optimizer}: parameter {i} is {type(p).__name__}; expected a Tensor")
        if p.dtype.kind != "f":
            raise ValueError(f"{optimizer}: parameter {i} has dtype {p.dtype}; expected floats")
        if p.op is not None:
            raise ValueError(f"{optimizer}: parameter {i} was computed by {p.op.name}; expected a leaf tensor")
        if place.setdefault(id(p), i) != i:
            raise ValueError(f"{optimizer}: parameter {i} is parameter {place[id(p)]} again; expected each once")
    return found


def _check_keys(owner: str, state: Any, expected: set[str]) -> None:
    if not isinstance(state, Mapping):
        raise TypeError(f"{owner}: the state is {type(state).__name__}; expected the result of state_dict()")
    if set(state) != expected:
        raise ValueError(f"{owner}: the state has {sorted(map(str, state))}; expected {sorted(expected)}")
