"""An autograd micro-framework around LeNet-5.

>>> import tinygrad_lenet
>>> x = tinygrad_lenet.Tensor([1.0, 2.0], requires_grad=True)
>>> (x * x).sum().backward()
>>> x.grad
Tensor([2., 4.])
"""

from . import backend, checkpoint, data, functional, interop, kernels, nn, ops, optim, parallel, testing
from .anomaly import AnomalyError, detect_anomaly
from .creation import (
    arange,
    eye,
    full,
    full_like,
    linspace,
    ones,
    ones_like,
    rand,
    rand_like,
    randint,
    randn,
    randn_like,
    zeros,
    zeros_like,
)
from .curvature import curvature
from .graph import no_grad
from .jit import jit
from .op import REAL, Domain, Op
from .recorded import JitError
from .seeds import manual_seed
from .shapes import ShapeError
from .tensor import Tensor, grad

__version__ = "0.1.0"
__all__ = [
    "REAL",
    "AnomalyError",
    "Domain",
    "JitError",
    "Op",
    "ShapeError",
    "Tensor",
    "arange",
    "backend",
    "checkpoint",
    "curvature",
    "data",
    "detect_anomaly",
    "eye",
    "full",
    "full_like",
    "functional",
    "grad",
    "interop",
    "jit",
    "kernels",
    "linspace",
    "manual_seed",
    "models",
    "nn",
    "no_grad",
    "ones",
    "ones_like",
    "ops",
    "optim",
    "parallel",
    "rand",
    "rand_like",
    "randint",
    "randn",
    "randn_like",
    "testing",
    "zeros",
    "zeros_like",
]

from . import models  # last, since the models are built on all of the above


def __dir__() -> list[str]:  # for completion: nothing internal
    return [*__all__, "__version__"]
