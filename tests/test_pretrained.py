"""The weights that come with the package, and how they are made."""

from pathlib import Path

import numpy as np
import pytest

import models
from models import LeNet5, LeNet5_1998
from tinygrad_lenet import Tensor, data, no_grad

pytest.importorskip("matplotlib", reason="the example's packages are not installed")
pytest.importorskip("PIL", reason="the example's packages are not installed")
pytest.importorskip("scipy", reason="the example's packages are not installed")
pytest.importorskip("tqdm", reason="the example's packages are not installed")
from examples import make_pretrained as make
from examples.mnist_form import to_mnist

IMAGES, LABELS = data.digits("test")
DIGITS = np.stack([to_mnist(image / 255) for image in IMAGES])


def best(name: str, images: np.ndarray) -> np.ndarray:
    recipe = make.RECIPES[name]
    model = {"lenet5": LeNet5, "lenet5_1998": LeNet5_1998}[name].pretrained().eval()
    with no_grad():
        return (recipe.sign * model(Tensor(recipe.transform(images))).numpy()).argmax(axis=1)


@pytest.mark.parametrize(("name", "parameters"), [("lenet5", 61_706), ("lenet5_1998", 60_000)])
def test_weights(name: str, parameters: int) -> None:
    """They are small, and read other people's digits than those that they were trained on."""
    assert Path(models.__file__).with_name("weights").joinpath(f"{name}.safetensors").stat().st_size < 300_000
    model = {"lenet5": LeNet5, "lenet5_1998": LeNet5_1998}[name].pretrained()
    assert sum(p.size for p in model.parameters()) == parameters
    assert all(p.requires_grad and np.isfinite(p.numpy()).all() for p in model.parameters())
    assert (best(name, DIGITS) == LABELS).mean() > 0.95


def test_each_call_gives_a_model_of_its_own() -> None:
    one, other = LeNet5.pretrained(), LeNet5.pretrained()
    one.c1.weight.data[...] = 0
    assert np.abs(other.c1.weight.numpy()).max() > 0.1


def test_they_are_unsure_of_what_is_no_digit() -> None:
    others = make.no_digits(200, DIGITS, LABELS, seed=5)
    recipe = make.RECIPES["lenet5"]
    with no_grad():
        model = LeNet5.pretrained().eval()
        sure = [model(Tensor(recipe.transform(x))).softmax(axis=1).numpy().max(axis=1) for x in (DIGITS, others)]
    assert np.mean(sure[0] > 0.8) > 0.9
    assert np.mean(sure[1] > 0.8) < 0.1


def test_what_they_are_made_from() -> None:
    """The same images each time, in MNIST's form."""
    others = make.no_digits(40, DIGITS, LABELS, seed=3)
    np.testing.assert_array_equal(make.no_digits(40, DIGITS, LABELS, seed=3), others)
    printed, characters = make.printed_digits(20, seed=3)
    assert characters.tolist() == [*range(10)] * 2
    for images in (others, printed):
        assert (images.shape[1:], images.dtype) == ((28, 28), np.uint8)
        assert images.max(axis=(1, 2)).min() == 255


def test_distortions() -> None:
    """A function of seed, epoch and position; strokes become thinner and wider, and nothing wraps around 0 or 255."""
    x = np.pad(DIGITS[:64], ((0, 0), (2, 2), (2, 2)))
    y = make.Distort(seed=1)(x, 2, 128)
    np.testing.assert_array_equal(make.Distort(seed=1)(x, 2, 128), y)
    assert (make.Distort(seed=1)(x, 3, 128) != y).any()
    ink = y.sum(axis=(1, 2), dtype=float) / x.sum(axis=(1, 2), dtype=float)
    assert ink.min() < 0.9
    assert ink.max() > 1.2
    assert y[:, 0, 0].max() < 128
    np.testing.assert_array_equal(
        make.grown(x), np.max([x, *(np.roll(x, s, a) for s in (1, -1) for a in (1, 2))], axis=0)
    )


def test_losses() -> None:
    """What is no digit costs least where no class is likely, or where all penalties are large."""
    none = np.full(2, make.NONE)
    flat, sure = np.zeros((2, 10), np.float32), 9 * np.eye(10, dtype=np.float32)[[3, 4]]
    assert make.loss_today(Tensor(flat), none).item() == pytest.approx(np.log(10))
    assert make.loss_today(Tensor(sure), none).item() > 3
    assert make.loss_today(Tensor(sure), np.array([3, 4])).item() < 0.01
    far = np.full((2, 10), 40, np.float32)
    near = far - 40 * np.eye(10, dtype=np.float32)[[3, 4]]
    assert make.loss_1998(Tensor(far), none).item() < 0.01
    assert make.loss_1998(Tensor(near), none).item() > 7
    assert make.loss_1998(Tensor(near), np.array([3, 4])).item() < 0.01


def test_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """On few digits, for a few passes: it learns, and counts what it gets wrong of those that it has not seen."""
    for constant, value in (("HELD_OUT", 100), ("PRINTED", 40), ("OTHERS", 100)):
        monkeypatch.setattr(make, constant, value)
    _, wrong = make.train("lenet5", make.RECIPES["lenet5"], (DIGITS, LABELS), epochs=6)
    assert wrong < 70
