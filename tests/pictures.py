"""Pictures as people take them, of one digit or of none, to measure `examples.predict` on.

`python -m tests.pictures --data-dir data` makes them and counts right answers, refusals and wrong answers;
`--save DIR` keeps what went wrong. A picture is a digit (from a font, of strokes, or from MNIST), or something else, on
paper that may be ruled or squared, lie on a desk, be tilted, lit from one side and in a shadow; then the camera's blur,
grain, EXIF and JPEG.
"""

import argparse
import io
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from examples import predict
from tinygrad_lenet import data

Rng = np.random.Generator
FONTS = (
    "DejaVuSans", "DejaVuSans-Bold", "DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSansMono", "DejaVuSans-Oblique",
    "STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "cmr10", "cmss10", "cmtt10",
)  # fmt: skip
# How digits are written, as strokes through points of a square; | lifts the pen. Some digits are written in two ways.
STROKES = {
    0: ["50,2 15,25 12,70 48,98 85,72 86,28 50,2"],
    1: ["50,0 50,100", "25,25 55,0 55,100", "25,25 50,0 50,100|25,100 75,100", "62,0 40,100"],
    2: ["15,25 40,2 75,10 78,38 45,70 12,98|12,98 45,97 88,98", "15,20 45,0 80,20 60,60 15,97 30,90 60,96 90,95"],
    3: ["15,12 50,0 82,20 70,42 40,48|40,48 80,55 85,82 48,100 12,86"],
    4: ["60,0 10,65|10,65 90,65|68,30 68,100", "20,0 14,55|14,55 85,55|72,5 70,100", "70,0 12,66 90,66|70,0 70,100"],
    5: ["80,0 25,0|25,0 20,45|20,45 55,38 85,65 60,98 12,92", "22,2 18,45|18,45 60,40 82,70 50,99 12,90|22,2 82,2"],
    6: ["70,2 30,35 15,70 45,100 82,75 55,50 18,72", "55,0 22,40 20,85 55,100 80,72 50,52 22,75"],
    7: ["12,2 88,2|88,2 40,100", "12,5 85,2|85,2 45,100|30,52 78,50"],
    8: ["75,15 45,2 22,22 50,48 82,75 50,99 18,76 50,48 78,24 70,10"],
    9: ["82,25 50,2 18,28 45,55 80,32 82,25|82,22 75,65 60,100", "80,20 45,3 20,30 50,50 80,25|80,20 78,100"],
}  # fmt: skip


@dataclass
class Picture:
    """The bytes of a file, what it is, and its digit, or None."""

    data: bytes
    kind: str
    digit: int | None


# Ink, as an array from 0 to 1


def in_print(rng: Rng, text: str, side: int = 300) -> np.ndarray:
    font = ImageFont.truetype(str(Path(mpl.get_data_path(), "fonts", "ttf", f"{rng.choice(FONTS)}.ttf")), side)
    canvas = Image.new("L", (side * (1 + len(text)), 2 * side))
    ImageDraw.Draw(canvas).text((side * (1 + len(text)) / 2, side), text, 255, font, "mm")
    return tight(np.asarray(canvas, float) / 255)


def by_hand(rng: Rng, digit: int, side: int = 300) -> np.ndarray:
    """Strokes, each point of which is a little off, in a pen of some width."""
    width = float(rng.uniform(0.04, 0.16)) * side
    canvas = Image.new("L", (2 * side, 2 * side))
    lean, aspect = rng.uniform(-0.25, 0.1), rng.uniform(0.55, 0.95)
    for stroke in str(rng.choice(STROKES[digit])).split("|"):
        points = np.array([list(map(float, point.split(","))) for point in stroke.split()]) / 100
        points += rng.normal(size=points.shape) * 0.02
        smooth = (
            ndimage.zoom(points, (30, 1), order=min(3, len(points) - 1), mode="nearest") if len(points) > 2 else points
        )
        u = side * (0.5 + aspect * smooth[:, 0] - lean * (smooth[:, 1] - 0.5))
        line = [tuple(p) for p in np.stack([u, side * (0.5 + smooth[:, 1])], axis=1)]
        draw = ImageDraw.Draw(canvas)
        draw.line(line, 255, round(width), "curve")
        for x, y in (line[0], line[-1]):
            draw.ellipse((x - width / 2, y - width / 2, x + width / 2, y + width / 2), 255)
    return tight(np.asarray(canvas, float) / 255)


def from_set(images: np.ndarray) -> Callable[[int], np.ndarray]:
    def enlarge(n: int) -> np.ndarray:
        large = Image.fromarray(images[n]).resize((280, 280), Image.Resampling.BICUBIC)
        return tight(np.clip(np.asarray(large, float) / 255 * 1.6 - 0.3, 0, 1))  # with edges as sharp as a pen's

    return enlarge


def tight(ink: np.ndarray) -> np.ndarray:
    rows, columns = (np.flatnonzero((ink > 0.2).any(axis=axis)) for axis in (1, 0))
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def scaled(ink: np.ndarray, height: float) -> np.ndarray:
    size = (max(2, round(ink.shape[1] * height / ink.shape[0])), max(2, round(height)))
    return np.asarray(Image.fromarray((255 * ink).astype(np.uint8)).resize(size, Image.Resampling.BOX), float) / 255


# Scenes


def texture(rng: Rng, H: int, W: int, size: float) -> np.ndarray:
    """Smooth noise of mean 0 and deviation 1, in patches of about size pixels."""
    coarse = rng.normal(size=(max(2, int(H / size) + 2), max(2, int(W / size) + 2)))
    rough = Image.fromarray(coarse.astype(np.float32)).resize((W, H), Image.Resampling.BICUBIC)
    return np.asarray(rough, float)


def shaded(rng: Rng, scene: np.ndarray, shadow: bool) -> np.ndarray:
    """Light from one side, corners that darken, and perhaps a shadow with a soft edge."""
    H, W = scene.shape
    v, u = np.meshgrid(np.linspace(-1, 1, H), np.linspace(-1, 1, W), indexing="ij")
    light = 1 + rng.uniform(-0.2, 0.2) * u + rng.uniform(-0.2, 0.2) * v - rng.uniform(0, 0.15) * (u * u + v * v)
    if shadow:
        angle = rng.uniform(0, 2 * np.pi)
        depth = np.cos(angle) * u + np.sin(angle) * v - rng.uniform(-0.6, 0.6)
        light = light * (1 - rng.uniform(0.15, 0.5) / (1 + np.exp(-depth / rng.uniform(0.01, 0.15))))
    return scene * light


def canvas_of(rng: Rng, place: Callable[[Image.Image], None], H: int, W: int, tilt: float) -> np.ndarray:
    """What ``place`` draws on a sheet twice as large, turned and cut to H x W."""
    sheet = Image.new("L", (2 * W, 2 * H))
    place(sheet)
    return (
        np.asarray(sheet.rotate(tilt, Image.Resampling.BICUBIC).crop((W // 2, H // 2, W // 2 + W, H // 2 + H)), float)
        / 255
    )


def scene(rng: Rng, kind: str, draw_ink: Callable[[], np.ndarray] | None, share: float, plain: bool) -> np.ndarray:
    """Brightness[H W] of ink on paper, ``share`` of the height high; kind says what else is there."""
    H = int(np.exp(rng.uniform(np.log(300), np.log(1800))))
    W = int(H * rng.uniform(0.7, 1.5))
    share = max(share, 22 / H)
    tilt = 0.0 if plain else rng.uniform(-15, 15)
    ink = None if draw_ink is None else scaled(draw_ink(), share * H)
    if ink is not None and ink.shape[1] > 0.85 * W:
        ink = scaled(ink, 0.85 * W * ink.shape[0] / ink.shape[1])
    h, w = ink.shape if ink is not None else (share * H, share * H)
    # Somewhere on the sheet, so that it is within the picture also after the turn.
    reach_v, reach_u = (
        max(0.0, (0.96 * H - h) / 2 - 0.3 * w * (not plain)),
        max(0.0, (0.96 * W - w) / 2 - 0.3 * h * (not plain)),
    )
    v0, u0 = rng.uniform(-reach_v, reach_v) * 0.9, rng.uniform(-reach_u, reach_u) * 0.9
    turn = np.radians(tilt)
    middle = (W + np.cos(turn) * u0 - np.sin(turn) * v0, H + np.sin(turn) * u0 + np.cos(turn) * v0)
    left, top = round(middle[0] - w / 2), round(middle[1] - h / 2)

    def write(sheet: Image.Image) -> None:
        if ink is not None:
            sheet.paste(Image.fromarray((255 * ink).astype(np.uint8)), (left, top))

    pitch = rng.uniform(0.5, 1.6) * h if "lined" in kind else rng.uniform(0.3, 0.8) * h
    line = max(1, round(rng.uniform(0.01, 0.03) * h))

    def rule(sheet: Image.Image) -> None:
        draw = ImageDraw.Draw(sheet)
        if "lined" in kind or "squared" in kind:
            for y in np.arange(middle[1] + h / 2 + rng.uniform(0, 0.3) * h - 40 * pitch, 2 * H, pitch):
                draw.line((0, y, 2 * W, y), 255, line)
        if "squared" in kind:
            for x in np.arange(middle[0] - 40 * pitch, 2 * W, pitch):
                draw.line((x, 0, x, 2 * H), 255, line)
        if "box" in kind:
            du, dv = (rng.uniform(0.12, 0.6) * h for _ in range(2))
            draw.rectangle(
                (left - du, top - dv, left + w + du, top + h + dv),
                None,
                255,
                max(1, round(rng.uniform(0.01, 0.06) * h)),
            )

    written, ruled = canvas_of(rng, write, H, W, tilt), canvas_of(rng, rule, H, W, tilt)
    light = rng.random() < 0.25  # on dark
    paper = rng.uniform(0.05, 0.3) if light else rng.uniform(0.65, 0.95)
    dark = rng.uniform(0.55, 0.95) if light else rng.uniform(0.05, 0.4) * paper
    strength = 1.0 if "box" in kind else rng.uniform(0.15, 0.5)
    picture = np.full((H, W), paper) + (dark - paper) * strength * ruled
    picture += (dark - picture) * written
    if "desk" in kind:
        # The sheet's corners, beyond the ink by some of its height; tilted as all that is on it.
        away = rng.uniform(0.25, 1.2, 4) * min(H, W) * 0.3 + 0.12 * h
        corners = [(left - away[0], top - away[1]), (left + w + away[2], top - away[1]),
                   (left + w + away[2], top + h + away[3]), (left - away[0], top + h + away[3])]  # fmt: skip
        jitter = rng.normal(size=(4, 2)) * 0.02 * h
        sheet = canvas_of(
            rng, lambda s: ImageDraw.Draw(s).polygon([tuple(c) for c in np.array(corners) + jitter], 255), H, W, tilt
        )
        desk = rng.uniform(0.5, 0.9) if light else rng.uniform(0.1, 0.45)
        grain = 0.04 * texture(rng, H, W, H / 12) + 0.03 * texture(rng, H, W, 3)
        picture = sheet * picture + (1 - sheet) * (desk + grain)
    return shaded(rng, picture, "shadow" in kind)


def camera(rng: Rng, picture: np.ndarray, plain: bool) -> tuple[bytes, str]:
    """A file of the scene: blur, grain, colour, orientation, format."""
    picture = ndimage.gaussian_filter(picture, rng.uniform(0.3, 1.0))
    picture = picture + rng.normal(size=picture.shape) * rng.choice([0, 0.01, 0.03])
    tint = rng.uniform(0.9, 1.0, 3) if rng.random() < 0.5 else np.ones(3)
    image = Image.fromarray((255 * np.clip(picture[..., None] * tint, 0, 1)).astype(np.uint8))
    turns = {1: None, 3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
    orientation = int(rng.choice(list(turns)))
    method = turns[orientation]
    stored = image if method is None else image.transpose(method)
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    if rng.random() < 0.75:
        stored.save(file, "JPEG", quality=int(rng.choice([30, 50, 75, 95])), exif=exif)
    else:
        stored.save(file, "PNG", exif=exif, compress_level=1)
    return file.getvalue(), "JPEG"


SURFACES = ("plain", "shadow", "desk", "desk shadow", "lined", "squared shadow", "box", "box desk shadow", "lined desk")
OTHERS = ("nothing", "several", "letters", "board", "scribble", "shapes", "texture")


def one_digit(rng: Rng, images: np.ndarray | None, labels: np.ndarray | None) -> Picture:
    digit, kind = int(rng.integers(10)), str(rng.choice(SURFACES))
    writer = str(rng.choice(["print", "hand"] if images is None else ["print", "hand", "set"]))

    def ink() -> np.ndarray:
        if writer == "set":
            assert images is not None and labels is not None
            return from_set(images)(int(rng.choice(np.flatnonzero(labels == digit))))
        return in_print(rng, str(digit)) if writer == "print" else by_hand(rng, digit)

    largest = 0.9 if kind in ("plain", "shadow") else 0.5
    share = float(np.exp(rng.uniform(np.log(0.03), np.log(largest))))
    plain = kind == "plain" or share > 0.6
    return Picture(camera(rng, scene(rng, kind, ink, share, plain), plain)[0], f"{kind}, {writer}", digit)


def no_digit(rng: Rng, images: np.ndarray | None, labels: np.ndarray | None) -> Picture:
    kind, surface = str(rng.choice(OTHERS)), str(rng.choice(SURFACES))
    share = float(rng.uniform(0.08, 0.4))

    def ink() -> np.ndarray:
        if kind == "several":
            digits = [
                by_hand(rng, int(k)) if rng.random() < 0.5 else in_print(rng, str(k))
                for k in rng.integers(10, size=rng.integers(2, 5))
            ]
            digits = [scaled(each, 200 * rng.uniform(0.8, 1.2)) for each in digits]
            gap = int(rng.uniform(20, 150))
            row = np.zeros((260, sum(each.shape[1] + gap for each in digits)))
            u = 0
            for each in digits:
                v = int(rng.uniform(0, 260 - each.shape[0]))
                row[v : v + each.shape[0], u : u + each.shape[1]] = each
                u += each.shape[1] + gap
            return tight(row)
        if kind == "letters":
            return in_print(rng, "".join(rng.choice(list("AEFHKMNPRTWXYadefhkmnrtwx#%&@"), rng.integers(1, 6))))
        if kind == "board":
            n = int(rng.integers(3, 9))
            return np.kron(np.indices((n, n)).sum(axis=0) % 2, np.ones((30, 30)))
        side = Image.new("L", (300, 300))
        draw = ImageDraw.Draw(side)
        if kind == "scribble":
            points = ndimage.zoom(rng.uniform(20, 280, (rng.integers(7, 14), 2)), (8, 1), order=3, mode="nearest")
            draw.line([tuple(p) for p in points], 255, int(rng.integers(6, 30)), "curve")
        else:
            shape, a = int(rng.integers(4)), rng.uniform(60, 140)
            if shape == 0:
                draw.ellipse((150 - a, 150 - a, 150 + a, 150 + a), 255)
            elif shape == 1:
                draw.rectangle((150 - a, 150 - a, 150 + a, 150 + a), 255)
            elif shape == 2:
                draw.polygon([tuple(p) for p in rng.uniform(20, 280, (3, 2))], 255)
            else:
                draw.line((20, 150, 280, 150), 255, 20)
                draw.line((150, 20, 150, 280), 255, 20)
        return tight(np.asarray(side, float) / 255)

    if kind == "nothing":
        picture = scene(rng, surface, None, share, False)
    elif kind == "texture":
        H, W = (int(n) for n in rng.integers(200, 900, 2))
        picture = 0.5 + rng.uniform(0.02, 0.2) * texture(rng, H, W, float(np.exp(rng.uniform(0.5, 5))))
        picture = shaded(rng, picture, bool(rng.random() < 0.5))
    else:
        picture = scene(rng, surface, ink, share, False)
    return Picture(camera(rng, picture, False)[0], f"{kind}, {surface}", None)


def make(seed: int, n: int, images: np.ndarray | None = None, labels: np.ndarray | None = None) -> Picture:
    """The n-th picture of a seed, every other one of a digit; some from images[N 28 28] with labels[N], if given."""
    return (one_digit, no_digit)[n % 2](np.random.default_rng((seed, n)), images, labels)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.pictures", description="Measure examples.predict.")
    parser.add_argument("--data-dir", type=Path, help="folder with MNIST's test set, for digits from it")
    parser.add_argument("--count", type=int, default=400, help="of pictures, half of them of a digit")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save", type=Path, help="folder for the pictures that were not read, or wrongly")
    args = parser.parse_args()
    images, labels = (None, None) if args.data_dir is None else data.mnist(args.data_dir, "test")
    counts: dict[str, Counter[str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "picture")
        for i in range(args.count):
            picture = make(args.seed, i, images, labels)
            path.write_bytes(picture.data)
            try:
                (answer,) = predict.probabilities(predict.pretrained(), predict.digit_of(path)[None]).argmax(axis=1)
            except ValueError as error:
                outcome, said = "refused", str(error).removeprefix(f"{path}: ")
            else:
                outcome, said = "right" if answer == picture.digit else "wrong", f"{answer}"
            what = "no digit" if picture.digit is None else "a digit"
            for kind in (what, *(f"{what}: {each}" for each in picture.kind.split(", "))):
                counts.setdefault(kind, Counter())[outcome] += 1
            if args.save and outcome != ("refused" if picture.digit is None else "right"):
                args.save.mkdir(parents=True, exist_ok=True)
                (args.save / f"{args.seed}-{i}").write_bytes(picture.data)
                print(f"{args.save}/{args.seed}-{i}: {picture.kind}, {picture.digit}: {said}", flush=True)
    for kind, outcomes in sorted(counts.items()):
        print(f"{kind:24} " + ", ".join(f"{outcomes[name]:4} {name}" for name in ("right", "refused", "wrong")))


if __name__ == "__main__":
    main()
