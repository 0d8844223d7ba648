"""Ranks that are forked from one process and share its machine.

Each has its own copy of the model and computes the gradient of its share of the batch; the gradients of all ranks are
added in rank order. Every rank then takes the same step from the same numbers, so the copies stay bit-identical, and
results depend on the number of ranks but never on timing. Ranks are processes, not threads: because of the
interpreter's lock, two threads were only 1.0 to 1.1 times as fast as one on LeNet-5, while two processes were 1.8 to
1.9 times as fast.

A forked rank sees all data that was loaded before, such as images, without a copy, and may run any function, including
closures. The price is that forking is not safe everywhere: where it is not, `run` refuses or warns. The ranks share
anonymous memory and end with rank 0, so they leave nothing behind, however they end.

In a job of several processes, each may fork ranks. The forked ones are then numbered within their process as workers,
and worker 0 exchanges what all of them have written with the other processes.
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
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from ..graph import repeated
from ..shapes import integer
from ..tensor import Tensor
from . import process
from .group import Group, Row, WorkerError, check_room, sum_rows
from .mpi import Exchange, Job, MpiGroup

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

Result = TypeVar("Result")

_POLLS = 2000  # checks before a waiting rank sleeps: one about to arrive on another core is met without a wake-up
_MOST = 16  # workers per core; more than one per core gains nothing, and thousands bring a machine down
_PATIENCE = 0.2  # seconds of sleep between checks that the other ranks are still there


class _ForkGroup(Group):
    """Ranks that are forked from this process, which becomes worker 0; they are part of all ranks of a job."""

    def __init__(self, parameters: Iterable[Tensor], workers: int, timeout: float, job: Job) -> None:
        super().__init__(parameters)
        for p in self._parameters:
            if p.device != "cpu":
                raise ValueError(f"parallel.run: a parameter lies on {p.device!r}; more than one worker needs the CPU")
        from multiprocessing import get_context  # here, since it is slow to import and few programs need it

        self._context = get_context("fork")
        self._count = workers
        self._worker = 0
        self.size = workers * job.size
        self.rank = workers * job.rank
        self._timeout = timeout
        self._polls = range(_POLLS if workers <= process.cores() else 1)
        self._parent = os.getpid()
        self._workers: list[BaseProcess] = []  # workers 1, 2, ..., known only to worker 0
        self._row = Row(self._parameters, job.size)
        # Each worker writes its own row and reads all rows. Two sets of rows are used in turn, so a sum needs only one
        # meeting of all workers: none can reach a row again while another still reads it. The last row of a set is
        # for the sums over all processes of a job.
        self._turn = 0
        self._meetings = 0
        needed = workers * 3 * 8 + 2 * (workers + 1) * self._row.size
        try:
            self._shared = mmap.mmap(-1, needed)
            # For each worker, how many others have arrived at a meeting.
            self._arrivals = [[self._context.Semaphore(0) for _ in range(workers)] for _ in range(2)]
        except (OSError, OverflowError, MemoryError) as error:
            raise WorkerError(
                f"parallel.run: the system refuses ({error}) what {workers} workers share, {needed:,} bytes of memory "
                f"and {2 * workers} semaphores (on Linux in /dev/shm, which must be writable); use fewer workers"
            ) from error
        self._rows = np.ndarray((2, workers + 1, self._row.size), np.uint8, self._shared)
        self._views = [self._row.views(rows) for rows in self._rows]
        # For each worker: how many meetings it has reached, when it reached the last, whether its work is done.
        self._seen = np.ndarray((workers, 3), np.float64, self._shared, offset=self._rows.nbytes)
        self._seen[:, 1] = time.monotonic()
        self._across = Exchange(job, self._row, workers, timeout) if job.size > 1 else None

    @repeated
    def sum_gradients(self, values: Sequence[float] = ()) -> list[float]:
        check_room(values)
        self._turn = 1 - self._turn
        rows, views = self._rows[self._turn], self._views[self._turn]
        self._row.fill([view[self._worker] for view in views], values)
        self._meet()
        if self._across is None:
            return self._row.take([sum_rows(view[:-1]) for view in views], len(values))
        if self._worker == 0:
            rows[-1] = self._across.sum(rows[:-1])
        self._meet()
        return self._row.take(self._row.views(rows[-1].copy()), len(values))

    def sum(self, values: Sequence[float]) -> list[float]:
        check_room(values)
        self._turn = 1 - self._turn
        numbers = self._views[self._turn][0][:, : len(values)]
        numbers[self._worker] = values
        self._meet()
        if self._across is None:
            return [float(value) for value in sum_rows(numbers[:-1])]
        if self._worker == 0:
            numbers[-1] = self._across.sum_numbers(numbers[:-1])
        self._meet()
        return [float(value) for value in numbers[-1]]

    def _meet(self) -> None:
        """Wait until all workers are here."""
        seen = self._seen[self._worker]
        # Two sets in turn, so that nobody takes an arrival at the next meeting for one at this.
        self._meetings += 1
        arrivals = self._arrivals[self._meetings % 2]
        seen[0] += 1
        seen[1] = time.monotonic()
        for worker in reversed(range(self._count)):  # worker 0 last: once it continues, all others may continue
            if worker != self._worker:
                arrivals[worker].release()
        arrived = arrivals[self._worker]
        for _ in range(self._count - 1):
            if not any(arrived.acquire(block=False) for _ in self._polls):
                returned, looks = False, 0
                while not arrived.acquire(timeout=_PATIENCE):
                    looks += 1
                    self._look_round(returned, looks)
                    returned = bool(self._seen[0, 2])

    def _look_round(self, returned: bool, looks: int) -> None:
        """End with a sentence if another rank has ended or does not arrive, or rank 0 ``returned`` a while ago."""
        if self._worker and os.getppid() != self._parent:
            os._exit(1)  # rank 0 is gone, so there is nobody to tell
        if returned:
            raise WorkerError(
                f"worker {self._worker} waits for rank 0, which has returned; every rank must call sum equally often"
            )
        meeting = self._seen[self._worker, 0]
        for rank, worker in enumerate(self._workers, start=1):
            if _has_ended(worker) and not (self._seen[rank, 2] and self._seen[rank, 0] == meeting):
                raise WorkerError(self._how_it_ended(rank))
        # Rank 0, which ends the others, loses patience first.
        self._end_if_late(looks / (2 if self._worker else 1), self._seen[:, 0] < meeting)

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
            f"rank {self._worker} has waited for {waited:.1f} s: {'; '.join(places)}; the run has been stopped. If a "
            "rank computes for that long, give parallel.run a longer timeout; if one hangs, see its warning on threads"
        )

    def _start(self, function: Callable[..., Any], arguments: Any, options: Any) -> None:
        """Start all other ranks."""
        # A Ctrl-C, which would find half of the ranks, waits until all are there. (Masking the signal would not do: it
        # then goes to another thread, such as one of BLAS's.)
        pressed: list[int] = []
        in_main = threading.current_thread() is threading.main_thread()
        before = signal.signal(signal.SIGINT, lambda number, _: pressed.append(number)) if in_main else None
        try:
            for rank in range(1, self._count):
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
        self.rank += rank
        self._worker, self._workers = rank, []
        function(self, *arguments, **options)
        self._seen[rank, 2] = True

    def _join(self) -> None:
        """Wait until the other ranks have ended; WorkerError if one of them failed."""
        self._seen[0, 2] = True
        for rank, worker in enumerate(self._workers, start=1):
            looks = 0
            while not _has_ended(worker, _PATIENCE):
                looks += 1
                self._end_if_late(looks, np.arange(self._count) == rank)
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
    job: Job | None = None,
    **options: Any,
) -> Result:
    """Call ``function(group, *arguments, **options)`` in ``workers`` processes and return what rank 0 returns.

    ``parameters`` are those whose gradients `Group.sum_gradients` adds up. With a ``job`` of several processes (see
    `job`), each of which calls this, the ranks of all of them form one group: its size is ``workers`` times that of the
    job, and each process returns what its first rank returns. Whatever ends rank 0, including Ctrl-C and
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
    if count > _MOST * process.cores():
        raise ValueError(
            f"parallel.run: workers is {count}; expected at most {_MOST} for each of {process.cores()} cores"
        )
    if not timeout > 0:
        raise ValueError(f"parallel.run: timeout is {timeout}; expected seconds, above 0")
    job = Job() if job is None else job
    if count == 1:
        alone = Group(parameters) if job.size == 1 else MpiGroup(parameters, job, timeout)
        return function(alone, *arguments, **options)
    _check_fork(count)
    group = _ForkGroup(parameters, count, timeout, job)
    with process.one_blas_thread(count):
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
    return min(2, process.cores()) if hasattr(os, "fork") and sys.platform != "darwin" else 1


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
    if others and not process.blas_has_one_thread():
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


def _has_ended(worker: "BaseProcess", timeout: float = 0.0) -> bool:
    """Whether a process has ended or ends in time, even if somebody else has collected its exit code."""
    sentinel = select.poll()
    sentinel.register(worker.sentinel)
    return worker.exitcode is not None or bool(sentinel.poll(1000 * timeout))
