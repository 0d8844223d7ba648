"""Ranks that mpiexec started compute what forked ones do, to the bit, and end together; skipped where there is no MPI."""

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
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from tests import ranks
from tests.kill_resume import Outcome, differences

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
EXAMPLE = [sys.executable, "-m", "examples.train_lenet5", "--no-progress", "--no-augment"]
# Steps of 718, 718 and 1 images: in the last one a rank has none.
WORDS = ["--epochs", "2", "--batch-size", "718"]
REGULARIZED = [*WORDS, "--model", "lenet5-regularized", "--validation", "0"]


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
        run_state_machine_as_test(Groups, settings=settings(max_examples=15, stateful_step_count=20))
        for team in Groups.teams:
            assert (team.communicate("end\n", timeout=20)[0], team.returncode) == ("", 0)
    finally:
        for team in Groups.teams:
            team.kill()
            team.communicate()


# The same training


@pytest.fixture(scope="module")
def forked(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Outcome]:
    """What a run of forked workers leaves behind."""
    known: dict[tuple[str, ...], Outcome] = {}

    def outcome(*words: str) -> Outcome:
        if words not in known:
            folder = tmp_path_factory.mktemp("forked")
            finished([*EXAMPLE, *words, "--out", str(folder)])
            known[words] = Outcome.of(folder)
        return known[words]

    return outcome


def without_ranks(outcome: Outcome) -> Outcome:
    """Forked workers are no ranks of MPI; nothing else may differ."""
    for arguments in (outcome.state["arguments"], outcome.metrics["arguments"]):
        arguments.pop("ranks", None)
    return outcome


@needs_mpi
@pytest.mark.parametrize(("size", "workers"), [(2, 1), (2, 2)])
def test_a_run_on_mpi_ends_like_one_of_forked_workers(
    size: int, workers: int, forked: Callable[..., Outcome], tmp_path: Path
) -> None:
    """To the bit, with one worker a rank and with two; one rank prints."""
    words = [*EXAMPLE, *REGULARIZED, "--workers", str(workers), "--out", str(tmp_path)]
    done = finished(mpiexec(size, *words))
    assert done.stdout.count("test accuracy") == done.stdout.count("total") == 1
    found = without_ranks(Outcome.of(tmp_path))
    assert differences(found, forked(*REGULARIZED, "--workers", str(size * workers))) == []


@needs_mpi
def test_killed_and_resumed(forked: Callable[..., Outcome], tmp_path: Path) -> None:
    """SIGKILL to any rank ends all; resumed, the run ends as if nothing had been. SIGTERM saves, on other ranks too."""
    words = [*EXAMPLE, *REGULARIZED, "--checkpoint-every", "0", "--out", str(tmp_path)]
    dice = random.SystemRandom()
    for number in (signal.SIGKILL, signal.SIGTERM):
        begun = (tmp_path / "checkpoint.safetensors").exists()
        run = start(mpiexec(2, *words, *(["--resume"] if begun else [])), stderr=subprocess.PIPE)
        assert run.stdout
        while not run.stdout.readline().startswith("total"):
            assert run.poll() is None
        time.sleep(dice.uniform(0, 0.2))
        processes = ranks_of(str(tmp_path))
        if len(processes) == 2:  # else it has ended already
            os.kill(processes[dice.randrange(2)], number)
        run.communicate(timeout=20)
        assert none_left(str(tmp_path))
    resumed = finished(mpiexec(2, *words, *(["--resume"] if (tmp_path / "checkpoint.safetensors").exists() else [])))
    assert "processes share each batch now" not in resumed.stdout
    assert differences(without_ranks(Outcome.of(tmp_path)), forked(*REGULARIZED, "--workers", "2")) == []
