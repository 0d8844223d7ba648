"""Ops against PyTorch's and against the machine's limits: `python -m tests.benchmarks.ops --help`.

One core, float32. By default, 40 ops with the shapes of public programs run in both frameworks (`programs`). With
``--machine``, LeNet-5's ops are compared with the machine: an op that multiplies with the fastest matrix product, an op
that moves memory with a copy that reads and writes as many bytes, which uses the same cache. Bytes are those of the
inputs and the output.
"""

import os
import sys

if __name__ == "__main__":  # before NumPy is imported, which reads them
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    for _name in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"):  # an override makes a current NumPy slow
        os.environ.pop(_name, None)

import argparse
import importlib.util
import json
import math
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from models import LeNet5
from tinygrad_lenet import Op, Tensor, data, optim, parallel
from tinygrad_lenet import functional as F
from tinygrad_lenet.backend import find_kernel
from tinygrad_lenet.ops.conv import Conv2d, Conv2dWeightGrad, ConvTranspose2d
from tinygrad_lenet.ops.elementwise import Tanh, TanhGrad
from tinygrad_lenet.ops.linalg import Linear, MatMul
from tinygrad_lenet.ops.pool import AvgPool2d, AvgPool2dGrad, MaxPool2d, MaxPool2dGrad
from tinygrad_lenet.ops.reduction import Sum
from tinygrad_lenet.ops.softmax import CrossEntropy, CrossEntropyGrad

from . import machine, processes, programs
from .contestants import Ours

PAIR = ((2, 2), (2, 2), (0, 0))  # kernel size, stride and padding of the pools
LARGE = (("3 -> 64", 3, 64), ("64 -> 64", 64, 64))
RNG = np.random.default_rng(0)


class Case(NamedTuple):
    """An op at a layer of LeNet-5, its inputs, and its floating-point operations (0: it is bound by memory)."""

    layer: str
    op: Op
    arrays: tuple[Any, ...]
    operations: int = 0


def images(n: int, c: int, h: int, w: int) -> Any:
    """x[N C H W] in batch-last memory, as the layers hand it on."""
    return RNG.uniform(-1, 1, (c, h, w, n)).astype(np.float32).transpose(3, 0, 1, 2)


def matrix(*shape: int) -> Any:
    return RNG.uniform(-1, 1, shape).astype(np.float32)


def cases(n: int) -> list[Case]:
    """Every op of a training step, forward and backward, in the order of the layers."""
    found = []
    for layer, c, f, h in (("C1", 1, 6, 32), ("C3", 6, 16, 14), ("C5", 16, 120, 5)):
        x, w, b, gy = images(n, c, h, h), matrix(f, c, 5, 5), matrix(f), images(n, f, h - 4, h - 4)
        work = 2 * n * f * c * 25 * (h - 4) ** 2
        found += [
            Case(layer, Conv2d(), (x, w, b), work),
            Case(layer, Conv2dWeightGrad((5, 5)), (x, gy), work),
            Case(layer, ConvTranspose2d(), (gy, w), work),
            Case(layer, Sum((0, 2, 3), False), (gy,)),
            Case(layer, Tanh(), (gy,)),
            Case(layer, TanhGrad(), (gy, gy)),
        ]
        if layer == "C1":  # the first layer needs no gradient of its input
            found.pop(2)
    for layer, c, h in (("S2", 6, 28), ("S4", 16, 10)):
        x, gy = images(n, c, h, h), images(n, c, h // 2, h // 2)
        found += [
            Case(layer, AvgPool2d(*PAIR), (x,)),
            Case(layer, AvgPool2dGrad(*PAIR, (h, h)), (gy,)),
            Case(layer, MaxPool2d(*PAIR), (x,)),
            Case(layer, MaxPool2dGrad(*PAIR), (x, gy)),
        ]
    for layer, i, o in (("F6", 120, 84), ("OUTPUT", 84, 10)):
        x, w, b, gy = matrix(n, i), matrix(o, i), matrix(o), matrix(n, o)
        found += [
            Case(layer, Linear(), (x, w, b), 2 * n * i * o),
            Case(f"{layer} input grad", MatMul(), (gy, w), 2 * n * i * o),
            Case(f"{layer} weight grad", MatMul(), (gy.T, x), 2 * n * i * o),
        ]
    logits, labels, gy = matrix(n, 10), RNG.integers(0, 10, n), matrix(n)
    return [
        *found,
        Case("loss", CrossEntropy(), (logits, labels)),
        Case("loss grad", CrossEntropyGrad(), (gy, logits, labels)),
    ]


def median(work: Callable[[], Any], span: float) -> float:
    """The median time of one call, over calls for about ``span`` seconds."""
    for _ in range(3):
        work()
    times: list[float] = []
    end = time.perf_counter() + span
    while time.perf_counter() < end or len(times) < 5:
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def fastest_product(span: float) -> float:
    """Operations a second of the fastest of some large matrix products."""
    found = []
    for size in (256, 512, 1024):
        a, b, y = matrix(size, size), matrix(size, size), matrix(size, size)
        found.append(2 * size**3 / median(lambda a=a, b=b, y=y: np.matmul(a, b, out=y), span))
    return max(found)


_copies: dict[int, float] = {}


def copy_speed(size: int, span: float) -> float:
    """Bytes a second, read and written, of a copy that touches ``size`` bytes (to the next power of 2)."""
    size = 2 ** math.ceil(math.log2(max(size, 4096)))
    if size not in _copies:
        source = np.ones(size // 8, np.float32)
        target = np.empty_like(source)
        _copies[size] = size / median(lambda: np.copyto(target, source), span)
    return _copies[size]


def print_ops(batch: int, span: float) -> None:
    peak = fastest_product(span)
    print(f"fastest matrix product: {peak / 1e9:.0f} GFLOP/s")
    sizes = [2**power for power in (16, 18, 20, 22, 26)]
    speeds = ", ".join(f"{copy_speed(size, span) / 1e9:.0f} GB/s at {size // 1024} KB" for size in sizes)
    print(f"copy, read and written: {speeds}\n")
    print(f"| batch {batch} | op | kernel, us | plain, us | GFLOP/s or GB/s | of the peak | kernel is faster by |")
    print("|---|---|---:|---:|---:|---:|---:|")
    for case in cases(batch):
        op = case.op
        plain = median(lambda op=op, case=case: op.forward(np, *case.arrays), span)
        y = op.forward(np, *case.arrays)
        kernel = find_kernel("cpu", op.name)
        fast = None
        if kernel is not None:
            again = kernel(op, np, *case.arrays)
            if again is not NotImplemented:
                np.testing.assert_allclose(again, y, rtol=1e-3, atol=1e-3 * float(np.abs(y).max()))
                fast = median(lambda kernel=kernel, op=op, case=case: kernel(op, np, *case.arrays), span)
        seconds = plain if fast is None else fast
        if case.operations:
            speed, most, unit = case.operations / seconds, peak, "GFLOP/s"
        else:
            size = sum(a.nbytes for a in case.arrays) + y.nbytes
            speed, most, unit = size / seconds, copy_speed(size, span), "GB/s"
        kernel_time, gain = ("", "") if fast is None else (f"{fast * 1e6:.1f}", f"{plain / fast:.1f}")
        print(
            f"| {case.layer} | {op.name} | {kernel_time} | {plain * 1e6:.1f} | {speed / 1e9:.1f} {unit} | "
            f"{speed / most:.0%} | {gain} |"
        )
    uint8 = RNG.integers(0, 256, (4096, 28, 28), np.uint8)
    loader = data.DataLoader(uint8, RNG.integers(0, 10, 4096), batch)
    drawing = median(lambda: loader.batch(0, 0), span)
    model = LeNet5(rng=0)
    adam = optim.Adam(model.parameters())
    for p in model.parameters():
        p.grad = Tensor(np.full(p.shape, 1e-3, np.float32))
    size = 7 * sum(p.size for p in model.parameters()) * 4  # reads p, g, m, v; writes p, m, v
    step = median(adam.step, span)
    print(f"| all | Adam, one step | | {step * 1e6:.1f} | {size / step / 1e9:.1f} GB/s | "
          f"{size / step / copy_speed(size, span):.0%} | |")  # fmt: skip
    size = batch * (28 * 28 + 32 * 32 * 4)
    print(f"| input | drawing a batch | | {drawing * 1e6:.1f} | {size / drawing / 1e9:.1f} GB/s | "
          f"{size / drawing / copy_speed(size, span):.0%} | |")  # fmt: skip


# Growth


def print_growth(quick: bool) -> None:
    """Show whether twice the work takes twice the time, for numbers of images, batch sizes and image sizes."""
    counts, batches = ((320, 640), (64, 128)) if quick else ((1000, 4000, 15_000, 60_000), (64, 256, 1024, 4096))
    most = max(*counts, 2 * max(batches))
    model = LeNet5(rng=0)
    uint8, labels = RNG.integers(0, 256, (most, 28, 28), np.uint8), RNG.integers(0, 10, most)
    ours = Ours(parallel.Group(model.parameters()), model, uint8, labels, uint8[:10])

    def per_image(batch: int, count: int) -> float:
        ours.reset(batch)
        ours.train(batch, 3 * batch if count >= 3 * batch else count)
        return median(lambda: ours.train(batch, count), 0.0) / count

    for what, line in (
        ("images an epoch, batch 64", {count: per_image(64, count) for count in counts}),
        ("images a batch", {batch: per_image(batch, 2 * max(batches)) for batch in batches}),
    ):
        span = max(line.values()) / min(line.values()) - 1
        shown = ", ".join(f"{size:,}: {seconds * 1e6:.1f}" for size, seconds in line.items())
        print(f"training, us an image by {what}: {shown}; spread {span:.0%} (25% or less is flat)", flush=True)

    side = 32 if quick else 224
    timings: dict[str, dict[str, float]] = {}
    for who in ("ours", "torch", "torch-malloc"):
        if who != "ours" and importlib.util.find_spec("torch") is None:
            print(f"{who}: not installed")
            continue
        command = ["-m", "tests.benchmarks.ops", "--large", who, "--side", str(side)]
        environment = machine.environment(1, who.endswith("malloc"))
        _, printed = processes.run(command, environment, machine.cores()[:1])
        timings[who] = json.loads(printed)
    print(
        f"\n| conv2d 3x3 at {side} x {side}, forward and backward, one core, ms | " + " | ".join(timings) + " | ratio |"
    )
    print("|---|" + "---:|" * (len(timings) + 1))
    for name, seconds in timings["ours"].items():
        rivals = [found[name] for who, found in timings.items() if who != "ours"]
        ratio = f"{seconds / min(rivals):.2f}" if rivals else ""
        cells = " | ".join(f"{found[name] * 1e3:.1f}" for found in timings.values())
        print(f"| {name} | {cells} | {ratio} |")


def large_convolutions(who: str, side: int) -> dict[str, float]:
    """Seconds of conv2d and its gradients (for a first layer, only the weight's) on images of side x side."""
    found = {}
    for name, c, f in LARGE:
        for n in (1, 4):
            x, w, b, gy = (matrix(*shape) for shape in ((n, c, side, side), (f, c, 3, 3), (f,), (n, f, side, side)))
            parts = ours_parts(c > 3, x, w, b, gy) if who == "ours" else torch_parts(c > 3, x, w, b, gy)
            both = median(parts, 0.05 if side < 100 else 1.5)
            found[f"{name}, batch {n}"] = both
    return found


def ours_parts(inner: bool, *arrays: Any) -> Callable[[], Any]:
    parallel.tune_process()
    x, w, b = (Tensor(a, requires_grad=inner or i > 0) for i, a in enumerate(arrays[:3]))
    gy = Tensor(arrays[3])

    def work() -> None:
        for t in (x, w, b):
            t.zero_grad()
        F.conv2d(x, w, b, padding=1).backward(gy)

    return work


def torch_parts(inner: bool, *arrays: Any) -> Callable[[], Any]:
    import torch

    torch.set_num_threads(1)
    x, w, b = (torch.from_numpy(a).requires_grad_(inner or i > 0) for i, a in enumerate(arrays[:3]))
    gy = torch.from_numpy(arrays[3])

    def work() -> None:
        for t in (x, w, b):
            t.grad = None
        torch.nn.functional.conv2d(x, w, b, padding=1).backward(gy)

    return work


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.ops",
        description="Time ops and compare them with PyTorch's, or with the machine.",
    )
    parser.add_argument("--only", default="", metavar="WORD", help="the ops and programs that have WORD in their name")
    parser.add_argument(
        "--machine", action="store_true", help="compare LeNet-5's ops with the machine's limits instead"
    )
    parser.add_argument("--batch", type=int, default=64, help="images, with --machine (default 64)")
    parser.add_argument("--quick", action="store_true", help="a few calls each, to show that it runs, not how fast")
    parser.add_argument(
        "--growth", action="store_true", help="show instead how time grows with images, batch and image size"
    )
    parser.add_argument("--large", help=argparse.SUPPRESS)
    parser.add_argument("--side", type=int, default=224, help=argparse.SUPPRESS)
    args = parser.parse_args(given)
    if args.batch < 1:
        parser.error(f"--batch is {args.batch}; expected at least 1")
    if args.large:
        print(json.dumps(large_convolutions(args.large, args.side)))
        return
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, machine.cores()[:1])
    parallel.tune_process()
    m = machine.describe(("tinygrad_lenet", "numpy", "torch"))
    print(f"{m['date']}: {m['processor']}, one core ({' '.join(m['flags'])}), {m['versions']}")
    print(f"{' and '.join(machine.REMOVED)} removed, OPENBLAS_NUM_THREADS=1\n")
    if args.growth:
        print_growth(args.quick)
    elif args.machine:
        print_ops(args.batch, 0.002 if args.quick else 0.3)
    elif importlib.util.find_spec("torch") is None:
        print("PyTorch is not installed, so there is nothing to compare with; --machine needs no other framework")
    else:
        programs.print_table(args.only, 0.0 if args.quick else 1.0)


if __name__ == "__main__":
    try:
        main()
    except processes.ChildError as error:
        sys.exit(f"ops: {error}")
