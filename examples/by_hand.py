"""LeNet-5 by hand: `python -m examples.by_hand` takes one digit through every layer, forwards and backwards, twice.

It does so once with the formulas below, each a sum over indices in plain Python, and once with the framework, and
prints both side by side. The formulas are those of the notes "In-depth LeNet-5 Tutorial with Detailed Layer-by-Layer
Computations", completed and corrected: where the notes omit a sum or a whole gradient, or have a sum too many, the
report says so and shows the effect on the numbers. The loops receive only the digit and the weights from the framework;
they compute the gradients from the softmax back to the pixels on their own.

Read it from top to bottom: the formulas, what the notes have instead, the network, the two passes, the report.
"""

# I and O are what the formulas call the input and the output of a layer:
# ruff: noqa: E741, E743

from examples import programs

if __name__ == "__main__":
    programs.begin()

import argparse
import math
import sys
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from models.lenet5_1998 import TABLE_I
from tinygrad_lenet import Tensor, data, grad, nn
from tinygrad_lenet import functional as F

LIMIT = 1e-10  # allowed difference, relative to the largest value: rounding is far below, a wrong formula far above
WIDTH = 110  # columns of the report

Vector = list[float]  # [j]
Matrix = list[Vector]  # [i][j]
Maps = list[Matrix]  # [n][i][j]: map n, row i, column j
Kernels = dict[tuple[int, int], Matrix]  # [k, n][p][q]: from map n of the input to map k of the output, if connected


# The formulas
#
# net is what sigma is applied to, O = sigma(net), and dO, dnet, dI, dW, db are dL/dO, dL/dnet and so on. Every layer
# with a sigma first turns dO into dnet; the formulas for dI, dW and db begin there.


def sigma(net: float) -> float:
    return math.tanh(net)


def sigma_slope(O: float) -> float:
    """sigma'(net), from O = sigma(net): tanh' = 1 - tanh^2.

    (For A tanh(S net), the paper's squashing function, it is S / A (A^2 - O^2).)
    """
    return 1 - O**2


def through_sigma(dO: Vector, O: Vector) -> Vector:
    """dnet[j] = dO[j] sigma'(net[j])."""
    return [dO[j] * sigma_slope(O[j]) for j in range(len(O))]


def maps_through_sigma(dO: Maps, O: Maps) -> Maps:
    """dnet[k][i][j] = dO[k][i][j] sigma'(net[k][i][j])."""
    return [[through_sigma(dO[k][i], O[k][i]) for i in range(len(O[k]))] for k in range(len(O))]


def maps(count: int, rows: int, columns: int, formula: Callable[[int, int, int], float]) -> Maps:
    """The maps whose entry in row i and column j of map k is formula(k, i, j)."""
    return [[[formula(k, i, j) for j in range(columns)] for i in range(rows)] for k in range(count)]


# C1 and C3: convolution. Every sum over n (or k) runs over the connected pairs of maps only: those that have a kernel.


def conv(W: Kernels, b: Vector, I: Maps) -> Maps:
    """O[k][i][j] = sigma(b[k] + sum over n, p, q of W[k, n][p][q] I[n][i+p][j+q])."""
    P, Q = kernel_size(W)
    sees = [[n for n in range(len(I)) if (k, n) in W] for k in range(len(b))]

    def O(k: int, i: int, j: int) -> float:
        return sigma(
            b[k] + sum(W[k, n][p][q] * I[n][i + p][j + q] for n in sees[k] for p in range(P) for q in range(Q))
        )

    return maps(len(b), len(I[0]) - P + 1, len(I[0][0]) - Q + 1, O)


def conv_input_gradient(W: Kernels, dnet: Maps, shape: tuple[int, int, int]) -> Maps:
    """dI[n][x][y] = sum over k, p, q of dnet[k][x-p][y-q] W[k, n][p][q], for an input of that shape.

    Pixel (x, y) lies under the window at (i, j) where x = i+p and y = j+q for some p and q. So up to P Q units of each
    map use it, and by the chain rule their contributions add up. Near the border there are fewer, hence the "if".
    """
    P, Q = kernel_size(W)
    count, rows, columns = shape
    last_i, last_j = len(dnet[0]) - 1, len(dnet[0][0]) - 1
    seen_by = [[k for k in range(len(dnet)) if (k, n) in W] for n in range(count)]

    def dI(n: int, x: int, y: int) -> float:
        return sum(
            dnet[k][x - p][y - q] * W[k, n][p][q]
            for k in seen_by[n]
            for p in range(P)
            for q in range(Q)
            if 0 <= x - p <= last_i and 0 <= y - q <= last_j
        )

    return maps(count, rows, columns, dI)


def conv_weight_gradient(pairs: Iterable[tuple[int, int]], dnet: Maps, I: Maps) -> Kernels:
    """dW[k, n][p][q] = sum over i, j of dnet[k][i][j] I[n][i+p][j+q], for each connected pair of maps."""
    rows, columns = len(dnet[0]), len(dnet[0][0])
    P, Q = len(I[0]) - rows + 1, len(I[0][0]) - columns + 1

    def dW(k: int, n: int, p: int, q: int) -> float:
        return sum(dnet[k][i][j] * I[n][i + p][j + q] for i in range(rows) for j in range(columns))

    return {(k, n): [[dW(k, n, p, q) for q in range(Q)] for p in range(P)] for k, n in pairs}


def map_bias_gradient(dnet: Maps) -> Vector:
    """db[k] = sum over i, j of dnet[k][i][j]: all units of a map share its bias. For convolution and subsampling."""
    return [sum(dnet[k][i][j] for i in range(len(dnet[k])) for j in range(len(dnet[k][i]))) for k in range(len(dnet))]


def kernel_size(W: Kernels) -> tuple[int, int]:
    kernel = next(iter(W.values()))
    return len(kernel), len(kernel[0])


# S2 and S4: subsampling, with a coefficient W[k] and a bias b[k] for each map; or the plain average.


def window_sum(I: Maps, k: int, i: int, j: int) -> float:
    """Sum over p, q of I[k][2i+p][2j+q]: the four pixels of window (i, j)."""
    return sum(I[k][2 * i + p][2 * j + q] for p in range(2) for q in range(2))


def subsample(W: Vector, b: Vector, I: Maps) -> Maps:
    """O[k][i][j] = sigma(b[k] + W[k] sum over p, q of I[k][2i+p][2j+q])."""

    def O(k: int, i: int, j: int) -> float:
        return sigma(b[k] + W[k] * window_sum(I, k, i, j))

    return maps(len(I), len(I[0]) // 2, len(I[0][0]) // 2, O)


def subsample_input_gradient(W: Vector, dnet: Maps) -> Maps:
    """dI[k][2i+p][2j+q] = dnet[k][i][j] W[k].

    One term is enough here: windows do not overlap, so pixel (x, y) is in window (x // 2, y // 2) and in no other.
    """

    def dI(k: int, x: int, y: int) -> float:
        return dnet[k][x // 2][y // 2] * W[k]

    return maps(len(dnet), 2 * len(dnet[0]), 2 * len(dnet[0][0]), dI)


def subsample_weight_gradient(dnet: Maps, I: Maps) -> Vector:
    """dW[k] = sum over i, j of dnet[k][i][j] times the sum over p, q of I[k][2i+p][2j+q]."""
    rows, columns = len(dnet[0]), len(dnet[0][0])
    return [
        sum(dnet[k][i][j] * window_sum(I, k, i, j) for i in range(rows) for j in range(columns))
        for k in range(len(dnet))
    ]


def average(I: Maps) -> Maps:
    """O[k][i][j] = 1/4 sum over p, q of I[k][2i+p][2j+q]: W = 1/4, b = 0 and no sigma."""

    def O(k: int, i: int, j: int) -> float:
        return window_sum(I, k, i, j) / 4

    return maps(len(I), len(I[0]) // 2, len(I[0][0]) // 2, O)


def average_input_gradient(dO: Maps) -> Maps:
    """dI[k][2i+p][2j+q] = 1/4 dO[k][i][j]: without a sigma, net is O."""

    def dI(k: int, x: int, y: int) -> float:
        return dO[k][x // 2][y // 2] / 4

    return maps(len(dO), 2 * len(dO[0]), 2 * len(dO[0][0]), dI)


# C5, F6 and the output: full layers, W[i][j] from input i to unit j. C5 is one because its kernels cover whole maps.


def full_net(W: Matrix, b: Vector, I: Vector) -> Vector:
    """net[j] = b[j] + sum over i of W[i][j] I[i]."""
    return [b[j] + sum(W[i][j] * I[i] for i in range(len(I))) for j in range(len(b))]


def full(W: Matrix, b: Vector, I: Vector) -> Vector:
    """O[j] = sigma(net[j])."""
    return [sigma(net) for net in full_net(W, b, I)]


def full_input_gradient(W: Matrix, dnet: Vector) -> Vector:
    """dI[i] = sum over j of dnet[j] W[i][j]: input i is used by every unit j."""
    return [sum(dnet[j] * W[i][j] for j in range(len(dnet))) for i in range(len(W))]


def full_weight_gradient(dnet: Vector, I: Vector) -> Matrix:
    """dW[i][j] = dnet[j] I[i], without a sum: weight (i, j) is used by unit j alone."""
    return [[dnet[j] * I[i] for j in range(len(dnet))] for i in range(len(I))]


def full_bias_gradient(dnet: Vector) -> Vector:
    """db[j] = dnet[j]."""
    return list(dnet)


# The output: softmax and loss


def softmax(z: Vector) -> Vector:
    """O[k] = e^z[k] / sum over k' of e^z[k'].

    The largest z is subtracted from all of them first. That changes nothing but keeps e^z from overflowing.
    """
    e = [math.exp(z[k] - max(z)) for k in range(len(z))]
    return [e[k] / sum(e) for k in range(len(z))]


def cross_entropy(O: Vector, y: Vector) -> float:
    """L = - sum over k of y[k] log O[k]."""
    return -sum(y[k] * math.log(O[k]) for k in range(len(O)))


def cross_entropy_gradient(O: Vector, y: Vector) -> Vector:
    """dz[k] = s O[k] - y[k], where s is the sum of y: 1 for a label or a distribution, which leaves O[k] - y[k].

    From dL/dO[k'] = - y[k'] / O[k'] and dO[k']/dz[k] = O[k'] ([k' = k] - O[k]), summed over k'.
    """
    return [sum(y) * O[k] - y[k] for k in range(len(O))]


def squared_error_gradient(O: Vector, y: Vector) -> Vector:
    """dz[k] = O[k] (O[k] - y[k] - sum over k' of (O[k'] - y[k']) O[k']), for L = 1/2 sum over k of (O[k] - y[k])^2."""
    mean = sum((O[k] - y[k]) * O[k] for k in range(len(O)))
    return [O[k] * (O[k] - y[k] - mean) for k in range(len(O))]


# What the notes have instead, where they differ


def notes_conv_input_gradient(W: Kernels, dnet: Maps, n: int, i: int, j: int, p: int, q: int) -> float:
    """The notes' dI[n][i+p][j+q] = sum over k of dnet[k][i][j] W[k, n][p][q]: the gradient from one window."""
    return sum(dnet[k][i][j] * W[k, n][p][q] for k in range(len(dnet)) if (k, n) in W)


def notes_full_weight_gradient(dnet: Vector, I: Vector, i: int) -> float:
    """The notes' dW[i][j] = sum over j of dnet[j] I[i]: j is summed over, so the result is the same for every j."""
    return sum(dnet[j] * I[i] for j in range(len(dnet)))


# The network


class Network(nn.Module):
    """The notes' LeNet-5 in float64: trainable subsampling, C3 connected by Table I, tanh after every layer, softmax.

    Weights are random, from ``seed``. So are the coefficients and biases of S2 and S4: if they were all 1/4 and 0, the
    report could not tell those of one map from those of another.
    """

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        real = np.float64
        self.c1 = nn.Conv2d(1, 6, kernel_size=5, rng=rng, dtype=real)
        self.s2 = nn.Subsample2d(6, kernel_size=2, dtype=real)
        self.c3 = nn.Conv2d(6, 16, kernel_size=5, connections=TABLE_I, rng=rng, dtype=real)
        self.s4 = nn.Subsample2d(16, kernel_size=2, dtype=real)
        self.c5 = nn.Conv2d(16, 120, kernel_size=5, rng=rng, dtype=real)
        self.f6 = nn.Linear(120, 84, rng=rng, dtype=real)
        self.output = nn.Linear(84, 10, rng=rng, dtype=real)
        for layer in (self.s2, self.s4):
            layer.weight.data[...] = rng.uniform(0.2, 0.6, layer.channels)
            layer.bias.data[...] = rng.uniform(-0.1, 0.1, layer.channels)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Every layer's output, by name: x[1 1 32 32] -> C1 [1 6 28 28], ..., F6 [1 84], z [1 10]."""
        outputs = {}
        for name, layer in (("C1", self.c1), ("S2", self.s2), ("C3", self.c3), ("S4", self.s4), ("C5", self.c5)):
            outputs[name] = x = layer(x).tanh()
        outputs["F6"] = self.f6(x.reshape(1, 120)).tanh()
        outputs["z"] = self.output(outputs["F6"])
        return outputs


# The two passes. Both use the same names: "C3.O" is the output of C3, "C3.dI" and "C3.dW" are its gradients.

Values = dict[str, Any]
CHAIN = ("C1", "S2", "C3", "S4", "C5", "F6", "OUTPUT")
C1_PAIRS = [(k, 0) for k in range(6)]  # every map of C1 sees the one map of the image
C3_PAIRS = [(k, n) for k, sees in enumerate(TABLE_I) for n in sees]  # 60 of the 96


def walk_by_framework(network: Network, image: np.ndarray, y: np.ndarray) -> Values:
    """All values and gradients as the framework computes them: image[32 32], y[10]."""
    x = Tensor(image[None, None], requires_grad=True)
    outputs = network(x)
    z = outputs["z"]
    loss = F.cross_entropy(z, y[None])
    values: Values = {f"{name}.O": output.numpy()[0] for name, output in outputs.items() if name != "z"}
    values |= {"C5.O": values["C5.O"].reshape(120), "OUTPUT.z": z.numpy()[0], "OUTPUT.O": F.softmax(z).numpy()[0]}
    values["OUTPUT.L"] = np.array(loss.item())

    wanted = {"OUTPUT.dz": z}
    for name, layer_input in zip(CHAIN, [x, *(outputs[name] for name in CHAIN[:-1])], strict=True):
        layer = getattr(network, name.lower())
        wanted |= {f"{name}.dI": layer_input, f"{name}.dW": layer.weight, f"{name}.db": layer.bias}
    for key, gradient in zip(wanted, grad(loss, list(wanted.values())), strict=True):
        values[key] = gradient.numpy() if key.endswith(("dW", "db")) else gradient.numpy()[0]

    # Into the shapes of the formulas: kernels in one row, and C5 a full layer with W[i][j] for weight[j, i].
    for name in ("C1", "C3"):
        values[f"{name}.dW"] = values[f"{name}.dW"].reshape(-1, 5, 5)
    for name in ("C5", "F6", "OUTPUT"):
        values[f"{name}.dW"] = values[f"{name}.dW"].reshape(len(values[f"{name}.db"]), -1).T
        values[f"{name}.dI"] = values[f"{name}.dI"].reshape(-1)

    # The plain average, on C1's output, with the gradient that the trainable S2 has.
    c1 = Tensor(values["C1.O"][None], requires_grad=True)
    pooled = nn.AvgPool2d(2)(c1)
    (dI,) = grad(pooled, [c1], values["C3.dI"][None])
    values |= {"average.O": pooled.numpy()[0], "average.dI": dI.numpy()[0]}

    # The same logits under other losses
    logits = Tensor(z.numpy(), requires_grad=True)
    two = F.cross_entropy(logits, two_labels(y)[None])
    squares = 0.5 * ((F.softmax(logits) - Tensor(y[None])) ** 2).sum()
    for key, other in (("two labels.dz", two), ("squares.dz", squares)):
        (dz,) = grad(other, [logits])
        values[key] = dz.numpy()[0]
    return values


def walk_by_hand(network: Network, image: np.ndarray, y: np.ndarray) -> Values:
    """The same by the formulas above."""
    pixels, label = [image.tolist()], y.tolist()
    W1, b1 = kernels(C1_PAIRS, network.c1), numbers(network.c1.bias)
    W2, b2 = numbers(network.s2.weight), numbers(network.s2.bias)
    W3, b3 = kernels(C3_PAIRS, network.c3), numbers(network.c3.bias)
    W4, b4 = numbers(network.s4.weight), numbers(network.s4.bias)
    W5, b5 = matrix(network.c5), numbers(network.c5.bias)
    W6, b6 = matrix(network.f6), numbers(network.f6.bias)
    W7, b7 = matrix(network.output), numbers(network.output.bias)

    # Forwards
    C1 = conv(W1, b1, pixels)
    S2 = subsample(W2, b2, C1)
    C3 = conv(W3, b3, S2)
    S4 = subsample(W4, b4, C3)
    flat = [S4[n][p][q] for n in range(16) for p in range(5) for q in range(5)]  # i = 25 n + 5 p + q
    C5 = full(W5, b5, flat)
    F6 = full(W6, b6, C5)
    z = full_net(W7, b7, F6)
    O = softmax(z)

    # Backwards: the gradient of a layer's input is that of the previous layer's output.
    dz = cross_entropy_gradient(O, label)
    dF6 = full_input_gradient(W7, dz)
    dnet6 = through_sigma(dF6, F6)
    dC5 = full_input_gradient(W6, dnet6)
    dnet5 = through_sigma(dC5, C5)
    dflat = full_input_gradient(W5, dnet5)
    dS4 = maps(16, 5, 5, lambda n, p, q: dflat[25 * n + 5 * p + q])
    dnet4 = maps_through_sigma(dS4, S4)
    dC3 = subsample_input_gradient(W4, dnet4)
    dnet3 = maps_through_sigma(dC3, C3)
    dS2 = conv_input_gradient(W3, dnet3, (6, 14, 14))
    dnet2 = maps_through_sigma(dS2, S2)
    dC1 = subsample_input_gradient(W2, dnet2)
    dnet1 = maps_through_sigma(dC1, C1)
    dpixels = conv_input_gradient(W1, dnet1, (1, 32, 32))

    return {
        "C1.O": C1,
        "C1.dI": dpixels,
        "C1.dW": list(conv_weight_gradient(C1_PAIRS, dnet1, pixels).values()),
        "C1.db": map_bias_gradient(dnet1),
        "S2.O": S2,
        "S2.dI": dC1,
        "S2.dW": subsample_weight_gradient(dnet2, C1),
        "S2.db": map_bias_gradient(dnet2),
        "average.O": average(C1),
        "average.dI": average_input_gradient(dS2),
        "C3.O": C3,
        "C3.dI": dS2,
        "C3.dW": list(conv_weight_gradient(C3_PAIRS, dnet3, S2).values()),
        "C3.db": map_bias_gradient(dnet3),
        "S4.O": S4,
        "S4.dI": dC3,
        "S4.dW": subsample_weight_gradient(dnet4, C3),
        "S4.db": map_bias_gradient(dnet4),
        "C5.O": C5,
        "C5.dI": dflat,
        "C5.dW": full_weight_gradient(dnet5, flat),
        "C5.db": full_bias_gradient(dnet5),
        "F6.O": F6,
        "F6.dI": dC5,
        "F6.dW": full_weight_gradient(dnet6, C5),
        "F6.db": full_bias_gradient(dnet6),
        "OUTPUT.z": z,
        "OUTPUT.O": O,
        "OUTPUT.L": cross_entropy(O, label),
        "OUTPUT.dz": dz,
        "OUTPUT.dI": dF6,
        "OUTPUT.dW": full_weight_gradient(dz, F6),
        "OUTPUT.db": full_bias_gradient(dz),
        "two labels.dz": cross_entropy_gradient(O, two_labels(y).tolist()),
        "squares.dz": squared_error_gradient(O, label),
        # For the report: what only the notes' formulas need
        "C1.W": W1,
        "C1.dnet": dnet1,
        "C3.W": W3,
        "C3.dnet": dnet3,
        "C5.dnet": dnet5,
        "F6.dnet": dnet6,
        "flat": flat,
    }


def two_labels(y: np.ndarray) -> np.ndarray:
    """1 for the label and for the class after it: not a distribution, since its sum is 2."""
    return y + np.roll(y, 1)


def kernels(pairs: list[tuple[int, int]], layer: nn.Conv2d) -> Kernels:
    """The kernel of each connected pair of maps; the framework's weight has them in this order in both of its forms."""
    return dict(zip(pairs, layer.weight.numpy().reshape(-1, 5, 5).tolist(), strict=True))


def matrix(layer: nn.Conv2d | nn.Linear) -> Matrix:
    """W[i][j] of a full layer, or of a convolution whose kernels cover the whole input."""
    weight = layer.weight.numpy()  # [j i] or [j n p q]
    return weight.reshape(weight.shape[0], -1).T.tolist()


def numbers(parameter: Tensor | None) -> Vector:
    assert parameter is not None
    return parameter.numpy().tolist()


# The report


@dataclass
class Check:
    """One quantity of a layer, by hand and by the framework, with remarks."""

    layer: str
    what: str  # "forward", "gradient w.r.t. the input", ...
    notes: str  # a verdict on the notes' formula, in a few words
    formulas: list[str]
    unit: str  # the name of the single number that is printed
    place: tuple[int, ...]  # the position of that number in the arrays
    by_hand: np.ndarray
    framework: np.ndarray
    remarks: list[str]

    def difference(self) -> float:
        """The largest difference between any two numbers, divided by the largest number."""
        largest = max(float(np.abs(values).max()) for values in (self.by_hand, self.framework))
        return float(np.abs(self.by_hand - self.framework).max()) / (largest or 1.0)

    def agrees(self) -> bool:
        return self.difference() <= LIMIT  # False for NaN

    def is_forward(self) -> bool:
        return self.what.startswith(("forward", "loss"))

    def lines(self) -> list[str]:
        by_hand, framework = self.by_hand[self.place], self.framework[self.place]
        count = "" if self.framework.size == 1 else f" of {self.framework.size:,}"
        return [
            f"{self.what:<{WIDTH - len(self.notes)}}{self.notes}",
            *(f"    {formula}" for formula in self.formulas),
            *wrap(f"  {self.unit:<16} by hand {by_hand:+.12e}    framework {framework:+.12e}"),
            *wrap(f"  largest difference{count}: {self.difference():.1e} of the largest value"),
            *([] if self.agrees() else wrap(f"  DIFFERENT: at most {LIMIT:.0e} was expected")),
            *(line for remark in self.remarks for line in wrap(remark)),
            "",
        ]


def wrap(remark: str) -> list[str]:
    """A remark as indented lines; one that begins with a space holds numbers in columns and is not wrapped."""
    if remark.startswith(" "):
        return [f"    {remark}"]
    return textwrap.wrap(remark, WIDTH, initial_indent="    ", subsequent_indent="    ")


class Block:
    """The checks of one layer, in the order in which they are added."""

    def __init__(self, layer: str, hand: Values, framework: Values) -> None:
        self.layer, self.hand, self.framework = layer, hand, framework
        self.checks: list[Check] = []

    def add(
        self,
        what: str,
        key: str,
        place: tuple[int, ...],
        notes: str,
        formulas: list[str],
        *remarks: str,
        unit: str = "",
    ) -> None:
        """Compare what both passes call ``key``; give ``unit`` if the number's name is not "dL/dW[place]"."""
        by_hand, framework = np.array(self.hand[key], np.float64), self.framework[key]
        if by_hand.shape != framework.shape:
            raise ValueError(f"{key} has the shape {by_hand.shape} by hand, and {framework.shape} by the framework")
        _, symbol = key.split(".")
        symbol = f"dL/{symbol}" if symbol.startswith("d") else symbol
        unit = unit or f"{symbol}[{','.join(map(str, place))}]"
        self.checks.append(
            Check(self.layer, what, notes, formulas, unit, place, by_hand, framework, list(remarks)),
        )


INPUT, WEIGHTS, BIASES = (f"gradient w.r.t. the {what}" for what in ("input", "weights", "biases"))
RIGHT, MISSING = "right in the notes", "missing from the notes"


def check_convolution(layer: str, k: str, n: str, kernel: int, hand: Values, framework: Values) -> list[Check]:
    """C1 or C3; k and n are the notes' letters for its maps, ``kernel`` is the number of the kernel that is shown."""
    block = Block(layer, hand, framework)
    out, source = (C1_PAIRS if layer == "C1" else C3_PAIRS)[kernel]
    W, dnet = hand[f"{layer}.W"], hand[f"{layer}.dnet"]
    x = y = len(hand[f"{layer}.dI"][0]) // 2  # a pixel in the middle, over which there are 25 windows

    def notes(i: int, j: int, p: int, q: int) -> float:
        return notes_conv_input_gradient(W, dnet, source, i, j, p, q)

    windows = {(p, q): notes(x - p, y - q, p, q) for p in range(5) for q in range(5)}
    block.add(
        "forward",
        f"{layer}.O",
        (out, x - 2, y - 2),
        RIGHT,
        [f"O[{k},i,j] = sigma(net[{k},i,j]),   net[{k},i,j] = b[{k}] + sum_{n}pq W[{k},{n},p,q] I[{n},i+p,j+q]"],
    )
    block.add(
        INPUT,
        f"{layer}.dI",
        (source, x, y),
        "incomplete: sum over p, q",
        [
            f"notes:  dL/dI[{n},i+p,j+q] = sum_{k} dL/dO[{k},i,j] W[{k},{n},p,q] sigma'(net[{k},i,j])",
            f"right:  dL/dI[{n},x,y] = sum_{k}pq dL/dO[{k},x-p,y-q] W[{k},{n},p,q] sigma'(net[{k},x-p,y-q])",
        ],
        f"Pixel x = i+p, y = j+q lies under up to 25 windows, one for each p and q, and each map {k} has a unit for "
        "every window. Their gradients add up, over all p and q for which (x-p, y-q) is in the map. The notes' "
        f"formula is the gradient from a single window, and differs with p and q. For I[{source},{x},{y}] it gives:",
        *(f"  p = {p}, q = {p}     notes   {windows[p, p]:+.12e}" for p in range(5)),
        f"  all 25 added             {sum(windows.values()):+.12e}",
        "(It is right as an instruction: for all i, j, p and q, add this to dL/dI at i+p, j+q. As an equation it holds "
        "only at the four corners, which lie under a single window:)",
        f"  dL/dI[{source},0,0]     notes   {notes(0, 0, 0, 0):+.12e}    "
        f"framework {framework[f'{layer}.dI'][source, 0, 0]:+.12e}",
    )
    block.add(
        WEIGHTS,
        f"{layer}.dW",
        (kernel, 1, 3),
        RIGHT,
        [f"dL/dW[{k},{n},p,q] = sum_ij dL/dO[{k},i,j] I[{n},i+p,j+q] sigma'(net[{k},i,j])"],
        unit=f"dL/dW[{out},{source},1,3]",
    )
    block.add(
        BIASES,
        f"{layer}.db",
        (out,),
        MISSING,
        [f"dL/db[{k}] = sum_ij dL/dO[{k},i,j] sigma'(net[{k},i,j])"],
        "All units of a map share one bias, and dnet/db is 1.",
    )
    return block.checks


def check_c1(hand: Values, framework: Values) -> list[Check]:
    forward, inputs, weights, biases = check_convolution("C1", "l", "m", 2, hand, framework)
    forward.remarks += [
        "m has only one value, since the image is one map. The kernel is not flipped: in mathematics this is called "
        "cross-correlation."
    ]
    inputs.remarks += ["(Training does not need this one: pixels are not learned.)"]
    return [forward, inputs, weights, biases]


def check_c3(hand: Values, framework: Values) -> list[Check]:
    """Like C1, with remarks on connecting only some pairs of maps."""
    forward, inputs, weights, biases = check_convolution("C3", "k", "n", 20, hand, framework)
    forward.notes = "right over the connected maps n"
    forward.remarks += [
        "n runs over the maps of S2 that map k sees. Table I of the paper has 60 of the 96 pairs: 60 kernels and 16 "
        "biases, 1,516 parameters. The 2,416 of the notes are those of today's C3, in which every map sees all six."
    ]
    inputs.notes = "incomplete: sum over p, q, and connected k only"
    inputs.remarks += ["k runs over the maps that see map n: ten for each n."]
    unconnected = conv_weight_gradient([(0, 3)], hand["C3.dnet"], hand["S2.O"])[0, 3]
    weights.notes = "right for connected maps k, n"
    weights.remarks += [
        "Where k does not see n there is no weight. A weight that starts at 0 is no substitute: the formula has a "
        "gradient for it, too, and the first step would connect the two maps.",
        f"  dL/dW[0,3,1,3]   formula {unconnected[1][3]:+.12e}    framework has no such weight",
    ]
    return [forward, inputs, weights, biases]


def check_subsampling(layer: str, k: int, hand: Values, framework: Values) -> list[Check]:
    """S2 or S4 as they were in 1998; k is the map that is shown."""
    block = Block(layer, hand, framework)
    count, i = len(hand[f"{layer}.O"]), len(hand[f"{layer}.O"][0]) // 2
    no_index = "right, except for the index of the map"
    block.add(
        "forward",
        f"{layer}.O",
        (k, i, i - 1),
        no_index,
        [
            "notes:  O[i,j] = sigma(b + sum_pq W I[2i+p,2j+q])",
            "right:  O[k,i,j] = sigma(net[k,i,j]),   net[k,i,j] = b[k] + W[k] sum_pq I[k,2i+p,2j+q]",
        ],
        f"Each map has its own coefficient and bias, {2 * count} parameters in all. (The notes have W and b in "
        "the formula but 0 parameters in their table, which is right only for averages.) W does not depend on p and "
        "q, so it can stand before the sum.",
    )
    block.add(
        INPUT,
        f"{layer}.dI",
        (k, 2 * i, 2 * i - 1),
        no_index,
        ["dL/dI[k,2i+p,2j+q] = dL/dO[k,i,j] W[k] sigma'(net[k,i,j])"],
        "No sum is missing here: windows do not overlap, so each pixel is used once.",
    )
    block.add(
        WEIGHTS,
        f"{layer}.dW",
        (k,),
        MISSING,
        ["dL/dW[k] = sum_ij dL/dO[k,i,j] sigma'(net[k,i,j]) sum_pq I[k,2i+p,2j+q]"],
        "All units of a map share the coefficient, and dnet/dW is sum_pq I.",
    )
    block.add(BIASES, f"{layer}.db", (k,), MISSING, ["dL/db[k] = sum_ij dL/dO[k,i,j] sigma'(net[k,i,j])"])
    return block.checks


def check_average(hand: Values, framework: Values) -> list[Check]:
    """S2 as it is built today."""
    block = Block("S2 average", hand, framework)
    O, dO = hand["average.O"][2][7][6], hand["C3.dI"][2][7][6]
    block.add(
        "forward",
        "average.O",
        (2, 7, 6),
        "right with W = 1/4 and b = 0, without sigma",
        ["O[k,i,j] = 1/4 sum_pq I[k,2i+p,2j+q]"],
        'The notes call S2 "average pooling". Then the factor is 1/4, nothing is learned, and today no sigma follows; '
        "that of C1 is enough (models/lenet5.py). With the notes' sigma it would be:",
        f"  with sigma               {sigma(O):+.12e}",
    )
    block.add(
        INPUT,
        "average.dI",
        (2, 14, 13),
        "right with W = 1/4, without sigma'",
        ["dL/dI[k,2i+p,2j+q] = 1/4 dL/dO[k,i,j]"],
        "I and dL/dO are those of the S2 above. With the notes' sigma' it would be:",
        f"  with sigma'              {dO * sigma_slope(sigma(O)) / 4:+.12e}",
    )
    return block.checks


def check_full(layer: str, i: int, j: int, hand: Values, framework: Values) -> list[Check]:
    """C5 or F6; input i and unit j are shown."""
    block = Block(layer, hand, framework)
    notes = notes_full_weight_gradient(hand[f"{layer}.dnet"], hand["flat" if layer == "C5" else "C5.O"], i)
    weights = framework[f"{layer}.dW"]
    block.add(
        "forward",
        f"{layer}.O",
        (j,),
        RIGHT,
        ["O[j] = sigma(net[j]),   net[j] = b[j] + sum_i W[i,j] I[i]"],
        "Mind the order: W[i,j] leads from i to j. In C1 and C3 the index of the output comes first.",
    )
    block.add(INPUT, f"{layer}.dI", (i,), RIGHT, ["dL/dI[i] = sum_j dL/dO[j] W[i,j] sigma'(net[j])"])
    block.add(
        WEIGHTS,
        f"{layer}.dW",
        (i, j),
        "wrong: a sum too many",
        [
            "notes:  dL/dW[i,j] = sum_j dL/dO[j] I[i] sigma'(net[j])",
            "right:  dL/dW[i,j] = dL/dO[j] I[i] sigma'(net[j])",
        ],
        "W[i,j] leads only to unit j, so there is nothing to add up. With the sum, nothing on the right "
        "depends on j, and all units get the same gradient:",
        *(
            f"  {f'dL/dW[{i},{unit}]':<16} notes   {notes:+.12e}    framework {weights[i, unit]:+.12e}"
            for unit in (j, j + 1)
        ),
    )
    block.add(BIASES, f"{layer}.db", (j,), MISSING, ["dL/db[j] = dL/dO[j] sigma'(net[j])"])
    return block.checks


def check_c5(hand: Values, framework: Values) -> list[Check]:
    forward, *gradients = check_full("C5", 212, 33, hand, framework)
    forward.remarks += [
        "C5 is a convolution, and the framework computes one, but its 5 x 5 kernels cover the 5 x 5 maps of S4. With "
        "only one window, its 400 inputs can be numbered i = 25 n + 5 p + q: W[i,j] is W[j,n,p,q]."
    ]
    return [forward, *gradients]


def check_output(k: int, hand: Values, framework: Values) -> list[Check]:
    """Logits, softmax and loss; k is the class that is shown, that of the digit."""
    block = Block("OUTPUT", hand, framework)
    plain = f"  O[{k}] - y[{k}]              {hand['OUTPUT.O'][k] - 1:+.12e}"
    block.add(
        "forward, logits",
        "OUTPUT.z",
        (k,),
        MISSING,
        ["z[k] = b[k] + sum_j W[j,k] F6[j]"],
        "The notes do not say what z is: a full layer on the outputs of F6, without sigma.",
    )
    block.add(
        "forward, softmax",
        "OUTPUT.O",
        (k,),
        RIGHT,
        ["O[k] = e^z[k] / sum_k' e^z[k']"],
        "(The LeNet-5 of 1998 has the distances of F6 from ten fixed codes instead.)",
    )
    block.add(
        "loss",
        "OUTPUT.L",
        (),
        MISSING,
        ["L = - sum_k y[k] log O[k]"],
        "The notes name no loss; what they say about its gradient holds for the cross-entropy.",
        unit="L",
    )
    block.add(
        "gradient w.r.t. the logits",
        "OUTPUT.dz",
        (k,),
        "right for cross-entropy, under a wrong name",
        ["dL/dz[k] = O[k] - y[k]"],
        f'The notes call it "gradient w.r.t. output of F6", but it is w.r.t. z: {len(hand["OUTPUT.dz"])} numbers, '
        f"while F6 has {len(hand['F6.O'])} outputs. It holds under two conditions, which the next two checks drop:",
    )
    block.add(
        "   where y does not sum to 1",
        "two labels.dz",
        (k,),
        "not in the notes",
        ["dL/dz[k] = s O[k] - y[k],   s = sum_k' y[k']"],
        f"Here y is 1 for the classes {k} and {(k + 1) % 10}, so s = 2. (Probabilities, which the notes ask for, have "
        "s = 1.) Then the notes' formula gives something else:",
        plain,
    )
    block.add(
        "   where L = 1/2 sum_k (O[k] - y[k])^2",
        "squares.dz",
        (k,),
        "not in the notes",
        ["dL/dz[k] = O[k] ( O[k] - y[k] - sum_k' (O[k'] - y[k']) O[k'] )"],
        "O - y is this loss's gradient w.r.t. O, which still has to pass through the softmax:",
        plain,
    )
    block.add(
        "gradient w.r.t. the output of F6",
        "OUTPUT.dI",
        (5,),
        MISSING,
        ["dL/dF6[j] = sum_k (O[k] - y[k]) W[j,k]"],
        "This is what F6 takes as its dL/dO.",
        unit="dL/dF6[5]",
    )
    block.add(WEIGHTS, "OUTPUT.dW", (5, k), MISSING, ["dL/dW[j,k] = (O[k] - y[k]) F6[j]"])
    block.add(BIASES, "OUTPUT.db", (k,), MISSING, ["dL/db[k] = O[k] - y[k]"])
    return block.checks


TITLES = {
    "C1": "convolution, 1 map of 32 x 32 to 6 maps of 28 x 28",
    "S2": "trainable subsampling, 6 maps of 28 x 28 to 6 of 14 x 14",
    "S2 average": "the same without parameters, as built today; not part of this network",
    "C3": "convolution by Table I, 6 maps of 14 x 14 to 16 of 10 x 10",
    "S4": "trainable subsampling, 16 maps of 10 x 10 to 16 of 5 x 5",
    "C5": "convolution, 16 maps of 5 x 5 to 120 units",
    "F6": "full layer, 120 to 84 units",
    "OUTPUT": "full layer, 84 to 10 logits, softmax and cross-entropy",
}
PREFACE = (
    "I is a layer's input, O its output, L the loss, and net, which the notes do not define, is what sigma is applied "
    "to. dL/dI of a layer is dL/dO of the layer before. sigma is tanh, as in the notes, so that sigma'(net) = 1 - O^2; "
    "the paper has A tanh(S net), with the slope S/A (A^2 - O^2). sum_kpq adds over k, p and q. All indices begin at "
    "0; p and q end at 4 in a convolution, at 1 in subsampling."
)


def check_all(label: int, hand: Values, framework: Values) -> list[Check]:
    """The checks of every layer, from the first layer to the last."""
    return [
        *check_c1(hand, framework),
        *check_subsampling("S2", 2, hand, framework),
        *check_average(hand, framework),
        *check_c3(hand, framework),
        *check_subsampling("S4", 9, hand, framework),
        *check_c5(hand, framework),
        *check_full("F6", 33, 5, hand, framework),
        *check_output(label, hand, framework),
    ]


def heading(title: str) -> list[str]:
    return ["=" * WIDTH, title, "=" * WIDTH, ""]


def blocks(checks: list[Check]) -> list[str]:
    """A block of lines for each layer."""
    lines = []
    for layer, title in TITLES.items():
        lines += heading(f"{layer}: {title}")
        lines += [line for check in checks if check.layer == layer for line in check.lines()]
    return lines


def parameter_table(network: Network) -> list[str]:
    """The number of parameters of each layer, next to the notes' table."""
    notes = {"C1": 156, "S2": 0, "C3": 2416, "S4": 0, "C5": 48120, "F6": 10164, "OUTPUT": 850}
    remarks = {"S2": "0 for averages", "C3": "60 kernels by Table I, not all 96", "S4": "0 for averages"}
    here = {layer: sum(p.size for p in getattr(network, layer.lower()).parameters()) for layer in CHAIN}
    rows = [f"{layer:<8}{here[layer]:>8,}{notes[layer]:>12,}    {remarks.get(layer, '')}".rstrip() for layer in CHAIN]
    total = f"{'total':<8}{sum(here.values()):>8,}{sum(notes.values()):>12,}"
    return [*heading("Parameters"), f"{'':<8}{'here':>8}{'the notes':>12}", *rows, total, ""]


def summary(checks: list[Check]) -> list[str]:
    """A line for each check."""
    rows = [f"{check.layer:<12}{check.what:<40}{check.notes:<48}{check.difference():>10.1e}" for check in checks]
    return [*heading("Summary: the formula in the notes, and the difference between hand and framework"), *rows, ""]


def first_fault(checks: list[Check]) -> Check | None:
    """The first failing check in the order of computation, since later ones inherit its error; None if all agree."""
    forward = [check for check in checks if check.is_forward()]
    backward = [
        check for layer in reversed(TITLES) for check in checks if check.layer == layer and not check.is_forward()
    ]
    return next((check for check in forward + backward if not check.agrees()), None)


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m examples.by_hand",
        description="Take one digit through LeNet-5, forwards and backwards, by formulas in plain Python and by the "
        "framework, and print both. The exit status is 1 if they differ.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--digit", type=int, default=0, metavar="N", help="which of the package's test images, from 0")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="seed of the weights")
    args = parser.parse_args(words)
    images, labels = data.digits("test")
    if not 0 <= args.digit < len(images):
        raise ValueError(f"--digit is {args.digit}; expected 0 to {len(images) - 1}, the number of a test image")
    if args.seed < 0:
        raise ValueError(f"--seed is {args.seed}; expected at least 0")

    image = data.to_input(images[args.digit : args.digit + 1])[0, 0].astype(np.float64)
    label = int(labels[args.digit])
    y = np.eye(10)[label]
    network = Network(args.seed)
    checks = check_all(label, walk_by_hand(network, image, y), walk_by_framework(network, image, y))
    lines = [
        f"LeNet-5 by hand and by the framework, in float64: test image {args.digit}, a {label}, and random weights of "
        f"seed {args.seed}",
        "",
        *textwrap.wrap(PREFACE, WIDTH),
        "",
        *blocks(checks),
        *parameter_table(network),
        *summary(checks),
        f"{sum(check.agrees() for check in checks)} of {len(checks)} agree to {LIMIT:.0e} of the largest value.",
    ]
    print("\n".join(lines), flush=True)
    fault = first_fault(checks)
    if fault is not None:
        sys.exit(
            f"by_hand: {fault.layer}, {fault.what.strip()}: formula and framework differ by "
            f"{fault.difference():.1e} of the largest value; expected at most {LIMIT:.0e}"
        )


if __name__ == "__main__":
    programs.run(main)
