"""Malformed calls: each is refused before anything is computed, in one sentence that names the op and what is wrong.

Rules that many ops share (integers, pairs, axes, numbers, labels) are a table of the parameters that follow them and a
list of values that are refused; the rest is a table of calls as a user gets them wrong. The wording is free: the type
of the error must be right, and the sentence must name the op and the words given here (an axis, an input, a value).
"""

import dataclasses
import importlib.util
import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import tests.strict  # noqa: F401 - makes the device "strict" known
from tinygrad_lenet import REAL, Op, ShapeError, Tensor, backend, grad
from tinygrad_lenet import functional as F
from tinygrad_lenet.op import REGISTRY, op

INF, NAN = float("inf"), float("nan")
IMAGES = np.ones((2, 3, 8, 8))  # [N C H W]
WEIGHT = np.ones((4, 3, 3, 3))  # [F C KH KW]
MATRIX = Tensor(np.ones((2, 3)))  # also logits[N K]
LABELS = np.array([0, 2])
ZEROS, ONES = np.zeros(3), np.ones(3)

Error = type[Exception] | tuple[type[Exception], ...]


def refused(error: Error, op: str, words: str, call: Callable[..., Any], *arguments: Any) -> None:
    """The call raises ``error``, in one sentence from ``op`` ("a|b": either) that has all the words; no op computes."""

    def computed(self: Op, *_: Any) -> Any:
        raise AssertionError(f"{self.name} was computed before the call was refused")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend, "_kernels", {})
        for each in REGISTRY.values():
            if each.name != "transfer":  # where a device is looked up is where it is refused
                patch.setattr(each, "forward", computed)
        with pytest.raises(error) as caught:
            call(*arguments)
    sentence = str(caught.value)
    assert isinstance(caught.value, (ValueError, TypeError))
    assert re.match(f"({op}): ", sentence) or not op
    for word in words.split():
        assert re.search(rf"(?<!\w){re.escape(word)}(?!\w)", sentence), f"{word!r} is not in {sentence!r}"
    assert "\n" not in sentence, "one sentence"


def parameter(*shape: int) -> Tensor:
    return Tensor(np.ones(shape), requires_grad=True)


def conv(**how: Any) -> Tensor:
    return F.conv2d(IMAGES, WEIGHT, **how)


def deconv(**how: Any) -> Tensor:
    return F.conv_transpose2d(np.ones((1, 4, 2, 2)), np.ones((4, 2, 3, 3)), **how)


def subsample(x: Any = IMAGES, weight: Any = ONES, bias: Any = ZEROS, kernel_size: Any = 2) -> Tensor:
    return F.subsample2d(x, weight, bias, kernel_size)


def norm(x: Any = IMAGES, mean: Any = ZEROS, var: Any = ONES, **how: Any) -> Tensor:
    return F.batch_norm(x, mean, var, **how)


def scatter(connections: Any, k: int = 3, in_channels: Any = 2) -> Tensor:
    return F.scatter_kernels(np.ones((k, 2, 2)), connections, in_channels)


# Rules for parameters. The key is "op parameter".

NOT_INTEGERS = (1.5, 2.0, "2", b"1", True, None, 1j, np.float32(1), object())

INTEGERS: dict[str, tuple[int, Callable[[Any], Any]]] = {  # the least that is taken, and the call
    "conv2d groups": (1, lambda n: conv(groups=n)),
    "scatter_kernels in_channels": (1, lambda n: scatter([[0]], k=1, in_channels=n)),
    "scatter_kernels connections": (0, lambda n: scatter([[0], [0, n]])),
    "one_hot classes": (1, lambda n: F.one_hot([0], n)),
    "pad pad_width": (0, lambda n: F.pad(MATRIX, n)),
    "reshape shape": (-1, lambda n: MATRIX.reshape(n, 3)),
    "broadcast_to shape": (0, lambda n: MATRIX.broadcast_to((n, 3))),
}
PAIRS: dict[str, tuple[int, Callable[[Any], Any]]] = {
    "conv2d stride": (1, lambda n: conv(stride=n)),
    "conv2d padding": (0, lambda n: conv(padding=n)),
    "conv2d dilation": (1, lambda n: conv(dilation=n)),
    "conv_transpose2d stride": (1, lambda n: deconv(stride=n)),
    "conv_transpose2d output_padding": (0, lambda n: deconv(output_padding=n)),
    "avg_pool2d kernel_size": (1, lambda n: F.avg_pool2d(IMAGES, n)),
    "avg_pool2d padding": (0, lambda n: F.avg_pool2d(IMAGES, 2, padding=n)),
    "max_pool2d kernel_size": (1, lambda n: F.max_pool2d(IMAGES, n)),
    "subsample2d kernel_size": (1, lambda n: subsample(kernel_size=n)),
}


@pytest.mark.parametrize("name", [*INTEGERS, *PAIRS])
def test_what_is_not_an_integer_or_too_small(name: str) -> None:
    op, parameter = name.split()
    least, call = {**INTEGERS, **PAIRS}[name]
    for value in NOT_INTEGERS:
        refused(TypeError, op, parameter, call, value)
    refused(ValueError, op, f"{parameter} {least - 1}", call, least - 1)


@pytest.mark.parametrize("name", PAIRS)
def test_what_is_not_a_pair_of_integers(name: str) -> None:
    op, parameter = name.split()
    least, call = PAIRS[name]
    for value in ((2, 1.5), [None, 2], ("1", "1"), {1, 2}, np.ones(2, int)):
        refused(TypeError, op, parameter, call, value)
    for value in ((1,), (1, 2, 3), (), (2, least - 1)):
        refused(ValueError, op, parameter, call, value)


@pytest.mark.parametrize("value", [2, (2, 2), [2, 2], np.int64(2), (np.int8(2), 2)])
def test_what_is_a_pair_of_integers(value: Any) -> None:
    assert conv(stride=value).shape == (2, 4, 3, 3)


ONE_AXIS: dict[str, Callable[[Any], Any]] = {
    "softmax": lambda a: F.softmax(MATRIX, a),
    "log_softmax": lambda a: F.log_softmax(MATRIX, a),
    "concatenate": lambda a: F.concatenate([MATRIX], a),
    "stack": lambda a: F.stack([MATRIX], a),
    "argmax": lambda a: MATRIX.argmax(a),
    "argmin": lambda a: MATRIX.argmin(a),
}
SEVERAL_AXES: dict[str, Callable[[Any], Any]] = {
    "sum": lambda a: MATRIX.sum(a),
    "mean|sum": lambda a: MATRIX.mean(a),
    "var|mean|sum": lambda a: MATRIX.var(a),
    "max": lambda a: MATRIX.max(a),
    "min|max": lambda a: MATRIX.min(a),
    "logsumexp": lambda a: F.logsumexp(MATRIX, a),
    "standardize": lambda a: F.standardize(MATRIX, a),
    "squeeze": lambda a: MATRIX.squeeze(a),
    "expand_dims": lambda a: MATRIX.expand_dims(a),
    "transpose": lambda a: MATRIX.transpose(*(a if isinstance(a, tuple) else (a, 0))),
}


@pytest.mark.parametrize("op", [*ONE_AXIS, *SEVERAL_AXES])
def test_what_is_not_an_axis(op: str) -> None:
    call = {**ONE_AXIS, **SEVERAL_AXES}[op]
    ndim = 3 if op in ("stack", "expand_dims") else 2  # these two count the axes of the result
    for axis in (ndim, -ndim - 1):
        refused(ValueError if op.startswith("arg") else ShapeError, op, f"axis {axis}", call, axis)
    for value in (0.5, "x"):
        refused(TypeError, op, "axis", call, value)
    if op in SEVERAL_AXES:
        refused(ShapeError, op, "axis twice", call, (1, 1))
    else:
        for value in ((0, 1), None) if op not in ("argmax", "argmin") else ((0, 1),):
            refused(TypeError, op, "axis", call, value)


NUMBERS: dict[str, tuple[tuple[float, ...], Callable[[Any], Any]]] = {  # what is out of range, and the call
    "cross_entropy label_smoothing": ((-0.1, 1.5, NAN), lambda v: F.cross_entropy(MATRIX, LABELS, label_smoothing=v)),
    "penalty_loss j": ((0, -1.0, NAN, INF), lambda v: F.penalty_loss(MATRIX, LABELS, v)),
    "dropout p": ((1.0, -0.1, NAN), lambda v: F.dropout(MATRIX, v)),
    "batch_norm eps": ((-1.0, NAN), lambda v: norm(eps=v)),
    "standardize eps": ((-1.0, NAN, INF), lambda v: F.standardize(MATRIX, eps=v)),
    "batch_norm momentum": ((-0.1, 2.0, NAN), lambda v: norm(momentum=v)),
    "scaled_tanh amplitude": ((0, NAN, INF), lambda v: F.scaled_tanh(MATRIX, v)),
    "scaled_tanh slope": ((NAN, -INF), lambda v: F.scaled_tanh(MATRIX, 1.0, v)),
    "pad value": ((), lambda v: F.pad(MATRIX, 1, v)),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_what_is_not_a_number_or_out_of_range(name: str) -> None:
    op, parameter = name.split()
    values, call = NUMBERS[name]
    for value in values:
        refused(ValueError, op, f"{parameter} {value}", call, value)
    refused((TypeError, ValueError), op, parameter, call, "half")


LOSSES: dict[str, Callable[..., Any]] = {
    "cross_entropy": F.cross_entropy,
    "nll_loss": F.nll_loss,
    "penalty_loss": F.penalty_loss,
    "penalty_loss with j": lambda x, labels, **how: F.penalty_loss(x, labels, 1.0, **how),
}


@pytest.mark.parametrize("name", LOSSES)
def test_what_is_not_a_target_of_a_loss(name: str) -> None:
    op, loss = name.split()[0], LOSSES[name]
    refused(ShapeError, op, "N K", loss, ONES, [0])
    refused(ShapeError, op, "axis N target", loss, MATRIX, [0])
    refused(ShapeError, op, "2, 3, 1", loss, MATRIX, np.ones((2, 3, 1), int))
    for label in (3, -1):
        refused(ValueError, op, f"label {label}", loss, MATRIX, [0, label])
    for labels in ([0, 1.5], np.zeros(2)):
        refused(TypeError, op, "labels", loss, MATRIX, labels)
    refused(ValueError, op, "", loss, MATRIX, [[1], [0, 1]])
    refused(TypeError, f"{op}|Tensor", "", loss, MATRIX, "cat")
    refused(TypeError, "", "", loss, "cat", LABELS)


@pytest.mark.parametrize("name", [*LOSSES, "mse_loss"])
@pytest.mark.parametrize("reduction", ["avg", None])
def test_what_is_not_a_reduction(name: str, reduction: Any) -> None:
    loss, target = (F.mse_loss, MATRIX) if name == "mse_loss" else (LOSSES[name], LABELS)
    refused(ValueError, name.split()[0], f"reduction {reduction}", lambda: loss(MATRIX, target, reduction=reduction))


# Everything else: the error, the op, words of its sentence, the call

CALLS: list[tuple[type[Exception], str, str, Callable[[], Any]]] = [
    (ShapeError, "conv2d", "x", lambda: F.conv2d(IMAGES[0], WEIGHT)),
    (ShapeError, "conv2d", "x", lambda: F.conv2d(IMAGES[None], WEIGHT)),
    (ShapeError, "conv2d", "weight", lambda: F.conv2d(IMAGES, np.ones((4, 3)))),
    (ShapeError, "conv2d", "bias", lambda: conv(bias=np.ones((4, 1)))),
    (ShapeError, "conv2d", "axis C x weight", lambda: F.conv2d(IMAGES[:, :2], WEIGHT)),
    (ShapeError, "conv2d", "axis F weight bias", lambda: conv(bias=ONES)),
    (ShapeError, "conv2d", "axis C x weight groups", lambda: conv(groups=2)),
    (ShapeError, "conv2d", "3 2 groups", lambda: F.conv2d(np.ones((1, 2, 4, 4)), np.ones((3, 1, 2, 2)), groups=2)),
    (ShapeError, "conv2d", "axis H 3 2", lambda: F.conv2d(IMAGES[:, :, :2], WEIGHT)),
    (ShapeError, "conv2d", "axis W 3 2", lambda: F.conv2d(IMAGES[..., :2], WEIGHT)),
    (ShapeError, "conv2d", "axis W 9 8", lambda: conv(dilation=(1, 4))),
    (ShapeError, "conv2d", "axis H 13 8 padding", lambda: conv(dilation=6, padding=1)),
    (ShapeError, "conv_transpose2d", "axis F x weight", lambda: F.conv_transpose2d(IMAGES, np.ones((4, 2, 3, 3)))),
    (ShapeError, "conv_transpose2d", "axis C weight bias", lambda: deconv(bias=ONES)),
    (ShapeError, "conv_transpose2d", "4 3 groups", lambda: deconv(groups=3)),
    (ShapeError, "conv_transpose2d", "padding", lambda: deconv(padding=2)),
    (ShapeError, "conv_transpose2d", "output_padding axis H", lambda: deconv(output_padding=1)),
    (ShapeError, "conv_transpose2d", "output_padding axis W", lambda: deconv(stride=2, output_padding=(1, 2))),
    (ShapeError, "avg_pool2d", "x", lambda: F.avg_pool2d(MATRIX, 2)),
    (ShapeError, "avg_pool2d", "axis H 9", lambda: F.avg_pool2d(IMAGES, 9)),
    (ValueError, "avg_pool2d", "stride", lambda: F.avg_pool2d(IMAGES, 2, stride=0)),
    (ShapeError, "max_pool2d", "x", lambda: F.max_pool2d(MATRIX, 2)),
    (ShapeError, "max_pool2d", "axis W 9", lambda: F.max_pool2d(IMAGES, (2, 9))),
    (ShapeError, "max_pool2d", "padding half", lambda: F.max_pool2d(IMAGES, 2, padding=2)),
    (ShapeError, "subsample2d", "x", lambda: subsample(MATRIX)),
    (ShapeError, "subsample2d", "axis C x weight", lambda: subsample(weight=np.ones(2))),
    (ShapeError, "subsample2d", "weight", lambda: subsample(weight=np.ones((3, 1)))),
    (ShapeError, "subsample2d", "axis C x bias", lambda: subsample(bias=np.ones(4))),
    (ShapeError, "subsample2d", "bias", lambda: subsample(bias=1.0)),
    (ShapeError, "subsample2d", "axis H 9 8", lambda: subsample(kernel_size=(9, 2))),
    (ShapeError, "subsample2d", "axis W 9 8", lambda: subsample(kernel_size=(2, 9))),
    (ShapeError, "scatter_kernels", "weight", lambda: F.scatter_kernels(MATRIX, [[0]], 1)),
    (ShapeError, "scatter_kernels", "axis K weight", lambda: scatter([[0], [0, 1]], k=4)),
    (ValueError, "scatter_kernels", "row 1 map 2", lambda: scatter([[0], [0, 2]])),
    (ValueError, "scatter_kernels", "row 1 twice", lambda: scatter([[0], [1, 1]])),
    (ValueError, "scatter_kernels", "row 1 empty", lambda: scatter([[0, 1], []])),
    (ValueError, "scatter_kernels", "connections empty", lambda: scatter([])),
    (TypeError, "scatter_kernels", "connections", lambda: scatter([0, 1, 1])),
    (TypeError, "scatter_kernels", "connections", lambda: scatter(None)),
    (ShapeError, "linear", "x", lambda: F.linear(np.array(1.0), MATRIX)),
    (ShapeError, "linear", "weight", lambda: F.linear(MATRIX, ONES)),
    (ShapeError, "linear", "axis I x weight", lambda: F.linear(MATRIX, np.ones((4, 5)))),
    (ShapeError, "linear", "axis O weight bias", lambda: F.linear(MATRIX, np.ones((4, 3)), ONES)),
    (ShapeError, "matmul", "axis K a b", lambda: MATRIX @ MATRIX),
    (ShapeError, "matmul", "shapes", lambda: np.ones((2, 2, 3)) @ Tensor(np.ones((3, 3, 2)))),
    (ShapeError, "matmul", "b", lambda: MATRIX @ 2.0),
    (ShapeError, "einsum", "2 1", lambda: F.einsum("ij,jk", MATRIX)),
    (ShapeError, "einsum", "operand 0 ijk", lambda: F.einsum("ijk->i", MATRIX)),
    (ShapeError, "einsum", "axis i operand 1", lambda: F.einsum("ij,ij", MATRIX, MATRIX.numpy().T)),
    (ShapeError, "einsum", "axis i operand 0", lambda: F.einsum("ii", MATRIX)),
    (ShapeError, "einsum", "axis k output", lambda: F.einsum("ij->ik", MATRIX)),
    (ShapeError, "einsum", "axis i output", lambda: F.einsum("ij->ii", MATRIX)),
    (ShapeError, "einsum", "operand 0 i1", lambda: F.einsum("i1->i", MATRIX)),
    (ValueError, "einsum", "ié", lambda: F.einsum("ié->i", MATRIX)),
    (ShapeError, "einsum", "... shapes", lambda: F.einsum("...i,...i", MATRIX, np.ones((1, 3)))),
    (TypeError, "einsum", "subscripts", lambda: F.einsum(MATRIX, MATRIX)),
    (ValueError, "softmax", "axis -1 empty", lambda: F.softmax(np.ones((2, 0)))),
    (ShapeError, "cross_entropy", "axis K logits target", lambda: F.cross_entropy(MATRIX, np.ones((2, 4)))),
    (ShapeError, "cross_entropy", "axis N logits target", lambda: F.cross_entropy(MATRIX, np.ones((1, 3)))),
    (ShapeError, "nll_loss", "labels", lambda: F.nll_loss(MATRIX, [[0], [1]])),
    (ShapeError, "penalty_loss", "labels", lambda: F.penalty_loss(MATRIX, np.ones((2, 3), int))),
    (TypeError, "penalty_loss", "j True", lambda: F.penalty_loss(MATRIX, LABELS, True)),
    (ShapeError, "mse_loss", "x target", lambda: F.mse_loss(MATRIX, ONES)),
    (ShapeError, "rbf", "axis J x centers", lambda: F.rbf(MATRIX, np.ones((4, 2)))),
    (ShapeError, "rbf", "x", lambda: F.rbf(ONES, MATRIX)),
    (ShapeError, "rbf", "centers", lambda: F.rbf(MATRIX, ONES)),
    (ShapeError, "rbf", "centers", lambda: F.rbf(MATRIX, 1.0)),
    (ValueError, "one_hot", "label 3", lambda: F.one_hot([3], 3)),
    (TypeError, "one_hot", "labels", lambda: F.one_hot([1.5], 3)),
    (ShapeError, "one_hot", "labels", lambda: F.one_hot([[1]], 3)),
    (TypeError, "dropout", "rng", lambda: F.dropout(MATRIX, rng=3)),
    (ShapeError, "standardize", "axis 1", lambda: F.standardize(np.ones((2, 0)), 1)),
    (ShapeError, "batch_norm", "x", lambda: norm(ONES)),
    (ShapeError, "batch_norm", "axis C x running_mean", lambda: norm(mean=np.zeros(4))),
    (ShapeError, "batch_norm", "axis C x running_var", lambda: norm(var=np.zeros((3, 1)))),
    (ShapeError, "batch_norm", "axis C x weight", lambda: norm(weight=np.ones(2))),
    (ShapeError, "batch_norm", "axis C x bias", lambda: norm(bias=np.ones(2))),
    (ValueError, "batch_norm", "running_mean", lambda: norm(mean=None)),
    (ValueError, "batch_norm", "x", lambda: norm(np.ones((1, 3)), training=True)),
    (TypeError, "add", "uint64 int64", lambda: Tensor(np.ones(1, np.uint64)) + 1),
    (ShapeError, "add", "1 a b", lambda: REGISTRY["add"]()(MATRIX)),
    (ShapeError, "add", "3 a b", lambda: REGISTRY["add"]()(MATRIX, MATRIX, MATRIX)),
    # Shapes that do not broadcast, with an array on either side
    (ShapeError, "add", "shapes", lambda: MATRIX + np.ones(2)),
    (ShapeError, "subtract", "shapes", lambda: np.ones(2) - MATRIX),
    (ShapeError, "power", "shapes", lambda: MATRIX ** np.ones(2)),
    (ShapeError, "greater", "shapes", lambda: np.ones(2) > MATRIX),
    (ShapeError, "equal", "shapes", lambda: np.ones(2) == MATRIX),
    (ShapeError, "maximum", "shapes", lambda: F.maximum(MATRIX, np.ones(2))),
    (ShapeError, "where", "shapes", lambda: F.where(np.ones(2, bool), MATRIX, 0.0)),
    # Shapes and layout
    (TypeError, "where", "condition", lambda: F.where(ONES, MATRIX, 0.0)),
    (TypeError, "where", "condition", lambda: F.where(1, MATRIX, 0.0)),
    (ValueError, "max", "axis 1 empty", lambda: Tensor(np.ones((2, 0))).max()),
    (ValueError, "min|max", "axis 0 empty", lambda: Tensor(np.ones(0)).min()),
    (ValueError, "argmax", "", lambda: Tensor(np.ones(0)).argmax()),
    (ShapeError, "reshape", "x 6", lambda: MATRIX.reshape(4)),
    (ShapeError, "reshape", "", lambda: MATRIX.reshape(-1, -1)),
    (ShapeError, "reshape", "", lambda: MATRIX.reshape(-1, 4)),
    (ShapeError, "reshape", "", lambda: Tensor(np.ones((0, 3))).reshape(0, -1)),
    (TypeError, "sum", "keepdims 1", lambda: (op("sum", 0, True), MATRIX.sum(0, 1))),  # 1 is not looked up as True
    (ShapeError, "transpose", "axes", lambda: MATRIX.transpose(0)),
    (ValueError, "squeeze", "axis 0", lambda: MATRIX.squeeze(0)),
    (ShapeError, "broadcast_to", "", lambda: MATRIX.broadcast_to((2, 4))),
    (ShapeError, "broadcast_to", "x", lambda: MATRIX.broadcast_to((3,))),
    (ShapeError, "concatenate", "input 1", lambda: F.concatenate([MATRIX, np.ones((2, 4))])),
    (ShapeError, "concatenate", "input 1", lambda: F.concatenate([MATRIX, ONES])),
    (ShapeError, "concatenate", "", lambda: F.concatenate([])),
    (TypeError, "concatenate", "", lambda: F.concatenate(5)),
    (ShapeError, "stack", "input 1", lambda: F.stack([MATRIX, ONES])),
    (ShapeError, "stack", "", lambda: F.stack([])),
    (ShapeError, "pad", "pad_width 2", lambda: F.pad(MATRIX, [(1, 1)] * 3)),
    (ShapeError, "pad", "pad_width", lambda: F.pad(MATRIX, [(1,), (1, 2)])),
    (ShapeError, "pad", "pad_width (1, 1) 2 axes", lambda: F.pad(MATRIX, (1, 1))),
    (ValueError, "pad", "value", lambda: F.pad(MATRIX, 1, 10**400)),
    (ShapeError, "getitem", "3 x", lambda: MATRIX[0, 0, 0]),
    (TypeError, "getitem", "a", lambda: MATRIX["a"]),
    (TypeError, "getitem", "0.5", lambda: MATRIX[0.5]),
    (TypeError, "getitem", "index", lambda: MATRIX[np.ones(2)]),
    # What is not an array of real numbers
    (ValueError, "Tensor", "", lambda: Tensor([[1.0], [1.0, 2.0]])),
    (TypeError, "Tensor", "object", lambda: Tensor([None, 1.0])),
    (TypeError, "Tensor", "object", lambda: Tensor({"a": 1})),
    (TypeError, "Tensor", "complex128", lambda: Tensor(1 + 2j)),
    (TypeError, "Tensor", "U3", lambda: Tensor("abc")),
    (TypeError, "Tensor", "U3", lambda: Tensor("abc", dtype="float32")),
    (TypeError, "Tensor", "", lambda: Tensor(None, dtype="float32")),
    (TypeError, "Tensor", "datetime64[D]", lambda: Tensor(np.datetime64("2020-01-01"))),
    (TypeError, "Tensor", "complex64", lambda: Tensor([1.0], dtype="complex64")),
    (TypeError, "", "nonsense", lambda: Tensor([1.0], dtype="nonsense")),
    (ValueError, "Tensor", "requires_grad", lambda: Tensor(LABELS, requires_grad=True)),
    (ValueError, "Tensor", "requires_grad bool", lambda: Tensor([True], requires_grad=True)),
    (TypeError, "astype", "complex64", lambda: MATRIX.astype("complex64")),
    (TypeError, "", "number", lambda: MATRIX.astype("number")),
    (TypeError, "", "", lambda: F.rbf(None, MATRIX)),
    (TypeError, "", "", lambda: F.conv2d(None, WEIGHT)),
    (TypeError, "", "", lambda: MATRIX * "a"),
    (TypeError, "", "", lambda: MATRIX + None),
    (TypeError, "", "", lambda: MATRIX + 1j),
    # One element
    (ValueError, "item", "2, 3", lambda: MATRIX.item()),
    (ValueError, "item", "0,", lambda: Tensor(np.ones(0)).item()),
    (ValueError, "", "2, 3", lambda: bool(MATRIX)),
    (ValueError, "", "2, 3", lambda: float(MATRIX)),
    # Devices
    (ValueError, "", "tpu cpu cuda", lambda: Tensor(1.0, device="tpu")),
    (ValueError, "", "tpu", lambda: MATRIX.to("tpu")),
    (ValueError, "", "tpu", lambda: backend.use("tpu")),
    (ValueError, "", "cpu:1", lambda: Tensor(1.0, device="cpu:1")),
    (ValueError, "", "cuda:x", lambda: Tensor(1.0, device="cuda:x")),
    (TypeError, "", "device", lambda: Tensor(1.0, device=0)),
    # Differentiation
    (ValueError, "backward", "2,", lambda: parameter(2).backward()),
    (ValueError, "backward", "output", lambda: Tensor(1.0).backward()),
    (ValueError, "backward", "3, 2,", lambda: parameter(2).backward(np.ones(3))),
    (ValueError, "backward", "2, 3", lambda: parameter(2, 3).backward(np.ones((3, 2)))),
    (TypeError, "", "", lambda: parameter(1).backward("a")),
    (ValueError, "grad", "output", lambda: grad(Tensor(1.0), [parameter(1)])),
    (TypeError, "grad", "output float", lambda: grad(1.0, [parameter(1)])),
    (TypeError, "grad", "outputs", lambda: grad(p := parameter(1), p, outputs=p)),
    (TypeError, "grad", "inputs", lambda: grad(parameter(1))),
    (TypeError, "", "size x.shape[0]", lambda: MATRIX.size(0)),  # type: ignore[operator]
    (ValueError, "grad", "input 0", lambda: grad(parameter(1), [MATRIX])),
    (TypeError, "grad", "input 0 ndarray", lambda: grad(parameter(1), [np.ones(2)])),
    (ValueError, "grad", "input 1", lambda: grad(p := parameter(1), [p, parameter(3)])),
    (ValueError, "grad", "3,", lambda: grad(p := parameter(2), [p], np.ones(3))),
]  # fmt: skip


@pytest.mark.parametrize(
    ("error", "op", "words", "call"), [pytest.param(*row, id=f"{row[1]} {row[2]}".strip()) for row in CALLS]
)
def test_malformed_call(error: Error, op: str, words: str, call: Callable[[], Any]) -> None:
    refused(error, op, words, call)


def test_a_window_may_cover_all_of_the_image_and_its_padding() -> None:
    assert F.conv2d(IMAGES, np.ones((4, 3, 10, 9)), padding=1).shape == (2, 4, 1, 2)


def test_output_padding_may_reach_the_dilation_and_padding_leave_one_pixel() -> None:
    assert deconv(dilation=2, output_padding=1).shape == (1, 2, 7, 7)
    assert F.conv_transpose2d(np.ones((1, 4, 1, 1)), np.ones((4, 2, 3, 3)), padding=1).shape == (1, 2, 1, 1)


@pytest.mark.parametrize("index", [2, (0, 3), [0, 5], np.array([True, False, True]), (slice(None), -4)], ids=repr)
def test_index_out_of_range(index: Any) -> None:
    """An IndexError, which Python's own protocols expect, with the shape in it."""
    with pytest.raises(IndexError, match=r"getitem: .*\(2, 3\)"):
        MATRIX[index]


@pytest.mark.parametrize("name", ["cuda", "gpu", "cupy", "cuda:1"])
def test_cuda_where_there_is_none(name: str) -> None:
    """The sentence says what is missing, CuPy or a GPU, and what to do."""
    if "cuda" in backend.available():
        pytest.skip("there is a GPU")
    missing = "CuPy" if importlib.util.find_spec("cupy") is None else "GPU"
    for call in (lambda: Tensor(1.0, device=name), lambda: MATRIX.to(name), lambda: backend.use(name)):
        refused(ValueError, "", f"cuda {missing} cpu", call)
    assert backend.default_device() == "cpu"


class CudaError(RuntimeError):
    """CuPy's exception for what CUDA reports."""


CudaError.__module__ = "cupy_backends.cuda.api.runtime"


class CudaMemoryError(MemoryError):
    """CuPy's exception for a full GPU."""


CudaMemoryError.__module__ = "cupy.cuda.memory"


class Probe:
    """An array on a GPU, with which computing works or fails."""

    def __init__(self, failure: Exception | None) -> None:
        self.failure = failure

    def __matmul__(self, other: "Probe") -> "Probe":
        if self.failure:
            if isinstance(self.failure, AssertionError):
                warnings.warn("CuPy failed to load libcublas.so.12: OSError: it is not there", stacklevel=1)
            raise self.failure
        return self

    def __add__(self, other: "Probe") -> "Probe":
        return self

    def sum(self) -> float:
        return 12.0


def fake_cupy(count: int | Exception = 1, failure: Exception | None = None) -> Any:
    """A module that stands in for CuPy on a machine with this many GPUs, where computing fails like this."""

    def device_count() -> int:
        if isinstance(count, Exception):
            raise count
        return count

    runtime = SimpleNamespace(
        getDeviceCount=device_count, CUDARuntimeError=CudaError, memGetInfo=lambda: (2_000_000, 9_000_000)
    )
    return SimpleNamespace(
        ones=lambda shape, dtype: Probe(failure),
        cuda=SimpleNamespace(runtime=runtime, Device=None),
        ndarray=Probe,
        asnumpy=None,
    )


@pytest.fixture
def without_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """A registry of backends in which nobody has asked for CuPy yet."""
    monkeypatch.setattr(backend, "_by_name", {"cpu": backend.NUMPY})
    monkeypatch.setattr(backend, "_by_type", dict(backend._by_type))


@pytest.mark.usefixtures("without_cuda")
@pytest.mark.parametrize(
    ("cupy", "words"),
    [
        (fake_cupy(CudaError("cudaErrorInsufficientDriver: too old")), "GPU cudaErrorInsufficientDriver cpu"),
        (fake_cupy(0), "GPU cpu"),
        (fake_cupy(failure=ImportError("libnvrtc.so.12: no such file")), "libnvrtc.so.12 ctk"),
        (fake_cupy(failure=AssertionError("\n*** not supported\n*** a bug")), "libcublas.so.12 ctk"),
        (fake_cupy(failure=RuntimeError("x.cu(1): error: cannot open cuda_fp16.h\n1 error")), "cuda_fp16.h ctk"),
        (fake_cupy(failure=CudaMemoryError("Out of memory allocating 512 bytes (so far: 0).")), "512 memory"),
        (fake_cupy(failure=CudaError("cudaErrorNoKernelImageForDevice: none")), "fit"),
    ],
)
def test_a_gpu_that_cannot_compute(cupy: Any, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not available, and whoever asks for it is told in one sentence what is missing."""
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    assert backend.available() == ["cpu"]
    refused(ValueError, "", f"cuda {words}", backend.use, "cuda")


@pytest.mark.usefixtures("without_cuda")
def test_gpus_that_can_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", fake_cupy(2))
    assert backend.available() == ["cpu", "cuda", "cuda:1"]
    full = CudaMemoryError("Out of memory allocating 3,000,000 bytes (allocated so far: 0 bytes).")
    sentence = backend.explained(full)
    assert sentence is not None
    assert all(word in sentence for word in ("3,000,000", "2,000,000", "batch"))


@pytest.mark.usefixtures("without_cuda")
def test_a_cupy_that_cannot_be_imported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What is missing is named, without the page that CuPy prints around it."""
    (tmp_path / "cupy.py").write_text(
        "try:\n    raise ImportError('libcuda.so.1: none')\n"
        "except ImportError as error:\n    raise ImportError('\\n=====\\nFailed to import CuPy.\\n') from error\n"
    )
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    refused(ValueError, "", "cuda CuPy libcuda.so.1 ctk", backend.use, "cuda")
    sys.modules.pop("cupy", None)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (CudaError("cudaErrorIllegalAddress: an illegal memory access"), "index detect_anomaly()"),
        (CudaError("cudaErrorECCUncorrectable: uncorrectable"), "damaged nvidia-smi"),
        (CudaError("cudaErrorSomethingNew: what it is"), "cudaErrorSomethingNew"),
        (MemoryError("host"), None),
        (RuntimeError("cudaErrorUnknown"), None),
    ],
)
def test_errors_of_cuda_are_explained(error: Exception, words: str | None) -> None:
    """In one sentence; others are left to whoever raised them."""
    sentence = backend.explained(error)
    assert (sentence is None) == (words is None)
    assert sentence is None or words is None or ("\n" not in sentence and all(w in sentence for w in words.split()))


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("add", lambda here, there: here + there),
        ("matmul with an array", lambda here, there: there @ here.numpy().T),
        ("less", lambda here, there: here < there),
        ("maximum", F.maximum),
        ("concatenate", lambda here, there: F.concatenate([here, there])),
        ("linear", F.linear),
        ("rbf", F.rbf),
        ("mse_loss", F.mse_loss),
        ("subsample2d", lambda here, there: F.subsample2d(np.ones((1, 2, 4, 4)), there, here, 2)),
        ("backward", lambda here, there: parameter(2, 3).backward(there)),
    ],
)
def test_mixing_devices(name: str, function: Callable[..., Any]) -> None:
    there = Tensor(np.ones((2, 3)), device="strict")
    refused(ValueError, "", "devices cpu strict .to(device)", function, MATRIX, there)


def test_mixing_devices_of_one_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = (Tensor(np.ones(2), device="strict") for _ in range(2))
    two = dataclasses.replace(backend.backend_of(here.data), index_of=lambda array: int(array is there.data), count=2)
    monkeypatch.setitem(backend._by_type, two.array_type, two)
    monkeypatch.setitem(backend._by_name, two.name, two)
    assert here.to("strict:1").data is not here.data
    refused(ValueError, "", "devices strict strict:1 .to(device)", lambda: here + there)


# Ops whose backward is wrong; what an op must declare is in test_ops.py.


@pytest.mark.usefixtures("scratch_ops")
@pytest.mark.parametrize("axes", ["N C", "..."])
@pytest.mark.parametrize(
    ("mistake", "words", "wrong"),
    [
        ("shape", "for x", lambda gy: gy.sum(0)),
        ("shape from a function", "for x", lambda gy: lambda: gy.T),
        ("dtype", "for x", lambda gy: gy.astype("float32")),
        ("none", "for x", lambda gy: None),
        ("array", "for x", lambda gy: gy.data),
        ("too many", "2 gradients", lambda gy: (gy, gy)),
        ("too few", "0 gradients", lambda gy: ()),
    ],
)
def test_a_wrong_gradient_names_its_op(mistake: str, words: str, wrong: Callable[[Tensor], Any], axes: str) -> None:
    """Also where the engine sums over repeated axes: what does not fit then is the op's mistake, not a reshape's."""

    class Wrong(Op):
        """y = 2 x, its derivative to be got wrong."""

        signature = f"wrong(x[{axes}]) -> y[{axes}]"
        domains = {"x": REAL}

        def forward(self, xp: Any, x: Any) -> Any:
            return 2 * x

        def backward(self, gy: Tensor, y: Tensor, x: Any) -> Any:
            return wrong(gy)

    x = parameter(2, 3)
    y = Wrong()(x).sum()
    with pytest.raises((ValueError, TypeError), match=f"^wrong: .*{words}"):
        y.backward()
    assert x.grad is None
