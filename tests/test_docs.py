"""The site is built without a warning, documents every public name, typesets its formulas and needs no other host."""

import inspect
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

import tinygrad_lenet
from tests.test_types import public

ROOT = Path(__file__).resolve().parents[1]
for needed in ("sphinx", "myst_parser", "furo"):
    pytest.importorskip(needed, reason="the extra [docs] is not installed")


def found(name: str) -> Any:
    """What a dotted name stands for, or None: a class may have taken the place of the file that defines it."""
    value: Any = tinygrad_lenet
    for part in name.split(".")[1:]:
        value = getattr(value, part, None)
    return getattr(value, "__func__", value)  # a class method is bound anew each time


def undocumented(site: Path) -> list[str]:
    """The public names that are found neither by themselves nor, as an alias or inherited, where they are defined."""
    from sphinx.util.inventory import InventoryFile

    inventory = InventoryFile.loads((site / "objects.inv").read_bytes(), uri="").data
    names = {name for kind, names in inventory.items() if kind.startswith("py:") for name in names}
    documented = {id(found(name)) for name in names if name.startswith("tinygrad_lenet")} - {id(None)}
    wanted = [name for name, _ in public()]
    for module in ("tinygrad_lenet", *filter(lambda name: inspect.ismodule(found(name)), wanted)):
        wanted += [f"{module}.{name}" for name in getattr(found(module), "__all__", ())]  # constants, too
    assert {"tinygrad_lenet.nn.Conv2d", "tinygrad_lenet.REAL"} <= set(wanted)
    return [name for name in wanted if name not in names and id(found(name)) not in documented]


def test_site(tmp_path: Path) -> None:
    """In one test, since it is built once. The pages of source code, which take as long as all others, are left out."""
    site = tmp_path / "html"
    build = ["-m", "sphinx", "-W", "--keep-going", "-q", "-d", f"{tmp_path}/cache", "docs", f"{site}"]
    extensions = "extensions=myst_parser,sphinx.ext.autodoc"
    done = subprocess.run(
        [sys.executable, *build, "-D", extensions], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert undocumented(site) == []

    formulas = (site / "background" / "formulas.html").read_text(encoding="utf-8")
    assert formulas.count("<math") > 20
    text = re.sub(r"<(script|style).*?</\1>|<[^>]+>", "", formulas, flags=re.DOTALL)
    assert [line for line in text.splitlines() if "$" in line or "\\" in line] == []

    pages = {path.name: path.read_text(encoding="utf-8") for path in site.rglob("*.html")}
    assert len(pages) > 20
    loads = re.compile(r"<(?:script|img|iframe)\b[^>]*\bsrc=[\"'](?:https?:)?//|<link\b[^>]*\bhref=[\"'](?:https?:)?//")
    assert [name for name, page in pages.items() if loads.search(page)] == []


def test_workflow_builds_the_same_site() -> None:
    """The command of the workflow is that of docs/conf.py, and the extra that it installs exists."""
    workflow = (ROOT / ".github" / "workflows" / "docs.yml").read_text(encoding="utf-8")
    command = re.search(r"`python -m (sphinx -W docs \S+)`", (ROOT / "docs" / "conf.py").read_text(encoding="utf-8"))
    assert command and command[1] in workflow
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert set(re.findall(r"\.\[(\w+)\]", workflow)) == {"docs"} <= set(extras)
