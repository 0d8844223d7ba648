"""The LeNets: `tinygrad_lenet.models` and, in a checkout, also `models`."""

if __name__ == "models":
    # A checkout has this folder at its top, from where the examples import it. Both names stand for the same modules:
    # with two copies, a model from one would not be an instance of the other's class.
    import sys

    import tinygrad_lenet.models  # noqa: F401

    for _name, _module in list(sys.modules.items()):
        if _name.startswith("tinygrad_lenet.models"):
            sys.modules[_name.removeprefix("tinygrad_lenet.")] = _module
else:
    from .lenet5 import LeNet5
    from .lenet5_1998 import LeNet5_1998

__all__ = ["LeNet5", "LeNet5_1998"]
