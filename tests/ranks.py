"""A group that does what it is told: `python -m tests.ranks --workers 3`, or the same under mpiexec.

Each line of standard input is a command, `NAME SEED`; rank 0 answers with what the ranks got. Ranks draw their numbers
from the seed, so that `tests/test_mpi.py` can compute what the answers have to be.
"""

import argparse
import os
import sys
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

from tinygrad_lenet import Tensor, parallel
from tinygrad_lenet.parallel import Group, WorkerError

Numbers = list[Any]
SHAPES = [((3,), "float32"), ((2, 5), "float64"), ((), "float32"), ((0, 4), "float64"), ((331,), "float16")]
NAMES = ["sum", "sum_gradients", "average", "require_equal"]


def drawn(seed: int, rank: int, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Numbers of very different sizes, so that each order of adding them has another sum."""
    rng = np.random.default_rng((seed, rank, len(shape), *shape))
    return np.asarray(rng.standard_normal(shape) * 10.0 ** rng.integers(-3, 4, shape), dtype)


def gradients_of(seed: int, rank: int) -> list[np.ndarray | None]:
    """A gradient for each parameter, or none; some parameters have none on any rank."""
    absent = np.random.default_rng((seed, rank)).random(len(SHAPES)) < 0.3
    absent |= np.random.default_rng(seed).random(len(SHAPES)) < 0.2
    return [None if gone else drawn(seed, rank, *each) for gone, each in zip(absent, SHAPES, strict=True)]


def numbers_of(seed: int, rank: int) -> list[float]:
    return drawn(seed, rank, (seed % 257,), "float64").tolist()


def weight_of(seed: int, rank: int) -> float:
    return float(1 + (seed + rank) % 3)


def digest(arrays: list[Any]) -> int:
    """Of dtypes, shapes and bits."""
    found = 0
    for array in arrays:
        text = repr(None if array is None else (array.dtype.str, array.shape, array.tobytes()))
        found = zlib.crc32(text.encode(), found)
    return found


def obey(group: Group, parameters: list[Tensor], name: str, seed: int) -> int:
    """Do it, and return a digest of what this rank got."""
    if name == "sum":
        return digest([np.array(group.sum(numbers_of(seed, group.rank)))])
    if name == "sum_gradients":
        for p, g in zip(parameters, gradients_of(seed, group.rank), strict=True):
            p.grad = None if g is None else Tensor(g)
        sums = group.sum_gradients(numbers_of(seed, group.rank))
        return digest([np.array(sums), *(None if p.grad is None else p.grad.numpy() for p in parameters)])
    tensors = [Tensor(drawn(seed, group.rank, *each)) for each in SHAPES[:4]]
    if name == "average":
        group.average(tensors, weight_of(seed, group.rank))
        return digest([tensor.numpy() for tensor in tensors])
    tensors = [Tensor(drawn(seed, 0, *each)) for each in SHAPES]
    if seed % 2 and group.rank == seed % group.size:
        tensors[4].data[seed % 331] += 1
    try:
        group.require_equal(tensors)
    except WorkerError:
        return 1
    return 0


def work(group: Group, parameters: list[Tensor], read: Callable[[], str]) -> None:
    while True:
        name, _, seed = (read() if group.rank == 0 else "").partition(" ")
        order = [NAMES.index(name) + 1.0, float(seed)] if name in NAMES else [0.0, 0.0]
        number, seed_of_all = map(int, group.sum(order if group.rank == 0 else [0.0, 0.0]))
        if not number:
            return
        found = obey(group, parameters, NAMES[number - 1], seed_of_all)
        answers = group.sum([found if rank == group.rank else 0 for rank in range(group.size)])
        if group.rank == 0:
            print(*map(int, answers), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--workers", type=int, default=1)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    parameters = [Tensor(np.zeros(shape, dtype), requires_grad=True) for shape, dtype in SHAPES]
    workers = parser.parse_args().workers
    parallel.run(work, workers, parameters, parameters, sys.stdin.readline, job=parallel.job())


if __name__ == "__main__":
    main()
