"""How every program in this folder begins and ends: threads, Ctrl-C, standard streams, exit status.

What a program writes to its streams matters less than what it writes to files. A stream that is closed, full or unable
to encode a character therefore never ends a program: it finishes its work, and its exit status says how that went.
"""

import argparse
import errno
import importlib.util
import io
import os
import signal
import sys
import time
import traceback  # nothing that is slow to import, since begin() is called before the slow imports
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TextIO, cast

if TYPE_CHECKING:
    from tinygrad_lenet.parallel import Job

_job: "Job | None" = None  # of several processes, once this one has joined them


def begin(*packages: str) -> None:
    """Let Ctrl-C end the program quietly until `run` takes over; call this before the slow imports.

    The program ends here if one of the ``packages`` of the extra "example" is missing.
    If Ctrl-C is ignored, as under nohup or for a script's background job, it stays ignored. NumPy, when it is imported,
    is told to multiply on one thread: LeNet-5's matrices are too small to share, and threads that wait for a busy core
    make training ten times slower.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    for number in range(3):  # closed; else a file would get its number, and writes would corrupt that
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number
    for package in packages:
        if importlib.util.find_spec(package) is None:
            sys.exit(f'{_program()}: the package {package} is missing; run pip install -e ".[example]"')


def _program() -> str:
    path = Path(sys.argv[0])
    return path.parent.name if path.stem == "__main__" else path.stem


class Help(argparse.ArgumentDefaultsHelpFormatter):
    """Adds an option's default to its help, unless that says it already or there is none to speak of."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        said = action.default is None or action.default is False or "(default" in (action.help or "")
        return action.help if said else super()._get_help_string(action)


class Stream(io.RawIOBase):
    """A standard stream that accepts everything written to it; ``error`` is the first error that occurred, if any."""

    def __init__(self, raw: Any) -> None:
        self.raw = raw
        self.error: OSError | None = None

    def write(self, data: "bytes | memoryview") -> int:  # type: ignore[override]
        left = memoryview(data)
        try:
            while left and not self.error:
                written = self.raw.write(left)
                if written is None:  # another program made it non-blocking, and it is busy
                    time.sleep(0.01)
                else:
                    left = left[written:]
        except OSError as error:
            self.error = error
        return len(data)

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return int(self.raw.fileno())

    def isatty(self) -> bool:
        return bool(self.raw.isatty())

    @property
    def trouble(self) -> str:
        """Why something could not be written; empty if the reader simply stopped reading, as in `| head -1`."""
        enough = (errno.EPIPE, errno.EINVAL) if os.name == "nt" else (errno.EPIPE,)
        return (self.error.strerror or str(self.error)) if self.error and self.error.errno not in enough else ""


def join() -> "Job":
    """The job of all processes that were started with this one. Rank 0 prints; if one of them fails, all end."""
    global _job
    from tinygrad_lenet import parallel

    job = parallel.job()
    if job.size > 1:
        _job = job
    if job.rank:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - to the end
    return job


def replace(stream: Any, number: int) -> tuple[TextIO, Stream]:
    """A stream to replace Python's standard stream of this number (None if that is closed), and the file beneath it."""
    if stream is None:
        raw, encoding, options = io.FileIO(number, "w", closefd=False), "utf-8", {}
    else:
        raw, encoding = getattr(stream.buffer, "raw", stream.buffer), stream.encoding
        options = {"line_buffering": stream.line_buffering, "write_through": stream.write_through}  # the latter: -u
    below = Stream(raw)
    buffer: Any = below if options.get("write_through") else io.BufferedWriter(cast(Any, below))
    return io.TextIOWrapper(buffer, encoding, errors="backslashreplace", **options), below


def run(main: Callable[[], int | None], advice: str = "") -> NoReturn:
    """Call ``main`` and exit with the status it returns (None is 0), or with 1 and a sentence that says what failed.

    The status is 130 after Ctrl-C, as shells expect, and ``advice`` then says what to do; it is 1 if output was lost.
    """
    name = _program()
    sys.stdout, output = replace(sys.stdout, 1)
    sys.stderr, _ = replace(sys.stderr, 2)
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # as begin() left it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    status: int | str | None
    try:
        status = main()
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the work is done; a Ctrl-C would only change the exit status
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if _job is None or not _job.rank:
            by = "Ctrl-C" if _job is None else "Ctrl-C or SIGTERM"
            print(f"{name}: stopped by {by}" + (f"; {advice}" if advice else ""), file=sys.stderr)
        status = 130
    except SystemExit as end:
        status = end.code
    except Exception as error:
        from tinygrad_lenet.backend import explained
        from tinygrad_lenet.parallel import WorkerError

        if (sentence := explained(error)) is not None:
            status = f"{name}: {sentence}"
        elif isinstance(error, MemoryError):
            status = f"{name}: there is not enough memory; {error}".removesuffix("; ")
        elif isinstance(error, ValueError | TypeError | OSError | WorkerError):
            status = f"{name}: {error}"
        else:  # a bug in the program
            if _job is not None:
                with _job.failing():
                    traceback.print_exc()
            raise
    sys.stdout.flush()
    if output.trouble:
        print(f"{name}: standard output cannot be written ({output.trouble})", file=sys.stderr)
        status = status or 1
    if status and _job is not None:
        with _job.failing():
            if isinstance(status, str):
                print(status, file=sys.stderr)
    sys.exit(status)
