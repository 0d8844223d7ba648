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
    "seeds", "shapes", "backend", "files", "graph", "anomaly", "index", "dlpack", "tensor", "op", "curvature", "ops",
    "kernels", "einsum", "creation", "arrays", "functional", "nn", "optim", "recorded", "plan", "capture", "jit",
    "data", "checkpoint", "interop", "parallel", "testing", "models",
)  # fmt: skip
OPTIONAL = ("cupy", "hypothesis", "mpi4py", "onnx", "pooch", "safetensors", "threadpoolctl", "tqdm", "torch")
ARRAY_LIBRARIES = {"numpy", "cupy", "scipy", "torch"}  # an op computes with the namespace that it is handed
PICKLES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}  # these run code as they read
BUILT_ON_IT = {"models", "examples", "tests", "pytest"}

FILES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}


def imports(module: str, source: str | None = None) -> list[tuple[int, str]]:
    """(line, full name) of everything that a module imports: of `from a import b`, a.b if that is a module, else a."""
    path = FILES[module]
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    found = []
    for node in ast.walk(ast.parse(source or path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            name = ".".join([*base, *(node.module or "").split(".")]).strip(".")
            inner = [f"{name}.{alias.name}" for alias in node.names]
            found += [(node.lineno, each if each in FILES else name) for each in inner]
    return found


def rank(module: str) -> int:
    """The place of a module in the order; the package itself comes last, since it imports the others."""
    parts = module.split(".")
    if len(parts) == 1:
        return len(ORDER)
    assert parts[1] in ORDER, f"{module} is new: give it a place in ORDER, and in the design"
    return ORDER.index(parts[1])


def test_the_walk_sees_imports() -> None:
    """The tests below would pass on an empty list."""
    assert "tinygrad_lenet.backend" in [name for _, name in imports("tinygrad_lenet.tensor")]
    source = "def f():\n    from ..tensor import Tensor\n    from . import pool\n    import numpy as np"
    assert [name for _, name in imports("tinygrad_lenet.ops.conv", source)] == [
        "tinygrad_lenet.tensor", "tinygrad_lenet.ops.pool", "numpy",
    ]  # fmt: skip


def test_contributing_says_what_each_file_is_for() -> None:
    text = (PACKAGE.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
    names = [path.relative_to(PACKAGE).as_posix() for path in FILES.values() if path.name != "__init__.py"]
    assert [name for name in names if f"| `{name}` |" not in text] == []


@pytest.mark.parametrize("module", FILES)
def test_a_file_imports_only_what_it_may(module: str) -> None:
    """Of the package what stands above it; nothing that is built on it, no pickle and, in an op, no array library."""
    forbidden = PICKLES | BUILT_ON_IT | (ARRAY_LIBRARIES if module.startswith("tinygrad_lenet.ops") else set())
    if module == "tinygrad_lenet.models":  # which stands for `models` in a checkout
        forbidden = forbidden - {"models"}
    place = rank(module)
    for line, name in imports(module):
        root = name.partition(".")[0]
        assert root not in forbidden, f"line {line}"
        if root == PACKAGE.name:
            assert rank(name) <= place, f"line {line}: {name} stands below {module}"


@pytest.mark.parametrize("module", FILES)
def test_nothing_is_loaded_by_pickle(module: str) -> None:
    """np.load(allow_pickle=True) is pickle too."""
    for node in ast.walk(ast.parse(FILES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            assert isinstance(node.value, ast.Constant) and node.value.value is False, f"line {node.value.lineno}"


def test_no_import_cycles() -> None:
    """Between files, also within one layer; each has to be readable before those that import it."""
    below = {module: {name for _, name in imports(module) if name in FILES and name != module} for module in FILES}
    while free := [module for module, names in below.items() if not names & below.keys()]:
        for module in free:
            del below[module]
    assert not below, f"import cycle among {sorted(below)}"


@pytest.mark.parametrize(
    ("option", "code"),
    [
        ("-Werror", f"import sys, tinygrad_lenet; assert not [name for name in {OPTIONAL!r} if name in sys.modules]"),
        ("-OO", "import tinygrad_lenet"),  # without docstrings, which ops otherwise have to have
    ],
)
def test_importing_the_package_needs_only_numpy(option: str, code: str) -> None:
    """A fresh interpreter that imports the package loads none of the optional dependencies, and warns of nothing."""
    done = subprocess.run([sys.executable, option, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
