"""Train LeNet-5 on handwritten digits: `python -m examples.train_lenet5 --help`.

Read it from top to bottom: settings, data, training, test, results (`examples/runs.py` is how a run is resumed). The
defaults need no network: 1,797 digits that come with the package. `--dataset mnist` is the real thing.
"""

import os

from examples import programs

if __name__ == "__main__":
    programs.begin()
# Before NumPy is imported, which reads it: LeNet-5's matrices are too small to share among threads, and the cores are
# put to better use by --workers.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import argparse
import json
import math
import platform
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

try:
    from tqdm import tqdm
except ModuleNotFoundError:
    sys.exit('train_lenet5: the example needs more packages than the framework; run pip install -e ".[example]"')

import tinygrad_lenet
from examples.runs import Run, ctrl_c_deferred, own_folder
from models import LeNet5
from tinygrad_lenet import AnomalyError, Tensor, backend, checkpoint, data, detect_anomaly, nn, no_grad, optim, parallel
from tinygrad_lenet import functional as F

MODELS: dict[str, Callable[[int], LeNet5]] = {
    "lenet5": lambda seed: LeNet5(rng=seed),
    "lenet5-sigmoid": lambda seed: LeNet5(activation="sigmoid", rng=seed),
    "lenet5-relu": lambda seed: LeNet5(activation="relu", rng=seed),
    "lenet5-relu-max": lambda seed: LeNet5(activation="relu", pool="max", rng=seed),
    "lenet5-regularized": lambda seed: LeNet5(activation="relu", pool="max", dropout=0.2, batch_norm=True, rng=seed),
}
OPTIMIZERS: dict[str, Callable[..., optim.Optimizer]] = {
    "adam": optim.Adam,
    "adamw": optim.AdamW,
    "sgd": lambda parameters, lr: optim.SGD(parameters, lr, momentum=0.9, nesterov=True),
}
RECIPES: dict[str, dict[str, Any]] = {
    "plain": {},  # LeNet-5 with tanh, and all defaults
    "fast": {"model": "lenet5-relu", "epochs": 3, "batch_size": 128, "lr": 0.006},  # 99% of MNIST in least time
}
EPOCHS = {"digits": 40, "mnist": 5, "fashion-mnist": 10}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m examples.train_lenet5",
        description="Train LeNet-5 and test it; writes metrics.json, model.safetensors and, to be resumed from, "
        "checkpoint.safetensors.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--recipe", choices=RECIPES, default="plain", help="other defaults; fast: 99%% of MNIST soon")
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
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on from the checkpoint in --out to the same weights, with the same settings, --workers among them",
    )
    parser.add_argument(
        "--checkpoint-every", type=float, default=60, metavar="SECONDS", help="between checkpoints within an epoch"
    )
    parser.add_argument("--plots", action="store_true", help="draw the losses, the mistakes, the kernels and the maps")
    parser.add_argument("--no-progress", action="store_true", help="no progress bar")
    parser.set_defaults(**RECIPES[parser.parse_known_args()[0].recipe])
    return parser.parse_args()


def load(args: argparse.Namespace, split: str) -> tuple[Any, Any]:
    """The images and labels of one split."""
    if args.dataset == "digits":
        return data.digits(split)
    read = data.mnist if args.dataset == "mnist" else data.fashion_mnist
    return read(args.data_dir, split, download=args.download)


def train(group: parallel.Group, run: Run, interrupted: Callable[[], bool]) -> None:
    """The training loop, which every worker runs on its share of each batch until the end, Ctrl-C or a loss of nan."""
    args, model, loader = run.args, run.model, run.loader
    loader.share = group.share
    dropouts = [module for _, module in model.named_modules() if isinstance(module, nn.Dropout)]
    learned = {name for name, _ in model.named_parameters()}
    statistics = [tensor for name, tensor in model.state_dict().items() if name not in learned]
    saved = time.monotonic()
    model.train()
    with tqdm(
        total=args.epochs * len(loader.images),
        initial=loader.epoch * len(loader.images) + loader.position,
        unit=" images",
        unit_scale=True,
        disable=args.no_progress or group.rank > 0,
    ) as bar:
        for epoch in range(loader.epoch, args.epochs):
            start = time.perf_counter() - run.seconds
            for x, y in loader:
                for i, module in enumerate(dropouts):  # a generator for each step and worker, so that none needs saving
                    module.rng = np.random.default_rng((args.seed, epoch, loader.position, group.rank, i))
                run.optimizer.zero_grad()
                own_loss, own_hits = 0.0, 0
                if len(y):  # an epoch's last batch can have fewer images than there are workers
                    logits = model(Tensor(x))
                    loss = F.cross_entropy(logits, y, reduction="sum") / loader.drawn
                    loss.backward()
                    own_loss, own_hits = loss.item(), int((logits.numpy().argmax(axis=1) == y).sum())
                mean_loss, hits, stop = group.sum_gradients([own_loss, own_hits, interrupted()])
                if not math.isfinite(mean_loss):
                    run.trouble = f"the loss became {mean_loss} in epoch {epoch + 1}: {first_anomaly(model, x, y)}"
                    return
                run.optimizer.step()
                run.schedule.step()
                group.average(statistics, weight=len(y))  # which batch normalisation took over this worker's share

                run.loss += mean_loss * loader.drawn
                run.correct += hits
                run.seconds = time.perf_counter() - start
                bar.update(loader.drawn)
                if group.rank == 0 and (stop or time.monotonic() - saved >= args.checkpoint_every):
                    run.save()
                    saved = time.monotonic()
                if stop:
                    return
            run.train_loss.append(run.loss / len(loader.images))
            run.epoch_seconds.append(run.seconds)
            bar.set_postfix_str(
                f"epoch {epoch + 1}/{args.epochs}, loss {run.train_loss[-1]:.4f}, "
                f"accuracy {run.correct / len(loader.images):.2%}"
            )
            run.loss = run.correct = run.seconds = 0.0
            if group.rank == 0:
                run.save()
                saved = time.monotonic()


def first_anomaly(model: nn.Module, x: Any, y: Any) -> str:
    """Which op, at which line, first makes something that is not finite of a batch."""
    try:
        with detect_anomaly():
            F.cross_entropy(model(Tensor(x)), y).backward()
    except AnomalyError as error:
        return str(error)
    return "the other workers' shares of the batch led to it"


def predict(model: LeNet5, images: Any, batch_size: int = 256) -> Any:
    """The probability of each class for each image, [N K]."""
    model.eval()
    with no_grad():
        batches = (images[i : i + batch_size] for i in range(0, len(images), batch_size))
        return np.concatenate([F.softmax(model(Tensor(data.to_input(batch)))).numpy() for batch in batches])


def main() -> None:
    start = time.perf_counter()
    args = arguments()
    args.epochs = EPOCHS[args.dataset] if args.epochs is None else args.epochs
    if args.epochs < 1:
        raise ValueError(f"--epochs is {args.epochs}; expected at least 1")
    if args.seed < 0:
        raise ValueError(f"--seed is {args.seed}; expected at least 0")
    if not args.checkpoint_every >= 0:
        raise ValueError(f"--checkpoint-every is {args.checkpoint_every}; expected seconds, at least 0")
    if args.augment is None:
        args.augment = args.dataset == "digits"
    if args.backend == "auto":
        args.backend = "cuda" if "cuda" in backend.available() else "cpu"
    if args.workers is None:
        args.workers = 1 if args.backend == "cuda" else parallel.default_workers()
    if 1 <= args.batch_size < args.workers:
        raise ValueError(f"--workers is {args.workers}; expected at most --batch-size, {args.batch_size}")
    with own_folder(args.out, make=not args.resume):
        train_and_test(args, start)


def train_and_test(args: argparse.Namespace, start: float) -> None:
    backend.use(args.backend)
    np.seterr(over="ignore", invalid="ignore")  # a loss that runs away is reported once, below
    parallel.tune_process()

    images, labels = load(args, "train")
    test_images, test_labels = load(args, "test")
    model = MODELS[args.model](args.seed).to(args.backend)
    optimizer = OPTIMIZERS[args.optimizer](model.parameters(), lr=args.lr)
    loader = data.DataLoader(
        images,
        labels,
        args.batch_size,
        seed=args.seed,
        transform=data.to_input,
        augment=data.Affine(seed=args.seed) if args.augment else None,
    )
    schedule = optim.OneCycle(optimizer, max_lr=args.lr, total_steps=args.epochs * len(loader))
    run = Run(args, model, optimizer, schedule, loader)
    if args.resume:
        run.resume()
        done = loader.epoch == args.epochs
        place = "is complete and only tested again" if done else f"goes on in epoch {loader.epoch + 1} of {args.epochs}"
        print(f"the run in {args.out} {place}")
    else:
        run.begin()
    print(model.summary((1, 32, 32)))

    with ctrl_c_deferred() as interrupted:
        parallel.run(train, args.workers, model.parameters(), run, interrupted)
    if run.trouble:
        raise ValueError(f"{run.trouble}; try a smaller --lr (the checkpoint of before is kept)")
    if loader.epoch < args.epochs:
        print(f"go on with: {shlex.join([*sys.orig_argv, *([] if args.resume else ['--resume'])])}")
        raise KeyboardInterrupt

    probabilities = predict(model, test_images)
    errors = int((probabilities.argmax(axis=1) != test_labels).sum())
    accuracy = 1 - errors / len(test_labels)
    checkpoint.save(args.out / "model.safetensors", model.state_dict())
    metrics = {
        "test_accuracy": accuracy,
        "test_errors": errors,
        "test_images": len(test_labels),
        "train_loss": run.train_loss,
        "epoch_seconds": run.epoch_seconds,
        "seconds": time.perf_counter() - start,
        "device": args.backend,
        "versions": {
            "tinygrad_lenet": tinygrad_lenet.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        "arguments": run.arguments,
    }
    checkpoint.replace(args.out / "metrics.json", f"{json.dumps(metrics, indent=2)}\n".encode())
    if args.plots:
        from examples import plots  # only now: matplotlib takes a while to import

        plots.save_all(args.out, metrics, model, test_images, test_labels, probabilities)
    print(f"results in {args.out}")
    print(
        f"test accuracy {accuracy:.2%} ({errors} errors of {len(test_labels)}) in {time.perf_counter() - start:.1f} s"
    )


if __name__ == "__main__":
    programs.run(main)
