"""Training on several cores: every process runs the same program on its share of each batch.

`run` forks the program into ranks 0, 1, ...; each has its own copy of the model, computes the gradient of its share of
the batch, and `Group.sum_gradients` adds the gradients of all ranks in rank order. Every rank then takes the same step
from the same numbers, so the copies stay equal to the bit, and results depend on the number of ranks but never on
timing. Processes, not threads: under the interpreter's lock two threads gained 1.0 to 1.1 times the speed of one on
LeNet-5, two processes 1.8 to 1.9 times.

A forked rank sees all data that was loaded before (images, say) without a copy, and may run any function, a closure
too. The price is that a fork is not safe everywhere: `run` refuses it, or warns, where it is not. Memory that the ranks
share is anonymous, and ranks end with rank 0, so nothing is left behind however they end.
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

from .graph import note_write
from .shapes import integer
from .tensor import Tensor, wrap

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

Result = TypeVar("Result")

_METRICS = 256  # numbers that can be added at a time, beside gradients
_POLLS = 2000  # before a waiting rank sleeps: a rank that is about to arrive on another core is met without a wake-up
_MOST = 16  # workers for each core; none gains from more than one, and thousands bring a machine down
_PATIENCE = 0.2  # seconds of sleep between looks at whether the others are still there
_BLAS_LIMITS = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS", "OMP_NUM_THREADS")


class WorkerError(RuntimeError):
    """A rank could not be started, ended before its work was done, or did not come; the message says which and how."""


class Group:
    """The ranks that train together, as one of them sees it: its ``rank`` from 0, and how many there are, ``size``.

    By itself it is a program that trains alone; `run` makes those of several ranks.

    >>> alone = Group([Tensor([1.0], requires_grad=True)])
    >>> alone.rank, alone.size, alone.share(10)
    (0, 1, slice(0, 10, None))
    """

    rank = 0
    size = 1

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        self._parameters = list(parameters)

    def share(self, count: int) -> slice:
        """This rank's stretch of ``count`` things: as equal as can be, in rank order.

        >>> Group([]).share(3)
        slice(0, 3, None)
        """
        return slice(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def sum_gradients(self, values: Sequence[float] = ()) -> list[float]:
        """Replace each parameter's gradient by its sum over all ranks; a rank's missing gradient counts as 0.

        A parameter that has none on any rank keeps none.

        Returns the sum of each of ``values``, as `sum` does, without a meeting of its own.
        """
        return self.sum(values)

    def sum(self, values: Sequence[float]) -> list[float]:
        """The sum of each number over all ranks; every rank must call it with as many."""
        _check_room(values)
        return [float(value) for value in values]

    def average(self, tensors: Iterable[Tensor], weight: float = 1.0) -> None:
        """Replace each tensor, in place, by its mean over all ranks, a rank counting ``weight`` times.

        For what ranks gather on their own, such as batch normalisation's running statistics. At least one weight must
        be above 0.
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
        self._workers: list[BaseProcess] = []  # ranks 1, 2, ..., of which only rank 0 knows
        self._places = _places(self._parameters)
        # Each rank writes into its row and reads all rows. Two sets of rows take turns, so that one meeting of all
        # ranks a sum is enough: nobody can come round to a row while another still reads it.
        self._metrics = _METRICS + len(self._parameters)  # the latter say which gradients there are
        room = sum(count * dtype.itemsize for dtype, count, _ in self._places) + self._metrics * 8
        self._turn = 0
        needed = size * (3 * 8 + 2 * room)
        try:
            self._shared = mmap.mmap(-1, needed)
            # For each rank how many others have come to a meeting.
            self._arrivals = [[self._context.Semaphore(0) for _ in range(size)] for _ in range(2)]
        except (OSError, OverflowError, MemoryError) as error:
            raise WorkerError(
                f"parallel.run: the system refuses ({error}) what {size} workers share, {needed:,} bytes of memory and "
                f"{2 * size} semaphores (on Linux in /dev/shm, which must be writable); use fewer workers"
            ) from error
        self._rows = [self._views(size * (3 * 8 + turn * room), room) for turn in (0, 1)]
        # Of each rank: how many meetings it has come to, when it came to the last, whether its work is done.
        self._seen = np.ndarray((size, 3), np.float64, self._shared)
        self._seen[:, 1] = time.monotonic()

    def _views(self, start: int, room: int) -> list[np.ndarray]:
        """One array (rank, number) for each dtype of the parameters, and a last one for metrics."""
        views = []
        for dtype, count, _ in [*self._places, (np.dtype(np.float64), self._metrics, [])]:
            views.append(
                np.ndarray((self.size, count), dtype, self._shared, offset=start, strides=(room, dtype.itemsize))
            )
            start += count * dtype.itemsize
        return views

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
        for rank in reversed(range(self.size)):  # rank 0 last: once it is through, everybody has been let through
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
        """End, with a sentence, if another rank has ended or does not come, or rank 0 had ``returned`` a while ago."""
        if self.rank and os.getppid() != self._parent:
            os._exit(1)  # rank 0 is gone, and with it whoever could be told
        if returned:
            raise WorkerError(
                f"worker {self.rank} waits for rank 0, which has returned; every rank must sum equally often"
            )
        meeting = self._seen[self.rank, 0]
        for rank, worker in enumerate(self._workers, start=1):
            if _has_ended(worker) and not (self._seen[rank, 2] and self._seen[rank, 0] == meeting):
                raise WorkerError(self._how_it_ended(rank))
        # Rank 0, which ends the others, is the first to lose patience.
        self._end_if_late(looks / (2 if self.rank else 1), self._seen[:, 0] < meeting)

    def _end_if_late(self, looks: float, late: np.ndarray) -> None:
        """WorkerError if the ranks that are ``late`` have been waited for too long; says where each was last seen.

        Looks are counted, and no clock is read, so that a program that was stopped for an hour may go on.
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
                os.kill(pid, signal.SIGUSR1)  # it writes to standard error where it is now
        time.sleep(0.5)
        raise WorkerError(
            f"rank {self.rank} has waited for {waited:.1f} s: {'; '.join(places)}; the run has been stopped. If a rank "
            "computes for so long, give parallel.run a longer timeout; if it hangs, see its warning about threads"
        )

    def _start(self, function: Callable[..., Any], arguments: Any, options: Any) -> None:
        """Start all ranks but this one."""
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # a Ctrl-C would find half of the ranks
        try:
            for rank in range(1, self.size):
                worker = self._context.Process(target=self._work, args=(rank, mask, function, arguments, options))
                with warnings.catch_warnings():
                    # Python 3.12 warns of OpenBLAS's threads too, which survive a fork; _check_fork warns of others.
                    warnings.simplefilter("ignore", DeprecationWarning)
                    worker.start()
                self._workers.append(worker)
        except OSError as error:
            raise WorkerError(
                f"parallel.run: the system refuses process {rank} ({error}); use fewer workers"
            ) from error
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def _work(self, rank: int, mask: Any, function: Callable[..., Any], arguments: Any, options: Any) -> None:
        """What a forked process does."""
        if sys.platform == "linux":  # has the system end it when rank 0 ends; elsewhere it notices at its next meeting
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG of prctl.h
            if os.getppid() != self._parent:
                os._exit(1)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all; rank 0 decides for the others
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        faulthandler.register(signal.SIGUSR1, file=2)
        self.rank, self._workers = rank, []
        function(self, *arguments, **options)
        self._seen[rank, 2] = True

    def _join(self) -> None:
        """Wait until the other ranks have ended; WorkerError if one of them did not end well."""
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
        """End the ranks that have not ended."""
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

    ``parameters`` are those whose gradients `Group.sum_gradients` adds up. Whatever ends rank 0, Ctrl-C or SIGKILL too,
    ends the others. While several ranks are at work each has one BLAS thread, if threadpoolctl is installed; without it
    a RuntimeWarning says so, unless OPENBLAS_NUM_THREADS or its like is set.

    ValueError if more than 16 workers are asked for each core, or more than one where processes cannot be forked, crash
    when they have been (with Accelerate on macOS), or would hang (other threads run, and BLAS has threads of its own).
    RuntimeWarning if other threads run at all: a lock that one of them holds stays locked in the workers. WorkerError
    if a rank cannot be started, ends before its time, or lets others wait for ``timeout`` seconds.

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
            group._kill()  # nobody, if all went well


def default_workers() -> int:
    """How many workers suit LeNet-5 on this machine: one a core, at most 2, and 1 where a fork is not safe.

    >>> default_workers() in (1, 2)
    True
    """
    return min(2, _cores()) if hasattr(os, "fork") and sys.platform != "darwin" else 1


def _cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _check_fork(count: int) -> None:
    """ValueError if this process cannot be forked into so many, RuntimeWarning if that may go wrong."""
    if not hasattr(os, "fork"):
        raise ValueError(f"parallel.run: {count} workers need os.fork, which {platform.system()} lacks; use 1 worker")
    built_with: Any = np.show_config(mode="dicts")
    if built_with["Build Dependencies"].get("blas", {}).get("name") == "accelerate":
        raise ValueError(
            f"parallel.run: {count} workers would be forked, in which Apple's Accelerate, NumPy's BLAS here, crashes; "
            "use 1 worker"
        )
    others = ", ".join(thread.name for thread in threading.enumerate() if thread is not threading.current_thread())
    if others and not _blas_has_one_thread():
        raise ValueError(
            f"parallel.run: other threads run ({others}), and NumPy's BLAS may have threads of its own, with which a "
            "fork can hang for ever; start threads afterwards, or set OPENBLAS_NUM_THREADS=1 before NumPy is imported, "
            "or use 1 worker"
        )
    if others:
        warnings.warn(
            f"parallel.run: other threads run ({others}); a lock that one of them holds at this moment stays locked in "
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
    """Within it this process and those that it forks use one BLAS thread each; RuntimeWarning if nobody knows."""
    try:
        from threadpoolctl import threadpool_limits
    except ModuleNotFoundError:
        if not _blas_has_one_thread():
            warnings.warn(
                f"parallel.run: NumPy's BLAS may start a thread a core in each of {count} workers, which makes them "
                "several times slower; set OPENBLAS_NUM_THREADS=1 before NumPy is imported, or install threadpoolctl",
                RuntimeWarning,
                stacklevel=3,
            )
        return nullcontext()
    return threadpool_limits(1, "blas")


def _has_ended(worker: "BaseProcess", timeout: float = 0.0) -> bool:
    """Whether a process has ended or does so in time; also where somebody else has taken its exit code."""
    sentinel = select.poll()
    sentinel.register(worker.sentinel)
    return worker.exitcode is not None or bool(sentinel.poll(1000 * timeout))


def _places(parameters: list[Tensor]) -> list[tuple[np.dtype[Any], int, list[tuple[Tensor, slice]]]]:
    """For each dtype: how many numbers the parameters have, and the stretch of each parameter among them."""
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
    """The sum over ranks, in rank order."""
    total = rows[0] + rows[1]
    for row in rows[2:]:
        total += row
    return total


def tune_process() -> bool:
    """Have freed memory stay in the process, as a program that trains wants it; whether that could be done.

    A tensor's memory is freed and asked for again in every step. glibc hands large blocks back to the system, and each
    comes back with a page fault every 4 KB, half of the time of a training step of LeNet-5. Call it once, at the start
    of a program; the price is that the process keeps the most memory that it ever used. Only glibc (Linux) has the
    setting; elsewhere nothing happens. (OpenBLAS is tuned from outside, by OPENBLAS_NUM_THREADS=1 before NumPy is
    imported: LeNet-5's matrices are too small to share.)
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    trim_threshold, mmap_threshold, most = -1, -3, 2**30  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(mmap_threshold, most) and mallopt(trim_threshold, most))
