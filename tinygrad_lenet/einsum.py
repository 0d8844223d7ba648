"""Einstein summation, composed of diagonals, sums and matrix products, so it needs no derivative of its own."""

import math
from string import ascii_letters

import numpy as np

from .shapes import ShapeError, broadcast_shape
from .tensor import Tensor


def contract(subscripts: str, tensors: list[Tensor]) -> Tensor:
    """The Einstein sum with NumPy's subscripts; see `tinygrad_lenet.functional.einsum`."""
    inputs, output = _explicit(subscripts, tensors)
    terms = []
    for i, (letters, x) in enumerate(zip(inputs, tensors, strict=True)):
        terms.append(_diagonal(i, letters, x))
    _check_sizes(terms)
    while len(terms) > 1:
        a, b = _cheapest_pair(terms, output)
        first, second = terms[a], terms[b]
        rest = [term for i, term in enumerate(terms) if i not in (a, b)]
        terms = [*rest, _product(first, second, set(output).union(*(letters for letters, _ in rest)))]
    letters, x = _summed(*terms[0], set(output))
    return x.transpose([letters.index(letter) for letter in output])


def _diagonal(i: int, letters: str, x: Tensor) -> tuple[str, Tensor]:
    """The term with each letter once: the diagonals of x, where the indices of a repeated letter agree."""
    for letter in dict.fromkeys(letters):
        places = [axis for axis, each in enumerate(letters) if each == letter]
        sizes = {x.shape[axis] for axis in places}
        if len(sizes) > 1:
            raise ShapeError(f"einsum: axis {letter} is {' and '.join(map(str, sorted(sizes)))}, in operand {i}")
        if len(places) > 1:
            others = [axis for axis in range(x.ndim) if axis not in places]
            steps = np.arange(sizes.pop())
            x = x.transpose((*places, *others))[(steps,) * len(places)]
            letters = letter + "".join(letters[axis] for axis in others)
    return letters, x


def _check_sizes(terms: list[tuple[str, Tensor]]) -> None:
    sizes: dict[str, int] = {}
    for i, (letters, x) in enumerate(terms):
        for letter, size in zip(letters, x.shape, strict=True):
            if sizes.setdefault(letter, size) != size:
                raise ShapeError(f"einsum: axis {letter} is {sizes[letter]} and {size}, in operand {i}")


def _cheapest_pair(terms: list[tuple[str, Tensor]], output: str) -> tuple[int, int]:
    """The two terms to multiply next: those whose product adds least to the elements to store."""
    best: tuple[float, int, int] | None = None
    for b in range(1, len(terms)):
        for a in range(b):
            kept = set(output).union(*(letters for i, (letters, _) in enumerate(terms) if i not in (a, b)))
            sizes = dict(zip(terms[a][0] + terms[b][0], terms[a][1].shape + terms[b][1].shape, strict=True))
            size = math.prod(n for letter, n in sizes.items() if letter in kept)
            cost = size - terms[a][1].size - terms[b][1].size
            if best is None or cost < best[0]:
                best = cost, a, b
    assert best is not None
    return best[1:]


def _product(first: tuple[str, Tensor], second: tuple[str, Tensor], kept: set[str]) -> tuple[str, Tensor]:
    """Two terms multiplied and summed over the letters that are not kept, as one matrix product."""
    (p, a), (q, b) = _summed(*first, kept | set(second[0])), _summed(*second, kept | set(first[0]))
    batch = [letter for letter in p if letter in q and letter in kept]
    joined = [letter for letter in p if letter in q and letter not in kept]
    left = [letter for letter in p if letter not in q]
    right = [letter for letter in q if letter not in p]
    sizes = dict(zip(p + q, a.shape + b.shape, strict=True))
    size = {name: [sizes[letter] for letter in group] for name, group in
            (("batch", batch), ("joined", joined), ("left", left), ("right", right))}  # fmt: skip
    m, k, n = (math.prod(size[name]) for name in ("left", "joined", "right"))
    a = a.transpose([p.index(letter) for letter in (*batch, *left, *joined)]).reshape((*size["batch"], m, k))
    b = b.transpose([q.index(letter) for letter in (*batch, *joined, *right)]).reshape((*size["batch"], k, n))
    y = (a @ b).reshape((*size["batch"], *size["left"], *size["right"]))
    return "".join((*batch, *left, *right)), y


def _summed(letters: str, x: Tensor, kept: set[str]) -> tuple[str, Tensor]:
    """The term summed over the letters that are not kept."""
    gone = tuple(axis for axis, letter in enumerate(letters) if letter not in kept)
    return "".join(letter for letter in letters if letter in kept), x.sum(gone) if gone else x


def _explicit(subscripts: str, tensors: list[Tensor]) -> tuple[list[str], str]:
    """The letters of each operand and of the output, with ``...`` and an implicit output spelled out."""
    if not isinstance(subscripts, str):
        raise TypeError(f"einsum: subscripts are {type(subscripts).__name__}; expected a string such as 'ij,jk->ik'")
    text = subscripts.replace(" ", "")
    left, arrow, output = text.partition("->")
    inputs = left.split(",")
    if len(inputs) != len(tensors):
        raise ShapeError(f"einsum: {subscripts!r} is for {len(inputs)} operands; {len(tensors)} were given")
    unused = [letter for letter in reversed(ascii_letters) if letter not in text]
    ranks = []
    for i, (letters, x) in enumerate(zip(inputs, tensors, strict=True)):
        named = len(letters.replace("...", "", 1))
        fits = x.ndim >= named if "..." in letters else x.ndim == named
        if not fits or not set(letters.replace("...", "", 1)) <= set(ascii_letters):
            raise ShapeError(f"einsum: operand {i} has shape {x.shape}, which {letters!r} does not describe")
        ranks.append(x.ndim - named if "..." in letters else 0)
    shapes = [
        x.shape[(p := letters.find("...")) : p + rank]
        for letters, x, rank in zip(inputs, tensors, ranks, strict=True)
        if rank
    ]
    if len({shape[::-1][: min(map(len, shapes))] for shape in shapes}) > 1:
        broadcast_shape("einsum", shapes)
        raise ShapeError(f"einsum: the axes of ... have shapes {shapes}; expected equal sizes")
    dots = "".join(unused[: max(ranks, default=0)])
    inputs = [letters.replace("...", dots[len(dots) - rank :]) for letters, rank in zip(inputs, ranks, strict=True)]
    if not arrow:
        once = sorted(letter for letter in set("".join(inputs)) if "".join(inputs).count(letter) == 1)
        output = dots + "".join(letter for letter in once if letter not in dots)
    output = output.replace("...", dots)
    for letter in output:
        if output.count(letter) > 1 or letter not in "".join(inputs):
            raise ShapeError(f"einsum: axis {letter} of the output must appear once there, and in an operand")
    return inputs, output
