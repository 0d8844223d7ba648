"""LeNet-5 from data to accuracy, in a few seconds: read this first, then `examples/train_lenet5.py`."""

from examples import programs

if __name__ == "__main__":
    programs.begin()

import argparse

from models import LeNet5
from tinygrad_lenet import Tensor, data, no_grad, optim
from tinygrad_lenet import functional as F


def main() -> None:
    argparse.ArgumentParser(prog="python -m examples.first", description=__doc__).parse_args()
    images, labels = data.digits("train")  # uint8 (1437, 28, 28) and int64 (1437,), which come with the package
    model = LeNet5(rng=0)
    optimizer = optim.Adam(model.parameters(), lr=0.002)
    loader = data.DataLoader(images, labels, batch_size=32, seed=0)  # in another order each epoch

    for epoch in range(10):
        total = 0.0
        for x, y in loader:  # x: (32, 1, 32, 32), padded and scaled as the network expects
            loss = F.cross_entropy(model(Tensor(x)), y)
            optimizer.zero_grad()
            loss.backward()  # fills p.grad for each parameter p
            optimizer.step()
            total += loss.item() * len(y)
        print(f"epoch {epoch + 1}: loss {total / len(labels):.3f}")

    test_images, test_labels = data.digits("test")
    with no_grad():
        logits = model.eval()(Tensor(data.to_input(test_images)))  # (360, 10)
    print(f"{(logits.numpy().argmax(axis=1) == test_labels).mean():.1%} of {len(test_labels)} test images read right")


if __name__ == "__main__":
    programs.run(main)
