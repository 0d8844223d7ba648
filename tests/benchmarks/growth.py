"""How a training step grows with the net, the batch and the images: `python -m tests.benchmarks.growth --help`.

Nets of one convolution (5 x 5, padded, 16 maps) and tanh after another, with a full layer to ten classes, on one core:
replayed, eager, and in PyTorch if it is installed. They take turns; the table has the medians, in milliseconds, and
PyTorch's time over that of the replay. All take the same steps: their losses must agree.
"""

import argparse
import importlib.util
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from tests.benchmarks.machine import ROOT, cores, environment
from tests.benchmarks.processes import as_child
from tinygrad_lenet import Tensor, jit, nn, optim, parallel
from tinygrad_lenet import functional as F

MAPS, KERNEL, LR = 16, 5, 0.01
DEPTHS, BATCHES, SIZES = (1, 2, 4, 8, 16), (1, 4, 16, 64, 256), (8, 16, 32, 64)
Step = Callable[[], float]


def ours(depth: int, x: Any, y: Any, replay: bool) -> Step:
    layers: list[nn.Module] = []
    for i in range(depth):
        layers += [nn.Conv2d(MAPS if i else 1, MAPS, KERNEL, padding=KERNEL // 2, rng=i), nn.Tanh()]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(MAPS * x.shape[2] * x.shape[3], 10, rng=depth))
    optimizer = optim.SGD(model.parameters(), LR)

    def learn(x: Tensor, y: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    function = jit(learn) if replay else learn
    return lambda: float(function(Tensor(x), Tensor(y)).item())


def torch_step(depth: int, x: Any, y: Any) -> Step:
    import torch

    torch.set_num_threads(1)
    layers: list[Any] = []
    for i in range(depth):
        layers += [torch.nn.Conv2d(MAPS if i else 1, MAPS, KERNEL, padding=KERNEL // 2), torch.nn.Tanh()]
    last = torch.nn.Linear(MAPS * x.shape[2] * x.shape[3], 10)
    model = torch.nn.Sequential(*layers, torch.nn.Flatten(), last)
    with torch.no_grad():  # our initial weights
        theirs = [layer for layer in model if hasattr(layer, "weight")]
        own = [nn.Conv2d(MAPS if i else 1, MAPS, KERNEL, rng=i) for i in range(depth)]
        for layer, mine in zip(theirs, [*own, nn.Linear(last.in_features, 10, rng=depth)], strict=True):
            layer.weight.copy_(torch.from_numpy(mine.weight.numpy()))
            layer.bias.copy_(torch.from_numpy(mine.bias.numpy()))
    optimizer = torch.optim.SGD(model.parameters(), LR)
    given, labels = torch.from_numpy(x), torch.from_numpy(y)

    def step() -> float:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(given), labels)
        loss.backward()
        optimizer.step()
        return float(loss.item())

    return step


def measure(depth: int, batch: int, size: int, rounds: int) -> str:
    """A row of the table."""
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (batch, 1, size, size)).astype(np.float32)
    y = rng.integers(0, 10, batch)
    steps = {"replayed": ours(depth, x, y, True), "eager": ours(depth, x, y, False)}
    if importlib.util.find_spec("torch") is not None:
        steps["torch"] = torch_step(depth, x, y)
    losses = {name: [step() for _ in range(4)][-1] for name, step in steps.items()}
    if max(losses.values()) - min(losses.values()) > 1e-3 or losses["replayed"] != losses["eager"]:
        raise ValueError(f"growth: the contestants do not compute the same: {losses}")
    start = time.perf_counter()
    steps["replayed"]()
    count = max(1, int(0.05 / (time.perf_counter() - start)))
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            start = time.perf_counter()
            for _ in range(count):
                step()
            times[name].append(1000 * (time.perf_counter() - start) / count)
    medians = [statistics.median(found) for found in times.values()]
    ratio = f"{medians[2] / medians[0]:.2f}" if len(medians) > 2 else ""
    cells = [str(depth), str(batch), f"{size} x {size}", *(f"{each:.3g}" for each in medians[:3]), ratio]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.growth", description="Milliseconds of a step on one core, as the net grows."
    )
    parser.add_argument("--rounds", type=int, default=5, help="how many times each is measured")
    parser.add_argument("--quick", action="store_true", help="the smallest of each, to show that it runs")
    parser.add_argument("--measured", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not args.measured:  # in a process that has one core, one BLAS thread, and no override of OpenBLAS
        command = [sys.executable, "-m", "tests.benchmarks.growth", *sys.argv[1:], "--measured"]
        done = subprocess.run(command, cwd=ROOT, env=environment(1), preexec_fn=as_child(os.getpid(), cores()[:1]))
        sys.exit(done.returncode)
    parallel.tune_process()
    cases = [(depth, 16, 16) for depth in DEPTHS] + [(2, batch, 16) for batch in BATCHES] + [(2, 16, n) for n in SIZES]
    print("| depth | batch | image | replayed, ms | eager, ms | PyTorch, ms | PyTorch / replayed |")
    print("|---:|---:|---:|---:|---:|---:|---:|")
    for depth, batch, size in cases[:1] if args.quick else dict.fromkeys(cases):
        print(measure(depth, batch, size, args.rounds), flush=True)


if __name__ == "__main__":
    main()
