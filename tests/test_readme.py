"""What README.md, CONTRIBUTING.md and docs/ say works: their commands, their Python, the files that they name."""

import importlib.util
import os
import re
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = ["README.md", "CONTRIBUTING.md", *sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs").rglob("*.md"))]
PLACES = [ROOT, ROOT / "tinygrad_lenet", ROOT / "tinygrad_lenet" / "ops"]  # where a file named in passing may lie


def text_of(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def blocks(document: str, *languages: str) -> list[tuple[int, str]]:
    """The first line's number and the text of each fenced block in one of these languages."""
    text = text_of(document)
    fenced = re.finditer(r"^( *)```(\w+)[^\n]*\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL)
    return [(text.count("\n", 0, m.start(3)) + 1, textwrap.dedent(m[3])) for m in fenced if m[2] in languages]


def shell_blocks(document: str) -> list[str]:
    return [text for _, text in blocks(document, "sh", "bash", "shell", "console")]


def run(*command: str, **options: Any) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **{"cwd": ROOT, **options})


# Commands


def test_first_two_shell_blocks() -> None:
    """The first one trains, the second one tests; each stands on its own, from a fresh clone on."""
    train, test = shell_blocks("README.md")[:2]
    assert "python -m examples.train_lenet5" in train.splitlines()[-1]
    assert "pytest" in test.splitlines()[-1]
    assert "pytest" not in train
    for block in (train, test):
        assert "venv" in block.splitlines()[0]
        assert "pip install" in block


def test_shell_blocks_are_shell() -> None:
    for block in (block for document in DOCUMENTS for block in shell_blocks(document)):
        done = run("bash", "-n", input=block)
        assert (done.returncode, done.stderr) == (0, ""), block


def test_ci_runs_the_second_shell_block() -> None:
    """.ci/run takes README's test command from the README itself, the second block and nothing else."""
    program = re.search(r"\$\((awk .*README\.md)\)", text_of(".ci/run"))
    assert program, ".ci/run takes no command from README.md by awk"
    assert run(*shlex.split(program[1])).stdout.strip() == shell_blocks("README.md")[1].strip()
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_modules_in_commands_exist(document: str) -> None:
    """Each `python -m something`, in blocks or in the text."""
    named = re.findall(r"python3? -m ([\w.]+\w)", text_of(document))
    assert named or document != "README.md"

    def exists(name: str) -> bool:
        if "." not in name:
            return importlib.util.find_spec(name) is not None
        path = ROOT / name.replace(".", "/")
        return path.with_suffix(".py").is_file() or (path / "__main__.py").is_file()

    assert [name for name in named if not exists(name)] == [], f"{document} names modules that do not exist"


def test_options_in_commands_exist() -> None:
    """What README.md and the page on training pass to the training programs, or mention, one of them takes."""
    pytest.importorskip("tqdm", reason="the example's packages are not installed")
    programs = ("train_lenet5", "reproduce_1998")
    usage = "".join(run(sys.executable, "-m", f"examples.{program}", "--help").stdout for program in programs)
    text = re.sub(r"-m pytest .*", "", text_of("README.md") + text_of("docs/train.md"))
    options = set(re.findall(r"(?<![\w-])--[a-z][\w-]+", text)) - {"--help"}
    assert "--dataset" in options
    assert [option for option in sorted(options) if option not in usage] == []


# Python

RUNNER = """
import os, sys
sys.path.insert(0, {root!r})
import tests.conftest  # Hypothesis must not mind a slow machine
for document, blocks in {found!r}.items():
    folder = os.path.join({folder!r}, document.replace("/", "-"))
    os.mkdir(folder)
    os.chdir(folder)
    namespace = {{"__name__": "__main__"}}
    for line, block in blocks:
        exec(compile("\\n" * (line - 1) + block, document, "exec"), namespace)
"""


def test_python_blocks_run(tmp_path: Path) -> None:
    """In one new process whose warnings are errors, away from the repository; tracebacks name document and line.

    Those of docs/pytorch.md are run by tests/test_guide.py, since they need other packages.
    """
    found = {document: blocks(document, "python", "py") for document in DOCUMENTS if document != "docs/pytorch.md"}
    assert found["README.md"] and found["CONTRIBUTING.md"] and found["docs/tensors.md"]
    program = RUNNER.format(root=str(ROOT), found=found, folder=str(tmp_path))
    done = run(sys.executable, "-W", "error", "-c", program, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


# Files


@pytest.mark.parametrize("document", DOCUMENTS)
def test_files_named_exist(document: str) -> None:
    """Links to files, and what stands in backquotes and looks like one: `tensor.py`, `ops/`."""
    text = text_of(document)
    links = re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", text)
    named = re.findall(r"`((?:\.?\w[\w.-]*/)*(?:[\w.-]+\.(?:py|md|txt|toml)|(?<=/)))`", text)
    assert len(named) > 2 or document not in ("README.md", "CONTRIBUTING.md")
    missing = [name for name in named if not any((place / name).exists() for place in PLACES)]
    missing += [link for link in links if not ((ROOT / document).parent / link).exists()]
    assert missing == [], f"{document} names files that do not exist"


def test_an_afternoon_is_as_long_as_it_says() -> None:
    """README.md counts the lines of the files to read, to within a twentieth."""
    said, names = re.findall(
        r"is about ([\d,]+) lines, in this order: (.+?)`tinygrad_lenet/ops/`", text_of("README.md"), re.S
    )[0]
    files = [place / name for name in re.findall(r"`(\w+\.py)`", names) for place in PLACES if (place / name).exists()]
    assert len(files) == 11
    lines = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in files)
    assert lines == pytest.approx(int(said.replace(",", "")), rel=0.05)


def test_no_file_names_a_place_on_one_machine() -> None:
    """The project runs from wherever it lies: no absolute path into somebody's directories (tests may ask for tmp)."""
    absolute = re.compile(r"""(?:^|[\s"'`(=:])/(root|work|tmp|home)\b""")
    found = []
    for folder, folders, names in os.walk(ROOT):
        inside = [name for name in folders if name == ".ci" or not name.startswith((".", "__pycache__", "runs"))]
        folders[:] = [name for name in inside if name not in ("build", "dist") and not name.endswith(".egg-info")]
        for path in (Path(folder, name) for name in names):
            if path.suffix in (".py", ".md", ".toml", ".txt", ".cfg", ".yml", ".sh") or path.parent.name == ".ci":
                place = path.relative_to(ROOT)
                for i, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
                    named = absolute.search(line)
                    if named and not (named[1] == "tmp" and place.parts[0] == "tests"):
                        found.append(f"{place}:{i}: {named[0].strip()}")
    assert found == []
