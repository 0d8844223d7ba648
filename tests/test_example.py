"""The training example as a person runs it: `python -m examples.train_lenet5` in a process of its own."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models import LeNet5
from tinygrad_lenet import Tensor, backend, data, no_grad

pytest.importorskip("tqdm", reason="the example's packages are not installed")
load_file = pytest.importorskip("safetensors.numpy", reason="the example's packages are not installed").load_file

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
    assert metrics["device"] == ("cuda" if "cuda" in backend.available() else "cpu")
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
    results = {"metrics.json", "model.safetensors"}
    assert results <= names <= results | {"checkpoint.safetensors"}


def test_same_seed_same_weights(two_epochs: Any, tmp_path: Path) -> None:
    """To the bit, with one worker and with two."""
    workers, _, metrics, weights = two_epochs
    again, again_weights = trained(tmp_path, "--epochs", 2, "--workers", workers, "--seed", 0)
    assert equal(weights, again_weights)
    assert again["train_loss"] == metrics["train_loss"]
    assert again["test_errors"] == metrics["test_errors"]


def test_two_workers_learn_what_one_learns(results: dict[int, Any]) -> None:
    """The same images, distortions and steps; only the rounding of the sums differs."""
    (_, one, a), (_, two, b) = results[1], results[2]
    assert np.allclose(one["train_loss"], two["train_loss"], rtol=1e-3)
    assert all(np.allclose(a[name], b[name], atol=0.01) for name in a)


def test_other_seed_other_weights(two_epochs: Any, tmp_path: Path) -> None:
    workers, _, _, weights = two_epochs
    _, others = trained(tmp_path, "--epochs", 1, "--workers", workers, "--seed", 1)
    assert not any(np.array_equal(weights[name], others[name]) for name in weights)


@pytest.mark.parametrize(
    ("model", "optimizer", "lr"),
    [
        ("lenet5", "sgd", 0.1),
        ("lenet5-sigmoid", "adam", 0.004),
        ("lenet5-relu", "adamw", 0.004),
        ("lenet5-relu-max", "adam", 0.004),
        ("lenet5-regularized", "adam", 0.004),
    ],
)
def test_every_model_and_optimizer(model: str, optimizer: str, lr: float, tmp_path: Path) -> None:
    """Each runs an epoch and learns something; its weights load into that model."""
    words = ["--epochs", 1, "--batch-size", 32, "--model", model, "--optimizer", optimizer, "--lr", lr, "--no-augment"]
    metrics, weights = trained(tmp_path, *words)
    assert metrics["train_loss"][0] < (2.5 if model == "lenet5-sigmoid" else 2.1)  # sigmoids take epochs to start
    assert (metrics["arguments"]["model"], metrics["arguments"]["optimizer"]) == (model, optimizer)
    options: dict[str, dict[str, Any]] = {
        "lenet5-sigmoid": {"activation": "sigmoid"},
        "lenet5-relu": {"activation": "relu"},
        "lenet5-relu-max": {"activation": "relu", "pool": "max"},
        "lenet5-regularized": {"activation": "relu", "pool": "max", "dropout": 0.2, "batch_norm": True},
    }
    net = LeNet5(**options.get(model, {}))
    net.load_state_dict(weights)
    assert errors(net) == metrics["test_errors"]


def test_a_recipe_sets_defaults_that_arguments_override(tmp_path: Path) -> None:
    metrics, _ = trained(tmp_path, "--recipe", "fast", "--epochs", 1)
    expected = {"recipe": "fast", "model": "lenet5-relu", "epochs": 1, "batch_size": 128, "lr": 0.006}
    assert {name: metrics["arguments"][name] for name in expected} == expected


def test_every_choice_is_tested() -> None:
    """A model or optimiser that the example gains must be added to the test above."""
    usage = example("--help").stdout
    choices = [set(names.split(",")) for names in re.findall(r"\{([a-z0-9,-]+)\}", usage)]
    assert {"lenet5", "lenet5-sigmoid", "lenet5-relu", "lenet5-relu-max", "lenet5-regularized"} in choices
    assert {"plain", "fast"} in choices
    assert {"adam", "adamw", "sgd"} in choices
    assert {"digits", "mnist", "fashion-mnist"} in choices


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


# Bad input: one sentence, no traceback

BAD: dict[str, tuple[list[str], str]] = {
    "no such folder": (["--dataset", "mnist", "--data-dir", "nowhere"], r"mnist: train-images.+ not found in nowhere"),
    "no files": (["--dataset", "fashion-mnist", "--data-dir", "{tmp}"], r"fashion_mnist: train-images.+ not found in "),
    "no epochs": (["--epochs", "0"], r"--epochs is 0; expected at least 1"),
    "no batch": (["--batch-size", "0", "--workers", "3"], r"batch.size is 0.+expected at least 1"),
    "negative rate": (["--lr", "-1"], r"lr is -1\.0"),
    "rate is no number": (["--lr", "nan"], r"lr is nan"),
    "no workers": (["--workers", "0"], r"workers is 0; expected at least 1"),
    "negative seed": (["--seed", "-1"], r"seed.+-1"),
    "file in place of --out": (["--out", "{tmp}/file"], r"file"),
    "file above --out": (["--out", "{tmp}/file/out"], r"file"),
}


def no_results(out: Path) -> bool:
    """Whether nothing lies in ``out`` that could be taken for a finished run, or for half of a file."""
    return not out.exists() or {path.name for path in out.iterdir()} <= {"checkpoint.safetensors"}


def refuses(done: "subprocess.CompletedProcess[str]", sentence: str) -> None:
    """AssertionError unless the program failed with this one sentence."""
    assert done.returncode not in (0, 2)
    (line,) = done.stderr.splitlines()
    assert re.match(rf"train_lenet5: .*{sentence}", line)


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case: str, tmp_path: Path) -> None:
    """A sentence that says what was found, no traceback, no results."""
    (tmp_path / "file").write_text("keep")
    words, sentence = BAD[case]
    out = tmp_path / "out"
    refuses(example("--out", out, *(word.format(tmp=tmp_path) for word in words)), sentence)
    assert (tmp_path / "file").read_text() == "keep"
    assert no_results(out)


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


@pytest.mark.parametrize("words", [["--model", "lenet6"], ["--epochs", "many"], ["--dataset", "cifar"], ["--unknown"]])
def test_unreadable_arguments(words: list[str]) -> None:
    """The usage and what is wrong, with the exit code that means so."""
    done = example(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("usage: python -m examples.train_lenet5")
    assert f"error: {'unrecognized' if len(words) == 1 else f'argument {words[0]}'}" in done.stderr


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
