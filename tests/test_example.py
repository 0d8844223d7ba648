"""The training example as a person runs it: `python -m examples.train_lenet5` in a process of its own."""

import csv
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from models import LeNet5
from tinygrad_lenet import Tensor, backend, data, no_grad, parallel
from tinygrad_lenet.data import write_idx

pytest.importorskip("tqdm", reason="the example's packages are not installed")
pytest.importorskip("matplotlib", reason="the example's packages are not installed")
pytest.importorskip("safetensors", reason="the example's packages are not installed")
from safetensors.numpy import load_file

from examples import train_lenet5

ROOT = Path(__file__).parents[1]
COMMAND = [sys.executable, "-m", "examples.train_lenet5"]
LAST_LINE = re.compile(r"test accuracy (\d+\.\d\d)% \((\d+) errors of (\d+)\) in \d+\.\d s")
MNIST = Path(os.environ.get("TINYGRAD_LENET_MNIST") or ROOT.parent / "shared" / "data" / "mnist")


def example(*arguments: object, progress: bool = False, warnings: str = "error") -> "subprocess.CompletedProcess[str]":
    """Run the example with these arguments and wait for its end."""
    words = [*map(str, arguments), *([] if progress else ["--no-progress"])]
    environment = os.environ | {"PYTHONWARNINGS": warnings}
    return subprocess.run([*COMMAND, *words], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=100)


def trained(out: Path, *arguments: object) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The metrics and the weights that the example writes into ``out``; it must succeed and say nothing on stderr."""
    done = example("--out", out, *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    metrics = json.loads((out / "metrics.json").read_text(), parse_constant=pytest.fail)  # NaN is not JSON
    found = LAST_LINE.fullmatch(done.stdout.splitlines()[-1])
    assert found, done.stdout
    assert float(found[1]) == pytest.approx(100 * metrics["test_accuracy"], abs=0.00501)
    assert (int(found[2]), int(found[3])) == (metrics["test_errors"], metrics["test_images"])
    return metrics, load_file(out / "model.safetensors")


def equal(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    """Whether all weights are equal to the bit."""
    return list(a) == list(b) and all(a[name].tobytes() == b[name].tobytes() for name in a)


def errors(model: LeNet5) -> int:
    images, labels = data.digits("test")
    with no_grad():
        logits = model.eval()(Tensor(data.to_input(images))).numpy()
    return int((logits.argmax(axis=1) != labels).sum())


# Results


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """The program without a process of its own."""
    monkeypatch.setattr(parallel, "tune_process", lambda: False)

    def call(*words: object) -> None:
        monkeypatch.setattr(sys, "argv", ["train_lenet5", "--no-progress", *map(str, words)])
        with np.errstate(), backend.use("cpu"):
            train_lenet5.main()

    return call


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Any]:
    """For one worker and for two: the folder, metrics and weights of two epochs with seed 0."""
    folders = {workers: tmp_path_factory.mktemp("two_epochs") / "new" / "folder" for workers in (1, 2)}
    return {w: (out, *trained(out, "--epochs", 2, "--workers", w)) for w, out in folders.items()}


@pytest.fixture(params=[1, 2], ids=lambda workers: f"{workers} workers")
def two_epochs(request: pytest.FixtureRequest, results: dict[int, Any]) -> Any:
    """The number of workers and their results."""
    return request.param, *results[request.param]


def test_metrics(two_epochs: Any) -> None:
    """metrics.json has what the README promises, in the types that it promises."""
    workers, out, metrics, _ = two_epochs
    assert metrics["test_accuracy"] == 1 - metrics["test_errors"] / metrics["test_images"]
    assert 0.5 < metrics["test_accuracy"] < 1
    assert (type(metrics["test_errors"]), metrics["test_images"]) == (int, 360)
    for name in ("epoch_seconds", "train_loss"):
        assert len(metrics[name]) == 2
        assert all(type(value) is float and value > 0 for value in metrics[name])
    assert metrics["train_loss"][1] < metrics["train_loss"][0] < 3
    assert sum(metrics["epoch_seconds"]) < metrics["seconds"]
    assert metrics["device"] == ("cuda" if workers == 1 and "cuda" in backend.available() else "cpu")
    assert metrics["versions"]["numpy"] == np.__version__
    assert all(type(version) is str for version in metrics["versions"].values())
    expected = {"epochs": 2, "workers": workers, "seed": 0, "dataset": "digits", "model": "lenet5", "out": str(out)}
    assert {name: metrics["arguments"][name] for name in expected} == expected


def test_saved_weights_make_the_errors_reported(two_epochs: Any) -> None:
    """model.safetensors is a state_dict of LeNet5, and it is the model that was tested."""
    _, out, metrics, weights = two_epochs
    assert all(value.dtype == np.float32 and np.isfinite(value).all() for value in weights.values())
    model = LeNet5(rng=1)
    model.load_state_dict(weights)
    assert errors(model) == metrics["test_errors"]
    names = {path.name for path in out.iterdir()}
    assert names == {"metrics.json", "metrics.csv", "model.safetensors", "checkpoint.safetensors"}


def test_same_seed_same_weights(two_epochs: Any, tmp_path: Path) -> None:
    """To the bit, with one worker and with two; another seed, other weights."""
    workers, _, metrics, weights = two_epochs
    again, again_weights = trained(tmp_path, "--epochs", 2, "--workers", workers, "--seed", 0)
    assert equal(weights, again_weights)
    assert not equal(weights, trained(tmp_path, "--epochs", 1, "--workers", workers, "--seed", 1)[1])
    assert again["train_loss"] == metrics["train_loss"]
    assert again["test_errors"] == metrics["test_errors"]


def test_two_workers_learn_what_one_learns(results: dict[int, Any]) -> None:
    """The same images, distortions and steps; only the rounding of the sums differs."""
    (_, one, a), (_, two, b) = results[1], results[2]
    assert np.allclose(one["train_loss"], two["train_loss"], rtol=1e-3)
    assert all(np.allclose(a[name], b[name], atol=0.01) for name in a)


@pytest.mark.parametrize(
    ("model", "optimizer"), [*product(train_lenet5.MODELS, ["adam"]), ("lenet5", "sgd"), ("lenet5", "adamw")]
)
def test_every_model_and_optimizer(model: str, optimizer: str, tmp_path: Path, main: Callable[..., None]) -> None:
    """Each runs an epoch and learns something; its weights load into that model."""
    words = [
        "--epochs",
        1,
        "--batch-size",
        32,
        "--model",
        model,
        "--optimizer",
        optimizer,
        "--no-augment",
        "--workers",
        1,
    ]
    main("--out", tmp_path, *words, "--lr", 0.1 if optimizer == "sgd" else 0.004)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["train_loss"][0] < (2.5 if model == "lenet5-sigmoid" else 2.1)  # sigmoids take epochs to start
    assert (metrics["arguments"]["model"], metrics["arguments"]["optimizer"]) == (model, optimizer)
    net = train_lenet5.MODELS[model](1)
    net.load_state_dict(load_file(tmp_path / "model.safetensors"))
    assert errors(net) == metrics["test_errors"]


def test_a_recipe_sets_defaults_that_arguments_override(tmp_path: Path) -> None:
    metrics, _ = trained(tmp_path, "--recipe", "fast", "--epochs", 1)
    expected = {"recipe": "fast", "model": "lenet5-relu", "epochs": 1, "batch_size": 128, "lr": 0.006}
    assert {name: metrics["arguments"][name] for name in expected} == expected


def test_default_settings(tmp_path: Path) -> None:
    """What the README's first command does: over 97% of held-out digits; the bar is on stderr, which is no terminal."""
    done = example("--out", tmp_path, progress=True)
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["test_accuracy"] > 0.97
    assert len(metrics["train_loss"]) == metrics["arguments"]["epochs"]
    assert LAST_LINE.fullmatch(done.stdout.splitlines()[-1])
    assert "images" in done.stderr
    assert "100%" in done.stderr
    assert f"epoch {metrics['arguments']['epochs']}/" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(not MNIST.is_dir(), reason="MNIST is not here; name its folder in TINYGRAD_LENET_MNIST")
def test_mnist(tmp_path: Path) -> None:
    """One epoch on the real thing, with defaults: over 96% (README's five reach 98.9%)."""
    metrics, _ = trained(tmp_path, "--dataset", "mnist", "--data-dir", MNIST, "--epochs", 1)
    assert metrics["test_images"] == 10_000
    assert metrics["test_accuracy"] > 0.96


# What an earlier run left


@pytest.fixture
def done(results: dict[int, Any], tmp_path: Path) -> Path:
    """A folder with a finished run, as its owner last saw it."""
    shutil.copytree(results[1][0], tmp_path / "done")
    (tmp_path / "done" / "maps.png").touch()
    (tmp_path / "done" / "notes.txt").touch()
    return tmp_path / "done"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


BAD: dict[str, tuple[str, str]] = {
    "no such folder": ("--dataset mnist --data-dir nowhere", r"mnist: train-images.+ not found in nowhere.+--download"),
    "no files": ("--dataset fashion-mnist --data-dir .", r"fashion_mnist: train-images.+ not found in "),
    "no set": ("--dataset idx --data-dir .", r"idx: \. holds no set to train on"),
    "no place": ("--dataset idx", "--dataset idx needs --data-dir"),
    "no epochs": ("--epochs 0", "--epochs is 0; expected at least 1"),
    "no batch": ("--batch-size 0 --workers 3", "--batch-size is 0; expected at least 1"),
    "negative rate": ("--lr -1", r"lr is -1\.0"),
    "rate is no number": ("--lr nan", "lr is nan"),
    "no workers": ("--workers 0", "--workers is 0; expected at least 1"),
    "too many workers": ("--workers 5000", "--workers is 5000; expected at most --batch-size, 64"),
    "negative seed": ("--seed -1", "--seed is -1"),
    "all images held out": ("--validation 1437", "--validation is 1437; expected fewer than the 1437 training images"),
    "patience without validation": ("--patience 3", "--patience is 3 without --validation"),
    "file in place of --out": ("--out {tmp}/file", "file"),
    "file above --out": ("--out {tmp}/file/out", "[Ff]ile|directory"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_changes_nothing(case: str, done: Path, tmp_path: Path, main: Callable[..., None]) -> None:
    """One sentence, before anything in --out is touched, or --out is made."""
    (tmp_path / "file").write_text("keep")
    before = contents(done)
    words, sentence = BAD[case]
    for out in (done, tmp_path / "new"):
        with pytest.raises((ValueError, OSError), match=sentence) as caught:
            main("--out", out, *words.format(tmp=tmp_path).split())
        assert "\n" not in str(caught.value)
    assert contents(done) == before
    assert (tmp_path / "file").read_text() == "keep"
    assert not (tmp_path / "new").exists()


def test_workers_that_cannot_start_change_nothing(
    done: Path, main: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(done)

    def refuse(*_: object, **__: object) -> None:
        raise parallel.WorkerError("no room for another process")

    monkeypatch.setattr(parallel, "run", refuse)
    with pytest.raises(parallel.WorkerError):
        main("--out", done)
    assert contents(done) == before


def test_a_new_run_in_the_folder_of_another(done: Path, main: Callable[..., None]) -> None:
    """The old results and the old checkpoint stay until the new ones are there; what is nobody's result stays."""
    old = contents(done)
    for path in done.iterdir():
        path.chmod(0o600)
    runaway = ["--epochs", 1, "--workers", 1, "--model", "lenet5-relu", "--optimizer", "sgd", "--lr", 1e10]
    for i in (1, 2):
        with pytest.raises(ValueError, match="the loss became"):
            main("--out", done, *runaway)
        now = contents(done)
        assert now.pop("checkpoint.earlier-1.safetensors") == old["checkpoint.safetensors"]
        assert (now.pop("checkpoint.earlier-2.safetensors", None) is not None) == (i == 2)
        assert now.pop("checkpoint.safetensors") != old["checkpoint.safetensors"]
        assert now == {name: data for name, data in old.items() if name != "checkpoint.safetensors"}
    main("--out", done, "--epochs", 1, "--workers", 1, "--seed", 5)
    new = contents(done)
    assert new.keys() == old.keys() - {"maps.png"}
    assert {name for name in new if new[name] == old[name]} == {"notes.txt"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in done.iterdir()} == {0o600}


def test_a_folder_that_is_full_keeps_the_earlier_checkpoint(
    done: Path, main: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    before = contents(done)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ValueError, match="No space left on device"):
        main("--out", done, "--workers", 1)
    assert contents(done) == before


def test_default_folder_names_model_and_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, main: Callable[..., None]
) -> None:
    monkeypatch.chdir(tmp_path)
    main("--epochs", 1, "--workers", 1, "--model", "lenet5-relu")
    assert (tmp_path / "runs" / "lenet5-relu-digits" / "metrics.json").exists()


# Validation, tables, other data sets


def test_validation_keeps_the_best_epoch(tmp_path: Path, main: Callable[..., None]) -> None:
    """Its weights are saved and tested; the table has what the JSON has, both lines of the learning curve among it."""
    main("--out", tmp_path, "--epochs", 5, "--validation", 100, "--workers", 1, "--lr", 0.05)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    with (tmp_path / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4", "5"]
    for name in ("train_loss", "train_accuracy", "validation_loss", "validation_accuracy", "epoch_seconds"):
        assert [float(row[name]) for row in rows] == metrics[name]
    best = metrics["best_epoch"] - 1
    assert metrics["validation_accuracy"][best] == max(metrics["validation_accuracy"])
    images, _, held_images, held_labels = train_lenet5.hold_out(100, *data.digits("train"))
    assert (len(images), len(held_images)) == (1337, 100)
    assert not {image.tobytes() for image in images} & {image.tobytes() for image in held_images}
    model = LeNet5()
    model.load_state_dict(load_file(tmp_path / "model.safetensors"))
    found = train_lenet5.validate(parallel.Group([]), model, held_images, held_labels)
    assert found == pytest.approx((metrics["validation_loss"][best], metrics["validation_accuracy"][best]), rel=1e-4)
    assert errors(model) == metrics["test_errors"]


def test_best_epoch_and_patience() -> None:
    """Fewest errors, then the smaller loss, then the earlier one."""

    def run(patience: int | None, *accuracies: float, losses: Any = None) -> Any:
        history = {"validation_accuracy": list(accuracies), "validation_loss": list(losses or [1.0] * len(accuracies))}
        args = SimpleNamespace(epochs=9, patience=patience)
        return SimpleNamespace(args=args, history=history, loader=SimpleNamespace(epoch=len(accuracies)))

    assert train_lenet5.best_epoch(run(1)) is None
    assert train_lenet5.best_epoch(run(1, 0.5, 0.9, 0.9, 0.8, losses=[3, 2, 1, 0])) == 2
    assert train_lenet5.best_epoch(run(1, 0.9, 0.9)) == 0
    for accuracies, patience, expected in [
        ((0.5, 0.9, 0.8), 2, False), ((0.5, 0.9, 0.8, 0.7), 2, True), ((0.5, 0.4), 1, True), ((), 1, False),
        ((0.5, 0.4, 0.3), None, False), ((0.1,) * 9, None, True),
    ]:  # fmt: skip
        assert train_lenet5.finished(run(patience, *accuracies)) == expected


def test_stops_early(tmp_path: Path, main: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    """And knows, when it is resumed, that it is finished."""
    words = ["--out", tmp_path, "--epochs", 9, "--validation", 100, "--patience", 1, "--workers", 1, "--lr", 1e-12]
    main(*words)
    weights = (tmp_path / "model.safetensors").read_bytes()
    assert len(json.loads((tmp_path / "metrics.json").read_text())["validation_loss"]) < 9
    main(*words, "--resume")
    assert "is complete; testing it again" in capsys.readouterr().out
    assert (tmp_path / "model.safetensors").read_bytes() == weights


def test_other_sets(tmp_path: Path, main: Callable[..., None]) -> None:
    """As many classes as there are, here 26, and all pictures of them."""
    for split, prefix in (("train", "train"), ("test", "test")):
        images, labels = data.digits(split)
        write_idx(tmp_path / f"emnist-letters-{prefix}-images-idx3-ubyte.gz", images.transpose(0, 2, 1))
        write_idx(tmp_path / f"emnist-letters-{prefix}-labels-idx1-ubyte.gz", (labels + 16).astype(np.uint8))
    words = ["--dataset", "idx", "--data-dir", tmp_path / "emnist-letters", "--workers", 1, "--plots"]
    main("--out", tmp_path / "out", *words, "--epochs", 3)
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert (metrics["classes"], metrics["test_images"]) == (26, 360)
    assert metrics["test_accuracy"] > 0.3
    assert load_file(tmp_path / "out" / "model.safetensors")["output.bias"].shape == (26,)
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == set(train_lenet5.PICTURES)


def test_tensorboard(tmp_path: Path, main: Callable[..., None]) -> None:
    pytest.importorskip("tensorboardX", reason="tensorboardX is not installed")
    main("--out", tmp_path, "--epochs", 1, "--workers", 1, "--tensorboard")
    (events,) = tmp_path.glob("events.out.tfevents.*")
    assert b"train_loss" in events.read_bytes()


# As a person sees it


def no_results(out: Path) -> bool:
    """Whether nothing lies in ``out`` that could be taken for a finished run, or for half of a file."""
    return not out.exists() or {path.name for path in out.iterdir()} <= {"checkpoint.safetensors"}


def refuses(done: "subprocess.CompletedProcess[str]", sentence: str) -> None:
    """AssertionError unless the program failed with this one sentence."""
    assert done.returncode not in (0, 2)
    (line,) = done.stderr.splitlines()
    assert re.match(rf"train_lenet5: .*{sentence}", line)


@pytest.mark.parametrize("workers", [1, 2])
def test_loss_that_runs_away(workers: int, tmp_path: Path) -> None:
    """Training does not go on with NaN: it ends with a sentence about the loss (NumPy may have warned before)."""
    words = ["--epochs", 2, "--workers", workers, "--model", "lenet5-relu", "--optimizer", "sgd", "--lr", 1e10]
    done = example("--out", tmp_path, *words, warnings="default")
    assert done.returncode == 1
    assert re.match(r"train_lenet5: .*loss.*(nan|inf|finite)", done.stderr.splitlines()[-1])
    assert "Traceback" not in done.stderr
    assert no_results(tmp_path)


@pytest.mark.skipif("cuda" in backend.available(), reason="this machine has a GPU")
def test_missing_gpu(tmp_path: Path) -> None:
    refuses(example("--out", tmp_path, "--backend", "cuda"), "device 'cuda' needs .+ use device .cpu.")


@pytest.mark.parametrize("words", [["--model", "lenet6"], ["--unknown"]])
def test_unreadable_arguments(words: list[str], main: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    """The usage and what is wrong, with the exit code that means so."""
    with pytest.raises(SystemExit, match="2"):
        main(*words)
    said = capsys.readouterr().err
    assert said.startswith("usage: python -m examples.train_lenet5")
    assert f"error: {'unrecognized' if len(words) == 1 else f'argument {words[0]}'}" in said


# Ctrl-C


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="needs process groups")
@pytest.mark.parametrize("to", ["the terminal's processes", "rank 0"])
@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c(workers: int, to: str, tmp_path: Path) -> None:
    """Ends within 2 s with a sentence, without a traceback, results or a process left behind."""
    words = ["--epochs", "100000", "--workers", str(workers), "--out", str(tmp_path)]
    with subprocess.Popen(
        [*COMMAND, *words], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as program:
        try:
            assert program.stderr is not None
            while "%|" not in program.stderr.read(8):  # the progress bar: training has begun
                assert program.poll() is None
            time.sleep(0.3)
            start = time.monotonic()
            if to == "rank 0":
                program.send_signal(signal.SIGINT)
            else:
                os.killpg(program.pid, signal.SIGINT)
            stdout, stderr = program.communicate(timeout=10)
            assert time.monotonic() - start < 2
            assert program.returncode not in (0, -signal.SIGINT)
            assert stderr.splitlines()[-1].endswith("train_lenet5: stopped by Ctrl-C")
            assert "Traceback" not in stderr
            assert "test accuracy" not in stdout
            assert no_results(tmp_path)
            with pytest.raises(ProcessLookupError):
                os.killpg(program.pid, 0)
        finally:
            if program.poll() is None:
                os.killpg(program.pid, signal.SIGKILL)
