"""The rules for numbers, over all ops: byte order, integers, promotion, accumulation, what is not selected, and NaN.

An op is tried on the cases that it declares; what a rule promises is computed apart, in float64 or in exact integers.
"""

import math
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.test_ops import OPS, PLACES, running
from tinygrad_lenet import Op, Tensor, backend, grad, testing
from tinygrad_lenet import functional as F
from tinygrad_lenet.op import REGISTRY

SEEDS = st.integers(0, 2**32 - 1)
WHOLE = ["bool", "int8", "uint8", "int32", "int64", "uint64"]
FEW = settings(max_examples=10, deadline=None)


def case_of(name: str, seed: int) -> tuple[Op, list[np.ndarray], list[int]]:
    """An op, inputs, and which of them hold numbers that it computes with."""
    op, arrays = testing._case(REGISTRY[name], seed)
    specs = op.parsed.specs(len(arrays))
    return op, arrays, [i for i, x in enumerate(specs) if op.domains[x.name].kind in ("real", "constant")]


def computing(kinds: set[str]) -> list[str]:
    return [name for name in OPS if REGISTRY[name].integers in kinds]


def test_numbers_are_exact_in_the_dtype_that_is_asked_for() -> None:
    assert Tensor([0.1], dtype="float64").item() == 0.1
    assert Tensor(2**53 + 1, dtype="int64").item() == 2**53 + 1


@pytest.mark.parametrize("name", OPS)
@FEW
@given(SEEDS)
def test_foreign_byte_order_is_made_native(name: str, seed: int) -> None:
    op, arrays, numbers = case_of(name, seed)
    real = [i for i in numbers if op.domains[op.parsed.specs(len(arrays))[i].name].kind == "real"]
    inputs = [Tensor(a.astype(a.dtype.newbyteorder(">")), requires_grad=i in real) for i, a in enumerate(arrays)]
    y = op(*inputs)
    assert y.data.dtype.isnative
    for gx in grad(y, [inputs[i] for i in real], np.ones(y.shape)) if real else ():
        assert gx.data.dtype.isnative
        assert gx.dtype == np.float64


@pytest.mark.parametrize("name", [name for name in OPS if name not in ("astype", "transfer", "random_key")])
@settings(max_examples=5, deadline=None)
@given(SEEDS, st.sampled_from(["cpu", "plain", "strict"]))
def test_integers_are_exact_refused_or_floats(name: str, seed: int, place: str) -> None:
    """The extremes of each dtype are among the values, so that whatever wraps round is seen."""
    op, arrays, numbers = case_of(name, seed)
    rng = np.random.default_rng(seed)
    for dtype in WHOLE if numbers else []:
        low, high = (0, 1) if dtype == "bool" else (int(np.iinfo(dtype).min), int(np.iinfo(dtype).max))
        low, high = max(low, -(2**20)), min(high, 2**20)  # whose products float64 holds, too
        for i in numbers:
            shape = arrays[i].shape
            drawn, extreme = rng.integers(low, high, shape, endpoint=True), rng.choice([low, high], shape)
            arrays[i] = np.where(rng.random(shape) < 0.5, extreme, drawn).astype(dtype)
        check_integers(op, arrays, numbers, dtype, place)


def check_integers(op: Op, arrays: list[np.ndarray], numbers: list[int], dtype: str, place: str) -> None:
    with running(place) as device, np.errstate(all="ignore"):
        try:
            y = op(*(Tensor(a, device=device) for a in arrays)).numpy()
        except TypeError as error:
            assert op.name in str(error)
            assert op.integers == "refused" or dtype == "uint64"
            return
        floats = [a.astype(np.float64) if i in numbers else a for i, a in enumerate(arrays)]
        expected = np.asarray(op(*map(Tensor, floats)).numpy(), np.float64)
    if y.dtype.kind == "f":
        assert y.dtype == np.float32
        assert op.integers == "float"
        scale = float(np.abs(expected[np.isfinite(expected)]).max(initial=1))
        close = np.isclose(y, expected, rtol=1e-3, atol=1e-4 * scale, equal_nan=True)
        assert (close | ~np.isfinite(y) | ~np.isfinite(expected)).all()  # float32 overflows before float64 does
    else:
        np.testing.assert_array_equal(y.astype(np.float64), expected)


@pytest.mark.parametrize("name", OPS)
@FEW
@given(SEEDS)
def test_integers_take_the_dtype_of_the_floats_that_they_meet(name: str, seed: int) -> None:
    """And so do Python's numbers and NumPy's scalars: float32 stays float32."""
    op, arrays, numbers = case_of(name, seed)
    if len(numbers) < 2 or op.integers == "native":
        return
    for float_dtype in (np.float16, np.float32):
        for other in (np.int64, np.uint8, np.bool_):
            inputs = [Tensor(a) for a in arrays]
            for i in numbers:
                inputs[i] = Tensor(
                    np.ones(arrays[i].shape, other if i == numbers[-1] else float_dtype), i == numbers[0]
                )
            y = op(*inputs)
            assert y.dtype == float_dtype, other
            (gx,) = grad(y, [inputs[numbers[0]]], np.ones(y.shape))
            assert gx.dtype == float_dtype


@pytest.mark.parametrize("name", [name for name in OPS if REGISTRY[name].one_float_dtype])
@FEW
@given(SEEDS)
def test_products_and_losses_refuse_mixed_floats(name: str, seed: int) -> None:
    op, arrays, numbers = case_of(name, seed)
    for odd in numbers:
        inputs = [Tensor(a.astype(np.float32) if i == odd else a) for i, a in enumerate(arrays)]
        with pytest.raises(TypeError, match=rf"^{name}: .*float32 and float64"):
            op(*inputs)


def test_these_are_products_and_losses() -> None:
    named = {name for name in OPS if REGISTRY[name].one_float_dtype}
    assert named >= {
        "matmul",
        "linear",
        "conv2d",
        "conv_transpose2d",
        "mse_loss",
        "soft_cross_entropy",
        "rbf",
        "subsample2d",
    }


@pytest.mark.parametrize("number", [2.0, 2, np.float64(2), np.float32(2), np.float16(2), np.int64(2), np.uint8(2)])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_numbers_take_the_dtype_of_the_array(number: Any, dtype: Any) -> None:
    x = Tensor(np.ones(3, dtype), requires_grad=True)
    for y in (x + number, number + x, x - number, x * number, number * x, x / number, number / x, x**number, number**x,
              F.maximum(x, number), F.where(x > number, x, number)):  # fmt: skip
        assert y.dtype == dtype
        assert grad(y, x, np.ones(3, dtype))[0].dtype == dtype


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("number", [2**63, 2**70, -(2**70)])
def test_an_integer_beyond_64_bits_meets_floats_as_a_float(number: int, place: str) -> None:
    values = np.array([1.0, -2.0], np.float32)
    with running(place) as device:
        x = Tensor(values, device=device)
        results = [f(x).numpy() for f in (lambda x: x + number, lambda x: number * x, lambda x: F.maximum(x, number))]
        larger = (x > number).numpy()
    for y, expected in zip(results, (values + number, number * values, np.maximum(values, number)), strict=True):
        assert y.dtype == np.float32
        np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(larger, values > number)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("dtype", ["int64", "int32", "uint8", "uint64"])
def test_integers_compare_exactly_with_integers_of_any_size(dtype: str, place: str) -> None:
    limits = np.iinfo(dtype)
    values = np.array([limits.min, 1, limits.max], dtype)
    compare = (operator.lt, operator.le, operator.gt, operator.ge, operator.eq, operator.ne)
    with running(place) as device:
        x = Tensor(values, device=device)
        for number in (int(limits.max), int(limits.max) + 1, int(limits.min) - 1, 2**70, -(2**70)):
            for symbol in compare:
                expected = [symbol(int(value), number) for value in values]
                assert symbol(x, number).numpy().tolist() == expected
                assert symbol(number, x).numpy().tolist() == [symbol(number, int(value)) for value in values]


@pytest.mark.parametrize(
    ("function", "given"),
    [
        (lambda x: x / 255, np.uint8),
        (lambda x: x * 0.5, np.int32),
        (lambda x: x.mean(), np.int64),
        (lambda x: x.var(), np.int64),
        (lambda x: x**2, np.int16),
        (lambda x: x.exp(), np.bool_),
        (lambda x: F.softmax(x), np.int8),
        (lambda x: F.linear(x, np.ones((2, 3), np.float32)), np.uint8),
    ],
)
def test_what_becomes_a_float_becomes_float32(function: Callable[[Tensor], Tensor], given: Any) -> None:
    assert function(Tensor(np.ones((4, 3), given))).dtype == np.float32


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        (np.uint8, np.uint8, 300), (np.int8, np.int8, None), (np.bool_, np.bool_, 2), (np.int32, np.uint8, 300),
    ],
)  # fmt: skip
def test_a_sum_of_integers_does_not_wrap(left: Any, right: Any, expected: int | None) -> None:
    a, b = (np.array([200 if d not in (np.int8, np.bool_) else 1], d) for d in (left, right))
    b = np.array([100], right) if right in (np.uint8,) else b
    y = Tensor(a) + Tensor(b)
    assert y.dtype == np.int64
    assert y.item() == (2 if expected is None else expected)


def test_integers_of_several_dtypes_become_int64() -> None:
    y = F.maximum(np.array([200], np.uint8), np.array([1], np.int8))
    assert (y.dtype, y.item()) == (np.int64, 200)


@pytest.mark.parametrize("act", [
    lambda x: F.pad(x, 1, value=300), lambda x: F.pad(x, 1, value=-1),
    lambda x: F.maximum(x, 256), lambda x: F.where(x > 0, x, -1),
])  # fmt: skip
def test_a_number_that_the_dtype_cannot_hold_is_refused(act: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(ValueError, match=r"hold|fit"):
        act(Tensor(np.zeros(2, np.uint8)))


# Accumulation: an error that does not grow with the length, along any axis and in any memory order


LONG = 300_000


def spread(dtype: Any, *shape: int) -> np.ndarray:
    """Numbers of one sign, so that nothing cancels, and of every size up to 1."""
    return np.random.default_rng(0).random(shape).astype(dtype)


@pytest.mark.parametrize("place", ["cpu", "plain", "strict"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("method", ["sum", "mean", "var", "logsumexp"])
@pytest.mark.parametrize(
    ("shape", "axis"), [((LONG, 2), 0), ((2, LONG), 1), ((2, LONG), None), ((LONG // 4, 2, 2, 2), (0, 2, 3))]
)
def test_long_sums_keep_their_digits(method: str, shape: tuple[int, ...], axis: Any, dtype: Any, place: str) -> None:
    x = spread(dtype, *shape)
    exact = Tensor(x.astype(np.float64))
    with running(place) as device, np.errstate(over="ignore"):  # the largest float16 is 65,504
        y = getattr(Tensor(x, device=device), method)(axis=axis).numpy()
    expected = getattr(exact, method)(axis=axis).numpy()
    assert y.dtype == dtype
    if method == "sum" and dtype == np.float16:
        return  # larger than the largest float16, so infinite, which is right
    np.testing.assert_allclose(y.astype(np.float64), expected, rtol=2 * float(np.finfo(dtype).eps))


@pytest.mark.parametrize("layout", ["rows", "batch-last"])
def test_the_gradient_of_a_bias_keeps_its_digits(layout: str) -> None:
    if layout == "rows":
        gy = spread(np.float32, LONG, 3)
        b = Tensor(np.zeros(3, np.float32), requires_grad=True)
        y = F.linear(np.zeros((LONG, 1), np.float32), np.zeros((3, 1), np.float32), b)
        expected = gy.sum(0, dtype=np.float64)
    else:
        gy = spread(np.float32, 3, 28, 28, 200).transpose(3, 0, 1, 2)
        b = Tensor(np.zeros(3, np.float32), requires_grad=True)
        y = F.conv2d(np.zeros((200, 1, 28, 28), np.float32), np.zeros((3, 1, 1, 1), np.float32), b)
        expected = gy.sum((0, 2, 3), dtype=np.float64)
    np.testing.assert_allclose(grad(y, b, gy)[0].numpy(), expected, rtol=3e-7)


def test_a_long_distance_keeps_its_digits() -> None:
    x = spread(np.float32, LONG, 2).T  # one point after the other would be the good order
    y = F.rbf(x, np.zeros((1, LONG), np.float32))
    np.testing.assert_allclose(y.numpy()[:, 0], np.square(x, dtype=np.float64).sum(1), rtol=3e-7)


def test_float16_sums_that_are_too_large_for_it_on_the_way() -> None:
    assert Tensor(np.full((256, 256), 300, np.float16)).mean().item() == 300
    assert Tensor(np.array([300, -300] + [0] * 98, np.float16)).var().item() == 1800
    assert Tensor(np.ones((4096, 2), np.float16)).sum(0).numpy().tolist() == [4096, 4096]
    assert Tensor(np.zeros(65_536, np.float16)).logsumexp().item() == pytest.approx(math.log(65_536), rel=1e-3)
    np.testing.assert_array_equal(F.softmax(np.zeros(70_000, np.float16)).numpy(), np.float16(1 / 70_000))


# Selection: what is not selected does not take part


def not_taken(function: Callable[[Tensor], Tensor], bad: float) -> Callable[[Tensor], Tensor]:
    return lambda x: F.where(np.array([True, False]), 0.0, function(x))


@pytest.mark.parametrize("place", ["cpu", "plain", "strict"])
@pytest.mark.parametrize(
    ("function", "bad"),
    [
        (Tensor.exp, 1e4), (Tensor.exp, math.inf), (Tensor.log, 0.0), (Tensor.log, -1.0), (Tensor.sqrt, 0.0),
        (Tensor.sqrt, -1.0), (Tensor.tanh, math.nan), (Tensor.sigmoid, math.nan), (Tensor.relu, math.nan),
        (abs, math.nan),
        (F.scaled_tanh, math.nan), (lambda x: 1 / x, 0.0), (lambda x: x / x, 0.0), (lambda x: x**400, 1e4),
        (lambda x: x**0.5, 0.0), (lambda x: x**x, -1.5), (lambda x: 2.0**x, 1e4), (lambda x: x * x.exp(), 1e4),
        (lambda x: F.maximum(x, 1.0), math.nan), (lambda x: F.mse_loss(x, x * 0, reduction="none"), math.inf),
    ],
)  # fmt: skip
def test_a_branch_not_taken_sends_nothing_back(function: Any, bad: float, place: str) -> None:
    with running(place) as device, np.errstate(all="ignore"):
        x = Tensor(np.array([bad, 0.7]), requires_grad=True, device=device)
        y = F.where(Tensor(np.array([True, False]), device=device), 0.0, function(x))
        (g,) = grad(y, x, np.ones(2), create_graph=True)
        assert g.numpy()[0] == 0
        if g.requires_grad:
            (gg,) = grad(g, x, np.ones(2), allow_unused=True)
            assert gg is None or not np.isnan(gg.numpy()[1])


@pytest.mark.parametrize("place", ["cpu", "plain", "strict"])
def test_the_chain_rule_where_the_gradient_is_zero(place: str) -> None:
    """0 times a slope that is not finite is 0; all else is the product, and NaN and infinity stay what they are."""
    g = np.array([0.0, 0.0, -0.0, 2.0, math.inf, 0.0, math.nan])
    s = np.array([math.inf, math.nan, -math.inf, math.inf, 0.0, 3.0, 1.0])
    with running(place) as device, np.errstate(invalid="ignore"):
        y = REGISTRY["chain"]()(Tensor(g, device=device), Tensor(s, device=device)).numpy()
    np.testing.assert_array_equal(y, [0, 0, 0, math.inf, math.nan, 0, math.nan])


def test_selection_is_not_multiplication_by_zero() -> None:
    inf = math.inf
    assert F.einsum("ii->i", np.array([[1.0, -inf], [inf, 2.0]])).numpy().tolist() == [1, 2]
    assert F.where(np.array([True, False]), np.array([1.0, inf]), np.array([-inf, 2.0])).numpy().tolist() == [1, 2]
    dropped = F.dropout(np.full(100, inf), 0.5, rng=np.random.default_rng(0)).numpy()
    assert set(dropped.tolist()) == {0.0, inf}
    x = Tensor(np.array([[[[-inf, 1.0], [2.0, 3.0]]]]), requires_grad=True)
    (g,) = grad(F.max_pool2d(x, 2), x, np.ones((1, 1, 1, 1)), create_graph=True)
    assert not g.requires_grad or not np.isnan(grad(g, x, np.ones(x.shape))[0].numpy()).any()
    assert F.nll_loss(np.array([[-inf, -1.0]]), [1]).item() == 1


@pytest.mark.parametrize("place", ["cpu", "plain", "strict"])
@pytest.mark.parametrize(
    "function",
    [Tensor.max, Tensor.min, lambda x: F.maximum(x, 1.0), lambda x: F.minimum(x, 1.0), lambda x: F.maximum(1.0, x),
     Tensor.relu, lambda x: F.max_pool2d(x.reshape(1, 1, 1, 2), (1, 2))],
)  # fmt: skip
def test_nan_goes_through_with_its_gradient(function: Callable[[Tensor], Tensor], place: str) -> None:
    with running(place) as device:
        x = Tensor(np.array([math.nan, 0.5]), requires_grad=True, device=device)
        y = function(x)
        (g,) = grad(y, x, np.ones(y.shape))
        assert np.isnan(y.numpy().ravel()[0])
        assert g.numpy()[0] == 1


@pytest.mark.parametrize("name", [name for name in OPS if backend.find_kernel("cpu", name)])
@settings(max_examples=40, deadline=None)
@given(SEEDS)
def test_kernels_agree_with_forward_on_nan_and_infinity(name: str, seed: int) -> None:
    op, arrays, numbers = case_of(name, seed)
    rng = np.random.default_rng(seed)
    for i in numbers:
        if arrays[i].size:
            arrays[i].flat[rng.integers(arrays[i].size)] = rng.choice([math.nan, math.inf, -math.inf])
    with np.errstate(all="ignore"):
        y = op.compute(backend.NUMPY, [a.copy() for a in arrays])
        expected = op.forward(np, *[a.copy() for a in arrays])
    np.testing.assert_allclose(y, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", [name for name in OPS if not REGISTRY[name].reads_values])
@FEW
@given(SEEDS)
def test_backward_reads_no_value_where_an_op_says_so(name: str, seed: int) -> None:
    """So that writing to an input of it is harmless, and let through."""
    op, arrays, numbers = case_of(name, seed)
    numbers = [i for i in numbers if op.domains[op.parsed.specs(len(arrays))[i].name].kind == "real"]
    inputs = [Tensor(a, requires_grad=i in numbers) for i, a in enumerate(arrays)]
    y = op(*inputs)
    gy = np.random.default_rng(seed).standard_normal(y.shape)
    before = [g.numpy().copy() for g in grad(y, [inputs[i] for i in numbers], gy)]
    y = op(*inputs)
    for i in numbers:
        inputs[i].data[...] = math.nan
    for found, expected in zip(grad(y, [inputs[i] for i in numbers], gy), before, strict=True):
        np.testing.assert_array_equal(found.numpy(), expected)


def test_masks_whose_bytes_are_not_zero_and_one() -> None:
    for byte in (2, 255):
        mask = Tensor(np.array([0, byte, 1], np.uint8).view(bool))
        assert F.where(mask, np.array([1.0, 1 / 3, 3.0]), 0.0).numpy().tolist() == [0, 1 / 3, 3]
        assert mask.sum().item() == 2
