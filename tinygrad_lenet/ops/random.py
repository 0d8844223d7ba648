"""Random tensors: drawn afresh on every run, also in a recorded function."""

from typing import Any

from ..op import CONSTANT, Op
from ..shapes import generator


class Random(Op):
    """y = numbers that ``rng`` draws for each element by its method ``distribution``; x gives shape and dtype only.

    They are drawn on the host in float64 and rounded to x's dtype, numbers in [0, 1) downwards, so that every device
    and dtype gets the same ones and none becomes 1.
    """

    distribution: str
    rng: Any

    signature = "random(x[...]) -> y[...]"
    domains = {"x": CONSTANT}
    rules = {"rng": (generator,)}
    parameters = {"distribution": ("random", "standard_normal"), "rng": (0, 7)}
    integers = "refused"
    repeatable = False

    def forward(self, xp, x):
        drawn = xp.asarray(getattr(self.rng, self.distribution)(x.shape))
        if self.distribution == "random":
            steps = 2.0 ** (xp.finfo(x.dtype).nmant + 1)
            drawn = xp.floor(drawn * steps) / steps
        return drawn.astype(x.dtype)
