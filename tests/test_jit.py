"""What `jit` replays is what the function computes, to the bit: every op, both networks, random programs; and memory.

Everything runs twice, as it is and through `jit`, on its own copies, and what it leaves behind (results, parameters,
gradients, the state of optimisers, statistics) is compared as bytes. What could falsify a replay is in
test_jit_falsified.py.
"""

import copy
import gc
import tracemalloc
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models import LeNet5, LeNet5_1998
from tests import strict
from tests.replays import CALLS, batch, net, shown, state, training
from tinygrad_lenet import (
    REAL,
    JitError,
    Op,
    Tensor,
    curvature,
    grad,
    jit,
    nn,
    no_grad,
    optim,
    plan,
    testing,
    zeros_like,
)
from tinygrad_lenet import functional as F
from tinygrad_lenet.backend import available, default_device, transfer, use
from tinygrad_lenet.graph import repeated
from tinygrad_lenet.op import REGISTRY

LAYOUTS = ("contiguous", "gapped", "reversed", "transposed", "batch-last")

# Every op


OPS = sorted(name for name, op in REGISTRY.items() if op.__module__.startswith("tinygrad_lenet."))
BY_VALUE = {"argwhere"}  # the shapes of their results depend on values


def applied(op: Op, real: Sequence[int]) -> Callable[..., Any]:
    """The function of an op's inputs, and a cotangent if it has gradients, that returns result and gradients."""

    def function(*given: Tensor) -> Any:
        if not real:
            return op(*given)
        *inputs, cotangent = given
        y = op(*inputs)
        return y.detach(), grad(y, [inputs[i] for i in real], cotangent)

    return function


PLACES = ["cpu", "graphs", "cuda"]  # as a plan, and as graphs


@contextmanager
def placed(place: str) -> Iterator[str]:
    """Within this block new tensors lie in a place; its device."""
    if place == "cuda" and place not in available():
        pytest.skip("no working CUDA device")
    with use("strict" if place == "graphs" else place), strict.with_graphs() if place == "graphs" else nullcontext():
        yield default_device()


@pytest.mark.parametrize("place", [*PLACES, "strict"])  # and op by op
@pytest.mark.parametrize("name", OPS)
@settings(max_examples=max(5, settings().max_examples // 4))
@given(data=st.data())
def test_op_is_replayed(name: str, place: str, data: st.DataObject) -> None:
    with placed(place) as device, use("cpu"):
        replay_op(name, device, data)


def replay_op(name: str, place: str, data: st.DataObject) -> None:
    op, arrays = data.draw(testing.cases(REGISTRY[name]))
    layouts = data.draw(st.lists(st.sampled_from(LAYOUTS), min_size=len(arrays), max_size=len(arrays)))
    dtype = data.draw(st.sampled_from([np.float32, np.float64]))
    domains = [op.domains[spec.name] for spec in op.parsed.specs(len(arrays))]
    real = [i for i, domain in enumerate(domains) if domain.kind == "real"]

    def tensors(values: Sequence[np.ndarray]) -> list[Tensor]:
        cast = [x.astype(dtype) if x.dtype.kind == "f" else x for x in values]
        placed = [testing._on_device(x, place, layout) for x, layout in zip(cast, layouts, strict=True)]
        return [Tensor(x, requires_grad=i in real) for i, x in enumerate(placed)]

    if name == "transfer":
        op.device = place
    twin = copy.deepcopy(op)
    eager, replayed = applied(op, real), jit(applied(twin, real))
    if name in BY_VALUE:
        with pytest.raises(JitError, match="depends on values"):
            replayed(*tensors(arrays))
        return
    shape = copy.deepcopy(op)(*tensors(arrays)).shape
    rng = np.random.default_rng(0)
    for call in range(CALLS):
        values = testing._draw_values(domains, [x.shape for x in arrays], rng)
        cotangents = [rng.normal(size=shape).astype(dtype)] if real else []
        a, b = ([*tensors(values), *[Tensor(c, device=place) for c in cotangents]] for _ in range(2))
        assert shown(replayed(*a)) == shown(eager(*b)), f"call {call} of {op} on {layouts}"
        assert shown(a) == shown(b)
    assert replayed.plan is not None


# Networks


def images(i: int, n: int = 2) -> tuple[Tensor, Any]:
    rng = np.random.default_rng(i)
    x, y = rng.normal(size=(n, 1, 32, 32)).astype(np.float32), rng.integers(0, 10, n)
    return Tensor(x), y if default_device() == "cpu" else Tensor(y)


def lenet(compiled: Any, **settings: Any) -> Any:
    """What training, predicting and batches of other sizes leave of a LeNet-5 of today."""
    model = LeNet5(rng=0, **settings)
    optimizer = optim.SGD(model.parameters(), 0.05, momentum=0.9)
    schedule = optim.OneCycle(optimizer, 0.1, 4 * CALLS)

    @compiled
    def step(x: Tensor, y: np.ndarray, smoothing: float = 0.0) -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y, label_smoothing=smoothing)
        loss.backward()
        optimizer.step()
        schedule.step()
        return loss

    @compiled
    @no_grad
    def predict(x: Tensor) -> Any:
        scores = model(x)
        return scores, scores.argmax(axis=1)

    found = []
    for i in range(CALLS):
        model.train()
        found += [shown(step(*images(i, n), smoothing=0.1 * (n == 3))) for n in (2, 3)]
        model.eval()
        found += [shown(predict(images(i, n)[0])) for n in (1, 2)]
    return found, state(model, optimizer, schedule)


def lenet_1998(compiled: Any, j: float | None, codes: bool) -> Any:
    """Training, with and without its competitive term, by the learning rates of the paper."""
    model = LeNet5_1998("sqrt-fan-in", codes, rng=0)
    optimizer = optim.StochasticDiagonalLM(model.parameters(), 1e-3)
    step = compiled(
        lambda x, y: (
            optimizer.zero_grad(),
            F.penalty_loss(model(x), y, j).backward(),
            optimizer.step(),
        )[:0]
    )
    bend = compiled(lambda x, y: curvature(F.penalty_loss(model(x), y, j), list(model.parameters())))
    predict, found = compiled(model.predict), []
    for i in range(CALLS):
        x, y = images(i)
        if i % 3 == 0:
            optimizer.estimate(F.penalty_loss(model(x), y, j))
        found += [shown([step(x, y), bend(x, y), predict(x), model.reject(x, 0.5)])]
    return found, state(model, optimizer)


@pytest.fixture
def fallbacks(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Ops of which a plan has no calls of its own, so that it runs them whole; and "memory", if values share none.

    Replays are right all the same, but slow.
    """
    found: set[str] = set()
    computed, lay_out = plan._computed, plan.Plan.lay_out

    def noted(y: Any, op: Op, inputs: Any) -> None:
        found.add(op.name)
        computed(y, op, inputs)

    def laid_out(self: Any, results: Any, given: Any = (), share: bool = True) -> None:
        found.update([] if share else ["memory"])
        lay_out(self, results, given, share)

    monkeypatch.setattr(plan, "_computed", noted)
    monkeypatch.setattr(plan.Plan, "lay_out", laid_out)
    return found


@pytest.mark.parametrize("act", ["tanh", "sigmoid", "relu"])
@pytest.mark.parametrize("pool", ["avg", "max"])
@pytest.mark.parametrize("more", [{}, {"dropout": 0.3, "batch_norm": True}])
@pytest.mark.parametrize("place", PLACES)
def test_lenet5_is_replayed(act: str, pool: str, more: dict[str, Any], place: str, fallbacks: set[str]) -> None:
    if place == "graphs" and act != "tanh":
        pytest.skip("the CPU tries all")
    with placed(place):
        networks = [lenet(compiled, activation=act, pool=pool, **more) for compiled in (jit, lambda f: f)]
    assert shown(networks[0]) == shown(networks[1])
    assert fallbacks <= {"random_key", "bernoulli"}


@pytest.mark.parametrize("j", [None, 0.1])
@pytest.mark.parametrize("codes", [False, True])
@pytest.mark.parametrize("place", PLACES)
def test_lenet5_of_1998_is_replayed(j: float | None, codes: bool, place: str, fallbacks: set[str]) -> None:
    with placed(place):
        networks = [lenet_1998(compiled, j, codes) for compiled in (jit, lambda f: f)]
    assert shown(networks[0]) == shown(networks[1])
    assert not fallbacks


# Random programs

# What a program does to its values, numbers of shape (N, 4); w is a parameter (4, 4), b one (4,).
STEPS: dict[str, Callable[..., Any]] = {
    "add": lambda p, x, y: x + y,
    "multiply": lambda p, x, y: x * y,
    "tanh": lambda p, x, y: x.tanh(),
    "relu": lambda p, x, y: x.relu() - 0.5,
    "divide": lambda p, x, y: x / (y * y + 1.0),
    "power": lambda p, x, y: (x * x + 0.5) ** 1.5,
    "matmul": lambda p, x, y: x @ p.w + p.b,
    "matmul by itself": lambda p, x, y: (x.T @ y).tanh()[:1] * x,
    "softmax": lambda p, x, y: F.softmax(x * p.b) * y,
    "centre": lambda p, x, y: x - y.mean(axis=0),
    "scale by a maximum": lambda p, x, y: x / (y.max(axis=1, keepdims=True) + 5.0),
    "where": lambda p, x, y: F.where(x > y, x, 0.5 * y),
    "maximum": lambda p, x, y: F.maximum(x, y),
    "reversed view": lambda p, x, y: x[:, ::-1] + y[::-1],
    "columns": lambda p, x, y: F.concatenate([x[:, 2:], y[:, :2]], axis=1),
    "reshape": lambda p, x, y: (x.T.reshape(x.shape) + y).reshape(-1).reshape(x.shape),
    "stack": lambda p, x, y: F.stack([x, y, x]).sum(axis=0),
    "pick": lambda p, x, y: x[:, [3, 0, 0, 1]] * y,
    "conv": lambda p, x, y: F.conv2d(x.reshape(-1, 1, 2, 2), p.w.reshape(4, 1, 2, 2)).reshape(x.shape) * y,
    "pool": lambda p, x, y: F.max_pool2d(x.reshape(-1, 4, 1, 1).broadcast_to((len(x), 4, 2, 2)), 2).reshape(x.shape),
    "batch norm": lambda p, x, y: F.batch_norm(x, p.mean, p.var, p.b, None, training=len(x) > 1),
    "dropout": lambda p, x, y: F.dropout(x, 0.3, True, p.rng),
    "detach": lambda p, x, y: x.detach() * y,
    "gradient of a copy": lambda p, x, y: cubed(x.detach()) * y,
    "gradient of a new leaf": lambda p, x, y: cubed(Tensor(np.ones(x.shape, np.float32))) * y,
    "write": lambda p, x, y: p.write(x, y),
    "cast": lambda p, x, y: x.astype("float64").astype("float32") + y,
    "einsum": lambda p, x, y: F.einsum("nk,jk->nj", x, p.w) * 0.5,
}


def cubed(x: Tensor) -> Tensor:
    """The derivative of x**3, through which the loss gives x, a leaf that the step makes, a gradient."""
    x.requires_grad = True
    return grad((x**3).sum(), [x], create_graph=True)[0]


OPTIMIZERS: dict[str, Callable[[Any], Any]] = {
    "SGD": lambda params: optim.SGD(params, 0.05),
    "momentum": lambda params: optim.SGD(params, 0.05, momentum=0.9, nesterov=True, weight_decay=0.01),
    "Adam": lambda params: optim.Adam(params, 0.05),
    "AdamW": lambda params: optim.AdamW(params, 0.05, weight_decay=0.1),
}


class Program:
    """A function made of drawn steps, with everything that it changes."""

    def __init__(self, steps: Any, optimizers: Any, schedules: Any, zero: bool, compiled: Any) -> None:
        rng = np.random.default_rng(0)
        self.w = Tensor(rng.normal(size=(4, 4)).astype(np.float32), requires_grad=True)
        self.b = Tensor(rng.normal(size=4).astype(np.float32), requires_grad=True)
        self.mean, self.var = Tensor(np.zeros(4, np.float32)), Tensor(np.ones(4, np.float32))
        self.total = Tensor(np.zeros(4, np.float32))
        self.rng = np.random.default_rng(1)
        self.steps, self.zero = steps, zero
        self.optimizers = [
            OPTIMIZERS[name](params) for name, params in zip(optimizers, self.shares(optimizers), strict=False)
        ]
        self.schedules = [
            optim.StepLR(o, 2, 0.5) for o, wanted in zip(self.optimizers, schedules, strict=False) if wanted
        ]
        self.run = compiled(self.train)

    def shares(self, optimizers: Any) -> list[list[Tensor]]:
        return [[self.w, self.b]] if len(optimizers) == 1 else [[self.w], [self.b]]

    def write(self, x: Tensor, y: Tensor) -> Tensor:
        with no_grad():
            self.total += x.sum(axis=0)
            self.total[1:3] = 0.5 * y[0, :2]
        return x + self.total

    def train(self, x: Tensor) -> Any:
        if self.zero:
            for optimizer in self.optimizers:
                optimizer.zero_grad()
        values = [x, x * self.b]
        for name, i, j in self.steps:
            values.append(STEPS[name](self, values[i % len(values)], values[j % len(values)]))
        loss = (values[-1].tanh() * values[-2]).mean() + (self.w * self.w).sum() * 0.01
        loss.backward()
        for optimizer in self.optimizers:
            optimizer.step()
        for schedule in self.schedules:
            schedule.step()
        return loss, [values[-1].detach()], self.w.grad

    def seen(self) -> Any:
        tensors = [self.w, self.b, self.w.grad, self.b.grad, self.mean, self.var, self.total]
        return shown([tensors, [each.state_dict() for each in (*self.optimizers, *self.schedules)]])


@settings(max_examples=settings().max_examples * 2)
@given(
    steps=st.lists(st.tuples(st.sampled_from(sorted(STEPS)), st.integers(0, 9), st.integers(0, 9)), max_size=8),
    optimizers=st.lists(st.sampled_from(sorted(OPTIMIZERS)), max_size=2),
    schedules=st.tuples(st.booleans(), st.booleans()),
    zero=st.booleans(),
    events=st.lists(
        st.sampled_from(["2", "3", "2", "keep", "drop", "rate", "load", "replace"]), min_size=6, max_size=14
    ),
)
def test_program_is_replayed(steps: Any, optimizers: Any, schedules: Any, zero: bool, events: list[str]) -> None:
    eager, replayed = (Program(steps, optimizers, schedules, zero, compiled) for compiled in (lambda f: f, jit))
    kept: list[Any] = []
    for i, event in enumerate(["2", "2", "3", "3", *events, "2", "3"]):
        pair: list[Any] = []
        for program in (eager, replayed):
            if event in "23":
                x = batch(i, int(event), 4)
                with np.errstate(all="ignore"):
                    y = program.run(x)
                pair.append([y if event == "2" else shown(y), x, program.seen()])
            elif event == "keep":
                pair.append(program.w.grad)
            elif event == "drop":
                program.w.grad = None
            elif event == "rate" and program.optimizers:
                program.optimizers[0].lr = 0.01 * (i + 1)
            elif event == "load" and program.optimizers:
                program.optimizers[-1].load_state_dict(program.optimizers[-1].state_dict())
            elif event == "replace":
                program.b.data = program.b.data * np.float32(0.5)
        kept.append(pair)
        assert all(shown(pair[0]) == shown(pair[-1]) for pair in kept if pair), f"{event}, event {i}"
    assert replayed.run.plan is not None


def test_a_plan_that_computes_something_else_is_refused() -> None:
    """As it does for an op that gives another result each time, and does not say so."""
    runs = [0.0]

    class Drifting(Op):
        """y = x plus a number that grows with each run."""

        signature = "drifting(x[...]) -> y[...]"
        domains = {"x": REAL}

        def forward(self, xp: Any, x: Any) -> Any:
            runs[0] += 1
            return x + xp.asarray(runs[0], x.dtype)

        def backward(self, gy: Tensor, y: Tensor, x: Tensor) -> Any:
            return gy

    try:
        run = jit(Drifting())
        run(batch(0))
        with pytest.raises(JitError):
            run(batch(1))
    finally:
        del REGISTRY["drifting"]


# Memory


def test_memory_is_flat_and_plans_are_freed() -> None:
    model = net()
    step = training(jit, model, optim.Adam(model.parameters()))
    kept = weakref.ref(step)
    for i in range(100):
        step(batch(i))
    gc.collect()
    gc.disable()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0], len(gc.get_objects())
        for i in range(2000):
            step(batch(i))
        after = tracemalloc.get_traced_memory()[0], len(gc.get_objects())
    finally:
        tracemalloc.stop()
        gc.enable()
    assert after[0] - before[0] < 20_000
    assert after[1] - before[1] < 50
    gone = weakref.ref(step.plan)
    del step
    gc.collect()
    assert kept() is None
    assert gone() is None


def test_batches_that_were_recorded_are_freed() -> None:
    model = net()
    step = training(jit, model, optim.Adam(model.parameters()))
    batches = [batch(i) for i in range(4)]
    gone = [weakref.ref(x.data) for x in batches] + [weakref.ref(x) for x in batches]
    while batches:
        step(batches.pop())
    gc.collect()
    assert [ref() for ref in gone] == [None] * 8


def test_images_are_transposed_once() -> None:
    """A convolution and its weight gradient both need images last in memory, and use one copy, however large."""
    layer = nn.Conv2d(1, 2, 3, rng=0)
    step = jit(lambda x: layer(x).sum().backward())
    for i in range(CALLS):
        step(Tensor(np.random.default_rng(i).normal(size=(64, 1, 24, 24)).astype(np.float32)))
    copies = [call for call in step.plan.calls if call.function is np.copyto]
    assert sum(x.arguments[0].shape == (1, 24, 24, 64) for x in copies) == 1


def test_numbers_are_arrays_unless_they_do_not_fit() -> None:
    step = jit(lambda x: (0.1 * x * 1e300, -0.0 * x, 0.0 * x))
    for _ in range(CALLS):
        with pytest.warns(RuntimeWarning, match="overflow"):
            found = step(Tensor([1.0, -2.0]))
    assert shown(found) == shown((Tensor([np.inf, -np.inf]), Tensor([-0.0, 0.0]), Tensor([0.0, -0.0])))
    kinds = [type(x) for call in step.plan.calls for x in call.arguments]
    assert (kinds.count(float), kinds.count(np.ndarray)) == (1, 3)


def test_what_is_written_at_a_moving_place_starts_anew() -> None:
    @no_grad
    def mark(x: Tensor, place: Tensor) -> list[Tensor]:
        moving, still = zeros_like(x), zeros_like(x)
        moving[place] = x[0]
        still[[3]] = x[0]
        return [moving, still]

    step, inputs = jit(mark), [(Tensor([i, 1.0, 2.0, 3.0]), Tensor(np.array([i]))) for i in range(4)]
    assert [shown(step(*each)) for each in inputs] == [shown(mark(*each)) for each in inputs]


def test_a_step_outside_leaves_gradients_where_they_are() -> None:
    model = LeNet5(rng=0)
    optimizer = optim.Adam(model.parameters())
    gradient = jit(lambda x, y: F.cross_entropy(model(x), y).backward())
    for i in range(2 * CALLS):
        before = [weakref.ref(p if p.grad is None else p.grad) for p in model.parameters()]  # which keep nothing alive
        optimizer.zero_grad()
        gradient(*images(i))
        optimizer.step()
    assert all(known() is p.grad for known, p in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize("place", ["graphs", "cuda"])
@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_training_steps_are_one_graph(name: str, place: str) -> None:
    with placed(place):
        model = LeNet5(rng=0)
        optimizer = OPTIMIZERS[name](list(model.parameters()))
        if isinstance(optimizer, optim.StochasticDiagonalLM):
            optimizer.estimate(F.mse_loss(model(images(0)[0]), 0.0))

        @jit
        def step(x: Tensor, y: Tensor) -> Tensor:
            for _ in range(2):
                optimizer.zero_grad()
                loss = F.cross_entropy(model(x), y)
                loss.backward()
                optimizer.step()
            return loss

        for i in range(CALLS):
            optimizer.lr = 0.01 / (i + 1)
            step(*images(i))
        kinds = [what.split(":")[0] for what, _ in step.plan._parts]
        assert (kinds.count("graph"), set(kinds)) == (1, {"graph", "gradient"})
        kept = [p.grad for p in model.parameters()]
        values = shown(kept)
        step(*images(9))  # writes to other memory
        assert shown(kept) == values != shown([p.grad for p in model.parameters()])


def test_what_a_graph_cannot_hold_runs_between_two() -> None:
    with placed("graphs"):
        w = Tensor([1.0, 2.0, 3.0], requires_grad=True)
        optimizer = optim.SGD([w], 0.1)
        schedule = optim.StepLR(optimizer, 1)
        step = jit(lambda x: ((x * 2.0 * w).sum().backward(), schedule.step(), x * 3.0)[2])
        found = [shown([step(Tensor([1.0, 2.0, float(i)])), w.grad, optimizer.lr]) for i in range(CALLS)]
        kinds = [what.split(":")[0] for what, _ in step.plan._parts if what != "gradient"]
        assert kinds == ["read gradient", "graph", "_Schedule.step", "graph"]
        w.grad, schedule.count, optimizer.lr = None, 0, 0.1
        assert found == [
            shown([step.function(Tensor([1.0, 2.0, float(i)])), w.grad, optimizer.lr]) for i in range(CALLS)
        ]


@pytest.mark.parametrize("work", [
    lambda x: strict.strict_xp.asarray(np.ones(3)),
    lambda x: strict.strict_xp.array([1.0, 2.0]),
    lambda x: transfer(np.ones(3), "strict"),
    lambda x: transfer(x, "cpu"),
    lambda x: x[x > 0],
    lambda x: strict.strict_xp.where(x > 0),
    lambda x: strict.strict_xp.argwhere(x),
    lambda x: x.item(),
    lambda x: bool(x),
])  # fmt: skip
def test_the_double_refuses_in_a_graph_what_a_gpu_refuses(work: Any) -> None:
    graphs, x = strict.StrictGraphs(), strict.StrictArray(np.ones(1))
    work(x)
    with graphs.aside():
        graphs.begin()
        try:
            with pytest.raises((RuntimeError, TypeError)):
                work(x)
        finally:
            graphs.abandon()
    with pytest.raises(AssertionError):
        graphs.begin()


def test_dropout_draws_anew_before_its_graph() -> None:
    with placed("graphs"):
        rng = np.random.default_rng(0)
        step = jit(lambda x: F.dropout(F.dropout(x * 2.0, 0.5, True, rng) * 3.0, 0.1, True, rng).sum())
        found = [step(Tensor(np.ones(50))).item() for _ in range(CALLS)]
        assert [what.split(":")[0] for what, _ in step.plan._parts] == ["random_key", "random_key", "graph"]
        rng.bit_generator.state = np.random.default_rng(0).bit_generator.state
        assert found == [step.function(Tensor(np.ones(50))).item() for _ in range(CALLS)]
        assert len(set(found)) > 1


def halve(params: Sequence[Tensor]) -> None:
    """What changes gradients by other means than ops, as a sum over ranks does."""
    for p in params:
        p.grad = Tensor(p.grad.data * 0.5)


def test_graphs_see_what_calls_between_them_did() -> None:
    def programs(compiled: Any) -> Any:
        w, v = (Tensor([1.0, 2.0, 3.0], requires_grad=True) for _ in range(2))
        optimizer = optim.SGD([w], 0.1)
        schedule, halved = optim.StepLR(optimizer, 1), repeated(halve)
        summed = compiled(
            lambda x: (optimizer.zero_grad(), (x * w * w).sum().backward(), halved([w]), optimizer.step())[:0]
        )
        added = compiled(lambda x: (schedule.step(), (x * 2.0 * v).sum().backward())[:0])

        @compiled
        @no_grad
        def constant(x: Tensor) -> Tensor:
            t = Tensor(np.zeros(3))
            t += x
            return t * 2.0

        found = []
        for i in range(CALLS):
            x = Tensor([1.0, 2.0, float(i)])
            found.append(shown([summed(x), added(x), constant(x), w, w.grad, v.grad, optimizer.lr]))
        return found

    with placed("graphs"):
        assert programs(jit) == programs(lambda f: f)


def test_what_a_graph_overwrote_is_not_differentiated() -> None:
    with placed("graphs"):
        w, x = Tensor([1.0, 2.0], requires_grad=True), Tensor([3.0, 4.0])
        optimizer = optim.SGD([w], 0.1)
        double = jit(no_grad(lambda: x.__imul__(2.0).sum()))
        train = jit(lambda: (optimizer.zero_grad(), (w * w).sum().backward(), optimizer.step())[:0])
        for i in range(2 * CALLS):
            y = (w * x).sum()
            (double, train)[i % 2]()
            with pytest.raises(ValueError, match="written to"):
                y.backward()


def test_a_setting_of_any_plain_type_is_noticed() -> None:
    class Signed(optim.SGD):
        sign: Any = None

        def _update(self, xp: Any, numbers: Any, gradient: Any, change: Any, *state: Any) -> None:
            super()._update(xp, numbers, gradient, change, *state)
            if self.sign == "up" or isinstance(self.sign, np.generic):
                change *= -1.0

    def program(compiled: Any) -> Any:
        w = Tensor([1.0, 2.0], requires_grad=True)
        optimizer = Signed([w], 0.1)
        step = compiled(lambda: (optimizer.zero_grad(), (w * w).sum().backward(), optimizer.step())[:0])
        found = []
        for sign in (None, None, None, "up", "up", "down", np.float32(-1), None):
            optimizer.sign = sign
            step()
            found.append(shown(w))
        return found

    with placed("graphs"):
        assert program(jit) == program(lambda f: f)
