"""The engine: graphs of every shape, what backward accumulates and frees, threads, memory, and Python's protocols.

That any graph is differentiated rightly, whatever is shared, retained, detached or freed, is checked at random in
tests/test_engine_machine.py; here stands what single tests show better, and what that machine does not build.
"""

import copy
import gc
import math
import operator
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import tests.strict  # noqa: F401 - makes the device "strict" known
from tinygrad_lenet import REAL, Op, Tensor, backend, grad, graph, no_grad
from tinygrad_lenet import functional as F
from tinygrad_lenet.op import REGISTRY
from tinygrad_lenet.testing import check_gradients

SQUARE = np.array([[0.5, -1.0], [2.0, 0.25]])


def leaf(*values: Any, dtype: Any = np.float64) -> Tensor:
    return Tensor(np.array(values[0] if len(values) == 1 else values, dtype=dtype), requires_grad=True)


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
            return backward(gy) if backward else (lambda: noted("a", gy), lambda: noted("b", gy))

    def noted(name: str, gy: Tensor) -> Tensor:
        calls.append(name)
        return gy

    return Counting(), calls


# Shapes of graphs


def test_a_node_is_visited_once_however_many_paths_lead_to_it() -> None:
    """x doubled 200 times has 2**200 paths; a walk over paths would never end."""
    x = leaf(1.0)
    y = x
    for _ in range(200):
        y = y + y
    y.backward()
    assert x.grad.item() == 2.0**200


@pytest.mark.parametrize(
    ("name", "function", "expected"),
    [
        ("divide", lambda x: x / x, 0),
        ("matmul", lambda x: x @ x, SQUARE.sum(1) + SQUARE.sum(0)[:, None]),
        ("maximum", lambda x: F.maximum(x, x), 1),
        ("concatenate", lambda x: F.concatenate([x, x]), 2),
        ("einsum", lambda x: F.einsum("ij,ij->", x, x), 2 * SQUARE),
        ("conv2d", lambda x: F.conv2d(x.reshape(1, 1, 2, 2), x.reshape(1, 1, 2, 2)), 2 * SQUARE),
        ("two views", lambda x: x[0] * x[1], SQUARE[::-1]),
    ],
)
def test_one_tensor_in_several_places_of_an_op(name: str, function: Callable[..., Tensor], expected: Any) -> None:
    x = leaf(SQUARE)
    function(x).sum().backward()
    np.testing.assert_allclose(x.grad, np.broadcast_to(expected, (2, 2)), rtol=1e-14)


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


# Gradients: where they arrive, and who owns their memory


def test_backward_adds_to_grad_until_it_is_forgotten() -> None:
    """By a new addition: whoever kept the gradient of the first call still has it after the second."""
    x = leaf(1.0, 2.0)
    (x * x).sum().backward()
    first = x.grad
    (3.0 * x).sum().backward()
    np.testing.assert_array_equal(first, [2.0, 4.0])
    np.testing.assert_array_equal(x.grad, [5.0, 7.0])
    x.zero_grad()
    assert x.grad is None
    x.sum().backward()
    np.testing.assert_array_equal(x.grad, [1.0, 1.0])


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("add", lambda a, b: a + b),
        ("add-transposed", lambda a, b: a + b.T),
        ("add-reshaped", lambda a, b: a.reshape(4) + b.reshape(4)),
        ("sum", lambda a, b: (a + b).sum()),
        ("sum-mean", lambda a, b: a.sum() + b.mean()),
        ("concatenate", lambda a, b: F.concatenate([a, b])),
        ("stack", lambda a, b: F.stack([a, b])),
        ("subtract", lambda a, b: a - b),
        ("einsum", lambda a, b: F.einsum("ij->ji", a) + b),
        ("pad-getitem", lambda a, b: F.pad(a, 1)[1:3, 1:3] + b[::-1]),
        ("astype-to", lambda a, b: a.astype("float64") + b.to("cpu")),
        ("the leaf itself", lambda a, b: a),
    ],
)
def test_gradients_never_alias(name: str, function: Callable[..., Tensor]) -> None:
    """Each .grad has memory of its own, which may be written: clipping one gradient in place changes nothing else."""
    a, b = leaf(SQUARE), leaf(2 * SQUARE)
    (b * 1.0).sum().backward()
    y = function(a, b)
    seed = Tensor(np.ones(y.shape))
    y.backward(seed)
    expected = b.grad.numpy().copy()
    a.grad.data *= 0.0
    np.testing.assert_array_equal(b.grad, expected)
    np.testing.assert_array_equal(seed, np.ones(y.shape), err_msg="the gradient that was passed in has changed")
    b.grad.data += 1.0
    np.testing.assert_array_equal(a.grad, np.zeros((2, 2)))
    np.testing.assert_array_equal(a, SQUARE)


@pytest.mark.parametrize("seed", [2, np.array(2), np.float64(2), Tensor(np.array(2.0)), Tensor(np.array(2))])
def test_the_gradient_to_start_from_takes_the_dtype_of_the_output(seed: Any) -> None:
    """Also where no op comes between, and the seed is the gradient."""
    x = leaf(3.0, dtype=np.float32)
    for y, expected in ((x, 2.0), (x * x, 12.0)):
        (gx,) = grad(y, [x], seed, create_graph=True)
        y.backward(seed)
        assert (gx.dtype, x.grad.dtype) == (np.float32, np.float32)
        assert (gx.item(), x.grad.item()) == (expected, expected)
        x.zero_grad()


def test_grad_of_any_tensors_touches_no_grad() -> None:
    """Leaves, what lies between and the output itself, in any order, once or twice."""
    x = leaf(1.0, 2.0)
    hidden = x * 3.0
    y = (hidden * hidden).sum()
    gy, gh, gx, again = grad(y, [y, hidden, x, hidden])
    assert gy.item() == 1.0
    for found, expected in ((gh, [6.0, 12.0]), (again, [6.0, 12.0]), (gx, [18.0, 36.0])):
        np.testing.assert_array_equal(found, expected)
    start = np.array([1.0, -1.0])
    for (one,) in (grad(x * x, x, grad_output=start), grad(outputs=x * x, inputs=[x], grad_outputs=start)):
        np.testing.assert_array_equal(one, [2.0, -4.0])
    assert x.grad is None


# Keeping and freeing the graph


def test_backward_frees_the_graph_and_says_so() -> None:
    """All of it, also what another output shares; ``retain_graph`` keeps it for one more; values remain."""
    x = leaf(1.0, 2.0)
    shared = x.exp()
    y, other = (shared * shared).sum(), shared * 3.0
    y.backward(retain_graph=True)
    y.backward()
    before = x.grad.numpy().copy()
    np.testing.assert_allclose(before, 4 * np.exp([2.0, 4.0]), rtol=1e-14)
    for call in (y.backward, lambda: grad(y, [x]), (y * 2.0).backward):
        with pytest.raises(ValueError, match=r"freed .*retain_graph=True"):
            call()
    with pytest.raises(ValueError, match=r"exp .*freed"):
        other.sum().backward()
    np.testing.assert_array_equal(x.grad, before, err_msg="a refused backward changed .grad")
    assert y.requires_grad
    assert (y.detach() + 1.0).item() == y.item() + 1.0


def test_freeing_lets_go_of_the_memory_while_the_output_lives() -> None:
    """A training loop that keeps its losses does not keep the activations; without gradient they go at once."""
    x = leaf(1.0, 2.0)
    hidden, constant = x.exp(), x.detach().exp()
    data, unrecorded = weakref.ref(hidden.data), weakref.ref(constant.data)
    y, z = (hidden * hidden).sum(), (constant * constant).sum()
    del hidden, constant
    assert data() is not None
    assert unrecorded() is None
    y.backward()
    assert data() is None
    assert not z.requires_grad


# Higher orders


def test_gradients_of_parts_are_added_to_what_is_known() -> None:
    """Slices and repeated rows of one tensor, before and after other uses of it, to second order."""
    rows = np.array([0, 3, 3])

    def y(x: Tensor) -> Tensor:
        return x[0] * x[1] * x.sum(0) + (x[1:3] * x[rows[:2]]).sum(0) * x[rows].sum(0) + (x * x).sum(0)

    check_gradients(y, np.random.default_rng(0).uniform(-1, 1, (4, 3)))


def test_all_orders_of_a_polynomial() -> None:
    """x**4: 4x**3, 12x**2, 24x, 24, and then 0."""
    x = leaf(1.5)
    y = x**4
    for expected in (4 * 1.5**3, 12 * 1.5**2, 24 * 1.5, 24.0, 0.0):
        (y,) = grad(y, [x], create_graph=True)
        np.testing.assert_allclose(y.item(), expected, rtol=1e-14)


def test_gradients_are_constants_unless_create_graph() -> None:
    x = leaf(2.0)
    assert not grad(x**3, [x])[0].requires_grad
    (x**3).backward(retain_graph=True)
    assert not x.grad.requires_grad
    x.zero_grad()
    y = x**3
    y.backward(create_graph=True)
    assert grad(x.grad, [x])[0].item() == 12.0
    assert grad(y, [x])[0].item() == 12.0, "create_graph keeps the graph"
    x.zero_grad()  # x.grad refers to x: this cuts the only reference cycle there is


# What needs no gradient costs nothing


def square(y: Tensor) -> Tensor:
    return y * y


@pytest.mark.usefixtures("scratch_ops")
@pytest.mark.parametrize(
    ("case", "expected", "differentiate"),
    [
        ("both inputs", ["backward", "a", "b"], lambda op, a, b: op(a, b).backward()),
        ("an input without gradient", ["backward", "b"], lambda op, a, b: op(a.detach(), b).backward()),
        ("a number", ["backward", "a"], lambda op, a, b: op(a, 1.0).backward()),
        ("an output of many uses", ["backward", "a"], lambda op, a, b: (square(y := op(a, 1.0)) + y.exp()).backward()),
        ("the other input's gradient", ["backward", "b"], lambda op, a, b: grad(op(a, b), [b])),
        ("off the path to the target", [], lambda op, a, b: grad(op(a, 1.0) * b, [b])),
        ("below the target", [], lambda op, a, b: grad(square(y := op(a, 1.0)), [y])),
    ],
)
def test_only_what_is_wanted_is_differentiated(case: str, expected: list[str], differentiate: Any) -> None:
    """Once, when its gradient is complete; a gradient given as a function is called only if it is needed."""
    op, calls = counting_op()
    differentiate(op, leaf(1.0), leaf(2.0))
    assert calls == expected


def test_the_first_convolution_computes_no_input_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any) -> Any:
        raise AssertionError("the gradient for the images was computed")

    monkeypatch.setattr(REGISTRY["conv_transpose2d"], "__call__", never)
    weight = Tensor(np.ones((2, 1, 2, 2)), requires_grad=True)
    F.conv2d(np.ones((1, 1, 3, 3)), weight).sum().backward()
    np.testing.assert_array_equal(weight.grad, np.full((2, 1, 2, 2), 4.0))
    with pytest.raises(AssertionError, match="images"):
        F.conv2d(leaf(np.ones((1, 1, 3, 3))), weight).sum().backward()


def test_detach_stops_the_gradient_and_copy_passes_it_on() -> None:
    """The one shares memory, the other has its own."""
    x = leaf(1.0, 2.0)
    cut, copied = x.detach(), x.copy()
    assert np.shares_memory(cut.data, x.data)
    assert not np.shares_memory(copied.data, x.data)
    assert not cut.requires_grad
    (cut * cut * copied).sum().backward()
    np.testing.assert_array_equal(x.grad, [1.0, 4.0])


def test_integers_and_booleans_carry_no_gradient() -> None:
    x = leaf(1.7, -2.2)
    for y in (x > 0, x == x, x.argmax(), x.astype(np.int64), x.astype(bool), ~(x > 0)):
        assert not y.requires_grad
    (x * x.astype(np.int64)).sum().backward()
    np.testing.assert_array_equal(x.grad, [1.0, -2.0])


@pytest.mark.parametrize(
    "index", [[0, 1], np.array([0, 1]), ([0, 1],), (np.array([0, 1]),), [True, True, False]], ids=repr
)
def test_an_index_that_changes_after_forward_does_not_matter(index: Any) -> None:
    """Backward adds where forward read."""
    x = leaf(1.0, 2.0, 3.0)
    index = copy.deepcopy(index)
    y = x[index]
    places = index[0] if isinstance(index, tuple) else index
    places[0] = places[-1]
    y.sum().backward()
    np.testing.assert_array_equal(x.grad, [1.0, 1.0, 0.0])


# no_grad, errors, threads and tasks


def test_backward_within_no_grad() -> None:
    """What was recorded before can be differentiated there, and parameters can be made."""
    x = leaf(2.0)
    before = x * x
    with no_grad():
        inside, parameter = x * x, leaf(2.0)
        before.backward()
        still_inside = x * x
    assert [y.requires_grad for y in (inside, still_inside, x * x, parameter)] == [False, False, True, True]
    assert x.grad.item() == 4.0


@pytest.mark.usefixtures("scratch_ops")
@pytest.mark.parametrize("recording", [True, False])
@pytest.mark.parametrize("create_graph", [True, False])
def test_an_error_in_backward_changes_nothing(recording: bool, create_graph: bool) -> None:
    """The recording state is what it was, and no leaf has half of a gradient."""

    def fails(gy: Tensor) -> Any:
        raise ZeroDivisionError("on purpose")

    op, _ = counting_op(fails)
    a, b = leaf(1.0), leaf(2.0)
    y = (op(a, 1.0) * b).exp()
    with pytest.raises(ZeroDivisionError, match="on purpose"):
        if recording:
            y.backward(create_graph=create_graph)
        else:
            with no_grad():
                y.backward(create_graph=create_graph)
    assert (a.grad, b.grad) == (None, None)
    assert (a * b).requires_grad


class Stopped:
    """The mode, at whose first change Ctrl-C comes: as soon as C's code has returned."""

    def __init__(self) -> None:
        self.get, self.reset, self.changed = graph.mode.get, graph.mode.reset, False
        self.real = graph.mode

    def set(self, to: graph.Mode) -> Any:
        token = self.real.set(to)
        if not self.changed:
            self.changed = True
            raise KeyboardInterrupt
        return token


@pytest.mark.parametrize("begin", [lambda: no_grad(), lambda: graph.observed(graph.Observer()), None])
def test_ctrl_c_as_a_block_begins_leaves_it(begin: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else all that follows, in a notebook for instance, would run without recording."""
    w = leaf(1.0, 2.0)
    y = (w * w).sum()
    with monkeypatch.context() as patch:
        patch.setattr(graph, "mode", Stopped())
        with pytest.raises(KeyboardInterrupt):
            if begin is None:
                y.backward()
            else:
                with begin():
                    pass
    assert graph.mode.get() == graph.Mode()


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


def test_threads_with_graphs_of_their_own_get_what_they_would_have_got_alone() -> None:
    def train(seed: int, barrier: threading.Barrier) -> list[np.ndarray]:
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
        together = list(pool.map(train, range(4), [threading.Barrier(4)] * 4))
    for seed in range(4):
        np.testing.assert_array_equal(together[seed], train(seed, threading.Barrier(1)))


def test_threads_that_share_a_leaf_lose_no_gradient() -> None:
    x = leaf(1.0)

    def work(_: int) -> None:
        for _ in range(500):
            (x * 1.0).sum().backward()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert x.grad.item() == 2000.0


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
    parameters = [leaf(rng.normal(size=shape)) for shape in ((2, 1, 3, 3), (2,), (4, 8))]
    return rng.normal(size=(3, 1, 8, 8)), np.array([0, 1, 2]), *parameters


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("what", ["forward", "backward", "retained", "create_graph"])
def test_a_dropped_graph_is_gone_at_once(what: str) -> None:
    """No reference cycles: with the collector off, the output and all that led to it die with the last name."""
    x, labels, *parameters = small_net_arguments()
    hidden = parameters[0] * 1.0
    y = small_net(x, labels, hidden, *parameters[1:])
    if what in ("backward", "retained"):
        y.backward(retain_graph=what == "retained")
    elif what == "create_graph":
        gradients = grad(y, parameters, create_graph=True)
        seconds = grad(gradients[0].sum(), parameters)
        del gradients, seconds
    dead = [weakref.ref(each) for each in (hidden, hidden.data, y, y.data)]
    del hidden, y
    assert [ref() for ref in dead] == [None] * 4


@pytest.mark.usefixtures("no_collector")
def test_memory_is_flat_over_1_000_steps() -> None:
    """With the collector off, steps add nothing to what is held; one leaked tensor a step would be 1,000 blocks."""
    x, labels, *parameters = small_net_arguments()

    def steps(count: int) -> int:
        for _ in range(count):
            small_net(x, labels, *parameters).backward()
            for p in parameters:
                p.data -= 0.01 * p.grad.data
                p.zero_grad()
        return sys.getallocatedblocks()

    before = steps(500)  # Python keeps up to 2,000 dead tuples of a size for reuse, and has most of them by then
    assert steps(500) - before < 250
    assert gc.collect() == 0, "there are reference cycles, which only the collector can free"


# Dtypes

ARITHMETIC = ("add", "sub", "mul", "truediv", "pow")
COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge")


@pytest.mark.parametrize("name", [*ARITHMETIC, *COMPARISONS])
def test_operators_meet_arrays_and_numbers_on_either_side(name: str) -> None:
    """Values, and among floats dtypes, are NumPy's; the result is a Tensor. Numbers leave float32 as it is."""
    function = getattr(operator, name)
    for dtype in (np.float32, np.float64, np.int64):
        array = np.array([1, 2, 4], dtype)
        for other in (array, np.array([3, 2, 1], np.float32), np.array([1.0, 2.0, 3.0]), 2, 2.5):
            for a, b in ((Tensor(array), other), (other, Tensor(array)), (Tensor(array), Tensor(other))):
                ours, numpys = function(a, b), function(np.asarray(a), np.asarray(b) if isinstance(b, Tensor) else b)
                assert isinstance(ours, Tensor)
                np.testing.assert_allclose(ours.numpy(), numpys, rtol=1e-6)
                if name in COMPARISONS:
                    assert ours.dtype == np.bool_
                elif dtype != np.int64:
                    assert ours.dtype == np.result_type(dtype, other)


@pytest.mark.parametrize(
    ("a", "b"), [((3,), (3,)), ((3,), (3, 2)), ((2, 3), (3,)), ((3,), (2, 3, 4)), ((2, 4, 3), (3,))]
)
def test_one_axis_is_a_row_on_the_left_of_a_product_and_a_column_on_the_right(a: Any, b: Any) -> None:
    x, w = np.arange(math.prod(a)).reshape(a), np.arange(math.prod(b)).reshape(b)
    np.testing.assert_array_equal((Tensor(x) @ w).numpy(), x @ w)


@pytest.mark.parametrize(
    ("subscripts", "shapes"),
    [
        ("ij,jk,kl->li", [(2, 3), (3, 4), (4, 5)]),
        ("ij,ij,jk->k", [(2, 3), (2, 3), (3, 4)]),
        ("jk,ij", [(3, 4), (2, 3)]),
        ("cab", [(2, 3, 4)]),
        ("ijj->j", [(2, 3, 3)]),
        ("i...,...i->...", [(2, 3, 4), (4, 2)]),
        ("...ij,kj", [(5, 2, 3), (4, 3)]),
    ],
)
def test_einsum_is_numpys(subscripts: str, shapes: list[tuple[int, ...]]) -> None:
    arrays = [np.random.default_rng(i).random(shape) for i, shape in enumerate(shapes)]
    np.testing.assert_allclose(F.einsum(subscripts, *arrays).numpy(), np.einsum(subscripts, *arrays), rtol=1e-12)


def test_einsum_multiplies_first_what_stays_small(monkeypatch: pytest.MonkeyPatch) -> None:
    call, sizes = Op.__call__, [0]

    def watched(self: Any, *inputs: Any) -> Tensor:
        y = call(self, *inputs)
        sizes.append(y.size)
        return y

    monkeypatch.setattr(Op, "__call__", watched)
    F.einsum("ij,kl,jk->il", *[np.ones((9, 9))] * 3)
    assert max(sizes) == 81  # the first two have no letter in common: 6,561


def test_numbers_and_arrays_within_an_expression() -> None:
    """float32 * 0.1 would be float64 if the number became an array; gradients flow with NumPy on the left."""
    x = leaf(1.0, 2.0, dtype=np.float32)
    y = (((x + 1) * 0.1 - 2.5) / 3) ** 2 + 2.0**x + (1 - x) + 1 / x + F.maximum(x, 0.5) + F.where(x > 1, x, 0.0)
    for each in (y, F.where(x > 0, 1.0, 0.0), F.maximum(1.0, 2.0), F.minimum(1.0, 2.0)):
        assert each.dtype == np.float32
    (np.ones(2) * x + np.eye(2) @ x.astype("float64") - np.array(1.0) / x).sum().backward()
    np.testing.assert_allclose(x.grad, 2.0 + 1 / x.numpy() ** 2)


@pytest.mark.parametrize("low", [0, 1])
@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("add", operator.add),
        ("multiply", operator.mul),
        ("divide", operator.truediv),
        ("power", operator.pow),
        ("maximum", F.maximum),
        ("where", lambda a, b: F.where(a > b, a, b)),
        ("concatenate", lambda a, b: F.concatenate([a, b])),
        ("astype", lambda a, b: a.astype("float64") * b.astype("float64")),
    ],
)
def test_a_gradient_has_the_dtype_of_its_input(name: str, function: Callable[..., Tensor], low: int) -> None:
    """float32 with float64 gives float64; each gradient comes back in the dtype of the tensor that it belongs to."""
    dtypes = [np.float64, np.float64]
    dtypes[low] = np.float32
    a, b = leaf(0.5, 2.0, dtype=dtypes[0]), leaf(1.5, 1.0, dtype=dtypes[1])
    y = function(a, b)
    assert y.dtype == np.float64
    y.sum().backward()
    assert [a.grad.dtype, b.grad.dtype] == dtypes


@pytest.mark.parametrize(
    ("dtype", "data"),
    [
        ("float32", [1, 2.5, [1, 2], [[1.0], [2.0]], range(3), (1, 2)]),
        ("bool", [True, [True, False]]),
        ("uint8", [np.array([1, 2], np.uint8)]),
        ("float64", [np.array([1.0])]),
    ],
)
def test_dtype_of_new_tensors(dtype: str, data: list[Any]) -> None:
    """Python numbers become float32; arrays keep their dtype, unless another is named."""
    for each in data:
        assert Tensor(each).dtype == dtype
        assert Tensor(each, dtype="float64").dtype == np.float64


# Python's protocols


def test_arrays_go_in_and_out_without_a_copy() -> None:
    array = np.zeros(3)
    x = Tensor(array)
    for each in (x.data, x.numpy(), np.asarray(x)):
        assert type(each) is np.ndarray
        assert np.shares_memory(each, array)
    assert not np.shares_memory(np.array(x), array), "np.array copies"
    assert np.asarray(x, dtype=np.float32).dtype == np.float32


def test_iteration_and_length() -> None:
    x = leaf(SQUARE)
    assert len(x) == 2
    first, second = x
    (first * second).sum().backward()
    np.testing.assert_array_equal(x.grad, SQUARE[::-1])
    for function in (len, list):
        with pytest.raises(TypeError):
            function(Tensor(1.0))


def test_one_element_becomes_a_python_number() -> None:
    x = Tensor([[2.5]], requires_grad=True)
    assert (x.item(), float(x), int(x), bool(x), bool(x > 3)) == (2.5, 2.5, 2, True, False)
    assert [type(v.item()) for v in (x, Tensor(np.int8(1)), x > 0)] == [float, int, bool]
    assert f"{x:.3f} {Tensor(2.0)}" == "2.500 Tensor(2.)"


@pytest.mark.parametrize(
    ("text", "tensor"),
    [
        ("Tensor([1. , 2.5])", Tensor([1.0, 2.5])),
        ("Tensor(3.)", Tensor(3.0)),
        ("Tensor([1, 2], dtype=int64)", Tensor(np.array([1, 2]))),
        ("Tensor([ True])", Tensor([True])),
        ("Tensor([1., 2.], dtype=float64, requires_grad=True)", leaf(1.0, 2.0)),
        ("Tensor([[1.],\n        [2.]])", Tensor([[1.0], [2.0]])),
        ("Tensor([1., 2.], device='strict')", Tensor([1.0, 2.0], device="strict")),
    ],
)
def test_repr(text: str, tensor: Tensor) -> None:
    assert repr(tensor) == text


def test_a_tensor_is_hashed_by_identity() -> None:
    x, same = Tensor([1.0, 2.0]), Tensor([1.0, 2.0])
    assert len({x, same, x}) == 2


def test_boolean_algebra() -> None:
    """With tensors, arrays and Python's booleans, on either side; & and | of anything else are refused."""
    x = Tensor([-1.0, 0.5, 2.0])
    low, high, mask = x > 0, x < 1, np.array([True, False, True])
    for found, expected in (
        (~low, [True, False, False]),
        (low & high, [False, True, False]),
        (low | high, [True, True, True]),
        (low & mask, [False, False, True]),
        (mask & low, [False, False, True]),
        (mask | low, [True, True, True]),
        (low & True, [False, True, True]),
        (True & low, [False, True, True]),
    ):
        np.testing.assert_array_equal(found, expected)
    for wrong in (lambda: x & low, lambda: low | x, lambda: ~x):
        with pytest.raises(TypeError):
            wrong()


def test_numpys_forms_of_axes_shapes_and_indices() -> None:
    assert Tensor(np.ones((2, 3, 4, 5))).sum(np.int64(1)).shape == (2, 4, 5)
    assert Tensor([1.0]).broadcast_to(3).shape == (3,)
    x = leaf(1.0, 2.0)
    y = x[[]]  # selects nothing, and sends back zeros
    assert y.shape == (0,)
    y.sum().backward()
    np.testing.assert_array_equal(x.grad, [0.0, 0.0])


# Devices and kernels


def test_use_sets_where_new_tensors_lie() -> None:
    def here() -> list[str]:
        return [backend.default_device(), Tensor(1.0).device, Tensor(np.ones(2)).device]

    assert backend.available()[0] == "cpu"
    assert here() == ["cpu"] * 3
    with backend.use("strict"):
        assert here() == ["strict"] * 3
        assert Tensor([1.0], device="cpu").device == "cpu"
        with backend.use("numpy"):
            assert here() == ["cpu"] * 3
        assert here() == ["strict"] * 3
    with pytest.raises(ZeroDivisionError), backend.use("strict"):
        raise ZeroDivisionError
    assert here() == ["cpu"] * 3


def test_moving_a_tensor_moves_its_gradient_back() -> None:
    x = leaf(1.0, 2.0)
    y = x.to("strict")
    assert (y.device, (y * y).device, x.to("numpy").device) == ("strict", "strict", "cpu")
    (y * y).to("cpu").backward(np.ones(2))
    assert (x.grad.device, type(x.grad.data)) == ("cpu", np.ndarray)
    np.testing.assert_array_equal(x.grad, [2.0, 4.0])


def test_arrays_of_a_device_are_indices_there() -> None:
    x = Tensor(np.arange(6.0).reshape(3, 2), requires_grad=True, device="strict")
    for index in (np.array([2, 0, 2]), np.array([True, False, True]), np.array([[True, False]] * 3)):
        there = Tensor(index, device="strict").data
        y = x[there]
        np.testing.assert_array_equal(y.numpy(), x.numpy()[index])
        (gx,) = grad(y, x, np.ones(y.shape))
        np.testing.assert_array_equal(gx.numpy(), grad(x[index], x, np.ones(y.shape))[0].numpy())
        written = x.detach().copy()
        written[there] = 9.0
        assert (written[there].numpy() == 9).all()


def test_a_tensor_elsewhere_does_not_become_an_array_by_itself() -> None:
    x = Tensor([1.0, 2.0], device="strict")
    with pytest.raises(TypeError, match=r"\.numpy\(\)"):
        np.asarray(x)
    assert type(x.numpy()) is np.ndarray


@pytest.mark.usefixtures("scratch_ops")
def test_a_kernel_stands_in_for_forward_and_may_decline(monkeypatch: pytest.MonkeyPatch) -> None:
    """One look-up picks the faster forward; the derivative stays the op's; NotImplemented falls back to the op."""
    monkeypatch.setattr(backend, "_kernels", dict(backend._kernels))
    op, calls = counting_op()

    @backend.kernel("cpu", "counting")
    def for_numbers(op: Op, xp: Any, a: Any, b: Any) -> Any:
        calls.append(type(op).__name__)
        return NotImplemented if a.ndim else a + b + 100.0

    x = leaf(1.0)
    y = op(x, 1.0)
    y.backward()
    assert (y.item(), x.grad.item()) == (102.0, 1.0)
    np.testing.assert_array_equal(op(leaf(1.0, 2.0), 1.0), [2.0, 3.0])
    assert calls == ["Counting", "backward", "a", "Counting"]
