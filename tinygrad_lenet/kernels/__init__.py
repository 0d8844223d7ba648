"""Faster array kernels behind single ops, one file per backend; importing this package registers them.

Derivatives are stated in ops only.
"""

from . import cpu, cpu_general, cuda

__all__ = ["cpu", "cpu_general", "cuda"]
