"""The order of the files: each imports only what stands above it, so that the package can be read from the top.

The order is DESIGN's table. Imports are read off the source (also those inside functions), not run.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "tinygrad_lenet"
ORDER = (
    "shapes", "backend", "files",
    "anomaly", "tensor", "ops", "kernels", "functional", "nn", "optim", "data", "checkpoint", "parallel",
    "testing", "models",
)  # fmt: skip
OPTIONAL = ("cupy", "hypothesis", "pooch", "safetensors", "threadpoolctl", "tqdm", "torch")
FORBIDDEN = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}

FILES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}


def imports(module: str, tree: ast.Module | None = None) -> list[tuple[int, str]]:
    """(line, full name) of everything that a module imports: of `from a import b`, a.b if that is a module, else a."""
    path = FILES[module]
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    found = []
    for node in ast.walk(tree or ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            name = ".".join([*base, *(node.module or "").split(".")]).strip(".")
            for alias in node.names:
                inner = f"{name}.{alias.name}"
                found.append((node.lineno, inner if inner in FILES else name))
    return found


def rank(module: str) -> int:
    """The place of a module in the order; the package itself comes last, since it imports the others."""
    parts = module.split(".")
    if len(parts) == 1:
        return len(ORDER)
    assert parts[1] in ORDER, f"{module} is new: give it a place in ORDER, and in the design"
    return ORDER.index(parts[1])


def inside(name: str) -> bool:
    return name.partition(".")[0] == PACKAGE.name


def test_the_walk_sees_imports() -> None:
    """The tests below would pass on an empty list."""
    assert "tinygrad_lenet.tensor" in FILES
    assert "tinygrad_lenet.backend" in [name for _, name in imports("tinygrad_lenet.tensor")]
    tree = ast.parse("def f():\n    from ..tensor import Tensor\n    from . import pool\n    import numpy as np")
    assert [name for _, name in imports("tinygrad_lenet.ops.conv", tree)] == [
        "tinygrad_lenet.tensor", "tinygrad_lenet.ops.pool", "numpy",
    ]  # fmt: skip


@pytest.mark.parametrize("module", FILES)
def test_imports_point_upwards(module: str) -> None:
    upward = [
        f"line {line}: {module} imports {name}, which stands below it"
        for line, name in imports(module)
        if inside(name) and rank(name) > rank(module)
    ]
    assert upward == []


def test_no_import_cycles() -> None:
    """Between files, also within one layer; each has to be readable before those that import it."""
    below = {module: {name for _, name in imports(module) if name in FILES and name != module} for module in FILES}
    while free := [module for module, names in below.items() if not names & below.keys()]:
        for module in free:
            del below[module]
    assert not below, f"import cycle among {sorted(below)}"


@pytest.mark.parametrize("module", [name for name in FILES if name.startswith("tinygrad_lenet.ops")])
def test_ops_know_no_array_library(module: str) -> None:
    """An op computes with the namespace that it is handed, so that it runs on every backend."""
    libraries = {name.partition(".")[0] for _, name in imports(module)} & {"numpy", "cupy", "scipy", "torch"}
    assert libraries == set()


@pytest.mark.parametrize("module", FILES)
def test_nothing_is_loaded_by_pickle(module: str) -> None:
    """A pickle runs code as it is read; no file that this package reads may."""
    tree = ast.parse(FILES[module].read_text(encoding="utf-8"))
    assert {name.partition(".")[0] for _, name in imports(module)} & FORBIDDEN == set()
    allowed = [
        node.value.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.keyword)
        and node.arg == "allow_pickle"
        and not (isinstance(node.value, ast.Constant) and node.value.value is False)
    ]
    assert allowed == [], "np.load(allow_pickle=True) is pickle too"


@pytest.mark.parametrize("module", [name for name in FILES if name != "tinygrad_lenet.models"])  # stands for `models`
def test_the_package_does_not_import_what_is_built_on_it(module: str) -> None:
    outside = {name.partition(".")[0] for _, name in imports(module)}
    assert outside & {"models", "examples", "tests", "pytest"} == set()


def test_importing_the_package_needs_only_numpy() -> None:
    """A fresh interpreter that imports the package has loaded none of the optional dependencies."""
    code = f"import sys, tinygrad_lenet; print([name for name in {OPTIONAL!r} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent, check=False
    )
    assert (done.stdout.strip(), done.stderr) == ("[]", "")
