"""LeNet-5 as it was published: LeCun, Bottou, Bengio, Haffner, Gradient-Based Learning Applied to Document Recognition,
Proceedings of the IEEE 86(11), 1998, Section II.B.

================  =============  ==========  ===========
layer             output         parameters  connections
================  =============  ==========  ===========
input             1 x 32 x 32
C1 convolution    6 x 28 x 28           156      122,304
S2 subsampling    6 x 14 x 14            12        5,880
C3 convolution    16 x 10 x 10        1,516      151,600
S4 subsampling    16 x 5 x 5             32        2,000
C5 convolution    120 x 1 x 1        48,120       48,120
F6 full           84                 10,164       10,164
OUTPUT RBF        10                      0          840
total                            60,000      340,908
================  =============  ==========  ===========

What the paper leaves open or states in two ways, and what is done here (examples/results/README.md has the reasons):

- S2 and S4 average their four inputs (Section II.A) or add them (II.B). Here the coefficients multiply the mean and
  start at 1, the biases at 0: with the recipe's curvatures this gives the rates that the paper quotes.
- Weights start uniform in +-2.4 / F_i in the paper, where F_i is the number of inputs of the unit. From there the
  published learning rates do not learn: activations shrink from layer to layer, and with them all curvatures, so nearly
  every rate is eta / mu = 0.025, above the largest that the paper quotes. Here weights and biases start uniform in
  +-sqrt(3 / F_i), which gives weighted sums unit variance, as the same authors recommend in Efficient BackProp (1998,
  Section 4.6); their library Lush has +-v / sqrt(F_i), with v to choose. ``init="fan-in"`` is the paper's.
- The codes of Figure 3 are drawn as other implementations usually render them.

The penalties are Eq. 7's. The recipe in examples/reproduce_1998.py halves them, as Lush does, before it takes the loss.
"""

from collections.abc import Callable
from numbers import Real
from pathlib import Path
from typing import Any, Self

import numpy as np

from tinygrad_lenet import Tensor, checkpoint, nn, no_grad
from tinygrad_lenet import functional as F

# Table I: which maps of S2 each of the 16 maps of C3 sees. Every triple and every quadruple of neighbours, three
# quadruples with a gap, and all six: no two maps of C3 have the same inputs, which forces them to differ.
TABLE_I = (
    (0, 1, 2), (1, 2, 3), (2, 3, 4), (3, 4, 5), (0, 4, 5), (0, 1, 5),
    (0, 1, 2, 3), (1, 2, 3, 4), (2, 3, 4, 5), (0, 3, 4, 5), (0, 1, 4, 5), (0, 1, 2, 5),
    (0, 1, 3, 4), (1, 2, 4, 5), (0, 2, 3, 5),
    (0, 1, 2, 3, 4, 5),
)  # fmt: skip

# Figure 3: what the 84 units of F6 should be for each digit, a picture of 7 x 12 pixels, # for +1 and . for -1.
_BITMAPS = """
.#####. ...##.. .#####. ####### .#####. .#####. ..####. ####### .#####. .#####.
....... ..###.. ....... .....## ....... ....... .##.... .....## ##...## ##..###
..###.. .####.. .#####. ....##. ....... ####### ##..... .....## ##...## ##...##
.##.##. ...##.. ##...## ...##.. .##..## ##..... ##..... ....##. ##...## ##...##
##...## ...##.. #....## ..####. .##..## ##..... ######. ...##.. .#####. ##..###
##...## ...##.. ....##. .....## ###..## .####.. ###..## ...##.. ##...## .######
##...## ...##.. ..###.. .....## ##...## ..####. ##...## ..##... ##...## .....##
##...## ...##.. .##.... .....## ##...## .....## ##...## ..##... ##...## .....##
.##.##. ...##.. ##..... ##...## ##..### ##...## ###..## ..##... ##...## ....##.
..###.. .###### ####### .#####. .###### .#####. .#####. ..##... .#####. .####..
....... ....... ....... ....... .....## ....... ....... ....... ....... .......
....... ....... ....... ....... .....## ....... ....... ....... ....... .......
"""
_ROWS = np.array([[list(digit) for digit in row.split()] for row in _BITMAPS.split("\n")[1:-1]])  # (12, 10, 7)
CODES = np.where(_ROWS.transpose(1, 0, 2) == "#", 1.0, -1.0).astype(np.float32)  # (10, 12, 7)

# The bound of the initial weights by a unit's number of inputs.
_INITS: dict[str, Callable[[Any], Any]] = {
    "sqrt-fan-in": lambda inputs: np.sqrt(3 / inputs),
    "fan-in": lambda inputs: 2.4 / inputs,
}


class LeNet5_1998(nn.Module):  # noqa: N801
    """Images x[N 1 32 32] -> penalties[N 10], the squared distances of F6 from the ten codes: the smallest one wins.

    Pixels range from -0.1 (background) to 1.175 (foreground), see `tinygrad_lenet.data.to_input`. ``rng`` (a NumPy
    generator or a seed) draws the initial weights. ``init`` is "sqrt-fan-in", from which the published rates learn, or
    "fan-in", as published, see above. ``trainable_codes`` turns the 840 elements of the codes into parameters.
    ValueError for another ``init``.

    >>> model = LeNet5_1998(rng=0)
    >>> sum(p.size for p in model.parameters()), sum(count_connections(model).values())
    (60000, 340908)
    """

    c1: nn.Conv2d
    s2: nn.Subsample2d
    c3: nn.Conv2d
    s4: nn.Subsample2d
    c5: nn.Conv2d
    f6: nn.Linear
    output: nn.RBF
    act: nn.ScaledTanh

    def __init__(
        self,
        init: str = "sqrt-fan-in",
        trainable_codes: bool = False,
        rng: np.random.Generator | int | None = None,
    ) -> None:
        if init not in _INITS:
            raise ValueError(f"LeNet5_1998: init is {init!r}; expected {' or '.join(map(repr, _INITS))}")
        rng = np.random.default_rng(rng)

        self.c1 = nn.Conv2d(1, 6, kernel_size=5)
        self.s2 = nn.Subsample2d(6, kernel_size=2)
        self.c3 = nn.Conv2d(6, 16, kernel_size=5, connections=TABLE_I)
        self.s4 = nn.Subsample2d(16, kernel_size=2)
        self.c5 = nn.Conv2d(16, 120, kernel_size=5)
        self.f6 = nn.Linear(120, 84)
        self.output = nn.RBF(CODES.reshape(10, 84), trainable=trainable_codes)

        self.act = nn.ScaledTanh()  # 1.7159 tanh(2/3 x)

        bound = _INITS[init]
        # Weights and biases of a layer belong to the same units.
        c3_inputs = 25 * np.array([len(maps) for maps in TABLE_I])  # 75, 100 or 150
        c3_kernels = np.repeat(c3_inputs, c3_inputs // 25)[:, None, None]  # repeated for each kernel of a map
        fan_ins = (25, 25, c3_kernels, c3_inputs, 400, 400, 120, 120)
        layers = (self.c1, self.c3, self.c5, self.f6)
        with no_grad():
            for p, fan_in in zip((p for layer in layers for p in layer.parameters()), fan_ins, strict=True):
                p[...] = rng.uniform(-1, 1, p.shape) * bound(fan_in)
            self.s2.weight[...] = self.s4.weight[...] = 1.0

    @classmethod
    def pretrained(cls) -> Self:
        """LeNet5_1998() with the weights that come along, which read 99.10% of MNIST's test images.

        They were trained on distorted digits, in print too, and on pictures of no digit, to which Eq. 9's class of
        rubbish, whose penalty is 8, is to be nearer than any of the codes (`examples/make_pretrained.py`).

        >>> from tinygrad_lenet import data
        >>> images, labels = data.digits("test")
        >>> x = data.to_input(images[2:6], background=-0.1, foreground=1.175)
        >>> LeNet5_1998.pretrained().predict(Tensor(x)).numpy() == labels[2:6]
        array([ True,  True,  True,  True])
        """
        model = cls(rng=0)
        model.load_state_dict(checkpoint.load(Path(__file__).with_name("weights") / "lenet5_1998.safetensors")[0])
        return model

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.c1(x))  # (N, 6, 28, 28)
        x = self.act(self.s2(0.25 * x))  # (N, 6, 14, 14): s2 adds four inputs, so the coefficient's is their mean
        x = self.act(self.c3(x))  # (N, 16, 10, 10)
        x = self.act(self.s4(0.25 * x))  # (N, 16, 5, 5)
        x = self.act(self.c5(x))  # (N, 120, 1, 1): the kernel covers the whole map
        x = self.act(self.f6(x.reshape(x.shape[0], 120)))  # (N, 84)
        return self.output(x)  # (N, 10)

    def predict(self, x: Tensor) -> Tensor:
        """The class with the smallest penalty for each image: x[N 1 32 32] -> integers [N]."""
        with no_grad():
            return self(x).argmin(axis=1)

    def reject(self, x: Tensor, threshold: float) -> Tensor:
        """Where the two smallest penalties differ by less than ``threshold``: x[N 1 32 32] -> booleans [N].

        These are the images that the network is least certain about. ValueError if ``threshold`` is not a number of
        at least 0.
        """
        if not isinstance(threshold, Real) or not threshold >= 0:
            raise ValueError(f"reject: threshold is {threshold!r}; expected a difference of penalties, at least 0")
        with no_grad():
            penalties = self(x)
            best = penalties.min(axis=1, keepdims=True)
            first = F.one_hot(penalties.argmin(axis=1), 10, dtype=bool)
            second = F.where(first, float("inf"), penalties).min(axis=1, keepdims=True)
            return (second - best < threshold).reshape(penalties.shape[0])


def count_connections(model: nn.Module, shape: tuple[int, ...] = (1, 32, 32)) -> dict[str, int]:
    """The number of connections in each layer of ``model`` for one input of ``shape``, counted while it runs.

    A connection joins a unit to one of its inputs or to its bias; connections of a convolution that share a weight are
    counted separately. TypeError for a layer with parameters other than Conv2d, Subsample2d, Linear and RBF.

    >>> count_connections(LeNet5_1998(rng=0))["c3"]
    151600
    """
    counts: dict[str, int] = {}
    names = {module: name for name, module in model.named_modules()}

    def count(module: nn.Module, inputs: Any, y: Tensor) -> None:
        positions = y.size // y.shape[1]  # positions at which a convolution applies its weights; 1 for full layers
        bias = getattr(module, "bias", None)
        biases = 0 if bias is None else bias.size
        if isinstance(module, nn.Conv2d | nn.Linear):
            counts[names[module]] = positions * (module.weight.size + biases)
        elif isinstance(module, nn.Subsample2d):
            counts[names[module]] = positions * (
                module.weight.size * module.kernel_size[0] * module.kernel_size[1] + biases
            )
        elif isinstance(module, nn.RBF):
            counts[names[module]] = module.centers.size
        elif any(True for _ in module.parameters()):
            raise TypeError(f"count_connections: layer {names[module]} is {type(module).__name__}, which has no rule")

    leaves = [module for module in names if not any(True for _ in module.children())]
    handles = [module.register_forward_hook(count) for module in leaves]
    try:
        with no_grad():
            model(Tensor(np.zeros((1, *shape), np.float32)))
    finally:
        for handle in handles:
            handle.remove()
    return counts
