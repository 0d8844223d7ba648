"""The ops, one file per family. Importing this package fills the registry, `tinygrad_lenet.op.REGISTRY`."""

from . import conv, elementwise, indexing, layout, lenet_1998, linalg, pool, reduction, softmax, standardize

__all__ = [
    "conv",
    "elementwise",
    "indexing",
    "layout",
    "lenet_1998",
    "linalg",
    "pool",
    "reduction",
    "softmax",
    "standardize",
]
