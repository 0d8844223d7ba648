"""Make the weights that come with the package: `python -m examples.make_pretrained --data-dir data`.

`LeNet5.pretrained()` and `LeNet5_1998.pretrained()` are to read digits that anyone has drawn, printed or photographed,
not MNIST alone, and to be unsure of what is no digit. So MNIST's training images are shifted, scaled, squeezed, sheared
and turned, and their strokes thinned and widened; printed digits are added; and one image in five is no digit, which no
class should answer to: letters, scribbles, patterns, several digits at once. Settings were chosen on 5,000 training
images that are held out; the test set is only reported on. Read from top to bottom: what is no digit, the printed
digits, the distortions, the training.
"""

import os

from examples import programs

if __name__ == "__main__":
    programs.begin("matplotlib", "PIL", "scipy", "tqdm")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before NumPy reads it: the matrices are too small to share

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage
from tqdm import tqdm

from examples.mnist_form import to_mnist
from models import LeNet5, LeNet5_1998
from tinygrad_lenet import Tensor, checkpoint, data, nn, no_grad, optim, parallel
from tinygrad_lenet import functional as F

HELD_OUT = 5_000
PRINTED = 6_000
OTHERS = 14_000  # images that show no digit
NONE = 10  # their label
J = 8.0  # of Eq. 9: the penalty of the class of rubbish
LETTERS = "AEFHKLMNPRTVWXYadefhkmnrtuvwx#%&@?+=*"  # none that can be written like a digit
FONTS = tuple(  # that come with matplotlib
    f"DejaVu{family}{style}"
    for family, slanted in (("Sans", "Oblique"), ("SansMono", "Oblique"), ("Serif", "Italic"))
    for style in ("", "-Bold", f"-{slanted}", f"-Bold{slanted}")
)
TURN = Image.Resampling.BILINEAR
Sets = tuple[np.ndarray, np.ndarray]  # images, labels
SIDE = 60  # of the canvas on which they are drawn, before they get MNIST's form


# What is no digit


def letters(rng: np.random.Generator, images: np.ndarray, labels: np.ndarray) -> Image.Image:
    """One letter or sign, or two."""
    return in_print(rng, "".join(rng.choice(list(LETTERS), rng.integers(1, 3))))


def scribbles(rng: np.random.Generator, images: np.ndarray, labels: np.ndarray) -> Image.Image:
    """Curves through some points at random: by far most of them are no digits."""
    canvas = Image.new("L", (SIDE, SIDE))
    for _ in range(rng.integers(1, 4)):
        points = rng.uniform(5, SIDE - 5, (rng.integers(5, 10), 2))
        smooth = ndimage.zoom(points, (8, 1), order=rng.choice([1, 3]), mode="nearest")
        ImageDraw.Draw(canvas).line([*map(tuple, smooth)], 255, int(rng.integers(2, 8)), "curve")
    return canvas


def patterns(rng: np.random.Generator, images: np.ndarray, labels: np.ndarray) -> Image.Image:
    """Boards, grids, frames, lines, filled shapes and blots."""
    canvas = Image.new("L", (SIDE, SIDE))
    draw, kind, width = ImageDraw.Draw(canvas), rng.integers(9), int(rng.integers(2, 8))
    height = int(rng.integers(8, 40))
    box = [5, 5, 5 + int(rng.uniform(0.6 * height, 50)), 5 + height]  # not so narrow that it is a one or a zero
    cell = int(rng.integers(6, 30))
    v, u = np.indices((SIDE, SIDE))
    if kind == 0:
        rows, columns = rng.integers(2, SIDE // cell + 1, 2) * cell  # a board, or a few of its squares
        return Image.fromarray((((u // cell + v // cell) % 2 * (v < rows) * (u < columns)) * 255).astype(np.uint8))
    if kind == 1:
        lines = (v % cell < width // 2 + 1) | ((u % cell < width // 2 + 1) & (rng.random() < 0.5))
        return Image.fromarray((lines * 255).astype(np.uint8))
    if kind == 2:
        draw.rectangle(box, None, 255, width)
    elif kind == 3:
        draw.rectangle(box, 255)
    elif kind == 4:
        draw.ellipse(box, 255)
    elif kind == 5:
        angle = rng.uniform(-0.5, 0.5)  # from the horizontal: an upright line is a one
        reach = 28 * np.array([np.cos(angle), np.sin(angle)])
        draw.line([*(30 - reach), *(30 + reach)], 255, width)
        if rng.random() < 0.7:
            draw.line([30 + reach[1], 30 - reach[0], 30 - reach[1], 30 + reach[0]], 255, width)
    elif kind == 6:  # what lies between strokes: a polygon, a crescent
        draw.polygon(rng.uniform(5, 55, 2 * int(rng.integers(3, 6))).tolist(), 255)
    elif kind == 7:
        draw.ellipse(box, 255)
        draw.ellipse([*(np.array(box) + rng.integers(-14, 15, 4))], 0) if box[2] - box[0] > 30 < height else None
    else:
        blots = ndimage.gaussian_filter(rng.normal(size=(SIDE, SIDE)), rng.uniform(1, 8))
        return Image.fromarray(((blots > np.quantile(blots, rng.uniform(0.5, 0.9))) * 255).astype(np.uint8))
    return canvas


def in_print(rng: np.random.Generator, text: str) -> Image.Image:
    font = Path(mpl.get_data_path(), "fonts", "ttf", f"{rng.choice(FONTS)}.ttf")
    canvas = Image.new("L", (3 * SIDE, 2 * SIDE))
    ImageDraw.Draw(canvas).text((SIDE, SIDE), text, 255, ImageFont.truetype(str(font), int(rng.integers(30, 60))), "mm")
    return canvas


def composed(rng: np.random.Generator, images: np.ndarray, labels: np.ndarray) -> Image.Image:
    """Two or three digits side by side, one above another, a digit in a frame or lying on its side."""
    kind = int(rng.integers(4))
    canvas = Image.new("L", (3 * SIDE, 3 * SIDE))
    # Zeros, ones and eights may be digits also on their side, or one above another.
    pool = images if kind in (0, 2) else images[~np.isin(labels, (0, 1, 8))]
    chosen = [Image.fromarray(pool[n % len(pool)]) for n in rng.integers(30_000, size=3)]
    step = int(rng.integers(14, 24))
    if kind <= 1:
        for i in range(rng.integers(2, 4)):
            place = (40 + i * step, 60 + int(rng.integers(-3, 4)))
            canvas.paste(255, place if kind == 0 else (place[1], place[0]), chosen[i])
    elif kind == 2:
        canvas.paste(255, (60, 60), chosen[0])
        ImageDraw.Draw(canvas).rectangle([60, 59, 88, 89], None, 255, int(rng.integers(1, 4)))
    else:
        canvas.paste(255, (60, 60), chosen[0].rotate(int(rng.choice([90, -90])) + rng.uniform(-20, 20)))
    return canvas


KINDS: tuple[Callable[[np.random.Generator, np.ndarray, np.ndarray], Image.Image], ...] = (
    letters,
    scribbles,
    patterns,
    composed,
)


def no_digits(count: int, images: np.ndarray, labels: np.ndarray, seed: int) -> np.ndarray:
    """Images of no digit, uint8 (count, 28, 28), in MNIST's form."""
    rng = np.random.default_rng(seed)
    made: list[np.ndarray] = []
    while len(made) < count:
        ink = np.asarray(KINDS[len(made) % len(KINDS)](rng, images, labels), float) / 255
        if ink.any():
            made.append(to_mnist(ink))
    return np.stack(made)


def printed_digits(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Digits in print, uint8 (count, 28, 28), and labels: MNIST has, for example, few ones with a base."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 10
    return np.stack([to_mnist(np.asarray(in_print(rng, str(k)), float) / 255) for k in labels]), labels


# The distortions


class Distort:
    """Random affine maps, among them turns, and thinner or wider strokes; a function of seed, epoch and position."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.affine = data.Affine(translation=2.5, scale=0.15, squeeze=0.15, shear=0.2, seed=seed)

    def __call__(self, images: np.ndarray, epoch: int, position: int) -> np.ndarray:
        rng = np.random.default_rng((self.seed, epoch, position))
        angles, widths = rng.uniform(-15, 15, len(images)), rng.integers(-150, 256, (len(images), 1, 1))  # of 256
        turned = np.stack([np.asarray(Image.fromarray(x).rotate(a, TURN)) for x, a in zip(images, angles, strict=True)])
        # From more than half of the way to strokes a pixel thinner on each side, to strokes a pixel wider.
        wider = (grown(turned) - turned) * np.maximum(widths, 0).astype(np.uint16)
        thinner = (turned - ~grown(~turned)) * np.maximum(-widths, 0).astype(np.uint16)
        return self.affine(turned + (wider >> 8).astype(np.uint8) - (thinner >> 8).astype(np.uint8), epoch, position)


def grown(images: np.ndarray) -> np.ndarray:
    """The brightest of each pixel and its four neighbours: images[N H W] -> [N H W]."""
    y = images.copy()
    for here, there in ((np.s_[:, 1:], np.s_[:, :-1]), (np.s_[:, :, 1:], np.s_[:, :, :-1])):
        np.maximum(y[here], images[there], out=y[here])
        np.maximum(y[there], images[here], out=y[there])
    return y


# The training


def input_1998(images: np.ndarray) -> np.ndarray:
    return data.to_input(images, background=-0.1, foreground=1.175)


def loss_today(logits: Tensor, labels: np.ndarray) -> Tensor:
    """Cross-entropy; what is no digit should give ten equal probabilities: logits[N 10], labels[N] of 0 to 10."""
    targets = np.vstack([np.eye(10), np.full(10, 0.1)]).astype(np.float32)
    return F.cross_entropy(logits, targets[labels])


def loss_1998(penalties: Tensor, labels: np.ndarray) -> Tensor:
    """Eq. 9, whose last class, rubbish, is what is no digit: penalties[N 10], labels[N] of 0 to 10."""
    rubbish = Tensor(np.full((penalties.shape[0], 1), -J, np.float32))
    return F.cross_entropy(F.concatenate([-penalties, rubbish], axis=1), labels)


@dataclass(frozen=True)
class Recipe:
    """A model, and what differs in its training."""

    build: Callable[[], nn.Module]
    transform: Callable[[np.ndarray], np.ndarray]
    loss: Callable[[Tensor, Any], Tensor]
    lr: float
    batch_size: int
    epochs: int
    sign: int  # of the outputs: the largest logit wins, and the smallest penalty


RECIPES = {
    "lenet5": Recipe(lambda: LeNet5(rng=0), data.to_input, loss_today, 0.004, 128, 14, 1),
    "lenet5_1998": Recipe(lambda: LeNet5_1998("fan-in", rng=0), input_1998, loss_1998, 0.003, 64, 20, -1),
}


def errors(recipe: Recipe, model: nn.Module, images: np.ndarray, labels: np.ndarray) -> int:
    """How many images[N H W] the model takes for another digit."""
    model.eval()
    with no_grad():
        blocks = (model(Tensor(recipe.transform(images[i : i + 500]))).numpy() for i in range(0, len(images), 500))
        best = np.concatenate([(recipe.sign * y).argmax(axis=1) for y in blocks])
    model.train()
    return int((best != labels).sum())


def train(name: str, recipe: Recipe, digits: Sets, epochs: int) -> tuple[nn.Module, int]:
    """A trained model, and how many of the images held out it gets wrong; ``digits`` are MNIST's for training."""
    images, labels = digits
    printed, characters = printed_digits(PRINTED, seed=0)
    others = no_digits(OTHERS, images, labels, seed=0)
    loader = data.DataLoader(
        np.pad(np.concatenate([images[:-HELD_OUT], printed, others]), ((0, 0), (2, 2), (2, 2))),
        np.concatenate([labels[:-HELD_OUT], characters, np.full(len(others), NONE)]),
        batch_size=recipe.batch_size,
        seed=0,
        transform=recipe.transform,
        augment=Distort(seed=0),
    )
    model = recipe.build()
    optimizer = optim.Adam(model.parameters(), lr=recipe.lr)
    schedule = optim.OneCycle(optimizer, max_lr=recipe.lr, total_steps=epochs * len(loader))
    wrong = 0
    with tqdm(total=epochs * len(loader.images), unit=" images", unit_scale=True, desc=name) as bar:
        for _ in range(epochs):
            for x, y in loader:
                loss = recipe.loss(model(Tensor(x)), y)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                bar.update(len(y))
            wrong = errors(recipe, model, images[-HELD_OUT:], labels[-HELD_OUT:])
            bar.set_postfix_str(f"{wrong} errors on {HELD_OUT:,} images held out")
    return model, wrong


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m examples.make_pretrained",
        description="Train both LeNet-5s, ten minutes each, and write their weights, which come with the package.",
        formatter_class=programs.Help,
    )
    parser.add_argument("--data-dir", type=Path, help="folder with MNIST's IDX files (default: your cache folder)")
    parser.add_argument(
        "--models",
        nargs="*",
        choices=RECIPES,
        default=list(RECIPES),
        metavar="MODEL",
        help="%(choices)s (default: both)",
    )
    parser.add_argument("--epochs", type=int, help="passes over the training images (default: the recipe's)")
    parser.add_argument("--out", type=Path, default=Path("models/weights"), help="folder for the weights")
    args = parser.parse_args()
    if args.epochs is not None and args.epochs < 1:
        raise ValueError(f"--epochs is {args.epochs}; expected at least 1")
    parallel.tune_process()
    digits, tests = data.mnist(args.data_dir, "train"), data.mnist(args.data_dir, "test")
    args.out.mkdir(parents=True, exist_ok=True)
    for name in args.models:
        model, wrong = train(name, RECIPES[name], digits, args.epochs or RECIPES[name].epochs)
        counts = {"held_out_errors": wrong, "test_errors": errors(RECIPES[name], model, *tests)}
        checkpoint.save(args.out / f"{name}.safetensors", model.state_dict(), counts)
        print(f"{name}: {wrong} errors on {HELD_OUT:,} images held out, {counts['test_errors']} on the test set")


if __name__ == "__main__":
    programs.run(main)
