"""Choices by Hypothesis, numbers by a seeded generator: sizes and parameters shrink, numbers need not."""

from typing import Any

import numpy as np
from hypothesis import strategies as st

BATCH_LAST = (1, 2, 3, 0)


class Draw:
    """Draws sizes, parameters and arrays for one example; arrays have ``dtype`` and lie in memory in any order."""

    def __init__(self, data: st.DataObject, *dtypes: str) -> None:
        self.data = data
        self.dtype = self.pick(*dtypes) if dtypes else "float64"
        self.rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1), label="seed"))

    def pick(self, *values: Any) -> Any:
        return self.data.draw(st.sampled_from(values))

    def int(self, low: int, high: int) -> int:
        return self.data.draw(st.integers(low, high))

    def pair(self, low: int, high: int) -> tuple[int, int]:
        return self.int(low, high), self.int(low, high)

    def shape(self, low: int = 0, high: int = 3) -> tuple[int, ...]:
        return tuple(self.data.draw(st.lists(st.integers(1, 4), min_size=low, max_size=high), label="shape"))

    def broadcasting(self, count: int) -> list[tuple[int, ...]]:
        """Shapes that broadcast together: cut from one shape, some axes set to 1."""
        whole = self.shape(1, 3)
        cuts = [whole[self.int(0, len(whole)) :] for _ in range(count)]
        return [tuple(self.pick(size, size, 1) for size in cut) for cut in cuts]

    def axes(self, ndim: int) -> Any:
        """None, an axis or a tuple of axes, some counted from the end."""
        chosen = self.data.draw(st.lists(st.integers(0, ndim - 1), min_size=1, max_size=ndim, unique=True))
        signed = tuple(self.pick(axis, axis - ndim) for axis in chosen)
        return self.pick(None, signed[0], signed)

    def values(self, *shape: int, low: float = -2.0, high: float = 2.0) -> np.ndarray:
        """Random numbers, in memory: batch-last as the ops make them, C or Fortran order, a step apart, or reversed."""
        x = np.asarray(self.rng.uniform(low, high, shape), self.dtype)
        layout = self.rng.choice(["C", "F", "batch-last", "stepped", "reversed"]) if shape else "C"
        if layout == "batch-last" and len(shape) == 4:
            return np.ascontiguousarray(x.transpose(BATCH_LAST)).transpose(3, 0, 1, 2)
        if layout == "stepped":
            return np.repeat(x, 2, axis=-1)[..., ::2]
        if layout == "reversed":
            return np.ascontiguousarray(x[::-1])[::-1]
        return np.asarray(x, order="F" if layout == "F" else "C")

    def values_or_tied(self, *shape: int) -> np.ndarray:
        """Random numbers, or else -1, 0 and 1: many elements tie, and many lie on a kink."""
        return self.rng.integers(-1, 2, shape).astype(self.dtype) if self.pick(False, True) else self.values(*shape)
