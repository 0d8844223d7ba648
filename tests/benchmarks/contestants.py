"""The contestants: LeNet-5 in each framework, one process each, controlled by lines of JSON.

`tests.benchmarks.lenet5` starts `python -m tests.benchmarks.contestants NAME CORES FOLDER`, writes requests to its
standard input and reads one line of answer to each from its standard output. The process ends when its input does.

All train the same model (tanh, average pooling, 61,706 parameters) in float32 from the same initial weights with the
same Adam, and read the loss of every step. Peers have their images in memory as float32, 32x32, and gather each batch
by index; ours draws its batches like a user's program, from uint8 images of 28x28, which costs more. A framework that
can do the same thing in several ways is measured in the way that is fastest here (`choose`).
"""

import json
import os
import statistics
import sys
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

LR = 0.001
SHAPES = {
    "c1.weight": (6, 1, 5, 5),
    "c3.weight": (16, 6, 5, 5),
    "c5.weight": (120, 16, 5, 5),
    "f6.weight": (84, 120),
    "output.weight": (10, 84),
}


def initial_weights() -> dict[str, Any]:
    """The weights that every contestant starts from, named as in a state_dict: uniform in +-1/sqrt(fan_in)."""
    import numpy as np

    rng = np.random.default_rng(1998)
    weights = {}
    for name, shape in SHAPES.items():
        bound = 1 / np.sqrt(np.prod(shape[1:]))
        weights[name] = rng.uniform(-bound, bound, shape).astype(np.float32)
        weights[name.replace("weight", "bias")] = rng.uniform(-bound, bound, shape[0]).astype(np.float32)
    return weights


class Contestant(ABC):
    """What the measurements need of a framework; all batches are whole."""

    notes: dict[str, str]  # what was chosen, by batch size

    @abstractmethod
    def reset(self, batch: int) -> None:
        """Go back to the initial weights, with a fresh optimiser."""

    @abstractmethod
    def train(self, batch: int, count: int, shuffle: bool = True) -> list[float]:
        """Train on ``count`` images; the loss of each step."""

    @abstractmethod
    def infer(self, batch: int, count: int) -> int:
        """Classify ``count`` test images; return how many are taken for a 0, so that no work can be skipped."""

    @abstractmethod
    def single(self) -> tuple[Callable[[], Any], Callable[[], Any]]:
        """Functions that classify one image and take one training step on it; both return when the work is done."""

    def choose(self, batch: int) -> None:  # noqa: B027 - most have only one way
        """Choose the fastest way to train at this batch size, if there are several."""


class Ours(Contestant):
    """This project, on as many workers as cores, but never more than images in a batch; its steps are replayed."""

    def __init__(self, group: Any, model: Any, replay: bool, images: Any, labels: Any, test_images: Any) -> None:
        from models import LeNet5
        from tinygrad_lenet import jit, parallel

        self.notes = {}
        self.recorded: Callable[[Any], Any] = jit if replay else lambda function: function
        self.gradient, self.answer = self.recorded(_gradient), self.recorded(_answer)
        self.images, self.labels, self.test_images = images, labels, test_images
        alone = LeNet5(rng=0)
        self.teams = {1: (parallel.Group(alone.parameters()), alone), group.size: (group, model)}
        self.loaders: dict[tuple[int, int, bool], Any] = {}

    @classmethod
    def run(cls, cores: int, *data: Any, replay: bool = True) -> None:
        """Fork the workers; the first one answers requests and passes on those that are for all."""
        from models import LeNet5
        from tinygrad_lenet import parallel

        parallel.tune_process()
        model = LeNet5(rng=0)
        parallel.run(lambda group: cls(group, model, replay, *data)._work(group), cores, model.parameters())

    def _work(self, group: Any) -> None:
        if group.rank == 0:
            try:
                serve(self)
            finally:
                group.sum([0] * 4)
            return
        while True:
            kind, *numbers = map(int, group.sum([0] * 4))
            if not kind:
                return
            (self._reset, self._train, self._infer)[kind - 1](*numbers)

    def _tell(self, batch: int, kind: int, *numbers: int) -> None:
        """Have the other workers, where they take part in such a batch, do what this one is about to do."""
        group, _ = self._team(batch)
        if group.size > 1:
            group.sum([kind, batch, *numbers, *[0] * (2 - len(numbers))])

    def _team(self, batch: int) -> tuple[Any, Any]:
        return self.teams[min(batch, max(self.teams))]

    def reset(self, batch: int) -> None:
        self._tell(batch, 1)
        self._reset(batch)

    def _reset(self, batch: int, *_: int) -> None:
        from tinygrad_lenet import optim

        _, model = self._team(batch)
        model.load_state_dict(initial_weights())
        model.train()
        self.optimizer = optim.Adam(model.parameters(), lr=LR)

    def train(self, batch: int, count: int, shuffle: bool = True) -> list[float]:
        self._tell(batch, 2, count, shuffle)
        return self._train(batch, count, shuffle)

    def _train(self, batch: int, count: int, shuffle: int) -> list[float]:
        from tinygrad_lenet import Tensor, data

        group, model = self._team(batch)
        key = (batch, count, bool(shuffle))
        if key not in self.loaders:
            self.loaders[key] = data.DataLoader(
                self.images[:count], self.labels[:count], batch, shuffle=bool(shuffle), share=group.share
            )
        loader, optimizer = self.loaders[key], self.optimizer
        losses: list[float] = []
        for x, y in loader:
            optimizer.zero_grad()
            loss = self.gradient(model, Tensor(x), Tensor(y), loader.drawn)
            losses += group.sum_gradients([loss.item()])
            optimizer.step()
        return losses

    def infer(self, batch: int, count: int) -> int:
        self._tell(batch, 3, count)
        return self._infer(batch, count)

    def _infer(self, batch: int, count: int, *_: int) -> int:
        from tinygrad_lenet import Tensor, data, no_grad

        group, model = self._team(batch)
        model.eval()
        zeros = 0
        images = self.test_images[:count][group.share(count)]
        with no_grad():
            for i in range(0, len(images), batch):
                logits = self.answer(model, Tensor(data.to_input(images[i : i + batch])))
                zeros += int((logits.numpy().argmax(axis=1) == 0).sum())
        model.train()
        return int(group.sum([zeros])[0])

    def single(self) -> tuple[Callable[[], Any], Callable[[], Any]]:
        from tinygrad_lenet import Tensor, data, no_grad
        from tinygrad_lenet import functional as F

        _, model = self.teams[1]
        self._reset(1)
        x, y, optimizer = data.to_input(self.images[:1]), self.labels[:1], self.optimizer

        def forward() -> int:
            with no_grad():
                return int(self.answer(model, Tensor(x)).numpy().argmax())

        @self.recorded
        def learn(x: Tensor, y: Tensor) -> Tensor:
            loss = F.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return loss

        return forward, lambda: float(learn(Tensor(x), Tensor(y)).item())


def _gradient(model: Any, x: Any, y: Any, drawn: int) -> Any:
    """Compute the gradients of a share of a batch; return its part of the mean loss."""
    from tinygrad_lenet import functional as F

    loss = F.cross_entropy(model(x), y, reduction="sum") / drawn
    loss.backward()
    return loss


def _answer(model: Any, x: Any) -> Any:
    return model(x)


class Peer(Contestant):
    """What the peers share: float32 images in memory, and the order of an epoch."""

    def __init__(self, cores: int, images: Any, labels: Any, test_images: Any) -> None:
        import numpy as np

        self.notes = {}
        self.cores = cores
        self.rng = np.random.default_rng(0)
        self.images, self.labels, self.test_images = as_input(images), labels, as_input(test_images)

    def batches(self, batch: int, count: int, shuffle: bool) -> Iterator[Any]:
        """Index arrays, one a step."""
        import numpy as np

        order = np.arange(count)
        if shuffle:
            self.rng.shuffle(order)
        return (order[i : i + batch] for i in range(0, count, batch))

    def fastest(self, ways: dict[str, Callable[[], None]], batch: int) -> str:
        """The fastest, for a few steps, of the ways that the functions switch to."""
        count = batch * max(2, 64 // batch)
        times: dict[str, list[float]] = {name: [] for name in ways}
        for lap in range(5):
            for name, switch in ways.items():
                switch()
                self.reset(batch)
                self.train(batch, count)
                start = time.perf_counter()
                self.train(batch, count)
                if lap:
                    times[name].append(time.perf_counter() - start)
        best = min(ways, key=lambda name: min(times[name]))
        ways[best]()
        self.notes[f"batch {batch}"] = best
        return best


def levels() -> tuple[float, float]:
    """The values of background and foreground, 0 and 255, after our scaling."""
    import numpy as np

    from tinygrad_lenet import data

    x = data.to_input(np.array([0, 255], np.uint8)[:, None, None].repeat(32, 1).repeat(32, 2))
    return float(x[0, 0, 16, 16]), float(x[1, 0, 16, 16])


def as_input(images: Any) -> Any:
    """uint8 (N, 28, 28) as float32 (N, 1, 32, 32)."""
    import numpy as np

    background, foreground = levels()
    x = np.full((len(images), 1, 32, 32), background, np.float32)
    x[:, 0, 2:30, 2:30] += images * np.float32((foreground - background) / 255)
    return x


class Torch(Peer):
    """PyTorch; Adam fused or not, whichever is faster at the batch size."""

    def __init__(self, cores: int, *data: Any, channels_last: bool = False, compiled: bool = False) -> None:
        import torch

        super().__init__(cores, *data)
        torch.set_num_threads(cores)
        self.torch = torch
        self.fused = True
        self.format = torch.channels_last if channels_last else torch.contiguous_format
        self.tensors = tuple(torch.from_numpy(a) for a in (self.images, self.labels, self.test_images))
        self.model = lenet5(torch).to(memory_format=self.format)
        self.logits_of: Any = self.model
        self.loss_of: Any = lambda x, y: torch.nn.functional.cross_entropy(self.model(x), y)
        if compiled:
            torch._dynamo.config.recompile_limit = 64  # static shapes: one program for each batch size
            self.logits_of = torch.compile(self.logits_of, dynamic=False)
            self.loss_of = torch.compile(self.loss_of, dynamic=False)

    def reset(self, batch: int) -> None:
        self.model.load_state_dict({name: self.torch.from_numpy(w) for name, w in initial_weights().items()})
        self.optimizer = self.torch.optim.Adam(self.model.parameters(), lr=LR, fused=self.fused)

    def choose(self, batch: int) -> None:
        def switch(fused: bool) -> None:
            self.fused = fused

        self.fastest({"fused Adam": partial(switch, True), "default Adam": partial(switch, False)}, batch)

    def train(self, batch: int, count: int, shuffle: bool = True) -> list[float]:
        images, labels, _ = self.tensors
        order = self.torch.from_numpy(self.rng.permutation(count)) if shuffle else self.torch.arange(count)
        losses = []
        for i in range(0, count, batch):
            chosen = order[i : i + batch]
            x = images.index_select(0, chosen).contiguous(memory_format=self.format)
            losses.append(self._step(x, labels.index_select(0, chosen)))
        return losses

    def _step(self, x: Any, y: Any) -> float:
        loss = self.loss_of(x, y)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return float(loss.item())

    def infer(self, batch: int, count: int) -> int:
        zeros = 0
        with self.torch.inference_mode():
            for i in range(0, count, batch):
                x = self.tensors[2][i : i + batch].contiguous(memory_format=self.format)
                zeros += int((self.logits_of(x).argmax(1) == 0).sum())
        return zeros

    def single(self) -> tuple[Callable[[], Any], Callable[[], Any]]:
        self.reset(1)
        x = self.tensors[0][:1].contiguous(memory_format=self.format)
        y = self.tensors[1][:1]

        def forward() -> int:
            with self.torch.inference_mode():
                return int(self.logits_of(x).argmax())

        return forward, lambda: self._step(x, y)


def lenet5(torch: Any, activation: str = "tanh") -> Any:
    """The model in PyTorch, with the names of ours."""
    from collections import OrderedDict

    nn = torch.nn
    act = {"tanh": nn.Tanh, "relu": nn.ReLU}[activation]
    return nn.Sequential(
        OrderedDict(
            c1=nn.Conv2d(1, 6, 5),
            t1=act(),
            s2=nn.AvgPool2d(2),
            c3=nn.Conv2d(6, 16, 5),
            t3=act(),
            s4=nn.AvgPool2d(2),
            c5=nn.Conv2d(16, 120, 5),
            t5=act(),
            flat=nn.Flatten(),
            f6=nn.Linear(120, 84),
            t6=act(),
            output=nn.Linear(84, 10),
        )
    )


class Jax(Peer):
    """JAX: a jitted step that gathers its batch and updates in place (donated); N C H W or N H W C.

    Steps are dispatched asynchronously and the losses read at the end, as JAX wants it. C5 is written as the matrix
    product that it is, and pooling as a mean over a reshaped array: both ran faster than the convolution and the
    window reduction.
    """

    def __init__(self, cores: int, *data: Any, platform: str = "cpu") -> None:
        import jax

        jax.config.update("jax_platforms", platform)
        super().__init__(cores, *data)
        self.jax = jax
        self.programs = {last: self._programs(last) for last in (False, True)}
        self._lay_out(False)

    def _lay_out(self, channels_last: bool) -> None:
        self.channels_last = channels_last
        self.step, self.forward = self.programs[channels_last]
        axes = (0, 2, 3, 1) if channels_last else (0, 1, 2, 3)
        put = self.jax.numpy.asarray
        self.tensors = put(self.images.transpose(axes)), put(self.labels), put(self.test_images.transpose(axes))

    def _programs(self, channels_last: bool) -> tuple[Any, Any]:
        jax = self.jax
        jnp = jax.numpy
        axes = ("NHWC", "HWIO", "NHWC") if channels_last else ("NCHW", "OIHW", "NCHW")

        def conv(p: Any, name: str, x: Any) -> Any:
            b = p[f"{name}.bias"]
            y = jax.lax.conv_general_dilated(x, p[f"{name}.weight"], (1, 1), "VALID", dimension_numbers=axes)
            return jnp.tanh(y + (b if channels_last else b[:, None, None]))

        def pool(x: Any) -> Any:
            if channels_last:
                n, h, w, c = x.shape
                return x.reshape(n, h // 2, 2, w // 2, 2, c).mean((2, 4))
            n, c, h, w = x.shape
            return x.reshape(n, c, h // 2, 2, w // 2, 2).mean((3, 5))

        def logits_of(p: Any, x: Any) -> Any:
            x = pool(conv(p, "c1", x))
            x = pool(conv(p, "c3", x))
            w5 = p["c5.weight"]
            w5 = w5.reshape(-1, 120) if channels_last else w5.reshape(120, -1).T
            x = jnp.tanh(x.reshape(len(x), -1) @ w5 + p["c5.bias"])
            x = jnp.tanh(x @ p["f6.weight"].T + p["f6.bias"])
            return x @ p["output.weight"].T + p["output.bias"]

        def loss_of(p: Any, x: Any, y: Any) -> Any:
            logp = jax.nn.log_softmax(logits_of(p, x))
            return -jnp.take_along_axis(logp, y[:, None], 1).mean()

        def step(state: Any, images: Any, labels: Any, chosen: Any) -> Any:
            p, m, v, t = state
            loss, g = jax.value_and_grad(loss_of)(p, images[chosen], labels[chosen])
            t = t + 1
            m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, m, g)
            v = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, v, g)
            a, b = 1 - 0.9**t, 1 - 0.999**t
            p = jax.tree.map(lambda p, m, v: p - LR * (m / a) / (jnp.sqrt(v / b) + 1e-8), p, m, v)
            return (p, m, v, t), loss

        return jax.jit(step, donate_argnums=0), jax.jit(lambda p, x: logits_of(p, x).argmax(1))

    def reset(self, batch: int) -> None:
        put, zeros = self.jax.numpy.array, self.jax.numpy.zeros_like
        p = {
            name: put(w.transpose(2, 3, 1, 0) if self.channels_last and w.ndim == 4 else w)
            for name, w in initial_weights().items()
        }
        tree = self.jax.tree.map
        self.state = (p, tree(zeros, p), tree(zeros, p), put(0.0, "float32"))

    def choose(self, batch: int) -> None:
        ways = {name: partial(self._lay_out, last) for name, last in (("NCHW", False), ("NHWC", True))}
        self.fastest(ways, batch)

    def train(self, batch: int, count: int, shuffle: bool = True) -> list[float]:
        images, labels, _ = self.tensors
        losses = []
        for chosen in self.batches(batch, count, shuffle):
            self.state, loss = self.step(self.state, images, labels, chosen)
            losses.append(loss)
        self.jax.block_until_ready(self.state)
        return [float(loss) for loss in self.jax.device_get(losses)]

    def infer(self, batch: int, count: int) -> int:
        x = self.tensors[2]
        found = [self.forward(self.state[0], x[i : i + batch]) for i in range(0, count, batch)]
        return sum(int((classes == 0).sum()) for classes in self.jax.device_get(found))

    def single(self) -> tuple[Callable[[], Any], Callable[[], Any]]:
        import numpy as np

        self.reset(1)
        x = self.tensors[0][:1]
        images, labels, _ = self.tensors
        first = np.zeros(1, np.int64)

        def step() -> float:
            self.state, loss = self.step(self.state, images, labels, first)
            return float(self.jax.block_until_ready((self.state, loss))[1])

        return lambda: int(self.forward(self.state[0], x)[0]), step


class Slow(Peer):
    """What the two record holders share: NumPy weights, and Adam on each of them."""

    def reset(self, batch: int) -> None:
        import numpy as np

        self.weights = initial_weights()
        self.moments = {name: (np.zeros_like(w), np.zeros_like(w)) for name, w in self.weights.items()}
        self.steps = 0

    @abstractmethod
    def loss_and_gradients(self, x: Any, y: Any) -> tuple[float, dict[str, Any]]:
        """What the subclass computes."""

    @abstractmethod
    def classes(self, x: Any) -> Any:
        """What the subclass computes."""

    def _step(self, x: Any, y: Any) -> float:
        import numpy as np

        loss, gradients = self.loss_and_gradients(x, y)
        self.steps += 1
        a, b = 1 - 0.9**self.steps, 1 - 0.999**self.steps
        for name, g in gradients.items():
            m, v = self.moments[name]
            m += 0.1 * (g - m)
            v += 0.001 * (g * g - v)
            self.weights[name] -= LR / a * m / (np.sqrt(v / b) + 1e-8)
        return loss

    def train(self, batch: int, count: int, shuffle: bool = True) -> list[float]:
        return [self._step(self.images[i], self.labels[i]) for i in self.batches(batch, count, shuffle)]

    def infer(self, batch: int, count: int) -> int:
        parts = (self.classes(self.test_images[i : i + batch]) for i in range(0, count, batch))
        return sum(int((classes == 0).sum()) for classes in parts)

    def single(self) -> tuple[Callable[[], Any], Callable[[], Any]]:
        self.reset(1)
        x, y = self.images[:1], self.labels[:1]
        return lambda: self.classes(x), lambda: self._step(x, y)


class MyGrad(Slow):
    """MyGrad; it has no average pooling, so that is a mean over a reshaped tensor."""

    def __init__(self, cores: int, *data: Any) -> None:
        import mygrad
        from mygrad.nnet.layers import conv_nd
        from mygrad.nnet.losses import softmax_crossentropy

        self.library, self.conv, self.loss_of = mygrad, conv_nd, softmax_crossentropy
        super().__init__(cores, *data)

    def logits(self, w: Any, x: Any) -> Any:
        tanh, n = self.library.tanh, len(x)

        def conv(x: Any, name: str) -> Any:
            return tanh(self.conv(x, w[f"{name}.weight"], stride=1) + w[f"{name}.bias"].reshape(-1, 1, 1))

        x = conv(x, "c1").reshape(n, 6, 14, 2, 14, 2).mean((3, 5))
        x = conv(x, "c3").reshape(n, 16, 5, 2, 5, 2).mean((3, 5))
        x = conv(x, "c5").reshape(n, 120)
        x = tanh(self.library.matmul(x, w["f6.weight"].T) + w["f6.bias"])
        return self.library.matmul(x, w["output.weight"].T) + w["output.bias"]

    def loss_and_gradients(self, x: Any, y: Any) -> tuple[float, dict[str, Any]]:
        w = {name: self.library.tensor(array, copy=False) for name, array in self.weights.items()}
        loss = self.loss_of(self.logits(w, x), y)
        loss.backward()
        return float(loss.data), {name: tensor.grad for name, tensor in w.items()}

    def classes(self, x: Any) -> Any:
        with self.library.no_autodiff:
            w = {name: self.library.tensor(array, copy=False) for name, array in self.weights.items()}
            return self.logits(w, x).data.argmax(1)


class Autograd(Slow):
    """HIPS autograd, with its own convolution; average pooling is a mean over a reshaped array."""

    def __init__(self, cores: int, *data: Any) -> None:
        import autograd.numpy
        from autograd import value_and_grad
        from autograd.scipy.signal import convolve

        self.np, self.convolve = autograd.numpy, convolve
        self.gradients_of = value_and_grad(self._loss)
        super().__init__(cores, *data)

    def logits(self, w: Any, x: Any) -> Any:
        tanh, n = self.np.tanh, len(x)

        def conv(x: Any, name: str) -> Any:
            flipped = w[f"{name}.weight"][:, :, ::-1, ::-1]  # a true convolution flips it back
            y = self.convolve(x, flipped, axes=([2, 3], [2, 3]), dot_axes=([1], [1]), mode="valid")
            return tanh(y + w[f"{name}.bias"].reshape(-1, 1, 1))

        x = self.np.mean(conv(x, "c1").reshape(n, 6, 14, 2, 14, 2), (3, 5))
        x = self.np.mean(conv(x, "c3").reshape(n, 16, 5, 2, 5, 2), (3, 5))
        x = conv(x, "c5").reshape(n, 120)
        x = tanh(self.np.dot(x, w["f6.weight"].T) + w["f6.bias"])
        return self.np.dot(x, w["output.weight"].T) + w["output.bias"]

    def _loss(self, w: Any, x: Any, y: Any) -> Any:
        logits = self.logits(w, x)
        logits = logits - self.np.max(logits, 1, keepdims=True)
        logp = logits - self.np.log(self.np.sum(self.np.exp(logits), 1, keepdims=True))
        return -self.np.mean(logp[self.np.arange(len(y)), y])

    def loss_and_gradients(self, x: Any, y: Any) -> tuple[float, dict[str, Any]]:
        loss, gradients = self.gradients_of(self.weights, x, y)
        return float(loss), gradients

    def classes(self, x: Any) -> Any:
        return self.logits(self.weights, x).argmax(1)


CONTESTANTS: dict[str, tuple[str, Callable[..., Contestant]]] = {  # name: (package, how to make it)
    "ours": ("tinygrad_lenet", Ours),
    "ours-eager": ("tinygrad_lenet", Ours),
    "torch": ("torch", Torch),
    "torch-channels-last": ("torch", partial(Torch, channels_last=True)),
    "torch-compile": ("torch", partial(Torch, compiled=True)),
    "torch-malloc": ("torch", Torch),
    "torch-channels-last-malloc": ("torch", partial(Torch, channels_last=True)),
    "torch-compile-malloc": ("torch", partial(Torch, compiled=True)),
    "jax": ("jax", Jax),
    "mygrad": ("mygrad", MyGrad),
    "autograd": ("autograd", Autograd),
}


def measure(contestant: Contestant, request: dict[str, Any]) -> dict[str, Any]:
    """Do what one request asks for, and only time what it asks about."""
    what, batch, count = request["what"], request.get("batch", 1), request.get("count", 0)
    if what == "losses":  # of steps that are the same for all, in the way that is the fastest
        contestant.choose(batch)
        contestant.reset(batch)
        return {"losses": contestant.train(batch, count, shuffle=False)}
    if what == "train":
        contestant.reset(batch)
        contestant.train(batch, batch * 3)  # compiles, allocates, and starts the optimiser
        start = time.perf_counter()
        losses = contestant.train(batch, count)
        return {"seconds": time.perf_counter() - start, "loss": statistics.fmean(losses)}
    if what == "infer":
        contestant.reset(batch)
        contestant.infer(batch, batch * 2)
        start = time.perf_counter()
        zeros = contestant.infer(batch, count)
        return {"seconds": time.perf_counter() - start, "zeros": zeros}
    if what in ("forward", "step"):
        forward, step = contestant.single()
        work = forward if what == "forward" else step
        times = []
        for i in range(count + count // 10):
            start = time.perf_counter()
            work()
            if i >= count // 10:
                times.append(time.perf_counter() - start)
        return {"seconds": statistics.median(times)}
    raise ValueError(f"unknown request {what!r}")


def serve(contestant: Contestant) -> None:
    """Answer requests until there are no more."""
    answer({"ready": True})
    for line in requests:
        try:
            answer(measure(contestant, json.loads(line)) | {"notes": contestant.notes})
        except Exception as error:
            answer({"error": reason(error)})


def reason(error: BaseException) -> str:
    """One line that says what went wrong."""
    traceback.print_exception(error)  # the whole of it, on standard error
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}"


requests: Any = sys.stdin
_answers: Any = None


def answer(message: dict[str, Any]) -> None:
    """One line for the program that asked."""
    _answers.write(json.dumps(message) + "\n")
    _answers.flush()


def main() -> None:
    global _answers
    name, cores, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    _answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    package, make = CONTESTANTS[name]
    try:
        import_module(package)
        import numpy as np

        data = [np.load(folder / f"{part}.npy") for part in ("images", "labels", "test_images")]
        if make is Ours:
            Ours.run(cores, *data, replay=name == "ours")
        else:
            serve(make(cores, *data))
    except Exception as error:
        answer({"error": reason(error)})


if __name__ == "__main__":
    main()
