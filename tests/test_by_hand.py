"""`examples/by_hand.py`: every value of every layer is compared, a wrong one is found, and a layer fits on a page."""

from typing import Any

import numpy as np
import pytest

from examples import by_hand
from tests.refusals import refused

PARAMETERS = {"C1": 156, "S2": 12, "C3": 1516, "S4": 32, "C5": 48120, "F6": 10164, "OUTPUT": 850}
CONNECTIONS = {"C1": 122304, "S2": 5880, "C3": 151600, "S4": 2000}  # in the others, as many as parameters


@pytest.fixture(scope="module")
def layers() -> dict[str, by_hand.Layer]:
    """After a random image that looks like nothing, through another network than the program's."""
    return by_hand.by_framework(5, np.random.default_rng(5).normal(size=(32, 32)), label=3)


@pytest.mark.parametrize("name", by_hand.SECTIONS)
def test_a_layer_is_compared_in_full(name: str, layers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[Any, Any]] = []
    monkeypatch.setattr(by_hand, "check", lambda formula, hand, framework: compared.append((hand, framework)))
    layer = layers[name]
    by_hand.SECTIONS[name][1](layer, 3)
    for field in ("O", "dI", "dW", "db"):
        assert any(framework is getattr(layer, field) for _, framework in compared), field
    assert {PARAMETERS[name], CONNECTIONS.get(name, PARAMETERS[name])} <= {n for n, _ in compared if isinstance(n, int)}
    assert len(compared) == {"S2": 8, "F6": 7, "OUTPUT": 11}.get(name, 6)
    for hand, framework in compared:
        assert np.abs(framework).max() > 0  # nothing agrees because it is all 0
        np.testing.assert_allclose(np.array(hand), framework, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("name", by_hand.SECTIONS)
def test_a_layer_fits_on_a_page(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    by_hand.main(["--layer", name, "--digit", "7"])
    lines = capsys.readouterr().out.splitlines()
    assert "In-depth LeNet-5 Tutorial with Detailed Layer-by-Layer Computations" in lines[0]
    assert len(lines) < 40
    assert max(map(len, lines)) <= 80
    assert all(line.isascii() for line in lines)


def test_what_is_compared() -> None:
    """nan agrees with nothing, and an array is not stretched to another's shape."""
    by_hand.check("f", [1.0, 1e8], [1.0, 1e8 + 1e-3])
    for hand, framework in (([np.nan], [1.0]), ([1.0], [np.nan]), ([1.0], [1.0 + 1e-9]), ([1.0], [1.0, 1.0])):
        with refused(AssertionError, "f:"):
            by_hand.check("f", hand, framework)


# What is said of the notes


@pytest.mark.parametrize(("name", "sees"), [("C1", ((0,),) * 6), ("C3", by_hand.TABLE_I)])
def test_the_notes_input_gradient(name: str, sees: Any, layers: Any) -> None:
    """As an instruction it is right; as an equation it is so at the corners alone."""
    layer = layers[name]
    pairs = [(k, n) for k, inputs in enumerate(sees) for n in inputs]
    added, equal = np.zeros_like(layer.I), np.ones(layer.I.shape, bool)
    for i, j in np.ndindex(layer.O[0].shape):
        share = np.zeros((len(layer.I), 5, 5))
        for (k, n), kernel in zip(pairs, layer.W, strict=True):
            share[n] += layer.dnet[k, i, j] * kernel
        place = np.s_[:, i : i + 5, j : j + 5]
        added[place] += share
        equal[place] &= np.isclose(share, layer.dI[place], rtol=1e-6)
    np.testing.assert_allclose(added, layer.dI, rtol=1e-10, atol=1e-15)
    last = len(layer.I[0]) - 1
    assert set(zip(*np.nonzero(equal.all(axis=0)), strict=True)) == {(0, 0), (0, last), (last, 0), (last, last)}


@pytest.mark.parametrize("name", ["C5", "F6"])
def test_the_notes_weight_gradient(name: str, layers: Any) -> None:
    layer = layers[name]
    notes = layer.I * layer.dnet.sum()
    assert np.abs(notes[:, None] - layer.dW).max() > 0.5 * np.abs(layer.dW).max()


def test_pairs_without_a_weight_would_have_a_gradient(layers: Any, capsys: pytest.CaptureFixture[str]) -> None:
    layer = layers["C3"]
    assert 3 not in by_hand.TABLE_I[0]
    assert layer.W.shape == (60, 5, 5)
    by_hand.c3(layer, 3)
    assert f"dL/dW[0,3,0,0] is {(layer.dnet[0] * layer.I[3, :10, :10]).sum():+.4e}." in capsys.readouterr().out


# The program

WRONG: dict[str, tuple[str, Any, str]] = {
    "sigma": ("tanh", lambda net: net, "C1, O[k,i,j]"),
    "no slope": ("Layer.dnet", property(lambda layer: layer.dO), "C1, dL/dI[n,x,y]"),
    "a little off": ("exp", lambda z: 1 + z, "OUTPUT, O[k]"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_formula_is_found(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, formula, place = WRONG[case]
    monkeypatch.setattr(f"examples.by_hand.{name}", formula)
    with pytest.raises(SystemExit) as end:
        by_hand.main([])
    assert str(end.value.code).startswith(f"by_hand: {place}")


def test_all_layers(capsys: pytest.CaptureFixture[str]) -> None:
    by_hand.main(["--seed", "1"])
    assert "60,850" in capsys.readouterr().out.splitlines()[-1]


@pytest.mark.parametrize("words", [["--digit", "360"], ["--digit", "-1"], ["--seed", "-1"]])
def test_bad_input(words: list[str]) -> None:
    with refused(ValueError, " ".join(words)):
        by_hand.main(words)
