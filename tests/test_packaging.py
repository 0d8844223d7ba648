"""A wheel holds the package and nothing beside it, an sdist all that it takes to build and test it; both work alone."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import textwrap
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

import tinygrad_lenet

ROOT = Path(__file__).resolve().parents[1]
STAND_IN = Path("tinygrad_lenet/models/__init__.py")  # for the folder `models`, in a checkout
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def committed() -> list[Path]:
    """The files of the checkout that git knows."""
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode or not done.stdout:
        pytest.skip("this is no git checkout")
    return [path for name in done.stdout.split("\0")[:-1] if (ROOT / (path := Path(name))).is_file()]


def build(kind: str, source: Path, out: Path) -> Path:
    """Build a wheel or an sdist as pip does, but with the setuptools that is here."""
    code = f"import sys; from setuptools import build_meta; build_meta.build_{kind}(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", code, out], cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (built,) = out.iterdir()
    return built


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An sdist of what is committed, unpacked, and a wheel of that sdist, unpacked as pip does."""
    try:
        old = int(metadata.version("setuptools").partition(".")[0]) < 77
    except metadata.PackageNotFoundError:
        old = True
    if old:
        pytest.skip("setuptools is not installed, or older than pyproject.toml asks for")
    folder = tmp_path_factory.mktemp("packaging")
    for path in committed():
        (folder / "checkout" / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, folder / "checkout" / path)
    for name in ("sdists", "wheels"):
        (folder / name).mkdir()
    with tarfile.open(build("sdist", folder / "checkout", folder / "sdists")) as archive:
        archive.extractall(folder / "sdist", filter="data")
    (sdist,) = (folder / "sdist").iterdir()
    with zipfile.ZipFile(build("wheel", sdist, folder / "wheels")) as archive:
        archive.extractall(folder / "installed")
    return sdist, folder / "installed"


def python(code: str, *arguments: object, cwd: Path, path: Path) -> str:
    """What a new process prints that finds its modules in ``cwd`` and ``path``; its warnings are errors."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *map(str, arguments)],
        cwd=cwd, env=os.environ | {"PYTHONPATH": str(path)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def files(folder: Path) -> set[Path]:
    return {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}


def test_sdist_is_the_whole_checkout(built: tuple[Path, Path]) -> None:
    assert set(committed()) - files(built[0]) == set()


def test_wheel_is_the_package_alone(built: tuple[Path, Path]) -> None:
    """No top-level `models`, which would be in the way of everybody else's, and no file forgotten that is no Python."""
    expected = {path for path in committed() if path.parts[0] == "tinygrad_lenet" and path != STAND_IN}
    expected |= {Path("tinygrad_lenet") / path for path in committed() if path.parts[0] == "models"}
    assert {path for path in files(built[1]) if ".dist-info" not in path.parts[0]} == expected
    (about,) = metadata.distributions(name="tinygrad_lenet", path=[str(built[1])])
    assert about.version == tinygrad_lenet.__version__
    assert set(about.metadata.get_all("Provides-Extra")) == set(PROJECT["optional-dependencies"])


OF_OTHERS = "class LeNet5: pass"
TRAIN_SAVE_LOAD = """
import sys
sys.modules["safetensors"] = None
import models
import numpy as np
import tinygrad_lenet
from tinygrad_lenet import Tensor, checkpoint, data, functional as F, optim
from tinygrad_lenet.models import LeNet5, LeNet5_1998

assert not issubclass(models.LeNet5, LeNet5)
images, labels = data.digits("train")
model = LeNet5(rng=0)
optimizer = optim.Adam(model.parameters(), lr=0.01)
F.cross_entropy(model(Tensor(data.to_input(images[:32]))), labels[:32]).backward()
optimizer.step()
checkpoint.save("model.safetensors", model.state_dict())
other = tinygrad_lenet.models.LeNet5(rng=1)
other.load_state_dict(checkpoint.load("model.safetensors")[0])
for a, b in zip(model.parameters(), other.parameters(), strict=True):
    np.testing.assert_array_equal(a.numpy(), b.numpy())
print(tinygrad_lenet.models.__file__, LeNet5.__module__)
"""


@pytest.mark.parametrize("kind", ["installed", "checkout"])
def test_anywhere(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Train, save and load with NumPy alone, in a folder where somebody else has a module called models."""
    path = request.getfixturevalue("built")[1] if kind == "installed" else ROOT
    place = path / "tinygrad_lenet" / "models" if kind == "installed" else path / "models"
    (tmp_path / "models.py").write_text(OF_OTHERS)
    printed = python(TRAIN_SAVE_LOAD, cwd=tmp_path, path=path)
    assert printed.split() == [str(place / "__init__.py"), "tinygrad_lenet.models.lenet5"]


@pytest.mark.parametrize("first", ["models", "models.lenet5_1998", "tinygrad_lenet", "tinygrad_lenet.models.lenet5"])
def test_one_module_under_two_names(first: str, tmp_path: Path) -> None:
    """In a checkout, whichever is imported first, and for each of its files."""
    names = [f".{path.stem}" for path in (ROOT / "models").glob("[!_]*.py")]
    assert ".lenet5" in names
    code = f"""
import importlib, sys
importlib.import_module(sys.argv[1])
for name in {["", *names]}:
    assert importlib.import_module("models" + name) is importlib.import_module("tinygrad_lenet.models" + name), name
"""
    python(code, first, cwd=tmp_path, path=ROOT)


def test_commands_that_install() -> None:
    """The package's messages name other packages than itself, which may not be installed; programs name extras."""
    text = {
        folder: "".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / folder).rglob("*.py")))
        for folder in ("tinygrad_lenet", "examples")
    }
    packages = re.findall(r'pip install "?([\w.-]+)', text["tinygrad_lenet"])
    assert "pooch" in packages
    assert "tinygrad_lenet" not in packages
    extras = re.findall(r'pip install -e "\.\[(\w+)\]"', text["examples"] + (ROOT / "README.md").read_text("utf-8"))
    assert {"example", "test"} <= set(extras) <= set(PROJECT["optional-dependencies"])


@pytest.mark.parametrize(("system", "place"), [("Linux", "bin"), ("macOS", "bin"), ("Windows", "Scripts")])
def test_workflow(system: str, place: str, tmp_path: Path) -> None:
    """It runs the first two shell blocks of a README, with Windows' names there, and on the Pythons that we name."""
    workflow = (ROOT / ".github" / "workflows" / "tests.yml").read_text(encoding="utf-8")
    (pythons,) = re.findall(r"python: \[(.+)\]", workflow)
    named = re.findall(r"Python :: (\d\.\d+)", "\n".join(PROJECT["classifiers"]))
    assert re.findall(r"[\d.]+", pythons) == named
    assert PROJECT["requires-python"] == f">={named[0]}"
    (script,) = re.findall(r"shell: bash\n +run: \|\n((?: {10}.*\n)+)", workflow)
    blocks = "".join(f"```sh\necho {n} .venv/bin/python\n```\n" for n in "123")
    (tmp_path / "README.md").write_text(f"```python\n0\n```\n{blocks}", encoding="utf-8")
    done = subprocess.run(
        ["bash", "-eo", "pipefail", "-c", textwrap.dedent(script)],
        cwd=tmp_path, env=os.environ | {"RUNNER_OS": system}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert [line for line in done.stdout.splitlines() if "echo" not in line] == [
        f"{n} .venv/{place}/python" for n in "12"
    ]
