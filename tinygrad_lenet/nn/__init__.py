"""Modules: layers that hold their parameters, and models made of them. Names and layouts follow PyTorch's."""

from .layers import (
    RBF,
    AvgPool2d,
    BatchNorm1d,
    BatchNorm2d,
    Conv2d,
    ConvTranspose2d,
    Dropout,
    Flatten,
    Linear,
    MaxPool2d,
    ReLU,
    ScaledTanh,
    Sigmoid,
    Subsample2d,
    Tanh,
)
from .module import Module, Parameter, Sequential

__all__ = [
    "RBF",
    "AvgPool2d",
    "BatchNorm1d",
    "BatchNorm2d",
    "Conv2d",
    "ConvTranspose2d",
    "Dropout",
    "Flatten",
    "Linear",
    "MaxPool2d",
    "Module",
    "Parameter",
    "ReLU",
    "ScaledTanh",
    "Sequential",
    "Sigmoid",
    "Subsample2d",
    "Tanh",
]


def __dir__() -> list[str]:  # what completion offers: no helpers, no imports
    return __all__
