"""Training on several cores, or on several machines: every process runs the same program on its share of each batch.

`run` forks a process into ranks that share one machine. Processes that ``mpiexec`` or ``srun`` started, on one machine
or many, find each other by `job` and train together if they hand that to `run`. A training loop sees only a `Group`,
which is the same in all cases: sums are added in rank order, so groups of equal size compute equal bits.
"""

from .fork import default_workers, run
from .group import Group, WorkerError
from .mpi import Job, job
from .process import tune_process

__all__ = ["Group", "Job", "WorkerError", "default_workers", "job", "run", "tune_process"]
