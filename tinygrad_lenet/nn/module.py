"""What all modules share: finding parameters, switching modes, saving and loading, moving, and the summary table."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ParamSpec, Protocol, Self, TypeVar, overload

import numpy as np

from ..backend import Array, backend_of, transfer
from ..graph import mode, no_grad, note_change, repeated
from ..shapes import Shape, ShapeError, integer
from ..tensor import HookHandle, Tensor
from .state import copy_values, fitting_values

P = ParamSpec("P")
R_co = TypeVar("R_co", covariant=True)


class Parameter(Tensor):
    """A tensor that a module learns: it requires a gradient and holds its own copy of ``data``.

    Arguments and errors are those of `Tensor`, except that ``dtype`` is float32 by default, also for arrays: NumPy
    creates float64 unless told otherwise.

    >>> Parameter([1.0, 2.0])
    Tensor([1., 2.], requires_grad=True)
    """

    __slots__ = ()

    data: Array

    def __init__(
        self, data: Any, requires_grad: bool = True, dtype: Any = np.float32, device: str | None = None
    ) -> None:
        super().__init__(data, requires_grad, dtype, device)
        with backend_of(self.data).current(self.data):
            self.data = self.data.copy()  # optimisers write into it


class _Forward(Protocol[P, R_co]):
    """A module whose `forward` type checkers know, so they also know the types of a call."""

    _forward_hooks: Mapping[int, Any]

    def forward(self, *inputs: P.args, **options: P.kwargs) -> R_co:
        """Compute the output."""


class Module:
    """A function with parameters. A subclass sets parameters and submodules as attributes and defines `forward`.

    Parameters and submodules are found among the attributes whenever they are needed, so there is nothing to register
    and no ``super().__init__()`` to call. There are two exceptions: tensors that are saved but not learned
    (`register_buffer`), and modules in lists, which are only found in a `Sequential` or `ModuleList`.

    >>> class Scale(Module):
    ...     def __init__(self):
    ...         self.factor = Parameter(3.0)
    ...     def forward(self, x):
    ...         return x * self.factor
    >>> scale = Scale()
    >>> scale(Tensor(2.0)).item(), [name for name, _ in scale.named_parameters()]
    (6.0, ['factor'])
    """

    training: bool = True
    _buffers: tuple[str, ...] = ()
    _forward_hooks: Mapping[int, "ForwardHook"] = MappingProxyType({})

    # A subclass may have any arguments and outputs. If only Module is known, the output is most likely a tensor.
    def forward(self, *inputs: Any, **options: Any) -> Tensor | Any:
        """Compute the output; every module defines it."""
        raise TypeError(f"{type(self).__name__}: this module does not define forward")

    def __call__(self: _Forward[P, R_co], *inputs: P.args, **options: P.kwargs) -> R_co:
        """Compute the output; the inputs are those of `forward`."""
        observer = mode.get().observer
        if observer is not None:
            observer.used(self)
        y = self.forward(*inputs, **options)
        for hook in tuple(self._forward_hooks.values()):
            answer = hook(self, inputs, y)
            y = y if answer is None else answer
        return y

    def __setattr__(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)
        note_change()

    def register_forward_hook(self, hook: "ForwardHook") -> HookHandle:
        """Call ``hook(module, inputs, output)`` after every call; if it returns anything but None, that is the output.

        ``handle.remove()`` removes the hook.

        >>> seen = []
        >>> handle = (layer := Activation()).register_forward_hook(lambda module, inputs, y: seen.append(y))
        >>> layer(1.0), seen
        (1.0, [1.0])
        """
        if not isinstance(self._forward_hooks, dict):
            self._forward_hooks = {}
        return HookHandle("register_forward_hook", self._forward_hooks, hook)

    def register_buffer(self, name: str, tensor: Tensor | None) -> None:
        """Set attribute ``name`` to a tensor, or None, that is saved and moved with the module but not learned.

        TypeError for anything else, including a Parameter; ValueError if the name is taken, empty or has a dot.
        """
        if tensor is not None and (not isinstance(tensor, Tensor) or isinstance(tensor, Parameter)):
            raise TypeError(f"register_buffer: {name} is {type(tensor).__name__}; expected a Tensor or None")
        if name not in self._buffers:
            if not name or "." in name or hasattr(self, name):
                raise ValueError(f"register_buffer: {name!r} is taken, empty or has a dot; expected a new name")
            self._buffers = (*self._buffers, name)
        setattr(self, name, tensor)

    # The module's contents. A tensor or module that is reached twice counts once, except in a state_dict.

    def _submodules(self) -> list[tuple[str, "Module"]]:
        return [(name, value) for name, value in vars(self).items() if isinstance(value, Module)]

    def _own_tensors(self) -> Iterator[tuple[str, Tensor]]:
        for name, value in vars(self).items():
            if isinstance(value, Parameter):
                yield name, value
        for name in self._buffers:
            value = getattr(self, name)
            if value is not None:
                yield name, value

    def _state(self, prefix: str = "", within: tuple["Module", ...] = ()) -> Iterator[tuple[str, Tensor]]:
        """The name and tensor of all parameters and buffers, in PyTorch's order.

        References back to a module that this one is ``within``, such as its parent, are not followed.
        """
        for name, tensor in self._own_tensors():
            yield prefix + name, tensor
        for name, module in self._submodules():
            if not any(module is outer for outer in (*within, self)):
                yield from module._state(f"{prefix}{name}.", (*within, self))

    def named_modules(self) -> Iterator[tuple[str, "Module"]]:
        """The module itself, named "", and all modules inside it, with names such as "features.0"."""
        seen: set[int] = set()
        stack: list[tuple[str, Module]] = [("", self)]
        while stack:
            name, module = stack.pop()
            if id(module) not in seen:
                seen.add(id(module))
                yield name, module
                inner = module._submodules()
                stack.extend((f"{name}.{each}" if name else each, child) for each, child in reversed(inner))

    def modules(self) -> Iterator["Module"]:
        """The module itself and all modules inside it."""
        return (module for _, module in self.named_modules())

    def apply(self, function: Callable[["Module"], Any]) -> Self:
        """Call ``function`` on all modules inside this one, and at last on this one; return self."""
        for module in reversed(list(self.modules())):
            function(module)
        return self

    def named_buffers(self) -> Iterator[tuple[str, Tensor]]:
        """All buffers with their names, such as "bn1.running_mean"."""
        seen: set[int] = set()
        for name, tensor in self._state():
            if not isinstance(tensor, Parameter) and id(tensor) not in seen:
                seen.add(id(tensor))
                yield name, tensor

    def buffers(self) -> Iterator[Tensor]:
        """All buffers."""
        return (tensor for _, tensor in self.named_buffers())

    def children(self) -> Iterator["Module"]:
        """The modules directly inside this one."""
        return iter({id(module): module for _, module in self._submodules()}.values())

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """All parameters with their names, such as "c1.weight", in the order in which they were assigned."""
        seen: set[int] = set()
        for name, tensor in self._state():
            if isinstance(tensor, Parameter) and id(tensor) not in seen:
                seen.add(id(tensor))
                yield name, tensor

    def parameters(self) -> Iterator[Parameter]:
        """All parameters, for an optimiser."""
        return (parameter for _, parameter in self.named_parameters())

    # Modes, gradients, devices

    @repeated
    def train(self, mode: bool = True) -> Self:
        """Switch this module and those inside it to training mode or, if not ``mode``, to eval mode; return self."""
        for _, module in self.named_modules():
            module.training = bool(mode)
        return self

    def eval(self) -> Self:
        """Switch to eval mode: dropout does nothing, batch normalisation uses its running statistics; return self."""
        return self.train(False)

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Say whether all parameters are learned, for example to keep some layers as they are; return self."""
        for parameter in self.parameters():
            parameter.requires_grad = requires_grad
        note_change()
        return self

    def zero_grad(self) -> None:
        """Drop the gradients of all parameters."""
        for parameter in self.parameters():
            parameter.grad = None

    def to(self, device: str) -> Self:
        """Move all parameters, their gradients and all buffers to ``device``, keeping the same objects; return self.

        DeviceError if there is no such device.
        """
        moved = []
        for _, tensor in self._state():
            grad = None if tensor.grad is None else tensor.grad.to(device).detach()
            moved.append((tensor, transfer(tensor.data, device), grad))
        for tensor, data, grad in moved:
            tensor.data, tensor.grad = data, grad
        return self

    # Saving and loading

    def state_dict(self) -> dict[str, Tensor]:
        """All parameters and buffers by PyTorch's names, without gradients; they share the module's memory."""
        return {name: tensor.detach() for name, tensor in self._state()}

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> None:
        """Copy tensors or arrays into the parameters and buffers of the same names, in place.

        Memory, dtypes and devices stay the same, so optimisers and shared memory keep working. ValueError names
        everything that is missing, unexpected or of the wrong shape; nothing has been changed then. Unless ``strict``,
        names that only one side has are passed over.
        """
        targets = {name: tensor.data for name, tensor in self._state()}
        if not strict and isinstance(state, Mapping):
            targets = {name: target for name, target in targets.items() if name in state}
            state = {name: value for name, value in state.items() if name in targets}
        copy_values(fitting_values("load_state_dict", type(self).__name__, targets, state))

    # Descriptions

    def extra_repr(self) -> str:
        """The settings of the module, for its ``repr``."""
        return ""

    def __repr__(self) -> str:
        return self._text(())

    def _text(self, within: tuple["Module", ...]) -> str:
        inner = []
        for name, module in self._submodules():
            outer = any(module is each for each in (*within, self))
            text = "..." if outer else module._text((*within, self))
            inner.append(f"({name}): {text}".replace("\n", "\n  "))
        if not inner:
            return f"{type(self).__name__}({self.extra_repr()})"
        lines = [self.extra_repr(), *inner] if self.extra_repr() else inner
        return "\n  ".join([f"{type(self).__name__}(", *lines]) + "\n)"

    def summary(self, input_shape: Sequence[int]) -> str:
        """A table of the layers that one image passes through: sizes, without the batch axis, and parameter counts.

        ``input_shape`` is that of one image, such as (1, 32, 32), or of a batch, (N, 1, 32, 32). The module is run in
        eval mode on images of zeros; its modes and buffers do not change. Activations are listed with the layer whose
        output they act on. Errors are those of `forward`.

        >>> print(Sequential(Sequential(Activation()), Activation()).summary((3,)))
        layer  type                     input  output  parameters
        ---------------------------------------------------------
        0.0    Activation + Activation  3      3                0
        ---------------------------------------------------------
        total                                                   0
        """
        shape = tuple(integer("summary", "each size in input_shape", size, minimum=1) for size in input_shape)
        try:
            calls = _calls(self, (1, *shape))
        except ShapeError as error:
            try:
                calls = _calls(self, shape)
            except ShapeError:
                raise error from None
        return _table(*calls, total=sum(parameter.size for parameter in self.parameters()))


ForwardHook = Callable[[Module, tuple[Any, ...], Any], Any]


class Activation(Module):
    """A module without parameters that acts on each element; a summary folds it into the layer before it."""

    def forward(self, x: Any) -> Any:
        return x


class _Modules(Module):
    """Modules that are indexed and counted like a list's elements."""

    def _listed(self) -> list[tuple[str, Module]]:
        observer = mode.get().observer
        if observer is not None:
            observer.used(self)  # who goes through them does something else once there is another
        return self._submodules()

    def __len__(self) -> int:
        return len(self._listed())

    @overload
    def __getitem__(self, index: int) -> Module: ...

    @overload
    def __getitem__(self, index: slice) -> Self: ...

    def __getitem__(self, index: int | slice) -> Module:
        if isinstance(index, slice):
            return type(self)(dict(self._listed()[index]))  # type: ignore[call-arg]
        return self._listed()[index][1]

    def __iter__(self) -> Iterator[Module]:
        return (module for _, module in self._listed())


class ModuleList(_Modules):
    """Modules in a list, named "0", "1", ...; a subclass or whoever holds it says how they are applied.

    TypeError for anything that is not a module.

    >>> layers = ModuleList([Activation(), Activation()])
    >>> layers.append(Activation())
    >>> len(layers), [name for name, _ in layers.named_modules()]
    (3, ['', '0', '1', '2'])
    """

    def __init__(self, modules: Iterable[Module] | Mapping[str, Module] = ()) -> None:
        for module in modules.values() if isinstance(modules, Mapping) else modules:
            self.append(module)

    def append(self, module: Module) -> None:
        """Add a module at the end; TypeError for anything else."""
        if not isinstance(module, Module):
            raise TypeError(f"ModuleList: {len(self)} is {type(module).__name__}; expected a Module")
        setattr(self, str(len(self)), module)


class Sequential(_Modules):
    """Modules applied one after the other, named "0", "1", ..., or by the keys of a dictionary.

    TypeError for anything that is not a module; ValueError for a name that is taken, empty or has a dot.

    >>> net = Sequential(Activation(), Activation())
    >>> len(net), net[1]
    (2, Activation())
    """

    def __init__(self, *modules: Module | Mapping[str, Module]) -> None:
        if len(modules) == 1 and isinstance(modules[0], Mapping):
            named: dict[str, Any] = dict(modules[0])
        else:
            named = {str(i): module for i, module in enumerate(modules)}
        for name, module in named.items():
            if not isinstance(module, Module):
                raise TypeError(f"Sequential: {name} is {type(module).__name__}; expected a Module")
            if not name or "." in name or hasattr(self, name):
                raise ValueError(f"Sequential: the name {name!r} is taken, empty or has a dot; expected another")
            setattr(self, name, module)

    def forward(self, x: Any) -> Tensor:
        for _, module in self._submodules():
            x = module(x)
        return x


def _calls(model: Module, shape: Shape) -> tuple[list[list[str]], int]:
    """The name, type, sizes and parameters of each layer that ``model`` calls, and the total number of parameters."""
    x = Tensor(np.zeros(shape, np.float32), device="cpu")
    for parameter in model.parameters():
        x = x.astype(parameter.dtype).to(parameter.device)
        break
    names = {id(module): name for name, module in model.named_modules()}
    leaves = [module for _, module in model.named_modules() if not module._submodules()]
    modes = [(module, module.training) for _, module in model.named_modules()]
    rows: list[list[str]] = []
    counted: set[int] = set()
    listed = 0
    last: Any = None

    def record(module: Module, inputs: tuple[Any, ...], y: Any) -> None:
        nonlocal last, listed
        if isinstance(module, Activation) and rows and inputs and inputs[0] is last:
            rows[-1][1] += f" + {type(module).__name__}"
        else:
            new = {id(p): p.size for p in module.parameters() if id(p) not in counted}  # shared ones count once
            counted.update(new)
            listed += sum(new.values())
            sizes = (_size(inputs[0] if inputs else None), _size(y))
            rows.append([names[id(module)], type(module).__name__, *sizes, f"{sum(new.values()):,}"])
        last = y

    handles = [module.register_forward_hook(record) for module in leaves]
    try:
        with no_grad():
            model.eval()(x)
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes:
            module.training = mode
    return rows, listed


def _table(rows: list[list[str]], listed: int, total: int) -> str:
    """The rows between a heading and a total; parameters that no listed layer holds get their own row."""
    if listed != total:
        rows.append(["", "(held outside these layers)", "", "", f"{total - listed:,}"])
    lines = [["layer", "type", "input", "output", "parameters"], *rows, ["total", "", "", "", f"{total:,}"]]
    widths = [max(len(line[column]) for line in lines) for column in range(5)]
    text = ["  ".join([*map(str.ljust, line[:4], widths), line[4].rjust(widths[4])]) for line in lines]
    rule = "-" * len(text[0])
    return "\n".join([text[0], rule, *text[1:-1], *([rule] if rows else []), text[-1]])


def _size(x: Any) -> str:
    return "x".join(map(str, x.shape[1:])) if isinstance(x, Tensor) else "-"
