"""Ranks compute what one process would, end together however one of them ends, and leave nothing behind."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import context
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.strict import STRICT
from tinygrad_lenet import Tensor, nn, optim, parallel
from tinygrad_lenet import functional as F
from tinygrad_lenet.parallel import Group, WorkerError, fork, process, run
from tinygrad_lenet.parallel.group import Row

ROOT = Path(__file__).parents[1]
pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="more than one worker needs os.fork"),
    pytest.mark.filterwarnings(
        "ignore:parallel.run. other threads are running:RuntimeWarning"
    ),  # tqdm's, of other tests
]


def children() -> set[int]:
    """The processes that this one has started and not waited for, by /proc; empty where there is none."""
    listed = Path(f"/proc/self/task/{os.getpid()}/children")
    return {int(pid) for pid in listed.read_text().split()} if listed.exists() else set()


def shared_memory() -> set[str]:
    place = Path("/dev/shm")
    return set(os.listdir(place)) if place.exists() else set()


@pytest.fixture(autouse=True)
def one_blas_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that nothing is warned of."""
    for name in process.BLAS_LIMITS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setitem(sys.modules, "threadpoolctl", None)


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """After each test no process and no shared memory is left, and none took longer than a minute (a deadlock)."""
    before, memory = children(), shared_memory()

    def too_late(number: int, frame: Any) -> None:
        raise TimeoutError("a meeting of all ranks never ended")

    old = signal.signal(signal.SIGALRM, too_late)
    signal.alarm(60)
    try:
        yield
        assert children() == before
        assert {name for name in shared_memory() - memory if name.startswith(("sem.", "psm_", "mp-"))} == set()
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)
        for pid in children() - before:  # of a test that failed
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def small_model(seed: int = 0) -> nn.Module:
    """Convolution and full layer with parameters in float64."""
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, rng=seed, dtype="float64"),
        nn.Tanh(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(27, 4, rng=seed + 1, dtype="float64"),
    )


def images(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.uniform(-1, 1, (n, 1, 8, 8)), rng.integers(0, 4, n)


def backward(group: Group, model: nn.Module, x: np.ndarray, labels: np.ndarray) -> None:
    """The gradients of the mean loss over all images, of which this rank sees its share."""
    mine = group.share(len(x))
    model.zero_grad()
    loss = F.cross_entropy(model(Tensor(x[mine])), labels[mine], reduction="sum") / len(x)
    loss.backward()
    group.sum_gradients()


# Who does what


def shares(size: int, count: int) -> list[slice]:
    found = []
    for rank in range(size):
        group = Group([])
        group.rank, group.size = rank, size
        found.append(group.share(count))
    return found


@given(size=st.integers(1, 70), count=st.integers(0, 10**6))
def test_shares_partition_any_count(size: int, count: int) -> None:
    """Stretch follows on stretch, from 0 to count, and no two differ by more than one."""
    parts = shares(size, count)
    assert [part.start for part in parts] == [0, *(part.stop for part in parts[:-1])]
    assert parts[-1].stop == count
    lengths = [part.stop - part.start for part in parts]
    assert max(lengths) - min(lengths) <= 1


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_run_returns_what_rank_0_returns(workers: int, tmp_path: Path) -> None:
    """Arguments reach every rank; each has its own process, rank and share."""

    def note(group: Group, text: str, end: str = "") -> tuple[int, int, str]:
        (tmp_path / str(group.rank)).write_text(f"{os.getpid()} {group.size} {group.share(10)} {text}{end}")
        return group.rank, os.getpid(), text + end

    assert run(note, workers, [], "a", end="b") == (0, os.getpid(), "ab")
    notes = [(tmp_path / str(rank)).read_text().split(maxsplit=1) for rank in range(workers)]
    assert len({pid for pid, _ in notes}) == workers
    assert [note for _, note in notes] == [f"{workers} {part} ab" for part in shares(workers, 10)]
    assert len(list(tmp_path.iterdir())) == workers


# The same numbers


@pytest.mark.parametrize(("workers", "n"), [(1, 7), (2, 1), (2, 7), (3, 2), (3, 7)])
def test_gradients_are_those_of_one_process(workers: int, n: int) -> None:
    """Also where a rank has no image at all."""
    x, labels = images(n)
    alone = small_model()
    F.cross_entropy(alone(Tensor(x)), labels).backward()
    together = small_model()

    def gradients(group: Group) -> list[np.ndarray]:
        backward(group, together, x, labels)
        return [p.grad.numpy() for p in together.parameters() if p.grad is not None]

    found = run(gradients, workers, together.parameters())
    expected = [p.grad.numpy() for p in alone.parameters() if p.grad is not None]
    assert len(found) == len(expected) == 4
    for g, e in zip(found, expected, strict=True):
        assert (g.shape, g.dtype) == (e.shape, e.dtype)
        assert np.abs(g - e).max() <= 1e-12 * np.abs(e).max()


def test_two_dtypes_and_missing_gradients(tmp_path: Path) -> None:
    """Parameters keep their dtypes, odd sizes in between; a rank's missing gradient counts as 0; memory order too.

    What an earlier meeting left does not count; what no rank has a gradient for gets none.
    """
    shapes = [((3,), "float32"), ((2, 5), "float64"), ((), "float32"), ((4, 3), "float64"), ((7,), "float16")]
    parameters = [Tensor(np.zeros(shape, dtype), requires_grad=True) for shape, dtype in shapes]

    def grads(rank: int, turn: int) -> list[np.ndarray | None]:
        rng = np.random.default_rng((rank, turn))
        all_ = [np.asarray(np.round(rng.uniform(-9, 9, shape), 1), dtype) for shape, dtype in shapes]
        all_[3] = np.asfortranarray(all_[3])
        missing = {(turn - rank) % 3, 4 if turn == 2 else None}
        return [None if i in missing else g for i, g in enumerate(all_)]

    def work(group: Group) -> None:
        for turn in range(3):
            for p, g in zip(parameters, grads(group.rank, turn), strict=True):
                p.grad = None if g is None else Tensor(g)
            group.sum_gradients()
        np.savez(tmp_path / f"{group.rank}.npz", *(p.grad.numpy() for p in parameters if p.grad is not None))

    run(work, 3, parameters)
    per_rank = [grads(rank, turn=2) for rank in range(3)]
    for rank in range(3):
        with np.load(tmp_path / f"{rank}.npz") as found:
            assert len(found.files) == 4
            for i, (shape, dtype) in enumerate(shapes[:4]):
                terms = [g[i] if (g := each)[i] is not None else np.zeros(shape, dtype) for each in per_rank]
                total = terms[0] + terms[1] + terms[2]  # in rank order, so equal to the bit
                assert found[f"arr_{i}"].dtype == dtype
                assert np.array_equal(found[f"arr_{i}"], total)


def test_summed_gradient_is_the_ranks_own() -> None:
    """It survives later sums, which write into the shared rows, and writing into it harms nobody."""
    p = Tensor(np.zeros(3), requires_grad=True)

    def work(group: Group) -> list[list[float]]:
        kept = []
        for i in range(5):
            p.grad = Tensor(np.full(3, i + group.rank, float))
            group.sum_gradients()
            assert p.grad is not None
            kept.append(p.grad)
        for g in kept[:2]:
            g.data[0] = -99
        group.sum([1.0])
        return [g.numpy().tolist() for g in kept]

    assert run(work, 2, [p]) == [[-99, 1, 1], [-99, 3, 3], [5] * 3, [7] * 3, [9] * 3]


@pytest.mark.parametrize("workers", [2, 3])
def test_weights_are_equal_to_the_bit(workers: int, tmp_path: Path) -> None:
    """On all ranks, and in a second run; and other seeds give other weights."""

    def train(group: Group, name: str, seed: int) -> None:
        optimizer = optim.Adam(model.parameters(), lr=0.01)
        for step in range(5):
            backward(group, model, *images(7, seed + step))
            optimizer.step()
        weights = np.concatenate([p.numpy().ravel() for p in model.parameters()])
        np.save(tmp_path / f"{name}{group.rank}.npy", weights)

    for name, seed in (("first", 0), ("second", 0), ("other", 100)):
        model = small_model()
        run(train, workers, model.parameters(), name, seed)
    first = (tmp_path / "first0.npy").read_bytes()
    for rank in range(workers):
        assert (tmp_path / f"first{rank}.npy").read_bytes() == (tmp_path / f"second{rank}.npy").read_bytes() == first
        assert (tmp_path / f"other{rank}.npy").read_bytes() != first


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_sums_of_numbers(workers: int) -> None:
    """Up to 256 at a time, also none, by themselves or with gradients and apart from them; every rank has the sums."""
    p = Tensor(np.zeros(3, "float32"), requires_grad=True)

    def work(group: Group) -> list[list[float]]:
        numbers = [[], [group.rank, 0.5], np.arange(256.0) * (group.rank + 1)]
        p.grad = Tensor(np.full(3, group.rank + 1, "float32"))
        found = [sums(values) for values in numbers for sums in (group.sum, group.sum_gradients)]
        assert p.grad is not None
        found.append(p.grad.numpy().tolist())
        mine = float(np.sum([np.sum(each) for each in found]))
        with pytest.raises(ValueError, match=r"257 .+ 256"):
            group.sum([0.0] * 257)
        return [*found, group.sum([mine]), [mine]]

    none, none_too, two, two_too, many, many_too, gradient, of_all, (mine,) = run(work, workers, [p])
    ranks = range(workers)
    assert none == none_too == []
    assert two == two_too == [sum(ranks), 0.5 * workers]
    assert many == many_too == [sum(i * (rank + 1) for rank in ranks) for i in range(256)]
    assert gradient == [workers**2 * sum(rank + 1 for rank in ranks)] * 3
    assert of_all == [workers * mine]
    assert all(type(value) is float for value in (*two, *many, *two_too))


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("channels", [3, 200])
def test_average(workers: int, channels: int) -> None:
    """Running statistics become the weighted mean over the ranks, in place, in their own dtype; counts stay counts."""
    tensors = [Tensor(np.zeros(channels, "float32")), Tensor(np.zeros((2, channels))), Tensor(np.zeros((), "int64"))]

    def work(group: Group) -> list[np.ndarray]:
        arrays = [tensor.data for tensor in tensors]
        for array in arrays[:2]:
            array[...] = np.arange(channels) * (group.rank + 1)
        arrays[2][...] = 7
        group.average(tensors, weight=group.rank + 1)
        group.average([])
        assert all(tensor.data is array for tensor, array in zip(tensors, arrays, strict=True))
        return arrays

    statistics, more, count = run(work, workers, [])
    expected = np.arange(channels) * (2 * workers + 1) / 3  # sum of (rank + 1)^2 / sum of (rank + 1)
    assert (statistics.dtype, more.dtype, count.dtype, count) == (np.float32, np.float64, np.int64, 7)
    assert np.allclose(statistics, expected, rtol=1e-6)
    assert np.allclose(more, np.broadcast_to(expected, (2, channels)), rtol=1e-12)


@pytest.mark.parametrize("workers", [2, 3])
def test_many_meetings(workers: int) -> None:
    """400 meetings, gradients and numbers mixed, ranks late in turn: each sum is of that meeting's numbers."""
    p = Tensor(np.zeros(2), requires_grad=True)

    def work(group: Group) -> list[float]:
        wrong = 0
        for i in range(200):
            if i % 40 == group.rank:
                time.sleep(0.002)
            p.grad = Tensor(np.array([i, group.rank], float))
            group.sum_gradients()
            assert p.grad is not None
            wrong += p.grad.numpy().tolist() != [i * group.size, sum(range(group.size))]
            wrong += group.sum([i, 1]) != [i * group.size, group.size]
        return group.sum([wrong])

    assert run(work, workers, [p]) == [0]


def test_a_rank_may_be_late_by_more_than_the_patience() -> None:
    """Waiting ranks look around, find everyone alive, and go on waiting."""

    def work(group: Group) -> list[float]:
        time.sleep(0.5 * (group.rank == 1))
        first = group.sum([1])
        time.sleep(0.5 * (group.rank == 0))
        return first + group.sum([2])

    assert run(work, 3, []) == [3, 6]


# When a rank ends too early


def meet_forever(group: Group) -> None:
    while True:
        group.sum([1.0])


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def raises() -> None:
    raise ValueError("no such digit")


ENDS: dict[str, tuple[Callable[[], object], str]] = {
    "raises": (raises, "exit code 1"),
    "exits": (lambda: os._exit(3), "exit code 3"),
    "is killed": (killed, "SIGKILL"),
    "returns": (lambda: None, "exit code 0"),
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize(("workers", "rank"), [(2, 1), (3, 2)])
def test_a_worker_that_ends_stops_the_run(workers: int, rank: int, end: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Rank 0 says which one and how, also if it has its result already; what the worker raised is on standard error."""
    act, how = ENDS[end]

    def work(group: Group, meetings: int) -> None:
        for meeting in range(meetings):
            if (group.rank, meeting) == (rank, 20):
                act()
                return
            group.sum([1.0])
        if group.rank == rank:
            act()

    for meetings in (40, 20) if end != "returns" else (40,):
        with pytest.raises(WorkerError, match=f"worker {rank} ended .*{how}"):
            run(work, workers, [], meetings)
        assert ("ValueError: no such digit" in capfd.readouterr().err) == (end == "raises")


def test_a_parent_that_does_not_wait_for_its_children() -> None:
    """It ignores SIGCHLD, so the system forgets exit codes: results come all the same, and so does a failure."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        assert run(lambda group: group.sum([1.0]), 3, []) == [3]
        with pytest.raises(WorkerError, match="worker 2 ended"):
            run(lambda group: os._exit(0) if group.rank == 2 else group.sum([1.0]), 3, [])
    finally:
        signal.signal(signal.SIGCHLD, before)


@pytest.mark.parametrize("meetings", [0, 1, 2])
def test_a_rank_that_hangs(meetings: int, capfd: pytest.CaptureFixture[str]) -> None:
    """Before the first meeting, the second, or after the last: the run ends, and says where that rank is."""

    def work(group: Group) -> None:
        for meeting in range(2):
            if (group.rank, meeting) == (2, meetings):
                time.sleep(60)
            group.sum([1.0])
        time.sleep(60 * (group.rank == 2))

    with pytest.raises(WorkerError, match=rf"rank 2 .*{f'meeting {meetings}' if meetings else 'started'}"):
        run(work, 3, [], timeout=0.5)
    assert " in work\n" in capfd.readouterr().err  # what the worker says of itself


@pytest.mark.parametrize("error", [ValueError("what rank 0 says"), KeyboardInterrupt(), SystemExit(4)])
def test_rank_0_ends_the_others(error: BaseException) -> None:
    """Whatever ends rank 0 comes out of `run` as it is, and the others end, busy or waiting."""

    def work(group: Group) -> None:
        group.sum([1.0])
        if group.rank == 0:
            raise error
        if group.rank == 1:
            time.sleep(60)
        meet_forever(group)

    with pytest.raises(type(error)) as caught:
        run(work, 3, [])
    assert caught.value is error


def test_ctrl_c_during_the_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits until all ranks are there, and ends them all."""
    fork, forks = os.fork, []

    def pressed() -> int:
        forks.append(0)
        os.kill(os.getpid(), signal.SIGINT)
        return fork()

    monkeypatch.setattr(os, "fork", pressed)
    with pytest.raises(KeyboardInterrupt):
        run(meet_forever, 3, [])
    assert len(forks) == 2  # and the fixture looks for what is left


def test_ctrl_c_stays_as_it_was() -> None:
    """Blocked or not, and whatever handles it, in rank 0 during a run and after it; other ranks ignore it."""

    def state(group: Group) -> tuple[Any, set[int], list[float]]:
        handler = signal.getsignal(signal.SIGINT)
        return handler, signal.pthread_sigmask(signal.SIG_BLOCK, []), group.sum([handler == signal.SIG_IGN])

    for change in (signal.SIG_BLOCK, signal.SIG_UNBLOCK):
        before = signal.pthread_sigmask(change, {signal.SIGINT})
        try:
            handler, mask, ignored = run(state, 3, [])
            assert handler is signal.getsignal(signal.SIGINT)
            assert mask == signal.pthread_sigmask(signal.SIG_BLOCK, [])
            assert (signal.SIGINT in mask, ignored) == (change == signal.SIG_BLOCK, [2])
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def test_rank_0_that_returns_while_another_waits_for_it() -> None:
    """A function that meets more often on one rank than on another is told so; it does not hang."""
    with pytest.raises(WorkerError, match="worker 1"):
        run(lambda group: None if group.rank == 0 else group.sum([1.0]), 2, [])


@pytest.mark.parametrize(
    ("owner", "name", "works", "error"),
    [
        (os, "fork", 1, OSError("no more processes")),
        (context.ForkContext, "Semaphore", 3, OSError("/dev/shm is read-only")),
        (fork.mmap, "mmap", 0, OSError("no memory")),
        (fork.mmap, "mmap", 0, OverflowError("that is too much")),
    ],
)
def test_what_the_system_refuses(
    owner: Any, name: str, works: int, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One sentence that has the reason, and no process stays behind, also if it refuses only a later one."""
    real, calls = getattr(owner, name), []

    def refuse(*arguments: Any) -> Any:
        if len(calls) == works:
            raise error
        calls.append(arguments)
        return real(*arguments)

    monkeypatch.setattr(owner, name, refuse)
    with pytest.raises(WorkerError, match=str(error)):
        run(meet_forever, 3, [])
    assert len(calls) == works  # and the fixture looks for what is left


KILLED_RANK_0 = """
import os, signal, sys, time
from tinygrad_lenet import parallel

def work(group):
    numbers = group.sum([os.getpid() if group.rank == rank else 0 for rank in range(3)])
    if group.rank == 0:
        print(*(int(number) for number in numbers), flush=True)
        {end}
    if group.rank == 2 or sys.platform != "linux":
        group.sum([1])
    time.sleep(60)

parallel.run(work, 3, [])
"""


def gone(pid: int) -> bool:
    """Whether a process has ended (or is a zombie that its new parent has not yet waited for)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks into /proc")
@pytest.mark.parametrize("end", ["os.kill(os.getpid(), signal.SIGKILL)", "os._exit(0)"])
def test_workers_vanish_with_rank_0(end: str) -> None:
    """Also when rank 0 is killed and can end nobody, whether they wait for it or, on Linux, are in a long step."""
    program = KILLED_RANK_0.format(end=end)
    with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True) as rank_0:
        assert rank_0.stdout is not None
        pids = [int(pid) for pid in rank_0.stdout.readline().split()]
        assert rank_0.wait(30) == (0 if "exit" in end else -signal.SIGKILL)
    assert len(pids) == 3
    deadline = time.monotonic() + 30
    while not all(map(gone, pids)) and time.monotonic() < deadline:
        time.sleep(0.02)
    left = [pid for pid in pids if not gone(pid)]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert left == []


# What is refused


@pytest.mark.parametrize(
    ("workers", "error"),
    [(0, ValueError), (-2, ValueError), (10**6, ValueError)] + [(count, TypeError) for count in (1.5, "2", True, None)],
)
def test_bad_count_of_workers_is_refused(workers: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=f"parallel.run: workers .*{workers}"):
        run(lambda group: pytest.fail("this ran"), workers, [])
    assert run(lambda group: group.size, np.int64(2), []) == 2


def test_bad_timeout_is_refused() -> None:
    with pytest.raises(ValueError, match=r"parallel.run: timeout is nan"):
        run(lambda group: pytest.fail("this ran"), 2, [], timeout=np.nan)


def test_parameters_elsewhere_than_on_the_cpu_are_refused() -> None:
    """Shared memory is host memory; one worker may use any device."""
    parameters = [Tensor([1.0]), Tensor([1.0], requires_grad=True, device=STRICT.name)]
    with pytest.raises(ValueError, match="a parameter lies on 'strict'; more than one worker needs the CPU"):
        run(lambda group: pytest.fail("this ran"), 2, parameters)
    assert run(lambda group: group.sum([group.size]), 1, parameters) == [1]


def test_gradients_elsewhere_than_on_the_cpu() -> None:
    """They are copied into a row of host memory, and their sums back; between them lie those that are on the CPU."""
    devices = [STRICT.name, "cpu", STRICT.name, STRICT.name]
    parameters = [Tensor(np.zeros((2, i)), requires_grad=True, device=device) for i, device in enumerate(devices, 1)]
    gradients = [np.random.default_rng(i).random((2, i)) for i in (1, 2, 3)]
    for p, g in zip(parameters, gradients, strict=False):  # the last one has none
        p.grad = Tensor(g, device=p.device)
    row = Row(parameters, pieces=3)
    views = row.views(np.full(row.size, 255, np.uint8))
    row.fill(views, [0.5])
    assert row.take([2 * view for view in views], 1) == [1.0]
    for p, g in zip(parameters, gradients, strict=False):
        assert p.grad is not None
        assert p.grad.device == p.device
        assert np.array_equal(p.grad.to("cpu").numpy(), 2 * g)
    assert parameters[3].grad is None


# Other machines, simulated


def test_without_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows: one worker is the default, and more are refused."""
    monkeypatch.delattr(os, "fork")
    assert parallel.default_workers() == 1
    with pytest.raises(ValueError, match=r"2 workers need os\.fork"):
        run(lambda group: pytest.fail("this ran"), 2, [])
    assert run(lambda group: group.size, 1, []) == 1


def test_macos(monkeypatch: pytest.MonkeyPatch) -> None:
    """One worker is the default; more are refused where NumPy computes with Accelerate, which crashes after a fork."""
    monkeypatch.setattr(sys, "platform", "darwin")
    assert parallel.default_workers() == 1
    built_with = {"Build Dependencies": {"blas": {"name": "accelerate"}}}
    monkeypatch.setattr(np, "show_config", lambda mode: built_with)
    with pytest.raises(ValueError, match=r"2 workers .+ Accelerate"):
        run(lambda group: pytest.fail("this ran"), 2, [])
    built_with["Build Dependencies"] = {}
    assert run(lambda group: group.size, 2, []) == 2


@pytest.mark.parametrize(("cores", "workers"), [(1, 1), (2, 2), (64, 2), (None, 1)])
def test_default_workers(cores: int | None, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One a core, at most 2, also where a process cannot be asked for its cores."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores or 1)), raising=False)
    assert parallel.default_workers() == workers
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    assert parallel.default_workers() == workers


# Threads


def test_other_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fork beside them is warned of, and refused if BLAS may have threads of its own."""
    monkeypatch.setattr(process, "cores", lambda: 2)
    end = threading.Event()
    thread = threading.Thread(target=end.wait, name="busy")
    thread.start()
    try:
        with pytest.warns(RuntimeWarning, match="other threads are running .*busy") as caught:
            assert run(lambda group: group.size, 2, []) == 2
        assert caught[0].filename == __file__
        monkeypatch.setenv("OMP_NUM_THREADS", "2")
        with pytest.raises(ValueError, match=r"other threads are running .*busy"):
            run(lambda group: pytest.fail("this ran"), 2, [])
    finally:
        end.set()
        thread.join()


def test_blas_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several in each worker are warned of on several cores, or limited where threadpoolctl is installed."""
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(process, "cores", lambda: 1)
    assert run(lambda group: group.size, 2, []) == 2
    monkeypatch.setattr(process, "cores", lambda: 2)
    monkeypatch.setattr(threading, "enumerate", lambda: [threading.current_thread()])
    with pytest.warns(RuntimeWarning, match="OPENBLAS_NUM_THREADS=1") as caught:
        assert run(lambda group: group.size, 2, []) == 2
    assert caught[0].filename == __file__

    limits: list[tuple[int, str]] = []

    @contextmanager
    def threadpool_limits(threads: int, kind: str) -> Iterator[None]:
        limits.append((threads, kind))
        yield
        limits.clear()

    installed = SimpleNamespace(threadpool_limits=threadpool_limits, threadpool_info=list)
    monkeypatch.setitem(sys.modules, "threadpoolctl", installed)
    assert run(lambda group: group.sum([len(limits)]), 2, []) == [2]
    assert limits == []


# Memory


def test_tune_process() -> None:
    """It says whether it could, may be called twice, and programs go on working."""
    program = (
        "import numpy as np; from tinygrad_lenet import parallel; "
        "a = parallel.tune_process(), parallel.tune_process(); x = [np.ones(10**6) for _ in range(9)]; del x[::2]; "
        "print(a[0], a[0] is a[1], sum(map(np.sum, x)), parallel.run(lambda group: group.sum([1]), 2, []))"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], cwd=ROOT, capture_output=True, text=True)
    tuned, *rest = done.stdout.split(maxsplit=1)
    assert (tuned in ("True", "False"), rest, done.stderr) == (True, ["True 4000000.0 [2.0]\n"], "")


@pytest.mark.parametrize("libc", ["musl", ""])
def test_tune_process_elsewhere_than_on_glibc(libc: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process.platform, "libc_ver", lambda: (libc, ""))
    assert parallel.tune_process() is False
