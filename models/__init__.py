"""The LeNets."""

from .lenet5 import LeNet5

__all__ = ["LeNet5"]
