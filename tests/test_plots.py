"""The pictures of a run: what is in them, and that all of it can be read."""

import subprocess
import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models import LeNet5, LeNet5_1998
from tinygrad_lenet import Tensor, data, nn, no_grad
from tinygrad_lenet import functional as F

pytest.importorskip("matplotlib", reason="the example's packages are not installed")
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.text import Text

from examples import plots
from examples.classes import CLASSES, DIGITS

ROOT = Path(__file__).parents[1]
METRICS: dict[str, Any] = {
    "test_accuracy": 0.95,
    "test_errors": 18,
    "test_images": 360,
    "train_loss": [1.9, 0.6, 0.31, 0.2, 0.14],
    "epoch_seconds": [1.0] * 5,
    "arguments": {"model": "lenet5", "dataset": "digits"},
}
IMAGES, LABELS = data.digits("test")


def sure(predictions: np.ndarray, confidence: float = 0.91) -> np.ndarray:
    """Probabilities[N 10] that give each prediction this confidence and the rest to the others."""
    probabilities = np.full((len(predictions), 10), (1 - confidence) / 9, np.float32)
    probabilities[np.arange(len(predictions)), predictions] = confidence
    return probabilities


def with_mistakes(count: int) -> np.ndarray:
    """Probabilities for all test images, of which this many are wrong, each with a confidence of its own."""
    predictions = np.where(np.arange(len(LABELS)) < count, (LABELS + 1) % 10, LABELS)
    probabilities = sure(predictions)
    for n in range(count):
        probabilities[n] = sure(predictions[n : n + 1], 0.3 + 0.6 * ((7 * n) % count) / count)[0]
    return probabilities


@lru_cache(maxsize=4)
def texts(figure: Figure) -> list[Text]:
    """All that is written in a figure: ticks outside an axis exist but are not drawn, so drawing is listened to."""
    found: dict[Text, None] = {}
    draw = Text.draw

    def listen(text: Text, *arguments: Any, **options: Any) -> None:
        if text.get_visible() and text.get_text().strip():
            found[text] = None
        draw(text, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Text, "draw", listen)
        figure.canvas.draw()
    return list(found)


def words(figure: Figure) -> list[str]:
    return [text.get_text() for text in texts(figure)]


def legible(figure: Figure) -> None:
    """AssertionError unless every text is large enough at 800 pixels of width, whole, and on no other text."""
    assert figure.get_size_inches()[0] == 8
    written = texts(figure)
    assert written
    assert min(text.get_fontsize() for text in written) >= 7.5
    boxes = [(text.get_text(), text.get_window_extent(), text.get_rotation()) for text in written]
    for name, box, _ in boxes:
        assert box.x0 >= 0 and box.y0 >= 0, name
        assert box.x1 <= figure.bbox.width and box.y1 <= figure.bbox.height, name
    for i, (name, box, angle) in enumerate(boxes):
        for other, its, its_angle in boxes[:i]:
            if angle % 90 and angle == its_angle:
                continue  # slanting labels side by side: their boxes overlap, they do not
            x = min(box.x1, its.x1) - max(box.x0, its.x0)
            y = min(box.y1, its.y1) - max(box.y0, its.y0)
            assert x < 2 or y < 2, f"{name!r} lies on {other!r}"


def shown(figure: Figure) -> list[np.ndarray]:
    """The arrays that a figure shows as images, in the order in which they were added."""
    return [np.asarray(image.get_array()) for axes in figure.axes for image in axes.images]


@pytest.mark.parametrize(("dataset", "mistakes"), [("digits", 18), ("fashion-mnist", 1)])
def test_all_pictures_of_a_run(dataset: str, mistakes: int, tmp_path: Path) -> None:
    """Five files of 1,200 pixels of width; drawn again they are the same to the byte."""
    metrics = METRICS | {"arguments": {"model": "lenet5", "dataset": dataset}, "train_loss": [0.5]}
    model = LeNet5(rng=0).train()
    paths = plots.save_all(tmp_path / "new", metrics, model, IMAGES, LABELS, with_mistakes(mistakes))
    names = ["learning_curves", "confusion_matrix", "misclassified", "kernels", "maps"]
    assert [path.name for path in paths] == [f"{name}.png" for name in names]
    assert [imread(path).shape[1] for path in paths] == [1200] * 5
    assert all(path.stat().st_size < 150_000 for path in paths)
    assert all(module.training for _, module in model.named_modules())
    if mistakes == 1:
        again = plots.save_all(tmp_path / "again", metrics, model, IMAGES, LABELS, with_mistakes(mistakes))
        assert [path.read_bytes() for path in again] == [path.read_bytes() for path in paths]


# Learning curves


def test_learning_curves() -> None:
    figure = plots.learning_curves(METRICS)
    (axes,) = figure.axes
    (line,) = axes.lines
    assert np.asarray(line.get_xdata()).tolist() == [1, 2, 3, 4, 5]
    assert np.asarray(line.get_ydata()).tolist() == METRICS["train_loss"]
    assert axes.get_yscale() == "log"  # from 1.9 to 0.14
    assert {"1", "5", "epoch", "train loss", "0.2", "0.5"} <= set(words(figure))
    assert "lenet5 on digits: 18 errors on 360 test images" in words(figure)
    legible(figure)


def test_curves_of_one_epoch_and_of_several_kinds() -> None:
    series = {"train_loss": [0.5, 0.4], "test_loss": [0.6], "train_accuracy": [0.91, 0.925], "epoch_seconds": [1.0]}
    figure = plots.learning_curves(series)
    loss, accuracy = figure.axes
    assert [line.get_label() for line in loss.lines] == ["train loss", "test loss"]
    assert len({(line.get_marker(), line.get_linestyle()) for line in loss.lines}) == 2  # not by colour alone
    assert [line.get_label() for line in accuracy.lines] == ["train accuracy"]
    assert loss.get_yscale() == "linear"
    assert "92%" in words(figure)
    legible(figure)
    single = plots.learning_curves({"train_loss": [0.5]})
    assert [tick for tick in single.axes[0].get_xticks() if 0.5 < tick < 1.5] == [1]
    legible(single)


@pytest.mark.parametrize("losses", [[0.0, 0.0], [float("inf"), 1.0], [float("nan"), 0.01], [1.0, 0.001]])
def test_odd_losses(losses: list[float]) -> None:
    legible(plots.learning_curves({"train_loss": losses}))


def test_many_epochs() -> None:
    legible(plots.learning_curves({"train_loss": list(2.0 / np.arange(1, 501))}))


def test_no_losses() -> None:
    assert words(plots.learning_curves({"train_loss": []})) == ["No losses were recorded."]


# Confusion matrix


def test_confusion_matrix() -> None:
    labels, predictions = np.array([0, 0, 0, 1, 2, 2]), np.array([0, 1, 1, 1, 2, 2])
    figure = plots.confusion_matrix(labels, predictions, ("a", "b", "c", "d"))
    legible(figure)
    cells = {
        (int(x), int(y)): text.get_text()
        for text in texts(figure)
        for x, y in [text.get_position()]
        if text.axes is figure.axes[0] and text.get_text().isdigit()
    }
    assert cells == {(0, 0): "1", (1, 0): "2", (1, 1): "1", (2, 2): "2", (3, 3): "0"}  # (predicted, true)
    assert {"correct", "33.3%", "100.0%", "none", "2 mistakes on 6 images", "true class", "predicted class"} <= set(
        words(figure)
    )
    assert shown(figure)[0].tolist() == [[0, 2, 0, 0], [0] * 4, [0] * 4, [0] * 4]  # colour is for mistakes


@pytest.mark.parametrize("dataset", CLASSES)
@pytest.mark.parametrize("wrong", [0, 5000])
def test_confusion_of_ten_thousand(dataset: str, wrong: int) -> None:
    labels = np.arange(10_000) % 10
    predictions = np.where(np.arange(10_000) < wrong, (labels // 2) * 2, labels)
    legible(plots.confusion_matrix(labels, predictions, CLASSES[dataset]))


# Misclassified images


def test_misclassified() -> None:
    labels = np.array([4, 7, 2, 9, 1])
    probabilities = sure(np.array([9, 7, 3, 4, 1]))
    probabilities[[0, 2, 3]] = [*sure(np.array([9]), 0.5), *sure(np.array([3]), 0.99), *sure(np.array([4]), 0.9999)]
    figure = plots.misclassified(IMAGES[:5], labels, probabilities)
    legible(figure)
    *cells, title = words(figure)
    assert title == "3 of 5 misclassified: true → predicted, confidence, index"
    assert cells == ["9 → 4\n>99.9%\n#3", "2 → 3\n99.0%\n#2", "4 → 9\n50%\n#0"]  # the most confident first
    for image, n in zip(shown(figure), (3, 2, 0), strict=True):
        np.testing.assert_array_equal(image, IMAGES[n])


@pytest.mark.parametrize("dataset", CLASSES)
def test_only_the_most_confident_are_shown(dataset: str) -> None:
    figure = plots.misclassified(IMAGES, LABELS, with_mistakes(60), CLASSES[dataset])
    legible(figure)
    assert len(shown(figure)) == 32
    *cells, title = words(figure)
    assert title.startswith("60 of 360 misclassified, of which the 32 most confident")
    confidences = [float(text.split("\n")[1].rstrip("%")) for text in cells]
    assert confidences == sorted(confidences, reverse=True)


def test_none_misclassified() -> None:
    figure = plots.misclassified(IMAGES, LABELS, sure(LABELS))
    assert words(figure) == ["None of 360 images is misclassified."]
    legible(figure)


# Kernels


def test_kernels() -> None:
    weight = LeNet5(rng=0).c1.weight.numpy()
    figure = plots.kernels(weight)
    legible(figure)
    assert np.array_equal(shown(figure), weight[:, 0])
    scales = {image.get_clim() for axes in figure.axes for image in axes.images}
    (scale,) = scales  # one for all, so that kernels can be compared; 0 in its middle
    assert scale == pytest.approx((-np.abs(weight).max(), np.abs(weight).max()))
    assert {"1", "6", "0.00"} <= set(words(figure))


@pytest.mark.parametrize("shape", [(1, 1, 3, 3), (20, 1, 5, 5), (16, 6, 5, 5), (2, 3, 1, 7)])
def test_kernels_of_other_layers(shape: tuple[int, ...]) -> None:
    weight = np.random.default_rng(0).normal(size=shape)
    figure = plots.kernels(weight)
    legible(figure)
    np.testing.assert_array_equal(shown(figure), weight.swapaxes(0, 1).reshape(-1, *shape[2:]))
    if shape == (1, 1, 3, 3):
        legible(plots.kernels(np.zeros(shape)))


# Maps


def test_maps() -> None:
    """A row a layer, by the paper's names, with the values after the activation."""
    model = LeNet5(rng=0)
    figure = plots.maps(model, IMAGES[0], sure(LABELS[:1])[0], "a title")
    legible(figure)
    rows = ["INPUT\n28×28", "C1\n6 @ 28×28", "S2\n6 @ 14×14", "C3\n16 @ 10×10", "S4\n16 @ 5×5"]
    rows += ["C5\n120 units", "F6\n84 units", "OUTPUT\n10 units"]
    beside = [text.rpartition("\n") for text in words(figure) if "\n" in text]
    assert [row for row, _, _ in beside] == rows
    limits = [np.abs(y).max() for _, y in plots.look_inside(model, IMAGES[0])]
    assert [scale for _, _, scale in beside] == ["0 to 255", *(f"±{limit:.3g}" for limit in limits)]
    assert {"a title", "91%", "negative", "zero", "positive", *DIGITS} <= set(words(figure))
    images = shown(figure)
    assert len(images) == 1 + 6 + 6 + 16 + 16
    np.testing.assert_array_equal(images[0], IMAGES[0])
    with no_grad():
        c1 = F.conv2d(Tensor(data.to_input(IMAGES[:1])), model.c1.weight, model.c1.bias).tanh()
        s2 = F.avg_pool2d(c1, 2)
    np.testing.assert_allclose(images[1:7], c1.numpy()[0], atol=1e-6)
    np.testing.assert_allclose(images[7:13], s2.numpy()[0], atol=1e-6)


def test_penalties_are_called_penalties() -> None:
    """In 1998's network the smallest one wins, and its answer is not what is brightest."""
    model = LeNet5_1998(rng=0)
    penalties = plots.look_inside(model, IMAGES[0])[-1][1]
    figure = plots.maps(model, IMAGES[0], penalties)
    legible(figure)
    said = words(figure)
    assert f"OUTPUT\n10 penalties\nleast {penalties.min():.3g} wins" in said
    assert {f"{penalty:.3g}" for penalty in penalties} <= set(said)
    assert not any("probability" in text or "%" in text for text in said)


def test_misclassified_by_penalties() -> None:
    """The smallest wins; the mistake by the widest margin comes first."""
    penalties = np.array([[9.0, 1.0, 8.0], [2.0, 7.0, 3.0], [2.0, 7.0, 9.0], [0.5, 7.0, 9.0]])
    figure = plots.misclassified(IMAGES[:4], np.array([0, 1, 1, 0]), penalties, penalties=True)
    said = [text for text in words(figure) if "#" in text]
    assert said == ["0 → 1\n9.0 → 1.0\n#0", "1 → 0\n7.0 → 2.0\n#2", "1 → 0\n7.0 → 2.0\n#1"]


@pytest.mark.parametrize("mistakes", [0, 1])
def test_maps_of_a_run_say_whether_the_answer_is_right(
    mistakes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(plots, "save", lambda figure, path: drawn.append(figure) or path)
    probabilities = with_mistakes(mistakes)
    plots.save_all(tmp_path, METRICS, LeNet5(rng=0), IMAGES, LABELS, probabilities)
    n = int(np.argmin(probabilities[np.arange(len(LABELS)), LABELS]))
    said = f"test image {n}: true {LABELS[n]}, predicted {(LABELS[n] + 1) % 10 if mistakes else LABELS[n]}"
    assert any(said in text for text in words(drawn[-1]))


def pooled_relu() -> nn.Module:
    return LeNet5(activation="relu", pool="max", dropout=0.2, batch_norm=True, rng=0)


def small() -> nn.Module:
    layers = nn.Conv2d(1, 3, 5, rng=0), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(4), nn.Flatten(), nn.Linear(147, 10)
    return nn.Sequential(*layers)


@pytest.mark.parametrize("build", [pooled_relu, small])
def test_look_inside_other_models(build: Callable[[], nn.Module]) -> None:
    """Activations, normalisation and dropout have no row of their own, and nothing about the model changes."""
    model = build().train()
    before = {name: value.numpy().copy() for name, value in model.state_dict().items()}
    layers = plots.look_inside(model, IMAGES[0])
    if build is small:
        assert [(name, y.shape) for name, y in layers] == [
            ("Conv2d", (3, 28, 28)), ("MaxPool2d", (3, 7, 7)), ("Linear", (10,)),
        ]  # fmt: skip
    else:
        assert [name for name, _ in layers] == ["C1", "S2", "C3", "S4", "C5", "F6", "OUTPUT"]
    assert layers[0][1].min() == 0 < layers[0][1].max()  # after the ReLU
    assert all(module.training for _, module in model.named_modules())
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), before[name])
    with no_grad():
        y = model.eval()(Tensor(data.to_input(IMAGES[:1]))).numpy()
    np.testing.assert_array_equal(layers[-1][1], y[0])
    legible(plots.maps(model, IMAGES[0], sure(LABELS[:1])[0], names=CLASSES["fashion-mnist"]))


def test_hooks_are_removed() -> None:
    """Also after an error: the model then runs as before, and nobody listens."""
    model = small()
    model[5].forward = None  # type: ignore[assignment]
    with pytest.raises(TypeError):
        plots.look_inside(model, IMAGES[0])
    assert not any(module._forward_hooks for _, module in model.named_modules())


# For every eye, and for every program


@pytest.mark.parametrize("name", [plots.SIGNED, plots.COUNTS])
def test_brightness_tells_values_apart(name: str) -> None:
    """In grey, and for the colour-blind, a map of colours has to rise or fall all the way."""
    import matplotlib as mpl

    brightness = mpl.colormaps[name](np.linspace(0, 1, 20))[:, :3] ** 2.2 @ [0.2126, 0.7152, 0.0722]
    steps = np.diff(brightness ** (1 / 2.2))
    assert (steps > 0.005).all() or (steps < -0.005).all()


@pytest.mark.parametrize(
    ("probability", "text"),
    [(1.0, ">99.9%"), (0.9996, ">99.9%"), (0.999, "99.9%"), (0.51, "51%"), (0.004, "0.4%"), (0.0, "0.0%")],
)
def test_percent(probability: float, text: str) -> None:
    assert plots.percent(probability) == text


def test_a_persons_settings_change_nothing(tmp_path: Path) -> None:
    """Neither do the pictures load pyplot, nor do global settings reach them, nor do they leave any behind."""
    code = (
        "import sys, matplotlib as mpl; from examples import plots; from pathlib import Path\n"
        "mpl.rcParams.update({'font.size': 30, 'font.family': 'monospace'})\n"
        "plots.save(plots.learning_curves({'train_loss': [1.0, 0.5]}), Path(sys.argv[1]))\n"
        "assert mpl.rcParams['font.size'] == 30\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    path = tmp_path / "curves.png"
    subprocess.run([sys.executable, "-W", "error", "-c", code, str(path)], cwd=ROOT, check=True, timeout=60)
    plots.save(plots.learning_curves({"train_loss": [1.0, 0.5]}), tmp_path / "here.png")
    assert path.read_bytes() == (tmp_path / "here.png").read_bytes()
