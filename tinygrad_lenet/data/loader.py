"""From uint8 images to LeNet-5's input: scaling, random distortions, and batches that can resume at any point."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from ..backend import NUMPY, Array, backend_of, backend_of_type, parse_device, transfer
from ..seeds import initial_seed
from ..shapes import integer, number

Images = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]
Transform = Callable[[Images], npt.NDArray[Any]]
Augment = Callable[[Images, int, int], Images]

_SIDE = 32  # of LeNet-5's input
_MEAN, _DEVIATION = 0.1307, 0.3081  # of MNIST's training pixels, black 0 and white 1
_PIECE = 16  # images distorted at a time: the temporaries fit in the cache, which is twice as fast as 64 at a time


def to_input(
    images: Images, background: float = -_MEAN / _DEVIATION, foreground: float = (1 - _MEAN) / _DEVIATION
) -> npt.NDArray[np.float32]:
    """Return uint8 images (N, H, W), 28x28 or 32x32, as float32 (N, 1, 32, 32): 0 is background, 255 foreground.

    28x28 images get a border of background. By default MNIST's pixels, without the border, get mean 0 and variance 1;
    LeCun et al. (1998, Section II.B) used -0.1 for the background and 1.175 for the foreground. The result lies where
    the images do, which may be a GPU; on the CPU the images are last in memory, as in a C-contiguous (1, 32, 32, N)
    array, the order in which convolutions run fastest. TypeError for another dtype, ValueError for another shape.

    >>> x = to_input(np.full((2, 28, 28), 255, np.uint8), background=-0.1, foreground=1.175)
    >>> x.shape, round(float(x[0, 0, 0, 0]), 3), round(float(x[0, 0, 2, 2]), 3)
    ((2, 1, 32, 32), -0.1, 1.175)
    """
    _require_images("to_input", images, (28, _SIDE))
    N, H, W = images.shape
    border = (_SIDE - H) // 2
    backend = backend_of(images)
    with backend.current(images):
        # Transposing bytes and converting them afterwards moves a quarter of the memory in the slow, strided copy.
        pixels = backend.xp.zeros((_SIDE, _SIDE, N), np.uint8).transpose(2, 0, 1)  # [H W N] -> [N H W]
        pixels[:, border : border + H, border : border + W] = images
        x = backend.xp.multiply(pixels, np.float32((foreground - background) / 255))
        x += np.float32(background)
    return x[:, None]  # [N H W] -> [N 1 H W]


class DataLoader:
    """Yield batches (x, labels) of images uint8 (N, H, W) with labels (N,) as NumPy arrays, each image once per epoch.

    x is `transform(batch)`, by default `to_input(batch)`: float32 (n, 1, 32, 32); labels are int64 (n,). Images stay
    uint8 and are never copied as a whole. The order within an epoch depends only on seed and epoch. `augment(batch,
    epoch, position)`, for example an `Affine`, distorts the uint8 batch first; with the default transform it receives
    images that already have their border to 32x32, into which ink may move.

    Arrays (N, ...) of any other dtype are batched unchanged unless there is a `transform`, and labels may then be any
    numbers (N, ...), for example targets of a regression. Without a `transform`, floats of 28x28 or 32x32 are refused:
    they look like images that lack border and scale. `seed` is by default that of `manual_seed`, or 0.

    If several processes train together, `share(n)` gives the slice of a batch of n that this process draws, for example
    `parallel.Group.share`; `drawn` is the size of the whole batch from which the latest share was taken.

    With `device="cuda"`, batches are arrays on that GPU. The images go up once, as uint8, and are picked, padded and
    scaled there; with `augment` or a transform of one's own, which run on the host, each finished batch goes up.

    A `for` over the loader runs through the epoch that `epoch` counts. Leaving it early abandons the epoch: the next
    `for` begins the next one, unless `load_state_dict` put the loader in the middle of an epoch.

    Raises TypeError or ValueError for arrays that do not fit together or a batch_size below 1.

    >>> loader = DataLoader(np.zeros((5, 28, 28), np.uint8), np.arange(5), batch_size=2, shuffle=False)
    >>> [labels.tolist() for x, labels in loader]
    [[0, 1], [2, 3], [4]]
    """

    def __init__(
        self,
        images: Images,
        labels: npt.NDArray[np.integer[Any]],
        batch_size: int = 64,
        shuffle: bool = True,
        seed: int | None = None,
        transform: Transform | None = None,
        drop_last: bool = False,
        augment: Augment | None = None,
        share: Callable[[int], slice] | None = None,
        device: str = "cpu",
    ) -> None:
        labels = np.asarray(labels)
        plain = isinstance(images, np.ndarray) and images.ndim > 0 and images.dtype.kind in "fib"
        if plain and transform is None and images.shape[1:] in ((28, 28), (_SIDE, _SIDE)):
            plain = False  # images that somebody has scaled, which would miss their border: refused
        if not plain:
            _require_images("DataLoader", images, (28, _SIDE) if transform is None else None)
            if labels.dtype.kind not in "iu":
                raise TypeError(f"DataLoader: labels have dtype {labels.dtype}, expected integers")
        elif augment is not None:
            raise TypeError(f"DataLoader: images have dtype {images.dtype}; augment takes uint8")
        if not len(images):
            raise ValueError(f"DataLoader: images have shape {images.shape}, expected at least one image")
        if labels.dtype.kind not in "fiub":
            raise TypeError(f"DataLoader: labels have dtype {labels.dtype}, expected numbers")
        if labels.shape[:1] != (len(images),) or (not plain and labels.ndim > 1):
            raise ValueError(f"DataLoader: labels have shape {labels.shape}, expected ({len(images)},) as images do")
        if plain and transform is None:
            transform = _unchanged
        for name, function in (("transform", transform), ("augment", augment), ("share", share)):
            if function is not None and not callable(function):
                raise TypeError(f"DataLoader: {name} is {function!r}, expected a function or None")
        self.images = images
        self.labels: npt.NDArray[Any] = labels.astype(np.int64, copy=False) if labels.dtype.kind in "iu" else labels
        self.batch_size: int = integer("DataLoader", "batch_size", batch_size, 1)
        self.shuffle: bool = bool(shuffle)
        self.seed: int = _seed("DataLoader", seed)
        self.transform = transform
        self.drop_last: bool = bool(drop_last)
        self.augment = augment
        self.share = share
        self.device = device
        self._on_host: bool = parse_device(device)[0] is NUMPY
        self.drawn: int = 0
        self.epoch: int = 0
        self.position: int = 0  # how many samples of this epoch have been yielded
        self._resumed = False
        self._drawn: tuple[tuple[int, int], npt.NDArray[np.intp]] | None = None  # the latest order, and its key
        self._there: list[Array] = []  # on the device: images, labels, and the latest order
        self._order_there: npt.NDArray[np.intp] | None = None  # the order that is there

    def __len__(self) -> int:
        """Return the number of batches in a whole epoch."""
        whole, rest = divmod(len(self.images), self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[tuple[Array, Array]]:
        """Yield the rest of the current epoch, or the next epoch if the last loop was left early."""
        if self.position > 0 and not self._resumed:
            self.epoch, self.position = self.epoch + 1, 0
        self._resumed = False
        epoch, start, N = self.epoch, self.position, len(self.images)
        while start < N and not (self.drop_last and start + self.batch_size > N):
            x, labels = self.batch(epoch, start)
            self.drawn = min(self.batch_size, N - start)
            start += self.drawn
            self.epoch, self.position = epoch, start  # before the yield: a state saved in the loop counts this batch
            yield x, labels
        self.epoch, self.position = epoch + 1, 0

    def batch(self, epoch: int, position: int) -> tuple[Array, Array]:
        """Return this process's share of the batch that begins at sample `position` of `epoch`."""
        epoch = integer("DataLoader.batch", "epoch", epoch, 0)
        position = integer("DataLoader.batch", "position", position, 0)
        if position >= len(self.images):
            raise ValueError(f"DataLoader.batch: position is {position}, expected less than {len(self.images)}")
        order, stop = self._order(epoch), min(position + self.batch_size, len(self.images))
        if self.share is not None:
            part = self.share(stop - position)
            position, stop = position + part.start, position + part.stop
        if not self._on_host and self.augment is None and self.transform in (None, to_input):
            return self._picked_there(order, slice(position, stop))
        chosen = order[position:stop]
        images, labels = self.images.take(chosen, axis=0), self.labels.take(chosen, axis=0)
        if self.augment is not None:
            if self.transform is None:
                images = _pad(images)
            images = self.augment(images, epoch, position)
        x = (to_input if self.transform is None else self.transform)(images)
        return transfer(x, self.device), transfer(labels, self.device)

    def _picked_there(self, order: npt.NDArray[np.intp], part: slice) -> tuple[Array, Array]:
        """A batch, picked on the device: nothing goes up but, once, images and labels and, once an epoch, the order."""
        if not self._there:
            self._there = [transfer(array, self.device) for array in (self.images, self.labels, order)]
        elif self._order_there is not order:
            self._there[2] = transfer(order, self.device)
        self._order_there = order
        images, labels, places = self._there
        with backend_of(images).current(images):
            chosen = places[part]
            return to_input(images[chosen]), labels[chosen]

    def state_dict(self) -> dict[str, int]:
        """Return the position in the run as plain numbers: seed, epoch, and samples yielded in this epoch."""
        return {"seed": self.seed, "epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go to the position that `state_dict` returned: the next `for` yields exactly the remaining batches.

        Raises ValueError or TypeError for a state that does not fit; the loader is then unchanged.
        """
        expected = {"seed", "epoch", "position"}
        if set(state) != expected:
            raise ValueError(f"DataLoader.load_state_dict: state has {sorted(state)}, expected {sorted(expected)}")
        place = {name: integer("DataLoader.load_state_dict", name, state[name], 0, limit=math.inf) for name in expected}
        if place["position"] > len(self.images):
            raise ValueError(
                f"DataLoader.load_state_dict: position is {place['position']}, expected at most {len(self.images)}"
            )
        self.seed, self.epoch, self.position = place["seed"], place["epoch"], place["position"]
        self._resumed = True

    def _order(self, epoch: int) -> npt.NDArray[np.intp]:
        key = (self.seed, epoch if self.shuffle else 0)
        if self._drawn is None or self._drawn[0] != key:
            order = np.arange(len(self.images))
            if self.shuffle:
                np.random.default_rng(key).shuffle(order)
            self._drawn = (key, order)
        return self._drawn[1]


class Affine:
    """Distort uint8 images (N, H, W) by random planar affine maps about their centre; returns uint8 (N, H, W).

    These are drawn uniformly for each image: a horizontal and a vertical shift in -translation..translation pixels; a
    factor in 1-scale..1+scale for both axes; a squeeze in 1-squeeze..1+squeeze, by which the horizontal axis is
    multiplied and the vertical one divided, so one is compressed while the other is stretched; and a horizontal shear
    in -shear..shear, by which a row moves to the right for each row that it lies below the centre. With (u, v) measured
    to the right and downwards from the centre, w = scale / squeeze * v, v' = w + shift_v and
    u' = scale * squeeze * u + shear * w + shift_u.
    Values are interpolated bilinearly; outside is background, 0. If all ranges are 0, the images stay unchanged.

    The maps depend only on seed, epoch and the sample's position in the epoch, not on how batches are split.
    The kinds of distortion are those of LeCun et al. (1998), Section III.A; the paper gives no ranges, these are ours.
    Raises TypeError or ValueError for a range that is not a finite number >= 0, or a scale or squeeze of 1 or more.

    >>> image = np.zeros((1, 5, 5), np.uint8); image[0, 2, 2] = 255
    >>> moved = Affine(translation=1.0, scale=0.0, squeeze=0.0, shear=0.0)(image)
    >>> moved.shape, moved.dtype
    ((1, 5, 5), dtype('uint8'))
    """

    def __init__(
        self,
        translation: float = 2.0,
        scale: float = 0.15,
        squeeze: float = 0.1,
        shear: float = 0.2,
        seed: int | None = None,
    ) -> None:
        self.translation: float = number("Affine", "translation", translation, "[0, inf)")
        self.scale: float = number("Affine", "scale", scale, "[0, 1)")
        self.squeeze: float = number("Affine", "squeeze", squeeze, "[0, 1)")
        self.shear: float = number("Affine", "shear", shear, "[0, inf)")
        self.seed: int = _seed("Affine", seed)

    def __call__(self, images: Images, epoch: int = 0, position: int = 0) -> Images:
        """Distort images, the first of which is sample `position` of `epoch`."""
        _require_images("Affine", images, None)
        epoch = integer("Affine", "epoch", epoch, 0)
        position = integer("Affine", "position", position, 0)
        spread = np.array([self.translation, self.translation, self.scale, self.squeeze, self.shear])
        drawn = spread * _uniform(self.seed, epoch, position, len(images))[:, :5]  # [N 5]
        maps = drawn.T.astype(np.float32)  # [5 N]
        y = np.empty_like(images)
        for i in range(0, len(images), _PIECE):
            piece = slice(i, i + _PIECE)
            y[piece] = _warp(images[piece], *maps[:, piece])
        return y


def _seed(caller: str, seed: int | None) -> int:
    return initial_seed() if seed is None else integer(caller, "seed", seed, 0, limit=math.inf)


def _unchanged(x: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return x


def _uniform(seed: int, epoch: int, position: int, N: int) -> npt.NDArray[np.float64]:
    """Return (N, 8) numbers in -1..1, of which row i depends only on (seed, epoch, position + i)."""
    # A counter-based generator can start anywhere: Philox makes 4 numbers per step, so a sample takes 2 steps.
    key = np.random.SeedSequence([seed, epoch]).generate_state(2, np.uint64)
    rows = np.random.Generator(np.random.Philox(key=key).advance(2 * position)).random((N, 8))
    return rows * 2 - 1


def _warp(
    images: Images,
    shift_u: npt.NDArray[np.float32],
    shift_v: npt.NDArray[np.float32],
    scale: npt.NDArray[np.float32],
    squeeze: npt.NDArray[np.float32],
    shear: npt.NDArray[np.float32],
) -> Images:
    """Apply one map per image; scale and squeeze are deviations from 1, all parameters float32 (N,)."""
    N, H, W = images.shape
    v = np.arange(H, dtype=np.float32) - np.float32((H - 1) / 2) - shift_v[:, None]  # [N H] output rows, unshifted
    u = np.arange(W, dtype=np.float32) - np.float32((W - 1) / 2)  # [W]
    factor_v, factor_u = (1 + scale) / (1 + squeeze), (1 + scale) * (1 + squeeze)
    # Where each output pixel comes from. Without vertical shear, a whole output row comes from one height, so the
    # bilinear interpolation splits into one over whole rows and one within each row.
    row = v / factor_v[:, None] + np.float32((H - 1) / 2)  # [N H]
    column = (u - (shift_u[:, None] + shear[:, None] * v)[..., None]) / factor_u[:, None, None]  # [N H W]
    column += np.float32((W - 1) / 2)
    # A frame of background, one pixel before and two after, stands for everything outside the image.
    framed = np.zeros((N, H + 3, W + 3), np.float32)
    framed[:, 1 : H + 1, 1 : W + 1] = images
    top, part = _split(row, H)
    first = top + (np.arange(N, dtype=np.intp) * (H + 3))[:, None]  # [N H] rows of framed, counted through all images
    flat = framed.reshape(N * (H + 3), W + 3)
    rows = _blend(flat.take(first, axis=0), flat.take(first + 1, axis=0), part[..., None])  # [N H W+3]
    left, part = _split(column, W)
    first = left + (np.arange(N * H, dtype=np.intp) * (W + 3)).reshape(N, H, 1)  # [N H W]
    y = _blend(rows.take(first), rows.take(first + 1), part)
    return np.rint(y, out=y).astype(np.uint8)


def _split(place: npt.NDArray[np.float32], length: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float32]]:
    """Return the index of the pixel before each place, in an array framed by one pixel, and the fraction beyond it."""
    place = np.clip(place, -1, length)
    before = np.floor(place)
    return before.astype(np.intp) + 1, place - before


def _blend(
    a: npt.NDArray[np.float32], b: npt.NDArray[np.float32], part: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """Return a + part * (b - a), written into b."""
    b -= a
    b *= part
    b += a
    return b


def _pad(images: Images) -> Images:
    """Pad 28x28 images to 32x32."""
    N, H, W = images.shape
    if H == _SIDE:
        return images
    border = (_SIDE - H) // 2
    padded = np.zeros((N, _SIDE, _SIDE), np.uint8)
    padded[:, border : border + H, border : border + W] = images
    return padded


def _require_images(function: str, images: Any, sides: tuple[int, ...] | None) -> None:
    """Refuse anything but a uint8 array (N, H, W) or, if sides are given, one of squares with such sides."""
    if backend_of_type(type(images)) is None or images.dtype != np.uint8:
        found = type(images).__name__ if backend_of_type(type(images)) is None else images.dtype
        raise TypeError(f"{function}: images are {found}, expected an array of uint8")
    wanted = "(N, H, W)" if sides is None else " or ".join(f"(N, {side}, {side})" for side in sides)
    fits = images.ndim == 3 and 0 not in images.shape[1:]
    if not fits or (sides is not None and images.shape[1:] not in [(side, side) for side in sides]):
        raise ValueError(f"{function}: images have shape {images.shape}, expected {wanted}")
