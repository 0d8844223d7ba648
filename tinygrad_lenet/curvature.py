"""Curvature, a second pass next to the backward pass, and the three rules for it that most ops inherit.

The curvature of an input is the sum of hy (dy/dx)^2 over the outputs y: a backward pass with every slope squared.
"""

from collections.abc import Sequence
from typing import Any

from .graph import Path, add_up, input_gradients, mode, no_grad, observed
from .op import Gradient, Op
from .tensor import Tensor, check_start, start_of, targets_of, unused


class Elementwise(Op, kind=True):
    """Each output element depends on one element of each input; applying backward twice squares the slope."""

    def curvature(self, hy: Tensor, gy: Tensor, y: Tensor, /, *inputs: Any) -> Gradient | tuple[Gradient, ...]:
        def squared(i: int) -> Tensor:
            h = hy
            for _ in range(2):
                slopes = self.backward(h, y, *inputs)
                h = _value(slopes[i] if isinstance(slopes, tuple) else slopes)
            return h

        return tuple([lambda i=i: squared(i) for i in range(len(inputs))])


class Movement(Op, kind=True):
    """Elements are moved, repeated or selected; every slope is 1 or 0, which squaring does not change."""

    reads_values = False

    def curvature(self, hy: Tensor, gy: Tensor, y: Tensor, /, *inputs: Any) -> Gradient | tuple[Gradient, ...]:
        return self.backward(hy, y, *inputs)


class Multilinear(Op, kind=True):
    """The output is linear in each factor; the slopes are products of the other factors, which are squared."""

    def curvature(self, hy: Tensor, gy: Tensor, y: Tensor, /, *inputs: Any) -> Gradient | tuple[Gradient, ...]:
        tensors = [x for x in inputs if isinstance(x, Tensor)]
        if len({id(x) for x in tensors}) < len(tensors):
            raise ValueError(
                f"{self.name}: curvature needs factors that are different tensors, but a tensor times itself is a "
                "square, whose second derivative would be lost; use functional.mse_loss for a loss"
            )
        return self.backward(hy, y, *[x * x for x in inputs])


def _value(gradient: Gradient) -> Tensor:
    found = gradient() if callable(gradient) else gradient
    assert found is not None
    return found


def curvature(loss: Tensor, inputs: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The diagonal Gauss-Newton approximation of d2(loss)/d(input)2 for each of ``inputs``, never negative.

    This is the backward pass with every local derivative squared: hx = sum of hy (dy/dx)^2 over the uses y of x. It
    begins at the losses (`functional.cross_entropy`, `mse_loss`, `penalty_loss`, `rbf`), which add their own second
    derivative times their gradient. Second derivatives of all other ops are left out, and so are off-diagonal terms
    (LeCun et al., 1998, Eqs. 22-27). A mean over N samples gives the mean of their curvatures. Hooks are not called,
    the graph is kept, and the results cannot be differentiated.

    ValueError if ``loss`` has more than one element, if an op without a curvature rule contributed to it, or if no op
    with a second derivative did; and for the same reasons as in `grad`.

    >>> from tinygrad_lenet.functional import mse_loss
    >>> x = Tensor([3.0, -1.0], requires_grad=True)
    >>> curvature(mse_loss(5.0 * x, [0.0, 0.0], reduction="sum"), x)  # d2/dx2 of 25 x^2
    (Tensor([50., 50.]),)
    """
    targets = targets_of("curvature", inputs)
    check_start("curvature", loss, None)
    path = Path(loss, targets)
    for i in unused(path, targets):
        raise ValueError(f"curvature: input {i}, of shape {targets[i].shape}, was not used to compute the loss")
    ops = [y.op for y in path.nodes() if path.continues(y)]
    for op in ops:
        if type(op).curvature is Op.curvature:
            raise ValueError(f"curvature: op {op.name} has no curvature rule; define `curvature` beside its `backward`")
    if not any(op.curved for op in ops):
        raise ValueError(
            "curvature: no loss lies between the inputs and the output, so all curvatures would be 0; end with "
            "functional.cross_entropy, mse_loss or penalty_loss"
        )
    inner = {id(y) for y in path.nodes() if y.op is not None}  # only these pass a gradient on
    found = {}
    now = mode.get().observer
    with no_grad(), observed(None if now is None else now.within_backward()):
        start = start_of(loss, None)
        gradients, curvatures = {id(loss): start}, {id(loss): 0.0 * start}
        for y in path.backwards():
            hy = curvatures.pop(id(y))
            if id(y) in path.wanted:
                found[id(y)] = hy
            if path.continues(y):
                gy = gradients.pop(id(y))
                add_up(gradients, input_gradients(y, inner, gradients, None, y.op.backward, gy))
                add_up(curvatures, input_gradients(y, path.leading, curvatures, None, y.op.curvature, hy, gy))
    return tuple(found[id(x)] for x in targets)
