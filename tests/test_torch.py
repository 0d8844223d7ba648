"""PyTorch as oracle: every public function and tensor method gives PyTorch's values, gradients and second gradients.

PyTorch shares no code with this package and its formulas were written by others, so agreement to 1e-8 in float64, on
shapes, strides and layouts that Hypothesis draws, says that the mathematics and the argument conventions are the
same. A case draws arguments and returns our function, PyTorch's, and the arrays to call both with. Ties and kinks
are drawn on purpose where both sides promise the same convention.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.drawing import Draw
from tinygrad_lenet import Tensor, grad
from tinygrad_lenet import functional as F

torch = pytest.importorskip("torch")
TF = torch.nn.functional

few = settings(max_examples=max(25, settings().max_examples // 4), deadline=None)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Any:
    """The machine has few cores, and tensors this small gain nothing from a second one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Case(NamedTuple):
    """Two functions that should be the same one, and the arrays to find out on."""

    ours: Callable[..., Tensor]
    theirs: Callable[..., Any]
    arrays: Sequence[np.ndarray]


def same(ours: Any, theirs: Any, what: str) -> None:
    """Equal shapes, and values equal to 1e-8; None is a gradient of zeros, as PyTorch has it too."""
    if ours is None or theirs is None:
        present = ours.numpy() if ours is not None else None if theirs is None else theirs.numpy(force=True)
        assert present is None or not present.any(), f"{what}: only one side has a gradient"
        return
    assert ours.shape == tuple(theirs.shape), what
    np.testing.assert_allclose(ours.numpy(), theirs.numpy(force=True), rtol=1e-8, atol=1e-8, err_msg=what)


def agree(case: Case, rng: np.random.Generator) -> None:
    """Values, gradients and the gradients of a random projection of the gradients (also by the cotangent) agree."""
    xs = [Tensor(a, requires_grad=True) for a in case.arrays]
    ts = [torch.tensor(a.copy(), requires_grad=True) for a in case.arrays]
    y, t = case.ours(*xs), case.theirs(*ts)
    same(y, t, "value")

    cotangent = rng.normal(size=y.shape) + np.zeros(())
    gy, gt = Tensor(cotangent, requires_grad=True), torch.tensor(cotangent, requires_grad=True)
    gxs = grad(y, xs, gy, create_graph=True)
    gts = torch.autograd.grad(t, ts, gt, create_graph=True, allow_unused=True)
    for i, pair in enumerate(zip(gxs, gts, strict=True)):
        same(*pair, f"gradient of input {i}")

    directions = [rng.normal(size=x.shape) + np.zeros(()) for x in xs]
    sum((g * v).sum() for g, v in zip(gxs, directions, strict=True)).backward()
    projected = sum((g * torch.tensor(v)).sum() for g, v in zip(gts, directions, strict=True) if g is not None)
    constant = not projected.requires_grad  # PyTorch returns plain zeros for the slope of x**0
    seconds = [None] * (len(ts) + 1) if constant else torch.autograd.grad(projected, [*ts, gt], allow_unused=True)
    for i, (x, second) in enumerate(zip([*xs, gy], seconds, strict=True)):
        same(x.grad, second, f"second gradient by input {i}")

    xs = [Tensor(a.astype(np.float32), requires_grad=True) for a in case.arrays]
    y = case.ours(*xs)
    y.backward(np.ones(y.shape, np.float32))
    assert {y.dtype, *(x.grad.dtype for x in xs)} == {np.dtype(np.float32)}, "float32 does not stay float32"


CASES: dict[str, Callable[[Draw], Case]] = {}


def case(function: Callable[[Draw], Case]) -> Callable[[Draw], Case]:
    CASES[function.__name__] = function
    return function


# Convolution and pooling


@case
def conv2d(draw: Draw) -> Case:
    g, stride, padding, dilation = draw.int(1, 2), draw.pair(1, 3), draw.pair(0, 2), draw.pair(1, 2)
    kh, kw = kernel = draw.pair(1, 3)
    h, w = (max(1, d * (k - 1) + 1 - 2 * p) + draw.int(0, 4) for d, k, p in zip(dilation, kernel, padding, strict=True))
    cg, fg = draw.pair(1, 2)
    arrays = [draw.values(draw.int(1, 3), g * cg, h, w), draw.values(g * fg, cg, kh, kw)]
    if draw.pick(True, False):
        arrays.append(draw.values(g * fg))
    how = {"stride": stride, "padding": padding, "dilation": dilation, "groups": g}
    return Case(lambda *a: F.conv2d(*a, **how), lambda *a: TF.conv2d(*a, **how), arrays)


@case
def conv_transpose2d(draw: Draw) -> Case:
    g, stride, dilation = draw.int(1, 2), draw.pair(1, 3), draw.pair(1, 2)
    kh, kw = draw.pair(1, 3)
    h, w = draw.pair(1, 4)
    sizes = [(n - 1) * s + d * (k - 1) + 1 for n, s, d, k in zip((h, w), stride, dilation, (kh, kw), strict=True)]
    padding = tuple(draw.int(0, min(2, (size - 1) // 2)) for size in sizes)
    extra = tuple(draw.int(0, max(s, d) - 1) for s, d in zip(stride, dilation, strict=True))
    fg, cg = draw.pair(1, 2)
    arrays = [draw.values(draw.int(1, 3), g * fg, h, w), draw.values(g * fg, cg, kh, kw)]
    if draw.pick(True, False):
        arrays.append(draw.values(g * cg))
    how = {"stride": stride, "padding": padding, "output_padding": extra, "dilation": dilation, "groups": g}
    return Case(lambda *a: F.conv_transpose2d(*a, **how), lambda *a: TF.conv_transpose2d(*a, **how), arrays)


def pooling(ours: Callable[..., Tensor], theirs: Callable[..., Any], tied: bool = False) -> Any:
    def draw_case(draw: Draw) -> Case:
        kernel, stride = draw.pair(1, 3), draw.pick(None, draw.pair(1, 3), draw.int(1, 3))
        padding = tuple(draw.int(0, k // 2) for k in kernel)
        h, w = (max(1, k - 2 * p) + draw.int(0, 4) for k, p in zip(kernel, padding, strict=True))
        how = {"kernel_size": kernel, "stride": stride, "padding": padding}
        image = (draw.values_or_tied if tied else draw.values)(*draw.pair(1, 2), h, w)
        return Case(lambda x: ours(x, **how), lambda t: theirs(t, **how), [image])

    return draw_case


CASES["avg_pool2d"] = pooling(F.avg_pool2d, TF.avg_pool2d)
CASES["max_pool2d"] = pooling(F.max_pool2d, TF.max_pool2d, tied=True)


@case
def subsample2d(draw: Draw) -> Case:
    """Windows of any size, also with pixels left over: their mean, times their size, times a coefficient a channel."""
    (n, c), (kh, kw) = draw.pair(1, 3), draw.pair(1, 3)
    h, w = kh * draw.int(1, 3) + draw.int(0, kh - 1), kw * draw.int(1, 3) + draw.int(0, kw - 1)

    def theirs(t: Any, weight: Any, bias: Any) -> Any:
        return TF.avg_pool2d(t, (kh, kw)) * (kh * kw * weight)[:, None, None] + bias[:, None, None]

    arrays = [draw.values(n, c, h, w), draw.values(c), draw.values(c)]
    return Case(lambda x, weight, bias: F.subsample2d(x, weight, bias, (kh, kw)), theirs, arrays)


@case
def scatter_kernels(draw: Draw) -> Case:
    """A convolution over chosen pairs of maps is a masked dense one; the kernels lie in it row by row."""
    (f, c), (kh, kw) = draw.pair(1, 3), draw.pair(1, 2)
    table = [draw.data.draw(st.permutations(range(c)))[: draw.int(1, c)] for _ in range(f)]

    def theirs(t: Any, weight: Any) -> Any:
        dense, k = torch.zeros(f, c, kh, kw, dtype=weight.dtype), 0
        for row, maps in enumerate(table):
            for one in maps:
                mask = torch.zeros(f, c, 1, 1, dtype=weight.dtype)
                mask[row, one] = 1
                dense, k = dense + mask * weight[k], k + 1
        return TF.conv2d(t, dense)

    return Case(
        lambda x, weight: F.conv2d(x, F.scatter_kernels(weight, table, c)),
        theirs,
        [draw.values(draw.int(1, 2), c, 3, 3), draw.values(sum(map(len, table)), kh, kw)],
    )


# Products


@case
def linear(draw: Draw) -> Case:
    i, o = draw.pair(1, 4)
    arrays = [draw.values(*draw.shape(0, 2), i), draw.values(o, i)]
    if draw.pick(True, False):
        arrays.append(draw.values(o))
    return Case(F.linear, TF.linear, arrays)


@case
def matmul(draw: Draw) -> Case:
    m, k, n = draw.int(1, 4), draw.int(1, 4), draw.int(1, 4)
    left, right = draw.broadcasting(2)
    a = draw.pick((k,), (m, k), (*left, m, k))
    b = draw.pick((k,), (k, n), (*right, k, n))
    return Case(lambda a, b: a @ b, torch.matmul, [draw.values(*a), draw.values(*b)])


@case
def einsum(draw: Draw) -> Case:
    """Random subscripts: implicit and explicit outputs, ..., letters twice in an operand, letters summed alone."""
    sizes = dict(zip("abcB", (draw.int(1, 3) for _ in range(4)), strict=True))
    dots = draw.shape(0, 2)
    terms = ["".join(draw.pick(*sizes) for _ in range(draw.int(0, 3))) for _ in range(draw.int(1, 3))]
    used = sorted(set("".join(terms)))
    output = draw.data.draw(st.permutations(used))[: draw.int(0, len(used))]
    ranks = [draw.int(0, len(dots)) if draw.pick(True, False) else None for _ in terms]
    shapes = []
    for i, rank in enumerate(ranks):
        shape = [sizes[letter] for letter in terms[i]]
        if rank is not None:
            place = draw.int(0, len(terms[i]))
            terms[i] = terms[i][:place] + "..." + terms[i][place:]
            shape[place:place] = dots[len(dots) - rank :]
        shapes.append(tuple(shape))
    text = ",".join(terms)
    if draw.pick(True, False):
        text += " -> " + ("..." if "..." in text else "") + "".join(output)
    arrays = [draw.values(*shape) for shape in shapes]
    return Case(lambda *a: F.einsum(text, *a), lambda *a: torch.einsum(text, *a), arrays)


# Elementwise


def unary(ours: Callable[..., Tensor], theirs: Callable[..., Any], low: float = -2.0, kinks: bool = False) -> Any:
    """A function of one tensor; ``kinks`` are drawn where both sides promise the same convention."""

    def draw_case(draw: Draw) -> Case:
        shape = draw.shape()
        return Case(ours, theirs, [draw.values_or_tied(*shape) if kinks else draw.values(*shape, low=low)])

    return draw_case


def operator(function: Callable[..., Any], low: float = -2.0) -> Any:
    """The same expression, read by both: tensor with tensor, with a number on the right or on the left."""

    def draw_case(draw: Draw) -> Case:
        a, b = (draw.values(*shape, low=low) for shape in draw.broadcasting(2))
        number = draw.pick(2, 0.5, 3, 1, *([-1.5] if low < 0 else []))
        one_sided, arrays = draw.pick(
            (function, [a, b]), (lambda x: function(x, number), [a]), (lambda x: function(number, x), [b])
        )
        return Case(one_sided, one_sided, arrays)

    return draw_case


def extreme(ours: Callable[..., Tensor], theirs: Callable[..., Any]) -> Any:
    """Of two tensors, also at ties, which share the gradient half and half."""
    return lambda draw: Case(ours, theirs, [draw.values_or_tied(*shape) for shape in draw.broadcasting(2)])


CASES |= {
    "exp": unary(Tensor.exp, torch.exp),
    "log": unary(Tensor.log, torch.log, low=0.3),
    "sqrt": unary(Tensor.sqrt, torch.sqrt, low=0.3),
    "tanh": unary(Tensor.tanh, torch.tanh),
    "F.tanh": unary(F.tanh, TF.tanh),
    "sigmoid": unary(Tensor.sigmoid, torch.sigmoid),
    "F.sigmoid": unary(F.sigmoid, TF.sigmoid),
    "relu": unary(Tensor.relu, torch.relu, kinks=True),
    "F.relu": unary(F.relu, TF.relu, kinks=True),
    "F.scaled_tanh": unary(F.scaled_tanh, lambda t: 1.7159 * torch.tanh(2 / 3 * t)),
    "abs": unary(abs, torch.abs, kinks=True),
    "negative": unary(lambda x: -x, torch.neg),
    "detach": unary(lambda x: x + x.detach(), lambda t: t + t.detach()),
    "add": operator(lambda a, b: a + b),
    "subtract": operator(lambda a, b: a - b),
    "multiply": operator(lambda a, b: a * b),
    "divide": operator(lambda a, b: a / b, low=0.3),
    "power": operator(lambda a, b: a**b, low=0.3),
    "maximum": extreme(F.maximum, torch.maximum),
    "minimum": extreme(F.minimum, torch.minimum),
}


@case
def integer_powers_of_any_sign(draw: Draw) -> Case:
    """A whole exponent needs no positive base; at 0 the non-negative ones have a slope too."""
    exponent, shape = draw.pick(0, 1, 2, 3, 4, -1, -2, 0.0, 2.0), draw.shape()
    x = draw.values_or_tied(*shape) if exponent >= 0 else draw.values(*shape, low=-2.0, high=-0.3)
    return Case(lambda x: x**exponent, lambda t: t**exponent, [x])


@case
def scaled_tanh(draw: Draw) -> Case:
    amplitude, slope = draw.pick(1.7159, 1.0, 0.3), draw.pick(2 / 3, 1.0, -2.0, 0.0)
    return Case(
        lambda x: F.scaled_tanh(x, amplitude, slope),
        lambda t: amplitude * torch.tanh(slope * t),
        [draw.values(*draw.shape())],
    )


@case
def where(draw: Draw) -> Case:
    """Two tensors, or a Python number on one side and a condition that is computed from the tensor itself."""
    if draw.pick(False, True):
        ours, theirs = (lambda x, fn=fn: fn(x > 0.5, x * x, -1.5) for fn in (F.where, torch.where))
        return Case(ours, theirs, [draw.values(*draw.shape())])
    shape, a, b = draw.broadcasting(3)
    mask = np.asarray(draw.rng.random(shape) < 0.5)
    condition, arrays = torch.tensor(mask), [draw.values(*a), draw.values(*b)]
    return Case(lambda x, y: F.where(mask, x, y), lambda s, t: torch.where(condition, s, t), arrays)


# Softmax and losses


def softmax(ours: Callable[..., Tensor], theirs: Callable[..., Any]) -> Any:
    """Along any axis, by default the last, and far from 0, where a naive formula overflows."""

    def draw_case(draw: Draw) -> Case:
        shape = draw.shape(1, 3)
        axis = draw.pick((), (draw.int(-len(shape), len(shape) - 1),))
        x = draw.values(*shape) + draw.pick(0.0, 1e3, -1e3)
        return Case(lambda x: ours(x, *axis), lambda t: theirs(t, *(axis or (-1,))), [x])

    return draw_case


CASES |= {
    "F.softmax": softmax(F.softmax, torch.softmax),
    "F.log_softmax": softmax(F.log_softmax, torch.log_softmax),
    "softmax": softmax(Tensor.softmax, torch.softmax),
    "log_softmax": softmax(Tensor.log_softmax, torch.log_softmax),
}


REDUCTIONS = ("mean", "sum", "none")


def any_labels(draw: Draw, n: int, k: int) -> tuple[Any, Any]:
    """n labels of k classes, in one of the forms that we take, and in PyTorch's."""
    labels = draw.rng.integers(0, k, n)
    return draw.pick(labels, labels.tolist(), Tensor(labels), labels.astype(np.uint8)), torch.tensor(labels)


@case
def cross_entropy_of_labels(draw: Draw) -> Case:
    n, k = draw.int(1, 4), draw.int(1, 5)
    ours, theirs = any_labels(draw, n, k)
    how = {"label_smoothing": draw.pick(0.0, 0.1, 0.5, 1.0), "reduction": draw.pick(*REDUCTIONS)}
    return Case(
        lambda x: F.cross_entropy(x, ours, **how), lambda t: TF.cross_entropy(t, theirs, **how), [draw.values(n, k) * 3]
    )


@case
def cross_entropy_of_probabilities(draw: Draw) -> Case:
    """The target has a gradient too; it need not be normalised."""
    n, k = draw.int(1, 4), draw.int(1, 5)
    how = {"label_smoothing": draw.pick(0.0, 0.1, 0.5), "reduction": draw.pick(*REDUCTIONS)}
    return Case(
        lambda x, p: F.cross_entropy(x, p, **how),
        lambda t, p: TF.cross_entropy(t, p, **how),
        [draw.values(n, k) * 3, draw.values(n, k, low=0.05, high=1.0)],
    )


@case
def nll_loss(draw: Draw) -> Case:
    n, k, how = draw.int(1, 4), draw.int(1, 5), {"reduction": draw.pick(*REDUCTIONS)}
    ours, theirs = any_labels(draw, n, k)
    return Case(lambda x: F.nll_loss(x, ours, **how), lambda t: TF.nll_loss(t, theirs, **how), [draw.values(n, k)])


@case
def mse_loss(draw: Draw) -> Case:
    shape, how = draw.shape(), {"reduction": draw.pick(*REDUCTIONS)}
    arrays = [draw.values(*shape), draw.values(*shape)]
    return Case(lambda x, y: F.mse_loss(x, y, **how), lambda s, t: TF.mse_loss(s, t, **how), arrays)


@case
def rbf(draw: Draw) -> Case:
    """The squared distances; both the points and the centers have a gradient."""
    n, k, j = draw.int(1, 4), draw.int(1, 4), draw.int(1, 5)
    return Case(F.rbf, lambda t, c: ((t[:, None] - c[None]) ** 2).sum(2), [draw.values(n, j), draw.values(k, j)])


@case
def penalty_loss(draw: Draw) -> Case:
    """Eqs. 8 and 9 of LeCun et al. (1998), with logsumexp over the classes and the rubbish."""
    n, k, j, reduction = draw.int(1, 4), draw.int(1, 5), draw.pick(None, 0.001, 0.5, 3.0, 50.0), draw.pick(*REDUCTIONS)
    ours, labels = any_labels(draw, n, k)

    def theirs(t: Any) -> Any:
        y = t[torch.arange(n), labels]
        if j is not None:
            y = y + torch.logsumexp(torch.cat([-t, torch.full((n, 1), -j, dtype=t.dtype)], 1), 1)
        return {"mean": torch.mean, "sum": torch.sum, "none": lambda y: y}[reduction](y)

    far = draw.pick(1.0, 1.0, 100.0)
    return Case(lambda x: F.penalty_loss(x, ours, j, reduction), theirs, [draw.values(n, k, low=0.0, high=9.0) * far])


@few
@given(data=st.data())
def test_one_hot(data: st.DataObject) -> None:
    """Labels to rows, float32 by default."""
    draw = Draw(data)
    n, k = draw.int(0, 4), draw.int(1, 5)
    labels = draw.rng.integers(0, k, n)
    y = F.one_hot(labels, k)
    assert y.dtype == np.float32
    np.testing.assert_array_equal(y.numpy(), TF.one_hot(torch.tensor(labels), k).numpy())


# Normalisation and dropout


@case
def batch_norm(draw: Draw) -> Case:
    """By the batch and by the running statistics, on images, sequences and plain rows, with or without affine map."""
    c, training, affine = draw.int(1, 3), draw.pick(True, False), draw.pick(0, 1, 2)
    shape = (draw.int(2, 4), c, *draw.shape(0, 2))
    mean, var = draw.rng.normal(size=c), draw.rng.uniform(0.5, 2.0, c)
    eps = draw.pick(1e-5, 1e-2)

    def ours(x: Tensor, *affine: Tensor) -> Tensor:
        m, v = Tensor(mean.astype(x.dtype)), Tensor(var.astype(x.dtype))
        return F.batch_norm(x, m, v, *affine, training=training, eps=eps)

    def theirs(t: Any, *affine: Any) -> Any:
        return TF.batch_norm(t, torch.tensor(mean), torch.tensor(var), *affine, training=training, eps=eps)

    return Case(ours, theirs, [draw.values(*shape), *(draw.values(c) for _ in range(affine))])


@case
def standardize(draw: Draw) -> Case:
    """As in layer normalization, along the last axes, with an affine map."""
    shape, count = (*draw.shape(0, 2), draw.int(2, 5)), draw.int(1, 2)
    last = shape[-count:]
    axes = tuple(range(-len(last), 0))
    return Case(
        lambda x, w, b: F.standardize(x, axes, 1e-3) * w + b,
        lambda t, w, b: TF.layer_norm(t, last, w, b, 1e-3),
        [draw.values(*shape), draw.values(*last), draw.values(*last)],
    )


@few
@given(data=st.data())
def test_batch_norm_running_statistics(data: st.DataObject) -> None:
    """Training moves the running mean and the unbiased running variance by momentum; evaluation leaves them alone."""
    draw = Draw(data)
    c, training, momentum = draw.int(1, 3), draw.pick(True, False), draw.pick(0.1, 0.5, 1.0, 0.0)
    x = draw.values(draw.int(2, 4), c, *draw.shape(0, 2))
    ours = [Tensor(draw.rng.normal(size=c)), Tensor(draw.rng.uniform(0.5, 2.0, c))]
    theirs = [torch.tensor(each.numpy().copy()) for each in ours]
    for _ in range(2):
        F.batch_norm(x, *ours, training=training, momentum=momentum)
        TF.batch_norm(torch.tensor(x.copy()), *theirs, training=training, momentum=momentum)
    for each, other in zip(ours, theirs, strict=True):
        same(each, other, "running statistics")
        assert not each.requires_grad


@case
def dropout(draw: Draw) -> Case:
    """With the mask read off the result on ones, dropout is a product with it; the same generator draws the same."""
    shape, p, seed = draw.shape(), draw.pick(0.0, 0.3, 0.9), draw.int(0, 99)
    mask = F.dropout(np.ones(shape), p, rng=np.random.default_rng(seed)).numpy().copy()
    assert np.isin(mask.round(12), [0.0, round(1 / (1 - p), 12)]).all()
    return Case(
        lambda x: F.dropout(x, p, rng=np.random.default_rng(seed)),
        lambda t: t * torch.tensor(mask),
        [draw.values(*shape)],
    )


# Reductions


def reduction(ours: Callable[..., Tensor], theirs: Callable[..., Any], far: float = 0.0) -> Any:
    """Over none, one and several axes, kept or dropped; tied extremes share the gradient equally, as amax's do."""

    def draw_case(draw: Draw) -> Case:
        shape = draw.shape(1, 3)
        axis, keepdims = draw.axes(len(shape)), draw.pick(False, True)
        dims = tuple(range(len(shape))) if axis is None else axis
        x = draw.values_or_tied(*shape) + draw.pick(0.0, far)
        return Case(lambda x: ours(x, axis, keepdims), lambda t: theirs(t, dims, keepdim=keepdims), [x])

    return draw_case


CASES |= {
    "sum": reduction(Tensor.sum, torch.sum),
    "mean": reduction(Tensor.mean, torch.mean),
    "var": reduction(Tensor.var, lambda t, d, keepdim: t.var(d, correction=0, keepdim=keepdim)),
    "max": reduction(Tensor.max, torch.amax),
    "min": reduction(Tensor.min, torch.amin),
    "logsumexp": reduction(Tensor.logsumexp, torch.logsumexp, far=1e3),
    "F.logsumexp": reduction(F.logsumexp, torch.logsumexp, far=1e3),
    "sum by default": unary(lambda x: x.sum() * x.mean() + x.var(), lambda t: t.sum() * t.mean() + t.var(correction=0)),
}


@pytest.mark.parametrize(("ours", "theirs"), [(Tensor.argmax, torch.argmax), (Tensor.argmin, torch.argmin)])
@few
@given(data=st.data())
def test_argmax_and_argmin(ours: Callable[..., Tensor], theirs: Callable[..., Any], data: st.DataObject) -> None:
    """The first extreme element, flat or along an axis, as integers without gradient."""
    draw = Draw(data)
    shape = draw.shape(1, 3)
    axis = draw.pick(None, draw.int(-len(shape), len(shape) - 1))
    x = draw.values(*shape)
    y = ours(Tensor(x, requires_grad=True), axis)
    assert y.dtype.kind == "i"
    assert not y.requires_grad
    np.testing.assert_array_equal(y.numpy(), theirs(torch.tensor(x.copy()), axis).numpy())


# Indexing and layout


@case
def getitem(draw: Draw) -> Case:
    """NumPy says which elements an index names (on an array of positions); PyTorch takes those from the flat tensor."""
    shape = draw.shape(1, 3)
    kind = draw.pick("basic", "integer", "boolean", "mixed")

    def slice_of(size: int) -> slice:
        ends = st.none() | st.integers(-size - 1, size + 1)
        return draw.data.draw(st.builds(slice, ends, ends, st.sampled_from([None, 1, 2, -1, -2])))

    def integers(size: int, length: int) -> Any:
        values = draw.rng.integers(-size, size, length)
        return draw.pick(values, values.tolist(), Tensor(values))

    index: Any
    if kind == "boolean":
        rank = draw.int(1, len(shape))
        mask = np.asarray(draw.rng.random(shape[:rank]) < 0.6)
        index = draw.pick(mask, Tensor(mask), (mask, ...))
    elif kind == "integer":
        length = draw.int(1, 4)
        index = tuple(integers(size, length) for size in shape[: draw.int(1, len(shape))])
        index = index[0] if len(index) == 1 and draw.pick(True, False) else index
    else:
        parts: list[Any] = [draw.pick(slice_of(size), draw.int(-size, size - 1)) for size in shape]
        if kind == "mixed":
            place = draw.int(0, len(shape) - 1)
            parts[place] = integers(shape[place], draw.int(1, 4))
        if draw.pick(True, False):
            cut = draw.int(0, len(parts))
            parts[cut : draw.int(cut, len(parts))] = [...]
        if draw.pick(True, False):
            parts.insert(draw.int(0, len(parts)), None)
        index = tuple(parts) if len(parts) > 1 or draw.pick(True, False) else parts[0]

    def host(part: Any) -> Any:
        return part.numpy() if isinstance(part, Tensor) else part

    plain = tuple(map(host, index)) if isinstance(index, tuple) else host(index)
    positions = np.asarray(np.arange(np.prod(shape)).reshape(shape)[plain])
    return Case(
        lambda x: x[index],
        lambda t: t.reshape(-1)[torch.tensor(positions.reshape(-1).copy())].reshape(positions.shape),
        [draw.values(*shape)],
    )


@case
def transpose(draw: Draw) -> Case:
    shape = draw.shape(0, 4)
    order = draw.data.draw(st.permutations(range(len(shape))))
    signed = [draw.pick(axis, axis - len(shape)) for axis in order]
    reverse = tuple(range(len(shape)))[::-1]
    ours, axes = draw.pick(
        (lambda x: x.transpose(*signed) if signed else x.transpose(), order),
        (lambda x: x.transpose(tuple(signed)) if signed else x.transpose(), order),
        (lambda x: x.transpose(), reverse),
        (lambda x: x.T, reverse),
    )
    return Case(lambda x: ours(x) * 1.0, lambda t: t.permute(tuple(axes)) * 1.0, [draw.values(*shape)])


@case
def reshape(draw: Draw) -> Case:
    """To any factorisation, one axis left to be found, also from memory that is not contiguous."""
    shape = draw.shape(0, 4)
    new = list(draw.data.draw(st.permutations([size for size in shape if size > 1])))
    if len(new) > 1 and draw.pick(True, False):
        new[:2] = [new[0] * new[1]]
    if new and draw.pick(True, False):
        new[draw.int(0, len(new) - 1)] = -1
    ours = draw.pick(lambda x: x.reshape(tuple(new)), lambda x: x.reshape(*new) if new else x.reshape(()))
    return Case(lambda x: ours(x) * 1.0, lambda t: t.reshape(new) * 1.0, [draw.values(*shape)])


@case
def squeeze(draw: Draw) -> Case:
    shape = tuple(draw.pick(1, size) for size in draw.shape(1, 4))
    ones = [axis - draw.pick(0, len(shape)) for axis, size in enumerate(shape) if size == 1]
    axis: Any = draw.pick(None, *ones, tuple(ones))
    dims = tuple(a for a, size in enumerate(shape) if size == 1) if axis is None else axis
    return Case(lambda x: x.squeeze(axis) * 1.0, lambda t: t.squeeze(dims) * 1.0, [draw.values(*shape)])


@case
def expand_dims(draw: Draw) -> Case:
    shape = draw.shape()
    axis = draw.pick(draw.int(-len(shape) - 1, len(shape)), (0, 1), (0, -1), (-2, -1))
    new = np.expand_dims(np.empty(shape), axis).shape
    return Case(lambda x: x.expand_dims(axis) * 1.0, lambda t: t.reshape(new) * 1.0, [draw.values(*shape)])


@case
def broadcast_to(draw: Draw) -> Case:
    target = draw.shape(0, 3)
    shape = tuple(draw.pick(size, 1) for size in target[draw.int(0, len(target)) :])
    return Case(lambda x: x.broadcast_to(target) * 1.0, lambda t: t.broadcast_to(target) * 1.0, [draw.values(*shape)])


@case
def pad(draw: Draw) -> Case:
    """With NumPy's forms of pad_width; PyTorch lists the last axis first."""
    shape = draw.shape(1, 3)
    before, after = draw.pair(0, 2)
    each = [draw.pair(0, 2) for _ in shape]
    width, pairs = draw.pick(
        (before, [(before, before)] * len(shape)), ([(before, after)], [(before, after)] * len(shape)), (each, each)
    )
    value = draw.pick(0.0, -1.5)
    flat = [side for pair in reversed(pairs) for side in pair]
    x = draw.values(*shape)
    return Case(lambda x: F.pad(x, width, value) * 1.0, lambda t: TF.pad(t, flat, value=value) * 1.0, [x])


@case
def concatenate(draw: Draw) -> Case:
    shape = draw.shape(1, 3)
    axis = draw.int(-len(shape), len(shape) - 1)
    shapes = [list(shape) for _ in range(draw.int(1, 3))]
    for each in shapes:
        each[axis] = draw.int(1, 3)
    arrays = [draw.values(*each) for each in shapes]
    return Case(lambda *xs: F.concatenate(xs, axis) * 1.0, lambda *ts: torch.cat(ts, axis) * 1.0, arrays)


@case
def stack(draw: Draw) -> Case:
    shape = draw.shape()
    axis = draw.int(-len(shape) - 1, len(shape))
    arrays = [draw.values(*shape) for _ in range(draw.int(1, 3))]
    return Case(lambda *xs: F.stack(list(xs), axis), lambda *ts: torch.stack(ts, axis), arrays)


# NumPy's functions, by PyTorch's


def _named(name: str, ours: Callable[[Tensor], Tensor], theirs: Callable[[Any], Any], low: float = -2.0) -> None:
    CASES[name] = lambda draw: Case(ours, theirs, [draw.values(*draw.shape(2, 3), low=low)])


_named("exp of F", F.exp, torch.exp)
_named("log of F", F.log, torch.log, 0.3)
_named("sqrt of F", F.sqrt, torch.sqrt, 0.3)
_named("abs of F", F.abs, torch.abs)
_named("sin", F.sin, torch.sin)
_named("cos", F.cos, torch.cos)
_named("sum of F", lambda x: F.sum(x, 1), lambda t: t.sum(1))
_named("mean of F", lambda x: F.mean(x, 1), lambda t: t.mean(1))
_named("max of F", lambda x: F.max(x, 1), lambda t: t.amax(1))
_named("min of F", lambda x: F.min(x, 1), lambda t: t.amin(1))
_named("var of F", lambda x: F.var(x, (0, 1)), lambda t: t.var((0, 1), correction=0))
_named("norm", lambda x: F.norm(x, 1, keepdims=True), lambda t: t.norm(dim=1, keepdim=True))
_named("cumsum", lambda x: F.cumsum(x, 1), lambda t: t.cumsum(1))
_named("flatten", lambda x: F.flatten(x) * 1.0, lambda t: t.flatten() * 1.0)
_named("reshape of F", lambda x: F.reshape(x, (-1, 1)) * 1.0, lambda t: t.reshape(-1, 1) * 1.0)
_named("view", lambda x: x.view(1, -1) * 1.0, lambda t: t.reshape(1, -1) * 1.0)
_named("transpose of F", lambda x: F.transpose(x) * 1.0, lambda t: t.permute(*range(t.ndim)[::-1]) * 1.0)
_named("swapaxes", lambda x: F.swapaxes(x, 0, -1) * 1.0, lambda t: t.transpose(0, -1) * 1.0)
_named("moveaxis", lambda x: F.moveaxis(x, 0, -1) * 1.0, lambda t: t.movedim(0, -1) * 1.0)
_named("unstack", lambda x: F.unstack(x, 1)[0] * 1.0, lambda t: t.unbind(1)[0] * 1.0)
_named("split", lambda x: F.split(x, [1], 1)[0] * 1.0, lambda t: t.tensor_split([1], 1)[0] * 1.0)


@case
def std(draw: Draw) -> Case:
    shape, ddof = (draw.int(2, 4), draw.int(2, 4)), draw.int(0, 1)
    axis = draw.pick(0, 1, (0, 1))
    return Case(lambda x: F.std(x, axis, ddof=ddof), lambda t: t.std(axis, correction=ddof), [draw.values(*shape)])


@case
def prod(draw: Draw) -> Case:
    """Also where a factor is 0."""
    x = draw.values_or_tied(draw.int(1, 3), draw.int(2, 5))
    return Case(lambda x: F.prod(x, 1), lambda t: t.prod(1), [x])


@case
def clip(draw: Draw) -> Case:
    """At the limits the gradient is 1, on both sides."""
    low, high = draw.pick(None, -1.0, 0.0), draw.pick(0.0, 1.0)
    return Case(lambda x: F.clip(x, low, high), lambda t: t.clamp(low, high), [draw.values_or_tied(*draw.shape(1, 3))])


@case
def leaky_relu(draw: Draw) -> Case:
    slope = draw.pick(0.01, 0.5)
    return Case(
        lambda x: F.leaky_relu(x, slope), lambda t: TF.leaky_relu(t, slope), [draw.values_or_tied(*draw.shape(1, 3))]
    )


@case
def take_along_axis(draw: Draw) -> Case:
    n, m, k = draw.int(1, 3), draw.int(1, 4), draw.int(1, 5)
    indices = draw.rng.integers(0, m, (n, k))
    return Case(
        lambda x: F.take_along_axis(x, indices, 1), lambda t: t.gather(1, torch.tensor(indices)), [draw.values(n, m)]
    )


@case
def embedding(draw: Draw) -> Case:
    k, d = draw.int(1, 4), draw.int(1, 3)
    indices = draw.rng.integers(0, k, draw.shape(1, 2))
    return Case(
        lambda w: F.embedding(indices.tolist(), w),
        lambda w: TF.embedding(torch.tensor(indices), w),
        [draw.values(k, d)],
    )


@case
def layer_norm(draw: Draw) -> Case:
    shape = (*draw.shape(0, 2), draw.int(2, 4))
    arrays = [draw.values(*shape), draw.values(shape[-1]), draw.values(shape[-1])]
    return Case(
        lambda x, w, b: F.layer_norm(x, shape[-1], w, b, 0.1),
        lambda t, w, b: TF.layer_norm(t, shape[-1:], w, b, 0.1),
        arrays,
    )


@case
def cross_entropy_over_more_axes(draw: Draw) -> Case:
    """With class weights, labels that are left out, and smoothing."""
    (n, k), rest = draw.pair(1, 4), draw.shape(0, 2)
    labels = draw.rng.integers(0, k, (n, *rest))
    labels.flat[0] = 0  # a mean over nothing would be NaN
    ignored = draw.pick(-100, k - 1, 7) if k > 1 else -100
    labels = np.where((draw.rng.random(labels.shape) < 0.3) & (labels != 0), ignored, labels)
    weight = draw.values(k, low=0.2) if draw.pick(True, False) else None
    how = {"label_smoothing": draw.pick(0.0, 0.3), "reduction": draw.pick(*REDUCTIONS), "ignore_index": ignored}
    theirs = None if weight is None else torch.tensor(weight.copy())
    if weight is not None and how["label_smoothing"]:
        how["label_smoothing"] = 0.0
    return Case(
        lambda x: F.cross_entropy(x, labels, weight=weight, **how),
        lambda t: TF.cross_entropy(t, torch.tensor(labels), weight=theirs, **how),
        [draw.values(n, k, *rest) * 3],
    )


@case
def cross_entropy_of_weighted_probabilities(draw: Draw) -> Case:
    (n, k), rest, reduction = draw.pair(1, 4), draw.shape(0, 2), draw.pick(*REDUCTIONS)
    weight = draw.values(k, low=0.2)
    return Case(
        lambda x, p: F.cross_entropy(x, p, weight=weight, reduction=reduction),
        lambda t, p: TF.cross_entropy(t, p, weight=torch.tensor(weight.copy()), reduction=reduction),
        [draw.values(n, k, *rest), draw.values(n, k, *rest, low=0.1)],
    )


@case
def binary_cross_entropy_with_logits(draw: Draw) -> Case:
    shape, reduction = draw.shape(1, 3), draw.pick(*REDUCTIONS)
    weight = draw.values(*shape, low=0.1) if draw.pick(True, False) else None
    positive = draw.values(shape[-1], low=0.1) if draw.pick(True, False) else None
    theirs = {name: None if w is None else torch.tensor(w.copy()) for name, w in
              (("weight", weight), ("pos_weight", positive))}  # fmt: skip
    return Case(
        lambda x, y: F.binary_cross_entropy_with_logits(x, y, weight, reduction, positive),
        lambda t, y: TF.binary_cross_entropy_with_logits(t, y, reduction=reduction, **theirs),
        [draw.values(*shape) * 20, draw.values(*shape, low=0.0, high=1.0)],
    )


@case
def l1_loss(draw: Draw) -> Case:
    shape, how = draw.shape(), {"reduction": draw.pick(*REDUCTIONS)}
    arrays = [draw.values_or_tied(*shape), draw.values(*shape)]
    return Case(lambda x, y: F.l1_loss(x, y, **how), lambda s, t: TF.l1_loss(s, t, **how), arrays)


@case
def smooth_l1_loss(draw: Draw) -> Case:
    shape, how = draw.shape(), {"reduction": draw.pick(*REDUCTIONS), "beta": draw.pick(0.0, 0.5, 1.0)}
    arrays = [draw.values(*shape), draw.values(*shape)]
    return Case(lambda x, y: F.smooth_l1_loss(x, y, **how), lambda s, t: TF.smooth_l1_loss(s, t, **how), arrays)


def test_losses_of_extreme_logits() -> None:
    """No overflow, and no NaN."""
    x = np.array([-1e4, -50.0, 0.0, 50.0, 1e4])
    for y in (np.zeros(5), np.ones(5)):
        ours = F.binary_cross_entropy_with_logits(x, y, reduction="none").numpy()
        theirs = TF.binary_cross_entropy_with_logits(torch.tensor(x), torch.tensor(y), reduction="none").numpy()
        np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-16)


def test_dropout2d_drops_whole_maps() -> None:
    y = F.dropout2d(np.ones((50, 40, 3, 2), np.float32), 0.25, rng=np.random.default_rng(0)).numpy()
    assert (y == y[:, :, :1, :1]).all()
    assert set(y.ravel().tolist()) == {0.0, np.float32(1 / 0.75).item()}
    assert abs((y == 0).mean() - 0.25) < 0.03


def test_any_all_argmax_of_functional() -> None:
    x = np.array([[0.0, 1.0], [0.0, 0.0]])
    t = torch.tensor(x)
    for name in ("any", "all", "argmax", "argmin"):
        ours = {"any": F.any, "all": F.all, "argmax": F.argmax, "argmin": F.argmin}[name]
        np.testing.assert_array_equal(ours(x, 1).numpy(), getattr(t, name)(1).numpy())


@pytest.mark.parametrize("name", CASES)
@few
@given(data=st.data())
def test_agrees_with_torch(name: str, data: st.DataObject) -> None:
    """Forward, first and second order, in float64; and float32 in gives float32 out."""
    draw = Draw(data)
    agree(CASES[name](draw), draw.rng)


def test_everything_public_is_compared() -> None:
    """A function added to functional.py, or a method to Tensor, without a comparison in this file fails this test."""
    text = Path(__file__).read_text(encoding="utf-8")
    not_mathematics = {"astype", "copy", "from_dlpack", "item", "register_hook", "to", "zero_grad"}
    methods = {name for name in vars(Tensor) if name.islower() and name[0] != "_" and callable(getattr(Tensor, name))}
    missing = [f"F.{name}" for name in F.__all__ if f"F.{name}" not in text]
    missing += [f"Tensor.{name}" for name in methods - not_mathematics if not re.search(rf"\w\.{name}\b", text)]
    assert missing == []
