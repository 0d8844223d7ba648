"""Training on several cores: every process runs the same program on its share of each batch.

`run` forks the program into ranks 0, 1, ...; each has its own copy of the model and computes the gradient of its share
of the batch, and `Group.sum_gradients` adds the gradients of all ranks in rank order. Every rank then takes the same
step from the same numbers, so the copies stay bit-identical, and results depend on the number of ranks but never on
timing. Ranks are processes, not threads: because of the interpreter's lock, two threads were only 1.0 to 1.1 times as
fast as one on LeNet-5, while two processes were 1.8 to 1.9 times as fast.

A forked rank sees all data that was loaded before, such as images, without a copy, and may run any function, including
closures. The price is that forking is not safe everywhere: where it is not, `run` refuses or warns. The ranks share
anonymous memory and end with rank 0, so they leave nothing behind, however they end.
"""

import ctypes
import faulthandler
import mmap
import os
import platform
import select
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from .graph import note_write, repeated
from .shapes import integer
from .tensor import Tensor, wrap

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

Result = TypeVar("Result")

_METRICS = 256  # numbers that can be summed at a time, besides gradients
_POLLS = 2000  # checks before a waiting rank sleeps: one about to arrive on another core is met without a wake-up
_MOST = 16  # workers per core; more than one per core gains nothing, and thousands bring a machine down
_PATIENCE = 0.2  # seconds of sleep between checks that the other ranks are still there
_BLAS_LIMITS = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS", "OMP_NUM_THREADS")


class WorkerError(RuntimeError):
    """A rank could not be started, ended too early, or kept the others waiting; the message says which and how."""


class Group:
    """The ranks that train together, as seen by one of them: its ``rank``, from 0, and their number, ``size``.

    A `Group` that you make yourself has a single rank; `run` makes those with several.

    >>> alone = Group([Tensor([1.0], requires_grad=True)])
    >>> alone.rank, alone.size, alone.share(10)
    (0, 1, slice(0, 10, None))
    """

    rank = 0
    size = 1

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        self._parameters = list(parameters)

    def share(self, count: int) -> slice:
        """This rank's slice of ``count`` items; slices are as equal as possible and in rank order.

        >>> Group([]).share(3)
        slice(0, 3, None)
        """
        return slice(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    @repeated
    def sum_gradients(self, values: Sequence[float] = ()) -> list[float]:
        """Replace each parameter's gradient by its sum over all ranks; a rank's missing gradient counts as 0.

        A parameter without a gradient on any rank keeps none. Return the sum of each of ``values``, like `sum` but
        without another round of communication.
        """
        return self.sum(values)

    def sum(self, values: Sequence[float]) -> list[float]:
        """The sum of each number over all ranks; every rank must call it with equally many."""
        _check_room(values)
        return [float(value) for value in values]

    @repeated
    def average(self, tensors: Iterable[Tensor], weight: float = 1.0) -> None:
        """Replace each tensor, in place, by its mean over all ranks, weighted by each rank's ``weight``.

        For values that each rank accumulates by itself, such as batch normalisation's running statistics. At least one
        weight must be above 0.
        """
        arrays = [tensor.data for tensor in tensors]
        if self.size == 1 or not arrays:
            return
        weighted = weight * np.concatenate([array.ravel() for array in arrays], dtype=np.float64)
        (total,) = self.sum([weight])
        for start in range(0, len(weighted), _METRICS):
            stretch = slice(start, start + _METRICS)
            weighted[stretch] = self.sum(weighted[stretch].tolist())
        start = 0
        for array in arrays:
            array[...] = (weighted[start : start + array.size] / total).reshape(array.shape)
            start += array.size
        note_write(*arrays)


class _ForkGroup(Group):
    """Ranks that are forked from this process, which becomes rank 0."""

    def __init__(self, parameters: Iterable[Tensor], size: int, timeout: float) -> None:
        super().__init__(parameters)
        for p in self._parameters:
            if p.device != "cpu":
                raise ValueError(f"parallel.run: a parameter lies on {p.device!r}; more than one worker needs the CPU")
        from multiprocessing import get_context  # here, since it is slow to import and few programs need it

        self._context = get_context("fork")
        self.size = size
        self._timeout = timeout
        self._polls = range(_POLLS if size <= _cores() else 1)
        self._parent = os.getpid()
        self._workers: list[BaseProcess] = []  # ranks 1, 2, ..., known only to rank 0
        self._places = _places(self._parameters)
        # Each rank writes its own row and reads all rows. Two sets of rows are used in turn, so a sum needs only one
        # meeting of all ranks: no rank can reach a row again while another still reads it.
        self._metrics = _METRICS + len(self._parameters)  # the latter say which gradients exist
        room = sum(count * dtype.itemsize for dtype, count, _ in self._places) + self._metrics * 8
        self._turn = 0
        needed = size * (3 * 8 + 2 * room)
        try:
            self._shared = mmap.mmap(-1, needed)
            # For each rank, how many others have arrived at a meeting.
            self._arrivals = [[self._context.Semaphore(0) for _ in range(size)] for _ in range(2)]
        except (OSError, OverflowError, MemoryError) as error:
            raise WorkerError(
                f"parallel.run: the system refuses ({error}) what {size} workers share, {needed:,} bytes of memory and "
                f"{2 * size} semaphores (on Linux in /dev/shm, which must be writable); use fewer workers"
            ) from error
        self._rows = [self._views(size * (3 * 8 + turn * room), room) for turn in (0, 1)]
        # For each rank: how many meetings it has reached, when it reached the last, whether its work is done.
        self._seen = np.ndarray((size, 3), np.float64, self._shared)
        self._seen[:, 1] = time.monotonic()

    def _views(self, start: int, room: int) -> list[np.ndarray]:
        """An array (rank, number) for each dtype of the parameters, and a last one for metrics."""
        views = []
        for dtype, count, _ in [*self._places, (np.dtype(np.float64), self._metrics, [])]:
            views.append(
                np.ndarray((self.size, count), dtype, self._shared, offset=start, strides=(room, dtype.itemsize))
            )
            start += count * dtype.itemsize
        return views

    @repeated
    def sum_gradients(self, values: Sequence[float] = ()) -> list[float]:
        _check_room(values)
        rows = self._next_rows()
        for row, (_, _, parts) in zip(rows, self._places, strict=False):
            for p, part in parts:
                row[self.rank, part] = 0 if p.grad is None else p.grad.data.ravel()
        rows[-1][self.rank, : len(values)] = values
        rows[-1][self.rank, _METRICS:] = [p.grad is not None for p in self._parameters]
        self._meet()
        sums = _sum_rows(rows[-1])
        present = {id(p) for p, ranks in zip(self._parameters, sums[_METRICS:], strict=True) if ranks}
        for row, (_, _, parts) in zip(rows, self._places, strict=False):
            total = _sum_rows(row)
            for p, part in parts:
                p.grad = wrap(total[part].reshape(p.shape)) if id(p) in present else None
        return [float(value) for value in sums[: len(values)]]

    def sum(self, values: Sequence[float]) -> list[float]:
        _check_room(values)
        row = self._next_rows()[-1]
        row[self.rank, : len(values)] = values
        self._meet()
        return [float(value) for value in _sum_rows(row[:, : len(values)])]

    def _next_rows(self) -> list[np.ndarray]:
        self._turn = 1 - self._turn
        return self._rows[self._turn]

    def _meet(self) -> None:
        """Wait until all ranks are here."""
        seen, arrivals = self._seen[self.rank], self._arrivals[self._turn]
        seen[0] += 1
        seen[1] = time.monotonic()
        for rank in reversed(range(self.size)):  # rank 0 last: once it continues, all others may continue
            if rank != self.rank:
                arrivals[rank].release()
        arrived = arrivals[self.rank]
        for _ in range(self.size - 1):
            if not any(arrived.acquire(block=False) for _ in self._polls):
                returned, looks = False, 0
                while not arrived.acquire(timeout=_PATIENCE):
                    looks += 1
                    self._look_round(returned, looks)
                    returned = bool(self._seen[0, 2])

    def _look_round(self, returned: bool, looks: int) -> None:
        """End with a sentence if another rank has ended or does not arrive, or rank 0 ``returned`` a while ago."""
        if self.rank and os.getppid() != self._parent:
            os._exit(1)  # rank 0 is gone, so there is nobody to tell
        if returned:
            raise WorkerError(
                f"worker {self.rank} waits for rank 0, which has returned; every rank must call sum equally often"
            )
        meeting = self._seen[self.rank, 0]
        for rank, worker in enumerate(self._workers, start=1):
            if _has_ended(worker) and not (self._seen[rank, 2] and self._seen[rank, 0] == meeting):
                raise WorkerError(self._how_it_ended(rank))
        # Rank 0, which ends the others, loses patience first.
        self._end_if_late(looks / (2 if self.rank else 1), self._seen[:, 0] < meeting)

    def _end_if_late(self, looks: float, late: np.ndarray) -> None:
        """WorkerError, with where each was last seen, if this rank has waited too long for those that are ``late``.

        It counts checks and reads no clock, so a program that was suspended for an hour may continue.
        """
        waited = looks * _PATIENCE
        if waited < self._timeout:
            return
        places = []
        for rank in np.flatnonzero(late):
            meetings, when, _ = self._seen[rank]
            place = f"at its meeting {meetings:.0f}" if meetings else "when it was started"
            places.append(f"rank {rank} was last seen {place}, {time.monotonic() - when:.0f} s ago")
            if self._workers and (pid := self._workers[rank - 1].pid):
                os.kill(pid, signal.SIGUSR1)  # makes it write its current stack to standard error
        time.sleep(0.5)
        raise WorkerError(
            f"rank {self.rank} has waited for {waited:.1f} s: {'; '.join(places)}; the run has been stopped. If a rank "
            "computes for that long, give parallel.run a longer timeout; if it hangs, see its warning about threads"
        )

    def _start(self, function: Callable[..., Any], arguments: Any, options: Any) -> None:
        """Start all other ranks."""
        # A Ctrl-C, which would find half of the ranks, waits until all are there. (Masking the signal would not do: it
        # then goes to another thread, such as one of BLAS's.)
        pressed: list[int] = []
        in_main = threading.current_thread() is threading.main_thread()
        before = signal.signal(signal.SIGINT, lambda number, _: pressed.append(number)) if in_main else None
        try:
            for rank in range(1, self.size):
                worker = self._context.Process(target=self._work, args=(rank, function, arguments, options))
                with warnings.catch_warnings():
                    # Python 3.12 also warns of OpenBLAS's threads, which survive a fork; _check_fork warns of others.
                    warnings.simplefilter("ignore", DeprecationWarning)
                    worker.start()
                self._workers.append(worker)
        except OSError as error:
            raise WorkerError(
                f"parallel.run: the system refuses process {rank} ({error}); use fewer workers"
            ) from error
        finally:
            if in_main:
                signal.signal(signal.SIGINT, signal.SIG_DFL if before is None else before)
                for number in pressed[:1]:
                    signal.raise_signal(number)

    def _work(self, rank: int, function: Callable[..., Any], arguments: Any, options: Any) -> None:
        """Run a forked rank to its end."""
        if sys.platform == "linux":  # the system ends it when rank 0 ends; elsewhere it notices at its next meeting
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG of prctl.h
            if os.getppid() != self._parent:
                os._exit(1)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all ranks; rank 0 decides for the others
        faulthandler.register(signal.SIGUSR1, file=2)
        self.rank, self._workers = rank, []
        function(self, *arguments, **options)
        self._seen[rank, 2] = True

    def _join(self) -> None:
        """Wait until the other ranks have ended; WorkerError if one of them failed."""
        self._seen[0, 2] = True
        for rank, worker in enumerate(self._workers, start=1):
            looks = 0
            while not _has_ended(worker, _PATIENCE):
                looks += 1
                self._end_if_late(looks, np.arange(self.size) == rank)
            worker.join()
            if worker.exitcode or not self._seen[rank, 2]:
                raise WorkerError(self._how_it_ended(rank))

    def _how_it_ended(self, rank: int) -> str:
        worker = self._workers[rank - 1]
        worker.join()
        code = worker.exitcode
        if code is None:
            how = "(how is not known, since this process does not wait for its children: SIGCHLD is ignored or handled)"
        elif code < 0:
            how = f"by signal {signal.Signals(-code).name}"
            how += ", perhaps for lack of memory," if code == -signal.SIGKILL else ""
        else:
            how = f"with exit code {code}"
        return f"worker {rank} ended {how} before its work was done; the run has been stopped"

    def _kill(self) -> None:
        """End the ranks that are still running."""
        for worker in self._workers:
            if not _has_ended(worker):
                worker.kill()
            worker.join()
        self._workers = []


def run(
    function: Callable[..., Result],
    workers: int,
    parameters: Iterable[Tensor],
    *arguments: Any,
    timeout: float = 600.0,
    **options: Any,
) -> Result:
    """Call ``function(group, *arguments, **options)`` in ``workers`` processes and return what rank 0 returns.

    ``parameters`` are those whose gradients `Group.sum_gradients` adds up. Whatever ends rank 0, including Ctrl-C and
    SIGKILL, ends the others. While several ranks are working, each uses one BLAS thread if threadpoolctl is installed;
    otherwise there is a RuntimeWarning unless OPENBLAS_NUM_THREADS or its like is set.

    ValueError for more than 16 workers per core, and for more than one worker where processes cannot be forked, crash
    after a fork (with Accelerate on macOS) or would hang (other threads are running, and BLAS has its own threads).
    RuntimeWarning if other threads are running at all: a lock that one of them holds stays locked in the workers.
    WorkerError if a rank cannot be started, ends too early, or keeps others waiting for ``timeout`` seconds.

    >>> run(lambda group: group.sum([group.rank + 1]), 1, [])
    [1.0]
    """
    count = integer("parallel.run", "workers", workers, minimum=1)
    if count > _MOST * _cores():
        raise ValueError(f"parallel.run: workers is {count}; expected at most {_MOST} for each of {_cores()} cores")
    if not timeout > 0:
        raise ValueError(f"parallel.run: timeout is {timeout}; expected seconds, above 0")
    if count == 1:
        return function(Group(parameters), *arguments, **options)
    _check_fork(count)
    group = _ForkGroup(parameters, count, timeout)
    with _one_blas_thread(count):
        try:
            group._start(function, arguments, options)
            result = function(group, *arguments, **options)
            group._join()
            return result
        finally:
            group._kill()  # none if all went well


def default_workers() -> int:
    """The number of workers that suits LeNet-5 on this machine: one per core, at most 2; 1 if forking is not safe.

    >>> default_workers() in (1, 2)
    True
    """
    return min(2, _cores()) if hasattr(os, "fork") and sys.platform != "darwin" else 1


def _cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _check_fork(count: int) -> None:
    """ValueError if this process cannot be forked into ``count``, RuntimeWarning if that may go wrong."""
    if not hasattr(os, "fork"):
        raise ValueError(f"parallel.run: {count} workers need os.fork, which {platform.system()} lacks; use 1 worker")
    built_with: Any = np.show_config(mode="dicts")
    if built_with["Build Dependencies"].get("blas", {}).get("name") == "accelerate":
        raise ValueError(
            f"parallel.run: {count} workers would be forked, but Apple's Accelerate, NumPy's BLAS here, crashes after "
            "a fork; use 1 worker"
        )
    others = ", ".join(thread.name for thread in threading.enumerate() if thread is not threading.current_thread())
    if others and not _blas_has_one_thread():
        raise ValueError(
            f"parallel.run: other threads are running ({others}), and NumPy's BLAS may have its own, with which a "
            "fork can hang forever; start threads afterwards, or set OPENBLAS_NUM_THREADS=1 before NumPy is imported, "
            "or use 1 worker"
        )
    if others:
        warnings.warn(
            f"parallel.run: other threads are running ({others}); a lock that one of them holds now stays locked in "
            "the workers, which would hang; start threads afterwards",
            RuntimeWarning,
            stacklevel=3,
        )


def _blas_has_one_thread() -> bool:
    """Whether NumPy's BLAS is known to use one thread."""
    try:
        from threadpoolctl import threadpool_info
    except ModuleNotFoundError:
        return _cores() == 1 or "1" in map(os.environ.get, _BLAS_LIMITS)
    return all(pool["num_threads"] == 1 for pool in threadpool_info() if pool["user_api"] == "blas")


def _one_blas_thread(count: int) -> AbstractContextManager[Any]:
    """A context in which this process and its forks use one BLAS thread each; RuntimeWarning if it cannot tell."""
    try:
        from threadpoolctl import threadpool_limits
    except ModuleNotFoundError:
        if not _blas_has_one_thread():
            warnings.warn(
                f"parallel.run: NumPy's BLAS may start a thread per core in each of {count} workers, making them "
                "several times slower; set OPENBLAS_NUM_THREADS=1 before NumPy is imported, or install threadpoolctl",
                RuntimeWarning,
                stacklevel=3,
            )
        return nullcontext()
    return threadpool_limits(1, "blas")


def _has_ended(worker: "BaseProcess", timeout: float = 0.0) -> bool:
    """Whether a process has ended or ends in time, even if somebody else has collected its exit code."""
    sentinel = select.poll()
    sentinel.register(worker.sentinel)
    return worker.exitcode is not None or bool(sentinel.poll(1000 * timeout))


def _places(parameters: list[Tensor]) -> list[tuple[np.dtype[Any], int, list[tuple[Tensor, slice]]]]:
    """For each dtype: how many numbers the parameters have, and each parameter's slice of them."""
    places: dict[np.dtype[Any], list[tuple[Tensor, slice]]] = {}
    for p in parameters:
        parts = places.setdefault(p.dtype, [])
        start = parts[-1][1].stop if parts else 0
        parts.append((p, slice(start, start + p.size)))
    return [(dtype, parts[-1][1].stop, parts) for dtype, parts in places.items()]


def _check_room(values: Sequence[float]) -> None:
    if len(values) > _METRICS:
        raise ValueError(f"Group.sum: {len(values)} numbers were given; expected at most {_METRICS}")


def _sum_rows(rows: np.ndarray) -> np.ndarray:
    """The sum over the ranks, in rank order."""
    total = rows[0] + rows[1]
    for row in rows[2:]:
        total += row
    return total


def tune_process() -> bool:
    """Keep freed memory in the process, for programs that train; return whether that was possible.

    Every step frees the memory of its tensors and allocates it again. glibc returns large blocks to the system, and a
    new one costs a page fault every 4 KB, half of the time of a training step of LeNet-5. Call this once, at the start
    of a program; the price is that the process keeps its peak memory. Only glibc (Linux) has this setting; elsewhere
    nothing happens. (OpenBLAS is set up from outside, by OPENBLAS_NUM_THREADS=1 before NumPy is imported: LeNet-5's
    matrices are too small to share among threads.)
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    trim_threshold, mmap_threshold, most = -1, -3, 2**30  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(mmap_threshold, most) and mallopt(trim_threshold, most))
