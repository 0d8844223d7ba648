"""How a digit comes to MNIST's form, whoever wrote it: to its size, its place and its strokes' width."""

import numpy as np
from PIL import Image
from scipy import ndimage

THINNEST = 0.075  # of a digit's longer side: 1.5 pixels of MNIST's 20


def to_mnist(ink: np.ndarray) -> np.ndarray:
    """A digit's ink[H W] in MNIST's format: uint8 (28, 28), white on black.

    Its bounding box is scaled to fit 20 x 20 pixels, keeping its proportions and smoothing its edges, and placed with
    its centre of mass in the middle (source: LeCun, Cortes, Burges, The MNIST database of handwritten digits). Strokes
    much thinner than MNIST's are widened first, since they would vanish.
    """
    rows, columns = (np.flatnonzero((ink > 0.15).any(axis=axis)) for axis in (1, 0))
    ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    missing = THINNEST * max(ink.shape) - stroke(ink)
    if missing > 1:
        ink = ndimage.grey_dilation(np.pad(ink, round(missing / 2)), 2 * round(missing / 2) + 1)
    image = Image.fromarray(np.rint(255 * ink).astype(np.uint8))
    scale = 20 / max(image.size)
    size = (max(1, round(scale * image.width)), max(1, round(scale * image.height)))
    small = np.asarray(image.resize(size, Image.Resampling.BICUBIC), np.float64)
    small *= 255 / small.max()
    place = []
    for axis, length in enumerate(small.shape):
        centre = np.average(np.arange(length), weights=small.sum(axis=1 - axis))
        place.append(min(max(round(14 - centre), 0), 28 - length))
    digit = np.zeros((28, 28), np.uint8)
    digit[place[0] : place[0] + small.shape[0], place[1] : place[1] + small.shape[1]] = np.rint(small)
    return digit


def stroke(ink: np.ndarray) -> float:
    """The approximate width of the strokes, in pixels: twice the area divided by the length of the outline."""
    inside = np.pad(ink > 0.5, 1)
    core = inside[1:-1, 1:-1] & inside[:-2, 1:-1] & inside[2:, 1:-1] & inside[1:-1, :-2] & inside[1:-1, 2:]
    area = inside.sum()
    return float(2 * area / max(1, area - core.sum()))
