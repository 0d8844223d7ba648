"""Ways to falsify a recording: each program is replayed right, to the bit, or refused by an error."""

import collections
import contextlib
import copy
import functools
import itertools
import os
import random
import threading
import types
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests import strict
from tests.replays import CALLS, batch, calls, net, shown, state, training, weight
from tinygrad_lenet import JitError, Tensor, grad, jit, manual_seed, nn, no_grad, optim
from tinygrad_lenet import functional as F
from tinygrad_lenet.anomaly import AnomalyError, detect_anomaly
from tinygrad_lenet.backend import use

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
def attribute_read_in_a_method_that_each_look_makes_anew_changes(compiled: Any) -> Any:
    class Scale:
        value = 1.0

        @classmethod
        def get(cls) -> float:
            return cls.value

        @functools.lru_cache  # noqa: B019 - what a user may write
        def cached(self) -> float:
            return 0.5

        @compiled
        def by(self, x: Tensor, factor: float) -> Tensor:
            return x * factor * self.get() * self.cached()

        twice = functools.partialmethod(by, factor=2.0)

        @compiled
        def run(self, x: Tensor) -> Tensor:
            return self.twice(x) + self.by(x, 3.0)

    def change(i: int) -> None:
        Scale.value = 1.0 + i // 4

    return calls(Scale().run, change), compiled is jit and Scale.run.plan is None  # type: ignore[attr-defined]


@right
def attribute_behind_a_special_method_changes(compiled: Any) -> Any:
    class Settings:
        def __init__(self) -> None:
            self.values = {"scale": 1.0}

        def __getitem__(self, name: str) -> float:
            return self.values[name]

        def __getattr__(self, name: str) -> float:
            if name not in self.values:
                raise AttributeError(name)
            return self.values[name]

        def __contains__(self, name: str) -> bool:
            return name in self.values

        def __enter__(self) -> float:
            return self.values["scale"]

        def __exit__(self, *exception: object) -> None:
            pass

        def __iter__(self) -> Any:
            yield from self.values.values()

        def __add__(self, x: Tensor) -> Tensor:
            return x + self.values["scale"]

    settings = Settings()

    def entered(x: Tensor) -> Tensor:
        with settings as scale:
            return x * scale

    def change(i: int) -> None:
        settings.values.clear()
        settings.values["scale" if i < 5 else "other"] = 1.0 + i // 3

    def back(i: int) -> None:
        settings.values.clear()
        settings.values["scale"] = 1.0 + i // 3

    return (
        calls(compiled(lambda x: x * ("scale" in settings)), change),
        calls(compiled(lambda x: x * sum(settings)), change),
        calls(compiled(lambda x: x * settings["scale"]), back),
        calls(compiled(lambda x: x * settings.scale), back),
        calls(compiled(lambda x: settings + x), back),
        calls(compiled(entered), back),
    )


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
    return [calls(f) for f in functions], [calls(compiled(lambda x: x * k)) for k in (3.0, 4.0)]  # noqa: B023


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


@right
def gradient_of_a_leaf_that_the_function_makes(compiled: Any) -> Any:
    def run(x: Tensor) -> Any:
        x = x.detach()
        x.requires_grad = True
        for factor in (1.0, 2.0):
            (x * x * factor).sum().backward()
        return x.grad

    return calls(compiled(run))


@refused
def leaf_with_its_gradient_is_returned(compiled: Any) -> Any:
    def run(x: Tensor) -> Tensor:
        x = x.detach()
        x.requires_grad = True
        (x * x).sum().backward()
        return x

    return calls(compiled(run))


def norms(*leaves: Tensor) -> None:
    with no_grad():
        for leaf in leaves:
            leaf.grad[...] = leaf.grad / F.norm(leaf.grad)  # type: ignore[index, arg-type, operator]


@right
def gradient_is_written_into(compiled: Any) -> Any:
    """That of the call, then that which both of its backward passes have added up, before and after a step."""
    a, b = weight(), weight()
    optimizer = optim.Adam([a, b])

    def run(x: Tensor) -> Any:
        optimizer.zero_grad()
        (x * (a + b)).sum().backward()
        norms(a)
        a.grad[0] = 0.5  # type: ignore[index]
        (x * a * b).sum().backward()
        optimizer.step()
        b.grad[1] = x[0, 0]  # type: ignore[index]
        return b.grad

    return calls(compiled(run)), state(a, b, optimizer)


@right
def gradient_of_another_call_is_written_into(compiled: Any) -> Any:
    a, b = weight(), weight()
    run = compiled(lambda: norms(a, b))
    found = []
    for i in range(CALLS):
        (batch(i) * a * b).sum().backward()
        run()
        found.append(state(a, b))
    return found


@right
def module_is_added_to_a_list_that_is_gone_through(compiled: Any) -> Any:
    layers = nn.ModuleList([nn.Linear(2, 2, rng=0)])

    def by_index(x: Tensor) -> Tensor:
        for i in range(len(layers)):
            x = layers[i](x)
        return x.detach()

    def change(i: int) -> None:
        if i == 3:
            layers.append(nn.Linear(2, 2, rng=1))

    return calls(compiled(by_index), change), calls(compiled(lambda x: sum(m(x).detach() for m in layers)), change)


@right
def argument_is_what_a_variable_is(compiled: Any) -> Any:
    w = weight()

    @compiled
    def run(x: Tensor) -> Tensor:
        loss = (x * w).sum()
        loss.backward()
        return loss

    found = []
    for _ in range(CALLS):
        found.append(shown([run(w.detach()), w, w.grad]))
        with no_grad():
            w += 1.0
    return found, shown(run(batch(0, 2))), state(w)


@right
def dropout_by_the_default_generator(compiled: Any) -> Any:
    manual_seed(5)
    return calls(compiled(lambda x: F.dropout(x, 0.5)))


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


# More of all these


@right
def argument_with_a_graph(compiled: Any) -> Any:
    w, v = weight(), weight()
    f = compiled(lambda x: (x * 3.0).sum().backward())
    out = []
    for i in range(CALLS):
        p, k = (w, 2.0) if i < 4 else (v, 5.0)
        f(p * k)
        out.append(state(w, v))
    return out


@right
def argument_that_gets_a_gradient(compiled: Any) -> Any:
    f = compiled(lambda x: (x * x).sum().backward())
    out = []
    for i in range(2 * CALLS):
        x = batch(i)
        x.requires_grad = True
        if i in (5, 8, 9):
            x.grad = batch(i + 1)
        f(x)
        out.append(shown(x.grad))
        if i % 2:
            f(x)
            out.append(shown(x.grad))
    return out


@right
def leaf_made_inside(compiled: Any) -> Any:
    def f(x):
        z = Tensor(np.ones(2, np.float32), requires_grad=True)
        (x * z * z).sum().backward()
        return z.grad, z.detach()

    return calls(compiled(f))


@right
def equal_objects_that_differ(compiled: Any) -> Any:
    class C:
        def __init__(self, scale):
            self.scale = scale

        def __eq__(self, o):
            return True

        def __hash__(self):
            return 1

    f = compiled(lambda x, c: x * c.scale)
    return [shown(f(batch(i), C(1.0 + i // 3))) for i in range(CALLS)]


@right
def numpy_scalars_as_arguments(compiled: Any) -> Any:
    f = compiled(lambda x, c: x * c)
    return [
        shown(f(batch(i), c))
        for i in range(CALLS)
        for c in (np.float32(i), np.float64(2), np.int64(i % 2), np.bool_(True), np.float32(-0.0))
    ]


@right
def weights_explode(compiled: Any) -> Any:
    w = weight()
    o = optim.SGD([w], 1e37)

    def f(x):
        o.zero_grad()
        y = (x * w).sum()
        y.backward()
        o.step()
        return y

    f = compiled(f)
    out = []
    for i in range(3):
        try:
            out.append(shown(f(batch(i) * 5.0)))
        except (RuntimeWarning, FloatingPointError):
            out.append("warned")
    return out, state(w)


@right
def moving_average_and_clipping_after_the_step(compiled: Any) -> Any:
    model, slow = net(), net()
    o = optim.Adam(model.parameters(), 0.1)

    def f(x):
        o.zero_grad()
        loss = (model(x) ** 2).mean()
        loss.backward()
        with no_grad():
            norm = sum([(p.grad * p.grad).sum() for p in model.parameters()]).sqrt()
            for p in model.parameters():
                p.grad *= F.minimum(1.0, 0.01 / norm)
        o.step()
        with no_grad():
            for p, q in zip(model.parameters(), slow.parameters(), strict=True):
                p[...] = F.maximum(-0.4, F.minimum(0.4, p))
                q[...] = 0.9 * q + 0.1 * p
        return loss, norm

    return calls(compiled(f)), state(model, slow, o)


@right
def two_players(compiled: Any) -> Any:
    d, g = net(), nn.Sequential(nn.Linear(2, 2, rng=3), nn.Tanh())
    od, og = optim.Adam(d.parameters(), 0.1), optim.Adam(g.parameters(), 0.1)

    def f(x):
        fake = g(x)
        od.zero_grad()
        ld = (d(x) - d(fake.detach())).mean()
        ld.backward()
        od.step()
        og.zero_grad()
        lg = d(fake if False else g(x)).mean()
        lg.backward()
        og.step()
        return ld, lg

    return calls(compiled(f)), state(d, g, od, og)


@right
def gradient_accumulation(compiled: Any) -> Any:
    m = net()
    o = optim.SGD(m.parameters(), 0.1, momentum=0.9)
    acc = compiled(lambda x: ((m(x) ** 2).mean().backward(), None)[1])
    apply = compiled(lambda: (o.step(), o.zero_grad())[:0])
    out = []
    for i in range(4 * CALLS):
        acc(batch(i))
        if i % 3 == 2:
            apply()
        out.append(state(m, o))
    return out


@refused
def iterator_is_advanced(compiled: Any) -> Any:
    a, b = batch(100), batch(101)
    it = itertools.cycle([a, a, a, b])
    return calls(compiled(lambda x: x * next(it)))


@refused
def deque_is_appended(compiled: Any) -> Any:
    q = collections.deque(maxlen=100)

    def f(x):
        q.append(1)
        return x * 2.0

    return calls(compiled(f)), len(q)


@refused
def array_of_an_argument_is_replaced(compiled: Any) -> Any:
    def f(x):
        x.data = x.data * 2
        return x

    return calls(compiled(f))


@refused
def array_of_an_argument_is_written(compiled: Any) -> Any:
    def f(x):
        x.data[0] = 0
        return x * 2.0

    return calls(compiled(f))


@right
def hook_on_an_argument(compiled: Any) -> Any:
    f = compiled(lambda x: (x * x).sum().backward())
    out = []
    for i in range(CALLS):
        x = batch(i)
        x.requires_grad = True
        if i == 4:
            x.register_hook(lambda g: g * 3.0)
        f(x)
        out.append(shown(x.grad))
    return out


@refused
def hook_that_only_looks(compiled: Any) -> Any:
    m = net()
    seen = []
    m[0].register_forward_hook(lambda m, x, y: seen.append(1))
    return calls(compiled(lambda x: m(x).detach())), len(seen)


@right
def copied_compiled_function(compiled: Any) -> Any:
    f = compiled(lambda x: x * 2.0)
    g = copy.deepcopy(f)
    return calls(f), calls(g)


@right
def parameters_as_arguments(compiled: Any) -> Any:
    ps = [nn.Parameter([1.0, 2.0]), nn.Parameter([3.0, 4.0])]
    f = compiled(lambda p, x: ((x * p).sum().backward(), (x * p).detach())[1])
    out = []
    for i in range(CALLS):
        for p in ps:
            out.append(shown(f(p, batch(i))))
            if i == 4:
                p.data = p.data * 2
        out.append(state(*ps))
    return out


@right
def detached_parameter_is_replaced(compiled: Any) -> Any:
    m = nn.Linear(2, 2, rng=0)
    return calls(
        compiled(lambda x: x * m.weight.detach()[0]), lambda i: i == 3 and setattr(m.weight, "data", m.weight.data * 2)
    )


@right
def method_decorated_in_a_class(compiled: Any) -> Any:
    class T:
        def __init__(self):
            self.model = nn.Linear(2, 2, rng=0)
            self.k = 1.0

        @compiled
        def f(self, x, *, y=None):
            return (self.model(x) * self.k).detach()

    a, b = T(), T()
    b.model.bias.data += 1
    out = []
    for i in range(2 * CALLS):
        if i == 4:
            a.k = 2.0
        if i == 6:
            a.model = nn.Linear(2, 2, rng=5)
        if i == 8:
            a.model.weight.data = b.model.weight.data
        out += [shown(a.f(batch(i))), shown(b.f(batch(i), y=None))]
    return out


@right
def odd_arrays(compiled: Any) -> Any:
    f = compiled(lambda x: (Tensor(x) if not isinstance(x, Tensor) else x).astype("float32").sum() * 2.0)
    base = np.arange(24).reshape(4, 6)
    ro = base.astype(np.float32)
    ro.flags.writeable = False
    xs = [
        base.astype(">f4"),
        base.astype(np.uint8),
        base > 3,
        np.float32(3) * np.ones(()),
        base.astype(np.float16),
        ro,
        np.frombuffer(b"a" * 17, np.uint8)[1:].view(np.float32),
        np.asarray(5),
    ]
    return [shown(f(x)) for i in range(CALLS) for x in xs]


@refused
def own_optimiser_with_numpy(compiled: Any) -> Any:
    class Own(optim.Optimizer):
        def step(self):
            for p in self.params:
                p.data -= self.lr * p.grad.data

    m = net()
    o = Own(m.parameters(), 0.1)
    return calls(training(compiled, m, o)), state(m)


@right
def own_optimiser_with_ops(compiled: Any) -> Any:
    class Own(optim.Optimizer):
        def step(self):
            with no_grad():
                for p in self.params:
                    p -= self.lr * p.grad

    m = net()
    o = Own(m.parameters(), 0.1)
    return calls(training(compiled, m, o), lambda i: setattr(o, "lr", 0.1 * (1 + i // 3))), state(m)


@right
def views_of_gradients_are_kept(compiled: Any) -> Any:
    w = weight()
    kept = []

    def f(x):
        w.zero_grad()
        (x * w).sum().backward()

    f = compiled(f)
    for i in range(3 * CALLS):
        f(batch(i))
        kept.append([w.grad.numpy(), w.grad.data[1:], w.grad.detach(), np.asarray(w.grad)][i % 4])
    return kept


@right
def gradients_of_two_dtypes(compiled: Any) -> Any:
    a, b, c = (
        Tensor(np.ones(n, d), requires_grad=True) for n, d in ((3, np.float32), (2, np.float64), (1, np.float16))
    )
    o = optim.Adam([a, b], 0.1)

    def f(x):
        o.zero_grad()
        c.zero_grad()
        ((x.sum() * a * a).sum() + 0.0).backward()
        ((x.astype("float64").sum() * b).tanh()).sum().backward()
        (c * 2.0).sum().backward()
        o.step()

    return calls(compiled(f)), state(a, b, c, o)


@right
def requires_grad_set_inside(compiled: Any) -> Any:
    m = net()

    def f(x):
        m[0].weight.requires_grad = False
        (m(x) ** 2).mean().backward()
        m[0].weight.requires_grad = True

    return calls(compiled(f), lambda i: i in (3, 5) and m.zero_grad()), state(m)


@right
def nested_in_python_lists(compiled: Any) -> Any:
    class M(nn.Module):
        def __init__(self):
            self.layers = [nn.Linear(2, 2, rng=k) for k in range(3)]

        def forward(self, x):
            for layer in self.layers:
                x = layer(x).tanh()
            return x

    m = M()
    return calls(compiled(lambda x: m(x).detach()), lambda i: i == 3 and m.layers.pop())


@right
def no_arguments(compiled: Any) -> Any:
    w = weight()
    o = optim.SGD([w], 0.1)

    def f():
        o.zero_grad()
        loss = (w * w).sum()
        loss.backward()
        o.step()
        return loss

    f = compiled(f)
    return [shown(f()) for _ in range(CALLS)]


@right
def empty_batches(compiled: Any) -> Any:
    m = net()
    f = compiled(lambda x: m(x).sum(axis=0).detach())
    return [shown(f(batch(i, 0 if i % 2 else 3, 2))) for i in range(2 * CALLS)]


@right
def array_global_changes_in_place(compiled: Any) -> Any:
    t = np.ones(2, np.float32)
    return calls(compiled(lambda x: x * t + F.where(Tensor(t) > 2.0, 1.0, 0.0)), lambda i: t.__iadd__(1.0))


@right
def made_from_a_closure_array(compiled: Any) -> Any:
    t = np.ones(2, np.float32)
    return calls(compiled(lambda x: x * Tensor(t * 2)), lambda i: t.__setitem__(0, 1.0 + i // 3))


@right
def made_from_a_parameter(compiled: Any) -> Any:
    w = weight()
    return calls(compiled(lambda x: x * Tensor(w.data * 2)), lambda i: w.data.__setitem__(0, 1.0 + i // 3))


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
            with os.fdopen(write, "w") as file:
                file.write(repr([calls(step), state(model, optimizer)]))
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as file:
        of_child = file.read()
    assert of_child  # it is empty if the child failed
    os.waitpid(child, 0)
    return found, of_child, calls(step), state(model, optimizer)


# What is no function, no argument and no result


async def _coroutine() -> None:
    pass


@pytest.mark.parametrize("thing", [3, None, "name", lambda: (yield), _coroutine])
def test_only_functions_are_compiled(thing: Any) -> None:
    with pytest.raises(TypeError):
        jit(thing)


@pytest.mark.parametrize("argument", [{1, 2}, bytearray(2), slice(2), np.ma.masked_array([1.0]), [{}, {3}]])
def test_arguments_that_cannot_be_told_apart_are_refused(argument: Any) -> None:
    function = jit(lambda x, y: x * 2.0)
    if isinstance(argument, slice) and slice.__hash__ is not None:  # it can be, from Python 3.12 on
        argument = [set()]
    with pytest.raises(TypeError):
        function(batch(0), argument)
    assert shown(function(batch(0), None)) == shown(batch(0) * 2.0)


@pytest.mark.parametrize("result", [lambda x, w: x.data, lambda x, w: {1}, lambda x, w: x * w, lambda x, w: [object()]])
def test_results_that_cannot_be_made_again_are_refused(result: Any) -> None:
    w = weight()
    with pytest.raises(JitError):
        jit(lambda x: result(x, w))(batch(0))


ON_THE_CPU_ONLY = {
    "asarray", "model_moves_and_is_loaded", "results_that_are_something_else", "shapes_dtypes_and_strides_change",
    "views_of_gradients_are_kept",  # use NumPy, or say "cpu"
    "weights_explode",  # of which NumPy warns
    "array_global_changes_in_place",  # is moved to the device outside ops
    "label_out_of_range_comes_later",  # which nobody looks for on a device
    "interrupted_in_a_replay",  # by a step that is a part of a graph, whose Python code runs once
}  # fmt: skip


@pytest.mark.parametrize(("run", "verdict"), [each for each in PROGRAMS if each.id not in ON_THE_CPU_ONLY])
def test_recording_on_a_device_cannot_be_falsified(run: Callable[[Any], Any], verdict: str) -> None:
    with use("strict"), strict.with_graphs():
        test_recording_cannot_be_falsified(run, verdict)
