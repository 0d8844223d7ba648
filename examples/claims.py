"""Test common claims about LeNet-5: `python -m examples.claims --help`.

Three claims, each with a figure, sentences and numbers:

1. parameters: shared weights save parameters; fully connected nets need many more for the same accuracy.
2. shift: convolution and subsampling make a net tolerate shifts of its input.
3. overfitting: what dropout, batch normalisation, ReLU, max pooling and distorted images change, by training-set size.

Read it from top to bottom: how much is measured, nets and training, one section per claim, the program.
"""

import os

from examples import programs

if __name__ == "__main__":
    programs.begin()
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before NumPy is imported; these matrices are too small to share

import argparse
import itertools
import json
import platform
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

try:
    import matplotlib as mpl
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
    from tqdm import tqdm
except ModuleNotFoundError:
    sys.exit('claims: the example needs more packages than the framework; run pip install -e ".[example]"')

import tinygrad_lenet
from examples import plots
from examples.runs import as_json, own_folder, read_json
from models import LeNet5
from tinygrad_lenet import Tensor, checkpoint, data, nn, no_grad, optim, parallel
from tinygrad_lenet import functional as F

Images = np.ndarray
Labels = np.ndarray
Record = dict[str, Any]  # one measurement: what was measured and, once it is, the numbers

BATCH, SMALL_BATCH = 128, 50  # the smaller one divides all small training sets, so every step sees 50 images
LR = 0.003  # the highest rate of Adam's one-cycle schedule, for all nets
LENET5 = "LeNet 6-16-120-84"
FULL = "fully connected 300-100"  # the net that is compared with LeNet-5 in claim 2
TRAINED_ON = CENTRED, SHIFTED = "centred images", "shifted images"
DIRECTIONS = ((0, -1), (0, 1), (-1, 0), (1, 0))  # (down, right): to the left, to the right, upwards, downwards
AS_IT_IS, ALL = "as it is", "all of these"
VARIANTS: dict[str, dict[str, Any]] = {
    AS_IT_IS: {},
    "dropout": {"dropout": 0.5},
    "batch normalisation": {"batch_norm": True},
    "ReLU": {"activation": "relu"},
    "ReLU and max pooling": {"activation": "relu", "pool": "max"},
    "distorted images": {},
    ALL: {"activation": "relu", "pool": "max", "batch_norm": True, "dropout": 0.5},
}
DISTORTED = ("distorted images", ALL)


@dataclass(frozen=True)
class Plan:
    """How much is measured. All nets of a claim take the same number of optimiser steps."""

    nets: tuple[str, ...]  # of claim 1, by kind and widths
    dropouts: tuple[float, ...]  # claim 1 chooses one of them for each net
    seeds: int  # of claims 1 and 2
    steps: int  # of claims 1 and 2
    shifts: tuple[int, ...]  # pixels
    sizes: tuple[tuple[int, int], ...]  # of claim 3: training digits, and how many seeds
    overfitting_steps: int


THOROUGH = Plan(
    nets=(
        *("LeNet 1-2-15-10", "LeNet 2-4-30-21", "LeNet 2-6-45-32", "LeNet 3-8-60-42", LENET5),
        *("fully connected 30", "fully connected 100", "fully connected 300", FULL, "fully connected 1000"),
    ),
    dropouts=(0.0, 0.3),
    seeds=3,
    steps=4000,
    shifts=tuple(range(9)),
    sizes=((100, 5), (300, 5), (1000, 3), (3000, 3), (10_000, 3)),
    overfitting_steps=1500,
)
QUICK = Plan(
    nets=("LeNet 3-8-60-42", LENET5, "fully connected 30", FULL),
    dropouts=(0.0, 0.3),
    seeds=1,
    steps=120,
    shifts=(0, 2, 4, 8),
    sizes=((100, 2), (300, 1)),
    overfitting_steps=60,
)


# Data, nets and training


@dataclass(frozen=True)
class Sets:
    """Training and test images uint8[N 28 28] with their labels[N]."""

    images: Images
    labels: Labels
    test_images: Images
    test_labels: Labels

    @property
    def checksum(self) -> str:
        """A digest of these images and labels."""
        crc = 0
        for array in (self.images, self.labels, self.test_images, self.test_labels):
            crc = zlib.crc32(np.ascontiguousarray(array).data, crc)
        return f"{crc:08x}"


class Middle(nn.Module):
    """Images x[N 1 32 32] -> x[N 1 28 28]: without the border, which holds no ink and would cost parameters."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, 2:30, 2:30]


def build(net: str, seed: int, dropout: float = 0.0, border: bool = False) -> nn.Sequential:
    """A net by its kind and widths, "LeNet 6-16-120-84" or "fully connected 300-100", for images x[N 1 32 32].

    A LeNet is LeNet-5 with these widths of C1, C3, C5 and F6. Fully connected nets have ReLUs, which suit them better
    than tanh, and see 28x28 pixels, or 32x32 with ``border``. ``dropout`` drops hidden units of full layers, including
    C5.
    """
    kind, _, widths = net.rpartition(" ")
    hidden = [int(width) for width in widths.split("-")]
    rng = np.random.default_rng(seed)
    drop = [nn.Dropout(dropout, rng=rng)] if dropout else []
    if kind == "LeNet":
        c1, c3, c5, f6 = hidden
        return nn.Sequential(
            *(nn.Conv2d(1, c1, kernel_size=5, rng=rng), nn.Tanh(), nn.AvgPool2d(2)),
            *(nn.Conv2d(c1, c3, kernel_size=5, rng=rng), nn.Tanh(), nn.AvgPool2d(2)),
            *(nn.Conv2d(c3, c5, kernel_size=5, rng=rng), nn.Tanh(), nn.Flatten(), *drop),
            *(nn.Linear(c5, f6, rng=rng), nn.Tanh(), *drop),
            nn.Linear(f6, 10, rng=rng),
        )
    layers: list[nn.Module] = [nn.Flatten()] if border else [Middle(), nn.Flatten()]
    inputs = 32 * 32 if border else 28 * 28
    for outputs in hidden:
        layers += [nn.Linear(inputs, outputs, rng=rng), nn.ReLU(), *drop]
        inputs = outputs
    return nn.Sequential(*layers, nn.Linear(inputs, 10, rng=rng))


def train(
    model: nn.Module,
    images: Images,
    labels: Labels,
    steps: int,
    batch_size: int,
    seed: int,
    augment: data.Affine | None = None,
) -> None:
    """Take this many steps of Adam with the one-cycle schedule, on whole batches, epoch after epoch."""
    loader = data.DataLoader(images, labels, batch_size, seed=seed, drop_last=True, augment=augment)
    optimizer = optim.Adam(model.parameters(), lr=LR)
    schedule = optim.OneCycle(optimizer, max_lr=LR, total_steps=steps)
    model.train()
    batches = itertools.chain.from_iterable(itertools.repeat(loader))  # each loop over the loader is an epoch
    for x, y in itertools.islice(batches, steps):
        optimizer.zero_grad()
        F.cross_entropy(model(Tensor(x)), y).backward()
        optimizer.step()
        schedule.step()


def count_errors(model: nn.Module, images: Images, labels: Labels, batch_size: int = 250) -> int:
    """The number of images whose predicted class is not their label."""
    model.eval()
    wrong = 0
    with no_grad():
        for i in range(0, len(images), batch_size):
            logits = model(Tensor(data.to_input(images[i : i + batch_size]))).numpy()
            wrong += int((logits.argmax(axis=1) != labels[i : i + batch_size]).sum())
    return wrong


# Claim 1: shared weights save parameters


def plan_parameters(plan: Plan, seed: int) -> Iterator[Record]:
    for net, dropout, i in itertools.product(plan.nets, plan.dropouts, range(plan.seeds)):
        yield {"net": net, "dropout": dropout, "seed": seed + i}


def measure_parameters(record: Record, sets: Sets, plan: Plan) -> Record:
    """Train on five sixths of the training images; the rest serves to choose the dropout, so the test images do not."""
    held = len(sets.images) // 6
    model = build(record["net"], record["seed"], record["dropout"])
    train(model, sets.images[:-held], sets.labels[:-held], plan.steps, BATCH, record["seed"])
    return {
        "parameters": sum(p.size for p in model.parameters()),
        "validation_errors": count_errors(model, sets.images[-held:], sets.labels[-held:]),
        "test_errors": count_errors(model, sets.test_images, sets.test_labels),
    }


@dataclass(frozen=True)
class Net:
    """A net with its better dropout: its test errors in percent, for the median, the best and the worst seed."""

    name: str
    parameters: int
    dropout: float
    error: float
    low: float
    high: float

    @property
    def is_lenet(self) -> bool:
        return self.name.startswith("LeNet")


def compare_nets(results: Record) -> list[Net]:
    """All nets of claim 1, LeNets first, by number of parameters."""
    nets = []
    for name in results["settings"]["nets"]:
        by_dropout = {p: select(results, "parameters", net=name, dropout=p) for p in results["settings"]["dropouts"]}
        dropout = min(by_dropout, key=lambda p: median(record["validation_errors"] for record in by_dropout[p]))
        errors = [100 * record["test_errors"] / results["settings"]["test_images"] for record in by_dropout[dropout]]
        nets.append(Net(name, by_dropout[dropout][0]["parameters"], dropout, *summary(np.array(errors))))
    return sorted(nets, key=lambda net: (not net.is_lenet, net.parameters))


def as_good(nets: list[Net], other: Net) -> Net | None:
    """The smallest LeNet whose median error is at most the other net's, if there is one."""
    good = [net for net in nets if net.is_lenet and net.error <= other.error]
    return min(good, key=lambda net: net.parameters, default=None)


def surely_better(nets: list[Net], other: Net) -> Net | None:
    """The smallest LeNet whose worst seed beats the other net's best seed, if there is one."""
    better = [net for net in nets if net.is_lenet and net.high < other.low]
    return min(better, key=lambda net: net.parameters, default=None)


def best_full(nets: list[Net]) -> Net:
    return min((net for net in nets if not net.is_lenet), key=lambda net: (net.error, net.parameters))


def report_parameters(results: Record) -> list[str]:
    nets = compare_nets(results)
    lenet = next(net for net in nets if net.name == LENET5)
    best = best_full(nets)
    reached = [net for net in nets if not net.is_lenet and net.error <= lenet.error]
    bare = [record["test_errors"] for record in select(results, "parameters", net=LENET5, dropout=0.0)]
    lines = [
        f"LeNet-5 with {lenet.parameters:,} parameters has a test error of {lenet.error:.2f}%, or without dropout "
        f"{100 * median(bare) / results['settings']['test_images']:.2f}%."
    ]
    if reached:
        net = min(reached, key=lambda net: net.parameters)
        lines.append(
            f"The smallest fully connected net that does as well is {net.name} with {net.parameters:,} parameters, "
            f"{net.parameters / lenet.parameters:.1f} times LeNet-5's, and {net.error:.2f}%."
        )
    else:
        lines.append(
            f"None of the fully connected nets reaches this: the best is {best.name} with {best.parameters:,} "
            f"parameters and {best.error:.2f}%."
        )
    equal, better = as_good(nets, best), surely_better(nets, best)
    if equal is not None:
        lines.append(
            f"The smallest LeNet as good as {best.name}, by the medians, has {equal.parameters:,} parameters and "
            f"{equal.error:.2f}%: a factor of {best.parameters / equal.parameters:.1f} at equal accuracy."
        )
    if better is not None:
        lines.append(
            f"The smallest LeNet whose worst seed beats that net's best seed has {better.parameters:,} parameters "
            f"and {better.error:.2f}%: a factor of {best.parameters / better.parameters:.1f}."
        )
    factors = [net.parameters / equal.parameters for net in nets if not net.is_lenet and (equal := as_good(nets, net))]
    if len(factors) > 1:
        lines.append(f"Over all fully connected nets, the factor ranges from {min(factors):.1f} to {max(factors):.1f}.")
    lines += [
        "",
        "| net | parameters | dropout | test error | range | smallest LeNet as good | factor |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for net in nets:
        equal = None if net.is_lenet else as_good(nets, net)
        match = f"{equal.parameters:,} | {net.parameters / equal.parameters:.1f}" if equal else " | "
        lines.append(
            f"| {net.name} | {net.parameters:,} | {net.dropout:g} | {net.error:.2f}% | "
            f"{net.low:.2f}–{net.high:.2f}% | {match} |"
        )
    return lines


@mpl.rc_context(plots.STYLE)
def draw_parameters(results: Record, sets: Sets | None = None) -> Figure:
    """Test error against number of parameters, both logarithmic: a point per net, a bar from best to worst seed."""
    nets = compare_nets(results)
    kinds = {
        "LeNets": [net for net in nets if net.is_lenet],
        "fully connected, one hidden layer": [net for net in nets if not net.is_lenet and "-" not in net.name],
        "fully connected, two hidden layers": [net for net in nets if not net.is_lenet and "-" in net.name],
    }
    figure = plots.new_figure(4.4, layout="constrained")
    axes = figure.add_subplot()
    for (label, members), (line, colour) in zip(kinds.items(), plots.LINES, strict=False):
        if not members:
            continue
        x = [net.parameters for net in members]
        y = np.array([(net.error, net.low, net.high) for net in members])
        axes.errorbar(x, *bars(y), fmt=line, color=colour, label=label, markersize=6, capsize=3, elinewidth=1)
        for net in members:
            widths = net.name.rpartition(" ")[2]
            text = f"{net.parameters:,}" if net.is_lenet else f"784-{widths}-10"
            text = f"LeNet-5: {text}" if net.name == LENET5 else text
            side, way = ("right", (-8, -7)) if net.is_lenet else ("left", (8, 6))
            if label.endswith("two hidden layers"):  # these are close below the others
                side, way = "center", (0, -14)
            axes.annotate(text, (net.parameters, net.error), way, textcoords="offset points", ha=side, va="center")
    best = best_full(nets)
    equal = as_good(nets, best)
    if equal is not None and equal.parameters < best.parameters:
        arrow = {"arrowstyle": "<->", "color": plots.GREY, "shrinkA": 6, "shrinkB": 6}
        axes.annotate("", (equal.parameters, best.error), (best.parameters, best.error), arrowprops=arrow)
        middle = (best.parameters * equal.parameters) ** 0.5
        text = f"÷ {best.parameters / equal.parameters:.0f}"
        axes.annotate(text, (middle, best.error), (0, 3), textcoords="offset points", ha="center", va="bottom")
    figure.suptitle("Test error by number of parameters, with a bar from the best seed to the worst", fontsize=11)
    low, high = min(net.low for net in nets), max(net.high for net in nets)
    axes.set(xscale="log", xlabel="parameters", xlim=(400, 3e6))
    axes.set(yscale="log", ylabel="test error", ylim=(low / 1.25, high * 1.25))
    axes.yaxis.set_major_locator(FixedLocator([0.5, 1, 1.5, 2, 3, 5, 10, 20, 50]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    finish(axes)
    axes.legend(frameon=False)
    return figure


# Claim 2: convolution and subsampling make a net tolerate shifts


def plan_shift(plan: Plan, seed: int) -> Iterator[Record]:
    for trained_on, net, i in itertools.product(TRAINED_ON, (LENET5, FULL), range(plan.seeds)):
        yield {"net": net, "trained_on": trained_on, "seed": seed + i}


def measure_shift(record: Record, sets: Sets, plan: Plan) -> Record:
    """The test errors for each shift and each direction; both nets see the same 32x32 pixels."""
    largest = max(plan.shifts)
    augment = None
    if record["trained_on"] == SHIFTED:
        augment = data.Affine(translation=largest, scale=0, squeeze=0, shear=0, seed=record["seed"])
    model = build(record["net"], record["seed"], border=True)
    train(model, sets.images, sets.labels, plan.steps, BATCH, record["seed"], augment)
    test = framed(sets.test_images)
    errors = [
        [count_errors(model, shifted(test, n * down, n * right), sets.test_labels) for down, right in DIRECTIONS]
        for n in plan.shifts
    ]
    ink = [float(shifted(test, 0, n).sum(dtype=np.int64) / test.sum(dtype=np.int64)) for n in plan.shifts]
    return {"test_errors": errors, "ink_left": [round(share, 4) for share in ink]}


def framed(images: Images) -> Images:
    """images[N 28 28] in the middle of LeNet-5's input, [N 32 32]."""
    return np.pad(images, ((0, 0), (2, 2), (2, 2)))


def shifted(images: Images, down: int, right: int) -> Images:
    """images[N H W] shifted by whole pixels: what leaves the frame is lost, and background, 0, comes in."""
    _, H, W = images.shape
    n = max(abs(down), abs(right))
    padded = np.pad(images, ((0, 0), (n, n), (n, n)))
    return padded[:, n - down : n - down + H, n - right : n - right + W]


def accuracies(results: Record, net: str, trained_on: str) -> np.ndarray:
    """Accuracies[seed, shift] in percent, the mean over the directions."""
    errors = [record["test_errors"] for record in select(results, "shift", net=net, trained_on=trained_on)]
    return 100 - 100 * np.mean(errors, axis=2) / results["settings"]["test_images"]


def falls_to(level: float, accuracy: np.ndarray, shifts: list[int]) -> str:
    """The shift at which the accuracy first falls below a level, interpolated linearly between two shifts."""
    for (n, before), (m, after) in itertools.pairwise(zip(shifts, accuracy, strict=True)):
        if before >= level > after:
            return f"{n + (m - n) * (before - level) / (before - after):.1f} pixels"
    return "no shift"


def report_shift(results: Record) -> list[str]:
    shifts = results["settings"]["shifts"]
    curves = {(net, on): np.median(accuracies(results, net, on), axis=0) for on in TRAINED_ON for net in (LENET5, FULL)}
    lenet, full = curves[LENET5, CENTRED], curves[FULL, CENTRED]
    lines = [
        f"Trained on centred images, LeNet-5's accuracy falls to {level}% at {falls_to(level, lenet, shifts)}, "
        f"the fully connected net's at {falls_to(level, full, shifts)}."
        for level in (90, 50)
    ]
    for n, a, b in zip(shifts, lenet, full, strict=True):
        if n in (2, 4):
            lines.append(f"At {n} pixels LeNet-5 recognises {a:.1f}%, the fully connected net {b:.1f}%.")
    a, b = (curves[net, SHIFTED][-1] for net in (LENET5, FULL))
    lines.append(
        f"Trained on images shifted at random by up to {shifts[-1]} pixels, LeNet-5 recognises {a:.1f}% at "
        f"{shifts[-1]} pixels, the fully connected net {b:.1f}%."
    )
    left = select(results, "shift")[0]["ink_left"][-1]
    lines.append(f"At {shifts[-1]} pixels to the right {left:.1%} of the ink is still in the frame.")
    lines += ["", "| net | trained on | " + " | ".join(map(str, shifts)) + " |", "|---|---|" + "---:|" * len(shifts)]
    for (net, on), curve in curves.items():
        lines.append(f"| {net} | {on} | " + " | ".join(f"{value:.1f}%" for value in curve) + " |")
    return lines


@mpl.rc_context(plots.STYLE)
def draw_shift(results: Record, sets: Sets | None = None) -> Figure:
    """Accuracy by shift, with a band from the best to the worst seed and, above, the first test image so shifted."""
    shifts = results["settings"]["shifts"]
    figure = plots.new_figure(5.3)
    plots.heading(figure, "Accuracy on test images that are moved to the left, right, up or down")
    left, width, edge = 0.75, 7.1, 0.5
    axes = plots.place(figure, left, 1.3, width, 3.4, axis=True)
    styles = iter(plots.LINES)
    for on in TRAINED_ON:
        for net, name in ((LENET5, "LeNet-5"), (FULL, FULL)):
            line, colour = next(styles)
            curves = accuracies(results, net, on)
            axes.plot(shifts, np.median(curves, axis=0), line, color=colour, label=f"{name}, trained on {on}")
            axes.fill_between(shifts, curves.min(axis=0), curves.max(axis=0), color=colour, alpha=0.25, linewidth=0)
    axes.set(xlim=(shifts[0] - edge, shifts[-1] + edge), ylim=(0, 103), xlabel="shift in pixels", ylabel="accuracy")
    axes.set_xticks(shifts)
    finish(axes)
    axes.legend(frameon=False, loc="lower left")
    if sets is not None:
        side = 0.72
        for n in shifts:
            middle = left + width * (n - shifts[0] + edge) / (shifts[-1] - shifts[0] + 2 * edge)
            tile = plots.place(figure, middle - side / 2, 0.48, side, side)
            tile.imshow(shifted(framed(sets.test_images[:1]), 0, n)[0], cmap="gray", vmin=0, vmax=255)
    return figure


# Claim 3: overfitting


def plan_overfitting(plan: Plan, seed: int) -> Iterator[Record]:
    for size, seeds in plan.sizes:
        for variant, i in itertools.product(VARIANTS, range(seeds)):
            yield {"digits": size, "variant": variant, "seed": seed + i}


def measure_overfitting(record: Record, sets: Sets, plan: Plan) -> Record:
    """Train on a few digits, which only the seed determines; return errors on these and on the test images."""
    seed = record["seed"]
    chosen = np.random.default_rng(seed).permutation(len(sets.images))[: record["digits"]]
    images, labels = sets.images[chosen], sets.labels[chosen]
    model = LeNet5(**VARIANTS[record["variant"]], rng=seed)
    augment = data.Affine(seed=seed) if record["variant"] in DISTORTED else None
    train(model, images, labels, plan.overfitting_steps, SMALL_BATCH, seed, augment)
    return {
        "train_errors": count_errors(model, images, labels),
        "test_errors": count_errors(model, sets.test_images, sets.test_labels),
    }


def error_rates(results: Record, variant: str, size: int, kind: str) -> np.ndarray:
    """The error rates in percent, by seed, on the test images or on the training digits."""
    images = {"test_errors": results["settings"]["test_images"], "train_errors": size}[kind]
    records = sorted(select(results, "overfitting", variant=variant, digits=size), key=lambda record: record["seed"])
    return np.array([100 * record[kind] / images for record in records])


def report_overfitting(results: Record) -> list[str]:
    sizes = [size for size, _ in results["settings"]["sizes"]]
    own = {size: error_rates(results, AS_IT_IS, size, "test_errors") for size in sizes}
    lines = [
        f"As it is, LeNet-5 has a test error of {np.median(own[sizes[0]]):.1f}% after {sizes[0]:,} training digits "
        f"and of {np.median(own[sizes[-1]]):.1f}% after {sizes[-1]:,}."
    ]
    for variant in list(VARIANTS)[1:]:
        rates = {size: error_rates(results, variant, size, "test_errors") for size in sizes}
        better = [f"{size:,}" for size in sizes if (rates[size] < own[size]).all()]
        worse = [f"{size:,}" for size in sizes if (rates[size] > own[size]).all()]
        first, last = (f"{np.median(rates[size]):.1f}%" for size in (sizes[0], sizes[-1]))
        name = variant[0].upper() + variant[1:]
        lines.append(f"{name}: {first} and {last}; {verdict(better, worse)}.")
    for kind, title in (("test_errors", "test error"), ("train_errors", "training error")):
        lines += ["", f"| {title} | " + " | ".join(f"{size:,}" for size in sizes) + " |"]
        lines.append("|---|" + "---:|" * len(sizes))
        for variant in VARIANTS:
            cells = [spread(error_rates(results, variant, size, kind)) for size in sizes]
            lines.append(f"| {variant} | " + " | ".join(cells) + " |")
    return lines


def verdict(better: list[str], worse: list[str]) -> str:
    """A phrase that says after how many training digits a variant is better or worse."""
    found = (("better", better), ("worse", worse))
    parts = [f"{word} with every seed after {', '.join(sizes)} digits" for word, sizes in found if sizes]
    return ", ".join(parts) or "nowhere better or worse with every seed"


def spread(values: np.ndarray) -> str:
    """The median and the range."""
    middle, low, high = summary(values)
    return f"{middle:.2f}% ({low:.2f}–{high:.2f})"


@mpl.rc_context(plots.STYLE)
def draw_overfitting(results: Record, sets: Sets | None = None) -> Figure:
    """One panel per variant, next to LeNet-5 as it is: test errors with bars over the seeds, training errors dotted."""
    sizes = [size for size, _ in results["settings"]["sizes"]]
    highest = max(error_rates(results, variant, sizes[0], "test_errors").max() for variant in VARIANTS)
    figure = plots.new_figure(5.4)
    plots.heading(figure, "Errors of LeNet-5 by number of training digits, after equally many steps")
    for i, variant in enumerate(list(VARIANTS)[1:]):
        row, column = divmod(i, 3)
        axes = plots.place(figure, 0.7 + 2.42 * column, 0.9 + 2.15 * row, 2.25, 1.8, axis=True)
        for name, line, colour in ((AS_IT_IS, "s--", "#999999"), (variant, "o-", plots.BLUE)):
            label = "LeNet-5 as it is" if name == AS_IT_IS else "changed"
            test = np.array([summary(error_rates(results, name, size, "test_errors")) for size in sizes])
            training = [summary(error_rates(results, name, size, "train_errors"))[0] for size in sizes]
            axes.errorbar(sizes, *bars(test), fmt=line, color=colour, label=f"{label}, test", markersize=4, capsize=2)
            dots = f"{line[0]}:"
            axes.plot(sizes, training, dots, color=colour, label=f"{label}, training", markersize=3)
        axes.set_title(variant[0].upper() + variant[1:])
        axes.set(xscale="log", xlim=(sizes[0] / 1.4, sizes[-1] * 1.4))
        axes.set_yscale("symlog", linthresh=1, linscale=0.35)  # training errors are 0, which has no logarithm
        axes.set_ylim(-0.1, 1.3 * highest)
        axes.xaxis.set_major_locator(FixedLocator(sizes))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.yaxis.set_major_locator(FixedLocator([0, 1, 2, 5, 10, 20, 50]))
        axes.tick_params(axis="x", labelsize=8.5)
        axes.tick_params(labelleft=column == 0, labelbottom=row == 1)
        finish(axes)
    handles, labels = axes.get_legend_handles_labels()
    order = sorted(range(len(labels)), key=lambda k: ("training" in labels[k], k))
    figure.legend(
        [handles[k] for k in order],
        [labels[k] for k in order],
        loc="upper center",
        bbox_to_anchor=(0.5, 0.95),
        ncols=4,
        frameon=False,
        fontsize=9,
    )
    figure.text(0.5, 0.12 / figure.get_figheight(), "training digits", ha="center")
    return figure


# Shared by all figures


def summary(values: np.ndarray) -> tuple[float, float, float]:
    """The median, the smallest and the largest."""
    return float(np.median(values)), float(values.min()), float(values.max())


def bars(summaries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Summaries[N 3] as matplotlib's errorbar takes them: medians[N], and the distances down and up from them[2 N]."""
    middle, low, high = summaries.T
    return middle, np.stack([middle - low, high - middle])


def finish(axes: Axes) -> None:
    """Show values in percent, without minor ticks, on a pale grid, with no frame above and on the right."""
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}%"))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_locator(NullLocator())
    axes.grid(color=plots.PALE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


# The program


@dataclass(frozen=True)
class Claim:
    """One claim: what to measure, how, the names of the numbers, the report's lines, and the figure."""

    plan: Callable[[Plan, int], Iterator[Record]]
    measure: Callable[[Record, Sets, Plan], Record]
    numbers: tuple[str, ...]
    report: Callable[[Record], list[str]]
    draw: Callable[[Record, Sets | None], Figure]


CLAIMS = {
    "parameters": Claim(
        plan_parameters,
        measure_parameters,
        ("parameters", "validation_errors", "test_errors"),
        report_parameters,
        draw_parameters,
    ),
    "shift": Claim(plan_shift, measure_shift, ("test_errors", "ink_left"), report_shift, draw_shift),
    "overfitting": Claim(
        plan_overfitting, measure_overfitting, ("train_errors", "test_errors"), report_overfitting, draw_overfitting
    ),
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m examples.claims",
        description="Test three claims about LeNet-5; write claims.json and a figure for each. Whatever claims.json in "
        "--out already holds is not measured again.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--only", choices=CLAIMS, help="a single claim (default: all)")
    parser.add_argument("--quick", action="store_true", help="a demonstration of a few seconds; its numbers are poor")
    parser.add_argument(
        "--dataset", choices=["digits", "mnist"], help="the data set (default: mnist; with --quick, digits)"
    )
    parser.add_argument("--data-dir", type=Path, help="folder with MNIST's IDX files (default: the cache)")
    parser.add_argument("--download", action="store_true", help="download what is missing or damaged in --data-dir")
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--out", type=Path, help="folder for the results (default: runs/claims, or runs/claims-quick)")
    parser.add_argument("--no-progress", action="store_true", help="show no progress bar")
    return parser.parse_args()


def load(dataset: str, folder: Path | None, download: bool) -> Sets:
    def split(name: str) -> tuple[Images, Labels]:
        return data.digits(name) if dataset == "digits" else data.mnist(folder, name, download=download)

    return Sets(*split("train"), *split("test"))


def select(results: Record, claim: str, **wanted: Any) -> list[Record]:
    """The finished measurements of a claim that match these values."""
    records: list[Record] = [record for record in results["measurements"].values() if record["claim"] == claim]
    return [record for record in records if all(record[name] == value for name, value in wanted.items())]


def settings_of(dataset: str, seed: int, plan: Plan, sets: Sets) -> Record:
    """The data and settings that the numbers depend on, in the form in which JSON returns them."""
    settings = {
        "dataset": dataset,
        "checksum": sets.checksum,
        "test_images": len(sets.test_labels),
        "seed": seed,
        **asdict(plan),
        "batch_sizes": [BATCH, SMALL_BATCH],
        "lr": LR,
        "variants": VARIANTS,
    }
    return json.loads(json.dumps(settings))


def open_results(path: Path, settings: Record) -> Record:
    """What was measured with these settings, if anything; ValueError if the file holds something else."""
    if not path.exists():
        versions = {
            "tinygrad_lenet": tinygrad_lenet.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        }
        return {"settings": settings, "versions": versions, "measurements": {}}
    try:
        results: Record = read_json(path)
        theirs = dict(results["settings"])
        for name, record in results["measurements"].items():
            if not record.keys() >= {"claim", "seed", *CLAIMS[record["claim"]].numbers}:
                raise ValueError(f"{name!r} lacks its numbers")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} holds no results of claims ({error}); remove it, or choose another --out") from None
    differences = [
        f"{name} is {settings.get(name)} here and {theirs.get(name)} there"
        for name in sorted(settings.keys() | theirs.keys())
        if settings.get(name) != theirs.get(name)
    ]
    if differences:
        raise ValueError(f"{path} has other settings: {', '.join(differences)}; choose another --out")
    return results


def main() -> None:
    args = arguments()
    if args.seed < 0:
        raise ValueError(f"--seed is {args.seed}; expected at least 0")
    dataset = args.dataset or ("digits" if args.quick else "mnist")
    plan = QUICK if args.quick else THOROUGH
    claims = [args.only] if args.only else list(CLAIMS)
    args.out = args.out or Path("runs", "claims-quick" if args.quick else "claims")
    warning = "quick, not comparable" if args.quick else ""
    parallel.tune_process()
    sets = load(dataset, args.data_dir, args.download)
    plan = replace(plan, sizes=tuple((size, seeds) for size, seeds in plan.sizes if size <= len(sets.images)))
    with own_folder(args.out, make=True):
        path = args.out / "claims.json"
        results = open_results(path, settings_of(dataset, args.seed, plan, sets))
        measure(claims, results, path, sets, plan, progress=not args.no_progress)
        for claim in claims:
            figure = CLAIMS[claim].draw(results, sets)
            plots.stamp(figure, warning)
            plots.save(figure, args.out / f"{claim}.png")
            print(f"\n{claim}{f' ({warning})' if warning else ''}\n")
            print("\n".join(CLAIMS[claim].report(results)))
    print(f"\nresults in {args.out} after {time.process_time():.0f} s of one core")


def measure(claims: list[str], results: Record, path: Path, sets: Sets, plan: Plan, progress: bool) -> None:
    """Take all measurements of these claims that ``results`` lacks, saving it after each."""
    seed, finished = results["settings"]["seed"], results["measurements"]
    records = [{"claim": claim} | record for claim in claims for record in CLAIMS[claim].plan(plan, seed)]
    names = {", ".join(str(value) for value in record.values()): record for record in records}
    missing = {name: record for name, record in names.items() if name not in finished}
    with tqdm(total=len(names), initial=len(names) - len(missing), disable=not progress) as bar:
        for name, record in missing.items():
            bar.set_postfix_str(name)
            finished[name] = record | CLAIMS[record["claim"]].measure(record, sets, plan)
            checkpoint.replace(path, as_json(results))
            bar.update()


if __name__ == "__main__":
    programs.run(main, "the same command continues from there")
