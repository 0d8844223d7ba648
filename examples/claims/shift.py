"""Convolution and subsampling make a net tolerate shifts of its input."""

import itertools
from collections.abc import Iterator, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from examples import plots
from examples.claims import shared
from examples.claims.shared import FULL, LENET5, Record, Results, Sets
from tinygrad_lenet import data

TRAINED_ON = CENTRED, SHIFTED = "centred images", "shifted images"
DIRECTIONS = ((0, -1), (0, 1), (-1, 0), (1, 0))  # (down, right): to the left, to the right, upwards, downwards
CURVES = [(net, on) for on in TRAINED_ON for net in (LENET5, FULL)]
THOROUGH: Record = {"seeds": 3, "steps": 4000, "shifts": list(range(9))}
QUICK: Record = {"seeds": 1, "steps": 50, "shifts": [0, 2, 4, 8]}


def plan(settings: Record, seed: int) -> Iterator[Record]:
    for (net, trained_on), i in itertools.product(CURVES, range(settings["seeds"])):
        yield {"net": net, "trained_on": trained_on, "seed": seed + i}


def measure(settings: Record, sets: Sets, net: str, trained_on: str, seed: int) -> Record:
    """The accuracy at each shift, the mean over the directions; both nets see the same 32x32 pixels."""
    shifts = settings["shifts"]
    augment = (
        data.Affine(translation=max(shifts), scale=0, squeeze=0, shear=0, seed=seed) if trained_on == SHIFTED else None
    )
    model = shared.build(net, seed, border=True)
    shared.train(model, sets.images, sets.labels, settings["steps"], shared.BATCH, seed, augment)
    test = framed(sets.test_images)
    errors = [
        [shared.count_errors(model, shifted(test, n * down, n * right), sets.test_labels) for down, right in DIRECTIONS]
        for n in shifts
    ]
    ink = [float(shifted(test, 0, n).sum(dtype=np.int64) / test.sum(dtype=np.int64)) for n in shifts]
    return {"shifts": shifts, "accuracy": (1 - np.mean(errors, axis=1) / len(test)).tolist(), "ink_left": ink}


def framed(images: np.ndarray) -> np.ndarray:
    """images[N 28 28] in the middle of LeNet-5's input, [N 32 32]."""
    return np.pad(images, ((0, 0), (2, 2), (2, 2)))


def shifted(images: np.ndarray, down: int, right: int) -> np.ndarray:
    """images[N H W] shifted by whole pixels: what leaves the frame is lost, and background, 0, comes in."""
    _, H, W = images.shape
    n = max(abs(down), abs(right))
    padded = np.pad(images, ((0, 0), (n, n), (n, n)))
    return padded[:, n - down : n - down + H, n - right : n - right + W]


def falls_to(level: float, accuracy: Sequence[float], shifts: Sequence[int]) -> str:
    """The shift at which the accuracy first falls below a level, interpolated linearly between two shifts."""
    for (n, before), (m, after) in itertools.pairwise(zip(shifts, accuracy, strict=True)):
        if before >= level > after:
            return f"{n + (m - n) * (before - level) / (before - after):.1f}"
    return ""


def table(results: Results) -> str:
    """The median accuracy by shift in pixels, and the shifts at which it falls to 90% and to 50%."""
    shifts = results[0]["shifts"]
    rows = [["net", "trained on", *map(str, shifts), "90% at", "50% at"]]
    for net, on in CURVES:
        curve = np.median(shared.select(results, "accuracy", net=net, trained_on=on), axis=0)
        falls = [falls_to(level, curve, shifts) for level in (0.9, 0.5)]
        rows.append([net, on, *(f"{100 * value:.1f}%" for value in curve), *falls])
    ink = [f"{100 * share:.1f}%" for share in results[0]["ink_left"]]
    return shared.markdown(*rows, ["ink left in the frame", "", *ink, "", ""])


@mpl.rc_context(plots.STYLE)
def draw(results: Results, sets: Sets) -> Figure:
    """Accuracy by shift, with a band from the best to the worst seed and, above, the first test image so shifted."""
    shifts = results[0]["shifts"]
    figure = plots.new_figure(5.3)
    plots.heading(figure, "Accuracy on test images that are moved to the left, right, up or down")
    left, width, edge, side = 0.75, 7.1, 0.5, 0.72
    axes = plots.place(figure, left, 1.3, width, 3.4, axis=True)
    for (net, on), (line, colour) in zip(CURVES, plots.LINES, strict=True):
        curves = 100 * shared.select(results, "accuracy", net=net, trained_on=on)
        name = "LeNet-5" if net == LENET5 else net
        axes.plot(shifts, np.median(curves, axis=0), line, color=colour, label=f"{name}, trained on {on}")
        axes.fill_between(shifts, curves.min(axis=0), curves.max(axis=0), color=colour, alpha=0.25, linewidth=0)
    axes.set(xlim=(shifts[0] - edge, shifts[-1] + edge), ylim=(0, 103), xlabel="shift in pixels", ylabel="accuracy")
    axes.set_xticks(shifts)
    shared.finish(axes)
    axes.legend(frameon=False, loc="lower left")
    for n in shifts:
        middle = left + width * (n - shifts[0] + edge) / (shifts[-1] - shifts[0] + 2 * edge)
        tile = plots.place(figure, middle - side / 2, 0.48, side, side)
        tile.imshow(shifted(framed(sets.test_images[:1]), 0, n)[0], cmap="gray", vmin=0, vmax=255)
    return figure
