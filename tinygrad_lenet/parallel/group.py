"""What a training loop sees of the processes that train together, and how their gradients are laid out to be added."""

import zlib
from collections.abc import Iterable, Sequence

import numpy as np

from ..backend import backend_of, transfer
from ..graph import note_write, repeated
from ..tensor import Tensor, wrap

METRICS = 256  # numbers that can be summed at a time, besides gradients
_ALIGNED = 16  # bytes: every dtype may begin at a multiple of it


class WorkerError(RuntimeError):
    """A rank could not be started, ended too early, or kept the others waiting; the message says which and how."""


class Group:
    """The ranks that train together, as seen by one of them: its ``rank``, from 0, and their number, ``size``.

    What every group promises: a sum is added in rank order, in the dtype of what is summed. All ranks therefore get the
    same bits, and so do all groups of this size, forked or on MPI. A rank returns from a sum when all have called it;
    they must all call the same methods in the same order. If a rank ends too early, the others end too.

    A `Group` that you make yourself has a single rank; `run` makes those with several.

    >>> alone = Group([Tensor([1.0], requires_grad=True)])
    >>> alone.rank, alone.size, alone.share(10)
    (0, 1, slice(0, 10, None))
    """

    rank = 0
    size = 1

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        self._parameters = list(parameters)

    def share(self, count: int) -> slice:
        """This rank's slice of ``count`` items; slices are as equal as possible and in rank order.

        >>> Group([]).share(3)
        slice(0, 3, None)
        """
        return slice(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    @repeated
    def sum_gradients(self, values: Sequence[float] = ()) -> list[float]:
        """Replace each parameter's gradient by its sum over all ranks; a rank's missing gradient counts as 0.

        A parameter without a gradient on any rank keeps none. Return the sum of each of ``values``, like `sum` but
        without another round of communication.
        """
        return self.sum(values)

    def sum(self, values: Sequence[float]) -> list[float]:
        """The sum of each number over all ranks; every rank must call it with equally many, at most 256."""
        check_room(values)
        return [float(value) for value in values]

    @repeated
    def average(self, tensors: Iterable[Tensor], weight: float = 1.0) -> None:
        """Replace each tensor, in place, by its mean over all ranks, weighted by each rank's ``weight``.

        For values that each rank accumulates by itself, such as batch normalisation's running statistics. At least one
        weight must be above 0.
        """
        arrays = [tensor.data for tensor in tensors]
        if self.size == 1 or not arrays:
            return
        weighted = weight * np.concatenate([transfer(array, "cpu").ravel() for array in arrays], dtype=np.float64)
        (total,) = self.sum([weight])
        for start in range(0, len(weighted), METRICS):
            stretch = slice(start, start + METRICS)
            weighted[stretch] = self.sum(weighted[stretch].tolist())
        start = 0
        for array in arrays:
            mean = (weighted[start : start + array.size] / total).reshape(array.shape).astype(array.dtype)
            array[...] = backend_of(array).from_numpy(mean, backend_of(array).index_of(array))
            start += array.size
        note_write(*arrays)

    def require_equal(self, tensors: Iterable[Tensor]) -> None:
        """WorkerError on at least one rank, unless all ranks hold the same bits in ``tensors``.

        >>> Group([]).require_equal([Tensor([1.0])])
        """
        if self.size == 1:
            return
        digest = 0
        for tensor in tensors:
            digest = zlib.crc32(np.ascontiguousarray(transfer(tensor.data, "cpu")).data, digest)
        # All digests are equal if each rank finds its own to be their mean. (The sum is exact: 32 of 53 bits.)
        (total,) = self.sum([digest])
        if total != self.size * digest:
            raise WorkerError(f"the weights of rank {self.rank} differ from those of another rank; the run is stopped")


class Row:
    """The layout of the row of bytes that each rank fills: numbers, which gradients exist, and gradients by dtype.

    Gradients on a GPU are copied into it, and their sums back: one copy for all of them.
    A row can be cut into ``pieces`` of equal length without cutting a number in two.
    """

    def __init__(self, parameters: Iterable[Tensor], pieces: int = 1) -> None:
        self._parameters = list(parameters)
        self._parts: dict[tuple[np.dtype, str], list[tuple[Tensor, slice]]] = {}
        for p in self._parameters:
            parts = self._parts.setdefault((p.dtype, p.device), [])
            start = parts[-1][1].stop if parts else 0
            parts.append((p, slice(start, start + p.size)))
        counts = [(np.dtype(np.float64), METRICS + len(self._parameters))]
        counts += [(dtype, parts[-1][1].stop) for (dtype, _), parts in self._parts.items()]
        self.sections: list[tuple[np.dtype, int, int]] = []  # dtype, first byte, the byte after the last
        end = 0
        for dtype, count in counts:
            start = _rounded_up(end, _ALIGNED)
            end = start + count * dtype.itemsize
            self.sections.append((dtype, start, end))
        self.size = _rounded_up(end, _ALIGNED * pieces)

    def views(self, rows: np.ndarray) -> list[np.ndarray]:
        """Of bytes [... size]: the numbers [... metrics], then the gradients of each dtype [... count]."""
        return [rows[..., start:end].view(dtype) for dtype, start, end in self.sections]

    def fill(self, views: list[np.ndarray], values: Sequence[float]) -> None:
        """Write ``values`` and this rank's gradients into its row."""
        numbers, *gradients = views
        numbers[: len(values)] = values
        numbers[METRICS:] = [p.grad is not None for p in self._parameters]
        for row, ((_, device), parts) in zip(gradients, self._parts.items(), strict=True):
            if device == "cpu":
                for p, part in parts:
                    row[part] = 0 if p.grad is None else p.grad.data.ravel()
            else:  # joined there, so that one copy brings them here
                arrays = [p.data if p.grad is None else p.grad.data for p, _ in parts]
                with backend_of(*arrays).current(arrays[0]):
                    row[...] = transfer(backend_of(*arrays).xp.concatenate([a.ravel() for a in arrays]), "cpu")
                for p, part in parts:
                    if p.grad is None:
                        row[part] = 0

    def take(self, totals: list[np.ndarray], count: int) -> list[float]:
        """Make the sums the parameters' gradients, which keep the memory of ``totals``; return ``count`` numbers."""
        numbers, *gradients = totals
        present = {id(p) for p, ranks in zip(self._parameters, numbers[METRICS:], strict=True) if ranks}
        for total, ((_, device), parts) in zip(gradients, self._parts.items(), strict=True):
            there = transfer(total, device)
            for p, part in parts:
                p.grad = wrap(there[part].reshape(p.shape)) if id(p) in present else None
        return [float(value) for value in numbers[:count]]


def check_room(values: Sequence[float]) -> None:
    if len(values) > METRICS:
        raise ValueError(f"Group.sum: {len(values)} numbers were given; expected at most {METRICS}")


def sum_rows(rows: np.ndarray) -> np.ndarray:
    """The sum over the ranks, in rank order."""
    total = rows[0] + rows[1]
    for row in rows[2:]:
        total += row
    return total


def _rounded_up(count: int, unit: int) -> int:
    return -(-count // unit) * unit
