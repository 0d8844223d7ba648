"""The measured claims: the program as a person runs it, its parts, and that the committed results are its own."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models import LeNet5
from tinygrad_lenet import Tensor, data, no_grad

pytest.importorskip("matplotlib", reason="the example's packages are not installed")
pytest.importorskip("tqdm", reason="the example's packages are not installed")
from matplotlib.image import imread

from examples import claims
from tests.test_example import MNIST
from tests.test_plots import legible, words

ROOT = Path(__file__).parents[1]
COMMAND = [sys.executable, "-m", "examples.claims"]
RESULTS = ROOT / "examples" / "results" / "claims"
IMAGES, LABELS = data.digits("test")
NAMES = list(claims.CLAIMS)


def program(*arguments: object, progress: bool = False) -> "subprocess.CompletedProcess[str]":
    """Run it with these arguments and wait for its end."""
    words = [*map(str, arguments), *([] if progress else ["--no-progress"])]
    environment = os.environ | {"PYTHONWARNINGS": "error"}
    return subprocess.run([*COMMAND, *words], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


def read(folder: Path) -> dict[str, Any]:
    results: dict[str, Any] = json.loads((folder / "claims.json").read_text(), parse_constant=pytest.fail)
    return results


def expected_names(plan: claims.Plan, seed: int) -> list[str]:
    """All measurements of a plan, in the order in which they are made."""
    specs = ([name, *record.values()] for name in NAMES for record in claims.CLAIMS[name].plan(plan, seed))
    return [", ".join(map(str, spec)) for spec in specs]


# A quick run


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a quick run with seed 3, and what it printed."""
    out = tmp_path_factory.mktemp("claims") / "new" / "folder"
    done = program("--quick", "--seed", 3, "--out", out)
    assert (done.returncode, done.stderr) == (0, "")
    return out, done.stdout


def test_quick_run(quick: tuple[Path, str]) -> None:
    """Every measurement is in claims.json, every claim has its figure, and what is printed follows from the numbers."""
    out, printed = quick
    assert {path.name for path in out.iterdir()} == {"claims.json", *(f"{name}.png" for name in NAMES)}
    results = read(out)
    assert list(results["measurements"]) == expected_names(claims.QUICK, 3)
    assert results["settings"]["dataset"] == "digits"
    assert results["versions"]["numpy"] == np.__version__
    for name, claim in claims.CLAIMS.items():
        assert imread(out / f"{name}.png").shape[1] == 1200
        assert f"{name} (quick, not comparable)\n\n" + "\n".join(claim.report(results)) in printed
        legible(claim.draw(results, claims.load("digits", None, False)))
    errors = claims.error_rates(results, claims.AS_IT_IS, 300, "test_errors")
    assert 0 < errors.max() < 50  # it did learn


def test_what_is_finished_is_not_measured_again(quick: tuple[Path, str], tmp_path: Path) -> None:
    """What claims.json lacks is measured, to the same numbers; what it has is believed."""
    before = read(quick[0])
    altered = json.loads(json.dumps(before))
    last = {record["claim"]: name for name, record in before["measurements"].items()}
    kept = "parameters, fully connected 30, 0.0, 3"
    for name in last.values():
        del altered["measurements"][name]
    altered["measurements"][kept]["test_errors"] += 1
    (tmp_path / "claims.json").write_text(json.dumps(altered))
    done = program("--quick", "--seed", 3, "--out", tmp_path, progress=True)
    assert done.returncode == 0, done.stderr
    assert f"{len(before['measurements']) - 3}/{len(before['measurements'])}" in done.stderr  # where the bar begins
    after = read(tmp_path)
    after["measurements"][kept]["test_errors"] -= 1
    assert after == before


def test_one_claim_at_a_time(quick: tuple[Path, str], tmp_path: Path) -> None:
    """The parts of a run make the whole; a run that has nothing left to measure leaves claims.json alone."""
    for name in ("shift", "parameters"):
        done = program("--quick", "--seed", 3, "--only", name, "--out", tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
        assert (tmp_path / f"{name}.png").read_bytes() == (quick[0] / f"{name}.png").read_bytes()
    assert not (tmp_path / "overfitting.png").exists()
    whole = read(quick[0])["measurements"]
    assert read(tmp_path)["measurements"] == {k: v for k, v in whole.items() if v["claim"] != "overfitting"}
    written = (tmp_path / "claims.json").stat().st_mtime_ns
    program("--quick", "--seed", 3, "--only", "parameters", "--out", tmp_path)
    assert (tmp_path / "claims.json").stat().st_mtime_ns == written


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="needs process groups")
def test_ctrl_c(tmp_path: Path) -> None:
    """Ends with a sentence; what was finished is there to go on from."""
    words = ["--quick", "--out", str(tmp_path)]
    with subprocess.Popen(
        [*COMMAND, *words], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as running:
        try:
            while not (tmp_path / "claims.json").exists():
                assert running.poll() is None
                time.sleep(0.05)
            running.send_signal(signal.SIGINT)
            _, stderr = running.communicate(timeout=60)
        finally:
            if running.poll() is None:
                running.kill()
    assert running.returncode == 130
    assert stderr.splitlines()[-1].endswith("claims: stopped by Ctrl-C; the same command continues from there")
    assert "Traceback" not in stderr
    assert 1 <= len(read(tmp_path)["measurements"]) < len(expected_names(claims.QUICK, 0))


# Bad input: one sentence, no traceback


def refuses(done: "subprocess.CompletedProcess[str]", sentence: str) -> None:
    """AssertionError unless the program failed with this one sentence."""
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert re.match(rf"claims: .*{sentence}", line)


BAD: dict[str, tuple[list[str], str]] = {
    "no such folder": (["--data-dir", "nowhere"], r"mnist: train-images.+ not found in nowhere"),
    "no files": (["--data-dir", "{tmp}", "--only", "shift"], r"mnist: train-images.+ not found in "),
    "negative seed": (["--quick", "--seed", "-1"], r"--seed is -1; expected at least 0"),
    "file in place of --out": (["--quick", "--out", "{tmp}/file"], r"--out .+file is a file; expected a folder"),
    "file above --out": (["--quick", "--out", "{tmp}/file/out"], r"file"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("keep")
    words, sentence = BAD[case]
    out = tmp_path / "out"
    refuses(program("--out", out, *(word.format(tmp=tmp_path) for word in words)), sentence)
    assert (tmp_path / "file").read_text() == "keep"
    assert not out.exists()


def test_other_settings_are_refused(quick: tuple[Path, str], tmp_path: Path) -> None:
    """Numbers of two seeds or two data sets do not get into one file."""
    shutil.copy(quick[0] / "claims.json", tmp_path)
    before = (tmp_path / "claims.json").read_bytes()
    refuses(
        program("--quick", "--out", tmp_path), r"has other settings: seed is 0 here and 3 there; choose another --out"
    )
    refuses(program("--dataset", "digits", "--seed", 3, "--out", tmp_path), r"steps is 4000 here and 120 there")
    assert (tmp_path / "claims.json").read_bytes() == before


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"settings": {}, "measurements": {"a": {"claim": "shift", "seed": 0}}}',
        '{"settings": {}, "measurements": {"a": {"claim": "b"}}}',
        "\x00",
    ],
)
def test_files_of_others_are_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "claims.json").write_text(content)
    refuses(program("--quick", "--out", tmp_path), r"claims\.json holds no results of claims .+; remove it, or choose")
    assert (tmp_path / "claims.json").read_text() == content


@pytest.mark.parametrize("words", [["--only", "size"], ["--seed", "many"], ["--dataset", "cifar"], ["--unknown"]])
def test_unreadable_arguments(words: list[str]) -> None:
    """The usage and what is wrong, with the exit code that means so."""
    done = program(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("usage: python -m examples.claims")


# Nets and training


def test_the_lenet_of_full_width_is_lenet5() -> None:
    """The same layers, the same initial weights, the same dropout."""
    x = Tensor(data.to_input(IMAGES[:8]))
    for dropout in (0.0, 0.5):
        ours, theirs = claims.build(claims.LENET5, 7, dropout), LeNet5(dropout=dropout, rng=7)
        assert sum(p.size for p in ours.parameters()) == 61_706
        for _ in range(2):  # the second time with other units dropped
            np.testing.assert_array_equal(ours(x).numpy(), theirs(x).numpy())


@pytest.mark.parametrize(
    ("net", "border", "parameters"),
    [
        ("LeNet 3-8-60-42", False, 78 + 608 + 12_060 + 2_562 + 430),
        ("fully connected 30", False, 785 * 30 + 31 * 10),
        ("fully connected 300-100", False, 785 * 300 + 301 * 100 + 101 * 10),
        ("fully connected 300-100", True, 1025 * 300 + 301 * 100 + 101 * 10),
    ],
)
def test_parameters(net: str, border: bool, parameters: int) -> None:
    model = claims.build(net, 0, 0.3, border)
    assert sum(p.size for p in model.parameters()) == parameters
    assert model(Tensor(data.to_input(IMAGES[:2]))).shape == (2, 10)


def test_a_net_without_border_sees_all_of_the_image() -> None:
    x = Tensor(data.to_input(IMAGES[:4]))
    y = claims.Middle()(x).numpy()
    np.testing.assert_allclose(y[:, 0] * 0.3081 + 0.1307, IMAGES[:4] / 255, atol=1e-6)


def test_training_takes_the_steps_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """On whole batches, epoch after epoch; the rate ends near 0, as the schedule's last step has it."""
    seen = []

    class Watch(data.Affine):
        def __call__(self, images: np.ndarray, epoch: int = 0, position: int = 0) -> np.ndarray:
            seen.append((epoch, position, len(images)))
            return super().__call__(images, epoch, position)

    rates = []
    step = claims.optim.OneCycle.step

    def listen(schedule: Any) -> None:
        rates.append(schedule.optimizer.lr)
        step(schedule)

    monkeypatch.setattr(claims.optim.OneCycle, "step", listen)
    model = claims.build("fully connected 5", 0)
    claims.train(model, IMAGES[:100], LABELS[:100], 5, 40, 0, Watch())
    assert seen == [(0, 0, 40), (0, 40, 40), (1, 0, 40), (1, 40, 40), (2, 0, 40)]
    assert len(rates) == 5
    assert max(rates) <= claims.LR
    assert rates[-1] < 0.01 * claims.LR


def test_errors_are_counted_without_dropout() -> None:
    model = claims.build("fully connected 20", 0, dropout=0.9)
    with no_grad():
        logits = model.eval()(Tensor(data.to_input(IMAGES))).numpy()
    wrong = int((logits.argmax(axis=1) != LABELS).sum())
    assert 0 < wrong < 360
    model.train()
    assert claims.count_errors(model, IMAGES, LABELS) == claims.count_errors(model, IMAGES, LABELS, 7) == wrong


@pytest.mark.parametrize(("down", "right"), [(0, 0), (3, 0), (-3, 0), (0, 5), (0, -5), (2, -1)])
def test_shifted(down: int, right: int) -> None:
    """Each pixel moves by as much; what comes in is background."""
    images = np.random.default_rng(0).integers(1, 256, (3, 9, 10), dtype=np.uint8)
    moved = claims.shifted(images, down, right)
    assert (moved.shape, moved.dtype) == (images.shape, np.uint8)
    for n, row, column in np.ndindex(images.shape):
        inside = 0 <= row - down < 9 and 0 <= column - right < 10
        assert moved[n, row, column] == (images[n, row - down, column - right] if inside else 0)


def test_shifts_of_digits() -> None:
    """In the frame there is room for 6 pixels in every direction, and after 40 nothing is left."""
    framed = claims.framed(IMAGES)
    assert framed.shape == (360, 32, 32)
    np.testing.assert_array_equal(data.to_input(framed), data.to_input(IMAGES))
    for down, right in claims.DIRECTIONS:
        assert claims.shifted(framed, 6 * down, 6 * right).sum() == framed.sum()
        assert not claims.shifted(framed, 40 * down, 40 * right).any()
    assert {abs(down) + abs(right) for down, right in claims.DIRECTIONS} == {1}
    assert len(set(claims.DIRECTIONS)) == 4


# What is concluded from the numbers


def made_up(full_errors: int) -> dict[str, Any]:
    """Results of claim 1 in which the fully connected net makes this many errors of 1,000, and dropout is worse."""
    nets = {claims.LENET5: (61_706, 10), "LeNet 2-4-30-21": (4_157, 20), claims.FULL: (266_610, full_errors)}
    records = [
        {"claim": "parameters", "net": net, "dropout": dropout, "seed": seed, "parameters": parameters}
        | {"validation_errors": errors + 100 * (dropout > 0), "test_errors": errors + seed - 50 * (dropout > 0)}
        for net, (parameters, errors) in nets.items()
        for dropout in (0.0, 0.5)
        for seed in (0, 1, 2)
    ]
    settings = {"nets": list(nets), "dropouts": [0.0, 0.5], "test_images": 1000}
    return {"settings": settings, "measurements": {str(i): record for i, record in enumerate(records)}}


@pytest.mark.parametrize(
    ("errors", "sentences"),
    [
        (5, ["does as well is fully connected 300-100 with 266,610 parameters, 4.3 times LeNet-5's, and 0.60%"]),
        (15, ["None of the fully connected nets reaches this", "61,706 parameters and 1.10%: a factor of 4.3 at"]),
        (21, ["has 4,157 parameters and 2.10%: a factor of 64.1", "beats that net's best seed has 61,706 param"]),
        (30, ["has 4,157 parameters and 2.10%: a factor of 64.1", "beats that net's best seed has 4,157 param"]),
    ],
)
def test_conclusions_about_parameters(errors: int, sentences: list[str]) -> None:
    """Whichever way it comes out; the validation images choose the dropout, though the test would choose the other."""
    results = made_up(errors)
    assert all(net.dropout == 0 for net in claims.compare_nets(results))
    report = "\n".join(claims.report_parameters(results))
    assert "LeNet-5 with 61,706 parameters has a test error of 1.10%, or without dropout 1.10%." in report
    assert all(sentence in report for sentence in sentences)
    assert ("LeNet as good as" in report) == (errors >= 10)
    figure = claims.draw_parameters(results)
    legible(figure)
    assert (f"÷ {266_610 / (61_706 if errors == 15 else 4_157):.0f}" in words(figure)) == (errors >= 10)


def test_where_accuracy_falls() -> None:
    shifts = [0, 1, 2, 4]
    assert claims.falls_to(90, np.array([99, 95, 85, 10]), shifts) == "1.5 pixels"
    assert claims.falls_to(60, np.array([99, 95, 85, 10]), shifts) == "2.7 pixels"
    assert claims.falls_to(90, np.array([99, 90, 80, 95]), shifts) == "1.0 pixels"
    assert claims.falls_to(50, np.array([99, 98, 97, 96]), shifts) == "no shift"
    assert claims.falls_to(90, np.array([80, 80, 70, 60]), shifts) == "no shift"


def test_accuracy_is_the_mean_over_directions() -> None:
    record = {"claim": "shift", "net": "a", "trained_on": "b", "test_errors": [[0, 0, 0, 0], [10, 20, 30, 40]]}
    results = {"settings": {"test_images": 100}, "measurements": {"": record}}
    np.testing.assert_allclose(claims.accuracies(results, "a", "b"), [[100, 75]])


def test_error_rates_are_in_the_order_of_the_seeds() -> None:
    """As variants are compared seed by seed, whichever was measured first."""
    record = {"claim": "overfitting", "variant": "a", "digits": 50}
    records = {str(seed): record | {"seed": seed, "train_errors": seed, "test_errors": seed} for seed in (2, 0, 1)}
    results = {"settings": {"test_images": 100}, "measurements": records}
    assert claims.error_rates(results, "a", 50, "test_errors").tolist() == [0, 1, 2]
    assert claims.error_rates(results, "a", 50, "train_errors").tolist() == [0, 2, 4]


def test_verdict() -> None:
    assert claims.verdict([], []) == "nowhere better or worse with every seed"
    both = claims.verdict(["100", "300"], ["1,000"])
    assert both == "better with every seed after 100, 300 digits, worse with every seed after 1,000 digits"


# The committed results


def test_committed_results_are_of_this_program() -> None:
    """All measurements of the thorough plan, with the settings of today."""
    results = read(RESULTS)
    assert sorted(results["measurements"]) == sorted(expected_names(claims.THOROUGH, results["settings"]["seed"]))
    today = json.loads(
        json.dumps(asdict(claims.THOROUGH) | {"lr": claims.LR, "variants": claims.VARIANTS, "dataset": "mnist"})
    )
    assert {name: results["settings"][name] for name in today} == today


@pytest.mark.parametrize("name", NAMES)
def test_committed_figures_and_sentences(name: str) -> None:
    """The README says what the numbers say, each line of it; the figure is there and can be read."""
    results = read(RESULTS)
    document = (RESULTS / "README.md").read_text(encoding="utf-8")
    flat = " ".join(document.split())
    for line in claims.CLAIMS[name].report(results):
        assert " ".join(line.split()) in flat, line
    assert f"]({name}.png)" in document
    assert imread(RESULTS / f"{name}.png").shape[1] == 1200
    legible(claims.CLAIMS[name].draw(results, claims.load("digits", None, False)))


@pytest.mark.skipif(not MNIST.is_dir(), reason="MNIST is not here; name its folder in TINYGRAD_LENET_MNIST")
def test_committed_numbers_come_out_again(tmp_path: Path) -> None:
    """One of them, on the real thing; other machines round otherwise, so not to the digit."""
    results = read(RESULTS)
    record = results["measurements"].pop("overfitting, 300, ReLU and max pooling, 0")
    (tmp_path / "claims.json").write_text(json.dumps(results))
    done = program("--data-dir", MNIST, "--only", "overfitting", "--out", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    again = read(tmp_path)["measurements"].pop("overfitting, 300, ReLU and max pooling, 0")
    assert again["train_errors"] == record["train_errors"] == 0
    assert again["test_errors"] == pytest.approx(record["test_errors"], abs=100)  # 1% of the images
