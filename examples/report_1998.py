"""The report of `examples/reproduce_1998.py`: a table next to the paper's numbers, and versions of four of its figures.

`write` works with whichever parts are finished.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from PIL import Image

from examples import plots
from tinygrad_lenet import checkpoint, nn

MOST_SHOWN = 120  # misclassified digits in the picture


@dataclass
class Trained:
    """A finished part: the model, how it takes images, and what was recorded while it was trained."""

    model: nn.Module
    transform: plots.Transform
    outputs: Callable[[Any], Any]  # uint8 images[N 32 32] -> logits, or negated penalties, [N 10]
    metrics: dict[str, Any]


def write(folder: Path, parts: Mapping[str, Trained], images: Any, labels: Any, warning: str = "") -> None:
    """Write table.md and the pictures of these parts into ``folder``; test images[N 32 32] and labels[N].

    ``warning`` stands above the table and in each picture.
    """
    outputs = {name: part.outputs(images) for name, part in parts.items()}
    heading = f"**{warning}**\n\n" if warning else ""
    checkpoint.replace(folder / "table.md", f"{heading}{table(parts, outputs, labels)}".encode())
    pictures = {"learning_curves": learning_curves({name: part.metrics for name, part in parts.items()})}
    shown = next((name for name in ("eq8-distorted", "eq9-distorted", "eq8", "eq9") if name in parts), None)
    if shown is not None:
        part, probabilities = parts[shown], softmax(outputs[shown])
        pictures["misclassified"] = plots.misclassified(images, labels, probabilities, most=MOST_SHOWN)
        right = np.flatnonzero((labels == 4) & (probabilities.argmax(axis=1) == labels))
        n = int(right[0]) if len(right) else int(np.flatnonzero(labels == 4)[0])
        title = f"What each layer makes of a {labels[n]}"
        if not len(right):
            title += f", which is taken for a {probabilities[n].argmax()}"
        pictures["maps"] = plots.maps(part.model, images[n], probabilities[n], title, transform=part.transform)
    compared = [name for name in ("eq8", "eq8-distorted", "today", "today-distorted") if name in parts]
    if compared:
        errors = errors_under({name: parts[name].outputs for name in compared}, images, labels)
        pictures["robustness"] = robustness(errors)
    for name, figure in pictures.items():
        plots.stamp(figure, warning)
        plots.save(figure, folder / f"{name}.png")


# The table


def table(parts: Mapping[str, Trained], outputs: Mapping[str, Any], labels: Any) -> str:
    """The paper's numbers and those of the finished parts, as a Markdown table.

    The paper's numbers for fewer images are read off a plot; its rejection rates are those of LeNet-4.
    """

    def error(part: str) -> str:
        if part not in parts:
            return ""
        wrong = int((outputs[part].argmax(axis=1) != labels).sum())
        return f"{wrong / len(labels):.2%} ({wrong})"

    def noted(text: Callable[[dict[str, Any]], str]) -> Callable[[str], str]:
        return lambda part: text(parts[part].metrics) if part in parts else ""

    def on_the_fly(metrics: dict[str, Any]) -> str:
        return f"{metrics['train_error'][:19][-1]:.2%}"

    def images(otherwise: int, suffix: str = "") -> str:
        names = [f"{column}{suffix}" for column in columns]
        return f"{images_of({name: part.metrics for name, part in parts.items()}, names, otherwise):,} images"

    def rates(metrics: dict[str, Any]) -> str:
        return f"{metrics['smallest_rate'][0]:.1g} to {metrics['largest_rate'][0]:.2g}"

    def parameters(part: str) -> str:
        return f"{sum(p.size for p in parts[part].model.parameters()):,}" if part in parts else ""

    def rejections(part: str) -> str:
        return f"{rejected(outputs[part], labels):.1%}" if part in parts else ""

    def row(label: str, paper: str, cell: Callable[[str], str], *names: str) -> str:
        return f"| {' | '.join([label, paper, *map(cell, names)])} |"

    columns = ("eq8", "eq9", "adam", "today")
    pass_19 = min([19, *(len(part.metrics["train_error"]) for part in parts.values())])
    lines = [
        "| | paper | Eq. 8 | Eq. 9 | Eq. 8, Adam | today's LeNet-5 |",
        "|---|---:|---:|---:|---:|---:|",
        row(f"test error, {images(60_000)}", "0.95%", error, *columns),
        row("test error, with distortions", "0.8% (82)", error, *(f"{name}-distorted" for name in columns)),
        row(f"test error, {images(30_000, '-30000')}", "about 1.2%", error, *(f"{name}-30000" for name in columns)),
        row(f"test error, {images(15_000, '-15000')}", "about 1.7%", error, *(f"{name}-15000" for name in columns)),
        row(f"training error on the fly, pass {pass_19}", "0.35%", noted(on_the_fly), *columns),
        row("rejected, to leave 0.5% error", "1.8% (LeNet-4)", rejections, *columns),
        row("rates in the first pass", "7e-05 to 0.016", noted(rates), "eq8", "eq9", "", ""),
        row("trainable parameters", "60,000", parameters, *columns),
    ]
    return "\n".join(lines) + "\n"


def images_of(metrics: Mapping[str, Mapping[str, Any]], names: Iterable[str], otherwise: int) -> int:
    """The number of training images of the first of these parts that is finished."""
    return next((int(metrics[name]["arguments"]["images"]) for name in names if name in metrics), otherwise)


def rejected(outputs: Any, labels: Any, goal: float = 0.005) -> float:
    """The smallest fraction of patterns to reject so that at most the fraction ``goal`` of the others is wrong.

    Patterns whose two best classes are closest are rejected first: outputs[N K], highest wins; labels[N].
    """
    best = np.sort(outputs, axis=1)
    order = np.argsort(best[:, -2] - best[:, -1], kind="stable")  # the most certain first
    wrong = np.cumsum(outputs.argmax(axis=1)[order] != labels[order])
    kept = np.flatnonzero(wrong <= goal * np.arange(1, len(labels) + 1))
    return 1 - (int(kept[-1]) + 1 if len(kept) else 0) / len(labels)


def softmax(outputs: Any) -> Any:
    e = np.exp(outputs - outputs.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


# The pictures


@mpl.rc_context(plots.STYLE)
def learning_curves(metrics: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Test error, and training error on the fly, after each pass: the paper's Figure 5, and with distortions.

    If the last passes made less than 3% errors, they set the scale, and points above it are marked at the upper end.
    """
    panels = {
        "{} images": ("0.95%", 0.95, ("eq8", "eq9", "adam", "today")),
        "with distortions": ("0.8%", 0.8, ("eq8-distorted", "eq9-distorted", "adam-distorted", "today-distorted")),
    }
    names = {"eq8": "Eq. 8", "eq9": "Eq. 9", "adam": "Eq. 8, Adam", "today": "today's"}
    curves = {
        part: [
            (", test", [100 / noted["test_images"] * errors for errors in noted["test_errors"]]),
            (", training", [100 * error for error in noted["train_error"]]),
        ]
        for part, noted in metrics.items()
    }
    shown = {part: lines for part, lines in curves.items() if any(part in parts for _, _, parts in panels.values())}
    noted = [values for lines in shown.values() for _, values in lines]
    top = 3.0 if all(values[-1] < 3 for values in noted) else 1.05 * max(map(max, noted))
    figure = plots.new_figure(4.2, layout="constrained")
    legend = True  # in the first panel that has lines; the others have the same ones
    for k, (title, (text, level, parts)) in enumerate(panels.items()):
        axes = figure.add_subplot(1, 2, k + 1)
        axes.axhline(level, color=plots.GREY, linewidth=0.8)
        below: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "ha": "left", "va": "bottom"}
        axes.text(0.02, level, f"paper {text}", fontsize=8, color=plots.GREY, **below)
        highest = 0.0
        for part, (marked, colour) in zip(parts, plots.LINES, strict=False):
            for kind, values in shown.get(part, []):
                label, passes = names[part.partition("-")[0]] + kind, np.arange(1, len(values) + 1)
                style: dict[str, Any] = {"linewidth": 0.9, "alpha": 0.8} if kind == ", training" else {"markersize": 4}
                line = "-" if kind == ", training" else marked
                axes.plot(passes, values, line, color=colour, label=label, **style)
                above = passes[np.array(values) > top]
                if len(above):
                    axes.plot(above, np.full(len(above), top), "^", color=colour, clip_on=False, markersize=5)
                highest = max(highest, *values)
        title = title.format(f"{images_of(metrics, parts, 60_000):,}")
        title += f"; ▲ above {top:.2g}%, up to {highest:.2g}%" if highest > top else ""
        axes.set(
            title=title, xlabel="passes through the training set", ylabel="error" if k == 0 else None, ylim=(0, top)
        )
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}%"))
        finish(axes, legend)
        legend = legend and not any(part in metrics for part in parts)
    figure.suptitle("Errors of LeNet-5 as it was trained in 1998, and of today's", fontsize=11)
    return figure


@mpl.rc_context(plots.STYLE)
def robustness(errors: Mapping[str, Mapping[str, list[tuple[float, float]]]]) -> Figure:
    """The test error on changed images, one panel per change; Figure 13 of the paper shows examples.

    ``errors`` maps each change to parts, and each part to (amount of change, fraction of errors).
    """
    labels = {
        "eq8": "1998, Eq. 8", "eq8-distorted": "1998, with distortions",
        "today": "today's", "today-distorted": "today's, with distortions",
    }  # fmt: skip
    figure = plots.new_figure(6.4, layout="constrained")
    for k, (change, parts) in enumerate(errors.items()):
        axes = figure.add_subplot(2, 2, k + 1)
        for (part, points), (line, colour) in zip(parts.items(), plots.LINES, strict=False):
            x, y = np.array(points).T
            axes.plot(x, 100 * y, line, color=colour, label=labels[part], markersize=4)
        axes.set(xlabel=change, ylabel="test error" if k % 2 == 0 else None, ylim=(0, 100))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}%"))
        finish(axes, legend=k == 2)
    figure.suptitle("Test error on images moved, scaled, turned or damaged", fontsize=11)
    return figure


def finish(axes: Any, legend: bool = True) -> None:
    axes.grid(color=plots.PALE, linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    if legend and axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8)


# The changed images


def errors_under(
    outputs: Mapping[str, Callable[[Any], Any]], images: Any, labels: Any
) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """For each change, the fraction of test images that each part gets wrong, by the amount of change."""
    errors: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for change, (amounts, alter) in CHANGES.items():
        errors[change] = {name: [] for name in outputs}
        for amount in amounts:
            changed = alter(images, amount)
            for name, output in outputs.items():
                wrong = float((output(changed).argmax(axis=1) != labels).mean())
                errors[change][name].append((amount, wrong))
    return errors


def moved(images: Any, pixels: float) -> Any:
    """Every other image shifted down by this many pixels, the others up."""
    down = np.array([[1, 0, 0], [0, 1, -pixels]])
    up = np.array([[1, 0, 0], [0, 1, pixels]])
    return alternating(images, down, up)


def scaled(images: Any, factor: float) -> Any:
    return alternating(images, *[np.array([[1 / factor, 0, 0], [0, 1 / factor, 0]])] * 2)


def turned(images: Any, degrees: float) -> Any:
    """Every other image rotated to the left about its centre, the others to the right."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return alternating(images, np.array([[c, s, 0], [-s, c, 0]]), np.array([[c, -s, 0], [s, c, 0]]))


def damaged(images: Any, share: float) -> Any:
    """This fraction of the pixels, always the same ones, turned black or white at random."""
    rng = np.random.default_rng(0)
    hit = rng.random(images.shape, dtype=np.float32) < share
    white = rng.random(images.shape, dtype=np.float32) < 0.5
    return np.where(hit, np.where(white, np.uint8(255), np.uint8(0)), images)


CHANGES: dict[str, tuple[tuple[float, ...], Callable[[Any, float], Any]]] = {
    "shift up or down, pixels": ((0, 1, 2, 3, 4, 5, 6, 7, 10), moved),
    "scale": ((0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1, 1.1, 1.2, 1.3, 1.4, 1.6), scaled),
    "rotation, degrees": ((0, 5, 10, 15, 20, 25, 30, 40, 50), turned),
    "pixels turned black or white": ((0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3), damaged),
}


def alternating(images: Any, first: Any, second: Any) -> Any:
    """uint8 images[N H W] transformed by one of two affine maps in turn, with bilinear interpolation.

    map[2 3] takes a pixel of the new image to its position in the old one, in pixels right of and below the centre.
    """
    height, width = images.shape[1:]
    center = np.array([width / 2, height / 2])
    coefficients = []
    for matrix in (first, second):
        offset = center + matrix[:, 2] - matrix[:, :2] @ center
        coefficients.append((*matrix[0, :2], offset[0], *matrix[1, :2], offset[1]))
    affine, bilinear = Image.Transform.AFFINE, Image.Resampling.BILINEAR
    return np.stack(
        [
            np.asarray(Image.fromarray(image).transform((width, height), affine, coefficients[i % 2], bilinear))
            for i, image in enumerate(images)
        ]
    )
