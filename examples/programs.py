"""How every program of this folder begins and ends: Ctrl-C, standard streams, exit status.

What a program writes to its streams is worth less than what it writes to files. So no stream, closed, full, or unable
to show a character, ends a program; it does all of its work, and the exit status says how that went.
"""

import errno
import io
import os
import signal
import sys
import time  # nothing that takes long to import, for begin() comes before that
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TextIO, cast


def begin() -> None:
    """Call it before the other imports: a Ctrl-C during these just ends the program; `run` does better.

    Where Ctrl-C is ignored, as under nohup or behind a script's &, it stays so.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    for number in range(3):  # a stream that is closed; its number would be given to a file, and writing would spoil it
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free


class Stream(io.RawIOBase):
    """A standard stream that takes all that is written to it; ``error`` is the first that came up, if one did."""

    def __init__(self, raw: Any) -> None:
        self.raw = raw
        self.error: OSError | None = None

    def write(self, data: "bytes | memoryview") -> int:  # type: ignore[override]
        left = memoryview(data)
        try:
            while left and not self.error:
                written = self.raw.write(left)
                if written is None:  # another program has made it non-blocking, and it is busy
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
        """Why something could not be written; nothing if its reader only had enough, as `| head -1` has."""
        enough = (errno.EPIPE, errno.EINVAL) if os.name == "nt" else (errno.EPIPE,)
        return (self.error.strerror or str(self.error)) if self.error and self.error.errno not in enough else ""


def replace(stream: Any, number: int) -> tuple[TextIO, Stream]:
    """A stream in place of Python's standard stream of this number (None if that is closed), and what is below it."""
    if stream is None:
        raw, encoding, options = io.FileIO(number, "w", closefd=False), "utf-8", {}
    else:
        raw, encoding = getattr(stream.buffer, "raw", stream.buffer), stream.encoding
        options = {"line_buffering": stream.line_buffering, "write_through": stream.write_through}  # the latter: -u
    below = Stream(raw)
    buffer: Any = below if options.get("write_through") else io.BufferedWriter(cast(Any, below))
    return io.TextIOWrapper(buffer, encoding, errors="backslashreplace", **options), below


def run(main: Callable[[], int | None], advice: str = "") -> NoReturn:
    """Call ``main`` and end the program with the status it returns (None is 0), or a sentence on what failed and 1.

    After Ctrl-C, on which ``advice`` says what to do, it is 130, as shells expect; where output was lost it is 1.
    """
    name = Path(sys.argv[0]).stem
    sys.stdout, output = replace(sys.stdout, 1)
    sys.stderr, _ = replace(sys.stderr, 2)
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # as begin() left it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    status: int | str | None
    try:
        status = main()
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is done; it would only change the exit status
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        print(f"{name}: stopped by Ctrl-C" + (f"; {advice}" if advice else ""), file=sys.stderr)
        status = 130
    except SystemExit as end:
        status = end.code
    except MemoryError as error:
        status = f"{name}: there is not enough memory; {error}".removesuffix("; ")
    except Exception as error:
        from tinygrad_lenet.parallel import WorkerError

        if not isinstance(error, ValueError | TypeError | OSError | WorkerError):
            raise  # a fault of the program's
        status = f"{name}: {error}"
    sys.stdout.flush()
    if output.trouble:
        print(f"{name}: standard output cannot be written ({output.trouble})", file=sys.stderr)
        status = status or 1
    sys.exit(status)
