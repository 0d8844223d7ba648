"""What a GPU makes of this project: `python -m tests.gpu_report --out report.md`, in less than eight minutes.

Tests, comparisons with the CPU and with itself, memory, and the time of an epoch beside PyTorch and JAX, where these
are installed. Each part runs in a process of its own, so that the others are measured whatever happens to one. Nothing
is downloaded.
"""

import argparse
import functools
import importlib.util
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from models import LeNet5, LeNet5_1998
from tests.benchmarks.contestants import LR, initial_weights, lenet5
from tests.benchmarks.machine import ROOT, describe
from tinygrad_lenet import Tensor, backend, data, jit, no_grad, optim
from tinygrad_lenet import functional as F

QUICK = bool(os.environ.get("GPU_REPORT_QUICK"))  # a few steps, to show that all of it runs
IMAGES = 256 if QUICK else 60_000
BATCHES = (64,) if QUICK else (64, 256, 1024)
STEPS = 3 if QUICK else 100
REPLAYS = 20 if QUICK else 10_000
ROUNDS = 1 if QUICK else 5
MULTIPLICATIONS = 3 * 416_520 - 117_600  # of an image: forward, and gradients for weights and, but for C1, inputs

Step = Callable[[Tensor, Tensor], Tensor]


# Training, as it is compared


def training(device: str, name: str, replayed: bool) -> tuple[Any, Step]:
    """A model and a step of its training, which returns the loss."""
    make: Any = {
        "tanh": LeNet5,
        "relu, max, dropout": functools.partial(LeNet5, "relu", "max", dropout=0.3),
        "1998": LeNet5_1998,
    }[name]
    loss_of: Any = functools.partial(F.penalty_loss, j=1.0) if name == "1998" else F.cross_entropy
    model = make(rng=0).to(device)
    optimizer = optim.Adam(model.parameters(), LR)
    schedule = optim.OneCycle(optimizer, LR, STEPS + 1)

    def step(x: Tensor, y: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss: Tensor = loss_of(model(x), y)
        loss.backward()
        optimizer.step()
        return loss.detach()

    run = jit(step) if replayed else step

    def scheduled(x: Tensor, y: Tensor) -> Tensor:
        loss = run(x, y)
        schedule.step()
        return loss

    return model, scheduled


def trained(device: str, name: str, replayed: bool) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The losses of the same steps from the same start, and the weights after them."""
    model, step = training(device, name, replayed)
    rng, losses = np.random.default_rng(0), []
    for _ in range(STEPS):
        x, y = rng.uniform(0, 1, (64, 1, 32, 32)).astype("float32"), rng.integers(0, 10, 64)
        losses.append(step(Tensor(x, device=device), Tensor(y, device=device)))
    return np.array([loss.item() for loss in losses]), {k: p.numpy() for k, p in model.named_parameters()}


def same(a: Any, b: Any) -> str:
    """Whether two trainings agree to the bit."""
    equal = a[0].tobytes() == b[0].tobytes() and all(a[1][k].tobytes() == b[1][k].tobytes() for k in a[1])
    return "equal to the bit" if equal else "**DIFFERENT**"


# The parts: each prints lines of Markdown


def card() -> None:
    """What it runs on."""
    import cupy

    properties = cupy.cuda.runtime.getDeviceProperties(0)
    version = cupy.cuda.runtime.driverGetVersion()
    found = describe(["numpy", *[name for name in ("cupy-cuda12x", "cupy-cuda13x", "torch", "jax") if installed(name)]])
    print(f"- {properties['name'].decode()}, {properties['totalGlobalMem'] / 2**30:.0f} GiB, driver for CUDA {version}")
    print(f"- {found['processor']}, {found['cores']} cores; {found['system']}; {found['date']}")
    print("- " + ", ".join(f"{name} {number}" for name, number in found["versions"].items()))
    git = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=ROOT)
    print(f"- commit {git.stdout.strip() or 'unknown'}")


def suite() -> None:
    """The test suite, which runs every op and kernel on the GPU, too."""
    if not installed("pytest") or not installed("hypothesis"):
        print("pytest or hypothesis: not installed.")
        return
    only = ["tests/test_ops.py", "-k", "cuda and tanh"] if QUICK else []
    cores = ["-n", "auto", "--dist", "worksteal"] if installed("xdist") else []
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--maxfail=20", *cores, *only]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    print("\n".join(["```", *lines, *done.stdout.splitlines()[-1:], "```"]))


def agreement() -> None:
    """The same steps on the CPU and on the GPU."""
    print("| model | steps | largest difference of a loss | of a weight, by the largest weight |\n|---|---|---|---|")
    for name in ("tanh", "relu, max, dropout", "1998"):
        (here, weights), (there, others) = trained("cpu", name, False), trained("cuda", name, False)
        apart = max(float(np.abs(weights[k] - others[k]).max() / np.abs(weights[k]).max()) for k in weights)
        print(f"| {name} | {STEPS} | {np.abs(here - there).max():.1e} | {apart:.1e} |")


def replays() -> None:
    """Replayed steps against eager ones, and a second run against the first."""
    print("| model | replayed, eager | two replayed runs | two eager runs |\n|---|---|---|---|")
    for name in ("tanh", "relu, max, dropout", "1998"):
        replayed, again = trained("cuda", name, True), trained("cuda", name, True)
        eager, once_more = trained("cuda", name, False), trained("cuda", name, False)
        print(f"| {name} | {same(replayed, eager)} | {same(replayed, again)} | {same(eager, once_more)} |")


def memory() -> None:
    """Memory on the card after many replays."""
    import cupy

    rng = np.random.default_rng(0)
    images = [Tensor(rng.uniform(0, 1, (64, 1, 32, 32)).astype("float32"), device="cuda") for _ in range(2)]
    labels = [Tensor(rng.integers(0, 10, 64), device="cuda") for _ in range(2)]
    model = LeNet5(rng=0).to("cuda")
    optimizer = optim.Adam(model.parameters(), LR)

    @jit
    def step(x: Tensor, y: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return loss.detach()

    used = []
    for count in (10, REPLAYS):
        for i in range(count):
            step(images[i % 2], labels[i % 2])
        cupy.cuda.Device().synchronize()
        free, total = cupy.cuda.runtime.memGetInfo()
        used.append(total - free)
    print(f"After 10 replays {used[0]:,} bytes are in use, after {REPLAYS:,} more {used[1]:,}.\n")
    print("```\n" + "\n".join(line for line in str(step.plan).splitlines() if "gradient" not in line) + "\n```")


def floors() -> None:
    """What the card can do, and what an epoch needs of it at least."""
    import cupy

    n, large = (256, 2**20) if QUICK else (8192, 2**28)
    a, b = cupy.ones((n, n), "float32"), cupy.empty(large, "uint8")
    nothing = cupy.RawKernel('extern "C" __global__ void nothing() {}', "nothing")
    launches = 100 if QUICK else 10_000

    def launch() -> None:
        for _ in range(launches):
            nothing((1,), (1,), ())

    product = timed(lambda: a @ a)
    copy = timed(lambda: cupy.copyto(b[: large // 2], b[large // 2 :]))
    launching = timed(launch) / launches
    print(f"- float32 products: {2e-12 * n**3 / product:.1f} TFLOP/s; copies: {1e-9 * large / copy:,.0f} GB/s read and")
    print(f"  written; an empty kernel: {1e6 * launching:.2f} us")
    work = 2 * MULTIPLICATIONS * 60_000
    print(
        f"- an epoch of 60,000 images is {1e-9 * work:.0f} GFLOP: {1e3 * work / (2 * n**3 / product):.1f} ms at least"
    )


def epochs() -> None:
    """The time of an epoch, ours."""
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (IMAGES, 28, 28), dtype=np.uint8), rng.integers(0, 10, IMAGES)
    for replayed in (False, True):
        for batch in BATCHES:
            model = LeNet5(rng=0).to("cuda")
            model.load_state_dict(initial_weights())
            optimizer = optim.Adam(model.parameters(), LR)

            def step(x: Tensor, y: Tensor, model: Any = model, optimizer: Any = optimizer) -> Tensor:
                optimizer.zero_grad()
                loss = F.cross_entropy(model(x), y)
                loss.backward()
                optimizer.step()
                return loss.detach()

            run = jit(step) if replayed else step
            loader = data.DataLoader(images, labels, batch, device="cuda")
            report(
                f"tinygrad_lenet, {'jit' if replayed else 'eager'}", batch, functools.partial(our_epoch, loader, run)
            )


def our_epoch(loader: data.DataLoader, step: Step) -> None:
    F.stack([step(Tensor(x), Tensor(y)) for x, y in loader]).numpy()


def pytorch() -> None:
    """The time of an epoch in PyTorch: eager, compiled, and as a CUDA graph."""
    if not installed("torch"):
        print("| PyTorch | | not installed |")
        return
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not QUICK:
        print("| PyTorch | | sees no GPU |")
        return
    pixels = torch.rand((IMAGES, 1, 32, 32), device=device)
    labels = torch.randint(0, 10, (IMAGES,), device=device)
    loss_of = torch.nn.functional.cross_entropy

    def made(**options: Any) -> Any:
        model = lenet5(torch).to(device)
        model.load_state_dict({name: torch.from_numpy(w) for name, w in initial_weights().items()})
        return model, torch.optim.Adam(model.parameters(), LR, **options)

    def eager(batch: int, compiled: bool = False) -> Callable[[Any, Any], Any]:
        model, adam = made(fused=True)
        answer = torch.compile(model, mode="reduce-overhead") if compiled else model

        def step(x: Any, y: Any) -> Any:
            adam.zero_grad(set_to_none=True)
            loss = loss_of(answer(x), y)
            loss.backward()
            adam.step()
            return loss.detach().clone()

        return step

    def graph(batch: int) -> Callable[[Any, Any], Any]:
        model, adam = made(capturable=True, fused=True)
        x, y = pixels[:batch].clone(), labels[:batch].clone()
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(3):
                adam.zero_grad(set_to_none=True)
                loss_of(model(x), y).backward()
                adam.step()
        torch.cuda.current_stream().wait_stream(aside)
        recorded = torch.cuda.CUDAGraph()
        adam.zero_grad(set_to_none=True)
        with torch.cuda.graph(recorded):
            loss = loss_of(model(x), y)
            loss.backward()
            adam.step()

        def step(images: Any, targets: Any) -> Any:
            if len(images) < batch:  # the last batch, which the graph does not fit
                return loss
            x.copy_(images)
            y.copy_(targets)
            recorded.replay()
            return loss.clone()

        return step

    def epoch(batch: int, step: Any) -> None:
        order = torch.randperm(IMAGES, device=device)
        chosen = [order[i : i + batch] for i in range(0, IMAGES, batch)]
        torch.stack([step(pixels.index_select(0, each), labels.index_select(0, each)) for each in chosen]).cpu()

    ways: dict[str, Any] = {"PyTorch, eager": eager}
    if device == "cuda":
        compiled = functools.partial(eager, compiled=True)
        ways |= {"PyTorch, CUDA graph": graph, "PyTorch, compile(reduce-overhead)": compiled}
    for name, way in ways.items():
        for batch in BATCHES:
            try:
                report(name, batch, functools.partial(epoch, batch, way(batch)))
            except Exception as error:
                print(f"| {name} | {batch} | failed: {first_line(error)} |")


def jax() -> None:
    """The time of an epoch in JAX: a jitted step that picks its batch."""
    if not installed("jax"):
        print("| JAX | | not installed |")
        return
    import jax as jax_

    from tests.benchmarks.contestants import Jax

    if jax_.default_backend() != "gpu" and not QUICK:
        print("| JAX | | sees no GPU |")
        return
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (IMAGES, 28, 28), dtype=np.uint8), rng.integers(0, 10, IMAGES)
    contestant = Jax(1, images, labels, images[:1], platform="cpu" if QUICK else "cuda")
    for batch in BATCHES:
        contestant.reset(batch)
        report("JAX, jit", batch, lambda batch=batch: contestant.train(batch, IMAGES // batch * batch))


def accuracy() -> None:
    """Training until 99% of MNIST's test images are right."""
    try:
        images, labels = data.mnist()
        seen, truth = data.mnist(split="test")
        name, goal = "MNIST", 0.99
    except data.DataError:
        (images, labels), (seen, truth) = data.digits(), data.digits("test")
        name, goal = "the digits that come with the package (MNIST is not on this machine)", 0.97
    if QUICK:
        images, labels = images[:256], labels[:256]
    most, batch = (1, 64) if QUICK else (12, 256) if name == "MNIST" else (40, 64)
    loader = data.DataLoader(images, labels, batch, device="cuda")
    model = LeNet5("relu", "max", rng=0).to("cuda")
    optimizer = optim.Adam(model.parameters())
    schedule = optim.OneCycle(optimizer, 0.004, most * len(loader))
    held = Tensor(data.to_input(seen), device="cuda")
    target = Tensor(truth, device="cuda")

    @jit
    def step(x: Tensor, y: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return loss.detach()

    start, right = time.perf_counter(), 0.0
    while right < goal and loader.epoch < most:
        for x, y in loader:
            step(Tensor(x), Tensor(y))
            schedule.step()
        with no_grad():
            right = (model(held).argmax(axis=1) == target).sum().item() / len(truth)
    spent = time.perf_counter() - start
    print(f"On {name}: {right:.2%} after {loader.epoch} epochs and {spent:.2f} s, the first, slow calls included.")


# Measuring and reporting


def timed(function: Callable[[], Any]) -> float:
    """The median time of some calls, in seconds, after one that does not count."""
    import cupy

    found = []
    for _ in range(ROUNDS + 1):
        cupy.cuda.Device().synchronize()
        start = time.perf_counter()
        function()
        cupy.cuda.Device().synchronize()
        found.append(time.perf_counter() - start)
    return statistics.median(found[1:])


def report(name: str, batch: int, epoch: Callable[[], Any]) -> None:
    """A line of the table of epochs."""
    print(f"| {name} | {batch} | {1e3 * timed(epoch):,.1f} ms |", flush=True)


def installed(package: str) -> bool:
    name = {"xdist": "xdist", "cupy-cuda12x": "cupy", "cupy-cuda13x": "cupy"}.get(package, package)
    if package.startswith("cupy-"):
        from importlib import metadata

        return any(each.metadata["Name"] == package for each in metadata.distributions())
    return importlib.util.find_spec(name) is not None


def first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


PARTS: dict[str, tuple[str, Callable[[], None], int]] = {  # by name: heading, function, seconds that it may take
    "card": ("Card", card, 20),
    "agreement": ("CPU and GPU, step by step", agreement, 60),
    "replays": ("Replays", replays, 60),
    "memory": ("Memory", memory, 60),
    "floors": ("What the card can do", floors, 30),
    "epochs": ("Epochs of 60,000 images", epochs, 60),
    "pytorch": ("", pytorch, 100),
    "jax": ("", jax, 40),
    "accuracy": ("Time to 99%", accuracy, 30),
    "suite": ("Test suite", suite, 200),
}


def sections(names: list[str], until: float, quick: bool) -> Iterator[str]:
    """The report, part by part; each has its own process, which is ended if it takes too long."""
    for name in names:
        heading, _, seconds = PARTS[name]
        if heading:
            yield f"\n## {heading}\n\n"
        if name == "epochs":
            yield (
                "Medians. Losses are read at the end of the epoch. PyTorch's graph and JAX leave out a last batch\n"
                "that is not whole.\n\n| what | batch | epoch |\n|---|---|---|\n"
            )
        left = min(seconds, until - time.monotonic()) if not quick else 600
        command = [sys.executable, "-m", "tests.gpu_report", "--part", name]
        try:
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=max(left, 1))
            said, trouble = done.stdout, done.stderr.strip().splitlines()[-1:] if done.returncode else []
        except subprocess.TimeoutExpired as error:
            said = error.stdout.decode() if isinstance(error.stdout, bytes) else error.stdout or ""
            trouble = [f"took longer than {left:.0f} s"]
        yield said
        if trouble:
            yield f"\n**{name} failed:** {trouble[0]}\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu_report", description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--out", type=Path, default=Path("gpu-report.md"), help="the Markdown file (gpu-report.md)")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="parts")
    parser.add_argument("--quick", action="store_true", help="a few steps, to show that it runs, not how fast")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    try:
        backend.use("cuda")
    except backend.DeviceError as error:
        parser.exit(1, f"gpu_report: {error}\n")
    backend.use("cpu")
    if args.part:
        PARTS[args.part][1]()
        return
    if args.quick:
        os.environ["GPU_REPORT_QUICK"] = "1"
    text = "# tinygrad_lenet on a GPU\n"
    for each in sections(args.only, time.monotonic() + 460, args.quick):
        print(each, end="", flush=True)
        text += each
        args.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
