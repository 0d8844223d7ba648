"""Child processes that never outlive this one, and what the system says about them."""

import contextlib
import ctypes
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from .machine import ROOT, public

_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
_TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100


class ChildError(RuntimeError):
    """A child that did not do what it was asked; the message says why, in one line."""


def as_child(parent: int, cores: list[int]) -> Callable[[], None]:
    """What a child does before its program begins: it will die with its parent, which alone decides on Ctrl-C."""

    def begin() -> None:
        if _LIBC is not None:
            _LIBC.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
            if os.getppid() != parent:
                os._exit(1)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, cores)

    return begin


@contextlib.contextmanager
def started(
    command: list[str], environment: dict[str, str], cores: list[int], **streams: Any
) -> Iterator[subprocess.Popen[bytes]]:
    """`python command`, pinned to cores, run in the repository; it is killed if it still runs at the end."""
    with warnings.catch_warnings():
        # Python 3.12 warns of threads of the parent; OpenBLAS's, which are the only ones, survive a fork.
        warnings.simplefilter("ignore", DeprecationWarning)
        process = subprocess.Popen(
            [sys.executable, *command], env=environment, cwd=ROOT, preexec_fn=as_child(os.getpid(), cores), **streams
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()


def run(command: list[str], environment: dict[str, str], cores: list[int], limit: float = 900) -> tuple[float, str]:
    """The seconds from start to finish of a program, and what it printed; ChildError if it did not end well."""
    start = time.perf_counter()
    with started(command, environment, cores, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            printed, errors = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            raise ChildError(f"did not end within {limit:.0f} s") from None
        seconds = time.perf_counter() - start
    if process.returncode:
        raise ChildError(last_line(errors) or f"ended with exit code {process.returncode}")
    return seconds, printed.decode(errors="replace")


def last_line(text: bytes) -> str:
    lines = [line.strip() for line in text.decode(errors="replace").splitlines() if line.strip()]
    return public(lines[-1][:200]) if lines else ""


class Child:
    """A contestant's process; requests and answers are lines of JSON."""

    def __init__(
        self, stack: contextlib.ExitStack, command: list[str], environment: dict[str, str], cores: list[int]
    ) -> None:
        self.errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - the stack closes it
        stack.enter_context(self.errors)
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self.errors}
        self.process = stack.enter_context(started(command, environment, cores, bufsize=0, **pipes))

    def ask(self, request: dict[str, Any], limit: float) -> dict[str, Any]:
        """Send a request and return the answer; ChildError if it is an error or none comes within ``limit`` seconds."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
        except OSError:
            raise ChildError(self._death()) from None
        return self.answer(limit)

    def answer(self, limit: float) -> dict[str, Any]:
        assert self.process.stdout is not None
        end, received = time.monotonic() + limit, b""
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            while not received.endswith(b"\n"):
                if not selector.select(max(0, end - time.monotonic())):
                    self.process.kill()  # a late answer would be taken for the next one
                    raise ChildError(f"gave no answer within {limit:.0f} s")
                part = os.read(self.process.stdout.fileno(), 1 << 20)
                if not part:
                    raise ChildError(self._death())
                received += part
        message = json.loads(received)
        if "error" in message:
            raise ChildError(public(message["error"]))
        return message

    def _death(self) -> str:
        self.process.wait()
        self.errors.seek(0)
        return f"ended with exit code {self.process.returncode}: {last_line(self.errors.read())}"


def tree(pid: int) -> list[int]:
    """A process and all that it started."""
    try:
        children = " ".join(path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children")).split()
    except OSError:
        return [pid]
    return [pid] + [each for child in children for each in tree(int(child))]


class Watch:
    """Looks, from now on, at how much processor time others take while this program and its children work."""

    def __init__(self) -> None:
        self._start, self._busy, self._own = time.perf_counter(), _busy_seconds(), _cpu_seconds(os.getpid())

    def seconds(self) -> float:
        return time.perf_counter() - self._start

    def cores_used_by_others(self) -> float:
        """The mean so far; 0 where the system does not tell. Time that other guests steal counts too."""
        others = (_busy_seconds() - self._busy) - (_cpu_seconds(os.getpid()) - self._own)
        return max(0.0, others) / self.seconds()


def _cpu_seconds(pid: int) -> float:
    total = 0
    for each in tree(pid):
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
            total += int(fields[11]) + int(fields[12])
    return total / _TICKS


def _busy_seconds() -> float:
    try:
        fields = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    except OSError:
        return 0.0
    user, nice, system, _idle, _iowait, irq, softirq, steal = fields
    return (user + nice + system + irq + softirq + steal) / _TICKS


def memory(pid: int) -> float:
    """Megabytes that a process and those that it started hold together, shared pages counted once.

    Private and shared memory by their proportional share (Pss), which among our own processes adds up to each page
    once. Of files (the libraries) the largest resident set: forked workers map the same ones, and programs of others
    that have them open must not make them cheaper, as Pss would.
    """
    own, files = 0, 0
    for each in tree(pid):
        with contextlib.suppress(OSError, KeyError, ValueError):
            shares = _fields(f"/proc/{each}/smaps_rollup")
            own += shares["Pss_Anon"] + shares["Pss_Shmem"]
            files = max(files, _fields(f"/proc/{each}/status")["RssFile"])
    return (own + files) / 1024


def _fields(path: str) -> dict[str, int]:
    """The fields in kB of a file in /proc."""
    found = {}
    for line in Path(path).read_text().splitlines():
        name, _, value = line.partition(":")
        if value.endswith(" kB"):
            found[name] = int(value[:-3])
    return found


def peak_memory(command: list[str], environment: dict[str, str], cores: list[int], limit: float = 900) -> float:
    """The largest `memory` of a program while it ran, looked at every 5 ms."""
    end = time.monotonic() + limit
    peak = 0.0
    with started(command, environment, cores, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        while process.poll() is None:
            peak = max(peak, memory(process.pid))
            if time.monotonic() > end:
                raise ChildError(f"did not end within {limit:.0f} s")
            time.sleep(0.005)
        assert process.stderr is not None
        if process.returncode:
            raise ChildError(last_line(process.stderr.read()) or f"ended with exit code {process.returncode}")
    if not peak:
        raise ChildError("/proc does not tell how much memory it used")
    return peak
