"""The generator that random numbers come from where none is given, and the seed of everything that has none."""

import itertools
import operator
import os

import numpy as np

__all__ = ["default_generator", "initial_seed", "manual_seed"]

_generator = np.random.default_rng()
_seed: int | None = None  # which manual_seed was given
_forks = itertools.count(1)
_fork = 0  # how many processes have been forked


def manual_seed(seed: int) -> None:
    """Start all random numbers for which no ``rng`` or ``seed`` is given anew, from ``seed``, an integer of at least 0.

    These are the initial weights of layers, dropout, `tinygrad_lenet.rand` and its like, and the order and distortions
    of `data.DataLoader` and `data.Affine` made afterwards. TypeError or ValueError for any other seed.

    >>> from tinygrad_lenet import rand
    >>> manual_seed(3); a = rand(2)
    >>> manual_seed(3); (a == rand(2)).numpy().tolist()
    [True, True]
    """
    global _seed
    if isinstance(seed, bool) or not hasattr(seed, "__index__"):
        raise TypeError(f"manual_seed: seed is {seed!r}; expected an integer")
    value = operator.index(seed)
    if value < 0:
        raise ValueError(f"manual_seed: seed is {value}; expected at least 0")
    _restart([value])
    _seed = value


def initial_seed() -> int:
    """The seed that was given to `manual_seed`, or 0."""
    return _seed or 0


def default_generator() -> np.random.Generator:
    """The one generator of this process."""
    return _generator


def _restart(entropy: list[int] | None) -> None:
    """Start the generator anew, in place, since modules hold it."""
    _generator.bit_generator.state = np.random.default_rng(entropy).bit_generator.state


def _count_fork() -> None:
    global _fork
    _fork = next(_forks)


def _renew() -> None:
    """A forked process draws other numbers than its parent, in an order that the seed determines, too."""
    lock = _generator.bit_generator.lock
    if lock.acquire(blocking=False):  # else a thread that is not here now was drawing: nobody would release it
        lock.release()
        _restart(None if _seed is None else [_seed, _fork])


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_count_fork, after_in_child=_renew)
