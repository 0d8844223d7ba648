"""The drawing of graphs: what is in a picture, where it stands, and what is refused."""

import sys
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models import LeNet5
from tinygrad_lenet import Tensor, grad, no_grad
from tinygrad_lenet import functional as F

pytest.importorskip("matplotlib", reason="the example's packages are not installed")
from matplotlib.image import imread

from examples import draw_graph
from examples.draw_graph import Line, collect, extent, graph, lay_out


def leaf(*shape: int, requires_grad: bool = True) -> Tensor:
    return Tensor(np.ones(shape, np.float32), requires_grad=requires_grad)


def edges(lines: list[Line]) -> list[tuple[str, str, str, bool]]:
    return [(line.boxes[0].text[0], line.label, line.boxes[-1].text[0], line.gradient) for line in lines]


def written(tensor: Tensor, names: dict[str, Tensor] | None = None) -> list[str]:
    """All that a picture says, without its key."""
    figure = graph(tensor, names)
    figure.canvas.draw()
    return [text.get_text() for text in figure.axes[0].texts][: -len(("learned", "constant", "operation", "yes", "no"))]


# What is in the picture


def test_expression() -> None:
    """Leaves that one op uses stand beside it; everything else is a box and lines, from inputs to the result."""
    boxes, lines = collect(*draw_graph.expression())
    assert [box.text[0] for box in boxes] == ["x", "matmul", "add", "tanh", "multiply", "mean", "y"]
    assert [box.kind for box in boxes] == ["constant", *["op"] * 5, "result"]
    beside = {box.text[0]: [(each.text[0], each.kind) for each in box.sides] for box in boxes if box.sides}
    assert beside == {"matmul": [("w", "learned")], "add": [("b", "learned")]}
    assert [box.labels for box in boxes if box.sides] == [["4×3"], ["3"]]
    assert edges(lines) == [
        ("x", "32×4", "matmul", False),
        ("matmul", "32×3", "add", True),
        ("add", "32×3", "tanh", True),
        ("tanh", "h  32×3", "multiply", True),
        ("tanh", "h  32×3", "multiply", True),
        ("multiply", "32×3", "mean", True),
        ("mean", "scalar", "y", True),
    ]


def test_lenet5() -> None:
    """All parameters, the layers' windows, and the shape of everything that runs between them."""
    loss, names = draw_graph.lenet5()
    words = written(loss, names)
    assert {name for name, _ in LeNet5().named_parameters()} <= set(words)
    ops = [word for word in words if word.split(" ")[0] in {"conv2d", "tanh", "avg_pool2d", "linear", "cross_entropy"}]
    assert ops == [
        "conv2d 5×5", "tanh", "avg_pool2d 2×2", "conv2d 5×5", "tanh", "avg_pool2d 2×2", "conv2d 5×5", "tanh",
        "linear", "tanh", "linear", "cross_entropy",
    ]  # fmt: skip
    assert {"64×1×32×32", "64×6×28×28", "64×6×14×14", "64×16×10×10", "64×16×5×5", "64×120×1×1"} <= set(words)
    assert {"64×120", "64×84", "64×10", "64", "scalar", "16×6×5×5", "84×120"} <= set(words)
    assert words.count("64×6×28×28") == 2  # before and after tanh
    assert "tensor" not in words
    assert words.index("images") < words.index("loss")


def test_settings_of_ops() -> None:
    """Those that are not as usual, in few words."""
    x, w = leaf(1, 2, 9, 9), leaf(4, 1, 3, 3)
    y = F.max_pool2d(F.conv2d(x, w, stride=2, padding=1, groups=2), 3, stride=1).sum((2, 3), keepdims=True)
    assert [box.text for box in collect((2.5 * y).reshape(4), {})[0] if box.kind == "op"] == [
        ["conv2d 3×3", "stride 2×2", "padding 1×1", "groups 2"],
        ["max_pool2d 3×3", "stride 1×1"],
        ["sum", "axis 2, 3", "keepdims"],
        ["multiply(2.5, ·)"],
        ["reshape", "shape 4"],
    ]


def test_shared_leaves_stand_by_themselves() -> None:
    """A leaf that several ops use is drawn once, and an op with many leaves has them above it."""
    w, x = leaf(2, 2), leaf(2, 2, requires_grad=False)
    boxes, lines = collect((w @ x @ w).sum(), {"w": w, "x": x})
    assert [box.text[0] for box in boxes].count("w") == 1
    assert [edge for edge in edges(lines) if edge[0] == "w"] == [("w", "2×2", "matmul", True)] * 2
    many = F.concatenate([leaf(1), leaf(2), leaf(3), leaf(4)], 0)
    assert [box.sides for box in collect(many, {})[0]] == [[]] * 6


def test_second_order() -> None:
    """The graph of a gradient is a graph."""
    x = leaf(3)
    (gx,) = grad((x**3).tanh().sum(), [x], create_graph=True)
    words = written(gx.sum(), {"x": x})
    assert words.count("x") == 1
    assert {"power(·, 3)", "tanh", "tanh_grad", "power(·, 2)", "multiply(3, ·)"} <= set(words)


@pytest.mark.parametrize("gradients", [False, True])
def test_values_and_gradients(gradients: bool) -> None:
    """On request each box says what its tensor holds; and the graph is there afterwards as before."""
    x, w = Tensor(np.array([1.0, 2.0])), Tensor(np.array([3.0, -0.5]), requires_grad=True)
    y = (x * w).sum()
    boxes, _ = collect(y, {"x": x, "w": w, "y": y}, values=True, gradients=gradients)
    said = {box.text[0]: box.text[1:] for box in [*boxes, *(leaf for box in boxes for leaf in box.sides)]}
    assert said["x"] == ["= 1 to 2"]
    assert said["w"] == ["= -0.5 to 3", *(["gradient 1 to 2"] if gradients else [])]
    assert said["multiply"] == ["= -1 to 3", *(["gradient 1"] if gradients else [])]
    assert said["sum"] == ["= 2", *(["gradient 1"] if gradients else [])]
    well_placed(y)
    y.backward()
    np.testing.assert_array_equal(w.grad, x)


def test_a_notebook_shows_it() -> None:
    y = leaf(2).tanh()
    svg = graph(y)._repr_svg_()
    assert svg.startswith("<?xml")
    assert "</svg>" in svg
    assert svg == graph(y)._repr_svg_()


# Where it stands


def well_placed(tensor: Tensor) -> None:
    """AssertionError if boxes overlap, a line runs upwards or within a layer, or a label stands on another."""
    boxes, lines = collect(tensor, {})
    layers, lines = lay_out(boxes, lines)
    placed = [box for layer in layers for box in layer if box.kind != "bend"]
    assert sorted(map(id, placed)) == sorted(map(id, boxes))
    for a, b in combinations(map(extent, placed), 2):
        assert min(a[2], b[2]) - max(a[0], b[0]) <= 1e-6 or min(a[3], b[3]) - max(a[1], b[1]) <= 1e-6
    for line in lines:
        assert all(lower.layer == upper.layer + 1 for upper, lower in pairwise(line.boxes))
        assert all(lower.y > upper.y for upper, lower in pairwise(line.boxes))
        assert all(box.kind == "bend" for box in line.boxes[1:-1])
    for line, curve in zip(lines, draw_graph.route(lines), strict=True):
        for end, (x, y) in ((0, curve[0]), (-1, curve[-1])):
            box = line.boxes[end]
            assert abs(x - box.x) < box.width / 2
            assert abs(y - box.y) == pytest.approx(box.height / 2)


def random_graph(seed: int) -> Tensor:
    """An expression of some forty ops on values that are used again and again."""
    rng = np.random.default_rng(seed)
    values = [leaf(2, 2, requires_grad=bool(i)) for i in range(3)]
    for _ in range(int(rng.integers(3, 40))):
        a, b = (values[max(0, len(values) - 1 - int(rng.geometric(0.3)))] for _ in range(2))
        values.append((a + b, a @ b, a.tanh(), 2.0 * a, F.concatenate([a, b, values[1]], 0)[:2])[rng.integers(5)])
    return sum(values[3:], values[2]).sum()


@pytest.mark.parametrize("seed", range(12))
def test_nothing_overlaps(seed: int) -> None:
    well_placed(random_graph(seed))


def test_known_graphs_are_well_placed() -> None:
    for tensor, _ in (draw_graph.expression(), draw_graph.lenet5()):
        well_placed(tensor)
    model = LeNet5(activation="relu", pool="max", dropout=0.2, batch_norm=True, rng=0)
    well_placed(F.cross_entropy(model(leaf(2, 1, 32, 32)), np.array([1, 2])))


def test_a_leaf_stands_next_to_its_first_user() -> None:
    x, late = leaf(2, 2), leaf(2, 2)
    y = x.tanh().exp().tanh().exp() + late * late
    boxes, lines = collect(y, {"x": x, "late": late})
    lay_out(boxes, lines)
    layer = {box.text[0]: box.layer for box in boxes}
    assert (layer["x"], layer["late"], layer["multiply"], layer["add"]) == (0, 3, 4, 5)


@pytest.mark.parametrize("case", ["expression", "lenet5", "random"])
def test_legible(case: str) -> None:
    """All letters are within the picture, none on others, and those of a box within it."""
    tensor, names = getattr(draw_graph, case)() if case != "random" else (random_graph(4), {})
    figure = graph(tensor, names)
    figure.canvas.draw()
    texts = figure.axes[0].texts
    assert min(text.get_fontsize() for text in texts) >= 8.5
    frames = [text.get_window_extent() for text in texts]
    assert all(f.x0 >= 0 and f.x1 <= figure.bbox.width and f.y0 >= 0 and f.y1 <= figure.bbox.height for f in frames)
    overlaps = [
        (a.get_text(), b.get_text())
        for (a, f), (b, g) in combinations(zip(texts, frames, strict=True), 2)
        if min(f.x1, g.x1) - max(f.x0, g.x0) > 2 and min(f.y1, g.y1) - max(f.y0, g.y0) > 3
    ]
    assert len(overlaps) <= (2 if case == "random" else 0), overlaps  # where many lines meet, letters may touch


def test_two_lines_for_one_tensor_used_twice() -> None:
    x = leaf(2)
    y = x.exp()
    _, lines = lay_out(*collect((y * y).sum(), {}))
    first, second = (curve for curve, line in zip(draw_graph.route(lines), lines, strict=True)
                     if line.boxes[-1].text == ["multiply"])  # fmt: skip
    assert abs(first[0][0] - second[0][0]) > 0.1
    assert abs(first[-1][0] - second[-1][0]) > 0.1
    assert written((y * y).sum()).count("2") == 3  # x, y (once) and the product


# Files and errors


def test_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """`python -m examples.draw_graph` draws both, and the same bytes each time."""
    for folder in ("a/b", "c"):
        monkeypatch.setattr(sys, "argv", ["draw_graph", "--out", str(tmp_path / folder)])
        draw_graph.main()
    first, second = tmp_path / "a" / "b", tmp_path / "c"
    assert capsys.readouterr().out.split() == [str(f / n) for f in (first, second) for n in PICTURES]
    for name in PICTURES:
        assert (first / name).read_bytes() == (second / name).read_bytes()
        assert (first / name).stat().st_size < 160_000
        image = imread(first / name)
        assert 600 < image.shape[1] < 1200
        assert np.allclose(image[[0, -1]], 1)  # nothing reaches the picture's edge
        assert np.allclose(image[:, [0, -1]], 1)


PICTURES = ("expression.png", "lenet5.png")


def test_svg(tmp_path: Path) -> None:
    paths = [draw_graph.draw(leaf(2).tanh(), path) for path in (tmp_path / "a.svg", str(tmp_path / "b.svg"))]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert b"<dc:date>" not in paths[0].read_bytes()


def freed() -> Tensor:
    y = (leaf(2) * 2.0).sum()
    y.backward()
    return y


def unrecorded() -> Tensor:
    with no_grad():
        return leaf(2).tanh()


def deep() -> Tensor:
    x = leaf(1)
    for _ in range(20_000):
        x = x + 1.0
    return x


REFUSED: dict[str, Any] = {
    "leaf": (lambda: leaf(2, 3), r"nothing was recorded for this tensor of shape \(2, 3\); expected .+"),
    "no_grad": (unrecorded, "nothing was recorded for this tensor"),
    "no gradient": (lambda: leaf(2, requires_grad=False).tanh(), "nothing was recorded for this tensor"),
    "freed": (freed, "the graph through sum has been freed .+ retain_graph=True"),
    "deep": (deep, "the graph has more than 300 tensors"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str, tmp_path: Path) -> None:
    """A sentence, and no file."""
    make, sentence = REFUSED[case]
    with pytest.raises(ValueError, match=f"^(draw|backward): {sentence}"):
        draw_graph.draw(make(), tmp_path / "graph.png")
    assert not list(tmp_path.iterdir())
