"""Malformed calls: each is refused before anything is computed, in one sentence that says where and what is wrong.

The table lists calls as a user gets them wrong. While one runs, every op's forward raises, so a check that comes too
late fails its test. Mistakes that need a graph, a second device or a wrong op first have tests of their own below.
"""

import importlib.util
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from tinygrad_lenet import ShapeError, Tensor, backend, curvature, grad
from tinygrad_lenet import functional as F
from tinygrad_lenet.op import REAL, REGISTRY, Domain, Op

IMAGES = np.ones((2, 3, 8, 8), np.float32)  # [N C H W]
WEIGHT = np.ones((4, 3, 3, 3), np.float32)  # [F C KH KW]
MATRIX = Tensor(np.ones((2, 3), np.float32))
LOGITS = np.zeros((2, 3), np.float32)  # [N K]
LABELS = np.array([0, 2])
ZEROS, ONES = np.zeros(3), np.ones(3)


def parameter(*shape: int) -> Tensor:
    return Tensor(np.ones(shape), requires_grad=True)


def conv(**how: Any) -> Callable[[], Any]:
    return lambda: F.conv2d(IMAGES, WEIGHT, **how)


def deconv(**how: Any) -> Callable[[], Any]:
    return lambda: F.conv_transpose2d(np.ones((1, 4, 2, 2)), np.ones((4, 2, 3, 3)), **how)


def entropy(logits: Any = LOGITS, target: Any = LABELS, **how: Any) -> Callable[[], Any]:
    return lambda: F.cross_entropy(logits, target, **how)


def penalties(y: Any = LOGITS, target: Any = LABELS, **how: Any) -> Callable[[], Any]:
    return lambda: F.penalty_loss(y, target, **how)


def subsample(x: Any = IMAGES, weight: Any = ONES, bias: Any = ZEROS, kernel_size: Any = 2) -> Callable[[], Any]:
    return lambda: F.subsample2d(x, weight, bias, kernel_size)


def scatter(connections: Any, k: int = 3, in_channels: Any = 2) -> Callable[[], Any]:
    return lambda: F.scatter_kernels(np.ones((k, 2, 2)), connections, in_channels)


def norm(x: Any = IMAGES, mean: Any = ZEROS, var: Any = ONES, **how: Any) -> Callable[[], Any]:
    return lambda: F.batch_norm(x, mean, var, **how)


Refusal = tuple[str, type[Exception], Callable[[], Any], str]  # the mistake, what is raised, the call, its sentence


def refusals(function: str, *rows: Refusal) -> list[Any]:
    """Table rows for calls whose sentences begin with the name of that function ("": with no name of theirs)."""
    start = f"^{function}: " if function else ""
    return [
        pytest.param(call, exception, start + sentence, id=f"{function}-{mistake}".strip("-"))
        for mistake, exception, call, sentence in rows
    ]


# fmt: off
CALLS = [
    *refusals(
        "conv2d",
        ("rank-of-x", ShapeError, lambda: F.conv2d(np.ones((3, 8, 8)), WEIGHT), r"x has shape .* x\[N C H W\]"),
        ("rank-of-weight", ShapeError, lambda: F.conv2d(IMAGES, np.ones((4, 3))), r"weight has shape \(4, 3\)"),
        ("rank-of-bias", ShapeError, conv(bias=np.ones((4, 1))), r"bias has shape \(4, 1\); expected bias\[F\]"),
        ("channels", ShapeError, lambda: F.conv2d(IMAGES[:, :2], WEIGHT), "axis C is 2 in x and 3 in weight"),
        ("bias", ShapeError, conv(bias=np.ones(3)), "axis F is 4 in weight and 3 in bias"),
        ("groups-of-x", ShapeError, conv(groups=2), r"axis C is 3 in x and 3 \* groups = 6 in weight"),
        (
            "groups-of-weight", ShapeError, lambda: F.conv2d(np.ones((1, 2, 4, 4)), np.ones((3, 1, 2, 2)), groups=2),
            "3 channels do not split into 2 groups",
        ),
        ("groups-zero", ValueError, conv(groups=0), "groups is 0; expected at least 1"),
        ("groups-float", TypeError, conv(groups=1.0), r"groups must be an integer, not 1\.0"),
        ("stride-zero", ValueError, conv(stride=0), "stride is 0; expected at least 1"),
        ("stride-negative", ValueError, conv(stride=(1, -2)), "stride is -2"),
        ("stride-fraction", TypeError, conv(stride=1.5), r"stride must be an integer, not 1\.5"),
        ("stride-string", TypeError, conv(stride="2"), "stride must be an integer, not '2'"),
        ("stride-bool", TypeError, conv(stride=True), "stride must be an integer, not True"),
        ("stride-none", TypeError, conv(stride=None), "stride must be an integer, not None"),
        ("stride-three", ValueError, conv(stride=(1, 2, 3)), r"stride is \(1, 2, 3\); .*\(vertical, horizontal\)"),
        ("stride-pair-of-strings", TypeError, conv(stride=("1", "1")), "stride must be an integer, not '1'"),
        ("padding-negative", ValueError, conv(padding=-1), "padding is -1; expected at least 0"),
        ("padding-same", TypeError, conv(padding="same"), "padding must be an integer, not 'same'"),
        ("dilation-zero", ValueError, conv(dilation=0), "dilation is 0"),
        ("window-too-high", ShapeError, lambda: F.conv2d(IMAGES[:, :, :2], WEIGHT), ".* 3 along axis H, which has 2"),
        ("window-too-wide", ShapeError, lambda: F.conv2d(IMAGES[..., :2], WEIGHT), ".* 3 along axis W, which has 2"),
        ("dilation-reach", ShapeError, conv(dilation=(1, 4)), "the window reaches over 9 along axis W, which has 8"),
        ("reach-over-padding", ShapeError, conv(dilation=6, padding=1), ".* 13 along axis H, .* 2 of padding"),
    ),
    *refusals(
        "conv_transpose2d",
        (
            "channels", ShapeError, lambda: F.conv_transpose2d(np.ones((1, 3, 2, 2)), np.ones((4, 2, 3, 3))),
            "axis F is 3 in x and 4 in weight",
        ),
        ("bias", ShapeError, deconv(bias=np.ones(3)), "axis C is 2 in weight and 3 in bias"),
        ("groups", ShapeError, deconv(groups=3), "4 channels do not split into 3 groups"),
        ("padding", ShapeError, deconv(padding=3), "the output would be .*less padding"),
        ("output_padding", ShapeError, deconv(output_padding=1), "output_padding 1 along axis H"),
        (
            "output_padding-wide", ShapeError, deconv(stride=(2, 2), output_padding=(1, 2)),
            "output_padding 2 along axis W",
        ),
        ("stride", TypeError, deconv(stride="a"), "stride must be an integer"),
    ),
    *refusals(
        "avg_pool2d",
        ("rank", ShapeError, lambda: F.avg_pool2d(np.ones((8, 8)), 2), r"x has shape \(8, 8\)"),
        ("window", ShapeError, lambda: F.avg_pool2d(IMAGES, 9), "the window reaches over 9 along axis H"),
        ("kernel-zero", ValueError, lambda: F.avg_pool2d(IMAGES, 0), "kernel_size is 0"),
        ("kernel-none", TypeError, lambda: F.avg_pool2d(IMAGES, None), "kernel_size must be an integer"),
        ("stride", ValueError, lambda: F.avg_pool2d(IMAGES, 2, stride=0), "stride is 0"),
    ),
    *refusals(
        "max_pool2d",
        ("rank", ShapeError, lambda: F.max_pool2d(MATRIX, 2), r"x has shape \(2, 3\)"),
        ("window", ShapeError, lambda: F.max_pool2d(IMAGES, (2, 9)), ".* over 9 along axis W"),
        ("padding", ShapeError, lambda: F.max_pool2d(IMAGES, 2, padding=2), r"padding \(2, 2\) is more than half"),
        ("pair", ValueError, lambda: F.max_pool2d(IMAGES, (2,)), r"kernel_size is \(2,\)"),
        (
            "integers-padded", TypeError, lambda: F.max_pool2d(np.ones((1, 1, 4, 4), int), 2, padding=1),
            ".*(int64|float)",
        ),
    ),
    *refusals(
        "subsample2d",
        ("rank", ShapeError, subsample(np.ones((8, 8))), r"x has shape \(8, 8\); expected x\[N C H W\]"),
        ("weight", ShapeError, subsample(weight=np.ones(2)), "axis C is 3 in x and 2 in weight"),
        ("weight-rank", ShapeError, subsample(weight=np.ones((3, 1))), r"weight has shape \(3, 1\); .* weight\[C\]"),
        ("bias", ShapeError, subsample(bias=np.ones(4)), "axis C is 3 in x and 4 in bias"),
        ("bias-number", ShapeError, subsample(bias=1.0), r"bias has shape \(\); expected bias\[C\]"),
        ("window-high", ShapeError, subsample(kernel_size=(9, 2)), ".* reaches over 9 along axis H, which has 8"),
        ("window-wide", ShapeError, subsample(kernel_size=(2, 9)), "the window reaches over 9 along axis W"),
        ("kernel-zero", ValueError, subsample(kernel_size=0), "kernel_size is 0; expected at least 1"),
        ("kernel-fraction", TypeError, subsample(kernel_size=2.0), r"kernel_size must be an integer, not 2\.0"),
        ("kernel-none", TypeError, subsample(kernel_size=None), "kernel_size must be an integer, not None"),
        ("kernel-three", ValueError, subsample(kernel_size=(1, 2, 3)), r"kernel_size is \(1, 2, 3\)"),
    ),
    *refusals(
        "scatter_kernels",
        ("count", ShapeError, scatter([[0], [0, 1]], k=4), "axis K is 4 in weight; there are 3 places"),
        (
            "rank", ShapeError, lambda: F.scatter_kernels(np.ones((1, 2)), [[0]], 1),
            r"weight has shape \(1, 2\); expected weight\[K KH KW\]",
        ),
        ("missing", ValueError, scatter([[0], [0, 2]]), "row 1 of connections names input map 2, which is missing"),
        ("negative", ValueError, scatter([[0], [0, -1]]), "each map in row 1 of connections is -1; .* at least 0"),
        ("twice", ValueError, scatter([[0], [1, 1]]), r"row 1 of connections, \(1, 1\), names an input map twice"),
        ("row-empty", ValueError, scatter([[0, 1], []]), "row 1 of connections is empty; expected at least one"),
        ("empty", ValueError, scatter([]), "connections is empty; expected a row for each output map"),
        ("fraction", TypeError, scatter([[0], [0, 0.5]]), ".* row 1 of connections must be an integer, not 0.5"),
        ("rows", TypeError, scatter([0, 1, 1]), r"connections are \[0, 1, 1\]; expected for each output map a list"),
        ("none", TypeError, scatter(None), "connections are None; expected for each output map a list"),
        ("channels-zero", ValueError, scatter([[0]], in_channels=0), "in_channels is 0; expected at least 1"),
        ("channels-fraction", TypeError, scatter([[0]], in_channels=1.0), "in_channels must be an integer"),
    ),
    *refusals(
        "linear",
        ("features", ShapeError, lambda: F.linear(MATRIX, np.ones((4, 5))), "axis I is 3 in x and 5 in weight"),
        (
            "weight-rank", ShapeError, lambda: F.linear(MATRIX, np.ones(3)),
            r"weight has shape \(3,\); expected weight\[O I\]",
        ),
        (
            "bias", ShapeError, lambda: F.linear(MATRIX, np.ones((4, 3)), np.ones(3)),
            "axis O is 4 in weight and 3 in bias",
        ),
        ("scalar", ShapeError, lambda: F.linear(1.0, np.ones((4, 3))), r"x has shape \(\); expected x\[\.\.\. I\]"),
    ),
    *refusals(
        "matmul",
        ("inner", ShapeError, lambda: MATRIX @ MATRIX, "axis K is 3 in a and 2 in b"),
        (
            "batch", ShapeError, lambda: np.ones((2, 2, 3)) @ Tensor(np.ones((3, 3, 2))),
            r"shapes \(2,\) and \(3,\) do not broadcast",
        ),
        ("number", ShapeError, lambda: MATRIX @ 2.0, r"b has shape \(\)"),
    ),
    *refusals(
        "einsum",
        ("count", ShapeError, lambda: F.einsum("ij,jk", MATRIX), "'ij,jk' is for 2 operands; 1 were given"),
        ("rank", ShapeError, lambda: F.einsum("ijk->i", MATRIX), r"operand 0 has shape \(2, 3\), which 'ijk'"),
        ("size", ShapeError, lambda: F.einsum("ij,ij", MATRIX, MATRIX.numpy().T), "axis i is 2 and 3, in operand 1"),
        ("diagonal", ShapeError, lambda: F.einsum("ii", MATRIX), "axis i is 2 and 3, in operand 0"),
        ("unknown-output", ShapeError, lambda: F.einsum("ij->ik", MATRIX), "axis k of the output"),
        ("output-twice", ShapeError, lambda: F.einsum("ij->ii", MATRIX), "axis i of the output"),
        ("digit", ShapeError, lambda: F.einsum("i1->i", MATRIX), "operand 0 .*'i1'"),
        ("letter-outside-ascii", ValueError, lambda: F.einsum("ié->i", MATRIX), ".*ié"),
        ("subscripts-missing", TypeError, lambda: F.einsum(MATRIX, MATRIX), "subscripts"),
    ),
    *refusals(
        "softmax",
        ("axis", ShapeError, lambda: F.softmax(MATRIX, 2), "axis 2 is out of range for an input with 2 axes"),
        ("axis-string", TypeError, lambda: F.softmax(MATRIX, "x"), "axis must be an integer"),
        ("axis-none", TypeError, lambda: F.softmax(MATRIX, None), "axis must be an integer"),
        ("two-axes", TypeError, lambda: F.softmax(MATRIX, (0, 1)), "axis must be an integer"),
        ("empty", ValueError, lambda: F.softmax(np.ones((2, 0))), "axis -1 of the input is empty"),
    ),
    *refusals(
        "log_softmax",
        ("axis", ShapeError, lambda: F.log_softmax(MATRIX, -3), "axis -3 is out of range"),
    ),
    *refusals(
        "logsumexp",
        ("axis", ShapeError, lambda: F.logsumexp(MATRIX, (0, 5)), "axis 5 is out of range"),
    ),
    *refusals(
        "cross_entropy",
        ("rank", ShapeError, entropy(np.ones(3)), r"logits have shape \(3,\); expected \[N K\]"),
        ("label-high", ValueError, entropy(target=[0, 3]), "label 3 is out of range; expected 0 to 2"),
        ("label-low", ValueError, entropy(target=[0, -1]), "label -1 is out of range"),
        ("label-dtype", TypeError, entropy(target=np.array([0.0, 1.0])), "labels have dtype float64"),
        ("label-count", ShapeError, entropy(target=[0]), "axis N is 2 in logits and 1 in target"),
        ("probabilities", ShapeError, entropy(target=np.ones((2, 4))), "axis K is 3 in logits and 4 in target"),
        ("probability-count", ShapeError, entropy(target=np.ones((1, 3))), "axis N is 2 in logits and 1 in"),
        ("target-rank", ShapeError, entropy(target=np.ones((2, 3, 1))), r"target has shape \(2, 3, 1\)"),
        ("target-ragged", ValueError, entropy(target=[[1.0], [0.0, 1.0]]), ".*target"),
        ("smoothing-high", ValueError, entropy(label_smoothing=1.5), r"label_smoothing is 1\.5; .* from 0 to 1"),
        ("smoothing-negative", ValueError, entropy(label_smoothing=-0.1), r"label_smoothing is -0\.1"),
        ("smoothing-nan", ValueError, entropy(label_smoothing=float("nan")), "label_smoothing is nan"),
        ("smoothing-string", ValueError, entropy(label_smoothing="a"), "label_smoothing is 'a'"),
        ("reduction", ValueError, entropy(reduction="avg"), "reduction is 'avg'; expected 'mean', 'sum' or"),
        ("reduction-none", ValueError, entropy(reduction=None), "reduction is None"),
    ),
    *refusals(
        "nll_loss",
        ("rank", ShapeError, lambda: F.nll_loss(np.ones(3), [0]), r"log_probabilities have shape \(3,\)"),
        ("label", ValueError, lambda: F.nll_loss(LOGITS, [0, 3]), "label 3 is out of range"),
        ("count", ShapeError, lambda: F.nll_loss(LOGITS, [0]), "axis N is 2 in log_probabilities and 1 in target"),
        ("label-rank", ShapeError, lambda: F.nll_loss(LOGITS, np.array([[0], [1]])), r"labels have shape \(2, 1\)"),
        ("label-fraction", TypeError, lambda: F.nll_loss(LOGITS, [0, 1.5]), "labels have dtype float"),
        ("reduction", ValueError, lambda: F.nll_loss(LOGITS, LABELS, "avg"), "reduction is 'avg'"),
    ),
    *refusals(
        "mse_loss",
        ("shapes", ShapeError, lambda: F.mse_loss(MATRIX, np.ones(3)), r"x has shape \(2, 3\) and target \(3,\)"),
        ("reduction", ValueError, lambda: F.mse_loss(MATRIX, MATRIX, "avg"), "reduction is 'avg'"),
    ),
    *refusals(
        "rbf",
        ("features", ShapeError, lambda: F.rbf(MATRIX, np.ones((4, 2))), "axis J is 3 in x and 2 in centers"),
        ("rank-of-x", ShapeError, lambda: F.rbf(np.ones(3), MATRIX), r"x has shape \(3,\); expected x\[N J\]"),
        ("rank-of-centers", ShapeError, lambda: F.rbf(MATRIX, np.ones(3)), r"centers has shape \(3,\); expected"),
        ("number", ShapeError, lambda: F.rbf(MATRIX, 1.0), r"centers has shape \(\); expected centers\[K J\]"),
    ),
    *refusals(
        "penalty_loss",
        ("rank", ShapeError, penalties(np.ones(3)), r"penalties have shape \(3,\); expected \[N K\]"),
        ("label-high", ValueError, penalties(target=[0, 3]), "label 3 is out of range; expected 0 to 2"),
        ("label-high-with-j", ValueError, penalties(target=[0, 3], j=1.0), "label 3 is out of range; expected 0 to 2"),
        ("label-low", ValueError, penalties(target=[0, -1], j=1.0), "label -1 is out of range; expected 0 to 2"),
        ("label-dtype", TypeError, penalties(target=np.array([0.0, 1.0])), "labels have dtype float64"),
        ("label-rank", ShapeError, penalties(target=np.ones((2, 3), int)), r"labels have shape \(2, 3\); .* \[N\]"),
        ("label-count", ShapeError, penalties(target=[0]), "axis N is 2 in penalties and 1 in target"),
        ("target-ragged", ValueError, penalties(target=[[1], [0, 1]]), "labels is not a rectangular array"),
        ("j-zero", ValueError, penalties(j=0), "j is 0; expected a finite number above 0"),
        ("j-negative", ValueError, penalties(j=-1.0), r"j is -1\.0; expected a finite number above 0"),
        ("j-nan", ValueError, penalties(j=float("nan")), "j is nan"),
        ("j-infinite", ValueError, penalties(j=float("inf")), "j is inf"),
        ("j-string", TypeError, penalties(j="1"), "j is '1'; expected a number"),
        ("j-bool", TypeError, penalties(j=True), "j is True; expected a number"),
        ("reduction", ValueError, penalties(reduction="avg"), "reduction is 'avg'; expected 'mean', 'sum' or 'none'"),
        ("reduction-none", ValueError, penalties(reduction=None, j=1.0), "reduction is None"),
    ),
    *refusals(
        "scaled_tanh",
        ("amplitude-zero", ValueError, lambda: F.scaled_tanh(MATRIX, 0), "amplitude is 0; expected another number"),
        ("amplitude-nan", ValueError, lambda: F.scaled_tanh(MATRIX, float("nan")), "amplitude is nan"),
        ("slope-infinite", ValueError, lambda: F.scaled_tanh(MATRIX, 1.0, float("inf")), "slope is inf"),
        ("slope-string", TypeError, lambda: F.scaled_tanh(MATRIX, slope="2/3"), "slope is '2/3'; expected a number"),
    ),
    *refusals(
        "one_hot",
        ("label", ValueError, lambda: F.one_hot([3], 3), "label 3 is out of range; expected 0 to 2"),
        ("fraction", TypeError, lambda: F.one_hot([1.5], 3), "labels have dtype float"),
        ("rank", ShapeError, lambda: F.one_hot([[1]], 3), r"labels have shape \(1, 1\)"),
        ("classes", ValueError, lambda: F.one_hot([0], 0), "classes is 0"),
    ),
    *refusals(
        "dropout",
        ("p-one", ValueError, lambda: F.dropout(MATRIX, 1.0), r"p is 1\.0; expected a probability"),
        ("p-negative", ValueError, lambda: F.dropout(MATRIX, -0.1), r"p is -0\.1"),
        ("p-nan", ValueError, lambda: F.dropout(MATRIX, float("nan")), "p is nan"),
        ("p-string", ValueError, lambda: F.dropout(MATRIX, "half"), "p is 'half'"),
        ("rng", TypeError, lambda: F.dropout(MATRIX, rng=3), "rng"),
    ),
    *refusals(
        "batch_norm",
        ("rank", ShapeError, norm(np.ones(3)), r"x has shape \(3,\); expected \[N C \.\.\.\]"),
        ("mean", ShapeError, norm(mean=np.zeros(4)), r"axis C is 3 in x and \(4,\) in running_mean"),
        ("var", ShapeError, norm(var=np.zeros((3, 1))), r"axis C is 3 in x and \(3, 1\) in running_var"),
        ("weight", ShapeError, norm(weight=np.ones(2)), r"axis C is 3 in x and \(2,\) in weight"),
        ("bias", ShapeError, norm(bias=np.ones(2)), r"axis C is 3 in x and \(2,\) in bias"),
        ("eps", ValueError, norm(eps=-1.0), r"eps is -1\.0"),
        ("eps-nan", ValueError, norm(eps=float("nan")), "eps is nan"),
        ("momentum", ValueError, norm(momentum=2.0), r"momentum is 2\.0; expected a number from 0 to 1"),
        ("missing", ValueError, norm(mean=None), "running_mean and running_var are needed"),
        ("one-value", ValueError, norm(np.ones((1, 3)), training=True), ".* more than one value a channel"),
    ),
    *refusals(
        "add",
        ("shapes", ShapeError, lambda: MATRIX + np.ones(2), r"shapes \(2, 3\) and \(2,\) do not broadcast"),
    ),
    *refusals(
        "subtract",
        ("shapes", ShapeError, lambda: np.ones(2) - MATRIX, r"shapes \(2,\) and \(2, 3\) do not broadcast"),
    ),
    *refusals(
        "power",
        ("shapes", ShapeError, lambda: MATRIX ** np.ones(2), "shapes"),
    ),
    *refusals(
        "less",
        ("shapes", ShapeError, lambda: np.ones(2) > MATRIX, "shapes"),
    ),
    *refusals(
        "equal",
        ("shapes", ShapeError, lambda: np.ones(2) == MATRIX, "shapes"),
    ),
    *refusals(
        "maximum",
        ("shapes", ShapeError, lambda: F.maximum(MATRIX, np.ones(2)), "shapes"),
    ),
    *refusals(
        "where",
        ("shapes", ShapeError, lambda: F.where(np.ones(2, bool), MATRIX, 0.0), "shapes"),
        (
            "condition", TypeError, lambda: F.where(np.ones(3), MATRIX, 0.0),
            "condition has dtype float64; expected booleans",
        ),
        ("condition-number", TypeError, lambda: F.where(1, MATRIX, 0.0), "condition has dtype int64"),
    ),
    *refusals(
        "sum",
        ("axis", ShapeError, lambda: MATRIX.sum(2), "axis 2 is out of range for an input with 2 axes"),
        ("axis-twice", ShapeError, lambda: MATRIX.sum((0, -2)), r"axis \(0, -2\) names an axis twice"),
        ("axis-fraction", TypeError, lambda: MATRIX.sum(0.5), r"axis must be an integer, not 0\.5"),
    ),
    *refusals(
        "max",
        ("axis", ShapeError, lambda: MATRIX.max(2), "axis 2 is out of range"),
        ("empty", ValueError, lambda: Tensor(np.ones((2, 0))).max(), "axis 1 of x is empty"),
    ),
    *refusals(
        "argmax",
        ("axis", ShapeError, lambda: MATRIX.argmax(2), "axis 2 is out of range"),
        ("empty", ValueError, lambda: Tensor(np.ones(0)).argmax(), ""),
    ),
    *refusals(
        "argmin",
        ("axis", TypeError, lambda: MATRIX.argmin(0.5), "axis must be an integer"),
    ),
    *refusals(
        "reshape",
        ("size", ShapeError, lambda: MATRIX.reshape(4), r"x has shape \(2, 3\), 6 elements, which do not fill \(4,\)"),
        ("two-unknown", ShapeError, lambda: MATRIX.reshape(-1, -1), ""),
        ("indivisible", ShapeError, lambda: MATRIX.reshape(-1, 4), ""),
        ("negative", ValueError, lambda: MATRIX.reshape(-2, 3), "an axis of shape is -2"),
        ("fraction", TypeError, lambda: MATRIX.reshape(1.5, 4), "an axis of shape must be an integer"),
    ),
    *refusals(
        "transpose",
        ("missing", ShapeError, lambda: MATRIX.transpose(0), r"axes \(0,\) do not name each"),
        ("twice", ShapeError, lambda: MATRIX.transpose(0, 0), r"axis \(0, 0\) names an axis twice"),
        ("range", ShapeError, lambda: MATRIX.transpose(0, 2), "axis 2 is out of range"),
    ),
    *refusals(
        "squeeze",
        ("size", ValueError, lambda: MATRIX.squeeze(0), "axis 0 has size 2"),
        ("range", ShapeError, lambda: MATRIX.squeeze(2), "axis 2 is out of range"),
    ),
    *refusals(
        "expand_dims",
        ("range", ShapeError, lambda: MATRIX.expand_dims(4), "axis 4 is out of range"),
        ("twice", ShapeError, lambda: MATRIX.expand_dims((0, 0)), r"axis \(0, 0\) names"),
    ),
    *refusals(
        "broadcast_to",
        ("shape", ShapeError, lambda: MATRIX.broadcast_to((2, 4)), ""),
        ("fewer", ShapeError, lambda: MATRIX.broadcast_to((3,)), r"x has shape \(2, 3\)"),
        ("negative", ValueError, lambda: MATRIX.broadcast_to((-1, 3)), "an axis of shape is -1"),
    ),
    *refusals(
        "concatenate",
        ("shapes", ShapeError, lambda: F.concatenate([MATRIX, np.ones((2, 4))]), r"input 1 has shape \(2, 4\)"),
        ("ranks", ShapeError, lambda: F.concatenate([MATRIX, np.ones(3)]), r"input 1 has shape \(3,\)"),
        ("axis", ShapeError, lambda: F.concatenate([MATRIX], 2), "axis 2 is out of range"),
        ("axis-none", TypeError, lambda: F.concatenate([MATRIX], None), "axis must be an integer"),
        ("nothing", ShapeError, lambda: F.concatenate([]), "there is nothing to join"),
        ("number", TypeError, lambda: F.concatenate(5), ""),
    ),
    *refusals(
        "stack",
        ("shapes", ShapeError, lambda: F.stack([MATRIX, np.ones(3)]), r"input 1 has shape \(3,\), input 0 \(2, 3\)"),
        ("axis", ShapeError, lambda: F.stack([MATRIX], 3), "axis 3 is out of range"),
        ("two-axes", TypeError, lambda: F.stack([MATRIX], (0, 1)), "axis must be an integer"),
        ("nothing", ShapeError, lambda: F.stack([]), "there is nothing"),
    ),
    *refusals(
        "pad",
        ("negative", ValueError, lambda: F.pad(MATRIX, -1), "pad_width is -1; expected at least 0"),
        ("fraction", TypeError, lambda: F.pad(MATRIX, 0.5), r"pad_width must be an integer, not 0\.5"),
        ("axes", ShapeError, lambda: F.pad(MATRIX, [(1, 1)] * 3), "pad_width .* for 2 axes"),
        ("ragged", ShapeError, lambda: F.pad(MATRIX, [(1,), (1, 2)]), "pad_width"),
        ("value", TypeError, lambda: F.pad(MATRIX, 1, value="edge"), "value"),
    ),
    *refusals(
        "astype",
        ("complex", TypeError, lambda: MATRIX.astype("complex64"), ".*complex64"),
    ),
    *refusals(
        "getitem",
        ("too-many", ShapeError, lambda: MATRIX[0, 0, 0], r"the index names 3 axes, x has shape \(2, 3\)"),
        ("string", TypeError, lambda: MATRIX["a"], "an index may hold .*, not 'a'"),
        ("fraction", TypeError, lambda: MATRIX[0.5], r"an index may hold .*, not 0\.5"),
        ("float-array", TypeError, lambda: MATRIX[np.ones(2)], "an index may hold"),
    ),
    *refusals(
        "Tensor",
        ("ragged", ValueError, lambda: Tensor([[1.0], [1.0, 2.0]]), "the data is not a rectangular array"),
        ("object", TypeError, lambda: Tensor([None, 1.0]), "dtype object is not a real number"),
        ("none-with-dtype", TypeError, lambda: Tensor(None, dtype="float32"), ".*(object|None)"),
        ("dict", TypeError, lambda: Tensor({"a": 1}), "dtype object"),
        ("complex", TypeError, lambda: Tensor(1 + 2j), "dtype complex128 is not a real number"),
        ("string", TypeError, lambda: Tensor("abc"), "dtype <U3 is not a real number"),
        ("string-with-dtype", TypeError, lambda: Tensor("abc", dtype="float32"), "dtype <U3 is not a real number"),
        ("date", TypeError, lambda: Tensor(np.datetime64("2020-01-01")), r"dtype datetime64\[D\]"),
        ("dtype-complex", TypeError, lambda: Tensor([1.0], dtype="complex64"), "dtype complex64"),
        (
            "integer-gradient", ValueError, lambda: Tensor(LABELS, requires_grad=True),
            "requires_grad needs floating-point",
        ),
        ("bool-gradient", ValueError, lambda: Tensor([True], requires_grad=True), "requires_grad .* not bool"),
    ),
    *refusals(
        "item",
        ("many", ValueError, lambda: MATRIX.item(), r"the tensor has shape \(2, 3\)"),
        ("empty", ValueError, lambda: Tensor(np.ones(0)).item(), r"the tensor has shape \(0,\)"),
    ),
    *refusals(
        "backward",
        ("many", ValueError, lambda: parameter(2).backward(), r"the output has shape \(2,\); .*\.sum\(\)"),
        ("constant", ValueError, lambda: Tensor(1.0).backward(), "the output does not require a gradient"),
        ("shape", ValueError, lambda: parameter(2).backward(np.ones(3)), r"the gradient has shape \(3,\); .* \(2,\)"),
    ),
    *refusals(
        "grad",
        ("constant-output", ValueError, lambda: grad(Tensor(1.0), [parameter(1)]), "the output does not require"),
        ("output-number", TypeError, lambda: grad(1.0, [parameter(1)]), ".*output.*float"),
        (
            "constant-input", ValueError, lambda: grad(parameter(1), [MATRIX]),
            r"input 0, of shape \(2, 3\), does not require",
        ),
        ("no-tensor", TypeError, lambda: grad(parameter(1), [np.ones(2)]), "input 0 is ndarray, not a Tensor"),
        ("unused", ValueError, lambda: grad(parameter(1), [parameter(3)]), r"input 0, of shape \(3,\), was not used"),
        (
            "output-shape", ValueError, lambda: grad(p := parameter(2), [p], np.ones(3)),
            r"the gradient has shape \(3,\)",
        ),
    ),
    *refusals(
        "curvature",
        ("constant-output", ValueError, lambda: curvature(Tensor(1.0), [parameter(1)]), "the output does not require"),
        ("output-number", TypeError, lambda: curvature(1.0, [parameter(1)]), "output is float, not a Tensor"),
        (
            "constant-input", ValueError, lambda: curvature(parameter(1), [MATRIX]),
            r"input 0, of shape \(2, 3\), does not require a gradient",
        ),
        ("no-tensor", TypeError, lambda: curvature(parameter(1), [np.ones(2)]), "input 0 is ndarray, not a Tensor"),
        (
            "unused", ValueError, lambda: curvature(parameter(1), [parameter(3)]),
            r"input 0, of shape \(3,\), was not used to compute the output",
        ),
        ("many", ValueError, lambda: curvature(p := parameter(2), [p]), r"the output has shape \(2,\); only one"),
        ("no-loss", ValueError, lambda: curvature(p := parameter(1), p), "nothing on the way .* is a loss"),
    ),
    *refusals(
        "",
        ("rbf-no-array", TypeError, lambda: F.rbf(None, MATRIX), "dtype object is not a real number"),
        ("penalty_loss-string", TypeError, penalties("cat"), "dtype <U3 is not a real number"),
        ("conv2d-no-array", TypeError, lambda: F.conv2d(None, WEIGHT), "dtype object is not a real number"),
        ("cross_entropy-target-string", TypeError, entropy(target="cat"), "(cross_entropy|Tensor): .*"),
        ("multiply-string", TypeError, lambda: MATRIX * "a", "dtype <U1 is not a real number"),
        ("add-none", TypeError, lambda: MATRIX + None, "dtype object is not a real number"),
        ("add-complex", TypeError, lambda: MATRIX + 1j, "dtype complex128 is not a real number"),
        ("mean-axis", ShapeError, lambda: MATRIX.mean(-3), "(mean|sum): axis -3 is out of range"),
        ("var-axis", ShapeError, lambda: MATRIX.var(4), "axis 4 is out of range"),
        ("min-axis", ShapeError, lambda: MATRIX.min(2), "(min|max): axis 2 is out of range"),
        ("min-empty", ValueError, lambda: Tensor(np.ones(0)).min(), "(min|max): axis 0 of x is empty"),
        ("astype-unknown", TypeError, lambda: MATRIX.astype("number"), "number"),
        ("setitem", TypeError, lambda: operator.setitem(MATRIX, 0, 1.0), "'Tensor' object does not support item"),
        ("tensor-dtype-unknown", TypeError, lambda: Tensor([1.0], dtype="nonsense"), "nonsense"),
        ("bool-many", ValueError, lambda: bool(MATRIX), r"shape \(2, 3\); only one element"),
        ("float-many", ValueError, lambda: float(MATRIX), r"shape \(2, 3\); only one element"),
        (
            "device-unknown", ValueError, lambda: Tensor(1.0, device="tpu"),
            "unknown device 'tpu'; expected 'cpu', 'cuda'",
        ),
        ("device-number", TypeError, lambda: Tensor(1.0, device=0), "device must be a name"),
        ("device-second-cpu", ValueError, lambda: Tensor(1.0, device="cpu:1"), "unknown device 'cpu:1'"),
        ("device-index", ValueError, lambda: Tensor(1.0, device="cuda:x"), "unknown device 'cuda:x'"),
        ("use-unknown", ValueError, lambda: backend.use("tpu"), "unknown device 'tpu'"),
        ("to-unknown", ValueError, lambda: MATRIX.to("tpu"), "unknown device 'tpu'"),
        ("backward-string", TypeError, lambda: parameter(1).backward("a"), "dtype <U1 is not a real number"),
    ),
]
# fmt: on


@pytest.fixture
def nothing_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on, an op that gets as far as computing fails the test."""

    def reached(self: Op, *_: Any) -> Any:
        raise AssertionError(f"{self.name} was computed before the call was refused")

    monkeypatch.setattr(backend, "_kernels", {})
    for op in REGISTRY.values():
        if op.name != "transfer":  # where a device is looked up is where it is refused
            monkeypatch.setattr(op, "forward", reached)


@pytest.mark.usefixtures("nothing_computes")
@pytest.mark.parametrize(("call", "exception", "sentence"), CALLS)
def test_refused_before_anything_is_computed(
    call: Callable[[], Any], exception: type[Exception], sentence: str
) -> None:
    with pytest.raises(exception, match=sentence) as caught:
        call()
    assert isinstance(caught.value, (ValueError, TypeError))
    assert "\n" not in str(caught.value), "one sentence"


def test_the_table_has_no_name_twice() -> None:
    names = [row.id for row in CALLS]
    assert len(names) == len(set(names)) > 150


# What needs a graph or a device first


def test_freed_graph() -> None:
    x = parameter(2)
    y = (x * x).sum()
    y.backward()
    for call in (y.backward, lambda: grad(y, [x]), lambda: (y * 2.0).backward()):
        with pytest.raises(ValueError, match=r"backward: the graph through .* freed .*retain_graph=True .* compute"):
            call()


def test_backward_of_what_no_grad_or_detach_made() -> None:
    x = parameter(2)
    with pytest.raises(ValueError, match="does not require a gradient"):
        (x * x).detach().sum().backward()


def test_index_out_of_range() -> None:
    """An IndexError, which Python's own protocols expect, with the shape in it."""
    for index in (2, (0, 3), [0, 5], np.array([True, False, True]), (slice(None), -4)):
        with pytest.raises(IndexError, match=r"getitem: .*x has shape \(2, 3\)"):
            MATRIX[index]


def test_cuda_where_there_is_none() -> None:
    """The sentence says what is missing, CuPy or a GPU, and what to do."""
    if "cuda" in backend.available():
        pytest.skip("there is a GPU")
    missing = "needs CuPy, which cannot be imported .*; run pip" if importlib.util.find_spec("cupy") is None else "GPU"
    for call in (
        lambda: Tensor(1.0, device="cuda"),
        lambda: MATRIX.to("gpu"),
        lambda: backend.use("cupy"),
        lambda: Tensor([1.0], device="cuda:1"),
    ):
        with pytest.raises(ValueError, match=f"device 'cuda' .*{missing}.*'?\"?cpu"):
            call()
    assert backend.default_device() == "cpu"


class FakeArray(np.ndarray):
    """Stands for the arrays of a second device."""


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], Tensor]:
    """A function that makes tensors on a second device, "fake"."""
    monkeypatch.setattr(backend, "_by_name", dict(backend._by_name))
    monkeypatch.setattr(backend, "_by_type", dict(backend._by_type))
    backend.register(
        backend.Backend("fake", np, FakeArray, lambda a, index: a.view(FakeArray), lambda a: a.view(np.ndarray))
    )
    return lambda data: Tensor(data, device="fake")


@pytest.mark.usefixtures("nothing_computes")
@pytest.mark.parametrize(
    "function",
    [
        pytest.param(lambda here, there: here + there, id="add"),
        pytest.param(lambda here, there: there @ here.numpy().T, id="matmul-array"),
        pytest.param(lambda here, there: here < there, id="less"),
        pytest.param(F.maximum, id="maximum"),
        pytest.param(lambda here, there: F.concatenate([here, there]), id="concatenate"),
        pytest.param(lambda here, there: F.linear(here, there), id="linear"),
        pytest.param(F.rbf, id="rbf"),
        pytest.param(F.mse_loss, id="mse_loss"),
        pytest.param(lambda here, there: F.subsample2d(np.ones((1, 2, 4, 4)), there, here, 2), id="subsample2d"),
        pytest.param(lambda here, there: parameter(2, 3).backward(there), id="backward"),
    ],
)
def test_mixing_devices(function: Callable[..., Any], elsewhere: Callable[[Any], Tensor]) -> None:
    there = elsewhere(np.ones((2, 3), np.float32))
    with pytest.raises(ValueError, match=r"different devices, cpu and fake; move one of them with \.to\(device\)"):
        function(MATRIX, there)


# Ops that are wrong


@pytest.fixture
def scratch_ops() -> Iterator[None]:
    """Ops defined in a test leave the registry afterwards: other tests walk it."""
    before = dict(REGISTRY)
    yield
    REGISTRY.clear()
    REGISTRY.update(before)


def op_with(backward: Callable[..., Any]) -> Op:
    class Wrong(Op):
        """y = 2 x, its derivative to be got wrong."""

        signature = "wrong(x[N C]) -> y[N C]"
        domains = {"x": REAL}

        def forward(self, xp: Any, x: Any) -> Any:
            return 2 * x

        def backward(self, gy: Tensor, y: Tensor, x: Any) -> Any:
            return backward(gy)

    return Wrong()


@pytest.mark.usefixtures("scratch_ops")
@pytest.mark.parametrize(
    ("backward", "sentence"),
    [
        pytest.param(lambda gy: gy.sum(0), r"wrong: .*float64 of shape \(3,\) for x; .*\(2, 3\)", id="shape"),
        pytest.param(lambda gy: gy.astype("float32"), "wrong: .*float32 .*expected float64", id="dtype"),
        pytest.param(lambda gy: None, r"wrong: no gradient is defined for x", id="none"),
        pytest.param(lambda gy: lambda: gy.T, r"wrong: backward returned .*\(3, 2\)", id="shape-of-a-function"),
        pytest.param(lambda gy: (gy, gy), r"wrong: backward returned 2 gradients", id="too-many"),
        pytest.param(lambda gy: (), r"wrong: backward returned 0 gradients", id="too-few"),
        pytest.param(lambda gy: gy.data, r"wrong: backward returned .*ndarray", id="array"),
    ],
)
def test_a_wrong_gradient_names_its_op(backward: Callable[..., Any], sentence: str) -> None:
    x = parameter(2, 3)
    y = op_with(backward)(x).sum()
    with pytest.raises((ValueError, TypeError), match=sentence):
        y.backward()
    assert x.grad is None


@pytest.mark.usefixtures("scratch_ops")
def test_a_wrong_gradient_of_an_op_that_broadcasts_names_its_op() -> None:
    """Where the engine sums over repeated axes, what still does not fit is the op's mistake, not a reshape's."""

    class Broad(Op):
        """y = 2 x."""

        signature = "broad(x[...]) -> y[...]"
        domains = {"x": REAL}

        def forward(self, xp: Any, x: Any) -> Any:
            return 2 * x

        def backward(self, gy: Tensor, y: Tensor, x: Any) -> Any:
            return gy.sum(0)

    with pytest.raises(ValueError, match=r"broad: backward returned"):
        Broad()(parameter(2, 3, 4)).sum().backward()


def _forward(self: Any, xp: Any, x: Any) -> Any:
    return x


def _backward(self: Any, gy: Any, y: Any, x: Any) -> Any:
    return gy


_COMPLETE: dict[str, Any] = {
    "__doc__": "y = x.", "__module__": __name__, "signature": "scratch(x[...]) -> y[...]", "domains": {"x": REAL},
    "forward": _forward, "backward": _backward,
}  # fmt: skip


@pytest.mark.usefixtures("scratch_ops")
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"__doc__": None}, "lacks a docstring"),
        ({"signature": None}, "lacks signature"),
        ({"domains": None}, "lacks domains"),
        ({"forward": None}, "lacks forward"),
        ({"backward": None}, "lacks backward"),
        ({"domains": {"y": REAL}}, r"domains are for \['y'\]"),
        ({"parameters": {"axis": (1, 2)}}, "no test values are given for parameter axis|parameter axis"),
        ({"__annotations__": {"axis": int}}, "no test values are given for parameter axis"),
        ({"signature": "add(x[...]) -> y[...]"}, "the name 'add' is taken"),
        ({"signature": "scratch x -> y"}, "does not read like"),
        ({"signature": "scratch(x N) -> y[N]"}, "does not read like"),
    ],
)
def test_an_incomplete_op_is_refused_at_its_definition(change: dict[str, Any], sentence: str) -> None:
    """Whoever forgets a part learns it at import, not when the part is first needed."""
    members = {name: value for name, value in {**_COMPLETE, **change}.items() if value is not None}
    with pytest.raises((TypeError, ValueError), match=sentence):
        type("Scratch", (Op,), members)
    assert "scratch" not in REGISTRY
    assert REGISTRY["add"].__name__ == "Add"


@pytest.mark.usefixtures("scratch_ops")
def test_a_complete_op_is_registered() -> None:
    type("Scratch", (Op,), dict(_COMPLETE))
    assert REGISTRY["scratch"].__name__ == "Scratch"


@dataclass(frozen=True)
class _Pair:
    """What conv2d's stride may not be, though it looks like one."""

    vertical: int = 1
    horizontal: int = 1


@pytest.mark.parametrize("value", [_Pair(), {1, 2}, "11", b"1", 1j, np.ones(2, int), np.float32(1), [1, 1.0], object()])
def test_what_is_not_a_pair_of_integers(value: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="conv2d: stride"):
        F.conv2d(IMAGES, WEIGHT, stride=value)


@pytest.mark.parametrize("value", [2, (2, 2), [2, 2], np.int64(2), (np.int8(2), 2)])
def test_what_is_a_pair_of_integers(value: Any) -> None:
    assert F.conv2d(IMAGES, WEIGHT, stride=value).shape == (2, 4, 3, 3)


def test_domains_are_plain_data() -> None:
    """Test values can be read off an op without running it."""
    assert Domain(low=0.0) == Domain(low=0.0)
