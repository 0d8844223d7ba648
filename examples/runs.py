"""Training runs that can be stopped at any moment and resumed to the same weights, for the programs in this folder."""

import argparse
import csv
import errno
import io
import itertools
import json
import math
import os
import shutil
import signal
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None  # type: ignore[assignment]
    import msvcrt

from tinygrad_lenet import checkpoint, data, files, nn, optim

# What may differ when a run is resumed, because the weights do not depend on it. (They do depend on --workers, since
# sums of floats depend on how a batch is split. The last bits depend on --backend, too, but a run may change machines.)
MAY_CHANGE = {
    "data_dir",
    "download",
    "backend",
    "out",
    "checkpoint_every",
    "resume",
    "plots",
    "no_jit",
    "no_progress",
    "tensorboard",
}


@dataclass
class Run:
    """What a run consists of. Its checkpoint holds everything that training changes, and nothing else.

    The order of the images, their distortions and the units dropped depend only on the seed, the epoch and the position
    in the epoch, so no generator state has to be saved. All workers hold the same state, so one of them saves it.
    """

    args: argparse.Namespace
    model: nn.Module
    optimizer: optim.Optimizer
    schedule: optim.OneCycle | optim.PassRates
    loader: data.DataLoader
    held: tuple[Any, Any] = ((), ())  # the held-out images and labels to validate on, if any
    train_loss: list[float] = field(default_factory=list)  # the mean over each finished epoch
    epoch_seconds: list[float] = field(default_factory=list)
    history: dict[str, list[float]] = field(default_factory=dict)  # other records, one number per epoch
    best: dict[str, Any] = field(default_factory=dict)  # the weights of the best epoch, if one is tracked
    loss: float = 0.0  # the sum over the images of this epoch so far
    correct: float = 0.0
    seconds: float = 0.0
    trouble: str = ""  # why training ended early, if not by Ctrl-C

    @property
    def path(self) -> Path:
        return self.args.out / "checkpoint.safetensors"

    @property
    def arguments(self) -> dict[str, Any]:
        given = {name: str(value) if isinstance(value, Path) else value for name, value in vars(self.args).items()}
        return {name: value for name, value in given.items() if name != "resume"}

    @cached_property
    def data(self) -> str:
        """A digest of these images and labels."""
        images, labels = (np.ascontiguousarray(array).data for array in (self.loader.images, self.loader.labels))
        return f"{zlib.crc32(labels, zlib.crc32(images)):08x}"

    def state(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The tensors, by name, and the rest of the state."""
        optimizer = self.optimizer.state_dict()
        moments = optimizer.pop("tensors")
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        tensors |= {f"optimizer.{name}": array for name, array in moments.items()}
        tensors |= {f"best.{name}": array for name, array in self.best.items()}
        return tensors, {
            "arguments": self.arguments,
            "data": self.data,  # the folder may change, its contents may not
            "optimizer": optimizer,
            "schedule": self.schedule.state_dict(),
            "loader": self.loader.state_dict(),
            "train_loss": self.train_loss,
            "epoch_seconds": self.epoch_seconds,
            "history": self.history,
            "epoch_so_far": [self.loss, self.correct, self.seconds],
        }

    def note(self, **values: float) -> None:
        """Append this epoch's number to each of these lists of `history`."""
        for name, value in values.items():
            self.history.setdefault(name, []).append(float(value))

    @property
    def epochs(self) -> dict[str, list[float]]:
        """The records by name: for each a list with one number per finished epoch."""
        return {"train_loss": self.train_loss, **self.history, "epoch_seconds": self.epoch_seconds}

    def begin(self) -> Path | None:
        """Save immediately, so a folder that cannot be written to is noticed now.

        The checkpoint of an earlier run is kept under another name, which is returned; its results stay until `finish`.
        """
        aside = None
        if self.path.exists():
            names = (self.path.with_name(f"checkpoint.earlier-{i}.safetensors") for i in itertools.count(1))
            aside = next(path for path in names if not os.path.lexists(path))
            try:
                os.link(os.path.realpath(self.path), aside)
            except OSError:  # a file system without hard links
                shutil.copy2(self.path, aside)
        try:
            self.save()
        except BaseException:
            if aside is not None:
                aside.unlink()
            raise
        return aside

    def finish(self, model: nn.Module, metrics: dict[str, Any]) -> None:
        """Replace an earlier run's model.safetensors, metrics.csv and metrics.json, either all of them or none."""
        checkpoint.replace_all(
            {
                self.args.out / "model.safetensors": checkpoint.to_bytes(model.state_dict()),
                self.args.out / "metrics.csv": as_csv(self.epochs),
                self.args.out / "metrics.json": as_json(metrics),
            }
        )
        for earlier in self.args.out.glob("checkpoint.earlier-*.safetensors"):
            earlier.unlink(missing_ok=True)

    def save(self) -> None:
        checkpoint.save(self.path, *self.state())

    def resume(self) -> str:
        """Take the state of the run from its checkpoint; ValueError if there is none, or it belongs to another run.

        Return what will not be as if the run had never stopped: empty, except on another number of MPI ranks.
        """
        if not self.path.exists():
            raise ValueError(f"--resume: there is no {self.path}; name the run's folder with --out, or start a new run")
        own_tensors, own = self.state()
        # Twice, for the best weights as well.
        size = 2 * sum(tensor.size * tensor.dtype.itemsize for tensor in own_tensors.values())
        tensors, state = checkpoint.load(self.path, max_bytes=size + checkpoint.HEADER_LIMIT)
        try:
            if set(state) != set(own):
                raise ValueError(f"it holds {sorted(state)}; expected {sorted(own)}")
            note = refuse_differences(own["arguments"], state["arguments"])
            if state["data"] != own["data"]:
                raise ValueError("its training data are not those in --data-dir; name the folder that the run used")
            self.best = part(tensors, "best.")
            for weights in filter(None, (self.best, part(tensors, "model."))):  # both must fit
                self.model.load_state_dict(weights)
            self.optimizer.load_state_dict({**state["optimizer"], "tensors": part(tensors, "optimizer.")})
            self.schedule.load_state_dict(state["schedule"])
            self.loader.load_state_dict(state["loader"])
            self.train_loss = [float(loss) for loss in state["train_loss"]]
            self.epoch_seconds = [float(seconds) for seconds in state["epoch_seconds"]]
            self.history = {name: [float(value) for value in values] for name, values in state["history"].items()}
            self.loss, self.correct, self.seconds = map(float, state["epoch_so_far"])
            finished = [self.loader.epoch, *map(len, self.epochs.values())]
            steps = self.loader.epoch
            if isinstance(self.schedule, optim.OneCycle):  # which counts batches
                steps = steps * len(self.loader) + math.ceil(self.loader.position / self.loader.batch_size)
            # Records made as an epoch begins may be one ahead.
            if steps != self.schedule.count or max(finished) > min(finished) + 1 or min(finished) < self.loader.epoch:
                raise ValueError(f"it counts {self.schedule.count} steps and finished epochs {finished}")
            whole = self.loader.position % self.loader.batch_size == 0 or self.loader.position == len(
                self.loader.images
            )
            if not whole or self.loader.seed != own["loader"]["seed"]:
                raise ValueError(f"it stands at a position that this run does not have, {state['loader']}")
            if bool(self.best) != bool(self.history.get("validation_loss")):
                raise ValueError(f"it has {len(self.best)} tensors of the best epoch")
        except Exception as error:  # any kind of error: the state may have been edited by hand
            raise ValueError(f"--resume: {self.path} does not belong to this run: {error}") from error
        return note


def part(tensors: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def refuse_differences(mine: dict[str, Any], theirs: dict[str, Any]) -> str:
    """ValueError if this run and that of a checkpoint differ in arguments that matter; it names them.

    Return a sentence about what may differ, but changes the weights: how many processes share each batch, on MPI.
    """
    # On another device the last bits differ anyway, and there are no CPU workers there.
    on_mpi = "ranks" in mine or "ranks" in theirs
    free = MAY_CHANGE | {"ranks"}
    if on_mpi or theirs.get("backend") != mine.get("backend"):
        free.add("workers")
    differences = [
        f"--{name.replace('_', '-')} is {mine.get(name)} here and {theirs.get(name)} there"
        for name in sorted((mine.keys() | theirs.keys()) - free)
        if mine.get(name) != theirs.get(name)
    ]
    if differences:
        raise ValueError(f"{', '.join(differences)}; give the same arguments, or start a new run without --resume")
    now, before = mine.get("workers"), theirs.get("workers")
    if not on_mpi or now == before:
        return ""
    return (
        f"the number of processes that share each batch changes from {before} to {now}: batches and their order stay "
        "the same, but sums are rounded differently, and dropout and batch normalisation, if any, see other shares"
    )


def as_json(value: Any) -> bytes:
    """A JSON text that people can read, too."""
    return f"{json.dumps(value, indent=1)}\n".encode()


def as_csv(epochs: Mapping[str, list[float]]) -> bytes:
    """One row per epoch, below the names of the records."""
    text = io.StringIO()
    rows = enumerate(itertools.zip_longest(*epochs.values()), start=1)
    csv.writer(text, lineterminator="\n").writerows([["epoch", *epochs], *([i, *values] for i, values in rows)])
    return text.getvalue().encode()


def read_json(path: Path) -> Any:
    """The contents of a JSON file of at most 16 MB; ValueError, which names the file, if it cannot be read."""
    try:
        with files.open_regular(path) as file:
            text = file.read(2**24)
        return json.loads(text)
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror or error}); expected a JSON file") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error}); remove it, or choose another folder") from None


@contextmanager
def own_folder(out: Path, make: bool) -> Iterator[None]:
    """Keep other runs out of a run's folder during a block; ValueError if one is using it.

    The folder is created if ``make``. Partial files of a run that was killed while saving are removed.
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file; expected a folder")
    if make:
        out.mkdir(parents=True, exist_ok=True)
    if not out.exists():
        yield
        return
    with locked(out):
        files.remove_remains(out)
        yield


LOCKS: set[int] = set()  # descriptors of the folders that this process has locked
PATIENCE = 2.0  # seconds that a killed run may take to end


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock a folder for this process; the system releases the lock when the process ends, however it ends."""
    file = folder if fcntl else folder / ".lock"  # Windows cannot lock folders
    descriptor = os.open(file, os.O_RDONLY if fcntl else os.O_RDWR | os.O_CREAT)
    LOCKS.add(descriptor)
    try:
        deadline = time.monotonic() + PATIENCE
        while not lock(descriptor):
            if time.monotonic() > deadline:
                raise ValueError(f"another run is using {folder}; wait for it, or choose another --out")
            time.sleep(0.05)
        yield
    finally:
        LOCKS.discard(descriptor)
        os.close(descriptor)
        if file != folder:
            with suppress(OSError):  # Windows does not delete it while another run waits for it
                file.unlink()


def lock(descriptor: int) -> bool:
    """Try to take the lock; False if another process holds it."""
    try:
        if fcntl:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP):
            raise
        print(f"{error.strerror}: no locks on this file system; let no other run use the same --out", file=sys.stderr)
    return True


def leave_locks() -> None:
    """Close, in a forked worker, the descriptors that would keep a folder locked if the worker outlives its run."""
    while LOCKS:
        os.close(LOCKS.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=leave_locks)


@contextmanager
def ctrl_c_deferred(several: bool = False) -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether Ctrl-C was pressed; a second Ctrl-C ends the program at once.

    For one of ``several`` processes that a launcher started, SIGTERM, which batch systems send, counts as Ctrl-C; a
    second signal is not needed, since the launcher ends them all, and it may send the first one twice.
    """
    pressed = False
    before = {signal.SIGINT: signal.getsignal(signal.SIGINT)}
    if several:
        before[signal.SIGTERM] = signal.getsignal(signal.SIGTERM)

    def remember(number: int, _: object) -> None:
        nonlocal pressed
        pressed = True
        if not several:
            signal.signal(number, before[signal.Signals(number)])

    for number, handler in before.items():
        if handler in (signal.default_int_handler, signal.SIG_DFL):  # and not ignored, as under nohup
            signal.signal(number, remember)
    try:
        yield lambda: pressed
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
