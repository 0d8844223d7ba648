"""What `jit` replays is what the function computes: to the bit, or refused.

Every program runs twice, as it is and through `jit`, on its own copies of everything, and what it leaves behind (results,
parameters, gradients, the state of optimisers, statistics) is compared as bytes.
"""

import contextlib
import copy
import functools
import gc
import os
import pickle
import random
import threading
import tracemalloc
import types
import warnings
import weakref
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models import LeNet5, LeNet5_1998
from tinygrad_lenet import Op, Tensor, curvature, grad, jit, nn, no_grad, optim, testing
from tinygrad_lenet import functional as F
from tinygrad_lenet.anomaly import AnomalyError, detect_anomaly
from tinygrad_lenet.jit import JitError
from tinygrad_lenet.op import REGISTRY

CALLS = 6  # of each function: two are recorded, the others replayed
LAYOUTS = ("contiguous", "gapped", "reversed", "transposed", "batch-last")


def shown(x: Any) -> Any:
    """What can be compared of a value: types, dtypes, shapes and bytes."""
    if isinstance(x, Tensor):
        return "tensor", x.requires_grad, shown(x.data)
    if isinstance(x, np.ndarray):
        return x.dtype.str, x.shape, x.tobytes()
    if isinstance(x, dict):
        return {key: shown(value) for key, value in x.items()}
    if isinstance(x, (tuple, list)):
        return type(x).__name__, [shown(each) for each in x]
    return type(x).__name__, repr(x)


# Every op


OPS = sorted(name for name, op in REGISTRY.items() if op.__module__.startswith("tinygrad_lenet."))
BY_VALUE = {"argwhere"}  # the shapes of their results depend on values


def applied(op: Op, real: Sequence[int]) -> Callable[..., Any]:
    """The function of an op's inputs, and a cotangent if it has gradients, that returns the result and the gradients."""

    def function(*given: Tensor) -> Any:
        if not real:
            return op(*given)
        *inputs, cotangent = given
        y = op(*inputs)
        return y.detach(), grad(y, [inputs[i] for i in real], cotangent)

    return function


@pytest.mark.parametrize("name", OPS)
@settings(max_examples=max(8, settings().max_examples // 3))
@given(data=st.data())
def test_op_is_replayed(name: str, data: st.DataObject) -> None:
    op, arrays = data.draw(testing.cases(REGISTRY[name]))
    layouts = data.draw(st.lists(st.sampled_from(LAYOUTS), min_size=len(arrays), max_size=len(arrays)))
    dtype = data.draw(st.sampled_from([np.float32, np.float64]))
    domains = [op.domains[spec.name] for spec in op.parsed.specs(len(arrays))]
    real = [i for i, domain in enumerate(domains) if domain.kind == "real"]

    def tensors(values: Sequence[np.ndarray]) -> list[Tensor]:
        cast = [x.astype(dtype) if x.dtype.kind == "f" else x for x in values]
        placed = [testing._on_device(x, "cpu", layout) for x, layout in zip(cast, layouts, strict=True)]
        return [Tensor(x, requires_grad=i in real) for i, x in enumerate(placed)]

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
        a, b = ([*tensors(values), *map(Tensor, cotangents)] for _ in range(2))
        assert shown(replayed(*a)) == shown(eager(*b)), f"call {call} of {op} on {layouts}"
        assert shown(a) == shown(b)
    assert replayed.plan is not None


# Ways to falsify a recording


PROGRAMS: list[Any] = []


def program(verdict: str) -> Callable[[Any], Any]:
    """A program, given `jit` or nothing in its place, returns what it saw: "right", or "refused" by an error."""

    def add(function: Any) -> Any:
        PROGRAMS.append(pytest.param(function, verdict, id=function.__name__))
        return function

    return add


right, refused = program("right"), program("refused")


@pytest.mark.parametrize(("run", "verdict"), PROGRAMS)
def test_recording_cannot_be_falsified(run: Callable[[Any], Any], verdict: str) -> None:
    expected = shown(run(lambda function: function))
    if verdict == "refused":
        with pytest.raises((JitError, TypeError)):
            run(jit)
    else:
        assert shown(run(jit)) == expected


def batch(i: int, *shape: int) -> Tensor:
    return Tensor(np.random.default_rng(i).normal(size=shape or (3, 2)).astype(np.float32))


def calls(function: Any, before: Callable[[int], Any] = lambda i: None) -> list[Any]:
    """What calls with new values return; ``before(i)`` is done before each."""
    found = []
    for i in range(CALLS):
        before(i)
        found.append(shown(function(batch(i))))
    return found


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 4, rng=0), nn.Tanh(), nn.Linear(4, 3, rng=1))


def weight() -> Tensor:
    return Tensor(np.array([1.5, -2.0], np.float32), requires_grad=True)


def state(*things: Any) -> list[Any]:
    """Parameters, gradients, buffers and the state of optimisers, as they are now."""
    found: list[Any] = []
    for x in things:
        if isinstance(x, nn.Module):
            found += [[name, shown(t), shown(t.grad)] for name, t in x._state()]
        else:
            found.append(shown([x, x.grad] if isinstance(x, Tensor) else x.state_dict()))
    return found


def training(compiled: Any, model: nn.Module, optimizer: Any, *more: Any) -> Any:
    @compiled
    def step(x: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = (model(x) ** 2).mean()
        loss.backward()
        optimizer.step()
        for each in more:
            each.step()
        return loss

    return step


# Python values that a function reads

SCALE = 1.0


@right
def global_number_changes(compiled: Any) -> Any:
    return calls(compiled(lambda x: x * SCALE), lambda i: globals().update(SCALE=1.0 + i // 3))


@right
def closure_number_changes(compiled: Any) -> Any:
    factor = 1.0

    def change(i: int) -> None:
        nonlocal factor
        factor = 1.0 + i // 3

    return calls(compiled(lambda x: x * factor), change)


@right
def dictionary_changes(compiled: Any) -> Any:
    settings = {"scale": 1.0}
    return calls(compiled(lambda x: x * settings["scale"]), lambda i: settings.update(scale=1.0 + i // 3))


@right
def nested_list_changes(compiled: Any) -> Any:
    table = [[1.0]]
    return calls(compiled(lambda x: x * table[0][0]), lambda i: table[0].__setitem__(0, 1.0 + i // 3))


@right
def attribute_of_an_attribute_changes(compiled: Any) -> Any:
    config = SimpleNamespace(inner=SimpleNamespace(scale=1.0))
    return calls(compiled(lambda x: x * config.inner.scale), lambda i: setattr(config.inner, "scale", 1.0 + i // 3))


@right
def attribute_of_an_imported_module_changes(compiled: Any) -> Any:
    settings = types.ModuleType("settings")
    settings.scale = 1.0  # type: ignore[attr-defined]
    return calls(compiled(lambda x: x * settings.scale), lambda i: setattr(settings, "scale", 1.0 + i // 3))


@right
def attribute_of_a_class_changes(compiled: Any) -> Any:
    class Config:
        scale = 1.0

    return calls(compiled(lambda x: x * Config.scale), lambda i: setattr(Config, "scale", 1.0 + i // 3))


@right
def attribute_read_in_a_method_changes(compiled: Any) -> Any:
    class Scale:
        value = 1.0

        def get(self) -> float:
            return self.value

    scale = Scale()
    return calls(compiled(lambda x: x * scale.get()), lambda i: setattr(scale, "value", 1.0 + i // 3))


@right
def default_value_changes(compiled: Any) -> Any:
    def helper(x: Tensor, factor: float = 1.0) -> Tensor:
        return x * factor

    return calls(compiled(lambda x: helper(x)), lambda i: setattr(helper, "__defaults__", (1.0 + i // 3,)))


@right
def helper_is_replaced(compiled: Any) -> Any:
    helpers = [lambda x: x * 2.0, lambda x: x - 1.0]
    helper = helpers[0]

    def change(i: int) -> None:
        nonlocal helper
        helper = helpers[i // 3]

    return calls(compiled(lambda x: helper(x)), change)


@right
def code_of_a_helper_is_replaced(compiled: Any) -> Any:
    def helper(x: Tensor) -> Tensor:
        return x * 2.0

    other = lambda x: x - 1.0  # noqa: E731
    return calls(compiled(lambda x: helper(x)), lambda i: i == 3 and setattr(helper, "__code__", other.__code__))


@right
def forward_of_a_class_is_replaced(compiled: Any) -> Any:
    class Layer(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2.0

    layer = Layer()
    return calls(compiled(lambda x: layer(x)), lambda i: i == 3 and setattr(Layer, "forward", lambda self, x: x - 1.0))


@right
def model_of_a_trainer_is_replaced(compiled: Any) -> Any:
    class Trainer:
        model: Any = nn.Linear(2, 2, rng=0)

        def __init__(self) -> None:
            self.model = nn.Linear(2, 2, rng=0)

        def predict(self, x: Tensor) -> Tensor:
            with no_grad():
                return self.model(x)

    trainer = Trainer()
    predict = compiled(trainer.predict)
    return calls(predict, lambda i: i == 3 and setattr(trainer, "model", nn.Linear(2, 2, rng=1)))


@right
def settings_object_of_a_module_changes(compiled: Any) -> Any:
    class Layer(nn.Module):
        def __init__(self) -> None:
            self.config = SimpleNamespace(scale=1.0)

        def forward(self, x: Tensor) -> Tensor:
            return x * self.config.scale

    layer = Layer()
    return calls(compiled(layer), lambda i: setattr(layer.config, "scale", 1.0 + i // 3))


@right
def functions_made_in_a_loop(compiled: Any) -> Any:
    functions = [compiled(lambda x, k=k: x * k) for k in (1.0, 2.0)]
    return [calls(f) for f in functions], [calls(compiled(lambda x: x * k)) for k in (3.0, 4.0)]


@right
def partial_and_callable_objects(compiled: Any) -> Any:
    class Scale:
        factor = 1.0

        def __call__(self, x: Tensor) -> Tensor:
            return x * self.factor

    scale = Scale()
    changed = calls(compiled(scale), lambda i: setattr(scale, "factor", 1.0 + i // 3))
    return changed, calls(compiled(functools.partial(lambda k, x: x * k, 2.0)))


@right
def plain_arguments_that_are_almost_equal(compiled: Any) -> Any:
    f = compiled(lambda x, k: F.where(x * 0.0 == 0.0, k / Tensor(np.float32(1.0)) * x, x) ** (2 if k is True else 1))
    return [shown(f(batch(i), k)) for i in range(CALLS) for k in (0.0, -0.0, True, 1, 1.0, False, 0)]


# Python values that a function changes


@refused
def list_is_appended_to(compiled: Any) -> Any:
    log: list[Any] = []

    def f(x: Tensor) -> Tensor:
        log.append(1)
        return x * 2.0

    return calls(compiled(f)), log


@refused
def attribute_of_self_is_changed(compiled: Any) -> Any:
    class Counter:
        n = 0

        def f(self, x: Tensor) -> Tensor:
            self.n += 1
            return x * 2.0

    counter = Counter()
    return calls(compiled(counter.f)), counter.n


@refused
def attribute_of_a_module_is_set(compiled: Any) -> Any:
    class Layer(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            self.last = x * 2.0
            return self.last + 1.0

    layer = Layer()
    return calls(compiled(lambda x: layer(x))), shown(layer.last)


@refused
def nonlocal_number_is_changed(compiled: Any) -> Any:
    n = 0

    def f(x: Tensor) -> Tensor:
        nonlocal n
        n += 1
        return x * 2.0

    return calls(compiled(f)), n


# Values that a function reads or makes


def reading(name: str, read: Callable[[Tensor], Any]) -> None:
    def run(compiled: Any) -> Any:
        return calls(compiled(lambda x: (read(x.sum()), x * 2.0)[1]))

    run.__name__ = name
    refused(run)


for _name, _read in {
    "item": lambda y: y.item(),
    "float": lambda y: float(y),
    "int": lambda y: int(y),
    "bool": lambda y: bool(y > 0.0),
    "numpy": lambda y: y.numpy(),
    "asarray": lambda y: np.asarray(y),
    "printing": lambda y: repr(y),
    "formatting": lambda y: f"{y:.2f}",
    "copying": lambda y: copy.deepcopy(y),
    "iterating over values": lambda y: y.numpy().tolist(),
}.items():
    reading(_name, _read)


@refused
def random_numbers_of_numpy(compiled: Any) -> Any:
    rng = np.random.default_rng(0)
    return calls(compiled(lambda x: x + Tensor(rng.normal(size=2).astype(np.float32))))


@refused
def random_number_of_python(compiled: Any) -> Any:
    rng = random.Random(0)
    return calls(compiled(lambda x: x + rng.random()))


@refused
def numpy_on_an_argument(compiled: Any) -> Any:
    return calls(compiled(lambda x: x + Tensor(x.data * 2)))


@refused
def numpy_on_an_argument_that_is_equal_at_first(compiled: Any) -> Any:
    f = compiled(lambda x: x + Tensor(x.data * 2))
    return [shown(f(batch(i // 3))) for i in range(CALLS)]


@refused
def view_of_an_argument_by_numpy(compiled: Any) -> Any:
    return calls(compiled(lambda x: x[1:] + Tensor(x.data[1:])))


@refused
def numpy_writes_into_a_parameter(compiled: Any) -> Any:
    w = weight()

    def f(x: Tensor) -> None:
        w.zero_grad()
        (x * w).sum().backward()
        w.data -= 0.1 * w.grad.data  # type: ignore[union-attr]

    return calls(compiled(f)), state(w)


@refused
def numpy_writes_into_a_gradient_before_the_step(compiled: Any) -> Any:
    model = net()
    optimizer = optim.SGD(model.parameters(), 0.1)

    def f(x: Tensor) -> None:
        optimizer.zero_grad()
        (model(x) ** 2).sum().backward()
        for p in model.parameters():
            p.grad.data *= 0.5  # type: ignore[union-attr]
        optimizer.step()

    return calls(compiled(f)), state(model)


@refused
def numpy_writes_into_one_parameter_and_an_optimiser_into_others(compiled: Any) -> Any:
    w, model = weight(), net()
    optimizer = optim.SGD(model.parameters(), 0.1)

    def f(x: Tensor) -> None:
        (model(x * w) ** 2).sum().backward()
        optimizer.step()
        w.data *= 0.5

    return calls(compiled(f)), state(w, model)


@refused
def numpy_writes_into_a_result_on_the_way(compiled: Any) -> Any:
    def f(x: Tensor) -> Tensor:
        y = x * 2.0
        y.data[0] = 7.0
        return y + 1.0

    return calls(compiled(f))


@refused
def array_of_a_parameter_is_replaced_inside(compiled: Any) -> Any:
    w = weight()

    def f(x: Tensor) -> Tensor:
        y = x * w
        w.data = w.data * 0.5
        return y.detach()

    return calls(compiled(f)), state(w)


@refused
def shape_that_depends_on_values(compiled: Any) -> Any:
    return calls(compiled(lambda x: x[x > 0.0].sum()))


@refused
def dropout_without_a_generator(compiled: Any) -> Any:
    f = compiled(lambda x: F.dropout(x, 0.5))
    return [f(batch(i)).shape for i in range(CALLS)]


# Modes, parameters and optimisers that change


@right
def train_and_eval_outside(compiled: Any) -> Any:
    model = nn.Sequential(nn.Linear(2, 4, rng=0), nn.BatchNorm1d(4), nn.Dropout(0.5, rng=1))
    f = compiled(lambda x: model(x).detach())
    return calls(f, lambda i: model.train(i not in (1, 4))), calls(f), state(model)


@right
def train_and_eval_inside(compiled: Any) -> Any:
    model = nn.Sequential(nn.Linear(2, 4, rng=0), nn.BatchNorm1d(4))

    def f(x: Tensor) -> Any:
        model.train()
        y = model(x).detach()
        model.eval()
        return y, model(x).detach()

    return calls(compiled(f)), state(model), model.training


@right
def no_grad_outside(compiled: Any) -> Any:
    w = weight()
    f = compiled(lambda x: (x * w).sum().requires_grad and 1)
    found = []
    for i in range(2 * CALLS):
        with no_grad() if i % 2 else contextlib.nullcontext():
            found.append(f(batch(i)))
    return found


@right
def array_of_a_parameter_is_replaced(compiled: Any) -> Any:
    model = net()
    step = training(compiled, model, optim.Adam(model.parameters(), 0.1))
    return calls(step, lambda i: i == 3 and setattr(model[0].weight, "data", model[0].weight.data * 2)), state(model)


@right
def model_moves_and_is_loaded(compiled: Any) -> Any:
    model, saved = net(), {name: t.copy() for name, t in net().state_dict().items()}
    step = training(compiled, model, optim.SGD(model.parameters(), 0.1, momentum=0.9))
    moves = {3: lambda: model.to("cpu"), 5: lambda: model.load_state_dict(saved)}
    return calls(step, lambda i: moves.get(i, int)()), state(model)


@right
def requires_grad_is_toggled(compiled: Any) -> Any:
    model = net()
    step = training(compiled, model, optim.SGD(model.parameters(), 0.1))
    return calls(step, lambda i: setattr(model[2].weight, "requires_grad", i % 3 == 0)), state(model)


@right
def learning_rate_and_momentum_change(compiled: Any) -> Any:
    model = net()
    optimizer = optim.SGD(model.parameters(), 0.1, momentum=0.5)
    step = training(compiled, model, optimizer)
    return calls(step, lambda i: (setattr(optimizer, "lr", 0.1 / (i + 1)), setattr(optimizer, "momentum", 0.1 * i)))


@right
def learning_rate_is_read_as_a_number(compiled: Any) -> Any:
    optimizer = optim.SGD([weight()], 0.1)
    return calls(compiled(lambda x: x * optimizer.lr), lambda i: setattr(optimizer, "lr", 0.1 + i // 3))


@right
def schedule_inside(compiled: Any) -> Any:
    model = net()
    optimizer = optim.Adam(model.parameters())
    step = training(compiled, model, optimizer, optim.OneCycle(optimizer, 0.1, 10))
    return calls(step), state(model, optimizer)


@right
def schedule_outside(compiled: Any) -> Any:
    model = net()
    optimizer = optim.AdamW(model.parameters(), 0.1)
    step, schedule = training(compiled, model, optimizer), optim.StepLR(optimizer, 2, 0.5)
    return calls(step, lambda i: schedule.step()), state(model, optimizer)


@refused
def hook_on_a_tensor_is_added(compiled: Any) -> Any:
    model = net()
    step = training(compiled, model, optim.SGD(model.parameters(), 0.1))
    return calls(step, lambda i: i == 4 and model[0].weight.register_hook(lambda g: 2.0 * g)), state(model)


@refused
def hook_on_a_module_is_added(compiled: Any) -> Any:
    model = net()
    step = training(compiled, model, optim.SGD(model.parameters(), 0.1))
    add = lambda i: i == 4 and model[0].register_forward_hook(lambda m, x, y: 2.0 * y)  # noqa: E731
    return calls(step, add), state(model)


@right
def dropout_is_reseeded_and_its_generator_replaced(compiled: Any) -> Any:
    drop = nn.Dropout(0.5, rng=0)
    initial = drop.rng.bit_generator.state
    changes = {
        3: lambda: setattr(drop.rng.bit_generator, "state", initial),
        4: lambda: setattr(drop, "rng", np.random.default_rng(5)),
        5: lambda: setattr(drop, "p", 0.9),
    }
    return calls(compiled(drop), lambda i: changes.get(i, int)())


@right
def copied_model(compiled: Any) -> Any:
    model = net()
    f = compiled(lambda m, x: m(x).detach())
    found = [shown(f(model, batch(i))) for i in range(CALLS)]
    twin = copy.deepcopy(model)
    twin[0].bias.data += 1.0
    return found, [shown(f(m, batch(i))) for i in range(CALLS) for m in (model, twin)]


@right
def tied_and_frozen_weights(compiled: Any) -> Any:
    model = nn.Sequential(nn.Linear(2, 2, rng=0), nn.Tanh(), nn.Linear(2, 2, rng=1))
    model[2].weight = model[0].weight
    model[0].bias.requires_grad = False
    optimizer = optim.Adam(model.parameters(), 0.1, weight_decay=0.1)
    return calls(training(compiled, model, optimizer)), state(model, optimizer)


# Gradients


@right
def gradients_that_are_there_or_set_by_hand(compiled: Any) -> Any:
    w, kept = weight(), []

    def f(x: Tensor) -> None:
        (x * w).sum().backward()

    def change(i: int) -> None:
        kept.append(w.grad)
        if i in (2, 6, 9):
            w.grad = None
        if i in (4, 8):
            w.grad = batch(i, 2)

    step = compiled(f)
    return [(change(i), step(batch(i)), state(w)) for i in range(2 * CALLS)], kept


@right
def gradient_is_returned_kept_and_changed(compiled: Any) -> Any:
    w, kept = weight(), []

    def f(x: Tensor) -> Any:
        w.zero_grad()
        y = x * w
        y.sum().backward()
        return w.grad, y.detach()

    step = compiled(f)
    for i in range(CALLS):
        g, y = step(batch(i))
        kept.append([g, y, g is w.grad])
        with no_grad():
            y += 1.0
            if i % 2:
                g *= 3.0
    return kept, state(w)


@right
def second_order(compiled: Any) -> Any:
    w = weight()

    def f(x: Tensor) -> Any:
        (g,) = grad((x.tanh() * w * w).sum(), w, create_graph=True)
        (h,) = grad((g * g).sum(), w)
        return g.detach(), h

    return calls(compiled(f))


# Arguments and results


@right
def same_array_twice_and_a_parameter_as_argument(compiled: Any) -> Any:
    w = weight()
    f = compiled(lambda x, y: (x * w + y).detach())
    found = []
    for i in range(CALLS):
        x = batch(i, 2)
        found += [f(x, batch(i + 1, 2)), f(x, x), f(x, x[::-1]), f(x, w), f(w.detach(), x), f(Tensor(w.data[::-1]), x)]
    return found


@right
def argument_is_written(compiled: Any) -> Any:
    def f(x: Tensor) -> Tensor:
        with no_grad():
            x[0] = x[1] * 2.0
            x += 1.0
        return x.sum()

    step, found = compiled(f), []
    for i in range(CALLS):
        x = batch(i)
        found.append([step(x), x])
    return found


@right
def results_that_are_something_else(compiled: Any) -> Any:
    w = weight()
    f = compiled(lambda x: (x, w, w.detach()[::-1], x.T, x[1:], (x * 2.0).T, w.detach(), None, 3, "a", {"k": [x[0]]}))
    found, kept = [], []
    for i in range(CALLS):
        x = batch(i)
        y = f(x)
        found.append([shown(y), y[0] is x, y[1] is w, np.shares_memory(y[2].data, w.data)])
        with no_grad():
            y[5][...] = 0.0
            w[...] = float(i)
        kept.append(y)
    return found, kept


@right
def results_are_kept(compiled: Any) -> Any:
    f = compiled(lambda x: (x * 2.0, x.sum(axis=0), (x + 1.0).reshape(-1)[::2], F.softmax(x)))
    return [f(batch(i)) for i in range(CALLS)]


@right
def shapes_dtypes_and_strides_change(compiled: Any) -> Any:
    f = compiled(lambda x: (x.T @ x).tanh().sum(axis=0))
    arrays = [lambda a: a, lambda a: a[:2], lambda a: a.astype(np.float64), lambda a: a[:, ::-1], lambda a: a[::2],
              lambda a: a.T, lambda a: a[:0], lambda a: np.asfortranarray(a)]  # fmt: skip
    return [f(Tensor(change(batch(i, 6, 4).data))) for i in range(CALLS) for change in arrays]


@right
def nested_arguments_and_keywords(compiled: Any) -> Any:
    class Model:
        w = weight()

        def f(self, pair: Any, *rest: Any, options: Any, flip: bool = False) -> Any:
            x, y = pair
            total = x * self.w + (y[::-1] if flip else y)
            for each in rest:
                total = total - each
            return {"total": total.detach(), "parts": [options["k"][0] * 2.0, (x, len(rest))]}

    step = compiled(Model().f)
    found = []
    for i in range(CALLS):
        a, b, c, d = (batch(4 * i + k, 2) for k in range(4))
        found += [step((a, b), c, options={"k": [d]}), step((a, b), options={"k": [Tensor(d.data)]}, flip=True)]
        found += [step([a, b.data], c, d, flip=False, options={"k": (d, None)})]
    return found


@right
def nan_and_infinity_come_later(compiled: Any) -> Any:
    rng = np.random.default_rng(0)
    w = Tensor(rng.normal(size=(2, 1, 3, 3)).astype(np.float32), requires_grad=True)

    def f(x: Tensor) -> Any:
        w.zero_grad()
        y = F.conv2d(x, w, padding=1)
        z = F.max_pool2d(y.tanh(), 2).sum() + F.avg_pool2d(y.relu(), 2).sum() + F.maximum(y, 0.5).mean()
        z.backward()
        return y.detach(), z.detach(), w.grad

    step, found = compiled(f), []
    for i in range(3 * CALLS):
        x = rng.normal(size=(2, 1, 4, 4)).astype(np.float32)
        if i > 3:
            x.flat[rng.integers(x.size, size=3)] = rng.choice([np.nan, np.inf, -np.inf, 0.0, 1e30], 3)
        if i > 9:
            w.data[0, 0, i % 3] = [np.inf, np.nan, -0.0][i % 3]
        with np.errstate(all="ignore"):
            found.append(step(Tensor(x)))
    return found


# Errors and interruptions


def survived(step: Any, *arguments: Any) -> Any:
    """What a call returns, or the error that it raises."""
    try:
        return shown(step(*arguments))
    except (ValueError, ZeroDivisionError, KeyboardInterrupt) as error:
        return type(error).__name__, str(error)


@right
def label_out_of_range_comes_later(compiled: Any) -> Any:
    model = net()
    optimizer = optim.SGD(model.parameters(), 0.1)

    def f(x: Tensor, labels: Any) -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), labels)
        loss.backward()
        optimizer.step()
        return loss

    step = compiled(f)
    return [survived(step, batch(i), np.array([0, 2, 3 if i == 4 else 1])) for i in range(CALLS)], state(model)


@right
def exception_in_the_function(compiled: Any) -> Any:
    fail = False

    def f(x: Tensor) -> Tensor:
        y = x * 2.0
        return y / (0 if fail else 1) if not fail else y + 1 / 0

    step, found = compiled(f), []
    for i in range(2 * CALLS):
        fail = i in (1, 6)
        found.append(survived(step, batch(i)))
    return found


@right
def step_fails_and_training_goes_on(compiled: Any) -> Any:
    model = net()
    optimizer = optim.SGD(model.parameters(), 0.1)
    schedule = optim.OneCycle(optimizer, 0.1, 4)
    step = training(compiled, model, optimizer, schedule)
    return [(survived(step, batch(i)), i == 6 and setattr(schedule, "count", 0)) for i in range(9)], state(model)


@right
def interrupted_in_a_replay(compiled: Any) -> Any:
    class Failing(optim.SGD):
        fail = False

        def _update(self, *arguments: Any) -> None:
            if self.fail:
                raise KeyboardInterrupt
            super()._update(*arguments)

    model = net()
    optimizer = Failing(model.parameters(), 0.1, momentum=0.9)
    step, found = training(compiled, model, optimizer), []
    for i in range(2 * CALLS):
        optimizer.fail = i in (4, 7)
        found.append([survived(step, batch(i)), state(model, optimizer)])
    return found


@right
def recursion_and_nesting(compiled: Any) -> Any:
    @compiled
    def inner(x: Tensor) -> Tensor:
        return x * 2.0

    @compiled
    def outer(x: Tensor, depth: int) -> Tensor:
        return inner(x) if not depth else outer(x, depth - 1) + inner(x)

    return [shown([inner(batch(i)), outer(batch(i), i % 2), inner(batch(i))]) for i in range(2 * CALLS)]


@right
def anomalies_are_detected_in_a_replay(compiled: Any) -> Any:
    f, found = compiled(lambda x: x.log()), []
    for i in range(CALLS):
        x = Tensor([1.0, float(i % 5)])
        with np.errstate(all="ignore"), detect_anomaly() if i > 3 else contextlib.nullcontext():
            try:
                found.append(shown(f(x)))
            except AnomalyError as error:
                found.append(str(error).partition(";")[0])
    return found


@right
def threads(compiled: Any) -> Any:
    f = compiled(lambda x: F.softmax(x @ x.T).sum(axis=0))
    found: dict[int, Any] = {}

    def work(k: int) -> None:
        found[k] = [f(batch(100 * k + i)) for i in range(50)]

    workers = [threading.Thread(target=work, args=(k,)) for k in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return [found[k] for k in range(3)]


@right
def fork_after_recording(compiled: Any) -> Any:
    model = net()
    optimizer = optim.Adam(model.parameters(), 0.1)
    step = training(compiled, model, optimizer)
    found = calls(step)
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if not child:
        try:
            with os.fdopen(write, "wb") as file:
                pickle.dump([calls(step), state(model, optimizer)], file)
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as file:
        of_child = pickle.load(file)
    os.waitpid(child, 0)
    return found, of_child, calls(step), state(model, optimizer)


# Networks


def images(i: int, n: int = 2) -> tuple[Tensor, np.ndarray]:
    rng = np.random.default_rng(i)
    return Tensor(rng.normal(size=(n, 1, 32, 32)).astype(np.float32)), rng.integers(0, 10, n)


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


@pytest.mark.parametrize("act", ["tanh", "sigmoid", "relu"])
@pytest.mark.parametrize("pool", ["avg", "max"])
@pytest.mark.parametrize("more", [{}, {"dropout": 0.3, "batch_norm": True}])
def test_lenet5_is_replayed(act: str, pool: str, more: dict[str, Any]) -> None:
    networks = [lenet(compiled, activation=act, pool=pool, **more) for compiled in (jit, lambda f: f)]
    assert shown(networks[0]) == shown(networks[1])


@pytest.mark.parametrize("j", [None, 0.1])
@pytest.mark.parametrize("codes", [False, True])
def test_lenet5_of_1998_is_replayed(j: float | None, codes: bool) -> None:
    networks = [lenet_1998(compiled, j, codes) for compiled in (jit, lambda f: f)]
    assert shown(networks[0]) == shown(networks[1])


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
    "write": lambda p, x, y: p.write(x, y),
    "cast": lambda p, x, y: x.astype("float64").astype("float32") + y,
    "einsum": lambda p, x, y: F.einsum("nk,jk->nj", x, p.w) * 0.5,
}
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
        self.optimizers = [OPTIMIZERS[name](params) for name, params in zip(optimizers, self.shares(optimizers))]
        self.schedules = [optim.StepLR(o, 2, 0.5) for o, wanted in zip(self.optimizers, schedules) if wanted]
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
    events=st.lists(st.sampled_from(["2", "3", "2", "keep", "drop", "rate", "load", "replace"]), min_size=6, max_size=14),
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
    plan = weakref.ref(step.plan)
    del step
    gc.collect()
    assert kept() is None
    assert plan() is None


def test_batches_that_were_recorded_are_freed() -> None:
    model = net()
    step = training(jit, model, optim.Adam(model.parameters()))
    batches = [batch(i) for i in range(4)]
    gone = [weakref.ref(x.data) for x in batches] + [weakref.ref(x) for x in batches]
    while batches:
        step(batches.pop())
    gc.collect()
    assert [ref() for ref in gone] == [None] * 8


# What is no function, no argument and no result


async def _coroutine() -> None:
    pass


@pytest.mark.parametrize("thing", [3, None, "name", lambda: (yield), _coroutine])
def test_only_functions_are_compiled(thing: Any) -> None:
    with pytest.raises(TypeError):
        jit(thing)
