"""Data sets, batches and distortions: NumPy arrays in, NumPy arrays out.

>>> from tinygrad_lenet import data
>>> loader = data.DataLoader(*data.digits("train"), batch_size=64)
>>> x, labels = next(iter(loader))
>>> x.shape, labels.shape
((64, 1, 32, 32), (64,))
"""

from .idx_files import DataError, read_idx, write_idx
from .loader import Affine, DataLoader, to_input
from .sets import digits, fashion_mnist, idx, mnist

__all__ = [
    "Affine", "DataError", "DataLoader",
    "digits", "fashion_mnist", "idx", "mnist", "read_idx", "to_input", "write_idx",
]  # fmt: skip


def __dir__() -> list[str]:  # what completion offers: no helpers, no imports
    return __all__
