"""docs/pytorch.md: every row of its tables is run, and the two sides of a row give the same."""

import importlib.util
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tinygrad_lenet as tg
from tinygrad_lenet import Tensor, nn, optim
from tinygrad_lenet import functional as F

TEXT = (Path(__file__).parents[1] / "docs" / "pytorch.md").read_text(encoding="utf-8")


def rows(heading: str) -> list[tuple[str, str]]:
    """The code in the first two cells of each row below a heading."""
    section = TEXT.split(f"## {heading}\n")[1].split("\n## ")[0]
    found = re.findall(r"^\| `([^`]+)` \| `([^`]+)` \| .+ \|$", section, re.MULTILINE)
    assert len(found) == section.count("\n| ") - 1  # but the heading
    return found


def values() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        "x": rng.normal(size=(2, 3, 4)).astype(np.float32), "m": rng.normal(size=(2, 3)).astype(np.float32),
        "i": rng.integers(0, 3, (2, 1, 4)), "labels": np.array([0, 3, 1]),
        "logits": rng.normal(size=(3, 4)).astype(np.float32), "ignored": np.array([0, -100, 1]),
    }  # fmt: skip


def ours() -> dict[str, Any]:
    w = Tensor([1.0, -2.0], requires_grad=True)
    w.grad = Tensor([3.0, 4.0])
    p = Tensor([1.0, -2.0], requires_grad=True)
    p.grad = Tensor([3.0, 4.0])
    names = {name: Tensor(array) for name, array in values().items()}
    a = np.random.default_rng(1).normal(size=(2, 3)).astype(np.float32)
    return names | {"a": a, "w": w, "p": p, "np": np, "tg": tg, "Tensor": Tensor, "F": F, "nn": nn, "optim": optim}


def host(y: Any) -> Any:
    return (
        y.numpy(force=True) if type(y).__module__ == "torch" else np.asarray(y.numpy() if isinstance(y, Tensor) else y)
    )


@pytest.mark.parametrize(("there", "here"), rows("PyTorch's names"))
def test_pytorchs_names(there: str, here: str) -> None:
    found = host(eval(here, ours()))
    torch = pytest.importorskip("torch")
    w = torch.tensor([1.0, -2.0], requires_grad=True)
    w.grad = torch.tensor([3.0, 4.0])
    names = {name: torch.tensor(array) for name, array in values().items()} | {"a": ours()["a"], "w": w}
    names |= {"torch": torch, "nn": torch.nn, "F": torch.nn.functional, "optim": torch.optim}
    expected = host(eval(there, names))
    assert (found.shape, found.dtype.kind) == (expected.shape, expected.dtype.kind)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("there", "here"), rows("NumPy's names"))
def test_numpys_names(there: str, here: str) -> None:
    found, expected = host(eval(here, ours())), np.asarray(eval(there, ours()))
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize(("refused", "instead"), rows("What is refused, and what to write"))
def test_what_is_refused(refused: str, instead: str) -> None:
    with pytest.raises((TypeError, ValueError, BufferError)):
        exec(refused, ours())
    exec(instead, ours())


@pytest.mark.parametrize("code", re.findall(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL))
def test_code(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("torch", "safetensors.torch", "onnx"):
        if (name in code) and importlib.util.find_spec(name.partition(".")[0]) is None:
            pytest.skip(f"{name} is not installed")
    monkeypatch.chdir(tmp_path)
    exec(code, {})
