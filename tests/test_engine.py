"""The engine: graphs of every shape, what backward accumulates and frees, threads, memory, and Python's protocols."""

import asyncio
import gc
import subprocess
import sys
import threading
import tracemalloc
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from tinygrad_lenet import Tensor, backend, grad, no_grad
from tinygrad_lenet import functional as F
from tinygrad_lenet.op import REAL, REGISTRY, Op


def leaf(*values: float, dtype: Any = np.float64) -> Tensor:
    return Tensor(np.array(values[0] if len(values) == 1 else values, dtype=dtype), requires_grad=True)


@pytest.fixture
def scratch_ops() -> Iterator[None]:
    """Ops defined in a test leave the registry afterwards: other tests walk it."""
    before = dict(REGISTRY)
    yield
    REGISTRY.clear()
    REGISTRY.update(before)


def counting_op(backward: Callable[..., Any] | None = None) -> tuple[Op, list[str]]:
    """An op y = a + b that notes each call of its backward, and what that returned as a function: "a" or "b"."""
    calls: list[str] = []

    class Counting(Op):
        """y = a + b."""

        signature = "counting(a[...], b[...]) -> y[...]"
        domains = {"a": REAL, "b": REAL}

        def forward(self, xp: Any, a: Any, b: Any) -> Any:
            return xp.add(a, b)

        def backward(self, gy: Tensor, y: Tensor, a: Any, b: Any) -> Any:
            calls.append("backward")
            if backward is not None:
                return backward(gy, y, a, b)

            def noted(name: str) -> Callable[[], Tensor]:
                return lambda: calls.append(name) or gy  # type: ignore[func-returns-value]

            return noted("a"), noted("b")

    return Counting(), calls


# Shapes of graphs


def test_fan_out_adds_the_gradients_of_all_uses() -> None:
    x = leaf(1.0, 2.0)
    sum((x * k for k in range(1, 11)), start=Tensor(0.0)).sum().backward()
    np.testing.assert_array_equal(x.grad, [55.0, 55.0])


def test_diamond() -> None:
    """Two ways from x to y meet again; both contribute, at the one point where they part."""
    x = leaf(0.3, -0.7)
    a = x * 2.0
    (a.exp() * a.tanh()).sum().backward()
    v = 2 * x.numpy()
    np.testing.assert_allclose(x.grad, 2 * np.exp(v) * (np.tanh(v) + 1 - np.tanh(v) ** 2), rtol=1e-14)


def test_a_node_is_visited_once_however_many_paths_lead_to_it() -> None:
    """x doubled 200 times has 2**200 paths; a walk over paths would never end."""
    x = leaf(1.0)
    y = x
    for _ in range(200):
        y = y + y
    y.backward()
    assert x.grad.item() == 2.0**200


def test_shared_sub_graph_of_two_outputs() -> None:
    x = leaf(0.5)
    shared = x.exp()
    a, b = shared * 2.0, shared * shared
    a.backward(retain_graph=True)
    b.backward()
    np.testing.assert_allclose(x.grad.item(), 2 * np.exp(0.5) + 2 * np.exp(1.0), rtol=1e-14)


_square = np.array([[0.5, -1.0], [2.0, 0.25]])


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        pytest.param(lambda x: x + x, np.full((2, 2), 2.0), id="add"),
        pytest.param(lambda x: x - x, np.zeros((2, 2)), id="subtract"),
        pytest.param(lambda x: x * x, 2 * _square, id="multiply"),
        pytest.param(lambda x: x / x, np.zeros((2, 2)), id="divide"),
        pytest.param(lambda x: x @ x, _square.sum(1) + _square.sum(0)[:, None], id="matmul"),
        pytest.param(lambda x: F.maximum(x, x), np.ones((2, 2)), id="maximum"),
        pytest.param(lambda x: F.where(x > 0, x, x), np.ones((2, 2)), id="where"),
        pytest.param(lambda x: F.concatenate([x, x]), np.full((2, 2), 2.0), id="concatenate"),
        pytest.param(lambda x: F.einsum("ij,ij->", x, x), 2 * _square, id="einsum"),
        pytest.param(lambda x: F.linear(x, x), 2 * _square.sum(0) + np.zeros((2, 2)), id="linear"),
        pytest.param(lambda x: F.conv2d(x.reshape(1, 1, 2, 2), x.reshape(1, 1, 2, 2)), 2 * _square, id="conv2d"),
        pytest.param(lambda x: x[0] * x[1], _square[::-1], id="two views"),
    ],
)
def test_one_tensor_in_several_places_of_an_op(function: Callable[..., Tensor], expected: np.ndarray) -> None:
    x = Tensor(_square, requires_grad=True)
    function(x).sum().backward()
    np.testing.assert_allclose(x.grad, expected, rtol=1e-14)


def test_chain_of_100_000_ops() -> None:
    """Forward, backward and dropping the graph need no recursion; neither does dropping one that was never used."""
    depth = 100_000
    x = leaf(1.0)
    y = x
    for _ in range(depth):
        y = y + 1.0
    y.backward(retain_graph=True)
    assert (y.item(), x.grad.item()) == (depth + 1.0, 1.0)
    del y  # a graph of 100,000 nodes goes at once
    for i in range(depth):
        x = x * 1.0 if i % 2 else -x
    del x


def test_deep_chain_to_second_order() -> None:
    """The graph of the gradient of a deep graph is as deep, and is walked without recursion too."""
    x = leaf(1.0)
    y = x
    for _ in range(3_000):
        y = y * x
    (gx,) = grad(y, [x], create_graph=True)
    (ggx,) = grad(gx, [x])
    assert (gx.item(), ggx.item()) == (3_001.0, 3_001.0 * 3_000.0)


def test_a_leaf_can_be_its_own_output() -> None:
    x = leaf(3.0)
    x.backward()
    x.backward(2.0)
    assert x.grad.item() == 3.0


def test_gradients_broadcast_back() -> None:
    """The engine sums over the axes along which an operand was repeated, new ones and those of size 1."""
    x, b, s = leaf([[1.0], [2.0]]), leaf(1.0, 2.0, 3.0), leaf(5.0)
    (x * b + s).sum().backward()
    np.testing.assert_array_equal(x.grad, [[6.0], [6.0]])
    np.testing.assert_array_equal(b.grad, [3.0, 3.0, 3.0])
    assert (s.grad.shape, s.grad.item()) == ((), 6.0)


# Accumulation, and who owns the memory of a gradient


def test_backward_adds_to_grad_until_it_is_forgotten() -> None:
    x = leaf(1.0, 2.0)
    (x * x).sum().backward()
    (3.0 * x).sum().backward()
    np.testing.assert_array_equal(x.grad, [5.0, 7.0])
    x.zero_grad()
    assert x.grad is None
    x.sum().backward()
    np.testing.assert_array_equal(x.grad, [1.0, 1.0])


def test_accumulation_makes_a_new_gradient() -> None:
    """Whoever kept the gradient of the first call still has it after the second."""
    x = leaf(1.0, 2.0)
    (x * x).sum().backward()
    first = x.grad
    kept = first.numpy().copy()
    (x * x).sum().backward()
    assert x.grad is not first
    np.testing.assert_array_equal(first, kept)


def _reshaped_and_added(a: Tensor, b: Tensor) -> Tensor:
    return a.reshape(4) + b.reshape(4)


@pytest.mark.parametrize(
    "function",
    [
        pytest.param(lambda a, b: a + b, id="add"),
        pytest.param(lambda a, b: a + b.T, id="add-transposed"),
        pytest.param(_reshaped_and_added, id="add-reshaped"),
        pytest.param(lambda a, b: (a + b).sum(), id="sum"),
        pytest.param(lambda a, b: a.sum() + b.mean(), id="sum-mean"),
        pytest.param(lambda a, b: F.concatenate([a, b]), id="concatenate"),
        pytest.param(lambda a, b: F.stack([a, b]), id="stack"),
        pytest.param(lambda a, b: a - b, id="subtract"),
        pytest.param(lambda a, b: F.einsum("ij->ji", a) + b, id="einsum"),
        pytest.param(lambda a, b: F.pad(a, 1)[1:3, 1:3] + b[::-1], id="pad-getitem"),
        pytest.param(lambda a, b: a.astype("float64") + b.to("cpu"), id="astype-to"),
    ],
)
def test_gradients_never_alias(function: Callable[..., Tensor]) -> None:
    """Each .grad has memory of its own, which may be written: clipping one gradient in place changes no other."""
    a, b = Tensor(_square.copy(), requires_grad=True), Tensor(_square * 2, requires_grad=True)
    y = function(a, b)
    seed = Tensor(np.ones(y.shape))
    y.backward(seed)
    expected = b.grad.numpy().copy()
    a.grad.data *= 0.0
    np.testing.assert_array_equal(b.grad, expected)
    np.testing.assert_array_equal(seed, np.ones(y.shape), err_msg="the gradient that was passed in has changed")
    b.grad.data += 1.0
    np.testing.assert_array_equal(a.grad, np.zeros((2, 2)))
    np.testing.assert_array_equal(a, _square)


def test_the_gradient_that_was_passed_in_is_not_kept() -> None:
    """A leaf's own backward would otherwise make the caller's tensor its .grad."""
    x, seed = leaf(1.0, 2.0), Tensor(np.ones(2))
    x.backward(seed)
    x.grad.data *= 5.0
    np.testing.assert_array_equal(seed, [1.0, 1.0])


def test_a_retained_graph_survives_writing_into_a_gradient() -> None:
    """A second backward through a retained graph gives the same, whatever was done to the first's result."""
    a, b = leaf(1.0, 2.0), leaf(3.0, 4.0)
    y = ((a + b) * a).sum()
    y.backward(retain_graph=True)
    first = a.grad.numpy().copy()
    a.grad.data[...] = np.nan
    a.zero_grad()
    y.backward()
    np.testing.assert_array_equal(a.grad, first)


# Keeping and freeing the graph


def test_backward_frees_the_graph_and_says_so() -> None:
    x = leaf(1.0, 2.0)
    y = (x.exp() * 2.0).sum()
    y.backward()
    before = x.grad.numpy().copy()
    with pytest.raises(ValueError, match=r"freed by an earlier backward; pass retain_graph=True"):
        y.backward()
    with pytest.raises(ValueError, match="retain_graph=True"):
        grad(y, [x])
    np.testing.assert_array_equal(x.grad, before, err_msg="a refused backward changed .grad")


def test_retain_graph_keeps_it_for_one_more() -> None:
    x = leaf(1.0, 2.0)
    y = (x * x).sum()
    for _ in range(2):
        y.backward(retain_graph=True)
    y.backward()
    np.testing.assert_array_equal(x.grad, [6.0, 12.0])
    with pytest.raises(ValueError, match="freed"):
        y.backward()


def test_a_freed_part_shared_with_another_output_is_refused() -> None:
    x = leaf(1.0)
    shared = x.exp()
    a, b = shared * 2.0, shared * 3.0
    a.backward()
    with pytest.raises(ValueError, match="exp has been freed"):
        b.backward()
    assert x.grad.item() == 2.0 * np.exp(1.0)


def test_values_of_a_freed_graph_remain() -> None:
    x = leaf(2.0)
    y = x * x
    y.backward()
    assert (y.item(), y.requires_grad) == (4.0, True)
    assert (y.detach() + 1.0).item() == 5.0


def test_freeing_lets_go_of_the_memory_while_the_output_lives() -> None:
    """A training loop that keeps its losses does not keep the activations behind them."""
    x = leaf(1.0, 2.0)
    hidden = x.exp()
    data = weakref.ref(hidden.data)
    y = (hidden * hidden).sum()
    del hidden
    assert data() is not None
    y.backward()
    assert data() is None


# Higher orders


def test_all_orders_of_a_polynomial() -> None:
    """x**4: 4x**3, 12x**2, 24x, 24, and then 0."""
    x = leaf(1.5)
    y = x**4
    for expected in (4 * 1.5**3, 12 * 1.5**2, 24 * 1.5, 24.0, 0.0):
        (y,) = grad(y, [x], create_graph=True)
        np.testing.assert_allclose(y.item(), expected, rtol=1e-14)


@pytest.mark.parametrize(
    ("function", "third"),
    [
        pytest.param(Tensor.exp, lambda v: np.exp(v), id="exp"),
        pytest.param(Tensor.log, lambda v: 2 / v**3, id="log"),
        pytest.param(Tensor.sqrt, lambda v: 3 / 8 * v**-2.5, id="sqrt"),
        pytest.param(lambda x: 1.0 / x, lambda v: -6 / v**4, id="reciprocal"),
        pytest.param(Tensor.tanh, lambda v: (1 - np.tanh(v) ** 2) * (6 * np.tanh(v) ** 2 - 2), id="tanh"),
        pytest.param(lambda x: x * x.exp(), lambda v: (v + 3) * np.exp(v), id="product"),
        pytest.param(lambda x: x**3.5, lambda v: 3.5 * 2.5 * 1.5 * v**0.5, id="power"),
        pytest.param(lambda x: 2.0**x, lambda v: np.log(2) ** 3 * 2**v, id="exponential"),
    ],
)
def test_third_derivatives(function: Callable[..., Tensor], third: Callable[..., np.ndarray]) -> None:
    """Elementwise, the sum's gradient is the derivative; three times, against the formula."""
    x = leaf(0.4, 1.3)
    y = function(x)
    for _ in range(3):
        (y,) = grad(y.sum(), [x], create_graph=True)
    np.testing.assert_allclose(y, third(x.numpy()), rtol=1e-12)


def test_mixed_derivatives_commute() -> None:
    a, b = leaf(0.7), leaf(-0.3)
    y = (a * b).exp() * a
    ga, gb = grad(y, [a, b], create_graph=True)
    (gab,) = grad(ga, [b], create_graph=True)
    (gba,) = grad(gb, [a])
    v, w = 0.7, -0.3
    np.testing.assert_allclose([gab.item(), gba.item()], [(2 * v + v * v * w) * np.exp(v * w)] * 2, rtol=1e-14)


def test_backward_with_create_graph_leaves_a_differentiable_grad() -> None:
    x = leaf(2.0)
    (x**3).backward(create_graph=True)
    assert x.grad.requires_grad
    (second,) = grad(x.grad, [x])
    assert second.item() == 12.0
    x.zero_grad()  # x.grad refers to x: this cuts the only reference cycle there is


def test_gradients_are_constants_unless_asked_otherwise() -> None:
    x = leaf(2.0)
    (gx,) = grad(x**3, [x])
    assert not gx.requires_grad
    (x**3).backward(retain_graph=True)
    assert not x.grad.requires_grad


def test_gradient_through_a_gradient_penalty() -> None:
    """A step on |dy/dx|^2, as in a gradient penalty: dL/dw of L = |d(w x^2)/dx|^2 = 4 w^2 x^2 is 8 w x^2."""
    x, w = leaf(1.5), leaf(0.5)
    (gx,) = grad(w * x * x, [x], create_graph=True)
    (gx * gx).backward()
    np.testing.assert_allclose([w.grad.item(), x.grad.item()], [8 * 0.5 * 1.5**2, 8 * 0.5**2 * 1.5], rtol=1e-14)


# grad()


def test_grad_leaves_grad_alone() -> None:
    x, w = leaf(1.0), leaf(2.0)
    gx, gw = grad(x * w, [x, w])
    assert (gx.item(), gw.item(), x.grad, w.grad) == (2.0, 1.0, None, None)


def test_grad_of_an_intermediate_tensor_and_of_the_output_itself() -> None:
    x = leaf(1.0, 2.0)
    hidden = x * 3.0
    y = (hidden * hidden).sum()
    gy, gh, gx = grad(y, [y, hidden, x])
    assert gy.item() == 1.0
    np.testing.assert_array_equal(gh, [6.0, 12.0])
    np.testing.assert_array_equal(gx, [18.0, 36.0])


def test_grad_takes_one_tensor_or_the_same_one_twice() -> None:
    x = leaf(3.0)
    (one,) = grad(x * x, x)
    first, second = grad(x * x, [x, x])
    assert (one.item(), first.item(), second.item()) == (6.0, 6.0, 6.0)


def test_grad_output_weighs_the_elements() -> None:
    x = leaf(1.0, 2.0, 3.0)
    (gx,) = grad(x * x, [x], grad_output=np.array([1.0, 0.0, -1.0]))
    np.testing.assert_array_equal(gx, [2.0, 0.0, -6.0])


def test_grad_refuses_an_input_that_was_not_used() -> None:
    """Returning zeros would hide a mistyped variable."""
    x, unused = leaf(1.0), leaf(1.0, 2.0)
    with pytest.raises(ValueError, match=r"grad: input 1, of shape \(2,\), was not used"):
        grad(x * 2.0, [x, unused])


@pytest.mark.usefixtures("scratch_ops")
def test_an_op_off_the_path_to_the_target_is_not_differentiated() -> None:
    op, calls = counting_op()
    a, b = leaf(1.0), leaf(2.0)
    y = op(a, 1.0) * b
    (gb,) = grad(y, [b])
    assert (gb.item(), calls) == (2.0, [])


@pytest.mark.usefixtures("scratch_ops")
def test_what_lies_below_the_target_is_not_differentiated() -> None:
    op, calls = counting_op()
    a = leaf(1.0)
    hidden = op(a, 1.0)
    (gh,) = grad(hidden * hidden, [hidden])
    assert (gh.item(), calls) == (4.0, [])


@pytest.mark.usefixtures("scratch_ops")
def test_an_op_is_differentiated_once_per_backward() -> None:
    """Also when its output is used many times: its gradient is complete before it is passed on."""
    op, calls = counting_op()
    a = leaf(1.0)
    y = op(a, 1.0)
    (y * y + y.exp() + y).backward()
    assert calls.count("backward") == 1
    np.testing.assert_allclose(a.grad.item(), 4.0 + np.exp(2.0) + 1.0)


# Inputs without gradient


@pytest.mark.usefixtures("scratch_ops")
def test_an_input_that_needs_no_gradient_costs_nothing() -> None:
    """A gradient given as a function is called for the inputs that need it only: the first conv has no gx."""
    op, calls = counting_op()
    weight, image = leaf(1.0, 2.0), Tensor(np.ones(2))
    op(image, weight).sum().backward()
    assert calls == ["backward", "b"]
    assert image.grad is None


@pytest.mark.usefixtures("scratch_ops")
def test_without_any_gradient_nothing_is_recorded() -> None:
    op, calls = counting_op()
    y = op(Tensor([1.0]), 2.0)
    assert (y.requires_grad, y.op, y.inputs, calls) == (False, None, (), [])


@pytest.mark.usefixtures("scratch_ops")
def test_grad_of_one_input_skips_the_others() -> None:
    op, calls = counting_op()
    a, b = leaf(1.0), leaf(2.0)
    grad(op(a, b), [b])
    assert calls == ["backward", "b"]


def test_the_first_convolution_computes_no_input_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any) -> Any:
        raise AssertionError("the gradient for the images was computed")

    monkeypatch.setattr(REGISTRY["conv_transpose2d"], "forward", never)
    weight = Tensor(np.ones((2, 1, 2, 2)), requires_grad=True)
    F.conv2d(np.ones((1, 1, 3, 3)), weight).sum().backward()
    np.testing.assert_array_equal(weight.grad, np.full((2, 1, 2, 2), 4.0))


def test_detach_shares_memory_and_stops_the_gradient() -> None:
    x = leaf(1.0, 2.0)
    cut = (x * x).detach()
    assert not cut.requires_grad
    assert np.shares_memory(x.detach().data, x.data)
    (cut * x).sum().backward()
    np.testing.assert_array_equal(x.grad, [1.0, 4.0])


def test_copy_has_memory_of_its_own_and_passes_the_gradient() -> None:
    x = leaf(1.0, 2.0)
    y = x.copy()
    y.data *= 3.0
    (y * y).sum().backward()
    np.testing.assert_array_equal(x, [1.0, 2.0])
    np.testing.assert_array_equal(x.grad, [6.0, 12.0])


def test_integers_and_booleans_carry_no_gradient() -> None:
    x = leaf(1.7, -2.2)
    for y in (x > 0, x == x, x.argmax(), x.astype(np.int64), x.astype(bool), ~(x > 0)):
        assert not y.requires_grad
        assert y.op is None
    (x * x.astype(np.int64)).sum().backward()
    np.testing.assert_array_equal(x.grad, [1.0, -2.0])


# no_grad


def test_no_grad_as_context_and_as_decorator() -> None:
    x = leaf(2.0)

    @no_grad()
    def square(x: Tensor) -> Tensor:
        return x * x

    with no_grad():
        inside = x * x
        with no_grad():
            pass
        still_inside = x * x
    assert not inside.requires_grad
    assert not still_inside.requires_grad
    assert not square(x).requires_grad
    assert not square(x).requires_grad, "a decorated function works more than once"
    assert (x * x).requires_grad


def test_no_grad_ends_with_an_exception() -> None:
    x = leaf(2.0)
    with pytest.raises(ZeroDivisionError), no_grad():
        raise ZeroDivisionError
    assert (x * x).requires_grad


def test_leaves_made_under_no_grad_keep_their_flag() -> None:
    with no_grad():
        x = leaf(2.0)
    (x * x).backward()
    assert x.grad.item() == 4.0


def test_backward_runs_under_no_grad() -> None:
    """Only recording stops; what was recorded before can be differentiated."""
    x = leaf(2.0)
    y = x * x
    with no_grad():
        y.backward()
        assert not (x * x).requires_grad
    assert x.grad.item() == 4.0


@pytest.mark.usefixtures("scratch_ops")
@pytest.mark.parametrize("recording", [True, False])
def test_an_error_in_backward_changes_nothing(recording: bool) -> None:
    """The recording state is what it was, and no leaf has half of a gradient."""

    def fails(*_: Any) -> Any:
        raise ZeroDivisionError("on purpose")

    op, _ = counting_op(fails)
    a, b = leaf(1.0), leaf(2.0)
    for create_graph in (False, True):
        y = (op(a, 1.0) * b).exp()
        with pytest.raises(ZeroDivisionError, match="on purpose"):
            if recording:
                y.backward(create_graph=create_graph)
            else:
                with no_grad():
                    y.backward(create_graph=create_graph)
        assert (a.grad, b.grad) == (None, None)
        assert (a * b).requires_grad


# Threads and tasks


def test_no_grad_belongs_to_its_thread() -> None:
    """A thread that runs while another is inside no_grad records as before, and the other way round."""
    x = leaf(2.0)
    inside, checked = threading.Event(), threading.Event()
    seen: list[bool] = []

    def evaluate() -> None:
        with no_grad():
            inside.set()
            checked.wait(10)
            seen.append((x * x).requires_grad)
        seen.append((x * x).requires_grad)

    thread = threading.Thread(target=evaluate)
    thread.start()
    inside.wait(10)
    here = (x * x).requires_grad
    checked.set()
    thread.join()
    assert (here, seen) == (True, [False, True])


def test_no_grad_belongs_to_its_task() -> None:
    """Asynchronous tasks share a thread and still do not see each other's no_grad."""
    x = leaf(2.0)

    async def evaluate() -> bool:
        with no_grad():
            await asyncio.sleep(0)
            return (x * x).requires_grad

    async def train() -> bool:
        await asyncio.sleep(0)
        return (x * x).requires_grad

    async def both() -> list[bool]:
        return await asyncio.gather(evaluate(), train())

    assert asyncio.run(both()) == [False, True]


def test_concurrent_backward_on_separate_graphs() -> None:
    """Four threads that train at once each get what they would have got alone."""
    barrier = threading.Barrier(4)

    def train(seed: int) -> list[np.ndarray]:
        rng = np.random.default_rng(seed)
        x = Tensor(rng.normal(size=(2, 1, 5, 5)))
        w = Tensor(rng.normal(size=(2, 1, 3, 3)), requires_grad=True)
        barrier.wait(10)
        gradients = []
        for _ in range(30):
            w.zero_grad()
            F.conv2d(x, w).tanh().sum().backward()
            (second,) = grad(grad((w * w * w).sum(), [w], create_graph=True)[0].sum(), [w])
            gradients += [w.grad.numpy().copy(), second.numpy().copy()]
            w.data -= 0.1 * w.grad.data
        return gradients

    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(train, range(4)))
    barrier = threading.Barrier(1)
    for seed in range(4):
        for ours, alone in zip(together[seed], train(seed), strict=True):
            np.testing.assert_array_equal(ours, alone)


# Memory


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Only reference counts free anything."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def small_net(x: np.ndarray, labels: np.ndarray, w: Tensor, b: Tensor, v: Tensor) -> Tensor:
    """A loss through convolution, both poolings, batch normalisation and indexing."""
    h = F.max_pool2d(F.conv2d(x, w, b, padding=1).tanh(), 2)  # (N, 2, 4, 4)
    h = F.batch_norm(h, None, None, training=True)
    h = F.avg_pool2d(h, 2).reshape(len(x), -1)  # (N, 8)
    return F.cross_entropy(F.linear(h, v)[:, 1:].relu(), labels)


def small_net_arguments() -> tuple[Any, ...]:
    rng = np.random.default_rng(0)
    parameters = [Tensor(rng.normal(size=s), requires_grad=True) for s in ((2, 1, 3, 3), (2,), (4, 8))]
    return rng.normal(size=(3, 1, 8, 8)), np.array([0, 1, 2]), *parameters


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("what", ["forward", "backward", "retained", "create_graph"])
def test_a_dropped_graph_is_gone_at_once(what: str) -> None:
    """No reference cycles: with the collector off, the output and all that led to it die with the last name."""
    arguments = small_net_arguments()
    hidden = arguments[2] * 1.0
    y = small_net(*arguments[:2], hidden, *arguments[3:])
    if what == "backward":
        y.backward()
    elif what == "retained":
        y.backward(retain_graph=True)
    elif what == "create_graph":
        gradients = grad(y, arguments[2:], create_graph=True)
        seconds = grad(gradients[0].sum(), arguments[2:])
        del gradients, seconds
    dead = [weakref.ref(each) for each in (hidden, hidden.data, y, y.data)]
    del hidden, y
    assert [ref() for ref in dead] == [None] * 4


@pytest.mark.usefixtures("no_collector")
def test_memory_is_flat_over_1_000_steps() -> None:
    """With the collector off, 1,000 steps add nothing to what is held; one leaked tensor a step would be 200 kB."""
    x, labels, *parameters = small_net_arguments()

    def steps(count: int) -> int:
        for _ in range(count):
            small_net(x, labels, *parameters).backward()
            for p in parameters:
                p.data -= 0.01 * p.grad.data
                p.zero_grad()
        return tracemalloc.get_traced_memory()[0]

    steps(1_500)  # Python keeps up to 2,000 dead tuples of a size for reuse, and has them by then
    tracemalloc.start()
    try:
        before = steps(10)
        after = steps(1_000)
    finally:
        tracemalloc.stop()
    assert after - before < 50_000
    assert gc.collect() == 0, "there are reference cycles, which only the collector can free"


# Dtypes


_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b,
    "**": lambda a, b: a**b,
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
}


@pytest.mark.parametrize("operator", _OPERATORS)
@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "uint8"])
@pytest.mark.parametrize(
    "other",
    [
        np.array([1.0, 2.0, 3.0]),
        np.array([3, 2, 1], np.float32),
        np.array([3, 2, 1], np.int16),
        np.float64(2),
        np.float32(2),
        np.int64(2),
        2,
        2.5,
    ],
    ids=lambda other: f"{type(other).__name__}-{getattr(other, 'dtype', '')}",
)
def test_operators_with_numpy_on_either_side(operator: str, dtype: str, other: Any) -> None:
    """Values and dtypes are NumPy's, also with an array or a NumPy scalar on the left; the result is a Tensor."""
    function, array = _OPERATORS[operator], np.array([1, 2, 4], dtype)
    for ours, numpys in (
        (function(Tensor(array), other), function(array, other)),
        (function(other, Tensor(array)), function(other, array)),
        (function(Tensor(array), Tensor(array)), function(array, array)),
    ):
        assert isinstance(ours, Tensor)
        assert ours.dtype == numpys.dtype
        np.testing.assert_array_equal(ours.numpy(), numpys)


def test_gradient_flows_with_numpy_on_the_left() -> None:
    x = leaf(1.0, 2.0, 4.0)
    y = np.ones(3) * x + np.float64(2) * x + np.eye(3) @ x - np.float64(1) / x
    y.sum().backward()
    np.testing.assert_allclose(x.grad, 4.0 + 1 / x.numpy() ** 2)


def test_python_numbers_keep_float32() -> None:
    """float32 * 0.1 would be float64 if the number became an array."""
    x = leaf(1.0, 2.0, dtype=np.float32)
    y = (((x + 1) * 0.1 - 2.5) / 3) ** 2 + 2.0**x + (1 - x) + 1 / x + F.maximum(x, 0.5) + F.where(x > 1, x, 0.0)
    y.mean().backward()
    assert (y.dtype, x.grad.dtype) == (np.float32, np.float32)


@pytest.mark.parametrize(
    "function",
    [
        pytest.param(lambda a, b: a + b, id="add"),
        pytest.param(lambda a, b: a * b, id="multiply"),
        pytest.param(lambda a, b: a / b, id="divide"),
        pytest.param(lambda a, b: a**b, id="power"),
        pytest.param(lambda a, b: a @ b, id="matmul"),
        pytest.param(F.linear, id="linear"),
        pytest.param(F.maximum, id="maximum"),
        pytest.param(lambda a, b: F.where(a > b, a, b), id="where"),
        pytest.param(lambda a, b: F.concatenate([a, b]), id="concatenate"),
        pytest.param(lambda a, b: F.einsum("ij,jk", a, b), id="einsum"),
        pytest.param(lambda a, b: F.cross_entropy(a, b), id="cross_entropy"),
        pytest.param(F.mse_loss, id="mse_loss"),
        pytest.param(lambda a, b: F.conv2d(a.reshape(1, 1, 2, 2), b.reshape(1, 1, 2, 2)), id="conv2d"),
        pytest.param(
            lambda a, b: F.conv_transpose2d(a.reshape(1, 1, 2, 2), b.reshape(1, 1, 2, 2)), id="conv_transpose2d"
        ),
    ],
)
@pytest.mark.parametrize("low", [0, 1])
def test_a_gradient_has_the_dtype_of_its_input(function: Callable[..., Tensor], low: int) -> None:
    """float32 with float64 gives float64; each gradient comes back in the dtype of the tensor that it belongs to."""
    dtypes = [np.float64, np.float64]
    dtypes[low] = np.float32
    a, b = (Tensor(np.array([[0.5, 1.5], [2.0, 1.0]], d) + i, requires_grad=True) for i, d in enumerate(dtypes))
    y = function(a, b)
    assert y.dtype == np.float64
    y.sum().backward()
    assert [a.grad.dtype, b.grad.dtype] == dtypes


def test_astype_brings_the_gradient_back() -> None:
    x = leaf(1.0, 2.0, dtype=np.float32)
    (x.astype(np.float64) * x).sum().backward()
    assert x.grad.dtype == np.float32
    np.testing.assert_array_equal(x.grad, [2.0, 4.0])


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (1, "float32"),
        (2.5, "float32"),
        ([1, 2], "float32"),
        ([[1.0], [2.0]], "float32"),
        (True, "bool"),
        ([True, False], "bool"),
        (np.float64(1), "float64"),
        (np.int64(1), "int64"),
        (np.array([1, 2], np.uint8), "uint8"),
        (np.array([1.0]), "float64"),
        (range(3), "float32"),
        ((1, 2), "float32"),
    ],
)
def test_dtype_of_new_tensors(data: Any, expected: str) -> None:
    """Python numbers become float32; what has a dtype keeps it, unless another is named."""
    assert Tensor(data).dtype == expected
    assert Tensor(data, dtype="float64").dtype == np.float64
    assert Tensor(Tensor(data)).dtype == expected


def test_arrays_are_not_copied() -> None:
    array = np.zeros(3)
    assert np.shares_memory(Tensor(array).data, array)
    assert np.shares_memory(Tensor(array).numpy(), array)
    assert np.shares_memory(np.asarray(Tensor(array)), array)


# Python's protocols


def test_numpy_reads_tensors() -> None:
    x = leaf(1.0, 2.0)
    assert isinstance(np.asarray(x), np.ndarray)
    assert np.asarray(x, dtype=np.float32).dtype == np.float32
    assert not np.shares_memory(np.array(x), x.data), "np.array copies"
    np.testing.assert_array_equal(np.stack([np.asarray(row) for row in Tensor(_square)]), _square)


def test_iteration_and_length() -> None:
    x = Tensor(_square, requires_grad=True)
    assert len(x) == 2
    first, second = x
    (first * second).sum().backward()
    np.testing.assert_array_equal(x.grad, _square[::-1])
    with pytest.raises(TypeError, match="without axes"):
        len(Tensor(1.0))
    with pytest.raises(TypeError, match="without axes"):
        list(Tensor(1.0))


def test_one_element_becomes_a_python_number() -> None:
    x = Tensor([[2.5]], requires_grad=True)
    assert (x.item(), float(x), int(x), bool(x), bool(x > 3)) == (2.5, 2.5, 2, True, False)
    assert [type(v.item()) for v in (x, Tensor(np.int8(1)), x > 0)] == [float, int, bool]


@pytest.mark.parametrize(
    ("tensor", "text"),
    [
        (lambda: Tensor([1.0, 2.5]), "Tensor([1. , 2.5])"),
        (lambda: Tensor(3.0), "Tensor(3.)"),
        (lambda: Tensor(np.array([1, 2])), "Tensor([1, 2], dtype=int64)"),
        (lambda: Tensor([True]), "Tensor([ True])"),
        (lambda: leaf(1.0, 2.0), "Tensor([1., 2.], dtype=float64, requires_grad=True)"),
        (lambda: Tensor([[1.0], [2.0]]), "Tensor([[1.],\n        [2.]])"),
    ],
)
def test_repr(tensor: Callable[[], Tensor], text: str) -> None:
    assert repr(tensor()) == text


def test_tensors_are_hashed_by_identity() -> None:
    """== compares elements, so a set or a dictionary must go by which tensor it is."""
    a, b = Tensor([1.0]), Tensor([1.0])
    assert len({a, b, a}) == 2
    assert {a: 1}[a] == 1


def test_a_tensor_equals_nothing_of_another_kind() -> None:
    """x == None is False, as for any Python object, so that `x in [None, ...]` and == of optional values work."""
    x = Tensor([1.0, 2.0])
    assert (x == None) is False  # noqa: E711
    assert (x != None) is True  # noqa: E711
    assert (x == "a") is False
    with pytest.raises(TypeError):
        x < None  # noqa: B015


def test_boolean_algebra() -> None:
    x = Tensor([-1.0, 0.5, 2.0])
    low, high = x > 0, x < 1
    np.testing.assert_array_equal(low & high, [False, True, False])
    np.testing.assert_array_equal(low | high, [True, True, True])
    np.testing.assert_array_equal(~low, [True, False, False])
    np.testing.assert_array_equal(low & True, low)
    np.testing.assert_array_equal(low & np.array([True, False, True]), [False, False, True])


def test_boolean_algebra_with_numpy_on_the_left() -> None:
    low = Tensor([-1.0, 0.5, 2.0]) > 0
    mask = np.array([True, False, True])
    np.testing.assert_array_equal(mask & low, [False, False, True])
    np.testing.assert_array_equal(mask | low, [True, True, True])
    np.testing.assert_array_equal(True & low, low)


def test_indexing_with_an_empty_list() -> None:
    """x[[]] selects nothing, as NumPy's does, and sends back zeros."""
    x = leaf(1.0, 2.0)
    y = x[[]]
    assert y.shape == (0,)
    y.sum().backward()
    np.testing.assert_array_equal(x.grad, [0.0, 0.0])


def test_broadcast_to_a_length() -> None:
    """An integer is a shape of one axis, as in NumPy."""
    assert Tensor([1.0]).broadcast_to(3).shape == (3,)  # type: ignore[arg-type]


# Devices and kernels


class FakeArray(np.ndarray):
    """Stands for the arrays of a second device."""


@pytest.fixture
def fake_device(monkeypatch: pytest.MonkeyPatch) -> str:
    """A registered backend "fake" whose arrays NumPy can compute with."""
    monkeypatch.setattr(backend, "_by_name", dict(backend._by_name))
    monkeypatch.setattr(backend, "_by_type", dict(backend._by_type))
    backend.register(
        backend.Backend(
            "fake",
            np,
            FakeArray,
            from_numpy=lambda array, index: array.copy().view(FakeArray),
            to_numpy=lambda array: array.view(np.ndarray).copy(),
        )
    )
    return "fake"


def test_use_sets_where_new_tensors_lie(fake_device: str) -> None:
    assert (Tensor(1.0).device, backend.default_device()) == ("cpu", "cpu")
    with backend.use(fake_device):
        assert (Tensor(1.0).device, Tensor(np.ones(2)).device, Tensor([1.0], device="cpu").device) == (
            fake_device, fake_device, "cpu",
        )  # fmt: skip
        with backend.use("numpy"):
            assert Tensor(1.0).device == "cpu"
        assert Tensor(1.0).device == fake_device
    assert Tensor(1.0).device == "cpu"
    with pytest.raises(ZeroDivisionError), backend.use(fake_device):
        raise ZeroDivisionError
    assert backend.default_device() == "cpu"


def test_moving_a_tensor_moves_its_gradient_back(fake_device: str) -> None:
    x = leaf(1.0, 2.0)
    y = x.to(fake_device)
    assert (y.device, (y * y).device, x.to("cpu").device) == (fake_device, fake_device, "cpu")
    (y * y).to("numpy").backward(np.ones(2))
    assert (x.grad.device, type(x.grad.data)) == ("cpu", np.ndarray)
    np.testing.assert_array_equal(x.grad, [2.0, 4.0])


def test_a_tensor_elsewhere_does_not_become_an_array_by_itself(fake_device: str) -> None:
    x = Tensor([1.0, 2.0], device=fake_device)
    with pytest.raises(TypeError, match=r"use \.numpy\(\)"):
        np.asarray(x)
    assert type(x.numpy()) is np.ndarray
    assert repr(x) == "Tensor([1., 2.], device='fake')"


def test_cpu_is_always_available() -> None:
    assert backend.available()[0] == "cpu"
    assert Tensor(1.0, device="numpy").device == "cpu"
    assert Tensor(1.0, device="cpu").to("cpu").device == "cpu"


@pytest.mark.usefixtures("scratch_ops")
def test_a_kernel_stands_in_for_forward_and_may_decline(monkeypatch: pytest.MonkeyPatch) -> None:
    """One look-up picks the faster forward; the derivative stays the op's; NotImplemented falls back to the op."""
    monkeypatch.setattr(backend, "_kernels", dict(backend._kernels))
    op, _ = counting_op()
    used: list[str] = []

    @backend.kernel("cpu", "counting")
    def twice_as_fast(op: Op, xp: Any, a: Any, b: Any) -> Any:
        used.append(type(op).__name__)
        return NotImplemented if a.ndim else a + b + 100.0

    x, v = leaf(1.0), leaf(1.0, 2.0)
    y = op(x, 1.0)
    y.backward()
    assert (y.item(), x.grad.item(), used) == (102.0, 1.0, ["Counting"])
    np.testing.assert_array_equal(op(v, 1.0), [2.0, 3.0])


def test_threads_that_share_a_leaf_lose_no_gradient() -> None:
    x = leaf(1.0)

    def work() -> None:
        for _ in range(500):
            (x * 1.0).sum().backward()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert x.grad.item() == 2000.0


def test_numbers_in_format_strings() -> None:
    assert f"{Tensor(0.5):.3f} {Tensor(2.0)}" == "0.500 Tensor(2.)"


def test_python_numbers_alone_are_float32() -> None:
    assert F.where(Tensor([1.0]) > 0, 1.0, 0.0).dtype == np.float32
    assert F.maximum(1.0, 2.0).dtype == F.minimum(1.0, 2.0).dtype == np.float32


def test_what_an_op_checked_is_not_remembered_wrongly() -> None:
    shapes = ((2, 3), (3, 4))
    REGISTRY["matmul"]().check(shapes)["K"] = 99
    assert REGISTRY["matmul"]().check(shapes)["K"] == 3


def test_minus_oo_imports() -> None:
    subprocess.run([sys.executable, "-OO", "-c", "import tinygrad_lenet"], check=True)


def test_sum_over_a_numpy_integer_axis() -> None:
    assert Tensor(np.ones((2, 3, 4, 5))).sum(np.int64(1)).shape == (2, 4, 5)
