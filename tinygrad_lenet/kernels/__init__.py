"""Faster array kernels behind single ops, one file a backend; importing this package registers them.

No derivative is stated here.
"""

from . import cpu

__all__ = ["cpu"]
