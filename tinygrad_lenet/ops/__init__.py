"""The ops, one file a family. Importing this package fills the registry, `tinygrad_lenet.tensor.REGISTRY`."""

from . import conv, distance, elementwise, indexing, layout, linalg, pool, reduction, softmax

__all__ = ["conv", "distance", "elementwise", "indexing", "layout", "linalg", "pool", "reduction", "softmax"]
