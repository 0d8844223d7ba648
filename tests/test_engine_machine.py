"""A machine that grows random graphs and differentiates them, against forward-mode derivatives in plain NumPy.

Reverse mode walks a graph backwards, and its mistakes are about the walk: a node visited twice or too early, a
gradient overwritten, accumulated into shared memory, or kept after the graph was freed. Forward mode has no graph.
Each value here carries its first and second derivative along one fixed direction for each leaf (a dual number),
computed with the value, so the two have nothing in common. They must agree: for each leaf,
<gradient, direction> = <cotangent, tangent of the output>, whatever was built, shared, detached, freed or accumulated.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from tinygrad_lenet import Tensor, grad, no_grad

Tangent = tuple[np.ndarray, np.ndarray]  # first and second derivative of the value along a direction
Tangents = dict[int, Tangent]  # by leaf number, each along that leaf's direction

_SHAPES = st.sampled_from([(), (1,), (3,), (2, 1), (1, 3), (2, 3), (2, 2, 3)])


def _sigmoid(v: np.ndarray) -> tuple[Any, Any, Any]:
    y = 1 / (1 + np.exp(-v))
    return y, y * (1 - y), y * (1 - y) * (1 - 2 * y)


def _tanh(v: np.ndarray) -> tuple[Any, Any, Any]:
    y = np.tanh(v)
    return y, 1 - y**2, -2 * y * (1 - y**2)


# our function; its value, slope and curvature
_FUNCTIONS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[np.ndarray], tuple[Any, Any, Any]]]] = {
    "tanh": (lambda x: x.tanh(), _tanh),
    "sigmoid": (lambda x: x.sigmoid(), _sigmoid),
    "square": (lambda x: x * x, lambda v: (v * v, 2 * v, 2.0)),
    "cube": (lambda x: x**3, lambda v: (v**3, 3 * v**2, 6 * v)),
    "negative": (lambda x: -x, lambda v: (-v, -1.0, 0.0)),
    "affine": (lambda x: 0.5 * x - 1.0, lambda v: (0.5 * v - 1.0, 0.5, 0.0)),
}


@dataclass(eq=False)
class Node:
    """A tensor of the engine with its dual number, and what the engine is to remember of how it was made."""

    tensor: Tensor
    value: np.ndarray
    tangents: Tangents
    parents: tuple["Node", ...] = ()  # as recorded: none for leaves, detached values and what no_grad made
    freed: bool = False
    ancestors: set["Node"] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.ancestors = {self}.union(*(parent.ancestors for parent in self.parents))


class Engine(RuleBasedStateMachine):
    """Rules build expressions; backward and grad() are rules like the others, so they come in any order."""

    nodes = Bundle("nodes")
    leaves = Bundle("leaves")

    def __init__(self) -> None:
        super().__init__()
        self.rng = np.random.default_rng(0)
        self.leaf_nodes: list[Node] = []
        self.directions: list[np.ndarray] = []
        self.expected: list[float | None] = []  # <.grad, direction> of each leaf, None where there is no .grad
        self.everything: list[Node] = []
        self.recording = True

    @initialize(target=leaves, seed=st.integers(0, 2**16))
    def start(self, seed: int) -> Node:
        self.rng = np.random.default_rng(seed)
        return self.leaf((2, 3))

    # Rules that build

    @rule(target=leaves, shape=_SHAPES)
    def leaf(self, shape: tuple[int, ...]) -> Node:
        value, direction = np.asarray(self.rng.uniform(-1, 1, shape)), np.asarray(self.rng.normal(size=shape))
        node = Node(Tensor(value.copy(), requires_grad=True), value, {len(self.leaf_nodes): (direction, 0 * direction)})
        self.leaf_nodes.append(node)
        self.directions.append(direction)
        self.expected.append(None)
        self.everything.append(node)
        return node

    def record(self, compute: Callable[[], Tensor], value: Any, tangents: Tangents, *parents: Node) -> Node:
        """Let the engine compute; compare the value, and keep what the engine should have recorded."""
        if self.recording:
            tensor = compute()
        else:
            with no_grad():
                tensor = compute()
        parents = tuple(parent for parent in parents if parent.tensor.requires_grad and self.recording)
        assert tensor.requires_grad == bool(parents)
        np.testing.assert_allclose(tensor.numpy(), value, rtol=1e-12, atol=1e-12)
        node = Node(tensor, np.asarray(value), tangents if parents else {}, parents)
        self.everything.append(node)
        return node

    def move(self, x: Node, function: Callable[[Any], Any]) -> Node:
        """A linear ``function`` that means the same to tensors and to arrays, so that it moves tangents alike."""
        return self.record(lambda: function(x.tensor), function(x.value), each(x.tangents, function), x)

    @rule(target=nodes, x=leaves)
    def use_leaf(self, x: Node) -> Node:
        return x

    @rule(target=nodes, x=st.one_of(nodes, leaves), name=st.sampled_from(sorted(_FUNCTIONS)))
    def apply(self, x: Node, name: str) -> Node:
        ours, dual = _FUNCTIONS["tanh" if is_large(x) else name]  # repeated squares would overflow
        value, slope, curvature = dual(x.value)
        tangents = {leaf: (slope * t, curvature * t * t + slope * tt) for leaf, (t, tt) in x.tangents.items()}
        return self.record(lambda: ours(x.tensor), value, tangents, x)

    @rule(target=nodes, a=st.one_of(nodes, leaves), b=st.one_of(nodes, leaves), times=st.booleans())
    def combine(self, a: Node, b: Node, times: bool) -> Node:
        """a + b or a * b, broadcast; a is often b, or made from it. What does not broadcast is summed first."""
        try:
            shape = np.broadcast_shapes(a.value.shape, b.value.shape)
        except ValueError:
            b, shape = self.sum(b, None, False), a.value.shape
        if len(shape) > 4 or np.prod(shape) > 200:
            a, b, shape = self.sum(a, None, False), self.sum(b, None, False), ()
        if not times:
            tangents = total(a.tangents, b.tangents, shape)
            return self.record(lambda: a.tensor + b.tensor, a.value + b.value, tangents, a, b)
        if is_large(a) or is_large(b):
            a, b = self.apply(a, "tanh"), self.apply(b, "tanh")
        tangents = total(each(a.tangents, lambda t: t * b.value), each(b.tangents, lambda t: a.value * t), shape)
        for leaf in a.tangents.keys() & b.tangents.keys():  # (ab)'' = a''b + 2 a'b' + ab''
            first, second = tangents[leaf]
            tangents[leaf] = first, second + 2 * a.tangents[leaf][0] * b.tangents[leaf][0]
        return self.record(lambda: a.tensor * b.tensor, a.value * b.value, tangents, a, b)

    def sum(self, x: Node, axis: int | None, keepdims: bool) -> Node:
        return self.move(x, lambda v: v.sum(axis=axis, keepdims=keepdims))

    @rule(target=nodes, x=st.one_of(nodes, leaves), data=st.data(), keepdims=st.booleans())
    def sum_over_an_axis(self, x: Node, data: st.DataObject, keepdims: bool) -> Node:
        return self.sum(x, data.draw(st.sampled_from([None, *range(-x.value.ndim, x.value.ndim)])), keepdims)

    @rule(target=nodes, x=st.one_of(nodes, leaves), data=st.data())
    def reshape(self, x: Node, data: st.DataObject) -> Node:
        shape = x.value.shape
        new = data.draw(st.sampled_from([(-1,), (1, *shape), shape[::-1], (*shape, 1)]))
        return self.move(x, lambda v: v.reshape(new))

    @rule(target=nodes, x=st.one_of(nodes, leaves), data=st.data())
    def getitem(self, x: Node, data: st.DataObject) -> Node:
        """Views (which share memory with x), reversed views, copies with repeated elements, and masks."""
        options: list[Any] = [..., None]
        if x.value.ndim:
            options += [-1, slice(None, None, -1), slice(0, 1), [0, 0, -1], np.arange(len(x.value)) % 2 == 0]
        index = data.draw(st.sampled_from(options))
        return self.move(x, lambda v: v[index])

    @rule(target=nodes, x=nodes)
    def transpose(self, x: Node) -> Node:
        return self.move(x, lambda v: v.T)

    @rule(target=nodes, x=nodes)
    def detach(self, x: Node) -> Node:
        node = Node(x.tensor.detach(), x.value, {})
        self.everything.append(node)
        return node

    @rule()
    def toggle_no_grad(self) -> None:
        """Enter or leave a no_grad block; backward works in both."""
        self.recording = not self.recording

    # Rules that differentiate

    def refused(self, output: Node, call: Callable[[], Any]) -> bool:
        """True if the engine has to refuse, and did, saying why."""
        if output.tensor.requires_grad and not any(node.freed for node in output.ancestors):
            return False
        with pytest.raises(ValueError, match="freed" if output.tensor.requires_grad else "does not require"):
            call()
        return True

    def cotangent(self, output: Node) -> np.ndarray:
        """At random: ones would hide a forgotten factor gy."""
        return np.asarray(self.rng.normal(size=output.value.shape))

    def reached(self, output: Node) -> list[int]:
        return [i for i, node in enumerate(self.leaf_nodes) if node in output.ancestors]

    @rule(output=st.one_of(nodes, leaves), retain=st.booleans(), create=st.booleans(), clip=st.booleans())
    def backward(self, output: Node, retain: bool, create: bool, clip: bool) -> None:
        """Every leaf that leads to the output adds <cotangent, tangent>; the graph goes unless it is retained."""
        cotangent = self.cotangent(output)
        passed = Tensor(cotangent.copy())

        def call() -> None:
            output.tensor.backward(passed, retain_graph=retain, create_graph=create)

        if self.refused(output, call):
            return
        call()
        for i in self.reached(output):
            expected = (self.expected[i] or 0.0) + np.sum(cotangent * output.tangents[i][0])
            self.expected[i] = 0.5 * expected if clip else expected
            if clip:  # in place, as gradient clipping does: nothing else may change
                self.leaf_nodes[i].tensor.grad.data *= 0.5  # type: ignore[union-attr]
        np.testing.assert_array_equal(passed, cotangent)
        if not retain and not create:
            free(output.ancestors)

    @rule(output=st.one_of(nodes, leaves), retain=st.booleans(), data=st.data())
    def grad_of_some_leaves(self, output: Node, retain: bool, data: st.DataObject) -> None:
        """grad() agrees too, touches no .grad (the invariant sees to that), and frees only what it walked."""
        cotangent = self.cotangent(output)
        reached = self.reached(output)
        chosen = data.draw(st.lists(st.sampled_from(reached), min_size=1, unique=True)) if reached else [0]
        targets = [self.leaf_nodes[i] for i in chosen]

        def call() -> tuple[Tensor, ...]:
            return grad(output.tensor, [node.tensor for node in targets], cotangent, create_graph=retain)

        if self.refused(output, call):
            return
        for i, gradient in zip(chosen, call(), strict=True):
            self.compare(gradient, np.sum(cotangent * output.tangents[i][0]), i)
            assert retain or not gradient.requires_grad
        if not retain:
            free({node for node in output.ancestors if node.ancestors.intersection(targets)})

    @rule(output=nodes, last=st.booleans())
    def second_order(self, output: Node, last: bool) -> None:
        """The gradient of <gradient, direction>, along the direction, is the second derivative of forward mode."""
        reached = self.reached(output)
        if not reached or any(node.freed for node in output.ancestors):
            return
        i = reached[-last]
        x, cotangent = self.leaf_nodes[i].tensor, self.cotangent(output)
        (first,) = grad(output.tensor, [x], cotangent, create_graph=True)
        self.compare(first, np.sum(cotangent * output.tangents[i][0]), i)
        kept = [node.tensor.grad for node in self.leaf_nodes]
        x.zero_grad()
        if first.requires_grad:  # if not, the output is linear in x
            (first * self.directions[i]).sum().backward(retain_graph=True)
        second = x.grad if x.grad is not None else Tensor(0 * self.directions[i])
        for node, gradient in zip(self.leaf_nodes, kept, strict=True):
            node.tensor.grad = gradient
        self.compare(second, np.sum(cotangent * output.tangents[i][1]), i)

    @rule(x=leaves)
    def zero_grad(self, x: Node) -> None:
        x.tensor.zero_grad()
        self.expected[self.leaf_nodes.index(x)] = None

    def compare(self, gradient: Tensor, expected: float, i: int) -> None:
        assert gradient.shape == self.directions[i].shape
        found = np.sum(gradient.numpy() * self.directions[i])
        scale = 1 + np.abs(gradient.numpy()).max(initial=0)  # the sum may cancel
        np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-7 * scale)

    # What holds after each rule

    @invariant()
    def gradients_are_those_of_forward_mode(self) -> None:
        for i, (node, expected) in enumerate(zip(self.leaf_nodes, self.expected, strict=True)):
            gradient = node.tensor.grad
            assert (gradient is None) == (expected is None)
            if gradient is not None and expected is not None:
                self.compare(gradient, expected, i)

    @invariant()
    def nothing_was_written_to(self) -> None:
        """No rule changes a value: neither a leaf's nor, through a view, that of anything made from it."""
        for node in self.everything:
            np.testing.assert_allclose(node.tensor.numpy(), node.value, rtol=1e-12, atol=1e-12)

    def teardown(self) -> None:
        for node in self.leaf_nodes:
            node.tensor.grad = None  # with create_graph it may refer to the leaf


def is_large(x: Node) -> bool:
    return np.abs(x.value).max(initial=0) > 30


def each(tangents: Tangents, linear: Callable[[np.ndarray], np.ndarray]) -> Tangents:
    """A linear map of the value, applied to each tangent."""
    return {leaf: (np.asarray(linear(t)), np.asarray(linear(tt))) for leaf, (t, tt) in tangents.items()}


def total(a: Tangents, b: Tangents, shape: tuple[int, ...]) -> Tangents:
    zero = np.zeros(shape)
    pairs = {leaf: (a.get(leaf, (zero, zero)), b.get(leaf, (zero, zero))) for leaf in {**a, **b}}
    return {leaf: (zero + s[0] + t[0], zero + s[1] + t[1]) for leaf, (s, t) in pairs.items()}


def free(nodes: set[Node]) -> None:
    for node in nodes:
        node.freed = bool(node.parents)  # leaves have nothing to free


TestEngine = Engine.TestCase
TestEngine.settings = settings(
    max_examples=max(60, settings().max_examples // 2), stateful_step_count=40, deadline=None
)
