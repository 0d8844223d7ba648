"""The LeNets."""

from .lenet5 import LeNet5
from .lenet5_1998 import LeNet5_1998

__all__ = ["LeNet5", "LeNet5_1998"]
