"""What the claims share: the nets by their widths, training, counting errors, and how numbers are shown."""

import itertools
import zlib
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullLocator

from examples import plots
from tinygrad_lenet import Tensor, data, nn, no_grad, optim
from tinygrad_lenet import functional as F

Record = dict[str, Any]  # one measurement: what was measured and, once it is, the numbers
Results = list[Record]

BATCH, SMALL_BATCH = 128, 50  # the smaller one divides all small training sets, so every step sees 50 images
LR = 0.003  # the highest rate of Adam's one-cycle schedule, for all nets
LENET5 = "LeNet 6-16-120-84"
FULL = "fully connected 300-100"


class Sets(NamedTuple):
    """Training and test images uint8[N 28 28] with their labels[N]."""

    images: np.ndarray
    labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray

    @property
    def checksum(self) -> str:
        crc = 0
        for array in self:
            crc = zlib.crc32(np.ascontiguousarray(array).data, crc)
        return f"{crc:08x}"


class Middle(nn.Module):
    """Images x[N 1 32 32] -> x[N 1 28 28]: without the border, which holds no ink and would cost parameters."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, 2:30, 2:30]


def build(net: str, seed: int, dropout: float = 0.0, border: bool = False) -> nn.Sequential:
    """A net by its kind and widths, "LeNet 6-16-120-84" or "fully connected 300-100", for images x[N 1 32 32].

    A LeNet is LeNet-5 with these widths of C1, C3, C5 and F6. Fully connected nets have ReLUs, which suit them better
    than tanh, and see 28x28 pixels, or 32x32 with ``border``. ``dropout`` drops hidden units of full layers, and of C5.
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
    sizes = [32 * 32 if border else 28 * 28, *hidden]
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [nn.Linear(inputs, outputs, rng=rng), nn.ReLU(), *drop]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], 10, rng=rng))


def train(
    model: nn.Module,
    images: np.ndarray,
    labels: np.ndarray,
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


def count_errors(model: nn.Module, images: np.ndarray, labels: np.ndarray, batch_size: int = 250) -> int:
    """The number of images whose predicted class is not their label."""
    model.eval()
    wrong = 0
    with no_grad():
        for i in range(0, len(images), batch_size):
            logits = model(Tensor(data.to_input(images[i : i + batch_size]))).numpy()
            wrong += int((logits.argmax(axis=1) != labels[i : i + batch_size]).sum())
    return wrong


# Numbers in tables and figures


def select(results: Results, name: str, **wanted: Any) -> np.ndarray:
    """The number ``name`` of the measurements that match, by seed."""
    found = [each for each in results if all(each[key] == value for key, value in wanted.items())]
    return np.array([each[name] for each in sorted(found, key=lambda each: each["seed"])])


def spread(errors: np.ndarray) -> str:
    """The median and the range of fractions over the seeds, in percent."""
    return f"{100 * np.median(errors):.2f}% ({100 * errors.min():.2f}–{100 * errors.max():.2f})"


def markdown(*rows: list[str]) -> str:
    """A table with these rows, the first of which is its head."""
    return "".join(f"| {' | '.join(row)} |\n" for row in (rows[0], ["---", *["---:"] * (len(rows[0]) - 1)], *rows[1:]))


def error_bars(axes: Axes, x: list[int], errors: list[np.ndarray], line: str, colour: str, **options: Any) -> None:
    """Medians, in percent, with bars from the best seed to the worst."""
    y = np.array([100 * np.quantile(each, (0.5, 0, 1)) for each in errors]).T
    axes.errorbar(x, y[0], [y[0] - y[1], y[2] - y[0]], fmt=line, color=colour, capsize=3, elinewidth=1, **options)


def finish(axes: Axes) -> None:
    """Show values in percent, without minor ticks, on a pale grid, with no frame above and on the right."""
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}%"))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_locator(NullLocator())
    axes.grid(color=plots.PALE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
