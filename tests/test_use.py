"""What people do with tensors, modules and optimisers: it works, or it is refused and nothing has changed."""

import asyncio
import contextvars
import copy
import gc
import operator
import os
import pickle
import signal
import threading
import types
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests.refusals import refused
from tests.test_ops import OPS
from tinygrad_lenet import Tensor, grad, graph, nn, no_grad, optim, testing
from tinygrad_lenet import functional as F
from tinygrad_lenet import tensor as tensor_file
from tinygrad_lenet.kernels import cpu
from tinygrad_lenet.op import REGISTRY, Op

IN_PLACE = [operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.ipow]
HUGE = 10**400


def leaf(*values: float) -> Tensor:
    return Tensor(np.array(values), requires_grad=True)


def read_only(*values: float) -> np.ndarray:
    array = np.array(values)
    array.flags.writeable = False
    return array


# In place


@pytest.mark.parametrize("act", IN_PLACE)
def test_operators_in_place_write_where_nothing_is_recorded(act: Callable[..., Any]) -> None:
    expected = act(np.array([2.0, 3.0]), 1.5)
    t = Tensor(np.array([2.0, 3.0]))
    assert act(view := t.detach(), 1.5) is view
    np.testing.assert_array_equal(t.numpy(), expected)
    for make in (leaf, lambda *values: leaf(*values) * 1.0):
        u = make(2.0, 3.0)
        with no_grad():
            assert act(u, 1.5) is u
        np.testing.assert_array_equal(u.numpy(), expected)


@pytest.mark.parametrize("act", IN_PLACE)
def test_operators_in_place_make_a_new_tensor_where_a_gradient_is_recorded(act: Callable[..., Any]) -> None:
    x = leaf(2.0, 3.0)
    for before in (x * 1.0, Tensor(np.array([2.0, 3.0]))):
        after = act(before, x)
        assert after is not before
        np.testing.assert_array_equal(before.numpy(), [2, 3])
        testing.check_gradients(lambda a: act(a * 1.0, a), x.numpy())
        assert after.requires_grad
    with refused(ValueError, "leaf no_grad"):
        act(x, 1.0)
    np.testing.assert_array_equal(x.numpy(), [2, 3])


def test_a_training_loop_by_hand() -> None:
    w = leaf(1.0, -2.0)
    for _ in range(3):
        (w * w).sum().backward()
        with no_grad():
            w -= 0.25 * w.grad
        w.grad = None
    np.testing.assert_array_equal(w.numpy(), [0.125, -0.25])


REFUSED_WRITES: dict[str, tuple[Any, Any, Any, Any]] = {  # what t is, index (None: +=), value, error
    "int += float": (np.array([1, 2]), None, 1.5, TypeError),
    "int = float": (np.array([1, 2]), 0, 1.5, TypeError),
    "uint8 = 300": (np.array([1, 2], np.uint8), 0, 300, ValueError),
    "uint8 = int64": (np.array([1, 2], np.uint8), 0, np.array(1), TypeError),
    "bool = float": (np.array([True, False]), 0, 0.5, TypeError),
    "float = complex": (np.array([1.0, 2.0]), 0, np.complex64(1j), TypeError),
    "float = huge": (np.array([1.0, 2.0]), 0, HUGE, (TypeError, ValueError)),
    "float = text": (np.array([1.0, 2.0]), 0, "1", TypeError),
    "float = None": (np.array([1.0, 2.0]), 0, None, TypeError),
    "+= None": (np.array([1.0, 2.0]), None, None, TypeError),
    "+= larger": (np.array([1.0, 2.0]), None, np.ones((2, 2)), ValueError),
    "= larger": (np.array([1.0, 2.0]), slice(1), np.ones(2), ValueError),
    "out of range": (np.array([1.0, 2.0]), 2, 1.0, IndexError),
    "mask that does not fit": (np.array([1.0, 2.0]), np.ones(3, bool), 1.0, IndexError),
    "too many axes": (np.array([1.0, 2.0]), (0, 0), 1.0, ValueError),
    "read-only +=": (read_only(1.0, 2.0), None, 1.0, ValueError),
    "read-only =": (read_only(1.0, 2.0), 0, 1.0, ValueError),
    "repeated": (np.broadcast_to(1.0, 2), 0, 2.0, ValueError),
}


@pytest.mark.parametrize("case", REFUSED_WRITES)
def test_refused_writes_change_nothing(case: str) -> None:
    array, index, value, error = REFUSED_WRITES[case]
    before = array.copy()
    t = Tensor(array)
    with refused(error, "copy()" if case.startswith("read-only") else ""):
        if index is None:
            t += value
        else:
            t[index] = value
    np.testing.assert_array_equal(array, before)


@pytest.mark.parametrize(
    "write",
    [
        lambda x: x.__setitem__(0, 1.0),
        lambda x: (x * 2.0).__setitem__(0, 1.0),
        lambda x: Tensor([0.0]).__setitem__(0, x[0]),
    ],
)
def test_item_assignment_is_refused_where_a_gradient_is_recorded(write: Callable[[Tensor], None]) -> None:
    with refused(ValueError, "gradient no_grad()"):
        write(leaf(1.0, 2.0))


# A value that is written to after an op kept it


class Holder(nn.Module):
    def __init__(self, x: nn.Parameter) -> None:
        self.x = x


def no_grad_add(t: Tensor) -> None:
    with no_grad():
        t += 1.0


def a_step(x: Tensor) -> None:
    x.grad = Tensor(np.ones_like(x.numpy()))
    optim.SGD([x], lr=1.0).step()
    x.grad = None


DOORS: dict[str, Callable[[Any], Any]] = {
    "+=": no_grad_add,
    "item": lambda x: no_grad()(lambda: x.__setitem__(0, 1.0))(),
    "optimiser": a_step,
    "load_state_dict": lambda x: Holder(x).load_state_dict({"x": np.ones(3)}),
    "detach": lambda x: x.detach().__iadd__(1.0),
    "a view": lambda x: x.detach().reshape(3, 1)[1:].T.__iadd__(1.0),
    "a strided view": lambda x: Tensor(np.lib.stride_tricks.as_strided(x.numpy(), (2,))).__iadd__(1.0),
    "the array again": lambda x: Tensor(x.numpy()[:1]).__imul__(2.0),
}


@pytest.mark.parametrize("door", DOORS)
def test_a_write_after_an_op_kept_the_value_is_noticed(door: str) -> None:
    x = nn.Parameter([1.0, 2.0, 3.0])
    y, z, later = (x * x).sum(), x.exp().sum(), x.exp()
    harmless, views = (x + x - 3.0).sum(), x[1:].reshape(2, 1).sum()
    DOORS[door](x)
    for output, name in ((y, "multiply"), (z, "exp")):
        with refused(ValueError, f"{name} x (3,)" if name == "exp" else name):
            output.backward()
        assert x.grad is None
    harmless.backward()
    views.backward()
    np.testing.assert_array_equal(x.grad.numpy(), [2, 3, 3])
    DOORS["+="](later)
    with refused(ValueError, "exp"):
        later.sum().backward()
    x.grad = None
    (x * x).sum().backward()  # what is computed after the write is right
    np.testing.assert_array_equal(x.grad.numpy(), 2 * x.numpy())


def test_writes_are_noticed_each_time_and_forgotten_with_their_memory() -> None:
    x, known = leaf(1.0, 2.0), len(graph._writes)
    for _ in range(2):
        y = (x * x).sum()
        no_grad_add(x)
        with refused(ValueError, "multiply"):
            y.backward()
    del x, y
    gc.collect()
    assert len(graph._writes) <= known


def test_a_second_backward_after_a_step_is_refused() -> None:
    x = nn.Parameter([3.0])
    y = (x * x).sum()
    y.backward(retain_graph=True)
    optim.SGD([x], lr=0.1).step()
    with refused(ValueError, "multiply"):
        y.backward()


def test_statistics_of_batch_norm_are_written() -> None:
    x = Tensor(np.random.default_rng(0).standard_normal((4, 2)), requires_grad=True)
    norm = nn.BatchNorm1d(2, dtype=np.float64)
    kept = (norm.running_mean * x).sum()
    twice = (norm(x) * norm(2.0 * x)).sum()
    with refused(ValueError, "multiply"):
        kept.backward()
    twice.backward()  # statistics of the batch are kept, not the running ones


def cases_of(name: str) -> Iterator[tuple[Any, list[Tensor], Tensor, list[str]]]:
    """Some cases of an op: the op, its inputs, a gradient to start from, and the kinds of the inputs."""
    for seed in range(6):
        op, arrays = testing._case(REGISTRY[name], seed)
        kinds = [op.domains[spec.name].kind for spec in op.parsed.specs(len(arrays))]
        inputs = [Tensor(a.copy(), requires_grad=kind == "real") for a, kind in zip(arrays, kinds, strict=True)]
        shape = op(*inputs).shape
        yield op, inputs, Tensor(np.random.default_rng(seed).standard_normal(shape)), kinds


def overwrite(t: Tensor) -> None:
    with no_grad():
        t[...] = t.copy() if t.dtype.kind != "f" else np.full(t.shape, np.nan)


@pytest.mark.parametrize("name", [name for name in OPS if REGISTRY[name].differentiable])
def test_every_op_notices_writes_to_what_it_reads(name: str) -> None:
    """Where an op says that it does not read values, writing others changes no gradient."""
    for op, inputs, gy, kinds in cases_of(name):
        real = [x for x in inputs if x.requires_grad]
        expected = grad(op(*inputs), real, gy)
        y = op(*inputs)
        for i, kind in enumerate(kinds):
            if op.reads_values or kind == "index":
                values = inputs[i].numpy().copy()
                y = op(*inputs)
                overwrite(inputs[i])
                with refused(ValueError, f"{name} written"):
                    y.backward(gy)
                inputs[i].data[...] = values
                y = op(*inputs)
            else:
                overwrite(inputs[i])
        if y.data.flags.writeable:  # what broadcast_to returns is not
            overwrite(y)
        if op.reads_values:
            with refused(ValueError, f"{name} written"):
                y.backward(gy)
        else:
            for found, wanted in zip(grad(y, real, gy), expected, strict=True):
                np.testing.assert_array_equal(found.numpy(), wanted.numpy())


# Gradients are not lost, and misuse does not pass


class Loud(Tensor):
    """A tensor with an attribute."""


A, B = leaf(1.0, 2.0), leaf(3.0, 4.0)
IMAGE = np.ones((1, 1, 2, 2))
MISUSE: dict[str, tuple[Any, Callable[[], Any]]] = {
    "a tensor of a tensor": (ValueError, lambda: Tensor(A)),
    "a list of tensors": (TypeError, lambda: Tensor([A, B])),
    "a nested list": (TypeError, lambda: Tensor([[1.0, 2.0], [A[0], B[0]]])),
    "a tuple in a list": (TypeError, lambda: Tensor([(A[0],)])),
    "an array of objects": (TypeError, lambda: Tensor(np.array([A[0], None, B[0]], object))),
    "gradient of integers": (ValueError, lambda: Tensor(np.array([1]), requires_grad=True)),
    "gradient set on integers": (ValueError, lambda: setattr(Tensor(np.array([1])), "requires_grad", True)),
    "no gradient for what was computed": (ValueError, lambda: setattr(A * 2.0, "requires_grad", False)),
    "requires_grad='no'": (TypeError, lambda: Tensor([1.0], requires_grad="no")),  # type: ignore[arg-type]
    "a masked array": (TypeError, lambda: Tensor(np.ma.array([1.0, 2.0], mask=[0, 1]))),
    "masked rows": (TypeError, lambda: Tensor([np.ma.array([1.0, 2.0], mask=[0, 1])])),
    "grad = 3.0": (TypeError, lambda: setattr(A, "grad", 3.0)),
    "grad of another shape": (ValueError, lambda: setattr(A, "grad", Tensor(np.ones(3)))),
    "grad of another dtype": (ValueError, lambda: setattr(A, "grad", Tensor(np.ones(2, np.float32)))),
    "hook": (TypeError, lambda: A.register_hook(3)),  # type: ignore[arg-type]
    "forward hook": (TypeError, lambda: nn.Tanh().register_forward_hook("print")),  # type: ignore[arg-type]
    "kernel of 0 x 0": (ValueError, lambda: F.conv2d(IMAGE, np.ones((1, 1, 0, 0)))),
    "transposed 0 x 0": (ValueError, lambda: F.conv_transpose2d(IMAGE, np.ones((1, 1, 0, 0)))),
    "a layer of 0 x 0": (ValueError, lambda: nn.Conv2d(1, 1, 0)),
    "a window of 0": (ValueError, lambda: F.max_pool2d(IMAGE, 0)),
    "rtol=inf": (ValueError, lambda: testing.check_gradients(lambda x: x, np.ones(1), rtol=np.inf)),
    "eps=0": (ValueError, lambda: testing.check_gradients(lambda x: x, np.ones(1), eps=0)),
    "a huge integer": (ValueError, lambda: A * HUGE),
    "NumPy's complex numbers": (TypeError, lambda: A * np.complex64(1j)),
    "NumPy's text": (TypeError, lambda: A * np.str_("a")),
    "a tensor as no_grad's function": (TypeError, lambda: no_grad(A)),  # type: ignore[call-arg]
    "unused input": (ValueError, lambda: grad((A * 2.0).sum(), [A, B])),
}


@pytest.mark.parametrize("case", MISUSE)
def test_misuse_is_refused(case: str) -> None:
    error, act = MISUSE[case]
    with refused(error):
        act()
    assert A.grad is None
    assert not A.hooks


@pytest.mark.parametrize("loss", [F.cross_entropy, F.nll_loss, F.penalty_loss])
def test_labels_that_would_wrap_round_are_refused(loss: Callable[..., Tensor]) -> None:
    with refused((ValueError, IndexError), str(2**63 + 1)):
        loss(np.zeros((1, 3), np.float32), np.array([2**63 + 1], np.uint64))


def test_a_nan_in_a_transposed_kernel_stays_where_it_is() -> None:
    weight = np.ones((1, 1, 3, 3))
    weight[0, 0, 0, 0] = np.nan
    y = F.conv_transpose2d(np.ones((1, 1, 4, 4)), weight).numpy()[0, 0]
    assert np.isnan(y[:4, :4]).all()
    assert np.isfinite(y[4:]).all()
    assert np.isfinite(y[:, 4:]).all()


# NumPy's functions

C = A.detach()
OURS: dict[str, Callable[[Any, Any], Any]] = {
    "concatenate": lambda a, b: np.concatenate([a, b]), "stack": lambda a, b: np.stack([a, b], axis=1),
    "where": lambda a, b: np.where(np.array([True, False]), a, b), "einsum": lambda a, b: np.einsum("i,j->ij", a, b),
    "pad": lambda a, b: np.pad(a, (1, 2), constant_values=3.0), "sum": lambda a, b: np.sum(a, axis=0),
    "mean": lambda a, b: np.mean(a, keepdims=True), "var": lambda a, b: np.var(a), "max": lambda a, b: np.max(a),
    "amin": lambda a, b: np.amin(a, 0), "reshape": lambda a, b: np.reshape(a, (2, 1)), "copy": lambda a, b: np.copy(a),
    "transpose": lambda a, b: np.transpose(np.broadcast_to(a, (3, 2)), (1, 0)), "squeeze": lambda a, b: np.squeeze(a),
    "expand_dims": lambda a, b: np.expand_dims(a, 0), "matmul": np.matmul, "add": np.add, "power": np.power,
    "divide": lambda a, b: np.divide(1.0, a), "exp": lambda a, b: np.exp(a), "absolute": lambda a, b: np.abs(a),
    "maximum": lambda a, b: np.maximum(a, 1.5), "array + t": lambda a, b: np.array([5.0, 6.0]) + a,
    "array @ t": lambda a, b: np.ones((2, 2)) @ a, "scalar ** t": lambda a, b: np.float64(2) ** a,
    "some arrays": lambda a, b: np.concatenate([np.zeros(1), a, [1.0]]),
}  # fmt: skip
NOT_OURS: dict[str, Callable[[Any], Any]] = {
    "norm": np.linalg.norm, "median": np.median, "tan": np.tan, "add.reduce": np.add.reduce, "sort": np.sort,
    "multiply.outer": lambda a: np.multiply.outer(a, a), "add": lambda a: np.add(a, 1.0, out=np.zeros(2)),
    "sum": lambda a: np.sum(a, dtype=float), "pad": lambda a: np.pad(a, 1, mode="edge"),
    "vstack": lambda a: np.vstack([a, a]), "where": lambda a: np.where(a > 1), "std": lambda a: np.std(a, dtype=float),
    "copyto": lambda a: np.copyto(np.ones(2), a),
}  # fmt: skip


@pytest.mark.parametrize("name", OURS)
def test_numpys_functions_keep_the_graph(name: str) -> None:
    y, expected = OURS[name](A, B), OURS[name](A.numpy(), B.numpy())
    assert isinstance(y, Tensor)
    np.testing.assert_allclose(y.numpy(), expected)
    (g,) = grad(y, [A], np.ones(y.shape))
    assert g.shape == A.shape


@pytest.mark.parametrize("name", NOT_OURS)
def test_numpys_other_functions_are_refused_by_name(name: str) -> None:
    with refused(TypeError, name):
        NOT_OURS[name](A)


def test_what_numpy_asks_of_any_array() -> None:
    assert (np.shape(A), np.ndim(A), np.size(A), int(np.argmax(A))) == ((2,), 1, 2, 1)
    assert type(np.asarray(A)) is np.ndarray
    np.testing.assert_array_equal(np.logical_not(C > 1).numpy(), [True, False])


# Operators give way

FOREIGN: list[Any] = [None, "a", Decimal(1), Fraction(1, 2), 1j, object(), {}]


class Foreign:
    def answer(self, other: object) -> str:
        return "mine"

    __radd__ = __rsub__ = __rmul__ = __rtruediv__ = __rpow__ = __rmatmul__ = __rand__ = __ror__ = answer
    __gt__ = __ge__ = __lt__ = __le__ = __eq__ = __ne__ = answer  # type: ignore[assignment]
    __hash__ = object.__hash__


def test_operators_give_way_to_foreign_types() -> None:
    symbols = "add sub mul truediv pow matmul and_ or_ lt le gt ge eq ne iadd isub imul itruediv ipow"
    for name in symbols.split():
        t = A if name[0] != "i" else Tensor([1.0, 2.0])
        assert getattr(operator, name)(t, Foreign()) == "mine", name


def test_numpys_text_equals_nothing() -> None:
    assert operator.eq(A, np.str_("a")) is False


@pytest.mark.parametrize("other", FOREIGN, ids=lambda other: type(other).__name__)
def test_foreign_values_equal_nothing_and_do_not_add(other: Any) -> None:
    assert (operator.eq(A, other), other == A, operator.ne(A, other)) == (False, False, True)
    for act in (operator.add, operator.mul, operator.matmul, operator.lt, operator.and_):
        for pair in ((A, other), (other, A)):
            with pytest.raises(TypeError):
                act(*pair)


# no_grad on everything that can be called or suspended


def records() -> bool:
    return (A * A).requires_grad


def test_no_grad_bare_called_reused_and_nested() -> None:
    one = no_grad()
    assert [no_grad(records)(), no_grad()(records)(), one(records)(), one(records)()] == [False] * 4
    with one:
        with one:
            assert not records()
        assert not records()
    assert records()
    with pytest.raises(KeyError), one:
        raise KeyError
    assert records()
    assert no_grad(records).__name__ == "records"


@no_grad
def steps(seen: list[Any]) -> Iterator[Any]:
    """Yields whether it records; notes what it is sent and what is thrown at it."""
    try:
        while True:
            try:
                sent = yield records()
                if sent == "end":
                    return "returned"
                seen.append(sent)
            except KeyError as error:
                seen.append(error)
    finally:
        seen.append(f"closed, recording: {records()}")


def test_no_grad_on_a_generator() -> None:
    seen: list[Any] = []
    g = steps(seen)
    error = KeyError()
    for step in (lambda: next(g), lambda: g.send(7), lambda: g.throw(error)):
        assert step() is False
        assert records()  # between the steps
    with pytest.raises(StopIteration, match="returned"):
        g.send("end")
    assert seen == [7, error, "closed, recording: False"]
    assert records()
    next(g := steps(seen))
    g.close()
    assert seen[3:] == ["closed, recording: False"]
    assert records()


def test_a_generator_may_be_closed_in_another_thread() -> None:
    @no_grad
    def inner() -> Iterator[bool]:
        yield records()

    def plain() -> Iterator[bool]:
        with no_grad():
            yield records()

    for g in (steps([]), inner(), plain()):
        with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other:
            assert one.submit(next, g).result(10) is False
            other.submit(g.close).result(10)
            assert other.submit(records).result(10)
        assert records()


@types.coroutine
def pause() -> Iterator[None]:
    yield


def test_no_grad_on_a_coroutine_that_is_driven_by_hand() -> None:
    @no_grad
    async def work() -> bool:
        await pause()
        return records()

    coroutine = work()
    coroutine.send(None)
    assert records()
    with pytest.raises(StopIteration) as end:
        coroutine.send(None)
    assert end.value.value is False


def test_no_grad_on_an_async_generator() -> None:
    @no_grad
    async def stream() -> AsyncIterator[Any]:
        try:
            sent = yield records()
            await asyncio.sleep(0)
            yield sent, records()
        except KeyError:
            yield "caught", records()
        finally:
            await asyncio.sleep(0)
            closed.append(records())

    closed: list[bool] = []

    async def use() -> list[Any]:
        g, found = stream(), [[each async for each in stream()]]
        for step in (lambda: g.asend(None), lambda: g.asend(7), lambda: g.athrow(KeyError())):
            found.append(await step())
            assert records()
        await g.aclose()
        return found

    assert asyncio.run(use()) == [[False, (None, False)], False, (7, False), ("caught", False)]
    assert closed == [False, False]


def test_tasks_may_share_one_no_grad() -> None:
    """Also where the one that entered first leaves first."""
    one = no_grad()

    async def main() -> list[bool]:
        inside, outside = asyncio.Event(), asyncio.Event()

        async def first() -> bool:
            with one:
                await inside.wait()
            outside.set()
            return records()

        async def second() -> bool:
            with one:
                inside.set()
                await outside.wait()
            return records()

        return list(await asyncio.gather(first(), second()))

    assert asyncio.run(main()) == [True, True]


# copy.deepcopy and pickle

COPIES: list[Callable[[Any], Any]] = [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))]


class Family(nn.Module):
    """Layers that share a weight and refer to their parent, with buffers, random numbers, a hook and an alias."""

    def __init__(self) -> None:
        self.first, self.second = nn.Linear(2, 2, rng=0), nn.Linear(2, 2, rng=1)
        self.second.weight = self.first.weight
        self.first.parent = self
        self.norm, self.drop, self.conv = nn.BatchNorm1d(2), nn.Dropout(0.5, rng=3), nn.Conv2d(1, 1, 1, rng=0)
        self.register_forward_hook(_same)

    def forward(self, x: Any) -> Tensor:
        return self.drop(self.norm(self.second(self.first(x)))) * self.conv(np.ones((1, 1, 1, 1), np.float32)).sum()


def _same(module: nn.Module, inputs: Any, y: Tensor) -> None:
    """A hook that changes nothing."""


def train(model: nn.Module, optimizer: optim.Optimizer, schedule: Any, rounds: range) -> list[np.ndarray]:
    for i in rounds:
        x = np.random.default_rng(i).standard_normal((4, 2)).astype(np.float32)
        optimizer.zero_grad()
        loss = F.mse_loss(model(x), np.zeros((4, 2), np.float32))
        if isinstance(optimizer, optim.StochasticDiagonalLM):
            plain = F.mse_loss(model.first(x), np.zeros((4, 2), np.float32))
            optimizer.estimate(plain)
        loss.backward()
        optimizer.step()
        schedule.step()
    return [t.numpy().copy() for t in model.state_dict().values()]


OPTIMIZERS: dict[str, Callable[[Family], optim.Optimizer]] = {
    "SGD": lambda m: optim.SGD(m.parameters(), 0.1),
    "momentum": lambda m: optim.SGD(m.parameters(), 0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "Adam": lambda m: optim.Adam(m.parameters(), 0.1),
    "AdamW": lambda m: optim.AdamW(m.parameters(), 0.1),
    "StochasticDiagonalLM": lambda m: optim.StochasticDiagonalLM([m.first.weight, m.first.bias], 0.1),
}


@pytest.mark.parametrize("duplicate", COPIES, ids=["deepcopy", "pickle"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_copied_model_and_its_optimiser_train_on_to_the_same_bits(name: str, duplicate: Callable[[Any], Any]) -> None:
    model = Family()
    optimizer = OPTIMIZERS[name](model)
    schedule = optim.StepLR(optimizer, 2, 0.5)
    train(model, optimizer, schedule, range(3))
    other, its_optimizer, its_schedule = duplicate((model, optimizer, schedule))
    assert its_optimizer.params[0] is other.first.weight is other.second.weight is not model.first.weight
    assert its_schedule.optimizer is its_optimizer
    assert other.first.parent is other
    assert not np.shares_memory(other.first.weight.numpy(), model.first.weight.numpy())
    np.testing.assert_array_equal(other.first.weight.grad.numpy(), model.first.weight.grad.numpy())
    before = [t.numpy().copy() for t in model.state_dict().values()]
    expected = train(other, its_optimizer, its_schedule, range(3, 6))
    for mine, kept in zip(model.state_dict().values(), before, strict=True):
        np.testing.assert_array_equal(mine.numpy(), kept)
    for mine, theirs in zip(train(model, optimizer, schedule, range(3, 6)), expected, strict=True):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("duplicate", COPIES, ids=["deepcopy", "pickle"])
def test_leaves_are_copied_and_graphs_are_not(duplicate: Callable[[Any], Any]) -> None:
    x = Loud([1.0, 2.0], requires_grad=True)
    x.name, x.grad = "x", Tensor([3.0, 4.0])
    y = duplicate(x)
    assert (type(y), y.name, y.requires_grad, y.op, y.dtype) == (Loud, "x", True, None, np.float32)
    assert (y.numpy().tolist(), y.grad.numpy().tolist()) == ([1, 2], [3, 4])
    assert not np.shares_memory(y.numpy(), x.numpy())
    chain: Tensor = x
    for _ in range(10_000):
        chain = chain + 1.0
    with refused(ValueError, "add detach()"):
        duplicate(chain)
    assert duplicate(chain.detach()).numpy().tolist() == [10_001, 10_002]
    pair = duplicate([x, {"x": x}])
    assert pair[0] is pair[1]["x"]


# Nothing half done


def unchanged(objects: Any, act: Callable[[], Any], error: Any, names: str = "") -> None:
    before = pickle.dumps(objects)
    with refused(error, names):
        act()
    assert pickle.dumps(objects) == before


def a_model() -> tuple[nn.Module, optim.Optimizer]:
    model = nn.Sequential(nn.Linear(2, 2, rng=0), nn.Linear(2, 1, rng=1, dtype=np.float64), nn.BatchNorm1d(1))
    optimizer = optim.Adam(model.parameters(), 0.1)
    for p in optimizer.params:
        p.grad = Tensor(np.ones_like(p.numpy()))
    optimizer.step()
    return model, optimizer


@pytest.mark.parametrize("spoil", [
    lambda s: s | {"1.bias": np.ones(7)}, lambda s: s | {"more": 1}, lambda s: {k: s[k] for k in list(s)[:-1]},
    lambda s: s | {"2.num_batches_tracked": np.array(0.5)}, lambda s: s | {"1.bias": ["a"]},
    lambda s: list(s), lambda s: None,
])  # fmt: skip
def test_a_module_that_refuses_a_state_is_unchanged(spoil: Callable[[Any], Any]) -> None:
    model, optimizer = a_model()
    state = spoil({name: np.full(t.shape, 9, t.dtype) for name, t in model.state_dict().items()})
    unchanged((model, optimizer), lambda: model.load_state_dict(state), (ValueError, TypeError))


def test_a_state_on_the_modules_own_memory_is_read_before_it_is_written() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2))
    memory = np.array([1.0, 2.0, 3.0, 4.0], np.float32)
    mean, var = model[0].running_mean, model[0].running_var
    mean.data, var.data = memory[:2], memory[2:]
    model.load_state_dict(model.state_dict() | {"0.running_mean": var.detach(), "0.running_var": Tensor(memory[1:3])})
    assert memory.tolist() == [3, 4, 2, 3]


@pytest.mark.parametrize("spoil", [
    lambda s: s | {"steps": [HUGE] * 6}, lambda s: s | {"steps": [-1] * 6}, lambda s: s | {"steps": [1]},
    lambda s: s | {"steps": 3}, lambda s: s | {"lr": HUGE}, lambda s: s | {"lr": 0.0}, lambda s: s | {"lr": "0.1"},
    lambda s: s | {"algorithm": "SGD"}, lambda s: s | {"tensors": {}}, lambda s: s | {"more": 1}, lambda s: 3,
    lambda s: s | {"lr": 5.0, "steps": [9] * 6, "tensors": s["tensors"] | {"5.v": np.ones(7)}},
])  # fmt: skip
def test_an_optimiser_that_refuses_a_state_is_unchanged(spoil: Callable[[Any], Any]) -> None:
    _, optimizer = a_model()
    unchanged(optimizer, lambda: optimizer.load_state_dict(spoil(optimizer.state_dict())), (ValueError, TypeError))


SCHEDULES: dict[str, Callable[[optim.Optimizer], Any]] = {
    "StepLR": lambda o: optim.StepLR(o, 1, 0.5), "growing": lambda o: optim.StepLR(o, 1, 1e300),
    "OneCycle": lambda o: optim.OneCycle(o, 1.0, 5), "PassRates": lambda o: optim.PassRates(o, [(1, 0.1), (2, 0.2)]),
}  # fmt: skip


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_that_refuses_is_unchanged(name: str) -> None:
    schedule = SCHEDULES[name](optim.SGD([leaf(1.0)], 0.1))
    state = schedule.state_dict()
    wrong = [{"count": HUGE}, {"count": -1}, {"count": 0.5}, {"more": 1}]
    wrong += [{key: HUGE} for key in state if key != "count"] + [{"base_lr": 0.0, "count": 1}] * ("base_lr" in state)
    for each in wrong:
        unchanged(schedule, lambda each=each: schedule.load_state_dict(state | each), (ValueError, TypeError))
    for _ in range(1100):  # until the rate leaves the range of numbers, or the schedule ends
        before = pickle.dumps(schedule)
        try:
            schedule.step()
        except ValueError:
            assert pickle.dumps(schedule) == before
            return
    assert name == "PassRates"


@pytest.mark.parametrize("make", [
    lambda o: optim.StepLR(o, HUGE), lambda o: optim.StepLR(o, 1, HUGE), lambda o: optim.OneCycle(o, HUGE, 5),
    lambda o: optim.OneCycle(o, 1.0, HUGE), lambda o: optim.PassRates(o, [(HUGE, 0.1)]),
    lambda o: setattr(o, "lr", HUGE), lambda o: optim.OneCycle(o, 1.0, 5, div_factor=HUGE),
])  # fmt: skip
def test_a_schedule_that_cannot_be_made_leaves_the_rate_alone(make: Callable[[Any], Any]) -> None:
    optimizer = optim.SGD([leaf(1.0)], 0.1)
    unchanged(optimizer, lambda: make(optimizer), ValueError)


def test_a_move_to_a_device_that_is_not_there_changes_nothing() -> None:
    model, _ = a_model()
    unchanged(model, lambda: model.to("cuda:99"), ValueError)


@pytest.mark.parametrize("spoil", [
    lambda norm: norm.running_var.data.setflags(write=False), lambda norm: setattr(norm, "momentum", HUGE),
    lambda norm: norm.num_batches_tracked.data.setflags(write=False),
    lambda norm: setattr(norm.running_var, "data", np.ones(3, np.float32)),
    lambda norm: setattr(norm.running_var, "data", np.ones(2, np.int64)),
])  # fmt: skip
def test_batch_norm_with_unfit_buffers_changes_none(spoil: Callable[[Any], Any]) -> None:
    norm = nn.BatchNorm1d(2)
    spoil(norm)
    unchanged(norm, lambda: norm(np.ones((3, 2), np.float32)), (ValueError, TypeError))


# Threads, signals and forks


def convolve(seed: int, size: int = 9, images: int = 2) -> list[np.ndarray]:
    """The output and the gradients of two convolutions, which use all of the kernels' scratch."""
    rng = np.random.default_rng(seed)
    shapes = (images, 2, size, size), (3, 2, 3, 3), (2, 3, 3, 3)
    x, w, v = (Tensor(rng.standard_normal(shape), requires_grad=True) for shape in shapes)
    y = F.conv2d(F.conv2d(x, w).tanh(), v)
    (y * y).sum().backward()
    return [y.numpy(), *(t.grad.numpy() for t in (x, w, v))]


@pytest.mark.parametrize("name", ["matmul", "copyto", "empty"])
def test_a_handler_may_run_ops_inside_any_kernel(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a signal handler does in the middle of a kernel, where and as often as it can come."""
    alone, others = convolve(0), [convolve(seed) for seed in (1, 2)]
    function, calls, inside = getattr(np, name), 0, False

    def interrupted(*arguments: Any, **options: Any) -> Any:
        nonlocal calls, inside
        if not inside:
            inside = True
            for seed, expected in zip((1, 2), others, strict=True):  # in a context of its own: backward records nothing
                for a, b in zip(contextvars.Context().run(convolve, seed), expected, strict=True):
                    np.testing.assert_array_equal(a, b)
            inside, calls = False, calls + 1
        return function(*arguments, **options)

    monkeypatch.setattr(np, name, interrupted)
    for a, b in zip(convolve(0), alone, strict=True):
        np.testing.assert_array_equal(a, b)
    assert calls >= 2


def test_a_gradient_that_comes_in_between_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """backward on a leaf whose gradient is being added to: by a handler, in the same thread, and by another thread."""
    x = leaf(1.0)
    x.grad = Tensor(np.zeros(1))
    add = REGISTRY["add"].forward

    def once(self: Any, xp: Any, a: Any, b: Any) -> Any:
        monkeypatch.setattr(REGISTRY["add"], "forward", add)
        (x * 10.0).backward()
        thread = threading.Thread(target=lambda: (x * 100.0).backward())
        thread.start()
        thread.join(10)
        assert not thread.is_alive()
        return add(self, xp, a, b)

    monkeypatch.setattr(REGISTRY["add"], "forward", once)
    (x * 1.0).backward()
    assert x.grad.item() == 111


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks only where there are any")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_process_forked_while_a_thread_stores_a_gradient_can_go_on() -> None:
    stored, forked = threading.Event(), threading.Event()

    def store() -> None:
        with tensor_file._storing:
            stored.set()
            forked.wait(10)

    thread = threading.Thread(target=store)
    thread.start()
    assert stored.wait(10)
    child = os.fork()
    if not child:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(5)  # ends the process if the lock is never free
        x = leaf(1.0)
        (x * 2.0).backward()
        os._exit(0 if x.grad is not None and x.grad.item() == 2 else 1)
    forked.set()
    thread.join()
    assert os.waitpid(child, 0)[1] == 0


def test_scratch_is_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "_own_scratch", cpu._Scratch())
    monkeypatch.setattr(cpu, "_KEPT", 200_000)
    most = 0
    for size in range(9, 59):
        convolve(0, size)
        kept = sum(buffer.nbytes for buffer in cpu._own_scratch.free.values())
        assert kept == cpu._own_scratch.bytes <= 200_000
        most = max(most, kept)
    assert most > 50_000


def test_shapes_are_not_remembered_without_bound() -> None:
    add = REGISTRY["add"]()
    for size in range(200):
        add(np.zeros(size), 1.0)
    assert len(vars(add)["_known_shapes"]) < 100
    with refused(ValueError, "add shapes (2,) (3,)"):
        add(np.zeros(2), np.zeros(3))


# grad


def test_grad_of_what_was_not_used_is_none_and_of_what_does_not_matter_zero() -> None:
    for output in (A * 2.0, F.where(np.array([True, False]), A, B * 0.0), A + A):
        found = grad(output.sum(), [A, leaf(1.0), B], allow_unused=True)
        assert found[0].shape == (2,)
        assert found[1] is None
    (zeros,) = grad(F.where(np.array([False, False]), A, 1.0).sum(), [A])
    assert zeros.numpy().tolist() == [0, 0]
    assert grad((A**0).sum(), A)[0].numpy().tolist() == [0, 0]
    assert A.grad is None


@pytest.mark.parametrize("create_graph", [False, True])
def test_results_of_grad_never_share_memory(create_graph: bool) -> None:
    start = Tensor(np.ones(2))
    for y in (A + B, A.reshape(1, 2)[0] + B.T, F.concatenate([A, B])[1:3], F.stack([A, B])[0] + A - (-B), A.copy() + B):
        found = grad(y, [A, B, A], start, create_graph=create_graph)
        arrays = [start.numpy(), *(g.numpy() for g in found)]
        for i, one in enumerate(arrays):
            assert not any(np.shares_memory(one, other) for other in arrays[:i])


@pytest.mark.parametrize("pool", [F.avg_pool2d, F.max_pool2d])
def test_windows_of_one_pixel_are_copied(pool: Callable[..., Tensor]) -> None:
    x = np.random.default_rng(0).random((2, 1, 3, 3))
    y = pool(x, 1).numpy()
    np.testing.assert_array_equal(y, x)
    assert not np.shares_memory(y, x)


# Indices

SHAPES = hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=4)


@st.composite
def indexed(draw: st.DrawFn) -> tuple[np.ndarray, Any]:
    """An array and an index into it: basic, integer arrays, a mask, or these mixed."""
    shape = draw(SHAPES)
    x = np.random.default_rng(0).standard_normal(shape)
    kind = draw(st.sampled_from(["basic", "integers", "mask", "mixed"]))
    if kind == "basic":
        return x, draw(hnp.basic_indices(shape, allow_newaxis=True))
    if kind == "mask":
        return x, draw(hnp.arrays(bool, shape[: draw(st.integers(0, len(shape)))]))
    if kind == "integers" and min(shape):
        return x, draw(hnp.integer_array_indices(shape, dtype=draw(st.sampled_from([np.int8, np.uint16, np.int64]))))
    parts: list[Any] = []
    for size in shape[: draw(st.integers(1, len(shape)))]:
        whole = st.integers(-max(1, size), max(0, size - 1))  # of an empty axis, none is in range
        parts.append(draw(st.slices(size) | st.lists(whole, min_size=2, max_size=2) | whole | hnp.arrays(bool, size)))
        if draw(st.integers(0, 5)) == 0:
            parts.append(draw(st.sampled_from([None, True, False])))
    return x, (*parts, ...) if draw(st.booleans()) else tuple(parts)


@given(indexed())
@example((np.arange(24.0).reshape(2, 3, 4), (slice(None), [0, 2, 1], 1)))
@example((np.arange(24.0).reshape(2, 3, 4), ([0, 1], slice(None), [[1], [3]])))
@example((np.arange(24.0).reshape(2, 3, 4), (slice(None), [0, 1, 2], None, 3)))
@example((np.arange(24.0).reshape(2, 3, 4), (..., 3)))
@example((np.arange(6.0).reshape(2, 3), []))
def test_indices_are_numpys(case: tuple[np.ndarray, Any]) -> None:
    array, index = case
    try:
        expected = array[index]
    except IndexError:
        with pytest.raises((IndexError, ValueError)):
            Tensor(array)[index]
        return
    x = Tensor(array, requires_grad=True)
    y = x[index]
    np.testing.assert_array_equal(y.numpy(), expected)
    gy = np.random.default_rng(1).standard_normal(expected.shape)
    gx = np.zeros_like(array)
    np.add.at(gx, index, gy)
    np.testing.assert_allclose(grad(y, [x], gy)[0].numpy(), gx, atol=1e-12)
    for value in (7, gy, gy[..., :1] if gy.ndim else gy):
        expected, memory = array.copy(), array.copy()
        expected[index] = value
        t = Tensor(memory)
        t[Tensor(index) if type(index) is np.ndarray else index] = value
        np.testing.assert_array_equal(memory, expected)


@pytest.mark.parametrize(
    "index", [(True, 0, 1), (False, 0), (0, True, [1, 0]), True, np.True_, np.array(True), (None, True, 1)], ids=repr
)
def test_true_and_false_are_indices(index: Any) -> None:
    array = np.arange(6.0).reshape(2, 3)
    np.testing.assert_array_equal(Tensor(array)[index].numpy(), array[index])


@pytest.mark.parametrize(
    "index", [3, -4, [0, 3], np.array([2**63 + 1], np.uint64), np.array([[-4]]), Tensor(np.array([3])), HUGE]
)
def test_indices_out_of_range_are_refused(index: Any) -> None:
    for t in (leaf(1.0, 2.0, 3.0), Tensor([1.0, 2.0, 3.0])):
        with refused(IndexError, "getitem axis 0"):
            t[index]
    with refused(IndexError, "assign axis 0"):
        t[index] = 1.0
    with refused(IndexError, "getitem"):
        t[..., ...]


# Rows


@pytest.mark.parametrize("shape", [(), (3,), (0, 2), (2, 0), (2, 3)])
def test_stacking_is_numpys(shape: tuple[int, ...]) -> None:
    a, b = np.random.default_rng(0).standard_normal((2, *shape))
    for axis in range(-len(shape) - 1, len(shape) + 1):
        x, expected = Tensor(a, requires_grad=True), np.stack([a, b, a], axis)
        y = F.stack([x, b, x], axis)
        np.testing.assert_array_equal(y.numpy(), expected)
        (gx,) = grad(y, [x], expected)
        np.testing.assert_array_equal(gx.numpy(), a + a)


def operations(rows: int, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    """How many ops the backward pass of a loop over rows runs, and how many numbers they write."""
    x = Tensor(np.arange(rows * 2.0).reshape(rows, 2), requires_grad=True)
    y = F.stack([row * row for row in x])
    np.testing.assert_array_equal(y.numpy(), x.numpy() ** 2)
    ops = written = 0
    call = Op.__call__

    def counted(self: Any, *inputs: Any) -> Tensor:
        nonlocal ops, written
        result = call(self, *inputs)
        ops, written = ops + 1, written + result.size
        return result

    with monkeypatch.context() as patch:
        patch.setattr(Op, "__call__", counted)
        y.sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), 2 * x.numpy())
    return ops, written


def test_a_loop_over_rows_costs_linear_time_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    few, many = operations(64, monkeypatch), operations(1024, monkeypatch)
    assert many[0] <= 16.5 * few[0]
    assert many[1] <= 25 * few[1]  # with the logarithm; 256 times as many if each row wrote all of the gradient
    assert len(list(Tensor(np.zeros((0, 3)), requires_grad=True))) == 0
    with pytest.raises(TypeError):
        iter(leaf(1.0).sum())
