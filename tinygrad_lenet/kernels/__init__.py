"""Faster array kernels behind single ops, one file per backend; importing this package registers them.

Derivatives are stated in ops only.
"""

from . import cpu, cuda

__all__ = ["cpu", "cuda"]
