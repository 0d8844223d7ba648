"""Classify images of your own: `python -m examples.predict image.png ...`.

Each image shows one digit, dark on light or light on dark, drawn, photographed or scanned, of any size from a
thirtieth of the picture's height, tilted by at most 15 degrees, perhaps on lined paper, in a box, in a shadow or on a
sheet on a desk. It is brought to MNIST's form, and the three most probable classes are printed. An image of several
digits, or of none, is refused: of 400 made pictures of one digit 378 were read right, 19 refused and 3 read wrong, and
of 400 others 7 were answered (`python -m tests.pictures --data-dir DIR`, seeds 201 and 202, makes them and counts).
Read from top to bottom: the picture, the marks on it, which mark is the digit (in MNIST's form, see `mnist_form.py`);
the model; the answers.
"""

import os

from examples import programs

if __name__ == "__main__":
    programs.begin("PIL", "scipy", "tqdm")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before NumPy reads it: the matrices are too small to share

import argparse
import json
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from scipy import ndimage

from examples.classes import CLASSES, DIGITS
from examples.mnist_form import to_mnist
from examples.train_lenet5 import MODELS
from models import LeNet5
from tinygrad_lenet import Tensor, checkpoint, data, nn, no_grad
from tinygrad_lenet import functional as F

PICTURES = "a picture file, such as PNG or JPEG"
SIDE = 720  # pixels of a picture's longer side that are looked at
LEVELS = 16  # of brightness
SMALLEST = 25  # pixels
MOST = 300  # marks, of a picture that is all grain
LIKELY = 0.5  # a probability, of a mark that may be the digit; of what is none it is mostly below
CLEAR = 0.14  # of the way from black to white: a digit fainter than that looks like paper grain does
SURE = 0.75  # a probability, of the digit, in the mean of three tilts
TILT = 8  # degrees
NO_DIGIT = "no digit could be read; expected one, darker or lighter than all around it"
FAINTEST = 0.06  # of the way from black to white; what stands out less is paper grain or nothing


# The picture


def read(path: Path) -> np.ndarray:
    """The picture, the right way up, as brightness[H W] from 0 (black) to 1; ValueError or OSError if unreadable."""
    if path.is_dir():
        raise ValueError(f"{path} is a folder; expected {PICTURES}")
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is no ordinary file; expected {PICTURES}")  # a pipe would be waited for
    Image.init()
    formats = [name for name in Image.OPEN if name not in ("EPS", "WMF")]  # which other programs would be run for
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        warnings.simplefilter("ignore", UserWarning)  # damaged EXIF data: the picture itself may be fine
        try:
            with Image.open(path, formats=formats) as opened:
                opened.draft("L", (SIDE, SIDE))  # a JPEG of a camera is decoded small, which is faster
                return brightness(ImageOps.exif_transpose(opened))
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):
            raise ValueError(
                f"{path} has more than {Image.MAX_IMAGE_PIXELS:,} pixels; expected a smaller picture"
            ) from None
        except UnidentifiedImageError:
            raise ValueError(f"{path} is not a readable picture; expected {PICTURES}") from None
        except Exception as error:  # Pillow's many formats report damage in many ways
            if isinstance(error, OSError) and error.errno is not None:
                raise ValueError(f"{path} cannot be read ({error.strerror}); check the path") from None
            raise ValueError(f"{path} is damaged ({error}); expected {PICTURES}") from None


def brightness(image: Image.Image) -> np.ndarray:
    """Brightness[H W] from 0 to 1, enlarged or made smaller to a size at which strokes are some pixels wide.

    What is transparent counts as white paper.
    """
    if image.mode.startswith(("I", "F")):  # more than 8 bits, which Pillow's conversions would cut off at 255
        deep = np.nan_to_num(np.asarray(image, np.float32))
        white = next((white for white in (1, 255, 65535) if deep.max() <= white), deep.max())
        image = Image.fromarray(np.clip(255 / white * deep, 0, 255).astype(np.uint8))
    seen = image.convert("RGBA")
    seen.thumbnail((SIDE, SIDE), Image.Resampling.BOX)
    grey = np.asarray(seen.convert("L"), np.float32) / 255
    alpha = np.asarray(seen.getchannel("A"), np.float32) / 255
    on_white = alpha * grey + 1 - alpha
    # White ink on nothing cannot be seen on white paper; then the ink is where the picture is not transparent.
    ink = on_white if np.ptp(on_white) > FAINTEST or np.ptp(alpha) <= FAINTEST else alpha
    k = -(-SIDE // (3 * max(seen.size)))
    enlarged = Image.fromarray(ink).resize((k * seen.width, k * seen.height), Image.Resampling.BICUBIC)
    return np.clip(np.asarray(enlarged), 0, 1)


# Its marks


@dataclass
class Mark:
    """What hangs together and stands out from all that surrounds it: a digit, a part of one, or anything else."""

    top: int
    left: int
    bottom: int
    right: int
    contrast: float  # of the mark and what surrounds it, from 0 to 1
    dark: bool  # on light, or else light on dark
    ink: np.ndarray  # [bottom-top right-left], from 0 to 1

    @property
    def height(self) -> int:
        return self.bottom - self.top

    @property
    def area(self) -> int:
        return self.height * (self.right - self.left)

    @property
    def hollow(self) -> bool:
        """Whether less than half of the box is ink, as with strokes, and other than with a sheet."""
        return bool((self.ink > 0.2).mean() < 0.5)

    def within(self, other: "Mark") -> bool:
        return other is not self and self.shared(other) > 0.7 * self.area

    def like(self, other: "Mark", taller: float = 2.5, clearer: float = 2) -> bool:
        """Whether size and contrast are much the same, this one's at most so many times the other's."""
        height, contrast = self.height / other.height, self.contrast / other.contrast
        return 0.4 < height < taller and 0.5 < contrast < clearer

    def seen(self, top: int, left: int, bottom: int, right: int) -> np.ndarray:
        """Where this window of the picture shows ink of the mark, at least faint ink: [bottom-top right-left]."""
        window = np.zeros((bottom - top, right - left), bool)
        v0, u0, v1, u1 = max(top, self.top), max(left, self.left), min(bottom, self.bottom), min(right, self.right)
        if v0 < v1 and u0 < u1:
            ink = self.ink[v0 - self.top : v1 - self.top, u0 - self.left : u1 - self.left]
            window[v0 - top : v1 - top, u0 - left : u1 - left] = ink > 0.2
        return window

    def covered(self, other: "Mark") -> float:
        """The share of the ink that lies on the other's ink."""
        return float(other.seen(self.top, self.left, self.bottom, self.right)[self.ink > 0.5].mean())

    def hole(self, other: "Mark") -> bool:
        """Whether this is the ground that the other's strokes enclose, in an 8, a letter or a frame."""
        if not (self.dark != other.dark and other.hollow and self.within(other) and other.height < 4 * self.height):
            return False
        m = 5
        strokes = other.seen(self.top - m, self.left - m, self.bottom + m, self.right + m)
        ink = np.pad(self.ink > 0.5, m)
        around = ndimage.maximum_filter(ink, 2 * m + 1) & ~ndimage.maximum_filter(ink, 3)
        return 0.5 < self.contrast / other.contrast < 2 and bool(strokes[around].mean() > 0.5)

    def shared(self, other: "Mark") -> float:
        """The area that the boxes of both have in common."""
        height = min(self.bottom, other.bottom) - max(self.top, other.top)
        return float(max(0, height) * max(0, min(self.right, other.right) - max(self.left, other.left)))


def find_marks(picture: np.ndarray) -> list[Mark]:
    """The marks on picture[H W], the most conspicuous first: dark ones on light, and light ones on dark.

    At each of many levels of brightness, the connected parts of what is darker (or lighter) are looked at: ink on paper
    is one at some level, wherever the paper lies, whatever light falls on it, and however large the ink is. Kept is
    what does not run into the picture's edge, as desks, sheets and shadows do, is surrounded by one brightness, wider
    than strokes are, which the holes of digits, letters and frames are not, and is close to half-way between both.
    """
    smooth = ndimage.gaussian_filter(picture, 0.8)
    found: list[tuple[float, Mark]] = []
    for dark, values in ((True, smooth), (False, 1 - smooth)):
        for level in np.linspace(values.min(), values.max(), LEVELS + 2)[1:-1]:
            labels, _ = ndimage.label(values < level, np.ones((3, 3)))
            boxes = ndimage.find_objects(labels)
            for k in np.flatnonzero(np.bincount(labels.ravel())[1:] >= SMALLEST):
                found += mark_of(values, float(level), dark, labels, int(k) + 1, boxes[k])
    found = sorted(found, key=lambda each: -each[1].contrast * each[1].height)[:MOST]
    marks: list[Mark] = []
    for _, mark in sorted(found, key=lambda each: each[0]):  # one for each that is there at several levels
        same = (each for each in marks if each.dark == mark.dark)
        if not any(mark.shared(each) > 0.8 * max(mark.area, each.area) for each in same):
            marks.append(mark)
    return sorted(marks, key=lambda mark: -mark.contrast * mark.height)


def mark_of(
    values: np.ndarray, level: float, dark: bool, labels: np.ndarray, k: int, box: tuple[slice, slice]
) -> list[tuple[float, Mark]]:
    """Part k of what lies below the level, as a mark, and how far from half-way the level is; nothing if it is none."""
    (top, bottom), (left, right) = ((side.start, side.stop) for side in box)
    (H, W), height, width = values.shape, bottom - top, right - left
    if top == 0 or left == 0 or bottom == H or right == W:  # a digit only if the picture was cut to its size
        edge = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]) == k
        if height < 0.9 * H or width < 0.9 * W or edge.mean() > 0.4:
            return []
    if width > 4 * height or height > 40 * width or max(height, width) < max(H, W) / 60:
        return []
    away = max(4, height // 4)
    here = tuple(slice(max(0, side.start - away), side.stop + away) for side in box)
    step = max(1, height // 40)  # it takes no more pixels to see how bright things are
    part = labels[here][::step, ::step] == k
    nearby = values[here][::step, ::step]
    close, around = (ndimage.maximum_filter(part, 2 * max(1, n // step) + 1) for n in (max(3, height // 20), away))
    close, around = (region & ~ndimage.maximum_filter(part, 3) for region in (close, around))
    if not part.any() or not close.any():
        return []
    inside, outside = float(np.quantile(nearby[part], 0.25)), float(np.median(nearby[close]))
    contrast = outside - inside
    place = (level - inside) / contrast if contrast >= FAINTEST else 0
    if not 0.2 < place < 0.85 or np.mean(nearby[around] > inside + contrast / 2) < 0.65:
        return []
    rim = part & ~ndimage.minimum_filter(part, 3)
    relief = ndimage.maximum_filter(nearby, 5) - ndimage.minimum_filter(nearby, 5)
    if np.mean(relief[rim] > 0.4 * contrast) < 0.6:  # not as sharp as ink: a shadow
        return []
    m = max(2, height // 40)  # for the ink's soft edge
    top, left, bottom, right = max(0, top - m), max(0, left - m), min(H, bottom + m), min(W, right + m)
    whole = ndimage.maximum_filter(labels[top:bottom, left:right] == k, 2 * m - 1)
    ink = np.clip((outside - values[top:bottom, left:right]) / contrast, 0, 1) * whole
    return [(abs(place - 0.5), Mark(top, left, bottom, right, contrast, dark, ink))]


def with_parts(mark: Mark, marks: Sequence[Mark]) -> Mark:
    """The mark with the smaller ones that belong to it, such as the bar of a five that floats above the rest."""
    reach = 0.35 * mark.height
    parts = [mark]
    for each in marks:
        beside = min(mark.right, each.right) - max(mark.left, each.left) > 0.5 * (each.right - each.left)
        apart = max(each.top - mark.bottom, mark.top - each.bottom)
        alike = each.dark == mark.dark and 0.5 < each.contrast / mark.contrast < 2
        if beside and alike and apart < reach and each.area < 0.4 * mark.area:
            parts.append(each)
    top, left = min(each.top for each in parts), min(each.left for each in parts)
    bottom, right = max(each.bottom for each in parts), max(each.right for each in parts)
    ink = np.zeros((bottom - top, right - left))
    for each in parts:
        place = ink[each.top - top : each.bottom - top, each.left - left : each.right - left]
        np.maximum(place, each.ink, out=place)
    return Mark(top, left, bottom, right, mark.contrast, mark.dark, ink)


# The digit


def find_clothes(picture: np.ndarray) -> np.ndarray:
    """The most conspicuous mark on picture[H W], as Fashion-MNIST would have it; ValueError if there is none."""
    marks = find_marks(picture)
    if not marks:
        raise ValueError("nothing stands out from the background; expected one piece, darker or lighter than it")
    return to_mnist(max(marks, key=lambda mark: mark.contrast * mark.area).ink)


def find_digit(picture: np.ndarray) -> np.ndarray:
    """The one digit on picture[H W], as MNIST would have it, uint8 (28, 28); ValueError if there is none, or several.

    A mark is a digit if the package's own LeNet-5, which has been shown what is none, is sure of it, also of the mark
    tilted to either side: what merely happens to resemble a digit seldom does so three times.
    """
    marks = find_marks(picture)
    if not marks:
        raise ValueError("nothing stands out from the background; expected one digit, darker or lighter than it")
    whole = [with_parts(mark, marks) for mark in marks]
    candidates = [*whole, *marks]
    answers = probabilities(pretrained(), np.stack([to_mnist(mark.ink) for mark in candidates]))
    mark = choose(candidates, answers, marks)
    tilted = [to_mnist(ndimage.rotate(np.pad(mark.ink, 2), tilt, order=1).clip(0, 1)) for tilt in (-TILT, 0, TILT)]
    if probabilities(pretrained(), np.stack(tilted)).mean(axis=0).max() < SURE:
        raise ValueError(NO_DIGIT)
    return to_mnist(mark.ink)


def choose(candidates: Sequence[Mark], answers: np.ndarray, marks: Sequence[Mark]) -> Mark:
    """Which candidate is the one digit, by the probabilities answers[N 10]; ValueError if none is, or several.

    ``marks`` are the picture's, of which the candidates consist.
    """
    sure = answers.max(axis=1)
    unread = {id(mark) for mark, p in zip(candidates, sure, strict=True) if p < 0.9}
    likely = [(mark, p) for mark, p in zip(candidates, sure, strict=True) if p >= LIKELY]
    digits: list[tuple[Mark, str]] = []
    for i in sorted(range(len(candidates)), key=lambda i: -candidates[i].contrast * candidates[i].height * sure[i]):
        mark = candidates[i]
        if sure[i] < LIKELY or mark.contrast < CLEAR:
            continue
        if any(mark.hole(each) or ground(mark, each) for each in marks):
            continue
        if any(frame(mark, each) for each, p in likely if p > sure[i]):
            continue
        if any(fragment(mark, each) for each in marks if id(each) in unread):
            continue
        if any(mark.covered(digit) > 0.6 if mark.dark == digit.dark else mark.within(digit) for digit, _ in digits):
            continue
        digits.append((mark, DIGITS[answers[i].argmax()]))
    if not digits:
        raise ValueError(NO_DIGIT)
    first, name = digits[0]
    # The sides of a box around the digit may have been found one by one, beside the whole.
    frames = [mark for mark in marks if first.within(mark) and first.covered(mark) < 0.3]
    sides = {id(mark) for mark in candidates if any(mark.covered(each) > 0.6 for each in frames if each is not mark)}
    alike = [(mark, name) for mark, name in digits if mark is first or (mark.like(first) and id(mark) not in sides)]
    if len(alike) > 1:
        names = ", ".join(name for _, name in sorted(alike, key=lambda digit: digit[0].left))
        raise ValueError(f"there are several digits ({names}); expected one, so cut the picture")
    for each in candidates:
        beside = each.shared(first) < 0.2 * min(each.area, first.area) and id(each) not in sides
        if beside and each.dark == first.dark and each.like(first, taller=4, clearer=9):
            raise ValueError(f"beside a {name} there is more of its size; expected one digit, so cut the picture")
    return first


def ground(mark: Mark, each: Mark) -> bool:
    """Whether the mark is what lies behind the strokes of the other, as paper does behind a frame."""
    thin = bool((each.ink > 0.2).mean() < 0.25)
    clear = 0.5 < each.contrast / mark.contrast < 2
    return mark.dark != each.dark and thin and clear and each.within(mark) and each.height > 0.25 * mark.height


def frame(mark: Mark, each: Mark) -> bool:
    """Whether the mark is a frame around the other."""
    alike = mark.dark == each.dark and each.height > 0.3 * mark.height
    return alike and each.within(mark) and each.covered(mark) < 0.3


def fragment(mark: Mark, each: Mark) -> bool:
    """Whether the mark is a piece of the other, such as a stroke of a letter, and not touched by a fainter line."""
    if each is mark or mark.dark != each.dark or each.area < 1.3 * mark.area:
        return False
    longest = max(each.height, each.right - each.left)
    if longest > 6 * max(mark.height, mark.right - mark.left) or mark.covered(each) < 0.8:
        return False
    rest = (each.ink > 0.2) & ~ndimage.maximum_filter(mark.seen(each.top, each.left, each.bottom, each.right), 5)
    return bool(rest.any() and each.contrast * np.quantile(each.ink[rest], 0.75) > 0.7 * mark.contrast)


def digit_of(path: Path, find: Callable[[np.ndarray], np.ndarray] = find_digit) -> np.ndarray:
    """What a picture file shows as MNIST would have it, uint8 (28, 28); ValueError if there is none, or several."""
    picture = read(path)
    try:
        return find(picture)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


# The model


@cache
def pretrained() -> LeNet5:
    return LeNet5.pretrained()


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
        "--model",
        type=Path,
        metavar="DIR",
        help="what examples.train_lenet5 wrote with --out (default: the weights that come with the package)",
    )
    parser.add_argument("--plots", type=Path, metavar="DIR", help="draw there what each layer makes of each image")
    parser.add_argument("images", type=Path, nargs="+", metavar="IMAGE", help=f"{PICTURES}, of one digit each")
    args = parser.parse_args()
    model, names = (pretrained(), DIGITS) if args.model is None else load(args.model)
    find = find_digit if names == DIGITS else find_clothes
    if args.plots:
        args.plots.mkdir(parents=True, exist_ok=True)
    failures = 0
    for n, path in enumerate(args.images):
        try:
            digit = digit_of(path, find)
            (answer,) = probabilities(model, digit[None])
        except ValueError as error:
            failures += 1
            print(f"predict: {error}", file=sys.stderr)
        else:
            best = np.argsort(-answer, kind="stable")[:3]
            print(f"{path}: " + ", ".join(f"{names[k]} {answer[k]:.1%}" for k in best))
            if args.plots:
                from examples import plots  # only now: matplotlib takes a while to import

                title = f"What each layer makes of it: read as {names[best[0]]}"
                name = path.stem.encode(errors="replace").decode()
                plots.save(plots.maps(model, digit, answer, title, names), args.plots / f"{n + 1}-{name}.png")
    return 1 if failures else 0


if __name__ == "__main__":
    programs.run(main)
