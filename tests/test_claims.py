"""The measured claims: the program, its parts, what is concluded, and that the committed results are its own."""

import io
import json
import os
import shutil
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models import LeNet5
from tests.refusals import refused
from tinygrad_lenet import Tensor, data, no_grad

pytest.importorskip("matplotlib", reason="the example's packages are not installed")
pytest.importorskip("tqdm", reason="the example's packages are not installed")
from matplotlib.image import imread

from examples.claims import __main__ as program
from examples.claims import overfitting, parameters, shared, shift
from tests.test_example import MNIST
from tests.test_plots import legible

RESULTS = Path(__file__).parents[1] / "examples" / "results" / "claims"
IMAGES, LABELS = data.digits("test")
TINY = {
    "parameters": {"nets": ["LeNet 1-2-15-10", "fully connected 30"], "dropouts": [0.0, 0.3], "seeds": 1, "steps": 3},
    "shift": {"seeds": 1, "steps": 3, "shifts": [0, 8]},
    "overfitting": {"sizes": [[50, 2]], "steps": 2, "variants": overfitting.VARIANTS},
}


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """--quick is quicker still."""
    for name, settings in TINY.items():
        monkeypatch.setattr(program.CLAIMS[name], "QUICK", settings)


def run(*words: object) -> None:
    program.main(["--quick", "--no-progress", *map(str, words)])


def read(path: Path) -> dict[str, Any]:
    results: dict[str, Any] = json.loads(path.read_text(), parse_constant=pytest.fail)
    return results


def listed(path: Path) -> list[dict[str, Any]]:
    return list(read(path)["measurements"].values())


# The program


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a run with seed 3, and what it printed."""
    out, printed = tmp_path_factory.mktemp("claims") / "new", io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed):
        for name, settings in TINY.items():
            patch.setattr(program.CLAIMS[name], "QUICK", settings)
        run("--out", out, "--seed", 3)
    return out, printed.getvalue()


@pytest.mark.parametrize("name", program.CLAIMS)
def test_a_run(name: str, finished: tuple[Path, str]) -> None:
    """Every measurement is there, with the claim's figure and table."""
    out, printed = finished
    claim = program.CLAIMS[name]
    plan = claim.plan(TINY[name], 3)
    assert list(read(out / f"{name}.json")["measurements"]) == [", ".join(map(str, r.values())) for r in plan]
    assert imread(out / f"{name}.png").shape[1] == 1200
    assert claim.table(listed(out / f"{name}.json")) in printed


def test_what_is_finished_is_not_measured_again(finished: tuple[Path, str], tmp_path: Path) -> None:
    """What the file lacks is measured, to the same numbers; what it has is believed."""
    before = read(finished[0] / "parameters.json")
    altered = json.loads(json.dumps(before))
    lost, kept, *_ = altered["measurements"]
    del altered["measurements"][lost]
    altered["measurements"][kept]["validation_errors"] += 1
    (tmp_path / "parameters.json").write_text(json.dumps(altered))
    run("parameters", "--out", tmp_path, "--seed", 3)
    after = read(tmp_path / "parameters.json")
    after["measurements"][kept]["validation_errors"] -= 1
    assert after == before


def test_other_settings_are_refused(finished: tuple[Path, str], tmp_path: Path) -> None:
    """Numbers of two seeds do not get into one file, and this is said before anything is measured."""
    shutil.copy(finished[0] / "shift.json", tmp_path)
    with refused(ValueError, "shift.json seed 0 3"):
        run("--out", tmp_path)
    assert (tmp_path / "shift.json").read_bytes() == (finished[0] / "shift.json").read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["shift.json"]


def test_what_is_finished_is_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = []

    def measure(settings: Any, sets: Any, **record: Any) -> dict[str, Any]:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(record)
        return {"parameters": 1, "validation_errors": 1, "test_error": 0.5}

    monkeypatch.setattr(parameters, "measure", measure)
    with pytest.raises(KeyboardInterrupt):
        run("parameters", "--out", tmp_path)
    assert len(listed(tmp_path / "parameters.json")) == 2


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"settings": {}, "measurements": []}', "\x00"])
def test_files_of_others_are_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "shift.json"
    path.write_text(content)
    with refused(ValueError, "shift.json"):
        run("shift", "--out", tmp_path)
    assert path.read_text() == content


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--dataset", "mnist", "--data-dir", "{tmp}/nowhere"], "train-images nowhere"),
        (["--seed", "-1"], "--seed -1"),
        (["--out", "{tmp}/file"], "--out file"),
    ],
)
def test_bad_input(words: list[str], named: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("keep")
    with refused((ValueError, OSError), named):
        run("--out", tmp_path / "out", *(word.format(tmp=tmp_path) for word in words))
    assert (tmp_path / "file").read_text() == "keep"
    assert not (tmp_path / "out").exists()


# Nets and training


def test_the_lenet_of_full_width_is_lenet5() -> None:
    """The same layers, the same initial weights, the same dropout."""
    x = Tensor(data.to_input(IMAGES[:8]))
    for dropout in (0.0, 0.5):
        ours, theirs = shared.build(shared.LENET5, 7, dropout), LeNet5(dropout=dropout, rng=7)
        assert sum(p.size for p in ours.parameters()) == 61_706
        for _ in range(2):  # the second time with other units dropped
            np.testing.assert_array_equal(ours(x).numpy(), theirs(x).numpy())


@pytest.mark.parametrize(
    ("net", "border", "count"),
    [
        ("LeNet 3-8-60-42", False, 78 + 608 + 12_060 + 2_562 + 430),
        ("fully connected 30", False, 785 * 30 + 31 * 10),
        ("fully connected 300-100", False, 785 * 300 + 301 * 100 + 101 * 10),
        ("fully connected 300-100", True, 1025 * 300 + 301 * 100 + 101 * 10),
    ],
)
def test_parameters(net: str, border: bool, count: int) -> None:
    model = shared.build(net, 0, 0.3, border)
    assert sum(p.size for p in model.parameters()) == count
    assert model(Tensor(data.to_input(IMAGES[:2]))).shape == (2, 10)


def test_a_net_without_border_sees_all_of_the_image() -> None:
    y = shared.Middle()(Tensor(data.to_input(IMAGES[:4]))).numpy()
    np.testing.assert_allclose(y[:, 0] * 0.3081 + 0.1307, IMAGES[:4] / 255, atol=1e-6)


def test_training_takes_the_steps_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """On whole batches, epoch after epoch; the rate ends near 0, as the schedule's last step has it."""
    seen, rates = [], []

    class Watch(data.Affine):
        def __call__(self, images: np.ndarray, epoch: int = 0, position: int = 0) -> np.ndarray:
            seen.append((epoch, position, len(images)))
            return super().__call__(images, epoch, position)

    step = shared.optim.OneCycle.step

    def listen(schedule: Any) -> None:
        rates.append(schedule.optimizer.lr)
        step(schedule)

    monkeypatch.setattr(shared.optim.OneCycle, "step", listen)
    shared.train(shared.build("fully connected 5", 0), IMAGES[:100], LABELS[:100], 5, 40, 0, Watch())
    assert seen == [(0, 0, 40), (0, 40, 40), (1, 0, 40), (1, 40, 40), (2, 0, 40)]
    assert len(rates) == 5
    assert max(rates) <= shared.LR
    assert rates[-1] < 0.01 * shared.LR


def test_errors_are_counted_without_dropout() -> None:
    model = shared.build("fully connected 20", 0, dropout=0.9)
    with no_grad():
        logits = model.eval()(Tensor(data.to_input(IMAGES))).numpy()
    wrong = int((logits.argmax(axis=1) != LABELS).sum())
    assert 0 < wrong < 360
    model.train()
    assert shared.count_errors(model, IMAGES, LABELS, 7) == wrong


@pytest.mark.parametrize(("down", "right"), [(0, 0), (3, 0), (-3, 0), (0, 5), (0, -5), (2, -1)])
def test_shifted(down: int, right: int) -> None:
    """Each pixel moves by as much; what comes in is background."""
    images = np.random.default_rng(0).integers(1, 256, (3, 9, 10), dtype=np.uint8)
    moved = shift.shifted(images, down, right)
    assert (moved.shape, moved.dtype) == (images.shape, np.uint8)
    for n, row, column in np.ndindex(images.shape):
        inside = 0 <= row - down < 9 and 0 <= column - right < 10
        assert moved[n, row, column] == (images[n, row - down, column - right] if inside else 0)


def test_digits_have_room_in_the_frame() -> None:
    """For 6 pixels in every direction; in 40 nothing is left."""
    framed = shift.framed(IMAGES)
    np.testing.assert_array_equal(data.to_input(framed), data.to_input(IMAGES))
    assert set(shift.DIRECTIONS) == {(0, -1), (0, 1), (-1, 0), (1, 0)}
    for down, right in shift.DIRECTIONS:
        assert shift.shifted(framed, 6 * down, 6 * right).sum() == framed.sum()
        assert not shift.shifted(framed, 40 * down, 40 * right).any()


# What is concluded from the numbers


@pytest.mark.parametrize(
    ("errors", "good", "surely"),
    [(5, None, None), (11, 61_706, None), (15, 61_706, 61_706), (21, 4_157, 61_706), (30, 4_157, 4_157)],
)
def test_the_lenet_that_is_as_good(errors: int, good: int | None, surely: int | None) -> None:
    """The validation images choose the dropout, though the test images would choose the other."""
    nets = {shared.LENET5: (61_706, 10), "LeNet 2-4-30-21": (4_157, 20), shared.FULL: (266_610, errors)}
    results = [
        {"net": net, "dropout": dropout, "seed": seed, "parameters": count}
        | {"validation_errors": wrong + 100 * (dropout > 0), "test_error": (wrong + seed - 50 * (dropout > 0)) / 1000}
        for net, (count, wrong) in nets.items()
        for dropout in parameters.DROPOUTS
        for seed in (2, 0, 1)
    ]
    small, lenet5, full = parameters.compare(results)
    assert (small.parameters, lenet5.parameters, full.parameters) == (4_157, 61_706, 266_610)
    assert {net.dropout for net in (small, lenet5, full)} == {0.0}
    for expected, certain in ((good, False), (surely, True)):
        found = parameters.as_good([small, lenet5, full], full, certain)
        assert (found.parameters if found else None) == expected
    row = parameters.table(results).splitlines()[-1]
    assert all(f"| {n:,} | {266_610 / n:.1f} |" in row for n in (good, surely) if n)


def test_where_accuracy_falls() -> None:
    shifts = [0, 1, 2, 4]
    assert shift.falls_to(0.9, [0.99, 0.95, 0.85, 0.10], shifts) == "1.5"
    assert shift.falls_to(0.6, [0.99, 0.95, 0.85, 0.10], shifts) == "2.7"
    assert shift.falls_to(0.9, [0.99, 0.90, 0.80, 0.95], shifts) == "1.0"
    assert shift.falls_to(0.5, [0.99, 0.98, 0.97, 0.96], shifts) == ""
    assert shift.falls_to(0.9, [0.80, 0.80, 0.70, 0.60], shifts) == ""


def test_variants_are_compared_seed_by_seed() -> None:
    """Whichever was measured first."""
    own, better = {0: 0.1, 1: 0.3}, {1: 0.25, 0: 0.05}
    results = [
        {"variant": v, "digits": 50, "seed": seed, "test_error": error, "training_error": 1 - error}
        for v in overfitting.VARIANTS
        for seed, error in (better if v == "dropout" else own).items()
    ]
    rows = [line for line in overfitting.table(results).splitlines() if line.startswith(("| dropout", "| ReLU |"))]
    assert [row.count("↓") - row.count("↑") for row in rows] == [1, 0, -1, 0]
    assert "15.00% (5.00–25.00)" in rows[0]


# The committed results


@pytest.mark.parametrize("name", program.CLAIMS)
def test_committed_results(name: str) -> None:
    """They are all of the plan, with today's settings; README has the table; the figure can be read."""
    claim, results, measured = program.CLAIMS[name], read(RESULTS / f"{name}.json"), listed(RESULTS / f"{name}.json")
    assert results["settings"].items() >= claim.THOROUGH.items()
    assert (results["settings"]["lr"], results["settings"]["data"]) == (shared.LR, "3528fddb")
    assert list(results["measurements"]) == [", ".join(map(str, r.values())) for r in claim.plan(claim.THOROUGH, 0)]
    document = (RESULTS / "README.md").read_text(encoding="utf-8")
    assert claim.table(measured) in document
    assert f"]({name}.png)" in document
    assert imread(RESULTS / f"{name}.png").shape[1] == 1200
    legible(claim.draw(measured, program.load("digits", None, False)))


@pytest.mark.skipif("TINYGRAD_LENET_MNIST" not in os.environ, reason="takes long; name MNIST's folder for it")
def test_a_committed_number_comes_out_again() -> None:
    """On other machines, which round otherwise, not to the digit."""
    sets = program.load("mnist", MNIST, False)
    assert sets.checksum == "3528fddb"
    again = overfitting.measure(overfitting.THOROUGH, sets, digits=300, variant="ReLU and max pooling", seed=0)
    record = read(RESULTS / "overfitting.json")["measurements"]["300, ReLU and max pooling, 0"]
    assert again["training_error"] == record["training_error"] == 0
    assert again["test_error"] == pytest.approx(record["test_error"], abs=0.01)
