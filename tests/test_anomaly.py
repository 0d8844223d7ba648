"""Looking inside: anomalies are traced to the line that made them, and hooks see what flows."""

import threading
from collections.abc import Iterator

import numpy as np
import pytest

from tinygrad_lenet import REAL, AnomalyError, Op, Tensor, detect_anomaly, grad, nn, no_grad
from tinygrad_lenet import functional as F
from tinygrad_lenet.op import REGISTRY


@pytest.fixture(autouse=True)
def _silent() -> Iterator[None]:
    with np.errstate(all="ignore"):
        yield


def test_forward_names_op_operand_value_and_line() -> None:
    x = Tensor([[1.0, 2.0], [0.0, 3.0]])
    with detect_anomaly(), pytest.raises(AnomalyError) as caught:
        y = x.log()
    message = str(caught.value)
    assert message.startswith("log: the output is -inf at index (1, 0), where x is 0.0; called at ")
    assert message.endswith("in test_forward_names_op_operand_value_and_line: y = x.log()")
    assert "test_anomaly.py:" in message
    assert "y" not in locals()


def test_values_are_found_through_broadcasting() -> None:
    a, b = Tensor(np.ones((2, 3))), Tensor(np.array([[1.0], [0.0]]))
    with (
        detect_anomaly(),
        pytest.raises(AnomalyError, match=r"divide: .* inf at index \(1, 0\), where a is 1.0, b is 0"),
    ):
        a / b


def test_an_operand_that_came_in_bad_is_named() -> None:
    weight = Tensor([[1.0, float("nan")]])
    with detect_anomaly(), pytest.raises(AnomalyError, match=r"linear: weight is already nan at index \(0, 1\)"):
        F.linear([1.0, 2.0], weight)


def test_the_first_op_is_named_also_inside_a_composite() -> None:
    """The op at fault is reported, and the line is the user's, not this package's."""
    with detect_anomaly(), pytest.raises(AnomalyError, match=r"power: .*test_anomaly.py:\d+, in test_the_first"):
        F.batch_norm(np.ones((2, 1)), None, None, training=True, eps=0.0)


def test_backward_names_the_forward_line() -> None:
    x = Tensor([0.0, 1.0], requires_grad=True)
    with detect_anomaly():
        y = x.sqrt()
        with pytest.raises(AnomalyError) as caught:
            y.sum().backward()
    assert str(caught.value).startswith("sqrt: the gradient for x is inf at index (0,); forward was called at ")
    assert str(caught.value).endswith("in test_backward_names_the_forward_line: y = x.sqrt()")
    assert x.grad is None


def test_backward_of_a_forward_that_was_not_watched() -> None:
    x = Tensor([0.0], requires_grad=True)
    y = x.sqrt()
    with detect_anomaly(), pytest.raises(AnomalyError, match="a line that was not recorded"):
        y.backward()


def test_nothing_is_raised_or_recorded_when_off() -> None:
    x = Tensor([0.0], requires_grad=True)
    y = x.sqrt()
    y.backward()
    assert np.isinf(x.grad.numpy()).all()
    assert y.origin is None


def test_integers_and_empty_tensors_pass() -> None:
    with detect_anomaly():
        assert Tensor(np.array([1, 2]))[0].item() == 1
        assert (Tensor(np.zeros((0, 3))) * 2.0).sum().item() == 0


def test_off_in_other_threads_and_after_the_block() -> None:
    results: list[float] = []
    with detect_anomaly():
        thread = threading.Thread(target=lambda: results.append((Tensor(np.inf) * 1.0).item()))
        thread.start()
        thread.join()
    results.append((Tensor(np.inf) * 1.0).item())
    assert results == [np.inf, np.inf]


def test_an_error_in_backward_gets_the_forward_line_as_a_note() -> None:
    try:

        class Broken(Op):
            """y = x; the derivative fails."""

            signature = "broken_for_test(x[...]) -> y[...]"
            domains = {"x": REAL}

            def forward(self, xp, x):  # type: ignore[no-untyped-def]
                return xp.array(x)

            def backward(self, gy, y, x):  # type: ignore[no-untyped-def]
                raise RuntimeError("no derivative")

        x = Tensor(1.0, requires_grad=True)
        with detect_anomaly(), pytest.raises(RuntimeError, match="no derivative") as caught:
            Broken()(x).backward()
        assert any("The forward pass called broken_for_test at " in note for note in caught.value.__notes__)
    finally:
        REGISTRY.pop("broken_for_test", None)


# Hooks on tensors


def test_hook_sees_the_complete_gradient_once() -> None:
    seen: list[float] = []
    x = Tensor(2.0, requires_grad=True)
    h = x * 3.0
    h.register_hook(lambda g: seen.append(g.item()))
    (h * h + h).backward()
    assert seen == [13.0]  # 2 h + 1, h = 6
    assert x.grad.item() == 39.0


def test_hooks_replace_in_order_and_can_be_removed() -> None:
    x = Tensor(1.0, requires_grad=True)
    double = x.register_hook(lambda g: 2.0 * g)
    x.register_hook(lambda g: g + 1.0)
    (x * 1.0).backward()
    assert x.grad.item() == 3.0
    double.remove()
    double.remove()
    x.zero_grad()
    (x * 1.0).backward()
    assert x.grad.item() == 2.0


def test_hook_works_in_grad_and_stays_differentiable() -> None:
    x = Tensor(3.0, requires_grad=True)
    x.register_hook(lambda g: g * g)
    (gx,) = grad(x * x, [x], create_graph=True)
    assert gx.item() == 36.0
    assert grad(gx, [gx.inputs[0]])[0].item() == 12.0  # d(g^2)/dg at g = 6


@pytest.mark.parametrize("answer", [1.0, Tensor([1.0, 2.0]), Tensor(np.float64(1.0))])
def test_hook_that_returns_something_else_is_refused(answer: object) -> None:
    x = Tensor(1.0, requires_grad=True)
    x.register_hook(lambda g: answer)
    with pytest.raises(ValueError, match=r"register_hook: the hook returned .*; expected a Tensor, float32 of shape"):
        (x * 1.0).backward()


def test_hook_needs_a_gradient() -> None:
    with pytest.raises(ValueError, match="register_hook: this tensor requires no gradient"):
        Tensor(1.0).register_hook(lambda g: None)


# Hooks on modules


def test_forward_hook_sees_and_replaces() -> None:
    layer = nn.Linear(2, 1, rng=0)
    seen: list[tuple[int, ...]] = []
    look = layer.register_forward_hook(lambda module, inputs, y: seen.append((*inputs[0].shape, *y.shape)))
    zero = layer.register_forward_hook(lambda module, inputs, y: y * 0.0)
    x = Tensor(np.ones((3, 2), np.float32))
    assert layer(x).numpy().tolist() == [[0.0]] * 3
    look.remove()
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
    with pytest.raises(TypeError, match="register_forward_hook: the hook is int"):
        nn.Tanh().register_forward_hook(3)  # type: ignore[arg-type]


def test_a_handle_removes_its_own_hook_only() -> None:
    x = Tensor(1.0, requires_grad=True)
    first = x.register_hook(lambda g: 2.0 * g)
    first.remove()
    x.register_hook(lambda g: 3.0 * g)
    first.remove()
    (x * 1.0).backward()
    assert x.grad.item() == 3.0
