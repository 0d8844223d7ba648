"""One step on one image, forward, backward and update, on one core: `python -m tests.benchmarks.step_1998`.

Of the LeNet-5 of 1998 with either of its losses, and of today's, which PyTorch takes part in, if it is installed. They
take turns, round by round; the table has the medians.

Below it stands what a replayed step of 1998 consists of. A program in C with the same arithmetic, written for this one
network, took 54 us for such a step, on a core with AVX-512: that is the floor, and all above it is the price of calls
for arrays of any shape, of a microsecond or more each, and of passing through memory once for each of them.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from models import LeNet5, LeNet5_1998
from tests.benchmarks.contestants import lenet5
from tests.benchmarks.machine import ROOT, cores, environment
from tests.benchmarks.processes import as_child
from tinygrad_lenet import Tensor, jit, optim, parallel
from tinygrad_lenet import functional as F

Step = Callable[[int], float]
X = np.random.default_rng(0).uniform(-0.1, 1.175, (500, 1, 32, 32)).astype(np.float32)
Y = np.random.default_rng(1).integers(0, 10, 500)


def of_1998(j: float | None, replay: bool = True) -> Step:
    model = LeNet5_1998(rng=0)
    optimizer = optim.StochasticDiagonalLM(model.parameters(), lr=1e-6)  # so that nothing runs away on noise
    optimizer.estimate(F.penalty_loss(0.5 * model(Tensor(X)), Y))
    return step_of(model, optimizer, lambda penalties, labels: F.penalty_loss(0.5 * penalties, labels, j), replay)


def of_today(replay: bool = True) -> Step:
    model = LeNet5(rng=0)
    return step_of(model, optim.Adam(model.parameters(), lr=1e-6), F.cross_entropy, replay)


FLOOR = 54  # us
PARTS = {  # of a step, by what the names of their ops begin with
    "convolutions": ("conv", "scatter", "gather"),
    "squashing": ("scaled_tanh", "tanh_grad"),
    "subsampling": ("subsample",),
}


def shares_of_1998(rounds: int = 100) -> str:
    """Where the time of a replayed step goes, in a line."""
    step = of_1998(5.0)
    for i in range(3):
        step(i)
    plan = step.function.plan  # type: ignore[attr-defined]
    spent: dict[str, float] = dict.fromkeys([*PARTS, "all else"], 0.0)
    for (name, _), microseconds in zip(plan.steps, plan.microseconds(rounds), strict=True):
        spent[next((part for part, starts in PARTS.items() if name.startswith(starts)), "all else")] += microseconds
    parts = ", ".join(f"{part} {microseconds:.0f}" for part, microseconds in spent.items())
    return f"1998, Eq. 9: {len(plan.calls)} calls, us: {parts}, sum {sum(spent.values()):.0f}; the floor is {FLOOR}"


def step_of(model: Any, optimizer: optim.Optimizer, loss_of: Callable[[Tensor, Any], Tensor], replay: bool) -> Step:
    def learn(x: Tensor, y: Tensor) -> Tensor:
        loss = loss_of(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    function = jit(learn) if replay else learn

    def step(i: int) -> float:
        return float(function(Tensor(X[i : i + 1]), Tensor(Y[i : i + 1])).item())

    step.function = function  # type: ignore[attr-defined]
    return step


def of_torch() -> Step:
    import torch

    torch.set_num_threads(1)
    model = lenet5(torch)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-6)
    x, y = torch.from_numpy(X), torch.from_numpy(Y)

    def step(i: int) -> float:
        loss = torch.nn.functional.cross_entropy(model(x[i : i + 1]), y[i : i + 1])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


CONTESTANTS: dict[str, Callable[[], Step]] = {
    "1998, Eq. 8": lambda: of_1998(None),
    "1998, Eq. 9": lambda: of_1998(5.0),
    "1998, Eq. 9, eager": lambda: of_1998(5.0, replay=False),
    "today's, Adam": of_today,
    "today's, Adam, eager": lambda: of_today(replay=False),
    "today's, Adam, PyTorch": of_torch,
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Milliseconds of a step on one image, on one core.")
    parser.add_argument("--rounds", type=int, default=7, help="how many times each is measured")
    parser.add_argument("--steps", type=int, default=500, help="steps a round")
    parser.add_argument("--measured", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not args.measured:  # in a process that has one core, one BLAS thread, and no override of OpenBLAS
        command = [sys.executable, "-m", "tests.benchmarks.step_1998", *sys.argv[1:], "--measured"]
        done = subprocess.run(command, cwd=ROOT, env=environment(1), preexec_fn=as_child(os.getpid(), cores()[:1]))
        sys.exit(done.returncode)
    parallel.tune_process()
    steps = {}
    for name, make in CONTESTANTS.items():
        try:
            steps[name] = make()
        except ModuleNotFoundError as error:
            print(f"{name}: {error}")
    times: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        for i in range(20):
            step(i)
    for _ in range(args.rounds):
        for name, step in steps.items():
            start = time.perf_counter()
            for i in range(args.steps):
                step(i % len(Y))
            times[name].append(1000 * (time.perf_counter() - start) / args.steps)
    for name, found in times.items():
        print(f"{name:24}{statistics.median(found):7.3f} ms   ({min(found):.3f} to {max(found):.3f})")
    print(shares_of_1998())


if __name__ == "__main__":
    main()
