"""Files: how the package opens those that it reads and replaces those that it writes, whatever their format."""

import errno
import itertools
import os
import re
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

__all__ = ["PathLike", "open_regular", "remove_remains", "replace"]

PathLike = str | os.PathLike[str]

_serial = itertools.count()  # gives threads that write the same file at once different names for their partial files
_REMAINS = re.compile(r".+\.\d+\.\d+\.part")


def open_regular(path: PathLike) -> BinaryIO:
    """Open a regular file for reading; OSError if it is missing, or is a folder, a pipe or a device.

    A pipe could block its reader forever, and a device has no size that could be limited.
    """

    def opener(name: str, flags: int) -> int:
        return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))  # else opening a pipe would wait for a writer

    try:
        file = open(os.fspath(path), "rb", opener=opener)  # noqa: SIM115 - the caller closes it
    except ValueError as error:  # a zero byte in the path
        raise OSError(errno.EINVAL, str(error)) from None
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "it is not a regular file")
    return file


def replace(contents: Mapping[PathLike, bytes]) -> None:
    """Replace the contents of files, each atomically and durably, and none of them if one cannot be written.

    All new files are written next to the old ones and forced to disk before the first is renamed; OSError if that
    fails, and then all old files are intact. A file keeps its permissions, a link stays a link, and anything but a
    regular file is refused. A process that is killed may leave .part files behind, which `remove_remains` removes.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     replace({f"{folder}/notes.txt": b"LeNet"})
    ...     os.listdir(folder)
    ['notes.txt']
    """
    written: dict[str, str] = {}  # from the path of each new file to the path that it belongs to
    try:
        for path, data in contents.items():
            name = os.fsdecode(os.path.realpath(path))  # for a link, its target is replaced
            written[_write_beside(name, data)] = name
        for beside, name in list(written.items()):
            os.replace(beside, name)
            del written[beside]
            _sync_folder(os.path.dirname(name))
    except ValueError as error:  # a zero byte in the path
        raise OSError(errno.EINVAL, str(error)) from None
    finally:
        for beside in written:  # none if all went well
            with suppress(OSError):
                os.remove(beside)


def remove_remains(folder: Path) -> None:
    """Remove the partial files that a process left in a folder when it was killed; nobody may be writing there now."""
    for path in folder.glob("*.part"):
        if _REMAINS.fullmatch(path.name):
            path.unlink(missing_ok=True)


def _write_beside(name: str, data: bytes) -> str:
    """Write a file durably next to the one that it will replace, with the same permissions; return its path."""
    mode = None
    with suppress(FileNotFoundError):
        mode = os.stat(name).st_mode
    if mode is not None and not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "something that is not a regular file is there")
    while True:
        beside = f"{name}.{os.getpid()}.{next(_serial)}.part"
        with suppress(FileExistsError):  # whoever owns it, and wherever it leads if it is a link
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
            descriptor = os.open(beside, flags, 0o666 if mode is None else 0o600)
            break
    try:
        with open(descriptor, "wb") as file:
            if mode is not None:
                os.chmod(descriptor if os.chmod in os.supports_fd else beside, stat.S_IMODE(mode))
            file.write(data)
            file.flush()
            os.fsync(file.fileno())  # else a power cut could leave the new name without its contents
    except BaseException:  # such as Ctrl-C
        with suppress(OSError):
            os.remove(beside)
        raise
    return beside


def _sync_folder(folder: str) -> None:
    """Force the folder's entries to disk, so the new name survives a power cut."""
    if not hasattr(os, "O_DIRECTORY"):
        return  # Windows, where folders cannot be opened
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems cannot do this
            raise
    finally:
        os.close(descriptor)
