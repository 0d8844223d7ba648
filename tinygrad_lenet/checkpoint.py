"""A run in one file: tensors as safetensors, and everything that is not a tensor as JSON in the file's header.

Nothing in such a file is code, and any program that reads safetensors can read it. The format is simple enough to be
implemented here, so loading weights takes nothing but NumPy. `save` replaces a file atomically: whenever the process or
the machine stops, either the old file is there or the new one, never a part of one. `load` trusts nothing: it compares
sizes before it allocates memory.

To make your own loop resumable, save `model.state_dict()`, the tensors of `optimizer.state_dict()` and, as ``state``,
the rest of it, `schedule.state_dict()` and `loader.state_dict()`; see `examples/train_lenet5.py`.
"""

import json
import math
import os
import reprlib
import zlib
from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from . import files
from .backend import backend_of
from .files import PathLike
from .tensor import Tensor

__all__ = ["HEADER_LIMIT", "CheckpointError", "load", "replace", "replace_all", "save", "to_bytes"]


def __dir__() -> list[str]:  # for completion: no helpers, no imports
    return __all__


HEADER_LIMIT = 4 * 2**20  # bytes; parsed JSON takes up to 20 times its size, so a header must not be huge

# The format's names for NumPy's dtypes. The widest come first in a file, which aligns each tensor; with this order,
# files are identical to those of the safetensors package.
_DTYPES = {
    "U64": "<u8", "I64": "<i8", "F64": "<f8", "F32": "<f4", "U32": "<u4", "I32": "<i4",
    "F16": "<f2", "U16": "<u2", "I16": "<i2", "I8": "|i1", "U8": "|u1", "BOOL": "|b1",
}  # fmt: skip
_STATE = "state"  # the key in safetensors' metadata, which are strings by name
_CHECKSUM = "crc32"  # likewise


class CheckpointError(ValueError):
    """A file cannot be written or read, or is of the wrong kind; the message says which, and what to do."""


def save(path: PathLike, tensors: Mapping[str, Any], state: Mapping[str, Any] | None = None) -> None:
    """Write named ``tensors`` (Tensors or arrays) and a JSON ``state`` to ``path``, atomically replacing what is there.

    Arrays may be on any device. ``state`` holds what JSON preserves: dictionaries with names as keys, lists, strings,
    finite numbers, True, False and None. TypeError or ValueError names anything else, and any tensor that does not hold
    booleans, integers or floats. CheckpointError if the file cannot be written; the old file is then intact. A process
    that is killed may leave a useless file with the suffix .part behind.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(f"{folder}/run.safetensors", {"w": Tensor([1.0, 2.0])}, {"epoch": 3})
    ...     load(f"{folder}/run.safetensors")
    ({'w': array([1., 2.], dtype=float32)}, {'epoch': 3})
    """
    replace(path, to_bytes(tensors, state))


def to_bytes(tensors: Mapping[str, Any], state: Mapping[str, Any] | None = None) -> bytes:
    """Return the bytes that `save` would write, for `replace_all`; same errors, except those of writing."""
    for what, given in (("tensors are", tensors), ("state is", state or {})):
        if not isinstance(given, Mapping):
            raise TypeError(f"checkpoint.save: the {what} {type(given).__name__}; expected a dictionary by name")
    arrays = {_checked_name(name): _host_array(name, value) for name, value in tensors.items()}
    metadata = {_CHECKSUM: _checksum(arrays)} | ({_STATE: _to_json(state)} if state else {})
    try:
        data = _encode(arrays, metadata)
    except UnicodeEncodeError as error:
        raise ValueError(f"checkpoint.save: a name is {error.object!r}; expected names that are valid text") from None
    header = int.from_bytes(data[:8], "little")
    if header > HEADER_LIMIT:
        raise ValueError(
            f"checkpoint.save: names and state take {header:,} bytes; expected at most {HEADER_LIMIT:,}, "
            "so save long lists of numbers as tensors"
        )
    return data


def load(path: PathLike, max_bytes: int = 2**30) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
    """Return the tensors, as NumPy arrays by name, and the state from a file of `save` or any safetensors file.

    CheckpointError, which names the file, if it is missing, not a regular file, damaged, truncated, larger than
    ``max_bytes`` or of another kind. It allocates nothing larger than the file, and nothing large for a refused one.

    See `save` for an example.
    """
    name = os.fspath(path)

    def refuse(found: str, expected: str) -> CheckpointError:
        return CheckpointError(
            f"checkpoint.load: {name} {found}; expected {expected}; use another file, or save this one again"
        )

    try:
        with files.open_regular(name) as file:
            size = os.fstat(file.fileno()).st_size
            header = int.from_bytes(file.read(8), "little")
            if size > max_bytes:
                raise refuse(f"has {size:,} bytes", f"at most {max_bytes:,}")
            if header > size - 8:
                raise refuse(f"has {size:,} bytes", "a safetensors file, whose first 8 bytes give its header's length")
            if header > HEADER_LIMIT:
                raise refuse(f"has a header of {header:,} bytes", f"at most {HEADER_LIMIT:,}")
            tensors, metadata = _decode(file, header, size)
            state = json.loads(metadata.get(_STATE, "{}"), parse_float=_finite, parse_constant=_finite)
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(
            f"checkpoint.load: {name} cannot be read ({error.strerror or error}); expected a safetensors file; "
            "check the path"
        ) from error
    except RecursionError:
        raise refuse("is nested too deeply", "what checkpoint.save wrote") from None
    except (OverflowError, ValueError) as error:
        raise refuse(f"is damaged or of another kind ({error})", "whole tensors of NumPy's dtypes") from error
    if _CHECKSUM in metadata and metadata[_CHECKSUM] != _checksum(tensors):
        raise refuse("is damaged: its tensors are not those that were saved", "the checksum in its header")
    if not isinstance(state, dict):
        raise refuse(f"has a state that is a {type(state).__name__}", "a dictionary")
    return tensors, state


def _checksum(arrays: Mapping[str, npt.NDArray[Any]]) -> str:
    """The CRC-32 of all arrays' bytes, in the order of their names."""
    crc = 0
    for name in sorted(arrays):
        crc = zlib.crc32(arrays[name].tobytes(), crc)
    return f"{crc:08x}"


def replace(path: PathLike, data: bytes) -> None:
    """Write ``data`` to ``path``, replacing a file there atomically and durably; see `replace_all`."""
    replace_all({path: data})


def replace_all(contents: Mapping[PathLike, bytes]) -> None:
    """Write these bytes to these paths, replacing each file atomically and durably.

    All new files are written next to the old ones before the first is replaced. CheckpointError if one cannot be
    written or would replace something that is not a regular file; all old files are then intact.

    >>> import os, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     replace_all({f"{folder}/notes.txt": b"LeNet", f"{folder}/more.txt": b"5"})
    ...     sorted(os.listdir(folder))
    ['more.txt', 'notes.txt']
    """
    try:
        files.replace(contents)
    except OSError as error:
        names = " and ".join(os.fsdecode(path) for path in contents)
        raise CheckpointError(
            f"checkpoint: {names} cannot be written ({error.strerror or error}); "
            "whatever was there before is intact; make room, or write to another folder"
        ) from error


def _encode(arrays: Mapping[str, npt.NDArray[Any]], metadata: Mapping[str, str]) -> bytes:
    """The bytes of a safetensors file: its header's length in 8 bytes, the header in JSON, the tensors in its order."""
    kinds = {np.dtype(dtype): kind for kind, dtype in _DTYPES.items()}
    order = list(kinds)
    ordered = sorted(arrays.items(), key=lambda item: (order.index(item[1].dtype), item[0]))
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, array in ordered:
        begin, end = end, end + array.nbytes
        header[name] = {"dtype": kinds[array.dtype], "shape": array.shape, "data_offsets": (begin, end)}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([len(text).to_bytes(8, "little"), text, *(array.tobytes() for _, array in ordered)])


def _decode(file: BinaryIO, length: int, size: int) -> tuple[dict[str, npt.NDArray[Any]], dict[str, str]]:
    """The tensors and the metadata of a safetensors file of ``size`` bytes with a header of ``length`` bytes.

    ValueError, before any memory for tensors is allocated, unless the header accounts for each byte exactly once.
    """
    header = json.loads(file.read(length).decode())
    metadata = header.pop("__metadata__", {}) if isinstance(header, dict) else None
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("its header is not a dictionary of tensors, and of strings by name")

    places = []
    for name, entry in header.items():
        match entry:
            case {"dtype": str(kind), "shape": [*shape], "data_offsets": [int(begin), int(end)]} if (
                kind in _DTYPES and len(shape) <= 32 and all(type(n) is int and n >= 0 for n in shape)
            ):
                places.append((begin, end, name, np.dtype(_DTYPES[kind]), shape))
            case _:
                raise ValueError(f"tensor {reprlib.repr(name)} is described by {reprlib.repr(entry)}")
    place = 0
    for begin, end, name, dtype, shape in sorted(places, key=lambda item: item[:2]):
        if begin != place:
            raise ValueError(f"tensor {reprlib.repr(name)} begins at byte {begin}, not at {place}")
        if end - begin != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"tensor {reprlib.repr(name)} lies at bytes {begin} to {end}, which do not fit its shape")
        place = end
    if 8 + length + place != size:
        raise ValueError(f"it has {size:,} bytes, and its header lists {8 + length + place:,}")

    tensors = {}
    for begin, end, name, dtype, shape in places:
        file.seek(8 + length + begin)
        array = np.fromfile(file, dtype, math.prod(shape))
        if array.nbytes != end - begin:
            raise ValueError("it became shorter while it was read")
        tensors[name] = array.reshape(shape)
    return tensors, metadata


def _checked_name(name: Any) -> str:
    if not isinstance(name, str):
        raise TypeError(f"checkpoint.save: a tensor's name is {name!r}; expected a string")
    if name == "__metadata__":
        raise ValueError("checkpoint.save: a tensor is called '__metadata__'; the format reserves this name")
    return name


def _host_array(name: str, value: Any) -> npt.NDArray[Any]:
    """The value as a C-contiguous NumPy array."""
    array = value.numpy() if isinstance(value, Tensor) else np.asarray(backend_of(value).to_numpy(value))
    if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
        raise TypeError(
            f"checkpoint.save: tensor {name} has dtype {array.dtype}; "
            "expected booleans, or integers or floats of at most 64 bits"
        )
    return np.asarray(array, array.dtype.newbyteorder("<"), order="C")


def _to_json(state: Mapping[str, Any]) -> str:
    """The state as JSON; TypeError or ValueError for the first entry that JSON would not preserve."""
    for name, value in state.items():
        try:
            same = isinstance(name, str) and json.loads(json.dumps(value, allow_nan=False)) == value
        except (TypeError, ValueError, RecursionError) as error:
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"checkpoint.save: state {name!r} cannot be written as JSON ({error})") from None
        if not same:
            raise TypeError(
                f"checkpoint.save: state {name!r} would be changed by JSON; "
                "expected names as keys, and lists, strings, finite numbers, True, False and None"
            )
    return json.dumps(dict(state), allow_nan=False)


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"its state has the number {text}")
    return number
