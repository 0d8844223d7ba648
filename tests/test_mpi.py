"""Ranks that mpiexec started compute what forked ones do, to the bit, and end together."""

import functools
import importlib.util
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from tests import ranks
from tests.kill_resume import Outcome, differences
from tinygrad_lenet import data
from tinygrad_lenet.parallel import mpi

ROOT = Path(__file__).parents[1]
MPIEXEC = shutil.which("mpiexec", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
needs_mpi = pytest.mark.skipif(
    MPIEXEC is None or importlib.util.find_spec("mpi4py") is None,
    reason="needs MPI: pip install mpi4py mpich",
)
# Open MPI starts more ranks than there are cores, and anything as root, only if it is told to.
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
}
EXAMPLE = [sys.executable, "-m", "examples.train_lenet5", "--no-progress", "--dataset", "idx", "--batch-size", "30"]
# All that depends on how a batch is shared; and in the last step of an epoch, on one image, ranks that have none.
WORDS = ["--model", "lenet5-regularized", "--epochs", "10"]
IMAGES = 61


def mpiexec(ranks: int, *command: str) -> list[str]:
    assert MPIEXEC
    return [MPIEXEC, "-n", str(ranks), *command]


def start(command: list[str], **streams: Any) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        command, cwd=ROOT, env=ENVIRONMENT, text=True, stdout=subprocess.PIPE, start_new_session=True, **streams
    )


def finished(command: list[str]) -> "subprocess.CompletedProcess[str]":
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, text=True, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(autouse=True)
def tidy() -> Iterator[None]:
    """An MPI whose ranks were killed leaves its shared memory behind; that of these tests is removed."""
    place = Path("/dev/shm")
    before = set(place.iterdir()) if place.exists() else set()
    yield
    for left in (set(place.iterdir()) if place.exists() else set()) - before:
        if left.name.startswith(("mpich_shm", "sm_segment")):
            with suppress(FileNotFoundError):
                left.unlink()


def ranks_of(mark: str) -> dict[int, int]:
    """The process of each rank, by /proc, among those that have the mark in their command line."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if mark.encode() in (process / "cmdline").read_bytes().split(b"\0"):
                rank = re.search(rb"\0(?:PMI_RANK|OMPI_COMM_WORLD_RANK)=(\d+)", (process / "environ").read_bytes())
                if rank:
                    found[int(rank[1])] = int(process.name)
    return found


def none_left(mark: str) -> bool:
    """Whether all ranks end within 10 seconds."""
    deadline = time.monotonic() + 10
    while ranks_of(mark) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not ranks_of(mark)


# The same sums


class Groups(RuleBasedStateMachine):
    """Three forked ranks, three of MPI, and plain addition in rank order, after any sequence of commands."""

    teams: list["subprocess.Popen[str]"] = []
    size = 3

    def compare(self, name: str, seed: int, expected: list[int]) -> None:
        for team in self.teams:
            assert team.stdin and team.stdout
            print(name, seed, file=team.stdin, flush=True)
        for team in self.teams:
            assert team.stdout and [int(each) for each in team.stdout.readline().split()] == expected

    def total(self, terms: list[Any]) -> Any:
        result = terms[0]
        for term in terms[1:]:
            result = result + term
        return result

    def numbers(self, seed: int) -> np.ndarray:
        return self.total([np.array(ranks.numbers_of(seed, rank)) for rank in range(self.size)])

    @rule(seed=st.integers(0, 10**6))
    def sum(self, seed: int) -> None:
        self.compare("sum", seed, [ranks.digest([self.numbers(seed)])] * self.size)

    @rule(seed=st.integers(0, 10**6))
    def sum_gradients(self, seed: int) -> None:
        of_rank = [ranks.gradients_of(seed, rank) for rank in range(self.size)]
        sums: list[Any] = [self.numbers(seed)]
        for (shape, dtype), terms in zip(ranks.SHAPES, zip(*of_rank, strict=True), strict=True):
            there = [np.zeros(shape, dtype) if term is None else term for term in terms]
            sums.append(None if all(term is None for term in terms) else np.asarray(self.total(there), dtype))
        self.compare("sum_gradients", seed, [ranks.digest(sums)] * self.size)

    @rule(seed=st.integers(0, 10**6))
    def average(self, seed: int) -> None:
        weights = [ranks.weight_of(seed, rank) for rank in range(self.size)]
        means = []
        for shape, dtype in ranks.SHAPES[:4]:
            terms = [weights[rank] * ranks.drawn(seed, rank, shape, dtype).astype(float) for rank in range(self.size)]
            means.append((np.asarray(self.total(terms)) / sum(weights)).astype(dtype))
        self.compare("average", seed, [ranks.digest(means)] * self.size)

    @rule(seed=st.integers(0, 10**6))
    def require_equal(self, seed: int) -> None:
        """All find a difference, or none: the mean of two digests is neither of them, here with three ranks."""
        self.compare("require_equal", seed, [seed % 2] * self.size)


@needs_mpi
def test_groups_of_equal_size_agree_to_the_bit() -> None:
    words = [sys.executable, "-m", "tests.ranks"]
    Groups.teams = [
        start(command, stdin=subprocess.PIPE) for command in ([*words, "--workers", "3"], mpiexec(3, *words))
    ]
    try:
        run_state_machine_as_test(Groups, settings=settings(max_examples=10, stateful_step_count=15))
        for team in Groups.teams:
            assert (team.communicate("end\n", timeout=20)[0], team.returncode) == ("", 0)
    finally:
        for team in Groups.teams:
            team.kill()
            team.communicate()


# The same training


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a few digits."""
    folder = tmp_path_factory.mktemp("digits")
    for split, name, count in (("train", "train", IMAGES), ("test", "t10k", 10)):
        images, labels = data.digits(split)
        data.write_idx(folder / f"{name}-images-idx3-ubyte", images[:count])
        data.write_idx(folder / f"{name}-labels-idx1-ubyte", labels[:count].astype(np.uint8))
    return folder


@pytest.fixture(scope="module")
def forked(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Outcome]:
    """What a run of so many forked workers leaves behind."""

    @functools.cache
    def outcome(workers: int) -> Outcome:
        folder = tmp_path_factory.mktemp("forked")
        finished([*EXAMPLE, *WORDS, "--workers", str(workers), "--data-dir", str(digits), "--out", str(folder)])
        return left_in(folder)

    return outcome


def left_in(folder: Path, ranks: int | None = None) -> Outcome:
    """The outcome of a run, without what forked workers do not have: the number of ranks of MPI."""
    outcome = Outcome.of(folder)
    for arguments in (outcome.state["arguments"], outcome.metrics["arguments"]):
        assert arguments.pop("ranks", None) == ranks
        del arguments["data_dir"], arguments["no_progress"]
    return outcome


@needs_mpi
def test_ranks_that_fork_workers(digits: Path, forked: Callable[[int], Outcome], tmp_path: Path) -> None:
    """Two on each of two ranks do what four forked ones do, to the bit; one of them prints."""
    words = [*EXAMPLE, *WORDS, "--workers", "2", "--data-dir", str(digits), "--out", str(tmp_path)]
    done = finished(mpiexec(2, *words))
    assert done.stdout.count("test accuracy") == done.stdout.count("total") == 1
    assert differences(left_in(tmp_path, 2), forked(4)) == []


@needs_mpi
def test_killed_and_resumed(digits: Path, forked: Callable[[int], Outcome], tmp_path: Path) -> None:
    """SIGKILL to any rank ends all, SIGTERM saves first; the run ends as if nothing had been, or says what changes."""
    folder, dice = tmp_path / "run", random.SystemRandom()
    words = [*EXAMPLE, *WORDS, "--checkpoint-every", "0", "--data-dir", str(digits), "--out", str(folder)]
    for number in (signal.SIGKILL, signal.SIGTERM):
        run = start(mpiexec(2, *words, *(["--resume"] if folder.exists() else [])), stderr=subprocess.PIPE)
        assert run.stdout
        while not run.stdout.readline().startswith("steps"):
            assert run.poll() is None
        while not (folder / "checkpoint.safetensors").exists():
            time.sleep(0.01)
        time.sleep(dice.uniform(0.01, 0.05))
        os.kill(ranks_of(str(folder))[dice.randrange(2)], number)
        printed, errors = run.communicate(timeout=20)
        assert run.returncode
        assert none_left(str(folder))
    assert (printed.count("continue with: mpiexec -n 2"), errors.count("stopped by Ctrl-C or SIGTERM")) == (1, 1)
    shutil.copytree(folder, tmp_path / "copy")
    resumed = finished(mpiexec(2, *words, "--resume"))
    assert "processes that share each batch" not in resumed.stdout
    assert differences(left_in(folder, 2), forked(2)) == []
    alone = finished([*words[:-1], str(tmp_path / "copy"), "--workers", "1", "--resume"])
    assert "the number of processes that share each batch changes from 2 to 1" in alone.stdout


# Ranks that do not fit together


@needs_mpi
@pytest.mark.parametrize("what", ["arguments", "data", "a bug"])
def test_a_rank_that_cannot_go_on_ends_all(
    what: str, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within seconds, with one sentence, or a traceback if it is a bug; and before anything is written."""
    out, other = tmp_path / "out", digits
    if what == "data":
        monkeypatch.setitem(ENVIRONMENT, "MPIR_CVAR_NOLOCAL", "1")  # as on two machines, each of which reads the data
        version = subprocess.run([str(MPIEXEC), "--version"], capture_output=True, text=True).stdout
        if "HYDRA" not in version:
            pytest.skip("needs MPICH, which can pretend that each rank has a machine of its own")
        shutil.copytree(digits, other := tmp_path / "other")
        with open(other / "train-images-idx3-ubyte", "r+b") as file:
            file.seek(-5000, os.SEEK_END)
            file.write(b"\1")
    if what == "a bug":
        both = [[sys.executable, "-c", BUG, str(out)]] * 2
    else:
        rates = ["0.004", "0.001" if what == "arguments" else "0.004"]
        both = [
            [*EXAMPLE, "--out", str(out), "--lr", rate, "--data-dir", str(folder)]
            for rate, folder in zip(rates, (digits, other), strict=True)
        ]
    run = start(mpiexec(1, *both[0], ":", "-n", "1", *both[1]), stderr=subprocess.PIPE)
    _, errors = run.communicate(timeout=30)
    assert run.returncode
    sentences = {
        "arguments": "--lr is 0.001 on rank 1 and 0.004 on rank 0",
        "data": "the digest of the training data is .+ on rank 1 and .+ on rank 0",
        "a bug": "KeyError: 'a bug'",
    }
    assert len(re.findall(sentences[what], errors)) == 1, errors
    assert none_left(str(out))
    assert not out.exists()


BUG = """
from examples import programs
def main():
    job = programs.join()
    if job.rank:
        raise KeyError("a bug")
    job.leave()
programs.run(main)
"""


@pytest.mark.parametrize("missing", ["mpi4py", "the other processes"])
def test_processes_that_cannot_talk_to_each_other(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They would all train alone, and write into the same folder."""
    monkeypatch.setattr(mpi, "_found", [])
    monkeypatch.setenv("PMI_SIZE", "3")
    package: Any = None
    if missing != "mpi4py":
        world = SimpleNamespace(size=1)
        alone = SimpleNamespace(COMM_WORLD=world, Get_library_version=lambda: "an MPI")
        package = SimpleNamespace(rc=SimpleNamespace(), MPI=alone)
    monkeypatch.setitem(sys.modules, "mpi4py", package)
    with pytest.raises(ValueError, match=r"3 processes .+ mpi4py"):
        mpi.job()
