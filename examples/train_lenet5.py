"""Train LeNet-5 on handwritten digits: `python -m examples.train_lenet5 --help`.

Read it from top to bottom: settings, data, model, training, test, results. The defaults need no network: 1,797 digits
that come with the package. `--dataset mnist` is the real thing.
"""

import os

# Before NumPy is imported, which reads it: LeNet-5's matrices are too small to share among threads, and the cores are
# put to better use by --workers.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tqdm import tqdm

import tinygrad_lenet
from models import LeNet5
from tinygrad_lenet import Tensor, backend, data, no_grad, optim, parallel
from tinygrad_lenet import functional as F

MODELS: dict[str, Callable[[int], LeNet5]] = {
    "lenet5": lambda seed: LeNet5(rng=seed),
    "lenet5-sigmoid": lambda seed: LeNet5(activation="sigmoid", rng=seed),
    "lenet5-relu": lambda seed: LeNet5(activation="relu", pool="max", rng=seed),
    "lenet5-regularized": lambda seed: LeNet5(activation="relu", pool="max", dropout=0.2, batch_norm=True, rng=seed),
}
OPTIMIZERS: dict[str, Callable[..., optim.Optimizer]] = {
    "adam": optim.Adam,
    "adamw": optim.AdamW,
    "sgd": lambda parameters, lr: optim.SGD(parameters, lr, momentum=0.9, nesterov=True),
}
EPOCHS = {"digits": 40, "mnist": 5, "fashion-mnist": 10}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m examples.train_lenet5",
        description="Train LeNet-5 and test it; writes metrics.json and model.safetensors.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--model", choices=MODELS, default="lenet5", help="which LeNet-5")
    parser.add_argument("--dataset", choices=EPOCHS, default="digits", help="what to learn")
    parser.add_argument("--data-dir", type=Path, help="folder with the data set's IDX files (default: the cache)")
    parser.add_argument("--download", action="store_true", help="fetch the data set into --data-dir if it is missing")
    parser.add_argument(
        "--augment",
        action=argparse.BooleanOptionalAction,
        help="shift, scale, squeeze and shear the training images (default: for digits, of which there are few)",
    )
    parser.add_argument("--backend", choices=["cpu", "cuda", "auto"], default="auto", help="where to compute")
    parser.add_argument("--epochs", type=int, help=f"passes over the training images (default: {EPOCHS})")
    parser.add_argument("--batch-size", type=int, default=64, help="images a step, over all workers")
    parser.add_argument("--lr", type=float, default=0.004, help="the highest learning rate of the one-cycle schedule")
    parser.add_argument("--optimizer", choices=OPTIMIZERS, default="adam", help="how to step")
    parser.add_argument("--seed", type=int, default=0, help="of the initial weights and the order of the images")
    parser.add_argument("--workers", type=int, help="processes that share each batch (default: one a core, at most 2)")
    parser.add_argument("--out", type=Path, default=Path("runs/lenet5"), help="folder for the results")
    parser.add_argument("--no-progress", action="store_true", help="no progress bar")
    return parser.parse_args()


def load(args: argparse.Namespace, split: str) -> tuple[Any, Any]:
    """The images and labels of one split."""
    if args.dataset == "digits":
        return data.digits(split)
    read = data.mnist if args.dataset == "mnist" else data.fashion_mnist
    return read(args.data_dir, split, download=args.download)


def train(
    group: parallel.Group,
    args: argparse.Namespace,
    model: LeNet5,
    optimizer: optim.Optimizer,
    images: Any,
    labels: Any,
) -> tuple[list[float], list[float]]:
    """The training loop, which every worker runs on its share of each batch; the mean loss and the time by epoch."""
    augment = data.Affine(seed=args.seed) if args.augment else None
    loader = data.DataLoader(
        images, labels, args.batch_size, seed=args.seed, transform=data.to_input, augment=augment, share=group.share
    )
    schedule = optim.OneCycle(optimizer, max_lr=args.lr, total_steps=args.epochs * len(loader))
    bar = tqdm(
        total=args.epochs * len(images), unit=" images", unit_scale=True, disable=args.no_progress or group.rank > 0
    )
    losses: list[float] = []
    seconds: list[float] = []
    model.train()
    for epoch in range(args.epochs):
        start = time.perf_counter()
        total_loss = 0.0
        correct = 0
        for x, y in loader:
            logits = model(Tensor(x))
            loss = F.cross_entropy(logits, y, reduction="sum") / loader.drawn
            optimizer.zero_grad()
            loss.backward()
            group.sum_gradients()
            optimizer.step()
            schedule.step()

            total_loss += loss.item() * loader.drawn
            correct += int((logits.numpy().argmax(axis=1) == y).sum())
            bar.update(loader.drawn)
        total_loss, correct_of_all = group.sum([total_loss, correct])
        losses.append(total_loss / len(images))
        seconds.append(time.perf_counter() - start)
        bar.set_postfix_str(
            f"epoch {epoch + 1}/{args.epochs}, loss {losses[-1]:.4f}, accuracy {correct_of_all / len(images):.2%}"
        )
    bar.close()
    return losses, seconds


def predict(model: LeNet5, images: Any, batch_size: int = 256) -> Any:
    """The most probable class of each image."""
    model.eval()
    with no_grad():
        batches = (images[i : i + batch_size] for i in range(0, len(images), batch_size))
        return np.concatenate([model(Tensor(data.to_input(batch))).numpy().argmax(axis=1) for batch in batches])


def main() -> None:
    start = time.perf_counter()
    args = arguments()
    args.epochs = EPOCHS[args.dataset] if args.epochs is None else args.epochs
    if args.epochs < 1:
        raise ValueError(f"--epochs is {args.epochs}; expected at least 1")
    if args.augment is None:
        args.augment = args.dataset == "digits"
    if args.backend == "auto":
        args.backend = "cuda" if "cuda" in backend.available() else "cpu"
    if args.workers is None:
        args.workers = 1 if args.backend == "cuda" else min(2, len(os.sched_getaffinity(0)))
    args.out.mkdir(parents=True, exist_ok=True)  # now, not after an hour of training
    backend.use(args.backend)
    parallel.tune_process()

    images, labels = load(args, "train")
    test_images, test_labels = load(args, "test")
    model = MODELS[args.model](args.seed).to(args.backend)
    optimizer = OPTIMIZERS[args.optimizer](model.parameters(), lr=args.lr)
    print(model.summary((1, 32, 32)))

    losses, seconds = parallel.run(train, args.workers, model.parameters(), args, model, optimizer, images, labels)

    errors = int((predict(model, test_images) != test_labels).sum())
    accuracy = 1 - errors / len(test_labels)
    save_file({name: tensor.numpy() for name, tensor in model.state_dict().items()}, args.out / "model.safetensors")
    metrics = {
        "test_accuracy": accuracy,
        "test_errors": errors,
        "test_images": len(test_labels),
        "train_loss": losses,
        "epoch_seconds": seconds,
        "seconds": time.perf_counter() - start,
        "device": args.backend,
        "versions": {
            "tinygrad_lenet": tinygrad_lenet.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        "arguments": {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()},
    }
    (args.out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    print(f"results in {args.out}")
    print(
        f"test accuracy {accuracy:.2%} ({errors} errors of {len(test_labels)}) in {time.perf_counter() - start:.1f} s"
    )


if __name__ == "__main__":
    try:
        main()
    except (ValueError, TypeError, OSError, parallel.WorkerError) as error:
        sys.exit(f"train_lenet5: {error}")
    except KeyboardInterrupt:
        sys.exit("train_lenet5: stopped by Ctrl-C")
