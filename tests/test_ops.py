"""Every op of the registry, on every backend: whoever adds an op adds its tests.

`testing.check_op` says what is checked. An op adds nothing here; its oracle goes into tests/oracles.py.
"""

import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.oracles import ORACLES
from tests.strict import StrictArray, no_host_reads, on_device, strict_xp
from tinygrad_lenet import Op, Tensor, backend, grad, testing
from tinygrad_lenet import functional as F
from tinygrad_lenet.op import REAL, REGISTRY, Domain
from tinygrad_lenet.ops import lenet_1998

OPS = sorted(name for name, op in REGISTRY.items() if op.__module__.startswith("tinygrad_lenet."))
REAL_INPUTS = [
    (name, i) for name in OPS for i, x in enumerate(REGISTRY[name].parsed.inputs)
    if REGISTRY[name].domains[x.name].kind == "real"
]  # fmt: skip
# Inputs on which the output does not depend but by jumps:
FLAT = {("max_pool2d_grad", 0), ("max_pool2d_pick", 0), ("extreme_grad", 1), ("extreme_grad", 2)}
PLACES = ["cpu", "plain", "strict", "cuda"]


@contextmanager
def running(place: str) -> Iterator[str]:
    """The device to test on: "plain" is the CPU without its kernels, "strict" the CPU under CuPy's rules.

    Where there is a second device it is taken, so that what is made on the current one shows.
    """
    if place == "cuda" and "cuda" not in backend.available():
        pytest.skip("no GPU, or no CuPy")
    with pytest.MonkeyPatch.context() as patch:
        if place == "plain":
            patch.setattr(backend, "_kernels", {})
        if place == "strict":
            with no_host_reads():
                yield "strict:1"
        elif place == "cuda":
            yield "cuda:1" if "cuda:1" in backend.available() else "cuda"
        else:
            yield "cpu"


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", OPS)
@given(data=st.data())
def test_op(name: str, place: str, data: st.DataObject) -> None:
    # A backward pass is made of ops, too: where they and it are right, its own derivative is that of the CPU.
    order = 1 if place in ("plain", "strict") else 2
    with running(place) as device:
        op, arrays = data.draw(testing.cases(REGISTRY[name]))
        testing.check_op(op, arrays, ORACLES[name], device, order)


@pytest.mark.parametrize(("name", "i"), REAL_INPUTS)
def test_gradient_wrong_by_one_percent_is_refused(name: str, i: int) -> None:
    op_class = REGISTRY[name]
    backward = op_class.backward
    refused = 0

    def scaled(self: Op, gy: Tensor, y: Tensor, *inputs: Any) -> Any:
        gradients = backward(self, gy, y, *inputs)
        gradients = list(gradients) if isinstance(gradients, tuple) else [gradients]
        right = gradients[i]
        if right is not None:
            gradients[i] = (lambda: 1.01 * right()) if callable(right) else 1.01 * right
        return tuple(gradients)

    def refuses(case: testing.Case) -> None:
        nonlocal refused
        op, arrays = case
        if i >= len(arrays):
            return  # an optional input, left out
        inputs = [Tensor(a, requires_grad=k == i) for k, a in enumerate(arrays)]
        y = op(*inputs)
        (g,) = grad(y, inputs[i], np.random.default_rng(0).standard_normal(y.shape))
        if np.abs(g.numpy()).max(initial=0) < 1e-6:
            return
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(op_class, "backward", scaled)
            with pytest.raises(AssertionError, match=r"order 1.*backward gives"):
                testing.check_op(op, arrays)
        refused += 1

    for times in (0.2, 1, 10):  # drawn shapes may be empty, and conditions may hold nowhere
        if not refused:
            settings(max_examples=int(settings().max_examples * times))(given(testing.cases(op_class))(refuses))()
    assert (refused == 0) == ((name, i) in FLAT)


@pytest.mark.parametrize("name", OPS)
def test_op_is_complete(name: str) -> None:
    assert name in ORACLES, f"op {name} has no oracle; write one into tests/oracles.py"
    assert REGISTRY[name].__doc__
    method = {"getitem": "__getitem__", "transfer": "to", "absolute": "__abs__", "negative": "__neg__",
              "subtract": "__sub__", "multiply": "__mul__", "divide": "__truediv__", "power": "__pow__",
              "equal": "__eq__", "not_equal": "__ne__", "less": "__lt__", "less_equal": "__le__", "greater": "__gt__",
              "greater_equal": "__ge__", "logical_and": "__and__", "logical_or": "__or__", "logical_not": "__invert__",
              "argwhere": "__getitem__", "assign": "__setitem__", "full_like": "backward",
              "soft_cross_entropy": "cross_entropy"}  # fmt: skip
    is_public = (
        hasattr(Tensor, method.get(name, name)) or hasattr(Tensor, f"__{name}__") or method.get(name, name) in F.__all__
    )
    carried = {"add_at", "add_to", "chain", "max_pool2d_pick", "gather_kernels", "subsample2d_transpose"}
    carries_a_gradient = name.endswith("_grad") or name in carried
    assert is_public or carries_a_gradient or name in ("bernoulli", "random", "random_key"), (
        f"op {name} can be reached by no method, operator or function"
    )


def test_no_oracle_without_an_op() -> None:
    assert set(ORACLES) == set(OPS)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    ("symbol", "low"),
    [(operator.add, -2), (operator.sub, -2), (operator.mul, -2), (operator.truediv, 0.5), (operator.pow, 0.5),
     (F.maximum, -2), (F.minimum, -2)],
)  # fmt: skip
def test_numbers_meet_tensors_from_either_side(symbol: Callable[..., Tensor], low: float, place: str) -> None:
    x = np.random.default_rng(0).uniform(low, 2, (2, 3))
    with running(place) as device:
        for number in (1.5, 2):
            for function in (lambda t, n=number: symbol(t, n), lambda t, n=number: symbol(n, t)):
                testing.check_gradients(function, x, device=device)
                half = function(Tensor(x.astype(np.float32), requires_grad=True, device=device))
                assert half.dtype == np.float32
                assert np.allclose(half.numpy(), function(Tensor(x)).numpy(), rtol=1e-5)


# An op that lacks something is refused where it is defined.


def _parts(**changes: Any) -> dict[str, Any]:
    parts = {
        "__doc__": "y = 2 x; dy/dx = 2.",
        "__module__": __name__,
        "signature": "test_double(x[...]) -> y[...]",
        "domains": {"x": REAL},
        "forward": lambda self, xp, x: 2 * x,
        "backward": lambda self, gy, y, x: 2.0 * gy,
    } | changes
    return {name: part for name, part in parts.items() if part is not None}


@pytest.mark.usefixtures("scratch_ops")
def test_complete_op_is_registered_and_checked() -> None:
    op_class = type("Double", (Op,), _parts())
    assert REGISTRY["test_double"] is op_class
    testing.check_op(op_class(), [np.array([1.0, 2.0])], oracle=lambda x: x + x)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"__doc__": None}, "op Double lacks a docstring"),
        ({"signature": None}, "op Double lacks signature"),
        ({"domains": None}, "op Double lacks domains"),
        ({"forward": None}, "op Double lacks forward"),
        ({"backward": None}, "op Double lacks backward"),
        ({"forward": None, "backward": None}, "op Double lacks forward, backward"),
        ({"domains": {"y": REAL}}, "`domains` is for"),
        ({"__annotations__": {"factor": float}}, r"names are \['factor'\], but `parameters` .+ \[\]"),
        ({"parameters": {"factor": (1.0,)}}, r"names are \[\], but `parameters` .+ \['factor'\]"),
        ({"signature": "add(x[...]) -> y[...]"}, "the name 'add' is taken"),
    ],
)
@pytest.mark.usefixtures("scratch_ops")
def test_incomplete_op_is_refused(changes: dict[str, Any], message: str) -> None:
    before = dict(REGISTRY)
    with pytest.raises(TypeError, match=message):
        type("Double", (Op,), _parts(**changes))
    assert before == REGISTRY


@pytest.mark.usefixtures("scratch_ops")
@pytest.mark.parametrize("signature", ["double(x[...])", "double(x...) -> y[...]", "double() -> y[...]"])
def test_unreadable_signature_is_refused(signature: str) -> None:
    with pytest.raises(ValueError, match="does not read like"):
        type("Double", (Op,), _parts(signature=signature))


# The double is as strict as it claims.


@pytest.mark.parametrize(
    "act",
    [
        lambda x: np.asarray(x),
        lambda x: np.exp(x),
        lambda x: np.ones(2) + x,
        lambda x: x + np.ones(2),
        lambda x: x @ np.ones(2),
        lambda x: x[np.array([0])],
        lambda x: x[[0, 1]],
        lambda x: x.__setitem__(0, np.ones(())),
        lambda x: strict_xp.add(x, np.ones(2)),
        lambda x: strict_xp.where(np.array([True, False]), x, x),
        lambda x: strict_xp.where(True, x, x),
        lambda x: strict_xp.sum(np.ones(2)),
        lambda x: strict_xp.sum(x, where=True),
        lambda x: strict_xp.max(x, initial=0),
        lambda x: strict_xp.add(x, x, out=np.ones(2)),
        lambda x: strict_xp.matmul(x, 2.0),
        lambda x: strict_xp.concatenate([x, np.ones(2)]),
        lambda x: strict_xp.lib.stride_tricks.as_strided(x, (2,), (8,), writeable=False),
        lambda x: strict_xp.asarray([None]),
        lambda x: x.astype(">f4"),
        lambda x: [1, 2][x[0].astype(int)],
    ],
)
def test_strict_double_refuses(act: Callable[[StrictArray], Any]) -> None:
    with pytest.raises(TypeError):
        act(StrictArray(np.ones(2)))


def test_strict_double_behaves_as_cupy() -> None:
    x = StrictArray(np.arange(6.0).reshape(2, 3))
    for y in (x.sum(), strict_xp.max(x), x[1, 2], x[0].mean(), strict_xp.argmax(x)):
        assert type(y) is StrictArray
        assert y.shape == ()
    x[0, 0] = 7  # elements and slices are views
    corner = x[0, 0]
    corner += 1
    assert float(x[0, 0]) == 8
    assert (2 * x).dtype == np.float64
    assert (2.0 * x.astype("float32")).dtype == np.float32
    for name in ("testing", "nditer", "vectorize", "put_along_axis", "errstate"):
        with pytest.raises(AttributeError, match="CuPy lacks it"):
            getattr(strict_xp, name)
    for read in (bool, float, int, StrictArray.item, StrictArray.tolist):
        with no_host_reads(), pytest.raises(TypeError, match="CUDA graph"):
            read(strict_xp.asarray(1))
    backwards = StrictArray(np.arange(6.0)).reshape(2, 3).T
    for y in (strict_xp.exp(backwards), backwards + backwards, strict_xp.where(backwards > 0, backwards, 0.0)):
        assert y.flags.c_contiguous
    assert strict_xp.zeros_like(backwards).flags.f_contiguous
    assert not hasattr(x.flags, "writeable")
    assert x[strict_xp.asarray([2, -3])]._host[:, 1].tolist() == [1, 4]  # out of range, and not noticed
    for act in (lambda: x + 2**64, lambda: strict_xp.where(x > 0, x, -(2**70))):
        with pytest.raises(OverflowError):
            act()
    assert Tensor([1.0, 2.0], device="strict").device == "strict"


def test_what_a_table_says_goes_up_once_for_each_device(monkeypatch: pytest.MonkeyPatch) -> None:
    lenet_1998._uploaded.cache_clear()
    uploads = []
    asarray = strict_xp.asarray
    monkeypatch.setattr(strict_xp, "asarray", lambda a: uploads.append(a) or asarray(a))
    scatter, gather = (
        REGISTRY["scatter_kernels"](places=(0, 5, 3), channels=(2, 3)), REGISTRY["gather_kernels"](places=(0, 5, 3)),
    )  # fmt: skip
    for _ in range(3):
        for device in ("strict", "strict:1"):
            y = scatter(Tensor(np.ones((3, 1, 1)), device=device))
            assert gather(y).numpy().sum() == 3
    assert len(uploads) == 2


def test_strict_double_has_two_devices() -> None:
    x = Tensor([[1.0, 2.0]], device="strict:1").data
    for view in (x.T, x[0], x[:, ::2], x.reshape(2), x[:0], strict_xp.zeros((0, 2)).T):
        assert view.base is not None
    acts = (
        lambda: x + 1, lambda: x.sum(), lambda: x.astype("float64"), lambda: x.fill(0), lambda: x.__setitem__(0, 1.0),
        lambda: x[strict_xp.asarray([0])], lambda: strict_xp.concatenate([x, x]),
        lambda: strict_xp.zeros((2, 2))[on_second],
    )  # fmt: skip
    on_second = Tensor(np.array([0]), device="strict:1").data
    for act in acts:
        with pytest.raises(ValueError, match="current device"):
            act()
    with on_device(1):
        for act in acts[:5]:
            act()
        assert strict_xp.zeros(2).device == (x * 2).device == 1
    assert strict_xp.zeros(2).device == x.copy().device == 0


def test_strict_devices_do_not_mix() -> None:
    with pytest.raises(ValueError, match="different devices"):
        Tensor([1.0], device="strict") + Tensor([1.0])
    with pytest.raises(ValueError, match="different devices"):
        Tensor([1.0], device="strict") + Tensor([1.0], device="strict:1")


@given(data=st.data())
def test_drawn_values_keep_their_distance(data: st.DataObject) -> None:
    domains = (Domain(kinks=(-1.0, 0.5)), Domain(distinct=True), Domain(distinct=True), Domain(kind="boolean"))
    shapes = data.draw(st.tuples(*[st.sampled_from([(), (1,), (2, 3), (0, 2), (4, 5)])] * 4))
    x, a, b, condition = testing._draw_values(domains, shapes, np.random.default_rng(data.draw(st.integers(0, 9))))
    assert (x.shape, a.shape, b.shape, condition.shape) == shapes
    assert all(np.abs(x - kink).min(initial=9) >= 0.1 - 1e-12 for kink in (-1.0, 0.5))
    values = np.sort(np.concatenate([a.ravel(), b.ravel()]))
    assert np.diff(values).min(initial=9) >= 0.3 * 4 / max(1, values.size)
    assert condition.dtype == np.bool_
    for each in (x, a, b):
        assert np.abs(each).max(initial=0) <= 2
