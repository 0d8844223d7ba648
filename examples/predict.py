"""Classify your own images: `python -m examples.predict --model runs/lenet5 image.png ...`.

Each image shows one digit, dark on light or light on dark, drawn, photographed or scanned, of any size. It is converted
to MNIST's format, and the three most probable classes are printed. Read from top to bottom: the picture, its
background, its ink, MNIST's format; the model; the answers.
"""

import os

from examples import programs

if __name__ == "__main__":
    programs.begin()
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before NumPy reads it: the matrices are too small to share

import argparse
import json
import math
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter, ImageOps, UnidentifiedImageError

from examples.classes import CLASSES
from examples.train_lenet5 import MODELS
from tinygrad_lenet import Tensor, checkpoint, data, nn, no_grad
from tinygrad_lenet import functional as F

FORMATS = ("PNG", "JPEG")
SIDE = 480  # pixels to which a picture's longer side is reduced; strokes of 20 pixels are more than enough
THINNEST = 0.075  # fraction of a digit's longer side: 1.5 pixels of MNIST's 20
FAINTEST = 0.08  # fraction of the way from black to white; anything fainter is paper grain or nothing


# The picture


def read(path: Path) -> np.ndarray:
    """The picture, the right way up, as brightness[H W] from 0 (black) to 1; ValueError or OSError if unreadable."""
    if path.is_dir():
        raise ValueError(f"{path} is a folder; expected PNG or JPEG files")
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        warnings.simplefilter("ignore", UserWarning)  # damaged EXIF data: the picture itself may be fine
        try:
            with Image.open(path, formats=FORMATS) as opened:
                opened.draft("L", (SIDE, SIDE))  # a camera's JPEG is decoded at a smaller size, which is faster
                upright = ImageOps.exif_transpose(opened)
                return brightness(upright)
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):
            raise ValueError(
                f"{path} has more than {Image.MAX_IMAGE_PIXELS:,} pixels; expected a smaller picture"
            ) from None
        except UnidentifiedImageError:
            raise ValueError(f"{path} is not a readable picture; expected a PNG or JPEG file") from None
        except (SyntaxError, EOFError, OSError, ValueError) as error:  # Pillow reports damage in all of these ways
            if isinstance(error, OSError) and error.errno is not None:
                raise ValueError(f"{path} cannot be read ({error.strerror}); check the path") from None
            raise ValueError(f"{path} is damaged ({error}); expected a PNG or JPEG file") from None


def brightness(image: Image.Image) -> np.ndarray:
    """Brightness[H W] from 0 to 1, at most SIDE pixels long; transparent pixels count as white paper."""
    if image.mode.startswith(("I", "F")):  # 16 bits, which Pillow's conversions would clip at 255
        deep = np.asarray(image, np.float32)
        image = Image.fromarray(np.clip(deep / 257, 0, 255).astype(np.uint8))
    seen = image.convert("RGBA")
    seen.thumbnail((SIDE, SIDE), Image.Resampling.BOX)
    grey = np.asarray(seen.convert("L"), np.float32) / 255
    alpha = np.asarray(seen.getchannel("A"), np.float32) / 255
    on_white = alpha * grey + 1 - alpha
    # White ink on a transparent background vanishes on white paper; then whatever is opaque is the ink.
    return on_white if np.ptp(on_white) > FAINTEST or np.ptp(alpha) <= FAINTEST else alpha


# Its background and its ink


def find_ink(picture: np.ndarray) -> np.ndarray:
    """How much ink lies on each pixel of picture[H W], from 0 to 1; ValueError if nothing stands out.

    Ink is darker than the background or lighter, whichever differs more. Specks do not count, and parts that touch the
    picture's edge, such as a shadow or the edge of the paper, count only if there is nothing else.
    """
    difference = picture - background(picture)
    difference = difference if np.sum(difference**3) > 0 else -difference
    strongest = np.sort(difference, axis=None)[-max(4, difference.size // 200) :]  # a thin line covers 1/200
    level = float(strongest.mean()) / 2
    strong = difference > level
    if level >= FAINTEST / 2 and strong.mean() < 0.6:
        grain = 4 * float(np.median(np.abs(difference[~strong])))
        strength = float(np.median(difference[strong])) - grain
        if strength >= FAINTEST / 2:
            return np.clip((difference - grain) / strength, 0, 1) * near_parts(strong)
    raise ValueError("nothing stands out from the background; expected one digit that is darker or lighter")


def background(picture: np.ndarray) -> np.ndarray:
    """The brightness that picture[H W] would have without ink: a quadratic surface, to follow the light on the paper.

    It is fitted first to the picture's edge and then to all pixels that agree with it (least squares, reweighted by
    Tukey's biweight), so ink does not bend it.
    """
    H, W = picture.shape
    v, u = np.meshgrid(np.linspace(-1, 1, H), np.linspace(-1, 1, W), indexing="ij")
    terms = np.stack([np.ones_like(u), u, v, u * u, u * v, v * v], axis=-1)  # [H W 6]
    step = max(1, max(H, W) // 100)
    A, b = terms[::step, ::step].reshape(-1, 6), picture[::step, ::step].reshape(-1)
    edge = np.abs(A[:, 1:3]).max(axis=1) > 0.88
    weight = edge.astype(float)
    residual = b - np.median(b[edge])
    for turn in range(12):
        used = edge if turn < 6 else weight > 0
        spread = max(0.01, 1.5 * float(np.median(np.abs(residual[used]))))
        weight = np.maximum(0, 1 - (residual / (4 * spread)) ** 2) ** 2
        weight *= edge if turn < 6 else 1
        # A small pull towards a flat surface decides where the pixels do not.
        fit = np.linalg.solve(A.T @ (weight[:, None] * A) + 1e-3 * np.diag([0, 1, 1, 1, 1, 1]), A.T @ (weight * b))
        residual = b - A @ fit
    return terms @ fit


def near_parts(strong: np.ndarray) -> np.ndarray:
    """A mask of the larger connected parts of strong[H W] and their surroundings, without those that touch the edge."""
    k = math.ceil(max(strong.shape) / 100)  # on a grid of cells of k x k pixels, which closes small gaps
    H, W = strong.shape
    cells = np.pad(strong, ((0, -H % k), (0, -W % k))).reshape(-(-H // k), k, -(-W // k), k).any(axis=(1, 3))
    unseen = {(int(v), int(u)) for v, u in np.argwhere(cells)}
    parts: list[set[tuple[int, int]]] = []
    while unseen:
        front = [unseen.pop()]
        part = set(front)
        while front:
            v, u = front.pop()
            near = {(v + dv, u + du) for dv in (-1, 0, 1) for du in (-1, 0, 1)} & unseen
            unseen -= near
            part |= near
            front.extend(near)
        parts.append(part)
    largest = max(map(len, parts))
    parts = [part for part in parts if len(part) > 0.07 * largest]
    rows, columns = cells.shape
    inner = [part for part in parts if not any(v in (0, rows - 1) or u in (0, columns - 1) for v, u in part)]
    kept = np.zeros((rows + 2, columns + 2), bool)
    for v, u in set().union(*(inner or parts)):
        kept[v : v + 3, u : u + 3] = True  # with the surrounding cells, for the ink's soft edge
    return kept[1:-1, 1:-1].repeat(k, axis=0).repeat(k, axis=1)[:H, :W]


# MNIST's format


def to_mnist(ink: np.ndarray) -> np.ndarray:
    """A digit's ink[H W] in MNIST's format: uint8 (28, 28), white on black.

    Its bounding box is scaled to fit 20 x 20 pixels, keeping its proportions and smoothing its edges, and placed with
    its centre of mass in the middle (source: LeCun, Cortes, Burges, The MNIST database of handwritten digits). Strokes
    much thinner than MNIST's are widened first, since they would vanish.
    """
    rows, columns = (np.flatnonzero((ink > 0.15).any(axis=axis)) for axis in (1, 0))
    ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    image = Image.fromarray(np.rint(255 * ink).astype(np.uint8))
    missing = THINNEST * max(image.size) - stroke(ink)
    if missing > 1:
        image = image.filter(ImageFilter.MaxFilter(2 * round(missing / 2) + 1))
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


def digit_of(path: Path) -> np.ndarray:
    """The digit in a picture file in MNIST's format, uint8 (28, 28); ValueError if there is none."""
    try:
        return to_mnist(find_ink(read(path)))
    except ValueError as error:
        raise ValueError(str(error) if str(path) in str(error) else f"{path}: {error}") from None


# The model


def load(folder: Path) -> tuple[nn.Module, Sequence[str]]:
    """The model that the training example saved in ``folder``, and its classes' names; ValueError if unusable."""
    try:
        metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        settings = metrics["arguments"]
        name, dataset = settings["model"], settings["dataset"]
    except OSError as error:
        raise ValueError(
            f"--model: {folder / 'metrics.json'} cannot be read ({error.strerror}); "
            "name a folder that examples.train_lenet5 wrote with --out"
        ) from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"--model: {folder / 'metrics.json'} does not say which model was trained "
            f"({type(error).__name__}: {error}); expected a file that examples.train_lenet5 wrote"
        ) from None
    for kind, value, known in (("model", name, list(MODELS)), ("dataset", dataset, list(CLASSES))):
        if value not in known:
            raise ValueError(f"--model: {folder} holds the {kind} {value!r}; expected one of {', '.join(known)}")
    model = MODELS[name](0)
    tensors, _ = checkpoint.load(folder / "model.safetensors")
    try:
        model.load_state_dict(tensors)
    except ValueError as error:
        raise ValueError(f"--model: {folder / 'model.safetensors'} does not fit {name}: {error}") from None
    return model, CLASSES[dataset]


def probabilities(model: nn.Module, images: np.ndarray) -> np.ndarray:
    """The probability of each class for uint8 images[N 28 28]: [N K]."""
    with no_grad():
        return F.softmax(model.eval()(Tensor(data.to_input(images)))).numpy()


# The answers


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m examples.predict",
        description="Say which digit each image shows: one line per image, with the three most probable classes.",
    )
    parser.add_argument(
        "--model", type=Path, required=True, metavar="DIR", help="folder that examples.train_lenet5 wrote with --out"
    )
    parser.add_argument("images", type=Path, nargs="+", metavar="IMAGE", help="PNG or JPEG files, one digit each")
    args = parser.parse_args()
    model, names = load(args.model)
    failures = 0
    for path in args.images:
        try:
            (answer,) = probabilities(model, digit_of(path)[None])
        except ValueError as error:
            failures += 1
            print(f"predict: {error}", file=sys.stderr)
        else:
            best = np.argsort(-answer, kind="stable")[:3]
            print(f"{path}: " + ", ".join(f"{names[k]} {answer[k]:.1%}" for k in best))
    return 1 if failures else 0


if __name__ == "__main__":
    programs.run(main)
