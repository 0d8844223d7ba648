"""The notebooks run as they stand, say what they said, and need nothing but the package."""

import ast
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("nbclient", reason="the packages that run notebooks are not installed")
pytest.importorskip("ipykernel", reason="the packages that run notebooks are not installed")
from tests import notebooks

PROJECT = tomllib.loads((notebooks.ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PATHS = pytest.mark.parametrize("path", notebooks.paths(), ids=lambda path: path.stem)


def code(path: Path) -> list[str]:
    return [cell.source for cell in notebooks.read(path).cells if cell.cell_type == "code"]


@PATHS
@pytest.mark.filterwarnings("default")  # of the packages that run notebooks; what a kernel warns of is an output
def test_outputs(path: Path) -> None:
    """In an empty folder; the same words, and the same numbers where they do not depend on the machine."""
    kept = notebooks.read(path)
    assert notebooks.differences(kept, notebooks.execute(path)) == []
    said = [kind for cell in kept.cells for kind, _ in notebooks.said(cell)]
    assert set(said) <= {"stdout", "image/png"}  # no error, no warning
    assert len(said) > 4


@PATHS
def test_form(path: Path) -> None:
    """It opens elsewhere, imports what a user has who installed the package, and is small."""
    first, setup = notebooks.read(path).cells[:2]
    assert first.source.splitlines()[0] == notebooks.links(path.name, PROJECT.get("urls", {}))
    assert setup.source == code(notebooks.paths()[0])[0]
    statements = [node for cell in code(path)[1:] for node in ast.walk(ast.parse(cell))]
    named = {alias.name for node in statements if isinstance(node, ast.Import) for alias in node.names}
    named |= {node.module or "" for node in statements if isinstance(node, ast.ImportFrom)}
    installed = {"numpy", "tinygrad_lenet", *re.findall(r"[\w.-]+", setup.source.split("%pip install --quiet")[1])}
    assert {name.partition(".")[0] for name in named} <= installed | set(sys.stdlib_module_names)
    assert path.stat().st_size < 150_000


def test_links() -> None:
    """From [project.urls] alone, wherever the project may live."""
    line = notebooks.links("1.ipynb", {"Repository": "https://github.com/owner/name.git"})
    assert "(https://colab.research.google.com/github/owner/name/blob/main/examples/notebooks/1.ipynb)" in line
    assert "(https://mybinder.org/v2/gh/owner/name/main?labpath=examples/notebooks/1.ipynb)" in line


def test_solutions_fill_the_blanks() -> None:
    """Each class with a blank has its solution, which differs from it in nothing but docstring and blanks."""

    def classes(name: str) -> dict[str, str]:
        cells = code(notebooks.ROOT / notebooks.FOLDER / f"{name}.ipynb")
        found = [(m[1], cell) for cell in cells if (m := re.search(r"^class (\w+)", cell, re.MULTILINE))]
        return {name: re.sub(r'""".*?"""', "", cell) for name, cell in found}

    blanks = {name: cell for name, cell in classes("5_your_own_op").items() if "# BLANK" in cell}
    assert len(blanks) == 4
    solved = classes("solutions")
    for name, cell in blanks.items():
        kept = [line for line in cell.splitlines() if "# BLANK" not in line]
        assert [line for line in solved[name].splitlines() if line in kept] == kept


def test_differences_are_found() -> None:
    def notebook(text: str, *tags: str) -> Any:
        output = notebooks.nbformat.v4.new_output("stream", text=text)
        cell = notebooks.nbformat.v4.new_code_cell("", outputs=[output], metadata={"tags": list(tags)})
        return notebooks.nbformat.v4.new_notebook(cells=[cell])

    kept = "loss 1.2345e-03, 1,437 digits"
    for text, tags, same in (
        ("loss 1.2346e-03, 1,437 digits", (), True),
        ("loss 1.3e-03, 1,437 digits", (), False),
        ("loss 1.3e-03, 1,436 digits", (notebooks.VARIES,), True),
        ("loss 1.2345e-03, 1,437 images", (notebooks.VARIES,), False),
    ):
        assert (notebooks.differences(notebook(kept, *tags), notebook(text, *tags)) == []) == same


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first cell says what to do if pip could not install the package either."""
    setup = code(notebooks.paths()[0])[0]
    assert setup.count("%pip install --quiet") == 1
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        ModuleNotFoundError, match=r"tinygrad_lenet is not installed, .*pip install -e '\.\[notebooks\]'"
    ):
        exec(re.sub(r"%pip .*", "pass", setup), {})
    assert "notebooks" in PROJECT["optional-dependencies"]
