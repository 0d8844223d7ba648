"""Layers that the LeNets do not need and other programs do. Arguments, layouts and initial values are PyTorch's."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import functional as F
from ..op import op
from ..shapes import generator, integer, integers, number, one_axis
from ..tensor import Tensor, TensorLike
from .layers import Dropout, Random, _float_dtype
from .module import Activation, Module, Parameter


class LeakyReLU(Activation):
    """x where x > 0, else negative_slope x, for each element; ``inplace``, which PyTorch has, changes nothing.

    >>> LeakyReLU(0.5)([-1.0, 2.0])
    Tensor([-0.5,  2. ])
    """

    def __init__(self, negative_slope: float = 0.01, inplace: bool = False) -> None:
        self.negative_slope: float = number("LeakyReLU", "negative_slope", negative_slope)

    def forward(self, x: TensorLike) -> Tensor:
        return F.leaky_relu(x, self.negative_slope)

    def extra_repr(self) -> str:
        return f"negative_slope={self.negative_slope:g}"


class Softmax(Module):
    """e**x / sum of e**x along ``axis``: x[...] -> y[...].

    >>> Softmax()([0.0, 0.0])
    Tensor([0.5, 0.5])
    """

    def __init__(self, axis: int = -1) -> None:
        self.axis: int = one_axis("Softmax", "axis", axis)

    def forward(self, x: TensorLike) -> Tensor:
        return op("softmax", self.axis)(x)

    def extra_repr(self) -> str:
        return f"axis={self.axis}"


class Dropout2d(Dropout):
    """While training, each map x[n c] of x[N C ...] is 0 with probability ``p``, the others are divided by 1 - p.

    >>> Dropout2d(0.5, rng=1)(np.ones((1, 2, 1, 2), np.float32)).numpy()[0].tolist()
    [[[2.0, 2.0]], [[0.0, 0.0]]]
    """

    def forward(self, x: TensorLike) -> Tensor:
        return F.dropout2d(x, self.p, self.training, self.rng)


class LayerNorm(Module):
    """`functional.layer_norm` with learned weight[S] and bias[S]: x[... S] -> y[... S], S being ``normalized_shape``.

    TypeError or ValueError for settings out of range.

    >>> LayerNorm(2, eps=0.0)([1.0, 3.0]).numpy().tolist()
    [-1.0, 1.0]
    """

    weight: Parameter | None
    bias: Parameter | None

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        dtype: Any = np.float32,
    ) -> None:
        self.normalized_shape: tuple[int, ...] = integers("LayerNorm", "normalized_shape", normalized_shape, 1)
        if not self.normalized_shape:
            raise ValueError("LayerNorm: normalized_shape is empty; expected the sizes of at least one axis")
        self.eps: float = number("LayerNorm", "eps", eps, "[0, inf)")
        dtype = _float_dtype("LayerNorm", dtype)
        shape = self.normalized_shape
        self.weight = Parameter(np.ones(shape), dtype=dtype) if elementwise_affine else None
        self.bias = Parameter(np.zeros(shape), dtype=dtype) if elementwise_affine and bias else None

    def forward(self, x: TensorLike) -> Tensor:
        return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return f"{self.normalized_shape}, eps={self.eps:g}, elementwise_affine={self.weight is not None}"


class Embedding(Module):
    """weight[indices] with weight[K D]: indices[...] of integers in [0, K) -> y[... D].

    K is ``num_embeddings``, D ``embedding_dim``; weights start normal, variance 1. TypeError or ValueError for sizes
    that are not integers of at least 1, and for indices on the host that are out of range.

    >>> Embedding(5, 3)([0, 4]).shape
    (2, 3)
    """

    weight: Parameter

    def __init__(self, num_embeddings: int, embedding_dim: int, rng: Random = None, dtype: Any = np.float32) -> None:
        self.num_embeddings: int = integer("Embedding", "num_embeddings", num_embeddings, minimum=1)
        self.embedding_dim: int = integer("Embedding", "embedding_dim", embedding_dim, minimum=1)
        drawn = generator("Embedding", "rng", rng).standard_normal((self.num_embeddings, self.embedding_dim))
        self.weight = Parameter(drawn, dtype=_float_dtype("Embedding", dtype))

    def forward(self, indices: TensorLike) -> Tensor:
        return F.embedding(indices, self.weight)

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}"
