"""Random tensors: drawn afresh on every run, also in a recorded function.

What is drawn on every run comes from NumPy's generators on the host, so that its state can be saved and every device
gets the same. For dropout that is a single number, the key, from which any device makes the same choices by itself.
"""

from typing import Any

from ..op import CONSTANT, Domain, Op
from ..shapes import generator, number


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


class RandomKey(Op):
    """y = an integer in [0, 2^53) that ``rng`` draws on every run; x only gives the device."""

    rng: Any

    signature = "random_key(x[...]) -> y[]"
    domains = {"x": CONSTANT}
    rules = {"rng": (generator,)}
    parameters = {"rng": (0, 7)}
    integers = "native"
    repeatable = False

    def output_shape(self, x):
        return ()

    def forward(self, xp, x):
        return xp.full((), int(self.rng.random() * 2**53), "int64")


class Bernoulli(Op):
    """y = True with probability 1 - ``p`` for each element, up to 2^-32; x only gives the shape.

    ``key`` alone decides which, on every device and to the bit: element i, in C order, is False if 32 random bits, read
    as an integer, are below 2^32 p. They are the lower (i even) or upper (i odd) half of word i // 2 % 4 of block
    i // 8 + 1 of Philox4x64-10, keyed with (key, 0); as of ``np.random.Philox(key=key)``.

    Salmon et al. (2011), Parallel random numbers: as easy as 1, 2, 3. Each block is a function of its number, so a GPU
    makes all of them at once.
    """

    p: float

    signature = "bernoulli(x[...], key[]) -> y[...]"
    domains = {"x": CONSTANT, "key": Domain(low=0, high=2**62, kind="index")}
    rules = {"p": (number, "[0, 1)")}
    parameters = {"p": (0.0, 0.3, 0.99)}
    integers = "native"

    @property
    def limit(self):
        """What 32 bits have to reach for True."""
        return min(round(self.p * 2**32), 2**32 - 1)

    def forward(self, xp, x, key):
        number = xp.arange(1, -(-x.size // 8) + 1, dtype="uint64")
        block = [number, *[xp.zeros_like(number)] * 3]
        first, second = key.astype("uint64").reshape(1), 0
        for _ in range(10):
            (high0, low0), (high1, low1) = _product(block[0], _MULTIPLIERS[0]), _product(block[2], _MULTIPLIERS[1])
            block = [high1 ^ block[1] ^ first, low1, high0 ^ block[3] ^ second, low0]
            first, second = first + _STEPS[0], (second + _STEPS[1]) % 2**64
        words = xp.stack(block, axis=1).reshape(-1)
        bits = xp.stack([words & _LOW, words >> 32], axis=1).reshape(-1)
        return bits[: x.size].reshape(x.shape) >= self.limit


_MULTIPLIERS = 0xD2E7470EE14C6C93, 0xCA5A826395121157
_STEPS = 0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B
_LOW = 2**32 - 1


def _product(a, b):
    """The upper and the lower 64 bits of a b, from products of halves, which 64 bits can hold."""
    low, high, b_low, b_high = a & _LOW, a >> 32, b & _LOW, b >> 32
    middle = high * b_low + (low * b_low >> 32)
    other = low * b_high + (middle & _LOW)
    return high * b_high + (middle >> 32) + (other >> 32), a * b
