"""Every program of `examples` does its work and ends with the right status, whatever becomes of its streams."""

import errno
import io
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from examples.programs import Stream

ROOT = Path(__file__).parents[1]
PROGRAMS = (
    "first", "train_lenet5", "reproduce_1998", "claims", "predict", "by_hand", "draw_graph", "make_pretrained", "draw",
)  # fmt: skip
TOOL = """
import os, signal, sys
from examples import programs

programs.begin()
{early}

def main():
    # A character that few encodings have, a path's byte that is in none, and more than a pipe holds.
    print(*["\\u2192 \\udcff"] * 20_000, sep="\\n")
    print("noise", file=sys.stderr)
    file = os.open("results", os.O_WRONLY | os.O_CREAT)
    print("more", flush=True)
    print("more", file=sys.stderr)
    os.write(file, b"all")
    {late}

programs.run(main, "go on")
"""
needs_bash = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a Unix shell and /dev/full")


def tool(folder: Path, words: str = "", early: str = "", late: str = "", before: str = "") -> tuple[int, str, str]:
    """How a program ends that writes to its streams and a file: exit status, streams."""
    (folder / "tool.py").write_text(TOOL.format(early=early, late=late), encoding="utf-8")
    command = f"{before} {shlex.quote(sys.executable)} tool.py {words}"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], cwd=folder, env=environment, capture_output=True, timeout=60
    )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


@needs_bash
@pytest.mark.parametrize(("encoding", "unbuffered"), [("utf-8", "1"), ("cp1252", "")])
@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (">/dev/null", 0, "noise\nmore\n"),
        ("| head -1 >/dev/null", 0, "noise\nmore\n"),
        ("2>&-", 0, ""),
        (">&-", 0, "noise\nmore\n"),
        ("<&- >&- 2>&-", 0, ""),
        ("2>/dev/full", 0, ""),
        (">/dev/full", 1, "noise\nmore\ntool: standard output cannot be written (No space left on device)\n"),
        (">/dev/full 2>&-", 1, ""),
    ],
)
def test_streams(words: str, status: int, said: str, unbuffered: str, encoding: str, tmp_path: Path) -> None:
    """Closed, full, with a reader that has enough, or too narrow: all is done, nothing else is said, no file spoilt."""
    before = f"PYTHONUNBUFFERED={unbuffered} PYTHONIOENCODING={encoding}"
    found, _, stderr = tool(tmp_path, words, before=before)
    assert (found, stderr) == (status, said)
    assert (tmp_path / "results").read_bytes() == b"all"


@needs_bash
@pytest.mark.parametrize(
    ("late", "status", "said"),
    [
        ("return 3", 3, ""),
        ("sys.exit(2)", 2, ""),
        ("sys.exit('what is wrong')", 1, "what is wrong\n"),
        ("raise ValueError('what is wrong')", 1, "tool: what is wrong\n"),
        ("from tinygrad_lenet import parallel; raise parallel.WorkerError('ended')", 1, "tool: ended\n"),
        ("raise MemoryError", 1, "tool: there is not enough memory\n"),
        (
            "raise type('E', (RuntimeError,), {'__module__': 'cupy_backends'})('what it is')",
            1,
            "tool: the GPU reports: what it is\n",
        ),
        ("os.kill(os.getpid(), signal.SIGINT)", 130, "tool: stopped by Ctrl-C; go on\n"),
    ],
)
def test_ends(late: str, status: int, said: str, tmp_path: Path) -> None:
    assert tool(tmp_path, ">/dev/null", late=late) == (status, "", f"noise\nmore\n{said}")


@needs_bash
def test_ctrl_c(tmp_path: Path) -> None:
    """Before a program is ready it just ends it; where it is ignored or blocked from outside it stays so."""
    ctrl_c = "os.kill(os.getpid(), signal.SIGINT)"
    assert tool(tmp_path, early=ctrl_c, before="exec") == (-signal.SIGINT, "", "")
    for before in ("trap '' INT;", f"{shlex.quote(sys.executable)} -c {shlex.quote(BLOCKED)}"):
        found, _, stderr = tool(tmp_path, ">/dev/null", early=ctrl_c, late=ctrl_c, before=before)
        assert (found, stderr) == (0, "noise\nmore\n")


BLOCKED = """
import os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
os.execv(sys.argv[1], sys.argv[1:])
"""


@needs_bash
@pytest.mark.parametrize("name", PROGRAMS)
def test_every_program_ends_so(name: str) -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", f"examples.{name}", "--help"]
        done = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    sentence = f"{name}: standard output cannot be written (No space left on device)\n"
    assert (done.returncode, done.stderr) == (1, sentence)
    files = {path.stem: path for path in (ROOT / "examples").glob("*.py")}
    files |= {path.parent.name: path for path in (ROOT / "examples").glob("*/__main__.py")}
    ends = {name for name, path in files.items() if 'if __name__ == "__main__":' in path.read_text()}
    assert ends == set(PROGRAMS)


WITHOUT_EXTRAS = """
import runpy, sys
name = "examples." + sys.argv.pop()
sys.modules |= dict.fromkeys(["matplotlib", "PIL", "scipy", "tqdm", "uvicorn"])  # cannot be imported
runpy.run_module(name, run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize("name", sorted({*PROGRAMS} - {"first", "by_hand"}))
def test_a_missing_package_is_named(name: str) -> None:
    command = [sys.executable, "-c", WITHOUT_EXTRAS, name]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(rf"{name}: the package \w+ is missing; run pip install -e \S+\n", done.stderr), done.stderr


def test_first_reads_most_test_images_right() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "examples.first"], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    *epochs, last = done.stdout.splitlines()
    assert (done.returncode, done.stderr, len(epochs)) == (0, "", 10)
    losses = [float(line.rpartition(" ")[2]) for line in epochs]
    assert losses[-1] < 0.1 * losses[0]
    assert float(last.partition("%")[0]) > 95


class Raw(io.RawIOBase):
    """Takes what ``answers`` say, call after call: so many bytes, nothing yet (None), or an error."""

    def __init__(self, *answers: int | OSError | None) -> None:
        self.answers = list(answers)
        self.taken = b""

    def write(self, data: "memoryview") -> int | None:  # type: ignore[override]
        answer = self.answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        self.taken += data[: answer or 0]
        return answer


def test_a_stream_that_others_made_non_blocking() -> None:
    """What it does not take at once is written later."""
    raw = Raw(2, None, 3)
    stream = Stream(raw)
    assert (stream.write(b"later"), raw.taken, stream.trouble) == (5, b"later", "")


@pytest.mark.parametrize(("system", "trouble"), [("nt", ""), ("posix", os.strerror(errno.EINVAL))])
def test_a_reader_that_has_enough_on_windows(system: str, trouble: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told from a real trouble, and both are met only once."""
    stream = Stream(Raw(OSError(errno.EINVAL, os.strerror(errno.EINVAL))))
    monkeypatch.setattr(os, "name", system)
    assert (stream.write(b"one"), stream.write(b"two"), stream.trouble) == (3, 3, trouble)
