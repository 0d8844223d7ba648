"""The report of `examples/reproduce_1998.py`: a table next to the paper's numbers, and versions of four of its figures.

`write` works with whichever parts are finished.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
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
    """A part that is finished with one seed: the model, how it takes images, and what was recorded in training."""

    model: nn.Module
    transform: plots.Transform
    outputs: Callable[[Any], Any]  # uint8 images[N 32 32] -> logits, or negated penalties, [N 10]
    metrics: dict[str, Any]


Parts = Mapping[str, Sequence[Trained]]  # one for each seed that is finished


def write(folder: Path, parts: Parts, images: Any, labels: Any, warning: str = "") -> None:
    """Write table.md and the pictures of these parts into ``folder``; test images[N 32 32] and labels[N].

    The table has all seeds, the learning curves their mean and range, the other pictures the first seed. ``warning``
    stands above the table and in each picture.
    """
    outputs = {name: [part.outputs(images) for part in seeds] for name, seeds in parts.items()}
    heading = f"**{warning}**\n\n" if warning else ""
    text = table(parts, outputs, labels) + comparisons({name: metrics_of(seeds) for name, seeds in parts.items()})
    checkpoint.replace(folder / "table.md", f"{heading}{text}".encode())
    pictures = {"learning_curves": learning_curves({name: metrics_of(seeds) for name, seeds in parts.items()})}
    shown = next((name for name in ("eq9-distorted", "eq9", "eq8") if name in parts), None)
    if shown is not None:
        part, penalties = parts[shown][0], -outputs[shown][0]
        pictures["misclassified"] = plots.misclassified(images, labels, penalties, most=MOST_SHOWN, penalties=True)
        right = np.flatnonzero((labels == 4) & (penalties.argmin(axis=1) == labels))
        n = int(right[0]) if len(right) else int(np.flatnonzero(labels == 4)[0])
        title = f"What each layer makes of a {labels[n]}"
        if not len(right):
            title += f", which is taken for a {penalties[n].argmin()}"
        pictures["maps"] = plots.maps(part.model, images[n], penalties[n], title, transform=part.transform)
    compared = [name for name in ("eq9", "eq9-distorted", "today", "today-distorted") if name in parts]
    if compared:
        errors = errors_under({name: parts[name][0].outputs for name in compared}, images, labels)
        pictures["robustness"] = robustness(errors)
    for name, figure in pictures.items():
        plots.stamp(figure, warning)
        plots.save(figure, folder / f"{name}.png")


def metrics_of(seeds: Sequence[Trained]) -> list[dict[str, Any]]:
    return [part.metrics for part in seeds]


# The tables


def table(parts: Parts, outputs: Mapping[str, Sequence[Any]], labels: Any) -> str:
    """The paper's numbers and those of the finished parts, as a Markdown table.

    The paper's numbers for fewer images are read off a plot; its rejection rates are those of LeNet-4.
    """

    def error(part: str) -> str:
        wrong = [int((y.argmax(axis=1) != labels).sum()) for y in outputs.get(part, [])]
        return errors_of(wrong, len(labels))

    def mean_of(value: Callable[[dict[str, Any]], float], digits: int) -> Callable[[str], str]:
        def cell(part: str) -> str:
            return f"{np.mean([value(each.metrics) for each in parts[part]]):.{digits}%}" if part in parts else ""

        return cell

    def images(otherwise: int, suffix: str = "") -> str:
        names = [f"{column}{suffix}" for column in columns]
        return f"{images_of({name: metrics_of(seeds) for name, seeds in parts.items()}, names, otherwise):,} images"

    def rates(part: str) -> str:
        return rates_of(metrics_of(parts[part])) if part in parts else ""

    def parameters(part: str) -> str:
        return f"{sum(p.size for p in parts[part][0].model.parameters()):,}" if part in parts else ""

    def rejections(part: str) -> str:
        return f"{np.mean([rejected(y, labels) for y in outputs[part]]):.1%}" if part in parts else ""

    def row(label: str, paper: str, cell: Callable[[str], str], *names: str) -> str:
        return f"| {' | '.join([label, paper, *map(cell, names)])} |"

    columns = ("eq9", "eq8", "today")
    pass_19 = min([19, *(len(part.metrics["train_error"]) for name in columns for part in parts.get(name, []))])
    lines = [
        "| | paper | Eq. 9 | Eq. 8 | today's LeNet-5 |",
        "|---|---:|---:|---:|---:|",
        row(f"test error, {images(60_000)}", "0.95%", error, *columns),
        row("test error, with distortions", "0.8% (82)", error, *(f"{name}-distorted" for name in columns)),
        row(f"test error, {images(30_000, '-30000')}", "about 1.2%", error, *(f"{name}-30000" for name in columns)),
        row(f"test error, {images(15_000, '-15000')}", "about 1.7%", error, *(f"{name}-15000" for name in columns)),
        row(
            f"training error on the fly, pass {pass_19}",
            "0.35%",
            mean_of(lambda metrics: metrics["train_error"][:19][-1], 2),
            *columns,
        ),
        row("rejected, to leave 0.5% error", "1.8% (LeNet-4)", rejections, *columns),
        row("rates in the first pass", "7e-05 to 0.016", rates, "eq9", "eq8", ""),
        row("trainable parameters", "60,000", parameters, *columns),
    ]
    return "\n".join(lines) + "\n"


def comparisons(metrics: Mapping[str, Sequence[dict[str, Any]]]) -> str:
    """What was compared on held-out training images, and what else was tried, if it is finished, as further tables."""
    tables = {
        "held-out images": ("held-out-eq8", "held-out-j2", "held-out-j5", "held-out-j10", "held-out-j20"),
        "test images": ("published-weights", "own-curvature"),
    }
    lines = []
    for images, names in tables.items():
        finished = [metrics[name] for name in names if name in metrics]
        if finished:
            lines += ["", f"| | passes | error, {images} | rates in the first pass |", "|---|---:|---:|---:|"]
        for seeds in finished:
            errors = errors_of([int(noted["test_errors"][-1]) for noted in seeds], seeds[0]["test_images"])
            cells = [seeds[0]["title"], str(len(seeds[0]["test_errors"])), errors, rates_of(seeds)]
            lines.append(f"| {' | '.join(cells)} |")
    return "".join(f"{line}\n" for line in lines)


def errors_of(wrong: Sequence[int], images: int) -> str:
    """The mean over seeds with its standard error, which one seed alone has not, and the errors of each seed."""
    if not wrong:
        return ""
    spread = f" ± {np.std(wrong, ddof=1) / np.sqrt(len(wrong)) / images:.2%}" if len(wrong) > 1 else ""
    return f"{np.mean(wrong) / images:.2%}{spread} ({', '.join(map(str, wrong))})"


def rates_of(seeds: Sequence[dict[str, Any]]) -> str:
    smallest, largest = (
        f([each[name][0] for each in seeds]) for f, name in ((min, "smallest_rate"), (max, "largest_rate"))
    )
    return f"{smallest:.2g} to {largest:.2g}"


def images_of(metrics: Mapping[str, Sequence[Mapping[str, Any]]], names: Iterable[str], otherwise: int) -> int:
    """The number of training images of the first of these parts that is finished."""
    return next((int(metrics[name][0]["arguments"]["images"]) for name in names if name in metrics), otherwise)


def rejected(outputs: Any, labels: Any, goal: float = 0.005) -> float:
    """The smallest fraction of patterns to reject so that at most the fraction ``goal`` of the others is wrong.

    Patterns whose two best classes are closest are rejected first: outputs[N K], highest wins; labels[N].
    """
    best = np.sort(outputs, axis=1)
    order = np.argsort(best[:, -2] - best[:, -1], kind="stable")  # the most certain first
    wrong = np.cumsum(outputs.argmax(axis=1)[order] != labels[order])
    kept = np.flatnonzero(wrong <= goal * np.arange(1, len(labels) + 1))
    return 1 - (int(kept[-1]) + 1 if len(kept) else 0) / len(labels)


# The pictures


@mpl.rc_context(plots.STYLE)
def learning_curves(metrics: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """Test error, and training error on the fly, after each pass: the paper's Figure 5, and with distortions.

    Lines are means over the seeds, and the shade around them reaches from the lowest to the highest seed. If the last
    passes made less than 3% errors, they set the scale, and points above it are marked at the upper end.
    """
    panels = {
        "{} images": ("0.95%", 0.95, ("eq9", "eq8", "today")),
        "with distortions": ("0.8%", 0.8, ("eq9-distorted", "eq8-distorted", "today-distorted")),
    }
    panels = {title: each for title, each in panels.items() if not metrics.keys().isdisjoint(each[2])} or panels
    names = {"eq9": "1998, Eq. 9", "eq8": "1998, Eq. 8", "today": "today's"}
    curves = {
        part: [
            (", test", 100 * np.array([np.divide(noted["test_errors"], noted["test_images"]) for noted in seeds])),
            (", training", 100 * np.array([noted["train_error"] for noted in seeds])),
        ]
        for part, seeds in metrics.items()
        if any(part in parts for _, _, parts in panels.values())
    }
    noted = [values for lines in curves.values() for _, values in lines]
    top = 3.0 if all((values[:, -1] < 3).all() for values in noted) else 1.05 * max(values.max() for values in noted)
    figure = plots.new_figure(4.2, layout="constrained")
    legend = True  # in the first panel that has lines; the others have the same ones
    for k, (title, (text, level, parts)) in enumerate(panels.items()):
        axes = figure.add_subplot(1, len(panels), k + 1)
        axes.axhline(level, color=plots.GREY, linewidth=0.8)
        beside: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "ha": "left", "va": "center"}
        axes.text(1.01, level, f"paper\n{text}", fontsize=8, color=plots.GREY, **beside)
        highest = 0.0
        for part, (marked, colour) in zip(parts, plots.LINES, strict=False):
            for kind, seeds in curves.get(part, []):
                values = seeds.mean(axis=0)
                label, passes = names[part.partition("-")[0]] + kind, np.arange(1, len(values) + 1)
                style: dict[str, Any] = {"linewidth": 0.9, "alpha": 0.8} if kind == ", training" else {"markersize": 4}
                line = "-" if kind == ", training" else marked
                axes.plot(passes, values, line, color=colour, label=label, **style)
                if len(seeds) > 1:
                    axes.fill_between(
                        passes, seeds.min(axis=0), seeds.max(axis=0), color=colour, alpha=0.2, linewidth=0
                    )
                above = passes[values > top]
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
    beside_today = ", and of today's" if any(part.startswith("today") for part in metrics) else ""
    figure.suptitle(f"Errors of LeNet-5 as it was trained in 1998{beside_today}", fontsize=11)
    return figure


@mpl.rc_context(plots.STYLE)
def robustness(errors: Mapping[str, Mapping[str, list[tuple[float, float]]]]) -> Figure:
    """The test error on changed images, one panel per change; Figure 13 of the paper shows examples.

    ``errors`` maps each change to parts, and each part to (amount of change, fraction of errors).
    """
    labels = {
        "eq9": "1998, Eq. 9", "eq9-distorted": "1998, with distortions",
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
