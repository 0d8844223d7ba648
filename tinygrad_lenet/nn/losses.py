"""The losses of `functional` as modules, for programs that pass a criterion around. Arguments are PyTorch's."""

from typing import Any

from .. import functional as F
from ..tensor import Tensor, TensorLike
from .module import Module


class _Loss(Module):
    """A function of x, a target and ``options``."""

    _function: Any

    def __init__(self, **options: Any) -> None:
        F._reduction(type(self).__name__, options["reduction"])
        self.options: dict[str, Any] = options

    def forward(self, x: TensorLike, target: TensorLike) -> Tensor:
        return type(self)._function(x, target, **self.options)

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items() if value is not None)


class CrossEntropyLoss(_Loss):
    """`functional.cross_entropy`.

    >>> round(CrossEntropyLoss()([[0.0, 0.0]], [1]).item(), 4)
    0.6931
    """

    _function = F.cross_entropy

    def __init__(
        self,
        weight: TensorLike | None = None,
        ignore_index: int | None = None,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(weight=weight, ignore_index=ignore_index, reduction=reduction, label_smoothing=label_smoothing)


class NLLLoss(_Loss):
    """`functional.nll_loss`.

    >>> NLLLoss()([[-0.5, -1.0]], [1]).item()
    1.0
    """

    _function = F.nll_loss

    def __init__(self, reduction: str = "mean") -> None:
        super().__init__(reduction=reduction)


class MSELoss(_Loss):
    """`functional.mse_loss`.

    >>> MSELoss()([1.0, 2.0], [1.0, 4.0]).item()
    2.0
    """

    _function = F.mse_loss

    def __init__(self, reduction: str = "mean") -> None:
        super().__init__(reduction=reduction)


class L1Loss(_Loss):
    """`functional.l1_loss`.

    >>> L1Loss()([1.0, 2.0], [1.0, 4.0]).item()
    1.0
    """

    _function = F.l1_loss

    def __init__(self, reduction: str = "mean") -> None:
        super().__init__(reduction=reduction)


class SmoothL1Loss(_Loss):
    """`functional.smooth_l1_loss`.

    >>> SmoothL1Loss()([0.0], [3.0]).item()
    2.5
    """

    _function = F.smooth_l1_loss

    def __init__(self, reduction: str = "mean", beta: float = 1.0) -> None:
        super().__init__(reduction=reduction, beta=beta)


class BCEWithLogitsLoss(_Loss):
    """`functional.binary_cross_entropy_with_logits`.

    >>> round(BCEWithLogitsLoss()([0.0], [1.0]).item(), 4)
    0.6931
    """

    _function = F.binary_cross_entropy_with_logits

    def __init__(
        self, weight: TensorLike | None = None, reduction: str = "mean", pos_weight: TensorLike | None = None
    ) -> None:
        super().__init__(weight=weight, reduction=reduction, pos_weight=pos_weight)
