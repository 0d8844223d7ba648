"""The benchmark commands run, on a slice so small that the numbers mean nothing, and report what they should."""

import contextlib
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks import lenet5, machine, processes

ROOT = Path(__file__).resolve().parents[1]
linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a child with its parent")


def run(module: str, *options: object) -> str:
    command = [sys.executable, "-m", f"tests.benchmarks.{module}", *map(str, options)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_lenet5_reports_every_round(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    pytest.importorskip("tqdm")
    cores = min(2, len(machine.cores()))
    paths = tmp_path / "report.json", tmp_path / "table.md"
    printed = run(
        "lenet5", "--quick", "--rounds", 2, "--batch", 32, "--cores", cores, "--only", "ours", "ours-eager",
        "--json", paths[0], "--table", paths[1],
    )  # fmt: skip
    text, table = (path.read_text() for path in paths)
    report = json.loads(text)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", report["machine"]["date"])
    assert {"python", "numpy", "tinygrad_lenet"} <= report["machine"]["versions"].keys()
    assert str(ROOT) not in text, "a report is public"
    assert os.uname().nodename not in report["machine"].values()

    found = {(result["what"], result["batch"], result["cores"]): result for result in report["results"]}
    timed = {("train", 32, cores), ("infer", 32, cores), ("forward", 1, cores), ("step", 1, cores)}
    assert found.keys() == timed | {("import", None, cores), ("memory", 256, cores), ("size", None, None)}
    assert report["failed"].keys() == {"cold start"}, "it needs MNIST"
    for place in timed:
        ours = found[place]["contestants"]["ours"]
        assert len(ours["rounds"]) == 2
        assert 0 < ours["min"] <= ours["median"] <= ours["max"]
        assert ours["by_round"] == [1.0, 1.0]
        assert len(found[place]["contestants"]["ours-eager"]["rounds"]) == 2
    assert found["import", None, cores]["contestants"].keys() == {"python", "numpy", "ours"}

    assert table in printed
    assert report["machine"]["date"] in table
    assert report["machine"]["processor"] and report["machine"]["processor"] in table
    assert len([line for line in table.splitlines() if line.startswith("| ")]) == 1 + len(found)


def test_ops_times_each_op() -> None:
    printed = run("ops", "--machine", "--quick", "--batch", 4)
    rows = [line.split("|")[1:-1] for line in printed.splitlines() if line.startswith("|")]
    named = {row[1].strip() for row in rows}
    assert {"conv2d", "conv2d_weight_grad", "conv_transpose2d", "avg_pool2d_grad", "tanh_grad", "linear"} <= named
    for row in rows[2:]:
        assert float(row[3]) > 0
        assert row[4].split()[1] in ("GFLOP/s", "GB/s")
        assert row[5].strip().endswith("%")
    assert "fastest matrix product" in printed
    assert "copy, read and written" in printed


def test_ops_of_programs_give_what_pytorch_gives() -> None:
    """The command compares outputs and gradients before it times; without PyTorch it says so."""
    printed = run("ops", "--quick")
    if importlib.util.find_spec("torch") is None:
        assert "PyTorch is not installed" in printed
        return
    rows = [line.split("|")[1:-1] for line in printed.splitlines() if line.startswith("|")][2:]
    assert len(rows) == 40
    assert all(float(row[i]) > 0 for row in rows for i in (2, 3, 4))
    assert len(re.findall(r"geometric mean of 40 ratios \d+\.\d\d; above 1\.5: \d+", printed)) == 2


def test_environment_is_the_same_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in machine.REMOVED:
        monkeypatch.setenv(name, "Haswell")
    ours, peer, tuned = (machine.environment(*options) for options in ((1,), (2,), (2, True)))
    assert not set(machine.REMOVED) & (ours.keys() | peer.keys())
    assert ours["OPENBLAS_NUM_THREADS"] == "1"
    assert peer["OMP_NUM_THREADS"] == "2"
    assert tuned == peer | machine.TUNED_MALLOC


def test_who_computes_something_else_is_refused() -> None:
    wanted: list[float] = []
    assert lenet5.agree([2.0, 1.0], wanted, 0.001) == 0
    assert lenet5.agree([2.0, 1.0005], wanted, 0.001) == pytest.approx(0.0005)
    for losses in ([2.0, 1.002], [2.0, float("nan")]):
        with pytest.raises(processes.ChildError, match="something else"):
            lenet5.agree(losses, wanted, 0.001)


def test_children_that_fail_are_reported_with_their_reason() -> None:
    """A program that is run to its end, and a contestant that is asked."""
    with pytest.raises(processes.ChildError, match="no such thing"):
        processes.run(["-c", "import sys; sys.exit('no such thing')"], machine.environment(1), machine.cores()[:1])
    with contextlib.ExitStack() as stack:
        command = ["-c", "input(); raise SystemExit('out of luck')"]
        child = processes.Child(stack, command, machine.environment(1), machine.cores()[:1])
        with pytest.raises(processes.ChildError, match="out of luck"):
            child.ask({}, limit=30)


@linux
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_children_die_with_their_parent(end: signal.Signals) -> None:
    code = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have had it ignored
from tests.benchmarks import machine, processes
with processes.started(["-c", "import time; time.sleep(60)"], machine.environment(1), machine.cores()) as child:
    print(child.pid, flush=True)
    child.wait()
"""
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, **pipes) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.send_signal(end)
        parent.wait(timeout=30)
    state = Path(f"/proc/{child}/stat")
    for _ in range(100):
        if not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.05)
    pytest.fail(f"process {child} outlived its parent")


@linux
def test_step_1998_times_both_networks() -> None:
    printed = run("step_1998", "--rounds", 2, "--steps", 3)
    rows = re.findall(r"^(.+?) +(\d+\.\d{3}) ms   \((\d+\.\d{3}) to (\d+\.\d{3})\)$", printed, re.MULTILINE)
    assert {name for name, *_ in rows} >= {"1998, Eq. 8", "1998, Eq. 9", "1998, Eq. 9, eager", "today's, Adam"}
    for _, median, fastest, slowest in rows:
        assert 0 < float(fastest) <= float(median) <= float(slowest)


def test_growth_checks_that_all_compute_the_same() -> None:
    (_, _, row) = run("growth", "--quick", "--rounds", 1).splitlines()
    depth, batch, image, replayed, eager, *_ = (cell.strip() for cell in row.strip("|").split("|"))
    assert (depth, batch, image) == ("1", "16", "16 x 16")
    assert float(replayed) > 0 and float(eager) > 0
