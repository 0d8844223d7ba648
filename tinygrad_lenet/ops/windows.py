"""What convolution and pooling share: padded images and the windows on them.

Images are written x[N C H W] but stored batch-last in memory, as (C, H, W, N): copies of windows then move runs of at
least N floats instead of runs as short as an image row. Only speed depends on this.
"""

from collections.abc import Iterator
from typing import Any

from ..backend import Array
from ..shapes import Pair


def empty_images(xp: Any, n: int, c: int, h: int, w: int, dtype: Any) -> Array:
    """Uninitialised images y[N C H W] in batch-last memory."""
    return xp.empty((c, h, w, n), dtype).transpose(3, 0, 1, 2)


def filled_images(xp: Any, n: int, c: int, h: int, w: int, dtype: Any, value: float = 0.0) -> Array:
    """Images y[N C H W] in batch-last memory, with every pixel ``value``."""
    return xp.full((c, h, w, n), value, dtype).transpose(3, 0, 1, 2)


def pad_images(xp: Any, x: Array, padding: Pair, value: float = 0.0) -> Array:
    """x[N C H W] with ``padding`` pixels of ``value`` above and below, left and right."""
    ph, pw = padding
    if not ph and not pw:
        return x
    n, c, h, w = x.shape
    y = filled_images(xp, n, c, h + 2 * ph, w + 2 * pw, x.dtype, value)
    y[:, :, ph : ph + h, pw : pw + w] = x
    return y


def window_pixels(kernel: Pair, stride: Pair, dilation: Pair, positions: Pair) -> Iterator[tuple[int, int, Any]]:
    """For each pixel (kh, kw) of the window, row by row: the index of that pixel in every window on x[N C H W]."""
    (kernel_h, kernel_w), (sh, sw), (dh, dw), (oh, ow) = kernel, stride, dilation, positions
    for kh in range(kernel_h):
        rows = slice(kh * dh, kh * dh + (oh - 1) * sh + 1, sh)
        for kw in range(kernel_w):
            columns = slice(kw * dw, kw * dw + (ow - 1) * sw + 1, sw)
            yield kh, kw, (slice(None), slice(None), rows, columns)
