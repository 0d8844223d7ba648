"""Looking inside: anomalies are traced to the line that made them, and hooks see what flows."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import tests.strict  # noqa: F401 - makes the device "strict" known
from tinygrad_lenet import REAL, AnomalyError, Op, Tensor, detect_anomaly, grad, nn, no_grad
from tinygrad_lenet import functional as F

INF, NAN = float("inf"), float("nan")


@pytest.fixture(autouse=True)
def _silent() -> Iterator[None]:
    with np.errstate(all="ignore"):
        yield


def leaf(*values: float) -> Tensor:
    return Tensor(np.array(values[0] if len(values) == 1 else values, np.float32), requires_grad=True)


# Anomalies


@pytest.mark.parametrize(
    ("sentence", "call"),
    [
        (r"log: .*-inf at index \(1, 0\), where x is 0.0;", lambda: Tensor([[1.0], [0.0]]).log()),
        # Values are found through broadcasting ...
        (
            r"add: .*inf at index \(1, 2\), where a is 1e\+308, b is 1.5e\+308;",
            lambda: np.array([0, 0, 1e308]) + Tensor(np.array([[0], [1.5e308]])),
        ),
        # ... and left out where an input has no element at the index of the output, or fewer axes tell nothing.
        (
            r"matmul: .*inf at index \(0, 3\), where b is 1e\+200;",
            lambda: Tensor(np.full((1, 2), 1e200)) @ np.array([[0, 0, 0, 1e200], [0] * 4]),
        ),
        (r"sum: .*inf at index \(\);", lambda: Tensor(np.full(2, 1e308)).sum()),
        (r"linear: weight .*already nan at index \(0, 1\)", lambda: F.linear([1.0, 2.0], Tensor([[1.0, NAN]]))),
        # A composite: the op within it that is at fault
        (r"standardize: .*nan", lambda: F.batch_norm(np.ones((2, 1)), None, None, training=True, eps=0.0)),
    ],
)
def test_forward_names_op_operand_value_and_line(sentence: str, call: Callable[[], Any]) -> None:
    """The line is the user's, not this package's."""
    line = rf".*test_anomaly.py:{call.__code__.co_firstlineno}\b.*<lambda>"
    with detect_anomaly(), pytest.raises(AnomalyError, match=f"^{sentence}{line}"):
        call()


def test_indices_and_labels_out_of_range_on_a_device() -> None:
    """Nothing else looks at them there, since that would wait for the device."""
    x, logits = Tensor(np.ones((4, 5)), device="strict"), Tensor(np.ones((2, 3)), device="strict")

    def on_device(*values: int) -> Tensor:
        return Tensor(np.array(values), device="strict")

    calls = [
        (r"getitem: index is 5 at index \(1,\); expected -5 to 4;", lambda: x[:, on_device(0, 5)]),
        (r"getitem: index is -5 at index \(0,\); expected -4 to 3;", lambda: x[on_device(-5), on_device(4)]),
        (r"getitem: index is 6 at index \(0,\); expected -5 to 4;", lambda: x[None, ..., on_device(6)]),
        (r"assign: index is 4 at index \(0,\); expected -4 to 3;", lambda: x.__setitem__(on_device(4), 0.0)),
        (
            r"cross_entropy: labels is 3 at index \(1,\); expected 0 to 2;",
            lambda: F.cross_entropy(logits, on_device(0, 3)),
        ),
        (r"one_hot: labels is -1 at index \(0,\); expected 0 to 2;", lambda: F.nll_loss(logits, on_device(-1, 0))),
    ]
    for sentence, call in calls:
        call()
        with detect_anomaly(), pytest.raises(AnomalyError, match=f"^{sentence} called at .*test_anomaly.py"):
            call()
    with detect_anomaly():
        assert x[on_device(-4, 3), 4].shape == (2,)
        F.cross_entropy(logits, on_device(0, 2))


def test_backward_names_the_forward_line() -> None:
    x = leaf(0.0, 1.0)
    with detect_anomaly():
        y = x.sqrt()
        with pytest.raises(AnomalyError) as caught:
            y.sum().backward()
    assert str(caught.value).startswith("sqrt: the gradient for x is inf at index (0,); forward was called at ")
    assert str(caught.value).endswith("in test_backward_names_the_forward_line: y = x.sqrt()")
    assert not hasattr(caught.value, "__notes__")  # the line is named once
    assert x.grad is None


def test_backward_of_a_forward_that_was_not_watched() -> None:
    y = leaf(0.0).sqrt()
    with detect_anomaly(), pytest.raises(AnomalyError, match=r"sqrt: the gradient for x .* not recorded"):
        y.backward()


def test_off_before_and_after_the_block_and_in_other_threads() -> None:
    found: list[float] = []

    def differentiate() -> None:
        x = leaf(1.0)
        (x * INF).backward()
        found.append(x.grad.item())

    differentiate()
    with detect_anomaly():
        thread = threading.Thread(target=differentiate)
        thread.start()
        thread.join()
    differentiate()
    assert found == [INF] * 3


def test_integers_and_empty_tensors_pass() -> None:
    with detect_anomaly():
        assert Tensor(np.array([1, 2]))[0].item() == 1
        assert (Tensor(np.zeros((0, 3))) * 2.0).sum().item() == 0


@pytest.mark.usefixtures("scratch_ops")
def test_an_error_in_backward_gets_the_forward_line_as_a_note() -> None:
    class Broken(Op):
        """y = x; the derivative fails."""

        signature = "broken(x[...]) -> y[...]"
        domains = {"x": REAL}

        def forward(self, xp: Any, x: Any) -> Any:
            return xp.array(x)

        def backward(self, gy: Tensor, y: Tensor, x: Tensor) -> Tensor:
            raise RuntimeError("no derivative")

    with detect_anomaly(), pytest.raises(RuntimeError, match="no derivative") as caught:
        Broken()(leaf(1.0)).backward()
    (note,) = caught.value.__notes__
    assert "broken" in note
    assert "Broken()(leaf(1.0)).backward()" in note


# Hooks on tensors


def test_hook_sees_the_complete_gradient_once() -> None:
    seen: list[float] = []
    x = leaf(2.0)
    h = x * 3.0
    h.register_hook(lambda g: seen.append(g.item()))
    (h * h + h).backward()
    assert seen == [13.0]  # 2 h + 1, h = 6
    assert x.grad.item() == 39.0


def test_hooks_replace_in_order_until_they_are_removed() -> None:
    x = leaf(1.0)
    (x * 1.0).backward()
    gone = x.register_hook(lambda g: 100.0 * g)
    gone.remove()
    double = x.register_hook(lambda g: 2.0 * g)
    x.register_hook(lambda g: g + 1.0)
    gone.remove()  # a second time takes no other hook away
    (x * 1.0).backward()
    double.remove()
    (x * 1.0).backward()
    assert x.grad.item() == 1.0 + 3.0 + 2.0


def test_a_hook_may_remove_itself() -> None:
    """The walk goes over the hooks that there were when it came; the others are called all the same."""
    x, seen = leaf(1.0), []

    def once(g: Tensor) -> None:
        seen.append("once")
        handle.remove()

    handle = x.register_hook(once)
    x.register_hook(lambda g: seen.append("always"))
    for _ in range(2):
        (x * 1.0).backward()
    assert seen == ["once", "always", "always"]


def test_hook_works_in_grad_and_stays_differentiable() -> None:
    x = leaf(3.0)
    h = x * 1.0
    squared = h.register_hook(lambda g: g * g)
    (gx,) = grad(h * h, [x], create_graph=True)
    squared.remove()
    assert gx.item() == 36.0  # (2 x)^2
    assert grad(gx, [x])[0].item() == 24.0


@pytest.mark.parametrize("answer", [1.0, Tensor([1.0, 2.0]), Tensor(1.0, dtype="float64")])
def test_hook_that_returns_something_else_is_refused(answer: Any) -> None:
    x = leaf(1.0)
    x.register_hook(lambda g: answer)
    with pytest.raises(ValueError, match=r"register_hook: .*float32"):
        (x * 1.0).backward()
    assert x.grad is None


def test_hook_needs_a_gradient() -> None:
    with pytest.raises(ValueError, match=r"register_hook: .*gradient"):
        Tensor(1.0).register_hook(lambda g: None)


# Hooks on modules


def test_forward_hook_sees_and_replaces() -> None:
    layer = nn.Linear(2, 1, rng=0)
    seen: list[tuple[int, ...]] = []

    def once(module: nn.Module, inputs: tuple[Any, ...], y: Tensor) -> None:
        seen.append((*inputs[0].shape, *y.shape))
        look.remove()

    look = layer.register_forward_hook(once)
    zero = layer.register_forward_hook(lambda module, inputs, y: y * 0.0)
    x = Tensor(np.ones((3, 2), np.float32))
    assert layer(x).numpy().tolist() == [[0.0]] * 3
    zero.remove()
    assert layer(x).numpy().any()
    assert seen == [(3, 2, 3, 1)]


def test_forward_hooks_of_one_module_are_its_own() -> None:
    first, second = nn.Tanh(), nn.Tanh()
    seen: list[nn.Module] = []
    first.register_forward_hook(lambda module, inputs, y: seen.append(module))
    with no_grad():
        nn.Sequential(second, first)(Tensor(1.0))
    assert seen == [first]


def test_forward_hook_must_be_callable() -> None:
    with pytest.raises(TypeError, match=r"register_forward_hook: .*int"):
        nn.Tanh().register_forward_hook(3)  # type: ignore[arg-type]
