"""The pictures of a training run: `save_all` draws all of them into a folder, and there is a function for each.

Every function takes arrays and returns a matplotlib Figure, drawn without pyplot: nothing global changes and no window
opens. Sizes are chosen for a width of 800 pixels. Nothing depends on hue: brightness rises or falls with the value, so
the pictures also work in grey and for the colour-blind.
"""

import io
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import CenteredNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from examples.classes import CLASSES, DIGITS
from tinygrad_lenet import Tensor, checkpoint, data, nn, no_grad

Transform = Callable[[np.ndarray], np.ndarray]
WIDTH, DPI = 8.0, 150  # inches, dots per inch
LINES = (("o-", "#0072b2"), ("s--", "#d55e00"), ("^:", "#555555"), ("d-.", "#009e73"))  # Okabe and Ito's colours
TEXT = 0.5  # inches: three lines at the side of a row
BLUE, GREY, PALE = LINES[0][1], "#555555", "#dddddd"
SIGNED, COUNTS = "cividis", "Blues"  # the brightness of one only rises, of the other only falls
STYLE: Any = {"font.family": "DejaVu Sans", "font.size": 10, "axes.titlesize": 10, "svg.hashsalt": "tinygrad_lenet"}


def save_all(
    folder: Path,
    metrics: Mapping[str, Any],
    model: nn.Module,
    images: np.ndarray,
    labels: np.ndarray,
    probabilities: np.ndarray,
) -> list[Path]:
    """Write all pictures of a run on test images[N H W] into ``folder`` and return their paths, in this file's order.

    ``metrics`` is the content of the training example's metrics.json, labels[N] the classes, probabilities[N K] the
    model's output.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = CLASSES.get(metrics.get("arguments", {}).get("dataset"), tuple(map(str, range(probabilities.shape[1]))))
    predictions = probabilities.argmax(axis=1)
    n = int(np.argmin(probabilities[np.arange(len(labels)), labels]))  # the image that is furthest from its label
    title = f"What each layer makes of test image {n}: true {names[labels[n]]}, predicted {names[predictions[n]]}"
    first = next(p for p in model.parameters() if p.ndim == 4)
    pictures = {
        "learning_curves": learning_curves(metrics),
        "confusion_matrix": confusion_matrix(labels, predictions, names),
        "misclassified": misclassified(images, labels, probabilities, names),
        "kernels": kernels(first.numpy()),
        "maps": maps(model, images[n], probabilities[n], title, names),
    }
    return [save(figure, folder / f"{name}.png") for name, figure in pictures.items()]


@mpl.rc_context(STYLE)
def save(figure: Figure, path: Path) -> Path:
    """Write the figure in the format of the path's suffix, without a date, so equal runs give equal bytes."""
    options: dict[str, dict[str, Any]] = {
        ".png": {"metadata": {"Software": None}, "pil_kwargs": {"optimize": True}},
        ".svg": {"metadata": {"Date": None}},
        ".pdf": {"metadata": {"CreationDate": None}},
    }
    ending = path.suffix.lower() or ".png"
    picture = io.BytesIO()
    figure.savefig(picture, format=ending[1:], dpi=DPI, **options.get(ending, {}))
    checkpoint.replace(path, picture.getvalue())
    return path


@mpl.rc_context(STYLE)
def learning_curves(metrics: Mapping[str, Any]) -> Figure:
    """Curves by epoch from ``metrics``: each "..._loss" on the left and, if there are any, "..._accuracy" on the right.

    Losses that fall to less than a tenth get a logarithmic axis.
    """
    lists = {name: np.asarray(values, float) for name, values in metrics.items() if isinstance(values, list)}
    panels = {
        unit: {name: values for name, values in lists.items() if name.endswith(ending) and values.size}
        for ending, unit in (("_loss", "loss in nats an image"), ("_accuracy", "accuracy"))
    }
    panels = {unit: lines for unit, lines in panels.items() if lines}
    if not panels:
        return note("No losses were recorded.")
    figure = new_figure(3.6, layout="constrained")
    for i, (unit, lines) in enumerate(panels.items()):
        axes = figure.add_subplot(1, len(panels), i + 1)
        for (name, values), (line, colour) in zip(lines.items(), LINES * len(lines), strict=False):
            every = math.ceil(len(values) / 20)
            label = name.replace("_", " ")
            axes.plot(range(1, len(values) + 1), values, line, color=colour, label=label, markersize=5, markevery=every)
        axes.set(xlabel="epoch", ylabel=unit, xlim=(0.5, max(map(len, lines.values())) + 0.5))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(color=PALE, linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
        points = np.concatenate(list(lines.values()))
        if unit == "accuracy":
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}%"))
        elif 0 < points.min() < 0.1 * points.max() < math.inf:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_locator(NullLocator())
    figure.suptitle(_headline(metrics), fontsize=11)
    return figure


def _headline(metrics: Mapping[str, Any]) -> str:
    """Which model was trained on which data set, and how well it did, as far as ``metrics`` says."""
    settings = metrics.get("arguments", {})
    title = " on ".join(str(settings[name]) for name in ("model", "dataset") if name in settings) or "Training"
    if "test_errors" not in metrics:
        return title
    return f"{title}: {metrics['test_errors']:,} errors on {metrics['test_images']:,} test images"


@mpl.rc_context(STYLE)
def confusion_matrix(labels: np.ndarray, predictions: np.ndarray, names: Sequence[str] = DIGITS) -> Figure:
    """How often each class, a row, was taken for each class, a column: labels[N] and predictions[N] of integers.

    Colour shows the mistakes; beside each row stands which share of it is correct.
    """
    K = len(names)
    counts = np.bincount(labels * K + predictions, minlength=K * K).reshape(K, K)
    mistakes = counts * (1 - np.eye(K, dtype=int))
    most = max(1, int(mistakes.max()))

    figure = new_figure(6.6, layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(mistakes, cmap=COUNTS, vmin=0, vmax=most)
    for (true, predicted), count in np.ndenumerate(counts):
        if true == predicted:
            axes.text(predicted, true, f"{count}", ha="center", va="center", weight="bold", color=GREY)
        elif count:
            ink = "white" if count > 0.65 * most else "black"
            axes.text(predicted, true, f"{count}", ha="center", va="center", color=ink)
    for true, row in enumerate(counts):
        axes.text(K - 0.35, true, f"{row[true] / row.sum():.1%}" if row.sum() else "none", va="center")
    axes.text(K - 0.35, -0.75, "correct", va="center")
    long = max(map(len, names)) > 2
    axes.set_xticks(range(K), names, rotation=40 if long else 0, ha="right" if long else "center")
    axes.set_yticks(range(K), names)
    axes.set_xticks(np.arange(K + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(K + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="#bbbbbb", linewidth=0.8)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    axes.set(xlabel="predicted class", ylabel="true class")
    bar = figure.colorbar(image, ax=axes, shrink=0.6, label="mistakes")
    bar.ax.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    figure.suptitle(f"{mistakes.sum():,} mistakes on {len(labels):,} images", fontsize=11)
    return figure


@mpl.rc_context(STYLE)
def misclassified(
    images: np.ndarray,
    labels: np.ndarray,
    answers: np.ndarray,
    names: Sequence[str] = DIGITS,
    most: int = 32,
    penalties: bool = False,
) -> Figure:
    """The images[N H W] whose class is not labels[N], the most confident mistake first, and at most ``most`` of them.

    Below each: the true class, the predicted one, its probability, from answers[N K], and the image's index. If the
    answers are ``penalties``, the smallest wins, confidence is how far the next one is, and below stand the true
    class's and the predicted one's.
    """
    predictions = answers.argmin(axis=1) if penalties else answers.argmax(axis=1)
    smallest = np.sort(answers, axis=1)
    confidence = smallest[:, 1] - smallest[:, 0] if penalties else smallest[:, -1]
    wrong = np.flatnonzero(predictions != labels)
    shown = wrong[np.argsort(-confidence[wrong], kind="stable")][:most]
    if not len(shown):
        return note(f"None of {len(labels):,} images is misclassified.")

    columns = 8 if max(map(len, names)) <= 2 else 5
    cell = WIDTH / columns
    side = min(cell - 0.25, 0.9)
    height = side + 0.66  # three lines of text below
    figure = new_figure(0.5 + math.ceil(len(shown) / columns) * height)
    which = f", of which the {len(shown)} most confident" if len(shown) < len(wrong) else ""
    said = "their penalties" if penalties else "confidence"
    heading(figure, f"{len(wrong):,} of {len(labels):,} misclassified{which}: true → predicted, {said}, index")
    for i, n in enumerate(shown):
        row, column = divmod(i, columns)
        axes = place(figure, (column + 0.5) * cell - side / 2, 0.5 + row * height, side, side)
        axes.imshow(images[n], cmap="gray", vmin=0, vmax=255)
        value = percent(confidence[n])
        if penalties:
            value = f"{answers[n, labels[n]]:.1f} → {answers[n, predictions[n]]:.1f}"
        text = f"{names[labels[n]]} → {names[predictions[n]]}\n{value}\n#{n}"
        axes.text(0.5, -0.04, text, transform=axes.transAxes, ha="center", va="top", linespacing=1.1)
    return figure


@mpl.rc_context(STYLE)
def kernels(weight: np.ndarray) -> Figure:
    """A convolution's weight[F C KH KW]: all kernels in a row if C is 1, else a row for each of the C inputs."""
    outputs, inputs = weight.shape[:2]
    columns = outputs if inputs > 1 else min(outputs, 8)
    rows = inputs if inputs > 1 else math.ceil(outputs / columns)
    cell = 7.1 / max(columns, 4)
    norm = CenteredNorm(halfrange=float(np.abs(weight).max()) or 1.0)
    figure = new_figure(0.7 + rows * cell)
    order = ": a column an output, a row an input" if inputs > 1 else ""
    heading(figure, f"Weights of the first convolution's kernels{order}")
    for i in range(outputs * inputs):  # one input after the other
        axes = place(figure, 0.1 + i % columns * cell, 0.7 + i // columns * cell, 0.93 * cell, 0.93 * cell)
        image = axes.imshow(weight[i % outputs, i // outputs], cmap=SIGNED, norm=norm)
        if i < outputs:
            axes.set_title(f"{i + 1}", pad=3)
    bar = figure.colorbar(image, cax=place(figure, 7.25, 0.7, 0.14, (rows - 0.07) * cell, axis=True))
    bar.ax.yaxis.set_major_locator(MaxNLocator(5))
    return figure


@mpl.rc_context(STYLE)
def maps(
    model: nn.Module,
    image: np.ndarray,
    answers: np.ndarray,
    title: str = "What each layer makes of an image",
    names: Sequence[str] = DIGITS,
    transform: Transform = data.to_input,
) -> Figure:
    """What each layer of ``model`` makes of one image[H W]: one row per layer, after its activation.

    On top: the image, and the model's answers[K] for it, which are penalties if its last layer is an `nn.RBF`, and
    probabilities otherwise. Each row has a scale of its own, symmetric about 0, whose limits stand beside it.
    ``transform`` is what the model takes uint8 images[N H W] through.
    """
    layers = look_inside(model, image, transform)
    grids = [_grid(y) for _, y in layers]
    lowest = [max(rows * side, TEXT) for rows, _, side in grids]  # no row is lower than what is said about it
    figure = new_figure(2.05 + sum(lowest) + 0.16 * len(grids))
    heading(figure, title)
    side_text(figure, 1.0, f"INPUT\n{image.shape[0]}×{image.shape[1]}\n0 to 255")
    place(figure, 1.25, 0.5, 1.0, 1.0).imshow(image, cmap="gray", vmin=0, vmax=255)
    answer = place(figure, 2.75, 0.65, 5.15, 0.85, axis=True)
    penalties = any(isinstance(module, nn.RBF) for _, module in model.named_modules())
    most = float(answers.max()) if penalties else 1.0
    wins = answers.argmin() if penalties else answers.argmax()
    colours = [BLUE if k == wins or not penalties else GREY for k in range(len(names))]
    answer.bar(range(len(names)), answers, color=colours, width=0.7)
    for k, value in enumerate(answers):
        if penalties or value >= 0.0095:
            text = f"{value:.3g}" if penalties else percent(value)
            answer.text(k, value + 0.03 * most, text, ha="center", va="bottom")
    label = "penalty" if penalties else "probability"
    answer.set(xlim=(-0.5, len(names) - 0.5), ylim=(0, 1.25 * most), yticks=[], ylabel=label)
    long = max(map(len, names)) > 2
    answer.set_xticks(range(len(names)), names, fontsize=7.5 if long else 10, rotation=25 if long else 0)
    answer.tick_params(length=0)
    answer.spines[["left", "right", "top"]].set_visible(False)

    top = 1.95
    for (name, y), (rows, columns, side), low in zip(layers, grids, lowest, strict=True):
        limit = float(np.abs(y).max()) or 1.0
        norm = CenteredNorm(halfrange=limit)
        shape, scale = (
            f"{len(y)} @ {'×'.join(map(str, y.shape[1:]))}" if y.ndim == 3 else f"{y.size} units",
            f"±{limit:.3g}",
        )
        if penalties and y is layers[-1][1]:
            shape, scale = f"{y.size} penalties", f"least {y.min():.3g} wins"
        side_text(figure, top + low / 2, f"{name}\n{shape}\n{scale}")
        above, top = top, top + (low - rows * side) / 2
        if y.ndim == 3:
            for i, tile in enumerate(y):
                axes = place(figure, 1.25 + i % columns * side, top + i // columns * side, 0.93 * side, 0.93 * side)
                axes.imshow(tile, cmap=SIGNED, norm=norm)
        else:
            cells = np.pad(y, (0, rows * columns - y.size), constant_values=np.nan).reshape(rows, columns)
            axes = place(figure, 1.25, top, columns * side, rows * side)
            axes.pcolormesh(np.ma.masked_invalid(cells), cmap=SIGNED, norm=norm, edgecolors="white", linewidth=1.5)
            axes.invert_yaxis()
            axes.spines[:].set_visible(False)
        top = above + low + 0.16
    dark, zero, bright = mpl.colormaps[SIGNED]([0.0, 0.5, 1.0])
    for x, colour, text in ((0.1, dark, "negative"), (0.95, zero, "zero"), (1.5, bright, "positive")):
        place(figure, x, 1.72, 0.12, 0.12).set_facecolor(tuple(colour))
        figure.text((x + 0.18) / WIDTH, 1 - 1.78 / figure.get_figheight(), text, va="center", fontsize=9)
    return figure


def _grid(y: np.ndarray) -> tuple[int, int, float]:
    """Rows, columns and the side of a cell, in inches, for maps y[C H W] or units y[K]."""
    limit, largest = (16, 6.65 / 6) if y.ndim == 3 else (30, 6.65 / 30)
    rows = math.ceil(len(y) / limit)
    columns = math.ceil(len(y) / rows)
    return rows, columns, min(6.65 / columns, largest)


def look_inside(
    model: nn.Module, image: np.ndarray, transform: Transform = data.to_input
) -> list[tuple[str, np.ndarray]]:
    """The name and the output, maps[C H W] or units[K], of each layer of ``model`` for one uint8 image[H W].

    Activations and normalisation count with the layer before them, and maps of one pixel are units.
    """
    places = {module: name for name, module in model.named_modules()}
    modes = [(module, module.training) for module in places]
    layers: list[tuple[str, np.ndarray]] = []
    size: tuple[int, ...] = ()

    def listen(module: nn.Module, inputs: tuple[Any, ...], y: Tensor) -> None:
        nonlocal size
        values = y.numpy()[0]
        units = values.reshape(-1) if values.ndim != 3 or values[0].size == 1 else values
        refines = isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) or not any(True for _ in module.parameters())
        if refines and layers and values.shape == size:
            layers[-1] = (layers[-1][0], units)
        elif not isinstance(module, nn.Flatten | nn.Dropout):
            name = places[module].rpartition(".")[2]
            layers.append((type(module).__name__ if name.isdigit() else name.upper(), units))
            size = values.shape

    handles = [module.register_forward_hook(listen) for module in places if not any(True for _ in module.children())]
    try:
        device = next(model.parameters()).device
        with no_grad():
            model.eval()(Tensor(transform(image[None]), device=device))
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes:
            module.training = mode
    return layers


# Shared by all pictures


def new_figure(height: float, **options: Any) -> Figure:
    """An empty white figure of the common width, ``height`` inches high, drawn in memory."""
    figure = Figure((WIDTH, height), dpi=DPI, facecolor="white", **options)
    FigureCanvasAgg(figure)
    return figure


def place(figure: Figure, left: float, top: float, width: float, height: float, axis: bool = False) -> Axes:
    """Axes at a place in inches from the figure's upper left corner; without ticks unless ``axis``."""
    w, h = figure.get_size_inches()
    axes = figure.add_axes((left / w, 1 - (top + height) / h, width / w, height / h))
    if not axis:
        axes.set(xticks=[], yticks=[])
    return axes


def side_text(figure: Figure, middle: float, text: str) -> None:
    """Lines of text at the left edge of a figure, around a height in inches from its top."""
    figure.text(0.1 / WIDTH, 1 - middle / figure.get_figheight(), text, va="center", linespacing=1.15, fontsize=9)


def stamp(figure: Figure, text: str) -> None:
    """Put a warning, if there is one, into the upper right corner."""
    if text:
        x, y = 1 - 0.05 / figure.get_figwidth(), 1 - 0.05 / figure.get_figheight()
        box: dict[str, Any] = {"color": "white", "backgroundcolor": "#a00000", "fontsize": 7}
        figure.text(x, y, text.replace(", ", ",\n"), ha="right", va="top", **box)


def heading(figure: Figure, text: str) -> None:
    """One line at the top of a figure whose axes are placed by hand."""
    figure.text(0.5, 1 - 0.14 / figure.get_figheight(), text, ha="center", va="top", fontsize=11)


@mpl.rc_context(STYLE)
def note(text: str) -> Figure:
    """A picture that holds one sentence, for when there is nothing to draw."""
    figure = new_figure(1.0)
    figure.text(0.5, 0.5, text, ha="center", va="center", fontsize=11)
    return figure


def percent(probability: float) -> str:
    """A probability with enough digits to show that it is neither 0 nor 1."""
    if probability > 0.9995:
        return ">99.9%"
    return f"{probability:.0%}" if 0.0095 <= probability < 0.985 else f"{probability:.1%}"
