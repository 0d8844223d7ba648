"""Files: how the package opens what it reads, and how it replaces what it writes, whatever the format."""

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

_serial = itertools.count()  # two threads that write the same file at once write beside it under two names
_REMAINS = re.compile(r".+\.\d+\.\d+\.part")


def open_regular(path: PathLike) -> BinaryIO:
    """Open a regular file for reading; OSError for what is missing, and for folders, pipes and devices.

    A pipe would have its reader wait for ever, and a device has no size that could be limited.
    """

    def opener(name: str, flags: int) -> int:
        return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))  # or opening a pipe would wait for a writer

    try:
        file = open(path, "rb", opener=opener)  # noqa: SIM115 - the caller's to close
    except ValueError as error:  # a zero byte in the path
        raise OSError(errno.EINVAL, str(error)) from None
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "it is no regular file")
    return file


def replace(contents: Mapping[PathLike, bytes]) -> None:
    """Replace files by others with these contents, each at one moment and for good, and none if one cannot be written.

    All are written beside their places and forced to the disk before the first is renamed to its place; OSError if
    that fails, and whatever was there before is intact then. A file keeps its permissions, a link stays one, and what
    is no regular file is refused. A process that is killed may leave files that end in .part behind: `remove_remains`.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     replace({f"{folder}/notes.txt": b"LeNet"})
    ...     os.listdir(folder)
    ['notes.txt']
    """
    written: dict[str, str] = {}  # where each file lies, and where it belongs
    try:
        for path, data in contents.items():
            name = os.path.realpath(path)  # of a link, what it points to is replaced
            written[_write_beside(name, data)] = name
        for beside, name in list(written.items()):
            os.replace(beside, name)
            del written[beside]
            _sync_folder(os.path.dirname(name))
    except ValueError as error:  # a zero byte in the path
        raise OSError(errno.EINVAL, str(error)) from None
    finally:
        for beside in written:  # none, if all went well
            with suppress(OSError):
                os.remove(beside)


def remove_remains(folder: Path) -> None:
    """Remove what a process left in a folder that was killed while `replace` wrote; nobody may be writing there now."""
    for path in folder.glob("*.part"):
        if _REMAINS.fullmatch(path.name):
            path.unlink(missing_ok=True)


def _write_beside(name: str, data: bytes) -> str:
    """Write a file for good beside the one it is to replace, with that one's permissions; the path."""
    mode = None
    with suppress(FileNotFoundError):
        mode = os.stat(name).st_mode
    if mode is not None and not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "there is something that is no regular file")
    while True:
        beside = f"{name}.{os.getpid()}.{next(_serial)}.part"
        with suppress(FileExistsError):  # whoever's it is, and wherever it leads if it is a link
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
            descriptor = os.open(beside, flags, 0o666 if mode is None else 0o600)
            break
    try:
        with open(descriptor, "wb") as file:
            if mode is not None:
                os.chmod(descriptor if os.chmod in os.supports_fd else beside, stat.S_IMODE(mode))
            file.write(data)
            file.flush()
            os.fsync(file.fileno())  # or a power cut could leave the new name with the contents not yet there
    except BaseException:  # Ctrl-C, say
        with suppress(OSError):
            os.remove(beside)
        raise
    return beside


def _sync_folder(folder: str) -> None:
    """Force the folder's entries to the disk, so that the new name outlasts a power cut."""
    if not hasattr(os, "O_DIRECTORY"):
        return  # Windows, where folders cannot be opened
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems know no such thing
            raise
    finally:
        os.close(descriptor)
