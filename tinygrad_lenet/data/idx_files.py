"""Reading and writing IDX files, the format in which MNIST is published.

An IDX file is a big-endian header and then the elements in C order:
two zero bytes, one type code, the number of axes, four bytes for the length of each axis, the elements.
Source: the format's description on the MNIST page by LeCun, Cortes and Burges.
"""

import gzip
import math
import os
import struct
import zlib
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from .. import files
from ..files import PathLike

Stream = IO[bytes] | gzip.GzipFile

_DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_CODES = {np.dtype(name): code for code, name in _DTYPES.items()}
_MAX_AXES = 8  # colour images need 4; a corrupt header may ask for up to 255
_CHUNK = 1 << 20
_DEFLATE_LIMIT = 1032  # one compressed byte expands to at most this many (zlib's technical notes)


class DataError(ValueError):
    """A data file is missing, damaged or of the wrong kind; the message says which, and what to do."""


def read_idx(path: PathLike, max_bytes: int = 2**30) -> npt.NDArray[Any]:
    """Return the array in an IDX file, plain or gzipped (told apart by the first bytes, not by the name).

    The array has the header's shape, native byte order and its own memory. Memory use grows with the bytes that the
    file really holds, never with what its header promises.

    Raises DataError if the file is missing, not a regular file, empty, damaged, shorter or longer than its header says,
    or larger than ``max_bytes`` when unpacked.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_idx(f"{folder}/labels", np.array([3, 1, 4], dtype=np.uint8))
    ...     read_idx(f"{folder}/labels")
    array([3, 1, 4], dtype=uint8)
    """
    name = os.fspath(path)
    try:
        with files.open_regular(name) as file:
            size = os.fstat(file.fileno()).st_size
            gzipped = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            if not gzipped:
                return _parse(file, name, smallest=size, largest=size, limit=max_bytes)
            with gzip.GzipFile(fileobj=file) as stream:
                return _parse(stream, name, smallest=0, largest=size * _DEFLATE_LIMIT, limit=max_bytes)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            f"read_idx: {name} is a damaged gzip file ({error}), expected a complete one; download it again"
        ) from error
    except OSError as error:
        raise DataError(
            f"read_idx: {name} cannot be read ({error.strerror or error}), expected an IDX file; check the path"
        ) from error


def _parse(stream: Stream, name: str, smallest: int, largest: int, limit: int) -> npt.NDArray[Any]:
    """Read an IDX array of at most limit bytes from stream, which holds between smallest and largest bytes."""

    def refuse(found: str, expected: str) -> DataError:
        return DataError(f"read_idx: {name} {found}, expected {expected}; download the file again, or check the path")

    magic = _read(stream, 4)
    if not magic:
        raise refuse("is empty", "an IDX header")
    if len(magic) < 4 or magic[:2] != b"\0\0":
        raise refuse(f"begins with the bytes {magic.hex(' ')}", "an IDX header, which begins with 00 00")
    code, ndim = magic[2], magic[3]
    if code not in _DTYPES:
        raise refuse(f"has the type code 0x{code:02x}", "one of " + ", ".join(f"0x{known:02x}" for known in _DTYPES))
    if not 1 <= ndim <= _MAX_AXES:
        raise refuse(f"has {ndim} axes", f"1 to {_MAX_AXES}")
    lengths = _read(stream, 4 * ndim)
    if len(lengths) < 4 * ndim:
        raise refuse("ends inside its header", f"{4 + 4 * ndim} bytes of header")
    shape = struct.unpack(f">{ndim}I", lengths)
    dtype = np.dtype(_DTYPES[code])
    promised = math.prod(shape) * dtype.itemsize
    total = 4 + 4 * ndim + promised
    if promised == 0:
        raise refuse(f"has the shape {shape}", "at least one element")
    if not smallest <= total <= largest:
        raise refuse(f"has the shape {shape} but not the bytes for it", f"{total} bytes, header and elements together")
    if total > limit:
        raise refuse(f"has {total:,} bytes", f"at most max_bytes, {limit:,}")
    data = _read(stream, promised)
    if len(data) < promised:
        raise refuse(f"is truncated: it holds {len(data)} bytes of elements", f"{promised} for the shape {shape}")
    if stream.read(1):  # at its end a gzip stream also checks its CRC
        raise refuse(f"goes on after the last element of its shape {shape}", f"{total} bytes in all")
    array = np.frombuffer(data, dtype).reshape(shape)
    return array.astype(dtype.newbyteorder("="), copy=False)


def _read(stream: Stream, count: int) -> bytearray:
    """Read count bytes, or fewer if the stream ends, in pieces: memory use follows the data, not the header."""
    data = bytearray()
    while len(data) < count:
        piece = stream.read(min(_CHUNK, count - len(data)))
        if not piece:
            break
        data += piece
    return data


def write_idx(path: PathLike, array: npt.NDArray[Any]) -> None:
    """Write an array as an IDX file, gzipped if the name ends in .gz; equal arrays give equal bytes.

    Raises TypeError for a dtype that IDX has no code for, ValueError for no axes, too many axes or no elements, and
    DataError if the file cannot be written; a file that was there before then stays intact.
    """
    array = np.asarray(array)
    dtype = array.dtype.newbyteorder(">")
    if dtype not in _CODES:
        raise TypeError(f"write_idx: array has dtype {array.dtype}, expected uint8, int8, int16, int32 or a float")
    if not 1 <= array.ndim <= _MAX_AXES or array.size == 0:
        raise ValueError(f"write_idx: array has shape {array.shape}, expected 1 to {_MAX_AXES} axes and some elements")
    name = os.fsdecode(path)
    data = struct.pack(f">4B{array.ndim}I", 0, 0, _CODES[dtype], array.ndim, *array.shape)
    data += np.ascontiguousarray(array, dtype).tobytes()
    if name.endswith(".gz"):
        data = gzip.compress(data, mtime=0)  # without the time, the bytes depend only on the array
    try:
        files.replace({name: data})
    except OSError as error:
        raise DataError(
            f"write_idx: {name} cannot be written ({error.strerror or error}); "
            "whatever was there before is intact; make room, or write to another folder"
        ) from error
