"""Modules: layers that hold their parameters, and models made of them. Names and layouts follow PyTorch's."""

from . import init
from .further import Dropout2d, Embedding, LayerNorm, LeakyReLU, Softmax
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
from .losses import BCEWithLogitsLoss, CrossEntropyLoss, L1Loss, MSELoss, NLLLoss, SmoothL1Loss
from .module import Module, ModuleList, Parameter, Sequential

__all__ = [
    "RBF",
    "AvgPool2d",
    "BCEWithLogitsLoss",
    "BatchNorm1d",
    "BatchNorm2d",
    "Conv2d",
    "ConvTranspose2d",
    "CrossEntropyLoss",
    "Dropout",
    "Dropout2d",
    "Embedding",
    "Flatten",
    "L1Loss",
    "LayerNorm",
    "LeakyReLU",
    "Linear",
    "MSELoss",
    "MaxPool2d",
    "Module",
    "ModuleList",
    "NLLLoss",
    "Parameter",
    "ReLU",
    "ScaledTanh",
    "Sequential",
    "Sigmoid",
    "SmoothL1Loss",
    "Softmax",
    "Subsample2d",
    "Tanh",
    "init",
]


def __dir__() -> list[str]:  # for completion: no helpers, no imports
    return __all__
