"""The ops, one file per family. Importing this package fills the registry, `tinygrad_lenet.op.REGISTRY`."""

from . import (
    conv,
    elementwise,
    further,
    indexing,
    layout,
    lenet_1998,
    linalg,
    pool,
    random,
    reduction,
    softmax,
    standardize,
)

__all__ = [
    "conv",
    "elementwise",
    "further",
    "indexing",
    "layout",
    "lenet_1998",
    "linalg",
    "pool",
    "random",
    "reduction",
    "softmax",
    "standardize",
]
