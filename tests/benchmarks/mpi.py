"""Steps of LeNet-5 on ranks of MPI, beside PyTorch's DistributedDataParallel: `python -m tests.benchmarks.mpi`.

Both train on the same batch, cut into equal shares, with Adam, each rank on one thread; PyTorch's ranks use gloo. They
take turns, and the median over all rounds counts. Then the time on more ranks is projected by the alpha-beta model from
what was measured here and from a network's latency and bandwidth. `docs/mpi.md` has results.
"""

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from .contestants import lenet5
from .machine import ROOT

BATCH = 64
PARAMETERS = 61_706
NETWORKS = {"Ethernet, 25 Gb/s": (30e-6, 3.0e9), "InfiniBand, 100 Gb/s": (2e-6, 12.0e9)}  # latency (s), bytes/s
Parts = dict[str, float]


def share(rank: int, size: int, batch: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    images, labels = rng.standard_normal((batch, 1, 32, 32), np.float32), rng.integers(0, 10, batch)
    part = slice(rank * batch // size, (rank + 1) * batch // size)
    return images[part], labels[part]


def timed(steps: int, parts: dict[str, Callable[[], Any]]) -> Parts:
    """The median milliseconds of each part of a step, of whole steps, and of the core's time for one."""
    seconds: dict[str, list[float]] = {name: [] for name in (*parts, "step", "core")}
    for _ in range(steps):
        core, begun = time.process_time(), time.perf_counter()
        before = begun
        for name, part in parts.items():
            part()
            now = time.perf_counter()
            seconds[name].append(now - before)
            before = now
        seconds["step"].append(before - begun)
        seconds["core"].append(time.process_time() - core)
    return {name: 1000 * statistics.median(values[steps // 5 :]) for name, values in seconds.items()}


def ours(batch: int, steps: int) -> Parts | None:
    """What rank 0 measures; with a meeting before the gradients are added, which tells waiting from adding."""
    from models import LeNet5
    from tinygrad_lenet import Tensor, jit, optim, parallel
    from tinygrad_lenet import functional as F

    job = parallel.job()
    parallel.tune_process()
    model = LeNet5(rng=0)
    optimizer = optim.Adam(model.parameters(), lr=0.001)
    x, y = (Tensor(array) for array in share(job.rank, job.size, batch))

    @jit
    def gradient(x: Tensor, y: Tensor) -> None:
        (F.cross_entropy(model(x), y, reduction="sum") / batch).backward()

    def train(group: parallel.Group) -> Parts:
        def compute() -> None:
            optimizer.zero_grad()
            gradient(x, y)

        whole = timed(steps, {"compute": compute, "add": group.sum_gradients, "update": optimizer.step})
        parts = {"compute": compute, "wait": lambda: group.sum([1]), "add": group.sum_gradients}
        return {**timed(steps, {**parts, "update": optimizer.step}), "step": whole["step"], "core": whole["core"]}

    found = parallel.run(train, 1, model.parameters(), job=job)
    return found if job.rank == 0 else None


def torchs(rank: int, size: int, place: str, batch: int, steps: int) -> Parts | None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{place}", rank=rank, world_size=size)
    model = lenet5(torch, "tanh")
    model = torch.nn.parallel.DistributedDataParallel(model) if size > 1 else model
    optimizer = torch.optim.Adam(model.parameters(), lr=0.001, fused=True)
    x, y = (torch.from_numpy(array) for array in share(rank, size, batch))

    def compute() -> None:  # and add the gradients, bucket by bucket, during the backward pass
        optimizer.zero_grad(set_to_none=True)
        torch.nn.functional.cross_entropy(model(x), y).backward()

    found = timed(steps, {"compute and add": compute, "update": optimizer.step})
    dist.destroy_process_group()
    return found if rank == 0 else None


def measure(who: str, size: int, batch: int, steps: int, torch: str) -> Parts:
    """Start the ranks and return what the first of them measured."""
    words = ["-m", "tests.benchmarks.mpi", "--batch", str(batch), "--steps", str(steps)]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        if who == "ours":
            beside = str(Path(sys.executable).parent)
            launcher = shutil.which("mpiexec", path=f"{beside}{os.pathsep}{os.environ['PATH']}")
            if launcher is None:
                raise SystemExit("there is no mpiexec; pip install mpi4py mpich")
            commands = [[launcher, "-n", str(size), sys.executable, *words, "--child", "ours"]]
        else:
            place = f"{folder}/meeting"
            commands = [[torch, *words, "--child", f"{rank} {size} {place}"] for rank in range(size)]
        ranks = [
            subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
            for command in commands
        ]
        texts = [rank.communicate(timeout=600)[0] for rank in ranks]
    if any(rank.returncode for rank in ranks):
        raise SystemExit(f"the ranks of {who} failed")
    return json.loads(texts[0].strip().splitlines()[-1])


def added(ranks: int, size: float, latency: float, bandwidth: float) -> float:
    """Seconds to add gradients of so many bytes: ranks - 1 pieces sent to as many ranks, then all sums gathered."""
    return (ranks - 1 + math.log2(ranks)) * latency + 2 * (ranks - 1) / ranks * size / bandwidth


def project(fixed: float, per_image: float, batch: int) -> None:
    """Print what a step of one global batch takes, in milliseconds, on more ranks than there are here."""
    print(f"\nProjected: a step on {batch} images, which takes one rank {fixed:.2f} + {batch} x {per_image:.4f} ms")
    for network, (latency, bandwidth) in NETWORKS.items():
        for factor in (1, 100):
            print(f"{network}, {PARAMETERS * factor:,} parameters, arithmetic in proportion:")
            # A net of a hundred times the arithmetic in as many calls: only what is done for each image grows.
            alone = fixed + batch * per_image * factor
            times = {1: alone}
            for ranks in (2**i for i in range(1, 13)):
                computed = fixed + batch / ranks * per_image * factor
                times[ranks] = computed + 1000 * added(ranks, 4 * PARAMETERS * factor, latency, bandwidth)
                if ranks in (8, 64, 512):
                    print(
                        f"  {ranks:4} ranks: compute {computed:8.2f} ms, add {times[ranks] - computed:6.2f} ms, "
                        f"{alone / times[ranks]:6.1f} times as fast as one"
                    )
            print(f"  most at {min(times, key=lambda ranks: times[ranks])} ranks")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.mpi", description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=BATCH, help="images per step, over all ranks")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--torch", default=sys.executable, help="the Python that has PyTorch; empty: without PyTorch")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        if args.child == "ours":
            found = ours(args.batch, args.steps)
        else:
            rank, size, place = args.child.split()
            found = torchs(int(rank), int(size), place, args.batch, args.steps)
        if found:
            print(json.dumps(found))
        return

    rounds: dict[tuple[str, int], list[Parts]] = {}
    small: list[Parts] = []
    for _ in range(args.rounds):
        for ranks in args.ranks:
            for who in ("ours", "PyTorch") if args.torch else ("ours",):
                rounds.setdefault((who, ranks), []).append(measure(who, ranks, args.batch, args.steps, args.torch))
        small.append(measure("ours", 1, args.batch // 8, args.steps, args.torch))
    print(f"milliseconds a step, {args.batch} images over all ranks, median of {args.rounds} rounds")
    for (who, ranks), found in rounds.items():
        parts = ", ".join(f"{name} {statistics.median(each[name] for each in found):.2f}" for name in found[0])
        print(f"{ranks} ranks, {who}: {parts}")
    # The core's own time, which others on this machine disturb least.
    whole, eighth = (statistics.median(each["core"] for each in found) for found in (rounds["ours", 1], small))
    per_image = (whole - eighth) / (args.batch - args.batch // 8)
    project(max(whole - per_image * args.batch, 0), per_image, 4096)


if __name__ == "__main__":
    main()
