"""How a process that computes is set up: its cores, the threads of its BLAS, the memory that it keeps."""

import ctypes
import os
import platform
import warnings
from contextlib import AbstractContextManager, nullcontext
from typing import Any

BLAS_LIMITS = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS", "OMP_NUM_THREADS")


def cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def blas_has_one_thread() -> bool:
    """Whether NumPy's BLAS is known to use one thread."""
    try:
        from threadpoolctl import threadpool_info
    except ModuleNotFoundError:
        return cores() == 1 or "1" in map(os.environ.get, BLAS_LIMITS)
    return all(pool["num_threads"] == 1 for pool in threadpool_info() if pool["user_api"] == "blas")


def one_blas_thread(count: int) -> AbstractContextManager[Any]:
    """A context in which this process and its forks use one BLAS thread each; RuntimeWarning if it cannot tell."""
    try:
        from threadpoolctl import threadpool_limits
    except ModuleNotFoundError:
        if not blas_has_one_thread():
            warnings.warn(
                f"parallel.run: NumPy's BLAS may start a thread per core in each of {count} workers, making them "
                "several times slower; set OPENBLAS_NUM_THREADS=1 before NumPy is imported, or install threadpoolctl",
                RuntimeWarning,
                stacklevel=3,
            )
        return nullcontext()
    return threadpool_limits(1, "blas")


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
