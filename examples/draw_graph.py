"""Draw the graph that was recorded for a tensor: `python -m examples.draw_graph` draws an expression and LeNet-5.

`draw(tensor, path, names)` is the function behind it; `graph(tensor, names)` gives a figure, which a notebook shows.
Values run downwards; a line carries the shape of what it carries. Along solid lines the gradient comes back up; what is
dashed takes none. The layout is that of Sugiyama, Tagawa and Toda (1981): layers by longest path, few crossings by
barycentres, then places by least squares.
"""

from examples import programs

if __name__ == "__main__":
    programs.begin("matplotlib")

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache
from io import StringIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Polygon
from matplotlib.path import Path as Curve
from matplotlib.textpath import TextPath

from examples.plots import DPI, STYLE, save
from models import LeNet5
from tinygrad_lenet import Op, Tensor, data, grad
from tinygrad_lenet import functional as F
from tinygrad_lenet.graph import ancestors

LIMIT = 300  # boxes; more would not be readable
LINE, GAP, PITCH = 0.21, 0.22, 0.56  # inches: line of text, least space between boxes, layer to layer
KEY, SMALL = 5.3, 8.5  # the key's width in inches; the smaller size of letters in points
EDGE, DIM = "#303030", "#808080"
LOOKS = {  # of each kind of box: fill, edge, line
    "learned": ("#fbc97f", EDGE, "-"),
    "constant": ("white", DIM, "--"),
    "op": ("#e3eef8", EDGE, "-"),
    "result": ("white", EDGE, "-"),
}
BEHIND = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5}  # of text across a line
Point = tuple[float, float]
Area = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(eq=False)
class Box:
    """An item in the picture: a leaf, an op, the result, or (without text) a bend in a long line."""

    text: list[str]
    kind: str  # "learned", "constant", "op", "result" or "bend"
    sides: "list[Box]" = field(default_factory=list)  # leaves that only this op uses, drawn to its left and right
    labels: list[str] = field(default_factory=list)  # the shapes of these leaves
    layer: int = 0
    x: float = 0.0
    y: float = 0.0

    @property
    def width(self) -> float:
        """Of the box itself, in inches."""
        if self.kind == "bend":
            return 0.0
        return 0.2 + max(letters(text, SMALL if i else 10) for i, text in enumerate(self.text))

    @property
    def height(self) -> float:
        return 0.0 if self.kind == "bend" else LINE * len(self.text) + 0.09

    def reach(self, side: int) -> float:
        """How far the box and its leaves on the left (side 0) or on the right (1) extend from its middle."""
        return self.width / 2 + sum(stem(label) + leaf.width for leaf, label in self.beside(side))

    def beside(self, side: int) -> "list[tuple[Box, str]]":
        return list(zip(self.sides, self.labels, strict=True))[side : side + 1]


@dataclass
class Line:
    """A line from one box to another, perhaps around bends, for a tensor."""

    boxes: list[Box]
    label: str
    gradient: bool


class Graph(Figure):
    """A figure that a notebook shows as it is, in as many dots as there are."""

    @mpl.rc_context(STYLE)
    def _repr_svg_(self) -> str:
        file = StringIO()
        self.savefig(file, format="svg", metadata={"Date": None})
        return file.getvalue()


def draw(
    tensor: Tensor,
    path: str | Path,
    names: Mapping[str, Tensor] | None = None,
    values: bool = False,
    gradients: bool = False,
) -> Path:
    """Write a picture of the graph that made ``tensor`` to ``path`` (.png, .svg or .pdf); returns the path.

    ``names``, such as ``dict(model.named_parameters())``, says what tensors are called. ``values`` adds the value of
    each tensor, or its least and its largest element, and ``gradients`` those of its gradient. ValueError if nothing
    was recorded, if a backward pass has freed the graph, if it has more than 300 boxes, and if gradients are asked for
    of a tensor with several elements.
    """
    return save(graph(tensor, names, values, gradients), Path(path))


@mpl.rc_context(STYLE)
def graph(
    tensor: Tensor, names: Mapping[str, Tensor] | None = None, values: bool = False, gradients: bool = False
) -> Graph:
    """The picture that `draw` writes, as a matplotlib Figure that notebooks show."""
    layers, lines = lay_out(*collect(tensor, names or {}, values, gradients))
    return paint(layers, lines)


# The contents of the picture


def collect(
    tensor: Tensor, names: Mapping[str, Tensor], values: bool = False, gradients: bool = False
) -> tuple[list[Box], list[Line]]:
    """The boxes, inputs before the ops that use them, and the lines between them."""
    if tensor.op is None:
        raise ValueError(
            f"draw: nothing was recorded for this tensor of shape {tensor.shape}; "
            "expected the result of ops on a tensor that requires a gradient, outside no_grad"
        )
    called = {id(named): name for name, named in names.items()}
    order = sort(tensor)
    gy: dict[int, Tensor] = {}
    if gradients:
        if tensor.size != 1:
            raise ValueError(f"draw: the tensor has shape {tensor.shape}; expected one element, which has gradients")
        learned = [y for y in order if y.requires_grad]
        gy = dict(zip(map(id, learned), grad(tensor, learned, create_graph=True), strict=True))  # which keeps the graph
    users: dict[int, int] = {}
    for y in order:
        for x in y.inputs or ():
            users[id(x)] = users.get(id(x), 0) + 1

    boxes: dict[int, Box] = {}
    lines: list[Line] = []
    for y in order:
        if y.op is None:
            kind = "learned" if y.requires_grad else "constant"
            title = [called.get(id(y), "constant" if kind == "constant" else "tensor")]
            boxes[id(y)] = Box(title + numbers(y, values, gy), kind)
            continue
        box = boxes[id(y)] = Box(describe(y) + numbers(y, values, gy), "op")
        inputs = [x for x in y.inputs or () if isinstance(x, Tensor)]
        own = [x for x in inputs if x.op is None and users[id(x)] == 1]
        own = own[1:] if len(own) == len(inputs) else own  # at least one input must come from above
        beside = own if len(own) <= 2 else []
        for x in inputs:
            if any(x is each for each in beside):
                box.sides.append(boxes.pop(id(x)))
                box.labels.append(shape(x))
            else:
                lines.append(Line([boxes[id(x)], box], label(x, called), x.requires_grad))
    end = boxes[0] = Box([called.get(id(tensor), "result")], "result")
    lines.append(Line([boxes[id(tensor)], end], shape(tensor), True))
    return list(boxes.values()), lines


def sort(tensor: Tensor) -> list[Tensor]:
    """All tensors of the graph, inputs before outputs."""
    met: dict[int, Tensor] = {}
    for y in ancestors(tensor):
        for x in (*(y.inputs or ()), y):
            if isinstance(x, Tensor):
                met.setdefault(id(x), x)
    if len(met) > LIMIT:
        raise ValueError(f"draw: the graph has more than {LIMIT} tensors; expected one small enough to read")
    return list(met.values())


def describe(y: Tensor) -> list[str]:
    """The op that made y, with its window and its Python numbers; on the lines below, its settings."""
    op, inputs = y.op, y.inputs or ()
    assert op is not None
    settings: dict[str, Any] = {each.name: getattr(op, each.name) for each in fields(op)} if is_dataclass(op) else {}
    usual = {"stride": settings.get("kernel_size", (1, 1)), "padding": (0, 0), "dilation": (1, 1), "groups": 1}
    usual |= {"output_padding": (0, 0), "keepdims": False, "axis": None}
    window = settings.pop("kernel_size", None) or weight_window(op, inputs)
    title = op.name + (f" {times(window)}" if window else "")
    if any(not isinstance(x, Tensor) for x in inputs):
        title += "(" + ", ".join("·" if isinstance(x, Tensor) else f"{x:.4g}" for x in inputs) + ")"
    others = [setting(name, value) for name, value in settings.items() if usual.get(name, ...) != value]
    return [title, *others]


def numbers(y: Tensor, values: bool, gy: Mapping[int, Tensor]) -> list[str]:
    """What is said of y's value and gradient: each is one number, or its least and its largest element."""
    said = [("=", y)] * values + ([("gradient", gy[id(y)])] if id(y) in gy else [])
    bounds = [(text, sorted({x.numpy().min(), x.numpy().max()}) if x.size else []) for text, x in said]
    return [f"{text} {' to '.join(f'{bound:.3g}' for bound in each) or 'empty'}" for text, each in bounds]


def weight_window(op: Op, inputs: Sequence[Any]) -> tuple[int, int] | None:
    """KH and KW of a convolution's weight[F C KH KW]."""
    return inputs[1].shape[2:] if "KH KW" in op.signature.partition("->")[0] else None


def times(sizes: Sequence[int]) -> str:
    return "×".join(map(str, sizes))


def setting(name: str, value: Any) -> str:
    """A parameter of an op, abbreviated."""
    if value is True:
        return name
    if isinstance(value, tuple) and all(isinstance(each, int) for each in value):
        text = f"{name} {', '.join(map(str, value)) if name in ('axis', 'axes') else times(value) or 'scalar'}"
    else:
        text = f"{name} {value}"
    return text if len(text) <= 32 else text[:31] + "…"


def shape(x: Tensor) -> str:
    return times(x.shape) if x.ndim else "scalar"


def label(x: Tensor, called: Mapping[int, str]) -> str:
    """The label of the line that carries x."""
    return f"{called[id(x)]}  {shape(x)}" if x.op is not None and id(x) in called else shape(x)


# Where everything goes


def lay_out(boxes: list[Box], lines: list[Line]) -> tuple[list[list[Box]], list[Line]]:
    """Give each box a layer and a position; lines that cross a layer get a bend there."""
    for line in lines:  # in the order of the boxes, so the layer of the upper end is final
        line.boxes[1].layer = max(line.boxes[1].layer, line.boxes[0].layer + 1)
    for box in reversed(boxes):  # a box with more users than inputs, such as a leaf, moves down to its first user
        users = [line.boxes[1].layer for line in lines if line.boxes[0] is box]
        if len(users) >= len({line.boxes[0] for line in lines if line.boxes[1] is box}):
            box.layer = min(users, default=box.layer + 1) - 1
    layers: list[list[Box]] = [[] for _ in range(max(box.layer for box in boxes) + 1)]
    for box in boxes:
        layers[box.layer].append(box)
    for line in lines:
        upper, lower = line.boxes
        bends = [Box([], "bend", layer=layer) for layer in range(upper.layer + 1, lower.layer)]
        for bend in bends:
            layers[bend.layer].append(bend)
        line.boxes = [upper, *bends, lower]

    above: dict[Box, list[Box]] = {box: [] for layer in layers for box in layer}
    below: dict[Box, list[Box]] = {box: [] for layer in layers for box in layer}
    for line in lines:
        for upper, lower in pairwise(line.boxes):
            above[lower].append(upper)
            below[upper].append(lower)
    for layer in layers:
        separate(layer, [float(i) for i in range(len(layer))])
    for sweep in range(80):
        neighbours = (above, below)[sweep % 2]
        for layer in layers if sweep % 2 == 0 else reversed(layers):
            wanted = [mean([each.x for each in neighbours[box]], box.x) for box in layer]
            if sweep < 20:  # from here on the order is fixed, and only positions change
                ranked = sorted(range(len(layer)), key=lambda i: wanted[i])
                layer[:], wanted = [layer[i] for i in ranked], [wanted[i] for i in ranked]
            else:
                wanted = [mean([each.x for each in (*above[box], *below[box])], box.x) for box in layer]
            separate(layer, wanted)
    top = 0.0
    for layer in layers:
        height = max(box.height for box in layer)
        for box in layer:
            box.y = top + height / 2
        top += height + PITCH - LINE - 0.09
    return layers, lines


def mean(values: Sequence[float], otherwise: float) -> float:
    return sum(values) / len(values) if values else otherwise


def separate(layer: list[Box], wanted: list[float]) -> None:
    """Put the boxes of a layer, in order and without overlap, as close as possible to where they should be.

    Closest in least squares: once the room taken by the boxes to the left is subtracted, the positions must not
    decrease, a problem that the pool-adjacent-violators algorithm solves.
    """
    offsets = [0.0]
    for left, right in pairwise(layer):
        offsets.append(offsets[-1] + left.reach(1) + GAP + right.reach(0))
    pools: list[tuple[float, int]] = []  # the common position, and how many boxes share it
    for place, offset in zip(wanted, offsets, strict=True):
        pools.append((place - offset, 1))
        while len(pools) > 1 and pools[-2][0] >= pools[-1][0]:
            (b, n), (a, m) = pools.pop(), pools.pop()
            pools.append(((a * m + b * n) / (m + n), m + n))
    flat = [place for place, count in pools for _ in range(count)]
    for box, place, offset in zip(layer, flat, offsets, strict=True):
        box.x = place + offset


# Ink


def paint(layers: list[list[Box]], lines: list[Line]) -> Graph:
    """The figure: as large as it needs to be, with a key below."""
    boxes = [box for layer in layers for box in layer]
    left = min(box.x - box.reach(0) for box in boxes) - 0.2
    right = max(box.x + box.reach(1) for box in boxes) + 0.2
    spare = max(0.0, KEY - (right - left)) / 2
    left, right = left - spare, right + spare
    bottom = max(box.y + box.height / 2 for box in boxes) + 0.75
    figure = Graph((right - left, bottom + 0.15), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(left, right), ylim=(bottom, -0.15))  # in inches, downwards
    axes.set_axis_off()

    curves = route(lines)
    for curve, line in zip(curves, lines, strict=True):
        arrow(axes, curve, line.gradient)
    for box in boxes:
        if box.kind != "bend":
            paint_box(axes, box)
    taken = [extent(box) for box in boxes]
    taken += [(x - 0.03, y - 0.03, x + 0.03, y + 0.03) for curve in curves for x, y in along(curve)]
    taken += [(x - 0.06, y - 0.12, x + 0.06, y) for *_, (x, y) in curves]  # the heads of the arrows
    for i in {(line.boxes[0], line.boxes[-1]): i for i, line in enumerate(lines)}.values():
        taken.append(paint_label(axes, curves[i], lines[i].label, np.array(taken)))  # of x * x's two lines, just one
    paint_key(axes, (left + right) / 2, bottom - 0.3)
    return figure


def route(lines: list[Line]) -> list[list[Point]]:
    """The points that each line runs through; lines that leave or enter a box do so side by side."""
    curves = [[(box.x, box.y) for box in line.boxes] for line in lines]
    for end, neighbour, sign in ((0, 1, 1), (-1, -2, -1)):
        at: dict[Box, list[int]] = {}
        for i, line in enumerate(lines):
            at.setdefault(line.boxes[end], []).append(i)
        for box, own in at.items():
            own.sort(key=lambda i: lines[i].boxes[neighbour].x)
            for rank, i in enumerate(own):
                x = box.x + (rank - (len(own) - 1) / 2) * min(0.3, 0.8 * box.width / len(own))
                curves[i][end] = (x, box.y + sign * box.height / 2)
    return curves


def paint_box(axes: Axes, box: Box) -> None:
    """Draw a box and the leaves beside it."""
    for side, sign in enumerate((-1, 1)):
        for leaf, text in box.beside(side):
            edge = box.x + sign * box.width / 2
            start = edge + sign * stem(text)
            leaf.x, leaf.y = start + sign * leaf.width / 2, box.y
            paint_box(axes, leaf)
            arrow(axes, [(start, box.y), (edge, box.y)], leaf.kind == "learned")
            axes.text((start + edge) / 2, box.y - 0.05, text, ha="center", va="bottom", fontsize=SMALL)
    fill, line, style = LOOKS[box.kind]
    rounding = 0.04 if box.kind == "op" else 0.12
    axes.add_patch(
        FancyBboxPatch(
            (box.x - box.width / 2 + rounding, box.y - box.height / 2 + rounding),
            box.width - 2 * rounding,
            box.height - 2 * rounding,
            boxstyle=f"round,pad={rounding},rounding_size={rounding}",
            facecolor=fill,
            edgecolor=line,
            linestyle=style,
        )
    )
    for i, text in enumerate(box.text):
        y = box.y + (i - (len(box.text) - 1) / 2) * LINE
        axes.text(box.x, y, text, ha="center", va="center_baseline", fontsize=10 if i == 0 else SMALL)


def arrow(axes: Axes, points: list[Point], gradient: bool) -> None:
    """Draw a line through the points: straight if it runs sideways, else vertical at each of them."""
    path, codes = [points[0]], [Curve.MOVETO]
    for (x0, y0), (x1, y1) in pairwise(points):
        middle = (y0 + y1) / 2
        path += [(x0, middle), (x1, middle), (x1, y1)] if y0 != y1 else [(x1, y1)]
        codes += [Curve.CURVE4] * 3 if y0 != y1 else [Curve.LINETO]
    style: dict[str, Any] = {"color": EDGE} if gradient else {"color": DIM, "linestyle": (0, (4, 3))}
    line = FancyArrowPatch(path=Curve(path, codes), arrowstyle="-", linewidth=1.3, shrinkA=0, shrinkB=0, **style)
    axes.add_patch(line)
    (x0, y0), (x1, y1) = path[-2], path[-1]  # the head, pointing along the end of the line
    length = max(((x1 - x0) ** 2 + (y1 - y0) ** 2) ** 0.5, 1e-9)
    dx, dy = 0.1 * (x1 - x0) / length, 0.1 * (y1 - y0) / length
    corners = [(x1, y1), (x1 - dx - 0.4 * dy, y1 - dy + 0.4 * dx), (x1 - dx + 0.4 * dy, y1 - dy - 0.4 * dx)]
    axes.add_patch(Polygon(corners, closed=True, color=style["color"], linewidth=0))


def paint_label(axes: Axes, points: list[Point], text: str, taken: np.ndarray) -> Area:
    """Label a line where there is still room, if there is any; taken[... 4] are the occupied areas."""
    width, height = letters(text, SMALL), 0.15
    middle = (points[0][1] + points[-1][1]) / 2
    places = []
    for x, y in along(points):
        for away in (0.07, 0.12, 0.2):
            cost = away + 0.3 * abs(y - middle)  # near the line, and near its middle
            places += [(cost, x + away, y), (cost + 0.01, x - away - width, y)]
    areas = [(x, y - height / 2, x + width, y + height / 2) for _, x, y in sorted(places)]
    area = next((area for area in areas if not overlap(area, taken)), areas[0])
    axes.text(area[0], (area[1] + area[3]) / 2, text, ha="left", va="center_baseline", fontsize=SMALL, bbox=BEHIND)
    return area


def along(points: list[Point]) -> Iterator[Point]:
    """Points on the curve that `arrow` draws, close to each other."""
    for (x0, y0), (x1, y1) in pairwise(points):
        for t in np.linspace(0, 1, 2 + int(16 * (abs(x1 - x0) + abs(y1 - y0)))):
            yield x0 + (x1 - x0) * t * t * (3 - 2 * t), y0 + (y1 - y0) * t * (1.5 - 1.5 * t + t * t)


def extent(box: Box) -> Area:
    """The area of a box with the leaves beside it."""
    return box.x - box.reach(0), box.y - box.height / 2, box.x + box.reach(1), box.y + box.height / 2


def overlap(a: Area, others: np.ndarray) -> bool:
    left, top, right, bottom = others.T
    return bool(((a[0] < right) & (left < a[2]) & (a[1] < bottom) & (top < a[3])).any())


def paint_key(axes: Axes, middle: float, y: float) -> None:
    """Draw the key, which explains boxes and lines; KEY is its width."""
    x = middle - KEY / 2 + 0.1
    for kind, text in (("learned", "learned"), ("constant", "constant"), ("op", "operation")):
        box = Box([text], kind, y=y)
        box.x = x + box.width / 2
        paint_box(axes, box)
        x += box.width + 0.12
    for gradient, text in ((True, "gradient comes back"), (False, "none")):
        arrow(axes, [(x, y), (x + 0.35, y)], gradient)
        axes.text(x + 0.4, y, text, va="center_baseline", fontsize=SMALL)
        x += 0.4 + letters(text, SMALL) + 0.15


@cache
def letters(text: str, size: float) -> float:
    """The width of a text, in inches."""
    return float(TextPath((0, 0), text, size=size, prop=FontProperties("DejaVu Sans")).get_extents().width) / 72


def stem(text: str) -> float:
    """The length of the line from a leaf to the op beside it, which is labelled ``text``."""
    return letters(text, SMALL) + 0.25


def expression() -> tuple[Tensor, dict[str, Tensor]]:
    """mean(tanh(x w + b)**2), with names for its tensors."""
    rng = np.random.default_rng(0)
    x = Tensor(rng.normal(size=(32, 4)))
    w, b = (Tensor(rng.normal(size=size), requires_grad=True) for size in ((4, 3), (3,)))
    h = (x @ w + b).tanh()
    y = (h * h).mean()
    return y, {"x": x, "w": w, "b": b, "h": h, "y": y}


def lenet5() -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of LeNet-5 on 64 digits, with names for its tensors."""
    images, labels = data.digits("test")
    model = LeNet5(rng=0)
    x = Tensor(data.to_input(images[:64]))
    loss = F.cross_entropy(model(x), labels[:64])
    return loss, {"images": x, "loss": loss, **dict(model.named_parameters())}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m examples.draw_graph",
        description="Draw the graphs of an expression and of LeNet-5's loss.",
        formatter_class=programs.Help,
    )
    parser.add_argument("--out", type=Path, default=Path("runs/graphs"), help="folder for the pictures")
    parser.add_argument("--format", choices=["png", "svg", "pdf"], default="png", help="the pictures' format")
    parser.add_argument("--values", action="store_true", help="show each tensor's value")
    parser.add_argument("--gradients", action="store_true", help="show each tensor's gradient")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for name, (tensor, names) in {"expression": expression(), "lenet5": lenet5()}.items():
        print(draw(tensor, args.out / f"{name}.{args.format}", names, args.values, args.gradients))


if __name__ == "__main__":
    programs.run(main)
