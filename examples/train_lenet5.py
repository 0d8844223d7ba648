"""Train LeNet-5 on handwritten digits: `python -m examples.train_lenet5 --help`.

Read it from top to bottom: settings, data, training, test, results (`examples/runs.py` saves and resumes a run). The
defaults need no network: 1,797 digits that come with the package. `--dataset mnist` is the real thing.

`mpiexec -n 4 python -m examples.train_lenet5` trains on four ranks, which may be on several machines.
"""

import os

from examples import programs

if __name__ == "__main__":
    programs.begin("tqdm")
# Set before NumPy is imported, which reads it: LeNet-5's matrices are too small to share among threads, and --workers
# puts the cores to better use.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import argparse
import importlib.util
import math
import platform
import shlex
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

import tinygrad_lenet
from examples.runs import Run, ctrl_c_deferred, own_folder
from models import LeNet5
from tinygrad_lenet import AnomalyError, Tensor, backend, data, detect_anomaly, jit, nn, no_grad, optim, parallel
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
    "fast": {"model": "lenet5-relu", "epochs": 3, "batch_size": 128, "lr": 0.006},  # 99% on MNIST in the least time
}
EPOCHS = {"digits": 40, "mnist": 5, "fashion-mnist": 10, "idx": 5}
READ_EVERY = {"cpu": 1, "cuda": 50}  # steps: reading a loss from a GPU waits until it has caught up
PICTURES = ("learning_curves.png", "confusion_matrix.png", "misclassified.png", "kernels.png", "maps.png")


def arguments() -> argparse.Namespace:
    epochs = ", ".join(f"{count} on {name}" for name, count in EPOCHS.items())
    parser = argparse.ArgumentParser(
        prog="python -m examples.train_lenet5",
        description="Train and test LeNet-5; write metrics.json, metrics.csv, model.safetensors and, for resuming "
        "from, checkpoint.safetensors.",
        formatter_class=programs.Help,
    )
    parser.add_argument("--recipe", choices=RECIPES, default="plain", help="fast: 99.1%% on MNIST in 3 epochs")
    parser.add_argument("--model", choices=MODELS, default="lenet5", help="which LeNet-5")
    parser.add_argument(
        "--dataset", choices=EPOCHS, default="digits", help="what to learn; idx: your own files in --data-dir"
    )
    parser.add_argument(
        "--data-dir",
        type=Path,
        help="folder with the data set's IDX files (default: your cache folder); idx requires it",
    )
    parser.add_argument("--download", action="store_true", help="download what is missing or damaged in --data-dir")
    parser.add_argument(
        "--validation",
        type=int,
        default=0,
        metavar="IMAGES",
        help="hold out this many training images, evaluate each epoch on them, and keep the best epoch's weights",
    )
    parser.add_argument(
        "--patience", type=int, metavar="EPOCHS", help="stop after this many epochs without improvement on --validation"
    )
    parser.add_argument(
        "--augment",
        action=argparse.BooleanOptionalAction,
        help="shift, scale, squeeze and shear the training images (default: only for digits, which are few)",
    )
    parser.add_argument(
        "--backend",
        choices=["cpu", "cuda", "auto"],
        default="auto",
        help="where to compute; auto: on a GPU if there is one and --workers is not above 1",
    )
    parser.add_argument("--epochs", type=int, help=f"passes over the training images (default: {epochs})")
    parser.add_argument("--batch-size", type=int, default=64, help="images per step, over all workers")
    parser.add_argument("--lr", type=float, default=0.004, help="the highest learning rate of the one-cycle schedule")
    parser.add_argument("--optimizer", choices=OPTIMIZERS, default="adam", help="the optimiser")
    parser.add_argument("--seed", type=int, default=0, help="seed of initial weights and image order")
    parser.add_argument(
        "--workers",
        type=int,
        help="processes that share each batch (default: one per core, at most 2; under mpiexec, 1 for each rank)",
    )
    parser.add_argument("--out", type=Path, help="folder for the results (default: runs/MODEL-DATASET)")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="continue from the checkpoint in --out, to the same weights; needs the same settings, including --workers",
    )
    parser.add_argument(
        "--checkpoint-every", type=float, default=60, metavar="SECONDS", help="time between checkpoints within an epoch"
    )
    parser.add_argument("--plots", action="store_true", help="draw losses, mistakes, kernels and feature maps")
    parser.add_argument("--tensorboard", action="store_true", help="write event files for TensorBoard, epoch by epoch")
    parser.add_argument("--no-jit", action="store_true", help="run each step's Python code instead of a replay")
    parser.add_argument("--no-progress", action="store_true", help="show no progress bar")
    parser.set_defaults(**RECIPES[parser.parse_known_args()[0].recipe])
    return parser.parse_args()


def refuse_nonsense(args: argparse.Namespace, ranks: int = 1) -> None:
    """ValueError for arguments that make no valid run on so many ranks of MPI."""
    least = {"epochs": 1, "batch_size": 1, "workers": 1, "seed": 0, "validation": 0, "patience": 1}
    for name, smallest in least.items():
        value = getattr(args, name)
        if value is not None and value < smallest:
            raise ValueError(f"--{name.replace('_', '-')} is {value}; expected at least {smallest}")
    if not args.checkpoint_every >= 0:
        raise ValueError(f"--checkpoint-every is {args.checkpoint_every}; expected seconds, at least 0")
    if args.backend == "cuda" and args.workers > 1:
        raise ValueError(f"--workers is {args.workers}; expected 1, since a GPU takes one worker")
    if args.workers * ranks > args.batch_size:
        what = f"--workers is {args.workers}" + (f" on each of {ranks} ranks" if ranks > 1 else "")
        raise ValueError(f"{what}; expected at most --batch-size, {args.batch_size}" + (" in all" if ranks > 1 else ""))
    if args.patience is not None and not args.validation:
        raise ValueError(f"--patience is {args.patience} without --validation; give the number of images to hold out")
    if args.dataset == "idx" and args.data_dir is None:
        raise ValueError("--dataset idx needs --data-dir, the folder with the set's IDX files")


def load(args: argparse.Namespace, split: str) -> tuple[Any, Any]:
    """The images and labels of one split."""
    if args.dataset == "digits":
        return data.digits(split)
    if args.dataset == "idx":
        return data.idx(args.data_dir, split)
    read = data.mnist if args.dataset == "mnist" else data.fashion_mnist
    return read(args.data_dir, split, download=args.download)


def hold_out(count: int, images: Any, labels: Any) -> tuple[Any, Any, Any, Any]:
    """The images and labels to train on, and ``count`` held-out ones to validate on, the same in every run."""
    if count >= len(images):
        raise ValueError(f"--validation is {count}; expected fewer than the {len(images)} training images")
    if not count:
        return images, labels, images[:0], labels[:0]
    order = np.random.default_rng(0).permutation(len(images))
    held, rest = np.sort(order[:count]), np.sort(order[count:])
    return images[rest], labels[rest], images[held], labels[held]


def load_all(args: argparse.Namespace) -> list[Any]:
    """Images and labels: those to train on, those held out, and those to test with."""
    return [*hold_out(args.validation, *load(args, "train")), *load(args, "test")]


def build(name: str, seed: int, classes: int = 10) -> LeNet5:
    """The model, with as many outputs as there are classes."""
    model = MODELS[name](seed)
    if classes != 10:
        model.output = nn.Linear(84, classes, rng=seed)
    return model


def train(group: parallel.Group, run: Run, interrupted: Callable[[], bool]) -> None:
    """The training loop. Every worker runs it on its share of each batch, until the end, Ctrl-C or a loss of NaN."""
    args, model, loader = run.args, run.model, run.loader
    loader.share = group.share
    group.require_equal(state_of(run))
    if group.rank == 0 and not args.resume and (aside := run.begin()):  # only now that all workers have started
        print(f"the checkpoint of an earlier run is kept in {aside} until this one is finished")
    board = event_writer(run) if group.rank == 0 and args.tensorboard else nullcontext()
    gradient = gradient_of if args.no_jit else jit(gradient_of)
    dropouts = [module for _, module in model.named_modules() if isinstance(module, nn.Dropout)]
    learned = {name for name, _ in model.named_parameters()}
    statistics = [tensor for name, tensor in model.state_dict().items() if name not in learned]
    saved = time.monotonic()
    unread: list[tuple[Tensor, Tensor]] = []  # the loss and the hits of each step since they were last read
    model.train()
    with (
        board as events,
        tqdm(
            total=args.epochs * len(loader.images),
            initial=loader.epoch * len(loader.images) + loader.position,
            unit=" images",
            unit_scale=True,
            disable=args.no_progress or group.rank > 0,
        ) as bar,
    ):
        while not finished(run):
            epoch = loader.epoch
            start = time.perf_counter() - run.seconds
            for x, y in loader:
                for i, module in enumerate(dropouts):  # seeded anew for each step and worker: no state to be saved
                    seeded = np.random.default_rng((args.seed, epoch, loader.position, group.rank, i))
                    module.rng.bit_generator.state = seeded.bit_generator.state
                run.optimizer.zero_grad()
                if len(y):  # the last batch of an epoch can have fewer images than there are workers
                    unread.append(gradient(model, Tensor(x), Tensor(y), loader.drawn))
                stopping, saving = interrupted(), time.monotonic() - saved >= args.checkpoint_every
                due = len(unread) >= READ_EVERY[args.backend] or loader.position == len(loader.images)
                own = read(unread) if due or stopping or saving else (0.0, 0.0)
                loss_sum, hits, stop = group.sum_gradients([*own, stopping])
                if not math.isfinite(loss_sum):
                    run.trouble = f"the loss became {loss_sum} in epoch {epoch + 1}: {first_anomaly(model, x, y)}"
                    return
                run.optimizer.step()
                run.schedule.step()
                group.average(statistics, weight=len(y))  # which batch normalisation computed from this worker's share

                run.loss += loss_sum
                run.correct += hits
                run.seconds = time.perf_counter() - start
                bar.update(loader.drawn)
                if group.rank == 0 and (stop or saving):
                    run.save()
                    saved = time.monotonic()
                if stop:
                    return
            group.require_equal(state_of(run))
            run.train_loss.append(run.loss / len(loader.images))
            run.note(train_accuracy=run.correct / len(loader.images))
            summary = f"epoch {epoch + 1}/{args.epochs}, loss {run.train_loss[-1]:.4f}, "
            if args.validation:
                held_loss, accuracy = validate(group, model, *run.held)
                if not math.isfinite(held_loss):
                    run.trouble = f"the loss on the validation images became {held_loss} in epoch {epoch + 1}"
                    return
                run.note(validation_loss=held_loss, validation_accuracy=accuracy)
                if best_epoch(run) == epoch:
                    run.best = {name: tensor.numpy().copy() for name, tensor in model.state_dict().items()}
                summary += f"validation accuracy {accuracy:.2%}"
            else:
                summary += f"accuracy {run.history['train_accuracy'][-1]:.2%}"
            run.epoch_seconds.append(run.seconds)
            bar.set_postfix_str(summary)
            run.loss = run.correct = run.seconds = 0.0
            if events is not None:
                for name, values in run.epochs.items():
                    events.add_scalar(name, values[-1], epoch + 1)
                events.flush()
            if group.rank == 0:
                run.save()
                saved = time.monotonic()


def state_of(run: Run) -> list[Tensor]:
    """What has to be equal on all workers: weights, statistics and what the optimiser remembers."""
    moments = run.optimizer.state_dict()["tensors"]
    return [*run.model.state_dict().values(), *(Tensor(moment) for moment in moments.values())]


def gradient_of(model: nn.Module, x: Tensor, y: Tensor, drawn: int) -> tuple[Tensor, Tensor]:
    """Compute the gradients of a share of a batch of ``drawn`` images; return its summed loss and its hits."""
    logits = model(x)
    loss = F.cross_entropy(logits, y, reduction="sum")
    (loss / drawn).backward()
    return loss.detach(), (logits.argmax(axis=1) == y).sum()


def read(unread: list[tuple[Tensor, Tensor]]) -> tuple[float, float]:
    """The sums of the losses and of the hits, which are taken out of the list; a GPU is asked twice in all."""
    if not unread:
        return 0.0, 0.0
    losses, hits = (np.asarray(F.stack(each).numpy(), float).sum().item() for each in zip(*unread, strict=True))
    unread.clear()
    return losses, hits


def validate(group: parallel.Group, model: nn.Module, images: Any, labels: Any) -> tuple[float, float]:
    """The mean loss and the fraction of correct answers; every worker evaluates its share of the images."""
    own = group.share(len(labels))
    losses, hits = [], []
    model.eval()
    with no_grad():
        for i in range(own.start, own.stop, 256):
            batch = slice(i, min(i + 256, own.stop))
            logits = model(Tensor(data.to_input(images[batch])))
            losses.append(F.cross_entropy(logits, labels[batch], reduction="sum"))
            hits.append((logits.argmax(axis=1) == labels[batch]).sum())
    model.train()
    loss, right = group.sum([sum(each.item() for each in values) for values in (losses, hits)])
    return loss / len(labels), right / len(labels)


def best_epoch(run: Run) -> int | None:
    """The epoch, from 0, with the fewest errors on the validation images; of several, that with the least loss."""
    accuracies, losses = (run.history.get(f"validation_{what}", []) for what in ("accuracy", "loss"))
    measured = [(-accuracy, loss) for accuracy, loss in zip(accuracies, losses, strict=False)]
    return measured.index(min(measured)) if measured else None


def finished(run: Run) -> bool:
    """Whether all epochs are done, or none of the last --patience epochs was better than those before."""
    best = best_epoch(run)
    waited = 0 if best is None else run.loader.epoch - 1 - best
    return run.loader.epoch >= run.args.epochs or (run.args.patience is not None and waited >= run.args.patience)


def event_writer(run: Run) -> Any:
    """A writer of TensorBoard event files into the run's folder; TensorBoard ignores those of repeated epochs."""
    from tensorboardX import SummaryWriter

    return SummaryWriter(str(run.args.out), purge_step=run.loader.epoch + 1, write_to_disk=True)


def first_anomaly(model: nn.Module, x: Any, y: Any) -> str:
    """Which op, called at which line, first computes a non-finite value from a batch."""
    try:
        with detect_anomaly():
            F.cross_entropy(model(Tensor(x)), y).backward()
    except AnomalyError as error:
        return str(error)
    return "it came from another worker's share of the batch"


def predict(model: LeNet5, images: Any, batch_size: int = 256) -> Any:
    """The probability of each class for each image, [N K]."""
    model.eval()
    answer = jit(model)
    with no_grad():
        batches = (images[i : i + batch_size] for i in range(0, len(images), batch_size))
        return np.concatenate([F.softmax(answer(Tensor(data.to_input(batch)))).numpy() for batch in batches])


def main() -> None:
    start = time.perf_counter()
    job = programs.join()  # this process alone, unless mpiexec started several
    with job.rank_0_first():
        args = settings(job.size)
    versions = {"tinygrad_lenet": tinygrad_lenet.__version__, "numpy": np.__version__}
    job.require_equal({**versions, "python": platform.python_version(), **as_given(args)})
    backend.use(args.backend)
    np.seterr(over="ignore", invalid="ignore")  # a diverging loss is reported once, below
    parallel.tune_process()

    images, labels, *held, test_images, test_labels = job.once_a_node(lambda: load_all(args))
    classes = 1 + int(max(labels.max(), test_labels.max())) if args.dataset == "idx" else 10
    model = build(args.model, args.seed, classes).to(args.backend)
    optimizer = OPTIMIZERS[args.optimizer](model.parameters(), lr=args.lr)
    loader = data.DataLoader(
        images,
        labels,
        args.batch_size,
        seed=args.seed,
        transform=data.to_input,
        augment=data.Affine(seed=args.seed) if args.augment else None,
        device=args.backend,
    )
    schedule = optim.OneCycle(optimizer, max_lr=args.lr, total_steps=args.epochs * len(loader))
    run = Run(args, model, optimizer, schedule, loader, held=(held[0], held[1]))
    job.require_equal({"the digest of the training data": run.data} if job.size > 1 else {})
    # Every error in the settings has been found by now.
    with own_folder(args.out, make=not args.resume) if job.rank == 0 else nullcontext():
        train_and_test(run, model, test_images, test_labels, start, job)


def settings(ranks: int) -> argparse.Namespace:
    """The arguments, complete and sensible, for a run on so many ranks of MPI."""
    args = arguments()
    args.epochs = EPOCHS[args.dataset] if args.epochs is None else args.epochs
    if args.augment is None:
        args.augment = args.dataset == "digits"
    if args.backend == "auto":
        args.backend = "cuda" if args.workers in (None, 1) and "cuda" in backend.available() else "cpu"
    if args.workers is None:
        args.workers = 1 if args.backend == "cuda" or ranks > 1 else parallel.default_workers()
    if args.out is None:
        args.out = Path("runs", f"{args.model}-{args.dataset}")
    refuse_nonsense(args, ranks)
    if args.tensorboard and importlib.util.find_spec("tensorboardX") is None:
        raise ValueError('--tensorboard needs tensorboardX; run pip install -e ".[tensorboard]"')
    if ranks > 1:
        args.ranks = ranks
        args.workers *= ranks  # what a checkpoint says: how many processes share each batch
    return args


def as_given(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments by the names that they are given by, but for --data-dir, which may depend on the machine."""
    return {f"--{name.replace('_', '-')}": str(value) for name, value in vars(args).items() if name != "data_dir"}


def train_and_test(
    run: Run, model: LeNet5, test_images: Any, test_labels: Any, start: float, job: parallel.Job
) -> None:
    args, loader = run.args, run.loader
    if args.resume:
        note = run.resume()
        goes_on = f"continues in epoch {loader.epoch + 1} of {args.epochs}" + (f"; {note}" if note else "")
        print(f"the run in {args.out} {'is complete; testing it again' if finished(run) else goes_on}")
    print(model.summary((1, 32, 32)))
    print("steps run as Python code" if args.no_jit else "steps are replayed by jit; --no-jit runs their Python code")

    if job.size > 1 and args.backend == "cuda":
        print("gradients are added in host memory: one copy from each GPU a step, and one back")
    with ctrl_c_deferred(job.size > 1) as interrupted:
        workers = args.workers // job.size
        parallel.run(train, workers, model.parameters(), run, interrupted, job=job)
    if run.trouble:
        raise ValueError(f"{run.trouble}; try a smaller --lr (the last checkpoint is kept)")
    if not finished(run):
        command = shlex.join([*sys.orig_argv, *([] if args.resume else ["--resume"])])
        print(f"continue with: {f'mpiexec -n {job.size} ' if job.size > 1 else ''}{command}")
        job.leave()
        raise KeyboardInterrupt
    if job.rank:
        job.leave()
        return

    best = best_epoch(run)
    if best is not None:
        model.load_state_dict(run.best)
        print(f"the weights are those of epoch {best + 1} of {loader.epoch}, best on {args.validation} held-out images")
    probabilities = predict(model, test_images)
    errors = int((probabilities.argmax(axis=1) != test_labels).sum())
    accuracy = 1 - errors / len(test_labels)
    metrics = {
        "test_accuracy": accuracy,
        "test_errors": errors,
        "test_images": len(test_labels),
        "classes": probabilities.shape[1],
        **run.epochs,
        **({} if best is None else {"best_epoch": best + 1}),
        "seconds": time.perf_counter() - start,
        "device": args.backend,
        "versions": {
            "tinygrad_lenet": tinygrad_lenet.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        "arguments": run.arguments,
    }
    run.finish(model, metrics)
    for name in PICTURES:  # the pictures of an earlier run, whose results these replace
        (args.out / name).unlink(missing_ok=True)
    if args.plots:
        from examples import plots  # only now: matplotlib takes a while to import

        plots.save_all(args.out, metrics, model, test_images, test_labels, probabilities)
    print(f"results in {args.out}")
    print(
        f"test accuracy {accuracy:.2%} ({errors} errors of {len(test_labels)}) in {time.perf_counter() - start:.1f} s"
    )
    job.leave()


if __name__ == "__main__":
    programs.run(main)
