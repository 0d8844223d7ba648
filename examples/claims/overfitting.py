"""Dropout, batch normalisation, ReLU, max pooling and distorted images against overfitting, by training-set size."""

import itertools
from collections.abc import Iterator

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter

from examples import plots
from examples.claims import shared
from examples.claims.shared import Record, Results, Sets
from models import LeNet5
from tinygrad_lenet import data

AS_IT_IS, ALL = "as it is", "all of these"
VARIANTS: dict[str, Record] = {
    AS_IT_IS: {},
    "dropout": {"dropout": 0.5},
    "batch normalisation": {"batch_norm": True},
    "ReLU": {"activation": "relu"},
    "ReLU and max pooling": {"activation": "relu", "pool": "max"},
    "distorted images": {},
    ALL: {"activation": "relu", "pool": "max", "batch_norm": True, "dropout": 0.5},
}
DISTORTED = ("distorted images", ALL)
# Training digits, and how many seeds:
THOROUGH: Record = {
    "sizes": [[100, 5], [300, 5], [1000, 3], [3000, 3], [10_000, 3]],
    "steps": 1500,
    "variants": VARIANTS,
}
QUICK: Record = {"sizes": [[100, 2], [300, 1]], "steps": 20, "variants": VARIANTS}


def plan(settings: Record, seed: int) -> Iterator[Record]:
    for size, seeds in settings["sizes"]:
        for variant, i in itertools.product(VARIANTS, range(seeds)):
            yield {"digits": size, "variant": variant, "seed": seed + i}


def measure(settings: Record, sets: Sets, digits: int, variant: str, seed: int) -> Record:
    """Train on a few digits, which only the seed determines; the errors on these and on the test images."""
    chosen = np.random.default_rng(seed).permutation(len(sets.images))[:digits]
    images, labels = sets.images[chosen], sets.labels[chosen]
    model = LeNet5(**VARIANTS[variant], rng=seed)
    augment = data.Affine(seed=seed) if variant in DISTORTED else None
    shared.train(model, images, labels, settings["steps"], shared.SMALL_BATCH, seed, augment)
    return {
        "training_error": shared.count_errors(model, images, labels) / digits,
        "test_error": shared.count_errors(model, sets.test_images, sets.test_labels) / len(sets.test_labels),
    }


def sizes_of(results: Results) -> list[int]:
    return sorted({each["digits"] for each in results})


def table(results: Results) -> str:
    """Test and training errors; ↓ marks those lower with every seed than LeNet-5's as it is, ↑ those higher."""
    sizes = sizes_of(results)
    tables = []
    for name in ("test_error", "training_error"):
        rows = [[name.replace("_", " "), *(f"{size:,}" for size in sizes)]]
        for variant in VARIANTS:
            row = [variant]
            for size in sizes:
                errors, own = (shared.select(results, name, variant=each, digits=size) for each in (variant, AS_IT_IS))
                sign = "↓" if (errors < own).all() else "↑" if (errors > own).all() else ""
                row.append(f"{shared.spread(errors)} {sign}".strip())
            rows.append(row)
        tables.append(shared.markdown(*rows))
    return "\n".join(tables)


@mpl.rc_context(plots.STYLE)
def draw(results: Results, sets: Sets) -> Figure:
    """One panel per variant, next to LeNet-5 as it is: test errors with bars over the seeds, training errors dotted."""
    sizes, highest = sizes_of(results), 130 * max(each["test_error"] for each in results)
    figure = plots.new_figure(5.4, layout="constrained")
    figure.suptitle("Errors of LeNet-5 by number of training digits, after equally many steps", fontsize=11)
    panels = figure.subplots(2, 3, sharex=True, sharey=True)
    for axes, variant in zip(panels.flat, list(VARIANTS)[1:], strict=True):
        for name, label, line, colour in (
            (AS_IT_IS, "LeNet-5 as it is", "s--", "#999999"),
            (variant, "changed", "o-", plots.BLUE),
        ):
            test, training = (
                [shared.select(results, kind, variant=name, digits=size) for size in sizes]
                for kind in ("test_error", "training_error")
            )
            shared.error_bars(axes, sizes, test, line, colour, label=f"{label}, test", markersize=4)
            medians = [100 * np.median(each) for each in training]
            axes.plot(sizes, medians, f"{line[0]}:", color=colour, label=f"{label}, training", markersize=3)
        axes.set_title(variant[0].upper() + variant[1:])
        axes.set(xscale="log", xlim=(sizes[0] / 1.4, sizes[-1] * 1.4), ylim=(-0.1, highest))
        axes.set_yscale("symlog", linthresh=1, linscale=0.35)  # training errors are 0, which has no logarithm
        axes.xaxis.set_major_locator(FixedLocator(sizes))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.yaxis.set_major_locator(FixedLocator([0, 1, 2, 5, 10, 20, 50]))
        axes.tick_params(axis="x", labelsize=8)
        shared.finish(axes)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    for axes in panels[1]:
        axes.set_xlabel("training digits")
    return figure
