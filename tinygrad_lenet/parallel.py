"""Training on several cores: every process runs the same program on its share of each batch.

`run` forks the program into ranks 0, 1, ...; each has its own copy of the model, computes the gradient of its share of
the batch, and `Group.sum_gradients` adds the gradients of all ranks in rank order. Every rank then takes the same step
from the same numbers, so the copies stay equal to the bit, and results depend on the number of ranks but never on
timing. Processes, not threads: under the interpreter's lock two threads gained 1.0 to 1.1 times the speed of one on
LeNet-5, two processes 1.8 to 1.9 times.

Memory that the ranks share is anonymous, so nothing is left behind however they end. A forked rank sees all data that
was loaded before (images, say) without a copy.
"""

import ctypes
import mmap
import os
import platform
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import numpy as np

from .shapes import integer
from .tensor import Tensor, wrap

Result = TypeVar("Result")

_METRICS = 256  # numbers that can be added at a time, beside gradients
_POLLS = 2000  # polls before a waiting rank sleeps: a rank that is about to arrive is met without a wake-up
_PATIENCE = 0.2  # seconds of sleep between looks at whether the others are still there


class WorkerError(RuntimeError):
    """A rank ended before its work was done; the message says which and how."""


class Group:
    """The ranks that train together, as one of them sees it: its ``rank`` from 0, and how many there are, ``size``.

    >>> alone = Group([Tensor([1.0], requires_grad=True)])
    >>> alone.rank, alone.size, alone.share(10)
    (0, 1, slice(0, 10, None))
    """

    rank = 0

    def __init__(self, parameters: Iterable[Tensor], size: int = 1) -> None:
        self.size = size
        self._parameters = list(parameters)
        self._parent = os.getpid()
        self._children: list[int] = []
        if size == 1:
            return
        for p in self._parameters:
            if p.device != "cpu":
                raise ValueError(f"parallel.run: a parameter lies on {p.device!r}; more than one worker needs the CPU")
        self._places = _places(self._parameters)
        # Each rank writes into its row and reads all rows. Two sets of rows take turns, so that one meeting of all
        # ranks a sum is enough: nobody can come round to a row while another still reads it.
        self._metrics = _METRICS + len(self._parameters)  # the latter say which gradients there are
        room = sum(count * dtype.itemsize for dtype, count, _ in self._places) + self._metrics * 8
        self._shared = mmap.mmap(-1, 2 * size * room + 1)  # the last byte: whether rank 0 has returned
        self._rows = [self._views(turn * size * room, room) for turn in (0, 1)]
        self._turn = 0
        from multiprocessing import get_context  # here, since it is slow to import and few programs need it

        context = get_context("fork")
        self._arrivals = [[context.Semaphore(0) for _ in range(size)] for _ in range(size)]  # [to][from]

    def _views(self, start: int, room: int) -> list[np.ndarray]:
        """One array (rank, number) for each dtype of the parameters, and a last one for metrics."""
        views = []
        for dtype, count, _ in [*self._places, (np.dtype(np.float64), self._metrics, [])]:
            views.append(
                np.ndarray((self.size, count), dtype, self._shared, offset=start, strides=(room, dtype.itemsize))
            )
            start += count * dtype.itemsize
        return views

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
        _check_room(values)
        if self.size == 1:
            return [float(value) for value in values]
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
        """The sum of each number over all ranks; every rank must call it with as many."""
        _check_room(values)
        if self.size == 1:
            return [float(value) for value in values]
        row = self._next_rows()[-1]
        row[self.rank, : len(values)] = values
        self._meet()
        return [float(value) for value in _sum_rows(row[:, : len(values)])]

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

    def _next_rows(self) -> list[np.ndarray]:
        self._turn = 1 - self._turn
        return self._rows[self._turn]

    def _meet(self) -> None:
        """Wait until all ranks are here."""
        others = [rank for rank in range(self.size) if rank != self.rank]
        for rank in reversed(others):  # rank 0 last: once it is through, everybody has been let through
            self._arrivals[rank][self.rank].release()
        for rank in others:
            arrived = self._arrivals[self.rank][rank]
            if not any(arrived.acquire(block=False) for _ in range(_POLLS)):
                returned = False
                while not arrived.acquire(timeout=_PATIENCE):
                    self._look_round(returned)
                    returned = bool(self._shared[-1])

    def _look_round(self, returned: bool) -> None:
        """End, with a sentence, if another rank has ended, or rank 0 had ``returned`` before the last wait began."""
        if self.rank:
            if os.getppid() != self._parent:
                os._exit(1)  # rank 0 is gone, and with it whoever could be told
            if returned:
                raise WorkerError(
                    f"worker {self.rank} waits for rank 0, which has returned; every rank must sum equally often"
                )
            return
        for rank, child in enumerate(self._children, start=1):
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                self._children[rank - 1] = 0
                raise WorkerError(_how_it_ended(rank, status))

    def _fork(self) -> None:
        """Become ``size`` processes, each with its own rank."""
        _flush()
        interrupt = {signal.SIGINT}
        signal.pthread_sigmask(signal.SIG_BLOCK, interrupt)  # a Ctrl-C in between would find half of the ranks
        try:
            for rank in range(1, self.size):
                with warnings.catch_warnings():
                    # Python 3.12 warns of threads of the parent; OpenBLAS's, which are the only ones, survive a fork.
                    warnings.simplefilter("ignore", DeprecationWarning)
                    child = os.fork()
                if not child:
                    self.rank, self._children = rank, []
                    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all; rank 0 decides for the others
                    return
                self._children.append(child)
        except OSError:
            self._kill()
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, interrupt)

    def _join(self) -> None:
        """Wait until the other ranks have ended; WorkerError if one of them did not end well."""
        self._shared[-1] = 1
        for rank, child in enumerate(self._children, start=1):
            _, status = os.waitpid(child, 0)
            self._children[rank - 1] = 0
            if status:
                raise WorkerError(_how_it_ended(rank, status))

    def _kill(self) -> None:
        """End the ranks that have not ended."""
        for child in filter(None, self._children):
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        self._children = []


def run(
    function: Callable[..., Result], workers: int, parameters: Iterable[Tensor], *arguments: Any, **options: Any
) -> Result:
    """Call ``function(group, *arguments, **options)`` in ``workers`` processes and return what rank 0 returns.

    ``parameters`` are those whose gradients `Group.sum_gradients` adds up. ValueError if more than one worker is asked
    for where processes cannot be forked; WorkerError if one ends before its time. Whatever ends rank 0, Ctrl-C too,
    ends the others.

    >>> run(lambda group: group.sum([group.rank + 1]), 2, [])
    [3.0]
    """
    count = integer("parallel.run", "workers", workers, minimum=1)
    if count > 1 and not hasattr(os, "fork"):
        raise ValueError(f"parallel.run: {count} workers need os.fork, which {platform.system()} lacks; use 1 worker")
    group = Group(parameters, count)
    if count == 1:
        return function(group, *arguments, **options)
    group._fork()
    if group.rank:
        status = 1
        try:
            function(group, *arguments, **options)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            _flush()
            os._exit(status)  # the rest of the program belongs to rank 0
    try:
        result = function(group, *arguments, **options)
        group._join()
        return result
    finally:
        group._kill()  # nobody, if all went well


def _flush() -> None:
    """Write out what was printed, so that no process prints it twice or not at all."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # as in a daemon
            stream.flush()


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


def _how_it_ended(rank: int, status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    how = f"by signal {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
    return f"worker {rank} ended {how} before its work was done; the run has been stopped"


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
