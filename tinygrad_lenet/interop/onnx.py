"""ONNX: a model written as a file that other runtimes, such as onnxruntime, compute with.

The ops that the model applies are observed and each is written in its ONNX form (`_FORMS`). What depends on no input is
computed here and stored as a constant, parameters by their names. The model runs on batches of two sizes; where these
differ, the file holds the size of the batch that it will get. (https://onnx.ai/onnx/operators/)
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..backend import backend_of
from ..files import PathLike, replace
from ..graph import Observer, no_grad, observed
from ..nn import Module
from ..shapes import Shape, ShapeError, integer, normalize_axes, normalize_axis
from ..tensor import Tensor
from .onnx_reader import load, package

__all__ = ["export", "load"]

_OPSET, _IR = 20, 10
_END = 2**63 - 1


def __dir__() -> list[str]:  # for completion: no helpers, no imports
    return __all__


def export(model: Module, path: PathLike, input_shape: Sequence[int]) -> None:
    """Write ``model`` as ONNX: one input "input" and one output "output", both with any number N of rows.

    ``input_shape`` is that of one input, such as (1, 32, 32), or of a batch, (N, 1, 32, 32). The model is written in
    the mode in which it is, so call ``eval()`` first if it has dropout or batch normalisation. It needs the extra
    "onnx". ValueError, naming it, for an op that has no ONNX form or that depends on N; for a model that draws random
    numbers, updates statistics or looks at values; errors for a shape that does not fit are those of the model.
    Nothing is written then.

    >>> from tinygrad_lenet import nn
    >>> export(nn.Linear(2, 1), "model.onnx", input_shape=(2,))  # doctest: +SKIP
    """
    onnx = package("export")
    if not isinstance(model, Module):
        raise TypeError(f"export: model is {type(model).__name__}; expected a Module")
    if not isinstance(input_shape, (tuple, list)):
        raise TypeError(f"export: input_shape is {input_shape!r}; expected sizes, such as (1, 32, 32)")
    shape = tuple(integer("export", "each size in input_shape", size, minimum=1) for size in input_shape)
    try:
        traces = [_Trace(model, (n, *shape)) for n in (2, 3)]
    except ShapeError as error:
        try:
            traces = [_Trace(model, (n, *shape[1:])) for n in (2, 3)] if shape else []
        except ShapeError:
            traces = []
        if not traces:
            raise error from None
    written = _Writer(onnx, *traces).model()
    onnx.checker.check_model(written, full_check=True)
    replace({path: written.SerializeToString()})


class _Trace(Observer):
    """The ops that a model applies to an input of zeros of some shape."""

    def __init__(self, model: Module, shape: Shape) -> None:
        self.calls: list[tuple[Any, Sequence[Any], Tensor]] = []
        self.names = {id(tensor.data): name for name, tensor in model.state_dict().items()}
        self.input = Tensor(np.zeros(shape, np.float32), device="cpu")
        for parameter in model.parameters():
            self.input = self.input.astype(parameter.dtype).to(parameter.device)
            break
        buffers = [tensor for _, tensor in model._state() if not tensor.requires_grad]
        before = [(tensor, tensor.copy()) for tensor in buffers]
        self.refusal = ""
        try:
            with no_grad(), observed(self), np.errstate(all="ignore"):
                self.output = model(self.input)
        finally:
            with no_grad(), observed(None):
                for tensor, old in before if self.refusal else ():
                    tensor[...] = old
        if self.refusal:
            raise ValueError(self.refusal)
        if not isinstance(self.output, Tensor):
            raise TypeError(f"export: the model returned {type(self.output).__name__}; expected one Tensor")

    def computed(self, op: Any, inputs: Sequence[Any], output: Any) -> None:
        if op.writes or not op.repeatable:
            does = "updates statistics" if op.writes else "draws random numbers"
            self.refusal = self.refusal or f"export: the model {does} in training mode ({op.name}); call eval() first"
        self.calls.append((op, inputs, output))

    def read(self, what: str, tensor: Any) -> None:
        self.refusal = self.refusal or f"export: the model reads values with {what}, which a file cannot repeat"


class _Writer:
    """Two traces of a model, for batches of 2 and 3, as one ONNX graph."""

    def __init__(self, onnx: Any, trace: _Trace, longer: _Trace) -> None:
        self.onnx = onnx
        self.trace, self.longer = trace, longer
        self.nodes: list[Any] = []
        self.constants: dict[str, Any] = {}
        self.values: dict[int, str] = {id(trace.input.data): "input"}  # by id of the array: what depends on the input

    def model(self) -> Any:
        if [op.name for op, _, _ in self.trace.calls] != [op.name for op, _, _ in self.longer.calls]:
            raise ValueError("export: the model applies other ops to 2 inputs than to 3; expected the same for any N")
        for (op, inputs, y), (again, others, longer) in zip(self.trace.calls, self.longer.calls, strict=True):
            if id(y.data) in self.values or not any(
                isinstance(x, Tensor) and id(x.data) in self.values for x in inputs
            ):
                continue
            form = _FORMS.get(op.name)
            if form is None:
                raise ValueError(f"export: the op {op.name} has no ONNX form here")
            settings = [[getattr(each, name) for name in op.parameters] for each in (op, again)]
            constant = all(self._constant(x, other) for x, other in zip(inputs, others, strict=True))
            if not constant or (settings[0] != settings[1] and op.name not in ("reshape", "broadcast_to")):
                raise ValueError(f"export: {op.name} is given numbers that depend on the length of the batch")
            sizes = tuple([-1 if a != b else a for a, b in zip(y.shape, longer.shape, strict=True)])
            self.values[id(y.data)] = form(self, op, inputs, y, sizes)
        found = self.values.get(id(self.trace.output.data))
        if found is None:
            raise ValueError("export: the model's output does not depend on its input")
        self.node("Identity", found, output="output")
        helper = self.onnx.helper
        graph = helper.make_graph(
            self.nodes,
            "tinygrad_lenet",
            [self._information("input", self.trace.input, self.longer.input)],
            [self._information("output", self.trace.output, self.longer.output)],
            [self.onnx.numpy_helper.from_array(array, name) for name, array in self.constants.items()],
        )
        opsets = [helper.make_opsetid("", _OPSET)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=_IR, producer_name="tinygrad_lenet")

    def _constant(self, x: Any, other: Any) -> bool:
        """Whether an op's input is computed, or the same for both lengths of the batch."""
        if not isinstance(x, Tensor):
            return bool(x == other)
        if id(x.data) in self.values or x.data is other.data:
            return True
        a, b = (backend_of(each.data).to_numpy(each.data) for each in (x, other))
        return np.array_equal(a, b, equal_nan=a.dtype.kind == "f")

    def _information(self, name: str, x: Tensor, longer: Tensor) -> Any:
        sizes = ["N" if a != b else a for a, b in zip(x.shape, longer.shape, strict=True)]
        dtype = self.onnx.helper.np_dtype_to_tensor_dtype(x.dtype)
        return self.onnx.helper.make_tensor_value_info(name, dtype, sizes)

    def node(self, kind: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """Add a node, and return the name of its output."""
        output = output or f"{kind}_{len(self.nodes)}"
        self.nodes.append(
            self.onnx.helper.make_node(kind, inputs, [output], name=f"node_{len(self.nodes)}", **attributes)
        )
        return output

    def constant(self, values: Any, dtype: Any = np.int64, name: str = "") -> str:
        """The name of a constant."""
        array = np.ascontiguousarray(np.asarray(values, dtype)).reshape(np.shape(values))
        name = name or f"constant_{len(self.constants)}"
        self.constants[name] = array
        return name

    def of(self, x: Any, like: Any = None) -> str:
        """The name of an op's input: computed, or a constant; a number has the dtype of ``like``."""
        if not isinstance(x, Tensor):
            return self.constant(x, like.dtype)
        found = self.values.get(id(x.data))
        if found is not None:
            return found
        if not any(x.data is y.data for _, _, y in self.trace.calls):  # not computed, so no other array has its id
            name = self.trace.names.get(id(x.data), "")
            if name in self.constants:
                return name
        else:
            name = ""
        values = backend_of(x.data).to_numpy(x.data)
        return self.constant(values, values.dtype, name)


Form = Callable[[_Writer, Any, Sequence[Any], Tensor, tuple[int, ...]], str]


def _elementwise(kind: str) -> Form:
    def form(w: _Writer, op: Any, inputs: Sequence[Any], y: Tensor, sizes: Any) -> str:
        like = next(x for x in reversed(inputs) if isinstance(x, Tensor))
        return w.node(kind, *[w.of(x, like) for x in inputs])

    return form


def _not_equal(w: _Writer, op: Any, inputs: Sequence[Any], y: Tensor, sizes: Any) -> str:
    return w.node("Not", _elementwise("Equal")(w, op, inputs, y, sizes))


def _compare(kind: str) -> Form:
    """A comparison, Max or Min, which ONNX has for inputs of one dtype only."""

    def form(w: _Writer, op: Any, inputs: Sequence[Any], y: Tensor, sizes: Any) -> str:
        dtypes = {x.dtype for x in inputs if isinstance(x, Tensor)}
        if len(dtypes) > 1:
            raise ValueError(f"export: the op {op.name} compares {' with '.join(sorted(map(str, dtypes)))}; use astype")
        return _elementwise(kind)(w, op, inputs, y, sizes)

    return form


def _scaled_tanh(w: _Writer, op: Any, inputs: Sequence[Any], y: Tensor, sizes: Any) -> str:
    inner = w.node("Mul", w.of(inputs[0]), w.constant(op.slope, y.dtype))
    return w.node("Mul", w.node("Tanh", inner), w.constant(op.amplitude, y.dtype))


def _full_like(w: _Writer, op: Any, inputs: Sequence[Any], y: Tensor, sizes: Any) -> str:
    return w.node("Expand", w.constant(op.value, y.dtype), w.node("Shape", w.of(inputs[0])))


def _reduce(kind: str) -> Form:
    def form(w: _Writer, op: Any, inputs: Sequence[Any], y: Tensor, sizes: Any) -> str:
        (x,) = inputs
        axes = normalize_axes(op.name, op.axis, x.ndim)
        if not axes:
            return w.node("Identity", w.of(x))
        return w.node(kind, w.of(x), w.constant(axes), keepdims=int(op.keepdims))

    return form


def _arg_extreme(kind: str) -> Form:
    def form(w: _Writer, op: Any, inputs: Sequence[Any], y: Tensor, sizes: Any) -> str:
        x = w.of(inputs[0])
        if op.axis is None:
            return w.node(kind, w.node("Reshape", x, w.constant([-1])), axis=0, keepdims=0)
        return w.node(kind, x, axis=normalize_axis(op.name, op.axis, inputs[0].ndim), keepdims=0)

    return form


def _along(kind: str) -> Form:
    def form(w: _Writer, op: Any, inputs: Sequence[Any], y: Tensor, sizes: Any) -> str:
        return w.node(kind, w.of(inputs[0]), axis=normalize_axis(op.name, op.axis, inputs[0].ndim))

    return form


def _linear(w: _Writer, op: Any, inputs: Sequence[Any], y: Tensor, sizes: Any) -> str:
    if inputs[0].ndim == 2:
        return w.node("Gemm", *[w.of(x) for x in inputs], transB=1)
    product = w.node("MatMul", w.of(inputs[0]), w.node("Transpose", w.of(inputs[1]), perm=[1, 0]))
    return w.node("Add", product, w.of(inputs[2])) if len(inputs) > 2 else product


def _window(op: Any, **more: Any) -> dict[str, Any]:
    return {"strides": list(op.stride), "pads": [*op.padding, *op.padding], **more}


def _conv(kind: str) -> Form:
    def form(w: _Writer, op: Any, inputs: Sequence[Any], y: Tensor, sizes: Any) -> str:
        more: Any = {"output_padding": list(op.output_padding)} if kind == "ConvTranspose" else {}
        names = [w.of(x) for x in inputs]
        window = _window(op, dilations=list(op.dilation), group=op.groups, kernel_shape=list(inputs[1].shape[2:]))
        return w.node(kind, *names, **window, **more)

    return form


def _avg_pool(w: _Writer, op: Any, inputs: Sequence[Any], y: Tensor, sizes: Any) -> str:
    window = _window(op, kernel_shape=list(op.kernel_size), count_include_pad=1)
    return w.node("AveragePool", w.of(inputs[0]), **window)


def _max_pool(w: _Writer, op: Any, inputs: Sequence[Any], y: Tensor, sizes: Any) -> str:
    return w.node("MaxPool", w.of(inputs[0]), **_window(op, kernel_shape=list(op.kernel_size)))


def _subsample(w: _Writer, op: Any, inputs: Sequence[Any], y: Tensor, sizes: Any) -> str:
    (kh, kw), column = op.kernel_size, w.constant([-1, 1, 1])
    mean = w.node("AveragePool", w.of(inputs[0]), kernel_shape=[kh, kw], strides=[kh, kw])
    added = w.node("Mul", mean, w.constant(kh * kw, y.dtype))
    weighted = w.node("Mul", added, w.node("Reshape", w.of(inputs[1]), column))
    return w.node("Add", weighted, w.node("Reshape", w.of(inputs[2]), column)) if len(inputs) > 2 else weighted


def _rbf(w: _Writer, op: Any, inputs: Sequence[Any], y: Tensor, sizes: Any) -> str:
    distance = w.node("Sub", w.node("Unsqueeze", w.of(inputs[0]), w.constant([1])), w.of(inputs[1]))  # (N, K, J)
    return w.node("ReduceSum", w.node("Mul", distance, distance), w.constant([2]), keepdims=0)


def _centred(w: _Writer, op: Any, x: Tensor, keepdims: int) -> tuple[str, str]:
    """x minus its mean, and its variance."""
    axes = w.constant(normalize_axes(op.name, op.axis, x.ndim))
    centred = w.node("Sub", w.of(x), w.node("ReduceMean", w.of(x), axes, keepdims=1))
    return centred, w.node("ReduceMean", w.node("Mul", centred, centred), axes, keepdims=keepdims)


def _var(w: _Writer, op: Any, inputs: Sequence[Any], y: Tensor, sizes: Any) -> str:
    return _centred(w, op, inputs[0], int(op.keepdims))[1]


def _standardize(w: _Writer, op: Any, inputs: Sequence[Any], y: Tensor, sizes: Any) -> str:
    centred, variance = _centred(w, op, inputs[0], 1)
    return w.node("Div", centred, w.node("Sqrt", w.node("Add", variance, w.constant(op.eps, y.dtype))))


def _squared_difference(w: _Writer, op: Any, inputs: Sequence[Any], y: Tensor, sizes: Any) -> str:
    difference = w.node("Sub", w.of(inputs[0], y), w.of(inputs[1], y))
    return w.node("Mul", difference, difference)


def _reshape(w: _Writer, op: Any, inputs: Sequence[Any], y: Tensor, sizes: tuple[int, ...]) -> str:
    if sizes.count(-1) > 1:
        raise ValueError(f"export: reshape gives {y.shape} for a batch of 2, where several sizes depend on it")
    return w.node("Reshape", w.of(inputs[0]), w.constant(sizes))


def _broadcast_to(w: _Writer, op: Any, inputs: Sequence[Any], y: Tensor, sizes: tuple[int, ...]) -> str:
    (x,) = inputs
    for axis, size in enumerate(sizes):
        source = axis - y.ndim + x.ndim
        if size == -1 and (source < 0 or x.shape[source] != y.shape[axis]):
            raise ValueError(f"export: broadcast_to repeats axis {axis} as often as the batch is long")
    return w.node("Expand", w.of(x), w.constant([1 if size == -1 else size for size in sizes]))


def _transpose(w: _Writer, op: Any, inputs: Sequence[Any], y: Tensor, sizes: Any) -> str:
    return w.node("Transpose", w.of(inputs[0]), perm=list(normalize_axes("transpose", op.axes, inputs[0].ndim)))


def _pad(w: _Writer, op: Any, inputs: Sequence[Any], y: Tensor, sizes: Any) -> str:
    x, value = inputs
    widths = [before for before, _ in op.pad_width] + [after for _, after in op.pad_width]
    return w.node("Pad", w.of(x), w.constant(widths), w.of(value, y))


def _astype(w: _Writer, op: Any, inputs: Sequence[Any], y: Tensor, sizes: Any) -> str:
    return w.node("Cast", w.of(inputs[0]), to=w.onnx.helper.np_dtype_to_tensor_dtype(np.dtype(op.dtype)))


def _cumsum(w: _Writer, op: Any, inputs: Sequence[Any], y: Tensor, sizes: Any) -> str:
    return w.node("CumSum", w.of(inputs[0]), w.constant(normalize_axis("cumsum", op.axis, inputs[0].ndim)))


def _getitem(w: _Writer, op: Any, inputs: Sequence[Any], y: Tensor, sizes: Any) -> str:
    """Integers, slices, None, ..., and one array of integers."""
    x, *arrays = inputs
    named = sum(part is not None and part is not Ellipsis for part in op.pattern)
    if len(arrays) > 1 or any(isinstance(part, bool) for part in op.pattern):
        raise ValueError("export: getitem with several arrays, or with True or False, has no ONNX form here")
    if arrays and any(type(part) is int for part in op.pattern):
        raise ValueError("export: getitem with an array and an integer has no ONNX form here")
    parts: list[Any] = []
    for part in op.pattern:
        parts += [slice(None)] * (x.ndim - named) if part is Ellipsis else [part]
    value, axis = w.of(x), 0
    cut: list[tuple[int, int, int, int]] = []
    new, gone = [], []
    place = 0  # in y
    for part in parts:
        if part is None:
            new.append(place)
            place += 1
            continue
        if type(part) is int:
            cut.append((part, part + 1 if part != -1 else _END, axis, 1))
            gone.append(axis)
        elif isinstance(part, slice):
            step = 1 if part.step is None else part.step
            ends = (0, _END) if step > 0 else (_END, -_END)
            start, stop = (end if given is None else given for given, end in zip((part.start, part.stop), ends))  # noqa: B905
            if (part.start, part.stop, step) != (None, None, 1):
                cut.append((start, stop, axis, step))
            place += 1
        else:
            value = w.node("Gather", value, w.of(arrays[0]), axis=axis)
            axis += arrays[0].ndim - 1
            place += arrays[0].ndim
        axis += 1
    if cut:
        starts, stops, axes, steps = zip(*cut, strict=True)
        value = w.node("Slice", value, *[w.constant(each) for each in (starts, stops, axes, steps)])
    value = w.node("Squeeze", value, w.constant(gone)) if gone else value
    return w.node("Unsqueeze", value, w.constant(new)) if new else value


_FORMS: dict[str, Form] = {
    "add": _elementwise("Add"), "subtract": _elementwise("Sub"), "multiply": _elementwise("Mul"),
    "divide": _elementwise("Div"), "power": _elementwise("Pow"), "negative": _elementwise("Neg"),
    "absolute": _elementwise("Abs"), "exp": _elementwise("Exp"), "log": _elementwise("Log"),
    "sqrt": _elementwise("Sqrt"), "sin": _elementwise("Sin"), "cos": _elementwise("Cos"),
    "tanh": _elementwise("Tanh"), "sigmoid": _elementwise("Sigmoid"), "relu": _elementwise("Relu"),
    "maximum": _compare("Max"), "minimum": _compare("Min"), "where": _elementwise("Where"),
    "equal": _compare("Equal"), "not_equal": _not_equal, "less": _compare("Less"),
    "less_equal": _compare("LessOrEqual"), "greater": _compare("Greater"), "greater_equal": _compare("GreaterOrEqual"),
    "logical_and": _elementwise("And"), "logical_or": _elementwise("Or"), "logical_not": _elementwise("Not"),
    "full_like": _full_like, "scaled_tanh": _scaled_tanh, "sum": _reduce("ReduceSum"), "mean": _reduce("ReduceMean"),
    "max": _reduce("ReduceMax"), "min": _reduce("ReduceMin"), "logsumexp": _reduce("ReduceLogSumExp"),
    "argmax": _arg_extreme("ArgMax"), "argmin": _arg_extreme("ArgMin"), "softmax": _along("Softmax"),
    "log_softmax": _along("LogSoftmax"), "cumsum": _cumsum, "matmul": _elementwise("MatMul"), "linear": _linear,
    "conv2d": _conv("Conv"), "conv_transpose2d": _conv("ConvTranspose"), "avg_pool2d": _avg_pool,
    "max_pool2d": _max_pool, "subsample2d": _subsample, "rbf": _rbf, "standardize": _standardize, "var": _var,
    "mse_loss": _squared_difference,
    "reshape": _reshape, "broadcast_to": _broadcast_to, "transpose": _transpose, "pad": _pad, "astype": _astype,
    "concatenate": lambda w, op, xs, y, sizes: w.node(
        "Concat", *[w.of(x) for x in xs], axis=normalize_axis("concatenate", op.axis, y.ndim)
    ),
    "copy": _elementwise("Identity"), "transfer": _elementwise("Identity"), "getitem": _getitem,
}  # fmt: skip
