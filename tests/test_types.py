"""What type checkers, completion and `help` tell the users of the package."""

import inspect
import os
import pydoc
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest

import tinygrad_lenet

ROOT = Path(__file__).resolve().parents[1]
METHODS = (property, classmethod, staticmethod, FunctionType)

PROGRAM = '''
from collections.abc import Iterator
from typing import Any, assert_type

import numpy as np

from tinygrad_lenet import REAL, Domain, Op, Tensor, data, functional as F, grad, nn, no_grad, optim
from tinygrad_lenet.models import LeNet5


class Net(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        self.conv = nn.Conv2d(1, 6, kernel_size=5, stride=2, rng=0)
        self.body = body
        self.gain = nn.Parameter(1.0)

    def forward(self, x: Tensor, mask: Tensor | None = None, *, scale: float = 1.0) -> Tensor:
        y = F.relu(self.conv(x)) * self.gain * scale
        return self.body(y if mask is None else F.where(mask, y, 0.0))


class Pair(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return a + b, a - b


class Scale(Op):
    """y = k x; dy/dx = k."""

    k: float = 1.0

    signature = "scale_of_a_user(x[...]) -> y[...]"
    domains = {"x": Domain(kinks=(0.0,))}
    parameters = {"k": (1.0, 2.0)}

    def output_shape(self, x: tuple[int, ...]) -> tuple[int, ...]:
        return x

    def forward(self, xp: Any, x: Any) -> Any:
        return self.k * x

    def backward(self, gy: Tensor, y: Tensor, x: Tensor) -> Tensor:
        return self.k * gy

    def curvature(self, hy: Tensor, gy: Tensor, y: Tensor, x: Tensor) -> Tensor:
        return self.k**2 * hy


@no_grad()
def evaluate(model: nn.Module, x: Tensor) -> Tensor:
    return model(x)


@no_grad
def rows(x: Tensor) -> Iterator[Tensor]:
    yield from x


model = nn.Sequential(nn.AvgPool2d(2), nn.Tanh(), nn.Flatten(), nn.Linear(216, 10, rng=1))
net = Net(model).train()
x = Tensor(np.zeros((2, 1, 28, 28)), requires_grad=True)
assert_type(net(x, mask=x > 0, scale=2.0), Tensor)
assert_type(Pair()(x, x), tuple[Tensor, Tensor])
assert_type(model(x), Tensor)
assert_type(LeNet5()(x), Tensor)
assert_type(model[:2], nn.Sequential)
assert_type(evaluate(net, x), Tensor)
assert_type(rows(x), Iterator[Tensor])
assert_type(Scale(2.0)(x), Tensor)
assert_type(np.float32(3) * x, Tensor)
product: Tensor = np.ones(3) * x
difference: Tensor = np.arange(3) - x
np.testing.assert_allclose(x, x.numpy())

optimizer = optim.Adam(net.parameters(), lr=0.003)
schedule = optim.StepLR(optimizer, step_size=10)
images, labels = data.digits("train")
for batch, y in data.DataLoader(images, labels, batch_size=64, augment=data.Affine(seed=1)):
    loss = F.cross_entropy(net(Tensor(batch)), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    schedule.step()
if x.grad is not None:
    x -= 0.1 * x.grad
with no_grad():
    net.gain -= 0.1
(gx,) = grad((x**3).sum(), [x], create_graph=True)
second: Tensor = gx.sum()

x.grad.sum()  # error: it may be None
net(x, x, 2.0)  # error: scale has to be named
net("x")  # error: no tensor
model(x).softmaks()  # error: misspelled
evaluate(net)  # error: no x
nn.Conv2d(1, 6, 5, stride="2")  # error: no number
'''


def test_a_users_program_under_strict_mypy(tmp_path: Path) -> None:
    """Every error that mypy is to find is found, and no other."""
    pytest.importorskip("mypy")
    (tmp_path / "program.py").write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--cache-dir", os.devnull, "program.py"],
        cwd=tmp_path, env=os.environ | {"MYPYPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    found = {int(line.split(":")[1]) for line in done.stdout.splitlines() if ": error:" in line}
    expected = {i for i, line in enumerate(PROGRAM.split("\n"), 1) if "# error" in line}
    assert found == expected, done.stdout + done.stderr


@pytest.mark.parametrize("name", ["checkpoint", "data", "functional", "nn", "optim", "testing"])
def test_completion_offers_public_names_only(name: str) -> None:
    module = getattr(tinygrad_lenet, name)
    assert dir(module) == sorted(module.__all__)
    assert set(dir(module)) <= set(vars(module))


def test_completion_of_the_package() -> None:
    assert dir(tinygrad_lenet) == sorted([*tinygrad_lenet.__all__, "__version__"])


def public() -> Iterator[tuple[str, Any]]:
    """What the package and its modules export, and the public methods and properties of the classes among it."""
    modules = [value for name in tinygrad_lenet.__all__ if inspect.ismodule(value := getattr(tinygrad_lenet, name))]
    for module in (tinygrad_lenet, *modules):
        yield module.__name__, module
        for name in getattr(module, "__all__", [name for name in vars(module) if not name.startswith("_")]):
            value = getattr(module, name)
            if not (inspect.isclass(value) or inspect.isfunction(value)):
                continue
            if not value.__module__.startswith("tinygrad_lenet" if hasattr(module, "__all__") else module.__name__):
                continue  # somebody else's, or imported
            yield f"{module.__name__}.{name}", value
            for member in dir(value) if inspect.isclass(value) else ():
                field = member in inspect.get_annotations(value)  # which may hold a function
                method = isinstance(inspect.getattr_static(value, member), METHODS)
                if method and not field and not member.startswith("_"):
                    yield f"{module.__name__}.{name}.{member}", getattr(value, member)


def test_everything_public_has_a_docstring() -> None:
    """A method that overrides another may leave it to that one."""
    names = {name: bool(inspect.getdoc(value)) for name, value in public()}
    assert {"tinygrad_lenet.nn.Conv2d.stride", "tinygrad_lenet.optim.Adam.step"} <= set(names)
    assert [name for name, documented in names.items() if not documented] == []


def test_help_shows_no_forward_references() -> None:
    found = [name for name, value in public() if "ForwardRef" in pydoc.render_doc(value)]
    assert found == []
