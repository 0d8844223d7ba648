"""LeNet-5 against its peers: `python -m tests.benchmarks.lenet5 --help`.

Every contestant runs in its own process, on the same cores, and stays alive while all are measured in turn (A B C,
B C A, ...), so any drift of the machine affects all of them. Before each measurement all must show that they
compute the same: ten training steps from the same weights on the same images, with losses that agree within 0.001.
"""

import argparse
import contextlib
import importlib.util
import json
import re
import statistics
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from . import machine, processes
from .contestants import CONTESTANTS
from .processes import Child, ChildError

TITLES = {
    "ours": "tinygrad_lenet",
    "ours-eager": "eager",
    "torch": "PyTorch",
    "torch-channels-last": "PyTorch channels_last",
    "torch-compile": "torch.compile",
    "torch-malloc": "PyTorch, malloc*",
    "torch-channels-last-malloc": "channels_last, malloc*",
    "torch-compile-malloc": "torch.compile, malloc*",
    "jax": "JAX jit",
    "mygrad": "MyGrad",
    "autograd": "autograd",
}
SLOW = ("mygrad", "autograd")  # for the record: one batch size, and a slice of an epoch
MEASURES = {
    "train": "training epoch of 60,000 images",
    "infer": "inference of 10,000 images",
    "forward": "latency of one image",
    "step": "training step on one image",
    "import": "import",
    "cold": "cold start to a trained and tested model",
    "memory": "peak memory, MNIST at batch 256",
    "size": "installed size with dependencies",
}
WHOLE = {"train": 60_000, "infer": 10_000}
TOLERANCE = 1e-3
BUSY = 0.1  # cores used by other programs from which a measurement is marked: threads that wait for each other suffer
SHARED = "†"
LIMIT = 900.0  # seconds that a request may take; torch.compile takes a minute for some


def arguments(given: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.lenet5", description="Compare training and using LeNet-5 with PyTorch and JAX."
    )
    parser.add_argument("--quick", action="store_true", help="a few hundred images, to show that it runs, not how fast")
    parser.add_argument("--rounds", type=int, default=5, help="how many times each is measured (default 5)")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16, 64, 256, 1024], help="batch sizes")
    parser.add_argument("--cores", type=int, nargs="+", default=[1, 2], help="numbers of cores")
    parser.add_argument("--data-dir", type=Path, help="folder with MNIST's IDX files (default: random images)")
    parser.add_argument("--only", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS), help="contestants")
    parser.add_argument("--measure", nargs="+", choices=MEASURES, default=list(MEASURES), help="what to measure")
    parser.add_argument(
        "--patience",
        type=float,
        default=0,
        metavar="SECONDS",
        help="longest total time to wait for other programs to be idle and to repeat what they disturbed",
    )
    parser.add_argument("--json", type=Path, help="file for all rounds, the machine and the settings")
    parser.add_argument("--table", type=Path, help="file for the table, in Markdown")
    args = parser.parse_args(given)
    available = len(machine.cores())
    if min([args.rounds, *args.batch, *args.cores]) < 1 or max(args.batch) > WHOLE["infer"]:
        parser.error("--rounds, --batch and --cores must be at least 1, batches at most 10,000")
    if max(args.cores) > available:
        args.cores = [count for count in args.cores if count <= available]
        print(f"only {available} core(s) can be used here")
        if not args.cores:
            parser.error("no number of cores is left to measure with")
    return args


def main(given: list[str] | None = None) -> None:
    args = arguments(given)
    packages = ("tinygrad_lenet", "numpy", "torch", "jax", "jaxlib", "mygrad", "autograd")
    report: dict[str, Any] = {
        "machine": machine.describe(packages),
        "environment": {
            "removed for all": list(machine.REMOVED),
            "threads": "BLAS and OpenMP threads: the number of cores; 1 for tinygrad_lenet, whose workers are as many",
            "malloc*": machine.TUNED_MALLOC,
        },
        "settings": {
            "quick": args.quick,
            "rounds": args.rounds,
            "data": "random images" if args.data_dir is None else "MNIST",
            "optimizer": "Adam",
            "dtype": "float32",
        },
        "largest_loss_difference": 0.0,
        "results": [],
        "failed": {},
    }
    bench = Bench(args, report)
    print(heading(report), *conditions(report), sep="\n")
    try:
        with tempfile.TemporaryDirectory() as folder:
            bench.folder = Path(folder)
            bench.write_images()
            for cores in args.cores:
                bench.contest(cores)
            for name in ("import", "cold", "memory", "size"):
                if name in args.measure:
                    getattr(bench, f"measure_{name}")()
    except KeyboardInterrupt:
        sys.exit("lenet5: stopped by Ctrl-C")
    print(f"\nlosses of the same steps differ by at most {report['largest_loss_difference']:.1g} between contestants")
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n")
    text = table(report)
    if args.table:
        args.table.write_text(text)
    print(f"\n{text}")


class Bench:
    """One run of the command: its arguments, and the report that it fills."""

    folder: Path

    def __init__(self, args: argparse.Namespace, report: dict[str, Any]) -> None:
        self.args, self.report = args, report
        self.data_dir: Path | None = args.data_dir
        self.patience: float = args.patience
        self.batch_of_slow = (
            64 if 64 in args.batch else min((b for b in args.batch if b >= 16), default=max(args.batch))
        )

    def write_images(self) -> None:
        """Write the images for all contestants, as arrays and, if they are random, as MNIST's files too."""
        import numpy as np

        from tinygrad_lenet import data

        largest = max(self.args.batch)
        sizes = [("train", 4 * max(largest, 256)), ("test", 2 * largest)] if self.args.quick else []
        parts = {}
        for split, size in sizes or [("train", WHOLE["train"]), ("test", WHOLE["infer"])]:
            if self.args.data_dir is not None:
                images, labels = data.mnist(self.args.data_dir, split)
                parts[split] = images[:size], labels[:size]
            else:
                rng = np.random.default_rng(len(split))
                parts[split] = rng.integers(0, 256, (size, 28, 28), np.uint8), rng.integers(0, 10, size)
                prefix = {"train": "train", "test": "t10k"}[split]
                data.write_idx(self.folder / f"{prefix}-images-idx3-ubyte", parts[split][0])
                data.write_idx(self.folder / f"{prefix}-labels-idx1-ubyte", parts[split][1].astype(np.uint8))
                self.data_dir = self.folder
        np.save(self.folder / "images.npy", parts["train"][0])
        np.save(self.folder / "labels.npy", parts["train"][1])
        np.save(self.folder / "test_images.npy", parts["test"][0])
        self.most = {"train": len(parts["train"][0]), "infer": len(parts["test"][0])}

    def fail(self, who: str, why: object) -> None:
        self.report["failed"].setdefault(who, str(why))
        print(f"  {who}: {why}", flush=True)

    # Contestants that stay alive

    def contest(self, cores: int) -> None:
        """All measurements for which the contestants take turns, on this many cores."""
        timed = [what for what in ("train", "infer", "forward", "step") if what in self.args.measure]
        if not timed:
            return
        with contextlib.ExitStack() as stack:
            children = self.start(stack, cores)
            for what in timed:
                for batch in self.args.batch if what in WHOLE else [1]:
                    self.rounds(children, cores, what, batch)

    def start(self, stack: contextlib.ExitStack, cores: int) -> dict[str, Child]:
        children: dict[str, Child] = {}
        for name in self.args.only:
            package, _ = CONTESTANTS[name]
            if importlib.util.find_spec(package) is None:
                self.fail(name, f"{package} is not installed")
                continue
            environment = machine.environment(1 if name.startswith("ours") else cores, name.endswith("-malloc"))
            command = ["-m", "tests.benchmarks.contestants", name, str(cores), str(self.folder)]
            try:
                child = Child(stack, command, environment, machine.cores()[:cores])
                child.answer(LIMIT)
            except ChildError as error:
                self.fail(f"{name}, {cores} core(s)", error)
            else:
                children[name] = child
        return children

    def prepare(
        self, children: dict[str, Child], cores: int, what: str, batch: int
    ) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
        """Warm up all contestants and leave out those that do not compute the same as the first.

        Return the request for each contestant that takes part, and the way in which it works.
        """
        requests: dict[str, dict[str, Any]] = {}
        chosen: dict[str, str] = {}
        losses: list[float] = []
        zeros: list[float] = []
        check = {"what": "losses", "batch": batch, "count": min(10, self.most["train"] // batch) * batch}
        for name, child in children.items():
            if name in SLOW and what in WHOLE and batch != self.batch_of_slow:
                continue
            request = {"what": what, "batch": batch, "count": self.count(name, what, batch)}
            try:
                answer = child.ask(check, LIMIT)
                difference = agree(answer["losses"], losses, TOLERANCE)
                self.report["largest_loss_difference"] = max(difference, self.report["largest_loss_difference"])
                way = answer["notes"].get(f"batch {batch}")
                answer = child.ask(request | {"count": min(request["count"], 10 * batch)}, LIMIT)
                if what == "infer":  # here and there an image may look as much like a 0 as like something else
                    agree([answer["zeros"]], zeros, batch / 10)
            except ChildError as error:
                self.fail(f"{name}, {MEASURES[what]}, batch {batch}, {cores} core(s)", error)
                continue
            requests[name] = request
            chosen |= {name: way} if way and what != "infer" else {}
        return requests, chosen

    def rounds(self, children: dict[str, Child], cores: int, what: str, batch: int) -> None:
        """Measure the contestants in turn."""
        requests, chosen = self.prepare(children, cores, what, batch)
        live = list(requests)
        seconds: dict[str, list[float]] = {name: [] for name in live}
        others: list[float] = []
        for lap in range(self.args.rounds):
            for place in range(len(live)):
                name = live[(lap + place) % len(live)]
                try:
                    answer, crowd = self.undisturbed(children[name], requests[name])
                except ChildError as error:
                    self.fail(f"{name}, {MEASURES[what]}, batch {batch}, {cores} core(s)", error)
                    live, seconds = [each for each in live if each != name], seconds | {name: []}
                    break
                others.append(crowd)
                scale = WHOLE[what] / requests[name]["count"] if what in WHOLE else 1.0
                seconds[name].append(answer["seconds"] * scale)
        slices = {name: request["count"] for name, request in requests.items()}
        self.add(
            {"what": what, "batch": batch, "cores": cores, "unit": "s"},
            {name: all_rounds for name, all_rounds in seconds.items() if all_rounds},
            {"slices": slices, "chosen": chosen, "cores_used_by_others": round(statistics.fmean(others or [0]), 2)},
        )

    def undisturbed(self, child: Child, request: dict[str, Any]) -> tuple[dict[str, Any], float]:
        """The answer, repeated if other programs disturbed it and time is left, and how many cores these used."""
        while True:
            quiet = False
            while self.patience > 0 and not quiet:
                watch = processes.Watch()
                time.sleep(0.3)
                self.patience -= 0.3
                quiet = watch.cores_used_by_others() <= BUSY
            watch = processes.Watch()
            answer = child.ask(request, LIMIT)
            crowd = watch.cores_used_by_others()
            if crowd <= BUSY or self.patience <= 0:
                return answer, crowd
            self.patience -= watch.seconds()

    def count(self, name: str, what: str, batch: int) -> int:
        """How many images (or calls) to measure: whole batches; at batch 1, or for slow contestants, only some."""
        if what not in WHOLE:
            return 20 if self.args.quick else 200 if name in SLOW else 1000
        most = self.most[what]
        if self.args.quick:
            most = min(most, max(320, 2 * batch))
        wanted = 640 if name in SLOW else min(most, max(2000, 1000 * batch))
        return max(1, min(wanted, most) // batch) * batch

    # Whole programs

    def scripts(self, cores: int, name: str, out: Path, *options: str) -> tuple[list[str], dict[str, str]]:
        """The command and the environment that train on MNIST with ours, or with PyTorch."""
        dataset = "idx" if self.args.data_dir is None else "mnist"
        shared = ["--dataset", dataset, "--data-dir", str(self.data_dir), *options]
        if name == "ours":
            own = ["--backend", "cpu", "--workers", str(cores), "--no-progress", "--out", str(out)]
            return ["-m", "examples.train_lenet5", *own, *shared], machine.environment(1)
        return (
            ["-m", "tests.benchmarks.torch_train", "--threads", str(cores), *shared],
            machine.environment(cores, name.endswith("-malloc")),
        )

    def programs(self) -> list[str]:
        """Which of those programs can run here."""
        found = []
        for name in ("ours", "torch"):
            if name not in self.args.only:
                continue
            needed = {"ours": ("tqdm",), "torch": ("torch",)}[name]
            missing = [package for package in needed if importlib.util.find_spec(package) is None]
            if missing:
                self.fail(f"{name}, whole program", f"{missing[0]} is not installed")
            else:
                found.append(name)
        return found

    def packages(self) -> dict[str, str]:
        """The installed packages among those asked for, each under one contestant's name."""
        found: dict[str, str] = {}
        for name in self.args.only:
            package, _ = CONTESTANTS[name]
            if package not in found.values() and importlib.util.find_spec(package) is not None:
                found[name] = package
        return found

    def measure_import(self) -> None:
        packages = {
            "ours": "tinygrad_lenet",
            "torch": "torch",
            "jax": "jax",
            "mygrad": "mygrad",
            "autograd": "autograd",
        }
        codes = {"python": "pass", "numpy": "import numpy"} | {
            name: f"import {package}"
            for name, package in packages.items()
            if name in self.args.only and importlib.util.find_spec(package) is not None
        }
        seconds: dict[str, list[float]] = {name: [] for name in codes}
        cores = max(self.args.cores)
        for lap in range(self.args.rounds + 1):
            for name, code in codes.items():
                took, _ = processes.run(["-c", code], machine.environment(cores), machine.cores()[:cores])
                if lap:  # the first time brings the files into memory
                    seconds[name].append(took)
        self.add(
            {"what": "import", "batch": None, "cores": cores, "unit": "s"},
            seconds,
            {"of": "a fresh process from start to end; 'python' imports nothing, 'numpy' only NumPy"},
        )

    def measure_cold(self) -> None:
        """The example's recipe, timed from the start of the process to its end."""
        who = "cold start"
        if self.args.data_dir is None or self.args.quick:
            return self.fail(who, "needs the real MNIST: --data-dir, and not --quick")
        _, help_text = processes.run(
            ["-m", "examples.train_lenet5", "--help"], machine.environment(1), machine.cores()[:1]
        )
        if "--recipe" not in help_text:
            return self.fail(who, "examples.train_lenet5 has no --recipe")
        cores = max(self.args.cores)
        seconds: dict[str, list[float]] = {}
        accuracy: dict[str, list[float]] = {}
        recipe: list[str] = []
        for _ in range(min(3, self.args.rounds)):
            for name in self.programs():
                if name == "torch" and not recipe:
                    continue
                out = self.folder / "cold"
                options = ["--recipe", "fast"] if name == "ours" else recipe
                command, environment = self.scripts(cores, name, out, *options)
                try:
                    took, printed = processes.run(command, environment, machine.cores()[:cores])
                except ChildError as error:
                    self.fail(f"{name}, {who}", error)
                    continue
                seconds.setdefault(name, []).append(took)
                shown = re.search(r"accuracy ([\d.]+)%", printed)
                accuracy.setdefault(name, []).append(float(shown[1]) if shown else float("nan"))
                if name == "ours":
                    used = json.loads((out / "metrics.json").read_text())["arguments"]
                    recipe = [
                        word
                        for option in ("model", "epochs", "batch_size", "lr")
                        for word in (f"--{option.replace('_', '-')}", str(used[option]))
                    ]
        self.add(
            {"what": "cold", "batch": None, "cores": cores, "unit": "s"},
            seconds,
            {"test_accuracy_percent": accuracy, "recipe": " ".join(recipe)},
        )
        return None

    def measure_memory(self) -> None:
        cores = max(self.args.cores)
        found: dict[str, list[float]] = {}
        for name in self.programs():
            options = ["--batch-size", "256", "--epochs", "1"] + (["--images", "uint8"] if name == "torch" else [])
            command, environment = self.scripts(cores, name, self.folder / "memory", *options)
            try:
                found[name] = [processes.peak_memory(command, environment, machine.cores()[:cores])]
            except ChildError as error:
                self.fail(f"{name}, {MEASURES['memory']}", error)
        self.add(
            {"what": "memory", "batch": 256, "cores": cores, "unit": "MB"},
            found,
            {"of": "all processes of a run, each shared page once, libraries included; images kept as uint8 by all"},
        )

    def measure_size(self) -> None:
        found = {name: [installed_size(package)] for name, package in self.packages().items()}
        found["numpy"] = [installed_size("numpy")]
        self.add(
            {"what": "size", "batch": None, "cores": None, "unit": "MB"},
            found,
            {"of": "files of the package and of what it requires, without compiled Python"},
        )

    # The report

    def add(self, place: dict[str, Any], values: dict[str, list[float]], more: dict[str, Any]) -> None:
        """Put one measurement into the report and print it."""
        if not values:
            return
        ours = values.get("ours")
        contestants: dict[str, Any] = {}
        for name, each in values.items():
            contestants[name] = {
                "rounds": each,
                "median": statistics.median(each),
                "min": min(each),
                "max": max(each),
            }
            if ours:
                contestants[name]["ratio"] = statistics.median(each) / statistics.median(ours)
                contestants[name]["by_round"] = [a / b for a, b in zip(each, ours, strict=False)]
        result = place | more | {"contestants": contestants}
        self.report["results"].append(result)
        print(f"\n{title(result)}, {place['unit']}")
        if more.get("cores_used_by_others", 0) > BUSY:
            print(f"  (other programs used {more['cores_used_by_others']} cores meanwhile)")
        for name, c in contestants.items():
            line = f"  {name:27}{amount(c['median']):>9} ({amount(c['min'])} to {amount(c['max'])})"
            if "ratio" in c and name != "ours":
                line += f"  {c['ratio']:.2f} x ours; by round {' '.join(f'{r:.2f}' for r in c['by_round'])}"
            chosen = more.get("chosen", {}).get(name)
            print(line + (f"  [{chosen}]" if chosen else ""), flush=True)


def agree(found: list[float], wanted: list[float], tolerance: float) -> float:
    """The largest difference between two contestants' numbers; ChildError if it is too large.

    The first contestant fills ``wanted``.
    """
    if not wanted:
        wanted += found
    differences = [abs(a - b) for a, b in zip(found, wanted, strict=True)]
    if not all(difference <= tolerance for difference in differences):  # NaN does not pass
        raise ChildError(f"computes something else: {found[:3]} where the first contestant has {wanted[:3]}")
    return max(differences)


def installed_size(package: str) -> float:
    """Megabytes of a package's files and of those of all packages that it needs."""
    total, seen, queue = 0, set(), [package]
    while queue:
        name = queue.pop()
        if name in seen:
            continue
        seen.add(name)
        if name == "tinygrad_lenet":  # perhaps not installed, but here
            folders = [machine.ROOT / "tinygrad_lenet", machine.ROOT / "models"]
            total += sum(path.stat().st_size for folder in folders for path in folder.rglob("*") if _counts(path))
            queue.append("numpy")
            continue
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue  # needed elsewhere only, on another system say
        total += sum(
            Path(str(file.locate())).stat().st_size for file in distribution.files or [] if _counts(Path(file.locate()))
        )
        for requirement in distribution.requires or []:
            needed = re.match(r"[\w.-]+", requirement)
            if needed and not re.search(r"\bextra\b", requirement):
                queue.append(re.sub(r"[-_.]+", "-", needed[0]).lower())
    return total / 1e6


def _counts(path: Path) -> bool:
    return path.suffix != ".pyc" and path.is_file()


def heading(report: dict[str, Any]) -> str:
    m = report["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in m["versions"].items() if version != "not installed")
    return f"{m['date']}: {m['processor']}, {m['cores']} core(s) ({' '.join(m['flags'])}), {m['system']}; {versions}"


def conditions(report: dict[str, Any]) -> list[str]:
    """What a reader needs to know to judge the numbers."""
    settings = report["settings"]
    return [
        f"LeNet-5 with tanh and average pooling (61,706 parameters) on {settings['data']}, float32, Adam, "
        f"{settings['rounds']} rounds in which the contestants take turns.",
        f"Environment: {' and '.join(machine.REMOVED)} removed for all; BLAS and OpenMP threads as many as cores, "
        "for tinygrad_lenet 1 and workers as many as cores (never more than images in a batch).",
        "tinygrad_lenet draws its batches from uint8 images; the peers gather theirs from float32 images in memory.",
        "malloc*: MALLOC_MMAP_THRESHOLD_ = MALLOC_TRIM_THRESHOLD_ = 1073741824, what parallel.tune_process does for "
        "ours.",
        "PyTorch: the faster of fused and default Adam; JAX: the faster of NCHW and NHWC.",
        "Epochs of more than 1,000 steps are scaled up from 1,000 steps (at least 2,000 images), those of MyGrad and "
        "autograd from 640 images; all batches are whole.",
    ]


def title(result: dict[str, Any]) -> str:
    text = MEASURES[result["what"]]
    if result["what"] in WHOLE:
        text += f", batch {result['batch']}"
    if result["cores"]:
        text += f", {result['cores']} core{'s' if result['cores'] > 1 else ''}"
    return text


def amount(value: float) -> str:
    """Three digits."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}" if value >= 1 else f"{value:.2g}"


def table(report: dict[str, Any]) -> str:
    """Medians and, in brackets, their ratio to ours, in Markdown."""
    found = [name for name in TITLES if any(name in result["contestants"] for result in report["results"])]
    lines = [
        heading(report).replace("_", r"\_"),
        "",
        *(line.replace("*", r"\*").replace("_", r"\_") for line in conditions(report)),
        "",
        "| median (ratio to ours) | " + " | ".join(TITLES[name].replace("*", r"\*") for name in found) + " |",
        "|---|" + "---:|" * len(found),
    ]
    remarks = []
    for result in report["results"]:
        scale, unit = (1e3, "ms") if result["what"] in ("forward", "step", "import") else (1, result["unit"])
        cells = []
        for name in found:
            c = result["contestants"].get(name)
            ratio = f" ({c['ratio']:.1f})" if c and name != "ours" and "ratio" in c else ""
            cells.append(f"{amount(c['median'] * scale)}{ratio}" if c else "")
        mark = SHARED if result.get("cores_used_by_others", 0) > BUSY else ""
        lines.append(f"| {title(result)}, {unit}{mark} | " + " | ".join(cells) + " |")
        rest = {name: c for name, c in result["contestants"].items() if name not in TITLES}
        if rest:
            parts = ", ".join(f"{name} alone {amount(c['median'] * scale)} {unit}" for name, c in rest.items())
            remarks.append(f"{title(result).capitalize()}: {parts}.")
        if result["what"] == "cold":
            reached = result["test_accuracy_percent"]
            parts = ", ".join(f"{name} {' '.join(f'{x:.2f}%' for x in each)}" for name, each in reached.items())
            remarks.append(f"Test accuracy after the cold start ({result['recipe']}): {parts}.")
    others = max((result.get("cores_used_by_others", 0) for result in report["results"]), default=0)
    if others > BUSY:
        remarks.append(f"{SHARED} Unreliable: other programs used more than {BUSY} cores, up to {others}.")
    failures = [f"Not measured: {who}: {why}." for who, why in report["failed"].items()]
    return "\n".join([*lines, "", *remarks, *failures]).rstrip() + "\n"


if __name__ == "__main__":
    main()
