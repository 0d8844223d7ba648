"""PyTorch's counterpart of `examples.train_lenet5`, flat: `python -m tests.benchmarks.torch_train --data-dir DIR`.

The same model, images, one-cycle schedule, optimiser and test; for time from a cold start, and for memory. With
`--images float32` all images are converted before training, which is the fastest; with `uint8` each batch is, which
takes the least memory.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np

from tinygrad_lenet import data

from .contestants import lenet5, levels


def main() -> None:
    start = time.perf_counter()
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.torch_train", description=__doc__.split("\n")[0])
    parser.add_argument("--dataset", choices=["mnist", "idx"], default="mnist", help="what the folder holds")
    parser.add_argument("--data-dir", type=Path, required=True, help="folder with IDX files")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=0.004, help="the highest learning rate of the one-cycle schedule")
    parser.add_argument("--model", choices=["lenet5", "lenet5-relu"], default="lenet5", help="tanh or ReLU")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images", choices=["float32", "uint8"], default="float32", help="how they wait in memory")
    args = parser.parse_args()

    import torch

    F = torch.nn.functional
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)

    background, foreground = levels()

    def to_input(images: Any) -> Any:
        """uint8 (N, 28, 28) -> float32 (N, 1, 32, 32), with the levels of ours."""
        x = images.float().mul_((foreground - background) / 255).add_(background)
        return F.pad(x, (2, 2, 2, 2), value=background).unsqueeze(1)

    def load(split: str) -> tuple[Any, Any]:
        images, labels = getattr(data, args.dataset)(args.data_dir, split)
        return torch.from_numpy(np.ascontiguousarray(images)), torch.from_numpy(labels)

    images, labels = load("train")
    test_images, test_labels = load("test")
    if args.images == "float32":
        images = to_input(images)
    model = lenet5(torch, "relu" if args.model == "lenet5-relu" else "tanh")
    steps = -(-len(images) // args.batch_size) * args.epochs
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, total_steps=steps + 1, cycle_momentum=False)

    for epoch in range(args.epochs):
        total_loss = 0.0
        for chosen in torch.randperm(len(images)).split(args.batch_size):
            x, y = images.index_select(0, chosen), labels.index_select(0, chosen)
            loss = F.cross_entropy(model(x if args.images == "float32" else to_input(x)), y)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            total_loss += loss.item() * len(y)
        print(f"epoch {epoch + 1}/{args.epochs}, loss {total_loss / len(images):.4f}")

    with torch.inference_mode():
        found = torch.cat([model(to_input(part)).argmax(1) for part in test_images.split(256)])
    errors = int((found != test_labels).sum())
    accuracy = 1 - errors / len(test_labels)
    print(f"test accuracy {accuracy:.2%} ({errors} errors) in {time.perf_counter() - start:.1f} s")


if __name__ == "__main__":
    main()
