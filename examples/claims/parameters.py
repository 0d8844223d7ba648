"""Shared weights save parameters: a fully connected net needs many more for the same accuracy."""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter

from examples import plots
from examples.claims import shared
from examples.claims.shared import FULL, LENET5, Record, Results, Sets

LENETS = ["LeNet 1-2-15-10", "LeNet 2-4-30-21", "LeNet 2-6-45-32", "LeNet 3-8-60-42", LENET5]
OTHERS = [f"fully connected {widths}" for widths in ("30", "100", "300", "300-100", "1000")]
DROPOUTS = [0.0, 0.3]
THOROUGH: Record = {"nets": LENETS + OTHERS, "dropouts": DROPOUTS, "seeds": 3, "steps": 4000}
QUICK: Record = {"nets": [*LENETS[3:], OTHERS[0], FULL], "dropouts": DROPOUTS, "seeds": 1, "steps": 50}


def plan(settings: Record, seed: int) -> Iterator[Record]:
    for net, dropout, i in itertools.product(settings["nets"], settings["dropouts"], range(settings["seeds"])):
        yield {"net": net, "dropout": dropout, "seed": seed + i}


def measure(settings: Record, sets: Sets, net: str, dropout: float, seed: int) -> Record:
    """Train on five sixths of the training images; the rest serves to choose the dropout, so the test images do not."""
    held = len(sets.images) // 6
    model = shared.build(net, seed, dropout)
    shared.train(model, sets.images[:-held], sets.labels[:-held], settings["steps"], shared.BATCH, seed)
    return {
        "parameters": sum(p.size for p in model.parameters()),
        "validation_errors": shared.count_errors(model, sets.images[-held:], sets.labels[-held:]),
        "test_error": shared.count_errors(model, sets.test_images, sets.test_labels) / len(sets.test_labels),
    }


class Net(NamedTuple):
    """A net with its better dropout, and its test errors by seed."""

    name: str
    parameters: int
    dropout: float
    errors: np.ndarray

    @property
    def lenet(self) -> bool:
        return self.name.startswith("LeNet")


def compare(results: Results) -> list[Net]:
    """All nets, LeNets first, by number of parameters."""
    nets = []
    for name, parameters in {(each["net"], each["parameters"]) for each in results}:
        errors = {p: np.median(shared.select(results, "validation_errors", net=name, dropout=p)) for p in DROPOUTS}
        dropout = min(errors, key=lambda p: errors[p])
        nets.append(Net(name, parameters, dropout, shared.select(results, "test_error", net=name, dropout=dropout)))
    return sorted(nets, key=lambda net: (not net.lenet, net.parameters))


def as_good(nets: list[Net], other: Net, surely: bool = False) -> Net | None:
    """The smallest LeNet whose median error is at most the other net's, or whose worst seed beats its best one."""
    for net in nets:
        better = net.errors.max() < other.errors.min() if surely else np.median(net.errors) <= np.median(other.errors)
        if net.lenet and better:
            return net
    return None


def table(results: Results) -> str:
    """For each fully connected net, the smallest LeNet that is as good, by the medians and for certain."""
    rows = [
        [
            "net",
            "parameters",
            "dropout",
            "test error",
            "without dropout",
            "LeNet as good",
            "factor",
            "surely better",
            "factor",
        ]
    ]
    nets = compare(results)
    for net in nets:
        without = 100 * np.median(shared.select(results, "test_error", net=net.name, dropout=0.0))
        row = [net.name, f"{net.parameters:,}", f"{net.dropout:g}", shared.spread(net.errors), f"{without:.2f}%"]
        for surely in (False, True):
            lenet = None if net.lenet else as_good(nets, net, surely)
            row += [f"{lenet.parameters:,}", f"{net.parameters / lenet.parameters:.1f}"] if lenet else ["", ""]
        rows.append(row)
    return shared.markdown(*rows)


@mpl.rc_context(plots.STYLE)
def draw(results: Results, sets: Sets) -> Figure:
    """Test error against number of parameters, both logarithmic: a point per net, a bar from best to worst seed."""
    nets = compare(results)
    figure = plots.new_figure(4.4, layout="constrained")
    axes = figure.add_subplot()
    for label, lenet, (line, colour) in zip(("LeNets", "fully connected"), (True, False), plots.LINES, strict=False):
        members = [net for net in nets if net.lenet == lenet]
        shared.error_bars(
            axes, [net.parameters for net in members], [net.errors for net in members], line, colour, label=label
        )
        for net in members:
            text = f"{net.parameters:,}" if lenet else f"784-{net.name.rpartition(' ')[2]}-10"
            below = lenet or "-" in net.name
            axes.annotate(
                f"LeNet-5: {text}" if net.name == LENET5 else text,
                (net.parameters, 100 * float(np.median(net.errors))),
                (-8, -8) if below else (8, 6),
                textcoords="offset points",
                ha="right" if below else "left",
                va="center",
            )
    figure.suptitle("Test error by number of parameters, with a bar from the best seed to the worst", fontsize=11)
    errors = 100 * np.concatenate([net.errors for net in nets])
    axes.set(xscale="log", xlabel="parameters", xlim=(400, 3e6))
    axes.set(yscale="log", ylabel="test error", ylim=(errors.min() / 1.25, errors.max() * 1.25))
    axes.yaxis.set_major_locator(FixedLocator([0.5, 1, 1.5, 2, 3, 5, 10, 20, 50]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    shared.finish(axes)
    axes.legend(frameon=False)
    return figure
