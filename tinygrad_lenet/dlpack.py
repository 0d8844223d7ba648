"""DLPack, the protocol by which array libraries hand memory to one another: what is not left to NumPy and CuPy.

They do the exchange itself, streams included (https://dmlc.github.io/dlpack/latest/python_spec.html).
"""

from typing import Any

import numpy as np

from .backend import Array, DeviceError, parse_device

_NUMPY_READS = (1, 3, 11, 13)  # kinds of memory: the host's, and pinned or managed by CUDA or ROCm
_CUDA = 2


def imported(x: Any) -> Array:
    """The memory of ``x`` as an array of NumPy or, if it is on an NVIDIA GPU, of CuPy.

    TypeError if x does not support the protocol or holds no real numbers; DeviceError for memory of another kind.
    """
    if not hasattr(x, "__dlpack__") or not hasattr(x, "__dlpack_device__"):
        raise TypeError(f"from_dlpack: x is {type(x).__name__}; expected an array with __dlpack__")
    kind, index = (int(each) for each in x.__dlpack_device__())
    if kind not in (*_NUMPY_READS, _CUDA):
        raise DeviceError(f"from_dlpack: x is on a device of DLPack's kind {kind}; expected the CPU, 1, or CUDA, 2")
    xp = parse_device(f"cuda:{index}")[0].xp if kind == _CUDA else np
    try:
        return xp.from_dlpack(x)
    except RuntimeError as error:  # NumPy's answer to a dtype that it lacks, such as bfloat16
        dtype = getattr(x, "dtype", "unknown")
        raise TypeError(f"from_dlpack: x has dtype {dtype}, which is refused ({error}); convert it first") from None


def exported(array: Array, **options: Any) -> Any:
    """The capsule with the memory of ``array``; ``options`` are the protocol's.

    Memory that runs backwards is copied, unless ``copy`` is False: some libraries do not survive it.
    """
    if any(step < 0 for step in array.strides) and options.get("copy") is not False:
        array = array.copy()
    return array.__dlpack__(**{name: value for name, value in options.items() if value is not None})
