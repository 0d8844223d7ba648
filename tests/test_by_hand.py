"""The formulas of `examples/by_hand.py`: on numbers a person can check, against the framework, and as a program."""

# I and O are what the formulas call the input and the output of a layer:
# ruff: noqa: E741

import math
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from examples import by_hand
from tests.refusals import refused
from tinygrad_lenet import Tensor, grad, nn

ROOT = Path(__file__).parents[1]
COMMAND = [sys.executable, "-m", "examples.by_hand"]
DIFFERENCE = re.compile(r"largest difference(?: of ([\d,]+))?: (\S+) of the largest value")


def program(*words: object) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([*COMMAND, *map(str, words)], cwd=ROOT, capture_output=True, text=True, timeout=60)


@pytest.fixture(scope="module")
def walk() -> tuple[list[by_hand.Check], by_hand.Values, by_hand.Values]:
    """A random image that looks like nothing, through another network: the checks and both walks."""
    image = np.random.default_rng(5).normal(size=(32, 32))
    y = np.eye(10)[3]
    network = by_hand.Network(seed=5)
    hand, framework = by_hand.walk_by_hand(network, image, y), by_hand.walk_by_framework(network, image, y)
    return by_hand.check_all(3, hand, framework), hand, framework


# Numbers that a person can check. dnet of 1, 10, 100, 1000 says by its digits which window or unit sent what.

KERNEL = {(0, 0): [[1.0, 2.0], [3.0, 4.0]]}
IMAGE = [[[1.0, 0.0, 2.0], [0.0, 1.0, 0.0], [3.0, 0.0, 1.0]]]
DNET = [[[1.0, 10.0], [100.0, 1000.0]]]
TABLE = {(0, 0): [[2.0]], (0, 1): [[3.0]], (1, 1): [[5.0]]}  # 1 x 1 kernels: map 0 sees both inputs, map 1 the second
WINDOWS = [[[1.0, 2.0], [3.0, 4.0]], [[0.0, 0.0], [0.0, 1.0]]]
FULL = [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]  # [i][j]
tanh = math.tanh


@pytest.mark.parametrize(
    ("formula", "arguments", "expected"),
    [
        (by_hand.conv, (KERNEL, [0.5], IMAGE), [[[tanh(5.5), tanh(7.5)], [tanh(11.5), tanh(5.5)]]]),
        (by_hand.conv_input_gradient, (KERNEL, DNET, (1, 3, 3)), [[[1, 12, 20], [103, 1234, 2040], [300, 3400, 4000]]]),
        (by_hand.conv_weight_gradient, ([(0, 0)], DNET, IMAGE), {(0, 0): [[1001, 120], [310, 1001]]}),
        (by_hand.map_bias_gradient, (DNET,), [1111]),
        # The notes have one window of the four: of the 1234 for the pixel in the middle, one digit for each p and q.
        (by_hand.notes_conv_input_gradient, (KERNEL, DNET, 0, 1, 1, 0, 0), 1000),
        (by_hand.notes_conv_input_gradient, (KERNEL, DNET, 0, 1, 0, 0, 1), 200),
        (by_hand.notes_conv_input_gradient, (KERNEL, DNET, 0, 0, 1, 1, 0), 30),
        (by_hand.notes_conv_input_gradient, (KERNEL, DNET, 0, 0, 0, 1, 1), 4),
        (by_hand.notes_conv_input_gradient, (KERNEL, DNET, 0, 0, 0, 0, 0), 1),
        (by_hand.conv, (TABLE, [0.0, 0.0], [[[0.1]], [[0.01]]]), [[[tanh(0.2 + 0.03)]], [[tanh(0.05)]]]),
        (by_hand.conv_input_gradient, (TABLE, [[[1.0]], [[10.0]]], (2, 1, 1)), [[[2]], [[3 + 50]]]),
        (
            by_hand.conv_weight_gradient, (TABLE, [[[1.0]], [[10.0]]], [[[7.0]], [[8.0]]]),
            {(0, 0): [[7]], (0, 1): [[8]], (1, 1): [[80]]},
        ),
        (by_hand.subsample, ([0.1, 2.0], [0.5, -1.0], WINDOWS), [[[tanh(1.5)]], [[tanh(1.0)]]]),
        (
            by_hand.subsample_input_gradient, ([0.5, 2.0], [[[3.0]], [[5.0]]]),
            [[[1.5, 1.5], [1.5, 1.5]], [[10, 10], [10, 10]]],
        ),
        (by_hand.subsample_weight_gradient, ([[[3.0]], [[5.0]]], WINDOWS), [30, 5]),
        (by_hand.average, (WINDOWS,), [[[2.5]], [[0.25]]]),
        (by_hand.average_input_gradient, ([[[3.0]]],), [[[0.75, 0.75], [0.75, 0.75]]]),
        (by_hand.full_net, (FULL, [0.5, 0.0, -1.0], [1.0, 10.0]), [41.5, 52, 62]),
        (by_hand.full, ([[0.1], [0.2]], [0.3], [1.0, 2.0]), [tanh(0.3 + 0.1 + 0.4)]),
        (by_hand.full_input_gradient, (FULL, [1.0, 10.0, 100.0]), [321, 654]),
        (by_hand.full_weight_gradient, ([1.0, 10.0, 100.0], [2.0, 3.0]), [[2, 20, 200], [3, 30, 300]]),
        (by_hand.full_bias_gradient, ([1.0, 10.0, 100.0],), [1, 10, 100]),
        (by_hand.notes_full_weight_gradient, ([1.0, 10.0, 100.0], [2.0, 3.0], 0), 222),
        (by_hand.notes_full_weight_gradient, ([1.0, 10.0, 100.0], [2.0, 3.0], 1), 333),
        (by_hand.sigma_slope, (0.0,), 1),
        (by_hand.maps_through_sigma, ([[[2.0, 4.0]]], [[[0.5, 0.0]]]), [[[1.5, 4.0]]]),
        (by_hand.softmax, ([1000.0, 1000.0],), [0.5, 0.5]),  # e^1000 would overflow
        (by_hand.softmax, ([math.log(3.0), 0.0],), [pytest.approx(0.75), pytest.approx(0.25)]),
        (by_hand.cross_entropy, ([0.75, 0.25], [0.0, 1.0]), pytest.approx(math.log(4))),
        (by_hand.cross_entropy_gradient, ([0.75, 0.25], [0.0, 1.0]), [0.75, -0.75]),
        (by_hand.cross_entropy_gradient, ([0.75, 0.25], [1.0, 1.0]), [0.5, -0.5]),  # 2 O - y
        (by_hand.squared_error_gradient, ([0.75, 0.25], [0.0, 1.0]), [0.28125, -0.28125]),  # 2 (3/4 1/4) 3/4
    ],
)  # fmt: skip
def test_formulas_on_numbers_that_a_person_can_check(
    formula: Callable[..., Any], arguments: tuple[Any, ...], expected: Any
) -> None:
    assert formula(*arguments) == expected


def test_slope_of_sigma() -> None:
    """sigma'(net) from the output, against a difference quotient."""
    for net in (-2.0, -0.3, 0.7):
        quotient = (by_hand.sigma(net + 1e-6) - by_hand.sigma(net - 1e-6)) / 2e-6
        assert by_hand.sigma_slope(by_hand.sigma(net)) == pytest.approx(quotient, rel=1e-8)


# Against the framework


@pytest.mark.parametrize("seed", range(6))
def test_convolution_is_the_frameworks(seed: int) -> None:
    """Kernels that are not square, images that are not, and tables in which a map may see one or all maps."""
    rng = np.random.default_rng(seed)
    count, maps, P, Q = (int(size) for size in rng.integers(1, 4, 4))
    table = [sorted(rng.choice(count, rng.integers(1, count + 1), replace=False).tolist()) for _ in range(maps)]
    pairs = [(k, n) for k, sees in enumerate(table) for n in sees]
    layer = nn.Conv2d(count, maps, (P, Q), connections=table, rng=seed, dtype=np.float64)
    x = Tensor(rng.normal(size=(1, count, P + 2, Q + 3)), requires_grad=True)
    y, dO = layer(x).tanh(), rng.normal(size=(1, maps, 3, 4))
    dI, dW, db = (gradient.numpy() for gradient in grad(y, [x, *layer.parameters()], dO))

    I, W = x.numpy()[0].tolist(), dict(zip(pairs, layer.weight.numpy().tolist(), strict=True))
    O = by_hand.conv(W, by_hand.numbers(layer.bias), I)
    dnet = by_hand.maps_through_sigma(dO[0].tolist(), O)
    for ours, framework in (
        (O, y.numpy()[0]),
        (by_hand.conv_input_gradient(W, dnet, (count, P + 2, Q + 3)), dI[0]),
        (list(by_hand.conv_weight_gradient(pairs, dnet, I).values()), dW),
        (by_hand.map_bias_gradient(dnet), db),
    ):
        np.testing.assert_allclose(np.array(ours), framework, rtol=1e-12, atol=1e-13)


# Through the whole network


def test_every_quantity_agrees(walk: Any) -> None:
    checks, hand, framework = walk
    assert max(check.difference() for check in checks) < 1e-12
    assert all(check.agrees() for check in checks)
    assert by_hand.first_fault(checks) is None
    # Everything that the framework has is compared; what only one side has is for the notes' formulas.
    assert framework.keys() <= hand.keys()
    assert len(checks) == len(framework)
    assert all(np.abs(values).max() > 0 for values in framework.values())  # nothing agrees because it is all 0


def test_the_network_is_the_one_described(walk: Any) -> None:
    network = by_hand.Network(seed=0)
    sizes = {name: sum(p.size for p in getattr(network, name.lower()).parameters()) for name in by_hand.CHAIN}
    assert list(sizes.values()) == [156, 12, 1516, 32, 48120, 10164, 850]
    assert all(parameter.dtype == np.float64 for parameter in network.parameters())
    _, _, framework = walk
    shapes = [framework[f"{name}.O"].shape for name in by_hand.CHAIN]
    assert shapes == [(6, 28, 28), (6, 14, 14), (16, 10, 10), (16, 5, 5), (120,), (84,), (10,)]
    assert all(values.dtype == np.float64 for values in framework.values())


@pytest.mark.parametrize(("layer", "size", "places"), [("C1", 32, 28), ("C3", 14, 10)])
def test_the_notes_input_gradient_differs(walk: Any, layer: str, size: int, places: int) -> None:
    """Wherever more than one window is over a pixel, each (p, q) is a different number, and only their sum is right."""
    _, hand, framework = walk
    gradient = framework[f"{layer}.dI"][0]
    for x, y in ((0, 0), (0, 1), (3, 2), (size // 2, size // 2), (size - 1, size - 1)):
        terms = [
            by_hand.notes_conv_input_gradient(hand[f"{layer}.W"], hand[f"{layer}.dnet"], 0, x - p, y - q, p, q)
            for p in range(5)
            for q in range(5)
            if 0 <= x - p < places and 0 <= y - q < places
        ]
        assert sum(terms) == pytest.approx(gradient[x, y], rel=1e-10)
        assert len(terms) == 1 or min(abs(term - gradient[x, y]) for term in terms) > 1e-4 * np.abs(gradient).max()
        assert (len(terms) == 1) == (x in (0, size - 1) and y in (0, size - 1))


@pytest.mark.parametrize(("layer", "inputs"), [("C5", "flat"), ("F6", "C5.O")])
def test_the_notes_weight_gradient_differs(walk: Any, layer: str, inputs: str) -> None:
    """It has one number for all units, which have different gradients."""
    _, hand, framework = walk
    notes = [by_hand.notes_full_weight_gradient(hand[f"{layer}.dnet"], hand[inputs], i) for i in range(10)]
    right = framework[f"{layer}.dW"][:10]
    assert np.abs(np.array(notes)[:, None] - right).max() > 0.5 * np.abs(right).max()
    np.testing.assert_allclose(notes, right.sum(axis=1))


def test_an_unconnected_pair_would_have_a_gradient(walk: Any) -> None:
    """The formula gives one, which is why the table has to be part of the formula; the framework has no such weight."""
    _, hand, framework = walk
    assert (0, 3) not in by_hand.C3_PAIRS
    assert framework["C3.dW"].shape == (60, 5, 5)
    kernel = by_hand.conv_weight_gradient([(0, 3)], hand["C3.dnet"], hand["S2.O"])[0, 3]
    assert np.abs(kernel).max() > 0.1 * np.abs(framework["C3.dW"]).max()


def test_a_gradient_of_nothing_agrees_with_none() -> None:
    """nan agrees with nothing, 0 with 0, and an array is not stretched to another's shape."""
    block = by_hand.Block("C1", {"a.O": [0.0, 0.0], "b.O": [1.0, math.nan], "c.O": [1.0], "d.O": [1.0, 2.0]}, {})
    block.framework = {"a.O": np.zeros(2), "b.O": np.ones(2), "c.O": np.ones(2), "d.O": np.ones(2)}
    for key in ("a.O", "b.O", "d.O"):
        block.add("forward", key, (0,), "", [])
    assert [check.agrees() for check in block.checks] == [True, False, False]
    with refused(ValueError, "c.O (1,) (2,)"):
        block.add("forward", "c.O", (0,), "", [])


# The program


def test_the_report_has_a_block_for_each_layer() -> None:
    done = program("--digit", 7, "--seed", 3)
    assert (done.returncode, done.stderr) == (0, "")
    title, *parts = re.split(r"={50,}\n(.+)\n={50,}\n", done.stdout)
    assert "test image 7, a " in title
    blocks = dict(zip((part.split(":")[0] for part in parts[::2]), parts[1::2], strict=True))
    assert list(blocks) == ["C1", "S2", "S2 average", "C3", "S4", "C5", "F6", "OUTPUT", "Parameters", "Summary"]
    counts = {"S2 average": 2, "OUTPUT": 9}
    for layer in by_hand.TITLES:
        found = DIFFERENCE.findall(blocks[layer])
        assert len(found) == counts.get(layer, 4)
        assert all(float(difference) < 1e-12 for _, difference in found)
        assert blocks[layer].count(" by hand ") == len(found)
        pairs = re.findall(r"by hand (\S+) +framework (\S+)", blocks[layer])
        assert all(float(a) == pytest.approx(float(b), rel=1e-10, abs=1e-15) for a, b in pairs)
        assert len(pairs) == len(found)
    c1_counts = [count for count, _ in DIFFERENCE.findall(blocks["C1"])]
    assert c1_counts == ["4,704", "1,024", "150", "6"]
    assert "DIFFERENT" not in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= by_hand.WIDTH
    assert done.stdout.isascii()
    assert "35 of 35 agree" in done.stdout


def without_the_sum(W: Any, dnet: Any, shape: Any) -> Any:
    """The notes' formula where p = q = 0 can be, and 0 elsewhere."""
    rows, columns = len(dnet[0]), len(dnet[0][0])
    return by_hand.maps(
        *shape, lambda n, x, y: x < rows and y < columns and by_hand.notes_conv_input_gradient(W, dnet, n, x, y, 0, 0)
    )


def with_a_sum_too_many(dnet: Any, I: Any) -> Any:
    return [[by_hand.notes_full_weight_gradient(dnet, I, i)] * len(dnet) for i in range(len(I))]


def not_quite(formula: Callable[..., Any], factor: float = 1 + 1e-9) -> Callable[..., Any]:
    """The formula, off by a factor."""
    return lambda *arguments: (factor * np.array(formula(*arguments))).tolist()


WRONG: dict[str, tuple[str, Callable[..., Any], str]] = {
    "no sum over windows": ("conv_input_gradient", without_the_sum, "C3, gradient w.r.t. the input"),
    "a sum over units": ("full_weight_gradient", with_a_sum_too_many, "OUTPUT, gradient w.r.t. the weights"),
    "no slope of sigma": ("sigma_slope", lambda O: 1.0, "F6, gradient w.r.t. the input"),
    "no slope in maps": ("maps_through_sigma", lambda dO, O: dO, "S4, gradient w.r.t. the input"),
    "an average that is not": ("average", not_quite(by_hand.average), "S2 average, forward"),
    "coefficients": ("subsample_weight_gradient", not_quite(by_hand.subsample_weight_gradient), "S4, .+ weights"),
    "biases": ("map_bias_gradient", not_quite(by_hand.map_bias_gradient), "S4, gradient w.r.t. the biases"),
    "loss": ("cross_entropy_gradient", not_quite(by_hand.cross_entropy_gradient), "OUTPUT, .+ logits"),
    "an unsure softmax": ("softmax", not_quite(by_hand.softmax), "OUTPUT, forward, softmax"),
    "convolution": ("conv", not_quite(by_hand.conv), "C1, forward"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_formula_is_found(case: str, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """Exit status 1, the report all the same, and a sentence that names where the fault entered."""
    name, formula, place = WRONG[case]
    monkeypatch.setattr(by_hand, name, formula)
    with pytest.raises(SystemExit) as end:
        by_hand.main([])
    assert isinstance(end.value.code, str)  # Python prints it and exits with status 1
    assert re.match(rf"by_hand: {place}: formula and framework differ by \d.+expected at most 1e-10$", end.value.code)
    out = capsys.readouterr().out
    assert "DIFFERENT" in out
    assert "35 of 35" not in out


def test_a_wrong_formula_ends_the_program_with_status_1() -> None:
    code = "from examples import by_hand; by_hand.sigma_slope = lambda O: 1.0; by_hand.main()"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert re.fullmatch(r"by_hand: F6, .+ differ by .+\n", done.stderr)


@pytest.mark.parametrize(("option", "value"), [("--digit", 360), ("--digit", -1), ("--seed", -1)])
def test_bad_input(option: str, value: int) -> None:
    done = program(option, value)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(rf"by_hand: {option} is {value}; expected .+\n", done.stderr)


@pytest.mark.parametrize("words", [["--digit", "seven"], ["--unknown"]])
def test_unreadable_arguments(words: list[str]) -> None:
    done = program(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("usage: python -m examples.by_hand")
