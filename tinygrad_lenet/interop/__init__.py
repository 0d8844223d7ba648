"""Bridges to other programs; each needs an extra of its own, and nothing is imported before it is used."""

from . import onnx

__all__ = ["onnx"]
