"""Kill the training example at random moments, resume it, and compare: `python -m tests.kill_resume --times 30`.

Each time the example is started anew with a batch of random size, its main process, a worker or all of them are ended
by SIGKILL, it is resumed at once, while other processes of it may still be ending, and let run to its end; sometimes
the resumed run is killed as well. Weights, optimiser state and metrics must then be those of a run that nobody
disturbed, to the bit. `tests/test_resume.py` does the same a few times.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinygrad_lenet import checkpoint

ROOT = Path(__file__).parents[1]
COMMAND = [sys.executable, "-m", "examples.train_lenet5"]
EPOCHS = 3
# All that may carry a state of its own: moments, velocities, running statistics, dropped units, best weights, ranks.
SETTINGS = [
    ["--model", "lenet5", "--optimizer", "adam", "--workers", "2", "--validation", "100", "--patience", "2"],
    ["--model", "lenet5-regularized", "--optimizer", "adamw", "--workers", "2"],
    ["--model", "lenet5-regularized", "--optimizer", "sgd", "--workers", "1"],
    ["--model", "lenet5-relu", "--optimizer", "sgd", "--workers", "2", "--lr", "0.05"],
]
BATCHES = ["8", "64", "300", "1437"]  # up to all images in one step


@dataclass
class Outcome:
    """What a run left in its folder, apart from times and from what a resumed run may change."""

    model: bytes
    tensors: dict[str, tuple[str, tuple[int, ...], bytes]]
    state: dict[str, Any]
    metrics: dict[str, Any]

    @classmethod
    def of(cls, folder: Path) -> "Outcome":
        tensors, state = checkpoint.load(folder / "checkpoint.safetensors")
        metrics = json.loads((folder / "metrics.json").read_text())
        for name in ("seconds", "epoch_seconds"):
            del metrics[name]
        del state["epoch_seconds"]
        for arguments in (state["arguments"], metrics["arguments"]):
            for name in ("out", "checkpoint_every"):
                del arguments[name]
        return cls(
            (folder / "model.safetensors").read_bytes(),
            {name: (array.dtype.str, array.shape, array.tobytes()) for name, array in tensors.items()},
            state,
            metrics,
        )


def start(folder: Path, *words: str) -> "subprocess.Popen[str]":
    """The example in a process group of its own."""
    return subprocess.Popen(
        [*COMMAND, "--no-progress", "--out", str(folder), *words],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def finish(program: "subprocess.Popen[str]") -> str:
    """What it says until its end, which must be a good one."""
    stdout, stderr = program.communicate(timeout=120)
    assert (program.returncode, stderr) == (0, "")
    return stdout


def children(pid: int) -> list[int]:
    """The workers that a process has forked, by /proc; none where there is no such thing."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def undisturbed(folder: Path, words: list[str]) -> tuple[Outcome, float]:
    """What a run leaves behind that ends by itself, and how many seconds it takes."""
    begun = time.monotonic()
    finish(start(folder, "--epochs", str(EPOCHS), *words))
    return Outcome.of(folder), time.monotonic() - begun


def disturbed(folder: Path, words: list[str], duration: float, dice: random.Random) -> tuple[Outcome, list[str]]:
    """What a run leaves behind that was killed and resumed; and in what state each kill left the folder."""
    places: list[str] = []
    words = ["--epochs", str(EPOCHS), "--checkpoint-every", dice.choice(["0", "0.05", "0.3"]), *words]
    saved = folder / "checkpoint.safetensors"
    kills = dice.choice([1, 1, 2])
    while len(places) < kills:
        program = start(folder, *words, *(["--resume"] if saved.exists() else []))
        time.sleep(dice.uniform(0, duration))
        # All, as when a machine loses power; rank 0 alone; or another rank alone, which rank 0 has to notice.
        workers = children(program.pid)
        victim = dice.choice(["all", "main", "a worker"] if workers else ["all", "main"])
        with suppress(ProcessLookupError):
            if victim == "all":
                os.killpg(program.pid, signal.SIGKILL)
            else:
                os.kill(dice.choice(workers) if victim == "a worker" else program.pid, signal.SIGKILL)
        program.wait(20)  # and not until all have ended that can write into its streams, its workers
        for stream in (program.stdout, program.stderr):
            assert stream
            stream.close()
        if program.returncode == 0:  # it was faster than the dice
            if places:
                break
            for rest in folder.iterdir():
                rest.unlink()
            continue
        places.append(f"{victim} {where(folder)}")
    finish(start(folder, *words, *(["--resume"] if saved.exists() else [])))
    assert sorted(os.listdir(folder)) == ["checkpoint.safetensors", "metrics.csv", "metrics.json", "model.safetensors"]
    return Outcome.of(folder), places


def where(folder: Path) -> str:
    """How far the checkpoint in the folder says the run has come; it must be whole at any moment."""
    saved = folder / "checkpoint.safetensors"
    saving = "while saving, " if list(folder.glob("*.part")) else ""
    if not saved.exists():
        return f"{saving}before the first checkpoint"
    place = checkpoint.load(saved)[1]["loader"]
    if place["position"]:
        return f"{saving}in the middle of an epoch"
    return f"{saving}at the end of an epoch" if place["epoch"] < EPOCHS else f"{saving}after the last epoch"


def differences(a: Outcome, b: Outcome) -> list[str]:
    """The parts in which two outcomes differ."""
    names = [name for name in a.tensors.keys() | b.tensors.keys() if a.tensors.get(name) != b.tensors.get(name)]
    return sorted(names) + [name for name in ("model", "state", "metrics") if getattr(a, name) != getattr(b, name)]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.kill_resume", description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=30, help="how many runs are killed")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32), help="of the moments")
    args = parser.parse_args()
    dice = random.Random(args.seed)
    print(f"seed {args.seed}")
    failures = 0
    counts: Counter[str] = Counter()
    expected: dict[tuple[int, str], tuple[Outcome, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for i in range(args.times):
            setting, batch = i % len(SETTINGS), dice.choice(BATCHES)
            words = [*SETTINGS[setting], "--batch-size", batch]
            if (setting, batch) not in expected:
                expected[setting, batch] = undisturbed(Path(folder, f"undisturbed{setting}-{batch}"), words)
            outcome, duration = expected[setting, batch]
            (run := Path(folder, f"run{i}")).mkdir()
            found, places = disturbed(run, words, duration, dice)
            wrong = differences(outcome, found)
            failures += bool(wrong)
            counts.update(places)
            verdict = f"DIFFERS in {', '.join(wrong)}" if wrong else "equal"
            print(f"{i + 1}/{args.times} {' '.join(words)}: killed {'; then '.join(places)}: {verdict}", flush=True)
    for place, count in sorted(counts.items()):
        print(f"{count:4d} killed {place}")
    print(f"{args.times - failures} of {args.times} runs ended equal to the bit after {counts.total()} SIGKILLs")
    sys.exit(failures > 0)


if __name__ == "__main__":
    main()
