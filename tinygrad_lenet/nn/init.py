"""Initial values, written into a tensor in place; names and formulas are PyTorch's.

Each function returns the tensor. fan_in is the number of inputs that one output sums over, size / size of the first
axis, and fan_out the same for the second axis. ``rng`` is a generator, a seed, or None for that of
`tinygrad_lenet.manual_seed`. ShapeError for a tensor with fewer than two axes where these are needed.
"""

import math

import numpy as np

from ..graph import no_grad
from ..shapes import ShapeError, generator, number
from ..tensor import Tensor

__all__ = [
    "constant_",
    "kaiming_normal_",
    "kaiming_uniform_",
    "normal_",
    "ones_",
    "uniform_",
    "xavier_normal_",
    "xavier_uniform_",
    "zeros_",
]

Random = np.random.Generator | int | None
_GAINS = {"linear": 1.0, "sigmoid": 1.0, "tanh": 5 / 3, "relu": math.sqrt(2)}


def __dir__() -> list[str]:  # for completion: no helpers, no imports
    return __all__


def uniform_(tensor: Tensor, a: float = 0.0, b: float = 1.0, rng: Random = None) -> Tensor:
    """Uniform in [a, b).

    >>> bool(abs(uniform_(Tensor(np.zeros(9)), -1, 1)).max() <= 1)
    True
    """
    a, b = number("uniform_", "a", a), number("uniform_", "b", b)
    return _written(tensor, generator("uniform_", "rng", rng).uniform(a, b, tensor.shape))


def normal_(tensor: Tensor, mean: float = 0.0, std: float = 1.0, rng: Random = None) -> Tensor:
    """Normal with this mean and standard deviation.

    >>> normal_(Tensor(np.ones(2)), 3.0, 0.0).numpy().tolist()
    [3.0, 3.0]
    """
    mean, std = number("normal_", "mean", mean), number("normal_", "std", std, "[0, inf)")
    return _written(tensor, generator("normal_", "rng", rng).normal(mean, std, tensor.shape))


def constant_(tensor: Tensor, val: float) -> Tensor:
    """``val`` everywhere.

    >>> constant_(Tensor([1.0, 2.0]), 7.0)
    Tensor([7., 7.])
    """
    return _written(tensor, np.full(tensor.shape, number("constant_", "val", val)))


def zeros_(tensor: Tensor) -> Tensor:
    """0 everywhere.

    >>> zeros_(Tensor([1.0, 2.0]))
    Tensor([0., 0.])
    """
    return constant_(tensor, 0.0)


def ones_(tensor: Tensor) -> Tensor:
    """1 everywhere.

    >>> ones_(Tensor([0.0, 2.0]))
    Tensor([1., 1.])
    """
    return constant_(tensor, 1.0)


def xavier_uniform_(tensor: Tensor, gain: float = 1.0, rng: Random = None) -> Tensor:
    """Uniform in +-gain sqrt(6 / (fan_in + fan_out)) (Glorot & Bengio, 2010).

    >>> bool(abs(xavier_uniform_(Tensor(np.zeros((3, 3))))).max() <= 1)
    True
    """
    bound = number("xavier_uniform_", "gain", gain) * math.sqrt(6 / sum(_fans("xavier_uniform_", tensor)))
    return uniform_(tensor, -bound, bound, rng)


def xavier_normal_(tensor: Tensor, gain: float = 1.0, rng: Random = None) -> Tensor:
    """Normal with standard deviation gain sqrt(2 / (fan_in + fan_out)) (Glorot & Bengio, 2010).

    >>> xavier_normal_(Tensor(np.zeros((3, 3)))).shape
    (3, 3)
    """
    std = number("xavier_normal_", "gain", gain, "[0, inf)") * math.sqrt(2 / sum(_fans("xavier_normal_", tensor)))
    return normal_(tensor, 0.0, std, rng)


def kaiming_uniform_(
    tensor: Tensor, a: float = 0.0, mode: str = "fan_in", nonlinearity: str = "leaky_relu", rng: Random = None
) -> Tensor:
    """Uniform in +-gain sqrt(3 / fan) (He et al., 2015); gain and fan as in `kaiming_normal_`.

    >>> bool(abs(kaiming_uniform_(Tensor(np.zeros((3, 6))), nonlinearity="relu")).max() <= 1)
    True
    """
    bound = math.sqrt(3) * _kaiming("kaiming_uniform_", tensor, a, mode, nonlinearity)
    return uniform_(tensor, -bound, bound, rng)


def kaiming_normal_(
    tensor: Tensor, a: float = 0.0, mode: str = "fan_in", nonlinearity: str = "leaky_relu", rng: Random = None
) -> Tensor:
    """Normal with standard deviation gain / sqrt(fan) (He et al., 2015).

    fan is fan_in or fan_out, as ``mode`` says. gain is sqrt(2 / (1 + a^2)) for ``nonlinearity`` "leaky_relu" with slope
    ``a``, sqrt(2) for "relu", 5/3 for "tanh", 1 for "linear" and "sigmoid".

    >>> kaiming_normal_(Tensor(np.zeros((3, 6)))).shape
    (3, 6)
    """
    return normal_(tensor, 0.0, _kaiming("kaiming_normal_", tensor, a, mode, nonlinearity), rng)


def _kaiming(caller: str, tensor: Tensor, a: float, mode: str, nonlinearity: str) -> float:
    fans = dict(zip(("fan_in", "fan_out"), _fans(caller, tensor), strict=True))
    gains = _GAINS | {"leaky_relu": math.sqrt(2 / (1 + number(caller, "a", a) ** 2))}
    for name, value, known in (("mode", mode, fans), ("nonlinearity", nonlinearity, gains)):
        if value not in known:
            raise ValueError(f"{caller}: {name} is {value!r}; expected {' or '.join(map(repr, known))}")
    return gains[nonlinearity] / math.sqrt(fans[mode])


def _fans(caller: str, tensor: Tensor) -> tuple[int, int]:
    if tensor.ndim < 2 or not tensor.size:
        raise ShapeError(f"{caller}: the tensor has shape {tensor.shape}; expected at least two axes, none empty")
    return tensor.size // tensor.shape[0], tensor.size // tensor.shape[1]


@no_grad
def _written(tensor: Tensor, values: np.ndarray) -> Tensor:
    tensor[...] = Tensor(values.astype(tensor.dtype), device=tensor.device)
    return tensor
