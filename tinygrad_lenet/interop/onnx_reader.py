"""ONNX, the way back: a file of the ops that `onnx.export` writes, as a module. (https://onnx.ai/onnx/operators/)"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

from .. import functional as F
from ..creation import ones_like
from ..files import PathLike, open_regular
from ..nn import Module
from ..tensor import Tensor, as_tensor


def load(path: PathLike) -> Module:
    """The model in an ONNX file of one input and one output, as a module.

    Its numbers are buffers with the names that they have in the file, so another model takes them with
    ``other.load_state_dict(model.state_dict(), strict=False)``. It needs the extra "onnx". OSError if the file cannot
    be read; ValueError if it is damaged, or for an op or a setting, which it names, that `export` does not write.

    >>> load("model.onnx")(Tensor([[1.0, 2.0]]))  # doctest: +SKIP
    """
    onnx = package("load")
    with open_regular(path) as file:
        content = file.read()
    try:
        model = onnx.load_from_string(content)
        onnx.checker.check_model(model)
    except Exception as error:  # protobuf's and the checker's
        reason = " ".join(str(error).split())
        raise ValueError(f"load: {path} is damaged or no ONNX file ({reason}); export it again") from None
    version = next((each.version for each in model.opset_import if each.domain in ("", "ai.onnx")), 0)
    if version < _OLDEST:
        raise ValueError(f"load: {path} has the ops of version {version}; expected {_OLDEST} or later; export it again")
    return _Graph(onnx, model.graph)


_OLDEST = 13  # before, Softmax took all axes from its own on as one


def package(caller: str) -> Any:
    try:
        import onnx
    except ImportError as error:
        hint = "run python -m pip install onnx"
        raise ModuleNotFoundError(f"{caller}: the package onnx cannot be imported ({error}); {hint}") from None
    return onnx


class _Graph(Module):
    """The nodes of a file, in order: functions, the names of their inputs and of their output."""

    def __init__(self, onnx: Any, graph: Any) -> None:
        self._nodes: list[tuple[Callable[..., Any], list[str], str]] = []
        self._names = ("", "")
        self._integers: dict[str, np.ndarray] = {}  # sizes, axes and indices, which are needed on the host
        for each in graph.initializer:
            self._keep(each.name, onnx.numpy_helper.to_array(each))
        given = [each.name for each in graph.input if all(each.name != other.name for other in graph.initializer)]
        if (len(given), len(graph.output)) != (1, 1):
            raise ValueError(f"load: the model has {len(given)} inputs and {len(graph.output)} outputs; expected one")
        self._names = given[0], graph.output[0].name
        for node in graph.node:
            settings = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
            if node.op_type == "Constant" and list(settings) == ["value"]:
                self._keep(node.output[0], onnx.numpy_helper.to_array(settings["value"]))
                continue
            function = _FUNCTIONS.get(node.op_type)
            if function is None or node.domain not in ("", "ai.onnx") or len(node.output) != 1:
                raise ValueError(f"load: the op {node.op_type} of the file has no form here")
            known = inspect.signature(function).parameters
            for name, declared in onnx.defs.get_schema(node.op_type).attributes.items():
                default = declared.default_value  # what it says is left out
                if name in settings and default.name and settings[name] == onnx.helper.get_attribute_value(default):
                    del settings[name]
            for name, value in settings.items():
                if name not in known or (name == "pads" and value[: len(value) // 2] != value[len(value) // 2 :]):
                    raise ValueError(f"load: the op {node.op_type} with {name}={value!r} has no form here")
            if node.op_type == "Cast":
                settings["to"] = onnx.helper.tensor_dtype_to_np_dtype(settings["to"])
            inputs = list(node.input)
            while inputs and not inputs[-1]:  # left out
                del inputs[-1]
            try:
                inspect.signature(function).bind(*inputs, **settings)
            except TypeError:
                raise ValueError(f"load: the op {node.op_type} with {len(inputs)} inputs has no form here") from None
            self._nodes.append((functools.partial(function, **settings), inputs, node.output[0]))

    def _keep(self, name: str, array: np.ndarray) -> None:
        if array.dtype.kind != "f":
            self._integers[name] = array
            return
        *path, last = name.split(".")
        place: Module = self
        for part in path:
            if part and not hasattr(place, part):
                setattr(place, part, Module())
            place = getattr(place, part, place)
        if not isinstance(place, Module) or not all((*path, last)) or hasattr(place, last):
            raise ValueError(f"load: the file has numbers called {name!r}, which no buffer can be called; rename them")
        place.register_buffer(last, Tensor(array.copy()))

    def forward(self, x: Any) -> Tensor:
        values: dict[str, Any] = {"": None, **self._integers, **dict(self._state()), self._names[0]: as_tensor(x)}
        for function, inputs, output in self._nodes:
            values[output] = function(*[values[name] for name in inputs])
        return as_tensor(values[self._names[1]])


def _reduced(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda x, axes=(), keepdims=1: function(x, None if not len(axes) else tuple(axes), bool(keepdims))


def _real(kind: str, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """An op that rounds integers in ONNX, and does not here."""

    @functools.wraps(function)
    def of(x: Any, *more: Any, **settings: Any) -> Tensor:
        if x.dtype.kind != "f":
            raise ValueError(f"load: the op {kind} on {x.dtype} has no form here")
        return function(x, *more, **settings)

    return of


def _where(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda x, axis=0, keepdims=1: function(x, axis, bool(keepdims))


def _average(x: Any, kernel_shape: Any, strides: Any = 1, pads: Any = (0, 0), count_include_pad: int = 0) -> Tensor:
    y = F.avg_pool2d(x, kernel_shape, strides, pads[:2])
    return y if count_include_pad or not any(pads) else y / F.avg_pool2d(ones_like(x), kernel_shape, strides, pads[:2])


def _gemm(a: Any, b: Any, c: Any = 0, alpha: float = 1, beta: float = 1, transA: int = 0, transB: int = 0) -> Tensor:
    return alpha * (a.T if transA else a) @ (b.T if transB else b) + (c if beta == 1 else beta * c)


def _slice(x: Any, starts: Any, ends: Any, axes: Any = None, steps: Any = None) -> Tensor:
    index = [slice(None)] * x.ndim
    axes, steps = range(x.ndim) if axes is None else axes, (1,) * x.ndim if steps is None else steps
    for axis, *part in zip(axes, starts, ends, steps, strict=False):
        index[axis] = slice(*map(int, part))
    return x[tuple(index)]


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "Add": lambda a, b: a + b, "Sub": lambda a, b: a - b, "Mul": lambda a, b: a * b,
    "Div": _real("Div", lambda a, b: a / b), "Pow": _real("Pow", lambda a, b: a**b), "Neg": lambda x: -x,
    "Abs": abs, "Exp": F.exp, "Log": F.log, "Sqrt": F.sqrt,
    "Sin": F.sin, "Cos": F.cos, "Tanh": F.tanh, "Sigmoid": F.sigmoid, "Relu": F.relu, "Where": F.where,
    "Max": lambda *xs: functools.reduce(F.maximum, xs), "Min": lambda *xs: functools.reduce(F.minimum, xs),
    "Equal": lambda a, b: a == b, "Less": lambda a, b: a < b, "LessOrEqual": lambda a, b: a <= b,
    "Greater": lambda a, b: a > b, "GreaterOrEqual": lambda a, b: a >= b, "And": lambda a, b: a & b,
    "Or": lambda a, b: a | b, "Not": lambda x: ~x, "Identity": lambda x: x, "Shape": lambda x: np.array(x.shape),
    "ReduceSum": _reduced(F.sum), "ReduceMean": _real("ReduceMean", _reduced(F.mean)), "ReduceMax": _reduced(F.max),
    "ReduceMin": _reduced(F.min), "ReduceLogSumExp": _reduced(F.logsumexp), "ArgMax": _where(F.argmax),
    "ArgMin": _where(F.argmin), "Softmax": lambda x, axis=-1: F.softmax(x, axis),
    "LogSoftmax": lambda x, axis=-1: F.log_softmax(x, axis), "CumSum": lambda x, axis: F.cumsum(x, int(axis)),
    "MatMul": lambda a, b: a @ b, "Gemm": _gemm,
    "Conv": lambda x, w, b=None, kernel_shape=None, strides=1, pads=(0, 0), dilations=1, group=1: F.conv2d(
        x, w, b, strides, pads[:2], dilations, group),
    "ConvTranspose": lambda x, w, b=None, kernel_shape=None, strides=1, pads=(0, 0), output_padding=0, dilations=1,
        group=1: F.conv_transpose2d(x, w, b, strides, pads[:2], output_padding, dilations, group),
    "AveragePool": _average, "Slice": _slice, "Transpose": lambda x, perm=None: x.transpose(*perm or ()),
    "MaxPool": lambda x, kernel_shape, strides=1, pads=(0, 0): F.max_pool2d(x, kernel_shape, strides, pads[:2]),
    "Gather": lambda x, i, axis=0: x[(slice(None),) * (axis % x.ndim) + (i,)], "Cast": lambda x, to: x.astype(to),
    "Reshape": lambda x, shape: x.reshape([x.shape[i] if n == 0 else n for i, n in enumerate(shape.tolist())]),
    "Expand": lambda x, shape: as_tensor(x).broadcast_to(np.broadcast_shapes(x.shape, tuple(shape))),
    "Pad": lambda x, pads, value=0.0: F.pad(x, pads.reshape(2, -1).T.tolist(), float(value)),
    "Concat": lambda *xs, axis: F.concatenate(xs, axis), "Squeeze": lambda x, axes: x.squeeze(tuple(axes)),
    "Unsqueeze": lambda x, axes: x.expand_dims(tuple(axes)), "Flatten": lambda x: x.reshape((len(x), -1)),
}  # fmt: skip
