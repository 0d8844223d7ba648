"""LeNet-5 by hand, formula by formula: `python -m examples.by_hand --layer C1` shows one layer.

Each formula is computed once in plain Python, as a sum over indices, and once by the framework, and both have to agree.
The formulas are those of the notes "In-depth LeNet-5 Tutorial with Detailed Layer-by-Layer Computations", corrected. A
layer gets its input and the gradient of its output from the framework. Since these are the output of the layer before
and the input's gradient of the layer after, which are compared too, all of the backward pass is checked.
"""

# I and O are what the formulas call the input and the output of a layer:
# ruff: noqa: E741, E743, N815

from examples import programs

if __name__ == "__main__":
    programs.begin()

import argparse
import sys
import textwrap
from collections.abc import Callable, Sequence
from math import exp, log, tanh
from typing import Any, NamedTuple

import numpy as np

from models.lenet5_1998 import TABLE_I, count_connections
from tinygrad_lenet import Tensor, data, grad, nn
from tinygrad_lenet import functional as F

LIMIT = 1e-10  # allowed difference, relative to the largest value: rounding is far below, a wrong formula far above
PREFACE = """Notes: "In-depth LeNet-5 Tutorial with Detailed Layer-by-Layer Computations",
whose formulas are computed here, and corrected where they are wrong.
I: a layer's input, O: its output, L: the loss, net: what sigma = tanh is
applied to, dnet: dL/dO sigma'(net), with sigma'(net) = 1 - O^2. sum_pq adds
over p and q. Indices begin at 0. dL/dI is dL/dO of the layer before."""
KERNEL = [(p, q) for p in range(5) for q in range(5)]


def each(shape: tuple[int, ...], formula: Callable[..., float]) -> np.ndarray:
    """The array whose element at [i, j, ...] is formula(i, j, ...)."""
    return np.array([formula(*index) for index in np.ndindex(*shape)]).reshape(shape)


def check(formula: str, by_hand: Any, framework: Any) -> None:
    """Print a formula and the largest of its values; AssertionError if the framework has others."""
    hand, other = np.asarray(by_hand, np.float64), np.asarray(framework, np.float64)
    if hand.shape != other.shape:
        raise AssertionError(f"{formula}: the shape is {hand.shape} by hand and {other.shape} by the framework")
    difference, largest = np.abs(hand - other).max(), np.abs(other).max()
    if not difference <= LIMIT * largest:
        raise AssertionError(f"{formula}: off by {difference:.1e}, where the largest value is {largest:.1e}")
    size = f"{hand.size:,} values, up to " if hand.size > 1 else ""
    print(f"{formula}\n    {size}{largest:,.8g}; difference {difference:.0e}")


def say(text: str) -> None:
    print(textwrap.fill(" ".join(text.split()), 80, initial_indent="    ", subsequent_indent="    "))


# What the framework has


class Layer(NamedTuple):
    """A layer's input, weights, biases and output, the loss's gradients with respect to them, and its connections."""

    I: Any
    W: Any
    b: Any
    O: Any
    dI: Any
    dW: Any
    db: Any
    dO: Any
    connections: int

    @property
    def dnet(self) -> Any:
        return self.dO * (1 - self.O**2)

    @property
    def parameters(self) -> int:
        return int(self.W.size + self.b.size)


def build(seed: int, dtype: Any) -> dict[str, nn.Conv2d | nn.Subsample2d | nn.Linear]:
    """The notes' LeNet-5 with random weights: trainable subsampling, C3 connected by Table I, softmax at the end."""
    rng = np.random.default_rng(seed)
    network: dict[str, nn.Conv2d | nn.Subsample2d | nn.Linear] = {
        "C1": nn.Conv2d(1, 6, kernel_size=5, rng=rng, dtype=dtype),
        "S2": nn.Subsample2d(6, kernel_size=2, dtype=dtype),
        "C3": nn.Conv2d(6, 16, kernel_size=5, connections=TABLE_I, rng=rng, dtype=dtype),
        "S4": nn.Subsample2d(16, kernel_size=2, dtype=dtype),
        "C5": nn.Conv2d(16, 120, kernel_size=5, rng=rng, dtype=dtype),
        "F6": nn.Linear(120, 84, rng=rng, dtype=dtype),
        "OUTPUT": nn.Linear(84, 10, rng=rng, dtype=dtype),
    }
    for layer in network.values():
        if isinstance(layer, nn.Subsample2d):  # all maps begin alike, and could be taken for each other
            layer.weight.data[...] = rng.uniform(0.2, 0.6, layer.channels)
            layer.bias.data[...] = rng.uniform(-0.1, 0.1, layer.channels)
    return network


def by_framework(seed: int, image: np.ndarray, label: int) -> dict[str, Layer]:
    """Every layer, after a forward and a backward pass on image[32 32], with cross-entropy as the loss."""
    network = build(seed, np.float64)
    x = Tensor(image[None, None], requires_grad=True)
    tensors: list[Tensor] = []
    for name, layer in network.items():
        I = x.reshape(1, 120) if name == "F6" else x
        x = layer(I) if name == "OUTPUT" else layer(I).tanh()
        tensors += [I, *layer.parameters(), x]
    gradients = grad(F.cross_entropy(x, [label]), tensors)
    *first, f6, output = build(seed, np.float32).values()
    connections = count_connections(nn.Sequential(*first, nn.Flatten(), f6, output)).values()

    def arrays(name: str, values: Sequence[Tensor]) -> tuple[Any, Any, Any, Any]:
        """I, W, b and O in the formulas' shapes."""
        I, W, b, O = (value.numpy() for value in values)
        if name in ("C5", "F6", "OUTPUT"):
            return I.reshape(-1), W.reshape(len(b), -1).T, b, O.reshape(-1)
        return I[0], W.reshape(-1, 5, 5) if name[0] == "C" else W, b, O[0]

    return {
        name: Layer(*arrays(name, tensors[k : k + 4]), *arrays(name, gradients[k : k + 4]), connections=count)
        for k, name, count in zip(range(0, 28, 4), network, connections, strict=True)
    }


# C1 and C3: convolution


def convolution(layer: Layer, sees: Sequence[Sequence[int]]) -> None:
    """sees[k] lists the maps of the input that map k sees."""
    pairs = [(k, n) for k, inputs in enumerate(sees) for n in inputs]
    seen_by = [[k for k, inputs in enumerate(sees) if n in inputs] for n in range(len(layer.I))]
    I, b, dnet, W = layer.I.tolist(), layer.b, layer.dnet.tolist(), dict(zip(pairs, layer.W.tolist(), strict=True))
    rows = len(dnet[0])
    units = [(i, j) for i in range(rows) for j in range(rows)]

    parameters = sum(25 * len(inputs) + 1 for inputs in sees)
    check("parameters = sum_k (25 for each n that k sees, and 1)", parameters, layer.parameters)
    check("connections = as many for each of the i, j", len(units) * parameters, layer.connections)

    def O(k: int, i: int, j: int) -> float:
        return tanh(b[k] + sum(W[k, n][p][q] * I[n][i + p][j + q] for n in sees[k] for p, q in KERNEL))

    check("O[k,i,j] = sigma(b[k] + sum_npq W[k,n,p,q] I[n,i+p,j+q])", each(layer.O.shape, O), layer.O)
    say("Right in the notes, for n that k sees. (Not flipped: a cross-correlation.)")

    def windows(n: int, x: int, y: int) -> list[float]:
        """The notes' sum_k dnet[k,i,j] W[k,n,p,q], for each p, q that have x = i+p, y = j+q."""
        inside = [(p, q) for p, q in KERNEL if 0 <= x - p < rows and 0 <= y - q < rows]
        return [sum(dnet[k][x - p][y - q] * W[k, n][p][q] for k in seen_by[n]) for p, q in inside]

    dI = each(layer.I.shape, lambda n, x, y: sum(windows(n, x, y)))
    check("dL/dI[n,x,y] = sum_kpq dnet[k,x-p,y-q] W[k,n,p,q]", dI, layer.dI)
    x = len(I[0]) // 2
    shares = windows(0, x, x)
    single = sum(len(windows(0, *pixel)) == 1 for pixel in np.ndindex(layer.I[0].shape))
    say(f"""Incomplete in the notes: dL/dI[n,i+p,j+q] = sum_k dnet[k,i,j] W[k,n,p,q] is the share of one window. Pixel
        [0,{x},{x}] is in {len(shares)}, whose shares {shares[0]:+.4e}, {shares[1]:+.4e}, ... add up to
        {sum(shares):+.4e}. (Right as an instruction, += for all i, j, p, q; as an equation at {single} pixels of a map,
        the corners.)""")

    def dW(pair: int, p: int, q: int) -> float:
        k, n = pairs[pair]
        return sum(dnet[k][i][j] * I[n][i + p][j + q] for i, j in units)

    check("dL/dW[k,n,p,q] = sum_ij dnet[k,i,j] I[n,i+p,j+q]", each(layer.dW.shape, dW), layer.dW)
    say("Right in the notes, for n that k sees.")
    map_biases(layer)


def map_biases(layer: Layer) -> None:
    maps, rows, columns = layer.dnet.shape
    db = each((maps,), lambda k: sum(layer.dnet[k, i, j] for i in range(rows) for j in range(columns)))
    check("dL/db[k] = sum_ij dnet[k,i,j]", db, layer.db)
    say("Missing from the notes. All units of a map share its bias.")


def c1(layer: Layer, label: int) -> None:
    say("The notes call k and n of this layer l and m, and rightly have 156 parameters. Training has no use for dL/dI.")
    convolution(layer, ((0,),) * 6)


def c3(layer: Layer, label: int) -> None:
    say("The notes have 2,416 parameters, for 96 pairs k, n. Table I has 60 of these.")
    convolution(layer, TABLE_I)
    unconnected = sum(layer.dnet[0, i, j] * layer.I[3, i, j] for i in range(10) for j in range(10))
    say(f"No weight joins k = 0 and n = 3. One that is only 0 would learn: dL/dW[0,3,0,0] is {unconnected:+.4e}.")


# S2 and S4: subsampling


def s4(layer: Layer, label: int) -> None:
    I, W, b, dnet = layer.I.tolist(), layer.W, layer.b, layer.dnet.tolist()
    maps, rows, _ = layer.O.shape
    units = [(i, j) for i in range(rows) for j in range(rows)]

    def total(k: int, i: int, j: int) -> float:
        return sum(I[k][2 * i + p][2 * j + q] for p in range(2) for q in range(2))

    check("parameters = 2 for each k", 2 * maps, layer.parameters)
    say("0 in the notes, which is right only for averages; their formulas have W and b.")
    check("connections = 4 + 1 for each k, i, j", (4 + 1) * maps * len(units), layer.connections)
    O = each(layer.O.shape, lambda k, i, j: tanh(b[k] + W[k] * total(k, i, j)))
    check("O[k,i,j] = sigma(b[k] + W[k] sum_pq I[k,2i+p,2j+q])", O, layer.O)
    say("Right in the notes, except that each map has its own W and b.")
    dI = each(layer.I.shape, lambda k, x, y: dnet[k][x // 2][y // 2] * W[k])
    check("dL/dI[k,2i+p,2j+q] = dnet[k,i,j] W[k]", dI, layer.dI)
    say("Right but for k. No sum is missing: windows do not overlap.")
    dW = each((maps,), lambda k: sum(dnet[k][i][j] * total(k, i, j) for i, j in units))
    check("dL/dW[k] = sum_ij dnet[k,i,j] sum_pq I[k,2i+p,2j+q]", dW, layer.dW)
    say("Missing from the notes.")
    map_biases(layer)


def s2(layer: Layer, label: int) -> None:
    s4(layer, label)
    I = Tensor(layer.I[None], requires_grad=True)
    pooled = F.avg_pool2d(I, 2)
    (dI,) = grad(pooled, [I], layer.dO[None])
    O = each(layer.O.shape, lambda k, i, j: sum(layer.I[k, 2 * i + p, 2 * j + q] for p in (0, 1) for q in (0, 1)) / 4)
    check("Today's average: O[k,i,j] = 1/4 sum_pq I[k,2i+p,2j+q]", O, pooled.numpy()[0])
    say(f"Has no parameters and no sigma: with it {O[2, 7, 6]:+.4e} would be {tanh(O[2, 7, 6]):+.4e}.")
    expected = each(layer.I.shape, lambda k, x, y: layer.dO[k, x // 2, y // 2] / 4)
    check("Its dL/dI[k,2i+p,2j+q] = 1/4 dL/dO[k,i,j], without sigma'", expected, dI.numpy()[0])


# C5, F6 and the output: full layers


def net(layer: Layer) -> list[float]:
    (before, after), W, I = layer.W.shape, layer.W.tolist(), layer.I
    return [layer.b[j] + sum(W[i][j] * I[i] for i in range(before)) for j in range(after)]


def full(layer: Layer, dnet: Sequence[float]) -> None:
    """Everything but the output of a layer with weights W[i,j] from input i to unit j."""
    (before, after), W, I = layer.W.shape, layer.W.tolist(), layer.I
    check("parameters = (1 for each i, and 1) for each j", (before + 1) * after, layer.parameters)
    check("connections = parameters", (before + 1) * after, layer.connections)
    dI = [sum(dnet[j] * W[i][j] for j in range(after)) for i in range(before)]
    check("dL/dI[i] = sum_j dnet[j] W[i,j]", dI, layer.dI)
    check("dL/dW[i,j] = dnet[j] I[i]", [[dnet[j] * I[i] for j in range(after)] for i in range(before)], layer.dW)
    check("dL/db[j] = dnet[j]", dnet, layer.db)


def hidden(layer: Layer, label: int) -> None:
    check("O[j] = sigma(b[j] + sum_i W[i,j] I[i])", [tanh(value) for value in net(layer)], layer.O)
    full(layer, layer.dnet.tolist())
    i, j = np.unravel_index(np.abs(layer.dW).argmax(), layer.dW.shape)
    other = (j + 1) % len(layer.b)
    say(f"""The notes lack dL/db, and have a sum too many in dL/dW[i,j] = sum_j dnet[j] I[i], which is the same for all
        j: {sum(layer.dnet) * layer.I[i]:+.4e} for i = {i}. But W[i,j] leads to unit j alone: {layer.dW[i, j]:+.4e} for
        j = {j}, {layer.dW[i, other]:+.4e} for j = {other}. The rest is right.""")


def c5(layer: Layer, label: int) -> None:
    say("""A convolution whose kernels cover the maps of S4. Input i = 25 n + 5 p + q is pixel p, q of map n; W[i,j] is
        W[j,n,p,q]. (Mind the order: here W[i,j] leads from i to j; in C1 and C3 the output comes first.)""")
    hidden(layer, label)


def f6(layer: Layer, label: int) -> None:
    hidden(layer, label)
    A, S = 1.7159, 2 / 3
    x = Tensor(net(layer), requires_grad=True, dtype=np.float64)
    O = F.scaled_tanh(x)
    (slope,) = grad(O.sum(), [x])
    check("The paper's A tanh(S net) has sigma'(net) = S/A (A^2 - O^2)", S / A * (A**2 - O.numpy() ** 2), slope.numpy())


def output(layer: Layer, label: int) -> None:
    z, y = net(layer), [float(k == label) for k in range(10)]
    logits = Tensor([z], requires_grad=True, dtype=np.float64)
    e = [exp(z[k] - max(z)) for k in range(10)]  # max(z) cancels out, and keeps e^z from overflowing
    O = [e[k] / sum(e) for k in range(10)]
    check("z[j] = b[j] + sum_i W[i,j] I[i]", z, layer.O)
    check("O[k] = e^z[k] / sum_k' e^z[k']", O, F.softmax(logits).numpy()[0])
    check(
        "L = - sum_k y[k] log O[k]", -sum(y[k] * log(O[k]) for k in range(10)), F.cross_entropy(logits, [label]).item()
    )
    dz = [O[k] - y[k] for k in range(10)]
    check("dL/dz[k] = O[k] - y[k]; there is no sigma, so this is dnet", dz, layer.dO)
    full(layer, dz)
    say(f"""The notes have only O (1998 had distances to codes) and O - y, "w.r.t. output of F6". That is dL/dI, with 84
        numbers. And O - y, {dz[label]:+.4e} for k = {label}, is right only for this L and sum_k y[k] = 1:""")
    two = [y[k] + y[k - 1] for k in range(10)]  # 1 for the label and for the class after it
    (gradient,) = grad(F.cross_entropy(logits, np.array([two])), [logits])
    check(
        "dL/dz[k] = s O[k] - y[k], where s = sum_k' y[k'] is 2",
        [2 * O[k] - two[k] for k in range(10)],
        gradient.numpy()[0],
    )
    (gradient,) = grad(0.5 * ((F.softmax(logits) - np.array(y)) ** 2).sum(), [logits])
    mean = sum((O[k] - y[k]) * O[k] for k in range(10))
    squares = [O[k] * (O[k] - y[k] - mean) for k in range(10)]
    check("dL/dz[k] = O[k] (O[k]-y[k] - sum_k' (O[k']-y[k']) O[k']), if L = 1/2 |O-y|^2", squares, gradient.numpy()[0])


# The program

SECTIONS: dict[str, tuple[str, Callable[[Layer, int], None]]] = {
    "C1": ("convolution, 1 map of 32 x 32 to 6 of 28 x 28", c1),
    "S2": ("trainable subsampling, 6 maps of 28 x 28 to 6 of 14 x 14", s2),
    "C3": ("convolution by Table I, 6 maps of 14 x 14 to 16 of 10 x 10", c3),
    "S4": ("trainable subsampling, 16 maps of 10 x 10 to 16 of 5 x 5", s4),
    "C5": ("convolution, 16 maps of 5 x 5 to 120 units", c5),
    "F6": ("full layer, 120 to 84 units", f6),
    "OUTPUT": ("full layer, 84 to 10 logits z, softmax and cross-entropy", output),
}


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m examples.by_hand",
        description="Compute LeNet-5's layers on one digit, forward and backward, by formulas in plain Python and by "
        "the framework. The exit status is 1 if they differ.",
        formatter_class=programs.Help,
    )
    parser.add_argument("--layer", choices=SECTIONS, help="only this layer (default: all)")
    parser.add_argument("--digit", type=int, default=0, metavar="N", help="which of the package's test images, from 0")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="seed of the weights")
    args = parser.parse_args(words)
    images, labels = data.digits("test")
    if not 0 <= args.digit < len(images):
        raise ValueError(f"--digit is {args.digit}; expected 0 to {len(images) - 1}, the number of a test image")
    if args.seed < 0:
        raise ValueError(f"--seed is {args.seed}; expected at least 0")
    label = int(labels[args.digit])
    image = data.to_input(images[args.digit : args.digit + 1])[0, 0].astype(np.float64)
    layers = by_framework(args.seed, image, label)
    print(PREFACE)
    for name in [args.layer] if args.layer else SECTIONS:
        title, section = SECTIONS[name]
        print(f"\n{name}: {title}")
        try:
            section(layers[name], label)
        except AssertionError as error:
            sys.exit(f"by_hand: {name}, {error}")
    if not args.layer:
        total = sum(layer.parameters for layer in layers.values())
        print(f"\n{total:,} parameters; the notes have {156 + 2416 + 48120 + 10164 + 850:,}, without Table I, W and b.")


if __name__ == "__main__":
    programs.run(main)
