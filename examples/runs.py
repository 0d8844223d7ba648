"""A training run that can be stopped at any moment and resumed to the same weights, for the programs of this folder."""

import argparse
import errno
import math
import os
import signal
import sys
import time
import zlib
from collections.abc import Callable, Iterator
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

from tinygrad_lenet import checkpoint, data, nn, optim

# What a resumed run may change, since the weights do not depend on it. (They do on --workers: sums of floats depend on
# how a batch is cut. And on --backend, to the last bit, but a run may move to another machine.)
MAY_CHANGE = {"data_dir", "download", "backend", "out", "checkpoint_every", "resume", "plots", "no_progress"}


@dataclass
class Run:
    """What a run consists of. All that training changes is in its checkpoint, and nothing else has to be.

    The order of the images, their distortions and the units that are dropped depend on seed, epoch and position in the
    epoch alone, so no generator's state needs saving; and all workers hold the same, so one of them saves.
    """

    args: argparse.Namespace
    model: nn.Module
    optimizer: optim.Optimizer
    schedule: optim.OneCycle | optim.PassRates
    loader: data.DataLoader
    train_loss: list[float] = field(default_factory=list)  # the mean over each finished epoch
    epoch_seconds: list[float] = field(default_factory=list)
    history: dict[str, list[float]] = field(default_factory=dict)  # what else was noted, a number an epoch
    loss: float = 0.0  # the sum over the images of this epoch so far
    correct: float = 0.0
    seconds: float = 0.0
    trouble: str = ""  # why training ended before its time, if not by Ctrl-C

    @property
    def path(self) -> Path:
        return self.args.out / "checkpoint.safetensors"

    @property
    def arguments(self) -> dict[str, Any]:
        given = {name: str(value) if isinstance(value, Path) else value for name, value in vars(self.args).items()}
        return {name: value for name, value in given.items() if name != "resume"}

    @cached_property
    def data(self) -> str:
        """What tells these images and labels from others."""
        images, labels = (np.ascontiguousarray(array).data for array in (self.loader.images, self.loader.labels))
        return f"{zlib.crc32(labels, zlib.crc32(images)):08x}"

    def state(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The tensors, by name, and everything else."""
        optimizer = self.optimizer.state_dict()
        moments = optimizer.pop("tensors")
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        tensors |= {f"optimizer.{name}": array for name, array in moments.items()}
        return tensors, {
            "arguments": self.arguments,
            "data": self.data,  # the folder may change, what lies in it may not
            "optimizer": optimizer,
            "schedule": self.schedule.state_dict(),
            "loader": self.loader.state_dict(),
            "train_loss": self.train_loss,
            "epoch_seconds": self.epoch_seconds,
            "history": self.history,
            "epoch_so_far": [self.loss, self.correct, self.seconds],
        }

    def note(self, **values: float) -> None:
        """Add a number of this epoch to each of these lists of `history`."""
        for name, value in values.items():
            self.history.setdefault(name, []).append(float(value))

    def begin(self) -> None:
        """Save at once, so that a folder that cannot be written to is found now, and drop results of an earlier run."""
        self.save()
        for results in ("metrics.json", "model.safetensors"):
            (self.args.out / results).unlink(missing_ok=True)

    def save(self) -> None:
        checkpoint.save(self.path, *self.state())

    def resume(self) -> None:
        """Become the run that the checkpoint is of; ValueError if there is none, or it is of another run."""
        if not self.path.exists():
            raise ValueError(f"--resume: there is no {self.path}; name the run's folder with --out, or begin a new run")
        own_tensors, own = self.state()
        size = sum(tensor.size * tensor.dtype.itemsize for tensor in own_tensors.values())
        tensors, state = checkpoint.load(self.path, max_bytes=size + checkpoint.HEADER_LIMIT)
        try:
            refuse_differences(own, state)
            self.model.load_state_dict(part(tensors, "model."))
            self.optimizer.load_state_dict({**state["optimizer"], "tensors": part(tensors, "optimizer.")})
            self.schedule.load_state_dict(state["schedule"])
            self.loader.load_state_dict(state["loader"])
            self.train_loss = [float(loss) for loss in state["train_loss"]]
            self.epoch_seconds = [float(seconds) for seconds in state["epoch_seconds"]]
            self.history = {name: [float(value) for value in values] for name, values in state["history"].items()}
            self.loss, self.correct, self.seconds = map(float, state["epoch_so_far"])
            finished = [self.loader.epoch, len(self.epoch_seconds), len(self.train_loss)]
            steps = self.loader.epoch
            if isinstance(self.schedule, optim.OneCycle):  # which counts batches
                steps = steps * len(self.loader) + math.ceil(self.loader.position / self.loader.batch_size)
            if steps != self.schedule.count or finished != finished[:1] * 3:
                raise ValueError(f"it counts {self.schedule.count} steps and finished epochs {finished}")
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"--resume: {self.path} is of another run: {error}") from error


def part(tensors: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def refuse_differences(own: dict[str, Any], state: dict[str, Any]) -> None:
    """ValueError that names what differs between this run and that of a checkpoint's state."""
    if set(state) != set(own):
        raise ValueError(f"it holds {sorted(state)}; expected {sorted(own)}")
    mine, theirs = own["arguments"], dict(state["arguments"])
    # On another device the last bits differ anyhow, and the CPU's workers are not to be had there.
    free = MAY_CHANGE if theirs.get("backend") == mine.get("backend") else MAY_CHANGE | {"workers"}
    differences = [
        f"--{name.replace('_', '-')} is {mine.get(name)} here and {theirs.get(name)} there"
        for name in sorted((mine.keys() | theirs.keys()) - free)
        if mine.get(name) != theirs.get(name)
    ]
    if differences:
        raise ValueError(f"{', '.join(differences)}; give the arguments of then, or begin a new run without --resume")
    if state["data"] != own["data"]:
        raise ValueError("its training images or labels are not those in --data-dir; give the folder of then")


@contextmanager
def own_folder(out: Path, make: bool) -> Iterator[None]:
    """Keep other runs out of a run's folder within a block; ValueError if one is at work there.

    The folder is made if ``make``. What a run left that was killed while it saved goes.
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file; expected a folder")
    if make:
        out.mkdir(parents=True, exist_ok=True)
    if not out.exists():
        yield
        return
    with locked(out):
        for remains in out.glob("*.safetensors.*.part"):
            remains.unlink(missing_ok=True)
        yield


LOCKS: set[int] = set()  # descriptors of what this process has locked
PATIENCE = 2.0  # seconds, in which a run that was killed comes to its end


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock a folder for this process alone; the system takes the lock away when it ends, however that happens."""
    file = folder if fcntl else folder / ".lock"  # Windows locks no folders
    descriptor = os.open(file, os.O_RDONLY if fcntl else os.O_RDWR | os.O_CREAT)
    LOCKS.add(descriptor)
    try:
        deadline = time.monotonic() + PATIENCE
        while not lock(descriptor):
            if time.monotonic() > deadline:
                raise ValueError(f"another run is at work in {folder}; wait for it, or give another --out")
            time.sleep(0.05)
        yield
    finally:
        LOCKS.discard(descriptor)
        os.close(descriptor)
        if file != folder:
            with suppress(OSError):  # Windows keeps it while another run waits for it
                file.unlink()


def lock(descriptor: int) -> bool:
    """Whether nobody else has the lock; then this process has it."""
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
        print(f"{error.strerror}: this file system has no locks; let no other run use the same --out", file=sys.stderr)
    return True


def leave_locks() -> None:
    """Close, in a forked worker, what would keep a folder locked if the worker outlives its run for a moment."""
    while LOCKS:
        os.close(LOCKS.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=leave_locks)


@contextmanager
def ctrl_c_deferred() -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether there was a Ctrl-C, which does no more here; a second one ends at once."""
    pressed = False
    before = signal.getsignal(signal.SIGINT)

    def remember(*_: object) -> None:
        nonlocal pressed
        pressed = True
        signal.signal(signal.SIGINT, before)

    if before is signal.default_int_handler:  # and not ignored, as under nohup
        signal.signal(signal.SIGINT, remember)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, before)
