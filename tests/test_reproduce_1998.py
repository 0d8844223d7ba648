"""The paper's experiment: its parts run, stop and go on, its data are what it says, and its report says what it saw."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tqdm", reason="the example's packages are not installed")
pytest.importorskip("matplotlib", reason="the example's packages are not installed")
pytest.importorskip("PIL", reason="the example's packages are not installed")
pytest.importorskip("safetensors", reason="the example's packages are not installed")

from PIL import Image
from safetensors.numpy import load_file

from examples import report_1998, reproduce_1998
from examples.reproduce_1998 import PARTS, Distortions, Part, build, curved_loss, loader_of, loss_of
from models import LeNet5_1998
from tests.test_example import MNIST
from tinygrad_lenet import Tensor, curvature, data, optim, parallel
from tinygrad_lenet import functional as F

ROOT = Path(__file__).parents[1]
PICTURES = {"learning_curves.png", "misclassified.png", "maps.png", "robustness.png"}


def reproduce(*words: object) -> str:
    """Run the quick form in a process of its own, as a person does, and return what it prints."""
    command = [sys.executable, "-m", "examples.reproduce_1998", "--no-progress", "--quick", *map(str, words)]
    environment = os.environ | {"PYTHONWARNINGS": "error"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


# The whole


def test_quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Two parts and the report; the command again, with more seeds and parts, repeats nothing, and they join."""
    said = reproduce("--parts", "eq9", "today-distorted", "--out", tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"eq9", "today-distorted", "table.md"} | PICTURES
    metrics = metrics_in(tmp_path / "eq9" / "seed-0")
    chance = 0.9 * metrics["test_images"]
    assert metrics["test_errors"][-1] < min(metrics["test_errors"][0], 0.25 * chance)
    assert metrics["train_error"] == sorted(metrics["train_error"], reverse=True)
    assert all(len(metrics[name]) == 3 for name in ("train_loss", "epoch_seconds", "smallest_rate", "largest_rate"))
    table = (tmp_path / "table.md").read_text()
    assert table in said
    first = metrics["test_errors"][-1]
    assert f"| {first / 360:.2%} ({first:.0f}) |" in table
    for picture in PICTURES:
        with Image.open(tmp_path / picture) as opened:
            assert opened.size[0] == 1200

    assert table.startswith("**quick, not comparable**\n") and "| test error, 600 images |" in table
    assert "60,000 images" not in table

    weights = (tmp_path / "eq9" / "seed-0" / "model.safetensors").stat().st_mtime_ns
    few = {name: (amounts[:1], change) for name, (amounts, change) in report_1998.CHANGES.items()}
    monkeypatch.setattr(report_1998, "CHANGES", few)  # the pictures are there already
    monkeypatch.setattr(report_1998.plots, "save", lambda figure, path: path)
    monkeypatch.setattr(parallel, "tune_process", lambda: False)
    words = ("--no-progress", "--quick", "--seeds", "2", "--parts", "eq9", "eq9-15000", "held-out-j2", "--out")
    monkeypatch.setattr(sys, "argv", ["", *words, str(tmp_path)])
    reproduce_1998.main()
    said = capsys.readouterr().out
    assert said.startswith("eq9, seed 0: is finished\n")
    assert [line.partition(":")[0] for line in said.splitlines()[:5]] == [
        *("eq9, seed 0", "eq9-15000, seed 0", "held-out-j2, seed 0", "eq9, seed 1", "held-out-j2, seed 1")
    ]
    table = (tmp_path / "table.md").read_text()
    second = metrics_in(tmp_path / "eq9" / "seed-1")["test_errors"][-1]
    assert second != first
    error = abs(first - second) / 2 / 360  # of the mean of two: their standard deviation over the root of 2
    assert f"| {(first + second) / 720:.2%} ± {error:.2%} ({first:.0f}, {second:.0f}) |" in table
    held = [metrics_in(tmp_path / "held-out-j2" / f"seed-{seed}") for seed in range(2)]
    assert [noted["test_images"] for noted in held] == [100, 100]
    assert f"({held[0]['test_errors'][-1]:.0f}, {held[1]['test_errors'][-1]:.0f}) |" in table
    assert (tmp_path / "eq9" / "seed-0" / "checkpoint.safetensors").stat().st_mtime_ns <= weights


def metrics_in(folder: Path) -> dict[str, Any]:
    metrics: dict[str, Any] = json.loads((folder / "metrics.json").read_text(), parse_constant=pytest.fail)
    return metrics


def test_stopped_and_gone_on_with(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Stopped within a pass, and between the estimate of the curvature and the next, the weights end up the same."""
    monkeypatch.setattr(reproduce_1998, "SAMPLES", 100)
    part = replace(PARTS["eq9-distorted"], images=400, passes=2)
    args = arguments(tmp_path / "whole")
    assert reproduce_1998.run_part("a", part, 0, args, lambda: False)
    whole = load_file(tmp_path / "whole" / "a" / "seed-0" / "model.safetensors")
    args = arguments(tmp_path / "stopped")
    for _ in range(8):  # the program looks for a Ctrl-C after every 100 patterns
        assert not reproduce_1998.run_part("a", part, 0, args, lambda: True)
    assert reproduce_1998.run_part("a", part, 0, args, lambda: True)
    stopped = load_file(tmp_path / "stopped" / "a" / "seed-0" / "model.safetensors")
    assert all(stopped[name].tobytes() == whole[name].tobytes() for name in whole)
    found, expected = (metrics_in(tmp_path / kind / "a" / "seed-0") for kind in ("stopped", "whole"))
    for name in ("test_errors", "train_error", "train_loss", "smallest_rate", "largest_rate"):
        assert found[name] == expected[name]


def arguments(out: Path, **changes: Any) -> Any:
    values = {"no_jit": False, "quick": True, "seeds": 1, "out": out, "checkpoint_every": 60.0, "no_progress": True}
    return reproduce_1998.argparse.Namespace(**values | changes)


def test_quick_and_full_do_not_mix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with parts of the other form or with other settings is refused, whichever parts are asked for."""
    part = Part("", images=50, passes=1)
    monkeypatch.setattr(reproduce_1998, "PARTS", {"a": part, "b": part})
    monkeypatch.setattr(reproduce_1998, "in_brief", lambda part: part)
    assert reproduce_1998.run_part("a", part, 0, arguments(tmp_path), lambda: False)
    for left in ("checkpoint.safetensors", "metrics.json"):
        for words, changed, difference in (
            ([], part, "quick is False here and True there"),
            (["--quick"], replace(part, j=2.0), "j is 2.0 here and 5.0 there"),
        ):
            monkeypatch.setattr(reproduce_1998, "PARTS", {"a": changed, "b": part})
            monkeypatch.setattr(sys, "argv", ["", "--parts", "b", "--out", str(tmp_path), *words])
            with pytest.raises(ValueError, match=rf"seed-0 belongs to another run: .*{difference}.*; choose another"):
                reproduce_1998.main()
        (tmp_path / "a" / "seed-0" / left).unlink()  # the other file says the same
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("text", ["", "[]", "{}", "[" * 10_000])
def test_metrics_of_something_else(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "eq8" / "seed-1").mkdir(parents=True)
    (tmp_path / "eq8" / "seed-1" / "metrics.json").write_text(text)
    monkeypatch.setattr(sys, "argv", ["", "--out", str(tmp_path)])
    with pytest.raises(ValueError, match=r"eq8.seed-1.metrics\.json (is not JSON|belongs to another program)"):
        reproduce_1998.main()


def test_another_run_is_not_gone_on_with(tmp_path: Path) -> None:
    part = Part("", images=50, passes=1)
    assert reproduce_1998.run_part("a", part, 0, arguments(tmp_path), lambda: False)
    weights = (tmp_path / "a" / "seed-0" / "model.safetensors").read_bytes()
    with pytest.raises(
        ValueError, match=r"checkpoint\.safetensors does not belong to this run: --j is 2.0 here and 5.0 there"
    ):
        reproduce_1998.run_part("a", replace(part, j=2.0), 0, arguments(tmp_path), lambda: False)
    assert (tmp_path / "a" / "seed-0" / "model.safetensors").read_bytes() == weights


def test_loss_of_nan_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    part = Part("", images=50, passes=1)
    monkeypatch.setattr(reproduce_1998, "best", lambda part, output: output.argmin(axis=1))
    monkeypatch.setattr(reproduce_1998, "loss_of", lambda *a: loss_of(*a) * 1e38 * 1e38)
    monkeypatch.setattr(optim.StochasticDiagonalLM, "estimate", lambda self, loss: setattr(self, "_estimated", True))
    with np.errstate(all="ignore"), pytest.raises(ValueError, match=r"a, seed 0: the loss became (inf|nan) in pass 1"):
        reproduce_1998.run_part("a", part, 0, arguments(tmp_path), lambda: False)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--seeds", "0"), "--seeds is 0; expected a number of seeds, at least 1"),
        (("--checkpoint-every", "nan"), "--checkpoint-every is nan; expected seconds"),
        (("--data-dir", "nowhere"), "nowhere"),
        (("--parts", "eq10"), "invalid choice: 'eq10'"),
    ],
)
def test_bad_input_ends_in_a_sentence(words: tuple[str, ...], message: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "examples.reproduce_1998", "--out", str(tmp_path / "out"), *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode in (1, 2)
    assert message in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


# The recipe


def test_parts() -> None:
    """The paper's recipe, where a part does not say that it differs."""
    part = PARTS["eq9"]
    assert (part.seeds, part.j, part.images, part.distorted, part.passes) == (5, 5.0, 60_000, False, 20)
    assert (part.init, part.own_curvature, part.today, part.held_out) == ("sqrt-fan-in", False, False, 0)
    assert PARTS["eq9-distorted"] == replace(part, title="Eq. 9, distortions", distorted=True)
    assert PARTS["eq8"].j is None
    schedule = optim.PassRates(optim.StochasticDiagonalLM([Tensor(1.0, requires_grad=True)]))
    rates = [schedule._lr_at(count) for count in range(part.passes)]
    assert rates == [5e-4] * 2 + [2e-4] * 3 + [1e-4] * 3 + [5e-5] * 4 + [1e-5] * 8


def test_constant_order() -> None:
    """Random, the same in every pass, and the first 15,000 of the 60,000 are the 15,000."""
    images, labels = np.zeros((900, 32, 32), np.uint8), np.arange(900)
    loader = loader_of(Part("", images=600), images, labels, seed=3)
    first, second = ([y for _, block in loader for y in block] for _ in range(2))
    assert first == second
    assert sorted(first) != first
    assert len(set(first)) == 600
    few = loader_of(Part("", images=100), images, labels, seed=3)
    assert [y for _, block in few for y in block] == first[:100]


def test_held_out_images_are_not_trained_on() -> None:
    """The last of the training images, the same for each seed; the test images play no part."""
    args = arguments(Path())
    images, labels = reproduce_1998.load(args, "train")
    held = reproduce_1998.sets(Part("", held_out=100), args)
    for found, expected in zip(held, (images[:-100], labels[:-100], images[-100:], labels[-100:]), strict=True):
        np.testing.assert_array_equal(found, expected)
    for found, expected in zip(
        reproduce_1998.sets(Part(""), args), (images, labels, *reproduce_1998.load(args, "test")), strict=True
    ):
        np.testing.assert_array_equal(found, expected)


def test_input_is_that_of_1998() -> None:
    images = np.array([[[0, 255], [51, 0]]], np.uint8).repeat(16, axis=1).repeat(16, axis=2)
    x = reproduce_1998.input_1998(images)
    assert (x.shape, x.dtype, x.flags.c_contiguous) == ((1, 1, 32, 32), np.float32, True)
    np.testing.assert_allclose(np.unique(x), [-0.1, 51 / 255 * 1.275 - 0.1, 1.175], rtol=1e-5)


def test_distorted_set() -> None:
    """In ten passes each image once as it is and nine times distorted, each time in another way; then all again."""
    images, _ = data.digits("test")
    images = np.pad(images[:40], ((0, 0), (2, 2), (2, 2)))
    distort = Distortions(seed=0)
    passes = np.stack([distort(images, epoch, 0) for epoch in range(10)])
    assert ((passes == images).all(axis=(2, 3)).sum(axis=0) == 1).all()
    assert all(len(np.unique(passes[:, n].reshape(10, -1), axis=0)) == 10 for n in range(40))
    np.testing.assert_array_equal(distort(images, 13, 0), passes[3])
    np.testing.assert_array_equal(distort(images[7:], 3, 7), passes[3][7:])
    assert (Distortions(seed=1)(images, 3, 0) != passes[3]).any()


@pytest.mark.skipif(not MNIST.is_dir(), reason="MNIST is not there")
def test_rates_of_the_first_pass() -> None:
    """On MNIST, 500 patterns: the paper's rates, 7e-5 to 0.016; from its initial weights, nearly all are eta / mu."""
    images, labels = data.mnist(MNIST, "train")
    images = np.pad(images[:1000], ((0, 0), (2, 2), (2, 2)))
    spread = {}
    for init in ("fan-in", "sqrt-fan-in"):
        part = Part("", images=500, init=init)
        model, loader = build(part, 0), loader_of(part, images, labels[:1000], 0)
        optimizer = optim.StochasticDiagonalLM(model.parameters(), lr=0.0005, mu=0.02)
        x, y = loader.batch(0, 0)
        optimizer.estimate(curved_loss(part, model(Tensor(x)), y))
        rates = np.concatenate([rate.ravel() for rate in optimizer.rates()])
        spread[init] = rates.min(), np.median(rates), rates.max()
    assert spread["fan-in"][1] > 0.0248  # of at most 0.0005 / 0.02 = 0.025
    assert 6e-5 < spread["sqrt-fan-in"][0] < 8e-5
    assert 0.015 < spread["sqrt-fan-in"][2] < 0.017


def test_the_curvature_that_sets_the_rates() -> None:
    """1 for each unit of F6 and each pattern, whatever the loss and the answers.

    That of Eq. 9 itself falls with the certainty of the answers, here to the probability of junk.
    """
    labels = np.arange(10)
    centers = LeNet5_1998(rng=0).output.centers.numpy().astype(float)
    anything = np.random.default_rng(0).uniform(-1.7, 1.7, (10, 84))
    for name, units, expected in (
        ("eq9", anything, 1.0), ("eq8", anything, 1.0), ("eq9", centers, 1.0),
        ("own-curvature", centers, np.exp(-5) / (1 + np.exp(-5))),
    ):  # fmt: skip
        f6 = Tensor(units, requires_grad=True)
        (h,) = curvature(curved_loss(PARTS[name], F.rbf(f6, centers), labels), f6)
        np.testing.assert_allclose(10 * h.numpy(), np.full((10, 84), expected), rtol=1e-6)


# The report


@pytest.mark.parametrize(("last", "top"), [(1.0, 3.0), (20.0, 63.0)])
def test_learning_curves_are_drawn_to_scale(last: float, top: float) -> None:
    """What lies above the scale, which follows the last pass, is marked and put into words."""
    errors = [60.0, last]
    noted = {"arguments": {"images": 600}, "test_images": 100, "test_errors": errors, "train_error": [0.6, last / 100]}
    axes = report_1998.learning_curves({"eq8": [noted]}).axes[0]
    assert axes.get_ylim() == pytest.approx((0, top))
    assert axes.get_ylabel() == "error"
    marks = [line for line in axes.get_lines() if line.get_marker() == "^"]
    assert [list(line.get_xdata()) for line in marks] == ([[1], [1]] if top == 3 else [])
    assert axes.get_title() == ("600 images; ▲ above 3%, up to 60%" if top == 3 else "600 images")


def test_learning_curves_show_the_range_of_the_seeds() -> None:
    noted = {"arguments": {"images": 600}, "test_images": 100, "train_error": [0.02, 0.01]}
    seeds = [{**noted, "test_errors": errors} for errors in ([2, 1], [3, 2])]
    axes = report_1998.learning_curves({"eq9": seeds}).axes[0]
    test = next(line for line in axes.get_lines() if line.get_label() == "1998, Eq. 9, test")
    assert list(test.get_ydata()) == [2.5, 1.5]
    assert {tuple(point) for point in axes.collections[0].get_paths()[0].vertices} >= {(1, 2), (1, 3), (2, 1), (2, 2)}


def test_errors_of() -> None:
    """By hand: errors of 1, 2 and 3% have a standard deviation of 1, and their mean one of 1 / sqrt(3)."""
    assert report_1998.errors_of([], 100) == ""
    assert report_1998.errors_of([7], 100) == "7.00% (7)"
    assert report_1998.errors_of([1, 2, 3], 100) == "2.00% ± 0.58% (1, 2, 3)"


def test_rejected() -> None:
    """By hand: the two wrong ones are certain by 0.5 and by 3, so all that are less certain than 3 have to go."""
    certainty = np.array([5.0, 4.0, 3.0, 2.0, 0.5, 0.1])
    outputs = np.stack([certainty, np.zeros(6), np.full(6, -9.0)], axis=1)
    labels = np.array([0, 0, 1, 0, 2, 0])
    assert report_1998.rejected(outputs, labels, goal=0.0) == pytest.approx(4 / 6)
    assert report_1998.rejected(outputs, labels, goal=0.25) == pytest.approx(2 / 6)  # 1 wrong of 4 is kept
    assert report_1998.rejected(outputs, labels, goal=1.0) == 0.0
    assert report_1998.rejected(outputs, np.ones(6, int), goal=0.0) == 1.0


def test_rejected_agrees_with_the_model() -> None:
    """The share that the model itself rejects at the difference at which the last one is kept."""
    images, labels = data.digits("test")
    x = Tensor(reproduce_1998.input_1998(images[:64]))
    model = LeNet5_1998(rng=0)
    penalties = model(x).numpy()
    share = report_1998.rejected(-penalties, labels[:64], goal=0.8)
    differences = np.sort(np.diff(np.sort(penalties, axis=1)[:, :2], axis=1).ravel())
    threshold = differences[round(share * 64)]
    assert 0 < share < 1
    assert model.reject(x, float(threshold)).numpy().mean() == pytest.approx(share)


def test_changes() -> None:
    """No change leaves images as they are; each change does what its name says, in both directions by turns."""
    rng = np.random.default_rng(0)
    images = np.zeros((4, 32, 32), np.uint8)
    images[:, 8:24, 8:24] = rng.integers(1, 256, (4, 16, 16))
    for nothing in (report_1998.moved(images, 0), report_1998.scaled(images, 1), report_1998.turned(images, 0)):
        np.testing.assert_array_equal(nothing, images)
    np.testing.assert_array_equal(report_1998.damaged(images, 0), images)

    moved = report_1998.moved(images, 3)
    np.testing.assert_array_equal(moved[::2, 3:], images[::2, :-3])
    np.testing.assert_array_equal(moved[1::2, :-3], images[1::2, 3:])
    turned = report_1998.turned(images, 90).astype(int)
    first = -1 if np.abs(turned[0] - np.rot90(images[0], -1)).max() <= 1 else 1  # 1: from rounding
    assert np.abs(turned[0] - np.rot90(images[0], first)).max() <= 1
    assert np.abs(turned[1] - np.rot90(images[1], -first)).max() <= 1
    twice = report_1998.scaled(np.uint8(200) * (images > 0), 2)
    assert (twice[:, 1:-1, 1:-1] == 200).all()  # 16 pixels become the 32 of the whole image, whose rim is blended
    half = report_1998.scaled(np.uint8(200) * (images > 0), 0.5)
    assert (half[:, 12:20, 12:20] == 200).all()
    assert not half[:, :11].any()
    damaged = report_1998.damaged(np.full((50, 32, 32), 100, np.uint8), 0.2)
    values, counts = np.unique(damaged, return_counts=True)
    assert values.tolist() == [0, 100, 255]
    np.testing.assert_allclose(counts / damaged.size, [0.1, 0.8, 0.1], atol=0.01)


def test_errors_under_changes() -> None:
    """A classifier that sees where the ink is, is right on unmoved images only."""
    images = np.zeros((10, 32, 32), np.uint8)
    images[:, 10:14] = 255
    labels = np.zeros(10, int)

    def upright(x: Any) -> Any:
        hit = x[:, 10:14].mean(axis=(1, 2)) > 200
        return np.stack([hit, ~hit], axis=1).astype(float)

    errors = report_1998.errors_under({"eq8": upright}, images, labels)
    points = dict(errors["shift up or down, pixels"]["eq8"])
    assert points[0] == 0
    assert points[4] == points[10] == 1
    assert all(0 <= share <= 1 for parts in errors.values() for _, share in parts["eq8"])


def test_report_of_no_part(tmp_path: Path) -> None:
    """A table with the paper's figures alone, and a picture without lines."""
    images, labels = data.digits("test")
    report_1998.write(tmp_path, {}, images, labels)
    assert "| test error, 60,000 images | 0.95% |  |  |  |" in (tmp_path / "table.md").read_text()
