"""The training example goes on from its checkpoint to the same bits, however the run before ended.

`python -m tests.kill_resume --times 30` kills as many runs; here it is a few.
"""

import errno
import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tqdm", reason="the example's packages are not installed")
pytest.importorskip("safetensors", reason="the example's packages are not installed")

from examples import runs, train_lenet5
from examples.runs import fcntl, own_folder
from tests.kill_resume import (
    COMMAND,
    EPOCHS,
    ROOT,
    SETTINGS,
    Outcome,
    differences,
    disturbed,
    finish,
    start,
    undisturbed,
)
from tests.test_checkpoint import MOUNT, may_mount
from tinygrad_lenet import backend, checkpoint, parallel

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="more than one worker needs os.fork"),
    pytest.mark.filterwarnings(
        "ignore:parallel.run. other threads are running:RuntimeWarning"
    ),  # tqdm's, of other tests
]

WORDS = ["--epochs", str(EPOCHS), *SETTINGS[1]]  # dropout, batch normalisation, two workers


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome, float]:
    """A run that nobody disturbed: its folder, what it left there, and its seconds."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, *undisturbed(folder, SETTINGS[1])


@pytest.fixture
def done(whole: tuple[Path, Outcome, float], tmp_path: Path) -> Path:
    """A copy of that folder."""
    folder = tmp_path / "done"
    shutil.copytree(whole[0], folder)
    return folder


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run the example within this process, and return what it prints."""
    monkeypatch.setattr(parallel, "tune_process", lambda: False)

    def call(*words: object) -> str:
        command = ["train_lenet5", "--no-progress", *map(str, words)]
        monkeypatch.setattr(sys, "argv", command)
        with np.errstate(), backend.use("cpu"):
            train_lenet5.main()
        return capsys.readouterr().out

    return call


def change(path: Path, tensors: dict[str, Any] | None = None, **changes: Any) -> None:
    """Change a checkpoint: tensors (None: taken away), and entries of its state."""
    found, state = checkpoint.load(path)
    kept = {name: array for name, array in (found | (tensors or {})).items() if array is not None}
    checkpoint.save(path, kept, state | changes)


# Ends of a run


@pytest.mark.parametrize("which", [0, 1])
def test_killed(which: int, whole: tuple[Path, Outcome, float], tmp_path: Path) -> None:
    """SIGKILL at random moments, in workers too."""
    folder = tmp_path / "whole"
    expected, duration = whole[1:] if which == 1 else undisturbed(folder, SETTINGS[which])
    seed = random.SystemRandom().randrange(2**32)
    (tmp_path / "run").mkdir()
    found, places = disturbed(tmp_path / "run", SETTINGS[which], duration, random.Random(seed))
    assert differences(expected, found) == [], f"killed {places}, seed {seed}"


def wait_for_training(program: "subprocess.Popen[str]") -> None:
    """Until the table that the example prints before it trains is there."""
    assert program.stdout is not None
    while not program.stdout.readline().startswith("total"):
        assert program.poll() is None


@pytest.mark.parametrize("to", ["the terminal's processes", "rank 0"])
def test_ctrl_c(to: str, whole: tuple[Path, Outcome, float], tmp_path: Path) -> None:
    """The step is finished, the checkpoint saved, and the command that is printed goes on to the same bits."""
    program = start(tmp_path, *WORDS)
    wait_for_training(program)
    time.sleep(random.uniform(0.0, 0.1))  # of about half a second
    if to == "rank 0":
        program.send_signal(signal.SIGINT)
    else:
        os.killpg(program.pid, signal.SIGINT)
    stdout, stderr = program.communicate(timeout=20)
    assert (program.returncode, stderr) == (130, "train_lenet5: stopped by Ctrl-C\n")
    assert os.listdir(tmp_path) == ["checkpoint.safetensors"]
    with pytest.raises(ProcessLookupError):
        os.killpg(program.pid, 0)
    command = stdout.splitlines()[-1].removeprefix("continue with: ")
    assert shlex.split(command) == [*COMMAND, "--no-progress", "--out", str(tmp_path), *WORDS, "--resume"]
    again = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (again.returncode, again.stderr) == (0, "")
    assert f"the run in {tmp_path} continues in epoch " in again.stdout
    assert differences(whole[1], Outcome.of(tmp_path)) == []


def test_second_ctrl_c(tmp_path: Path) -> None:
    """Ends at once, in the middle of a step, here one that takes some tenths of a second."""
    program = start(tmp_path, "--epochs", "1000", "--batch-size", "1437", "--workers", "2")
    wait_for_training(program)
    time.sleep(0.2)
    for _ in range(2):
        os.killpg(program.pid, signal.SIGINT)
        time.sleep(0.01)
    _, stderr = program.communicate(timeout=10)
    assert (program.returncode, stderr) == (130, "train_lenet5: stopped by Ctrl-C\n")
    with pytest.raises(ProcessLookupError):
        os.killpg(program.pid, 0)


def test_complete_run(done: Path, whole: tuple[Path, Outcome, float], example: Callable[..., str]) -> None:
    """Says so, trains no more, and writes the results again."""
    for name in ("metrics.json", "model.safetensors"):
        (done / name).unlink()
    remains = done / "checkpoint.safetensors.123.0.part"
    remains.write_bytes(b"of a run that was killed")
    before = (done / "checkpoint.safetensors").read_bytes()
    assert f"the run in {done} is complete; testing it again" in example(*WORDS, "--out", done, "--resume")
    assert (done / "checkpoint.safetensors").read_bytes() == before
    assert not remains.exists()
    found = Outcome.of(done)
    assert differences(whole[1], found) == []
    metrics = json.loads((done / "metrics.json").read_text())
    assert metrics["epoch_seconds"] == json.loads((whole[0] / "metrics.json").read_text())["epoch_seconds"]


def test_full_disk(whole: tuple[Path, Outcome, float], tmp_path: Path) -> None:
    """On a disk with room for one checkpoint the run ends with a sentence, and can go on elsewhere to the same bits."""
    if not may_mount():
        pytest.skip("mounting is not permitted")
    disk, out = tmp_path / "disk", tmp_path / "out"
    disk.mkdir()
    out.mkdir()
    run = [*COMMAND, "--no-progress", "--out", str(disk), "--checkpoint-every", "0", *WORDS]
    script = f"{shlex.join(run)}; echo $?; ls {disk}; cp {disk}/checkpoint.safetensors {out}"
    ended = subprocess.run(
        [*MOUNT, str(disk), "sh", "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert ended.stdout.splitlines()[-2:] == ["1", "checkpoint.safetensors"]
    (line,) = ended.stderr.splitlines()
    assert line == (
        f"train_lenet5: checkpoint: {disk}/checkpoint.safetensors cannot be written (No space left on device); "
        "whatever was there before is intact; make room, or write to another folder"
    )
    finish(start(out, *WORDS, "--resume"))
    assert differences(whole[1], Outcome.of(out)) == []


# What may differ, and what may not


def test_from_another_device(done: Path, example: Callable[..., str]) -> None:
    """A checkpoint of a GPU, whose one worker had all of each batch, goes on here with two."""
    saved = done / "checkpoint.safetensors"
    arguments = checkpoint.load(saved)[1]["arguments"]
    change(saved, arguments=arguments | {"backend": "cuda", "workers": 1})
    assert "is complete" in example(*WORDS, "--out", done, "--resume", "--backend", "cpu", "--data-dir", done)


@pytest.mark.skipif("cuda" not in backend.available(), reason="needs a GPU")
@pytest.mark.parametrize(("first", "then"), [("cpu", "cuda"), ("cuda", "cpu")])
def test_between_devices(first: str, then: str, tmp_path: Path) -> None:
    """Stopped by Ctrl-C on one device, finished on the other."""
    words = ["--epochs", "6", "--model", "lenet5-regularized"]
    program = start(tmp_path, *words, "--backend", first)
    wait_for_training(program)
    while not (tmp_path / "checkpoint.safetensors").exists():
        time.sleep(0.05)
    program.send_signal(signal.SIGINT)
    program.communicate(timeout=60)
    assert program.returncode == 130
    finish(start(tmp_path, *words, "--backend", then, "--resume"))
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert (metrics["device"], len(metrics["train_loss"])) == (then, 6)
    assert metrics["test_accuracy"] > 0.85


@pytest.mark.parametrize(
    ("words", "difference"),
    [
        (["--model", "lenet5"], "--model is lenet5 here and lenet5-regularized there"),
        (["--epochs", "9"], "--epochs is 9 here and 3 there"),
        (["--seed", "1"], "--seed is 1 here and 0 there"),
        (["--workers", "1", "--backend", "cpu"], "--workers is 1 here and 2 there"),
        (["--no-augment"], "--augment is False here and True there"),
        (
            ["--lr", "0.01", "--optimizer", "sgd", "--batch-size", "32"],
            "--batch-size is 32 here and 64 there, --lr is 0.01 here and 0.004 there, "
            "--optimizer is sgd here and adamw there",
        ),
    ],
)
def test_other_arguments(words: list[str], difference: str, done: Path, example: Callable[..., str]) -> None:
    """The difference is named, and nothing is touched."""
    before = {path.name: path.read_bytes() for path in done.iterdir()}
    with pytest.raises(ValueError) as caught:
        example(*WORDS, *words, "--out", done, "--resume")
    assert str(caught.value) == (
        f"--resume: {done}/checkpoint.safetensors does not belong to this run: {difference}; "
        "give the same arguments, or start a new run without --resume"
    )
    assert {path.name: path.read_bytes() for path in done.iterdir()} == before


def test_other_images(done: Path, example: Callable[..., str]) -> None:
    change(done / "checkpoint.safetensors", data="00000000")
    with pytest.raises(ValueError, match="training data are not those in --data-dir"):
        example(*WORDS, "--out", done, "--resume")


def test_no_checkpoint(tmp_path: Path, example: Callable[..., str]) -> None:
    """Says where it looked; also as a command: one line, no traceback."""
    sentence = f"--resume: there is no {tmp_path}/none/checkpoint.safetensors; name the run's folder with --out, or"
    with pytest.raises(ValueError, match=sentence):
        example("--out", tmp_path / "none", "--resume")
    command = [*COMMAND, "--out", str(tmp_path / "none"), "--resume"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert ended.stderr.startswith(f"train_lenet5: {sentence}")
    assert ended.stderr.count("\n") == 1


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "tensors": (
        {
            "tensors": {
                "model.c1.weight": np.zeros((6, 1, 3, 3), np.float32),
                "model.extra": np.zeros(1),
                "model.bn1.running_mean": None,
            }
        },
        r"bn1.running_mean is missing; extra is unexpected; "
        r"c1.weight has shape \(6, 1, 3, 3\), expected \(6, 1, 5, 5\)",
    ),
    "moments": ({"tensors": {"optimizer.0.m": np.zeros(7)}}, r"0.m has shape \(7,\), expected \("),
    "algorithm": ({"optimizer": {"algorithm": "SGD", "lr": 0.1, "steps": []}}, "the state is that of 'SGD'"),
    "optimizer": ({"optimizer": [1]}, "mapping"),
    "steps": ({"optimizer": {"algorithm": "AdamW", "lr": 0.1, "steps": None}}, "list of counts"),
    "schedule": ({"schedule": {}}, "OneCycle: the state has"),
    "loader": ({"loader": {"seed": 0, "epoch": 0, "position": 10**9}}, "position is 1000000000"),
    "place": ({"loader": {"seed": 0, "epoch": 2, "position": 64}}, r"counts 69 steps and finished epochs \[2, 3, 3"),
    "losses": ({"train_loss": [1.0, "a", 2.0]}, "could not convert"),
    "sums": ({"epoch_so_far": [1.0]}, "not enough values"),
    "arguments": ({"arguments": 3}, "int"),
    "history": ({"history": [1]}, "list"),
    "order": ({"loader": {"seed": 7, "epoch": 3, "position": 0}}, "a position that this run does not have"),
    "best": ({"tensors": {"best.c1.bias": np.zeros(6, np.float32)}}, "c1.weight is missing"),
    "more": ({"more": 3}, r"it holds \[.*'more'.*\]; expected \['arguments', "),
}


@pytest.mark.parametrize("case", WRONG)
def test_checkpoints_that_do_not_fit(case: str, done: Path, example: Callable[..., str]) -> None:
    """One sentence that names the file and what is wrong with it."""
    changes, sentence = WRONG[case]
    path = done / "checkpoint.safetensors"
    change(path, **changes)
    with pytest.raises(ValueError, match=f"^--resume: {path} does not belong to this run: .*{sentence}"):
        example(*WORDS, "--out", done, "--resume")


def test_damaged_checkpoints(done: Path, example: Callable[..., str]) -> None:
    """Truncated, far too large, or no checkpoint: refused by a sentence that names it."""
    path = done / "checkpoint.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    with pytest.raises(ValueError, match=f"{path} is damaged or of another kind"):
        example(*WORDS, "--out", done, "--resume")
    os.truncate(path, 2**33)
    with pytest.raises(ValueError, match=rf"{path} has 8,589,934,592 bytes; expected at most [45],\d+,\d+;"):
        example(*WORDS, "--out", done, "--resume")
    shutil.copy(done / "model.safetensors", path)
    with pytest.raises(ValueError, match=rf"{path} does not belong to this run: it holds \[\]; expected \['arguments'"):
        example(*WORDS, "--out", done, "--resume")


@pytest.mark.parametrize("seconds", ["-1", "nan"])
def test_checkpoint_every(seconds: str, tmp_path: Path, example: Callable[..., str]) -> None:
    with pytest.raises(ValueError, match=f"--checkpoint-every is {float(seconds)}; expected seconds, at least 0"):
        example("--out", tmp_path, f"--checkpoint-every={seconds}")


# The ranks hold the same


WATCHED = """
import sys
import numpy as np
from examples import train_lenet5
from examples.runs import fcntl, own_folder

train = train_lenet5.train

def watched(group, run, interrupted):
    train(group, run, interrupted)
    mine = [float(np.sum(value.data)) for value in run.state()[0].values()] + [run.optimizer.lr, *run.train_loss]
    assert group.sum(mine) == [2 * value for value in mine]
    drawn = run.model.drop.rng.random()
    assert group.sum([drawn]) != [2 * drawn]
    print("compared", flush=True)

train_lenet5.train = watched
train_lenet5.main()
"""


def test_ranks_hold_the_same(tmp_path: Path) -> None:
    """Which is why rank 0's checkpoint is the whole truth: running statistics too. Units are dropped differently."""
    command = [sys.executable, "-c", WATCHED, "--out", str(tmp_path), "--epochs", "1", "--no-progress", *SETTINGS[1]]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ended.stderr == ""
    assert ended.stdout.count("compared") == 2


# The folder's lock


@pytest.fixture(params=["fcntl", "msvcrt"])
def locks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Unix, and as on Windows, where nothing but files can be locked (simulated)."""
    if request.param == "msvcrt":

        def locking(descriptor: int, mode: str, length: int) -> None:
            assert (os.path.isfile(f"/proc/self/fd/{descriptor}"), mode, length) == (True, "at once", 1)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise PermissionError from None

        monkeypatch.setattr(runs, "fcntl", None)
        monkeypatch.setattr(runs, "msvcrt", SimpleNamespace(locking=locking, LK_NBLCK="at once"), raising=False)


def test_a_folder_belongs_to_one_run(locks: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second run in the same folder is refused while the first is at work, and harms nothing."""
    monkeypatch.setattr(runs, "PATIENCE", 0.1)
    with own_folder(tmp_path, make=True):
        part = tmp_path / "checkpoint.safetensors.1.2.part"
        part.touch()
        with pytest.raises(ValueError, match="another run is using"), own_folder(tmp_path, make=True):
            pass
        assert part.exists()
    with own_folder(tmp_path, make=True):
        assert not part.exists()
    assert os.listdir(tmp_path) == []


def test_a_run_waits_for_one_that_is_ending(locks: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "PATIENCE", 20.0)
    held, release = threading.Event(), threading.Timer(0.3, lambda: None)

    def first() -> None:
        with own_folder(tmp_path, make=True):
            held.set()
            release.join()

    thread = threading.Thread(target=first)
    release.start()
    thread.start()
    held.wait()
    with own_folder(tmp_path, make=True):
        assert not release.is_alive()
    thread.join()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of a fork beside threads
def test_workers_do_not_keep_the_lock(locks: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which may be in a long step when their run is killed."""
    monkeypatch.setattr(runs, "PATIENCE", 20.0)  # a worker that has just been forked may still hold it
    with own_folder(tmp_path, make=True):
        worker = os.fork()
        if not worker:
            signal.pause()
    try:
        with own_folder(tmp_path, make=True):
            pass
    finally:
        os.kill(worker, signal.SIGKILL)
        os.waitpid(worker, 0)


def test_file_systems_without_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run says so and goes on, for it would have nowhere else to go."""

    def refuse(descriptor: int, mode: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with own_folder(tmp_path, make=True):
        assert "no locks" in capsys.readouterr().err


ELSEWHERE = """
import os, signal, sys
from types import ModuleType
sys.modules["fcntl"] = None
sys.modules["msvcrt"] = windows = ModuleType("msvcrt")
windows.LK_NBLCK, windows.locking = 2, lambda descriptor, mode, length: None
for name in ("fork", "register_at_fork", "sched_getaffinity", "pidfd_open"):
    delattr(os, name)
for name in ("pthread_sigmask", "SIGKILL", "SIGUSR1", "SIGCHLD", "alarm"):
    delattr(signal, name)
from examples import programs, train_lenet5
programs.run(train_lenet5.main)
"""


def test_a_system_without_forks(tmp_path: Path) -> None:
    """The example's defaults work where there is nothing of Unix (simulated), on a console of few characters."""
    command = [sys.executable, "-c", ELSEWHERE, "--out", str(tmp_path), "--epochs", "1"]
    environment = os.environ | {"PYTHONIOENCODING": "cp1252"}
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, "images" in ended.stderr, "Traceback" in ended.stderr) == (0, True, False)
    assert json.loads((tmp_path / "metrics.json").read_text())["arguments"]["workers"] == 1
    refused = subprocess.run([*command, "--workers", "2"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (refused.returncode, "2 workers need os.fork" in refused.stderr) == (1, True)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    with pytest.raises(ValueError, match="is a file; expected a folder"), own_folder(tmp_path / "out", make=True):
        pass
