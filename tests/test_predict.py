"""Classifying a person's own images: any picture of a digit becomes MNIST's, and what is none gets a sentence."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tinygrad_lenet import checkpoint, data

pytest.importorskip("safetensors", reason="the example's packages are not installed")
pytest.importorskip("tqdm", reason="the example's packages are not installed")
pytest.importorskip("matplotlib", reason="the example's packages are not installed")
pytest.importorskip("PIL", reason="the example's packages are not installed")
pytest.importorskip("scipy", reason="the example's packages are not installed")
import matplotlib as mpl
from PIL import Image, ImageDraw, ImageFont

from examples import predict
from examples.mnist_form import to_mnist
from tests import pictures

ROOT = Path(__file__).parents[1]
IMAGES, LABELS = data.digits("test")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the training example leaves behind."""
    out = tmp_path_factory.mktemp("model")
    checkpoint.save(out / "model.safetensors", predict.pretrained().state_dict())
    (out / "metrics.json").write_text(json.dumps({"arguments": {"model": "lenet5", "dataset": "digits"}}))
    return out


def written(character: str, font: str = "DejaVuSans", size: int = 120, ink: Any = "black", paper: Any = "white") -> Any:
    """A character in the middle of a picture, a little to the left."""
    path = Path(mpl.get_data_path(), "fonts", "ttf", f"{font}.ttf")
    image = Image.new("RGB", (2 * size, int(1.8 * size)), paper)
    drawing = ImageDraw.Draw(image)
    drawing.text((0.8 * size, 0.9 * size), character, ink, font=ImageFont.truetype(str(path), size), anchor="mm")
    return image


def seen(image: Any, folder: Path, name: str = "digit.png", **options: Any) -> np.ndarray:
    """What the network would see of an image that is saved under this name."""
    image.save(folder / name, **options)
    return predict.digit_of(folder / name)


def close(a: np.ndarray, b: np.ndarray, most: float = 6.0) -> bool:
    """Whether two digits are the same but for soft edges and a pixel to the side: the mean difference, of 255."""
    moved = [np.roll(a, (v, u), axis=(0, 1)).astype(int) for v in (-1, 0, 1) for u in (-1, 0, 1)]
    return bool(min(np.abs(each - b).mean() for each in moved) < most)


# MNIST's form


def in_mnists_form(digit: np.ndarray) -> None:
    """AssertionError unless the digit just fits 20 x 20 pixels and its centre of mass is in the middle of 28 x 28."""
    assert (digit.shape, digit.dtype, digit.max()) == ((28, 28), np.uint8, 255)
    sides = [np.ptp(np.flatnonzero((digit > 20).any(axis=axis))) + 1 for axis in (0, 1)]
    assert 19 <= max(sides) <= 20
    for axis in (0, 1):
        centre = np.average(np.arange(28), weights=digit.sum(axis=axis))
        assert 13.49 <= centre <= 14.51  # where all of MNIST's are


@pytest.mark.parametrize("character", "0123456789")
def test_mnists_form(character: str, tmp_path: Path) -> None:
    digit = seen(written(character, "DejaVuSerif"), tmp_path)
    in_mnists_form(digit)
    assert digit[:, :2].max() == digit[:2].max() == 0


def test_a_digit_of_mnists_form_stays_as_it_is() -> None:
    """Shifted, enlarged and framed, it comes back."""
    original = to_mnist(IMAGES[3] / 255)
    assert close(to_mnist(original / 255), original, 1)
    large = np.zeros((400, 300))
    large[50:274, 60:284] = original.repeat(8, axis=0).repeat(8, axis=1) / 255
    assert close(to_mnist(large), original, 1.5)


@pytest.mark.parametrize(("height", "width", "rows", "columns"), [(80, 40, 20, 10), (30, 90, 7, 20), (400, 40, 20, 2)])
def test_proportions_are_kept(height: int, width: int, rows: int, columns: int) -> None:
    ink = np.zeros((500, 600))
    ink[20 : 20 + height, 33 : 33 + width] = 1
    digit = to_mnist(ink) > 127
    found = digit.any(axis=1).sum(), digit.any(axis=0).sum()
    assert found == (rows, columns)


def test_thin_lines_do_not_vanish() -> None:
    """A line of 2 pixels in a digit 400 pixels high would be a tenth of a pixel wide."""
    ink = np.zeros((450, 450))
    ink[20:420, 200:202] = 1
    ink[218:220, 100:300] = 1
    digit = to_mnist(ink)
    in_mnists_form(digit)
    assert 2 * 15 < (digit > 100).sum() < 3 * 30


# Any picture of a digit

PLAIN = written("5")


def on_transparent(ink: tuple[int, int, int]) -> Any:
    image = Image.new("RGBA", PLAIN.size, (*ink, 0))
    image.putalpha(PLAIN.convert("L").point(lambda grey: 255 - grey))
    return image


def uneven(strength: float, noise: float, light: bool = False) -> Any:
    """Photographed: light from the upper left, corners that darken, grain; ink takes part of the light."""
    ink = 1 - np.asarray(PLAIN.convert("L"), float) / 255
    v, u = np.meshgrid(*(np.linspace(-1, 1, n) for n in ink.shape), indexing="ij")
    paper = 0.55 - 0.2 * u - 0.1 * v - 0.1 * (u * u + v * v)
    grain = np.random.default_rng(0).normal(size=ink.shape) * noise
    photo = paper * (1 + strength * ink if light else 1 - strength * ink) + grain
    return Image.fromarray((255 * np.clip(photo, 0, 1)).astype(np.uint8))


def framed() -> Any:
    """With a shadow that runs in from the edge, and two specks."""
    image = uneven(0.8, 0.01)
    drawing = ImageDraw.Draw(image)
    drawing.rectangle((0, 0, image.width, 6), 20)
    drawing.ellipse((200, 30, 206, 36), 10)
    drawing.point((20, 180), 0)
    return image


SAME: dict[str, Callable[[], tuple[Any, str]]] = {
    "white on black": lambda: (written("5", ink="white", paper="black"), "a.png"),
    "colours": lambda: (written("5", ink="#b00020", paper="#fff3c0"), "a.png"),
    "pale": lambda: (written("5", ink="#c0c0c0", paper="#e8e8e8"), "a.png"),
    "light on dark": lambda: (written("5", ink="#ffd700", paper="#003366"), "a.jpeg"),
    "small": lambda: (PLAIN.resize((120, 108), Image.Resampling.BOX), "a.png"),
    "large": lambda: (PLAIN.resize((1920, 1728)), "a.jpg"),
    "tight": lambda: (PLAIN.crop(PLAIN.convert("L").point(lambda grey: 255 - grey).getbbox()), "a.png"),
    "much paper": lambda: (Image.new("RGB", (900, 700), "white"), "pasted.png"),
    "black and white": lambda: (PLAIN.convert("1"), "a.png"),
    "palette": lambda: (PLAIN.quantize(8), "a.png"),
    "16 bits": lambda: (Image.fromarray(257 * np.asarray(PLAIN.convert("L"), np.uint16)), "a.png"),
    "grey and alpha": lambda: (PLAIN.convert("LA"), "a.png"),
    "CMYK": lambda: (PLAIN.convert("CMYK"), "a.jpg"),
    "transparent": lambda: (on_transparent((0, 0, 0)), "a.png"),
    "white on transparent": lambda: (on_transparent((255, 255, 255)), "a.png"),
    "uneven light": lambda: (uneven(0.8, 0.0), "a.png"),
    "grain": lambda: (uneven(0.6, 0.03), "a.jpg"),
    "pencil": lambda: (uneven(0.35, 0.01), "a.jpg"),
    "chalk": lambda: (uneven(0.7, 0.02, light=True), "a.jpg"),
    "shadow and specks": lambda: (framed(), "a.png"),
}


@pytest.mark.parametrize("case", SAME)
def test_the_same_digit(case: str, tmp_path: Path) -> None:
    """However it is drawn, photographed and stored, the network sees the same."""
    image, name = SAME[case]()
    if name == "pasted.png":
        image.paste(PLAIN, (600, 30))
    assert close(seen(image, tmp_path, name), seen(PLAIN, tmp_path))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["turned.jpg", "turned.png"])
def test_a_turned_camera(orientation: int, name: str, tmp_path: Path) -> None:
    """EXIF says how the picture was held."""
    T = Image.Transpose
    undo = {
        2: T.FLIP_LEFT_RIGHT, 3: T.ROTATE_180, 4: T.FLIP_TOP_BOTTOM, 5: T.TRANSPOSE,
        6: T.ROTATE_90, 7: T.TRANSVERSE, 8: T.ROTATE_270,
    }  # fmt: skip
    stored = PLAIN.transpose(undo[orientation]) if orientation in undo else PLAIN
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert close(seen(stored, tmp_path, name, exif=exif), seen(PLAIN, tmp_path), 2)


def test_a_digit_in_two_parts_stays_whole(tmp_path: Path) -> None:
    """A five whose bar floats: both parts count."""
    image = Image.new("L", (200, 200), 255)
    drawing = ImageDraw.Draw(image)
    drawing.line((80, 40, 130, 36), 0, 10)
    drawing.arc((60, 70, 140, 160), 210, 500, 0, 10)
    digit = seen(image, tmp_path)
    assert digit[4:7].max() > 200
    assert (digit.any(axis=1)[4:24]).sum() < 20  # the gap is there, too


# On a desk, in a box, on lines


def drawn(*marks: Callable[[Any], Any], size: tuple[int, int] = (480, 360), paper: int = 230) -> Any:
    image = Image.new("L", size, paper)
    for mark in marks:
        mark(ImageDraw.Draw(image))
    return image


def text(word: str, x: int, y: int, size: int = 90, font: str = "DejaVuSans") -> Callable[[Any], Any]:
    path = str(Path(mpl.get_data_path(), "fonts", "ttf", f"{font}.ttf"))
    return lambda draw: draw.text((x, y), word, 30, ImageFont.truetype(path, size), "mm")


def board(draw: Any) -> None:
    for n in range(64):
        u, v = 100 + 30 * (n % 8), 60 + 30 * (n // 8)
        draw.rectangle((u, v, u + 29, v + 29), 30 if (n + n // 8) % 2 else 230)


SCENES: dict[str, Callable[[], Any]] = {
    "a sheet on a desk": lambda: drawn(lambda d: d.rectangle((130, 60, 330, 300), 230), text("5", 230, 180), paper=90),
    "a dark sheet on a light desk": lambda: drawn(
        lambda d: d.polygon([(120, 60), (330, 40), (350, 300), (140, 320)], 200), text("5", 230, 180), paper=245
    ),
    "a box": lambda: drawn(lambda d: d.rectangle((170, 100, 290, 260), None, 30, 4), text("5", 230, 180)),
    "lines": lambda: drawn(
        *(lambda d, y=y: d.line((0, y, 480, y), 150, 2) for y in range(20, 360, 40)), text("5", 230, 180)
    ),
    "a twentieth of the height": lambda: drawn(text("5", 800, 300, 52), size=(960, 720)),
    "nearly all of the height": lambda: drawn(text("5", 240, 180, 430)),
    "tilted": lambda: drawn(text("5", 240, 180)).rotate(13, fillcolor=230),
    "a shadow's edge": lambda: Image.fromarray(
        (np.asarray(drawn(text("5", 240, 180))) * np.where(np.arange(480) < 235, 1, 0.6)).astype(np.uint8)
    ),
}


@pytest.mark.parametrize("case", SCENES)
def test_one_digit_is_found(case: str, tmp_path: Path) -> None:
    digit = seen(SCENES[case](), tmp_path, "digit.jpg", quality=30)
    in_mnists_form(digit)
    (answer,) = predict.probabilities(predict.pretrained(), digit[None])
    assert answer.argmax() == 5


OTHERS: dict[str, tuple[Callable[[], Any], str]] = {
    "two digits": (lambda: drawn(text("4", 150, 180), text("2", 330, 180)), r"several digits \(4, 2\)"),
    "a board": (lambda: drawn(board), "no digit"),
    "an empty box": (lambda: drawn(lambda d: d.rectangle((120, 120, 360, 240), None, 30, 5)), "no digit"),
    "a letter": (lambda: drawn(text("R", 240, 180)), "no digit"),
    "a disc": (lambda: drawn(lambda d: d.ellipse((180, 120, 300, 240), 30)), "no digit"),
    "an empty sheet": (lambda: drawn(lambda d: d.rectangle((130, 60, 330, 300), 230), paper=90), "no digit"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_what_is_no_digit_is_refused(case: str, tmp_path: Path) -> None:
    make, sentence = OTHERS[case]
    with pytest.raises(ValueError, match=sentence):
        seen(make(), tmp_path)


def test_most_pictures_are_read_and_few_others_answered(tmp_path: Path) -> None:
    """The 24 pictures are always the same; `python -m tests.pictures` counts with more."""
    outcomes = {True: [0, 0], False: [0, 0]}
    for n in range(24):
        picture = pictures.make(7, n)
        (tmp_path / "picture").write_bytes(picture.data)
        try:
            digit = predict.digit_of(tmp_path / "picture")
            said = predict.probabilities(predict.pretrained(), digit[None])[0].argmax()
        except ValueError:
            said = None
        outcomes[picture.digit is not None][bool(said == picture.digit)] += 1
    assert outcomes[True][True] >= 11
    assert outcomes[False][True] >= 11


def test_four_pixels_by_four(tmp_path: Path) -> None:
    grey = np.array([[200, 200, 255, 200], [255, 200, 60, 0], [0, 255, 60, 0], [200, 60, 0, 255]], np.uint8)
    with pytest.raises(ValueError, match="digit"):
        seen(Image.fromarray(grey), tmp_path)


@pytest.mark.parametrize("kind", ["GIF", "BMP", "WebP", "TIFF", "PPM"])
def test_formats(kind: str, tmp_path: Path) -> None:
    assert close(seen(PLAIN, tmp_path, "digit", format=kind), seen(PLAIN, tmp_path), 2)


# What the network says


def test_enlarged_test_images(folder: Path, tmp_path: Path) -> None:
    """Test digits as files, dark or light, enlarged or not, PNG or JPEG: most are found, and read as they are.

    They have 8 x 8 pixels, and some are hard to tell.
    """
    model, _ = predict.load(folder)
    rng = np.random.default_rng(0)
    direct, through_files = [], []
    for n, image in enumerate(IMAGES[:60]):
        side = 28 * int(rng.integers(1, 13))
        method = Image.Resampling.NEAREST if n % 3 else Image.Resampling.BICUBIC
        picture = Image.fromarray(255 - image if n % 2 else image).resize((side, side), method)
        try:
            through_files.append(seen(picture, tmp_path, f"digit.{'png' if n % 4 < 2 else 'jpg'}"))
        except ValueError:
            continue
        direct.append(to_mnist(image / 255))
    answers = [predict.probabilities(model, np.stack(x)).argmax(axis=1) for x in (direct, through_files)]
    assert len(direct) > 40
    assert (answers[0] == answers[1]).mean() > 0.9


def test_printed_digits(tmp_path: Path) -> None:
    """In fonts that the package's weights have not seen."""
    model = predict.pretrained()
    fonts = ("STIXGeneralItalic", "cmr10", "cmtt10")
    cases = [(font, k) for font in fonts for k in range(10)]
    digits = [seen(written(str(k), font, 30 + 10 * i), tmp_path) for i, (font, k) in enumerate(cases)]
    right = predict.probabilities(model, np.stack(digits)).argmax(axis=1) == [k for _, k in cases]
    assert right.mean() > 0.95


def run(*words: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "examples.predict", *map(str, words)]
    environment = os.environ | {"PYTHONWARNINGS": "error"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)


def test_three_classes_an_image(folder: Path, tmp_path: Path) -> None:
    """A line each, in the order given; what is no picture is named, the others are still read, and the exit is 1."""
    drawn(lambda draw: draw.line((250, 90, 235, 270), 30, 22)).save(tmp_path / "one.png")
    written("0").save(tmp_path / "zero.jpg")
    (tmp_path / "note.txt").write_text("no picture")
    names = ["one.png", "note.txt", "gone.png", ".", "zero.jpg"]
    done = run("--model", folder, *(tmp_path / name for name in names))
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert [line.split(":")[0] for line in lines] == [str(tmp_path / "one.png"), str(tmp_path / "zero.jpg")]
    for line, best in zip(lines, "10", strict=True):
        answers = [answer.split() for answer in line.split(": ")[1].split(", ")]
        shares = [float(share.removesuffix("%")) for _, share in answers]
        assert (len(answers), answers[0][0]) == (3, best)
        assert shares == sorted(shares, reverse=True)
        assert sum(shares) <= 100.1
    assert done.stderr.splitlines() == [
        f"predict: {tmp_path / 'note.txt'} is not a readable picture; expected {predict.PICTURES}",
        f"predict: {tmp_path / 'gone.png'} cannot be read (No such file or directory); check the path",
        f"predict: {tmp_path} is a folder; expected {predict.PICTURES}",
    ]
    assert (run("--model", folder, tmp_path / "one.png").returncode, run().returncode) == (0, 2)


def test_without_a_training(tmp_path: Path) -> None:
    """The weights that come along answer, and the maps are drawn, whatever the file is called."""
    for name in ("5.png", "five $x$ \udcff.png"):
        PLAIN.save(os.fsencode(tmp_path / name), "PNG")
    done = run("--plots", tmp_path / "maps", tmp_path / "5.png", tmp_path / "5.png")
    assert (done.returncode, done.stderr) == (0, "")
    assert all("5.png: 5 " in line for line in done.stdout.splitlines())
    assert sorted(path.name for path in (tmp_path / "maps").iterdir()) == ["1-5.png", "2-5.png"]
    assert predict.digit_of(tmp_path / "five $x$ \udcff.png").shape == (28, 28)


# What is no picture of a digit


def encoded(kind: str, image: Any = PLAIN) -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def noise() -> Any:
    return Image.fromarray(np.random.default_rng(0).integers(118, 138, (200, 200)).astype(np.uint8))


def slope() -> Any:
    return Image.fromarray(np.linspace(40, 220, 200).astype(np.uint8)[None].repeat(150, axis=0))


NO_DIGIT: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "is not a readable picture; expected a picture file, such as PNG or JPEG"),
    "text": (lambda: b"%!PS-Adobe\n", "is not a readable picture"),
    "half a PNG": (lambda: encoded("PNG")[:900], "is damaged .+ expected a picture file"),
    "half a JPEG": (lambda: encoded("JPEG")[:1500], "is damaged .+ expected a picture file"),
    "half a GIF": (lambda: encoded("GIF")[:700], "is (damaged|not a readable picture).+ expected a picture file"),
    "head of a PNG": (lambda: encoded("PNG")[:20], "is (damaged|not a readable picture)"),
    "bad checksum": (lambda: encoded("PNG").replace(b"IDAT", b"IDAU"), "is (damaged|not a readable picture)"),
    "white": (lambda: encoded("PNG", Image.new("L", (50, 40), 255)), "nothing stands out from the background"),
    "one pixel": (lambda: encoded("PNG", Image.new("L", (1, 1), 7)), "nothing stands out from the background"),
    "transparent": (lambda: encoded("PNG", Image.new("RGBA", (50, 40))), "nothing stands out from the background"),
    "slope": (lambda: encoded("PNG", slope()), "nothing stands out|no digit"),
    "noise": (lambda: encoded("JPEG", noise()), "nothing stands out|no digit"),
}


@pytest.mark.parametrize("case", NO_DIGIT)
def test_no_digit(case: str, tmp_path: Path) -> None:
    make, sentence = NO_DIGIT[case]
    path = tmp_path / "picture.png"
    path.write_bytes(make())
    with pytest.raises(ValueError, match=f"{path}:? .*({sentence})"):
        predict.digit_of(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no such pipes here")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ValueError, match="no ordinary file"):
        predict.digit_of(tmp_path / "pipe.png")


def test_decompression_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Above Pillow's limit nothing is decoded; between once and twice the limit Pillow only warns."""
    PLAIN.save(tmp_path / "large.png")
    for limit in (PLAIN.width * PLAIN.height - 1, 1000):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(ValueError, match=rf"large.png has more than {limit:,} pixels; expected a smaller picture"):
            predict.digit_of(tmp_path / "large.png")


@pytest.mark.parametrize("size", [(1, 50), (50, 1), (2, 2), (3, 40)])
def test_tiny_pictures(size: tuple[int, int], tmp_path: Path) -> None:
    """A digit or a sentence, and never anything else."""
    values = np.random.default_rng(0).integers(0, 256, size[::-1]).astype(np.uint8)
    try:
        in_shape = seen(Image.fromarray(values), tmp_path).shape
    except ValueError as error:
        assert "digit" in str(error)
    else:
        assert in_shape == (28, 28)


# What is no model


def change(metrics: Any) -> Callable[[Path], Any]:
    return lambda folder: (folder / "metrics.json").write_text(metrics if type(metrics) is str else json.dumps(metrics))


def settings(model: Any = "lenet5", dataset: Any = "digits") -> dict[str, Any]:
    return {"arguments": {"model": model, "dataset": dataset}}


NO_MODEL: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no metrics": (lambda folder: (folder / "metrics.json").unlink(), r"metrics.json cannot be read \(No such file"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors cannot be read"),
    "no JSON": (change("{"), "metrics.json does not say which model was trained"),
    "no arguments": (change({"test_errors": 3}), "metrics.json does not say which model was trained"),
    "a list": (change([1]), "metrics.json does not say which model was trained"),
    "another model": (change(settings("lenet6")), "holds the model 'lenet6'; expected one of lenet5, "),
    "no name": (change(settings(["lenet5"])), r"holds the model \['lenet5'\]; expected one of lenet5, "),
    "another data set": (change(settings(dataset="cifar")), "holds the dataset 'cifar'; expected one of digits, mnist"),
    "another's weights": (change(settings("lenet5-regularized")), "does not fit lenet5-regularized: .*bn1.weight"),
    "no safetensors": (
        lambda folder: (folder / "model.safetensors").write_bytes(b"\0" * 100),
        "model.safetensors is damaged or of another kind",
    ),
}


@pytest.mark.parametrize("case", NO_MODEL)
def test_no_model(case: str, folder: Path, tmp_path: Path) -> None:
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    spoil, sentence = NO_MODEL[case]
    spoil(tmp_path)
    with pytest.raises(ValueError, match=sentence) as caught:
        predict.load(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_a_model_that_does_not_fit_ends_with_a_sentence(tmp_path: Path) -> None:
    done = run("--model", tmp_path / "nowhere", tmp_path / "image.png")
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"predict: --model: {tmp_path / 'nowhere' / 'metrics.json'} cannot be read (No such file")


def test_clothes_are_no_digits(folder: Path, tmp_path: Path) -> None:
    """A model of clothes is asked about the largest piece, whatever it is."""
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    change(settings(dataset="fashion-mnist"))(tmp_path)
    drawn(lambda d: d.polygon([(180, 80), (300, 80), (330, 300), (150, 300)], 30)).save(tmp_path / "dress.png")
    done = run("--model", tmp_path, tmp_path / "dress.png")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("%") == 3


def test_fashion_has_names(folder: Path, tmp_path: Path) -> None:
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    change(settings(dataset="fashion-mnist"))(tmp_path)
    assert predict.load(tmp_path)[1][9] == "Ankle boot"
