"""Repeat the experiment of LeCun et al. (1998) on MNIST: `python -m examples.reproduce_1998 --help`.

LeNet-5 as published, trained with the published recipe: 20 passes, one update per pattern in a fixed random order, and
a learning rate for each parameter from a curvature (Sections II.B, III.B and III.C, Eqs. 8, 9 and 18-27). What the
paper leaves out is stated beside the code, with its source; examples/results/README.md tells how it was found.
The experiment has several parts, most of them with several seeds. Each part and seed has its own folder and can be
interrupted and resumed; the report covers what is finished. Read from top to bottom: the parts, the data, the training,
the report.
"""

import os

from examples import programs

if __name__ == "__main__":
    programs.begin("tqdm")
# Before NumPy is imported, which reads it: one image at a time is too little work for two threads.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import argparse
import math
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

import tinygrad_lenet
from examples.runs import Run, ctrl_c_deferred, own_folder, read_json
from models import LeNet5, LeNet5_1998
from tinygrad_lenet import Tensor, checkpoint, data, jit, nn, no_grad, optim, parallel
from tinygrad_lenet import functional as F

SAMPLES = 500  # patterns to estimate the curvature from before each pass, and to draw at a time
VERSIONS = 10  # per image: itself and nine distortions, which make 60,000 + 540,000 patterns
J = 5.0  # of Eq. 9, on half penalties; the paper gives no value, the parts named held-out compare some


@dataclass(frozen=True)
class Part:
    """One training run of the experiment, repeated with several seeds."""

    title: str
    seeds: int = 1  # at most: 0, 1, 2 ...
    j: float | None = J  # of Eq. 9, or None for Eq. 8
    images: int = 60_000  # size of the training set: this many, the first of the fixed order
    held_out: int = 0  # the last of MNIST's training images, which are tested on instead of the test images
    distorted: bool = False
    init: str = "sqrt-fan-in"  # from the published initial weights, the published rates do not learn
    own_curvature: bool = False  # the curvature of the loss itself, Eq. 9's, instead of a constant
    passes: int = 20
    today: bool = False  # today's LeNet-5 instead, with softmax and cross-entropy, Adam and 50 images per update


def held_out(title: str, j: float | None) -> Part:
    return Part(title, seeds=2, j=j, images=50_000, held_out=10_000)


PARTS = {
    "eq9": Part("Eq. 9", seeds=5),
    "eq9-distorted": Part("Eq. 9, distortions", seeds=5, distorted=True),
    "today": Part("today's LeNet-5", seeds=5, today=True),
    "today-distorted": Part("today's LeNet-5, distortions", seeds=5, distorted=True, today=True),
    "eq8": Part("Eq. 8", seeds=2, j=None),
    "eq9-15000": Part("Eq. 9, 15,000 images", images=15_000),
    "eq9-30000": Part("Eq. 9, 30,000 images", images=30_000),
    "held-out-j2": held_out("Eq. 9, j = 2, held-out images", 2.0),
    "held-out-j5": held_out("Eq. 9, j = 5, held-out images", 5.0),
    "held-out-j10": held_out("Eq. 9, j = 10, held-out images", 10.0),
    "held-out-j20": held_out("Eq. 9, j = 20, held-out images", 20.0),
    "held-out-eq8": held_out("Eq. 8, held-out images", None),
    "published-weights": Part("Eq. 9, weights from ±2.4/F", init="fan-in", passes=1),
    "own-curvature": Part("Eq. 9 with its own curvature", own_curvature=True, passes=5),
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m examples.reproduce_1998",
        description="Train the LeNet-5 of 1998 as published, in parts, and report on the finished ones. The same "
        "command continues where it was stopped. A part of 20 passes takes about 15 minutes for each seed on one core; "
        "two commands with different parts can run at the same time.",
        formatter_class=programs.Help,
    )
    parser.add_argument(
        "--parts",
        nargs="*",
        choices=PARTS,
        default=list(PARTS),
        metavar="PART",
        help="%(choices)s (default: all)",
    )
    parser.add_argument("--data-dir", type=Path, help="folder with MNIST's IDX files (default: your cache folder)")
    parser.add_argument("--download", action="store_true", help="download what is missing or damaged in --data-dir")
    parser.add_argument(
        "--quick", action="store_true", help="a demonstration of a minute: 3 passes over the package's digits"
    )
    most = max(part.seeds for part in PARTS.values())
    parser.add_argument(
        "--seeds",
        type=int,
        default=1,
        metavar="N",
        help=f"run with the seeds 0 to N - 1, up to {most}, of initial weights, order and distortions; parts that are "
        "for comparison alone have fewer",
    )
    parser.add_argument(
        "--out", type=Path, help="folder for parts and report (default: runs/lenet5-1998, or runs/lenet5-1998-quick)"
    )
    parser.add_argument(
        "--checkpoint-every", type=float, default=60, metavar="SECONDS", help="time between checkpoints within a pass"
    )
    parser.add_argument("--no-jit", action="store_true", help="run each step's Python code instead of a replay")
    parser.add_argument("--no-progress", action="store_true", help="show no progress bars")
    return parser.parse_args()


# Data


def load(args: argparse.Namespace, split: str) -> tuple[Any, Any]:
    """images[N 32 32], with a border for distorted ink to move into, and labels[N]."""
    images, labels = data.digits(split) if args.quick else data.mnist(args.data_dir, split, download=args.download)
    return np.pad(images, ((0, 0), (2, 2), (2, 2))), labels


def sets(part: Part, args: argparse.Namespace) -> tuple[Any, Any, Any, Any]:
    """Images[N 32 32] and labels[N] to train on, and those to test on."""
    images, labels = load(args, "train")
    if not part.held_out:
        return images, labels, *load(args, "test")
    n = len(images) - part.held_out
    return images[:n], labels[:n], images[n:], labels[n:]


def input_1998(images: Any) -> Any:
    """Pixels from -0.1, background, to 1.175, each image contiguous in memory, since each is used by itself."""
    return np.ascontiguousarray(data.to_input(images, background=-0.1, foreground=1.175))


class Distortions:
    """The distorted set: ten passes show every image once each, nine times distorted and once as it is.

    The distortions are those of Section III.A, for which the paper gives no ranges. The ranges are `data.Affine`'s:
    shifts of up to 2 pixels, scales of 0.85 to 1.15, squeezes of 0.9 to 1.1 and shears of up to 0.2. From pass 11 on,
    the same 600,000 patterns are repeated.
    """

    def __init__(self, seed: int) -> None:
        self.affine = data.Affine(seed=seed)

    def __call__(self, images: Any, epoch: int, position: int) -> Any:
        version = epoch % VERSIONS
        distorted = self.affine(images, version, position)
        itself = (position + np.arange(len(images))) % VERSIONS == version
        distorted[itself] = images[itself]
        return distorted


def loader_of(part: Part, images: Any, labels: Any, seed: int) -> data.DataLoader:
    """The patterns in a random order that is the same in every pass."""
    order = np.random.default_rng(seed).permutation(len(images))[: part.images]
    return data.DataLoader(
        images[order],
        labels[order],
        batch_size=50 if part.today else SAMPLES,  # for 1998's recipe: how many are drawn at a time
        shuffle=False,
        transform=data.to_input if part.today else input_1998,
        augment=Distortions(seed) if part.distorted else None,
    )


# Training


def build(part: Part, seed: int) -> nn.Module:
    return LeNet5(rng=seed) if part.today else LeNet5_1998(init=part.init, rng=seed)


def loss_of(part: Part, output: Tensor, labels: Any) -> Tensor:
    """Eq. 8 or 9 of half penalties, which is how the authors' library Lush has them.

    Lush, packages/gblearn2: the layer of Euclidean distances in gb-modules-nn.lsh halves the square, and `mmi-cost` in
    gb-modules.lsh is Eq. 9, whose j, a cost of junk, can be set and has no default.
    """
    return F.cross_entropy(output, labels) if part.today else F.penalty_loss(0.5 * output, labels, part.j)


def curved_loss(part: Part, output: Tensor, labels: Any) -> Tensor:
    """The loss whose curvature sets the rates: Eq. 8 of half penalties, also when Eq. 9 is what is minimised.

    Its curvature is 1 for each unit of F6, for all patterns and at all times. Lush fills it with ones, too, whatever
    comes from above; a comment calls that algebraically incorrect, and the only way that was found to avoid negative
    curvature with losses like Eq. 9. The paper does not say. With Eq. 9's own curvature, which tends to 0 as answers
    become certain, all rates tend to eta / mu (the part own-curvature).
    """
    return loss_of(part if part.own_curvature else replace(part, j=None), output, labels)


def train(part: Part, run: Run, no_progress: bool, test: Callable[[], int], interrupted: Callable[[], bool]) -> None:
    """Train for the remaining passes, until the end, Ctrl-C or a loss of NaN."""
    model, optimizer, schedule, loader = run.model, run.optimizer, run.schedule, run.loader

    def step(x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Learn from a batch; return the sum of its losses and how many answers were right."""
        output = model(x)
        loss = loss_of(part, output, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach() * float(len(labels)), (best(part, output) == labels).sum()

    learn = step if run.args.no_jit else jit(step)
    batch = loader.batch_size if part.today else 1
    saved = time.monotonic()
    with tqdm(
        total=part.passes * len(loader.images),
        initial=loader.epoch * len(loader.images) + loader.position,
        unit=" images",
        unit_scale=True,
        disable=no_progress,
    ) as bar:
        for epoch in range(loader.epoch, part.passes):
            start = time.perf_counter() - run.seconds
            if isinstance(optimizer, optim.StochasticDiagonalLM) and not loader.position:
                x, y = loader.batch(epoch, 0)
                optimizer.estimate(curved_loss(part, model(Tensor(x)), y))
                rates = np.concatenate([rate.ravel() for rate in optimizer.rates()])
                run.note(smallest_rate=rates.min(), largest_rate=rates.max())
            for x, y in loader:
                for i in range(0, len(y), batch):
                    loss, right = learn(Tensor(x[i : i + batch]), Tensor(y[i : i + batch]))
                    if isinstance(schedule, optim.OneCycle):
                        schedule.step()
                    run.loss += loss.item()
                    run.correct += right.item()
                if not math.isfinite(run.loss):
                    run.trouble = f"the loss became {run.loss} in pass {epoch + 1}"
                    return
                run.seconds = time.perf_counter() - start
                bar.update(len(y))
                if interrupted() or time.monotonic() - saved >= run.args.checkpoint_every:
                    run.save()
                    saved = time.monotonic()
                if interrupted():
                    return
            n = len(loader.images)
            run.train_loss.append(run.loss / n)
            run.epoch_seconds.append(run.seconds)
            run.note(train_error=1 - run.correct / n, test_errors=test())
            run.loss = run.correct = run.seconds = 0.0
            if isinstance(schedule, optim.PassRates):
                schedule.step()
            run.save()
            saved = time.monotonic()
            bar.set_postfix_str(f"pass {epoch + 1}/{part.passes}, {run.history['test_errors'][-1]:.0f} test errors")


def best(part: Part, output: Any) -> Any:
    """The class with the highest logit, or with the smallest penalty: output[N 10] -> [N]."""
    return output.argmax(axis=1) if part.today else output.argmin(axis=1)


def outputs(part: Part, model: nn.Module, images: Any) -> Any:
    """Logits or penalties[N 10] of uint8 images[N H W]."""
    transform = data.to_input if part.today else input_1998
    model.eval()
    with no_grad():
        blocks = [model(Tensor(transform(images[i : i + 256]))).numpy() for i in range(0, len(images), 256)]
    model.train()
    return np.concatenate(blocks)


def scores(part: Part, model: nn.Module, images: Any) -> Any:
    """Scores[N 10], higher for likelier classes: logits, or negated penalties, of uint8 images[N H W]."""
    y = outputs(part, model, images)
    return y if part.today else -y


def settings_of(name: str, part: Part, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Everything that a part's results depend on."""
    settings = {**asdict(part), "part": name, "seed": seed, "quick": args.quick}
    return {key: value for key, value in settings.items() if key not in ("title", "seeds")}


def folder_of(name: str, seed: int, args: argparse.Namespace) -> Path:
    return Path(args.out, name, f"seed-{seed}")


def refuse_other_parts(args: argparse.Namespace, parts: dict[str, Part]) -> None:
    """ValueError if --out holds a part with other settings, which can neither be resumed nor share the table."""
    for name, seed in ((name, seed) for name, part in parts.items() for seed in range(part.seeds)):
        folder, mine = folder_of(name, seed, args), settings_of(name, parts[name], seed, args)
        found = []
        if (folder / "checkpoint.safetensors").exists():
            found.append(checkpoint.load(folder / "checkpoint.safetensors")[1].get("arguments"))
        if (folder / "metrics.json").exists():
            found.append(metrics_of(folder)["arguments"])
        for theirs in found:
            if not isinstance(theirs, dict):
                raise ValueError(f"{folder} belongs to another program; choose another --out")
            differences = [
                f"{key} is {value} here and {theirs.get(key, value)} there"
                for key, value in mine.items()
                if theirs.get(key, value) != value
            ]
            if differences:
                raise ValueError(f"{folder} belongs to another run: {', '.join(differences)}; choose another --out")


def metrics_of(folder: Path) -> dict[str, Any]:
    """What a finished part recorded; ValueError if the file belongs to something else."""
    metrics = read_json(folder / "metrics.json")
    lists = ("train_loss", "train_error", "test_errors")
    if not isinstance(metrics, dict) or not {"test_images", "arguments", *lists} <= metrics.keys():
        raise ValueError(f"{folder / 'metrics.json'} belongs to another program; choose another --out")
    return metrics


def run_part(name: str, part: Part, seed: int, args: argparse.Namespace, interrupted: Callable[[], bool]) -> bool:
    """Train one part with one seed and write the results, unless it is finished; return whether it is finished now."""
    folder = folder_of(name, seed, args)
    settings = argparse.Namespace(
        **settings_of(name, part, seed, args), out=folder, checkpoint_every=args.checkpoint_every, no_jit=args.no_jit
    )
    images, labels, test_images, test_labels = sets(part, args)
    with own_folder(folder, make=True):
        model = build(part, seed)
        loader = loader_of(part, images, labels, seed)
        optimizer: optim.Optimizer
        schedule: optim.OneCycle | optim.PassRates
        if part.today:
            optimizer = optim.Adam(model.parameters(), lr=0.004)
            schedule = optim.OneCycle(optimizer, max_lr=0.004, total_steps=part.passes * len(loader))
        else:
            optimizer = optim.StochasticDiagonalLM(model.parameters(), lr=0.0005, mu=0.02)
            schedule = optim.PassRates(optimizer)  # the paper's
        run = Run(settings, model, optimizer, schedule, loader)
        if run.path.exists():
            run.resume()
            state = "is finished" if loader.epoch >= part.passes else f"goes on in pass {loader.epoch + 1}"
            print(f"{name}, seed {seed}: {state}", flush=True)
        else:
            run.begin()
            passes = "1 pass" if part.passes == 1 else f"{part.passes} passes"
            print(f"{name}, seed {seed}: {part.title}, {passes} over {len(loader.images):,} images", flush=True)

        def test() -> int:
            return int((best(part, outputs(part, model, test_images)) != test_labels).sum())

        train(part, run, args.no_progress, test, interrupted)
        if run.trouble:
            raise ValueError(f"{name}, seed {seed}: {run.trouble} (the last checkpoint is kept)")
        if loader.epoch < part.passes:
            return False
        metrics = {
            "test_images": len(test_labels),
            **run.epochs,
            "versions": {
                "tinygrad_lenet": tinygrad_lenet.__version__,
                "numpy": np.__version__,
                "python": platform.python_version(),
            },
            "arguments": run.arguments,
        }
        run.finish(model, metrics)
    return True


def main() -> None:
    args = arguments()
    if args.seeds < 1:
        raise ValueError(f"--seeds is {args.seeds}; expected a number of seeds, at least 1")
    if not args.checkpoint_every >= 0:
        raise ValueError(f"--checkpoint-every is {args.checkpoint_every}; expected seconds, at least 0")
    if args.out is None:
        args.out = Path("runs", "lenet5-1998-quick" if args.quick else "lenet5-1998")
    if args.out.exists() and not args.out.is_dir():
        raise ValueError(f"--out {args.out} is a file; expected a folder")
    parallel.tune_process()
    parts = {name: in_brief(part) for name, part in PARTS.items()} if args.quick else PARTS
    refuse_other_parts(args, parts)
    with ctrl_c_deferred() as interrupted:
        for seed in range(args.seeds):  # first all parts with the first seed, which the pictures need
            for name in args.parts:
                if seed < parts[name].seeds and not run_part(name, parts[name], seed, args, interrupted):
                    print("the same command continues from here")
                    raise KeyboardInterrupt
    report(args)


def in_brief(part: Part) -> Part:
    """The quick version of a part: 3 passes over a hundredth of the images."""
    return replace(part, passes=min(3, part.passes), images=part.images // 100, held_out=part.held_out // 100)


def report(args: argparse.Namespace) -> None:
    """Write the table and the pictures of all finished parts in --out, including those of other commands."""
    from examples import report_1998  # only now: matplotlib takes a while to import

    images, labels = load(args, "test")
    parts: dict[str, list[report_1998.Trained]] = {}
    for name, part in PARTS.items():
        for seed in range(part.seeds):
            folder = folder_of(name, seed, args)
            if (folder / "metrics.json").exists():
                model = build(part, seed)
                model.load_state_dict(checkpoint.load(folder / "model.safetensors")[0])
                transform = data.to_input if part.today else input_1998
                metrics = metrics_of(folder) | {"title": part.title}
                trained = report_1998.Trained(model, transform, partial(scores, part, model), metrics)
                parts.setdefault(name, []).append(trained)
    report_1998.write(args.out, parts, images, labels, "quick, not comparable" if args.quick else "")
    print(f"\n{(args.out / 'table.md').read_text()}\ntable.md and pictures are in {args.out}")


if __name__ == "__main__":
    programs.run(main)
