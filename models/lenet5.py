"""LeNet-5 as it is built today: the layers of LeCun et al. (1998) with plain pooling and a softmax output.

================  =============  ===========
layer             output         parameters
================  =============  ===========
input             1 x 32 x 32
C1 convolution    6 x 28 x 28            156
S2 pooling        6 x 14 x 14              0
C3 convolution    16 x 10 x 10         2,416
S4 pooling        16 x 5 x 5               0
C5 convolution    120 x 1 x 1         48,120
F6 full           84                  10,164
OUTPUT full       10                     850
total                                  61,706
================  =============  ===========
"""

from collections.abc import Callable
from pathlib import Path
from typing import Self

import numpy as np

from tinygrad_lenet import Tensor, checkpoint, nn

_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"tanh": nn.Tanh, "sigmoid": nn.Sigmoid, "relu": nn.ReLU}
_POOLS: dict[str, Callable[[int], nn.Module]] = {"avg": nn.AvgPool2d, "max": nn.MaxPool2d}


class LeNet5(nn.Module):
    """Images x[N 1 32 32] -> logits[N 10].

    ``activation`` is "tanh", "sigmoid" or "relu"; ``pool`` is "avg" or "max"; ``dropout`` is the probability to drop a
    unit of C5 or F6; ``batch_norm`` normalises C1 and C3 before their activation. ``rng`` (a NumPy generator or a
    seed) determines the initial weights and the dropped units. ValueError for an unknown activation or pool.

    >>> model = LeNet5(rng=0)
    >>> sum(p.size for p in model.parameters())
    61706
    >>> model(Tensor(np.zeros((2, 1, 32, 32), np.float32))).shape
    (2, 10)
    """

    c1: nn.Conv2d
    s2: nn.Module
    c3: nn.Conv2d
    s4: nn.Module
    c5: nn.Conv2d
    f6: nn.Linear
    output: nn.Linear
    act: nn.Module
    bn1: nn.BatchNorm2d | None
    bn3: nn.BatchNorm2d | None
    drop: nn.Dropout | None

    def __init__(
        self,
        activation: str = "tanh",
        pool: str = "avg",
        dropout: float = 0.0,
        batch_norm: bool = False,
        rng: np.random.Generator | int | None = None,
    ) -> None:
        for name, value, known in (("activation", activation, _ACTIVATIONS), ("pool", pool, _POOLS)):
            if value not in known:
                raise ValueError(f"LeNet5: {name} is {value!r}; expected {' or '.join(map(repr, known))}")
        rng = np.random.default_rng(rng)

        self.c1 = nn.Conv2d(1, 6, kernel_size=5, rng=rng)
        self.s2 = _POOLS[pool](2)
        self.c3 = nn.Conv2d(6, 16, kernel_size=5, rng=rng)
        self.s4 = _POOLS[pool](2)
        self.c5 = nn.Conv2d(16, 120, kernel_size=5, rng=rng)
        self.f6 = nn.Linear(120, 84, rng=rng)
        self.output = nn.Linear(84, 10, rng=rng)

        self.act = _ACTIVATIONS[activation]()
        self.bn1 = nn.BatchNorm2d(6) if batch_norm else None
        self.bn3 = nn.BatchNorm2d(16) if batch_norm else None
        self.drop = nn.Dropout(dropout, rng=rng) if dropout else None

    @classmethod
    def pretrained(cls) -> Self:
        """LeNet5() with the weights that come along, which read 99.29% of MNIST's test images; for `data.to_input`.

        They were trained on distorted digits, in print too, and on pictures of no digit, of which they are unsure:
        the highest probability is near 1 for a digit and near 0.1 for anything else (`examples/make_pretrained.py`).

        >>> from tinygrad_lenet import data
        >>> images, labels = data.digits("test")
        >>> LeNet5.pretrained()(Tensor(data.to_input(images[2:6]))).numpy().argmax(axis=1) == labels[2:6]
        array([ True,  True,  True,  True])
        """
        model = cls(rng=0)
        model.load_state_dict(checkpoint.load(Path(__file__).with_name("weights") / "lenet5.safetensors")[0])
        return model

    def forward(self, x: Tensor) -> Tensor:
        x = self.c1(x)  # (N, 6, 28, 28)
        if self.bn1 is not None:
            x = self.bn1(x)
        x = self.s2(self.act(x))  # (N, 6, 14, 14)

        x = self.c3(x)  # (N, 16, 10, 10)
        if self.bn3 is not None:
            x = self.bn3(x)
        x = self.s4(self.act(x))  # (N, 16, 5, 5)

        x = self.act(self.c5(x))  # (N, 120, 1, 1): the kernel covers the whole map
        x = x.reshape(x.shape[0], 120)
        if self.drop is not None:
            x = self.drop(x)
        x = self.act(self.f6(x))  # (N, 84)
        if self.drop is not None:
            x = self.drop(x)
        return self.output(x)  # (N, 10)
