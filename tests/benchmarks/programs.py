"""The ops of public programs, with the shapes that those programs have, against eager PyTorch.

One core, float32, forward and backward, ours eager and replayed (`tinygrad_lenet.jit`). All run in this process, turn
about, on the same numbers; first their results and gradients are compared. Images between layers lie in memory as each
framework's own layers hand them on: batch-last here, NCHW in PyTorch.
"""

import math
import statistics
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from tinygrad_lenet import Tensor, jit
from tinygrad_lenet import functional as F

RNG = np.random.default_rng(0)


class Row(NamedTuple):
    """An op of a program: ``run(F, *inputs)`` computes it with the functions of either framework.

    Inputs that are arrays require a gradient, those that are tensors do not.
    """

    op: str
    program: str
    run: Callable[..., Any]
    inputs: tuple[Any, ...]
    images: int = 0  # how many of the inputs are images between layers


def numbers(*shape: int) -> Any:
    return RNG.standard_normal(shape).astype(np.float32)


def positive(*shape: int) -> Any:
    return RNG.uniform(0.1, 2, shape).astype(np.float32)


def labels(classes: int, *shape: int) -> Any:
    return RNG.integers(0, classes, shape)


def layer(f: int, c: int, k: int) -> tuple[Any, Any]:
    return numbers(f, c, k, k) / np.float32(math.sqrt(c * k * k)), numbers(f)


# What programs compose of several ops. F stands for the functions of either framework.


def gelu(F: Any, x: Any) -> Any:
    return 0.5 * x * (1.0 + F.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3.0)))


def bce(F: Any, x: Any, target: Any) -> Any:
    p = F.sigmoid(x)
    return -(target * p.log() + (1 - target) * (1 - p).log()).sum()


def lstm_cell(F: Any, gates: Any, c: Any) -> Any:
    h = gates.shape[1] // 4
    i, f, g, o = (gates[:, k * h : (k + 1) * h] for k in range(4))
    return F.sigmoid(o) * F.tanh(F.sigmoid(f) * c + F.sigmoid(i) * F.tanh(g))


def gradient_penalty(F: Any, g: Any) -> Any:
    return (((g**2).sum(1) + 1e-12).sqrt() - 1) ** 2


def rows() -> list[Row]:
    """The table. "GPT" is a character transformer such as minGPT or makemore's: 32 x 64 tokens, 128 wide, 4 heads."""
    tokens, causal = numbers(32, 64, 128), np.tril(np.ones((64, 64), bool))
    return [
        Row("x**3.0", "GPT, GELU", lambda F, x: x**3.0, (numbers(32, 64, 256),)),
        Row("GELU", "GPT", gelu, (numbers(32, 64, 256),)),
        Row("x**2", "PINN, residual", lambda F, x: x**2, (numbers(10_000, 1),)),
        Row("tanh", "PINN, hidden layer", lambda F, x: F.tanh(x), (numbers(10_000, 20),)),
        Row("sigmoid", "VAE, image", lambda F, x: F.sigmoid(x), (numbers(128, 784),)),
        Row("exp", "VAE, deviation", lambda F, x: (0.5 * x).exp(), (numbers(512, 128),)),
        Row("binary cross-entropy", "VAE", bce, (numbers(128, 784), Tensor(positive(128, 784) / 2))),
        Row("ReLU", "ResNet-20", lambda F, x: F.relu(x), (numbers(32, 16, 32, 32),), 1),
        Row("maximum", "DCGAN, leaky ReLU", lambda F, x: F.maximum(x, 0.2 * x), (numbers(16, 64, 32, 32),), 1),
        Row("gradient penalty", "WGAN-GP", gradient_penalty, (numbers(64, 3072),)),
        Row("add, broadcast", "GPT, positions", lambda F, x, p: x + p, (tokens, numbers(64, 128))),
        Row("multiply, add, tanh", "LSTM cell", lstm_cell, (numbers(64, 1024), numbers(64, 256))),
        Row("divide", "softmax by hand", lambda F, x, s: x / s, (numbers(128, 512), positive(128, 1))),
        Row("where", "GPT, causal mask", lambda F, x: F.where(F.constant(causal), x, -math.inf),
            (numbers(32, 4, 64, 64),)),
        Row("dropout's mask", "GPT", lambda F, x, m: F.where(m, x * 1.25, 0.0),
            (tokens, Tensor(RNG.random((32, 64, 128)) > 0.2))),
        Row("mean", "MLP, text", lambda F, x: F.mean(x, 1), (tokens,)),
        Row("max over an axis", "text CNN", lambda F, x: F.amax(x, 1), (tokens,)),
        Row("layer norm", "GPT", lambda F, *x: F.layer_norm(*x), (tokens, positive(128), numbers(128))),
        Row("batch norm", "ResNet-20", lambda F, *x: F.batch_norm(*x),
            (numbers(32, 32, 16, 16), positive(32), numbers(32)), 1),
        Row("batch norm, rows", "makemore MLP", lambda F, *x: F.batch_norm(*x),
            (numbers(512, 200), positive(200), numbers(200))),
        Row("embedding", "GPT", lambda F, w, i: w[i], (numbers(65, 128), Tensor(labels(65, 32, 64)))),
        Row("embedding, many words", "LSTM, text", lambda F, w, i: w[i],
            (numbers(10_000, 200), Tensor(labels(10_000, 20, 35)))),
        Row("28 slices", "LSTM, rows of MNIST", lambda F, x: F.concatenate([x[:, t] for t in range(28)], 1),
            (numbers(128, 28, 28),)),
        Row("element of each row", "makemore, loss", lambda F, x, n, i: -F.mean(x[n, i], 0),
            (numbers(2048, 65), Tensor(np.arange(2048)), Tensor(labels(65, 2048)))),
        Row("stack", "LSTM, outputs", lambda F, *x: F.stack(x, 1), tuple(numbers(64, 128) for _ in range(28))),
        Row("concatenate", "U-Net, skip", lambda F, a, b: F.concatenate([a, b], 1),
            (numbers(16, 32, 32, 32), numbers(16, 32, 32, 32)), 2),
        Row("heads to rows", "GPT", lambda F, x: F.transpose(x, (0, 2, 1, 3)).reshape((32, 64, 128)),
            (numbers(32, 4, 64, 32),)),
        Row("matrix products", "GPT, q k^T", lambda F, q, k: q @ F.transpose(k, (0, 1, 3, 2)),
            (numbers(32, 4, 64, 32), numbers(32, 4, 64, 32))),
        Row("linear", "GPT, feed forward", lambda F, x, w, b: F.linear(x, w, b),
            (tokens, numbers(512, 128), numbers(512))),
        Row("linear", "VAE, first layer", lambda F, x, w, b: F.linear(x, w, b),
            (Tensor(numbers(128, 784)), numbers(400, 784), numbers(400))),
        Row("softmax", "GPT, attention", lambda F, x: F.softmax(x, -1), (numbers(32, 4, 64, 64),)),
        Row("cross-entropy", "GPT, 65 characters", lambda F, x, t: F.cross_entropy(x, t),
            (numbers(2048, 65), Tensor(labels(65, 2048)))),
        Row("cross-entropy", "ImageNet, 1000 classes", lambda F, x, t: F.cross_entropy(x, t),
            (numbers(512, 1000), Tensor(labels(1000, 512)))),
        Row("mean squared error", "autoencoder", lambda F, x, t: F.mse_loss(x, t),
            (numbers(128, 784), Tensor(numbers(128, 784)))),
        Row("conv 3x3, 3 to 32", "CNN, first layer", lambda F, x, w, b: F.conv2d(x, w, b, padding=1),
            (Tensor(numbers(32, 3, 32, 32)), *layer(32, 3, 3)), 1),
        Row("conv 3x3, 64 to 64", "VGG, ResNet", lambda F, x, w, b: F.conv2d(x, w, b, padding=1),
            (numbers(16, 64, 16, 16), *layer(64, 64, 3)), 1),
        Row("conv 4x4 stride 2, 64 to 128", "DCGAN", lambda F, x, w, b: F.conv2d(x, w, b, stride=2, padding=1),
            (numbers(16, 64, 32, 32), *layer(128, 64, 4)), 1),
        Row("transposed conv 4x4 stride 2", "DCGAN",
            lambda F, x, w: F.conv_transpose2d(x, w, None, stride=2, padding=1),
            (numbers(16, 128, 16, 16), layer(128, 64, 4)[0]), 1),
        Row("max pooling 2x2", "VGG", lambda F, x: F.max_pool2d(x, 2), (numbers(32, 32, 32, 32),), 1),
        Row("average pooling 2x2", "LeNet-5", lambda F, x: F.avg_pool2d(x, 2), (numbers(64, 6, 28, 28),), 1),
    ]  # fmt: skip


def our_functions() -> Any:
    """The functions that the rows use, some of them composed as a program has to."""

    def mean(x: Tensor, axis: int) -> Tensor:
        return x.mean(axis, keepdims=True)

    def layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.layer_norm(x, weight.shape, weight, bias)

    def batch_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        running = Tensor(np.zeros(weight.shape, np.float32)), Tensor(np.ones(weight.shape, np.float32))
        return F.batch_norm(x, *running, weight, bias, training=True)

    own = {name: getattr(F, name) for name in F.__all__}
    composed = {f.__name__: f for f in (mean, layer_norm, batch_norm)}
    return SimpleNamespace(**own | composed | {"amax": Tensor.max, "constant": Tensor, "transpose": Tensor.transpose})


def torch_functions() -> Any:
    """The same names in PyTorch."""
    import torch
    from torch.nn import functional

    torch.set_num_threads(1)
    return SimpleNamespace(
        **{name: getattr(functional, name) for name in F.__all__ if hasattr(functional, name)}
        | {
            "amax": torch.amax,
            "batch_norm": lambda x, w, b: functional.batch_norm(
                x, torch.zeros(w.shape), torch.ones(w.shape), w, b, training=True
            ),
            "concatenate": torch.cat,
            "constant": torch.from_numpy,
            "layer_norm": lambda x, w, b: functional.layer_norm(x, w.shape, w, b),
            "maximum": torch.maximum,
            "mean": lambda x, axis: x.mean(axis, keepdim=True),
            "stack": torch.stack,
            "transpose": torch.permute,
            "where": torch.where,
        }
    )


def batch_last(x: np.ndarray) -> np.ndarray:
    """Images[N C H W] as (C, H, W, N) in memory."""
    return np.ascontiguousarray(x.transpose(1, 2, 3, 0)).transpose(3, 0, 1, 2)


class Step(NamedTuple):
    """A forward and backward pass, ``run(gy)``, which returns the output."""

    run: Callable[[Any], Any]
    gy: Any
    leaves: list[Any]  # whose gradients it computes

    def results(self) -> list[np.ndarray]:
        """The output and the gradients."""
        y = self.run(self.gy)
        return [y.detach().numpy(), *[x.grad.numpy() for x in self.leaves]]


def ours(row: Row) -> Step:
    inputs = []
    for i, x in enumerate(row.inputs):
        data = x.data if isinstance(x, Tensor) else x
        inputs.append(Tensor(batch_last(data) if i < row.images else data, requires_grad=not isinstance(x, Tensor)))
    return prepared(row, our_functions(), inputs, lambda gy: Tensor(batch_last(gy) if row.images else gy))


def peers(row: Row) -> Step:
    import torch

    inputs = []
    for x in row.inputs:
        data = x.data if isinstance(x, Tensor) else x
        inputs.append(torch.from_numpy(np.array(data)).requires_grad_(not isinstance(x, Tensor)))
    return prepared(row, torch_functions(), inputs, torch.from_numpy)


def prepared(row: Row, functions: Any, inputs: list[Any], tensor: Callable[[np.ndarray], Any]) -> Step:
    leaves = [x for x in inputs if x.requires_grad]
    shape = tuple(row.run(functions, *inputs).shape)

    def run(gy: Any) -> Any:
        for x in leaves:
            x.grad = None
        y = row.run(functions, *inputs)
        y.backward(gy)
        return y

    return Step(run, tensor(np.random.default_rng(1).standard_normal(shape).astype(np.float32)), leaves)


def compare(row: Row, span: float) -> tuple[float, float, float]:
    """Median seconds of ours, ours replayed, and PyTorch's, turn about for ``span`` seconds.

    AssertionError if their results differ.
    """
    mine, theirs = ours(row), peers(row)
    replay = jit(lambda: mine.run(mine.gy))  # gy lies where the next op would have left it: an argument would be copied
    steps = mine, mine._replace(run=lambda _: replay()), theirs
    expected = theirs.results()
    for step in (*steps[:2], steps[1], steps[1]):  # recorded, and replayed
        for a, b in zip(step.results(), expected, strict=True):
            scale = float(np.abs(b[np.isfinite(b)]).max(initial=0))
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * scale, err_msg=f"{row.op}, {row.program}")
    times: tuple[list[float], ...] = ([], [], [])
    end = time.perf_counter() + span
    while time.perf_counter() < end or len(times[0]) < 5:
        for step, found in zip(steps, times, strict=True):
            start = time.process_time()
            step.run(step.gy)
            found.append(time.process_time() - start)
    eager, replayed, peer = map(statistics.median, times)
    return eager, replayed, peer


def print_table(only: str, span: float) -> None:
    """The rows that have ``only`` in their op or program, each timed for ``span`` seconds, and what they amount to."""
    print("| op | program | ours, us | replayed, us | PyTorch, us | ratio | replayed |")
    print("|---|---|---:|---:|---:|---:|---:|")
    ratios = []
    for row in rows():
        if only in f"{row.op}, {row.program}":
            eager, replayed, peer = compare(row, span)
            ratios.append((eager / peer, replayed / peer))
            times = " | ".join(f"{seconds * 1e6:.0f}" for seconds in (eager, replayed, peer))
            print(f"| {row.op} | {row.program} | {times} | {ratios[-1][0]:.2f} | {ratios[-1][1]:.2f} |", flush=True)
    for name, found in zip(("eager", "replayed"), zip(*ratios, strict=True), strict=False):
        mean = math.exp(statistics.fmean(map(math.log, found)))
        slow = sum(ratio > 1.5 for ratio in found)
        print(f"\n{name}: geometric mean of {len(found)} ratios {mean:.2f}; above 1.5: {slow}")
